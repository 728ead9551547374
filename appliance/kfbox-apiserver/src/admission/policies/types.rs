//! Checking a policy's expressions against the kinds that it matches: fields that do not exist are told in the policy's
//! status (apiserver `pkg/admission/plugin/policy/validating/typechecking.go`).

use super::config::Compiled;
use crate::{
    resources::{Registry, Resource},
    schema::Node,
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
    for (at, validation) in definition.validations.iter().enumerate() {
        let mut told = |field: &str, expression: &Compiled| {
            let found = kinds.iter().flat_map(|kind| undefined(expression, kind)).collect::<Vec<String>>();
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

/// What upstream's compiler says of members that the kind does not have.
fn undefined(expression: &Compiled, kind: &Resource) -> Vec<String> {
    let (Ok(expression), Some(schema)) = (expression, kind.schema()) else { return Vec::new() };
    let mut found = Vec::new();
    for path in expression.paths(&["object", "oldObject"]) {
        if let Some(field) = missing(schema.root(), &path) {
            let error = place(expression.source(), &field);
            let group_version = kind.api_version();
            found.push(format!("{group_version}, Kind={}: {error}", kind.kind));
        }
    }
    found.dedup();
    found
}

/// The first step that leads nowhere.
fn missing(root: &Node, path: &[String]) -> Option<String> {
    let mut node = root;
    for step in path {
        if node.is_open() {
            return None;
        }
        match node.member(step) {
            Some(member) => node = member,
            // Scalars have no members; that is another error, which evaluation tells.
            None if node.properties.is_empty() => return None,
            None => return Some(step.clone()),
        }
    }
    None
}

fn place(source: &str, field: &str) -> String {
    let dotted = format!(".{field}");
    let at = source
        .match_indices(&dotted)
        .map(|(at, _)| at)
        .find(|at| !source[at + dotted.len()..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(0);
    let start = source[..at].rfind('\n').map_or(0, |end| end + 1);
    let (line, column) = (source[..at].matches('\n').count() + 1, source[start..at].chars().count());
    let text = source[start..].lines().next().unwrap_or_default();
    format!("ERROR: <input>:{line}:{}: undefined field '{field}'\n | {text}\n | {}^", column + 1, ".".repeat(column))
}
