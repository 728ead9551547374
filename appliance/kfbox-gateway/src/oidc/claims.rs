//! What tokens say, how they are made, and when they count. An access token is a JWT of RFC 9068.

use super::{TokenError, clients::ClientConfig};
use crate::{
    Gateway, guard,
    store::{now, refresh::Grant, seconds, users::User},
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use kfbox_base::UserInfo;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// `typ` of an access token.
pub(super) const ACCESS: &str = "at+jwt";
pub(super) const ID: &str = "JWT";

/// What a token is issued for.
pub(super) struct Source {
    pub auth_time: i64,
    pub nonce: Option<String>,
    pub scope: String,
    /// Names everything that descends from one sign-in of one client, so that it can end together.
    pub family: String,
}

impl Source {
    pub fn new(auth_time: i64, scope: String) -> Self {
        Self { auth_time, nonce: None, scope, family: uuid::Uuid::new_v4().to_string() }
    }
}

#[derive(Serialize)]
pub(super) struct TokenBody {
    pub access_token: String,
    pub token_type: &'static str,
    pub expires_in: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    /// Of RFC 8693 alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_token_type: Option<&'static str>,
    pub scope: String,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Claims {
    pub iss: String,
    pub sub: String,
    pub aud: String,
    pub exp: i64,
    pub iat: i64,
    pub auth_time: i64,
    #[serde(default)]
    pub jti: String,
    /// See [`Source::family`].
    #[serde(default)]
    pub sid: String,
    pub email: String,
    pub email_verified: bool,
    pub preferred_username: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_hash: Option<String>,
    /// Of access tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Of access tokens, equal to the audience.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub federated_claims: Option<Federated>,
}

/// Where a user comes from, as Dex says it.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Federated {
    pub connector_id: String,
    pub user_id: String,
}

impl Claims {
    fn new(gateway: &Gateway, client: &ClientConfig, user: &User, source: &Source) -> Self {
        let iat = now();
        let asked = |scope: &str| source.scope.split_whitespace().any(|s| s == scope);
        let federated = (user.connector != crate::LOCAL)
            .then(|| Federated { connector_id: user.connector.clone(), user_id: user.subject.clone() });
        Self {
            iss: gateway.issuer().to_owned(),
            sub: user.uid.clone(),
            aud: client.id.clone(),
            exp: iat.saturating_add(seconds(gateway.inner.config.access_token_ttl)),
            iat,
            auth_time: source.auth_time,
            jti: uuid::Uuid::new_v4().to_string(),
            sid: source.family.clone(),
            email: user.email.clone(),
            email_verified: true,
            preferred_username: user.preferred_username().to_owned(),
            name: user.shown_name().to_owned(),
            groups: if asked("groups") { user.groups.clone() } else { Vec::new() },
            nonce: None,
            at_hash: None,
            scope: None,
            client_id: None,
            federated_claims: federated,
        }
    }
}

/// An access token, valid until `ends` at most; its last second comes with it.
pub(super) fn sign_access(
    gateway: &Gateway,
    client: &ClientConfig,
    user: &User,
    source: &Source,
    ends: Option<i64>,
) -> Result<(String, i64), TokenError> {
    let mut claims = Claims::new(gateway, client, user, source);
    claims.exp = claims.exp.min(ends.unwrap_or(i64::MAX));
    claims.scope = Some(source.scope.clone());
    claims.client_id = Some(client.id.clone());
    let token = gateway.inner.store.keys.read().sign(ACCESS, &claims)?;
    Ok((token, claims.exp))
}

/// An ID token; `access` is the access token that comes with it.
pub(super) fn sign_id(
    gateway: &Gateway,
    client: &ClientConfig,
    user: &User,
    source: &Source,
    access: Option<&str>,
    ends: Option<i64>,
) -> Result<(String, i64), TokenError> {
    let mut claims = Claims::new(gateway, client, user, source);
    claims.exp = claims.exp.min(ends.unwrap_or(i64::MAX));
    claims.nonce.clone_from(&source.nonce);
    claims.at_hash = access.map(|a| URL_SAFE_NO_PAD.encode(&Sha256::digest(a.as_bytes())[..16]));
    let token = gateway.inner.store.keys.read().sign(ID, &claims)?;
    Ok((token, claims.exp))
}

/// The tokens of a grant. `refresh` is the successor of a refresh token that was used.
pub(super) async fn issue(
    gateway: &Gateway,
    client: &ClientConfig,
    user: &User,
    source: Source,
    refresh: Option<String>,
) -> Result<TokenBody, TokenError> {
    gateway.inner.store.rotate_keys_if_due().await?;
    let asked = |scope: &str| source.scope.split_whitespace().any(|s| s == scope);
    let (access_token, exp) = sign_access(gateway, client, user, &source, None)?;
    let id_token = match asked("openid") {
        true => Some(sign_id(gateway, client, user, &source, Some(&access_token), None)?.0),
        false => None,
    };
    let may_refresh = client.may_use(super::GrantType::RefreshToken);
    let refresh_token = match refresh {
        Some(next) => Some(next),
        None if asked("offline_access") && may_refresh => {
            let grant = Grant {
                email: user.email.clone(),
                client: client.id.clone(),
                scope: source.scope.clone(),
                auth_time: source.auth_time,
                family: source.family.clone(),
            };
            Some(gateway.inner.store.issue_refresh(grant, gateway.inner.config.refresh_token_ttl).await?)
        }
        None => None,
    };
    tracing::info!(target: "audit", user = %user.email, client = %client.id, "token issued");
    Ok(TokenBody {
        access_token,
        token_type: "bearer",
        expires_in: exp - now(),
        id_token,
        refresh_token,
        issued_token_type: None,
        scope: source.scope,
    })
}

/// The claims of one of our tokens that still counts, its user, and its `typ`.
pub(super) fn verified(gateway: &Gateway, token: &str) -> Option<(Claims, User, String)> {
    let store = &gateway.inner.store;
    let (claims, typ) = store.keys.read().verify::<Claims>(token, gateway.issuer())?;
    if store.is_revoked(&claims.jti) || store.is_revoked(&claims.sid) {
        return None;
    }
    let user = store.active_user(&claims.email)?;
    (user.uid == claims.sub && claims.iat >= user.valid_after).then_some((claims, user, typ))
}

/// Who an ID or access token speaks for on the platform. The groups are those the user has now.
pub(crate) fn platform_user(gateway: &Gateway, token: &str) -> Option<UserInfo> {
    if token.split('.').count() != 3 {
        return None;
    }
    let (claims, user, _) = verified(gateway, token)?;
    gateway.client(&claims.aud).filter(|c| c.platform && c.admits(&user.connector)).map(|_| user.info())
}

pub(super) async fn userinfo(State(gateway): State<Gateway>, headers: HeaderMap) -> Response {
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
    let groups = if claims.groups.is_empty() { Vec::new() } else { user.groups.clone() };
    Json(serde_json::json!({
        "sub": claims.sub,
        "email": user.email,
        "email_verified": true,
        "name": user.shown_name(),
        "preferred_username": user.preferred_username(),
        "groups": groups,
    }))
    .into_response()
}
