//! Small strategies, a function a kind (`pkg/registry/*/strategy.go`).

use crate::{
    object::{member_mut, meta},
    verbs::Call,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

pub fn namespace(object: &mut Value) {
    let name = meta(object, "name").to_owned();
    object["status"] = json!({"phase": "Active"});
    let spec = member_mut(object, "spec");
    let finalizers = spec.entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|f| f == "kubernetes")
    {
        list.push("kubernetes".into());
    }
    label_namespace(object, &name);
}

/// The spec of a namespace is its finalizers, which only the finalize subresource changes.
pub fn namespace_update(old: &Value, new: &mut Value) {
    new["spec"] = old["spec"].clone();
    let name = meta(old, "name").to_owned();
    label_namespace(new, &name);
}

fn label_namespace(object: &mut Value, name: &str) {
    let labels = &mut object["metadata"]["labels"];
    if !labels.is_object() {
        *labels = json!({});
    }
    labels[NAMESPACE_LABEL] = name.into();
}

/// `stringData` is a way of writing `data`.
pub fn secret(object: &mut Value) {
    let Some(plain) = object.as_object_mut().and_then(|o| o.remove("stringData")) else { return };
    let data = member_mut(object, "data");
    for (key, value) in plain.as_object().into_iter().flatten() {
        if let Some(text) = value.as_str() {
            data.insert(key.clone(), STANDARD.encode(text).into());
        }
    }
}

/// A claim's volume and class are set once; clients that apply the claim again do not repeat them.
pub fn claim_update(old: &Value, new: &mut Value) {
    for field in ["storageClassName", "volumeName"] {
        if new["spec"][field].is_null() && !old["spec"][field].is_null() {
            new["spec"][field] = old["spec"][field].clone();
        }
    }
}

/// Without `manualSelector` a Job's pods are told from others by the Job's uid.
pub fn job(object: &mut Value) {
    let (name, uid) = (meta(object, "name").to_owned(), meta(object, "uid").to_owned());
    if object["spec"]["manualSelector"] == true {
        return;
    }
    let template = member_mut(&mut object["spec"], "template");
    let metadata = template.entry("metadata").or_insert_with(|| json!({}));
    let labels = member_mut(metadata, "labels");
    for (key, value) in [
        ("controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
    ] {
        labels.entry(key).or_insert_with(|| value.as_str().into());
    }
    let selector = member_mut(&mut object["spec"], "selector");
    let labels = selector.entry("matchLabels").or_insert_with(|| json!({}));
    if let Some(labels) = labels.as_object_mut() {
        labels.entry("batch.kubernetes.io/controller-uid").or_insert_with(|| uid.into());
    }
}

/// Who asks for a certificate is who sent the request.
pub fn signing_request(call: &Call, object: &mut Value) {
    let spec = member_mut(object, "spec");
    spec.insert("username".into(), call.user.username.clone().into());
    spec.insert("groups".into(), json!(call.user.groups));
    for (key, value) in [("uid", json!(call.user.uid)), ("extra", json!(call.user.extra))] {
        let empty =
            value.as_str().is_some_and(str::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty);
        if empty {
            spec.remove(key);
        } else {
            spec.insert(key.into(), value);
        }
    }
}

pub fn signing_request_update(old: &Value, new: &mut Value) {
    new["spec"] = old["spec"].clone();
}
