//! What makes a CRD's schema structural, so that pruning, defaults and field ownership mean something at every place.
//!
//! Judged when a definition is written, not when a stored one is read. Upstream: `ValidateStructural` in
//! `apiextensions-apiserver/pkg/apiserver/schema` and `ValidateCustomResourceDefinitionOpenAPISchema`.

use serde_json::{Map, Value, json};

use super::field::{FieldError, index, join, key};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Deeper schemas are refused by the builder, which counts.
const MAX_DEPTH: usize = 128;

type Schema = Map<String, Value>;

fn flag(schema: &Schema, name: &str) -> bool {
    schema.get(name) == Some(&Value::Bool(true))
}

fn kind(schema: &Schema) -> &str {
    schema.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// Given, and not with the value that says nothing.
fn given<'a>(schema: &'a Schema, name: &str) -> Option<&'a Value> {
    schema.get(name).filter(|v| !v.is_null() && *v != "" && *v != false && *v != &json!([]))
}

const EMBEDDED: &str = "x-kubernetes-embedded-resource";
const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
const LIST_TYPE: &str = "x-kubernetes-list-type";
const MAP_TYPE: &str = "x-kubernetes-map-type";
const MAP_KEYS: &str = "x-kubernetes-list-map-keys";
const RULES: &str = "x-kubernetes-validations";

/// All places at which a schema is not structural, sorted.
pub(super) fn check(schema: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(root) = schema.as_object() {
        if flag(root, "nullable") {
            errors.push(FieldError::forbidden(&join(path, "nullable"), "nullable cannot be true at the root"));
        }
        place(root, Level::Root, path, 0, &mut errors);
    }
    errors.sort_by_key(ToString::to_string);
    errors
}

fn place(schema: &Schema, level: Level, path: &str, depth: usize, errors: &mut Vec<FieldError>) {
    if depth > MAX_DEPTH {
        return;
    }
    if let Some(Value::Object(items)) = schema.get("items") {
        place(items, Level::Item, &join(path, "items"), depth + 1, errors);
    }
    for (name, child) in properties(schema) {
        place(child, Level::Field, &key(&join(path, "properties"), name), depth + 1, errors);
    }
    if let Some(values) = schema.get("additionalProperties").filter(|v| !v.is_null()) {
        let at = join(path, "additionalProperties");
        if level == Level::Root {
            errors.push(FieldError::forbidden(&at, "must not be used at the root"));
        }
        if flag(schema, EMBEDDED) {
            let why = "must not be used if x-kubernetes-embedded-resource is set";
            errors.push(FieldError::forbidden(&at, why));
        }
        if let Value::Object(values) = values {
            place(values, Level::Field, &at, depth + 1, errors);
        }
    }
    types(schema, level, path, errors);
    extensions(schema, path, errors);
    metadata(schema, level, path, errors);
    junctors(schema, path, depth, errors);
}

fn properties(schema: &Schema) -> impl Iterator<Item = (&String, &Schema)> {
    let all = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(name, child)| Some((name, child.as_object()?)))
}

fn types(schema: &Schema, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    let (at, found) = (join(path, "type"), kind(schema));
    if flag(schema, EMBEDDED) && found != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match found {
            "" => FieldError::required(&at, why),
            found => FieldError::invalid(&at, &found.into(), why),
        });
    } else if found.is_empty() && !flag(schema, INT_OR_STRING) && !flag(schema, PRESERVE) {
        errors.push(FieldError::required(
            &at,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        ));
    }
    if level == Level::Root && !found.is_empty() && found != "object" {
        errors.push(FieldError::invalid(&at, &found.into(), "must be object at the root"));
    }
}

