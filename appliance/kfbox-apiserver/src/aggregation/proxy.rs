//! A request's way to an extension server and back, upgrades included (kube-aggregator `handler_proxy.go`).

use super::{Remote, connect, unavailable};
use crate::{
    auth,
    server::Core,
    status::ApiError,
    subresources::proxy::{HOP, join_upgrades},
};
use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header, request::Parts};
use hyper_util::rt::TokioIo;
use kfbox_base::UserInfo;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// Until the other server begins to answer; upstream's bound on requests that are no watches. Its watches answer their
/// headers at once.
const ANSWER: Duration = Duration::from_secs(60);

/// What a header's name may not hold (Go's `headerKeyEscape`).
const NOT_IN_A_NAME: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'(')
    .add(b')')
    .add(b',')
    .add(b'/')
    .add(b':')
    .add(b';')
    .add(b'<')
    .add(b'=')
    .add(b'>')
    .add(b'?')
    .add(b'@')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'{')
    .add(b'}')
    .add(b'%');

/// Sends the request on as it came, with who sent it in headers instead of their credentials.
pub async fn forward(
    core: &Arc<Core>,
    remote: &Remote,
    user: &UserInfo,
    mut parts: Parts,
    body: Body,
) -> Result<Response, ApiError> {
    let refused = |why: String| {
        tracing::warn!(apiservice = remote.name, why, "an aggregated request failed");
        Ok(unavailable(&format!("error trying to reach service: {why}")))
    };
    if !remote.is_available(core) {
        return Ok(unavailable("service unavailable"));
    }
    let tls = match &remote.tls {
        Ok(tls) => tls,
        Err(why) => return Err(ApiError::internal(why)),
    };
    let place = match connect::place(core, remote) {
        Ok(place) => place,
        Err(why) => {
            tracing::warn!(apiservice = remote.name, why = why.message, "an aggregated request has nowhere to go");
            return Ok(unavailable("service unavailable"));
        }
    };
    let stream = match connect::connect(&place, tls).await {
        Ok(stream) => stream,
        Err(why) => return refused(why),
    };
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    *request.uri_mut() = path.parse::<Uri>().map_err(|_| ApiError::bad_request("the path is no path"))?;
    *request.headers_mut() = carried(&parts.headers, user)?;
    let host = format!("{}.{}.svc", remote.service.name, remote.service.namespace);
    if let Ok(host) = host.parse() {
        request.headers_mut().insert(header::HOST, host);
    }
    let mut response = match exchange(core, stream, request).await {
        Ok(response) => response,
        Err(why) => return refused(why),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        join_upgrades(core, &mut parts, &mut response);
        return Ok(response.map(|_| Body::empty()));
    }
    let mut response = response.map(Body::new);
    for name in HOP {
        response.headers_mut().remove(name);
    }
    Ok(response)
}

/// One request on a connection of its own, which lasts as long as its answer.
pub async fn exchange(
    core: &Core,
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    request: Request<Body>,
) -> Result<http::Response<hyper::body::Incoming>, String> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .handshake::<_, Body>(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let shutdown = core.shutdown.clone();
    core.tasks.spawn("kubernetes-aggregation", async move {
        tokio::select! {
            result = connection.with_upgrades() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a connection to an extension server ended");
                }
            }
            () = shutdown.cancelled() => {}
        }
    });
    tokio::time::timeout(ANSWER, sender.send_request(request))
        .await
        .map_err(|_| "no answer in time".to_owned())?
        .map_err(|e| e.to_string())
}

/// The headers that travel: the client's without its credentials, and who it is.
fn carried(given: &HeaderMap, user: &UserInfo) -> Result<HeaderMap, ApiError> {
    let mut headers = HeaderMap::new();
    let upgrading = given.contains_key(header::UPGRADE);
    let identity: Vec<HeaderName> = auth::authenticate::identity_headers(given);
    for (name, value) in given {
        let hop =
            HOP.contains(&name.as_str()) && !(upgrading && (name == header::UPGRADE || name == header::CONNECTION));
        // Nobody but this server says who the user is.
        let ours = name.as_str().starts_with("x-remote-");
        if !hop && !ours && !identity.contains(name) && name != header::HOST && name != header::COOKIE {
            headers.append(name, value.clone());
        }
    }
    identify(&mut headers, user)?;
    Ok(headers)
}

