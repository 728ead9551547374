//! ReplicationControllers: what ReplicaSets were before, and the same rules. Upstream:
//! <https://kubernetes.io/docs/concepts/workloads/controllers/replicationcontroller/>.

use crate::{
    cache::{self, Key},
    context::{Context, Registered},
    pods,
    queue::{Outcome, Queue},
    replica_sets,
    write::{self, WriteError},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus},
        core::v1::{Pod, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use std::sync::Arc;

const COMPONENT: &str = "replication-controller";
const WORKERS: usize = 2;

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<Key>::new();
    let q = queue.clone();
    context.caches.controllers.on_change(move |change| change.both().for_each(|c| q.add(cache::key(&**c))));
    let (controllers, q) = (context.caches.controllers.clone(), queue.clone());
    context.caches.pods.on_change(move |change| {
        for pod in change.both() {
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            match pods::controller(&pod.metadata) {
                Some(owner) if owner.kind == "ReplicationController" => q.add((namespace, owner.name.clone())),
                Some(_) => {}
                // An orphan may fit any of its namespace.
                None => controllers.in_namespace(&namespace).iter().for_each(|c| q.add(cache::key(&**c))),
            }
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("replicationcontroller", WORKERS, shutdown, move |key| reconcile(context.clone(), key)).await
    };
    ("replicationcontroller", Box::pin(run))
}

/// The ReplicaSet that would do the same, for deciding.
fn as_set(controller: &ReplicationController) -> ReplicaSet {
    let spec = controller.spec.clone().unwrap_or_default();
    let status = controller.status.clone().unwrap_or_default();
    let labels = spec.template.as_ref().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.clone());
    let conditions = status.conditions.map(|all| {
        let condition = |c: ReplicationControllerCondition| ReplicaSetCondition {
            type_: c.type_,
            status: c.status,
            reason: c.reason,
            message: c.message,
            last_transition_time: c.last_transition_time,
        };
        all.into_iter().map(condition).collect()
    });
    ReplicaSet {
        metadata: controller.metadata.clone(),
        spec: Some(ReplicaSetSpec {
            replicas: spec.replicas,
            min_ready_seconds: spec.min_ready_seconds,
            selector: LabelSelector {
                match_labels: spec.selector.filter(|s| !s.is_empty()).or(labels),
                match_expressions: None,
            },
            template: spec.template,
        }),
        status: Some(ReplicaSetStatus { replicas: status.replicas, conditions, ..ReplicaSetStatus::default() }),
    }
}

fn as_status(status: ReplicaSetStatus) -> ReplicationControllerStatus {
    let condition = |c: ReplicaSetCondition| ReplicationControllerCondition {
        type_: c.type_,
        status: c.status,
        reason: c.reason,
        message: c.message,
        last_transition_time: c.last_transition_time,
    };
    ReplicationControllerStatus {
        available_replicas: status.available_replicas,
        conditions: status.conditions.map(|all| all.into_iter().map(condition).collect()),
        fully_labeled_replicas: status.fully_labeled_replicas,
        observed_generation: status.observed_generation,
        ready_replicas: status.ready_replicas,
        replicas: status.replicas,
    }
}

async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, WriteError> {
    let (client, caches) = (&context.client, &context.caches);
    let Some(controller) = caches.controllers.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
    let uid = cache::uid(&*controller);
    let mut plan = replica_sets::decide(&as_set(&controller), &caches.pods.in_namespace(&key.0), Timestamp::now());
    for pod in &plan.adopt {
        replica_sets::adopt(&context, pod, &*controller).await?;
    }
    for pod in &plan.release {
        replica_sets::release(&context, pod, uid).await?;
    }
    let mut failure = None;
    for pod in &mut plan.create {
        pod.metadata.owner_references = Some(vec![pods::owned_by(&*controller)]);
        let name = pods::name(pod).to_owned();
        match write::create(client, &caches.pods, pod, Some(uid)).await {
            Ok(true) => {
                context.events.normal(&*controller, COMPONENT, "SuccessfulCreate", format!("Created pod: {name}"));
            }
            Ok(false) => {}
            Err(error) => {
                context.events.warning(&*controller, COMPONENT, "FailedCreate", format!("Error creating: {error}"));
                failure = Some(error);
                break;
            }
        }
    }
    for pod in &plan.delete {
        let name = pods::name(pod);
        write::delete::<Pod>(client, &key.0, name, cache::uid(&**pod)).await?;
        context.events.normal(&*controller, COMPONENT, "SuccessfulDelete", format!("Deleted pod: {name}"));
    }
    replica_sets::note_failure(&mut plan.status, failure.as_ref(), Timestamp::now());
    let old = controller.status.clone().unwrap_or_default();
    write::status_of(client, &caches.controllers, &*controller, &old, &as_status(plan.status)).await?;
    match failure {
        Some(error) => Err(error),
        None => Ok(plan.again.map_or(Outcome::Done, Outcome::Again)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{at, object};
    use serde_json::json;

    #[test]
    fn the_templates_labels_select_when_nothing_else_does() {
        let controller: ReplicationController = object(
            json!({ "metadata": { "name": "c", "namespace": "n", "uid": "u" },
            "spec": { "replicas": 2, "template": { "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c" }] } } } }),
        );
        let set = as_set(&controller);
        let selector = set.spec.as_ref().unwrap().selector.match_labels.clone().unwrap();
        assert_eq!(selector.get("a").map(String::as_str), Some("b"));
        assert_eq!(replica_sets::decide(&set, &[], at(0)).create.len(), 2);
    }
}
