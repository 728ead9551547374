//! The REST API of Kubeflow Pipelines, v2beta1 and v1beta1, as the unmodified SDKs call it (swagger:
//! `backend/api/v2beta1/swagger` upstream; `v1` is the older one). Invariants: who calls is in the request's extensions or the answer is 401;
//! every verb is asked of the `Authorizer`; what the caller may not see answers as if it did not exist.

mod artifacts;
mod experiments;
mod pipelines;
mod recurring;
mod render;
mod report;
mod runs;
mod v1;
mod visualizations;

use crate::{
    Inner,
    error::{ApiError, ApiResult, Code},
    store::listing::{Page, Query},
};
use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, FromRequestParts, Request},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::request::Parts;
use kfbox_base::{Decision, ResourceAttributes, UserInfo};
use serde_json::{Map, Value, json};
use std::{borrow::Cow, sync::Arc};

pub(crate) use artifacts::unread;
pub(crate) use pipelines::parsed;
pub(crate) use runs::{new_run, submit};

pub(crate) const GROUP: &str = "pipelines.kubeflow.org";
/// Inline specs are as large as packages, and JSON wraps them.
const MAX_BODY: usize = crate::spec::package::MAX_PACKAGE + (1 << 20);
/// Names and descriptions, in characters. Upstream's columns hold 128 to 255 and 4096.
const MAX_NAME: usize = 255;
const MAX_DESCRIPTION: usize = 4096;

pub(crate) type App = axum::extract::State<Arc<Inner>>;

pub(crate) fn router(inner: Arc<Inner>) -> Router {
    let v2 = Router::new()
        .route("/healthz", get(healthz))
        .route("/auth", get(auth))
        .route("/experiments", get(experiments::list).post(experiments::create))
        .route("/experiments/{id}", get(experiments::get).delete(experiments::delete).post(experiments::act))
        .route("/pipelines", get(pipelines::list).post(pipelines::create))
        .route("/pipelines/create", post(pipelines::create_with_version))
        .route("/pipelines/upload", post(pipelines::upload))
        .route("/pipelines/upload_version", post(pipelines::upload_version))
        .route("/pipelines/names/{name}", get(pipelines::get_by_name))
        .route("/pipelines/{id}", get(pipelines::get).patch(pipelines::update).delete(pipelines::delete))
        .route("/pipelines/{id}/versions", get(pipelines::list_versions).post(pipelines::create_version))
        .route(
            "/pipelines/{id}/versions/{version}",
            get(pipelines::get_version).patch(pipelines::update_version).delete(pipelines::delete_version),
        )
        .route("/runs", get(runs::list).post(runs::create))
        .route("/runs/{id}", get(runs::get).delete(runs::delete).post(runs::act))
        .route("/recurringruns", get(recurring::list).post(recurring::create))
        .route("/runs/{id}/nodes/{node}/artifacts/{artifact}", get(artifacts::read))
        .route("/recurringruns/{id}", get(recurring::get).delete(recurring::delete).post(recurring::act))
        .route("/filters", get(filters))
        .route("/visualizations/{namespace}", post(visualizations::create))
        .route("/workflows", post(report::workflow))
        .route("/scheduledworkflows", post(report::scheduled_workflow));
    Router::new()
        .nest("/apis/v2beta1", v2)
        .nest("/apis/v1beta1", v1::router())
        .route("/apis/v1alpha1/runs/{id}/nodes/{node}/log", get(runs::log))
        .route("/apis/{*rest}", axum::routing::any(nothing))
        .method_not_allowed_fallback(other_method)
        // Room for the form around a package; without a limit of its own it would be axum's 2 MB.
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(inner)
}

/// As the gateway in front of upstream's server answers.
async fn other_method(request: Request) -> ApiError {
    ApiError::new(
        Code::Unimplemented,
        format!("Method Not Allowed: {} is not done to {}", request.method(), request.uri().path()),
    )
}

/// `DummyFilterService`: upstream has it to document filters. Here it checks one, over the fields of runs.
async fn filters(Caller(_): Caller, args: Args) -> ApiResult<Json<Value>> {
    Ok(Json(crate::store::listing::normalized(&crate::store::listing::RUNS, &args.text("filter"))?))
}

async fn nothing(request: Request) -> ApiError {
    ApiError::new(
        Code::NotFound,
        format!("{} {} is not an address of the pipelines API", request.method(), request.uri().path()),
    )
}

/// Answers anyone: `kfp.Client` asks before it has a namespace, and it tells nothing.
async fn healthz() -> Json<Value> {
    Json(json!({"multi_user": true, "pipeline_store": "database"}))
}

async fn healthz_v1() -> Json<Value> {
    Json(json!({"multi_user": true, "tag_name": env!("CARGO_PKG_VERSION")}))
}

