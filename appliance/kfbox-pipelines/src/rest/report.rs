//! `ReportService`: upstream's persistence agent tells the API server with it what became of workflows and of
//! schedules. Here the engine and the schedule are what decides, so a report is checked and held against them: it must
//! be of something that exists; of a schedule, whether it is enabled is taken over.

use super::{App, Caller, GROUP, empty, is_label};
use crate::error::{ApiError, ApiResult};
use axum::{body::Body, response::Response};
use kfbox_base::ResourceAttributes;
use serde_json::Value;

/// A manifest with its metadata; the body is a JSON string that holds it, or the object itself.
struct Reported {
    manifest: Value,
    namespace: String,
    uid: String,
}

const MAX_REPORT: usize = 4 << 20;

async fn read(body: Body, what: &str) -> ApiResult<Reported> {
    let bytes = axum::body::to_bytes(body, MAX_REPORT)
        .await
        .map_err(|_| ApiError::invalid(format!("the report is larger than {} MiB or was cut off", MAX_REPORT >> 20)))?;
    let unreadable = |e: serde_json::Error| ApiError::invalid(format!("the {what} cannot be read: {e}"));
    let manifest = match serde_json::from_slice(&bytes).map_err(unreadable)? {
        Value::String(text) => serde_json::from_str(&text).map_err(unreadable)?,
        other => other,
    };
    let text = |name: &str| {
        let found = manifest.pointer(&format!("/metadata/{name}")).and_then(Value::as_str).unwrap_or_default();
        if found.is_empty() {
            Err(ApiError::invalid(format!("the {what} has no {name}")))
        } else {
            Ok(found.to_owned())
        }
    };
    text("name")?;
    let (namespace, uid) = (text("namespace")?, text("uid")?);
    if !is_label(&namespace) {
        return Err(ApiError::invalid(format!("`{namespace}` is no namespace")));
    }
    Ok(Reported { manifest, namespace, uid })
}

pub(super) async fn workflow(app: App, Caller(user): Caller, body: Body) -> ApiResult<Response> {
    let reported = read(body, "workflow").await?;
    app.allow(&user, ResourceAttributes::namespaced("report", GROUP, "workflows", &reported.namespace)).await?;
    let run = reported.manifest.pointer("/metadata/labels/pipeline~1runid").and_then(Value::as_str);
    let run = run.ok_or_else(|| ApiError::invalid("the workflow has no label pipeline/runid, so it is of no run"))?;
    let known = app.store.run(run).await?.is_some_and(|row| row.namespace == reported.namespace);
    if known { Ok(empty()) } else { Err(ApiError::not_found("run", run)) }
}

pub(super) async fn scheduled_workflow(app: App, Caller(user): Caller, body: Body) -> ApiResult<Response> {
    let reported = read(body, "scheduled workflow").await?;
    let what = ResourceAttributes::namespaced("report", GROUP, "scheduledworkflows", &reported.namespace);
    app.allow(&user, what).await?;
    let found = app.store.recurring(&reported.uid).await?.filter(|row| row.namespace == reported.namespace);
    let row = found.ok_or_else(|| ApiError::not_found("recurring run", &reported.uid))?;
    let enabled = reported.manifest.pointer("/spec/enabled").and_then(Value::as_bool) == Some(true);
    let status = if enabled { "ENABLED" } else { "DISABLED" };
    if row.status != status {
        app.store.switch_recurring(&row.id, status).await?;
        app.schedule.wake();
    }
    Ok(empty())
}
