//! Evictions, taints, priorities and certificates.

use super::*;
use k8s_openapi::api::{
    certificates::v1::CertificateSigningRequest, core::v1::Secret, policy::v1::PodDisruptionBudget,
    scheduling::v1::PriorityClass,
};
use kube::api::EvictParams;

fn bare(name: &str, labels: Value) -> Value {
    json!({ "metadata": { "name": name, "labels": labels }, "spec": { "containers": [{ "name": "c", "image": "i" }] } })
}

fn code(error: kube::Error) -> (u16, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.message.clone()),
        other => panic!("{other}"),
    }
}

async fn allowed(world: &World, wanted: i32) {
    until(&world.api::<PodDisruptionBudget>(), "disruptions allowed", |all| {
        all.iter().any(|b| b.status.as_ref().is_some_and(|s| s.disruptions_allowed == Some(wanted)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evictions_go_by_the_budget() {
    let world = World::start().await;
    for name in ["a", "b", "c"] {
        world.create::<Pod>(bare(name, json!({ "app": "web" }))).await;
    }
    let pods = world.api::<Pod>();
    until(&pods, "three ready", |all| all.len() == 3 && all.iter().all(crate::pods::is_ready)).await;
    let budget = |name: &str, app: &str| json!({ "metadata": { "name": name }, "spec": { "minAvailable": 2, "selector": { "matchLabels": { "app": app } } } });
    world.create::<PodDisruptionBudget>(budget("web", "web")).await;
    allowed(&world, 1).await;

    // A dry run takes nothing.
    let dry = json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": "a" }, "deleteOptions": { "dryRun": ["All"] } });
    let path = "/api/v1/namespaces/default/pods/a/eviction";
    let request = http::Request::post(path).header("content-type", "application/json");
    world.client.request::<Value>(request.body(dry.to_string().into_bytes()).unwrap()).await.unwrap();
    assert!(pods.get("a").await.unwrap().metadata.deletion_timestamp.is_none());
    allowed(&world, 1).await;

    // Two at once: one goes.
    let evict = |name: &'static str| {
        let pods = pods.clone();
        async move { pods.evict(name, &EvictParams::default()).await }
    };
    let (first, second) = futures::join!(evict("a"), evict("b"));
    let refused = match (first, second) {
        (Ok(_), Err(error)) | (Err(error), Ok(_)) => error,
        (first, second) => panic!("{first:?} {second:?}"),
    };
    let (number, message) = code(refused);
    assert_eq!((number, message.as_str()), (429, "Cannot evict pod as it would violate the pod's disruption budget."));
    until(&pods, "one gone", |all| all.len() == 2).await;
    assert_eq!(code(pods.evict("c", &EvictParams::default()).await.unwrap_err()).0, 429);

    world.create::<PodDisruptionBudget>(budget("other", "web")).await;
    let (number, message) = code(pods.evict("c", &EvictParams::default()).await.unwrap_err());
    assert_eq!(number, 500);
    assert!(message.starts_with("This pod has more than one PodDisruptionBudget"), "{message}");
    assert_eq!(code(pods.evict("nobody", &EvictParams::default()).await.unwrap_err()).0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cordoned_node_takes_nothing_new_and_a_taint_drives_pods_away() {
    let world = World::start().await;
    let nodes = Api::<Node>::all(world.client.clone());
    let cordon = |yes: bool| {
        let nodes = nodes.clone();
        async move {
            let body = json!({ "spec": { "unschedulable": yes } });
            nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(body)).await.unwrap();
        }
    };
    cordon(true).await;
    let has = |key: &'static str| {
        move |all: &[Node]| {
            all.iter().any(|n| n.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == key))
        }
    };
    until(&nodes, "the taint", has("node.kubernetes.io/unschedulable")).await;
    world.create::<Pod>(bare("late", json!({}))).await;
    let pods = world.api::<Pod>();
    until(&pods, "told why", |all| {
        let condition = all.iter().find_map(|p| crate::pods::condition(p, "PodScheduled"));
        condition.is_some_and(|c| c.message.as_deref().is_some_and(|m| m.contains("1 node(s) were unschedulable")))
    })
    .await;
    cordon(false).await;
    until(&nodes, "no taint", |all: &[Node]| !has("node.kubernetes.io/unschedulable")(all)).await;
    until(&pods, "it runs", |all| all.iter().all(crate::pods::is_ready)).await;

    let mut loyal = bare("loyal", json!({}));
    loyal["spec"]["tolerations"] = json!([{ "key": "away", "operator": "Exists" }]);
    let mut brief = bare("brief", json!({}));
    brief["spec"]["tolerations"] =
        json!([{ "key": "away", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1 }]);
    world.create::<Pod>(loyal).await;
    world.create::<Pod>(brief).await;
    until(&pods, "three run", |all| all.len() == 3 && all.iter().all(crate::pods::is_ready)).await;
    let taint = json!({ "spec": { "taints": [{ "key": "away", "effect": "NoExecute" }] } });
    nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(taint)).await.unwrap();
    until(&pods, "the loyal one stays", |all| all.len() == 1 && all[0].name_any() == "loyal").await;
    until(&world.api::<Event>(), "told", |all| all.iter().any(|e| e.reason.as_deref() == Some("TaintManagerEviction")))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_higher_priority_takes_the_place_of_a_lower_one() {
    let world = World::start().await;
    let classes = Api::<PriorityClass>::all(world.client.clone());
    let class = json!({ "metadata": { "name": "urgent" }, "value": 1000 });
    classes.create(&PostParams::default(), &object(class)).await.unwrap();
    let asks = |name: &str, cpu: &str, class: Value| json!({ "metadata": { "name": name }, "spec": { "priorityClassName": class, "containers": [{ "name": "c", "image": "i", "resources": { "requests": { "cpu": cpu } } }] } });
    world.create::<Pod>(asks("big", "3", json!(null))).await;
    world.create::<Pod>(asks("small", "500m", json!(null))).await;
    let pods = world.api::<Pod>();
    until(&pods, "both run", |all| all.len() == 2 && all.iter().all(crate::pods::is_ready)).await;
    world.create::<Pod>(asks("urgent", "3", json!("urgent"))).await;
    let left = until(&pods, "the urgent one runs", |all| {
        all.iter().any(|p| p.name_any() == "urgent" && crate::pods::is_ready(p))
    })
    .await;
    let names: Vec<String> = left.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["small", "urgent"], "no more than needed went");
    until(&world.api::<Event>(), "told", |all| {
        all.iter().any(|e| e.reason.as_deref() == Some("Preempted") && e.involved_object.name.as_deref() == Some("big"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approved_request_becomes_a_certificate_that_works() {
    use base64::Engine as _;
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let world = World::start().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "ada");
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "staff");
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let requests = Api::<CertificateSigningRequest>::all(world.client.clone());
    let ask = |name: &str, usages: Value| {
        object::<CertificateSigningRequest>(
            json!({ "metadata": { "name": name }, "spec": { "request": base64(csr.as_bytes()),
            "signerName": "kubernetes.io/kube-apiserver-client", "usages": usages, "expirationSeconds": 3600 } }),
        )
    };
    let approve = |name: &'static str| {
        let requests = requests.clone();
        async move {
            let mut request = requests.get(name).await.unwrap();
            request.status =
                Some(object(json!({ "conditions": [{ "type": "Approved", "status": "True", "reason": "Test" }] })));
            requests.replace_subresource("approval", name, &PostParams::default(), &request).await.unwrap();
        }
    };
    requests.create(&PostParams::default(), &ask("good", json!(["client auth"]))).await.unwrap();
    requests.create(&PostParams::default(), &ask("bad", json!(["client auth", "server auth"]))).await.unwrap();
    approve("bad").await;
    until(&requests, "refused", |all| {
        all.iter()
            .filter(|r| r.name_any() == "bad")
            .any(|r| r.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "Failed"))
    })
    .await;
    assert!(requests.get("good").await.unwrap().status.is_none_or(|s| s.certificate.is_none()), "nobody approved it");
    approve("good").await;
    let has = |r: &CertificateSigningRequest| r.status.as_ref().is_some_and(|s| s.certificate.is_some());
    let all = until(&requests, "signed", |all| all.iter().any(|r| r.name_any() == "good" && has(r))).await;
    let good = all.iter().find(|r| r.name_any() == "good").unwrap();
    let certificate = good.status.as_ref().unwrap().certificate.as_ref().unwrap();

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    world.server.serve(listener, &world.tasks).unwrap();
    let kubeconfig = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{ "name": "x", "cluster": { "server": url, "certificate-authority-data": base64(world.server.authority().ca_pem().as_bytes()) } }],
        "users": [{ "name": "x", "user": { "client-certificate-data": base64(&certificate.0), "client-key-data": base64(key.serialize_pem().as_bytes()) } }],
        "contexts": [{ "name": "x", "context": { "cluster": "x", "user": "x" } }] });
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(object(kubeconfig), &options).await.unwrap();
    let client = Client::try_from(config).unwrap();
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let request = http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header("content-type", "application/json")
        .body(review.to_string().into_bytes())
        .unwrap();
    let who: Value = client.request(request).await.unwrap();
    assert_eq!(who["status"]["userInfo"]["username"], "ada");
    assert!(who["status"]["userInfo"]["groups"].as_array().unwrap().contains(&json!("staff")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_secret_is_filled_and_goes_with_its_account() {
    let world = World::start().await;
    world.create::<ServiceAccount>(json!({ "metadata": { "name": "robot" } })).await;
    let secret = json!({ "metadata": { "name": "robot-token", "annotations": { "kubernetes.io/service-account.name": "robot" } }, "type": "kubernetes.io/service-account-token" });
    world.create::<Secret>(secret).await;
    let secrets = world.api::<Secret>();
    let all = until(&secrets, "filled", |all| {
        all.iter().any(|s| s.data.as_ref().is_some_and(|d| d.contains_key("token") && d.contains_key("ca.crt")))
    })
    .await;
    let token = String::from_utf8(all[0].data.as_ref().unwrap()["token"].0.clone()).unwrap();
    assert_eq!(token.split('.').count(), 3);
    world.api::<ServiceAccount>().delete("robot", &DeleteParams::default()).await.unwrap();
    until(&secrets, "gone", |all| all.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_namespace_that_goes_pods_go_first() {
    let world = World::start().await;
    let namespaces = Api::<Namespace>::all(world.client.clone());
    namespaces.create(&PostParams::default(), &object(json!({ "metadata": { "name": "old" } }))).await.unwrap();
    let maps = Api::<ConfigMap>::namespaced(world.client.clone(), "old");
    until(&maps, "the authority", |all| all.len() == 1).await;
    let pods = Api::<Pod>::namespaced(world.client.clone(), "old");
    let mut pod = bare("p", json!({}));
    pod["metadata"]["finalizers"] = json!(["example.org/hold"]);
    pods.create(&PostParams::default(), &object(pod)).await.unwrap();
    namespaces.delete("old", &DeleteParams::default()).await.unwrap();
    until(&namespaces, "held up", |all| {
        let conditions = all.iter().filter(|n| n.name_any() == "old").filter_map(|n| n.status.clone()?.conditions);
        conditions.flatten().any(|c| {
            c.type_ == "NamespaceContentRemaining" && c.message.as_deref().is_some_and(|m| m.contains("pods."))
        })
    })
    .await;
    assert!(maps.get_opt("kube-root-ca.crt").await.unwrap().is_some(), "pods mount it until they end");
    let free = json!({ "metadata": { "finalizers": null } });
    pods.patch("p", &PatchParams::default(), &Patch::Merge(free)).await.unwrap();
    until(&namespaces, "gone", |all| all.iter().all(|n| n.name_any() != "old")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gated_pod_waits_for_its_gates() {
    let world = World::start().await;
    let mut pod = bare("gated", json!({}));
    pod["spec"]["schedulingGates"] = json!([{ "name": "example.org/quota" }]);
    let made = world.create::<Pod>(pod).await;
    let gated = crate::pods::condition(&made, "PodScheduled").unwrap();
    assert_eq!((gated.status.as_str(), gated.reason.as_deref()), ("False", Some("SchedulingGated")));
    // Others pass it by.
    world.create::<Pod>(bare("free", json!({}))).await;
    let pods = world.api::<Pod>();
    let all = until(&pods, "the free one runs", |all| all.iter().any(crate::pods::is_ready)).await;
    let waiting = all.iter().find(|p| p.name_any() == "gated").unwrap();
    assert!(crate::pods::node(waiting).is_none());
    let open = json!({ "spec": { "schedulingGates": null } });
    pods.patch("gated", &PatchParams::default(), &Patch::Merge(open)).await.unwrap();
    until(&pods, "both run", |all| all.len() == 2 && all.iter().all(crate::pods::is_ready)).await;
}
