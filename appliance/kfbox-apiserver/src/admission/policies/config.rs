//! Policies and bindings: what is read from them, and what is wrong with them
//! (`pkg/apis/admissionregistration/validation`).

use crate::{
    admission::dynamic::{Conditions, Matcher, compile, condition_errors, rule_errors, selector_errors, typed},
    cel::{
        Expression, Scope,
        check::{Names, Type},
    },
    object::meta,
    schema::FieldError,
};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeSet, sync::Arc};

/// An expression that was stored and may not compile any more.
pub type Compiled = Result<Expression, String>;

/// A ValidatingAdmissionPolicy with the bindings that put it to work.
pub struct Policy {
    pub definition: Arc<Definition>,
    pub bindings: Vec<Arc<Binding>>,
}

/// A MutatingAdmissionPolicy with the bindings that put it to work.
pub struct MutatingPolicy {
    pub definition: Arc<MutationDefinition>,
    pub bindings: Vec<Arc<Binding>>,
}

/// What both kinds of policy have.
pub struct Common {
    pub name: String,
    pub fails_open: bool,
    pub matcher: Matcher,
    pub conditions: Conditions,
    /// Group, version and kind of parameters.
    pub param_kind: Option<(String, String, String)>,
    pub variables: Vec<(String, Compiled)>,
}

pub struct Definition {
    pub common: Common,
    pub validations: Vec<Validation>,
    pub annotations: Vec<(String, Compiled)>,
}

pub struct Validation {
    pub source: String,
    pub expression: Compiled,
    pub message: String,
    pub message_expression: Option<Compiled>,
    pub reason: String,
}

pub struct MutationDefinition {
    pub common: Common,
    pub mutations: Vec<Mutation>,
    pub reinvocable: bool,
}

pub struct Mutation {
    pub expression: Compiled,
    /// Else it is a JSON patch.
    pub applies: bool,
}

#[derive(Debug)]
pub struct Binding {
    pub name: String,
    pub policy: String,
    /// None binds the policy to all that it matches.
    pub matcher: Option<Matcher>,
    pub param_ref: Value,
    pub actions: Vec<String>,
}

const OBJECTS: [&str; 6] =
    ["object", "oldObject", "request", "namespaceObject", "authorizer", "authorizer.requestResource"];

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Names in scope; messages and mutations have no authorizer, parameters are there where there is a kind for them.
fn names(with_params: bool, with_authorizer: bool) -> Vec<&'static str> {
    let mut names: Vec<&str> =
        OBJECTS.into_iter().filter(|name| with_authorizer || !name.starts_with("authorizer")).collect();
    if with_params {
        names.push("params");
    }
    names
}

fn group_version(api_version: &str) -> (String, String) {
    match api_version.split_once('/') {
        Some((group, version)) => (group.to_owned(), version.to_owned()),
        None => (String::new(), api_version.to_owned()),
    }
}

impl Common {
    fn parse(object: &Value) -> Self {
        let spec = &object["spec"];
        let kind = &spec["paramKind"];
        let param_kind = kind.is_object().then(|| {
            let (group, version) = group_version(kind["apiVersion"].as_str().unwrap_or_default());
            (group, version, text(&kind["kind"]))
        });
        let with_params = param_kind.is_some();
        Self {
            name: meta(object, "name").to_owned(),
            fails_open: spec["failurePolicy"] == "Ignore",
            matcher: Matcher::deserialize(&spec["matchConstraints"]).unwrap_or_default(),
            conditions: Conditions::parse(&spec["matchConditions"], with_params),
            variables: variables(spec, with_params).0,
            param_kind,
        }
    }
}

/// The variables in their order, each of which knows those before it; and all their names.
fn variables(spec: &Value, with_params: bool) -> (Vec<(String, Compiled)>, Vec<String>) {
    let names = names(with_params, true);
    let mut known: Vec<String> = Vec::new();
    let mut compiled = Vec::new();
    for variable in spec["variables"].as_array().into_iter().flatten() {
        let scope = Scope { variables: &names, composed: Some(&known), types: true };
        let expression = Expression::compile(variable["expression"].as_str().unwrap_or_default(), &scope);
        compiled.push((text(&variable["name"]), expression));
        known.push(text(&variable["name"]));
    }
    (compiled, known)
}

