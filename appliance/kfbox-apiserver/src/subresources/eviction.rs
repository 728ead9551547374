//! Eviction: deletes a pod unless its disruption budget forbids it (`pkg/registry/core/pod/storage/eviction.go`).
//! Guarantees: a budget is taken from before the pod is marked, in one write that fails when another eviction came first,
//! so two evictions never share the last disruption; a pod that is not ready and did not count is only deleted as it was
//! judged. <https://kubernetes.io/docs/concepts/scheduling-eviction/api-eviction/>.

use crate::{
    handle::own_call,
    negotiate::{decode, read_body},
    object::{is_deleting, member_mut, meta, string_map},
    respond,
    status::ApiError,
    verbs::{self, Call, DeleteOptions, Modification},
};
use axum::{body::Body, response::Response};
use http::StatusCode;
use serde_json::{Value, json};

/// Upstream's bound on evictions that were granted and whose pods are still there.
const GRANTED: usize = 2000;
/// How often a deletion is tried while others write to the pod.
const ATTEMPTS: usize = 20;

pub async fn evict(call: &Call, body: Body) -> Result<Response, ApiError> {
    let body = read_body(body).await?;
    let mut eviction = decode(&call.headers, &body)?;
    if eviction["apiVersion"] == "policy/v1beta1" {
        eviction["apiVersion"] = "policy/v1".into();
    }
    call.check_type_as(&mut eviction, "policy/v1", "Eviction")?;
    if meta(&eviction, "name") != call.target.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let options: DeleteOptions = match eviction.get("deleteOptions") {
        None | Some(Value::Null) => DeleteOptions::default(),
        Some(given) => serde_json::from_value(given.clone())
            .map_err(|error| ApiError::bad_request(format!("deleteOptions cannot be read: {error}")))?,
    };
    let dry_run = call.dry_run || options.dry_run.as_ref().is_some_and(|d| d.iter().any(|d| d == "All"));
    let insists = options.preconditions.as_ref().is_some_and(|p| p.resource_version.is_some());

    let mut attempts = 0;
    loop {
        attempts += 1;
        match once(call, &options, dry_run).await {
            Ok(()) => break,
            // Somebody wrote to the pod meanwhile; it is judged again as it is now.
            Err(Failure::Moved(_)) if !insists && attempts < ATTEMPTS => {}
            Err(Failure::Moved(error) | Failure::Final(error)) => return Err(error),
        }
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(respond::value(call, StatusCode::CREATED, &status))
}

enum Failure {
    /// The pod changed since it was judged.
    Moved(ApiError),
    Final(ApiError),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Final(error)
    }
}

async fn once(call: &Call, options: &DeleteOptions, dry_run: bool) -> Result<(), Failure> {
    let stored = super::pod::stored_pod(call)?;
    let pod = stored.value();
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    let ended = matches!(phase, "Succeeded" | "Failed") || is_deleting(&pod);
    // One that never ran disrupts nothing, as long as it does not begin to meanwhile.
    let mut as_judged = phase == "Pending" && !ended;
    let mut budget_name = None;
    if !ended
        && phase != "Pending"
        && let Some(budget) = budget_of(call, &pod)?
    {
        budget_name = Some(meta(&budget, "name").to_owned());
        if may_go_unhealthy(&budget, &pod) {
            as_judged = true;
        } else {
            take(call, &budget, dry_run).await?;
        }
    }
    let mut options = options.clone();
    let preconditions = options.preconditions.get_or_insert_default();
    if as_judged {
        preconditions.resource_version.get_or_insert(stored.revision.to_string());
    }
    let result = delete(call, options, dry_run).await;
    match (result, budget_name) {
        // What did not count may count now: the client is to ask again, as upstream has it.
        (Err(error), Some(name)) if as_judged && error.reason() == "Conflict" => Err(Failure::Moved(busy(&name))),
        (Err(error), _) if as_judged && error.reason() == "Conflict" => Err(Failure::Moved(error)),
        (result, _) => result.map_err(Failure::Final),
    }
}

