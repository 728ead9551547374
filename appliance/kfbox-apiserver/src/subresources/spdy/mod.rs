//! Streams over SPDY/3.1, in two clothes: an upgraded connection, as Go clients before kubectl 1.30 and every program
//! with client-go's SPDY executor use it, and frames tunnelled in a WebSocket, as kubectl forwards ports since 1.31
//! (KEP-4006).
//!
//! Guarantees: memory is bounded by the queues; a malformed frame ends the session. Assumption: neither side counts
//! windows, as the library of all Kubernetes clients (moby/spdystream) does not; what holds a sender back is TCP. A pod
//! that does not read therefore holds back the other streams of the same connection.

mod exec;
mod forward;
mod frames;

pub use exec::{Remote, serve as exec};
pub use forward::serve as port_forward;

use axum::extract::ws::{Message, WebSocket};
use bytes::{Bytes, BytesMut};
use frames::{Broken, Frame};
use futures::{SinkExt as _, StreamExt as _, stream::BoxStream, stream::SplitSink};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt as _, WriteHalf};
use tokio_util::io::ReaderStream;

/// The WebSocket subprotocol of port-forward's tunnel.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Bytes taken off the connection at once.
const CHUNK: usize = 32 << 10;

/// Where frames come from.
pub struct Incoming {
    chunks: BoxStream<'static, Bytes>,
    buffer: BytesMut,
}

impl Incoming {
    /// None at the client's end.
    async fn next(&mut self) -> Result<Option<Frame>, Broken> {
        loop {
            if let Some(frame) = frames::take_frame(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            match self.chunks.next().await {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }

    /// Reads and forgets until the client's end: a connection closed over unread bytes is reset, and what was sent last
    /// is lost with it.
    async fn drain(&mut self) {
        while self.chunks.next().await.is_some() {}
    }
}

/// Where frames go.
pub enum Outgoing {
    Socket(SplitSink<WebSocket, Message>),
    Connection(WriteHalf<TokioIo<Upgraded>>),
}

impl Outgoing {
    /// False when the client is gone.
    async fn send(&mut self, frame: Bytes) -> bool {
        match self {
            Self::Socket(socket) => socket.send(Message::Binary(frame)).await.is_ok(),
            Self::Connection(connection) => {
                connection.write_all(&frame).await.is_ok() && connection.flush().await.is_ok()
            }
        }
    }

    async fn close(&mut self) {
        match self {
            Self::Socket(socket) => drop(socket.close().await),
            Self::Connection(connection) => drop(connection.shutdown().await),
        }
    }
}

pub fn tunnelled(socket: WebSocket) -> (Incoming, Outgoing) {
    let (sink, source) = socket.split();
    let open = |message: &Result<Message, _>| {
        let goes_on = matches!(message, Ok(message) if !matches!(message, Message::Close(_)));
        futures::future::ready(goes_on)
    };
    let chunks = source.take_while(open).filter_map(|message| async move {
        match message {
            Ok(Message::Binary(bytes)) => Some(bytes),
            _ => None,
        }
    });
    (Incoming { chunks: chunks.boxed(), buffer: BytesMut::new() }, Outgoing::Socket(sink))
}

pub fn upgraded(connection: Upgraded) -> (Incoming, Outgoing) {
    let (read, write) = tokio::io::split(TokioIo::new(connection));
    let chunks = ReaderStream::with_capacity(read, CHUNK)
        .take_while(|chunk| futures::future::ready(chunk.is_ok()))
        .filter_map(|chunk| async move { chunk.ok() });
    (Incoming { chunks: chunks.boxed(), buffer: BytesMut::new() }, Outgoing::Connection(write))
}
