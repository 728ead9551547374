//! `PipelineService` and `PipelineUploadService`, v1beta1: a pipeline is always shown with its default version, which is
//! the latest one unless the caller chose another since.

use super::{References, listed_under, owner, render, require, yaml};
use crate::{
    Inner,
    error::{ApiError, ApiResult, Code},
    rest::{App, Args, Caller, checked_name, description, display_name, empty, field, json_body, text_field},
    store::{PipelineRow, VersionRow},
};
use axum::{
    Json,
    body::Body,
    extract::{Path, Request},
    response::Response,
};
use serde_json::{Value, json};

async fn shown(app: &Inner, row: &PipelineRow) -> ApiResult<Value> {
    Ok(render::pipeline(row, app.store.default_version(&row.id).await?.as_ref()))
}

async fn default_of(app: &Inner, row: &PipelineRow) -> ApiResult<VersionRow> {
    let found = app.store.default_version(&row.id).await?;
    found.ok_or_else(|| ApiError::new(Code::NotFound, format!("pipeline {} has no version yet", row.id)))
}

fn url_in(body: &Value, name: &str) -> ApiResult<String> {
    field(body, name).map_or_else(|| Ok(String::new()), |url| text_field(url, "pipeline_url"))
}

pub(super) async fn create(app: App, Caller(user): Caller, body: Body) -> ApiResult<Json<Value>> {
    let body = json_body(body).await?;
    let namespace = owner(&app, &user, &body).await?;
    app.allow_verb(&user, "create", "pipelines", &namespace).await?;
    let url = url_in(&body, "url")?;
    let spec = app.fetched(require(&url, "url.pipeline_url, where the package is,")?).await?;
    let name = text_field(&body, "name")?;
    let name = if name.is_empty() { spec.name().to_owned() } else { name };
    checked_name(&name)?;
    let row = app.make_pipeline(namespace, (name, String::new()), description(&body)?, json!({}), &url, spec).await?;
    Ok(Json(shown(&app, &row).await?))
}

pub(super) async fn list(app: App, Caller(user): Caller, args: Args) -> ApiResult<Json<Value>> {
    let namespace = match listed_under(&args, "resource_reference_key")? {
        ("NAMESPACE" | "UNKNOWN_RESOURCE_TYPE", id) => id,
        (other, _) => return Err(ApiError::invalid(format!("pipelines are listed by NAMESPACE, not by {other}"))),
    };
    let page = app.list_pipelines(&user, &namespace, &args.listing()?).await?;
    let mut rows = Vec::with_capacity(page.rows.len());
    for row in &page.rows {
        rows.push(shown(&app, row).await?);
    }
    Ok(page.shown("pipelines", rows))
}

pub(super) async fn get(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let row = app.pipeline(&user, "get", &id).await?;
    Ok(Json(shown(&app, &row).await?))
}

/// `-` stands for no namespace, which here is the caller's own.
pub(super) async fn get_by_name(
    app: App,
    Caller(user): Caller,
    Path((namespace, name)): Path<(String, String)>,
) -> ApiResult<Json<Value>> {
    let namespace = if namespace == "-" { String::new() } else { namespace };
    let row = app.pipeline_named(&user, &namespace, &name).await?;
    Ok(Json(shown(&app, &row).await?))
}

/// With its versions: v1beta1 has no other way to name those of a pipeline at once.
pub(super) async fn delete(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Response> {
    let row = app.pipeline(&user, "delete", &id).await?;
    app.remove_pipeline(&row, true).await?;
    Ok(empty())
}

pub(super) async fn template(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let row = app.pipeline(&user, "get", &id).await?;
    Ok(Json(json!({"template": yaml(&default_of(&app, &row).await?.spec)?})))
}

pub(super) async fn set_default(
    app: App,
    Caller(user): Caller,
    Path((id, version)): Path<(String, String)>,
) -> ApiResult<Response> {
    app.version(&user, "update", &id, &version).await?;
    app.store.set_default_version(&id, &version).await?;
    Ok(empty())
}

pub(super) async fn upload(app: App, Caller(user): Caller, args: Args, request: Request) -> ApiResult<Json<Value>> {
    let row = app.upload(&user, &args, request).await?;
    Ok(Json(shown(&app, &row).await?))
}

pub(super) async fn upload_version(
    app: App,
    Caller(user): Caller,
    args: Args,
    request: Request,
) -> ApiResult<Json<Value>> {
    Ok(Json(render::version(&app.upload_version(&user, &args, request).await?)))
}

pub(super) async fn list_versions(app: App, Caller(user): Caller, args: Args) -> ApiResult<Json<Value>> {
    let ("PIPELINE" | "UNKNOWN_RESOURCE_TYPE", id) = listed_under(&args, "resource_key")? else {
        return Err(ApiError::invalid("pipeline versions are listed by PIPELINE: give resource_key.type and .id"));
    };
    let page = app.list_versions(&user, require(&id, "resource_key.id, the pipeline's,")?, &args.listing()?).await?;
    let rows: Vec<Value> = page.rows.iter().map(render::version).collect();
    Ok(page.shown("versions", rows))
}

pub(super) async fn create_version(app: App, Caller(user): Caller, body: Body) -> ApiResult<Json<Value>> {
    let body = json_body(body).await?;
    let references = References::read(&body)?;
    let of = require(&references.pipeline, "the resource reference to the PIPELINE that the version is of")?;
    let of = app.pipeline(&user, "create", of).await?;
    let url = url_in(&body, "package_url")?;
    let spec = app.fetched(require(&url, "package_url.pipeline_url, where the package is,")?).await?;
    let source = text_field(&body, "code_source_url")?;
    let source = if source.is_empty() { url } else { source };
    let names = (display_name(&body)?, String::new());
    let row = app.make_version(&of, names, description(&body)?, json!({}), &source, spec).await?;
    Ok(Json(render::version(&row)))
}

pub(super) async fn get_version(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    Ok(Json(render::version(&app.version(&user, "get", "", &id).await?.1)))
}

pub(super) async fn delete_version(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Response> {
    let (of, row) = app.version(&user, "delete", "", &id).await?;
    app.remove_version(&of.namespace, &row).await?;
    Ok(empty())
}

pub(super) async fn version_template(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    Ok(Json(json!({"template": yaml(&app.version(&user, "get", "", &id).await?.1.spec)?})))
}
