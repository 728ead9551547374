//! What is read from people's objects, and what becomes of it in a real API server.

use super::{
    policy::{self, Asked},
    read::{self, PathMatch, Way},
    virtual_service::{self, Place},
    *,
};
use k8s_openapi::api::core::v1::Namespace;
use kfbox_apiserver::ApiServer;
use kfbox_base::{Readiness, UserInfo};
use kube::api::{DeleteParams, PostParams};

const HOST: &str = "lab.example";

fn place(config: &Config) -> Place<'_> {
    Place { namespace: "team-a", name: "x", hosts: &config.hosts, reserved: &config.reserved }
}

fn config() -> Config {
    Config {
        hosts: vec![HOST.into()],
        reserved: ["api", "apis", "kfam", "runs", "pipeline"].map(String::from).to_vec(),
        issuer: "http://lab.example/dex".into(),
    }
}

/// As upstream's notebook controller writes it.
fn notebook() -> Value {
    json!({
        "hosts": ["*"], "gateways": ["kubeflow/kubeflow-gateway"],
        "http": [{
            "match": [{"uri": {"prefix": "/notebook/team-a/nb/"}}],
            "rewrite": {"uri": "/notebook/team-a/nb/"},
            "headers": {"request": {"set": {}}},
            "route": [{"destination": {"host": "nb.team-a.svc.cluster.local", "port": {"number": 80}}}],
            "timeout": "300s",
        }],
    })
}

fn changed(mut spec: Value, path: &str, value: Value) -> Value {
    *spec.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = value;
    spec
}

fn with(mut spec: Value, path: &str, name: &str, value: Value) -> Value {
    spec.pointer_mut(path).unwrap_or_else(|| panic!("{path}"))[name] = value;
    spec
}

#[test]
fn a_notebooks_virtual_service_is_honoured_whole() {
    let config = config();
    let (ways, problems) = virtual_service::read(place(&config), &notebook());
    assert_eq!(problems, Vec::<String>::new());
    let [way] = ways.as_slice() else { panic!("{ways:?}") };
    assert_eq!((way.service.as_str(), way.port, way.timeout), ("nb", Some(80), Duration::from_secs(300)));
    let rest = way.path.rest("/notebook/team-a/nb/api/kernels").unwrap();
    assert_eq!(way.rewritten("", rest), "/notebook/team-a/nb/api/kernels");
    assert!(way.path.rest("/notebook/team-a/nb").is_none() && way.path.rest("/notebook/team-a/nbx/").is_none());
    let more = with(notebook(), "/http/0", "rewrite", json!({"uri": "/", "authority": "nb.local"}));
    let more = with(more, "/http/0", "headers", json!({"request": {"set": {"X-Mode": "a"}, "remove": ["x-old"]}}));
    let (ways, problems) = virtual_service::read(place(&config), &more);
    assert_eq!((ways.len(), problems.len()), (1, 0), "{problems:?}");
    assert_eq!(ways[0].rewritten("", "lab"), "/lab");
    assert_eq!(ways[0].request.set.len() + ways[0].request.remove.len(), 2);
    // Without the port's number, the Service's only one is meant.
    let short = changed(notebook(), "/http/0/route/0/destination", json!({"host": "nb"}));
    assert_eq!(virtual_service::read(place(&config), &short).0[0].port, None);
}

