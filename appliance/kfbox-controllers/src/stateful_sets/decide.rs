//! What a StatefulSet does next: one thing at a time when ordered. Pure.

use crate::{cache, deployments::share, pods, revisions};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus},
        core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume},
    },
    apimachinery::pkg::{apis::meta::v1::OwnerReference, util::intstr::IntOrString},
};
use kube::api::ObjectMeta;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

#[derive(Default)]
pub struct Plan {
    pub claims: Vec<PersistentVolumeClaim>,
    pub create: Vec<Pod>,
    pub delete: Vec<Arc<Pod>>,
    pub status: StatefulSetStatus,
    pub again: Option<Duration>,
}

/// The ordinal in a pod's name, if it is a name of this set.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let text = pods::name(pod).strip_prefix(set.metadata.name.as_deref()?)?.strip_prefix('-')?;
    // Only the canonical form, so that two names are never one ordinal.
    text.parse::<i32>().ok().filter(|n| *n >= 0 && n.to_string() == text)
}

fn start(spec: &StatefulSetSpec) -> i32 {
    spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0)
}

fn revision_of(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(revisions::HASH_LABEL).map(String::as_str)
}

fn claim_name(template: &PersistentVolumeClaim, set: &str, ordinal: i32) -> String {
    format!("{}-{set}-{ordinal}", template.metadata.name.as_deref().unwrap_or_default())
}

fn claims(set: &StatefulSet, spec: &StatefulSetSpec, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let templates = spec.volume_claim_templates.iter().flatten();
    templates
        .map(|template| {
            let mut labels = template.metadata.labels.clone().unwrap_or_default();
            labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
            PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(claim_name(template, name, ordinal)),
                    namespace: set.metadata.namespace.clone(),
                    labels: Some(labels).filter(|l| !l.is_empty()),
                    annotations: template.metadata.annotations.clone(),
                    ..ObjectMeta::default()
                },
                spec: template.spec.clone(),
                status: None,
            }
        })
        .collect()
}

fn make(set: &StatefulSet, spec: &StatefulSetSpec, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let set_name = set.metadata.name.as_deref().unwrap_or_default();
    let name = format!("{set_name}-{ordinal}");
    let mut pod = pods::from_template(template, set, name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert("statefulset.kubernetes.io/pod-name".into(), name.clone());
    labels.insert("apps.kubernetes.io/pod-index".into(), ordinal.to_string());
    labels.insert(revisions::HASH_LABEL.into(), revision.into());
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(name);
    pod_spec.subdomain = spec.service_name.clone().filter(|s| !s.is_empty());
    for template in spec.volume_claim_templates.iter().flatten() {
        let volume = template.metadata.name.clone().unwrap_or_default();
        let volumes = pod_spec.volumes.get_or_insert_default();
        volumes.retain(|v| v.name != volume);
        volumes.push(Volume {
            name: volume,
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(template, set_name, ordinal),
                read_only: None,
            }),
            ..Volume::default()
        });
    }
    pod
}

pub fn decide(
    set: &StatefulSet,
    own: &[Arc<Pod>],
    update: &str,
    known: &[Arc<ControllerRevision>],
    now: Timestamp,
) -> Plan {
    let Some(spec) = &set.spec else { return Plan::default() };
    let old = set.status.clone().unwrap_or_default();
    let current = old.current_revision.clone().filter(|r| !r.is_empty()).unwrap_or_else(|| update.to_owned());
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let wanted = spec.replicas.unwrap_or(1).max(0);
    let (first, end) = (start(spec), start(spec).saturating_add(wanted));
    let ordered = spec.pod_management_policy.as_deref() != Some("Parallel");
    let strategy = spec.update_strategy.as_ref();
    let on_delete = strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete");
    let partition = strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.partition).unwrap_or(0);

    let by_ordinal: BTreeMap<i32, &Arc<Pod>> = own.iter().filter_map(|p| Some((ordinal(set, p)?, p))).collect();
    let available = |pod: &Pod| pods::phase(pod) == "Running" && pods::is_available(pod, min_ready, now);
    let healthy = |pod: &Pod| available(pod) && !pods::is_deleting(pod);

    let mut plan = Plan { status: status(set, own, &current, update, &healthy, wanted), ..Plan::default() };
    plan.again = own.iter().filter_map(|p| pods::available_in(p, min_ready, now)).min();

    // Up, from the first; an ordered set waits for each.
    for n in first..end {
        let pod = by_ordinal.get(&n).copied();
        match pod {
            Some(pod) if pods::is_finished(pod) => {
                // It is made anew once it is gone.
                if !pods::is_deleting(pod) {
                    plan.delete.push(pod.clone());
                }
                if ordered {
                    return plan;
                }
            }
            Some(pod) => {
                if ordered && !healthy(pod) && !revives(pod, update, on_delete, n >= first + partition) {
                    return plan;
                }
            }
            None => {
                let old_template = if !on_delete && n < first + partition && current != update {
                    known
                        .iter()
                        .find(|r| r.metadata.name.as_deref() == Some(current.as_str()))
                        .and_then(|r| revisions::template(r))
                } else {
                    None
                };
                let pod = match &old_template {
                    Some(template) => make(set, spec, template, &current, n),
                    None => make(set, spec, &spec.template, update, n),
                };
                plan.claims.extend(claims(set, spec, n));
                plan.create.push(pod);
                if ordered {
                    return plan;
                }
            }
        }
    }

    // Down, from the last.
    let condemned: Vec<&Arc<Pod>> =
        by_ordinal.iter().rev().filter(|(n, _)| **n < first || **n >= end).map(|(_, p)| *p).collect();
    for pod in condemned {
        if !pods::is_deleting(pod) {
            plan.delete.push(pod.clone());
        }
        if ordered {
            return plan;
        }
    }

    // Then to the new template, from the last, one at a time unless more may be away.
    if on_delete {
        return plan;
    }
    let one = IntOrString::Int(1);
    let away = strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.max_unavailable.as_ref());
    let away = share(away.unwrap_or(&one), wanted, false).max(1);
    if away > 1 {
        let sick = (first..end).filter(|n| by_ordinal.get(n).is_none_or(|p| !healthy(p))).count();
        let mut budget = away - i32::try_from(sick).unwrap_or(i32::MAX);
        for n in (first + partition.max(0)..end).rev() {
            let Some(pod) = by_ordinal.get(&n) else { continue };
            if budget <= 0 {
                break;
            }
            if revision_of(pod) != Some(update) && !pods::is_deleting(pod) {
                // One that is away already costs nothing.
                budget -= i32::from(healthy(pod));
                plan.delete.push((*pod).clone());
            }
        }
        return plan;
    }
    for n in (first + partition.max(0)..end).rev() {
        let Some(pod) = by_ordinal.get(&n) else { continue };
        if revision_of(pod) != Some(update) && !pods::is_deleting(pod) {
            plan.delete.push((*pod).clone());
            return plan;
        }
        if !healthy(pod) {
            return plan;
        }
    }
    plan
}

