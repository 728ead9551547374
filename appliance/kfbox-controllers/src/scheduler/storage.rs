//! A pod's claims, as the scheduler sees them. Pure but for the caches it reads.

use super::fit::{self, Reason, event};
use crate::{context::Caches, volumes};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use std::sync::Arc;

pub struct Claims {
    /// To be provisioned once a node is chosen.
    pub unbound: Vec<Arc<PersistentVolumeClaim>>,
    /// Those that one pod at a time may use.
    pub exclusive: Vec<String>,
    bound: Vec<Arc<PersistentVolume>>,
}

/// The provisioner of classes whose volumes people make.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

impl Claims {
    /// Why the node has not the volumes.
    pub fn conflicts(&self, node: &Node, caches: &Caches) -> Vec<Reason> {
        let reachable = |volume: &PersistentVolume| {
            let required =
                volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
            required.is_none_or(|selector| fit::selector_matches(selector, node))
        };
        let helped_by = event::STORAGE | event::NODE;
        let mut why = Vec::new();
        if !self.bound.iter().all(|v| reachable(v)) {
            why.push(Reason::lasting("node(s) didn't match PersistentVolume's node affinity", helped_by));
        }
        let unmade = self.unbound.iter().filter(|claim| {
            let class = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
            let class = class.and_then(|c| caches.classes.get("", c));
            class.is_some_and(|c| c.provisioner == NO_PROVISIONER)
        });
        let volumes = caches.volumes.all();
        let lacks = |claim: &PersistentVolumeClaim| {
            !volumes.iter().any(|volume| volumes::suits(volume, claim) && reachable(volume))
        };
        if unmade.into_iter().any(|claim| lacks(claim)) {
            why.push(Reason::lasting("node(s) didn't find available persistent volumes to bind", helped_by));
        }
        why
    }
}

/// The names of the claims that a pod mounts.
pub fn claim_names(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    volumes
        .iter()
        .filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.clone()),
            (None, Some(_)) => Some(format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name)),
            _ => None,
        })
        .collect()
}

pub fn claims(pod: &Pod, caches: &Caches) -> Result<Claims, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut claims = Claims { unbound: Vec::new(), exclusive: Vec::new(), bound: Vec::new() };
    for name in claim_names(pod) {
        let Some(claim) = caches.claims.get(namespace, &name) else {
            return Err(format!("persistentvolumeclaim {name:?} not found"));
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        let spec = claim.spec.clone().unwrap_or_default();
        if spec.access_modes.iter().flatten().any(|m| m == "ReadWriteOncePod") {
            claims.exclusive.push(name.clone());
        }
        let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
        let volume = spec.volume_name.as_deref().filter(|v| !v.is_empty());
        match (phase, volume) {
            (Some("Lost"), _) => {
                return Err(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {:?}",
                    volume.unwrap_or_default()
                ));
            }
            (Some("Bound"), Some(volume)) => match caches.volumes.get("", volume) {
                Some(volume) => claims.bound.push(volume),
                None => return Err(format!("persistentvolume {volume:?} not found")),
            },
            _ => {
                let class = spec.storage_class_name.as_deref().and_then(|c| caches.classes.get("", c));
                let waits = class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
                if !waits || volume.is_some() {
                    return Err("pod has unbound immediate PersistentVolumeClaims".into());
                }
                claims.unbound.push(claim);
            }
        }
    }
    Ok(claims)
}
