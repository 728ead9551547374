//! `PipelineService` and `PipelineUploadService`. Pipelines belong to a namespace; there are no shared ones.

use super::{
    App, Args, Caller, checked_name, description, display_name, empty, field, json_body, render, tags, text_field,
};
use crate::{
    Inner,
    error::{ApiError, ApiResult},
    spec::{Pipeline, package, package::MAX_PACKAGE},
    store::{PipelineRow, VersionRow, listing},
    time,
};
use axum::{
    Json,
    body::Body,
    extract::{FromRequest, Multipart, Path, Request},
    response::Response,
};
use kfbox_base::UserInfo;
use serde_json::{Value, json};

const RESOURCE: &str = "pipelines";

impl Inner {
    pub(crate) async fn pipeline(&self, user: &UserInfo, verb: &str, id: &str) -> ApiResult<PipelineRow> {
        let not_found = || ApiError::not_found("pipeline", id);
        let found = self.store.pipeline(id).await?.ok_or_else(not_found)?;
        self.allow_on(user, verb, RESOURCE, &found.namespace, not_found).await?;
        Ok(found)
    }

    /// A version, with its pipeline; the pipeline's id, where given, must be its own.
    pub(crate) async fn version(
        &self,
        user: &UserInfo,
        verb: &str,
        pipeline: &str,
        id: &str,
    ) -> ApiResult<(PipelineRow, VersionRow)> {
        let not_found = || ApiError::not_found("pipeline version", id);
        let found = self
            .store
            .version(id)
            .await?
            .filter(|v| pipeline.is_empty() || v.pipeline_id == pipeline)
            .ok_or_else(not_found)?;
        let owner = self.store.pipeline(&found.pipeline_id).await?.ok_or_else(not_found)?;
        self.allow_on(user, verb, RESOURCE, &owner.namespace, not_found).await?;
        Ok((owner, found))
    }
}

pub(crate) fn refused(error: &crate::spec::SpecError) -> ApiError {
    ApiError::invalid(format!("the pipeline package is refused: {error}"))
}

fn new_pipeline(
    namespace: String,
    name: String,
    shown: String,
    description: String,
    tags: Value,
) -> ApiResult<PipelineRow> {
    checked_name(&name)?;
    let display_name = if shown.is_empty() { name.clone() } else { shown };
    checked_name(&display_name)?;
    Ok(PipelineRow {
        id: uuid::Uuid::new_v4().to_string(),
        namespace,
        name,
        display_name,
        description,
        created_at: time::now(),
        tags,
    })
}

fn new_version(
    pipeline_id: &str,
    name: String,
    shown: String,
    description: String,
    tags: Value,
    spec: Pipeline,
) -> ApiResult<VersionRow> {
    checked_name(&name)?;
    let display_name = if shown.is_empty() { name.clone() } else { shown };
    checked_name(&display_name)?;
    Ok(VersionRow {
        id: uuid::Uuid::new_v4().to_string(),
        pipeline_id: pipeline_id.to_owned(),
        name,
        display_name,
        description,
        created_at: time::now(),
        code_source_url: String::new(),
        tags,
        spec: spec.documents,
    })
}

pub(super) async fn create(app: App, Caller(user): Caller, body: Body) -> ApiResult<Json<Value>> {
    let body = json_body(body).await?;
    let namespace = app.namespace(&user, &text_field(&body, "namespace")?).await?;
    app.allow_verb(&user, "create", RESOURCE, &namespace).await?;
    let (name, shown) = names(&body)?;
    let new = new_pipeline(namespace, name, shown, description(&body)?, tags(&body)?)?;
    Ok(Json(render::pipeline(&app.store.create_pipeline(new, None).await?)))
}

fn names(body: &Value) -> ApiResult<(String, String)> {
    let shown = display_name(body)?;
    let name = text_field(body, "name")?;
    Ok((if name.is_empty() { shown.clone() } else { name }, shown))
}

/// The spec of a version in a request: inline, as the API returns it.
fn spec_of(body: &Value) -> ApiResult<Pipeline> {
    let Some(spec) = field(body, "pipeline_spec") else {
        return Err(ApiError::invalid(match field(body, "package_url") {
            Some(_) => "this kfbox fetches no package from a URL; upload the package, or send pipeline_spec",
            None => "the pipeline version has no pipeline_spec",
        }));
    };
    Pipeline::parse(package::split(spec.clone(), None)).map_err(|e| refused(&e))
}

