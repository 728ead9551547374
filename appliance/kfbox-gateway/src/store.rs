//! `gateway.db` and what is held of it in memory: users, sessions, personal tokens, refresh tokens,
//! signing keys and failed sign-ins.
//!
//! Guarantees: a secret (password, session, token, code) is never stored, only its hash; a change is on disk before it
//! has effect in memory; removing or disabling a user, or changing the password, ends everything issued to that user.
//! Assumption: one process writes the file, so memory is the truth for reads and no request waits for the disk.

pub mod attempts;
pub mod keys;
pub mod password;
pub mod refresh;
pub mod revoked;
pub mod sessions;
pub mod tokens;
pub mod users;

use kfbox_db::{Database, Schema, rusqlite};
use parking_lot::{Mutex, RwLock};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub const SCHEMA: Schema = Schema {
    name: "gateway",
    migrations: &[
        "
    CREATE TABLE users (
        email TEXT PRIMARY KEY, uid TEXT NOT NULL UNIQUE, password TEXT NOT NULL, groups TEXT NOT NULL,
        disabled INTEGER NOT NULL, created INTEGER NOT NULL, valid_after INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE sessions (
        hash BLOB PRIMARY KEY, id TEXT NOT NULL UNIQUE, email TEXT NOT NULL REFERENCES users ON DELETE CASCADE,
        created INTEGER NOT NULL, expires INTEGER NOT NULL, address TEXT NOT NULL, agent TEXT NOT NULL
    ) STRICT;
    CREATE INDEX sessions_by_user ON sessions (email);
    CREATE TABLE tokens (
        hash BLOB PRIMARY KEY, id TEXT NOT NULL UNIQUE, email TEXT NOT NULL REFERENCES users ON DELETE CASCADE,
        name TEXT NOT NULL, scopes TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER
    ) STRICT;
    CREATE INDEX tokens_by_user ON tokens (email);
    CREATE TABLE refresh (
        hash BLOB PRIMARY KEY, family TEXT NOT NULL, email TEXT NOT NULL REFERENCES users ON DELETE CASCADE,
        client TEXT NOT NULL, scope TEXT NOT NULL, auth_time INTEGER NOT NULL, expires INTEGER NOT NULL,
        used INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX refresh_by_user ON refresh (email);
    CREATE INDEX refresh_by_family ON refresh (family);
    CREATE TABLE keys (kid TEXT PRIMARY KEY, pkcs8 BLOB NOT NULL, created INTEGER NOT NULL) STRICT;
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    ",
        "
    CREATE TABLE attempts (
        who TEXT PRIMARY KEY, failures INTEGER NOT NULL, last INTEGER NOT NULL, blocked_until INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX attempts_by_time ON attempts (last);
    ",
        "
    ALTER TABLE users ADD COLUMN connector TEXT NOT NULL DEFAULT 'local';
    ALTER TABLE users ADD COLUMN subject TEXT NOT NULL DEFAULT '';
    CREATE TABLE revoked (id TEXT PRIMARY KEY, expires INTEGER NOT NULL) STRICT;
    ",
        "
    ALTER TABLE users ADD COLUMN name TEXT NOT NULL DEFAULT '';
    ALTER TABLE users ADD COLUMN username TEXT NOT NULL DEFAULT '';
    ",
        "
    ALTER TABLE users ADD COLUMN departed INTEGER NOT NULL DEFAULT 0;
    ",
    ],
};

/// SHA-256 of a random secret of at least 256 bits: no salt or stretching is needed to keep it safe at rest.
pub type SecretHash = [u8; 32];

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Open(#[from] kfbox_db::OpenError),
    #[error("cannot create {path}: {source}")]
    Create {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Database(#[from] kfbox_db::Error),
    #[error("a stored value of the gateway database cannot be read: {0}")]
    Corrupt(&'static str),
    #[error("there is no user {0}")]
    NoSuchUser(String),
    #[error("the user {0} exists already")]
    UserExists(String),
    #[error("{0}")]
    Invalid(String),
    #[error("the signing key cannot be made or used: {0}")]
    Key(String),
    #[error("hashing failed: {0}")]
    Hash(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.into())
    }
}

/// All state of the gateway that survives a restart.
pub struct Store {
    pub(crate) db: Database,
    pub(crate) users: RwLock<HashMap<String, users::User>>,
    pub(crate) sessions: RwLock<HashMap<SecretHash, sessions::Session>>,
    pub(crate) tokens: RwLock<HashMap<SecretHash, tokens::Token>>,
    /// Ids of tokens and families that were revoked, and when that no longer matters.
    pub(crate) revoked: RwLock<HashMap<String, i64>>,
    pub(crate) keys: RwLock<keys::KeySet>,
    /// As they were when the store was opened; `limits` counts on from there.
    pub(crate) attempts: Vec<attempts::Attempts>,
    pub(crate) hashing: password::Hashing,
    /// Serialises check-then-write changes of users; held over a commit, so asynchronous.
    pub(crate) changes: tokio::sync::Mutex<()>,
    pub(crate) sweep: Mutex<i64>,
}

impl Store {
    /// Opens `gateway.db` in the folder, creating it readable by its owner only (it holds signing keys).
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let path = data_dir.join("gateway.db");
        std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| StoreError::Create { path: path.clone(), source })?;
        let db = Database::open(&path, &SCHEMA)?;
        let now = now();
        db.write_blocking::<_, StoreError, _>(move |tx| {
            tx.execute("DELETE FROM sessions WHERE expires <= ?1", [now])?;
            tx.execute("DELETE FROM tokens WHERE expires IS NOT NULL AND expires <= ?1", [now])?;
            tx.execute("DELETE FROM refresh WHERE expires <= ?1", [now])?;
            tx.execute("DELETE FROM revoked WHERE expires <= ?1", [now])?;
            Ok(())
        })?;
        let users = db.read_blocking(users::load)?;
        let sessions = db.read_blocking(sessions::load)?;
        let tokens = db.read_blocking(tokens::load)?;
        let revoked = db.read_blocking(revoked::load)?;
        let keys = keys::KeySet::open(&db)?;
        let attempts = db.read_blocking(attempts::load)?;
        Ok(Self {
            db,
            users: RwLock::new(users),
            sessions: RwLock::new(sessions),
            tokens: RwLock::new(tokens),
            revoked: RwLock::new(revoked),
            keys: RwLock::new(keys),
            attempts,
            hashing: password::Hashing::default(),
            changes: tokio::sync::Mutex::new(()),
            sweep: Mutex::new(now),
        })
    }

    /// True once a minute for one caller: a good moment to drop what has expired.
    pub(crate) fn sweep_due(&self, now: i64) -> bool {
        let mut last = self.sweep.lock();
        let due = now >= last.saturating_add(60);
        if due {
            *last = now;
        }
        due
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    seconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

/// Whole seconds as SQLite holds them.
pub fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

pub fn hash_secret(secret: &str) -> SecretHash {
    Sha256::digest(secret.as_bytes()).into()
}

/// 256 random bits in URL-safe base64.
pub fn random_secret() -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

pub(crate) fn secret_hash(row: &rusqlite::Row<'_>, column: &str) -> Result<SecretHash, StoreError> {
    row.get::<_, Vec<u8>>(column)?.try_into().map_err(|_| StoreError::Corrupt("the hash of a secret"))
}
