//! `ScheduledWorkflow` to a recurring run and back to its status. Upstream:
//! `backend/src/crd/controller/scheduledworkflow`. Here a pipeline may also be named by `pipelineName` alone, since one who
//! writes manifests knows no ids.

use super::{admission, created_at, spec, text};
use crate::{
    Inner,
    error::{ApiError, ApiResult, Code},
    schedule,
    store::RecurringRow,
    time,
};
use kfbox_api::pipelines::{self, label};
use kfbox_base::UserInfo;
use kube::{
    Resource, ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::{Map, Value, json};

/// Upstream's bounds of `maxHistory`.
const HISTORY: i64 = 10;
const MAX_HISTORY: i64 = 100;

/// As upstream shows a moment: whole seconds.
fn moment(at: i64) -> Value {
    json!(time::format(at / 1000 * 1000).replace(".000Z", "Z"))
}

/// The request that REST would get for the same recurring run.
async fn request(inner: &Inner, object: &DynamicObject, spec: &Value) -> ApiResult<(Value, bool)> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let workflow = spec.get("workflow").cloned().unwrap_or_default();
    if workflow.get("spec").is_some_and(|s| !s.is_null() && s.as_str() != Some("")) {
        return Err(ApiError::invalid(
            "spec.workflow.spec holds a workflow of Argo, which kfbox does not run: name a pipeline with spec.pipelineId, \
             spec.pipelineVersionId or spec.pipelineName",
        ));
    }
    let mut parameters = Map::new();
    for given in workflow.get("parameters").and_then(Value::as_array).into_iter().flatten() {
        let value = given.get("value").cloned().unwrap_or_default();
        // Upstream has JSON in a string; what is none can only be meant as text.
        let value = match value.as_str() {
            Some(text) => serde_json::from_str(text).unwrap_or(value),
            None => value,
        };
        parameters.insert(text(given, "name").to_owned(), value);
    }
    let (mut pipeline, version) = (text(spec, "pipelineId").to_owned(), text(spec, "pipelineVersionId").to_owned());
    if pipeline.is_empty() && version.is_empty() {
        let wanted = text(spec, "pipelineName");
        let found = inner.store.pipeline_by_name(&namespace, wanted).await?;
        pipeline = found.map(|p| p.id).ok_or_else(|| {
            ApiError::not_found("the pipeline that spec.pipelineName names,", &format!("{wanted} in {namespace},"))
        })?;
    }
    let trigger = spec.get("trigger").filter(|t| t.is_object()).cloned().unwrap_or_else(|| json!({}));
    let once = ["cronSchedule", "periodicSchedule"].iter().all(|n| trigger.get(n).is_none_or(Value::is_null));
    let mut body = json!({
        "display_name": name,
        "description": text(spec, "description"),
        "namespace": namespace,
        "mode": if spec.get("enabled").and_then(Value::as_bool) == Some(true) { "ENABLE" } else { "DISABLE" },
        "trigger": trigger,
        "experiment_id": text(spec, "experimentId"),
        "pipeline_version_reference": {"pipeline_id": pipeline, "pipeline_version_id": version},
        "runtime_config": {"parameters": parameters, "pipeline_root": text(&workflow, "pipelineRoot")},
        "service_account": text(spec, "serviceAccount"),
    });
    if let Some(most) = spec.get("maxConcurrency").and_then(Value::as_i64) {
        // Upstream takes any number as the nearest that it allows.
        body["max_concurrency"] = json!(most.clamp(1, 10).to_string());
    }
    if let Some(value) = spec.get("noCatchup").and_then(Value::as_bool) {
        body["no_catchup"] = json!(value);
    }
    if let Some(value) = spec.get("pluginsInput").filter(|v| v.is_object()) {
        body["plugins_input"] = value.clone();
    }
    Ok((body, once))
}

