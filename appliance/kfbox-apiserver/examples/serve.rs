//! The API server alone, for trying clients against it: `serve DATA_DIR` prints the path of a kubeconfig and serves on a
//! free port until it is interrupted. Its "node" runs commands, and forwards ports, on this machine.

use bytes::Bytes;
use futures::StreamExt as _;
use kfbox_apiserver::{
    ApiServer, Config, Duplex, ExecSession, Exit, Kubelet, KubeletError, LogOptions, LogStream, Streams,
};
use kfbox_base::Tasks;
use std::{process::Stdio, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, oneshot},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir: std::path::PathBuf = std::env::args().nth(1).ok_or("usage: serve DATA_DIR")?.into();
    let started = std::time::Instant::now();
    let tasks = Tasks::new();
    let server = ApiServer::open(Config::new(&dir), &tasks).await?;
    server.set_kubelet(Arc::new(ThisMachine(tasks.clone())));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    server.serve(listener, &tasks)?;
    let path = dir.join("admin.kubeconfig");
    std::fs::write(&path, server.admin_kubeconfig(&format!("https://{address}"))?.to_string())?;
    println!("{} ({:?})", path.display(), started.elapsed());
    tokio::signal::ctrl_c().await?;
    tasks.stop();
    tasks.drain(std::time::Duration::from_secs(5)).await;
    Ok(())
}

struct ThisMachine(Tasks);

impl ThisMachine {
    fn pump(&self, mut from: impl AsyncRead + Send + Unpin + 'static) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(16);
        self.0.spawn("pump", async move {
            let mut chunk = vec![0; 8192];
            while let Ok(read @ 1..) = from.read(&mut chunk).await {
                if sender.send(Bytes::copy_from_slice(&chunk[..read])).await.is_err() {
                    break;
                }
            }
        });
        receiver
    }
}

#[async_trait::async_trait]
impl Kubelet for ThisMachine {
    async fn logs(&self, _: &str, pod: &str, container: &str, options: LogOptions) -> Result<LogStream, KubeletError> {
        let line = Bytes::from(format!("the log of {container} in {pod}: {options:?}\n"));
        Ok(futures::stream::iter([Ok(line)]).boxed())
    }

    async fn exec(
        &self,
        _: &str,
        _: &str,
        _: &str,
        command: Vec<String>,
        _: Streams,
    ) -> Result<ExecSession, KubeletError> {
        let failed = |e: std::io::Error| KubeletError::Failed(e.to_string());
        let mut child = tokio::process::Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let stdout = child.stdout.take().map(|s| self.pump(s));
        let stderr = child.stderr.take().map(|s| self.pump(s));
        let (stdin, mut input) = mpsc::channel::<Bytes>(16);
        if let Some(mut pipe) = child.stdin.take() {
            self.0.spawn("stdin", async move {
                while let Some(chunk) = input.recv().await {
                    if pipe.write_all(&chunk).await.is_err() {
                        break;
                    }
                }
            });
        }
        let (send, exit) = oneshot::channel();
        self.0.spawn("process", async move {
            let exit = match child.wait().await {
                Ok(status) => Exit::Code(status.code().unwrap_or(137)),
                Err(error) => Exit::Failed(error.to_string()),
            };
            drop(send.send(exit));
        });
        Ok(ExecSession { stdin: Some(stdin), stdout, stderr, resize: None, exit })
    }

    async fn attach(
        &self,
        ns: &str,
        pod: &str,
        container: &str,
        streams: Streams,
    ) -> Result<ExecSession, KubeletError> {
        self.exec(ns, pod, container, vec!["cat".into()], streams).await
    }

    async fn port_forward(&self, _: &str, _: &str, port: u16) -> Result<Box<dyn Duplex>, KubeletError> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await;
        Ok(Box::new(stream.map_err(|e| KubeletError::Failed(e.to_string()))?))
    }
}
