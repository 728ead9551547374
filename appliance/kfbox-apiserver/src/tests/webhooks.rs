//! Admission webhooks, called over real TLS on loopback.

use super::*;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};
use tokio::net::TcpListener;

/// What a webhook answers with: a status and a body.
type Answer = (u16, Vec<u8>);

/// A webhook on loopback.
pub struct Hook {
    pub port: u16,
    /// PEM, in base64, of the authority that signed its certificate.
    pub bundle: String,
    pub seen: Arc<Mutex<Vec<Value>>>,
    /// Connections that were made, and that are open.
    made: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    hang_up: Arc<tokio::sync::Notify>,
}

/// Serves `answer` for `names`. A closure that never returns is a server that hangs.
pub async fn hook<F, A>(world: &World, names: &[&str], answer: F) -> Hook
where
    F: Fn(Value) -> A + Send + Sync + Clone + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let bundle = STANDARD.encode(authority_certificate.pem());
    serve(world, vec![certificate.der().clone()], &key, bundle, answer).await
}

async fn serve<F, A>(
    world: &World,
    chain: Vec<rustls_pki_types::CertificateDer<'static>>,
    key: &KeyPair,
    bundle: String,
    answer: F,
) -> Hook
where
    F: Fn(Value) -> A + Send + Sync + Clone + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
    let (record, tasks) = (seen.clone(), world.tasks.clone());
    let (made, open, hang_up) =
        (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default(), Arc::<tokio::sync::Notify>::default());
    let (count, counted, ending) = (made.clone(), open.clone(), hang_up.clone());
    world.tasks.spawn("test-webhook", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer, record) = (acceptor.clone(), answer.clone(), record.clone());
            let (open, ending) = (counted.clone(), ending.clone());
            count.fetch_add(1, SeqCst);
            open.fetch_add(1, SeqCst);
            tasks.spawn("test-webhook-connection", async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    open.fetch_sub(1, SeqCst);
                    return;
                };
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (answer, record) = (answer.clone(), record.clone());
                    async move {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let review: Value = serde_json::from_slice(&body).unwrap();
                        record.lock().push(review.clone());
                        let (status, body) = answer(review).await;
                        let response = Response::builder().status(status).body(Full::new(Bytes::from(body)));
                        Ok::<_, Infallible>(response.unwrap())
                    }
                });
                let serving =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    _ = serving => {}
                    () = ending.notified() => {}
                }
                open.fetch_sub(1, SeqCst);
            });
        }
    });
    Hook { port, bundle, seen, made, open, hang_up }
}

impl Hook {
    pub fn client_config(&self) -> Value {
        json!({"url": format!("https://127.0.0.1:{}/hook", self.port), "caBundle": self.bundle})
    }

    fn webhook(&self, name: &str, change: Value) -> Value {
        let mut webhook = json!({
            "name": format!("{name}.example.com"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": self.client_config(),
            "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
        });
        for (field, value) in change.as_object().into_iter().flatten() {
            webhook[field] = value.clone();
        }
        webhook
    }

    /// Ends all connections, as a server does that restarts.
    async fn hang_up(&self) {
        self.hang_up.notify_waiters();
        while self.open.load(SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    }

    fn requests(&self) -> Vec<Value> {
        self.seen.lock().iter().map(|review| review["request"].clone()).collect()
    }
}

fn review(request: &Value, response: Value) -> Answer {
    let mut response = response;
    response["uid"] = request["request"]["uid"].clone();
    let review = json!({"apiVersion": request["apiVersion"], "kind": "AdmissionReview", "response": response});
    (200, review.to_string().into_bytes())
}

fn patched(request: &Value, operations: Value) -> Answer {
    let patch = STANDARD.encode(operations.to_string());
    review(request, json!({"allowed": true, "patchType": "JSONPatch", "patch": patch}))
}

const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn configure(world: &World, path: &str, name: &str, webhooks: Value) {
    let kind = if path == MUTATING { "MutatingWebhookConfiguration" } else { "ValidatingWebhookConfiguration" };
    let body = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": webhooks,
    });
    let (code, body) = world.post(path, body).await;
    assert_eq!(code, 201, "{body}");
}

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

