//! Revocation (RFC 7009) and introspection (RFC 7662). Guarantee: a client learns about and ends its own tokens alone;
//! about all others it hears what it would hear about nonsense.

use super::{
    TokenError, authenticate,
    claims::{ACCESS, verified},
};
use crate::Gateway;
use axum::{
    Form, Json,
    extract::{State, rejection::FormRejection},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
pub(super) struct TokenQuestion {
    client_id: Option<String>,
    client_secret: Option<String>,
    #[serde(default)]
    token: String,
}

pub(super) async fn revoke(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    form: Result<Form<TokenQuestion>, FormRejection>,
) -> Response {
    match revoked(&gateway, &headers, form).await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(error) => error.into_response(),
    }
}

async fn revoked(
    gateway: &Gateway,
    headers: &HeaderMap,
    form: Result<Form<TokenQuestion>, FormRejection>,
) -> Result<(), TokenError> {
    let Ok(Form(form)) = form else { return Err(TokenError("invalid_request", "the body must be a form")) };
    let client = authenticate(gateway, headers, form.client_id.as_deref(), form.client_secret.as_deref())?;
    if form.token.is_empty() {
        return Err(TokenError("invalid_request", "token is missing"));
    }
    let store = &gateway.inner.store;
    if let Some((family, email)) = store.refresh_family(&form.token, &client.id).await? {
        // With the refresh token end the access tokens of the same sign-in (RFC 7009 section 2.1).
        store.revoke_family(&family, gateway.inner.config.access_token_ttl).await?;
        tracing::info!(target: "audit", user = %email, client = %client.id, "refresh token revoked");
    } else if let Some((claims, user, _)) = verified(gateway, &form.token).filter(|(c, _, _)| c.aud == client.id) {
        store.revoke_id(&claims.jti, claims.exp).await?;
        tracing::info!(target: "audit", user = %user.email, client = %client.id, "token revoked");
    }
    Ok(())
}

pub(super) async fn introspect(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    form: Result<Form<TokenQuestion>, FormRejection>,
) -> Response {
    match introspected(&gateway, &headers, form).await {
        Ok(body) => Json(body).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn introspected(
    gateway: &Gateway,
    headers: &HeaderMap,
    form: Result<Form<TokenQuestion>, FormRejection>,
) -> Result<Value, TokenError> {
    let Ok(Form(form)) = form else { return Err(TokenError("invalid_request", "the body must be a form")) };
    let client = authenticate(gateway, headers, form.client_id.as_deref(), form.client_secret.as_deref())?;
    if client.public {
        return Err(TokenError("unauthorized_client", "introspection is for clients with a secret"));
    }
    if let Some((claims, user, typ)) = verified(gateway, &form.token).filter(|(c, _, _)| c.aud == client.id) {
        return Ok(json!({
            "active": true,
            "client_id": client.id,
            "sub": claims.sub,
            "exp": claims.exp,
            "iat": claims.iat,
            "iss": claims.iss,
            "aud": claims.aud,
            "jti": claims.jti,
            "username": user.email,
            "email": user.email,
            "email_verified": true,
            "groups": if claims.groups.is_empty() { Vec::new() } else { user.groups },
            "scope": claims.scope,
            "token_type": "Bearer",
            "token_use": if typ == ACCESS { "access_token" } else { "id_token" },
        }));
    }
    if let Some((_, email)) = gateway.inner.store.refresh_family(&form.token, &client.id).await? {
        return Ok(json!({
            "active": true,
            "client_id": client.id,
            "username": email,
            "iss": gateway.issuer(),
            "token_type": "Bearer",
            "token_use": "refresh_token",
        }));
    }
    Ok(json!({"active": false}))
}
