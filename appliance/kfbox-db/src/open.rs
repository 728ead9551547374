//! Opening: pragmas, and migrations counted by `user_version`.

use rusqlite::Connection;
use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

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

/// Makes the write-ahead log of a database that is open as long as it becomes between two checkpoints (1,000 pages and
/// their frames' headers, and some more). To write where the file is already costs a third of what it costs to lengthen it
/// with every commit, since the file system's own journal then has nothing to say.
///
/// SQLite reads a log until the first frame that does not check; zeros behind the last one end it as the file's end does
/// (<https://www.sqlite.org/fileformat2.html#the_write_ahead_log>). They are appended, so that nothing is overwritten
/// that somebody wrote meanwhile. Without room for them the log grows as it always did.
pub fn fill_log(path: &Path) {
    const FILLED: u64 = (4 << 20) + (256 << 10);
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let zeros = [0; 64 << 10];
    let fill = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new().append(true).open(&log)?;
        while file.metadata()?.len() < FILLED {
            file.write_all(&zeros)?;
        }
        Ok(())
    };
    if let Err(error) = fill() {
        tracing::debug!(%error, path = %path.display(), "a write-ahead log was not filled");
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const SCHEMA: Schema = Schema { name: "test", migrations: &["CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)"] };

    /// What a machine that stops now would find.
    fn after_a_crash(path: &Path) -> (i64, PathBuf, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("t.db");
        fs::copy(path, &copy).unwrap();
        fs::copy(path.with_file_name("t.db-wal"), copy.with_file_name("t.db-wal")).unwrap();
        let found = open_connection(&copy, &SCHEMA).unwrap();
        let whole: String = found.pragma_query_value(None, "integrity_check", |row| row.get(0)).unwrap();
        assert_eq!(whole, "ok");
        (found.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap(), copy, dir)
    }

    #[test]
    fn a_filled_log_loses_nothing_and_grows_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        let connection = open_connection(&path, &SCHEMA).unwrap();
        let length = || fs::metadata(path.with_file_name("t.db-wal")).unwrap().len();
        fill_log(&path);
        let filled = length();
        assert!(filled > 4 << 20);
        assert_eq!(after_a_crash(&path).0, 0);
        // Once round and further: what earlier rounds left behind the last frame is no part of the log either.
        for n in 1..=1500 {
            connection.execute("INSERT INTO t (v) VALUES (?1)", ["x".repeat(3000)]).unwrap();
            if n % 300 == 0 {
                let (rows, copy, _dir) = after_a_crash(&path);
                assert_eq!(rows, n);
                // Filled again behind frames that count, as after a restart.
                let again = open_connection(&copy, &SCHEMA).unwrap();
                again.execute("INSERT INTO t (v) VALUES ('again')", []).unwrap();
                fill_log(&copy);
                assert_eq!(after_a_crash(&copy).0, n + 1);
            }
        }
        assert_eq!(length(), filled);
    }

    #[test]
    fn a_log_that_cannot_be_filled_is_no_fault() {
        fill_log(Path::new("/nowhere/t.db"));
    }
}
