//! What stands before every route: identity headers of strangers are removed, the caller is authenticated, and writes
//! by cookie must come from our own pages.
//!
//! Guarantees: only the routes of this crate are open (health, `/dex`, `/oauth2`); every mounted component is reached
//! through [`authenticate`]. No header, query or user agent opens a route: the decision reads the path alone.

use crate::{
    Gateway, LOCAL,
    store::{SecretHash, hash_secret, keys::MAX_JWT, sessions::Session, tokens::Scope, users::User},
};
use axum::{
    Json,
    extract::Request,
    response::{IntoResponse, Response},
};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use kfbox_base::{BoxError, UserInfo};
use parking_lot::Mutex;
use std::{
    borrow::Cow,
    collections::HashMap,
    time::{Duration, Instant},
};

/// oauth2-proxy's cookie in Kubeflow's manifests, which scripts copy by name.
pub const SESSION_COOKIE: &str = "oauth2_proxy_kubeflow";
/// The cookie of Kubeflow before 1.9 (oidc-authservice): read, never set.
pub const OLD_SESSION_COOKIE: &str = "authservice_session";

/// Positive answers of a TokenReview are used again for this long: a pod's SDK sends its token with each call. Short, so
/// that an account that is deleted is out within a second; what a caller may do is never remembered.
const REVIEW_CACHE: Duration = Duration::from_millis(500);
const OUR_COOKIES: [&str; 2] = [SESSION_COOKIE, STATE_COOKIE];
/// Binds a sign-in at another provider to the browser that began it.
pub(crate) const STATE_COOKIE: &str = "kfbox_sign_in";

/// Tokens whose answer is kept; bounds memory.
const REVIEW_CACHE_SIZE: usize = 1024;

/// Asks the cluster who a service-account token speaks for (a `TokenReview`).
pub trait TokenReviewer: Send + Sync + 'static {
    /// With an empty list of audiences, the API server's own. `None`: not authenticated, or for another audience.
    fn review<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<UserInfo>, BoxError>>;
}

/// How a caller proved who it is; components may read it from the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    Cookie,
    Bearer,
}

#[derive(Default)]
pub(crate) struct ReviewCache(Mutex<HashMap<SecretHash, (Instant, UserInfo)>>);

impl ReviewCache {
    fn get(&self, hash: &SecretHash) -> Option<UserInfo> {
        self.0.lock().get(hash).filter(|(since, _)| since.elapsed() < REVIEW_CACHE).map(|(_, user)| user.clone())
    }

    fn put(&self, hash: SecretHash, user: UserInfo) {
        let mut map = self.0.lock();
        if map.len() >= REVIEW_CACHE_SIZE {
            map.retain(|_, (since, _)| since.elapsed() < REVIEW_CACHE);
            if map.len() >= REVIEW_CACHE_SIZE {
                map.clear();
            }
        }
        map.insert(hash, (Instant::now(), user));
    }
}

/// First parts of paths that are the gateway's own, and open.
const OWN: [&str; 4] = ["dex", "oauth2", "healthz", "readyz"];

/// `a` of `/a/b`.
pub(crate) fn first_part(path: &str) -> &str {
    path.split('/').nth(1).unwrap_or_default()
}

/// Whether a path with this first part is one of the gateway's own routes, if there is any.
pub(crate) fn is_own(first: &str) -> bool {
    OWN.contains(&first)
}

/// How the browser reaches us, as far as cookies and promises go.
#[derive(Clone, Copy)]
pub(crate) struct Transport {
    /// By https all the way: here, or at a proxy in front that the configuration names.
    https: bool,
    /// By a name of this machine, where other programs have ports too. Unknown, and of no meaning, without https.
    loopback: bool,
}

impl Transport {
    pub fn of(gateway: &Gateway, headers: &HeaderMap, tls: bool) -> Self {
        let named_https = gateway.inner.config.external_url.scheme() == "https";
        if !tls && !named_https {
            return Self { https: false, loopback: false };
        }
        let loopback = is_loopback(headers);
        // Somebody on this machine who comes past the proxy, by plain HTTP, must not get a cookie that is never sent.
        Self { https: tls || !loopback, loopback }
    }
}

