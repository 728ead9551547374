//! The scheduler: a node for each pod that has none. Invariants: a decision is made under one lock against what is bound
//! and what was just decided, so two pods never get the same room; higher priority goes first, and may have pods of lower
//! priority removed; a pod that fits nowhere says why in its condition and an event, and is looked at again when something
//! happens that can help it. Upstream: <https://kubernetes.io/docs/concepts/scheduling-eviction/kube-scheduler/>.

pub mod fit;
mod ledger;
mod preempt;
mod storage;
mod terms;
mod waiting;

pub use storage::claim_names;

use crate::{
    cache,
    context::{Context, Registered},
    pods, write,
};
use fit::{Reason, Subject, World, event};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, PersistentVolumeClaim, Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use ledger::Ledger;
use parking_lot::Mutex;
use preempt::Victims;
use serde_json::json;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use waiting::Waiting;

const COMPONENT: &str = "default-scheduler";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Writes under way at once; each is durable, and the server commits those that wait together.
const BINDING: usize = 64;
/// A pod that fits nowhere is looked at again after so long, should an event have been missed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

#[derive(Default)]
struct State {
    ledger: Ledger,
    waiting: Waiting,
    /// Pods for which victims are being removed just now.
    preempting: HashSet<String>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Notify,
}

impl Shared {
    fn happened(&self, what: u8) {
        let mut state = self.state.lock();
        state.waiting.happened(what, Instant::now());
        drop(state);
        self.wake.notify_one();
    }
}

/// Whether the pod waits for this scheduler.
fn waits(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    pods::node(pod).is_none()
        && pods::is_active(pod)
        && spec.and_then(|s| s.scheduler_name.as_deref()).is_none_or(|n| n.is_empty() || n == COMPONENT)
        && spec.and_then(|s| s.scheduling_gates.as_ref()).is_none_or(Vec::is_empty)
}

pub fn register(context: &Arc<Context>) -> Registered {
    let shared = Arc::new(Shared::default());
    let s = shared.clone();
    context.caches.pods.on_change(move |change| observe(&s, change));
    let s = shared.clone();
    context.caches.nodes.on_change(move |change| {
        // A node reports its status every few seconds; only what decides counts.
        let what = node_change(change.old, change.new);
        if what != 0 {
            s.happened(what);
        }
    });
    macro_rules! storage_events {
        ($($cache:ident),*) => {$({
            let s = shared.clone();
            context.caches.$cache.on_change(move |_| s.happened(event::STORAGE));
        })*};
    }
    storage_events!(claims, volumes, classes);
    let s = shared.clone();
    context.caches.namespaces.on_change(move |change| {
        if change.old.map(|n| &n.metadata.labels) != change.new.map(|n| &n.metadata.labels) {
            s.happened(event::PODS);
        }
    });

    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        run(context, shared).await
    };
    ("scheduler", Box::pin(run))
}

fn observe(shared: &Shared, change: &cache::Change<'_, Pod>) {
    let mut state = shared.state.lock();
    let now = Instant::now();
    match (change.old, change.new) {
        (old, Some(pod)) => {
            let held = state.ledger.observe(pod);
            if waits(pod) {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                // Our own note on its condition is no reason to look again.
                let same = old.is_some_and(|old| {
                    waits(old) && old.spec == pod.spec && old.metadata.labels == pod.metadata.labels
                });
                if !(same && state.waiting.is_stuck(uid)) {
                    state.waiting.add(pod);
                }
            } else if old.is_some_and(|old| waits(old)) {
                state.waiting.remove(pod);
            }
            if !held && old.is_some_and(|old| !pods::is_finished(old)) {
                state.waiting.happened(event::ROOM | event::PODS, now);
            } else if held && pods::node(pod).is_some() {
                let moved = old.is_none_or(|old| {
                    old.metadata.labels != pod.metadata.labels
                        || pods::node(old) != pods::node(pod)
                        || pods::is_deleting(old) != pods::is_deleting(pod)
                });
                if moved {
                    state.waiting.happened(event::PODS, now);
                }
                // Resized in place.
                if old.is_some_and(|old| pods::node(old).is_some() && old.spec != pod.spec) {
                    state.waiting.happened(event::ROOM, now);
                }
            }
        }
        (Some(pod), None) => {
            state.ledger.forget(pod);
            state.waiting.remove(pod);
            state.waiting.happened(event::ROOM | event::PODS, now);
        }
        (None, None) => {}
    }
    let wake = state.waiting.is_ready() || state.waiting.next().is_some();
    drop(state);
    if wake {
        shared.wake.notify_one();
    }
}

