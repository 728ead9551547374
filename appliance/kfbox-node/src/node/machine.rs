//! What the machine is and has, as its Node object tells.

use crate::cgroup::Usage;
use k8s_openapi::api::core::v1::NodeSystemInfo;
use std::{fs, path::Path};

#[derive(Debug, Clone)]
pub struct Machine {
    pub cpus: i64,
    pub memory_bytes: i64,
    pub storage_bytes: i64,
    pub info: NodeSystemInfo,
}

/// The kernel shows its clocks to programs in hundredths of a second, on every architecture that this runs on.
const NANOSECONDS_A_TICK: u64 = 10_000_000;
impl Machine {
    pub fn of(data_dir: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let os_image = read("/etc/os-release")
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME=").map(|name| name.trim_matches('"').to_owned()));
        let memory = meminfo("MemTotal:").unwrap_or(0);
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        Self {
            cpus: i64::try_from(cpus).unwrap_or(1),
            memory_bytes: i64::try_from(memory).unwrap_or(i64::MAX),
            storage_bytes: i64::try_from(Disk::of(data_dir).total).unwrap_or(i64::MAX),
            info: NodeSystemInfo {
                architecture: match std::env::consts::ARCH {
                    "x86_64" => "amd64".into(),
                    "aarch64" => "arm64".into(),
                    other => other.into(),
                },
                boot_id: read("/proc/sys/kernel/random/boot_id"),
                container_runtime_version: concat!("kfbox://", env!("CARGO_PKG_VERSION")).into(),
                kernel_version: read("/proc/sys/kernel/osrelease"),
                kube_proxy_version: String::new(),
                kubelet_version: concat!("v1.36.2+kfbox-", env!("CARGO_PKG_VERSION")).into(),
                machine_id: read("/etc/machine-id"),
                operating_system: "linux".into(),
                os_image: os_image.unwrap_or_else(|| "Linux".into()),
                system_uuid: read("/sys/class/dmi/id/product_uuid"),
                ..NodeSystemInfo::default()
            },
        }
    }
}

/// What the whole machine uses: the kernel's own counters, which agree with its root cgroup on either version.
pub fn usage() -> Usage {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let total = meminfo("MemTotal:").unwrap_or(0);
    let used = total.saturating_sub(meminfo("MemFree:").unwrap_or(0));
    Usage {
        cpu_nanoseconds: busy_ticks(&stat).saturating_mul(NANOSECONDS_A_TICK),
        memory_bytes: used,
        memory_working_set_bytes: used.saturating_sub(meminfo("Inactive(file):").unwrap_or(0)),
        memory_rss_bytes: meminfo("AnonPages:").unwrap_or(0),
        processes: threads().unwrap_or(0),
    }
}

/// The first line's time of all processors that was neither idle nor waiting for a disk. Guests' time is in the users'.
fn busy_ticks(stat: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let numbers = line.split_ascii_whitespace().take(8).enumerate();
    numbers.filter(|(at, _)| !matches!(at, 3 | 4)).filter_map(|(_, n)| n.parse::<u64>().ok()).sum()
}

/// Processes and threads of the machine.
pub fn threads() -> Option<u64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').nth(3)?.split_once('/')?.1.parse().ok()
}

/// Bytes.
pub fn meminfo(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// A folder's file system: bytes and inodes, those free being what others than root may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    pub free: u64,
    pub total: u64,
    pub inodes_free: u64,
    pub inodes: u64,
}

impl Disk {
    pub fn of(path: &Path) -> Self {
        nix::sys::statvfs::statvfs(path).map_or(Self::default(), |s| Self {
            free: s.blocks_available() * s.fragment_size(),
            total: s.blocks() * s.fragment_size(),
            inodes_free: s.files_available(),
            inodes: s.files(),
        })
    }
}

pub fn max_pids() -> u64 {
    let text = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    text.trim().parse().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_used() {
        assert_eq!(busy_ticks("cpu  1 2 3 400 500 6 7 8 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n"), 27);
        assert_eq!(busy_ticks(""), 0);
        let now = usage();
        assert!(now.cpu_nanoseconds > 0 && now.memory_working_set_bytes > 0 && now.processes > 0, "{now:?}");
        assert!(now.memory_working_set_bytes <= now.memory_bytes);
    }
}
