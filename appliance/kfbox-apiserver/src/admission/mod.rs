//! What happens to an object between the client's wish and the store: the built-in admission plugins, first those that
//! change the object and then those that only judge it, each phase in upstream's order (`AllOrderedPlugins` in
//! `pkg/kubeapiserver/options`), and the strategies of the kinds (what upstream's `PrepareForCreate` does). Quotas are
//! charged last, by [`charge`], just before the write.

mod amounts;
mod certificates;
mod claim_resize;
mod default_classes;
mod default_tolerations;
pub mod dynamic;
mod kinds;
mod limit_ranger;
mod namespace_lifecycle;
mod new_nodes;
mod pod_resources;
mod pod_security;
mod pods;
pub mod policies;
mod priority;
pub mod quota;
mod runtime_class;
mod service_account;
mod service_families;
mod services;
mod storage_protection;
mod webhooks;

pub use services::Addresses;
pub use webhooks::client_errors;

use crate::{crds, effects::CRDS, object::meta, status::ApiError, verbs::Call};
use serde_json::{Value, json};

/// Holds what was promised to an object, such as an address or a share of a quota, until its write is answered.
pub struct Reservation(#[expect(dead_code, reason = "held for its drop")] Box<dyn Send + Sync>);

/// What a plugin is asked about: a write of an object, new or over an old one.
pub struct Request<'a> {
    call: &'a Call,
    /// Empty for the object itself.
    subresource: &'a str,
    old: Option<&'a Value>,
    name: String,
}

impl<'a> Request<'a> {
    fn new(call: &'a Call, subresource: &'a str, object: &Value, old: Option<&'a Value>) -> Self {
        Self { call, subresource, old, name: meta(object, "name").to_owned() }
    }

    /// A write of objects of this collection themselves, not of a subresource.
    fn is(&self, collection: &str) -> bool {
        self.subresource.is_empty() && *self.call.resource.collection == *collection
    }

    fn creates(&self, collection: &str) -> bool {
        self.old.is_none() && self.is(collection)
    }

    fn forbid(&self, why: String) -> ApiError {
        ApiError::forbidden(&self.call.resource.group, &self.call.resource.plural, &self.name, why)
    }

    /// Once, also when a write is tried again.
    fn warn(&self, text: String) {
        let mut warnings = self.call.warnings.lock();
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }
}

/// The plugins that change objects.
async fn mutate(request: &Request<'_>, object: &mut Value) -> Result<(), ApiError> {
    limit_ranger::mutate(request, object)?;
    service_account::mutate(request, object).await?;
    new_nodes::mutate(request, object);
    priority::mutate(request, object)?;
    default_tolerations::mutate(request, object);
    default_classes::storage(request, object)?;
    storage_protection::mutate(request, object);
    runtime_class::mutate(request, object)?;
    default_classes::ingress(request, object)
}

type Validate = fn(&Request, &Value) -> Result<(), ApiError>;

/// The plugins that judge objects as they would be stored.
const VALIDATING: [Validate; 7] = [
    limit_ranger::validate,
    pod_security::validate,
    priority::validate,
    claim_resize::validate,
    runtime_class::validate,
    certificates::validate,
    services::external_addresses,
];

/// Prepares and mutates a new object. What is reserved stays so until the answer is written.
pub async fn on_create(call: &Call, object: &mut Value) -> Result<Vec<Reservation>, ApiError> {
    let request = Request::new(call, "", object, None);
    namespace_lifecycle::admit(&request, object)?;
    crds::check_serving(call)?;
    mutate(&request, object).await?;
    match &*call.resource.collection {
        "namespaces" => kinds::namespace(object),
        "pods" => pods::on_create(object),
        "services" => return Ok(held(services::on_create(call, object)?)),
        "secrets" => kinds::secret(object),
        "persistentvolumeclaims" | "persistentvolumes" => object["status"] = json!({"phase": "Pending"}),
        "jobs.batch" => kinds::job(object),
        "certificatesigningrequests.certificates.k8s.io" => kinds::signing_request(call, object),
        crate::aggregation::COLLECTION => crate::aggregation::on_create(object),
        CRDS => crds::on_create(call, object)?,
        _ => {}
    }
    Ok(Vec::new())
}

fn held(reservations: Vec<services::Reservation>) -> Vec<Reservation> {
    reservations.into_iter().map(|one| Reservation(Box::new(one))).collect()
}

/// The built-in plugins once more, after webhooks or policies changed a new object: a container that was injected gets
/// what the others have.
pub async fn on_reinvocation(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let request = Request::new(call, "", object, None);
    mutate(&request, object).await?;
    if &*call.resource.collection == "pods" {
        pods::on_create(object);
    }
    Ok(())
}

pub async fn on_update(
    call: &Call,
    subresource: &str,
    old: &Value,
    new: &mut Value,
) -> Result<Vec<Reservation>, ApiError> {
    mutate(&Request::new(call, subresource, old, Some(old)), new).await?;
    match (&*call.resource.collection, subresource) {
        ("namespaces", "") => kinds::namespace_update(old, new),
        ("services", "") => return Ok(held(services::on_update(call, old, new)?)),
        ("secrets", "") => kinds::secret(new),
        ("pods", "") => pods::on_update(old, new),
        ("persistentvolumeclaims", "") => kinds::claim_update(old, new),
        ("certificatesigningrequests.certificates.k8s.io", _) => kinds::signing_request_update(old, new),
        ("horizontalpodautoscalers.autoscaling", "") => crate::convert::keep_status(old, new),
        (CRDS, "") => crds::on_update(call, old, new)?,
        _ => {}
    }
    Ok(Vec::new())
}

/// Checks that need more than the object: who writes, and what else is there.
pub fn validate(call: &Call, new: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let request = Request::new(call, &call.target.subresource, new, old);
    VALIDATING.iter().try_for_each(|plugin| plugin(&request, new))?;
    let rbac = &call.core.rbac;
    if &*call.resource.collection == crate::aggregation::COLLECTION {
        crate::aggregation::check(new)?;
    }
    let checked = match &*call.resource.collection {
        "roles.rbac.authorization.k8s.io" | "clusterroles.rbac.authorization.k8s.io" => {
            rbac.check_role_write(&call.user, old, new)
        }
        "rolebindings.rbac.authorization.k8s.io" | "clusterrolebindings.rbac.authorization.k8s.io" => {
            rbac.check_binding_write(&call.user, old, new)
        }
        _ => Ok(()),
    };
    checked.map_err(|why| request.forbid(why))
}

/// Takes the object's share of the quotas, when all else is decided: what is refused later must not use up room.
pub fn charge(call: &Call, new: &Value, old: Option<&Value>) -> Result<Option<Reservation>, ApiError> {
    let request = Request::new(call, &call.target.subresource, new, old);
    Ok(quota::charge(&request, new)?.map(|charge| Reservation(Box::new(charge))))
}

pub fn on_delete(call: &Call, old: &Value) -> Result<(), ApiError> {
    namespace_lifecycle::delete(&call.resource.collection, meta(old, "name"))
}

fn push(object: &mut Value, list: &str, item: Value) {
    match object[list].as_array_mut() {
        Some(list) => list.push(item),
        None => object[list] = json!([item]),
    }
}
