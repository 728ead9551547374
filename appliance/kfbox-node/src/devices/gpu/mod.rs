//! The machine's own accelerators, without a device plugin: NVIDIA's by NVML, AMD's by sysfs. What is found becomes the
//! node's capacity, and what a pod is given becomes device nodes and driver files in its containers.
//!
//! A machine without a driver is the normal case: nothing is found, and nothing is said about it but by `kfbox gpu`.
//! A device plugin that registers a resource of these names takes it over.
//! Upstream: <https://github.com/NVIDIA/k8s-device-plugin> for names, time-slicing, MIG strategies and which errors make a
//! card unhealthy; <https://github.com/ROCm/k8s-device-plugin>.

mod amd;
mod instances;
mod nvidia;

use super::{
    DeviceError, cdi,
    edits::{DeviceNode, Edits, Mount},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

pub use nvidia::Watch;

pub const NVIDIA: &str = "nvidia.com/gpu";
pub const AMD: &str = "amd.com/gpu";
/// Between a card's id and the number of its share.
const SHARE: &str = "::";
/// Where the driver's files are in a container; the images of NVIDIA's own look there.
const DRIVER: &str = "/usr/local/nvidia";

/// How MIG instances are offered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MigStrategy {
    /// A card in MIG mode is a card.
    #[default]
    None,
    /// Its instances are `nvidia.com/gpu`.
    Single,
    /// Its instances are `nvidia.com/mig-PROFILE`.
    Mixed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuConfig {
    pub nvidia: bool,
    pub amd: bool,
    /// NVML; by default as the machine's linker finds `libnvidia-ml.so.1`.
    pub library: Option<PathBuf>,
    /// So many pods share a card (or a MIG instance), taking turns; nothing keeps them from each other's memory.
    pub shares: u32,
    pub mig: MigStrategy,
    /// Where the drivers' files and device nodes are, and sysfs and proc.
    pub root: PathBuf,
}

impl Default for GpuConfig {
    fn default() -> Self {
        Self { nvidia: true, amd: true, library: None, shares: 1, mig: MigStrategy::None, root: "/".into() }
    }
}

/// A card, or a MIG instance of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    pub vendor: &'static str,
    /// As the maker numbers it: `0`, or `0:1` for an instance.
    pub index: String,
    pub id: String,
    pub name: String,
    pub memory_bytes: u64,
    pub driver: String,
    pub pci: String,
    /// What pods ask for to get it.
    pub resource: String,
    /// Why it is given to nobody; empty when it is well.
    pub fault: String,
    /// What a container needs of the host's device nodes.
    #[serde(skip)]
    pub nodes: Vec<PathBuf>,
}

/// What one look at the machine found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    pub gpus: Vec<Gpu>,
    /// Of each vendor, why nothing was found.
    pub absent: BTreeMap<&'static str, String>,
}

impl Inventory {
    /// Blocking.
    pub fn look(config: &GpuConfig, watch: Option<&Watch>) -> Self {
        let mut found = Self::default();
        let vendors = [
            ("nvidia", config.nvidia, nvidia::look as fn(&GpuConfig, Option<&Watch>) -> Result<Vec<Gpu>, String>),
            ("amd", config.amd, |config, _| amd::look(config)),
        ];
        for (vendor, wanted, look) in vendors {
            let looked = if wanted { look(config, watch) } else { Err("switched off in the configuration".into()) };
            match looked {
                Ok(gpus) => found.gpus.extend(gpus),
                Err(why) => drop(found.absent.insert(vendor, why)),
            }
        }
        found
    }

    /// By resource, the ids to give and whether each is healthy.
    pub fn resources(&self, shares: u32) -> BTreeMap<String, BTreeMap<String, bool>> {
        let mut all: BTreeMap<String, BTreeMap<String, bool>> = BTreeMap::new();
        for gpu in &self.gpus {
            let ids = all.entry(gpu.resource.clone()).or_default();
            if shares <= 1 || gpu.vendor != "nvidia" {
                ids.insert(gpu.id.clone(), gpu.fault.is_empty());
            } else {
                ids.extend((0..shares).map(|n| (format!("{}{SHARE}{n}", gpu.id), gpu.fault.is_empty())));
            }
        }
        all
    }

