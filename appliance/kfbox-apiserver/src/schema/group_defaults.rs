//! Defaults of `flowcontrol.apiserver.k8s.io` and `resource.k8s.io` (`pkg/apis/flowcontrol/v1/defaults.go`,
//! `pkg/apis/resource/v1/defaults.go`).

use serde_json::{Map, Value};

type Object = Map<String, Value>;

pub(super) fn fill(kind: &str, object: &mut Object) {
    let Some(spec) = child(object, "spec") else { return };
    match kind {
        // Not set and zero are the same there.
        "FlowSchema" if spec.get("matchingPrecedence").is_none_or(|p| p == 0) => {
            spec.insert("matchingPrecedence".into(), 1000.into());
        }
        "PriorityLevelConfiguration" => priority_level(spec),
        "ResourceClaim" => claim(spec),
        "ResourceClaimTemplate" => {
            if let Some(inner) = child(spec, "spec") {
                claim(inner);
            }
        }
        _ => {}
    }
}

fn child<'a>(object: &'a mut Object, name: &str) -> Option<&'a mut Object> {
    object.get_mut(name).and_then(Value::as_object_mut)
}

fn items<'a>(object: &'a mut Object, name: &str) -> impl Iterator<Item = &'a mut Object> + use<'a> {
    object.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn set(object: &mut Object, name: &str, value: impl Into<Value>) {
    object.entry(name).or_insert_with(|| value.into());
}

fn priority_level(spec: &mut Object) {
    if spec.get("type").is_some_and(|t| t == "Exempt") {
        let exempt = spec.entry("exempt").or_insert_with(|| Object::new().into());
        if let Some(exempt) = exempt.as_object_mut() {
            set(exempt, "nominalConcurrencyShares", 0);
            set(exempt, "lendablePercent", 0);
        }
    }
    let Some(limited) = child(spec, "limited") else { return };
    set(limited, "nominalConcurrencyShares", 30);
    set(limited, "lendablePercent", 0);
    let Some(queuing) = child(limited, "limitResponse").and_then(|r| child(r, "queuing")) else { return };
    for (name, number) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
        if queuing.get(name).is_none_or(|n| *n == 0) {
            queuing.insert(name.into(), number.into());
        }
    }
}

fn claim(spec: &mut Object) {
    let Some(devices) = child(spec, "devices") else { return };
    for request in items(devices, "requests") {
        if let Some(exactly) = child(request, "exactly") {
            device(exactly);
        }
        items(request, "firstAvailable").for_each(device);
    }
}

/// One device unless more are asked for.
fn device(request: &mut Object) {
    if request.get("allocationMode").is_none_or(|m| m == "") {
        request.insert("allocationMode".into(), "ExactCount".into());
    }
    if request["allocationMode"] == "ExactCount" && request.get("count").is_none_or(|c| *c == 0) {
        request.insert("count".into(), 1.into());
    }
    for toleration in items(request, "tolerations") {
        if toleration.get("operator").is_none_or(|o| o == "") {
            toleration.insert("operator".into(), "Equal".into());
        }
    }
}
