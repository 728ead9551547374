//! The pod row, whose STATUS is what people look at first. Upstream: `printPod` in `pkg/printers/internalversion`.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{Column, Row, age, age_of, int_at, list_at, name, or, parse_time, text_at};

pub(super) const COLUMNS: &[Column] = &[
    ("Name", "string", 0),
    ("Ready", "string", 0),
    ("Status", "string", 0),
    ("Restarts", "string", 0),
    ("Age", "string", 0),
    ("IP", "string", 1),
    ("Node", "string", 1),
    ("Nominated Node", "string", 1),
    ("Readiness Gates", "string", 1),
];

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    list_at(pod, "/status/conditions").iter().find(|c| text_at(c, "/type") == kind)
}

fn terminated(state: &Value) -> String {
    let reason = text_at(state, "/reason");
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match int_at(state, "/signal") {
        0 => format!("ExitCode:{}", int_at(state, "/exitCode")),
        signal => format!("Signal:{signal}"),
    }
}

/// A restartable init container, which counts like an ordinary one.
fn is_sidecar(pod: &Value, status: &Value) -> bool {
    list_at(pod, "/spec/initContainers")
        .iter()
        .any(|c| text_at(c, "/name") == text_at(status, "/name") && text_at(c, "/restartPolicy") == "Always")
}

struct Summary {
    reason: String,
    ready: i64,
    total: i64,
    restarts: i64,
    last_restart: Option<DateTime<Utc>>,
}

pub(super) fn row(pod: &Value, now: DateTime<Utc>) -> Row {
    let summary = summarize(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, super::human_duration((now - at).num_seconds()))
        }
        _ => summary.restarts.to_string(),
    };
    let ips: Vec<&str> = list_at(pod, "/status/podIPs").iter().map(|ip| text_at(ip, "/ip")).collect();
    let ip = ips.first().copied().unwrap_or_else(|| text_at(pod, "/status/podIP"));
    let gates = list_at(pod, "/spec/readinessGates");
    let gates = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        let met = gates
            .iter()
            .filter(|g| condition(pod, text_at(g, "/conditionType")).is_some_and(|c| text_at(c, "/status") == "True"));
        format!("{}/{}", met.count(), gates.len())
    };
    vec![
        name(pod),
        Value::from(format!("{}/{}", summary.ready, summary.total)),
        Value::from(summary.reason),
        Value::from(restarts),
        age(pod, now),
        or(ip, "<none>"),
        or(text_at(pod, "/spec/nodeName"), "<none>"),
        or(text_at(pod, "/status/nominatedNodeName"), "<none>"),
        Value::from(gates),
    ]
}

fn summarize(pod: &Value) -> Summary {
    let mut total = list_at(pod, "/spec/containers").len() as i64;
    let init_specs = list_at(pod, "/spec/initContainers");
    total += init_specs.iter().filter(|c| text_at(c, "/restartPolicy") == "Always").count() as i64;
    let mut reason = text_at(pod, "/status/phase").to_owned();
    if reason.is_empty() {
        reason = "Unknown".to_owned();
    }
    let status_reason = text_at(pod, "/status/reason");
    if !status_reason.is_empty() {
        reason = status_reason.to_owned();
    }
    if let Some(scheduled) = condition(pod, "PodScheduled")
        && text_at(scheduled, "/reason") == "SchedulingGated"
    {
        reason = "SchedulingGated".to_owned();
    }
    let mut out = Summary { reason, ready: 0, total, restarts: 0, last_restart: None };
    let mut sidecar_restarts = 0;
    let mut sidecar_last: Option<DateTime<Utc>> = None;
    let mut initializing = false;
    for (at, status) in list_at(pod, "/status/initContainerStatuses").iter().enumerate() {
        let restarts = int_at(status, "/restartCount");
        let last = parse_time(status.pointer("/lastState/terminated/finishedAt"));
        out.restarts += restarts;
        out.last_restart = out.last_restart.max(last);
        let sidecar = is_sidecar(pod, status);
        if sidecar {
            sidecar_restarts += restarts;
            sidecar_last = sidecar_last.max(last);
        }
        if let Some(state) = status.pointer("/state/terminated") {
            if int_at(state, "/exitCode") == 0 {
                continue;
            }
            out.reason = format!("Init:{}", terminated(state));
        } else if sidecar && status.get("started") == Some(&Value::Bool(true)) {
            if status.get("ready") == Some(&Value::Bool(true)) {
                out.ready += 1;
            }
            continue;
        } else {
            let waiting = text_at(status, "/state/waiting/reason");
            out.reason = if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{at}/{}", init_specs.len())
            };
        }
        initializing = true;
        break;
    }
    let initialized = condition(pod, "Initialized").is_some_and(|c| text_at(c, "/status") == "True");
    if !initializing || initialized {
        out.restarts = sidecar_restarts;
        out.last_restart = sidecar_last;
        let mut running = false;
        for status in list_at(pod, "/status/containerStatuses").iter().rev() {
            out.restarts += int_at(status, "/restartCount");
            out.last_restart = out.last_restart.max(parse_time(status.pointer("/lastState/terminated/finishedAt")));
            let waiting = text_at(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                out.reason = waiting.to_owned();
            } else if let Some(state) = status.pointer("/state/terminated") {
                out.reason = terminated(state);
            } else if status.get("ready") == Some(&Value::Bool(true)) && status.pointer("/state/running").is_some() {
                running = true;
                out.ready += 1;
            }
        }
        if out.reason == "Completed" && running {
            let ready = condition(pod, "Ready").is_some_and(|c| text_at(c, "/status") == "True");
            out.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if pod.pointer("/metadata/deletionTimestamp").is_some_and(|v| !v.is_null()) {
        if status_reason == "NodeLost" {
            out.reason = "Unknown".to_owned();
        } else if !matches!(text_at(pod, "/status/phase"), "Failed" | "Succeeded") {
            out.reason = "Terminating".to_owned();
        }
    }
    out
}

/// `Last seen` and such: age of the newest of some times.
pub(super) fn newest_age(object: &Value, pointers: &[&str], now: DateTime<Utc>) -> Value {
    let found = pointers.iter().find(|p| parse_time(object.pointer(p)).is_some());
    Value::from(age_of(found.and_then(|p| object.pointer(p)), now))
}
