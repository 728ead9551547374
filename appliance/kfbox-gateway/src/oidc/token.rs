//! `/dex/token`: the token endpoint and its grants.

use super::{
    TokenError, authenticate,
    authorize::Taken,
    claims::{Source, TokenBody, issue},
    clients::{ClientConfig, GrantType},
    device, exchange, pkce_fits,
};
use crate::{
    Gateway,
    connectors::{Refusal, ldap},
    sign_in::{self, Refused},
    store::{StoreError, now, refresh::Redeemed},
};
use axum::{
    Form, Json,
    extract::{ConnectInfo, State, rejection::FormRejection},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, header};
use serde::Deserialize;
use std::net::SocketAddr;

#[derive(Deserialize, Default)]
pub(super) struct TokenForm {
    #[serde(default)]
    grant_type: String,
    client_id: Option<String>,
    client_secret: Option<String>,
    code: Option<String>,
    redirect_uri: Option<String>,
    pub code_verifier: Option<String>,
    refresh_token: Option<String>,
    username: Option<String>,
    password: Option<String>,
    pub scope: Option<String>,
    pub device_code: Option<String>,
    pub connector_id: Option<String>,
    pub subject_token: Option<String>,
    pub subject_token_type: Option<String>,
    pub requested_token_type: Option<String>,
    pub audience: Option<String>,
}

