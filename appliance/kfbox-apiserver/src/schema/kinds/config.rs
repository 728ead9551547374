//! ConfigMaps, Secrets, CRDs. Upstream: `pkg/apis/core/validation`, `apiextensions-apiserver/pkg/apis/apiextensions/
//! validation`.

use std::collections::HashSet;

use base64::Engine as _;
use serde_json::Value;

use super::super::{FieldError, from_crd_update};
use super::{Check, entry, join, list, members, names, text, webhooks};

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

/// What is encoded in a member of `data`; text that is no base64 never comes here.
fn decoded(content: &Value) -> Vec<u8> {
    let text: String = content.as_str().unwrap_or_default().split(['\r', '\n']).collect();
    base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default()
}

pub(super) fn config_map(c: &mut Check, value: &Value, old: Option<&Value>) {
    sealed(c, value, old, &["data", "binaryData"]);
    let mut size = 0;
    for (name, content) in members(value, "/data") {
        let field = entry("", "data", name);
        c.holds(&field, name, names::config_key);
        if value.pointer("/binaryData").is_some_and(|d| d.get(name.as_str()).is_some()) {
            c.invalid(&field, name.as_str(), "duplicate of key present in binaryData");
        }
        size += content.as_str().map_or(0, str::len);
    }
    for (name, content) in members(value, "/binaryData") {
        c.holds(&entry("", "binaryData", name), name, names::config_key);
        size += decoded(content).len();
    }
    if size > MAX_DATA {
        c.push(FieldError::too_long("", MAX_DATA));
    }
}

pub(super) fn secret(c: &mut Check, value: &Value, old: Option<&Value>) {
    if let Some(old) = old {
        c.immutable(value, old, "type");
    }
    sealed(c, value, old, &["data"]);
    let mut size = 0;
    for (name, content) in members(value, "/data") {
        c.holds(&entry("", "data", name), name, names::config_key);
        size += decoded(content).len();
    }
    if size > MAX_DATA {
        c.push(FieldError::too_long("data", MAX_DATA));
    }
    let data = |name: &str| value.pointer("/data").and_then(|d| d.get(name));
    let field = |name: &str| entry("", "data", name);
    match text(value, "/type") {
        "kubernetes.io/service-account-token" => {
            let name = "kubernetes.io/service-account.name";
            let account = value.pointer("/metadata/annotations").and_then(|a| a.get(name)).and_then(Value::as_str);
            if account.is_none_or(str::is_empty) {
                c.required(&entry("metadata", "annotations", name), "");
            }
        }
        kind @ ("kubernetes.io/dockercfg" | "kubernetes.io/dockerconfigjson") => {
            let name = if kind.ends_with("json") { ".dockerconfigjson" } else { ".dockercfg" };
            match data(name) {
                None => c.required(&field(name), ""),
                // What is wrong with the JSON would show some of it.
                Some(content) if !serde_json::from_slice::<Value>(&decoded(content)).is_ok_and(|v| v.is_object()) => {
                    c.invalid(&field(name), "<secret contents redacted>", "the content is no JSON object");
                }
                Some(_) => {}
            }
        }
        "kubernetes.io/basic-auth" if data("username").is_none() && data("password").is_none() => {
            c.required(&field("username"), "");
            c.required(&field("password"), "");
        }
        "kubernetes.io/ssh-auth" if data("ssh-privatekey").is_none_or(|key| key == "") => {
            c.required(&field("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            for name in ["tls.crt", "tls.key"] {
                if data(name).is_none() {
                    c.required(&field(name), "");
                }
            }
        }
        _ => {}
    }
}

/// Columns print these.
const COLUMN_TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: &[&str] = &["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];

/// Upstream's bounds.
const MAX_WARNING: usize = 256;
const MAX_SELECTABLE: usize = 8;

pub(super) fn definition(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    let group = c.needs(spec, "spec", "group");
    let faults = names::dns_subdomain(group);
    if !group.is_empty() && !faults.is_empty() {
        c.invalid("spec.group", group, &faults.join(","));
    }
    c.exactly_one_of(spec, "spec", "scope", &["Cluster", "Namespaced"]);
    let versions = list(spec, "/versions");
    for (at, version) in versions.iter().enumerate() {
        let path = super::element("spec", "versions", at);
        let name = text(version, "/name");
        let faults = names::dns_1035_label(name);
        if !faults.is_empty() {
            c.invalid(&join(&path, "name"), name, &faults.join(","));
        }
        served_version(c, version, &path);
    }
    let mut names_seen = HashSet::new();
    if !versions.iter().all(|version| names_seen.insert(text(version, "/name"))) {
        c.invalid("spec.versions", spec["versions"].clone(), "must contain unique version names");
    }
    if versions.iter().filter(|v| v.get("storage") == Some(&Value::Bool(true))).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        c.invalid("spec.versions", spec["versions"].clone(), why);
    }
    definition_names(c, spec);
    conversion(c, spec);
    let wanted = format!("{}.{group}", text(spec, "/names/plural"));
    if text(value, "/metadata/name") != wanted {
        c.invalid("metadata.name", text(value, "/metadata/name"), "must be spec.names.plural+\".\"+spec.group");
    }
    if !versions.is_empty()
        && old.is_none_or(|old| old["spec"]["versions"] != spec["versions"])
        && let Err(errors) = from_crd_update(value, old)
    {
        errors.into_iter().for_each(|error| c.push(error));
    }
    if let Some(old) = old {
        definition_update(c, value, old, versions);
    }
}

fn served_version(c: &mut Check, version: &Value, path: &str) {
    if let Some(warning) = version.get("deprecationWarning").and_then(Value::as_str) {
        let field = join(path, "deprecationWarning");
        if version.get("deprecated") != Some(&Value::Bool(true)) {
            c.invalid(&field, warning, "can only be set for deprecated versions");
        }
        if warning.is_empty() {
            c.invalid(&field, warning, "must not be an empty string");
        }
        if warning.len() > MAX_WARNING {
            c.invalid(&field, warning, "must be <= 256 characters long");
        }
        if let Some(at) = warning.char_indices().find(|(_, ch)| ch.is_control()).map(|(at, _)| at) {
            let why =
                format!("must only contain printable UTF-8 characters; non-printable character found at index {at}");
            c.invalid(&field, warning, &why);
        }
    }
    if let Some(scale) = version.pointer("/subresources/scale") {
        let path = join(path, "subresources.scale");
        for (name, roots, shown) in [
            ("specReplicasPath", &[".spec."][..], ".spec"),
            ("statusReplicasPath", &[".status."], ".status"),
            ("labelSelectorPath", &[".spec.", ".status."], "either .spec or .status"),
        ] {
            let place = text(scale, &format!("/{name}"));
            let field = join(&path, name);
            if place.is_empty() {
                if name != "labelSelectorPath" {
                    c.required(&field, "");
                }
            } else if !roots.iter().any(|root| place.starts_with(root)) {
                c.invalid(&field, place, &format!("should be a json path under {shown}"));
            }
        }
    }
    for (at, column) in list(version, "/additionalPrinterColumns").iter().enumerate() {
        let path = super::element(path, "additionalPrinterColumns", at);
        c.needs(column, &path, "name");
        let kind = text(column, "/type");
        if kind.is_empty() {
            c.required(&join(&path, "type"), &format!("must be one of {}", COLUMN_TYPES.join(",")));
        } else if !COLUMN_TYPES.contains(&kind) {
            c.invalid(&join(&path, "type"), kind, &format!("must be one of {}", COLUMN_TYPES.join(",")));
        }
        let format = text(column, "/format");
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            c.invalid(&join(&path, "format"), format, &format!("must be one of {}", COLUMN_FORMATS.join(",")));
        }
        c.needs(column, &path, "jsonPath");
    }
    let selectable = list(version, "/selectableFields");
    let field = join(path, "selectableFields");
    if selectable.len() > MAX_SELECTABLE {
        c.push(FieldError::too_many(&field, selectable.len(), MAX_SELECTABLE));
    }
    for (at, one) in selectable.iter().enumerate() {
        let path = super::index(&field, at);
        let place = c.needs(one, &path, "jsonPath");
        if selectable[..at].contains(one) {
            c.duplicate(&join(&path, "jsonPath"), place);
        }
    }
}

