//! What to do next for a pod: which containers start now, which later, and whether it is finished. Pure.
//! Upstream: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/>,
//! <https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/>

use super::record::{Kind, Record, State, restarts};
use k8s_openapi::api::core::v1::PodSpec;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

const FIRST_BACK_OFF: Duration = Duration::from_secs(10);
const MAX_BACK_OFF: Duration = Duration::from_secs(300);
/// A container that ran this long starts afresh.
const RESET_AFTER: Duration = Duration::from_secs(600);

/// When containers may start again, by name.
#[derive(Debug, Default, Clone)]
pub struct BackOff {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    delay: Duration,
    not_before: Instant,
}

impl BackOff {
    /// A container ended now, having run so long. The first restart is at once, later ones wait twice as long each.
    pub fn ended(&mut self, name: &str, ran: Duration, now: Instant) {
        if ran >= RESET_AFTER {
            self.entries.remove(name);
        }
        if let Some(entry) = self.entries.get_mut(name) {
            entry.not_before = now + entry.delay;
        }
    }

    /// A container starts again now: the next time it waits.
    pub fn restarted(&mut self, name: &str, now: Instant) {
        let next = self.entries.get(name).map_or(FIRST_BACK_OFF, |entry| (entry.delay * 2).min(MAX_BACK_OFF));
        self.entries.insert(name.into(), Entry { delay: next, not_before: now });
    }

    /// A failure after which the next attempt waits, the first time already (image pulls).
    pub fn failed(&mut self, name: &str, now: Instant) {
        self.restarted(name, now);
        if let Some(entry) = self.entries.get_mut(name) {
            entry.not_before = now + entry.delay;
        }
    }

    pub fn forget(&mut self, name: &str) {
        self.entries.remove(name);
    }

    /// How long the wait is, and until when, if it is not over.
    pub fn waiting(&self, name: &str, now: Instant) -> Option<(Duration, Instant)> {
        self.entries.get(name).filter(|entry| entry.not_before > now).map(|entry| (entry.delay, entry.not_before))
    }
}

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// To start now.
    pub start: Vec<String>,
    /// To be shown as crash-looping: name and the delay.
    pub looping: Vec<(String, Duration)>,
    /// To look again at.
    pub wake: Option<Instant>,
    /// Sidecars to stop, because the work is done; last first.
    pub stop: Vec<String>,
    /// Nothing will ever run again.
    pub finished: bool,
}

pub fn plan(spec: &PodSpec, records: &[Record], back_off: &BackOff, now: Instant) -> Plan {
    let mut plan = Plan::default();
    let mains_began = records.iter().any(|r| r.kind == Kind::Main && (r.restarts > 0 || !is_fresh(r)));
    let mut init_failed = false;
    let mut initialized = true;

    for record in records.iter().filter(|r| matches!(r.kind, Kind::Init | Kind::Sidecar)) {
        match (record.kind, &record.state) {
            (Kind::Init, State::Ended(end)) if end.exit.code == 0 => continue,
            // What ran before the work began is not run again for it.
            (Kind::Init, _) if mains_began => continue,
            (Kind::Init, _) if failed_for_good(spec, record) => {
                init_failed = true;
                initialized = false;
            }
            (_, State::Running { .. }) => {
                if record.kind == Kind::Init || !record.started {
                    initialized = false;
                }
            }
            _ => {
                plan.try_start(record, back_off, now);
                initialized = false;
            }
        }
        if !initialized && !mains_began {
            break;
        }
    }

    let mains: Vec<&Record> = records.iter().filter(|r| r.kind == Kind::Main).collect();
    let done = |record: &&Record| record.latest_end().is_some_and(|end| !restarts(spec, &record.name, end.exit.code));
    let work_done = !mains.is_empty() && mains.iter().all(done);
    let ephemeral = || records.iter().filter(|r| r.kind == Kind::Ephemeral);
    if init_failed || work_done {
        plan.start.clear();
        plan.looping.clear();
        plan.wake = None;
        plan.stop.extend(ephemeral().filter(|r| r.running()).map(|r| r.name.clone()));
        // One at a time, in reverse: the first to start is the last to go.
        let last = records.iter().rev().find(|r| r.kind == Kind::Sidecar && r.running());
        plan.stop.extend(last.map(|r| r.name.clone()));
        plan.finished = records.iter().all(|r| !r.running());
        return plan;
    }
    if initialized || mains_began {
        for record in mains {
            if !record.running() && !done(&record) {
                plan.try_start(record, back_off, now);
            }
        }
    }
    // These wait for nobody, and nobody for them.
    plan.start.extend(ephemeral().filter(|r| is_fresh(r)).map(|r| r.name.clone()));
    plan
}

