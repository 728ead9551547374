//! When each of a container's probes is due and what its answers mean. Pure.
//!
//! Until the first success, startup and readiness probes are also asked in between, at first after 0.1 s: a server that is
//! up is in use at once. Only answers a period apart count as failures, as upstream counts them.
//! Upstream: <https://kubernetes.io/docs/concepts/workloads/pods/probes/>

use super::check::Action;
use k8s_openapi::api::core::v1::{Container, Probe};
use std::time::Duration;
use tokio::time::Instant;

const FIRST_RETRY: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Startup,
    Liveness,
    Readiness,
}

impl Which {
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to tell.
    Quiet,
    /// A failure to tell of.
    Told,
    /// The container has to go, with this grace if the probe has its own.
    Kill(Option<Duration>),
}

struct Entry {
    which: Which,
    action: Action,
    period: Duration,
    timeout: Duration,
    need: u32,
    allow: u32,
    grace: Option<Duration>,
    successes: u32,
    failures: u32,
    passed: bool,
    retry: Duration,
    next: Instant,
    counts_from: Instant,
    asked: bool,
}

pub struct Probing {
    entries: Vec<Entry>,
    started: bool,
}

impl Probing {
    pub fn new(container: &Container, now: Instant) -> Self {
        let probes = [
            (Which::Startup, &container.startup_probe),
            (Which::Liveness, &container.liveness_probe),
            (Which::Readiness, &container.readiness_probe),
        ];
        let entries: Vec<Entry> =
            probes.into_iter().filter_map(|(which, probe)| entry(which, probe.as_ref()?, now)).collect();
        let started = !entries.iter().any(|e| e.which == Which::Startup);
        Self { entries, started }
    }

    pub fn started(&self) -> bool {
        self.started
    }

    /// Passes its readiness probe, if it has one.
    pub fn ready(&self) -> bool {
        self.entries.iter().filter(|e| e.which == Which::Readiness).all(|e| e.passed)
    }

    /// Takes over what is known from before.
    pub fn assume(&mut self, started: bool, ready: bool) {
        self.started |= started;
        for entry in &mut self.entries {
            if entry.which == Which::Readiness {
                entry.passed |= ready;
            }
        }
    }

    /// What to ask next, and when: each probe that is not under way.
    pub fn take_due(&mut self, now: Instant) -> Vec<(Which, Action, Instant, Duration)> {
        let started = self.started;
        let allowed = |which| if which == Which::Startup { !started } else { started };
        self.entries
            .iter_mut()
            .filter(|e| !e.asked && allowed(e.which))
            .map(|e| {
                e.asked = true;
                (e.which, e.action.clone(), e.next.max(now), e.timeout)
            })
            .collect()
    }

    pub fn answered(&mut self, which: Which, good: bool, now: Instant) -> Verdict {
        let Some(entry) = self.entries.iter_mut().find(|e| e.which == which) else { return Verdict::Quiet };
        entry.asked = false;
        if good {
            entry.failures = 0;
            entry.successes += 1;
            if entry.successes >= entry.need {
                entry.passed = true;
                self.started |= which == Which::Startup;
            }
            entry.next = now + entry.period;
            return Verdict::Quiet;
        }
        entry.successes = 0;
        let quick = !entry.passed && which != Which::Liveness;
        entry.next = now + if quick { entry.retry.min(entry.period) } else { entry.period };
        entry.retry = (entry.retry * 2).min(entry.period);
        if now < entry.counts_from {
            return Verdict::Quiet;
        }
        entry.counts_from = now + entry.period;
        entry.failures += 1;
        if entry.failures < entry.allow {
            return Verdict::Told;
        }
        if which == Which::Readiness {
            entry.passed = false;
            return Verdict::Told;
        }
        Verdict::Kill(entry.grace)
    }
}

fn entry(which: Which, probe: &Probe, now: Instant) -> Option<Entry> {
    let action = Action::of_probe(probe)?;
    let positive = |value: Option<i32>, default: u32| {
        value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
    };
    let seconds = |value: Option<i32>, default| Duration::from_secs(u64::from(positive(value, default)));
    let first = now + Duration::from_secs(probe.initial_delay_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0));
    Some(Entry {
        which,
        action,
        period: seconds(probe.period_seconds, 10),
        timeout: seconds(probe.timeout_seconds, 1),
        need: positive(probe.success_threshold, 1),
        allow: positive(probe.failure_threshold, 3),
        grace: probe.termination_grace_period_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs),
        successes: 0,
        failures: 0,
        passed: false,
        retry: FIRST_RETRY,
        next: first,
        counts_from: first,
        asked: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::{api::core::v1::TCPSocketAction, apimachinery::pkg::util::intstr::IntOrString};

    fn probe(failures: i32) -> Probe {
        Probe {
            tcp_socket: Some(TCPSocketAction { host: None, port: IntOrString::Int(1) }),
            failure_threshold: Some(failures),
            period_seconds: Some(1),
            ..Probe::default()
        }
    }

    fn kinds(due: &[(Which, Action, Instant, Duration)]) -> Vec<Which> {
        due.iter().map(|d| d.0).collect()
    }

    #[test]
    fn the_others_wait_for_startup() {
        let now = Instant::now();
        let container = Container {
            startup_probe: Some(probe(2)),
            liveness_probe: Some(probe(1)),
            readiness_probe: Some(probe(1)),
            ..Container::default()
        };
        let mut probing = Probing::new(&container, now);
        assert_eq!(kinds(&probing.take_due(now)), [Which::Startup]);
        assert!(probing.take_due(now).is_empty(), "asked once at a time");
        assert_eq!(probing.answered(Which::Startup, false, now), Verdict::Told);
        let soon = now + Duration::from_millis(300);
        assert_eq!(probing.take_due(soon)[0].2, soon);
        assert_eq!(probing.answered(Which::Startup, false, soon), Verdict::Quiet, "too soon to count");
        let later = now + Duration::from_secs(1);
        probing.take_due(later);
        assert_eq!(probing.answered(Which::Startup, true, later), Verdict::Quiet);
        assert!(probing.started() && !probing.ready());
        assert_eq!(kinds(&probing.take_due(later)), [Which::Liveness, Which::Readiness]);
        probing.answered(Which::Readiness, true, later);
        assert!(probing.ready());
        assert_eq!(probing.answered(Which::Liveness, false, later), Verdict::Kill(None));
    }

    #[test]
    fn readiness_comes_and_goes_by_threshold() {
        let now = Instant::now();
        let container = Container { readiness_probe: Some(probe(2)), ..Container::default() };
        let mut probing = Probing::new(&container, now);
        let at = |n| now + Duration::from_secs(n);
        probing.answered(Which::Readiness, true, at(0));
        probing.answered(Which::Readiness, false, at(1));
        assert!(probing.ready());
        probing.answered(Which::Readiness, false, at(2));
        assert!(!probing.ready());
        probing.answered(Which::Readiness, true, at(3));
        assert!(probing.ready());
        assert!(Probing::new(&Container::default(), now).ready());
    }
}
