//! The Node object and its Lease.
//! Upstream: <https://kubernetes.io/docs/reference/node/node-status/>

use super::{
    NodeConfig, NodeError,
    machine::{Machine, Pressure},
};
use crate::pod::{context::Context, status};
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{Node, NodeAddress, NodeCondition, NodeSpec, NodeStatus},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
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

const MAX_PODS: u32 = 250;
const LEASE_SECONDS: i32 = 40;
const RENEW: Duration = Duration::from_secs(10);
/// The status is written this often even if nothing changed.
const HEARTBEAT: u32 = 30;

pub async fn run(ctx: &Arc<Context>, config: &NodeConfig, machine: Machine, tasks: &Tasks) -> Result<(), NodeError> {
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    let name = config.node_name.clone();
    let uid = register(&nodes, ctx, config, &machine).await?;
    let (ctx, config, shutdown) = (ctx.clone(), config.clone(), tasks.shutdown());
    tasks.essential("node-status", async move {
        let leases: Api<Lease> = Api::namespaced(ctx.client.clone(), "kube-node-lease");
        let mut pressure = Pressure::now(&config.data_dir);
        let mut since_write = 0;
        loop {
            if let Err(error) = renew(&leases, &name, &uid).await {
                tracing::warn!(%error, "the node's lease could not be renewed");
            }
            tokio::select! {
                () = tokio::time::sleep(RENEW) => {}
                () = shutdown.cancelled() => return Ok::<_, NodeError>(()),
            }
            let now = Pressure::now(&config.data_dir);
            since_write += 1;
            if now != pressure || since_write >= HEARTBEAT {
                let status = node_status(&ctx, &config, &machine, now);
                match nodes
                    .patch_status(&name, &PatchParams::default(), &Patch::Strategic(json!({ "status": status })))
                    .await
                {
                    Ok(_) => {
                        pressure = now;
                        since_write = 0;
                    }
                    Err(error) => tracing::warn!(%error, "the node's status could not be written"),
                }
            }
        }
    });
    Ok(())
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
    let status = node_status(ctx, config, machine, Pressure::now(&config.data_dir));
    let name = &config.node_name;
    let node = Node {
        metadata: ObjectMeta { name: Some(name.clone()), labels: Some(labels.clone()), ..ObjectMeta::default() },
        spec: Some(NodeSpec::default()),
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
    nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(json!({ "status": status }))).await?;
    Ok(registered.metadata.uid.unwrap_or_default())
}

fn node_status(ctx: &Context, config: &NodeConfig, machine: &Machine, pressure: Pressure) -> NodeStatus {
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
    let condition = |kind: &str, value: bool, reason: &str, message: &str| NodeCondition {
        type_: kind.into(),
        status: if value { "True" } else { "False" }.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    };
    let pressed = |kind: &str, what: &str, value: bool| {
        let (has, no) = (format!("KubeletHas{what}Pressure"), format!("KubeletHasNo{what}Pressure"));
        let enough = match what {
            "Memory" => ("KubeletHasSufficientMemory".to_owned(), "kubelet has sufficient memory available"),
            "PID" => ("KubeletHasSufficientPID".to_owned(), "kubelet has sufficient PID available"),
            _ => (no, "kubelet has no disk pressure"),
        };
        if value {
            condition(kind, true, &has, &format!("kubelet has {} pressure", what.to_lowercase()))
        } else {
            condition(kind, false, &enough.0, enough.1)
        }
    };
    let address = |kind: &str, address: String| NodeAddress { type_: kind.into(), address };
    NodeStatus {
        addresses: Some(
            ctx.host_ip
                .map(|ip| address("InternalIP", ip.to_string()))
                .into_iter()
                .chain([address("Hostname", config.node_name.clone())])
                .collect(),
        ),
        capacity: Some(resources.clone()),
        allocatable: Some(resources),
        conditions: Some(vec![
            pressed("MemoryPressure", "Memory", pressure.memory),
            pressed("DiskPressure", "Disk", pressure.disk),
            pressed("PIDPressure", "PID", pressure.pids),
            condition("Ready", true, "KubeletReady", "kubelet is posting ready status"),
        ]),
        node_info: Some(machine.info.clone()),
        ..NodeStatus::default()
    }
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
