//! The audit log: who asked for what, when, from where, and what came of it, as JSON lines of `audit.k8s.io/v1` Events
//! (<https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/>). Guarantees: what secrets hold is never in it; a
//! request never waits for it, nor fails because of it.

mod policy;
mod record;

pub use policy::{PolicyError, Subject};

use crate::{negotiate, status::ApiError};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, request::Parts};
use http_body::{Body as _, Frame, SizeHint};
use kfbox_base::{
    Decision, UserInfo,
    journal::{Journal, Record, Room},
};
use policy::{Decided, Level, Policy, Stage};
use record::{Entry, Facts, cut, without_managed_fields};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{
    borrow::Cow,
    net::IpAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

static AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// A recorded answer is not larger than this; of larger ones the record says only what came of the request.
const LARGEST_ANSWER: u64 = 3 << 19;

/// Remarks on one request: a few by authorization, some by each admission policy that matched.
const ANNOTATIONS: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("cannot open the audit log {path}: {source}")]
    Log {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read the audit policy {path}: {source}")]
    PolicyFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the audit policy {path} is not one: {source}")]
    Policy {
        path: PathBuf,
        #[source]
        source: PolicyError,
    },
}

/// Where records go and how much room they have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditConfig {
    /// A Policy of `audit.k8s.io/v1`; None: the built-in one.
    pub policy: Option<PathBuf>,
    pub room: Room,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self { policy: None, room: Room { max_bytes: 8 << 20, files: 4 } }
    }
}

impl Record for Box<Entry> {
    fn write(&self, out: &mut Vec<u8>) {
        Entry::write(self, out);
    }
}

pub struct Audit {
    policy: Policy,
    log: Journal<Box<Entry>>,
}

impl Audit {
    /// The log is `audit.log` in `folder`.
    pub fn open(folder: &Path, config: &AuditConfig) -> Result<Arc<Self>, AuditError> {
        let policy = match &config.policy {
            None => Policy::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| AuditError::PolicyFile { path: path.clone(), source })?;
                Policy::parse(&text).map_err(|source| AuditError::Policy { path: path.clone(), source })?
            }
        };
        let path = folder.join("audit.log");
        let log = Journal::open("audit-log", &path, config.room).map_err(|source| AuditError::Log { path, source })?;
        Ok(Arc::new(Self { policy, log }))
    }

    /// Waits until what was recorded so far is in the file.
    pub async fn flush(&self) {
        self.log.flush().await;
    }
}

/// The address that a connection comes from.
#[derive(Debug, Clone, Copy)]
pub struct From(pub IpAddr);

/// What one request leaves in the log. When it is dropped before an answer was made, the client went away; that is
/// recorded too.
pub struct Trail {
    audit: Option<Arc<Audit>>,
    id: String,
    received: DateTime<Utc>,
    /// None until the policy wants something recorded, and after the last stage.
    open: Option<Open>,
}

struct Open {
    facts: Arc<Facts>,
    object: Arc<Map<String, Value>>,
    decided: Decided,
    annotations: Vec<(Cow<'static, str>, String)>,
    request: Option<Arc<Value>>,
    status: Option<Value>,
}

impl Trail {
    /// The identifier comes from the client if it sends one: it ties together what several servers record.
    pub fn begin(audit: Option<Arc<Audit>>, headers: &HeaderMap) -> Self {
        let sent = headers.get(&AUDIT_ID).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty()).map(cut);
        let id = sent.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        Self { audit, id, received: Utc::now(), open: None }
    }

    /// Who asks for what is known now. `caller`: who impersonates `user`.
    pub fn asked(
        &mut self,
        caller: Option<&UserInfo>,
        user: &UserInfo,
        subject: Subject<'_>,
        version: &str,
        parts: &Parts,
    ) {
        let Some(audit) = &self.audit else { return };
        let decided = audit.policy.decide(caller.unwrap_or(user), subject);
        if decided.level == Level::None {
            return;
        }
        let mut object = Map::new();
        let (verb, proxied) = match subject {
            Subject::Path { verb, .. } => (verb, false),
            Subject::Resource(asked) => {
                for (name, value) in [
                    ("resource", &*asked.resource),
                    ("namespace", &*asked.namespace),
                    ("name", &*asked.name),
                    ("apiGroup", &*asked.group),
                    ("apiVersion", version),
                    ("subresource", &*asked.subresource),
                ] {
                    if !value.is_empty() {
                        object.insert(name.into(), value.into());
                    }
                }
                (&*asked.verb, asked.subresource == "proxy")
            }
        };
        // The query of a proxied request is another program's, and may hold its secrets.
        let uri = if proxied { parts.uri.path() } else { parts.uri.path_and_query().map_or("", |p| p.as_str()) };
        let agent = parts.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let facts = Facts {
            level: decided.level,
            id: self.id.clone(),
            uri: uri.chars().take(8192).collect(),
            verb: verb.to_owned(),
            user: caller.unwrap_or(user).clone(),
            impersonated: caller.map(|_| user.clone()),
            source_ips: source_ips(parts),
            user_agent: cut(agent),
            received: self.received,
        };
        self.open = Some(Open {
            facts: Arc::new(facts),
            object: Arc::new(object),
            decided,
            annotations: Vec::new(),
            request: None,
            status: None,
        });
        self.stage(Stage::RequestReceived, None);
    }

    /// What authorization said, and why.
    pub fn decided(&mut self, decision: &Decision, why: impl FnOnce() -> String) {
        if self.open.is_none() {
            return;
        }
        let (decision, reason) = match decision {
            Decision::Allow => ("allow", why()),
            Decision::Deny(reason) => ("forbid", reason.clone()),
        };
        self.annotate("authorization.k8s.io/decision", decision);
        self.annotate("authorization.k8s.io/reason", &reason);
    }