#[tokio::test]
async fn a_mutating_webhook_sees_the_request_and_changes_the_object() {
    let world = world().await;
    let hook = hook(&world, &["127.0.0.1"], |request| async move {
        let answer = json!([
            {"op": "add", "path": "/metadata/labels", "value": {"seen": "yes"}},
            {"op": "add", "path": "/data/added", "value": "by webhook"},
            // What is the server's, or nobody's, stays as it was.
            {"op": "add", "path": "/metadata/uid", "value": "forged"},
            {"op": "add", "path": "/nonsense", "value": 1},
        ]);
        patched(&request, answer)
    })
    .await;
    configure(&world, MUTATING, "mutate", json!([hook.webhook("a", json!({}))])).await;
    let (code, made) = world.post(&format!("{MAPS}?fieldManager=me"), map("m", json!({"k": "v"}))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!((&made["data"]["added"], &made["metadata"]["labels"]["seen"]), (&json!("by webhook"), &json!("yes")));
    assert_ne!(made["metadata"]["uid"], "forged");
    assert!(made.get("nonsense").is_none());

    let request = &hook.requests()[0];
    assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(request["resource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!((&request["operation"], &request["name"]), (&json!("CREATE"), &json!("m")));
    assert_eq!((&request["namespace"], &request["dryRun"]), (&json!("default"), &json!(false)));
    assert_eq!(request["userInfo"]["username"], "admin");
    assert_eq!(request["options"]["fieldManager"], "me");
    assert_eq!((&request["object"]["data"]["k"], &request["oldObject"]), (&json!("v"), &Value::Null));

    let (code, changed) = world.merge(&format!("{MAPS}/m"), json!({"data": {"k": "w"}})).await;
    assert_eq!((code.as_u16(), &changed["data"]["k"]), (200, &json!("w")), "{changed}");
    let request = hook.requests().pop().unwrap();
    assert_eq!((&request["operation"], &request["oldObject"]["data"]["k"]), (&json!("UPDATE"), &json!("v")));
    assert_eq!(world.delete(&format!("{MAPS}/m"), Value::Null).await.0, 500, "a deletion has nothing to change");
    assert_eq!(world.delete(&format!("{MUTATING}/mutate"), Value::Null).await.0, 200);
    assert_eq!(world.delete(&format!("{MAPS}/m"), Value::Null).await.0, 200, "a removed webhook is not called");
}

#[tokio::test]
async fn a_validating_webhook_denies_in_its_own_words_and_warns() {
    let world = world().await;
    let hook = hook(&world, &["127.0.0.1"], |request| async move {
        let object = &request["request"]["object"];
        match object["data"]["do"].as_str().unwrap_or_default() {
            "explain" => review(
                &request,
                json!({"allowed": false, "status": {
                "message": "not on a Sunday", "reason": "Forbidden", "code": 403,
                "details": {"causes": [{"message": "it is one"}]}}}),
            ),
            "reason" => review(&request, json!({"allowed": false, "status": {"reason": "BecauseISaySo"}})),
            "success" => review(&request, json!({"allowed": false, "status": {"status": "Success", "code": 200}})),
            "warn" => review(&request, json!({"allowed": true, "warnings": ["take care\nplease"]})),
            "patch" => patched(&request, json!([])),
            _ => review(&request, json!({"allowed": true})),
        }
    })
    .await;
    configure(&world, VALIDATING, "deny", json!([hook.webhook("v", json!({}))])).await;
    let prefix = "admission webhook \"v.example.com\" denied the request";
    let (code, body) = world.post(MAPS, map("m", json!({"do": "explain"}))).await;
    assert_eq!((code.as_u16(), &body["reason"]), (403, &json!("Forbidden")));
    assert_eq!(body["message"], format!("{prefix}: not on a Sunday"));
    assert_eq!(body["details"]["causes"][0]["message"], "it is one");
    let (code, body) = world.post(MAPS, map("m", json!({"do": "reason"}))).await;
    assert_eq!((code.as_u16(), &body["message"]), (400, &json!(format!("{prefix}: BecauseISaySo"))));
    let (code, body) = world.post(MAPS, map("m", json!({"do": "success"}))).await;
    assert_eq!((code.as_u16(), &body["message"]), (400, &json!(format!("{prefix} without explanation"))));
    assert!(body.get("reason").is_none(), "{body}");
    let (code, body) = world.post(MAPS, map("m", json!({"do": "patch"}))).await;
    let why = "Internal error occurred: failed calling webhook \"v.example.com\": received invalid webhook response: \
               validating webhook may not return response.patch";
    assert_eq!((code.as_u16(), &body["message"]), (500, &json!(why)));
    let (code, headers, _) =
        world.request("POST", MAPS, &[("content-type", "application/json")], map("m", json!({"do": "warn"}))).await;
    assert_eq!(code, 201);
    let warning = headers.get("warning").unwrap().to_str().unwrap();
    assert!(warning.contains("take care"), "{warning}");
}

#[tokio::test]
async fn failures_refuse_or_are_passed_over_as_the_policy_says() {
    let world = world().await;
    let hook = hook(&world, &["127.0.0.1"], |request| async move {
        match request["request"]["object"]["data"]["do"].as_str().unwrap_or_default() {
            "hang" => std::future::pending().await,
            "rubbish" => (200, b"<html>".to_vec()),
            "huge" => (200, vec![b' '; 9 << 20]),
            "status" => (500, b"out of order".to_vec()),
            "missing" => (404, Vec::new()),
            "other" => {
                let answer = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                    "response": {"uid": "other", "allowed": true}});
                (200, answer.to_string().into_bytes())
            }
            "absent" => (200, b"{\"apiVersion\": \"admission.k8s.io/v1\", \"kind\": \"AdmissionReview\"}".to_vec()),
            "untyped" => review(&request, json!({"allowed": true, "patch": STANDARD.encode("[]")})),
            "undecodable" => {
                review(&request, json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode("{}")}))
            }
            "impossible" => patched(&request, json!([{"op": "remove", "path": "/data/absent"}])),
            _ => review(&request, json!({"allowed": true})),
        }
    })
    .await;
    configure(&world, MUTATING, "fail", json!([hook.webhook("f", json!({"timeoutSeconds": 1}))])).await;
    let url = format!("https://127.0.0.1:{}/hook?timeout=1s", hook.port);
    let failed = "failed calling webhook \"f.example.com\"";
    for (what, why) in [
        ("hang", format!("{failed}: failed to call webhook: Post \"{url}\": context deadline exceeded")),
        ("rubbish", format!("{failed}: failed to call webhook: couldn't get version/kind; json parse error")),
        ("huge", format!("{failed}: failed to call webhook: the response body is longer than 8388608 bytes")),
        (
            "status",
            format!("{failed}: failed to call webhook: an error on the server (\"out of order\") has prevented"),
        ),
        ("missing", format!("{failed}: failed to call webhook: the server could not find the requested resource")),
        ("other", format!("{failed}: received invalid webhook response: expected response.uid=")),
        ("absent", format!("{failed}: received invalid webhook response: webhook response was absent")),
        ("untyped", "webhook returned response.patch but not response.patchType".to_owned()),
        ("undecodable", format!("{failed}: received undecodable patch in webhook response")),
        ("impossible", "Internal error occurred: ".to_owned()),
    ] {
        let (code, body) = world.post(MAPS, map("m", json!({"do": what}))).await;
        let message = body["message"].as_str().unwrap();
        assert_eq!((code.as_u16(), &body["reason"]), (500, &json!("InternalError")), "{what}: {body}");
        assert!(message.starts_with("Internal error occurred: ") && message.contains(&why), "{what}: {message}");
    }
    assert_eq!(world.get(&format!("{MAPS}/m")).await.0, 404);

    assert_eq!(world.delete(&format!("{MUTATING}/fail"), Value::Null).await.0, 200);
    configure(
        &world,
        MUTATING,
        "open",
        json!([hook.webhook("f", json!({"timeoutSeconds": 1, "failurePolicy": "Ignore"}))]),
    )
    .await;
    for what in ["hang", "rubbish", "huge", "status", "other"] {
        let (code, body) = world.post(MAPS, map(what, json!({"do": what}))).await;
        assert_eq!(code, 201, "{what}: {body}");
    }
    // A refusal is no failure.
    let (code, _) = world.post(MAPS, map("m", json!({"do": "impossible"}))).await;
    assert_eq!(code, 500);
}

