//! Links between nodes: events, attributions, associations, parents. All join nodes of one namespace only.

use crate::{
    Error, Scope,
    node::{Kind, Node},
    proto,
    rows::{self, constraint, may_write, namespace_of, now, select},
};
use prost::Message;
use rusqlite::{Connection, Row, params, types::Value};

/// Both ends in one namespace that the caller may write; an end that it may not see does not exist.
fn joined(c: &Connection, scope: &Scope, a: (Kind, i64), b: (Kind, i64)) -> Result<(), Error> {
    let end = |(kind, id): (Kind, i64)| {
        namespace_of(c, scope, kind, id)?
            .ok_or_else(|| Error::InvalidArgument(format!("No {} with the given id {id}", kind.noun())))
    };
    let (first, second) = (end(a)?, end(b)?);
    if first != second {
        return Err(Error::InvalidArgument(format!(
            "{} {} and {} {} belong to different namespaces",
            a.0.noun(),
            a.1,
            b.0.noun(),
            b.1
        )));
    }
    may_write(scope, &first)
}

pub(crate) fn put_event(c: &Connection, scope: &Scope, event: &proto::Event) -> Result<(), Error> {
    let missing = |what: &str| Error::InvalidArgument(format!("No {what} is specified."));
    let artifact = event.artifact_id.ok_or_else(|| missing("artifact id"))?;
    let execution = event.execution_id.ok_or_else(|| missing("execution id"))?;
    if event.r#type() == proto::event::Type::Unknown {
        return Err(missing("event type"));
    }
    joined(c, scope, (Kind::Artifact, artifact), (Kind::Execution, execution))?;
    c.prepare_cached(
        "INSERT INTO event (artifact, execution, type, path, time, system_metadata) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        artifact,
        execution,
        event.r#type,
        event.path.as_ref().map(Message::encode_to_vec),
        event.milliseconds_since_epoch.unwrap_or_else(now),
        event.system_metadata.as_ref().map(Message::encode_to_vec),
    ])
    .map_err(|e| {
        constraint(
            e,
            &format!(
                "Given event already exists: artifact {artifact}, execution {execution}, {}",
                event.r#type().as_str_name()
            ),
        )
    })?;
    Ok(())
}

fn event_from(row: &Row<'_>) -> Result<proto::Event, Error> {
    let path: Option<Vec<u8>> = row.get(3)?;
    let system: Option<Vec<u8>> = row.get(5)?;
    Ok(proto::Event {
        artifact_id: row.get(0)?,
        execution_id: row.get(1)?,
        r#type: row.get(2)?,
        path: path.map(|b| proto::event::Path::decode(b.as_slice())).transpose()?,
        milliseconds_since_epoch: row.get(4)?,
        system_metadata: system.map(|b| prost_types::Any::decode(b.as_slice())).transpose()?,
    })
}

/// The events at artifacts or executions, oldest first.
pub(crate) fn events(c: &Connection, scope: &Scope, kind: Kind, ids: &[i64]) -> Result<Vec<proto::Event>, Error> {
    let mut statement = c.prepare_cached(&format!(
        "SELECT e.artifact, e.execution, e.type, e.path, e.time, e.system_metadata FROM event e \
         JOIN node n ON n.kind = {} AND n.id = e.{end} \
         WHERE (?1 IS NULL OR n.namespace IN (SELECT value FROM json_each(?1))) \
         AND e.{end} IN (SELECT value FROM json_each(?2)) ORDER BY e.id",
        kind as i64,
        end = kind.noun(),
    ))?;
    let mut rows = statement.query(params![rows::readable(&scope.read), serde_json::to_string(ids)?])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(event_from(row)?);
    }
    Ok(found)
}

/// Puts a node into a context; once is enough.
pub(crate) fn put_member(c: &Connection, scope: &Scope, context: i64, kind: Kind, node: i64) -> Result<(), Error> {
    joined(c, scope, (Kind::Context, context), (kind, node))?;
    c.prepare_cached("INSERT OR IGNORE INTO member (context, kind, node) VALUES (?1, ?2, ?3)")?
        .execute(params![context, kind, node])?;
    Ok(())
}

pub(crate) fn contexts_of(c: &Connection, scope: &Scope, kind: Kind, node: i64) -> Result<Vec<Node>, Error> {
    if namespace_of(c, scope, kind, node)?.is_none() {
        return Err(Error::NotFound(format!("No contexts found for {}_id: {node}", kind.noun())));
    }
    let condition = "n.id IN (SELECT context FROM member WHERE kind = ? AND node = ?) ORDER BY n.id";
    select(c, scope, Kind::Context, condition, vec![Value::Integer(kind as i64), Value::Integer(node)])
}

pub(crate) fn put_parent(c: &Connection, scope: &Scope, child: i64, parent: i64) -> Result<(), Error> {
    joined(c, scope, (Kind::Context, child), (Kind::Context, parent))?;
    let cycle: bool = c.query_row(
        "WITH RECURSIVE above (id) AS (VALUES (?2) UNION SELECT p.parent FROM parent p JOIN above a ON p.child = a.id) \
         SELECT EXISTS (SELECT 1 FROM above WHERE id = ?1)",
        params![child, parent],
        |r| r.get(0),
    )?;
    if cycle {
        return Err(Error::InvalidArgument("There is a cycle detected of the given relationship.".into()));
    }
    c.execute("INSERT INTO parent (child, parent) VALUES (?1, ?2)", params![child, parent])
        .map_err(|e| constraint(e, &format!("Given parent_context already exists: child {child}, parent {parent}")))?;
    Ok(())
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Relation {
    Parents,
    Children,
}

pub(crate) fn relatives(c: &Connection, scope: &Scope, of: i64, relation: Relation) -> Result<Vec<Node>, Error> {
    if namespace_of(c, scope, Kind::Context, of)?.is_none() {
        return Ok(Vec::new());
    }
    let condition = match relation {
        Relation::Parents => "n.id IN (SELECT parent FROM parent WHERE child = ?) ORDER BY n.id",
        Relation::Children => "n.id IN (SELECT child FROM parent WHERE parent = ?) ORDER BY n.id",
    };
    select(c, scope, Kind::Context, condition, vec![Value::Integer(of)])
}
