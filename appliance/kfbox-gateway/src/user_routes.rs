//! Ways to the Services of people's namespaces, at `/WORD/NAMESPACE/…` of this gateway: what is asked of others, and the
//! order of things. Which ways there are is said by objects of the cluster.
//!
//! Guarantees: a way is found by the path alone, after the platform's own; who asks must be allowed the Service's `proxy`
//! in the way's namespace, with the verb that the API server's own proxy asks for, and the namespace's policies must not
//! object; who may not learns no more than that nothing is there. That somebody may is remembered for half a second, since a
//! page is a hundred requests: a right that is taken away is refused within a second. That somebody may not is not kept.

use crate::{
    front::Caller,
    guard::{self, Proof},
    proxy::{Proxy, Unreached},
};
use axum::{extract::Request, response::Response};
use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use kfbox_base::{Authorizer, BoxError, ResourceAttributes, UserInfo};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// One way, ready to be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRoute {
    pub namespace: String,
    pub service: String,
    /// None: the Service's only port.
    pub port: Option<u16>,
    /// The path for the Service, without the query.
    pub path: String,
    /// The host that the Service is told. None: as the browser said it.
    pub host: Option<HeaderValue>,
    pub request: HeaderChanges,
    pub response: HeaderChanges,
    /// Until the answer begins.
    pub timeout: Duration,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

impl HeaderChanges {
    pub(crate) fn apply(&self, headers: &mut http::HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}

/// Where a Service answers right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    pub address: SocketAddr,
    /// It speaks HTTP/2 without TLS, as gRPC servers do.
    pub http2: bool,
}

/// Why nothing answers; the text is for the person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoBackend(pub String);

/// What of a request policies may look at, besides the path that the Service sees.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub user: &'a UserInfo,
    pub method: &'a Method,
}

/// The ways that the cluster's objects describe.
pub trait UserRoutes: Send + Sync + 'static {
    fn find(&self, path: &str) -> Option<UserRoute>;
    /// Whether the policies of the way's namespace let this request pass.
    fn admits<'a>(&'a self, route: &'a UserRoute, asked: Asked<'a>) -> BoxFuture<'a, bool>;
    /// With `again`, what was known before turned out to be wrong.
    fn backend<'a>(&'a self, route: &'a UserRoute, again: bool) -> BoxFuture<'a, Result<Backend, NoBackend>>;
}

/// The gateway's side of it.
#[derive(Clone)]
pub struct UserServices {
    pub routes: Arc<dyn UserRoutes>,
    pub authorizer: Arc<dyn Authorizer>,
    /// First parts of paths that are pages of the platform.
    pub pages: Arc<[String]>,
    pub tasks: kfbox_base::Tasks,
}

/// First parts of paths that people would take for the gateway's own, besides those that are.
const NEAR_OWN: [&str; 2] = ["metrics", ".well-known"];

/// How long an allowed request speaks for the next ones of the same person, verb and Service.
const ALLOWED_FOR: Duration = Duration::from_millis(500);
/// Such decisions; bounds memory.
const DECISIONS: usize = 4096;

#[derive(Clone)]
pub(crate) struct Doors {
    services: UserServices,
    proxy: Proxy,
    allowed: Arc<Allowed>,
}

/// Everything that a decision is made of.
struct Decided {
    user: String,
    uid: String,
    groups: Vec<String>,
    verb: &'static str,
    namespace: String,
    service: String,
}

/// Decisions that allow, by a hash of what they are made of: looking one up copies nothing.
#[derive(Default)]
struct Allowed {
    hasher: RandomState,
    decisions: Mutex<HashMap<u64, (Decided, Instant)>>,
}

impl Decided {
    fn is(&self, user: &UserInfo, verb: &str, route: &UserRoute) -> bool {
        self.user == user.username
            && self.uid == user.uid
            && self.groups == user.groups
            && self.verb == verb
            && self.namespace == route.namespace
            && self.service == route.service
    }
}

impl Allowed {
    /// What a token says beyond name and groups would have to be compared too: such a caller is asked for each time.
    fn key(&self, user: &UserInfo, verb: &str, route: &UserRoute) -> Option<u64> {
        user.extra.is_empty().then(|| {
            self.hasher.hash_one((&user.username, &user.uid, &user.groups, verb, &route.namespace, &route.service))
        })
    }

    fn holds(&self, key: u64, user: &UserInfo, verb: &str, route: &UserRoute) -> bool {
        let decisions = self.decisions.lock();
        decisions.get(&key).is_some_and(|(made_of, at)| at.elapsed() < ALLOWED_FOR && made_of.is(user, verb, route))
    }