fn node_change(old: Option<&Arc<Node>>, new: Option<&Arc<Node>>) -> u8 {
    let (Some(old), Some(new)) = (old, new) else { return event::ANY };
    let mut what = 0;
    if old.spec != new.spec || old.metadata.labels != new.metadata.labels {
        what |= event::NODE;
    }
    if old.status.as_ref().map(|s| &s.allocatable) != new.status.as_ref().map(|s| &s.allocatable) {
        what |= event::ROOM;
    }
    what
}

enum Decision {
    Bind(String),
    /// The claims to provision on the node; the pod waits for them.
    Provision(String, Vec<Arc<PersistentVolumeClaim>>),
    Stuck {
        why: String,
        helped_by: u8,
        victims: Option<Victims>,
        /// An earlier nomination is void.
        withdraw: bool,
    },
}

/// Reasons with how often each is given, as upstream words them.
fn histogram(reasons: impl IntoIterator<Item = String>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut parts: Vec<String> = counts.into_iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    parts.sort();
    parts.join(", ")
}

fn decide(pod: &Pod, context: &Context, ledger: &Ledger) -> Decision {
    let caches = &context.caches;
    let nodes = caches.nodes.all();
    let stuck = |why: String, helped_by| Decision::Stuck { why, helped_by, victims: None, withdraw: true };
    if nodes.is_empty() {
        return stuck("no nodes available to schedule pods".into(), event::NODE);
    }
    let total = nodes.len();
    let none = format!("0/{total} nodes are available:");
    let claims = match storage::claims(pod, caches) {
        Ok(claims) => claims,
        Err(reason) => {
            let hopeless = format!("{none} {total} Preemption is not helpful for scheduling.");
            return stuck(format!("{none} {reason}. preemption: {hopeless}"), event::STORAGE);
        }
    };
    let mut world = World { nodes: &nodes, ledger, namespaces: &caches.namespaces, without: HashSet::new() };
    let subject = Subject::new(pod, claims.exclusive.clone());
    let mut failed: Vec<(Arc<Node>, Vec<Reason>)> = Vec::new();
    let mut fitting = Vec::new();
    for node in &nodes {
        let mut why = fit::reasons(&subject, node, &world);
        if why.is_empty() {
            why = claims.conflicts(node, caches);
        }
        if why.is_empty() {
            fitting.push(node);
        } else {
            failed.push((node.clone(), why));
        }
    }
    let nominated = pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref());
    let best = fitting.into_iter().max_by_key(|node| {
        let name = node.metadata.name.as_deref();
        (nominated.is_some() && name == nominated, fit::score(&subject, node, &world), Reverse(name))
    });
    match best.and_then(|node| node.metadata.name.clone()) {
        Some(node) if claims.unbound.is_empty() => Decision::Bind(node),
        Some(node) => Decision::Provision(node, claims.unbound),
        None => {
            let texts = failed.iter().flat_map(|(_, why)| why.iter().map(|r| r.text.clone()));
            let mut why = format!("{none} {}.", histogram(texts));
            let helped_by = failed.iter().flat_map(|(_, why)| why).fold(0, |all, r| all | r.helped_by);
            match preempt::decide(&subject, &mut world, &failed, &caches.budgets.all()) {
                Ok(victims) => Decision::Stuck { why, helped_by, victims: Some(victims), withdraw: false },
                Err(refusal) => {
                    why += &format!(" preemption: {}", refusal.why);
                    Decision::Stuck { why, helped_by, victims: None, withdraw: refusal.withdraw }
                }
            }
        }
    }
}

