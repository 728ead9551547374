//! In-place resize of containers: whether the node has room, what the kernel is told, and what the status says. The
//! deciding is pure.
//! Upstream: <https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/>

use super::record::{self, Kind};
use crate::{
    cgroup::Limits,
    oci::resources::{self, limit, request},
    quantity,
};
use k8s_openapi::{
    api::core::v1::{Container, PodCondition, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use std::collections::BTreeMap;

/// What a pod has of the node, or wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
}

impl Share {
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }
}

/// What the containers that run side by side ask for.
pub fn share(spec: &PodSpec) -> Share {
    let beside = record::containers(spec).filter(|(kind, _)| matches!(kind, Kind::Main | Kind::Sidecar));
    beside.fold(Share::default(), |all, (_, c)| {
        let of = |name| request(&c, name).unwrap_or(0);
        all.plus(Share { cpu_milli: of("cpu"), memory_bytes: of("memory") })
    })
}

/// Why a resize has to wait: upstream's reason and words.
pub fn room(wanted: Share, others: Share, capacity: Share) -> Result<(), (&'static str, String)> {
    let each = [
        ("cpu", wanted.cpu_milli, others.cpu_milli, capacity.cpu_milli),
        ("memory", wanted.memory_bytes, others.memory_bytes, capacity.memory_bytes),
    ];
    for (name, wanted, _, capacity) in each {
        if wanted > capacity {
            let message =
                format!("Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {capacity}");
            return Err(("Infeasible", message));
        }
    }
    for (name, wanted, others, capacity) in each {
        if wanted.saturating_add(others) > capacity {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {wanted}, used: {others}, capacity: {capacity}"
            );
            return Err(("Deferred", message));
        }
    }
    Ok(())
}

/// A resize that is not done.
pub fn condition(kind: &str, reason: Option<&str>, message: Option<String>) -> PodCondition {
    PodCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: reason.map(Into::into),
        message,
        last_transition_time: Some(super::status::now()),
        ..PodCondition::default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The kernel is told.
    InPlace,
    /// The container has to start again for it.
    Restart,
}

/// What differs between what a container has and what it is to have. None: nothing that can change.
pub fn change(container: &Container, has: Option<&ResourceRequirements>) -> Option<Change> {
    let with = Container { resources: has.cloned(), ..Container::default() };
    let differs =
        |name: &str| limit(&with, name) != limit(container, name) || request(&with, name) != request(container, name);
    let changed: Vec<&str> = ["cpu", "memory"].into_iter().filter(|name| differs(name)).collect();
    if changed.is_empty() {
        return None;
    }
    let restarts =
        container.resize_policy.iter().flatten().any(|policy| {
            policy.restart_policy == "RestartContainer" && changed.contains(&policy.resource_name.as_str())
        });
    Some(if restarts { Change::Restart } else { Change::InPlace })
}

pub fn limits(container: &Container) -> Limits {
    let told = resources::resources(container, None, false);
    let number = |value: &serde_json::Value| value.as_u64();
    Limits {
        cpu_shares: number(&told["cpu"]["shares"]).unwrap_or(2),
        cpu_quota: number(&told["cpu"]["quota"]).zip(number(&told["cpu"]["period"])),
        memory_bytes: number(&told["memory"]["limit"]),
    }
}

/// `status.containerStatuses[].allocatedResources`: what was set aside.
pub fn allocated(has: &ResourceRequirements) -> Option<BTreeMap<String, Quantity>> {
    let with = Container { resources: Some(has.clone()), ..Container::default() };
    let declared = has.requests.iter().flatten().chain(has.limits.iter().flatten());
    let mut all = BTreeMap::new();
    for (name, amount) in declared {
        // Requests come first; a limit counts where nothing was requested.
        if request(&with, name).is_some() || quantity::value(amount) == Some(0) {
            all.entry(name.clone()).or_insert_with(|| amount.clone());
        }
    }
    (!all.is_empty()).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(value: serde_json::Value) -> Container {
        let mut value = value;
        value["name"] = json!("a");
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_changed_decides_whether_the_container_starts_again() {
        let policy = json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" },
            { "resourceName": "cpu", "restartPolicy": "NotRequired" }]);
        let has: ResourceRequirements =
            serde_json::from_value(json!({ "requests": { "cpu": "100m", "memory": "1Mi" } })).unwrap();
        let of = |cpu: &str, memory: &str| {
            let wanted = container(json!({
                "resizePolicy": policy, "resources": { "requests": { "cpu": cpu, "memory": memory } },
            }));
            change(&wanted, Some(&has))
        };
        assert_eq!(of("0.1", "1024Ki"), None, "written otherwise, the same");
        assert_eq!(of("200m", "1Mi"), Some(Change::InPlace));
        assert_eq!(of("200m", "2Mi"), Some(Change::Restart));
    }

    #[test]
    fn room_is_what_others_leave() {
        let share = |cpu_milli, memory_bytes| Share { cpu_milli, memory_bytes };
        assert_eq!(room(share(500, 10), share(1500, 90), share(2000, 100)), Ok(()));
        assert_eq!(
            room(share(501, 10), share(1500, 90), share(2000, 100)),
            Err((
                "Deferred",
                "Node didn't have enough resource: cpu, requested: 501, used: 1500, capacity: 2000".into()
            ))
        );
        assert_eq!(
            room(share(1, 101), share(9999, 0), share(2000, 100)),
            Err(("Infeasible", "Node didn't have enough capacity: memory, requested: 101, capacity: 100".into()))
        );
    }

    #[test]
    fn the_kernel_is_told_as_at_the_start() {
        let c = container(json!({ "resources": { "limits": { "cpu": "500m", "memory": "1Mi" } } }));
        let found = limits(&c);
        assert_eq!(found, Limits { cpu_shares: 512, cpu_quota: Some((50_000, 100_000)), memory_bytes: Some(1 << 20) });
        assert_eq!(limits(&container(json!({}))), Limits { cpu_shares: 2, cpu_quota: None, memory_bytes: None });
        let given = allocated(c.resources.as_ref().unwrap()).unwrap();
        assert_eq!(given["cpu"], Quantity("500m".into()));
    }
}
