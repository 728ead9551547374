//! The taints of nodes: what a node's conditions and its being cordoned mean for pods. Invariant: only upstream's own
//! `node.kubernetes.io/` taints are touched; those that people set stay. Upstream:
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/#taint-based-evictions>.

use crate::{
    context::{Context, Registered},
    queue::{Outcome, Queue},
    write::{self, WriteError},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::json;
use std::sync::Arc;

pub const PREFIX: &str = "node.kubernetes.io/";
const MANAGED: [&str; 7] = [
    "unschedulable",
    "not-ready",
    "unreachable",
    "memory-pressure",
    "disk-pressure",
    "pid-pressure",
    "network-unavailable",
];

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<String>::new();
    let q = queue.clone();
    context.caches.nodes.on_change(move |change| {
        if let Some(node) = change.new {
            q.add(node.metadata.name.clone().unwrap_or_default());
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("nodelifecycle", 1, shutdown, move |name| reconcile(context.clone(), name)).await
    };
    ("nodelifecycle", Box::pin(run))
}

async fn reconcile(context: Arc<Context>, name: String) -> Result<Outcome, WriteError> {
    let Some(node) = context.caches.nodes.get("", &name).filter(|n| n.metadata.deletion_timestamp.is_none()) else {
        return Ok(Outcome::Done);
    };
    if let Some(taints) = decide(&node, Timestamp::now()) {
        write::patch(&context.client, &context.caches.nodes, &*node, json!({ "spec": { "taints": taints } })).await?;
    }
    Ok(Outcome::Done)
}

/// The taints that the node should have; `None` when it has them.
fn decide(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let present = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let condition = |kind: &str| {
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        conditions.iter().find(|c| c.type_ == kind).map(|c| c.status.as_str())
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push(("unschedulable", "NoSchedule"));
    }
    match condition("Ready") {
        Some("False") => wanted.extend([("not-ready", "NoSchedule"), ("not-ready", "NoExecute")]),
        Some("Unknown") => wanted.extend([("unreachable", "NoSchedule"), ("unreachable", "NoExecute")]),
        _ => {}
    }
    for (kind, key) in [
        ("MemoryPressure", "memory-pressure"),
        ("DiskPressure", "disk-pressure"),
        ("PIDPressure", "pid-pressure"),
        ("NetworkUnavailable", "network-unavailable"),
    ] {
        if condition(kind) == Some("True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    let is = |taint: &Taint, (key, effect): &(&str, &str)| {
        taint.effect == *effect && taint.key.strip_prefix(PREFIX) == Some(*key)
    };
    let managed = |taint: &Taint| {
        taint.key.strip_prefix(PREFIX).is_some_and(|key| MANAGED.contains(&key))
            && matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
    };
    let mut taints: Vec<Taint> =
        present.iter().filter(|t| !managed(t) || wanted.iter().any(|w| is(t, w))).cloned().collect();
    for one in &wanted {
        if !taints.iter().any(|t| is(t, one)) {
            taints.push(Taint {
                key: format!("{PREFIX}{}", one.0),
                effect: one.1.into(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    (taints != present).then_some(taints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{at, object};
    use serde_json::Value;

    fn node(spec: Value, conditions: Value) -> Node {
        object(json!({ "metadata": { "name": "a" }, "spec": spec, "status": { "conditions": conditions } }))
    }

    fn keys(taints: Option<Vec<Taint>>) -> Option<Vec<String>> {
        taints.map(|t| t.iter().map(|t| format!("{}:{}", t.key, t.effect)).collect())
    }

    #[test]
    fn taints_follow_the_node_and_others_stay() {
        let mine = json!({ "key": "gpu", "effect": "NoSchedule" });
        let cordon = json!({ "key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule" });
        let fine = json!([{ "type": "Ready", "status": "True" }]);
        assert_eq!(decide(&node(json!({ "taints": [mine] }), fine.clone()), at(0)), None);
        let cordoned = node(json!({ "unschedulable": true, "taints": [mine] }), fine.clone());
        assert_eq!(
            keys(decide(&cordoned, at(0))),
            Some(vec!["gpu:NoSchedule".into(), "node.kubernetes.io/unschedulable:NoSchedule".into()])
        );
        let freed = node(json!({ "taints": [mine, cordon] }), fine);
        assert_eq!(keys(decide(&freed, at(0))), Some(vec!["gpu:NoSchedule".into()]));
        let sick = node(
            json!({}),
            json!([{ "type": "Ready", "status": "False" }, { "type": "DiskPressure", "status": "True" }]),
        );
        let taints = decide(&sick, at(7)).unwrap();
        assert_eq!(taints.len(), 3);
        assert_eq!(taints[1].time_added, Some(Time(at(7))));
        let mut told = sick.clone();
        told.spec.as_mut().unwrap().taints = Some(taints);
        assert_eq!(decide(&told, at(9)), None, "the time of a taint stays");
        let lost = node(json!({}), json!([{ "type": "Ready", "status": "Unknown" }]));
        assert!(keys(decide(&lost, at(0))).unwrap().contains(&"node.kubernetes.io/unreachable:NoExecute".to_owned()));
    }
}
