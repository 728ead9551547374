//! Rows of kinds that administrators look at: storage drivers, addresses, policies, priorities, devices, usage.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{Column, Row, RowOf, age, int_at, list_at, name, or, text_at};
use crate::metrics;

const S: &str = "string";
const I: &str = "integer";
const B: &str = "boolean";
const NONE: &str = "<none>";

/// NAME and AGE for kinds without own columns.
pub(super) fn of(group: &str, kind: &str) -> (&'static [Column], RowOf) {
    match (group, kind) {
        ("", "PodTemplate") => {
            (&[("Name", S, 0), ("Containers", S, 0), ("Images", S, 0), ("Pod Labels", S, 0)], pod_template)
        }
        ("", "ComponentStatus") => {
            (&[("Name", S, 0), ("Status", S, 0), ("Message", S, 0), ("Error", S, 0)], component_status)
        }
        ("storage.k8s.io", "CSIDriver") => (CSI_DRIVER, csi_driver),
        ("storage.k8s.io", "CSIStorageCapacity") => {
            (&[("Name", S, 0), ("StorageClassName", S, 0), ("Capacity", S, 0)], |o, _| {
                vec![name(o), Value::from(text_at(o, "/storageClassName")), or(text_at(o, "/capacity"), "<unset>")]
            })
        }
        ("storage.k8s.io", "VolumeAttributesClass") => {
            (&[("Name", S, 0), ("DriverName", S, 0), ("Age", S, 0)], |o, now| {
                vec![name(o), Value::from(text_at(o, "/driverName")), age(o, now)]
            })
        }
        ("networking.k8s.io", "IPAddress") => (&[("Name", S, 0), ("ParentRef", S, 0), ("Age", S, 0)], ip_address),
        ("networking.k8s.io", "ServiceCIDR") => (&[("Name", S, 0), ("CIDRs", S, 0), ("Age", S, 0)], |o, now| {
            vec![name(o), Value::from(joined(o, "/spec/cidrs")), age(o, now)]
        }),
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => {
            (&[("Name", S, 0), ("Mutations", I, 0), ("ParamKind", S, 0), ("Age", S, 0)], |o, now| {
                let (version, kind) = (text_at(o, "/spec/paramKind/apiVersion"), text_at(o, "/spec/paramKind/kind"));
                let param = if kind.is_empty() { "<unset>".to_owned() } else { format!("{version}/{kind}") };
                vec![name(o), Value::from(list_at(o, "/spec/mutations").len()), Value::from(param), age(o, now)]
            })
        }
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding") => {
            (&[("Name", S, 0), ("PolicyName", S, 0), ("ParamRef", S, 0), ("Age", S, 0)], |o, now| {
                let param = match (text_at(o, "/spec/paramRef/namespace"), text_at(o, "/spec/paramRef/name")) {
                    _ if o.pointer("/spec/paramRef").is_none() => "<unset>".to_owned(),
                    ("", target) => target.to_owned(),
                    (namespace, target) => format!("{namespace}/{target}"),
                };
                vec![name(o), Value::from(text_at(o, "/spec/policyName")), Value::from(param), age(o, now)]
            })
        }
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => (FLOW_SCHEMA, flow_schema),
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => (PRIORITY_LEVEL, priority_level),
        ("resource.k8s.io", "ResourceClaim") => (&[("Name", S, 0), ("State", S, 0), ("Age", S, 0)], |o, now| {
            vec![name(o), Value::from(claim_state(o)), age(o, now)]
        }),
        ("resource.k8s.io", "ResourceSlice") => {
            (&[("Name", S, 0), ("Node", S, 0), ("Driver", S, 0), ("Pool", S, 0), ("Age", S, 0)], |o, now| {
                vec![
                    name(o),
                    Value::from(text_at(o, "/spec/nodeName")),
                    Value::from(text_at(o, "/spec/driver")),
                    Value::from(text_at(o, "/spec/pool/name")),
                    age(o, now),
                ]
            })
        }
        ("metrics.k8s.io", _) => {
            (&[("Name", S, 0), ("cpu", S, 0), ("memory", S, 0), ("Window", S, 0)], |o, _| usage(o))
        }
        _ => (&[("Name", S, 0), ("Age", S, 0)], |o, now| vec![name(o), age(o, now)]),
    }
}

fn words<'a>(o: &'a Value, pointer: &str, field: &str) -> Vec<&'a str> {
    list_at(o, pointer).iter().map(|c| text_at(c, field)).collect()
}

