//! v1beta1, the API of kfp 1.x, over the same rows (swagger: `backend/api/v1beta1/swagger` upstream). What a run, a
//! pipeline or a job belongs to is said with resource references; pipelines are those of kfp 2, since an Argo Workflow
//! needs an engine that kfbox does not have.

mod experiments;
mod jobs;
mod pipelines;
mod render;
mod runs;

use super::{App, Args, field, healthz_v1, text_field};
use crate::{
    Inner,
    error::{ApiError, ApiResult},
    spec::{Pipeline, ir::ParameterType, package},
};
use axum::{
    Router,
    routing::{get, post},
};
use kfbox_base::UserInfo;
use serde_json::{Map, Value, json};
use std::sync::Arc;

pub(super) fn router() -> Router<Arc<Inner>> {
    Router::new()
        .route("/healthz", get(healthz_v1))
        .route("/auth", get(super::auth))
        .route("/experiments", get(experiments::list).post(experiments::create))
        .route(
            "/experiments/{id}",
            get(experiments::get).delete(super::experiments::delete).post(super::experiments::act),
        )
        .route("/pipelines", get(pipelines::list).post(pipelines::create))
        .route("/pipelines/upload", post(pipelines::upload))
        .route("/pipelines/upload_version", post(pipelines::upload_version))
        .route("/pipelines/{id}", get(pipelines::get).delete(pipelines::delete))
        .route("/pipelines/{id}/templates", get(pipelines::template))
        .route("/pipelines/{id}/default_version/{version}", post(pipelines::set_default))
        .route("/namespaces/{namespace}/pipelines/{name}", get(pipelines::get_by_name))
        .route("/pipeline_versions", get(pipelines::list_versions).post(pipelines::create_version))
        .route("/pipeline_versions/{id}", get(pipelines::get_version).delete(pipelines::delete_version))
        .route("/pipeline_versions/{id}/templates", get(pipelines::version_template))
        .route("/runs", get(runs::list).post(runs::create))
        .route("/runs/{id}", get(runs::get).delete(super::runs::delete).post(runs::act))
        .route("/runs/{id}/{verb}", post(runs::act_by_path))
        .route("/runs/{id}/nodes/{node}/log", get(super::runs::log))
        .route("/runs/{id}/nodes/{node}/artifacts/{artifact}", get(super::artifacts::read))
        .route("/jobs", get(jobs::list).post(jobs::create))
        .route("/jobs/{id}", get(jobs::get).delete(super::recurring::delete))
        .route("/jobs/{id}/{verb}", post(jobs::act))
        .route("/workflows", post(super::report::workflow))
        .route("/scheduledworkflows", post(super::report::scheduled_workflow))
        .route("/visualizations/{namespace}", post(super::visualizations::create))
}

/// `ResourceType`, by number.
const TYPES: [&str; 6] = ["UNKNOWN_RESOURCE_TYPE", "EXPERIMENT", "JOB", "PIPELINE", "PIPELINE_VERSION", "NAMESPACE"];

fn resource_type(value: Option<&Value>) -> ApiResult<&'static str> {
    let found = match value {
        Some(Value::String(name)) => TYPES.iter().find(|t| **t == name.as_str()),
        Some(Value::Number(n)) => n.as_u64().and_then(|n| TYPES.get(usize::try_from(n).ok()?)),
        _ => TYPES.first(),
    };
    found.copied().ok_or_else(|| ApiError::invalid(format!("a resource's type should be one of {}", TYPES.join(", "))))
}

/// What the resource references of a request say. Upstream takes the first of each type.
#[derive(Default)]
struct References {
    namespace: String,
    experiment: String,
    pipeline: String,
    version: String,
}

