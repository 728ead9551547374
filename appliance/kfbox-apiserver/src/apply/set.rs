//! Sets of field paths, and their wire form FieldsV1.
//!
//! Upstream: <https://kubernetes.io/docs/reference/using-api/server-side-apply/#state-management>; the form is
//! `structured-merge-diff/fieldpath`: `f:` field, `k:` list element by key, `v:` set element, `i:` index, `.` the place
//! itself.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use crate::schema::canonical_json;

/// One step of a path. Keys and values are kept as JSON text with sorted members, so that equal ones are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Element {
    Field(String),
    Key(String),
    Value(String),
    Index(i64),
}

impl Element {
    fn wire(&self) -> String {
        match self {
            Element::Field(name) => format!("f:{name}"),
            Element::Key(json) => format!("k:{json}"),
            Element::Value(json) => format!("v:{json}"),
            Element::Index(at) => format!("i:{at}"),
        }
    }

    fn parse(text: &str) -> Option<Element> {
        let (kind, rest) = text.split_once(':')?;
        let json = |text: &str| serde_json::from_str::<Value>(text).ok().map(|v| canonical_json(&v));
        match kind {
            "f" => Some(Element::Field(rest.to_owned())),
            "k" => json(rest).map(Element::Key),
            "v" => json(rest).map(Element::Value),
            "i" => rest.parse().ok().map(Element::Index),
            _ => None,
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Field(name) => write!(f, ".{name}"),
            Element::Value(json) => write!(f, "[={json}]"),
            Element::Index(at) => write!(f, "[{at}]"),
            Element::Key(json) => {
                let keys: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
                let mut names: Vec<&String> = keys.keys().collect();
                names.sort();
                let parts: Vec<String> = names.iter().map(|name| format!("{name}={}", keys[*name])).collect();
                write!(f, "[{}]", parts.join(","))
            }
        }
    }
}

/// A set of paths as a tree. Invariant: no child is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) member: bool,
    pub(super) children: BTreeMap<Element, Set>,
}

/// The FieldsV1 of an entry is no object of `f:`, `k:`, `v:`, `i:` and `.`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid path element {0:?} in fieldsV1")]
pub(super) struct BadFields(String);

impl Set {
    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    pub(super) fn leaf() -> Set {
        Set { member: true, children: BTreeMap::new() }
    }

    /// Adds `child` under `element`, merged with what is there; empty sets are not added.
    pub(super) fn add(&mut self, element: Element, child: Set) {
        if !child.is_empty() {
            self.children.entry(element).or_default().absorb(child);
        }
    }

    pub(super) fn absorb(&mut self, other: Set) {
        self.member |= other.member;
        for (element, child) in other.children {
            self.add(element, child);
        }
    }

    pub(super) fn subtract(&mut self, other: &Set) {
        if other.member {
            self.member = false;
        }
        for (element, child) in &other.children {
            if let Some(own) = self.children.get_mut(element) {
                own.subtract(child);
                if own.is_empty() {
                    self.children.remove(element);
                }
            }
        }
    }

    pub(super) fn intersection(&self, other: &Set) -> Set {
        let mut out = Set { member: self.member && other.member, children: BTreeMap::new() };
        for (element, child) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                out.add(element.clone(), child.intersection(theirs));
            }
        }
        out
    }

    /// The paths, printed: `.spec.containers[name="a"].image`.
    pub(super) fn paths(&self) -> Vec<String> {
        fn walk(set: &Set, path: &str, out: &mut Vec<String>) {
            if set.member {
                out.push(path.to_owned());
            }
            for (element, child) in &set.children {
                walk(child, &format!("{path}{element}"), out);
            }
        }
        let mut out = Vec::new();
        walk(self, "", &mut out);
        out
    }

    pub(super) fn to_fields(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            map.insert(element.wire(), child.to_fields());
        }
        Value::Object(map)
    }

    pub(super) fn from_fields(fields: &Value) -> Result<Set, BadFields> {
        let Value::Object(map) = fields else { return Err(BadFields(fields.to_string().chars().take(80).collect())) };
        let mut set = Set::default();
        for (name, child) in map {
            if name == "." {
                set.member = true;
                continue;
            }
            let element = Element::parse(name).ok_or_else(|| BadFields(name.clone()))?;
            let mut inner = Set::from_fields(child)?;
            inner.member |= inner.children.is_empty();
            set.add(element, inner);
        }
        Ok(set)
    }

    /// The set under a chain of fields.
    #[cfg(test)]
    pub(super) fn has(&self, path: &str) -> bool {
        self.paths().iter().any(|p| p == path)
    }

    pub(super) fn remove_path(&mut self, path: &[&str]) {
        let [first, rest @ ..] = path else {
            self.member = false;
            return;
        };
        let element = Element::Field((*first).to_owned());
        if let Some(child) = self.children.get_mut(&element) {
            child.remove_path(rest);
            if child.is_empty() {
                self.children.remove(&element);
            }
        }
    }
}
