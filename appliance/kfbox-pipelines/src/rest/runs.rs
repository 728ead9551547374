//! `RunService`.

use super::{
    App, Args, Caller, description, display_name, empty, field, is_label, json_body, pipelines::parsed, render,
    text_field,
};
use crate::{
    Inner,
    engine::model::{State, StateChange},
    error::{ApiError, ApiResult, Code},
    ports::{LineageContexts, LogRange},
    spec::{self, Pipeline, package},
    store::{ARCHIVED, AVAILABLE, RunRow, listing},
    time,
};
use axum::{Json, body::Body, extract::Path, response::Response};
use kfbox_base::UserInfo;
use serde_json::{Map, Value, json};

const RESOURCE: &str = "runs";

impl Inner {
    pub(crate) async fn run(&self, user: &UserInfo, verb: &str, id: &str) -> ApiResult<RunRow> {
        let not_found = || ApiError::not_found("run", id);
        let found = self.store.run(id).await?.ok_or_else(not_found)?;
        self.allow_on(user, verb, RESOURCE, &found.namespace, not_found).await?;
        Ok(found)
    }

    /// `archive`, `unarchive`, `terminate` or `retry`.
    pub(super) async fn act_on_run(&self, user: &UserInfo, id: &str, verb: &str) -> ApiResult<()> {
        let row = self.run(user, verb, id).await?;
        match verb {
            "archive" => self.store.set_run_storage(id, ARCHIVED).await,
            "unarchive" => self.store.set_run_storage(id, AVAILABLE).await,
            "terminate" => {
                self.store.request_cancel(id).await?;
                self.announce(id, &row.namespace, State::Canceling);
                self.engine.cancel(id);
                Ok(())
            }
            _ => self.engine.retry(&row).await,
        }
    }
}

/// What a run is made from, once the caller's right to it is checked.
struct Source {
    pipeline: Pipeline,
    pipeline_id: String,
    version_id: String,
}

async fn source(app: &Inner, user: &UserInfo, body: &Value, namespace: &str) -> ApiResult<Source> {
    let reference = field(body, "pipeline_version_reference").cloned().unwrap_or_else(|| json!({}));
    let mut version_id = text_field(&reference, "pipeline_version_id")?;
    if version_id.is_empty() {
        version_id = text_field(body, "pipeline_version_id")?;
    }
    let pipeline_id = text_field(&reference, "pipeline_id")?;
    let inline = field(body, "pipeline_spec");
    if inline.is_some() && !(version_id.is_empty() && pipeline_id.is_empty()) {
        return Err(ApiError::invalid("give either pipeline_spec or pipeline_version_reference, not both"));
    }
    if let Some(spec) = inline {
        let pipeline = parsed(package::split(spec.clone(), None))?;
        return Ok(Source { pipeline, pipeline_id, version_id });
    }
    let (owner, version) = if version_id.is_empty() {
        if pipeline_id.is_empty() {
            return Err(ApiError::invalid(
                "the run names no pipeline: give pipeline_spec or pipeline_version_reference",
            ));
        }
        let owner = app.pipeline(user, "get", &pipeline_id).await?;
        let version = app.store.latest_version(&pipeline_id).await?;
        (owner, version.ok_or_else(|| ApiError::new(Code::FailedPrecondition, "the pipeline has no version yet"))?)
    } else {
        app.version(user, "get", &pipeline_id, &version_id).await?
    };
    if owner.namespace != namespace {
        return Err(ApiError::invalid(format!(
            "the pipeline is of namespace {}, and the run would be in {namespace}; upload it there",
            owner.namespace
        )));
    }
    let pipeline = parsed(version.spec)?;
    Ok(Source { pipeline, pipeline_id: version.pipeline_id, version_id: version.id })
}

/// Where a run's row keeps what it says to plugins.
pub(super) const PLUGINS_INPUT: &str = "kfbox_plugins_input";

/// What is said to plugins, by their names. As upstream without a plugin installed, it is kept and shown, and nobody acts
/// on it (`backend/src/apiserver/plugins`).
fn plugins_input(body: &Value) -> ApiResult<Option<Value>> {
    match field(body, "plugins_input") {
        None => Ok(None),
        Some(Value::Object(map)) if map.is_empty() => Ok(None),
        Some(Value::Object(map)) if map.values().all(Value::is_object) => Ok(Some(Value::Object(map.clone()))),
        Some(_) => Err(ApiError::invalid("plugins_input should hold an object for each plugin's name")),
    }
}

