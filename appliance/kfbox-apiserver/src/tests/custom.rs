use super::*;

pub fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true,
                 "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"}},
                 "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
                 "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "required": ["size"], "properties": {
                        "size": {"type": "integer", "minimum": 0}, "colour": {"type": "string", "default": "red"}}},
                    "status": {"type": "object", "properties": {"size": {"type": "integer"}}}}}}},
                {"name": "v1beta1", "served": true, "storage": false,
                 "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
            ],
        },
    })
}

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn a_definition_is_served_at_once_and_takes_its_objects_along() {
    let world = world().await;
    assert_eq!(world.get(WIDGETS).await.0, 404);
    let (code, crd) = world.post(CRDS, definition()).await;
    assert_eq!(code, 201, "{crd}");
    let established = crd["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .any(|c| c["type"] == "Established" && c["status"] == "True");
    assert!(established, "{crd}");
    let (_, group) = world.get("/apis/example.com").await;
    assert_eq!(group["preferredVersion"]["version"], "v1");

    let (code, made) = world.post(WIDGETS, widget("a", json!({"size": 2, "extra": 1}))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"], json!({"size": 2, "colour": "red"}), "pruned and defaulted");
    let (code, body) = world.post(WIDGETS, widget("b", json!({"size": -1}))).await;
    assert_eq!((code.as_u16(), &body["details"]["causes"][0]["field"]), (422, &json!("spec.size")), "{body}");
    let (code, body) = world.post(WIDGETS, widget("b", json!({}))).await;
    assert_eq!((code.as_u16(), &body["details"]["causes"][0]["reason"]), (422, &json!("FieldValueRequired")), "{body}");

    let (_, old) = world.get("/apis/example.com/v1beta1/namespaces/default/widgets/a").await;
    assert_eq!((&old["apiVersion"], &old["spec"]["size"]), (&json!("example.com/v1beta1"), &json!(2)));
    let (code, status) =
        world.merge(&format!("{WIDGETS}/a/status"), json!({"status": {"size": 1}, "spec": {"size": 9}})).await;
    assert_eq!((code.as_u16(), &status["spec"]["size"], &status["status"]["size"]), (200, &json!(2), &json!(1)));
    let (_, scale) = world.merge(&format!("{WIDGETS}/a/scale"), json!({"spec": {"replicas": 5}})).await;
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&json!(5), &json!(1)));
    let (_, whole) = world.get(&format!("{WIDGETS}/a")).await;
    assert_eq!((&whole["spec"]["size"], &whole["metadata"]["generation"]), (&json!(5), &json!(2)));
    let mut unconditional = widget("a", json!({"size": 3}));
    assert_eq!(world.put(&format!("{WIDGETS}/a"), unconditional.clone()).await.0, 422);
    unconditional["metadata"]["resourceVersion"] = whole["metadata"]["resourceVersion"].clone();
    assert_eq!(world.put(&format!("{WIDGETS}/a"), unconditional).await.0, 200);
    let (_, _, table) =
        world.request("GET", WIDGETS, &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")], Value::Null).await;
    assert_eq!(table["rows"][0]["cells"], json!(["a", 3]));

    world.merge(&format!("{WIDGETS}/a"), json!({"metadata": {"finalizers": ["example.com/wait"]}})).await;
    let mut gone = world
        .server
        .core()
        .store
        .watch("customresourcedefinitions.apiextensions.k8s.io", world.server.core().store.revision())
        .unwrap();
    let (code, marked) = world.delete(&format!("{CRDS}/widgets.example.com"), Value::Null).await;
    assert_eq!(code, 200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(world.post(WIDGETS, widget("c", json!({"size": 1}))).await.0, 405);
    // The object's own finalizer holds the definition.
    let (code, _) = world.merge(&format!("{WIDGETS}/a"), json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(code, 200);
    while !gone.next().await.unwrap().iter().any(|c| c.deleted) {}
    assert_eq!(world.get(&format!("{CRDS}/widgets.example.com")).await.0, 404);
}

#[tokio::test]
async fn definitions_survive_a_restart_and_bad_ones_are_refused() {
    let world = world().await;
    assert_eq!(world.post(CRDS, definition()).await.0, 201);
    world.post(WIDGETS, widget("a", json!({"size": 2}))).await;
    let World { dir, tasks, server, client } = world;
    tasks.stop();
    assert!(tasks.drain(std::time::Duration::from_secs(10)).await.is_empty());
    drop((server, client));
    let (server, tasks) = open(dir.path()).await;
    let world = World { client: server.client(), server, tasks, dir };
    assert_eq!(world.get(&format!("{WIDGETS}/a")).await.0, 200);

    let mut misnamed = definition();
    misnamed["metadata"]["name"] = "gadgets.example.com".into();
    let (code, body) = world.post(CRDS, misnamed).await;
    assert_eq!((code.as_u16(), &body["details"]["causes"][0]["field"]), (422, &json!("metadata.name")), "{body}");
    let mut rival = definition();
    rival["metadata"]["name"] = "gadgets.example.com".into();
    rival["spec"]["names"]["plural"] = "gadgets".into();
    let (code, body) = world.post(CRDS, rival).await;
    assert_eq!(code, 201);
    assert_eq!(body["status"]["conditions"][0]["status"], "False", "its kind is taken: {body}");
    assert_eq!(world.get("/apis/example.com/v1/gadgets").await.0, 404);
}

#[tokio::test]
async fn watches_end_with_the_definition_and_a_new_one_is_seen_at_once() {
    let world = world().await;
    world.post(CRDS, definition()).await;
    world.post(WIDGETS, widget("a", json!({"size": 2}))).await;
    let watch = async |path: &str| {
        let mut request = Request::get(format!("{path}?watch=true")).body(Body::empty()).unwrap();
        request.extensions_mut().insert(server::Local);
        request.extensions_mut().insert(UserInfo::new("admin", [UserInfo::MASTERS.to_owned()]));
        world.server.call(request).await
    };
    let (mut new, mut old) = (watch(WIDGETS).await, watch("/apis/example.com/v1beta1/widgets").await);
    let (mut new_bytes, mut old_bytes) = (Vec::new(), Vec::new());
    assert_eq!(next_line(&mut new, &mut new_bytes).await.unwrap()["type"], "ADDED");
    assert_eq!(next_line(&mut old, &mut old_bytes).await.unwrap()["type"], "ADDED");

    // A version that is no longer served ends the watches of that version alone.
    let versions = definition()["spec"]["versions"].as_array().unwrap()[..1].to_vec();
    let (code, body) =
        world.merge(&format!("{CRDS}/widgets.example.com"), json!({"spec": {"versions": versions}})).await;
    assert_eq!(code, 200, "{body}");
    assert!(next_line(&mut old, &mut old_bytes).await.is_none());
    world.merge(&format!("{WIDGETS}/a"), json!({"spec": {"size": 3}})).await;
    assert_eq!(next_line(&mut new, &mut new_bytes).await.unwrap()["type"], "MODIFIED");

    assert_eq!(world.delete(&format!("{CRDS}/widgets.example.com"), Value::Null).await.0, 200);
    assert_eq!(next_line(&mut new, &mut new_bytes).await.unwrap()["type"], "DELETED");
    assert!(next_line(&mut new, &mut new_bytes).await.is_none());
    assert_eq!(world.get(WIDGETS).await.0, 404);

    assert_eq!(world.post(CRDS, definition()).await.0, 201);
    let accept = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let (_, _, all) = world.request("GET", "/apis", &accept, Value::Null).await;
    let groups = all["items"].as_array().unwrap();
    let ours = groups.iter().find(|g| g["metadata"]["name"] == "example.com").unwrap();
    let kind = &ours["versions"][0]["resources"][0]["responseKind"];
    assert_eq!(*kind, json!({"group": "example.com", "version": "v1", "kind": "Widget"}));
    assert_eq!(world.get("/openapi/v3/apis/example.com/v1").await.0, 200);
}

/// Rules over what an object holds are paid for, and end when the budget does.
#[tokio::test]
async fn rules_of_a_hostile_definition_end_in_an_error() {
    let world = world().await;
    let mut hostile = definition();
    hostile["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = json!({
        "type": "object",
        "properties": {"list": {"type": "array", "maxItems": 1000, "items": {"type": "integer"}}, "size": {"type": "integer"}},
        "x-kubernetes-validations": [
            {"rule": "!has(self.list) || self.list.all(a, self.list.all(b, a + b >= 0))"},
            {"rule": "self.?size.orValue(0) < 10", "message": "too big"}]});
    let (code, body) = world.post(CRDS, hostile).await;
    assert_eq!(code, 201, "{body}");
    let started = std::time::Instant::now();
    let (code, body) =
        world.post(WIDGETS, widget("a", json!({"list": (0..1000).collect::<Vec<u32>>(), "size": 99}))).await;
    assert_eq!(code, 422, "{body}");
    let message = body["message"].as_str().unwrap();
    assert!(
        message.contains("no further validation rules will be run due to call cost exceeds limit for rule"),
        "{message}"
    );
    assert!(!message.contains("too big"), "nothing is evaluated after that");
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    let (code, body) = world.post(WIDGETS, widget("a", json!({"list": [1, 2, 3], "size": 99}))).await;
    assert_eq!(code, 422);
    assert!(body["message"].as_str().unwrap().ends_with("too big"), "{body}");
    assert_eq!(world.post(WIDGETS, widget("a", json!({"list": [1, 2, 3]}))).await.0, 201);
}
