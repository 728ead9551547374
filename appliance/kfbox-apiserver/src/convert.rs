//! Between the version an object is stored in and the one asked for. Custom resources use strategy `None`: only
//! `apiVersion` differs. Events are one store under two groups with different field names
//! (`pkg/apis/events/v1/conversion.go`); HorizontalPodAutoscalers in two versions are [`autoscaling`]'s.

mod autoscaling;

use crate::{resources::Resource, store::Object};
use bytes::Bytes;
use serde_json::Value;
use std::borrow::Cow;

const EVENT_NAMES: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// True when stored bytes are what a client of `resource` reads.
pub fn is_native(resource: &Resource, object: &Object) -> bool {
    !is_new_event(resource) && *object.version == *resource.version
}

fn is_new_event(resource: &Resource) -> bool {
    &*resource.group == "events.k8s.io"
}

/// The JSON that a client of this resource reads; shared where nothing differs.
pub fn bytes(resource: &Resource, object: &Object) -> Bytes {
    if is_native(resource, object) {
        return object.json.clone();
    }
    value(resource, object).to_string().into()
}

pub fn value(resource: &Resource, object: &Object) -> Value {
    let mut value = object.value();
    if !is_native(resource, object) {
        value["apiVersion"] = resource.api_version().into();
        if is_new_event(resource) {
            rename(&mut value, |(core, new)| (core, new));
        } else if &*resource.group == "autoscaling" {
            autoscaling::to_v1(&mut value);
        } else if let Some(schema) = resource.schema() {
            crate::schema::prune(&schema, &mut value);
            crate::schema::default(&schema, &mut value);
        }
    }
    value
}

/// An autoscaler in the version that says everything.
pub fn newest(object: &Value) -> Cow<'_, Value> {
    if object["apiVersion"] != "autoscaling/v1" {
        return Cow::Borrowed(object);
    }
    let mut whole = object.clone();
    autoscaling::to_v2(&mut whole);
    Cow::Owned(whole)
}

/// What version 1 of an autoscaler keeps of its status in annotations stays, whatever a client sends.
pub fn keep_status(old: &Value, new: &mut Value) {
    if new["apiVersion"] == "autoscaling/v1" {
        autoscaling::keep_status(old, new);
    }
}

/// To the form that is stored.
pub fn to_storage(resource: &Resource, value: &mut Value) {
    if is_new_event(resource) {
        value["apiVersion"] = "v1".into();
        rename(value, |(core, new)| (new, core));
    } else if &*resource.group == "autoscaling" && resource.version != resource.storage_version {
        autoscaling::to_v2(value);
    } else if resource.version != resource.storage_version {
        value["apiVersion"] = match &*resource.group {
            "" => resource.storage_version.to_string(),
            group => format!("{group}/{}", resource.storage_version),
        }
        .into();
    }
}

fn rename(value: &mut Value, direction: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str)) {
    let Some(members) = value.as_object_mut() else { return };
    for (from, to) in EVENT_NAMES.map(direction) {
        if let Some(moved) = members.remove(from) {
            members.insert(to.into(), moved);
        }
    }
}
