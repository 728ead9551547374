//! Puts of several nodes and their links at once: all or nothing.

use crate::{
    Error, Scope,
    links::{put_event, put_member},
    node::{Kind, Node},
    proto,
    rows::{self, Update, select},
};
use rusqlite::{Connection, types::Value};

/// The id of the artifact with that external id, if reuse is asked for and there is one.
fn known_artifact(c: &Connection, scope: &Scope, artifact: &Node, reuse: bool) -> Result<Option<i64>, Error> {
    let Some(external) = artifact.external_id.as_ref().filter(|_| reuse && artifact.id.is_none()) else {
        return Ok(None);
    };
    let found = select(c, scope, Kind::Artifact, "n.external_id = ? LIMIT 1", vec![Value::Text(external.clone())])?;
    Ok(found.first().and_then(|n| n.id))
}

/// Of contexts without id, the one of that type and name, if reuse is asked for and there is one.
fn known_context(c: &Connection, scope: &Scope, context: &Node, reuse: bool) -> Result<Option<i64>, Error> {
    match (&context.name, context.type_id) {
        (Some(name), Some(type_id)) if reuse && context.id.is_none() => {
            let rest = vec![Value::Integer(type_id), Value::Text(name.clone())];
            let found = select(c, scope, Kind::Context, "n.type = ? AND n.name = ?", rest)?;
            Ok(found.first().and_then(|n| n.id))
        }
        _ => Ok(None),
    }
}

pub(crate) fn put_execution(
    c: &Connection,
    scope: &Scope,
    request: proto::PutExecutionRequest,
) -> Result<proto::PutExecutionResponse, Error> {
    let options = request.options.unwrap_or_default();
    let execution = request.execution.ok_or_else(|| Error::InvalidArgument("No execution is found: None".into()))?;
    let update = Update { force_time: options.force_update_time(), ..Update::default() };
    let execution = rows::put(c, scope, Kind::Execution, execution.into(), &update)?;
    let mut artifacts = Vec::new();
    for pair in request.artifact_event_pairs {
        let reuse = options.reuse_artifact_if_already_exist_by_external_id();
        let artifact = match (pair.artifact, pair.event.as_ref().and_then(|e| e.artifact_id)) {
            (Some(artifact), named) => {
                let artifact = Node::from(artifact);
                if named.is_some() && named != artifact.id {
                    return Err(Error::InvalidArgument(
                        "Given event.artifact_id is not aligned with the artifact".into(),
                    ));
                }
                match known_artifact(c, scope, &artifact, reuse)? {
                    Some(id) => id,
                    None => rows::put(c, scope, Kind::Artifact, artifact, &update)?,
                }
            }
            (None, Some(id)) => id,
            (None, None) => return Err(Error::InvalidArgument("a pair has neither artifact nor event".into())),
        };
        if let Some(mut event) = pair.event {
            if event.execution_id.is_some_and(|id| id != execution) {
                return Err(Error::InvalidArgument(
                    "Given event.execution_id is not aligned with the execution".into(),
                ));
            }
            event.artifact_id = Some(artifact);
            event.execution_id = Some(execution);
            put_event(c, scope, &event)?;
        }
        artifacts.push(artifact);
    }
    let mut contexts = Vec::new();
    for context in request.contexts {
        let context = Node::from(context);
        let id = match context.id.filter(|_| options.force_reuse_context()) {
            Some(id) => id,
            None => put_context(c, scope, context, options.reuse_context_if_already_exist())?,
        };
        put_member(c, scope, id, Kind::Execution, execution)?;
        for artifact in &artifacts {
            put_member(c, scope, id, Kind::Artifact, *artifact)?;
        }
        contexts.push(id);
    }
    Ok(proto::PutExecutionResponse { execution_id: Some(execution), artifact_ids: artifacts, context_ids: contexts })
}

fn put_context(c: &Connection, scope: &Scope, context: Node, reuse: bool) -> Result<i64, Error> {
    match known_context(c, scope, &context, reuse)? {
        Some(id) => Ok(id),
        None => rows::put(c, scope, Kind::Context, context, &Update::default()),
    }
}

pub(crate) fn put_subgraph(
    c: &Connection,
    scope: &Scope,
    request: proto::PutLineageSubgraphRequest,
) -> Result<proto::PutLineageSubgraphResponse, Error> {
    let options = request.options.unwrap_or_default();
    let contexts = request
        .contexts
        .into_iter()
        .map(|n| put_context(c, scope, n.into(), options.reuse_context_if_already_exist()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut artifacts = Vec::new();
    for artifact in request.artifacts {
        let artifact = Node::from(artifact);
        let reuse = options.reuse_artifact_if_already_exist_by_external_id();
        artifacts.push(match known_artifact(c, scope, &artifact, reuse)? {
            Some(id) => id,
            None => rows::put(c, scope, Kind::Artifact, artifact, &Update::default())?,
        });
    }
    let executions = request
        .executions
        .into_iter()
        .map(|n| rows::put(c, scope, Kind::Execution, n.into(), &Update::default()))
        .collect::<Result<Vec<_>, _>>()?;
    for edge in request.event_edges {
        let mut event = edge.event.ok_or_else(|| Error::InvalidArgument("an event edge has no event".into()))?;
        event.artifact_id = end(&artifacts, edge.artifact_index, event.artifact_id, "artifact")?;
        event.execution_id = end(&executions, edge.execution_index, event.execution_id, "execution")?;
        put_event(c, scope, &event)?;
    }
    for context in &contexts {
        for artifact in &artifacts {
            put_member(c, scope, *context, Kind::Artifact, *artifact)?;
        }
        for execution in &executions {
            put_member(c, scope, *context, Kind::Execution, *execution)?;
        }
    }
    Ok(proto::PutLineageSubgraphResponse { execution_ids: executions, artifact_ids: artifacts, context_ids: contexts })
}

/// An edge's end: the node at the index given, or the one that the event names by id.
fn end(ids: &[i64], index: Option<i32>, named: Option<i64>, noun: &str) -> Result<Option<i64>, Error> {
    let Some(index) = index else {
        return match named {
            Some(id) => Ok(Some(id)),
            None => Err(Error::InvalidArgument(format!("an event edge names no {noun}"))),
        };
    };
    let id = usize::try_from(index).ok().and_then(|n| ids.get(n)).copied();
    let id = id.ok_or_else(|| {
        Error::OutOfRange(format!(
            "The event_edge has an {noun}_index {index} that is outside the bounds of the request's {noun}s list, [0, {})",
            ids.len()
        ))
    })?;
    if named.is_some_and(|n| n != id) {
        return Err(Error::InvalidArgument(format!("the event's {noun}_id differs from the {noun} at its index")));
    }
    Ok(Some(id))
}
