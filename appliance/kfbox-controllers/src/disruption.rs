//! The status of PodDisruptionBudgets, which evictions go by. Upstream:
//! <https://kubernetes.io/docs/concepts/workloads/pods/disruptions/>.

use crate::{
    cache::{self, Key},
    context::{Context, Registered},
    deployments::share,
    garbage::discovery::Resource,
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
    apimachinery::pkg::{
        apis::meta::v1::{Condition, OwnerReference, Time},
        util::intstr::IntOrString,
    },
};
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc};

const COMPONENT: &str = "controllermanager";

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
    let stale = Queue::<Key>::new();
    let q = stale.clone();
    context.caches.pods.on_change(move |change| {
        if let Some(pod) = change.new.filter(|p| is_marked(p)) {
            q.add(cache::key(&**pod));
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let (a, b, shutdown) = (context.clone(), context.clone(), context.shutdown.clone());
        let budgets = queue.run("disruption", 2, shutdown.clone(), move |key| reconcile(a.clone(), key));
        let marks = stale.run("stale-disruption", 1, shutdown, move |key| unmark(b.clone(), key));
        let (budgets, marks) = futures::join!(budgets, marks);
        budgets.and(marks)
    };
    ("disruption", Box::pin(run))
}

/// Said to be going, and not yet going.
fn is_marked(pod: &Pod) -> bool {
    !pods::is_deleting(pod)
        && !pods::is_finished(pod)
        && pods::condition(pod, "DisruptionTarget").is_some_and(|c| c.status == "True")
}

/// A pod that was to be disrupted and lives on is no target any more.
async fn unmark(context: Arc<Context>, key: Key) -> Result<Outcome, WriteError> {
    let Some(pod) = context.caches.pods.get(&key.0, &key.1).filter(|p| is_marked(p)) else {
        return Ok(Outcome::Done);
    };
    let since = pods::condition(&pod, "DisruptionTarget").and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
    let left = GRANT - Timestamp::now().duration_since(since.unwrap_or(Timestamp::MIN));
    if left > SignedDuration::ZERO {
        return Ok(Outcome::Again(left.unsigned_abs()));
    }
    let condition = json!({ "type": "DisruptionTarget", "status": "False", "reason": null, "message": null,
        "lastTransitionTime": Timestamp::now().to_string() });
    let body = json!({ "metadata": { "uid": cache::uid(&*pod) }, "status": { "conditions": [condition] } });
    let api = Api::<Pod>::namespaced(context.client.clone(), &key.0);
    match api.patch_status(&key.1, &PatchParams::default(), &Patch::Strategic(body)).await {
        Ok(_) => Ok(Outcome::Done),
        Err(error) if write::is_missing(&error) => Ok(Outcome::Done),
        Err(error) => Err(error.into()),
    }
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| selectors::matches(s, pod.metadata.labels.as_ref()))
}

/// Whether the budget is a share of what owners want, so that their scales must be known.
fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.as_ref();
    spec.is_some_and(|s| s.max_unavailable.is_some() || matches!(s.min_available, Some(IntOrString::String(_))))
}

