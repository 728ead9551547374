//! Validation against a schema: types, required fields, value rules, list uniqueness, CEL.
//!
//! Messages state the same facts as upstream's (`kube-openapi/pkg/validation/validate`, apiextensions), since clients
//! and people match on them.

use std::collections::HashSet;
use std::sync::OnceLock;

use base64::Engine as _;
use serde_json::{Number, Value};

use super::field::{FieldError, index, join, key};
use super::prune::object_meta;
use super::{ListType, Node, Schema, Type, cel, formats, quantity};

/// Errors past this many tell a person nothing new, and a hostile object could hold millions.
const MAX_ERRORS: usize = 100;

/// A regular expression compiled at its first use: most patterns of a CRD are never met.
#[derive(Debug)]
pub struct Pattern {
    pub source: Box<str>,
    compiled: OnceLock<Option<regex::Regex>>,
}

impl Pattern {
    pub(super) fn new(source: &str) -> Self {
        Pattern { source: source.into(), compiled: OnceLock::new() }
    }

    /// The engine is linear in time; its program is bounded so that a CRD cannot eat the daemon's memory.
    pub(super) fn compile(source: &str) -> Option<regex::Regex> {
        regex::RegexBuilder::new(source).size_limit(4 << 20).dfa_size_limit(1 << 20).build().ok()
    }

    fn matches(&self, text: &str) -> bool {
        self.compiled.get_or_init(|| Self::compile(&self.source)).as_ref().is_none_or(|regex| regex.is_match(text))
    }
}

/// Value rules of a CRD node.
#[derive(Debug, Default)]
pub struct Rules {
    pub one_of: Option<Box<[Value]>>,
    pub pattern: Option<Pattern>,
    pub minimum: Option<(Number, bool)>,
    pub maximum: Option<(Number, bool)>,
    pub multiple_of: Option<f64>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub unique_items: bool,
    pub min_properties: Option<u64>,
    pub max_properties: Option<u64>,
    pub all_of: Box<[Node]>,
    pub any_of: Box<[Node]>,
    pub exactly_one_of: Box<[Node]>,
    pub not: Option<Box<Node>>,
    pub cel: Box<[cel::Rule]>,
}

/// All violations in `value`; `old` enables transition rules and ratcheting. Built-in schemas yield type errors only:
/// their rules are in [`super::validate_builtin`].
pub fn validate(schema: &Schema, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let run = || {
        let mut check = Check { errors: Vec::new(), builtin: schema.is_builtin, budget: cel::Budget::default() };
        check.node(schema.root(), value, old, "", true);
        check.errors
    };
    if !schema.has_rules {
        return run();
    }
    crate::cel::on_deep_stack(run)
        .unwrap_or_else(|| vec![FieldError::forbidden("", "the validation rules cannot be evaluated at present")])
}

struct Check {
    errors: Vec<FieldError>,
    builtin: bool,
    budget: cel::Budget,
}

