//! ReplicaSets: as many pods as asked for. Invariant: a pod's name follows from its set and a slot, so that a set that is
//! looked at twice, or after a crash, never makes a pod too many. Upstream:
//! <https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/>.

use crate::{
    cache::Key,
    context::{Context, Registered},
    names, pods,
    queue::{Outcome, Queue},
    write::{self, WriteError},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::json;
use std::{collections::HashSet, sync::Arc, time::Duration};

const COMPONENT: &str = "replicaset-controller";
/// One look creates or deletes so many, as upstream; the next look does the rest.
const BURST: usize = 500;
const WORKERS: usize = 8;

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<Key>::new();
    let (caches, q) = (&context.caches, queue.clone());
    caches.replica_sets.on_change(move |change| change.both().for_each(|set| q.add(crate::cache::key(&**set))));
    let (sets, q) = (caches.replica_sets.clone(), queue.clone());
    caches.pods.on_change(move |change| {
        for pod in change.both() {
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            match pods::controller(&pod.metadata) {
                Some(owner) if owner.kind == "ReplicaSet" => q.add((namespace, owner.name.clone())),
                Some(_) => {}
                // An orphan may fit any set of its namespace.
                None => {
                    for set in sets.in_namespace(&namespace) {
                        if crate::selectors::matches_own(&selector(&set), pod.metadata.labels.as_ref()) {
                            q.add(crate::cache::key(&*set));
                        }
                    }
                }
            }
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("replicaset", WORKERS, shutdown, move |key| reconcile(context.clone(), key)).await
    };
    ("replicaset", Box::pin(run))
}

fn selector(set: &ReplicaSet) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector {
    set.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default()
}

#[derive(Default)]
pub struct Plan {
    pub adopt: Vec<Arc<Pod>>,
    pub release: Vec<Arc<Pod>>,
    pub create: Vec<Pod>,
    pub delete: Vec<Arc<Pod>>,
    pub status: ReplicaSetStatus,
    pub again: Option<Duration>,
}

pub fn decide(set: &ReplicaSet, namespace_pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let Some(spec) = &set.spec else { return Plan::default() };
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let deleting = set.metadata.deletion_timestamp.is_some();
    let pods::Claimed { own, adopt, release } = pods::claim(namespace_pods, uid, deleting, &spec.selector);
    let mut active: Vec<Arc<Pod>> = own.iter().chain(&adopt).filter(|p| pods::is_active(p)).cloned().collect();
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let mut plan = Plan { adopt, release, ..Plan::default() };
    let template = spec.template.clone().unwrap_or_default();
    if !deleting && active.len() < wanted {
        let taken: HashSet<&str> = namespace_pods.iter().map(|p| pods::name(p)).collect();
        let base = set.metadata.name.as_deref().unwrap_or_default();
        plan.create = (0_u64..)
            .map(|slot| names::child(base, &[uid, &slot.to_string()]))
            .filter(|name| !taken.contains(name.as_str()))
            .take((wanted - active.len()).min(BURST))
            .map(|name| pods::from_template(&template, set, name))
            .collect();
    } else if !deleting && active.len() > wanted {
        active.sort_by(|a, b| pods::deletion_order(a, b));
        plan.delete = active.iter().take((active.len() - wanted).min(BURST)).cloned().collect();
    }

    let count =
        |test: &dyn Fn(&Pod) -> bool| i32::try_from(active.iter().filter(|p| test(p)).count()).unwrap_or(i32::MAX);
    let labels = template.metadata.and_then(|m| m.labels).unwrap_or_default();
    let old = set.status.clone().unwrap_or_default();
    let terminating = own.iter().filter(|p| pods::is_deleting(p) && !pods::is_finished(p)).count();
    plan.status = ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: Some(count(&|p| crate::selectors::equal(&labels, p.metadata.labels.as_ref())))
            .filter(|n| *n > 0),
        ready_replicas: Some(count(&pods::is_ready)).filter(|n| *n > 0),
        available_replicas: Some(count(&|p| pods::is_available(p, min_ready, now))).filter(|n| *n > 0),
        terminating_replicas: i32::try_from(terminating).ok(),
        observed_generation: set.metadata.generation,
        conditions: old.conditions,
    };
    plan.again = active.iter().filter_map(|p| pods::available_in(p, min_ready, now)).min();
    plan
}

async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, WriteError> {
    let caches = &context.caches;
    let Some(set) = caches.replica_sets.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
    let mut plan = decide(&set, &caches.pods.in_namespace(&key.0), Timestamp::now());
    let client = &context.client;
    for pod in &plan.adopt {
        adopt(&context, pod, &*set).await?;
    }
    for pod in &plan.release {
        release(&context, pod, set.metadata.uid.as_deref().unwrap_or_default()).await?;
    }
    let mut failure = None;
    for pod in &plan.create {
        let name = pods::name(pod).to_owned();
        match write::create(client, &caches.pods, pod, set.metadata.uid.as_deref()).await {
            Ok(true) => context.events.normal(&*set, COMPONENT, "SuccessfulCreate", format!("Created pod: {name}")),
            Ok(false) => {}
            Err(error) => {
                context.events.warning(&*set, COMPONENT, "FailedCreate", format!("Error creating: {error}"));
                failure = Some(error);
                break;
            }
        }
    }
    for pod in &plan.delete {
        let name = pods::name(pod);
        write::delete::<Pod>(client, &key.0, name, crate::cache::uid(&**pod)).await?;
        context.events.normal(&*set, COMPONENT, "SuccessfulDelete", format!("Deleted pod: {name}"));
    }
    note_failure(&mut plan.status, failure.as_ref(), Timestamp::now());
    let old = set.status.clone().unwrap_or_default();
    write::status_of(client, &caches.replica_sets, &*set, &old, &plan.status).await?;
    match failure {
        Some(error) => Err(error),
        None => Ok(plan.again.map_or(Outcome::Done, Outcome::Again)),
    }
}

/// Says in the status whether pods can be created.
pub fn note_failure(status: &mut ReplicaSetStatus, failure: Option<&WriteError>, now: Timestamp) {
    let mut conditions = status.conditions.take().unwrap_or_default();
    let known = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
    match failure {
        Some(error) if !known => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some("FailedCreate".into()),
            message: Some(error.to_string()),
            last_transition_time: Some(Time(now)),
        }),
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        Some(_) => {}
    }
    status.conditions = Some(conditions).filter(|c| !c.is_empty());
}

