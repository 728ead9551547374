//! Rows of controllers of pods.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{Column, Row, age, age_of, int_at, list_at, name, or, parse_time, selector, text_at};

fn containers(object: &Value, pointer: &str, field: &str) -> Value {
    let words: Vec<&str> = list_at(object, pointer).iter().map(|c| text_at(c, field)).collect();
    Value::from(words.join(","))
}

/// Containers, images, selector: the wide columns of every workload.
fn wide(object: &Value, pod: &str) -> [Value; 3] {
    [
        containers(object, &format!("{pod}/containers"), "/name"),
        containers(object, &format!("{pod}/containers"), "/image"),
        selector(object.pointer("/spec/selector"), "<none>"),
    ]
}

const POD: &str = "/spec/template/spec";

pub(super) const DEPLOYMENT: &[Column] = &[
    ("Name", "string", 0),
    ("Ready", "string", 0),
    ("Up-to-date", "integer", 0),
    ("Available", "integer", 0),
    ("Age", "string", 0),
    ("Containers", "string", 1),
    ("Images", "string", 1),
    ("Selector", "string", 1),
];

pub(super) fn deployment(object: &Value, now: DateTime<Utc>) -> Row {
    let mut row = vec![
        name(object),
        Value::from(format!("{}/{}", int_at(object, "/status/readyReplicas"), int_at(object, "/spec/replicas"))),
        Value::from(int_at(object, "/status/updatedReplicas")),
        Value::from(int_at(object, "/status/availableReplicas")),
        age(object, now),
    ];
    row.extend(wide(object, POD));
    row
}

pub(super) const REPLICA_SET: &[Column] = &[
    ("Name", "string", 0),
    ("Desired", "integer", 0),
    ("Current", "integer", 0),
    ("Ready", "integer", 0),
    ("Age", "string", 0),
    ("Containers", "string", 1),
    ("Images", "string", 1),
    ("Selector", "string", 1),
];

pub(super) fn replica_set(object: &Value, now: DateTime<Utc>) -> Row {
    let mut row = vec![
        name(object),
        Value::from(int_at(object, "/spec/replicas")),
        Value::from(int_at(object, "/status/replicas")),
        Value::from(int_at(object, "/status/readyReplicas")),
        age(object, now),
    ];
    row.extend(wide(object, POD));
    row
}

pub(super) const STATEFUL_SET: &[Column] = &[
    ("Name", "string", 0),
    ("Ready", "string", 0),
    ("Age", "string", 0),
    ("Containers", "string", 1),
    ("Images", "string", 1),
];

pub(super) fn stateful_set(object: &Value, now: DateTime<Utc>) -> Row {
    let [names, images, _] = wide(object, POD);
    vec![
        name(object),
        Value::from(format!("{}/{}", int_at(object, "/status/readyReplicas"), int_at(object, "/spec/replicas"))),
        age(object, now),
        names,
        images,
    ]
}

pub(super) const DAEMON_SET: &[Column] = &[
    ("Name", "string", 0),
    ("Desired", "integer", 0),
    ("Current", "integer", 0),
    ("Ready", "integer", 0),
    ("Up-to-date", "integer", 0),
    ("Available", "integer", 0),
    ("Node Selector", "string", 0),
    ("Age", "string", 0),
    ("Containers", "string", 1),
    ("Images", "string", 1),
    ("Selector", "string", 1),
];

pub(super) fn daemon_set(object: &Value, now: DateTime<Utc>) -> Row {
    let mut row = vec![name(object)];
    for field in
        ["desiredNumberScheduled", "currentNumberScheduled", "numberReady", "updatedNumberScheduled", "numberAvailable"]
    {
        row.push(Value::from(int_at(object, &format!("/status/{field}"))));
    }
    row.push(selector(object.pointer("/spec/template/spec/nodeSelector"), "<none>"));
    row.push(age(object, now));
    row.extend(wide(object, POD));
    row
}

pub(super) const JOB: &[Column] = &[
    ("Name", "string", 0),
    ("Status", "string", 0),
    ("Completions", "string", 0),
    ("Duration", "string", 0),
    ("Age", "string", 0),
    ("Containers", "string", 1),
    ("Images", "string", 1),
    ("Selector", "string", 1),
];

