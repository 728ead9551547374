//! The OpenID Connect provider at `/dex`: discovery, keys, authorization code with PKCE, refresh, password grant,
//! userinfo, logout. Paths are Dex's (<https://dexidp.io/docs/>); rules are OpenID Connect Core 1.0, RFC 7636 and the
//! security practice of RFC 9700.
//!
//! Guarantees: a redirect goes only to an address that is configured for the client, compared as text; a public client
//! must use PKCE with S256; a code is good once, for a minute; a token is accepted on the platform only if its client
//! is trusted with it.

use crate::{
    Gateway, guard, paths,
    sign_in::{self, Refused, redirect},
    store::{
        SecretHash, StoreError, hash_secret, now, random_secret, refresh::Grant, refresh::Redeemed, seconds,
        users::User,
    },
};
use axum::{
    Form, Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Query, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use kfbox_base::UserInfo;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};
use subtle::ConstantTimeEq as _;
use url::Url;

const CODE_LIFE: Duration = Duration::from_secs(60);
/// Codes waiting to be exchanged; bounds memory, far above what people can start in a minute.
const CODES: usize = 1000;
const FORM_LIMIT: usize = 32 * 1024;

/// An application that signs its users in here.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientConfig {
    pub id: String,
    /// What people read on the sign-in page.
    #[serde(default)]
    pub name: String,
    /// None for a public client (a browser or command-line program), which must then use PKCE.
    #[serde(default)]
    pub secret: Option<String>,
    /// Compared as text.
    #[serde(default)]
    pub redirect_uris: Vec<String>,
    /// Tokens of this client are good on the platform itself and at the Kubernetes API.
    #[serde(default)]
    pub platform: bool,
}

impl std::fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientConfig")
            .field("id", &self.id)
            .field("redirect_uris", &self.redirect_uris)
            .finish_non_exhaustive()
    }
}

pub(crate) fn check_clients(clients: &[ClientConfig]) -> Result<(), String> {
    for (n, client) in clients.iter().enumerate() {
        if client.id.is_empty() || clients[..n].iter().any(|c| c.id == client.id) {
            return Err(format!("the client id {:?} is empty or used twice", client.id));
        }
        if client.secret.as_ref().is_some_and(|s| s.len() < 16) {
            return Err(format!("the secret of client {} has less than 16 characters", client.id));
        }
        for uri in &client.redirect_uris {
            let fine = Url::parse(uri)
                .is_ok_and(|u| u.fragment().is_none() && matches!(u.scheme(), "http" | "https") && u.host().is_some());
            if !fine {
                return Err(format!(
                    "the redirect URI {uri:?} of client {} must be an absolute http(s) URL",
                    client.id
                ));
            }
        }
    }
    Ok(())
}

#[derive(Default)]
pub(crate) struct Codes(Mutex<HashMap<SecretHash, CodeGrant>>);

struct CodeGrant {
    client: String,
    redirect_uri: String,
    email: String,
    scope: String,
    nonce: Option<String>,
    challenge: Option<String>,
    auth_time: i64,
    expires: Instant,
}

impl Codes {
    fn put(&self, grant: CodeGrant) -> Option<String> {
        let mut codes = self.0.lock();
        if codes.len() >= CODES {
            let now = Instant::now();
            codes.retain(|_, g| g.expires > now);
            if codes.len() >= CODES {
                return None;
            }
        }
        let code = random_secret();
        codes.insert(hash_secret(&code), grant);
        Some(code)
    }

    fn take(&self, code: &str) -> Option<CodeGrant> {
        self.0.lock().remove(&hash_secret(code)).filter(|g| g.expires > Instant::now())
    }
}

pub(crate) fn routes() -> Router<Gateway> {
    Router::new()
        .route("/dex/.well-known/openid-configuration", get(discovery))
        .route("/dex/keys", get(keys))
        .route("/dex/auth", get(authorize))
        .route("/dex/auth/local", get(authorize))
        .route("/dex/token", post(token))
        .route("/dex/userinfo", get(userinfo).post(userinfo))
        .route("/dex/logout", get(logout))
        .layer(DefaultBodyLimit::max(FORM_LIMIT))
}

