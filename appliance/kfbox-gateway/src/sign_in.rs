//! The sign-in pages, health, and the routes of oauth2-proxy: `/oauth2/start`, `/sign_in`, `/sign_out`, `/auth`,
//! `/userinfo`. Where a password is changed is in `change_password`.
//!
//! A script that follows Kubeflow's documentation gets a page, is led to `…/dex/auth/local/login`, posts the fields
//! `login` and `password` there, and is led back with the session cookie in its jar. Where there is an LDAP directory too,
//! it is led to `…/dex/auth`, as Dex does it, and goes on to `…/dex/auth/CONNECTOR` by itself (its `dex_auth_type`).

use crate::{
    Gateway, change_password,
    connectors::{self, directory::Directory, ldap},
    guard::{self, SESSION_COOKIE, same_origin, session_secrets},
    limits::{FORGET, Wait},
    oidc, paths,
    store::{StoreError, now, seconds, users::User},
};
use askama::Template;
use axum::{
    Form, Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Path, Query, State, rejection::FormRejection},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Instant,
};

pub(crate) const LOGIN_PATH: &str = "/dex/auth/local/login";
/// A sign-in form is two short fields.
const FORM_LIMIT: usize = 16 * 1024;

const CSS: &str = include_str!("../assets/sign-in.css");

pub(crate) fn routes() -> Router<Gateway> {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route(LOGIN_PATH, get(show).post(submit))
        .route("/dex/auth/{connector}/login", get(show_directory).post(submit_to_directory))
        .route("/dex/static/sign-in.css", get(style))
        .route("/oauth2/start", get(start))
        .route("/oauth2/sign_in", get(start))
        .route("/oauth2/sign_out", get(sign_out).post(sign_out))
        .route(change_password::PATH, get(change_password::show).post(change_password::submit))
        .route("/oauth2/auth", get(auth))
        .route("/oauth2/userinfo", get(userinfo))
        .layer(DefaultBodyLimit::max(FORM_LIMIT))
}

#[derive(Deserialize, Default)]
pub(crate) struct Return {
    #[serde(default)]
    rd: String,
}

/// All but the unreserved characters of RFC 3986.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, VALUE).to_string()
}

/// Where an anonymous browser is sent.
pub(crate) fn start_url(back: &str) -> String {
    format!("/oauth2/start?rd={}", encode(&paths::return_path(back)))
}

pub(crate) fn login_url(back: &str) -> String {
    format!("{LOGIN_PATH}?rd={}", encode(&paths::return_path(back)))
}

/// The same for a directory's page.
pub(crate) fn login_url_at(connector: &str, back: &str) -> String {
    format!("/dex/auth/{}/login?rd={}", encode(connector), encode(&paths::return_path(back)))
}

/// Where to return to, in a query that is no application's.
pub(crate) fn asked_return(uri: &Uri) -> Option<String> {
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(uri.query()?).ok()?;
    if pairs.iter().any(|(name, _)| name == "client_id") {
        return None;
    }
    pairs.into_iter().find(|(name, _)| name == "rd").map(|(_, value)| value)
}

pub(crate) fn redirect(status: StatusCode, to: &str) -> Response {
    match HeaderValue::from_str(to) {
        Ok(location) => (status, [(header::LOCATION, location)]).into_response(),
        Err(_) => guard::problem(StatusCode::BAD_REQUEST, "bad_redirect", "the address to return to is not valid"),
    }
}

async fn ready(State(gateway): State<Gateway>) -> Response {
    if gateway.inner.deps.readiness.is_ready() {
        (StatusCode::OK, "ok\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response()
    }
}

async fn style() -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8"), (header::CACHE_CONTROL, "public, max-age=3600")], CSS)
        .into_response()
}

async fn start(State(gateway): State<Gateway>, Query(query): Query<Return>) -> Response {
    let to = match gateway.inner.directories.is_empty() {
        true => login_url(&query.rd),
        false => format!("/dex/auth?rd={}", encode(&paths::return_path(&query.rd))),
    };
    redirect(StatusCode::FOUND, &to)
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct Page<'a> {
    action: String,
    login: &'a str,
    error: &'a str,
    signed_in_as: &'a str,
    /// The application that asked, when it is not kfbox itself.
    client: &'a str,
    /// Where the password is known, when that is not here.
    place: &'a str,
    /// What the name is called.
    prompt: &'a str,
    /// Whether it takes users with a password here, or this is a directory's page.
    form: bool,
    others: Vec<Other>,
}

