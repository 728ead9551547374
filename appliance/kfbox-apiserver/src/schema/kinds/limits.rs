//! LimitRanges and ResourceQuotas.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::quantity;
use super::{Check, FieldError, element, entry, index, join, list, members, names, text};

const UNIT: i128 = 1_000_000_000;

pub(super) fn limit_range(c: &mut Check, value: &Value) {
    let mut kinds = BTreeSet::new();
    for (at, item) in list(value, "/spec/limits").iter().enumerate() {
        let path = element("spec", "limits", at);
        let kind = text(item, "/type");
        c.holds(&join(&path, "type"), kind, limit_type);
        if !kinds.insert(kind) {
            c.push(FieldError::duplicate(&join(&path, "type"), &Value::from(kind)));
        }
        limit_item(c, &path, kind, item);
    }
}

fn limit_type(kind: &str) -> Result<(), String> {
    if matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") {
        return Ok(());
    }
    names::qualified(kind)?;
    if kind.contains('/') { Ok(()) } else { Err("must be a standard limit type or fully qualified".to_owned()) }
}

fn limit_item(c: &mut Check, path: &str, kind: &str, item: &Value) {
    let mut resources = BTreeSet::new();
    for part in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        for (name, _) in members(item, &format!("/{part}")) {
            c.holds(&entry(path, part, name), name, names::qualified);
            resources.insert(name.as_str());
        }
    }
    if kind == "Pod" {
        for part in ["default", "defaultRequest"] {
            if members(item, &format!("/{part}")).next().is_some() {
                c.forbidden(&join(path, part), "may not be specified when `type` is 'Pod'");
            }
        }
    }
    if kind == "PersistentVolumeClaim" && ["min", "max"].iter().all(|part| item[*part].get("storage").is_none()) {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        c.required(&join(path, "limits"), why);
    }
    for name in resources {
        let amount = |part: &str| item[part].get(name).and_then(|v| Some((quantity::of(v)?, v)));
        let written = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        // Which may not be more than which, at whose field and with which value it is told.
        let order = [
            ("min", "min", "max", "max", "min", "min"),
            ("min", "min", "defaultRequest", "default request", "defaultRequest", "defaultRequest"),
            ("defaultRequest", "default request", "max", "max", "defaultRequest", "defaultRequest"),
            ("defaultRequest", "default request", "default", "default limit", "defaultRequest", "defaultRequest"),
            ("min", "min", "default", "default", "default", "min"),
            ("default", "default", "max", "max", "default", "max"),
        ];
        for (low, low_noun, high, high_noun, field, shown) in order {
            if let (Some((less, a)), Some((more, b))) = (amount(low), amount(high))
                && less > more
            {
                let why = format!("{low_noun} value {} is greater than {high_noun} value {}", written(a), written(b));
                let shown = amount(shown).map_or(Value::Null, |(_, v)| v.clone());
                c.invalid(&entry(path, field, name), shown, &why);
            }
        }
        if let Some((ratio, value)) = amount("maxLimitRequestRatio") {
            let field = entry(path, "maxLimitRequestRatio", name);
            if ratio < UNIT {
                c.invalid(&field, value.clone(), &format!("ratio {} is less than 1", written(value)));
            }
            if let (Some((min, _)), Some((max, _))) = (amount("min"), amount("max"))
                && min > 0
                && ratio.checked_mul(min).zip(max.checked_mul(UNIT)).is_some_and(|(most, is)| most > is)
            {
                #[expect(clippy::cast_precision_loss, reason = "for people to read")]
                let found = max as f64 / min as f64;
                let why = format!("ratio {} is greater than max/min = {found:.6}", written(value));
                c.invalid(&field, value.clone(), &why);
            }
        }
        // What cannot be shared cannot be promised twice.
        let shared = (!name.contains('/') || name.contains("kubernetes.io/")) && !name.starts_with("hugepages-");
        if let (Some((limit, a)), Some((request, b))) = (amount("default"), amount("defaultRequest"))
            && !shared
            && limit != request
        {
            let why =
                format!("default value {} must equal to defaultRequest value {} in {name}", written(a), written(b));
            c.invalid(&entry(path, "defaultRequest", name), b.clone(), &why);
        }
    }
}

