//! The daemon's side.

use super::{ErrorBody, Gpus, ImageRequest, ImageRow, People, Progress, S3Credentials, Status, StopRequest, people};
use axum::{
    Json, Router,
    body::Body,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, future::BoxFuture};
use kfbox_base::{Readiness, Tasks};
use kfbox_gateway::Tls;
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};
use tokio::sync::mpsc;

/// What the components behind the socket can do, once they are up.
pub trait Backend: People {
    fn kubeconfig(&self) -> Result<Value, ErrorBody>;
    fn s3_credentials(&self, namespace: Option<String>) -> BoxFuture<'_, Result<S3Credentials, ErrorBody>>;
    fn images(&self) -> BoxFuture<'_, Result<Vec<ImageRow>, ErrorBody>>;
    fn gpus(&self) -> Gpus;
    fn remove_image(&self, name: String) -> BoxFuture<'_, Result<(), ErrorBody>>;
    /// Sends progress and, last, `Done` or `Error`.
    fn import_image(&self, request: ImageRequest, progress: mpsc::Sender<Progress>) -> BoxFuture<'static, ()>;
    fn pull_image(&self, request: ImageRequest, progress: mpsc::Sender<Progress>) -> BoxFuture<'static, ()>;
}

/// What the daemon says about itself. Cloning shares it.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

struct Inner {
    instance: String,
    url: String,
    user: String,
    addresses: BTreeMap<String, String>,
    since: Instant,
    readiness: Readiness,
    tasks: Tasks,
    password: Mutex<Option<String>>,
    backend: OnceLock<Arc<dyn Backend>>,
    backend_set: tokio::sync::Notify,
    tls: OnceLock<Arc<Tls>>,
    end_pods: AtomicBool,
}

impl Control {
    pub fn new(
        instance: &str,
        url: String,
        user: &str,
        addresses: BTreeMap<String, String>,
        readiness: Readiness,
        tasks: Tasks,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                instance: instance.to_owned(),
                url,
                user: user.to_owned(),
                addresses,
                since: Instant::now(),
                readiness,
                tasks,
                password: Mutex::default(),
                backend: OnceLock::new(),
                backend_set: tokio::sync::Notify::new(),
                tls: OnceLock::new(),
                end_pods: AtomicBool::new(false),
            }),
        }
    }

    /// The first user's password, until a client has claimed it.
    pub fn set_password(&self, password: String) {
        *self.inner.password.lock().unwrap_or_else(PoisonError::into_inner) = Some(password);
    }

    pub fn take_password(&self) -> Option<String> {
        self.inner.password.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether the one who stopped the daemon wants the containers to end too.
    pub fn ends_pods(&self) -> bool {
        self.inner.end_pods.load(Ordering::SeqCst)
    }

    pub fn set_backend(&self, backend: Arc<dyn Backend>) {
        let _ = self.inner.backend.set(backend);
        self.inner.backend_set.notify_waiters();
    }

    /// Whose certificate it tells of.
    pub fn set_tls(&self, tls: Arc<Tls>) {
        let _ = self.inner.tls.set(tls);
    }

    pub(super) fn backend(&self) -> Result<&Arc<dyn Backend>, Failed> {
        self.inner.backend.get().ok_or_else(|| {
            Failed(ErrorBody {
                error: "kfbox is still starting".into(),
                next: "`kfbox up` waits until it is ready; then try again".into(),
            })
        })
    }

    pub fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            instance: self.inner.instance.clone(),
            ready: self.inner.readiness.is_ready() && self.inner.backend.get().is_some(),
            uptime_seconds: self.inner.since.elapsed().as_secs(),
            resident_bytes: resident_bytes(),
            url: self.inner.url.clone(),
            user: self.inner.user.clone(),
            addresses: self.inner.addresses.clone(),
            components: self.inner.readiness.snapshot(),
            certificate: self.inner.tls.get().and_then(|tls| tls.acme()),
            password: None,
        }
    }
}

/// `VmRSS` of `/proc/self/status`, in bytes; 0 if it cannot be read.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

/// Binds the socket (its folder is private to its owner) and serves it until shutdown.
pub fn serve(control: Control, path: &Path, tasks: &Tasks) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = tokio::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let shutdown = tasks.shutdown();
    let router = router(control);
    tasks.essential("control", async move {
        axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
    });
    Ok(())
}