/// Takes over what the cluster has. False when it may become right without a change of its own.
pub(super) async fn take(inner: &Inner, object: &DynamicObject) -> ApiResult<bool> {
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(true);
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let id = object.uid().unwrap_or_default();
    let known = inner.store.recurring(&id).await?;
    let of = json!([object.metadata.generation, object.annotations().get(admission::ACTS_FOR)]);
    if known.as_ref().is_some_and(|row| row.body.get("kfbox_generation") == Some(&of)) {
        show(inner, &namespace, &name, &id).await?;
        return Ok(true);
    }
    match row(inner, object, known.as_ref(), of).await {
        Ok(row) => {
            inner.store.put_recurring(row).await?;
            inner.schedule.wake();
            show(inner, &namespace, &name, &id).await?;
            Ok(true)
        }
        Err(error) if error.code == Code::Internal || error.code == Code::Unavailable => Err(error),
        Err(error) => {
            // What it said before is not what it says now.
            if known.is_some() {
                inner.store.delete_recurring(&id).await?;
            }
            let conditions =
                json!([{"type": "Error", "status": "True", "reason": "Refused", "message": error.message}]);
            if object.data.pointer("/status/conditions") != Some(&conditions) {
                tell(inner, object, &error.message).await;
            }
            write(inner, object, &json!({"conditions": conditions}), "Error").await?;
            Ok(false)
        }
    }
}

async fn row(
    inner: &Inner,
    object: &DynamicObject,
    known: Option<&RecurringRow>,
    generation: Value,
) -> ApiResult<RecurringRow> {
    let (namespace, spec) = (object.namespace().unwrap_or_default(), spec(object));
    let applied = admission::who(inner, object).ok_or_else(|| {
        ApiError::new(Code::FailedPrecondition, "it is not known who applied it: delete it and apply it again")
    })?;
    let user: UserInfo = inner.deps.people.current(&applied).map_err(|why| {
        ApiError::new(Code::PermissionDenied, format!("no run is started for {}: {why}", applied.username))
    })?;
    let (body, once) = request(inner, object, &spec).await?;
    let mut row = inner.new_recurring(&user, body, object.uid().unwrap_or_default(), once).await?;
    if row.namespace != namespace {
        return Err(ApiError::invalid(format!(
            "spec.experimentId is of namespace {}, and the schedule of {namespace}",
            row.namespace
        )));
    }
    row.created_at = created_at(object);
    if let Some(body) = row.body.as_object_mut() {
        body.insert("kfbox_resource".into(), json!(object.name_any()));
        body.insert("kfbox_generation".into(), generation);
        for name in ["kfbox_last", "kfbox_index"] {
            if let Some(value) = known.and_then(|k| k.body.get(name)) {
                body.insert(name.into(), value.clone());
            }
        }
    }
    Ok(row)
}

/// An event of the cluster, for `kubectl describe`.
async fn tell(inner: &Inner, object: &DynamicObject, why: &str) {
    let reporter = Reporter { controller: "kfbox-pipelines".into(), instance: None };
    let event = Event {
        type_: EventType::Warning,
        reason: "Refused".into(),
        note: Some(why.chars().take(1000).collect()),
        action: "StartRun".into(),
        secondary: None,
    };
    let recorder = Recorder::new(inner.deps.client.clone(), reporter);
    if let Err(error) = recorder.publish(&event, &object.object_ref(&pipelines::scheduled_workflow())).await {
        tracing::debug!(%error, "an event cannot be written");
    }
}

