//! What depends on how a browser comes: cookies, promises of https, and the end of a gateway.

use super::*;
use crate::serve::OverTls;
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
