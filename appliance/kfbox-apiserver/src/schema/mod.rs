//! What fields an object may have: built-in kinds from `generated/kinds.txt`, custom kinds from their CRD, one model
//! for pruning, defaulting, validation, strategic merge and server-side apply.
//!
//! Invariant: pure functions over `serde_json::Value`; nothing here does I/O or keeps an object.
//! Upstream: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/>.

mod builtin;
mod cel;
mod cel_types;
mod check;
mod crd;
mod default;
mod field;
mod formats;
mod group_defaults;
mod kinds;
mod prune;
pub(crate) mod quantity;
mod structural;
mod typed_defaults;

use std::sync::Arc;

use serde_json::Value;

pub use builtin::{builtin, resources, type_kinds};
pub(crate) use builtin::{builtin_node, reachable, type_index, type_name, type_of_kind};
pub(crate) use cel_types::declare_kind;
#[cfg(test)]
pub(crate) use cel_types::declare_value;
pub(crate) use check::canonical as canonical_json;
pub use check::validate;
#[cfg(test)]
pub use crd::from_crd;
pub use crd::{from_crd_update, from_crd_version};
pub use default::default;
pub use field::FieldError;
#[cfg(test)]
use field::Reason;
pub use kinds::{is_dns_subdomain, service_addresses, validate_metadata, validate_write};
pub use prune::prune;
pub use typed_defaults::default_builtin;
pub(crate) use typed_defaults::drop_nulls;

/// The kind of value at a place in an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
    Quantity,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

/// How members beside the named properties are treated.
#[derive(Clone, Debug, Default)]
pub enum Additional {
    /// Unknown members are dropped.
    #[default]
    Closed,
    /// Kept and not looked into.
    Open,
    /// A map with values of this form.
    Map(Link),
}

/// A reference to a node: an own one, or one of the table of built-in types (which may refer to each other in rings).
#[derive(Clone, Debug)]
pub enum Link {
    Shared(Arc<Node>),
    Builtin(u32),
}

impl Link {
    pub fn node(&self) -> &Node {
        match self {
            Link::Shared(node) => node,
            Link::Builtin(index) => builtin_node(*index),
        }
    }
}

/// `x-kubernetes-patch-strategy` as bits.
pub const MERGE: u8 = 1;
pub const REPLACE: u8 = 2;
pub const RETAIN_KEYS: u8 = 4;

/// A named member of an object.
#[derive(Clone, Debug)]
pub struct Property {
    pub name: Arc<str>,
    pub link: Link,
    pub strategy: u8,
    pub merge_key: Option<Arc<str>>,
    pub default: Option<Arc<Value>>,
    /// The map type given at the field rather than at its type is atomic.
    pub atomic: bool,
}

/// The schema at one place.
#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Type,
    pub format: Option<Arc<str>>,
    /// Sorted by name.
    pub properties: Box<[Property]>,
    pub additional: Additional,
    pub items: Option<Link>,
    pub required: Box<[Arc<str>]>,
    pub list: Option<ListType>,
    pub keys: Box<[Arc<str>]>,
    pub atomic: bool,
    pub preserve: bool,
    pub embedded: bool,
    pub nullable: bool,
    pub rules: Option<Arc<check::Rules>>,
}

impl Node {
    pub(crate) fn of(kind: Type) -> Self {
        Node {
            kind,
            format: None,
            properties: Box::new([]),
            additional: Additional::Closed,
            items: None,
            required: Box::new([]),
            list: None,
            keys: Box::new([]),
            atomic: false,
            preserve: false,
            embedded: false,
            nullable: false,
            rules: None,
        }
    }

    pub fn property(&self, name: &str) -> Option<&Property> {
        self.properties.binary_search_by(|p| p.name.as_ref().cmp(name)).ok().map(|at| &self.properties[at])
    }

    /// The schema of member `name`: the named property, else the value schema of a map.
    pub fn member(&self, name: &str) -> Option<&Node> {
        match self.property(name) {
            Some(property) => Some(property.link.node()),
            None => match &self.additional {
                Additional::Map(link) => Some(link.node()),
                _ => None,
            },
        }
    }

    pub fn item(&self) -> Option<&Node> {
        self.items.as_ref().map(Link::node)
    }

    /// True where members are not described, so that everything is kept.
    pub fn is_open(&self) -> bool {
        self.kind == Type::Any || self.preserve || matches!(self.additional, Additional::Open)
    }
}

/// The schema of one kind in one version.
#[derive(Clone, Debug)]
pub struct Schema {
    pub(crate) root: Link,
    /// Compiled into the server rather than made from a CRD.
    pub is_builtin: bool,
    /// Holds CEL rules, which need a deep stack.
    pub(crate) has_rules: bool,
}

impl Schema {
    pub fn root(&self) -> &Node {
        self.root.node()
    }

    /// A schema that knows only `apiVersion`, `kind` and `metadata` and keeps the rest.
    pub fn open() -> Arc<Schema> {
        Arc::new(crd::open_schema())
    }
}

#[cfg(test)]
mod tests;
