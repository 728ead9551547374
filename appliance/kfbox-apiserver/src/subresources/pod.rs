//! Pods: log and binding.

use super::super::kubelet::{KubeletError, LogOptions};
use crate::{
    convert,
    negotiate::{decode, read_body},
    object::{is_deleting, member_mut, meta, string_map},
    respond,
    status::ApiError,
    store::{Key, Object},
    verbs::{self, Call, Modification},
};
use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use std::sync::Arc;

pub fn stored_pod(call: &Call) -> Result<Arc<Object>, ApiError> {
    call.core.store.get(&call.resource.collection, &call.key()).ok_or_else(|| call.not_found())
}

pub fn kubelet_error(error: KubeletError) -> ApiError {
    match error {
        KubeletError::NotFound(why) => ApiError::new(StatusCode::NOT_FOUND, "NotFound", why),
        KubeletError::NotNow(why) => ApiError::bad_request(why),
        KubeletError::Failed(why) => ApiError::internal(why),
    }
}

/// The container that is asked for, or the only one there is to ask for.
pub fn container(call: &Call, pod: &Value) -> Result<String, ApiError> {
    let names = |list: &str| -> Vec<String> {
        pod["spec"][list]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| c["name"].as_str().map(str::to_owned))
            .collect()
    };
    let (containers, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let name = meta(pod, "name");
    if let Some(asked) = call.query.get("container") {
        if containers.iter().chain(&init).chain(&ephemeral).any(|c| c == asked) {
            return Ok(asked.to_owned());
        }
        return Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}")));
    }
    let preferred = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    match (preferred, &containers[..]) {
        (_, [only]) if init.is_empty() || call.target.subresource != "log" => Ok(only.clone()),
        (Some(preferred), _) if containers.iter().any(|c| c == preferred) => Ok(preferred.to_owned()),
        (_, [first, ..]) if call.target.subresource != "log" => Ok(first.clone()),
        (_, [only]) if !init.is_empty() => Ok(only.clone()),
        _ => {
            let mut why =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", containers.join(" "));
            if !init.is_empty() {
                why += &format!(" or one of the init containers: [{}]", init.join(" "));
            }
            Err(ApiError::bad_request(why))
        }
    }
}

pub async fn log(call: &Call) -> Result<Response, ApiError> {
    let stored = stored_pod(call)?;
    let pod = convert::value(&call.resource, &stored);
    let container = container(call, &pod)?;
    let query = &call.query;
    let count = |key: &str| -> Result<Option<u64>, ApiError> {
        let value = query.number(key)?;
        match value.map(u64::try_from) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(_)) => {
                let error =
                    crate::schema::FieldError::invalid(key, &json!(value), "must be greater than or equal to 0");
                Err(ApiError::invalid("", "PodLogOptions", &call.target.name, &[error]))
            }
        }
    };
    let options = LogOptions {
        follow: query.flag("follow"),
        tail_lines: count("tailLines")?,
        since_seconds: query.number("sinceSeconds")?,
        since_time: query.get("sinceTime").map(str::to_owned),
        timestamps: query.flag("timestamps"),
        previous: query.flag("previous"),
        limit_bytes: count("limitBytes")?,
        stream: query.get("stream").map(str::to_owned),
    };
    if pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty) {
        // Upstream answers with nothing for a pod that no node has.
        return Ok(plain(Body::empty()));
    }
    let stream = call
        .core
        .kubelet()?
        .logs(call.namespace(), &call.target.name, &container, options)
        .await
        .map_err(kubelet_error)?;
    let shutdown = call.core.shutdown.clone();
    Ok(plain(Body::from_stream(futures::StreamExt::take_until(stream, shutdown.cancelled_owned()))))
}

fn plain(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

pub async fn bind(call: &Call, body: Body) -> Result<Response, ApiError> {
    let body = read_body(body).await?;
    let mut binding = decode(&call.headers, &body)?;
    call.check_type_as(&mut binding, "v1", "Binding")?;
    assign(call, &binding).await
}

/// `POST namespaces/NS/bindings`, which names the pod in the body.
pub async fn bind_object(call: &Call, binding: Value) -> Result<Response, ApiError> {
    let name = meta(&binding, "name").to_owned();
    let pods = call.registry.find("", "v1", "pods").cloned().ok_or_else(ApiError::no_such_path)?;
    let mut target = call.target.clone();
    target.name = name;
    target.resource = "pods".into();
    target.subresource = "binding".into();
    let inner = Call {
        core: call.core.clone(),
        registry: call.registry.clone(),
        resource: pods,
        target,
        query: call.query.clone(),
        user: call.user.clone(),
        headers: call.headers.clone(),
        accept: call.accept,
        dry_run: call.dry_run,
        local: call.local,
        warnings: parking_lot::Mutex::default(),
        annotations: parking_lot::Mutex::default(),
    };
    assign(&inner, &binding).await
}

/// What a pod is told of where its node is (the admission plugin PodTopologyLabels), so that it can read it as labels of
/// its own.
const TOPOLOGY: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

/// Gives a pod to a node, once (`BindingREST`).
async fn assign(call: &Call, binding: &Value) -> Result<Response, ApiError> {
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    let kind = binding["target"]["kind"].as_str().unwrap_or_default();
    let mut errors = Vec::new();
    if !matches!(kind, "" | "Node") {
        let known = ["Node", "<empty>"];
        errors.push(crate::schema::FieldError::not_supported("target.kind", &kind.into(), &known));
    }
    if node.is_empty() {
        errors.push(crate::schema::FieldError::required("target.name", ""));
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid("", "Binding", &call.target.name, &errors));
    }
    let place = call.core.store.get("nodes", &Key::new("", node)).map(|node| node.value()).unwrap_or_default();
    let how = Modification { subresource: "binding", track: true, replace: false };
    let conflict = |why: String| ApiError::conflict("", "pods/binding", &call.target.name, why);
    verbs::modify(call, &how, |pod| {
        if is_deleting(pod) {
            return Err(conflict(format!("pod {} is being deleted, cannot be assigned to a host", meta(pod, "name"))));
        }
        if let Some(has) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
            return Err(conflict(format!("pod {} is already assigned to node {has:?}", meta(pod, "name"))));
        }
        let mut new = pod.clone();
        new["spec"]["nodeName"] = node.into();
        for (key, value) in string_map(&binding["metadata"]["annotations"]) {
            member_mut(&mut new["metadata"], "annotations").insert(key, value.into());
        }
        let scheduled = json!({
            "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": crate::object::now(),
        });
        for label in TOPOLOGY {
            if let Some(place) = place["metadata"]["labels"].get(label) {
                member_mut(&mut new["metadata"], "labels").entry(label).or_insert_with(|| place.clone());
            }
        }
        let conditions = member_mut(&mut new, "status").entry("conditions").or_insert_with(|| json!([]));
        if let Some(conditions) = conditions.as_array_mut() {
            conditions.retain(|c| c["type"] != "PodScheduled");
            conditions.push(scheduled);
        }
        crate::object::set_meta(&mut new, "resourceVersion", meta(&binding.clone(), "resourceVersion"));
        Ok(new)
    })
    .await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(respond::value(call, StatusCode::CREATED, &status))
}
