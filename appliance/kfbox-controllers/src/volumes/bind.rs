//! Which volume a claim gets. Pure.

use super::{PROVISIONED_BY, SELECTED_NODE, folder};
use crate::{Config, LOCAL_PATH_PROVISIONER, cache, scheduler, scheduler::fit::milli, selectors};
use k8s_openapi::{
    api::{
        core::v1::{
            HostPathVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference,
            PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus, PersistentVolumeSpec, Pod,
            VolumeNodeAffinity,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::api::ObjectMeta;
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path, sync::Arc};

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

pub enum Step {
    /// The default class, for a claim that names none.
    Class(String),
    Say {
        warning: bool,
        reason: &'static str,
        message: String,
    },
    /// The volume's `claimRef`.
    Reserve(Arc<PersistentVolume>, ObjectReference),
    /// The claim's side of the binding, as a merge patch.
    Bind(Value),
    Status(PersistentVolumeClaimStatus),
    Provision(Box<PersistentVolume>),
    Grow(Arc<PersistentVolume>, Quantity),
}

/// The name of the volume made for a claim.
pub fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default())
}

pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
}

fn storage(resources: Option<&BTreeMap<String, Quantity>>) -> Option<Quantity> {
    resources?.get("storage").cloned()
}

fn asked(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    storage(claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref())
}

fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// Whether the volume's reference means this claim; a reference without uid means whoever has the name.
fn refers_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return false };
    reference.namespace == claim.metadata.namespace
        && reference.name == claim.metadata.name
        && reference.uid.as_ref().is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_ref())
}

/// Whether the volume may be bound to the claim.
pub fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(has), Some(wants)) = (&volume.spec, &claim.spec) else { return false };
    let class = |name: &Option<String>| name.clone().unwrap_or_default();
    let free = has.claim_ref.is_none()
        && matches!(volume.status.as_ref().and_then(|s| s.phase.as_deref()), None | Some("Available" | "Pending"));
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".into());
    let modes = has.access_modes.clone().unwrap_or_default();
    let size = |q: Option<Quantity>| q.as_ref().and_then(milli).unwrap_or(0);
    (free || refers_to(volume, claim))
        && volume.metadata.deletion_timestamp.is_none()
        && class(&has.storage_class_name) == class(&wants.storage_class_name)
        && mode(&has.volume_mode) == mode(&wants.volume_mode)
        && wants.access_modes.iter().flatten().all(|m| modes.contains(m))
        && size(storage(has.capacity.as_ref())) >= size(asked(claim))
        && wants.selector.as_ref().is_none_or(|s| selectors::matches(s, volume.metadata.labels.as_ref()))
}

fn bound_status(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> PersistentVolumeClaimStatus {
    let mut status = claim.status.clone().unwrap_or_default();
    status.phase = Some("Bound".into());
    status.access_modes = volume.spec.as_ref().and_then(|s| s.access_modes.clone());
    status.capacity = volume.spec.as_ref().and_then(|s| s.capacity.clone());
    status
}

fn pending(claim: &PersistentVolumeClaim) -> Option<Step> {
    let mut status = claim.status.clone().unwrap_or_default();
    (status.phase.as_deref() != Some("Pending")).then(|| {
        status.phase = Some("Pending".into());
        Step::Status(status)
    })
}

/// Binds a claim to a volume that is, or becomes, reserved for it.
fn bind(claim: &PersistentVolumeClaim, volume: &Arc<PersistentVolume>) -> Vec<Step> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    let mut steps = Vec::new();
    let held = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).and_then(|r| r.uid.clone());
    if held.is_none_or(|uid| uid.is_empty()) {
        steps.push(Step::Reserve(volume.clone(), reference(claim)));
    }
    let spec = claim.spec.clone().unwrap_or_default();
    let mut annotations = json!({ BIND_COMPLETED: "yes" });
    if spec.volume_name.as_deref().unwrap_or_default().is_empty() {
        annotations[BOUND_BY_CONTROLLER] = "yes".into();
    }
    steps.push(Step::Bind(json!({ "metadata": { "annotations": annotations }, "spec": { "volumeName": name } })));
    steps.push(Step::Status(bound_status(claim, volume)));
    steps
}

