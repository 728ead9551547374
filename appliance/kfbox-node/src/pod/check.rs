//! Probes and life-cycle hooks: one try each.
//! Upstream: <https://kubernetes.io/docs/tasks/configure-pod-container/configure-liveness-readiness-startup-probes/>

use crate::{
    runtime::{ExecSession, Runtime},
    shim::frames::Outcome,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::{
    api::core::v1::{Container, GRPCAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use std::{net::IpAddr, time::Duration};
use tokio::{io::AsyncReadExt, net::TcpStream};

/// What of a probe's output is told in an event.
const MAX_OUTPUT: usize = 10 * 1024;
const GRPC_SERVING: u64 = 1;

/// What is asked.
#[derive(Debug, Clone)]
pub enum Action {
    Exec(Vec<String>),
    Http(HTTPGetAction),
    Tcp(TCPSocketAction),
    Grpc(GRPCAction),
    Sleep(Duration),
}

impl Action {
    pub fn of_probe(probe: &Probe) -> Option<Self> {
        if let Some(exec) = &probe.exec {
            return Some(Self::Exec(exec.command.clone().unwrap_or_default()));
        }
        if let Some(http) = &probe.http_get {
            return Some(Self::Http(http.clone()));
        }
        if let Some(tcp) = &probe.tcp_socket {
            return Some(Self::Tcp(tcp.clone()));
        }
        probe.grpc.clone().map(Self::Grpc)
    }

    pub fn of_hook(hook: &LifecycleHandler) -> Option<Self> {
        if let Some(exec) = &hook.exec {
            return Some(Self::Exec(exec.command.clone().unwrap_or_default()));
        }
        if let Some(http) = &hook.http_get {
            return Some(Self::Http(http.clone()));
        }
        if let Some(sleep) = &hook.sleep {
            return Some(Self::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))));
        }
        hook.tcp_socket.clone().map(Self::Tcp)
    }
}

/// Where a container is.
#[derive(Debug, Clone)]
pub struct Target {
    pub id: String,
    pub container: Container,
    pub ip: Option<IpAddr>,
}

/// Asks once. The error says what was answered instead.
pub async fn check(runtime: &Runtime, target: &Target, action: &Action, timeout: Duration) -> Result<(), String> {
    let work = async {
        match action {
            Action::Exec(command) => exec(runtime, target, command).await,
            Action::Http(get) => http(target, get).await,
            Action::Tcp(tcp) => {
                let (host, port) = place(target, tcp.host.as_deref(), &tcp.port)?;
                connect(&host, port).await.map(drop)
            }
            Action::Grpc(grpc) => grpc_health(target, grpc).await,
            Action::Sleep(time) => {
                tokio::time::sleep(*time).await;
                Ok(())
            }
        }
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(match action {
            Action::Exec(command) => format!("command timed out: {command:?} timed out after {}s", timeout.as_secs()),
            _ => "context deadline exceeded".into(),
        }),
    }
}

async fn exec(runtime: &Runtime, target: &Target, command: &[String]) -> Result<(), String> {
    let session = runtime.exec(&target.id, command.to_vec(), false, false).map_err(|e| e.to_string())?;
    // The session is dropped with this future, and the process with the session.
    let ExecSession { stdin: _stdin, mut stdout, mut stderr, resize: _resize, exit } = session;
    let mut output = Vec::new();
    let (mut out, mut err) = ([0; 4096], [0; 4096]);
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        let (read, buffer) = tokio::select! {
            read = stdout.read(&mut out), if out_open => { out_open = matches!(read, Ok(n) if n > 0); (read, &out) }
            read = stderr.read(&mut err), if err_open => { err_open = matches!(read, Ok(n) if n > 0); (read, &err) }
        };
        let n = read.unwrap_or(0).min(MAX_OUTPUT.saturating_sub(output.len()));
        output.extend_from_slice(&buffer[..n]);
    }
    let text = String::from_utf8_lossy(&output).into_owned();
    match exit.await {
        Ok(Outcome::Exited(0)) => Ok(()),
        Ok(Outcome::Exited(_)) => Err(text),
        Ok(Outcome::Failed(why)) => Err(why),
        Err(_) => Err("the process was lost".into()),
    }
}

fn place(target: &Target, host: Option<&str>, port: &IntOrString) -> Result<(String, u16), String> {
    let host = match host.filter(|h| !h.is_empty()) {
        Some(host) => host.to_owned(),
        None => target.ip.map(|ip| ip.to_string()).ok_or("the pod has no address")?,
    };
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => name.parse().ok().or_else(|| {
            let ports = target.container.ports.as_deref().unwrap_or_default();
            ports.iter().find(|p| p.name.as_deref() == Some(name)).map(|p| p.container_port)
        }),
    };
    let number = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    Ok((host, number.ok_or_else(|| format!("invalid port number: {port:?}"))?))
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|error| format!("dial tcp {host}:{port}: connect: {error}"))
}

