//! `metrics.k8s.io/v1beta1`: what the node and its pods use, as metrics-server answers it to `kubectl top` and to the
//! autoscaler. Nothing is stored: each request asks the node.
//! Upstream: <https://github.com/kubernetes/metrics>, metrics-server `pkg/api`.

use crate::{
    kubelet::{ContainerUsage, KubeletError, NodeUsage},
    negotiate::Form,
    object::now,
    respond,
    status::ApiError,
    store::Object,
    verbs::{Call, list_namespace, list_selector},
};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use std::{collections::HashMap, sync::Arc};

pub async fn answer(call: &Call) -> Result<Response, ApiError> {
    let usage = call.core.kubelet()?.metrics().await.map_err(|error| match error {
        KubeletError::Failed(why) => ApiError::internal(why),
        KubeletError::NotFound(why) | KubeletError::NotNow(why) => ApiError::unavailable(why),
    })?;
    let found = match &*call.resource.plural {
        "nodes" => nodes(call, &usage)?,
        _ => pods(call, &usage)?,
    };
    if !call.target.name.is_empty() {
        return match found.into_iter().next() {
            Some(one) => Ok(match call.accept.form {
                Form::Object => respond::value(call, StatusCode::OK, &one),
                Form::Table => respond::value(call, StatusCode::OK, &respond::table(call, &[one], "", None)),
                Form::Metadata => respond::value(call, StatusCode::OK, &respond::partial(&one)),
            }),
            None => Err(missing(call)),
        };
    }
    let body = match call.accept.form {
        Form::Object => json!({
            "kind": &*call.resource.list_kind, "apiVersion": call.resource.api_version(), "metadata": {},
            "items": found,
        }),
        Form::Table => respond::table(call, &found, "", None),
        Form::Metadata => json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {},
            "items": found.iter().map(respond::partial).collect::<Vec<_>>(),
        }),
    };
    Ok(respond::value(call, StatusCode::OK, &body))
}

fn missing(call: &Call) -> ApiError {
    let target = &call.target;
    match call.resource.namespaced {
        true => ApiError::not_found("metrics.k8s.io", "podmetrics", &format!("{}/{}", target.namespace, target.name)),
        false => ApiError::not_found("metrics.k8s.io", "nodemetrics", &target.name),
    }
}

/// The objects of the cluster that the request is about, which alone know the labels.
fn subjects(call: &Call, collection: &str) -> Result<Vec<Arc<Object>>, ApiError> {
    let selector = list_selector(call)?;
    let objects = call.core.store.list(collection, list_namespace(call), None, None)?.objects;
    Ok(objects.into_iter().filter(|o| selector.matches(o)).collect())
}

fn metrics_of(call: &Call, subject: &Object, usage: &NodeUsage, field: &str, value: Value) -> Value {
    let mut metadata = json!({"name": &*subject.key.name, "creationTimestamp": now()});
    if !subject.key.namespace.is_empty() {
        metadata["namespace"] = (&*subject.key.namespace).into();
    }
    let labels: serde_json::Map<String, Value> =
        subject.labels.iter().map(|(key, value)| (key.to_string(), Value::from(&**value))).collect();
    if !labels.is_empty() {
        metadata["labels"] = labels.into();
    }
    json!({
        "kind": &*call.resource.kind, "apiVersion": call.resource.api_version(), "metadata": metadata,
        "timestamp": usage.timestamp, "window": duration(usage.window_seconds), field: value,
    })
}

fn nodes(call: &Call, usage: &NodeUsage) -> Result<Vec<Value>, ApiError> {
    // There is one node, and it is this machine.
    let nodes = subjects(call, "nodes")?;
    let amounts = amounts(usage.cpu_nanocores, usage.memory_working_set_bytes);
    Ok(nodes.iter().take(1).map(|n| metrics_of(call, n, usage, "usage", amounts.clone())).collect())
}

fn pods(call: &Call, usage: &NodeUsage) -> Result<Vec<Value>, ApiError> {
    let measured: HashMap<(&str, &str), &[ContainerUsage]> =
        usage.pods.iter().map(|p| ((p.namespace.as_str(), p.name.as_str()), p.containers.as_slice())).collect();
    let pods = subjects(call, "pods")?;
    let found = pods.iter().filter_map(|pod| {
        let containers = measured.get(&(&*pod.key.namespace, &*pod.key.name))?;
        let containers: Vec<Value> = containers
            .iter()
            .map(|c| json!({"name": c.name, "usage": amounts(c.cpu_nanocores, c.memory_working_set_bytes)}))
            .collect();
        Some(metrics_of(call, pod, usage, "containers", containers.into()))
    });
    Ok(found.collect())
}

fn amounts(nanocores: u64, bytes: u64) -> Value {
    json!({"cpu": cpu(nanocores), "memory": memory(bytes)})
}

/// A quantity in its canonical form: the largest unit that leaves no fraction.
fn in_units(mut number: u64, step: u64, units: &[&str]) -> String {
    let mut at = 0;
    while number != 0 && number.is_multiple_of(step) && at + 1 < units.len() {
        number /= step;
        at += 1;
    }
    if number == 0 { "0".to_owned() } else { format!("{number}{}", units[at]) }
}

pub fn cpu(nanocores: u64) -> String {
    in_units(nanocores, 1000, &["n", "u", "m", "", "k"])
}

pub fn memory(bytes: u64) -> String {
    in_units(bytes, 1024, &["", "Ki", "Mi", "Gi", "Ti"])
}

/// As Go writes a duration, to the millisecond.
fn duration(seconds: f64) -> String {
    let milliseconds = (seconds.max(0.0) * 1000.0).round() as u64;
    let (minutes, rest) = (milliseconds / 60_000, milliseconds % 60_000);
    let mut text = format!("{}.{:03}", rest / 1000, rest % 1000);
    text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    match (minutes / 60, minutes % 60) {
        (0, 0) if milliseconds < 1000 && milliseconds > 0 => format!("{milliseconds}ms"),
        (0, 0) => format!("{text}s"),
        (0, minutes) => format!("{minutes}m{text}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{text}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_canonical() {
        assert_eq!(
            (cpu(0), cpu(12), cpu(1_500_000), cpu(2_000_000_000)),
            ("0".into(), "12n".into(), "1500u".into(), "2".into())
        );
        assert_eq!((memory(4096), memory(3 << 20), memory(1025)), ("4Ki".into(), "3Mi".into(), "1025".into()));
        for (seconds, text) in
            [(0.0, "0s"), (0.25, "250ms"), (15.0, "15s"), (10.062, "10.062s"), (60.0, "1m0s"), (3661.5, "1h1m1.5s")]
        {
            assert_eq!(duration(seconds), text);
        }
    }
}
