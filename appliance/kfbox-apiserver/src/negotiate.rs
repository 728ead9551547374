//! Bodies in and out: media types, size limits, and the forms an answer may take (whole objects, a Table, metadata
//! only): <https://kubernetes.io/docs/reference/using-api/api-concepts/#alternate-representations-of-resources>.

use crate::{protobuf, status::ApiError};
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::Value;

/// The largest request body, as upstream's: etcd's 1.5 MiB and room for encoding.
pub const BODY_LIMIT: usize = 3 << 20;

/// In which a body must be there: over a slow network 3 MiB take a few seconds.
const BODY_PATIENCE: std::time::Duration = std::time::Duration::from_secs(15);

/// What is stored is read again by a parser that stops at 128 levels, and the book of field owners nests some levels
/// deeper than the object. No kind nests a third as deep.
pub const MAX_NESTING: usize = 100;

const READABLE: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Object,
    Table,
    Metadata,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept {
    pub form: Form,
    pub yaml: bool,
    pub gzip: bool,
}

/// One clause of an Accept header.
struct Clause<'a> {
    media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameters = parts.filter_map(|p| p.split_once('=')).map(|(k, v)| (k.trim(), v.trim())).collect();
        Self { media, parameters }
    }

    fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(k, _)| *k == name).map(|(_, v)| *v)
    }
}

fn clauses(headers: &HeaderMap) -> Vec<Clause<'_>> {
    let values = headers.get_all(header::ACCEPT);
    values.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(Clause::parse).collect()
}

impl Accept {
    /// The first form that can be given. A client that names protobuf gets JSON, whose type the answer states, if it takes
    /// that at all.
    pub fn parse(headers: &HeaderMap) -> Result<Self, ApiError> {
        let gzip = headers
            .get_all(header::ACCEPT_ENCODING)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .any(|v| v.split(',').any(|e| e.split(';').next().is_some_and(|e| e.trim() == "gzip")));
        let accept = |form, yaml| Ok(Self { form, yaml, gzip });
        let clauses = clauses(headers);
        if clauses.is_empty() {
            return accept(Form::Object, false);
        }
        let takes_json = clauses.iter().any(|c| matches!(c.media, "application/json" | "*/*" | "application/*" | ""));
        for clause in &clauses {
            let yaml = match clause.media {
                "application/json" | "*/*" | "application/*" | "" => false,
                // The form that it asks for is one that it takes in JSON too.
                protobuf::MEDIA_TYPE if takes_json => false,
                "application/yaml" => true,
                _ => continue,
            };
            let of_meta = clause.parameter("g").is_none_or(|g| g == "meta.k8s.io")
                && clause.parameter("v").is_none_or(|v| v == "v1" || v == "v1beta1");
            match clause.parameter("as") {
                None => return accept(Form::Object, yaml),
                Some("Table") if of_meta => return accept(Form::Table, yaml),
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") if of_meta => {
                    return accept(Form::Metadata, yaml);
                }
                Some(_) => {}
            }
        }
        // Streams of text, such as a log, are asked for with types of their own; so is curl's or a browser's page.
        if clauses.iter().any(|c| c.media.starts_with("text/")) {
            return accept(Form::Object, false);
        }
        Err(ApiError::not_acceptable(READABLE))
    }
}

/// Whether the client takes `as=WHAT;g=apidiscovery.k8s.io` in one of the versions; answers which.
pub fn wants_discovery<'v>(headers: &HeaderMap, versions: &[&'v str]) -> Option<&'v str> {
    for clause in clauses(headers) {
        if !matches!(clause.media, "application/json" | "*/*" | "application/*") {
            continue;
        }
        match clause.parameter("as") {
            Some("APIGroupDiscoveryList") if clause.parameter("g") == Some("apidiscovery.k8s.io") => {
                if let Some(version) = versions.iter().find(|v| Some(**v) == clause.parameter("v")) {
                    return Some(version);
                }
            }
            Some(_) => {}
            None => return None,
        }
    }
    None
}

pub fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// The whole body, unless it is too large or comes too slowly: its sender may hold others up.
pub async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    let read = tokio::time::timeout(BODY_PATIENCE, Limited::new(body, BODY_LIMIT).collect());
    let Ok(read) = read.await else { return Err(ApiError::timeout("the request body did not come in time")) };
    match read {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(BODY_LIMIT)),
        Err(error) => Err(ApiError::bad_request(format!("the request body broke off: {error}"))),
    }
}

/// An object in JSON or YAML.
pub fn decode(headers: &HeaderMap, body: &[u8]) -> Result<Value, ApiError> {
    match content_type(headers) {
        "" | "application/json" => json(body),
        "application/yaml" | "application/apply-patch+yaml" => yaml(body),
        protobuf::MEDIA_TYPE => protobuf::decode(body).map(shallow).map_err(|error| match error {
            protobuf::DecodeError::Kind { .. } => {
                let message = format!("{}: {error}", ApiError::unsupported_media_type(READABLE));
                ApiError::new(http::StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
            }
            malformed => ApiError::bad_request(malformed.to_string()),
        })?,
        // Python's requests and curl -d name nothing better.
        "application/x-www-form-urlencoded" | "text/plain" if body.first() == Some(&b'{') => json(body),
        _ => Err(ApiError::unsupported_media_type(READABLE)),
    }
}

pub fn json(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body)
        .map_err(|e| ApiError::bad_request(format!("the object provided is unrecognized (must be valid JSON): {e}")))
        .and_then(shallow)
}

fn shallow(value: Value) -> Result<Value, ApiError> {
    match crate::object::nesting(&value) > MAX_NESTING {
        false => Ok(value),
        true => Err(ApiError::bad_request(format!("exceeded max depth: more than {MAX_NESTING} levels of nesting"))),
    }
}

/// YAML is a superset of JSON; aliases expand within the limits of the parser.
pub fn yaml(body: &[u8]) -> Result<Value, ApiError> {
    if body.first() == Some(&b'{')
        && let Ok(value) = serde_json::from_slice(body)
    {
        return shallow(value);
    }
    serde_yaml::from_slice(body)
        .map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))
        .and_then(shallow)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(accept: &str) -> Option<Form> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        Accept::parse(&headers).ok().map(|a| a.form)
    }

    #[test]
    fn the_first_form_that_can_be_given_is() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(form(kubectl), Some(Form::Table));
        assert_eq!(form("application/json;as=Other;v=v1;g=meta.k8s.io, application/json"), Some(Form::Object));
        assert_eq!(
            form(
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
            ),
            Some(Form::Metadata)
        );
        assert_eq!(form("*/*"), Some(Form::Object));
        assert_eq!(form("application/vnd.kubernetes.protobuf, */*"), Some(Form::Object));
        assert_eq!(form("application/vnd.kubernetes.protobuf,application/json"), Some(Form::Object));
        assert_eq!(form("application/vnd.kubernetes.protobuf"), None);
        assert_eq!(form("image/png"), None);
    }
}
