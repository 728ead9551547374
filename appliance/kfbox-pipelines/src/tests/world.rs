//! A cluster, a store and steps in memory, for tests that go through the real REST API, engine and task API.

use crate::{
    ArtifactStore, ByteStream, Config, Deps, Lineage, LineageContexts, LineageExecution, LineageResult, LineageRun,
    LogRange, Namespaces, ObjectInfo, OutsideStore, OutsideStores, PackageError, PackageSource, People, Pipelines,
    Retention, StepLogs, StoreError,
};
use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::BoxFuture};
use http::{Request, StatusCode};
use kfbox_base::{Authorizer, BoxError, Decision, Readiness, ResourceAttributes, Tasks, UserInfo};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, broadcast};
use tower::ServiceExt;

/// What a scripted step does with its assignment.
#[derive(Clone, Default)]
pub struct Step {
    pub exit: i32,
    pub parameters: BTreeMap<String, String>,
    /// Files by output and path.
    pub files: Vec<(String, String, String)>,
    pub log: String,
    /// Wait for `World::go` first.
    pub hang: bool,
}

type Script = Arc<dyn Fn(&str, &Value) -> Step + Send + Sync>;

pub struct World {
    pub pods: Mutex<BTreeMap<String, Value>>,
    pub created: AtomicUsize,
    events: broadcast::Sender<Value>,
    pub objects: Mutex<BTreeMap<String, Vec<u8>>>,
    logs: Mutex<BTreeMap<String, String>>,
    /// Packages by URL.
    pub packages: Mutex<BTreeMap<String, Vec<u8>>>,
    next_id: AtomicI64,
    /// Config maps and Secrets by `NAMESPACE/RESOURCE/NAME`.
    pub settings: Mutex<BTreeMap<String, Value>>,
    /// Stores outside the box, as they were asked for.
    pub opened: Mutex<Vec<OutsideStore>>,
    /// Who has a disabled account.
    pub away: Mutex<BTreeSet<String>>,
    pub go: Notify,
    /// What steps read of their inputs, by step and input.
    pub read: Mutex<BTreeMap<String, String>>,
    pub script: Script,
    pipelines: Mutex<Option<Pipelines>>,
    cluster: Tasks,
    me: OnceLock<std::sync::Weak<World>>,
}

impl World {
    pub fn new(script: impl Fn(&str, &Value) -> Step + Send + Sync + 'static) -> Arc<Self> {
        let world = Arc::new(Self {
            pods: Mutex::default(),
            created: AtomicUsize::new(0),
            events: broadcast::Sender::new(1024),
            objects: Mutex::default(),
            logs: Mutex::default(),
            packages: Mutex::default(),
            settings: Mutex::default(),
            opened: Mutex::default(),
            next_id: AtomicI64::new(1),
            away: Mutex::default(),
            go: Notify::new(),
            read: Mutex::default(),
            script: Arc::new(script),
            pipelines: Mutex::default(),
            cluster: Tasks::new(),
            me: OnceLock::new(),
        });
        world.me.set(Arc::downgrade(&world)).unwrap();
        world
    }

    /// A daemon on this world; a second one takes up what the first left.
    pub async fn daemon(self: &Arc<Self>, folder: &std::path::Path) -> (Pipelines, Tasks) {
        self.daemon_keeping(folder, Retention::default()).await
    }

    pub async fn daemon_keeping(
        self: &Arc<Self>,
        folder: &std::path::Path,
        retention: Retention,
    ) -> (Pipelines, Tasks) {
        let tasks = Tasks::new();
        let service = cluster(self.clone()).map_request(|r: Request<kube::client::Body>| r.map(Body::new));
        let deps = Deps {
            client: kube::Client::new(service, "default"),
            authorizer: Arc::new(Rights),
            namespaces: Arc::new(Rights),
            people: Arc::new(Share(self.clone())),
            artifacts: Arc::new(Share(self.clone())),
            outside: Arc::new(Share(self.clone())),
            lineage: Arc::new(Share(self.clone())),
            logs: Arc::new(Share(self.clone())),
            packages: Arc::new(Share(self.clone())),
        };
        let config = Config { retention, ..Config::new(folder, "kfbox.local/launcher:0", "http://tasks") };
        let pipelines = Pipelines::open(config, deps, &tasks, &Readiness::default()).await.unwrap();
        *self.pipelines.lock() = Some(pipelines.clone());
        (pipelines, tasks)
    }

    fn shared(&self) -> Arc<Self> {
        self.me.get().and_then(std::sync::Weak::upgrade).unwrap()
    }

