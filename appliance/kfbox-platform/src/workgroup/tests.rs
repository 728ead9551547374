//! The dashboard's API against the real API server in this process, with its own RBAC.

use super::*;
use axum::{body::Body, extract::Request};
use futures::future::BoxFuture;
use http::{Method, header};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kfbox_apiserver::ApiServer;
use kfbox_base::{Authorizer, BoxError, Decision, Readiness, Tasks, readiness::State as Ready};
use kube::{
    Client,
    api::{Patch, PatchParams, PostParams},
    runtime::wait,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tower::ServiceExt as _;

const OWNER: &str = "owner@x.org";

/// As the binary asks: by SubjectAccessReview.
struct Reviews(Client);

impl Authorizer for Reviews {
    fn authorize<'a>(
        &'a self,
        user: &'a UserInfo,
        wanted: &'a ResourceAttributes,
    ) -> BoxFuture<'a, Result<Decision, BoxError>> {
        Box::pin(async move {
            let review = serde_json::from_value(json!({"spec": {"user": user.username, "groups": user.groups,
                "resourceAttributes": {"verb": wanted.verb, "group": wanted.group, "resource": wanted.resource,
                    "subresource": wanted.subresource, "namespace": wanted.namespace, "name": wanted.name}}}))?;
            let api: Api<k8s_openapi::api::authorization::v1::SubjectAccessReview> = Api::all(self.0.clone());
            let allowed = api.create(&PostParams::default(), &review).await?.status.is_some_and(|s| s.allowed);
            Ok(if allowed { Decision::Allow } else { Decision::Deny("no".into()) })
        })
    }
}

struct World {
    client: Client,
    router: Router,
    tasks: Tasks,
    _dir: tempfile::TempDir,
}

async fn world(self_service: bool) -> World {
    let (dir, tasks, readiness) = (tempfile::tempdir().unwrap(), Tasks::new(), Readiness::default());
    let server = ApiServer::open(kfbox_apiserver::Config::new(dir.path().join("data")), &tasks).await.unwrap();
    let client = server.client();
    crate::start(client.clone(), crate::Config::default(), &tasks, &readiness);
    let mut states = readiness.subscribe();
    let ready = states.wait_for(|all| all.iter().all(|c| c.state == Ready::Ready));
    tokio::time::timeout(Duration::from_secs(60), ready).await.expect("ready in time").unwrap();
    let deps = Deps {
        client: client.clone(),
        authorizer: Arc::new(Reviews(client.clone())),
        self_service,
        groups_of: Arc::new(|who| (who == "root@x.org").then(|| names::ADMIN_GROUP.to_owned()).into_iter().collect()),
    };
    World { client, router: router(deps.clone()).merge(kfam::router(deps)), tasks, _dir: dir }
}

impl World {
    async fn ask(&self, user: &UserInfo, method: Method, path: &str, body: Value) -> (u16, Value) {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()))
            .unwrap();
        request.extensions_mut().insert(user.clone());
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn get(&self, user: &UserInfo, path: &str) -> (u16, Value) {
        self.ask(user, Method::GET, path, Value::Null).await
    }

    /// A profile with its namespace and bindings.
    async fn profile(&self, name: &str, owner: Value) {
        let spec = serde_json::from_value(json!({"owner": owner})).unwrap();
        let api: Api<Profile> = Api::all(self.client.clone());
        api.create(&PostParams::default(), &Profile::new(name, spec)).await.unwrap();
        let bound: Api<RoleBinding> = Api::namespaced(self.client.clone(), name);
        let there = wait::await_condition(bound, names::profile::OWNER_BINDING, |b: Option<&RoleBinding>| b.is_some());
        tokio::time::timeout(Duration::from_secs(30), there).await.unwrap().unwrap();
    }

    async fn end(self) {
        self.tasks.stop();
        assert_eq!(self.tasks.drain(Duration::from_secs(20)).await, Vec::<String>::new());
    }
}

fn person(name: &str) -> UserInfo {
    UserInfo::new(name, [])
}

