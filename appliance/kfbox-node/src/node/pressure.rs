//! Whether the machine runs short, and who goes first then. Pure, but for [`observe`]'s look at the machine.
//! Upstream: <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/>

use super::machine::{self, Disk};
use crate::{pod::admit::Conditions, quantity};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// When pods are evicted; by default as upstream's kubelet does, but for the disk, which on people's own machines is
/// often nearly full: 5 % as in k3s, in place of 10 % and 15 %.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvictionConfig {
    pub memory_bytes: u64,
    /// Of the file system with the pods' data.
    pub node_fs_percent: u64,
    /// Of the file system with the images.
    pub image_fs_percent: u64,
    /// Of either.
    pub inodes_percent: u64,
    /// Upstream sets none.
    pub pids_percent: u64,
    /// How long a condition stays after its cause went, so that it does not flap.
    pub transition: Duration,
    pub interval: Duration,
}

impl Default for EvictionConfig {
    fn default() -> Self {
        Self {
            memory_bytes: 100 << 20,
            node_fs_percent: 5,
            image_fs_percent: 5,
            inodes_percent: 5,
            pids_percent: 0,
            transition: Duration::from_secs(300),
            interval: Duration::from_secs(10),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Signal {
    Memory,
    Disk,
    Inodes,
    Pids,
}

impl Signal {
    /// As messages name what is short.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Pids => "pids",
        }
    }
}

/// A signal below its threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortage {
    pub signal: Signal,
    pub available: u64,
    pub threshold: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Observed {
    pub memory_available: u64,
    pub node_fs: Disk,
    pub image_fs: Disk,
    pub pids_available: u64,
    pub max_pids: u64,
}

pub fn observe(data_dir: &Path) -> Observed {
    let node = machine::usage();
    let total = machine::meminfo("MemTotal:").unwrap_or(0);
    let max_pids = machine::max_pids();
    Observed {
        memory_available: total.saturating_sub(node.memory_working_set_bytes),
        node_fs: Disk::of(data_dir),
        image_fs: Disk::of(&data_dir.join("images")),
        pids_available: max_pids.saturating_sub(node.processes),
        max_pids,
    }
}

/// What runs short, memory first.
pub fn shortages(config: &EvictionConfig, now: &Observed) -> Vec<Shortage> {
    let share =
        |total: u64, percent: u64| u64::try_from(u128::from(total) * u128::from(percent) / 100).unwrap_or(u64::MAX);
    let inodes = |disk: &Disk| (disk.inodes_free, share(disk.inodes, config.inodes_percent));
    let of = |signal, (available, threshold): (u64, u64)| Shortage { signal, available, threshold };
    let all = [
        of(Signal::Memory, (now.memory_available, config.memory_bytes)),
        of(Signal::Disk, (now.node_fs.free, share(now.node_fs.total, config.node_fs_percent))),
        of(Signal::Disk, (now.image_fs.free, share(now.image_fs.total, config.image_fs_percent))),
        of(Signal::Inodes, inodes(&now.node_fs)),
        of(Signal::Inodes, inodes(&now.image_fs)),
        of(Signal::Pids, (now.pids_available, share(now.max_pids, config.pids_percent))),
    ];
    let mut short: Vec<Shortage> = Vec::new();
    for shortage in all.into_iter().filter(|s| s.available < s.threshold) {
        if !short.iter().any(|known| known.signal == shortage.signal) {
            short.push(shortage);
        }
    }
    short
}

/// When each condition was last seen.
#[derive(Debug, Default)]
pub struct Seen {
    memory: Option<Instant>,
    disk: Option<Instant>,
    pids: Option<Instant>,
}

impl Seen {
    /// The conditions that hold: those seen now, and those seen a while ago.
    pub fn conditions(
        &mut self,
        short: &[Shortage],
        now: Instant,
        transition: Duration,
        before: Conditions,
    ) -> Conditions {
        for shortage in short {
            match shortage.signal {
                Signal::Memory => self.memory = Some(now),
                Signal::Disk | Signal::Inodes => self.disk = Some(now),
                Signal::Pids => self.pids = Some(now),
            }
        }
        let holds = |seen: Option<Instant>| seen.is_some_and(|at| at == now || now.duration_since(at) < transition);
        Conditions {
            memory_pressure: holds(self.memory),
            disk_pressure: holds(self.disk),
            pid_pressure: holds(self.pids),
            ..before
        }
    }
}

/// A pod that may be evicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub uid: String,
    pub priority: i32,
    pub used: u64,
    pub requested: u64,
    /// Use and request of each container, by name.
    pub containers: Vec<(String, u64, u64)>,
}