/// Says on the pod why it goes, then deletes it.
async fn delete(call: &Call, mut options: DeleteOptions, dry_run: bool) -> Result<(), ApiError> {
    if !dry_run {
        let pods = own_call(&call.core, call.resource.clone(), call.namespace(), &call.target.name);
        let asked = options.preconditions.clone().unwrap_or_default();
        let conflict =
            |what: &str| ApiError::conflict("", "pods", &call.target.name, format!("Precondition failed: {what}"));
        let how = Modification { subresource: "status", track: true, replace: false };
        let marked = verbs::modify(&pods, &how, |pod| {
            if asked.uid.as_deref().is_some_and(|uid| uid != meta(pod, "uid")) {
                return Err(conflict("UID in precondition differs from UID in object meta"));
            }
            if asked.resource_version.as_deref().is_some_and(|version| version != meta(pod, "resourceVersion")) {
                return Err(conflict("ResourceVersion in precondition differs from ResourceVersion in object meta"));
            }
            Ok(at_any_revision(with_target_condition(pod)))
        })
        .await?;
        if let Some(preconditions) = options.preconditions.as_mut().filter(|p| p.resource_version.is_some()) {
            preconditions.resource_version = Some(marked.revision.to_string());
        }
    }
    verbs::delete_object(call, &call.key(), &options, dry_run).await.map(drop)
}

/// Without insisting on the revision that was read: the change is made anew on what a faster writer left.
fn at_any_revision(mut object: Value) -> Value {
    crate::object::set_meta(&mut object, "resourceVersion", "");
    object
}

fn with_target_condition(pod: &Value) -> Value {
    let mut new = pod.clone();
    let conditions = member_mut(&mut new, "status").entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else { return new };
    let (reason, message) = ("EvictionByEvictionAPI", "Eviction API: evicting");
    let present = conditions.iter_mut().find(|c| c["type"] == "DisruptionTarget");
    if present.as_ref().is_some_and(|c| c["status"] == "True" && c["reason"] == reason && c["message"] == message) {
        return new;
    }
    let since = present.as_ref().filter(|c| c["status"] == "True").map(|c| c["lastTransitionTime"].clone());
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": reason, "message": message, "lastProbeTime": null,
        "lastTransitionTime": since.unwrap_or_else(|| crate::object::now().into()),
    });
    match present {
        Some(present) => *present = condition,
        None => conditions.push(condition),
    }
    new
}

/// The one budget that covers the pod.
fn budget_of(call: &Call, pod: &Value) -> Result<Option<Value>, ApiError> {
    let budgets = call.core.store.list("poddisruptionbudgets.policy", Some(call.namespace()), None, None)?;
    let labels = string_map(&pod["metadata"]["labels"]);
    let mut covering = budgets.objects.iter().map(|o| o.value()).filter(|budget| {
        let selector = &budget["spec"]["selector"];
        !selector.is_null() && crate::selectors::matches(selector, &labels)
    });
    let first = covering.next();
    if covering.next().is_some() {
        let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", why));
    }
    Ok(first)
}

/// Whether the pod does not count as healthy, so that its going takes nothing from the budget.
fn may_go_unhealthy(budget: &Value, pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    if conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True") {
        return false;
    }
    if budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" {
        return true;
    }
    let (current, desired) = (count(budget, "currentHealthy"), count(budget, "desiredHealthy"));
    current >= desired && desired > 0
}

fn count(budget: &Value, field: &str) -> i64 {
    budget["status"][field].as_i64().unwrap_or(0)
}

const FULL: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

fn busy(name: &str) -> ApiError {
    let why = format!("The disruption budget {name} is still being processed by the server.");
    ApiError::too_many_requests(FULL, 10).caused_by("DisruptionBudget", &why, "")
}

