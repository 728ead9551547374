//! Pod Security admission: pods that a namespace's policy forbids are refused, and what it warns of is told, of pods and
//! of the templates of workloads. Upstream: <https://kubernetes.io/docs/concepts/security/pod-security-admission/>; no
//! namespace, user or runtime class is exempt, as upstream without configuration.

mod checks;
mod levels;

use super::Request;
use crate::{
    object::{meta, string_map},
    status::ApiError,
    store::{Key, Object},
};
use checks::{Subject, details, evaluate, reasons};
use levels::{Level, LevelVersion, Policy};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

/// Pods of a namespace that are looked at when its labels change; as upstream, so that the answer does not wait for long.
const PODS_CHECKED: usize = 3000;
const CHECK_TIME: Duration = Duration::from_secs(1);

/// Subresources of pods that change nothing that is checked.
const IGNORED: [&str; 8] = ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

pub fn validate(request: &Request, object: &Value) -> Result<(), ApiError> {
    match &*request.call.resource.collection {
        "namespaces" => namespace(request, object),
        "pods" => pod(request, object),
        collection => match template_of(collection) {
            Some(path) => template(request, object.pointer(path)),
            None => Ok(()),
        },
    }
}

/// Where a workload keeps the template of its pods.
fn template_of(collection: &str) -> Option<&'static str> {
    match collection {
        "podtemplates" => Some("/template"),
        "cronjobs.batch" => Some("/spec/jobTemplate/spec/template"),
        "replicationcontrollers"
        | "replicasets.apps"
        | "deployments.apps"
        | "statefulsets.apps"
        | "daemonsets.apps"
        | "jobs.batch" => Some("/spec/template"),
        _ => None,
    }
}

fn policy(request: &Request) -> Result<Policy, ApiError> {
    let name = request.call.namespace();
    let namespace = request.call.core.store.get("namespaces", &Key::new("", name));
    let namespace = namespace.ok_or_else(|| ApiError::internal(format!("failed to lookup namespace {name:?}")))?;
    Ok(Policy::of(|label| namespace.label(label)).0)
}

fn namespace(request: &Request, object: &Value) -> Result<(), ApiError> {
    if !request.subresource.is_empty() {
        return Ok(());
    }
    let labels = string_map(&object["metadata"]["labels"]);
    let (new, errors) = Policy::of(|label| labels.get(label).map(String::as_str));
    let invalid = || ApiError::invalid("", "Namespace", meta(object, "name"), &errors);
    let Some(old) = request.old else {
        return if errors.is_empty() { Ok(()) } else { Err(invalid()) };
    };
    let labels = string_map(&old["metadata"]["labels"]);
    let (before, old_errors) = Policy::of(|label| labels.get(label).map(String::as_str));
    if !errors.is_empty() && errors != old_errors {
        return Err(invalid());
    }
    let relaxed = new.enforce.version == before.enforce.version && new.enforce.level <= before.enforce.level;
    if relaxed || new.enforce == before.enforce || new.enforce.level == Level::Privileged {
        return Ok(());
    }
    for warning in warnings_of_existing(request, meta(object, "name"), new.enforce)? {
        request.warn(warning);
    }
    Ok(())
}

fn pod(request: &Request, object: &Value) -> Result<(), ApiError> {
    if IGNORED.contains(&request.subresource) || request.old.is_some_and(|old| !is_significant(old, object)) {
        return Ok(());
    }
    let policy = policy(request)?;
    if policy.is_privileged() {
        return Ok(());
    }
    let subject = Subject { metadata: &object["metadata"], spec: &object["spec"] };
    let enforced = evaluate(policy.enforce, subject);
    let refusal = format!("violates PodSecurity \"{}\": {}", policy.enforce, details(&enforced));
    request.call.annotate("pod-security.kubernetes.io/enforce-policy", policy.enforce.to_string());
    audit(request, policy.audit, subject);
    if !enforced.is_empty() {
        return Err(request.forbid(refusal));
    }
    warn(request, policy.warn, subject);
    Ok(())
}

/// Templates are never refused: whoever makes pods of them is.
fn template(request: &Request, template: Option<&Value>) -> Result<(), ApiError> {
    let Some(template) = template.filter(|_| request.subresource.is_empty()) else { return Ok(()) };
    // A namespace that is just gone warns of nothing.
    let Ok(policy) = policy(request) else { return Ok(()) };
    let subject = Subject { metadata: &template["metadata"], spec: &template["spec"] };
    audit(request, policy.audit, subject);
    warn(request, policy.warn, subject);
    Ok(())
}