#[tokio::test]
async fn a_webhook_proves_who_it_is() {
    let world = world().await;
    let answer = |request: Value| async move { review(&request, json!({"allowed": true})) };
    let good = hook(&world, &["127.0.0.1"], answer).await;
    let misnamed = hook(&world, &["other.example.com"], answer).await;
    let mut config = good.client_config();
    config["caBundle"] = misnamed.bundle.clone().into();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let unknown = "tls: failed to verify certificate: x509: certificate signed by unknown authority";
    let cases = [
        (config, unknown.to_owned()),
        (misnamed.client_config(), "certificate is not valid for any names, but wanted to match 127.0.0.1".to_owned()),
        (
            json!({"url": format!("https://127.0.0.1:{gone}/"), "caBundle": good.bundle}),
            format!("dial tcp 127.0.0.1:{gone}: connect: connection refused"),
        ),
        (
            json!({"service": {"namespace": "default", "name": "absent"}, "caBundle": good.bundle}),
            "Post \"https://absent.default.svc:443/?timeout=10s\": service \"absent\" not found".to_owned(),
        ),
    ];
    for (config, why) in cases {
        configure(&world, VALIDATING, "tls", json!([good.webhook("t", json!({"clientConfig": config}))])).await;
        let (code, body) = world.post(MAPS, map("m", json!({}))).await;
        let message = body["message"].as_str().unwrap_or_default();
        assert_eq!(code, 500, "{body}");
        assert!(message.contains(&why), "{message}\n{why}");
        world.delete(&format!("{VALIDATING}/tls"), Value::Null).await;
    }
    assert!(good.requests().is_empty() && misnamed.requests().is_empty());
    configure(&world, VALIDATING, "tls", json!([good.webhook("t", json!({}))])).await;
    assert_eq!(world.post(MAPS, map("m", json!({}))).await.0, 201);
    assert_eq!(good.requests().len(), 1);
}