fn router(control: Control) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/status/watch", get(watch))
        .route("/v1/stop", post(stop))
        .route("/v1/kubeconfig", get(kubeconfig))
        .route("/v1/credentials/s3", get(s3_credentials))
        .route("/v1/images", get(images).delete(remove_image))
        .route("/v1/gpus", get(gpus))
        .route("/v1/images/import", post(import_image))
        .route("/v1/images/pull", post(pull_image))
        .merge(people::routes())
        .with_state(control)
}

pub(super) struct Failed(ErrorBody);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (StatusCode::CONFLICT, Json(self.0)).into_response()
    }
}

impl From<ErrorBody> for Failed {
    fn from(body: ErrorBody) -> Self {
        Self(body)
    }
}

pub(super) type Answer<T> = Result<Json<T>, Failed>;

#[derive(Deserialize)]
struct StatusQuery {
    #[serde(default)]
    claim: bool,
}

async fn status(State(control): State<Control>, Query(query): Query<StatusQuery>) -> Json<Status> {
    let mut status = control.status();
    if query.claim {
        status.password = control.take_password();
    }
    Json(status)
}

async fn watch(State(control): State<Control>) -> Response {
    let mut changes = control.inner.readiness.subscribe();
    let shutdown = control.inner.tasks.shutdown();
    lines(async_stream::stream! {
        loop {
            // Asked for before looking, so that a change in between is not missed.
            let backend_set = control.inner.backend_set.notified();
            tokio::pin!(backend_set);
            backend_set.as_mut().enable();
            changes.mark_unchanged();
            yield control.status();
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                () = backend_set => {}
            }
        }
    })
}

fn lines<T: serde::Serialize>(items: impl Stream<Item = T> + Send + 'static) -> Response {
    let body = items.map(|item| {
        let mut line = serde_json::to_vec(&item)?;
        line.push(b'\n');
        Ok::<_, serde_json::Error>(Bytes::from(line))
    });
    Body::from_stream(body).into_response()
}

async fn stop(State(control): State<Control>, Json(request): Json<StopRequest>) -> Answer<Value> {
    control.inner.end_pods.store(!request.keep_pods, Ordering::SeqCst);
    control.inner.tasks.stop();
    Ok(Json(Value::Null))
}

async fn kubeconfig(State(control): State<Control>) -> Answer<Value> {
    Ok(Json(control.backend()?.kubeconfig()?))
}

#[derive(Deserialize)]
struct NamespaceQuery {
    namespace: Option<String>,
}

async fn s3_credentials(State(control): State<Control>, Query(query): Query<NamespaceQuery>) -> Answer<S3Credentials> {
    Ok(Json(control.backend()?.s3_credentials(query.namespace).await?))
}

async fn images(State(control): State<Control>) -> Answer<Vec<ImageRow>> {
    Ok(Json(control.backend()?.images().await?))
}

async fn gpus(State(control): State<Control>) -> Answer<Gpus> {
    Ok(Json(control.backend()?.gpus()))
}

#[derive(Deserialize)]
struct NameQuery {
    name: String,
}

async fn remove_image(State(control): State<Control>, Query(query): Query<NameQuery>) -> Answer<Value> {
    control.backend()?.remove_image(query.name).await?;
    Ok(Json(Value::Null))
}

/// Progress that a slow terminal has not read yet: older lines are worthless, but few are ever behind.
const PROGRESS_QUEUE: usize = 64;

async fn import_image(State(control): State<Control>, Json(request): Json<ImageRequest>) -> Result<Response, Failed> {
    let (send, receive) = mpsc::channel(PROGRESS_QUEUE);
    let work = control.backend()?.import_image(request, send);
    control.inner.tasks.spawn("image-import", work);
    Ok(lines(tokio_stream::wrappers::ReceiverStream::new(receive)))
}

async fn pull_image(State(control): State<Control>, Json(request): Json<ImageRequest>) -> Result<Response, Failed> {
    let (send, receive) = mpsc::channel(PROGRESS_QUEUE);
    let work = control.backend()?.pull_image(request, send);
    control.inner.tasks.spawn("image-pull", work);
    Ok(lines(tokio_stream::wrappers::ReceiverStream::new(receive)))
}