/// Writes the status that the recurring run's row and its runs make.
pub(super) async fn show(inner: &Inner, namespace: &str, name: &str, id: &str) -> ApiResult<()> {
    let Some(row) = inner.store.recurring(id).await? else { return Ok(()) };
    let api = inner.resources(&pipelines::scheduled_workflow(), namespace);
    let object = match api.get_opt(name).await {
        Ok(Some(object)) if object.uid().as_deref() == Some(id) => object,
        Ok(_) => return Ok(()),
        Err(error) => return Err(ApiError::internal("reading a ScheduledWorkflow", error)),
    };
    let kept = spec(&object).get("maxHistory").and_then(Value::as_i64).unwrap_or(HISTORY).clamp(0, MAX_HISTORY);
    let (active, completed) = inner.store.runs_of_recurring(id, kept).await?;
    let (kind, message) = match (schedule::is_once(&row), row.status == "ENABLED") {
        (true, _) if row.body.get("kfbox_last").is_some() && active.is_empty() => {
            ("Succeeded", "The one-off schedule has succeeded.")
        }
        (true, _) => ("Running", "The one-off schedule is running."),
        (false, true) => ("Enabled", "The schedule is enabled."),
        (false, false) => ("Disabled", "The schedule is disabled."),
    };
    let mut conditions = vec![json!({"type": kind, "status": "True", "reason": kind, "message": message})];
    if let Some(error) = row.body.pointer("/error/message").and_then(Value::as_str) {
        let refused = json!({"type": "Error", "status": "True", "reason": "Refused", "message": error});
        let before = object.data.pointer("/status/conditions").and_then(Value::as_array);
        if !before.is_some_and(|b| b.contains(&refused)) {
            tell(inner, &object, error).await;
        }
        conditions.push(refused);
    }
    let mut trigger = Map::new();
    if let Some(last) = row.body.get("kfbox_last").and_then(Value::as_i64) {
        trigger.insert("lastTriggeredTime".into(), moment(last));
    }
    if let Some(next) = schedule::next(&row) {
        trigger.insert("nextTriggeredTime".into(), moment(next));
    }
    if let Some(index) = row.body.get("kfbox_index") {
        trigger.insert("lastWorkflowIndex".into(), index.clone());
    }
    let status = json!({
        "conditions": conditions,
        "trigger": trigger,
        "workflowHistory": {"active": active, "completed": completed},
    });
    write(inner, &object, &status, kind).await
}

/// Writes a status, and upstream's labels, where they are other than they should be.
async fn write(inner: &Inner, object: &DynamicObject, status: &Value, kind: &str) -> ApiResult<()> {
    let api = inner.resources(&pipelines::scheduled_workflow(), &object.namespace().unwrap_or_default());
    let (name, params) = (object.name_any(), PatchParams::default());
    let gone_is_fine = |outcome: Result<DynamicObject, kube::Error>| match outcome {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(ApiError::internal("writing a ScheduledWorkflow's status", error)),
    };
    if object.data.get("status") != Some(status) {
        // Fields that are no more go too: a merge would keep them.
        let mut whole = Map::from_iter([("conditions".to_owned(), Value::Null)]);
        whole.extend(["trigger", "workflowHistory"].map(|n| (n.to_owned(), Value::Null)));
        whole.extend(status.as_object().cloned().unwrap_or_default());
        if let (Some(Value::Object(trigger)), Some(before)) =
            (whole.get_mut("trigger"), object.data.pointer("/status/trigger").and_then(Value::as_object))
        {
            for name in before.keys() {
                trigger.entry(name.clone()).or_insert(Value::Null);
            }
        }
        gone_is_fine(api.patch_status(&name, &params, &Patch::Merge(json!({"status": whole}))).await)?;
    }
    let enabled = spec(object).get("enabled").and_then(Value::as_bool) == Some(true);
    let labels = [(label::SCHEDULE_ENABLED, enabled.to_string()), (label::SCHEDULE_STATUS, kind.to_owned())];
    if labels.iter().any(|(name, value)| object.labels().get(*name) != Some(value)) {
        let labels: Map<String, Value> = labels.into_iter().map(|(n, v)| (n.to_owned(), json!(v))).collect();
        gone_is_fine(api.patch(&name, &params, &Patch::Merge(json!({"metadata": {"labels": labels}}))).await)?;
    }
    Ok(())
}