/// An init container that failed and may not try again, which ends the pod.
pub fn failed_for_good(spec: &PodSpec, record: &Record) -> bool {
    let end = record.latest_end().filter(|end| end.exit.code != 0);
    end.is_some_and(|end| !restarts(spec, &record.name, end.exit.code))
}

fn is_fresh(record: &Record) -> bool {
    matches!(record.state, State::Waiting { .. }) && record.last.is_none()
}

impl Plan {
    fn try_start(&mut self, record: &Record, back_off: &BackOff, now: Instant) {
        match back_off.waiting(&record.name, now) {
            Some((delay, until)) => {
                self.looping.push((record.name.clone(), delay));
                self.wake = Some(self.wake.map_or(until, |other| other.min(until)));
            }
            None => self.start.push(record.name.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Ended, fresh};
    use super::*;
    use crate::shim::records::Exit;
    use k8s_openapi::api::core::v1::Container;

    fn spec(init: &[(&str, bool)], mains: &[&str], policy: &str) -> PodSpec {
        let named = |name: &str| Container { name: name.into(), ..Container::default() };
        PodSpec {
            init_containers: Some(
                init.iter()
                    .map(|(name, sidecar)| Container {
                        restart_policy: sidecar.then(|| "Always".into()),
                        ..named(name)
                    })
                    .collect(),
            ),
            containers: mains.iter().map(|name| named(name)).collect(),
            restart_policy: Some(policy.into()),
            ..PodSpec::default()
        }
    }

    fn ended(code: i32) -> State {
        let exit =
            Exit { code, signal: None, oom_killed: false, started_at: None, finished_at: String::new(), failure: None };
        State::Ended(Ended { id: "x".into(), exit, reason: String::new(), message: None })
    }

    fn running() -> State {
        State::Running { id: "x".into(), since: String::new() }
    }

    fn decide(spec: &PodSpec, records: &[Record]) -> Plan {
        plan(spec, records, &BackOff::default(), Instant::now())
    }

    #[test]
    fn init_containers_run_one_by_one_then_all_the_others() {
        let spec = spec(&[("i1", false), ("i2", false)], &["a", "b"], "Never");
        let mut records = fresh(&spec);
        assert_eq!(decide(&spec, &records).start, ["i1"]);
        records[0].state = running();
        assert!(decide(&spec, &records).start.is_empty());
        records[0].state = ended(0);
        assert_eq!(decide(&spec, &records).start, ["i2"]);
        records[1].state = ended(0);
        assert_eq!(decide(&spec, &records).start, ["a", "b"]);
        records[2].state = ended(0);
        records[3].state = running();
        assert_eq!(decide(&spec, &records), Plan::default());
        records[3].state = ended(1);
        assert!(decide(&spec, &records).finished);
    }

    #[test]
    fn a_failed_init_container_ends_a_pod_that_never_restarts() {
        let never = spec(&[("i1", false)], &["a"], "Never");
        let mut records = fresh(&never);
        records[0].state = ended(1);
        let found = decide(&never, &records);
        assert!(found.finished && found.start.is_empty());
        let always = spec(&[("i1", false)], &["a"], "Always");
        assert_eq!(decide(&always, &records).start, ["i1"]);
    }

    #[test]
    fn sidecars_start_before_and_stop_after_the_work() {
        let spec = spec(&[("s1", true), ("s2", true)], &["a"], "Never");
        let mut records = fresh(&spec);
        assert_eq!(decide(&spec, &records).start, ["s1"]);
        records[0].state = running();
        assert!(decide(&spec, &records).start.is_empty(), "not until it has started");
        records[0].started = true;
        assert_eq!(decide(&spec, &records).start, ["s2"]);
        records[1].state = running();
        records[1].started = true;
        assert_eq!(decide(&spec, &records).start, ["a"]);
        records[2].state = running();
        records[0].state = ended(1);
        assert_eq!(decide(&spec, &records).start, ["s1"], "restarts beside the work");
        records[0].state = running();
        records[2].state = ended(0);
        let found = decide(&spec, &records);
        assert_eq!((found.stop, found.finished), (vec!["s2".to_owned()], false));
        records[1].state = ended(0);
        assert_eq!(decide(&spec, &records).stop, ["s1"]);
        records[0].state = ended(0);
        assert!(decide(&spec, &records).finished);
    }

    #[test]
    fn policies_decide_about_restarts() {
        for (policy, code, restarts) in [
            ("Always", 0, true),
            ("Always", 1, true),
            ("OnFailure", 0, false),
            ("OnFailure", 1, true),
            ("Never", 1, false),
        ] {
            let spec = spec(&[], &["a"], policy);
            let mut records = fresh(&spec);
            records[0].state = ended(code);
            let found = decide(&spec, &records);
            assert_eq!((!found.start.is_empty(), found.finished), (restarts, !restarts), "{policy} {code}");
        }
    }

    #[test]
    fn a_containers_own_rules_come_before_its_own_policy_and_the_pods() {
        let mut spec = spec(&[], &["a", "b"], "Always");
        spec.containers[0] = serde_json::from_value(serde_json::json!({
            "name": "a", "restartPolicy": "Never",
            "restartPolicyRules": [{ "action": "Restart", "exitCodes": { "operator": "In", "values": [42] } }],
        }))
        .unwrap();
        spec.containers[1].restart_policy = Some("OnFailure".into());
        for (a, b, start) in [(42, 0, vec!["a"]), (1, 1, vec!["b"]), (0, 0, vec![])] {
            let mut records = fresh(&spec);
            (records[0].state, records[1].state) = (ended(a), ended(b));
            let found = decide(&spec, &records);
            assert_eq!(found.start, start, "{a} {b}");
            assert_eq!(found.finished, start.is_empty());
        }
    }

    #[test]
    fn an_ephemeral_container_runs_once_beside_the_others() {
        let mut spec = spec(&[("i", false)], &["a"], "Never");
        spec.ephemeral_containers =
            Some(vec![serde_json::from_value(serde_json::json!({ "name": "debug", "image": "x" })).unwrap()]);
        let mut records = fresh(&spec);
        assert_eq!(decide(&spec, &records).start, ["i", "debug"], "it does not wait for init containers");
        records[0].state = ended(0);
        records[1].state = running();
        records[2].state = running();
        assert_eq!(decide(&spec, &records), Plan::default());
        records[2].state = ended(1);
        assert_eq!(decide(&spec, &records), Plan::default(), "it is not run again, and its end says nothing");
        records[2].state = running();
        records[1].state = ended(0);
        let found = decide(&spec, &records);
        assert_eq!((found.stop, found.finished), (vec!["debug".to_owned()], false), "it goes with the work");
    }

    #[test]
    fn restarts_wait_longer_each_time() {
        let spec = spec(&[], &["a"], "Always");
        let mut records = fresh(&spec);
        records[0].state = ended(1);
        let now = Instant::now();
        let mut back_off = BackOff::default();
        back_off.ended("a", Duration::ZERO, now);
        assert_eq!(plan(&spec, &records, &back_off, now).start, ["a"], "the first restart is at once");
        let mut delays = Vec::new();
        for _ in 0..7 {
            back_off.restarted("a", now);
            back_off.ended("a", Duration::from_secs(1), now);
            let found = plan(&spec, &records, &back_off, now);
            assert!(found.start.is_empty());
            delays.push(found.looping[0].1.as_secs());
            assert_eq!(found.wake, Some(now + found.looping[0].1));
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
        back_off.ended("a", RESET_AFTER, now);
        assert_eq!(plan(&spec, &records, &back_off, now).start, ["a"]);
    }
}
