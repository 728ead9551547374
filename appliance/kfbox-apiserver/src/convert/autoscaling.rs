//! HorizontalPodAutoscaler between `autoscaling/v2`, in which it is stored, and `autoscaling/v1`, which knows one target
//! (CPU) and carries everything else in annotations (`pkg/apis/autoscaling/v1/conversion.go`).

use serde_json::{Map, Value, json};

/// Metrics beside CPU utilization, as v1 writes them.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
/// Written by Go from a type without JSON names: `ScaleUp`, `StabilizationWindowSeconds`.
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// What v1 means when it names no target.
const DEFAULT_CPU_PERCENT: i64 = 80;

/// Sources of metrics, by the name of their field.
const SOURCES: [&str; 5] = ["resource", "containerResource", "pods", "object", "external"];

pub fn to_v1(value: &mut Value) {
    value["apiVersion"] = "autoscaling/v1".into();
    let metrics = take(value, "spec", "metrics");
    let current = take(value, "status", "currentMetrics");
    let conditions = take(value, "status", "conditions");
    let behavior = take(value, "spec", "behavior");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let (cpu, others): (Vec<Value>, Vec<Value>) =
        list(&metrics).into_iter().partition(|m| is_cpu(m) && m["resource"]["target"]["averageUtilization"].is_i64());
    if let Some(target) = cpu.first() {
        let percent = target["resource"]["target"]["averageUtilization"].clone();
        set(value, "spec", "targetCPUUtilizationPercentage", percent);
    }
    let in_use =
        list(&current).into_iter().filter(is_cpu).find_map(|m| m["resource"]["current"]["averageUtilization"].as_i64());
    if let Some(percent) = in_use {
        set(value, "status", "currentCPUUtilizationPercentage", percent.into());
    }
    let old =
        |metrics: &[Value], status| Value::from(metrics.iter().map(|m| metric_to_v1(m, status)).collect::<Vec<_>>());
    let kept = [
        (METRICS, (!others.is_empty()).then(|| old(&others, false))),
        (CURRENT, Some(list(&current)).filter(|l| !l.is_empty()).map(|l| old(&l, true))),
        (CONDITIONS, Some(conditions).filter(|c| c.as_array().is_some_and(|c| !c.is_empty()))),
        (BEHAVIOR, Some(behavior).filter(Value::is_object).map(|b| renamed(&b, true))),
    ];
    for (name, text) in kept {
        annotate(value, name, text.map(|v| v.to_string()));
    }
}

pub fn to_v2(value: &mut Value) {
    value["apiVersion"] = "autoscaling/v2".into();
    let target = take(value, "spec", "targetCPUUtilizationPercentage");
    let in_use = take(value, "status", "currentCPUUtilizationPercentage");
    // An annotation that is no JSON is dropped: it is this conversion's own, and not for people to write.
    let mut kept = |name: &str| -> Option<Value> {
        let text = value["metadata"]["annotations"][name].as_str()?.to_owned();
        annotate(value, name, None);
        serde_json::from_str(&text).ok()
    };
    let (others, current, conditions, behavior) = (kept(METRICS), kept(CURRENT), kept(CONDITIONS), kept(BEHAVIOR));
    let new = |metrics: Option<Value>, status| -> Vec<Value> {
        let list = metrics.and_then(|m| m.as_array().cloned()).unwrap_or_default();
        list.iter().filter_map(|m| metric_to_v2(m, status)).collect()
    };
    let cpu = |field: &str, target: Value| json!({"type": "Resource", "resource": {"name": "cpu", field: target}});
    let mut metrics = new(others, false);
    if target.is_i64() || metrics.is_empty() {
        let percent = target.as_i64().unwrap_or(DEFAULT_CPU_PERCENT);
        metrics.insert(0, cpu("target", json!({"type": "Utilization", "averageUtilization": percent})));
    }
    set(value, "spec", "metrics", metrics.into());
    let mut current = new(current, true);
    if current.is_empty() && in_use.is_i64() {
        current.push(cpu("current", json!({"averageUtilization": in_use})));
    }
    if !current.is_empty() {
        set(value, "status", "currentMetrics", current.into());
    }
    if let Some(conditions) = conditions.filter(Value::is_array) {
        set(value, "status", "conditions", conditions);
    }
    if let Some(behavior) = behavior.filter(Value::is_object) {
        set(value, "spec", "behavior", renamed(&behavior, false));
    }
}

