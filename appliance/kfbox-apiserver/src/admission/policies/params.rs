//! The parameters that a binding names (`CollectParams`).

use super::config::{Binding, Common};
use crate::{
    admission::dynamic::Attributes,
    conversion, convert,
    resources::Resource,
    selectors,
    store::{Key, Object},
};
use serde_json::Value;
use std::sync::Arc;

/// Null stands for a policy that has no parameters. Each is judged by itself.
pub async fn collect(common: &Common, binding: &Binding, attributes: &Attributes<'_>) -> Result<Vec<Value>, String> {
    let Some((group, version, kind)) = &common.param_kind else { return Ok(vec![Value::Null]) };
    let call = attributes.call;
    let reference = &binding.param_ref;
    if !reference.is_object() {
        return Ok(vec![Value::Null]);
    }
    let resource = call.registry.by_kind(group, version, kind).ok_or_else(|| {
        let group_version = if group.is_empty() { version.clone() } else { format!("{group}/{version}") };
        format!("failed to find resource referenced by paramKind: '{group_version}, Kind={kind}'")
    })?;
    let text = |field: &str| reference[field].as_str().filter(|text| !text.is_empty());
    let namespace = match (resource.namespaced, text("namespace")) {
        (true, Some(namespace)) => namespace,
        (true, None) if attributes.namespace.is_empty() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned()
            );
        }
        (true, None) => &attributes.namespace,
        (false, None) => "",
        (false, Some(_)) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
        }
    };
    let store = &call.core.store;
    let found: Vec<Arc<Object>> = match (text("name"), reference["selector"].is_object()) {
        (Some(_), true) => return Err("paramRef.name and paramRef.selector are mutually exclusive".to_owned()),
        (Some(name), false) => store.get(&resource.collection, &Key::new(namespace, name)).into_iter().collect(),
        (None, true) => {
            let within = Some(namespace).filter(|n| !n.is_empty());
            let snapshot = store.list(&resource.collection, within, None, None).map_err(|e| e.to_string())?;
            let selected = |object: &&Arc<Object>| {
                let labels = object.labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
                selectors::matches(&reference["selector"], &labels)
            };
            snapshot.objects.iter().filter(selected).cloned().collect()
        }
        (None, false) => return Err("one of name or selector must be provided".to_owned()),
    };
    if found.is_empty() && text("parameterNotFoundAction") == Some("Deny") {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    read(attributes, resource, found).await
}

async fn read(attributes: &Attributes<'_>, resource: &Resource, found: Vec<Arc<Object>>) -> Result<Vec<Value>, String> {
    let objects = conversion::read_all(&attributes.call.core, resource, found).await.map_err(|e| e.to_string())?;
    Ok(objects.iter().map(|object| convert::value(resource, object)).collect())
}
