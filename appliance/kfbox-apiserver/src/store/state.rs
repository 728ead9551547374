//! The state in memory: per collection the current objects and the recent changes.

use super::{
    record::{Key, Object},
    told::Told,
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque, btree_map::Entry},
    ops::Bound,
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// How far back a watch may resume and a list may look: the smaller of the two bounds holds. Upstream's etcd keeps
/// five minutes; its watch cache far fewer changes a resource.
pub const KEPT_REVISIONS: u64 = 8192;
pub const KEPT_FOR: Duration = Duration::from_secs(600);

/// The changes of one collection kept at most, in number and in bytes of JSON that only the past needs: what bounds
/// memory under a storm of updates.
const KEPT_CHANGES: usize = 2048;
const KEPT_BYTES: usize = 8 << 20;

/// A change keeps what its watchers were told until this many others follow: long enough for a crowd of watchers to share
/// it, short enough to cost no memory that counts.
const SHARED_FOR: usize = 64;

/// One revision.
pub struct Change {
    pub revision: u64,
    /// The new state; for a deletion the last one, with the deletion's revision.
    pub object: Arc<Object>,
    pub previous: Option<Arc<Object>>,
    pub deleted: bool,
    /// What watchers were told of it.
    pub told: Told,
}

/// The revision asked for is no longer remembered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {asked} ({oldest})")]
pub struct Expired {
    pub asked: u64,
    pub oldest: u64,
}

pub struct Snapshot {
    pub revision: u64,
    pub objects: Vec<Arc<Object>>,
    /// Objects that a limit left out.
    pub more: usize,
}

/// Which objects of a collection are asked for, in key order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Range<'a> {
    pub namespace: Option<&'a str>,
    pub after: Option<&'a Key>,
    /// None: all.
    pub limit: Option<usize>,
}

impl Range<'_> {
    fn take<'o>(&self, revision: u64, mut objects: impl Iterator<Item = &'o Arc<Object>>) -> Snapshot {
        let taken = objects.by_ref().take(self.limit.unwrap_or(usize::MAX)).cloned().collect();
        Snapshot { revision, objects: taken, more: objects.count() }
    }

    fn holds(&self, key: &Key) -> bool {
        self.namespace.is_none_or(|n| n == &*key.namespace) && self.after.is_none_or(|after| key > after)
    }
}

type Subscription = (Arc<str>, watch::Receiver<u64>);

pub struct Collection {
    name: Arc<str>,
    objects: BTreeMap<Key, Arc<Object>>,
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    /// Changes at or below this revision are forgotten.
    floor: u64,
    notify: watch::Sender<u64>,
}

pub struct State {
    revision: u64,
    floor: u64,
    collections: HashMap<Arc<str>, Collection>,
    advanced: watch::Sender<u64>,
}

