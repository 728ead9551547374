//! One form for artifacts, executions and contexts, and for their types.

use crate::proto;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Artifact = 1,
    Execution = 2,
    Context = 3,
}

impl Kind {
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Artifact => "artifact",
            Self::Execution => "execution",
            Self::Context => "context",
        }
    }
}

impl rusqlite::ToSql for Kind {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok((*self as i64).into())
    }
}

/// What the three kinds have in common, and the few fields that only some have.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Node {
    pub id: Option<i64>,
    pub name: Option<String>,
    pub type_id: Option<i64>,
    pub type_name: Option<String>,
    pub uri: Option<String>,
    pub external_id: Option<String>,
    pub state: Option<i32>,
    pub properties: BTreeMap<String, proto::Value>,
    pub custom_properties: BTreeMap<String, proto::Value>,
    pub created: Option<i64>,
    pub updated: Option<i64>,
    pub system_metadata: Option<prost_types::Any>,
}

impl From<proto::Artifact> for Node {
    fn from(a: proto::Artifact) -> Self {
        Self {
            id: a.id,
            name: a.name,
            type_id: a.type_id,
            type_name: a.r#type,
            uri: a.uri,
            external_id: a.external_id,
            state: a.state,
            properties: a.properties,
            custom_properties: a.custom_properties,
            created: a.create_time_since_epoch,
            updated: a.last_update_time_since_epoch,
            system_metadata: a.system_metadata,
        }
    }
}

impl From<Node> for proto::Artifact {
    fn from(n: Node) -> Self {
        Self {
            id: n.id,
            name: n.name,
            type_id: n.type_id,
            r#type: n.type_name,
            uri: n.uri,
            external_id: n.external_id,
            state: n.state,
            properties: n.properties,
            custom_properties: n.custom_properties,
            create_time_since_epoch: n.created,
            last_update_time_since_epoch: n.updated,
            system_metadata: n.system_metadata,
        }
    }
}

impl From<proto::Execution> for Node {
    fn from(e: proto::Execution) -> Self {
        Self {
            id: e.id,
            name: e.name,
            type_id: e.type_id,
            type_name: e.r#type,
            uri: None,
            external_id: e.external_id,
            state: e.last_known_state,
            properties: e.properties,
            custom_properties: e.custom_properties,
            created: e.create_time_since_epoch,
            updated: e.last_update_time_since_epoch,
            system_metadata: e.system_metadata,
        }
    }
}

impl From<Node> for proto::Execution {
    fn from(n: Node) -> Self {
        Self {
            id: n.id,
            name: n.name,
            type_id: n.type_id,
            r#type: n.type_name,
            external_id: n.external_id,
            last_known_state: n.state,
            properties: n.properties,
            custom_properties: n.custom_properties,
            create_time_since_epoch: n.created,
            last_update_time_since_epoch: n.updated,
            system_metadata: n.system_metadata,
        }
    }
}

impl From<proto::Context> for Node {
    fn from(c: proto::Context) -> Self {
        Self {
            id: c.id,
            name: c.name,
            type_id: c.type_id,
            type_name: c.r#type,
            external_id: c.external_id,
            properties: c.properties,
            custom_properties: c.custom_properties,
            created: c.create_time_since_epoch,
            updated: c.last_update_time_since_epoch,
            system_metadata: c.system_metadata,
            ..Self::default()
        }
    }
}

impl From<Node> for proto::Context {
    fn from(n: Node) -> Self {
        Self {
            id: n.id,
            name: n.name,
            type_id: n.type_id,
            r#type: n.type_name,
            external_id: n.external_id,
            properties: n.properties,
            custom_properties: n.custom_properties,
            create_time_since_epoch: n.created,
            last_update_time_since_epoch: n.updated,
            system_metadata: n.system_metadata,
        }
    }
}

/// A type of any kind.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TypeInfo {
    pub id: Option<i64>,
    pub name: Option<String>,
    pub version: Option<String>,
    pub description: Option<String>,
    pub external_id: Option<String>,
    pub properties: BTreeMap<String, i32>,
    pub base_type: Option<i32>,
    pub input_type: Option<proto::ArtifactStructType>,
    pub output_type: Option<proto::ArtifactStructType>,
}

macro_rules! types {
    ($(#[$attribute:meta])* $message:ident { $($only:ident),* }) => {
        $(#[$attribute])*
        impl From<proto::$message> for TypeInfo {
            fn from(t: proto::$message) -> Self {
                Self {
                    id: t.id,
                    name: t.name,
                    version: t.version,
                    description: t.description,
                    external_id: t.external_id,
                    properties: t.properties,
                    base_type: t.base_type,
                    $($only: t.$only,)*
                    ..Self::default()
                }
            }
        }

        impl From<TypeInfo> for proto::$message {
            fn from(t: TypeInfo) -> Self {
                Self {
                    id: t.id,
                    name: t.name,
                    version: t.version,
                    description: t.description,
                    external_id: t.external_id,
                    properties: t.properties,
                    base_type: t.base_type,
                    $($only: t.$only,)*
                }
            }
        }
    };
}

types!(ArtifactType {});
types!(
    #[expect(clippy::needless_update, reason = "the other kinds lack fields that this one has")]
    ExecutionType { input_type, output_type }
);
types!(ContextType {});

/// The type a property's value has; `None` for a value without any.
pub(crate) fn value_type(value: &proto::Value) -> Option<proto::PropertyType> {
    use proto::{PropertyType, value::Value};
    Some(match value.value.as_ref()? {
        Value::IntValue(_) => PropertyType::Int,
        Value::DoubleValue(_) => PropertyType::Double,
        Value::StringValue(_) => PropertyType::String,
        Value::StructValue(_) => PropertyType::Struct,
        Value::ProtoValue(_) => PropertyType::Proto,
        Value::BoolValue(_) => PropertyType::Boolean,
    })
}
