//! A run: its graph, and the panel of the step chosen in it.

use super::{
    User,
    render::{Badge, Frame, Problem, Span, When, encode, html, plain_error},
};
use crate::{
    Deps, format, graph,
    view::{ArtifactView, NodeDetail, NodeKind, Parameter, RunDetail, RunState},
};
use askama::Template;
use axum::{
    Extension,
    extract::{Path, Query as Asked, State},
    response::{IntoResponse, Redirect, Response},
};
use chrono::{DateTime, Utc};
use serde::Deserialize;

/// Which step's panel is open, and on which tab.
#[derive(Deserialize, Default)]
pub(super) struct Choice {
    #[serde(default)]
    node: String,
    #[serde(default)]
    tab: String,
}

#[derive(Template)]
#[template(path = "run.html")]
struct RunPage {
    frame: Frame,
    href: String,
    id: String,
    name: String,
    namespace: String,
    experiment: String,
    pipeline: String,
    pipeline_href: String,
    badge: Badge,
    created: When,
    took: Span,
    error: String,
    parameters: Vec<Parameter>,
    graph: graph::Graph,
    empty: bool,
    live: bool,
    can_terminate: bool,
    done: usize,
    steps: usize,
    panel: Option<Panel>,
}

/// The side panel; also fetched alone by the script.
#[derive(Template)]
#[template(path = "panel.html")]
struct Panel {
    run_href: String,
    href: String,
    id: String,
    id_encoded: String,
    name: String,
    artifact: bool,
    badge: Badge,
    known: bool,
    final_: bool,
    started: When,
    took: Span,
    error: String,
    image: String,
    command: String,
    pod: String,
    groups: Vec<ParameterGroup>,
    artifact_groups: Vec<ArtifactGroup>,
    has_log: bool,
    log_tab: bool,
}

struct ParameterGroup {
    title: &'static str,
    items: Vec<Parameter>,
}

struct ArtifactGroup {
    title: &'static str,
    items: Vec<Artifact>,
}

struct Artifact {
    href: String,
    name: String,
    type_name: String,
    uri: String,
    size: String,
    metadata: Vec<Parameter>,
}

impl Panel {
    fn new(run: &str, node: NodeDetail, tab: &str, now: DateTime<Utc>) -> Self {
        let run_href = format!("/runs/{}", encode(run));
        let artifact = |a: ArtifactView| Artifact {
            href: format!("{run_href}/artifacts/{}", encode(&a.id)),
            name: a.name,
            type_name: a.type_name,
            uri: a.uri,
            size: a.size.map(format::size).unwrap_or_default(),
            metadata: a.metadata,
        };
        let groups = [("Input parameters", node.inputs), ("Output parameters", node.outputs)];
        let artifacts = [("Input artifacts", node.input_artifacts), ("Output artifacts", node.output_artifacts)];
        Self {
            href: format!("{run_href}/nodes/{}", encode(&node.id)),
            artifact: node.kind == NodeKind::Artifact,
            badge: node.state.into(),
            known: node.state != RunState::Unknown,
            final_: node.state.is_final(),
            started: When::new(node.started, now),
            took: Span::new(node.started, node.finished, node.state, now),
            groups: groups
                .into_iter()
                .filter(|(_, items)| !items.is_empty())
                .map(|(title, items)| ParameterGroup { title, items })
                .collect(),
            artifact_groups: artifacts
                .into_iter()
                .filter(|(_, items)| !items.is_empty())
                .map(|(title, items)| ArtifactGroup { title, items: items.into_iter().map(artifact).collect() })
                .collect(),
            log_tab: tab == "log" && node.has_log,
            run_href,
            id_encoded: encode(&node.id),
            id: node.id,
            name: node.name,
            error: node.error,
            image: node.image,
            command: node.command,
            pod: node.pod,
            has_log: node.has_log,
        }
    }
}

pub(super) async fn page(
    Extension(user): User,
    State(deps): State<Deps>,
    Path(id): Path<String>,
    Asked(choice): Asked<Choice>,
) -> Response {
    let detail = match deps.data.run(&user, &id).await {
        Ok(detail) => detail,
        Err(error) => return Problem::new(Frame::new(&deps, &user, "runs", "Run"), &error).into_response(),
    };
    let now = Utc::now();
    // A node that is gone or never was closes the panel.
    let panel = match choice.node.as_str() {
        "" => None,
        node => deps.data.node(&user, &id, node).await.ok().map(|n| Panel::new(&id, n, &choice.tab, now)),
    };
    let RunDetail { run, error, parameters, nodes, edges } = detail;
    let options = graph::Options { label: "Steps of the run", linked: true, selected: &choice.node, now };
    let tasks = || nodes.iter().filter(|n| n.kind == NodeKind::Task);
    html(&RunPage {
        frame: Frame::new(&deps, &user, "runs", &run.name),
        href: format!("/runs/{}", encode(&run.id)),
        graph: graph::draw(&nodes, &edges, &options),
        empty: nodes.is_empty(),
        live: !run.state.is_final(),
        can_terminate: matches!(run.state, RunState::Pending | RunState::Running | RunState::Paused),
        done: tasks().filter(|n| n.state.is_final()).count(),
        steps: tasks().count(),
        pipeline_href: if run.pipeline_id.is_empty() {
            String::new()
        } else {
            format!("/pipelines/{}", encode(&run.pipeline_id))
        },
        badge: run.state.into(),
        created: When::new(run.created, now),
        took: Span::new(run.started.or(run.created), run.finished, run.state, now),
        id: run.id,
        name: run.name,
        namespace: run.namespace,
        experiment: run.experiment,
        pipeline: run.pipeline,
        error,
        parameters,
        panel,
    })
}

/// The panel alone.
pub(super) async fn node(
    Extension(user): User,
    State(deps): State<Deps>,
    Path((run, node)): Path<(String, String)>,
    Asked(choice): Asked<Choice>,
) -> Response {
    match deps.data.node(&user, &run, &node).await {
        Ok(detail) => html(&Panel::new(&run, detail, &choice.tab, Utc::now())),
        Err(error) => plain_error(&error),
    }
}

pub(super) async fn terminate(Extension(user): User, State(deps): State<Deps>, Path(id): Path<String>) -> Response {
    match deps.data.terminate(&user, &id).await {
        Ok(()) => Redirect::to(&format!("/runs/{}", encode(&id))).into_response(),
        Err(error) => Problem::new(Frame::new(&deps, &user, "runs", "Run"), &error).into_response(),
    }
}
