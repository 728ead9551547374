//! How much disk pods use, and whether that is more than they may: volumes in memory excepted, which the kernel limits.
//!
//! Guarantee: a measurement looks at a bounded number of files, follows no link and leaves no file system.
//! Upstream: <https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/#local-ephemeral-storage>

use crate::{oci::resources, pod::adopt::attempts, pod::launch::attempt_dir, quantity, volumes::PodDirs};
use k8s_openapi::{api::core::v1::PodSpec, apimachinery::pkg::api::resource::Quantity};
use std::{
    collections::{BTreeMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Files that one pod's measurement looks at; beyond, what was counted is taken for all. Some seconds of reading.
const MAX_FILES: usize = 1_000_000;
const RESOURCE: &str = "ephemeral-storage";

/// Bytes on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Used {
    pub volumes: BTreeMap<String, u64>,
    /// Writable layer and logs.
    pub containers: BTreeMap<String, u64>,
    pub files: u64,
}

impl Used {
    pub fn total(&self) -> u64 {
        self.volumes.values().chain(self.containers.values()).sum()
    }
}

/// Whether there is anything to hold the pod to.
pub fn is_limited(spec: &PodSpec) -> bool {
    let volumes = spec.volumes.iter().flatten().filter_map(|v| v.empty_dir.as_ref());
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers.any(|c| resources::limit(c, RESOURCE).is_some())
        || volumes.into_iter().any(|e| e.size_limit.is_some() && e.medium.as_deref() != Some("Memory"))
}

/// Looks at the pod's folders. Blocking.
pub fn measure(spec: &PodSpec, dirs: &PodDirs) -> Used {
    let mut walk = Walk { left: MAX_FILES, seen: HashSet::new(), files: 0 };
    let mut used = Used::default();
    for volume in spec.volumes.iter().flatten() {
        let Some(source) = &volume.empty_dir else { continue };
        if source.medium.as_deref() != Some("Memory") {
            used.volumes.insert(volume.name.clone(), walk.folder(&dirs.volume(volume)));
        }
    }
    for (_, container) in crate::pod::record::containers(spec) {
        let name = &container.name;
        let layer = attempts(&dirs.data, name).last().map(|n| attempt_dir(&dirs.data, name, *n).join("upper"));
        let bytes = layer.map_or(0, |layer| walk.folder(&layer)) + walk.folder(&dirs.data.join("logs").join(name));
        used.containers.insert(name.clone(), bytes);
    }
    used.files = walk.files;
    used
}

struct Walk {
    left: usize,
    /// Files with more than one name.
    seen: HashSet<(u64, u64)>,
    files: u64,
}

impl Walk {
    fn folder(&mut self, root: &Path) -> u64 {
        let Ok(meta) = fs::symlink_metadata(root) else { return 0 };
        let device = meta.dev();
        let mut bytes = size(&meta);
        let mut folders = vec![PathBuf::from(root)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if self.left == 0 {
                    return bytes;
                }
                self.left -= 1;
                // Of the entry itself: a link's target is not the pod's.
                let Ok(meta) = entry.metadata() else { continue };
                if meta.dev() != device {
                    continue;
                }
                self.files += 1;
                if meta.is_dir() {
                    folders.push(entry.path());
                } else if meta.nlink() > 1 && !self.seen.insert((meta.dev(), meta.ino())) {
                    continue;
                }
                bytes += size(&meta);
            }
        }
        bytes
    }
}

/// What is allotted: a file may have holes. The unit is the call's own, whatever the file system's is.
fn size(meta: &fs::Metadata) -> u64 {
    meta.blocks() * 512
}

/// Why the pod has to go, in upstream's words: a volume, the whole pod, or a container is above its limit.
pub fn violation(spec: &PodSpec, used: &Used) -> Option<String> {
    for volume in spec.volumes.iter().flatten() {
        let limit = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref());
        let (Some(limit), Some(bytes)) = (limit, used.volumes.get(&volume.name)) else { continue };
        if quantity::value(limit).and_then(|n| u64::try_from(n).ok()).is_some_and(|n| n > 0 && *bytes > n) {
            return Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {:?}. ", volume.name, limit.0));
        }
    }
    if let Some(limit) = pod_limit(spec)
        && used.total() > limit
    {
        let limit = quantity::binary(limit);
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "));
    }
    for container in &spec.containers {
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        let Some(Quantity(text)) = limits.and_then(|limits| limits.get(RESOURCE)) else { continue };
        let limit = resources::limit(container, RESOURCE).and_then(|n| u64::try_from(n).ok());
        let bytes = used.containers.get(&container.name).copied().unwrap_or(0);
        if limit.is_some_and(|limit| bytes > limit) {
            return Some(format!("Container {} exceeded its local ephemeral storage limit {text:?}. ", container.name));
        }
    }
    None
}

