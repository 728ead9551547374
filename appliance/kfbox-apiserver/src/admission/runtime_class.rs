//! RuntimeClass: a pod gets its class's overhead, node selector and tolerations; overhead of its own it may not have.

use super::{Request, amounts};
use crate::{status::ApiError, store::Key};
use serde_json::Value;

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

fn class(request: &Request, pod: &Value) -> Result<Value, ApiError> {
    let Some(name) = pod["spec"]["runtimeClassName"].as_str() else { return Ok(Value::Null) };
    let stored = request.call.core.store.get("runtimeclasses.node.k8s.io", &Key::new("", name));
    stored
        .map(|class| class.value())
        .ok_or_else(|| request.forbid(format!("pod rejected: RuntimeClass {name:?} not found")))
}

pub fn mutate(request: &Request, pod: &mut Value) -> Result<(), ApiError> {
    if !request.creates("pods") {
        return Ok(());
    }
    let class = class(request, pod)?;
    let spec = &mut pod["spec"];
    if class["overhead"].is_object() {
        let fixed = &class["overhead"]["podFixed"];
        if !spec["overhead"].is_null() && amounts::of(&spec["overhead"]) != amounts::of(fixed) {
            return Err(request.forbid(MISMATCH.to_owned()));
        }
        if fixed.is_object() {
            spec["overhead"] = fixed.clone();
        }
    }
    for (key, wanted) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        let given = &spec["nodeSelector"][key];
        if !given.is_null() && given != wanted {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            return Err(request.forbid(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(wanted),
                text(given)
            )));
        }
        spec["nodeSelector"][key] = wanted.clone();
    }
    if let Some(more) = class["scheduling"]["tolerations"].as_array() {
        let own = spec["tolerations"].as_array().map(Vec::as_slice).unwrap_or_default();
        spec["tolerations"] = merged(own.iter().chain(more).collect()).into();
    }
    Ok(())
}

pub fn validate(request: &Request, pod: &Value) -> Result<(), ApiError> {
    if !request.creates("pods") {
        return Ok(());
    }
    let class = class(request, pod)?;
    let own = &pod["spec"]["overhead"];
    if class["overhead"].is_object() {
        if amounts::of(&class["overhead"]["podFixed"]) != amounts::of(own) {
            return Err(request.forbid(MISMATCH.to_owned()));
        }
    } else if !own.is_null() {
        let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
        return Err(request.forbid(why.to_owned()));
    }
    Ok(())
}

/// Without those that another one includes; of equal ones the first stays.
fn merged(all: Vec<&Value>) -> Vec<Value> {
    let mut kept: Vec<Value> = Vec::new();
    for (at, toleration) in all.iter().enumerate() {
        let covered = kept.iter().any(|other| includes(other, toleration))
            || all[at + 1..].iter().any(|other| other != toleration && includes(other, toleration));
        if !covered {
            kept.push((*toleration).clone());
        }
    }
    kept
}

/// Whether what `part` tolerates, `whole` does too (`pkg/util/tolerations`).
fn includes(whole: &Value, part: &Value) -> bool {
    let text = |toleration: &Value, field: &str| toleration[field].as_str().unwrap_or_default().to_owned();
    if whole == part {
        return true;
    }
    let every_key = text(whole, "key").is_empty() && text(whole, "operator") == "Exists";
    if text(part, "key") != text(whole, "key") && !every_key {
        return false;
    }
    let effect = text(whole, "effect");
    if !effect.is_empty() && effect != text(part, "effect") {
        return false;
    }
    if effect == "NoExecute"
        && let Some(seconds) = whole["tolerationSeconds"].as_i64()
        && part["tolerationSeconds"].as_i64().is_none_or(|s| s > seconds)
    {
        return false;
    }
    match text(whole, "operator").as_str() {
        "Exists" => true,
        "Equal" | "" => text(part, "operator") == "Equal" && text(part, "value") == text(whole, "value"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tolerations_that_others_include_go() {
        let gpu = json!({"key": "gpu", "operator": "Exists"});
        let gpu_one = json!({"key": "gpu", "operator": "Equal", "value": "1", "effect": "NoSchedule"});
        let brief = json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10});
        let long = json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 20});
        let all = json!({"operator": "Exists"});
        assert_eq!(merged(vec![&gpu_one, &gpu]), std::slice::from_ref(&gpu));
        assert_eq!(merged(vec![&gpu, &gpu_one, &gpu]), std::slice::from_ref(&gpu));
        assert_eq!(merged(vec![&brief, &long]), std::slice::from_ref(&long));
        assert_eq!(merged(vec![&gpu, &brief, &all, &gpu_one]), [all]);
        assert_eq!(merged(vec![&gpu, &brief]), [gpu, brief]);
    }
}
