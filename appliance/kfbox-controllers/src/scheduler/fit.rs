//! Whether a pod fits on a node, and why not, in upstream's words. Pure.

use super::{
    ledger::{Held, Ledger},
    terms::{self, Term},
};
use crate::{cache::Cache, pods, selectors};
use k8s_openapi::{
    api::core::v1::{Namespace, Node, NodeSelector, NodeSelectorTerm, Pod, Taint, Toleration},
    apimachinery::pkg::api::resource::Quantity,
};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

/// Resource name to amount: thousandths for CPU and all else, so that `1500m` and `1` add up exactly.
pub type Requests = BTreeMap<String, i128>;
pub type HostPort = (String, String, i32);

/// What may make a pod fit that did not: bits of [`Reason::helped_by`].
pub mod event {
    /// A pod left a node, or a node grew.
    pub const ROOM: u8 = 1;
    /// A node came, or its labels or taints changed.
    pub const NODE: u8 = 2;
    /// A pod came to a node, or its labels changed.
    pub const PODS: u8 = 4;
    /// A claim, a volume or a class changed.
    pub const STORAGE: u8 = 8;
    pub const ANY: u8 = ROOM | NODE | PODS | STORAGE;
}

/// Why a pod does not fit on a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Reason {
    pub text: String,
    pub helped_by: u8,
    /// No pod's leaving would change it, so nobody is pre-empted for it.
    pub is_final: bool,
}

impl Reason {
    pub fn lasting(text: impl Into<String>, helped_by: u8) -> Self {
        Self { text: text.into(), helped_by, is_final: true }
    }

    pub fn passing(text: impl Into<String>, helped_by: u8) -> Self {
        Self { text: text.into(), helped_by, is_final: false }
    }
}

/// A pod to be placed, and what of it decisions need, read once.
pub struct Subject<'a> {
    pub pod: &'a Pod,
    uid: &'a str,
    pub priority: i32,
    tolerations: Vec<Toleration>,
    requests: Requests,
    ports: Vec<HostPort>,
    near: Vec<Term>,
    far: Vec<Term>,
    /// Claims that only one pod may use at a time.
    pub exclusive: Vec<String>,
}

impl<'a> Subject<'a> {
    pub fn new(pod: &'a Pod, exclusive: Vec<String>) -> Self {
        Self {
            pod,
            uid: pod.metadata.uid.as_deref().unwrap_or_default(),
            priority: priority(pod),
            tolerations: pod.spec.as_ref().and_then(|s| s.tolerations.clone()).unwrap_or_default(),
            requests: requests(pod),
            ports: host_ports(pod),
            near: terms::required(pod, false),
            far: terms::required(pod, true),
            exclusive,
        }
    }
}

pub fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
}

pub struct World<'a> {
    pub nodes: &'a [Arc<Node>],
    pub ledger: &'a Ledger,
    pub namespaces: &'a Cache<Namespace>,
    /// Uids of pods that are thought away.
    pub without: HashSet<String>,
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

fn uid(held: &Held) -> &str {
    held.pod.metadata.uid.as_deref().unwrap_or_default()
}

impl<'a> World<'a> {
    fn stays(&self, held: &Held) -> bool {
        self.without.is_empty() || !self.without.contains(uid(held))
    }

    /// Pods on other nodes, or this one, that count.
    fn present(&self) -> impl Iterator<Item = &'a Held> {
        self.ledger.all().filter(|h| self.stays(h))
    }

    /// Those for whom room is kept on the node and who go before `subject`.
    fn rivals(&self, subject: &Subject<'_>, node: &str) -> impl Iterator<Item = &'a Held> {
        self.ledger
            .nominated()
            .filter(move |h| h.node == node && h.priority() >= subject.priority && uid(h) != subject.uid)
            .filter(|h| self.stays(h))
    }

    fn used(&self, subject: &Subject<'_>, node: &str, resource: &str) -> i128 {
        let amount = |held: &Held| held.requests.get(resource).copied().unwrap_or(0);
        let thought_away: i128 =
            self.without.iter().filter_map(|uid| self.ledger.get(uid)).filter(|h| h.node == node).map(amount).sum();
        let kept: i128 = self.rivals(subject, node).map(amount).sum();
        self.ledger.used(node, resource) - thought_away + kept
    }

    fn count(&self, subject: &Subject<'_>, node: &str) -> usize {
        let thought_away =
            self.without.iter().filter_map(|uid| self.ledger.get(uid)).filter(|h| h.node == node).count();
        self.ledger.count(node) - thought_away + self.rivals(subject, node).count()
    }

    /// Whether a pod of the term runs in the topology domain of `node`.
    fn near(&self, term: &Term, node: &Node) -> bool {
        let Some(domain) = topology(node, &term.topology_key) else { return false };
        let domains: HashSet<&str> = self
            .nodes
            .iter()
            .filter(|n| topology(n, &term.topology_key) == Some(domain))
            .filter_map(|n| n.metadata.name.as_deref())
            .collect();
        self.present().any(|h| domains.contains(h.node.as_str()) && term.selects(&h.pod, self.namespaces))
    }
}

