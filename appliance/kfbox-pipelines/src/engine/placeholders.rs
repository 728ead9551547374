//! A container's command: `{"Concat"…}` and `{"IfPresent"…}` structures first, then `{{$…}}` placeholders, each in one
//! pass, so that a value that looks like a placeholder stays data (`compileCmdAndArgs` upstream;
//! `kfp/local/placeholder_utils.py` for the structures).

use super::model::Artifact;
use crate::spec::value;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Structures nested in structures.
const MAX_DEPTH: usize = 32;

/// What one attempt of a step is given and must give: `ExecutorInput` in `pipeline_spec.proto`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExecutorInput {
    pub parameters: Map<String, Value>,
    pub artifacts: BTreeMap<String, Vec<Artifact>>,
    /// Output parameters and the files that they are written to.
    pub output_parameters: BTreeMap<String, String>,
    pub output_artifacts: BTreeMap<String, Artifact>,
    pub output_file: String,
}

fn artifact(a: &Artifact) -> Value {
    let mut kind = json!({"schemaTitle": a.schema_title});
    if !a.schema_version.is_empty() {
        kind["schemaVersion"] = json!(a.schema_version);
    }
    let mut value = json!({"name": a.name, "type": kind, "uri": a.uri, "metadata": a.metadata});
    if let Some(path) = &a.custom_path {
        value["customPath"] = json!(path);
    }
    value
}

impl ExecutorInput {
    pub fn to_json(&self) -> Value {
        let lists = |all: Vec<(&String, Vec<Value>)>| -> Map<String, Value> {
            all.into_iter().map(|(name, list)| (name.clone(), json!({"artifacts": list}))).collect()
        };
        let inputs = lists(self.artifacts.iter().map(|(n, l)| (n, l.iter().map(artifact).collect())).collect());
        let outputs = lists(self.output_artifacts.iter().map(|(n, a)| (n, vec![artifact(a)])).collect());
        let parameters: Map<String, Value> =
            self.output_parameters.iter().map(|(n, file)| (n.clone(), json!({"outputFile": file}))).collect();
        let mut given = json!({});
        if !self.parameters.is_empty() {
            given["parameterValues"] = Value::Object(self.parameters.clone());
        }
        if !inputs.is_empty() {
            given["artifacts"] = Value::Object(inputs);
        }
        let mut asked = json!({"outputFile": self.output_file});
        if !parameters.is_empty() {
            asked["parameters"] = Value::Object(parameters);
        }
        if !outputs.is_empty() {
            asked["artifacts"] = Value::Object(outputs);
        }
        json!({"inputs": given, "outputs": asked})
    }

    fn provided(&self, name: &str) -> bool {
        self.parameters.get(name).is_some_and(|v| !v.is_null())
            || self.artifacts.get(name).is_some_and(|l| !l.is_empty())
    }

    /// What stands for `{{$INNER}}`; `None` leaves it as it is, as upstream does.
    fn lookup(&self, inner: &str) -> Option<String> {
        if inner.is_empty() {
            return Some(self.to_json().to_string());
        }
        let inner = inner.strip_prefix('.')?;
        if inner == "outputs.output_file" || inner == "outputMetadataUri" {
            return Some(self.output_file.clone());
        }
        if let Some(rest) = inner.strip_prefix("inputs.parameters[") {
            return self.parameters.get(quoted(rest.strip_suffix(']')?)?).map(value::text);
        }
        if let Some(rest) = inner.strip_prefix("outputs.parameters[") {
            return self.output_parameters.get(quoted(rest.strip_suffix("].output_file")?)?).cloned();
        }
        let (found, property) = if let Some(rest) = inner.strip_prefix("inputs.artifacts[") {
            let (name, property) = rest.rsplit_once("].")?;
            (self.artifacts.get(quoted(name)?).and_then(|l| l.first())?, property)
        } else {
            let (name, property) = inner.strip_prefix("outputs.artifacts[")?.rsplit_once("].")?;
            (self.output_artifacts.get(quoted(name)?)?, property)
        };
        match property {
            "uri" => Some(found.uri.clone()),
            "path" => Some(artifact_path(found).unwrap_or_else(|| found.uri.clone())),
            "name" => Some(found.name.clone()),
            "metadata" => Some(Value::Object(found.metadata.clone()).to_string()),
            other => {
                let key = quoted(other.strip_prefix("metadata[")?.strip_suffix(']')?)?;
                found.metadata.get(key).map(value::text)
            }
        }
    }

    /// The command with everything in its place.
    pub fn command(&self, elements: &[String]) -> Result<Vec<String>, String> {
        let mut command = Vec::with_capacity(elements.len());
        for element in elements {
            match self.structure(element)? {
                Some(parts) => command.extend(parts),
                None => command.push(replace(element, &|inner| self.lookup(inner))),
            }
        }
        Ok(command)
    }

    /// One text with placeholders, such as an image or a quantity.
    pub fn text(&self, text: &str) -> String {
        replace(text, &|inner| self.lookup(inner))
    }

    fn structure(&self, element: &str) -> Result<Option<Vec<String>>, String> {
        let start = element.trim_start();
        let looks = start.starts_with('{')
            && ["\"Concat\"", "\"IfPresent\""].iter().any(|k| start[1..].trim_start().starts_with(k));
        if !looks {
            return Ok(None);
        }
        let parsed: Value =
            serde_json::from_str(element).map_err(|e| format!("the placeholder {element} is no JSON: {e}"))?;
        self.resolve(&parsed, 0).map(Some)
    }

