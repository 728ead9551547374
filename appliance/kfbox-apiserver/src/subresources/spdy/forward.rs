//! Port-forward over SPDY: two streams a connection, `error` and `data`, joined by the `requestID` in their headers.

use super::{
    CHUNK, Incoming, Outgoing,
    frames::{Broken, Frame, Headers, Inflate, PING, REFUSED, control, data, goaway, reply, reset},
};
use crate::kubelet::{Duplex, Kubelet};
use bytes::Bytes;
use kfbox_base::Tasks;
use std::{collections::HashMap, sync::Arc};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

/// Streams at once: two for each forwarded connection.
const STREAMS: usize = 1000;

/// Chunks queued for one connection to the pod.
const QUEUE: usize = 64;

/// Frames queued for the client by all streams together.
const OUTGOING: usize = 64;

/// One forwarded connection while its two streams open.
#[derive(Default)]
struct Half {
    error: Option<u32>,
    data: Option<u32>,
}

struct Session {
    kubelet: Arc<dyn Kubelet>,
    namespace: String,
    pod: String,
    tasks: Tasks,
    out: mpsc::Sender<Bytes>,
    inflate: Inflate,
    replied: bool,
    opening: HashMap<String, Half>,
    /// Data streams that are connected; an empty chunk is the end.
    running: HashMap<u32, Running>,
    streams: usize,
}

struct Running {
    input: mpsc::Sender<Bytes>,
    reset: CancellationToken,
}

pub async fn serve(
    (mut incoming, mut outgoing): (Incoming, Outgoing),
    kubelet: Arc<dyn Kubelet>,
    namespace: String,
    pod: String,
    tasks: Tasks,
) {
    let (out, mut queue) = mpsc::channel::<Bytes>(OUTGOING);
    let mut session = Session {
        kubelet,
        namespace,
        pod,
        tasks,
        out,
        inflate: Inflate::new(),
        replied: false,
        opening: HashMap::new(),
        running: HashMap::new(),
        streams: 0,
    };
    let reading = async {
        loop {
            let done = match incoming.next().await {
                Ok(None | Some(Frame::GoAway)) => return,
                Ok(Some(frame)) => session.frame(frame).await,
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                tracing::debug!(%error, "a port-forward session ended");
                return;
            }
        }
    };
    let writing = async {
        while let Some(frame) = queue.recv().await {
            if !outgoing.send(frame).await {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
    // Connections to the pod end with the session.
    for running in session.running.values() {
        running.reset.cancel();
    }
    outgoing.send(goaway(0)).await;
    outgoing.close().await;
}

impl Session {
    async fn send(&self, frame: Bytes) {
        // Fails only when the socket is gone, which ends the session by itself.
        drop(self.out.send(frame).await);
    }

    async fn frame(&mut self, frame: Frame) -> Result<(), Broken> {
        match frame {
            Frame::Open { stream, block, .. } => {
                let headers = self.inflate.block(&block)?;
                self.streams += 1;
                if self.streams > STREAMS {
                    self.send(reset(stream, REFUSED)).await;
                    return Ok(());
                }
                let first = !std::mem::replace(&mut self.replied, true);
                self.send(reply(stream, first)).await;
                self.open(stream, &headers).await;
            }
            Frame::Data { stream, fin, data } => {
                let Some(running) = self.running.get(&stream) else { return Ok(()) };
                if !data.is_empty() {
                    drop(running.input.send(data).await);
                }
                if fin {
                    drop(running.input.send(Bytes::new()).await);
                }
            }
            Frame::Reset { stream } => {
                if let Some(running) = self.running.remove(&stream) {
                    running.reset.cancel();
                }
            }
            Frame::Ping { id } => self.send(control(PING, &id.to_be_bytes())).await,
            Frame::GoAway | Frame::Other => {}
        }
        self.running.retain(|_, r| !r.input.is_closed());
        self.streams = self.running.len() * 2 + self.opening.len() * 2;
        Ok(())
    }

    async fn open(&mut self, stream: u32, headers: &Headers) {
        let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
        let request = header("requestid");
        let half = self.opening.entry(request.clone()).or_default();
        match header("streamtype").as_str() {
            "error" => half.error = Some(stream),
            "data" => half.data = Some(stream),
            _ => return,
        }
        let (Some(error), Some(data_stream)) = (half.error, half.data) else { return };
        self.opening.remove(&request);
        let Ok(port) = header("port").parse::<u16>() else {
            fail(&self.out, error, data_stream, "the port is not a number").await;
            return;
        };
        let (input, queue) = mpsc::channel(QUEUE);
        let reset = CancellationToken::new();
        self.running.insert(data_stream, Running { input, reset: reset.clone() });
        let (kubelet, out) = (self.kubelet.clone(), self.out.clone());
        let (namespace, pod) = (self.namespace.clone(), self.pod.clone());
        let shutdown = self.tasks.shutdown();
        self.tasks.spawn("port-forward", async move {
            let forward = async {
                match kubelet.port_forward(&namespace, &pod, port).await {
                    Ok(connection) => copy(connection, queue, &out, error, data_stream).await,
                    Err(why) => {
                        let why = format!("error forwarding port {port} to pod {pod}: {why}");
                        fail(&out, error, data_stream, &why).await;
                    }
                }
            };
            tokio::select! {
                () = forward => {}
                () = reset.cancelled() => {}
                () = shutdown.cancelled() => {}
            }
        });
    }
}

async fn fail(out: &mpsc::Sender<Bytes>, error: u32, data_stream: u32, why: &str) {
    for frame in [data(error, true, why.as_bytes()), data(data_stream, true, &[])] {
        drop(out.send(frame).await);
    }
}

/// Until both directions have ended, or the pod's side has failed.
async fn copy(
    connection: Box<dyn Duplex>,
    mut queue: mpsc::Receiver<Bytes>,
    out: &mpsc::Sender<Bytes>,
    error: u32,
    data_stream: u32,
) {
    let (mut from_pod, mut to_pod) = tokio::io::split(connection);
    let up = async {
        while let Some(chunk) = queue.recv().await {
            let end = chunk.is_empty();
            let done = if end { to_pod.shutdown().await } else { to_pod.write_all(&chunk).await };
            if end || done.is_err() {
                break;
            }
        }
    };
    let down = async {
        let mut chunk = vec![0; CHUNK];
        loop {
            match from_pod.read(&mut chunk).await {
                Ok(0) | Err(_) => break,
                Ok(read) => {
                    if out.send(data(data_stream, false, &chunk[..read])).await.is_err() {
                        break;
                    }
                }
            }
        }
        for frame in [data(data_stream, true, &[]), data(error, true, &[])] {
            drop(out.send(frame).await);
        }
    };
    tokio::pin!(up);
    tokio::pin!(down);
    // The client's end may come first and leaves the pod's answer to be read; the pod's end is the end.
    tokio::select! {
        () = &mut down => {}
        () = &mut up => down.await,
    }
}