/// Another way to sign in.
struct Other {
    url: String,
    name: String,
}

struct Shown<'a> {
    status: StatusCode,
    login: &'a str,
    error: &'a str,
}

/// Whose passwords a page takes.
#[derive(Clone, Copy)]
enum Door<'a> {
    Local,
    Directory(&'a Directory),
}

fn page(gateway: &Gateway, door: Door<'_>, headers: &HeaderMap, back: &str, shown: &Shown<'_>) -> Response {
    let session = session_secrets(headers).find_map(|secret| gateway.inner.store.session(&secret));
    let waiting = oidc::waiting_client(gateway, back);
    let takes = waiting.as_ref().and_then(|w| w.connectors.as_ref());
    let admits = |id: &str| takes.is_none_or(|ids| ids.iter().any(|i| i == id));
    let here = match door {
        Door::Local => crate::LOCAL,
        Door::Directory(directory) => &directory.config.id,
    };
    let connectors = gateway.inner.config.connectors.iter();
    let places = connectors.filter(|c| admits(c.id()) && c.id() != here);
    let mut others: Vec<Other> = places
        .map(|c| Other { url: connectors::choose_url(c.id(), back), name: format!("with {}", c.name()) })
        .collect();
    let (action, place, prompt) = match door {
        Door::Local => (login_url(back), "", "E-mail address"),
        Door::Directory(directory) => {
            if admits(crate::LOCAL) {
                others.push(Other { url: login_url(back), name: "with an e-mail address".into() });
            }
            let place = gateway.inner.config.connectors.iter().find(|c| c.id() == here).map_or(here, |c| c.name());
            (login_url_at(here, back), place, directory.config.prompt())
        }
    };
    let page = Page {
        action,
        login: shown.login,
        error: shown.error,
        signed_in_as: session.as_ref().map_or("", |(s, _)| s.email.as_str()),
        client: waiting.as_ref().map_or("", |w| w.name.as_str()),
        place,
        prompt,
        form: admits(here),
        others,
    };
    // Chromium holds `form-action` against the redirects that follow the form, so the waiting application's origin,
    // which is configuration, must be in it.
    let then = waiting.as_ref().map(|w| format!(" {}", w.origin)).unwrap_or_default();
    let policy = format!(
        "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; \
         form-action 'self'{then}"
    );
    match (page.render(), HeaderValue::from_str(&policy)) {
        (Ok(html), Ok(policy)) => {
            (shown.status, [(header::CONTENT_SECURITY_POLICY, policy)], Html(html)).into_response()
        }
        _ => guard::problem(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the page cannot be drawn"),
    }
}

const FRESH: Shown<'_> = Shown { status: StatusCode::OK, login: "", error: "" };

async fn show(State(gateway): State<Gateway>, headers: HeaderMap, Query(query): Query<Return>) -> Response {
    page(&gateway, Door::Local, &headers, &query.rd, &FRESH)
}

/// All ways to sign in, where an application or a script has not chosen one.
pub(crate) fn choice(gateway: &Gateway, headers: &HeaderMap, back: &str) -> Response {
    page(gateway, Door::Local, headers, back, &FRESH)
}

fn no_directory() -> Response {
    guard::problem(StatusCode::NOT_FOUND, "not_found", "there is no such connector, or it has no passwords")
}

async fn show_directory(
    State(gateway): State<Gateway>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Query(query): Query<Return>,
) -> Response {
    match gateway.directory(&id) {
        Some(directory) => page(&gateway, Door::Directory(directory), &headers, &query.rd, &FRESH),
        None => no_directory(),
    }
}

#[derive(Deserialize)]
struct SignIn {
    login: String,
    password: String,
}

/// The address a request came from. Without one (an in-process caller) all share one brake.
pub(crate) fn address(peer: Option<axum::Extension<ConnectInfo<SocketAddr>>>) -> IpAddr {
    peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |p| p.0.0.ip().to_canonical())
}

async fn submit(
    State(gateway): State<Gateway>,
    peer: Option<axum::Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    Query(query): Query<Return>,
    form: Result<Form<SignIn>, FormRejection>,
) -> Response {
    answer(&gateway, Door::Local, address(peer), &headers, &query.rd, form.ok()).await
}