/// `openssl req -x509` makes one certificate that is its own authority; webhooks serve with it.
#[tokio::test]
async fn a_certificate_that_is_the_bundle_itself_is_trusted_until_its_end() {
    let world = world().await;
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let answer = |request: Value| async move { review(&request, json!({"allowed": true})) };
    let certificate = params.self_signed(&key).unwrap();
    let bundle = STANDARD.encode(certificate.pem());
    let hook = serve(&world, vec![certificate.der().clone()], &key, bundle, answer).await;
    configure(&world, VALIDATING, "own", json!([hook.webhook("o", json!({}))])).await;
    let (code, body) = world.post(MAPS, map("m", json!({}))).await;
    assert_eq!(code, 201, "{body}");

    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    let bundle = STANDARD.encode(certificate.pem());
    let old = serve(&world, vec![certificate.der().clone()], &key, bundle, answer).await;
    configure(&world, VALIDATING, "old", json!([old.webhook("o", json!({}))])).await;
    let (code, body) = world.post(MAPS, map("n", json!({}))).await;
    assert_eq!(code, 500);
    assert!(body["message"].as_str().unwrap().contains("certificate has expired or is not yet valid"), "{body}");
}

#[tokio::test]
async fn a_service_is_reached_by_its_endpoints_and_named_by_its_dns_name() {
    let world = world().await;
    let hook = hook(&world, &["hook.default.svc"], |request| async move {
        patched(&request, json!([{"op": "add", "path": "/data", "value": {"from": "service"}}]))
    })
    .await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook"},
        "spec": {"ports": [{"name": "https", "port": 443}]}});
    let (code, body) = world.post("/api/v1/namespaces/default/services", service).await;
    assert_eq!(code, 201, "{body}");
    let config =
        json!({"service": {"namespace": "default", "name": "hook", "path": "/mutate"}, "caBundle": hook.bundle});
    let webhook = hook.webhook("s", json!({"clientConfig": config, "admissionReviewVersions": ["v2", "v1beta1"]}));
    configure(&world, MUTATING, "service", json!([webhook])).await;
    let (code, body) = world.post(MAPS, map("m", json!({}))).await;
    let message = body["message"].as_str().unwrap_or_default();
    assert_eq!(code, 500, "{body}");
    assert!(message.ends_with("no endpoints available for service \"hook\""), "{message}");

    // Upstream forbids loopback addresses in slices; the store holds what the node's controllers write.
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "hook-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "hook"}},
        "ports": [{"name": "https", "port": hook.port}], "endpoints": [{"addresses": ["127.0.0.1"]}],
    });
    let collection = "endpointslices.discovery.k8s.io";
    let key = crate::store::Key::new("default", "hook-1");
    let encoded = crate::store::encode(collection, &slice);
    world.server.core().store.put(collection, key, crate::store::Expect::Absent, encoded).await.unwrap();
    let (code, made) = world.post(MAPS, map("m", json!({}))).await;
    assert_eq!((code.as_u16(), &made["data"]["from"]), (201, &json!("service")), "{made}");
    assert_eq!(hook.seen.lock()[0]["apiVersion"], "admission.k8s.io/v1beta1");

    // An endpoint that is none any more is not called, though a connection to it was kept.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut moved = slice.clone();
    moved["ports"][0]["port"] = gone.into();
    let key = crate::store::Key::new("default", "hook-1");
    let revision = world.server.core().store.get(collection, &key).unwrap().revision;
    let encoded = crate::store::encode(collection, &moved);
    world.server.core().store.put(collection, key, crate::store::Expect::Revision(revision), encoded).await.unwrap();
    let (code, body) = world.post(MAPS, map("n", json!({}))).await;
    assert_eq!(code, 500, "{body}");
    assert!(body["message"].as_str().unwrap().contains("connection refused"), "{body}");
    assert_eq!(hook.seen.lock().len(), 1);
}

