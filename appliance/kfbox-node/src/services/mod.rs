//! Services on one node: connections to a service's addresses and node ports are sent to its endpoints by the kernel.
//! Source: the Kubernetes "Virtual IPs and Service Proxies" reference. IPVS, IPv6 and topology-aware routing do not apply to
//! one node with IPv4 only.
//!
//! Guarantees: each change is one nft transaction, so that no connection meets half of one; at start the table is replaced,
//! so that nothing stale remains; connections under way are kept by conntrack.

pub mod desired;
mod directory;
pub mod policy;
mod script;

pub use directory::{Directory, WatchEnded};
pub use policy::Policies;

use crate::network::{Network, NftError, conntrack, nft};
use desired::Rules;
use kfbox_base::{Component, Readiness, Tasks};
use kube::Client;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A rollout changes many endpoints within a moment: they go into one transaction.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// Before the whole table is tried again after nft refused a change.
const RETRY: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    #[error(transparent)]
    Nft(#[from] NftError),
    #[error(transparent)]
    WatchEnded(#[from] WatchEnded),
}

/// Starts the watches, the service rules and the network policies. The directory returned serves the DNS server too.
pub fn run(client: &Client, network: Network, tasks: &Tasks, readiness: &Readiness) -> (Directory, Policies) {
    let directory = Directory::start(client, tasks);
    let component = readiness.component("services");
    tasks.essential("services", keep(directory.clone(), network.clone(), component, tasks.shutdown()));
    let policies = policy::run(client, &network, tasks);
    (directory, policies)
}

/// Keeps the table as the directory says until shutdown.
pub async fn keep(
    directory: Directory,
    network: Network,
    component: Component,
    shutdown: CancellationToken,
) -> Result<(), ServicesError> {
    let mut changes = directory.changes();
    tokio::select! {
        complete = directory.complete() => complete?,
        () = shutdown.cancelled() => return Ok(()),
    }
    let table = format!("{}_services", network.config().table());
    let now = || desired::rules(&directory.services.state(), &directory.slices.state());
    let mut current = now();
    nft::apply(&script::replace(&table, network.gateway(), &current)).await?;
    component.ready();
    loop {
        if !settled(&mut changes, &shutdown).await {
            return Ok(());
        }
        let next = now();
        match apply_change(&table, &current, &next).await {
            Ok(()) => {
                forget_stale_flows(&current, &next).await;
                current = next;
            }
            Err(error) => {
                // Somebody else changed the table, or nft is gone: the whole of it is made anew.
                tracing::warn!(%error, "a change of services was refused; making all rules anew");
                current = loop {
                    let all = now();
                    let Err(error) = nft::apply(&script::replace(&table, network.gateway(), &all)).await else {
                        break all;
                    };
                    tracing::error!(%error, "services cannot be programmed");
                    component.failed(error.to_string());
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = shutdown.cancelled() => return Ok(()),
                    }
                };
                component.ready();
            }
        }
    }
}

async fn apply_change(table: &str, current: &Rules, next: &Rules) -> Result<(), NftError> {
    match script::change(table, current, next) {
        script if script.is_empty() => Ok(()),
        script => nft::apply(&script).await,
    }
}

/// A UDP client that goes on speaking would stay with an endpoint that is gone: the kernel decides once for each flow.
async fn forget_stale_flows(before: &Rules, after: &Rules) {
    if !before.changes_udp(after) {
        return;
    }
    let (before, after) = (before.clone(), after.clone());
    let work = move || conntrack::forget_udp(|flow| desired::is_stale(&before, &after, flow));
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(0)) => {}
        Ok(Ok(flows)) => tracing::debug!(flows, "flows to endpoints that are gone were forgotten"),
        Ok(Err(error)) => tracing::warn!(%error, "flows to endpoints that are gone could not be forgotten"),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Waits for a change, then until things settle for a moment. False at shutdown.
async fn settled(changes: &mut watch::Receiver<u64>, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        changed = changes.changed() => if changed.is_err() {
            shutdown.cancelled().await;
            return false;
        },
        () = shutdown.cancelled() => return false,
    }
    tokio::time::sleep(DEBOUNCE).await;
    changes.mark_unchanged();
    true
}

#[cfg(test)]
mod tests;
