//! Whether a pod fits on a node, and why not, in upstream's words. Pure.

use super::ledger::Ledger;
use crate::selectors;
use k8s_openapi::{
    api::core::v1::{Node, NodeSelector, NodeSelectorTerm, Pod, PodAffinityTerm, Taint, Toleration},
    apimachinery::pkg::api::resource::Quantity,
};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

/// Resource name to amount: thousandths for CPU and all else, so that `1500m` and `1` add up exactly.
pub type Requests = BTreeMap<String, i128>;
pub type HostPort = (String, String, i32);

pub struct World<'a> {
    pub nodes: &'a [Arc<Node>],
    pub ledger: &'a Ledger,
}

/// A quantity in thousandths, rounded up; `None` when it is not one.
pub fn milli(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+' || c == '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (numerator, denominator): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000_000, 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        "Pi" => (1_000 << 50, 1),
        "Ei" => (1_000 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10_i128.checked_pow(u32::try_from(power.abs()).ok().filter(|p| *p <= 18)?)?;
            if power >= 0 { (factor.checked_mul(1_000)?, 1) } else { (1_000, factor) }
        }
    };
    let (sign, number) = match number.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
        return None;
    }
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let product = digits.checked_mul(numerator)?;
    let divisor = denominator.checked_mul(scale)?;
    Some(sign * (product + divisor - 1).div_euclid(divisor))
}

fn add(into: &mut Requests, from: Option<&BTreeMap<String, Quantity>>) {
    for (name, quantity) in from.into_iter().flatten() {
        *into.entry(name.clone()).or_default() += milli(quantity).unwrap_or(0);
    }
}

fn at_least(into: &mut Requests, from: &Requests) {
    for (name, amount) in from {
        let entry = into.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

/// What a pod asks of its node: the containers' sum, or what a starting phase needs if more; sidecars count throughout.
pub fn requests(pod: &Pod) -> Requests {
    let mut running = Requests::new();
    let Some(spec) = &pod.spec else { return running };
    for container in &spec.containers {
        add(&mut running, container.resources.as_ref().and_then(|r| r.requests.as_ref()));
    }
    let (mut sidecars, mut starting) = (Requests::new(), Requests::new());
    for container in spec.init_containers.iter().flatten() {
        let wants = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, wants);
            at_least(&mut starting, &sidecars);
        } else {
            let mut phase = sidecars.clone();
            add(&mut phase, wants);
            at_least(&mut starting, &phase);
        }
    }
    for (name, amount) in &sidecars {
        *running.entry(name.clone()).or_default() += amount;
    }
    at_least(&mut running, &starting);
    if let Some(whole) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        for (name, quantity) in whole {
            running.insert(name.clone(), milli(quantity).unwrap_or(0));
        }
    }
    add(&mut running, spec.overhead.as_ref());
    running.retain(|_, amount| *amount != 0);
    running
}

pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            let port = p.host_port.filter(|p| *p > 0)?;
            let ip = p.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
            Some((p.protocol.clone().unwrap_or_else(|| "TCP".into()), ip, port))
        })
        .collect()
}

fn ports_clash(a: &HostPort, b: &HostPort) -> bool {
    let any = |ip: &str| ip == "0.0.0.0" || ip == "::";
    a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || any(&a.1) || any(&b.1))
}

pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|t| {
        let effect = t.effect.as_deref().unwrap_or_default();
        let key = t.key.as_deref().unwrap_or_default();
        let exists = t.operator.as_deref() == Some("Exists");
        (effect.is_empty() || effect == taint.effect)
            && (key == taint.key || (key.is_empty() && exists))
            && (exists || t.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
    })
}

/// The first taint that keeps the pod off the node.
pub fn untolerated<'a>(node: &'a Node, tolerations: &[Toleration]) -> Option<&'a Taint> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints.iter().filter(|t| t.effect == "NoSchedule" || t.effect == "NoExecute").find(|t| !tolerates(tolerations, t))
}

fn requirement(operator: &str, values: Option<&Vec<String>>, value: Option<&String>) -> bool {
    let values = values.map(Vec::as_slice).unwrap_or_default();
    let number = |s: &String| s.parse::<i64>().ok();
    match operator {
        "In" => value.is_some_and(|v| values.contains(v)),
        "NotIn" => value.is_none_or(|v| !values.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" | "Lt" => match (value.and_then(number), values.first().and_then(number)) {
            (Some(has), Some(bound)) => (operator == "Gt" && has > bound) || (operator == "Lt" && has < bound),
            _ => false,
        },
        _ => false,
    }
}

fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let (expressions, fields) =
        (term.match_expressions.as_deref().unwrap_or_default(), term.match_fields.as_deref().unwrap_or_default());
    // An empty term matches nothing.
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let labels = node.metadata.labels.as_ref();
    expressions.iter().all(|e| requirement(&e.operator, e.values.as_ref(), labels.and_then(|l| l.get(&e.key))))
        && fields.iter().all(|e| {
            e.key == "metadata.name" && requirement(&e.operator, e.values.as_ref(), node.metadata.name.as_ref())
        })
}

pub fn selector_matches(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

/// `nodeSelector` and required node affinity.
pub fn wants_node(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let labels = node.metadata.labels.as_ref();
    let selected = spec.node_selector.as_ref().is_none_or(|s| selectors::equal(s, labels));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|s| selector_matches(s, node))
}

fn topology<'a>(node: &'a Node, key: &str) -> Option<&'a String> {
    node.metadata.labels.as_ref()?.get(key)
}

/// Whether `candidate` is one of the pods that `term` (of a pod in `namespace`) speaks of.
fn term_selects(term: &PodAffinityTerm, namespace: &str, candidate: &Pod) -> bool {
    let there = candidate.metadata.namespace.as_deref().unwrap_or_default();
    let named = term.namespaces.as_deref().unwrap_or_default();
    // A namespace selector that is present and empty means all; others would need the namespaces' labels.
    let everywhere = term.namespace_selector.as_ref().is_some_and(selectors::is_empty);
    let in_scope = everywhere
        || named.iter().any(|n| n == there)
        || (named.is_empty() && term.namespace_selector.is_none() && there == namespace);
    in_scope && term.label_selector.as_ref().is_some_and(|s| selectors::matches(s, candidate.metadata.labels.as_ref()))
}

impl World<'_> {
    /// Whether a pod of the term runs in the topology domain of `node`.
    fn near(&self, term: &PodAffinityTerm, namespace: &str, node: &Node) -> bool {
        let Some(domain) = topology(node, &term.topology_key) else { return false };
        let domains: HashSet<&str> = self
            .nodes
            .iter()
            .filter(|n| topology(n, &term.topology_key) == Some(domain))
            .filter_map(|n| n.metadata.name.as_deref())
            .collect();
        self.ledger.all().any(|h| domains.contains(h.node.as_str()) && term_selects(term, namespace, &h.pod))
    }
}

fn required_terms(pod: &Pod, anti: bool) -> &[PodAffinityTerm] {
    let Some(affinity) = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()) else { return &[] };
    let terms = if anti {
        affinity
            .pod_anti_affinity
            .as_ref()
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
    } else {
        affinity.pod_affinity.as_ref().and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
    };
    terms.unwrap_or_default()
}

/// Why the pod does not fit; empty when it does.
pub fn reasons(pod: &Pod, node: &Node, world: &World<'_>) -> Vec<String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        let cordon =
            Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() };
        if !tolerates(tolerations, &cordon) {
            return vec!["node(s) were unschedulable".into()];
        }
    }
    if !wants_node(pod, node) {
        return vec!["node(s) didn't match Pod's node affinity/selector".into()];
    }
    if let Some(taint) = untolerated(node, tolerations) {
        let value = taint.value.as_deref().unwrap_or_default();
        return vec![format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)];
    }
    let wanted = host_ports(pod);
    if world.ledger.on_node(name).any(|h| h.ports.iter().any(|p| wanted.iter().any(|w| ports_clash(p, w)))) {
        return vec!["node(s) didn't have free ports for the requested pod ports".into()];
    }

    let mut why = Vec::new();
    let empty = BTreeMap::new();
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref()).unwrap_or(&empty);
    let limit = |resource: &str| allocatable.get(resource).and_then(milli);
    if limit("pods").is_some_and(|pods| i128::try_from(world.ledger.on_node(name).count()).unwrap_or(0) * 1_000 >= pods)
    {
        why.push("Too many pods".to_owned());
    }
    for (resource, amount) in requests(pod) {
        let used: i128 = world.ledger.on_node(name).filter_map(|h| h.requests.get(&resource)).sum();
        let room = limit(&resource);
        // A node that does not report its storage does not limit it.
        if room.is_none() && resource == "ephemeral-storage" {
            continue;
        }
        if amount > 0 && used + amount > room.unwrap_or(0) {
            why.push(format!("Insufficient {resource}"));
        }
    }
    if !why.is_empty() {
        return why;
    }

    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    for term in required_terms(pod, false) {
        // The first of a group that wants to be together is near itself.
        let first =
            term_selects(term, namespace, pod) && !world.ledger.all().any(|h| term_selects(term, namespace, &h.pod));
        if topology(node, &term.topology_key).is_none() || !(first || world.near(term, namespace, node)) {
            return vec!["node(s) didn't match pod affinity rules".into()];
        }
    }
    if required_terms(pod, true).iter().any(|term| world.near(term, namespace, node)) {
        return vec!["node(s) didn't match pod anti-affinity rules".into()];
    }
    let repelled = world.ledger.all().any(|held| {
        let theirs = held.pod.metadata.namespace.as_deref().unwrap_or_default();
        required_terms(&held.pod, true).iter().any(|term| {
            let at = world.nodes.iter().find(|n| n.metadata.name.as_deref() == Some(held.node.as_str()));
            let here = topology(node, &term.topology_key);
            here.is_some()
                && at.and_then(|n| topology(n, &term.topology_key)) == here
                && term_selects(term, theirs, pod)
        })
    });
    if repelled {
        return vec!["node(s) didn't satisfy existing pods anti-affinity rules".into()];
    }
    spread(pod, node, world).into_iter().collect()
}

