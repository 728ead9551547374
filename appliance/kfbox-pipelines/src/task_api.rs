//! The API that `kfbox-launcher` calls from inside a step's container. Guarantees: a token opens one attempt of one
//! task, while it runs, and through it only the artifacts that it was given and those below its own output root.
//! Assumption: the listener is reachable for pods only.
//!
//! | call | |
//! |---|---|
//! | `GET  /v1/runs/{run}/tasks/{task}/{attempt}` | what to do |
//! | `GET  …/inputs/{n}?path=` | a file of the n-th input artifact |
//! | `PUT  …/outputs/{name}?path=&uri=` | a file of an output artifact |
//! | `POST …/result` | how it ended; answered once stored, and again for a repeat |

use crate::{
    Inner,
    engine::{Assignment, Report, Request},
    error::{ApiError, ApiResult, Code},
    outside::{Found, Unlocated},
    ports::{ArtifactStore, Hidden, S3Keys, StoreError},
    roots::Location,
};
use axum::{
    Json, Router,
    body::Body,
    extract::{FromRequestParts, Path, State},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, StatusCode, header, request::Parts};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// A report holds parameter values; artifacts travel as files.
const MAX_REPORT: usize = 16 << 20;
/// Files listed for one input artifact.
const MAX_FILES: usize = 100_000;
/// Less than a launcher waits for an answer.
const LISTING: Duration = Duration::from_secs(90);
const GLANCE: Duration = Duration::from_secs(10);
/// One file of an artifact.
const MAX_FILE: u64 = 1 << 40;

type App = State<Arc<Inner>>;

pub(crate) fn router(inner: Arc<Inner>) -> Router {
    let task = Router::new()
        .route("/", get(begin))
        .route("/inputs/{n}", get(download))
        .route("/outputs/{name}", put(upload))
        .route("/result", post(report));
    Router::new().nest("/v1/runs/{run}/tasks/{task}/{attempt}", task).with_state(inner)
}

/// The attempt that the request's address names and its token opens.
struct Attempt {
    run: String,
    task: String,
    attempt: u32,
    keys: Option<S3Keys>,
}

impl FromRequestParts<Arc<Inner>> for Attempt {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, inner: &Arc<Inner>) -> ApiResult<Self> {
        let denied = || ApiError::new(Code::Unauthenticated, "the task's token is missing or wrong");
        let Path(names) =
            Path::<BTreeMap<String, String>>::from_request_parts(parts, inner).await.map_err(|_| denied())?;
        let (Some(run), Some(task)) = (names.get("run").cloned(), names.get("task").cloned()) else {
            return Err(denied());
        };
        let attempt = names.get("attempt").and_then(|a| a.parse().ok()).ok_or_else(denied)?;
        let given = bearer(&parts.headers).ok_or_else(denied)?;
        let expected = inner.engine.token(&run, &task, attempt);
        let good: bool = subtle::ConstantTimeEq::ct_eq(given.as_bytes(), expected.as_bytes()).into();
        if good { Ok(Self { run, task, attempt, keys: environment(&parts.headers) }) } else { Err(denied()) }
    }
}

pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// What the launcher shows of its environment: `access=…&secret=…&session=…`.
pub(crate) fn environment(headers: &HeaderMap) -> Option<S3Keys> {
    let mut found = BTreeMap::new();
    for pair in headers.get("x-kfbox-s3")?.to_str().ok()?.split('&') {
        let (name, value) = pair.split_once('=')?;
        found.insert(name, percent_encoding::percent_decode_str(value).decode_utf8().ok()?.into_owned());
    }
    let session = found.remove("session").map(Hidden::new);
    Some(S3Keys { access: found.remove("access")?, secret: Hidden::new(found.remove("secret")?), session })
}

/// 410: the launcher stops, it does not try again.
pub(crate) fn over() -> Response {
    let message = "this attempt is not running (any more)";
    (StatusCode::GONE, Json(json!({"error": message, "code": 9, "message": message, "details": []}))).into_response()
}

impl Attempt {
    async fn scope(&self, app: &Inner) -> Option<Assignment> {
        let make = |answer| Request::Scope { task: self.task.clone(), attempt: self.attempt, answer };
        app.engine.request(&self.run, make).await.flatten()
    }
}

async fn begin(State(app): App, attempt: Attempt) -> ApiResult<Response> {
    let make = |answer| Request::Begin { task: attempt.task.clone(), attempt: attempt.attempt, answer };
    let Some(assignment) = app.engine.request(&attempt.run, make).await.flatten() else { return Ok(over()) };
    Ok(Json(told(&app, &assignment, attempt.keys).await?).into_response())
}

