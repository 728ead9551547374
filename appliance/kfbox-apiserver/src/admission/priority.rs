//! Priority: a pod's class becomes its priority and pre-emption policy; there is one default class at most.

use super::Request;
use crate::{object::meta, status::ApiError, store::Key, verbs::Call};
use serde_json::{Value, json};

const CLASSES: &str = "priorityclasses.scheduling.k8s.io";

/// These hold before their objects are made.
const SYSTEM_CLASSES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// The class marked as default; of several, which only a race can make, the lowest.
fn default_class(call: &Call) -> Result<Option<Value>, ApiError> {
    let classes = call.core.store.list(CLASSES, None, None, None)?.objects;
    let defaults = classes.iter().map(|o| o.value()).filter(|c| c["globalDefault"] == true);
    Ok(defaults.min_by_key(|c| c["value"].as_i64().unwrap_or(0)))
}

pub fn mutate(request: &Request, pod: &mut Value) -> Result<(), ApiError> {
    if !request.creates("pods") {
        return Ok(());
    }
    let named = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let class = if named.is_empty() {
        default_class(request.call)?
    } else {
        let stored = request.call.core.store.get(CLASSES, &Key::new("", &named)).map(|o| o.value());
        let system = || SYSTEM_CLASSES.iter().find(|(n, _)| *n == named).map(|(_, value)| json!({"value": value}));
        match stored.or_else(system) {
            Some(class) => Some(class),
            None => return Err(request.forbid(format!("no PriorityClass with name {named} was found"))),
        }
    };
    let priority = class.as_ref().and_then(|c| c["value"].as_i64()).unwrap_or(0);
    let policy = class.as_ref().and_then(|c| c["preemptionPolicy"].as_str()).unwrap_or("PreemptLowerPriority");
    let spec = &mut pod["spec"];
    if let Some(given) = spec["priority"].as_i64().filter(|given| *given != priority) {
        return Err(request.forbid(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {priority} from the given PriorityClass name"
        )));
    }
    if let Some(given) = spec["preemptionPolicy"].as_str().filter(|given| *given != policy) {
        return Err(request.forbid(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        )));
    }
    spec["priority"] = priority.into();
    spec["preemptionPolicy"] = policy.into();
    if named.is_empty()
        && let Some(class) = &class
    {
        spec["priorityClassName"] = meta(class, "name").into();
    }
    Ok(())
}

pub fn validate(request: &Request, class: &Value) -> Result<(), ApiError> {
    if !request.is(CLASSES) || class["globalDefault"] != true {
        return Ok(());
    }
    match default_class(request.call)? {
        Some(other) if request.old.is_none() || meta(&other, "name") != meta(class, "name") => {
            let name = meta(&other, "name");
            Err(request
                .forbid(format!("PriorityClass {name} is already marked as default. Only one default can exist")))
        }
        _ => Ok(()),
    }
}
