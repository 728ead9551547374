//! exec, attach and port-forward: over WebSocket (KEP-4006), or over SPDY for clients older than that. Guarantees: the
//! remote command's exit reaches the client as a Status on the error channel before the connection closes. Assumption:
//! the client speaks one of the `channel.k8s.io` protocols.

use super::{forward, pod, spdy};
use crate::{
    convert,
    kubelet::{ExecSession, Exit, Streams, TerminalSize},
    status::ApiError,
    verbs::Call,
};
use axum::{
    body::Body,
    extract::{
        FromRequestParts as _,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade},
    },
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, stream::SplitSink};
use http::{HeaderName, HeaderValue, StatusCode, header, request::Parts};
use hyper::upgrade::OnUpgrade;
use kfbox_base::{Decision, ResourceAttributes};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::mpsc;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// v5: the client closes one of its channels, named in the next byte.
const CLOSE: u8 = 255;

/// Newest first. `base64.` ones wrap every payload, for clients that have text frames only.
const PROTOCOLS: [&str; 6] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];

/// The other protocol to upgrade to.
const SPDY: &str = "SPDY/3.1";

/// A frame from the client; kubectl sends 32 KiB at most.
const FRAME_LIMIT: usize = 1 << 20;

/// What port-forward speaks over SPDY.
const PORT_FORWARD: [&str; 1] = ["portforward.k8s.io"];

/// In SPDY the client lists its protocols here, one a header or separated by commas.
const PROTOCOL_HEADER: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_HEADER: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

