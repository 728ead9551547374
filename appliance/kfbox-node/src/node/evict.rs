//! Keeps the machine from running out: conditions of the node, pods that go when memory or disk is short or when they use
//! more disk than they may, and images that nobody needs.
//!
//! Guarantee: a pod is told to go at most once a round; one that is part of the system never is. An image that was
//! imported is never removed, because nothing could bring it back.
//! Upstream: <https://kubernetes.io/docs/concepts/architecture/garbage-collection/#containers-images>

use super::{
    Node, NodeError,
    machine::Disk,
    pressure::{self, Candidate, Seen, Shortage, Signal},
    storage,
};
use crate::{
    images::{StoreError, blocking},
    oci::resources,
    pod::{
        admit::{Conditions, is_critical},
        context::{Change, Eviction},
        events::Level,
        record::{self, full_name, uid},
    },
    runtime::Handle,
};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kfbox_base::Tasks;
use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// How long a pod that was told to go may take before the machine is looked at again; as upstream.
const GONE: Duration = Duration::from_secs(30);
/// A pod's disk is measured again after the round's interval, or this many times as long as it took.
const REST: u32 = 20;

/// When images are removed; by default as upstream's kubelet does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageGcConfig {
    pub high_percent: u64,
    pub low_percent: u64,
    /// An image is kept for this long after it was first seen or last used.
    pub minimum_age: Duration,
    pub interval: Duration,
}

impl Default for ImageGcConfig {
    fn default() -> Self {
        Self {
            high_percent: 85,
            low_percent: 80,
            minimum_age: Duration::from_secs(120),
            interval: Duration::from_secs(300),
        }
    }
}

