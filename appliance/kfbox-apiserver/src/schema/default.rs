//! Defaults of custom resources. Upstream: `apiextensions-apiserver/pkg/apiserver/schema/defaulting`.

use serde_json::Value;

use super::{Additional, Node, Schema};

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
