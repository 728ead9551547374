//! Jobs and CronJobs. Upstream: `pkg/apis/batch/validation`.

use std::collections::HashSet;

use serde_json::Value;

use super::{Check, FieldError, element, join, list, names, pod, selects, text};

/// The most pods of one indexed job that may run at once.
const MAX_PARALLEL_INDEXED: i64 = 100_000;
/// The longest name of a job's foreign controller.
const MAX_MANAGED_BY: usize = 63;

fn number(spec: &Value, name: &str) -> Option<i64> {
    spec.get(name).and_then(Value::as_i64)
}

fn is_indexed(spec: &Value) -> bool {
    text(spec, "/completionMode") == "Indexed"
}

fn job_spec(c: &mut Check, spec: &Value, path: &str) {
    for name in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        c.at_least(spec, path, name, 0);
    }
    if spec.get("maxFailedIndexes").is_some() && spec.get("backoffLimitPerIndex").is_none() {
        c.required(&join(path, "backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if let Some(manager) = spec.get("managedBy").and_then(Value::as_str) {
        c.domain_prefixed_path(&join(path, "managedBy"), manager);
        if manager.len() > MAX_MANAGED_BY {
            c.push(FieldError::too_long(&join(path, "managedBy"), MAX_MANAGED_BY));
        }
    }
    c.one_of(spec, path, "completionMode", &["NonIndexed", "Indexed"]);
    if is_indexed(spec) {
        if spec.get("completions").is_none() {
            c.required(&join(path, "completions"), "when completion mode is Indexed");
        }
        if let Some(parallel) = number(spec, "parallelism").filter(|n| *n > MAX_PARALLEL_INDEXED) {
            let why = format!("must be less than or equal to {MAX_PARALLEL_INDEXED} when completion mode is Indexed");
            c.invalid(&join(path, "parallelism"), parallel, &why);
        }
    } else {
        for name in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(found) = number(spec, name) {
                c.invalid(&join(path, name), found, "requires indexed completion mode");
            }
        }
    }
    if let Some(policy) = spec.get("podFailurePolicy") {
        failure_policy(c, spec, policy, &join(path, "podFailurePolicy"));
    }
    if let Some(policy) = spec.get("successPolicy") {
        success_policy(c, spec, policy, &join(path, "successPolicy"));
    }
    let replaced: &[&str] =
        if spec.get("podFailurePolicy").is_some() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    c.one_of(spec, path, "podReplacementPolicy", replaced);
    pod::template(c, spec.get("template"), &join(path, "template"));
    let at = join(path, "template.spec.restartPolicy");
    match text(spec, "/template/spec/restartPolicy") {
        "OnFailure" if spec.get("podFailurePolicy").is_some() => {
            c.invalid(&at, "OnFailure", "only \"Never\" is supported when podFailurePolicy is specified");
        }
        "OnFailure" | "Never" => {}
        // Absent ones were defaulted to this.
        "Always" | "" => c.required(&at, "valid values: \"OnFailure\", \"Never\""),
        other => c.not_supported(&at, &Value::from(other), &["OnFailure", "Never"]),
    }
}

/// Upstream's bounds on rules and on what each lists.
const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;

fn failure_policy(c: &mut Check, spec: &Value, policy: &Value, path: &str) {
    let rules = list(policy, "/rules");
    if rules.len() > MAX_RULES {
        c.push(FieldError::too_many(&join(path, "rules"), rules.len(), MAX_RULES));
    }
    let containers: HashSet<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|kind| list(spec, &format!("/template/spec/{kind}")))
        .map(|one| text(one, "/name"))
        .collect();
    for (at, rule) in rules.iter().enumerate() {
        let path = element(path, "rules", at);
        let actions = ["Count", "FailIndex", "FailJob", "Ignore"];
        match text(rule, "/action") {
            "" => {
                let shown: Vec<String> = actions.iter().map(|a| format!("{a:?}")).collect();
                c.required(&join(&path, "action"), &format!("valid values: {}", shown.join(", ")));
            }
            "FailIndex" if spec.get("backoffLimitPerIndex").is_none() => {
                c.invalid(&join(&path, "action"), "FailIndex", "requires the backoffLimitPerIndex to be set");
            }
            _ => c.one_of(rule, &path, "action", &actions),
        }
        let (codes, conditions) = (rule.get("onExitCodes"), list(rule, "/onPodConditions"));
        match (codes, conditions.is_empty()) {
            (Some(_), false) => omitted(c, &path, "specifying both OnExitCodes and OnPodConditions is not supported"),
            (None, true) => omitted(c, &path, "specifying one of OnExitCodes and OnPodConditions is required"),
            _ => {}
        }
        if let Some(codes) = codes {
            exit_codes(c, codes, &join(&path, "onExitCodes"), &containers);
        }
        for (at, condition) in conditions.iter().enumerate() {
            let path = element(&path, "onPodConditions", at);
            c.named(condition, &path, "type", names::qualified);
            c.exactly_one_of(condition, &path, "status", &["False", "True", "Unknown"]);
        }
    }
}

