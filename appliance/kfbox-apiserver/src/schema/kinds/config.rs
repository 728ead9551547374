//! ConfigMaps, Secrets, CRDs.

use base64::Engine as _;
use serde_json::Value;

use super::super::{FieldError, from_crd};
use super::{Check, entry, join, list, members, names, text};

/// What one object's data may weigh, as upstream bounds it.
const MAX_DATA: usize = 1 << 20;

/// A sealed object keeps its data and stays sealed.
fn sealed(c: &mut Check, value: &Value, old: Option<&Value>, fields: &[&str]) {
    let Some(old) = old.filter(|o| o.get("immutable") == Some(&Value::Bool(true))) else { return };
    if value.get("immutable") != Some(&Value::Bool(true)) {
        c.forbidden("immutable", "field is immutable when `immutable` is set");
    }
    let filled = |v: &Value, name: &str| v.get(name).filter(|d| d.as_object().is_some_and(|m| !m.is_empty())).cloned();
    for name in fields {
        if filled(value, name) != filled(old, name) {
            c.forbidden(name, "field is immutable when `immutable` is set");
        }
    }
}

pub(super) fn config_map(c: &mut Check, value: &Value, old: Option<&Value>) {
    let mut size = 0;
    for kind in ["data", "binaryData"] {
        for (name, content) in members(value, &format!("/{kind}")) {
            c.holds(&entry("", kind, name), name, names::config_key);
            size += content.as_str().map_or(0, str::len);
            if kind == "binaryData" {
                if value.pointer("/data").is_some_and(|d| d.get(name.as_str()).is_some()) {
                    c.invalid(&entry("", kind, name), name.as_str(), "duplicate of key present in data");
                }
                encoded(c, kind, name, content);
            }
        }
    }
    if size > MAX_DATA {
        c.push(FieldError::too_long("", MAX_DATA));
    }
    sealed(c, value, old, &["data", "binaryData"]);
}

fn encoded(c: &mut Check, kind: &str, name: &str, content: &Value) {
    let text = content.as_str().unwrap_or_default();
    if base64::engine::general_purpose::STANDARD.decode(text).is_err() {
        // The content is left out: it may be a secret.
        c.invalid(&entry("", kind, name), "<content>", "illegal base64 data");
    }
}

pub(super) fn secret(c: &mut Check, value: &Value, old: Option<&Value>) {
    let mut size = 0;
    for (name, content) in members(value, "/data") {
        c.holds(&entry("", "data", name), name, names::config_key);
        encoded(c, "data", name, content);
        size += content.as_str().map_or(0, |t| t.len() / 4 * 3);
    }
    if size > MAX_DATA {
        c.push(FieldError::too_long("data", MAX_DATA));
    }
    let needed: &[&str] = match text(value, "/type") {
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    };
    for name in needed {
        if value.pointer("/data").and_then(|d| d.get(name)).is_none() {
            c.required(&entry("", "data", name), "");
        }
    }
    if text(value, "/type") == "kubernetes.io/service-account-token"
        && value.pointer("/metadata/annotations").and_then(|a| a.get("kubernetes.io/service-account.name")).is_none()
    {
        c.required(&entry("metadata", "annotations", "kubernetes.io/service-account.name"), "");
    }
    if let Some(old) = old {
        c.immutable(value, old, "type");
    }
    sealed(c, value, old, &["data"]);
}

pub(super) fn definition(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    let group = c.needs(spec, "spec", "group");
    if !group.is_empty() {
        c.holds("spec.group", group, names::dns_subdomain);
    }
    let plural = c.needs(&spec["names"], "spec.names", "plural");
    let kind = c.needs(&spec["names"], "spec.names", "kind");
    for (name, word) in
        [("plural", plural), ("kind", &kind.to_lowercase()), ("singular", text(spec, "/names/singular"))]
    {
        if !word.is_empty() {
            c.holds(&join("spec.names", name), word, names::dns_label);
        }
    }
    let wanted = format!("{plural}.{group}");
    if text(value, "/metadata/name") != wanted {
        c.invalid("metadata.name", text(value, "/metadata/name"), "must be spec.names.plural+\".\"+spec.group");
    }
    c.needs(spec, "spec", "scope");
    c.one_of(spec, "spec", "scope", &["Cluster", "Namespaced"]);
    let versions = list(spec, "/versions");
    if versions.is_empty() {
        c.required("spec.versions", "must have at least one version");
        return;
    }
    let mut names_seen = std::collections::HashSet::new();
    for (at, version) in versions.iter().enumerate() {
        let path = super::element("spec", "versions", at);
        let name = c.needs(version, &path, "name");
        c.holds(&join(&path, "name"), name, names::dns_label);
        if !names_seen.insert(name) {
            c.push(FieldError::duplicate(&join(&path, "name"), &Value::from(name)));
        }
    }
    let stored = versions.iter().filter(|v| v.get("storage") == Some(&Value::Bool(true))).count();
    if stored != 1 {
        c.invalid("spec.versions", spec["versions"].clone(), "must have exactly one version marked as storage version");
    }
    if old.is_none_or(|old| old["spec"]["versions"] != spec["versions"])
        && let Err(errors) = from_crd(value)
    {
        errors.into_iter().for_each(|error| c.push(error));
    }
    if let Some(old) = old {
        for field in ["spec.group", "spec.scope", "spec.names.plural", "spec.names.kind"] {
            c.immutable(value, old, field);
        }
        for (at, version) in list(old, "/status/storedVersions").iter().enumerate() {
            if !versions.iter().any(|v| v.get("name") == Some(version)) {
                let field = super::element("status", "storedVersions", at);
                c.invalid(
                    &field,
                    version.clone(),
                    "missing from spec.versions; must be present to ensure stored objects remain readable",
                );
            }
        }
    }
}
