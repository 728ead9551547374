//! One verb a file. Each takes a [`Call`]: an authenticated, authorized request for a resource.

mod create;
mod delete;
mod list;
mod patch;
mod read;
mod update;
mod watch;

pub use create::{create, create_object};
pub use delete::{DeleteOptions, Deleted, delete, delete_collection, delete_object};
pub use list::{list, namespace as list_namespace, selector as list_selector};
pub use patch::{Patch, apply_object, patch};
pub use read::{get, object_response};
pub use update::{Modification, SERVER_OWNED, modify, update};
pub use watch::watch;

use crate::{
    negotiate::Accept,
    request::{Query, Target},
    resources::{Registry, Resource},
    schema::FieldError,
    server::Core,
    status::ApiError,
    store::Key,
};
use http::HeaderMap;
use kfbox_base::UserInfo;
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::Arc;

/// As upstream bounds the name of a field manager.
const MAX_MANAGER: usize = 128;
const FIELD_VALIDATION: &[&str] = &["", "Ignore", "Strict", "Warn"];

/// Everything a verb needs to know.
pub struct Call {
    pub core: Arc<Core>,
    pub registry: Arc<Registry>,
    pub resource: Arc<Resource>,
    pub target: Target,
    pub query: Query,
    pub user: UserInfo,
    pub headers: HeaderMap,
    pub accept: Accept,
    pub dry_run: bool,
    /// Whether the caller is in this process.
    pub local: bool,
    pub warnings: Mutex<Vec<String>>,
    /// What admission has to say to the audit log.
    pub annotations: Mutex<Vec<(String, String)>>,
}

