//! Claims, volumes, storage classes. Upstream: `pkg/apis/core/validation`, `pkg/apis/storage/validation`.

use serde_json::{Map, Value};

use super::super::quantity;
use super::containers::plain;
use super::{Check, FieldError, join, list, members, names, scheduling, text, volumes};

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn access_modes(c: &mut Check, spec: &Value, path: &str) {
    let field = join(path, "accessModes");
    let modes = list(spec, "/accessModes");
    for mode in modes {
        if !MODES.iter().any(|known| mode == known) {
            c.not_supported(&field, mode, MODES);
        }
    }
    let known = |mode: &&Value| MODES.iter().any(|k| *mode == k);
    let (alone, shared): (Vec<&Value>, Vec<&Value>) =
        modes.iter().filter(known).partition(|mode| *mode == "ReadWriteOncePod");
    if !alone.is_empty() && !shared.is_empty() {
        c.forbidden(&field, "may not use ReadWriteOncePod with other access modes");
    }
}

fn class_name(c: &mut Check, spec: &Value, path: &str, name: &str) {
    let class = spec.get(name).and_then(Value::as_str).unwrap_or_default();
    if !class.is_empty() {
        c.holds(&join(path, name), class, names::dns_subdomain);
    }
}

/// The spec of a claim, or of a template of claims.
pub(super) fn claim_spec(c: &mut Check, spec: &Value, path: &str) {
    if list(spec, "/accessModes").is_empty() {
        c.required(&join(path, "accessModes"), "at least 1 access mode is required");
    }
    c.selector(spec.get("selector"), &join(path, "selector"));
    access_modes(c, spec, path);
    let field = super::key(&join(path, "resources"), "storage");
    match spec.pointer("/resources/requests/storage") {
        None => c.required(&field, ""),
        Some(amount) if quantity::of(amount).is_some_and(|n| n <= 0) => {
            c.invalid(&field, plain(amount), "must be greater than zero");
        }
        Some(_) => {}
    }
    class_name(c, spec, path, "storageClassName");
    c.one_of(spec, path, "volumeMode", &["Block", "Filesystem"]);
    for name in ["dataSource", "dataSourceRef"] {
        let Some(source) = spec.get(name) else { continue };
        let path = join(path, name);
        c.needs(source, &path, "name");
        let kind = c.needs(source, &path, "kind");
        let group = text(source, "/apiGroup");
        if group.is_empty() && kind != "PersistentVolumeClaim" {
            c.invalid(&path, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
        }
        if !group.is_empty() {
            c.holds(&join(&path, "apiGroup"), group, names::dns_subdomain);
        }
        let namespace = text(source, "/namespace");
        if !namespace.is_empty() {
            c.holds(&join(&path, "namespace"), namespace, names::dns_label);
        }
    }
    if let (Some(source), Some(reference)) = (spec.get("dataSource"), spec.get("dataSourceRef")) {
        let shown = join(path, "dataSource");
        if !text(reference, "/namespace").is_empty() {
            c.invalid(path, shown, "may not be specified when dataSourceRef.namespace is specified");
        } else if ["apiGroup", "kind", "name"].iter().any(|n| source.get(n) != reference.get(n)) {
            c.invalid(path, shown, "must match dataSourceRef");
        }
    }
    class_name(c, spec, path, "volumeAttributesClassName");
}

pub(super) fn claim(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    claim_spec(c, spec, "spec");
    let Some(old) = old else { return };
    let was = &old["spec"];
    let bound = text(value, "/status/phase") == "Bound";
    let frame = |spec: &Value| {
        let mut out = spec.as_object().cloned().unwrap_or_else(Map::new);
        // The binder and the default class fill these once.
        if text(was, "/volumeName").is_empty() {
            out.remove("volumeName");
        }
        if was.get("storageClassName").is_none() {
            out.remove("storageClassName");
        }
        if bound {
            out.remove("volumeAttributesClassName");
            if let Some(requests) = out.get_mut("resources").and_then(|r| r.get_mut("requests")) {
                requests["storage"] = Value::Null;
            }
        }
        out
    };
    if frame(spec) != frame(was) {
        c.forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let amount = |of: &Value, pointer: &str| of.pointer(pointer).and_then(quantity::of);
    let asked = "/resources/requests/storage";
    if let (Some(now), Some(before)) = (amount(spec, asked), amount(was, asked))
        && now < before
        && now <= amount(old, "/status/capacity/storage").unwrap_or(0)
    {
        c.forbidden("spec.resources.requests.storage", "field can not be less than status.capacity");
    }
    if spec.get("volumeMode") != was.get("volumeMode") {
        c.invalid("volumeMode", spec.get("volumeMode").cloned().unwrap_or_default(), "field is immutable");
    }
    if !text(was, "/volumeAttributesClassName").is_empty() && text(spec, "/volumeAttributesClassName").is_empty() {
        let to = if spec.get("volumeAttributesClassName").is_some() { "an empty string" } else { "nil" };
        let why = format!("update from non-nil value to {to} is forbidden");
        c.forbidden("spec.volumeAttributesClassName", &why);
    }
}

const VOLUME_FIELDS: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

fn sources(spec: &Value) -> Vec<(&str, &Value)> {
    let all = members(spec, "").filter(|(name, _)| !VOLUME_FIELDS.contains(&name.as_str()));
    all.map(|(name, value)| (name.as_str(), value)).collect()
}

pub(super) fn volume(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    if list(spec, "/accessModes").is_empty() {
        c.required("spec.accessModes", "");
    }
    access_modes(c, spec, "spec");
    let capacity = spec.get("capacity").cloned().unwrap_or_default();
    let amounts: Vec<(&String, &Value)> = members(spec, "/capacity").collect();
    if amounts.is_empty() {
        c.required("spec.capacity", "");
    }
    if capacity.get("storage").is_none() || amounts.len() > 1 {
        c.not_supported("spec.capacity", &capacity, &["storage"]);
    }
    for (name, amount) in amounts {
        if quantity::of(amount).is_some_and(|n| n <= 0) {
            c.invalid(&super::key("spec.capacity", name), plain(amount), "must be greater than zero");
        }
    }
    c.one_of(spec, "spec", "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"]);
    if let Some(affinity) = spec.get("nodeAffinity") {
        match affinity.get("required") {
            Some(required) => scheduling::node_selector(c, required, "spec.nodeAffinity.required"),
            None => c.required("spec.nodeAffinity.required", "must specify required node constraints"),
        }
    }
    source(c, spec);
    class_name(c, spec, "spec", "storageClassName");
    c.one_of(spec, "spec", "volumeMode", &["Block", "Filesystem"]);
    if let Some(class) = spec.get("volumeAttributesClassName").and_then(Value::as_str) {
        if class.is_empty() {
            c.required("spec.volumeAttributesClassName", "an empty string is disallowed");
        }
        class_name(c, spec, "spec", "volumeAttributesClassName");
        if spec.get("csi").is_none() {
            c.required("spec.csi", "has to be specified when using volumeAttributesClassName");
        }
    }
    if let Some(old) = old {
        update(c, spec, &old["spec"]);
    }
}

fn source(c: &mut Check, spec: &Value) {
    let found = sources(spec);
    match found.as_slice() {
        [] => c.required("spec", "must specify a volume type"),
        [(kind, source), more @ ..] => {
            volumes::volume_source(c, kind, source, &join("spec", kind));
            for (kind, _) in more {
                c.forbidden(&join("spec", kind), "may not specify more than 1 volume type");
            }
        }
    }
    if spec.get("local").is_some() && spec.get("nodeAffinity").is_none() {
        c.required("spec.nodeAffinity", "Local volume requires node affinity");
    }
    if let Some(csi) = spec.get("csi") {
        c.needs(csi, "spec.csi", "volumeHandle");
    }
    let host = text(spec, "/hostPath/path");
    if !host.is_empty()
        && host.split('/').all(|part| matches!(part, "" | "."))
        && text(spec, "/persistentVolumeReclaimPolicy") == "Recycle"
    {
        c.forbidden("spec.persistentVolumeReclaimPolicy", "may not be 'recycle' for a hostPath mount of '/'");
    }
}

fn update(c: &mut Check, spec: &Value, was: &Value) {
    let mut now = spec.clone();
    // A secret that was not there may be named later.
    if was.pointer("/csi/controllerExpandSecretRef").is_none()
        && let Some(csi) = now.get_mut("csi").and_then(Value::as_object_mut)
    {
        csi.remove("controllerExpandSecretRef");
    }
    if sources(&now) != sources(was) {
        c.forbidden("spec.persistentvolumesource", "spec.persistentvolumesource is immutable after creation");
    }
    // Upstream's paths.
    if spec.get("volumeMode") != was.get("volumeMode") {
        c.invalid("volumeMode", spec.get("volumeMode").cloned().unwrap_or_default(), "field is immutable");
    }
    if was.get("nodeAffinity").is_some() && was.get("nodeAffinity") != spec.get("nodeAffinity") {
        c.invalid("nodeAffinity", spec.get("nodeAffinity").cloned().unwrap_or_default(), "field is immutable");
    }
    if was.get("volumeAttributesClassName").is_some() && spec.get("volumeAttributesClassName").is_none() {
        c.forbidden("spec.volumeAttributesClassName", "update from non-nil value to nil is forbidden");
    }
}

/// What a class's parameters may come to.
const MAX_PARAMETERS: usize = 512;
const MAX_PARAMETER_BYTES: usize = 256 << 10;

pub(super) fn parameters(c: &mut Check, value: &Value) {
    let all: Vec<(&String, &Value)> = members(value, "/parameters").collect();
    if all.len() > MAX_PARAMETERS {
        c.push(FieldError::too_long("parameters", MAX_PARAMETERS));
    }
    let mut size = 0;
    for (name, text) in all {
        if name.is_empty() {
            c.invalid("parameters", name.as_str(), "field can not be empty.");
        }
        size += name.len() + text.as_str().map_or(0, str::len);
    }
    if size > MAX_PARAMETER_BYTES {
        c.push(FieldError::too_long("parameters", MAX_PARAMETER_BYTES));
    }
}

pub(super) fn storage_class(c: &mut Check, value: &Value, old: Option<&Value>) {
    let provisioner = c.needs(value, "", "provisioner");
    if !provisioner.is_empty() {
        c.holds("provisioner", provisioner, names::qualified_any_case);
    }
    parameters(c, value);
    c.one_of(value, "", "reclaimPolicy", &["Delete", "Retain"]);
    c.exactly_one_of(value, "", "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]);
    let Some(old) = old else { return };
    for name in ["parameters", "provisioner", "reclaimPolicy"] {
        if value.get(name) != old.get(name) {
            c.forbidden(name, &format!("updates to {name} are forbidden."));
        }
    }
    c.immutable(value, old, "volumeBindingMode");
}