/// An error about a place whose value says nothing.
fn omitted(c: &mut Check, path: &str, why: &str) {
    let mut error = FieldError::invalid(path, &Value::Null, why);
    error.message = format!("Invalid value: {why}");
    c.push(error);
}

fn exit_codes(c: &mut Check, codes: &Value, path: &str, containers: &HashSet<&str>) {
    let operator = text(codes, "/operator");
    match operator {
        "" => c.required(&join(path, "operator"), "valid values: \"In\", \"NotIn\""),
        _ => c.one_of(codes, path, "operator", &["In", "NotIn"]),
    }
    if let Some(name) = codes.get("containerName").and_then(Value::as_str)
        && !containers.contains(name)
    {
        let why = "must be one of the container or initContainer names in the pod template";
        c.invalid(&join(path, "containerName"), name, why);
    }
    let values: Vec<i64> = list(codes, "/values").iter().filter_map(Value::as_i64).collect();
    let field = join(path, "values");
    if values.is_empty() {
        c.invalid(&field, list(codes, "/values").to_vec(), "at least one value is required");
    } else if values.len() > MAX_EXIT_CODES {
        c.push(FieldError::too_many(&field, values.len(), MAX_EXIT_CODES));
    }
    let mut seen = HashSet::new();
    for (at, value) in values.iter().enumerate() {
        let field = super::index(&field, at);
        if *value == 0 && operator == "In" {
            c.invalid(&field, 0, "must not be 0 for the In operator");
        }
        if !seen.insert(value) {
            c.duplicate(&field, *value);
        }
    }
    if !values.is_sorted() {
        c.invalid(&field, list(codes, "/values").to_vec(), "must be ordered");
    }
}