/// The annotations that are status.
pub fn keep_status(old: &Value, new: &mut Value) {
    for name in [CURRENT, CONDITIONS] {
        annotate(new, name, old["metadata"]["annotations"][name].as_str().map(str::to_owned));
    }
}

fn take(value: &mut Value, part: &str, field: &str) -> Value {
    value.get_mut(part).and_then(Value::as_object_mut).and_then(|o| o.remove(field)).unwrap_or_default()
}

fn set(value: &mut Value, part: &str, field: &str, new: Value) {
    crate::object::member_mut(value, part).insert(field.to_owned(), new);
}

fn is_cpu(metric: &Value) -> bool {
    metric["type"] == "Resource" && metric["resource"]["name"] == "cpu"
}

fn annotate(value: &mut Value, name: &str, text: Option<String>) {
    let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    match text {
        Some(text) => {
            let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
            if let Some(annotations) = annotations.as_object_mut() {
                annotations.insert(name.to_owned(), text.into());
            }
        }
        None => {
            let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) else { return };
            annotations.remove(name);
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
    }
}

/// The source that the metric is of.
fn source(metric: &Value) -> Option<(&'static str, &Value)> {
    SOURCES.into_iter().find_map(|name| Some((name, metric.get(name).filter(|v| v.is_object())?)))
}

fn put(out: &mut Map<String, Value>, name: &str, value: &Value) {
    if !value.is_null() {
        out.insert(name.to_owned(), value.clone());
    }
}

/// Where v1 keeps the parts of a v2 target or current value: its value, average value and average utilization.
fn value_names(source: &str, status: bool) -> [&'static str; 3] {
    match (source, status) {
        ("object", false) => ["targetValue", "averageValue", ""],
        ("object", true) => ["currentValue", "averageValue", ""],
        (_, false) => ["targetValue", "targetAverageValue", "targetAverageUtilization"],
        (_, true) => ["currentValue", "currentAverageValue", "currentAverageUtilization"],
    }
}

const VALUES: [&str; 3] = ["value", "averageValue", "averageUtilization"];

/// Where v1 keeps the name and the selector of a v2 metric.
fn metric_names(source: &str) -> [&'static str; 2] {
    ["metricName", if source == "external" { "metricSelector" } else { "selector" }]
}

fn metric_to_v1(metric: &Value, status: bool) -> Value {
    let mut out = Map::from_iter([("type".to_owned(), metric["type"].clone())]);
    let Some((name, found)) = source(metric) else { return out.into() };
    let mut own = Map::new();
    put(&mut own, "name", &found["name"]);
    put(&mut own, "container", &found["container"]);
    put(&mut own, "target", &found["describedObject"]);
    let [metric_name, selector] = metric_names(name);
    put(&mut own, metric_name, &found["metric"]["name"]);
    put(&mut own, selector, &found["metric"]["selector"]);
    let amount = &found[if status { "current" } else { "target" }];
    for (old, new) in value_names(name, status).into_iter().zip(VALUES).filter(|(old, _)| !old.is_empty()) {
        put(&mut own, old, &amount[new]);
    }
    // v1 has no way to leave these out.
    if name == "object" && !status {
        own.entry("targetValue").or_insert_with(|| "0".into());
    }
    out.insert(name.to_owned(), own.into());
    out.into()
}

