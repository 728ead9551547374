//! Defaults that schemas state. Of custom resources: upstream's `apiextensions-apiserver/pkg/apiserver/schema/defaulting`.

use serde_json::{Map, Value};

use super::{Additional, Node, Schema};

/// `spec` and `status` of a built-in kind, where absent: Go's structs have a zero value that is written out, so that
/// clients may rely on `status: {}` in what nobody has touched yet.
pub fn fill_parts(schema: &Schema, object: &mut Map<String, Value>) {
    for part in ["spec", "status"] {
        if let Some(property) = schema.root().property(part)
            && property.default.as_deref().is_some_and(Value::is_object)
            && !object.contains_key(part)
        {
            object.insert(part.to_owned(), zero(property.link.node()));
        }
    }
}

/// The members that are written out even when they are zero, which are those with a default, and structs within the struct.
fn zero(node: &Node) -> Value {
    let mut out = Map::new();
    for property in &node.properties {
        let Some(default) = property.default.as_deref() else { continue };
        let value = if default.is_object() { zero(property.link.node()) } else { default.clone() };
        out.insert(property.name.to_string(), value);
    }
    Value::Object(out)
}

/// Fills `default`s of a CRD schema in place, and drops nulls that are not allowed where a default exists. Built-in kinds
/// have their defaults in [`super::default_builtin`].
pub fn default(schema: &Schema, value: &mut Value) {
    if !schema.is_builtin {
        fill(schema.root(), value);
    }
}

fn fill(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for property in &node.properties {
                let child = property.link.node();
                if let Some(default) = &property.default {
                    let replace = match map.get(property.name.as_ref()) {
                        None => true,
                        Some(Value::Null) => !child.nullable,
                        Some(_) => false,
                    };
                    if replace {
                        map.insert(property.name.to_string(), default.as_ref().clone());
                    }
                }
                if !matches!(property.link, super::Link::Builtin(_))
                    && let Some(found) = map.get_mut(property.name.as_ref())
                {
                    fill(child, found);
                }
            }
            if let Additional::Map(link) = &node.additional {
                for (name, child) in map.iter_mut() {
                    if node.property(name).is_none() {
                        fill(link.node(), child);
                    }
                }
            }
        }
        Value::Array(items) => {
            if let Some(item) = node.item() {
                for child in items {
                    fill(item, child);
                }
            }
        }
        _ => {}
    }
}