#[test]
fn what_would_lead_elsewhere_or_take_others_paths_is_not_taken() {
    let config = config();
    let uri = |prefix: &str| changed(notebook(), "/http/0/match/0/uri", json!({"prefix": prefix}));
    let host = |host: &str| changed(notebook(), "/http/0/route/0/destination/host", host.into());
    let rule = |name: &str, value: Value| with(notebook(), "/http/0", name, value);
    let set = |name: &str| rule("headers", json!({"request": {"set": {name: "x"}}}));
    let hostile = [
        // Paths of the platform, of everybody, of another namespace, and what looks like one's own.
        uri("/"),
        uri(""),
        uri("/pipeline"),
        uri("/dex/"),
        uri("/runs/team-a/"),
        uri("/apis/team-a/"),
        uri("/pipeline/team-a/"),
        uri("/notebook"),
        uri("/notebook/"),
        uri("/notebook/team-b/nb/"),
        uri("/notebook/team-ab/"),
        uri("//team-a/x"),
        uri("/notebook/team-a/../team-b/"),
        uri("/notebook/team-a/%2e%2e/team-b/"),
        uri("notebook/team-a/"),
        changed(notebook(), "/http/0/match/0/uri", json!({"regex": "/.*"})),
        changed(notebook(), "/http/0/match/0/uri", json!({"prefix": "/notebook/team-a/", "exact": "/x"})),
        // Other matches narrow a rule; without them it would take more.
        with(notebook(), "/http/0/match/0", "headers", json!({"x": {"exact": "y"}})),
        with(notebook(), "/http/0/match/0", "method", json!({"exact": "GET"})),
        changed(notebook(), "/http/0/match", json!([])),
        // Services of others, and what is no Service.
        host("nb.team-b.svc.cluster.local"),
        host("nb.team-b"),
        host("minio-service.kubeflow"),
        host("localhost.localdomain.example"),
        host("127.0.0.1"),
        host("169.254.169.254"),
        host("evil.example"),
        host("nb.team-a.svc.cluster.local.evil.example"),
        host(""),
        host("nb/../x"),
        changed(notebook(), "/http/0/route/0/destination/port/number", json!(0)),
        changed(notebook(), "/http/0/route/0/destination/port/number", json!(65536)),
        with(notebook(), "/http/0/route/0/destination", "subset", "v1".into()),
        changed(notebook(), "/http/0/route", json!([])),
        // What says who somebody is, or where a message ends.
        set("kubeflow-userid"),
        set("Kubeflow-Groups"),
        set("x-forwarded-user"),
        set("Host"),
        set("Transfer-Encoding"),
        set("Content-Length"),
        set("bad name"),
        rule("headers", json!({"request": {"set": {"x": "a\r\nkubeflow-userid: b"}}})),
        rule("headers", json!({"response": {"set": {"Set-Cookie": "oauth2_proxy_kubeflow=x"}}})),
        rule("rewrite", json!({"uri": "/../../x"})),
        rule("rewrite", json!({"uri": "http://evil.example/"})),
        rule("rewrite", json!({"uri": "/x?y"})),
        rule("rewrite", json!({"uriRegexRewrite": {"match": ".*", "rewrite": "/"}})),
        rule("redirect", json!({"uri": "/x"})),
        rule("mirror", json!({"host": "nb.team-b"})),
        rule("delegate", json!({"name": "x", "namespace": "team-b"})),
        rule("timeout", "soon".into()),
        // Not for this gateway.
        changed(notebook(), "/hosts", json!(["other.example"])),
        changed(notebook(), "/gateways", json!(["mesh"])),
        changed(notebook(), "/gateways", json!(["kubeflow-gateway"])),
        changed(notebook(), "/gateways", json!([])),
        json!({}),
        json!({"hosts": "*", "gateways": {}, "http": 3}),
        json!({"hosts": ["*"], "gateways": ["kubeflow/kubeflow-gateway"], "http": [null, 1, "x", []]}),
    ];
    for spec in hostile {
        let (ways, problems) = virtual_service::read(place(&config), &spec);
        assert!(ways.is_empty() && !problems.is_empty(), "{spec}: {ways:?}");
    }
    // What has no effect but does no harm is told, and the rest counts.
    let idle = rule("retries", json!({"attempts": 3}));
    let (ways, problems) = virtual_service::read(place(&config), &idle);
    assert!(ways.len() == 1 && problems[0].contains("retries has no effect"), "{problems:?}");
    let own_host = changed(notebook(), "/hosts", json!([HOST]));
    assert_eq!(virtual_service::read(place(&config), &own_host).0.len(), 1);
}

