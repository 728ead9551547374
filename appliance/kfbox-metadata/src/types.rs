//! Types: what properties the nodes of that type may have. A type belongs to a namespace as everything does, so that
//! one tenant's `system.Dataset` cannot get in the way of another's.

use crate::{
    Error, Scope,
    node::{Kind, TypeInfo},
    rows::{constraint, readable},
};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, Row, params, types::Value};
use std::collections::BTreeMap;

/// How a type that exists may differ from the one put.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Evolution {
    pub can_add: bool,
    pub can_omit: bool,
}

const COLUMNS: &str =
    "id, name, version, description, external_id, base_type, input_type, output_type, properties, namespace";

/// A type and the namespace it belongs to.
pub(crate) struct Owned {
    pub info: TypeInfo,
    pub namespace: String,
}

fn from_row(row: &Row<'_>) -> Result<Owned, Error> {
    let message = |n: usize| -> Result<Option<_>, Error> {
        let bytes: Option<Vec<u8>> = row.get(n)?;
        Ok(bytes.map(|b| crate::proto::ArtifactStructType::decode(b.as_slice())).transpose()?)
    };
    let version: String = row.get(2)?;
    Ok(Owned {
        namespace: row.get(9)?,
        info: TypeInfo {
            id: row.get(0)?,
            name: row.get(1)?,
            version: (!version.is_empty()).then_some(version),
            description: row.get(3)?,
            external_id: row.get(4)?,
            base_type: row.get(5)?,
            input_type: message(6)?,
            output_type: message(7)?,
            properties: serde_json::from_str(&row.get::<_, String>(8)?)?,
        },
    })
}

fn select(c: &Connection, scope: &Scope, condition: &str, rest: Vec<Value>) -> Result<Vec<Owned>, Error> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM type WHERE (?1 IS NULL OR namespace IN (SELECT value FROM json_each(?1))) AND {condition}"
    ))?;
    let parameters = std::iter::once(readable(&scope.read)).chain(rest);
    let mut rows = statement.query(rusqlite::params_from_iter(parameters))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(from_row(row)?);
    }
    Ok(found)
}

