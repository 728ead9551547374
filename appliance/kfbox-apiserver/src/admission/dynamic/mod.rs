//! Admission that users configure: webhooks and policies. Built-in admission comes first in either phase.
//!
//! Guarantees: without a configuration a request pays for one read of a shared pointer; configurations act on the
//! requests that arrive after their write was answered; what a mutation yields is brought to the form of its kind and
//! validated like a client's object; the objects that configure admission are exempt, so that nobody locks himself out.
//!
//! Upstream: <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>,
//! apiserver `pkg/admission/plugin`.

mod attributes;
mod index;
mod matching;
mod names;

pub use attributes::Attributes;
pub use index::{Configs, Dynamic, is_configuration};
pub use matching::{
    Bindings, Conditions, Matcher, Outcome, check_conditions, condition_errors, denied, failure, rule_errors,
    selector_errors,
};
pub use names::{compile, typed};

use super::{policies, webhooks};
use crate::{
    convert,
    negotiate::{decode, read_body},
    object::meta,
    status::ApiError,
    verbs::{Call, DeleteOptions},
};
use axum::body::Body;
use serde_json::{Value, json};
use std::sync::Arc;

/// The configurations that act on this call; none for most calls of most clusters.
fn configs(call: &Call) -> Option<Arc<Configs>> {
    let configs = call.core.dynamic.current();
    let exempt = configs.is_empty() || is_configuration(&call.resource.collection) || is_own(call);
    (!exempt).then_some(configs)
}

/// What the server does of its own accord: no webhook that is down may keep it from cleaning up.
fn is_own(call: &Call) -> bool {
    call.local && call.user.username == "system:apiserver"
}

/// Lets the configured mutations change a new or changed object. True if they did.
pub async fn mutate(call: &Call, subresource: &str, object: &mut Value, old: Option<&Value>) -> Result<bool, ApiError> {
    let Some(configs) = configs(call) else { return Ok(false) };
    if configs.mutating.is_empty() && configs.mutations.is_empty() {
        return Ok(false);
    }
    if is_posted(subresource) {
        return Ok(false);
    }
    let before = object.clone();
    let mut policy_round = policies::Round::default();
    let mut webhook_round = webhooks::Round::default();
    let mut attributes = Attributes::of_write(call, subresource, before.clone(), old.cloned());
    round(&configs, &mut attributes, &mut policy_round, &mut webhook_round).await?;
    let again = policy_round.again || webhook_round.again;
    if attributes.into_object(call, object) {
        settle(call, subresource, &before, object)?;
    }
    if again {
        if old.is_none() && subresource.is_empty() {
            super::on_reinvocation(call, object).await?;
        }
        let settled = object.clone();
        let mut attributes = Attributes::of_write(call, subresource, settled.clone(), old.cloned());
        policy_round.next(&attributes.object);
        webhook_round.next(&attributes.object);
        round(&configs, &mut attributes, &mut policy_round, &mut webhook_round).await?;
        if attributes.into_object(call, object) {
            settle(call, subresource, &settled, object)?;
        }
    }
    Ok(*object != before)
}

/// Policies first, then webhooks.
async fn round(
    configs: &Configs,
    attributes: &mut Attributes<'_>,
    policy_round: &mut policies::Round,
    webhook_round: &mut webhooks::Round,
) -> Result<(), ApiError> {
    policies::mutate(&configs.mutations, attributes, policy_round).await?;
    webhooks::mutate(&configs.mutating, attributes, webhook_round).await
}

/// Brings what mutations made to the form of its kind.
fn settle(call: &Call, subresource: &str, before: &Value, object: &mut Value) -> Result<(), ApiError> {
    attributes::restore(call, subresource, before, object);
    if let Some(schema) = call.resource.schema() {
        crate::schema::prune(&schema, object);
    }
    call.check_shape(object).map_err(ApiError::internal)?;
    call.default(object);
    Ok(())
}

/// Both kinds of mutation on an object that is not stored, and on none at all; again where one asks for it.
async fn mutations(configs: &Configs, attributes: &mut Attributes<'_>) -> Result<(), ApiError> {
    let mut policy_round = policies::Round::default();
    let mut webhook_round = webhooks::Round::default();
    round(configs, attributes, &mut policy_round, &mut webhook_round).await?;
    if policy_round.again || webhook_round.again {
        policy_round.next(&attributes.object);
        webhook_round.next(&attributes.object);
        round(configs, attributes, &mut policy_round, &mut webhook_round).await?;
    }
    Ok(())
}

