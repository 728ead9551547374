//! Objects against their schema: which fields they set, how two differ, merging and removing.
//!
//! Structs and maps are granular unless marked atomic; lists are atomic unless they are sets or maps by key.
//! Upstream: `structured-merge-diff/typed` and the merge markers of
//! <https://kubernetes.io/docs/reference/using-api/server-side-apply/#merge-strategy>.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::{Element, Set};
use crate::schema::{ListType, Node, Property, Type, canonical_json, quantity};

/// How a place merges.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Leaf,
    Map,
    ByKey,
    Elements,
}

fn shape(node: Option<&Node>, atomic: bool, value: &Value) -> Shape {
    match value {
        _ if atomic || node.is_some_and(|n| n.atomic) => Shape::Leaf,
        Value::Object(_) => Shape::Map,
        Value::Array(_) => match node.and_then(|n| n.list) {
            Some(ListType::Map) if node.is_some_and(|n| !n.keys.is_empty()) => Shape::ByKey,
            Some(ListType::Set) => Shape::Elements,
            _ => Shape::Leaf,
        },
        _ => Shape::Leaf,
    }
}

/// The schema of a member and whether its field is marked atomic.
fn member<'a>(node: Option<&'a Node>, name: &str) -> (Option<&'a Node>, bool, Option<&'a Property>) {
    let property = node.and_then(|n| n.property(name));
    (node.and_then(|n| n.member(name)), property.is_some_and(|p| p.atomic), property)
}

/// The element that stands for a list item: its keys (absent ones by their default), or itself.
fn element(node: Option<&Node>, shape: Shape, item: &Value) -> Element {
    if shape != Shape::ByKey {
        return Element::Value(canonical_json(item));
    }
    let mut keys = Map::new();
    let item_node = node.and_then(Node::item);
    for name in node.map_or(&[][..], |n| &n.keys) {
        let default = || item_node.and_then(|n| n.property(name)).and_then(|p| p.default.as_deref());
        if let Some(value) = item.get(name.as_ref()).filter(|v| !v.is_null()).or_else(default) {
            keys.insert(name.to_string(), value.clone());
        }
    }
    Element::Key(canonical_json(&Value::Object(keys)))
}

/// Two items of one list have the same keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}: duplicate entries for key {1}")]
pub(super) struct Duplicate(pub String, pub String);

/// The fields that an applied configuration sets.
pub(super) fn fields_of(node: Option<&Node>, value: &Value) -> Result<Set, Duplicate> {
    let mut set = Set::default();
    collect(node, false, value, "", &mut set)?;
    set.member = false;
    Ok(set)
}

fn collect(node: Option<&Node>, atomic: bool, value: &Value, path: &str, set: &mut Set) -> Result<(), Duplicate> {
    match (shape(node, atomic, value), value) {
        (Shape::Map, Value::Object(map)) => {
            set.member |= map.is_empty();
            for (name, child) in map {
                let (child_node, atomic, property) = member(node, name);
                let mut inner = Set::default();
                collect(child_node, atomic, child, &format!("{path}.{name}"), &mut inner)?;
                // A key of a map is owned as such, a field of a struct only through what it holds.
                inner.member |= property.is_none();
                set.add(Element::Field(name.clone()), inner);
            }
        }
        (shape @ (Shape::ByKey | Shape::Elements), Value::Array(items)) => {
            set.member |= items.is_empty();
            for item in items {
                let element = element(node, shape, item);
                let mut inner = Set::leaf();
                if shape == Shape::ByKey {
                    collect(node.and_then(Node::item), false, item, &format!("{path}{element}"), &mut inner)?;
                }
                if set.children.contains_key(&element) {
                    return Err(Duplicate(path.to_owned(), element.to_string()));
                }
                set.add(element, inner);
            }
        }
        _ => set.member = true,
    }
    Ok(())
}

/// How two objects differ. A field that appears counts with everything in it, and so does one that goes.
#[derive(Default, Debug)]
pub(super) struct Difference {
    /// Added or changed.
    pub(super) changed: Set,
    pub(super) removed: Set,
}

