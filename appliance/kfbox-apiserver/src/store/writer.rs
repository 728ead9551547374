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

/// Revisions forgotten in one transaction: what keeps a write behind it waiting for a millisecond and not for a second.
const STEP: u64 = 1024;

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
    #[error("the object is too large to be stored")]
    TooLarge,
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
    Compact { revisions: Option<u64>, age: Duration, answer: Answer<u64, kfbox_db::Error> },
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
    /// Revisions kept; what is older goes with the writes that push it out.
    history: u64,
    /// Which revision was the newest at past compactions: how age becomes a revision.
    marks: VecDeque<(Instant, u64)>,
    /// Revisions up to here are to be forgotten.
    goal: u64,
    /// Who waits until they are.
    waiting: Vec<Answer<u64, kfbox_db::Error>>,
    /// The file may have pages to give back.
    shrinking: bool,
    /// It did give some back, and its log does not say so in the file yet.
    shrunk: bool,
}

impl Writer {
    pub fn new(connection: Connection, state: Arc<RwLock<State>>, history: u64) -> Self {
        let marks = VecDeque::new();
        Self { connection, state, history, marks, goal: 0, waiting: Vec::new(), shrinking: true, shrunk: false }
    }

    pub fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        loop {
            let first = match queue.try_recv() {
                Ok(job) => job,
                Err(mpsc::error::TryRecvError::Disconnected) => return,
                // Nobody waits: there is time for upkeep.
                Err(mpsc::error::TryRecvError::Empty) if self.upkeep() => continue,
                Err(mpsc::error::TryRecvError::Empty) => match queue.blocking_recv() {
                    Some(job) => job,
                    None => return,
                },
            };
            let mut group = Vec::new();
            let mut next = Some(first);
            while let Some(job) = next.take() {
                match job {
                    Job::Write { write, answer } => group.push((write, answer)),
                    Job::Compact { revisions, age, answer } => {
                        self.write_group(std::mem::take(&mut group));
                        self.waiting.push(answer);
                        self.plan(revisions.unwrap_or(self.history), age);
                    }
                }
                if group.len() < GROUP {
                    next = queue.try_recv().ok();
                }
            }
            self.write_group(group);
        }
    }

    /// Does a little of what can wait; false when nothing is left.
    fn upkeep(&mut self) -> bool {
        if let Some((from, to)) = self.due(false) {
            let result = (|| {
                let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                log::forget(&tx, from, to)?;
                tx.commit()
            })();
            match result {
                Ok(()) => self.forgotten(to),
                Err(error) => self.give_up(&error.into()),
            }
            return true;
        }
        self.settle();
        if !self.shrinking {
            return false;
        }
        let result = log::shrink(&self.connection).and_then(|more| {
            if !more && std::mem::take(&mut self.shrunk) {
                log::checkpoint(&self.connection)?;
            }
            self.shrunk |= more;
            Ok(more)
        });
        self.shrinking = result.unwrap_or_else(|error| {
            tracing::debug!(%error, "the log's file was not shrunk");
            false
        });
        self.shrinking
    }

    /// The next revisions to forget: those that were planned, and with `crowded` those that are more than may be kept.
    fn due(&self, crowded: bool) -> Option<(u64, u64)> {
        let (newest, from) = {
            let state = self.state.read();
            (state.revision(), state.floor())
        };
        let kept = newest.saturating_sub(self.history);
        let goal = if crowded && kept > from + STEP { self.goal.max(kept) } else { self.goal };
        (goal > from).then(|| (from, goal.min(from + STEP)))
    }

    fn forgotten(&mut self, to: u64) {
        self.state.write().forget(to);
        self.shrinking = true;
        if to >= self.goal {
            self.settle();
        }
    }

    fn settle(&mut self) {
        let floor = self.state.read().floor();
        for answer in self.waiting.drain(..) {
            drop(answer.send(Ok(floor)));
        }
    }

    fn give_up(&mut self, error: &kfbox_db::Error) {
        // A full disk, most likely: the next who asks tries again.
        self.goal = 0;
        for answer in self.waiting.drain(..) {
            drop(answer.send(Err(error.clone())));
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
        let due = self.due(true);
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
            if committed.is_empty() {
                return tx.rollback();
            }
            // Part of a sync that is paid for anyway.
            if let Some((from, to)) = due {
                log::forget(&tx, from, to)?;
            }
            tx.commit()
        })();
        match result {
            Ok(()) => {
                if let Some((_, to)) = due.filter(|_| !committed.is_empty()) {
                    self.forgotten(to);
                }
                Ok(committed)
            }
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

    /// Sets what is to be forgotten: all but the newest `revisions`, and what was replaced longer than `age` ago.
    fn plan(&mut self, revisions: u64, age: Duration) {
        let newest = self.state.read().revision();
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
        self.goal = self.goal.max(to);
        if self.due(false).is_none() {
            self.settle();
        }
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}
