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
    sync::{Arc, Mutex, PoisonError, mpsc},
};
use tokio::sync::oneshot;

/// Readers kept open; more are opened when all are busy, and closed after use.
const IDLE_READERS: usize = 3;

/// A cloneable handle on one database file. The writer thread ends when the last clone is dropped.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
    readers: Mutex<Vec<Connection>>,
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
        Ok(Self { inner: Arc::new(Inner { path: path.to_owned(), jobs, readers: Mutex::default() }) })
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
        tokio::task::spawn_blocking(move || this.read_blocking(work)).await.unwrap_or(Err(E::from(Error::Closed)))
    }

    pub fn read_blocking<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&Connection) -> Result<T, E>,
        E: From<Error>,
    {
        let connection = self.reader().map_err(|e| E::from(Error::from(e)))?;
        let result = work(&connection);
        let mut idle = self.inner.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_READERS {
            idle.push(connection);
        }
        result
    }

    fn reader(&self) -> rusqlite::Result<Connection> {
        if let Some(connection) = self.inner.readers.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(connection);
        }
        let connection = Connection::open(&self.inner.path)?;
        apply_pragmas(&connection)?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(connection)
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
