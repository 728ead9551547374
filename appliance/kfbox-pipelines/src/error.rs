//! What a caller is told: `google.rpc.Status` as the REST gateway of Kubeflow Pipelines writes it
//! (`backend/src/common/util/error.go` upstream). The private cause goes to the log, never to the wire.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;

/// The canonical codes of `google.rpc.Code` that this API uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    InvalidArgument = 3,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

impl Code {
    fn status(self) -> StatusCode {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists => StatusCode::CONFLICT,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
        }
    }
}

/// An answer that refuses. `message` is public.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: Code,
    pub message: String,
    #[source]
    cause: Option<kfbox_base::BoxError>,
}

pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), cause: None }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// The one answer for what does not exist and for what the caller may not know of.
    pub fn not_found(kind: &str, id: &str) -> Self {
        Self::new(Code::NotFound, format!("{kind} {id} not found"))
    }

    pub fn internal(what: &str, cause: impl Into<kfbox_base::BoxError>) -> Self {
        Self {
            code: Code::Internal,
            message: format!("{what} failed; the daemon's log has the cause"),
            cause: Some(cause.into()),
        }
    }

    pub fn status(&self) -> StatusCode {
        self.code.status()
    }
}

impl From<kfbox_db::Error> for ApiError {
    fn from(error: kfbox_db::Error) -> Self {
        match error {
            kfbox_db::Error::DiskFull => Self {
                code: Code::Unavailable,
                message: "the disk is full; free space in the data directory and try again".into(),
                cause: Some(error.into()),
            },
            other => Self::internal("the pipelines database", other),
        }
    }
}

impl From<kfbox_db::rusqlite::Error> for ApiError {
    fn from(error: kfbox_db::rusqlite::Error) -> Self {
        kfbox_db::Error::from(error).into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Some(cause) = &self.cause {
            tracing::error!(%cause, message = %self.message, "a pipelines request failed");
        }
        let body = serde_json::json!({
            "error": self.message, "code": self.code as i32, "message": self.message, "details": [],
        });
        (self.code.status(), Json(body)).into_response()
    }
}