async fn submit_to_directory(
    State(gateway): State<Gateway>,
    Path(id): Path<String>,
    peer: Option<axum::Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    Query(query): Query<Return>,
    form: Result<Form<SignIn>, FormRejection>,
) -> Response {
    match gateway.directory(&id) {
        Some(directory) => {
            answer(&gateway, Door::Directory(directory), address(peer), &headers, &query.rd, form.ok()).await
        }
        None => no_directory(),
    }
}

async fn answer(
    gateway: &Gateway,
    door: Door<'_>,
    address: IpAddr,
    headers: &HeaderMap,
    back: &str,
    form: Option<Form<SignIn>>,
) -> Response {
    let refuse = |status, login: &str, error: &str| page(gateway, door, headers, back, &Shown { status, login, error });
    // Another site's form must not sign this browser in as somebody else.
    if !same_origin(headers, &gateway.inner.config.external_url) {
        return refuse(StatusCode::FORBIDDEN, "", "This form came from another site. Sign in here instead.");
    }
    let Some(Form(form)) = form else {
        return refuse(StatusCode::BAD_REQUEST, "", "Enter your name and your password.");
    };
    let (checked, wrong) = match door {
        Door::Local => {
            (check(gateway, &form.login, &form.password, address).await, "The e-mail address or the password is wrong.")
        }
        Door::Directory(directory) => (
            ldap::check(gateway, directory, &form.login, &form.password, address).await,
            "The name or the password is wrong.",
        ),
    };
    let user = match checked {
        Ok(user) => user,
        Err(Refused::Wrong) => return refuse(StatusCode::UNAUTHORIZED, &form.login, wrong),
        Err(Refused::NotAdmitted(text)) => return refuse(StatusCode::FORBIDDEN, &form.login, &text),
        Err(Refused::Wait(seconds)) => {
            let text = format!("Too many attempts. Try again in {seconds} s.");
            let mut response = refuse(StatusCode::TOO_MANY_REQUESTS, &form.login, &text);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            return response;
        }
        Err(Refused::Broken) => {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, &form.login, "Sign-in is busy. Try again in a moment.");
        }
        Err(Refused::Unavailable(_)) => {
            let text = "The directory cannot be used right now. Try again in a moment.";
            return refuse(StatusCode::SERVICE_UNAVAILABLE, &form.login, text);
        }
    };
    signed_in(gateway, headers, &user, address, back).await
}

/// A sign-in that did not work out, on the page where it can be tried again.
pub(crate) fn failed(gateway: &Gateway, back: &str, status: StatusCode, error: &str) -> Response {
    page(gateway, Door::Local, &HeaderMap::new(), back, &Shown { status, login: "", error })
}

