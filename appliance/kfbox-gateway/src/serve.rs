//! Accepting connections, plain or over TLS, HTTP/1.1 or HTTP/2: by what TLS agrees on, and without TLS by how a connection
//! begins (RFC 9113 section 3.3). No connection changes from one to the other. Guarantees: one that sends no complete
//! request header (or finishes no handshake) in time is closed; at shutdown requests in progress get a few seconds, and the
//! task ends whatever clients do; plain HTTP on a TLS port is told so, and is answered with nothing else but an ACME
//! server's challenge; who came for such a challenge in TLS is told nothing after the handshake (RFC 8737 section 3).

mod preface;

use crate::{
    front::{Front, Source},
    tls::acme::challenges::{self, Challenges},
};
use axum::{Router, body::Body, extract::ConnectInfo};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kfbox_base::{BoxError, Tasks};
use preface::{Rewound, Version};
use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Connections at once. Browsers hold one for each live page, SDKs a handful; at some 40 KiB each this bounds memory.
pub(crate) const CONNECTIONS: usize = 2048;
/// A header or a handshake that takes longer is a stalled client or an attack.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// An HTTP/2 connection that is silent is asked whether it is still there, and closed if it does not say.
const PING: Duration = Duration::from_secs(60);
const PONG: Duration = Duration::from_secs(20);
/// Requests at once of one HTTP/2 connection.
const STREAMS: u32 = 128;
/// What a request in progress gets at shutdown.
const GRACE: Duration = Duration::from_secs(3);
/// The first byte of a TLS record that begins a handshake; no HTTP request begins with it.
const HANDSHAKE: u8 = 0x16;
/// What comes with an upgrade to HTTP/2.
static SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// In the extensions of a request that came over TLS.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OverTls;

/// What a listener speaks.
#[derive(Clone)]
pub(crate) enum Entrance {
    Plain,
    Tls(TlsAcceptor, Lead),
    /// Plain, for those who come by `http://` to what is reached by https.
    Redirect(Lead),
}

/// What plain requests get where https is spoken.
#[derive(Clone)]
pub(crate) struct Lead {
    /// Where they are sent.
    pub url: Arc<str>,
    pub challenges: Option<Arc<Challenges>>,
}

pub(crate) fn serve(name: &str, listener: TcpListener, entrance: Entrance, router: Router, tasks: &Tasks) {
    accept(name.to_owned(), listener, entrance, router.into(), tasks, Arc::new(Semaphore::new(CONNECTIONS)));
}

/// On the current runtime; `slots` may be shared with others who accept from the same listener.
pub(crate) fn accept(
    name: String,
    listener: TcpListener,
    entrance: Entrance,
    answers: Answers,
    tasks: &Tasks,
    slots: Arc<Semaphore>,
) {
    accept_within(name, listener, entrance, answers, tasks, slots, HEADER_TIMEOUT);
}

/// With `patience` for headers and handshakes.
pub(crate) fn accept_within(
    name: String,
    listener: TcpListener,
    entrance: Entrance,
    answers: Answers,
    tasks: &Tasks,
    slots: Arc<Semaphore>,
    patience: Duration,
) {
    let (shutdown, all) = (tasks.shutdown(), tasks.clone());
    tasks.essential(name, async move {
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return Ok::<(), BoxError>(()) };
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let (answers, shutdown, entrance) = (answers.clone(), shutdown.clone(), entrance.clone());
                    all.spawn("gateway-connection", async move {
                        let _slot = slot;
                        enter(stream, peer, entrance, Serving { answers, shutdown, patience }).await;
                    });
                }
                // Out of descriptors, or the peer is gone already: waiting is all that helps.
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
}

/// What each connection of a listener needs.
struct Serving {
    answers: Answers,
    shutdown: CancellationToken,
    patience: Duration,
}

async fn enter(stream: TcpStream, peer: SocketAddr, entrance: Entrance, serving: Serving) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let (acceptor, lead) = match entrance {
        Entrance::Plain => {
            return match begin(stream, &serving).await {
                Some((Version::First, stream)) => first_version(stream, peer, false, serving).await,
                Some((Version::Second, stream)) => second_version(stream, peer, false, serving).await,
                None => {}
            };
        }
        Entrance::Redirect(lead) => {
            return tokio::select! {
                () = serving.shutdown.cancelled() => {}
                () = tell_plain(stream, lead) => {}
            };
        }
        Entrance::Tls(acceptor, lead) => (acceptor, lead),
    };
    let handshake = async {
        let mut first = [0_u8];
        match stream.peek(&mut first).await {
            Ok(1) if first[0] == HANDSHAKE => Some(Ok(acceptor.accept(stream).await)),
            Ok(1) => Some(Err(stream)),
            _ => None,
        }
    };
    let handshake = tokio::select! {
        () = serving.shutdown.cancelled() => return,
        done = tokio::time::timeout(serving.patience, handshake) => done,
    };
    match handshake {
        Ok(Some(Ok(Ok(stream)))) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
            // Agreed on, but hyper would wait for the preface without an end.
            if let Some((_, stream)) = begin(stream, &serving).await {
                second_version(stream, peer, true, serving).await;
            }
        }
        Ok(Some(Ok(Ok(mut stream)))) if stream.get_ref().1.alpn_protocol() == Some(challenges::ALPN) => {
            tracing::info!(%peer, "an ACME server looked at a challenge");
            drop(tokio::time::timeout(GRACE, stream.shutdown()).await);
        }
        Ok(Some(Ok(Ok(stream)))) => first_version(stream, peer, true, serving).await,
        Ok(Some(Ok(Err(error)))) => tracing::debug!(%error, %peer, "TLS handshake"),
        Ok(Some(Err(plain))) => tell_plain(plain, lead).await,
        Ok(None) | Err(_) => {}
    }
}

