//! The table of built-in types, decoded once from `generated/kinds.txt` (its format is described in
//! `scripts/generate-schemas`).
//!
//! Invariant: the table is a flat vector, names are shared, no JSON tree stays: about a megabyte in all.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use super::{Additional, Link, ListType, MERGE, Node, Property, REPLACE, RETAIN_KEYS, Schema, Type};

const TEXT: &str = include_str!("../generated/kinds.txt");

/// One served resource or subresource of a built-in group, as upstream's OpenAPI lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub group: &'static str,
    pub version: &'static str,
    /// `pods` or `pods/status`.
    pub name: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
    pub verbs: Vec<&'static str>,
}

struct Table {
    nodes: Vec<Node>,
    names: Vec<&'static str>,
    by_name: HashMap<&'static str, u32>,
    /// (group, version, kind) of each type that has one.
    kinds: HashMap<(&'static str, &'static str, &'static str), u32>,
    kinds_of: HashMap<u32, Vec<(&'static str, &'static str, &'static str)>>,
    schemas: HashMap<u32, Arc<Schema>>,
    resources: Vec<Resource>,
}

static TABLE: LazyLock<Table> = LazyLock::new(decode);

#[derive(Default)]
struct Names(HashMap<&'static str, Arc<str>>);

impl Names {
    fn get(&mut self, text: &'static str) -> Arc<str> {
        self.0.entry(text).or_insert_with(|| Arc::from(text)).clone()
    }
}

/// Attributes of a line after its type.
#[derive(Default)]
struct Attributes {
    required: bool,
    list: Option<ListType>,
    keys: Vec<Arc<str>>,
    atomic: bool,
    strategy: u8,
    merge_key: Option<Arc<str>>,
    default: Option<Arc<serde_json::Value>>,
    kinds: Vec<(&'static str, &'static str, &'static str)>,
}

fn attributes<'a>(parts: impl Iterator<Item = &'static str> + 'a, names: &mut Names) -> Attributes {
    let mut out = Attributes::default();
    for part in parts {
        match part.split_once('=') {
            None => out.required |= part == "r",
            Some(("L", kind)) => {
                out.list = Some(match kind {
                    "map" => ListType::Map,
                    "set" => ListType::Set,
                    _ => ListType::Atomic,
                });
            }
            Some(("K", keys)) => out.keys = keys.split(',').map(|k| names.get(k)).collect(),
            Some(("M", kind)) => out.atomic = kind == "atomic",
            Some(("S", strategies)) => {
                for strategy in strategies.split(',') {
                    out.strategy |= match strategy {
                        "merge" => MERGE,
                        "replace" => REPLACE,
                        "retainKeys" => RETAIN_KEYS,
                        _ => 0,
                    };
                }
            }
            Some(("P", key)) => out.merge_key = Some(names.get(key)),
            Some(("D", json)) => out.default = serde_json::from_str(json).ok().map(Arc::new),
            Some(("G", kinds)) => {
                out.kinds = kinds
                    .split(';')
                    .filter_map(|text| {
                        let mut parts = text.split('/');
                        Some((parts.next()?, parts.next()?, parts.next()?))
                    })
                    .collect();
            }
            Some(_) => {}
        }
    }
    out
}

struct Decoder {
    by_name: HashMap<&'static str, u32>,
    names: Names,
    scalars: HashMap<&'static str, Arc<Node>>,
}

impl Decoder {
    fn scalar(&mut self, code: &'static str) -> Node {
        let (kind, format) = match code {
            "s" => (Type::String, None),
            "i32" => (Type::Integer, Some("int32")),
            "i64" => (Type::Integer, Some("int64")),
            "f" => (Type::Number, Some("double")),
            "b" => (Type::Boolean, None),
            "byte" => (Type::String, Some("byte")),
            "time" => (Type::String, Some("date-time")),
            "u" => (Type::IntOrString, Some("int-or-string")),
            "q" => (Type::Quantity, None),
            "o" => (Type::Object, None),
            _ => (Type::Any, None),
        };
        let mut node = Node::of(kind);
        node.format = format.map(|f| self.names.get(f));
        if code == "o" {
            node.additional = Additional::Open;
        }
        node
    }

    fn node(&mut self, code: &'static str, attributes: &Attributes) -> Node {
        let mut node = if let Some(rest) = code.strip_prefix('[') {
            let mut node = Node::of(Type::Array);
            node.items = Some(self.link(rest));
            node
        } else if let Some(rest) = code.strip_prefix('{') {
            let mut node = Node::of(Type::Object);
            node.additional = Additional::Map(self.link(rest));
            node
        } else {
            self.scalar(code)
        };
        node.list = attributes.list;
        node.keys = attributes.keys.clone().into_boxed_slice();
        node.atomic = attributes.atomic;
        node
    }

    fn link(&mut self, code: &'static str) -> Link {
        if let Some(name) = code.strip_prefix('#')
            && let Some(index) = self.by_name.get(name)
        {
            return Link::Builtin(*index);
        }
        if let Some(node) = self.scalars.get(code) {
            return Link::Shared(node.clone());
        }
        let node = Arc::new(self.node(code, &Attributes::default()));
        self.scalars.insert(code, node.clone());
        Link::Shared(node)
    }
}

fn decode() -> Table {
    let mut decoder = Decoder { by_name: HashMap::new(), names: Names::default(), scalars: HashMap::new() };
    let mut type_names = Vec::new();
    for line in TEXT.lines() {
        if let Some(rest) = line.strip_prefix('=') {
            let name = rest.split('\t').next().unwrap_or(rest);
            decoder.by_name.insert(name, u32::try_from(type_names.len()).unwrap_or(u32::MAX));
            type_names.push(name);
        }
    }
    let mut nodes: Vec<Node> = Vec::with_capacity(type_names.len());
    let (mut kinds, mut kinds_of, mut resources) = (HashMap::new(), HashMap::new(), Vec::new());
    let (mut properties, mut required): (Vec<Property>, Vec<Arc<str>>) = (Vec::new(), Vec::new());
    let finish = |nodes: &mut Vec<Node>, properties: &mut Vec<Property>, required: &mut Vec<Arc<str>>| {
        if let Some(node) = nodes.last_mut()
            && !properties.is_empty()
        {
            properties.sort_by(|a, b| a.name.cmp(&b.name));
            node.properties = std::mem::take(properties).into_boxed_slice();
            node.required = std::mem::take(required).into_boxed_slice();
            node.additional = Additional::Closed;
        }
    };
    for line in TEXT.lines() {
        let mut parts = line.split('\t');
        let Some(first) = parts.next() else { continue };
        if let Some(name) = first.strip_prefix('=') {
            finish(&mut nodes, &mut properties, &mut required);
            let code = parts.next().unwrap_or("x");
            let attributes = attributes(parts, &mut decoder.names);
            let index = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
            nodes.push(decoder.node(code, &attributes));
            for kind in &attributes.kinds {
                kinds.insert(*kind, index);
            }
            if !attributes.kinds.is_empty() {
                kinds_of.insert(index, attributes.kinds);
            }
            debug_assert_eq!(decoder.by_name.get(name), Some(&index));
        } else if let Some(name) = first.strip_prefix('.') {
            let code = parts.next().unwrap_or("x");
            let attributes = attributes(parts, &mut decoder.names);
            let link = if code.starts_with('#') || (attributes.list.is_none() && !attributes.atomic) {
                decoder.link(code)
            } else {
                Link::Shared(Arc::new(decoder.node(code, &attributes)))
            };
            let name = decoder.names.get(name);
            if attributes.required {
                required.push(name.clone());
            }
            properties.push(Property {
                name,
                link,
                strategy: attributes.strategy,
                merge_key: attributes.merge_key,
                default: attributes.default,
                atomic: attributes.atomic,
            });
        } else if let Some(group_version) = first.strip_prefix('!') {
            let Some((group, version)) = group_version.split_once('/') else { continue };
            let rest: Vec<&'static str> = parts.collect();
            if let [name, kind, scope, verbs] = rest[..] {
                resources.push(Resource {
                    group,
                    version,
                    name,
                    kind,
                    namespaced: scope == "n",
                    verbs: verbs.split(',').collect(),
                });
            }
        }
    }
    finish(&mut nodes, &mut properties, &mut required);
    let schemas = kinds
        .values()
        .map(|index| (*index, Arc::new(Schema { root: Link::Builtin(*index), is_builtin: true, has_rules: false })))
        .collect();
    Table { nodes, names: type_names, by_name: decoder.by_name, kinds, kinds_of, schemas, resources }
}

/// The schema of a built-in kind; `group` is empty for the core group.
pub fn builtin(group: &str, version: &str, kind: &str) -> Option<Arc<Schema>> {
    let table = &*TABLE;
    let index = table.kinds.get(&(group, version, kind))?;
    table.schemas.get(index).cloned()
}

/// Every built-in resource and subresource with the verbs upstream serves (`connect` left out).
pub fn resources() -> &'static [Resource] {
    &TABLE.resources
}

/// (group, version, kind) of a type, empty for parts of kinds.
pub fn type_kinds(index: u32) -> &'static [(&'static str, &'static str, &'static str)] {
    TABLE.kinds_of.get(&index).map_or(&[], Vec::as_slice)
}

