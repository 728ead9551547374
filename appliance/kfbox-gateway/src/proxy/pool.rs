//! Connections to pods by HTTP/1.1 that wait for the next request. Guarantees: a connection carries one request at a time,
//! and comes back when its answer was read to the end; what waits is bounded for each pod, and in time.

use axum::body::Body;
use bytes::Bytes;
use futures::future::poll_fn;
use http::{Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;
use kfbox_base::{BoxError, Tasks};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

const CONNECT: Duration = Duration::from_secs(5);
/// Connections that wait for the next request of anybody, for one pod and this long.
const IDLE: usize = 32;
const IDLE_FOR: Duration = Duration::from_secs(30);

type Sender = http1::SendRequest<Body>;

/// A cloneable handle. Connections live on the runtime that they were made on.
#[derive(Clone)]
pub(super) struct Pool {
    idle: Arc<Mutex<Idle>>,
    tasks: Tasks,
}

#[derive(Default)]
struct Idle {
    waiting: HashMap<SocketAddr, Vec<(Instant, Sender)>>,
    /// Somebody will close those that waited too long.
    swept: bool,
}

pub(super) enum Failure {
    /// No connection could be made and nothing was sent: the request, if it is still there.
    Unreached(Option<Box<Request<Body>>>),
    /// It ended before an answer began.
    Broken(BoxError),
}

impl Pool {
    pub fn new(tasks: Tasks) -> Self {
        Self { idle: Arc::default(), tasks }
    }

    /// `again` copies the requests that do no harm twice: a pod that closes a connection at the moment that it is used has
    /// seen nothing, but cannot be told from one that fails.
    pub async fn send(
        &self,
        to: SocketAddr,
        mut request: Request<Body>,
        again: fn(&Request<Body>) -> Option<Request<Body>>,
    ) -> Result<Response<Body>, Failure> {
        while let Some(mut sender) = self.take(to) {
            let spare = again(&request);
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.answer(to, sender, response)),
                Err(error) => request = unsent(error, spare)?,
            }
        }
        let mut sender = match self.connect(to).await {
            Ok(sender) => sender,
            Err(error) => {
                tracing::debug!(%error, address = %to, "a pod cannot be reached");
                return Err(Failure::Unreached(Some(Box::new(request))));
            }
        };
        match sender.try_send_request(request).await {
            Ok(response) => Ok(self.answer(to, sender, response)),
            Err(error) => Err(Failure::Broken(error.into_error().into())),
        }
    }

    async fn connect(&self, to: SocketAddr) -> Result<Sender, BoxError> {
        let stream = tokio::time::timeout(CONNECT, TcpStream::connect(to)).await??;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        self.tasks.spawn("gateway-to-pod", async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, address = %to, "a connection to a pod");
            }
        });
        poll_fn(|cx| sender.poll_ready(cx)).await?;
        Ok(sender)
    }

    fn take(&self, to: SocketAddr) -> Option<Sender> {
        let mut idle = self.idle.lock();
        let waiting = idle.waiting.get_mut(&to)?;
        // The youngest is the least likely to be closed at the other end.
        while let Some((since, sender)) = waiting.pop() {
            if sender.is_ready() && since.elapsed() < IDLE_FOR {
                return Some(sender);
            }
        }
        None
    }

    fn put(&self, to: SocketAddr, sender: Sender) {
        let shutdown = self.tasks.shutdown();
        if sender.is_closed() || shutdown.is_cancelled() {
            return;
        }
        let mut idle = self.idle.lock();
        let waiting = idle.waiting.entry(to).or_default();
        if waiting.len() < IDLE {
            waiting.push((Instant::now(), sender));
        }
        if !std::mem::replace(&mut idle.swept, true) {
            self.tasks.spawn("gateway-idle", sweep(Arc::downgrade(&self.idle), shutdown));
        }
    }

    fn answer(&self, to: SocketAddr, sender: Sender, response: Response<Incoming>) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return response.map(Body::new);
        }
        response.map(|body| {
            let mut answer = Answer { body, back: Some((self.clone(), to, sender)) };
            answer.give_back_if_read();
            Body::new(answer)
        })
    }
}

/// The request, if sending it once more cannot do it twice.
fn unsent(mut error: TrySendError<Request<Body>>, spare: Option<Request<Body>>) -> Result<Request<Body>, Failure> {
    if let Some(request) = error.take_message() {
        return Ok(request);
    }
    let error = error.into_error();
    let closed = error.is_incomplete_message() || error.is_canceled() || error.is_closed();
    spare.filter(|_| closed).ok_or(Failure::Broken(error.into()))
}

/// Ends when nothing waits any more.
async fn sweep(pool: Weak<Mutex<Idle>>, shutdown: CancellationToken) {
    loop {
        let over = tokio::time::timeout(IDLE_FOR / 2, shutdown.cancelled()).await.is_ok();
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.lock();
        idle.waiting.retain(|_, waiting| {
            waiting.retain(|(since, sender)| !over && since.elapsed() < IDLE_FOR && !sender.is_closed());
            !waiting.is_empty()
        });
        if idle.waiting.is_empty() {
            idle.swept = false;
            return;
        }
    }
}

/// An answer's body; read to the end, it gives its connection back.
struct Answer {
    body: Incoming,
    back: Option<(Pool, SocketAddr, Sender)>,
}

impl Answer {
    fn give_back_if_read(&mut self) {
        if self.body.is_end_stream() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        if let Some((pool, to, sender)) = self.back.take() {
            pool.put(to, sender);
        }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => self.give_back(),
            Poll::Ready(Some(Ok(_))) => self.give_back_if_read(),
            // Its connection is of no more use.
            Poll::Ready(Some(Err(_))) => self.back = None,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
