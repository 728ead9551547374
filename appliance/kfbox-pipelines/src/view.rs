//! What the pages show, typed: runs, one run with its graph, one step. The same rights are asked as by REST.

use crate::{
    Inner, Pipelines,
    engine::{model::Task, plan::shown_path},
    error::{ApiError, ApiResult},
    ports::{ByteStream, LogRange},
    spec::{Body, Pipeline, dependencies},
    store::{RunRow, listing},
};
use kfbox_base::UserInfo;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunView {
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub experiment_id: String,
    pub experiment: String,
    pub pipeline: String,
    /// v2beta1's name, such as `RUNNING`.
    pub state: &'static str,
    /// Milliseconds since 1970, as all times here.
    pub created_at: i64,
    pub finished_at: Option<i64>,
    pub error: Option<String>,
    pub archived: bool,
}

/// A run and its graph: every task that the pipeline names, started or not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunDetail {
    pub run: RunView,
    pub parameters: Map<String, Value>,
    pub nodes: Vec<NodeView>,
    pub edges: Vec<EdgeView>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeView {
    /// The task's id, also before it starts.
    pub id: String,
    /// The enclosing DAG or loop, absent at the top level.
    pub parent: Option<String>,
    pub name: String,
    /// `dag`, `loop`, `container` or `importer`.
    pub kind: &'static str,
    /// `WAITING` before the task exists.
    pub state: &'static str,
    pub started_at: Option<i64>,
    pub finished_at: Option<i64>,
    pub attempt: u32,
    pub cached: bool,
    pub error: Option<String>,
}

