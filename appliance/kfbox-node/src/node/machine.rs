//! What the machine is and has, as its Node object tells.

use k8s_openapi::api::core::v1::NodeSystemInfo;
use std::{fs, path::Path};

#[derive(Debug, Clone)]
pub struct Machine {
    pub cpus: i64,
    pub memory_bytes: i64,
    pub storage_bytes: i64,
    pub info: NodeSystemInfo,
}

/// Below these shares of what there is, a pressure condition is true and the node takes no new pods; the kubelet's
/// defaults for eviction, but for the disk, which on people's own machines is often nearly full: 5 % as in k3s.
const MIN_MEMORY_BYTES: u64 = 100 << 20;
const MIN_DISK_PERCENT: u64 = 5;
const MIN_PIDS_PERCENT: u64 = 10;

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
            storage_bytes: i64::try_from(disk(data_dir).1).unwrap_or(i64::MAX),
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

/// What runs short: memory, disk, process numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

impl Pressure {
    pub fn now(data_dir: &Path) -> Self {
        let (free, total) = disk(data_dir);
        let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let pid_max = number("/proc/sys/kernel/pid_max").unwrap_or(u64::MAX);
        let running = fs::read_to_string("/proc/loadavg")
            .ok()
            .and_then(|text| text.split(' ').nth(3)?.split_once('/')?.1.parse::<u64>().ok())
            .unwrap_or(0);
        Self {
            memory: meminfo("MemAvailable:").is_some_and(|available| available < MIN_MEMORY_BYTES),
            disk: total > 0 && free.saturating_mul(100) < total.saturating_mul(MIN_DISK_PERCENT),
            pids: pid_max.saturating_sub(running).saturating_mul(100) < pid_max.saturating_mul(MIN_PIDS_PERCENT),
        }
    }
}

/// Bytes.
fn meminfo(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Free and total bytes of the file system of a folder.
fn disk(path: &Path) -> (u64, u64) {
    nix::sys::statvfs::statvfs(path)
        .map_or((0, 0), |s| (s.blocks_available() * s.fragment_size(), s.blocks() * s.fragment_size()))
}