/// How unknown fields are treated (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl Call {
    pub fn key(&self) -> Key {
        Key::new(self.namespace(), &self.target.name)
    }

    /// Of the object, not of the path: a namespace is itself in none.
    pub fn namespace(&self) -> &str {
        if self.resource.namespaced { &self.target.namespace } else { "" }
    }

    pub fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.resource.group, &self.resource.plural, &self.target.name)
    }

    pub fn warn(&self, text: impl Into<String>) {
        self.warnings.lock().push(text.into());
    }

    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        self.annotations.lock().push((key.into(), value.into()));
    }

    /// Who fields belong to: the parameter, else the client program's name.
    pub fn manager(&self) -> String {
        if let Some(manager) = self.query.get("fieldManager") {
            return manager.to_owned();
        }
        let agent = self.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let name: String = agent.split('/').next().unwrap_or_default().chars().take(128).collect();
        match name.is_empty() {
            true if self.local => "kfbox".into(),
            true => "unknown".into(),
            false => name,
        }
    }

    /// `fieldManager` and `fieldValidation` as `ValidateCreateOptions` and its siblings judge them.
    pub fn check_options(&self, kind: &str) -> Result<(), ApiError> {
        let mut errors = Vec::new();
        if let Some(manager) = self.query.get("fieldManager") {
            if manager.len() > MAX_MANAGER {
                errors.push(FieldError::too_long("fieldManager", MAX_MANAGER));
            }
            for (at, c) in manager.char_indices().filter(|(_, c)| c.is_control()) {
                let why = format!("invalid character U+{:04X} (at position {at})", u32::from(c));
                errors.push(FieldError::invalid("fieldManager", &manager.into(), &why));
            }
        }
        if let Some(other) = self.query.get("fieldValidation").filter(|v| !FIELD_VALIDATION.contains(v)) {
            errors.push(FieldError::not_supported("fieldValidation", &other.into(), FIELD_VALIDATION));
        }
        if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid("meta.k8s.io", kind, "", &errors)) }
    }

    pub fn field_validation(&self) -> Result<FieldValidation, ApiError> {
        match self.query.get("fieldValidation") {
            None | Some("" | "Warn") => Ok(FieldValidation::Warn),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some("Strict") => Ok(FieldValidation::Strict),
            Some(other) => Err(ApiError::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }

    /// Drops what the kind does not know, and tells or refuses as asked.
    pub fn prune(&self, object: &mut Value) -> Result<(), ApiError> {
        let mode = self.field_validation()?;
        let Some(schema) = self.resource.schema() else { return Ok(()) };
        let unknown = crate::schema::prune(&schema, object);
        if unknown.is_empty() {
            return Ok(());
        }
        match mode {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => unknown.iter().for_each(|path| self.warn(format!("unknown field \"{path}\""))),
            FieldValidation::Strict => {
                let listed: Vec<String> = unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect();
                return Err(ApiError::bad_request(format!("strict decoding error: {}", listed.join(", "))));
            }
        }
        Ok(())
    }

    /// Built-in kinds have Go types upstream: what does not fit them is no such object. Everything after this may rely on
    /// it.
    pub fn check_shape(&self, object: &Value) -> Result<(), ApiError> {
        let Resource { version, kind, custom: None, .. } = &*self.resource else { return Ok(()) };
        let Some(schema) = self.resource.schema() else { return Ok(()) };
        let errors = crate::schema::validate(&schema, object, None);
        match errors.iter().find(|e| e.reason.as_str() == "FieldValueTypeInvalid") {
            Some(error) => Err(ApiError::bad_request(format!(
                "{kind} in version \"{version}\" cannot be handled as a {kind}: {error}"
            ))),
            None => Ok(()),
        }
    }

    pub fn default(&self, object: &mut Value) {
        match &self.resource.custom {
            Some(custom) => crate::schema::default(custom.schema.get(), object),
            None => crate::schema::default_builtin(
                &self.resource.group,
                &self.resource.version,
                &self.resource.kind,
                object,
            ),
        }
    }

    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
        self.validate_write("", object, old)
    }

    /// As [`Call::validate`], for a write to a subresource.
    pub fn validate_write(&self, subresource: &str, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
        let Resource { group, version, kind, .. } = &*self.resource;
        let errors = match &self.resource.custom {
            Some(custom) => {
                let mut errors = crate::schema::validate_metadata(object, old);
                errors.extend(crate::schema::validate(custom.schema.get(), object, old));
                errors
            }
            None => crate::schema::validate_write(group, version, kind, subresource, object, old),
        };
        if errors.is_empty() {
            return Ok(());
        }
        Err(ApiError::invalid(group, kind, crate::object::meta(object, "name"), &errors))
    }

    /// The body must be of the kind and version that the path names.
    pub fn check_type(&self, object: &mut Value) -> Result<(), ApiError> {
        let expected = (self.resource.api_version(), &*self.resource.kind);
        self.check_type_as(object, &expected.0, expected.1)
    }

    pub fn check_type_as(&self, object: &mut Value, api_version: &str, kind: &str) -> Result<(), ApiError> {
        let Some(members) = object.as_object_mut() else {
            return Err(ApiError::bad_request("the body must be an object"));
        };
        let text = |v: Option<&Value>| v.and_then(Value::as_str).unwrap_or_default().to_owned();
        let (found_version, found_kind) = (text(members.get("apiVersion")), text(members.get("kind")));
        if !found_version.is_empty() && found_version != api_version {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({found_version}) does not match the expected API version ({api_version})"
            )));
        }
        if !found_kind.is_empty() && found_kind != kind {
            return Err(ApiError::bad_request(format!(
                "the kind in the data ({found_kind}) does not match the expected kind ({kind})"
            )));
        }
        // Upstream takes bodies without either for built-in kinds only.
        if self.resource.custom.is_some() && (found_version.is_empty() || found_kind.is_empty()) {
            let what = if found_kind.is_empty() { "Kind" } else { "apiVersion" };
            return Err(ApiError::bad_request(format!("Object '{what}' is missing")));
        }
        members.insert("apiVersion".into(), api_version.into());
        members.insert("kind".into(), kind.into());
        Ok(())
    }
}
