//! The status of PodDisruptionBudgets, which evictions go by. Upstream:
//! <https://kubernetes.io/docs/concepts/workloads/pods/disruptions/>.

use crate::{
    cache::{self, Key},
    context::{Context, Registered},
    deployments::share,
    pods,
    queue::{Outcome, Queue},
    selectors,
    write::{self, WriteError},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use std::sync::Arc;

/// An eviction that was granted and whose pod lives on is forgotten after so long.
const GRANT: SignedDuration = SignedDuration::from_secs(120);

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<Key>::new();
    let q = queue.clone();
    context.caches.budgets.on_change(move |change| change.both().for_each(|b| q.add(cache::key(&**b))));
    let (budgets, q) = (context.caches.budgets.clone(), queue.clone());
    context.caches.pods.on_change(move |change| {
        for pod in change.both() {
            for budget in budgets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
                if covers(&budget, pod) {
                    q.add(cache::key(&*budget));
                }
            }
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("disruption", 2, shutdown, move |key| reconcile(context.clone(), key)).await
    };
    ("disruption", Box::pin(run))
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| selectors::matches(s, pod.metadata.labels.as_ref()))
}

/// `expected` is how many pods their owners want; `None` when an owner's scale is unknown, so the pods there are count.
fn decide(
    budget: &PodDisruptionBudget,
    covered: &[Arc<Pod>],
    expected: Option<i32>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let spec = budget.spec.clone().unwrap_or_default();
    let old = budget.status.clone().unwrap_or_default();
    let present: Vec<&Arc<Pod>> = covered.iter().filter(|p| !pods::is_finished(p)).collect();
    let mut disrupted = old.disrupted_pods.clone().unwrap_or_default();
    disrupted.retain(|name, since| {
        present.iter().any(|p| pods::name(p) == name && !pods::is_deleting(p)) && now.duration_since(since.0) < GRANT
    });
    let healthy = present
        .iter()
        .filter(|p| pods::is_ready(p) && !pods::is_deleting(p) && !disrupted.contains_key(pods::name(p)))
        .count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    let expected = expected.unwrap_or_else(|| i32::try_from(present.len()).unwrap_or(i32::MAX));
    let desired = match (&spec.max_unavailable, &spec.min_available) {
        (Some(max), _) => (expected - share(max, expected, true)).max(0),
        (None, Some(min)) => share(min, expected, true),
        (None, None) => expected,
    };
    let allowed = (healthy - desired).max(0);
    let (value, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let before = conditions.iter().position(|c| c.type_ == "DisruptionAllowed").map(|at| conditions.remove(at));
    let changed = before.as_ref().filter(|c| c.status == value).map(|c| c.last_transition_time.clone());
    conditions.push(Condition {
        type_: "DisruptionAllowed".into(),
        status: value.into(),
        reason: reason.into(),
        message: String::new(),
        observed_generation: budget.metadata.generation,
        last_transition_time: changed.unwrap_or(Time(now)),
    });
    PodDisruptionBudgetStatus {
        conditions: Some(conditions),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        disrupted_pods: Some(disrupted).filter(|d| !d.is_empty()),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        observed_generation: budget.metadata.generation,
    }
}

async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, WriteError> {
    let caches = &context.caches;
    let Some(budget) = caches.budgets.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
    let covered: Vec<Arc<Pod>> = caches.pods.in_namespace(&key.0).into_iter().filter(|p| covers(&budget, p)).collect();
    let mut owners = std::collections::BTreeMap::new();
    for pod in covered.iter().filter(|p| !pods::is_finished(p)) {
        let Some(owner) = pods::controller(&pod.metadata) else { continue };
        let wants = match owner.kind.as_str() {
            "ReplicaSet" => {
                caches.replica_sets.get(&key.0, &owner.name).and_then(|s| s.spec.as_ref().and_then(|s| s.replicas))
            }
            "StatefulSet" => {
                caches.stateful_sets.get(&key.0, &owner.name).and_then(|s| s.spec.as_ref().and_then(|s| s.replicas))
            }
            _ => None,
        };
        owners.insert(owner.uid.clone(), wants);
    }
    let expected: Option<i32> = if owners.is_empty() { None } else { owners.values().copied().sum() };
    let status = decide(&budget, &covered, expected, Timestamp::now());
    let old = budget.status.clone().unwrap_or_default();
    let waiting = status.disrupted_pods.is_some();
    write::status_of(&context.client, &caches.budgets, &*budget, &old, &status).await?;
    Ok(if waiting { Outcome::Again(GRANT.unsigned_abs()) } else { Outcome::Done })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{at, object, pod};
    use serde_json::json;

    #[test]
    fn what_may_go_is_what_is_healthy_beyond_what_must_be() {
        let ready = |n: &str| Arc::new(pod(n, "rs", json!({ "app": "web" }), "Running", true));
        let sick = Arc::new(pod("s", "rs", json!({ "app": "web" }), "Running", false));
        let budget = |spec: serde_json::Value| {
            object::<PodDisruptionBudget>(json!({ "metadata": { "name": "b", "namespace": "n" }, "spec": spec }))
        };
        let allowed =
            |spec, pods: &[Arc<Pod>]| decide(&budget(spec), pods, Some(4), at(0)).disruptions_allowed.unwrap();
        let four = [ready("a"), ready("b"), ready("c"), ready("d")];
        assert_eq!(allowed(json!({ "minAvailable": 3 }), &four), 1);
        assert_eq!(allowed(json!({ "maxUnavailable": "50%" }), &four), 2);
        assert_eq!(allowed(json!({ "minAvailable": "100%" }), &four), 0);
        assert_eq!(allowed(json!({ "maxUnavailable": 1 }), &[ready("a"), ready("b"), ready("c"), sick]), 0);
        let status = decide(&budget(json!({ "minAvailable": 3 })), &four, Some(4), at(0));
        assert_eq!(status.conditions.unwrap()[0].status, "True");
        let mut granted = budget(json!({ "minAvailable": 3 }));
        granted.status = Some(object(
            json!({ "disruptedPods": { "a": at(0).to_string(), "gone": at(0).to_string() }, "currentHealthy": 4, "desiredHealthy": 3, "disruptionsAllowed": 0, "expectedPods": 4 }),
        ));
        let status = decide(&granted, &four, Some(4), at(10));
        assert_eq!((status.disruptions_allowed, status.disrupted_pods.unwrap().len()), (Some(0), 1));
        assert_eq!(decide(&granted, &four, Some(4), at(500)).disruptions_allowed, Some(1));
    }
}
