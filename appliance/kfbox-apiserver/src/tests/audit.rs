//! What happened is on record, and what secrets hold is not.

use super::*;
use crate::{AuditConfig, audit::Audit};

async fn records(world: &World) -> Vec<Value> {
    world.server.core().audit.as_ref().unwrap().flush().await;
    let text = std::fs::read_to_string(world.dir.path().join("audit.log")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn about<'a>(records: &'a [Value], resource: &str, user: &str) -> Vec<&'a Value> {
    records.iter().filter(|r| r["objectRef"]["resource"] == resource && r["user"]["username"] == user).collect()
}

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

#[tokio::test]
async fn a_secret_is_created_read_and_watched_on_record_without_its_content() {
    let world = world().await;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"password": "hunter2hunter2"},
    });
    let agent = [("user-agent", "kubectl/v1.37.0"), ("audit-id", "mine"), ("content-type", "application/json")];
    let (code, headers, _) = world.request("POST", SECRETS, &agent, secret).await;
    assert_eq!((code.as_u16(), &headers["audit-id"]), (201, &"mine".parse().unwrap()));
    world.get(&format!("{SECRETS}/s")).await;
    world.get("/api/v1/namespaces/default/configmaps").await;
    world.config_map("c", "v").await;
    let mut request = Request::get(format!("{SECRETS}?watch=1")).body(Body::empty()).unwrap();
    request.extensions_mut().insert(server::Local);
    request.extensions_mut().insert(UserInfo::new("admin", [UserInfo::MASTERS.to_owned()]));
    let mut stream = world.server.call(request).await;
    next_line(&mut stream, &mut Vec::new()).await.unwrap();
    let all = records(&world).await;
    let before: Vec<_> = about(&all, "secrets", "admin")
        .iter()
        .map(|r| (r["verb"].as_str().unwrap(), r["stage"].as_str().unwrap(), r["responseStatus"]["code"].as_i64()))
        .collect();
    let complete = "ResponseComplete";
    assert_eq!(
        before,
        [("create", complete, Some(201)), ("get", complete, Some(200)), ("watch", "ResponseStarted", Some(200))]
    );
    drop(stream);
    let all = records(&world).await;
    let secrets = about(&all, "secrets", "admin");
    assert_eq!((&secrets[3]["verb"], &secrets[3]["stage"]), (&json!("watch"), &json!(complete)));
    assert_eq!(secrets[2]["auditID"], secrets[3]["auditID"]);
    let created = secrets[0];
    assert_eq!(
        (&created["kind"], &created["apiVersion"], &created["level"], &created["auditID"]),
        (&json!("Event"), &json!("audit.k8s.io/v1"), &json!("Metadata"), &json!("mine"))
    );
    let uid = world.get(&format!("{SECRETS}/s")).await.1["metadata"]["uid"].clone();
    let object = json!({"resource": "secrets", "namespace": "default", "apiVersion": "v1", "name": "s", "uid": uid});
    assert_eq!(created["objectRef"], object);
    assert_eq!((&created["userAgent"], &created["requestURI"]), (&json!("kubectl/v1.37.0"), &json!(SECRETS)));
    assert_eq!(
        created["annotations"],
        json!({
            "authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": "",
        })
    );
    for name in ["requestReceivedTimestamp", "stageTimestamp"] {
        let text = created[name].as_str().unwrap();
        assert!(
            chrono::DateTime::parse_from_rfc3339(text).is_ok() && text.len() == "2026-01-01T00:00:00.000000Z".len()
        );
    }
    let reads = all.iter().filter(|r| r["objectRef"]["resource"] == "configmaps" && r["verb"] == "list");
    assert_eq!(reads.count(), 0, "reading what is no secret is nobody's business");
    assert!(!all.iter().any(|r| r.to_string().contains("hunter2") || r.to_string().contains("aHVudGVyMg")));
}

#[tokio::test]
async fn who_acts_as_another_is_recorded_with_both_names_and_the_refusal_with_its_reason() {
    let world = world().await;
    world.readers().await;
    let client = world
        .remote(|c| {
            c.auth_info.impersonate = Some("ada".into());
            c.auth_info.impersonate_groups = Some(vec!["staff".into()]);
        })
        .await;
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(client, "default");
    let kube::Error::Api(status) = secrets.list(&ListParams::default()).await.unwrap_err() else { panic!() };
    assert_eq!(status.code, 403);
    let all = records(&world).await;
    let record = about(&all, "secrets", "kubernetes-admin")[0];
    assert_eq!(record["impersonatedUser"]["username"], "ada");
    assert!(record["impersonatedUser"]["groups"].as_array().unwrap().contains(&json!("staff")));
    assert!(record["user"]["groups"].as_array().unwrap().contains(&json!(UserInfo::MASTERS)));
    assert_eq!((&record["sourceIPs"], &record["verb"]), (&json!(["127.0.0.1"]), &json!("list")));
    assert_eq!(record["annotations"]["authorization.k8s.io/decision"], "forbid");
    let status = &record["responseStatus"];
    assert_eq!((&status["code"], &status["reason"]), (&json!(403), &json!("Forbidden")));

    let wanted = kfbox_base::ResourceAttributes::namespaced("list", "", "configmaps", "default");
    let why = world.server.core().rbac.why(&UserInfo::new("ada", []), crate::auth::rbac::Asked::Resource(&wanted));
    assert_eq!(
        why,
        r#"RBAC: allowed by ClusterRoleBinding "readers" of ClusterRole "readers" to Group "system:authenticated""#
    );
}

