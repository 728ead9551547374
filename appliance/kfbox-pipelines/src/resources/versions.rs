//! `Pipeline` and `PipelineVersion` to rows. Upstream: `backend/src/crd/kubernetes/v2beta1/pipelineversion_types.go`.

use super::{created_at, spec, text};
use crate::{
    Inner,
    error::{ApiError, ApiResult, Code},
    rest,
    spec::{Pipeline, package},
    store::{PipelineRow, VersionRow},
};
use kfbox_api::pipelines;
use kube::{
    ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};

fn named<'a>(spec: &'a Value, key: &str, otherwise: &'a str) -> &'a str {
    Some(text(spec, key)).filter(|t| !t.is_empty()).unwrap_or(otherwise)
}

/// A Pipeline's row, if its texts are such as REST would take.
pub(super) fn pipeline_row(object: &DynamicObject) -> ApiResult<PipelineRow> {
    let (spec, name) = (spec(object), object.name_any());
    let display_name = named(&spec, "displayName", &name).to_owned();
    rest::checked_name(&display_name)?;
    Ok(PipelineRow {
        id: object.uid().unwrap_or_default(),
        namespace: object.namespace().unwrap_or_default(),
        display_name,
        description: rest::description(&spec)?,
        created_at: created_at(object),
        tags: rest::tags(&spec)?,
        resource: name.clone(),
        name,
    })
}

/// The specification that a PipelineVersion holds, checked as an uploaded package is.
pub(super) fn specification(spec: &Value) -> ApiResult<Pipeline> {
    let platform = spec.get("platformSpec").filter(|p| !p.is_null()).cloned();
    let documents = package::split(spec.get("pipelineSpec").cloned().unwrap_or_default(), platform);
    rest::parsed(documents)
}

pub(super) fn version_row(object: &DynamicObject, pipeline_id: &str) -> ApiResult<VersionRow> {
    let (spec, resource) = (spec(object), object.name_any());
    let name = named(&spec, "versionName", &resource).to_owned();
    let display_name = named(&spec, "displayName", &name).to_owned();
    rest::checked_name(&display_name)?;
    Ok(VersionRow {
        id: object.uid().unwrap_or_default(),
        pipeline_id: pipeline_id.to_owned(),
        name,
        display_name,
        description: rest::description(&spec)?,
        created_at: created_at(object),
        code_source_url: text(&spec, "codeSourceURL").to_owned(),
        tags: rest::tags(&spec)?,
        spec: specification(&spec)?.documents,
        resource,
    })
}

pub(super) async fn take_pipeline(inner: &Inner, object: &DynamicObject) -> ApiResult<()> {
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    inner.store.put_resource_pipeline(pipeline_row(object)?).await
}

/// False when it has to wait for its pipeline.
pub(super) async fn take_version(inner: &Inner, object: &DynamicObject) -> ApiResult<bool> {
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(true);
    }
    let namespace = object.namespace().unwrap_or_default();
    let name = text(&spec(object), "pipelineName").to_owned();
    // By its name in its own namespace: an owner's `uid` is only what the object says of itself.
    let Some(of) = inner.store.resource_pipeline(&namespace, &name).await? else {
        let why = format!("there is no Pipeline {name} in {namespace}");
        condition(inner, object, Err(&why)).await?;
        return Ok(false);
    };
    let stored = match version_row(object, &of.id) {
        Ok(row) => inner.store.put_resource_version(row).await,
        Err(error) => Err(error),
    };
    match stored {
        Ok(()) => condition(inner, object, Ok(())).await?,
        Err(error) if matches!(error.code, Code::InvalidArgument | Code::AlreadyExists) => {
            condition(inner, object, Err(&error.message)).await?;
        }
        Err(error) => return Err(error),
    }
    Ok(true)
}

/// Says whether it can be run, in upstream's one condition; written only when it changes.
async fn condition(inner: &Inner, object: &DynamicObject, state: Result<(), &str>) -> ApiResult<()> {
    let (status, reason, message) = match state {
        Ok(()) => ("True", "READY", "READY"),
        Err(why) => ("False", "PipelineVersionInvalid", why),
    };
    let wanted = json!([{
        "type": pipelines::VERSION_CONDITION, "status": status, "reason": reason,
        "message": message.chars().take(1024).collect::<String>(),
    }]);
    if object.data.pointer("/status/conditions") == Some(&wanted) {
        return Ok(());
    }
    let api = inner.resources(&pipelines::pipeline_version(), &object.namespace().unwrap_or_default());
    let patch = Patch::Merge(json!({"status": {"conditions": wanted}}));
    match api.patch_status(&object.name_any(), &PatchParams::default(), &patch).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(ApiError::internal("writing a PipelineVersion's status", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_version_is_named_as_upstream_names_it() {
        let minimal = json!({
            "pipelineInfo": {"name": "p"}, "schemaVersion": "2.1.0",
            "components": {"c": {"executorLabel": "e"}},
            "deploymentSpec": {"executors": {"e": {"container": {"image": "i", "command": ["true"]}}}},
            "root": {"dag": {"tasks": {"t": {"componentRef": {"name": "c"}, "taskInfo": {"name": "t"}}}}},
        });
        let made = |more: Value| {
            let mut spec = json!({"pipelineName": "p", "pipelineSpec": minimal});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            version_row(
                &object(json!({
                    "apiVersion": pipelines::API_VERSION, "kind": "PipelineVersion",
                    "metadata": {"name": "p-v1", "namespace": "ann", "uid": "u"}, "spec": spec,
                })),
                "of",
            )
        };
        let row = made(json!({})).unwrap();
        assert_eq!((row.name.as_str(), row.display_name.as_str(), row.resource.as_str()), ("p-v1", "p-v1", "p-v1"));
        let row = made(json!({"versionName": "v1"})).unwrap();
        assert_eq!((row.name.as_str(), row.display_name.as_str()), ("v1", "v1"));
        let row = made(json!({"versionName": "v1", "displayName": "First", "tags": {"a": "b"}})).unwrap();
        assert_eq!((row.display_name.as_str(), &row.tags), ("First", &json!({"a": "b"})));
        let broken = made(json!({"pipelineSpec": {"root": {}}})).unwrap_err();
        assert!(broken.message.contains("refused"), "{broken}");
    }
}
