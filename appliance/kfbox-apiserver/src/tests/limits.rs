use super::*;

fn limits(item: Value) -> Value {
    json!({"metadata": {"name": "bounds"}, "spec": {"limits": [item]}})
}

fn asking(name: &str, resources: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
}

const RANGES: &str = "/api/v1/namespaces/default/limitranges";
const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn pods_get_the_defaults_of_their_namespace() {
    let world = world().await;
    world.default_account().await;
    let (code, range) =
        world.post(RANGES, limits(json!({"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "64Mi"}}))).await;
    assert_eq!(code, 201, "{range}");
    let item = &range["spec"]["limits"][0];
    assert_eq!(
        (&item["default"], &item["defaultRequest"]),
        (&json!({"cpu": "2"}), &json!({"cpu": "2", "memory": "64Mi"}))
    );
    let (code, pod) = world.post(PODS, asking("a", json!({}))).await;
    assert_eq!(code, 201, "{pod}");
    assert_eq!(
        pod["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "2"}, "requests": {"cpu": "2", "memory": "64Mi"}})
    );
    assert_eq!(
        pod["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu, memory request for container c; cpu limit for container c"
    );
    assert_eq!(pod["status"]["qosClass"], "Burstable", "judged with the defaults");
    let (code, body) = world.post(PODS, asking("b", json!({"limits": {"cpu": "3"}}))).await;
    assert_eq!(code, 403);
    assert_eq!(body["message"], "pods \"b\" is forbidden: maximum cpu usage per Container is 2, but limit is 3");
    // A resize is held to the bounds, other updates are not.
    let resize = |cpu: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": cpu}, "requests": {"cpu": "1"}}}]}});
    let strategic = [("content-type", "application/strategic-merge-patch+json")];
    let (code, _, body) = world.request("PATCH", &format!("{PODS}/a/resize"), &strategic, resize("3")).await;
    assert_eq!(
        (code.as_u16(), body["message"].as_str().unwrap()),
        (403, "pods \"a\" is forbidden: maximum cpu usage per Container is 2, but limit is 3")
    );
    let (code, _, body) = world.request("PATCH", &format!("{PODS}/a/resize"), &strategic, resize("1500m")).await;
    assert_eq!(code, 200, "{body}");
    assert_eq!(body["spec"]["containers"][0]["resources"]["limits"]["cpu"], "1500m");
}

#[tokio::test]
async fn claims_and_whole_pods_have_bounds_too() {
    let world = world().await;
    world.default_account().await;
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": [
        {"type": "PersistentVolumeClaim", "max": {"storage": "2Gi"}},
        {"type": "Pod", "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "2"}},
    ]}});
    let (code, body) = world.post(RANGES, range).await;
    assert_eq!(code, 201, "{body}");
    let claim = |size: &str| json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}});
    let path = "/api/v1/namespaces/default/persistentvolumeclaims";
    let (code, body) = world.post(path, claim("3Gi")).await;
    assert_eq!(
        (code.as_u16(), body["message"].as_str().unwrap()),
        (
            403,
            "persistentvolumeclaims \"data\" is forbidden: maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"
        )
    );
    assert_eq!(world.post(path, claim("2Gi")).await.0, 201);
    let mut two = asking("a", json!({"limits": {"cpu": "800m"}}));
    let other = two["spec"]["containers"][0].clone();
    two["spec"]["containers"].as_array_mut().unwrap().push(other);
    two["spec"]["containers"][1]["name"] = "d".into();
    let (code, body) = world.post(PODS, two).await;
    assert_eq!(
        (code.as_u16(), body["message"].as_str().unwrap()),
        (403, "pods \"a\" is forbidden: maximum cpu usage per Pod is 1, but limit is 1600m")
    );
    let (_, body) = world.post(PODS, asking("a", json!({"limits": {"cpu": "1"}, "requests": {"cpu": "400m"}}))).await;
    assert_eq!(
        body["message"],
        "pods \"a\" is forbidden: cpu max limit to request ratio per Pod is 2, but provided ratio is 2.500000"
    );
    assert_eq!(
        world.post(PODS, asking("a", json!({"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}}))).await.0,
        201
    );
}
