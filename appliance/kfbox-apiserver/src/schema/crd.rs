//! Schemas of custom resources: from the OpenAPI v3 of a CRD to the shared node model, with upstream's checks that the
//! schema is structural.
//!
//! Equal subtrees are shared between all CRDs: the pod template in each of a dozen job kinds is held once.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::check::{Pattern, Rules};
use super::field::{FieldError, index, join, key};
use super::prune::OBJECT_META;
use super::{Additional, Link, ListType, Node, Property, Schema, Type, cel, cel_types, type_index};

/// Nesting of a schema; upstream's JSON decoder refuses deeper bodies long before.
const MAX_DEPTH: usize = 128;

/// Nodes by content, so that equal ones are one. A key holds the addresses of child nodes, which live as long as their
/// parent does.
static SHARED: LazyLock<Mutex<HashMap<[u8; 16], Weak<Node>>>> = LazyLock::new(Mutex::default);

fn share(node: Node) -> Arc<Node> {
    let digest = Sha256::digest(signature(&node).as_bytes());
    let mut id = [0_u8; 16];
    id.copy_from_slice(&digest[..16]);
    let mut shared = SHARED.lock();
    if let Some(found) = shared.get(&id).and_then(Weak::upgrade) {
        return found;
    }
    if shared.len() > 1024 && shared.len() == shared.capacity() {
        shared.retain(|_, weak| weak.strong_count() > 0);
    }
    let node = Arc::new(node);
    shared.insert(id, Arc::downgrade(&node));
    node
}

/// How many different nodes all schemas together hold.
#[cfg(test)]
pub(super) fn distinct() -> usize {
    SHARED.lock().values().filter(|weak| weak.strong_count() > 0).count()
}

fn signature(node: &Node) -> String {
    use std::fmt::Write as _;
    let link = |link: &Link| match link {
        Link::Shared(node) => format!("{:p}", Arc::as_ptr(node)),
        Link::Builtin(index) => format!("#{index}"),
    };
    let mut out = format!(
        "{:?}|{:?}|{:?}|{:?}|{:?}|{}{}{}{}|{:?}|",
        node.kind,
        node.format,
        node.required,
        node.list,
        node.keys,
        node.atomic,
        node.preserve,
        node.embedded,
        node.nullable,
        node.rules
    );
    match &node.additional {
        Additional::Closed => out.push('c'),
        Additional::Open => out.push('o'),
        Additional::Map(inner) => out.push_str(&link(inner)),
    }
    if let Some(items) = &node.items {
        let _ = write!(out, "|i{}", link(items));
    }
    for p in &node.properties {
        let _ = write!(out, "|{:?}:{}:{}:{:?}:{:?}", p.name, link(&p.link), p.strategy, p.merge_key, p.default);
    }
    out
}

/// The schema of a CRD. Accepts the CRD itself (its storage version is returned, all versions are checked), one entry of
/// `spec.versions`, or an OpenAPI v3 schema.
#[cfg(test)]
pub fn from_crd(value: &Value) -> Result<Arc<Schema>, Vec<FieldError>> {
    from_crd_update(value, None)
}

