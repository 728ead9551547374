//! Every request's way: who calls, what for, may they, and then the verb. A panic becomes a 500 and no more.

use crate::{
    auth::AuthnError,
    discovery,
    negotiate::{Accept, Form},
    request::{Query, Route, Target, route},
    respond,
    server::{Core, Local, Peer},
    status::ApiError,
    subresources,
    verbs::{self, Call},
};
use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use futures::FutureExt as _;
use http::{HeaderMap, Request, StatusCode, request::Parts};
use kfbox_base::{Decision, ResourceAttributes, UserInfo};
use parking_lot::Mutex;
use std::{panic::AssertUnwindSafe, sync::Arc};

pub async fn handle(core: Arc<Core>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    let head = method == http::Method::HEAD;
    let result = AssertUnwindSafe(answer(core, parts, body)).catch_unwind().await;
    let mut response = match result {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            if error.code().is_server_error() {
                tracing::warn!(%method, path, %error, "a request failed");
            }
            error.into_response()
        }
        Err(_) => {
            tracing::error!(%method, path, "a request panicked");
            ApiError::internal("the server panicked while it answered").into_response()
        }
    };
    if head {
        *response.body_mut() = Body::empty();
    }
    response
}

async fn answer(core: Arc<Core>, mut parts: Parts, body: Body) -> Result<Response, ApiError> {
    let local = parts.extensions.get::<Local>().is_some();
    let user = match parts.extensions.get::<UserInfo>() {
        Some(user) if local => user.clone(),
        _ => authenticate(&core, &parts).await?,
    };
    let query = Query::parse(parts.uri.query())?;
    match route(&parts, &query)? {
        Route::Other => {
            let verb = parts.method.as_str().to_lowercase();
            if let Decision::Deny(why) = core.rbac.authorize_url(&user, &verb, parts.uri.path()) {
                return Err(ApiError::forbidden("", "", "", why));
            }
            discovery::answer(&core, &parts, &query).await
        }
        Route::Resource { verb, target } => {
            let wanted = ResourceAttributes {
                verb: verb.into(),
                group: target.group.clone(),
                resource: target.resource.clone(),
                subresource: target.subresource.clone(),
                namespace: target.namespace.clone(),
                name: target.name.clone(),
            };
            if let Decision::Deny(why) = core.rbac.authorize(&user, &wanted) {
                return Err(ApiError::forbidden(&target.group, &target.resource, &target.name, why));
            }
            let call = call(core, &mut parts, query, target, user, local)?;
            let mut response = dispatch(&call, verb, parts, body).await?;
            let warnings = std::mem::take(&mut *call.warnings.lock());
            for (key, value) in std::mem::take(&mut *call.annotations.lock()) {
                tracing::debug!(key, value, "audit annotation");
            }
            respond::add_warnings(&mut response, &warnings);
            Ok(response)
        }
    }
}

async fn authenticate(core: &Core, parts: &Parts) -> Result<UserInfo, ApiError> {
    let peer = parts.extensions.get::<Peer>();
    let certificates = peer.map(|p| &p.0[..]).unwrap_or_default();
    core.authenticator.authenticate(certificates, &parts.headers).await.map_err(|error| match error {
        AuthnError::Unauthorized => ApiError::unauthorized(),
        AuthnError::Forbidden(why) => ApiError::new(StatusCode::FORBIDDEN, "Forbidden", why),
        AuthnError::BadRequest(why) => ApiError::bad_request(why),
    })
}

fn call(
    core: Arc<Core>,
    parts: &mut Parts,
    query: Query,
    target: Target,
    user: UserInfo,
    local: bool,
) -> Result<Arc<Call>, ApiError> {
    let registry = core.resources.current();
    let resource =
        registry.find(&target.group, &target.version, &target.resource).cloned().ok_or_else(ApiError::no_such_path)?;
    if !resource.namespaced && !target.namespace.is_empty() && &*resource.plural != "namespaces" {
        return Err(ApiError::no_such_path());
    }
    if !target.subresource.is_empty() && !resource.has_subresource(&target.subresource) {
        return Err(ApiError::no_such_path());
    }
    // Streams and proxied requests negotiate by themselves.
    let negotiated = !matches!(&*target.subresource, "log" | "exec" | "attach" | "portforward" | "proxy");
    let accept = match Accept::parse(&parts.headers) {
        Err(error) if negotiated => return Err(error),
        accept => accept.unwrap_or(Accept { form: Form::Object, yaml: false, gzip: false }),
    };
    let dry_run = query.dry_run()?;
    let headers: HeaderMap = parts.headers.clone();
    let warnings = resource.custom.as_ref().and_then(|c| c.deprecation.clone());
    let warnings = Mutex::new(warnings.into_iter().collect());
    Ok(Arc::new(Call {
        core,
        registry,
        resource,
        target,
        query,
        user,
        headers,
        accept,
        dry_run,
        local,
        warnings,
        annotations: Mutex::default(),
    }))
}

async fn dispatch(call: &Arc<Call>, verb: &'static str, parts: Parts, body: Body) -> Result<Response, ApiError> {
    if !call.target.subresource.is_empty() {
        return subresources::dispatch(call, verb, parts, body).await;
    }
    if !call.resource.verbs.allows(verb) {
        return Err(ApiError::method_not_allowed());
    }
    if call.resource.verbs == crate::resources::Verbs::Create {
        return subresources::create_virtual(call, body).await;
    }
    let one = !call.target.name.is_empty();
    if one && call.resource.namespaced && call.target.namespace.is_empty() && verb != "watch" && verb != "list" {
        return Err(ApiError::no_such_path());
    }
    match verb {
        "get" => verbs::get(call).await,
        "list" => verbs::list(call).await,
        "watch" => verbs::watch(call.clone()).await,
        "create" if one && &*call.resource.plural != "namespaces" => Err(ApiError::method_not_allowed()),
        "create" => verbs::create(call, body).await,
        "update" if one => verbs::update(call, body).await,
        "patch" if one => verbs::patch(call, body).await,
        "delete" => verbs::delete(call, body).await,
        "deletecollection" if call.resource.namespaced && call.target.namespace.is_empty() => {
            Err(ApiError::method_not_allowed())
        }
        "deletecollection" => verbs::delete_collection(call, body).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// A call that the server makes of itself, with every right.
pub fn own_call(core: &Arc<Core>, resource: Arc<crate::resources::Resource>, namespace: &str, name: &str) -> Call {
    Call {
        core: core.clone(),
        registry: core.resources.current(),
        target: Target {
            group: resource.group.to_string(),
            version: resource.version.to_string(),
            namespace: namespace.into(),
            resource: resource.plural.to_string(),
            name: name.into(),
            ..Target::default()
        },
        resource,
        query: Query::default(),
        user: UserInfo::new("system:apiserver", [UserInfo::MASTERS.to_owned()]),
        headers: HeaderMap::new(),
        accept: Accept { form: Form::Object, yaml: false, gzip: false },
        dry_run: false,
        local: true,
        warnings: Mutex::default(),
        annotations: Mutex::default(),
    }
}
