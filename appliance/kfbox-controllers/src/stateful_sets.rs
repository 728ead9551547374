//! StatefulSets: pods with names, order and storage of their own. Upstream:
//! <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/>.

mod decide;

use crate::{
    cache::{self, Key},
    context::{Context, Registered},
    pods,
    queue::{Outcome, Queue},
    replica_sets, revisions,
    write::{self, WriteError},
};
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::ControllerRevision, core::v1::Pod};
use serde_json::json;
use std::sync::Arc;

const COMPONENT: &str = "statefulset-controller";
const WORKERS: usize = 4;

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<Key>::new();
    let q = queue.clone();
    context.caches.stateful_sets.on_change(move |change| change.both().for_each(|s| q.add(cache::key(&**s))));
    let q = queue.clone();
    context.caches.pods.on_change(move |change| {
        for pod in change.both() {
            if let Some(owner) = pods::controller(&pod.metadata).filter(|o| o.kind == "StatefulSet") {
                q.add((pod.metadata.namespace.clone().unwrap_or_default(), owner.name.clone()));
            }
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("statefulset", WORKERS, shutdown, move |key| reconcile(context.clone(), key)).await
    };
    ("statefulset", Box::pin(run))
}

async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, WriteError> {
    let (client, caches) = (&context.client, &context.caches);
    let Some(set) = caches.stateful_sets.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
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
    for pod in claimed.adopt.iter().filter(|p| decide::ordinal(&set, p).is_some()) {
        replica_sets::adopt(&context, pod, &*set).await?;
    }
    for pod in &claimed.release {
        replica_sets::release(&context, pod, uid).await?;
    }
    let own = pods::claim(&caches.pods.in_namespace(&key.0), uid, false, &spec.selector).own;
    let plan = decide::decide(&set, &own, &revision.name, &known, Timestamp::now());
    for claim in &plan.claims {
        if caches.claims.get(&key.0, claim.metadata.name.as_deref().unwrap_or_default()).is_none() {
            write::create(client, &caches.claims, claim, None).await?;
        }
    }
    for pod in &plan.create {
        if write::create(client, &caches.pods, pod, Some(uid)).await? {
            let message = format!("create Pod {} in StatefulSet {} successful", pods::name(pod), key.1);
            context.events.normal(&*set, COMPONENT, "SuccessfulCreate", message);
        }
    }
    for pod in &plan.delete {
        write::delete::<Pod>(client, &key.0, pods::name(pod), cache::uid(&**pod)).await?;
        let message = format!("delete Pod {} in StatefulSet {} successful", pods::name(pod), key.1);
        context.events.normal(&*set, COMPONENT, "SuccessfulDelete", message);
    }
    for (name, owners) in decide::claim_owners(&set, &own, &caches.claims.in_namespace(&key.0)) {
        if let Some(claim) = caches.claims.get(&key.0, &name) {
            write::patch(client, &caches.claims, &*claim, json!({ "metadata": { "ownerReferences": owners } })).await?;
        }
    }
    let old = set.status.clone().unwrap_or_default();
    write::status_of(client, &caches.stateful_sets, &*set, &old, &plan.status).await?;
    let in_use: Vec<&str> = own
        .iter()
        .filter_map(|p| p.metadata.labels.as_ref()?.get(revisions::HASH_LABEL))
        .map(String::as_str)
        .chain([revision.name.as_str(), plan.status.current_revision.as_deref().unwrap_or_default()])
        .collect();
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
