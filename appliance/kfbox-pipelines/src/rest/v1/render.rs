//! Rows as v1beta1's messages.

use crate::{
    engine::{
        model::{Kind, State, Task},
        plan::shown_path,
    },
    rest::{field, render::compact},
    spec::Pipeline,
    store::{ARCHIVED, Experiment, Metric, PipelineRow, RecurringRow, RunRow, VersionRow},
    time,
};
use serde_json::{Map, Value, json};

fn reference(kind: &str, id: &str, relationship: &str) -> Value {
    json!({"key": {"type": kind, "id": id}, "relationship": relationship})
}

fn storage(state: &str) -> &'static str {
    if state == ARCHIVED { "STORAGESTATE_ARCHIVED" } else { "STORAGESTATE_AVAILABLE" }
}

pub(super) fn experiment(row: &Experiment) -> Value {
    compact(json!({
        "id": row.id,
        "name": row.display_name,
        "description": row.description,
        "created_at": time::format(row.created_at),
        "resource_references": [reference("NAMESPACE", &row.namespace, "OWNER")],
        "storage_state": storage(&row.storage_state),
    }))
}

pub(super) fn pipeline(row: &PipelineRow, version: Option<&VersionRow>) -> Value {
    let url = version.map(|v| v.code_source_url.as_str()).filter(|u| !u.is_empty());
    compact(json!({
        "id": row.id,
        "created_at": time::format(row.created_at),
        "name": row.name,
        "description": row.description,
        "default_version": version.map(self::version),
        "url": url.map(|u| json!({"pipeline_url": u})),
        "resource_references": [reference("NAMESPACE", &row.namespace, "OWNER")],
    }))
}

pub(super) fn version(row: &VersionRow) -> Value {
    let url = (!row.code_source_url.is_empty()).then(|| json!({"pipeline_url": row.code_source_url}));
    compact(json!({
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "created_at": time::format(row.created_at),
        "code_source_url": row.code_source_url,
        "package_url": url,
        "resource_references": [reference("PIPELINE", &row.pipeline_id, "OWNER")],
    }))
}

/// v1beta1 has no name for a canceled run: upstream shows it as failed.
fn status(state: State) -> &'static str {
    match state {
        State::Pending => "Pending",
        State::Running => "Running",
        State::Succeeded => "Succeeded",
        State::Skipped => "Skipped",
        State::Canceling => "Terminating",
        State::Failed | State::Canceled => "Failed",
    }
}

fn config(given: &Value) -> Value {
    let empty = field(given, "parameters").and_then(Value::as_object).is_none_or(Map::is_empty)
        && field(given, "pipeline_root").and_then(Value::as_str).is_none_or(str::is_empty);
    let mut given = given.clone();
    if let Some(given) = given.as_object_mut() {
        given.retain(|name, _| !name.starts_with("kfbox_"));
    }
    if empty { Value::Null } else { given }
}

pub(super) fn run(row: &RunRow, metrics: &[&Metric]) -> Value {
    let mut references =
        vec![reference("EXPERIMENT", &row.experiment_id, "OWNER"), reference("NAMESPACE", &row.namespace, "OWNER")];
    if !row.recurring_run_id.is_empty() {
        references.push(reference("JOB", &row.recurring_run_id, "CREATOR"));
    }
    if !row.pipeline_version_id.is_empty() {
        references.push(reference("PIPELINE_VERSION", &row.pipeline_version_id, "CREATOR"));
    }
    let metrics: Vec<Value> = metrics
        .iter()
        .map(|m| json!({"name": m.name, "node_id": m.node_id, "number_value": m.number_value, "format": m.format}))
        .collect();
    compact(json!({
        "id": row.id,
        "name": row.display_name,
        "storage_state": storage(&row.storage_state),
        "description": row.description,
        "pipeline_spec": compact(json!({
            "pipeline_id": row.pipeline_id,
            "pipeline_name": row.pipeline_name,
            "pipeline_manifest": Pipeline::wire(&row.spec).to_string(),
            "runtime_config": config(&row.runtime_config),
        })),
        "resource_references": references,
        "service_account": row.service_account,
        "created_at": time::format(row.created_at),
        "scheduled_at": time::format(row.scheduled_at),
        "finished_at": time::format(row.finished_at.unwrap_or(0)),
        "status": status(row.state),
        "error": row.error.as_ref().map(|e| e.message.as_str()),
        "metrics": metrics,
    }))
}