/// An assignment as the launcher reads it.
pub(crate) async fn told(app: &Inner, assignment: &Assignment, keys: Option<S3Keys>) -> ApiResult<Value> {
    let mut inputs = Vec::new();
    for input in &assignment.inputs {
        // Without a listing the artifact is not fetched; the step may still read its URI.
        let (namespace, root) = (&assignment.namespace, &assignment.pipeline_root);
        let (files, problem, fatal) = match app.locate_for(namespace, &input.uri, root, keys.clone()).await {
            Ok(found) => match listed(&found).await {
                Ok(files) => (Some(files), None, false),
                Err(error) if error.code == Code::FailedPrecondition => (None, Some(error.message), found.meant),
                Err(error) => return Err(error),
            },
            Err(Unlocated::Elsewhere(why) | Unlocated::Fenced(why)) => (None, Some(why), false),
            Err(Unlocated::Unusable(why)) => (None, Some(why), true),
        };
        inputs.push(json!({
            "name": input.name, "uri": input.uri, "path": input.path, "files": files,
            "problem": problem, "fatal": problem.is_some() && (fatal || input.must),
        }));
    }
    let outputs: Vec<Value> =
        assignment.output_artifacts.iter().map(|a| json!({"name": a.name, "uri": a.uri, "path": a.path})).collect();
    Ok(json!({
        "name": assignment.display_name,
        "command": assignment.command,
        "inputs": inputs,
        "outputs": {
            "file": assignment.output_file,
            "root": assignment.output_root,
            "parameters": assignment.output_parameters,
            "artifacts": outputs,
        },
    }))
}

/// [`files`], for a launcher that does not wait for ever. What nobody said how to open is asked only briefly: the step may
/// not need it.
async fn listed(found: &Found) -> ApiResult<Vec<Value>> {
    let patience = if found.meant { LISTING } else { GLANCE };
    let slow =
        || ApiError::new(Code::FailedPrecondition, format!("its store did not answer for {} s", patience.as_secs()));
    tokio::time::timeout(patience, files(&*found.store, &found.at)).await.unwrap_or_else(|_| Err(slow()))
}

/// The files of an artifact, relative to it: one with an empty path when it is a single file.
async fn files(store: &dyn ArtifactStore, at: &Location) -> ApiResult<Vec<Value>> {
    let found = store.list(&at.bucket, &at.key).await.map_err(store_failed)?;
    let prefix = format!("{}/", at.key);
    let relative =
        |key: &str| if key == at.key { Some(String::new()) } else { key.strip_prefix(&prefix).map(str::to_owned) };
    let mut files = Vec::new();
    for object in found {
        let Some(path) = relative(&object.key).filter(|p| p.is_empty() || is_clean(p)) else { continue };
        if files.len() >= MAX_FILES {
            return Err(ApiError::new(
                Code::FailedPrecondition,
                format!("an input artifact has more than {MAX_FILES} files"),
            ));
        }
        files.push(json!({"path": path, "size": object.size}));
    }
    Ok(files)
}

/// A relative path that stays where it is.
fn is_clean(path: &str) -> bool {
    path.len() <= 1024 && !path.contains(['\\', '\0']) && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn store_failed(error: StoreError) -> ApiError {
    match error {
        StoreError::NotFound => ApiError::new(Code::NotFound, "no such file in the artifact"),
        StoreError::Full => ApiError::new(Code::Unavailable, "the disk that holds the artifacts is full"),
        StoreError::Failed(cause) => ApiError::internal("the artifact store", cause),
        // Tried again already; trying longer would only keep the step.
        StoreError::Outside(why) => ApiError::new(Code::FailedPrecondition, why),
    }
}

fn join(at: Location, path: &str) -> ApiResult<Location> {
    if path.is_empty() {
        return Ok(at);
    }
    if !is_clean(path) {
        return Err(ApiError::invalid(format!("`{path}` is no path inside an artifact")));
    }
    Ok(Location { key: format!("{}/{path}", at.key), bucket: at.bucket })
}

async fn download(
    State(app): App,
    attempt: Attempt,
    Path(names): Path<BTreeMap<String, String>>,
    args: crate::rest::Args,
) -> ApiResult<Response> {
    let Some(assignment) = attempt.scope(&app).await else { return Ok(over()) };
    input(&app, &assignment, &names, &args, attempt.keys).await
}

/// A file of the n-th input artifact.
pub(crate) async fn input(
    app: &Inner,
    assignment: &Assignment,
    names: &BTreeMap<String, String>,
    args: &crate::rest::Args,
    keys: Option<S3Keys>,
) -> ApiResult<Response> {
    let input = names.get("n").and_then(|n| n.parse::<usize>().ok()).and_then(|n| assignment.inputs.get(n));
    let input = input.ok_or_else(|| ApiError::new(Code::NotFound, "the task has no such input artifact"))?;
    let found = app.locate_for(&assignment.namespace, &input.uri, &assignment.pipeline_root, keys).await?;
    let at = join(found.at, args.get("path").unwrap_or_default())?;
    let (size, body) = found.store.get(&at.bucket, &at.key).await.map_err(store_failed)?;
    Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, size)
        .body(Body::from_stream(body))
        .map_err(|e| ApiError::internal("answering with a file", e))
}