async fn run(context: Arc<Context>, shared: Arc<Shared>) -> Result<(), Infallible> {
    let mut writes: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    let mut tick = tokio::time::interval(LOOK_AGAIN);
    loop {
        while writes.len() < BINDING {
            let Some(key) = ({ shared.state.lock().waiting.pop(Instant::now()) }) else { break };
            if let Some(write) = look(&context, &shared, &key) {
                writes.push(write);
            }
        }
        let due = shared.state.lock().waiting.next();
        let paused = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = context.shutdown.cancelled() => return Ok(()),
            Some(()) = writes.next(), if !writes.is_empty() => {}
            () = shared.wake.notified(), if writes.len() < BINDING => {}
            () = paused, if writes.len() < BINDING => {}
            _ = tick.tick() => shared.state.lock().waiting.all_again(),
        }
    }
}

/// Decides about one pod; what is to be written for it.
fn look(context: &Arc<Context>, shared: &Arc<Shared>, key: &cache::Key) -> Option<BoxFuture<'static, ()>> {
    let pod = context.caches.pods.get(&key.0, &key.1).filter(|p| waits(p))?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let mut state = shared.state.lock();
    if state.ledger.is_assumed(&uid) || state.preempting.contains(&uid) {
        return None;
    }
    let now = Instant::now();
    let (context, shared) = (context.clone(), shared.clone());
    match decide(&pod, &context, &state.ledger) {
        Decision::Bind(node) => {
            state.waiting.unstick(&uid);
            state.ledger.assume(&pod, &node);
            drop(state);
            Some(Box::pin(async move { bind(&context, &shared, &pod, &node).await }))
        }
        Decision::Provision(node, claims) => {
            state.waiting.wait_for_claims(&pod, now);
            drop(state);
            Some(Box::pin(async move { select_node(&context, &claims, &node).await }))
        }
        Decision::Stuck { why, helped_by, victims, withdraw } => {
            let known = state.waiting.stick(&pod, &why, helped_by, now);
            let mut nomination = Nomination::Keep;
            if let Some(victims) = &victims {
                state.ledger.nominate(&pod, &victims.node);
                state.preempting.insert(uid);
                nomination = Nomination::Set(victims.node.clone());
            } else if withdraw && state.ledger.withdraw(&uid) {
                nomination = Nomination::Clear;
            }
            drop(state);
            if !known {
                context.events.warning(&*pod, COMPONENT, "FailedScheduling", why.clone());
            }
            if known && victims.is_none() && matches!(nomination, Nomination::Keep) {
                return None;
            }
            Some(Box::pin(async move {
                tell(&context, &shared, &pod, why, nomination).await;
                if let Some(victims) = victims {
                    remove_victims(&context, &shared, &pod, &victims).await;
                }
            }))
        }
    }
}

async fn bind(context: &Context, shared: &Shared, pod: &Arc<Pod>, node: &str) {
    match write_binding(&context.client, pod, node).await {
        Ok(()) => {
            let (namespace, name) = cache::key(&**pod);
            context.events.normal(
                &**pod,
                COMPONENT,
                "Scheduled",
                format!("Successfully assigned {namespace}/{name} to {node}"),
            );
        }
        Err(error) => {
            let mut state = shared.state.lock();
            state.ledger.unassume(pod.metadata.uid.as_deref().unwrap_or_default());
            let now = Instant::now();
            if !write::is_missing(&error) {
                tracing::warn!(pod = pods::name(pod), %error, "a pod could not be bound");
                state.waiting.retry(pod, now);
            }
            // The room it would have taken.
            state.waiting.happened(event::ROOM, now);
        }
    }
}

async fn write_binding(client: &Client, pod: &Pod, node: &str) -> Result<(), kube::Error> {
    let (namespace, name) = cache::key(pod);
    let body = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": { "name": name, "namespace": namespace, "uid": pod.metadata.uid },
        "target": { "apiVersion": "v1", "kind": "Node", "name": node },
    });
    let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
    pods.create_subresource::<_, serde_json::Value>("binding", &name, &PostParams::default(), &body).await.map(drop)
}

