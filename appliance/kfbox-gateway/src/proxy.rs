//! One request to a pod and its answer back: HTTP/1.1, HTTP/2 without TLS, WebSockets and whatever else upgrades. Bodies
//! stream both ways and are never held.
//!
//! Guarantees: the address comes from the cluster's objects; the caller's credentials do not travel on, the pod is told who
//! it is by headers that only the gateway sets; an answer cannot set the gateway's cookies, nor claim more of the origin
//! than its own path.

mod pool;
mod seats;

use crate::{
    front::Source,
    guard::{self, OLD_SESSION_COOKIE, SESSION_COOKIE, STATE_COOKIE},
    user_routes::{Backend, UserRoute},
};
use axum::{body::Body, extract::Request, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version, header, uri, uri::PathAndQuery};
use hyper::body::Body as _;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use kfbox_base::{Tasks, UserInfo};
use pool::{Failure, Pool};
use seats::{Seat, Seats};
use std::{net::SocketAddr, time::Duration};

const CONNECT: Duration = Duration::from_secs(5);
/// HTTP/2 connections without requests, of which a pod has one.
const IDLE_FOR: Duration = Duration::from_secs(30);
/// Of each direction of an upgraded connection, which mostly waits.
const BUFFER: usize = 4 * 1024;

/// Headers of one hop only (RFC 9110 section 7.6.1).
static HOP_HEADERS: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
];
/// What an answer may not say, for it would count for all of the gateway's origin.
static ORIGIN_WIDE: [HeaderName; 4] = [
    HeaderName::from_static("service-worker-allowed"),
    HeaderName::from_static("clear-site-data"),
    header::STRICT_TRANSPORT_SECURITY,
    header::ALT_SVC,
];
static USER_ID: HeaderName = HeaderName::from_static("kubeflow-userid");
static GROUPS: HeaderName = HeaderName::from_static("kubeflow-groups");
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

#[derive(Clone)]
pub(crate) struct Proxy {
    first: Pool,
    second: Client<HttpConnector, Body>,
    tasks: Tasks,
    seats: Seats,
}

/// No connection could be made and nothing was sent: the request as it would have been, if it is still there.
pub(crate) struct Unreached(pub Option<Box<Prepared>>);

/// A request as the Service's pods are to get it.
pub(crate) struct Prepared {
    request: Request,
    http2: bool,
    upgrade: Option<Upgrade>,
}

struct Upgrade {
    client_side: hyper::upgrade::OnUpgrade,
    seat: Seat,
}

impl Proxy {
    pub fn new(tasks: Tasks) -> Self {
        Self::with(tasks, Seats::default())
    }

    /// Connections belong to the runtime that they were made on; seats are counted together.
    pub fn of_worker(&self) -> Self {
        Self::with(self.tasks.clone(), self.seats.clone())
    }

    fn with(tasks: Tasks, seats: Seats) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_idle_timeout(IDLE_FOR).pool_timer(TokioTimer::new());
        let second = builder.http2_only(true).build(tcp);
        Self { first: Pool::new(tasks.clone()), second, tasks, seats }
    }

    /// Makes a request ready for pods that speak HTTP/2 or do not; the error is the answer.
    #[expect(clippy::result_large_err, reason = "the error is what the client gets")]
    pub fn prepare(
        &self,
        route: &UserRoute,
        http2: bool,
        user: &UserInfo,
        from: Source,
        mut request: Request,
    ) -> Result<Prepared, Response> {
        let upgrading = request.headers().contains_key(header::UPGRADE) && !http2;
        let mut upgrade = None;
        if upgrading {
            let Some(seat) = self.seats.take(&route.namespace) else {
                let text = "too many WebSockets are open to this namespace";
                return Err(guard::problem(StatusCode::SERVICE_UNAVAILABLE, "too_many", text));
            };
            upgrade = Some(Upgrade { client_side: hyper::upgrade::on(&mut request), seat });
        }
        let Some(path) = path(&route.path, request.uri().query()) else {
            return Err(guard::problem(StatusCode::BAD_REQUEST, "bad_path", "the path cannot be passed on"));
        };
        *request.uri_mut() = Uri::from(path);
        *request.version_mut() = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        tell(request.headers_mut(), route, user, from, upgrading, http2);
        Ok(Prepared { request, http2, upgrade })
    }

    pub async fn forward(
        &self,
        route: &UserRoute,
        backend: Backend,
        prepared: Prepared,
    ) -> Result<Response, Unreached> {
        let Prepared { request, http2, upgrade } = prepared;
        let sent = async {
            match http2 {
                true => self.send_second(backend.address, request).await,
                false => self.first.send(backend.address, with_host(request, backend.address), harmless).await,
            }
        };
        let mut response = match tokio::time::timeout(route.timeout, sent).await {
            Ok(Ok(response)) => response,
            Ok(Err(Failure::Unreached(request))) => {
                let request = request.map(|request| Box::new(Prepared { request: *request, http2, upgrade }));
                return Err(Unreached(request));
            }
            Ok(Err(Failure::Broken(error))) => {
                tracing::debug!(%error, address = %backend.address, "a Service did not answer");
                let text = "the Service's pod ended the connection before it answered";
                return Ok(guard::problem(StatusCode::BAD_GATEWAY, "bad_gateway", text));
            }
            Err(_) => {
                let text = "the Service did not answer in the time that its route allows";
                return Ok(guard::problem(StatusCode::GATEWAY_TIMEOUT, "timeout", text));
            }
        };
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if let (true, Some(Upgrade { client_side, seat })) = (switched, upgrade) {
            self.join(client_side, hyper::upgrade::on(&mut response), seat);
        }
        finish(response.headers_mut(), route, switched);
        Ok(response)
    }

    async fn send_second(&self, to: SocketAddr, mut request: Request) -> Result<Response, Failure> {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(uri::Scheme::HTTP);
        parts.authority = to.to_string().parse().ok();
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        let again = request.body().is_end_stream().then(|| copy(&request));
        match self.second.request(request).await {
            Ok(response) => Ok(response.map(Body::new)),
            Err(error) if error.is_connect() => {
                let path = |request: &mut Request| {
                    let path = request.uri().path_and_query().cloned();
                    *request.uri_mut() = path.map(Uri::from).unwrap_or_default();
                };
                let again = again.map(|mut request| {
                    path(&mut request);
                    Box::new(request)
                });
                Err(Failure::Unreached(again))
            }
            Err(error) => Err(Failure::Broken(error.into())),
        }
    }

    fn join(&self, client: hyper::upgrade::OnUpgrade, server: hyper::upgrade::OnUpgrade, seat: Seat) {
        let shutdown = self.tasks.shutdown();
        self.tasks.spawn("gateway-upgraded", async move {
            let _seat = seat;
            let copy = async {
                let (Ok(client), Ok(server)) = tokio::join!(client, server) else { return };
                let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
                drop(tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await);
            };
            tokio::select! {
                () = copy => {}
                () = shutdown.cancelled() => {}
            }
        });
    }
}

