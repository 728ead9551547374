//! What may change of a pod, by an ordinary write and by those to its subresources. Upstream: `ValidatePodUpdate`,
//! `ValidatePodResize` and `ValidatePodEphemeralContainersUpdate` in `pkg/apis/core/validation`.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::super::quantity;
use super::{Check, element, index, join, list, members, pod, text};

const CHANGEABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Takes the old value of one field.
fn put_back(spec: &mut Value, old: &Value, name: &str) {
    let Some(map) = spec.as_object_mut() else { return };
    match old.get(name) {
        Some(value) => drop(map.insert(name.to_owned(), value.clone())),
        None => drop(map.remove(name)),
    }
}

/// An ordinary update.
pub(super) fn update(c: &mut Check, new: &Value, old: &Value) {
    let mut same = new.clone();
    for kind in ["containers", "initContainers"] {
        let (news, olds) = (list(new, &format!("/{kind}")), list(old, &format!("/{kind}")));
        if news.len() != olds.len() {
            return c.forbidden(&join("spec", kind), "pod updates may not add or remove containers");
        }
        let copied = same.get_mut(kind).and_then(Value::as_array_mut);
        for (one, old) in copied.into_iter().flatten().zip(olds) {
            put_back(one, old, "image");
        }
    }
    let deadline = |spec: &Value| spec.get("activeDeadlineSeconds").and_then(Value::as_i64);
    match (deadline(new), deadline(old)) {
        (Some(now), Some(was)) if now > was => {
            return c.invalid("spec.activeDeadlineSeconds", now, "must be less than or equal to previous value");
        }
        (None, Some(_)) => {
            let why = "must not update from a positive integer to nil value";
            c.invalid("spec.activeDeadlineSeconds", Value::Null, why);
        }
        _ => {}
    }
    put_back(&mut same, old, "activeDeadlineSeconds");
    tolerations(c, new, old);
    put_back(&mut same, old, "tolerations");
    gates(c, new, old);
    put_back(&mut same, old, "schedulingGates");
    let grace = |spec: &Value| spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if grace(old).is_some_and(|g| g < 0) && grace(new) == Some(1) {
        put_back(&mut same, old, "terminationGracePeriodSeconds");
    }
    if !list(old, "/schedulingGates").is_empty() {
        gated(c, new, old, &mut same);
    }
    if same != *old {
        c.forbidden("spec", CHANGEABLE);
    }
}

fn tolerations(c: &mut Check, new: &Value, old: &Value) {
    let without_seconds = |toleration: &Value| {
        let mut out = toleration.clone();
        if let Some(map) = out.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        out
    };
    let news: Vec<Value> = list(new, "/tolerations").iter().map(without_seconds).collect();
    if !list(old, "/tolerations").iter().map(without_seconds).all(|t| news.contains(&t)) {
        c.forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds");
    }
}

fn gates(c: &mut Check, new: &Value, old: &Value) {
    let olds = list(old, "/schedulingGates");
    for (at, gate) in list(new, "/schedulingGates").iter().enumerate().filter(|(_, gate)| !olds.contains(gate)) {
        let why = format!("only deletion is allowed, but found new scheduling gate '{}'", text(gate, "/name"));
        c.forbidden(&join(&element("spec", "schedulingGates", at), "name"), &why);
    }
}

/// A pod that waits at a gate may be told more exactly where to run.
fn gated(c: &mut Check, new: &Value, old: &Value, same: &mut Value) {
    let selector = new.get("nodeSelector").unwrap_or(&Value::Null);
    if members(old, "/nodeSelector").any(|(name, value)| selector.get(name) != Some(value)) {
        let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        c.invalid("spec.nodeSelector", selector.clone(), why);
    }
    put_back(same, old, "nodeSelector");
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let pointer = format!("/affinity/nodeAffinity/{REQUIRED}/nodeSelectorTerms");
    let (news, olds) = (list(new, &pointer), list(old, &pointer));
    let field = format!("spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms");
    if !olds.is_empty() && news.len() != olds.len() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        c.invalid(&field, news.to_vec(), why);
    } else {
        for (at, (now, was)) in news.iter().zip(olds).enumerate() {
            let grown = |kind: &str| list(now, kind).starts_with(list(was, kind));
            let empty = list(was, "/matchExpressions").is_empty() && list(was, "/matchFields").is_empty();
            if !grown("/matchExpressions") || !grown("/matchFields") || (empty && now != was) {
                let why = "only additions are allowed (no mutations or deletions)";
                c.invalid(&index(&field, at), now.clone(), why);
            }
        }
    }
    let old_nodes = old.pointer("/affinity/nodeAffinity");
    let Some(spec) = same.as_object_mut() else { return };
    let mut affinity = spec.get("affinity").and_then(Value::as_object).cloned().unwrap_or_default();
    match old_nodes {
        Some(nodes) => drop(affinity.insert("nodeAffinity".to_owned(), nodes.clone())),
        None => drop(affinity.remove("nodeAffinity")),
    }
    if affinity.is_empty() && old.get("affinity").is_none() {
        spec.remove("affinity");
    } else {
        spec.insert("affinity".to_owned(), Value::Object(affinity));
    }
}

const MIRROR: &str = "kubernetes.io/config.mirror";

fn is_mirror(pod: &Value) -> bool {
    pod.pointer("/metadata/annotations").is_some_and(|a| a.get(MIRROR).is_some())
}

