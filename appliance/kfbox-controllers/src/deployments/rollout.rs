//! What a Deployment does next: create, scale and drop ReplicaSets. Pure.

use super::{HASH_LABEL, REVISION};
use crate::{names, pods};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec},
        core::v1::{Pod, PodTemplateSpec},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use std::{collections::BTreeMap, sync::Arc};

const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";

#[derive(Debug, PartialEq)]
pub enum Action {
    Create(Box<ReplicaSet>),
    Scale {
        set: Arc<ReplicaSet>,
        replicas: i32,
        annotations: BTreeMap<String, String>,
    },
    Delete(Arc<ReplicaSet>),
    /// Annotations of the Deployment itself.
    Annotate(BTreeMap<String, String>),
}

pub fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

/// `(maxSurge, maxUnavailable)` in pods.
pub fn limits(spec: &DeploymentSpec) -> (i32, i32) {
    let replicas = spec.replicas.unwrap_or(1);
    let rolling = spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".into());
    let surge = share(rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter), replicas, true);
    let unavailable = share(rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&quarter), replicas, false);
    // Both zero would never move.
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    (surge, unavailable.min(replicas))
}

/// A number, or a percentage of `total` rounded up or down.
pub fn share(value: &IntOrString, total: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(text) => {
            let percent: i64 = text.trim().trim_end_matches('%').parse().unwrap_or(0);
            let product = percent.saturating_mul(total.into());
            let share = if up { product.saturating_add(99) / 100 } else { product / 100 };
            i32::try_from(share).unwrap_or(i32::MAX)
        }
    }
    .max(0)
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH_LABEL);
        }
        meta.labels = meta.labels.take().filter(|l| !l.is_empty());
        meta.creation_timestamp = None;
    }
    template.metadata = template.metadata.filter(|m| *m != ObjectMeta::default());
    template
}

pub fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let wanted = deployment.spec.as_ref().map(|s| without_hash(&s.template));
    let has = set.spec.as_ref().and_then(|s| s.template.as_ref()).map(without_hash);
    wanted.is_some() && wanted == has
}

pub fn revision_of(set: &ReplicaSet) -> i64 {
    set.metadata.annotations.as_ref().and_then(|a| a.get(REVISION)).and_then(|r| r.parse().ok()).unwrap_or(0)
}

pub fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// The set of the present template (the oldest, should there be several) and the others, oldest first.
pub fn split(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
    let mut sorted: Vec<Arc<ReplicaSet>> = sets.to_vec();
    sorted.sort_by_key(|s| (pods::created(&s.metadata), s.metadata.name.clone()));
    let new = sorted.iter().find(|s| same_template(deployment, s)).cloned();
    let old = sorted.into_iter().filter(|s| new.as_ref().is_none_or(|n| n.metadata.uid != s.metadata.uid)).collect();
    (new, old)
}

/// Annotations that a ReplicaSet takes over from its Deployment.
fn inherited(deployment: &Deployment) -> BTreeMap<String, String> {
    let own =
        [REVISION, DESIRED, MAXIMUM, "deployment.kubernetes.io/revision-history", "deprecated.deployment.rollback.to"];
    let annotations = deployment.metadata.annotations.iter().flatten();
    annotations
        .filter(|(k, _)| !own.contains(&k.as_str()) && *k != "kubectl.kubernetes.io/last-applied-configuration")
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

fn sizes(spec: &DeploymentSpec) -> BTreeMap<String, String> {
    let wanted = spec.replicas.unwrap_or(1);
    let surge =
        if spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate") { 0 } else { limits(spec).0 };
    BTreeMap::from([(DESIRED.into(), wanted.to_string()), (MAXIMUM.into(), wanted.saturating_add(surge).to_string())])
}

/// A scaling of `set`, unless nothing would change.
fn scale(set: &Arc<ReplicaSet>, to: i32, mut annotations: BTreeMap<String, String>) -> Option<Action> {
    let present = set.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|k, v| present.get(k) != Some(v));
    (replicas(set) != to || !annotations.is_empty()).then(|| Action::Scale {
        set: set.clone(),
        replicas: to,
        annotations,
    })
}

