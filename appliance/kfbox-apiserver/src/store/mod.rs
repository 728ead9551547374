//! The revision log and the current state that it amounts to. Guarantees: a write that was answered is on disk; changes
//! become visible after their commit and in revision order; an object's JSON is serialised once and shared by every
//! reader. Assumption: this process alone writes the file.
//!
//! The idea of one append-only table is kine's; semantics of revisions are those of
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>.

mod log;
mod record;
mod state;
mod told;
mod watcher;
mod writer;

pub use log::SCHEMA;
pub use record::{Encoded, Key, Object, SECOND_CLUSTER_IP, encode, field, selectable_fields};
pub use state::{Change, Expired, KEPT_REVISIONS, Range, Snapshot};
pub use told::Telling;
pub use watcher::Watcher;
pub use writer::{Expect, WriteError};

use parking_lot::RwLock;
use state::State;
use std::{path::Path, sync::Arc};
use tokio::sync::{mpsc, oneshot};
use writer::{Action, Job, Write};

/// Writes waiting for the writer thread. A group commit takes milliseconds; more than this many waiting callers are
/// better held back at their own `await` than queued in memory with their objects.
const WRITE_QUEUE: usize = 1024;

/// The largest object: etcd's limit of a request.
pub const OBJECT_LIMIT: usize = 3 << 19;

/// A cloneable handle on the store. The writer thread ends when the last clone is dropped.
#[derive(Clone)]
pub struct Store {
    state: Arc<RwLock<State>>,
    jobs: mpsc::Sender<Job>,
}

impl Store {
    /// `history`: revisions kept for watches that resume and lists of the past.
    pub fn open(path: &Path, history: u64) -> Result<Self, kfbox_db::OpenError> {
        let connection = kfbox_db::open_connection(path, &SCHEMA)?;
        kfbox_db::fill_log(path);
        let sqlite = |source| kfbox_db::OpenError::Sqlite { name: SCHEMA.name, path: path.to_owned(), source };
        let state = Arc::new(RwLock::new(log::load(&connection).map_err(sqlite)?));
        let (jobs, queue) = mpsc::channel(WRITE_QUEUE);
        let writer = writer::Writer::new(connection, state.clone(), history);
        std::thread::Builder::new()
            .name("kubernetes-log".into())
            .spawn(move || writer.run(queue))
            .map_err(|e| sqlite(kfbox_db::rusqlite::Error::ToSqlConversionFailure(Box::new(e))))?;
        Ok(Self { state, jobs })
    }

    /// Waits until the log has reached a revision; false when it has not in time.
    pub async fn reach(&self, revision: u64, patience: std::time::Duration) -> bool {
        let mut advanced = self.state.read().advanced();
        let reached = advanced.wait_for(|newest| *newest >= revision);
        tokio::time::timeout(patience, reached).await.is_ok_and(|r| r.is_ok())
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.state.read().revision()
    }

    pub fn get(&self, collection: &str, key: &Key) -> Option<Arc<Object>> {
        self.state.read().get(collection, key)
    }

    /// Objects in key order as of now, or as of an earlier revision that is still remembered.
    pub fn list(
        &self,
        collection: &str,
        namespace: Option<&str>,
        after: Option<&Key>,
        at: Option<u64>,
    ) -> Result<Snapshot, Expired> {
        self.page(collection, Range { namespace, after, limit: None }, at)
    }

    /// [`Store::list`] of a part.
    pub fn page(&self, collection: &str, range: Range<'_>, at: Option<u64>) -> Result<Snapshot, Expired> {
        self.state.read().list(collection, range, at)
    }

    pub fn count(&self, collection: &str) -> usize {
        self.state.read().count(collection)
    }

    /// Changes of one collection after `since`.
    pub fn watch(&self, collection: &str, since: u64) -> Result<Watcher, Expired> {
        let known = self.state.read().subscribe(collection, since);
        let (collection, notify) = match known {
            Some(subscription) => subscription?,
            None => self.state.write().subscribe_anew(collection, since)?,
        };
        Ok(Watcher::new(self.state.clone(), collection, notify, since))
    }

    /// Current objects and the changes that follow them, without a gap.
    pub fn list_and_watch(&self, collection: &str, namespace: Option<&str>) -> (Snapshot, Watcher) {
        // Under one lock, and one that readers share: a crowd that starts to watch holds up no other reader.
        let known = {
            let state = self.state.read();
            let snapshot = state.list_now(collection, Range { namespace, ..Range::default() });
            state.subscribe_now(collection).map(|subscription| (snapshot, subscription))
        };
        let (snapshot, (collection, notify)) = known.unwrap_or_else(|| {
            let mut state = self.state.write();
            let snapshot = state.list_now(collection, Range { namespace, ..Range::default() });
            let subscription = state.ensure(collection);
            (snapshot, subscription)
        });
        let watcher = Watcher::new(self.state.clone(), collection, notify, snapshot.revision);
        (snapshot, watcher)
    }

    pub async fn put(
        &self,
        collection: &str,
        key: Key,
        expect: Expect,
        object: Encoded,
    ) -> Result<Arc<Object>, WriteError> {
        self.submit(Write { collection: collection.into(), key, expect, action: Action::Put(object) }).await
    }

    /// `last` is the object's final state: what watchers are told.
    pub async fn delete(
        &self,
        collection: &str,
        key: Key,
        expect: Expect,
        last: Encoded,
    ) -> Result<Arc<Object>, WriteError> {
        self.submit(Write { collection: collection.into(), key, expect, action: Action::Delete(last) }).await
    }

    async fn submit(&self, write: Write) -> Result<Arc<Object>, WriteError> {
        if let Action::Put(object) = &write.action
            && object.weight() > OBJECT_LIMIT
        {
            return Err(WriteError::TooLarge);
        }
        let (answer, receive) = oneshot::channel();
        self.jobs
            .send(Job::Write { write, answer })
            .await
            .map_err(|_| WriteError::Database(kfbox_db::Error::Closed))?;
        receive.await.unwrap_or(Err(WriteError::Database(kfbox_db::Error::Closed)))
    }

    /// Forgets revisions that no watcher should need any more. Called little and often.
    pub async fn compact(&self) -> Result<u64, kfbox_db::Error> {
        self.compact_keeping(None, state::KEPT_FOR).await
    }

    /// `revisions`: how many to keep instead of the store's own number.
    pub(crate) async fn compact_keeping(
        &self,
        revisions: Option<u64>,
        age: std::time::Duration,
    ) -> Result<u64, kfbox_db::Error> {
        let (answer, receive) = oneshot::channel();
        let job = Job::Compact { revisions, age, answer };
        self.jobs.send(job).await.map_err(|_| kfbox_db::Error::Closed)?;
        receive.await.unwrap_or(Err(kfbox_db::Error::Closed))
    }
}

#[cfg(test)]
mod tests;
