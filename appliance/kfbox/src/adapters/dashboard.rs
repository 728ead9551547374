//! What the pages show, from the components. Lists go through the pipelines' own REST API in this process, so that
//! filters, pages and rights are the same as for everybody else.

mod members;

pub use members::Members;

use super::namespaces::ProfileNamespaces;
use async_trait::async_trait;
use axum::{Router, body::Body};
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use kfbox_base::{Readiness, UserInfo, readiness::State};
use kfbox_dashboard::{
    ArtifactContent, ArtifactView, ChangeStream, ComponentState, ComponentView, Data, DataError, ExperimentView,
    GraphEdge, GraphNode, LogStream, Member, NamespaceView, NodeDetail, NodeKind, Page, Parameter, PipelineDetail,
    PipelineView, Query, Role, RunDetail, RunState, RunSummary, SharingView,
};
use kfbox_pipelines::{ApiError, Code, LogRange, Pipelines};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio_stream::wrappers::BroadcastStream;
use tower::ServiceExt;

/// What a component answers in this process.
async fn answer(component: &Router, request: Request<Body>) -> Result<(StatusCode, Value), DataError> {
    let response = match component.clone().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let status = response.status();
    let bytes = response.into_body().collect().await.map_err(|e| DataError::Unavailable(e.to_string()))?.to_bytes();
    Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
}

/// Entries a page.
const PAGE: u32 = 20;
/// Changes that come within this time are one to a page.
const MERGE: Duration = Duration::from_millis(50);

pub struct DashboardData {
    readiness: Readiness,
    pipelines: Pipelines,
    rest: Router,
    namespaces: ProfileNamespaces,
    members: Members,
}

impl DashboardData {
    pub fn new(readiness: Readiness, pipelines: Pipelines, namespaces: ProfileNamespaces, members: Members) -> Self {
        Self { readiness, rest: pipelines.router(), pipelines, namespaces, members }
    }

    async fn get(&self, user: &UserInfo, path: &str, query: &[(&str, &str)]) -> Result<Value, DataError> {
        let mut uri = format!("/apis/v2beta1/{path}");
        for (n, (name, value)) in query.iter().filter(|(_, value)| !value.is_empty()).enumerate() {
            let value = percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC);
            uri.push_str(&format!("{}{name}={value}", if n == 0 { '?' } else { '&' }));
        }
        let request = Request::get(uri).extension(user.clone()).body(Body::empty());
        let request = request.map_err(|e| DataError::Invalid(e.to_string()))?;
        let (status, answer) = answer(&self.rest, request).await?;
        if status.is_success() {
            return Ok(answer);
        }
        let message = answer["message"].as_str().unwrap_or("the request failed").to_owned();
        Err(match status {
            StatusCode::NOT_FOUND => DataError::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => DataError::Forbidden(message),
            StatusCode::BAD_REQUEST => DataError::Invalid(message),
            _ => DataError::Unavailable(message),
        })
    }

    async fn list<T>(
        &self,
        user: &UserInfo,
        what: &str,
        query: &Query,
        filter: &str,
        view: impl Fn(&Value) -> T,
    ) -> Result<Page<T>, DataError> {
        let size = PAGE.to_string();
        let asked = [
            ("namespace", query.namespace.as_str()),
            ("page_token", query.page.as_str()),
            ("page_size", size.as_str()),
            ("sort_by", "created_at desc"),
            ("filter", filter),
        ];
        let answer = self.get(user, what, &asked).await?;
        let items = answer[what].as_array().into_iter().flatten().map(view).collect();
        Ok(Page { items, next: text(&answer["next_page_token"]) })
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn time(value: &Value) -> Option<DateTime<Utc>> {
    let time = DateTime::parse_from_rfc3339(value.as_str()?).ok()?.to_utc();
    // Upstream writes the beginning of time for "not yet".
    (time.timestamp() > 0).then_some(time)
}

fn millis(at: Option<i64>) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(at?)
}

fn state(name: &str, cached: bool) -> RunState {
    match name {
        "SUCCEEDED" if cached => RunState::Cached,
        "SUCCEEDED" => RunState::Succeeded,
        "PENDING" | "WAITING" => RunState::Pending,
        "RUNNING" => RunState::Running,
        "CACHED" => RunState::Cached,
        "SKIPPED" => RunState::Skipped,
        "FAILED" => RunState::Failed,
        "CANCELING" => RunState::Canceling,
        "CANCELED" => RunState::Canceled,
        "PAUSED" => RunState::Paused,
        _ => RunState::Unknown,
    }
}