/// Why the pod does not fit; empty when it does. In the order of upstream's plugins: the first that objects is told.
pub fn reasons(subject: &Subject<'_>, node: &Node, world: &World<'_>) -> Vec<Reason> {
    let (pod, name) = (subject.pod, node.metadata.name.as_deref().unwrap_or_default());
    let tolerations = &subject.tolerations;
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        let cordon =
            Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() };
        if !tolerates(tolerations, &cordon) {
            return vec![Reason::lasting("node(s) were unschedulable", event::NODE)];
        }
    }
    if untolerated(node, tolerations).is_some() {
        return vec![Reason::lasting("node(s) had untolerated taint(s)", event::NODE)];
    }
    if !wants_node(pod, node) {
        return vec![Reason::lasting("node(s) didn't match Pod's node affinity/selector", event::NODE)];
    }
    if !subject.ports.is_empty() {
        let taken = world.ledger.with_ports().filter(|h| h.node == name && world.stays(h));
        let clash = |h: &Held| h.ports.iter().any(|p| subject.ports.iter().any(|w| ports_clash(p, w)));
        if taken.chain(world.rivals(subject, name)).any(clash) {
            let why = "node(s) didn't have free ports for the requested pod ports";
            return vec![Reason::passing(why, event::ROOM | event::NODE)];
        }
    }
    let why = room(subject, node, world);
    if !why.is_empty() {
        return why;
    }
    if !subject.exclusive.is_empty() {
        let used = |h: &Held| {
            h.pod.metadata.namespace == pod.metadata.namespace && h.claims.iter().any(|c| subject.exclusive.contains(c))
        };
        if world.ledger.on_node(name).filter(|h| world.stays(h)).any(used) {
            let why = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
            return vec![Reason::passing(why, event::ROOM | event::STORAGE)];
        }
    }
    if let Some(reason) = spread(subject, node, world) {
        return vec![reason];
    }
    affinity(subject, node, world).into_iter().collect()
}

/// What the node has too little of.
fn room(subject: &Subject<'_>, node: &Node, world: &World<'_>) -> Vec<Reason> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let helped_by = event::ROOM | event::NODE;
    let mut why = Vec::new();
    let empty = BTreeMap::new();
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref()).unwrap_or(&empty);
    let limit = |resource: &str| allocatable.get(resource).and_then(milli);
    let count = i128::try_from(world.count(subject, name)).unwrap_or(0);
    if limit("pods").is_some_and(|pods| count * 1_000 >= pods) {
        why.push(Reason::passing("Too many pods", helped_by));
    }
    for (resource, amount) in &subject.requests {
        let all = limit(resource);
        // A node that does not report its storage does not limit it.
        if all.is_none() && resource == "ephemeral-storage" {
            continue;
        }
        let all = all.unwrap_or(0);
        if *amount > 0 && world.used(subject, name, resource) + amount > all {
            // More than the whole node has: nobody's leaving would do.
            why.push(Reason { text: format!("Insufficient {resource}"), helped_by, is_final: *amount > all });
        }
    }
    why
}