pub(crate) fn builtin_node(index: u32) -> &'static Node {
    &TABLE.nodes[index as usize]
}

pub(crate) fn type_name(index: u32) -> &'static str {
    TABLE.names[index as usize]
}

pub(crate) fn type_index(name: &str) -> Option<u32> {
    TABLE.by_name.get(name).copied()
}

/// The name of the type of a kind.
pub(crate) fn type_of_kind(group: &str, version: &str, kind: &str) -> Option<&'static str> {
    TABLE.kinds.get(&(group, version, kind)).map(|index| type_name(*index))
}

/// `roots` and every type they refer to, in table order.
pub(crate) fn reachable(roots: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
    fn links(node: &Node, out: &mut Vec<u32>) {
        let mut visit = |link: &Link| match link {
            Link::Builtin(index) => out.push(*index),
            Link::Shared(node) => links(node, out),
        };
        node.properties.iter().for_each(|p| visit(&p.link));
        if let Additional::Map(link) = &node.additional {
            visit(link);
        }
        if let Some(link) = &node.items {
            visit(link);
        }
    }
    let (mut todo, mut seen): (Vec<u32>, BTreeSet<u32>) = (roots.into_iter().collect(), BTreeSet::new());
    while let Some(index) = todo.pop() {
        if seen.insert(index) {
            links(builtin_node(index), &mut todo);
        }
    }
    seen
}
