//! What is said of a change is the same to every watcher that asked in the same form: it is made once and shared.

use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;

/// How a change is told: everything that its bytes depend on besides the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telling {
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub event: &'static str,
    /// The group and version of the objects, and their form.
    pub view: Arc<str>,
}

/// Forms kept for one change: three events in a few views; a crowd that differs more is told one by one.
const KEPT: usize = 6;

#[derive(Default)]
pub struct Told(Mutex<Vec<(Telling, Bytes)>>);

impl Told {
    /// The bytes for this telling, made by the first who asks while the others wait for them.
    pub fn share(&self, telling: &Telling, make: impl FnOnce() -> Bytes) -> Bytes {
        let mut told = self.0.lock();
        if let Some((_, bytes)) = told.iter().find(|(t, _)| t == telling) {
            return bytes.clone();
        }
        if told.len() >= KEPT {
            drop(told);
            return make();
        }
        let bytes = make();
        told.push((telling.clone(), bytes.clone()));
        bytes
    }

    pub(super) fn forget(&self) {
        *self.0.lock() = Vec::new();
    }
}