fn path(path: &str, query: Option<&str>) -> Option<PathAndQuery> {
    let text = match query {
        Some(query) => [path, "?", query].concat(),
        None => path.to_owned(),
    };
    PathAndQuery::try_from(text).ok()
}

/// HTTP/1.1 wants one, and the client may have said none.
fn with_host(mut request: Request, to: SocketAddr) -> Request {
    if !request.headers().contains_key(header::HOST)
        && let Ok(host) = HeaderValue::try_from(to.to_string())
    {
        request.headers_mut().insert(header::HOST, host);
    }
    request
}

/// The same request, if that may be done twice (RFC 9110 section 9.2.1) and has nothing to be read.
fn harmless(request: &Request) -> Option<Request> {
    (request.method().is_safe() && request.body().is_end_stream() && !request.headers().contains_key(header::UPGRADE))
        .then(|| copy(request))
}

/// The same request, which has no body.
fn copy(request: &Request) -> Request {
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// What the pod is told, and what it is not.
fn tell(headers: &mut HeaderMap, route: &UserRoute, user: &UserInfo, from: Source, upgrading: bool, http2: bool) {
    let upgrade = upgrading.then(|| headers.get(header::UPGRADE).cloned()).flatten();
    let trailers = headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    remove_hop(headers);
    if let Some(upgrade) = upgrade {
        headers.insert(header::UPGRADE, upgrade);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if http2 && trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    headers.remove(header::AUTHORIZATION);
    route.request.apply(headers);
    let host = headers.get(header::HOST).cloned();
    let mut say = |name: &HeaderName, value: Option<HeaderValue>| match value {
        Some(value) => drop(headers.insert(name, value)),
        None => drop(headers.remove(name)),
    };
    say(&USER_ID, HeaderValue::from_str(&user.username).ok());
    say(&GROUPS, HeaderValue::try_from(user.groups.join(",")).ok());
    say(&FORWARDED_FOR, from.peer.and_then(|peer| HeaderValue::try_from(peer.ip().to_canonical().to_string()).ok()));
    say(&FORWARDED_PROTO, Some(HeaderValue::from_static(if from.tls { "https" } else { "http" })));
    say(&FORWARDED_HOST, host);
    if let Some(host) = &route.host {
        headers.insert(header::HOST, host.clone());
    }
    if http2 {
        headers.remove(header::HOST);
    }
}

fn remove_hop(headers: &mut HeaderMap) {
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let named: Vec<HeaderName> =
        named.flat_map(|v| v.split(',')).filter_map(|n| HeaderName::from_bytes(n.trim().as_bytes()).ok()).collect();
    for name in named {
        // `Connection: host` and the like are attempts at other headers.
        if !matches!(name, header::HOST | header::CONTENT_LENGTH | header::COOKIE) {
            headers.remove(name);
        }
    }
    for name in &HOP_HEADERS {
        headers.remove(name);
    }
}

fn finish(headers: &mut HeaderMap, route: &UserRoute, switched: bool) {
    let upgrade = switched.then(|| headers.get(header::UPGRADE).cloned()).flatten();
    remove_hop(headers);
    if let Some(upgrade) = upgrade {
        headers.insert(header::UPGRADE, upgrade);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    route.response.apply(headers);
    for name in &ORIGIN_WIDE {
        headers.remove(name);
    }
    if headers.contains_key(header::SET_COOKIE) {
        let cookies: Vec<HeaderValue> = headers.get_all(header::SET_COOKIE).iter().cloned().collect();
        headers.remove(header::SET_COOKIE);
        for cookie in cookies.into_iter().filter(|c| !is_ours(c)) {
            headers.append(header::SET_COOKIE, cookie);
        }
    }
    // People's programs draw their own pages, so that the platform's strict policy would break them; nobody frames them.
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("frame-ancestors 'self'; base-uri 'self'"));
}

/// Whether a Set-Cookie would replace one of the gateway's.
fn is_ours(cookie: &HeaderValue) -> bool {
    let name = cookie.as_bytes().split(|b| matches!(b, b'=' | b';')).next().unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    [SESSION_COOKIE, OLD_SESSION_COOKIE, STATE_COOKIE].contains(&name.trim())
}