fn metric_to_v2(metric: &Value, status: bool) -> Option<Value> {
    let (name, found) = source(metric)?;
    let (mut own, mut amount) = (Map::new(), Map::new());
    put(&mut own, "name", &found["name"]);
    put(&mut own, "container", &found["container"]);
    if name == "object" {
        put(&mut own, "describedObject", &found["target"]);
    }
    let [metric_name, selector] = metric_names(name);
    let mut which = Map::new();
    put(&mut which, "name", &found[metric_name]);
    put(&mut which, "selector", &found[selector]);
    if !which.is_empty() {
        own.insert("metric".to_owned(), which.into());
    }
    for (old, new) in value_names(name, status).into_iter().zip(VALUES).filter(|(old, _)| !old.is_empty()) {
        put(&mut amount, new, &found[old]);
    }
    if name == "object" && amount.contains_key("averageValue") && amount.get("value").is_some_and(|v| v == "0") {
        amount.remove("value");
    }
    if !status {
        let kind = match () {
            () if amount.contains_key("averageUtilization") => "Utilization",
            () if amount.contains_key("averageValue") => "AverageValue",
            () => "Value",
        };
        amount.insert("type".to_owned(), kind.into());
    }
    own.insert(if status { "current" } else { "target" }.to_owned(), amount.into());
    Some(json!({"type": metric["type"], name: own}))
}

/// The same tree with each member's first letter in the other case; what is not set is left out.
fn renamed(value: &Value, upper: bool) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(name, v)| {
                let mut letters = name.chars();
                let first = letters.next().map(|c| if upper { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() });
                (first.into_iter().chain(letters).collect::<String>(), renamed(v, upper))
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(|v| renamed(v, upper)).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_and_back_loses_nothing() {
        let whole = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h", "annotations": {"mine": "kept"}},
            "spec": {
                "maxReplicas": 5, "minReplicas": 2,
                "metrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}},
                    {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                    {"type": "Pods", "pods": {"metric": {"name": "qps", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "AverageValue", "averageValue": "10"}}},
                    {"type": "Object", "object": {"metric": {"name": "hits"}, "describedObject": {"kind": "Service", "name": "s", "apiVersion": "v1"}, "target": {"type": "Value", "value": "3k"}}},
                    {"type": "Object", "object": {"metric": {"name": "hits"}, "describedObject": {"kind": "Service", "name": "s", "apiVersion": "v1"}, "target": {"type": "AverageValue", "averageValue": "3"}}},
                    {"type": "External", "external": {"metric": {"name": "queue", "selector": {}}, "target": {"type": "AverageValue", "averageValue": "30"}}},
                    {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "main", "target": {"type": "Utilization", "averageUtilization": 70}}},
                ],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60, "policies": [{"type": "Pods", "value": 4, "periodSeconds": 60}]}},
            },
            "status": {
                "currentReplicas": 2,
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 12, "averageValue": "20m"}}}],
                "conditions": [{"type": "AbleToScale", "status": "True"}],
            },
        });
        let mut value = whole.clone();
        to_v1(&mut value);
        assert_eq!(value["apiVersion"], "autoscaling/v1");
        assert_eq!(value["spec"]["targetCPUUtilizationPercentage"], 60);
        assert_eq!(value["status"]["currentCPUUtilizationPercentage"], 12);
        assert!(value["spec"].get("metrics").is_none() && value["spec"].get("behavior").is_none());
        let text = value["metadata"]["annotations"][METRICS].as_str().unwrap();
        let kept: Value = serde_json::from_str(text).unwrap();
        assert_eq!(kept[0], json!({"type": "Resource", "resource": {"name": "memory", "targetAverageValue": "1Gi"}}));
        assert!(value["metadata"]["annotations"][BEHAVIOR].as_str().unwrap().contains("\"ScaleDown\""));
        to_v2(&mut value);
        assert_eq!(value, whole);
    }

    #[test]
    fn no_target_is_eighty_percent_and_a_broken_annotation_is_dropped() {
        let mut value = json!({"metadata": {"name": "h", "annotations": {METRICS: "{", BEHAVIOR: "7"}}, "spec": {"maxReplicas": 3}});
        to_v2(&mut value);
        assert_eq!(value["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert!(value["metadata"].get("annotations").is_none() && value["spec"].get("behavior").is_none());
        for odd in [json!({}), json!({"spec": 1, "metadata": []}), json!({"spec": {"metrics": [1, {"type": 2}]}})] {
            to_v1(&mut odd.clone());
            to_v2(&mut odd.clone());
        }
    }
}
