//! The ranges and addresses of Services. Upstream: `pkg/apis/networking/validation`.

use serde_json::Value;

use super::{Check, element, join, list, text};

const RANGES: &str = "spec.cidrs";

pub(super) fn service_cidr(c: &mut Check, value: &Value, old: Option<&Value>) {
    let ranges = list(value, "/spec/cidrs");
    if let Some(old) = old {
        // One family may become two and back; the first range stays.
        let before = list(old, "/spec/cidrs");
        if before.first() != ranges.first() || before.len() == ranges.len() {
            return c.immutable(value, old, RANGES);
        }
    }
    if ranges.is_empty() {
        return c.required(RANGES, "at least one CIDR required");
    }
    if ranges.len() > 2 {
        return c.invalid(RANGES, ranges.to_vec(), "may only hold up to 2 values");
    }
    let is_v6 = |range: &Value| range.as_str().is_some_and(|r| r.contains(':'));
    if let [first, second] = ranges
        && is_v6(first) == is_v6(second)
    {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        c.invalid(RANGES, ranges.to_vec(), why);
    }
    for (at, range) in ranges.iter().enumerate() {
        c.cidr(&element("spec", "cidrs", at), range.as_str().unwrap_or_default());
    }
}

/// The name is the address.
pub(super) fn ip_address(c: &mut Check, value: &Value, old: Option<&Value>) {
    c.ip("metadata.name", text(value, "/metadata/name"));
    let path = "spec.parentRef";
    match value.pointer("/spec/parentRef").filter(|parent| !parent.is_null()) {
        None => c.required(path, ""),
        Some(parent) => {
            for name in ["resource", "name"] {
                if text(parent, &format!("/{name}")).is_empty() {
                    c.required(&join(path, name), "");
                }
            }
        }
    }
    if let Some(old) = old {
        c.immutable(value, old, path);
    }
}
