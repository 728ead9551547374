//! Pods: the service account and its token, priority, tolerations, quality of service (upstream's ServiceAccount,
//! Priority and DefaultTolerationSeconds plugins and the pod strategy).

use crate::{
    object::{self, meta},
    schema::quantity,
    status::ApiError,
    store::{Key, Object},
    verbs::Call,
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN_SECONDS: i64 = 3607;

/// A namespace's `default` account is made by a controller moments after the namespace.
const ACCOUNT_PATIENCE: Duration = Duration::from_secs(2);

const SYSTEM_CLASSES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

pub async fn on_create(call: &Call, pod: &mut Value) -> Result<(), ApiError> {
    service_account(call, pod).await?;
    priority(call, pod)?;
    tolerations(pod);
    pod["status"] = json!({"phase": "Pending", "qosClass": quality(pod)});
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        pod["status"]["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null, "lastTransitionTime": object::now(),
        }]);
    }
    Ok(())
}

/// A pod's identity and class are settled at creation; clients that apply the pod again do not repeat them.
pub fn on_update(old: &Value, new: &mut Value) {
    for field in ["serviceAccountName", "serviceAccount", "nodeName", "priority", "preemptionPolicy", "tolerations"] {
        if new["spec"][field].is_null() && !old["spec"][field].is_null() {
            new["spec"][field] = old["spec"][field].clone();
        }
    }
}

async fn service_account(call: &Call, pod: &mut Value) -> Result<(), ApiError> {
    // A mirror of a static pod has none.
    if pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
        return Ok(());
    }
    let spec = &mut pod["spec"];
    let name = spec["serviceAccountName"]
        .as_str()
        .filter(|n| !n.is_empty())
        .or_else(|| spec["serviceAccount"].as_str())
        .filter(|n| !n.is_empty())
        .unwrap_or("default")
        .to_owned();
    spec["serviceAccountName"] = name.clone().into();
    spec["serviceAccount"] = name.clone().into();
    let Some(account) = find_account(call, &name).await else {
        let namespace = call.namespace();
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        return Err(ApiError::forbidden("", "pods", meta(pod, "name"), why));
    };
    let account = account.value();
    let spec = &mut pod["spec"];
    if spec["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
        && let Some(secrets) = account["imagePullSecrets"].as_array().filter(|s| !s.is_empty())
    {
        spec["imagePullSecrets"] = secrets.clone().into();
    }
    let automount = spec["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if automount {
        mount_token(spec);
    }
    Ok(())
}

async fn find_account(call: &Call, name: &str) -> Option<Arc<Object>> {
    let key = Key::new(call.namespace(), name);
    let store = &call.core.store;
    if let Some(account) = store.get("serviceaccounts", &key) {
        return Some(account);
    }
    let (_, mut watcher) = store.list_and_watch("serviceaccounts", Some(call.namespace()));
    let appears = async {
        loop {
            if let Some(account) = store.get("serviceaccounts", &key) {
                return Some(account);
            }
            watcher.next().await.ok()?;
        }
    };
    tokio::time::timeout(ACCOUNT_PATIENCE, appears).await.ok().flatten()
}

/// Every container that does not bring its own sees the token, the authority's certificate and the namespace.
fn mount_token(spec: &mut Value) {
    let mounts_own =
        |c: &Value| c["volumeMounts"].as_array().into_iter().flatten().any(|m| m["mountPath"] == TOKEN_PATH);
    let name = spec["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v["name"].as_str())
        .find(|n| n.starts_with("kube-api-access-"))
        .map_or_else(|| format!("kube-api-access-{}", object::random_suffix(5)), str::to_owned);
    let mut needed = false;
    for list in ["containers", "initContainers"] {
        // Not by index: that would store a null for a list that is absent.
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if mounts_own(container) || !container.is_object() {
                continue;
            }
            needed = true;
            push(container, "volumeMounts", json!({"name": name, "readOnly": true, "mountPath": TOKEN_PATH}));
        }
    }
    let there = spec["volumes"].as_array().into_iter().flatten().any(|v| v["name"] == name.as_str());
    if needed && !there {
        let volume = json!({"name": name, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
            ]}},
        ]}});
        push(spec, "volumes", volume);
    }
}