const COUNTED: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

const COMPUTE: [&str; 6] = ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];

const OTHERS: [&str; 4] =
    ["ephemeral-storage", "requests.storage", "requests.ephemeral-storage", "limits.ephemeral-storage"];

const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

fn is_standard(name: &str) -> bool {
    COUNTED.contains(&name)
        || COMPUTE.contains(&name)
        || OTHERS.contains(&name)
        || name.strip_prefix("requests.").unwrap_or(name).starts_with("hugepages-")
}

/// Whether a scope may limit a resource; only the standard ones are known.
fn fits(scope: &str, name: &str) -> bool {
    match scope {
        _ if !is_standard(name) => true,
        "BestEffort" => name == "pods",
        "VolumeAttributesClass" => matches!(name, "persistentvolumeclaims" | "requests.storage"),
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => {
            name == "pods" || COMPUTE.contains(&name)
        }
        _ => true,
    }
}

pub(super) fn quota(c: &mut Check, value: &Value, old: Option<&Value>) {
    for (name, amount) in members(value, "/spec/hard") {
        let field = entry("spec", "hard", name);
        c.holds(&field, name, names::qualified);
        if !name.contains('/') && !is_standard(name) {
            c.invalid(&field, name.as_str(), "must be a standard resource for quota");
        }
        let Some(number) = quantity::of(amount) else { continue };
        if number < 0 {
            c.invalid(&field, amount.clone(), "must be greater than or equal to 0");
        }
        if COUNTED.contains(&name.as_str()) && number % UNIT != 0 {
            c.invalid(&field, amount.clone(), "must be an integer");
        }
    }
    let hard = || members(value, "/spec/hard").map(|(name, _)| name.as_str());
    let scopes = list(value, "/spec/scopes");
    let shown = Value::from(scopes);
    for scope in scopes.iter().map(|scope| scope.as_str().unwrap_or_default()) {
        if !SCOPES.contains(&scope) {
            c.invalid("spec.scopes", shown.clone(), "unsupported scope");
        }
        if hard().any(|name| !fits(scope, name)) {
            c.invalid("spec.scopes", shown.clone(), "unsupported scope applied to resource");
        }
    }
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|scope| scopes.iter().any(|s| s == scope)) {
            c.invalid("spec.scopes", shown.clone(), "conflicting scopes");
        }
    }
    for (at, selector) in list(value, "/spec/scopeSelector/matchExpressions").iter().enumerate() {
        let path = index("spec.scopeSelector.matchExpressions", at);
        let (scope, operator) = (text(selector, "/scopeName"), text(selector, "/operator"));
        let values = list(selector, "/values");
        if !SCOPES.contains(&scope) {
            c.invalid(&join(&path, "scopeName"), scope, "unsupported scope");
        }
        if hard().any(|name| !fits(scope, name)) {
            c.invalid(&path, value["spec"]["scopeSelector"].clone(), "unsupported scope applied to resource");
        }
        if !matches!(scope, "PriorityClass" | "VolumeAttributesClass") && operator != "Exists" {
            let why = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, \
                       ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or \
                       ResourceQuotaScopeCrossNamespacePodAffinity";
            c.invalid(&join(&path, "operator"), operator, why);
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                c.required(&join(&path, "values"), why);
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                c.invalid(&join(&path, "values"), Value::from(values), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => c.invalid(&join(&path, "operator"), other, "not a valid selector operator"),
        }
    }
    let set = |value: &Value| -> BTreeSet<String> {
        list(value, "/spec/scopes").iter().filter_map(|s| s.as_str().map(str::to_owned)).collect()
    };
    if old.is_some_and(|old| set(old) != set(value)) {
        c.invalid("spec.scopes", shown, "field is immutable");
    }
}