/// `namespace_pods` is looked at for the strategy Recreate only.
pub fn decide(deployment: &Deployment, sets: &[Arc<ReplicaSet>], namespace_pods: &[Arc<Pod>]) -> Vec<Action> {
    let Some(spec) = &deployment.spec else { return Vec::new() };
    let wanted = spec.replicas.unwrap_or(1);
    let (new, old) = split(deployment, sets);
    let paused = spec.paused.unwrap_or(false);

    // Recreate has one set with pods at a time, which the rollout itself sizes.
    if paused || (!is_recreate(deployment) && is_resize(sets, wanted)) {
        return resize(spec, new.as_ref(), &old);
    }

    let mut actions = Vec::new();
    let last = old.iter().map(|s| revision_of(s)).max().unwrap_or(0);
    let revision = match &new {
        Some(new) if revision_of(new) > last => revision_of(new),
        _ => last + 1,
    };
    let held = deployment.metadata.annotations.as_ref().and_then(|a| a.get(REVISION));
    if held != Some(&revision.to_string()) {
        actions.push(Action::Annotate(BTreeMap::from([(REVISION.into(), revision.to_string())])));
    }
    let mut annotations = inherited(deployment);
    annotations.insert(REVISION.into(), revision.to_string());
    annotations.extend(sizes(spec));

    if is_recreate(deployment) {
        let before = actions.len();
        actions.extend(old.iter().filter(|s| replicas(s) > 0).filter_map(|s| scale(s, 0, BTreeMap::new())));
        let scaled_down = actions.len() > before;
        let running = namespace_pods.iter().any(|pod| {
            !pods::is_finished(pod)
                && pods::controller(&pod.metadata)
                    .is_some_and(|o| old.iter().any(|s| s.metadata.uid.as_deref() == Some(o.uid.as_str())))
        });
        if scaled_down || running {
            return actions;
        }
        match &new {
            None => actions.push(create(deployment, spec, wanted, annotations)),
            Some(new) => actions.extend(scale(new, wanted, annotations)),
        }
        actions.extend(forget_old(deployment, spec, &old));
        return actions;
    }

    let (surge, unavailable) = limits(spec);
    let total: i32 = new.iter().chain(&old).map(|s| replicas(s)).fold(0, i32::saturating_add);
    let room = wanted.saturating_add(surge).saturating_sub(total).max(0);
    match &new {
        None => {
            actions.push(create(deployment, spec, room.min(wanted), annotations));
            // Old sets give way once the new one has been seen.
            return actions;
        }
        Some(new) => {
            let now = replicas(new);
            let next = if now >= wanted { wanted } else { now + room.min(wanted - now) };
            actions.extend(scale(new, next, annotations));
            if next != now {
                return actions;
            }
        }
    }
    if let Some(new) = &new {
        actions.extend(shrink(&old, new, wanted - unavailable, total));
    }
    actions.extend(forget_old(deployment, spec, &old));
    actions
}

/// Scales old sets down as far as availability allows: unhealthy pods first, then the oldest set's.
fn shrink(old: &[Arc<ReplicaSet>], new: &ReplicaSet, min_available: i32, total: i32) -> Vec<Action> {
    let mut sizes: Vec<i32> = old.iter().map(|s| replicas(s)).collect();
    if sizes.iter().all(|n| *n == 0) {
        return Vec::new();
    }
    let new_unavailable = (replicas(new) - available(new)).max(0);
    let mut budget = total - min_available - new_unavailable;
    if budget <= 0 {
        return Vec::new();
    }
    for (size, set) in sizes.iter_mut().zip(old) {
        let sick = (*size - available(set)).clamp(0, budget);
        *size -= sick;
        budget -= sick;
    }
    let mut spare = old.iter().map(|s| available(s)).sum::<i32>() + available(new) - min_available;
    for (size, set) in sizes.iter_mut().zip(old) {
        if spare <= 0 || budget <= 0 {
            break;
        }
        let gone = (*size).min(available(set)).min(spare).min(budget).max(0);
        *size -= gone;
        spare -= gone;
        budget -= gone;
    }
    old.iter().zip(sizes).filter_map(|(set, size)| scale(set, size, BTreeMap::new())).collect()
}