impl References {
    fn read(body: &Value) -> ApiResult<Self> {
        let mut found = Self::default();
        let list = match field(body, "resource_references") {
            None => return Ok(found),
            Some(Value::Array(list)) => list,
            Some(_) => return Err(ApiError::invalid("resource_references should be a list")),
        };
        for reference in list {
            let key = field(reference, "key").cloned().unwrap_or_default();
            let id = text_field(&key, "id")?;
            let slot = match resource_type(field(&key, "type"))? {
                "NAMESPACE" => &mut found.namespace,
                "EXPERIMENT" => &mut found.experiment,
                "PIPELINE" => &mut found.pipeline,
                "PIPELINE_VERSION" => &mut found.version,
                _ => continue,
            };
            if slot.is_empty() {
                *slot = id;
            }
        }
        Ok(found)
    }
}

/// `resource_reference_key.type` and `.id` of a list's query, or `resource_key`'s.
fn listed_under(args: &Args, prefix: &str) -> ApiResult<(&'static str, String)> {
    let kind = args.get(&format!("{prefix}.type")).filter(|t| !t.is_empty());
    let kind = kind.map(|text| text.parse::<u64>().map_or_else(|_| json!(text), |n| json!(n)));
    Ok((resource_type(kind.as_ref())?, args.text(&format!("{prefix}.id"))))
}

/// Which runs or jobs a list is of: those of a namespace, of an experiment, or all that the caller may list.
async fn scope(
    app: &Inner,
    user: &UserInfo,
    resource: &str,
    args: &Args,
) -> ApiResult<Vec<(&'static str, Vec<String>)>> {
    match listed_under(args, "resource_reference_key")? {
        ("EXPERIMENT", id) => {
            let of = app.experiment(user, "get", &id).await?;
            app.allow_verb(user, "list", resource, &of.namespace).await?;
            Ok(vec![("experiment_id", vec![id])])
        }
        ("NAMESPACE", id) => Ok(vec![("namespace", app.listed(user, resource, &id).await?)]),
        ("UNKNOWN_RESOURCE_TYPE", _) => Ok(vec![("namespace", app.listed(user, resource, "").await?)]),
        (other, _) => {
            Err(ApiError::invalid(format!("{resource} are listed by NAMESPACE or EXPERIMENT, not by {other}")))
        }
    }
}

/// A v1beta1 run or job as v2beta1's body: name, experiment, pipeline and parameters in their places.
async fn as_v2(app: &Inner, user: &UserInfo, body: &Value) -> ApiResult<Value> {
    let references = References::read(body)?;
    let spec = field(body, "pipeline_spec").cloned().unwrap_or_else(|| json!({}));
    let mut v2 = Map::new();
    let name = text_field(body, "name")?;
    let name = if name.is_empty() { text_field(&spec, "pipeline_name")? } else { name };
    v2.insert("display_name".into(), json!(name));
    v2.insert("description".into(), json!(text_field(body, "description")?));
    v2.insert("service_account".into(), json!(text_field(body, "service_account")?));
    v2.insert("experiment_id".into(), json!(references.experiment));
    v2.insert("namespace".into(), json!(references.namespace));
    let pipeline = text_field(&spec, "pipeline_id")?;
    let pipeline = if pipeline.is_empty() { references.pipeline } else { pipeline };
    let mut version = references.version;
    let manifest = text_field(&spec, "workflow_manifest")?;
    let manifest = if manifest.is_empty() { text_field(&spec, "pipeline_manifest")? } else { manifest };
    let parsed = if version.is_empty() && !manifest.is_empty() {
        let parsed = super::pipelines::from_package(manifest.as_bytes())?;
        v2.insert("pipeline_spec".into(), Pipeline::wire(&parsed.documents));
        Some(parsed)
    } else {
        if version.is_empty() && !pipeline.is_empty() {
            let of = app.pipeline(user, "get", &pipeline).await?;
            version = app.store.default_version(&of.id).await?.map(|v| v.id).unwrap_or_default();
        }
        v2.insert(
            "pipeline_version_reference".into(),
            json!({"pipeline_id": pipeline, "pipeline_version_id": version}),
        );
        match version.as_str() {
            "" => None,
            version => {
                let (_, row) = app.version(user, "get", &pipeline, version).await?;
                Some(super::pipelines::parsed(row.spec)?)
            }
        }
    };
    v2.insert("runtime_config".into(), runtime_config(&spec, parsed.as_ref())?);
    Ok(Value::Object(v2))
}

