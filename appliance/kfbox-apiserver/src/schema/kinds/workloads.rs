//! Controllers of pods that run for ever. Upstream: `pkg/apis/apps/validation`, and for ReplicationControllers
//! `pkg/apis/core/validation`.

use serde_json::{Map, Value};

use super::{Check, join, list, meta, pod, selects, text};

/// A selector, which must not be empty.
fn selector(c: &mut Check, spec: &Value, kind: &str) {
    let Some(selector) = spec.get("selector") else { return c.required("spec.selector", "") };
    c.selector(Some(selector), "spec.selector");
    if is_empty(selector) {
        c.invalid("spec.selector", selector.clone(), &format!("empty selector is invalid for {kind}"));
    }
}

fn is_empty(selector: &Value) -> bool {
    selector.pointer("/matchLabels").and_then(Value::as_object).is_none_or(Map::is_empty)
        && list(selector, "/matchExpressions").is_empty()
}

fn selected(c: &mut Check, spec: &Value) {
    let labels = spec.pointer("/template/metadata/labels");
    // An absent selector selects nothing, an empty one everything.
    let fits = spec.get("selector").is_some_and(|selector| is_empty(selector) || selects(selector, labels));
    if !fits {
        c.invalid(
            "spec.template.metadata.labels",
            labels.cloned().unwrap_or_default(),
            "`selector` does not match template `labels`",
        );
    }
}

fn template(c: &mut Check, spec: &Value, kind: &str) {
    selected(c, spec);
    pod::template(c, spec.get("template"), "spec.template");
    if let Some(template) = spec.get("template") {
        pod::runs_forever(c, template, "spec.template", kind);
    }
}

fn counts(c: &mut Check, spec: &Value, fields: &[&str]) {
    for name in fields {
        c.at_least(spec, "spec", name, 0);
    }
}

fn same_selector(c: &mut Check, value: &Value, old: Option<&Value>) {
    if let Some(old) = old {
        c.immutable(value, old, "spec.selector");
    }
}

