//! Field ownership on ordinary writes; server-side apply keeps its own.

use crate::{apply, verbs::Call};
use serde_json::Value;

pub fn track(call: &Call, old: Option<&Value>, new: &mut Value, subresource: &str) {
    let Some(schema) = call.resource.schema() else { return };
    let manager = call.manager();
    let api_version = call.resource.api_version();
    apply::track_update(apply::TrackRequest {
        schema: &schema,
        old,
        new,
        manager: &manager,
        subresource,
        has_status: call.resource.has_subresource("status"),
        api_version: &api_version,
        now: chrono::Utc::now(),
    });
}
