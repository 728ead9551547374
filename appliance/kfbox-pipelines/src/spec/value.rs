//! Parameter values: `google.protobuf.Value` in JSON, checked and converted to what a component declares
//! (`backend/src/v2/driver/resolve.go` and `metadata/converter.go` upstream).

use super::ir::{InputParameterDef, OutputParameterDef, ParameterType};
use serde_json::{Number, Value};

/// Whole numbers lose their fraction point, as in protobuf's JSON: an `int` parameter of value 5.0 arrives as 5.
pub fn normalize(value: &mut Value) {
    match value {
        Value::Number(number) => {
            // 2^53: beyond it a double no longer tells neighbours apart.
            const EXACT: f64 = 9_007_199_254_740_992.0;
            if let Some(float) =
                number.as_f64().filter(|f| !number.is_i64() && !number.is_u64() && f.fract() == 0.0 && f.abs() <= EXACT)
            {
                #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53")]
                let whole = float as i64;
                *number = Number::from(whole);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(normalize),
        Value::Object(map) => map.values_mut().for_each(normalize),
        _ => {}
    }
}

/// A value as text: strings as they are, the rest as JSON.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a struct",
    }
}

fn wanted(kind: ParameterType) -> &'static str {
    match kind {
        ParameterType::NumberDouble => "a number",
        ParameterType::NumberInteger => "an integer",
        ParameterType::Boolean => "a boolean",
        ParameterType::List => "a list",
        ParameterType::Struct | ParameterType::TaskFinalStatus | ParameterType::TaskConfig => "a struct",
        ParameterType::String | ParameterType::ParameterTypeEnumUnspecified => "a string",
    }
}

pub fn declared(definition: &InputParameterDef) -> ParameterType {
    if definition.parameter_type == ParameterType::ParameterTypeEnumUnspecified {
        primitive(definition.primitive_type.as_ref())
    } else {
        definition.parameter_type
    }
}

pub fn declared_output(definition: &OutputParameterDef) -> ParameterType {
    if definition.parameter_type == ParameterType::ParameterTypeEnumUnspecified {
        primitive(definition.primitive_type.as_ref())
    } else {
        definition.parameter_type
    }
}

fn primitive(kind: Option<&Value>) -> ParameterType {
    match kind.and_then(Value::as_str) {
        Some("INT") => ParameterType::NumberInteger,
        Some("DOUBLE") => ParameterType::NumberDouble,
        _ => ParameterType::String,
    }
}

/// Checks an input against its definition. Anything may become a string; nothing else is converted.
pub fn coerce(mut value: Value, definition: &InputParameterDef) -> Result<Value, String> {
    normalize(&mut value);
    let kind = declared(definition);
    let fits = match (kind, &value) {
        (ParameterType::String | ParameterType::ParameterTypeEnumUnspecified, _) => {
            value = Value::String(text(&value));
            true
        }
        (ParameterType::NumberDouble, Value::Number(_))
        | (ParameterType::Boolean, Value::Bool(_))
        | (ParameterType::List, Value::Array(_))
        | (ParameterType::Struct | ParameterType::TaskFinalStatus | ParameterType::TaskConfig, Value::Object(_)) => {
            true
        }
        (ParameterType::NumberInteger, Value::Number(number)) => number.is_i64() || number.is_u64(),
        _ => false,
    };
    if !fits {
        return Err(format!("it should be {}, and is {}", wanted(kind), type_name(&value)));
    }
    if !definition.literals.is_empty() {
        let mut literals = definition.literals.clone();
        literals.iter_mut().for_each(normalize);
        if !literals.contains(&value) {
            let listed: Vec<String> = literals.iter().map(Value::to_string).collect();
            return Err(format!("{value} is none of the values it may take: {}", listed.join(", ")));
        }
    }
    Ok(value)
}

/// An output parameter from the text that the step wrote to its file.
pub fn parse_output(written: &str, kind: ParameterType) -> Result<Value, String> {
    let trimmed = written.trim();
    let mut value = match kind {
        ParameterType::String | ParameterType::ParameterTypeEnumUnspecified => {
            return Ok(Value::String(written.to_owned()));
        }
        ParameterType::NumberInteger => trimmed.parse::<i64>().map(Value::from).ok(),
        ParameterType::NumberDouble => trimmed.parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number),
        ParameterType::Boolean => match trimmed {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(Value::Bool(false)),
            _ => None,
        },
        ParameterType::List => serde_json::from_str(trimmed).ok().filter(Value::is_array),
        ParameterType::Struct | ParameterType::TaskFinalStatus | ParameterType::TaskConfig => {
            serde_json::from_str(trimmed).ok().filter(Value::is_object)
        }
    }
    .ok_or_else(|| {
        let shown: String = trimmed.chars().take(80).collect();
        format!("it should be {}, and the step wrote `{shown}`", wanted(kind))
    })?;
    normalize(&mut value);
    Ok(value)
}

/// What a loop runs over: a list, or a string that holds one in JSON.
pub fn items(value: &Value) -> Result<Vec<Value>, String> {
    match value {
        Value::Array(items) => Ok(items.clone()),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(Value::Array(items)) => Ok(items),
            _ => Err("the loop's items are a string that holds no JSON list".into()),
        },
        other => Err(format!("the loop's items should be a list, and are {}", type_name(other))),
    }
}
