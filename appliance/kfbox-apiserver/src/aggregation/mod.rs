//! `apiregistration.k8s.io`: an APIService for every group and version that is served here, and the way to those that
//! other servers serve (kube-aggregator, <https://kubernetes.io/docs/concepts/extend-kubernetes/api-extension/apiserver-aggregation/>).
//!
//! Guarantees: a request goes to another server only when the APIService's last probe passed; the caller's credentials
//! never travel, its identity does, and the other server knows us by our front-proxy certificate. Assumption: who may
//! write APIServices may see every request of the group.

mod connect;
mod list;
mod probe;
mod proxy;
mod register;

pub use list::{GroupView, Served, VersionView, groups};
pub use proxy::{forward, resource_list};

use crate::{
    auth::{Authority, PkiError},
    object::meta,
    schema::FieldError,
    server::Core,
    status::ApiError,
    store::Key,
};
use axum::response::Response;
use connect::ClientTls;
use http::{HeaderValue, StatusCode, header};
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path, sync::Arc};
use tokio::sync::Notify;

pub const COLLECTION: &str = "apiservices.apiregistration.k8s.io";

/// The certificate by which extension servers know that the identity headers are ours.
const FRONT_PROXY: &str = "front-proxy-client";

pub use register::start;

/// What other servers serve.
pub struct Aggregation {
    remotes: RwLock<BTreeMap<(String, String), Arc<Remote>>>,
    /// An authority of its own: what it signs is trusted to name any user, so no client certificate may pass for it.
    front_proxy: Authority,
    /// An APIService was written.
    changed: Notify,
}

/// One APIService with a service.
pub struct Remote {
    pub name: String,
    pub group: String,
    pub version: String,
    pub group_priority: i64,
    pub version_priority: i64,
    service: ServiceReference,
    tls: Result<ClientTls, String>,
    /// Tells one wish for it from the next.
    generation: i64,
    pub learned: Mutex<Learned>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ServiceReference {
    namespace: String,
    name: String,
    port: u16,
}

/// What the other server said of itself when it was last probed.
#[derive(Default, Clone)]
pub struct Learned {
    /// `resources` of its APIResourceList.
    pub resources: Option<Arc<Vec<Value>>>,
    /// The address of its OpenAPI v3 document, which holds a hash.
    pub openapi_v3: Option<String>,
    /// Its paths and definitions in OpenAPI v2.
    pub openapi_v2: Option<Arc<Value>>,
}

impl Aggregation {
    pub fn open(pki: &Path) -> Result<Self, PkiError> {
        Ok(Self {
            remotes: RwLock::default(),
            front_proxy: Authority::load_or_create::<&str>(&pki.join("front-proxy"), &[])?,
            changed: Notify::new(),
        })
    }

    /// The other server that serves this group and version, if one does.
    pub fn find(&self, group: &str, version: &str) -> Option<Arc<Remote>> {
        let remotes = self.remotes.read();
        if remotes.is_empty() {
            return None;
        }
        remotes.get(&(group.to_owned(), version.to_owned())).cloned()
    }

    /// That of `/apis/GROUP/VERSION`, its own list of resources.
    pub fn of_path(&self, path: &str) -> Option<Arc<Remote>> {
        let mut steps = path.split('/').filter(|s| !s.is_empty());
        match (steps.next(), steps.next(), steps.next(), steps.next()) {
            (Some("apis"), Some(group), Some(version), None) => self.find(group, version),
            _ => None,
        }
    }

    pub fn all(&self) -> Vec<Arc<Remote>> {
        self.remotes.read().values().cloned().collect()
    }

    /// Takes over an APIService as it is stored now.
    pub fn observe(&self, core: &Core, name: &str) {
        let stored = core.store.get(COLLECTION, &Key::new("", name)).map(|o| o.value());
        let (version, group) = name.split_once('.').unwrap_or((name, ""));
        let key = (group.to_owned(), version.to_owned());
        let mut remotes = self.remotes.write();
        let before = match stored.as_ref().filter(|s| s["spec"]["service"].is_object()) {
            None => remotes.remove(&key),
            Some(stored) => {
                let remote = self.remote(stored, remotes.get(&key));
                remotes.insert(key.clone(), Arc::new(remote))
            }
        };
        // A condition that was written is the result of a probe, not the occasion for one.
        let generation = |remote: Option<&Arc<Remote>>| remote.map(|r| r.generation);
        let changed = generation(before.as_ref()) != generation(remotes.get(&key));
        drop(remotes);
        if changed {
            core.documents.forget();
            self.changed.notify_one();
        }
    }

