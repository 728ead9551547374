//! What the gateway counts for each route, in the text format of Prometheus
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>), at `/metrics` for who may `get` `nodes/metrics`, which
//! is what monitoring is granted to read the kubelet's.
//!
//! Guarantees: nothing of a request becomes a label but its method, if that is a usual one, so that strangers cannot make
//! new series; the number of routes is bounded.

use crate::guard;
use axum::{
    Extension, Router,
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{Method, StatusCode, header};
use kfbox_base::{Authorizer, ResourceAttributes, UserInfo};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::HashMap,
    fmt::Write as _,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Upper bounds in seconds, those of Prometheus' clients.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Services with series of their own; what comes after shares one.
const SERVICES: usize = 1000;

/// One route's figures.
#[derive(Default)]
pub(crate) struct Route {
    /// A path's beginning, or a Service.
    path: String,
    namespace: String,
    service: String,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    answers: Vec<(&'static str, StatusCode, u64)>,
    /// Not cumulative; the last one is beyond all bounds.
    buckets: [u64; BUCKETS.len() + 1],
    seconds: f64,
}

impl Route {
    fn at(path: &str) -> Arc<Self> {
        Arc::new(Self { path: path.to_owned(), ..Self::default() })
    }

    fn to(namespace: &str, service: &str) -> Arc<Self> {
        Arc::new(Self { namespace: namespace.to_owned(), service: service.to_owned(), ..Self::default() })
    }

    /// For the access log.
    pub fn name(&self) -> String {
        if self.service.is_empty() { self.path.clone() } else { format!("{}/{}", self.namespace, self.service) }
    }

    /// `took` until the answer began.
    pub fn count(&self, method: &Method, status: StatusCode, took: Duration) {
        let (method, seconds) = (usual(method), took.as_secs_f64());
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        let mut counts = self.counts.lock();
        match counts.answers.iter_mut().find(|(m, s, _)| *m == method && *s == status) {
            Some((_, _, count)) => *count += 1,
            None => counts.answers.push((method, status, 1)),
        }
        counts.buckets[bucket] += 1;
        counts.seconds += seconds;
    }
}

fn usual(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

pub(crate) struct Metrics {
    hasher: RandomState,
    /// By a hash of what they are called, so that finding one copies nothing. Two that meet share their figures.
    routes: RwLock<HashMap<u64, Arc<Route>>>,
    elsewhere: Arc<Route>,
    other: Arc<Route>,
}

impl Default for Metrics {
    fn default() -> Self {
        let other = Route::to("other", "other");
        Self { hasher: RandomState::new(), routes: RwLock::default(), elsewhere: Route::at(""), other }
    }
}

impl Metrics {
    fn route(&self, name: (&str, &str), make: impl FnOnce() -> Arc<Route>) -> Arc<Route> {
        let key = self.hasher.hash_one(name);
        if let Some(route) = self.routes.read().get(&key) {
            return route.clone();
        }
        let mut routes = self.routes.write();
        if routes.len() >= SERVICES {
            return self.other.clone();
        }
        routes.entry(key).or_insert_with(make).clone()
    }

    /// What was refused before a route was found.
    pub fn elsewhere(&self) -> Arc<Route> {
        self.elsewhere.clone()
    }

    /// The gateway's own, by the path's first part.
    pub fn own(&self, first: &str) -> Arc<Route> {
        self.route(("/", first), || Route::at(&format!("/{first}")))
    }

    pub fn component(&self, prefix: &str) -> Arc<Route> {
        self.route(("", prefix), || Route::at(if prefix.is_empty() { "/" } else { prefix }))
    }

    pub fn service(&self, namespace: &str, service: &str) -> Arc<Route> {
        self.route((namespace, service), || Route::to(namespace, service))
    }

    pub fn text(&self) -> String {
        let mut routes: Vec<Arc<Route>> = self.routes.read().values().cloned().collect();
        routes.extend([self.elsewhere.clone(), self.other.clone()]);
        routes.retain(|route| !route.counts.lock().answers.is_empty());
        routes.sort_by(|a, b| (&a.path, &a.namespace, &a.service).cmp(&(&b.path, &b.namespace, &b.service)));
        let mut out = String::new();
        family(&mut out, "kfbox_gateway_requests_total", "counter", "Requests that were answered.");
        for route in &routes {
            let labels = route.labels();
            for (method, status, count) in &route.counts.lock().answers {
                let code = status.as_str();
                line(&mut out, format_args!("requests_total{{{labels},method=\"{method}\",code=\"{code}\"}} {count}"));
            }
        }
        let about = "Seconds from a request's header to the header of its answer.";
        family(&mut out, "kfbox_gateway_request_duration_seconds", "histogram", about);
        for route in &routes {
            let labels = route.labels();
            let counts = route.counts.lock();
            let mut below = 0;
            for (n, count) in counts.buckets.iter().enumerate() {
                below += count;
                let bound = BUCKETS.get(n).map_or_else(|| "+Inf".to_owned(), f64::to_string);
                line(&mut out, format_args!("request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {below}"));
            }
            line(&mut out, format_args!("request_duration_seconds_sum{{{labels}}} {}", counts.seconds));
            line(&mut out, format_args!("request_duration_seconds_count{{{labels}}} {below}"));
        }
        out
    }

    /// For the mounts, behind authentication.
    pub fn router(self: Arc<Self>, authorizer: Arc<dyn Authorizer>) -> Router {
        let show = move |Extension(user): Extension<UserInfo>| {
            let (metrics, authorizer) = (self.clone(), authorizer.clone());
            async move { metrics.show(&user, &*authorizer).await }
        };
        Router::new().route("/metrics", get(show))
    }

    async fn show(&self, user: &UserInfo, authorizer: &dyn Authorizer) -> Response {
        let wanted = ResourceAttributes {
            subresource: "metrics".into(),
            ..ResourceAttributes::namespaced("get", "", "nodes", "")
        };
        match authorizer.authorize(user, &wanted).await {
            Ok(decision) if decision.is_allowed() => ([(header::CONTENT_TYPE, TEXT)], self.text()).into_response(),
            Ok(_) => {
                let text = "the gateway's metrics name everybody's namespaces: you need get on nodes/metrics";
                guard::problem(StatusCode::FORBIDDEN, "forbidden", text)
            }
            Err(error) => {
                tracing::warn!(%error, "nobody can say who may read metrics");
                let text = "nobody can say right now whether you may: try again";
                guard::problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable", text)
            }
        }
    }
}

impl Route {
    /// Prefixes are the program's own, and the others are names of the cluster: neither has a character to escape.
    fn labels(&self) -> String {
        let Self { path, namespace, service, .. } = self;
        format!("route=\"{path}\",namespace=\"{namespace}\",service=\"{service}\"")
    }
}

fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = writeln!(out, "kfbox_gateway_{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_add_up_and_strangers_make_no_series() {
        let metrics = Metrics::default();
        let ok = StatusCode::OK;
        for (method, took) in [("GET", 3), ("GET", 30), ("PROPFIND", 60_000)] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            metrics.service("team-a", "web").count(&method, ok, Duration::from_millis(took));
        }
        metrics.component("").count(&Method::GET, StatusCode::NOT_FOUND, Duration::ZERO);
        metrics.own("dex").count(&Method::POST, ok, Duration::from_millis(5));
        let text = metrics.text();
        let web = "route=\"\",namespace=\"team-a\",service=\"web\"";
        for line in [
            "# TYPE kfbox_gateway_requests_total counter".to_owned(),
            "# TYPE kfbox_gateway_request_duration_seconds histogram".to_owned(),
            format!("kfbox_gateway_requests_total{{{web},method=\"GET\",code=\"200\"}} 2"),
            format!("kfbox_gateway_requests_total{{{web},method=\"other\",code=\"200\"}} 1"),
            "kfbox_gateway_requests_total{route=\"/\",namespace=\"\",service=\"\",method=\"GET\",code=\"404\"} 1"
                .into(),
            "kfbox_gateway_requests_total{route=\"/dex\",namespace=\"\",service=\"\",method=\"POST\",code=\"200\"} 1"
                .into(),
            format!("kfbox_gateway_request_duration_seconds_bucket{{{web},le=\"0.005\"}} 1"),
            format!("kfbox_gateway_request_duration_seconds_bucket{{{web},le=\"0.05\"}} 2"),
            format!("kfbox_gateway_request_duration_seconds_bucket{{{web},le=\"10\"}} 2"),
            format!("kfbox_gateway_request_duration_seconds_bucket{{{web},le=\"+Inf\"}} 3"),
            format!("kfbox_gateway_request_duration_seconds_count{{{web}}} 3"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        for n in 0..2 * SERVICES {
            metrics.service("team-a", &format!("s{n}")).count(&Method::GET, ok, Duration::ZERO);
        }
        assert!(metrics.routes.read().len() <= SERVICES);
        assert!(metrics.text().contains("namespace=\"other\",service=\"other\",method=\"GET\""));
    }
}
