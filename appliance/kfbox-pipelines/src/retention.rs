//! What is kept, and for how long. Off unless the settings say otherwise: runs by age and by number within their
//! experiment, logs by age. A deleted run takes with it what only it owned: its rows, pods, logs, cached results, and
//! the artifacts in its folder of the box's own store that no other run uses; what lies in another store is its owner's, and
//! is never deleted (upstream deletes no artifacts at all). Invariants: a run that goes on is never deleted; an artifact that a
//! run uses is not deleted; what a crash leaves is taken up at the next start.

use crate::{
    Inner, engine,
    error::{ApiError, ApiResult},
    store::Leftover,
    time,
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::Notify;

/// How long ended runs and their logs are kept. `None`: for ever.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// Since the run's end.
    pub runs_for: Option<Duration>,
    /// The newest so many ended runs of each experiment.
    pub runs_per_experiment: Option<u32>,
    /// Since the run's end.
    pub logs_for: Option<Duration>,
}

/// Between two looks. Ages are days: minutes do not matter.
const INTERVAL: Duration = Duration::from_secs(600);
/// Runs deleted before the next are looked for.
const BATCH: u32 = 100;

#[derive(Default)]
pub(crate) struct Cleaner {
    /// A run was deleted.
    deleted: Notify,
}

impl Cleaner {
    pub(crate) fn wake(&self) {
        self.deleted.notify_one();
    }
}

/// Runs until shutdown.
pub(crate) async fn run(inner: Arc<Inner>) -> Result<(), kfbox_base::BoxError> {
    let shutdown = inner.tasks.shutdown();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            swept = sweep(&inner) => {
                if let Err(error) = swept {
                    tracing::warn!(%error, "old runs could not be cleared away; trying again later");
                }
            }
        }
        let looked = tokio::time::sleep(INTERVAL);
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = inner.cleaner.deleted.notified() => {}
            () = looked => {}
        }
    }
}

pub(crate) async fn sweep(inner: &Inner) -> ApiResult<()> {
    let Retention { runs_for, runs_per_experiment, logs_for } = inner.config.retention.clone();
    let before = |age: Duration| time::now().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    if let Some(age) = runs_for {
        expire(inner, Due::EndedBefore(before(age))).await?;
    }
    if let Some(kept) = runs_per_experiment {
        expire(inner, Due::Beyond(kept)).await?;
    }
    if let Some(age) = logs_for {
        old_logs(inner, before(age)).await?;
    }
    for leftover in inner.store.leftovers().await? {
        clear(inner, &leftover).await?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Due {
    EndedBefore(i64),
    /// Beyond the newest so many of their experiment.
    Beyond(u32),
}

/// Deletes the runs that are due, until there are no more.
async fn expire(inner: &Inner, due: Due) -> ApiResult<()> {
    loop {
        let ids = match due {
            Due::EndedBefore(cutoff) => inner.store.runs_ended_before(cutoff, BATCH).await?,
            Due::Beyond(kept) => inner.store.runs_beyond(kept, BATCH).await?,
        };
        if ids.is_empty() {
            return Ok(());
        }
        for id in ids {
            // A retry may have taken it up since.
            let Some(row) = inner.store.run(&id).await?.filter(|row| row.state.is_final()) else { continue };
            inner.engine.delete(&row).await?;
            tracing::info!(run = %id, name = %row.display_name, "deleted an old run");
        }
    }
}

async fn old_logs(inner: &Inner, cutoff: i64) -> ApiResult<()> {
    for id in kept_logs(&inner.config.data_dir).map_err(|e| ApiError::internal("looking for old logs", e))? {
        if inner.store.run_ended_at(&id).await?.is_some_and(|at| at < cutoff) {
            engine::forget_logs(inner, &id).await;
        }
    }
    Ok(())
}

/// The runs that have logs on disk.
fn kept_logs(data_dir: &Path) -> std::io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(data_dir.join("step-logs")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    entries.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned())).collect()
}

/// Deletes the artifacts of a deleted run that nobody uses; the folder is forgotten once none are left.
async fn clear(inner: &Inner, leftover: &Leftover) -> ApiResult<()> {
    let Some(at) = inner.roots.object(&leftover.namespace, &leftover.root) else {
        return inner.store.forget_leftover(&leftover.run_id).await;
    };
    let used = inner.store.borrowed_below(&leftover.root).await?;
    let failed = |e| ApiError::internal("clearing away a deleted run's artifacts", e);
    let prefix = format!("{}/", at.key);
    let objects = inner.deps.artifacts.list(&at.bucket, &prefix).await.map_err(failed)?;
    let mut kept = 0;
    for object in objects {
        let uri = format!("{}/{}", leftover.root, object.key.strip_prefix(&prefix).unwrap_or_default());
        // An artifact is one object or a folder of them.
        if used
            .iter()
            .any(|u| uri.strip_prefix(u.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
        {
            kept += 1;
        } else {
            inner.deps.artifacts.delete(&at.bucket, &object.key).await.map_err(failed)?;
        }
    }
    if kept == 0 { inner.store.forget_leftover(&leftover.run_id).await } else { Ok(()) }
}
