//! What the pipelines need from the rest of the daemon. The binary implements these over the object store, the
//! metadata store and the node; tests implement them in memory.

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use k8s_openapi::api::core::v1::Pod;
use kfbox_base::{BoxError, UserInfo};
use kube::api::{Api, LogParams};
use serde_json::Value;
use std::collections::BTreeMap;

pub type ByteStream = BoxStream<'static, Result<Bytes, BoxError>>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    pub key: String,
    pub size: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no such object")]
    NotFound,
    #[error("the disk that holds the artifacts is full")]
    Full,
    #[error("the object store failed: {0}")]
    Failed(#[source] BoxError),
    /// A store outside the box cannot be used, in words for who owns the step, without secrets.
    #[error("{0}")]
    Outside(String),
}

/// Objects by bucket and key. Callers have checked that the namespace may use the key; the store need not.
pub trait ArtifactStore: Send + Sync + 'static {
    /// Stores an object whole or not at all. `size` is known in advance; a shorter or longer body is an error.
    fn put<'a>(
        &'a self,
        bucket: &'a str,
        key: &'a str,
        size: u64,
        body: ByteStream,
    ) -> BoxFuture<'a, Result<(), StoreError>>;
    /// The object's size and content.
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> BoxFuture<'a, Result<(u64, ByteStream), StoreError>>;
    /// All objects whose key starts with `prefix`, sorted by key. A store outside the box gives the object of that key
    /// and those in the folder of that name, and not more of them than a step may have.
    fn list<'a>(&'a self, bucket: &'a str, prefix: &'a str) -> BoxFuture<'a, Result<Vec<ObjectInfo>, StoreError>>;
    /// Deleting what is not there succeeds.
    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>>;
}

/// Text that no log and no message shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(String);

impl Hidden {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

/// A store outside the box, with what opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutsideStore {
    S3(S3Store),
    /// `key`: a service account's, as JSON. Without one, what is public is read.
    Gcs {
        bucket: String,
        key: Option<Hidden>,
    },
    /// One file at an address of the web, its query included.
    Web {
        url: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Store {
    pub bucket: String,
    /// With its scheme. `None`: Amazon's, of the region.
    pub endpoint: Option<String>,
    pub region: String,
    /// The bucket is the first part of the path, not of the host's name.
    pub path_style: bool,
    pub max_retries: u32,
    /// Without keys, requests are not signed: what is public is read.
    pub keys: Option<S3Keys>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Keys {
    pub access: String,
    pub secret: Hidden,
    /// Of keys that hold for a while.
    pub session: Option<Hidden>,
}

/// Stores outside the box. Guarantees: which addresses are connected to is decided by the implementation for each
/// connection, by the address and not by the name; every wait has an end; no identity of the daemon's or of its machine
/// is shown to anybody.
pub trait OutsideStores: Send + Sync + 'static {
    fn open(&self, store: &OutsideStore) -> Result<std::sync::Arc<dyn ArtifactStore>, StoreError>;
}

#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// Not an address that packages may come from.
    #[error("{0}")]
    Refused(String),
    /// It did not answer, or not with a package.
    #[error("{0}")]
    Failed(String),
}

/// Pipeline packages by URL. The implementation decides which addresses may be asked; a caller's URL is not trusted.
pub trait PackageSource: Send + Sync + 'static {
    /// The whole content, of at most `limit` bytes.
    fn fetch<'a>(&'a self, url: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<u8>, PackageError>>;
}

/// Which namespaces a caller works in, their own first. Membership only; rights are asked of the `Authorizer`.
pub trait Namespaces: Send + Sync + 'static {
    fn of<'a>(&'a self, user: &'a UserInfo) -> BoxFuture<'a, Result<Vec<String>, BoxError>>;
}

/// The people of the box, for what is done in their name while they are away.
pub trait People: Send + Sync + 'static {
    /// The person as they are now, with today's groups. Who is no person of the box (a service account, a holder of a
    /// client certificate) comes back as given. An error says in words why nothing may be done in their name.
    fn current(&self, user: &UserInfo) -> Result<UserInfo, String>;
}

