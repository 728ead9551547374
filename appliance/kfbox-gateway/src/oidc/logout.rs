//! OpenID Connect RP-initiated logout. What ends is the session of the browser's cookie and nothing else; an ID token of
//! that session's user only spares the question. Back to an application only at one of its redirect addresses.

use super::{claims::Claims, with_query};
use crate::{
    Gateway, guard,
    sign_in::{self, redirect},
};
use askama::Template;
use axum::{
    Form,
    extract::{Query, State, rejection::FormRejection, rejection::QueryRejection},
    response::{Html, IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;

#[derive(Deserialize, Default)]
pub(super) struct Logout {
    client_id: Option<String>,
    id_token_hint: Option<String>,
    post_logout_redirect_uri: Option<String>,
    state: Option<String>,
}

#[derive(Template)]
#[template(path = "sign_out.html")]
struct Question<'a> {
    user: &'a str,
    client: &'a str,
    uri: &'a str,
    state: &'a str,
}

pub(super) async fn by_query(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    query: Result<Query<Logout>, QueryRejection>,
) -> Response {
    match query {
        Ok(Query(query)) => logout(&gateway, &headers, query).await,
        Err(_) => guard::problem(StatusCode::BAD_REQUEST, "invalid_request", "the query cannot be read"),
    }
}

pub(super) async fn by_form(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    form: Result<Form<Logout>, FormRejection>,
) -> Response {
    match form {
        Ok(Form(form)) => logout(&gateway, &headers, form).await,
        Err(_) => guard::problem(StatusCode::BAD_REQUEST, "invalid_request", "the form cannot be read"),
    }
}

async fn logout(gateway: &Gateway, headers: &HeaderMap, asked: Logout) -> Response {
    // Expiry does not matter here: the token only says who the application believes is signed in.
    let hint = match asked.id_token_hint.as_deref().filter(|t| !t.is_empty()) {
        None => None,
        Some(token) => match gateway.inner.store.keys.read().verify_expired::<Claims>(token, gateway.issuer()) {
            Some(claims) => Some(claims),
            None => return guard::problem(StatusCode::BAD_REQUEST, "invalid_request", "id_token_hint is not ours"),
        },
    };
    let named = asked.client_id.as_deref().filter(|id| !id.is_empty());
    let client = match (named, hint.as_ref().map(|h| h.aud.as_str())) {
        (Some(id), Some(aud)) if id != aud => {
            return guard::problem(StatusCode::BAD_REQUEST, "invalid_request", "client_id is not the token's");
        }
        (Some(id), _) | (None, Some(id)) => gateway.client(id),
        (None, None) => None,
    };
    let uri = asked
        .post_logout_redirect_uri
        .as_deref()
        .filter(|uri| client.is_some_and(|c| c.redirect_uris.iter().any(|known| known == uri)));
    let state = asked.state.as_deref().filter(|s| s.len() <= super::OPAQUE_LIMIT);
    let back = match uri {
        Some(uri) => with_query(uri, &[("state", state)]),
        None => sign_in::login_url("/"),
    };
    let session = guard::session_secrets(headers).find_map(|secret| gateway.inner.store.session(&secret));
    let Some((session, user)) = session else { return redirect(StatusCode::FOUND, &back) };
    let vouched = hint.is_some_and(|h| h.sub == user.uid);
    if vouched || guard::same_origin(headers, &gateway.inner.config.external_url) {
        return sign_in::end_sessions(gateway, headers, &back).await;
    }
    // Another site sent this browser here without proof of who is signed in: the person decides.
    let question = Question {
        user: &session.email,
        client: client.map_or("", |c| c.id.as_str()),
        uri: uri.unwrap_or_default(),
        state: state.unwrap_or_default(),
    };
    // Chromium holds `form-action` against the redirect that follows the form.
    let then = uri.and_then(|u| url::Url::parse(u).ok()).map(|u| format!(" {}", u.origin().ascii_serialization()));
    let policy = format!(
        "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; \
         form-action 'self'{}",
        then.unwrap_or_default()
    );
    match (question.render(), HeaderValue::from_str(&policy)) {
        (Ok(html), Ok(policy)) => ([(header::CONTENT_SECURITY_POLICY, policy)], Html(html)).into_response(),
        _ => guard::problem(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the page cannot be drawn"),
    }
}
