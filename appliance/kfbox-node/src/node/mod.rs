//! The node: it starts what the machine needs, keeps one task for each pod bound to it, and answers what the API server
//! asks about running containers.
//!
//! Guarantee: after a kill of the daemon, [`Node::start`] takes over every container that still runs, and learns how the
//! others ended.
//! Upstream: <https://kubernetes.io/docs/concepts/architecture/nodes/>

mod dispatch;
mod evict;
mod http;
mod logs;
mod machine;
mod pressure;
mod register;
mod reset;
mod sessions;
mod stop;
mod storage;
mod usage;

pub use crate::runtime::{ExecSession, TerminalSize};
pub use evict::ImageGcConfig;
pub use logs::{LogOptions, LogStream};
pub use pressure::EvictionConfig;

use crate::{
    cgroup::Hierarchies,
    devices::{DeviceError, Devices, DevicesConfig, GpuReport},
    dns,
    images::{Auths, Collected, Image, ImageConfig, ImageStore, OnProgress, PullError, StoreError, owner_name},
    network::{Network, NetworkConfig, NetworkError},
    oci::capabilities::Available,
    pod::{
        admit::{self, Conditions},
        context::Context,
        events::Events,
        users::Blocks,
    },
    registry::{self, Access, Callers, Registry},
    runtime::Runtime,
    sandbox, services,
    shim::records::{self, SHIM_CONFIG, ShimConfig},
    usage::Meter,
    volumes::{is_mount_point, nfs::NfsConfig},
};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kfbox_base::{Authorizer, Readiness, Tasks};
use kube::{Api, Client, api::ListParams};
use nix::mount::{MsFlags, mount};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};
use tokio::sync::{broadcast, watch};

/// Changes of objects that a pod's task may lag behind before it looks at everything anew.
const CHANGES: usize = 1024;

#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Volumes, logs and container state go to `pods/`, images to `images/`, the program of containers to `shim/`.
    pub data_dir: PathBuf,
    /// `/run/kfbox/INSTANCE`: gets a tmpfs of its own.
    pub run_dir: PathBuf,
    /// Names the cgroup parent; tells two boxes on one machine apart.
    pub instance: String,
    pub node_name: String,
    pub network: NetworkConfig,
    pub dns: dns::DnsConfig,
    pub images: ImageConfig,
    /// What pods with the `Default` DNS policy get.
    pub host_resolv: PathBuf,
    /// Shown as the node's address. None: the bridge's, at which pods reach the host.
    pub address: Option<IpAddr>,
    pub labels: BTreeMap<String, String>,
    /// Bytes at which a container's log is rotated, and files kept; as the kubelet's defaults.
    pub log_max_bytes: u64,
    pub log_max_files: u32,
    pub eviction: EvictionConfig,
    pub image_gc: ImageGcConfig,
    /// Processes and threads that a pod may have. None: as many as the machine; upstream's default.
    pub pod_pids_limit: Option<i64>,
    /// The lowest of the host's user and group ids that pods with users of their own have; 65536 are a pod's.
    pub first_user_id: u32,
    pub devices: DevicesConfig,
    pub nfs: NfsConfig,
}

/// Below it are the ranges that distributions give to people (`/etc/subuid`), above the end of the pods' ids those that
/// systemd keeps for other uses. <https://systemd.io/UIDS-GIDS/>
const FIRST_USER_ID: u32 = 0x4000_0000;