    fn put_pod(&self, pod: Value, kind: &str) {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        if kind == "DELETED" {
            self.pods.lock().remove(&name);
        } else {
            self.pods.lock().insert(name, pod.clone());
        }
        drop(self.events.send(json!({"type": kind, "object": pod})));
    }

    /// As the kubelet would: phase and the container's end.
    pub fn set_status(&self, name: &str, status: Value) {
        let pod = self.pods.lock().get(name).cloned();
        if let Some(mut pod) = pod {
            pod["status"] = status;
            self.put_pod(pod, "MODIFIED");
        }
    }

    async fn call(&self, method: &str, url: &str, token: &str, body: Vec<u8>) -> (StatusCode, Bytes) {
        loop {
            // A daemon that is gone answers nothing; the launcher tries again.
            let router = self.pipelines.lock().as_ref().map(Pipelines::task_router);
            if let Some(router) = router {
                let request = Request::builder()
                    .method(method)
                    .uri(url)
                    .header("authorization", format!("Bearer {token}"))
                    .header("content-length", body.len())
                    .body(Body::from(body.clone()))
                    .unwrap();
                let response = router.oneshot(request).await.unwrap();
                let status = response.status();
                return (status, axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn run_step(self: Arc<Self>, name: String, url: String, token: String) {
        self.set_status(&name, json!({"phase": "Running"}));
        let (status, body) = self.call("GET", &url, &token, Vec::new()).await;
        if !status.is_success() {
            return;
        }
        let task: Value = serde_json::from_slice(&body).unwrap();
        let step = (self.script)(task["name"].as_str().unwrap(), &task);
        self.logs.lock().insert(name.clone(), step.log.clone());
        for (n, input) in task["inputs"].as_array().unwrap().iter().enumerate() {
            for file in input["files"].as_array().into_iter().flatten() {
                let (status, content) = self
                    .call(
                        "GET",
                        &format!("{url}/inputs/{n}?path={}", file["path"].as_str().unwrap()),
                        &token,
                        Vec::new(),
                    )
                    .await;
                assert_eq!(status, 200);
                let key = format!(
                    "{}/{}/{}",
                    task["name"].as_str().unwrap(),
                    input["name"].as_str().unwrap(),
                    file["path"].as_str().unwrap()
                );
                self.read.lock().insert(key, String::from_utf8_lossy(&content).into_owned());
            }
        }
        if step.hang {
            self.go.notified().await;
        }
        let fatal = |i: &Value| if i["fatal"] == true { i["problem"].as_str().map(str::to_owned) } else { None };
        let mut problem = task["inputs"].as_array().unwrap().iter().find_map(fatal);
        for (output, path, content) in &step.files {
            let (status, body) = self
                .call("PUT", &format!("{url}/outputs/{output}?path={path}"), &token, content.clone().into_bytes())
                .await;
            if status != StatusCode::OK {
                problem = Some(String::from_utf8_lossy(&body).into_owned());
            }
        }
        let report = json!({"succeeded": step.exit == 0 && problem.is_none(), "message": problem.unwrap_or_default(), "exitCode": step.exit, "parameters": step.parameters, "executorOutput": null});
        loop {
            let (status, _) =
                self.call("POST", &format!("{url}/result"), &token, report.to_string().into_bytes()).await;
            if status.is_success() || status == StatusCode::GONE {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let phase = if step.exit == 0 { "Succeeded" } else { "Failed" };
        let state = json!({"terminated": {"exitCode": step.exit, "reason": "Error"}});
        let container =
            json!({"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        self.set_status(&name, json!({"phase": phase, "containerStatuses": [container]}));
    }

    /// The daemon is killed: its tasks stop where they are.
    pub async fn kill(&self, tasks: &Tasks) {
        self.pipelines.lock().take();
        tasks.stop();
        assert!(tasks.drain(Duration::from_secs(5)).await.is_empty());
    }
}

fn api_status(code: u16, reason: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code});
    (StatusCode::from_u16(code).unwrap(), Json(body)).into_response()
}

fn cluster(world: Arc<World>) -> Router {
    type Names = Path<BTreeMap<String, String>>;
    async fn create(State(world): State<Arc<World>>, Json(mut pod): Json<Value>) -> Response {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        if world.pods.lock().contains_key(&name) {
            return api_status(409, "AlreadyExists");
        }
        world.created.fetch_add(1, Ordering::SeqCst);
        pod["metadata"]["uid"] = json!(format!("uid-{name}"));
        pod["metadata"]["resourceVersion"] = json!("1");
        pod["status"] = json!({"phase": "Pending"});
        world.put_pod(pod.clone(), "ADDED");
        let env = pod["spec"]["containers"][0]["env"].as_array().unwrap().clone();
        let get = |name: &str| env.iter().find(|e| e["name"] == name).unwrap()["value"].as_str().unwrap().to_owned();
        let (url, token) = (get("KFBOX_TASK_URL"), get("KFBOX_TASK_TOKEN"));
        let shared = world.shared();
        drop(world.cluster.spawn("step", shared.run_step(name, url.replace("http://tasks", ""), token)));
        (StatusCode::CREATED, Json(pod)).into_response()
    }
    async fn one(State(world): State<Arc<World>>, Path(names): Names) -> Response {
        world
            .pods
            .lock()
            .get(&names["name"])
            .map_or_else(|| api_status(404, "NotFound"), |p| Json(p.clone()).into_response())
    }
    async fn delete(State(world): State<Arc<World>>, Path(names): Names) -> Response {
        let Some(pod) = world.pods.lock().get(&names["name"]).cloned() else { return api_status(404, "NotFound") };
        world.put_pod(pod.clone(), "DELETED");
        Json(pod).into_response()
    }
    async fn list(State(world): State<Arc<World>>, Query(query): Query<BTreeMap<String, String>>) -> Response {
        if query.get("watch").is_some_and(|w| w == "true") {
            let events = tokio_stream::wrappers::BroadcastStream::new(world.events.subscribe());
            let lines = events.filter_map(|e| async { e.ok().map(|e| Ok::<_, BoxError>(format!("{e}\n"))) });
            return Body::from_stream(lines).into_response();
        }
        let run = query.get("labelSelector").and_then(|s| s.strip_prefix("pipeline/runid=")).map(str::to_owned);
        let pods = world.pods.lock();
        let items: Vec<&Value> = pods
            .values()
            .filter(|p| run.as_ref().is_none_or(|r| p["metadata"]["labels"]["pipeline/runid"] == **r))
            .collect();
        Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}))
            .into_response()
    }
    async fn setting(State(world): State<Arc<World>>, Path(names): Names) -> Response {
        let name = format!("{}/{}/{}", names["ns"], names["resource"], names["name"]);
        let found = world.settings.lock().get(&name).cloned();
        found.map_or_else(|| api_status(404, "NotFound"), |o| Json(o).into_response())
    }
    Router::new()
        .route("/api/v1/namespaces/{ns}/{resource}/{name}", get(setting))
        .route("/api/v1/pods", get(list))
        .route("/api/v1/namespaces/{ns}/pods", get(list).post(create))
        .route("/api/v1/namespaces/{ns}/pods/{name}", get(one).delete(delete))
        .route(
            "/api/v1/namespaces/{ns}/persistentvolumeclaims/{name}",
            axum::routing::delete(async || api_status(404, "NotFound")),
        )
        .with_state(world)
}

/// `ann` may do all in `ann`, `bob` in `bob`; `viewer` may read `ann`.
struct Rights;

impl Authorizer for Rights {
    fn authorize<'a>(
        &'a self,
        user: &'a UserInfo,
        what: &'a ResourceAttributes,
    ) -> BoxFuture<'a, Result<Decision, BoxError>> {
        Box::pin(async move {
            let reads = matches!(what.verb.as_str(), "get" | "list");
            let allowed =
                user.username == what.namespace || (user.username == "viewer" && what.namespace == "ann" && reads);
            Ok(if allowed { Decision::Allow } else { Decision::Deny("no".into()) })
        })
    }
}

impl Namespaces for Rights {
    fn of<'a>(&'a self, user: &'a UserInfo) -> BoxFuture<'a, Result<Vec<String>, BoxError>> {
        Box::pin(async move {
            Ok(if user.username == "nobody" { Vec::new() } else { vec![user.username.replace("viewer", "ann")] })
        })
    }
}

struct Share(Arc<World>);

impl People for Share {
    fn current(&self, user: &UserInfo) -> Result<UserInfo, String> {
        if self.0.away.lock().contains(&user.username) {
            Err("the account is disabled".into())
        } else {
            Ok(user.clone())
        }
    }
}

impl ArtifactStore for Share {
    fn put<'a>(
        &'a self,
        bucket: &'a str,
        key: &'a str,
        size: u64,
        body: ByteStream,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let parts: Vec<Bytes> = body.try_collect().await.map_err(StoreError::Failed)?;
            let content = parts.concat();
            assert_eq!(content.len() as u64, size);
            self.0.objects.lock().insert(format!("{bucket}/{key}"), content);
            Ok(())
        })
    }

    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> BoxFuture<'a, Result<(u64, ByteStream), StoreError>> {
        Box::pin(async move {
            let found = self.0.objects.lock().get(&format!("{bucket}/{key}")).cloned().ok_or(StoreError::NotFound)?;
            let size = found.len() as u64;
            let stream: ByteStream = futures::stream::once(async move { Ok(Bytes::from(found)) }).boxed();
            Ok((size, stream))
        })
    }

    fn list<'a>(&'a self, bucket: &'a str, prefix: &'a str) -> BoxFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        Box::pin(async move {
            let start = format!("{bucket}/{prefix}");
            let all = self.0.objects.lock();
            let found = all.iter().filter(|(k, _)| k.starts_with(&start));
            Ok(found.map(|(k, v)| ObjectInfo { key: k[bucket.len() + 1..].to_owned(), size: v.len() as u64 }).collect())
        })
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            self.0.objects.lock().remove(&format!("{bucket}/{key}"));
            Ok(())
        })
    }
}