fn joined(o: &Value, pointer: &str) -> String {
    list_at(o, pointer).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

fn pod_template(o: &Value, _: DateTime<Utc>) -> Row {
    let containers = |field| words(o, "/template/spec/containers", field).join(",");
    vec![
        name(o),
        Value::from(containers("/name")),
        Value::from(containers("/image")),
        super::selector(o.pointer("/template/metadata/labels"), NONE),
    ]
}

fn component_status(o: &Value, _: DateTime<Utc>) -> Row {
    let healthy = list_at(o, "/conditions").iter().find(|c| text_at(c, "/type") == "Healthy");
    let status = match healthy.map(|c| text_at(c, "/status")) {
        Some("True") => "Healthy",
        Some("False") => "Unhealthy",
        _ => "Unknown",
    };
    let part = |pointer| Value::from(healthy.map_or("", |c| text_at(c, pointer)));
    vec![name(o), Value::from(status), part("/message"), part("/error")]
}

const CSI_DRIVER: &[Column] = &[
    ("Name", S, 0),
    ("AttachRequired", B, 0),
    ("PodInfoOnMount", B, 0),
    ("StorageCapacity", B, 0),
    ("TokenRequests", S, 0),
    ("RequiresRepublish", B, 0),
    ("Modes", S, 0),
    ("Age", S, 0),
];

fn csi_driver(o: &Value, now: DateTime<Utc>) -> Row {
    let flag = |pointer, otherwise| Value::from(o.pointer(pointer).and_then(Value::as_bool).unwrap_or(otherwise));
    let audiences = words(o, "/spec/tokenRequests", "/audience").join(",");
    vec![
        name(o),
        flag("/spec/attachRequired", true),
        flag("/spec/podInfoOnMount", false),
        flag("/spec/storageCapacity", false),
        if list_at(o, "/spec/tokenRequests").is_empty() { Value::from("<unset>") } else { Value::from(audiences) },
        flag("/spec/requiresRepublish", false),
        or(&joined(o, "/spec/volumeLifecycleModes"), NONE),
        age(o, now),
    ]
}

fn ip_address(o: &Value, now: DateTime<Utc>) -> Row {
    let part = |field: &str| text_at(o, &format!("/spec/parentRef/{field}"));
    let parent = if o.pointer("/spec/parentRef").is_some() {
        let resource = crate::status::group_resource(part("group"), part("resource")).to_lowercase();
        let namespace = if part("namespace").is_empty() { String::new() } else { format!("{}/", part("namespace")) };
        format!("{resource}/{namespace}{}", part("name"))
    } else {
        NONE.to_owned()
    };
    vec![name(o), Value::from(parent), age(o, now)]
}

const FLOW_SCHEMA: &[Column] = &[
    ("Name", S, 0),
    ("PriorityLevel", S, 0),
    ("MatchingPrecedence", I, 0),
    ("DistinguisherMethod", S, 0),
    ("Age", S, 0),
    ("MissingPL", S, 0),
];

fn flow_schema(o: &Value, now: DateTime<Utc>) -> Row {
    let dangling = list_at(o, "/status/conditions").iter().find(|c| text_at(c, "/type") == "Dangling");
    vec![
        name(o),
        Value::from(text_at(o, "/spec/priorityLevelConfiguration/name")),
        Value::from(int_at(o, "/spec/matchingPrecedence")),
        or(text_at(o, "/spec/distinguisherMethod/type"), NONE),
        age(o, now),
        Value::from(dangling.map_or("?", |c| text_at(c, "/status"))),
    ]
}

const PRIORITY_LEVEL: &[Column] = &[
    ("Name", S, 0),
    ("Type", S, 0),
    ("NominalConcurrencyShares", S, 0),
    ("Queues", S, 0),
    ("HandSize", S, 0),
    ("QueueLengthLimit", S, 0),
    ("Age", S, 0),
];

fn priority_level(o: &Value, now: DateTime<Utc>) -> Row {
    let number = |pointer: &str| match o.pointer(pointer).and_then(Value::as_i64) {
        Some(number) => Value::from(number),
        None => Value::from(NONE),
    };
    let shares = match o.pointer("/spec/limited") {
        Some(_) => number("/spec/limited/nominalConcurrencyShares"),
        None => number("/spec/exempt/nominalConcurrencyShares"),
    };
    let queuing = |field: &str| number(&format!("/spec/limited/limitResponse/queuing/{field}"));
    vec![
        name(o),
        Value::from(text_at(o, "/spec/type")),
        shares,
        queuing("queues"),
        queuing("handSize"),
        queuing("queueLengthLimit"),
        age(o, now),
    ]
}

fn claim_state(o: &Value) -> String {
    let deleted = o.pointer("/metadata/deletionTimestamp").is_some_and(|v| !v.is_null());
    let mut states = Vec::new();
    if deleted {
        states.push("deleted");
    }
    match o.pointer("/status/allocation") {
        Some(allocation) if !allocation.is_null() => {
            states.push("allocated");
            if !list_at(o, "/status/reservedFor").is_empty() {
                states.push("reserved");
            }
        }
        _ if !deleted => states.push("pending"),
        _ => {}
    }
    states.join(",")
}

/// A node's usage, or the sum of a pod's containers'.
fn usage(o: &Value) -> Row {
    let parts: Vec<&Value> = match o.get("containers").and_then(Value::as_array) {
        Some(containers) => containers.iter().filter_map(|c| c.get("usage")).collect(),
        None => o.get("usage").into_iter().collect(),
    };
    // Quantities are read in billionths, which for CPU are the nano-cores asked for.
    let sum = |field: &str, unit: i128| -> u64 {
        let amounts = parts.iter().filter_map(|u| crate::schema::quantity::of(u.get(field)?));
        u64::try_from(amounts.sum::<i128>() / unit).unwrap_or(0)
    };
    vec![
        name(o),
        Value::from(metrics::cpu(sum("cpu", 1))),
        Value::from(metrics::memory(sum("memory", 1_000_000_000))),
        Value::from(text_at(o, "/window")),
    ]
}
