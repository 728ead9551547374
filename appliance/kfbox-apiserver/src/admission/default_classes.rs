//! DefaultStorageClass and DefaultIngressClass: what names no class gets the one marked as default, the newest of several.

use super::Request;
use crate::{object::meta, status::ApiError};
use serde_json::Value;

const STORAGE: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const INGRESS: [&str; 1] = ["ingressclass.kubernetes.io/is-default-class"];

pub fn storage(request: &Request, claim: &mut Value) -> Result<(), ApiError> {
    if !request.creates("persistentvolumeclaims") || has_class(claim) {
        return Ok(());
    }
    if let Some(class) = default_class(request, "storageclasses.storage.k8s.io", &STORAGE)? {
        claim["spec"]["storageClassName"] = class.into();
    }
    Ok(())
}

pub fn ingress(request: &Request, ingress: &mut Value) -> Result<(), ApiError> {
    if !request.creates("ingresses.networking.k8s.io")
        || !ingress["spec"]["ingressClassName"].is_null()
        || ingress["metadata"]["annotations"]["kubernetes.io/ingress.class"].is_string()
    {
        return Ok(());
    }
    if let Some(class) = default_class(request, "ingressclasses.networking.k8s.io", &INGRESS)? {
        ingress["spec"]["ingressClassName"] = class.into();
    }
    Ok(())
}

/// Also the empty class is one: no volume is made for it.
fn has_class(claim: &Value) -> bool {
    !claim["spec"]["storageClassName"].is_null()
        || claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].is_string()
}

fn default_class(request: &Request, collection: &str, marks: &[&str]) -> Result<Option<String>, ApiError> {
    let classes = request.call.core.store.list(collection, None, None, None)?.objects;
    let newest = classes
        .iter()
        .map(|class| class.value())
        .filter(|class| marks.iter().any(|mark| class["metadata"]["annotations"][mark] == "true"))
        .max_by_key(|class| {
            (meta(class, "creationTimestamp").to_owned(), std::cmp::Reverse(meta(class, "name").to_owned()))
        });
    Ok(newest.map(|class| meta(&class, "name").to_owned()))
}
