//! What kube-controller-manager and kube-scheduler do, for one node (or a few). Invariants: the cluster is seen through
//! `kube::Client` only; deciding is apart from writing (each controller's `decide` is a pure function of objects and the
//! time); names of what is created follow from what it is created for, so that a crash or a lost answer at any moment
//! creates nothing twice. Upstream: <https://kubernetes.io/docs/concepts/architecture/controller/>.

mod cache;
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
mod pod_gc;
mod pods;
mod queue;
mod replica_sets;
mod revisions;
mod scheduler;
mod selectors;
mod service_accounts;
mod stateful_sets;
mod volumes;
mod write;

use context::Context;
use kfbox_base::{Readiness, Tasks};
use std::{path::PathBuf, sync::Arc};

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
        replica_sets::register(&context),
        deployments::register(&context),
        stateful_sets::register(&context),
        daemon_sets::register(&context),
        jobs::register(&context),
        cron_jobs::register(&context),
        endpoints::register(&context),
        pod_gc::register(&context),
        disruption::register(&context),
        cluster_roles::register(&context),
    ];
    for (name, controller) in controllers {
        tasks.essential(format!("controller {name}"), controller);
    }
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
