//! Controllers of pods. Upstream: `pkg/apis/apps/validation`, `pkg/apis/batch/validation`, `pkg/apis/autoscaling/validation`.

use serde_json::{Map, Value};

use super::{Check, FieldError, join, list, names, pod, selects, text};

const ALWAYS: &[&str] = &["Always"];

/// Selector and template, which must fit.
fn selected_template(c: &mut Check, spec: &Value, kind: &str) {
    let labels = spec.pointer("/template/metadata/labels");
    match spec.get("selector") {
        None => c.required("spec.selector", ""),
        Some(selector) => {
            c.selector(Some(selector), "spec.selector");
            let empty = selector.pointer("/matchLabels").and_then(Value::as_object).is_none_or(Map::is_empty)
                && list(selector, "/matchExpressions").is_empty();
            if empty {
                c.invalid("spec.selector", selector.clone(), &format!("empty selector is invalid for {kind}"));
            } else if !selects(selector, labels) {
                c.invalid(
                    "spec.template.metadata.labels",
                    labels.cloned().unwrap_or_else(|| Value::Object(Map::new())),
                    "`selector` does not match template `labels`",
                );
            }
        }
    }
}

fn counts(c: &mut Check, spec: &Value, fields: &[&str]) {
    for name in fields {
        c.at_least(spec, "spec", name, 0);
    }
}

fn unless_same_selector(c: &mut Check, value: &Value, old: Option<&Value>) {
    if let Some(old) = old {
        c.immutable(value, old, "spec.selector");
    }
}

pub(super) fn deployment(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    selected_template(c, spec, "deployment");
    pod::template(c, spec.get("template"), "spec.template", ALWAYS);
    counts(c, spec, &["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"]);
    rolling(c, spec.get("strategy"), "spec.strategy", &["Recreate", "RollingUpdate"]);
    let number = |name: &str| spec.get(name).and_then(Value::as_i64);
    if let (Some(deadline), Some(ready)) = (number("progressDeadlineSeconds"), number("minReadySeconds"))
        && deadline <= ready
    {
        c.invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds");
    }
    unless_same_selector(c, value, old);
}

fn rolling(c: &mut Check, strategy: Option<&Value>, path: &str, kinds: &[&str]) {
    let Some(strategy) = strategy else { return };
    c.one_of(strategy, path, "type", kinds);
    let Some(rolling) = strategy.get("rollingUpdate") else { return };
    let at = join(path, "rollingUpdate");
    if text(strategy, "/type") == "Recreate" {
        c.forbidden(&at, "may not be specified when strategy `type` is 'Recreate'");
        return;
    }
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    c.count_or_percent(&join(&at, "maxUnavailable"), unavailable);
    c.count_or_percent(&join(&at, "maxSurge"), surge);
    let zero = |v: Option<&Value>| v.is_some_and(|v| v == 0 || v == "0%");
    if zero(unavailable) && zero(surge) {
        c.invalid(
            &join(&at, "maxUnavailable"),
            unavailable.cloned().unwrap_or(Value::Null),
            "may not be 0 when `maxSurge` is 0",
        );
    }
}

pub(super) fn replica_set(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    selected_template(c, spec, "replica set");
    pod::template(c, spec.get("template"), "spec.template", ALWAYS);
    counts(c, spec, &["replicas", "minReadySeconds"]);
    unless_same_selector(c, value, old);
}

pub(super) fn replication_controller(c: &mut Check, value: &Value) {
    let spec = &value["spec"];
    counts(c, spec, &["replicas", "minReadySeconds"]);
    pod::template(c, spec.get("template"), "spec.template", ALWAYS);
}

pub(super) fn daemon_set(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    selected_template(c, spec, "daemonset");
    pod::template(c, spec.get("template"), "spec.template", ALWAYS);
    counts(c, spec, &["minReadySeconds", "revisionHistoryLimit"]);
    rolling(c, spec.get("updateStrategy"), "spec.updateStrategy", &["RollingUpdate", "OnDelete"]);
    unless_same_selector(c, value, old);
}

const STATEFUL_MUTABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

fn without(value: &Value, names: &[&str]) -> Value {
    let mut out = value.clone();
    if let Some(map) = out.as_object_mut() {
        map.retain(|name, v| !names.contains(&name.as_str()) && !v.is_null());
    }
    out
}

