//! `patch`: JSON patch, merge patch, strategic merge patch and server-side apply.

use super::{Call, Modification, create_object, modify, object_response};
use crate::{
    apply,
    negotiate::{self, content_type, read_body, yaml},
    object::{meta, set_meta},
    patch::{self as patches, PatchError},
    schema::FieldError,
    status::ApiError,
    store::Object,
};
use axum::{body::Body, response::Response};
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

const PATCHES: &str = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";

pub enum Patch {
    Json(Value),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    pub fn read(call: &Call, body: &[u8]) -> Result<Self, ApiError> {
        match content_type(&call.headers) {
            "application/json-patch+json" => negotiate::json(body).map(Self::Json),
            "application/merge-patch+json" => negotiate::json(body).map(Self::Merge),
            // Custom resources have no strategies.
            "application/strategic-merge-patch+json" if call.resource.custom.is_none() => {
                negotiate::json(body).map(Self::Strategic)
            }
            _ if call.resource.custom.is_some() => Err(ApiError::unsupported_media_type(PATCHES)),
            _ => Err(ApiError::unsupported_media_type(&format!("{PATCHES}, application/strategic-merge-patch+json"))),
        }
    }

    pub fn apply(&self, call: &Call, to: &Value) -> Result<Value, ApiError> {
        let result = match self {
            Self::Json(patch) => patches::json(to, patch),
            Self::Merge(patch) => patches::merge(to, patch),
            Self::Strategic(patch) => match call.resource.schema() {
                Some(schema) => patches::strategic(&schema, to, patch),
                None => patches::merge(to, patch),
            },
        };
        result.map_err(|error| refuse(&error))
    }
}

pub fn refuse(error: &PatchError) -> ApiError {
    match error {
        PatchError::Malformed(why) => ApiError::bad_request(why.clone()),
        // Upstream says no more than its generic text; the cause beside it is what helps.
        PatchError::Unprocessable(why) => ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            "the server rejected our request due to an error in our request",
        )
        .causes([json!({"reason": "FieldValueInvalid", "message": why, "field": "patch"})]),
        PatchError::TooLarge(why) => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", why.clone()),
    }
}

pub async fn patch(call: &Call, body: Body) -> Result<Response, ApiError> {
    call.check_options("PatchOptions")?;
    let body = read_body(body).await?;
    if content_type(&call.headers) == "application/apply-patch+yaml" {
        return apply(call, &body).await;
    }
    if call.query.get("force").is_some() {
        return Err(bad_options(FieldError::forbidden("force", "may not be specified for non-apply patch")));
    }
    let patch = Patch::read(call, &body)?;
    let how = Modification { subresource: &call.target.subresource, track: true, replace: false };
    let modified = modify(call, &how, |old| {
        let new = patch.apply(call, old)?;
        check_identity(old, &new)?;
        // A patch that does not speak of the revision does not insist on one.
        Ok(without_unasked_revision(old, new))
    })
    .await?;
    Ok(object_response(call, StatusCode::OK, &modified))
}

fn bad_options(error: FieldError) -> ApiError {
    ApiError::invalid("meta.k8s.io", "PatchOptions", "", &[error])
}

/// The patched object still carries the revision it was read at; only another one is a demand.
fn without_unasked_revision(old: &Value, mut new: Value) -> Value {
    if meta(old, "resourceVersion") == meta(&new, "resourceVersion") {
        set_meta(&mut new, "resourceVersion", Value::Null);
    }
    new
}

fn check_identity(old: &Value, new: &Value) -> Result<(), ApiError> {
    for field in ["name", "namespace"] {
        if meta(old, field) != meta(new, field) {
            return Err(ApiError::bad_request(format!(
                "the {field} of the object ({}) does not match the {field} on the URL ({})",
                meta(new, field),
                meta(old, field)
            )));
        }
    }
    for field in ["apiVersion", "kind"] {
        if old[field] != new[field] {
            return Err(ApiError::bad_request(format!("a patch may not change {field}")));
        }
    }
    Ok(())
}

async fn apply(call: &Call, body: &[u8]) -> Result<Response, ApiError> {
    let mut applied = yaml(body)?;
    call.check_type(&mut applied)?;
    super::create::place(call, &mut applied)?;
    if call.target.subresource.is_empty()
        && call.resource.has_subresource("status")
        && let Some(members) = applied.as_object_mut()
    {
        members.remove("status");
    }
    call.prune(&mut applied)?;
    let (code, object) = apply_object(call, &applied).await?;
    Ok(object_response(call, code, &object))
}

/// The object after the apply of a configuration of its own kind.
pub async fn apply_object(call: &Call, applied: &Value) -> Result<(StatusCode, Arc<Object>), ApiError> {
    let Some(manager) = call.query.get("fieldManager").filter(|m| !m.is_empty()) else {
        return Err(bad_options(FieldError::required("fieldManager", "is required for apply patch")));
    };
    let subresource = &*call.target.subresource;
    if applied["metadata"].get("managedFields").is_some_and(|m| m.as_array().is_none_or(|a| !a.is_empty())) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let force = call.query.flag("force");
    let schema = call.resource.schema().unwrap_or_else(crate::schema::Schema::open);
    let api_version = call.resource.api_version();
    let merge = |live: Option<&Value>| {
        let request = apply::ApplyRequest {
            schema: &schema,
            live,
            applied,
            manager,
            force,
            subresource,
            api_version: &api_version,
            now: chrono::Utc::now(),
        };
        apply::apply(request).map_err(|error| refuse_apply(&error))
    };
    let how = Modification { subresource, track: false, replace: false };
    for _ in 0..4 {
        let asked = meta(applied, "resourceVersion").to_owned();
        let missing = call.core.store.get(&call.resource.collection, &call.key()).is_none();
        if missing && subresource.is_empty() {
            if !asked.is_empty() {
                return Err(ApiError::modified(&call.resource.group, &call.resource.plural, &call.target.name));
            }
            match create_object(call, merge(None)?, false).await {
                // Somebody else was quicker: apply to what is there now.
                Err(error) if error.reason() == "AlreadyExists" => continue,
                result => return Ok((StatusCode::CREATED, result?)),
            }
        }
        let modified = modify(call, &how, |live| {
            let mut new = merge(Some(live))?;
            set_meta(&mut new, "resourceVersion", asked.clone());
            set_meta(&mut new, "uid", meta(applied, "uid"));
            Ok(new)
        })
        .await;
        match modified {
            Err(error) if error.reason() == "NotFound" && subresource.is_empty() => {}
            result => return Ok((StatusCode::OK, result?)),
        }
    }
    Err(ApiError::modified(&call.resource.group, &call.resource.plural, &call.target.name))
}

fn refuse_apply(error: &apply::ApplyError) -> ApiError {
    match error {
        apply::ApplyError::Conflicts(conflicts) => {
            ApiError::apply_conflict(error.to_string(), conflicts.iter().map(|c| (c.message.clone(), c.field.clone())))
        }
        apply::ApplyError::Invalid(why) => ApiError::bad_request(why.clone()),
    }
}
