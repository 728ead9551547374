//! Webhook configurations. Upstream: `pkg/apis/admissionregistration/validation`.

use std::collections::HashSet;

use serde_json::Value;

use super::{Check, element, index, join, list, names, text};

pub(super) fn configuration(c: &mut Check, kind: &str, value: &Value) {
    let mut names_seen = HashSet::new();
    for (at, webhook) in list(value, "/webhooks").iter().enumerate() {
        let path = index("webhooks", at);
        check(c, webhook, &path, kind == "MutatingWebhookConfiguration");
        if !names_seen.insert(text(webhook, "/name")) {
            c.duplicate(&join(&path, "name"), text(webhook, "/name"));
        }
    }
}

fn check(c: &mut Check, webhook: &Value, path: &str, mutating: bool) {
    fully_qualified(c, webhook, path);
    c.selector(webhook.get("namespaceSelector"), &join(path, "namespaceSelector"));
    c.selector(webhook.get("objectSelector"), &join(path, "objectSelector"));
    for (at, rule) in list(webhook, "/rules").iter().enumerate() {
        self::rule(c, rule, &element(path, "rules", at));
    }
    c.one_of(webhook, path, "failurePolicy", &["Fail", "Ignore"]);
    c.one_of(webhook, path, "matchPolicy", &["Equivalent", "Exact"]);
    match webhook.get("sideEffects").and_then(Value::as_str) {
        None => c.required(&join(path, "sideEffects"), "must specify one of None, NoneOnDryRun"),
        Some(_) => c.one_of(webhook, path, "sideEffects", &["None", "NoneOnDryRun"]),
    }
    if let Some(seconds) = webhook.get("timeoutSeconds").and_then(Value::as_i64).filter(|n| !(1..=30).contains(n)) {
        c.invalid(&join(path, "timeoutSeconds"), seconds, "the timeout value must be between 1 and 30 seconds");
    }
    if mutating {
        c.one_of(webhook, path, "reinvocationPolicy", &["IfNeeded", "Never"]);
    }
    client(c, webhook.get("clientConfig").unwrap_or(&Value::Null), &join(path, "clientConfig"));
    versions(c, webhook, path);
    let mut seen = HashSet::new();
    for (at, condition) in list(webhook, "/matchConditions").iter().enumerate() {
        let path = element(path, "matchConditions", at);
        if text(condition, "/expression").trim().is_empty() {
            c.required(&join(&path, "expression"), "");
        }
        let name = c.named(condition, &path, "name", names::qualified);
        if !name.is_empty() && !seen.insert(name) {
            c.duplicate(&join(&path, "name"), name);
        }
    }
}

fn fully_qualified(c: &mut Check, webhook: &Value, path: &str) {
    let name = c.needs(webhook, path, "name");
    let field = join(path, "name");
    let faults = names::dns_subdomain(name);
    if name.is_empty() {
    } else if !faults.is_empty() {
        c.invalid(&field, name, &faults.join(","));
    } else if name.split('.').count() < 3 {
        c.invalid(&field, name, "should be a domain with at least three segments separated by dots");
    }
}

/// How a server is reached: of webhooks, and of definitions that convert.
pub(super) fn client(c: &mut Check, config: &Value, path: &str) {
    match (config.get("url").and_then(Value::as_str), config.get("service")) {
        (Some(url), None) => address(c, url, &join(path, "url")),
        (None, Some(service)) => {
            let path = join(path, "service");
            c.needs(service, &path, "name");
            c.needs(service, &path, "namespace");
            if let Some(place) = service.get("path").and_then(Value::as_str) {
                service_path(c, place, &join(&path, "path"));
            }
            if let Some(port) = service.get("port").and_then(Value::as_i64)
                && !(1..=65535).contains(&port)
            {
                c.invalid(&join(&path, "port"), port, "port is not valid: must be between 1 and 65535, inclusive");
            }
        }
        _ => c.required(path, "exactly one of url or service is required"),
    }
}

