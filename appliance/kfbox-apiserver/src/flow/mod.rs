//! Priority and fairness: a bounded number of requests runs at once, and who comes next is decided so that one noisy
//! client delays only itself (<https://kubernetes.io/docs/concepts/cluster-administration/flow-control/>). Also the
//! bounds that have nothing to do with turns: watches of one user, connections from one address.
//!
//! A seat is held until the answer is made, not until the client has read it. Watches need one only to begin; exec,
//! attach, port-forward, proxied requests and logs need none. `system:masters`, and so the daemon's own components, are
//! exempt, as upstream's are.

mod queue;
mod schemas;

pub use schemas::{Asked, Classified, LEVELS, Place as Where, SCHEMAS};

use crate::{status::ApiError, store::Store};
use axum::response::Response;
use http::{HeaderName, HeaderValue};
use kfbox_base::UserInfo;
use parking_lot::{Mutex, RwLock};
use queue::{Dispatch, Entry, FlowKey, Scheduler};
use schemas::Schemas;
use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::oneshot;

/// How long a request may wait for its seat: a quarter of the time it may take, as upstream.
const PATIENCE: Duration = Duration::from_secs(15);

/// Told to those who are refused. Queues are worked off at thousands a second.
const RETRY_AFTER: u32 = 1;

/// Objects that a list may touch for one seat, and seats that it takes at most; upstream's.
const OBJECTS_PER_SEAT: usize = 100;
const WIDEST: usize = 10;

/// Bounds that a test or a large machine may want elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests that run at once, counted in seats. Group commit wants many writers together; processors want few lists.
    pub seats: usize,
    /// Watches of one user. Each costs some 20 KiB and a place in every fan-out.
    pub watches: usize,
    /// Connections from one address that is not this machine's.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { seats: 128, watches: 1000, connections: 512 }
    }
}

pub struct Flow {
    limits: Limits,
    schemas: RwLock<Schemas>,
    queue: Mutex<Scheduler<oneshot::Sender<Seat>>>,
    watches: Arc<Counts<String>>,
    connections: Arc<Counts<IpAddr>>,
    /// Requests refused with 429 so far.
    refused: AtomicU64,
}

impl Flow {
    pub fn new(limits: Limits) -> Arc<Self> {
        let schemas = Schemas::new(&[], &[]);
        let mut queue = Scheduler::new(limits.seats);
        queue.configure(&schemas.limited());
        Arc::new(Self {
            limits,
            schemas: RwLock::new(schemas),
            queue: Mutex::new(queue),
            watches: Arc::default(),
            connections: Arc::default(),
            refused: AtomicU64::new(0),
        })
    }

    /// Takes the cluster's FlowSchemas and PriorityLevelConfigurations as they are now.
    pub fn configure(self: &Arc<Self>, store: &Store) {
        let read = |collection| match store.list(collection, None, None, None) {
            Ok(snapshot) => snapshot.objects.iter().map(|o| o.value()).collect(),
            Err(_) => Vec::new(),
        };
        let schemas = Schemas::new(&read(SCHEMAS), &read(LEVELS));
        let limited = schemas.limited();
        // Both under one lock: a request is never classified into a level that the queue does not know yet.
        let mut current = self.schemas.write();
        *current = schemas;
        let dispatched = self.queue.lock().configure(&limited);
        drop(current);
        self.hand_out(dispatched);
    }

    /// Outside the lock: a seat for somebody who is gone comes straight back.
    fn hand_out(self: &Arc<Self>, dispatched: Vec<Dispatch<oneshot::Sender<Seat>>>) {
        for Dispatch { level, width, payload } in dispatched {
            drop(payload.send(Seat { flow: self.clone(), level, width }));
        }
    }

    pub fn classify(&self, asked: &Asked<'_>) -> Classified {
        self.schemas.read().classify(asked)
    }

