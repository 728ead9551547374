//! Opening: pragmas, and migrations counted by `user_version`.

use rusqlite::Connection;
use std::path::{Path, PathBuf};

/// A store's tables: `migrations[n]` takes version n to n + 1. Never edit one that was released; append.
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    /// What the store is called in errors, such as "pipelines".
    pub name: &'static str,
    pub migrations: &'static [&'static str],
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the {name} database {path} was written by a newer kfbox (its version is {found}, this one knows {known}); \
         run the newer kfbox, or start with another --data-dir"
    )]
    Newer { name: &'static str, path: PathBuf, found: usize, known: usize },
    #[error("cannot open the {name} database {path}: {source}")]
    Sqlite {
        name: &'static str,
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
}

/// Opens the file, creating it if needed, and brings it to the newest version in one transaction.
pub fn open_connection(path: &Path, schema: &Schema) -> Result<Connection, OpenError> {
    let failed = |source| OpenError::Sqlite { name: schema.name, path: path.to_owned(), source };
    let mut connection = Connection::open(path).map_err(failed)?;
    apply_pragmas(&connection).map_err(failed)?;
    let found: usize = connection
        .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
        .map(|v| usize::try_from(v).unwrap_or(usize::MAX))
        .map_err(failed)?;
    let known = schema.migrations.len();
    if found > known {
        return Err(OpenError::Newer { name: schema.name, path: path.to_owned(), found, known });
    }
    if found < known {
        let mut migrate = || -> rusqlite::Result<()> {
            let tx = connection.transaction()?;
            for sql in &schema.migrations[found..] {
                tx.execute_batch(sql)?;
            }
            tx.pragma_update(None, "user_version", i64::try_from(known).unwrap_or(i64::MAX))?;
            tx.commit()
        };
        migrate().map_err(failed)?;
    }
    Ok(connection)
}

/// Bytes of write-ahead log that stay after a write larger than this has gone into the database.
pub(crate) const LOG_KEPT: u64 = 8 << 20;

pub(crate) fn apply_pragmas(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", i64::try_from(LOG_KEPT).unwrap_or(i64::MAX))?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // 2 MiB of pages a connection: the daemon's idle memory is a promise, and the system caches the file anyway.
    connection.pragma_update(None, "cache_size", -2048)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}
