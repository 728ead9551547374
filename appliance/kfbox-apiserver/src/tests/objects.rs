use super::*;
use futures::StreamExt as _;
use std::pin::pin;

#[tokio::test]
async fn a_write_with_an_old_revision_conflicts_and_changes_nothing() {
    let world = world().await;
    let api: Api<ConfigMap> = Api::namespaced(world.client.clone(), "default");
    let first = world.config_map("a", "1").await;
    let mut newer = first.clone();
    newer.data.as_mut().unwrap().insert("k".into(), "2".into());
    let newer = api.replace("a", &PostParams::default(), &newer).await.unwrap();
    assert_ne!(first.metadata.resource_version, newer.metadata.resource_version);
    let error = api.replace("a", &PostParams::default(), &first).await.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("{error}") };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert_eq!(
        status.message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to \
         the latest version and try again"
    );
    assert_eq!(api.get("a").await.unwrap().data.unwrap()["k"], "2");
    // The same content again is no new revision.
    let same = api.replace("a", &PostParams::default(), &newer).await.unwrap();
    assert_eq!(same.metadata.resource_version, newer.metadata.resource_version);
}

#[tokio::test]
async fn errors_read_as_upstreams() {
    let world = world().await;
    let (code, body) = world.get("/api/v1/namespaces/default/pods/x").await;
    assert_eq!(code, 404);
    assert_eq!(
        body,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound",
               "message": "pods \"x\" not found", "details": {"name": "x", "kind": "pods"}, "code": 404})
    );
    let (code, body) = world.post("/api/v1/namespaces/nowhere/configmaps", json!({"metadata": {"name": "a"}})).await;
    assert_eq!((code.as_u16(), body["message"].as_str().unwrap()), (404, "namespaces \"nowhere\" not found"));
    world.config_map("a", "1").await;
    let (code, body) = world.post("/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "a"}})).await;
    assert_eq!((code.as_u16(), body["reason"].as_str().unwrap()), (409, "AlreadyExists"));
    assert_eq!(body["message"], "configmaps \"a\" already exists");
    let (code, body) =
        world.post("/api/v1/namespaces/default/pods", json!({"kind": "Secret", "metadata": {"name": "a"}})).await;
    assert_eq!((code.as_u16(), body["reason"].as_str().unwrap()), (400, "BadRequest"));
    let (code, body) = world.post("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "A_b"}})).await;
    assert_eq!((code.as_u16(), body["reason"].as_str().unwrap()), (422, "Invalid"), "{body}");
    assert!(body["details"]["causes"].as_array().unwrap().iter().any(|c| c["field"] == "metadata.name"), "{body}");
    let (code, _) = world.get("/api/v1/nothings").await;
    assert_eq!(code, 404);
    let (code, _, body) = world
        .request("POST", "/api/v1/namespaces/default/pods", &[("content-type", "application/cbor")], json!({}))
        .await;
    assert_eq!((code.as_u16(), body["reason"].as_str().unwrap()), (415, "UnsupportedMediaType"));
    let huge = "x".repeat(crate::negotiate::BODY_LIMIT);
    let (code, _) = world
        .post("/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "b"}, "data": {"k": huge}}))
        .await;
    assert_eq!(code, 413);
}

#[tokio::test]
async fn the_anonymous_and_the_unprivileged_are_refused() {
    let world = world().await;
    let anonymous = |path: &str| world.server.call(Request::get(path).body(Body::empty()).unwrap());
    assert_eq!(anonymous("/api/v1/namespaces").await.status(), 403);
    assert_eq!(anonymous("/healthz").await.status(), 200);
    assert_eq!(anonymous("/version").await.status(), 200);
    let bad = Request::get("/version").header("authorization", "Bearer nonsense").body(Body::empty()).unwrap();
    assert_eq!(world.server.call(bad).await.status(), 401);
    // The marks of a local request count only inside the process.
    let mut spoofed = Request::get("/api/v1/namespaces").body(Body::empty()).unwrap();
    spoofed.extensions_mut().insert(UserInfo::new("x", [UserInfo::MASTERS.to_owned()]));
    assert_eq!(world.server.call(spoofed).await.status(), 403);

    let api: Api<Pod> = Api::namespaced(world.server.client_as(UserInfo::new("ann", [])), "default");
    let kube::Error::Api(status) = api.get("a").await.unwrap_err() else { panic!() };
    assert_eq!(
        status.message,
        "pods \"a\" is forbidden: User \"ann\" cannot get resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let (code, _) = world
        .post(
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
            json!({"metadata": {"name": "ann"}, "subjects": [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}],
                   "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}}),
        )
        .await;
    assert_eq!(code, 201);
    let kube::Error::Api(status) = api.get("a").await.unwrap_err() else { panic!() };
    assert_eq!(status.code, 404, "the new binding holds at once");
    assert!(api.create(&PostParams::default(), &pod("a")).await.is_err());
    let (_, view) = world.get("/apis/rbac.authorization.k8s.io/v1/clusterroles/view").await;
    assert!(view["rules"].as_array().unwrap().len() > 3, "an aggregated role shows its rules: {view}");
}

#[tokio::test]
async fn finalizers_keep_a_deleted_object_until_they_are_done() {
    let world = world().await;
    let path = "/api/v1/namespaces/default/configmaps/a";
    world
        .post(
            "/api/v1/namespaces/default/configmaps",
            json!({"metadata": {"name": "a", "finalizers": ["example.com/x"]}}),
        )
        .await;
    let (code, marked) = world.delete(path, Value::Null).await;
    assert_eq!(code, 200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    let (code, again) = world.delete(path, Value::Null).await;
    assert_eq!((code.as_u16(), &again), (200, &marked));
    let (code, body) = world.merge(path, json!({"metadata": {"finalizers": ["example.com/x", "example.com/y"]}})).await;
    assert_eq!(code, 422, "{body}");
    let (code, _) = world.merge(path, json!({"data": {"still": "writable"}})).await;
    assert_eq!(code, 200);
    let (code, _) = world.merge(path, json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(code, 200);
    assert_eq!(world.get(path).await.0, 404);

    let (code, gone) = {
        world.config_map("b", "1").await;
        world.delete("/api/v1/namespaces/default/configmaps/b", json!({"preconditions": {"uid": "other"}})).await
    };
    assert_eq!(code, 409, "{gone}");
    let (code, gone) =
        world.delete("/api/v1/namespaces/default/configmaps/b", json!({"propagationPolicy": "Foreground"})).await;
    assert_eq!(code, 200);
    assert_eq!(gone["metadata"]["finalizers"], json!(["foregroundDeletion"]));
}

#[tokio::test]
async fn a_pod_on_a_node_is_deleted_by_its_node() {
    let world = world().await;
    world.default_account().await;
    let api: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    for name in ["free", "bound"] {
        api.create(&PostParams::default(), &pod(name)).await.unwrap();
    }
    let created = api.get("bound").await.unwrap();
    let spec = created.spec.as_ref().unwrap();
    assert_eq!(spec.service_account_name.as_deref(), Some("default"));
    assert_eq!(
        spec.containers[0].volume_mounts.as_ref().unwrap()[0].mount_path,
        "/var/run/secrets/kubernetes.io/serviceaccount"
    );
    assert_eq!(created.status.as_ref().unwrap().phase.as_deref(), Some("Pending"));
    assert_eq!(created.status.as_ref().unwrap().qos_class.as_deref(), Some("BestEffort"));
    let (code, body) = world
        .post("/api/v1/namespaces/default/pods/bound/binding", json!({"target": {"kind": "Node", "name": "n1"}}))
        .await;
    assert_eq!(code, 201, "{body}");
    let (code, _) =
        world.post("/api/v1/namespaces/default/pods/bound/binding", json!({"target": {"name": "n2"}})).await;
    assert_eq!(code, 409);

    assert!(api.delete("free", &DeleteParams::default()).await.is_ok());
    assert!(api.get_opt("free").await.unwrap().is_none());
    let marked = api.delete("bound", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(30));
    api.delete("bound", &DeleteParams::default().grace_period(5)).await.unwrap();
    assert_eq!(api.get("bound").await.unwrap().metadata.deletion_grace_period_seconds, Some(5));
    api.delete("bound", &DeleteParams::default().grace_period(60)).await.unwrap();
    assert_eq!(api.get("bound").await.unwrap().metadata.deletion_grace_period_seconds, Some(5));
    api.delete("bound", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(api.get_opt("bound").await.unwrap().is_none());
}

#[tokio::test]
async fn a_namespace_ends_when_its_content_is_finalized() {
    let world = world().await;
    let api: Api<Namespace> = Api::all(world.client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    let created = api.create(&PostParams::default(), &namespace).await.unwrap();
    assert_eq!(created.metadata.labels.unwrap()["kubernetes.io/metadata.name"], "team");
    let marked = api.delete("team", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(marked.status.unwrap().phase.as_deref(), Some("Terminating"));
    let (code, body) = world.post("/api/v1/namespaces/team/configmaps", json!({"metadata": {"name": "a"}})).await;
    assert_eq!(code, 403);
    assert_eq!(body["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let (code, _) = world
        .put("/api/v1/namespaces/team/finalize", json!({"metadata": {"name": "team"}, "spec": {"finalizers": []}}))
        .await;
    assert_eq!(code, 200);
    assert!(api.get_opt("team").await.unwrap().is_none());
    assert_eq!(world.delete("/api/v1/namespaces/default", Value::Null).await.0, 403);
}

#[tokio::test]
async fn a_dry_run_answers_and_stores_nothing() {
    let world = world().await;
    let before = world.server.core().store.revision();
    let (code, body) = world
        .post("/api/v1/namespaces/default/configmaps?dryRun=All", json!({"metadata": {"generateName": "a-"}}))
        .await;
    assert_eq!(code, 201);
    assert!(body["metadata"]["name"].as_str().unwrap().starts_with("a-"));
    assert_eq!(world.server.core().store.revision(), before);
    world.config_map("a", "1").await;
    let path = "/api/v1/namespaces/default/configmaps/a";
    let (code, body) = world.merge(&format!("{path}?dryRun=All"), json!({"data": {"k": "2"}})).await;
    assert_eq!((code.as_u16(), body["data"]["k"].as_str()), (200, Some("2")));
    assert_eq!(world.delete(&format!("{path}?dryRun=All"), Value::Null).await.0, 200);
    assert_eq!(world.get(path).await.1["data"]["k"], "1");
    assert_eq!(world.delete(&format!("{path}?dryRun=Some"), Value::Null).await.0, 400);
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart() {
    let world = world().await;
    let created = world.config_map("a", "1").await;
    let revision = world.server.core().store.revision();
    // Nothing is closed or flushed: the second server reads what a crash would have left.
    let (again, _tasks) = open(world.dir.path()).await;
    let api: Api<ConfigMap> = Api::namespaced(again.client(), "default");
    assert_eq!(api.get("a").await.unwrap(), created);
    assert_eq!(again.core().store.revision(), revision, "a restart writes nothing");
}

#[tokio::test]
async fn patches_and_unconditional_updates_survive_concurrency() {
    let world = world().await;
    world.config_map("a", "0").await;
    let api: Api<ConfigMap> = Api::namespaced(world.client.clone(), "default");
    let patches = (0..8).map(|n| {
        let api = api.clone();
        async move {
            let patch = json!({"data": {format!("k{n}"): "v"}});
            api.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await
        }
    });
    for result in futures::future::join_all(patches).await {
        result.unwrap();
    }
    assert_eq!(api.get("a").await.unwrap().data.unwrap().len(), 9);
    let (code, _, body) = world
        .request(
            "PATCH",
            "/api/v1/namespaces/default/configmaps/a",
            &[("content-type", "application/json-patch+json")],
            json!([{"op": "test", "path": "/data/k0", "value": "v"}, {"op": "remove", "path": "/data/k0"}]),
        )
        .await;
    assert_eq!((code.as_u16(), body["data"]["k0"].is_null()), (200, true));
}

#[tokio::test]
async fn apply_creates_owns_and_conflicts() {
    let world = world().await;
    let api: Api<ConfigMap> = Api::namespaced(world.client.clone(), "default");
    let object =
        |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": value}});
    let apply = |manager: &'static str, value: &'static str, force: bool| {
        let api = api.clone();
        let mut parameters = PatchParams::apply(manager);
        parameters.force = force;
        let patch = Patch::Apply(object(value));
        async move { api.patch("a", &parameters, &patch).await }
    };
    let created = apply("one", "1", false).await.unwrap();
    let again = apply("one", "1", false).await.unwrap();
    assert_eq!(created.metadata.resource_version, again.metadata.resource_version, "nothing changed");
    let kube::Error::Api(status) = apply("two", "2", false).await.unwrap_err() else { panic!() };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert_eq!(apply("two", "2", true).await.unwrap().data.unwrap()["k"], "2");
    let owners = api.get("a").await.unwrap().metadata.managed_fields.unwrap();
    assert_eq!(owners.iter().filter_map(|m| m.manager.as_deref()).collect::<Vec<_>>(), ["two"]);
}

#[tokio::test]
async fn services_get_addresses_of_their_own() {
    let world = world().await;
    let api: Api<Service> = Api::namespaced(world.client.clone(), "default");
    assert_eq!(api.get("kubernetes").await.unwrap().spec.unwrap().cluster_ip.as_deref(), Some("10.96.0.1"));
    let service = |name: &str, more: Value| {
        let mut spec = json!({"ports": [{"port": 80}], "selector": {"a": "b"}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value::<Service>(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    };
    let parameters = PostParams::default();
    let names: Vec<String> = (0..20).map(|n| format!("s{n}")).collect();
    let services: Vec<Service> = names.iter().map(|n| service(n, json!({"type": "NodePort"}))).collect();
    let created = futures::future::join_all(services.iter().map(|s| api.create(&parameters, s))).await;
    let specs: Vec<_> = created.into_iter().map(|s| s.unwrap().spec.unwrap()).collect();
    let addresses: std::collections::BTreeSet<_> = specs.iter().map(|s| s.cluster_ip.clone().unwrap()).collect();
    let ports: std::collections::BTreeSet<_> =
        specs.iter().map(|s| s.ports.as_ref().unwrap()[0].node_port.unwrap()).collect();
    assert_eq!((addresses.len(), ports.len()), (20, 20));
    let taken = service("t", json!({"clusterIP": specs[0].cluster_ip.clone()}));
    assert!(api.create(&parameters, &taken).await.is_err());
    let headless = api.create(&parameters, &service("h", json!({"clusterIP": "None"}))).await.unwrap();
    assert_eq!(headless.spec.unwrap().cluster_ip.as_deref(), Some("None"));
    // An update that does not repeat the address keeps it.
    let mut update = service("s1", json!({"type": "NodePort"}));
    update.metadata.resource_version = api.get("s1").await.unwrap().metadata.resource_version;
    let updated = api.replace("s1", &parameters, &update).await.unwrap().spec.unwrap();
    assert_eq!(updated.cluster_ip, specs[1].cluster_ip);
    assert_eq!(updated.ports.unwrap()[0].node_port, specs[1].ports.as_ref().unwrap()[0].node_port);
}

/// As upstream's page on dual stack tells it, over the API.
#[tokio::test]
async fn services_get_addresses_of_both_families() {
    let world = crate::tests::world_with(|config| config.second_service_cidr = Some("fd00:96::/112".into())).await;
    let services = "/api/v1/namespaces/default/services";
    let make = async |name: &str, mut spec: Value| {
        spec["ports"] = json!([{"port": 80}]);
        spec["selector"] = json!({"a": "b"});
        world.post(services, json!({"metadata": {"name": name}, "spec": spec})).await
    };
    let (_, own) = world.get(&format!("{services}/kubernetes")).await;
    assert_eq!(
        (own["spec"]["ipFamilyPolicy"].as_str(), own["spec"]["clusterIPs"].as_array().unwrap().len()),
        (Some("SingleStack"), 1)
    );
    let (_, range) = world.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes").await;
    assert_eq!(range["spec"]["cidrs"], json!(["10.96.0.0/16", "fd00:96::/112"]));

    let (code, plain) = make("plain", json!({})).await;
    assert_eq!((code.as_u16(), &plain["spec"]["ipFamilies"]), (201, &json!(["IPv4"])), "{plain}");
    let (code, both) = make("both", json!({"ipFamilyPolicy": "RequireDualStack"})).await;
    assert_eq!((code.as_u16(), &both["spec"]["ipFamilies"]), (201, &json!(["IPv4", "IPv6"])), "{both}");
    let ips = both["spec"]["clusterIPs"].clone();
    assert!(
        ips[0].as_str().unwrap().starts_with("10.96.") && ips[1].as_str().unwrap().starts_with("fd00:96::"),
        "{both}"
    );
    assert_eq!(both["spec"]["clusterIP"], ips[0]);
    let (code, second) = make("second", json!({"ipFamilies": ["IPv6"]})).await;
    assert_eq!((code.as_u16(), &second["spec"]["ipFamilyPolicy"]), (201, &json!("SingleStack")), "{second}");
    assert!(second["spec"]["clusterIP"].as_str().unwrap().starts_with("fd00:96::"), "{second}");

    // An address that is another's, as its first or its second, is refused; one of no range too.
    for taken in [&ips[1], &second["spec"]["clusterIP"], &json!("fd00:97::1")] {
        let (code, answer) = make("taken", json!({"clusterIP": taken})).await;
        assert_eq!(code.as_u16(), 422, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains("failed to allocate IP"), "{answer}");
    }

    // Up, with an update that says so, and down again. The first address stays.
    let (code, answer) = world.merge(&format!("{services}/plain"), json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!((code.as_u16(), answer["spec"]["clusterIPs"].as_array().unwrap().len()), (200, 1));
    let policy = |policy: &str| json!({"spec": {"ipFamilyPolicy": policy}});
    let (code, up) = world.merge(&format!("{services}/plain"), policy("PreferDualStack")).await;
    assert_eq!((code.as_u16(), up["spec"]["clusterIPs"].as_array().unwrap().len()), (200, 2), "{up}");
    assert_eq!(up["spec"]["clusterIP"], plain["spec"]["clusterIP"]);
    let (code, down) = world.merge(&format!("{services}/plain"), policy("SingleStack")).await;
    assert_eq!((code.as_u16(), &down["spec"]["clusterIPs"]), (200, &plain["spec"]["clusterIPs"]), "{down}");
    assert_eq!(down["spec"]["ipFamilies"], json!(["IPv4"]));

    // What may not change does not.
    let both_at = format!("{services}/both");
    for (patch, why) in [
        (json!({"spec": {"ipFamilies": ["IPv6", "IPv4"]}}), "spec.clusterIPs[0]"),
        (json!({"spec": {"clusterIPs": [ips[0], "fd00:96::77"]}}), "spec.clusterIPs[1]"),
        (json!({"spec": {"clusterIPs": [ips[0]], "ipFamilies": ["IPv4"]}}), "spec.clusterIPs[1]"),
    ] {
        let (code, answer) = world.merge(&both_at, patch.clone()).await;
        assert_eq!(code.as_u16(), 422, "{patch}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains(why), "{patch}: {answer}");
    }
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let world = world().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let object = json!({"metadata": {"name": "web"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
        "status": {"replicas": 7}});
    let (code, created) = world.post(path, object).await;
    assert_eq!(code, 201, "{created}");
    assert_eq!(created["status"], json!({}), "what nobody has told yet is there, and empty");
    assert!(created["metadata"]["managedFields"][0]["fieldsV1"]["f:status"].is_null(), "{created}");
    assert_eq!(created["metadata"]["generation"], 1);
    let path = &format!("{path}/web");
    let (_, status) =
        world.merge(&format!("{path}/status"), json!({"status": {"replicas": 3}, "spec": {"replicas": 9}})).await;
    assert_eq!((&status["status"]["replicas"], &status["spec"]["replicas"]), (&json!(3), &json!(1)));
    assert_eq!(status["metadata"]["generation"], 1);
    let (_, spec) = world.merge(path, json!({"status": {"replicas": 5}, "spec": {"replicas": 2}})).await;
    assert_eq!((&spec["status"]["replicas"], &spec["spec"]["replicas"]), (&json!(3), &json!(2)));
    assert_eq!(spec["metadata"]["generation"], 2);
    let (_, scale) = world.get(&format!("{path}/scale")).await;
    assert_eq!(scale["status"], json!({"replicas": 3, "selector": "a=b"}));
    let (code, scale) = world.merge(&format!("{path}/scale"), json!({"spec": {"replicas": 4}})).await;
    assert_eq!((code.as_u16(), &scale["spec"]["replicas"]), (200, &json!(4)), "{scale}");
    let (_, whole) = world.get(path).await;
    assert_eq!((&whole["spec"]["replicas"], &whole["metadata"]["generation"]), (&json!(4), &json!(3)));
}

#[tokio::test]
async fn parts_that_are_absent_have_their_zero_value() {
    let world = world().await;
    let labels = json!({"a": "b"});
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (path, spec, status) in [
        (
            "/apis/apps/v1/namespaces/default/daemonsets",
            json!({"selector": {"matchLabels": labels}, "template": template}),
            json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0}),
        ),
        (
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
            json!({"selector": {"matchLabels": labels}}),
            json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}),
        ),
        ("/api/v1/namespaces/default/services", json!({"ports": [{"port": 1}]}), json!({"loadBalancer": {}})),
    ] {
        let (code, created) = world.post(path, json!({"metadata": {"name": "x"}, "spec": spec})).await;
        assert_eq!((code.as_u16(), &created["status"]), (201, &status), "{created}");
    }
    let (_, quota) = world.post("/api/v1/namespaces/default/resourcequotas", json!({"metadata": {"name": "q"}})).await;
    assert_eq!((&quota["spec"], &quota["status"]), (&json!({}), &json!({})), "{quota}");
}

#[tokio::test]
async fn an_applied_scale_owns_the_replicas() {
    let world = world().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let object = json!({"metadata": {"name": "web"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    world.post(&format!("{path}?fieldManager=author"), object).await;
    let scale =
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": 3}});
    let apply = [("content-type", "application/apply-patch+yaml")];
    let to = format!("{path}/web/scale?fieldManager=scaler");
    let (code, _, refused) = world.request("PATCH", &to, &apply, scale.clone()).await;
    assert_eq!((code.as_u16(), &refused["reason"]), (409, &json!("Conflict")), "{refused}");
    assert_eq!(refused["details"]["causes"][0]["field"], ".spec.replicas");
    let (code, _, scaled) = world.request("PATCH", &format!("{to}&force=true"), &apply, scale).await;
    assert_eq!((code.as_u16(), &scaled["spec"]["replicas"]), (200, &json!(3)), "{scaled}");
    let (_, whole) = world.get(&format!("{path}/web")).await;
    assert_eq!(whole["spec"]["replicas"], 3);
    let entries = whole["metadata"]["managedFields"].as_array().unwrap();
    let own = entries.iter().find(|e| e["manager"] == "scaler").unwrap();
    assert_eq!((&own["operation"], &own["subresource"]), (&json!("Apply"), &json!("scale")));
    assert_eq!(own["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
}

#[tokio::test]
async fn the_range_of_services_is_an_object() {
    let world = world().await;
    let path = "/apis/networking.k8s.io/v1/servicecidrs";
    let (_, range) = world.get(&format!("{path}/kubernetes")).await;
    assert_eq!(range["spec"]["cidrs"], json!(["10.96.0.0/16"]));
    assert_eq!(range["status"]["conditions"][0]["type"], "Ready");
    for (ranges, why) in [
        (json!([]), "at least one CIDR required"),
        (json!(["10.0.0.0/8", "11.0.0.0/8"]), "no more than one IP for each IP family"),
        (json!(["somewhere"]), "must be a valid CIDR value"),
    ] {
        let (code, refused) = world.post(path, json!({"metadata": {"name": "x"}, "spec": {"cidrs": ranges}})).await;
        assert_eq!(code, 422, "{refused}");
        assert!(refused["message"].as_str().unwrap().contains(why), "{refused}");
    }
}

#[tokio::test]
async fn unknown_fields_are_told_or_refused() {
    let world = world().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let object = json!({"metadata": {"name": "web"}, "spec": {"replica": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let json = [("content-type", "application/json")];
    let (code, _, body) = world.request("POST", &format!("{path}?fieldValidation=Strict"), &json, object.clone()).await;
    assert_eq!(code, 400);
    assert_eq!(body["message"], "strict decoding error: unknown field \"spec.replica\"");
    let (code, headers, _) = world.request("POST", path, &json, object).await;
    assert_eq!(code, 201);
    assert_eq!(headers["warning"], "299 - \"unknown field \\\"spec.replica\\\"\"");
}

#[tokio::test]
async fn events_are_one_store_under_two_groups_and_end() {
    let world = world().await;
    let (code, body) = world
        .post("/api/v1/namespaces/default/events", json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p",
            "namespace": "default"}, "message": "hello", "reason": "Test", "type": "Normal", "source": {"component": "t"}}))
        .await;
    assert_eq!(code, 201, "{body}");
    let (_, new) = world.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await;
    assert_eq!(
        (&new["apiVersion"], &new["note"], &new["regarding"]["name"]),
        (&json!("events.k8s.io/v1"), &json!("hello"), &json!("p"))
    );
    let (_, list) = world.get("/api/v1/events?fieldSelector=involvedObject.name=p,reason!=Other").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(world.get("/api/v1/events?fieldSelector=nothing=p").await.0, 400);
    let soon = chrono::Utc::now().timestamp() + 1;
    crate::housekeeping::expire_events(world.server.core(), soon - 3600).await;
    assert_eq!(world.get("/api/v1/namespaces/default/events/e").await.0, 200);
    crate::housekeeping::expire_events(world.server.core(), soon).await;
    assert_eq!(world.get("/api/v1/namespaces/default/events/e").await.0, 404);
}

#[tokio::test]
async fn a_typed_watch_sees_each_change_once() {
    let world = world().await;
    let api: Api<ConfigMap> = Api::namespaced(world.client.clone(), "default");
    let list = api.list(&ListParams::default()).await.unwrap();
    let mut watch = pin!(api.watch(&WatchParams::default(), &list.metadata.resource_version.unwrap()).await.unwrap());
    world.config_map("a", "1").await;
    api.patch("a", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "2"}}))).await.unwrap();
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(match watch.next().await.unwrap().unwrap() {
            WatchEvent::Added(o) => format!("+{}", o.data.unwrap()["k"]),
            WatchEvent::Modified(o) => format!("~{}", o.data.unwrap()["k"]),
            WatchEvent::Deleted(o) => format!("-{}", o.data.unwrap()["k"]),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(seen, ["+1", "~2", "-2"]);
    // At shutdown the stream ends by itself.
    world.tasks.stop();
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn misshapen_objects_are_refused_and_never_a_servers_fault() {
    let world = world().await;
    world.default_account().await;
    let odd = [json!(5), json!("x"), json!([]), json!([1]), json!({"x": {"y": 1}}), json!(true), Value::Null];
    let registry = world.server.core().resources.current();
    let mut tried = 0;
    for resource in registry.all().filter(|r| r.custom.is_none()) {
        let prefix = if resource.group.is_empty() { "/api".into() } else { format!("/apis/{}", resource.group) };
        let scope = if resource.namespaced { "/namespaces/default" } else { "" };
        let path = format!("{prefix}/{}{scope}/{}", resource.version, resource.plural);
        for odd in &odd {
            for place in [
                "/metadata",
                "/metadata/labels",
                "/metadata/finalizers",
                "/spec",
                "/spec/template",
                "/spec/containers",
                "/spec/ports",
                "/spec/names",
                "/spec/versions",
                "/data",
                "/stringData",
                "/status",
                "/rules",
            ] {
                let mut object = json!({"metadata": {"name": "odd"}, "spec": {}});
                let (parent, last) = place.rsplit_once('/').unwrap();
                object.pointer_mut(parent).unwrap()[last] = odd.clone();
                let (code, body) = world.post(&format!("{path}?dryRun=All"), object).await;
                assert!(code.as_u16() < 500, "{path} {place} {odd}: {body}");
                tried += 1;
            }
        }
    }
    assert!(tried > 4000);
    // The same through patches of an object that is there.
    for path in ["/api/v1/namespaces/default", "/api/v1/namespaces/default/services/kubernetes"] {
        for odd in &odd {
            for patch in [
                json!({"metadata": odd}),
                json!({"spec": odd}),
                json!({"spec": {"ports": odd}}),
                json!({"status": odd}),
                odd.clone(),
            ] {
                for path in [path.to_owned(), format!("{path}/status")] {
                    let (code, body) = world.merge(&format!("{path}?dryRun=All"), patch.clone()).await;
                    assert!(code.as_u16() < 500, "{path} {patch}: {body}");
                }
            }
        }
    }
}