pub(super) async fn create_with_version(app: App, Caller(user): Caller, body: Body) -> ApiResult<Json<Value>> {
    let body = json_body(body).await?;
    let (Some(of), Some(version)) = (field(&body, "pipeline"), field(&body, "pipeline_version")) else {
        return Err(ApiError::invalid("the body should hold pipeline and pipeline_version"));
    };
    let namespace = app.namespace(&user, &text_field(of, "namespace")?).await?;
    app.allow_verb(&user, "create", RESOURCE, &namespace).await?;
    let (name, shown) = names(of)?;
    let new = new_pipeline(namespace, name.clone(), shown, description(of)?, tags(of)?)?;
    let version_name = text_field(version, "name")?;
    let version_name = if version_name.is_empty() { name } else { version_name };
    let first = new_version(
        &new.id,
        version_name,
        text_field(version, "display_name")?,
        description(version)?,
        tags(version)?,
        spec_of(version)?,
    )?;
    Ok(Json(render::pipeline(&app.store.create_pipeline(new, Some(first)).await?)))
}

pub(super) async fn list(app: App, Caller(user): Caller, args: Args) -> ApiResult<Json<Value>> {
    let namespaces = app.listed(&user, RESOURCE, &args.text("namespace")).await?;
    let listing = listing::Listing::new(
        &listing::PIPELINES,
        &args.listing()?,
        vec![("namespace", namespaces)],
        app.store.key.as_slice(),
    )?;
    let page = app.store.pipelines(listing).await?;
    let rows: Vec<Value> = page.rows.iter().map(render::pipeline).collect();
    Ok(Json(json!({"pipelines": rows, "total_size": page.total, "next_page_token": page.next_page_token})))
}

pub(super) async fn get(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    Ok(Json(render::pipeline(&app.pipeline(&user, "get", &id).await?)))
}

pub(super) async fn get_by_name(
    app: App,
    Caller(user): Caller,
    Path(name): Path<String>,
    args: Args,
) -> ApiResult<Json<Value>> {
    let namespace = app.namespace(&user, &args.text("namespace")).await?;
    let not_found = || ApiError::not_found("pipeline", &name);
    app.allow_on(&user, "get", RESOURCE, &namespace, not_found).await?;
    let found = app.store.pipeline_by_name(&namespace, &name).await?.ok_or_else(not_found)?;
    Ok(Json(render::pipeline(&found)))
}

pub(super) async fn update(
    app: App,
    Caller(user): Caller,
    Path(id): Path<String>,
    body: Body,
) -> ApiResult<Json<Value>> {
    let mut row = app.pipeline(&user, "update", &id).await?;
    let body = json_body(body).await?;
    if field(&body, "display_name").is_some() {
        row.display_name = display_name(&body)?;
    }
    if field(&body, "description").is_some() {
        row.description = description(&body)?;
    }
    if field(&body, "tags").is_some() {
        row.tags = tags(&body)?;
    }
    app.store.update_pipeline(row.clone()).await?;
    Ok(Json(render::pipeline(&row)))
}

pub(super) async fn delete(app: App, Caller(user): Caller, Path(id): Path<String>, args: Args) -> ApiResult<Response> {
    app.pipeline(&user, "delete", &id).await?;
    app.store.delete_pipeline(&id, args.get("cascade") == Some("true")).await?;
    Ok(empty())
}

pub(super) async fn list_versions(
    app: App,
    Caller(user): Caller,
    Path(id): Path<String>,
    args: Args,
) -> ApiResult<Json<Value>> {
    app.pipeline(&user, "get", &id).await?;
    let listing = listing::Listing::new(
        &listing::VERSIONS,
        &args.listing()?,
        vec![("pipeline_id", vec![id])],
        app.store.key.as_slice(),
    )?;
    let page = app.store.versions(listing).await?;
    let rows: Vec<Value> = page.rows.iter().map(render::version).collect();
    Ok(Json(json!({"pipeline_versions": rows, "total_size": page.total, "next_page_token": page.next_page_token})))
}

pub(super) async fn create_version(
    app: App,
    Caller(user): Caller,
    Path(id): Path<String>,
    body: Body,
) -> ApiResult<Json<Value>> {
    let of = app.pipeline(&user, "create", &id).await?;
    let body = json_body(body).await?;
    let (name, shown) = names(&body)?;
    let new = new_version(&of.id, name, shown, description(&body)?, tags(&body)?, spec_of(&body)?)?;
    Ok(Json(render::version(&app.store.create_version(new).await?)))
}