fn route() -> Value {
    json!({
        "parentRefs": [{"name": "kubeflow-gateway", "namespace": "kubeflow"}],
        "rules": [{
            "matches": [{"path": {"type": "PathPrefix", "value": "/spark/team-a"}}],
            "filters": [{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}}],
            "backendRefs": [{"name": "history", "port": 18080}],
        }],
    })
}

#[test]
fn an_http_route_is_honoured_or_refused_by_the_same_rules() {
    let config = config();
    let (ways, problems) = http_route::read(place(&config), &route());
    assert_eq!(problems, Vec::<String>::new());
    let way = &ways[0];
    for (path, wanted) in [("/spark/team-a", "/"), ("/spark/team-a/", "/"), ("/spark/team-a/x/y", "/x/y")] {
        assert_eq!(way.rewritten(path, way.path.rest(path).unwrap()), wanted);
    }
    assert!(way.path.rest("/spark/team-ab").is_none());
    let hostile = [
        changed(route(), "/rules/0/matches/0/path/value", "/pipeline".into()),
        changed(route(), "/rules/0/matches/0/path/value", "/spark/team-b".into()),
        changed(route(), "/rules/0/matches/0/path/type", "RegularExpression".into()),
        changed(route(), "/rules/0/matches", json!([])),
        with(route(), "/rules/0/matches/0", "headers", json!([{"name": "x", "value": "y"}])),
        with(route(), "/rules/0/backendRefs/0", "namespace", "team-b".into()),
        with(route(), "/rules/0/backendRefs/0", "kind", "ServiceImport".into()),
        with(route(), "/rules/0/backendRefs/0", "group", "multicluster.x-k8s.io".into()),
        changed(route(), "/rules/0/backendRefs/0/name", "history.team-b".into()),
        changed(route(), "/rules/0/backendRefs/0/port", Value::Null),
        changed(route(), "/rules/0/filters/0/type", "RequestMirror".into()),
        changed(
            route(),
            "/rules/0/filters",
            json!([{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "kubeflow-userid", "value": "x"}]}}]),
        ),
        changed(route(), "/parentRefs/0/namespace", "team-a".into()),
        with(route(), "", "hostnames", json!(["other.example"])),
    ];
    for spec in hostile {
        let (ways, problems) = http_route::read(place(&config), &spec);
        assert!(ways.is_empty() && !problems.is_empty(), "{spec}: {ways:?}");
    }
}

