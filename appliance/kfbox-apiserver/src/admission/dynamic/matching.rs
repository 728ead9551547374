//! Which configurations a request is for: rules, selectors, match conditions
//! (apiserver `pkg/admission/plugin/webhook/{predicates,matchconditions}`, `policy/matching`).

use super::names::{compile, typed};
use super::{
    attributes::{Attributes, Operation},
    forbidden,
};
use crate::{
    cel::{Authorizer, Cel, Expression, MATCH_CONDITIONS_BUDGET, OUT_OF_BUDGET, Scope, Variables},
    object::string_map,
    resources::Resource,
    schema::FieldError,
    selectors,
    status::ApiError,
    store::Key,
};
use kfbox_base::ResourceAttributes;
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    operations: Vec<String>,
    api_groups: Vec<String>,
    api_versions: Vec<String>,
    resources: Vec<String>,
    scope: Option<String>,
    resource_names: Vec<String>,
}

fn lists(list: &[String], item: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == item)
}

impl Rule {
    fn matches(&self, attributes: &Attributes<'_>, resource: &Resource) -> bool {
        let scope = match self.scope.as_deref() {
            None | Some("*") => true,
            // A namespace is cluster-scoped, though admission is told that it is in itself.
            Some("Cluster") => !resource.namespaced,
            Some("Namespaced") => resource.namespaced,
            Some(_) => false,
        };
        let subresource = attributes.subresource.as_str();
        let named = self.resources.iter().any(|entry| {
            let (plural, sub) = entry.split_once('/').unwrap_or((entry, ""));
            (plural == "*" || plural == &*resource.plural) && (sub == "*" || sub == subresource)
        });
        scope
            && named
            && lists(&self.operations, attributes.operation.name())
            && lists(&self.api_groups, &resource.group)
            && lists(&self.api_versions, &resource.version)
            && (self.resource_names.is_empty() || self.resource_names.contains(&attributes.name))
    }
}

/// `matchPolicy`, rules and selectors; of webhooks, policies and bindings alike.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Matcher {
    #[serde(alias = "rules")]
    resource_rules: Vec<Rule>,
    exclude_resource_rules: Vec<Rule>,
    match_policy: Option<String>,
    namespace_selector: Value,
    object_selector: Value,
}

impl Matcher {
    /// The resource, in the version that the rules name, if they name it.
    ///
    /// `any`: no rules mean everything, as in policies.
    pub fn matches(&self, attributes: &Attributes<'_>, any: bool) -> Result<Option<Arc<Resource>>, ApiError> {
        // A namespace that cannot be found matters only to those who would otherwise match.
        let in_namespace = self.in_namespace(attributes);
        if matches!(in_namespace, Ok(false)) || !self.of_object(attributes) {
            return Ok(None);
        }
        if !self.exclude_resource_rules.is_empty() && self.find(&self.exclude_resource_rules, attributes).is_some() {
            return Ok(None);
        }
        let found = if any && self.resource_rules.is_empty() {
            Some(attributes.call.resource.clone())
        } else {
            self.find(&self.resource_rules, attributes)
        };
        match (found, in_namespace) {
            (Some(_), Err(error)) => Err(error),
            (found, _) => Ok(found),
        }
    }

    fn find(&self, rules: &[Rule], attributes: &Attributes<'_>) -> Option<Arc<Resource>> {
        let own = &attributes.call.resource;
        if rules.iter().any(|rule| rule.matches(attributes, own)) {
            return Some(own.clone());
        }
        if self.match_policy.as_deref() != Some("Equivalent") {
            return None;
        }
        rules.iter().find_map(|rule| {
            let same_objects = |r: &&Arc<Resource>| {
                r.collection == own.collection && (r.group != own.group || r.version != own.version)
            };
            attributes.call.registry.all().filter(same_objects).find(|r| rule.matches(attributes, r)).cloned()
        })
    }

    fn in_namespace(&self, attributes: &Attributes<'_>) -> Result<bool, ApiError> {
        let call = attributes.call;
        let is_namespace = &*call.resource.collection == "namespaces";
        if is_empty(&self.namespace_selector) || (attributes.namespace.is_empty() && !is_namespace) {
            return Ok(true);
        }
        let written = matches!(attributes.operation, Operation::Create | Operation::Update);
        if is_namespace && attributes.subresource.is_empty() && written {
            return Ok(selectors::matches(&self.namespace_selector, &labels(&attributes.object)));
        }
        let stored = call.core.store.get("namespaces", &Key::new("", &attributes.namespace));
        let stored = stored.ok_or_else(|| ApiError::not_found("", "namespaces", &attributes.namespace))?;
        let labels: BTreeMap<String, String> =
            stored.labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Ok(selectors::matches(&self.namespace_selector, &labels))
    }

    fn of_object(&self, attributes: &Attributes<'_>) -> bool {
        let selected = |object: &Value| {
            object["metadata"].is_object() && selectors::matches(&self.object_selector, &labels(object))
        };
        is_empty(&self.object_selector) || selected(&attributes.object) || selected(&attributes.old)
    }
}