/// The Deployment was resized when a set that has pods was made for another size.
fn is_resize(sets: &[Arc<ReplicaSet>], wanted: i32) -> bool {
    sets.iter().filter(|s| replicas(s) > 0).any(|set| {
        let desired = set.metadata.annotations.as_ref().and_then(|a| a.get(DESIRED));
        desired.and_then(|d| d.parse::<i32>().ok()).is_some_and(|desired| desired != wanted)
    })
}

/// Spreads the present size over the sets that have pods, in proportion, without rolling out.
fn resize(spec: &DeploymentSpec, new: Option<&Arc<ReplicaSet>>, old: &[Arc<ReplicaSet>]) -> Vec<Action> {
    let wanted = spec.replicas.unwrap_or(1);
    let all: Vec<&Arc<ReplicaSet>> = old.iter().chain(new).collect();
    let active: Vec<&Arc<ReplicaSet>> = all.iter().copied().filter(|s| replicas(s) > 0).collect();
    let recreate = spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate");
    if active.len() <= 1 || recreate {
        let target = active.last().copied().or(new).or_else(|| old.iter().max_by_key(|s| revision_of(s)));
        return target.and_then(|set| scale(set, wanted, sizes(spec))).into_iter().collect();
    }
    if new.is_some_and(|n| available(n) == wanted && replicas(n) == wanted) {
        return active
            .iter()
            .filter(|s| new.is_none_or(|n| n.metadata.uid != s.metadata.uid))
            .filter_map(|s| scale(s, 0, BTreeMap::new()))
            .collect();
    }
    let total: i32 = active.iter().map(|s| replicas(s)).sum();
    let allowed = if wanted > 0 { wanted.saturating_add(limits(spec).0) } else { 0 };
    let mut left = allowed - total;
    // Largest first; the newest of equals takes what rounding leaves.
    let mut order = active;
    order.sort_by_key(|s| (std::cmp::Reverse(replicas(s)), std::cmp::Reverse(pods::created(&s.metadata))));
    let mut next: Vec<i32> = Vec::new();
    for set in &order {
        let maximum = set
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(MAXIMUM))
            .and_then(|m| m.parse::<i32>().ok())
            .unwrap_or(total)
            .max(1);
        let part = (f64::from(replicas(set)) * f64::from(allowed) / f64::from(maximum)).round();
        #[expect(clippy::cast_possible_truncation, reason = "a share of an i32")]
        let change = (part as i32).saturating_sub(replicas(set));
        let change = if left >= 0 { change.clamp(0, left) } else { change.clamp(left, 0) };
        left -= change;
        next.push(replicas(set) + change);
    }
    if let Some(first) = next.first_mut() {
        *first = (*first + left).max(0);
    }
    order.iter().zip(next).filter_map(|(set, size)| scale(set, size, sizes(spec))).collect()
}

fn create(deployment: &Deployment, spec: &DeploymentSpec, size: i32, annotations: BTreeMap<String, String>) -> Action {
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let hash = names::revision(&without_hash(&spec.template), collisions);
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    Action::Create(Box::new(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![pods::owned_by(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(size),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }))
}

/// Old sets beyond the history limit, once the rollout is over.
fn forget_old(deployment: &Deployment, spec: &DeploymentSpec, old: &[Arc<ReplicaSet>]) -> Vec<Action> {
    let status = deployment.status.clone().unwrap_or_default();
    let wanted = spec.replicas.unwrap_or(1);
    let over = status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation;
    if !over {
        return Vec::new();
    }
    let mut empty: Vec<&Arc<ReplicaSet>> = old
        .iter()
        .filter(|s| {
            let status = s.status.clone().unwrap_or_default();
            replicas(s) == 0
                && status.replicas == 0
                && status.observed_generation >= s.metadata.generation
                && s.metadata.deletion_timestamp.is_none()
        })
        .collect();
    empty.sort_by_key(|s| revision_of(s));
    let keep = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let excess = empty.len().saturating_sub(keep);
    empty.into_iter().take(excess).map(|s| Action::Delete(s.clone())).collect()
}

#[cfg(test)]
mod tests;