pub fn identify(headers: &mut HeaderMap, user: &UserInfo) -> Result<(), ApiError> {
    let mut add = |name: HeaderName, value: &str| -> Result<(), ApiError> {
        let value = HeaderValue::from_bytes(value.as_bytes())
            .map_err(|_| ApiError::bad_request("the user's name or groups do not fit into a header"))?;
        headers.append(name, value);
        Ok(())
    };
    add(HeaderName::from_static("x-remote-user"), &user.username)?;
    if !user.uid.is_empty() {
        add(HeaderName::from_static("x-remote-uid"), &user.uid)?;
    }
    for group in &user.groups {
        add(HeaderName::from_static("x-remote-group"), group)?;
    }
    for (key, values) in &user.extra {
        let key = format!("x-remote-extra-{}", utf8_percent_encode(key, NOT_IN_A_NAME)).to_lowercase();
        let Ok(name) = HeaderName::from_bytes(key.as_bytes()) else { continue };
        for value in values {
            add(name.clone(), value)?;
        }
    }
    Ok(())
}

/// An extension server's resources as aggregated discovery shows them (apiserver `ConvertGroupVersionIntoToDiscovery`).
pub fn resource_list(resources: &[Value]) -> Vec<Value> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind =
        |r: &Value| json!({"group": text(&r["group"]), "version": text(&r["version"]), "kind": text(&r["kind"])});
    let mut out: Vec<Value> = Vec::new();
    for resource in resources.iter().filter(|r| !text(&r["name"]).contains('/')) {
        let mut entry = json!({
            "resource": resource["name"], "singularResource": text(&resource["singularName"]),
            "scope": if resource["namespaced"] == true { "Namespaced" } else { "Cluster" },
            "responseKind": kind(resource), "verbs": resource["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if let Some(found) = resource.get(field).filter(|v| v.as_array().is_some_and(|a| !a.is_empty())) {
                entry[field] = found.clone();
            }
        }
        out.push(entry);
    }
    for resource in resources {
        let name = text(&resource["name"]);
        let Some((parent, part)) = name.split_once('/') else { continue };
        let Some(entry) = out.iter_mut().find(|e| e["resource"] == parent) else { continue };
        let part = json!({"subresource": part, "responseKind": kind(resource), "verbs": resource["verbs"]});
        match entry.get_mut("subresources").and_then(Value::as_array_mut) {
            Some(parts) => parts.push(part),
            None => entry["subresources"] = json!([part]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_word_on_who_it_is_does_not_travel() {
        let mut given = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("cookie", "session=1"),
            ("x-remote-user", "root"),
            ("x-remote-extra-scopes", "all"),
            ("impersonate-user", "root"),
            ("connection", "keep-alive"),
            ("accept", "application/json"),
        ] {
            given.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut user = UserInfo::new("ada@example.org", ["staff".to_owned()]);
        user.extra.insert("authentication.kubernetes.io/credential-id".into(), vec!["X509SHA256=1".into()]);
        let headers = carried(&given, &user).unwrap();
        assert_eq!(headers["x-remote-user"], "ada@example.org");
        let groups: Vec<_> = headers.get_all("x-remote-group").iter().collect();
        assert_eq!(groups, ["staff", "system:authenticated"]);
        assert_eq!(headers["x-remote-extra-authentication.kubernetes.io%2fcredential-id"], "X509SHA256=1");
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "accept",
                "x-remote-extra-authentication.kubernetes.io%2fcredential-id",
                "x-remote-group",
                "x-remote-user"
            ]
        );
        assert!(carried(&given, &UserInfo::new("a\nb", [])).is_err());
    }
}
