//! Pods leave nodes whose `NoExecute` taints they do not tolerate, at once or when their toleration ends. Upstream:
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/#taint-based-evictions>.

use crate::{
    cache::{self, Key},
    context::{Context, Registered},
    pods,
    queue::{Outcome, Queue},
    scheduler::fit,
    write::{self, WriteError},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};

const COMPONENT: &str = "taint-eviction-controller";
const WORKERS: usize = 4;

/// Since when a pod is on a tainted node, for taints that do not say when they came.
type Since = Arc<Mutex<HashMap<String, Timestamp>>>;

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<Key>::new();
    let since = Since::default();
    let (q, s) = (queue.clone(), since.clone());
    context.caches.pods.on_change(move |change| match (change.old, change.new) {
        (Some(old), None) => {
            s.lock().remove(cache::uid(&**old));
        }
        (old, Some(new)) if pods::node(new).is_some() && old.is_none_or(|old| old.spec != new.spec) => {
            q.add(cache::key(&**new));
        }
        _ => {}
    });
    let (all, q) = (context.caches.pods.clone(), queue.clone());
    context.caches.nodes.on_change(move |change| {
        let taints = |node: Option<&Arc<k8s_openapi::api::core::v1::Node>>| {
            node.and_then(|n| n.spec.as_ref()).and_then(|s| s.taints.clone()).unwrap_or_default()
        };
        if taints(change.old) == taints(change.new) {
            return;
        }
        let name = change.new.and_then(|n| n.metadata.name.as_deref());
        for pod in all.all().iter().filter(|p| name.is_some() && pods::node(p) == name) {
            q.add(cache::key(&**pod));
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("taint-eviction", WORKERS, shutdown, move |key| reconcile(context.clone(), since.clone(), key)).await
    };
    ("taint-eviction", Box::pin(run))
}

/// When the pod must leave; `None` for never. `since` stands for taints that do not say when they came.
fn leaves_at(tolerations: &[Toleration], taints: &[&Taint], since: Timestamp) -> Option<Timestamp> {
    let leaves = taints.iter().filter_map(|taint| {
        let start = taint.time_added.as_ref().map_or(since, |t| t.0);
        // Of several that match, the first counts, as upstream.
        let Some(toleration) = tolerations.iter().find(|t| fit::tolerates(std::slice::from_ref(*t), taint)) else {
            return Some(Timestamp::MIN);
        };
        let seconds = toleration.toleration_seconds?;
        Some(start.checked_add(SignedDuration::from_secs(seconds.max(0))).unwrap_or(Timestamp::MAX))
    });
    leaves.min()
}

async fn reconcile(context: Arc<Context>, since: Since, key: Key) -> Result<Outcome, WriteError> {
    let caches = &context.caches;
    let Some(pod) = caches.pods.get(&key.0, &key.1).filter(|p| !pods::is_deleting(p)) else {
        return Ok(Outcome::Done);
    };
    let uid = cache::uid(&*pod).to_owned();
    let node = pods::node(&pod).and_then(|name| caches.nodes.get("", name));
    let taints = node.as_ref().and_then(|n| n.spec.as_ref()).and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let taints: Vec<&Taint> = taints.iter().filter(|t| t.effect == "NoExecute").collect();
    if taints.is_empty() {
        if since.lock().remove(&uid).is_some() {
            let message = format!("Cancelling deletion of Pod {}/{}", key.0, key.1);
            context.events.normal(&*pod, COMPONENT, "TaintManagerEviction", message);
        }
        return Ok(Outcome::Done);
    }
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.clone()).unwrap_or_default();
    let now = Timestamp::now();
    let first = since.lock().get(&uid).copied().unwrap_or(now);
    let Some(at) = leaves_at(&tolerations, &taints, first) else { return Ok(Outcome::Done) };
    let left = at.duration_since(now);
    if left > SignedDuration::ZERO {
        since.lock().insert(uid, first);
        return Ok(Outcome::Again(left.unsigned_abs()));
    }
    context.events.normal(
        &*pod,
        COMPONENT,
        "TaintManagerEviction",
        format!("Marking for deletion Pod {}/{}", key.0, key.1),
    );
    let message = "Taint manager: deleting due to NoExecute taint";
    pods::mark_disrupted(&context.client, &pod, "DeletionByTaintManager", message).await?;
    write::delete::<Pod>(&context.client, &key.0, &key.1, &uid).await?;
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{at, object};
    use serde_json::{Value, json};

    #[test]
    fn a_toleration_counts_from_when_the_taint_came() {
        let taint = |more: Value| {
            let mut value = json!({ "key": "k", "effect": "NoExecute" });
            value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            object::<Taint>(value)
        };
        let leaves = |tolerations: Value, taints: &[Taint]| {
            leaves_at(&object::<Vec<Toleration>>(tolerations), &taints.iter().collect::<Vec<_>>(), at(100))
        };
        let plain = taint(json!({}));
        assert_eq!(leaves(json!([]), std::slice::from_ref(&plain)), Some(Timestamp::MIN));
        let always = json!([{ "key": "k", "operator": "Exists" }]);
        assert_eq!(leaves(always.clone(), std::slice::from_ref(&plain)), None);
        let briefly = json!([{ "key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30 }]);
        assert_eq!(leaves(briefly.clone(), std::slice::from_ref(&plain)), Some(at(130)));
        let dated = taint(json!({ "timeAdded": at(0).to_string() }));
        assert_eq!(leaves(briefly.clone(), &[dated]), Some(at(30)));
        let other = taint(json!({ "key": "other" }));
        assert_eq!(leaves(briefly, &[plain, other]), Some(Timestamp::MIN), "each taint must be tolerated");
    }
}