/// `AuthService.Authorize`: may the caller work with viewers in a namespace?
async fn auth(app: App, Caller(user): Caller, Args(args): Args) -> ApiResult<Json<Value>> {
    // Enumerations travel by name or by number.
    let verb = match args.get("verb") {
        Some("1") => Some("create".to_owned()),
        Some("2") => Some("get".to_owned()),
        Some("3") => Some("delete".to_owned()),
        other => other.map(str::to_ascii_lowercase).filter(|v| matches!(v.as_str(), "create" | "get" | "delete")),
    };
    let verb = verb.ok_or_else(|| ApiError::invalid("verb should be CREATE, GET or DELETE"))?;
    if !matches!(args.get("resources"), Some("VIEWERS" | "1")) {
        return Err(ApiError::invalid("resources should be VIEWERS"));
    }
    let namespace =
        args.get("namespace").filter(|n| !n.is_empty()).ok_or_else(|| ApiError::invalid("namespace is empty"))?;
    app.allow(&user, ResourceAttributes::namespaced(&verb, "kubeflow.org", "viewers", namespace)).await?;
    Ok(Json(json!({})))
}

/// The authenticated caller.
pub(crate) struct Caller(pub UserInfo);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> ApiResult<Self> {
        match parts.extensions.get::<UserInfo>() {
            Some(user) if !user.is_anonymous() => Ok(Self(user.clone())),
            _ => Err(ApiError::new(
                Code::Unauthenticated,
                "sign in first: the request carries no valid session or token",
            )),
        }
    }
}

/// The query string, decoded.
pub(crate) struct Args(Args_);

pub(crate) struct Args_(Vec<(String, String)>);

impl Args_ {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name || snake_case(n) == name).map(|(_, v)| v.as_str())
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.get(name).unwrap_or_default().to_owned()
    }

    pub(crate) fn listing(&self) -> ApiResult<Query> {
        let page_size = match self.get("page_size") {
            None | Some("") => None,
            Some(text) => {
                Some(text.parse().map_err(|_| ApiError::invalid(format!("page_size `{text}` is no number")))?)
            }
        };
        Ok(Query {
            page_token: self.text("page_token"),
            page_size,
            sort_by: self.text("sort_by"),
            filter: self.text("filter"),
        })
    }
}

impl std::ops::Deref for Args {
    type Target = Args_;
    fn deref(&self) -> &Args_ {
        &self.0
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Args {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> ApiResult<Self> {
        let decode = |text: &str| {
            let text = text.replace('+', " ");
            percent_encoding::percent_decode_str(&text).decode_utf8().map(Cow::into_owned)
        };
        let pairs = parts.uri.query().unwrap_or_default().split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        });
        let pairs = pairs
            .collect::<Result<_, std::str::Utf8Error>>()
            .map_err(|_| ApiError::invalid("the query string is not UTF-8"))?;
        Ok(Self(Args_(pairs)))
    }
}

/// A field by its protobuf name, in either of the spellings that protobuf's JSON knows.
pub(crate) fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let map = value.as_object()?;
    let found = map.get(name).or_else(|| map.iter().find(|(key, _)| snake_case(key) == name).map(|(_, v)| v));
    found.filter(|v| !v.is_null())
}

pub(crate) fn text_field(value: &Value, name: &str) -> ApiResult<String> {
    match field(value, name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(ApiError::invalid(format!("{name} should be a string"))),
    }
}

pub(crate) fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

async fn json_body(body: Body) -> ApiResult<Value> {
    let bytes = axum::body::to_bytes(body, MAX_BODY)
        .await
        .map_err(|_| ApiError::invalid(format!("the body is larger than {} MiB or was cut off", MAX_BODY >> 20)))?;
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|e| ApiError::invalid(format!("the body is no JSON: {e}")))?;
    if value.is_object() { Ok(value) } else { Err(ApiError::invalid("the body should be a JSON object")) }
}

fn display_name(value: &Value) -> ApiResult<String> {
    let name = text_field(value, "display_name")?;
    let name = if name.is_empty() { text_field(value, "name")? } else { name };
    checked_name(&name)?;
    Ok(name)
}

pub(crate) fn checked_name(name: &str) -> ApiResult<()> {
    if name.trim().is_empty() {
        return Err(ApiError::invalid("the name is empty"));
    }
    if name.chars().count() > MAX_NAME {
        return Err(ApiError::invalid(format!("the name has more than {MAX_NAME} characters")));
    }
    if name.chars().any(char::is_control) {
        return Err(ApiError::invalid("the name holds a control character"));
    }
    Ok(())
}

pub(crate) fn description(value: &Value) -> ApiResult<String> {
    let text = text_field(value, "description")?;
    if text.chars().count() > MAX_DESCRIPTION {
        return Err(ApiError::invalid(format!("the description has more than {MAX_DESCRIPTION} characters")));
    }
    Ok(text)
}

