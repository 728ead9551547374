//! Events, which are one kind under two groups: the old one keeps the old, lenient rules, the new one asks for what its
//! fields need. Upstream: `pkg/apis/core/validation/events.go`, whose field names are those of the core group for both.

use serde_json::Value;

use super::{Check, FieldError, names, text};

const MAX_WORD: usize = 128;
const MAX_NOTE: usize = 1024;

/// A member by its name in either group.
fn either<'a>(event: &'a Value, core: &str, new: &str) -> Option<&'a Value> {
    event.get(core).or_else(|| event.get(new)).filter(|value| !value.is_null())
}

fn word<'a>(event: &'a Value, core: &str, new: &str) -> &'a str {
    either(event, core, new).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn event(c: &mut Check, group: &str, value: &Value, old: Option<&Value>) {
    namespaces(c, value);
    if !text(value, "/eventTime").is_empty() {
        reported(c, value);
    }
    if group == "events.k8s.io" {
        match old {
            None => new(c, value),
            Some(old) => changed(c, value, old),
        }
    }
}

/// An event lies where its object does; objects without a namespace have theirs in `default`.
fn namespaces(c: &mut Check, value: &Value) {
    let namespace = text(value, "/metadata/namespace");
    let of_object = either(value, "involvedObject", "regarding").map_or("", |object| text(object, "/namespace"));
    let timed = !text(value, "/eventTime").is_empty();
    let fits = match of_object {
        "" => matches!(namespace, "" | "default") || timed && namespace == "kube-system",
        of_object => timed || of_object == namespace,
    };
    if !fits {
        c.invalid("involvedObject.namespace", of_object, "does not match event.namespace");
    }
}

fn reported(c: &mut Check, value: &Value) {
    let limited = |c: &mut Check, field: &str, word: &str, limit: usize| {
        if word.len() > limit {
            c.invalid(field, "", &format!("can have at most {limit} characters"));
        }
    };
    let controller = word(value, "reportingComponent", "reportingController");
    if controller.is_empty() {
        c.required("reportingController", "");
    }
    c.holds("reportingController", controller, names::qualified);
    for name in ["reportingInstance", "action", "reason"] {
        let found = text(value, &format!("/{name}"));
        if found.is_empty() {
            c.required(name, "");
        }
        limited(c, name, found, MAX_WORD);
    }
    limited(c, "message", word(value, "message", "note"), MAX_NOTE);
}

fn series(c: &mut Check, value: &Value) {
    let Some(series) = value.get("series").filter(|series| !series.is_null()) else { return };
    if series.get("count").and_then(Value::as_i64).unwrap_or(0) < 2 {
        c.invalid("series.count", "", "should be at least 2");
    }
    if text(series, "/lastObservedTime").is_empty() {
        c.required("series.lastObservedTime", "");
    }
}

/// Fields of old that the new group calls deprecated and does not take.
const DEPRECATED: [(&str, &str); 4] = [
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("source", "deprecatedSource"),
];

fn new(c: &mut Check, value: &Value) {
    series(c, value);
    if text(value, "/eventTime").is_empty() {
        c.required("eventTime", "");
    }
    let kind = text(value, "/type");
    if kind != "Normal" && kind != "Warning" {
        c.invalid("type", "", &format!("has invalid value: {kind}"));
    }
    for (core, new) in DEPRECATED {
        let unset = match either(value, core, new) {
            None => true,
            Some(Value::Object(source)) => source.values().all(|word| word == ""),
            Some(found) => *found == 0 || *found == "",
        };
        if !unset {
            c.invalid(core, "", "needs to be unset");
        }
    }
}

/// Only the series of an event goes on.
fn changed(c: &mut Check, value: &Value, old: &Value) {
    if value.get("series") != old.get("series") {
        series(c, value);
    }
    let fixed = [
        ("involvedObject", "regarding"),
        ("reason", "reason"),
        ("message", "note"),
        ("source", "deprecatedSource"),
        ("firstTimestamp", "deprecatedFirstTimestamp"),
        ("lastTimestamp", "deprecatedLastTimestamp"),
        ("count", "deprecatedCount"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ];
    for (core, new) in fixed {
        let (now, was) = (either(value, core, new), either(old, core, new));
        if now != was {
            let field = if core == "reportingComponent" { new } else { core };
            c.push(FieldError::invalid(field, now.unwrap_or(&Value::Null), "field is immutable"));
        }
    }
}
