//! The one writer: a thread that checks each write against what is committed or pending, gives it the next revision,
//! commits a group of them with one sync, then makes them visible in order and answers.

use super::{
    log,
    record::{Encoded, Key, Object},
    state::State,
};
use kfbox_db::rusqlite::{Connection, TransactionBehavior, params};
use parking_lot::RwLock;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{mpsc, oneshot};

/// The largest group: bounds how long its first caller waits for its last.
const GROUP: usize = 256;

/// What the caller believes about the object that it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Absent,
    Revision(u64),
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// An object of that name is there already.
    #[error("exists")]
    Exists,
    /// The object was written by somebody else meanwhile, or is gone.
    #[error("changed")]
    Changed,
    #[error(transparent)]
    Database(#[from] kfbox_db::Error),
}

pub(super) enum Action {
    Put(Encoded),
    Delete(Encoded),
}

pub(super) struct Write {
    pub collection: Box<str>,
    pub key: Key,
    pub expect: Expect,
    pub action: Action,
}

type Answer<T, E> = oneshot::Sender<Result<T, E>>;
type WriteAnswer = Answer<Arc<Object>, WriteError>;
type Group = Vec<(Write, WriteAnswer)>;

pub(super) enum Job {
    Write { write: Write, answer: WriteAnswer },
    Compact { revisions: u64, age: Duration, answer: Answer<u64, kfbox_db::Error> },
}

struct Pending {
    collection: Box<str>,
    object: Arc<Object>,
    deleted: bool,
    answer: WriteAnswer,
}

pub(super) struct Writer {
    connection: Connection,
    state: Arc<RwLock<State>>,
    /// Which revision was the newest at past compactions: how age becomes a revision.
    marks: VecDeque<(Instant, u64)>,
}

impl Writer {
    pub fn new(connection: Connection, state: Arc<RwLock<State>>) -> Self {
        Self { connection, state, marks: VecDeque::new() }
    }

    pub fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.blocking_recv() {
            let mut group = Vec::new();
            let mut next = Some(first);
            while let Some(job) = next.take() {
                match job {
                    Job::Write { write, answer } => group.push((write, answer)),
                    Job::Compact { revisions, age, answer } => {
                        self.write_group(std::mem::take(&mut group));
                        drop(answer.send(self.compact(revisions, age)));
                    }
                }
                if group.len() < GROUP {
                    next = queue.try_recv().ok();
                }
            }
            self.write_group(group);
        }
    }

    fn write_group(&mut self, group: Group) {
        if group.is_empty() {
            return;
        }
        match self.commit(group) {
            Ok(committed) => self.publish(committed),
            Err((error, answers)) => {
                tracing::error!(%error, "writes failed");
                for answer in answers {
                    drop(answer.send(Err(WriteError::Database(error.clone()))));
                }
            }
        }
    }

    /// The answers beside an error are those that are still owed.
    fn commit(&mut self, group: Group) -> Result<Vec<Pending>, (kfbox_db::Error, Vec<WriteAnswer>)> {
        let mut committed: Vec<Pending> = Vec::with_capacity(group.len());
        let mut group = group.into_iter();
        let result = (|| -> Result<(), kfbox_db::rusqlite::Error> {
            let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut insert = tx.prepare_cached(
                "INSERT INTO log (revision, collection, namespace, name, previous, deleted, written, json)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?;
            let mut revision = self.state.read().revision();
            let written = now();
            // What this group has done so far, not yet in the shared state.
            let mut heads: HashMap<(Box<str>, Key), Option<u64>> = HashMap::new();
            for (write, answer) in group.by_ref() {
                let Write { collection, key, expect, action } = write;
                let head_key = (collection, key);
                let head = match heads.get(&head_key) {
                    Some(head) => *head,
                    None => self.state.read().get(&head_key.0, &head_key.1).map(|o| o.revision),
                };
                let refused = match (expect, head) {
                    (Expect::Absent, None) => None,
                    (Expect::Absent, Some(_)) => Some(WriteError::Exists),
                    (Expect::Revision(expected), Some(head)) if expected == head => None,
                    (Expect::Revision(_), _) => Some(WriteError::Changed),
                };
                if let Some(refused) = refused {
                    drop(answer.send(Err(refused)));
                    continue;
                }
                revision += 1;
                let (encoded, deleted) = match action {
                    Action::Put(encoded) => (encoded, false),
                    Action::Delete(encoded) => (encoded, true),
                };
                let object = Arc::new(encoded.finish(head_key.1.clone(), revision, written));
                let row = params![
                    revision.cast_signed(),
                    &*head_key.0,
                    &*object.key.namespace,
                    &*object.key.name,
                    head.unwrap_or(0).cast_signed(),
                    i64::from(deleted),
                    written,
                    &object.json[..],
                ];
                let inserted = insert.execute(row);
                committed.push(Pending { collection: head_key.0.clone(), object, deleted, answer });
                inserted?;
                heads.insert(head_key, (!deleted).then_some(revision));
            }
            drop(insert);
            if committed.is_empty() { tx.rollback() } else { tx.commit() }
        })();
        match result {
            Ok(()) => Ok(committed),
            Err(error) => {
                let answers = committed.into_iter().map(|p| p.answer).chain(group.map(|(_, answer)| answer)).collect();
                Err((error.into(), answers))
            }
        }
    }

    fn publish(&self, committed: Vec<Pending>) {
        {
            let mut state = self.state.write();
            for pending in &committed {
                state.apply(&pending.collection, pending.object.clone(), pending.deleted);
            }
        }
        let state = self.state.read();
        state.advance();
        let mut announced: Vec<&str> = committed.iter().map(|p| &*p.collection).collect();
        announced.sort_unstable();
        announced.dedup();
        for collection in announced {
            state.announce(collection);
        }
        drop(state);
        for pending in committed {
            drop(pending.answer.send(Ok(pending.object)));
        }
    }

    fn compact(&mut self, revisions: u64, age: Duration) -> Result<u64, kfbox_db::Error> {
        let (newest, from) = {
            let state = self.state.read();
            (state.revision(), state.floor())
        };
        let now = Instant::now();
        if self.marks.back().is_none_or(|(_, revision)| *revision < newest) {
            self.marks.push_back((now, newest));
        }
        let mut to = newest.saturating_sub(revisions);
        while let Some((when, revision)) = self.marks.front().copied()
            && now.duration_since(when) >= age
        {
            to = to.max(revision);
            self.marks.pop_front();
        }
        if to > from {
            log::compact(&mut self.connection, from, to)?;
            self.state.write().forget(to);
        }
        Ok(to.max(from))
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}