/// A sick pod of an old template does not hold up its own replacement (upstream waits for ever; people then delete it by
/// hand).
fn revives(pod: &Pod, update: &str, on_delete: bool, in_partition: bool) -> bool {
    !on_delete && in_partition && !pods::is_deleting(pod) && revision_of(pod).is_some_and(|r| r != update)
}

fn status(
    set: &StatefulSet,
    own: &[Arc<Pod>],
    current: &str,
    update: &str,
    healthy: &dyn Fn(&Pod) -> bool,
    wanted: i32,
) -> StatefulSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let count = |test: &dyn Fn(&Pod) -> bool| i32::try_from(own.iter().filter(|p| test(p)).count()).unwrap_or(i32::MAX);
    let at = |revision: &str| count(&|p| !pods::is_deleting(p) && revision_of(p) == Some(revision));
    let ready = count(&|p| pods::phase(p) == "Running" && pods::is_ready(p));
    let replicas = count(&|_| true);
    let mut status = StatefulSetStatus {
        available_replicas: Some(count(healthy)),
        collision_count: Some(0),
        conditions: old.conditions,
        current_replicas: Some(at(current)).filter(|n| *n > 0),
        current_revision: Some(current.into()),
        observed_generation: set.metadata.generation,
        ready_replicas: Some(ready).filter(|n| *n > 0),
        replicas,
        update_revision: Some(update.into()),
        updated_replicas: Some(at(update)).filter(|n| *n > 0),
    };
    if at(update) == wanted && ready == wanted && replicas == wanted {
        status.current_revision = status.update_revision.clone();
        status.current_replicas = status.updated_replicas;
    }
    status
}

/// The owners that claims should have by the retention policy, where they differ.
pub fn claim_owners(
    set: &StatefulSet,
    own: &[Arc<Pod>],
    existing: &[Arc<PersistentVolumeClaim>],
) -> Vec<(String, Vec<OwnerReference>)> {
    let Some(spec) = &set.spec else { return Vec::new() };
    let policy = spec.persistent_volume_claim_retention_policy.clone().unwrap_or_default();
    let when_deleted = policy.when_deleted.as_deref() == Some("Delete");
    let when_scaled = policy.when_scaled.as_deref() == Some("Delete");
    let (first, end) = (start(spec), start(spec).saturating_add(spec.replicas.unwrap_or(1)));
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let owner = |kind: &str, name: &str, uid: &str, version: &str| OwnerReference {
        api_version: version.into(),
        kind: kind.into(),
        name: name.into(),
        uid: uid.into(),
        ..OwnerReference::default()
    };
    let mut changes = Vec::new();
    for pod in own {
        let Some(n) = ordinal(set, pod) else { continue };
        for template in spec.volume_claim_templates.iter().flatten() {
            let claim_name = claim_name(template, name, n);
            let Some(claim) = existing.iter().find(|c| c.metadata.name.as_ref() == Some(&claim_name)) else { continue };
            let before = claim.metadata.owner_references.clone().unwrap_or_default();
            let mut owners: Vec<OwnerReference> =
                before.iter().filter(|o| o.uid != cache::uid(set) && o.uid != cache::uid(&**pod)).cloned().collect();
            if when_deleted {
                owners.push(owner("StatefulSet", name, cache::uid(set), "apps/v1"));
            }
            if when_scaled && !(first..end).contains(&n) {
                owners.retain(|o| o.uid != cache::uid(set));
                owners.push(owner("Pod", pods::name(pod), cache::uid(&**pod), "v1"));
            }
            let same = owners.len() == before.len() && owners.iter().all(|o| before.iter().any(|b| b.uid == o.uid));
            if !same {
                changes.push((claim_name, owners));
            }
        }
    }
    changes
}

#[cfg(test)]
mod tests;
