//! Custom resources whose versions a webhook converts.

use super::webhooks::hook;
use super::*;

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const V1: &str = "/apis/example.com/v1/namespaces/default/gadgets";
const V2: &str = "/apis/example.com/v2/namespaces/default/gadgets";

fn definition(client_config: Value) -> Value {
    let version = |name: &str, storage: bool, field: &str| {
        json!({"name": name, "served": true, "storage": storage, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": {field: {"type": "string"},
                    "grade": {"type": "string", "default": format!("of {name}")}}},
                "status": {"type": "object", "properties": {"phase": {"type": "string"}}}}}}})
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "gadgets", "kind": "Gadget"},
            "conversion": {"strategy": "Webhook", "webhook": {
                "conversionReviewVersions": ["v1"], "clientConfig": client_config}},
            "versions": [version("v1", true, "hostPort"), version("v2", false, "address")]},
    })
}

/// v1's `hostPort` is v2's `address`. Names tell it to misbehave.
fn convert(review: &Value) -> Value {
    let to = review["request"]["desiredAPIVersion"].as_str().unwrap().to_owned();
    let objects = review["request"]["objects"].as_array().unwrap();
    let converted: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut object = object.clone();
            object["apiVersion"] = to.clone().into();
            let (from, into) = if to.ends_with("v2") { ("hostPort", "address") } else { ("address", "hostPort") };
            if let Some(spec) = object["spec"].as_object_mut()
                && let Some(value) = spec.remove(from)
            {
                spec.insert(into.into(), value);
            }
            object["spec"]["unknown"] = "to prune".into();
            object["metadata"]["annotations"]["converted"] = to.clone().into();
            object["metadata"]["finalizers"] = json!(["example.com/forged"]);
            object["metadata"]["creationTimestamp"] = "2000-01-01T00:00:00Z".into();
            if object["spec"][into] == "rename" {
                object["metadata"]["name"] = "other".into();
            }
            object
        })
        .filter(|object| object["spec"]["hostPort"] != "lose" && object["spec"]["address"] != "lose")
        .collect();
    let refuse = converted.iter().any(|o| o["spec"]["address"] == "refuse");
    let result =
        if refuse { json!({"status": "Failure", "message": "no such form"}) } else { json!({"status": "Success"}) };
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
        "response": {"uid": review["request"]["uid"], "result": result, "convertedObjects": converted}})
}

