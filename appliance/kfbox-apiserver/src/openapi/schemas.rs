//! Types as OpenAPI schemas.

use serde_json::{Map, Value, json};

use super::{CustomKind, Format, META};
use crate::schema::{
    Additional, Link, ListType, MERGE, Node, Property, REPLACE, RETAIN_KEYS, Type, builtin_node, type_kinds, type_name,
};

type Object = Map<String, Value>;

/// Name and definition of a built-in type.
pub(super) fn builtin(index: u32, format: Format) -> (&'static str, Value) {
    let mut out = node(builtin_node(index), format);
    let kinds: Vec<Value> = type_kinds(index)
        .iter()
        .map(|(group, version, kind)| json!({"group": group, "version": version, "kind": kind}))
        .collect();
    if !kinds.is_empty() {
        out.insert("x-kubernetes-group-version-kind".to_owned(), Value::Array(kinds));
    }
    (type_name(index), Value::Object(out))
}

fn link(link: &Link, format: Format) -> Object {
    match link {
        Link::Builtin(index) => {
            let mut out = Object::new();
            out.insert("$ref".to_owned(), format.reference(type_name(*index)));
            out
        }
        Link::Shared(shared) => node(shared, format),
    }
}

fn property(property: &Property, format: Format) -> Value {
    let mut out = link(&property.link, format);
    // OpenAPI v3 ignores what stands beside a reference.
    if format == Format::V3 && out.contains_key("$ref") {
        out = Object::from_iter([("allOf".to_owned(), json!([out]))]);
    }
    if format == Format::V3
        && let Some(default) = &property.default
    {
        out.insert("default".to_owned(), default.as_ref().clone());
    }
    let words: Vec<&str> = [(MERGE, "merge"), (REPLACE, "replace"), (RETAIN_KEYS, "retainKeys")]
        .into_iter()
        .filter(|(bit, _)| property.strategy & bit != 0)
        .map(|(_, word)| word)
        .collect();
    if !words.is_empty() {
        out.insert("x-kubernetes-patch-strategy".to_owned(), words.join(",").into());
    }
    if let Some(key) = &property.merge_key {
        out.insert("x-kubernetes-patch-merge-key".to_owned(), key.as_ref().into());
    }
    if property.atomic {
        out.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
    }
    Value::Object(out)
}

fn properties(node: &Node, format: Format) -> Object {
    node.properties.iter().map(|p| (p.name.to_string(), property(p, format))).collect()
}

fn node(node: &Node, format: Format) -> Object {
    let mut out = Object::new();
    let mut put = |name: &str, value: Value| drop(out.insert(name.to_owned(), value));
    let kind = match node.kind {
        Type::Any => None,
        Type::Object => Some("object"),
        Type::Array => Some("array"),
        Type::String => Some("string"),
        Type::Integer => Some("integer"),
        Type::Number => Some("number"),
        Type::Boolean => Some("boolean"),
        Type::IntOrString if format == Format::V3 => {
            put("oneOf", json!([{"type": "integer"}, {"type": "string"}]));
            None
        }
        Type::Quantity if format == Format::V3 => {
            put("oneOf", json!([{"type": "string"}, {"type": "number"}]));
            None
        }
        Type::IntOrString | Type::Quantity => Some("string"),
    };
    if let Some(kind) = kind {
        put("type", kind.into());
    }
    if node.kind == Type::IntOrString {
        put("format", "int-or-string".into());
    } else if let Some(word) = &node.format {
        put("format", word.as_ref().into());
    }
    if !node.properties.is_empty() {
        put("properties", Value::Object(properties(node, format)));
    }
    if !node.required.is_empty() {
        put("required", node.required.iter().map(|name| Value::from(name.as_ref())).collect());
    }
    if let Additional::Map(inner) = &node.additional {
        put("additionalProperties", Value::Object(link(inner, format)));
    }
    if let Some(items) = &node.items {
        put("items", Value::Object(link(items, format)));
    }
    match node.list {
        Some(ListType::Atomic) => put("x-kubernetes-list-type", "atomic".into()),
        Some(ListType::Set) => put("x-kubernetes-list-type", "set".into()),
        Some(ListType::Map) => put("x-kubernetes-list-type", "map".into()),
        None => {}
    }
    if !node.keys.is_empty() {
        put("x-kubernetes-list-map-keys", node.keys.iter().map(|name| Value::from(name.as_ref())).collect());
    }
    if node.atomic {
        put("x-kubernetes-map-type", "atomic".into());
    }
    if node.preserve {
        put("x-kubernetes-preserve-unknown-fields", true.into());
    }
    if node.nullable && format == Format::V3 {
        put("nullable", true.into());
    }
    if let Some(options) = node.rules.as_ref().and_then(|r| r.one_of.as_ref()) {
        put("enum", Value::Array(options.to_vec()));
    }
    out
}

fn stamp(definition: &mut Object, custom: &CustomKind<'_>, kind: &str) {
    definition.insert(
        "x-kubernetes-group-version-kind".to_owned(),
        json!([{"group": custom.group, "version": custom.version, "kind": kind}]),
    );
}

/// The definition of a custom kind: as its CRD writes it in v3, what v2 can say in v2.
pub(super) fn custom(custom: &CustomKind<'_>, format: Format) -> Value {
    let mut out = match custom.raw {
        Some(Value::Object(raw)) if format == Format::V3 => raw.clone(),
        _ => node(custom.schema.root(), format),
    };
    let reference = json!({"$ref": format.reference(&format!("{META}.ObjectMeta"))});
    let metadata = if format == Format::V3 { json!({"allOf": [reference]}) } else { reference };
    let slot = out.entry("properties".to_owned()).or_insert_with(|| json!({}));
    if let Some(fields) = slot.as_object_mut() {
        for name in ["apiVersion", "kind"] {
            fields.entry(name.to_owned()).or_insert_with(|| json!({"type": "string"}));
        }
        fields.insert("metadata".to_owned(), metadata);
    }
    stamp(&mut out, custom, custom.kind);
    Value::Object(out)
}

pub(super) fn custom_list(custom: &CustomKind<'_>, item: &str, format: Format) -> Value {
    let mut out = Object::new();
    out.insert("type".to_owned(), "object".into());
    out.insert("required".to_owned(), json!(["items"]));
    out.insert(
        "properties".to_owned(),
        json!({
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"$ref": format.reference(&format!("{META}.ListMeta"))},
            "items": {"type": "array", "items": {"$ref": format.reference(item)}},
        }),
    );
    stamp(&mut out, custom, custom.list_kind);
    Value::Object(out)
}