const FORM: &str = "desired format: https://host[/path]";

fn address(c: &mut Check, url: &str, field: &str) {
    let Some(rest) = url.strip_prefix("https://") else {
        let scheme = url.split("://").next().filter(|_| url.contains("://")).unwrap_or_default();
        return c.invalid(field, scheme, &format!("'https' is the only allowed URL scheme; {FORM}"));
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() {
        c.invalid(field, host, &format!("host must be specified; {FORM}"));
    }
    if let Some((user, _)) = host.split_once('@') {
        c.invalid(field, user, "user information is not permitted in the URL");
    }
    if let Some((_, fragment)) = rest.split_once('#') {
        c.invalid(field, fragment, "fragments are not permitted in the URL");
    }
    if let Some((_, query)) = rest.split('#').next().unwrap_or_default().split_once('?') {
        c.invalid(field, query, "query parameters are not permitted in the URL");
    }
}

fn service_path(c: &mut Check, place: &str, field: &str) {
    if !place.starts_with('/') {
        return c.invalid(field, place, "must start with a '/'");
    }
    let inner = &place[1..];
    if inner.is_empty() {
        return;
    }
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    for (at, part) in inner.split('/').enumerate() {
        if part.is_empty() {
            c.invalid(field, place, &format!("segment[{at}] may not be empty"));
        }
        for why in names::dns_subdomain(part).into_iter().filter(|_| !part.is_empty()) {
            c.invalid(field, place, &format!("segment[{at}]: {why}"));
        }
    }
}

fn versions(c: &mut Check, webhook: &Value, path: &str) {
    let all = list(webhook, "/admissionReviewVersions");
    let field = join(path, "admissionReviewVersions");
    if all.is_empty() {
        return c.required(&field, "must specify one of v1, v1beta1");
    }
    let mut seen = HashSet::new();
    for (at, version) in all.iter().enumerate() {
        let version = version.as_str().unwrap_or_default();
        if !seen.insert(version) {
            c.invalid(&index(&field, at), version, "duplicate version");
        }
        c.holds(&index(&field, at), version, names::dns_1035_label);
    }
    if !seen.contains("v1") && !seen.contains("v1beta1") {
        c.invalid(&field, all.to_vec(), "must include at least one of v1, v1beta1");
    }
}

fn rule(c: &mut Check, rule: &Value, path: &str) {
    let words = |name: &str| -> Vec<&str> {
        list(rule, &format!("/{name}")).iter().map(|w| w.as_str().unwrap_or_default()).collect()
    };
    for (name, what) in [("operations", "operations"), ("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let found = words(name);
        let field = join(path, name);
        if found.is_empty() {
            c.required(&field, "");
        }
        if found.contains(&"*") && found.len() > 1 {
            c.invalid(&field, rule[name].clone(), &format!("if '*' is present, must not specify other {what}"));
        }
        for (at, word) in found.iter().enumerate() {
            if name == "operations" && !matches!(*word, "*" | "CONNECT" | "CREATE" | "DELETE" | "UPDATE") {
                let known = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
                c.not_supported(&index(&field, at), &Value::from(*word), &known);
            }
            if name == "apiVersions" && word.is_empty() {
                c.required(&index(&field, at), "");
            }
        }
    }
    let resources = words("resources");
    let field = join(path, "resources");
    if resources.is_empty() {
        c.required(&field, "");
    }
    if resources.contains(&"*/*") && resources.len() > 1 {
        c.invalid(&field, rule["resources"].clone(), "if '*/*' is present, must not specify other resources");
    }
    for (at, resource) in resources.iter().enumerate() {
        if resource.is_empty() {
            c.required(&index(&field, at), "");
        }
        if *resource != "*" && !resource.contains('/') && resources.contains(&"*") {
            let why = "if '*' is present, must not specify other resources without subresources";
            c.invalid(&field, rule["resources"].clone(), why);
            break;
        }
    }
    c.one_of(rule, path, "scope", &["*", "Cluster", "Namespaced"]);
}
