//! The Gateway API's HTTPRoute, as the box reads it: <https://gateway-api.sigs.k8s.io/reference/spec/#httproute>
//!
//! Honoured: a parent `kubeflow-gateway` in the namespace `kubeflow`; `hostnames` absent or with the box's own; of each rule
//! `matches` by `path` (PathPrefix, Exact), the filters RequestHeaderModifier, ResponseHeaderModifier and URLRewrite, the
//! request's timeout, and one backend, which is a Service of the object's own namespace.

use super::{
    read::{
        HeaderChanges, PathMatch, Problems, Rewrite, TIMEOUT, Way, duration, header_changes, items, only, own_path,
        port, rewrite_path, text,
    },
    virtual_service::{GATEWAY, Place, service_of},
};
use http::HeaderValue;
use serde_json::Value;

const MOST_RULES: usize = 16;

/// Whether a parent is this gateway.
pub fn is_parent(reference: &Value, namespace: &str) -> bool {
    let or = |name: &str, default: &str| reference[name].as_str().unwrap_or(default).to_owned();
    or("name", "") == GATEWAY.1 && or("namespace", namespace) == GATEWAY.0 && or("kind", "Gateway") == "Gateway"
}

pub fn read(place: Place<'_>, spec: &Value) -> (Vec<Way>, Problems) {
    let mut problems = Problems::new();
    only(spec, "spec", &["parentRefs", "hostnames", "rules"], &[], &mut problems);
    if !items(&spec["parentRefs"]).iter().any(|r| is_parent(r, place.namespace)) {
        problems.push(format!("spec.parentRefs: {}/{} is not among them", GATEWAY.0, GATEWAY.1));
        return (Vec::new(), problems);
    }
    let hosts = items(&spec["hostnames"]);
    if !hosts.is_empty() && !hosts.iter().filter_map(Value::as_str).any(|h| place.is_ours(h)) {
        problems.push("spec.hostnames: this gateway's host is not among them".into());
        return (Vec::new(), problems);
    }
    let mut ways = Vec::new();
    for (n, rule) in items(&spec["rules"]).iter().enumerate() {
        let at = format!("spec.rules[{n}]");
        if n >= MOST_RULES {
            problems.push(format!("{at}: more than {MOST_RULES} rules"));
            break;
        }
        match rule_of(place, rule, &at, &mut problems) {
            Ok(found) => ways.extend(found),
            Err(problem) => problems.push(problem),
        }
    }
    (ways, problems)
}

#[derive(Default)]
struct Filters {
    request: HeaderChanges,
    response: HeaderChanges,
    host: Option<HeaderValue>,
    rewrite: Option<Rewrite>,
}

fn rule_of(place: Place<'_>, rule: &Value, at: &str, problems: &mut Problems) -> Result<Vec<Way>, String> {
    let refused = || format!("{at} is not taken");
    if !only(rule, at, &["name", "matches", "filters", "backendRefs", "timeouts"], &["retry"], problems)
        || !only(&rule["timeouts"], &format!("{at}.timeouts"), &["request"], &["backendRequest"], problems)
    {
        return Err(refused());
    }
    let filters = filters_of(rule, at, problems)?;
    let [backend] = items(&rule["backendRefs"]) else {
        return Err(format!("{at}.backendRefs must have one Service: traffic is not split here"));
    };
    let known = ["name", "namespace", "port", "kind", "group", "weight"];
    if !only(backend, &format!("{at}.backendRefs[0]"), &known, &[], problems) {
        return Err(refused());
    }
    let kind = (text(backend, "group"), backend["kind"].as_str().unwrap_or("Service"));
    let own = backend["namespace"].as_str().is_none_or(|n| n == place.namespace);
    let service = service_of(text(backend, "name"), place.namespace).ok().filter(|_| own && kind == ("", "Service"));
    let service = service.filter(|s| s == text(backend, "name"));
    let service = service.ok_or(format!("{at}.backendRefs[0] is not a Service of {}", place.namespace))?;
    let port = port(&backend["port"]).ok_or(format!("{at}.backendRefs[0].port is needed"))?;
    let timeout = rule["timeouts"]["request"].as_str().map(duration).transpose();
    let timeout = timeout.map_err(|e| format!("{at}.timeouts.request: {e}"))?;
    let mut ways = Vec::new();
    if items(&rule["matches"]).is_empty() {
        return Err(format!("{at} has no matches: it would take every path"));
    }
    for (n, matched) in items(&rule["matches"]).iter().enumerate() {
        let at = format!("{at}.matches[{n}]");
        let value = text(&matched["path"], "value").to_owned();
        let path = match matched["path"]["type"].as_str().unwrap_or("PathPrefix") {
            "PathPrefix" => PathMatch::Prefix(value),
            "Exact" => PathMatch::Exact(value),
            other => {
                problems.push(format!("{at}.path.type {other:?} is not supported"));
                continue;
            }
        };
        if !only(matched, &at, &["path"], &[], problems) {
            problems.push(format!("{at} is not taken"));
            continue;
        }
        if let Err(problem) = own_path(path.text(), place.namespace, place.reserved) {
            problems.push(format!("{at}: {problem}"));
            continue;
        }
        ways.push(Way {
            namespace: place.namespace.to_owned(),
            from: format!("HTTPRoute {}", place.name),
            path,
            rewrite: filters.rewrite.clone(),
            host: filters.host.clone(),
            request: filters.request.clone(),
            response: filters.response.clone(),
            timeout: timeout.unwrap_or(TIMEOUT),
            service: service.clone(),
            port: Some(port),
        });
    }
    Ok(ways)
}

fn filters_of(rule: &Value, at: &str, problems: &mut Problems) -> Result<Filters, String> {
    let mut found = Filters::default();
    for (n, filter) in items(&rule["filters"]).iter().enumerate() {
        let at = format!("{at}.filters[{n}]");
        match text(filter, "type") {
            "RequestHeaderModifier" => found.request = header_changes(&filter["requestHeaderModifier"], &at)?,
            "ResponseHeaderModifier" => found.response = header_changes(&filter["responseHeaderModifier"], &at)?,
            "URLRewrite" => {
                let rewrite = &filter["urlRewrite"];
                if !only(rewrite, &at, &["hostname", "path"], &[], problems) {
                    return Err(format!("{at} is not taken"));
                }
                let host = rewrite["hostname"].as_str().map(HeaderValue::from_str).transpose();
                found.host = host.map_err(|_| format!("{at}.hostname is not a host"))?;
                let path = &rewrite["path"];
                let to = |name: &str| rewrite_path(text(path, name)).map_err(|e| format!("{at}: {e}"));
                found.rewrite = match text(path, "type") {
                    "" => None,
                    "ReplacePrefixMatch" => Some(Rewrite::Prefix(to("replacePrefixMatch")?)),
                    "ReplaceFullPath" => Some(Rewrite::Full(to("replaceFullPath")?)),
                    other => return Err(format!("{at}.path.type {other:?} is not supported")),
                };
            }
            other => return Err(format!("{at}: the filter {other:?} is not supported")),
        }
    }
    Ok(found)
}