/// `None` where nothing is said in time that can be told apart.
async fn begin<S: AsyncRead + Unpin>(stream: S, serving: &Serving) -> Option<(Version, Rewound<S>)> {
    tokio::select! {
        () = serving.shutdown.cancelled() => None,
        read = tokio::time::timeout(serving.patience, preface::read(stream)) => read.ok()?.ok(),
    }
}

async fn first_version<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    peer: SocketAddr,
    tls: bool,
    serving: Serving,
) {
    let Serving { answers, shutdown, patience } = serving;
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .serve_connection(TokioIo::new(stream), service(answers, peer, tls))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, %peer, "connection");
            }
            return;
        }
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    drop(tokio::time::timeout(GRACE, connection).await);
}

async fn second_version<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    peer: SocketAddr,
    tls: bool,
    serving: Serving,
) {
    let Serving { answers, shutdown, .. } = serving;
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .max_concurrent_streams(STREAMS)
        .serve_connection(TokioIo::new(stream), service(answers, peer, tls));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, %peer, "connection");
            }
            return;
        }
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    drop(tokio::time::timeout(GRACE, connection).await);
}

/// Who answers what comes in at a listener.
#[derive(Clone)]
pub(crate) enum Answers {
    Front(Front),
    Router(Router),
}

impl From<Front> for Answers {
    fn from(front: Front) -> Self {
        Self::Front(front)
    }
}

impl From<Router> for Answers {
    fn from(router: Router) -> Self {
        Self::Router(router)
    }
}

type Answering = futures::future::BoxFuture<'static, Result<axum::response::Response, Infallible>>;

fn service(
    answers: Answers,
    peer: SocketAddr,
    tls: bool,
) -> impl hyper::service::Service<
    hyper::Request<Incoming>,
    Response = axum::response::Response,
    Error = Infallible,
    Future = Answering,
> {
    hyper::service::service_fn(move |request: hyper::Request<Incoming>| -> Answering {
        let mut request = request.map(Body::new);
        // HTTP/2 names the host in the URI; everything behind reads it as HTTP/1.1 has it.
        if let Some(authority) = request.uri().authority().cloned() {
            if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
                request.headers_mut().insert(header::HOST, host);
            }
            if let Some(path) = request.uri().path_and_query().cloned() {
                *request.uri_mut() = Uri::from(path);
            }
        }
        remain(request.headers_mut());
        match &answers {
            Answers::Front(front) => {
                let front = front.clone();
                Box::pin(async move { Ok(front.answer(request, Source { peer: Some(peer), tls }).await) })
            }
            Answers::Router(router) => {
                request.extensions_mut().insert(ConnectInfo(peer));
                if tls {
                    request.extensions_mut().insert(OverTls);
                }
                Box::pin(router.clone().oneshot(request))
            }
        }
    })
}

/// An upgrade to HTTP/2 is not offered, which leaves the request as it is (RFC 9110 section 7.8). A pod that took it would
/// answer requests behind the first that nobody looked at.
fn remain(headers: &mut HeaderMap) {
    let asked = headers.get_all(header::UPGRADE).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    let second = asked
        .map(|one| one.trim_ascii().to_ascii_lowercase())
        .any(|one| one.starts_with(b"h2") || one.starts_with(b"http/2"));
    if second {
        headers.remove(header::UPGRADE);
        headers.remove(&SETTINGS);
    }
}

/// Somebody typed `http://`: a page is led to the gateway's own https address, everything else is told.
async fn tell_plain(stream: TcpStream, lead: Lead) {
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        let to = format!("{}{}", lead.url.trim_end_matches('/'), if path.starts_with('/') { path } else { "/" });
        let page = matches!(*request.method(), Method::GET | Method::HEAD);
        let mut response = Response::new("this port speaks HTTPS\n".to_owned());
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        let challenge = lead.challenges.as_ref().filter(|_| page).and_then(|c| c.text(request.uri().path()));
        if let Some(text) = challenge {
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            *response.body_mut() = text;
        } else if let (true, Ok(to)) = (page, HeaderValue::from_str(&to)) {
            *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
            response.headers_mut().insert(header::LOCATION, to);
        }
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    drop(tokio::time::timeout(HEADER_TIMEOUT, connection).await);
}
