//! Claims, volumes, storage classes.

use serde_json::{Map, Value};

use super::super::quantity;
use super::{Check, FieldError, element, join, list, members, text};

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn access_modes(c: &mut Check, spec: &Value) {
    if list(spec, "/accessModes").is_empty() {
        c.required("spec.accessModes", "at least 1 access mode is required");
    }
    for (at, mode) in list(spec, "/accessModes").iter().enumerate() {
        if !MODES.iter().any(|known| mode == known) {
            c.push(FieldError::not_supported(&element("spec", "accessModes", at), mode, MODES));
        }
    }
    c.one_of(spec, "spec", "volumeMode", &["Block", "Filesystem"]);
}

pub(super) fn claim(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    access_modes(c, spec);
    match spec.pointer("/resources/requests/storage") {
        None => c.required("spec.resources[storage]", ""),
        Some(amount) if quantity::of(amount).is_some_and(|n| n <= 0) => {
            c.invalid("spec.resources[storage]", amount.clone(), "must be greater than zero");
        }
        Some(_) => {}
    }
    c.selector(spec.get("selector"), "spec.selector");
    let Some(old) = old else { return };
    let was = &old["spec"];
    let frame = |spec: &Value| {
        let mut out = spec.as_object().cloned().unwrap_or_else(Map::new);
        out.remove("resources");
        out.remove("volumeAttributesClassName");
        // The binder and the default class fill these once.
        if text(was, "/volumeName").is_empty() {
            out.remove("volumeName");
        }
        if was.get("storageClassName").is_none() {
            out.remove("storageClassName");
        }
        out
    };
    if frame(spec) != frame(was) {
        c.forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let amount = |spec: &Value| spec.pointer("/resources/requests/storage").and_then(quantity::of);
    if let (Some(now), Some(before)) = (amount(spec), amount(was))
        && now < before
    {
        c.forbidden("spec.resources.requests.storage", "field can not be less than status.capacity");
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

pub(super) fn volume(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    access_modes(c, spec);
    if spec.pointer("/capacity/storage").is_none() {
        c.required("spec.capacity", "");
    }
    c.one_of(spec, "spec", "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"]);
    let sources = |spec: &Value| -> Vec<(String, Value)> {
        members(spec, "")
            .filter(|(name, _)| !VOLUME_FIELDS.contains(&name.as_str()))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect()
    };
    match sources(spec).as_slice() {
        [] => c.required("spec", "must specify a volume type"),
        [(kind, source)] => {
            if matches!(kind.as_str(), "hostPath" | "local") {
                let path = join("spec", kind);
                let place = c.needs(source, &path, "path");
                if place.split('/').any(|part| part == "..") {
                    c.invalid(&join(&path, "path"), place, "must not contain '..'");
                }
            }
        }
        [_, more @ ..] => {
            for (kind, _) in more {
                c.forbidden(&join("spec", kind), "may not specify more than 1 volume type");
            }
        }
    }
    if let Some(old) = old
        && sources(spec) != sources(&old["spec"])
    {
        c.forbidden("spec.persistentvolumesource", "spec.persistentvolumesource is immutable after creation");
    }
}

pub(super) fn storage_class(c: &mut Check, value: &Value, old: Option<&Value>) {
    c.needs(value, "", "provisioner");
    c.one_of(value, "", "reclaimPolicy", &["Delete", "Retain"]);
    c.one_of(value, "", "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]);
    let Some(old) = old else { return };
    for name in ["parameters", "provisioner", "reclaimPolicy"] {
        if value.get(name) != old.get(name) {
            c.forbidden(name, &format!("updates to {name} are forbidden."));
        }
    }
    c.immutable(value, old, "volumeBindingMode");
}
