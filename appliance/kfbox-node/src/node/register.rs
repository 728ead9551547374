//! The Node object and its Lease.
//! Upstream: <https://kubernetes.io/docs/reference/node/node-status/>

use super::{NodeConfig, NodeError, machine::Machine};
use crate::devices::Count;
use crate::pod::{admit::Conditions, context::Context, status};
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{Node, NodeAddress, NodeCondition, NodeSpec, NodeStatus, Taint},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time},
    },
    jiff::Timestamp,
};
use kfbox_base::Tasks;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::watch;

pub const MAX_PODS: u32 = 250;
const LEASE_SECONDS: i32 = 40;
const RENEW: Duration = Duration::from_secs(10);
/// The status is written this often even if nothing changed.
const HEARTBEAT: u32 = 30;

pub async fn run(
    ctx: &Arc<Context>,
    config: &NodeConfig,
    machine: Machine,
    mut conditions: watch::Receiver<Conditions>,
    tasks: &Tasks,
) -> Result<(), NodeError> {
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    let name = config.node_name.clone();
    // Before the first status is made, so that no change after it is missed.
    let mut devices = ctx.devices.changes();
    let uid = register(&nodes, ctx, config, &machine).await?;
    let (ctx, config, shutdown) = (ctx.clone(), config.clone(), tasks.shutdown());
    tasks.essential("node-status", async move {
        let leases: Api<Lease> = Api::namespaced(ctx.client.clone(), "kube-node-lease");
        let mut written = Conditions::default();
        let mut since = Since::default();
        let mut since_write = 0;
        let mut renewal = tokio::time::interval(RENEW);
        loop {
            tokio::select! {
                _ = renewal.tick() => {
                    since_write += 1;
                    if let Err(error) = renew(&leases, &name, &uid).await {
                        tracing::warn!(%error, "the node's lease could not be renewed");
                    }
                }
                changed = conditions.changed() => if changed.is_err() {
                    // Who observes the machine ended, so the daemon is stopping.
                    shutdown.cancelled().await;
                    return Ok(());
                },
                // The sender lives in the context.
                _ = devices.changed() => since_write = HEARTBEAT,
                () = shutdown.cancelled() => return Ok::<_, NodeError>(()),
            }
            let now = *conditions.borrow();
            if now != written || since_write >= HEARTBEAT {
                let status = node_status(&ctx, &config, &machine, now, &mut since);
                let status = json!({ "status": status });
                let wrote = async {
                    nodes.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await?;
                    taint(&nodes, &name, now).await
                };
                match wrote.await {
                    Ok(()) => {
                        written = now;
                        since_write = 0;
                    }
                    Err(error) => tracing::warn!(%error, "the node's status could not be written"),
                }
            }
        }
    });
    Ok(())
}

/// Sets the taints that go with the conditions, and takes away those that no longer do.
async fn taint(nodes: &Api<Node>, name: &str, now: Conditions) -> Result<(), kube::Error> {
    let node = nodes.get(name).await?;
    let before = node.spec.and_then(|s| s.taints).unwrap_or_default();
    let after = taints(&before, now);
    if after == before {
        return Ok(());
    }
    // Only if nobody else changed them meanwhile; else the next round does it.
    let version = node.metadata.resource_version;
    let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": after } });
    nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

fn taints(before: &[Taint], now: Conditions) -> Vec<Taint> {
    let ours = [
        ("node.kubernetes.io/memory-pressure", now.memory_pressure),
        ("node.kubernetes.io/disk-pressure", now.disk_pressure),
        ("node.kubernetes.io/pid-pressure", now.pid_pressure),
    ];
    let mut after: Vec<Taint> =
        before.iter().filter(|t| !ours.iter().any(|(key, holds)| t.key == *key && !holds)).cloned().collect();
    for (key, _) in ours.into_iter().filter(|(_, holds)| *holds) {
        if !after.iter().any(|t| t.key == key) {
            after.push(Taint { key: key.into(), effect: "NoSchedule".into(), ..Taint::default() });
        }
    }
    after
}

/// Since when each condition is as it is.
#[derive(Default)]
struct Since {
    known: BTreeMap<&'static str, (bool, Time)>,
}

impl Since {
    fn of(&mut self, kind: &'static str, value: bool, now: &Time) -> Time {
        match self.known.get(kind) {
            Some((known, since)) if *known == value => since.clone(),
            _ => {
                self.known.insert(kind, (value, now.clone()));
                now.clone()
            }
        }
    }
}

async fn register(
    nodes: &Api<Node>,
    ctx: &Context,
    config: &NodeConfig,
    machine: &Machine,
) -> Result<String, NodeError> {
    let mut labels = config.labels.clone();
    let arch = &machine.info.architecture;
    for (key, value) in [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
        ("node-role.kubernetes.io/control-plane", ""),
    ] {
        labels.insert(key.into(), value.into());
    }
    let status = node_status(ctx, config, machine, *ctx.conditions.lock(), &mut Since::default());
    let name = &config.node_name;
    let ranges: Vec<String> = config.network.pod_ranges().iter().map(ToString::to_string).collect();
    let node = Node {
        metadata: ObjectMeta { name: Some(name.clone()), labels: Some(labels.clone()), ..ObjectMeta::default() },
        spec: Some(NodeSpec {
            pod_cidr: ranges.first().cloned(),
            pod_cidrs: Some(ranges.clone()),
            ..NodeSpec::default()
        }),
        status: Some(status.clone()),
    };
    let registered = match nodes.create(&PostParams::default(), &node).await {
        Ok(node) => node,
        Err(kube::Error::Api(answer)) if answer.code == 409 => {
            let patch = json!({ "metadata": { "labels": labels } });
            nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?
        }
        Err(error) => return Err(error.into()),
    };
    let told = registered.spec.as_ref().and_then(|s| s.pod_cidrs.as_ref());
    if told != Some(&ranges) {
        let patch = json!({ "spec": { "podCIDR": ranges.first(), "podCIDRs": ranges } });
        // The first range of a Node is for good; a second one may come and go.
        match nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(answer)) if answer.code == 422 => {
                tracing::warn!(?told, "the Node object tells former ranges of pods; delete it to have it made anew");
            }
            other => drop(other?),
        }
    }
    nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(json!({ "status": status }))).await?;
    Ok(registered.metadata.uid.unwrap_or_default())
}

