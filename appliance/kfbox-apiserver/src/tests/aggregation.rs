//! APIServices: those that are made, and a real extension server behind one.

use super::*;
use crate::{aggregation, auth::Authority};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{RootCertStore, ServerConfig, crypto::aws_lc_rs, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{convert::Infallible, sync::Arc};
use tokio_util::sync::CancellationToken;

const APISERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const NAME: &str = "v1.ext.example.com";

/// Waits until an APIService is as wished; absent is null.
async fn until(world: &World, name: &str, wished: impl Fn(&Value) -> bool) -> Value {
    let store = &world.server.core().store;
    let (_, mut watcher) = store.list_and_watch(aggregation::COLLECTION, None);
    let wait = async {
        loop {
            let key = crate::store::Key::new("", name);
            let now = store.get(aggregation::COLLECTION, &key).map(|o| o.value()).unwrap_or_default();
            if wished(&now) {
                return now;
            }
            watcher.next().await.unwrap();
        }
    };
    let seen = tokio::time::timeout(std::time::Duration::from_secs(60), wait).await;
    match seen {
        Ok(seen) => seen,
        Err(_) => {
            panic!("{name} did not become what it should: {}", world.get(&format!("{APISERVICES}/{name}")).await.1)
        }
    }
}

fn available(object: &Value) -> (String, String) {
    let word = |field: &str| object["status"]["conditions"][0][field].as_str().unwrap_or_default().to_owned();
    (word("status"), word("reason"))
}

#[tokio::test]
async fn every_group_and_version_has_its_apiservice() {
    let world = world().await;
    let (_, list) = world.get(APISERVICES).await;
    let names: Vec<&str> =
        list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect();
    for name in ["v1.", "v1.apps", "v1.autoscaling", "v2.autoscaling", "v1.resource.k8s.io", "v1beta1.metrics.k8s.io"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert!(!names.contains(&"v1.apiregistration.k8s.io"), "upstream has none for itself");
    let (_, apps) = world.get(&format!("{APISERVICES}/v1.apps")).await;
    assert_eq!(apps["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    assert_eq!(
        apps["spec"],
        json!({"group": "apps", "version": "v1", "groupPriorityMinimum": 17800, "versionPriority": 15})
    );
    assert_eq!(apps["status"]["conditions"][0]["message"], "Local APIServices are always available");
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let (_, _, table) = world.request("GET", &format!("{APISERVICES}/v1.apps"), &table, Value::Null).await;
    assert_eq!(table["rows"][0]["cells"].as_array().unwrap()[1..3], [json!("Local"), json!("True")]);

    // What is served stays served, and registered.
    let uid = apps["metadata"]["uid"].clone();
    assert_eq!(world.delete(&format!("{APISERVICES}/v1.apps"), Value::Null).await.0, 200);
    assert_eq!(world.get("/apis/apps/v1").await.0, 200);
    until(&world, "v1.apps", |o| o["metadata"]["uid"].is_string() && o["metadata"]["uid"] != uid).await;
    world.merge(&format!("{APISERVICES}/v1.batch"), json!({"spec": {"versionPriority": 3}})).await;
    until(&world, "v1.batch", |o| o["spec"]["versionPriority"] == 15).await;

    // A definition's come and go with it.
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(world.post(crds, super::custom::definition()).await.0, 201);
    let made = until(&world, "v1beta1.example.com", Value::is_object).await;
    assert_eq!(made["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
    assert_eq!((&made["spec"]["groupPriorityMinimum"], &made["spec"]["versionPriority"]), (&json!(1000), &json!(100)));
    world.delete(&format!("{crds}/widgets.example.com"), Value::Null).await;
    until(&world, "v1beta1.example.com", Value::is_null).await;
    assert_eq!(world.get("/apis/example.com").await.0, 404);
}

/// What is as it should be is not written again.
#[tokio::test]
async fn a_restart_leaves_what_is_managed_alone() {
    let world = world().await;
    let managed = [
        aggregation::COLLECTION,
        "flowschemas.flowcontrol.apiserver.k8s.io",
        "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io",
        "configmaps",
    ];
    let revisions = |server: &ApiServer| -> Vec<(String, u64)> {
        let store = &server.core().store;
        let objects = managed.iter().flat_map(|c| store.list(c, None, None, None).unwrap().objects);
        objects.map(|o| (o.key.name.to_string(), o.revision)).collect()
    };
    let before = revisions(&world.server);
    assert!(before.len() > 40, "{before:?}");
    crate::bootstrap::ensure(world.server.core()).await.unwrap();
    let (again, _tasks) = open(world.dir.path()).await;
    assert_eq!(revisions(&again), before);
}

#[tokio::test]
async fn apiservices_that_make_no_sense_are_refused() {
    let world = world().await;
    let service = json!({"namespace": "default", "name": "ext"});
    let good = json!({"group": "ext.example.com", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10});
    for (change, field) in [
        (json!({"version": "v2"}), "metadata.name"),
        (json!({"groupPriorityMinimum": 0}), "spec.groupPriorityMinimum"),
        (json!({"versionPriority": 1001}), "spec.versionPriority"),
        (json!({"caBundle": "QQ=="}), "spec.caBundle"),
        (json!({"insecureSkipTLSVerify": true}), "spec.insecureSkipTLSVerify"),
        (json!({"service": service, "insecureSkipTLSVerify": true, "caBundle": "QQ=="}), "spec.insecureSkipTLSVerify"),
        (json!({"service": {"name": "ext"}}), "spec.service.namespace"),
        (json!({"service": {"name": "ext", "namespace": "default", "port": 70000}}), "spec.service.port"),
    ] {
        let mut spec = good.clone();
        for (name, value) in change.as_object().unwrap() {
            spec[name] = value.clone();
        }
        let object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": NAME}, "spec": spec});
        let (code, body) = world.post(APISERVICES, object).await;
        assert_eq!((code.as_u16(), &body["details"]["causes"][0]["field"]), (422, &json!(field)), "{body}");
    }
}

/// An API server of somebody else: it asks for the front proxy's certificate, and shows what reached it.
struct Extension {
    port: u16,
    ca: String,
    stop: CancellationToken,
}

async fn extension(world: &World, dir: &Path) -> Extension {
    let authority = Authority::load_or_create::<&str>(dir, &[]).unwrap();
    let (_, trust) = world.get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication").await;
    assert_eq!(trust["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    let mut roots = RootCertStore::empty();
    let front_proxy = trust["data"]["requestheader-client-ca-file"].as_str().unwrap();
    roots.add(CertificateDer::from_pem_slice(front_proxy.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let issued = authority.issue_server(&["ext.default.svc"]).unwrap();
    let chain = CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stop = CancellationToken::new();
    let (stopped, tasks) = (stop.clone(), world.tasks.clone());
    world.tasks.spawn("extension", async move {
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted.unwrap().0,
                () = stopped.cancelled() => return,
            };
            let (acceptor, echoes) = (acceptor.clone(), tasks.clone());
            tasks.spawn("extension-connection", async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(|mut request: Request<hyper::body::Incoming>| {
                    let upgrading = request.headers().contains_key("upgrade");
                    let echo = upgrading.then(|| hyper::upgrade::on(&mut request));
                    let tasks = echoes.clone();
                    async move {
                        let mut response = extension_answer(&request);
                        if let Some(echo) = echo {
                            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                            response.headers_mut().insert("connection", "Upgrade".parse().unwrap());
                            response.headers_mut().insert("upgrade", "echo".parse().unwrap());
                            *response.body_mut() = Full::default();
                            tasks.spawn("extension-echo", async move {
                                let (mut from, mut to) = tokio::io::split(TokioIo::new(echo.await.unwrap()));
                                drop(tokio::io::copy(&mut from, &mut to).await);
                            });
                        }
                        Ok::<_, Infallible>(response)
                    }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                drop(builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await);
            });
        }
    });
    Extension { port, ca: authority.ca_pem().to_owned(), stop }
}

fn extension_answer(request: &Request<hyper::body::Incoming>) -> Response<Full<bytes::Bytes>> {
    const DOCUMENT: &str = "/openapi/v3/apis/ext.example.com/v1";
    let header = |name: &str| -> Vec<String> {
        request.headers().get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    };
    let body = match request.uri().path() {
        "/apis/ext.example.com/v1" => json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "ext.example.com/v1", "resources": [
                {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "shortNames": ["th"], "verbs": ["get", "list"]},
                {"name": "things/status", "singularName": "", "namespaced": true, "kind": "Thing", "verbs": ["get"]},
            ],
        }),
        "/openapi/v3" => {
            json!({"paths": {"apis/ext.example.com/v1": {"serverRelativeURL": format!("{DOCUMENT}?hash=1")}}})
        }
        DOCUMENT => json!({"openapi": "3.0.0", "components": {"schemas": {"Thing": {"type": "object"}}}}),
        "/openapi/v2" => json!({
            "swagger": "2.0", "definitions": {"com.example.ext.v1.Thing": {"type": "object"}},
            "paths": {"/apis/ext.example.com/v1/things": {"get": {}}, "/apis/apps/v1/deployments": {"post": {}}},
        }),
        path => json!({
            "path": path, "query": request.uri().query(), "user": header("x-remote-user"),
            "groups": header("x-remote-group"), "authorization": header("authorization"), "host": header("host"),
        }),
    };
    Response::new(Full::new(body.to_string().into()))
}

fn external(port: u16) -> Value {
    json!({"metadata": {"name": "ext"}, "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}})
}

fn apiservice(port: u16, trust: Value) -> Value {
    let mut object = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": NAME},
        "spec": {"group": "ext.example.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 10,
            "service": {"namespace": "default", "name": "ext", "port": port}},
    });
    for (name, value) in trust.as_object().unwrap() {
        object["spec"][name] = value.clone();
    }
    object
}

fn encoded(pem: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(pem)
}

#[tokio::test]
async fn a_group_of_another_server_is_served_as_if_it_were_here() {
    let world = world().await;
    let dir = tempfile::tempdir().unwrap();
    let extension = extension(&world, dir.path()).await;
    let things = "/apis/ext.example.com/v1/namespaces/default/things";
    assert_eq!(world.get(things).await.0, 404);

    let (code, made) =
        world.post(APISERVICES, apiservice(extension.port, json!({"caBundle": encoded(&extension.ca)}))).await;
    assert_eq!(code, 201, "{made}");
    let seen = until(&world, NAME, |o| available(o).1 == "ServiceNotFound").await;
    assert_eq!(seen["status"]["conditions"][0]["message"], "service/ext in \"default\" is not present");
    let (code, body) = world.get(things).await;
    assert_eq!((code.as_u16(), &body), (503, &json!("service unavailable\n")), "as upstream says it");

    let (code, body) = world.post("/api/v1/namespaces/default/services", external(extension.port)).await;
    assert_eq!(code, 201, "{body}");
    until(&world, NAME, |o| available(o) == ("True".into(), "Passed".into())).await;
    let (code, body) = world.get(&format!("{things}?limit=5")).await;
    assert_eq!(code, 200, "{body}");
    assert_eq!((&body["path"], &body["query"], &body["user"]), (&json!(things), &json!("limit=5"), &json!(["admin"])));
    assert_eq!(body["groups"], json!(["system:masters", "system:authenticated"]));
    assert_eq!((&body["authorization"], &body["host"]), (&json!([]), &json!(["ext.default.svc"])));

    // Who may not is told so here, and the other server never hears of it.
    let mut request = Request::get(things).body(Body::empty()).unwrap();
    request.extensions_mut().insert(server::Local);
    request.extensions_mut().insert(UserInfo::new("ada", []));
    assert_eq!(world.server.call(request).await.status(), 403);

    // Discovery, in both forms.
    let (_, group) = world.get("/apis/ext.example.com").await;
    assert_eq!(group["preferredVersion"]["groupVersion"], "ext.example.com/v1");
    assert_eq!(world.get("/apis/ext.example.com/v1").await.1["resources"][0]["shortNames"], json!(["th"]));
    let accept = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let discovered = async || -> Value {
        let (_, _, all) = world.request("GET", "/apis", &accept, Value::Null).await;
        let items = all["items"].as_array().unwrap();
        let at = items.iter().position(|g| g["metadata"]["name"] == "ext.example.com").unwrap();
        let metrics = items.iter().position(|g| g["metadata"]["name"] == "metrics.k8s.io").unwrap();
        assert!(at < metrics, "by priority");
        items[at]["versions"][0].clone()
    };
    let version = discovered().await;
    assert_eq!((&version["freshness"], &version["resources"][0]["resource"]), (&json!("Current"), &json!("things")));
    assert_eq!(version["resources"][0]["subresources"][0]["subresource"], "status");

    // OpenAPI.
    let (_, index) = world.get("/openapi/v3").await;
    let url = index["paths"]["apis/ext.example.com/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    assert_eq!(url, "/openapi/v3/apis/ext.example.com/v1?hash=1");
    assert_eq!(world.get(&url).await.1["components"]["schemas"]["Thing"]["type"], "object");
    let (_, v2) = world.get("/openapi/v2").await;
    assert_eq!(v2["definitions"]["com.example.ext.v1.Thing"]["type"], "object");
    assert!(v2["paths"]["/apis/ext.example.com/v1/things"].is_object());
    assert!(v2["paths"]["/apis/apps/v1/deployments"]["post"].is_null(), "only its own part is taken");

    // It stops: told at the next probe, which a change of its Service brings on.
    extension.stop.cancel();
    let (code, _) =
        world.merge("/api/v1/namespaces/default/services/ext", json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!(code, 200);
    let seen = until(&world, NAME, |o| available(o).0 == "False").await;
    assert_eq!(available(&seen).1, "FailedDiscoveryCheck", "{seen}");
    assert_eq!(world.get(things).await.0, 503);
    assert_eq!(discovered().await["freshness"], "Stale");
    // Whoever discovers everything in one request, as the garbage collector does, still learns of the rest.
    let all = kube::discovery::Discovery::new(world.client.clone()).run_aggregated().await.unwrap();
    let apps = all.get("apps").unwrap().recommended_resources();
    assert!(apps.iter().any(|(r, c)| r.kind == "Deployment" && r.group == "apps" && c.supports_operation("watch")));
    assert!(all.get("").unwrap().recommended_resources().iter().any(|(r, _)| r.kind == "Pod" && r.version == "v1"));

    assert_eq!(world.delete(&format!("{APISERVICES}/{NAME}"), Value::Null).await.0, 200);
    assert_eq!(world.get("/apis/ext.example.com").await.0, 404);
    assert_eq!(world.get(things).await.0, 404);
    let (_, v2) = world.get("/openapi/v2").await;
    assert!(v2["definitions"]["com.example.ext.v1.Thing"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_goes_through_to_the_other_server() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = world().await;
    let dir = tempfile::tempdir().unwrap();
    let extension = extension(&world, dir.path()).await;
    world.post("/api/v1/namespaces/default/services", external(extension.port)).await;
    world.post(APISERVICES, apiservice(extension.port, json!({"caBundle": encoded(&extension.ca)}))).await;
    until(&world, NAME, |o| available(o).0 == "True").await;
    let client = world.remote(|_| {}).await;
    let request = Request::get("/apis/ext.example.com/v1/namespaces/default/things/t/talk")
        .header("connection", "Upgrade")
        .header("upgrade", "echo")
        .body(kube::client::Body::empty())
        .unwrap();
    let response = client.send(request).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["upgrade"]), (101, &"echo".parse().unwrap()));
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    // More than fits in a buffer, and both ways at once.
    let sent: Vec<u8> = (0..1_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let (mut from, mut to) = tokio::io::split(&mut stream);
    let mut heard = vec![0; sent.len()];
    let (written, read) = tokio::join!(to.write_all(&sent), from.read_exact(&mut heard));
    written.unwrap();
    read.unwrap();
    assert!(heard == sent);
}

#[tokio::test]
async fn another_server_must_prove_who_it_is() {
    let world = world().await;
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let extension = extension(&world, dir.path()).await;
    world.post("/api/v1/namespaces/default/services", external(extension.port)).await;
    let stranger = Authority::load_or_create::<&str>(elsewhere.path(), &[]).unwrap();
    world.post(APISERVICES, apiservice(extension.port, json!({"caBundle": encoded(stranger.ca_pem())}))).await;
    let seen = until(&world, NAME, |o| available(o).0 == "False").await;
    assert!(seen["status"]["conditions"][0]["message"].as_str().unwrap().contains("tls"), "{seen}");
    // Unless the administrator says otherwise.
    let insecure = json!({"spec": {"caBundle": null, "insecureSkipTLSVerify": true}});
    let (code, body) = world.merge(&format!("{APISERVICES}/{NAME}"), insecure).await;
    assert_eq!(code, 200, "{body}");
    until(&world, NAME, |o| available(o).0 == "True").await;
    // A port that the Service does not have.
    let cluster_ip = json!({"metadata": {"name": "other"}, "spec": {"ports": [{"port": 443}]}});
    assert_eq!(world.post("/api/v1/namespaces/default/services", cluster_ip).await.0, 201);
    for (port, reason) in [(444, "ServicePortError"), (443, "EndpointsNotFound")] {
        let moved = json!({"spec": {"service": {"name": "other", "port": port}}});
        world.merge(&format!("{APISERVICES}/{NAME}"), moved).await;
        until(&world, NAME, |o| available(o).1 == reason).await;
    }
    let slice = json!({
        "metadata": {"name": "other-1", "labels": {"kubernetes.io/service-name": "other"}}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.9.9.9"], "conditions": {"ready": false}}], "ports": [{"name": "", "port": 6443}],
    });
    let (code, body) = world.post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await;
    assert_eq!(code, 201, "{body}");
    until(&world, NAME, |o| available(o).1 == "MissingEndpoints").await;
}