/// Topology spread constraints that must hold.
fn spread(pod: &Pod, node: &Node, world: &World<'_>) -> Option<String> {
    let namespace = pod.metadata.namespace.as_deref();
    let constraints = pod.spec.as_ref()?.topology_spread_constraints.as_deref().unwrap_or_default();
    for constraint in constraints.iter().filter(|c| c.when_unsatisfiable == "DoNotSchedule") {
        let Some(here) = topology(node, &constraint.topology_key) else {
            return Some("node(s) didn't match pod topology spread constraints (missing required label)".into());
        };
        let mut counts: BTreeMap<&String, i32> = BTreeMap::new();
        for other in world.nodes.iter().filter(|n| wants_node(pod, n)) {
            let Some(domain) = topology(other, &constraint.topology_key) else { continue };
            let count = counts.entry(domain).or_default();
            let matching = world.ledger.on_node(other.metadata.name.as_deref().unwrap_or_default()).filter(|h| {
                h.pod.metadata.namespace.as_deref() == namespace
                    && h.pod.metadata.deletion_timestamp.is_none()
                    && constraint
                        .label_selector
                        .as_ref()
                        .is_some_and(|s| selectors::matches(s, h.pod.metadata.labels.as_ref()))
            });
            *count += i32::try_from(matching.count()).unwrap_or(i32::MAX);
        }
        let least = counts.values().min().copied().unwrap_or(0);
        let own =
            constraint.label_selector.as_ref().is_some_and(|s| selectors::matches(s, pod.metadata.labels.as_ref()));
        let after = counts.get(here).copied().unwrap_or(0) + i32::from(own);
        if after - least > constraint.max_skew {
            return Some("node(s) didn't match pod topology spread constraints".into());
        }
    }
    None
}

/// How well a fitting node suits: preferred affinity first, then the more room.
pub fn score(pod: &Pod, node: &Node, world: &World<'_>) -> (i64, i64) {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut preferred = 0;
    let node_terms = affinity
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    for term in node_terms.unwrap_or_default() {
        if term_matches(&term.preference, node) {
            preferred += i64::from(term.weight);
        }
    }
    let near = affinity
        .and_then(|a| a.pod_affinity.as_ref())
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let far = affinity
        .and_then(|a| a.pod_anti_affinity.as_ref())
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    for (terms, sign) in [(near, 1), (far, -1)] {
        for term in terms.unwrap_or_default() {
            if world.near(&term.pod_affinity_term, namespace, node) {
                preferred += sign * i64::from(term.weight);
            }
        }
    }
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    let free = ["cpu", "memory"]
        .iter()
        .map(|resource| {
            let total = allocatable.and_then(|a| a.get(*resource)).and_then(milli).unwrap_or(0);
            let used: i128 = world.ledger.on_node(name).filter_map(|h| h.requests.get(*resource)).sum();
            if total > 0 { i64::try_from((total - used).max(0) * 100 / total).unwrap_or(0) } else { 0 }
        })
        .sum();
    (preferred, free)
}