/// Checks a request for a run and makes its row. Nothing is stored yet.
pub(crate) async fn new_run(app: &Inner, user: &UserInfo, body: &Value, experiment: &str) -> ApiResult<RunRow> {
    let mut experiment_id = text_field(body, "experiment_id")?;
    if experiment_id.is_empty() {
        experiment.clone_into(&mut experiment_id);
    }
    let of = if experiment_id.is_empty() {
        let namespace = app.namespace(user, &text_field(body, "namespace")?).await?;
        app.allow_verb(user, "create", RESOURCE, &namespace).await?;
        app.store.default_experiment(&namespace).await?
    } else {
        let of = app.experiment(user, "get", &experiment_id).await?;
        app.allow_verb(user, "create", RESOURCE, &of.namespace).await?;
        of
    };
    if of.storage_state == ARCHIVED {
        return Err(ApiError::new(
            Code::FailedPrecondition,
            "the experiment is archived; unarchive it before running in it",
        ));
    }
    let display_name = display_name(body)?;
    let description = description(body)?;
    let service_account = text_field(body, "service_account")?;
    if !service_account.is_empty() && !service_account.split('.').all(is_label) {
        return Err(ApiError::invalid(format!("`{service_account}` is no name of a service account")));
    }
    let source = source(app, user, body, &of.namespace).await?;
    let mut config = field(body, "runtime_config").cloned().unwrap_or_else(|| json!({}));
    let plugins = plugins_input(body)?;
    if let Value::Object(config) = &mut config {
        config.retain(|name, _| name != PLUGINS_INPUT);
        config.extend(plugins.map(|p| (PLUGINS_INPUT.to_owned(), p)));
    }
    let given = match field(&config, "parameters") {
        None => Map::new(),
        Some(Value::Object(map)) => map.clone(),
        Some(_) => return Err(ApiError::invalid("runtime_config.parameters should be an object")),
    };
    spec::check_parameters(&source.pipeline, &given).map_err(|e| ApiError::invalid(e.to_string()))?;
    let id = uuid::Uuid::new_v4().to_string();
    let asked = text_field(&config, "pipeline_root")?;
    let asked = if asked.is_empty() { source.pipeline.spec.default_pipeline_root.clone() } else { asked };
    let chosen = app.choose_root(&of.namespace, &asked).await?;
    let root = crate::roots::for_run(&chosen, source.pipeline.name(), &id);
    let now = time::now();
    Ok(RunRow {
        id,
        namespace: of.namespace,
        experiment_id: of.id,
        display_name,
        description,
        storage_state: AVAILABLE.into(),
        state: State::Pending,
        created_at: now,
        scheduled_at: now,
        finished_at: None,
        service_account: if service_account.is_empty() { app.config.service_account.clone() } else { service_account },
        pipeline_id: source.pipeline_id,
        pipeline_version_id: source.version_id,
        recurring_run_id: String::new(),
        pipeline_name: source.pipeline.name().to_owned(),
        pipeline_root: root,
        spec: source.pipeline.documents,
        runtime_config: config,
        error: None,
        state_history: vec![StateChange { at: now, state: State::Pending }],
        contexts: LineageContexts::default(),
    })
}

/// Stores a run, then lets the engine have it.
pub(crate) async fn submit(app: &Inner, row: RunRow) -> ApiResult<RunRow> {
    let row = app.store.create_run(row).await?;
    app.announce(&row.id, &row.namespace, row.state);
    app.engine.start(&row.id);
    Ok(row)
}

pub(super) async fn create(app: App, Caller(user): Caller, args: Args, body: Body) -> ApiResult<Json<Value>> {
    let body = json_body(body).await?;
    let row = new_run(&app, &user, &body, &args.text("experiment_id")).await?;
    Ok(Json(render::run(&submit(&app, row).await?, Some(&[]))))
}

pub(super) async fn list(app: App, Caller(user): Caller, args: Args) -> ApiResult<Json<Value>> {
    let experiment = args.text("experiment_id");
    let scope = if experiment.is_empty() {
        vec![("namespace", app.listed(&user, RESOURCE, &args.text("namespace")).await?)]
    } else {
        let of = app.experiment(&user, "get", &experiment).await?;
        app.allow_verb(&user, "list", RESOURCE, &of.namespace).await?;
        vec![("experiment_id", vec![experiment])]
    };
    let listing = listing::Listing::new(&listing::RUNS, &args.listing()?, scope, app.store.key.as_slice())?;
    let page = app.store.runs(listing).await?;
    let rows: Vec<Value> = page.rows.iter().map(|r| render::run(r, None)).collect();
    Ok(page.shown("runs", rows))
}

pub(super) async fn get(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let row = app.run(&user, "get", &id).await?;
    let tasks = app.store.tasks(&id).await?;
    Ok(Json(render::run(&row, Some(&tasks))))
}

pub(super) async fn delete(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Response> {
    let row = app.run(&user, "delete", &id).await?;
    app.engine.delete(&row).await?;
    app.cleaner.wake();
    Ok(empty())
}

/// `POST /runs/{id}:archive`, `:unarchive`, `:terminate` and `:retry`.
pub(super) async fn act(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Response> {
    let (id, verb) = id.rsplit_once(':').ok_or_else(|| ApiError::not_found("the action on run", &id))?;
    if !matches!(verb, "archive" | "unarchive" | "terminate" | "retry") {
        return Err(ApiError::not_found("the action", verb));
    }
    app.act_on_run(&user, id, verb).await?;
    Ok(empty())
}

/// The log of a step, by task id or pod name: `GET /apis/v1beta1/runs/{id}/nodes/{node}/log?follow=true`.
pub(super) async fn log(
    app: App,
    Caller(user): Caller,
    Path((id, node)): Path<(String, String)>,
    args: Args,
) -> ApiResult<Response> {
    let row = app.run(&user, "readArtifact", &id).await?;
    let task = app.store.tasks(&id).await?.into_iter().find(|t| t.id == node || t.pod_name.as_deref() == Some(&node));
    let task = task.ok_or_else(|| ApiError::not_found("node", &node))?;
    let range = LogRange { tail_lines: None, follow: args.get("follow") == Some("true") };
    let stream = app.engine.log(&row.namespace, &row.id, &task, range).await?;
    Response::builder()
        .header(http::header::CONTENT_TYPE, "text/plain; charset=utf-8")
        .header(http::header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .body(Body::from_stream(stream))
        .map_err(|e| ApiError::internal("answering with a log", e))
}
