//! What the API server asks of the node for a pod's log, exec, attach and port-forward, and what is used of it. The node implements it; plain
//! channels, so that no wire protocol reaches it.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    /// Only the last lines; `Some(0)` is none of the past.
    pub tail_lines: Option<u64>,
    pub since_seconds: Option<i64>,
    /// RFC 3339.
    pub since_time: Option<String>,
    /// Each line preceded by its RFC 3339 time and a space.
    pub timestamps: bool,
    /// The log of the container's previous run.
    pub previous: bool,
    pub limit_bytes: Option<u64>,
    /// `All`, `Stdout` or `Stderr`; all when absent.
    pub stream: Option<String>,
}

/// What the kubelet's own HTTP API answers to a `GET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAnswer {
    pub content_type: &'static str,
    pub body: String,
}

pub type LogStream = BoxStream<'static, std::io::Result<Bytes>>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// With this code; for a signal 128 plus its number.
    Code(i32),
    /// It could not be run or watched.
    Failed(String),
}

/// A running exec or attach. Dropping it hangs up. Dropping `stdin` closes the process's standard input; a closed
/// `stdout` or `stderr` has ended.
pub struct ExecSession {
    pub stdin: Option<mpsc::Sender<Bytes>>,
    pub stdout: Option<mpsc::Receiver<Bytes>>,
    pub stderr: Option<mpsc::Receiver<Bytes>>,
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    pub exit: oneshot::Receiver<Exit>,
}

pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The node does not know the pod or container.
    #[error("{0}")]
    NotFound(String),
    /// It knows it, but not in a state to do this, such as a container that still waits to start.
    #[error("{0}")]
    NotNow(String),
    #[error("{0}")]
    Failed(String),
}

/// What the node and its pods used of CPU and memory, over a window that ends at `timestamp`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeUsage {
    /// RFC 3339.
    pub timestamp: String,
    /// The time over which CPU was measured.
    pub window_seconds: f64,
    /// Billionths of a core, on average over the window.
    pub cpu_nanocores: u64,
    /// Memory that cannot be given back under pressure: usage less the inactive file cache.
    pub memory_working_set_bytes: u64,
    pub pods: Vec<PodUsage>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodUsage {
    pub namespace: String,
    pub name: String,
    pub containers: Vec<ContainerUsage>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    pub name: String,
    pub cpu_nanocores: u64,
    pub memory_working_set_bytes: u64,
}

#[async_trait]
pub trait Kubelet: Send + Sync + 'static {
    async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        options: LogOptions,
    ) -> Result<LogStream, KubeletError>;

    /// A `GET` of the kubelet's own HTTP API, by way of `nodes/NAME/proxy`; the path has its leading slash.
    async fn http(&self, path: &str) -> Result<HttpAnswer, KubeletError> {
        Err(KubeletError::NotFound(format!("the node serves no {path}")))
    }

    async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        command: Vec<String>,
        streams: Streams,
    ) -> Result<ExecSession, KubeletError>;

    async fn attach(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        streams: Streams,
    ) -> Result<ExecSession, KubeletError>;

    /// A connection to the port inside the pod's network.
    async fn port_forward(&self, namespace: &str, pod: &str, port: u16) -> Result<Box<dyn Duplex>, KubeletError>;

    /// What is used now, for `metrics.k8s.io`. A pod that has not been measured yet is left out.
    async fn metrics(&self) -> Result<NodeUsage, KubeletError> {
        Err(KubeletError::NotNow("this node does not measure what its pods use".into()))
    }
}
