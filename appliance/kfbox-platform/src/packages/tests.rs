//! The cache against an index of its own on loopback.

use super::*;
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
};
use http::{StatusCode, header};
use sha2::{Digest as _, Sha256};
use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};
use tokio::{net::TcpListener, sync::Notify};
use tower::ServiceExt as _;

/// What the index has, and what was asked of it.
#[derive(Default)]
struct Upstream {
    pages: parking_lot::Mutex<HashMap<String, (String, String)>>,
    files: parking_lot::Mutex<HashMap<String, Vec<u8>>>,
    page_requests: AtomicUsize,
    file_requests: AtomicUsize,
    authorized: AtomicBool,
    /// File answers wait for this after their first half.
    hold: AtomicBool,
    go: Notify,
}

async fn answer(State(up): State<Arc<Upstream>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let basic = request.headers().get(header::AUTHORIZATION).is_some_and(|v| v == "Basic dXNlcjpwYXNzIQ==");
    up.authorized.fetch_or(basic, Ordering::SeqCst);
    let page = up.pages.lock().get(&path).cloned();
    if let Some((content_type, body)) = page {
        up.page_requests.fetch_add(1, Ordering::SeqCst);
        let tag = format!("\"{}\"", body.len());
        if request.headers().get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes()) {
            return StatusCode::NOT_MODIFIED.into_response();
        }
        return ([(header::CONTENT_TYPE, content_type), (header::ETAG, tag)], body).into_response();
    }
    let file = up.files.lock().get(&path).cloned();
    let Some(bytes) = file else { return StatusCode::NOT_FOUND.into_response() };
    up.file_requests.fetch_add(1, Ordering::SeqCst);
    let half = bytes.len() / 2;
    let (first, second) = (bytes[..half].to_vec(), bytes[half..].to_vec());
    let length = bytes.len();
    let stream = async_stream::stream! {
        yield Ok::<_, std::io::Error>(first);
        if up.hold.load(Ordering::SeqCst) {
            up.go.notified().await;
        }
        yield Ok(second);
    };
    ([(header::CONTENT_LENGTH, length.to_string())], Body::from_stream(stream)).into_response()
}

struct World {
    up: Arc<Upstream>,
    base: String,
    tasks: Tasks,
    dir: tempfile::TempDir,
    /// Dropping it stops the index.
    server: Option<tokio_util::sync::DropGuard>,
}

const WHEEL: &str = "demo-1.0-py3-none-any.whl";

fn sha(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

impl World {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let up = Arc::new(Upstream::default());
        let stop = tokio_util::sync::CancellationToken::new();
        let tasks = Tasks::new();
        let router = Router::new().fallback(answer).with_state(up.clone());
        let stopped = stop.clone();
        tasks.spawn("index", async move {
            tokio::select! {
                _ = axum::serve(listener, router).into_future() => {}
                () = stopped.cancelled() => {}
            }
        });
        Self { up, base, tasks, dir: tempfile::tempdir().unwrap(), server: Some(stop.drop_guard()) }
    }

    fn offer(&self, named: &str, bytes: &[u8]) {
        let path = "/packages/ab/demo-1.0-py3-none-any.whl";
        let metadata = b"Name: demo\n";
        let page = format!(
            "<a href=\"{path}#sha256={named}\" data-requires-python=\"&gt;=3.8\" data-core-metadata=\"sha256={}\">{WHEEL}</a>",
            sha(metadata)
        );
        self.up.pages.lock().insert("/simple/demo/".into(), ("text/html".into(), page));
        self.up.files.lock().insert(path.into(), bytes.to_vec());
        self.up.files.lock().insert(format!("{path}.metadata"), metadata.to_vec());
    }

    fn config(&self) -> Config {
        Config::new(self.dir.path().join("cache"), format!("{}/simple", self.base).parse().unwrap())
    }

    fn open(&self) -> Router {
        self.open_with(self.config())
    }

    fn open_with(&self, config: Config) -> Router {
        Packages::open(config, &self.tasks).unwrap().router()
    }
}

async fn get(router: &Router, path: &str) -> (StatusCode, Vec<u8>) {
    let (status, body) = begin(router, path, "text/html").await;
    (status, axum::body::to_bytes(body, 1 << 24).await.map(|b| b.to_vec()).unwrap_or_default())
}

