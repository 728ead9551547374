//! Every request's way: who calls, what for, may they, and then the verb. A panic becomes a 500 and no more.

use crate::{
    aggregation,
    audit::{Subject, Trail},
    auth::{AuthnError, rbac::Asked},
    deadline, discovery, flow,
    negotiate::{Accept, Form, read_body},
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
    let mut trail = Trail::begin(core.audit.clone(), &parts.headers);
    let mut long = false;
    let result = AssertUnwindSafe(answer(core, parts, body, &mut trail, &mut long)).catch_unwind().await;
    let mut response = match result {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            if error.code().is_server_error() {
                tracing::warn!(%method, path, %error, "a request failed");
            }
            trail.failed(&error);
            error.into_response()
        }
        Err(_) => {
            tracing::error!(%method, path, "a request panicked");
            trail.panicked();
            ApiError::internal("the server panicked while it answered").into_response()
        }
    };
    if head {
        *response.body_mut() = Body::empty();
    }
    trail.answered(response, long).await
}

async fn answer(
    core: Arc<Core>,
    mut parts: Parts,
    mut body: Body,
    trail: &mut Trail,
    long: &mut bool,
) -> Result<Response, ApiError> {
    let local = parts.extensions.get::<Local>().is_some();
    let (caller, user) = match parts.extensions.get::<UserInfo>() {
        Some(user) if local => (None, user.clone()),
        _ => authenticate(&core, &parts).await?,
    };
    let query = Query::parse(parts.uri.query())?;
    match route(&parts, &query)? {
        Route::Other => {
            let verb = parts.method.as_str().to_lowercase();
            let path = parts.uri.path();
            trail.asked(caller.as_ref(), &user, Subject::Path { verb: &verb, path }, "", &parts);
            let place = flow::Where::Path(path);
            let class = core.flow.classify(&flow::Asked { user: &user, verb: &verb, place });
            let _seat = core.flow.seat(&class, 1).await?;
            let decision = core.rbac.authorize_url(&user, &verb, path);
            trail.decided(&decision, || core.rbac.why(&user, Asked::Path { verb: &verb, path }));
            if let Decision::Deny(why) = decision {
                return Err(ApiError::forbidden("", "", "", why));
            }
            if let Some(remote) = core.aggregation.of_path(parts.uri.path()) {
                return aggregation::forward(&core, &remote, &user, parts, body).await;
            }
            deadline::within(&query, discovery::answer(&core, &user, parts, body, &query)).await
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
            trail.asked(caller.as_ref(), &user, Subject::Resource(&wanted), &target.version, &parts);
            let stream = matches!(&*target.subresource, "log" | "exec" | "attach" | "portforward" | "proxy");
            *long = stream || verb == "watch";
            let class = core.flow.classify(&flow::Asked {
                user: &user,
                verb,
                place: flow::Where::Resource {
                    group: &target.group,
                    resource: &target.resource,
                    subresource: &target.subresource,
                    namespace: &target.namespace,
                },
            });
            let _seat = match stream {
                true => None,
                false => core.flow.seat(&class, width(&core, verb, &target, &query)).await?,
            };
            let decision = core.rbac.authorize(&user, &wanted);
            trail.decided(&decision, || core.rbac.why(&user, Asked::Resource(&wanted)));
            if let Decision::Deny(why) = decision {
                return Err(ApiError::forbidden(&target.group, &target.resource, &target.name, why));
            }
            if let Some(remote) = core.aggregation.find(&target.group, &target.version) {
                return aggregation::forward(&core, &remote, &user, parts, body).await;
            }
            let call = call(core, &mut parts, query, target, user, local)?;
            if trail.wants_request() && !stream {
                let bytes = deadline::within(&call.query, read_body(body)).await?;
                trail.request(&call.headers, &bytes);
                body = bytes.into();
            }
            let work = dispatch(&call, verb, parts, body);
            let outcome = if *long { work.await } else { deadline::within(&call.query, work).await };
            for (key, value) in std::mem::take(&mut *call.annotations.lock()) {
                trail.annotate(key, &value);
            }
            let mut response = outcome?;
            let warnings = std::mem::take(&mut *call.warnings.lock());
            respond::add_warnings(&mut response, &warnings);
            flow::tell(&mut response, &class);
            Ok(response)
        }
    }
}

/// Seats that a request takes: more for those that touch many objects.
fn width(core: &Core, verb: &str, target: &Target, query: &Query) -> usize {
    let begins = || query.flag("sendInitialEvents") || query.get("resourceVersion").is_none_or(|rv| rv == "0");
    let many = target.name.is_empty() && (matches!(verb, "list" | "deletecollection") || (verb == "watch" && begins()));
    if !many {
        return 1;
    }
    let registry = core.resources.current();
    let Some(resource) = registry.find(&target.group, &target.version, &target.resource) else { return 1 };
    let limit = query.number("limit").ok().flatten().and_then(|l| usize::try_from(l).ok()).filter(|l| *l > 0);
    flow::list_width(core.store.count(&resource.collection), limit)
}

/// Who acts, and who it is really, where that is another.
async fn authenticate(core: &Core, parts: &Parts) -> Result<(Option<UserInfo>, UserInfo), ApiError> {
    let peer = parts.extensions.get::<Peer>();
    let certificates = peer.map(|p| &p.0[..]).unwrap_or_default();
    core.authenticator.callers(certificates, &parts.headers).await.map_err(|error| match error {
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
    if &*call.resource.group == "metrics.k8s.io" {
        return crate::metrics::answer(call).await;
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
