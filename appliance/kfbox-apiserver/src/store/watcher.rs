//! One reader of a collection's changes. It holds a cursor, no queue: a reader that falls behind what is remembered
//! learns that it expired, lists again and costs nobody memory.

use super::state::{Change, Expired, State};
use parking_lot::RwLock;
use std::sync::Arc;
use tokio::sync::watch;

/// Changes handed out at once: bounds the bytes a slow connection holds.
const BATCH: usize = 64;

pub struct Watcher {
    state: Arc<RwLock<State>>,
    collection: Arc<str>,
    notify: watch::Receiver<u64>,
    cursor: u64,
}

impl Watcher {
    pub(super) fn new(
        state: Arc<RwLock<State>>,
        collection: Arc<str>,
        notify: watch::Receiver<u64>,
        cursor: u64,
    ) -> Self {
        Self { state, collection, notify, cursor }
    }

    /// Waits for the next changes. Cancel-safe.
    pub async fn next(&mut self) -> Result<Vec<Arc<Change>>, Expired> {
        loop {
            self.notify.borrow_and_update();
            let batch = self.ready()?;
            if !batch.is_empty() {
                return Ok(batch);
            }
            if self.notify.changed().await.is_err() {
                // The store is gone; so will the daemon be.
                std::future::pending::<()>().await;
            }
        }
    }

    /// What is there already, which may be nothing.
    pub fn ready(&mut self) -> Result<Vec<Arc<Change>>, Expired> {
        let (batch, known) = self.state.read().changes(&self.collection, self.cursor, BATCH)?;
        self.cursor = self.cursor.max(known);
        Ok(batch)
    }

    /// The revision up to which every change was handed out: what a bookmark may say.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }
}
