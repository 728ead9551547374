//! Use of processor and memory: the node's, its pods' and their containers'.
//!
//! Guarantees: nothing is measured while nobody asks, but for one mark when a container starts; whoever asks again within
//! [`FRESH`] gets the same answer. What is remembered is one mark for each running container and one answer.
//! Upstream: <https://kubernetes.io/docs/tasks/debug/debug-cluster/resource-metrics-pipeline/>

use crate::cgroup::Usage;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// An answer is given again for this long: clients that poll together cost one measurement.
const FRESH: Duration = Duration::from_secs(5);
/// A mark older than this says nothing about now, so a new one is set before measuring.
const STALE: Duration = Duration::from_secs(120);
/// The window of a measurement that has no mark to start from.
const SHORT: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Thousand-millionths of one processor, on average over the window.
    pub cpu_nanocores: u64,
    /// Since the beginning.
    pub cpu_nanoseconds: u64,
    pub memory_bytes: u64,
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    pub processes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerUsage {
    pub name: String,
    pub id: String,
    pub image: String,
    pub cgroup: String,
    /// RFC 3339.
    pub started_at: String,
    pub used: Figures,
}

/// Bytes since the pod's network was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub received: u64,
    pub sent: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodUsage {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// RFC 3339.
    pub started_at: String,
    pub used: Figures,
    /// None for a pod in the host's network.
    pub traffic: Option<Traffic>,
    pub containers: Vec<ContainerUsage>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeUsage {
    /// RFC 3339.
    pub timestamp: String,
    pub window: Duration,
    pub used: Figures,
    pub pods: Vec<PodUsage>,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Instant,
    cpu_nanoseconds: u64,
}

/// What was read at one time: the node's use, and that of cgroups by name.
pub struct Reading {
    pub at: Instant,
    pub node: Usage,
    pub cgroups: HashMap<String, Usage>,
}

#[derive(Default)]
struct State {
    /// When each running container began.
    began: HashMap<String, Mark>,
    /// The last reading, from which the next window counts.
    earlier: Option<(Mark, HashMap<String, Mark>)>,
    answer: Option<(Instant, Arc<NodeUsage>)>,
}

#[derive(Default)]
pub struct Meter {
    state: Mutex<State>,
    /// Held while measuring, so that those who ask meanwhile get that answer.
    turn: tokio::sync::Mutex<()>,
}

impl Meter {
    /// A container's cgroup is there now; `used` is what it used before, if it is not new.
    pub fn began(&self, cgroup: &str, used: Option<Usage>) {
        let mark = Mark { at: Instant::now(), cpu_nanoseconds: used.map_or(0, |u| u.cpu_nanoseconds) };
        self.state.lock().began.insert(cgroup.into(), mark);
    }

    pub fn ended(&self, cgroup: &str) {
        self.state.lock().began.remove(cgroup);
    }

    /// The answer of a moment ago, or one made by `describe` from what `read` reads now.
    pub async fn measure<R>(&self, read: impl Fn() -> R, describe: impl FnOnce(&Window) -> NodeUsage) -> Arc<NodeUsage>
    where
        R: Future<Output = Reading>,
    {
        let _turn = self.turn.lock().await;
        if let Some((at, answer)) = &self.state.lock().answer
            && at.elapsed() < FRESH
        {
            return answer.clone();
        }
        let stale = self.state.lock().earlier.as_ref().is_none_or(|(mark, _)| mark.at.elapsed() > STALE);
        if stale {
            let reading = read().await;
            self.state.lock().earlier = Some(marks(&reading));
            tokio::time::sleep(SHORT).await;
        }
        let reading = read().await;
        let mut state = self.state.lock();
        let next = marks(&reading);
        let earlier = state.earlier.replace(next);
        let window = Window { reading, earlier, began: &state.began };
        let answer = Arc::new(describe(&window));
        state.answer = Some((Instant::now(), answer.clone()));
        answer
    }
}

fn marks(reading: &Reading) -> (Mark, HashMap<String, Mark>) {
    let mark = |usage: &Usage| Mark { at: reading.at, cpu_nanoseconds: usage.cpu_nanoseconds };
    (mark(&reading.node), reading.cgroups.iter().map(|(name, usage)| (name.clone(), mark(usage))).collect())
}

/// A reading, and what to compare it with.
pub struct Window<'a> {
    reading: Reading,
    earlier: Option<(Mark, HashMap<String, Mark>)>,
    began: &'a HashMap<String, Mark>,
}