/// The sum of the containers' limits, or the largest init container's if that is more.
fn pod_limit(spec: &PodSpec) -> Option<u64> {
    let limit = |c| resources::limit(c, RESOURCE).and_then(|n| u64::try_from(n).ok());
    let sum = spec.containers.iter().filter_map(limit).reduce(u64::saturating_add);
    let init = spec.init_containers.iter().flatten().filter_map(limit).max();
    sum.max(init)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec() -> PodSpec {
        serde_json::from_value(json!({
            "containers": [
                { "name": "a", "resources": { "limits": { "ephemeral-storage": "1Mi" } } },
                { "name": "b", "resources": { "limits": { "ephemeral-storage": "3Mi" } } },
            ],
            "volumes": [
                { "name": "v", "emptyDir": { "sizeLimit": "1Mi" } },
                { "name": "free", "emptyDir": {} },
                { "name": "m", "emptyDir": { "medium": "Memory", "sizeLimit": "1" } },
            ],
        }))
        .unwrap()
    }

    #[test]
    fn what_is_on_disk_is_counted_once_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = PodDirs { data: dir.path().join("data"), run: dir.path().join("run") };
        let volume = dirs.data.join("volumes/v");
        let layer = attempt_dir(&dirs.data, "a", 1).join("upper/deep");
        let outside = dir.path().join("outside");
        for folder in [&volume, &layer, &outside, &dirs.data.join("logs/a"), &attempt_dir(&dirs.data, "a", 0)] {
            fs::create_dir_all(folder).unwrap();
        }
        let megabyte = vec![1; 1 << 20];
        fs::write(volume.join("one"), &megabyte).unwrap();
        fs::hard_link(volume.join("one"), volume.join("again")).unwrap();
        fs::write(outside.join("large"), vec![1; 4 << 20]).unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        fs::File::create(volume.join("sparse")).unwrap().set_len(1 << 30).unwrap();
        fs::write(layer.join("file"), &megabyte).unwrap();
        fs::write(dirs.data.join("logs/a/1.log"), &megabyte).unwrap();
        let used = measure(&spec(), &dirs);
        let near = |bytes: u64, whole: u64| bytes >= whole && bytes < whole + (64 << 10);
        assert!(near(used.volumes["v"], 1 << 20), "{used:?}");
        assert!(near(used.containers["a"], 2 << 20), "{used:?}");
        assert_eq!((used.containers["b"], used.volumes.contains_key("m")), (0, false));
    }

    #[test]
    fn limits_are_looked_at_volume_pod_container() {
        let spec = spec();
        assert!(is_limited(&spec));
        let used = |volume: u64, free: u64, a: u64| Used {
            volumes: BTreeMap::from([("v".into(), volume), ("free".into(), free)]),
            containers: BTreeMap::from([("a".into(), a)]),
            files: 0,
        };
        const MIB: u64 = 1 << 20;
        assert_eq!(violation(&spec, &used(MIB, MIB, MIB)), None);
        assert_eq!(
            violation(&spec, &used(MIB + 1, 0, 0)).unwrap(),
            "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". "
        );
        assert_eq!(
            violation(&spec, &used(0, 4 * MIB + 1, 0)).unwrap(),
            "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "
        );
        assert_eq!(
            violation(&spec, &used(0, 0, MIB + 1)).unwrap(),
            "Container a exceeded its local ephemeral storage limit \"1Mi\". "
        );
        let free: PodSpec = serde_json::from_value(json!({ "containers": [{ "name": "a" }] })).unwrap();
        assert!(!is_limited(&free) && violation(&free, &used(0, 1 << 40, 1 << 40)).is_none());
    }
}
