//! Connections to a webhook that are kept for its next call.
//!
//! Guarantees: a pool belongs to one configuration of one webhook, so what its certificates were checked against never
//! changes; a connection is used again only for the address that it was made to, and only if nothing came in between;
//! there are at most [`MOST`] of them, none idle for longer than twice [`IDLE`].
//! Upstream: the transport of Go's `net/http`.

use crate::server::Core;
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{Connection, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};
use tokio::{net::TcpStream, time::Instant};

/// More calls of one webhook at a time make connections that end with them.
const MOST: usize = 8;
const IDLE: Duration = Duration::from_secs(90);

/// A host and a port.
pub type Address = (String, u16);

/// One connection. Nobody drives it while it is idle: it is heard when it is wanted again.
#[derive(Debug)]
pub struct Line {
    pub to: Address,
    pub sender: SendRequest<Full<Bytes>>,
    pub connection: Connection<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>, Full<Bytes>>,
    pub used: Instant,
}

impl Line {
    /// Whether another request may follow: the last answer was read to its end, and the server has not hung up.
    fn is_whole(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        Future::poll(Pin::new(&mut self.connection), &mut context).is_pending() && self.sender.is_ready()
    }
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    swept: bool,
}

#[derive(Debug, Default)]
pub struct Pool(Arc<Mutex<State>>);

impl Pool {
    /// A connection to this address that is as good as a new one.
    pub async fn take(&self, to: &Address) -> Option<Line> {
        if self.0.lock().lines.is_empty() {
            return None;
        }
        // Lets the runtime hear of a server that hung up just now.
        tokio::task::yield_now().await;
        loop {
            let mut state = self.0.lock();
            let at = state.lines.iter().rposition(|line| line.to == *to)?;
            let mut line = state.lines.swap_remove(at);
            drop(state);
            if line.used.elapsed() < IDLE && line.is_whole() {
                return Some(line);
            }
        }
    }

    pub fn put(&self, core: &Core, mut line: Line) {
        if !line.is_whole() {
            return;
        }
        line.used = Instant::now();
        let mut state = self.0.lock();
        if state.lines.len() < MOST {
            state.lines.push(line);
        }
        if std::mem::replace(&mut state.swept, true) {
            return;
        }
        // A webhook that is called no more keeps no connection; a pool that is gone needs no sweeping.
        let (pool, shutdown) = (Arc::downgrade(&self.0), core.shutdown.clone());
        core.tasks.spawn("webhook-connections", async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(IDLE) => {}
                    () = shutdown.cancelled() => return,
                }
                let Some(pool) = pool.upgrade() else { return };
                let mut state = pool.lock();
                state.lines.retain(|line| line.used.elapsed() < IDLE);
                if state.lines.is_empty() {
                    state.swept = false;
                    return;
                }
            }
        });
    }
}