/// Parameters come as text (`parameters`), as values (`runtime_config`), or as kfp 1.8's values with their type beside
/// them; the pipeline says what each is.
fn runtime_config(spec: &Value, pipeline: Option<&Pipeline>) -> ApiResult<Value> {
    let config = field(spec, "runtime_config").cloned().unwrap_or_else(|| json!({}));
    let type_of = |name: &str| {
        let inputs = pipeline.map(|p| &p.spec.root.input_definitions.parameters);
        inputs.and_then(|i| i.get(name)).map_or(ParameterType::ParameterTypeEnumUnspecified, |d| d.parameter_type)
    };
    let mut parameters = Map::new();
    match field(spec, "parameters") {
        None => {}
        Some(Value::Array(list)) => {
            for parameter in list {
                let (name, value) = (text_field(parameter, "name")?, text_field(parameter, "value")?);
                let value = typed(value, type_of(&name));
                parameters.insert(name, value);
            }
        }
        Some(_) => return Err(ApiError::invalid("pipeline_spec.parameters should be a list")),
    }
    match field(&config, "parameters") {
        None => {}
        Some(Value::Object(map)) => {
            for (name, value) in map {
                parameters.insert(name.clone(), unwrapped(value, type_of(name)));
            }
        }
        Some(_) => return Err(ApiError::invalid("runtime_config.parameters should be an object")),
    }
    let mut whole = json!({});
    if !parameters.is_empty() {
        whole["parameters"] = Value::Object(parameters);
    }
    let root = text_field(&config, "pipeline_root")?;
    if !root.is_empty() {
        whole["pipeline_root"] = json!(root);
    }
    Ok(whole)
}

/// A parameter given as text. What does not read as the type it should have is left to the check that names it.
fn typed(text: String, kind: ParameterType) -> Value {
    let read = match kind {
        ParameterType::String | ParameterType::ParameterTypeEnumUnspecified => None,
        ParameterType::Boolean => text.to_ascii_lowercase().parse::<bool>().ok().map(Value::from),
        _ => serde_json::from_str(&text).ok(),
    };
    read.unwrap_or(Value::String(text))
}

/// kfp 1.8 writes `{"int_value": "5"}` for 5.
fn unwrapped(value: &Value, kind: ParameterType) -> Value {
    if kind == ParameterType::Struct {
        return value.clone();
    }
    let only = value.as_object().filter(|m| m.len() == 1).and_then(|m| m.iter().next());
    match only.map(|(name, inner)| (super::snake_case(name), inner)) {
        Some((name, inner)) if name == "string_value" => inner.clone(),
        Some((name, inner)) if matches!(name.as_str(), "int_value" | "double_value") => match inner {
            Value::String(text) => typed(text.clone(), kind),
            other => other.clone(),
        },
        _ => value.clone(),
    }
}

/// A package's YAML, as `templates` gives it back.
fn yaml(documents: &package::Documents) -> ApiResult<String> {
    let one = |value: &Value| serde_yaml::to_string(value).map_err(|e| ApiError::internal("writing a pipeline", e));
    let mut text = one(&documents.pipeline_spec)?;
    if let Some(platform) = &documents.platform_spec {
        text.push_str("---\n");
        text.push_str(&one(platform)?);
    }
    Ok(text)
}

fn require<'a>(value: &'a str, what: &str) -> ApiResult<&'a str> {
    if value.is_empty() { Err(ApiError::invalid(format!("{what} is missing"))) } else { Ok(value) }
}

/// The namespace that a body's references name, or the caller's own.
async fn owner(app: &App, user: &UserInfo, body: &Value) -> ApiResult<String> {
    app.namespace(user, &References::read(body)?.namespace).await
}
