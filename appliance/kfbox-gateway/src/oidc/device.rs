//! The device flow (RFC 8628), with Dex's paths: a program without a browser shows a short code, a person types it here
//! and says yes, and the program's polling is answered.
//!
//! Guarantees: nothing is granted before a signed-in person has seen which application asks and has agreed by a form of
//! our own page; a device code is good once, for the client that asked for it; guessing user codes is braked.
//! Requests are held in memory: after a restart a program is told to begin again.

use super::{
    TokenError, authenticate, challenge,
    claims::{Source, TokenBody, issue},
    clients::{ClientConfig, GrantType},
    pkce_fits,
    token::TokenForm,
};
use crate::{
    Gateway, guard,
    limits::Wait,
    sign_in::{self, encode, redirect},
    store::{SecretHash, hash_secret, random_secret, sessions::Session, users::User},
};
use askama::Template;
use axum::{
    Form, Json, Router,
    extract::{ConnectInfo, Query, State, rejection::FormRejection},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, StatusCode, header};
use parking_lot::Mutex;
use rand::RngExt as _;
use serde::Deserialize;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// Both Dex's.
const LIFE: Duration = Duration::from_secs(300);
const INTERVAL: Duration = Duration::from_secs(5);
/// A program that polls too often must wait this much longer (RFC 8628 section 3.5).
const SLOWER: Duration = Duration::from_secs(5);
/// A poll that the network brings a little early is not an offence.
const EARLY: Duration = Duration::from_millis(500);
/// Requests under way, of all and of one address: anybody may make one.
const REQUESTS: usize = 1000;
const PER_ADDRESS: usize = 50;
/// No vowels, so that no words come out, and nothing that looks like something else (RFC 8628 section 6.1).
const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

#[derive(Default)]
pub(crate) struct Devices(Mutex<HashMap<SecretHash, DeviceRequest>>);

struct DeviceRequest {
    client: String,
    scope: String,
    challenge: Option<String>,
    user_code: String,
    address: IpAddr,
    state: Decision,
    expires: Instant,
    interval: Duration,
    polled: Option<Instant>,
}

/// Where a request stands.
enum Decision {
    Pending,
    Allowed { email: String, auth_time: i64 },
    Denied,
}

/// What a poll comes to.
enum Polled {
    Pending,
    SlowDown,
    Expired,
    Denied,
    Unknown,
    Allowed { email: String, auth_time: i64, scope: String },
    WrongVerifier,
}

impl Devices {
    fn begin(&self, request: DeviceRequest) -> Option<String> {
        let mut requests = self.0.lock();
        let now = Instant::now();
        requests.retain(|_, r| r.expires > now);
        let from_here = requests.values().filter(|r| r.address == request.address).count();
        let taken = requests.values().any(|r| r.user_code == request.user_code);
        if requests.len() >= REQUESTS || from_here >= PER_ADDRESS || taken {
            return None;
        }
        let code = random_secret();
        requests.insert(hash_secret(&code), request);
        Some(code)
    }

    /// The client and scope of a request that waits under this user code.
    fn waiting(&self, user_code: &str) -> Option<(String, String)> {
        let requests = self.0.lock();
        let found = requests
            .values()
            .find(|r| r.user_code == user_code && matches!(r.state, Decision::Pending) && r.expires > Instant::now());
        found.map(|r| (r.client.clone(), r.scope.clone()))
    }

    /// Answers a waiting request; false when there is none.
    fn decide(&self, user_code: &str, decision: Decision) -> bool {
        let mut requests = self.0.lock();
        let found = requests
            .values_mut()
            .find(|r| r.user_code == user_code && matches!(r.state, Decision::Pending) && r.expires > Instant::now());
        found.map(|r| r.state = decision).is_some()
    }