/// Makes `owner` the controller of an orphan.
pub async fn adopt<K: crate::cache::Kind>(context: &Context, pod: &Pod, owner: &K) -> Result<(), WriteError> {
    let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
    owners.push(pods::owned_by(owner));
    write::patch(&context.client, &context.caches.pods, pod, json!({ "metadata": { "ownerReferences": owners } })).await
}

/// Ends an owner's control of a pod that no longer matches.
pub async fn release(context: &Context, pod: &Pod, owner_uid: &str) -> Result<(), WriteError> {
    let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
    owners.retain(|o| o.uid != owner_uid);
    write::patch(&context.client, &context.caches.pods, pod, json!({ "metadata": { "ownerReferences": owners } })).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{at, object, pod};

    fn set(replicas: i32) -> ReplicaSet {
        object(json!({
            "metadata": { "name": "web", "namespace": "n", "uid": "rs", "generation": 3 },
            "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
                "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c" }] } } },
        }))
    }

    fn web(name: &str, phase: &str, ready: bool) -> Arc<Pod> {
        Arc::new(pod(name, "rs", json!({ "app": "web" }), phase, ready))
    }

    #[test]
    fn what_is_missing_is_created_once_however_often_it_is_decided() {
        let plan = decide(&set(3), &[], at(0));
        let names: Vec<String> = plan.create.iter().map(|p| pods::name(p).to_owned()).collect();
        assert_eq!(names.len(), 3);
        assert_eq!(decide(&set(3), &[], at(9)).create, plan.create);
        let made: Vec<Arc<Pod>> = plan.create.into_iter().take(2).map(Arc::new).collect();
        let rest = decide(&set(3), &made, at(0));
        assert_eq!(rest.create.iter().map(|p| pods::name(p).to_owned()).collect::<Vec<_>>(), names[2..]);
        assert_eq!(rest.create[0].metadata.owner_references.as_ref().unwrap()[0].uid, "rs");
    }

    #[test]
    fn finished_and_deleted_pods_are_replaced_under_other_names() {
        let first = decide(&set(1), &[], at(0)).create.remove(0);
        let mut failed = first.clone();
        failed.status = Some(object(json!({ "phase": "Failed" })));
        let next = decide(&set(1), &[Arc::new(failed)], at(0));
        assert_eq!(next.create.len(), 1);
        assert_ne!(pods::name(&next.create[0]), pods::name(&first));
        assert_eq!(next.status.replicas, 0);
    }

    #[test]
    fn too_many_go_least_useful_first() {
        let pods_ = [web("a", "Running", true), web("b", "Pending", false), web("c", "Running", false)];
        let plan = decide(&set(1), &pods_, at(0));
        let names: Vec<&str> = plan.delete.iter().map(|p| pods::name(p)).collect();
        assert_eq!(names, ["b", "c"]);
        assert_eq!((plan.status.replicas, plan.status.ready_replicas), (3, Some(1)));
        assert_eq!(plan.status.observed_generation, Some(3));
    }

    #[test]
    fn orphans_are_adopted_and_strangers_left_alone() {
        let mut orphan = pod("o", "x", json!({ "app": "web" }), "Running", true);
        orphan.metadata.owner_references = None;
        let foreign = pod("f", "other", json!({ "app": "web" }), "Running", true);
        let changed = pod("c", "rs", json!({ "app": "debug" }), "Running", true);
        let all = [Arc::new(orphan), Arc::new(foreign), Arc::new(changed)];
        let plan = decide(&set(1), &all, at(0));
        assert_eq!(plan.adopt.len(), 1);
        assert_eq!(pods::name(&plan.release[0]), "c");
        assert!(plan.create.is_empty() && plan.delete.is_empty());
        let mut leaving = set(5);
        leaving.metadata.deletion_timestamp = Some(Time(at(0)));
        let plan = decide(&leaving, &all, at(0));
        assert!(plan.adopt.is_empty() && plan.release.is_empty() && plan.create.is_empty());
    }

    #[test]
    fn available_is_later_than_ready() {
        let mut set = set(1);
        set.spec.as_mut().unwrap().min_ready_seconds = Some(10);
        let plan = decide(&set, &[web("a", "Running", true)], at(4));
        assert_eq!((plan.status.ready_replicas, plan.status.available_replicas), (Some(1), None));
        assert_eq!(plan.again, Some(Duration::from_secs(6)));
        let plan = decide(&set, &[web("a", "Running", true)], at(10));
        assert_eq!((plan.status.available_replicas, plan.again), (Some(1), None));
    }
}
