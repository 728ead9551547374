//! Port-forward without SPDY, as kube-rs and the Python client do it: one WebSocket, two channels a port (data, error),
//! each opened by the server with the port's number. Source: `k8s.io/kubelet/pkg/cri/streaming/portforward/websocket.go`.

use crate::kubelet::{Duplex, Kubelet};
use axum::extract::ws::{Message, WebSocket};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};

/// Channels are one byte: two a port.
pub const PORTS: usize = 100;

/// Chunks queued for one port, and for the client by all ports.
const QUEUE: usize = 64;

const CHUNK: usize = 32 << 10;

/// The subprotocols; a client that names none speaks the first.
pub const PROTOCOLS: [&str; 2] = ["v4.channel.k8s.io", BASE64];

/// Text frames: the channel as a digit, then the data in base64.
const BASE64: &str = "v4.base64.channel.k8s.io";

#[derive(Clone, Copy)]
struct Dialect {
    base64: bool,
}

impl Dialect {
    fn frame(self, channel: usize, data: &[u8]) -> Message {
        let channel = u8::try_from(channel).unwrap_or(u8::MAX);
        if self.base64 {
            return Message::text(format!("{}{}", char::from(channel.wrapping_add(b'0')), STANDARD.encode(data)));
        }
        let mut frame = Vec::with_capacity(1 + data.len());
        frame.push(channel);
        frame.extend_from_slice(data);
        Message::binary(frame)
    }

    fn read(self, message: Message) -> Option<(u8, Bytes)> {
        match message {
            Message::Binary(data) if !self.base64 => Some((*data.first()?, data.slice(1..))),
            Message::Text(text) if self.base64 => {
                let (channel, data) = text.as_bytes().split_first()?;
                Some((channel.wrapping_sub(b'0'), STANDARD.decode(data).ok()?.into()))
            }
            _ => None,
        }
    }
}

pub async fn serve(
    socket: WebSocket,
    protocol: &str,
    kubelet: Arc<dyn Kubelet>,
    namespace: String,
    pod: String,
    ports: Vec<u16>,
) {
    let dialect = Dialect { base64: protocol == BASE64 };
    let (mut sink, mut source) = socket.split();
    let (out, mut outgoing) = mpsc::channel::<Message>(QUEUE);
    let mut inputs = Vec::new();
    let mut forwards = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        let (input, queue) = mpsc::channel::<Bytes>(QUEUE);
        inputs.push(input);
        let to = Port { number: port, index, dialect };
        forwards.push(forward(kubelet.clone(), namespace.clone(), pod.clone(), to, queue, out.clone()));
    }
    drop(out);
    let reading = async {
        while let Some(Ok(message)) = source.next().await {
            if matches!(message, Message::Close(_)) {
                break;
            }
            let Some((channel, data)) = dialect.read(message) else { continue };
            // Nothing is read from error channels.
            if channel % 2 == 0
                && let Some(input) = inputs.get(usize::from(channel / 2))
            {
                drop(input.send(data).await);
            }
        }
    };
    let writing = async {
        while let Some(message) = outgoing.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        drop(sink.send(Message::Close(None)).await);
    };
    let forwarding = async {
        futures::future::join_all(forwards).await;
        // The writer ends by itself once the last sender is gone.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
        () = forwarding => {}
    }
}

/// A port of the pod and its place among those asked for.
#[derive(Clone, Copy)]
struct Port {
    number: u16,
    index: usize,
    dialect: Dialect,
}

async fn forward(
    kubelet: Arc<dyn Kubelet>,
    namespace: String,
    pod: String,
    to: Port,
    queue: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<Message>,
) {
    let Port { number: port, index, dialect } = to;
    let (data, error) = (index * 2, index * 2 + 1);
    for channel in [data, error] {
        if out.send(dialect.frame(channel, &port.to_le_bytes())).await.is_err() {
            return;
        }
    }
    match kubelet.port_forward(&namespace, &pod, port).await {
        Ok(connection) => copy(connection, queue, &out, data, dialect).await,
        Err(why) => {
            let why = format!("error forwarding port {port} to pod {pod}: {why}");
            drop(out.send(dialect.frame(error, why.as_bytes())).await);
        }
    }
}

async fn copy(
    connection: Box<dyn Duplex>,
    mut queue: mpsc::Receiver<Bytes>,
    out: &mpsc::Sender<Message>,
    channel: usize,
    dialect: Dialect,
) {
    let (mut from_pod, mut to_pod) = tokio::io::split(connection);
    let up = async {
        while let Some(chunk) = queue.recv().await {
            if to_pod.write_all(&chunk).await.is_err() {
                break;
            }
        }
        // The pod's answer may still be on its way.
        std::future::pending::<()>().await;
    };
    let down = async {
        let mut chunk = vec![0; CHUNK];
        while let Ok(read) = from_pod.read(&mut chunk).await {
            if read == 0 || out.send(dialect.frame(channel, &chunk[..read])).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
