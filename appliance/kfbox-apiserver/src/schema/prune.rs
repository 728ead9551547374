//! Dropping fields that the schema does not know. Upstream: structural pruning of custom resources
//! (`apiextensions-apiserver/pkg/apiserver/schema/pruning`) and strict decoding of built-in kinds.

use serde_json::Value;

use super::field::{index, join};
use super::{Additional, Node, Schema, Type, builtin_node, type_index};

/// Drops what the schema does not know and returns the paths of what was dropped. Callers word a path as
/// `unknown field "spec.foo"`, as warning or error after `fieldValidation`.
pub fn prune(schema: &Schema, value: &mut Value) -> Vec<String> {
    let mut dropped = Vec::new();
    walk(schema.root(), value, "", &mut dropped);
    dropped
}

fn walk(node: &Node, value: &mut Value, path: &str, dropped: &mut Vec<String>) {
    if node.kind == Type::Any && node.properties.is_empty() {
        return;
    }
    match value {
        Value::Object(map) => {
            let keep_unknown = node.is_open();
            map.retain(|name, child| {
                if let Some(property) = node.property(name) {
                    walk(property.link.node(), child, &join(path, name), dropped);
                    return true;
                }
                if node.embedded {
                    match name.as_str() {
                        "apiVersion" | "kind" => return true,
                        "metadata" => {
                            if let Some(meta) = object_meta() {
                                walk(meta, child, &join(path, name), dropped);
                            }
                            return true;
                        }
                        _ => {}
                    }
                }
                match &node.additional {
                    Additional::Map(link) => {
                        walk(link.node(), child, &join(path, name), dropped);
                        true
                    }
                    _ if keep_unknown => true,
                    _ => {
                        // A scalar where the schema wants an object is a type error, not an unknown field.
                        if node.kind == Type::Object {
                            dropped.push(join(path, name));
                        }
                        node.kind != Type::Object
                    }
                }
            });
        }
        Value::Array(items) => {
            if let Some(item) = node.item() {
                for (at, child) in items.iter_mut().enumerate() {
                    walk(item, child, &index(path, at), dropped);
                }
            }
        }
        _ => {}
    }
}

pub(super) const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

pub(super) fn object_meta() -> Option<&'static Node> {
    type_index(OBJECT_META).map(builtin_node)
}
