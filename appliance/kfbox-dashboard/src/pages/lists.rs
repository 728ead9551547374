//! Home, and the lists of runs, pipelines and experiments.

use super::{
    User,
    render::{Badge, Frame, Problem, Row, When, encode, html},
};
use crate::{
    Deps, graph,
    view::{ComponentState, ComponentView, Connect, NamespaceView, Page, Parameter, PipelineDetail, Query, RunState},
};
use askama::Template;
use axum::{
    Extension,
    extract::{Path, Query as Asked, State},
    response::{IntoResponse, Response},
};
use chrono::Utc;

/// Runs on the home page.
const RECENT: usize = 6;

struct Component {
    name: String,
    key: &'static str,
    label: &'static str,
    note: String,
}

impl From<ComponentView> for Component {
    fn from(view: ComponentView) -> Self {
        let (key, label) = match view.state {
            ComponentState::Ready => ("succeeded", "Ready"),
            ComponentState::Starting => ("running", "Starting"),
            ComponentState::Failed => ("failed", "Failed"),
        };
        let note = match (view.message.is_empty(), view.took_ms) {
            (false, _) => view.message,
            (true, Some(ms)) if ms < 1000 => format!("in {ms} ms"),
            (true, Some(ms)) => format!("in {}.{} s", ms / 1000, ms % 1000 / 100),
            (true, None) => String::new(),
        };
        Self { name: view.name, key, label, note }
    }
}

#[derive(Template)]
#[template(path = "home.html")]
struct Home {
    frame: Frame,
    components: Vec<Component>,
    healthy: usize,
    namespaces: Vec<NamespaceView>,
    namespace_note: String,
    runs: Vec<Row>,
    runs_note: String,
    connect: Connect,
    namespace: String,
}

pub(super) async fn home(Extension(user): User, State(deps): State<Deps>) -> Response {
    let query = Query::default();
    let (components, namespaces, runs) =
        tokio::join!(deps.data.components(), deps.data.namespaces(&user), deps.data.runs(&user, &query));
    let now = Utc::now();
    // A part that cannot be read is said to be so; the rest of the page is there.
    let (namespaces, namespace_note) = namespaces.map_or_else(|e| (Vec::new(), e.to_string()), |n| (n, String::new()));
    let (runs, runs_note) = runs.map_or_else(|e| (Vec::new(), e.to_string()), |p| (p.items, String::new()));
    html(&Home {
        frame: Frame::new(&deps, &user, "home", "Home"),
        healthy: components.iter().filter(|c| c.state == ComponentState::Ready).count(),
        components: components.into_iter().map(Into::into).collect(),
        namespace: namespaces.first().map_or_else(|| "my-namespace".to_owned(), |n| n.name.clone()),
        namespaces,
        namespace_note,
        runs: runs.iter().take(RECENT).map(|r| Row::new(r, now)).collect(),
        runs_note,
        connect: deps.connect.clone(),
    })
}

/// A filter's choice as a link.
struct Chip {
    href: String,
    label: &'static str,
    badge: Option<Badge>,
    active: bool,
}

fn chips(query: &Query) -> Vec<Chip> {
    let href = |state: &str| list_url("/runs", &Query { state: state.into(), page: String::new(), ..query.clone() });
    let all = Chip { href: href(""), label: "All", badge: None, active: query.state.is_empty() };
    let states = RunState::FILTERS.into_iter().map(|state| Chip {
        href: href(state.key()),
        label: state.label(),
        badge: Some(state.into()),
        active: query.state == state.key(),
    });
    std::iter::once(all).chain(states).collect()
}

fn list_url(path: &str, query: &Query) -> String {
    let pairs = [("namespace", &query.namespace), ("state", &query.state), ("page", &query.page)];
    let set: Vec<String> =
        pairs.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| format!("{k}={}", encode(v))).collect();
    if set.is_empty() { path.to_owned() } else { format!("{path}?{}", set.join("&")) }
}

/// Links to the first and the next page; empty when there is none.
struct Pager {
    first: String,
    next: String,
}

fn pager(path: &str, query: &Query, next: &str) -> Pager {
    let url = |page: &str| list_url(path, &Query { page: page.into(), ..query.clone() });
    Pager {
        first: if query.page.is_empty() { String::new() } else { url("") },
        next: if next.is_empty() { String::new() } else { url(next) },
    }
}

#[derive(Template)]
#[template(path = "runs.html")]
struct Runs {
    frame: Frame,
    namespaces: Vec<NamespaceView>,
    query: Query,
    chips: Vec<Chip>,
    rows: Vec<Row>,
    pager: Pager,
    connect: Connect,
}