pub fn run(node: &Arc<Node>, conditions: watch::Sender<Conditions>, tasks: &Tasks) {
    let (node, shutdown) = (node.clone(), tasks.shutdown());
    tasks.essential("node-pressure", async move {
        let mut rounds = Rounds {
            node,
            conditions,
            seen: Seen::default(),
            measured: HashMap::new(),
            images: None,
            images_next: Instant::now(),
        };
        let interval = rounds.node.config.eviction.interval;
        loop {
            tokio::select! {
                () = rounds.round() => {}
                () = shutdown.cancelled() => return Ok::<_, NodeError>(()),
            }
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    });
}

struct Rounds {
    node: Arc<Node>,
    conditions: watch::Sender<Conditions>,
    seen: Seen,
    /// When a limited pod's disk is due again, by uid.
    measured: HashMap<String, Instant>,
    /// When each image was last used, or first seen, by digest. None before the first look.
    images: Option<HashMap<String, Instant>>,
    images_next: Instant,
}

impl Rounds {
    async fn round(&mut self) {
        let now = Instant::now();
        let short = self.observe(now);
        self.hold_to_limits().await;
        if let Some(shortage) = short.first() {
            self.relieve(shortage).await;
        }
        self.note_images(&self.used_images(true));
        if now >= self.images_next {
            self.images_next = now + self.node.config.image_gc.interval;
            self.free_images().await;
        }
    }

    fn observe(&mut self, now: Instant) -> Vec<Shortage> {
        let config = &self.node.config;
        let short = pressure::shortages(&config.eviction, &pressure::observe(&config.data_dir));
        let mut shared = self.node.ctx.conditions.lock();
        *shared = self.seen.conditions(&short, now, config.eviction.transition, *shared);
        let next = *shared;
        drop(shared);
        self.conditions.send_if_modified(|known| std::mem::replace(known, next) != next);
        short
    }

    /// Pods of which something runs and that nobody told to go.
    fn active(&self) -> Vec<Arc<Pod>> {
        let running: HashSet<String> = self.node.ctx.handles.lock().keys().map(|(uid, _)| uid.clone()).collect();
        let pods = self.node.pods.lock();
        let leaving = |pod: &Pod| {
            pod.metadata.deletion_timestamp.is_some() || pod.status.as_ref().is_some_and(|s| s.reason.is_some())
        };
        pods.values().filter(|pod| running.contains(uid(pod)) && !leaving(pod)).cloned().collect()
    }

    /// Evicts those that use more disk than they may.
    async fn hold_to_limits(&mut self) {
        let pods = self.active();
        self.measured.retain(|known, _| pods.iter().any(|pod| uid(pod) == known));
        for pod in pods {
            let Some(spec) = pod.spec.clone().filter(storage::is_limited) else { continue };
            let now = Instant::now();
            if self.measured.get(uid(&pod)).is_some_and(|due| *due > now) {
                continue;
            }
            let used = self.disk(&pod, &spec).await;
            let due = now.elapsed() * REST;
            self.measured.insert(uid(&pod).to_owned(), now + due);
            if let (Some(message), false) = (storage::violation(&spec, &used), is_critical(&spec)) {
                self.evict(&pod, message, false);
            }
        }
    }

    async fn disk(&self, pod: &Pod, spec: &PodSpec) -> storage::Used {
        let (spec, dirs) = (spec.clone(), self.node.ctx.dirs(uid(pod)));
        let measured = tokio::task::spawn_blocking(move || storage::measure(&spec, &dirs)).await;
        measured.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Frees what nobody needs; if that is not enough, one pod goes.
    async fn relieve(&mut self, shortage: &Shortage) {
        let resource = shortage.signal.resource();
        tracing::warn!(
            resource,
            available = shortage.available,
            threshold = shortage.threshold,
            "the machine runs short"
        );
        let text = format!("Attempting to reclaim {resource}");
        self.node.ctx.events.node(&self.node.config.node_name, Level::Warning, "EvictionThresholdMet", text);
        if matches!(shortage.signal, Signal::Disk | Signal::Inodes) {
            // What only stopped containers came from goes too, as upstream; their logs stay.
            let used = self.used_images(false);
            if let Err(error) = self.remove_images(&used, Duration::ZERO, |_| false).await {
                tracing::warn!(%error, "unused images stay");
            }
            let config = &self.node.config;
            let left = pressure::shortages(&config.eviction, &pressure::observe(&config.data_dir));
            if !left.iter().any(|s| s.signal == shortage.signal) {
                return;
            }
        }
        let mut pods = HashMap::new();
        let mut candidates = Vec::new();
        for pod in self.active() {
            let Some(spec) = pod.spec.clone().filter(|spec| !is_critical(spec)) else { continue };
            candidates.push(self.candidate(&pod, &spec, shortage.signal).await);
            pods.insert(uid(&pod).to_owned(), pod);
        }
        pressure::rank(&mut candidates, shortage.signal);
        let Some(first) = candidates.first() else { return };
        let Some(pod) = pods.get(&first.uid) else { return };
        let handles: Vec<Handle> = {
            let all = self.node.ctx.handles.lock();
            all.iter().filter(|((of, _), _)| *of == first.uid).map(|(_, handle)| handle.clone()).collect()
        };
        self.evict(pod, pressure::message(shortage, first), true);
        let gone = async {
            for mut handle in handles {
                handle.ended().await;
            }
        };
        if tokio::time::timeout(GONE, gone).await.is_err() {
            tracing::warn!(pod = %full_name(pod), "an evicted pod takes long to end");
        }
    }

    fn evict(&self, pod: &Pod, message: String, disruption: bool) {
        tracing::warn!(pod = %full_name(pod), %message, "a pod is evicted");
        let ctx = &self.node.ctx;
        ctx.evictions.lock().insert(uid(pod).to_owned(), Eviction { message, disruption });
        let _ = ctx.changes.send(Change::Evicted(uid(pod).to_owned()));
    }

    async fn candidate(&self, pod: &Pod, spec: &PodSpec, signal: Signal) -> Candidate {
        let name = match signal {
            Signal::Memory => "memory",
            Signal::Disk => "ephemeral-storage",
            // Nothing can be asked for of these.
            Signal::Inodes | Signal::Pids => "",
        };
        let amount = |container: &Container| {
            resources::request(container, name).and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
        };
        let disk = match signal {
            Signal::Disk | Signal::Inodes => Some(self.disk(pod, spec).await),
            Signal::Memory | Signal::Pids => None,
        };
        let hierarchies = &self.node.ctx.runtime.hierarchies;
        let handles = self.node.ctx.handles.lock().clone();
        let containers: Vec<(String, u64, u64)> = record::containers(spec)
            .filter_map(|(_, container)| {
                let handle = handles.get(&(uid(pod).to_owned(), container.name.clone()))?;
                let used = match (&disk, signal) {
                    (Some(disk), _) => disk.containers.get(&container.name).copied().unwrap_or(0),
                    (None, Signal::Pids) => hierarchies.usage(&handle.cgroup).map_or(0, |u| u.processes),
                    (None, _) => hierarchies.usage(&handle.cgroup).map_or(0, |u| u.memory_working_set_bytes),
                };
                Some((container.name.clone(), used, amount(&container)))
            })
            .collect();
        let used = match (&disk, signal) {
            (Some(disk), Signal::Inodes) => disk.files,
            (Some(disk), _) => disk.total(),
            (None, _) => containers.iter().map(|c| c.1).sum(),
        };
        Candidate {
            uid: uid(pod).to_owned(),
            priority: spec.priority.unwrap_or(0),
            used,
            requested: containers.iter().map(|c| c.2).sum(),
            containers: if signal == Signal::Inodes { Vec::new() } else { containers },
        }
    }

    /// Removes images, the longest unused first, where their disk is fuller than it may be.
    async fn free_images(&mut self) {
        let config = self.node.config.image_gc.clone();
        let folder = self.node.config.data_dir.join("images");
        let wanted = to_free(&Disk::of(&folder), &config);
        if wanted == 0 {
            return;
        }
        let used = self.used_images(true);
        let outcome = self.remove_images(&used, config.minimum_age, |disk| above_low(disk, &config) == 0).await;
        let (reason, message) = match outcome {
            Ok(freed) if above_low(&Disk::of(&folder), &config) > 0 => {
                ("FreeDiskSpaceFailed", self.not_enough(wanted, freed, &used))
            }
            Ok(_) => return,
            // Somebody fetches one just now, and may need the room.
            Err(StoreError::Busy) => {
                self.images_next = Instant::now();
                return;
            }
            Err(error) => ("ImageGCFailed", format!("{error}; `kfbox doctor` looks at the data directory")),
        };
        tracing::warn!(%message, "images could not make enough room");
        self.node.ctx.events.node(&self.node.config.node_name, Level::Warning, reason, message);
    }

    /// Upstream's sentence, what holds the rest, and what to do.
    fn not_enough(&self, wanted: u64, freed: u64, used: &HashSet<String>) -> String {
        let (store, folder) = (&self.node.ctx.images, self.node.config.data_dir.display());
        let kept = store.list();
        let imported = kept.iter().filter(|image| !store.is_pulled(image)).count();
        let in_use = kept.iter().filter(|image| store.is_pulled(image) && used.contains(&image.digest)).count();
        format!(
            "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} \
             bytes eligible to free. Images of pods stay ({in_use}), and those that were loaded by hand ({imported}). next: \
             delete pods that are done with, remove loaded images (`kfbox image list`, `kfbox image remove NAME`) or other \
             files on the disk of {folder}, or make it larger"
        )
    }

    /// The digests of images that a pod of this node may start from; also those of pods that ended, if `ended` count.
    fn used_images(&self, ended: bool) -> HashSet<String> {
        let pods: Vec<Arc<Pod>> = self.node.pods.lock().values().cloned().collect();
        let has_ended = |pod: &Pod| {
            pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| matches!(p, "Succeeded" | "Failed"))
        };
        let mut names: HashSet<String> = HashSet::new();
        for pod in pods.iter().filter(|pod| ended || !has_ended(pod)) {
            if let Some(spec) = &pod.spec {
                names.extend(record::containers(spec).filter_map(|(_, c)| c.image.clone()));
                names.extend(spec.volumes.iter().flatten().filter_map(|v| v.image.as_ref()?.reference.clone()));
            }
            // A name may mean another image by now.
            for status in pod.status.iter() {
                let all =
                    [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
                names.extend(all.into_iter().flatten().flatten().map(|s| s.image_id.clone()));
            }
        }
        names.iter().filter_map(|name| self.node.ctx.images.resolve(name)).map(|image| image.digest).collect()
    }

    /// Remembers that these are used now.
    fn note_images(&mut self, used: &HashSet<String>) {
        let now = Instant::now();
        // Those that were here before this daemon are not new.
        let first_seen = match &self.images {
            Some(_) => now,
            None => now.checked_sub(self.node.config.image_gc.minimum_age).unwrap_or(now),
        };
        let all: HashSet<String> = self.node.ctx.images.list().into_iter().map(|image| image.digest).collect();
        let images = self.images.get_or_insert_default();
        images.retain(|digest, _| all.contains(digest));
        for digest in all {
            if used.contains(&digest) {
                images.insert(digest, now);
            } else {
                images.entry(digest).or_insert(first_seen);
            }
        }
    }

    /// Removes pulled images that are not in use, until it is enough. Returns the bytes that this freed.
    async fn remove_images(
        &mut self,
        used: &HashSet<String>,
        minimum_age: Duration,
        enough: impl Fn(&Disk) -> bool,
    ) -> Result<u64, StoreError> {
        self.note_images(used);
        let store = self.node.ctx.images.clone();
        let folder = self.node.config.data_dir.join("images");
        let times = self.images.clone().unwrap_or_default();
        let mut unused: Vec<_> =
            store.list().into_iter().filter(|i| store.is_pulled(i) && !used.contains(&i.digest)).collect();
        unused.sort_by_key(|image| times.get(&image.digest).copied());
        let before = Disk::of(&folder).free;
        // What was deleted already goes first.
        self.collect(&folder).await?;
        for image in unused {
            if enough(&Disk::of(&folder)) {
                break;
            }
            if times.get(&image.digest).is_some_and(|at| at.elapsed() < minimum_age) {
                continue;
            }
            tracing::info!(image = ?image.names, "removing an image that nobody uses, for its disk space");
            match store.remove(&image.digest).await {
                // Somebody else was quicker.
                Ok(()) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
            self.collect(&folder).await?;
        }
        Ok(Disk::of(&folder).free.saturating_sub(before))
    }

    async fn collect(&self, folder: &Path) -> Result<(), StoreError> {
        self.node.collect_images().await?;
        let folder = folder.to_owned();
        blocking(move || {
            count_what_is_free(&folder);
            Ok(())
        })
        .await
    }
}

/// btrfs counts what was deleted as free when its transaction ends, half a minute later: without this, every image would go.
fn count_what_is_free(folder: &Path) {
    use nix::sys::statfs::{BTRFS_SUPER_MAGIC, fstatfs};
    let Ok(file) = std::fs::File::open(folder) else { return };
    if fstatfs(&file).is_ok_and(|found| found.filesystem_type() == BTRFS_SUPER_MAGIC)
        && let Err(error) = nix::unistd::syncfs(&file)
    {
        tracing::warn!(%error, "what the removal of images freed may not be counted yet");
    }
}

/// Bytes, none while the disk is emptier than the upper threshold.
fn to_free(disk: &Disk, config: &ImageGcConfig) -> u64 {
    if above(disk, config.high_percent).is_some() { above_low(disk, config) } else { 0 }
}

/// Bytes in use beyond the lower threshold.
fn above_low(disk: &Disk, config: &ImageGcConfig) -> u64 {
    above(disk, config.low_percent).unwrap_or(0)
}

/// Bytes in use beyond a share of the disk; none if fewer are.
fn above(disk: &Disk, percent: u64) -> Option<u64> {
    let used = disk.total.saturating_sub(disk.free);
    let share = u64::try_from(u128::from(disk.total) * u128::from(percent) / 100).unwrap_or(u64::MAX);
    used.checked_sub(share).filter(|_| disk.total > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_freed_from_the_upper_threshold_down_to_the_lower() {
        let disk = |free| Disk { free, total: 1000, ..Disk::default() };
        let config = ImageGcConfig::default();
        assert_eq!(to_free(&disk(151), &config), 0);
        assert_eq!(to_free(&disk(150), &config), 50);
        assert_eq!(to_free(&disk(0), &config), 200);
        assert_eq!(to_free(&Disk::default(), &config), 0);
    }
}