pub(super) fn job(object: &Value, now: DateTime<Utc>) -> Row {
    let has = |kind: &str| {
        list_at(object, "/status/conditions")
            .iter()
            .any(|c| text_at(c, "/type") == kind && text_at(c, "/status") == "True")
    };
    let status = match () {
        () if has("Complete") => "Complete",
        () if has("Failed") => "Failed",
        () if object.pointer("/metadata/deletionTimestamp").is_some_and(|v| !v.is_null()) => "Terminating",
        () if has("Suspended") => "Suspended",
        () if has("FailureTarget") => "FailureTarget",
        () if has("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    };
    let succeeded = int_at(object, "/status/succeeded");
    let completions = match object.pointer("/spec/completions").and_then(Value::as_i64) {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None => match int_at(object, "/spec/parallelism") {
            parallel if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
            _ => format!("{succeeded}/1"),
        },
    };
    let took = parse_time(object.pointer("/status/startTime")).map_or_else(String::new, |start| {
        let end = parse_time(object.pointer("/status/completionTime")).unwrap_or(now);
        super::human_duration((end - start).num_seconds())
    });
    let mut row =
        vec![name(object), Value::from(status), Value::from(completions), Value::from(took), age(object, now)];
    row.extend(wide(object, POD));
    row
}

pub(super) const CRON_JOB: &[Column] = &[
    ("Name", "string", 0),
    ("Schedule", "string", 0),
    ("Timezone", "string", 0),
    ("Suspend", "boolean", 0),
    ("Active", "integer", 0),
    ("Last Schedule", "string", 0),
    ("Age", "string", 0),
    ("Containers", "string", 1),
    ("Images", "string", 1),
    ("Selector", "string", 1),
];

pub(super) fn cron_job(object: &Value, now: DateTime<Utc>) -> Row {
    let last = match object.pointer("/status/lastScheduleTime") {
        Some(time) if !time.is_null() => age_of(Some(time), now),
        _ => "<none>".to_owned(),
    };
    let [names, images, _] = wide(object, "/spec/jobTemplate/spec/template/spec");
    let suspended = object.pointer("/spec/suspend") == Some(&Value::Bool(true));
    vec![
        name(object),
        Value::from(text_at(object, "/spec/schedule")),
        or(text_at(object, "/spec/timeZone"), "<none>"),
        Value::from(if suspended { "True" } else { "False" }),
        Value::from(list_at(object, "/status/active").len()),
        Value::from(last),
        age(object, now),
        names,
        images,
        selector(object.pointer("/spec/jobTemplate/spec/selector"), "<none>"),
    ]
}

pub(super) const AUTOSCALER: &[Column] = &[
    ("Name", "string", 0),
    ("Reference", "string", 0),
    ("Targets", "string", 0),
    ("MinPods", "string", 0),
    ("MaxPods", "integer", 0),
    ("Replicas", "integer", 0),
    ("Age", "string", 0),
];

pub(super) fn autoscaler(object: &Value, now: DateTime<Utc>) -> Row {
    // Version 1 hides most metrics in annotations; what is printed is the same for both.
    let whole = crate::convert::newest(object);
    let object = whole.as_ref();
    let target = |metric: &Value, index: usize| -> String {
        let kind = text_at(metric, "/type");
        let field = match kind {
            "ContainerResource" => "containerResource".to_owned(),
            other => {
                other.chars().next().map(|c| c.to_ascii_lowercase()).into_iter().chain(other.chars().skip(1)).collect()
            }
        };
        let current = object.pointer(&format!("/status/currentMetrics/{index}/{field}/current"));
        let wanted = metric.get(&field).and_then(|m| m.get("target"));
        let show = |value: Option<&Value>| -> Option<String> {
            let value = value?;
            if let Some(percent) = value.get("averageUtilization").and_then(Value::as_i64) {
                return Some(format!("{percent}%"));
            }
            let text = value.get("averageValue").or_else(|| value.get("value")).and_then(Value::as_str)?;
            Some(text.to_owned())
        };
        let label = if kind == "Resource" { format!("{}: ", text_at(metric, "/resource/name")) } else { String::new() };
        format!(
            "{label}{}/{}",
            show(current).unwrap_or_else(|| "<unknown>".into()),
            show(wanted).unwrap_or_else(|| "<auto>".into())
        )
    };
    let metrics = list_at(object, "/spec/metrics");
    let targets = if metrics.is_empty() {
        match object.pointer("/spec/targetCPUUtilizationPercentage").and_then(Value::as_i64) {
            Some(wanted) => match object.pointer("/status/currentCPUUtilizationPercentage").and_then(Value::as_i64) {
                Some(current) => format!("cpu: {current}%/{wanted}%"),
                None => format!("cpu: <unknown>/{wanted}%"),
            },
            None => "<none>".to_owned(),
        }
    } else {
        let shown: Vec<String> = metrics.iter().take(2).enumerate().map(|(i, m)| target(m, i)).collect();
        let more = if metrics.len() > 2 { format!(" + {} more...", metrics.len() - 2) } else { String::new() };
        format!("{}{more}", shown.join(", "))
    };
    vec![
        name(object),
        Value::from(format!(
            "{}/{}",
            text_at(object, "/spec/scaleTargetRef/kind"),
            text_at(object, "/spec/scaleTargetRef/name")
        )),
        Value::from(targets),
        object.pointer("/spec/minReplicas").map_or_else(|| Value::from("<unset>"), |v| Value::from(v.to_string())),
        Value::from(int_at(object, "/spec/maxReplicas")),
        Value::from(int_at(object, "/status/currentReplicas")),
        age(object, now),
    ]
}
