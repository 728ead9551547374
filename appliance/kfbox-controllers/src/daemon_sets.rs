//! DaemonSets: a pod on each node that it fits. Invariant: a pod's name follows from the set, the node and a slot. Upstream:
//! <https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/>.

use crate::{
    cache::{self, Key},
    context::{Context, Registered},
    deployments::share,
    names, pods,
    queue::{Outcome, Queue},
    replica_sets, revisions, scheduler,
    write::{self, WriteError},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus},
        core::v1::{
            Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
            Toleration,
        },
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::json;
use std::{collections::HashSet, sync::Arc, time::Duration};

const COMPONENT: &str = "daemonset-controller";
const WORKERS: usize = 2;

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<Key>::new();
    let q = queue.clone();
    context.caches.daemon_sets.on_change(move |change| change.both().for_each(|s| q.add(cache::key(&**s))));
    let q = queue.clone();
    context.caches.pods.on_change(move |change| {
        for pod in change.both() {
            if let Some(owner) = pods::controller(&pod.metadata).filter(|o| o.kind == "DaemonSet") {
                q.add((pod.metadata.namespace.clone().unwrap_or_default(), owner.name.clone()));
            }
        }
    });
    let (sets, q) = (context.caches.daemon_sets.clone(), queue.clone());
    context.caches.nodes.on_change(move |change| {
        let same = matches!((change.old, change.new), (Some(old), Some(new)) if old.spec == new.spec && old.metadata.labels == new.metadata.labels);
        if !same {
            sets.all().iter().for_each(|s| q.add(cache::key(&**s)));
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("daemonset", WORKERS, shutdown, move |key| reconcile(context.clone(), key)).await
    };
    ("daemonset", Box::pin(run))
}

#[derive(Default)]
struct Plan {
    create: Vec<Pod>,
    delete: Vec<Arc<Pod>>,
    status: DaemonSetStatus,
    again: Option<Duration>,
}

fn pinned(term: NodeSelectorTerm, node: &str) -> NodeSelectorTerm {
    let by_name =
        NodeSelectorRequirement { key: "metadata.name".into(), operator: "In".into(), values: Some(vec![node.into()]) };
    NodeSelectorTerm { match_fields: Some(vec![by_name]), ..term }
}

/// Binds the pod's affinity to one node, keeping what the template asks of nodes.
fn pin(spec: &mut PodSpec, node: &str) {
    let affinity =
        spec.affinity.get_or_insert_with(Affinity::default).node_affinity.get_or_insert_with(NodeAffinity::default);
    let required = &mut affinity.required_during_scheduling_ignored_during_execution;
    let terms = match required.take() {
        Some(selector) => selector.node_selector_terms.into_iter().map(|t| pinned(t, node)).collect(),
        None => vec![pinned(NodeSelectorTerm::default(), node)],
    };
    *required = Some(NodeSelector { node_selector_terms: terms });
}

fn tolerate(spec: &mut PodSpec) {
    let tolerations = spec.tolerations.get_or_insert_default();
    let mut pressure = vec![
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        pressure.push(("network-unavailable", "NoSchedule"));
    }
    for (key, effect) in pressure {
        let toleration = Toleration {
            key: Some(format!("node.kubernetes.io/{key}")),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
}

/// The node that a pod of the set is meant for.
fn meant_for(pod: &Pod) -> Option<&str> {
    pods::node(pod).or_else(|| {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
        let selector = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
        let fields = selector.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
        fields.filter(|f| f.key == "metadata.name").find_map(|f| f.values.as_ref()?.first()).map(String::as_str)
    })
}

/// How many new pods may run beside old ones during an update.
fn surge(spec: &DaemonSetSpec, nodes: i32) -> i32 {
    let strategy = spec.update_strategy.as_ref().filter(|s| s.type_.as_deref() != Some("OnDelete"));
    let value = strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.max_surge.as_ref());
    value.map_or(0, |value| share(value, nodes, true))
}

/// `hash` is the present template's.
fn decide(
    set: &DaemonSet,
    own: &[Arc<Pod>],
    namespace_pods: &[Arc<Pod>],
    nodes: &[Arc<Node>],
    hash: &str,
    now: Timestamp,
) -> Plan {
    let Some(spec) = &set.spec else { return Plan::default() };
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let taken: HashSet<&str> = namespace_pods.iter().map(|p| pods::name(p)).collect();
    let mut sample = pods::from_template(&spec.template, set, String::new());
    tolerate(sample.spec.get_or_insert_default());
    let tolerations = sample.spec.as_ref().and_then(|s| s.tolerations.clone()).unwrap_or_default();

    let mut plan = Plan::default();
    let mut status = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        collision_count: None,
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available, mut surged) = (0, 0, 0);
    let mut outdated: Vec<&Arc<Pod>> = Vec::new();
    let mut waiting: Vec<&str> = Vec::new();
    let is_present =
        |pod: &Pod| pod.metadata.labels.as_ref().and_then(|l| l.get(revisions::HASH_LABEL)).is_some_and(|h| h == hash);
    let is_available = |pod: &Pod| pods::is_available(pod, min_ready, now);
    let surge = surge(spec, i32::try_from(nodes.len()).unwrap_or(i32::MAX));
    let make = |node_name: &str| -> Option<Pod> {
        let pod_name = (0_u64..)
            .map(|slot| names::child(name, &[uid, node_name, hash, &slot.to_string()]))
            .find(|n| !taken.contains(n.as_str()))?;
        let mut pod = pods::from_template(&spec.template, set, pod_name);
        pod.metadata.labels.get_or_insert_default().insert(revisions::HASH_LABEL.into(), hash.into());
        let pod_spec = pod.spec.get_or_insert_default();
        pin(pod_spec, node_name);
        tolerate(pod_spec);
        Some(pod)
    };
    for node in nodes {
        let node_name = node.metadata.name.as_deref().unwrap_or_default();
        let here: Vec<&Arc<Pod>> = own.iter().filter(|p| meant_for(p) == Some(node_name)).collect();
        let mut live: Vec<&Arc<Pod>> = here.iter().copied().filter(|p| !pods::is_deleting(p)).collect();
        let untolerated = scheduler::fit::untolerated(node, &tolerations);
        let runs = scheduler::fit::wants_node(&sample, node) && untolerated.is_none();
        if !runs {
            let evicted =
                !scheduler::fit::wants_node(&sample, node) || untolerated.is_some_and(|t| t.effect == "NoExecute");
            if !live.is_empty() {
                status.number_misscheduled += 1;
            }
            if evicted {
                plan.delete.extend(live.into_iter().cloned());
            }
            continue;
        }
        status.desired_number_scheduled += 1;
        plan.delete.extend(live.iter().filter(|p| pods::is_finished(p)).map(|p| (*p).clone()));
        live.retain(|p| !pods::is_finished(p));
        live.sort_by(|a, b| pods::deletion_order(a, b));
        let (mut new, mut old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) = live.into_iter().partition(|p| is_present(p));
        // One a node, and while an update surges, one of each kind.
        let (new_one, mut old_one) = (new.pop(), old.pop());
        if surge == 0 && new_one.is_some() {
            old.extend(old_one.take());
        }
        plan.delete.extend(new.into_iter().chain(old).cloned());
        let shown = old_one.or(new_one);
        if let Some(pod) = shown {
            status.current_number_scheduled += 1;
            updated += i32::from(is_present(pod));
            status.number_ready += i32::from(pods::is_ready(pod));
            available += i32::from(is_available(pod));
        }
        match (old_one, new_one) {
            // The old pod makes room first: ports and folders are the node's only ones.
            (None, None) if here.is_empty() => plan.create.extend(make(node_name)),
            (Some(old), Some(new)) if is_available(new) => plan.delete.push(old.clone()),
            (Some(_), Some(_)) => surged += 1,
            (Some(old), None) if surge == 0 => outdated.push(old),
            // What serves nobody is not waited for.
            (Some(old), None) if !is_available(old) => plan.create.extend(make(node_name)),
            (Some(_), None) => waiting.push(node_name),
            (None, _) => {}
        }
    }
    let free = usize::try_from(surge - surged).unwrap_or(0);
    plan.create.extend(waiting.into_iter().take(free).filter_map(make));
    // Pods of nodes that are gone.
    let known: HashSet<&str> = nodes.iter().filter_map(|n| n.metadata.name.as_deref()).collect();
    plan.delete.extend(
        own.iter().filter(|p| !pods::is_deleting(p) && meant_for(p).is_none_or(|n| !known.contains(n))).cloned(),
    );

    let strategy = spec.update_strategy.as_ref();
    if surge == 0 && strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete") {
        let one = IntOrString::Int(1);
        let max =
            strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&one);
        let max = share(max, status.desired_number_scheduled, true).max(1);
        let mut budget = max - (status.desired_number_scheduled - available);
        // Sick ones cost nothing.
        outdated.sort_by_key(|p| pods::is_available(p, min_ready, now));
        for pod in outdated {
            let up = pods::is_available(pod, min_ready, now);
            if up && budget <= 0 {
                break;
            }
            budget -= i32::from(up);
            plan.delete.push(pod.clone());
        }
    }
    let some = |n: i32| Some(n).filter(|n| *n > 0);
    status.updated_number_scheduled = some(updated);
    status.number_available = some(available);
    status.number_unavailable = some(status.desired_number_scheduled - available);
    status.conditions = set.status.as_ref().and_then(|s| s.conditions.clone());
    plan.status = status;
    plan.again = own.iter().filter_map(|p| pods::available_in(p, min_ready, now)).min();
    plan
}