pub(super) fn stateful_set(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    selected_template(c, spec, "statefulset");
    pod::template(c, spec.get("template"), "spec.template", ALWAYS);
    counts(c, spec, &["replicas", "minReadySeconds", "revisionHistoryLimit"]);
    c.one_of(spec, "spec", "podManagementPolicy", &["OrderedReady", "Parallel"]);
    rolling(c, spec.get("updateStrategy"), "spec.updateStrategy", &["RollingUpdate", "OnDelete"]);
    if let Some(old) = old
        && without(spec, STATEFUL_MUTABLE) != without(&old["spec"], STATEFUL_MUTABLE)
    {
        c.forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
}

fn job_spec(c: &mut Check, spec: &Value, path: &str) {
    for name in ["parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"] {
        c.at_least(spec, path, name, 0);
    }
    c.one_of(spec, path, "completionMode", &["NonIndexed", "Indexed"]);
    if text(spec, "/completionMode") == "Indexed" && spec.get("completions").is_none() {
        c.required(&join(path, "completions"), "when completion mode is Indexed");
    }
    let policy = text(spec, "/template/spec/restartPolicy");
    pod::template(c, spec.get("template"), &join(path, "template"), &[]);
    let at = join(path, "template.spec.restartPolicy");
    match policy {
        "OnFailure" | "Never" => {}
        // Absent ones were defaulted to this.
        "Always" | "" => c.required(&at, "valid values: \"OnFailure\", \"Never\""),
        other => c.push(FieldError::not_supported(&at, &Value::from(other), &["OnFailure", "Never"])),
    }
}

pub(super) fn job(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    job_spec(c, spec, "spec");
    if let Some(selector) = spec.get("selector") {
        c.selector(Some(selector), "spec.selector");
        let labels = spec.pointer("/template/metadata/labels");
        if !selects(selector, labels) {
            c.invalid(
                "spec.template.metadata.labels",
                labels.cloned().unwrap_or_default(),
                "`selector` does not match template `labels`",
            );
        }
    }
    let Some(old) = old else { return };
    c.immutable(value, old, "spec.selector");
    c.immutable(value, old, "spec.completionMode");
    let old_spec = &old["spec"];
    if text(spec, "/completionMode") != "Indexed" {
        c.immutable(value, old, "spec.completions");
    }
    // A suspended job that has not started may still be told where to run.
    let waiting = old_spec.get("suspend") == Some(&Value::Bool(true)) && old.pointer("/status/startTime").is_none();
    let frame = |template: &Value| {
        let mut out = template.clone();
        if waiting && let Some(pod) = out.get_mut("spec").and_then(Value::as_object_mut) {
            for name in ["nodeSelector", "affinity", "tolerations", "schedulingGates"] {
                pod.remove(name);
            }
        }
        if waiting && let Some(metadata) = out.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("labels");
            metadata.remove("annotations");
        }
        out
    };
    if frame(&spec["template"]) != frame(&old_spec["template"]) {
        c.invalid("spec.template", spec["template"].clone(), "field is immutable");
    }
}

/// The suffix that the controller adds to a job's name needs eleven characters.
const MAX_CRON_JOB_NAME: usize = 52;

pub(super) fn cron_job(c: &mut Check, value: &Value) {
    if text(value, "/metadata/name").len() > MAX_CRON_JOB_NAME {
        c.invalid("metadata.name", text(value, "/metadata/name"), "must be no more than 52 characters");
    }
    let spec = &value["spec"];
    let schedule = c.needs(spec, "spec", "schedule");
    if !schedule.is_empty() && !is_schedule(schedule) {
        c.invalid("spec.schedule", schedule, "expected exactly 5 fields, or a descriptor such as @hourly");
    }
    if schedule.contains("TZ") {
        c.invalid("spec.schedule", schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
    }
    c.one_of(spec, "spec", "concurrencyPolicy", &["Allow", "Forbid", "Replace"]);
    counts(c, spec, &["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"]);
    job_spec(c, spec.pointer("/jobTemplate/spec").unwrap_or(&Value::Null), "spec.jobTemplate.spec");
}

fn is_schedule(text: &str) -> bool {
    if text.starts_with('@') {
        return matches!(text, "@yearly" | "@annually" | "@monthly" | "@weekly" | "@daily" | "@midnight" | "@hourly")
            || text.strip_prefix("@every ").is_some_and(super::super::formats::duration);
    }
    let fields: Vec<&str> =
        text.split_whitespace().filter(|f| !f.starts_with("TZ=") && !f.starts_with("CRON_TZ=")).collect();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '*' | '/' | ',' | '-' | '?');
    fields.len() == 5 && fields.iter().all(|f| f.chars().all(allowed))
}

pub(super) fn autoscaler(c: &mut Check, value: &Value) {
    let spec = &value["spec"];
    let most = spec.get("maxReplicas").and_then(Value::as_i64).unwrap_or(0);
    let least = spec.get("minReplicas").and_then(Value::as_i64).unwrap_or(1);
    if least < 1 {
        c.invalid("spec.minReplicas", least, "must be greater than or equal to 1");
    }
    if most < 1 {
        c.invalid("spec.maxReplicas", most, "must be greater than 0");
    } else if most < least {
        c.invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`");
    }
    for name in ["kind", "name"] {
        let path = "spec.scaleTargetRef";
        let word = c.needs(&spec["scaleTargetRef"], path, name);
        c.holds(&join(path, name), word, names::path_segment);
    }
    for (at, metric) in list(spec, "/metrics").iter().enumerate() {
        if text(metric, "/type").is_empty() {
            c.required(&join(&super::element("spec", "metrics", at), "type"), "must specify a metric source type");
        }
    }
}