async fn begin(router: &Router, path: &str, accept: &str) -> (StatusCode, Body) {
    let request = Request::get(path).header(header::ACCEPT, accept).body(Body::empty()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    (response.status(), response.into_body())
}

#[tokio::test]
async fn pages_are_rewritten_files_fetched_once_and_all_works_without_the_index_afterwards() {
    let mut w = World::new().await;
    let wheel = vec![7u8; 300_000];
    w.offer(&sha(&wheel), &wheel);
    let router = w.open();
    let page = String::from_utf8(get(&router, "/simple/demo/").await.1).unwrap();
    let link = format!("../../files/{}/{WHEEL}", sha(&wheel));
    assert!(page.contains(&link) && page.contains("data-requires-python=\"&gt;=3.8\""), "{page}");
    assert!(!page.contains(&w.base), "no address of the index may reach pods: {page}");
    let (_, body) = begin(&router, "/simple/demo/", "application/vnd.pypi.simple.v1+json, text/html;q=0.1").await;
    let json: serde_json::Value = serde_json::from_slice(&axum::body::to_bytes(body, 1 << 20).await.unwrap()).unwrap();
    assert_eq!(json["files"][0]["url"], link);

    let path = format!("/files/{}/{WHEEL}", sha(&wheel));
    for _ in 0..3 {
        assert_eq!(get(&router, &path).await, (StatusCode::OK, wheel.clone()));
    }
    assert_eq!(w.up.file_requests.load(Ordering::SeqCst), 1);
    assert_eq!(get(&router, &format!("{path}.metadata")).await.1, b"Name: demo\n");
    assert_eq!(w.up.page_requests.load(Ordering::SeqCst), 1, "a fresh page is not asked for again");

    w.server = None;
    // A new process, the same folder, pages no longer fresh, no index.
    let router = w.open_with(Config { page_fresh_for: Duration::ZERO, ..w.config() });
    assert!(String::from_utf8(get(&router, "/simple/demo/").await.1).unwrap().contains(&link));
    assert_eq!(get(&router, &path).await, (StatusCode::OK, wheel));
    assert_eq!(get(&router, "/simple/other/").await.0, StatusCode::BAD_GATEWAY);
    assert!(String::from_utf8(get(&router, "/simple/").await.1).unwrap().contains("demo/"));
}

#[tokio::test]
async fn an_unchanged_page_is_kept_by_its_entity_tag() {
    let w = World::new().await;
    w.offer(&sha(b"x"), b"x");
    let router = w.open_with(Config { page_fresh_for: Duration::ZERO, ..w.config() });
    for _ in 0..3 {
        let (status, page) = get(&router, "/simple/demo/").await;
        assert!(status == StatusCode::OK && String::from_utf8(page).unwrap().contains(WHEEL));
    }
    assert_eq!(w.up.page_requests.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn requests_at_once_share_one_download_and_stream_it_while_it_runs() {
    use futures::StreamExt as _;
    let w = World::new().await;
    let wheel: Vec<u8> = (0..200_000u32).map(|n| n.to_le_bytes()[0]).collect();
    w.offer(&sha(&wheel), &wheel);
    w.up.hold.store(true, Ordering::SeqCst);
    let router = w.open();
    let path = format!("/files/{}/{WHEEL}", sha(&wheel));
    let mut bodies = Vec::new();
    for _ in 0..4 {
        let (status, body) = begin(&router, &path, "*/*").await;
        assert_eq!(status, StatusCode::OK);
        let mut stream = body.into_data_stream();
        let first = stream.next().await.unwrap().unwrap();
        assert!(!first.is_empty(), "bytes arrive before the download ends");
        bodies.push((first.to_vec(), stream));
    }
    // One client goes away: the others go on.
    bodies.pop();
    w.up.go.notify_one();
    for (mut bytes, mut stream) in bodies {
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk.unwrap());
        }
        assert!(bytes == wheel);
    }
    assert_eq!(w.up.file_requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn bytes_with_another_hash_are_never_delivered_whole_nor_kept() {
    let w = World::new().await;
    let (right, forged) = (vec![1u8; 100_000], vec![2u8; 100_000]);
    w.offer(&sha(&right), &forged);
    let router = w.open();
    let path = format!("/files/{}/{WHEEL}", sha(&right));
    // Depending on when the end is noticed: an error at once, or an answer that breaks off.
    let (status, body) = begin(&router, &path, "*/*").await;
    let whole = axum::body::to_bytes(body, 1 << 20).await;
    assert!(status == StatusCode::BAD_GATEWAY || (status == StatusCode::OK && whole.is_err()), "{status}");
    // The index repairs it: the next request works.
    w.offer(&sha(&right), &right);
    assert_eq!(get(&router, &path).await, (StatusCode::OK, right));
    let left = std::fs::read_dir(w.dir.path().join("cache/partial")).unwrap().count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn files_over_the_limit_are_refused() {
    let w = World::new().await;
    let wheel = vec![1u8; 50_000];
    w.offer(&sha(&wheel), &wheel);
    let router = w.open_with(Config { max_file_bytes: 10_000, ..w.config() });
    assert_eq!(get(&router, &format!("/files/{}/{WHEEL}", sha(&wheel))).await.0, StatusCode::INSUFFICIENT_STORAGE);
}

#[tokio::test]
async fn only_files_of_the_index_are_served_and_paths_stay_inside() {
    let w = World::new().await;
    w.offer(&sha(b"x"), b"x");
    let router = w.open();
    std::fs::write(w.dir.path().join("secret"), "s").unwrap();
    let hash = sha(b"x");
    for path in [
        format!("/files/{}/{WHEEL}", sha(b"y")),
        format!("/files/{hash}/..%2f..%2fsecret"),
        format!("/files/{hash}/other-1.0.tar.gz"),
        "/files/..%2f..%2fsecret/demo-1.0-py3-none-any.whl".into(),
        format!("/files/{}/{WHEEL}", hash.to_uppercase()),
        "/simple/..%2f..%2fsecret/".into(),
        "/simple/-/".into(),
        "/secret".into(),
    ] {
        assert_eq!(get(&router, &path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    let (status, _) = begin(&router, "/simple/De_mo/", "*/*").await;
    assert_eq!(status, StatusCode::MOVED_PERMANENTLY);
}

#[tokio::test]
async fn credentials_go_to_the_index_only() {
    let w = World::new().await;
    let other = World::new().await;
    let wheel = b"wheel".to_vec();
    other.offer(&sha(&wheel), &wheel);
    let page = format!("<a href=\"{}/packages/ab/{WHEEL}#sha256={}\">{WHEEL}</a>", other.base, sha(&wheel));
    w.up.pages.lock().insert("/simple/demo/".into(), ("text/html".into(), page));
    let mut config = w.config();
    config.upstream_index_url.set_username("user").unwrap();
    config.upstream_index_url.set_password(Some("pass!")).unwrap();
    let router = w.open_with(config);
    assert_eq!(get(&router, &format!("/files/{}/{WHEEL}", sha(&wheel))).await.1, wheel);
    assert!(w.up.authorized.load(Ordering::SeqCst));
    assert!(!other.up.authorized.load(Ordering::SeqCst));
    let kept = std::fs::read_to_string(w.dir.path().join("cache/index/demo.json")).unwrap();
    assert!(!kept.contains("pass"), "{kept}");
}

#[tokio::test]
async fn local_folders_are_offered_even_when_the_index_does_not_know_the_project() {
    let w = World::new().await;
    let local = w.dir.path().join("wheels");
    std::fs::create_dir(&local).unwrap();
    std::fs::write(local.join("my_tool-2.0-py3-none-any.whl"), b"local").unwrap();
    std::fs::write(local.join("notes.txt"), b"no").unwrap();
    let router = w.open_with(Config { find_links: vec![local], ..w.config() });
    let page = String::from_utf8(get(&router, "/simple/my-tool/").await.1).unwrap();
    assert!(page.contains(&sha(b"local")), "{page}");
    let path = format!("/files/{}/my_tool-2.0-py3-none-any.whl", sha(b"local"));
    assert_eq!(get(&router, &path).await, (StatusCode::OK, b"local".to_vec()));
    assert_eq!(get(&router, "/simple/notes/").await.0, StatusCode::NOT_FOUND);
}
