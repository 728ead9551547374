//! `ExperimentService`, v1beta1. Archiving and deleting are v2beta1's.

use super::{listed_under, owner, render};
use crate::{
    error::{ApiError, ApiResult},
    rest::{App, Args, Caller, json_body},
};
use axum::{Json, body::Body, extract::Path};
use serde_json::Value;

pub(super) async fn create(app: App, Caller(user): Caller, body: Body) -> ApiResult<Json<Value>> {
    let body = json_body(body).await?;
    let namespace = owner(&app, &user, &body).await?;
    Ok(Json(render::experiment(&app.make_experiment(&user, namespace, &body).await?)))
}

pub(super) async fn list(app: App, Caller(user): Caller, args: Args) -> ApiResult<Json<Value>> {
    let namespace = match listed_under(&args, "resource_reference_key")? {
        ("NAMESPACE" | "UNKNOWN_RESOURCE_TYPE", id) => id,
        (other, _) => return Err(ApiError::invalid(format!("experiments are listed by NAMESPACE, not by {other}"))),
    };
    let page = app.list_experiments(&user, &namespace, &args.listing()?).await?;
    let rows: Vec<Value> = page.rows.iter().map(render::experiment).collect();
    Ok(page.shown("experiments", rows))
}

pub(super) async fn get(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    Ok(Json(render::experiment(&app.experiment(&user, "get", &id).await?)))
}
