//! A Deployment's status from its ReplicaSets. Pure.

use super::rollout::{limits, replicas, split};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet},
    apimachinery::pkg::apis::meta::v1::Time,
};
use std::{sync::Arc, time::Duration};

/// The status, and in how long the progress deadline must be looked at.
pub fn of(deployment: &Deployment, sets: &[Arc<ReplicaSet>], now: Timestamp) -> (DeploymentStatus, Option<Duration>) {
    let old = deployment.status.clone().unwrap_or_default();
    let Some(spec) = &deployment.spec else { return (old, None) };
    let wanted = spec.replicas.unwrap_or(1);
    let (new, previous) = split(deployment, sets);
    let sum = |count: &dyn Fn(&ReplicaSet) -> i32| sets.iter().map(|s| count(s)).fold(0, i32::saturating_add);
    let held = |s: &ReplicaSet| s.status.as_ref().map_or(0, |s| s.replicas);
    let total = sum(&held);
    let available = sum(&|s| s.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0));
    let some = |n: i32| Some(n).filter(|n| *n > 0);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(total),
        updated_replicas: some(new.as_ref().map_or(0, |s| held(s))),
        ready_replicas: some(sum(&|s| s.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0))),
        available_replicas: some(available),
        unavailable_replicas: some(sum(&replicas).max(total) - available),
        terminating_replicas: Some(sum(&|s| s.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or(0))),
        collision_count: old.collision_count,
        conditions: None,
    };
    let mut conditions = old.conditions.clone().unwrap_or_default();

    let enough = available >= wanted - limits(spec).1;
    set(
        &mut conditions,
        "Available",
        enough,
        if enough { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" },
        if enough { "Deployment has minimum availability." } else { "Deployment does not have minimum availability." },
        now,
        false,
    );

    let failing = sets
        .iter()
        .filter(|s| new.as_ref().is_none_or(|n| n.metadata.uid == s.metadata.uid))
        .flat_map(|s| s.status.iter().flat_map(|s| s.conditions.iter().flatten()))
        .find(|c| c.type_ == "ReplicaFailure");
    match failing {
        Some(failure) => set(
            &mut conditions,
            "ReplicaFailure",
            true,
            failure.reason.as_deref().unwrap_or("FailedCreate"),
            failure.message.as_deref().unwrap_or_default(),
            now,
            false,
        ),
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }

    let again = progress(deployment, &old, &status, new.as_deref(), &previous, &mut conditions, now);
    status.conditions = Some(conditions);
    (status, again)
}

fn progress(
    deployment: &Deployment,
    old: &DeploymentStatus,
    status: &DeploymentStatus,
    new: Option<&ReplicaSet>,
    previous: &[Arc<ReplicaSet>],
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) -> Option<Duration> {
    let spec = deployment.spec.as_ref()?;
    let seconds = spec.progress_deadline_seconds.unwrap_or(600);
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let subject = match new {
        Some(set) => format!("ReplicaSet {:?}", set.metadata.name.as_deref().unwrap_or_default()),
        None => format!("Deployment {name:?}"),
    };
    if spec.paused.unwrap_or(false) {
        set(conditions, "Progressing", true, "DeploymentPaused", "Deployment is paused", now, false);
        // Upstream says Unknown: it is not known whether it would progress.
        if let Some(condition) = conditions.iter_mut().find(|c| c.type_ == "Progressing") {
            condition.status = "Unknown".into();
        }
        return None;
    }
    let wanted = spec.replicas.unwrap_or(1);
    let count = |n: Option<i32>| n.unwrap_or(0);
    let complete = new.is_some()
        && count(status.updated_replicas) == wanted
        && count(status.replicas) == wanted
        && count(status.available_replicas) == wanted
        && previous.iter().all(|s| replicas(s) == 0);
    let present = conditions.iter().find(|c| c.type_ == "Progressing").cloned();
    let reason = present.as_ref().and_then(|c| c.reason.as_deref());
    if complete {
        let message = format!("{subject} has successfully progressed.");
        set(conditions, "Progressing", true, "NewReplicaSetAvailable", &message, now, true);
        return None;
    }
    let moved = count(status.updated_replicas) > count(old.updated_replicas)
        || count(status.replicas) - count(status.updated_replicas) < count(old.replicas) - count(old.updated_replicas)
        || count(status.ready_replicas) > count(old.ready_replicas)
        || count(status.available_replicas) > count(old.available_replicas);
    let fresh = status.observed_generation != old.observed_generation && reason == Some("NewReplicaSetAvailable");
    if present.is_none() || fresh || reason == Some("DeploymentPaused") {
        let message = match new {
            Some(_) => format!(
                "Created new replica set {:?}",
                new.and_then(|s| s.metadata.name.as_deref()).unwrap_or_default()
            ),
            None => format!("{subject} is progressing."),
        };
        set(conditions, "Progressing", true, "NewReplicaSetCreated", &message, now, true);
    } else if moved {
        set(conditions, "Progressing", true, "ReplicaSetUpdated", &format!("{subject} is progressing."), now, true);
    } else if reason == Some("NewReplicaSetAvailable") {
        // Pods were lost after the rollout: the rollout itself stays a success.
        return None;
    }
    let condition = conditions.iter().find(|c| c.type_ == "Progressing")?;
    if condition.reason.as_deref() == Some("ProgressDeadlineExceeded") {
        return None;
    }
    let since = condition.last_update_time.as_ref().map_or(now, |t| t.0);
    let left = SignedDuration::from_secs(seconds.into()) - now.duration_since(since);
    if left > SignedDuration::ZERO {
        return Some(left.unsigned_abs() + Duration::from_millis(10));
    }
    let message = format!("{subject} has timed out progressing.");
    set(conditions, "Progressing", false, "ProgressDeadlineExceeded", &message, now, true);
    None
}

fn set(
    conditions: &mut Vec<DeploymentCondition>,
    kind: &str,
    yes: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
    touch: bool,
) {
    let value = if yes { "True" } else { "False" };
    let present = conditions.iter_mut().find(|c| c.type_ == kind);
    let changed = present.as_ref().is_none_or(|c| c.status != value);
    let different =
        present.as_ref().is_none_or(|c| c.reason.as_deref() != Some(reason) || c.message.as_deref() != Some(message));
    let moved = touch && reason == "ReplicaSetUpdated";
    if !(changed || different || moved) {
        return;
    }
    let transition = match &present {
        Some(condition) if !changed => condition.last_transition_time.clone(),
        _ => Some(Time(now)),
    };
    let condition = DeploymentCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: transition,
        last_update_time: Some(Time(now)),
    };
    match present {
        Some(present) => *present = condition,
        None => conditions.push(condition),
    }
}
