//! Where every request of the gateway comes in and every answer goes out: refuses confusing paths, strips headers, finds
//! who answers, puts the security headers on, and counts.
//!
//! Guarantees: what panics is answered and logged, and ends one request. What is on the way of a page's hundred requests to
//! a pod is written out here, not stacked of middleware: that costs as much as all else that the gateway does itself.

use crate::{
    Gateway, Mounts,
    access_log::Counted,
    guard::{self, Proof, Transport},
    metrics::Route,
    mounts::Target,
    oidc, paths,
    serve::OverTls,
    sign_in, uploads,
};
use axum::{
    Router,
    extract::{ConnectInfo, Request},
    response::Response,
};
use futures::FutureExt as _;
use http::StatusCode;
use kfbox_base::UserInfo;
use std::{net::SocketAddr, panic::AssertUnwindSafe, sync::Arc, time::Instant};
use tower::ServiceExt as _;

/// How a request came.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Source {
    pub peer: Option<SocketAddr>,
    pub tls: bool,
}

/// Who sent a request, and how they proved it.
pub(crate) struct Caller {
    pub user: UserInfo,
    pub proof: Proof,
    pub from: Source,
}

/// A cloneable handle.
#[derive(Clone)]
pub(crate) struct Front(Arc<Inner>);

struct Inner {
    gateway: Gateway,
    own: Router,
    mounts: Mounts,
}

/// What is learned of a request on its way.
#[derive(Default)]
struct Seen {
    route: Option<Arc<Route>>,
    user: Option<String>,
}

impl Front {
    pub fn new(gateway: &Gateway, mounts: Mounts) -> Self {
        let own = Router::new()
            .merge(sign_in::routes())
            .merge(oidc::routes())
            .fallback(|| async { nothing() })
            .with_state(gateway.clone());
        Self(Arc::new(Inner { gateway: gateway.clone(), own, mounts }))
    }

    pub async fn answer(&self, request: Request, from: Source) -> Response {
        let gateway = &self.0.gateway;
        let begun = Instant::now();
        let transport = Transport::of(gateway, request.headers(), from.tls);
        let method = request.method().clone();
        let line = gateway.inner.access_log.as_ref().map(|log| log.begin(&request, from));
        let mut seen = Seen::default();
        let answered = AssertUnwindSafe(self.inside(request, from, &mut seen)).catch_unwind().await;
        let mut response = answered.unwrap_or_else(|panic| panicked(&panic));
        guard::secure(response.headers_mut(), gateway, transport);
        let route = seen.route.unwrap_or_else(|| gateway.inner.metrics.elsewhere());
        route.count(&method, response.status(), begun.elapsed());
        match line {
            Some(line) => Counted::wrap(response, line, seen.user, &route),
            None => response,
        }
    }

    async fn inside(&self, mut request: Request, from: Source, seen: &mut Seen) -> Response {
        let Inner { gateway, own, mounts } = &*self.0;
        if !paths::is_plain(request.uri().path()) {
            let text = "the path has empty, dot or encoded parts";
            return guard::problem(StatusCode::BAD_REQUEST, "bad_path", text);
        }
        guard::strip_identity(request.headers_mut());
        let first = guard::first_part(request.uri().path());
        let patience = gateway.inner.config.request_body_idle;
        if guard::is_own(first) {
            seen.route = Some(gateway.inner.metrics.own(first));
            let (request, upload) = uploads::watch(request, patience);
            return upload.finish(Box::pin(routed(own.clone(), request, from)).await);
        }
        let (user, proof) = match guard::authenticate(gateway, &mut request).await {
            Ok(found) => found,
            Err(refusal) => return refusal,
        };
        if gateway.inner.access_log.is_some() {
            seen.user = Some(user.username.clone());
        }
        let metrics = &gateway.inner.metrics;
        match mounts.find(request.uri().path()) {
            Target::Service(doors, route) => {
                seen.route = Some(metrics.service(&route.namespace, &route.service));
                doors.go(&route, &Caller { user, proof, from }, request).await
            }
            Target::Component(component) => {
                seen.route = Some(metrics.component(component.prefix()));
                request.extensions_mut().insert(user);
                request.extensions_mut().insert(proof);
                tell_source(&mut request, from);
                let (request, upload) = uploads::watch(request, patience);
                upload.finish(Box::pin(component.call(request)).await)
            }
            Target::Nothing => nothing(),
        }
    }
}

fn nothing() -> Response {
    guard::problem(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
}

async fn routed(router: Router, mut request: Request, from: Source) -> Response {
    tell_source(&mut request, from);
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// As handlers ask for it.
fn tell_source(request: &mut Request, from: Source) {
    if let Some(peer) = from.peer {
        request.extensions_mut().insert(ConnectInfo(peer));
    }
    if from.tls {
        request.extensions_mut().insert(OverTls);
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = text.unwrap_or("of an unknown kind"), "the gateway did not finish its answer");
    guard::problem(StatusCode::INTERNAL_SERVER_ERROR, "internal", "this is a defect: the log says more")
}
