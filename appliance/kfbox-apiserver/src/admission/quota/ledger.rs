//! What the objects of each namespace cost: read from the store, remembered by revision, with what is being written.

use super::usage::{Facts, Tracks};
use crate::{
    admission::amounts::{self, Amounts, Quantity},
    object::meta,
    store::{Object, Store},
};
use parking_lot::Mutex;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use tokio::sync::Notify;

/// Of all namespaces that have quotas.
#[derive(Default)]
pub struct Quotas {
    namespaces: Mutex<HashMap<Box<str>, Arc<Mutex<Ledger>>>>,
    /// Namespaces whose quotas' statuses may be behind.
    behind: Mutex<BTreeSet<Box<str>>>,
    pub(super) wake: Notify,
}

impl Quotas {
    pub(super) fn of(&self, namespace: &str) -> Arc<Mutex<Ledger>> {
        let mut namespaces = self.namespaces.lock();
        if let Some(ledger) = namespaces.get(namespace) {
            return ledger.clone();
        }
        namespaces.entry(namespace.into()).or_default().clone()
    }

    /// Drops the memory of a namespace that has no quotas any more, unless a write in it is still under way.
    pub(super) fn forget(&self, namespace: &str) {
        let mut namespaces = self.namespaces.lock();
        // Whoever has a charge holds the ledger.
        if namespaces.get(namespace).is_some_and(|ledger| Arc::strong_count(ledger) == 1) {
            namespaces.remove(namespace);
        }
    }

    pub(super) fn mark(&self, namespace: &str) {
        self.behind.lock().insert(namespace.into());
        self.wake.notify_one();
    }

    pub(super) fn take_marked(&self) -> BTreeSet<Box<str>> {
        std::mem::take(&mut *self.behind.lock())
    }
}

/// An object that was admitted and may not be stored yet.
struct Expected {
    id: u64,
    collection: Box<str>,
    name: Box<str>,
    /// The revision that it replaces; none for a new object.
    base: Option<u64>,
    facts: Arc<Facts>,
}

/// Whether writes under way count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    Also,
    Not,
}

type Known = HashMap<Box<str>, (u64, Arc<Facts>)>;

#[derive(Default)]
pub(super) struct Ledger {
    /// By collection and name, as of a revision.
    known: HashMap<Box<str>, Known>,
    expected: Vec<Expected>,
    next: u64,
}

/// An object, and what it is about to become.
type Entry = (Option<Arc<Facts>>, Option<Arc<Facts>>);

impl Ledger {
    pub(super) fn expect(&mut self, collection: &str, object: &Value, old: Option<&Value>, facts: Arc<Facts>) -> u64 {
        self.next += 1;
        self.expected.push(Expected {
            id: self.next,
            collection: collection.into(),
            name: meta(object, "name").into(),
            base: old.map(|old| meta(old, "resourceVersion").parse().unwrap_or(0)),
            facts,
        });
        self.next
    }

    /// How much of each of these resources the objects of a quota's scope use.
    pub(super) fn used<'a>(
        &mut self,
        store: &Store,
        namespace: &str,
        quota: &Value,
        names: impl Iterator<Item = &'a String>,
        now: i64,
        write: Write,
    ) -> Amounts {
        let mut by_kind: BTreeMap<Tracks, Vec<&String>> = BTreeMap::new();
        for name in names {
            if let Some(tracks) = Tracks::of(name) {
                by_kind.entry(tracks).or_default().push(name);
            }
        }
        let mut used = Amounts::new();
        for (tracks, names) in by_kind {
            let mut sum: Amounts = names.iter().map(|name| ((*name).clone(), Quantity::ZERO)).collect();
            let cost = |facts: &Option<Arc<Facts>>| {
                let mut cost = facts.as_ref().filter(|f| f.is_in(quota)).map(|f| f.at(now)).unwrap_or_default();
                cost.retain(|name, _| names.contains(&name));
                cost
            };
            for (is, becomes) in self.entries(store, namespace, &tracks, write) {
                let mut dearer = cost(&is);
                amounts::raise(&mut dearer, &cost(&becomes));
                amounts::add(&mut sum, &dearer);
            }
            used.extend(sum);
        }
        used
    }

    fn entries(&mut self, store: &Store, namespace: &str, tracks: &Tracks, write: Write) -> Vec<Entry> {
        let collection = tracks.collection();
        // Only lists as of an earlier revision can fail.
        let stored = store.list(collection, Some(namespace), None, None).map(|s| s.objects).unwrap_or_default();
        let mut entries: Vec<Entry> =
            self.facts(tracks, &stored).into_iter().map(|facts| (Some(facts), None)).collect();
        if write == Write::Not {
            return entries;
        }
        for expected in self.expected.iter().filter(|e| *e.collection == *collection) {
            let at = stored.binary_search_by(|object| object.key.name.cmp(&expected.name));
            match (at, expected.base) {
                // A new object. Once it is there it is counted already; one of the same name will refuse it.
                (Err(_), None) => entries.push((None, Some(expected.facts.clone()))),
                (Ok(at), Some(base)) if stored[at].revision == base => entries[at].1 = Some(expected.facts.clone()),
                _ => {}
            }
        }
        entries
    }

    fn facts(&mut self, tracks: &Tracks, stored: &[Arc<Object>]) -> Vec<Arc<Facts>> {
        if let Tracks::Count(_) = tracks {
            let same = Arc::new(Facts::of(tracks, &Value::Null));
            return vec![same; stored.len()];
        }
        let mut before = self.known.remove(tracks.collection()).unwrap_or_default();
        let mut known = Known::with_capacity(stored.len());
        let mut all = Vec::with_capacity(stored.len());
        for object in stored {
            let facts = match before.remove(&object.key.name) {
                Some((revision, facts)) if revision == object.revision => facts,
                _ => Arc::new(Facts::of(tracks, &object.value())),
            };
            known.insert(object.key.name.clone(), (object.revision, facts.clone()));
            all.push(facts);
        }
        self.known.insert(tracks.collection().into(), known);
        all
    }
}

/// Room in the quotas, kept from the decision until the object is stored or refused.
pub struct Charge {
    ledger: Arc<Mutex<Ledger>>,
    id: u64,
}

impl Charge {
    pub(super) fn new(ledger: Arc<Mutex<Ledger>>, id: u64) -> Self {
        Self { ledger, id }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.ledger.lock().expected.retain(|expected| expected.id != self.id);
    }
}
