//! The page where somebody changes their own password, `/oauth2/password`.
//!
//! Guarantees: the session alone changes nothing: the present password is asked for, behind the same brakes as sign-in, since
//! who finds a browser open must not lock its owner out. After a change this browser has a new session, and every other
//! session and every token of an application has ended, as the page says.

use crate::{
    Gateway, LOCAL,
    connectors::ConnectorConfig,
    guard::{self, same_origin},
    sign_in::{self, Refused},
    store::{
        StoreError,
        password::{MIN_LENGTH, check_new},
        users::User,
    },
};
use askama::Template;
use axum::{
    Form,
    extract::{ConnectInfo, Query, State, rejection::FormRejection},
    response::{Html, IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use std::net::SocketAddr;

pub(crate) const PATH: &str = "/oauth2/password";
/// Where the browser is led after a change, so that a reload does not send the form again.
const CHANGED: &str = "/oauth2/password?changed=yes";

#[derive(Template)]
#[template(path = "password.html")]
struct Page<'a> {
    user: &'a str,
    /// Who keeps the password, when that is not this box.
    place: &'a str,
    error: &'a str,
    changed: bool,
    shortest: usize,
}

#[derive(Deserialize)]
pub(crate) struct Asked {
    #[serde(default)]
    changed: String,
}

#[derive(Deserialize)]
pub(crate) struct Change {
    current: String,
    new: String,
    again: String,
}

fn page(gateway: &Gateway, user: &User, status: StatusCode, error: &str, changed: bool) -> Response {
    let connectors = &gateway.inner.config.connectors;
    let place = match user.connector.as_str() {
        LOCAL => "",
        other => connectors.iter().find(|c| c.id() == other).map_or(other, ConnectorConfig::name),
    };
    let page = Page { user: &user.email, place, error, changed, shortest: MIN_LENGTH };
    let policy = HeaderValue::from_static(
        "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; \
         form-action 'self'",
    );
    match page.render() {
        Ok(html) => (status, [(header::CONTENT_SECURITY_POLICY, policy)], Html(html)).into_response(),
        Err(_) => guard::problem(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the page cannot be drawn"),
    }
}

pub(crate) async fn show(State(gateway): State<Gateway>, headers: HeaderMap, Query(asked): Query<Asked>) -> Response {
    let Some((_, user)) = guard::session(&gateway, &headers).await else {
        return sign_in::redirect(StatusCode::FOUND, &sign_in::start_url(PATH));
    };
    // Another site's link does not make this page say that something happened.
    let changed = !asked.changed.is_empty() && same_origin(&headers, &gateway.inner.config.external_url);
    page(&gateway, &user, StatusCode::OK, "", changed)
}

pub(crate) async fn submit(
    State(gateway): State<Gateway>,
    peer: Option<axum::Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    form: Result<Form<Change>, FormRejection>,
) -> Response {
    let Some((_, user)) = guard::session(&gateway, &headers).await else {
        return sign_in::redirect(StatusCode::SEE_OTHER, &sign_in::start_url(PATH));
    };
    let address = sign_in::address(peer);
    let refuse = |status, error: &str| page(&gateway, &user, status, error, false);
    if !same_origin(&headers, &gateway.inner.config.external_url) {
        tracing::warn!(target: "audit", user = %user.email, path = PATH, "refused: cross-site request");
        return refuse(StatusCode::FORBIDDEN, "This form came from another site. Fill it in here instead.");
    }
    if user.connector != LOCAL {
        return refuse(StatusCode::FORBIDDEN, "");
    }
    let Ok(Form(form)) = form else {
        return refuse(StatusCode::BAD_REQUEST, "Enter your password, and the new one twice.");
    };
    if form.new != form.again {
        return refuse(StatusCode::BAD_REQUEST, "The new password was typed in two ways.");
    }
    if let Err(error) = check_new(&form.new) {
        return refuse(StatusCode::BAD_REQUEST, &format!("The new password cannot be used: {error}."));
    }
    let checked = match sign_in::check(&gateway, &user.email, &form.current, address).await {
        Ok(checked) => checked,
        Err(Refused::Wrong) => return refuse(StatusCode::UNAUTHORIZED, "The current password is wrong."),
        Err(Refused::Wait(seconds)) => {
            let text = format!("Too many attempts. Try again in {seconds} s.");
            let mut response = refuse(StatusCode::TOO_MANY_REQUESTS, &text);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            return response;
        }
        Err(Refused::NotAdmitted(text)) => return refuse(StatusCode::FORBIDDEN, &text),
        Err(Refused::Broken | Refused::Unavailable(_)) => return refuse(StatusCode::SERVICE_UNAVAILABLE, BUSY),
    };
    match gateway.inner.store.replace_password(&checked, &form.new).await {
        Ok(changed) => {
            tracing::info!(target: "audit", user = %changed.email, %address, "password changed by its owner");
            sign_in::signed_in(&gateway, &headers, &changed, address, CHANGED).await
        }
        Err(StoreError::Invalid(text)) => refuse(StatusCode::CONFLICT, &text),
        Err(error) => {
            tracing::error!(%error, "a password could not be changed");
            refuse(StatusCode::SERVICE_UNAVAILABLE, BUSY)
        }
    }
}

const BUSY: &str = "The password could not be changed. Try again in a moment.";
