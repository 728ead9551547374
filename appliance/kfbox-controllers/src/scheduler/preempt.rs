//! Pre-emption: whom to remove so that a pod of higher priority fits. Follows upstream's default plugin: the fewest
//! budgets broken, then the least important victims; whoever can stay stays. Pure.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/>.

use super::{
    fit::{self, Reason, Subject, World},
    histogram,
    ledger::Held,
};
use crate::{pods, selectors};
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, Pod},
    policy::v1::PodDisruptionBudget,
};
use std::{cmp::Reverse, collections::HashMap, sync::Arc};

pub const REASON: &str = "PreemptionByScheduler";

pub struct Victims {
    pub node: String,
    /// The most important first.
    pub pods: Vec<Arc<Pod>>,
    broken_budgets: usize,
}

/// Why nobody is removed, in upstream's words.
#[derive(Debug)]
pub struct Refusal {
    pub why: String,
    /// An earlier nomination is void; while victims are on their way out it is not.
    pub withdraw: bool,
}

pub fn decide(
    subject: &Subject<'_>,
    world: &mut World<'_>,
    failed: &[(Arc<Node>, Vec<Reason>)],
    budgets: &[Arc<PodDisruptionBudget>],
) -> Result<Victims, Refusal> {
    if let Some(why) = ineligible(subject, world, failed) {
        return Err(Refusal { why, withdraw: false });
    }
    let mut candidates = Vec::new();
    let mut why: Vec<String> = Vec::new();
    for (node, reasons) in failed {
        if reasons.iter().any(|r| r.is_final) {
            why.push("Preemption is not helpful for scheduling".into());
            continue;
        }
        match on_node(subject, world, node, budgets) {
            Ok(victims) => candidates.push(victims),
            Err(reasons) => why.extend(reasons),
        }
    }
    candidates.into_iter().min_by_key(cost).ok_or_else(|| {
        let why = format!("0/{} nodes are available: {}.", failed.len(), histogram(why));
        Refusal { why, withdraw: true }
    })
}

fn ineligible(subject: &Subject<'_>, world: &World<'_>, failed: &[(Arc<Node>, Vec<Reason>)]) -> Option<String> {
    if subject.pod.spec.as_ref().and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never.".into());
    }
    let nominated = subject.pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref())?;
    let hopeless = failed
        .iter()
        .any(|(node, reasons)| node.metadata.name.as_deref() == Some(nominated) && reasons.iter().any(|r| r.is_final));
    let leaving = world.ledger.on_node(nominated).any(|held| {
        held.priority() < subject.priority
            && pods::is_deleting(&held.pod)
            && pods::condition(&held.pod, "DisruptionTarget")
                .is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some(REASON))
    });
    (!hopeless && leaving).then(|| "not eligible due to a terminating pod on the nominated node.".into())
}

fn started(pod: &Pod) -> Timestamp {
    pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(Timestamp::MAX, |t| t.0)
}

/// The more important first: by priority, then by how long it runs.
fn importance(pod: &Pod) -> (Reverse<i32>, Timestamp, String) {
    (Reverse(fit::priority(pod)), started(pod), pods::name(pod).to_owned())
}

/// The smaller, the better to take.
fn cost(victims: &Victims) -> (usize, i32, i64, usize, Reverse<Timestamp>) {
    let priorities = victims.pods.iter().map(|p| fit::priority(p));
    let highest = priorities.clone().max().unwrap_or(i32::MIN);
    let sum = priorities.map(|p| i64::from(p) + i64::from(i32::MAX) + 1).sum();
    let first = victims.pods.iter().filter(|p| fit::priority(p) == highest).map(|p| started(p)).min();
    (victims.broken_budgets, highest, sum, victims.pods.len(), Reverse(first.unwrap_or(Timestamp::MIN)))
}

fn on_node(
    subject: &Subject<'_>,
    world: &mut World<'_>,
    node: &Node,
    budgets: &[Arc<PodDisruptionBudget>],
) -> Result<Victims, Vec<String>> {
    let name = node.metadata.name.clone().unwrap_or_default();
    let lower = |held: &&Held| held.priority() < subject.priority;
    let mut potential: Vec<Arc<Pod>> = world.ledger.on_node(&name).filter(lower).map(|h| h.pod.clone()).collect();
    if potential.is_empty() {
        return Err(vec!["No preemption victims found for incoming pod".into()]);
    }
    potential.sort_by_cached_key(|pod| importance(pod));
    let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
    world.without = potential.iter().map(|p| uid(p)).collect();
    let reasons = fit::reasons(subject, node, world);
    if !reasons.is_empty() {
        world.without.clear();
        return Err(reasons.into_iter().map(|r| r.text).collect());
    }
    // Whoever can stay stays, those first whose budget would break, and of them the more important.
    let (breaking, others) = by_budget(&potential, budgets);
    let mut victims: Vec<Arc<Pod>> = Vec::new();
    let mut broken_budgets = 0;
    for (pod, breaks) in breaking.into_iter().map(|p| (p, 1)).chain(others.into_iter().map(|p| (p, 0))) {
        world.without.remove(&uid(&pod));
        if !fit::reasons(subject, node, world).is_empty() {
            world.without.insert(uid(&pod));
            victims.push(pod);
            broken_budgets += breaks;
        }
    }
    world.without.clear();
    victims.sort_by_cached_key(|pod| importance(pod));
    Ok(Victims { node: name, pods: victims, broken_budgets })
}

/// Pods whose going would break a budget, and the others; both in the given order.
fn by_budget(potential: &[Arc<Pod>], budgets: &[Arc<PodDisruptionBudget>]) -> (Vec<Arc<Pod>>, Vec<Arc<Pod>>) {
    let mut left: HashMap<usize, i32> = HashMap::new();
    potential.iter().cloned().partition(|pod| {
        let mut breaks = false;
        for (number, budget) in budgets.iter().enumerate() {
            let status = budget.status.as_ref();
            let granted =
                status.and_then(|s| s.disrupted_pods.as_ref()).is_some_and(|p| p.contains_key(pods::name(pod)));
            let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
            let covers = budget.metadata.namespace == pod.metadata.namespace
                && pod.metadata.labels.as_ref().is_some_and(|l| !l.is_empty())
                && selector.is_some_and(|s| selectors::matches(s, pod.metadata.labels.as_ref()));
            if !covers || granted {
                continue;
            }
            let left = left.entry(number).or_insert_with(|| status.and_then(|s| s.disruptions_allowed).unwrap_or(0));
            *left -= 1;
            breaks |= *left < 0;
        }
        breaks
    })
}
