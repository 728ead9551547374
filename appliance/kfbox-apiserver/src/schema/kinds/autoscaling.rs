//! HorizontalPodAutoscalers. Upstream: `pkg/apis/autoscaling/validation`.

use serde_json::Value;

use super::super::quantity;
use super::{Check, element, join, list, names, text};

pub(super) fn autoscaler(c: &mut Check, version: &str, value: &Value) {
    let spec = &value["spec"];
    let most = spec.get("maxReplicas").and_then(Value::as_i64).unwrap_or(0);
    let least = spec.get("minReplicas").and_then(Value::as_i64);
    if let Some(least) = least.filter(|n| *n < 1) {
        c.invalid("spec.minReplicas", least, "must be greater than or equal to 1");
    }
    if most < 1 {
        c.invalid("spec.maxReplicas", most, "must be greater than 0");
    }
    if least.is_some_and(|least| most < least) {
        c.invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`");
    }
    reference(c, spec.get("scaleTargetRef"), "spec.scaleTargetRef");
    if version == "v1" {
        return;
    }
    for (at, metric) in list(spec, "/metrics").iter().enumerate() {
        check_metric(c, metric, &element("spec", "metrics", at));
    }
    for direction in ["scaleUp", "scaleDown"] {
        if let Some(rules) = spec.pointer(&format!("/behavior/{direction}")) {
            scaling(c, rules, &join("spec.behavior", direction));
        }
    }
}

fn reference(c: &mut Check, reference: Option<&Value>, path: &str) {
    let reference = reference.unwrap_or(&Value::Null);
    for name in ["kind", "name"] {
        c.named(reference, path, name, names::path_segment);
    }
}

/// Sources, sorted, with the member that describes each.
const SOURCES: &[(&str, &str)] = &[
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

fn check_metric(c: &mut Check, metric: &Value, path: &str) {
    let kind = text(metric, "/type");
    if kind.is_empty() {
        c.required(&join(path, "type"), "must specify a metric source type");
    }
    let expected = SOURCES.iter().find(|(name, _)| *name == kind).map(|(_, member)| *member);
    if expected.is_none() {
        let known: Vec<&str> = SOURCES.iter().map(|(name, _)| *name).collect();
        c.not_supported(&join(path, "type"), &Value::from(kind), &known);
    }
    let given: Vec<&str> =
        SOURCES.iter().map(|(_, member)| *member).filter(|member| metric.get(member).is_some()).collect();
    if let Some(first) = given.first() {
        source(c, first, &metric[*first], &join(path, first));
    }
    if let Some(expected) = expected.filter(|expected| !given.contains(expected)) {
        c.required(&join(path, expected), "must populate information for the given metric source");
    }
    if given.len() > 1 {
        for member in given.into_iter().filter(|member| Some(*member) != expected) {
            c.forbidden(&join(path, member), "must populate the given metric source only");
        }
    }
}

fn source(c: &mut Check, kind: &str, source: &Value, path: &str) {
    let target = source.get("target").unwrap_or(&Value::Null);
    let target_path = join(path, "target");
    let has = |name: &str| target.get(name).is_some();
    if kind == "object" {
        reference(c, source.get("describedObject"), &join(path, "describedObject"));
    }
    if matches!(kind, "object" | "pods" | "external") {
        let metric = source.get("metric").unwrap_or(&Value::Null);
        let metric_path = join(path, "metric");
        let name = text(metric, "/name");
        if name.is_empty() {
            c.required(&join(&metric_path, "name"), "must specify a metric name");
        } else {
            c.holds(&join(&metric_path, "name"), name, names::path_segment);
        }
    } else {
        if text(source, "/name").is_empty() {
            c.required(&join(path, "name"), "must specify a resource name");
        }
        if kind == "containerResource" && text(source, "/container").is_empty() {
            c.required(&join(path, "container"), "must specify a container");
        }
    }
    check_target(c, target, &target_path);
    let average = join(&target_path, "averageValue");
    match kind {
        "object" if !has("value") && !has("averageValue") => {
            c.required(&average, "must set either a target value or averageValue");
        }
        "external" if !has("value") && !has("averageValue") => {
            c.required(&average, "must set either a target value for metric or a per-pod target");
        }
        "external" if has("value") && has("averageValue") => {
            let why = "may not set both a target value for metric and a per-pod target";
            c.forbidden(&join(&target_path, "value"), why);
        }
        "pods" if target.get("averageValue").and_then(quantity::of).is_none_or(|n| n <= 0) => {
            c.required(&average, "must specify a positive target averageValue");
        }
        "resource" | "containerResource" => {
            if !has("averageUtilization") && !has("averageValue") {
                let why = "must set either a target raw value or a target utilization";
                c.required(&join(&target_path, "averageUtilization"), why);
            }
            if has("averageUtilization") && has("averageValue") {
                c.forbidden(&average, "may not set both a target raw value and a target utilization");
            }
        }
        _ => {}
    }
}

fn check_target(c: &mut Check, target: &Value, path: &str) {
    let kind = text(target, "/type");
    match kind {
        "" => c.required(&join(path, "type"), "must specify a metric target type"),
        "Utilization" | "Value" | "AverageValue" => {}
        other => c.invalid(&join(path, "type"), other, "must be either Utilization, Value, or AverageValue"),
    }
    for name in ["value", "averageValue"] {
        if let Some(amount) = target.get(name).filter(|amount| quantity::of(amount).is_some_and(|n| n <= 0)) {
            c.invalid(&join(path, name), amount.clone(), "must be positive");
        }
    }
    if let Some(share) = target.get("averageUtilization").and_then(Value::as_i64).filter(|n| *n < 1) {
        c.invalid(&join(path, "averageUtilization"), share, "must be greater than 0");
    }
}

/// The longest window, and the longest period of a policy, in seconds.
const MAX_WINDOW: i64 = 3600;
const MAX_PERIOD: i64 = 1800;

fn scaling(c: &mut Check, rules: &Value, path: &str) {
    let field = join(path, "stabilizationWindowSeconds");
    match rules.get("stabilizationWindowSeconds").and_then(Value::as_i64) {
        Some(n) if n < 0 => c.invalid(&field, n, "must be greater than or equal to zero"),
        Some(n) if n > MAX_WINDOW => c.invalid(&field, n, &format!("must be less than or equal to {MAX_WINDOW}")),
        _ => {}
    }
    c.one_of(rules, path, "selectPolicy", &["Disabled", "Max", "Min"]);
    let policies = list(rules, "/policies");
    if policies.is_empty() {
        c.required(&join(path, "policies"), "must specify at least one Policy");
    }
    for (at, policy) in policies.iter().enumerate() {
        let path = element(path, "policies", at);
        let kind = text(policy, "/type");
        if !matches!(kind, "Percent" | "Pods") {
            c.not_supported(&join(&path, "type"), &Value::from(kind), &["Percent", "Pods"]);
        }
        for name in ["value", "periodSeconds"] {
            let number = policy.get(name).and_then(Value::as_i64).unwrap_or(0);
            if number <= 0 {
                c.invalid(&join(&path, name), number, "must be greater than zero");
            } else if name == "periodSeconds" && number > MAX_PERIOD {
                c.invalid(&join(&path, name), number, &format!("must be less than or equal to {MAX_PERIOD}"));
            }
        }
    }
    if let Some(tolerance) = rules.get("tolerance").filter(|t| quantity::of(t).is_some_and(|n| n < 0)) {
        c.invalid(&join(path, "tolerance"), tolerance.clone(), "must be greater than or equal to 0");
    }
}