fn push(object: &mut Value, list: &str, item: Value) {
    match object[list].as_array_mut() {
        Some(list) => list.push(item),
        None => object[list] = json!([item]),
    }
}

fn priority(call: &Call, pod: &mut Value) -> Result<(), ApiError> {
    let classes = call.core.store.list("priorityclasses.scheduling.k8s.io", None, None, None)?;
    let named = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let class = if named.is_empty() {
        classes.objects.iter().map(|o| o.value()).find(|c| c["globalDefault"] == true)
    } else {
        let found = classes.objects.iter().find(|o| *o.key.name == *named).map(|o| o.value());
        let system = || SYSTEM_CLASSES.iter().find(|(n, _)| *n == named).map(|(_, value)| json!({"value": value}));
        let Some(class) = found.or_else(system) else {
            let why = format!("no PriorityClass with name {named} was found");
            return Err(ApiError::forbidden("", "pods", meta(pod, "name"), why));
        };
        Some(class)
    };
    let spec = &mut pod["spec"];
    spec["priority"] = class.as_ref().map_or(json!(0), |c| c["value"].clone());
    if named.is_empty()
        && let Some(class) = &class
    {
        spec["priorityClassName"] = meta(class, "name").into();
    }
    let policy = class.as_ref().and_then(|c| c["preemptionPolicy"].as_str()).unwrap_or("PreemptLowerPriority");
    spec["preemptionPolicy"] = policy.into();
    Ok(())
}

/// A pod outlasts five minutes of a node's trouble.
fn tolerations(pod: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = pod["spec"]["tolerations"].as_array().into_iter().flatten().any(|t| {
            let effect = t["effect"].as_str().unwrap_or_default();
            (t["key"] == key || t["key"].as_str().unwrap_or_default().is_empty())
                && (effect.is_empty() || effect == "NoExecute")
        });
        if !tolerated {
            let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
            push(&mut pod["spec"], "tolerations", toleration);
        }
    }
}

/// `qosClass` (`pkg/apis/core/helper/qos`): by cpu and memory of all containers.
fn quality(pod: &Value) -> &'static str {
    let containers: Vec<&Value> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
        .collect();
    let amount = |container: &Value, of: &str, resource: &str| {
        quantity::of(&container["resources"][of][resource]).filter(|q| *q > 0)
    };
    let mut guaranteed = true;
    let mut any = false;
    for container in &containers {
        for resource in ["cpu", "memory"] {
            let (request, limit) = (amount(container, "requests", resource), amount(container, "limits", resource));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: &[Value]) -> Value {
        let containers: Vec<Value> = resources.iter().map(|r| json!({"name": "c", "resources": r})).collect();
        json!({"spec": {"containers": containers}})
    }

    #[test]
    fn the_quality_class_is_that_of_the_neediest() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        assert_eq!(quality(&pod(&[json!({})])), "BestEffort");
        assert_eq!(quality(&pod(std::slice::from_ref(&full))), "Guaranteed");
        assert_eq!(quality(&pod(&[full, json!({})])), "Burstable");
        assert_eq!(quality(&pod(&[json!({"limits": {"cpu": "1"}})])), "Burstable");
    }

    #[test]
    fn the_token_is_mounted_once_where_it_is_not_brought() {
        let mut spec = json!({"containers": [
            {"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": TOKEN_PATH}]},
        ]});
        mount_token(&mut spec);
        mount_token(&mut spec);
        assert_eq!(spec["containers"][0]["volumeMounts"].as_array().unwrap().len(), 1);
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        assert_eq!(spec["volumes"].as_array().unwrap().len(), 1);
    }
}
