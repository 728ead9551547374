//! `metadata` of every kind. Upstream: apimachinery `pkg/api/validation/objectmeta.go`.

use serde_json::Value;

use super::{Check, FieldError, element, join, list, members, names, text};

/// All annotations together, as upstream bounds them.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// The longest name of a field manager.
const MAX_MANAGER: usize = 128;

/// The longest name of a subresource in `managedFields`.
const MAX_SUBRESOURCE: usize = 256;

/// Reviews and the like, which are answered and never stored.
pub(super) fn has_none(group: &str, kind: &str) -> bool {
    group.starts_with("authentication.")
        || group.starts_with("authorization.")
        || matches!(kind, "Eviction" | "Binding" | "Scale" | "TokenRequest")
}

/// The rule for names of a kind.
fn name_rule(group: &str, kind: &str) -> names::Rule {
    match (group, kind) {
        ("", "Namespace" | "Service") => names::dns_label,
        ("rbac.authorization.k8s.io" | "apiregistration.k8s.io" | "certificates.k8s.io", _)
        | ("networking.k8s.io", "IPAddress") => names::path_segment,
        _ => names::dns_subdomain,
    }
}

pub(super) fn check(c: &mut Check, group: &str, kind: &str, value: &Value, old: Option<&Value>) {
    let metadata = value.get("metadata").unwrap_or(&Value::Null);
    if old.is_none() {
        let rule = name_rule(group, kind);
        let (name, generated) = (text(metadata, "/name"), text(metadata, "/generateName"));
        if !generated.is_empty() {
            for why in rule(&names::prefix(generated)) {
                c.invalid("metadata.generateName", generated, &why);
            }
        }
        if name.is_empty() {
            if generated.is_empty() {
                c.required("metadata.name", "name or generateName is required");
            }
        } else {
            c.holds("metadata.name", name, rule);
        }
    }
    c.at_least(metadata, "metadata", "generation", 0);
    labels(c, metadata, "metadata");
    owners(c, metadata);
    finalizers(c, metadata, group);
    managed_fields(c, metadata);
}

/// Labels and annotations, of objects and of the templates in them.
pub(super) fn labels(c: &mut Check, metadata: &Value, path: &str) {
    c.label_map(metadata.get("labels"), &join(path, "labels"));
    let mut size = 0;
    let field = join(path, "annotations");
    for (name, value) in members(metadata, "/annotations") {
        c.holds(&field, name, names::qualified_any_case);
        size += name.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_ANNOTATIONS {
        c.push(FieldError::too_long(&field, MAX_ANNOTATIONS));
    }
}

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

fn finalizers(c: &mut Check, metadata: &Value, group: &str) {
    let all = list(metadata, "/finalizers");
    let words: Vec<&str> = all.iter().map(|f| f.as_str().unwrap_or_default()).collect();
    for word in &words {
        c.holds("metadata.finalizers", word, names::qualified);
    }
    if words.contains(&ORPHAN) && words.contains(&FOREGROUND) {
        let why = format!("finalizer {ORPHAN} and {FOREGROUND} cannot be both set");
        c.invalid("metadata.finalizers", all.to_vec(), &why);
    }
    // The extension server does not ask for this, and its own finalizer would not pass.
    if group == "apiextensions.k8s.io" {
        return;
    }
    for (at, word) in words.into_iter().enumerate() {
        kube_finalizer(c, &element("metadata", "finalizers", at), word);
    }
}

/// Unqualified names are the old ones of Kubernetes itself.
pub(super) fn kube_finalizer(c: &mut Check, field: &str, word: &str) {
    if !word.contains('/') && !matches!(word, ORPHAN | FOREGROUND | "kubernetes") {
        c.invalid(field, word, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

fn owners(c: &mut Check, metadata: &Value) {
    let mut controller: Option<String> = None;
    for (at, owner) in list(metadata, "/ownerReferences").iter().enumerate() {
        let path = element("metadata", "ownerReferences", at);
        let version = text(owner, "/apiVersion");
        if version.is_empty() {
            c.required(&join(&path, "apiVersion"), "must not be empty");
        } else if version.split('/').count() > 2 || version.ends_with('/') {
            c.invalid(&join(&path, "apiVersion"), version, "must be <group>/<version> or <version>");
        }
        for name in ["kind", "name", "uid"] {
            if text(owner, &format!("/{name}")).is_empty() {
                c.required(&join(&path, name), "must not be empty");
            }
        }
        if version == "v1" && text(owner, "/kind") == "Event" {
            c.invalid(&path, owner.clone(), "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            let this = format!("{}/{}", text(owner, "/kind"), text(owner, "/name"));
            match &controller {
                Some(first) => {
                    let why = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    );
                    c.invalid("metadata.ownerReferences", metadata["ownerReferences"].clone(), &why);
                }
                None => controller = Some(this),
            }
        }
    }
}

fn managed_fields(c: &mut Check, metadata: &Value) {
    for (at, entry) in list(metadata, "/managedFields").iter().enumerate() {
        let path = element("metadata", "managedFields", at);
        match text(entry, "/operation") {
            "" => c.required(&join(&path, "operation"), "must not be empty"),
            "Apply" | "Update" => {}
            other => {
                let field = join(&path, "operation");
                c.push(FieldError::not_supported(&field, &Value::from(other), &["Apply", "Update"]));
            }
        }
        let kind = text(entry, "/fieldsType");
        if !kind.is_empty() && kind != "FieldsV1" {
            c.invalid(&join(&path, "fieldsType"), kind, "must be `FieldsV1`");
        }
        let manager = text(entry, "/manager");
        if manager.len() > MAX_MANAGER {
            c.push(FieldError::too_long(&join(&path, "manager"), MAX_MANAGER));
        }
        if text(entry, "/subresource").len() > MAX_SUBRESOURCE {
            c.push(FieldError::too_long(&join(&path, "subresource"), MAX_SUBRESOURCE));
        }
    }
}
