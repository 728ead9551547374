//! What controllers ask of pods, and pods made from templates.

use crate::{
    cache, selectors,
    write::{self, WriteError},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{Selector, SelectorExt},
};
use serde_json::json;
use std::{cmp::Ordering, sync::Arc, time::Duration};

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Neither finished nor being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_deleting(pod)
}

pub fn condition<'a>(pod: &'a Pod, name: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == name)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when the pod is ready.
fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready").filter(|c| c.status == "True")?.last_transition_time.as_ref().map(|t| t.0)
}

pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    is_ready(pod) && (min_ready_seconds == 0 || available_in(pod, min_ready_seconds, now).is_none())
}

/// In how long a ready pod becomes available.
pub fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    let since = ready_since(pod)?;
    let left = SignedDuration::from_secs(min_ready_seconds.into()) - now.duration_since(since);
    (left > SignedDuration::ZERO).then(|| left.unsigned_abs())
}

pub fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn created(meta: &ObjectMeta) -> Timestamp {
    meta.creation_timestamp.as_ref().map_or(Timestamp::MIN, |t| t.0)
}

pub fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    statuses.iter().map(|c| c.restart_count).fold(0, i32::saturating_add)
}

pub fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_deref().unwrap_or_default().iter().find(|o| o.controller == Some(true))
}

/// An owner reference that makes `owner` the controller.
pub fn owned_by<K: cache::Kind>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The pods that an owner has, may adopt, and must let go.
#[derive(Default)]
pub struct Claimed {
    pub own: Vec<Arc<Pod>>,
    pub adopt: Vec<Arc<Pod>>,
    pub release: Vec<Arc<Pod>>,
}

/// Sorts a namespace's pods for an owner: its own that match, orphans that match, its own that no longer match.
pub fn claim(pods: &[Arc<Pod>], owner_uid: &str, owner_deleting: bool, selector: &LabelSelector) -> Claimed {
    let mut claimed = Claimed::default();
    let none = std::collections::BTreeMap::new();
    // Read once: a namespace may hold thousands of pods.
    let parsed = Selector::try_from(selector.clone()).ok().filter(|_| !selectors::is_empty(selector));
    for pod in pods {
        let fits = parsed.as_ref().is_some_and(|s| s.matches(pod.metadata.labels.as_ref().unwrap_or(&none)));
        match controller(&pod.metadata) {
            Some(owner) if owner.uid == owner_uid => {
                if fits {
                    claimed.own.push(pod.clone());
                } else if !owner_deleting && !is_deleting(pod) {
                    claimed.release.push(pod.clone());
                }
            }
            None if fits && !owner_deleting && is_active(pod) => claimed.adopt.push(pod.clone()),
            _ => {}
        }
    }
    claimed
}

/// A pod of a template, controlled by `owner`.
pub fn from_template<K: cache::Kind>(template: &PodTemplateSpec, owner: &K, name: String) -> Pod {
    let given = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: owner.meta().namespace.clone(),
            labels: given.labels,
            annotations: given.annotations,
            finalizers: given.finalizers,
            owner_references: Some(vec![owned_by(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Says on the pod that it is going to be removed, and why (the condition `DisruptionTarget`).
pub async fn mark_disrupted(client: &Client, pod: &Pod, reason: &str, message: &str) -> Result<(), WriteError> {
    let (namespace, name) = cache::key(pod);
    let now = Timestamp::now().to_string();
    let condition = json!({ "type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
        "lastTransitionTime": now });
    let body = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } });
    let api = Api::<Pod>::namespaced(client.clone(), &namespace);
    match api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(body)).await {
        Ok(_) => Ok(()),
        // Gone, or another of its name.
        Err(error) if write::is_missing(&error) || write::is_conflict(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn rank(pod: &Pod) -> (bool, u8, bool, i64) {
    let phase = match phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let cost = pod.metadata.annotations.as_ref().and_then(|a| a.get("controller.kubernetes.io/pod-deletion-cost"));
    let cost = cost.and_then(|c| c.parse().ok()).unwrap_or(0);
    (node(pod).is_some(), phase, is_ready(pod), cost)
}

/// Which of two pods goes first when there are too many: the less far along, then the cheaper, the newer, the more
/// restarted. As upstream's `ActivePodsWithRanks`, with the name deciding ties so that the order never wavers.
pub fn deletion_order(a: &Pod, b: &Pod) -> Ordering {
    rank(a)
        .cmp(&rank(b))
        .then_with(|| match (ready_since(a), ready_since(b)) {
            (Some(a), Some(b)) => b.cmp(&a),
            _ => Ordering::Equal,
        })
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| created(&b.metadata).cmp(&created(&a.metadata)))
        .then_with(|| name(a).cmp(name(b)))
}

#[cfg(test)]
pub mod testing {
    //! Pods for tests of decisions.

    use super::*;
    use serde_json::{Value, json};

    pub fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("in range")
    }

    pub fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).expect("a valid object")
    }

    /// A pod of `owner_uid` in namespace `n`, with uid `uid-NAME`.
    pub fn pod(name: &str, owner_uid: &str, labels: Value, phase: &str, ready: bool) -> Pod {
        object(json!({
            "metadata": {
                "name": name, "namespace": "n", "uid": format!("uid-{name}"), "labels": labels,
                "creationTimestamp": at(0).to_string(),
                "ownerReferences": [{ "apiVersion": "v1", "kind": "X", "name": "x", "uid": owner_uid, "controller": true }],
            },
            "spec": { "containers": [{ "name": "main", "image": "i" }], "nodeName": "node" },
            "status": { "phase": phase, "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" },
                "lastTransitionTime": at(0).to_string() }] },
        }))
    }
}