pub(super) async fn get_version(
    app: App,
    Caller(user): Caller,
    Path((id, version)): Path<(String, String)>,
) -> ApiResult<Json<Value>> {
    Ok(Json(render::version(&app.version(&user, "get", &id, &version).await?.1)))
}

pub(super) async fn update_version(
    app: App,
    Caller(user): Caller,
    Path((id, version)): Path<(String, String)>,
    body: Body,
) -> ApiResult<Json<Value>> {
    let (_, mut row) = app.version(&user, "update", &id, &version).await?;
    let body = json_body(body).await?;
    if field(&body, "display_name").is_some() {
        row.display_name = display_name(&body)?;
    }
    if field(&body, "description").is_some() {
        row.description = description(&body)?;
    }
    if field(&body, "tags").is_some() {
        row.tags = tags(&body)?;
    }
    app.store.update_version(row.clone()).await?;
    Ok(Json(render::version(&row)))
}

pub(super) async fn delete_version(
    app: App,
    Caller(user): Caller,
    Path((id, version)): Path<(String, String)>,
) -> ApiResult<Response> {
    app.version(&user, "delete", &id, &version).await?;
    app.store.delete_version(&version).await?;
    Ok(empty())
}

/// The part called `uploadfile`, whole: packages are bounded and small.
async fn uploaded(request: Request) -> ApiResult<(Vec<u8>, Option<String>)> {
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|e| ApiError::invalid(format!("the upload is no multipart form: {e}")))?;
    while let Some(mut part) =
        form.next_field().await.map_err(|e| ApiError::invalid(format!("the upload is damaged: {e}")))?
    {
        if part.name() != Some("uploadfile") {
            continue;
        }
        let name = part.file_name().map(str::to_owned);
        let mut content = Vec::new();
        while let Some(chunk) =
            part.chunk().await.map_err(|e| ApiError::invalid(format!("the upload was cut off: {e}")))?
        {
            if content.len() + chunk.len() > MAX_PACKAGE {
                return Err(ApiError::invalid(format!("the package is larger than {} MiB", MAX_PACKAGE >> 20)));
            }
            content.extend_from_slice(&chunk);
        }
        return Ok((content, name));
    }
    Err(ApiError::invalid("the form has no part called uploadfile"))
}

fn tags_arg(args: &Args) -> ApiResult<Value> {
    match args.get("tags").filter(|t| !t.is_empty()) {
        None => Ok(json!({})),
        Some(text) => {
            let parsed: Value =
                serde_json::from_str(text).map_err(|_| ApiError::invalid("tags should be a JSON object"))?;
            tags(&json!({"tags": parsed}))
        }
    }
}

pub(super) async fn upload(app: App, Caller(user): Caller, args: Args, request: Request) -> ApiResult<Json<Value>> {
    let namespace = app.namespace(&user, &args.text("namespace")).await?;
    app.allow_verb(&user, "create", RESOURCE, &namespace).await?;
    let tags = tags_arg(&args)?;
    let description = description(&json!({"description": args.text("description")}))?;
    let (content, file) = uploaded(request).await?;
    let spec = Pipeline::from_package(&content).map_err(|e| refused(&e))?;
    let name = [args.text("name"), args.text("display_name"), file.unwrap_or_default(), spec.name().to_owned()];
    let name = name.into_iter().find(|n| !n.is_empty()).unwrap_or_default();
    let new = new_pipeline(namespace, name.clone(), args.text("display_name"), description.clone(), tags.clone())?;
    let first = new_version(&new.id, name, args.text("display_name"), description, tags, spec)?;
    Ok(Json(render::pipeline(&app.store.create_pipeline(new, Some(first)).await?)))
}

pub(super) async fn upload_version(
    app: App,
    Caller(user): Caller,
    args: Args,
    request: Request,
) -> ApiResult<Json<Value>> {
    let id =
        args.get("pipelineid").filter(|i| !i.is_empty()).ok_or_else(|| ApiError::invalid("pipelineid is missing"))?;
    let of = app.pipeline(&user, "create", id).await?;
    let tags = tags_arg(&args)?;
    let description = description(&json!({"description": args.text("description")}))?;
    let (content, file) = uploaded(request).await?;
    let spec = Pipeline::from_package(&content).map_err(|e| refused(&e))?;
    let name =
        [args.text("name"), args.text("display_name"), file.unwrap_or_default()].into_iter().find(|n| !n.is_empty());
    let new = new_version(&of.id, name.unwrap_or_default(), args.text("display_name"), description, tags, spec)?;
    Ok(Json(render::version(&app.store.create_version(new).await?)))
}
