//! `list`: resourceVersion semantics, limits and continue tokens
//! (<https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>).

use super::Call;
use crate::{
    convert,
    negotiate::Form,
    respond,
    selectors::Selector,
    status::ApiError,
    store::{Key, Object},
};
use axum::response::Response;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

/// Where a list goes on; opaque to clients.
#[derive(Serialize, Deserialize)]
struct Continue {
    v: String,
    /// The revision the first page showed; 0 after it expired, then the present is shown.
    rv: u64,
    namespace: String,
    name: String,
}

pub fn revision(text: Option<&str>) -> Result<Option<u64>, ApiError> {
    text.map(|t| {
        t.parse().map_err(|_| ApiError::bad_request(format!("Invalid value: {t:?}: invalid resource version")))
    })
    .transpose()
}

pub fn selector(call: &Call) -> Result<Selector, ApiError> {
    let selector = Selector::parse(&call.resource, call.query.get("labelSelector"), call.query.get("fieldSelector"))?;
    Ok(if call.target.name.is_empty() { selector } else { selector.named(&call.target.name) })
}

pub fn namespace(call: &Call) -> Option<&str> {
    Some(call.namespace()).filter(|n| !n.is_empty())
}

pub async fn list(call: &Call) -> Result<Response, ApiError> {
    let selector = selector(call)?;
    let limit = usize::try_from(call.query.number("limit")?.unwrap_or(0)).unwrap_or(0);
    let asked = revision(call.query.get("resourceVersion"))?;
    let matching = call.query.get("resourceVersionMatch");
    let token = call.query.get("continue").map(decode_token).transpose()?;

    let (at, after) = match (&token, asked, matching) {
        (Some(_), _, Some(_)) => return Err(invalid("resourceVersionMatch is forbidden with continue")),
        (Some(_), Some(rv), None) if rv > 0 => {
            return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
        }
        (Some(token), _, None) => (Some(token.rv).filter(|rv| *rv > 0), Some(Key::new(&token.namespace, &token.name))),
        (None, None, Some(_)) => {
            return Err(invalid("resourceVersionMatch is forbidden unless resourceVersion is provided"));
        }
        (None, Some(0), Some("Exact")) => {
            return Err(invalid("resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\""));
        }
        (None, Some(rv), Some("Exact")) => {
            call.core.wait_for_revision(rv).await?;
            (Some(rv), None)
        }
        // With a limit and no match, a revision is taken exactly; without a limit it is a lower bound.
        (None, Some(rv), None) if rv > 0 && limit > 0 => {
            call.core.wait_for_revision(rv).await?;
            (Some(rv), None)
        }
        (None, Some(rv), None | Some("NotOlderThan")) => {
            call.core.wait_for_revision(rv).await?;
            (None, None)
        }
        (None, None, None) => (None, None),
        (None, Some(_), Some(other)) => {
            return Err(invalid(&format!(
                "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
            )));
        }
    };
    let snapshot = call.core.store.list(&call.resource.collection, namespace(call), after.as_ref(), at).map_err(
        |_| match &token {
            Some(_) => ApiError::expired(
                "The provided continue parameter is too old to display a consistent list result. Start a new list \
                 without the continue parameter.",
            ),
            None => {
                ApiError::expired(format!("The resourceVersion for the provided list is too old: {}", at.unwrap_or(0)))
            }
        },
    )?;

    let revision = snapshot.revision;
    let all = selector.is_empty();
    let mut objects: Vec<Arc<Object>> = Vec::new();
    let mut continued = None;
    for (seen, object) in snapshot.objects.iter().enumerate() {
        if limit > 0 && objects.len() == limit {
            // With a selector nobody knows whether more follows without looking.
            let rest = &snapshot.objects[seen..];
            if rest.iter().any(|o| selector.matches(o)) {
                let last = &objects[limit - 1].key;
                let token = encode_token(revision, last);
                continued = Some((token, all.then_some(rest.len() as u64)));
            }
            break;
        }
        if selector.matches(object) {
            objects.push(object.clone());
        }
    }
    drop(snapshot);
    let objects = crate::conversion::read_all(&call.core, &call.resource, objects).await?;
    let revision = revision.to_string();
    let next = continued.as_ref().map(|(token, remaining)| (token.as_str(), *remaining));
    Ok(match call.accept.form {
        Form::Object => respond::json(call, StatusCode::OK, whole(call, &objects, &revision, next)),
        Form::Table => {
            let values: Vec<Value> = objects.iter().map(|o| convert::value(&call.resource, o)).collect();
            respond::value(call, StatusCode::OK, &respond::table(call, &values, &revision, next))
        }
        Form::Metadata => {
            let items: Vec<Value> =
                objects.iter().map(|o| respond::partial(&convert::value(&call.resource, o))).collect();
            let list = json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": list_metadata(&revision, next), "items": items,
            });
            respond::value(call, StatusCode::OK, &list)
        }
    })
}

fn invalid(message: &str) -> ApiError {
    ApiError::bad_request(format!("ListOptions.meta.k8s.io \"\" is invalid: {message}"))
}

fn list_metadata(revision: &str, next: Option<(&str, Option<u64>)>) -> Value {
    let mut metadata = json!({"resourceVersion": revision});
    if let Some((token, remaining)) = next {
        metadata["continue"] = token.into();
        if let Some(remaining) = remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    metadata
}

fn whole(call: &Call, objects: &[Arc<Object>], revision: &str, next: Option<(&str, Option<u64>)>) -> Bytes {
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
        call.resource.list_kind,
        call.resource.api_version(),
        list_metadata(revision, next)
    );
    let mut body = Vec::with_capacity(head.len() + 4 + objects.iter().map(|o| o.json.len() + 1).sum::<usize>());
    body.extend_from_slice(head.as_bytes());
    for (n, object) in objects.iter().enumerate() {
        if n > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&convert::bytes(&call.resource, object));
    }
    body.extend_from_slice(b"]}\n");
    body.into()
}

fn encode_token(revision: u64, last: &Key) -> String {
    let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "namespace": last.namespace, "name": last.name});
    URL_SAFE_NO_PAD.encode(token.to_string())
}

fn decode_token(token: &str) -> Result<Continue, ApiError> {
    URL_SAFE_NO_PAD
        .decode(token)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Continue>(&bytes).ok())
        .filter(|t| t.v == "meta.k8s.io/v1")
        .ok_or_else(|| ApiError::bad_request("continue key is not valid"))
}