    /// What containers with these ids need. Blocking.
    pub fn edits(&self, config: &GpuConfig, cdi_dirs: &[PathBuf], ids: &[String]) -> Result<Edits, DeviceError> {
        let cards: BTreeSet<&str> = ids.iter().map(|id| id.split(SHARE).next().unwrap_or(id)).collect();
        let chosen: Vec<&Gpu> = self.gpus.iter().filter(|gpu| cards.contains(gpu.id.as_str())).collect();
        let mut edits = Edits::default();
        let mut nodes = BTreeSet::new();
        let Some(first) = chosen.first() else { return Ok(edits) };
        let nvidia = first.vendor == "nvidia";
        for gpu in &chosen {
            // What the maker's own tools say is better than what can be guessed.
            let kind = if nvidia { NVIDIA } else { AMD };
            let named = [&gpu.id, &gpu.index].map(|name| format!("{kind}={name}"));
            match named.into_iter().find(|name| cdi::has(cdi_dirs, name)) {
                Some(name) => edits.cdi.push(name),
                None => nodes.extend(gpu.nodes.iter().cloned()),
            }
        }
        let ids: Vec<&str> = chosen.iter().map(|gpu| gpu.id.as_str()).collect();
        if nvidia {
            edits.env.push(format!("NVIDIA_VISIBLE_DEVICES={}", ids.join(",")));
        }
        if !nodes.is_empty() {
            if nvidia {
                nodes.extend(
                    nvidia::COMMON.map(PathBuf::from).into_iter().filter(|node| under(&config.root, node).exists()),
                );
                edits.mounts = nvidia::driver_files(&config.root, &first.driver);
                edits.library_dirs = vec![Path::new(DRIVER).join("lib64")];
            }
            edits.device_nodes = nodes.iter().map(|node| device(&config.root, node)).collect();
        }
        Ok(edits)
    }
}

fn device(root: &Path, node: &Path) -> DeviceNode {
    DeviceNode {
        path: node.into(),
        host_path: Some(under(root, node)),
        permissions: Some("rw".into()),
        ..DeviceNode::default()
    }
}

fn read_only(host: PathBuf, container: PathBuf) -> Mount {
    let options = ["ro", "nosuid", "nodev", "rbind"].map(String::from).to_vec();
    Mount { host_path: host, container_path: container, options, kind: None }
}

/// A path of the machine below the configured root.
fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// A small file's text, without its end.
fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(id: &str, vendor: &'static str, fault: &str) -> Gpu {
        Gpu {
            vendor,
            index: "0".into(),
            id: id.into(),
            name: "card".into(),
            memory_bytes: 1 << 30,
            driver: "1.2.3".into(),
            pci: String::new(),
            resource: if vendor == "amd" { AMD.into() } else { NVIDIA.into() },
            fault: fault.into(),
            nodes: vec![format!("/dev/{id}").into()],
        }
    }

    #[test]
    fn a_card_is_shared_by_as_many_as_the_configuration_says() {
        let found = Inventory {
            gpus: vec![gpu("GPU-a", "nvidia", ""), gpu("GPU-b", "nvidia", "Xid 79"), gpu("c", "amd", "")],
            ..Inventory::default()
        };
        let once = found.resources(1);
        assert_eq!(once[NVIDIA], BTreeMap::from([("GPU-a".to_owned(), true), ("GPU-b".to_owned(), false)]));
        let shared = found.resources(3);
        assert_eq!(shared[NVIDIA].iter().filter(|(_, healthy)| **healthy).count(), 3);
        assert_eq!((shared[NVIDIA].len(), shared[AMD].len()), (6, 1), "AMD's cards are not shared");
        // Two shares of one card are the card once.
        let ids = ["GPU-a::0", "GPU-a::2"].map(String::from);
        let edits = found.edits(&GpuConfig::default(), &[], &ids).unwrap();
        assert_eq!(edits.env, ["NVIDIA_VISIBLE_DEVICES=GPU-a"]);
        assert_eq!(edits.device_nodes.iter().filter(|node| node.path == Path::new("/dev/GPU-a")).count(), 1);
    }
}
