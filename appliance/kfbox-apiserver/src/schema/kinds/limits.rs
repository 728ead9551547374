//! LimitRanges and ResourceQuotas. Upstream: `ValidateLimitRange` and `ValidateResourceQuota` in
//! `pkg/apis/core/validation`.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;

use super::super::quantity;
use super::containers::{is_overcommittable, plain};
use super::{Check, element, entry, join, list, members, names, text};

/// Names without a prefix that stand for something to be counted.
pub(super) fn is_standard(name: &str) -> bool {
    matches!(
        name,
        "cpu"
            | "memory"
            | "ephemeral-storage"
            | "requests.cpu"
            | "requests.memory"
            | "requests.ephemeral-storage"
            | "limits.cpu"
            | "limits.memory"
            | "limits.ephemeral-storage"
            | "pods"
            | "resourcequotas"
            | "services"
            | "replicationcontrollers"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "storage"
            | "requests.storage"
            | "services.nodeports"
            | "services.loadbalancers"
    ) || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
}

/// True where the name is sound so far.
fn resource_name(c: &mut Check, field: &str, name: &str) -> bool {
    let before = c.errors.len();
    c.holds(field, name, names::qualified);
    if c.errors.len() == before && !name.contains('/') && !is_standard(name) {
        c.invalid(field, name, "must be a standard resource type or fully qualified");
    }
    c.errors.len() == before
}

fn limited_resource(c: &mut Check, kind: &str, field: &str, name: &str) {
    resource_name(c, field, name);
    let plain = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if matches!(kind, "Pod" | "Container") && !name.contains('/') && !plain {
        c.invalid(field, name, "must be a standard resource for containers");
    }
}

pub(super) fn limit_range(c: &mut Check, value: &Value) {
    let mut kinds = HashSet::new();
    for (at, limit) in list(value, "/spec/limits").iter().enumerate() {
        let path = element("spec", "limits", at);
        let kind = text(limit, "/type");
        let before = c.errors.len();
        c.holds(&join(&path, "type"), kind, names::qualified);
        if c.errors.len() == before
            && !kind.contains('/')
            && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim")
        {
            c.invalid(&join(&path, "type"), kind, "must be a standard limit type or fully qualified");
        }
        if !kinds.insert(kind) {
            c.duplicate(&join(&path, "type"), kind);
        }
        let mut resources = BTreeSet::new();
        for name in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            let amounts: Vec<(&String, &Value)> = members(limit, &format!("/{name}")).collect();
            if kind == "Pod" && matches!(name, "default" | "defaultRequest") {
                if !amounts.is_empty() {
                    c.forbidden(&join(&path, name), "may not be specified when `type` is 'Pod'");
                }
                continue;
            }
            for (resource, _) in amounts {
                limited_resource(c, kind, &entry(&path, name, resource), resource);
                resources.insert(resource.as_str());
            }
        }
        if kind == "PersistentVolumeClaim"
            && limit.pointer("/min/storage").is_none()
            && limit.pointer("/max/storage").is_none()
        {
            let why = "either minimum or maximum storage value is required, but neither was provided";
            c.required(&join(&path, "limits"), why);
        }
        resources.into_iter().for_each(|resource| fits(c, limit, kind, &path, resource));
    }
}

/// The amounts of one resource must not contradict each other.
fn fits(c: &mut Check, limit: &Value, kind: &str, path: &str, resource: &str) {
    let amount = |name: &str| {
        if kind == "Pod" && matches!(name, "default" | "defaultRequest") {
            return None;
        }
        let value = limit.get(name)?.get(resource)?;
        Some((plain(value), quantity::of(value)?))
    };
    let (least, most) = (amount("min"), amount("max"));
    let (default, request, ratio) = (amount("default"), amount("defaultRequest"), amount("maxLimitRequestRatio"));
    let mut ordered = |low: &Option<(String, i128)>,
                       high: &Option<(String, i128)>,
                       at: &str,
                       shown: &Option<(String, i128)>,
                       words: (&str, &str)| {
        if let (Some(low), Some(high), Some(shown)) = (low, high, shown)
            && low.1 > high.1
        {
            let why = format!("{} value {} is greater than {} value {}", words.0, low.0, words.1, high.0);
            c.invalid(&entry(path, at, resource), shown.0.clone(), &why);
        }
    };
    ordered(&least, &most, "min", &least, ("min", "max"));
    ordered(&least, &request, "defaultRequest", &request, ("min", "default request"));
    ordered(&request, &most, "defaultRequest", &request, ("default request", "max"));
    ordered(&request, &default, "defaultRequest", &request, ("default request", "default limit"));
    ordered(&least, &default, "default", &least, ("min", "default"));
    ordered(&default, &most, "default", &most, ("default", "max"));
    if let Some((shown, number)) = &ratio {
        let field = entry(path, "maxLimitRequestRatio", resource);
        if *number < 1_000_000_000 {
            c.invalid(&field, shown.clone(), &format!("ratio {shown} is less than 1"));
        }
        if let (Some(least), Some(most)) = (&least, &most)
            && least.1 > 0
        {
            #[expect(clippy::cast_precision_loss, reason = "upstream compares and shows these as floating point too")]
            let (bound, given) = (most.1 as f64 / least.1 as f64, *number as f64 / 1e9);
            if given > bound {
                c.invalid(&field, shown.clone(), &format!("ratio {shown} is greater than max/min = {bound:.6}"));
            }
        }
    }
    if let (Some(default), Some(request)) = (default, request)
        && !is_overcommittable(resource)
        && default.1 != request.1
    {
        let why = format!("default value {} must equal to defaultRequest value {} in {resource}", default.0, request.0);
        c.invalid(&entry(path, "defaultRequest", resource), request.0, &why);
    }
}

