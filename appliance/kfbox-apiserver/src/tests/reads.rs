use super::*;

#[tokio::test]
async fn continue_tokens_page_through_one_moment() {
    let world = world().await;
    for n in 0..5 {
        world.config_map(&format!("c{n}"), "v").await;
    }
    let path = "/api/v1/namespaces/default/configmaps";
    let (_, page) = world.get(&format!("{path}?limit=2")).await;
    let revision = page["metadata"]["resourceVersion"].clone();
    assert_eq!(page["metadata"]["remainingItemCount"], 3);
    let mut names: Vec<String> = Vec::new();
    let mut page = page;
    // Changes after the first page do not show.
    world.config_map("c10", "v").await;
    world.delete(&format!("{path}/c3"), Value::Null).await;
    loop {
        assert_eq!(page["metadata"]["resourceVersion"], revision);
        names.extend(
            page["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        page = world.get(&format!("{path}?limit=2&continue={token}")).await.1;
    }
    assert_eq!(names, ["c0", "c1", "c2", "c3", "c4"]);

    let (_, page) = world.get(&format!("{path}?limit=2")).await;
    let token = page["metadata"]["continue"].as_str().unwrap();
    world.config_map("later", "v").await;
    world.server.core().store.compact_keeping(Some(0), std::time::Duration::ZERO).await.unwrap();
    let (code, body) = world.get(&format!("{path}?limit=2&continue={token}")).await;
    assert_eq!((code.as_u16(), body["reason"].as_str().unwrap()), (410, "Expired"));
    // The answer has a token for the rest as it is now.
    let token = body["metadata"]["continue"].as_str().unwrap();
    let (code, rest) = world.get(&format!("{path}?limit=10&continue={token}")).await;
    let names: Vec<_> = rest["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].clone()).collect();
    assert_eq!((code.as_u16(), names), (200, vec![json!("c10"), json!("c2"), json!("c4"), json!("later")]));
    assert_eq!(rest["metadata"]["resourceVersion"], world.server.core().store.revision().to_string());
    assert_eq!(world.get(&format!("{path}?continue=nonsense")).await.0, 400);
}

#[tokio::test]
async fn pages_under_a_selector_and_under_writes_show_each_match_once() {
    let world = world().await;
    for n in 0..9 {
        world.config_map(&format!("c{n}"), if n % 3 == 0 { "third" } else { "other" }).await;
        let app = if n % 3 == 0 { "third" } else { "other" };
        let path = format!("/api/v1/namespaces/default/configmaps/c{n}");
        world.merge(&path, json!({"metadata": {"labels": {"app": app}}})).await;
    }
    let path = "/api/v1/configmaps?labelSelector=app%3Dthird&limit=1";
    let (mut names, mut query) = (Vec::new(), String::new());
    loop {
        let (code, page) = world.get(&format!("{path}{query}")).await;
        assert_eq!(code, 200);
        assert!(page["metadata"]["remainingItemCount"].is_null(), "under a selector nobody knows");
        names.extend(page["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].clone()));
        // Each page meets a changed world.
        world.merge("/api/v1/namespaces/default/configmaps/c6", json!({"metadata": {"labels": {"app": "not"}}})).await;
        world.delete("/api/v1/namespaces/default/configmaps/c3", Value::Null).await;
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        query = format!("&continue={token}");
    }
    assert_eq!(names, [json!("c0"), json!("c3"), json!("c6")]);
}

#[tokio::test]
async fn list_options_that_do_not_go_together_are_refused_as_upstream_does() {
    let world = world().await;
    let path = "/api/v1/namespaces/default/configmaps";
    for (query, expected) in [
        (
            "resourceVersionMatch=Exact",
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden \
             unless resourceVersion is provided",
        ),
        ("resourceVersion=1&resourceVersionMatch=Newest", "supported values: \"Exact\", \"NotOlderThan\", \"\""),
        ("resourceVersion=0&resourceVersionMatch=Exact", "\"exact\" is forbidden for resourceVersion \"0\""),
        ("sendInitialEvents=true", "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"),
        ("watch=1&sendInitialEvents=true", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
        (
            "watch=1&resourceVersionMatch=NotOlderThan",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        ("watch=1&sendInitialEvents=true&resourceVersionMatch=Exact", "supported values: \"NotOlderThan\""),
    ] {
        let (code, body) = world.get(&format!("{path}?{query}")).await;
        assert_eq!((code.as_u16(), &body["reason"]), (422, &json!("Invalid")), "{query}: {body}");
        assert!(body["message"].as_str().unwrap().contains(expected), "{query}: {body}");
    }
    let (code, body) = world.get(&format!("{path}?timeout=soon")).await;
    assert_eq!((code.as_u16(), &body["reason"]), (400, &json!("BadRequest")));
}

#[tokio::test]
async fn a_long_list_is_the_same_in_pieces_compressed_and_in_pages() {
    use std::io::Read as _;
    let world = world().await;
    let path = "/api/v1/namespaces/default/configmaps";
    for n in 0..40 {
        // Some larger than a piece.
        let value = "v".repeat(if n % 10 == 0 { 100_000 } else { 3000 });
        world.config_map(&format!("c{n:02}"), &value).await;
    }
    let (_, headers, whole) = world.request("GET", path, &[], Value::Null).await;
    let length: usize = headers.get("content-length").map_or(0, |l| l.to_str().unwrap().parse().unwrap());
    assert_eq!(length, 0, "the server's own part sets it");
    assert_eq!(whole["items"].as_array().unwrap().len(), 40);

    let client = world.remote(|_| {}).await;
    let get = async |accept: &str, encoding: &str| {
        let request = Request::get(path)
            .header("accept", accept)
            .header("accept-encoding", encoding)
            .body(kube::client::Body::empty())
            .unwrap();
        let response = client.send(request).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts.headers, body.collect().await.unwrap().to_bytes())
    };
    let (headers, plain) = get("application/json", "identity").await;
    assert_eq!(headers["content-length"], plain.len().to_string().as_str());
    assert_eq!(serde_json::from_slice::<Value>(&plain).unwrap(), whole);
    let (headers, packed) = get("application/json", "gzip").await;
    assert_eq!(headers["content-encoding"], "gzip");
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&unpacked).unwrap(), whole);
    assert!(packed.len() * 10 < plain.len());
    let (_, table) = get("application/json;as=Table;v=v1;g=meta.k8s.io", "identity").await;
    let table: Value = serde_json::from_slice(&table).unwrap();
    assert_eq!(table["rows"].as_array().unwrap().len(), 40);
    assert_eq!((&table["kind"], &table["metadata"]), (&json!("Table"), &whole["metadata"]));
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    let partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let (_, partial) = get(partial, "gzip").await;
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&partial[..]).read_to_end(&mut unpacked).unwrap();
    let partial: Value = serde_json::from_slice(&unpacked).unwrap();
    assert_eq!(partial["items"][39]["metadata"]["name"], "c39");
    assert_eq!(world.get("/api/v1/namespaces/none/configmaps").await.1["items"], json!([]));
}

#[tokio::test]
async fn a_streaming_list_ends_with_its_bookmark_and_goes_on_without_a_gap() {
    let world = world().await;
    for n in 0..3 {
        world.config_map(&format!("c{n}"), "v").await;
    }
    let path = "/api/v1/namespaces/default/configmaps";
    let watch = |query: &str| {
        let mut request = Request::get(format!("{path}?watch=1&{query}")).body(Body::empty()).unwrap();
        request.extensions_mut().insert(server::Local);
        request.extensions_mut().insert(UserInfo::new("admin", [UserInfo::MASTERS.to_owned()]));
        world.server.call(request)
    };
    let streaming = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut stream = watch(&format!("{streaming}&allowWatchBookmarks=true")).await;
    let mut buffer = Vec::new();
    let mut seen = Vec::new();
    let end = loop {
        let event = next_line(&mut stream, &mut buffer).await.unwrap();
        if event["type"] == "BOOKMARK" {
            break event["object"].clone();
        }
        assert_eq!(event["type"], "ADDED");
        seen.push(event["object"]["metadata"]["name"].as_str().unwrap().to_owned());
    };
    assert_eq!(seen, ["c0", "c1", "c2"]);
    assert_eq!((&end["kind"], &end["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    assert_eq!(end["metadata"]["annotations"], json!({"k8s.io/initial-events-end": "true"}));
    let then = end["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    world.config_map("c3", "v").await;
    let event = next_line(&mut stream, &mut buffer).await.unwrap();
    assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("c3")));
    // From the bookmark on nothing is missed either.
    let mut resumed = watch(&format!("resourceVersion={then}")).await;
    assert_eq!(next_line(&mut resumed, &mut Vec::new()).await.unwrap(), event);
    // Told not to: only what comes.
    let mut from_now = watch("sendInitialEvents=false&resourceVersionMatch=NotOlderThan").await;
    let mut plain = watch(streaming).await;
    world.config_map("c4", "v").await;
    let event = next_line(&mut from_now, &mut Vec::new()).await.unwrap();
    assert_eq!(event["object"]["metadata"]["name"], "c4");
    let mut buffer = Vec::new();
    for name in ["c0", "c1", "c2", "c3", "c4"] {
        let event = next_line(&mut plain, &mut buffer).await.unwrap();
        assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!(name)));
    }
}

#[tokio::test]
async fn what_leaves_a_selection_is_told_as_it_was_last_seen_at_the_revision_of_now() {
    let world = world().await;
    world.config_map("c", "v").await;
    let path = "/api/v1/namespaces/default/configmaps";
    let mut request = Request::get(format!("{path}?watch=1&labelSelector=app%3Dc")).body(Body::empty()).unwrap();
    request.extensions_mut().insert(server::Local);
    request.extensions_mut().insert(UserInfo::new("admin", [UserInfo::MASTERS.to_owned()]));
    let mut stream = world.server.call(request).await;
    let mut buffer = Vec::new();
    next_line(&mut stream, &mut buffer).await.unwrap();
    let (_, changed) = world.merge(&format!("{path}/c"), json!({"metadata": {"labels": {"app": "other"}}})).await;
    let event = next_line(&mut stream, &mut buffer).await.unwrap();
    assert_eq!((&event["type"], &event["object"]["metadata"]["labels"]["app"]), (&json!("DELETED"), &json!("c")));
    assert_eq!(event["object"]["metadata"]["resourceVersion"], changed["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn revisions_mean_what_the_documentation_says() {
    let world = world().await;
    let path = "/api/v1/namespaces/default/configmaps";
    let first = world.config_map("a", "1").await.metadata.resource_version.unwrap();
    world.config_map("b", "1").await;
    let count = |list: &Value| list["items"].as_array().unwrap().len();
    let (_, exact) = world.get(&format!("{path}?resourceVersion={first}&resourceVersionMatch=Exact")).await;
    assert_eq!((count(&exact), exact["metadata"]["resourceVersion"].as_str().unwrap()), (1, &*first));
    let (_, newer) = world.get(&format!("{path}?resourceVersion={first}")).await;
    assert_eq!(count(&newer), 2);
    let (_, any) = world.get(&format!("{path}?resourceVersion=0")).await;
    assert_eq!(count(&any), 2);
    assert_eq!(world.get(&format!("{path}?resourceVersion=x")).await.0, 400);
    assert_eq!(world.get(&format!("{path}?resourceVersion=0&resourceVersionMatch=Exact")).await.0, 422);
    tokio::time::pause();
    let (code, body) = world.get(&format!("{path}?resourceVersion=999999")).await;
    assert_eq!((code.as_u16(), &body["details"]["causes"][0]["reason"]), (504, &json!("ResourceVersionTooLarge")));
}

#[tokio::test]
async fn a_watch_resumes_from_a_revision_and_is_told_when_that_is_too_old() {
    let world = world().await;
    let path = "/api/v1/namespaces/default/configmaps";
    let first = world.config_map("a", "1").await.metadata.resource_version.unwrap();
    world.config_map("b", "1").await;
    let watch = |query: String| {
        let mut request = Request::get(format!("{path}?watch=1&{query}")).body(Body::empty()).unwrap();
        request.extensions_mut().insert(server::Local);
        request.extensions_mut().insert(UserInfo::new("admin", [UserInfo::MASTERS.to_owned()]));
        world.server.call(request)
    };
    let mut stream = watch(format!("resourceVersion={first}")).await;
    let mut buffer = Vec::new();
    let event = next_line(&mut stream, &mut buffer).await.unwrap();
    assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("b")));

    // A selector turns a change of labels into a deletion.
    let mut stream = watch(
        "labelSelector=app%3Db&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
            .into(),
    )
    .await;
    let mut buffer = Vec::new();
    let event = next_line(&mut stream, &mut buffer).await.unwrap();
    assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("b")));
    let event = next_line(&mut stream, &mut buffer).await.unwrap();
    assert_eq!(event["type"], "BOOKMARK");
    assert_eq!(event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    world.merge(&format!("{path}/a"), json!({"metadata": {"labels": {"app": "z"}}})).await;
    world.merge(&format!("{path}/b"), json!({"metadata": {"labels": {"app": "z"}}})).await;
    let event = next_line(&mut stream, &mut buffer).await.unwrap();
    assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("DELETED"), &json!("b")));

    world.server.core().store.compact_keeping(Some(0), std::time::Duration::ZERO).await.unwrap();
    let mut expired = watch(format!("resourceVersion={first}")).await;
    let event = next_line(&mut expired, &mut Vec::new()).await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(event["object"]["reason"], "Expired");

    let mut stream =
        watch("timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion=0&fieldSelector=metadata.name%3Db".into())
            .await;
    let mut types = Vec::new();
    let mut buffer = Vec::new();
    while let Some(event) = next_line(&mut stream, &mut buffer).await {
        types.push(event["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(types, ["ADDED", "BOOKMARK"]);
}

#[tokio::test]
async fn kubectl_gets_tables_and_controllers_get_metadata() {
    let world = world().await;
    world.config_map("a", "1").await;
    let path = "/api/v1/namespaces/default/configmaps";
    let accept = |form: &'static str| [("accept", form)];
    let (_, _, table) = world
        .request("GET", path, &accept("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"), Value::Null)
        .await;
    assert_eq!((&table["kind"], &table["columnDefinitions"][0]["name"]), (&json!("Table"), &json!("Name")));
    assert_eq!(
        (&table["rows"][0]["cells"][0], &table["rows"][0]["object"]["kind"]),
        (&json!("a"), &json!("PartialObjectMetadata"))
    );
    assert!(table["rows"][0]["object"]["data"].is_null());
    let (_, _, list) = world
        .request("GET", path, &accept("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"), Value::Null)
        .await;
    assert_eq!(
        (&list["kind"], &list["items"][0]["metadata"]["name"]),
        (&json!("PartialObjectMetadataList"), &json!("a"))
    );
    assert!(list["items"][0]["data"].is_null());
    assert_eq!(world.request("GET", path, &accept("image/png"), Value::Null).await.0, 406);
}

#[tokio::test]
async fn discovery_agrees_with_upstreams_documents() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/kubernetes/api/discovery");
    let world = world().await;
    let mut compared = 0;
    let groups = world.server.core().resources.current();
    for group in &groups.groups {
        for version in &group.versions {
            let (path, file) = match &*group.name {
                "" => ("/api/v1".to_owned(), "api__v1.json".to_owned()),
                name => {
                    (format!("/apis/{name}/{}", version.version), format!("apis__{name}__{}.json", version.version))
                }
            };
            let Ok(upstream) = std::fs::read(root.join(&file)) else { continue };
            let upstream: Value = serde_json::from_slice(&upstream).unwrap();
            let (_, ours) = world.get(&path).await;
            let by_name = |list: &Value| -> std::collections::BTreeMap<String, Value> {
                list["resources"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|r| (r["name"].as_str().unwrap().to_owned(), r.clone()))
                    .collect()
            };
            let (ours, upstream) = (by_name(&ours), by_name(&upstream));
            for (name, theirs) in &upstream {
                let mut mine = ours.get(name).unwrap_or_else(|| panic!("{path} lacks {name}")).clone();
                if let Some(verbs) = mine["verbs"].as_array_mut() {
                    verbs.sort_by_key(ToString::to_string);
                }
                let mut theirs = theirs.clone();
                // Where upstream still stores an older version, its hash is that one's.
                for resource in [&mut mine, &mut theirs] {
                    if let Some(hash) = resource.get_mut("storageVersionHash") {
                        *hash = "some".into();
                    }
                }
                if let Some(verbs) = theirs["verbs"].as_array_mut() {
                    verbs.sort_by_key(ToString::to_string);
                }
                assert_eq!(mine, theirs, "{path} {name}");
                compared += 1;
            }
            assert_eq!(ours.len(), upstream.len(), "{path}");
        }
    }
    assert!(compared > 90 || !root.exists(), "only {compared} compared");
    let (_, _, aggregated) = world
        .request(
            "GET",
            "/apis",
            &[("accept", "application/json;v=v2;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList,application/json")],
            Value::Null,
        )
        .await;
    assert_eq!(
        (&aggregated["kind"], &aggregated["apiVersion"]),
        (&json!("APIGroupDiscoveryList"), &json!("apidiscovery.k8s.io/v2"))
    );
}
