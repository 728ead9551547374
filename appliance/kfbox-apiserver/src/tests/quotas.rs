use super::*;
use crate::admission::quota::settled;

const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";
const PODS: &str = "/api/v1/namespaces/default/pods";

async fn quota(world: &World, name: &str, spec: Value) {
    let (code, body) = world.post(QUOTAS, json!({"metadata": {"name": name}, "spec": spec})).await;
    assert_eq!(code, 201, "{body}");
}

/// The quota's status, once it says what is so.
async fn status(world: &World, name: &str) -> Value {
    let settled = settled(world.server.core(), "default", name);
    let quota = tokio::time::timeout(std::time::Duration::from_secs(20), settled).await.expect("in time");
    quota["status"].clone()
}

fn asking(name: &str, requests: Value, limits: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [
        {"name": "c", "image": "i", "resources": {"requests": requests, "limits": limits}}]}})
}

fn message(body: &Value) -> &str {
    body["message"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_racing_creates_get_exactly_what_is_allowed() {
    let world = world().await;
    world.default_account().await;
    quota(&world, "ten", json!({"hard": {"pods": "10", "count/configmaps": "7"}})).await;
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "default");
    let create = |n: usize| {
        let (pods, maps) = (pods.clone(), maps.clone());
        world.tasks.spawn("create", async move {
            let (object, map) = (pod(&format!("p{n}")), config_map(&format!("m{n}"), "v"));
            let parameters = PostParams::default();
            let (one, other) = tokio::join!(pods.create(&parameters, &object), maps.create(&parameters, &map));
            (one.map(drop), other.map(drop))
        })
    };
    let results = futures::future::join_all((0..100).map(create)).await;
    let mut counts = (0, 0);
    for result in results {
        let (one, other) = result.unwrap();
        counts.0 += usize::from(one.is_ok());
        counts.1 += usize::from(other.is_ok());
        if let Err(error) = one {
            let kube::Error::Api(status) = error else { panic!("{error}") };
            assert_eq!((status.code, status.reason.as_str()), (403, "Forbidden"));
            assert!(
                status
                    .message
                    .ends_with("is forbidden: exceeded quota: ten, requested: pods=1, used: pods=10, limited: pods=10"),
                "{}",
                status.message
            );
        }
    }
    assert_eq!(counts, (10, 7));
    assert_eq!(pods.list(&ListParams::default()).await.unwrap().items.len(), 10);
    assert_eq!(
        status(&world, "ten").await,
        json!({"hard": {"pods": "10", "count/configmaps": "7"}, "used": {"pods": "10", "count/configmaps": "7"}})
    );

    // Room that comes free goes to exactly as many.
    let names: Vec<String> =
        pods.list(&ListParams::default()).await.unwrap().items.iter().filter_map(|p| p.metadata.name.clone()).collect();
    for name in &names[..3] {
        pods.delete(name, &DeleteParams::default()).await.unwrap();
    }
    let results = futures::future::join_all((100..150).map(create)).await;
    assert_eq!(results.into_iter().filter(|r| r.as_ref().unwrap().0.is_ok()).count(), 3);
    assert_eq!(status(&world, "ten").await["used"]["pods"], "10");
}

#[tokio::test]
async fn every_exceeded_resource_is_named_and_what_fails_costs_nothing() {
    let world = world().await;
    world.default_account().await;
    let hard = json!({"requests.cpu": "1", "limits.memory": "1Gi", "requests.nvidia.com/gpu": "1", "pods": "5"});
    quota(&world, "compute", json!({"hard": hard})).await;
    let (code, body) = world.post(PODS, asking("a", json!({}), json!({"memory": "1Gi"}))).await;
    assert_eq!(
        (code.as_u16(), message(&body)),
        (403, "pods \"a\" is forbidden: failed quota: compute: must specify requests.cpu for: c")
    );
    let (code, body) =
        world.post(PODS, asking("a", json!({"cpu": "600m"}), json!({"memory": "512Mi", "nvidia.com/gpu": "1"}))).await;
    assert_eq!(code, 201, "{body}");
    let more = asking("b", json!({"cpu": "600m"}), json!({"memory": "768Mi", "nvidia.com/gpu": "1"}));
    for _ in 0..3 {
        // Also when it is only tried.
        for path in [PODS.to_owned(), format!("{PODS}?dryRun=All")] {
            let (code, body) = world.post(&path, more.clone()).await;
            assert_eq!(code, 403);
            assert_eq!(
                message(&body),
                "pods \"b\" is forbidden: exceeded quota: compute, requested: limits.memory=768Mi,requests.cpu=600m,\
                 requests.nvidia.com/gpu=1, used: limits.memory=512Mi,requests.cpu=600m,requests.nvidia.com/gpu=1, \
                 limited: limits.memory=1Gi,requests.cpu=1,requests.nvidia.com/gpu=1"
            );
        }
    }
    let small = asking("b", json!({"cpu": "400m"}), json!({"memory": "512Mi"}));
    assert_eq!(world.post(&format!("{PODS}?dryRun=All"), small.clone()).await.0, 201);
    // Refused for another reason, so it takes no room.
    let mut broken = small.clone();
    broken["spec"]["containers"][0]["name"] = "No Name".into();
    assert_eq!(world.post(PODS, broken).await.0, 422);
    assert_eq!(world.post(PODS, small.clone()).await.0, 201);
    assert_eq!(world.post(PODS, small).await.0, 403, "the name is taken, but room is asked first");
    assert_eq!(
        status(&world, "compute").await,
        json!({"hard": hard, "used": {"requests.cpu": "1", "limits.memory": "1Gi", "requests.nvidia.com/gpu": "1", "pods": "2"}})
    );
    // What has ended costs only its object.
    let (code, _) = world.merge(&format!("{PODS}/a/status"), json!({"status": {"phase": "Succeeded"}})).await;
    assert_eq!(code, 200);
    assert_eq!(
        status(&world, "compute").await["used"],
        json!({"requests.cpu": "400m", "limits.memory": "512Mi", "requests.nvidia.com/gpu": "0", "pods": "1"})
    );
    // A quota that changes holds at once.
    assert_eq!(world.merge(&format!("{QUOTAS}/compute"), json!({"spec": {"hard": {"pods": "1"}}})).await.0, 200);
    let (_, body) = world.post(PODS, asking("c", json!({"cpu": "1m"}), json!({"memory": "1Mi"}))).await;
    assert!(message(&body).ends_with("requested: pods=1, used: pods=1, limited: pods=1"), "{body}");
    assert_eq!(status(&world, "compute").await["hard"]["pods"], "1");
    assert_eq!(world.delete(&format!("{QUOTAS}/compute"), Value::Null).await.0, 200);
    assert_eq!(world.post(PODS, asking("c", json!({}), json!({}))).await.0, 201);
}

#[tokio::test]
async fn updates_are_charged_for_what_they_add() {
    let world = world().await;
    world.default_account().await;
    quota(
        &world,
        "q",
        json!({"hard": {"requests.cpu": "2", "services.nodeports": "2", "services.loadbalancers": "0",
        "requests.storage": "3Gi", "standard.storageclass.storage.k8s.io/requests.storage": "2Gi"}}),
    )
    .await;
    // Pods, by the resize subresource only.
    assert_eq!(world.post(PODS, asking("a", json!({"cpu": "1500m"}), json!({}))).await.0, 201);
    let resize = |cpu: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
    let strategic = [("content-type", "application/strategic-merge-patch+json")];
    let path = format!("{PODS}/a/resize");
    let (code, _, body) = world.request("PATCH", &path, &strategic, resize("3")).await;
    assert_eq!(
        (code.as_u16(), message(&body)),
        (
            403,
            "pods \"a\" is forbidden: exceeded quota: q, requested: requests.cpu=1500m, used: requests.cpu=1500m, limited: requests.cpu=2"
        )
    );
    assert_eq!(world.request("PATCH", &path, &strategic, resize("2")).await.0, 200);
    assert_eq!(status(&world, "q").await["used"]["requests.cpu"], "2");
    assert_eq!(world.request("PATCH", &path, &strategic, resize("1")).await.0, 200);
    assert_eq!(world.merge(&format!("{PODS}/a"), json!({"metadata": {"labels": {"a": "b"}}})).await.0, 200);
    assert_eq!(status(&world, "q").await["used"]["requests.cpu"], "1");
    // Services, whose type can change.
    let services = "/api/v1/namespaces/default/services";
    let service = json!({"metadata": {"name": "s"}, "spec": {"selector": {"a": "b"}, "ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}]}});
    assert_eq!(world.post(services, service).await.0, 201);
    let path = &format!("{services}/s");
    assert_eq!(world.merge(path, json!({"spec": {"type": "LoadBalancer"}})).await.0, 403);
    assert_eq!(world.merge(path, json!({"spec": {"type": "NodePort"}})).await.0, 200);
    assert_eq!(status(&world, "q").await["used"]["services.nodeports"], "2");
    let three =
        json!({"spec": {"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}, {"name": "c", "port": 3}]}});
    let (code, body) = world.merge(path, three).await;
    assert_eq!(
        (code.as_u16(), message(&body)),
        (
            403,
            "services \"s\" is forbidden: exceeded quota: q, requested: services.nodeports=1, used: services.nodeports=2, limited: services.nodeports=2"
        )
    );
    // Claims, which can grow.
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = |name: &str, class: &str, size: &str| {
        json!({"metadata": {"name": name}, "spec": {"storageClassName": class,
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}})
    };
    assert_eq!(world.post(claims, claim("data", "standard", "1Gi")).await.0, 201);
    assert_eq!(world.post(claims, claim("other", "slow", "1Gi")).await.0, 201);
    assert_eq!(world.merge(&format!("{claims}/data/status"), json!({"status": {"phase": "Bound"}})).await.0, 200);
    let grow = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
    let (code, body) = world.merge(&format!("{claims}/data"), grow("2560Mi")).await;
    assert_eq!(
        (code.as_u16(), message(&body)),
        (
            403,
            "persistentvolumeclaims \"data\" is forbidden: exceeded quota: q, requested: \
               requests.storage=1536Mi,standard.storageclass.storage.k8s.io/requests.storage=1536Mi, used: \
               requests.storage=2Gi,standard.storageclass.storage.k8s.io/requests.storage=1Gi, limited: \
               requests.storage=3Gi,standard.storageclass.storage.k8s.io/requests.storage=2Gi"
        )
    );
    assert_eq!(world.merge(&format!("{claims}/data"), grow("2Gi")).await.0, 200);
    let used = status(&world, "q").await["used"].clone();
    assert_eq!(
        (&used["requests.storage"], &used["standard.storageclass.storage.k8s.io/requests.storage"]),
        (&json!("3Gi"), &json!("2Gi"))
    );
}

#[tokio::test]
async fn scopes_and_counts_limit_only_their_own() {
    let world = world().await;
    world.default_account().await;
    let high = json!({"metadata": {"name": "high"}, "value": 1000});
    assert_eq!(world.post("/apis/scheduling.k8s.io/v1/priorityclasses", high).await.0, 201);
    quota(&world, "best-effort", json!({"hard": {"pods": "1"}, "scopes": ["BestEffort"]})).await;
    let of_class = json!({"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]});
    quota(&world, "high", json!({"hard": {"pods": "0"}, "scopeSelector": of_class})).await;
    quota(
        &world,
        "counts",
        json!({"hard": {"count/deployments.apps": "1", "secrets": "1", "count/wheels.example.org": "3"}}),
    )
    .await;
    assert_eq!(world.post(PODS, asking("a", json!({}), json!({}))).await.0, 201);
    let (code, body) = world.post(PODS, asking("b", json!({}), json!({}))).await;
    assert_eq!((code.as_u16(), message(&body).contains("exceeded quota: best-effort")), (403, true), "{body}");
    assert_eq!(world.post(PODS, asking("b", json!({"cpu": "1"}), json!({}))).await.0, 201);
    let mut important = asking("c", json!({"cpu": "1"}), json!({}));
    important["spec"]["priorityClassName"] = "high".into();
    let (code, body) = world.post(PODS, important).await;
    assert_eq!((code.as_u16(), message(&body).contains("exceeded quota: high")), (403, true), "{body}");
    assert_eq!(status(&world, "best-effort").await["used"], json!({"pods": "1"}));
    assert_eq!(status(&world, "high").await["used"], json!({"pods": "0"}));

    let deployment = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
    };
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    assert_eq!(world.post(deployments, deployment("a")).await.0, 201);
    let (code, body) = world.post(deployments, deployment("b")).await;
    assert_eq!(
        (code.as_u16(), message(&body)),
        (
            403,
            "deployments.apps \"b\" is forbidden: exceeded quota: counts, requested: count/deployments.apps=1, used: \
               count/deployments.apps=1, limited: count/deployments.apps=1"
        )
    );
    assert_eq!(world.merge(&format!("{deployments}/a/scale"), json!({"spec": {"replicas": 5}})).await.0, 200);
    let secrets = "/api/v1/namespaces/default/secrets";
    assert_eq!(world.post(secrets, json!({"metadata": {"name": "a"}})).await.0, 201);
    assert_eq!(world.post(secrets, json!({"metadata": {"name": "b"}})).await.0, 403);
    // No such kind is served, so nothing is said of it.
    assert_eq!(status(&world, "counts").await["used"], json!({"count/deployments.apps": "1", "secrets": "1"}));
    assert_eq!(world.delete(&format!("{secrets}/a"), Value::Null).await.0, 200);
    assert_eq!(world.post(secrets, json!({"metadata": {"name": "b"}})).await.0, 201, "free at once");
}

#[tokio::test]
async fn statuses_are_right_again_after_a_restart_and_cannot_be_bent() {
    let world = world().await;
    world.default_account().await;
    quota(&world, "q", json!({"hard": {"pods": "2"}})).await;
    assert_eq!(world.post(PODS, asking("a", json!({}), json!({}))).await.0, 201);
    assert_eq!(status(&world, "q").await["used"]["pods"], "1");
    let bent = json!({"status": {"hard": {"pods": "100"}, "used": {"pods": "0"}}});
    assert_eq!(world.merge(&format!("{QUOTAS}/q/status"), bent).await.0, 200);
    assert_eq!(status(&world, "q").await, json!({"hard": {"pods": "2"}, "used": {"pods": "1"}}));
    let revision = world.server.core().store.revision();
    let (again, _tasks) = open(world.dir.path()).await;
    let quota = settled(again.core(), "default", "q").await;
    assert_eq!(quota["status"]["used"]["pods"], "1");
    assert_eq!(again.core().store.revision(), revision, "nothing to write");
}

/// Four workers create, resize and delete as they please, over the same few names. The log of what was stored is then
/// replayed: at no revision do the pods that were there ask for more than the quota gives.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn at_no_moment_is_a_quota_exceeded() {
    const NAMES: u64 = 12;
    const MILLIS: i64 = 2000;
    let world = world().await;
    world.default_account().await;
    quota(&world, "cores", json!({"hard": {"requests.cpu": "2"}})).await;
    let store = world.server.core().store.clone();
    let mut log = store.watch("pods", store.revision()).unwrap();
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let resources = |millis: u64| json!({"requests": {"cpu": format!("{millis}m")}});
    let worker = |seed: u64| {
        let pods = pods.clone();
        world.tasks.spawn("worker", async move {
            let mut state = seed;
            let mut roll = move |sides: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % sides
            };
            let mut results = Vec::new();
            for _ in 0..60 {
                let name = format!("p{}", roll(NAMES));
                let wanted = resources(100 * (1 + roll(8)));
                let result = match roll(5) {
                    0 => pods.delete(&name, &DeleteParams::default()).await.map(drop),
                    1 => {
                        let resize = json!({"spec": {"containers": [{"name": "c", "resources": wanted}]}});
                        let parameters = PatchParams::default();
                        pods.patch_subresource("resize", &name, &parameters, &Patch::Strategic(resize)).await.map(drop)
                    }
                    _ => {
                        let pod = asking(&name, wanted["requests"].clone(), json!({}));
                        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.map(drop)
                    }
                };
                results.push(match result {
                    Ok(()) => 200,
                    Err(kube::Error::Api(status)) => status.code,
                    Err(error) => panic!("{error}"),
                });
            }
            results
        })
    };
    let results = futures::future::join_all((1..=4).map(worker)).await;
    let results: Vec<u16> = results.into_iter().flat_map(Result::unwrap).collect();
    let count = |code: u16| results.iter().filter(|c| **c == code).count();
    assert!(count(200) > 20 && count(403) > 10, "{results:?}");
    assert!(results.iter().all(|code| matches!(code, 200 | 403 | 404 | 409)), "{results:?}");

    assert_eq!(world.delete(PODS, Value::Null).await.0, 200);
    assert_eq!(world.post(PODS, asking("last", json!({"cpu": "1m"}), json!({}))).await.0, 201);
    let mut there = std::collections::BTreeMap::new();
    let (mut changes, mut most) = (0, 0);
    while !there.contains_key("last") {
        for change in log.next().await.unwrap() {
            let name = change.object.key.name.to_string();
            if change.deleted {
                there.remove(&name);
            } else {
                let pod = change.object.value();
                let asked = &pod["spec"]["containers"][0]["resources"]["requests"]["cpu"];
                there.insert(name, crate::schema::quantity::of(asked).unwrap() / 1_000_000);
            }
            let sum: i128 = there.values().sum();
            assert!(sum <= i128::from(MILLIS), "{there:?} at revision {}", change.revision);
            changes += 1;
            most = most.max(sum);
        }
    }
    assert!(changes > 20 && most >= 1500, "{changes} changes, {most} millicores at most");
}