/// Begins a session for somebody who has proved who they are, and leads the browser back.
pub(crate) async fn signed_in(
    gateway: &Gateway,
    headers: &HeaderMap,
    user: &User,
    address: IpAddr,
    back: &str,
) -> Response {
    // A session that this browser brought ends: it cannot have been planted for the new one.
    for secret in session_secrets(headers) {
        if let Err(error) = gateway.inner.store.end_session(&secret).await {
            tracing::warn!(%error, "an old session could not be ended");
        }
    }
    let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let lifetime = gateway.inner.config.session_ttl;
    match gateway.inner.store.begin_session(user, lifetime, &address.to_string(), agent).await {
        Ok(secret) => {
            let mut response = redirect(StatusCode::SEE_OTHER, &paths::return_path(back));
            set_cookie(&mut response, &secret, lifetime.as_secs());
            response
        }
        Err(error) => {
            tracing::error!(%error, "a session could not be stored");
            let text = "The session could not be stored. See the log of kfbox.";
            failed(gateway, back, StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

pub(crate) enum Refused {
    Wrong,
    /// Seconds.
    Wait(u64),
    Broken,
    /// Known, but may not come in; why, for the person.
    NotAdmitted(String),
    /// The place that knows the password cannot be asked; why, for the log.
    Unavailable(String),
}

/// The one place where passwords of this box are checked, behind the brakes.
pub(crate) async fn check(gateway: &Gateway, login: &str, password: &str, address: IpAddr) -> Result<User, Refused> {
    // What was typed into the name field may be a password by mistake: only an address's shape is logged.
    let named = crate::store::users::canonical_email(login).unwrap_or_else(|_| "(not an address)".into());
    if let Err(Wait(wait)) = gateway.inner.limits.admit(login, address, Instant::now()) {
        tracing::warn!(target: "audit", user = %named, %address, "sign-in refused: too many attempts");
        return Err(Refused::Wait(wait.as_secs().max(1)));
    }
    // On disk before the password is looked at: who can make the daemon restart gains no tries.
    if let Err(error) = keep_attempts(gateway, login, address).await {
        tracing::error!(%error, "a sign-in cannot be counted, so it is refused");
        return Err(Refused::Broken);
    }
    match gateway.inner.store.check_password(login, password).await {
        Ok(Some(user)) => {
            gateway.inner.limits.succeeded(login, address);
            if let Err(error) = keep_attempts(gateway, login, address).await {
                tracing::warn!(%error, "failed sign-ins are not forgotten on disk");
            }
            tracing::info!(target: "audit", user = %user.email, %address, "signed in");
            Ok(user)
        }
        Ok(None) => {
            gateway.inner.limits.failed(login, address, Instant::now());
            tracing::warn!(target: "audit", user = %named, %address, "sign-in failed");
            Err(Refused::Wrong)
        }
        Err(error) => {
            tracing::warn!(%error, "a password could not be checked");
            Err(Refused::Broken)
        }
    }
}

pub(crate) async fn keep_attempts(gateway: &Gateway, login: &str, address: IpAddr) -> Result<(), StoreError> {
    let wall = now();
    let kept = gateway.inner.limits.kept(login, address, Instant::now(), wall);
    gateway.inner.store.keep_attempts(kept, wall.saturating_sub(seconds(FORGET))).await
}

/// `guard::secure` adds `Secure` where the browser came by https.
fn set_cookie(response: &mut Response, value: &str, max_age: u64) {
    let text = format!("{SESSION_COOKIE}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={max_age}");
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
}

/// Ends this browser's session. Another site cannot do it: its request changes nothing.
pub(crate) async fn end_here(gateway: &Gateway, headers: &HeaderMap, back: &str) -> Response {
    if !same_origin(headers, &gateway.inner.config.external_url) {
        return redirect(StatusCode::FOUND, back);
    }
    end_sessions(gateway, headers, back).await
}

/// Ends the sessions of this browser's cookies, whoever asks: the caller has made sure that the person wants it.
pub(crate) async fn end_sessions(gateway: &Gateway, headers: &HeaderMap, back: &str) -> Response {
    let mut response = redirect(StatusCode::FOUND, back);
    for secret in session_secrets(headers) {
        let who = gateway.inner.store.session(&secret).map(|(s, _)| s.email);
        match gateway.inner.store.end_session(&secret).await {
            Ok(true) => tracing::info!(target: "audit", user = who.unwrap_or_default(), "signed out"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "a session could not be ended");
                return guard::problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "not signed out: try again");
            }
        }
    }
    set_cookie(&mut response, "", 0);
    response
}

async fn sign_out(State(gateway): State<Gateway>, headers: HeaderMap, Query(query): Query<Return>) -> Response {
    let back = if query.rd.is_empty() { login_url("/") } else { paths::return_path(&query.rd) };
    end_here(&gateway, &headers, &back).await
}

/// For `auth_request` of a proxy: 202 or 401, and who it is.
async fn auth(State(gateway): State<Gateway>, headers: HeaderMap) -> Response {
    match guard::identify(&gateway, &headers).await {
        Ok(Some((user, _))) => {
            let mut response = StatusCode::ACCEPTED.into_response();
            for name in ["x-auth-request-user", "x-auth-request-email"] {
                if let Ok(value) = HeaderValue::from_str(&user.username) {
                    response.headers_mut().insert(name, value);
                }
            }
            response
        }
        _ => StatusCode::UNAUTHORIZED.into_response(),
    }
}

async fn userinfo(State(gateway): State<Gateway>, headers: HeaderMap) -> Response {
    match guard::identify(&gateway, &headers).await {
        Ok(Some((user, _))) => Json(serde_json::json!({
            "user": user.username,
            "email": user.username,
            "groups": user.groups,
            "preferredUsername": user.username,
        }))
        .into_response(),
        _ => guard::problem(StatusCode::UNAUTHORIZED, "unauthenticated", "not signed in"),
    }
}
