//! What happens to an object between the client's wish and the store: the strategies of the kinds (what upstream's
//! `PrepareForCreate` does) and the built-in admission plugins.

pub mod dynamic;
mod kinds;
mod pods;
pub mod policies;
mod services;
mod webhooks;

pub use services::{Addresses, Reservation};
pub use webhooks::client_errors;

use crate::{
    crds,
    effects::CRDS,
    object::{self, meta},
    schema::FieldError,
    status::ApiError,
    store::Key,
    verbs::Call,
};
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

/// The built-in plugins once more, after webhooks or policies changed a new object: a container that was injected gets
/// what the others have.
pub async fn on_reinvocation(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    match &*call.resource.collection {
        "pods" => pods::on_create(call, object).await,
        _ => Ok(()),
    }
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

/// The names of custom resources (`ValidateObjectMeta`).
pub fn metadata_errors(object: &Value, namespaced: bool) -> Vec<FieldError> {
    const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
                             '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used \
                             for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    let mut errors = Vec::new();
    let name = meta(object, "name");
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else if !is_subdomain(name) {
        errors.push(FieldError::invalid("metadata.name", &json!(name), SUBDOMAIN));
    }
    if namespaced && meta(object, "namespace").is_empty() {
        errors.push(FieldError::required("metadata.namespace", ""));
    }
    for (key, value) in object::string_map(&object["metadata"]["labels"]) {
        if value.len() > 63 || !value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            let why = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
                       and must start and end with an alphanumeric character";
            errors.push(FieldError::invalid(&format!("metadata.labels[{key}]"), &json!(value), why));
        }
    }
    errors
}

pub fn is_subdomain(name: &str) -> bool {
    let label = |part: &str| {
        let bytes = part.as_bytes();
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}
