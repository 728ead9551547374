//! The smaller admission plugins.

use super::*;

const PODS: &str = "/api/v1/namespaces/default/pods";

fn message(body: &Value) -> &str {
    body["message"].as_str().unwrap_or_default()
}

fn with(name: &str, spec: Value) -> Value {
    let mut pod = serde_json::to_value(pod(name)).unwrap();
    pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    pod
}

#[tokio::test]
async fn priorities_come_from_classes() {
    let world = world().await;
    world.default_account().await;
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let class = |name: &str, more: Value| {
        let mut class = json!({"metadata": {"name": name}, "value": 1000});
        class.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        class
    };
    let (_, pod) = world.post(PODS, with("plain", json!({}))).await;
    assert_eq!(
        (&pod["spec"]["priority"], &pod["spec"]["preemptionPolicy"]),
        (&json!(0), &json!("PreemptLowerPriority"))
    );
    assert_eq!(
        world.post(classes, class("calm", json!({"globalDefault": true, "preemptionPolicy": "Never"}))).await.0,
        201
    );
    let (_, pod) = world.post(PODS, with("default", json!({}))).await;
    let spec = &pod["spec"];
    assert_eq!(
        (&spec["priority"], &spec["preemptionPolicy"], &spec["priorityClassName"]),
        (&json!(1000), &json!("Never"), &json!("calm"))
    );
    let (code, body) = world.post(classes, class("other", json!({"globalDefault": true}))).await;
    assert_eq!(
        (code.as_u16(), message(&body)),
        (
            403,
            "priorityclasses.scheduling.k8s.io \"other\" is forbidden: PriorityClass calm is already marked as default. Only one default can exist"
        )
    );
    assert_eq!(world.post(classes, class("other", json!({}))).await.0, 201);
    assert_eq!(world.merge(&format!("{classes}/other"), json!({"globalDefault": true})).await.0, 403);
    assert_eq!(world.merge(&format!("{classes}/calm"), json!({"description": "x"})).await.0, 200);
    let (code, body) = world.post(PODS, with("bold", json!({"priority": 5}))).await;
    assert_eq!((code.as_u16(), message(&body).contains("the integer value of priority (5) must not be provided in pod spec; priority admission controller computed 1000")), (403, true), "{body}");
    let (code, body) = world.post(PODS, with("bold", json!({"preemptionPolicy": "PreemptLowerPriority"}))).await;
    assert_eq!((code.as_u16(), message(&body).contains("the string value of PreemptionPolicy")), (403, true), "{body}");
    let (code, body) = world.post(PODS, with("lost", json!({"priorityClassName": "nowhere"}))).await;
    assert_eq!(
        (code.as_u16(), message(&body)),
        (403, "pods \"lost\" is forbidden: no PriorityClass with name nowhere was found")
    );
}