async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, WriteError> {
    let (client, caches) = (&context.client, &context.caches);
    let Some(set) = caches.daemon_sets.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
    let Some(spec) = &set.spec else { return Ok(Outcome::Done) };
    if set.metadata.deletion_timestamp.is_some() {
        return Ok(Outcome::Done);
    }
    let uid = cache::uid(&*set);
    let known: Vec<Arc<ControllerRevision>> = caches
        .revisions
        .in_namespace(&key.0)
        .into_iter()
        .filter(|r| pods::controller(&r.metadata).is_some_and(|o| o.uid == uid))
        .collect();
    let revision = revisions::of(&*set, &spec.template, spec.selector.match_labels.as_ref(), &known);
    if let Some(new) = &revision.create {
        write::create(client, &caches.revisions, &**new, Some(uid)).await?;
    }
    if let Some((old, number)) = &revision.renumber {
        write::patch(client, &caches.revisions, &**old, json!({ "revision": number })).await?;
    }
    let claimed = pods::claim(&caches.pods.in_namespace(&key.0), uid, false, &spec.selector);
    for pod in &claimed.adopt {
        replica_sets::adopt(&context, pod, &*set).await?;
    }
    for pod in &claimed.release {
        replica_sets::release(&context, pod, uid).await?;
    }
    let all = caches.pods.in_namespace(&key.0);
    let own = pods::claim(&all, uid, false, &spec.selector).own;
    let plan = decide(&set, &own, &all, &caches.nodes.all(), &revision.hash, Timestamp::now());
    for pod in &plan.delete {
        write::delete::<Pod>(client, &key.0, pods::name(pod), cache::uid(&**pod)).await?;
        context.events.normal(&*set, COMPONENT, "SuccessfulDelete", format!("Deleted pod: {}", pods::name(pod)));
    }
    for pod in &plan.create {
        if write::create(client, &caches.pods, pod, Some(uid)).await? {
            context.events.normal(&*set, COMPONENT, "SuccessfulCreate", format!("Created pod: {}", pods::name(pod)));
        }
    }
    let old = set.status.clone().unwrap_or_default();
    write::status_of(client, &caches.daemon_sets, &*set, &old, &plan.status).await?;
    let hashes = own.iter().filter_map(|p| p.metadata.labels.as_ref()?.get(revisions::HASH_LABEL));
    let in_use: Vec<String> = hashes.map(|h| format!("{}-{h}", key.1)).chain([revision.name.clone()]).collect();
    let in_use: Vec<&str> = in_use.iter().map(String::as_str).collect();
    for old in revisions::forgotten(&known, &in_use, spec.revision_history_limit) {
        write::delete::<ControllerRevision>(
            client,
            &key.0,
            old.metadata.name.as_deref().unwrap_or_default(),
            cache::uid(&*old),
        )
        .await?;
    }
    Ok(plan.again.map_or(Outcome::Done, Outcome::Again))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{at, object};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::Value;

    fn set(selector: Value) -> DaemonSet {
        object(
            json!({ "metadata": { "name": "agent", "namespace": "n", "uid": "d" }, "spec": { "selector": { "matchLabels": { "app": "agent" } },
            "template": { "metadata": { "labels": { "app": "agent" } }, "spec": { "nodeSelector": selector, "containers": [{ "name": "c" }] } } } }),
        )
    }

    fn node(name: &str, labels: Value) -> Arc<Node> {
        Arc::new(object(json!({ "metadata": { "name": name, "labels": labels } })))
    }

    fn running(pod: &Pod, node: &str) -> Arc<Pod> {
        let mut pod = pod.clone();
        pod.metadata.uid = pod.metadata.name.clone();
        pod.spec.as_mut().unwrap().node_name = Some(node.into());
        pod.status = Some(object(json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] })));
        Arc::new(pod)
    }

    #[test]
    fn each_fitting_node_gets_one_pod_pinned_to_it() {
        let set = set(json!({ "gpu": "yes" }));
        let nodes = [node("a", json!({ "gpu": "yes" })), node("b", json!({})), node("c", json!({ "gpu": "yes" }))];
        let plan = decide(&set, &[], &[], &nodes, "h1", at(0));
        assert_eq!(plan.create.iter().map(|p| meant_for(p).unwrap()).collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(plan.status.desired_number_scheduled, 2);
        let again = decide(&set, &[], &[], &nodes, "h1", at(9));
        assert_eq!(plan.create, again.create);
        let pods_ = [running(&plan.create[0], "a"), running(&plan.create[1], "c")];
        let plan = decide(&set, &pods_, &pods_, &nodes, "h1", at(0));
        assert!(plan.create.is_empty() && plan.delete.is_empty());
        assert_eq!((plan.status.number_ready, plan.status.updated_number_scheduled), (2, Some(2)));
        let plan = decide(&set, &pods_, &pods_, &nodes[..1], "h1", at(0));
        assert_eq!(plan.delete.len(), 1, "its node is gone");
    }

    #[test]
    fn an_update_replaces_one_pod_after_the_other_has_gone() {
        let set = set(json!({}));
        let nodes = [node("a", json!({})), node("b", json!({}))];
        let made = decide(&set, &[], &[], &nodes, "h1", at(0)).create;
        let mut own = vec![running(&made[0], "a"), running(&made[1], "b")];
        let plan = decide(&set, &own, &own, &nodes, "h2", at(0));
        assert_eq!(plan.delete.len(), 1);
        let mut leaving = (*own[0]).clone();
        leaving.metadata.deletion_timestamp = Some(Time(at(0)));
        own[0] = Arc::new(leaving);
        let plan = decide(&set, &own, &own, &nodes, "h2", at(0));
        assert!(plan.create.is_empty(), "the old one makes room first");
        assert!(plan.delete.is_empty(), "one at a time");
        let left = vec![own[1].clone()];
        let plan = decide(&set, &left, &left, &nodes, "h2", at(0));
        assert_eq!(meant_for(&plan.create[0]), Some("a"));
        assert!(plan.delete.is_empty());
    }
    #[test]
    fn a_surging_update_starts_the_new_pod_before_the_old_one_goes() {
        let mut set = set(json!({}));
        set.spec.as_mut().unwrap().update_strategy =
            Some(object(json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } })));
        let nodes = [node("a", json!({})), node("b", json!({}))];
        let old = decide(&set, &[], &[], &nodes, "h1", at(0)).create;
        let mut own = vec![running(&old[0], "a"), running(&old[1], "b")];
        let plan = decide(&set, &own, &own, &nodes, "h2", at(0));
        assert_eq!((plan.create.len(), plan.delete.len()), (1, 0), "one more at a time");
        let mut new = plan.create[0].clone();
        new.metadata.uid = Some("new".into());
        own.push(Arc::new(new.clone()));
        let plan = decide(&set, &own, &own, &nodes, "h2", at(0));
        assert_eq!((plan.create.len(), plan.delete.len()), (0, 0), "it is not ready yet");
        own[2] = running(&new, "a");
        let plan = decide(&set, &own, &own, &nodes, "h2", at(0));
        assert_eq!(plan.delete.len(), 1);
        assert_eq!(pods::name(&plan.delete[0]), pods::name(&own[0]));
        assert_eq!(plan.create.len(), 1, "and the next node begins");
    }
}
