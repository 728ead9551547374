//! What happens to an object between the client's wish and the store: the strategies of the kinds (what upstream's
//! `PrepareForCreate` does) and the built-in admission plugins.

mod kinds;
mod pods;
mod services;

pub use services::{Addresses, Reservation};

use crate::{crds, effects::CRDS, object::meta, status::ApiError, store::Key, verbs::Call};
use serde_json::{Value, json};

/// Namespaces that may not be deleted (upstream's NamespaceLifecycle).
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Prepares and mutates a new object. What is reserved stays so until the answer is written.
pub async fn on_create(call: &Call, object: &mut Value) -> Result<Vec<Reservation>, ApiError> {
    check_namespace(call, object)?;
    crds::check_serving(call)?;
    let mut reservations = Vec::new();
    match &*call.resource.collection {
        "namespaces" => kinds::namespace(object),
        "pods" => pods::on_create(call, object).await?,
        "services" => reservations = services::on_create(call, object)?,
        "secrets" => kinds::secret(object),
        "persistentvolumeclaims" => kinds::claim(call, object),
        "persistentvolumes" => object["status"] = json!({"phase": "Pending"}),
        "jobs.batch" => kinds::job(object),
        "certificatesigningrequests.certificates.k8s.io" => kinds::signing_request(call, object),
        CRDS => crds::on_create(call, object)?,
        _ => {}
    }
    Ok(reservations)
}

pub async fn on_update(
    call: &Call,
    subresource: &str,
    old: &Value,
    new: &mut Value,
) -> Result<Vec<Reservation>, ApiError> {
    match (&*call.resource.collection, subresource) {
        ("namespaces", "") => kinds::namespace_update(old, new),
        ("services", "") => return services::on_update(call, old, new),
        ("secrets", "") => kinds::secret(new),
        ("pods", "") => pods::on_update(old, new),
        ("persistentvolumeclaims", "") => kinds::claim_update(old, new),
        ("certificatesigningrequests.certificates.k8s.io", _) => kinds::signing_request_update(old, new),
        (CRDS, "") => crds::on_update(call, old, new)?,
        _ => {}
    }
    Ok(Vec::new())
}

/// Checks that need more than the object: who writes, and what else is there.
pub fn validate(call: &Call, new: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let forbid =
        |why: String| Err(ApiError::forbidden(&call.resource.group, &call.resource.plural, meta(new, "name"), why));
    let rbac = &call.core.rbac;
    let checked = match &*call.resource.collection {
        "roles.rbac.authorization.k8s.io" | "clusterroles.rbac.authorization.k8s.io" => {
            rbac.check_role_write(&call.user, old, new)
        }
        "rolebindings.rbac.authorization.k8s.io" | "clusterrolebindings.rbac.authorization.k8s.io" => {
            rbac.check_binding_write(&call.user, old, new)
        }
        _ => Ok(()),
    };
    checked.or_else(forbid)
}

pub fn on_delete(call: &Call, old: &Value) -> Result<(), ApiError> {
    let name = meta(old, "name");
    if &*call.resource.collection == "namespaces" && IMMORTAL.contains(&name) {
        return Err(ApiError::forbidden("", "namespaces", name, "this namespace may not be deleted"));
    }
    Ok(())
}

fn check_namespace(call: &Call, object: &Value) -> Result<(), ApiError> {
    let namespace = call.namespace();
    if namespace.is_empty() {
        return Ok(());
    }
    let Some(stored) = call.core.store.get("namespaces", &Key::new("", namespace)) else {
        return Err(ApiError::not_found("", "namespaces", namespace));
    };
    if stored.fields.first().is_some_and(|phase| &**phase == "Terminating") {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let error = ApiError::forbidden(&call.resource.group, &call.resource.plural, meta(object, "name"), why);
        return Err(error.caused_by(
            "NamespaceTerminating",
            &format!("namespace {namespace} is being terminated"),
            "metadata.namespace",
        ));
    }
    Ok(())
}
