//! Devices that pods ask for by a resource's name, such as `nvidia.com/gpu: 1`: which there are, who has them, and what
//! they change in a container.
//!
//! Guarantees: a device is one pod's at a time, also across restarts of the daemon; a container never starts without the
//! devices it asked for. Who has what is in the pod's folder, so it goes with the pod.
//! Upstream: <https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/>

pub mod cdi;
pub mod edits;
mod plugins;
mod registration;

use cdi::CdiError;
use edits::{EditError, Edits};
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use plugins::Plugin;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;

/// In the pod's folder.
const FILE: &str = "devices.json";
/// In the plugins' folder: every resource that a plugin ever had here, so that a pod which asks for it waits for its plugin.
const KNOWN: &str = "resources.json";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicesConfig {
    /// Where device plugins meet this node: `kubelet.sock` and theirs. Upstream's is `/var/lib/kubelet/device-plugins`.
    pub plugins_dir: PathBuf,
    /// From the least to the most important.
    pub cdi_dirs: Vec<PathBuf>,
}

impl DevicesConfig {
    pub fn new(data_dir: &Path) -> Self {
        Self {
            plugins_dir: data_dir.join("device-plugins"),
            cdi_dirs: ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from).to_vec(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("{path}: {source}", path = path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "Allocate failed due to requested number of devices unavailable for {resource}. Requested: {wanted}, \
         Available: {available}, which is unexpected"
    )]
    TooFew { resource: String, wanted: usize, available: usize },
    #[error("Allocate failed due to no registered device plugin for {0}, which is unexpected")]
    NoPlugin(String),
    #[error("Allocate failed due to rpc error: code = {code} desc = {message}, which is unexpected")]
    Plugin { code: String, message: String },
    #[error(transparent)]
    Cdi(#[from] CdiError),
    #[error(transparent)]
    Edit(#[from] EditError),
}

/// How many of a resource there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    pub resource: String,
    pub all: usize,
    pub healthy: usize,
}

#[derive(Default)]
struct State {
    resources: BTreeMap<String, Resource>,
    /// By pod uid.
    held: BTreeMap<String, Held>,
}

#[derive(Default)]
struct Resource {
    /// By id, whether it is healthy.
    devices: BTreeMap<String, bool>,
    plugin: Option<Plugin>,
    /// Counts registrations: what an earlier plugin still says is not heard.
    generation: u64,
}

/// By container.
type Held = BTreeMap<String, Vec<Allocation>>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Allocation {
    resource: String,
    ids: Vec<String>,
    edits: Edits,
}

/// Cloning shares it.
#[derive(Clone)]
pub struct Devices {
    inner: Arc<Inner>,
}

struct Inner {
    config: DevicesConfig,
    /// The pods' folders.
    pods: PathBuf,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    /// One pod at a time chooses.
    allocating: tokio::sync::Mutex<()>,
}

impl Devices {
    /// Learns who has what. Blocking.
    pub fn open(config: DevicesConfig, pods: &Path) -> Result<Self, DeviceError> {
        let mut state = State::default();
        for folder in fs::read_dir(pods).into_iter().flatten().flatten() {
            let held = fs::read(folder.path().join(FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            if let (Some(held), Ok(uid)) = (held, folder.file_name().into_string()) {
                state.held.insert(uid, held);
            }
        }
        let known = fs::read(config.plugins_dir.join(KNOWN)).ok();
        let known: Vec<String> = known.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        state.resources.extend(known.into_iter().map(|name| (name, Resource::default())));
        let inner = Inner {
            config,
            pods: pods.into(),
            state: Mutex::new(state),
            changed: watch::channel(0).0,
            allocating: tokio::sync::Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Changes when what [`Devices::counts`] says does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    pub fn counts(&self) -> Vec<Count> {
        let state = self.inner.state.lock();
        let count = |(name, resource): (&String, &Resource)| Count {
            resource: name.clone(),
            all: resource.devices.len(),
            healthy: resource.devices.values().filter(|healthy| **healthy).count(),
        };
        state.resources.iter().map(count).collect()
    }

    /// Gives a pod the devices that its containers ask for. It keeps what it has.
    pub async fn allocate(&self, pod: &Pod) -> Result<(), DeviceError> {
        let uid = crate::pod::record::uid(pod);
        let wanted = self.wanted(pod);
        if wanted.is_empty() || self.inner.state.lock().held.contains_key(uid) {
            return Ok(());
        }
        let _allocating = self.inner.allocating.lock().await;
        let mut held = Held::new();
        // What an init container had is free again when the others start.
        let mut reusable: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for Wanted { container, resource, count, early } in wanted {
            let reuse = reusable.entry(resource.clone()).or_default();
            let allocation = self.choose(&held, reuse, &resource, count).await?;
            if early {
                reuse.extend(allocation.ids.iter().cloned());
            } else {
                reuse.retain(|id| !allocation.ids.contains(id));
            }
            held.entry(container).or_default().push(allocation);
        }
        let path = self.inner.pods.join(uid).join(FILE);
        let written = crate::shim::records::write(&path, &held).and_then(|file| file.sync_data());
        written.map_err(|source| DeviceError::File { path, source })?;
        self.inner.state.lock().held.insert(uid.to_owned(), held);
        Ok(())
    }

    fn wanted(&self, pod: &Pod) -> Vec<Wanted> {
        let state = self.inner.state.lock();
        let spec = pod.spec.iter();
        let of = |container: &Container, early: bool| -> Vec<Wanted> {
            let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
            let counts = limits.into_iter().flatten().filter(|(name, _)| state.resources.contains_key(*name));
            counts
                .filter_map(|(resource, quantity)| {
                    let count = usize::try_from(crate::quantity::value(quantity)?).ok().filter(|n| *n > 0)?;
                    Some(Wanted { container: container.name.clone(), resource: resource.clone(), count, early })
                })
                .collect()
        };
        spec.flat_map(|spec| {
            let init = spec.init_containers.iter().flatten();
            // A sidecar goes on beside the others.
            let init = init.flat_map(|c| of(c, c.restart_policy.as_deref() != Some("Always")));
            init.chain(spec.containers.iter().flat_map(|c| of(c, false))).collect::<Vec<_>>()
        })
        .collect()
    }

    async fn choose(
        &self,
        own: &Held,
        reuse: &BTreeSet<String>,
        resource: &str,
        count: usize,
    ) -> Result<Allocation, DeviceError> {
        let (free, plugin) = {
            let state = self.inner.state.lock();
            let all = state.held.values().chain([own]).flat_map(|held| held.values().flatten());
            let taken: BTreeSet<&String> =
                all.filter(|a| a.resource == resource).flat_map(|a| &a.ids).filter(|id| !reuse.contains(*id)).collect();
            let found = state.resources.get(resource);
            let healthy =
                found.into_iter().flat_map(|r| &r.devices).filter(|(id, healthy)| **healthy && !taken.contains(id));
            // Those of the pod's own init containers first.
            let mut free: Vec<String> = healthy.map(|(id, _)| id.clone()).collect();
            free.sort_by_key(|id| !reuse.contains(id));
            (free, found.and_then(|r| r.plugin.clone()))
        };
        let plugin = plugin.ok_or_else(|| DeviceError::NoPlugin(resource.into()))?;
        if free.len() < count {
            return Err(DeviceError::TooFew { resource: resource.into(), wanted: count, available: free.len() });
        }
        let must: Vec<String> = free.iter().filter(|id| reuse.contains(*id)).take(count).cloned().collect();
        let ids = match plugin.preferred(&free, &must, count).await {
            Some(ids) => ids,
            None => free.into_iter().take(count).collect(),
        };
        let edits = plugin.allocate(&ids).await?;
        Ok(Allocation { resource: resource.into(), ids, edits })
    }

    /// Asks the plugins that want to know before each start of a container.
    pub async fn before_start(&self, uid: &str, container: &str) -> Result<(), DeviceError> {
        for allocation in self.of(uid, container) {
            let plugin = self.plugin(&allocation.resource);
            if let Some(plugin) = plugin {
                plugin.before_start(&allocation.ids).await?;
            }
        }
        Ok(())
    }

    /// Changes a container's specification so that it has its devices. Blocking.
    pub fn apply(&self, uid: &str, container: &str, spec: &mut Value) -> Result<(), DeviceError> {
        for allocation in self.of(uid, container) {
            for edits in cdi::resolve(&self.inner.config.cdi_dirs, &allocation.edits.cdi)? {
                edits.apply(spec)?;
            }
            allocation.edits.apply(spec)?;
        }
        Ok(())
    }

    fn plugin(&self, resource: &str) -> Option<Plugin> {
        self.inner.state.lock().resources.get(resource)?.plugin.clone()
    }

    fn of(&self, uid: &str, container: &str) -> Vec<Allocation> {
        self.inner.state.lock().held.get(uid).and_then(|held| held.get(container)).cloned().unwrap_or_default()
    }

    /// Takes a pod's devices back, when nothing of it runs any more. Blocking.
    pub fn release(&self, uid: &str) {
        if self.inner.state.lock().held.remove(uid).is_some() {
            let _ = fs::remove_file(self.inner.pods.join(uid).join(FILE));
        }
    }

    /// A plugin registered itself. Returns the registration's number.
    fn registered(&self, resource: &str, plugin: Plugin) -> io::Result<u64> {
        let (generation, names) = {
            let mut state = self.inner.state.lock();
            let entry = state.resources.entry(resource.to_owned()).or_default();
            entry.generation += 1;
            entry.plugin = Some(plugin);
            entry.devices.clear();
            (entry.generation, state.resources.keys().cloned().collect::<Vec<_>>())
        };
        crate::shim::records::write(&self.inner.config.plugins_dir.join(KNOWN), &names)?;
        Ok(generation)
    }

    fn listed(&self, resource: &str, generation: u64, devices: BTreeMap<String, bool>) {
        self.update(resource, generation, |known| known.devices = devices);
    }

    /// A plugin is gone: what it had stays known, so that the node's capacity does not flap, and is given to nobody.
    fn lost(&self, resource: &str, generation: u64) {
        self.update(resource, generation, |known| {
            known.plugin = None;
            known.devices.values_mut().for_each(|healthy| *healthy = false);
        });
    }

    fn update(&self, resource: &str, generation: u64, change: impl FnOnce(&mut Resource)) {
        let mut state = self.inner.state.lock();
        let Some(known) = state.resources.get_mut(resource).filter(|known| known.generation == generation) else {
            return;
        };
        change(known);
        drop(state);
        self.inner.changed.send_modify(|count| *count += 1);
    }
}

struct Wanted {
    container: String,
    resource: String,
    count: usize,
    /// Of a container that ends before the others start.
    early: bool,
}
