//! Connections to pods: when they are used again, and what becomes of a request on one that ended.

use super::user_services::{lab, until};
use super::*;
use crate::user_routes::Backend;
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// What reached a pod: the numbers of the connection and of the request on it, and its first line.
type Log = Arc<parking_lot::Mutex<Vec<(usize, usize, String)>>>;

/// A pod that hangs up instead of answering where `hangs_up` says so, by the same numbers.
async fn pod(tasks: &Tasks, hangs_up: fn(usize, usize) -> bool) -> (Backend, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, log) = (listener.local_addr().unwrap(), Log::default());
    let (seen, all) = (log.clone(), tasks.clone());
    tasks.spawn("pod", async move {
        for connection in 0.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            let seen = seen.clone();
            all.spawn("pod-connection", async move { serve(stream, connection, &seen, hangs_up).await });
        }
    });
    (Backend { address, http2: false }, log)
}

async fn serve(mut stream: TcpStream, connection: usize, seen: &Log, hangs_up: fn(usize, usize) -> bool) {
    let mut text = String::new();
    for request in 0.. {
        let mut buffer = [0; 4096];
        while !text.contains("\r\n\r\n") {
            match stream.read(&mut buffer).await {
                Ok(read) if read > 0 => text.push_str(&String::from_utf8_lossy(&buffer[..read])),
                _ => return,
            }
        }
        let first = text.lines().next().unwrap_or_default().to_owned();
        text.clear();
        seen.lock().push((connection, request, first.clone()));
        if hangs_up(connection, request) {
            return;
        }
        let answer = match first.contains("/endless") {
            true => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n",
            false if first.starts_with("HEAD") => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n",
            false => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other_and_no_two_at_once() {
    let tasks = Tasks::new();
    let (backend, log) = pod(&tasks, |_, _| false).await;
    let lab = lab(&[backend], |_| {}).await;
    for _ in 0..5 {
        assert_eq!(lab.get("/app/team-a/x", &[]).await.text, "ok");
    }
    let head = Request::head("/app/team-a/x").header("cookie", &lab.cookie);
    assert_eq!(lab.w.send(head, "").await.status, StatusCode::OK);
    assert_eq!(lab.get("/app/team-a/x", &[]).await.text, "ok");
    let used: Vec<usize> = log.lock().iter().map(|(connection, ..)| *connection).collect();
    assert_eq!(used, [0; 7]);
    // One whose answer goes on is nobody else's.
    let ask = format!("GET /app/team-a/endless HTTP/1.1\r\nHost: x\r\nCookie: {}\r\n\r\n", lab.cookie);
    let mut endless = lab.raw(&ask).await;
    until(&mut endless, "first").await;
    let mut other = lab.raw(&ask.replace("endless", "x")).await;
    until(&mut other, "ok").await;
    let used: Vec<(usize, String)> = log.lock().iter().map(|(c, _, first)| (*c, first.clone())).collect();
    let of = |path: &str| used.iter().rev().find(|(_, first)| first.contains(path)).unwrap().0;
    assert_ne!(of("/endless"), of("/x"), "{used:?}");
    // At the end nothing is left behind, although the pod would have kept its connections.
    drop((endless, other));
    lab.tasks.stop();
    assert_eq!(lab.tasks.drain(Duration::from_secs(20)).await, Vec::<String>::new());
    tasks.stop();
}

#[tokio::test]
async fn a_pod_that_hangs_up_on_a_kept_connection_is_asked_again_only_what_does_no_harm_twice() {
    let tasks = Tasks::new();
    // Every connection's second request.
    let (backend, log) = pod(&tasks, |_, request| request == 1).await;
    let lab = lab(&[backend], |_| {}).await;
    for _ in 0..4 {
        assert_eq!(lab.get("/app/team-a/x", &[]).await.text, "ok");
    }
    let seen: Vec<(usize, usize)> = log.lock().iter().map(|(c, r, _)| (*c, *r)).collect();
    assert_eq!(seen, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]);
    for method in ["POST", "PUT", "DELETE"] {
        let request = Request::builder().method(method).uri("/app/team-a/w").header("cookie", &lab.cookie);
        assert_eq!(lab.w.send(request, "").await.status, StatusCode::BAD_GATEWAY, "{method}");
        assert_eq!(log.lock().iter().filter(|(.., first)| first.starts_with(method)).count(), 1, "{method}");
        assert_eq!(lab.get("/app/team-a/x", &[]).await.text, "ok");
    }
    tasks.stop();

    // A first request that is not answered is the pod's failure.
    let tasks = Tasks::new();
    let (backend, log) = pod(&tasks, |_, _| true).await;
    let lab = super::user_services::lab(&[backend], |_| {}).await;
    assert_eq!(lab.get("/app/team-a/x", &[]).await.status, StatusCode::BAD_GATEWAY);
    assert_eq!(log.lock().len(), 1);
    tasks.stop();
}
