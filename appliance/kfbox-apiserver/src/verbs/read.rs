//! `get`, and how one object is answered.

use super::Call;
use crate::{convert, negotiate::Form, respond, status::ApiError, store::Object};
use axum::response::Response;
use http::StatusCode;
use std::sync::Arc;

pub async fn get(call: &Call) -> Result<Response, ApiError> {
    call.core.wait_for_revision(revision_at_least(call)?).await?;
    let object = call.core.store.get(&call.resource.collection, &call.key()).ok_or_else(|| call.not_found())?;
    let object = crate::conversion::read(call, object).await?;
    Ok(object_response(call, StatusCode::OK, &object))
}

/// A get may ask to be no older than a revision.
fn revision_at_least(call: &Call) -> Result<u64, ApiError> {
    super::list::revision(call.query.get("resourceVersion")).map(Option::unwrap_or_default)
}

pub fn object_response(call: &Call, code: StatusCode, object: &Arc<Object>) -> Response {
    match call.accept.form {
        Form::Object => respond::json(call, code, convert::bytes(&call.resource, object)),
        Form::Table => {
            let revision = object.revision.to_string();
            let table = respond::table(call, &[convert::value(&call.resource, object)], &revision, None);
            respond::value(call, code, &table)
        }
        Form::Metadata => respond::value(call, code, &respond::partial(&convert::value(&call.resource, object))),
    }
}
