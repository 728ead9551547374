//! Where pods may run: affinity, spread constraints, tolerations, taints. Upstream: `pkg/apis/core/validation`.

use std::collections::HashSet;

use serde_json::Value;

use super::{Check, element, index, join, list, names, text};

/// What a term must not have if it is only a wish: nothing; invalid label values of wishes are let through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Force {
    Required,
    Preferred,
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn affinity(c: &mut Check, affinity: Option<&Value>, path: &str) {
    let Some(affinity) = affinity else { return };
    if let Some(nodes) = affinity.get("nodeAffinity") {
        let path = join(path, "nodeAffinity");
        if let Some(selector) = nodes.get(REQUIRED) {
            node_selector(c, selector, &join(&path, REQUIRED));
        }
        for (at, term) in list(nodes, &format!("/{PREFERRED}")).iter().enumerate() {
            let path = element(&path, PREFERRED, at);
            weight(c, term, &path);
            node_term(c, term.get("preference").unwrap_or(&Value::Null), &join(&path, "preference"), Force::Preferred);
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = affinity.get(kind) else { continue };
        let path = join(path, kind);
        for (at, term) in list(pods, &format!("/{REQUIRED}")).iter().enumerate() {
            pod_term(c, term, &element(&path, REQUIRED, at));
        }
        for (at, term) in list(pods, &format!("/{PREFERRED}")).iter().enumerate() {
            let path = element(&path, PREFERRED, at);
            weight(c, term, &path);
            pod_term(c, term.get("podAffinityTerm").unwrap_or(&Value::Null), &join(&path, "podAffinityTerm"));
        }
    }
}

fn weight(c: &mut Check, term: &Value, path: &str) {
    let weight = term.get("weight").and_then(Value::as_i64).unwrap_or(0);
    if !(1..=100).contains(&weight) {
        c.invalid(&join(path, "weight"), weight, "must be in the range 1-100");
    }
}

pub(super) fn node_selector(c: &mut Check, selector: &Value, path: &str) {
    let terms = list(selector, "/nodeSelectorTerms");
    let path = join(path, "nodeSelectorTerms");
    if terms.is_empty() {
        c.required(&path, "must have at least one node selector term");
    }
    for (at, term) in terms.iter().enumerate() {
        node_term(c, term, &index(&path, at), Force::Required);
    }
}

const NOT_AN_OPERATOR: &str = "not a valid selector operator";

fn node_term(c: &mut Check, term: &Value, path: &str, force: Force) {
    for (at, rule) in list(term, "/matchExpressions").iter().enumerate() {
        let path = element(path, "matchExpressions", at);
        let values = list(rule, "/values");
        let field = join(&path, "values");
        match text(rule, "/operator") {
            "In" | "NotIn" if values.is_empty() => {
                c.required(&field, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                c.forbidden(&field, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            "Gt" | "Lt" if values.len() != 1 => {
                c.required(&field, "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => c.invalid(&join(&path, "operator"), other, NOT_AN_OPERATOR),
        }
        c.holds(&join(&path, "key"), text(rule, "/key"), names::qualified);
        if force == Force::Required {
            for (at, value) in values.iter().enumerate() {
                c.holds(&index(&field, at), value.as_str().unwrap_or_default(), names::label_value);
            }
        }
    }
    for (at, rule) in list(term, "/matchFields").iter().enumerate() {
        let path = element(path, "matchFields", at);
        let values = list(rule, "/values");
        match text(rule, "/operator") {
            "In" | "NotIn" if values.len() != 1 => {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                c.required(&join(&path, "values"), why);
            }
            "In" | "NotIn" => {}
            other => c.invalid(&join(&path, "operator"), other, NOT_AN_OPERATOR),
        }
        if text(rule, "/key") == "metadata.name" {
            for (at, value) in values.iter().enumerate() {
                let field = element(&path, "values", at);
                c.holds(&field, value.as_str().unwrap_or_default(), names::dns_subdomain);
            }
        } else {
            c.invalid(&join(&path, "key"), text(rule, "/key"), "not a valid field selector key");
        }
    }
}

fn pod_term(c: &mut Check, term: &Value, path: &str) {
    c.selector(term.get("labelSelector"), &join(path, "labelSelector"));
    c.selector(term.get("namespaceSelector"), &join(path, "namespaceSelector"));
    for name in list(term, "/namespaces") {
        // Upstream's singular.
        c.holds(&join(path, "namespace"), name.as_str().unwrap_or_default(), names::dns_label);
    }
    match_keys(c, term, path);
    let key = text(term, "/topologyKey");
    if key.is_empty() {
        c.required(&join(path, "topologyKey"), "can not be empty");
    }
    c.holds(&join(path, "topologyKey"), key, names::qualified);
}

fn match_keys(c: &mut Check, term: &Value, path: &str) {
    let selector = term.get("labelSelector");
    let mut first: HashSet<&str> = HashSet::new();
    for kind in ["matchLabelKeys", "mismatchLabelKeys"] {
        let field = join(path, kind);
        let keys = list(term, &format!("/{kind}"));
        if !keys.is_empty() && selector.is_none() {
            c.forbidden(&field, "must not be specified when labelSelector is not set");
        }
        for (at, key) in keys.iter().enumerate() {
            let key = key.as_str().unwrap_or_default();
            c.holds(&index(&field, at), key, names::qualified);
            if !first.insert(key) && kind == "mismatchLabelKeys" {
                c.invalid(
                    &index(&join(path, "matchLabelKeys"), at),
                    key,
                    "exists in both matchLabelKeys and mismatchLabelKeys",
                );
            }
        }
    }
}

pub(super) fn spread(c: &mut Check, spec: &Value, path: &str) {
    let all = list(spec, "/topologySpreadConstraints");
    for (at, one) in all.iter().enumerate() {
        let path = element(path, "topologySpreadConstraints", at);
        let skew = one.get("maxSkew").and_then(Value::as_i64).unwrap_or(0);
        if skew <= 0 {
            c.invalid(&join(&path, "maxSkew"), skew, "must be greater than zero");
        }
        let (key, action) = (text(one, "/topologyKey"), text(one, "/whenUnsatisfiable"));
        if key.is_empty() {
            c.required(&join(&path, "topologyKey"), "can not be empty");
        }
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            let known = ["DoNotSchedule", "ScheduleAnyway"];
            c.not_supported(&join(&path, "whenUnsatisfiable"), &Value::from(action), &known);
        }
        let repeated = all[at + 1..]
            .iter()
            .any(|other| text(other, "/topologyKey") == key && text(other, "/whenUnsatisfiable") == action);
        if repeated {
            c.duplicate(&join(&path, "{topologyKey, whenUnsatisfiable}"), format!("{{{key}, {action}}}"));
        }
        if let Some(domains) = one.get("minDomains").and_then(Value::as_i64) {
            let field = join(&path, "minDomains");
            if domains <= 0 {
                c.invalid(&field, domains, "must be greater than zero");
            }
            if action != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                c.invalid(&field, domains, &why);
            }
        }
        for name in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            c.one_of(one, &path, name, &["Honor", "Ignore"]);
        }
        let keys = list(one, "/matchLabelKeys");
        let field = join(&path, "matchLabelKeys");
        if !keys.is_empty() && one.get("labelSelector").is_none() {
            c.forbidden(&field, "must not be specified when labelSelector is not set");
        }
        for (at, key) in keys.iter().enumerate() {
            c.holds(&index(&field, at), key.as_str().unwrap_or_default(), names::qualified);
        }
        c.selector(one.get("labelSelector"), &join(&path, "labelSelector"));
    }
}

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn tolerations(c: &mut Check, spec: &Value, path: &str) {
    for (at, toleration) in list(spec, "/tolerations").iter().enumerate() {
        let path = element(path, "tolerations", at);
        let (key, operator, value) =
            (text(toleration, "/key"), text(toleration, "/operator"), text(toleration, "/value"));
        if !key.is_empty() {
            c.holds(&join(&path, "key"), key, names::qualified);
        }
        if key.is_empty() && operator != "Exists" {
            c.invalid(
                &join(&path, "operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if toleration.get("tolerationSeconds").is_some() && text(toleration, "/effect") != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            c.invalid(&join(&path, "effect"), text(toleration, "/effect"), why);
        }
        match operator {
            "" | "Equal" => {
                let faults = names::label_value(value);
                if !faults.is_empty() {
                    c.invalid(&join(&path, "operator"), value, &faults.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                c.invalid(&join(&path, "operator"), value, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" | "Lt" | "Gt" => {}
            other => c.not_supported(&join(&path, "operator"), &Value::from(other), &["Equal", "Exists"]),
        }
        c.one_of(toleration, &path, "effect", EFFECTS);
    }
}

pub(super) fn taints(c: &mut Check, spec: &Value, path: &str) {
    let mut seen = HashSet::new();
    for (at, taint) in list(spec, "/taints").iter().enumerate() {
        let path = element(path, "taints", at);
        c.holds(&join(&path, "key"), text(taint, "/key"), names::qualified);
        let faults = names::label_value(text(taint, "/value"));
        if !faults.is_empty() {
            c.invalid(&join(&path, "value"), text(taint, "/value"), &faults.join(";"));
        }
        c.exactly_one_of(taint, &path, "effect", EFFECTS);
        if !seen.insert((text(taint, "/effect"), text(taint, "/key"))) {
            let mut error = super::FieldError::duplicate(&path, taint);
            error.message.push_str(": taints must be unique by key and effect pair");
            c.push(error);
        }
    }
}