#[tokio::test]
async fn calls_of_one_webhook_share_a_connection() {
    let world = world().await;
    let answer = |request: Value| async move { review(&request, json!({"allowed": true})) };
    let hook = hook(&world, &["127.0.0.1"], answer).await;
    configure(&world, VALIDATING, "kept", json!([hook.webhook("k", json!({}))])).await;
    for name in ["a", "b", "c"] {
        assert_eq!(world.post(MAPS, map(name, json!({}))).await.0, 201);
    }
    assert_eq!((hook.made.load(SeqCst), hook.requests().len()), (1, 3));

    // A server that hung up meanwhile is called anew, and once.
    hook.hang_up().await;
    let (code, body) = world.post(MAPS, map("d", json!({}))).await;
    assert_eq!(code, 201, "{body}");
    assert_eq!((hook.made.load(SeqCst), hook.requests().len()), (2, 4));

    // What was proved to one bundle is not proved to another.
    let other = self::hook(&world, &["127.0.0.1"], answer).await;
    let mut config = hook.client_config();
    config["caBundle"] = other.bundle.clone().into();
    let change = json!({"webhooks": [hook.webhook("k", json!({"clientConfig": config}))]});
    let (code, body) = world.merge(&format!("{VALIDATING}/kept"), change).await;
    assert_eq!(code, 200, "{body}");
    let (code, body) = world.post(MAPS, map("e", json!({}))).await;
    assert_eq!(code, 500, "{body}");
    assert!(body["message"].as_str().unwrap().contains("certificate signed by unknown authority"), "{body}");
    assert_eq!(hook.requests().len(), 4);

    // With its own bundle it answers again.
    let change = json!({"webhooks": [hook.webhook("k", json!({}))]});
    assert_eq!(world.merge(&format!("{VALIDATING}/kept"), change).await.0, 200);
    assert_eq!(world.post(MAPS, map("e", json!({}))).await.0, 201);
}

#[tokio::test]
async fn dry_runs_reach_only_webhooks_without_side_effects() {
    let world = world().await;
    let answer = |request: Value| async move { review(&request, json!({"allowed": true})) };
    let hook = hook(&world, &["127.0.0.1"], answer).await;
    configure(&world, VALIDATING, "dry", json!([hook.webhook("d", json!({"sideEffects": "NoneOnDryRun"}))])).await;
    assert_eq!(world.post(&format!("{MAPS}?dryRun=All"), map("m", json!({}))).await.0, 201);
    assert_eq!(hook.requests()[0]["dryRun"], true);
    assert_eq!(hook.requests()[0]["options"]["dryRun"], json!(["All"]));
    // Configurations of older versions may say Some; they are stored past today's validation.
    let collection = "validatingwebhookconfigurations.admissionregistration.k8s.io";
    let core = world.server.core();
    let key = crate::store::Key::new("", "dry");
    let mut stored = core.store.get(collection, &key).unwrap().value();
    stored["webhooks"][0]["sideEffects"] = "Some".into();
    stored["webhooks"][0]["failurePolicy"] = "Ignore".into();
    let encoded = crate::store::encode(collection, &stored);
    let revision = core.store.get(collection, &key).unwrap().revision;
    core.store.put(collection, key, crate::store::Expect::Revision(revision), encoded).await.unwrap();
    core.dynamic.load(&core.store);
    let (code, body) = world.post(&format!("{MAPS}?dryRun=All"), map("m", json!({}))).await;
    assert_eq!(code, 400);
    assert_eq!(body["message"], "admission webhook \"d.example.com\" does not support dry run");
    assert_eq!(hook.requests().len(), 1);
    assert_eq!(world.post(MAPS, map("m", json!({}))).await.0, 201);
}

#[tokio::test]
async fn webhooks_run_in_order_and_again_where_asked() {
    let world = world().await;
    let append = |word: &'static str| {
        move |request: Value| async move {
            let object = &request["request"]["object"];
            let trail = object["data"]["trail"].as_str().unwrap_or_default().to_owned();
            let has = |w: &str| trail.contains(w);
            // Each adds its word once; b also wants to see what c did.
            let word = if has(word) { if word == "b" && has("c") { "B" } else { "" } } else { word };
            if word.is_empty() || has(word) {
                return review(&request, json!({"allowed": true}));
            }
            patched(&request, json!([{"op": "add", "path": "/data/trail", "value": format!("{trail}{word}")}]))
        }
    };
    let a = hook(&world, &["127.0.0.1"], append("a")).await;
    let b = hook(&world, &["127.0.0.1"], append("b")).await;
    let c = hook(&world, &["127.0.0.1"], append("c")).await;
    // The order is that of the configurations' names, whatever the order of their creation.
    configure(&world, MUTATING, "z", json!([c.webhook("c", json!({}))])).await;
    configure(
        &world,
        MUTATING,
        "a",
        json!([a.webhook("a", json!({})), b.webhook("b", json!({"reinvocationPolicy": "IfNeeded"}))]),
    )
    .await;
    let (code, made) = world.post(MAPS, map("m", json!({"k": "v"}))).await;
    assert_eq!((code.as_u16(), &made["data"]["trail"]), (201, &json!("abcB")), "{made}");
    assert_eq!((a.requests().len(), b.requests().len(), c.requests().len()), (1, 2, 1));
}