/// `to` waits for `from`; both are ids of nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EdgeView {
    pub from: String,
    pub to: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArtifactView {
    pub name: String,
    pub kind: String,
    pub uri: String,
    pub metadata: Map<String, Value>,
    pub id: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeDetail {
    pub node: NodeView,
    pub path: String,
    pub image: String,
    pub command: Vec<String>,
    pub pod_name: Option<String>,
    pub input_parameters: Map<String, Value>,
    pub output_parameters: Map<String, Value>,
    pub input_artifacts: BTreeMap<String, Vec<ArtifactView>>,
    pub output_artifacts: BTreeMap<String, Vec<ArtifactView>>,
    pub history: Vec<(i64, &'static str)>,
    pub error: Option<String>,
}

fn view(row: &RunRow, experiment: String) -> RunView {
    RunView {
        id: row.id.clone(),
        name: row.display_name.clone(),
        namespace: row.namespace.clone(),
        experiment_id: row.experiment_id.clone(),
        experiment,
        pipeline: row.pipeline_name.clone(),
        state: row.state.name(),
        created_at: row.created_at,
        finished_at: row.finished_at,
        error: row.error.as_ref().map(|e| e.message.clone()),
        archived: row.storage_state == crate::store::ARCHIVED,
    }
}

fn node(task: &Task) -> NodeView {
    use crate::engine::model::Kind;
    NodeView {
        id: task.id.clone(),
        parent: task.parent_id.clone(),
        name: task.display_name.clone(),
        kind: match task.kind {
            Kind::Dag => "dag",
            Kind::Loop => "loop",
            Kind::Container => "container",
            Kind::Importer => "importer",
        },
        state: task.state.name(),
        started_at: task.started_at,
        finished_at: task.finished_at,
        attempt: task.attempt,
        cached: task.cached_from.is_some(),
        error: task.error.as_ref().map(|e| e.message.clone()),
    }
}

fn artifacts(all: &BTreeMap<String, Vec<crate::engine::model::Artifact>>) -> BTreeMap<String, Vec<ArtifactView>> {
    let view = |a: &crate::engine::model::Artifact| ArtifactView {
        name: a.name.clone(),
        kind: a.schema_title.clone(),
        uri: a.uri.clone(),
        metadata: a.metadata.clone(),
        id: a.name.parse().ok(),
    };
    all.iter().map(|(name, list)| (name.clone(), list.iter().map(view).collect())).collect()
}

/// The graph: the tasks that exist, and for each DAG that runs, those that it will still start.
fn graph(pipeline: &Pipeline, run_id: &str, tasks: &[Task]) -> (Vec<NodeView>, Vec<EdgeView>) {
    use crate::engine::model::{Kind, task_id};
    let (mut nodes, mut edges) = (Vec::new(), Vec::new());
    let root = tasks.iter().find(|t| t.parent_id.is_none()).map(|t| t.id.clone());
    let place = |mut n: NodeView| {
        if n.parent == root {
            n.parent = None;
        }
        n
    };
    for task in tasks.iter().filter(|t| t.parent_id.is_some()) {
        nodes.push(place(node(task)));
    }
    let planned_root = [(String::from("root"), crate::spec::ROOT.to_owned(), task_id(run_id, "root"))];
    let running =
        tasks.iter().filter(|t| t.kind == Kind::Dag).map(|t| (t.path.clone(), t.component.clone(), t.id.clone()));
    let dags: Vec<_> = if tasks.is_empty() { planned_root.into_iter().collect() } else { running.collect() };
    for (path, component, dag_id) in dags {
        let Some(Body::Dag(dag)) = pipeline.component(&component).and_then(|c| pipeline.body(c)) else { continue };
        for (name, spec) in &dag.tasks {
            let id = task_id(run_id, &format!("{path}.{name}"));
            if !tasks.iter().any(|t| t.id == id) {
                let of = pipeline.component(&spec.component_ref.name);
                let kind = match of.and_then(|c| pipeline.body(c)) {
                    _ if spec.parameter_iterator.is_some() || spec.artifact_iterator.is_some() => "loop",
                    Some(Body::Container(_)) => "container",
                    Some(Body::Importer(_)) => "importer",
                    _ => "dag",
                };
                let shown = if spec.task_info.name.is_empty() { name } else { &spec.task_info.name };
                let planned = NodeView {
                    id: id.clone(),
                    parent: (path != "root").then(|| dag_id.clone()),
                    name: shown.clone(),
                    kind,
                    state: "WAITING",
                    started_at: None,
                    finished_at: None,
                    attempt: 0,
                    cached: false,
                    error: None,
                };
                nodes.push(planned);
            }
            for dependency in dependencies(spec) {
                edges.push(EdgeView { from: task_id(run_id, &format!("{path}.{dependency}")), to: id.clone() });
            }
        }
    }
    (nodes, edges)
}

impl Inner {
    async fn node_task(&self, user: &UserInfo, verb: &str, run_id: &str, task_id: &str) -> ApiResult<(RunRow, Task)> {
        let row = self.run(user, verb, run_id).await?;
        let task = self.store.tasks(run_id).await?.into_iter().find(|t| t.id == task_id);
        Ok((row, task.ok_or_else(|| ApiError::not_found("task", task_id))?))
    }
}

impl Pipelines {
    /// The newest runs first, of one namespace or of all of the caller's; at most `limit` (200).
    pub async fn list_runs(&self, user: &UserInfo, namespace: Option<&str>, limit: u32) -> ApiResult<Vec<RunView>> {
        let app = &self.inner;
        let namespaces = app.listed(user, "runs", namespace.unwrap_or_default()).await?;
        let query = listing::Query {
            page_size: Some(limit.into()),
            sort_by: "created_at desc".into(),
            ..listing::Query::default()
        };
        let listing =
            listing::Listing::new(&listing::RUNS, &query, vec![("namespace", namespaces)], app.store.key.as_slice())?;
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        let mut views = Vec::new();
        for row in app.store.runs(listing).await?.rows {
            if !names.contains_key(&row.experiment_id) {
                let name = app.store.experiment(&row.experiment_id).await?.map(|e| e.display_name).unwrap_or_default();
                names.insert(row.experiment_id.clone(), name);
            }
            views.push(view(&row, names.get(&row.experiment_id).cloned().unwrap_or_default()));
        }
        Ok(views)
    }

    /// How many runs are in each state, archived ones left out.
    pub async fn count_runs(&self, user: &UserInfo, namespace: Option<&str>) -> ApiResult<Map<String, Value>> {
        let namespaces = self.inner.listed(user, "runs", namespace.unwrap_or_default()).await?;
        self.inner.store.count_runs(namespaces).await
    }

    pub async fn run_detail(&self, user: &UserInfo, run_id: &str) -> ApiResult<RunDetail> {
        let app = &self.inner;
        let row = app.run(user, "get", run_id).await?;
        let tasks = app.store.tasks(run_id).await?;
        let experiment = app.store.experiment(&row.experiment_id).await?.map(|e| e.display_name).unwrap_or_default();
        let (nodes, edges) = match Pipeline::parse(row.spec.clone()) {
            Ok(pipeline) => graph(&pipeline, run_id, &tasks),
            Err(_) => (tasks.iter().filter(|t| t.parent_id.is_some()).map(node).collect(), Vec::new()),
        };
        let parameters = row.runtime_config.get("parameters").and_then(Value::as_object).cloned().unwrap_or_default();
        let parameters =
            tasks.iter().find(|t| t.parent_id.is_none()).map_or(parameters, |root| root.inputs.parameters.clone());
        Ok(RunDetail { run: view(&row, experiment), parameters, nodes, edges })
    }

    pub async fn node_detail(&self, user: &UserInfo, run_id: &str, task_id: &str) -> ApiResult<NodeDetail> {
        let (_, task) = self.inner.node_task(user, "get", run_id, task_id).await?;
        Ok(NodeDetail {
            node: node(&task),
            path: shown_path(&task).to_owned(),
            image: task.image.clone(),
            command: task.command.clone(),
            pod_name: task.pod_name.clone(),
            input_parameters: task.inputs.parameters.clone(),
            output_parameters: task.outputs.parameters.clone(),
            input_artifacts: artifacts(&task.inputs.artifacts),
            output_artifacts: artifacts(&task.outputs.artifacts),
            history: task.history.iter().map(|h| (h.at, h.state.name())).collect(),
            error: task.error.as_ref().map(|e| e.message.clone()),
        })
    }

    /// A step's log, kept or live.
    pub async fn node_log(
        &self,
        user: &UserInfo,
        run_id: &str,
        task_id: &str,
        range: LogRange,
    ) -> ApiResult<ByteStream> {
        let (row, task) = self.inner.node_task(user, "readArtifact", run_id, task_id).await?;
        self.inner.engine.log(&row.namespace, run_id, &task, range).await
    }

    /// The content of an artifact that a step gave out: its size and bytes. A folder's first file is not chosen for the
    /// caller: only artifacts of one file are read.
    pub async fn artifact(
        &self,
        user: &UserInfo,
        run_id: &str,
        task_id: &str,
        output: &str,
        index: usize,
    ) -> ApiResult<(u64, ByteStream)> {
        let (row, task) = self.inner.node_task(user, "readArtifact", run_id, task_id).await?;
        let not_found = || ApiError::not_found("artifact", output);
        let artifact = task.outputs.artifacts.get(output).and_then(|l| l.get(index)).ok_or_else(not_found)?;
        let found = self.inner.locate(&row.namespace, &artifact.uri, &row.pipeline_root).await?;
        let content = found.store.get(&found.at.bucket, &found.at.key).await;
        content.map_err(|e| crate::rest::unread(e, not_found()))
    }

    /// Asks a run to stop, as `:terminate` does.
    pub async fn terminate_run(&self, user: &UserInfo, run_id: &str) -> ApiResult<()> {
        let row = self.inner.run(user, "terminate", run_id).await?;
        self.inner.store.request_cancel(run_id).await?;
        self.inner.announce(run_id, &row.namespace, crate::engine::model::State::Canceling);
        self.inner.engine.cancel(run_id);
        Ok(())
    }

    pub async fn retry_run(&self, user: &UserInfo, run_id: &str) -> ApiResult<()> {
        let row = self.inner.run(user, "retry", run_id).await?;
        self.inner.engine.retry(&row).await
    }
}
