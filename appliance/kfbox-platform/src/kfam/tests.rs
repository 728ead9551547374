//! KFAM against an API server in miniature: enough REST for profiles and role bindings, in process.

use super::*;
use axum::{
    body::Body,
    extract::Request,
    http::{Method, Uri, header},
};
use futures::future::BoxFuture;
use kfbox_base::Decision;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tower::ServiceExt as _;

type Objects = Arc<parking_lot::Mutex<BTreeMap<String, Value>>>;

/// Create, get, list and delete by path. It is a double of the API server for these four verbs only.
async fn api(State(objects): State<Objects>, method: Method, uri: Uri, body: String) -> Response {
    let path = uri.path().to_owned();
    let mut objects = objects.lock();
    let missing = || {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
            "message": "not found", "metadata": {}});
        (StatusCode::NOT_FOUND, Json(status)).into_response()
    };
    match method {
        Method::POST => {
            let object: Value = serde_json::from_str(&body).unwrap();
            let key = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
            objects.insert(key, object.clone());
            (StatusCode::CREATED, Json(object)).into_response()
        }
        Method::DELETE => objects.remove(&path).map_or_else(missing, |object| Json(object).into_response()),
        _ if path.ends_with("profiles") || path.ends_with("rolebindings") => {
            let prefix = format!("{path}/");
            let items: Vec<Value> =
                objects.iter().filter(|(k, _)| k.starts_with(&prefix)).map(|(_, v)| v.clone()).collect();
            Json(json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items})).into_response()
        }
        _ => objects.get(&path).map_or_else(missing, |object| Json(object.clone()).into_response()),
    }
}

/// `admin@x.org` may do everything, nobody else anything.
struct OnlyAdmin;

impl Authorizer for OnlyAdmin {
    fn authorize<'a>(
        &'a self,
        user: &'a UserInfo,
        _: &'a ResourceAttributes,
    ) -> BoxFuture<'a, Result<Decision, kfbox_base::BoxError>> {
        let allowed = user.username == "admin@x.org";
        Box::pin(async move { Ok(if allowed { Decision::Allow } else { Decision::Deny("no".into()) }) })
    }
}

struct World {
    router: Router,
    objects: Objects,
}

fn world(self_service: bool) -> World {
    let objects = Objects::default();
    for (name, owner) in [("team-a", "a@x.org"), ("team-b", "b@x.org")] {
        objects.lock().insert(
            format!("/apis/kubeflow.org/v1/profiles/{name}"),
            json!({"apiVersion": "kubeflow.org/v1", "kind": "Profile", "metadata": {"name": name},
                "spec": {"owner": {"kind": "User", "name": owner}}}),
        );
        objects.lock().insert(
            format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{name}/rolebindings/namespaceAdmin"),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": "namespaceAdmin", "namespace": name, "annotations": {"user": owner, "role": "admin"},
                    "ownerReferences": [{"apiVersion": "kubeflow.org/v1", "kind": "Profile", "name": name, "uid": "u"}]},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "kubeflow-admin"},
                "subjects": [{"kind": "User", "name": owner, "apiGroup": "rbac.authorization.k8s.io"}]}),
        );
    }
    let service = Router::new().fallback(api).with_state(objects.clone());
    let client = Client::new(service.map_request(|r: http::Request<kube::client::Body>| r.map(Body::new)), "default");
    let deps = Deps { client, authorizer: Arc::new(OnlyAdmin), self_service, groups_of: Arc::new(|_| Vec::new()) };
    World { router: router(deps), objects }
}

impl World {
    async fn ask(&self, user: &str, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()))
            .unwrap();
        if !user.is_empty() {
            request.extensions_mut().insert(UserInfo::new(user, []));
        }
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }
}

fn binding(user: &str, namespace: &str, role: &str) -> Value {
    json!({"user": {"kind": "User", "name": user}, "referredNamespace": namespace,
        "roleRef": {"kind": "ClusterRole", "name": role}})
}

const BINDINGS: &str = "/kfam/v1/bindings";

