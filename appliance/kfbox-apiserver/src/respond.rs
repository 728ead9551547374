//! Answers: bodies, warnings, compression, Tables and metadata-only objects.

pub use crate::printing::partial;
use crate::{object, printing, verbs::Call};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use std::io::Write as _;

/// Below this an answer is not compressed: upstream's bound, at which the saved bytes begin to outweigh the work.
pub const GZIP_FROM: usize = 128 * 1024;

pub fn json(call: &Call, code: StatusCode, body: Bytes) -> Response {
    if call.accept.yaml
        && let Ok(value) = serde_json::from_slice::<Value>(&body)
        && let Ok(text) = serde_yaml::to_string(&value)
    {
        return finish(call, code, text.into(), "application/yaml");
    }
    finish(call, code, body, "application/json")
}

pub fn value(call: &Call, code: StatusCode, value: &Value) -> Response {
    json(call, code, value.to_string().into())
}

fn finish(call: &Call, code: StatusCode, body: Bytes, media: &'static str) -> Response {
    let (body, gzip) = match call.accept.gzip && !call.local && body.len() >= GZIP_FROM {
        true => match compress(&body) {
            Ok(small) => (small, true),
            Err(_) => (body, false),
        },
        false => (body, false),
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

fn compress(body: &[u8]) -> std::io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder.write_all(body)?;
    encoder.finish().map(Into::into)
}

/// RFC 7234 warnings as upstream writes them: code 299, no agent, the text quoted.
pub fn add_warnings(response: &mut Response, warnings: &[String]) {
    for text in warnings {
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// A `meta.k8s.io/v1` Table, each row with the part of its object that `includeObject` asks for.
pub fn table(call: &Call, objects: &[Value], revision: &str, continued: Option<(&str, Option<u64>)>) -> Value {
    let resource = &call.resource;
    let kind = printing::TableKind {
        group: &resource.group,
        version: &resource.version,
        kind: &resource.kind,
        columns: resource.custom.as_ref().map(|c| c.columns.as_array().map(Vec::as_slice).unwrap_or_default()),
    };
    let mut table = printing::table(&kind, objects, chrono::Utc::now());
    let include = call.query.get("includeObject").unwrap_or("Metadata");
    if let Some(rows) = table["rows"].as_array_mut() {
        for (row, object) in rows.iter_mut().zip(objects) {
            match include {
                "None" => drop(row.as_object_mut().and_then(|row| row.remove("object"))),
                "Object" => row["object"] = object.clone(),
                _ => {}
            }
        }
    }
    let mut metadata = json!({"resourceVersion": revision});
    if let Some((token, remaining)) = continued {
        metadata["continue"] = token.into();
        if let Some(remaining) = remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    table["metadata"] = metadata;
    table
}

/// What a deletion that is complete answers.
pub fn deleted(call: &Call, object: &Value) -> Value {
    let mut details = json!({
        "name": object::meta(object, "name"),
        "kind": &*call.resource.plural,
        "uid": object::meta(object, "uid"),
    });
    if !call.resource.group.is_empty() {
        details["group"] = (&*call.resource.group).into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