    fn put(&self, key: u64, decided: Decided, asked: Instant) {
        let mut decisions = self.decisions.lock();
        if decisions.len() >= DECISIONS {
            decisions.retain(|_, (_, at)| at.elapsed() < ALLOWED_FOR);
            if decisions.len() >= DECISIONS {
                decisions.clear();
            }
        }
        decisions.insert(key, (decided, asked));
    }

    fn remove(&self, key: u64) {
        self.decisions.lock().remove(&key);
    }
}

impl Doors {
    pub fn new(services: UserServices) -> Self {
        let proxy = Proxy::new(services.tasks.clone());
        Self { services, proxy, allowed: Arc::default() }
    }

    /// With connections of its own; what is known and counted is shared.
    pub fn of_worker(&self) -> Self {
        Self { proxy: self.proxy.of_worker(), ..self.clone() }
    }

    /// The way at a path, if one is.
    pub fn find(&self, path: &str) -> Option<UserRoute> {
        let first = guard::first_part(path);
        if guard::is_own(first) || NEAR_OWN.contains(&first) || self.services.pages.iter().any(|p| p == first) {
            return None;
        }
        self.services.routes.find(path)
    }

    async fn may(&self, user: &UserInfo, verb: &'static str, route: &UserRoute) -> Result<bool, BoxError> {
        let key = self.allowed.key(user, verb, route);
        if key.is_some_and(|key| self.allowed.holds(key, user, verb, route)) {
            return Ok(true);
        }
        let wanted = ResourceAttributes {
            subresource: "proxy".into(),
            ..ResourceAttributes::namespaced(verb, "", "services", &route.namespace).named(&route.service)
        };
        // The time counts from before the question: what changes while it is answered is not remembered longer.
        let asked = Instant::now();
        let fine = self.services.authorizer.authorize(user, &wanted).await?.is_allowed();
        match (key, fine) {
            (Some(key), true) => {
                let decided = Decided {
                    user: user.username.clone(),
                    uid: user.uid.clone(),
                    groups: user.groups.clone(),
                    verb,
                    namespace: route.namespace.clone(),
                    service: route.service.clone(),
                };
                self.allowed.put(key, decided, asked);
            }
            (Some(key), false) => self.allowed.remove(key),
            (None, _) => {}
        }
        Ok(fine)
    }

    /// Answers a request that is at this way.
    pub async fn go(&self, route: &UserRoute, caller: &Caller, request: Request) -> Response {
        let nothing = || guard::problem(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path");
        let user = &caller.user;
        match self.may(user, verb(&request), route).await {
            Ok(true) => {}
            Ok(false) => return nothing(),
            Err(error) => {
                tracing::warn!(%error, "nobody can say who may use a Service");
                let text = "nobody can say right now whether you may: try again";
                return guard::problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable", text);
            }
        }
        if !self.services.routes.admits(route, Asked { user, method: request.method() }).await {
            return guard::problem(StatusCode::FORBIDDEN, "denied", "an AuthorizationPolicy of the namespace objects");
        }
        let by_cookie = caller.proof == Proof::Cookie;
        tracing::debug!(user = %user.username, by_cookie, namespace = %route.namespace, service = %route.service, "proxied");
        let backend = match self.services.routes.backend(route, false).await {
            Ok(backend) => backend,
            Err(error) => return unavailable(&error),
        };
        let prepared = match self.proxy.prepare(route, backend.http2, user, caller.from, request) {
            Ok(prepared) => prepared,
            Err(answer) => return answer,
        };
        let unsent = match self.proxy.forward(route, backend, prepared).await {
            Ok(response) => return response,
            Err(Unreached(unsent)) => unsent,
        };
        // A connection that cannot be made has sent nothing: that may be tried elsewhere, once.
        match (self.services.routes.backend(route, true).await, unsent) {
            (Ok(other), Some(prepared)) if other.http2 == backend.http2 => {
                if let Ok(response) = self.proxy.forward(route, other, *prepared).await {
                    return response;
                }
            }
            (Ok(_), _) => {}
            (Err(error), _) => return unavailable(&error),
        }
        unavailable(&NoBackend(format!("no pod of the Service {} can be reached", route.service)))
    }
}

fn unavailable(error: &NoBackend) -> Response {
    guard::problem(StatusCode::SERVICE_UNAVAILABLE, "no_backend", &error.0)
}

/// As the API server's proxy has it; a WebSocket gives as much power as a write.
fn verb(request: &Request) -> &'static str {
    if request.headers().contains_key(header::UPGRADE) {
        return "create";
    }
    match *request.method() {
        Method::GET | Method::HEAD | Method::OPTIONS => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "create",
    }
}
