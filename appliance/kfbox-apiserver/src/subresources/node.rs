//! The kubelet's own HTTP API by way of `nodes/NAME/proxy`, after RBAC: metrics, statistics and health. What it could
//! change or run there has subresources of pods, which are authorized one by one, so only reading is served.
//! Upstream: <https://kubernetes.io/docs/reference/node/kubelet-authn-authz/>

use super::pod::kubelet_error;
use crate::{status::ApiError, store::Key, verbs::Call};
use axum::{body::Body, response::Response};
use http::{HeaderValue, Method, header, request::Parts};

pub async fn proxy(call: &Call, parts: &Parts) -> Result<Response, ApiError> {
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(ApiError::method_not_allowed());
    }
    // `[https:]NAME[:PORT]`: there is one port only, whatever its number.
    let steps: Vec<&str> = call.target.name.split(':').collect();
    let name = if steps.len() == 3 { steps[1] } else { steps[0] };
    let store = &call.core.store;
    store
        .get(&call.resource.collection, &Key::new("", name))
        .ok_or_else(|| ApiError::not_found(&call.resource.group, &call.resource.plural, name))?;
    let path = format!("/{}", call.target.rest);
    let answer = call.core.kubelet()?.http(&path).await.map_err(kubelet_error)?;
    let body = if parts.method == Method::HEAD { Body::empty() } else { Body::from(answer.body) };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    Ok(response)
}