fn asks_for(parts: &Parts, protocol: &str) -> bool {
    let upgrade = parts.headers.get(header::UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    upgrade.eq_ignore_ascii_case(protocol)
}

pub async fn upgrade(
    mut parts: Parts,
    protocols: &[&'static str],
) -> Result<(WebSocketUpgrade, Option<String>), ApiError> {
    if !asks_for(&parts, "websocket") {
        return Err(ApiError::bad_request("Upgrade request required"));
    }
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &())
        .await
        .map_err(|e| ApiError::bad_request(format!("the WebSocket handshake failed: {e}")))?
        .max_message_size(FRAME_LIMIT)
        .max_frame_size(FRAME_LIMIT)
        .protocols(protocols.to_vec());
    let chosen = upgrade.selected_protocol().and_then(|p| p.to_str().ok()).map(str::to_owned);
    Ok((upgrade, chosen))
}

/// A stream is made, however it is asked for: WebSockets begin with GET, which by itself is the right to read (upstream's
/// AuthorizePodWebsocketUpgradeCreatePermission, on since 1.35).
fn may_create(call: &Call) -> Result<(), ApiError> {
    let target = &call.target;
    let wanted = ResourceAttributes {
        verb: "create".into(),
        group: target.group.clone(),
        resource: target.resource.clone(),
        subresource: target.subresource.clone(),
        namespace: target.namespace.clone(),
        name: target.name.clone(),
    };
    match call.core.rbac.authorize(&call.user, &wanted) {
        Decision::Deny(why) => Err(ApiError::forbidden(&target.group, &target.resource, &target.name, why)),
        _ => Ok(()),
    }
}

pub async fn exec(call: &Arc<Call>, parts: Parts) -> Result<Response, ApiError> {
    may_create(call)?;
    let stored = pod::stored_pod(call)?;
    let object = convert::value(&call.resource, &stored);
    let container = pod::container(call, &object)?;
    if matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        let phase = object["status"]["phase"].as_str().unwrap_or_default();
        return Err(ApiError::bad_request(format!(
            "cannot exec or attach into a container in a completed pod; current phase is {phase}"
        )));
    }
    let query = &call.query;
    let attaching = call.target.subresource == "attach";
    let flag = |name: &str, default: bool| if query.get(name).is_some() { query.flag(name) } else { default };
    let streams = Streams {
        stdin: flag("stdin", false),
        stdout: flag("stdout", true),
        stderr: flag("stderr", true),
        tty: flag("tty", false),
    };
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(ApiError::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    if !attaching && command.is_empty() {
        return Err(ApiError::bad_request("you must specify at least one command for the container"));
    }
    let kubelet = call.core.kubelet()?;
    let (namespace, name) = (call.namespace().to_owned(), call.target.name.clone());
    if asks_for(&parts, SPDY) {
        // v5 differs from v4 in WebSocket only.
        return switch_to_spdy(call, parts, &PROTOCOLS[1..5], move |connection, protocol| async move {
            let remote = spdy::Remote {
                streams: streams.clone(),
                resizable: protocol.starts_with("v3.") || protocol.starts_with("v4."),
                status: protocol.starts_with("v4."),
            };
            let start = async {
                if attaching {
                    kubelet.attach(&namespace, &name, &container, streams).await
                } else {
                    kubelet.exec(&namespace, &name, &container, command, streams).await
                }
            };
            spdy::exec(connection, remote, start).await;
        });
    }
    let (upgrade, protocol) = upgrade(parts, &PROTOCOLS).await?;
    let shutdown = call.core.shutdown.clone();
    let dialect = Dialect::of(&protocol.unwrap_or_default());
    Ok(respond(upgrade, move |socket| async move {
        let serve = async {
            let session = if attaching {
                kubelet.attach(&namespace, &name, &container, streams).await
            } else {
                kubelet.exec(&namespace, &name, &container, command, streams).await
            };
            match session {
                Ok(session) => carry(socket, session, dialect).await,
                // Told on the error channel: a refused upgrade would send kubectl looking for SPDY.
                Err(error) => finish(&mut socket.split().0, dialect, &Exit::Failed(error.to_string())).await,
            }
        };
        tokio::select! {
            () = serve => {}
            () = shutdown.cancelled() => {}
        }
    }))
}

/// Answers with the change of protocol and serves the connection in a task of its own.
fn switch_to_spdy<F, Fut>(
    call: &Call,
    mut parts: Parts,
    served: &[&'static str],
    serve: F,
) -> Result<Response, ApiError>
where
    F: FnOnce((spdy::Incoming, spdy::Outgoing), &'static str) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let asked = parts.headers.get_all(PROTOCOL_HEADER);
    let asked: Vec<&str> =
        asked.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim).collect();
    // The client's order counts. One that names none speaks the first version, which has no name.
    let chosen = match asked[..] {
        [] => served.last(),
        _ => asked.iter().find_map(|asked| served.iter().find(|served| *served == asked)),
    };
    let Some(chosen) = chosen.copied() else {
        let why = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {asked:?}, server accepts {served:?}"
        );
        let mut response = ApiError::new(StatusCode::FORBIDDEN, "Forbidden", why).into_response();
        for protocol in served {
            response.headers_mut().append(ACCEPTED_HEADER, HeaderValue::from_static(protocol));
        }
        return Ok(response);
    };
    let Some(connection) = parts.extensions.remove::<OnUpgrade>() else {
        return Err(ApiError::bad_request("the connection cannot be upgraded"));
    };
    let shutdown = call.core.shutdown.clone();
    call.core.tasks.spawn("kubernetes-spdy", async move {
        let serve = async {
            match connection.await {
                Ok(connection) => serve(spdy::upgraded(connection), chosen).await,
                Err(error) => tracing::debug!(%error, "a client left before its connection was upgraded"),
            }
        };
        tokio::select! {
            () = serve => {}
            () = shutdown.cancelled() => {}
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(SPDY));
    if !asked.is_empty() {
        headers.insert(PROTOCOL_HEADER, HeaderValue::from_static(chosen));
    }
    Ok(response)
}

/// The upgrade runs in a task of the connection, which the server owns.
fn respond<F, Fut>(upgrade: WebSocketUpgrade, serve: F) -> Response<Body>
where
    F: FnOnce(WebSocket) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    upgrade.on_upgrade(serve)
}

#[derive(Clone, Copy)]
struct Dialect {
    base64: bool,
    /// v4 on: the outcome is a Status; before, a failure is text and success is nothing.
    status: bool,
}

impl Dialect {
    fn of(protocol: &str) -> Self {
        Self {
            base64: protocol.starts_with("base64."),
            status: protocol.starts_with("v4.") || protocol.starts_with("v5."),
        }
    }

    fn frame(self, channel: u8, data: &[u8]) -> Message {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        if self.base64 {
            return Message::text(format!("{channel}{}", STANDARD.encode(data)));
        }
        let mut frame = Vec::with_capacity(data.len() + 1);
        frame.push(channel);
        frame.extend_from_slice(data);
        Message::binary(frame)
    }

    fn read(self, message: &Message) -> Option<(u8, Bytes)> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let data = match message {
            Message::Binary(data) => data.clone(),
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            _ => return None,
        };
        let channel = *data.first()?;
        if self.base64 {
            return Some((channel.wrapping_sub(b'0'), STANDARD.decode(&data[1..]).ok()?.into()));
        }
        Some((channel, data.slice(1..)))
    }
}

async fn carry(socket: WebSocket, session: ExecSession, dialect: Dialect) {
    let ExecSession { mut stdin, stdout, stderr, resize, exit } = session;
    let (mut out, mut incoming) = socket.split();

    let reading = async move {
        while let Some(Ok(message)) = incoming.next().await {
            if matches!(message, Message::Close(_)) {
                break;
            }
            match dialect.read(&message) {
                // An empty frame opens the channel, which is open already.
                Some((STDIN, data)) if !data.is_empty() => {
                    if let Some(sender) = &stdin
                        && sender.send(data).await.is_err()
                    {
                        stdin = None;
                    }
                }
                Some((CLOSE, data)) if data.first() == Some(&STDIN) => stdin = None,
                Some((RESIZE, data)) => {
                    if let (Some(resize), Some(size)) = (&resize, terminal_size(&data)) {
                        // Fails when the process has ended, which the writing side tells.
                        let _ = resize.send(size).await;
                    }
                }
                _ => {}
            }
        }
    };
    let writing = async move {
        let (mut stdout, mut stderr) = (stdout, stderr);
        loop {
            let (channel, data) = tokio::select! {
                data = receive(&mut stdout) => (STDOUT, data),
                data = receive(&mut stderr) => (STDERR, data),
                else => break,
            };
            match data {
                Some(data) => {
                    if out.send(dialect.frame(channel, &data)).await.is_err() {
                        return;
                    }
                }
                None if channel == STDOUT => stdout = None,
                None => stderr = None,
            }
            if stdout.is_none() && stderr.is_none() {
                break;
            }
        }
        let exit = exit.await.unwrap_or_else(|_| Exit::Failed("the container's process was lost".into()));
        finish(&mut out, dialect, &exit).await;
    };
    tokio::select! {
        // The client is gone: dropping the session hangs up.
        () = reading => {}
        () = writing => {}
    }
}

