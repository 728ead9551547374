//! What every controller holds: the client, the shared caches, the outlet for events.

use crate::{Config, account_tokens, cache::Cache, events::Events, garbage::discovery::Resource, snapshots};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::{CronJob, Job},
    certificates::v1::CertificateSigningRequest,
    core::v1::{
        ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController,
        Secret, Service, ServiceAccount,
    },
    discovery::v1::EndpointSlice,
    policy::v1::PodDisruptionBudget,
    rbac::v1::ClusterRole,
    storage::v1::StorageClass,
};
use kfbox_base::Tasks;
use kube::{Client, runtime::watcher};
use std::{convert::Infallible, future::Future, pin::Pin, sync::Arc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A controller ready to run, and its name in logs.
pub type Registered = (&'static str, Pin<Box<dyn Future<Output = Result<(), Infallible>> + Send>>);

pub struct Context {
    pub client: Client,
    pub config: Config,
    pub caches: Caches,
    /// Filled when the cluster knows these kinds.
    pub snapshots: snapshots::Caches,
    /// Set when what an earlier run left half made or half removed is gone.
    pub volumes_swept: tokio::sync::OnceCell<()>,
    pub events: Events,
    /// The cluster's kinds, as last discovered; empty at first.
    pub resources: watch::Sender<Vec<Arc<Resource>>>,
    pub shutdown: CancellationToken,
}

impl Context {
    pub fn new(client: Client, config: Config, tasks: &Tasks) -> Self {
        Self {
            client,
            config,
            caches: Caches::default(),
            snapshots: snapshots::Caches::default(),
            volumes_swept: tokio::sync::OnceCell::new(),
            events: Events::default(),
            resources: watch::Sender::new(Vec::new()),
            shutdown: tasks.shutdown(),
        }
    }
}

macro_rules! caches {
    ($($field:ident: $kind:ty),* $(,)?) => {
        /// One watch a kind, shared by all controllers.
        #[derive(Default)]
        pub struct Caches {
            $(pub $field: Arc<Cache<$kind>>,)*
            /// The ConfigMaps `kube-root-ca.crt` only.
            pub root_cas: Arc<Cache<ConfigMap>>,
            /// Secrets with tokens of service accounts only.
            pub token_secrets: Arc<Cache<Secret>>,
        }

        impl Caches {
            pub fn watch(&self, client: &Client, tasks: &Tasks) {
                $(self.$field.watch(client, tasks, watcher::Config::default());)*
                let root_cas = watcher::Config::default().fields("metadata.name=kube-root-ca.crt");
                self.root_cas.watch(client, tasks, root_cas);
                let tokens = watcher::Config::default().fields(&format!("type={}", account_tokens::KIND));
                self.token_secrets.watch(client, tasks, tokens);
            }

            pub async fn synced(&self) {
                $(self.$field.synced().await;)*
                self.root_cas.synced().await;
                self.token_secrets.synced().await;
            }
        }
    };
}

caches! {
    pods: Pod,
    nodes: Node,
    namespaces: Namespace,
    service_accounts: ServiceAccount,
    claims: PersistentVolumeClaim,
    volumes: PersistentVolume,
    classes: StorageClass,
    services: Service,
    endpoints: Endpoints,
    slices: EndpointSlice,
    controllers: ReplicationController,
    replica_sets: ReplicaSet,
    deployments: Deployment,
    stateful_sets: StatefulSet,
    daemon_sets: DaemonSet,
    revisions: ControllerRevision,
    jobs: Job,
    cron_jobs: CronJob,
    autoscalers: HorizontalPodAutoscaler,
    budgets: PodDisruptionBudget,
    requests: CertificateSigningRequest,
    cluster_roles: ClusterRole,
}