/// A run as ML Metadata knows it: a `system.Pipeline` context named after the pipeline, and a `system.PipelineRun`
/// context named after the run id below it.
#[derive(Debug, Clone, PartialEq)]
pub struct LineageRun {
    pub namespace: String,
    pub pipeline_name: String,
    pub run_id: String,
    /// `resource_name` of the run context: the run's display name.
    pub resource_name: String,
    /// `pipeline_root` of the run context.
    pub pipeline_root: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LineageContexts {
    pub pipeline: i64,
    pub run: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecutionKind {
    /// `system.ContainerExecution`
    Container,
    /// `system.DAGExecution`
    Dag,
    /// `system.ImporterExecution`
    Importer,
}

impl ExecutionKind {
    pub fn type_name(self) -> &'static str {
        match self {
            Self::Container => "system.ContainerExecution",
            Self::Dag => "system.DAGExecution",
            Self::Importer => "system.ImporterExecution",
        }
    }
}

/// An execution that starts. `custom_properties` are those that upstream's driver writes (`display_name`, `task_name`,
/// `parent_dag_id`, `iteration_index`, `iteration_count`, `pod_name`, `pod_uid`, `namespace`, `image`,
/// `cache_fingerprint`, `cached_execution_id`, `inputs`): strings, integers and, for `inputs`, an object.
#[derive(Debug, Clone, PartialEq)]
pub struct LineageExecution {
    pub contexts: LineageContexts,
    pub namespace: String,
    pub kind: ExecutionKind,
    /// Unique among all executions. Beginning the same name twice returns the first id: a daemon that was killed
    /// between the call and its own commit calls again.
    pub name: String,
    pub custom_properties: BTreeMap<String, Value>,
    /// Ids of the input artifacts by input name, for INPUT events.
    pub inputs: BTreeMap<String, Vec<i64>>,
}

/// Last known states of an execution, in ML Metadata's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecutionState {
    Complete,
    Failed,
    Cached,
    Canceled,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LineageArtifact {
    /// The output's name: the event's path and the default `display_name`.
    pub output: String,
    /// An artifact already recorded (a cached result, an imported one): only its event is written.
    pub id: Option<i64>,
    /// The artifact type's name, such as `system.Dataset`.
    pub schema_title: String,
    pub uri: String,
    /// Custom properties.
    pub metadata: serde_json::Map<String, Value>,
}

/// An execution that ended. Ending it twice with the same content must not record its artifacts twice.
#[derive(Debug, Clone, PartialEq)]
pub struct LineageResult {
    pub contexts: LineageContexts,
    pub namespace: String,
    pub execution: i64,
    pub state: ExecutionState,
    pub output_parameters: serde_json::Map<String, Value>,
    pub artifacts: Vec<LineageArtifact>,
}

/// Records who made what, as upstream's driver and launcher write it to ML Metadata.
pub trait Lineage: Send + Sync + 'static {
    fn begin_run<'a>(&'a self, run: &'a LineageRun) -> BoxFuture<'a, Result<LineageContexts, BoxError>>;
    fn begin_execution<'a>(&'a self, execution: &'a LineageExecution) -> BoxFuture<'a, Result<i64, BoxError>>;
    /// Returns the ids of the artifacts, in the order given.
    fn finish_execution<'a>(&'a self, result: &'a LineageResult) -> BoxFuture<'a, Result<Vec<i64>, BoxError>>;
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogRange {
    /// The last lines only; all when `None`.
    pub tail_lines: Option<i64>,
    /// Go on until the container ends.
    pub follow: bool,
}

/// The log of a pod that still exists.
pub trait StepLogs: Send + Sync + 'static {
    fn open<'a>(
        &'a self,
        namespace: &'a str,
        pod: &'a str,
        container: &'a str,
        range: LogRange,
    ) -> BoxFuture<'a, Result<ByteStream, BoxError>>;
}

/// [`StepLogs`] over the pods' `log` subresource.
pub struct KubeLogs(pub kube::Client);

impl StepLogs for KubeLogs {
    fn open<'a>(
        &'a self,
        namespace: &'a str,
        pod: &'a str,
        container: &'a str,
        range: LogRange,
    ) -> BoxFuture<'a, Result<ByteStream, BoxError>> {
        Box::pin(async move {
            let pods: Api<Pod> = Api::namespaced(self.0.clone(), namespace);
            let params = LogParams {
                container: Some(container.to_owned()),
                follow: range.follow,
                tail_lines: range.tail_lines,
                ..LogParams::default()
            };
            let reader = pods.log_stream(pod, &params).await?;
            Ok(read_to_stream(reader))
        })
    }
}

/// The chunk in which a log travels.
const LOG_CHUNK: usize = 16 * 1024;

fn read_to_stream(reader: impl futures::AsyncBufRead + Send + 'static) -> ByteStream {
    futures::stream::unfold(Some(Box::pin(reader)), |reader| async move {
        use futures::AsyncReadExt;
        let mut reader = reader?;
        let mut chunk = vec![0; LOG_CHUNK];
        match reader.read(&mut chunk).await {
            Ok(0) => None,
            Ok(n) => {
                chunk.truncate(n);
                Some((Ok(Bytes::from(chunk)), Some(reader)))
            }
            Err(error) => Some((Err(BoxError::from(error)), None)),
        }
    })
    .boxed()
}