    fn resolve(&self, part: &Value, depth: usize) -> Result<Vec<String>, String> {
        if depth > MAX_DEPTH {
            return Err("its placeholders are nested too deeply".into());
        }
        let all = |parts: &[Value]| -> Result<Vec<String>, String> {
            let mut found = Vec::new();
            for part in parts {
                found.extend(self.resolve(part, depth + 1)?);
            }
            Ok(found)
        };
        match part {
            Value::String(text) => Ok(vec![replace(text, &|inner| self.lookup(inner))]),
            Value::Array(parts) => all(parts),
            Value::Object(map) => {
                if let Some(Value::Array(parts)) = map.get("Concat") {
                    return Ok(vec![all(parts)?.concat()]);
                }
                let Some(condition) = map.get("IfPresent") else {
                    return Err(format!("the placeholder {part} is neither Concat nor IfPresent"));
                };
                let input = condition.get("InputName").and_then(Value::as_str).unwrap_or_default();
                let branch = if self.provided(input) { condition.get("Then") } else { condition.get("Else") };
                branch.filter(|b| !b.is_null()).map_or_else(|| Ok(Vec::new()), |b| self.resolve(b, depth + 1))
            }
            Value::Null => Ok(Vec::new()),
            other => Ok(vec![other.to_string()]),
        }
    }
}

/// Where an artifact is in the container.
pub fn artifact_path(artifact: &Artifact) -> Option<String> {
    if let Some(path) = &artifact.custom_path {
        return Some(path.clone());
    }
    let local = crate::roots::local_path(&artifact.uri)?;
    if artifact.lies_in_workspace() {
        return Some(format!("{}/.artifacts/{}", super::pod::WORKSPACE, local.trim_start_matches('/')));
    }
    Some(local)
}

/// `'x'` or `"x"`, and the doubled quotes of YAML that older compilers leave.
pub(super) fn quoted(text: &str) -> Option<&str> {
    let inner = text.trim_matches('\'').trim_matches('"');
    (inner.len() < text.len()).then_some(inner)
}

/// Replaces each `{{$…}}` once, left to right.
pub(super) fn replace(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{{$") {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = from.find("}}") else {
            rest = from;
            break;
        };
        let (whole, after) = from.split_at(end + 2);
        let inner = &whole[3..whole.len() - 2];
        match lookup(inner).or_else(|| lookup(inner.strip_prefix('.')?)) {
            Some(value) => out.push_str(&value),
            None => out.push_str(whole),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input() -> ExecutorInput {
        let data = Artifact {
            name: "7".into(),
            uri: "minio://b/v2/n/data".into(),
            schema_title: "system.Dataset".into(),
            ..Artifact::default()
        };
        ExecutorInput {
            parameters: json!({"x": "{{$.inputs.parameters['y']}}", "y": "why", "n": 5, "l": [1, "a"]})
                .as_object()
                .unwrap()
                .clone(),
            artifacts: [("data".to_owned(), vec![data.clone()])].into(),
            output_parameters: [("out".to_owned(), "/tmp/kfp/outputs/out".to_owned())].into(),
            output_artifacts: [("model".to_owned(), Artifact { uri: "gs://b/model".into(), ..data })].into(),
            output_file: "/minio/o.json".into(),
        }
    }

    #[test]
    fn each_placeholder_is_replaced_once() {
        let i = input();
        let got = i.text("{{$.inputs.parameters['x']}}|{{$.inputs.parameters['n']}}|{{$.inputs.parameters['l']}}|{{$.inputs.artifacts['data'].path}}|{{$.outputs.artifacts['model'].path}}|{{$.outputs.artifacts['model'].uri}}|{{$.outputs.parameters['out'].output_file}}|{{$.unknown}}|{{$");
        assert_eq!(
            got,
            "{{$.inputs.parameters['y']}}|5|[1,\"a\"]|/minio/b/v2/n/data|/gcs/b/model|gs://b/model|/tmp/kfp/outputs/out|{{$.unknown}}|{{$"
        );
        let whole: Value = serde_json::from_str(&i.text("{{$}}")).unwrap();
        assert_eq!(whole["inputs"]["artifacts"]["data"]["artifacts"][0]["type"]["schemaTitle"], "system.Dataset");
        assert_eq!(whole["outputs"]["outputFile"], "/minio/o.json");
    }

    #[test]
    fn structures_become_words() {
        let i = input();
        let command = |e: &str| i.command(&[e.to_owned()]).unwrap();
        assert_eq!(
            command(
                r#"{"Concat": ["{{$.inputs.parameters['y']}}", "+", {"IfPresent": {"InputName": "gone", "Then": "a", "Else": "b"}}]}"#
            ),
            ["why+b"]
        );
        assert_eq!(
            command(r#"{"IfPresent": {"InputName": "y", "Then": ["-y", "{{$.inputs.parameters['y']}}"]}}"#),
            ["-y", "why"]
        );
        assert!(command(r#"{"IfPresent": {"InputName": "gone", "Then": ["-y"]}}"#).is_empty());
        assert_eq!(command(r#"{"just": "json"}"#), [r#"{"just": "json"}"#]);
        assert!(i.command(&[r#"{"Concat": ["#.to_owned()]).is_err());
        let deep = format!("{}\"x\"{}", r#"{"Concat": ["#.repeat(100), "]}".repeat(100));
        assert!(i.command(&[deep]).is_err());
    }
}