fn extensions(schema: &Schema, path: &str, errors: &mut Vec<FieldError>) {
    let mut bad = |name: &str, value: &Value, why: &str| {
        errors.push(FieldError::invalid(&join(path, name), value, why));
    };
    if flag(schema, INT_OR_STRING) {
        for name in [PRESERVE, EMBEDDED].into_iter().filter(|name| flag(schema, name)) {
            bad(name, &Value::Bool(true), "must be false if x-kubernetes-int-or-string is true");
        }
    }
    if schema.get(PRESERVE) == Some(&Value::Bool(false)) {
        bad(PRESERVE, &Value::Bool(false), "must be true or undefined");
    }
    let found = kind(schema);
    if let Some(map_type) = given(schema, MAP_TYPE) {
        if found != "object" {
            bad("type", &found.into(), "must be object if x-kubernetes-map-type is specified");
        }
        if map_type != "atomic" && map_type != "granular" {
            let at = join(path, MAP_TYPE);
            errors.push(FieldError::not_supported(&at, map_type, &["atomic", "granular"]));
        }
    }
    let list_type = given(schema, LIST_TYPE).and_then(Value::as_str).unwrap_or_default();
    if given(schema, MAP_KEYS).is_some() && list_type != "map" {
        let (at, why) = (join(path, LIST_TYPE), "must be map if x-kubernetes-list-map-keys is non-empty");
        errors.push(match list_type {
            "" => FieldError::required(&at, why),
            other => FieldError::invalid(&at, &other.into(), why),
        });
    }
    if let (Some(Value::Object(items)), "set") = (schema.get("items"), list_type) {
        let (name, atomic) = match kind(items) {
            "array" => (LIST_TYPE, given(items, LIST_TYPE).is_none_or(|t| t == "atomic")),
            "object" => (MAP_TYPE, given(items, MAP_TYPE).is_some_and(|t| t == "atomic")),
            _ => return,
        };
        if !atomic {
            let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
            let shown = given(items, name).cloned().unwrap_or_default();
            errors.push(FieldError::invalid(&join(&join(path, "items"), name), &shown, why));
        }
    }
}

/// `metadata` is upstream's own; a schema may at most say something of names.
fn metadata(schema: &Schema, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    let embedded = flag(schema, EMBEDDED);
    let at = |name: &str| key(&join(path, "properties"), name);
    let checked = level == Level::Root || embedded;
    for (name, child) in properties(schema).filter(|_| checked) {
        match name.as_str() {
            "kind" | "apiVersion" if kind(child) != "string" => {
                let field = join(&at(name), "type");
                errors.push(FieldError::invalid(&field, &kind(child).into(), "must be string"));
            }
            "metadata" => {
                if kind(child) != "object" {
                    let field = join(&at(name), "type");
                    errors.push(FieldError::invalid(&field, &kind(child).into(), "must be object"));
                }
                let known = |name: &str| matches!(name, "name" | "generateName");
                let plain = |name: &str| matches!(name, "type" | "properties" | "description" | "title" | "default");
                let more = properties(child).any(|(name, _)| !known(name))
                    || child.iter().any(|(name, _)| !plain(name) && given(child, name).is_some());
                if level == Level::Root && more {
                    let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
                    errors.push(FieldError::forbidden(&at(name), why));
                }
            }
            _ => {}
        }
    }
    if embedded && !flag(schema, PRESERVE) && properties(schema).next().is_none() {
        let why =
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(&join(path, "properties"), why));
    }
}

/// The one place where a junctor may name types: a number or a text.
fn is_int_or_string(branches: &Value) -> bool {
    branches == &json!([{"type": "integer"}, {"type": "string"}])
}

fn junctors(schema: &Schema, path: &str, depth: usize, errors: &mut Vec<FieldError>) {
    for name in ["anyOf", "allOf", "oneOf"] {
        let Some(branches) = schema.get(name) else { continue };
        if name == "anyOf" && is_int_or_string(branches) {
            continue;
        }
        for (at, branch) in branches.as_array().into_iter().flatten().enumerate() {
            let only = branch.as_object().is_some_and(|b| b.len() == 1);
            if name == "allOf" && at == 0 && only && branch.get("anyOf").is_some_and(is_int_or_string) {
                continue;
            }
            nested(branch, &index(&join(path, name), at), depth + 1, errors);
        }
    }
    if let Some(not) = schema.get("not") {
        nested(not, &join(path, "not"), depth + 1, errors);
    }
}

