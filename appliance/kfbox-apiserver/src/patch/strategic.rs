//! Strategic merge patch: JSON merge that knows which lists merge by key.
//!
//! Upstream: community `contributors/devel/sig-api-machinery/strategic-merge-patch.md` (directives) and
//! apimachinery `pkg/util/strategicpatch`.

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{MERGE, Node, REPLACE, Schema};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;

/// Applies a strategic merge patch to an object of a built-in kind.
pub fn strategic(schema: &Schema, object: &Value, patch: &Value) -> Result<Value, PatchError> {
    let (Value::Object(original), Value::Object(patch)) = (object, patch) else {
        return Err(PatchError::Malformed("a strategic merge patch must be a JSON object".to_owned()));
    };
    merge_map(Some(schema.root()), original.clone(), patch).map(Value::Object)
}

fn malformed<T>(message: impl Into<String>) -> Result<T, PatchError> {
    Err(PatchError::Malformed(message.into()))
}

fn merge_map(node: Option<&Node>, mut original: Object, patch: &Object) -> Result<Object, PatchError> {
    match patch.get(DIRECTIVE).map(Value::as_str) {
        None | Some(Some("merge")) => {}
        Some(Some("replace")) => return Ok(without_directives(patch)),
        Some(Some("delete")) => return Ok(Object::new()),
        Some(other) => return malformed(format!("unknown $patch type found: {}", other.unwrap_or("not a string"))),
    }
    if let Some(keep) = patch.get(RETAIN_KEYS) {
        let Some(keep) = keep.as_array() else {
            return malformed("the value of $retainKeys must be a list");
        };
        let keep: Vec<&str> = keep.iter().filter_map(Value::as_str).collect();
        for (name, value) in patch {
            if !name.starts_with('$') && !value.is_null() && !keep.contains(&name.as_str()) {
                return malformed(format!("$retainKeys must list every field the patch sets, {name:?} is missing"));
            }
        }
        original.retain(|name, _| keep.contains(&name.as_str()));
    }
    for (name, value) in patch {
        if let Some(field) = name.strip_prefix(DELETE_FROM) {
            let Some(gone) = value.as_array() else {
                return malformed(format!("{name} must be a list"));
            };
            if let Some(Value::Array(items)) = original.get_mut(field) {
                items.retain(|item| !gone.contains(item));
            }
        }
    }
    for (name, value) in patch {
        if name.starts_with('$') {
            continue;
        }
        if value.is_null() {
            original.remove(name);
            continue;
        }
        let property = node.and_then(|n| n.property(name));
        let child = node.and_then(|n| n.member(name));
        let strategy = property.map_or(0, |p| p.strategy);
        let merged = match (original.remove(name), value) {
            (Some(Value::Object(old)), Value::Object(new)) if strategy & REPLACE == 0 => {
                Value::Object(merge_map(child, old, new)?)
            }
            (Some(Value::Array(old)), Value::Array(new)) if strategy & MERGE != 0 => {
                let key = property.and_then(|p| p.merge_key.as_deref());
                Value::Array(merge_list(child.and_then(Node::item), key, old, new)?)
            }
            (_, Value::Array(new)) if strategy & MERGE != 0 => {
                let key = property.and_then(|p| p.merge_key.as_deref());
                Value::Array(merge_list(child.and_then(Node::item), key, Vec::new(), new)?)
            }
            (_, Value::Object(new)) => Value::Object(merge_map(child, Object::new(), new)?),
            (_, other) => cleaned(other),
        };
        original.insert(name.clone(), merged);
    }
    for (name, order) in patch {
        let Some(field) = name.strip_prefix(SET_ORDER) else { continue };
        let Some(order) = order.as_array() else {
            return malformed(format!("{name} must be a list"));
        };
        let key = node.and_then(|n| n.property(field)).and_then(|p| p.merge_key.as_deref());
        if let Some(Value::Array(items)) = original.get_mut(field) {
            let (listed, rest) = partition(std::mem::take(items), order, key);
            // What the patch orders keeps that order; the server's own elements keep their places among them.
            let live: Vec<Value> = listed.iter().chain(&rest).cloned().collect();
            *items = weave(sort_by(listed, order, key), rest, &live, key);
        }
    }
    Ok(original)
}

/// Identity of a list element: its merge key, or itself.
fn identity<'a>(item: &'a Value, key: Option<&str>) -> Option<&'a Value> {
    match key {
        Some(key) => item.get(key),
        None => Some(item),
    }
}