/// In the order in which they go: who uses more than it asked for, then who matters least, then who uses most beyond what
/// it asked for.
pub fn rank(candidates: &mut [Candidate], signal: Signal) {
    let beyond = |c: &Candidate| i128::from(c.used) - i128::from(c.requested);
    candidates.sort_by_key(|c| {
        let within = signal != Signal::Pids && beyond(c) <= 0;
        (within, c.priority, -beyond(c))
    });
}

/// Upstream's words.
pub fn message(shortage: &Shortage, candidate: &Candidate) -> String {
    let resource = shortage.signal.resource();
    let amount = |n: u64| match shortage.signal {
        Signal::Memory | Signal::Disk => quantity::binary(n),
        Signal::Inodes | Signal::Pids => n.to_string(),
    };
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        amount(shortage.threshold),
        amount(shortage.available)
    );
    for (name, used, requested) in &candidate.containers {
        if used > requested {
            text.push_str(&format!(
                "Container {name} was using {}, request is {}, has larger consumption of {resource}. ",
                amount(*used),
                amount(*requested)
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn plenty() -> Observed {
        let disk = Disk { free: 50 * GIB, total: 100 * GIB, inodes_free: 500, inodes: 1000 };
        Observed { memory_available: GIB, node_fs: disk, image_fs: disk, pids_available: 1000, max_pids: 2000 }
    }

    #[test]
    fn thresholds_are_upstreams_but_for_the_disk() {
        let config = EvictionConfig::default();
        assert_eq!(shortages(&config, &plenty()), []);
        let mut now = plenty();
        now.memory_available = (100 << 20) - 1;
        now.image_fs.free = 5 * GIB - 1;
        now.node_fs.inodes_free = 49;
        now.pids_available = 0;
        let found = shortages(&config, &now);
        let signals: Vec<Signal> = found.iter().map(|s| s.signal).collect();
        assert_eq!(signals, [Signal::Memory, Signal::Disk, Signal::Inodes], "process numbers have no threshold");
        assert_eq!(found[0].threshold, 100 << 20);
        now = plenty();
        now.memory_available = 100 << 20;
        assert_eq!(shortages(&config, &now), [], "at the threshold is not below it");
        assert_eq!(
            shortages(&config, &Observed { memory_available: GIB, ..Observed::default() }),
            [],
            "no disk is no shortage"
        );
    }

    #[test]
    fn a_condition_stays_for_a_while() {
        let mut seen = Seen::default();
        let (start, before) = (Instant::now(), Conditions { app_armor: true, ..Conditions::default() });
        let short = [Shortage { signal: Signal::Inodes, available: 0, threshold: 1 }];
        let period = Duration::from_secs(300);
        let now = seen.conditions(&short, start, period, before);
        assert!(now.disk_pressure && !now.memory_pressure && now.app_armor);
        assert!(seen.conditions(&[], start + Duration::from_secs(299), period, now).disk_pressure);
        assert!(!seen.conditions(&[], start + Duration::from_secs(300), period, now).disk_pressure);
        assert!(seen.conditions(&short, start, Duration::ZERO, now).disk_pressure, "seen now holds now");
    }

    #[test]
    fn the_first_to_go_is_who_took_more_than_it_asked_for() {
        let pod = |uid: &str, priority, used, requested| Candidate {
            uid: uid.into(),
            priority,
            used,
            requested,
            containers: Vec::new(),
        };
        let mut all = vec![
            pod("modest", 0, 10, 20),
            pod("important", 9, 100, 0),
            pod("small", 0, 30, 20),
            pod("large", 0, 90, 20),
            pod("modest-least", -1, 5, 20),
        ];
        rank(&mut all, Signal::Memory);
        let order: Vec<&str> = all.iter().map(|c| c.uid.as_str()).collect();
        assert_eq!(order, ["large", "small", "important", "modest-least", "modest"]);
    }

    #[test]
    fn messages_are_upstreams() {
        let shortage = Shortage { signal: Signal::Memory, available: 50 << 20, threshold: 100 << 20 };
        let candidate = Candidate {
            uid: "u".into(),
            priority: 0,
            used: 0,
            requested: 0,
            containers: vec![("greedy".into(), 3 << 20, 1 << 20), ("modest".into(), 1, 2)],
        };
        assert_eq!(
            message(&shortage, &candidate),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container greedy was \
             using 3Mi, request is 1Mi, has larger consumption of memory. "
        );
    }
}
