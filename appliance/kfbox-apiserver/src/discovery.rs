//! Everything outside resources: discovery (legacy and aggregated), version, health, OpenAPI, the token issuer's keys
//! (<https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api>).

use crate::{
    VERSION,
    aggregation::{self, GroupView, Served, VersionView, groups},
    documents,
    negotiate::wants_discovery,
    request::Query,
    resources::{Registry, Resource},
    server::Core,
    status::{ApiError, json_response},
};
use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header, request::Parts};
use kfbox_base::UserInfo;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

pub async fn answer(
    core: &Arc<Core>,
    user: &UserInfo,
    parts: Parts,
    body: Body,
    query: &Query,
) -> Result<Response, ApiError> {
    if !matches!(parts.method, http::Method::GET | http::Method::HEAD) {
        return Err(ApiError::method_not_allowed());
    }
    let path = parts.uri.path();
    let registry = core.resources.current();
    let served = groups(&registry, &core.aggregation);
    let steps: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
    let found = match steps[..] {
        [] => paths(&served),
        ["version"] => version(),
        ["healthz" | "livez" | "readyz"] => return Ok(health(path, query)),
        ["healthz" | "livez" | "readyz", check] if CHECKS.contains(&check) => return Ok(text("ok")),
        ["api"] => {
            if let Some(version) = wants_discovery(&parts.headers, &AGGREGATED) {
                return Ok(aggregated(core, &served, version, true, &parts));
            }
            let address = match core.config.api_endpoint {
                Some((address, port)) => format!("{address}:{port}"),
                None => format!("{}:443", core.config.api_service_ip),
            };
            json!({
                "kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
            })
        }
        ["apis"] => {
            if let Some(version) = wants_discovery(&parts.headers, &AGGREGATED) {
                return Ok(aggregated(core, &served, version, false, &parts));
            }
            let groups: Vec<Value> = served.iter().filter(|g| !g.name.is_empty()).map(group).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["api", version] => resources(&registry, "", version)?,
        ["apis", name] => {
            let found = served.iter().find(|g| g.name == name && !g.name.is_empty());
            let mut found = group(found.ok_or_else(ApiError::no_such_path)?);
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            found
        }
        ["apis", group, version] => resources(&registry, group, version)?,
        ["openapi", "v3", "apis", group, version] if core.aggregation.find(group, version).is_some() => {
            let remote = core.aggregation.find(group, version).ok_or_else(ApiError::no_such_path)?;
            return aggregation::forward(core, &remote, user, parts, body).await;
        }
        ["openapi", ref rest @ ..] => return documents::answer(core, &parts.headers, rest, query).await,
        [".well-known", "openid-configuration"] => core.authenticator.tokens().discovery(),
        ["openid", "v1", "jwks"] => core.authenticator.tokens().jwks(),
        _ => return Err(ApiError::no_such_path()),
    };
    Ok(json_response(StatusCode::OK, &found))
}

const AGGREGATED: [&str; 2] = ["v2", "v2beta1"];
const CHECKS: [&str; 4] = ["ping", "log", "etcd", "poststarthook"];

fn text(body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn health(path: &str, query: &Query) -> Response {
    if !query.flag("verbose") {
        return text("ok");
    }
    let checks: String = CHECKS.iter().map(|c| format!("[+]{c} ok\n")).collect();
    text(format!("{checks}{} check passed\n", path.trim_matches('/')))
}

fn version() -> Value {
    let mut numbers = VERSION.trim_start_matches('v').split('.');
    json!({
        "major": numbers.next(), "minor": numbers.next(), "gitVersion": VERSION,
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc", "platform": format!("linux/{}", architecture()),
    })
}

/// As Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn paths(served: &[GroupView<'_>]) -> Value {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .into();
    for group in served.iter().filter(|g| !g.name.is_empty()) {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|v| format!("/apis/{}/{}", group.name, v.version)));
    }
    paths.sort();
    json!({"paths": paths})
}

fn group(group: &GroupView<'_>) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|v| json!({"groupVersion": format!("{}/{}", group.name, v.version), "version": &*v.version}))
        .collect();
    json!({"name": &*group.name, "preferredVersion": versions.first(), "versions": versions})
}