async fn upload(
    State(app): App,
    attempt: Attempt,
    Path(names): Path<BTreeMap<String, String>>,
    args: crate::rest::Args,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let Some(assignment) = attempt.scope(&app).await else { return Ok(over()) };
    let output = names.get("name").and_then(|name| assignment.output_artifacts.iter().find(|a| a.name == *name));
    let output = output.ok_or_else(|| ApiError::new(Code::NotFound, "the task has no such output artifact"))?;
    // A step may move an output (`dsl.get_uri`), but only within its own root.
    let uri = args.get("uri").filter(|u| !u.is_empty()).unwrap_or(&output.uri);
    let own = format!("{}/", assignment.output_root);
    if !uri.starts_with(&own) {
        return Err(ApiError::new(Code::PermissionDenied, format!("{uri} is not below the task's own root {own}")));
    }
    // What follows a query would not be below the root.
    if uri.contains(['?', '#']) {
        return Err(ApiError::invalid(format!("{uri} is no address of an artifact")));
    }
    let found = app.locate_for(&assignment.namespace, uri, &assignment.pipeline_root, attempt.keys).await?;
    if !found.writable {
        return Err(ApiError::new(Code::PermissionDenied, format!("{uri} is read only")));
    }
    let at = join(found.at, args.get("path").unwrap_or_default())?;
    let size = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let size = size
        .filter(|s| *s <= MAX_FILE)
        .ok_or_else(|| ApiError::invalid("the upload needs a Content-Length of at most 1 TiB"))?;
    let stream = body.into_data_stream().map_err(Into::into).boxed();
    found.store.put(&at.bucket, &at.key, size, stream).await.map_err(|error| match error {
        // Told apart from a passing failure: the launcher fails the step with it.
        StoreError::Full => ApiError::new(Code::FailedPrecondition, "the disk that holds the artifacts is full"),
        other => store_failed(other),
    })?;
    Ok(Json(json!({})).into_response())
}

async fn report(State(app): App, attempt: Attempt, body: Body) -> ApiResult<Response> {
    let bytes = axum::body::to_bytes(body, MAX_REPORT)
        .await
        .map_err(|_| ApiError::invalid(format!("what the step reports is larger than {} MiB", MAX_REPORT >> 20)))?;
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|e| ApiError::invalid(format!("the report is no JSON: {e}")))?;
    let number = |name: &str| value.get(name).and_then(Value::as_i64).and_then(|n| i32::try_from(n).ok());
    let texts = value.get("parameters").and_then(Value::as_object).cloned().unwrap_or_default();
    let report = Report {
        succeeded: value.get("succeeded").and_then(Value::as_bool).unwrap_or(false),
        message: value.get("message").and_then(Value::as_str).unwrap_or_default().chars().take(4096).collect(),
        exit_code: number("exitCode").unwrap_or(0),
        signal: number("signal"),
        executor_output: value.get("executorOutput").cloned().unwrap_or(Value::Null),
        parameters: texts.into_iter().filter_map(|(n, v)| Some((n, v.as_str()?.to_owned()))).collect(),
    };
    let make = |answer| Request::Report { task: attempt.task.clone(), attempt: attempt.attempt, report, answer };
    if app.engine.request(&attempt.run, make).await.flatten().is_some() {
        return Ok(Json(json!({})).into_response());
    }
    // The run may have ended between the store and the answer of an earlier report.
    let stored = app.store.task(&attempt.task).await?;
    let known = stored.is_some_and(|t| t.attempt == attempt.attempt && t.state.is_final());
    Ok(if known { Json(json!({})).into_response() } else { over() })
}