/// A store outside: its objects are beside the box's own, under its name.
struct Elsewhere(Share, String);

impl OutsideStores for Share {
    fn open(&self, store: &OutsideStore) -> Result<Arc<dyn ArtifactStore>, StoreError> {
        self.0.opened.lock().push(store.clone());
        let name = match store {
            OutsideStore::S3(s3) => s3.endpoint.clone().unwrap_or_else(|| "amazon".into()),
            OutsideStore::Gcs { .. } => "google".into(),
            OutsideStore::Web { url } => url.clone(),
        };
        if name.contains("127.0.0.1") {
            return Err(StoreError::Outside("127.0.0.1 is refused".into()));
        }
        Ok(Arc::new(Elsewhere(Share(self.0.clone()), name)))
    }
}

impl ArtifactStore for Elsewhere {
    fn put<'a>(
        &'a self,
        bucket: &'a str,
        key: &'a str,
        size: u64,
        body: ByteStream,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.0.put(&format!("{} {bucket}", self.1), key, size, body).await })
    }

    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> BoxFuture<'a, Result<(u64, ByteStream), StoreError>> {
        Box::pin(async move { self.0.get(&format!("{} {bucket}", self.1), key).await })
    }

    fn list<'a>(&'a self, bucket: &'a str, prefix: &'a str) -> BoxFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        Box::pin(async move { self.0.list(&format!("{} {bucket}", self.1), prefix).await })
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.0.delete(&format!("{} {bucket}", self.1), key).await })
    }
}

