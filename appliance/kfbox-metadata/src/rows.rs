//! Nodes as rows: writing them, and reading them within a scope.

use crate::{
    Error, Namespaces, Scope,
    node::{Kind, Node, value_type},
    proto, types,
};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter, types::Value};
use std::{collections::BTreeMap, time::SystemTime};

/// What a listing without page size may answer: beyond this the caller has to page.
pub(crate) const MAX_UNPAGED: usize = 100_000;

pub(crate) fn now() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map(|d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
        .unwrap_or_default()
}

/// The parameter `?1` of every query: the namespaces as JSON, or NULL for all.
pub(crate) fn readable(namespaces: &Namespaces) -> Value {
    match namespaces {
        Namespaces::All => Value::Null,
        Namespaces::These(names) => Value::Text(serde_json::json!(names).to_string()),
    }
}

/// A violated uniqueness is the caller's error.
pub(crate) fn constraint(error: rusqlite::Error, message: &str) -> Error {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::ConstraintViolation) => Error::AlreadyExists(message.into()),
        _ => error.into(),
    }
}

/// Nodes of a kind in scope that meet a condition on `n`, whose parameters are `?` in the order of `rest`.
pub(crate) fn select(
    c: &Connection,
    scope: &Scope,
    kind: Kind,
    condition: &str,
    rest: Vec<Value>,
) -> Result<Vec<Node>, Error> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT n.id, n.type, t.name, n.name, n.external_id, n.uri, n.state, n.created, n.updated, n.system_metadata \
         FROM node n JOIN type t ON t.id = n.type WHERE n.kind = {} \
         AND (?1 IS NULL OR n.namespace IN (SELECT value FROM json_each(?1))) AND {condition}",
        kind as i64
    ))?;
    let parameters = std::iter::once(readable(&scope.read)).chain(rest);
    let mut rows = statement.query(params_from_iter(parameters))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        if found.len() == MAX_UNPAGED {
            return Err(Error::ResourceExhausted(format!(
                "more than {MAX_UNPAGED} {}s; ask with max_result_size and page through them",
                kind.noun()
            )));
        }
        let system: Option<Vec<u8>> = row.get(9)?;
        let mut node = Node {
            id: row.get(0)?,
            type_id: row.get(1)?,
            type_name: row.get(2)?,
            name: row.get(3)?,
            external_id: row.get(4)?,
            uri: row.get(5)?,
            state: row.get(6)?,
            created: row.get(7)?,
            updated: row.get(8)?,
            system_metadata: system.map(|b| prost_types::Any::decode(b.as_slice())).transpose()?,
            ..Node::default()
        };
        load_properties(c, kind, &mut node)?;
        found.push(node);
    }
    Ok(found)
}

fn load_properties(c: &Connection, kind: Kind, node: &mut Node) -> Result<(), Error> {
    let mut statement = c.prepare_cached("SELECT custom, name, value FROM property WHERE kind = ?1 AND node = ?2")?;
    let mut rows = statement.query(params![kind, node.id])?;
    while let Some(row) = rows.next()? {
        let value = proto::Value::decode(row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?)?;
        let target = if row.get(0)? { &mut node.custom_properties } else { &mut node.properties };
        target.insert(row.get(1)?, value);
    }
    Ok(())
}

pub(crate) fn by_ids(c: &Connection, scope: &Scope, kind: Kind, ids: &[i64]) -> Result<Vec<Node>, Error> {
    let list = Value::Text(serde_json::to_string(ids)?);
    select(c, scope, kind, "n.id IN (SELECT value FROM json_each(?)) ORDER BY n.id", vec![list])
}

/// Where a node lives, if the scope may see it.
pub(crate) fn namespace_of(c: &Connection, scope: &Scope, kind: Kind, id: i64) -> Result<Option<String>, Error> {
    let namespace: Option<String> = c
        .prepare_cached("SELECT namespace FROM node WHERE kind = ?1 AND id = ?2")?
        .query_row(params![kind, id], |r| r.get(0))
        .optional()?;
    Ok(namespace.filter(|n| scope.read.contains(n)))
}