async fn http(target: &Target, get: &HTTPGetAction) -> Result<(), String> {
    let (host, port) = place(target, get.host.as_deref(), &get.port)?;
    let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let path = get.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let url = format!("{scheme}://{host}:{port}{path}");
    let mut request = http::Request::get(&path);
    let mut has_host = false;
    for header in get.http_headers.iter().flatten() {
        has_host |= header.name.eq_ignore_ascii_case("host");
        request = request.header(&header.name, &header.value);
    }
    if !has_host {
        request = request.header("host", format!("{host}:{port}"));
    }
    let request = request
        .header("user-agent", "kube-probe/1.36")
        .header("accept", "*/*")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let failed = |error: &dyn std::fmt::Display| format!("Get \"{url}\": {error}");
    let stream = connect(&host, port).await.map_err(|e| failed(&e))?;
    let code = if scheme == "https" {
        let stream = super::tls::connect_unverified(stream, &host).await.map_err(|e| failed(&e))?;
        ask(stream, request).await
    } else {
        ask(stream, request).await
    };
    match code.map_err(|e| failed(&e))? {
        200..400 => Ok(()),
        code => Err(format!("HTTP probe failed with statuscode: {code}")),
    }
}

async fn ask<S>(stream: S, request: http::Request<Empty<Bytes>>) -> Result<u16, hyper::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = sender.send_request(request);
    tokio::pin!(connection, answer);
    // The connection does the work; it lives only as long as this question.
    loop {
        tokio::select! {
            answer = &mut answer => return Ok(answer?.status().as_u16()),
            ended = &mut connection => ended?,
        }
    }
}

/// `grpc.health.v1.Health/Check`, which is one small message each way.
async fn grpc_health(target: &Target, grpc: &GRPCAction) -> Result<(), String> {
    let (host, port) = place(target, None, &IntOrString::Int(grpc.port))?;
    let stream = connect(&host, port).await?;
    let service = grpc.service.as_deref().unwrap_or_default();
    let name_length = u8::try_from(service.len()).ok().filter(|n| *n < 128).ok_or("the service name is too long")?;
    let mut message = Vec::new();
    if name_length > 0 {
        message.extend_from_slice(&[0x0a, name_length]);
        message.extend_from_slice(service.as_bytes());
    }
    let mut body = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap_or(0)];
    body.extend_from_slice(&message);
    let request = http::Request::post(format!("http://{host}:{port}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(text)?;
    let work = async {
        let answer = sender.send_request(request).await?;
        answer.into_body().collect().await.map(http_body_util::Collected::to_bytes)
    };
    tokio::pin!(connection, work);
    let answer = loop {
        tokio::select! {
            answer = &mut work => break answer.map_err(text)?,
            ended = &mut connection => ended.map_err(text)?,
        }
    };
    match answer.get(5..) {
        Some([0x08, status, ..]) if u64::from(*status) == GRPC_SERVING => Ok(()),
        _ => Err("service unhealthy (responded with \"NOT_SERVING\")".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ContainerPort;
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    fn target() -> Target {
        let ports = vec![ContainerPort { name: Some("web".into()), container_port: 8080, ..Default::default() }];
        Target {
            id: String::new(),
            container: Container { ports: Some(ports), ..Container::default() },
            ip: Some([127, 0, 0, 1].into()),
        }
    }

    #[test]
    fn ports_have_numbers_or_names() {
        let at = |port| place(&target(), None, &port);
        assert_eq!(at(IntOrString::String("web".into())).unwrap().1, 8080);
        assert_eq!(at(IntOrString::String("90".into())).unwrap().1, 90);
        assert!(at(IntOrString::String("no".into())).is_err());
        assert!(at(IntOrString::Int(0)).is_err() && at(IntOrString::Int(70000)).is_err());
    }

    async fn answer_once(answer: &'static str) -> (u16, impl Future<Output = String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..n]).into_owned()
        };
        (port, serve)
    }

    #[tokio::test]
    async fn http_answers_below_400_are_success() {
        for (answer, good) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true),
            ("HTTP/1.1 302 Found\r\ncontent-length: 0\r\nlocation: /\r\n\r\n", true),
            ("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", false),
        ] {
            let (port, serve) = answer_once(answer).await;
            let get = HTTPGetAction {
                path: Some("/health?x=1".into()),
                port: IntOrString::Int(i32::from(port)),
                ..HTTPGetAction::default()
            };
            let target = target();
            let (result, request) = tokio::join!(http(&target, &get), serve);
            assert_eq!(result.is_ok(), good, "{result:?}");
            assert!(request.starts_with("GET /health?x=1 HTTP/1.1\r\n"), "{request}");
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_a_failure() {
        let get = HTTPGetAction { port: IntOrString::Int(1), ..HTTPGetAction::default() };
        let error = http(&target(), &get).await.unwrap_err();
        assert!(error.starts_with("Get \"http://127.0.0.1:1/\": dial tcp 127.0.0.1:1: connect:"), "{error}");
    }
}
