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
    assert_eq!(world.get(&format!("{path}?continue=nonsense")).await.0, 400);
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