pub(crate) fn may_write(scope: &Scope, namespace: &str) -> Result<(), Error> {
    if scope.write.contains(namespace) {
        Ok(())
    } else {
        Err(Error::PermissionDenied(format!("you may not write metadata in namespace {namespace}")))
    }
}

/// How a put treats a node that exists.
#[derive(Debug, Clone, Default)]
pub(crate) struct Update<'a> {
    /// Only these fields (`uri`, `state`, `properties`, `properties.NAME`, ...); `None` or empty: all of them.
    pub mask: Option<&'a [String]>,
    pub abort_if_changed: bool,
    pub force_time: bool,
}

/// Upstream stores an artifact without a URI with an empty one, and filters see it so.
fn stored_uri(kind: Kind, uri: Option<String>) -> Option<String> {
    (kind == Kind::Artifact).then(|| uri.unwrap_or_default())
}

/// Creates the node, or updates the one whose id it carries. Returns its id.
pub(crate) fn put(c: &Connection, scope: &Scope, kind: Kind, node: Node, update: &Update<'_>) -> Result<i64, Error> {
    match node.id {
        Some(id) => change(c, scope, kind, id, node, update),
        None => create(c, scope, kind, node),
    }
}

fn create(c: &Connection, scope: &Scope, kind: Kind, node: Node) -> Result<i64, Error> {
    let type_id = node.type_id.ok_or_else(|| Error::InvalidArgument("Type id is missing.".into()))?;
    let owned = types::owned(c, scope, kind, type_id)?;
    may_write(scope, &owned.namespace)?;
    check_properties(type_id, &owned.info.properties, &node.properties)?;
    let name = node.name.filter(|n| !n.is_empty());
    if kind == Kind::Context && name.is_none() {
        return Err(Error::InvalidArgument("Context name should not be empty".into()));
    }
    let id: i64 = c
        .prepare_cached("SELECT coalesce(max(id), 0) + 1 FROM node WHERE kind = ?1")?
        .query_row([kind], |r| r.get(0))?;
    let time = now();
    c.prepare_cached(
        "INSERT INTO node (kind, id, namespace, type, name, external_id, uri, state, created, updated, system_metadata) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9, ?10)",
    )?
    .execute(params![
        kind,
        id,
        owned.namespace,
        type_id,
        name,
        node.external_id,
        stored_uri(kind, node.uri),
        node.state,
        time,
        node.system_metadata.map(|m| m.encode_to_vec()),
    ])
    .map_err(|e| {
        let what = name.as_deref().unwrap_or_default();
        constraint(e, &format!("Given node already exists: {} {what:?} of type {type_id}", kind.noun()))
    })?;
    put_properties(c, kind, id, &node.properties, &node.custom_properties)?;
    Ok(id)
}

fn change(c: &Connection, scope: &Scope, kind: Kind, id: i64, given: Node, update: &Update<'_>) -> Result<i64, Error> {
    let stored = by_ids(c, scope, kind, &[id])?.into_iter().next();
    let stored = stored.ok_or_else(|| Error::InvalidArgument(format!("Cannot find the given id {id}")))?;
    let namespace = namespace_of(c, scope, kind, id)?.unwrap_or_default();
    may_write(scope, &namespace)?;
    let type_id = stored.type_id.unwrap_or_default();
    if given.type_id.is_some_and(|t| t != type_id) {
        return Err(Error::InvalidArgument(format!(
            "Given type_id {} is different from the one known before: {type_id}",
            given.type_id.unwrap_or_default()
        )));
    }
    if update.abort_if_changed && given.updated != stored.updated {
        return Err(Error::FailedPrecondition(format!(
            "{} {id} was changed at {}, not at the time given",
            kind.noun(),
            stored.updated.unwrap_or_default()
        )));
    }
    let mut wanted = match update.mask.filter(|m| !m.is_empty()) {
        Some(mask) => masked(&stored, given, mask)?,
        None => given,
    };
    // Name, type and times of a node are not for the caller to change.
    wanted.id = stored.id;
    wanted.name.clone_from(&stored.name);
    wanted.type_id = stored.type_id;
    wanted.type_name.clone_from(&stored.type_name);
    wanted.created = stored.created;
    wanted.updated = stored.updated;
    wanted.uri = stored_uri(kind, wanted.uri);
    if wanted == stored && !update.force_time {
        return Ok(id);
    }
    let owned = types::owned(c, scope, kind, type_id)?;
    check_properties(type_id, &owned.info.properties, &wanted.properties)?;
    c.prepare_cached(
        "UPDATE node SET external_id = ?3, uri = ?4, state = ?5, updated = max(?6, updated + 1), system_metadata = ?7 \
         WHERE kind = ?1 AND id = ?2",
    )?
    .execute(params![
        kind,
        id,
        wanted.external_id,
        wanted.uri,
        wanted.state,
        now(),
        wanted.system_metadata.map(|m| m.encode_to_vec()),
    ])
    .map_err(|e| constraint(e, &format!("the external id of {} {id} is taken", kind.noun())))?;
    c.prepare_cached("DELETE FROM property WHERE kind = ?1 AND node = ?2")?.execute(params![kind, id])?;
    put_properties(c, kind, id, &wanted.properties, &wanted.custom_properties)?;
    Ok(id)
}