impl Check {
    fn full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS
    }

    fn node(&mut self, node: &Node, value: &Value, old: Option<&Value>, path: &str, root: bool) {
        if self.full() {
            return;
        }
        if value.is_null() {
            // Go decodes null of a built-in field as absent; CRDs must allow it.
            if !self.builtin && !node.nullable && node.kind != Type::Any {
                self.type_error(node, value, path);
            }
            return;
        }
        if !self.type_holds(node, value) {
            self.type_error(node, value, path);
            return;
        }
        if self.builtin
            && let Value::String(text) = value
            && let Some(why) = undecodable(node, text)
        {
            // The text itself is left out: it may be a secret.
            self.errors.push(FieldError::undecodable(path, why));
            return;
        }
        // What an update leaves as it was is not judged again (upstream's ratcheting), except by transition rules.
        let unchanged = old == Some(value) && !root;
        match value {
            Value::Object(map) => {
                if !self.builtin && !unchanged {
                    for name in &node.required {
                        if !map.contains_key(name.as_ref()) {
                            self.errors.push(FieldError::required(&join(path, name), ""));
                        }
                    }
                }
                for (name, child) in map {
                    let old_child = old.and_then(|o| o.get(name));
                    if let Some(property) = node.property(name) {
                        self.node(property.link.node(), child, old_child, &join(path, name), false);
                    } else if node.embedded && name == "metadata" {
                        if let Some(meta) = object_meta() {
                            let was = std::mem::replace(&mut self.builtin, true);
                            self.node(meta, child, old_child, &join(path, name), false);
                            self.builtin = was;
                        }
                    } else if let super::Additional::Map(link) = &node.additional {
                        self.node(link.node(), child, old_child, &key(path, name), false);
                    }
                }
                if node.embedded && !root && !unchanged {
                    for name in ["apiVersion", "kind"] {
                        if map.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                            self.errors.push(FieldError::required(&join(path, name), "must not be empty"));
                        }
                    }
                }
            }
            Value::Array(items) => {
                let old_items = old.and_then(Value::as_array);
                if let Some(item) = node.item() {
                    for (at, child) in items.iter().enumerate() {
                        let old_child = match node.list {
                            Some(ListType::Map) => old_items.and_then(|all| {
                                all.iter()
                                    .find(|o| node.keys.iter().all(|k| o.get(k.as_ref()) == child.get(k.as_ref())))
                            }),
                            _ => None,
                        };
                        self.node(item, child, old_child, &index(path, at), false);
                    }
                }
                if !self.builtin && !unchanged {
                    self.uniqueness(node, items, path);
                }
            }
            _ => {}
        }
        let Some(rules) = &node.rules else { return };
        if !unchanged {
            self.rules(node, rules, value, path);
        }
        if !self.full() {
            cel::evaluate(node, &rules.cel, value, old, unchanged, path, &mut self.budget, &mut self.errors);
        }
    }

    fn type_holds(&self, node: &Node, value: &Value) -> bool {
        match node.kind {
            Type::Any => true,
            Type::Object => value.is_object(),
            Type::Array => value.is_array(),
            Type::String => value.is_string(),
            Type::Integer => match value {
                Value::Number(n) => {
                    let whole =
                        n.is_i64() || n.is_u64() || (!self.builtin && n.as_f64().is_some_and(|f| f.fract() == 0.0));
                    whole
                        && match node.format.as_deref() {
                            Some("int32") => {
                                n.as_f64().is_some_and(|f| f >= f64::from(i32::MIN) && f <= f64::from(i32::MAX))
                            }
                            _ => !n.is_u64() || n.is_i64(),
                        }
                }
                _ => false,
            },
            Type::Number => value.is_number(),
            Type::Boolean => value.is_boolean(),
            Type::IntOrString => value.is_string() || value.is_i64() || value.is_u64(),
            Type::Quantity => quantity::of(value).is_some(),
        }
    }

    fn type_error(&mut self, node: &Node, value: &Value, path: &str) {
        let wanted = match node.kind {
            Type::Any => "any",
            Type::Object => "object",
            Type::Array => "array",
            Type::String => "string",
            Type::Integer => "integer",
            Type::Number => "number",
            Type::Boolean => "boolean",
            Type::IntOrString => "integer,string",
            Type::Quantity => {
                self.errors.push(FieldError::type_invalid(path, value, "must be a quantity such as 500m, 1.5 or 2Gi"));
                return;
            }
        };
        let got = type_word(value);
        self.errors.push(FieldError::type_invalid(
            path,
            &Value::String(got.to_owned()),
            &format!("{} in body must be of type {wanted}: {got:?}", if path.is_empty() { "value" } else { path }),
        ));
    }

    fn uniqueness(&mut self, node: &Node, items: &[Value], path: &str) {
        let unique = node.rules.as_ref().is_some_and(|r| r.unique_items);
        let mut seen = HashSet::new();
        for (at, item) in items.iter().enumerate() {
            let identity = match node.list {
                Some(ListType::Map) => {
                    let mut keys = serde_json::Map::new();
                    for name in &node.keys {
                        if let Some(value) = item.get(name.as_ref()) {
                            keys.insert(name.to_string(), value.clone());
                        } else if let Some(default) =
                            node.item().and_then(|i| i.property(name)).and_then(|p| p.default.as_deref())
                        {
                            keys.insert(name.to_string(), default.clone());
                        }
                    }
                    Value::Object(keys)
                }
                Some(ListType::Set) => item.clone(),
                _ if unique => item.clone(),
                _ => return,
            };
            if !seen.insert(canonical(&identity)) {
                self.errors.push(FieldError::duplicate(&index(path, at), &identity));
            }
        }
    }

    fn rules(&mut self, node: &Node, rules: &Rules, value: &Value, path: &str) {
        let named = if path.is_empty() { "value" } else { path };
        let mut bad = |detail: String| self.errors.push(FieldError::invalid(path, value, &detail));
        match value {
            Value::String(text) => {
                let chars = text.chars().count() as u64;
                if let Some(limit) = rules.min_length.filter(|limit| chars < *limit) {
                    bad(format!("{named} in body should be at least {limit} chars long"));
                }
                if let Some(pattern) = rules.pattern.as_ref().filter(|p| !p.matches(text)) {
                    bad(format!("{named} in body should match '{}'", pattern.source));
                }
                if let Some(format) = node.format.as_deref().filter(|f| !formats::holds(f, text)) {
                    bad(format!("{named} in body must be of type {format}: {text:?}"));
                }
                if let Some(limit) = rules.max_length.filter(|limit| chars > *limit) {
                    self.errors.push(FieldError::too_long(path, usize::try_from(limit).unwrap_or(usize::MAX)));
                }
            }
            Value::Number(number) => {
                let n = number.as_f64().unwrap_or(f64::NAN);
                let of = |limit: &Number| limit.as_f64().unwrap_or(f64::NAN);
                if let Some((limit, exclusive)) = &rules.minimum
                    && (n < of(limit) || (*exclusive && n <= of(limit)))
                {
                    let word = if *exclusive { "greater than" } else { "greater than or equal to" };
                    bad(format!("{named} in body should be {word} {limit}"));
                }
                if let Some((limit, exclusive)) = &rules.maximum
                    && (n > of(limit) || (*exclusive && n >= of(limit)))
                {
                    let word = if *exclusive { "less than" } else { "less than or equal to" };
                    bad(format!("{named} in body should be {word} {limit}"));
                }
                if let Some(step) = rules.multiple_of
                    && step > 0.0
                    && ((n / step) - (n / step).round()).abs() > 1e-9
                {
                    bad(format!("{named} in body should be a multiple of {step}"));
                }
            }
            Value::Array(items) => {
                let count = items.len() as u64;
                if let Some(limit) = rules.min_items.filter(|limit| count < *limit) {
                    self.errors.push(FieldError::invalid(
                        path,
                        &Value::from(count),
                        &format!("{named} in body should have at least {limit} items"),
                    ));
                }
                if let Some(limit) = rules.max_items.filter(|limit| count > *limit) {
                    self.errors.push(FieldError::too_many(
                        path,
                        items.len(),
                        usize::try_from(limit).unwrap_or(usize::MAX),
                    ));
                }
            }
            Value::Object(map) => {
                let count = map.len() as u64;
                if let Some(limit) = rules.min_properties.filter(|limit| count < *limit) {
                    bad(format!("{named} in body should have at least {limit} properties"));
                }
                if let Some(limit) = rules.max_properties.filter(|limit| count > *limit) {
                    self.errors.push(FieldError::too_many(
                        path,
                        map.len(),
                        usize::try_from(limit).unwrap_or(usize::MAX),
                    ));
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
        if let Some(options) = &rules.one_of
            && !options.iter().any(|option| canonical(option) == canonical(value))
        {
            let words: Vec<String> =
                options.iter().map(|o| o.as_str().map_or_else(|| o.to_string(), ToOwned::to_owned)).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            self.errors.push(FieldError::not_supported(path, value, &words));
        }
        for branch in &rules.all_of {
            self.branch_into(branch, value, path);
        }
        if !rules.any_of.is_empty() && !rules.any_of.iter().any(|b| self.holds(b, value, path)) {
            self.errors.push(FieldError::invalid(
                path,
                value,
                &format!("{named} in body must validate at least one schema (anyOf)"),
            ));
        }
        if !rules.exactly_one_of.is_empty() {
            let count = rules.exactly_one_of.iter().filter(|b| self.holds(b, value, path)).count();
            if count != 1 {
                let found = if count == 0 {
                    "found none valid".to_owned()
                } else {
                    format!("found {count} valid alternatives")
                };
                self.errors.push(FieldError::invalid(
                    path,
                    value,
                    &format!("{named} in body must validate one and only one schema (oneOf). {found}"),
                ));
            }
        }
        if let Some(not) = &rules.not
            && self.holds(not, value, path)
        {
            self.errors.push(FieldError::invalid(
                path,
                value,
                &format!("{named} in body must not validate the schema (not)"),
            ));
        }
    }

    fn branch_into(&mut self, branch: &Node, value: &Value, path: &str) {
        self.node(branch, value, None, path, false);
    }

    fn holds(&self, branch: &Node, value: &Value, path: &str) -> bool {
        let mut inner = Check { errors: Vec::new(), builtin: self.builtin, budget: cel::Budget::default() };
        inner.node(branch, value, None, path, false);
        inner.errors.is_empty()
    }
}

/// Why Go could not read a text into the type of a built-in field.
fn undecodable(node: &Node, text: &str) -> Option<&'static str> {
    match node.format.as_deref() {
        Some("byte") => {
            let plain: String = text.split(['\r', '\n']).collect();
            let holds = base64::engine::general_purpose::STANDARD.decode(plain).is_ok();
            (!holds).then_some("illegal base64 data")
        }
        Some("date-time") => {
            let holds = chrono::DateTime::parse_from_rfc3339(text).is_ok();
            (!holds).then_some("the time is not written as 2006-01-02T15:04:05Z07:00")
        }
        _ => None,
    }
}

/// Upstream's words for JSON types.
pub(super) fn type_word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// JSON with members in order: equal for equal values, and for `1` and `1.0`.
pub(crate) fn canonical(value: &Value) -> String {
    fn write(value: &Value, out: &mut String) {
        match value {
            Value::Object(map) => {
                let mut names: Vec<&String> = map.keys().collect();
                names.sort();
                out.push('{');
                for (at, name) in names.into_iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    out.push_str(&Value::String(name.clone()).to_string());
                    out.push(':');
                    write(&map[name], out);
                }
                out.push('}');
            }
            Value::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    write(item, out);
                }
                out.push(']');
            }
            Value::Number(n) if n.is_f64() && n.as_f64().is_some_and(|f| f.fract() == 0.0 && f.abs() < 9e15) => {
                out.push_str(&format!("{}", n.as_f64().unwrap_or_default()));
            }
            other => out.push_str(&other.to_string()),
        }
    }
    let mut out = String::new();
    write(value, &mut out);
    out
}