fn gadget(version: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("example.com/{version}"), "kind": "Gadget", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn objects_are_converted_both_ways_for_every_verb() {
    let world = world().await;
    let hook =
        hook(&world, &["127.0.0.1"], |review| async move { (200, convert(&review).to_string().into_bytes()) }).await;
    let (code, body) = world.post(CRDS, definition(hook.client_config())).await;
    assert_eq!(code, 201, "{body}");
    assert_eq!(world.post(V1, gadget("v1", "one", json!({"hostPort": "a:1"}))).await.0, 201);
    assert!(hook.seen.lock().is_empty(), "the stored version needs no conversion");

    let (code, two) = world.get(&format!("{V2}/one")).await;
    assert_eq!((code.as_u16(), &two["apiVersion"]), (200, &json!("example.com/v2")), "{two}");
    assert_eq!(two["spec"], json!({"address": "a:1", "grade": "of v1"}), "converted, and pruned");
    assert_eq!(two["metadata"]["annotations"]["converted"], "example.com/v2");
    let (_, one) = world.get(&format!("{V1}/one")).await;
    for field in ["uid", "creationTimestamp", "resourceVersion", "finalizers"] {
        assert_eq!(one["metadata"][field], two["metadata"][field], "{field}");
    }
    let request = hook.seen.lock()[0]["request"].clone();
    assert_eq!(
        (&request["desiredAPIVersion"], &request["objects"][0]["spec"]["hostPort"]),
        (&json!("example.com/v2"), &json!("a:1"))
    );

    // A write in the other version is defaulted by its own schema and stored in the stored one.
    let (code, made) = world.post(V2, gadget("v2", "two", json!({"address": "b:2"}))).await;
    assert_eq!((code.as_u16(), &made["spec"]), (201, &json!({"address": "b:2", "grade": "of v2"})), "{made}");
    let stored =
        world.server.core().store.get("gadgets.example.com", &crate::store::Key::new("default", "two")).unwrap();
    assert_eq!((&*stored.version, &stored.value()["spec"]["hostPort"]), ("v1", &json!("b:2")));
    let (code, changed) = world.merge(&format!("{V2}/one"), json!({"spec": {"address": "c:3"}})).await;
    assert_eq!((code.as_u16(), &changed["spec"]["address"]), (200, &json!("c:3")), "{changed}");
    assert_eq!(world.get(&format!("{V1}/one")).await.1["spec"]["hostPort"], "c:3");
    let (code, status) = world.merge(&format!("{V2}/one/status"), json!({"status": {"phase": "Up"}})).await;
    assert_eq!(
        (code.as_u16(), &status["status"]["phase"], &status["apiVersion"]),
        (200, &json!("Up"), &json!("example.com/v2"))
    );
    let apply = [("content-type", "application/apply-patch+yaml")];
    let applied = gadget("v2", "two", json!({"address": "d:4"}));
    let (code, _, body) =
        world.request("PATCH", &format!("{V2}/two?fieldManager=me&force=true"), &apply, applied).await;
    assert_eq!((code.as_u16(), &body["spec"]["address"]), (200, &json!("d:4")), "{body}");

    hook.seen.lock().clear();
    let (code, list) = world.get(V2).await;
    assert_eq!(code, 200);
    let addresses: Vec<&Value> = list["items"].as_array().unwrap().iter().map(|o| &o["spec"]["address"]).collect();
    assert_eq!(addresses, ["c:3", "d:4"]);
    assert_eq!(hook.seen.lock().len(), 1, "a list is one review");

    let mut request = Request::get(format!("{V2}?watch=true")).body(Body::empty()).unwrap();
    request.extensions_mut().insert(server::Local);
    request.extensions_mut().insert(UserInfo::new("admin", [UserInfo::MASTERS.to_owned()]));
    let mut response = world.server.call(request).await;
    let mut buffer = Vec::new();
    for address in ["c:3", "d:4"] {
        let event = next_line(&mut response, &mut buffer).await.unwrap();
        assert_eq!((&event["type"], &event["object"]["spec"]["address"]), (&json!("ADDED"), &json!(address)));
    }
    world.merge(&format!("{V1}/one"), json!({"spec": {"hostPort": "e:5"}})).await;
    let event = next_line(&mut response, &mut buffer).await.unwrap();
    assert_eq!((&event["type"], &event["object"]["spec"]["address"]), (&json!("MODIFIED"), &json!("e:5")));
    let (code, _) = world.delete(&format!("{V2}/one"), Value::Null).await;
    assert_eq!(code, 200);
    let event = next_line(&mut response, &mut buffer).await.unwrap();
    assert_eq!((&event["type"], &event["object"]["spec"]["address"]), (&json!("DELETED"), &json!("e:5")));
}

#[tokio::test]
async fn a_bad_converter_fails_the_request_and_nothing_else() {
    let world = world().await;
    let hook =
        hook(&world, &["127.0.0.1"], |review| async move { (200, convert(&review).to_string().into_bytes()) }).await;
    assert_eq!(world.post(CRDS, definition(hook.client_config())).await.0, 201);
    let about = "conversion webhook for example.com/v1, Kind=Gadget";
    for (what, why) in [
        ("refuse", format!("{about} failed: no such form")),
        ("lose", format!("{about} returned 0 objects, expected 1")),
        (
            "rename",
            format!("{about} returned invalid converted object at index 0: must have the same name: rename != other"),
        ),
    ] {
        assert_eq!(world.post(V1, gadget("v1", what, json!({"hostPort": what}))).await.0, 201);
        let (code, body) = world.get(&format!("{V2}/{what}")).await;
        assert_eq!((code.as_u16(), &body["message"]), (500, &json!(why)));
        assert_eq!(world.get(&format!("{V1}/{what}")).await.0, 200, "the stored version is served as ever");
        assert_eq!(world.delete(&format!("{V1}/{what}"), Value::Null).await.0, 200);
    }
    // What is not converted is not written.
    let (code, body) = world.post(V2, gadget("v2", "lost", json!({"address": "lose"}))).await;
    assert_eq!(code, 500, "{body}");
    assert_eq!(world.get(&format!("{V1}/lost")).await.0, 404);

    let mut gone = definition(json!({"url": "https://127.0.0.1:1/", "caBundle": hook.bundle}));
    gone["metadata"]["resourceVersion"] =
        world.get(&format!("{CRDS}/gadgets.example.com")).await.1["metadata"]["resourceVersion"].clone();
    assert_eq!(world.put(&format!("{CRDS}/gadgets.example.com"), gone).await.0, 200);
    assert_eq!(world.post(V1, gadget("v1", "x", json!({"hostPort": "x"}))).await.0, 201);
    let (code, body) = world.get(V2).await;
    assert_eq!(code, 500);
    let message = body["message"].as_str().unwrap();
    assert!(
        message
            .starts_with("conversion webhook for example.com/v1, Kind=GadgetList failed: Post \"https://127.0.0.1:1/")
    );
    assert!(message.ends_with("dial tcp 127.0.0.1:1: connect: connection refused"), "{message}");
    // The definition goes though nothing converts its objects any more.
    assert_eq!(world.delete(&format!("{CRDS}/gadgets.example.com"), Value::Null).await.0, 200);
}

#[tokio::test]
async fn definitions_say_how_they_convert() {
    let world = world().await;
    for (conversion, field) in [
        (json!({"strategy": "Webhook"}), "spec.conversion.webhook.clientConfig"),
        (json!({"strategy": "Magic"}), "spec.conversion.strategy"),
        (
            json!({"strategy": "None", "webhook": {"clientConfig": {"url": "https://a/"}, "conversionReviewVersions": ["v1"]}}),
            "spec.conversion.webhook",
        ),
        (
            json!({"strategy": "Webhook", "webhook": {"clientConfig": {"url": "https://a/"}, "conversionReviewVersions": ["v9"]}}),
            "spec.conversion.webhook.conversionReviewVersions",
        ),
        (
            json!({"strategy": "Webhook", "webhook": {"clientConfig": {"url": "http://a/"}, "conversionReviewVersions": ["v1"]}}),
            "spec.conversion.webhook.clientConfig.url",
        ),
    ] {
        let mut bad = definition(json!({}));
        bad["spec"]["conversion"] = conversion;
        let (code, body) = world.post(CRDS, bad).await;
        assert_eq!((code.as_u16(), &body["details"]["causes"][0]["field"]), (422, &json!(field)), "{body}");
    }
}
