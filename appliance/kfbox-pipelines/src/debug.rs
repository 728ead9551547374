//! `POST /apis/v2beta1/runs/{run}/tasks/{task}/debug`, kfbox's own: a step's container once more, for a shell; and what
//! its launcher asks, `GET /v1/debug/{run}/{task}/{nonce}`. Who may run a pipeline in the namespace may do this: it runs
//! nothing that a pipeline could not.

use crate::{
    Inner,
    error::{ApiError, ApiResult, Code},
    rest::{App, Args, Caller},
    task_api,
};
use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::HeaderMap;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// How long the pod stays at most, in seconds, when nothing else is asked, and when much is.
const DEADLINE: i64 = 8 * 3600;
const LONGEST_DEADLINE: i64 = 7 * 86_400;
const MAX_BODY: usize = 64 << 10;

pub(crate) fn router(inner: Arc<Inner>) -> Router {
    Router::new().route("/apis/v2beta1/runs/{id}/tasks/{task}/debug", post(debug)).with_state(inner)
}

pub(crate) fn task_router(inner: Arc<Inner>) -> Router {
    Router::new()
        .route("/v1/debug/{run}/{task}/{nonce}", get(begin))
        .route("/v1/debug/{run}/{task}/{nonce}/inputs/{n}", get(download))
        .with_state(inner)
}

async fn debug(
    app: App,
    Caller(user): Caller,
    Path((run, task)): Path<(String, String)>,
    body: Body,
) -> ApiResult<Json<Value>> {
    let row = app.run(&user, "get", &run).await?;
    app.allow_verb(&user, "create", "runs", &row.namespace).await?;
    let bytes = axum::body::to_bytes(body, MAX_BODY).await.map_err(|_| ApiError::invalid("the body is too large"))?;
    let asked: Value = match bytes.is_empty() {
        true => json!({}),
        false => serde_json::from_slice(&bytes).map_err(|e| ApiError::invalid(format!("the body is no JSON: {e}")))?,
    };
    let deadline = match asked.get("deadline_seconds") {
        None | Some(Value::Null) => DEADLINE,
        Some(value) => value.as_i64().filter(|s| (1..=LONGEST_DEADLINE).contains(s)).ok_or_else(|| {
            ApiError::invalid(format!("deadline_seconds should be a number from 1 to {LONGEST_DEADLINE}"))
        })?,
    };
    let pod = app.engine.debug(&row, &task, deadline).await?;
    Ok(Json(json!({"namespace": pod.namespace, "pod_name": pod.name, "container": "main"})))
}

/// The assignment that the request's address names and its token opens.
async fn assignment(
    app: &Inner,
    names: &BTreeMap<String, String>,
    headers: &HeaderMap,
) -> ApiResult<Option<crate::engine::Assignment>> {
    let denied = || ApiError::new(Code::Unauthenticated, "the token is missing or wrong");
    let name = |name: &str| names.get(name).map(String::as_str).ok_or_else(denied);
    let (run, task, nonce) = (name("run")?, name("task")?, name("nonce")?);
    let given = task_api::bearer(headers).ok_or_else(denied)?;
    let expected = app.engine.debug_token(run, task, nonce);
    let good: bool = subtle::ConstantTimeEq::ct_eq(given.as_bytes(), expected.as_bytes()).into();
    if !good {
        return Err(denied());
    }
    app.engine.debug_assignment(run, task, nonce).await
}

async fn begin(
    State(app): App,
    Path(names): Path<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let Some(assignment) = assignment(&app, &names, &headers).await? else { return Ok(task_api::over()) };
    let mut told = task_api::told(&app, &assignment, task_api::environment(&headers)).await?;
    told["debug"] = json!(true);
    Ok(Json(told).into_response())
}

async fn download(
    State(app): App,
    Path(names): Path<BTreeMap<String, String>>,
    headers: HeaderMap,
    args: Args,
) -> ApiResult<Response> {
    match assignment(&app, &names, &headers).await? {
        Some(assignment) => task_api::input(&app, &assignment, &names, &args, task_api::environment(&headers)).await,
        None => Ok(task_api::over()),
    }
}