fn place(items: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    let id = identity(item, key)?;
    items.iter().position(|other| identity(other, key) == Some(id))
}

fn partition(items: Vec<Value>, by: &[Value], key: Option<&str>) -> (Vec<Value>, Vec<Value>) {
    items.into_iter().partition(|item| place(by, item, key).is_some())
}

fn sort_by(mut items: Vec<Value>, order: &[Value], key: Option<&str>) -> Vec<Value> {
    items.sort_by_key(|item| place(order, item, key).unwrap_or(usize::MAX));
    items
}

/// Inserts `rest` into `listed`, keeping both orders; an element goes before the first one that came after it in `live`.
fn weave(listed: Vec<Value>, rest: Vec<Value>, live: &[Value], key: Option<&str>) -> Vec<Value> {
    let mut out = Vec::with_capacity(listed.len() + rest.len());
    let mut listed = listed.into_iter().peekable();
    for item in rest {
        let at = place(live, &item, key);
        while let Some(next) = listed.peek() {
            if let (Some(mine), Some(other)) = (at, place(live, next, key))
                && mine < other
            {
                break;
            }
            out.extend(listed.next());
        }
        out.push(item);
    }
    out.extend(listed);
    out
}

fn merge_list(
    node: Option<&Node>,
    key: Option<&str>,
    live: Vec<Value>,
    patch: &[Value],
) -> Result<Vec<Value>, PatchError> {
    let Some(key) = key else {
        let mut out = live.clone();
        for item in patch {
            if !out.contains(item) {
                out.push(item.clone());
            }
        }
        let (listed, rest) = partition(out, patch, None);
        return Ok(weave(sort_by(listed, patch, None), rest, &live, None));
    };
    let mut merged = live.clone();
    let mut plain: Vec<&Object> = Vec::new();
    let mut replace = false;
    for item in patch {
        let Value::Object(item) = item else {
            return malformed(format!("elements of a list merged by {key:?} must be objects"));
        };
        match item.get(DIRECTIVE).map(Value::as_str) {
            None | Some(Some("merge")) => plain.push(item),
            Some(Some("replace")) => {
                replace = true;
                if item.len() > 1 {
                    plain.push(item);
                }
            }
            Some(Some("delete")) => {
                let Some(id) = item.get(key) else {
                    return malformed(format!("delete patch type with no merge key {key:?} defined"));
                };
                merged.retain(|other| other.get(key) != Some(id));
            }
            Some(other) => return malformed(format!("unknown $patch type found: {}", other.unwrap_or("not a string"))),
        }
    }
    if replace {
        return Ok(plain.into_iter().map(|item| Value::Object(without_directives(item))).collect());
    }
    for item in &plain {
        let Some(id) = item.get(key) else {
            return malformed(format!(
                "map: {} does not contain declared merge key: {key}",
                Value::Object((*item).clone())
            ));
        };
        let at = merged.iter().position(|other| other.get(key) == Some(id));
        match at.map(|at| (at, std::mem::take(&mut merged[at]))) {
            Some((at, Value::Object(old))) => merged[at] = Value::Object(merge_map(node, old, item)?),
            Some((at, _)) => merged[at] = Value::Object(without_directives(item)),
            None => merged.push(Value::Object(merge_map(node, Object::new(), item)?)),
        }
    }
    let order: Vec<Value> = plain.into_iter().map(|item| Value::Object(item.clone())).collect();
    let (listed, rest) = partition(merged, &order, Some(key));
    Ok(weave(sort_by(listed, &order, Some(key)), rest, &live, Some(key)))
}

/// The patch's value as it goes into an object that has no such field: no directives, no nulls.
fn cleaned(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(items) => Value::Array(
            items
                .iter()
                .filter(|item| item.get(DIRECTIVE).and_then(Value::as_str) != Some("delete"))
                .map(cleaned)
                .collect(),
        ),
        other => other.clone(),
    }
}

fn without_directives(map: &Object) -> Object {
    map.iter()
        .filter(|(name, value)| {
            let directive = *name == DIRECTIVE
                || *name == RETAIN_KEYS
                || name.starts_with(DELETE_FROM)
                || name.starts_with(SET_ORDER);
            !directive && !value.is_null()
        })
        .map(|(name, value)| (name.clone(), cleaned(value)))
        .collect()
}
