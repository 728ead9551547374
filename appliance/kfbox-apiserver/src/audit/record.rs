//! One record: an Event of `audit.k8s.io/v1`, as one line of JSON.

use super::policy::{Level, Stage};
use chrono::{DateTime, SecondsFormat, Utc};
use kfbox_base::UserInfo;
use serde::Serialize;
use serde_json::{Map, Value};
use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

/// Client-made text in a record is cut here, as upstream cuts the user agent.
const LONGEST: usize = 1024;

/// What is known when the request begins.
pub struct Facts {
    pub level: Level,
    pub id: String,
    pub uri: String,
    pub verb: String,
    pub user: UserInfo,
    pub impersonated: Option<UserInfo>,
    pub source_ips: Vec<String>,
    pub user_agent: String,
    pub received: DateTime<Utc>,
}

/// What is known at one stage of it.
pub struct Entry {
    pub facts: Arc<Facts>,
    pub stage: Stage,
    pub at: DateTime<Utc>,
    /// What the request is about; empty for those that are not about resources.
    pub object: Arc<Map<String, Value>>,
    /// A `Status`.
    pub status: Option<Value>,
    pub annotations: Arc<Vec<(Cow<'static, str>, String)>>,
    pub request: Option<Arc<Value>>,
    pub response: Option<Value>,
}

impl Entry {
    pub fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        // Writing to memory cannot fail; half a line would be worse than none.
        if serde_json::to_writer(&mut *out, &self.event()).is_err() {
            out.truncate(start);
            return;
        }
        out.push(b'\n');
    }

    fn event(&self) -> Event<'_> {
        let facts = &*self.facts;
        Event {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: facts.level.as_str(),
            audit_id: &facts.id,
            stage: self.stage.as_str(),
            request_uri: &facts.uri,
            verb: &facts.verb,
            user: &facts.user,
            impersonated_user: facts.impersonated.as_ref(),
            source_ips: &facts.source_ips,
            user_agent: &facts.user_agent,
            object_ref: Some(&*self.object).filter(|object| !object.is_empty()),
            response_status: self.status.as_ref(),
            request_object: self.request.as_deref(),
            response_object: self.response.as_ref(),
            request_received_timestamp: micros(facts.received),
            stage_timestamp: micros(self.at),
            annotations: self.annotations.iter().map(|(k, v)| (&**k, &**v)).collect(),
        }
    }
}

/// Written as it is read, without a tree of it in between: there is one for every change of anything.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    kind: &'a str,
    api_version: &'a str,
    level: &'a str,
    #[serde(rename = "auditID")]
    audit_id: &'a str,
    stage: &'a str,
    #[serde(rename = "requestURI")]
    request_uri: &'a str,
    verb: &'a str,
    user: &'a UserInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    impersonated_user: Option<&'a UserInfo>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "<[_]>::is_empty")]
    source_ips: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_ref: Option<&'a Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_object: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_object: Option<&'a Value>,
    request_received_timestamp: String,
    stage_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'a str, &'a str>,
}

fn micros(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Client-made text, bounded.
pub fn cut(text: &str) -> String {
    match text.char_indices().map(|(at, _)| at).find(|at| *at >= LONGEST) {
        Some(at) => format!("{}...TRUNCATED", &text[..at]),
        None => text.to_owned(),
    }
}

/// The object without the book-keeping of its fields' owners.
pub fn without_managed_fields(mut object: Value) -> Value {
    let strip = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    strip(&mut object);
    object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(strip);
    object
}
