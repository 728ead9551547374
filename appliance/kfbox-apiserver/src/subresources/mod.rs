//! Subresources, and the virtual resources that are only ever created.

mod eviction;
mod forward;
mod node;
mod pod;
pub mod proxy;
pub mod scale;
mod spdy;
mod streams;

use crate::{
    admission::dynamic,
    auth::reviews::{self, ReviewError},
    negotiate::{decode, read_body},
    respond,
    status::ApiError,
    verbs::{self, Call, Modification, object_response},
};
use axum::{body::Body, response::Response};
use http::{StatusCode, request::Parts};
use serde_json::Value;
use std::sync::Arc;

pub async fn dispatch(call: &Arc<Call>, verb: &'static str, parts: Parts, body: Body) -> Result<Response, ApiError> {
    let subresource = &*call.target.subresource;
    if !call.resource.subresources.iter().any(|s| &*s.name == subresource && s.verbs.contains(&verb)) {
        return Err(ApiError::method_not_allowed());
    }
    if call.resource.namespaced && call.target.namespace.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let body = match subresource {
        "binding" | "eviction" | "token" => dynamic::on_post(call, body).await?,
        "exec" | "attach" | "portforward" | "proxy" => {
            dynamic::on_connect(call).await?;
            body
        }
        _ => body,
    };
    match (subresource, verb) {
        ("proxy", _) if &*call.resource.collection == "nodes" => node::proxy(call, &parts).await,
        ("proxy", _) => proxy::proxy(call, parts, body).await,
        ("log", _) => pod::log(call).await,
        ("exec" | "attach", _) => streams::exec(call, parts).await,
        ("portforward", _) => streams::port_forward(call, parts).await,
        ("binding", _) => pod::bind(call, body).await,
        ("eviction", _) => eviction::evict(call, body).await,
        ("token", _) => token(call, body).await,
        ("finalize", _) => finalize(call, body).await,
        ("scale", "get") => scale::get(call),
        ("scale", "update") => scale::update(call, body).await,
        ("scale", "patch") => scale::patch(call, body).await,
        (_, "get") => verbs::get(call).await,
        (_, "update") => verbs::update(call, body).await,
        (_, "patch") => verbs::patch(call, body).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

fn review_error(error: ReviewError) -> ApiError {
    ApiError::new(
        StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        error.reason(),
        error.to_string(),
    )
}

/// Reviews and bindings: answered, never stored.
pub async fn create_virtual(call: &Arc<Call>, body: Body) -> Result<Response, ApiError> {
    let body = read_body(body).await?;
    let mut object = decode(&call.headers, &body)?;
    call.check_type(&mut object)?;
    let rbac = &call.core.rbac;
    let answer = match &*call.resource.kind {
        "SubjectAccessReview" => reviews::subject_access_review(rbac, &object),
        "SelfSubjectAccessReview" => reviews::self_subject_access_review(rbac, &call.user, &object),
        "LocalSubjectAccessReview" => reviews::local_subject_access_review(rbac, call.namespace(), &object),
        "SelfSubjectRulesReview" => reviews::self_subject_rules_review(rbac, &call.user, &object),
        "SelfSubjectReview" => Ok(reviews::self_subject_review(&call.user, &object)),
        "TokenReview" => reviews::token_review(&call.core.authenticator, &object).await,
        "Binding" => return pod::bind_object(call, dynamic::on_virtual(call, object).await?).await,
        _ => return Err(ApiError::method_not_allowed()),
    };
    Ok(respond::value(call, StatusCode::CREATED, &answer.map_err(review_error)?))
}

async fn token(call: &Call, body: Body) -> Result<Response, ApiError> {
    let body = read_body(body).await?;
    let mut object: Value = if body.is_empty() { serde_json::json!({}) } else { decode(&call.headers, &body)? };
    call.check_type_as(&mut object, "authentication.k8s.io/v1", "TokenRequest")?;
    let authenticator = &call.core.authenticator;
    let (tokens, lookup) = (authenticator.tokens(), authenticator.lookup());
    let answer = reviews::token_request(tokens, lookup, call.namespace(), &call.target.name, &object);
    Ok(respond::value(call, StatusCode::CREATED, &answer.map_err(review_error)?))
}

/// `namespaces/NAME/finalize` replaces the list of content finalizers, and nothing else.
async fn finalize(call: &Call, body: Body) -> Result<Response, ApiError> {
    let body = read_body(body).await?;
    let mut given = decode(&call.headers, &body)?;
    call.check_type(&mut given)?;
    let how = Modification { subresource: "finalize", track: true, replace: false };
    let modified = verbs::modify(call, &how, |old| {
        let mut new = old.clone();
        new["metadata"]["resourceVersion"] = given["metadata"]["resourceVersion"].clone();
        new["spec"]["finalizers"] = given["spec"]["finalizers"].clone();
        if new["spec"]["finalizers"].is_null()
            && let Some(spec) = new["spec"].as_object_mut()
        {
            spec.remove("finalizers");
        }
        Ok(new)
    })
    .await?;
    Ok(object_response(call, StatusCode::OK, &modified))
}
