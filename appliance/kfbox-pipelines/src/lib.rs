//! Kubeflow Pipelines in the daemon: the v2beta1 REST API, the engine that runs pipelines, the API that steps report
//! to. Architecture Invariant: no driver pods; a step costs one container. Every transition is in `pipelines.db` before
//! it takes effect.

mod debug;
mod engine;
mod error;
mod namespaces;
mod outside;
mod ports;
mod resources;
mod rest;
mod retention;
mod roots;
mod schedule;
mod spec;
mod store;
mod task_api;
#[cfg(test)]
mod tests;
mod time;
mod view;

pub use error::{ApiError, ApiResult, Code};
pub use ports::{
    ArtifactStore, ByteStream, ExecutionKind, ExecutionState, Hidden, KubeLogs, Lineage, LineageArtifact,
    LineageContexts, LineageExecution, LineageResult, LineageRun, LogRange, Namespaces, ObjectInfo, OutsideStore,
    OutsideStores, PackageError, PackageSource, People, S3Keys, S3Store, StepLogs, StoreError,
};
pub use resources::Admission;
pub use retention::Retention;
pub use store::Forgotten;
pub use view::{ArtifactView, EdgeView, NodeDetail, NodeView, RunDetail, RunView};

use axum::Router;
use engine::{Engine, model::State};
use kfbox_base::{Authorizer, Readiness, Tasks};
use parking_lot::Mutex;
use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::broadcast;

/// Changes that a slow page may miss before it is told to look again.
const CHANGES: usize = 1024;

#[derive(Debug, Clone)]
pub struct Config {
    /// Holds `pipelines.db` and `step-logs/`.
    pub data_dir: PathBuf,
    /// The image with `/kfbox-launcher`, such as `kfbox.local/launcher:0.1.0`.
    pub launcher_image: String,
    /// Where pods reach [`Pipelines::task_router`], such as `http://10.244.0.1:8887`.
    pub task_api_url: String,
    /// For steps that do not set their own.
    pub pip_index_url: Option<String>,
    pub pip_trusted_host: Option<String>,
    /// Where artifacts go: a URI that ends in `/{namespace}`.
    pub pipeline_root: String,
    /// For runs that name none.
    pub service_account: String,
    /// Whether steps with `enableCache` reuse the outputs of equal ones.
    pub caching: bool,
    /// How long a container may be kept from starting (an image that cannot be pulled) before its step fails.
    pub start_deadline: Duration,
    pub retention: Retention,
}

impl Config {
    pub fn new(
        data_dir: impl Into<PathBuf>,
        launcher_image: impl Into<String>,
        task_api_url: impl Into<String>,
    ) -> Self {
        Self {
            data_dir: data_dir.into(),
            launcher_image: launcher_image.into(),
            task_api_url: task_api_url.into(),
            pip_index_url: None,
            pip_trusted_host: None,
            pipeline_root: "minio://mlpipeline/v2/artifacts/{namespace}".into(),
            service_account: "default-editor".into(),
            caching: true,
            start_deadline: Duration::from_secs(60),
            retention: Retention::default(),
        }
    }
}

