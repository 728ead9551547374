//! Writes to the status of built-in kinds: what upstream's `Validate*StatusUpdate` functions refuse.

use serde_json::Value;

use super::{Check, element, join, limits, list, meta, names, text};

pub(super) fn check(c: &mut Check, group: &str, kind: &str, value: &Value, old: &Value) {
    let status = value.get("status").unwrap_or(&Value::Null);
    match (group, kind) {
        ("", "Pod") => pod(c, value, old),
        ("", "Namespace") => namespace(c, value),
        ("", "ReplicationController") | ("apps", "ReplicaSet") => {
            counts(c, status, &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas"]);
            at_most_replicas(c, status, &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"]);
        }
        ("apps", "Deployment") => {
            let fields = ["updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas"];
            counts(c, status, &["replicas", "observedGeneration"]);
            counts(c, status, &fields);
            at_most_replicas(c, status, &fields[..3]);
            never_less(c, status, &old["status"], "collisionCount");
        }
        ("apps", "StatefulSet") => {
            let fields = ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
            counts(c, status, &["replicas", "observedGeneration"]);
            counts(c, status, &fields);
            at_most_replicas(c, status, &fields);
            never_less(c, status, &old["status"], "collisionCount");
        }
        ("apps", "DaemonSet") => counts(
            c,
            status,
            &[
                "currentNumberScheduled",
                "numberMisscheduled",
                "desiredNumberScheduled",
                "numberReady",
                "observedGeneration",
                "updatedNumberScheduled",
                "numberAvailable",
                "numberUnavailable",
            ],
        ),
        ("batch", "Job") => counts(c, status, &["active", "succeeded", "failed", "ready"]),
        ("policy", "PodDisruptionBudget") => {
            counts(c, status, &["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"]);
        }
        ("", "ResourceQuota") => {
            for name in ["hard", "used"] {
                limits::amounts(c, value, &format!("/status/{name}"), &join("status", name));
            }
        }
        _ => {}
    }
}

/// A namespace's own list of what must be cleared away before it goes.
pub(super) fn content_finalizers(c: &mut Check, value: &Value) {
    for (at, finalizer) in list(value, "/spec/finalizers").iter().enumerate() {
        let (field, word) = (element("spec", "finalizers", at), finalizer.as_str().unwrap_or_default());
        c.holds(&field, word, names::qualified);
        meta::kube_finalizer(c, &field, word);
    }
}

fn counts(c: &mut Check, status: &Value, fields: &[&str]) {
    for name in fields {
        c.at_least(status, "status", name, 0);
    }
}

fn number(status: &Value, name: &str) -> i64 {
    status.get(name).and_then(Value::as_i64).unwrap_or(0)
}

fn at_most_replicas(c: &mut Check, status: &Value, fields: &[&str]) {
    let replicas = number(status, "replicas");
    for name in fields {
        let found = number(status, name);
        if found > replicas {
            c.invalid(&join("status", name), found, "cannot be greater than status.replicas");
        }
    }
    let (available, ready) = (number(status, "availableReplicas"), number(status, "readyReplicas"));
    if fields.contains(&"availableReplicas") && available > ready {
        c.invalid("status.availableReplicas", available, "cannot be greater than readyReplicas");
    }
}

fn never_less(c: &mut Check, status: &Value, old: &Value, name: &str) {
    if number(status, name) < number(old, name) {
        c.invalid(&join("status", name), number(status, name), "cannot be decremented");
    }
}

fn namespace(c: &mut Check, value: &Value) {
    let phase = text(value, "/status/phase");
    let deleting = value.pointer("/metadata/deletionTimestamp").is_some_and(Value::is_string);
    if !deleting && phase != "Active" {
        c.invalid("status.Phase", phase, "may only be 'Active' if `deletionTimestamp` is empty");
    }
    if deleting && phase != "Terminating" {
        c.invalid("status.Phase", phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
    }
}

fn pod(c: &mut Check, value: &Value, old: &Value) {
    for (at, condition) in list(value, "/status/conditions").iter().enumerate() {
        let field = join(&element("metadata", "conditions", at), "Type");
        c.holds(&field, text(condition, "/type"), names::qualified);
    }
    let nominated = text(value, "/status/nominatedNodeName");
    if !nominated.is_empty() && nominated != text(old, "/status/nominatedNodeName") {
        c.holds("status.nominatedNodeName", nominated, names::dns_subdomain);
    }
    let (class, was) = (text(value, "/status/qosClass"), text(old, "/status/qosClass"));
    // Writers that leave it out change nothing.
    if !was.is_empty() && !class.is_empty() && class != was {
        c.invalid("status.qosClass", class, "field is immutable");
    }
    ended_stay_ended(c, value, old);
    let addresses = list(value, "/status/podIPs");
    for (at, address) in addresses.iter().enumerate() {
        c.ip(&element("status", "podIPs", at), text(address, "/ip"));
        if addresses[..at].contains(address) {
            c.duplicate(&element("status", "podIPs", at), address.clone());
        }
    }
}

/// A container that ended and is not to run again stays ended.
fn ended_stay_ended(c: &mut Check, value: &Value, old: &Value) {
    let policy = text(old, "/spec/restartPolicy");
    for (kind, spec) in [
        ("containerStatuses", "containers"),
        ("initContainerStatuses", "initContainers"),
        ("ephemeralContainerStatuses", "ephemeralContainers"),
    ] {
        let policy = if kind == "ephemeralContainerStatuses" { "Never" } else { policy };
        if policy == "Always" {
            continue;
        }
        let news = list(value, &format!("/status/{kind}"));
        for (at, was) in list(old, &format!("/status/{kind}")).iter().enumerate() {
            let Some(ended) = was.pointer("/state/terminated") else { continue };
            let name = text(was, "/name");
            let failed = ended.get("exitCode").and_then(Value::as_i64).unwrap_or(0) != 0;
            // Of its own accord a container may have another policy than its pod.
            let one = list(old, &format!("/spec/{spec}")).iter().find(|one| text(one, "/name") == name);
            let restarts = one.is_some_and(|one| {
                matches!(text(one, "/restartPolicy"), "Always" | "OnFailure")
                    || !list(one, "/restartPolicyRules").is_empty()
            });
            if restarts || (failed && policy == "OnFailure") {
                continue;
            }
            if news.iter().any(|now| text(now, "/name") == name && now.pointer("/state/terminated").is_none()) {
                let field = join(&element("status", kind, at), "state");
                c.forbidden(&field, "may not be transitioned to non-terminated state");
            }
        }
    }
}
