//! Jobs: pods that run to their end. Invariants: a pod is counted once, however often it is seen (its uid waits in
//! `uncountedTerminatedPods` while its finalizer is dropped); a pod's name follows from the Job and a slot or an index.
//! Upstream: <https://kubernetes.io/docs/concepts/workloads/controllers/job/>.

mod decide;
mod indexes;
mod policy;

use crate::{
    cache::{self, Key},
    context::{Context, Registered},
    pods,
    queue::{Outcome, Queue},
    write::{self, WriteError},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, Preconditions, PropagationPolicy},
};
use serde_json::json;
use std::sync::Arc;

const COMPONENT: &str = "job-controller";
const WORKERS: usize = 8;
/// Keeps a pod until it is counted.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<Key>::new();
    let q = queue.clone();
    context.caches.jobs.on_change(move |change| change.both().for_each(|j| q.add(cache::key(&**j))));
    let (q, caches) = (queue.clone(), context.caches.pods.clone());
    context.caches.jobs.on_change(move |change| {
        // Pods of a Job that is gone must not stay for a count that nobody makes.
        let (None, Some(job)) = (change.new, change.old) else { return };
        let left = caches.in_namespace(job.metadata.namespace.as_deref().unwrap_or_default());
        if left.iter().any(|p| pods::controller(&p.metadata).is_some_and(|o| o.uid == cache::uid(&**job))) {
            q.add(cache::key(&**job));
        }
    });
    let q = queue.clone();
    context.caches.pods.on_change(move |change| {
        for pod in change.both() {
            if let Some(owner) = pods::controller(&pod.metadata).filter(|o| o.kind == "Job") {
                q.add((pod.metadata.namespace.clone().unwrap_or_default(), owner.name.clone()));
            }
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("job", WORKERS, shutdown, move |key| reconcile(context.clone(), key)).await
    };
    ("job", Box::pin(run))
}

fn tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == TRACKING)
}

async fn untrack(context: &Context, pod: &Pod) -> Result<(), WriteError> {
    let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
    finalizers.retain(|f| f != TRACKING);
    write::patch(&context.client, &context.caches.pods, pod, json!({ "metadata": { "finalizers": finalizers } })).await
}

fn pods_of(context: &Context, namespace: &str, uid: &str) -> Vec<Arc<Pod>> {
    let all = context.caches.pods.in_namespace(namespace);
    all.into_iter().filter(|p| pods::controller(&p.metadata).is_some_and(|o| o.uid == uid)).collect()
}

async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, WriteError> {
    let (client, caches) = (&context.client, &context.caches);
    let Some(job) = caches.jobs.get(&key.0, &key.1).filter(|j| j.metadata.deletion_timestamp.is_none()) else {
        return abandoned(&context, &key).await;
    };
    let Some(spec) = &job.spec else { return Ok(Outcome::Done) };
    if spec.managed_by.as_deref().is_some_and(|m| m != "kubernetes.io/job-controller") {
        return Ok(Outcome::Done);
    }
    let uid = cache::uid(&*job).to_owned();

    if let Some(finished) = decide::finished_at(&job) {
        for pod in pods_of(&context, &key.0, &uid).iter().filter(|p| tracked(p)) {
            untrack(&context, pod).await?;
        }
        for pod in pods_of(&context, &key.0, &uid).iter().filter(|p| pods::is_active(p)) {
            write::delete::<Pod>(client, &key.0, pods::name(pod), cache::uid(&**pod)).await?;
        }
        return expire(&context, &job, finished).await;
    }

    // First the uids, then the finalizers, then the numbers: at no moment is a pod lost or counted twice.
    let own = pods_of(&context, &key.0, &uid);
    if let Some(status) = decide::track(&job, &own) {
        let old = job.status.clone().unwrap_or_default();
        write::status_of(client, &caches.jobs, &*job, &old, &status).await?;
    }
    let Some(job) = caches.jobs.get(&key.0, &key.1).filter(|j| cache::uid(&**j) == uid) else {
        return Ok(Outcome::Done);
    };
    for pod in decide::noted(&job, &own) {
        untrack(&context, &pod).await?;
    }

    let own = pods_of(&context, &key.0, &uid);
    let taken = caches.pods.in_namespace(&key.0);
    let mut plan = decide::decide(&job, &own, &taken, Timestamp::now());
    for pod in &plan.delete {
        write::delete::<Pod>(client, &key.0, pods::name(pod), cache::uid(&**pod)).await?;
        context.events.normal(&*job, COMPONENT, "SuccessfulDelete", format!("Deleted pod: {}", pods::name(pod)));
    }
    let mut failure = None;
    for pod in &plan.create {
        match write::create(client, &caches.pods, pod, Some(&uid)).await {
            Ok(created) => {
                plan.status.active = Some(plan.status.active.unwrap_or(0) + 1);
                if created {
                    context.events.normal(
                        &*job,
                        COMPONENT,
                        "SuccessfulCreate",
                        format!("Created pod: {}", pods::name(pod)),
                    );
                }
            }
            Err(error) => {
                context.events.warning(&*job, COMPONENT, "FailedCreate", format!("Error creating: {error}"));
                failure = Some(error);
                break;
            }
        }
    }
    let old = job.status.clone().unwrap_or_default();
    let written = write::status_of(client, &caches.jobs, &*job, &old, &plan.status).await?;
    if let (true, Some((warning, reason, message))) = (written, plan.event) {
        if warning {
            context.events.warning(&*job, COMPONENT, reason, message);
        } else {
            context.events.normal(&*job, COMPONENT, reason, message);
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(plan.again.map_or(Outcome::Done, Outcome::Again)),
    }
}

/// The Job is gone or going: its pods need not wait for a count.
async fn abandoned(context: &Context, key: &Key) -> Result<Outcome, WriteError> {
    let alive = context.caches.jobs.get(&key.0, &key.1);
    for pod in context.caches.pods.in_namespace(&key.0).iter().filter(|p| tracked(p)) {
        let Some(owner) = pods::controller(&pod.metadata).filter(|o| o.kind == "Job" && o.name == key.1) else {
            continue;
        };
        let counted_for =
            alive.as_ref().is_some_and(|j| cache::uid(&**j) == owner.uid && j.metadata.deletion_timestamp.is_none());
        if !counted_for {
            untrack(context, pod).await?;
        }
    }
    Ok(Outcome::Done)
}

/// Removes a finished Job once its time is up.
async fn expire(context: &Context, job: &Job, finished: Timestamp) -> Result<Outcome, WriteError> {
    let Some(seconds) = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished) else { return Ok(Outcome::Done) };
    let left = SignedDuration::from_secs(seconds.into()) - Timestamp::now().duration_since(finished);
    if left > SignedDuration::ZERO {
        return Ok(Outcome::Again(left.unsigned_abs()));
    }
    let (namespace, name) = cache::key(job);
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Foreground),
        preconditions: Some(Preconditions {
            uid: job.metadata.uid.clone(),
            resource_version: job.metadata.resource_version.clone(),
        }),
        ..DeleteParams::default()
    };
    match Api::<Job>::namespaced(context.client.clone(), &namespace).delete(&name, &params).await {
        Ok(_) => Ok(Outcome::Done),
        Err(error) if write::is_missing(&error) => Ok(Outcome::Done),
        Err(error) => Err(error.into()),
    }
}
