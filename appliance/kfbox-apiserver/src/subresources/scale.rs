//! `scale`: replicas of a workload as an `autoscaling/v1` Scale.

use crate::{
    convert,
    negotiate::{Form, content_type, decode, read_body, yaml},
    object::meta,
    printing, respond,
    status::ApiError,
    verbs::{self, Call, Modification, Patch, apply_object},
};
use axum::{body::Body, response::Response};
use http::StatusCode;
use serde_json::{Map, Value, json};

/// Where a kind keeps its numbers.
struct Paths {
    spec: Vec<String>,
    status: Vec<String>,
    selector: Option<Vec<String>>,
}

fn paths(call: &Call) -> Paths {
    // A CRD's paths are simple: `.spec.replicas`.
    let steps = |path: &str| path.split('.').filter(|s| !s.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    match call.resource.custom.as_ref().and_then(|c| c.scale.as_ref()) {
        Some(scale) => Paths {
            spec: steps(&scale.spec),
            status: steps(&scale.status),
            selector: scale.selector.as_deref().map(steps),
        },
        None => Paths {
            spec: steps("spec.replicas"),
            status: steps("status.replicas"),
            selector: Some(steps("spec.selector")),
        },
    }
}

fn at<'a>(object: &'a Value, path: &[String]) -> &'a Value {
    path.iter().fold(object, |value, step| &value[step.as_str()])
}

fn set(object: &mut Value, path: &[String], value: Value) {
    let mut place = object;
    for step in path {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place = &mut place[step.as_str()];
    }
    *place = value;
}

fn scale_of(object: &Value, paths: &Paths) -> Value {
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata.insert(field.into(), value.clone());
        }
    }
    let mut status = json!({"replicas": at(object, &paths.status).as_i64().unwrap_or(0)});
    let selector = paths.selector.as_ref().map(|p| selector_text(at(object, p))).filter(|s| !s.is_empty());
    if let Some(selector) = selector {
        status["selector"] = selector.into();
    }
    let replicas = at(object, &paths.spec).as_i64();
    let spec = replicas.map_or(json!({}), |n| json!({"replicas": n}));
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// A selector in its textual form; a ReplicationController's is a plain map, a custom resource's a string.
fn selector_text(selector: &Value) -> String {
    if let Some(text) = selector.as_str() {
        return text.to_owned();
    }
    let Some(members) = selector.as_object() else { return String::new() };
    let structured = members.contains_key("matchLabels") || members.contains_key("matchExpressions");
    let labels = if structured { selector["matchLabels"].as_object() } else { Some(members) };
    let mut parts: Vec<String> =
        labels.into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    for rule in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = rule["key"].as_str().unwrap_or_default();
        let values: Vec<&str> = rule["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match rule["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    parts.join(",")
}

/// The Scale that stands for an object.
pub fn of(call: &Call, object: &Value) -> Value {
    scale_of(object, &paths(call))
}

/// What a changed Scale says of its object; true if that is new.
pub fn put_into(call: &Call, object: &mut Value, scale: &Value) -> bool {
    let paths = paths(call);
    let replicas = &scale["spec"]["replicas"];
    if replicas.is_null() || at(object, &paths.spec) == replicas {
        return false;
    }
    set(object, &paths.spec, replicas.clone());
    true
}

pub fn get(call: &Call) -> Result<Response, ApiError> {
    let stored = call.core.store.get(&call.resource.collection, &call.key()).ok_or_else(|| call.not_found())?;
    let scale = scale_of(&convert::value(&call.resource, &stored), &paths(call));
    if call.accept.form == Form::Table {
        let kind = printing::TableKind { group: "autoscaling", version: "v1", kind: "Scale", columns: None };
        let mut table = printing::table(&kind, &[scale], chrono::Utc::now());
        table["metadata"] = json!({"resourceVersion": stored.revision.to_string()});
        return Ok(respond::value(call, StatusCode::OK, &table));
    }
    Ok(respond::value(call, StatusCode::OK, &scale))
}

pub async fn update(call: &Call, body: Body) -> Result<Response, ApiError> {
    let body = read_body(body).await?;
    let given = decode(&call.headers, &body)?;
    change(call, |_| Ok(given.clone())).await
}

pub async fn patch(call: &Call, body: Body) -> Result<Response, ApiError> {
    let body = read_body(body).await?;
    if content_type(&call.headers) == "application/apply-patch+yaml" {
        return apply(call, &body).await;
    }
    let patch = match Patch::read(call, &body)? {
        // A Scale has no lists: both kinds of merge are the same.
        Patch::Strategic(patch) => Patch::Merge(patch),
        patch => patch,
    };
    change(call, |scale| patch.apply(call, scale)).await
}

/// An applied Scale owns the replicas of its object, under the name of the subresource.
async fn apply(call: &Call, body: &[u8]) -> Result<Response, ApiError> {
    let given = yaml(body)?;
    if given["kind"] != "Scale" || given["apiVersion"] != "autoscaling/v1" {
        return Err(ApiError::bad_request("the applied configuration must be a Scale of autoscaling/v1"));
    }
    let name = meta(&given, "name");
    if !name.is_empty() && name != call.target.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.target.name
        )));
    }
    let paths = paths(call);
    let mut applied = json!({
        "apiVersion": call.resource.api_version(), "kind": call.resource.kind,
        "metadata": {"name": call.target.name, "resourceVersion": meta(&given, "resourceVersion")},
    });
    if let Some(replicas) = given.pointer("/spec/replicas").filter(|r| !r.is_null()) {
        check_replicas(call, replicas.as_i64().unwrap_or(-1))?;
        set(&mut applied, &paths.spec, replicas.clone());
    }
    let (code, object) = apply_object(call, &applied).await?;
    Ok(respond::value(call, code, &scale_of(&convert::value(&call.resource, &object), &paths)))
}

fn check_replicas(call: &Call, replicas: i64) -> Result<(), ApiError> {
    if (0..=i64::from(i32::MAX)).contains(&replicas) {
        return Ok(());
    }
    let error =
        crate::schema::FieldError::invalid("spec.replicas", &json!(replicas), "must be greater than or equal to 0");
    Err(ApiError::invalid("autoscaling", "Scale", &call.target.name, &[error]))
}

async fn change(call: &Call, f: impl Fn(&Value) -> Result<Value, ApiError>) -> Result<Response, ApiError> {
    let paths = paths(call);
    let how = Modification { subresource: "scale", track: true, replace: false };
    let modified = verbs::modify(call, &how, |old| {
        let before = scale_of(old, &paths);
        let after = f(&before)?;
        let replicas = after["spec"]["replicas"].as_i64().unwrap_or(0);
        check_replicas(call, replicas)?;
        let mut new = old.clone();
        set(&mut new, &paths.spec, replicas.into());
        // The revision that was read is no demand; any other one is, and conflicts.
        let asked = meta(&after, "resourceVersion");
        let demand = if asked == meta(old, "resourceVersion") { "" } else { asked };
        crate::object::set_meta(&mut new, "resourceVersion", demand);
        Ok(new)
    })
    .await?;
    let scale = scale_of(&convert::value(&call.resource, &modified), &paths);
    Ok(respond::value(call, StatusCode::OK, &scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_read_as_kubectl_writes_them() {
        let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "DoesNotExist"}]});
        assert_eq!(selector_text(&selector), "a=b,c in (d,e),!f");
        assert_eq!(selector_text(&json!({"a": "b"})), "a=b");
    }
}
