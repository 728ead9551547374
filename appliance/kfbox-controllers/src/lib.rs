//! What kube-controller-manager and kube-scheduler do, for one node (or a few). Invariants: the cluster is seen through
//! `kube::Client` only; deciding is apart from writing (each controller's `decide` is a pure function of objects and the
//! time); names of what is created follow from what it is created for, so that a crash or a lost answer at any moment
//! creates nothing twice. Upstream: <https://kubernetes.io/docs/concepts/architecture/controller/>.

mod account_tokens;
mod autoscalers;
mod cache;
mod certificates;
mod cluster_roles;
#[cfg(test)]
mod cluster_tests;
mod context;
mod cron_jobs;
mod daemon_sets;
mod deployments;
mod disruption;
mod endpoints;
mod events;
mod garbage;
mod jobs;
mod names;
mod namespaces;
mod nodes;
mod pod_gc;
mod pods;
mod queue;
mod replica_sets;
mod replication_controllers;
mod revisions;
mod scheduler;
mod selectors;
mod service_accounts;
mod snapshots;
mod stateful_sets;
mod taint_eviction;
mod volumes;
mod write;

use context::Context;
use kfbox_base::{Readiness, Tasks};
use std::{fmt::Debug, path::PathBuf, sync::Arc};

/// The provisioner of the StorageClass `standard`.
pub const LOCAL_PATH_PROVISIONER: &str = "kfbox.dev/local-path";

#[derive(Debug, Clone)]
pub struct Config {
    /// The node that local volumes live on, as registered in the cluster.
    pub node_name: String,
    /// The folder under which volumes are made; each volume is one folder directly in it.
    pub local_path_root: PathBuf,
    /// Published in every namespace as the ConfigMap `kube-root-ca.crt`.
    pub root_ca_pem: String,
    pub cluster_name: String,
    /// Signs approved certificate requests; without one they wait.
    pub signer: Option<Arc<dyn CertificateSigner>>,
}

/// An approved request for a certificate.
pub struct CertificateRequest<'a> {
    /// Such as `kubernetes.io/kube-apiserver-client`.
    pub signer: &'a str,
    pub request_pem: &'a [u8],
    pub usages: &'a [String],
    pub expiration_seconds: Option<i32>,
}

/// Why there is no certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SigningRefusal {
    /// Somebody else signs for this signer's name.
    NotOurs,
    /// The signer does not admit the request and never will; with the sentence for the condition.
    Refused(String),
    Failed(String),
}

/// Who holds the cluster's authority.
pub trait CertificateSigner: Debug + Send + Sync {
    /// The certificate in PEM.
    fn sign(&self, request: &CertificateRequest<'_>) -> Result<String, SigningRefusal>;
}

/// Starts every controller and the scheduler. They run until the tasks are stopped; a watch or write that fails is tried
/// again with growing pauses.
pub fn start(client: kube::Client, config: Config, tasks: &Tasks, readiness: &Readiness) {
    let component = readiness.component("controllers");
    let context = Arc::new(Context::new(client, config, tasks));
    let controllers = [
        scheduler::register(&context),
        volumes::register(&context),
        namespaces::register(&context),
        service_accounts::register(&context),
        account_tokens::register(&context),
        replica_sets::register(&context),
        replication_controllers::register(&context),
        deployments::register(&context),
        stateful_sets::register(&context),
        daemon_sets::register(&context),
        jobs::register(&context),
        cron_jobs::register(&context),
        endpoints::register(&context),
        pod_gc::register(&context),
        disruption::register(&context),
        autoscalers::register(&context),
        nodes::register(&context),
        taint_eviction::register(&context),
        certificates::register(&context),
        cluster_roles::register(&context),
    ];
    for (name, controller) in controllers {
        tasks.essential(format!("controller {name}"), controller);
    }
    tasks.essential("controller volumesnapshot", snapshots::run(context.clone()));
    tasks.essential("controller garbage-collector", garbage::run(context.clone()));
    tasks.essential("events of controllers", events::run(context.clone()));
    context.caches.watch(&context.client, tasks);
    let waiting = context.clone();
    drop(tasks.spawn("controllers becoming ready", async move {
        tokio::select! {
            () = waiting.shutdown.cancelled() => {}
            () = waiting.caches.synced() => component.ready(),
        }
    }));
}
