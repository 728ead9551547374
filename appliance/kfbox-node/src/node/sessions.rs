//! Processes, streams and ports of running containers.

use super::{Node, NodeError};
use crate::{
    pod::record::{self, uid},
    runtime::{ExecSession, Handle, Stage},
    shim::records::ProcessRef,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::net::TcpStream;

/// A port that does not answer is given up.
const CONNECT: Duration = Duration::from_secs(10);

impl Node {
    pub(super) fn container(&self, pod: &Pod, name: &str) -> Result<Container, NodeError> {
        let pod_name = pod.metadata.name.clone().unwrap_or_default();
        let spec = pod.spec.as_ref();
        let found = spec.and_then(|s| record::find(s, name));
        found
            .map(std::borrow::Cow::into_owned)
            .ok_or_else(|| NodeError::NoContainer { container: name.into(), pod: pod_name })
    }

    fn running(&self, pod: &Pod, container: &str) -> Result<Handle, NodeError> {
        let key = (uid(pod).to_owned(), container.to_owned());
        self.ctx.handles.lock().get(&key).cloned().ok_or_else(|| NodeError::NotRunning {
            container: container.into(),
            pod: pod.metadata.name.clone().unwrap_or_default(),
        })
    }

    /// Runs a command in a container.
    pub async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        command: Vec<String>,
        tty: bool,
        stdin: bool,
    ) -> Result<ExecSession, NodeError> {
        let pod = self.pod(namespace, pod)?;
        self.container(&pod, container)?;
        let handle = self.running(&pod, container)?;
        Ok(self.ctx.runtime.exec(&handle.id, command, tty, stdin)?)
    }

    /// Joins the streams of a container's own process.
    pub async fn attach(&self, namespace: &str, pod: &str, container: &str) -> Result<ExecSession, NodeError> {
        let pod = self.pod(namespace, pod)?;
        self.container(&pod, container)?;
        let handle = self.running(&pod, container)?;
        Ok(self.ctx.runtime.attach(&handle.dir).await?)
    }

    /// Connects to a port as seen from inside the pod: also one that listens on its loopback only.
    pub async fn port_forward(&self, namespace: &str, pod: &str, port: u16) -> Result<TcpStream, NodeError> {
        let pod = self.pod(namespace, pod)?;
        let failed = |source| NodeError::Port { port, source };
        let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
        let ip = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()).and_then(|ip| ip.parse().ok());
        if host_network {
            let connect = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
            return tokio::time::timeout(CONNECT, connect)
                .await
                .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
                .map_err(failed);
        }
        // Any of its containers shows the way into the pod's network.
        let handles: Vec<Handle> =
            self.ctx.handles.lock().iter().filter(|((of, _), _)| of == uid(&pod)).map(|(_, h)| h.clone()).collect();
        let process = handles.iter().find_map(|handle| match handle.stage() {
            Stage::Running(started) => Some(started.init),
            Stage::Creating | Stage::Ended(_) => None,
        });
        let process = process.ok_or_else(|| failed(io::Error::other("no container of the pod is running")))?;
        let connected = tokio::task::spawn_blocking(move || {
            // A socket stays in the namespace in which it was made, so a thread is spent on entering it.
            std::thread::spawn(move || connect_inside(process, ip, port)).join()
        });
        let stream = match connected.await {
            Ok(Ok(result)) => result.map_err(failed)?,
            Ok(Err(_)) | Err(_) => return Err(failed(io::Error::other("the connecting thread failed"))),
        };
        TcpStream::from_std(stream).map_err(failed)
    }
}

fn connect_inside(process: ProcessRef, ip: Option<IpAddr>, port: u16) -> io::Result<std::net::TcpStream> {
    let namespace = File::open(format!("/proc/{}/ns/net", process.pid))?;
    if !process.exists() {
        return Err(io::ErrorKind::NotConnected.into());
    }
    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
    let candidates = [Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), ip, Some(IpAddr::V6(Ipv6Addr::LOCALHOST))];
    let mut first = None;
    for address in candidates.into_iter().flatten() {
        match std::net::TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT) {
            Ok(stream) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}