#[tokio::test]
async fn rules_selectors_and_conditions_choose_the_requests() {
    let world = world().await;
    let answer = |request: Value| async move { review(&request, json!({"allowed": true})) };
    let hook = hook(&world, &["127.0.0.1"], answer).await;
    for (name, labels) in [("plain", json!({})), ("marked", json!({"team": "a"}))] {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        assert_eq!(world.post("/api/v1/namespaces", namespace).await.0, 201);
    }
    let rule = |groups: &str, resources: Value, scope: &str, operations: Value| {
        json!([{
        "operations": operations, "apiGroups": [groups], "apiVersions": ["*"], "resources": resources, "scope": scope}])
    };
    let config = json!([
        hook.webhook("ns", json!({"namespaceSelector": {"matchLabels": {"team": "a"}}})),
        hook.webhook(
            "object",
            json!({"objectSelector": {"matchExpressions": [{"key": "pick", "operator": "Exists"}]}})
        ),
        hook.webhook(
            "condition",
            json!({"matchConditions": [
            {"name": "named", "expression": "request.name == 'chosen'"},
            {"name": "user", "expression": "!('system:nodes' in request.userInfo.groups)"}]})
        ),
        hook.webhook("scale", json!({"rules": rule("apps", json!(["*/scale"]), "*", json!(["UPDATE"]))})),
        hook.webhook(
            "status",
            json!({"rules": rule("apps", json!(["deployments/*"]), "Namespaced", json!(["UPDATE"]))})
        ),
        hook.webhook("cluster", json!({"rules": rule("*", json!(["*"]), "Cluster", json!(["DELETE", "CREATE"]))})),
    ]);
    configure(&world, VALIDATING, "choose", config).await;
    let asked = || -> Vec<String> {
        let named =
            |r: &Value| format!("{} {}/{} {}", r["operation"], r["resource"]["resource"], r["subResource"], r["name"]);
        hook.seen.lock().drain(..).map(|review| named(&review["request"]).replace(['"'], "")).collect()
    };
    let maps = |namespace: &str| format!("/api/v1/namespaces/{namespace}/configmaps");
    world.post(&maps("plain"), map("m", json!({}))).await;
    assert_eq!(asked(), [""; 0]);
    world.post(&maps("marked"), map("m", json!({}))).await;
    assert_eq!(asked(), ["CREATE configmaps/null m"]);
    let mut picked = map("p", json!({}));
    picked["metadata"]["labels"] = json!({"pick": ""});
    world.post(&maps("plain"), picked).await;
    assert_eq!(asked(), ["CREATE configmaps/null p"]);
    // The old object counts too, and so does a deletion of all.
    world.request("DELETE", &maps("plain"), &[], Value::Null).await;
    assert_eq!(asked(), ["DELETE configmaps/null p"]);
    world.post(&maps("plain"), map("chosen", json!({}))).await;
    assert_eq!(asked(), ["CREATE configmaps/null chosen"]);

    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let deployments = "/apis/apps/v1/namespaces/plain/deployments";
    let (code, body) = world.post(deployments, deployment).await;
    assert_eq!(code, 201, "{body}");
    assert_eq!(asked(), [""; 0]);
    let (code, body) = world.merge(&format!("{deployments}/d/scale"), json!({"spec": {"replicas": 3}})).await;
    assert_eq!(code, 200, "{body}");
    let scale = hook.requests();
    assert_eq!(scale[0]["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    assert_eq!(
        (&scale[0]["object"]["spec"]["replicas"], &scale[0]["oldObject"]["spec"]["replicas"]),
        (&json!(3), &json!(1))
    );
    assert_eq!(asked(), ["UPDATE deployments/scale d", "UPDATE deployments/scale d"]);
    world.merge(&format!("{deployments}/d/status"), json!({"status": {"replicas": 1}})).await;
    assert_eq!(asked(), ["UPDATE deployments/status d"]);
    world.merge(&format!("{deployments}/d"), json!({"spec": {"replicas": 2}})).await;
    assert_eq!(asked(), ["UPDATE deployments/null d"]);

    let class =
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "c"}, "value": 1});
    assert_eq!(world.post("/apis/scheduling.k8s.io/v1/priorityclasses", class).await.0, 201);
    assert_eq!(asked(), ["CREATE priorityclasses/null c"]);
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "third"}});
    world.post("/api/v1/namespaces", namespace).await;
    assert_eq!(hook.requests()[0]["namespace"], "third");
    assert_eq!(asked(), ["CREATE namespaces/null third"]);
    // What configures admission is exempt from it: a bad webhook can always be removed.
    configure(&world, VALIDATING, "other", json!([])).await;
    assert_eq!(world.delete(&format!("{VALIDATING}/choose"), Value::Null).await.0, 200);
    assert_eq!(asked(), [""; 0]);
}