fn is_loopback(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let Ok(url) = url::Url::parse(&format!("http://{host}")) else { return false };
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Removes what a proxy would add: nobody in front of this gateway is trusted to speak for a user.
pub(crate) fn strip_identity(headers: &mut HeaderMap) {
    // As a rule none, and then nothing is allocated.
    let doomed: Vec<HeaderName> = headers.keys().filter(|name| is_identity_header(name.as_str())).cloned().collect();
    for name in doomed {
        headers.remove(name);
    }
}

fn is_identity_header(name: &str) -> bool {
    const EXACT: [&str; 9] = [
        "forwarded",
        "x-real-ip",
        "x-original-url",
        "x-rewrite-url",
        "x-original-uri",
        "x-user",
        "x-email",
        "via",
        "x-http-method-override",
    ];
    const PREFIXES: [&str; 9] = [
        "kubeflow-",
        "x-auth-",
        "x-forwarded-",
        "x-remote-",
        "x-goog-",
        "impersonate-",
        "x-envoy-",
        "x-kfbox-",
        "x-original-",
    ];
    // An underscore is a hyphen to CGI-like readers.
    let name: Cow<'_, str> = if name.contains('_') { name.replace('_', "-").into() } else { name.into() };
    EXACT.contains(&&*name) || PREFIXES.iter().any(|p| name.starts_with(p))
}

static DEFAULTS: [(HeaderName, HeaderValue); 7] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN")),
    (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; \
             frame-ancestors 'self'",
        ),
    ),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// What every answer says, unless it says something else itself.
pub(crate) fn secure(headers: &mut HeaderMap, gateway: &Gateway, transport: Transport) {
    headers.reserve(DEFAULTS.len());
    for (name, value) in &DEFAULTS {
        headers.entry(name).or_insert_with(|| value.clone());
    }
    if transport.https {
        if !transport.loopback && gateway.inner.config.strict_transport {
            let promise = HeaderValue::from_static("max-age=31536000");
            headers.entry(header::STRICT_TRANSPORT_SECURITY).or_insert(promise);
        }
        make_cookies_secure(headers);
    }
}

/// Our own cookies; those of components are theirs.
fn make_cookies_secure(headers: &mut HeaderMap) {
    let http::header::Entry::Occupied(mut cookies) = headers.entry(header::SET_COOKIE) else { return };
    for value in cookies.iter_mut() {
        let ours = OUR_COOKIES
            .iter()
            .any(|n| value.as_bytes().strip_prefix(n.as_bytes()).is_some_and(|r| r.starts_with(b"=")));
        if ours && let Ok(secure) = HeaderValue::from_bytes(&[value.as_bytes(), b"; Secure"].concat()) {
            *value = secure;
        }
    }
}

/// The door to everything that is not the gateway's own: who asks, or the answer to those who may not come in. What
/// proved it travels no further.
pub(crate) async fn authenticate(gateway: &Gateway, request: &mut Request) -> Result<(UserInfo, Proof), Response> {
    let (user, proof) = match identify(gateway, request.headers()).await {
        Ok(Some(found)) => found,
        Ok(None) => return Err(refuse_anonymous(request.method(), request.uri(), request.headers())),
        Err(error) => {
            tracing::warn!(%error, "a token could not be reviewed");
            return Err(problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "the token cannot be checked right now: try again",
            ));
        }
    };
    if proof == Proof::Cookie
        && needs_same_origin(request.method(), request.headers())
        && !same_origin(request.headers(), &gateway.inner.config.external_url)
    {
        tracing::warn!(target: "audit", user = %user.username, path = request.uri().path(), "refused: cross-site request");
        let text = "refused: this request comes from another site's page";
        return Err(problem(StatusCode::FORBIDDEN, "cross_site", text));
    }
    let headers = request.headers_mut();
    headers.remove(header::AUTHORIZATION);
    remove_session_cookies(headers);
    Ok((user, proof))
}

/// Who sends these headers. A bearer token is decisive: a bad one is not rescued by a good cookie.
pub(crate) async fn identify(gateway: &Gateway, headers: &HeaderMap) -> Result<Option<(UserInfo, Proof)>, BoxError> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let Some(token) = bearer(value) else { return Ok(None) };
        return Ok(identify_bearer(gateway, token).await?.map(|user| (user, Proof::Bearer)));
    }
    Ok(session(gateway, headers).await.map(|(_, user)| (user.info(), Proof::Cookie)))
}

/// The session of a browser, and its user as they are now.
pub(crate) async fn session(gateway: &Gateway, headers: &HeaderMap) -> Option<(Session, User)> {
    let (session, user) = session_secrets(headers).find_map(|secret| gateway.inner.store.session(&secret))?;
    if user.connector == LOCAL {
        return Some((session, user));
    }
    if !gateway.still_let_in(&user.email).await {
        return None;
    }
    // The directory may have said other groups.
    gateway.inner.store.active_user(&user.email).map(|user| (session, user))
}

fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|t| !t.is_empty())
}