/// As `from_crd`; what is wrong with the rules of the definition of before is not told again.
pub fn from_crd_update(value: &Value, old: Option<&Value>) -> Result<Arc<Schema>, Vec<FieldError>> {
    if let Some(versions) = value.pointer("/spec/versions").and_then(Value::as_array) {
        let (mut found, mut errors) = (None, Vec::new());
        for (at, version) in versions.iter().enumerate() {
            let before = old.and_then(|old| old.pointer("/spec/versions")?.as_array()).into_iter().flatten();
            let before = before.into_iter().find(|before| before.get("name") == version.get("name"));
            let before = before.and_then(|before| before.pointer("/schema/openAPIV3Schema"));
            match from_version(version, &index("spec.versions", at), Strictness::Written(before)) {
                Ok(schema) => {
                    if found.is_none() || version.get("storage") == Some(&Value::Bool(true)) {
                        found = Some(schema);
                    }
                }
                Err(more) => errors.extend(more),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        return found.ok_or_else(|| vec![FieldError::required("spec.versions", "must have at least one version")]);
    }
    if value.get("schema").is_some() || value.get("served").is_some() {
        return from_version(value, "", Strictness::Written(None));
    }
    root(value.get("openAPIV3Schema").unwrap_or(value), "", Strictness::Written(None))
}

/// Whether a schema is being written, and must be structural, or was stored, perhaps by an earlier release.
#[derive(Clone, Copy)]
enum Strictness<'a> {
    /// In place of this one.
    Written(Option<&'a Value>),
    Stored,
}

/// The schema of version `version` of a CRD.
pub fn from_crd_version(crd: &Value, version: &str) -> Result<Arc<Schema>, Vec<FieldError>> {
    let versions = crd.pointer("/spec/versions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    match versions.iter().enumerate().find(|(_, v)| v.get("name").and_then(Value::as_str) == Some(version)) {
        Some((at, entry)) => from_version(entry, &index("spec.versions", at), Strictness::Stored),
        None => Err(vec![FieldError::not_found("spec.versions", &Value::String(version.to_owned()))]),
    }
}

fn from_version(version: &Value, path: &str, strictness: Strictness<'_>) -> Result<Arc<Schema>, Vec<FieldError>> {
    match version.pointer("/schema/openAPIV3Schema") {
        Some(schema) => root(schema, &join(path, "schema.openAPIV3Schema"), strictness),
        None => Err(vec![FieldError::required(&join(path, "schema.openAPIV3Schema"), "")]),
    }
}

pub(super) const RULES: &str = "x-kubernetes-validations";

/// Whether there are CEL rules anywhere below.
fn has_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.contains_key(RULES) || map.values().any(has_rules),
        Value::Array(items) => items.iter().any(has_rules),
        _ => false,
    }
}

fn root(schema: &Value, path: &str, strictness: Strictness<'_>) -> Result<Arc<Schema>, Vec<FieldError>> {
    if matches!(strictness, Strictness::Written(_)) {
        let errors = super::structural::check(schema, path);
        if !errors.is_empty() {
            return Err(errors);
        }
    }
    if !has_rules(schema) {
        return build(schema, path, false);
    }
    let checked = || {
        let built = build(schema, path, true)?;
        match strictness {
            Strictness::Written(old) if old != Some(schema) => check_rules(&built, old, path)?,
            _ => {}
        }
        Ok(built)
    };
    crate::cel::on_deep_stack(checked).unwrap_or_else(|| {
        Err(vec![FieldError::forbidden(path, "the validation rules of this schema cannot be compiled")])
    })
}

/// Types and cost of the rules. Errors of rules that are stored with the same errors are left out.
fn check_rules(built: &Schema, old: Option<&Value>, path: &str) -> Result<(), Vec<FieldError>> {
    let mut found = cel_types::check(built.root(), path);
    if !found.is_empty()
        && let Some(old) = old
        && let Ok(old) = build(old, path, true)
    {
        let known = cel_types::check(old.root(), path);
        found.retain(|new| {
            !known.iter().any(|old| {
                (&old.rule, &old.error.field, old.error.reason) == (&new.rule, &new.error.field, new.error.reason)
            })
        });
    }
    if found.is_empty() { Ok(()) } else { Err(found.into_iter().map(|finding| finding.error).collect()) }
}

fn build(schema: &Value, path: &str, has_rules: bool) -> Result<Arc<Schema>, Vec<FieldError>> {
    let mut builder = Builder { errors: Vec::new(), names: HashMap::new(), patterns: HashSet::new() };
    let mut node = builder.node(schema, path, 0);
    if !builder.errors.is_empty() {
        return Err(builder.errors);
    }
    dress_root(&mut node);
    Ok(Arc::new(Schema { root: Link::Shared(Arc::new(node)), is_builtin: false, has_rules }))
}