    fn poll(&self, code: &str, client: &str, verifier: Option<&str>, now: Instant) -> Polled {
        let hash = hash_secret(code);
        let mut requests = self.0.lock();
        let Some(request) = requests.get_mut(&hash).filter(|r| r.client == client) else { return Polled::Unknown };
        if request.expires <= now {
            requests.remove(&hash);
            return Polled::Expired;
        }
        let early = request.polled.is_some_and(|last| now < last + request.interval.saturating_sub(EARLY));
        request.polled = Some(now);
        match &request.state {
            Decision::Pending if early => {
                request.interval += SLOWER;
                Polled::SlowDown
            }
            Decision::Pending => Polled::Pending,
            Decision::Denied => {
                requests.remove(&hash);
                Polled::Denied
            }
            Decision::Allowed { .. } if !pkce_fits(request.challenge.as_deref(), verifier) => Polled::WrongVerifier,
            Decision::Allowed { email, auth_time } => {
                let granted =
                    Polled::Allowed { email: email.clone(), auth_time: *auth_time, scope: request.scope.clone() };
                requests.remove(&hash);
                granted
            }
        }
    }
}

pub(super) fn routes() -> Router<Gateway> {
    Router::new()
        .route("/dex/device", get(show))
        .route("/dex/device/code", post(begin))
        .route("/dex/device/auth/verify_code", post(verify))
}

#[derive(Deserialize)]
struct BeginForm {
    client_id: Option<String>,
    client_secret: Option<String>,
    scope: Option<String>,
    code_challenge: Option<String>,
    code_challenge_method: Option<String>,
}

async fn begin(
    State(gateway): State<Gateway>,
    peer: Option<axum::Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    form: Result<Form<BeginForm>, FormRejection>,
) -> Response {
    let Ok(Form(form)) = form else {
        return TokenError("invalid_request", "the body must be a form that names no parameter twice").into_response();
    };
    match begun(&gateway, &headers, &form, sign_in::address(peer)) {
        Ok(body) => ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response(),
        Err(error) => error.into_response(),
    }
}

fn begun(
    gateway: &Gateway,
    headers: &HeaderMap,
    form: &BeginForm,
    address: IpAddr,
) -> Result<serde_json::Value, TokenError> {
    let client = authenticate(gateway, headers, form.client_id.as_deref(), form.client_secret.as_deref())?;
    if !client.may_use(GrantType::DeviceCode) {
        return Err(TokenError("unauthorized_client", "this client may not use the device flow"));
    }
    let scope = form.scope.clone().filter(|s| !s.trim().is_empty()).unwrap_or_else(|| "openid".into());
    if client.refused_scope(&scope).is_some() {
        return Err(TokenError("invalid_scope", "this client cannot have one of these scopes"));
    }
    let challenge = challenge(form.code_challenge.as_deref(), form.code_challenge_method.as_deref())
        .map_err(|text| TokenError("invalid_request", text))?;
    let user_code = new_user_code();
    let request = DeviceRequest {
        client: client.id.clone(),
        scope,
        challenge: challenge.map(str::to_owned),
        user_code: user_code.clone(),
        address,
        state: Decision::Pending,
        expires: Instant::now() + LIFE,
        interval: INTERVAL,
        polled: None,
    };
    let device_code = gateway
        .inner
        .devices
        .begin(request)
        .ok_or(TokenError("too_many_requests", "too many sign-ins of devices are under way"))?;
    let page = format!("{}/device", gateway.issuer());
    Ok(serde_json::json!({
        "device_code": device_code,
        "user_code": user_code,
        "verification_uri": page,
        "verification_uri_complete": format!("{page}?user_code={user_code}"),
        "expires_in": LIFE.as_secs(),
        "interval": INTERVAL.as_secs(),
    }))
}

/// Eight letters, some 34 bits: enough for five minutes behind a brake.
fn new_user_code() -> String {
    let mut random = rand::rng();
    let mut four =
        || -> String { (0..4).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect() };
    format!("{}-{}", four(), four())
}

/// A code as it was typed: case, spaces and the dash do not matter. `None` for what cannot be one.
pub(crate) fn canonical_code(typed: &str) -> Option<String> {
    let letters: String =
        typed.chars().filter(|c| !matches!(c, ' ' | '-')).map(|c| c.to_ascii_uppercase()).take(9).collect();
    let fine = letters.len() == 8 && letters.bytes().all(|b| LETTERS.contains(&b));
    fine.then(|| format!("{}-{}", &letters[..4], &letters[4..]))
}