async fn discovery(State(gateway): State<Gateway>) -> Response {
    let issuer = gateway.issuer();
    let mut grants = vec!["authorization_code", "refresh_token"];
    if gateway.inner.config.password_grant {
        grants.push("password");
    }
    Json(serde_json::json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/auth"),
        "token_endpoint": format!("{issuer}/token"),
        "jwks_uri": format!("{issuer}/keys"),
        "userinfo_endpoint": format!("{issuer}/userinfo"),
        "end_session_endpoint": format!("{issuer}/logout"),
        "grant_types_supported": grants,
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "code_challenge_methods_supported": ["S256"],
        "scopes_supported": ["openid", "email", "groups", "profile", "offline_access"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
        "claims_supported": ["iss", "sub", "aud", "iat", "exp", "auth_time", "nonce", "at_hash", "email",
            "email_verified", "groups", "name", "preferred_username"],
        "authorization_response_iss_parameter_supported": true,
    }))
    .into_response()
}

async fn keys(State(gateway): State<Gateway>) -> Response {
    let set = gateway.inner.store.keys.read().published();
    ([(header::CACHE_CONTROL, "public, max-age=300")], Json(set)).into_response()
}

#[derive(Deserialize, Default)]
struct AuthorizeQuery {
    #[serde(default)]
    client_id: String,
    #[serde(default)]
    redirect_uri: String,
    #[serde(default)]
    response_type: String,
    #[serde(default)]
    response_mode: Option<String>,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    nonce: Option<String>,
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    max_age: Option<i64>,
    #[serde(default)]
    code_challenge: Option<String>,
    #[serde(default)]
    code_challenge_method: Option<String>,
}

/// The application that a sign-in would continue to.
pub(crate) struct Waiting {
    pub name: String,
    pub origin: String,
}

/// Which application waits behind this return path; only one that is configured, with its redirect address right.
pub(crate) fn waiting_client(gateway: &Gateway, back: &str) -> Option<Waiting> {
    let back = paths::return_path(back);
    let query = back.strip_prefix("/dex/auth?")?;
    let query: AuthorizeQuery = serde_urlencoded::from_str(query).ok()?;
    let client = gateway.inner.config.clients.iter().find(|c| c.id == query.client_id)?;
    let uri = client.redirect_uris.iter().find(|u| **u == query.redirect_uri)?;
    let name = if client.name.is_empty() { client.id.clone() } else { client.name.clone() };
    Some(Waiting { name, origin: Url::parse(uri).ok()?.origin().ascii_serialization() })
}

fn with_query(uri: &str, pairs: &[(&str, Option<&str>)]) -> String {
    let mut text = uri.to_owned();
    for (name, value) in pairs {
        if let Some(value) = value {
            text.push(if text.contains('?') { '&' } else { '?' });
            text.push_str(name);
            text.push('=');
            text.push_str(&sign_in::encode(value));
        }
    }
    text
}

async fn authorize(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    uri: http::Uri,
    query: Result<Query<AuthorizeQuery>, axum::extract::rejection::QueryRejection>,
) -> Response {
    // Until client and redirect address are known to be right, errors are shown here and go nowhere.
    let Ok(Query(query)) = query else {
        return guard::problem(StatusCode::BAD_REQUEST, "invalid_request", "the query cannot be read");
    };
    let Some(client) = gateway.inner.config.clients.iter().find(|c| c.id == query.client_id) else {
        return guard::problem(StatusCode::BAD_REQUEST, "unauthorized_client", "this client_id is not configured");
    };
    if !client.redirect_uris.contains(&query.redirect_uri) {
        return guard::problem(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            "this redirect_uri is not one of the client's, which are compared character by character",
        );
    }
    let state = query.state.as_deref();
    let fail = |error: &str, text: &str| {
        let pairs = [
            ("error", Some(error)),
            ("error_description", Some(text)),
            ("state", state),
            ("iss", Some(gateway.issuer())),
        ];
        redirect(StatusCode::FOUND, &with_query(&query.redirect_uri, &pairs))
    };
    if query.response_type != "code" {
        return fail("unsupported_response_type", "response_type must be code");
    }
    if query.response_mode.as_deref().is_some_and(|m| m != "query") {
        return fail("invalid_request", "response_mode must be query");
    }
    let challenge = match (&query.code_challenge, query.code_challenge_method.as_deref()) {
        (Some(challenge), Some("S256")) if challenge.len() == 43 => Some(challenge.clone()),
        (Some(_), _) => return fail("invalid_request", "code_challenge must be 43 characters made with S256"),
        (None, _) if client.secret.is_none() => {
            return fail("invalid_request", "a public client must use PKCE: code_challenge with S256");
        }
        (None, _) => None,
    };
    let session = guard::session_secrets(&headers).find_map(|secret| gateway.inner.store.session(&secret));
    let prompts: Vec<&str> = query.prompt.as_deref().unwrap_or("").split(' ').collect();
    let stale = |created: i64| query.max_age.is_some_and(|age| created.saturating_add(age) < now());
    let Some((session, user)) = session.filter(|(s, _)| !prompts.contains(&"login") && !stale(s.created)) else {
        if prompts.contains(&"none") {
            return fail("login_required", "nobody is signed in");
        }
        // `prompt` is dropped: after the form, the sign-in is fresh.
        let text = uri.query().unwrap_or("");
        let kept: Vec<&str> = text.split('&').filter(|pair| !pair.starts_with("prompt=")).collect();
        return redirect(StatusCode::FOUND, &sign_in::login_url(&format!("/dex/auth?{}", kept.join("&"))));
    };
    let grant = CodeGrant {
        client: client.id.clone(),
        redirect_uri: query.redirect_uri.clone(),
        email: user.email.clone(),
        scope: query.scope.clone(),
        nonce: query.nonce.clone(),
        challenge,
        auth_time: session.created,
        expires: Instant::now() + CODE_LIFE,
    };
    let Some(code) = gateway.inner.codes.put(grant) else {
        return fail("temporarily_unavailable", "too many sign-ins are under way");
    };
    tracing::info!(target: "audit", user = %user.email, client = %client.id, "authorization code issued");
    let pairs = [("code", Some(code.as_str())), ("state", state), ("iss", Some(gateway.issuer()))];
    redirect(StatusCode::FOUND, &with_query(&query.redirect_uri, &pairs))
}