fn affinity(subject: &Subject<'_>, node: &Node, world: &World<'_>) -> Option<Reason> {
    let helped_by = event::PODS | event::NODE;
    for term in &subject.near {
        let present = || world.present().any(|h| term.selects(&h.pod, world.namespaces));
        // The first of a group that wants to be together is near itself.
        let first = || term.selects(subject.pod, world.namespaces) && !present();
        if topology(node, &term.topology_key).is_none() || !(world.near(term, node) || first()) {
            return Some(Reason::lasting("node(s) didn't match pod affinity rules", helped_by));
        }
    }
    let helped_by = event::ROOM | event::PODS | event::NODE;
    if subject.far.iter().any(|term| world.near(term, node)) {
        return Some(Reason::passing("node(s) didn't match pod anti-affinity rules", helped_by));
    }
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let repels = |held: &Held| {
        held.repels.iter().any(|term| {
            let at = world.nodes.iter().find(|n| n.metadata.name.as_deref() == Some(held.node.as_str()));
            let here = topology(node, &term.topology_key);
            here.is_some()
                && at.and_then(|n| topology(n, &term.topology_key)) == here
                && term.selects(subject.pod, world.namespaces)
        })
    };
    let others = world.ledger.repelling().filter(|h| world.stays(h)).chain(world.rivals(subject, name));
    others
        .into_iter()
        .any(repels)
        .then(|| Reason::passing("node(s) didn't satisfy existing pods anti-affinity rules", helped_by))
}

/// Topology spread constraints that must hold.
fn spread(subject: &Subject<'_>, node: &Node, world: &World<'_>) -> Option<Reason> {
    let pod = subject.pod;
    let helped_by = event::ROOM | event::PODS | event::NODE;
    let constraints = pod.spec.as_ref()?.topology_spread_constraints.as_deref().unwrap_or_default();
    let hard: Vec<_> = constraints.iter().filter(|c| c.when_unsatisfiable == "DoNotSchedule").collect();
    for constraint in &hard {
        let Some(here) = topology(node, &constraint.topology_key) else {
            let why = "node(s) didn't match pod topology spread constraints (missing required label)";
            return Some(Reason::lasting(why, helped_by));
        };
        let selector =
            terms::narrowed(constraint.label_selector.as_ref(), pod, constraint.match_label_keys.as_ref(), None);
        let mut counts: BTreeMap<&String, i32> = BTreeMap::new();
        for other in world.nodes {
            let all_keys = hard.iter().all(|c| topology(other, &c.topology_key).is_some());
            let by_affinity = constraint.node_affinity_policy.as_deref() == Some("Ignore") || wants_node(pod, other);
            let by_taints = constraint.node_taints_policy.as_deref() != Some("Honor")
                || untolerated(other, &subject.tolerations).is_none();
            let Some(domain) = topology(other, &constraint.topology_key) else { continue };
            if !(all_keys && by_affinity && by_taints) {
                continue;
            }
            let there = other.metadata.name.as_deref().unwrap_or_default();
            let matching = world.ledger.on_node(there).filter(|h| {
                world.stays(h)
                    && h.pod.metadata.namespace == pod.metadata.namespace
                    && !pods::is_deleting(&h.pod)
                    && terms::matches(selector.as_ref(), &h.pod)
            });
            *counts.entry(domain).or_default() += i32::try_from(matching.count()).unwrap_or(i32::MAX);
        }
        let too_few_domains =
            constraint.min_domains.is_some_and(|min| counts.len() < usize::try_from(min).unwrap_or(0));
        let least = if too_few_domains { 0 } else { counts.values().min().copied().unwrap_or(0) };
        let own = i32::from(terms::matches(selector.as_ref(), pod));
        let after = counts.get(here).copied().unwrap_or(0) + own;
        if after - least > constraint.max_skew {
            return Some(Reason::passing("node(s) didn't match pod topology spread constraints", helped_by));
        }
    }
    None
}

/// How well a fitting node suits: preferred affinity first, then taints it had rather not meet, then the more room.
pub fn score(subject: &Subject<'_>, node: &Node, world: &World<'_>) -> (i64, i64, i64) {
    let affinity = subject.pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
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
            if world.near(&Term::of(&term.pod_affinity_term, subject.pod), node) {
                preferred += sign * i64::from(term.weight);
            }
        }
    }
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let unwelcome = taints.iter().filter(|t| t.effect == "PreferNoSchedule" && !tolerates(&subject.tolerations, t));
    let unwelcome = i64::try_from(unwelcome.count()).unwrap_or(i64::MAX);
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    let free = ["cpu", "memory"]
        .iter()
        .map(|resource| {
            let total = allocatable.and_then(|a| a.get(*resource)).and_then(milli).unwrap_or(0);
            let used = world.used(subject, name, resource);
            if total > 0 { i64::try_from((total - used).max(0) * 100 / total).unwrap_or(0) } else { 0 }
        })
        .sum();
    (preferred, -unwelcome, free)
}