    /// A remark on this request by the part of the server that the key names.
    pub fn annotate(&mut self, key: impl Into<Cow<'static, str>>, value: &str) {
        if let Some(open) = &mut self.open
            && open.annotations.len() < ANNOTATIONS
        {
            open.annotations.push((key.into(), cut(value)));
        }
    }

    /// Whether the request's body is to be recorded.
    pub fn wants_request(&self) -> bool {
        self.open.as_ref().is_some_and(|o| o.decided.level >= Level::Request)
    }

    pub fn request(&mut self, headers: &HeaderMap, body: &[u8]) {
        let Some(open) = &mut self.open else { return };
        let read = negotiate::decode(headers, body).or_else(|_| negotiate::yaml(body));
        if let Ok(value) = read {
            let value = if open.decided.omit_managed_fields { without_managed_fields(value) } else { value };
            open.request = Some(Arc::new(value));
        }
    }

    /// The request failed with this.
    pub fn failed(&mut self, error: &ApiError) {
        if let Some(open) = &mut self.open {
            let mut status = error.to_value();
            if let Some(members) = status.as_object_mut() {
                members.remove("kind");
                members.remove("apiVersion");
                // A message may quote what was sent.
                if open.decided.level == Level::Metadata
                    && let Some(Value::String(message)) = members.get_mut("message")
                {
                    *message = cut(message);
                }
            }
            open.status = Some(status);
        }
    }

    pub fn panicked(&mut self) {
        self.failed(&ApiError::internal("the server panicked"));
        self.stage(Stage::Panic, None);
        self.open = None;
    }

    /// The answer is made; a long one is recorded again when its end is reached.
    pub async fn answered(mut self, mut response: Response, long: bool) -> Response {
        if let Ok(id) = HeaderValue::from_str(&self.id) {
            response.headers_mut().insert(&AUDIT_ID, id);
        }
        let Some(open) = &mut self.open else { return response };
        let code = response.status();
        open.status.get_or_insert_with(|| json!({"metadata": {}, "code": code.as_u16()}));
        if long && code.is_success() {
            self.stage(Stage::ResponseStarted, None);
            return response.map(|body| Body::new(Watched { body, _trail: self }));
        }
        // A creation says in its answer what it made.
        if code == StatusCode::CREATED && !open.object.contains_key("name") && length(&response).is_some() {
            let (parts, body) = response.into_parts();
            let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
            if let Ok(Made { metadata }) = serde_json::from_slice(&bytes) {
                let object = Arc::make_mut(&mut open.object);
                for (key, value) in [("name", metadata.name), ("uid", metadata.uid)] {
                    if !value.is_empty() {
                        object.insert(key.into(), value.into());
                    }
                }
            }
            response = Response::from_parts(parts, bytes.into());
        }
        let mut recorded = None;
        if open.decided.level == Level::RequestResponse
            && code != StatusCode::SWITCHING_PROTOCOLS
            && length(&response).is_some_and(|n| n <= LARGEST_ANSWER)
        {
            let omit = open.decided.omit_managed_fields;
            let (parts, body) = response.into_parts();
            // Bodies of known length come from memory.
            let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
            recorded = serde_json::from_slice::<Value>(&bytes).ok();
            if omit {
                recorded = recorded.map(without_managed_fields);
            }
            response = Response::from_parts(parts, bytes.into());
        }
        if code == StatusCode::SWITCHING_PROTOCOLS {
            self.stage(Stage::ResponseStarted, None);
        }
        self.stage(Stage::ResponseComplete, recorded);
        self.open = None;
        response
    }

    fn stage(&self, stage: Stage, response: Option<Value>) {
        let (Some(audit), Some(open)) = (&self.audit, &self.open) else { return };
        if open.decided.omit.contains(&stage) {
            return;
        }
        audit.log.record(Box::new(Entry {
            facts: open.facts.clone(),
            object: open.object.clone(),
            stage,
            at: Utc::now(),
            status: open.status.clone(),
            annotations: Arc::new(open.annotations.clone()),
            request: open.request.clone(),
            response,
        }));
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        if let Some(open) = &mut self.open {
            // What upstream says of a client that did not wait.
            open.status.get_or_insert_with(
                || json!({"metadata": {}, "status": "Success", "message": "Connection closed early", "code": 200}),
            );
            self.stage(Stage::ResponseComplete, None);
        }
    }
}

/// The length of an answer that is in memory.
fn length(response: &Response) -> Option<u64> {
    response.body().size_hint().exact()
}

/// Of an object: what it is called.
#[derive(Deserialize)]
struct Made {
    metadata: MadeMetadata,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct MadeMetadata {
    name: String,
    uid: String,
}

/// Those that proxies claim, then the one that is certain.
fn source_ips(parts: &Parts) -> Vec<String> {
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let parsed = |text: &str| text.trim().parse::<IpAddr>().ok();
    let mut ips: Vec<IpAddr> = header("x-forwarded-for").split(',').filter_map(parsed).take(16).collect();
    ips.extend(parsed(header("x-real-ip")).filter(|ip| !ips.contains(ip)));
    ips.extend(parts.extensions.get::<From>().map(|f| f.0).filter(|ip| ips.last() != Some(ip)));
    ips.into_iter().map(|ip| ip.to_string()).collect()
}

/// A long answer's body, which ends its request's trail with itself.
struct Watched {
    body: Body,
    _trail: Trail,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
