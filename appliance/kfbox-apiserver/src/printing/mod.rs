//! Server-side printing: a `meta.k8s.io/v1` Table with upstream's columns, as `kubectl get` asks for.
//!
//! Upstream: <https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables>,
//! columns as in `pkg/printers/internalversion`.

mod cluster;
mod duration;
mod jsonpath;
mod pods;
mod rows;
mod workloads;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

pub use duration::human_duration;

/// What is printed; `columns` are a CRD version's `additionalPrinterColumns`, none for built-in kinds.
#[derive(Clone, Copy, Debug)]
pub struct TableKind<'a> {
    pub group: &'a str,
    #[expect(dead_code, reason = "no kind prints other columns in another version so far")]
    pub version: &'a str,
    pub kind: &'a str,
    pub columns: Option<&'a [Value]>,
}

/// A column: name, type, priority (1 shows with `-o wide` only).
type Column = (&'static str, &'static str, u8);
type Row = Vec<Value>;
type RowOf = fn(&Value, DateTime<Utc>) -> Row;

/// The table of `objects`. Each row's `object` is the PartialObjectMetadata; callers that were asked for
/// `includeObject=Object` or `None` replace or drop it, and set the list's `metadata`.
pub fn table(kind: &TableKind<'_>, objects: &[Value], now: DateTime<Utc>) -> Value {
    let (definitions, rows): (Vec<Value>, Vec<Row>) = match kind.columns {
        Some(columns) => custom(columns, objects, now),
        None => {
            let (columns, row) = rows::of(kind.group, kind.kind);
            (
                columns.iter().map(|(name, ty, priority)| definition(name, ty, *priority)).collect(),
                objects.iter().map(|object| row(object, now)).collect(),
            )
        }
    };
    let rows: Vec<Value> = rows
        .into_iter()
        .zip(objects)
        .map(|(cells, object)| json!({"cells": cells, "object": partial(object)}))
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

/// `PartialObjectMetadata` of an object.
pub fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

fn definition(name: &str, ty: &str, priority: u8) -> Value {
    let format = if name == "Name" { "name" } else { "" };
    json!({"name": name, "type": ty, "format": format, "description": "", "priority": priority})
}

fn custom(columns: &[Value], objects: &[Value], now: DateTime<Utc>) -> (Vec<Value>, Vec<Row>) {
    let age = [json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"})];
    let columns = if columns.is_empty() { &age[..] } else { columns };
    let text = |column: &Value, name: &str| column.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut definitions = vec![definition("Name", "string", 0)];
    let mut paths = Vec::new();
    for column in columns {
        definitions.push(json!({
            "name": text(column, "name"),
            "type": text(column, "type"),
            "format": text(column, "format"),
            "description": text(column, "description"),
            "priority": column.get("priority").and_then(Value::as_i64).unwrap_or(0),
        }));
        paths.push((jsonpath::parse(&text(column, "jsonPath")), text(column, "type")));
    }
    let rows = objects.iter().map(|object| {
        let mut row = vec![name(object)];
        for (path, ty) in &paths {
            let found = path.as_ref().map(|p| p.find(object)).unwrap_or_default();
            row.push(found.first().map_or(Value::Null, |first| custom_cell(ty, first, &found, now)));
        }
        row
    });
    (definitions, rows.collect())
}

fn custom_cell(ty: &str, first: &Value, all: &[&Value], now: DateTime<Utc>) -> Value {
    match (ty, first) {
        (_, Value::Null) => Value::Null,
        ("date", value) => Value::from(age_of(Some(value), now)),
        ("integer" | "number", value @ Value::Number(_)) | ("boolean", value @ Value::Bool(_)) => value.clone(),
        ("integer" | "number" | "boolean", _) => Value::Null,
        _ => {
            let words: Vec<String> =
                all.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), ToOwned::to_owned)).collect();
            Value::from(words.join(" "))
        }
    }
}

fn name(object: &Value) -> Value {
    object.pointer("/metadata/name").cloned().unwrap_or_else(|| Value::from(""))
}

fn parse_time(value: Option<&Value>) -> Option<DateTime<Utc>> {
    let text = value?.as_str()?;
    DateTime::parse_from_rfc3339(text).ok().map(|t| t.with_timezone(&Utc))
}

fn age_of(value: Option<&Value>, now: DateTime<Utc>) -> String {
    parse_time(value).map_or_else(|| "<unknown>".to_owned(), |then| human_duration((now - then).num_seconds()))
}

fn age(object: &Value, now: DateTime<Utc>) -> Value {
    Value::from(age_of(object.pointer("/metadata/creationTimestamp"), now))
}

fn text_at<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn int_at(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

fn list_at<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn count_at(object: &Value, pointer: &str) -> usize {
    match object.pointer(pointer) {
        Some(Value::Object(map)) => map.len(),
        Some(Value::Array(items)) => items.len(),
        _ => 0,
    }
}

fn or(text: &str, otherwise: &str) -> Value {
    Value::from(if text.is_empty() { otherwise } else { text })
}

/// A label selector as upstream prints it: `a=b,c in (d,e)`.
fn selector(value: Option<&Value>, empty: &str) -> Value {
    let mut parts = Vec::new();
    let Some(value) = value else { return Value::from(empty) };
    let labels =
        value.get("matchLabels").unwrap_or(if value.get("matchExpressions").is_some() { &Value::Null } else { value });
    for (key, label) in labels.as_object().into_iter().flatten() {
        if let Some(label) = label.as_str() {
            parts.push(format!("{key}={label}"));
        }
    }
    parts.sort();
    for expression in list_at(value, "/matchExpressions") {
        let key = text_at(expression, "/key");
        let values: Vec<&str> = list_at(expression, "/values").iter().filter_map(Value::as_str).collect();
        let values = values.join(",");
        parts.push(match text_at(expression, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    Value::from(if parts.is_empty() { empty.to_owned() } else { parts.join(",") })
}

#[cfg(test)]
mod tests;
