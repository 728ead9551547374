//! Step logs: from the pod while it lives, from a file afterwards, so that a log outlives its pod.

use super::{model::Task, pod::MAIN};
use crate::{
    Core,
    error::{ApiError, ApiResult},
    ports::{ByteStream, LogRange},
};
use futures::{StreamExt, TryStreamExt};
use std::path::PathBuf;
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

/// What is kept of one step's log. A step that writes more keeps its beginning, and a line says so.
const MAX_KEPT: usize = 64 << 20;
/// Lines of a failed step that its error quotes.
pub(super) const QUOTED_LINES: i64 = 20;
/// And characters of them: errors travel in every answer.
const QUOTED_BYTES: usize = 8 << 10;

fn folder(core: &Core, run_id: &str) -> PathBuf {
    core.config.data_dir.join("step-logs").join(run_id)
}

fn file(core: &Core, run_id: &str, task: &Task) -> PathBuf {
    folder(core, run_id).join(format!("{}-{}.log", task.id, task.attempt))
}

pub(super) async fn open(
    core: &Core,
    namespace: &str,
    run_id: &str,
    task: &Task,
    range: LogRange,
) -> ApiResult<ByteStream> {
    match tokio::fs::File::open(file(core, run_id, task)).await {
        Ok(file) => return Ok(ReaderStream::new(file).map_err(Into::into).boxed()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(ApiError::internal("reading the step's log", error)),
    }
    let Some(pod) = &task.pod_name else {
        let why = if task.cached_from.is_some() { "its outputs were reused from the cache" } else { "it has no pod" };
        return Err(ApiError::not_found("the log of step", &format!("{} ({why})", task.display_name)));
    };
    core.deps.logs.open(namespace, pod, MAIN, range).await.map_err(|error| {
        tracing::debug!(%error, pod, "a log cannot be opened");
        ApiError::not_found("the log of step", &format!("{}: its pod {pod} has none yet or is gone", task.display_name))
    })
}

/// Keeps the whole log. Written beside and renamed, so that a log is whole or absent.
pub(super) async fn archive(core: &Core, namespace: &str, run_id: &str, task: &Task) -> std::io::Result<()> {
    let Some(pod) = &task.pod_name else { return Ok(()) };
    let mut stream =
        core.deps.logs.open(namespace, pod, MAIN, LogRange::default()).await.map_err(std::io::Error::other)?;
    tokio::fs::create_dir_all(folder(core, run_id)).await?;
    let target = file(core, run_id, task);
    let partial = target.with_extension("partial");
    let mut output = tokio::fs::File::create(&partial).await?;
    let mut written = 0;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(std::io::Error::other)?;
        if written + chunk.len() > MAX_KEPT {
            output
                .write_all(
                    format!("\n[kfbox] the log is longer than {} MiB; the rest was not kept\n", MAX_KEPT >> 20)
                        .as_bytes(),
                )
                .await?;
            break;
        }
        output.write_all(&chunk).await?;
        written += chunk.len();
    }
    output.flush().await?;
    tokio::fs::rename(&partial, &target).await
}

/// The last lines, for an error message.
pub(super) async fn tail(core: &Core, namespace: &str, pod: &str) -> String {
    let range = LogRange { tail_lines: Some(QUOTED_LINES), follow: false };
    let Ok(mut stream) = core.deps.logs.open(namespace, pod, MAIN, range).await else { return String::new() };
    let mut text = Vec::new();
    while let Some(Ok(chunk)) = stream.next().await {
        text.extend_from_slice(&chunk);
        if text.len() > 4 * QUOTED_BYTES {
            text.drain(..text.len() - QUOTED_BYTES);
        }
    }
    let from = text.len().saturating_sub(QUOTED_BYTES);
    let text = String::from_utf8_lossy(&text[from..]);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(usize::try_from(QUOTED_LINES).unwrap_or(20));
    lines[from..].join("\n")
}

pub(crate) async fn forget(core: &Core, run_id: &str) {
    match tokio::fs::remove_dir_all(folder(core, run_id)).await {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(run = run_id, %error, "the logs of a deleted run could not be removed"),
    }
}
