//! SQLite for every store of the daemon: one writer that commits in groups, a small pool of readers, forward-only
//! migrations. Guarantees: a write that was answered is on disk (`synchronous=FULL`); a group either commits whole or
//! every caller in it gets the error. Assumption: one process opens a file for writing (the daemon's lock ensures it).

mod open;
mod pool;
mod writer;

pub use open::{OpenError, Schema, fill_log, open_connection};
pub use pool::Database;
pub use rusqlite;

/// The database could not do what was asked, for a reason outside the caller's own logic.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("the disk is full")]
    DiskFull,
    #[error("database: {0}")]
    Sqlite(std::sync::Arc<rusqlite::Error>),
    #[error("the database is shutting down")]
    Closed,
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::DiskFull,
            _ => Self::Sqlite(std::sync::Arc::new(error)),
        }
    }
}