impl Window<'_> {
    pub fn length(&self) -> Duration {
        self.earlier.as_ref().map_or(Duration::ZERO, |(mark, _)| self.reading.at.duration_since(mark.at))
    }

    pub fn node(&self) -> Figures {
        figures(&self.reading.node, self.reading.at, self.earlier.as_ref().map(|(mark, _)| *mark))
    }

    /// None for a cgroup that could not be read.
    pub fn cgroup(&self, name: &str) -> Option<Figures> {
        let usage = self.reading.cgroups.get(name)?;
        let before = self.earlier.as_ref().and_then(|(_, marks)| marks.get(name)).or_else(|| self.began.get(name));
        Some(figures(usage, self.reading.at, before.copied()))
    }
}

fn figures(usage: &Usage, at: Instant, before: Option<Mark>) -> Figures {
    let rate = before.map_or(0, |before| {
        let used = u128::from(usage.cpu_nanoseconds.saturating_sub(before.cpu_nanoseconds));
        let passed = at.saturating_duration_since(before.at).as_nanos();
        u64::try_from((used * 1_000_000_000).checked_div(passed).unwrap_or(0)).unwrap_or(u64::MAX)
    });
    Figures {
        cpu_nanocores: rate,
        cpu_nanoseconds: usage.cpu_nanoseconds,
        memory_bytes: usage.memory_bytes,
        memory_working_set_bytes: usage.memory_working_set_bytes,
        memory_rss_bytes: usage.memory_rss_bytes,
        processes: usage.processes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn used(cpu_nanoseconds: u64) -> Usage {
        Usage { cpu_nanoseconds, memory_working_set_bytes: 7, ..Usage::default() }
    }

    #[test]
    fn a_rate_is_what_was_used_over_the_time_that_passed() {
        let at = Instant::now();
        let before = Mark { at, cpu_nanoseconds: 1_000_000_000 };
        let later = at + Duration::from_secs(2);
        assert_eq!(figures(&used(2_000_000_000), later, Some(before)).cpu_nanocores, 500_000_000);
        assert_eq!(figures(&used(0), later, Some(before)).cpu_nanocores, 0, "a counter that went back");
        assert_eq!(figures(&used(2_000_000_000), at, Some(before)).cpu_nanocores, 0, "no time");
        assert_eq!(figures(&used(5), later, None).cpu_nanocores, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_is_known_from_its_start_and_answers_are_shared() {
        let meter = Meter::default();
        let reads = AtomicU64::new(0);
        meter.began("c", None);
        let read = || {
            let n = reads.fetch_add(1, Ordering::Relaxed);
            // Not on the first reading: the container starts after it.
            let cgroups = if n == 0 { HashMap::new() } else { HashMap::from([("c".to_owned(), used(1_000))]) };
            std::future::ready(Reading { at: Instant::now() + Duration::from_millis(n), node: used(n), cgroups })
        };
        let describe = |window: &Window| NodeUsage {
            timestamp: String::new(),
            window: window.length(),
            used: window.cgroup("c").unwrap(),
            pods: Vec::new(),
        };
        let first = meter.measure(read, describe).await;
        assert!(first.used.cpu_nanocores > 0 && first.used.memory_working_set_bytes == 7, "{first:?}");
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        let (second, third) = tokio::join!(meter.measure(read, describe), meter.measure(read, describe));
        assert!(Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&first, &third));
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        meter.ended("c");
        assert!(meter.state.lock().began.is_empty());
    }
}