#[tokio::test]
async fn only_the_owner_or_an_administrator_binds_and_unbinds() {
    let w = world(false);
    let wanted = binding("guest@x.org", "team-a", "edit");
    for stranger in ["b@x.org", "guest@x.org"] {
        assert_eq!(w.ask(stranger, Method::POST, BINDINGS, wanted.clone()).await.0, StatusCode::FORBIDDEN);
    }
    assert_eq!(w.ask("", Method::POST, BINDINGS, wanted.clone()).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(w.ask("a@x.org", Method::POST, BINDINGS, wanted.clone()).await.0, StatusCode::OK);
    assert_eq!(w.ask("a@x.org", Method::POST, BINDINGS, wanted.clone()).await.0, StatusCode::CONFLICT);
    let made = w.objects.lock()
        ["/apis/rbac.authorization.k8s.io/v1/namespaces/team-a/rolebindings/user-guest-x-org-clusterrole-edit"]
        .clone();
    assert_eq!(made["roleRef"]["name"], "kubeflow-edit");
    assert_eq!(made["metadata"]["annotations"], json!({"user": "guest@x.org", "role": "edit"}));
    // The same name by upstream's rule, another person.
    assert_eq!(
        w.ask("admin@x.org", Method::POST, BINDINGS, binding("guest.x@org", "team-a", "edit")).await.0,
        StatusCode::OK
    );
    assert_eq!(w.ask("guest@x.org", Method::DELETE, BINDINGS, wanted.clone()).await.0, StatusCode::FORBIDDEN);
    assert_eq!(w.ask("a@x.org", Method::DELETE, BINDINGS, wanted.clone()).await.0, StatusCode::OK);
    assert_eq!(w.ask("a@x.org", Method::DELETE, BINDINGS, wanted).await.0, StatusCode::NOT_FOUND);
    // The owner's own binding belongs to the profile.
    let owners = binding("a@x.org", "team-a", "admin");
    assert_eq!(w.ask("admin@x.org", Method::DELETE, BINDINGS, owners).await.0, StatusCode::NOT_FOUND);
    assert!(w.objects.lock().keys().any(|k| k.ends_with("namespaceAdmin")));
    // Neither an unknown namespace nor a system one.
    for namespace in ["kube-system", "nowhere", "../kube-system", ""] {
        let (status, _) = w.ask("a@x.org", Method::POST, BINDINGS, binding("guest@x.org", namespace, "edit")).await;
        assert!(matches!(status, StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST), "{namespace} {status}");
    }
}

#[tokio::test]
async fn bindings_to_other_roles_or_system_names_are_refused() {
    let w = world(false);
    let mut service_account = binding("x", "team-a", "edit");
    service_account["user"]["kind"] = "ServiceAccount".into();
    for bad in [
        binding("x@x.org", "team-a", "cluster-admin"),
        binding("system:anonymous", "team-a", "view"),
        binding("", "team-a", "view"),
        service_account,
        json!({}),
        json!("x"),
    ] {
        let status = w.ask("a@x.org", Method::POST, BINDINGS, bad.clone()).await.0;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{bad}");
    }
}

#[tokio::test]
async fn a_listing_shows_what_the_caller_may_see() {
    let w = world(false);
    w.ask("a@x.org", Method::POST, BINDINGS, binding("b@x.org", "team-a", "view")).await;
    w.ask("a@x.org", Method::POST, BINDINGS, binding("c@x.org", "team-a", "view")).await;
    w.ask("a@x.org", Method::POST, BINDINGS, binding("b@x.org", "team-a", "edit")).await;
    let seen = async |user: &str, query: &str| {
        let (status, body) = w.ask(user, Method::GET, &format!("{BINDINGS}{query}"), Value::Null).await;
        assert_eq!(status, StatusCode::OK);
        let list = body["bindings"].as_array().unwrap().iter().map(|b| {
            let text = |v: &Value| v.as_str().unwrap().to_owned();
            (text(&b["referredNamespace"]), text(&b["user"]["name"]), text(&b["roleRef"]["name"]))
        });
        let mut list: Vec<_> = list.collect();
        list.sort();
        list
    };
    let row = |ns: &str, user: &str, role: &str| (ns.to_owned(), user.to_owned(), role.to_owned());
    assert_eq!(seen("c@x.org", "").await, [row("team-a", "c@x.org", "view")]);
    assert_eq!(seen("c@x.org", "?user=b@x.org").await, []);
    assert_eq!(seen("c@x.org", "?namespace=team-b").await, []);
    assert_eq!(seen("a@x.org", "?namespace=team-a").await.len(), 4);
    let strongest = [row("team-a", "b@x.org", "edit"), row("team-b", "b@x.org", "admin")];
    assert_eq!(seen("b@x.org", "?user=b@x.org").await, strongest);
    assert_eq!(seen("admin@x.org", "?role=kubeflow-admin").await.len(), 2);
}

#[tokio::test]
async fn nobody_makes_a_profile_for_somebody_else() {
    let make = |owner: &str| {
        json!({"metadata": {"name": "new"}, "spec": {"owner": {"kind": "User", "name": owner},
        "resourceQuotaSpec": {"hard": {"cpu": "1000"}}}})
    };
    let path = "/kfam/v1/profiles";
    let closed = world(false);
    assert_eq!(closed.ask("c@x.org", Method::POST, path, make("c@x.org")).await.0, StatusCode::FORBIDDEN);
    assert_eq!(closed.ask("admin@x.org", Method::POST, path, make("c@x.org")).await.0, StatusCode::OK);
    let open = world(true);
    assert_eq!(open.ask("c@x.org", Method::POST, path, make("d@x.org")).await.0, StatusCode::FORBIDDEN);
    assert_eq!(open.ask("a@x.org", Method::POST, path, make("a@x.org")).await.0, StatusCode::CONFLICT);
    assert_eq!(open.ask("c@x.org", Method::POST, path, make("c@x.org")).await.0, StatusCode::OK);
    assert_eq!(open.objects.lock()["/apis/kubeflow.org/v1/profiles/new"]["spec"]["resourceQuotaSpec"], Value::Null);
    assert_eq!(
        open.ask("b@x.org", Method::DELETE, "/kfam/v1/profiles/team-a", Value::Null).await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(open.ask("a@x.org", Method::DELETE, "/kfam/v1/profiles/team-a", Value::Null).await.0, StatusCode::OK);
}

#[tokio::test]
async fn cluster_admin_is_told_about_oneself_only() {
    let w = world(false);
    let path = "/kfam/v1/role/clusteradmin";
    assert_eq!(w.ask("admin@x.org", Method::GET, path, Value::Null).await.1, json!(true));
    assert_eq!(w.ask("a@x.org", Method::GET, &format!("{path}?user=a@x.org"), Value::Null).await.1, json!(false));
    assert_eq!(
        w.ask("a@x.org", Method::GET, &format!("{path}?user=admin@x.org"), Value::Null).await.0,
        StatusCode::FORBIDDEN
    );
}
