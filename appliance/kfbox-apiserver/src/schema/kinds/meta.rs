//! `metadata` of every kind.

use serde_json::Value;

use super::{Check, FieldError, element, entry, join, list, members, names, text};

/// All annotations together, as upstream bounds them.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// Reviews and the like, which are answered and never stored.
pub(super) fn has_none(group: &str, kind: &str) -> bool {
    group.starts_with("authentication.")
        || group.starts_with("authorization.")
        || matches!(kind, "Eviction" | "Binding" | "Scale" | "TokenRequest")
}

pub(super) fn check(c: &mut Check, group: &str, kind: &str, value: &Value) {
    let metadata = value.get("metadata").unwrap_or(&Value::Null);
    let name = text(metadata, "/name");
    if name.is_empty() {
        if text(metadata, "/generateName").is_empty() {
            c.required("metadata.name", "name or generateName is required");
        }
    } else {
        let rule = match (group, kind) {
            ("", "Namespace" | "Service") => names::dns_label,
            ("rbac.authorization.k8s.io", _) | ("apiregistration.k8s.io", _) | ("networking.k8s.io", "IPAddress") => {
                names::path_segment
            }
            _ => names::dns_subdomain,
        };
        c.holds("metadata.name", name, rule);
    }
    labels(c, metadata, "metadata");
    finalizers(c, metadata);
    owners(c, metadata);
}

/// Labels and annotations, of objects and of pod templates.
pub(super) fn labels(c: &mut Check, metadata: &Value, path: &str) {
    c.label_map(metadata.get("labels"), &join(path, "labels"));
    let mut size = 0;
    let field = join(path, "annotations");
    for (name, value) in members(metadata, "/annotations") {
        if let Err(detail) = names::qualified(&name.to_lowercase()) {
            c.invalid(&field, name.as_str(), &detail);
        }
        size += name.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_ANNOTATIONS {
        c.push(FieldError::too_long(&field, MAX_ANNOTATIONS));
    }
}

fn finalizers(c: &mut Check, metadata: &Value) {
    for (at, finalizer) in list(metadata, "/finalizers").iter().enumerate() {
        let word = finalizer.as_str().unwrap_or_default();
        let field = element("metadata", "finalizers", at);
        c.holds(&field, word, names::qualified);
        if !word.contains('/') && !matches!(word, "orphan" | "foregroundDeletion" | "kubernetes") {
            c.invalid(&field, word, "name is neither a standard finalizer name nor is it fully qualified");
        }
    }
}

fn owners(c: &mut Check, metadata: &Value) {
    let mut controller: Option<&str> = None;
    for (at, owner) in list(metadata, "/ownerReferences").iter().enumerate() {
        let path = element("metadata", "ownerReferences", at);
        for name in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, &format!("/{name}")).is_empty() {
                c.invalid(
                    &join(&path, name),
                    text(owner, &format!("/{name}")),
                    if name == "apiVersion" { "version must not be empty" } else { "must not be empty" },
                );
            }
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            let name = text(owner, "/name");
            if let Some(first) = controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
                );
                c.invalid("metadata.ownerReferences", metadata["ownerReferences"].clone(), &detail);
            }
            controller = Some(name);
        }
    }
    for (name, _) in members(metadata, "/labels").filter(|(name, _)| name.len() > 317) {
        c.invalid(&entry("metadata", "labels", name), name.as_str(), "must be no more than 317 characters");
    }
}
