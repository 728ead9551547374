//! Decisions, aggregation and escalation on small clusters, and the default policy as a whole.

use super::*;
use crate::auth::policy;
use serde_json::json;

fn user(name: &str) -> UserInfo {
    UserInfo::new(name, [])
}

fn default_cluster() -> Rbac {
    let rbac = Rbac::new();
    for object in policy::default_objects() {
        rbac.observe(&object);
    }
    rbac
}

fn binding(namespace: Option<&str>, name: &str, role_kind: &str, role: &str, subject: Value) -> Value {
    let mut metadata = json!({ "name": name });
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    json!({
        "kind": if namespace.is_some() { "RoleBinding" } else { "ClusterRoleBinding" },
        "metadata": metadata,
        "roleRef": { "apiGroup": GROUP, "kind": role_kind, "name": role },
        "subjects": [subject],
    })
}

fn ada() -> Value {
    json!({ "kind": "User", "name": "ada", "apiGroup": GROUP })
}

fn may(rbac: &Rbac, who: &str, verb: &str, group: &str, resource: &str, namespace: &str) -> bool {
    rbac.authorize(&user(who), &ResourceAttributes::namespaced(verb, group, resource, namespace)).is_allowed()
}

#[test]
fn a_denial_says_who_what_and_where() {
    let rbac = Rbac::new();
    let wanted = ResourceAttributes::namespaced("list", "", "pods", "y");
    let Decision::Deny(reason) = rbac.authorize(&user("x"), &wanted) else { panic!("allowed") };
    assert_eq!(reason, r#"User "x" cannot list resource "pods" in API group "" in the namespace "y""#);
    let wanted =
        ResourceAttributes { subresource: "log".into(), ..ResourceAttributes::namespaced("get", "", "pods", "") };
    let Decision::Deny(reason) = rbac.authorize(&user("x"), &wanted) else { panic!("allowed") };
    assert_eq!(reason, r#"User "x" cannot get resource "pods/log" in API group "" at the cluster scope"#);
    let wanted = ResourceAttributes::namespaced("get", "apps", "deployments", "y").named("web");
    assert_eq!(forbidden(&wanted, "no"), r#"deployments.apps "web" is forbidden: no"#);
    assert_eq!(
        rbac.authorize_url(&user("x"), "get", "/metrics"),
        Decision::Deny(r#"User "x" cannot get path "/metrics""#.into())
    );
}

#[test]
fn a_binding_holds_in_its_namespace_until_it_goes() {
    let rbac = default_cluster();
    rbac.observe(&binding(Some("team"), "ada-edits", "ClusterRole", "edit", ada()));
    assert!(may(&rbac, "ada", "create", "", "pods", "team"));
    assert!(may(&rbac, "ada", "list", "batch", "jobs", "team"));
    assert!(!may(&rbac, "ada", "create", "", "pods", "other"));
    assert!(!may(&rbac, "ada", "create", "", "pods", ""));
    assert!(!may(&rbac, "eve", "create", "", "pods", "team"));
    assert!(!may(&rbac, "ada", "create", GROUP, "rolebindings", "team"));
    rbac.observe(&binding(Some("team"), "ada-edits", "ClusterRole", "view", ada()));
    assert!(!may(&rbac, "ada", "create", "", "pods", "team"));
    assert!(may(&rbac, "ada", "get", "", "pods", "team"));
    assert!(!may(&rbac, "ada", "get", "", "secrets", "team"));
    rbac.forget("RoleBinding", "team", "ada-edits");
    assert!(!may(&rbac, "ada", "get", "", "pods", "team"));
    assert!(rbac.index.read().by_subject.keys().all(|s| *s != Subject::User("ada".into())));
}

#[test]
fn subjects_are_users_groups_and_service_accounts() {
    let rbac = default_cluster();
    rbac.observe(&binding(
        Some("team"),
        "runner",
        "ClusterRole",
        "edit",
        json!({ "kind": "ServiceAccount", "name": "runner" }),
    ));
    rbac.observe(&binding(None, "staff", "ClusterRole", "view", json!({ "kind": "Group", "name": "staff" })));
    assert!(may(&rbac, "system:serviceaccount:team:runner", "create", "", "pods", "team"));
    assert!(!may(&rbac, "system:serviceaccount:other:runner", "create", "", "pods", "team"));
    assert!(!may(&rbac, "runner", "create", "", "pods", "team"));
    let wanted = ResourceAttributes::namespaced("list", "", "pods", "");
    assert!(rbac.authorize(&UserInfo::new("bob", ["staff".to_owned()]), &wanted).is_allowed());
    // A user called like a group is not the group.
    assert!(!rbac.authorize(&user("staff"), &wanted).is_allowed());
    assert!(rbac.authorize(&UserInfo::new("root", [UserInfo::MASTERS.to_owned()]), &wanted).is_allowed());
}

#[test]
fn names_subresources_and_urls_match_exactly() {
    let rbac = Rbac::new();
    rbac.observe(&json!({
        "kind": "ClusterRole", "metadata": { "name": "narrow" },
        "rules": [
            { "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["one"], "verbs": ["get"] },
            { "apiGroups": [""], "resources": ["pods/log", "*/scale"], "verbs": ["get"] },
            { "nonResourceURLs": ["/metrics", "/debug/*"], "verbs": ["get"] },
        ],
    }));
    rbac.observe(&binding(None, "b", "ClusterRole", "narrow", ada()));
    let get = |resource: &str, sub: &str, name: &str| {
        let wanted =
            ResourceAttributes { subresource: sub.into(), ..ResourceAttributes::namespaced("get", "", resource, "n") };
        rbac.authorize(&user("ada"), &wanted.named(name)).is_allowed()
    };
    assert!(get("secrets", "", "one"));
    assert!(!get("secrets", "", "two"));
    assert!(!get("secrets", "", ""));
    assert!(get("pods", "log", "p"));
    assert!(!get("pods", "", "p"));
    assert!(!get("pods", "exec", "p"));
    assert!(get("deployments", "scale", "d"));
    let url = |path: &str| rbac.authorize_url(&user("ada"), "get", path).is_allowed();
    assert!(url("/metrics") && url("/debug/pprof"));
    assert!(!url("/metrics/x") && !url("/debugger") && !url("/"));
}

#[test]
fn aggregation_follows_labels_through_other_aggregated_roles_and_cycles() {
    let rbac = Rbac::new();
    let aggregated = |name: &str, selects: &str, labels: Value| {
        json!({ "kind": "ClusterRole", "metadata": { "name": name, "labels": labels },
            "aggregationRule": { "clusterRoleSelectors": [{ "matchLabels": { selects: "true" } }] }, "rules": [] })
    };
    rbac.observe(&aggregated("admin", "to-admin", json!({ "to-edit": "true" })));
    rbac.observe(&aggregated("edit", "to-edit", json!({ "to-admin": "true" })));
    rbac.observe(&json!({ "kind": "ClusterRole", "metadata": { "name": "jobs", "labels": { "to-edit": "true" } },
        "rules": [{ "apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create"] }] }));
    rbac.observe(&binding(Some("n"), "b", "ClusterRole", "admin", ada()));
    assert!(may(&rbac, "ada", "create", "batch", "jobs", "n"));
    assert_eq!(rbac.aggregated_rules("admin").unwrap().len(), 1);
    assert_eq!(rbac.aggregated_rules("jobs"), None);
    rbac.forget("ClusterRole", "", "jobs");
    assert!(!may(&rbac, "ada", "create", "batch", "jobs", "n"));
}

#[test]
fn nobody_grants_what_they_do_not_hold() {
    let rbac = default_cluster();
    rbac.observe(&binding(Some("team"), "ada-owns", "ClusterRole", "admin", ada()));
    let role =
        |rules: Value| json!({ "kind": "Role", "metadata": { "name": "r", "namespace": "team" }, "rules": rules });
    let pods = role(json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "delete"] }]));
    assert_eq!(rbac.check_role_write(&user("ada"), None, &pods), Ok(()));
    let nodes = role(json!([{ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get"] }]));
    let error = rbac.check_role_write(&user("ada"), None, &nodes).unwrap_err();
    assert!(error.contains("attempting to grant RBAC permissions not currently held"), "{error}");
    assert!(error.contains(r#"{APIGroups:[""], Resources:["nodes"], Verbs:["get"]}"#), "{error}");
    let star = role(json!([{ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }]));
    assert!(rbac.check_role_write(&user("ada"), None, &star).is_err());
    // Unchanged rules may be written back: a label may be added to a role of more power.
    assert_eq!(rbac.check_role_write(&user("ada"), Some(&star), &star), Ok(()));
    let mut aggregating = role(json!([]));
    aggregating["kind"] = "ClusterRole".into();
    aggregating["aggregationRule"] = json!({ "clusterRoleSelectors": [{}] });
    assert!(rbac.check_role_write(&user("ada"), None, &aggregating).is_err());

    let to = |role: &str| binding(Some("team"), "b", "ClusterRole", role, json!({ "kind": "User", "name": "bob" }));
    assert_eq!(rbac.check_binding_write(&user("ada"), None, &to("edit")), Ok(()));
    assert!(rbac.check_binding_write(&user("ada"), None, &to("cluster-admin")).is_err());
    assert!(rbac.check_binding_write(&user("ada"), None, &to("no-such-role")).unwrap_err().contains("not found"));
    assert_eq!(
        rbac.check_binding_write(&UserInfo::new("root", [UserInfo::MASTERS.into()]), None, &to("cluster-admin")),
        Ok(())
    );
    rbac.observe(&json!({ "kind": "Role", "metadata": { "name": "binder", "namespace": "team" }, "rules": [
        { "apiGroups": [GROUP], "resources": ["clusterroles"], "resourceNames": ["cluster-admin"], "verbs": ["bind"] }] }));
    rbac.observe(&binding(Some("team"), "ada-binds", "Role", "binder", ada()));
    assert_eq!(rbac.check_binding_write(&user("ada"), None, &to("cluster-admin")), Ok(()));
}

#[test]
fn the_default_policy_gives_everyone_little_and_the_anonymous_less() {
    let rbac = default_cluster();
    let url = |user: &UserInfo, path: &str| rbac.authorize_url(user, "get", path).is_allowed();
    let (someone, nobody) = (user("ada"), UserInfo::anonymous());
    assert!(url(&someone, "/apis/apps/v1") && url(&someone, "/openapi/v3") && url(&someone, "/api"));
    assert!(url(&nobody, "/healthz") && url(&nobody, "/version") && url(&nobody, "/readyz"));
    assert!(!url(&nobody, "/api") && !url(&nobody, "/openapi/v3") && !url(&nobody, "/metrics"));
    assert!(may(&rbac, "ada", "create", "authorization.k8s.io", "selfsubjectaccessreviews", ""));
    assert!(!may(&rbac, "ada", "create", "authorization.k8s.io", "subjectaccessreviews", ""));
    assert!(!may(&rbac, "ada", "list", "", "namespaces", ""));
    let rules = rbac.aggregated_rules("kubeflow-admin").unwrap();
    let allows = |verb: &str, group: &str, resource: &str| {
        rules.iter().any(|r| r.allows(&ResourceAttributes::namespaced(verb, group, resource, "n")))
    };
    for (verb, resource) in [
        ("create", "pipelines"),
        ("terminate", "runs"),
        ("disable", "jobs"),
        ("archive", "experiments"),
        ("list", "runs"),
    ] {
        assert!(allows(verb, "pipelines.kubeflow.org", resource), "{verb} {resource}");
    }
    assert!(allows("create", "kubeflow.org", "notebooks") && allows("create", GROUP, "rolebindings"));
    let view = rbac.aggregated_rules("kubeflow-view").unwrap();
    assert!(!view.iter().any(|r| r.allows(&ResourceAttributes::namespaced(
        "create",
        "pipelines.kubeflow.org",
        "runs",
        "n"
    ))));
    assert!(!view.iter().any(|r| r.allows(&ResourceAttributes::namespaced("get", "", "secrets", "n"))));
}