pub(crate) fn tags(value: &Value) -> ApiResult<Value> {
    match field(value, "tags") {
        None => Ok(json!({})),
        Some(Value::Object(map)) if map.len() <= 64 && map.values().all(Value::is_string) => {
            Ok(Value::Object(map.clone()))
        }
        Some(_) => Err(ApiError::invalid("tags should be an object of at most 64 strings")),
    }
}

impl<T> Page<T> {
    /// The page as a list's answer. The last one names no next page, not even an empty one, as upstream's JSON leaves empty
    /// fields out: clients ask for more while they are given a token that is not null.
    fn shown(&self, list: &str, rows: Vec<Value>) -> Json<Value> {
        let mut answer = json!({list: rows, "total_size": self.total});
        if !self.next_page_token.is_empty() {
            answer["next_page_token"] = json!(self.next_page_token);
        }
        Json(answer)
    }
}

/// A DNS label, as namespaces are; anything else never reaches the cluster or a path.
pub(crate) fn is_label(text: &str) -> bool {
    let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !text.is_empty() && text.len() <= 63 && text.bytes().all(fits) && !text.starts_with('-') && !text.ends_with('-')
}

fn empty() -> Response {
    Json(Map::new()).into_response()
}

impl Inner {
    /// Asks the one authorization path; a denial is a 403 with its reason.
    pub(crate) async fn allow(&self, user: &UserInfo, what: ResourceAttributes) -> ApiResult<()> {
        match self.deps.authorizer.authorize(user, &what).await {
            Ok(Decision::Allow) => Ok(()),
            Ok(Decision::Deny(_)) => Err(ApiError::new(
                Code::PermissionDenied,
                format!("{} may not {} {} in namespace {}", user.username, what.verb, what.resource, what.namespace),
            )),
            Err(cause) => Err(ApiError::internal("the authorization check", cause)),
        }
    }

    pub(crate) async fn allow_verb(
        &self,
        user: &UserInfo,
        verb: &str,
        resource: &str,
        namespace: &str,
    ) -> ApiResult<()> {
        if verb == "create" && self.ending.lock().contains(namespace) {
            return Err(ApiError::new(
                Code::FailedPrecondition,
                format!("namespace {namespace} is being deleted: nothing new can be made in it"),
            ));
        }
        self.allow(user, ResourceAttributes::namespaced(verb, GROUP, resource, namespace)).await
    }

    /// For objects named by id: who may not get it learns nothing of it; who may get it but not `verb` it is told so.
    pub(crate) async fn allow_on(
        &self,
        user: &UserInfo,
        verb: &str,
        resource: &str,
        namespace: &str,
        not_found: impl FnOnce() -> ApiError,
    ) -> ApiResult<()> {
        match self.allow_verb(user, "get", resource, namespace).await {
            Err(ApiError { code: Code::PermissionDenied, .. }) => return Err(not_found()),
            other => other?,
        }
        if verb == "get" { Ok(()) } else { self.allow_verb(user, verb, resource, namespace).await }
    }

    /// The namespace to create in: the one named, or the caller's own.
    pub(crate) async fn namespace(&self, user: &UserInfo, named: &str) -> ApiResult<String> {
        if !named.is_empty() {
            return if is_label(named) {
                Ok(named.to_owned())
            } else {
                Err(ApiError::invalid(format!("`{named}` is no namespace")))
            };
        }
        let own = self.namespaces_of(user).await?.into_iter().next();
        own.ok_or_else(|| ApiError::invalid("the request names no namespace, and you have none of your own"))
    }

    pub(crate) async fn namespaces_of(&self, user: &UserInfo) -> ApiResult<Vec<String>> {
        if let Some((namespace, _)) = user.service_account() {
            return Ok(vec![namespace.to_owned()]);
        }
        self.deps.namespaces.of(user).await.map_err(|e| ApiError::internal("looking up your namespaces", e))
    }

    /// The namespaces a list covers: the one named, which must be allowed, or all of the caller's that are.
    pub(crate) async fn listed(&self, user: &UserInfo, resource: &str, named: &str) -> ApiResult<Vec<String>> {
        if !named.is_empty() {
            if !is_label(named) {
                return Err(ApiError::invalid(format!("`{named}` is no namespace")));
            }
            self.allow_verb(user, "list", resource, named).await?;
            return Ok(vec![named.to_owned()]);
        }
        let mut allowed = Vec::new();
        for namespace in self.namespaces_of(user).await? {
            match self.allow_verb(user, "list", resource, &namespace).await {
                Ok(()) => allowed.push(namespace),
                Err(ApiError { code: Code::PermissionDenied, .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(allowed)
    }
}