fn is_empty(selector: &Value) -> bool {
    let none = |field: &str| match &selector[field] {
        Value::Object(members) => members.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    };
    none("matchLabels") && none("matchExpressions")
}

fn labels(object: &Value) -> BTreeMap<String, String> {
    string_map(&object["metadata"]["labels"])
}

/// One of `matchConditions`.
#[derive(Debug, Clone)]
pub struct Condition {
    /// What a stored expression that no longer compiles says.
    expression: Result<Expression, String>,
}

/// `matchConditions`, and what becomes of their errors.
#[derive(Debug, Clone, Default)]
pub struct Conditions(Vec<Condition>);

/// What conditions say of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Matches,
    Excluded,
    Failed(String),
}

const VARIABLES: [&str; 7] =
    ["object", "oldObject", "request", "authorizer", "authorizer.requestResource", "params", "namespaceObject"];

/// What match conditions may name.
fn names(with_params: bool) -> Vec<&'static str> {
    VARIABLES.into_iter().filter(|name| *name != "namespaceObject" && (with_params || *name != "params")).collect()
}

impl Conditions {
    pub fn parse(conditions: &Value, with_params: bool) -> Self {
        let names = names(with_params);
        let scope = Scope { variables: &names, ..Scope::default() };
        let compile = |condition: &Value| {
            let source = condition["expression"].as_str().unwrap_or_default();
            Condition { expression: Expression::compile(source, &scope) }
        };
        Self(conditions.as_array().into_iter().flatten().map(compile).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One condition that is false excludes, whatever the others say; errors count otherwise.
    pub fn judge(&self, variables: &(impl Variables + Sync)) -> Outcome {
        if self.0.is_empty() {
            return Outcome::Matches;
        }
        let judged = crate::cel::on_deep_stack(|| {
            let mut budget = MATCH_CONDITIONS_BUDGET;
            let mut errors = Vec::new();
            for condition in &self.0 {
                let expression = match &condition.expression {
                    Ok(expression) => expression,
                    Err(why) => {
                        errors.push(format!("compilation error: {why}"));
                        continue;
                    }
                };
                let evaluation = expression.evaluate(variables);
                let Some(left) = budget.checked_sub(evaluation.cost) else {
                    return Outcome::Failed(OUT_OF_BUDGET.to_owned());
                };
                budget = left;
                match evaluation.result {
                    Ok(Cel::Bool(true)) => {}
                    Ok(Cel::Bool(false)) => return Outcome::Excluded,
                    Ok(_) => errors.push(failure(expression, "the result is no bool")),
                    Err(error) => errors.push(failure(expression, error)),
                }
            }
            match &errors[..] {
                [] => Outcome::Matches,
                [one] => Outcome::Failed(one.clone()),
                many => Outcome::Failed(format!("[{}]", many.join(", "))),
            }
        });
        judged.unwrap_or_else(|| Outcome::Failed("the match conditions cannot be evaluated at present".to_owned()))
    }
}

pub fn failure(expression: &Expression, error: impl std::fmt::Display) -> String {
    format!("expression '{}' resulted in error: {error}", expression.source())
}

/// The variables that every expression of admission has; made when the first one asks.
pub struct Bindings<'a> {
    pub object: Cel,
    pub old: Cel,
    pub request: Cel,
    pub params: Cel,
    pub namespace: Cel,
    pub authorizer: Option<&'a Authorizer>,
    pub resource: ResourceAttributes,
}

impl<'a> Bindings<'a> {
    pub fn new(attributes: &Attributes<'_>, matched: &Resource, object: &Value, old: &Value) -> Self {
        let call = attributes.call;
        Self {
            object: crate::cel::from_json(object),
            old: crate::cel::from_json(old),
            request: crate::cel::from_json(&Value::Object(attributes.request(matched))),
            params: Cel::Null,
            namespace: Cel::Null,
            authorizer: None,
            resource: ResourceAttributes {
                verb: String::new(),
                group: call.resource.group.to_string(),
                resource: call.resource.plural.to_string(),
                subresource: attributes.subresource.clone(),
                namespace: attributes.namespace.clone(),
                name: attributes.name.clone(),
            },
        }
    }

    pub fn authorized_by(mut self, authorizer: &'a Authorizer) -> Self {
        self.authorizer = Some(authorizer);
        self
    }
}

impl Variables for Bindings<'_> {
    fn get(&self, name: &str) -> Option<Cel> {
        Some(match name {
            "object" => self.object.clone(),
            "oldObject" => self.old.clone(),
            "request" => self.request.clone(),
            "params" => self.params.clone(),
            "namespaceObject" => self.namespace.clone(),
            "authorizer" => self.authorizer?.value(),
            "authorizer.requestResource" => self.authorizer?.request_resource(self.resource.clone()),
            _ => return None,
        })
    }
}

