//! Token exchange (RFC 8693) with Dex's `connector_id`: a client gives a token that somebody else got, and gets one of
//! its own for the same user.
//!
//! Guarantees: only a client with a secret whose configuration names the grant may do it, only for connectors that it
//! takes, and only for users of that very connector; a new token never outlives the one it was made from, nor says
//! more of groups than that did.

use super::{
    TokenError,
    claims::{ACCESS, ID, Source, TokenBody, sign_access, sign_id, verified},
    clients::ClientConfig,
    token::TokenForm,
};
use crate::{
    Gateway, LOCAL,
    connectors::{Refusal, admit},
    store::{now, users::User},
};

const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// Whom the subject token speaks for, since when, until when, and whether it spoke of groups.
struct Subject {
    user: User,
    auth_time: i64,
    ends: i64,
    groups: bool,
    family: Option<String>,
}

pub(super) async fn by_exchange(
    gateway: &Gateway,
    client: &ClientConfig,
    form: TokenForm,
) -> Result<TokenBody, TokenError> {
    let connector = form.connector_id.as_deref().unwrap_or_default();
    if connector.is_empty() {
        return Err(TokenError("invalid_request", "connector_id is missing: whose token it is, such as local"));
    }
    if !client.admits(connector) {
        return Err(TokenError("invalid_grant", "this client does not take users of that connector"));
    }
    if form.audience.as_deref().is_some_and(|a| !a.is_empty() && a != client.id) {
        return Err(TokenError("invalid_target", "the audience of the new token is the client itself"));
    }
    let token = form.subject_token.as_deref().filter(|t| !t.is_empty());
    let token = token.ok_or(TokenError("invalid_request", "subject_token is missing"))?;
    let typ = match form.subject_token_type.as_deref() {
        Some(ID_TOKEN) => ID,
        Some(ACCESS_TOKEN) => ACCESS,
        _ => return Err(TokenError("invalid_request", "subject_token_type must be that of an ID or access token")),
    };
    let wanted = match form.requested_token_type.as_deref() {
        None | Some("" | ACCESS_TOKEN) => ACCESS_TOKEN,
        Some(ID_TOKEN) => ID_TOKEN,
        Some(_) => {
            return Err(TokenError("invalid_request", "requested_token_type must be that of an ID or access token"));
        }
    };
    let subject = match connector {
        LOCAL => ours(gateway, client, token, typ)?,
        _ => theirs(gateway, connector, token, typ).await?,
    };
    if subject.user.connector != connector || !client.admits(&subject.user.connector) {
        return Err(TokenError("invalid_grant", "the token's user is not of that connector"));
    }
    let scope = form.scope.unwrap_or_else(|| "openid".into());
    if client.refused_scope(&scope).is_some() {
        return Err(TokenError("invalid_scope", "this client cannot have one of these scopes"));
    }
    let kept = |s: &&str| *s != "offline_access" && (subject.groups || *s != "groups");
    let scope = scope.split_whitespace().filter(kept).collect::<Vec<_>>().join(" ");
    gateway.inner.store.rotate_keys_if_due().await?;
    let mut source = Source::new(subject.auth_time, scope);
    // What ends the first ends the second.
    if let Some(family) = subject.family.filter(|f| !f.is_empty()) {
        source.family = family;
    }
    let (token, exp) = match wanted {
        ID_TOKEN => sign_id(gateway, client, &subject.user, &source, None, Some(subject.ends))?,
        _ => sign_access(gateway, client, &subject.user, &source, Some(subject.ends))?,
    };
    tracing::info!(target: "audit", user = %subject.user.email, client = %client.id, connector, "token exchanged");
    Ok(TokenBody {
        access_token: token,
        token_type: "bearer",
        expires_in: exp - now(),
        id_token: None,
        refresh_token: None,
        issued_token_type: Some(wanted),
        scope: source.scope,
    })
}

/// An ID token of an upstream provider, made for this box.
async fn theirs(gateway: &Gateway, connector: &str, token: &str, typ: &str) -> Result<Subject, TokenError> {
    let upstream = gateway.upstream(connector).filter(|_| typ == ID);
    let upstream = upstream.ok_or(TokenError("invalid_request", "that connector has no ID tokens to exchange"))?;
    let admitted = async {
        let identity = upstream.identity(token, None).await?;
        admit(gateway, connector, &upstream.config.groups, &identity).await
    };
    match admitted.await {
        // Their token says nothing here of how long: ours ends with its own life.
        Ok(user) => Ok(Subject { user, auth_time: now(), ends: i64::MAX, groups: true, family: None }),
        Err(Refusal::Unavailable(..)) => {
            Err(TokenError("temporarily_unavailable", "the other provider does not answer"))
        }
        Err(_) => Err(TokenError("invalid_grant", "the subject token is not valid, or its user may not sign in here")),
    }
}

/// A token of this issuer: the client's own, or one of a client that is trusted with the whole platform. Another
/// application's would let each application's users be played against the others.
fn ours(gateway: &Gateway, client: &ClientConfig, token: &str, typ: &str) -> Result<Subject, TokenError> {
    const WRONG: TokenError =
        TokenError("invalid_grant", "the subject token is not valid, or not for this client to use");
    let (claims, user, found) = verified(gateway, token).ok_or(WRONG)?;
    let trusted = claims.aud == client.id || gateway.client(&claims.aud).is_some_and(|c| c.platform);
    if found != typ || !trusted {
        return Err(WRONG);
    }
    Ok(Subject {
        user,
        auth_time: claims.auth_time,
        ends: claims.exp,
        groups: !claims.groups.is_empty(),
        family: Some(claims.sid),
    })
}