#[test]
fn policies_only_take_away_and_what_is_not_known_counts_against_the_request() {
    let (ann, bob) = (UserInfo::new("ann@x.org", ["staff".to_owned()]), UserInfo::new("bob@x.org", []));
    let labels: std::collections::BTreeMap<String, String> = [("app".to_owned(), "nb".to_owned())].into();
    let asks = |specs: &[Value], user: &UserInfo, method: &str, path: &str| {
        let policies: Vec<_> = specs.iter().map(|s| policy::read(s).0).collect();
        policy::admits(&policies, &labels, Asked { user, method, path })
    };
    // As upstream's profile controller writes it.
    let owner = json!({
        "action": "ALLOW",
        "rules": [
            {"from": [{"source": {"principals": ["cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account"]}}],
             "when": [{"key": "request.headers[kubeflow-userid]", "values": ["ann@x.org"]}]},
            {"when": [{"key": "source.namespace", "values": ["team-a"]}]},
            {"to": [{"operation": {"paths": ["/healthz", "/metrics"]}}]},
        ],
    });
    assert!(asks(&[], &bob, "GET", "/"));
    assert!(asks(std::slice::from_ref(&owner), &ann, "POST", "/x"));
    assert!(!asks(std::slice::from_ref(&owner), &bob, "GET", "/x"));
    assert!(asks(std::slice::from_ref(&owner), &bob, "GET", "/metrics"));
    let deny =
        json!({"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["DELETE"], "paths": ["/api/*"]}}]}]});
    assert!(!asks(&[owner.clone(), deny.clone()], &ann, "DELETE", "/api/x"));
    assert!(asks(&[owner.clone(), deny.clone()], &ann, "DELETE", "/y"));
    assert!(!asks(&[json!({})], &ann, "GET", "/"), "a policy without rules allows nothing");
    assert!(asks(&[json!({"action": "DENY"})], &ann, "GET", "/"), "and denies nothing");
    assert!(asks(&[json!({"rules": [{}]})], &ann, "GET", "/"));
    let group = json!({"rules": [{"when": [{"key": "request.headers[kubeflow-groups]", "values": ["staff"]}]}]});
    assert!(asks(std::slice::from_ref(&group), &ann, "GET", "/") && !asks(&[group], &bob, "GET", "/"));
    let not = json!({"action": "DENY", "rules": [{"to": [{"operation": {"notPaths": ["/public*"]}}]}]});
    assert!(!asks(std::slice::from_ref(&not), &ann, "GET", "/x") && asks(&[not], &ann, "GET", "/public/x"));
    // Only for other pods; and for who knows which.
    let other = with(json!({"rules": []}), "", "selector", json!({"matchLabels": {"app": "other"}}));
    assert!(asks(&[other], &ann, "GET", "/"));
    let perhaps = with(json!({"rules": []}), "", "selector", json!({"matchLabels": {"tier": "x"}}));
    assert!(!asks(&[perhaps], &ann, "GET", "/"));
    for unknown in [
        json!({"rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/8"]}}]}]}),
        json!({"rules": [{"when": [{"key": "request.headers[x]", "values": ["y"]}]}]}),
        json!({"rules": [{"sometimes": 1}]}),
        json!({"rules": [{"from": [{"sourse": {"principals": ["x"]}}]}]}),
        json!({"rules": [{"from": {"source": {"principals": ["x"]}}}]}),
        json!({"rules": [{"when": [{"key": "source.namespace"}]}]}),
        json!({"rules": [5]}),
        json!({"action": "DENY", "rules": {"to": [{"operation": {"paths": ["/"]}}]}}),
        json!({"action": "DENY", "rules": [{"to": [{"operation": {"paths": "/"}}]}]}),
        json!({"action": "DENY", "selector": {"matchLabels": {"app": 1}}, "rules": [{}]}),
        json!({"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["80"]}}]}]}),
        json!({"action": "CUSTOM", "provider": {"name": "x"}, "rules": [{}]}),
        json!({"action": "AUDIT"}),
        json!({"targetRefs": [{"name": "x"}], "rules": [{}]}),
    ] {
        assert!(!asks(std::slice::from_ref(&unknown), &ann, "GET", "/"), "{unknown}");
        assert!(!policy::read(&unknown).1.is_empty(), "{unknown} is told");
    }
}

#[test]
fn a_policy_is_told_how_far_it_reaches() {
    let rules = json!({"rules": [{}]});
    let told = |spec: &Value, routed: bool| policy::reach(policy::read(spec).1, "kubeflow", routed);
    assert_eq!(told(&rules, true), Vec::<String>::new());
    let unrouted = told(&rules, false);
    assert!(unrouted[0].contains("no route leads to a Service of kubeflow"), "{unrouted:?}");
    for odd in [
        json!({"action": "AUDIT", "rules": [{}]}),
        json!({"rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/8"]}}]}]}),
        json!({"selector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}, "rules": [{}]}),
    ] {
        let told = told(&odd, true);
        assert!(told.len() > 1 && told.last().unwrap().contains("only the Services of its own namespace"), "{told:?}");
    }
}

#[test]
fn an_authentication_is_told_of_all_that_it_hopes_for_beyond_the_boxs_own() {
    let issuer = config().issuer;
    let read = |spec: &Value| authentication::read(&issuer, spec);
    let own = json!({"jwtRules": [{"issuer": issuer, "forwardOriginalToken": false, "audiences": []}]});
    assert_eq!(read(&own), Vec::<String>::new());
    assert_eq!(read(&json!({})), Vec::<String>::new());
    let selected = with(own.clone(), "", "selector", json!({"matchLabels": {"app": "nb"}}));
    assert_eq!(read(&selected), ["spec.selector has no effect here"]);
    for (field, value) in [
        ("audiences", json!(["kubeflow"])),
        ("jwksUri", json!("https://lab.example/keys")),
        ("jwks", json!("{}")),
        ("fromHeaders", json!([{"name": "x-token"}])),
        ("fromParams", json!(["token"])),
        ("fromCookies", json!(["token"])),
        ("outputPayloadToHeader", json!("x-payload")),
        ("outputClaimToHeaders", json!([{"header": "x-claim", "claim": "sub"}])),
        ("forwardOriginalToken", json!(true)),
    ] {
        let told = read(&with(own.clone(), "/jwtRules/0", field, value));
        assert_eq!(told, [format!("spec.jwtRules[0].{field} has no effect here")]);
    }
    let unknown = read(&with(own.clone(), "/jwtRules/0", "isuer", json!("x")));
    assert_eq!(unknown, ["spec.jwtRules[0].isuer is not supported"]);
    assert!(read(&changed(own.clone(), "/jwtRules/0/issuer", json!("https://other.example")))[0].contains("refused"));
    assert_eq!(read(&changed(own, "/jwtRules", json!({"issuer": "x"}))), ["spec.jwtRules must be a list"]);
}

#[test]
fn durations_are_gos() {
    for (text, seconds) in [("300s", 300.0), ("5m", 300.0), ("1h30m", 5400.0), ("250ms", 0.25), ("1.5s", 1.5)] {
        assert_eq!(read::duration(text), Ok(Duration::from_secs_f64(seconds)));
    }
    assert!(read::duration("0s").unwrap() > Duration::from_secs(3600), "no limit");
    for text in ["", "x", "5", "5d", "-5s", "1e9h", "99999999999999999999h", "s", "5 s"] {
        let found = read::duration(text);
        assert!(found.is_err() || text.is_empty() || found.unwrap() <= Duration::from_secs(86400), "{text}");
    }
}

#[test]
fn an_exact_path_comes_first_then_the_longest() {
    let way = |path: PathMatch| Way { path, ..virtual_service::read(place(&config()), &notebook()).0.remove(0) };
    let prefix = |p: &str| way(PathMatch::Prefix(p.into()));
    let mut ways = [prefix("/a/team-a"), prefix("/a/team-a/x/y"), way(PathMatch::Exact("/a/team-a".into()))];
    order(&mut ways);
    let order: Vec<&str> = ways.iter().map(|w| w.path.text()).collect();
    assert_eq!(order, ["/a/team-a", "/a/team-a/x/y", "/a/team-a"]);
    assert!(matches!(ways[0].path, PathMatch::Exact(_)));
}

struct World {
    client: Client,
    routes: Routes,
    tasks: Tasks,
    _dir: tempfile::TempDir,
}

async fn world() -> World {
    let (dir, tasks, readiness) = (tempfile::tempdir().unwrap(), Tasks::new(), Readiness::default());
    let server = ApiServer::open(kfbox_apiserver::Config::new(dir.path().join("data")), &tasks).await.unwrap();
    let client = server.client();
    let settings = crate::Config { routes: config(), ..crate::Config::default() };
    let routes = crate::start(client.clone(), settings, &tasks, &readiness);
    let mut states = readiness.subscribe();
    let ready = states.wait_for(|all| all.iter().all(|c| c.state == kfbox_base::readiness::State::Ready));
    tokio::time::timeout(Duration::from_secs(60), ready).await.expect("ready in time").unwrap();
    World { client, routes, tasks, _dir: dir }
}

impl World {
    fn api(&self, definition: &Definition, version: &str) -> Api<DynamicObject> {
        let mut resource = definition.resource();
        resource.version = version.into();
        resource.api_version = format!("{}/{version}", definition.group);
        Api::namespaced_with(self.client.clone(), "team-a", &resource)
    }

    async fn make(&self, definition: &Definition, version: &str, name: &str, spec: Value) {
        let api = self.api(definition, version);
        let mut resource = definition.resource();
        resource.version = version.into();
        resource.api_version = format!("{}/{version}", definition.group);
        let object = DynamicObject::new(name, &resource).data(json!({"spec": spec}));
        api.create(&PostParams::default(), &object).await.unwrap();
    }

    /// The status of an object when it has conditions.
    async fn status(&self, definition: &Definition, name: &str) -> Value {
        let api = self.api(definition, "v1");
        let settled = |o: Option<&DynamicObject>| {
            let status = o.map(|o| o.data["status"].clone()).unwrap_or_default();
            !status["conditions"].is_null() || !status["parents"].is_null()
        };
        let wait = kube::runtime::wait::await_condition(api, name, settled);
        let found = tokio::time::timeout(Duration::from_secs(30), wait).await.expect("a status").unwrap();
        found.unwrap().data["status"].clone()
    }
}

#[tokio::test]
async fn objects_of_every_version_become_routes_and_their_status_says_what_counts() {
    let w = world().await;
    let namespaces: Api<Namespace> = Api::all(w.client.clone());
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "team-a"}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    w.make(&VIRTUAL_SERVICE, "v1alpha3", "nb", notebook()).await;
    assert_eq!(w.status(&VIRTUAL_SERVICE, "nb").await["conditions"][0]["status"], "True");
    let found = w.routes.find("/notebook/team-a/nb/lab").unwrap();
    assert_eq!((found.service.as_str(), found.path.as_str()), ("nb", "/notebook/team-a/nb/lab"));
    assert_eq!(w.routes.find("/notebook/team-b/nb/lab"), None);
    let hostile = changed(notebook(), "/http/0/match/0/uri/prefix", "/pipeline".into());
    w.make(&VIRTUAL_SERVICE, "v1beta1", "hostile", hostile).await;
    let status = w.status(&VIRTUAL_SERVICE, "hostile").await;
    let conditions = status["conditions"].as_array().unwrap();
    assert_eq!((&conditions[0]["type"], &conditions[0]["status"]), (&"Accepted".into(), &"False".into()));
    assert!(conditions[1]["message"].as_str().unwrap().contains("/WORD/team-a"), "{status}");
    w.make(&HTTP_ROUTE, "v1", "spark", route()).await;
    let status = w.status(&HTTP_ROUTE, "spark").await;
    assert_eq!(status["parents"][0]["controllerName"], CONTROLLER);
    assert_eq!(status["parents"][0]["conditions"][1]["type"], "ResolvedRefs");
    assert_eq!(w.routes.find("/spark/team-a").unwrap().path, "/");
    // Nothing answers yet, and that is told.
    let error = w.routes.backend(w.routes.find("/spark/team-a").unwrap().to(), false).await.unwrap_err();
    assert!(error.contains("no Service history"), "{error}");
    w.make(&REQUEST_AUTHENTICATION, "v1", "jwt", json!({"jwtRules": [{"issuer": "https://other.example"}]})).await;
    assert_eq!(w.status(&REQUEST_AUTHENTICATION, "jwt").await["conditions"][1]["type"], "Unsupported");
    // A policy counts as soon as it is told that it does, and no longer when it is gone.
    let user = UserInfo::new("ann@x.org", []);
    w.make(&AUTHORIZATION_POLICY, "v1beta1", "none", json!({})).await;
    assert_eq!(w.status(&AUTHORIZATION_POLICY, "none").await["conditions"][0]["status"], "True");
    let policies = w.routes.table.read().policies["team-a"].clone();
    assert!(!policy::admits(&policies, &Default::default(), Asked { user: &user, method: "GET", path: "/" }));
    w.api(&VIRTUAL_SERVICE, "v1").delete("nb", &DeleteParams::default()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), async {
        while w.routes.find("/notebook/team-a/nb/lab").is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("a route that is gone leads nowhere");
    w.tasks.stop();
}
