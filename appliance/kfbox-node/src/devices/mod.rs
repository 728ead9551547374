//! Devices that pods ask for by a resource's name, such as `nvidia.com/gpu: 1`: which there are, who has them, and what
//! they change in a container.
//!
//! Guarantees: a device is one pod's at a time, also across restarts of the daemon; a container never starts without the
//! devices it asked for. Who has what is in the pod's folder, so it goes with the pod.
//! Upstream: <https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/>

pub mod cdi;
pub mod edits;
pub mod gpu;
mod plugins;
mod registration;

use cdi::CdiError;
use edits::{EditError, Edits};
use gpu::{Gpu, GpuConfig, Inventory, Watch};
use k8s_openapi::api::core::v1::{Container, Pod};
use kfbox_base::Tasks;
use parking_lot::Mutex;
use plugins::Plugin;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// In the pod's folder.
const FILE: &str = "devices.json";
/// In the plugins' folder: every resource that a plugin ever had here, so that a pod which asks for it waits for its plugin.
const KNOWN: &str = "resources.json";

pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicesConfig {
    /// Where device plugins meet this node: `kubelet.sock` and theirs. Upstream's is `/var/lib/kubelet/device-plugins`.
    pub plugins_dir: PathBuf,
    /// From the least to the most important.
    pub cdi_dirs: Vec<PathBuf>,
    pub gpu: GpuConfig,
}

impl DevicesConfig {
    pub fn new(data_dir: &Path) -> Self {
        Self {
            plugins_dir: data_dir.join("device-plugins"),
            cdi_dirs: ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from).to_vec(),
            gpu: GpuConfig::default(),
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
    /// What was found on this machine without a plugin.
    inventory: Arc<Inventory>,
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
    /// Found on this machine, and no plugin has taken it over.
    own: bool,
}

/// An accelerator, and who has it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuReport {
    #[serde(flatten)]
    pub gpu: Gpu,
    /// The pods' uids.
    pub held_by: Vec<String>,
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
        let (free, plugin, own_cards) = {
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
            (free, found.and_then(|r| r.plugin.clone()), found.is_some_and(|r| r.own))
        };
        if free.len() < count && (own_cards || plugin.is_some()) {
            return Err(DeviceError::TooFew { resource: resource.into(), wanted: count, available: free.len() });
        }
        let Some(plugin) = plugin else {
            if !own_cards {
                return Err(DeviceError::NoPlugin(resource.into()));
            }
            // One share each of as many cards as there are, before a second of any.
            let ids = spread(free, count);
            let (devices, wanted) = (self.clone(), ids.clone());
            let made = tokio::task::spawn_blocking(move || {
                let inventory = devices.inner.state.lock().inventory.clone();
                inventory.edits(&devices.inner.config.gpu, &devices.inner.config.cdi_dirs, &wanted)
            });
            let edits = made.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
            return Ok(Allocation { resource: resource.into(), ids, edits });
        };
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
            entry.own = false;
            entry.devices.clear();
            (entry.generation, state.resources.keys().cloned().collect::<Vec<_>>())
        };
        crate::shim::records::write(&self.inner.config.plugins_dir.join(KNOWN), &names)?;
        Ok(generation)
    }

    /// What was found on this machine is what there is to give, but for what a plugin has taken over.
    fn found(&self, inventory: Inventory) -> io::Result<()> {
        let mut state = self.inner.state.lock();
        if *state.inventory == inventory {
            return Ok(());
        }
        let mut now = inventory.resources(self.inner.config.gpu.shares);
        let known = state.resources.len();
        for name in now.keys() {
            state.resources.entry(name.clone()).or_default().own = true;
        }
        for (name, resource) in state.resources.iter_mut().filter(|(_, r)| r.own) {
            if resource.plugin.is_some() || resource.generation > 0 {
                resource.own = false;
                continue;
            }
            let mut devices = now.remove(name).unwrap_or_default();
            // One that is gone stays known, so that the node's capacity does not flap.
            for id in resource.devices.keys() {
                devices.entry(id.clone()).or_insert(false);
            }
            resource.devices = devices;
        }
        state.inventory = Arc::new(inventory);
        let names: Option<Vec<String>> =
            (state.resources.len() != known).then(|| state.resources.keys().cloned().collect());
        drop(state);
        if let Some(names) = names {
            crate::shim::records::write(&self.inner.config.plugins_dir.join(KNOWN), &names)?;
        }
        self.inner.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Looks for accelerators, and goes on looking at those that it found. A driver may take seconds to answer.
    pub fn look_for_gpus(&self, tasks: &Tasks) {
        let (devices, shutdown) = (self.clone(), tasks.shutdown());
        tasks.spawn("gpus", async move {
            let config = devices.inner.config.gpu.clone();
            let followed = {
                let (devices, shutdown) = (devices.clone(), shutdown.clone());
                tokio::task::spawn_blocking(move || {
                    let watch = if config.nvidia { Watch::open(&config).ok().map(Arc::new) } else { None };
                    let look = || {
                        if let Err(error) = devices.found(Inventory::look(&config, watch.as_deref())) {
                            tracing::error!(%error, "accelerators cannot be taken note of");
                        }
                    };
                    look();
                    let ended = watch.as_ref().map(|watch| watch.follow(|| shutdown.is_cancelled(), look));
                    if let Some(Err(error)) = ended {
                        tracing::warn!(%error, "the NVIDIA driver tells of no faults; cards are looked at now and then");
                    }
                    watch
                })
            };
            let watch = followed.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            // Where nothing tells of changes: cards that fall off the bus, or whose nodes come late.
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(LOOK_AGAIN) => {}
                }
                let (again, watch) = (devices.clone(), watch.clone());
                let looked = tokio::task::spawn_blocking(move || {
                    let inventory = Inventory::look(&again.inner.config.gpu, watch.as_deref());
                    again.found(inventory)
                });
                if let Ok(Err(error)) = looked.await {
                    tracing::error!(%error, "accelerators cannot be taken note of");
                }
            }
        });
    }

    /// The accelerators of this machine with the pods that have them; by vendor, why none was found.
    pub fn gpus(&self) -> (Vec<GpuReport>, BTreeMap<&'static str, String>) {
        let state = self.inner.state.lock();
        let holds = |held: &Held, gpu: &Gpu| {
            held.values().flatten().flat_map(|a| &a.ids).any(|id| id.split("::").next() == Some(gpu.id.as_str()))
        };
        let report = |gpu: &Gpu| GpuReport {
            gpu: gpu.clone(),
            held_by: state.held.iter().filter(|(_, held)| holds(held, gpu)).map(|(uid, _)| uid.clone()).collect(),
        };
        (state.inventory.gpus.iter().map(report).collect(), state.inventory.absent.clone())
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

/// Chooses so many of the free ids, of as many cards as possible; the order given is kept among cards alike.
fn spread(free: Vec<String>, count: usize) -> Vec<String> {
    let mut rounds: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for id in free {
        let taken = seen.entry(id.split("::").next().unwrap_or(&id).to_owned()).or_default();
        rounds.entry(*taken).or_default().push(id);
        *taken += 1;
    }
    rounds.into_values().flatten().take(count).collect()
}

struct Wanted {
    container: String,
    resource: String,
    count: usize,
    /// Of a container that ends before the others start.
    early: bool,
}