#[derive(Deserialize, Default)]
struct TokenForm {
    #[serde(default)]
    grant_type: String,
    client_id: Option<String>,
    client_secret: Option<String>,
    code: Option<String>,
    redirect_uri: Option<String>,
    code_verifier: Option<String>,
    refresh_token: Option<String>,
    username: Option<String>,
    password: Option<String>,
    scope: Option<String>,
}

/// An error of RFC 6749 section 5.2.
struct TokenError(&'static str, &'static str);

impl IntoResponse for TokenError {
    fn into_response(self) -> Response {
        let status = match self.0 {
            "invalid_client" => StatusCode::UNAUTHORIZED,
            "temporarily_unavailable" => StatusCode::SERVICE_UNAVAILABLE,
            "slow_down" => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::BAD_REQUEST,
        };
        let body = Json(serde_json::json!({"error": self.0, "error_description": self.1}));
        let mut response = (status, body).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"kfbox\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

impl From<StoreError> for TokenError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the token endpoint");
        Self("temporarily_unavailable", "the token cannot be stored or signed right now")
    }
}

fn client<'a>(gateway: &'a Gateway, headers: &HeaderMap, form: &TokenForm) -> Result<&'a ClientConfig, TokenError> {
    const WRONG: TokenError = TokenError("invalid_client", "the client is unknown or its secret is wrong");
    let (id, secret) = match headers.get(header::AUTHORIZATION) {
        Some(value) => {
            let basic =
                value.to_str().ok().and_then(|v| v.split_once(' ')).filter(|(s, _)| s.eq_ignore_ascii_case("basic"));
            let text = basic.and_then(|(_, b)| STANDARD.decode(b.trim()).ok()).and_then(|b| String::from_utf8(b).ok());
            let Some((id, secret)) = text.as_deref().and_then(|t| t.split_once(':')) else { return Err(WRONG) };
            let plain = |t: &str| percent_decode_str(&t.replace('+', " ")).decode_utf8_lossy().into_owned();
            (plain(id), Some(plain(secret)))
        }
        None => (form.client_id.clone().unwrap_or_default(), form.client_secret.clone()),
    };
    let client = gateway.inner.config.clients.iter().find(|c| c.id == id).ok_or(WRONG)?;
    let fits = match (&client.secret, secret.filter(|s| !s.is_empty())) {
        (Some(right), Some(given)) => bool::from(hash_secret(right).ct_eq(&hash_secret(&given))),
        (None, None) => true,
        _ => false,
    };
    if fits { Ok(client) } else { Err(WRONG) }
}