    /// Waits for a turn. None: the request is exempt. Cancel-safe: who goes away leaves the queue.
    pub async fn seat(self: &Arc<Self>, of: &Classified, width: usize) -> Result<Option<Seat>, ApiError> {
        if of.exempt {
            return Ok(None);
        }
        let mut receiver = None;
        let entry = self.queue.lock().enter(&of.level, &of.flow, width, || {
            let (sender, receive) = oneshot::channel();
            receiver = Some(receive);
            sender
        });
        let number = match (entry, receiver) {
            (Entry::Runs(width), _) => return Ok(Some(Seat { flow: self.clone(), level: of.level.clone(), width })),
            (Entry::Waits(number), Some(receiver)) => {
                let _waiting = Waiting { flow: self, level: &of.level, key: &of.flow, number };
                if let Ok(Ok(seat)) = tokio::time::timeout(PATIENCE, receiver).await {
                    return Ok(Some(seat));
                }
                Some(number)
            }
            _ => None,
        };
        self.refused.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(level = %of.level, flow = %of.flow.distinguisher, waited = number.is_some(), "refused for now");
        Err(ApiError::too_many_requests("Too many requests, please try again later.", RETRY_AFTER))
    }

    pub fn watch(&self, user: &UserInfo) -> Result<Place, ApiError> {
        if user.groups.iter().any(|g| g == UserInfo::MASTERS) {
            return Ok(Place(None));
        }
        let place = Counts::take(&self.watches, user.username.clone(), self.limits.watches);
        place.map(|held| Place(Some(held))).ok_or_else(|| {
            let message =
                format!("user {:?} has {} watches open, as many as one may", user.username, self.limits.watches);
            ApiError::too_many_requests(message, 30)
        })
    }

    /// A connection's place; None when its address has too many.
    pub fn connection(&self, from: IpAddr) -> Option<Held<IpAddr>> {
        // All users of this machine share its address.
        let limit = if from.is_loopback() { usize::MAX } else { self.limits.connections };
        Counts::take(&self.connections, from, limit)
    }

    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.queue.lock().waiting()
    }

    #[cfg(test)]
    pub fn watching(&self) -> usize {
        self.watches.0.lock().values().sum()
    }
}

/// Seats that a list of so many stored objects takes: upstream's estimate for lists served from memory.
pub fn list_width(objects: usize, limit: Option<usize>) -> usize {
    limit.map_or(objects, |limit| objects.min(limit)).div_ceil(OBJECTS_PER_SEAT).clamp(1, WIDEST)
}

/// Tells the client which schema and level its request belonged to, as upstream does: by their UIDs.
pub fn tell(response: &mut Response, class: &Classified) {
    let names = ["x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid"];
    for (name, uid) in names.into_iter().zip([&class.uids.0, &class.uids.1]) {
        if let Some(value) = HeaderValue::from_str(uid).ok().filter(|v| !v.is_empty()) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
}

/// The right to run, given back when dropped.
pub struct Seat {
    flow: Arc<Flow>,
    level: Arc<str>,
    width: usize,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let dispatched = self.flow.queue.lock().release(&self.level, self.width);
        self.flow.hand_out(dispatched);
    }
}

/// Leaves the queue when its owner does.
struct Waiting<'a> {
    flow: &'a Flow,
    level: &'a Arc<str>,
    key: &'a FlowKey,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.flow.queue.lock().leave(self.level, self.key, self.number);
    }
}

/// Held by a watch as long as it lasts.
pub struct Place(#[expect(dead_code, reason = "held for its end")] Option<Held<String>>);

/// How many of something each one holds.
pub struct Counts<K>(Mutex<HashMap<K, usize>>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// One of them, until it is dropped.
pub struct Held<K: Eq + Hash> {
    counts: Arc<Counts<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Counts<K> {
    fn take(counts: &Arc<Self>, key: K, limit: usize) -> Option<Held<K>> {
        let mut held = counts.0.lock();
        let count = held.entry(key.clone()).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        drop(held);
        Some(Held { counts: counts.clone(), key })
    }
}

impl<K: Eq + Hash> Drop for Held<K> {
    fn drop(&mut self) {
        let mut held = self.counts.0.lock();
        if let Some(count) = held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.key);
            }
        }
    }
}