/// `expected` is how many pods their owners want, where the budget needs to know; an error is why that is not known, and
/// then nothing may be disrupted.
fn decide(
    budget: &PodDisruptionBudget,
    covered: &[Arc<Pod>],
    expected: &Result<i32, String>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let spec = budget.spec.clone().unwrap_or_default();
    let old = budget.status.clone().unwrap_or_default();
    let present: Vec<&Arc<Pod>> = covered.iter().filter(|p| !pods::is_finished(p)).collect();
    let condition = |value: &str, reason: &str, message: String| {
        let before = old.conditions.iter().flatten().find(|c| c.type_ == "DisruptionAllowed" && c.status == value);
        let others = old.conditions.iter().flatten().filter(|c| c.type_ != "DisruptionAllowed").cloned();
        let condition = Condition {
            type_: "DisruptionAllowed".into(),
            status: value.into(),
            reason: reason.into(),
            message,
            observed_generation: budget.metadata.generation,
            last_transition_time: before.map_or(Time(now), |c| c.last_transition_time.clone()),
        };
        Some(others.chain([condition]).collect::<Vec<_>>())
    };
    let scale = match expected {
        Ok(scale) => *scale,
        Err(why) if needs_scale(budget) => {
            return PodDisruptionBudgetStatus {
                conditions: condition("False", "SyncFailed", why.clone()),
                disruptions_allowed: Some(0),
                observed_generation: budget.metadata.generation,
                ..old
            };
        }
        Err(_) => 0,
    };
    let mut disrupted = old.disrupted_pods.clone().unwrap_or_default();
    disrupted.retain(|name, since| {
        present.iter().any(|p| pods::name(p) == name && !pods::is_deleting(p)) && now.duration_since(since.0) < GRANT
    });
    let healthy = present
        .iter()
        .filter(|p| pods::is_ready(p) && !pods::is_deleting(p) && !disrupted.contains_key(pods::name(p)))
        .count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    let there = i32::try_from(present.len()).unwrap_or(i32::MAX);
    let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(max), _) => (scale, (scale - share(max, scale, true)).max(0)),
        (None, Some(IntOrString::Int(min))) => (there, *min),
        (None, Some(min)) => (scale, share(min, scale, true)),
        (None, None) => (there, there),
    };
    // Of no pods none may go: the first ones to come are safe before they are counted.
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    let (value, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    PodDisruptionBudgetStatus {
        conditions: condition(value, reason, String::new()),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        disrupted_pods: Some(disrupted).filter(|d| !d.is_empty()),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        observed_generation: budget.metadata.generation,
    }
}

/// Who decides how many pods there are: the Deployment above a ReplicaSet, else the pod's own controller.
fn scaler(context: &Context, namespace: &str, owner: &OwnerReference) -> OwnerReference {
    let above = (owner.kind == "ReplicaSet")
        .then(|| context.caches.replica_sets.get(namespace, &owner.name))
        .flatten()
        .filter(|set| cache::uid(&**set) == owner.uid)
        .and_then(|set| pods::controller(&set.metadata).cloned());
    above.unwrap_or_else(|| owner.clone())
}

/// How many pods the owner wants.
async fn scale_of(context: &Context, namespace: &str, owner: &OwnerReference) -> Result<i32, String> {
    let caches = &context.caches;
    let name = owner.name.as_str();
    let known = match owner.kind.as_str() {
        "Deployment" => caches.deployments.get(namespace, name).and_then(|d| d.spec.as_ref().and_then(|s| s.replicas)),
        "ReplicaSet" => caches.replica_sets.get(namespace, name).and_then(|s| s.spec.as_ref().and_then(|s| s.replicas)),
        "StatefulSet" => {
            caches.stateful_sets.get(namespace, name).and_then(|s| s.spec.as_ref().and_then(|s| s.replicas))
        }
        "ReplicationController" => {
            caches.controllers.get(namespace, name).and_then(|c| c.spec.as_ref().and_then(|s| s.replicas))
        }
        _ => None,
    };
    if let Some(replicas) = known {
        return Ok(replicas);
    }
    let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group);
    let resource: Option<Arc<Resource>> =
        context.resources.borrow().iter().find(|r| r.same_kind(group, &owner.kind)).cloned();
    let lacks = || format!("{} does not implement the scale subresource", owner.kind);
    let resource = resource.ok_or_else(lacks)?;
    let api = Api::<DynamicObject>::namespaced_with(context.client.clone(), namespace, &resource.api);
    match api.get_scale(name).await {
        Ok(scale) => Ok(scale.spec.and_then(|s| s.replicas).unwrap_or(0)),
        Err(error) if write::is_missing(&error) => Err(lacks()),
        Err(error) => Err(error.to_string()),
    }
}