impl State {
    /// `floor`: revisions up to it were compacted; everything still in the log is applied on top.
    pub(super) fn new(floor: u64) -> Self {
        Self { revision: floor, floor, collections: HashMap::new(), advanced: watch::Sender::new(floor) }
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    pub fn get(&self, collection: &str, key: &Key) -> Option<Arc<Object>> {
        self.collections.get(collection)?.objects.get(key).cloned()
    }

    pub fn count(&self, collection: &str) -> usize {
        self.collections.get(collection).map_or(0, |c| c.objects.len())
    }

    fn collection(&mut self, name: &str, floor: u64) -> &mut Collection {
        if !self.collections.contains_key(name) {
            let name: Arc<str> = name.into();
            let collection = Collection {
                name: name.clone(),
                objects: BTreeMap::new(),
                changes: VecDeque::new(),
                bytes: 0,
                floor,
                notify: watch::Sender::new(0),
            };
            self.collections.insert(name.clone(), collection);
        }
        #[expect(clippy::expect_used, reason = "inserted above; the borrow checker refuses the entry API on &str keys")]
        self.collections.get_mut(name).expect("the collection exists")
    }

    /// Applies one committed revision and returns it.
    pub(super) fn apply(&mut self, collection: &str, object: Arc<Object>, deleted: bool) {
        let revision = object.revision;
        let floor = self.floor;
        let remember = revision > floor;
        let collection = self.collection(collection, floor);
        let previous = if deleted {
            collection.objects.remove(&object.key)
        } else {
            match collection.objects.entry(object.key.clone()) {
                Entry::Occupied(mut slot) => Some(slot.insert(object.clone())),
                Entry::Vacant(slot) => {
                    slot.insert(object.clone());
                    None
                }
            }
        };
        if remember {
            collection.remember(Change { revision, object, previous, deleted, told: Told::default() });
        }
        self.revision = self.revision.max(revision);
    }

    pub(super) fn advanced(&self) -> watch::Receiver<u64> {
        self.advanced.subscribe()
    }

    /// Tells those who wait for a revision.
    pub(super) fn advance(&self) {
        self.advanced.send_replace(self.revision);
    }

    /// Wakes the watchers of a collection.
    pub(super) fn announce(&self, collection: &str) {
        if let Some(collection) = self.collections.get(collection) {
            collection.notify.send_replace(self.revision);
        }
    }

    pub fn list_now(&self, collection: &str, range: Range<'_>) -> Snapshot {
        let collection = self.collections.get(collection);
        range.take(self.revision, collection.into_iter().flat_map(|c| c.range(range)).map(|(_, o)| o))
    }

    pub fn list(&self, collection: &str, range: Range<'_>, at: Option<u64>) -> Result<Snapshot, Expired> {
        let Some(at) = at.filter(|at| *at < self.revision) else {
            return Ok(self.list_now(collection, range));
        };
        let Some(collection) = self.collections.get(collection) else {
            return if at < self.floor {
                Err(Expired { asked: at, oldest: self.floor })
            } else {
                Ok(Snapshot { revision: at, objects: Vec::new(), more: 0 })
            };
        };
        if at < collection.floor {
            return Err(Expired { asked: at, oldest: collection.floor });
        }
        // What was there before each change since: walking backwards, the earliest change of a key is the last noted.
        let mut before: BTreeMap<&Key, Option<&Arc<Object>>> = BTreeMap::new();
        for change in collection.changes.iter().rev().take_while(|c| c.revision > at) {
            if range.holds(&change.object.key) {
                before.insert(&change.object.key, change.previous.as_ref());
            }
        }
        let mut now = collection.range(range).peekable();
        let mut then = before.into_iter().peekable();
        // Both are in key order: of a key in both, the past is taken.
        let merged = std::iter::from_fn(move || {
            loop {
                let changed = match (now.peek(), then.peek()) {
                    (Some((now, _)), Some((then, _))) if *now < *then => false,
                    (Some(_), None) => false,
                    (None, None) => return None,
                    (Some((key, _)), Some((then, _))) => {
                        if *key == *then {
                            now.next();
                        }
                        true
                    }
                    (None, Some(_)) => true,
                };
                if !changed {
                    return now.next().map(|(_, object)| object);
                }
                if let Some((_, Some(object))) = then.next() {
                    return Some(object);
                }
            }
        });
        Ok(range.take(at, merged))
    }

    /// None: nothing was ever in that collection.
    pub(super) fn subscribe(&self, collection: &str, since: u64) -> Option<Result<Subscription, Expired>> {
        let collection = self.collections.get(collection)?;
        Some(match since < collection.floor {
            true => Err(Expired { asked: since, oldest: collection.floor }),
            false => Ok(collection.subscription()),
        })
    }

    pub(super) fn subscribe_now(&self, collection: &str) -> Option<Subscription> {
        self.collections.get(collection).map(Collection::subscription)
    }

    pub(super) fn subscribe_anew(&mut self, collection: &str, since: u64) -> Result<Subscription, Expired> {
        let floor = self.floor;
        let collection = self.collection(collection, floor);
        if since < collection.floor {
            return Err(Expired { asked: since, oldest: collection.floor });
        }
        Ok(collection.subscription())
    }

    pub(super) fn ensure(&mut self, collection: &str) -> Subscription {
        let floor = self.floor;
        self.collection(collection, floor).subscription()
    }

    /// Changes after `cursor`, oldest first, at most `limit`; and the revision up to which the caller then knows all.
    pub fn changes(&self, collection: &str, cursor: u64, limit: usize) -> Result<(Vec<Arc<Change>>, u64), Expired> {
        let Some(collection) = self.collections.get(collection) else {
            return Ok((Vec::new(), self.revision));
        };
        if cursor < collection.floor {
            return Err(Expired { asked: cursor, oldest: collection.floor });
        }
        let start = collection.changes.partition_point(|c| c.revision <= cursor);
        let batch: Vec<_> = collection.changes.range(start..).take(limit).cloned().collect();
        let known = match batch.last() {
            Some(last) if batch.len() == limit => last.revision,
            _ => self.revision,
        };
        Ok((batch, known))
    }

    /// Forgets changes up to `floor`. A collection that did not change since keeps its own, lower floor: watches on
    /// rarely changing kinds resume from further back.
    pub(super) fn forget(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
        for collection in self.collections.values_mut() {
            while collection.changes.front().is_some_and(|c| c.revision <= floor) {
                collection.forget_oldest();
            }
            if collection.changes.capacity() > 64 && collection.changes.len() * 4 < collection.changes.capacity() {
                collection.changes.shrink_to_fit();
            }
        }
    }
}

impl Collection {
    fn subscription(&self) -> Subscription {
        (self.name.clone(), self.notify.subscribe())
    }

    fn range<'a>(&'a self, range: Range<'a>) -> impl Iterator<Item = (&'a Key, &'a Arc<Object>)> {
        let first = range.namespace.map(|n| Key::new(n, ""));
        let start = match (range.after, first) {
            (Some(after), Some(first)) if *after < first => Bound::Included(first),
            (Some(after), _) => Bound::Excluded(after.clone()),
            (None, Some(first)) => Bound::Included(first),
            (None, None) => Bound::Unbounded,
        };
        self.objects
            .range((start, Bound::Unbounded))
            .take_while(move |(key, _)| range.namespace.is_none_or(|n| n == key.namespace.as_ref()))
    }

    fn remember(&mut self, change: Change) {
        self.bytes += change.previous.as_ref().map_or(0, |o| o.json.len());
        self.changes.push_back(Arc::new(change));
        // Watchers that keep up have been told by now; those that come later are told anew.
        if let Some(old) = self.changes.len().checked_sub(SHARED_FOR).and_then(|at| self.changes.get(at)) {
            old.told.forget();
        }
        while self.changes.len() > KEPT_CHANGES || (self.bytes > KEPT_BYTES && self.changes.len() > 1) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(change) = self.changes.pop_front() {
            self.bytes -= change.previous.as_ref().map_or(0, |o| o.json.len());
            self.floor = self.floor.max(change.revision);
        }
    }
}