pub(super) async fn runs(Extension(user): User, State(deps): State<Deps>, Asked(query): Asked<Query>) -> Response {
    let frame = Frame::new(&deps, &user, "runs", "Runs");
    let (namespaces, runs) = tokio::join!(deps.data.namespaces(&user), deps.data.runs(&user, &query));
    let Page { items, next } = match runs {
        Ok(page) => page,
        Err(error) => return Problem::new(frame, &error).into_response(),
    };
    let now = Utc::now();
    html(&Runs {
        frame,
        namespaces: namespaces.unwrap_or_default(),
        chips: chips(&query),
        rows: items.iter().map(|r| Row::new(r, now)).collect(),
        pager: pager("/runs", &query, &next),
        query,
        connect: deps.connect.clone(),
    })
}

/// A pipeline or an experiment in a list.
struct Item {
    href: String,
    name: String,
    description: String,
    namespace: String,
    created: When,
}

#[derive(Template)]
#[template(path = "items.html")]
struct Items {
    frame: Frame,
    path: &'static str,
    empty: &'static str,
    namespaces: Vec<NamespaceView>,
    query: Query,
    items: Vec<Item>,
    pager: Pager,
}

pub(super) async fn pipelines(Extension(user): User, State(deps): State<Deps>, Asked(query): Asked<Query>) -> Response {
    let frame = Frame::new(&deps, &user, "pipelines", "Pipelines");
    let (namespaces, page) = tokio::join!(deps.data.namespaces(&user), deps.data.pipelines(&user, &query));
    let page = match page {
        Ok(page) => page,
        Err(error) => return Problem::new(frame, &error).into_response(),
    };
    let now = Utc::now();
    let items = page.items.into_iter().map(|p| Item {
        href: format!("/pipelines/{}", encode(&p.id)),
        name: p.name,
        description: p.description,
        namespace: p.namespace,
        created: When::new(p.created, now),
    });
    html(&Items {
        frame,
        path: "/pipelines",
        empty: "No pipelines yet. Upload one with kfp.Client().upload_pipeline(…).",
        namespaces: namespaces.unwrap_or_default(),
        items: items.collect(),
        pager: pager("/pipelines", &query, &page.next),
        query,
    })
}

pub(super) async fn experiments(
    Extension(user): User,
    State(deps): State<Deps>,
    Asked(query): Asked<Query>,
) -> Response {
    let frame = Frame::new(&deps, &user, "experiments", "Experiments");
    let (namespaces, page) = tokio::join!(deps.data.namespaces(&user), deps.data.experiments(&user, &query));
    let page = match page {
        Ok(page) => page,
        Err(error) => return Problem::new(frame, &error).into_response(),
    };
    let now = Utc::now();
    let items = page.items.into_iter().map(|e| Item {
        href: String::new(),
        name: e.name,
        description: e.description,
        namespace: e.namespace,
        created: When::new(e.created, now),
    });
    html(&Items {
        frame,
        path: "/experiments",
        empty: "No experiments yet. kfp.Client().create_experiment(…) makes one; a run without one goes into Default.",
        namespaces: namespaces.unwrap_or_default(),
        items: items.collect(),
        pager: pager("/experiments", &query, &page.next),
        query,
    })
}

#[derive(Template)]
#[template(path = "pipeline.html")]
struct PipelinePage {
    frame: Frame,
    name: String,
    description: String,
    namespace: String,
    created: When,
    versions: Vec<String>,
    parameters: Vec<Parameter>,
    graph: graph::Graph,
    empty: bool,
}

pub(super) async fn pipeline(Extension(user): User, State(deps): State<Deps>, Path(id): Path<String>) -> Response {
    let detail = match deps.data.pipeline(&user, &id).await {
        Ok(detail) => detail,
        Err(error) => return Problem::new(Frame::new(&deps, &user, "pipelines", "Pipeline"), &error).into_response(),
    };
    let PipelineDetail { pipeline, versions, parameters, nodes, edges } = detail;
    let now = Utc::now();
    let options = graph::Options { label: "Steps of the pipeline", linked: false, selected: "", now };
    html(&PipelinePage {
        frame: Frame::new(&deps, &user, "pipelines", &pipeline.name),
        graph: graph::draw(&nodes, &edges, &options),
        empty: nodes.is_empty(),
        created: When::new(pipeline.created, now),
        name: pipeline.name,
        description: pipeline.description,
        namespace: pipeline.namespace,
        versions,
        parameters,
    })
}
