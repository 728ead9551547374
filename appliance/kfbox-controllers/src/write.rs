//! Writes to the cluster, as every controller makes them: conflicts and absences are told apart from failures, statuses
//! are written as the difference only, deletions name the uid they mean.

use crate::{
    cache::{Cache, Kind, key},
    queue::Retry,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
    core::{ClusterResourceScope, NamespaceResourceScope},
};
use serde::Serialize;
use serde_json::{Map, Value, json};

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("{kind} {name} belongs to another owner")]
    Taken { kind: String, name: String },
    #[error("cannot express the object as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Folder(#[from] crate::volumes::FolderError),
    #[error("{what} {path}: {source}")]
    Disk {
        what: &'static str,
        path: String,
        #[source]
        source: std::io::Error,
    },
}

impl Retry for WriteError {
    fn is_routine(&self) -> bool {
        matches!(self, Self::Api(error) if is_conflict(error) || is_terminating(error))
            || matches!(self, Self::Taken { .. })
    }
}

fn status(error: &kube::Error) -> Option<(u16, &str)> {
    match error {
        kube::Error::Api(status) => Some((status.code, status.reason.as_str())),
        _ => None,
    }
}

pub fn is_exists(error: &kube::Error) -> bool {
    status(error).is_some_and(|(code, reason)| code == 409 && reason == "AlreadyExists")
}

pub fn is_conflict(error: &kube::Error) -> bool {
    status(error).is_some_and(|(code, reason)| code == 409 && reason != "AlreadyExists")
}

pub fn is_missing(error: &kube::Error) -> bool {
    status(error).is_some_and(|(code, _)| code == 404)
}

/// The namespace is going away and takes nothing new.
pub fn is_terminating(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403 && status.message.contains("is being terminated"))
}

/// The `Api` that an object of the kind lives in.
pub trait Scoped: Kind {
    fn api(client: &Client, namespace: &str) -> Api<Self>;
}

/// Chooses between the two kinds of scope at compile time.
pub trait ScopeApi<K> {
    fn api(client: &Client, namespace: &str) -> Api<K>;
}

impl<K: Kind + kube::Resource<Scope = NamespaceResourceScope>> ScopeApi<K> for NamespaceResourceScope {
    fn api(client: &Client, namespace: &str) -> Api<K> {
        Api::namespaced(client.clone(), namespace)
    }
}

impl<K: Kind + kube::Resource<Scope = ClusterResourceScope>> ScopeApi<K> for ClusterResourceScope {
    fn api(client: &Client, _: &str) -> Api<K> {
        Api::all(client.clone())
    }
}

impl<K: Kind> Scoped for K
where
    K::Scope: ScopeApi<K>,
{
    fn api(client: &Client, namespace: &str) -> Api<Self> {
        K::Scope::api(client, namespace)
    }
}

/// Creates the object. One that exists counts as created when `owner` controls it (or no owner is asked for).
pub async fn create<K: Scoped + Serialize>(
    client: &Client,
    cache: &Cache<K>,
    object: &K,
    owner: Option<&str>,
) -> Result<bool, WriteError> {
    let (namespace, name) = key(object);
    let api = K::api(client, &namespace);
    match api.create(&PostParams::default(), object).await {
        Ok(created) => {
            cache.learn(created);
            Ok(true)
        }
        Err(error) if is_exists(&error) => {
            if let (Some(owner), Some(found)) = (owner, api.get_opt(&name).await?) {
                let ours = controller_uid(&found) == Some(owner);
                cache.learn(found);
                if !ours {
                    return Err(WriteError::Taken { kind: K::kind(&()).into_owned(), name });
                }
            }
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

pub fn controller_uid<K: Kind>(object: &K) -> Option<&str> {
    let owners = object.meta().owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|o| o.controller == Some(true)).map(|o| o.uid.as_str())
}

/// Deletes the object with this uid, in the background. One that is gone or was replaced is as good as deleted.
pub async fn delete<K: Scoped>(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<(), WriteError> {
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: Some(uid.into()), resource_version: None }),
        propagation_policy: Some(PropagationPolicy::Background),
        ..DeleteParams::default()
    };
    match K::api(client, namespace).delete(name, &params).await {
        Ok(_) => Ok(()),
        Err(error) if is_missing(&error) || is_conflict(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes `new` over the object's status, if it differs, only when the object is still as it was read.
pub async fn status_of<K: Scoped, S: Serialize>(
    client: &Client,
    cache: &Cache<K>,
    object: &K,
    old: &S,
    new: &S,
) -> Result<bool, WriteError> {
    let patch = difference(&serde_json::to_value(old)?, &serde_json::to_value(new)?);
    let Some(patch) = patch else { return Ok(false) };
    let (namespace, name) = key(object);
    let body = json!({ "metadata": { "resourceVersion": object.meta().resource_version }, "status": patch });
    match K::api(client, &namespace).patch_status(&name, &PatchParams::default(), &Patch::Merge(body)).await {
        Ok(updated) => {
            cache.learn(updated);
            Ok(true)
        }
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Applies a JSON merge patch, only when the object is still as it was read.
pub async fn patch<K: Scoped>(
    client: &Client,
    cache: &Cache<K>,
    object: &K,
    mut body: Value,
) -> Result<(), WriteError> {
    let (namespace, name) = key(object);
    if !body["metadata"].is_object() {
        body["metadata"] = json!({});
    }
    body["metadata"]["resourceVersion"] = json!(object.meta().resource_version);
    body["metadata"]["uid"] = json!(object.meta().uid);
    match K::api(client, &namespace).patch(&name, &PatchParams::default(), &Patch::Merge(body)).await {
        Ok(updated) => {
            cache.learn(updated);
            Ok(())
        }
        Err(error) if is_missing(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The merge patch that makes `old` into `new`; `None` when they are equal.
pub fn difference(old: &Value, new: &Value) -> Option<Value> {
    if old == new {
        return None;
    }
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return Some(new.clone()) };
    let mut patch = Map::new();
    for (key, value) in new {
        match old.get(key) {
            None => {
                patch.insert(key.clone(), value.clone());
            }
            Some(before) => {
                if let Some(change) = difference(before, value) {
                    patch.insert(key.clone(), change);
                }
            }
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_says_what_changed_and_what_went() {
        let old = json!({ "a": 1, "b": { "c": 1, "d": 2 }, "e": [1] });
        let new = json!({ "a": 1, "b": { "c": 3 }, "e": [1, 2], "f": "x" });
        assert_eq!(difference(&old, &new), Some(json!({ "b": { "c": 3, "d": null }, "e": [1, 2], "f": "x" })));
        assert_eq!(difference(&old, &old), None);
        assert_eq!(difference(&json!({}), &json!({ "a": { "b": 1 } })), Some(json!({ "a": { "b": 1 } })));
        assert_eq!(difference(&Value::Null, &json!({ "a": 1 })), Some(json!({ "a": 1 })));
    }
}
