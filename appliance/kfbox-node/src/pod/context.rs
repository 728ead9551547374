//! What every pod's task works with.

use super::{admit::Conditions, events::Events, resize::Share, users::Blocks};
use crate::{
    devices::Devices,
    images::ImageStore,
    network::Network,
    oci::capabilities::Available,
    pod::downward::Surroundings,
    registry::Access,
    runtime::{Handle, Runtime},
    sandbox::DnsConfig,
    services::{Directory, Policies},
    usage::Meter,
    volumes::{PodDirs, nfs::NfsConfig},
};
use k8s_openapi::api::core::v1::Service;
use kfbox_base::Tasks;
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
};
use tokio::sync::broadcast;

use super::objects::Kind;

/// An object that pods may depend on has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Object {
        kind: Kind,
        namespace: String,
        name: String,
    },
    /// A claim, a volume or the like: whoever waits may look again.
    Storage,
    /// A pod has to go.
    Evicted(String),
    /// Changes were missed.
    Unknown,
}

/// Why a pod has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    pub message: String,
    /// For want of the machine's resources, not by its own fault: `DisruptionTarget`.
    pub disruption: bool,
}

pub struct Context {
    pub client: Client,
    pub tasks: Tasks,
    pub runtime: Runtime,
    pub images: ImageStore,
    /// Who may use what the embedded registry holds; not before it is served.
    pub registry: OnceLock<Arc<Access>>,
    pub network: Network,
    pub directory: Directory,
    pub policies: Policies,
    pub events: Events,
    pub changes: broadcast::Sender<Change>,
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    /// The cgroup below which all pods are.
    pub cgroup_root: String,
    pub dns: DnsConfig,
    /// The node's, of each family.
    pub host_ips: Vec<IpAddr>,
    pub node_name: String,
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub storage_bytes: i64,
    pub available: Available,
    pub log_max_bytes: u64,
    pub log_max_files: u32,
    pub pod_pids_limit: Option<i64>,
    /// Of the host's user ids, for pods with users of their own.
    pub user_blocks: Blocks,
    pub devices: Devices,
    pub nfs: NfsConfig,
    /// Running containers, by pod uid and name, for those who join them.
    pub handles: Mutex<HashMap<(String, String), Handle>>,
    /// Containers' use of the machine.
    pub meter: Meter,
    /// What decides whether a new pod is taken.
    pub conditions: Mutex<Conditions>,
    /// Pods that have to go, by uid, and why; told by [`Change::Evicted`].
    pub evictions: Mutex<HashMap<String, Eviction>>,
    /// What the pods have of the node, by uid.
    pub shares: Mutex<HashMap<String, Share>>,
    /// Layers that pods have mounted as volumes, by pod uid.
    pub layers: Mutex<HashMap<String, Vec<PathBuf>>>,
}

impl Context {
    pub fn dirs(&self, uid: &str) -> PodDirs {
        PodDirs { data: self.data_dir.join("pods").join(uid), run: self.run_dir.join("pods").join(uid) }
    }

    pub fn cgroup(&self, uid: &str) -> String {
        format!("/{}/pod{uid}", self.cgroup_root)
    }

    pub fn surroundings(&self, pod_ips: &[IpAddr]) -> Surroundings {
        Surroundings {
            node_name: self.node_name.clone(),
            host_ips: self.host_ips.clone(),
            pod_ips: pod_ips.to_vec(),
            allocatable_cpu_milli: self.cpu_milli,
            allocatable_memory: self.memory_bytes,
            allocatable_storage: self.storage_bytes,
        }
    }

    /// The services that a pod of this namespace may see in its environment.
    pub fn services(&self, namespace: &str) -> Vec<Service> {
        let seen = |s: &Arc<Service>| {
            let of = s.namespace();
            of.as_deref() == Some(namespace) || (of.as_deref() == Some("default") && s.name_any() == "kubernetes")
        };
        let mut all: Vec<Service> =
            self.directory.services.state().iter().filter(|s| seen(s)).map(|s| Service::clone(s)).collect();
        all.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        all
    }
}
