//! `JobService`, v1beta1: recurring runs.

use super::{as_v2, render, scope};
use crate::{
    error::{ApiError, ApiResult},
    rest::{App, Args, Caller, empty, field, json_body, recurring},
};
use axum::{Json, body::Body, extract::Path, response::Response};
use serde_json::{Value, json};

pub(super) async fn create(app: App, Caller(user): Caller, body: Body) -> ApiResult<Json<Value>> {
    let body = json_body(body).await?;
    let mut v2 = as_v2(&app, &user, &body).await?;
    let enabled = field(&body, "enabled").and_then(Value::as_bool) == Some(true)
        || match field(&body, "mode") {
            Some(Value::String(mode)) => mode == "ENABLED",
            Some(mode) => mode.as_i64() == Some(1),
            None => false,
        };
    v2["mode"] = json!(if enabled { "ENABLE" } else { "DISABLE" });
    for name in ["trigger", "max_concurrency", "no_catchup"] {
        if let Some(value) = field(&body, name) {
            v2[name] = value.clone();
        }
    }
    Ok(Json(render::job(&app.make_recurring(&user, v2).await?)))
}

pub(super) async fn list(app: App, Caller(user): Caller, args: Args) -> ApiResult<Json<Value>> {
    let page = app.list_recurring(scope(&app, &user, recurring::RESOURCE, &args).await?, &args.listing()?).await?;
    let rows: Vec<Value> = page.rows.iter().map(render::job).collect();
    Ok(page.shown("jobs", rows))
}

pub(super) async fn get(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    Ok(Json(render::job(&app.recurring(&user, "get", &id).await?)))
}

/// `POST /jobs/{id}/enable` and `/disable`.
pub(super) async fn act(
    app: App,
    Caller(user): Caller,
    Path((id, verb)): Path<(String, String)>,
) -> ApiResult<Response> {
    if !matches!(verb.as_str(), "enable" | "disable") {
        return Err(ApiError::not_found("the action", &verb));
    }
    app.switch_recurring(&user, &id, &verb).await?;
    Ok(empty())
}