/// The last word: nothing is changed after this.
pub async fn validate(call: &Call, subresource: &str, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    if is_configuration(&call.resource.collection) {
        index::check(call, object, old)?;
    }
    let Some(configs) = configs(call) else { return Ok(()) };
    if is_posted(subresource) || !configs.validates() {
        return Ok(());
    }
    let attributes = Attributes::of_write(call, subresource, object.clone(), old.cloned());
    validations(&configs, &attributes).await
}

async fn validations(configs: &Configs, attributes: &Attributes<'_>) -> Result<(), ApiError> {
    policies::validate(&configs.policies, attributes).await?;
    webhooks::validate(&configs.validating, attributes).await
}

/// Objects of these are posted beside the one that they change, and were admitted when they arrived.
fn is_posted(subresource: &str) -> bool {
    matches!(subresource, "binding" | "eviction" | "token")
}

pub async fn on_delete(call: &Call, old: &Value, options: &DeleteOptions, dry_run: bool) -> Result<(), ApiError> {
    let Some(configs) = configs(call) else { return Ok(()) };
    // An eviction was admitted as itself; upstream deletes past admission then.
    if &*call.target.subresource == "eviction" {
        return Ok(());
    }
    let mut attributes = Attributes::of_delete(call, old.clone(), options, dry_run);
    mutations(&configs, &mut attributes).await?;
    validations(&configs, &attributes).await
}

/// Before exec, attach, port-forward and proxies open.
pub async fn on_connect(call: &Call) -> Result<(), ApiError> {
    let Some(configs) = configs(call) else { return Ok(()) };
    let mut attributes = Attributes::of_connect(call);
    mutations(&configs, &mut attributes).await?;
    validations(&configs, &attributes).await
}

/// Before the object of a subresource that is posted (binding, eviction, token) is acted on. What comes back is the body
/// to go on with.
pub async fn on_post(call: &Call, body: Body) -> Result<Body, ApiError> {
    let Some(configs) = configs(call) else { return Ok(body) };
    let bytes = read_body(body).await?;
    let object = if bytes.is_empty() { json!({}) } else { decode(&call.headers, &bytes)? };
    let mut attributes = Attributes::of_post(call, object);
    let before = attributes.object.clone();
    mutations(&configs, &mut attributes).await?;
    validations(&configs, &attributes).await?;
    if attributes.object == before {
        return Ok(Body::from(bytes));
    }
    // Whoever reads it goes by the headers that came with the request.
    let text = match crate::negotiate::content_type(&call.headers) {
        crate::protobuf::MEDIA_TYPE => {
            return Err(ApiError::internal("a mutated object of this subresource cannot be told in protobuf"));
        }
        _ => attributes.object.to_string(),
    };
    Ok(Body::from(text))
}

/// A `Binding` that is posted to `bindings`.
pub async fn on_virtual(call: &Call, object: Value) -> Result<Value, ApiError> {
    let Some(configs) = configs(call) else { return Ok(object) };
    let mut attributes = Attributes::of_post(call, object);
    mutations(&configs, &mut attributes).await?;
    validations(&configs, &attributes).await?;
    Ok(attributes.object)
}

/// The stored namespace of a request, as `namespaceObject`.
pub fn namespace(call: &Call, name: &str) -> Option<Value> {
    let stored = call.core.store.get("namespaces", &crate::store::Key::new("", name))?;
    let resource = call.registry.find("", "v1", "namespaces")?;
    let mut namespace = convert::value(resource, &stored);
    if let Some(metadata) = namespace["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        metadata.remove("ownerReferences");
    }
    Some(namespace)
}

/// The name an error is about: that of the request, or of the object, or what it is generated from.
fn told_name<'a>(attributes: &'a Attributes<'_>) -> &'a str {
    let object = &attributes.object;
    [attributes.name.as_str(), meta(object, "name"), meta(object, "generateName"), "Unknown"]
        .into_iter()
        .find(|name| !name.is_empty())
        .unwrap_or("Unknown")
}

/// As upstream's admission forbids.
pub fn forbidden(attributes: &Attributes<'_>, why: impl std::fmt::Display) -> ApiError {
    let resource = &attributes.call.resource;
    ApiError::forbidden(&resource.group, &resource.plural, told_name(attributes), why)
}
