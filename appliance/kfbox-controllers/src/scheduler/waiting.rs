//! The pods that wait for a node: those to be looked at, the most important first, and those that fitted nowhere, each with
//! what could help it. Invariants: a pod is looked at again only for a reason (an event that can help, a change of itself,
//! or once a minute); each further look at it comes later, up to ten seconds, so that a busy cluster with many stuck pods
//! does not spend its time on them.

use super::fit::event;
use crate::{cache, pods};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};
use tokio::time::Instant;

/// Upstream's `podInitialBackoffSeconds` and `podMaxBackoffSeconds`; the first retry does not wait.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Higher priority first, then the older.
pub type Order = (Reverse<i32>, Timestamp, String);

pub fn order(pod: &Pod) -> Order {
    (Reverse(super::fit::priority(pod)), pods::created(&pod.metadata), pod.metadata.uid.clone().unwrap_or_default())
}

struct Stuck {
    order: Order,
    key: cache::Key,
    told: String,
    helped_by: u8,
    looks: u32,
    last: Instant,
}

#[derive(Default)]
pub struct Waiting {
    ready: BTreeMap<Order, cache::Key>,
    stuck: HashMap<String, Stuck>,
    /// When stuck pods that something happened for may be looked at.
    paused: BTreeSet<(Instant, String)>,
}

impl Waiting {
    pub fn add(&mut self, pod: &Pod) {
        self.ready.insert(order(pod), cache::key(pod));
    }

    pub fn remove(&mut self, pod: &Pod) {
        self.ready.remove(&order(pod));
        self.stuck.remove(pod.metadata.uid.as_deref().unwrap_or_default());
    }

    /// The next to be looked at.
    pub fn pop(&mut self, now: Instant) -> Option<cache::Key> {
        while let Some((at, uid)) = self.paused.first().cloned() {
            if at > now {
                break;
            }
            self.paused.pop_first();
            if let Some(stuck) = self.stuck.get(&uid) {
                self.ready.insert(stuck.order.clone(), stuck.key.clone());
            }
        }
        self.ready.pop_first().map(|(_, key)| key)
    }

    /// When a paused pod may be looked at.
    pub fn next(&self) -> Option<Instant> {
        self.paused.first().map(|(at, _)| *at)
    }

    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub fn is_stuck(&self, uid: &str) -> bool {
        self.stuck.contains_key(uid)
    }

    /// The pod fits nowhere for now. Whether it is told the same as before.
    pub fn stick(&mut self, pod: &Pod, told: &str, helped_by: u8, now: Instant) -> bool {
        let order = order(pod);
        let stuck = self.stuck.entry(order.2.clone()).or_insert_with(|| Stuck {
            order: order.clone(),
            key: cache::key(pod),
            told: String::new(),
            helped_by,
            looks: 0,
            last: now,
        });
        let known = stuck.told == told && stuck.looks > 0;
        stuck.order = order;
        stuck.told = told.to_owned();
        stuck.helped_by = helped_by;
        stuck.looks = stuck.looks.saturating_add(1);
        stuck.last = now;
        known
    }

    /// The pod waits for its claims, which is no failure: it is looked at as soon as they change.
    pub fn wait_for_claims(&mut self, pod: &Pod, now: Instant) {
        self.stick(pod, "", event::STORAGE, now);
        if let Some(stuck) = self.stuck.get_mut(pod.metadata.uid.as_deref().unwrap_or_default()) {
            stuck.looks = 1;
        }
    }

    /// The telling failed: tell again at the next look.
    pub fn untold(&mut self, uid: &str) {
        if let Some(stuck) = self.stuck.get_mut(uid) {
            stuck.told.clear();
        }
    }

    pub fn unstick(&mut self, uid: &str) {
        self.stuck.remove(uid);
    }

    /// Something went wrong on our side: look again after a pause.
    pub fn retry(&mut self, pod: &Pod, now: Instant) {
        self.stick(pod, "", event::ANY, now);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let pause = self.stuck.get(&uid).map_or(FIRST_PAUSE, |s| pause(s.looks.saturating_add(1)));
        self.paused.insert((now + pause, uid));
    }

    /// Something happened that may help some.
    pub fn happened(&mut self, what: u8, now: Instant) {
        for (uid, stuck) in self.stuck.iter().filter(|(_, s)| s.helped_by & what != 0) {
            let due = stuck.last + pause(stuck.looks);
            if due <= now {
                self.ready.insert(stuck.order.clone(), stuck.key.clone());
            } else {
                self.paused.insert((due, uid.clone()));
            }
        }
    }

    /// All are looked at again, should news have been missed.
    pub fn all_again(&mut self) {
        for stuck in self.stuck.values() {
            self.ready.insert(stuck.order.clone(), stuck.key.clone());
        }
    }
}

/// Before look number `looks + 1`.
fn pause(looks: u32) -> Duration {
    match looks {
        0 | 1 => Duration::ZERO,
        looks => FIRST_PAUSE.saturating_mul(1 << (looks - 2).min(8)).min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::object;
    use serde_json::json;

    fn pod(name: &str, priority: i32) -> Pod {
        object(
            json!({ "metadata": { "name": name, "namespace": "n", "uid": name }, "spec": { "priority": priority, "containers": [] } }),
        )
    }

    #[test]
    fn the_important_go_first_and_only_what_can_help_wakes() {
        let now = Instant::now();
        let mut waiting = Waiting::default();
        for (name, priority) in [("low", 1), ("high", 9), ("mid", 5)] {
            waiting.add(&pod(name, priority));
        }
        let next = |w: &mut Waiting, at: Instant| w.pop(at).map(|k| k.1);
        assert_eq!(next(&mut waiting, now).as_deref(), Some("high"));
        assert!(!waiting.stick(&pod("high", 9), "no cpu", event::ROOM, now));
        assert_eq!(next(&mut waiting, now).as_deref(), Some("mid"));
        waiting.happened(event::STORAGE, now);
        assert_eq!(next(&mut waiting, now).as_deref(), Some("low"));
        waiting.happened(event::ROOM, now);
        assert_eq!(next(&mut waiting, now).as_deref(), Some("high"), "the first retry does not wait");
        assert!(waiting.stick(&pod("high", 9), "no cpu", event::ROOM, now), "told before");
        waiting.happened(event::ROOM, now);
        assert_eq!(next(&mut waiting, now), None);
        assert_eq!(waiting.next(), Some(now + FIRST_PAUSE));
        assert_eq!(next(&mut waiting, now + FIRST_PAUSE).as_deref(), Some("high"));
        waiting.remove(&pod("high", 9));
        waiting.happened(event::ANY, now);
        assert!(!waiting.is_ready());
    }

    #[test]
    fn pauses_grow_to_ten_seconds() {
        let seconds: Vec<u64> = (0..9).map(|n| pause(n).as_secs()).collect();
        assert_eq!(seconds, [0, 0, 1, 2, 4, 8, 10, 10, 10]);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }
}