/// What is counted, not measured.
fn is_whole(name: &str) -> bool {
    let counted = matches!(
        name,
        "pods"
            | "resourcequotas"
            | "services"
            | "replicationcontrollers"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "services.nodeports"
            | "services.loadbalancers"
    );
    counted || (name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests."))
}

fn is_quota_resource(name: &str) -> bool {
    is_standard(name) && name != "storage"
}

pub(super) fn quantity_value(c: &mut Check, field: &str, name: &str, amount: &Value) {
    let Some(number) = quantity::of(amount) else { return };
    if number < 0 {
        c.invalid(field, plain(amount), "must be greater than or equal to 0");
    }
    if is_whole(name) && number % 1_000_000_000 != 0 {
        c.invalid(field, plain(amount), "must be an integer");
    }
}

pub(super) fn amounts(c: &mut Check, value: &Value, pointer: &str, path: &str) {
    for (name, amount) in members(value, pointer) {
        let field = super::key(path, name);
        if resource_name(c, &field, name) && !name.contains('/') && !is_quota_resource(name) {
            c.invalid(&field, name.as_str(), "must be a standard resource for quota");
        }
        quantity_value(c, &field, name, amount);
    }
}

const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

/// Whether a scope says anything about a resource.
fn scope_fits(scope: &str, resource: &str) -> bool {
    let compute = matches!(
        resource,
        "cpu"
            | "memory"
            | "ephemeral-storage"
            | "pods"
            | "limits.cpu"
            | "limits.memory"
            | "limits.ephemeral-storage"
            | "requests.cpu"
            | "requests.memory"
            | "requests.ephemeral-storage"
    ) || resource.contains("hugepages-");
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => compute,
        _ => true,
    }
}

pub(super) fn quota(c: &mut Check, value: &Value, old: Option<&Value>) {
    amounts(c, value, "/spec/hard", "spec.hard");
    let hard: Vec<&str> = members(value, "/spec/hard").map(|(name, _)| name.as_str()).collect();
    let scopes: Vec<&str> = list(value, "/spec/scopes").iter().filter_map(Value::as_str).collect();
    let shown = || value["spec"]["scopes"].clone();
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            c.invalid("spec.scopes", shown(), "unsupported scope");
        }
        for _ in hard.iter().filter(|name| is_quota_resource(name) && !scope_fits(scope, name)) {
            c.invalid("spec.scopes", shown(), "unsupported scope applied to resource");
        }
    }
    conflicting(c, &scopes, shown());
    let path = "spec.scopeSelector.matchExpressions";
    let rules = list(value, "/spec/scopeSelector/matchExpressions");
    for rule in rules {
        let (scope, operator) = (text(rule, "/scopeName"), text(rule, "/operator"));
        if !SCOPES.contains(&scope) {
            c.invalid(&join(path, "scopeName"), scope, "unsupported scope");
        }
        for _ in hard.iter().filter(|name| is_quota_resource(name) && !scope_fits(scope, name)) {
            c.invalid(path, value["spec"]["scopeSelector"].clone(), "unsupported scope applied to resource");
        }
        if SCOPES.contains(&scope)
            && !matches!(scope, "PriorityClass" | "VolumeAttributesClass")
            && operator != "Exists"
        {
            c.invalid(&join(path, "operator"), operator, "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity");
        }
        let values = list(rule, "/values");
        let field = join(path, "values");
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                c.required(&field, "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                c.invalid(&field, values.to_vec(), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => c.invalid(&join(path, "operator"), other, "not a valid selector operator"),
        }
    }
    let selected: Vec<&str> = rules.iter().map(|rule| text(rule, "/scopeName")).collect();
    if !selected.is_empty() {
        conflicting(c, &selected, shown());
    }
    if let Some(old) = old {
        let set = |quota: &Value| -> BTreeSet<String> {
            list(quota, "/spec/scopes").iter().filter_map(|s| s.as_str().map(ToOwned::to_owned)).collect()
        };
        if set(value) != set(old) {
            c.invalid("spec.scopes", shown(), "field is immutable");
        }
    }
}

fn conflicting(c: &mut Check, scopes: &[&str], shown: Value) {
    for (one, other) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if scopes.contains(&one) && scopes.contains(&other) {
            c.invalid("spec.scopes", shown.clone(), "conflicting scopes");
        }
    }
}
