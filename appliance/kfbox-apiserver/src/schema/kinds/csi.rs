//! What storage drivers say of themselves. No driver is called by this node; the objects are kept for those that bring
//! their own. Upstream: `pkg/apis/storage/validation`.

use serde_json::Value;

use super::super::quantity;
use super::containers::plain;
use super::{Check, FieldError, element, join, list, names, storage, text};

/// The longest name of a driver, and of a node as a driver knows it.
const MAX_NAME: usize = 63;
const MAX_NODE_ID: usize = 192;

/// Seconds that a token lives: what a TokenRequest allows.
const TOKEN_LIFE: std::ops::RangeInclusive<i64> = 600..=(1 << 32);

fn driver_name(c: &mut Check, field: &str, name: &str) {
    if name.is_empty() {
        return c.required(field, "");
    }
    if name.len() > MAX_NAME {
        c.push(FieldError::too_long(field, MAX_NAME));
    }
    for why in names::dns_subdomain(&name.to_lowercase()) {
        c.invalid(field, name, &why);
    }
}

pub(super) fn driver(c: &mut Check, value: &Value, old: Option<&Value>) {
    driver_name(c, "name", text(value, "/metadata/name"));
    let spec = &value["spec"];
    c.one_of(spec, "spec", "fsGroupPolicy", &["File", "None", "ReadWriteOnceWithFSType"]);
    for mode in list(spec, "/volumeLifecycleModes") {
        if mode != "Persistent" && mode != "Ephemeral" {
            c.not_supported("spec.volumeLifecycleModes", mode, &["Ephemeral", "Persistent"]);
        }
    }
    let requests = list(spec, "/tokenRequests");
    for (at, request) in requests.iter().enumerate() {
        let path = element("spec", "tokenRequests", at);
        let audience = text(request, "/audience");
        if requests[..at].iter().any(|before| text(before, "/audience") == audience) {
            c.duplicate(&join(&path, "audience"), audience);
        }
        let Some(seconds) = request.get("expirationSeconds").and_then(Value::as_i64) else { continue };
        let field = join(&path, "expirationSeconds");
        if seconds < *TOKEN_LIFE.start() {
            c.invalid(&field, seconds, "may not specify a duration less than 10 minutes");
        } else if seconds > *TOKEN_LIFE.end() {
            c.invalid(&field, seconds, "may not specify a duration larger than 2^32 seconds");
        }
    }
    if let Some(seconds) = spec.get("nodeAllocatableUpdatePeriodSeconds").and_then(Value::as_i64)
        && seconds < 10
    {
        let field = "spec.nodeAllocatableUpdatePeriodSeconds";
        c.invalid(field, seconds, "must be greater than or equal to 10 seconds");
    }
    if let Some(old) = old {
        c.immutable(value, old, "spec.attachRequired");
        c.immutable(value, old, "spec.volumeLifecycleModes");
    }
}

pub(super) fn node(c: &mut Check, value: &Value) {
    let drivers = list(value, "/spec/drivers");
    for (at, driver) in drivers.iter().enumerate() {
        let path = element("spec", "drivers", at);
        let name = text(driver, "/name");
        driver_name(c, &join(&path, "name"), name);
        if drivers[..at].iter().any(|before| text(before, "/name") == name) {
            c.duplicate(&join(&path, "name"), name);
        }
        let id = c.needs(driver, &path, "nodeID");
        if id.len() > MAX_NODE_ID {
            c.invalid(&join(&path, "nodeID"), id, &format!("must be {MAX_NODE_ID} characters or less"));
        }
        if let Some(allocatable) = driver.get("allocatable") {
            c.at_least(allocatable, &join(&path, "allocatable"), "count", 0);
        }
        let keys = list(driver, "/topologyKeys");
        for (place, key) in keys.iter().enumerate() {
            let field = join(&path, "topologyKeys");
            let word = key.as_str().unwrap_or_default();
            if word.is_empty() {
                c.required(&field, "");
            } else if keys[..place].contains(key) {
                c.duplicate(&field, word);
            }
            c.holds(&field, word, names::qualified);
        }
    }
}

pub(super) fn attachment(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    driver_name(c, "spec.attacher", text(spec, "/attacher"));
    let path = "spec.source";
    let named = spec.pointer("/source/persistentVolumeName").filter(|name| !name.is_null());
    let inline = spec.pointer("/source/inlineVolumeSpec").filter(|inline| !inline.is_null());
    match (named, inline) {
        (None, None) => c.required(path, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"),
        (Some(_), Some(_)) => {
            c.forbidden(path, "must specify exactly one of inlineVolumeSpec and persistentVolumeName");
        }
        (Some(name), None) => {
            let field = join(path, "persistentVolumeName");
            match name.as_str().unwrap_or_default() {
                "" => c.required(&field, "must specify non empty persistentVolumeName"),
                name => c.holds(&field, name, names::dns_subdomain),
            }
        }
        (None, Some(_)) => {}
    }
    c.holds("spec.nodeName", text(spec, "/nodeName"), names::dns_subdomain);
    if let Some(old) = old {
        c.immutable(value, old, "spec");
    }
}

pub(super) fn capacity(c: &mut Check, value: &Value, old: Option<&Value>) {
    c.holds("storageClassName", text(value, "/storageClassName"), names::dns_subdomain);
    c.selector(value.get("nodeTopology"), "nodeTopology");
    for name in ["capacity", "maximumVolumeSize"] {
        if let Some(amount) = value.get(name)
            && quantity::of(amount).is_some_and(|n| n < 0)
        {
            c.invalid(name, plain(amount), "must be greater than or equal to 0");
        }
    }
    if let Some(old) = old {
        c.immutable(value, old, "nodeTopology");
        c.immutable(value, old, "storageClassName");
    }
}

pub(super) fn attributes_class(c: &mut Check, value: &Value, old: Option<&Value>) {
    driver_name(c, "driverName", text(value, "/driverName"));
    storage::parameters(c, value);
    if value.get("parameters").and_then(Value::as_object).is_none_or(serde_json::Map::is_empty) {
        c.required("parameters", "must contain at least one key/value pair");
    }
    let Some(old) = old else { return };
    for name in ["driverName", "parameters"] {
        if value.get(name) != old.get(name) {
            c.forbidden(name, &format!("updates to {name} are forbidden."));
        }
    }
}
