//! `/dex/auth`: the authorization endpoint, and the codes that it gives.

use super::{OPAQUE_LIMIT, challenge, clients::GrantType, with_query};
use crate::{
    Gateway, guard, paths,
    sign_in::{self, redirect},
    store::{SecretHash, hash_secret, now, random_secret},
};
use axum::{
    extract::{Query, State, rejection::QueryRejection},
    response::Response,
};
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use serde::Deserialize;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use url::Url;

const CODE_LIFE: Duration = Duration::from_secs(60);
/// Codes waiting to be exchanged; bounds memory, far above what people can start in a minute.
const CODES: usize = 1000;

#[derive(Default)]
pub(crate) struct Codes(Mutex<HashMap<SecretHash, Code>>);

enum Code {
    Fresh(CodeGrant),
    /// Exchanged: kept for as long as the code would have lived, to tell when it comes back.
    Used {
        family: String,
        expires: Instant,
    },
}

pub(super) struct CodeGrant {
    pub client: String,
    pub redirect_uri: String,
    pub email: String,
    pub scope: String,
    pub nonce: Option<String>,
    pub challenge: Option<String>,
    pub auth_time: i64,
    /// Names everything that is issued for this code.
    pub family: String,
    expires: Instant,
}

pub(super) enum Taken {
    Good(Box<CodeGrant>),
    Unknown,
    /// Exchanged before: what it gave, by its family, is no longer to be trusted (RFC 6749 section 4.1.2).
    Again(String),
}

impl Codes {
    fn put(&self, grant: CodeGrant) -> Option<String> {
        let mut codes = self.0.lock();
        if codes.len() >= CODES {
            let now = Instant::now();
            codes.retain(|_, code| match code {
                Code::Fresh(grant) => grant.expires > now,
                Code::Used { expires, .. } => *expires > now,
            });
            if codes.len() >= CODES {
                return None;
            }
        }
        let code = random_secret();
        codes.insert(hash_secret(&code), Code::Fresh(grant));
        Some(code)
    }

    pub(super) fn take(&self, code: &str) -> Taken {
        let (hash, now) = (hash_secret(code), Instant::now());
        let mut codes = self.0.lock();
        match codes.remove(&hash) {
            Some(Code::Fresh(grant)) if grant.expires > now => {
                codes.insert(hash, Code::Used { family: grant.family.clone(), expires: grant.expires });
                Taken::Good(Box::new(grant))
            }
            Some(Code::Used { family, expires }) if expires > now => Taken::Again(family),
            _ => Taken::Unknown,
        }
    }
}

#[derive(Deserialize, Default)]
pub(super) struct AuthorizeQuery {
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
    /// Whose users it takes. None: all.
    pub connectors: Option<Vec<String>>,
}

/// Which application waits behind this return path; only one that is configured, with its redirect address right.
pub(crate) fn waiting_client(gateway: &Gateway, back: &str) -> Option<Waiting> {
    let back = paths::return_path(back);
    let query = back.strip_prefix("/dex/auth?")?;
    let query: AuthorizeQuery = serde_urlencoded::from_str(query).ok()?;
    let client = gateway.client(&query.client_id)?;
    let uri = client.redirect_uris.iter().find(|u| **u == query.redirect_uri)?;
    Some(Waiting {
        name: client.shown_name().to_owned(),
        origin: Url::parse(uri).ok()?.origin().ascii_serialization(),
        connectors: client.connectors.clone(),
    })
}

/// `/dex/auth/local`: as [`authorize`], or with `rd` from a script that was told which connector to use.
pub(super) async fn authorize_local(
    state: State<Gateway>,
    headers: HeaderMap,
    uri: http::Uri,
    query: Result<Query<AuthorizeQuery>, QueryRejection>,
) -> Response {
    match sign_in::asked_return(&uri) {
        Some(back) => redirect(StatusCode::FOUND, &sign_in::login_url(&back)),
        None => authorize(state, headers, uri, query).await,
    }
}

pub(super) async fn authorize(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    uri: http::Uri,
    query: Result<Query<AuthorizeQuery>, QueryRejection>,
) -> Response {
    if let Some(back) = sign_in::asked_return(&uri) {
        return sign_in::choice(&gateway, &headers, &back);
    }
    // Until client and redirect address are known to be right, errors are shown here and go nowhere.
    let Ok(Query(query)) = query else {
        return guard::problem(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            "the query cannot be read, or names a parameter twice",
        );
    };
    let Some(client) = gateway.client(&query.client_id) else {
        return guard::problem(StatusCode::BAD_REQUEST, "unauthorized_client", "this client_id is not configured");
    };
    if !client.redirect_uris.contains(&query.redirect_uri) {
        return guard::problem(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            "this redirect_uri is not one of the client's, which are compared character by character",
        );
    }
    let short = |text: &Option<String>| text.as_ref().is_none_or(|t| t.len() <= OPAQUE_LIMIT);
    if !short(&query.state) || !short(&query.nonce) {
        return guard::problem(StatusCode::BAD_REQUEST, "invalid_request", "state and nonce have 1024 bytes at most");
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
    if !client.may_use(GrantType::AuthorizationCode) {
        return fail("unauthorized_client", "this client may not use the authorization code grant");
    }
    if query.response_mode.as_deref().is_some_and(|m| m != "query") {
        return fail("invalid_request", "response_mode must be query");
    }
    if let Some(scope) = client.refused_scope(&query.scope) {
        return fail("invalid_scope", &format!("this client cannot have the scope {scope:?}"));
    }
    let challenge = match challenge(query.code_challenge.as_deref(), query.code_challenge_method.as_deref()) {
        Err(text) => return fail("invalid_request", text),
        Ok(None) if client.public => {
            return fail("invalid_request", "a public client must use PKCE: code_challenge with S256");
        }
        Ok(challenge) => challenge.map(str::to_owned),
    };
    let session = guard::session(&gateway, &headers).await;
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
    if !client.admits(&user.connector) {
        return fail("access_denied", "this application does not take users of that connector");
    }
    let grant = CodeGrant {
        client: client.id.clone(),
        redirect_uri: query.redirect_uri.clone(),
        email: user.email.clone(),
        scope: query.scope.clone(),
        nonce: query.nonce.clone(),
        challenge,
        auth_time: session.created,
        family: uuid::Uuid::new_v4().to_string(),
        expires: Instant::now() + CODE_LIFE,
    };
    let Some(code) = gateway.inner.codes.put(grant) else {
        return fail("temporarily_unavailable", "too many sign-ins are under way");
    };
    tracing::info!(target: "audit", user = %user.email, client = %client.id, "authorization code issued");
    let pairs = [("code", Some(code.as_str())), ("state", state), ("iss", Some(gateway.issuer()))];
    redirect(StatusCode::FOUND, &with_query(&query.redirect_uri, &pairs))
}