/// Every object has `apiVersion`, `kind` and upstream's metadata, whatever the schema says of them.
fn dress_root(node: &mut Node) {
    let mut properties: Vec<Property> = std::mem::take(&mut node.properties).into_vec();
    let string = share(Node::of(Type::String));
    for name in ["apiVersion", "kind"] {
        if !properties.iter().any(|p| &*p.name == name) {
            properties.push(plain(name.into(), Link::Shared(string.clone())));
        }
    }
    if let Some(meta) = type_index(OBJECT_META) {
        properties.retain(|p| &*p.name != "metadata");
        properties.push(plain("metadata".into(), Link::Builtin(meta)));
    }
    properties.sort_by(|a, b| a.name.cmp(&b.name));
    node.properties = properties.into_boxed_slice();
}

pub(super) fn open_schema() -> Schema {
    let mut node = Node::of(Type::Object);
    node.preserve = true;
    dress_root(&mut node);
    Schema { root: Link::Shared(Arc::new(node)), is_builtin: false, has_rules: false }
}

fn plain(name: Arc<str>, link: Link) -> Property {
    Property { name, link, strategy: 0, merge_key: None, default: None, atomic: false }
}

struct Builder {
    errors: Vec<FieldError>,
    names: HashMap<String, Arc<str>>,
    /// Patterns already compiled once for their syntax.
    patterns: HashSet<String>,
}

impl Builder {
    fn name(&mut self, text: &str) -> Arc<str> {
        if let Some(name) = self.names.get(text) {
            return name.clone();
        }
        let name: Arc<str> = text.into();
        self.names.insert(text.to_owned(), name.clone());
        name
    }

    fn error(&mut self, error: FieldError) {
        if self.errors.len() < 100 {
            self.errors.push(error);
        }
    }

    fn node(&mut self, schema: &Value, path: &str, depth: usize) -> Node {
        let Some(map) = schema.as_object() else {
            self.error(FieldError::invalid(path, schema, "must be a JSON schema"));
            return Node::of(Type::Any);
        };
        if depth > MAX_DEPTH {
            self.error(FieldError::forbidden(path, "schema is nested too deeply"));
            return Node::of(Type::Any);
        }
        for forbidden in ["$ref", "definitions", "dependencies", "id", "patternProperties", "additionalItems"] {
            if map.get(forbidden).is_some_and(|v| !v.is_null() && v != "") {
                self.error(FieldError::forbidden(&join(path, forbidden), &format!("{forbidden} is not supported")));
            }
        }
        let flag = |name: &str| map.get(name) == Some(&Value::Bool(true));
        let text = |name: &str| map.get(name).and_then(Value::as_str).filter(|s| !s.is_empty());
        let int_or_string = flag("x-kubernetes-int-or-string");
        let preserve = flag("x-kubernetes-preserve-unknown-fields");
        let kind = match text("type") {
            _ if int_or_string => Type::IntOrString,
            Some("object") => Type::Object,
            Some("array") => Type::Array,
            Some("string") => Type::String,
            Some("integer") => Type::Integer,
            Some("number") => Type::Number,
            Some("boolean") => Type::Boolean,
            Some(other) => {
                let supported = ["array", "boolean", "integer", "number", "object", "string"];
                self.error(FieldError::not_supported(&join(path, "type"), &Value::from(other), &supported));
                Type::Any
            }
            None => Type::Any,
        };
        let mut node = Node::of(kind);
        node.preserve = preserve;
        node.embedded = flag("x-kubernetes-embedded-resource");
        node.nullable = flag("nullable");
        node.format = text("format").map(|f| self.name(f));
        node.atomic = text("x-kubernetes-map-type") == Some("atomic");
        node.required = strings(map.get("required")).map(|name| self.name(name)).collect();
        self.members(&mut node, map, path, depth);
        self.items(&mut node, map, path, depth);
        let rules = self.rules(map, path, depth);
        node.rules = rules.map(Arc::new);
        node
    }