/// Judges the conditions of a webhook; false excludes it.
pub fn check_conditions(
    conditions: &Conditions,
    fails_open: bool,
    attributes: &Attributes<'_>,
    bindings: &Bindings<'_>,
) -> Result<bool, ApiError> {
    match conditions.judge(bindings) {
        Outcome::Matches => Ok(true),
        Outcome::Excluded => Ok(false),
        Outcome::Failed(_) if fails_open => Ok(false),
        Outcome::Failed(why) => {
            let resource = &attributes.call.resource;
            Err(ApiError::forbidden(&resource.group, &resource.plural, &attributes.name, why))
        }
    }
}

/// What is wrong with match conditions that are about to be stored.
pub fn condition_errors(conditions: &Value, path: &str, with_params: bool) -> Vec<FieldError> {
    let names = names(with_params);
    let scope = Scope { variables: &names, ..Scope::default() };
    let list = conditions.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut errors = Vec::new();
    if list.len() > 64 {
        errors.push(FieldError::too_many(path, list.len(), 64));
    }
    let mut seen = std::collections::BTreeSet::new();
    for (at, condition) in list.iter().enumerate() {
        let path = format!("{path}[{at}]");
        let source = condition["expression"].as_str().unwrap_or_default().trim();
        let field = format!("{path}.expression");
        if source.is_empty() {
            errors.push(FieldError::required(&field, ""));
        } else if let Err(error) = compile(source, &scope, &typed(None), &["bool"]) {
            errors.push(FieldError::invalid(&field, &source.into(), &error));
        }
        match condition["name"].as_str().unwrap_or_default() {
            "" => errors.push(FieldError::required(&format!("{path}.name"), "")),
            name if !seen.insert(name) => errors.push(FieldError::duplicate(&format!("{path}.name"), &name.into())),
            _ => {}
        }
    }
    errors
}

/// A denial that the client sees as upstream's `admission.NewForbidden`, with the reason that a rule asked for.
pub fn denied(attributes: &Attributes<'_>, message: &str, reason: &str) -> ApiError {
    let code = match reason {
        "Forbidden" => http::StatusCode::FORBIDDEN,
        "Unauthorized" => http::StatusCode::UNAUTHORIZED,
        "RequestEntityTooLarge" => http::StatusCode::PAYLOAD_TOO_LARGE,
        _ => http::StatusCode::UNPROCESSABLE_ENTITY,
    };
    forbidden(attributes, message).caused_by_message(message).with_reason(code, reason)
}

/// `validateRuleWithOperations`. `complete`: the lists are checked to be there, too.
pub fn rule_errors(rule: &Value, path: &str, complete: bool) -> Vec<FieldError> {
    const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];
    let mut errors = Vec::new();
    let list =
        |field: &str| -> Vec<&str> { rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect() };
    for (field, what) in
        [("operations", "operations"), ("apiGroups", "API groups"), ("apiVersions", "API versions"), ("resources", "")]
    {
        let (items, path) = (list(field), format!("{path}.{field}"));
        if items.is_empty() && complete {
            errors.push(FieldError::required(&path, ""));
        }
        if items.len() > 1 && items.contains(&"*") && !what.is_empty() {
            let why = format!("if '*' is present, must not specify other {what}");
            errors.push(FieldError::invalid(&path, &rule[field], &why));
        }
        for (at, item) in items.iter().enumerate() {
            if item.is_empty() && field != "apiGroups" {
                errors.push(FieldError::required(&format!("{path}[{at}]"), ""));
            } else if field == "operations" && !OPERATIONS.contains(item) {
                errors.push(FieldError::not_supported(&format!("{path}[{at}]"), &(*item).into(), &OPERATIONS));
            }
        }
    }
    let (resources, at) = (list("resources"), format!("{path}.resources"));
    if resources.len() > 1 && resources.contains(&"*/*") {
        let why = "if '*/*' is present, must not specify other resources";
        errors.push(FieldError::invalid(&at, &rule["resources"], why));
    }
    if resources.contains(&"*") && resources.iter().any(|r| *r != "*" && !r.contains('/')) {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.push(FieldError::invalid(&at, &rule["resources"], why));
    }
    if let Some(scope) = rule["scope"].as_str().filter(|scope| !SCOPES.contains(scope)) {
        errors.push(FieldError::not_supported(&format!("{path}.scope"), &scope.into(), &SCOPES));
    }
    errors
}

/// `ValidateLabelSelector`.
pub fn selector_errors(selector: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (at, rule) in selector["matchExpressions"].as_array().into_iter().flatten().enumerate() {
        let path = format!("{path}.matchExpressions[{at}]");
        let none = rule["values"].as_array().is_none_or(Vec::is_empty);
        match rule["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" if none => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(&format!("{path}.values"), why));
            }
            "Exists" | "DoesNotExist" if !none => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(&format!("{path}.values"), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => {
                let why = "not a valid selector operator";
                errors.push(FieldError::invalid(&format!("{path}.operator"), &rule["operator"], why));
            }
        }
        if rule["key"].as_str().is_none_or(str::is_empty) {
            errors.push(FieldError::invalid(&format!("{path}.key"), &rule["key"], "name part must be non-empty"));
        }
    }
    errors
}
