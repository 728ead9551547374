//! Deployments: ReplicaSets that give way to each other. Invariant: a template's ReplicaSet has the name that follows from
//! the template, so there is never a second one for it. Upstream:
//! <https://kubernetes.io/docs/concepts/workloads/controllers/deployment/>.

mod rollout;
mod status;

use crate::{
    cache::{self, Key},
    context::{Context, Registered},
    pods,
    queue::{Outcome, Queue},
    selectors,
    write::{self, WriteError},
};
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Pod};
use rollout::Action;
pub use rollout::share;
use serde_json::json;
use std::sync::Arc;

const COMPONENT: &str = "deployment-controller";
const WORKERS: usize = 4;
pub const HASH_LABEL: &str = "pod-template-hash";
pub const REVISION: &str = "deployment.kubernetes.io/revision";

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<Key>::new();
    let (caches, q) = (&context.caches, queue.clone());
    caches.deployments.on_change(move |change| change.both().for_each(|d| q.add(cache::key(&**d))));
    let (deployments, q) = (caches.deployments.clone(), queue.clone());
    caches.replica_sets.on_change(move |change| {
        for set in change.both() {
            let namespace = set.metadata.namespace.clone().unwrap_or_default();
            match pods::controller(&set.metadata) {
                Some(owner) if owner.kind == "Deployment" => q.add((namespace, owner.name.clone())),
                Some(_) => {}
                None => {
                    for deployment in deployments.in_namespace(&namespace) {
                        let fits = deployment
                            .spec
                            .as_ref()
                            .is_some_and(|s| selectors::matches_own(&s.selector, set.metadata.labels.as_ref()));
                        if fits {
                            q.add(cache::key(&*deployment));
                        }
                    }
                }
            }
        }
    });
    // Recreate waits for the last old pod to be gone.
    let (sets, deployments, q) = (caches.replica_sets.clone(), caches.deployments.clone(), queue.clone());
    caches.pods.on_change(move |change| {
        if change.new.is_some_and(|p| pods::is_active(p)) {
            return;
        }
        let Some(pod) = change.old else { return };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let set = pods::controller(&pod.metadata)
            .filter(|o| o.kind == "ReplicaSet")
            .and_then(|o| sets.get(namespace, &o.name));
        let Some(owner) = set.as_ref().and_then(|s| pods::controller(&s.metadata)) else { return };
        if let Some(deployment) = deployments.get(namespace, &owner.name)
            && rollout::is_recreate(&deployment)
        {
            q.add(cache::key(&*deployment));
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("deployment", WORKERS, shutdown, move |key| reconcile(context.clone(), key)).await
    };
    ("deployment", Box::pin(run))
}

async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, WriteError> {
    let (client, caches) = (&context.client, &context.caches);
    let Some(deployment) = caches.deployments.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
    let Some(spec) = &deployment.spec else { return Ok(Outcome::Done) };
    let uid = cache::uid(&*deployment);
    let mut sets: Vec<Arc<ReplicaSet>> = Vec::new();
    for set in caches.replica_sets.in_namespace(&key.0) {
        let fits = selectors::matches_own(&spec.selector, set.metadata.labels.as_ref());
        match pods::controller(&set.metadata) {
            Some(owner) if owner.uid == uid => sets.push(set),
            None if fits
                && deployment.metadata.deletion_timestamp.is_none()
                && set.metadata.deletion_timestamp.is_none() =>
            {
                let owners: Vec<_> = set
                    .metadata
                    .owner_references
                    .iter()
                    .flatten()
                    .cloned()
                    .chain([pods::owned_by(&*deployment)])
                    .collect();
                write::patch(client, &caches.replica_sets, &*set, json!({ "metadata": { "ownerReferences": owners } }))
                    .await?;
                sets.extend(caches.replica_sets.get(&key.0, set.metadata.name.as_deref().unwrap_or_default()));
            }
            _ => {}
        }
    }
    let old_pods: Vec<Arc<Pod>> =
        if rollout::is_recreate(&deployment) { caches.pods.in_namespace(&key.0) } else { Vec::new() };

    let actions = if deployment.metadata.deletion_timestamp.is_some() {
        Vec::new()
    } else {
        rollout::decide(&deployment, &sets, &old_pods)
    };
    let mut collided = false;
    let mut failure = None;
    for action in actions {
        match action {
            Action::Create(set) => {
                let name = set.metadata.name.clone().unwrap_or_default();
                let replicas = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
                match write::create(client, &caches.replica_sets, &*set, Some(uid)).await {
                    Ok(true) if replicas == 0 => {}
                    Ok(true) => {
                        let message = format!("Scaled up replica set {name} from 0 to {replicas}");
                        context.events.normal(&*deployment, COMPONENT, "ScalingReplicaSet", message);
                    }
                    Ok(false) => {
                        // Ours, yet not the template's: two templates with one hash.
                        let found = caches.replica_sets.get(&key.0, &name);
                        collided = found.is_some_and(|found| !rollout::same_template(&deployment, &found));
                    }
                    Err(WriteError::Taken { .. }) => collided = true,
                    Err(error) => {
                        context.events.warning(
                            &*deployment,
                            COMPONENT,
                            "ReplicaSetCreateError",
                            format!("Failed to create new replica set {name:?}: {error}"),
                        );
                        failure = Some(error);
                        break;
                    }
                }
            }
            Action::Scale { set, replicas, annotations } => {
                let before = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
                let name = set.metadata.name.clone().unwrap_or_default();
                let mut body = json!({});
                if replicas != before {
                    body["spec"] = json!({ "replicas": replicas });
                }
                if !annotations.is_empty() {
                    body["metadata"] = json!({ "annotations": annotations });
                }
                write::patch(client, &caches.replica_sets, &*set, body).await?;
                if replicas != before {
                    let way = if replicas > before { "up" } else { "down" };
                    let message = format!("Scaled {way} replica set {name} from {before} to {replicas}");
                    context.events.normal(&*deployment, COMPONENT, "ScalingReplicaSet", message);
                }
            }
            Action::Delete(set) => {
                write::delete::<ReplicaSet>(
                    client,
                    &key.0,
                    set.metadata.name.as_deref().unwrap_or_default(),
                    cache::uid(&*set),
                )
                .await?;
            }
            Action::Annotate(annotations) => {
                write::patch(
                    client,
                    &caches.deployments,
                    &*deployment,
                    json!({ "metadata": { "annotations": annotations } }),
                )
                .await?;
            }
        }
    }
    // What was written above is in the caches.
    let Some(deployment) = caches.deployments.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
    let sets: Vec<Arc<ReplicaSet>> = caches
        .replica_sets
        .in_namespace(&key.0)
        .into_iter()
        .filter(|s| pods::controller(&s.metadata).is_some_and(|o| o.uid == uid))
        .collect();
    let (mut status, again) = status::of(&deployment, &sets, Timestamp::now());
    if collided {
        status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
    }
    let old = deployment.status.clone().unwrap_or_default();
    write::status_of(client, &caches.deployments, &*deployment, &old, &status).await?;
    match failure {
        Some(error) => Err(error),
        None => Ok(again.map_or(Outcome::Done, Outcome::Again)),
    }
}