pub(super) fn compare(node: Option<&Node>, builtin: bool, old: &Value, new: &Value) -> Difference {
    let mut out = Difference::default();
    Comparison { builtin }.places(node, false, Some(old), Some(new), &mut out.changed, &mut out.removed);
    out
}

struct Comparison {
    builtin: bool,
}

impl Comparison {
    /// Go structs without `omitempty` are there even when empty, so that they are never "added".
    fn always_there(&self, property: Option<&Property>, required: bool) -> bool {
        self.builtin
            && property.is_some_and(|p| match p.default.as_deref() {
                Some(Value::Object(map)) => map.is_empty(),
                _ => required && p.link.node().kind == Type::Array,
            })
    }

    fn places(
        &self,
        node: Option<&Node>,
        atomic: bool,
        old: Option<&Value>,
        new: Option<&Value>,
        changed: &mut Set,
        removed: &mut Set,
    ) {
        let Some(sample) = new.or(old) else { return };
        if let (Some(old), Some(new)) = (old, new) {
            if same(node, old, new) {
                return;
            }
            let (was, is) = (shape(node, atomic, old), shape(node, atomic, new));
            if was != is || was == Shape::Leaf {
                changed.member = true;
                return;
            }
        } else if new.is_some() {
            changed.member = true;
        } else {
            removed.member = true;
        }
        match shape(node, atomic, sample) {
            Shape::Leaf => {}
            Shape::Map => {
                let empty = Map::new();
                let old_map = old.and_then(Value::as_object).unwrap_or(&empty);
                let new_map = new.and_then(Value::as_object).unwrap_or(&empty);
                let mut names: Vec<&String> = old_map.keys().chain(new_map.keys()).collect();
                names.sort_unstable();
                names.dedup();
                for name in names {
                    let (child, atomic, property) = member(node, name);
                    let required = node.is_some_and(|n| n.required.iter().any(|r| **r == **name));
                    let there = self.always_there(property, required).then(|| match child.map(|c| c.kind) {
                        Some(Type::Array) => Value::Array(Vec::new()),
                        _ => Value::Object(Map::new()),
                    });
                    // Inside a place that is itself new, everything is new.
                    let fill = if old.is_some() && new.is_some() { there.as_ref() } else { None };
                    let (was, is) = (old_map.get(name).or(fill), new_map.get(name).or(fill));
                    self.child(Element::Field(name.clone()), child, atomic, was, is, changed, removed);
                }
            }
            shape @ (Shape::ByKey | Shape::Elements) => {
                let (old_items, new_items) = (elements(node, shape, old), elements(node, shape, new));
                let mut all: Vec<&Element> = old_items.keys().chain(new_items.keys()).collect();
                all.sort_unstable();
                all.dedup();
                let item = if shape == Shape::ByKey { node.and_then(Node::item) } else { None };
                for element in all {
                    let (was, is) = (old_items.get(element).copied(), new_items.get(element).copied());
                    self.child(element.clone(), item, shape == Shape::Elements, was, is, changed, removed);
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one recursion over two objects and two results")]
    fn child(
        &self,
        element: Element,
        node: Option<&Node>,
        atomic: bool,
        was: Option<&Value>,
        is: Option<&Value>,
        changed: &mut Set,
        removed: &mut Set,
    ) {
        let (mut inner_changed, mut inner_removed) = (Set::default(), Set::default());
        self.places(node, atomic, was, is, &mut inner_changed, &mut inner_removed);
        changed.add(element.clone(), inner_changed);
        removed.add(element, inner_removed);
    }
}

/// The items of a list by what they are known by; of equal ones the first.
fn elements<'a>(node: Option<&Node>, shape: Shape, list: Option<&'a Value>) -> BTreeMap<Element, &'a Value> {
    let mut out = BTreeMap::new();
    for item in list.and_then(Value::as_array).into_iter().flatten() {
        out.entry(element(node, shape, item)).or_insert(item);
    }
    out
}

fn same(node: Option<&Node>, old: &Value, new: &Value) -> bool {
    old == new
        || (node.is_some_and(|n| n.kind == Type::Quantity)
            && quantity::of(old).is_some()
            && quantity::of(old) == quantity::of(new))
}

/// `live` with `applied` laid over it.
pub(super) fn merge(node: Option<&Node>, atomic: bool, live: &Value, applied: &Value) -> Value {
    let (was, is) = (shape(node, atomic, live), shape(node, atomic, applied));
    if was != is {
        return applied.clone();
    }
    match (is, live, applied) {
        (Shape::Map, Value::Object(live), Value::Object(applied)) => {
            let mut out = live.clone();
            for (name, value) in applied {
                let (child, atomic, _) = member(node, name);
                let merged = match live.get(name) {
                    Some(old) if !old.is_null() => merge(child, atomic, old, value),
                    _ => value.clone(),
                };
                out.insert(name.clone(), merged);
            }
            Value::Object(out)
        }
        (Shape::ByKey | Shape::Elements, Value::Array(live), Value::Array(applied)) => {
            let live: Vec<(Element, &Value)> = live.iter().map(|item| (element(node, is, item), item)).collect();
            let applied: Vec<(Element, &Value)> = applied.iter().map(|item| (element(node, is, item), item)).collect();
            let in_applied = |e: &Element| applied.iter().any(|(k, _)| k == e);
            let mut rest = live.iter().peekable();
            let mut out = Vec::new();
            let last_shared = applied.iter().rposition(|(e, _)| live.iter().any(|(k, _)| k == e));
            for (at, (key, item)) in applied.iter().enumerate() {
                let Some(at_live) = live.iter().position(|(k, _)| k == key) else {
                    if last_shared.is_none_or(|last| at > last) {
                        // New ones at the end come after what others have there.
                        out.extend(rest.by_ref().filter(|(k, _)| !in_applied(k)).map(|(_, v)| (*v).clone()));
                    }
                    out.push((*item).clone());
                    continue;
                };
                // Others' items before this one keep their place.
                while let Some((k, v)) = rest.next_if(|(k, _)| {
                    live.iter().position(|(other, _)| other == k).is_some_and(|place| place <= at_live)
                }) {
                    if !in_applied(k) {
                        out.push((*v).clone());
                    }
                }
                let merged = match is {
                    Shape::ByKey => merge(node.and_then(Node::item), false, live[at_live].1, item),
                    _ => (*item).clone(),
                };
                out.push(merged);
            }
            out.extend(rest.filter(|(k, _)| !in_applied(k)).map(|(_, v)| (*v).clone()));
            Value::Array(out)
        }
        _ => applied.clone(),
    }
}

/// Takes away what `last` held and `keep` does not.
pub(super) fn remove(node: Option<&Node>, value: &mut Value, last: &Set, keep: &Set) {
    match value {
        Value::Object(map) => {
            for (element, inner) in &last.children {
                let Element::Field(name) = element else { continue };
                match keep.children.get(element) {
                    None => {
                        map.remove(name);
                    }
                    Some(kept) => {
                        if let Some(child) = map.get_mut(name) {
                            remove(member(node, name).0, child, inner, kept);
                        }
                    }
                }
            }
        }
        Value::Array(items) => {
            let shape = shape(node, false, &Value::Array(Vec::new()));
            if shape == Shape::Leaf {
                return;
            }
            items.retain_mut(|item| {
                let element = element(node, shape, item);
                let Some(inner) = last.children.get(&element) else { return true };
                let Some(kept) = keep.children.get(&element) else { return false };
                // The keys of an item that stays are part of what it is.
                let mut inner = inner.clone();
                for name in node.map_or(&[][..], |n| &n.keys) {
                    inner.children.remove(&Element::Field(name.to_string()));
                }
                if shape == Shape::ByKey {
                    remove(node.and_then(Node::item), item, &inner, kept);
                }
                true
            });
        }
        _ => {}
    }
}