impl Definition {
    pub fn parse(object: &Value) -> Self {
        let common = Common::parse(object);
        let spec = &object["spec"];
        let with_params = common.param_kind.is_some();
        let known: Vec<String> = common.variables.iter().map(|(name, _)| name.clone()).collect();
        let (all, plain) = (names(with_params, true), names(with_params, false));
        let scope = Scope { variables: &all, composed: Some(&known), types: false };
        let of_message = Scope { variables: &plain, composed: Some(&known), types: false };
        let compiled = |source: &Value, scope: &Scope<'_>| -> Compiled {
            Expression::compile(source.as_str().unwrap_or_default(), scope)
        };
        let validations = spec["validations"].as_array().into_iter().flatten().map(|validation| Validation {
            source: text(&validation["expression"]),
            expression: compiled(&validation["expression"], &scope),
            message: text(&validation["message"]),
            message_expression: validation["messageExpression"]
                .as_str()
                .filter(|source| !source.trim().is_empty())
                .map(|_| compiled(&validation["messageExpression"], &of_message)),
            reason: text(&validation["reason"]),
        });
        let annotations = spec["auditAnnotations"].as_array().into_iter().flatten().map(|annotation| {
            let expression = compiled(&annotation["valueExpression"], &of_message);
            (text(&annotation["key"]), expression)
        });
        Self { validations: validations.collect(), annotations: annotations.collect(), common }
    }
}

impl MutationDefinition {
    pub fn parse(object: &Value) -> Self {
        let common = Common::parse(object);
        let known: Vec<String> = common.variables.iter().map(|(name, _)| name.clone()).collect();
        let names = names(common.param_kind.is_some(), true);
        let scope = Scope { variables: &names, composed: Some(&known), types: true };
        let mutations = object["spec"]["mutations"].as_array().into_iter().flatten().map(|mutation| {
            let applies = mutation["patchType"] == "ApplyConfiguration";
            let field = if applies { "applyConfiguration" } else { "jsonPatch" };
            let source = mutation[field]["expression"].as_str().unwrap_or_default();
            Mutation { expression: Expression::compile(source, &scope), applies }
        });
        let reinvocable = object["spec"]["reinvocationPolicy"] == "IfNeeded";
        Self { mutations: mutations.collect(), reinvocable, common }
    }
}

impl Binding {
    pub fn parse(object: &Value) -> Self {
        let spec = &object["spec"];
        let matched = &spec["matchResources"];
        Self {
            name: meta(object, "name").to_owned(),
            policy: text(&spec["policyName"]),
            matcher: matched.is_object().then(|| Matcher::deserialize(matched).unwrap_or_default()),
            param_ref: spec["paramRef"].clone(),
            actions: spec["validationActions"].as_array().into_iter().flatten().map(text).collect(),
        }
    }
}

/// What is wrong with the parts that both kinds of policy have; and the types of what their expressions may name.
fn common_errors(spec: &Value) -> (Vec<FieldError>, Names) {
    let mut errors = Vec::new();
    let mut types = typed(None);
    if !spec["failurePolicy"].is_null() && spec["failurePolicy"] != "Fail" && spec["failurePolicy"] != "Ignore" {
        errors.push(FieldError::not_supported("spec.failurePolicy", &spec["failurePolicy"], &["Fail", "Ignore"]));
    }
    let kind = &spec["paramKind"];
    if kind.is_object() {
        for field in ["apiVersion", "kind"] {
            if kind[field].as_str().is_none_or(str::is_empty) {
                errors.push(FieldError::required(&format!("spec.paramKind.{field}"), ""));
            }
        }
    }
    let constraints = &spec["matchConstraints"];
    if constraints.is_object() {
        errors.extend(resource_errors(constraints, "spec.matchConstraints"));
        if constraints["resourceRules"].as_array().is_none_or(Vec::is_empty) {
            errors.push(FieldError::required("spec.matchConstraints.resourceRules", ""));
        }
    } else {
        errors.push(FieldError::required("spec.matchConstraints", ""));
    }
    errors.extend(condition_errors(&spec["matchConditions"], "spec.matchConditions", kind.is_object()));
    let names = names(kind.is_object(), true);
    let mut known: Vec<String> = Vec::new();
    for (at, variable) in spec["variables"].as_array().into_iter().flatten().enumerate() {
        let path = format!("spec.variables[{at}]");
        let name = variable["name"].as_str().unwrap_or_default();
        if name.trim().is_empty() {
            errors.push(FieldError::required(&format!("{path}.name"), "name is not specified"));
        } else if !is_identifier(name) {
            let why = "name is not a valid CEL identifier";
            errors.push(FieldError::invalid(&format!("{path}.name"), &name.into(), why));
        }
        let source = variable["expression"].as_str().unwrap_or_default();
        let scope = Scope { variables: &names, composed: Some(&known), types: true };
        let mut kind = Type::Dyn;
        if source.trim().is_empty() {
            errors.push(FieldError::required(&format!("{path}.expression"), "expression is not specified"));
        } else {
            match compile(source, &scope, &types, &[]) {
                Ok(checked) => kind = checked.kind,
                Err(why) => errors.push(FieldError::invalid(&format!("{path}.expression"), &source.into(), &why)),
            }
        }
        known.push(name.to_owned());
        types.composed.push((name.to_owned(), kind));
    }
    (errors, types)
}

fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn resource_errors(matched: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let policy = &matched["matchPolicy"];
    if !policy.is_null() && policy != "Exact" && policy != "Equivalent" {
        errors.push(FieldError::not_supported(&format!("{path}.matchPolicy"), policy, &["Equivalent", "Exact"]));
    }
    for field in ["namespaceSelector", "objectSelector"] {
        errors.extend(selector_errors(&matched[field], &format!("{path}.{field}")));
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (at, rule) in matched[field].as_array().into_iter().flatten().enumerate() {
            errors.extend(rule_errors(rule, &format!("{path}.{field}[{at}]"), true));
        }
    }
    errors
}

pub fn definition_errors(object: &Value) -> Vec<FieldError> {
    let spec = &object["spec"];
    let (mut errors, types) = common_errors(spec);
    let list = |field: &str| spec[field].as_array().map(Vec::as_slice).unwrap_or_default();
    let (validations, annotations) = (list("validations"), list("auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        let why = "validations or auditAnnotations must contain at least one item";
        errors.push(FieldError::required("spec.validations", why));
        errors.push(FieldError::required("spec.auditAnnotations", why));
    }
    let with_params = spec["paramKind"].is_object();
    let known: Vec<String> = list("variables").iter().map(|variable| text(&variable["name"])).collect();
    let (all, plain) = (names(with_params, true), names(with_params, false));
    let scope = Scope { variables: &all, composed: Some(&known), types: false };
    let of_message = Scope { variables: &plain, composed: Some(&known), types: false };
    for (at, validation) in validations.iter().enumerate() {
        let path = format!("spec.validations[{at}]");
        let field = |name: &str| (format!("{path}.{name}"), validation[name].as_str().unwrap_or_default());
        let (at, source) = field("expression");
        if source.trim().is_empty() {
            errors.push(FieldError::required(&at, "expression is not specified"));
        } else if let Err(why) = compile(source, &scope, &types, &["bool"]) {
            errors.push(FieldError::invalid(&at, &source.into(), &why));
        }
        let (at, source) = field("messageExpression");
        if !source.is_empty() && source.trim().is_empty() {
            errors.push(FieldError::invalid(&at, &source.into(), "must be non-empty if specified"));
        } else if !source.is_empty()
            && let Err(why) = compile(source, &of_message, &types, &["string"])
        {
            errors.push(FieldError::invalid(&at, &source.into(), &why));
        }
        let (at, message) = field("message");
        if !message.is_empty() && message.trim().is_empty() {
            errors.push(FieldError::invalid(&at, &message.into(), "message must be non-empty if specified"));
        } else if message.trim().contains(['\n', '\r']) {
            errors.push(FieldError::invalid(&at, &message.into(), "message must not contain line breaks"));
        }
        const REASONS: [&str; 4] = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
        let (at, reason) = field("reason");
        if !reason.is_empty() && !REASONS.contains(&reason) {
            errors.push(FieldError::not_supported(&at, &reason.into(), &REASONS));
        }
    }
    if annotations.len() > 20 {
        let why = "must not have more than 20 auditAnnotations";
        errors.push(FieldError::invalid("spec.auditAnnotations", &spec["auditAnnotations"], why));
    }
    let mut keys = BTreeSet::new();
    for (at, annotation) in annotations.iter().enumerate() {
        let path = format!("spec.auditAnnotations[{at}]");
        let key = annotation["key"].as_str().unwrap_or_default();
        if key.is_empty() {
            errors.push(FieldError::required(&format!("{path}.key"), ""));
        } else if !keys.insert(key) {
            errors.push(FieldError::duplicate(&format!("{path}.key"), &key.into()));
        }
        let source = annotation["valueExpression"].as_str().unwrap_or_default();
        let at = format!("{path}.valueExpression");
        if source.trim().is_empty() {
            errors.push(FieldError::required(&at, "valueExpression is not specified"));
        } else if source.len() > 5 << 10 {
            errors.push(FieldError::too_long(&at, 5 << 10));
        } else if let Err(why) = compile(source, &of_message, &types, &["string", "null"]) {
            errors.push(FieldError::invalid(&at, &source.into(), &why));
        }
    }
    errors
}

pub fn mutation_errors(object: &Value) -> Vec<FieldError> {
    let spec = &object["spec"];
    let (mut errors, types) = common_errors(spec);
    let mutations = spec["mutations"].as_array().map(Vec::as_slice).unwrap_or_default();
    if mutations.is_empty() {
        errors.push(FieldError::required("spec.mutations", "mutations must contain at least one item"));
    }
    const POLICIES: [&str; 2] = ["IfNeeded", "Never"];
    match spec["reinvocationPolicy"].as_str() {
        None | Some("") => errors.push(FieldError::required("spec.reinvocationPolicy", "")),
        Some(policy) if !POLICIES.contains(&policy) => {
            errors.push(FieldError::not_supported("spec.reinvocationPolicy", &policy.into(), &POLICIES));
        }
        Some(_) => {}
    }
    let known: Vec<String> =
        spec["variables"].as_array().into_iter().flatten().map(|variable| text(&variable["name"])).collect();
    let names = names(spec["paramKind"].is_object(), true);
    let scope = Scope { variables: &names, composed: Some(&known), types: true };
    for (at, mutation) in mutations.iter().enumerate() {
        let path = format!("spec.mutations[{at}]");
        let (field, other, kind) = match mutation["patchType"].as_str() {
            Some("ApplyConfiguration") => ("applyConfiguration", "jsonPatch", "Object"),
            Some("JSONPatch") => ("jsonPatch", "applyConfiguration", "list(JSONPatch)"),
            None | Some("") => {
                errors.push(FieldError::required(&format!("{path}.patchType"), ""));
                continue;
            }
            Some(other) => {
                let known = ["ApplyConfiguration", "JSONPatch"];
                errors.push(FieldError::not_supported(&format!("{path}.patchType"), &other.into(), &known));
                continue;
            }
        };
        if !mutation[other].is_null() {
            let why = format!("must not be specified when patchType is {}", text(&mutation["patchType"]));
            errors.push(FieldError::invalid(&format!("{path}.{other}"), &Value::Null, &why));
        }
        let source = mutation[field]["expression"].as_str().unwrap_or_default();
        let at = format!("{path}.{field}.expression");
        if source.trim().is_empty() {
            errors.push(FieldError::required(&at, "expression is not specified"));
        } else if let Err(why) = compile(source, &scope, &types, &[kind]) {
            errors.push(FieldError::invalid(&at, &source.into(), &why));
        }
    }
    errors
}

/// `validating`: bindings of validations say what to do, those of mutations do not.
pub fn binding_errors(object: &Value, validating: bool) -> Vec<FieldError> {
    const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
    let spec = &object["spec"];
    let mut errors = Vec::new();
    if spec["policyName"].as_str().is_none_or(str::is_empty) {
        errors.push(FieldError::required("spec.policyName", ""));
    }
    let reference = &spec["paramRef"];
    if reference.is_object() {
        let named = reference["name"].as_str().is_some_and(|name| !name.is_empty());
        let selects = reference["selector"].is_object();
        if named && selects {
            errors.push(FieldError::forbidden("spec.paramRef.name", "name and selector are mutually exclusive"));
        } else if !named && !selects {
            errors.push(FieldError::required("spec.paramRef", "one of name or selector must be specified"));
        }
        errors.extend(selector_errors(&reference["selector"], "spec.paramRef.selector"));
        match reference["parameterNotFoundAction"].as_str() {
            Some("Allow" | "Deny") => {}
            None => errors.push(FieldError::required("spec.paramRef.parameterNotFoundAction", "")),
            Some(other) => errors.push(FieldError::not_supported(
                "spec.paramRef.parameterNotFoundAction",
                &other.into(),
                &["Deny", "Allow"],
            )),
        }
    }
    if spec["matchResources"].is_object() {
        errors.extend(resource_errors(&spec["matchResources"], "spec.matchResources"));
    }
    if validating {
        let actions = spec["validationActions"].as_array().map(Vec::as_slice).unwrap_or_default();
        for (at, action) in actions.iter().enumerate() {
            let field = format!("spec.validationActions[{at}]");
            if action.as_str().is_none_or(|action| !ACTIONS.contains(&action)) {
                errors.push(FieldError::not_supported(&field, action, &ACTIONS));
            }
            if actions[..at].contains(action) {
                errors.push(FieldError::duplicate(&field, action));
            }
        }
        let has = |action: &str| actions.iter().any(|a| a == action);
        if has("Deny") && has("Warn") {
            let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API \
                       response and headers serves no purpose)";
            errors.push(FieldError::invalid("spec.validationActions", &spec["validationActions"], why));
        }
        if actions.is_empty() {
            errors.push(FieldError::required("spec.validationActions", "at least one validation action is required"));
        }
    }
    errors
}
