//! Rows as the API's messages. Fields with nothing in them are left out, as protobuf's JSON does.

use super::runs::PLUGINS_INPUT;
use crate::{
    engine::model::{Artifact, StateChange, Task, TaskError},
    spec::Pipeline,
    store::{Experiment, PipelineRow, RecurringRow, RunRow, VersionRow},
    time,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Drops empty strings, lists, objects and nulls of the top level.
pub(super) fn compact(value: Value) -> Value {
    let Value::Object(map) = value else { return value };
    let kept = map.into_iter().filter(|(_, v)| match v {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    });
    Value::Object(kept.collect())
}

pub(super) fn experiment(row: &Experiment) -> Value {
    compact(json!({
        "experiment_id": row.id,
        "display_name": row.display_name,
        "description": row.description,
        "created_at": time::format(row.created_at),
        "namespace": row.namespace,
        "storage_state": row.storage_state,
        "last_run_created_at": time::format(row.last_run_created_at),
    }))
}

pub(super) fn pipeline(row: &PipelineRow) -> Value {
    compact(json!({
        "pipeline_id": row.id,
        "display_name": row.display_name,
        "name": row.name,
        "description": row.description,
        "created_at": time::format(row.created_at),
        "namespace": row.namespace,
        "tags": row.tags,
    }))
}

pub(super) fn version(row: &VersionRow) -> Value {
    compact(json!({
        "pipeline_id": row.pipeline_id,
        "pipeline_version_id": row.id,
        "display_name": row.display_name,
        "name": row.name,
        "description": row.description,
        "created_at": time::format(row.created_at),
        "code_source_url": row.code_source_url,
        "pipeline_spec": Pipeline::wire(&row.spec),
        "tags": row.tags,
    }))
}

pub(super) fn recurring(row: &RecurringRow) -> Value {
    let mut body = row.body.as_object().cloned().unwrap_or_default();
    for (name, value) in [
        ("recurring_run_id", json!(row.id)),
        ("display_name", json!(row.display_name)),
        ("namespace", json!(row.namespace)),
        ("experiment_id", json!(row.experiment_id)),
        ("created_at", json!(time::format(row.created_at))),
        ("updated_at", json!(time::format(row.updated_at))),
        ("status", json!(row.status)),
        ("mode", json!(if row.status == "ENABLED" { "ENABLE" } else { "DISABLE" })),
    ] {
        body.insert(name.to_owned(), value);
    }
    compact(Value::Object(body))
}

fn error(error: Option<&TaskError>) -> Value {
    error.map_or(Value::Null, |e| json!({"code": e.code, "message": e.message, "details": []}))
}

fn history(changes: &[StateChange], last: Option<&TaskError>) -> Value {
    let end = changes.len().saturating_sub(1);
    let rows = changes.iter().enumerate().map(|(at, change)| {
        compact(json!({
            "update_time": time::format(change.at),
            "state": change.state.name(),
            "error": if at == end { error(last) } else { Value::Null },
        }))
    });
    Value::Array(rows.collect())
}

/// `tasks` are given only where one run is asked for.
pub(super) fn run(row: &RunRow, tasks: Option<&[Task]>) -> Value {
    let reference = if row.pipeline_version_id.is_empty() {
        Value::Null
    } else {
        json!({"pipeline_id": row.pipeline_id, "pipeline_version_id": row.pipeline_version_id})
    };
    let spec = if row.pipeline_version_id.is_empty() { Pipeline::wire(&row.spec) } else { Value::Null };
    let mut config = row.runtime_config.clone();
    let plugins = config.as_object_mut().and_then(|c| c.remove(PLUGINS_INPUT));
    compact(json!({
        "experiment_id": row.experiment_id,
        "run_id": row.id,
        "display_name": row.display_name,
        "storage_state": row.storage_state,
        "description": row.description,
        "pipeline_spec": spec,
        "pipeline_version_reference": reference,
        "runtime_config": config,
        "plugins_input": plugins,
        "service_account": row.service_account,
        "created_at": time::format(row.created_at),
        "scheduled_at": time::format(row.scheduled_at),
        "finished_at": row.finished_at.map_or_else(|| time::format(0), time::format),
        "state": row.state.name(),
        "error": error(row.error.as_ref()),
        "run_details": tasks.map_or(Value::Null, |tasks| details(row, tasks)),
        "recurring_run_id": row.recurring_run_id,
        "state_history": history(&row.state_history, row.error.as_ref()),
    }))
}

fn details(row: &RunRow, tasks: &[Task]) -> Value {
    let mut children: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for child in tasks {
        if let Some(parent) = &child.parent_id {
            let entry = compact(json!({"task_id": child.id, "pod_name": child.pod_name}));
            children.entry(parent).or_default().push(entry);
        }
    }
    let rows = tasks.iter().map(|task| {
        compact(json!({
            "run_id": row.id,
            "task_id": task.id,
            "display_name": task.display_name,
            "create_time": time::format(task.created_at),
            "start_time": task.started_at.map(time::format),
            "end_time": task.finished_at.map(time::format),
            "executor_detail": compact(json!({"main_job": task.pod_name, "failed_main_jobs": task.failed_pods})),
            "state": task.state.name(),
            "execution_id": task.execution_id.map(|id| id.to_string()),
            "error": error(task.error.as_ref()),
            "inputs": artifact_ids(&task.inputs.artifacts),
            "outputs": artifact_ids(&task.outputs.artifacts),
            "parent_task_id": task.parent_id,
            "state_history": history(&task.history, task.error.as_ref()),
            "pod_name": task.pod_name,
            "child_tasks": children.remove(task.id.as_str()),
        }))
    });
    let rows: Vec<Value> = rows.collect();
    compact(json!({
        "pipeline_context_id": (row.contexts.pipeline > 0).then(|| row.contexts.pipeline.to_string()),
        "pipeline_run_context_id": (row.contexts.run > 0).then(|| row.contexts.run.to_string()),
        "task_details": rows,
    }))
}

/// 64-bit integers are strings in protobuf's JSON.
fn artifact_ids(artifacts: &BTreeMap<String, Vec<Artifact>>) -> Value {
    let lists = artifacts.iter().map(|(name, list)| {
        let ids: Vec<&str> = list.iter().map(|a| a.name.as_str()).filter(|n| n.parse::<i64>().is_ok()).collect();
        (name.clone(), json!({"artifact_ids": ids}))
    });
    Value::Object(lists.collect::<Map<_, _>>())
}
