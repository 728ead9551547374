//! NamespaceLifecycle: nothing new in a namespace that is not there or on its way out; three namespaces are immortal.

use super::Request;
use crate::{object::meta, status::ApiError, store::Key};
use serde_json::Value;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub fn admit(request: &Request, object: &Value) -> Result<(), ApiError> {
    let namespace = request.call.namespace();
    if namespace.is_empty() {
        return Ok(());
    }
    let Some(stored) = request.call.core.store.get("namespaces", &Key::new("", namespace)) else {
        return Err(ApiError::not_found("", "namespaces", namespace));
    };
    if stored.fields.first().is_some_and(|phase| &**phase == "Terminating") {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let resource = &request.call.resource;
        let error = ApiError::forbidden(&resource.group, &resource.plural, meta(object, "name"), why);
        return Err(error.caused_by(
            "NamespaceTerminating",
            &format!("namespace {namespace} is being terminated"),
            "metadata.namespace",
        ));
    }
    Ok(())
}

pub fn delete(collection: &str, name: &str) -> Result<(), ApiError> {
    if collection == "namespaces" && IMMORTAL.contains(&name) {
        return Err(ApiError::forbidden("", "namespaces", name, "this namespace may not be deleted"));
    }
    Ok(())
}