pub(super) async fn receive(channel: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match channel {
        Some(channel) => channel.recv().await,
        None => std::future::pending().await,
    }
}

/// What the error channel says at the end: a Status, or in older protocols the text of a failure.
pub(super) fn outcome(status: bool, exit: &Exit) -> Option<String> {
    match (status, exit) {
        (true, exit) => Some(exit_status(exit).to_string()),
        (false, Exit::Code(0)) => None,
        (false, Exit::Code(code)) => Some(format!("command terminated with non-zero exit code: exit status {code}")),
        (false, Exit::Failed(why)) => Some(why.clone()),
    }
}

async fn finish(out: &mut SplitSink<WebSocket, Message>, dialect: Dialect, exit: &Exit) {
    if let Some(text) = outcome(dialect.status, exit) {
        drop(out.send(dialect.frame(ERROR, text.as_bytes())).await);
    }
    drop(out.send(Message::Close(Some(CloseFrame { code: 1000, reason: "".into() }))).await);
}

fn exit_status(exit: &Exit) -> Value {
    match exit {
        Exit::Code(0) => json!({"metadata": {}, "status": "Success"}),
        Exit::Code(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Exit::Failed(why) => json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": format!("Internal error occurred: {why}"),
        }),
    }
}

pub(super) fn terminal_size(data: &[u8]) -> Option<TerminalSize> {
    let size: Value = serde_json::from_slice(data).ok()?;
    let side = |name: &str| size[name].as_u64().and_then(|n| u16::try_from(n).ok());
    Some(TerminalSize { width: side("Width")?, height: side("Height")? })
}

pub async fn port_forward(call: &Arc<Call>, parts: Parts) -> Result<Response, ApiError> {
    may_create(call)?;
    let pod = pod::stored_pod(call)?.value();
    if pod["status"]["phase"] != "Running" {
        return Err(ApiError::bad_request(format!(
            "unable to forward port because pod is not running. Current status={}",
            pod["status"]["phase"].as_str().unwrap_or("Unknown")
        )));
    }
    if asks_for(&parts, SPDY) {
        let (kubelet, tasks) = (call.core.kubelet()?, call.core.tasks.clone());
        let (namespace, name) = (call.namespace().to_owned(), call.target.name.clone());
        return switch_to_spdy(call, parts, &PORT_FORWARD, move |connection, _| async move {
            spdy::port_forward(connection, kubelet, namespace, name, tasks).await;
        });
    }
    let asked = parts.headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL);
    let [binary, base64] = forward::PROTOCOLS;
    let (upgrade, protocol) = upgrade(parts, &[spdy::TUNNEL, binary, base64]).await?;
    let protocol = match protocol {
        Some(protocol) => protocol,
        // kr8s, for one.
        None if !asked => binary.to_owned(),
        None => {
            let why = format!("port-forward needs one of the subprotocols {}, {binary}, {base64}", spdy::TUNNEL);
            return Err(ApiError::bad_request(why));
        }
    };
    let ports = forwarded_ports(call)?;
    if protocol != spdy::TUNNEL && ports.is_empty() {
        return Err(ApiError::bad_request("query parameter \"ports\" is required"));
    }
    let kubelet = call.core.kubelet()?;
    let (namespace, name) = (call.namespace().to_owned(), call.target.name.clone());
    let shutdown = call.core.shutdown.clone();
    let tasks = call.core.tasks.clone();
    Ok(respond(upgrade, move |socket| async move {
        let serve = async {
            if protocol == spdy::TUNNEL {
                spdy::port_forward(spdy::tunnelled(socket), kubelet, namespace, name, tasks).await;
            } else {
                forward::serve(socket, &protocol, kubelet, namespace, name, ports).await;
            }
        };
        tokio::select! {
            () = serve => {}
            () = shutdown.cancelled() => {}
        }
    }))
}

/// `ports=80&ports=443` or `ports=80,443`.
fn forwarded_ports(call: &Call) -> Result<Vec<u16>, ApiError> {
    let numbers = call.query.all("ports").flat_map(|p| p.split(',')).filter(|p| !p.is_empty());
    let ports: Vec<u16> = numbers
        .map(|p| p.parse().map_err(|_| ApiError::bad_request(format!("unable to parse {p:?} as a port"))))
        .collect::<Result<_, _>>()?;
    if ports.len() > forward::PORTS {
        return Err(ApiError::bad_request(format!("at most {} ports at once", forward::PORTS)));
    }
    Ok(ports)
}