fn resources(registry: &Registry, group: &str, version: &str) -> Result<Value, ApiError> {
    let found = registry.group_version(group, version).ok_or_else(ApiError::no_such_path)?;
    let mut list = Vec::new();
    for resource in &found.resources {
        let mut entry = json!({
            "name": &*resource.plural, "singularName": &*resource.singular, "namespaced": resource.namespaced,
            "kind": &*resource.kind, "verbs": resource.verbs.list(),
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = resource.short_names.clone().into();
        }
        if !resource.categories.is_empty() {
            entry["categories"] = resource.categories.clone().into();
        }
        if resource.verbs.allows("watch") {
            entry["storageVersionHash"] = resource.storage_version_hash().into();
        }
        list.push(entry);
        for part in &resource.subresources {
            let (group, version, kind) = &part.object;
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, part.name), "singularName": "",
                "namespaced": resource.namespaced, "kind": &**kind, "verbs": part.verbs,
            });
            if !version.is_empty() {
                entry["group"] = (*group).into();
                entry["version"] = (*version).into();
            }
            list.push(entry);
        }
    }
    // The core group's own list carries no version; so upstream, ever since it was the only one.
    Ok(match group {
        "" => json!({"kind": "APIResourceList", "groupVersion": version, "resources": list}),
        _ => json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{group}/{version}"), "resources": list,
        }),
    })
}

/// One document for all groups; clients revalidate it by its ETag.
fn aggregated(core: &Core, served: &[GroupView<'_>], version: &'static str, legacy: bool, parts: &Parts) -> Response {
    let items: Vec<Value> = served
        .iter()
        .filter(|g| g.name.is_empty() == legacy)
        .map(|group| {
            let versions: Vec<Value> = group.versions.iter().map(|v| aggregated_version(core, v)).collect();
            let metadata = if legacy { json!({}) } else { json!({"name": group.name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let body = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {}, "items": items,
    })
    .to_string();
    let etag = format!("\"{}\"", hex::encode_upper(Sha256::digest(&body)));
    let same = parts.headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == etag.as_bytes());
    let mut response = Response::new(if same { Body::empty() } else { Body::from(body) });
    if same {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    let media = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    for (name, value) in [(header::CONTENT_TYPE, media), (header::ETAG, etag)] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    response
}

/// What a server that does not answer serves is what it served last, if anything.
fn aggregated_version(core: &Core, version: &VersionView<'_>) -> Value {
    let mut entry = json!({"version": version.version, "freshness": "Current"});
    let resources: Vec<Value> = match &version.served {
        Served::Here(found) => found.resources.iter().map(|r| aggregated_resource(r)).collect(),
        Served::There(remote) => {
            if !remote.is_available(core) {
                entry["freshness"] = "Stale".into();
            }
            let known = remote.learned.lock().resources.clone();
            known.map(|r| aggregation::resource_list(&r)).unwrap_or_default()
        }
    };
    if !resources.is_empty() {
        entry["resources"] = resources.into();
    }
    entry
}

/// Of built-in kinds the response's group and version are left empty, which means those of the document; definitions
/// spell them out. So does upstream.
fn aggregated_resource(resource: &Resource) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let (group, version) = match &resource.custom {
        Some(_) => (&*resource.group, &*resource.version),
        None => ("", ""),
    };
    let mut entry = json!({
        "resource": &*resource.plural, "singularResource": &*resource.singular,
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "responseKind": kind(group, version, &resource.kind),
        "verbs": resource.verbs.list(),
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = resource.short_names.clone().into();
    }
    if !resource.categories.is_empty() {
        entry["categories"] = resource.categories.clone().into();
    }
    if !resource.subresources.is_empty() {
        let parts: Vec<Value> = resource
            .subresources
            .iter()
            .map(|s| {
                let (own_group, own_version, name) = &s.object;
                let response = match own_version.is_empty() {
                    true => kind(group, version, name),
                    false => kind(own_group, own_version, name),
                };
                json!({"subresource": &*s.name, "responseKind": response, "verbs": s.verbs})
            })
            .collect();
        entry["subresources"] = parts.into();
    }
    entry
}
