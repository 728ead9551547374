//! [`Database`]: the handle that stores use.

use crate::{
    Error, OpenError, Schema,
    open::apply_pragmas,
    open_connection,
    writer::{self, Job},
};
use rusqlite::{Connection, Transaction};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
};
use tokio::sync::{Semaphore, oneshot};

/// Readers at most, each with its page cache and file handles. Queries here are short, so more of them at once would not
/// be quicker; who comes when all are busy waits. Hence a query must not run another query of the same database.
const READERS: usize = 4;

/// A cloneable handle on one database file. The writer thread ends when the last clone is dropped.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
    readers: Mutex<Readers>,
    returned: Condvar,
    /// Asynchronous readers wait here, so that they do not fill the pool of blocking threads with waiting.
    turns: Semaphore,
}

#[derive(Default)]
struct Readers {
    idle: Vec<Connection>,
    open: usize,
}

/// A reader on loan; it comes back even when the query panics.
struct Reader<'a> {
    of: &'a Inner,
    connection: Option<Connection>,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut readers = self.of.readers();
        match self.connection.take() {
            // A query that broke off inside a transaction would hold the log's checkpoints back for ever.
            Some(connection) if connection.is_autocommit() => readers.idle.push(connection),
            _ => readers.open -= 1,
        }
        drop(readers);
        self.of.returned.notify_one();
    }
}

impl Inner {
    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for an idle reader, or opens one while there are fewer than may be.
    fn reader(&self) -> rusqlite::Result<Reader<'_>> {
        let mut readers = self.readers();
        let mut reader = loop {
            if let Some(connection) = readers.idle.pop() {
                return Ok(Reader { of: self, connection: Some(connection) });
            }
            if readers.open < READERS {
                readers.open += 1;
                break Reader { of: self, connection: None };
            }
            readers = self.returned.wait(readers).unwrap_or_else(PoisonError::into_inner);
        };
        drop(readers);
        let connection = Connection::open(&self.path)?;
        apply_pragmas(&connection)?;
        connection.pragma_update(None, "query_only", true)?;
        reader.connection = Some(connection);
        Ok(reader)
    }
}

impl Database {
    pub fn open(path: &Path, schema: &Schema) -> Result<Self, OpenError> {
        let connection = open_connection(path, schema)?;
        let (jobs, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name(format!("db-{}", schema.name))
            .spawn(move || writer::run(connection, &queue))
            .map_err(|e| OpenError::Sqlite {
                name: schema.name,
                path: path.to_owned(),
                source: rusqlite::Error::ToSqlConversionFailure(Box::new(e)),
            })?;
        let inner = Inner {
            path: path.to_owned(),
            jobs,
            readers: Mutex::default(),
            returned: Condvar::new(),
            turns: Semaphore::new(READERS),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Runs `work` inside a durable write. An `Err` from `work` rolls back its own changes only. The future resolves
    /// after the commit; dropping it does not cancel the write.
    pub async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (send, receive) = oneshot::channel();
        self.submit(work, move |result| drop(send.send(result)))?;
        receive.await.unwrap_or(Err(E::from(Error::Closed)))
    }

    /// [`Database::write`] for threads that are not asynchronous.
    pub fn write_blocking<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (send, receive) = mpsc::sync_channel(1);
        self.submit(work, move |result| drop(send.send(result)))?;
        receive.recv().unwrap_or(Err(E::from(Error::Closed)))
    }

    fn submit<T, E, F>(&self, work: F, answer: impl FnOnce(Result<T, E>) + Send + 'static) -> Result<(), E>
    where
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let job: Job = Box::new(move |tx| {
            let result = in_savepoint(tx, work);
            Box::new(move |commit| answer(commit.map_err(E::from).and(result)))
        });
        self.inner.jobs.send(job).map_err(|_| E::from(Error::Closed))
    }

    /// Runs a query on a reader, on the blocking pool. It sees every write that was answered before the call.
    pub async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let this = self.clone();
        let turn = self.inner.turns.acquire().await.map_err(|_| E::from(Error::Closed))?;
        let result = tokio::task::spawn_blocking(move || this.read_blocking(work)).await;
        drop(turn);
        result.unwrap_or(Err(E::from(Error::Closed)))
    }