#[derive(Template)]
#[template(path = "device.html")]
struct Page<'a> {
    step: Step,
    code: &'a str,
    error: &'a str,
    client: &'a str,
    user: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Enter,
    Confirm,
    Done,
    Refused,
}

fn page(status: StatusCode, page: &Page<'_>) -> Response {
    match page.render() {
        Ok(html) => (status, Html(html)).into_response(),
        Err(_) => guard::problem(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the page cannot be drawn"),
    }
}

fn enter(status: StatusCode, code: &str, error: &str) -> Response {
    page(status, &Page { step: Step::Enter, code, error, client: "", user: "" })
}

#[derive(Deserialize, Default)]
struct DeviceQuery {
    #[serde(default)]
    user_code: String,
}

async fn show(Query(query): Query<DeviceQuery>) -> Response {
    enter(StatusCode::OK, &canonical_code(&query.user_code).unwrap_or_default(), "")
}

#[derive(Deserialize)]
struct VerifyForm {
    user_code: String,
    /// `approve` or `deny` from the second page; absent from the first.
    approval: Option<String>,
}

async fn verify(
    State(gateway): State<Gateway>,
    peer: Option<axum::Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    form: Result<Form<VerifyForm>, FormRejection>,
) -> Response {
    if !guard::same_origin(&headers, &gateway.inner.config.external_url) {
        return enter(StatusCode::FORBIDDEN, "", "This form came from another site. Enter the code here instead.");
    }
    let Ok(Form(form)) = form else {
        return enter(StatusCode::BAD_REQUEST, "", "Enter the code that your program shows.");
    };
    let Some(code) = canonical_code(&form.user_code) else {
        return enter(StatusCode::BAD_REQUEST, "", "The code has eight letters, such as BCDF-GHJK.");
    };
    let session = guard::session(&gateway, &headers).await;
    let Some((session, user)) = session else {
        let back = format!("/dex/device?user_code={}", encode(&code));
        return redirect(StatusCode::SEE_OTHER, &sign_in::login_url(&back));
    };
    let address = sign_in::address(peer);
    let guesser = format!("device code by {}", user.email);
    if let Err(Wait(wait)) = gateway.inner.limits.admit(&guesser, address, Instant::now()) {
        let text = format!("Too many attempts. Try again in {} s.", wait.as_secs().max(1));
        return enter(StatusCode::TOO_MANY_REQUESTS, "", &text);
    }
    let found = gateway.inner.devices.waiting(&code);
    let Some(client) = found.as_ref().and_then(|(id, _)| gateway.client(id)) else {
        return enter(StatusCode::NOT_FOUND, &code, "No program waits under this code. It may have expired.");
    };
    gateway.inner.limits.succeeded(&guesser, address);
    decide(&gateway, client, &code, &user, &session, form.approval.as_deref())
}

fn decide(
    gateway: &Gateway,
    client: &ClientConfig,
    code: &str,
    user: &User,
    session: &Session,
    approval: Option<&str>,
) -> Response {
    let show =
        |step| page(StatusCode::OK, &Page { step, code, error: "", client: client.shown_name(), user: &user.email });
    if !client.admits(&user.connector) {
        let text = "This application does not take users who sign in the way you did.";
        return enter(StatusCode::FORBIDDEN, code, text);
    }
    let (decision, step) = match approval {
        Some("approve") => (Decision::Allowed { email: user.email.clone(), auth_time: session.created }, Step::Done),
        Some("deny") => (Decision::Denied, Step::Refused),
        _ => return show(Step::Confirm),
    };
    if !gateway.inner.devices.decide(code, decision) {
        return enter(StatusCode::NOT_FOUND, code, "No program waits under this code. It may have expired.");
    }
    tracing::info!(target: "audit", user = %user.email, client = %client.id, approved = step == Step::Done,
        "a device's sign-in was decided");
    show(step)
}

pub(super) async fn by_device_code(
    gateway: &Gateway,
    client: &ClientConfig,
    form: TokenForm,
) -> Result<TokenBody, TokenError> {
    const GONE: TokenError = TokenError("invalid_grant", "the device code is unknown, used or another client's");
    let code = form.device_code.filter(|c| !c.is_empty());
    let code = code.ok_or(TokenError("invalid_request", "device_code is missing"))?;
    match gateway.inner.devices.poll(&code, &client.id, form.code_verifier.as_deref(), Instant::now()) {
        Polled::Pending => Err(TokenError("authorization_pending", "the user has not answered yet")),
        Polled::SlowDown => Err(TokenError("slow_down", "wait 5 seconds longer between polls from now on")),
        Polled::Expired => Err(TokenError("expired_token", "the device code has expired: begin again")),
        Polled::Denied => Err(TokenError("access_denied", "the user said no")),
        Polled::Unknown => Err(GONE),
        Polled::WrongVerifier => Err(TokenError("invalid_grant", "the code_verifier does not fit the code_challenge")),
        Polled::Allowed { email, auth_time, scope } => {
            let user = gateway.inner.store.active_user(&email).ok_or(GONE)?;
            if auth_time < user.valid_after || !client.admits(&user.connector) {
                return Err(GONE);
            }
            issue(gateway, client, &user, Source::new(auth_time, scope), None).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(user_code: &str) -> DeviceRequest {
        DeviceRequest {
            client: "cli".into(),
            scope: "openid".into(),
            challenge: None,
            user_code: user_code.into(),
            address: IpAddr::from([127, 0, 0, 1]),
            state: Decision::Pending,
            expires: Instant::now() + LIFE,
            interval: INTERVAL,
            polled: None,
        }
    }

    #[test]
    fn polling_too_often_slows_down_and_time_runs_out() {
        let devices = Devices::default();
        let code = devices.begin(request("BCDF-GHJK")).unwrap();
        let start = Instant::now();
        let poll = |seconds: u64| devices.poll(&code, "cli", None, start + Duration::from_secs(seconds));
        assert!(matches!(poll(0), Polled::Pending));
        assert!(matches!(poll(5), Polled::Pending));
        assert!(matches!(poll(6), Polled::SlowDown));
        assert!(matches!(poll(11), Polled::SlowDown), "ten seconds are wanted now");
        assert!(matches!(poll(26), Polled::Pending));
        assert!(matches!(devices.poll(&code, "other", None, start), Polled::Unknown));
        assert!(matches!(poll(301), Polled::Expired));
        assert!(matches!(poll(302), Polled::Unknown));
    }

    #[test]
    fn requests_are_bounded_and_decided_once() {
        let devices = Devices::default();
        let codes: Vec<_> = (0..PER_ADDRESS).map(|_| devices.begin(request(&new_user_code())).unwrap()).collect();
        assert!(devices.begin(request(&new_user_code())).is_none(), "one address has had its share");
        devices.0.lock().clear();
        let code = devices.begin(request("BCDF-GHJK")).unwrap();
        assert!(devices.begin(request("BCDF-GHJK")).is_none(), "a user code is one request's");
        assert!(devices.decide("BCDF-GHJK", Decision::Denied));
        assert!(!devices.decide("BCDF-GHJK", Decision::Denied) && devices.waiting("BCDF-GHJK").is_none());
        assert!(matches!(devices.poll(&code, "cli", None, Instant::now()), Polled::Denied));
        assert_eq!(codes.len(), PER_ADDRESS);
    }

    #[test]
    fn codes_are_read_as_people_type_them() {
        for typed in ["BCDF-GHJK", "bcdfghjk", " bcdf ghjk ", "b-c-d-f-g-h-j-k"] {
            assert_eq!(canonical_code(typed).as_deref(), Some("BCDF-GHJK"), "{typed:?}");
        }
        for typed in ["", "BCDF", "BCDF-GHJKL", "ABCD-EFGH", "BCDF-GHJ\u{212a}", "BCDF_GHJK"] {
            assert_eq!(canonical_code(typed), None, "{typed:?}");
        }
        let code = new_user_code();
        assert_eq!(canonical_code(&code), Some(code));
    }
}
