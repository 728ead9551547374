//! `PipelineService` and `PipelineUploadService`. Pipelines belong to a namespace; there are no shared ones.

use super::{
    App, Args, Caller, checked_name, description, display_name, empty, field, json_body, render, tags, text_field,
};
use crate::{
    Inner,
    error::{ApiError, ApiResult},
    spec::{Documents, Pipeline, package, package::MAX_PACKAGE},
    store::{PipelineRow, VersionRow, listing},
    time,
};
use axum::{
    Json,
    body::Body,
    extract::{FromRequest, Multipart, Path, Request},
    http::StatusCode,
    response::Response,
};
use kfbox_api::pipelines;
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

    pub(super) async fn pipeline_named(&self, user: &UserInfo, namespace: &str, name: &str) -> ApiResult<PipelineRow> {
        let namespace = self.namespace(user, namespace).await?;
        let not_found = || ApiError::not_found("pipeline", name);
        self.allow_on(user, "get", RESOURCE, &namespace, not_found).await?;
        self.store.pipeline_by_name(&namespace, name).await?.ok_or_else(not_found)
    }

    /// A pipeline and its first version. `names` are the name and the display name, which may be empty.
    pub(super) async fn make_pipeline(
        &self,
        namespace: String,
        names: (String, String),
        description: String,
        tags: Value,
        code_source_url: &str,
        spec: Pipeline,
    ) -> ApiResult<PipelineRow> {
        let (name, shown) = names;
        let new = new_pipeline(namespace, name.clone(), shown.clone(), description.clone(), tags.clone())?;
        let first = new_version(&new.id, name, shown, description, tags, code_source_url, spec)?;
        self.store.create_pipeline(new, Some(first)).await
    }

    pub(super) async fn make_version(
        &self,
        of: &PipelineRow,
        (name, shown): (String, String),
        description: String,
        tags: Value,
        code_source_url: &str,
        spec: Pipeline,
    ) -> ApiResult<VersionRow> {
        let new = new_version(&of.id, name, shown, description, tags, code_source_url, spec)?;
        self.store.create_version(new).await
    }

    pub(super) async fn list_pipelines(
        &self,
        user: &UserInfo,
        namespace: &str,
        query: &listing::Query,
    ) -> ApiResult<listing::Page<PipelineRow>> {
        let scope = vec![("namespace", self.listed(user, RESOURCE, namespace).await?)];
        let listing = listing::Listing::new(&listing::PIPELINES, query, scope, self.store.key.as_slice())?;
        self.store.pipelines(listing).await
    }

    pub(super) async fn list_versions(
        &self,
        user: &UserInfo,
        pipeline: &str,
        query: &listing::Query,
    ) -> ApiResult<listing::Page<VersionRow>> {
        self.pipeline(user, "get", pipeline).await?;
        let scope = vec![("pipeline_id", vec![pipeline.to_owned()])];
        let listing = listing::Listing::new(&listing::VERSIONS, query, scope, self.store.key.as_slice())?;
        self.store.versions(listing).await
    }

    /// The package at a URL, which must be among those that the box's settings allow.
    pub(super) async fn fetched(&self, url: &str) -> ApiResult<Pipeline> {
        use crate::ports::PackageError::{Failed, Refused};
        let bytes = self.deps.packages.fetch(url, MAX_PACKAGE).await.map_err(|error| match error {
            Refused(why) => ApiError::invalid(format!("the package at {url} is not fetched: {why}")),
            Failed(why) => ApiError::invalid(format!("the package at {url} cannot be fetched: {why}")),
        })?;
        from_package(&bytes)
    }

    pub(super) async fn upload(&self, user: &UserInfo, args: &Args, request: Request) -> ApiResult<PipelineRow> {
        let namespace = self.namespace(user, &args.text("namespace")).await?;
        self.allow_verb(user, "create", RESOURCE, &namespace).await?;
        let tags = tags_arg(args)?;
        let description = description(&json!({"description": args.text("description")}))?;
        let (content, file) = uploaded(request).await?;
        let spec = from_package(&content)?;
        let name = [args.text("name"), args.text("display_name"), file.unwrap_or_default(), spec.name().to_owned()];
        let name = name.into_iter().find(|n| !n.is_empty()).unwrap_or_default();
        let names = (name, args.text("display_name"));
        self.make_pipeline(namespace, names, description, tags, &args.text("code_source_url"), spec).await
    }

    pub(super) async fn upload_version(&self, user: &UserInfo, args: &Args, request: Request) -> ApiResult<VersionRow> {
        let id = args
            .get("pipelineid")
            .filter(|i| !i.is_empty())
            .ok_or_else(|| ApiError::invalid("pipelineid is missing"))?;
        let of = self.pipeline(user, "create", id).await?;
        let tags = tags_arg(args)?;
        let description = description(&json!({"description": args.text("description")}))?;
        let (content, file) = uploaded(request).await?;
        let spec = from_package(&content)?;
        let name = [args.text("name"), args.text("display_name"), file.unwrap_or_default()];
        let name = name.into_iter().find(|n| !n.is_empty()).unwrap_or_default();
        let names = (name, args.text("display_name"));
        self.make_version(&of, names, description, tags, &args.text("code_source_url"), spec).await
    }
}