/// Below a junctor values are judged; what is there and of which type is said outside.
fn nested(schema: &Value, path: &str, depth: usize, errors: &mut Vec<FieldError>) {
    let Some(schema) = schema.as_object().filter(|_| depth <= MAX_DEPTH) else { return };
    for (name, why) in [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        (PRESERVE, "must be false to be structural"),
        (EMBEDDED, "must be false to be structural"),
        (INT_OR_STRING, "must be false to be structural"),
        (MAP_KEYS, "must be empty to be structural"),
        (LIST_TYPE, "must be undefined to be structural"),
        (MAP_TYPE, "must be undefined to be structural"),
        (RULES, "must be empty to be structural"),
    ] {
        if given(schema, name).is_some() {
            errors.push(FieldError::forbidden(&join(path, name), why));
        }
    }
    for (name, child) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let at = key(&join(path, "properties"), name);
        if name == "metadata" {
            errors.push(FieldError::forbidden(&at, "must not be specified in a nested context"));
        }
        nested(child, &at, depth + 1, errors);
    }
    if let Some(items) = schema.get("items") {
        nested(items, &join(path, "items"), depth + 1, errors);
    }
    junctors(schema, path, depth, errors);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_structural_is_told_place_by_place() {
        let schema = json!({"type": "object", "nullable": true, "additionalProperties": true, "properties": {
            "metadata": {"type": "object", "properties": {"labels": {"type": "object"}}},
            "kind": {"type": "integer"},
            "a": {"anyOf": [{"type": "integer"}, {"type": "boolean"}]},
            "b": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "c": {"type": "object", "x-kubernetes-embedded-resource": true},
            "d": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object"}},
            "e": {"type": "array", "x-kubernetes-list-map-keys": ["k"], "items": {}},
            "f": {"type": "string", "x-kubernetes-map-type": "odd", "x-kubernetes-preserve-unknown-fields": false},
            "g": {"type": "object", "not": {"properties": {"metadata": {"pattern": "x"}}, "default": 1}},
        }});
        let found: Vec<String> = check(&schema, "s").iter().map(ToString::to_string).collect();
        let wanted = [
            "s.additionalProperties: Forbidden: must not be used at the root",
            "s.nullable: Forbidden: nullable cannot be true at the root",
            "s.properties[a].anyOf[0].type: Forbidden: must be empty to be structural",
            "s.properties[a].anyOf[1].type: Forbidden: must be empty to be structural",
            "s.properties[a].type: Required value: must not be empty for specified object fields",
            "s.properties[c].properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
            "s.properties[d].items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list with x-kubernetes-list-type=set",
            "s.properties[e].items.type: Required value: must not be empty for specified array items",
            "s.properties[e].x-kubernetes-list-type: Required value: must be map if x-kubernetes-list-map-keys is non-empty",
            "s.properties[f].type: Invalid value: \"string\": must be object if x-kubernetes-map-type is specified",
            "s.properties[f].x-kubernetes-map-type: Unsupported value: \"odd\": supported values: \"atomic\", \"granular\"",
            "s.properties[f].x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined",
            "s.properties[g].not.default: Forbidden: must be undefined to be structural",
            "s.properties[g].not.properties[metadata]: Forbidden: must not be specified in a nested context",
            "s.properties[kind].type: Invalid value: \"integer\": must be string",
            "s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
        ];
        assert_eq!(found, wanted);
        let sound = json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}}},
            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}}});
        assert_eq!(check(&sound, ""), vec![]);
    }
}
