//! Pods that nobody else removes: those of nodes that are gone, those deleted before they had a node, and finished ones
//! beyond a limit. Upstream: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-garbage-collection>.

use crate::{
    cache,
    context::{Context, Registered},
    pods,
    write::{self, WriteError},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;
use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

const LOOK: Duration = Duration::from_secs(20);
/// A node that registers anew within this keeps its pods.
const QUARANTINE: SignedDuration = SignedDuration::from_secs(40);
/// Finished pods kept for their logs and exit codes. Upstream keeps 12500; one machine holds less.
const FINISHED: usize = 2_000;

pub fn register(context: &Arc<Context>) -> Registered {
    let context = context.clone();
    ("pod-garbage-collector", Box::pin(run(context)))
}

async fn run(context: Arc<Context>) -> Result<(), Infallible> {
    context.caches.synced().await;
    let mut missing_since = HashMap::new();
    loop {
        tokio::select! {
            () = context.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
        let (all, nodes) = (context.caches.pods.all(), context.caches.nodes.all());
        for pod in decide(&all, &nodes, &mut missing_since, Timestamp::now()) {
            let api =
                Api::<Pod>::namespaced(context.client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
                ..DeleteParams::default()
            };
            if pods::node(&pod).is_some() && !pods::is_finished(&pod) {
                let told = orphaned(&context, &pod).await;
                if let Err(error) = told {
                    tracing::debug!(pod = pods::name(&pod), %error, "a pod could not be told that its node is gone");
                    continue;
                }
            }
            if let Err(error) = api.delete(pods::name(&pod), &params).await {
                tracing::debug!(pod = pods::name(&pod), %error, "a pod could not be removed yet");
            }
        }
    }
}

/// A pod whose node is gone has failed, whatever it last said.
async fn orphaned(context: &Context, pod: &Pod) -> Result<(), WriteError> {
    pods::mark_disrupted(&context.client, pod, "DeletionByPodGC", "PodGC: node no longer exists").await?;
    let (namespace, name) = cache::key(pod);
    let body = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "phase": "Failed" } });
    let api = Api::<Pod>::namespaced(context.client.clone(), &namespace);
    match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(body)).await {
        Ok(_) => Ok(()),
        Err(error) if write::is_missing(&error) || write::is_conflict(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn decide(
    all: &[Arc<Pod>],
    nodes: &[Arc<Node>],
    missing_since: &mut HashMap<String, Timestamp>,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let known: HashSet<&str> = nodes.iter().filter_map(|n| n.metadata.name.as_deref()).collect();
    let missing: HashSet<&str> = all.iter().filter_map(|p| pods::node(p)).filter(|n| !known.contains(n)).collect();
    missing_since.retain(|name, _| missing.contains(name.as_str()));
    for name in missing {
        missing_since.entry(name.to_owned()).or_insert(now);
    }
    let gone = |name: &str| missing_since.get(name).is_some_and(|since| now.duration_since(*since) >= QUARANTINE);
    let mut remove: Vec<Arc<Pod>> = all
        .iter()
        .filter(|p| match pods::node(p) {
            Some(node) => gone(node),
            None => pods::is_deleting(p),
        })
        .cloned()
        .collect();
    let mut finished: Vec<&Arc<Pod>> = all.iter().filter(|p| pods::is_finished(p) && !pods::is_deleting(p)).collect();
    if finished.len() > FINISHED {
        finished.sort_by_key(|p| pods::created(&p.metadata));
        remove.extend(finished[..finished.len() - FINISHED].iter().map(|p| (*p).clone()));
    }
    remove
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{at, object, pod};
    use std::slice::from_ref;

    #[test]
    fn a_lost_nodes_pods_go_after_a_while_and_a_known_nodes_stay() {
        let here = Arc::new(pod("here", "x", json!({}), "Running", true));
        let node = Arc::new(object::<Node>(json!({ "metadata": { "name": "node" } })));
        let mut since = HashMap::new();
        assert!(decide(from_ref(&here), from_ref(&node), &mut since, at(0)).is_empty());
        assert!(decide(from_ref(&here), &[], &mut since, at(1)).is_empty());
        assert!(decide(from_ref(&here), &[node], &mut since, at(30)).is_empty());
        assert!(decide(from_ref(&here), &[], &mut since, at(60)).is_empty(), "the count starts anew");
        assert_eq!(decide(&[here], &[], &mut since, at(101)).len(), 1);
    }

    #[test]
    fn the_oldest_finished_pods_beyond_the_limit_go() {
        let node = Arc::new(object::<Node>(json!({ "metadata": { "name": "node" } })));
        let all: Vec<Arc<Pod>> = (0..FINISHED + 2)
            .map(|n| {
                let mut pod = pod(&format!("p{n}"), "x", json!({}), "Succeeded", false);
                pod.metadata.creation_timestamp =
                    Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(i64::try_from(n).unwrap())));
                Arc::new(pod)
            })
            .collect();
        let gone = decide(&all, &[node], &mut HashMap::new(), at(0));
        assert_eq!(gone.iter().map(|p| pods::name(p)).collect::<Vec<_>>(), ["p0", "p1"]);
    }
}
