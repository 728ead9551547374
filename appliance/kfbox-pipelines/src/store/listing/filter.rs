//! Filters: `filter.proto` of v1beta1 and of v2beta1 in its JSON form, as conditions with bound values.

use super::{Kind, Sql, Table, column};
use crate::error::{ApiError, ApiResult};
use serde_json::Value;

/// Predicates in one filter.
const MAX_PREDICATES: usize = 50;

fn parsed(text: &str) -> ApiResult<Option<Value>> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    serde_json::from_str(text)
        .or_else(|_| serde_json::from_str(&percent_encoding::percent_decode_str(text).decode_utf8_lossy()))
        .map(Some)
        .map_err(|e| ApiError::invalid(format!("the filter is no JSON: {e}")))
}

/// The filter of `filter.proto` upstream, in JSON; operations by name or by number, as the SDK sends them.
pub(super) fn filter(table: &Table, text: &str) -> ApiResult<Vec<(String, Vec<Sql>)>> {
    let Some(parsed) = parsed(text)? else { return Ok(Vec::new()) };
    let predicates = parsed.get("predicates").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if predicates.len() > MAX_PREDICATES {
        return Err(ApiError::invalid(format!("the filter has more than {MAX_PREDICATES} predicates")));
    }
    predicates.iter().map(|p| predicate(table, p)).collect()
}

/// `Predicate.Operation` by number.
const OPERATIONS: [&str; 10] = [
    "OPERATION_UNSPECIFIED",
    "EQUALS",
    "NOT_EQUALS",
    "GREATER_THAN",
    "",
    "GREATER_THAN_EQUALS",
    "LESS_THAN",
    "LESS_THAN_EQUALS",
    "IN",
    "IS_SUBSTRING",
];

fn predicate(table: &Table, predicate: &Value) -> ApiResult<(String, Vec<Sql>)> {
    let field = |name: &str| crate::rest::field(predicate, name);
    let key = field("key")
        .and_then(Value::as_str)
        .ok_or_else(|| ApiError::invalid("a predicate of the filter has no key"))?;
    // v1beta1 calls it `op`.
    let operation = match field("operation").or_else(|| field("op")) {
        Some(Value::String(name)) => name.as_str(),
        Some(Value::Number(n)) => {
            n.as_u64().and_then(|n| OPERATIONS.get(usize::try_from(n).ok()?)).copied().unwrap_or("")
        }
        _ => OPERATIONS[0],
    };
    let single = ["string_value", "timestamp_value", "int_value", "long_value"].iter().find_map(|n| field(n));
    if let (Some(tag), "pipelines" | "pipeline_versions") = (key.strip_prefix("tags."), table.name) {
        let (Some(Value::String(value)), "EQUALS") = (single, operation) else {
            return Err(ApiError::invalid(format!("the filter on {key} should be EQUALS with a string_value")));
        };
        let has = "EXISTS (SELECT 1 FROM json_each(tags) AS tag WHERE tag.key = ? AND tag.value = ?)";
        return Ok((has.into(), vec![Sql::Text(tag.into()), Sql::Text(value.clone())]));
    }
    let (column, kind) = column(table, key)?;
    let one = |value: &Value| -> ApiResult<Sql> {
        match (kind, value) {
            (Kind::Text, Value::String(text)) => Ok(Sql::Text(text.clone())),
            (Kind::State, Value::String(text)) => Ok(Sql::Text(state(text))),
            // 64-bit integers are strings in protobuf's JSON.
            (Kind::Time, Value::String(text)) => crate::time::parse(text)
                .or_else(|| text.parse::<i64>().ok()?.checked_mul(1000))
                .map(Sql::Integer)
                .ok_or_else(|| {
                    ApiError::invalid(format!("`{text}` is no RFC 3339 time, which the filter on {key} needs"))
                }),
            (Kind::Time, Value::Number(seconds)) => {
                Ok(Sql::Integer(seconds.as_i64().unwrap_or_default().saturating_mul(1000)))
            }
            _ => Err(ApiError::invalid(format!("the filter on {key} has a value of the wrong kind"))),
        }
    };
    let value = || single.map_or_else(|| Err(ApiError::invalid(format!("the filter on {key} has no value"))), one);
    let compared = |sign: &str| Ok((format!("{column} {sign} ?"), vec![value()?]));
    match operation {
        "EQUALS" => compared("="),
        "NOT_EQUALS" => compared("<>"),
        "GREATER_THAN" => compared(">"),
        "GREATER_THAN_EQUALS" => compared(">="),
        "LESS_THAN" => compared("<"),
        "LESS_THAN_EQUALS" => compared("<="),
        "IS_SUBSTRING" => match (kind, single) {
            (Kind::Text | Kind::State, Some(Value::String(part))) => {
                Ok((format!("instr(lower({column}), lower(?)) > 0"), vec![Sql::Text(part.clone())]))
            }
            _ => {
                Err(ApiError::invalid(format!("IS_SUBSTRING needs a field of text and a string_value, also for {key}")))
            }
        },
        "IN" => {
            let list = ["string_values", "int_values", "long_values"].iter().find_map(|n| field(n));
            let values = list.and_then(|l| l.get("values")).and_then(Value::as_array);
            let values = values.ok_or_else(|| ApiError::invalid(format!("the filter on {key} has no values")))?;
            if values.len() > 1000 {
                return Err(ApiError::invalid(format!("the filter on {key} has more than 1000 values")));
            }
            let values = values.iter().map(one).collect::<ApiResult<Vec<_>>>()?;
            Ok((format!("{column} IN ({})", vec!["?"; values.len()].join(",")), values))
        }
        other => Err(ApiError::invalid(format!("the filter's operation `{other}` does not exist"))),
    }
}

/// A state as it is stored, from any of its names in either version of the API.
fn state(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    match upper.strip_prefix("STORAGESTATE_").unwrap_or(&upper) {
        "TERMINATING" => "CANCELING".into(),
        "ERROR" => "FAILED".into(),
        other => other.to_owned(),
    }
}

/// The filter of a request, checked and in the form that protobuf's JSON would give it.
pub fn normalized(table: &Table, text: &str) -> ApiResult<Value> {
    let mut predicates = Vec::new();
    if let Some(parsed) = parsed(text)? {
        for given in parsed.get("predicates").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default() {
            predicate(table, given)?;
            let mut shown = serde_json::Map::new();
            for (name, value) in given.as_object().into_iter().flatten() {
                let name = crate::rest::snake_case(name);
                let value = match (name.as_str(), value) {
                    ("operation" | "op", Value::Number(n)) => {
                        let at = n.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or_default();
                        Value::from(OPERATIONS.get(at).copied().unwrap_or_default())
                    }
                    _ => value.clone(),
                };
                shown.insert(if name == "op" { "operation".into() } else { name }, value);
            }
            predicates.push(Value::Object(shown));
        }
    }
    Ok(serde_json::json!({"predicates": predicates}))
}