async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, WriteError> {
    let caches = &context.caches;
    let Some(budget) = caches.budgets.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
    let covered: Vec<Arc<Pod>> = caches.pods.in_namespace(&key.0).into_iter().filter(|p| covers(&budget, p)).collect();
    let mut expected = Ok(0);
    if needs_scale(&budget) {
        let mut owners = BTreeMap::new();
        let mut unmanaged = 0;
        for pod in covered.iter().filter(|p| !pods::is_finished(p)) {
            match pods::controller(&pod.metadata) {
                Some(owner) => {
                    let owner = scaler(&context, &key.0, owner);
                    owners.insert(owner.uid.clone(), owner);
                }
                None => unmanaged += 1,
            }
        }
        for owner in owners.values() {
            let scale = scale_of(&context, &key.0, owner).await;
            expected = expected.and_then(|sum: i32| scale.map(|n| sum.saturating_add(n)));
        }
        if unmanaged > 0 {
            let message =
                format!("{unmanaged} pods of this budget have no controller, so how many there should be is not known");
            context.events.warning(&*budget, COMPONENT, "UnmanagedPods", message);
        }
        if let Err(why) = &expected {
            let message = format!("Failed to calculate the number of expected pods: {why}");
            context.events.warning(&*budget, COMPONENT, "CalculateExpectedPodCountFailed", message);
        }
    }
    let status = decide(&budget, &covered, &expected, Timestamp::now());
    let old = budget.status.clone().unwrap_or_default();
    let waiting = status.disrupted_pods.is_some();
    write::status_of(&context.client, &caches.budgets, &*budget, &old, &status).await?;
    Ok(if waiting { Outcome::Again(GRANT.unsigned_abs()) } else { Outcome::Done })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{at, object, pod};

    #[test]
    fn what_may_go_is_what_is_healthy_beyond_what_must_be() {
        let ready = |n: &str| Arc::new(pod(n, "rs", json!({ "app": "web" }), "Running", true));
        let sick = Arc::new(pod("s", "rs", json!({ "app": "web" }), "Running", false));
        let budget = |spec: serde_json::Value| {
            object::<PodDisruptionBudget>(json!({ "metadata": { "name": "b", "namespace": "n" }, "spec": spec }))
        };
        let allowed = |spec, pods: &[Arc<Pod>]| decide(&budget(spec), pods, &Ok(4), at(0)).disruptions_allowed.unwrap();
        let four = [ready("a"), ready("b"), ready("c"), ready("d")];
        assert_eq!(allowed(json!({ "minAvailable": 3 }), &four), 1);
        assert_eq!(allowed(json!({ "maxUnavailable": "50%" }), &four), 2);
        assert_eq!(allowed(json!({ "minAvailable": "100%" }), &four), 0);
        assert_eq!(allowed(json!({ "maxUnavailable": 1 }), &[ready("a"), ready("b"), ready("c"), sick]), 0);
        let status = decide(&budget(json!({ "minAvailable": 3 })), &four, &Ok(4), at(0));
        assert_eq!(status.conditions.unwrap()[0].status, "True");
        assert_eq!(allowed(json!({ "maxUnavailable": 1 }), &[]), 0);
        assert_eq!(decide(&budget(json!({ "minAvailable": 0 })), &[], &Ok(0), at(0)).disruptions_allowed, Some(0));
        let unknown = decide(&budget(json!({ "maxUnavailable": 1 })), &four, &Err("no scale".into()), at(0));
        assert_eq!(unknown.disruptions_allowed, Some(0));
        assert_eq!(unknown.conditions.unwrap()[0].reason, "SyncFailed");
        let number = decide(&budget(json!({ "minAvailable": 3 })), &four, &Err("no scale".into()), at(0));
        assert_eq!((number.disruptions_allowed, number.expected_pods), (Some(1), Some(4)), "a number needs no scale");
        let mut granted = budget(json!({ "minAvailable": 3 }));
        granted.status = Some(object(
            json!({ "disruptedPods": { "a": at(0).to_string(), "gone": at(0).to_string() }, "currentHealthy": 4, "desiredHealthy": 3, "disruptionsAllowed": 0, "expectedPods": 4 }),
        ));
        let status = decide(&granted, &four, &Ok(4), at(10));
        assert_eq!((status.disruptions_allowed, status.disrupted_pods.unwrap().len()), (Some(0), 1));
        assert_eq!(decide(&granted, &four, &Ok(4), at(500)).disruptions_allowed, Some(1));
    }
}