fn binding(kind: &str, name: &str, namespace: &str, role: &str) -> Value {
    json!({"user": {"kind": kind, "name": name}, "referredNamespace": namespace,
        "roleRef": {"kind": "ClusterRole", "name": role}})
}

const BINDINGS: &str = "/kfam/v1/bindings";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contributors_come_see_and_go_as_in_upstreams_dashboard() {
    let w = world(false).await;
    w.profile("team-a", json!({"kind": "User", "name": OWNER})).await;
    let (owner, ann, stranger) = (person(OWNER), person("ann@x.org"), person("stranger@x.org"));
    let (code, env) = w.get(&owner, "/api/workgroup/env-info").await;
    assert_eq!(code, 200);
    assert_eq!(env["namespaces"], json!([{"user": OWNER, "namespace": "team-a", "role": "owner"}]));
    assert_eq!((&env["isClusterAdmin"], &env["platform"]["logoutUrl"]), (&json!(false), &json!("/oauth2/sign_out")));
    let exists = w.get(&owner, "/api/workgroup/exists").await.1;
    assert_eq!(
        exists,
        json!({"hasAuth": true, "user": "owner", "hasWorkgroup": true, "registrationFlowAllowed": false})
    );
    assert_eq!(w.get(&stranger, "/api/workgroup/exists").await.1["hasWorkgroup"], false);

    let add = "/api/workgroup/add-contributor/team-a";
    let name = |who: &str| json!({"contributor": who});
    assert_eq!(w.ask(&owner, Method::POST, add, name("ann@x.org")).await, (200, json!(["ann@x.org"])));
    assert_eq!(w.ask(&owner, Method::POST, add, name("ann@x.org")).await.0, 409);
    assert_eq!(w.ask(&stranger, Method::POST, add, name("stranger@x.org")).await.0, 403);
    assert_eq!(w.ask(&ann, Method::POST, add, name("stranger@x.org")).await.0, 403, "an editor is no owner");
    for (bad, says) in [(json!({}), "Missing contributor field."), (name("no address"), "valid email address")] {
        let (code, body) = w.ask(&owner, Method::POST, add, bad).await;
        assert!(code == 400 && body["error"].as_str().unwrap().contains(says), "{body}");
    }
    let (_, env) = w.get(&ann, "/api/workgroup/env-info").await;
    assert_eq!(env["namespaces"], json!([{"user": "ann@x.org", "namespace": "team-a", "role": "contributor"}]));
    let of = "/api/workgroup/get-contributors/team-a";
    assert_eq!(w.get(&owner, of).await, (200, json!(["ann@x.org"])));
    assert_eq!(w.get(&stranger, of).await, (200, json!([])));
    assert_eq!(w.get(&stranger, "/api/workgroup/get-contributors/nowhere").await, (200, json!([])));
    let all = "/api/workgroup/get-all-namespaces";
    assert_eq!(w.get(&owner, all).await.1, json!([["team-a", OWNER, "ann@x.org"]]));
    assert_eq!(w.get(&stranger, all).await.1, json!([]));

    let seen = async |user: &UserInfo| {
        let list = w.get(user, "/api/namespaces").await.1;
        let names = list.as_array().unwrap().iter().map(|n| n["metadata"]["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(seen(&ann).await, ["team-a"]);
    assert_eq!(seen(&stranger).await, Vec::<String>::new());
    let root = UserInfo::new("root@x.org", [names::ADMIN_GROUP.to_owned()]);
    assert!(seen(&root).await.contains(&"kube-system".to_owned()));
    assert_eq!(w.get(&ann, "/api/activities/team-a").await.0, 200);
    for namespace in ["team-a", "nowhere", "kube-system"] {
        assert_eq!(w.get(&stranger, &format!("/api/activities/{namespace}")).await.0, 403, "{namespace}");
    }
    assert_eq!(w.get(&ann, "/api/metrics/node").await, (405, json!({"error": "Operation not supported"})));
    assert_eq!(w.get(&ann, "/api/nothing").await.0, 404);
    assert_eq!(w.get(&UserInfo::anonymous(), "/api/nothing").await.0, 401);
    for path in ["exists", "env-info", "get-all-namespaces", "get-contributors/team-a"] {
        assert_eq!(w.get(&UserInfo::anonymous(), &format!("/api/workgroup/{path}")).await.0, 401);
    }

    let remove = "/api/workgroup/remove-contributor/team-a";
    assert_eq!(w.ask(&ann, Method::DELETE, remove, name("ann@x.org")).await.0, 403);
    assert_eq!(w.ask(&owner, Method::DELETE, remove, name("ann@x.org")).await, (200, json!([])));
    assert_eq!(w.ask(&owner, Method::DELETE, remove, name("ann@x.org")).await.0, 404);
    assert_eq!(w.get(&ann, "/api/activities/team-a").await.0, 403);
    w.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_belong_several_may_own_and_only_the_first_owner_deletes() {
    let w = world(false).await;
    w.profile("team-a", json!({"kind": "User", "name": OWNER})).await;
    w.profile("lab", json!({"kind": "Group", "name": "physicists"})).await;
    let (owner, second) = (person(OWNER), person("second@x.org"));
    let member = UserInfo::new("marie@x.org", ["physicists".to_owned()]);
    let (_, env) = w.get(&member, "/api/workgroup/env-info").await;
    assert_eq!(env["namespaces"], json!([{"user": "marie@x.org", "namespace": "lab", "role": "owner"}]));
    let bind = async |user: &UserInfo, wanted: Value| w.ask(user, Method::POST, BINDINGS, wanted).await.0;
    assert_eq!(bind(&member, binding("User", "pierre@x.org", "lab", "view")).await, 200, "a group owns its profile");
    assert_eq!(w.get(&person("pierre@x.org"), "/api/activities/lab").await.0, 200);

    assert_eq!(bind(&second, binding("User", "guest@x.org", "team-a", "edit")).await, 403);
    assert_eq!(bind(&owner, binding("User", "second@x.org", "team-a", "admin")).await, 200);
    assert_eq!(bind(&second, binding("Group", "physicists", "team-a", "edit")).await, 200, "a second owner binds");
    let (_, env) = w.get(&member, "/api/workgroup/env-info").await;
    let row = json!({"user": "marie@x.org", "namespace": "team-a", "role": "contributor"});
    assert!(env["namespaces"].as_array().unwrap().contains(&row), "{env}");
    let profile = "/kfam/v1/profiles/team-a";
    assert_eq!(w.ask(&second, Method::DELETE, profile, Value::Null).await.0, 403, "the profile is not theirs");
    let owners = binding("User", OWNER, "team-a", "admin");
    assert_eq!(w.ask(&second, Method::DELETE, BINDINGS, owners).await.0, 404, "nor can they put the owner out");

    // A right to write RoleBindings is less than the role of owners, and KFAM must not make it more.
    let rules = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "binder"},
        "rules": [{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["rolebindings"], "verbs": ["*"]}]});
    let roles: Api<k8s_openapi::api::rbac::v1::Role> = Api::namespaced(w.client.clone(), "team-a");
    roles.create(&PostParams::default(), &serde_json::from_value(rules).unwrap()).await.unwrap();
    let bound = json!({"metadata": {"name": "binder"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io",
        "kind": "Role", "name": "binder"}, "subjects": [{"kind": "User", "name": "binder@x.org",
        "apiGroup": "rbac.authorization.k8s.io"}]});
    let bindings: Api<RoleBinding> = Api::namespaced(w.client.clone(), "team-a");
    bindings.create(&PostParams::default(), &serde_json::from_value(bound).unwrap()).await.unwrap();
    assert_eq!(bind(&person("binder@x.org"), binding("User", "binder@x.org", "team-a", "admin")).await, 403);

    let root = UserInfo::new("root@x.org", [names::ADMIN_GROUP.to_owned()]);
    let admin = async |who: &str| w.get(&root, &format!("/kfam/v1/role/clusteradmin?user={who}")).await.1;
    assert_eq!((admin("root@x.org").await, admin(OWNER).await), (json!(true), json!(false)));
    assert_eq!(w.get(&root, "/api/workgroup/env-info").await.1["isClusterAdmin"], true);
    w.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_of_ones_own_can_be_made_and_removed_where_the_box_allows() {
    let closed = world(false).await;
    let new = person("new@x.org");
    let create = "/api/workgroup/create";
    assert_eq!(closed.ask(&new, Method::POST, create, json!({})).await.0, 403);
    closed.end().await;
    let w = world(true).await;
    assert_eq!(w.get(&new, "/api/workgroup/exists").await.1["registrationFlowAllowed"], true);
    assert_eq!(w.ask(&new, Method::POST, create, json!({"user": "other@x.org"})).await.0, 403);
    for kept in ["kubeflow-bob-x-org", "kubeflow-system"] {
        assert_eq!(w.ask(&new, Method::POST, create, json!({"namespace": kept})).await.0, 403, "{kept}");
    }
    let pod = person("system:serviceaccount:lab:default-editor");
    assert_eq!(w.ask(&pod, Method::POST, create, json!({"namespace": "pods"})).await.0, 403, "no person");
    let made = w.ask(&new, Method::POST, create, json!({"namespace": "new-lab"})).await;
    assert_eq!(made, (200, json!({"message": "Created namespace new-lab"})));
    assert_eq!(w.ask(&new, Method::POST, create, json!({})).await.0, 409, "one each");
    let nuke = "/api/workgroup/nuke-self";
    assert_eq!(w.ask(&person("nobody@x.org"), Method::DELETE, nuke, Value::Null).await.0, 404);
    let (code, body) = w.ask(&new, Method::DELETE, nuke, Value::Null).await;
    assert_eq!((code, &body["message"]), (200, &json!("Removed namespace/profile new-lab")));
    w.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_and_settings_are_the_administrators_config_map() {
    let w = world(false).await;
    let ann = person("ann@x.org");
    let links = "/api/dashboard-links";
    let settings = "/api/dashboard-settings";
    let (code, menu) = w.get(&ann, links).await;
    assert_eq!((code, &menu["menuLinks"][0]["items"][2]["link"]), (200, &json!("/runs")));
    for list in ["externalLinks", "quickLinks", "documentationItems"] {
        assert!(menu[list].is_array(), "{list}");
    }
    assert_eq!(w.get(&ann, settings).await, (200, json!({"DASHBOARD_FORCE_IFRAME": true})));

    // What an administrator wrote stays, also when the box starts again.
    let data = json!({"data": {"links": "{\"menuLinks\": []}", "settings": "no JSON"}});
    let maps: Api<ConfigMap> = Api::namespaced(w.client.clone(), "kubeflow");
    maps.patch("dashboard-config", &PatchParams::default(), &Patch::Merge(data)).await.unwrap();
    crate::setup::dashboard::install(&w.client).await.unwrap();
    assert_eq!(w.get(&ann, links).await, (200, json!({"menuLinks": []})));
    assert_eq!(w.get(&ann, settings).await, (500, json!({"error": "Cannot load dashboard settings"})));
    assert_eq!(w.get(&UserInfo::anonymous(), links).await.0, 401);
    w.end().await;
}

#[test]
fn addresses_are_judged_in_one_pass() {
    for good in ["a@x.org", "first.last+tag@mail.example-lab.org", "o'neil@localhost", "a@1.2"] {
        assert!(is_address(good), "{good}");
    }
    for bad in
        ["", "a", "@x.org", "a@", "a@-x.org", "a@x-.org", "a@x..org", "a b@x.org", "a@x.org\n", "a@b@c", "ä@x.org"]
    {
        assert!(!is_address(bad), "{bad}");
    }
    // Upstream's pattern backtracked for hours on such names.
    let began = Instant::now();
    for hostile in [format!("a@{}", "a-".repeat(500_000)), format!("a@{}!", "a.".repeat(500_000)), "!".repeat(1 << 20)]
    {
        assert!(!is_address(&hostile));
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