    fn members(&mut self, node: &mut Node, map: &Map<String, Value>, path: &str, depth: usize) {
        let mut properties = Vec::new();
        for (name, child) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let at = key(&join(path, "properties"), name);
            let child_node = share(self.node(child, &at, depth + 1));
            let mut property = plain(self.name(name), Link::Shared(child_node));
            if let Some(default) = child.get("default") {
                let mut errors = Vec::new();
                let probe = Schema { root: property.link.clone(), is_builtin: false, has_rules: false };
                let mut filled = default.clone();
                super::default(&probe, &mut filled);
                if depth + 1 < MAX_DEPTH && !default.is_null() {
                    errors = super::validate(&probe, &filled, None);
                }
                for error in errors {
                    let at = join(&at, "default");
                    let field = if error.field.is_empty() { at } else { format!("{at}.{}", error.field) };
                    self.error(FieldError { field, ..error });
                }
                property.default = Some(Arc::new(default.clone()));
            }
            properties.push(property);
        }
        properties.sort_by(|a, b| a.name.cmp(&b.name));
        node.properties = properties.into_boxed_slice();
        let at = join(path, "additionalProperties");
        node.additional = match map.get("additionalProperties") {
            Some(schema @ Value::Object(_)) => {
                if !node.properties.is_empty() {
                    self.error(FieldError::forbidden(&at, "additionalProperties and properties are mutual exclusive"));
                }
                Additional::Map(Link::Shared(share(self.node(schema, &at, depth + 1))))
            }
            Some(Value::Bool(true)) => Additional::Open,
            Some(Value::Bool(false)) => {
                self.error(FieldError::forbidden(&at, "additionalProperties cannot be set to false"));
                Additional::Closed
            }
            _ if node.preserve => Additional::Open,
            _ => Additional::Closed,
        };
    }

    fn items(&mut self, node: &mut Node, map: &Map<String, Value>, path: &str, depth: usize) {
        let at = join(path, "items");
        match map.get("items") {
            Some(schema @ Value::Object(_)) => {
                node.items = Some(Link::Shared(share(self.node(schema, &at, depth + 1))));
            }
            Some(other) if !other.is_null() => {
                self.error(FieldError::forbidden(&at, "items must be a schema object and not an array"));
            }
            _ if node.kind == Type::Array => self.error(FieldError::required(&at, "must be specified")),
            _ => {}
        }
        node.list = match map.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("map") => Some(ListType::Map),
            Some("set") => Some(ListType::Set),
            Some("atomic") => Some(ListType::Atomic),
            Some(other) => {
                let at = join(path, "x-kubernetes-list-type");
                self.error(FieldError::not_supported(&at, &Value::from(other), &["atomic", "set", "map"]));
                None
            }
            None => None,
        };
        node.keys = strings(map.get("x-kubernetes-list-map-keys")).map(|name| self.name(name)).collect();
        if node.list.is_some() && node.kind != Type::Array {
            self.error(FieldError::invalid(
                &join(path, "type"),
                map.get("type").unwrap_or(&Value::Null),
                "must be array if x-kubernetes-list-type is specified",
            ));
        }
        let at = join(path, "x-kubernetes-list-map-keys");
        if node.list == Some(ListType::Map) && node.keys.is_empty() {
            self.error(FieldError::required(&at, "must not be empty if x-kubernetes-list-type is map"));
        }
        for name in node.keys.clone() {
            let item = node.item();
            let known = item.is_some_and(|i| i.property(&name).is_some());
            let sure = item
                .is_some_and(|i| i.required.contains(&name) || i.property(&name).is_some_and(|p| p.default.is_some()));
            if !known {
                self.error(FieldError::invalid(
                    &at,
                    &Value::from(&*name),
                    "entries must all be names of item properties",
                ));
            } else if !sure {
                let at = format!("{}[{name}].default", join(path, "items.properties"));
                self.error(FieldError::required(&at, "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"));
            }
        }
    }

    fn rules(&mut self, map: &Map<String, Value>, path: &str, depth: usize) -> Option<Rules> {
        let mut rules = Rules::default();
        let mut any = false;
        for (name, value) in map {
            let number =
                value.as_u64().or_else(|| value.as_f64().filter(|f| *f >= 0.0 && f.fract() == 0.0).map(|f| f as u64));
            match name.as_str() {
                "enum" => rules.one_of = value.as_array().map(|all| all.clone().into_boxed_slice()),
                "pattern" => {
                    let Some(source) = value.as_str().filter(|s| !s.is_empty()) else { continue };
                    if self.patterns.insert(source.to_owned()) && Pattern::compile(source).is_none() {
                        self.error(FieldError::invalid(
                            &join(path, "pattern"),
                            value,
                            "must be a valid regular expression",
                        ));
                    }
                    rules.pattern = Some(Pattern::new(source));
                }
                "minimum" | "maximum" => {
                    let Value::Number(limit) = value else { continue };
                    let exclusive = if name == "minimum" { "exclusiveMinimum" } else { "exclusiveMaximum" };
                    let entry = Some((limit.clone(), map.get(exclusive) == Some(&Value::Bool(true))));
                    if name == "minimum" { rules.minimum = entry } else { rules.maximum = entry }
                }
                "multipleOf" => rules.multiple_of = value.as_f64(),
                "minLength" => rules.min_length = number,
                "maxLength" => rules.max_length = number,
                "minItems" => rules.min_items = number,
                "maxItems" => rules.max_items = number,
                "minProperties" => rules.min_properties = number,
                "maxProperties" => rules.max_properties = number,
                "uniqueItems" => {
                    if value == &Value::Bool(true) {
                        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
                        self.error(FieldError::forbidden(&join(path, name), detail));
                    }
                    continue;
                }
                // Upstream checks the known formats of strings that carry no other rule.
                "format" => {}
                "allOf" => rules.all_of = self.branches(value, path, name, depth),
                "anyOf" => rules.any_of = self.branches(value, path, name, depth),
                "oneOf" => rules.exactly_one_of = self.branches(value, path, name, depth),
                "not" => rules.not = Some(Box::new(self.junctor(value, &join(path, name), depth + 1))),
                "x-kubernetes-validations" => {
                    let mut cel_rules = Vec::new();
                    for (at, entry) in value.as_array().into_iter().flatten().enumerate() {
                        match cel::Rule::parse(entry, &index(&join(path, name), at)) {
                            Ok(rule) => cel_rules.push(rule),
                            Err(error) => self.error(error),
                        }
                    }
                    rules.cel = cel_rules.into_boxed_slice();
                }
                _ => continue,
            }
            any = true;
        }
        any.then_some(rules)
    }

    fn branches(&mut self, value: &Value, path: &str, name: &str, depth: usize) -> Box<[Node]> {
        let all = value.as_array().into_iter().flatten().enumerate();
        all.map(|(at, branch)| self.junctor(branch, &index(&join(path, name), at), depth + 1)).collect()
    }

    /// A schema under `allOf`, `anyOf`, `oneOf` or `not`: value rules without types of its own.
    fn junctor(&mut self, schema: &Value, path: &str, depth: usize) -> Node {
        let mut node = Node::of(Type::Any);
        let Some(map) = schema.as_object().filter(|_| depth <= MAX_DEPTH) else { return node };
        // int-or-string fields are written as anyOf of the two types.
        node.kind = match map.get("type").and_then(Value::as_str) {
            Some("integer") => Type::Integer,
            Some("string") => Type::String,
            Some("object") => Type::Object,
            Some("array") => Type::Array,
            Some("boolean") => Type::Boolean,
            Some("number") => Type::Number,
            _ => Type::Any,
        };
        node.nullable = true;
        node.required = strings(map.get("required")).map(|name| self.name(name)).collect();
        let mut properties = Vec::new();
        for (name, child) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let at = key(&join(path, "properties"), name);
            let child = Arc::new(self.junctor(child, &at, depth + 1));
            properties.push(plain(self.name(name), Link::Shared(child)));
        }
        properties.sort_by(|a, b| a.name.cmp(&b.name));
        node.properties = properties.into_boxed_slice();
        node.additional = match map.get("additionalProperties") {
            Some(schema @ Value::Object(_)) => {
                let at = join(path, "additionalProperties");
                Additional::Map(Link::Shared(Arc::new(self.junctor(schema, &at, depth + 1))))
            }
            _ => Additional::Open,
        };
        if let Some(schema @ Value::Object(_)) = map.get("items") {
            node.items = Some(Link::Shared(Arc::new(self.junctor(schema, &join(path, "items"), depth + 1))));
        }
        node.rules = self.rules(map, path, depth).map(Arc::new);
        node
    }
}

fn strings(value: Option<&Value>) -> impl Iterator<Item = &str> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}
