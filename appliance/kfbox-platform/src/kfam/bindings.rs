//! Between KFAM's bindings and RoleBindings.

use super::{Binding, BindingRole, BindingSubject};
use k8s_openapi::api::rbac::v1::{RoleBinding, RoleRef, Subject};
use kfbox_api::names::{annotation, role};
use kube::ResourceExt as _;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn cluster_role(kfam: &str) -> Option<&'static str> {
    match kfam {
        "admin" => Some(role::ADMIN),
        "edit" => Some(role::EDIT),
        "view" => Some(role::VIEW),
        _ => None,
    }
}

fn kfam_role(cluster: &str) -> Option<&'static str> {
    match cluster {
        role::ADMIN => Some("admin"),
        role::EDIT => Some("edit"),
        role::VIEW => Some("view"),
        _ => None,
    }
}

/// What may be bound: people and groups, to one of the three roles.
pub(super) fn check(binding: &Binding) -> Result<(), String> {
    if !matches!(binding.user.kind.as_str(), "User" | "Group") {
        return Err(format!("user.kind is {:?}: it must be User or Group", binding.user.kind));
    }
    let name = &binding.user.name;
    if name.is_empty() || name.len() > 253 || name.starts_with("system:") || name.chars().any(char::is_control) {
        return Err("user.name is empty, too long or reserved".into());
    }
    if binding.role_ref.kind != "ClusterRole" || cluster_role(&binding.role_ref.name).is_none() {
        return Err("roleRef must be a ClusterRole named admin, edit or view".into());
    }
    if binding.referred_namespace.is_empty() {
        return Err("referredNamespace is missing".into());
    }
    Ok(())
}

/// The subjects of a RoleBinding to one of the three roles. Service accounts are left out: they are not contributors.
pub(super) fn read(binding: &RoleBinding, namespace: &str) -> Vec<Binding> {
    let Some(role) = kfam_role(&binding.role_ref.name).filter(|_| binding.role_ref.kind == "ClusterRole") else {
        return Vec::new();
    };
    let subjects = binding.subjects.iter().flatten();
    subjects
        .filter(|s| matches!(s.kind.as_str(), "User" | "Group"))
        .map(|s| Binding {
            user: BindingSubject {
                kind: s.kind.clone(),
                name: s.name.clone(),
                namespace: None,
                api_group: Some(GROUP.into()),
            },
            referred_namespace: namespace.to_owned(),
            role_ref: BindingRole { api_group: None, kind: "ClusterRole".into(), name: role.into() },
            status: None,
        })
        .collect()
}

/// One binding a namespace: the strongest role.
pub(super) fn strongest(bindings: Vec<Binding>) -> Vec<Binding> {
    let rank = |b: &Binding| ["admin", "edit", "view"].iter().position(|r| *r == b.role_ref.name);
    let mut best: BTreeMap<String, Binding> = BTreeMap::new();
    for binding in bindings {
        match best.get(&binding.referred_namespace) {
            Some(known) if rank(known) <= rank(&binding) => {}
            _ => drop(best.insert(binding.referred_namespace.clone(), binding)),
        }
    }
    best.into_values().collect()
}

pub(super) fn is_for(object: &RoleBinding, binding: &Binding) -> bool {
    Some(object.role_ref.name.as_str()) == cluster_role(&binding.role_ref.name)
        && object.subjects.iter().flatten().any(|s| s.kind == binding.user.kind && s.name == binding.user.name)
}

/// Made through KFAM, here or upstream: it has the annotations and no owner (the owner's own binding belongs to the
/// Profile).
pub(super) fn is_kfams(object: &RoleBinding) -> bool {
    let noted = object.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(annotation::ROLE));
    noted && object.metadata.owner_references.iter().flatten().next().is_none()
}

/// The RoleBinding of a binding, named as upstream names it. Upstream's rule gives `a.b@x` and `a-b@x` one name; where
/// it is taken, a hash of the true name follows.
pub(super) fn object(binding: &Binding, taken: impl Fn(&str) -> bool) -> RoleBinding {
    let mut name = String::new();
    let parts = [&binding.user.kind, &binding.user.name, &binding.role_ref.kind, &binding.role_ref.name]
        .map(|s| s.to_lowercase());
    for c in parts.join("-").chars() {
        if c.is_ascii_alphanumeric() {
            name.push(c);
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    let mut name = name.trim_matches('-').to_owned();
    if name.len() > 230 || taken(&name) {
        let hash = hex::encode(&Sha256::digest(binding.user.name.as_bytes())[..6]);
        name.truncate(230);
        name = format!("{}-{hash}", name.trim_end_matches('-'));
    }
    let mut object = RoleBinding {
        role_ref: RoleRef {
            api_group: Some(GROUP.into()),
            kind: "ClusterRole".into(),
            name: cluster_role(&binding.role_ref.name).unwrap_or(role::VIEW).into(),
        },
        subjects: Some(vec![Subject {
            kind: binding.user.kind.clone(),
            name: binding.user.name.clone(),
            namespace: None,
            api_group: Some(GROUP.into()),
        }]),
        ..RoleBinding::default()
    };
    object.metadata.name = Some(name);
    object.metadata.namespace = Some(binding.referred_namespace.clone());
    let notes = object.annotations_mut();
    notes.insert(annotation::USER.into(), binding.user.name.clone());
    notes.insert(annotation::ROLE.into(), binding.role_ref.name.clone());
    object
}
