//! Answers and errors, in the distribution specification's form.

use crate::images::{RepositoryError, StoreError};
use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, Uri, header};
use serde_json::{Value, json};
use std::{collections::HashMap, io};

/// By which old clients know a registry.
pub const VERSION: HeaderValue = HeaderValue::from_static("registry/2.0");
/// The most names in one answer.
const PAGE: usize = 1_000;

/// Why a request is not carried out.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Fault {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub fn no_such_page() -> Self {
        Self::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "this is an image registry: its paths begin with /v2/")
    }

    pub fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the operation is unsupported")
    }

    pub fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message)
    }

    pub fn denied(message: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, "DENIED", message)
    }

    pub fn name_invalid(name: &str) -> Self {
        let name: String = name.chars().take(80).collect();
        let message =
            format!("{name:?} is not a repository here: they are NAMESPACE/NAME, or library/NAME for everybody");
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", message)
    }

    pub fn name_unknown(name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", format!("the repository {name} is not known"))
    }

    pub fn digest_invalid(text: &str) -> Self {
        let text: String = text.chars().take(160).collect();
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", format!("{text:?} is not a digest"))
    }

    pub fn blob_unknown(digest: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", format!("the blob {digest} is not in this repository"))
    }

    pub fn manifest_unknown(reference: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "MANIFEST_UNKNOWN",
            format!("the manifest {reference} is not in this repository"),
        )
    }

    pub fn manifest_invalid(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", why)
    }

    pub fn upload_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "there is no such upload (any more): begin anew")
    }

    pub fn upload_invalid(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", why)
    }

    pub fn too_large(code: &'static str, why: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, code, why)
    }

    /// The cause goes to the log, not to the client.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "the registry could not answer");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", "the registry could not do this; its log says why")
    }

    pub fn into_response(self) -> Response {
        let body = json!({ "errors": [{ "code": self.code, "message": self.message }] });
        let mut response = document(self.status, &body);
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"kfbox\", charset=\"UTF-8\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        use crate::images::BlobError;
        let io = match &error {
            StoreError::Blob(BlobError::Mismatch { .. } | BlobError::NotADigest(_)) => {
                return Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", error.to_string());
            }
            StoreError::Blob(BlobError::TooLong { .. }) => {
                return Self::too_large("SIZE_INVALID", error.to_string());
            }
            StoreError::Blob(BlobError::Io { source, .. }) | StoreError::Io { source, .. } => Some(source),
            _ => None,
        };
        let full = io.is_some_and(|io| matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded));
        if full {
            tracing::warn!(%error, "a push was refused: the disk is full");
            let message = "the registry's disk is full; delete images, or make room on the machine";
            return Self::new(StatusCode::INSUFFICIENT_STORAGE, "DENIED", message);
        }
        Self::internal(&error)
    }
}

impl From<RepositoryError> for Fault {
    fn from(error: RepositoryError) -> Self {
        match error {
            RepositoryError::Store(error) => error.into(),
            RepositoryError::BlobUnknown(_) | RepositoryError::ChildUnknown(_) => {
                Self::new(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", error.to_string())
            }
            RepositoryError::TooMany(_) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", error.to_string())
            }
            RepositoryError::InUse(_) => Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", error.to_string()),
        }
    }
}

pub fn document(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

pub fn empty_object() -> Response {
    document(StatusCode::OK, &json!({}))
}

/// An answer without a body, with headers.
pub fn headers(status: StatusCode, headers: &[(&'static str, String)]) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(*name, value);
        }
    }
    response
}

pub fn query(uri: &Uri) -> Result<HashMap<String, String>, Fault> {
    let parsed = axum::extract::Query::<HashMap<String, String>>::try_from_uri(uri);
    parsed.map(|query| query.0).map_err(|error| Fault::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", error.to_string()))
}

/// A part of a list: so many names after one.
pub struct Page {
    pub last: String,
    pub count: usize,
}

impl Page {
    pub fn of(uri: &Uri) -> Result<Self, Fault> {
        let mut query = query(uri)?;
        let count = match query.remove("n") {
            None => PAGE,
            Some(text) => text.parse::<usize>().map(|n| n.min(PAGE)).map_err(|_| {
                Fault::new(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", format!("{text:?} is not a number"))
            })?,
        };
        Ok(Self { last: query.remove("last").unwrap_or_default(), count })
    }

    /// Of the names after the last one: this page, and where the next is.
    pub fn answer(&self, path: &str, list: &str, name: Option<&str>, mut names: Vec<String>) -> Response {
        let more = names.len() > self.count;
        names.truncate(self.count);
        let next = names.last().filter(|_| more).map(|last| {
            let last: String =
                percent_encoding::utf8_percent_encode(last, percent_encoding::NON_ALPHANUMERIC).collect();
            format!("<{path}?n={}&last={last}>; rel=\"next\"", self.count)
        });
        let mut body = json!({ list: names });
        if let Some(name) = name {
            body["name"] = json!(name);
        }
        let mut response = document(StatusCode::OK, &body);
        if let Some(next) = next.and_then(|next| HeaderValue::from_str(&next).ok()) {
            response.headers_mut().insert(header::LINK, next);
        }
        response
    }
}
