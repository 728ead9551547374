//! One record: an Event of `audit.k8s.io/v1`, as one line of JSON.

use super::policy::{Level, Stage};
use chrono::{DateTime, SecondsFormat, Utc};
use kfbox_base::UserInfo;
use serde_json::{Map, Value, json};
use std::sync::Arc;

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
    /// Empty for requests that are not about resources.
    pub object: Map<String, Value>,
    pub received: DateTime<Utc>,
}

/// What is known at one stage of it.
pub struct Entry {
    pub facts: Arc<Facts>,
    pub stage: Stage,
    pub at: DateTime<Utc>,
    /// A `Status`.
    pub status: Option<Value>,
    pub annotations: Arc<Vec<(&'static str, String)>>,
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

    fn event(&self) -> Value {
        let facts = &self.facts;
        let mut event = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": facts.level.as_str(),
            "auditID": facts.id,
            "stage": self.stage.as_str(),
            "requestURI": facts.uri,
            "verb": facts.verb,
            "user": user(&facts.user),
            "sourceIPs": facts.source_ips,
            "requestReceivedTimestamp": micros(facts.received),
            "stageTimestamp": micros(self.at),
        });
        let mut put = |name: &str, value: Value| {
            if let Some(members) = event.as_object_mut() {
                members.insert(name.into(), value);
            }
        };
        if let Some(assumed) = &facts.impersonated {
            put("impersonatedUser", user(assumed));
        }
        if !facts.user_agent.is_empty() {
            put("userAgent", facts.user_agent.clone().into());
        }
        if !facts.object.is_empty() {
            put("objectRef", facts.object.clone().into());
        }
        if let Some(status) = &self.status {
            put("responseStatus", status.clone());
        }
        if let Some(request) = &self.request {
            put("requestObject", (**request).clone());
        }
        if let Some(response) = &self.response {
            put("responseObject", response.clone());
        }
        if !self.annotations.is_empty() {
            let annotations: Map<String, Value> =
                self.annotations.iter().map(|(k, v)| ((*k).to_owned(), v.clone().into())).collect();
            put("annotations", annotations.into());
        }
        event
    }
}

fn user(user: &UserInfo) -> Value {
    serde_json::to_value(user).unwrap_or_default()
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
