//! The gateway's own threads: what components do there to others, and how they end.

use super::*;
use axum::routing::any;
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

/// A gateway on a port with this component, and a session's cookie.
async fn lab(component: Router) -> (World, Tasks, std::net::SocketAddr, String) {
    let (w, tasks) = (world().await, Tasks::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let workers = w.gateway.workers(&Mounts::new().at("/", component), &tasks).unwrap();
    workers.serve("gateway", listener).unwrap();
    let cookie = w.sign_in().await;
    (w, tasks, address, cookie)
}

async fn send(address: std::net::SocketAddr, path: &str, cookie: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let text = format!("GET {path} HTTP/1.1\r\nhost: x\r\ncookie: {cookie}\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

async fn beginning(stream: &mut TcpStream) -> String {
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    String::from_utf8_lossy(&first).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_that_blocks_its_thread_holds_up_no_connection() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(parking_lot::Mutex::new(wait));
    let begun = Arc::new(Notify::new());
    let at = begun.clone();
    let component = Router::new().fallback(any(move || {
        let (wait, at) = (wait.clone(), at.clone());
        async move {
            at.notify_one();
            wait.lock().recv().unwrap();
            "done"
        }
    }));
    let (_w, tasks, address, cookie) = lab(component).await;
    let mut slow = send(address, "/slow", &cookie).await;
    begun.notified().await;
    // Every worker's connections go on: more of them than there are workers.
    for _ in 0..8 {
        assert_eq!(beginning(&mut send(address, "/healthz", "").await).await, "HTTP/1.1 200");
    }
    go.send(()).unwrap();
    assert_eq!(beginning(&mut slow).await, "HTTP/1.1 200");
    tasks.stop();
    assert_eq!(tasks.drain(Duration::from_secs(10)).await, Vec::<String>::new());
}

/// Tells when it is dropped.
struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn what_a_client_gives_up_ends_in_the_component_too_and_a_panic_ends_one_request() {
    let (begun, gone) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (at, end) = (begun.clone(), gone.clone());
    let endless = any(move || {
        let (at, end) = (at.clone(), end.clone());
        async move {
            let _dropped = Dropped(end);
            at.notify_one();
            std::future::pending::<()>().await;
        }
    });
    let panics = any(|| async {
        assert!(std::env::var_os("PATH").is_none(), "a component's own fault");
    });
    let component = Router::new().route("/endless", endless).route("/panics", panics);
    let (_w, tasks, address, cookie) = lab(component).await;
    let given_up = send(address, "/endless", &cookie).await;
    begun.notified().await;
    drop(given_up);
    tokio::time::timeout(Duration::from_secs(10), gone.notified()).await.unwrap();

    let mut stream = send(address, "/panics", &cookie).await;
    assert_eq!(beginning(&mut stream).await, "HTTP/1.1 500");
    let (mut text, mut part) = (String::new(), [0; 2048]);
    while !text.contains(r#""error":"internal""#) {
        let read = stream.read(&mut part).await.unwrap();
        assert!(read > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&part[..read]));
    }
    assert_eq!(beginning(&mut send(address, "/healthz", "").await).await, "HTTP/1.1 200");
    tasks.stop();
    assert_eq!(tasks.drain(Duration::from_secs(10)).await, Vec::<String>::new());
}

fn worker_threads() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let names = threads.filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("comm")).ok());
    names.filter(|n| n.starts_with("gateway-")).count()
}

#[tokio::test]
async fn workers_end_with_the_last_task_of_the_daemon() {
    // Other tests in this process end theirs too.
    let (_w, tasks, _address, _cookie) = lab(Router::new()).await;
    assert!(worker_threads() > 0);
    tasks.stop();
    assert_eq!(tasks.drain(Duration::from_secs(10)).await, Vec::<String>::new());
    let ended = async {
        while worker_threads() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
}