/// What the rest of the daemon provides.
#[derive(Clone)]
pub struct Deps {
    pub client: kube::Client,
    pub authorizer: Arc<dyn Authorizer>,
    pub namespaces: Arc<dyn Namespaces>,
    pub people: Arc<dyn People>,
    pub artifacts: Arc<dyn ArtifactStore>,
    pub outside: Arc<dyn OutsideStores>,
    pub lineage: Arc<dyn Lineage>,
    pub logs: Arc<dyn StepLogs>,
    pub packages: Arc<dyn PackageSource>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Database(#[from] kfbox_db::OpenError),
    #[error(transparent)]
    Root(#[from] roots::RootError),
    #[error("the pipelines' data cannot be read: {0}")]
    Resume(#[source] ApiError),
    #[error("cannot create {path}: {source}")]
    Folder {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A run changed in some way: look again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunChange {
    pub run_id: String,
    pub namespace: String,
    /// v2beta1's name of the run's state.
    pub state: &'static str,
}

pub(crate) struct Core {
    pub config: Config,
    pub deps: Deps,
    pub store: store::Store,
    pub roots: roots::Roots,
    pub tasks: Tasks,
    changes: broadcast::Sender<RunChange>,
}

impl Core {
    pub(crate) fn announce(&self, run_id: &str, namespace: &str, state: State) {
        // Nobody listening is fine.
        drop(self.changes.send(RunChange { run_id: run_id.into(), namespace: namespace.into(), state: state.name() }));
    }
}

pub(crate) struct Inner {
    core: Arc<Core>,
    pub engine: Engine,
    pub schedule: schedule::Schedule,
    pub cleaner: retention::Cleaner,
    /// Namespaces on their way out, in which nothing new is made.
    pub ending: Mutex<HashSet<String>>,
}

impl std::ops::Deref for Inner {
    type Target = Core;
    fn deref(&self) -> &Core {
        &self.core
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Pipelines {
    pub(crate) inner: Arc<Inner>,
}

impl Pipelines {
    /// Opens the database and takes up the runs that had not ended. The cluster may still be starting: its watch is
    /// tried until it works.
    pub async fn open(config: Config, deps: Deps, tasks: &Tasks, readiness: &Readiness) -> Result<Self, StartError> {
        let component = readiness.component("pipelines");
        let started = Self::start(config, deps, tasks).await;
        match &started {
            Ok(_) => component.ready(),
            Err(error) => component.failed(error.to_string()),
        }
        started
    }

    async fn start(config: Config, deps: Deps, tasks: &Tasks) -> Result<Self, StartError> {
        std::fs::create_dir_all(&config.data_dir)
            .map_err(|source| StartError::Folder { path: config.data_dir.clone(), source })?;
        let store = store::Store::open(&config.data_dir.join("pipelines.db"))?;
        let roots = roots::Roots::parse(&config.pipeline_root)?;
        let core = Arc::new(Core {
            config,
            deps,
            store,
            roots,
            tasks: tasks.clone(),
            changes: broadcast::Sender::new(CHANGES),
        });
        let engine = Engine::new(core.clone());
        engine.resume().await.map_err(StartError::Resume)?;
        let inner = Arc::new(Inner {
            core,
            engine,
            schedule: schedule::Schedule::default(),
            cleaner: retention::Cleaner::default(),
            ending: Mutex::default(),
        });
        tasks.essential("recurring runs", schedule::run(inner.clone()));
        tasks.essential("retention of runs", retention::run(inner.clone()));
        Ok(Self { inner })
    }

    /// The users' API, `/apis/v2beta1/…`. The caller is the request's `UserInfo` extension.
    pub fn router(&self) -> Router {
        rest::router(self.inner.clone()).merge(debug::router(self.inner.clone()))
    }

    /// The API for launchers; to be served on an address that pods reach and nobody else needs.
    pub fn task_router(&self) -> Router {
        task_api::router(self.inner.clone()).merge(debug::task_router(self.inner.clone()))
    }

    /// What the cluster's API server asks before it takes a pipeline's resources; to be served over TLS to it alone.
    pub fn admission_router(&self) -> Router {
        resources::admission_router(self.inner.clone())
    }

    /// Installs the resources `Pipeline`, `PipelineVersion` and `ScheduledWorkflow` and follows them until shutdown.
    pub fn follow_resources(&self, admission: Admission) {
        self.inner.tasks.essential("pipeline resources", resources::run(self.inner.clone(), admission));
    }

    /// Ends and deletes all that belongs to a namespace: runs with their pods, logs and artifacts, schedules, pipelines,
    /// experiments and cached results. Doing it again finds nothing. Until [`Self::welcome_namespace`], nothing new is
    /// made in it.
    pub async fn forget_namespace(&self, namespace: &str) -> ApiResult<Forgotten> {
        namespaces::forget(&self.inner, namespace).await
    }

    /// A namespace of that name is there, and stays: what [`Self::forget_namespace`] closed is open.
    pub fn welcome_namespace(&self, namespace: &str) {
        self.inner.ending.lock().remove(namespace);
    }

    /// The namespaces that own something here.
    pub async fn namespaces_in_use(&self) -> ApiResult<Vec<String>> {
        self.inner.store.namespaces_in_use().await
    }

    /// Each change of a run, in order. A receiver that lags is told so by its channel.
    pub fn changes(&self) -> broadcast::Receiver<RunChange> {
        self.inner.core.changes.subscribe()
    }
}
