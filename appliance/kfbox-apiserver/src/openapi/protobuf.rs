//! The v2 document as protobuf `openapi.v2.Document` of google/gnostic, which client-go decodes.
//!
//! Field numbers are those of gnostic's `openapiv2/OpenAPIv2.proto`; only what [`super::v2_document`] writes is encoded.
//! Extensions and defaults travel as YAML text, of which JSON is a part.

use serde_json::Value;

/// A message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        loop {
            let byte = (number & 0x7f) as u8;
            number >>= 7;
            if number == 0 {
                self.0.push(byte);
                return;
            }
            self.0.push(byte | 0x80);
        }
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn flag(&mut self, field: u32, value: bool) {
        if value {
            self.varint(u64::from(field) << 3);
            self.varint(1);
        }
    }

    fn message(&mut self, field: u32, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn words<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    value.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn members<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
    value.get(name).and_then(Value::as_object).into_iter().flatten()
}

/// `Any.yaml`.
fn any(out: &mut Message, field: u32, value: &Value) {
    out.message(field, |any| any.text(2, &format!("{value}\n")));
}

/// `repeated NamedAny vendor_extension`.
fn extensions(out: &mut Message, field: u32, value: &Value) {
    for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
        out.message(field, |named| {
            named.text(1, name);
            any(named, 2, value);
        });
    }
}

fn named(out: &mut Message, field: u32, name: &str, fill: impl FnOnce(&mut Message)) {
    out.message(field, |entry| {
        entry.text(1, name);
        entry.message(2, fill);
    });
}

fn schema(out: &mut Message, value: &Value) {
    out.text(1, text(value, "$ref"));
    out.text(2, text(value, "format"));
    out.text(4, text(value, "description"));
    if let Some(default) = value.get("default") {
        any(out, 5, default);
    }
    words(value, "required").for_each(|word| out.text(19, word));
    for option in value.get("enum").and_then(Value::as_array).into_iter().flatten() {
        any(out, 20, option);
    }
    if let Some(inner) = value.get("additionalProperties").filter(|v| v.is_object()) {
        out.message(21, |item| item.message(1, |s| schema(s, inner)));
    }
    if let Some(kind) = value.get("type").and_then(Value::as_str) {
        out.message(22, |item| item.text(1, kind));
    }
    if let Some(items) = value.get("items") {
        out.message(23, |item| item.message(1, |s| schema(s, items)));
    }
    if value.get("properties").is_some() {
        out.message(25, |all| {
            for (name, property) in members(value, "properties") {
                named(all, 1, name, |s| schema(s, property));
            }
        });
    }
    extensions(out, 31, value);
}

/// `ParametersItem`.
fn parameter(out: &mut Message, value: &Value) {
    let required = value.get("required") == Some(&Value::Bool(true));
    let place = text(value, "in");
    out.message(1, |parameter| {
        if place == "body" {
            parameter.message(1, |body| {
                body.text(2, text(value, "name"));
                body.text(3, place);
                body.flag(4, required);
                if let Some(inner) = value.get("schema") {
                    body.message(5, |s| schema(s, inner));
                }
            });
            return;
        }
        let (variant, kind, unique) = if place == "path" { (4, 5, 19) } else { (3, 6, 20) };
        parameter.message(2, |other| {
            other.message(variant, |fields| {
                fields.flag(1, required);
                fields.text(2, place);
                fields.text(4, text(value, "name"));
                fields.text(kind, text(value, "type"));
                // `unique_items`, one field earlier for path parameters, which have no `allow_empty_value`.
                fields.flag(unique, value.get("uniqueItems") == Some(&Value::Bool(true)));
            });
        });
    });
}

fn operation(out: &mut Message, value: &Value) {
    words(value, "tags").for_each(|word| out.text(1, word));
    out.text(5, text(value, "operationId"));
    words(value, "produces").for_each(|word| out.text(6, word));
    words(value, "consumes").for_each(|word| out.text(7, word));
    for item in value.get("parameters").and_then(Value::as_array).into_iter().flatten() {
        out.message(8, |p| parameter(p, item));
    }
    out.message(9, |responses| {
        for (code, response) in members(value, "responses") {
            named(responses, 1, code, |item| {
                item.message(1, |r| {
                    r.text(1, text(response, "description"));
                    if let Some(inner) = response.get("schema") {
                        r.message(2, |item| item.message(1, |s| schema(s, inner)));
                    }
                });
            });
        }
    });
    extensions(out, 13, value);
}

fn path_item(out: &mut Message, value: &Value) {
    for (method, field) in
        [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("options", 6), ("head", 7), ("patch", 8)]
    {
        if let Some(found) = value.get(method) {
            out.message(field, |o| operation(o, found));
        }
    }
    for item in value.get("parameters").and_then(Value::as_array).into_iter().flatten() {
        out.message(9, |p| parameter(p, item));
    }
}

/// Encodes a document made by [`super::v2_document`].
pub fn v2_protobuf(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, text(document, "swagger"));
    out.message(2, |info| {
        let value = document.get("info").unwrap_or(&Value::Null);
        info.text(1, text(value, "title"));
        info.text(2, text(value, "version"));
    });
    out.message(8, |paths| {
        for (path, item) in members(document, "paths") {
            named(paths, 2, path, |p| path_item(p, item));
        }
    });
    out.message(9, |definitions| {
        for (name, definition) in members(document, "definitions") {
            named(definitions, 1, name, |s| schema(s, definition));
        }
    });
    out.0
}
