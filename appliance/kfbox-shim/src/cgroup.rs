//! Control groups of pods and containers, version 1 and 2: where they are, what they used, whether the kernel killed
//! something in them, and their removal. Creating them and setting limits is libcontainer's part.
//! Upstream: <https://docs.kernel.org/admin-guide/cgroup-v1/>, <https://docs.kernel.org/admin-guide/cgroup-v2.html>

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What the kernel is told of a container's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub cpu_shares: u64,
    /// Microseconds in each period.
    pub cpu_quota: Option<(u64, u64)>,
    pub memory_bytes: Option<u64>,
}

/// Where the hierarchies are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    /// Version 1: controllers of each mount.
    v1: Vec<(Vec<String>, PathBuf)>,
    v2: Option<PathBuf>,
}

/// What a cgroup has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_nanoseconds: u64,
    pub memory_bytes: u64,
    pub memory_working_set_bytes: u64,
    /// Without files' pages.
    pub memory_rss_bytes: u64,
    pub processes: u64,
}

impl Hierarchies {
    pub fn detect() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())
    }

    fn parse(mounts: &str) -> Self {
        let (mut v1, mut v2) = (Vec::new(), None);
        for line in mounts.lines() {
            let mut fields = line.split(' ');
            let (Some(_), Some(target), Some(kind), Some(options)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            match kind {
                "cgroup" => v1.push((options.split(',').map(str::to_owned).collect(), PathBuf::from(target))),
                "cgroup2" => v2 = Some(PathBuf::from(target)),
                _ => {}
            }
        }
        Self { v1, v2 }
    }

    /// True where the unified hierarchy carries the controllers.
    pub fn unified(&self) -> bool {
        self.v1.is_empty() && self.v2.is_some()
    }

    fn v1_dir(&self, controller: &str, cgroup: &str) -> Option<PathBuf> {
        let (_, mount) = self.v1.iter().find(|(controllers, _)| controllers.iter().any(|c| c == controller))?;
        Some(mount.join(cgroup.trim_start_matches('/')))
    }

    fn v2_dir(&self, cgroup: &str) -> Option<PathBuf> {
        Some(self.v2.as_ref()?.join(cgroup.trim_start_matches('/')))
    }

    fn dirs(&self, cgroup: &str) -> impl Iterator<Item = PathBuf> {
        let relative = PathBuf::from(cgroup.trim_start_matches('/'));
        self.v1.iter().map(|(_, mount)| mount).chain(&self.v2).map(move |mount| mount.join(&relative))
    }

    /// How often the kernel killed something in it for lack of memory.
    pub fn oom_kills(&self, cgroup: &str) -> u64 {
        let (dir, file) = if self.unified() {
            (self.v2_dir(cgroup), "memory.events")
        } else {
            (self.v1_dir("memory", cgroup), "memory.oom_control")
        };
        dir.and_then(|dir| fs::read_to_string(dir.join(file)).ok())
            .and_then(|text| value(&text, "oom_kill"))
            .unwrap_or(0)
    }

    pub fn processes(&self, cgroup: &str) -> Vec<i32> {
        let mut all: Vec<i32> = self
            .dirs(cgroup)
            .filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Moves this process into the cgroup, which is made where it is missing.
    pub fn enter(&self, cgroup: &str) -> io::Result<()> {
        let me = std::process::id().to_string();
        for dir in self.dirs(cgroup) {
            fs::create_dir_all(&dir)?;
            // A new cpuset takes nobody before it has processors and memory.
            inherit_cpuset(&dir);
            fs::write(dir.join("cgroup.procs"), &me)?;
        }
        Ok(())
    }

    /// Changes the limits of a container that runs.
    pub fn limit(&self, cgroup: &str, limits: &Limits) -> io::Result<()> {
        let write = |dir: Option<PathBuf>, file: &str, value: String| match dir {
            Some(dir) => fs::write(dir.join(file), value),
            None => Ok(()),
        };
        let Limits { cpu_shares, cpu_quota, memory_bytes } = *limits;
        if self.unified() {
            let dir = || self.v2_dir(cgroup);
            // As the runtime converts one into the other.
            let weight = 1 + cpu_shares.saturating_sub(2) * 9999 / 262_142;
            write(dir(), "cpu.weight", weight.to_string())?;
            let quota = cpu_quota.map_or("max".to_owned(), |(quota, period)| format!("{quota} {period}"));
            write(dir(), "cpu.max", quota)?;
            return write(dir(), "memory.max", memory_bytes.map_or("max".to_owned(), |bytes| bytes.to_string()));
        }
        let cpu = || self.v1_dir("cpu", cgroup);
        write(cpu(), "cpu.shares", cpu_shares.to_string())?;
        if let Some((_, period)) = cpu_quota {
            write(cpu(), "cpu.cfs_period_us", period.to_string())?;
        }
        write(cpu(), "cpu.cfs_quota_us", cpu_quota.map_or("-1".to_owned(), |(quota, _)| quota.to_string()))?;
        let bytes = memory_bytes.map_or("-1".to_owned(), |bytes| bytes.to_string());
        write(self.v1_dir("memory", cgroup), "memory.limit_in_bytes", bytes)
    }

    /// Limits the processes and threads below a cgroup that is there already, as far as its hierarchy counts them.
    pub fn limit_processes(&self, cgroup: &str, limit: i64) -> io::Result<()> {
        let dir = if self.unified() { self.v2_dir(cgroup) } else { self.v1_dir("pids", cgroup) };
        dir.map_or(Ok(()), |dir| fs::write(dir.join("pids.max"), limit.to_string()))
    }

    pub fn usage(&self, cgroup: &str) -> Option<Usage> {
        if self.unified() {
            let dir = self.v2_dir(cgroup)?;
            let cpu = fs::read_to_string(dir.join("cpu.stat")).ok()?;
            let memory = number(&dir.join("memory.current"));
            let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
            let inactive = value(&stat, "inactive_file");
            return Some(Usage {
                cpu_nanoseconds: value(&cpu, "usage_usec").unwrap_or(0).saturating_mul(1000),
                memory_bytes: memory,
                memory_working_set_bytes: memory.saturating_sub(inactive.unwrap_or(0)),
                memory_rss_bytes: value(&stat, "anon").unwrap_or(0),
                processes: number(&dir.join("pids.current")),
            });
        }
        let memory_dir = self.v1_dir("memory", cgroup)?;
        let memory = number(&memory_dir.join("memory.usage_in_bytes"));
        let stat = fs::read_to_string(memory_dir.join("memory.stat")).ok()?;
        Some(Usage {
            cpu_nanoseconds: self.v1_dir("cpuacct", cgroup).map_or(0, |dir| number(&dir.join("cpuacct.usage"))),
            memory_bytes: memory,
            memory_working_set_bytes: memory.saturating_sub(value(&stat, "total_inactive_file").unwrap_or(0)),
            memory_rss_bytes: value(&stat, "total_rss").unwrap_or(0),
            processes: self.v1_dir("pids", cgroup).map_or(0, |dir| number(&dir.join("pids.current"))),
        })
    }

    /// Removes the cgroup and those below it, from the leaves up. A group that still holds a process stays, and is
    /// reported.
    pub fn remove(&self, cgroup: &str) -> io::Result<()> {
        let mut outcome = Ok(());
        for dir in self.dirs(cgroup) {
            if let Err(error) = remove_tree(&dir) {
                outcome = Err(error);
            }
        }
        outcome
    }

    /// Names of the cgroups right below this one, in any hierarchy.
    pub fn children(&self, cgroup: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .dirs(cgroup)
            .filter_map(|dir| fs::read_dir(dir).ok())
            .flatten()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

fn inherit_cpuset(dir: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let path = dir.join(file);
        let (Ok(own), Some(parent)) = (fs::read_to_string(&path), dir.parent()) else { return };
        // Version 2 inherits by itself, and its root has no such file.
        let Ok(above) = fs::read_to_string(parent.join(file)) else { return };
        if own.trim().is_empty() && above.trim().is_empty() {
            inherit_cpuset(parent);
        }
        if own.trim().is_empty() {
            let above = fs::read_to_string(parent.join(file)).unwrap_or(above);
            let _ = fs::write(&path, above.trim());
        }
    }
}

/// What went in the meantime is no failure: a shim and the daemon may both be removing.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let absent = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
    if fs::remove_dir(dir).or_else(absent).is_ok() {
        return Ok(());
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir).or_else(absent)
}

fn number(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The number after `key` in a file of `key number` lines.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
        cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
        cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";

    #[test]
    fn a_hybrid_machine_is_version_one() {
        let found = Hierarchies::parse(HYBRID);
        assert!(!found.unified());
        assert_eq!(found.v1_dir("memory", "/k/pod1"), Some("/sys/fs/cgroup/memory/k/pod1".into()));
        assert_eq!(found.v1_dir("pids", "/k/pod1"), None);
        assert_eq!(found.dirs("k").count(), 3);
    }

    #[test]
    fn a_unified_machine_is_version_two() {
        let found = Hierarchies::parse("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n");
        assert!(found.unified());
        assert_eq!(found.v2_dir("/k"), Some("/sys/fs/cgroup/k".into()));
    }

    #[test]
    fn counters_are_found_by_whole_name() {
        assert_eq!(value("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(value("low 0\noom 1\noom_kill 2\n", "oom_kill"), Some(2));
        assert_eq!(value("oom_kill_disable 1\n", "oom_kill"), None);
    }
}