impl Lineage for Share {
    fn begin_run<'a>(&'a self, _: &'a LineageRun) -> BoxFuture<'a, Result<LineageContexts, BoxError>> {
        Box::pin(async { Ok(LineageContexts { pipeline: 1, run: 2 }) })
    }

    fn begin_execution<'a>(&'a self, _: &'a LineageExecution) -> BoxFuture<'a, Result<i64, BoxError>> {
        Box::pin(async { Ok(self.0.next_id.fetch_add(1, Ordering::SeqCst)) })
    }

    fn finish_execution<'a>(&'a self, result: &'a LineageResult) -> BoxFuture<'a, Result<Vec<i64>, BoxError>> {
        let id = |known: Option<i64>| known.unwrap_or_else(|| self.0.next_id.fetch_add(1, Ordering::SeqCst));
        let ids = result.artifacts.iter().map(|a| id(a.id)).collect();
        Box::pin(async move { Ok(ids) })
    }
}

impl StepLogs for Share {
    fn open<'a>(
        &'a self,
        _: &'a str,
        pod: &'a str,
        _: &'a str,
        range: LogRange,
    ) -> BoxFuture<'a, Result<ByteStream, BoxError>> {
        Box::pin(async move {
            let log = self.0.logs.lock().get(pod).cloned().ok_or("no log")?;
            let lines: Vec<&str> = log.lines().collect();
            let from = range.tail_lines.map_or(0, |n| lines.len().saturating_sub(usize::try_from(n).unwrap_or(0)));
            let text = lines[from..].join("\n") + "\n";
            Ok(futures::stream::once(async move { Ok(Bytes::from(text)) }).boxed())
        })
    }
}

impl PackageSource for Share {
    fn fetch<'a>(&'a self, url: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<u8>, PackageError>> {
        Box::pin(async move {
            if !url.starts_with("https://packages.example/") {
                return Err(PackageError::Refused("packages come from https://packages.example/".into()));
            }
            let found = self.0.packages.lock().get(url).cloned();
            found.filter(|p| p.len() <= limit).ok_or_else(|| PackageError::Failed("404".into()))
        })
    }
}