#[tokio::test]
async fn runtime_classes_bring_overhead_and_scheduling() {
    let world = world().await;
    world.default_account().await;
    let class = json!({"metadata": {"name": "heavy"}, "handler": "h", "overhead": {"podFixed": {"cpu": "250m"}},
        "scheduling": {"nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "vm", "operator": "Exists"}]}});
    assert_eq!(world.post("/apis/node.k8s.io/v1/runtimeclasses", class).await.0, 201);
    let (code, pod) = world
        .post(
            PODS,
            with(
                "a",
                json!({"runtimeClassName": "heavy", "nodeSelector": {"gen": "5"},
        "tolerations": [{"key": "vm", "operator": "Equal", "value": "1", "effect": "NoSchedule"}]}),
            ),
        )
        .await;
    assert_eq!(code, 201, "{pod}");
    assert_eq!(pod["spec"]["overhead"], json!({"cpu": "250m"}));
    assert_eq!(pod["spec"]["nodeSelector"], json!({"gen": "5", "disk": "ssd"}));
    let keys: Vec<&str> =
        pod["spec"]["tolerations"].as_array().unwrap().iter().map(|t| t["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable", "vm"]);
    for (spec, why) in [
        (json!({"runtimeClassName": "nowhere"}), "pod rejected: RuntimeClass \"nowhere\" not found"),
        (
            json!({"overhead": {"cpu": "1"}}),
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
        ),
        (
            json!({"runtimeClassName": "heavy", "overhead": {"cpu": "1"}}),
            "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
        ),
        (
            json!({"runtimeClassName": "heavy", "nodeSelector": {"disk": "hdd"}}),
            "conflict: runtimeClass.scheduling.nodeSelector[disk] = ssd; pod.spec.nodeSelector[disk] = hdd",
        ),
    ] {
        let (code, body) = world.post(PODS, with("b", spec.clone())).await;
        assert_eq!((code.as_u16(), message(&body)), (403, &*format!("pods \"b\" is forbidden: {why}")), "{spec}");
    }
    assert_eq!(
        world.post(PODS, with("c", json!({"runtimeClassName": "heavy", "overhead": {"cpu": "0.25"}}))).await.0,
        201
    );
}

#[tokio::test]
async fn claims_and_volumes_are_protected_and_grow_when_their_class_lets_them() {
    let world = world().await;
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = |name: &str, class: Value| {
        json!({"metadata": {"name": name}, "spec": {"storageClassName": class,
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
    };
    let (_, made) = world.post(claims, claim("data", Value::Null)).await;
    assert_eq!(made["spec"]["storageClassName"], "standard");
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    let volume = json!({"metadata": {"name": "v", "finalizers": ["example.com/x"]}, "spec": {"capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/tmp/v"}}});
    let (_, made) = world.post("/api/v1/persistentvolumes", volume).await;
    assert_eq!(made["metadata"]["finalizers"], json!(["example.com/x", "kubernetes.io/pv-protection"]));
    let grow = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    let path = &format!("{claims}/data");
    let (code, body) = world.merge(path, grow.clone()).await;
    // The kind's own rules come before what admission judges.
    let closed = "PersistentVolumeClaim \"data\" is invalid: spec: Forbidden: spec is immutable after creation except \
                  resources.requests and volumeAttributesClassName for bound claims";
    assert_eq!((code.as_u16(), message(&body)), (422, closed));
    let bound = json!({"status": {"phase": "Bound"}});
    assert_eq!(world.merge(&format!("{path}/status"), bound.clone()).await.0, 200);
    assert_eq!(world.merge(path, grow.clone()).await.0, 200);
    assert_eq!(world.post(claims, claim("stiff", json!("no-class"))).await.0, 201);
    assert_eq!(world.merge(&format!("{claims}/stiff/status"), bound).await.0, 200);
    let (code, body) = world.merge(&format!("{claims}/stiff"), grow).await;
    assert_eq!((code.as_u16(), message(&body).contains("must support resize")), (403, true), "{body}");
}

#[tokio::test]
async fn ingresses_get_the_default_class() {
    let world = world().await;
    let path = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let ingress = |name: &str, annotations: Value| {
        json!({"metadata": {"name": name, "annotations": annotations},
        "spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}})
    };
    let (_, made) = world.post(path, ingress("before", json!({}))).await;
    assert!(made["spec"]["ingressClassName"].is_null());
    let class = json!({"metadata": {"name": "main", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}}, "spec": {"controller": "example.com/c"}});
    assert_eq!(world.post("/apis/networking.k8s.io/v1/ingressclasses", class).await.0, 201);
    let (_, made) = world.post(path, ingress("a", json!({}))).await;
    assert_eq!(made["spec"]["ingressClassName"], "main");
    let (_, made) = world.post(path, ingress("b", json!({"kubernetes.io/ingress.class": "own"}))).await;
    assert!(made["spec"]["ingressClassName"].is_null(), "{made}");
}

fn encoded(text: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(text)
}

fn request_for(organization: &str) -> String {
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "ann");
    params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
    let pem = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    encoded(&pem)
}

#[tokio::test]
async fn only_who_may_approves_and_signs_certificates() {
    let world = world().await;
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let object = |name: &str, signer: &str, request: String| {
        json!({"metadata": {"name": name},
        "spec": {"signerName": signer, "request": request, "usages": ["client auth"]}})
    };
    let clients = "kubernetes.io/kube-apiserver-client";
    let (code, body) = world.post(path, object("root", clients, request_for("system:masters"))).await;
    assert_eq!(
        (code.as_u16(), message(&body)),
        (
            403,
            "certificatesigningrequests.certificates.k8s.io \"root\" is forbidden: use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
        )
    );
    let (code, body) = world.post(path, object("ann", clients, request_for("team"))).await;
    assert_eq!(code, 201, "{body}");
    let (code, body) = world.post(path, object("odd", clients, "eA==".into())).await;
    assert_eq!((code.as_u16(), message(&body).contains("failed to parse CSR")), (403, true), "{body}");
    assert_eq!(world.post(path, object("own", "example.com/s", request_for("system:masters"))).await.0, 201);

    // Ann may write approvals and statuses, and approve for one signer.
    let rules = json!([
        {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests", "certificatesigningrequests/approval", "certificatesigningrequests/status"], "verbs": ["*"]},
        {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": ["example.com/*"], "verbs": ["approve"]},
    ]);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    assert_eq!(
        world.post(&format!("{rbac}/clusterroles"), json!({"metadata": {"name": "ann"}, "rules": rules})).await.0,
        201
    );
    let binding = json!({"metadata": {"name": "ann"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "ann"},
        "subjects": [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}]});
    assert_eq!(world.post(&format!("{rbac}/clusterrolebindings"), binding).await.0, 201);
    let api: Api<k8s_openapi::api::certificates::v1::CertificateSigningRequest> =
        Api::all(world.server.client_as(UserInfo::new("ann", [])));
    let condition = |kind: &str| json!([{"type": kind, "status": "True", "reason": "r", "message": "m"}]);
    let approve = Patch::Merge(json!({"status": {"conditions": condition("Approved")}}));
    let parameters = PatchParams::default();
    let kube::Error::Api(refused) = api.patch_subresource("approval", "ann", &parameters, &approve).await.unwrap_err()
    else {
        panic!()
    };
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (
            403,
            "certificatesigningrequests.certificates.k8s.io \"ann\" is forbidden: user not permitted to approve requests with signerName \"kubernetes.io/kube-apiserver-client\""
        )
    );
    api.patch_subresource("approval", "own", &parameters, &approve).await.unwrap();
    let certificate = rcgen::generate_simple_self_signed(Vec::<String>::new()).unwrap().cert.pem();
    let sign = Patch::Merge(json!({"status": {"certificate": encoded(&certificate)}}));
    let kube::Error::Api(refused) = api.patch_status("own", &parameters, &sign).await.unwrap_err() else { panic!() };
    assert!(
        refused.message.ends_with("user not permitted to sign requests with signerName \"example.com/s\""),
        "{}",
        refused.message
    );
    let label = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    api.patch_status("own", &parameters, &label).await.unwrap();
}

/// As another than the administrator; a `PATCH` is a merge.
async fn by(world: &World, user: &str, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let mut request = request.body(body).unwrap();
    request.extensions_mut().insert(server::Local);
    request.extensions_mut().insert(UserInfo::new(user, []));
    let (parts, body) = world.server.call(request).await.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    (parts.status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

#[tokio::test]
async fn only_who_may_write_a_services_status_claims_addresses_of_others() {
    let world = world().await;
    let bind = json!({"metadata": {"name": "ann"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole", "name": "kubeflow-edit"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "ann@x.org"}]});
    let (code, body) = world.post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", bind).await;
    assert_eq!(code, 201, "{body}");
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str, addresses: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"ports": [{"port": 8887}], "externalIPs": addresses}})
    };
    let (code, body) = by(&world, "ann@x.org", "POST", services, service("thief", json!(["10.244.0.1"]))).await;
    assert_eq!(
        (code.as_u16(), message(&body)),
        (403, "services \"thief\" is forbidden: Use of external IPs is denied by admission control.")
    );
    assert_eq!(by(&world, "ann@x.org", "POST", services, service("plain", json!([]))).await.0, 201);
    let claim = json!({"spec": {"externalIPs": ["10.244.0.1"]}});
    let plain = format!("{services}/plain");
    assert_eq!(by(&world, "ann@x.org", "PATCH", &plain, claim.clone()).await.0, 403);
    // An administrator gives it one; the editor may go on with the Service, and give it back.
    assert_eq!(world.merge(&plain, claim).await.0, 200);
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(by(&world, "ann@x.org", "PATCH", &plain, label).await.0, 200);
    let other = json!({"spec": {"externalIPs": ["10.244.0.1", "10.244.0.9"]}});
    assert_eq!(by(&world, "ann@x.org", "PATCH", &plain, other).await.0, 403);
    let none = json!({"spec": {"externalIPs": null}});
    assert_eq!(by(&world, "ann@x.org", "PATCH", &plain, none).await.0, 200);
}

#[tokio::test]
async fn editors_cannot_lead_a_service_elsewhere_and_nobody_into_this_machine() {
    let world = world().await;
    let bind = json!({"metadata": {"name": "ann"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole", "name": "kubeflow-admin"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "ann@x.org"}]});
    assert_eq!(world.post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", bind).await.0, 201);
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"ports": [{"port": 80}]}});
    let services = "/api/v1/namespaces/default/services";
    assert_eq!(by(&world, "ann@x.org", "POST", services, service).await.0, 201);
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web"},
        "subsets": [{"addresses": [{"ip": "10.244.0.7"}], "ports": [{"port": 80}]}]});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": ["127.0.0.1"]}], "ports": [{"name": "", "port": 22}]});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    assert_eq!(by(&world, "ann@x.org", "POST", "/api/v1/namespaces/default/endpoints", endpoints).await.0, 403);
    assert_eq!(by(&world, "ann@x.org", "POST", slices, slice.clone()).await.0, 403);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"name": "n"}});
    let bindings = "/api/v1/namespaces/default/pods/p/binding";
    assert_eq!(by(&world, "ann@x.org", "POST", bindings, binding).await.0, 403);

    // The API refuses such a slice of anybody; were it there, nothing would be sent.
    assert_eq!(world.post(slices, slice.clone()).await.0, 422);
    let collection = "endpointslices.discovery.k8s.io";
    let mut stored = slice;
    stored["metadata"]["namespace"] = "default".into();
    let encoded = crate::store::encode(collection, &stored);
    let key = crate::store::Key::new("default", "web-x");
    world.server.core().store.put(collection, key, crate::store::Expect::Absent, encoded).await.unwrap();
    let (code, body) = by(&world, "ann@x.org", "GET", &format!("{services}/web/proxy/"), Value::Null).await;
    assert_eq!((code.as_u16(), message(&body)), (400, "address not allowed"));
}

#[tokio::test]
async fn new_nodes_wait_for_their_first_word_and_pods_learn_where_they_are() {
    let world = world().await;
    world.default_account().await;
    let labels =
        json!({"topology.kubernetes.io/zone": "cellar", "topology.kubernetes.io/region": "house", "rack": "1"});
    let node = json!({"metadata": {"name": "n1", "labels": labels}, "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
    let (code, node) = world.post("/api/v1/nodes", node).await;
    assert_eq!(code, 201, "{node}");
    let taints =
        json!([{"key": "a", "effect": "NoSchedule"}, {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]);
    assert_eq!(node["spec"]["taints"], taints);
    // Whoever takes it away is not contradicted.
    let (_, node) = world.merge("/api/v1/nodes/n1", json!({"spec": {"taints": null}})).await;
    assert_eq!(node["spec"]["taints"], Value::Null);
    let mut pod = with("p", json!({}));
    pod["metadata"]["labels"] = json!({"topology.kubernetes.io/region": "own"});
    assert_eq!(world.post(PODS, pod).await.0, 201);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"name": "n1"}});
    assert_eq!(world.post(&format!("{PODS}/p/binding"), binding).await.0, 201);
    let (_, pod) = world.get(&format!("{PODS}/p")).await;
    let labels = json!({"topology.kubernetes.io/zone": "cellar", "topology.kubernetes.io/region": "own"});
    assert_eq!((&pod["spec"]["nodeName"], &pod["metadata"]["labels"]), (&json!("n1"), &labels));
}