async fn token(
    State(gateway): State<Gateway>,
    peer: Option<axum::Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    form: Result<Form<TokenForm>, axum::extract::rejection::FormRejection>,
) -> Response {
    let Ok(Form(form)) = form else {
        return TokenError("invalid_request", "the body must be a form").into_response();
    };
    let answer = match client(&gateway, &headers, &form) {
        Err(error) => Err(error),
        Ok(client) => match form.grant_type.as_str() {
            "authorization_code" => by_code(&gateway, client, form).await,
            "refresh_token" => by_refresh(&gateway, client, form).await,
            "password" => by_password(&gateway, client, form, peer).await,
            _ => Err(TokenError("unsupported_grant_type", "grant_type must be authorization_code or refresh_token")),
        },
    };
    match answer {
        Ok(body) => ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn by_code(gateway: &Gateway, client: &ClientConfig, form: TokenForm) -> Result<TokenBody, TokenError> {
    const WRONG: TokenError = TokenError("invalid_grant", "the code is unknown, used, expired or another client's");
    let grant = gateway.inner.codes.take(form.code.as_deref().unwrap_or("")).ok_or(WRONG)?;
    if grant.client != client.id || form.redirect_uri.as_deref() != Some(grant.redirect_uri.as_str()) {
        return Err(WRONG);
    }
    let proven = match (&grant.challenge, form.code_verifier.as_deref()) {
        (Some(challenge), Some(verifier)) => {
            (43..=128).contains(&verifier.len())
                && bool::from(challenge.as_bytes().ct_eq(URL_SAFE_NO_PAD.encode(Sha256::digest(verifier)).as_bytes()))
        }
        (None, None) => true,
        _ => false,
    };
    if !proven {
        return Err(TokenError("invalid_grant", "the code_verifier does not fit the code_challenge"));
    }
    let user = gateway.inner.store.active_user(&grant.email).ok_or(WRONG)?;
    // The sign-in behind the code must still count: a changed password ends it.
    if grant.auth_time < user.valid_after {
        return Err(WRONG);
    }
    let source = Source { auth_time: grant.auth_time, nonce: grant.nonce, scope: grant.scope };
    issue(gateway, client, &user, source, None).await
}

async fn by_refresh(gateway: &Gateway, client: &ClientConfig, form: TokenForm) -> Result<TokenBody, TokenError> {
    const WRONG: TokenError = TokenError("invalid_grant", "the refresh token is unknown, used or expired");
    let secret = form.refresh_token.unwrap_or_default();
    match gateway.inner.store.redeem_refresh(&secret, &client.id).await? {
        Redeemed::Good { grant, next } => {
            let user = gateway.inner.store.active_user(&grant.email).ok_or(WRONG)?;
            let source = Source { auth_time: grant.auth_time, nonce: None, scope: grant.scope };
            issue(gateway, client, &user, source, Some(next)).await
        }
        Redeemed::Unknown => Err(WRONG),
        Redeemed::Reused { email } => {
            tracing::warn!(target: "audit", user = %email, client = %client.id, "a used refresh token came back: revoked");
            Err(WRONG)
        }
    }
}

async fn by_password(
    gateway: &Gateway,
    client: &ClientConfig,
    form: TokenForm,
    peer: Option<axum::Extension<ConnectInfo<SocketAddr>>>,
) -> Result<TokenBody, TokenError> {
    if !gateway.inner.config.password_grant {
        return Err(TokenError("unsupported_grant_type", "the password grant is off in this box's configuration"));
    }
    let (login, password) = (form.username.unwrap_or_default(), form.password.unwrap_or_default());
    let user = match sign_in::check(gateway, &login, &password, sign_in::address(peer)).await {
        Ok(user) => user,
        Err(Refused::Wrong) => return Err(TokenError("invalid_grant", "the user name or the password is wrong")),
        Err(Refused::Wait(_)) => return Err(TokenError("slow_down", "too many attempts: wait")),
        Err(Refused::Broken) => return Err(TokenError("temporarily_unavailable", "busy: try again")),
    };
    let source = Source { auth_time: now(), nonce: None, scope: form.scope.unwrap_or_else(|| "openid".into()) };
    issue(gateway, client, &user, source, None).await
}

struct Source {
    auth_time: i64,
    nonce: Option<String>,
    scope: String,
}

#[derive(Serialize)]
struct TokenBody {
    access_token: String,
    token_type: &'static str,
    expires_in: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    scope: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    exp: i64,
    iat: i64,
    auth_time: i64,
    email: String,
    email_verified: bool,
    preferred_username: String,
    name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_hash: Option<String>,
}

/// `typ` of an access token, RFC 9068.
const ACCESS: &str = "at+jwt";

async fn issue(
    gateway: &Gateway,
    client: &ClientConfig,
    user: &User,
    source: Source,
    refresh: Option<String>,
) -> Result<TokenBody, TokenError> {
    gateway.inner.store.rotate_keys_if_due().await?;
    let scopes: Vec<&str> = source.scope.split_whitespace().collect();
    let life = seconds(gateway.inner.config.access_token_ttl);
    let iat = now();
    let mut claims = Claims {
        iss: gateway.issuer().to_owned(),
        sub: user.uid.clone(),
        aud: client.id.clone(),
        exp: iat + life,
        iat,
        auth_time: source.auth_time,
        email: user.email.clone(),
        email_verified: true,
        preferred_username: user.email.clone(),
        name: user.email.clone(),
        groups: if scopes.contains(&"groups") { user.groups.clone() } else { Vec::new() },
        nonce: None,
        at_hash: None,
    };
    let (access_token, id_token) = {
        let keys = gateway.inner.store.keys.read();
        let access = keys.sign(ACCESS, &claims)?;
        claims.at_hash = Some(URL_SAFE_NO_PAD.encode(&Sha256::digest(access.as_bytes())[..16]));
        claims.nonce = source.nonce;
        let id = scopes.contains(&"openid").then(|| keys.sign("JWT", &claims)).transpose()?;
        (access, id)
    };
    let refresh_token = match refresh {
        Some(next) => Some(next),
        None if scopes.contains(&"offline_access") => {
            let grant = Grant {
                email: user.email.clone(),
                client: client.id.clone(),
                scope: source.scope.clone(),
                auth_time: source.auth_time,
            };
            Some(gateway.inner.store.issue_refresh(grant, gateway.inner.config.refresh_token_ttl).await?)
        }
        None => None,
    };
    tracing::info!(target: "audit", user = %user.email, client = %client.id, "token issued");
    Ok(TokenBody { access_token, token_type: "bearer", expires_in: life, id_token, refresh_token, scope: source.scope })
}

/// The claims of one of our tokens that still counts, its user, and its `typ`.
fn verified(gateway: &Gateway, token: &str) -> Option<(Claims, User, String)> {
    let (claims, typ) = gateway.inner.store.keys.read().verify::<Claims>(token, gateway.issuer())?;
    let user = gateway.inner.store.active_user(&claims.email)?;
    (user.uid == claims.sub && claims.iat >= user.valid_after).then_some((claims, user, typ))
}

/// Who an ID or access token speaks for on the platform. The groups are those the user has now.
pub(crate) fn platform_user(gateway: &Gateway, token: &str) -> Option<UserInfo> {
    if token.split('.').count() != 3 {
        return None;
    }
    let (claims, user, _) = verified(gateway, token)?;
    let trusted = gateway.inner.config.clients.iter().any(|c| c.id == claims.aud && c.platform);
    trusted.then(|| user.info())
}

async fn userinfo(State(gateway): State<Gateway>, headers: HeaderMap) -> Response {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    let found = token.and_then(|t| verified(&gateway, t)).filter(|(_, _, typ)| typ == ACCESS);
    let Some((claims, user, _)) = found else {
        let mut response =
            guard::problem(StatusCode::UNAUTHORIZED, "invalid_token", "send an access token of this issuer");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer error=\"invalid_token\""));
        return response;
    };
    let groups = if claims.groups.is_empty() { Vec::new() } else { user.groups };
    Json(serde_json::json!({
        "sub": claims.sub,
        "email": user.email,
        "email_verified": true,
        "name": user.email,
        "preferred_username": user.email,
        "groups": groups,
    }))
    .into_response()
}

#[derive(Deserialize, Default)]
struct LogoutQuery {
    client_id: Option<String>,
    post_logout_redirect_uri: Option<String>,
    state: Option<String>,
}

/// OpenID Connect RP-initiated logout. Back to an application only at one of its redirect addresses.
async fn logout(State(gateway): State<Gateway>, headers: HeaderMap, Query(query): Query<LogoutQuery>) -> Response {
    let known = query.post_logout_redirect_uri.as_deref().filter(|uri| {
        let mut clients = gateway.inner.config.clients.iter();
        clients
            .any(|c| query.client_id.as_ref().is_none_or(|id| *id == c.id) && c.redirect_uris.iter().any(|r| r == uri))
    });
    let back = match known {
        Some(uri) => with_query(uri, &[("state", query.state.as_deref())]),
        None => sign_in::login_url("/"),
    };
    sign_in::end_here(&gateway, &headers, &back).await
}
