//! Mutating policies (apiserver `pkg/admission/plugin/policy/mutating`).

use super::{
    config::{Binding, MutatingPolicy, Mutation, MutationDefinition},
    evaluate::{Session, Stop},
    params,
};
use crate::{
    admission::dynamic::{Attributes, Bindings, Outcome, namespace},
    apply,
    cel::{Authorizer, Cel, from_json, on_deep_stack, to_json},
    patch,
    resources::Resource,
    schema::Schema,
    status::ApiError,
};
use http::StatusCode;
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc};

/// Owns what is applied for as long as that takes; ownership as the request had it is put back.
const MANAGER: &str = "mutating-admission-policy";

/// What one pass over the policies needs to know of the one before.
#[derive(Default)]
pub struct Round {
    second: bool,
    pub again: bool,
    invoked: BTreeSet<(String, String)>,
    reinvoke: BTreeSet<(String, String)>,
    last: Value,
}

impl Round {
    /// Begins the second pass, on the object as it is now.
    pub fn next(&mut self, object: &Value) {
        self.second = true;
        if *object != self.last {
            self.reinvoke.append(&mut self.invoked);
        }
    }
}

/// An error of one policy, as the request is told of it.
struct Refusal {
    policy: String,
    binding: Option<String>,
    why: String,
}

impl Refusal {
    fn text(&self) -> String {
        match &self.binding {
            Some(binding) => format!("policy '{}' with binding '{binding}' denied request: {}", self.policy, self.why),
            None => format!("policy {:?} denied request: {}", self.policy, self.why),
        }
    }
}

pub async fn mutate(
    policies: &[Arc<MutatingPolicy>],
    attributes: &mut Attributes<'_>,
    round: &mut Round,
) -> Result<(), ApiError> {
    let mut refusals = Vec::new();
    for policy in policies {
        let common = &policy.definition.common;
        let refuse = |why: String, binding: Option<&Binding>| Refusal {
            policy: common.name.clone(),
            binding: binding.map(|binding| binding.name.clone()),
            why,
        };
        // There is nothing to change in what is deleted or connected to.
        if attributes.object.is_null() {
            continue;
        }
        let matched = match common.matcher.matches(attributes, true) {
            Ok(Some(matched)) => matched,
            Ok(None) => continue,
            Err(error) => {
                if !common.fails_open {
                    refusals.push(refuse(format!("failed to configure policy: {error}"), None));
                }
                continue;
            }
        };
        for binding in &policy.bindings {
            let id = (common.name.clone(), binding.name.clone());
            if round.second && !round.reinvoke.contains(&id) {
                continue;
            }
            let outcome = match binding.matcher.as_ref().map(|matcher| matcher.matches(attributes, true)) {
                Some(Ok(None)) => continue,
                Some(Err(error)) => Err(format!("failed to configure binding: {error}")),
                None | Some(Ok(Some(_))) => act(&policy.definition, binding, attributes, &matched).await,
            };
            match outcome {
                Ok(true) => {
                    round.reinvoke.append(&mut round.invoked);
                    round.again = true;
                }
                Ok(false) => {}
                Err(_) if common.fails_open => {}
                Err(why) => refusals.push(refuse(why, Some(binding))),
            }
            if policy.definition.reinvocable {
                round.invoked.insert(id);
            }
        }
    }
    round.last = attributes.object.clone();
    let Some(first) = refusals.first() else { return Ok(()) };
    let resource = &attributes.call.resource;
    let causes: Vec<Value> = refusals.iter().map(|refusal| json!({"message": refusal.text()})).collect();
    let mut details = serde_json::Map::new();
    for (field, value) in [("name", attributes.name.as_str()), ("group", &resource.group), ("kind", &resource.plural)] {
        if !value.is_empty() {
            details.insert(field.into(), value.into());
        }
    }
    details.insert("causes".into(), causes.into());
    Err(ApiError::new(StatusCode::FORBIDDEN, "Forbidden", first.text()).with_details(details))
}

/// Applies the policy's mutations with each parameter; true if the object changed.
async fn act(
    definition: &MutationDefinition,
    binding: &Binding,
    attributes: &mut Attributes<'_>,
    matched: &Arc<Resource>,
) -> Result<bool, String> {
    let call = attributes.call;
    let params = params::collect(&definition.common, binding, attributes)
        .await
        .map_err(|why| format!("failed to configure binding: {why}"))?;
    let schema = matched.schema().unwrap_or_else(Schema::open);
    let before = attributes.object.clone();
    for param in params {
        let (object, old) = attributes.versioned(matched).await.map_err(|error| error.to_string())?;
        let namespace = namespace(call, &attributes.namespace).filter(|_| &*call.resource.collection != "namespaces");
        let authorizer = Authorizer::new(call.core.rbac.clone(), call.user.clone());
        let attributes_now = &*attributes;
        let mutated = on_deep_stack(|| {
            let mut object = object;
            for mutation in &definition.mutations {
                let mut bindings = Bindings::new(attributes_now, matched, &object, &old).authorized_by(&authorizer);
                bindings.params = from_json(&param);
                bindings.namespace = namespace.as_ref().map_or(Cel::Null, from_json);
                match definition.common.conditions.judge(&bindings) {
                    Outcome::Matches => {}
                    Outcome::Excluded => break,
                    Outcome::Failed(why) => return Err(why),
                }
                let session = Session::new(&definition.common, &bindings);
                object = change(mutation, &session, &object, &schema, &matched.api_version())?;
            }
            Ok(object)
        });
        let mutated = mutated.unwrap_or_else(|| Err("the policy cannot be evaluated at present".to_owned()))?;
        attributes.object = attributes.back(mutated, matched).await.map_err(|error| error.to_string())?;
    }
    Ok(attributes.object != before)
}

fn change(
    mutation: &Mutation,
    session: &Session<'_>,
    object: &Value,
    schema: &Schema,
    api_version: &str,
) -> Result<Value, String> {
    let value = session.evaluate(&mutation.expression).map_err(|stop| match stop {
        Stop::Failed(why) => why,
        Stop::OutOfBudget => Stop::OutOfBudget.text().to_owned(),
    })?;
    let json = to_json(&value).ok_or("the result of the mutation has no form in JSON")?;
    if !mutation.applies {
        let Value::Array(operations) = &json else {
            return Err(format!("unexpected evaluation result type: {}", value.type_of()));
        };
        if operations.is_empty() {
            return Ok(object.clone());
        }
        return patch::json(object, &json).map_err(|error| format!("JSON Patch: {error}"));
    }
    let Value::Object(mut applied) = json else {
        return Err(format!("unexpected evaluation result type: {}", value.type_of()));
    };
    for field in ["apiVersion", "kind"] {
        applied.insert(field.into(), object[field].clone());
    }
    let applied = Value::Object(applied);
    let request = apply::ApplyRequest {
        schema,
        live: Some(object),
        applied: &applied,
        manager: MANAGER,
        force: true,
        subresource: "",
        api_version,
        now: chrono::Utc::now(),
    };
    let mut merged = apply::apply(request).map_err(|error| format!("invalid ApplyConfiguration: {error}"))?;
    if let Some(metadata) = merged["metadata"].as_object_mut() {
        match object["metadata"].get("managedFields") {
            Some(fields) => drop(metadata.insert("managedFields".into(), fields.clone())),
            None => drop(metadata.remove("managedFields")),
        }
    }
    Ok(merged)
}
