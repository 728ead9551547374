//! Roles, bindings, budgets, priorities, leases, quotas, webhooks.

use serde_json::Value;

use super::super::quantity;
use super::{Check, FieldError, element, entry, index, join, list, members, text};

pub(super) fn role(c: &mut Check, kind: &str, value: &Value) {
    for (at, rule) in list(value, "/rules").iter().enumerate() {
        let path = index("rules", at);
        if list(rule, "/verbs").is_empty() {
            c.required(&join(&path, "verbs"), "verbs must contain at least one value");
        }
        if !list(rule, "/nonResourceURLs").is_empty() {
            if kind == "Role" {
                c.invalid(
                    &join(&path, "nonResourceURLs"),
                    rule["nonResourceURLs"].clone(),
                    "namespaced rules cannot apply to non-resource URLs",
                );
            }
            if !list(rule, "/apiGroups").is_empty() || !list(rule, "/resources").is_empty() {
                c.invalid(
                    &join(&path, "nonResourceURLs"),
                    rule["nonResourceURLs"].clone(),
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            continue;
        }
        if list(rule, "/apiGroups").is_empty() {
            c.required(&join(&path, "apiGroups"), "resource rules must supply at least one api group");
        }
        if list(rule, "/resources").is_empty() {
            c.required(&join(&path, "resources"), "resource rules must supply at least one resource");
        }
    }
}

pub(super) fn binding(c: &mut Check, kind: &str, value: &Value, old: Option<&Value>) {
    let reference = &value["roleRef"];
    if text(reference, "/apiGroup") != "rbac.authorization.k8s.io" {
        c.push(FieldError::not_supported("roleRef.apiGroup", &reference["apiGroup"], &["rbac.authorization.k8s.io"]));
    }
    let kinds: &[&str] = if kind == "RoleBinding" { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&text(reference, "/kind")) {
        c.push(FieldError::not_supported("roleRef.kind", &reference["kind"], kinds));
    }
    c.needs(reference, "roleRef", "name");
    for (at, subject) in list(value, "/subjects").iter().enumerate() {
        let path = index("subjects", at);
        c.needs(subject, &path, "name");
        match text(subject, "/kind") {
            "ServiceAccount" => {
                if text(subject, "/namespace").is_empty() {
                    c.required(&join(&path, "namespace"), "");
                }
            }
            "User" | "Group" => {
                if text(subject, "/apiGroup") != "rbac.authorization.k8s.io" {
                    c.push(FieldError::not_supported(
                        &join(&path, "apiGroup"),
                        &subject["apiGroup"],
                        &["rbac.authorization.k8s.io"],
                    ));
                }
            }
            _ => c.push(FieldError::not_supported(
                &join(&path, "kind"),
                &subject["kind"],
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
    if let Some(old) = old
        && old["roleRef"] != *reference
    {
        c.invalid("roleRef", reference.clone(), "cannot change roleRef");
    }
}

pub(super) fn disruption_budget(c: &mut Check, value: &Value) {
    let spec = &value["spec"];
    let (least, most) = (spec.get("minAvailable"), spec.get("maxUnavailable"));
    if least.is_some() && most.is_some() {
        c.invalid("spec", spec.clone(), "minAvailable and maxUnavailable cannot be both set");
    }
    c.count_or_percent("spec.minAvailable", least);
    c.count_or_percent("spec.maxUnavailable", most);
    c.selector(spec.get("selector"), "spec.selector");
}

/// Above this are the system's own classes.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

pub(super) fn priority_class(c: &mut Check, value: &Value, old: Option<&Value>) {
    let (name, priority) = (text(value, "/metadata/name"), value.get("value").and_then(Value::as_i64).unwrap_or(0));
    if name.starts_with("system-") {
        if !matches!(
            (name, priority),
            ("system-node-critical", 2_000_001_000) | ("system-cluster-critical", 2_000_000_000)
        ) {
            c.forbidden("metadata.name", "priority class names with 'system-' prefix are reserved for system use only");
        }
    } else if priority > HIGHEST_USER_PRIORITY {
        c.forbidden("value", "maximum allowed value of a user defined priority is 1000000000");
    }
    c.one_of(value, "", "preemptionPolicy", &["Never", "PreemptLowerPriority"]);
    if let Some(old) = old {
        for name in ["value", "preemptionPolicy"] {
            if value.get(name) != old.get(name) {
                c.forbidden(name, "may not be changed in an update.");
            }
        }
    }
}

pub(super) fn lease(c: &mut Check, value: &Value) {
    let spec = value.get("spec").unwrap_or(&Value::Null);
    if let Some(seconds) = spec.get("leaseDurationSeconds").and_then(Value::as_i64).filter(|n| *n <= 0) {
        c.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0");
    }
    c.at_least(spec, "spec", "leaseTransitions", 0);
}

pub(super) fn quota(c: &mut Check, value: &Value) {
    for (name, amount) in members(value, "/spec/hard") {
        if quantity::of(amount).is_some_and(|n| n < 0) {
            c.invalid(&entry("spec", "hard", name), amount.clone(), "must be greater than or equal to 0");
        }
    }
}

pub(super) fn webhooks(c: &mut Check, value: &Value) {
    for (at, webhook) in list(value, "/webhooks").iter().enumerate() {
        let path = index("webhooks", at);
        let name = c.needs(webhook, &path, "name");
        if name.split('.').count() < 3 {
            c.invalid(&join(&path, "name"), name, "should be a domain with at least three segments separated by dots");
        }
        let config = webhook.get("clientConfig").unwrap_or(&Value::Null);
        if config.get("url").is_some() == config.get("service").is_some() {
            c.required(&join(&path, "clientConfig"), "exactly one of url or service is required");
        }
        c.needs(webhook, &path, "sideEffects");
        c.one_of(webhook, &path, "sideEffects", &["None", "NoneOnDryRun"]);
        if list(webhook, "/admissionReviewVersions").is_empty() {
            c.required(&join(&path, "admissionReviewVersions"), "must specify one of v1, v1beta1");
        }
        c.one_of(webhook, &path, "failurePolicy", &["Fail", "Ignore"]);
        if let Some(seconds) = webhook.get("timeoutSeconds").and_then(Value::as_i64).filter(|n| !(1..=30).contains(n)) {
            c.invalid(&join(&path, "timeoutSeconds"), seconds, "the timeout value must be between 1 and 30 seconds");
        }
        for (at, rule) in list(webhook, "/rules").iter().enumerate() {
            let path = element(&path, "rules", at);
            for name in ["operations", "apiGroups", "apiVersions", "resources"] {
                if list(rule, &format!("/{name}")).is_empty() {
                    c.required(&join(&path, name), "");
                }
            }
        }
    }
}
