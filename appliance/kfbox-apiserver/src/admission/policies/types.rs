//! Checking a policy's expressions against the kinds that it matches: what does not fit their types is told in the policy's
//! status (apiserver `pkg/admission/plugin/policy/validating/typechecking.go`).

use super::config::Compiled;
use crate::{
    admission::dynamic::typed,
    cel::check::Type,
    resources::{Registry, Resource},
    schema::declare_kind as declare,
};
use serde_json::{Value, json};
use std::sync::Arc;

/// Kinds that one policy is checked against; upstream's.
const KINDS: usize = 10;

/// `status.typeChecking`.
pub fn check(policy: &Value, registry: &Registry) -> Value {
    let kinds = kinds(policy, registry);
    let mut warnings = Vec::new();
    let definition = super::config::Definition::parse(policy);
    let variables = &definition.common.variables;
    for (at, validation) in definition.validations.iter().enumerate() {
        let mut told = |field: &str, expression: &Compiled| {
            let found = kinds.iter().filter_map(|kind| doubt(expression, variables, kind)).collect::<Vec<String>>();
            if !found.is_empty() {
                let field = format!("spec.validations[{at}].{field}");
                warnings.push(json!({"fieldRef": field, "warning": found.join("\n")}));
            }
        };
        told("expression", &validation.expression);
        if let Some(expression) = &validation.message_expression {
            told("messageExpression", expression);
        }
    }
    if warnings.is_empty() { json!({}) } else { json!({"expressionWarnings": warnings}) }
}

/// The kinds that rules without wildcards name.
fn kinds(policy: &Value, registry: &Registry) -> Vec<Arc<Resource>> {
    let words = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let mut kinds: Vec<Arc<Resource>> = Vec::new();
    for rule in policy["spec"]["matchConstraints"]["resourceRules"].as_array().into_iter().flatten() {
        for group in words(&rule["apiGroups"]) {
            for version in words(&rule["apiVersions"]) {
                for resource in words(&rule["resources"]) {
                    let found = registry.find(&group, &version, &resource);
                    if let Some(found) = found.filter(|f| !kinds.iter().any(|k| Arc::ptr_eq(k, f))) {
                        kinds.push(found.clone());
                    }
                }
            }
        }
    }
    kinds.sort_by_key(|kind| (kind.api_version(), kind.kind.clone()));
    kinds.truncate(KINDS);
    kinds
}

/// What the compiler says of an expression where `object` is of this kind.
fn doubt(expression: &Compiled, variables: &[(String, Compiled)], kind: &Resource) -> Option<String> {
    let (Ok(expression), Some(schema)) = (expression, kind.schema()) else { return None };
    let object = declare(schema.root())?.named(&kind.kind);
    let mut names = typed(Some(object));
    for (name, variable) in variables {
        // A variable with errors of its own is told as its policy is written.
        let found = variable.as_ref().ok().and_then(|variable| variable.check(&names).ok());
        names.composed.push((name.clone(), found.map_or(Type::Dyn, |checked| checked.kind)));
    }
    let error = expression.check(&names).err()?;
    Some(format!("{}, Kind={}: {error}", kind.api_version(), kind.kind))
}
