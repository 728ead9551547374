//! One request to a pod and its answer back: HTTP/1.1, HTTP/2 without TLS, WebSockets and whatever else upgrades. Bodies
//! stream both ways and are never held.
//!
//! Guarantees: the address comes from the cluster's objects; the caller's credentials do not travel on, the pod is told who
//! it is by headers that only the gateway sets; an answer cannot set the gateway's cookies, nor claim more of the origin
//! than its own path.

mod seats;

use crate::{
    guard::{self, OLD_SESSION_COOKIE, SESSION_COOKIE, STATE_COOKIE},
    serve::OverTls,
    user_routes::{Backend, UserRoute},
};
use axum::{
    body::Body,
    extract::{ConnectInfo, Request},
    response::Response,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version, header, uri};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use kfbox_base::{Tasks, UserInfo};
use seats::{Seat, Seats};
use std::{net::SocketAddr, time::Duration};

const CONNECT: Duration = Duration::from_secs(5);
/// Connections that wait for the next request of anybody, for one pod and this long.
const IDLE: usize = 32;
const IDLE_FOR: Duration = Duration::from_secs(30);
/// Of each direction of an upgraded connection, which mostly waits.
const BUFFER: usize = 4 * 1024;

/// Headers of one hop only (RFC 9110 section 7.6.1).
const HOP_HEADERS: [&str; 8] = [
    "connection",
    "proxy-connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-authorization",
];
/// What an answer may not say, for it would count for all of the gateway's origin.
const ORIGIN_WIDE: [&str; 4] = ["service-worker-allowed", "clear-site-data", "strict-transport-security", "alt-svc"];

#[derive(Clone)]
pub(crate) struct Proxy {
    first: Client<HttpConnector, Body>,
    second: Client<HttpConnector, Body>,
    tasks: Tasks,
    seats: Seats,
}

/// No connection could be made; nothing was sent.
pub(crate) struct Unreached;

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
        builder.pool_max_idle_per_host(IDLE).pool_idle_timeout(IDLE_FOR).pool_timer(TokioTimer::new());
        let first = builder.build(tcp.clone());
        let second = builder.http2_only(true).build(tcp);
        Self { first, second, tasks, seats }
    }

    pub async fn forward(
        &self,
        route: &UserRoute,
        backend: Backend,
        user: &UserInfo,
        mut request: Request,
    ) -> Result<Response, Unreached> {
        let upgrading = request.headers().contains_key(header::UPGRADE) && !backend.http2;
        let seat = upgrading.then(|| self.seats.take(&route.namespace));
        if let Some(None) = seat {
            let text = "too many WebSockets are open to this namespace";
            return Ok(guard::problem(StatusCode::SERVICE_UNAVAILABLE, "too_many", text));
        }
        let client_side = upgrading.then(|| hyper::upgrade::on(&mut request));
        let Some(uri) = address(backend.address, &route.path, request.uri().query()) else {
            return Ok(guard::problem(StatusCode::BAD_REQUEST, "bad_path", "the path cannot be passed on"));
        };
        *request.uri_mut() = uri;
        *request.version_mut() = if backend.http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        prepare(&mut request, route, user, upgrading, backend.http2);
        let client = if backend.http2 { &self.second } else { &self.first };
        let mut response = match tokio::time::timeout(route.timeout, client.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                tracing::debug!(%error, address = %backend.address, "a Service did not answer");
                if error.is_connect() {
                    return Err(Unreached);
                }
                let text = "the Service's pod ended the connection before it answered";
                return Ok(guard::problem(StatusCode::BAD_GATEWAY, "bad_gateway", text));
            }
            Err(_) => {
                let text = "the Service did not answer in the time that its route allows";
                return Ok(guard::problem(StatusCode::GATEWAY_TIMEOUT, "timeout", text));
            }
        };
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if let (true, Some(client_side), Some(seat)) = (switched, client_side, seat.flatten()) {
            self.join(client_side, hyper::upgrade::on(&mut response), seat);
        }
        let mut response = response.map(Body::new);
        finish(response.headers_mut(), route, switched);
        Ok(response)
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

fn address(to: SocketAddr, path: &str, query: Option<&str>) -> Option<Uri> {
    let text = match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = uri::Parts::default();
    parts.scheme = Some(uri::Scheme::HTTP);
    parts.authority = to.to_string().parse().ok();
    parts.path_and_query = text.parse().ok();
    Uri::from_parts(parts).ok()
}

/// What the pod is told, and what it is not.
fn prepare(request: &mut Request, route: &UserRoute, user: &UserInfo, upgrading: bool, http2: bool) {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|c| c.0.ip().to_canonical());
    let https = request.extensions().get::<OverTls>().is_some();
    let headers = request.headers_mut();
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
    let mut tell = |name: &'static str, value: Option<HeaderValue>| {
        let name = HeaderName::from_static(name);
        match value {
            Some(value) => drop(headers.insert(name, value)),
            None => drop(headers.remove(name)),
        }
    };
    tell("kubeflow-userid", HeaderValue::from_str(&user.username).ok());
    tell("kubeflow-groups", HeaderValue::from_str(&user.groups.join(",")).ok());
    tell("x-forwarded-for", peer.and_then(|ip| HeaderValue::from_str(&ip.to_string()).ok()));
    tell("x-forwarded-proto", Some(HeaderValue::from_static(if https { "https" } else { "http" })));
    tell("x-forwarded-host", host);
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
    for name in HOP_HEADERS {
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
    for name in ORIGIN_WIDE {
        headers.remove(name);
    }
    let cookies: Vec<HeaderValue> = headers.get_all(header::SET_COOKIE).iter().cloned().collect();
    headers.remove(header::SET_COOKIE);
    for cookie in cookies.into_iter().filter(|c| !is_ours(c)) {
        headers.append(header::SET_COOKIE, cookie);
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
