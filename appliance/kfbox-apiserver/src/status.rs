//! Errors on the wire: `Status` objects with upstream's code, reason, message and details
//! (apimachinery `pkg/api/errors`).

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};
use std::{borrow::Cow, fmt};

use crate::schema::FieldError;

/// What went wrong, ready to be told to the client.
#[derive(Debug, Clone)]
pub struct ApiError(Box<Parts>);

#[derive(Debug, Clone)]
struct Parts {
    code: StatusCode,
    reason: Cow<'static, str>,
    message: String,
    details: Map<String, Value>,
    /// `metadata.continue`: where a list that expired may go on.
    continued: Option<String>,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for ApiError {}

impl ApiError {
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            code,
            reason: reason.into(),
            message: message.into(),
            details: Map::new(),
            continued: None,
        }))
    }

    fn detail(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.details.insert(key.into(), value.into());
        self
    }

    /// `name`, `group` and `kind` (which upstream fills with the plural for most errors).
    fn about(self, group: &str, kind: &str, name: &str) -> Self {
        let mut this = self;
        for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
            if !value.is_empty() {
                this = this.detail(key, value);
            }
        }
        this
    }

    pub fn causes(self, causes: impl IntoIterator<Item = Value>) -> Self {
        let causes: Vec<Value> = causes.into_iter().collect();
        self.detail("causes", causes)
    }

    pub fn caused_by(self, reason: &str, message: &str, field: &str) -> Self {
        self.causes([json!({"reason": reason, "message": message, "field": field})])
    }

    pub fn continued(mut self, token: String) -> Self {
        self.0.continued = Some(token);
        self
    }

    pub fn code(&self) -> StatusCode {
        self.0.code
    }

    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// The code and reason that a policy or webhook asked for.
    pub fn with_reason(mut self, code: StatusCode, reason: &str) -> Self {
        self.0.code = code;
        self.0.reason = Cow::Owned(reason.to_owned());
        self
    }

    /// The details that a webhook gave.
    pub fn with_details(mut self, details: Map<String, Value>) -> Self {
        self.0.details = details;
        self
    }

    /// A cause that is nothing but a message.
    pub fn caused_by_message(self, message: &str) -> Self {
        self.causes([json!({"message": message})])
    }

    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", group_resource(group, plural));
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(group, plural, name)
    }

    /// No such path.
    pub fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
    }

    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", group_resource(group, plural));
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(group, plural, name)
    }

    pub fn conflict(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", group_resource(group, plural));
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(group, plural, name)
    }

    pub fn modified(group: &str, plural: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, plural, name, why)
    }

    /// Server-side apply found fields of other managers: message and `(manager text, field)` of each.
    pub fn apply_conflict(message: String, conflicts: impl IntoIterator<Item = (String, String)>) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", message).causes(
            conflicts
                .into_iter()
                .map(|(message, field)| json!({"reason": "FieldManagerConflict", "message": message, "field": field})),
        )
    }

    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let listed: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        let listed = match &listed[..] {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let kind_group = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", format!("{kind_group} {name:?} is invalid: {listed}"))
            .about(group, kind, name)
            .causes(errors.iter().map(|e| json!({"reason": e.reason.as_str(), "message": e.message, "field": e.field})))
    }

    /// Upstream's storage refuses it, without a reason.
    pub fn revision_on_create() -> Self {
        let message = "resourceVersion should not be set on objects to be created";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", message)
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    pub fn forbidden(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Self {
        let resource = group_resource(group, plural);
        let message = match (resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{resource} is forbidden: {why}"),
            (false, false) => format!("{resource} {name:?} is forbidden: {why}"),
        };
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(group, plural, name)
    }

    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    pub fn unsupported_media_type(accepted: &str) -> Self {
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    pub fn not_acceptable(accepted: &str) -> Self {
        let message = format!("only the following media types are accepted: {accepted}");
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// A revision that does not exist yet.
    pub fn revision_too_large(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message)
            .causes([json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"})])
            .detail("retryAfterSeconds", 1)
    }

    /// What the server could not finish in time.
    pub fn timeout(message: impl fmt::Display) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", format!("Timeout: {message}"))
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Self {
        let this = Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message);
        if retry_after > 0 { this.detail("retryAfterSeconds", retry_after) } else { this }
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    }

    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", format!("Internal error occurred: {message}"))
    }

    pub fn to_value(&self) -> Value {
        let Parts { code, reason, message, details, continued } = &*self.0;
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code.as_u16(),
        });
        if let Some(token) = continued {
            status["metadata"]["continue"] = token.clone().into();
        }
        // Errors that are nobody's but a webhook's may have no reason.
        if reason.is_empty()
            && let Some(members) = status.as_object_mut()
        {
            members.remove("reason");
        }
        if !details.is_empty() {
            status["details"] = details.clone().into();
        }
        status
    }
}

impl From<crate::store::WriteError> for ApiError {
    fn from(error: crate::store::WriteError) -> Self {
        match error {
            crate::store::WriteError::Database(kfbox_db::Error::DiskFull) => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "InternalError",
                "the disk that holds the cluster's database is full; nothing was changed",
            ),
            crate::store::WriteError::TooLarge => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", "etcdserver: request is too large")
            }
            other => Self::internal(other),
        }
    }
}

impl From<crate::store::Expired> for ApiError {
    fn from(expired: crate::store::Expired) -> Self {
        Self::expired(expired.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.0.code, &self.to_value());
        if let Some(seconds) = self.0.details.get("retryAfterSeconds").and_then(Value::as_u64) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.0.code == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

pub fn json_response(code: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `pods`, `deployments.apps`.
pub fn group_resource(group: &str, plural: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_as_upstream_writes_them() {
        let error = ApiError::not_found("apps", "deployments", "web");
        assert_eq!(error.to_string(), "deployments.apps \"web\" not found");
        assert_eq!(error.to_value()["details"], json!({"name": "web", "group": "apps", "kind": "deployments"}));
        let error = ApiError::modified("", "pods", "x");
        assert_eq!(
            error.to_string(),
            "Operation cannot be fulfilled on pods \"x\": the object has been modified; please apply your changes to \
             the latest version and try again"
        );
    }
}