/// A package that was checked. An Argo Workflow, which kfp 1.x compiles to, is told apart: it has another way out.
pub(crate) fn parsed(documents: Documents) -> ApiResult<Pipeline> {
    let text = |name: &str| documents.pipeline_spec.get(name).and_then(Value::as_str).unwrap_or_default();
    if text("apiVersion").starts_with("argoproj.io/") || text("kind") == "Workflow" {
        return Err(ApiError::invalid(
            "the pipeline package is refused: it is an Argo Workflow, as kfp 1.x compiles pipelines (V1_LEGACY), and \
             kfbox runs those of kfp 2; compile it with kfp 2 (`kfp dsl compile`), or with kfp 1.8's v2 compiler \
             (kfp.v2.compiler), and try again",
        ));
    }
    Pipeline::parse(documents).map_err(|e| refused(&e))
}

pub(crate) fn from_package(bytes: &[u8]) -> ApiResult<Pipeline> {
    parsed(package::read(bytes).map_err(|e| refused(&e.into()))?)
}

fn refused(error: &crate::spec::SpecError) -> ApiError {
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
        resource: String::new(),
    })
}

fn new_version(
    pipeline_id: &str,
    name: String,
    shown: String,
    description: String,
    tags: Value,
    code_source_url: &str,
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
        code_source_url: code_source_url.to_owned(),
        tags,
        spec: spec.documents,
        resource: String::new(),
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

/// The spec of a version in a request: inline, as the API returns it, or at a URL.
async fn spec_of(app: &Inner, body: &Value) -> ApiResult<(Pipeline, String)> {
    if let Some(spec) = field(body, "pipeline_spec") {
        return Ok((parsed(package::split(spec.clone(), None))?, String::new()));
    }
    let url = field(body, "package_url").map_or_else(|| Ok(String::new()), |url| text_field(url, "pipeline_url"))?;
    if url.is_empty() {
        return Err(ApiError::invalid("the pipeline version has neither pipeline_spec nor package_url.pipeline_url"));
    }
    Ok((app.fetched(&url).await?, url))
}

fn source_of(body: &Value, url: String) -> ApiResult<String> {
    let given = text_field(body, "code_source_url")?;
    Ok(if given.is_empty() { url } else { given })
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
    let (spec, url) = spec_of(&app, version).await?;
    let first = new_version(
        &new.id,
        version_name,
        text_field(version, "display_name")?,
        description(version)?,
        tags(version)?,
        &source_of(version, url)?,
        spec,
    )?;
    Ok(Json(render::pipeline(&app.store.create_pipeline(new, Some(first)).await?)))
}

pub(super) async fn list(app: App, Caller(user): Caller, args: Args) -> ApiResult<Json<Value>> {
    let page = app.list_pipelines(&user, &args.text("namespace"), &args.listing()?).await?;
    let rows: Vec<Value> = page.rows.iter().map(render::pipeline).collect();
    Ok(page.shown("pipelines", rows))
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
    Ok(Json(render::pipeline(&app.pipeline_named(&user, &args.text("namespace"), &name).await?)))
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
    let before = row.tags.clone();
    if field(&body, "tags").is_some() {
        row.tags = tags(&body)?;
    }
    app.change_resource(&pipelines::pipeline(), &row.namespace, &row.resource, || {
        changed_spec(&body, &before, &row.tags)
    })
    .await?;
    app.store.update_pipeline(row.clone()).await?;
    Ok(Json(render::pipeline(&row)))
}

pub(super) async fn delete(app: App, Caller(user): Caller, Path(id): Path<String>, args: Args) -> ApiResult<Response> {
    let row = app.pipeline(&user, "delete", &id).await?;
    app.remove_pipeline(&row, args.get("cascade") == Some("true")).await?;
    Ok(empty())
}

pub(super) async fn list_versions(
    app: App,
    Caller(user): Caller,
    Path(id): Path<String>,
    args: Args,
) -> ApiResult<Json<Value>> {
    let page = app.list_versions(&user, &id, &args.listing()?).await?;
    let rows: Vec<Value> = page.rows.iter().map(render::version).collect();
    Ok(page.shown("pipeline_versions", rows))
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
    let (spec, url) = spec_of(&app, &body).await?;
    let source = source_of(&body, url)?;
    let row = app.make_version(&of, (name, shown), description(&body)?, tags(&body)?, &source, spec).await?;
    Ok(Json(render::version(&row)))
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
    let (of, mut row) = app.version(&user, "update", &id, &version).await?;
    let body = json_body(body).await?;
    if field(&body, "display_name").is_some() {
        row.display_name = display_name(&body)?;
    }
    if field(&body, "description").is_some() {
        row.description = description(&body)?;
    }
    let before = row.tags.clone();
    if field(&body, "tags").is_some() {
        row.tags = tags(&body)?;
    }
    app.change_resource(&pipelines::pipeline_version(), &of.namespace, &row.resource, || {
        changed_spec(&body, &before, &row.tags)
    })
    .await?;
    app.store.update_version(row.clone()).await?;
    Ok(Json(render::version(&row)))
}

pub(super) async fn delete_version(
    app: App,
    Caller(user): Caller,
    Path((id, version)): Path<(String, String)>,
) -> ApiResult<Response> {
    let (of, row) = app.version(&user, "delete", &id, &version).await?;
    app.remove_version(&of.namespace, &row).await?;
    Ok(empty())
}

/// What an update changes, as a merge patch of a resource's `spec`.
fn changed_spec(body: &Value, before: &Value, tags: &Value) -> Value {
    let mut spec = serde_json::Map::new();
    for (name, key) in [("display_name", "displayName"), ("description", "description")] {
        if let Some(value) = field(body, name) {
            spec.insert(key.into(), value.clone());
        }
    }
    if field(body, "tags").is_some() {
        let gone = before.as_object().into_iter().flatten().map(|(name, _)| (name.clone(), Value::Null));
        let mut changed: serde_json::Map<String, Value> = gone.collect();
        changed.extend(tags.as_object().cloned().unwrap_or_default());
        spec.insert("tags".into(), Value::Object(changed));
    }
    Value::Object(spec)
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
        let too_large = || ApiError::invalid(format!("the package is larger than {} MiB", MAX_PACKAGE >> 20));
        while let Some(chunk) = part.chunk().await.map_err(|e| match e.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
            _ => ApiError::invalid(format!("the upload was cut off: {e}")),
        })? {
            if content.len() + chunk.len() > MAX_PACKAGE {
                return Err(too_large());
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
    Ok(Json(render::pipeline(&app.upload(&user, &args, request).await?)))
}

pub(super) async fn upload_version(
    app: App,
    Caller(user): Caller,
    args: Args,
    request: Request,
) -> ApiResult<Json<Value>> {
    Ok(Json(render::version(&app.upload_version(&user, &args, request).await?)))
}