async fn select_node(context: &Context, claims: &[Arc<PersistentVolumeClaim>], node: &str) {
    for claim in claims {
        let selected = claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE));
        if selected.is_some_and(|s| s == node) {
            continue;
        }
        let body = json!({ "metadata": { "annotations": { SELECTED_NODE: node } } });
        if let Err(error) = write::patch(&context.client, &context.caches.claims, &**claim, body).await {
            tracing::debug!(%error, "a claim could not be told its node");
        }
    }
}

/// The pod's `nominatedNodeName`.
enum Nomination {
    Keep,
    Set(String),
    Clear,
}

/// Writes the pod's condition `PodScheduled` and its nomination; other conditions are others'.
async fn tell(context: &Context, shared: &Shared, pod: &Pod, why: String, nomination: Nomination) {
    let present = pods::condition(pod, "PodScheduled").filter(|c| c.status == "False");
    let condition = PodCondition {
        type_: "PodScheduled".into(),
        status: "False".into(),
        reason: Some("Unschedulable".into()),
        message: Some(why),
        last_transition_time: Some(
            present.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(Timestamp::now())),
        ),
        ..PodCondition::default()
    };
    let (namespace, name) = cache::key(pod);
    let mut body = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } });
    match nomination {
        Nomination::Keep => {}
        Nomination::Set(node) => body["status"]["nominatedNodeName"] = node.into(),
        Nomination::Clear => body["status"]["nominatedNodeName"] = serde_json::Value::Null,
    }
    let api = Api::<Pod>::namespaced(context.client.clone(), &namespace);
    if let Err(error) = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(body)).await {
        tracing::debug!(%error, "a pod could not be told why it waits");
        shared.state.lock().waiting.untold(pod.metadata.uid.as_deref().unwrap_or_default());
    }
}

/// Removes the victims, each with its own grace period; the room that they leave wakes the pod.
async fn remove_victims(context: &Context, shared: &Shared, pod: &Arc<Pod>, victims: &Victims) {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let removals = victims.pods.iter().filter(|v| !pods::is_deleting(v)).map(|victim| async {
        let removed = remove_victim(context, victim).await;
        if removed.is_ok() {
            let message = format!("Preempted by pod {uid} on node {}", victims.node);
            context.events.normal(&**victim, COMPONENT, "Preempted", message);
        }
        removed
    });
    let results = futures::future::join_all(removals).await;
    demote(context, shared, fit::priority(pod), &victims.node).await;
    let mut state = shared.state.lock();
    state.preempting.remove(&uid);
    let now = Instant::now();
    match results.into_iter().find_map(Result::err) {
        Some(error) => {
            tracing::warn!(pod = pods::name(pod), %error, "a pod of lower priority could not be removed");
            state.waiting.retry(pod, now);
        }
        // Some may have left before we began to wait for it.
        None => state.waiting.happened(event::ROOM, now),
    }
    drop(state);
    shared.wake.notify_one();
}

async fn remove_victim(context: &Context, victim: &Pod) -> Result<(), write::WriteError> {
    let (namespace, name) = cache::key(victim);
    let message = format!("{COMPONENT}: preempting to accommodate a higher priority pod");
    pods::mark_disrupted(&context.client, victim, preempt::REASON, &message).await?;
    write::delete::<Pod>(&context.client, &namespace, &name, cache::uid(victim)).await
}

/// Pods of lower priority that were nominated to the node may no longer fit there.
async fn demote(context: &Context, shared: &Shared, priority: i32, node: &str) {
    let lower: Vec<Arc<Pod>> = {
        let state = shared.state.lock();
        let there = state.ledger.nominated().filter(|h| h.node == node && h.priority() < priority);
        there.map(|h| h.pod.clone()).collect()
    };
    for pod in lower {
        shared.state.lock().ledger.withdraw(pod.metadata.uid.as_deref().unwrap_or_default());
        let (namespace, name) = cache::key(&*pod);
        let api = Api::<Pod>::namespaced(context.client.clone(), &namespace);
        let body = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "nominatedNodeName": null } });
        if let Err(error) = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(body)).await {
            tracing::debug!(pod = name, %error, "a nomination could not be withdrawn");
        }
    }
}

#[cfg(test)]
mod tests;
