//! `RunService`, v1beta1, with the metrics that runs report.

use super::{as_v2, render, scope};
use crate::{
    Inner,
    error::{ApiError, ApiResult},
    rest::{App, Args, Caller, empty, field, json_body, new_run, submit, text_field},
    store::{Metric, RunRow, listing},
};
use axum::{
    Json,
    body::Body,
    extract::Path,
    response::{IntoResponse, Response},
};
use kfbox_base::UserInfo;
use serde_json::{Value, json};

/// Metrics in one report: the SDK's limit on a step's metrics file is far below.
const MAX_METRICS: usize = 1000;

async fn detail(app: &Inner, row: &RunRow) -> ApiResult<Value> {
    let metrics = app.store.metrics(vec![row.id.clone()]).await?;
    let tasks = app.store.tasks(&row.id).await?;
    let reported: Vec<&Metric> = metrics.iter().collect();
    Ok(json!({"run": render::run(row, &reported), "pipeline_runtime": render::runtime(row, &tasks)}))
}

pub(super) async fn create(app: App, Caller(user): Caller, body: Body) -> ApiResult<Json<Value>> {
    let body = as_v2(&app, &user, &json_body(body).await?).await?;
    let row = submit(&app, new_run(&app, &user, &body, "").await?).await?;
    Ok(Json(detail(&app, &row).await?))
}

pub(super) async fn list(app: App, Caller(user): Caller, args: Args) -> ApiResult<Json<Value>> {
    let scope = scope(&app, &user, "runs", &args).await?;
    let listing = listing::Listing::new(&listing::RUNS, &args.listing()?, scope, app.store.key.as_slice())?;
    let page = app.store.runs(listing).await?;
    let metrics = app.store.metrics(page.rows.iter().map(|r| r.id.clone()).collect()).await?;
    let rows = page.rows.iter().map(|row| {
        let reported: Vec<&Metric> = metrics.iter().filter(|m| m.run_id == row.id).collect();
        render::run(row, &reported)
    });
    let rows: Vec<Value> = rows.collect();
    Ok(page.shown("runs", rows))
}

pub(super) async fn get(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let row = app.run(&user, "get", &id).await?;
    Ok(Json(detail(&app, &row).await?))
}

/// `POST /runs/{id}:archive`, `:unarchive` and `:reportMetrics`.
pub(super) async fn act(app: App, Caller(user): Caller, Path(path): Path<String>, body: Body) -> ApiResult<Response> {
    let (id, verb) = path.rsplit_once(':').ok_or_else(|| ApiError::not_found("the action on run", &path))?;
    match verb {
        "archive" | "unarchive" => app.act_on_run(&user, id, verb).await.map(|()| empty()),
        "reportMetrics" => {
            let body = json_body(body).await?;
            Ok(Json(report(&app, &user, id, &body).await?).into_response())
        }
        _ => Err(ApiError::not_found("the action", verb)),
    }
}

/// `POST /runs/{id}/retry` and `/terminate`.
pub(super) async fn act_by_path(
    app: App,
    Caller(user): Caller,
    Path((id, verb)): Path<(String, String)>,
) -> ApiResult<Response> {
    if !matches!(verb.as_str(), "retry" | "terminate") {
        return Err(ApiError::not_found("the action", &verb));
    }
    app.act_on_run(&user, &id, &verb).await?;
    Ok(empty())
}

/// Each metric is taken or refused on its own; the answer says which.
async fn report(app: &Inner, user: &UserInfo, id: &str, body: &Value) -> ApiResult<Value> {
    app.run(user, "reportMetrics", id).await?;
    let metrics = field(body, "metrics").and_then(Value::as_array).cloned().unwrap_or_default();
    if metrics.len() > MAX_METRICS {
        return Err(ApiError::invalid(format!("the report has more than {MAX_METRICS} metrics")));
    }
    let mut results = Vec::with_capacity(metrics.len());
    for metric in &metrics {
        let (name, node_id) = (text_field(metric, "name")?, text_field(metric, "node_id")?);
        let (status, message) = match checked(id, &name, &node_id, metric) {
            Err(message) => ("INVALID_ARGUMENT", message),
            Ok(metric) => {
                if app.store.report_metric(metric).await? {
                    ("OK", String::new())
                } else {
                    ("DUPLICATE_REPORTING", format!("metric {name} of node {node_id} was already reported"))
                }
            }
        };
        let mut result = json!({"metric_name": name, "metric_node_id": node_id, "status": status});
        if !message.is_empty() {
            result["message"] = json!(message);
        }
        results.push(result);
    }
    Ok(json!({"results": results}))
}

/// The rules of upstream's `validateRunMetric`.
fn checked(run: &str, name: &str, node_id: &str, metric: &Value) -> Result<Metric, String> {
    let fits = |(at, c): (usize, char)| c.is_ascii_alphabetic() || (at > 0 && (c.is_ascii_digit() || "-_".contains(c)));
    if name.is_empty() || name.len() > 64 || !name.char_indices().all(fits) || name.ends_with(['-', '_']) {
        return Err(format!(
            "the metric's name `{name}` should begin with a letter, end with a letter or digit, and hold letters, \
             digits, - and _, at most 64"
        ));
    }
    if node_id.is_empty() || node_id.len() > 128 {
        return Err("the metric's node_id should have from 1 to 128 characters".into());
    }
    let number = match field(metric, "number_value") {
        None => 0.0,
        Some(value) => value
            .as_f64()
            .or_else(|| value.as_str()?.parse().ok())
            .filter(|n| n.is_finite())
            .ok_or("the metric's number_value is no finite number")?,
    };
    let format = match field(metric, "format") {
        None => "UNSPECIFIED",
        Some(Value::String(name)) => ["UNSPECIFIED", "RAW", "PERCENTAGE"]
            .into_iter()
            .find(|f| f == name)
            .ok_or("the metric's format should be RAW or PERCENTAGE")?,
        Some(n) => match n.as_u64() {
            Some(1) => "RAW",
            Some(2) => "PERCENTAGE",
            _ => "UNSPECIFIED",
        },
    };
    Ok(Metric {
        run_id: run.into(),
        name: name.into(),
        node_id: node_id.into(),
        number_value: number,
        format: format.into(),
    })
}
