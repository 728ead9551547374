//! What the store can answer instead of a result. It knows no HTTP: `s3/convert.rs` gives each variant its S3 code.

use kfbox_base::BoxError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no bucket {0}")]
    NoSuchBucket(String),
    #[error("the bucket {0} exists already")]
    BucketExists(String),
    #[error("the bucket {0} still holds objects, versions or unfinished uploads")]
    BucketNotEmpty(String),
    #[error(
        "{0:?} is not a valid bucket name: 3 to 63 of a-z, 0-9, '.' and '-', starting and ending with a letter or digit"
    )]
    InvalidBucketName(String),
    #[error("there is no object {key} in bucket {bucket}")]
    NoSuchKey { bucket: String, key: String },
    #[error("there is no version {version} of {key}")]
    NoSuchVersion { key: String, version: String },
    #[error("the version asked for is a delete marker")]
    DeleteMarker,
    #[error("there is no upload {0}: it was completed, aborted or expired")]
    NoSuchUpload(String),
    #[error("part {0} was not uploaded, or its ETag or checksum differs from the one given")]
    InvalidPart(i32),
    #[error("the parts must be listed in ascending order of their numbers")]
    InvalidPartOrder,
    #[error("part {number} has {size} bytes; every part but the last needs at least {least}")]
    PartTooSmall { number: i32, size: u64, least: u64 },
    #[error("the body has more than {most} bytes, which is the most that one request may store")]
    TooLarge { most: u64 },
    #[error("the body ended after {got} bytes of {want}")]
    Incomplete { got: u64, want: u64 },
    #[error("the {0} of the body differs from the one sent with it")]
    BadDigest(&'static str),
    #[error("the condition on the object's current state does not hold")]
    PreconditionFailed,
    #[error("the range lies outside of the object's {size} bytes")]
    InvalidRange { size: u64 },
    #[error("the user metadata has {size} bytes; the most is {most}")]
    MetadataTooLarge { size: usize, most: usize },
    #[error("{0}")]
    InvalidArgument(String),
    #[error("the disk is full; nothing of the request was kept")]
    StorageFull,
    #[error("the body could not be read: {0}")]
    Body(#[source] BoxError),
    #[error("content file: {0}")]
    Io(#[source] std::io::Error),
    #[error("{0}")]
    Db(#[source] kfbox_db::Error),
    #[error("the stored attributes of an object are unreadable: {0}")]
    Corrupt(#[source] serde_json::Error),
    #[error("the store is shutting down")]
    Closed,
}

impl From<kfbox_db::Error> for Error {
    fn from(error: kfbox_db::Error) -> Self {
        match error {
            kfbox_db::Error::DiskFull => Self::StorageFull,
            other => Self::Db(other),
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        kfbox_db::Error::from(error).into()
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::StorageFull,
            _ => Self::Io(error),
        }
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Corrupt(error)
    }
}