/// The budget with one disruption less, for this pod.
fn taken(budget: &Value, pod: &str) -> Result<Value, ApiError> {
    let name = meta(budget, "name");
    let forbid = |why: &str| Err(ApiError::forbidden("policy", "poddisruptionbudget", name, why));
    let generation = budget["metadata"]["generation"].as_i64().unwrap_or(0);
    if count(budget, "observedGeneration") < generation {
        return Err(busy(name));
    }
    let allowed = count(budget, "disruptionsAllowed");
    if allowed < 0 {
        return forbid("pdb disruptions allowed is negative");
    }
    if budget["status"]["disruptedPods"].as_object().is_some_and(|pods| pods.len() > GRANTED) {
        return forbid("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        let (desired, current) = (count(budget, "desiredHealthy"), count(budget, "currentHealthy"));
        let why = format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently");
        return Err(ApiError::too_many_requests(FULL, 0).caused_by("DisruptionBudget", &why, ""));
    }
    let mut new = budget.clone();
    let status = member_mut(&mut new, "status");
    status.insert("disruptionsAllowed".into(), (allowed - 1).into());
    let granted = status.entry("disruptedPods").or_insert_with(|| json!({}));
    if let Some(granted) = granted.as_object_mut() {
        granted.insert(pod.into(), crate::object::now().into());
    }
    if allowed == 1 {
        for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            if condition["type"] == "DisruptionAllowed" && condition["status"] != "False" {
                condition["status"] = "False".into();
                condition["reason"] = "InsufficientPods".into();
                condition["lastTransitionTime"] = crate::object::now().into();
            }
        }
    }
    Ok(new)
}

async fn take(call: &Call, budget: &Value, dry_run: bool) -> Result<(), ApiError> {
    let budgets = call.registry.find("policy", "v1", "poddisruptionbudgets").cloned();
    let budgets = budgets.ok_or_else(ApiError::no_such_path)?;
    let mut call_of_budget = own_call(&call.core, budgets, call.namespace(), meta(budget, "name"));
    call_of_budget.dry_run = dry_run;
    let how = Modification { subresource: "status", track: true, replace: false };
    verbs::modify(&call_of_budget, &how, |budget| taken(budget, &call.target.name).map(at_any_revision)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(status: Value) -> Value {
        json!({ "metadata": { "name": "b", "generation": 2 }, "spec": {}, "status": status })
    }

    #[test]
    fn a_disruption_is_taken_once_and_never_below_none() {
        let one =
            budget(json!({ "observedGeneration": 2, "disruptionsAllowed": 1, "desiredHealthy": 2, "currentHealthy": 3,
            "conditions": [{ "type": "DisruptionAllowed", "status": "True", "reason": "SufficientPods" }] }));
        let after = taken(&one, "p").unwrap();
        assert_eq!(after["status"]["disruptionsAllowed"], 0);
        assert!(after["status"]["disruptedPods"]["p"].is_string());
        assert_eq!(after["status"]["conditions"][0]["reason"], "InsufficientPods");
        let refused = taken(&after, "q").unwrap_err().to_value();
        assert_eq!((refused["code"].as_u64(), refused["message"].as_str()), (Some(429), Some(FULL)));
        assert_eq!(refused["details"]["causes"][0]["reason"], "DisruptionBudget");
        assert_eq!(
            refused["details"]["causes"][0]["message"],
            "The disruption budget b needs 2 healthy pods and has 3 currently"
        );
        let fresh = budget(json!({ "observedGeneration": 1, "disruptionsAllowed": 5 }));
        assert_eq!(taken(&fresh, "p").unwrap_err().to_value()["details"]["retryAfterSeconds"], 10, "not yet observed");
    }

    #[test]
    fn pods_that_do_not_count_go_by_the_policy() {
        let sick = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
        let well = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
        let enough = budget(json!({ "desiredHealthy": 2, "currentHealthy": 2 }));
        let mut short = budget(json!({ "desiredHealthy": 2, "currentHealthy": 1 }));
        assert!(may_go_unhealthy(&enough, &sick) && !may_go_unhealthy(&enough, &well));
        assert!(!may_go_unhealthy(&short, &sick));
        short["spec"]["unhealthyPodEvictionPolicy"] = "AlwaysAllow".into();
        assert!(may_go_unhealthy(&short, &sick) && !may_go_unhealthy(&short, &well));
    }
}
