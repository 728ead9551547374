//! The content of an artifact as JSON, `{"data": BASE64}`: `backend/src/apiserver/server/run_artifact_server.go`
//! upstream. The content travels as it is read, whatever its size.

use super::{App, Caller};
use crate::{
    error::{ApiError, ApiResult, Code},
    ports::{ByteStream, StoreError},
};
use axum::{body::Body, extract::Path, response::Response};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;

/// `GET /runs/{id}/nodes/{node}/artifacts/{name}:read`; a node is a task's id or its pod's name, a name is an output's.
pub(super) async fn read(
    app: App,
    Caller(user): Caller,
    Path((id, node, artifact)): Path<(String, String, String)>,
) -> ApiResult<Response> {
    let name =
        artifact.strip_suffix(":read").ok_or_else(|| ApiError::not_found("the action on artifact", &artifact))?;
    let not_found = || ApiError::not_found("artifact", name);
    let row = app.run(&user, "readArtifact", &id).await?;
    let task = app.store.tasks(&id).await?.into_iter().find(|t| t.id == node || t.pod_name.as_deref() == Some(&node));
    let task = task.ok_or_else(|| ApiError::not_found("node", &node))?;
    let artifact = task.outputs.artifacts.get(name).and_then(|list| list.first()).ok_or_else(not_found)?;
    let found = app.locate(&row.namespace, &artifact.uri, &row.pipeline_root).await?;
    let (_, content) = found.store.get(&found.at.bucket, &found.at.key).await.map_err(|e| unread(e, not_found()))?;
    Response::builder()
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::CACHE_CONTROL, "no-cache, private")
        .body(Body::from_stream(encoded(content)))
        .map_err(|e| ApiError::internal("answering with an artifact", e))
}

/// Another store's refusal is told; of the box's own, what is not there is not there.
pub(crate) fn unread(error: StoreError, not_found: ApiError) -> ApiError {
    match error {
        StoreError::Outside(why) => ApiError::new(Code::FailedPrecondition, why),
        _ => not_found,
    }
}

/// Three bytes are four letters: what is left of a chunk waits for the next.
fn encoded(mut content: ByteStream) -> ByteStream {
    async_stream::stream! {
        let mut rest = BytesMut::new();
        yield Ok(Bytes::from_static(b"{\"data\":\""));
        while let Some(chunk) = content.next().await {
            match chunk {
                Ok(chunk) => rest.extend_from_slice(&chunk),
                Err(error) => {
                    // A body that breaks off is told apart from one that ended.
                    yield Err(error);
                    return;
                }
            }
            let whole = rest.len() / 3 * 3;
            yield Ok(Bytes::from(STANDARD.encode(rest.split_to(whole))));
        }
        yield Ok(Bytes::from(format!("{}\"}}", STANDARD.encode(rest))));
    }
    .boxed()
}