fn success_policy(c: &mut Check, spec: &Value, policy: &Value, path: &str) {
    if !is_indexed(spec) {
        return c.invalid(path, policy.clone(), "requires indexed completion mode");
    }
    let rules = list(policy, "/rules");
    let field = join(path, "rules");
    if rules.is_empty() {
        c.required(&field, "at least one rules must be specified when the successPolicy is specified");
    }
    if rules.len() > MAX_RULES {
        c.push(FieldError::too_many(&field, rules.len(), MAX_RULES));
    }
    for (at, rule) in rules.iter().enumerate() {
        let path = element(path, "rules", at);
        let count = number(rule, "succeededCount");
        if count.is_none() && rule.get("succeededIndexes").is_none() {
            c.required(&path, "at least one of succeededCount or succeededIndexes must be specified");
        }
        c.at_least(rule, &path, "succeededCount", 0);
        if let (Some(count), Some(all)) = (count, number(spec, "completions"))
            && count > all
        {
            let why = format!("must be less than or equal to {all} (the number of specified completions)");
            c.invalid(&join(&path, "succeededCount"), count, &why);
        }
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
    let Some(old) = old else {
        let name = text(value, "/metadata/name");
        let last = number(spec, "completions").unwrap_or(0) - 1;
        if is_indexed(spec) && last >= 0 && !name.is_empty() {
            let faults = names::dns_label(&format!("{name}-{last}"));
            if !faults.is_empty() {
                let why = format!("will not able to create pod with invalid DNS label name: {}", faults.join(" "));
                c.invalid("metadata.name", name, &why);
            }
        }
        return;
    };
    update(c, value, old);
}

/// Where a pod goes, which a job that waits may still be told.
const DIRECTIVES: &[&str] = &["nodeSelector", "affinity", "tolerations", "schedulingGates"];

fn update(c: &mut Check, value: &Value, old: &Value) {
    let (spec, old_spec) = (&value["spec"], &old["spec"]);
    completions(c, spec, old_spec);
    c.immutable(value, old, "spec.selector");
    // A suspended job that has not started may still be told where to run.
    let waiting = old_spec.get("suspend") == Some(&Value::Bool(true)) && old.pointer("/status/startTime").is_none();
    let frame = |template: &Value| {
        let mut out = template.clone();
        if waiting && let Some(pod) = out.get_mut("spec").and_then(Value::as_object_mut) {
            pod.retain(|name, _| !DIRECTIVES.contains(&name.as_str()));
            for list in ["containers", "initContainers"] {
                let all = pod.get_mut(list).and_then(Value::as_array_mut);
                for one in all.into_iter().flatten().filter_map(Value::as_object_mut) {
                    one.remove("resources");
                }
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
    for name in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        c.immutable(value, old, &join("spec", name));
    }
}

/// An indexed job may grow and shrink with its parallelism.
fn completions(c: &mut Check, spec: &Value, old_spec: &Value) {
    let (now, was) = (number(spec, "completions"), number(old_spec, "completions"));
    if now == was {
        return;
    }
    let shown = now.map_or(Value::Null, Value::from);
    if !is_indexed(spec) || now.is_none() || was.is_none() {
        return c.invalid("spec.completions", shown, "field is immutable");
    }
    if now != number(spec, "parallelism") || was != number(old_spec, "parallelism") {
        c.invalid("spec.completions", shown, "can only be modified in tandem with spec.parallelism");
    }
}

/// The suffix that the controller adds to a job's name needs eleven characters.
const MAX_CRON_JOB_NAME: usize = 52;

pub(super) fn cron_job(c: &mut Check, value: &Value, old: Option<&Value>) {
    let name = text(value, "/metadata/name");
    let spec = &value["spec"];
    let schedule = c.needs(spec, "spec", "schedule");
    if !schedule.is_empty()
        && let Err(why) = schedule_holds(schedule)
    {
        c.invalid("spec.schedule", schedule, &why);
    }
    let was = old.map_or("", |old| text(old, "/spec/schedule"));
    if schedule.contains("TZ") && was != schedule {
        c.invalid("spec.schedule", schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
    }
    c.at_least(spec, "spec", "startingDeadlineSeconds", 0);
    if let Some(zone) = spec.get("timeZone").and_then(Value::as_str) {
        time_zone(c, zone);
    }
    c.exactly_one_of(spec, "spec", "concurrencyPolicy", &["Allow", "Forbid", "Replace"]);
    let template = spec.pointer("/jobTemplate/spec").unwrap_or(&Value::Null);
    job_spec(c, template, "spec.jobTemplate.spec");
    if let Some(selector) = template.get("selector") {
        c.invalid("spec.jobTemplate.spec.selector", selector.clone(), "`selector` will be auto-generated");
    }
    if template.get("manualSelector") == Some(&Value::Bool(true)) {
        let known = ["nil", "false"];
        c.not_supported("spec.jobTemplate.spec.manualSelector", &Value::Bool(true), &known);
    }
    for name in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        c.at_least(spec, "spec", name, 0);
    }
    if old.is_none() && name.len() > MAX_CRON_JOB_NAME {
        c.invalid("metadata.name", name, "must be no more than 52 characters");
    }
}

fn time_zone(c: &mut Check, zone: &str) {
    let field = "spec.timeZone";
    if zone.is_empty() {
        c.invalid(field, zone, "timeZone must be nil or non-empty string");
    } else if zone.eq_ignore_ascii_case("local") {
        c.invalid(field, zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones");
    } else if !zone.split('/').all(|part| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+'))
    }) {
        c.invalid(field, zone, &format!("unknown time zone {zone}"));
    }
}

/// The five fields: their names upstream, their bounds, and words for their numbers.
const FIELDS: [(i64, i64, &[&str]); 5] = [
    (0, 59, &[]),
    (0, 23, &[]),
    (1, 31, &[]),
    (1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    (0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];

/// What the cron library of upstream reads (`robfig/cron`, standard fields and descriptors).
fn schedule_holds(text: &str) -> Result<(), String> {
    let rest = match text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) {
        Some(zoned) => zoned.split_once(' ').map_or("", |(_, rest)| rest).trim(),
        None => text,
    };
    if rest.starts_with('@') {
        let known =
            matches!(rest, "@yearly" | "@annually" | "@monthly" | "@weekly" | "@daily" | "@midnight" | "@hourly");
        if known || rest.strip_prefix("@every ").is_some_and(super::super::formats::duration) {
            return Ok(());
        }
        return Err(if rest.starts_with("@every ") {
            format!("failed to parse duration {rest}")
        } else {
            format!("unrecognized descriptor: {rest}")
        });
    }
    let fields: Vec<&str> = rest.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    for (field, (least, most, words)) in fields.iter().zip(FIELDS) {
        for range in field.split(',') {
            cron_range(range, least, most, words)?;
        }
    }
    Ok(())
}

fn cron_range(text: &str, least: i64, most: i64, words: &[&str]) -> Result<(), String> {
    let read = |word: &str| -> Result<i64, String> {
        let lower = word.to_lowercase();
        if let Some(at) = words.iter().position(|w| *w == lower) {
            return Ok(i64::try_from(at).unwrap_or(0) + i64::from(least == 1));
        }
        let digits = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| word.parse().ok()).flatten().ok_or_else(|| format!("failed to parse int from {word}"))
    };
    let mut steps = text.split('/');
    let range = steps.next().unwrap_or_default();
    let step = steps.next();
    if steps.next().is_some() {
        return Err(format!("too many slashes: {text}"));
    }
    let mut ends = range.split('-');
    let first = ends.next().unwrap_or_default();
    let (low, high) = if matches!(first, "*" | "?") {
        (least, most)
    } else {
        let low = read(first)?;
        match ends.next() {
            Some(last) => (low, read(last)?),
            None => (low, if step.is_some() { most } else { low }),
        }
    };
    if ends.next().is_some() {
        return Err(format!("too many hyphens: {text}"));
    }
    if let Some(step) = step
        && read(step)? == 0
    {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    if low < least {
        return Err(format!("beginning of range ({low}) below minimum ({least}): {text}"));
    }
    if high > most {
        return Err(format!("end of range ({high}) above maximum ({most}): {text}"));
    }
    if low > high {
        return Err(format!("beginning of range ({low}) beyond end of range ({high}): {text}"));
    }
    Ok(())
}