/// A write to `ephemeralcontainers`: more of them, never others.
pub(super) fn ephemeral_containers(c: &mut Check, value: &Value, old: &Value) {
    if is_mirror(old) {
        return c.forbidden("", "static pods do not support ephemeral containers");
    }
    pod::whole(c, value);
    let news = list(value, "/spec/ephemeralContainers");
    for was in list(old, "/spec/ephemeralContainers") {
        let name = text(was, "/name");
        match news.iter().find(|one| text(one, "/name") == name) {
            None => {
                let why = format!("existing ephemeral containers {name:?} may not be removed\n");
                c.forbidden("spec.ephemeralContainers", &why);
            }
            Some(now) if now != was => {
                let why = format!("existing ephemeral containers {name:?} may not be changed\n");
                c.forbidden("spec.ephemeralContainers", &why);
            }
            Some(_) => {}
        }
    }
}

const ONLY: &str = "only cpu and memory resources are mutable";
const ONLY_OF_SIDECARS: &str = "only cpu and memory resources for sidecar containers are mutable";

/// A write to `resize`: amounts of cpu and memory, within the pod's class of service.
pub(super) fn resize(c: &mut Check, value: &Value, old: &Value) {
    let (new_spec, old_spec) = (&value["spec"], &old["spec"]);
    let of_pod =
        |spec: &Value| ["/resources/requests", "/resources/limits"].iter().any(|p| members(spec, p).next().is_some());
    if of_pod(old_spec) || of_pod(new_spec) {
        return c.forbidden("", "pods with pod-level resources cannot be resized");
    }
    if is_mirror(old) {
        return c.forbidden("", "static pods cannot be resized");
    }
    if text(old_spec, "/os/name") == "windows" {
        return c.forbidden("", "windows pods cannot be resized");
    }
    pod::whole(c, value);
    let before = c.errors.len();
    if quality(old_spec) != quality(new_spec) {
        let class = text(value, "/status/qosClass");
        c.invalid("spec", class, "Pod QOS Class may not change as a result of resizing");
    }
    for kind in ["initContainers", "containers"] {
        let pairs = list(new_spec, &format!("/{kind}")).iter().zip(list(old_spec, &format!("/{kind}")));
        for (at, (now, was)) in pairs.enumerate() {
            let sidecar = text(was, "/restartPolicy") == "Always";
            if kind == "initContainers" && !sidecar {
                if now != was {
                    c.forbidden("spec", "resources for non-sidecar init containers are immutable");
                }
                continue;
            }
            container(c, now, was, &join(&element("spec", kind, at), "resources"));
            if with_amounts_of(now, was) != *was {
                c.forbidden("spec", if kind == "containers" { ONLY } else { ONLY_OF_SIDECARS });
            }
        }
    }
    if c.errors.len() == before {
        let mut same = new_spec.clone();
        put_back(&mut same, old_spec, "containers");
        put_back(&mut same, old_spec, "initContainers");
        if same != *old_spec {
            c.forbidden("spec", ONLY);
        }
    }
}

/// The container with the old amounts of cpu and memory.
fn with_amounts_of(now: &Value, was: &Value) -> Value {
    let mut out = now.clone();
    let mut resources = now.get("resources").and_then(Value::as_object).cloned().unwrap_or_default();
    for kind in ["limits", "requests"] {
        let olds = was.pointer(&format!("/resources/{kind}"));
        let mut amounts: Map<String, Value> =
            resources.get(kind).and_then(Value::as_object).cloned().unwrap_or_default();
        for name in ["cpu", "memory"] {
            match olds.and_then(|o| o.get(name)) {
                Some(amount) => drop(amounts.insert(name.to_owned(), amount.clone())),
                None => drop(amounts.remove(name)),
            }
        }
        if amounts.is_empty() && olds.is_none() {
            resources.remove(kind);
        } else {
            resources.insert(kind.to_owned(), Value::Object(amounts));
        }
    }
    if was.get("resources").is_some() || !resources.is_empty() {
        out["resources"] = Value::Object(resources);
    } else if let Some(map) = out.as_object_mut() {
        map.remove("resources");
    }
    out
}

fn container(c: &mut Check, now: &Value, was: &Value, path: &str) {
    for (kind, one) in [("requests", "resource requests"), ("limits", "resource limits")] {
        let pointer = format!("/resources/{kind}");
        if members(was, &pointer).any(|(name, _)| now.pointer(&pointer).is_none_or(|n| n.get(name).is_none())) {
            c.forbidden(&join(path, kind), &format!("{one} cannot be removed"));
        }
    }
}

/// The class of service that a pod's amounts give it.
fn quality(spec: &Value) -> &'static str {
    let all: Vec<&Value> = ["/containers", "/initContainers"].iter().flat_map(|kind| list(spec, kind)).collect();
    let amount = |one: &Value, kind: &str, name: &str| {
        one.pointer(&format!("/resources/{kind}/{name}")).and_then(quantity::of).filter(|n| *n > 0)
    };
    let kinds: HashSet<&str> = all
        .iter()
        .flat_map(|one| {
            ["cpu", "memory"].map(|name| match (amount(one, "requests", name), amount(one, "limits", name)) {
                (None, None) => "none",
                (asked, Some(limit)) if asked.is_none_or(|a| a == limit) => "full",
                _ => "some",
            })
        })
        .collect();
    match (kinds.contains("none"), kinds.contains("full"), kinds.contains("some")) {
        (_, false, false) => "BestEffort",
        (false, true, false) => "Guaranteed",
        _ => "Burstable",
    }
}