pub(super) async fn token(
    State(gateway): State<Gateway>,
    peer: Option<axum::Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    form: Result<Form<TokenForm>, FormRejection>,
) -> Response {
    let Ok(Form(form)) = form else {
        return TokenError("invalid_request", "the body must be a form that names no parameter twice").into_response();
    };
    match answer(&gateway, &headers, form, peer).await {
        Ok(body) => ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn answer(
    gateway: &Gateway,
    headers: &HeaderMap,
    form: TokenForm,
    peer: Option<axum::Extension<ConnectInfo<SocketAddr>>>,
) -> Result<TokenBody, TokenError> {
    let client = authenticate(gateway, headers, form.client_id.as_deref(), form.client_secret.as_deref())?;
    let grant = GrantType::parse(&form.grant_type)
        .filter(|g| *g != GrantType::Password || gateway.password_connector().is_some())
        .ok_or(TokenError(
            "unsupported_grant_type",
            "this grant_type is unknown, or off in this box's configuration",
        ))?;
    if !client.may_use(grant) {
        return Err(TokenError("unauthorized_client", "this client may not use this grant_type"));
    }
    match grant {
        GrantType::AuthorizationCode => by_code(gateway, client, form).await,
        GrantType::RefreshToken => by_refresh(gateway, client, form).await,
        GrantType::DeviceCode => device::by_device_code(gateway, client, form).await,
        GrantType::Password => by_password(gateway, client, form, peer).await,
        GrantType::TokenExchange => exchange::by_exchange(gateway, client, form).await,
    }
}

async fn by_code(gateway: &Gateway, client: &ClientConfig, form: TokenForm) -> Result<TokenBody, TokenError> {
    const WRONG: TokenError = TokenError("invalid_grant", "the code is unknown, used, expired or another client's");
    let grant = match gateway.inner.codes.take(form.code.as_deref().unwrap_or("")) {
        Taken::Good(grant) => grant,
        Taken::Unknown => return Err(WRONG),
        Taken::Again(family) => {
            tracing::warn!(target: "audit", client = %client.id, "a used authorization code came back: revoked");
            gateway.inner.store.revoke_family(&family, gateway.inner.config.access_token_ttl).await?;
            return Err(WRONG);
        }
    };
    if grant.client != client.id || form.redirect_uri.as_deref() != Some(grant.redirect_uri.as_str()) {
        return Err(WRONG);
    }
    if !pkce_fits(grant.challenge.as_deref(), form.code_verifier.as_deref()) {
        return Err(TokenError("invalid_grant", "the code_verifier does not fit the code_challenge"));
    }
    let user = gateway.inner.store.active_user(&grant.email).ok_or(WRONG)?;
    // The sign-in behind the code must still count: a changed password ends it.
    if grant.auth_time < user.valid_after {
        return Err(WRONG);
    }
    let source = Source { auth_time: grant.auth_time, nonce: grant.nonce, scope: grant.scope, family: grant.family };
    issue(gateway, client, &user, source, None).await
}

async fn by_refresh(gateway: &Gateway, client: &ClientConfig, form: TokenForm) -> Result<TokenBody, TokenError> {
    const WRONG: TokenError = TokenError("invalid_grant", "the refresh token is unknown, used or expired");
    let secret = form.refresh_token.unwrap_or_default();
    // Before the token is used up: a directory that is away must not cost anybody their sign-in.
    if let Some(email) = gateway.inner.store.refresh_owner(&secret, &client.id).await?
        && let Some(user) = gateway.inner.store.active_user(&email)
        && let Some(directory) = gateway.directory(&user.connector)
    {
        match ldap::still(gateway, directory, &user).await {
            Ok(Some(_)) => {}
            Err(Refusal::Store(error)) if !matches!(error, StoreError::UserExists(_) | StoreError::Invalid(_)) => {
                return Err(error.into());
            }
            Ok(None) | Err(Refusal::Refused(_) | Refusal::Store(_)) => {
                gateway.departed(&user).await;
                return Err(WRONG);
            }
            Err(Refusal::Unavailable(..)) => {
                return Err(TokenError("temporarily_unavailable", "the directory does not answer: try again"));
            }
        }
    }
    match gateway.inner.store.redeem_refresh(&secret, &client.id).await? {
        Redeemed::Good { grant, next } => {
            let user = gateway.inner.store.active_user(&grant.email).ok_or(WRONG)?;
            if !client.admits(&user.connector) {
                return Err(WRONG);
            }
            // Less may be asked for, never more; the next refresh token keeps what the sign-in gave.
            let scope = match form.scope.filter(|s| !s.trim().is_empty()) {
                None => grant.scope,
                Some(less) if less.split_whitespace().all(|s| grant.scope.split_whitespace().any(|g| g == s)) => less,
                Some(_) => return Err(TokenError("invalid_scope", "more is asked for than the sign-in gave")),
            };
            let source = Source { auth_time: grant.auth_time, nonce: None, scope, family: grant.family };
            issue(gateway, client, &user, source, Some(next)).await
        }
        Redeemed::Unknown => Err(WRONG),
        Redeemed::Reused { email, family } => {
            tracing::warn!(target: "audit", user = %email, client = %client.id, "a used refresh token came back: revoked");
            gateway.inner.store.revoke_family(&family, gateway.inner.config.access_token_ttl).await?;
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
    let scope = form.scope.unwrap_or_else(|| "openid".into());
    if client.refused_scope(&scope).is_some() {
        return Err(TokenError("invalid_scope", "this client cannot have one of these scopes"));
    }
    // Whose password it is: the configuration's answer, unless the client says it.
    let named = form.connector_id.as_deref().filter(|id| !id.is_empty());
    let connector = named.or(gateway.password_connector()).unwrap_or(crate::LOCAL);
    if !client.admits(connector) {
        return Err(TokenError("unauthorized_client", "this client does not take users of that connector"));
    }
    let (login, password) = (form.username.unwrap_or_default(), form.password.unwrap_or_default());
    let address = sign_in::address(peer);
    let checked = match gateway.directory(connector) {
        Some(directory) => ldap::check(gateway, directory, &login, &password, address).await,
        None if connector == crate::LOCAL => sign_in::check(gateway, &login, &password, address).await,
        None => return Err(TokenError("invalid_request", "that connector takes no passwords")),
    };
    let user = match checked {
        Ok(user) => user,
        Err(Refused::Wrong) => return Err(TokenError("invalid_grant", "the user name or the password is wrong")),
        Err(Refused::NotAdmitted(_)) => return Err(TokenError("invalid_grant", "the user may not sign in here")),
        Err(Refused::Wait(_)) => return Err(TokenError("too_many_requests", "too many attempts: wait")),
        Err(Refused::Broken) => return Err(TokenError("temporarily_unavailable", "busy: try again")),
        Err(Refused::Unavailable(_)) => {
            return Err(TokenError("temporarily_unavailable", "the directory does not answer: try again"));
        }
    };
    issue(gateway, client, &user, Source::new(now(), scope), None).await
}