fn warn(request: &Request, policy: LevelVersion, subject: Subject<'_>) {
    let found = evaluate(policy, subject);
    if !found.is_empty() {
        request.warn(format!("would violate PodSecurity \"{policy}\": {}", details(&found)));
    }
}

fn audit(request: &Request, policy: LevelVersion, subject: Subject<'_>) {
    let found = evaluate(policy, subject);
    if !found.is_empty() {
        let what = format!("would violate PodSecurity \"{policy}\": {}", details(&found));
        request.call.annotate("pod-security.kubernetes.io/audit-violations", what);
    }
}

/// Of a pod that runs only images can change, and ephemeral containers come.
fn is_significant(old: &Value, new: &Value) -> bool {
    let list = |pod: &Value, name: &str| pod["spec"][name].as_array().cloned().unwrap_or_default();
    let images =
        |pod: &Value, name: &str| -> Vec<Value> { list(pod, name).iter().map(|c| c["image"].clone()).collect() };
    let had = list(old, "ephemeralContainers");
    ["containers", "initContainers"].iter().any(|name| images(old, name) != images(new, name))
        || list(new, "ephemeralContainers").iter().any(|container| {
            let before = had.iter().find(|c| c["name"] == container["name"]);
            before.is_none_or(|before| before["image"] != container["image"])
        })
}

/// What the pods that are there would be refused for under a stricter policy.
fn warnings_of_existing(request: &Request, namespace: &str, enforce: LevelVersion) -> Result<Vec<String>, ApiError> {
    let pods = request.call.core.store.list("pods", Some(namespace), None, None)?.objects;
    let total = pods.len();
    let deadline = Instant::now() + CHECK_TIME;
    // By what is wrong: the first pod's name, and how many there are.
    let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
    let mut checked = 0;
    for pod in one_of_each_first(&pods).into_iter().take(PODS_CHECKED) {
        let violations = evaluate(enforce, Subject { metadata: &pod["metadata"], spec: &pod["spec"] });
        checked += 1;
        if !violations.is_empty() {
            let name = meta(&pod, "name").to_owned();
            let entry = found.entry(reasons(&violations)).or_insert_with(|| (name.clone(), 0));
            entry.0 = name.min(std::mem::take(&mut entry.0));
            entry.1 += 1;
        }
        if Instant::now() > deadline {
            break;
        }
    }
    let mut warnings = Vec::new();
    if checked < total {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
        ));
    }
    if !found.is_empty() {
        warnings.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{enforce}\""
        ));
    }
    let mut of_pods: Vec<String> = found
        .into_iter()
        .map(|(reason, (name, count))| match count {
            1 => format!("{name}: {reason}"),
            2 => format!("{name} (and 1 other pod): {reason}"),
            _ => format!("{name} (and {} other pods): {reason}", count - 1),
        })
        .collect();
    of_pods.sort();
    warnings.extend(of_pods);
    Ok(warnings)
}

/// The first pod of each controller before its others, which are most likely the same.
fn one_of_each_first(pods: &[Arc<Object>]) -> Vec<Value> {
    let mut controllers = HashSet::new();
    let (mut first, mut others) = (Vec::new(), Vec::new());
    for pod in pods.iter().map(|pod| pod.value()) {
        let owners = pod["metadata"]["ownerReferences"].as_array();
        let controller = owners.into_iter().flatten().find(|o| o["controller"] == true).map(|o| o["uid"].to_string());
        if controller.is_none_or(|uid| controllers.insert(uid)) {
            first.push(pod);
        } else {
            others.push(pod);
        }
    }
    first.append(&mut others);
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_new_images_and_containers_are_judged_again() {
        let pod = json!({"spec": {"containers": [{"name": "a", "image": "1"}], "ephemeralContainers": [{"name": "e", "image": "1"}]}});
        let changed = |place: &str, value: Value| {
            let mut new = pod.clone();
            *new.pointer_mut(place).unwrap() = value;
            is_significant(&pod, &new)
        };
        assert!(!is_significant(&pod, &pod));
        assert!(!changed("/spec/containers/0/name", json!("b")));
        assert!(changed("/spec/containers/0/image", json!("2")));
        assert!(changed("/spec/ephemeralContainers/0/image", json!("2")));
        assert!(changed("/spec/ephemeralContainers/0/name", json!("f")));
        assert!(!changed("/spec/ephemeralContainers", json!([])));
        assert!(changed("/spec/containers", json!([])));
    }
}