pub fn decide(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    classes: &[Arc<StorageClass>],
    config: &Config,
) -> Vec<Step> {
    let spec = claim.spec.clone().unwrap_or_default();
    let annotation = |name: &str| claim.metadata.annotations.as_ref().and_then(|a| a.get(name)).map(String::as_str);
    let named = spec.volume_name.as_deref().filter(|n| !n.is_empty());
    let find = |name: &str| volumes.iter().find(|v| v.metadata.name.as_deref() == Some(name));

    if let Some(name) = named {
        let bound = annotation(BIND_COMPLETED).is_some();
        return match find(name) {
            Some(volume) if refers_to(volume, claim) => {
                if bound && is_bound(claim) {
                    grow(claim, volume, classes)
                } else {
                    bind(claim, volume)
                }
            }
            Some(volume) if !bound && volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_none()) => {
                bind(claim, volume)
            }
            Some(_) if !bound => {
                let message = format!("volume {name:?} already bound to a different claim.");
                pending(claim)
                    .into_iter()
                    .chain([Step::Say { warning: true, reason: "FailedBinding", message }])
                    .collect()
            }
            _ if bound => {
                let mut status = claim.status.clone().unwrap_or_default();
                if status.phase.as_deref() == Some("Lost") {
                    return Vec::new();
                }
                status.phase = Some("Lost".into());
                let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!".into();
                vec![Step::Status(status), Step::Say { warning: true, reason: "ClaimLost", message }]
            }
            _ => pending(claim).into_iter().collect(),
        };
    }

    let Some(class_name) = &spec.storage_class_name else {
        let mut default: Vec<&Arc<StorageClass>> = classes
            .iter()
            .filter(|c| c.metadata.annotations.as_ref().and_then(|a| a.get(DEFAULT_CLASS)).is_some_and(|v| v == "true"))
            .collect();
        // The newest wins, as upstream.
        default.sort_by_key(|c| c.metadata.creation_timestamp.clone().map(|t| t.0));
        return match default.last().and_then(|c| c.metadata.name.clone()) {
            Some(name) => vec![Step::Class(name)],
            None => find_free(claim, volumes).map_or_else(|| pending(claim).into_iter().collect(), |v| bind(claim, v)),
        };
    };
    let class = classes.iter().find(|c| c.metadata.name.as_ref() == Some(class_name));
    let waits = class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    let node = annotation(SELECTED_NODE).filter(|n| !n.is_empty());
    // Made for it before, though the answer was lost.
    if let Some(volume) = volumes.iter().find(|v| refers_to(v, claim)) {
        return bind(claim, volume);
    }
    if waits && node.is_none() {
        let message = "waiting for first consumer to be created before binding".into();
        return pending(claim)
            .into_iter()
            .chain([Step::Say { warning: false, reason: "WaitForFirstConsumer", message }])
            .collect();
    }
    if let Some(volume) = find_free(claim, volumes) {
        return bind(claim, volume);
    }
    let mut steps: Vec<Step> = pending(claim).into_iter().collect();
    match class {
        None if class_name.is_empty() => {
            let message = "no persistent volumes available for this claim and no storage class is set".into();
            steps.push(Step::Say { warning: false, reason: "FailedBinding", message });
        }
        None => {
            let message = format!("storageclass.storage.k8s.io {class_name:?} not found");
            steps.push(Step::Say { warning: true, reason: "ProvisioningFailed", message });
        }
        Some(class) if class.provisioner == LOCAL_PATH_PROVISIONER => {
            if spec.volume_mode.as_deref() == Some("Block") || spec.selector.is_some() {
                let message = "a local folder can be neither a block device nor chosen by a selector".into();
                steps.push(Step::Say { warning: true, reason: "ProvisioningFailed", message });
            } else if node.is_some_and(|n| n != config.node_name) {
                let message = format!(
                    "node {:?} is not {:?}, where local volumes are",
                    node.unwrap_or_default(),
                    config.node_name
                );
                steps.push(Step::Say { warning: true, reason: "ProvisioningFailed", message });
            } else if let Some(volume) = made(claim, class, config) {
                steps.push(Step::Provision(Box::new(volume)));
            }
        }
        Some(class) => {
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator.",
                class.provisioner
            );
            steps.push(Step::Say { warning: false, reason: "ExternalProvisioning", message });
        }
    }
    steps
}

