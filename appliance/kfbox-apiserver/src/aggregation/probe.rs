//! Whether an extension server answers, and what it says it serves (`remote_available_controller.go`, and the
//! downloaders of discovery and OpenAPI in kube-aggregator).

use super::{
    Learned, Remote,
    connect::{self, Place, Unreachable},
    proxy::{exchange, identify},
};
use crate::server::Core;
use axum::body::Body;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use kfbox_base::UserInfo;
use serde_json::{Map, Value};
use std::{sync::Arc, time::Duration};

/// For a probe's request and answer, as upstream.
const PATIENCE: Duration = Duration::from_secs(5);

/// A list of resources or an OpenAPI document larger than this is not taken: Kubernetes' own whole one is half of it.
const LARGEST: usize = 8 << 20;

/// Asks the server for its list of resources, and if that works for its OpenAPI documents.
pub async fn probe(core: &Arc<Core>, remote: &Remote) -> Result<Learned, Unreachable> {
    let failed = |message: String| Unreachable { reason: "FailedDiscoveryCheck", message };
    let place = connect::place(core, remote)?;
    let path = format!("/apis/{}/{}", remote.group, remote.version);
    let url = match &place {
        Place::Host(host, port) => format!("https://{host}:{port}{path}"),
        Place::Addresses(addresses) => format!("https://{}{path}", addresses[0]),
    };
    let (status, list) = match tokio::time::timeout(PATIENCE, get(core, remote, &place, &path)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(why)) => return Err(failed(format!("failing or missing response from {url}: {why}"))),
        Err(_) => return Err(failed(format!("timed out waiting for {url}"))),
    };
    if !status.is_success() {
        let why = format!("bad status from {url}: {}", status.as_u16());
        return Err(failed(format!("failing or missing response from {url}: {why}")));
    }
    let mut learned = remote.learned.lock().clone();
    learned.resources = list["resources"].as_array().cloned().map(Arc::new);
    // A server need not have OpenAPI; explain and validation then know nothing of its kinds.
    if let Ok(Ok((StatusCode::OK, index))) =
        tokio::time::timeout(PATIENCE, get(core, remote, &place, "/openapi/v3")).await
    {
        let own = &index["paths"][path.trim_start_matches('/')]["serverRelativeURL"];
        let own = own.as_str().filter(|url| url.starts_with("/openapi/v3/")).map(str::to_owned);
        if own.is_some() && own == learned.openapi_v3 {
            return Ok(learned);
        }
        learned.openapi_v3 = own;
    }
    if let Ok(Ok((StatusCode::OK, document))) =
        tokio::time::timeout(PATIENCE, get(core, remote, &place, "/openapi/v2")).await
    {
        learned.openapi_v2 = Some(Arc::new(own_part(document, &path)));
    }
    Ok(learned)
}

/// Paths of the group's version, and every definition.
fn own_part(mut document: Value, path: &str) -> Value {
    let inside = format!("{path}/");
    let paths: Map<String, Value> = match document["paths"].take() {
        Value::Object(paths) => paths.into_iter().filter(|(p, _)| p == path || p.starts_with(&inside)).collect(),
        _ => Map::new(),
    };
    serde_json::json!({"paths": paths, "definitions": document["definitions"].take()})
}

async fn get(core: &Core, remote: &Remote, place: &Place, path: &str) -> Result<(StatusCode, Value), String> {
    let tls = remote.tls.as_ref().map_err(Clone::clone)?;
    let stream = connect::connect(place, tls).await?;
    let host = format!("{}.{}.svc", remote.service.name, remote.service.namespace);
    let mut request = Request::get(path)
        .header(header::HOST, host)
        .header(header::ACCEPT, "application/json")
        .body(Body::empty())
        .map_err(|e| e.to_string())?;
    let probe = UserInfo::new("system:kube-aggregator", [UserInfo::MASTERS.to_owned()]);
    identify(request.headers_mut(), &probe).map_err(|e| e.to_string())?;
    let response = exchange(core, stream, request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(|e| e.to_string())?.to_bytes();
    Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
}