#[tokio::test]
async fn a_condition_that_fails_counts_as_the_policy_says() {
    let world = world().await;
    let answer = |request: Value| async move { review(&request, json!({"allowed": true})) };
    let hook = hook(&world, &["127.0.0.1"], answer).await;
    let condition = json!([{"name": "label", "expression": "object.metadata.labels.absent == 'x'"}]);
    configure(&world, VALIDATING, "fail", json!([hook.webhook("f", json!({"matchConditions": condition}))])).await;
    let (code, body) = world.post(MAPS, map("m", json!({}))).await;
    assert_eq!((code.as_u16(), &body["reason"]), (403, &json!("Forbidden")), "{body}");
    assert_eq!(
        body["message"],
        "configmaps \"m\" is forbidden: expression 'object.metadata.labels.absent == 'x'' resulted in error: no such key: \
         labels"
    );
    world.delete(&format!("{VALIDATING}/fail"), Value::Null).await;
    let open = hook.webhook("f", json!({"matchConditions": condition, "failurePolicy": "Ignore"}));
    configure(&world, VALIDATING, "open", json!([open])).await;
    assert_eq!(world.post(MAPS, map("m", json!({}))).await.0, 201);
    assert!(hook.requests().is_empty(), "an error excludes the webhook then");
    // A condition that is false excludes, whatever errors the others have.
    let both = json!([{"name": "a", "expression": "object.absent == 1"}, {"name": "b", "expression": "false"}]);
    configure(&world, VALIDATING, "both", json!([hook.webhook("b", json!({"matchConditions": both}))])).await;
    assert_eq!(world.post(MAPS, map("n", json!({}))).await.0, 201);
    assert!(hook.requests().is_empty());
}

#[tokio::test]
async fn pods_subresources_and_equivalent_versions_are_admitted() {
    let world = world().await;
    world.default_account().await;
    let hook = hook(&world, &["127.0.0.1"], |request| async move {
        let refused =
            request["request"]["operation"] == "CONNECT" || request["request"]["object"]["kind"] == "Eviction";
        review(&request, json!({"allowed": !refused, "status": {"message": "closed"}}))
    })
    .await;
    let rules = json!([
        {"operations": ["CONNECT", "CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
         "resources": ["pods/exec", "pods/eviction", "pods/binding", "pods/portforward"]},
        {"operations": ["CREATE"], "apiGroups": ["events.k8s.io"], "apiVersions": ["v1"], "resources": ["events"]}]);
    configure(&world, VALIDATING, "pods", json!([hook.webhook("p", json!({"rules": rules}))])).await;
    let api: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    api.create(&PostParams::default(), &pod("p")).await.unwrap();
    let path = "/api/v1/namespaces/default/pods/p";
    let (code, body) = world.get(&format!("{path}/exec?command=ls&command=-l&stdout=true&container=main")).await;
    assert_eq!(
        (code.as_u16(), &body["message"]),
        (400, &json!("admission webhook \"p.example.com\" denied the request: closed"))
    );
    let request = hook.requests().pop().unwrap();
    assert_eq!((&request["operation"], &request["subResource"]), (&json!("CONNECT"), &json!("exec")));
    assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "PodExecOptions"}));
    assert_eq!(request["object"]["command"], json!(["ls", "-l"]));
    assert_eq!(request["options"], Value::Null);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    assert_eq!(world.post(&format!("{path}/eviction"), eviction).await.0, 400);
    assert_eq!(world.get(path).await.0, 200);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"name": "n"}});
    assert_eq!(world.post(&format!("{path}/binding"), binding).await.0, 201);
    assert_eq!(hook.requests().pop().unwrap()["object"]["target"]["name"], "n");
    assert_eq!(hook.requests().len(), 3, "the pod itself is nobody's business");

    // The rule names the other group of the same objects; matchPolicy is Equivalent.
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "message": "said",
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "type": "Normal", "reason": "R"});
    let (code, body) = world.post("/api/v1/namespaces/default/events", event).await;
    assert_eq!(code, 201, "{body}");
    let request = hook.requests().pop().unwrap();
    assert_eq!(request["resource"], json!({"group": "events.k8s.io", "version": "v1", "resource": "events"}));
    assert_eq!(request["requestResource"], json!({"group": "", "version": "v1", "resource": "events"}));
    assert_eq!(
        (&request["object"]["note"], &request["object"]["apiVersion"]),
        (&json!("said"), &json!("events.k8s.io/v1"))
    );
}

