//! `list`: resourceVersion semantics, limits and continue tokens
//! (<https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>).

use super::Call;
use crate::{
    lists,
    schema::FieldError,
    selectors::Selector,
    status::ApiError,
    store::{Key, Range},
};
use axum::response::Response;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Value, json};

/// Where a list goes on; opaque to clients.
#[derive(Deserialize)]
struct Continue {
    v: String,
    /// The revision that the first page showed, or [`PRESENT`].
    rv: i64,
    namespace: String,
    name: String,
}

/// In a token that an expired list was answered with: the rest is shown as it is now.
const PRESENT: i64 = -1;

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

/// What a list asks of time: see the table of upstream's documentation.
struct When {
    at: Option<u64>,
    after: Option<Key>,
}

/// Checked as upstream's `ValidateListOptions` does, which lists every mistake.
fn check(call: &Call) -> Result<(), ApiError> {
    let query = &call.query;
    let mut errors = Vec::new();
    if let Some(matching) = query.get("resourceVersionMatch") {
        let field = "resourceVersionMatch";
        let mut forbid = |detail: &str| errors.push(FieldError::forbidden(field, detail));
        if query.get("resourceVersion").is_none() {
            forbid("resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if query.get("continue").is_some() {
            forbid("resourceVersionMatch is forbidden when continue is provided");
        }
        if matching != "Exact" && matching != "NotOlderThan" {
            let supported = ["Exact", "NotOlderThan", ""];
            errors.push(FieldError::not_supported(field, &json!(matching), &supported));
        }
        if matching == "Exact" && query.get("resourceVersion") == Some("0") {
            let detail = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            errors.push(FieldError::forbidden(field, detail));
        }
    }
    if query.get("sendInitialEvents").is_some() {
        errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    refuse(&errors)
}

/// The options of a list or watch, refused.
pub fn refuse(errors: &[FieldError]) -> Result<(), ApiError> {
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", errors)) }
}

async fn when(call: &Call, limited: bool) -> Result<When, ApiError> {
    let asked = revision(call.query.get("resourceVersion"))?;
    if let Some(token) = call.query.get("continue") {
        if asked.is_some_and(|rv| rv > 0) {
            return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
        }
        let Continue { rv, namespace, name, .. } = decode_token(token)?;
        let after = Some(Key::new(&namespace, &name));
        let at = (rv != PRESENT).then(|| rv.unsigned_abs());
        // A revision of the future: another cluster's token, or one from before this one was restored.
        call.core.wait_for_revision(at.unwrap_or(0)).await?;
        return Ok(When { at, after });
    }
    let Some(asked) = asked else { return Ok(When { at: None, after: None }) };
    call.core.wait_for_revision(asked).await?;
    // With a limit and nothing said of matching, a revision is taken exactly; without a limit it is a lower bound.
    let exactly = match call.query.get("resourceVersionMatch") {
        Some(matching) => matching == "Exact",
        None => limited && asked > 0,
    };
    Ok(When { at: exactly.then_some(asked), after: None })
}

pub async fn list(call: &Call) -> Result<Response, ApiError> {
    check(call)?;
    let selector = selector(call)?;
    let limit = usize::try_from(call.query.number("limit")?.unwrap_or(0)).ok().filter(|limit| *limit > 0);
    let When { at, after } = when(call, limit.is_some()).await?;
    // What a selector leaves over is only known after looking.
    let looks = if selector.is_empty() { limit } else { None };
    let range = Range { namespace: namespace(call), after: after.as_ref(), limit: looks };
    let snapshot = call.core.store.page(&call.resource.collection, range, at).map_err(|_| expired(after.as_ref()))?;

    let revision = snapshot.revision;
    let mut objects = snapshot.objects;
    let mut left = snapshot.more;
    if !selector.is_empty() {
        let mut kept = 0;
        objects.retain(|object| {
            // One more than asked for tells that there are more.
            let keep = limit.is_none_or(|limit| kept <= limit) && selector.matches(object);
            kept += usize::from(keep);
            keep
        });
        left = limit.map_or(0, |limit| objects.len().saturating_sub(limit));
        objects.truncate(limit.unwrap_or(usize::MAX));
    }
    let continued = objects.last().filter(|_| left > 0).map(|last| {
        // How many more match a selector nobody knows.
        (encode_token(revision.cast_signed(), &last.key), selector.is_empty().then_some(left as u64))
    });
    let revision = revision.to_string();
    let next = continued.as_ref().map(|(token, remaining)| (token.as_str(), *remaining));
    let objects = crate::conversion::read_all(&call.core, &call.resource, objects).await?;
    lists::answer(call, objects, &list_metadata(&revision, next), &revision, next).await
}

/// A continued list gets a token by which it may go on in the present, inconsistent but complete.
fn expired(after: Option<&Key>) -> ApiError {
    match after {
        Some(after) => ApiError::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter, or use the continue token in this response to retrieve the remainder of \
             the results. Continuing with the provided token results in an inconsistent list - objects that were \
             created, modified, or deleted between the time the first chunk was returned and now may show up in the \
             list.",
        )
        .continued(encode_token(PRESENT, after)),
        None => ApiError::expired("The resourceVersion for the provided list is too old."),
    }
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

fn encode_token(revision: i64, last: &Key) -> String {
    let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "namespace": last.namespace, "name": last.name});
    URL_SAFE_NO_PAD.encode(token.to_string())
}

fn decode_token(token: &str) -> Result<Continue, ApiError> {
    URL_SAFE_NO_PAD
        .decode(token)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Continue>(&bytes).ok())
        .filter(|t| t.v == "meta.k8s.io/v1" && (t.rv > 0 || t.rv == PRESENT))
        .ok_or_else(|| ApiError::bad_request("continue key is not valid"))
}