    fn remote(&self, stored: &Value, before: Option<&Arc<Remote>>) -> Remote {
        let spec = &stored["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let service = ServiceReference {
            namespace: text(&spec["service"]["namespace"]),
            name: text(&spec["service"]["name"]),
            port: spec["service"]["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443),
        };
        let same = before.filter(|b| b.service == service);
        Remote {
            name: meta(stored, "name").to_owned(),
            group: text(&spec["group"]),
            version: text(&spec["version"]),
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or(0),
            version_priority: spec["versionPriority"].as_i64().unwrap_or(0),
            tls: ClientTls::new(&self.front_proxy, spec, &format!("{}.{}.svc", service.name, service.namespace)),
            generation: stored["metadata"]["generation"].as_i64().unwrap_or(0),
            learned: Mutex::new(same.map(|b| b.learned.lock().clone()).unwrap_or_default()),
            service,
        }
    }

    /// The authority's certificate, by which extension servers check the front proxy's.
    pub fn front_proxy_ca(&self) -> &str {
        self.front_proxy.ca_pem()
    }
}

impl Remote {
    /// What its condition `Available` says, which is what the last probe found.
    pub fn is_available(&self, core: &Core) -> bool {
        let stored = core.store.get(COLLECTION, &Key::new("", &self.name)).map(|o| o.value());
        stored.as_ref().and_then(condition).is_some_and(|c| c["status"] == "True")
    }
}

/// The condition `Available`.
fn condition(stored: &Value) -> Option<&Value> {
    stored["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Available")
}

fn local_condition() -> Value {
    json!({
        "type": "Available", "status": "True", "reason": "Local",
        "message": "Local APIServices are always available", "lastTransitionTime": crate::object::now(),
    })
}

/// An APIService without a service is served here, so it is available at once.
pub fn on_create(object: &mut Value) {
    if object["spec"]["service"].is_null() {
        object["status"] = json!({"conditions": [local_condition()]});
    }
}

/// `ValidateAPIService`.
pub fn check(object: &Value) -> Result<(), ApiError> {
    const LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                         alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', \
                         regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
    let spec = &object["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, version, name) = (text(&spec["group"]), text(&spec["version"]), meta(object, "name"));
    let mut errors = Vec::new();
    let wanted = format!("{version}.{group}");
    if name != wanted {
        let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        errors.push(FieldError::invalid("metadata.name", &json!(name), &why));
    }
    if group.is_empty() && version != "v1" {
        let why = "only v1 may have an empty group and it better be legacy kube";
        errors.push(FieldError::required("spec.group", why));
    }
    if !group.is_empty() && !crate::schema::is_dns_subdomain(&group) {
        errors.push(FieldError::invalid("spec.group", &json!(group), "must be a lowercase RFC 1123 subdomain"));
    }
    let label = version.len() <= 63
        && version.starts_with(|c: char| c.is_ascii_lowercase())
        && version.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && version.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if !label {
        errors.push(FieldError::invalid("spec.version", &json!(version), LABEL));
    }
    for (field, most) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
        let number = spec[field].as_i64().unwrap_or(0);
        if !(1..=most).contains(&number) {
            let why = format!("must be positive and less than {most}");
            errors.push(FieldError::invalid(&format!("spec.{field}"), &json!(number), &why));
        }
    }
    let bundle = text(&spec["caBundle"]);
    let insecure = spec["insecureSkipTLSVerify"] == true;
    if spec["service"].is_null() {
        if !bundle.is_empty() {
            let shown = format!("{} bytes", connect::bundle(spec).map_or(0, |b| b.len()));
            let why = "local APIServices may not have a caBundle";
            errors.push(FieldError::invalid("spec.caBundle", &json!(shown), why));
        }
        if insecure {
            let why = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(FieldError::invalid("spec.insecureSkipTLSVerify", &json!(true), why));
        }
    } else {
        for field in ["namespace", "name"] {
            if text(&spec["service"][field]).is_empty() {
                errors.push(FieldError::required(&format!("spec.service.{field}"), ""));
            }
        }
        let port = spec["service"]["port"].as_i64().unwrap_or(443);
        if !(1..=65535).contains(&port) {
            let why = "port is not valid: must be between 1 and 65535, inclusive";
            errors.push(FieldError::invalid("spec.service.port", &json!(port), why));
        }
        if insecure && !bundle.is_empty() {
            let why = "may not be true if caBundle is present";
            errors.push(FieldError::invalid("spec.insecureSkipTLSVerify", &json!(true), why));
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid("apiregistration.k8s.io", "APIService", name, &errors))
}

/// Upstream answers in plain text here, not with a Status.
fn unavailable(why: &str) -> Response {
    let mut response = Response::new(format!("{why}\n").into());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