pub(super) fn deployment(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    counts(c, spec, &["replicas"]);
    selector(c, spec, "deployment");
    template(c, spec, "ReplicaSet");
    strategy(c, spec.get("strategy").unwrap_or(&Value::Null));
    counts(c, spec, &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"]);
    let number = |name: &str| spec.get(name).and_then(Value::as_i64);
    if let Some(deadline) = number("progressDeadlineSeconds")
        && deadline <= number("minReadySeconds").unwrap_or(0)
    {
        c.invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds");
    }
    same_selector(c, value, old);
}

fn is_zero(value: Option<&Value>) -> bool {
    value.is_none_or(|v| v == 0 || v.as_str().and_then(|s| s.strip_suffix('%')).is_some_and(|n| n.parse() == Ok(0)))
}

fn strategy(c: &mut Check, strategy: &Value) {
    let path = "spec.strategy";
    let rolling = strategy.get("rollingUpdate");
    let at = join(path, "rollingUpdate");
    match text(strategy, "/type") {
        "Recreate" => {
            if rolling.is_some() {
                c.forbidden(&at, "may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "RollingUpdate" => {
            let Some(rolling) = rolling else { return c.required(&at, "this should be defaulted and never be nil") };
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            let field = join(&at, "maxUnavailable");
            c.count_or_percent(&field, unavailable);
            c.count_or_percent(&join(&at, "maxSurge"), surge);
            if is_zero(unavailable) && is_zero(surge) {
                c.invalid(&field, unavailable.cloned().unwrap_or_default(), "may not be 0 when `maxSurge` is 0");
            }
            c.at_most_all(&field, unavailable);
        }
        other => c.not_supported(&join(path, "type"), &Value::from(other), &["Recreate", "RollingUpdate"]),
    }
}

pub(super) fn replica_set(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    counts(c, spec, &["replicas", "minReadySeconds"]);
    // Upstream's wording.
    selector(c, spec, "deployment");
    template(c, spec, "ReplicaSet");
    same_selector(c, value, old);
}

pub(super) fn replication_controller(c: &mut Check, value: &Value) {
    let spec = &value["spec"];
    counts(c, spec, &["minReadySeconds"]);
    let labels = spec.get("selector").and_then(Value::as_object);
    if labels.is_none_or(Map::is_empty) {
        c.required("spec.selector", "");
    }
    counts(c, spec, &["replicas"]);
    let Some(template) = spec.get("template") else { return c.required("spec.template", "") };
    let on_template = template.pointer("/metadata/labels");
    let fits = labels.into_iter().flatten().all(|(name, value)| on_template.and_then(|l| l.get(name)) == Some(value));
    if !fits {
        c.invalid(
            "spec.template.metadata.labels",
            on_template.cloned().unwrap_or_default(),
            "`selector` does not match template `labels`",
        );
    }
    pod::template(c, Some(template), "spec.template");
    pod::runs_forever(c, template, "spec.template", "ReplicationController");
}

pub(super) fn daemon_set(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    if let Some(selector) = spec.get("selector") {
        c.selector(Some(selector), "spec.selector");
    }
    selected(c, spec);
    if let Some(selector) = spec.get("selector").filter(|s| is_empty(s)) {
        c.invalid("spec.selector", selector.clone(), "empty selector is invalid for daemonset");
    }
    pod::template(c, spec.get("template"), "spec.template");
    if let Some(template) = spec.get("template") {
        pod::runs_forever(c, template, "spec.template", "DaemonSet");
    }
    counts(c, spec, &["minReadySeconds"]);
    daemon_strategy(c, spec.get("updateStrategy").unwrap_or(&Value::Null));
    counts(c, spec, &["revisionHistoryLimit"]);
    same_selector(c, value, old);
}

fn daemon_strategy(c: &mut Check, strategy: &Value) {
    let at = "spec.updateStrategy.rollingUpdate";
    match text(strategy, "/type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let Some(rolling) = strategy.get("rollingUpdate") else { return c.required(at, "") };
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            for (name, value) in [("maxUnavailable", unavailable), ("maxSurge", surge)] {
                c.count_or_percent(&join(at, name), value);
                c.at_most_all(&join(at, name), value);
            }
            match (is_zero(unavailable), is_zero(surge)) {
                (false, false) => {
                    let shown = surge.cloned().unwrap_or_default();
                    c.invalid(&join(at, "maxSurge"), shown, "may not be set when maxUnavailable is non-zero");
                }
                (true, true) => c.required(&join(at, "maxUnavailable"), "cannot be 0 when maxSurge is 0"),
                _ => {}
            }
        }
        other => c.not_supported("spec.updateStrategy.type", &Value::from(other), &["RollingUpdate", "OnDelete"]),
    }
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
    let management = text(spec, "/podManagementPolicy");
    if !matches!(management, "OrderedReady" | "Parallel") {
        c.invalid("spec.podManagementPolicy", management, "must be 'OrderedReady' or 'Parallel'");
    }
    let strategy = spec.get("updateStrategy").unwrap_or(&Value::Null);
    let rolling = strategy.get("rollingUpdate");
    match text(strategy, "/type") {
        "" => c.required("spec.updateStrategy", ""),
        "OnDelete" => {
            if let Some(rolling) = rolling {
                let why = "only allowed for updateStrategy 'RollingUpdate'";
                c.invalid("spec.updateStrategy.rollingUpdate", rolling.clone(), why);
            }
        }
        "RollingUpdate" => {
            let at = "spec.updateStrategy.rollingUpdate";
            let rolling = rolling.unwrap_or(&Value::Null);
            c.at_least(rolling, at, "partition", 0);
            let unavailable = rolling.get("maxUnavailable");
            if unavailable.is_some() {
                let field = join(at, "maxUnavailable");
                c.count_or_percent(&field, unavailable);
                if is_zero(unavailable) {
                    c.invalid(&field, unavailable.cloned().unwrap_or_default(), "cannot be 0");
                }
                c.at_most_all(&field, unavailable);
            }
        }
        _ => c.invalid("spec.updateStrategy", strategy.clone(), "must be 'RollingUpdate' or 'OnDelete'"),
    }
    let kept = spec.get("persistentVolumeClaimRetentionPolicy").unwrap_or(&Value::Null);
    for name in ["whenDeleted", "whenScaled"] {
        c.one_of(kept, "spec.persistentVolumeClaimRetentionPolicy", name, &["Retain", "Delete"]);
    }
    counts(c, spec, &["replicas", "minReadySeconds"]);
    if let Some(ordinals) = spec.get("ordinals") {
        c.at_least(ordinals, "spec.ordinals", "start", 0);
    }
    selector(c, spec, "statefulset");
    selected(c, spec);
    // As upstream, which leaves the pods' own rules to the pods: volumes of the claims below are not among the template's.
    let template = spec.get("template").unwrap_or(&Value::Null);
    meta::labels(c, template.get("metadata").unwrap_or(&Value::Null), "spec.template");
    pod::runs_forever(c, template, "spec.template", "StatefulSet");
    counts(c, spec, &["revisionHistoryLimit"]);
    if let Some(old) = old
        && without(spec, STATEFUL_MUTABLE) != without(&old["spec"], STATEFUL_MUTABLE)
    {
        c.forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
}

pub(super) fn controller_revision(c: &mut Check, value: &Value, old: Option<&Value>) {
    if value.get("data").is_none_or(Value::is_null) {
        c.required("data", "data is mandatory");
    }
    c.at_least(value, "", "revision", 0);
    if let Some(old) = old {
        c.immutable(value, old, "data");
    }
}
