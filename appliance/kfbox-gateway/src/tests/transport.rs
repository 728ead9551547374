//! What depends on how a browser comes: cookies, promises of https, and the end of a gateway.

use super::user_services::{lab_with, until};
use super::*;
use crate::{serve::OverTls, user_routes::Backend};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

async fn signing_in(w: &World, host: &str, tls: bool, headers: &[(&str, &str)]) -> (String, Option<String>) {
    let request = Request::post("/dex/auth/local/login?rd=%2F").header(header::HOST, host);
    let request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    let mut request = headers.iter().fold(request, |r, (k, v)| r.header(*k, *v));
    if tls {
        request = request.extension(OverTls);
    }
    let form = serde_urlencoded::to_string([("login", EMAIL), ("password", PASSWORD)]).unwrap();
    let answer = w.send(request, &form).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
    let promise = answer.headers.get("strict-transport-security").map(|v| v.to_str().unwrap().to_owned());
    (answer.headers[header::SET_COOKIE].to_str().unwrap().to_owned(), promise)
}

#[tokio::test]
async fn cookies_and_promises_fit_the_way_that_a_browser_comes() {
    let lab = async |url: &str, strict: bool| {
        world_with(|c| {
            c.external_url = url.parse().unwrap();
            c.strict_transport = strict;
        })
        .await
    };
    let secure = |cookie: &str| cookie.ends_with("; Secure");
    // Behind a proxy that ends TLS: its request comes by plain HTTP, with the name that people use.
    let proxied = lab("https://lab.example", true).await;
    let (cookie, promise) = signing_in(&proxied, "lab.example", false, &[]).await;
    assert!(secure(&cookie) && promise.is_some_and(|p| p.starts_with("max-age=")), "{cookie}");
    // Past the proxy, on the machine itself: a Secure cookie would never come back.
    for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "box.localhost"] {
        let (cookie, promise) = signing_in(&proxied, host, false, &[]).await;
        assert!(!secure(&cookie) && promise.is_none(), "{host}: {cookie}");
    }
    // No header of the request decides it.
    let plain = lab("http://lab.example:8080", true).await;
    let forwarded = [("x-forwarded-proto", "https"), ("forwarded", "proto=https")];
    let (cookie, promise) = signing_in(&plain, "lab.example:8080", false, &forwarded).await;
    assert!(!secure(&cookie) && promise.is_none(), "{cookie}");
    // TLS here: always Secure; the promise only with a certificate that browsers trust, and never for this machine.
    let tls = lab("https://lab.example", true).await;
    let (cookie, promise) = signing_in(&tls, "lab.example", true, &[]).await;
    assert!(secure(&cookie) && promise.is_some(), "{cookie}");
    let (cookie, promise) = signing_in(&tls, "localhost:8443", true, &[]).await;
    assert!(secure(&cookie) && promise.is_none(), "{cookie}");
    let own = lab("https://lab.example", false).await;
    assert_eq!(signing_in(&own, "lab.example", true, &[]).await.1, None);
}

#[tokio::test]
async fn what_is_being_answered_at_the_end_is_answered_and_nothing_new_begins() {
    let w = world().await;
    let (begun, go) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (at, on) = (begun.clone(), go.clone());
    let slow = Router::new().fallback(any(move || {
        let (at, on) = (at.clone(), on.clone());
        async move {
            at.notify_one();
            on.notified().await;
            "the whole answer"
        }
    }));
    let mounts = Mounts::new().at("/", slow);
    let (tasks, listener) = (Tasks::new(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = listener.local_addr().unwrap();
    w.gateway.workers(&mounts, &tasks).unwrap().serve("gateway", listener).unwrap();
    let cookie = w.sign_in().await;
    // A browser's connection that waits for its next request is ended at once.
    let mut idle = tokio::net::TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    let mut busy = tokio::net::TcpStream::connect(address).await.unwrap();
    busy.write_all(format!("GET /x HTTP/1.1\r\nhost: x\r\ncookie: {cookie}\r\n\r\n").as_bytes()).await.unwrap();
    begun.notified().await;
    tasks.stop();
    let mut rest = String::new();
    idle.read_to_string(&mut rest).await.unwrap();
    let closed = async { while tokio::net::TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), closed).await.expect("nobody listens");
    go.notify_one();
    let mut text = String::new();
    busy.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("the whole answer"), "{text}");
    assert_eq!(tasks.drain(Duration::from_secs(10)).await, Vec::<String>::new());
}

/// What comes until the end of a connection that sent this.
async fn answered(mut stream: tokio::net::TcpStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut answer));
    read.await.expect("closed in time").unwrap();
    answer
}

#[tokio::test]
async fn half_a_body_holds_no_connection_but_an_upload_to_a_service_may_pause() {
    let tasks = Tasks::new();
    let pod = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = Backend { address: pod.local_addr().unwrap(), http2: false };
    tasks.spawn("pod", async move {
        let (mut stream, _) = pod.accept().await.unwrap();
        until(&mut stream, "first half").await;
        until(&mut stream, "second half").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nall of it").await.unwrap();
    });
    let idle = |c: &mut Config| c.request_body_idle = Duration::from_millis(200);
    let lab = lab_with(&[backend], |_| {}, idle).await;
    let head = format!("HTTP/1.1\r\nHost: x\r\nCookie: {}\r\nContent-Length: 23", lab.cookie);
    let mut upload = lab.raw(&format!("POST /app/team-a/up {head}\r\n\r\nfirst half, ")).await;
    // A form of the gateway's own, by a stranger.
    let form = "POST /dex/auth/local/login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\
                Content-Type: application/x-www-form-urlencoded\r\n\r\nlogin=ann";
    let answer = answered(lab.raw("").await, form).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("connection: close"), "{answer}");
    // A component's.
    let component = Router::new().fallback(any(|body: bytes::Bytes| async move { body.len().to_string() }));
    let (listener, w) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), &lab.w);
    let address = listener.local_addr().unwrap();
    w.gateway.workers(&Mounts::new().at("/", component), &lab.tasks).unwrap().serve("other", listener).unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let answer = answered(stream, &format!("POST /up {head}\r\n\r\nfirst half, ")).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let mut whole = tokio::net::TcpStream::connect(address).await.unwrap();
    whole.write_all(format!("POST /up {head}\r\n\r\nfirst half, second half").as_bytes()).await.unwrap();
    assert!(until(&mut whole, "\r\n\r\n23").await.starts_with("HTTP/1.1 200 "));
    // The Service's upload was silent for longer, and goes on.
    upload.write_all(b"second half").await.unwrap();
    assert!(until(&mut upload, "all of it").await.starts_with("HTTP/1.1 200 "));
    tasks.stop();
}
