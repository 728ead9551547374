//! Istio's VirtualService, as the box reads it:
//! <https://istio.io/latest/docs/reference/config/networking/virtual-service/>
//!
//! Honoured: `hosts` with `*` or the box's own host; `gateways` with `kubeflow/kubeflow-gateway`; of each HTTP rule `match`
//! by `uri` (`prefix`, `exact`), `rewrite` (`uri`, `authority`), `headers`, `timeout`, and one destination, which is a
//! Service of the object's own namespace. A rule with anything else that would change where a request goes is not taken.

use super::read::{
    HeaderChanges, PathMatch, Problems, Rewrite, TIMEOUT, Way, duration, header_changes, items, only, own_path, port,
    rewrite_path, text,
};
use http::HeaderValue;
use serde_json::Value;

/// The gateway's name in Kubeflow's manifests, and its namespace.
pub const GATEWAY: (&str, &str) = ("kubeflow", "kubeflow-gateway");
/// Rules of one object; each request to the namespace looks at them.
const MOST_RULES: usize = 100;

/// Where an object is, and whose names it may use.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    /// Hosts by which browsers reach the gateway.
    pub hosts: &'a [String],
    /// First parts of paths that are the platform's.
    pub reserved: &'a [String],
}

impl Place<'_> {
    pub fn is_ours(&self, host: &str) -> bool {
        host == "*" || self.hosts.iter().any(|h| h == host)
    }
}

pub fn read(place: Place<'_>, spec: &Value) -> (Vec<Way>, Problems) {
    let mut problems = Problems::new();
    only(spec, "spec", &["hosts", "gateways", "http"], &["tcp", "tls", "exportTo"], &mut problems);
    if !items(&spec["hosts"]).iter().filter_map(Value::as_str).any(|h| place.is_ours(h)) {
        problems.push("spec.hosts: neither * nor this gateway's host is among them".into());
        return (Vec::new(), problems);
    }
    let named = |gateway: &str| {
        let (namespace, name) = gateway.split_once('/').unwrap_or((place.namespace, gateway));
        (namespace, name) == GATEWAY
    };
    if !items(&spec["gateways"]).iter().filter_map(Value::as_str).any(named) {
        problems.push(format!("spec.gateways: {}/{} is not among them; there is no mesh here", GATEWAY.0, GATEWAY.1));
        return (Vec::new(), problems);
    }
    let mut ways = Vec::new();
    for (n, rule) in items(&spec["http"]).iter().enumerate() {
        let at = format!("spec.http[{n}]");
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

fn rule_of(place: Place<'_>, rule: &Value, at: &str, problems: &mut Problems) -> Result<Vec<Way>, String> {
    let refused = || format!("{at} is not taken");
    let known = ["name", "match", "rewrite", "headers", "timeout", "route"];
    if !only(rule, at, &known, &["retries", "corsPolicy"], problems) {
        return Err(refused());
    }
    let (service, port, mut request, mut response) = destination(place, rule, at, problems)?;
    let headers = &rule["headers"];
    if !only(headers, &format!("{at}.headers"), &["request", "response"], &[], problems) {
        return Err(refused());
    }
    merge(&mut request, header_changes(&headers["request"], &format!("{at}.headers.request"))?);
    merge(&mut response, header_changes(&headers["response"], &format!("{at}.headers.response"))?);
    let rewrite = &rule["rewrite"];
    if !only(rewrite, &format!("{at}.rewrite"), &["uri", "authority"], &[], problems) {
        return Err(refused());
    }
    let uri = rewrite["uri"].as_str().map(rewrite_path).transpose().map_err(|e| format!("{at}.rewrite.uri: {e}"))?;
    let host = rewrite["authority"].as_str().map(HeaderValue::from_str).transpose();
    let host = host.map_err(|_| format!("{at}.rewrite.authority is not a host"))?;
    let timeout = rule["timeout"].as_str().map(duration).transpose().map_err(|e| format!("{at}.timeout: {e}"))?;
    let mut ways = Vec::new();
    if items(&rule["match"]).is_empty() {
        return Err(format!("{at} has no match: it would take every path"));
    }
    for (n, matched) in items(&rule["match"]).iter().enumerate() {
        let at = format!("{at}.match[{n}]");
        // Every further condition narrows: without it, the rule would take what it should not.
        if !only(matched, &at, &["uri", "name", "gateways"], &["ignoreUriCase"], problems)
            || !only(&matched["uri"], &format!("{at}.uri"), &["prefix", "exact"], &[], problems)
        {
            problems.push(format!("{at} is not taken"));
            continue;
        }
        let path = match (matched["uri"]["prefix"].as_str(), matched["uri"]["exact"].as_str()) {
            (Some(prefix), None) => PathMatch::Prefix(prefix.to_owned()),
            (None, Some(exact)) => PathMatch::Exact(exact.to_owned()),
            _ => {
                problems.push(format!("{at}.uri must have a prefix or be exact"));
                continue;
            }
        };
        if let Err(problem) = own_path(path.text(), place.namespace, place.reserved) {
            problems.push(format!("{at}: {problem}"));
            continue;
        }
        let rewrite = uri.clone().map(|to| match path {
            PathMatch::Exact(_) => Rewrite::Full(to),
            PathMatch::Prefix(_) => Rewrite::Prefix(to),
        });
        ways.push(Way {
            namespace: place.namespace.to_owned(),
            from: format!("VirtualService {}", place.name),
            path,
            rewrite,
            host: host.clone(),
            request: request.clone(),
            response: response.clone(),
            timeout: timeout.unwrap_or(TIMEOUT),
            service: service.clone(),
            port,
        });
    }
    Ok(ways)
}

type Destination = (String, Option<u16>, HeaderChanges, HeaderChanges);

fn destination(place: Place<'_>, rule: &Value, at: &str, problems: &mut Problems) -> Result<Destination, String> {
    let [route] = items(&rule["route"]) else {
        return Err(format!("{at}.route must have one destination: traffic is not split here"));
    };
    let at = format!("{at}.route[0]");
    let destination = &route["destination"];
    if !only(route, &at, &["destination", "weight", "headers"], &[], problems)
        || !only(destination, &format!("{at}.destination"), &["host", "port"], &[], problems)
    {
        return Err(format!("{at} is not taken"));
    }
    let service =
        service_of(text(destination, "host"), place.namespace).map_err(|e| format!("{at}.destination: {e}"))?;
    let number = &destination["port"]["number"];
    let port = port(number);
    if port.is_none() && !destination["port"].is_null() {
        return Err(format!("{at}.destination.port.number is not a port"));
    }
    let changes = |which: &str| header_changes(&route["headers"][which], &format!("{at}.headers.{which}"));
    Ok((service, port, changes("request")?, changes("response")?))
}

/// The Service that a host names, which must be of this namespace.
pub fn service_of(host: &str, namespace: &str) -> Result<String, String> {
    let mut parts = host.split('.');
    let service = parts.next().unwrap_or_default();
    let own = parts.next().is_none_or(|n| n == namespace);
    let rest: Vec<&str> = parts.collect();
    let cluster = rest.is_empty() || rest == ["svc"] || rest == ["svc", "cluster", "local"];
    let name = !service.is_empty()
        && service.len() <= 63
        && service.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if name && own && cluster {
        Ok(service.to_owned())
    } else {
        Err(format!("{host:?} is not a Service of {namespace}"))
    }
}

fn merge(into: &mut HeaderChanges, more: HeaderChanges) {
    into.set.extend(more.set);
    into.add.extend(more.add);
    into.remove.extend(more.remove);
}
