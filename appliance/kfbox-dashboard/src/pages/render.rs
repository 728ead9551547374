//! What all pages share: the frame around them, errors, and small views made of times and states.

use crate::{
    Deps, assets,
    data::DataError,
    format, icons,
    view::{RunState, RunSummary},
};
use askama::Template;
use axum::response::{Html, IntoResponse, Response};
use chrono::{DateTime, Utc};
use http::StatusCode;
use kfbox_base::UserInfo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// The frame: title, side bar, who is signed in.
pub(crate) struct Frame {
    pub title: String,
    pub nav: &'static str,
    pub user: String,
    pub initial: String,
    pub assets: &'static str,
    pub version: String,
}

impl Frame {
    pub fn new(deps: &Deps, user: &UserInfo, nav: &'static str, title: &str) -> Self {
        Self {
            title: title.to_owned(),
            nav,
            user: user.username.clone(),
            initial: user.username.chars().next().map(|c| c.to_uppercase().to_string()).unwrap_or_default(),
            assets: assets::VERSION.as_str(),
            version: deps.connect.version.clone(),
        }
    }
}

pub(crate) fn html(template: &impl Template) -> Response {
    with_status(StatusCode::OK, template)
}

pub(crate) fn with_status(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(text) => (status, Html(text)).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page could not be rendered");
            (StatusCode::INTERNAL_SERVER_ERROR, "the page cannot be drawn\n").into_response()
        }
    }
}

#[derive(Template)]
#[template(path = "problem.html")]
pub(crate) struct Problem {
    frame: Frame,
    status: StatusCode,
    heading: &'static str,
    message: String,
}

impl Problem {
    pub fn new(frame: Frame, error: &DataError) -> Self {
        let (status, heading) = kind(error);
        Self { frame, status, heading, message: error.to_string() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        with_status(self.status, &self)
    }
}

pub(crate) fn kind(error: &DataError) -> (StatusCode, &'static str) {
    match error {
        DataError::NotFound => (StatusCode::NOT_FOUND, "Not found"),
        DataError::Forbidden(_) => (StatusCode::FORBIDDEN, "Not allowed"),
        DataError::Invalid(_) => (StatusCode::BAD_REQUEST, "This request makes no sense"),
        DataError::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "Not available right now"),
    }
}

/// For parts of pages and streams.
pub(crate) fn plain_error(error: &DataError) -> Response {
    (kind(error).0, format!("{error}\n")).into_response()
}

/// A state as badge: class, icon, word.
#[derive(Clone, Copy)]
pub(crate) struct Badge {
    pub key: &'static str,
    pub label: &'static str,
    pub icon: &'static str,
}

impl From<RunState> for Badge {
    fn from(state: RunState) -> Self {
        Self { key: state.key(), label: state.label(), icon: icons::of_state(state) }
    }
}

/// A moment: in words, exactly, and for machines.
#[derive(Default)]
pub(crate) struct When {
    pub ago: String,
    pub exact: String,
    pub machine: String,
}

impl When {
    pub fn new(then: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Self {
        then.map(|t| Self { ago: format::ago(t, now), exact: format::exact(t), machine: t.to_rfc3339() })
            .unwrap_or_default()
    }
}

/// A span; `since` makes the script count on while it lasts.
#[derive(Default)]
pub(crate) struct Span {
    pub text: String,
    pub since: String,
}

impl Span {
    pub fn new(
        started: Option<DateTime<Utc>>,
        finished: Option<DateTime<Utc>>,
        state: RunState,
        now: DateTime<Utc>,
    ) -> Self {
        if finished.is_none() && state.is_final() {
            return Self::default();
        }
        let running = finished.is_none() && started.is_some();
        Self {
            text: format::elapsed(started, finished, now),
            since: started.filter(|_| running).map(|s| s.timestamp().to_string()).unwrap_or_default(),
        }
    }
}

/// A run in a list.
pub(crate) struct Row {
    pub href: String,
    pub name: String,
    pub namespace: String,
    pub source: String,
    pub badge: Badge,
    pub created: When,
    pub took: Span,
}

impl Row {
    pub fn new(run: &RunSummary, now: DateTime<Utc>) -> Self {
        let source = if run.pipeline.is_empty() { &run.experiment } else { &run.pipeline };
        Self {
            href: format!("/runs/{}", encode(&run.id)),
            name: if run.name.is_empty() { run.id.clone() } else { run.name.clone() },
            namespace: run.namespace.clone(),
            source: source.clone(),
            badge: run.state.into(),
            created: When::new(run.created, now),
            took: Span::new(run.started.or(run.created), run.finished, run.state, now),
        }
    }
}