async fn identify_bearer(gateway: &Gateway, token: &str) -> Result<Option<UserInfo>, BoxError> {
    if let Some(user) = gateway.verify_for(token, Scope::Platform) {
        return Ok(gateway.as_they_are(user).await);
    }
    // Only what looks like a JWT is worth a question to the cluster.
    if token.len() > MAX_JWT || token.split('.').count() != 3 {
        return Ok(None);
    }
    let hash = hash_secret(token);
    if let Some(user) = gateway.inner.reviews.get(&hash) {
        return Ok(Some(user));
    }
    let reviewer = &gateway.inner.deps.token_reviewer;
    let mut found = reviewer.review(token, &gateway.inner.config.service_account_audiences).await?;
    if found.is_none() {
        found = reviewer.review(token, &[]).await?;
    }
    let found = found.filter(|user| !user.is_anonymous() && !user.username.is_empty());
    if let Some(user) = &found {
        gateway.inner.reviews.put(hash, user.clone());
    }
    Ok(found)
}

/// The values of all cookies of this name.
pub(crate) fn cookies<'a>(headers: &'a HeaderMap, wanted: &'a str) -> impl Iterator<Item = String> + 'a {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(move |(name, _)| *name == wanted)
        .map(|(_, value)| value.to_owned())
        .take(8)
}

/// The secrets of all session cookies sent: a jar may hold one of each name.
pub(crate) fn session_secrets(headers: &HeaderMap) -> impl Iterator<Item = String> + '_ {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(name, _)| *name == SESSION_COOKIE || *name == OLD_SESSION_COOKIE)
        .map(|(_, value)| value.trim_matches('"').to_owned())
        // Each is hashed and looked up: a jar with hundreds is not a browser's.
        .take(8)
}

fn remove_session_cookies(headers: &mut HeaderMap) {
    if !headers.contains_key(header::COOKIE) {
        return;
    }
    let kept: Vec<String> = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(';'))
        .map(str::trim)
        .filter(|pair| {
            let name = pair.split('=').next().unwrap_or_default();
            !pair.is_empty() && name != SESSION_COOKIE && name != OLD_SESSION_COOKIE
        })
        .map(str::to_owned)
        .collect();
    headers.remove(header::COOKIE);
    if !kept.is_empty()
        && let Ok(value) = HeaderValue::from_str(&kept.join("; "))
    {
        headers.insert(header::COOKIE, value);
    }
}

/// Methods that change something, and WebSockets, which browsers open across sites with cookies.
pub(crate) fn needs_same_origin(method: &Method, headers: &HeaderMap) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
        || headers.get(header::UPGRADE).is_some()
}

/// True unless a browser says that another site's page sends this. Programs send neither header, and no browser leaves
/// out both on a cross-site write.
pub(crate) fn same_origin(headers: &HeaderMap, external: &url::Url) -> bool {
    let text = |name: &str| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
    if let Some(site) = text("sec-fetch-site")
        && !matches!(site, "same-origin" | "none")
    {
        return false;
    }
    let Some(origin) = text("origin") else { return true };
    let Ok(origin) = url::Url::parse(origin) else { return false };
    if origin.origin() == external.origin() {
        return true;
    }
    // Reached by another name than the configured one, say through a forwarded port: the Host header is what the
    // browser believes it talks to.
    let Some(host) = text("host").and_then(|h| url::Url::parse(&format!("{}://{h}", origin.scheme())).ok()) else {
        return false;
    };
    matches!(origin.scheme(), "http" | "https") && origin.origin() == host.origin()
}

/// Browsers are led to the sign-in page, programs get a plain 401. Scripts that follow Kubeflow's documentation send a
/// plain GET with `Accept: */*` to a page and expect to be led too; API paths never redirect.
fn refuse_anonymous(method: &Method, uri: &Uri, headers: &HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let document = accept.contains("text/html");
    let wildcard = accept.split(',').all(|part| part.trim().starts_with("*/*"));
    let api = uri.path().split('/').any(|s| matches!(s, "apis" | "api" | "kfam" | "events"));
    let navigation = matches!(*method, Method::GET | Method::HEAD)
        && headers.get(header::AUTHORIZATION).is_none()
        && headers.get(header::UPGRADE).is_none()
        && (document || (wildcard && !accept.is_empty() && !api));
    if navigation {
        let back = uri.path_and_query().map_or("/", |p| p.as_str());
        return crate::sign_in::redirect(StatusCode::FOUND, &crate::sign_in::start_url(back));
    }
    let mut response =
        problem(StatusCode::UNAUTHORIZED, "unauthenticated", "sign in, or send a token: Authorization: Bearer …");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"kfbox\""));
    response
}

/// An error as JSON, with a code for programs and a sentence for people.
pub(crate) fn problem(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(serde_json::json!({"error": code, "message": message}))).into_response()
}