    pub fn read_blocking<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&Connection) -> Result<T, E>,
        E: From<Error>,
    {
        let reader = self.inner.reader().map_err(|e| E::from(Error::from(e)))?;
        match &reader.connection {
            Some(connection) => work(connection),
            None => Err(E::from(Error::Closed)),
        }
    }
}

fn in_savepoint<T, E: From<Error>>(
    tx: &Transaction<'_>,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let sql = |statement: &str| tx.execute_batch(statement).map_err(|e| E::from(Error::from(e)));
    sql("SAVEPOINT job")?;
    match work(tx) {
        Ok(value) => sql("RELEASE job").map(|()| value),
        Err(error) => {
            sql("ROLLBACK TO job; RELEASE job")?;
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: Schema = Schema { name: "test", migrations: &["CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)"] };

    fn count(db: &Database) -> i64 {
        db.read_blocking(|c| c.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).map_err(Error::from)).unwrap()
    }

    #[tokio::test]
    async fn a_failed_job_leaves_its_neighbours_in_the_group_alone() {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::open(&dir.path().join("t.db"), &SCHEMA).unwrap();
        let writes = (0..20).map(|n| {
            db.write(move |tx| {
                tx.execute("INSERT INTO t (v) VALUES (?1)", [n.to_string()]).map_err(Error::from)?;
                if n % 2 == 0 { Ok(()) } else { Err(Error::Closed) }
            })
        });
        let results = futures::future::join_all(writes).await;
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 10);
        assert_eq!(count(&db), 10);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_readers_share_few_connections_and_a_panicking_one_gives_its_own_back() {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::open(&dir.path().join("t.db"), &SCHEMA).unwrap();
        let arrived = Arc::new((Mutex::new((0, 0)), Condvar::new()));
        let queries = (0..40).map(|n| {
            let arrived = arrived.clone();
            db.read(move |c| {
                let (counts, changed) = &*arrived;
                let mut counts = counts.lock().unwrap();
                counts.0 += 1;
                counts.1 = counts.1.max(counts.0);
                changed.notify_all();
                // All connections must be in use at once before the first goes back.
                while counts.1 < READERS {
                    counts = changed.wait(counts).unwrap();
                }
                counts.0 -= 1;
                drop(counts);
                assert!(n % 5 != 0, "this query breaks");
                c.query_row("SELECT count(*) FROM t", [], |r| r.get::<_, i64>(0)).map_err(Error::from)
            })
        });
        let results = futures::future::join_all(queries).await;
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 32);
        assert_eq!(arrived.0.lock().unwrap().1, READERS);
        assert!(db.inner.readers().open <= READERS);
        assert_eq!(count(&db), 0);
    }

    #[test]
    fn what_was_answered_is_synced_and_the_log_of_a_large_write_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        let db = Database::open(&path, &SCHEMA).unwrap();
        let pragma = |name: &'static str| {
            db.read_blocking(move |c| {
                c.pragma_query_value(None, name, |r| r.get::<_, rusqlite::types::Value>(0)).map_err(Error::from)
            })
            .unwrap()
        };
        assert_eq!(pragma("journal_mode"), rusqlite::types::Value::Text("wal".into()));
        // 2 is FULL: each commit waits for its own bytes in the log.
        assert_eq!(pragma("synchronous"), rusqlite::types::Value::Integer(2));
        let write = |bytes: usize| {
            db.write_blocking(move |tx| {
                tx.execute("INSERT INTO t (v) VALUES (?1)", ["x".repeat(bytes)]).map(drop).map_err(Error::from)
            })
            .unwrap();
        };
        write(32 << 20);
        write(1);
        write(1);
        let log = path.with_file_name("t.db-wal").metadata().unwrap().len();
        assert!(log <= crate::open::LOG_KEPT + (1 << 20), "{log}");
    }

    #[test]
    fn a_newer_file_is_refused_with_the_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        drop(Database::open(&path, &SCHEMA).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();
        let error = Database::open(&path, &SCHEMA).err().unwrap();
        assert!(matches!(error, OpenError::Newer { found: 7, known: 1, .. }));
        assert!(error.to_string().contains("--data-dir"));
    }
}