/// The stored node with the masked fields taken from the given one.
fn masked(stored: &Node, mut given: Node, mask: &[String]) -> Result<Node, Error> {
    let mut node = stored.clone();
    for path in mask {
        match path.split_once('.') {
            None => match path.as_str() {
                "uri" => node.uri = given.uri.take(),
                "external_id" => node.external_id = given.external_id.take(),
                "state" | "last_known_state" => node.state = given.state,
                "properties" => node.properties = std::mem::take(&mut given.properties),
                "custom_properties" => node.custom_properties = std::mem::take(&mut given.custom_properties),
                "system_metadata" => node.system_metadata = given.system_metadata.take(),
                _ => return Err(Error::InvalidArgument(format!("update_mask cannot hold {path}"))),
            },
            Some((group @ ("properties" | "custom_properties"), name)) => {
                let (from, to) = match group {
                    "properties" => (&mut given.properties, &mut node.properties),
                    _ => (&mut given.custom_properties, &mut node.custom_properties),
                };
                match from.remove(name) {
                    Some(value) => drop(to.insert(name.to_owned(), value)),
                    None => drop(to.remove(name)),
                }
            }
            Some(_) => return Err(Error::InvalidArgument(format!("update_mask cannot hold {path}"))),
        }
    }
    Ok(node)
}

fn check_properties(
    type_id: i64,
    known: &BTreeMap<String, i32>,
    given: &BTreeMap<String, proto::Value>,
) -> Result<(), Error> {
    for (name, value) in given {
        let why = match known.get(name) {
            None => "unknown property",
            Some(kind) if value_type(value).map(|t| t as i32) != Some(*kind) => "unmatched property type",
            Some(_) => continue,
        };
        return Err(Error::InvalidArgument(format!(
            "Cannot validate properties of type_id {type_id}: Found {why}: {name}"
        )));
    }
    Ok(())
}

fn put_properties(
    c: &Connection,
    kind: Kind,
    id: i64,
    properties: &BTreeMap<String, proto::Value>,
    custom: &BTreeMap<String, proto::Value>,
) -> Result<(), Error> {
    use proto::value::Value as Content;
    let mut statement = c.prepare_cached(
        "INSERT INTO property (kind, node, custom, name, value, int_value, double_value, string_value, bool_value) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    let both = properties.iter().map(|p| (false, p)).chain(custom.iter().map(|p| (true, p)));
    for (custom, (name, value)) in both {
        let (mut int, mut double, mut text, mut boolean) = (None, None, None, None);
        match &value.value {
            Some(Content::IntValue(n)) => int = Some(*n),
            Some(Content::DoubleValue(n)) => double = Some(*n),
            Some(Content::StringValue(s)) => text = Some(s.as_str()),
            Some(Content::BoolValue(b)) => boolean = Some(*b),
            Some(Content::StructValue(_) | Content::ProtoValue(_)) => {}
            None => return Err(Error::InvalidArgument(format!("the property {name} has no value"))),
        }
        statement.execute(params![kind, id, custom, name, value.encode_to_vec(), int, double, text, boolean])?;
    }
    Ok(())
}
