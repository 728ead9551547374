//! `-p name=value`, as the types of the pipeline's parameters want it.

use crate::failure::{Code, Failure};
use serde_json::{Map, Value, json};

/// Values by name. A name that the pipeline does not have is an error here, before anything starts.
pub fn typed(spec: &Value, given: &[String]) -> anyhow::Result<Map<String, Value>> {
    let none = Map::new();
    let known = spec.pointer("/root/inputDefinitions/parameters").and_then(Value::as_object).unwrap_or(&none);
    let names = || match known.is_empty() {
        true => "the pipeline has no parameters".to_owned(),
        false => format!("its parameters are: {}", known.keys().cloned().collect::<Vec<_>>().join(", ")),
    };
    let mut values = Map::new();
    for text in given {
        let (name, value) =
            text.split_once('=').ok_or_else(|| wrong(format!("{text:?} is not NAME=VALUE"), names()))?;
        let definition = known.get(name).ok_or_else(|| wrong(format!("there is no parameter {name:?}"), names()))?;
        let kind = definition.get("parameterType").and_then(Value::as_str).unwrap_or_default();
        values.insert(
            name.to_owned(),
            parse(kind, value).map_err(|what| {
                wrong(format!("{value:?} is no value for {name}"), format!("the pipeline wants {what}"))
            })?,
        );
    }
    let needed = |(_, definition): &(&String, &Value)| {
        definition.get("defaultValue").is_none() && definition.get("isOptional").and_then(Value::as_bool) != Some(true)
    };
    let missing: Vec<&str> =
        known.iter().filter(needed).map(|(name, _)| name.as_str()).filter(|n| !values.contains_key(*n)).collect();
    if !missing.is_empty() {
        let flags: Vec<String> = missing.iter().map(|name| format!("-p {name}=...")).collect();
        return Err(wrong(format!("these parameters need a value: {}", missing.join(", ")), flags.join(" ")));
    }
    Ok(values)
}

fn wrong(message: String, next: String) -> anyhow::Error {
    Failure::new(Code::General, message, next).into()
}

fn parse(kind: &str, text: &str) -> Result<Value, &'static str> {
    let json = || serde_json::from_str::<Value>(text).ok();
    match kind {
        "NUMBER_INTEGER" => text.trim().parse::<i64>().map(|n| json!(n)).map_err(|_| "a whole number"),
        "NUMBER_DOUBLE" => match text.trim().parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(json!(number)),
            _ => Err("a number"),
        },
        "BOOLEAN" => match text.trim().to_ascii_lowercase().as_str() {
            "true" => Ok(json!(true)),
            "false" => Ok(json!(false)),
            _ => Err("true or false"),
        },
        "LIST" => json().filter(Value::is_array).ok_or("a list in JSON, such as [1, 2]"),
        "STRUCT" => json().filter(Value::is_object).ok_or("an object in JSON, such as {\"a\": 1}"),
        _ => Ok(json!(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_what_the_pipeline_wants_and_mistakes_are_named() {
        let spec = json!({"root": {"inputDefinitions": {"parameters": {
            "text": {"parameterType": "STRING"}, "n": {"parameterType": "NUMBER_INTEGER", "defaultValue": 1},
            "rate": {"parameterType": "NUMBER_DOUBLE", "isOptional": true}, "on": {"parameterType": "BOOLEAN", "defaultValue": true},
            "list": {"parameterType": "LIST", "defaultValue": []}, "map": {"parameterType": "STRUCT", "defaultValue": {}},
        }}}});
        let typed = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(|s| (*s).to_owned()).collect();
            super::typed(&spec, &given).map(Value::Object).map_err(|e| Failure::render(&e))
        };
        let all = typed(&["text=a=b", "n=-3", "rate=1e-3", "on=False", "list=[1]", "map={\"a\":{}}"]).unwrap();
        let wanted = json!({"text": "a=b", "n": -3, "rate": 0.001, "on": false, "list": [1], "map": {"a": {}}});
        assert_eq!(all, wanted);
        for (given, says) in [
            (&["n=1"][..], "-p text=..."),
            (&["text=", "n=1.5"], "a whole number"),
            (&["text=", "rate=inf"], "a number"),
            (&["text=", "on=yes"], "true or false"),
            (&["text=", "list={}"], "a list in JSON"),
            (&["text=", "other=1"], "no parameter \"other\""),
            (&["text"], "NAME=VALUE"),
        ] {
            let error = typed(given).unwrap_err();
            assert!(error.contains(says), "{given:?}: {error}");
        }
        assert!(super::typed(&json!({"root": {}}), &[]).unwrap().is_empty());
    }
}