fn definition_names(c: &mut Check, spec: &Value) {
    let given = &spec["names"];
    let path = "spec.names";
    for name in ["plural", "singular", "kind", "listKind"] {
        let word = c.needs(given, path, name);
        // Kinds may be written large.
        let (lower, lead) = if matches!(name, "kind" | "listKind") {
            (word.to_lowercase(), "may have mixed case, but should otherwise match: ")
        } else {
            (word.to_owned(), "")
        };
        let faults = names::dns_1035_label(&lower);
        if !word.is_empty() && !faults.is_empty() {
            c.invalid(&join(path, name), word, &format!("{lead}{}", faults.join(",")));
        }
    }
    for (kind, words) in [("shortNames", list(given, "/shortNames")), ("categories", list(given, "/categories"))] {
        for (at, word) in words.iter().enumerate() {
            let word = word.as_str().unwrap_or_default();
            let faults = names::dns_1035_label(word);
            if !faults.is_empty() {
                c.invalid(&super::element(path, kind, at), word, &faults.join(","));
            }
        }
    }
    let kind = text(given, "/kind");
    if !kind.is_empty() && kind == text(given, "/listKind") {
        c.invalid(&join(path, "listKind"), kind, "kind and listKind may not be the same");
    }
}

fn conversion(c: &mut Check, spec: &Value) {
    let Some(conversion) = spec.get("conversion") else { return };
    let path = "spec.conversion";
    c.exactly_one_of(conversion, path, "strategy", &["None", "Webhook"]);
    let webhook = conversion.get("webhook");
    if text(conversion, "/strategy") != "Webhook" {
        if webhook.is_some() {
            c.forbidden(&join(path, "webhookClientConfig"), "should not be set when strategy is not set to Webhook");
        }
        return;
    }
    let config = webhook.and_then(|w| w.get("clientConfig"));
    match config {
        // Upstream's paths are those of its internal type.
        None => c.required(&join(path, "webhookClientConfig"), "required when strategy is set to Webhook"),
        Some(config) => webhooks::client(c, config, &join(path, "webhookClientConfig")),
    }
    let versions = list(conversion, "/webhook/conversionReviewVersions");
    let field = join(path, "conversionReviewVersions");
    if versions.is_empty() {
        c.required(&field, "");
    } else if !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
        c.invalid(&field, versions.to_vec(), "must include at least one of v1, v1beta1");
    }
}

fn definition_update(c: &mut Check, value: &Value, old: &Value, versions: &[Value]) {
    let established = list(old, "/status/conditions")
        .iter()
        .any(|one| one.get("type") == Some(&"Established".into()) && one.get("status") == Some(&"True".into()));
    if established {
        for field in ["spec.scope", "spec.names.kind"] {
            c.immutable(value, old, field);
        }
    }
    for field in ["spec.group", "spec.names.plural"] {
        c.immutable(value, old, field);
    }
    for (at, version) in list(old, "/status/storedVersions").iter().enumerate() {
        if !versions.iter().any(|v| v.get("name") == Some(version)) {
            let field = super::element("status", "storedVersions", at);
            let name = version.as_str().unwrap_or_default();
            let why = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
            );
            c.invalid(&field, name, &why);
        }
    }
}
