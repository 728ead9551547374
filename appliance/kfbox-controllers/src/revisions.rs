//! ControllerRevisions: the templates that a StatefulSet or DaemonSet has had. A revision's name follows from its template.

use crate::{cache, names, pods};
use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

pub const HASH_LABEL: &str = "controller-revision-hash";

pub struct Revision {
    pub name: String,
    pub hash: String,
    /// To be created.
    pub create: Option<Box<ControllerRevision>>,
    /// An old one that became the newest again, and its new number.
    pub renumber: Option<(Arc<ControllerRevision>, i64)>,
}

/// The revision of a template among those that the owner has.
pub fn of<K: cache::Kind>(
    owner: &K,
    template: &PodTemplateSpec,
    labels: Option<&BTreeMap<String, String>>,
    existing: &[Arc<ControllerRevision>],
) -> Revision {
    let hash = names::revision(template, 0);
    let name = format!("{}-{hash}", owner.meta().name.as_deref().unwrap_or_default());
    let newest = existing.iter().map(|r| r.revision).max().unwrap_or(0);
    let found = existing.iter().find(|r| r.metadata.name.as_deref() == Some(name.as_str())).cloned();
    let renumber = found.clone().filter(|r| r.revision < newest).map(|r| (r, newest + 1));
    let create = found.is_none().then(|| {
        let mut all = labels.cloned().unwrap_or_default();
        all.insert(HASH_LABEL.into(), hash.clone());
        Box::new(ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: owner.meta().namespace.clone(),
                labels: Some(all),
                owner_references: Some(vec![pods::owned_by(owner)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data(template))),
            revision: newest + 1,
        })
    });
    Revision { name, hash, create, renumber }
}

/// A patch that restores the template, which is how `kubectl rollout undo` uses it.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    if let Some(map) = template.as_object_mut() {
        map.insert("$patch".into(), "replace".into());
    }
    json!({ "spec": { "template": template } })
}

pub fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    serde_json::from_value(revision.data.as_ref()?.0.pointer("/spec/template")?.clone()).ok()
}

/// Revisions beyond the limit that are not in use, the oldest first.
pub fn forgotten(
    existing: &[Arc<ControllerRevision>],
    in_use: &[&str],
    limit: Option<i32>,
) -> Vec<Arc<ControllerRevision>> {
    let mut idle: Vec<&Arc<ControllerRevision>> =
        existing.iter().filter(|r| !in_use.contains(&r.metadata.name.as_deref().unwrap_or_default())).collect();
    idle.sort_by_key(|r| r.revision);
    let excess = idle.len().saturating_sub(usize::try_from(limit.unwrap_or(10)).unwrap_or(0));
    idle.into_iter().take(excess).cloned().collect()
}
