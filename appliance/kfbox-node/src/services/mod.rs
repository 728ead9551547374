//! Services on one node: connections to a service's addresses and node ports are sent to its endpoints by the kernel.
//! Source: the Kubernetes "Virtual IPs and Service Proxies" reference. IPVS and topology-aware routing do not apply to one
//! node. Each family has a table of its own, as its Services and endpoints are.
//!
//! Guarantees: each change is one nft transaction, of both families, so that no connection meets half of one; at start the table is replaced,
//! so that nothing stale remains; connections under way are kept by conntrack.

pub mod desired;
mod directory;
pub mod policy;
mod script;

pub use directory::{Directory, WatchEnded};
pub use policy::Policies;

use crate::network::{Family, Network, NftError, conntrack, nft};
use desired::Rules;
use kfbox_base::{Component, Readiness, Tasks};
use kube::Client;
use script::Table;
use std::{net::IpAddr, time::Duration};
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
    let tables = tables(&network);
    let now = || -> Vec<Rules> {
        let (services, slices) = (directory.services.state(), directory.slices.state());
        tables.iter().map(|table| desired::rules(table.family, &services, &slices)).collect()
    };
    let mut current = now();
    nft::apply(&replace(&tables, &current)).await?;
    component.ready();
    loop {
        if !settled(&mut changes, &shutdown).await {
            return Ok(());
        }
        let next = now();
        match apply_change(&tables, &current, &next).await {
            Ok(()) => {
                for ((table, before), after) in tables.iter().zip(&current).zip(&next) {
                    forget_stale_flows(table.family, before, after).await;
                }
                current = next;
            }
            Err(error) => {
                // Somebody else changed the table, or nft is gone: the whole of it is made anew.
                tracing::warn!(%error, "a change of services was refused; making all rules anew");
                current = loop {
                    let all = now();
                    let Err(error) = nft::apply(&replace(&tables, &all)).await else {
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

/// One for each family that the network has.
fn tables(network: &Network) -> Vec<Table> {
    let name = format!("{}_services", network.config().table());
    let gateways = [Some(IpAddr::V4(network.gateway())), network.config().second_gateway().map(IpAddr::V6)];
    let table = |gateway| Table { family: Family::of(&gateway), name: name.clone(), gateway };
    gateways.into_iter().flatten().map(table).collect()
}

fn replace(tables: &[Table], rules: &[Rules]) -> String {
    tables.iter().zip(rules).map(|(table, rules)| script::replace(table, rules)).collect()
}

async fn apply_change(tables: &[Table], current: &[Rules], next: &[Rules]) -> Result<(), NftError> {
    let changes = tables.iter().zip(current).zip(next);
    match changes.map(|((table, before), after)| script::change(table, before, after)).collect::<String>() {
        script if script.is_empty() => Ok(()),
        script => nft::apply(&script).await,
    }
}

/// A UDP client that goes on speaking would stay with an endpoint that is gone: the kernel decides once for each flow.
async fn forget_stale_flows(family: Family, before: &Rules, after: &Rules) {
    if !before.changes_udp(after) {
        return;
    }
    let (before, after) = (before.clone(), after.clone());
    let work = move || conntrack::forget_udp(family, |flow| desired::is_stale(&before, &after, flow));
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