fn failed(error: ApiError) -> DataError {
    match error.code {
        Code::NotFound => DataError::NotFound,
        Code::PermissionDenied | Code::Unauthenticated => DataError::Forbidden(error.message),
        Code::InvalidArgument => DataError::Invalid(error.message),
        _ => DataError::Unavailable(error.message),
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn parameters(fields: &serde_json::Map<String, Value>) -> Vec<Parameter> {
    fields.iter().map(|(name, value)| Parameter { name: name.clone(), value: shown(value) }).collect()
}

fn summary(run: &Value) -> RunSummary {
    RunSummary {
        id: text(&run["run_id"]),
        name: text(&run["display_name"]),
        namespace: text(&run["namespace"]),
        experiment: text(&run["experiment_id"]),
        pipeline: text(&run["pipeline_spec"]["pipelineInfo"]["name"]),
        pipeline_id: text(&run["pipeline_version_reference"]["pipeline_id"]),
        state: state(run["state"].as_str().unwrap_or_default(), false),
        created: time(&run["created_at"]),
        started: time(&run["created_at"]),
        finished: time(&run["finished_at"]),
    }
}

#[async_trait]
impl Data for DashboardData {
    async fn components(&self) -> Vec<ComponentView> {
        let view = |c: kfbox_base::readiness::ComponentStatus| ComponentView {
            name: c.name,
            state: match c.state {
                State::Starting => ComponentState::Starting,
                State::Ready => ComponentState::Ready,
                State::Failed => ComponentState::Failed,
            },
            message: c.message,
            took_ms: c.took_ms,
        };
        self.readiness.snapshot().into_iter().map(view).collect()
    }

    async fn namespaces(&self, user: &UserInfo) -> Result<Vec<NamespaceView>, DataError> {
        let members = self.namespaces.members(user).await.map_err(|e| DataError::Unavailable(e.to_string()))?;
        let view = |m: super::namespaces::Member| NamespaceView {
            role: if m.owner { "owner" } else { "member" }.into(),
            owner: m.owner_name,
            name: m.namespace,
        };
        Ok(members.into_iter().map(view).collect())
    }

    async fn runs(&self, user: &UserInfo, query: &Query) -> Result<Page<RunSummary>, DataError> {
        let filter = match RunState::from_key(&query.state) {
            None => String::new(),
            Some(state) => json!({"predicates": [
                {"key": "state", "operation": "EQUALS", "string_value": state.key().to_uppercase()}
            ]})
            .to_string(),
        };
        let mut page = self.list(user, "runs", query, &filter, summary).await?;
        // A run names its experiment by id; the experiment knows its name and namespace.
        let mut experiments: BTreeMap<String, (String, String)> = BTreeMap::new();
        for run in &mut page.items {
            if !experiments.contains_key(&run.experiment) {
                let found = self.get(user, &format!("experiments/{}", segment(&run.experiment)?), &[]).await?;
                let named = (text(&found["display_name"]), text(&found["namespace"]));
                experiments.insert(run.experiment.clone(), named);
            }
            if let Some((name, namespace)) = experiments.get(&run.experiment) {
                (run.experiment, run.namespace) = (name.clone(), namespace.clone());
            }
        }
        Ok(page)
    }

    async fn run(&self, user: &UserInfo, id: &str) -> Result<RunDetail, DataError> {
        let detail = self.pipelines.run_detail(user, id).await.map_err(failed)?;
        let run = detail.run;
        let nodes = detail.nodes.into_iter().map(|n| GraphNode {
            id: n.id,
            kind: if matches!(n.kind, "dag" | "loop") { NodeKind::Group } else { NodeKind::Task },
            name: n.name,
            state: state(n.state, n.cached),
            detail: if n.kind == "loop" { "loop".into() } else { String::new() },
            started: millis(n.started_at),
            finished: millis(n.finished_at),
        });
        Ok(RunDetail {
            run: RunSummary {
                id: run.id,
                name: run.name,
                namespace: run.namespace,
                experiment: run.experiment,
                pipeline: run.pipeline,
                pipeline_id: String::new(),
                state: state(run.state, false),
                created: millis(Some(run.created_at)),
                started: millis(Some(run.created_at)),
                finished: millis(run.finished_at),
            },
            error: run.error.unwrap_or_default(),
            parameters: parameters(&detail.parameters),
            nodes: nodes.collect(),
            edges: detail.edges.into_iter().map(|e| GraphEdge { from: e.from, to: e.to }).collect(),
        })
    }

    async fn node(&self, user: &UserInfo, run: &str, node: &str) -> Result<NodeDetail, DataError> {
        let detail = self.pipelines.node_detail(user, run, node).await.map_err(failed)?;
        let task = detail.node;
        let artifacts = |all: BTreeMap<String, Vec<kfbox_pipelines::ArtifactView>>, readable: bool| {
            let mut views = Vec::new();
            for (output, list) in all {
                for (n, artifact) in list.into_iter().enumerate() {
                    views.push(ArtifactView {
                        id: if readable { format!("{}:{output}:{n}", task.id) } else { String::new() },
                        name: output.clone(),
                        type_name: artifact.kind.trim_start_matches("system.").to_owned(),
                        uri: artifact.uri,
                        size: None,
                        metadata: parameters(&artifact.metadata),
                    });
                }
            }
            views
        };
        let container = task.kind == "container";
        Ok(NodeDetail {
            id: task.id.clone(),
            kind: if matches!(task.kind, "dag" | "loop") { NodeKind::Group } else { NodeKind::Task },
            name: task.name.clone(),
            state: state(task.state, task.cached),
            started: millis(task.started_at),
            finished: millis(task.finished_at),
            error: detail.error.unwrap_or_default(),
            image: detail.image,
            command: detail.command.join(" "),
            has_log: container && detail.pod_name.is_some() && !task.cached,
            pod: detail.pod_name.unwrap_or_default(),
            inputs: parameters(&detail.input_parameters),
            outputs: parameters(&detail.output_parameters),
            input_artifacts: artifacts(detail.input_artifacts, false),
            output_artifacts: artifacts(detail.output_artifacts, true),
        })
    }

    async fn log(&self, user: &UserInfo, run: &str, node: &str, follow: bool) -> Result<LogStream, DataError> {
        let range = LogRange { tail_lines: None, follow };
        let log = self.pipelines.node_log(user, run, node, range).await.map_err(failed)?;
        Ok(log.map_err(|e| DataError::Unavailable(e.to_string())).boxed())
    }

    async fn artifact(&self, user: &UserInfo, run: &str, artifact: &str) -> Result<ArtifactContent, DataError> {
        let mut parts = artifact.splitn(3, ':');
        let (Some(task), Some(output), Some(index)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(DataError::NotFound);
        };
        let index = index.parse().map_err(|_| DataError::NotFound)?;
        let (size, body) = self.pipelines.artifact(user, run, task, output, index).await.map_err(failed)?;
        Ok(ArtifactContent {
            file_name: output.to_owned(),
            size: Some(size),
            body: body.map_err(|e| DataError::Unavailable(e.to_string())).boxed(),
        })
    }

    async fn changes(&self, user: &UserInfo, run: Option<&str>) -> Result<ChangeStream, DataError> {
        let changes = BroadcastStream::new(self.pipelines.changes());
        let run = run.map(str::to_owned);
        if let Some(run) = &run {
            let detail = self.pipelines.run_detail(user, run).await.map_err(failed)?;
            if state(detail.run.state, false).is_final() {
                return Ok(futures::stream::empty().boxed());
            }
        }
        // Nothing of a change is shown from here: whoever looks again is asked for rights again. When the neighbours work
        // is nobody's business either.
        let wanted = changes.scan(false, move |over, change| {
            let item = match (&change, &run) {
                _ if *over => None,
                (Ok(change), Some(run)) if change.run_id == *run => {
                    *over = state(change.state, false).is_final();
                    Some(Some(None))
                }
                (Ok(_), Some(_)) => Some(None),
                (Ok(change), None) => Some(Some(Some(change.namespace.clone()))),
                (Err(_), _) => Some(Some(None)),
            };
            async move { item }
        });
        let (who, namespaces) = (user.clone(), self.namespaces.clone());
        let seen = wanted.filter_map(|item| async move { item }).filter_map(move |namespace| {
            let (who, namespaces) = (who.clone(), namespaces.clone());
            async move {
                match namespace {
                    Some(namespace) => namespaces.sees_runs(&who, &namespace).await.then_some(()),
                    None => Some(()),
                }
            }
        });
        Ok(merged(seen.boxed()))
    }

    async fn terminate(&self, user: &UserInfo, run: &str) -> Result<(), DataError> {
        self.pipelines.terminate_run(user, run).await.map_err(failed)
    }

    async fn pipelines(&self, user: &UserInfo, query: &Query) -> Result<Page<PipelineView>, DataError> {
        self.list(user, "pipelines", query, "", pipeline).await
    }

    async fn pipeline(&self, user: &UserInfo, id: &str) -> Result<PipelineDetail, DataError> {
        let found = self.get(user, &format!("pipelines/{}", segment(id)?), &[]).await?;
        let path = format!("pipelines/{}/versions", segment(id)?);
        let answer = self.get(user, &path, &[("page_size", "50"), ("sort_by", "created_at desc")]).await?;
        let versions: Vec<&Value> = answer["pipeline_versions"].as_array().into_iter().flatten().collect();
        let newest = versions.first().copied().unwrap_or(&Value::Null);
        let spec = &newest["pipeline_spec"];
        // A spec with a platform part is nested one deeper.
        let spec = if spec["pipeline_spec"].is_object() { &spec["pipeline_spec"] } else { spec };
        let tasks = spec["root"]["dag"]["tasks"].as_object();
        let nodes = tasks.into_iter().flatten().map(|(id, task)| GraphNode {
            id: id.clone(),
            name: task["taskInfo"]["name"].as_str().unwrap_or(id).to_owned(),
            state: RunState::Unknown,
            ..GraphNode::default()
        });
        let edges = tasks.into_iter().flatten().flat_map(|(id, task)| {
            let before = task["dependentTasks"].as_array().into_iter().flatten();
            before.map(move |from| GraphEdge { from: text(from), to: id.clone() })
        });
        let inputs = spec["root"]["inputDefinitions"]["parameters"].as_object();
        let inputs = inputs.into_iter().flatten().map(|(name, definition)| Parameter {
            name: name.clone(),
            value: match &definition["defaultValue"] {
                Value::Null => text(&definition["parameterType"]),
                default => shown(default),
            },
        });
        Ok(PipelineDetail {
            pipeline: pipeline(&found),
            versions: versions.iter().map(|v| text(&v["display_name"])).collect(),
            parameters: inputs.collect(),
            nodes: nodes.collect(),
            edges: edges.collect(),
        })
    }

    async fn experiments(&self, user: &UserInfo, query: &Query) -> Result<Page<ExperimentView>, DataError> {
        self.list(user, "experiments", query, "", |e| ExperimentView {
            id: text(&e["experiment_id"]),
            name: text(&e["display_name"]),
            description: text(&e["description"]),
            namespace: text(&e["namespace"]),
            created: time(&e["created_at"]),
        })
        .await
    }

    async fn sharing(&self, user: &UserInfo) -> Result<Vec<SharingView>, DataError> {
        self.members.list(user).await
    }

    async fn grant(&self, user: &UserInfo, namespace: &str, person: &str, role: Role) -> Result<(), DataError> {
        self.members.grant(user, namespace, person, role).await
    }

    async fn revoke(&self, user: &UserInfo, namespace: &str, member: &Member) -> Result<(), DataError> {
        self.members.revoke(user, namespace, member).await
    }
}

fn pipeline(p: &Value) -> PipelineView {
    PipelineView {
        id: text(&p["pipeline_id"]),
        name: text(&p["display_name"]),
        description: text(&p["description"]),
        namespace: text(&p["namespace"]),
        created: time(&p["created_at"]),
    }
}

/// An id as one part of a path, or nothing.
fn segment(id: &str) -> Result<&str, DataError> {
    let fine = !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    fine.then_some(id).ok_or(DataError::NotFound)
}

/// Bursts become one change: a page draws itself once.
fn merged(changes: ChangeStream) -> ChangeStream {
    futures::stream::unfold(changes, |mut changes| async move {
        changes.next().await?;
        let burst = async { while changes.next().await.is_some() {} };
        let _ = tokio::time::timeout(MERGE, burst).await;
        Some(((), changes))
    })
    .boxed()
}
