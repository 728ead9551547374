//! Lineage: what is reached from some nodes by following events.

use crate::{
    Error, Scope, filter,
    links::events,
    listing::list,
    node::{Kind, Node},
    proto::{self, event::Type, lineage_subgraph_query_options as options},
    rows::{by_ids, select},
    types,
};
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};

/// As upstream: at most so many nodes to start from, and so many steps.
const MAX_STARTS: usize = 100;
const MAX_HOPS: i64 = 100;
const DEFAULT_HOPS: i64 = 20;
/// A larger graph is of no use to a reader and too large for one message.
const MAX_NODES: usize = 10_000;

#[derive(Default)]
struct Graph {
    artifacts: BTreeSet<i64>,
    executions: BTreeSet<i64>,
    events: BTreeMap<(i64, i64, i32), proto::Event>,
}

impl Graph {
    fn set(&mut self, kind: Kind) -> &mut BTreeSet<i64> {
        if kind == Kind::Artifact { &mut self.artifacts } else { &mut self.executions }
    }
}

/// The ids that meet a filter; an empty filter is met by none.
fn matching(c: &Connection, scope: &Scope, kind: Kind, query: &str, limit: &str) -> Result<BTreeSet<i64>, Error> {
    if query.trim().is_empty() {
        return Ok(BTreeSet::new());
    }
    let filter = filter::parse(kind, query)?;
    let nodes = select(c, scope, kind, &format!("{} ORDER BY n.id {limit}", filter.sql), filter.parameters)?;
    Ok(nodes.into_iter().filter_map(|n| n.id).collect())
}

struct Walk<'a> {
    c: &'a Connection,
    scope: &'a Scope,
    direction: options::Direction,
    hops: i64,
    max_nodes: usize,
    stop_artifacts: BTreeSet<i64>,
    stop_executions: BTreeSet<i64>,
    include_stops: (bool, bool),
}