#[tokio::test]
async fn configurations_that_cannot_work_are_refused() {
    let world = world().await;
    let answer = |request: Value| async move { review(&request, json!({"allowed": true})) };
    let hook = hook(&world, &["127.0.0.1"], answer).await;
    for (change, field) in [
        (
            json!({"matchConditions": [{"name": "x", "expression": "objekt.x"}]}),
            "webhooks[0].matchConditions[0].expression",
        ),
        (
            json!({"matchConditions": [{"name": "x", "expression": "1 + 1"}]}),
            "webhooks[0].matchConditions[0].expression",
        ),
        (
            json!({"matchConditions": [{"name": "x", "expression": "params.x"}]}),
            "webhooks[0].matchConditions[0].expression",
        ),
        (json!({"clientConfig": {"url": "http://127.0.0.1/"}}), "webhooks[0].clientConfig.url"),
        (json!({"clientConfig": {"url": "https://u:p@127.0.0.1/"}}), "webhooks[0].clientConfig.url"),
        (
            json!({"rules": [{"operations": ["*", "CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}),
            "webhooks[0].rules[0].operations",
        ),
        (
            json!({"rules": [{"operations": ["PATCH"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}),
            "webhooks[0].rules[0].operations[0]",
        ),
        (
            json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
            "webhooks[0].namespaceSelector.matchExpressions[0].values",
        ),
        (json!({"admissionReviewVersions": ["v2"]}), "webhooks[0].admissionReviewVersions"),
        (json!({"sideEffects": "Some"}), "webhooks[0].sideEffects"),
        (json!({"timeoutSeconds": 31}), "webhooks[0].timeoutSeconds"),
    ] {
        let body = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "bad"}, "webhooks": [hook.webhook("x", change.clone())]});
        let (code, body) = world.post(VALIDATING, body).await;
        assert_eq!(code, 422, "{change}: {body}");
        assert_eq!(body["details"]["causes"][0]["field"], field, "{body}");
    }
}

#[tokio::test]
async fn configurations_act_again_after_a_restart() {
    let world = world().await;
    let answer = |request: Value| async move { review(&request, json!({"allowed": false})) };
    let hook = hook(&world, &["127.0.0.1"], answer).await;
    configure(&world, VALIDATING, "deny", json!([hook.webhook("v", json!({}))])).await;
    let (again, tasks) = open(world.dir.path()).await;
    let again = World { client: again.client(), server: again, tasks, dir: tempfile::tempdir().unwrap() };
    assert_eq!(again.post(MAPS, map("m", json!({}))).await.0, 400);
}

#[tokio::test]
async fn what_a_webhook_injects_gets_what_the_others_have() {
    let world = world().await;
    world.default_account().await;
    let hook = hook(&world, &["127.0.0.1"], |request| async move {
        let side = json!({"name": "side", "image": "i", "resources": {"requests": {"cpu": "1"}}});
        patched(&request, json!([{"op": "add", "path": "/spec/containers/-", "value": side}]))
    })
    .await;
    let rules = json!([{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]);
    configure(&world, MUTATING, "inject", json!([hook.webhook("i", json!({"rules": rules}))])).await;
    let api: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    let made = serde_json::to_value(api.create(&PostParams::default(), &pod("p")).await.unwrap()).unwrap();
    let side = &made["spec"]["containers"][1];
    assert_eq!(side["volumeMounts"][0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount", "{made}");
    assert_eq!((&side["imagePullPolicy"], &made["status"]["qosClass"]), (&json!("Always"), &json!("Burstable")));
    assert_eq!(made["spec"]["volumes"].as_array().unwrap().len(), 1);
    assert_eq!(hook.requests().len(), 1, "it did not ask to be called again");
}
