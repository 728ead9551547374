//! What is wrong with one field, worded as upstream's `field.Error` (apimachinery `pkg/util/validation/field`).

use serde_json::Value;

/// The machine-readable cause, spelled as in `metav1.StatusCause.reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    FieldValueNotFound,
    FieldValueRequired,
    FieldValueDuplicate,
    FieldValueInvalid,
    FieldValueNotSupported,
    FieldValueForbidden,
    FieldValueTooLong,
    FieldValueTooMany,
    FieldValueTypeInvalid,
    InternalError,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::FieldValueNotFound => "FieldValueNotFound",
            Reason::FieldValueRequired => "FieldValueRequired",
            Reason::FieldValueDuplicate => "FieldValueDuplicate",
            Reason::FieldValueInvalid => "FieldValueInvalid",
            Reason::FieldValueNotSupported => "FieldValueNotSupported",
            Reason::FieldValueForbidden => "FieldValueForbidden",
            Reason::FieldValueTooLong => "FieldValueTooLong",
            Reason::FieldValueTooMany => "FieldValueTooMany",
            Reason::FieldValueTypeInvalid => "FieldValueTypeInvalid",
            Reason::InternalError => "InternalError",
        }
    }
}

/// One error: `field` is a path (`spec.containers[0].name`), `message` what follows it in a `Status` cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    pub field: String,
    pub reason: Reason,
    pub message: String,
}

/// Values in messages are cut here, so that an error about a megabyte stays readable.
const SHOWN: usize = 512;

fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > SHOWN {
        let cut = (0..=SHOWN).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(cut);
        text.push_str("...");
    }
    text
}

impl FieldError {
    fn new(field: &str, reason: Reason, message: String) -> Self {
        FieldError { field: field.to_owned(), reason, message }
    }

    pub fn required(field: &str, detail: &str) -> Self {
        let tail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        Self::new(field, Reason::FieldValueRequired, format!("Required value{tail}"))
    }

    pub fn invalid(field: &str, value: &Value, detail: &str) -> Self {
        Self::new(field, Reason::FieldValueInvalid, format!("Invalid value: {}: {detail}", shown(value)))
    }

    pub fn type_invalid(field: &str, value: &Value, detail: &str) -> Self {
        Self::new(field, Reason::FieldValueTypeInvalid, format!("Invalid value: {}: {detail}", shown(value)))
    }

    /// The value cannot be read at all, and is not shown.
    pub fn undecodable(field: &str, why: &str) -> Self {
        Self::new(field, Reason::FieldValueTypeInvalid, format!("Invalid value: {why}"))
    }

    pub fn not_supported(field: &str, value: &Value, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        // Where nothing is given, the empty word is what is not supported.
        let value = if value.is_null() { "\"\"".to_owned() } else { shown(value) };
        Self::new(
            field,
            Reason::FieldValueNotSupported,
            format!("Unsupported value: {value}: supported values: {}", list.join(", ")),
        )
    }

    pub fn forbidden(field: &str, detail: &str) -> Self {
        Self::new(field, Reason::FieldValueForbidden, format!("Forbidden: {detail}"))
    }

    pub fn internal(field: &str, detail: &str) -> Self {
        Self::new(field, Reason::InternalError, format!("Internal error: {detail}"))
    }

    pub fn duplicate(field: &str, value: &Value) -> Self {
        Self::new(field, Reason::FieldValueDuplicate, format!("Duplicate value: {}", shown(value)))
    }

    pub fn not_found(field: &str, value: &Value) -> Self {
        Self::new(field, Reason::FieldValueNotFound, format!("Not found: {}", shown(value)))
    }

    pub fn too_long(field: &str, limit: usize) -> Self {
        let unit = if limit == 1 { "byte" } else { "bytes" };
        Self::new(field, Reason::FieldValueTooLong, format!("Too long: may not be more than {limit} {unit}"))
    }

    pub fn too_many(field: &str, actual: usize, limit: usize) -> Self {
        let unit = if limit == 1 { "item" } else { "items" };
        Self::new(field, Reason::FieldValueTooMany, format!("Too many: {actual}: must have at most {limit} {unit}"))
    }
}

/// `a.b`, or `b` at the root.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

pub(crate) fn index(path: &str, at: usize) -> String {
    format!("{path}[{at}]")
}

pub(crate) fn key(path: &str, name: &str) -> String {
    format!("{path}[{name}]")
}