/// What ran, in the form in which v1beta1's callers look for nodes: their ids are those that logs, artifacts and metrics
/// are asked for by. The names are those of Argo's `status.nodes`.
pub(super) fn runtime(row: &RunRow, tasks: &[Task]) -> Value {
    let nodes = tasks.iter().map(|task| {
        let children: Vec<&str> =
            tasks.iter().filter(|t| t.parent_id.as_ref() == Some(&task.id)).map(|t| t.id.as_str()).collect();
        let list = |parameters: &Map<String, Value>| -> Vec<Value> {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            parameters.iter().map(|(name, value)| json!({"name": name, "value": text(value)})).collect()
        };
        let artifacts: Vec<Value> = task.outputs.artifacts.keys().map(|name| json!({"name": name})).collect();
        let node = compact(json!({
            "id": task.id,
            "name": shown_path(task),
            "displayName": task.display_name,
            "type": match task.kind { Kind::Dag | Kind::Loop => "DAG", Kind::Container | Kind::Importer => "Pod" },
            "phase": status(task.state),
            "message": task.error.as_ref().map(|e| e.message.as_str()),
            "startedAt": task.started_at.map(time::format),
            "finishedAt": task.finished_at.map(time::format),
            "inputs": compact(json!({"parameters": list(&task.inputs.parameters)})),
            "outputs": compact(json!({"parameters": list(&task.outputs.parameters), "artifacts": artifacts})),
            "children": children,
        }));
        (task.id.clone(), node)
    });
    let manifest = json!({
        "metadata": {"name": row.id, "namespace": row.namespace, "labels": {"pipeline/runid": row.id}},
        "status": compact(json!({
            "phase": status(row.state),
            "startedAt": time::format(row.created_at),
            "finishedAt": row.finished_at.map(time::format),
            "nodes": nodes.collect::<Map<_, _>>(),
        })),
    });
    json!({"pipeline_manifest": Pipeline::wire(&row.spec).to_string(), "workflow_manifest": manifest.to_string()})
}

pub(super) fn job(row: &RecurringRow) -> Value {
    let text = |value: &Value, name: &str| field(value, name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let from = field(&row.body, "pipeline_version_reference").cloned().unwrap_or_default();
    let mut references =
        vec![reference("NAMESPACE", &row.namespace, "OWNER"), reference("EXPERIMENT", &row.experiment_id, "OWNER")];
    let (pipeline, version) = (text(&from, "pipeline_id"), text(&from, "pipeline_version_id"));
    if !version.is_empty() {
        references.push(reference("PIPELINE_VERSION", &version, "CREATOR"));
    } else if !pipeline.is_empty() {
        references.push(reference("PIPELINE", &pipeline, "CREATOR"));
    }
    let concurrency = match field(&row.body, "max_concurrency") {
        Some(Value::String(n)) => n.clone(),
        Some(n) => n.to_string(),
        None => "1".into(),
    };
    compact(json!({
        "id": row.id,
        "name": row.display_name,
        "description": text(&row.body, "description"),
        "pipeline_spec": compact(json!({
            "pipeline_id": pipeline,
            "pipeline_manifest": field(&row.body, "pipeline_spec").map(Value::to_string),
            "runtime_config": field(&row.body, "runtime_config").map(config),
        })),
        "resource_references": references,
        "service_account": text(&row.body, "service_account"),
        "max_concurrency": concurrency,
        "trigger": field(&row.body, "trigger"),
        "created_at": time::format(row.created_at),
        "updated_at": time::format(row.updated_at),
        "status": row.status,
        "enabled": row.status == "ENABLED",
        "no_catchup": field(&row.body, "no_catchup").and_then(Value::as_bool) == Some(true),
    }))
}
