//! People's Services behind the gateway, with real servers in the pods' place.

use super::*;
use crate::user_routes::{Asked, Backend, HeaderChanges, NoBackend, UserRoute, UserRoutes, UserServices};
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kfbox_base::{Authorizer, Decision, ResourceAttributes};
use parking_lot::Mutex;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const OTHER: &str = "other@example.com";

/// One way, `/app/team-a/…`, to the addresses in turn.
#[derive(Default)]
pub(super) struct Ways {
    backends: Mutex<Vec<Backend>>,
    timeout: Option<Duration>,
    denied: Option<Method>,
    asked_again: AtomicUsize,
}

impl UserRoutes for Ways {
    fn find(&self, path: &str) -> Option<UserRoute> {
        let rest = path.strip_prefix("/app/team-a/").or_else(|| path.strip_prefix("/dex/team-a/"));
        let rest = rest.or_else(|| path.strip_prefix("/runs/team-a/"))?;
        let set = |name: &'static str, value: &'static str| (name.parse().unwrap(), value.parse().unwrap());
        Some(UserRoute {
            namespace: "team-a".into(),
            service: "web".into(),
            port: Some(80),
            path: format!("/{rest}"),
            host: None,
            request: HeaderChanges { set: vec![set("x-mode", "lab")], ..HeaderChanges::default() },
            response: HeaderChanges { remove: vec!["x-secret".parse().unwrap()], ..HeaderChanges::default() },
            timeout: self.timeout.unwrap_or(Duration::from_secs(20)),
        })
    }

    fn admits<'a>(&'a self, _: &'a UserRoute, asked: Asked<'a>) -> BoxFuture<'a, bool> {
        Box::pin(async move { self.denied.as_ref() != Some(asked.method) })
    }

    fn backend<'a>(&'a self, _: &'a UserRoute, again: bool) -> BoxFuture<'a, Result<Backend, NoBackend>> {
        Box::pin(async move {
            self.asked_again.fetch_add(usize::from(again), Ordering::SeqCst);
            let mut backends = self.backends.lock();
            let first = *backends.first().ok_or(NoBackend("no pod is ready".into()))?;
            backends.rotate_left(1);
            Ok(first)
        })
    }
}

/// The user of these tests may everything with the Service in team-a, nobody else anything.
#[derive(Default)]
pub(super) struct Rights {
    asked: Mutex<Vec<ResourceAttributes>>,
    taken: std::sync::atomic::AtomicBool,
}

impl Authorizer for Rights {
    fn authorize<'a>(
        &'a self,
        user: &'a UserInfo,
        wanted: &'a ResourceAttributes,
    ) -> BoxFuture<'a, Result<Decision, BoxError>> {
        self.asked.lock().push(wanted.clone());
        let fine = !self.taken.load(Ordering::SeqCst)
            && user.username == EMAIL
            && wanted.namespace == "team-a"
            && wanted.subresource == "proxy";
        Box::pin(async move { Ok(if fine { Decision::Allow } else { Decision::Deny("no".into()) }) })
    }
}

