//! Errors with the codes that ML Metadata gives them, which its client turns into exceptions of the same names.

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    InvalidArgument(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    AlreadyExists(String),
    #[error("{0}")]
    OutOfRange(String),
    #[error("{0}")]
    FailedPrecondition(String),
    #[error("{0}")]
    PermissionDenied(String),
    #[error("{0}")]
    ResourceExhausted(String),
    #[error("{0}")]
    Db(#[source] kfbox_db::Error),
    #[error("a stored message cannot be decoded: {0}")]
    Corrupt(#[source] prost::DecodeError),
    #[error("a stored property list cannot be read: {0}")]
    CorruptJson(#[source] serde_json::Error),
}

impl From<kfbox_db::Error> for Error {
    fn from(error: kfbox_db::Error) -> Self {
        Self::Db(error)
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Db(error.into())
    }
}

impl From<prost::DecodeError> for Error {
    fn from(error: prost::DecodeError) -> Self {
        Self::Corrupt(error)
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::CorruptJson(error)
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::InvalidArgument(_) => Self::invalid_argument(text),
            Error::NotFound(_) => Self::not_found(text),
            Error::AlreadyExists(_) => Self::already_exists(text),
            Error::OutOfRange(_) => Self::out_of_range(text),
            Error::FailedPrecondition(_) => Self::failed_precondition(text),
            Error::PermissionDenied(_) => Self::permission_denied(text),
            Error::ResourceExhausted(_) => Self::resource_exhausted(text),
            Error::Db(kfbox_db::Error::DiskFull) => Self::resource_exhausted("the disk is full; nothing was written"),
            Error::Db(kfbox_db::Error::Closed) => Self::unavailable("the metadata store is shutting down"),
            Error::Db(_) | Error::Corrupt(_) | Error::CorruptJson(_) => {
                tracing::error!(error = %text, "the metadata store failed a request");
                Self::internal("the metadata store could not do this; its log says why")
            }
        }
    }
}
