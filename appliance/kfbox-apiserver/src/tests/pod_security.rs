use super::*;

/// A namespace with these labels of Pod Security, and its account.
async fn namespace(world: &World, name: &str, labels: &[(&str, &str)]) {
    let labels: serde_json::Map<String, Value> =
        labels.iter().map(|(k, v)| (format!("pod-security.kubernetes.io/{k}"), json!(v))).collect();
    let (code, body) = world.post("/api/v1/namespaces", json!({"metadata": {"name": name, "labels": labels}})).await;
    assert_eq!(code, 201, "{body}");
    let accounts = format!("/api/v1/namespaces/{name}/serviceaccounts");
    assert_eq!(world.post(&accounts, json!({"metadata": {"name": "default"}})).await.0, 201);
}

fn warnings(headers: &http::HeaderMap) -> Vec<String> {
    let texts = headers.get_all("warning").iter().map(|value| value.to_str().unwrap());
    let quoted = |text: &str| text.strip_prefix("299 - \"")?.strip_suffix('"').map(|text| text.replace("\\\"", "\""));
    texts.map(|text| quoted(text).unwrap()).collect()
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];
const MERGE: &[(&str, &str)] = &[("content-type", "application/merge-patch+json")];

fn host_pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i"}]}})
}

#[tokio::test]
async fn what_a_namespace_enforces_is_refused_with_upstreams_words() {
    let world = world().await;
    namespace(&world, "team", &[("enforce", "baseline")]).await;
    let path = "/api/v1/namespaces/team/pods";
    let (code, body) = world.post(path, host_pod("x")).await;
    assert_eq!((code.as_u16(), body["reason"].as_str().unwrap()), (403, "Forbidden"));
    assert_eq!(
        body["message"],
        "pods \"x\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
    );
    assert_eq!(world.get(&format!("{path}/x")).await.0, 404);
    // Whoever makes the pods is refused, the template is only warned of.
    let deployment = json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": host_pod("")["spec"]}}});
    let (code, headers, _) = world.request("POST", "/apis/apps/v1/namespaces/team/deployments", JSON, deployment).await;
    assert_eq!(code, 201);
    let told = "would violate PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)";
    assert_eq!(warnings(&headers), [told]);
    let job = json!({"metadata": {"name": "j"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {
        "spec": {"hostNetwork": true, "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}}});
    let (code, headers, body) =
        world.request("POST", "/apis/batch/v1/namespaces/team/cronjobs?dryRun=All", JSON, job).await;
    assert_eq!((code.as_u16(), warnings(&headers)), (201, vec![told.to_owned()]), "{body}");
    // Another namespace does not mind.
    world.default_account().await;
    assert_eq!(world.post("/api/v1/namespaces/default/pods", host_pod("x")).await.0, 201);
}

#[tokio::test]
async fn an_update_is_judged_when_it_brings_something_new() {
    let world = world().await;
    namespace(&world, "team", &[]).await;
    let path = "/api/v1/namespaces/team/pods";
    assert_eq!(world.post(path, host_pod("x")).await.0, 201);
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"}}});
    assert_eq!(world.merge("/api/v1/namespaces/team", labels).await.0, 200);
    let x = &format!("{path}/x");
    let (code, _) = world.merge(x, json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!(code, 200, "nothing that is checked changed");
    assert_eq!(world.merge(&format!("{x}/status"), json!({"status": {"phase": "Running"}})).await.0, 200);
    let image = json!({"spec": {"containers": [{"name": "c", "image": "other"}]}});
    let strategic = [("content-type", "application/strategic-merge-patch+json")];
    let (code, _, body) = world.request("PATCH", x, &strategic, image).await;
    assert_eq!(code, 403, "{body}");
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "i"}]}});
    let (code, _, body) = world.request("PATCH", &format!("{x}/ephemeralcontainers"), &strategic, debug.clone()).await;
    assert_eq!(code, 403, "{body}");
    // A pod that is allowed may be debugged, within the policy.
    let (code, _, body) = world.request("POST", path, JSON, serde_json::to_value(pod("y")).unwrap()).await;
    assert_eq!(code, 201, "{body}");
    let y = &format!("{path}/y/ephemeralcontainers");
    let (code, headers, body) = world.request("PATCH", y, &strategic, debug).await;
    assert_eq!(code, 200, "{body}");
    assert!(warnings(&headers)[0].starts_with("would violate PodSecurity \"restricted:latest\": "), "{headers:?}");
    let root = json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "i", "securityContext": {"privileged": true}}]}});
    let (code, _, body) = world.request("PATCH", y, &strategic, root).await;
    assert_eq!(
        (code.as_u16(), body["message"].as_str().unwrap()),
        (
            403,
            "pods \"y\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"e\" must not set securityContext.privileged=true)"
        )
    );
}

#[tokio::test]
async fn labels_are_checked_and_tell_of_the_pods_that_are_there() {
    let world = world().await;
    let label = |key: &str, value: &str| json!({"metadata": {"name": "team", "labels": {format!("pod-security.kubernetes.io/{key}"): value}}});
    let (code, body) = world.post("/api/v1/namespaces", label("enforce", "strict")).await;
    assert_eq!((code.as_u16(), body["reason"].as_str().unwrap()), (422, "Invalid"));
    assert_eq!(
        body["message"],
        "Namespace \"team\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": \
         must be one of privileged, baseline, restricted"
    );
    namespace(&world, "team", &[]).await;
    let path = "/api/v1/namespaces/team";
    assert_eq!(world.merge(path, label("warn-version", "1.30")).await.0, 422);
    let owned = |name: &str| {
        let mut pod = host_pod(name);
        pod["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "ReplicationController", "name": "r", "uid": "u", "controller": true}]);
        pod
    };
    for pod in [host_pod("b"), host_pod("a"), owned("c"), serde_json::to_value(pod("fine")).unwrap()] {
        assert_eq!(world.post(&format!("{path}/pods"), pod).await.0, 201);
    }
    let mut privileged = serde_json::to_value(pod("root")).unwrap();
    privileged["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    assert_eq!(world.post(&format!("{path}/pods"), privileged).await.0, 201);
    let (code, headers, _) =
        world.request("PATCH", &format!("{path}?dryRun=All"), MERGE, label("enforce", "baseline")).await;
    assert_eq!(code, 200);
    assert_eq!(
        warnings(&headers),
        [
            "existing pods in namespace \"team\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "a (and 2 other pods): host namespaces",
            "root: privileged",
        ]
    );
    for (key, value) in [("warn", "restricted"), ("enforce", "privileged")] {
        let (code, headers, _) = world.request("PATCH", path, MERGE, label(key, value)).await;
        assert_eq!((code.as_u16(), warnings(&headers)), (200, vec![]));
    }
    assert_eq!(world.merge(path, label("enforce", "restricted")).await.0, 200);
    let (_, headers, _) = world.request("PATCH", path, MERGE, label("enforce", "baseline")).await;
    assert_eq!(warnings(&headers), Vec::<String>::new(), "laxer than before");
}