fn node_status(
    ctx: &Context,
    config: &NodeConfig,
    machine: &Machine,
    pressure: Conditions,
    since: &mut Since,
) -> NodeStatus {
    let resources: BTreeMap<String, Quantity> = [
        ("cpu", machine.cpus.to_string()),
        ("memory", format!("{}Ki", machine.memory_bytes / 1024)),
        ("ephemeral-storage", format!("{}Ki", machine.storage_bytes / 1024)),
        ("pods", MAX_PODS.to_string()),
        ("hugepages-1Gi", "0".into()),
        ("hugepages-2Mi", "0".into()),
    ]
    .into_iter()
    .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
    .collect();
    let now = status::now();
    let mut condition = |kind: &'static str, value: bool, reason: &str, message: &str| NodeCondition {
        type_: kind.into(),
        status: if value { "True" } else { "False" }.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: Some(since.of(kind, value, &now)),
    };
    let mut pressed = |kind: &'static str, what: &str, value: bool| {
        let (has, no) = match what {
            // Upstream's three are not alike.
            "Memory" => ("KubeletHasInsufficientMemory".to_owned(), String::new()),
            "PID" => ("KubeletHasInsufficientPID".to_owned(), String::new()),
            _ => (format!("KubeletHas{what}Pressure"), format!("KubeletHasNo{what}Pressure")),
        };
        let enough = match what {
            "Memory" => ("KubeletHasSufficientMemory".to_owned(), "kubelet has sufficient memory available"),
            "PID" => ("KubeletHasSufficientPID".to_owned(), "kubelet has sufficient PID available"),
            _ => (no, "kubelet has no disk pressure"),
        };
        if value {
            let message = match what {
                "Memory" => "kubelet has insufficient memory available",
                "PID" => "kubelet has insufficient PID available",
                _ => "kubelet has disk pressure",
            };
            condition(kind, true, &has, message)
        } else {
            condition(kind, false, &enough.0, enough.1)
        }
    };
    let devices = ctx.devices.counts();
    let address = |kind: &str, address: String| NodeAddress { type_: kind.into(), address };
    NodeStatus {
        addresses: Some(
            ctx.host_ips
                .iter()
                .map(|ip| address("InternalIP", ip.to_string()))
                .chain([address("Hostname", config.node_name.clone())])
                .collect(),
        ),
        capacity: Some(with_devices(&resources, &devices, |count| count.all)),
        allocatable: Some(with_devices(&resources, &devices, |count| count.healthy)),
        conditions: Some(vec![
            pressed("MemoryPressure", "Memory", pressure.memory_pressure),
            pressed("DiskPressure", "Disk", pressure.disk_pressure),
            pressed("PIDPressure", "PID", pressure.pid_pressure),
            condition("Ready", true, "KubeletReady", "kubelet is posting ready status"),
        ]),
        node_info: Some(machine.info.clone()),
        ..NodeStatus::default()
    }
}

fn with_devices(
    resources: &BTreeMap<String, Quantity>,
    devices: &[Count],
    of: impl Fn(&Count) -> usize,
) -> BTreeMap<String, Quantity> {
    let devices = devices.iter().map(|count| (count.resource.clone(), Quantity(of(count).to_string())));
    resources.clone().into_iter().chain(devices).collect()
}

async fn renew(leases: &Api<Lease>, name: &str, uid: &str) -> Result<(), kube::Error> {
    let now = MicroTime(Timestamp::now());
    let patch = json!({ "spec": { "renewTime": now, "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS } });
    match leases.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(answer)) if answer.code == 404 => {}
        other => return other.map(drop),
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: name.into(),
                uid: uid.into(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.into()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    leases.create(&PostParams::default(), &lease).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_come_and_go_with_the_conditions_and_others_stay() {
        let others = Taint { key: "mine".into(), effect: "NoExecute".into(), ..Taint::default() };
        let disk = Conditions { disk_pressure: true, ..Conditions::default() };
        let with = taints(std::slice::from_ref(&others), disk);
        assert_eq!(with.len(), 2);
        assert_eq!((with[1].key.as_str(), with[1].effect.as_str()), ("node.kubernetes.io/disk-pressure", "NoSchedule"));
        assert_eq!(taints(&with, disk), with);
        assert_eq!(taints(&with, Conditions::default()), [others]);
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let mut since = Since::default();
        let at = |second| Time(Timestamp::from_second(second).unwrap());
        assert_eq!(since.of("c", false, &at(1)), at(1));
        assert_eq!(since.of("c", false, &at(2)), at(1));
        assert_eq!(since.of("c", true, &at(3)), at(3));
    }
}