/// Puts a type into the scope's namespace; one of that name and version may be there already.
pub(crate) fn put(
    c: &Connection,
    scope: &Scope,
    kind: Kind,
    new: TypeInfo,
    evolution: Evolution,
) -> Result<i64, Error> {
    let name = new.name.filter(|n| !n.is_empty());
    let name = name.ok_or_else(|| Error::InvalidArgument("No type name is specified.".into()))?;
    if let Some((property, _)) = new.properties.iter().find(|(_, t)| !(1..=6).contains(*t)) {
        return Err(Error::InvalidArgument(format!("Property {property} is UNKNOWN.")));
    }
    let namespace = target(scope)?;
    let version = new.version.unwrap_or_default();
    let stored: Option<(i64, String)> = c
        .prepare_cached(
            "SELECT id, properties FROM type WHERE kind = ?1 AND name = ?2 AND version = ?3 AND namespace = ?4",
        )?
        .query_row(params![kind, name, version, namespace], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    if let Some((id, properties)) = stored {
        let mut stored: BTreeMap<String, i32> = serde_json::from_str(&properties)?;
        merge(&name, &mut stored, new.properties, evolution)?;
        c.execute(
            "UPDATE type SET properties = ?2, description = coalesce(?3, description), \
             external_id = coalesce(?4, external_id), base_type = coalesce(?5, base_type) WHERE id = ?1",
            params![id, serde_json::to_string(&stored)?, new.description, new.external_id, new.base_type],
        )
        .map_err(|e| constraint(e, "a type with that external id exists"))?;
        return Ok(id);
    }
    c.query_row(
        "INSERT INTO type (namespace, kind, name, version, description, external_id, base_type, input_type, \
         output_type, properties) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) RETURNING id",
        params![
            namespace,
            kind,
            name,
            version,
            new.description,
            new.external_id,
            new.base_type,
            new.input_type.map(|t| t.encode_to_vec()),
            new.output_type.map(|t| t.encode_to_vec()),
            serde_json::to_string(&new.properties)?,
        ],
        |r| r.get(0),
    )
    .map_err(|e| constraint(e, "a type with that external id exists"))
}

fn merge(
    name: &str,
    stored: &mut BTreeMap<String, i32>,
    given: BTreeMap<String, i32>,
    evolution: Evolution,
) -> Result<(), Error> {
    let differs = |why: String| {
        Err(Error::AlreadyExists(format!("Type already exists with different properties: {name}: {why}")))
    };
    if let Some(property) = stored.keys().find(|p| !given.contains_key(*p)).filter(|_| !evolution.can_omit) {
        return differs(format!("can_omit_fields is false while the stored type also has {property}"));
    }
    for (property, kind) in given {
        match stored.get(&property) {
            Some(old) if *old != kind => return differs(format!("{property} is stored with another value type")),
            Some(_) => {}
            None if evolution.can_add => drop(stored.insert(property, kind)),
            None => return differs(format!("can_add_fields is false while the given type also has {property}")),
        }
    }
    Ok(())
}

/// Where what is made without a type to say so belongs.
pub(crate) fn target(scope: &Scope) -> Result<&str, Error> {
    let namespace = scope.target.as_deref().ok_or_else(|| {
        Error::FailedPrecondition(format!(
            "name the namespace to write into with the request metadata {}",
            crate::NAMESPACE_HEADER
        ))
    })?;
    if scope.write.contains(namespace) {
        Ok(namespace)
    } else {
        Err(Error::PermissionDenied(format!("you may not write metadata in namespace {namespace}")))
    }
}

/// By name; the scope's own namespace first. `version` empty or absent: the type without one.
pub(crate) fn by_name(
    c: &Connection,
    scope: &Scope,
    kind: Kind,
    name: &str,
    version: Option<&str>,
) -> Result<Option<TypeInfo>, Error> {
    let home = Value::Text(scope.target.clone().unwrap_or_default());
    let condition = "kind = ? AND name = ? AND version = ? ORDER BY namespace = ? DESC, id LIMIT 1";
    let rest = vec![
        Value::Integer(kind as i64),
        Value::Text(name.into()),
        Value::Text(version.unwrap_or_default().into()),
        home,
    ];
    Ok(select(c, scope, condition, rest)?.into_iter().next().map(|o| o.info))
}

pub(crate) fn all(c: &Connection, scope: &Scope, kind: Kind) -> Result<Vec<TypeInfo>, Error> {
    let found = select(c, scope, "kind = ? ORDER BY id", vec![Value::Integer(kind as i64)])?;
    Ok(found.into_iter().map(|o| o.info).collect())
}

pub(crate) fn by_ids(c: &Connection, scope: &Scope, kind: Kind, ids: &[i64]) -> Result<Vec<TypeInfo>, Error> {
    let condition = "kind = ? AND id IN (SELECT value FROM json_each(?)) ORDER BY id";
    let rest = vec![Value::Integer(kind as i64), Value::Text(serde_json::to_string(ids)?)];
    Ok(select(c, scope, condition, rest)?.into_iter().map(|o| o.info).collect())
}

pub(crate) fn by_external_ids(
    c: &Connection,
    scope: &Scope,
    kind: Kind,
    ids: &[String],
) -> Result<Vec<TypeInfo>, Error> {
    let condition = "kind = ? AND external_id IN (SELECT value FROM json_each(?)) ORDER BY id";
    let rest = vec![Value::Integer(kind as i64), Value::Text(serde_json::to_string(ids)?)];
    Ok(select(c, scope, condition, rest)?.into_iter().map(|o| o.info).collect())
}

/// The type that a new node names by id.
pub(crate) fn owned(c: &Connection, scope: &Scope, kind: Kind, id: i64) -> Result<Owned, Error> {
    select(c, scope, "kind = ? AND id = ?", vec![Value::Integer(kind as i64), Value::Integer(id)])?
        .into_iter()
        .next()
        .ok_or_else(|| Error::NotFound(format!("Cannot find type for type_id: {id}")))
}
