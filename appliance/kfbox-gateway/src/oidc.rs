//! The OpenID Connect provider at `/dex`: discovery, keys, authorization code with PKCE, refresh, device flow, password
//! grant, token exchange, userinfo, introspection, revocation and logout. Paths are Dex's (<https://dexidp.io/docs/>);
//! rules are OpenID Connect Core 1.0, RFC 6749, 7009, 7636, 7662, 8628, 8693 and the security practice of RFC 9700.
//!
//! Guarantees: a redirect goes only to an address that is configured for the client, compared as text; a public client
//! must use PKCE with S256; a code is good once, for a minute, and one that comes back ends what it gave; a client gets
//! only the grants, scopes and connectors that it is configured for; a token is accepted on the platform only if its
//! client is trusted with it.

mod authorize;
mod claims;
pub(crate) mod clients;
mod device;
mod exchange;
mod logout;
mod revoke;
mod token;

pub(crate) use authorize::{Codes, waiting_client};
pub(crate) use claims::platform_user;
pub(crate) use device::Devices;
#[cfg(test)]
pub(crate) use device::canonical_code;

use crate::{
    Gateway, connectors,
    sign_in::encode,
    store::{StoreError, hash_secret},
};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use clients::{ClientConfig, GrantType};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

const FORM_LIMIT: usize = 32 * 1024;
/// Longest `state` and `nonce`: they are given back or signed, so a stranger must not choose their size.
const OPAQUE_LIMIT: usize = 1024;

pub(crate) fn routes() -> Router<Gateway> {
    Router::new()
        .route("/dex/.well-known/openid-configuration", get(discovery))
        .route("/dex/keys", get(keys))
        .route("/dex/auth", get(authorize::authorize))
        .route("/dex/auth/local", get(authorize::authorize_local))
        .route("/dex/auth/{connector}", get(connectors::choose))
        .route("/dex/callback", get(connectors::oidc::come_back))
        .route("/dex/token", post(token::token))
        .route("/dex/token/introspect", post(revoke::introspect))
        .route("/dex/token/revoke", post(revoke::revoke))
        .route("/dex/userinfo", get(claims::userinfo).post(claims::userinfo))
        .route("/dex/logout", get(logout::by_query).post(logout::by_form))
        .merge(device::routes())
        .layer(DefaultBodyLimit::max(FORM_LIMIT))
}

async fn discovery(State(gateway): State<Gateway>) -> Response {
    let issuer = gateway.issuer();
    let grants: Vec<&str> = GrantType::ALL
        .into_iter()
        .filter(|g| *g != GrantType::Password || gateway.password_connector().is_some())
        .map(GrantType::name)
        .collect();
    Json(serde_json::json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/auth"),
        "token_endpoint": format!("{issuer}/token"),
        "jwks_uri": format!("{issuer}/keys"),
        "userinfo_endpoint": format!("{issuer}/userinfo"),
        "device_authorization_endpoint": format!("{issuer}/device/code"),
        "introspection_endpoint": format!("{issuer}/token/introspect"),
        "revocation_endpoint": format!("{issuer}/token/revoke"),
        "end_session_endpoint": format!("{issuer}/logout"),
        "grant_types_supported": grants,
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "code_challenge_methods_supported": ["S256"],
        "scopes_supported": clients::SCOPES,
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
        "claims_supported": ["iss", "sub", "aud", "iat", "exp", "jti", "auth_time", "nonce", "at_hash", "email",
            "email_verified", "groups", "name", "preferred_username", "federated_claims"],
        "authorization_response_iss_parameter_supported": true,
    }))
    .into_response()
}

async fn keys(State(gateway): State<Gateway>) -> Response {
    let set = gateway.inner.store.keys.read().published();
    ([(header::CACHE_CONTROL, "public, max-age=300")], Json(set)).into_response()
}

/// An error of RFC 6749 section 5.2, and those of RFC 8628 section 3.5.
struct TokenError(&'static str, &'static str);

impl IntoResponse for TokenError {
    fn into_response(self) -> Response {
        let status = match self.0 {
            "invalid_client" => StatusCode::UNAUTHORIZED,
            "temporarily_unavailable" => StatusCode::SERVICE_UNAVAILABLE,
            "too_many_requests" => StatusCode::TOO_MANY_REQUESTS,
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

/// The client that sends this request: `client_secret_basic`, `client_secret_post`, or `none` for a public one.
fn authenticate<'a>(
    gateway: &'a Gateway,
    headers: &HeaderMap,
    id: Option<&str>,
    secret: Option<&str>,
) -> Result<&'a ClientConfig, TokenError> {
    const WRONG: TokenError = TokenError("invalid_client", "the client is unknown or its secret is wrong");
    let (id, secret) = match headers.get(header::AUTHORIZATION) {
        Some(value) => {
            let (given, secret) = basic(value).ok_or(WRONG)?;
            // Two ways at once must not name two clients.
            if id.is_some_and(|id| id != given) {
                return Err(WRONG);
            }
            (given, Some(secret))
        }
        None => (id.unwrap_or_default().to_owned(), secret.map(str::to_owned)),
    };
    let client = gateway.client(&id).ok_or(WRONG)?;
    let fits = match (&client.secret, secret.filter(|s| !s.is_empty())) {
        (Some(right), Some(given)) => bool::from(hash_secret(right).ct_eq(&hash_secret(&given))),
        (None, None) => true,
        _ => false,
    };
    if fits { Ok(client) } else { Err(WRONG) }
}

/// Name and secret of a Basic header, each form-encoded (RFC 6749 section 2.3.1).
fn basic(value: &HeaderValue) -> Option<(String, String)> {
    let (scheme, text) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(text.trim()).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    let plain = |t: &str| percent_decode_str(&t.replace('+', " ")).decode_utf8().map(std::borrow::Cow::into_owned);
    Some((plain(id).ok()?, plain(secret).ok()?))
}

/// RFC 7636 section 4.6, for S256 alone: a challenge demands its verifier, and a verifier without one is a mistake.
fn pkce_fits(challenge: Option<&str>, verifier: Option<&str>) -> bool {
    match (challenge, verifier) {
        (Some(challenge), Some(verifier)) => {
            (43..=128).contains(&verifier.len())
                && bool::from(challenge.as_bytes().ct_eq(URL_SAFE_NO_PAD.encode(Sha256::digest(verifier)).as_bytes()))
        }
        (None, None) => true,
        _ => false,
    }
}

/// A challenge as a client may send it: S256, 43 characters of URL-safe base64.
fn challenge<'a>(challenge: Option<&'a str>, method: Option<&str>) -> Result<Option<&'a str>, &'static str> {
    match (challenge, method) {
        (None, _) => Ok(None),
        (Some(challenge), Some("S256"))
            if challenge.len() == 43
                && challenge.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) =>
        {
            Ok(Some(challenge))
        }
        (Some(_), _) => Err("code_challenge must be 43 characters made with S256"),
    }
}

fn with_query(uri: &str, pairs: &[(&str, Option<&str>)]) -> String {
    let mut text = uri.to_owned();
    for (name, value) in pairs {
        if let Some(value) = value {
            text.push(if text.contains('?') { '&' } else { '?' });
            text.push_str(name);
            text.push('=');
            text.push_str(&encode(value));
        }
    }
    text
}
