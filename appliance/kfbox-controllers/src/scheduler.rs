//! The scheduler: a node for each pod that has none. Invariants: a decision is made under one lock against what is bound
//! and what was just decided, so two pods never get the same room; higher priority goes first; a pod that fits nowhere
//! says why in its condition and an event. It does not preempt. Upstream:
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/kube-scheduler/>.

pub mod fit;
mod ledger;
mod storage;

pub use storage::claim_names;

use crate::{
    cache,
    context::{Context, Registered},
    pods, write,
};
use futures::{StreamExt, stream::FuturesUnordered};
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
use serde_json::json;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};
use tokio::sync::Notify;

const COMPONENT: &str = "default-scheduler";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Bindings under way at once; each is one durable write, and the server commits those that wait together.
const BINDING: usize = 64;
/// A pod that fits nowhere is looked at again after so long, should an event have been missed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Higher priority first, then the older.
type Order = (Reverse<i32>, Timestamp, String);

#[derive(Default)]
struct State {
    ledger: Ledger,
    waiting: BTreeMap<Order, cache::Key>,
    /// Pods that fit nowhere, by uid, and the reason last told.
    stuck: HashMap<String, (Order, cache::Key, String)>,
}

impl State {
    fn retry_stuck(&mut self) {
        for (order, key, _) in self.stuck.values() {
            self.waiting.insert(order.clone(), key.clone());
        }
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Notify,
}

fn order(pod: &Pod) -> Order {
    let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
    (Reverse(priority), pods::created(&pod.metadata), pod.metadata.uid.clone().unwrap_or_default())
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
    context.caches.pods.on_change(move |change| {
        let mut state = s.state.lock();
        match change.new {
            Some(pod) => {
                let held = state.ledger.observe(pod);
                if waits(pod) {
                    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                    // Our own note on its condition is no reason to look again.
                    let told = change.old.is_some_and(|old| waits(old) && old.spec == pod.spec)
                        && state.stuck.contains_key(uid);
                    if !told {
                        state.waiting.insert(order(pod), cache::key(&**pod));
                    }
                } else if change.old.is_some_and(|old| waits(old)) {
                    state.waiting.remove(&order(pod));
                    state.stuck.remove(pod.metadata.uid.as_deref().unwrap_or_default());
                }
                // Room was freed, or a pod that others want to be near has come.
                if !held
                    || change.old.is_none_or(|old| {
                        old.metadata.labels != pod.metadata.labels || pods::node(old) != pods::node(pod)
                    })
                {
                    state.retry_stuck();
                }
            }
            None => {
                if let Some(pod) = change.old {
                    state.ledger.forget(pod);
                    state.waiting.remove(&order(pod));
                    state.stuck.remove(pod.metadata.uid.as_deref().unwrap_or_default());
                    state.retry_stuck();
                }
            }
        }
        if !state.waiting.is_empty() {
            s.wake.notify_one();
        }
    });
    macro_rules! retry_on {
        ($($cache:ident if $changed:expr),*) => {$({
            let s = shared.clone();
            context.caches.$cache.on_change(move |change| {
                let changed: fn(&cache::Change<'_, _>) -> bool = $changed;
                if !changed(change) {
                    return;
                }
                let mut state = s.state.lock();
                state.retry_stuck();
                if !state.waiting.is_empty() {
                    s.wake.notify_one();
                }
            });
        })*};
    }
    // A node reports its status every few seconds; only what decides counts.
    retry_on!(nodes if |change| node_changed(change.old, change.new), claims if |_| true, volumes if |_| true, classes if |_| true);

    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        run(context, shared).await
    };
    ("scheduler", Box::pin(run))
}

fn node_changed(old: Option<&Arc<Node>>, new: Option<&Arc<Node>>) -> bool {
    let (Some(old), Some(new)) = (old, new) else { return true };
    old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || old.status.as_ref().map(|s| &s.allocatable) != new.status.as_ref().map(|s| &s.allocatable)
}

enum Decision {
    Bind(String),
    /// The claims to provision on the node; the pod waits for them.
    Provision(String, Vec<Arc<PersistentVolumeClaim>>),
    Stuck(String),
}

fn decide(pod: &Pod, context: &Context, ledger: &Ledger) -> Decision {
    let nodes = context.caches.nodes.all();
    if nodes.is_empty() {
        return Decision::Stuck("no nodes available to schedule pods".into());
    }
    let total = nodes.len();
    let claims = match storage::claims(pod, &context.caches) {
        Ok(claims) => claims,
        Err(reason) => return Decision::Stuck(format!("0/{total} nodes are available: {reason}.")),
    };
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut fitting = Vec::new();
    let world = fit::World { nodes: &nodes, ledger };
    for node in &nodes {
        let mut why = fit::reasons(pod, node, &world);
        if why.is_empty() {
            why.extend(claims.conflict(node));
        }
        if why.is_empty() {
            fitting.push(node);
        }
        for reason in why {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    let best =
        fitting.into_iter().max_by_key(|node| (fit::score(pod, node, &world), Reverse(node.metadata.name.clone())));
    match best.and_then(|node| node.metadata.name.clone()) {
        Some(node) if claims.unbound.is_empty() => Decision::Bind(node),
        Some(node) => Decision::Provision(node, claims.unbound),
        None => {
            let reasons: Vec<String> = reasons.into_iter().map(|(reason, n)| format!("{n} {reason}")).collect();
            Decision::Stuck(format!("0/{total} nodes are available: {}.", reasons.join(", ")))
        }
    }
}

async fn run(context: Arc<Context>, shared: Arc<Shared>) -> Result<(), Infallible> {
    let mut binding = FuturesUnordered::new();
    let mut tick = tokio::time::interval(LOOK_AGAIN);
    loop {
        while binding.len() < BINDING {
            let Some((_, key)) = ({ shared.state.lock().waiting.pop_first() }) else { break };
            let Some(pod) = context.caches.pods.get(&key.0, &key.1).filter(|p| waits(p)) else { continue };
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let mut state = shared.state.lock();
            if state.ledger.is_assumed(&uid) {
                continue;
            }
            let decision = decide(&pod, &context, &state.ledger);
            match decision {
                Decision::Bind(node) => {
                    state.stuck.remove(&uid);
                    state.ledger.assume(&pod, &node);
                    drop(state);
                    let (context, shared) = (context.clone(), shared.clone());
                    binding.push(Box::pin(async move { bind(&context, &shared, &pod, &node).await })
                        as futures::future::BoxFuture<'static, ()>);
                }
                Decision::Provision(node, claims) => {
                    // The claims' own events bring the pod back.
                    state.stuck.insert(uid, (order(&pod), key, String::new()));
                    drop(state);
                    let context = context.clone();
                    binding.push(Box::pin(async move { select_node(&context, &claims, &node).await }));
                }
                Decision::Stuck(why) => {
                    let known = state
                        .stuck
                        .insert(uid, (order(&pod), key, why.clone()))
                        .is_some_and(|(_, _, before)| before == why);
                    drop(state);
                    if !known {
                        context.events.warning(&*pod, COMPONENT, "FailedScheduling", why.clone());
                        let (context, shared) = (context.clone(), shared.clone());
                        binding.push(Box::pin(async move { tell(&context, &shared, &pod, why).await }));
                    }
                }
            }
        }
        tokio::select! {
            () = context.shutdown.cancelled() => return Ok(()),
            Some(()) = binding.next(), if !binding.is_empty() => {}
            () = shared.wake.notified(), if binding.len() < BINDING => {}
            _ = tick.tick() => shared.state.lock().retry_stuck(),
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
            if !write::is_missing(&error) {
                tracing::warn!(pod = pods::name(pod), %error, "a pod could not be bound");
                // Looked at with the others on the next change or tick.
                state.stuck.insert(
                    pod.metadata.uid.clone().unwrap_or_default(),
                    (order(pod), cache::key(&**pod), String::new()),
                );
            }
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

/// Writes the pod's condition `PodScheduled`; other conditions are others'.
async fn tell(context: &Context, shared: &Shared, pod: &Pod, why: String) {
    let condition = PodCondition {
        type_: "PodScheduled".into(),
        status: "False".into(),
        reason: Some("Unschedulable".into()),
        message: Some(why),
        last_transition_time: Some(Time(Timestamp::now())),
        ..PodCondition::default()
    };
    let (namespace, name) = cache::key(pod);
    let body = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } });
    let api = Api::<Pod>::namespaced(context.client.clone(), &namespace);
    if let Err(error) = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(body)).await {
        tracing::debug!(%error, "a pod could not be told why it waits");
        // Told at the next look.
        if let Some((_, _, told)) = shared.state.lock().stuck.get_mut(pod.metadata.uid.as_deref().unwrap_or_default()) {
            told.clear();
        }
    }
}

#[cfg(test)]
mod tests;