impl Walk<'_> {
    /// Does the event lead away from a node of `kind` in the walk's direction? Downstream runs from input artifact to
    /// execution to output artifact.
    fn follows(&self, kind: Kind, event: &proto::Event) -> bool {
        let output =
            matches!(event.r#type(), Type::Output | Type::DeclaredOutput | Type::InternalOutput | Type::PendingOutput);
        match self.direction {
            options::Direction::Downstream => output == (kind == Kind::Execution),
            options::Direction::Upstream => output == (kind == Kind::Artifact),
            options::Direction::Bidirectional | options::Direction::Unspecified => true,
        }
    }

    fn run(&self, start: Kind, ids: BTreeSet<i64>) -> Result<Graph, Error> {
        let mut graph = Graph::default();
        let mut edge = (start, ids);
        graph.set(start).extend(&edge.1);
        for _ in 0..self.hops {
            let (kind, ids) = edge;
            let (other, stops, include) = match kind {
                Kind::Artifact => (Kind::Execution, &self.stop_executions, self.include_stops.1),
                _ => (Kind::Artifact, &self.stop_artifacts, self.include_stops.0),
            };
            let ids: Vec<i64> = ids.into_iter().collect();
            let mut next = BTreeSet::new();
            for event in events(self.c, self.scope, kind, &ids)? {
                let (Some(artifact), Some(execution)) = (event.artifact_id, event.execution_id) else { continue };
                let reached = if other == Kind::Artifact { artifact } else { execution };
                let stop = stops.contains(&reached);
                if !self.follows(kind, &event) || (stop && !include) {
                    continue;
                }
                graph.events.insert((artifact, execution, event.r#type() as i32), event);
                if graph.set(other).insert(reached) && !stop {
                    next.insert(reached);
                }
                if graph.artifacts.len() + graph.executions.len() >= self.max_nodes {
                    return Ok(graph);
                }
            }
            if next.is_empty() {
                break;
            }
            edge = (other, next);
        }
        Ok(graph)
    }
}

pub(crate) fn subgraph(
    c: &Connection,
    scope: &Scope,
    request: proto::GetLineageSubgraphRequest,
) -> Result<proto::LineageGraph, Error> {
    use options::StartingNodes;
    let asked = request.lineage_subgraph_query_options.unwrap_or_default();
    let query = |nodes: &StartingNodes| nodes.filter_query().to_owned();
    let (kind, query) = match &asked.starting_nodes {
        Some(proto::lineage_subgraph_query_options::StartingNodesOneOf::StartingArtifacts(nodes)) => {
            (Kind::Artifact, query(nodes))
        }
        Some(proto::lineage_subgraph_query_options::StartingNodesOneOf::StartingExecutions(nodes)) => {
            (Kind::Execution, query(nodes))
        }
        None => return Err(Error::InvalidArgument("Missing arguments for listing starting nodes.".into())),
    };
    let starts = if query.trim().is_empty() {
        let all = select(c, scope, kind, &format!("1 ORDER BY n.id LIMIT {MAX_STARTS}"), Vec::new())?;
        all.into_iter().filter_map(|n| n.id).collect()
    } else {
        matching(c, scope, kind, &query, &format!("LIMIT {MAX_STARTS}"))?
    };
    let ends = |kind, nodes: &Option<options::EndingNodes>| {
        let nodes = nodes.clone().unwrap_or_default();
        Ok::<_, Error>((matching(c, scope, kind, nodes.filter_query(), "")?, nodes.include_ending_nodes()))
    };
    let (stop_artifacts, with_artifacts) = ends(Kind::Artifact, &asked.ending_artifacts)?;
    let (stop_executions, with_executions) = ends(Kind::Execution, &asked.ending_executions)?;
    let hops = asked.max_num_hops.unwrap_or(DEFAULT_HOPS);
    if hops < 0 {
        return Err(Error::InvalidArgument("max_num_hops cannot be negative".into()));
    }
    let walk = Walk {
        c,
        scope,
        direction: asked.direction(),
        hops: hops.min(MAX_HOPS),
        max_nodes: MAX_NODES,
        stop_artifacts,
        stop_executions,
        include_stops: (with_artifacts, with_executions),
    };
    let graph = walk.run(kind, starts)?;
    let mask = request.read_mask.map(|m| m.paths).unwrap_or_default();
    assemble(c, scope, graph, |part| mask.is_empty() || mask.iter().any(|p| p == part))
}

/// The older query: from listed artifacts, everything within some steps.
pub(crate) fn graph(
    c: &Connection,
    scope: &Scope,
    asked: proto::LineageGraphQueryOptions,
) -> Result<proto::LineageGraph, Error> {
    let Some(proto::lineage_graph_query_options::QueryNodes::ArtifactsOptions(listing)) = &asked.query_nodes else {
        return Err(Error::InvalidArgument("Missing query_nodes conditions".into()));
    };
    let (starts, _) = list(c, scope, Kind::Artifact, "1", Vec::new(), Some(listing))?;
    if starts.is_empty() {
        return Err(Error::NotFound("The query_nodes condition does not match any nodes.".into()));
    }
    let stop = asked.stop_conditions.clone().unwrap_or_default();
    let boundary = |kind, query: &str| {
        // A boundary names what to keep: what does not meet it ends the walk.
        if query.trim().is_empty() {
            Ok(BTreeSet::new())
        } else {
            matching(c, scope, kind, &format!("NOT ({query})"), "")
        }
    };
    let walk = Walk {
        c,
        scope,
        direction: options::Direction::Bidirectional,
        hops: stop.max_num_hops.unwrap_or(DEFAULT_HOPS).clamp(0, MAX_HOPS),
        max_nodes: usize::try_from(asked.max_node_size()).unwrap_or_default().min(MAX_NODES),
        stop_artifacts: boundary(Kind::Artifact, stop.boundary_artifacts())?,
        stop_executions: boundary(Kind::Execution, stop.boundary_executions())?,
        include_stops: (false, false),
    };
    let graph = walk.run(Kind::Artifact, starts.into_iter().filter_map(|n| n.id).collect())?;
    assemble(c, scope, graph, |_| true)
}

fn assemble(
    c: &Connection,
    scope: &Scope,
    graph: Graph,
    wants: impl Fn(&str) -> bool,
) -> Result<proto::LineageGraph, Error> {
    let load = |kind, ids: &BTreeSet<i64>| by_ids(c, scope, kind, &ids.iter().copied().collect::<Vec<_>>());
    let (artifacts, executions) = (load(Kind::Artifact, &graph.artifacts)?, load(Kind::Execution, &graph.executions)?);
    let mut answer = proto::LineageGraph::default();
    let mut contexts = BTreeSet::new();
    for (kind, nodes) in [(Kind::Artifact, &graph.artifacts), (Kind::Execution, &graph.executions)] {
        let mut statement = c.prepare_cached(
            "SELECT context, node FROM member WHERE kind = ?1 AND node IN (SELECT value FROM json_each(?2))",
        )?;
        let pairs = statement
            .query_map(rusqlite::params![kind, serde_json::to_string(nodes)?], |r| Ok((r.get(0)?, r.get(1)?)))?
            .collect::<Result<Vec<(i64, i64)>, _>>()?;
        for (context, node) in pairs {
            contexts.insert(context);
            match kind {
                Kind::Artifact if wants("attributions") => answer.attributions.push(proto::Attribution {
                    artifact_id: Some(node),
                    context_id: Some(context),
                    system_metadata: None,
                }),
                Kind::Execution if wants("associations") => answer.associations.push(proto::Association {
                    execution_id: Some(node),
                    context_id: Some(context),
                    system_metadata: None,
                }),
                _ => {}
            }
        }
    }
    let contexts = load(Kind::Context, &contexts)?;
    let types_of = |kind, nodes: &[Node]| {
        let ids: BTreeSet<i64> = nodes.iter().filter_map(|n| n.type_id).collect();
        types::by_ids(c, scope, kind, &ids.into_iter().collect::<Vec<_>>())
    };
    if wants("artifact_types") {
        answer.artifact_types = types_of(Kind::Artifact, &artifacts)?.into_iter().map(Into::into).collect();
    }
    if wants("execution_types") {
        answer.execution_types = types_of(Kind::Execution, &executions)?.into_iter().map(Into::into).collect();
    }
    if wants("context_types") {
        answer.context_types = types_of(Kind::Context, &contexts)?.into_iter().map(Into::into).collect();
    }
    if wants("artifacts") {
        answer.artifacts = artifacts.into_iter().map(Into::into).collect();
    }
    if wants("executions") {
        answer.executions = executions.into_iter().map(Into::into).collect();
    }
    if wants("contexts") {
        answer.contexts = contexts.into_iter().map(Into::into).collect();
    }
    if wants("events") {
        answer.events = graph.events.into_values().collect();
    }
    Ok(answer)
}
