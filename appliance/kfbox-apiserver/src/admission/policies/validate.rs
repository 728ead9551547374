//! Validating policies (apiserver `pkg/admission/plugin/policy/validating/{dispatcher,validator}.go`).

use super::{
    config::{Binding, Definition, Policy, Validation},
    evaluate::{Session, Stop},
    params,
};
use crate::{
    admission::dynamic::{Attributes, Bindings, Outcome, denied, namespace},
    cel::{Authorizer, Cel, from_json, on_deep_stack},
    resources::Resource,
    status::ApiError,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// The longest message of a `messageExpression`; a longer one gives way to `message`.
const MESSAGE: usize = 5 << 10;
/// The longest value of an audit annotation.
const ANNOTATION: usize = 10 << 10;
/// Failures told to the audit log for one request.
const FAILURES: usize = 50;

/// What one policy says of one request.
#[derive(Default)]
struct Verdict {
    /// Place of the validation, message, reason.
    denials: Vec<(usize, String, String)>,
    annotations: Vec<(String, String)>,
    /// Of annotations, which deny whatever the binding's actions are.
    errors: Vec<String>,
}

struct Denial {
    text: String,
    reason: String,
}

pub async fn validate(policies: &[Arc<Policy>], attributes: &Attributes<'_>) -> Result<(), ApiError> {
    let mut denials: Vec<Denial> = Vec::new();
    let mut audited = Vec::new();
    for policy in policies {
        let definition = &*policy.definition;
        let (name, common) = (&definition.common.name, &definition.common);
        let configured = |why: &str, binding: Option<&Binding>| {
            (!common.fails_open).then(|| match binding {
                None => (format!("failed to configure policy: {why}"), None),
                Some(binding) => (format!("failed to configure binding: {why}"), Some(binding.name.clone())),
            })
        };
        let mut refuse = |message: String, binding: Option<&str>, reason: String| {
            let text = match binding {
                Some(binding) => {
                    format!("ValidatingAdmissionPolicy '{name}' with binding '{binding}' denied request: {message}")
                }
                None => format!("ValidatingAdmissionPolicy '{name}' denied request: {message}"),
            };
            denials.push(Denial { text, reason });
        };
        let matched = match common.matcher.matches(attributes, true) {
            Ok(Some(matched)) => matched,
            Ok(None) => continue,
            Err(error) => {
                if let Some((message, _)) = configured(&error.to_string(), None) {
                    refuse(message, None, String::new());
                }
                continue;
            }
        };
        let mut annotations: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for binding in &policy.bindings {
            match binding.matcher.as_ref().map(|matcher| matcher.matches(attributes, true)) {
                None | Some(Ok(Some(_))) => {}
                Some(Ok(None)) => continue,
                Some(Err(error)) => {
                    if let Some((message, binding)) = configured(&error.to_string(), Some(binding)) {
                        refuse(message, binding.as_deref(), String::new());
                    }
                    continue;
                }
            }
            let verdicts = match judge(definition, binding, attributes, &matched).await {
                Ok(verdicts) => verdicts,
                Err(why) => {
                    if let Some((message, binding)) = configured(&why, Some(binding)) {
                        refuse(message, binding.as_deref(), String::new());
                    }
                    continue;
                }
            };
            for verdict in verdicts {
                for (at, message, reason) in verdict.denials {
                    for action in &binding.actions {
                        match action.as_str() {
                            "Deny" => refuse(message.clone(), Some(&binding.name), reason.clone()),
                            "Warn" => attributes.call.warn(format!(
                                "Validation failed for ValidatingAdmissionPolicy '{name}' with binding '{}': {message}",
                                binding.name
                            )),
                            _ => audited.push(json!({
                                "message": message, "policy": name, "binding": binding.name, "expressionIndex": at,
                                "validationActions": binding.actions,
                            })),
                        }
                    }
                }
                for (key, value) in verdict.annotations {
                    let values = annotations.entry(key).or_default();
                    if !values.contains(&value) {
                        values.push(value);
                    }
                }
                for message in verdict.errors {
                    refuse(message, Some(&binding.name), String::new());
                }
            }
        }
        for (key, values) in annotations {
            attributes.call.annotate(format!("{name}/{key}"), values.join(", "));
        }
    }
    if !audited.is_empty() {
        audited.truncate(FAILURES);
        let value = Value::Array(audited).to_string();
        attributes.call.annotate("validation.policy.admission.k8s.io/validation_failure", value);
    }
    match denials.first() {
        None => Ok(()),
        Some(first) => {
            let reason = if first.reason.is_empty() { "Invalid" } else { &first.reason };
            Err(denied(attributes, &first.text, reason))
        }
    }
}

/// What the policy says with each of the binding's parameters.
async fn judge(
    definition: &Definition,
    binding: &Binding,
    attributes: &Attributes<'_>,
    matched: &Resource,
) -> Result<Vec<Verdict>, String> {
    let call = attributes.call;
    let params = params::collect(&definition.common, binding, attributes).await?;
    if params.is_empty() {
        return Ok(Vec::new());
    }
    let objects = attributes.versioned(matched).await;
    let (object, old) = objects.map_err(|error| format!("failed to convert object version: {error}"))?;
    let authorizer = Authorizer::new(call.core.rbac.clone(), call.user.clone());
    let mut bindings = Bindings::new(attributes, matched, &object, &old).authorized_by(&authorizer);
    if &*call.resource.collection != "namespaces" && !attributes.namespace.is_empty() {
        let namespace = namespace(call, &attributes.namespace);
        bindings.namespace = namespace.as_ref().map_or(Cel::Null, from_json);
    }
    let mut verdicts = Vec::with_capacity(params.len());
    for param in params {
        bindings.params = from_json(&param);
        let verdict = match definition.common.conditions.judge(&bindings) {
            Outcome::Excluded => continue,
            Outcome::Failed(why) => definition.failed(why),
            Outcome::Matches => on_deep_stack(|| decide(definition, &bindings))
                .unwrap_or_else(|| definition.failed("the policy cannot be evaluated at present".to_owned())),
        };
        verdicts.push(verdict);
    }
    Ok(verdicts)
}

impl Definition {
    /// An error as the failure policy takes it.
    fn failed(&self, why: String) -> Verdict {
        let mut verdict = Verdict::default();
        if !self.common.fails_open {
            verdict.denials.push((0, why, String::new()));
        }
        verdict
    }
}

fn decide(definition: &Definition, bindings: &Bindings<'_>) -> Verdict {
    let session = Session::new(&definition.common, bindings);
    let fails_open = definition.common.fails_open;
    let mut results = Vec::with_capacity(definition.validations.len());
    for validation in &definition.validations {
        match session.evaluate(&validation.expression) {
            Err(Stop::OutOfBudget) => return definition.failed(Stop::OutOfBudget.text().to_owned()),
            result => results.push(result),
        }
    }
    let mut verdict = Verdict::default();
    for (at, (validation, result)) in definition.validations.iter().zip(results).enumerate() {
        match result {
            Ok(Cel::Bool(true)) => {}
            Err(_) if fails_open => {}
            Err(stop) => verdict.denials.push((at, stop.text().to_owned(), String::new())),
            Ok(_) => match explain(validation, &session) {
                Ok(message) => verdict.denials.push((at, message, validation.reason.clone())),
                Err(_) if fails_open => {}
                Err(why) => verdict.denials.push((at, why, String::new())),
            },
        }
    }
    // Annotations have a budget to themselves.
    let session = Session::new(&definition.common, bindings);
    for (key, expression) in &definition.annotations {
        match session.evaluate(expression) {
            Ok(Cel::String(value)) if value.trim().is_empty() => {}
            Ok(Cel::String(value)) => {
                let value = value.trim();
                let end = (0..=ANNOTATION.min(value.len())).rev().find(|at| value.is_char_boundary(*at)).unwrap_or(0);
                verdict.annotations.push((key.clone(), value[..end].to_owned()));
            }
            Ok(Cel::Null) => {}
            Err(Stop::OutOfBudget) => return definition.failed(Stop::OutOfBudget.text().to_owned()),
            Err(_) if fails_open => {}
            Err(Stop::Failed(why)) => verdict.errors.push(why),
            Ok(other) => {
                let source = expression.as_ref().map(|e| e.source().to_owned()).unwrap_or_default();
                verdict.errors.push(format!(
                    "valueExpression '{source}' resulted in unsupported return type: {}. Return type must be either \
                     string or null.",
                    other.type_of()
                ));
            }
        }
    }
    verdict
}

/// Why a validation failed, in the words of its author.
fn explain(validation: &Validation, session: &Session<'_>) -> Result<String, String> {
    if let Some(expression) = &validation.message_expression {
        match session.evaluate(expression) {
            Ok(Cel::String(message)) => {
                let message = message.trim();
                if !message.is_empty() && message.len() <= MESSAGE && !message.contains('\n') {
                    return Ok(message.to_owned());
                }
            }
            Err(Stop::OutOfBudget) => return Err(format!("failed messageExpression: {}", Stop::OutOfBudget.text())),
            _ => {}
        }
    }
    if !validation.message.trim().is_empty() {
        return Ok(validation.message.trim().to_owned());
    }
    Ok(format!("failed expression: {}", validation.source.trim()))
}