#[tokio::test]
async fn a_policy_of_ones_own_records_what_was_sent_and_answered_but_for_secrets() {
    let policy = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        policy.path(),
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitManagedFields: true\nrules: [{level: RequestResponse}]\n",
    )
    .unwrap();
    let path = policy.path().to_owned();
    let world = world_with(|c| c.audit = Some(AuditConfig { policy: Some(path), ..AuditConfig::default() })).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    world.post(maps, json!({"metadata": {"name": "c"}, "data": {"k": "sent"}})).await;
    world.merge(&format!("{maps}/c"), json!({"data": {"k": "patched"}})).await;
    world.post(SECRETS, json!({"metadata": {"name": "s"}, "stringData": {"p": "hunter2hunter2"}})).await;
    let (_, token) = world.post("/api/v1/namespaces/default/serviceaccounts/default/token", json!({})).await;
    assert!(token["code"].is_null() || token["code"] == 404);
    world.get(&format!("{maps}?limit=x")).await;
    let all = records(&world).await;
    let stages: Vec<_> = about(&all, "configmaps", "admin").iter().map(|r| r["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseComplete"].repeat(3));
    let maps = about(&all, "configmaps", "admin");
    assert_eq!(maps[1]["requestObject"]["data"]["k"], "sent");
    assert_eq!(maps[1]["responseObject"]["data"]["k"], "sent");
    assert!(maps[1]["responseObject"]["metadata"]["uid"].is_string());
    assert!(maps[1]["responseObject"]["metadata"]["managedFields"].is_null());
    assert_eq!(maps[3]["requestObject"], json!({"data": {"k": "patched"}}));
    assert_eq!((&maps[5]["responseStatus"]["code"], &maps[5]["verb"]), (&json!(400), &json!("list")));
    for secret in about(&all, "secrets", "admin").into_iter().chain(about(&all, "serviceaccounts", "admin")) {
        assert!(secret["requestObject"].is_null() && secret["responseObject"].is_null(), "{secret}");
        assert_eq!(secret["level"], "Metadata");
    }
    assert!(!all.iter().any(|r| r.to_string().contains("hunter2")));
    let (_, answer) = world.get("/api/v1/namespaces/default/configmaps/c").await;
    assert_eq!(answer["data"]["k"], "patched", "an answer that is recorded still reaches its client");
}

#[tokio::test]
async fn a_client_that_goes_away_before_its_answer_is_recorded_too() {
    let world = one_seat_world().await;
    let user = UserInfo::new("somebody", []);
    let place = crate::flow::Where::Path("/x");
    let flow = &world.server.core().flow;
    let class = flow.classify(&crate::flow::Asked { user: &user, verb: "get", place });
    let seat = flow.seat(&class, 1).await.unwrap();
    let mut waiting = Box::pin(world.call_as("impatient", "GET", SECRETS));
    assert!(futures::poll!(&mut waiting).is_pending());
    drop(waiting);
    drop(seat);
    let all = records(&world).await;
    let record = about(&all, "secrets", "impatient")[0];
    assert_eq!(record["responseStatus"]["message"], "Connection closed early");
}

async fn one_seat_world() -> World {
    world_with(|c| c.limits.seats = 1).await
}

#[test]
fn a_policy_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = |policy: std::path::PathBuf| {
        Audit::open(dir.path(), &AuditConfig { policy: Some(policy), ..AuditConfig::default() })
            .err()
            .unwrap()
            .to_string()
    };
    assert!(open("/nowhere/policy.yaml".into()).contains("/nowhere/policy.yaml"));
    let wrong = dir.path().join("policy.yaml");
    std::fs::write(&wrong, "kind: Pod").unwrap();
    assert!(open(wrong).contains("policy.yaml"));
}

#[tokio::test]
async fn what_admission_says_is_on_record_also_of_what_it_refuses() {
    let world = world().await;
    let labels =
        json!({"pod-security.kubernetes.io/audit": "restricted", "pod-security.kubernetes.io/enforce": "baseline"});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "watched", "labels": labels}});
    assert_eq!(world.post("/api/v1/namespaces", namespace).await.0, 201);
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    assert_eq!(world.post("/api/v1/namespaces/watched/serviceaccounts", account).await.0, 201);
    let pods = "/api/v1/namespaces/watched/pods";
    for (name, host, code) in [("plain", false, 201), ("host", true, 403)] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"hostNetwork": host, "containers": [{"name": "c", "image": "i"}]},
        });
        let (found, body) = world.post(pods, pod).await;
        assert_eq!(found, code, "{body}");
    }
    let all = records(&world).await;
    let created = about(&all, "pods", "admin");
    let violations =
        |r: &Value| r["annotations"]["pod-security.kubernetes.io/audit-violations"].as_str().map(str::to_owned);
    assert_eq!(created.len(), 2);
    for record in created {
        assert!(violations(record).is_some_and(|v| v.contains("restricted:latest")), "{record}");
    }
}
