//! ServiceAccount: every pod has an account, and sees a token of it unless it or the account says otherwise.

use super::{Request, push};
use crate::{
    object,
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

pub async fn mutate(request: &Request<'_>, pod: &mut Value) -> Result<(), ApiError> {
    let call = request.call;
    if !request.creates("pods") {
        return Ok(());
    }
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
        return Err(request.forbid(why));
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

#[cfg(test)]
mod tests {
    use super::*;

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