pub(super) struct Lab {
    pub w: World,
    ways: Arc<Ways>,
    rights: Arc<Rights>,
    pub tasks: Tasks,
    address: SocketAddr,
    pub cookie: String,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// A gateway on a port, with these servers behind it.
pub(super) async fn lab(backends: &[Backend], change: impl FnOnce(&mut Ways)) -> Lab {
    lab_with(backends, change, |_| {}).await
}

pub(super) async fn lab_with(
    backends: &[Backend],
    change: impl FnOnce(&mut Ways),
    configure: impl FnOnce(&mut Config),
) -> Lab {
    let mut w = world_with(configure).await;
    let mut ways = Ways { backends: Mutex::new(backends.to_vec()), ..Ways::default() };
    change(&mut ways);
    let (ways, rights, tasks) = (Arc::new(ways), Arc::new(Rights::default()), Tasks::new());
    let services = UserServices {
        routes: ways.clone(),
        authorizer: rights.clone(),
        pages: ["runs".to_owned()].into(),
        tasks: tasks.clone(),
    };
    let pages = Router::new().fallback(|| async { "a page" });
    let mounts = Mounts::new().at("/", pages).at("/apis", Router::new()).with_user_services(services);
    w.router = w.gateway.router(mounts.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    w.gateway.workers(&mounts, &tasks).unwrap().serve("gateway", listener).unwrap();
    let cookie = w.sign_in().await;
    Lab { w, ways, rights, tasks, address, cookie }
}

impl Lab {
    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.w.get(path, &[&[("cookie", self.cookie.as_str())], headers].concat()).await
    }

    /// Sends these bytes on a connection of their own and gives it back.
    pub async fn raw(&self, text: &str) -> tokio::net::TcpStream {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }
}

pub(super) async fn until(stream: &mut tokio::net::TcpStream, wanted: &str) -> String {
    let (mut found, mut buffer) = (String::new(), [0; 1024]);
    while !found.contains(wanted) {
        let read =
            tokio::time::timeout(Duration::from_secs(20), stream.read(&mut buffer)).await.expect("in time").unwrap();
        assert!(read > 0, "ended before {wanted:?}: {found}");
        found.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    found
}

/// A server in a pod's place, which tells what reached it.
async fn pod(tasks: &Tasks) -> Backend {
    let app = Router::new()
        .route(
            "/events",
            any(|| async {
                // One event, and then nothing for ever.
                let first = futures::stream::once(async { Ok::<_, std::convert::Infallible>("data: one\n\n") });
                Body::from_stream(first.chain(futures::stream::pending()))
            }),
        )
        .route("/slow", any(|| async { std::future::pending::<()>().await }))
        .fallback(any(|request: Request| async move {
            let headers: Vec<(String, String)> = request
                .headers()
                .iter()
                .map(|(k, v)| (k.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
                .collect();
            let uri = request.uri().to_string();
            let body = axum::body::to_bytes(request.into_body(), 1 << 26).await.unwrap();
            let mut response =
                axum::Json(serde_json::json!({"uri": uri, "headers": headers, "body": body.len()})).into_response();
            for (name, value) in [
                ("set-cookie", "oauth2_proxy_kubeflow=stolen; Path=/"),
                ("set-cookie", " kfbox_sign_in =x"),
                ("set-cookie", "theirs=1; Path=/app/team-a/"),
                ("service-worker-allowed", "/"),
                ("clear-site-data", "\"*\""),
                ("x-secret", "1"),
                ("keep-alive", "timeout=5"),
            ] {
                response.headers_mut().append(name, value.parse().unwrap());
            }
            response
        }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn("pod", async move { axum::serve(listener, app).await });
    Backend { address, http2: false }
}

use axum::response::IntoResponse as _;

#[tokio::test]
async fn a_pod_is_told_who_asks_and_neither_gets_nor_gives_what_is_the_gateways() {
    let tasks = Tasks::new();
    let lab = lab(&[pod(&tasks).await], |_| {}).await;
    let answer = lab
        .get(
            "/app/team-a/lab?x=1%2F2",
            &[
                ("cookie", "theirs=2"),
                ("host", "lab.example"),
                ("kubeflow-userid", "admin@example.com"),
                ("x-forwarded-for", "1.2.3.4"),
                ("connection", "keep-alive, x-hop, host"),
                ("x-hop", "1"),
                ("te", "trailers"),
                ("x-mode", "mine"),
                ("accept", "*/*"),
            ],
        )
        .await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let told = answer.json();
    assert_eq!(told["uri"], "/lab?x=1%2F2");
    let told: std::collections::BTreeMap<String, String> = serde_json::from_value(told["headers"].clone())
        .map(|pairs: Vec<(String, String)>| pairs.into_iter().collect())
        .unwrap();
    let wanted = [
        ("accept", "*/*"),
        ("cookie", "theirs=2"),
        ("host", "lab.example"),
        ("kubeflow-groups", "team,system:authenticated"),
        ("kubeflow-userid", EMAIL),
        ("x-forwarded-host", "lab.example"),
        ("x-forwarded-proto", "http"),
        ("x-mode", "lab"),
    ];
    assert_eq!(told, wanted.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    let cookies: Vec<_> = answer.headers.get_all(header::SET_COOKIE).iter().collect();
    assert_eq!(cookies, ["theirs=1; Path=/app/team-a/"]);
    for gone in ["service-worker-allowed", "clear-site-data", "x-secret", "keep-alive"] {
        assert!(!answer.headers.contains_key(gone), "{gone}");
    }
    assert_eq!(answer.headers[header::CONTENT_SECURITY_POLICY], "frame-ancestors 'self'; base-uri 'self'");
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    // A token is as good as a cookie, and does not travel on either.
    let token = lab.w.gateway.create_token(EMAIL, TokenRequest::new("t", None)).await.unwrap();
    let bearer = format!("Bearer {}", token.reveal());
    let body = "x".repeat(100_000);
    let request = Request::post("/app/team-a/up").header("authorization", &bearer);
    let told = lab.w.send(request, &body).await.json();
    assert_eq!(told["body"], 100_000);
    assert!(!told["headers"].to_string().contains("authorization"), "{told}");
    let verbs: Vec<String> =
        lab.rights.asked.lock().iter().map(|a| format!("{} {}/{}", a.verb, a.resource, a.name)).collect();
    assert_eq!(verbs, ["get services/web", "create services/web"]);
    tasks.stop();
}

#[tokio::test]
async fn who_may_not_learns_nothing_and_what_is_the_platforms_stays_so() {
    let tasks = Tasks::new();
    let lab = lab(&[pod(&tasks).await], |w| w.denied = Some(Method::DELETE)).await;
    let anonymous = lab.w.get("/app/team-a/lab", &[]).await;
    assert_eq!(anonymous.status, StatusCode::UNAUTHORIZED);
    lab.w.gateway.add_user(OTHER, PASSWORD, &[]).await.unwrap();
    let token = lab.w.gateway.create_token(OTHER, TokenRequest::new("t", None)).await.unwrap();
    let stranger = lab.w.get("/app/team-a/lab", &[("authorization", &format!("Bearer {}", token.reveal()))]).await;
    assert_eq!(stranger.status, StatusCode::NOT_FOUND);
    // As where nothing is.
    assert_eq!(stranger.text, r#"{"error":"not_found","message":"there is nothing at this path"}"#);
    // Another site's page cannot write by the cookie, nor open a WebSocket.
    let foreign = [("origin", "https://evil.example"), ("host", "127.0.0.1:8080")];
    let mut headers = foreign.to_vec();
    headers.extend([("connection", "upgrade"), ("upgrade", "websocket")]);
    assert_eq!(lab.get("/app/team-a/ws", &headers).await.status, StatusCode::FORBIDDEN);
    for own in ["/runs/team-a/x", "/other/team-a/x"] {
        assert_eq!(lab.get(own, &[]).await.text, "a page", "{own}");
    }
    assert_eq!(lab.get("/dex/team-a/x", &[]).await.status, StatusCode::NOT_FOUND);
    assert_eq!(lab.get("/apis/team-a/x", &[]).await.status, StatusCode::NOT_FOUND);
    for tricky in ["/app/team-a/../x", "/app/team-a/%2e%2e/x", "/app//team-a/x", "/app/team-a/a%5c..%5cb"] {
        assert_eq!(lab.get(tricky, &[]).await.status, StatusCode::BAD_REQUEST, "{tricky}");
    }
    let request = Request::delete("/app/team-a/x").header("cookie", &lab.cookie);
    assert_eq!(lab.w.send(request, "").await.json()["error"], "denied", "by a policy");
    lab.ways.backends.lock().clear();
    let none = lab.get("/app/team-a/x", &[]).await;
    assert_eq!(
        (none.status, none.json()["message"].as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, Some("no pod is ready"))
    );
    tasks.stop();
}

#[tokio::test]
async fn a_right_is_asked_for_once_for_a_page_and_not_long_after_it_is_taken() {
    let tasks = Tasks::new();
    let lab = lab(&[pod(&tasks).await], |_| {}).await;
    for _ in 0..5 {
        assert_eq!(lab.get("/app/team-a/x", &[]).await.status, StatusCode::OK);
    }
    let asked = lab.rights.asked.lock().len();
    assert!(asked < 5, "{asked}");
    lab.rights.taken.store(true, Ordering::SeqCst);
    // Each verb is a right of its own, and one that was not asked for is not remembered.
    let request = Request::post("/app/team-a/x").header("cookie", &lab.cookie);
    assert_eq!(lab.w.send(request, "").await.status, StatusCode::NOT_FOUND);
    tokio::time::timeout(Duration::from_secs(20), async {
        while lab.get("/app/team-a/x", &[]).await.status != StatusCode::NOT_FOUND {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("refused although somebody goes on asking");
    lab.rights.taken.store(false, Ordering::SeqCst);
    assert_eq!(lab.get("/app/team-a/x", &[]).await.status, StatusCode::OK, "a refusal is not remembered");
    tasks.stop();
}

#[tokio::test]
async fn a_pod_that_is_gone_is_passed_over_once_and_a_write_is_not_sent_twice() {
    let tasks = Tasks::new();
    // A port that nobody listens on.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gone = Backend { address: gone, http2: false };
    let lab1 = lab(&[gone, pod(&tasks).await], |_| {}).await;
    assert_eq!(lab1.get("/app/team-a/x", &[]).await.status, StatusCode::OK);
    assert_eq!(lab1.ways.asked_again.load(Ordering::SeqCst), 1);
    let lab2 = lab(&[gone], |_| {}).await;
    assert_eq!(lab2.get("/app/team-a/x", &[]).await.status, StatusCode::SERVICE_UNAVAILABLE);
    let request = Request::post("/app/team-a/x").header("cookie", &lab2.cookie);
    assert_eq!(lab2.w.send(request, "a body").await.status, StatusCode::SERVICE_UNAVAILABLE);

    // One that takes the request and dies: who knows what it did, so that nothing is repeated.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dying = Backend { address: listener.local_addr().unwrap(), http2: false };
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    tasks.spawn("dying", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 2048];
            if stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let lab3 = lab(&[dying], |_| {}).await;
    let request = Request::post("/app/team-a/x").header("cookie", &lab3.cookie);
    assert_eq!(lab3.w.send(request, "a body").await.status, StatusCode::BAD_GATEWAY);
    assert_eq!(taken.load(Ordering::SeqCst), 1);

    let lab4 = lab(&[pod(&tasks).await], |w| w.timeout = Some(Duration::from_millis(300))).await;
    assert_eq!(lab4.get("/app/team-a/slow", &[]).await.status, StatusCode::GATEWAY_TIMEOUT);
    tasks.stop();
}

#[tokio::test]
async fn websockets_and_events_pass_as_they_come() {
    let tasks = Tasks::new();
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = Backend { address: echo.local_addr().unwrap(), http2: false };
    tasks.spawn("echo", async move {
        let (mut stream, _) = echo.accept().await.unwrap();
        let head = until(&mut stream, "\r\n\r\n").await.to_lowercase();
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
        assert!(head.starts_with("get /ws http/1.1") && head.contains("kubeflow-userid: user@example.com"), "{head}");
        assert!(!head.contains("oauth2_proxy_kubeflow"), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nearly";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    let lab1 = lab(&[backend], |_| {}).await;
    let ask = format!(
        "GET /app/team-a/ws HTTP/1.1\r\nHost: {}\r\nCookie: {}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        lab1.address, lab1.cookie
    );
    let mut stream = lab1.raw(&ask).await;
    let head = until(&mut stream, "early").await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.to_lowercase().contains("sec-websocket-accept: x"), "{head}");
    stream.write_all(b"there and back").await.unwrap();
    until(&mut stream, "there and back").await;
    assert_eq!(lab1.rights.asked.lock()[0].verb, "create", "a WebSocket is as much as a write");
    // At the end of the gateway it ends too.
    lab1.tasks.stop();
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await.expect("in time").ok();

    let lab2 = lab(&[pod(&tasks).await], |_| {}).await;
    let ask = format!("GET /app/team-a/events HTTP/1.1\r\nHost: {}\r\nCookie: {}\r\n\r\n", lab2.address, lab2.cookie);
    until(&mut lab2.raw(&ask).await, "data: one").await;
    tasks.stop();
}

#[tokio::test]
async fn grpc_keeps_its_trailers() {
    let tasks = Tasks::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = Backend { address: listener.local_addr().unwrap(), http2: true };
    tasks.spawn("grpc", async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
            assert_eq!(request.version(), http::Version::HTTP_2);
            assert_eq!(request.headers()["te"], "trailers");
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let frames = [Frame::data(Bytes::from("message")), Frame::trailers(trailers)];
            let frames = frames.map(Ok::<_, std::convert::Infallible>);
            Ok::<_, std::convert::Infallible>(http::Response::new(StreamBody::new(futures::stream::iter(frames))))
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        drop(server.serve_connection(TokioIo::new(stream), service).await);
    });
    let lab = lab(&[backend], |_| {}).await;
    let request = Request::post("/app/team-a/pkg.Service/Call").header("cookie", &lab.cookie);
    let request =
        request.header("te", "trailers").header("content-type", "application/grpc").body(Body::from("x")).unwrap();
    let response = lab.w.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(body.to_bytes(), "message");
    tasks.stop();
}
