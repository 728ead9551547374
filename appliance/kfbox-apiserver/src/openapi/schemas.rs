//! Types as OpenAPI schemas.

use serde_json::{Map, Value, json};

use super::{CustomKind, Format, META, descriptions::Descriptions};
use crate::schema::{
    Additional, Link, ListType, MERGE, Node, Property, REPLACE, RETAIN_KEYS, Type, builtin_node, type_kinds, type_name,
};
use std::{collections::HashMap, sync::Arc};

type Object = Map<String, Value>;

/// Writes types in one format, with their descriptions.
pub(super) struct Writer {
    format: Format,
    descriptions: Arc<Descriptions>,
    /// Of the group and version alone that a document is about.
    only: Option<(String, String)>,
}

impl Writer {
    pub(super) fn new(format: Format) -> Self {
        Self { format, descriptions: Descriptions::unpack(), only: None }
    }

    pub(super) fn of_version(format: Format, group: &str, version: &str) -> Self {
        Self { only: Some((group.to_owned(), version.to_owned())), ..Self::new(format) }
    }

    /// Name and definition of a built-in type.
    pub(super) fn builtin(&self, index: u32) -> (&'static str, Value) {
        let name = type_name(index);
        let mut out = node(builtin_node(index), self.format);
        self.describe(name, &mut out);
        // Options of deletions are kinds of every group; a group's own document names that group and the core.
        let everywhere = |group: &str, version: &str| {
            self.only.as_ref().is_none_or(|(g, v)| {
                (g == group && v == version) || !is_everywhere(name) || (group.is_empty() && version == "v1")
            })
        };
        let kinds: Vec<Value> = type_kinds(index)
            .iter()
            .filter(|(group, version, _)| everywhere(group, version))
            .map(|(group, version, kind)| json!({"group": group, "version": version, "kind": kind}))
            .collect();
        if !kinds.is_empty() {
            out.insert("x-kubernetes-group-version-kind".to_owned(), Value::Array(kinds));
        }
        (name, Value::Object(out))
    }

    fn describe(&self, name: &str, out: &mut Object) {
        let own = self.descriptions.of(name);
        // Lists have no texts of their own there; what all kinds share is said as of any.
        let shared = if own.is_empty() && name.ends_with("List") {
            self.descriptions.of("io.k8s.api.core.v1.Pod")
        } else {
            HashMap::new()
        };
        let kind = name.rsplit('.').next().unwrap_or(name);
        let items = kind.trim_end_matches("List");
        let text = |field: &str| -> Option<String> {
            match (own.get(field), field) {
                (Some(text), _) => Some(text.clone()),
                // The one type whose texts are not at hand.
                (None, "object") if kind == "WatchEvent" => Some(
                    "The object after the change, as it was before its deletion, or a Status for an error.".to_owned(),
                ),
                (None, "") if !shared.is_empty() => Some(format!("{kind} is a list of {items} objects.")),
                (None, "items") if !shared.is_empty() => Some(format!("The {items} objects.")),
                (None, "metadata") if !shared.is_empty() => Some("Standard list metadata.".to_owned()),
                (None, field) => shared.get(field).cloned(),
            }
        };
        if let Some(text) = text("") {
            out.insert("description".to_owned(), text.into());
        }
        let fields = out.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten();
        for (field, property) in fields {
            let Some(property) = property.as_object_mut() else { continue };
            let Some(text) = text(field) else { continue };
            beside_reference(property, self.format);
            property.insert("description".to_owned(), text.into());
        }
    }
}

/// OpenAPI v3 ignores what stands beside a reference.
fn beside_reference(property: &mut Object, format: Format) {
    if format == Format::V3
        && let Some(reference) = property.remove("$ref")
    {
        property.insert("allOf".to_owned(), json!([{"$ref": reference}]));
    }
}

fn is_everywhere(name: &str) -> bool {
    name.ends_with(".DeleteOptions") || name.ends_with(".WatchEvent")
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
    if format == Format::V3
        && let Some(default) = &property.default
    {
        beside_reference(&mut out, format);
        out.insert("default".to_owned(), default.as_ref().clone());
    }
    let words: Vec<&str> = [(MERGE, "merge"), (REPLACE, "replace"), (RETAIN_KEYS, "retainKeys")]
        .into_iter()
        .filter(|(bit, _)| property.strategy & bit != 0)
        .map(|(_, word)| word)
        .collect();
    if !words.is_empty() {
        beside_reference(&mut out, format);
        out.insert("x-kubernetes-patch-strategy".to_owned(), words.join(",").into());
    }
    if let Some(key) = &property.merge_key {
        out.insert("x-kubernetes-patch-merge-key".to_owned(), key.as_ref().into());
    }
    if property.atomic {
        beside_reference(&mut out, format);
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

impl Writer {
    /// The definition of a custom kind: as its CRD writes it in v3, what v2 can say in v2.
    pub(super) fn custom(&self, custom: &CustomKind<'_>) -> Value {
        let format = self.format;
        let mut out = match custom.raw {
            Some(Value::Object(raw)) if format == Format::V3 => raw.clone(),
            Some(raw) => {
                let mut out = node(custom.schema.root(), format);
                copy_descriptions(raw, &mut out);
                out
            }
            None => node(custom.schema.root(), format),
        };
        let shared = self.descriptions.of("io.k8s.api.core.v1.Pod");
        let mut metadata = Object::from_iter([("$ref".to_owned(), format.reference(&format!("{META}.ObjectMeta")))]);
        if let Some(text) = shared.get("metadata") {
            beside_reference(&mut metadata, format);
            metadata.insert("description".to_owned(), text.as_str().into());
        }
        let slot = out.entry("properties".to_owned()).or_insert_with(|| json!({}));
        if let Some(fields) = slot.as_object_mut() {
            for name in ["apiVersion", "kind"] {
                let text = shared.get(name).map_or("", String::as_str);
                fields.insert(name.to_owned(), json!({"type": "string", "description": text}));
            }
            fields.insert("metadata".to_owned(), metadata.into());
        }
        stamp(&mut out, custom, custom.kind);
        Value::Object(out)
    }

    pub(super) fn custom_list(&self, custom: &CustomKind<'_>, item: &str) -> Value {
        let mut out = Object::new();
        out.insert("type".to_owned(), "object".into());
        out.insert("required".to_owned(), json!(["items"]));
        out.insert(
            "properties".to_owned(),
            json!({
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": {"$ref": self.format.reference(&format!("{META}.ListMeta"))},
                "items": {"type": "array", "items": {"$ref": self.format.reference(item)}},
            }),
        );
        self.describe("List", &mut out);
        out.insert("description".to_owned(), format!("{} is a list of {}", custom.list_kind, custom.kind).into());
        stamp(&mut out, custom, custom.list_kind);
        Value::Object(out)
    }
}

/// The texts of a definition's own schema, which its compiled form leaves out.
fn copy_descriptions(raw: &Value, out: &mut Object) {
    if let Some(text) = raw.get("description").and_then(Value::as_str) {
        out.insert("description".to_owned(), text.into());
    }
    for (name, inner) in out.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        if let (Some(raw), Some(inner)) = (raw.get("properties").and_then(|p| p.get(name)), inner.as_object_mut()) {
            copy_descriptions(raw, inner);
        }
    }
    for part in ["items", "additionalProperties"] {
        if let (Some(raw), Some(inner)) = (raw.get(part), out.get_mut(part).and_then(Value::as_object_mut)) {
            copy_descriptions(raw, inner);
        }
    }
}