/// The smallest volume that suits, one reserved for the claim before all.
fn find_free<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [Arc<PersistentVolume>],
) -> Option<&'a Arc<PersistentVolume>> {
    volumes.iter().filter(|v| suits(v, claim)).min_by_key(|v| {
        let size = storage(v.spec.as_ref().and_then(|s| s.capacity.as_ref())).as_ref().and_then(milli);
        (!refers_to(v, claim), size, v.metadata.name.clone())
    })
}

fn made(claim: &PersistentVolumeClaim, class: &StorageClass, config: &Config) -> Option<PersistentVolume> {
    let name = volume_name(claim);
    let path = folder::path(&config.local_path_root, &name)?;
    let here = NodeSelectorRequirement {
        key: "kubernetes.io/hostname".into(),
        operator: "In".into(),
        values: Some(vec![config.node_name.clone()]),
    };
    Some(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name),
            annotations: Some(BTreeMap::from([(PROVISIONED_BY.into(), LOCAL_PATH_PROVISIONER.into())])),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: claim.spec.as_ref().and_then(|s| s.access_modes.clone()),
            capacity: asked(claim).map(|q| BTreeMap::from([("storage".to_owned(), q)])),
            claim_ref: Some(reference(claim)),
            host_path: Some(HostPathVolumeSource {
                path: path.display().to_string(),
                type_: Some("DirectoryOrCreate".into()),
            }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector {
                    node_selector_terms: vec![NodeSelectorTerm {
                        match_expressions: Some(vec![here]),
                        match_fields: None,
                    }],
                }),
            }),
            persistent_volume_reclaim_policy: Some(class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into())),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: Some("Filesystem".into()),
            mount_options: class.mount_options.clone(),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    })
}

/// A folder has no size, so a claim that asks for more simply gets it.
fn grow(claim: &PersistentVolumeClaim, volume: &Arc<PersistentVolume>, classes: &[Arc<StorageClass>]) -> Vec<Step> {
    let class = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_ref());
    let may = classes.iter().any(|c| {
        c.metadata.name.as_ref() == class
            && c.allow_volume_expansion == Some(true)
            && c.provisioner == LOCAL_PATH_PROVISIONER
    });
    let (Some(wanted), Some(has)) = (asked(claim), storage(volume.spec.as_ref().and_then(|s| s.capacity.as_ref())))
    else {
        return Vec::new();
    };
    if may && milli(&wanted) > milli(&has) {
        return vec![Step::Grow(volume.clone(), wanted)];
    }
    let status = bound_status(claim, volume);
    if claim.status.as_ref() == Some(&status) { Vec::new() } else { vec![Step::Status(status)] }
}

/// The phase of a volume; `claim` is the one its reference names, if it exists.
pub fn phase(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> &'static str {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return "Available" };
    let Some(uid) = reference.uid.as_deref().filter(|u| !u.is_empty()) else { return "Available" };
    match claim {
        Some(claim) if cache::uid(claim) == uid => {
            let name = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
            if name == volume.metadata.name.as_deref() {
                "Bound"
            } else {
                // Made for it, not yet bound on its side.
                match volume.status.as_ref().and_then(|s| s.phase.as_deref()) {
                    Some("Bound") => "Bound",
                    _ => "Pending",
                }
            }
        }
        _ => "Released",
    }
}

/// Whether the volume's folder was made by us for this volume, and its policy says to remove it.
pub fn is_ours_to_remove(volume: &PersistentVolume, root: &Path) -> bool {
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    is_ours(volume, root) && policy == Some("Delete")
}

/// Whether the volume's folder was made by us for this volume.
pub fn is_ours(volume: &PersistentVolume, root: &Path) -> bool {
    let Some(spec) = &volume.spec else { return false };
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let by_us = volume
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(PROVISIONED_BY))
        .is_some_and(|p| p == LOCAL_PATH_PROVISIONER);
    let own = folder::path(root, name).map(|p| p.display().to_string());
    by_us && name.starts_with("pvc-") && spec.host_path.as_ref().map(|h| h.path.clone()) == own
}

/// Whether the pod mounts the claim.
pub fn uses(pod: &Pod, claim: Option<&ObjectReference>) -> bool {
    claim.is_some_and(|c| {
        c.namespace == pod.metadata.namespace
            && c.name.as_ref().is_some_and(|name| scheduler::claim_names(pod).contains(name))
    })
}

#[cfg(test)]
mod tests;
