//! The API server's view of the node: logs, exec, attach, port-forward, metrics and the kubelet's HTTP paths.

use async_trait::async_trait;
use bytes::Bytes;
use kfbox_apiserver::{
    ContainerUsage, Duplex, ExecSession, Exit, Kubelet, KubeletError, LogOptions, LogStream, NodeUsage, PodUsage,
    Streams, TerminalSize, kubelet::HttpAnswer,
};
use kfbox_base::Tasks;
use kfbox_node::{Node, NodeError, Outcome};
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::{mpsc, oneshot},
};

pub struct NodeKubelet {
    pub node: Arc<Node>,
    pub tasks: Tasks,
}

/// Chunks under way between the two sides of a stream; a slow reader slows the process down.
const CHUNKS: usize = 16;
const CHUNK: usize = 32 * 1024;

#[async_trait]
impl Kubelet for NodeKubelet {
    async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        options: LogOptions,
    ) -> Result<LogStream, KubeletError> {
        let LogOptions { follow, tail_lines, since_seconds, since_time, timestamps, previous, limit_bytes, stream } =
            options;
        let options = kfbox_node::LogOptions {
            follow,
            tail_lines,
            since_seconds,
            since_time,
            timestamps,
            previous,
            limit_bytes,
            stream,
        };
        self.node.logs(namespace, pod, container, options).await.map_err(failed)
    }

    async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        command: Vec<String>,
        streams: Streams,
    ) -> Result<ExecSession, KubeletError> {
        let session = self.node.exec(namespace, pod, container, command, streams.tty, streams.stdin).await;
        Ok(self.session(session.map_err(failed)?, &streams))
    }

    async fn attach(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        streams: Streams,
    ) -> Result<ExecSession, KubeletError> {
        let session = self.node.attach(namespace, pod, container).await.map_err(failed)?;
        Ok(self.session(session, &streams))
    }

    async fn port_forward(&self, namespace: &str, pod: &str, port: u16) -> Result<Box<dyn Duplex>, KubeletError> {
        Ok(Box::new(self.node.port_forward(namespace, pod, port).await.map_err(failed)?))
    }

    async fn metrics(&self) -> Result<NodeUsage, KubeletError> {
        let usage = self.node.usage().await;
        let container = |c: &kfbox_node::ContainerUsage| ContainerUsage {
            name: c.name.clone(),
            cpu_nanocores: c.used.cpu_nanocores,
            memory_working_set_bytes: c.used.memory_working_set_bytes,
        };
        let pod = |p: &kfbox_node::PodUsage| PodUsage {
            namespace: p.namespace.clone(),
            name: p.name.clone(),
            containers: p.containers.iter().map(container).collect(),
        };
        Ok(NodeUsage {
            timestamp: usage.timestamp.clone(),
            window_seconds: usage.window.as_secs_f64(),
            cpu_nanocores: usage.used.cpu_nanocores,
            memory_working_set_bytes: usage.used.memory_working_set_bytes,
            pods: usage.pods.iter().map(pod).collect(),
        })
    }

    async fn http(&self, path: &str) -> Result<HttpAnswer, KubeletError> {
        let answer = self.node.http(path).await;
        let missing = || KubeletError::NotFound("404 page not found".into());
        answer.map(|(content_type, body)| HttpAnswer { content_type, body }).ok_or_else(missing)
    }
}

impl NodeKubelet {
    /// Byte streams on the node's side, channels on the API server's.
    fn session(&self, session: kfbox_node::ExecSession, streams: &Streams) -> ExecSession {
        let kfbox_node::ExecSession { stdin, stdout, stderr, resize, exit } = session;
        let (exit_send, exit_receive) = oneshot::channel();
        drop(self.tasks.spawn("exec exit", async move {
            let exit = match exit.await {
                Ok(Outcome::Exited(code)) => Exit::Code(code),
                Ok(Outcome::Failed(message)) => Exit::Failed(message),
                // The attached container ended; its own status tells how.
                Err(_) => Exit::Code(0),
            };
            let _ = exit_send.send(exit);
        }));
        ExecSession {
            stdin: streams.stdin.then(|| self.write_into(stdin)),
            stdout: streams.stdout.then(|| self.read_from(stdout)),
            stderr: (streams.stderr && !streams.tty).then(|| self.read_from(stderr)),
            resize: streams.tty.then(|| self.sizes(resize)),
            exit: exit_receive,
        }
    }

    fn write_into(&self, mut stream: DuplexStream) -> mpsc::Sender<Bytes> {
        let (send, mut receive) = mpsc::channel::<Bytes>(CHUNKS);
        drop(self.tasks.spawn("exec stdin", async move {
            while let Some(chunk) = receive.recv().await {
                if stream.write_all(&chunk).await.is_err() {
                    return;
                }
            }
            let _ = stream.shutdown().await;
        }));
        send
    }

    fn read_from(&self, mut stream: DuplexStream) -> mpsc::Receiver<Bytes> {
        let (send, receive) = mpsc::channel(CHUNKS);
        drop(self.tasks.spawn("exec output", async move {
            let mut chunk = vec![0; CHUNK];
            while let Ok(n @ 1..) = stream.read(&mut chunk).await {
                if send.send(Bytes::copy_from_slice(&chunk[..n])).await.is_err() {
                    return;
                }
            }
        }));
        receive
    }

    fn sizes(&self, resize: mpsc::Sender<kfbox_node::TerminalSize>) -> mpsc::Sender<TerminalSize> {
        let (send, mut receive) = mpsc::channel::<TerminalSize>(CHUNKS);
        drop(self.tasks.spawn("exec resize", async move {
            while let Some(TerminalSize { width, height }) = receive.recv().await {
                let size = kfbox_node::TerminalSize { columns: width, rows: height };
                if resize.send(size).await.is_err() {
                    return;
                }
            }
        }));
        send
    }
}

fn failed(error: NodeError) -> KubeletError {
    let message = error.to_string();
    match error {
        NodeError::NoPod(_) | NodeError::NoContainer { .. } | NodeError::NoPrevious { .. } => {
            KubeletError::NotFound(message)
        }
        NodeError::Waiting { .. } | NodeError::NotRunning { .. } => KubeletError::NotNow(message),
        _ => KubeletError::Failed(message),
    }
}