impl NodeConfig {
    /// The defaults for everything that has one.
    pub fn new(data_dir: PathBuf, run_dir: PathBuf, instance: &str, network: NetworkConfig) -> Self {
        let devices = DevicesConfig::new(&data_dir);
        Self {
            data_dir,
            run_dir,
            instance: instance.into(),
            node_name: instance.into(),
            network,
            dns: dns::DnsConfig::default(),
            images: ImageConfig::default(),
            host_resolv: "/etc/resolv.conf".into(),
            address: None,
            labels: BTreeMap::new(),
            log_max_bytes: 10 << 20,
            log_max_files: 5,
            eviction: EvictionConfig::default(),
            image_gc: ImageGcConfig::default(),
            pod_pids_limit: None,
            first_user_id: FIRST_USER_ID,
            devices,
            nfs: NfsConfig::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("{path}: {source}", path = path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Images(#[from] StoreError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Dns(#[from] dns::DnsServerError),
    #[error("devices: {0}")]
    Devices(#[from] DeviceError),
    #[error("cannot register the node: {0}")]
    Register(#[from] kube::Error),
    #[error("pods \"{0}\" not found")]
    NoPod(String),
    #[error("container {container} is not valid for pod {pod}")]
    NoContainer { container: String, pod: String },
    #[error("container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}")]
    Waiting { container: String, pod: String, reason: String },
    #[error("container \"{container}\" in pod \"{pod}\" is not running")]
    NotRunning { container: String, pod: String },
    #[error("previous terminated container \"{container}\" in pod \"{pod}\" not found")]
    NoPrevious { container: String, pod: String },
    #[error("cannot connect to port {port} of the pod: {source}")]
    Port {
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Runtime(#[from] crate::runtime::RuntimeError),
}

pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> NodeError {
    let path = path.to_path_buf();
    move |source| NodeError::File { path, source }
}

pub struct Node {
    ctx: Arc<Context>,
    config: NodeConfig,
    /// The pods of this node by namespace and name, as last seen.
    pods: Mutex<HashMap<(String, String), Arc<Pod>>>,
}

impl Node {
    /// Prepares the machine, registers the node and starts to run its pods.
    pub async fn start(
        config: NodeConfig,
        client: Client,
        tasks: &Tasks,
        readiness: &Readiness,
    ) -> Result<Arc<Self>, NodeError> {
        let component = readiness.component("node");
        for folder in [config.data_dir.join("pods"), config.run_dir.clone()] {
            use std::os::unix::fs::DirBuilderExt;
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(at(&folder))?;
        }
        if !is_mount_point(&config.run_dir) {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("kfbox"), &config.run_dir, Some("tmpfs"), flags, Some("mode=0700"))
                .map_err(|e| at(&config.run_dir)(e.into()))?;
        }
        let shims = config.data_dir.join("shim");
        let shim_executable = crate::program::install(&shims).map_err(at(&shims))?;
        let images_dir = config.data_dir.join("images");
        let image_config = config.images.clone();
        let opened = tokio::task::spawn_blocking(move || ImageStore::open(&images_dir, image_config));
        let network = Network::start(config.network.clone(), tasks).await?;
        let images = match opened.await {
            Ok(store) => store?,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let (directory, policies) = services::run(&client, network.clone(), tasks, readiness);
        dns::run(config.dns.clone(), directory.clone(), &network, tasks, readiness).await?;

        let devices = Devices::open(config.devices.clone(), &config.data_dir.join("pods"))?;
        devices.listen(tasks)?;
        devices.look_for_gpus(tasks);
        let address = config.address.unwrap_or(IpAddr::V4(network.gateway()));
        let second = network.config().second_gateway().map(IpAddr::V6);
        let machine = machine::Machine::of(&config.data_dir);
        let (changes, _) = broadcast::channel(CHANGES);
        let ctx = Arc::new(Context {
            runtime: Runtime {
                shim_executable,
                runtime_root: config.run_dir.join("containers"),
                hierarchies: Arc::new(Hierarchies::detect()),
                tasks: tasks.clone(),
            },
            images,
            registry: OnceLock::new(),
            dns: sandbox::DnsConfig {
                service: Some(IpAddr::V4(network.config().dns_ip)),
                domain: config.dns.domain.clone(),
                host_resolv: config.host_resolv.clone(),
            },
            network,
            directory,
            policies,
            events: Events::start(client.clone(), tasks, &config.node_name),
            changes,
            data_dir: config.data_dir.clone(),
            run_dir: config.run_dir.clone(),
            cgroup_root: config.instance.clone(),
            host_ips: [Some(address), second].into_iter().flatten().collect(),
            node_name: config.node_name.clone(),
            cpu_milli: machine.cpus * 1000,
            memory_bytes: machine.memory_bytes,
            storage_bytes: machine.storage_bytes,
            available: Available::of_this_process(),
            log_max_bytes: config.log_max_bytes,
            log_max_files: config.log_max_files,
            pod_pids_limit: config.pod_pids_limit,
            nfs: config.nfs.clone(),
            user_blocks: Blocks::new(config.data_dir.join("pods"), config.first_user_id, register::MAX_PODS),
            devices,
            handles: Mutex::default(),
            layers: Mutex::default(),
            meter: Meter::default(),
            conditions: Mutex::new(Conditions { app_armor: admit::has_app_armor(), ..Conditions::default() }),
            evictions: Mutex::default(),
            shares: Mutex::default(),
            client,
            tasks: tasks.clone(),
        });
        let (observed, conditions) = watch::channel(Conditions::default());
        register::run(&ctx, &config, machine, conditions, tasks).await?;
        let node = Arc::new(Self { ctx, config, pods: Mutex::default() });
        evict::run(&node, observed, tasks);
        dispatch::run(&node, tasks, component);
        Ok(node)
    }

    pub fn images(&self) -> &ImageStore {
        &self.ctx.images
    }

    /// The machine's accelerators, with the pods that have them as NAMESPACE/NAME; by vendor, why none was found.
    pub fn gpus(&self) -> (Vec<GpuReport>, BTreeMap<&'static str, String>) {
        let (mut all, absent) = self.ctx.devices.gpus();
        let pods = self.pods.lock();
        let names: HashMap<&str, String> =
            pods.values().map(|pod| (crate::pod::record::uid(pod), crate::pod::record::full_name(pod))).collect();
        for uid in all.iter_mut().flat_map(|report| &mut report.held_by) {
            if let Some(name) = names.get(uid.as_str()) {
                uid.clone_from(name);
            }
        }
        (all, absent)
    }

    /// The embedded registry over this node's images. From here on, pods may use what their secrets open of it.
    pub fn registry(&self, callers: Arc<dyn Callers>, authorizer: Arc<dyn Authorizer>) -> Registry {
        let access = Access::new(callers, authorizer, self.ctx.client.clone());
        let access = self.ctx.registry.get_or_init(|| Arc::new(access)).clone();
        Registry::new(self.ctx.images.clone(), access, self.ctx.tasks.clone())
    }

    /// Fetches an image for whoever owns the machine.
    pub async fn pull_image(&self, name: &str, progress: OnProgress) -> Result<Image, PullError> {
        let target = self.ctx.images.target(name).filter(registry::is_own);
        let Some(target) = target else { return self.ctx.images.pull(name, &Auths::default(), progress).await };
        let missing = || PullError::NotFound { name: target.to_string(), registry: target.registry.clone() };
        let owner = owner_name(&target.repository).ok_or_else(missing)?;
        let owner = registry::owner(&Api::all(self.ctx.client.clone()), owner).await;
        let owner = owner.map_err(|error| PullError::Registry {
            name: target.to_string(),
            registry: target.registry.clone(),
            why: error.to_string(),
        })?;
        self.ctx.images.pull_own(&owner.ok_or_else(missing)?, &target, progress).await
    }

    /// Frees what no image, no container and no repository of the registry needs.
    pub async fn collect_images(&self) -> Result<Collected, StoreError> {
        // Asked first: a namespace that comes to be in between is none of these.
        let mut gone = self.ctx.images.repositories().owners();
        if !gone.is_empty() {
            match Api::<Namespace>::all(self.ctx.client.clone()).list(&ListParams::default()).await {
                Ok(living) => {
                    let living: HashSet<String> = living.items.into_iter().filter_map(|n| n.metadata.uid).collect();
                    gone.retain(|uid| !living.contains(uid));
                    self.ctx.images.forget_owners(gone).await?;
                }
                Err(error) => tracing::warn!(%error, "repositories of deleted namespaces stay for now"),
            }
        }
        let mut in_use: HashSet<PathBuf> = self.ctx.layers.lock().values().flatten().cloned().collect();
        let running: Vec<PathBuf> = self.ctx.handles.lock().values().map(|handle| handle.dir.clone()).collect();
        for dir in running {
            if let Ok(config) = records::read::<ShimConfig>(&dir.join(SHIM_CONFIG)) {
                in_use.extend(config.overlay.into_iter().flat_map(|overlay| overlay.lower));
            }
        }
        self.ctx.images.gc(&in_use).await
    }

    pub fn network(&self) -> &Network {
        &self.ctx.network
    }

    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<Arc<Pod>, NodeError> {
        let key = (namespace.to_owned(), name.to_owned());
        self.pods.lock().get(&key).cloned().ok_or_else(|| NodeError::NoPod(name.into()))
    }

    /// Ends every container of an instance, asking first. For when this node's own tasks have ended.
    pub async fn stop_containers(config: &NodeConfig) {
        stop::stop(config).await;
    }

    /// Ends every container of an instance and removes all that it made on this machine but its data. The daemon must
    /// not run.
    pub async fn reset(config: &NodeConfig) -> Result<(), NodeError> {
        reset::reset(config).await
    }
}
