//! Contents: the data of a snapshot is taken, found, and removed.

use super::{COMPONENT, SnapshotError, are_bound, whole, without};
use crate::{
    LOCAL_PATH_PROVISIONER, cache,
    context::Context,
    queue::Outcome,
    volumes::{self, CloneError, FolderError, Taken},
    write::{self, WriteError},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kfbox_api::snapshots::{VolumeSnapshot, VolumeSnapshotContent, VolumeSnapshotContentStatus, finalizer};
use serde_json::json;
use std::{sync::Arc, time::Duration};

/// A disk that is full or cannot clone does not change by itself; somebody may change it.
const AGAIN: Duration = Duration::from_secs(60);

pub async fn reconcile(context: Arc<Context>, name: String) -> Result<Outcome, WriteError> {
    let Some(content) = context.snapshots.contents.get("", &name) else { return Ok(Outcome::Done) };
    if content.spec.driver != LOCAL_PATH_PROVISIONER {
        return Ok(Outcome::Done);
    }
    if content.metadata.deletion_timestamp.is_some() {
        return leave(&context, &content).await;
    }
    if let Some(finalizers) = super::with(&content.metadata, &[finalizer::CONTENT]) {
        let body = json!({ "metadata": { "finalizers": finalizers } });
        write::patch(&context.client, &context.snapshots.contents, &*content, body).await?;
        return Ok(Outcome::Done);
    }
    if content.status.as_ref().and_then(|s| s.ready_to_use) == Some(true) {
        return Ok(Outcome::Done);
    }
    let found = match (&content.spec.source.volume_handle, &content.spec.source.snapshot_handle) {
        (Some(volume), _) => take(&context, volume, &name).await,
        (None, Some(handle)) => known(&context, handle).await,
        (None, None) => Err("its source names neither a volume nor a snapshot".into()),
    };
    if context.shutdown.is_cancelled() {
        return Ok(Outcome::Done);
    }
    let old = content.status.clone().unwrap_or_default();
    let (status, outcome) = match found {
        Ok((handle, taken)) => {
            let status = VolumeSnapshotContentStatus {
                snapshot_handle: Some(handle),
                creation_time: Some(taken.time),
                restore_size: Some(taken.size),
                ready_to_use: Some(true),
                error: None,
            };
            (status, Outcome::Done)
        }
        Err(why) => {
            let message =
                format!("Failed to check and update snapshot content: failed to take snapshot of the volume: {why}");
            if let Some(snapshot) = snapshot(&context, &content) {
                context.events.warning(&*snapshot, COMPONENT, "SnapshotCreationFailed", message.clone());
            }
            if old.error.as_ref().and_then(|e| e.message.as_ref()) == Some(&message) {
                return Ok(Outcome::Again(AGAIN));
            }
            let error = SnapshotError { message: Some(message), time: Some(Time(whole(Timestamp::now()))) };
            let status = VolumeSnapshotContentStatus { ready_to_use: Some(false), error: Some(error), ..old.clone() };
            (status, Outcome::Again(AGAIN))
        }
    };
    write::status_of(&context.client, &context.snapshots.contents, &*content, &old, &status).await?;
    Ok(outcome)
}

/// The snapshot that a content is of, if it is there.
fn snapshot(context: &Context, content: &VolumeSnapshotContent) -> Option<Arc<VolumeSnapshot>> {
    let of = &content.spec.volume_snapshot_ref;
    let found = context.snapshots.snapshots.get(of.namespace.as_deref()?, of.name.as_deref()?)?;
    are_bound(&found, content).then_some(found)
}

async fn take(context: &Context, volume: &str, name: &str) -> Result<(String, Taken), String> {
    let root = &context.config.local_path_root;
    let size = match context.caches.volumes.get("", volume) {
        Some(found) if volumes::is_ours(&found, root) => volumes::size(&found),
        // It was taken, and the volume went before that was written down.
        _ => {
            return known(context, name)
                .await
                .map_err(|_| format!("there is no volume {volume} of {LOCAL_PATH_PROVISIONER}"));
        }
    };
    match volumes::take(root, volume, name, size, &context.shutdown).await {
        Ok(taken) => Ok((name.to_owned(), taken)),
        Err(FolderError::Clone(CloneError::Gone)) => Err(format!("the volume {volume} was removed")),
        Err(error) => Err(error.to_string()),
    }
}

async fn known(context: &Context, handle: &str) -> Result<(String, Taken), String> {
    match volumes::taken(&context.config.local_path_root, handle).await {
        Ok(Some(taken)) => Ok((handle.to_owned(), taken)),
        Ok(None) => Err(format!("there is no snapshot {handle} on this machine")),
        Err(error) => Err(format!("snapshot {handle}: {error}")),
    }
}

async fn leave(context: &Context, content: &VolumeSnapshotContent) -> Result<Outcome, WriteError> {
    let Some(left) = without(&content.metadata, &[finalizer::CONTENT]) else { return Ok(Outcome::Done) };
    // While a snapshot has it, it only waits.
    if snapshot(context, content).is_some_and(|s| s.metadata.deletion_timestamp.is_none()) {
        return Ok(Outcome::Done);
    }
    if content.spec.deletion_policy == "Delete" {
        let own = content.metadata.name.clone().filter(|_| content.spec.source.volume_handle.is_some());
        let handle = content.status.as_ref().and_then(|s| s.snapshot_handle.clone());
        let handle = handle.or_else(|| content.spec.source.snapshot_handle.clone()).or(own);
        if let Some(handle) = handle.filter(|handle| !is_anothers(context, content, handle)) {
            let root = &context.config.local_path_root;
            volumes::forget(root, &handle).await.map_err(|source| WriteError::Disk {
                what: "cannot remove the snapshot",
                path: root.join(handle).display().to_string(),
                source,
            })?;
        }
    }
    let body = json!({ "metadata": { "finalizers": left } });
    write::patch(&context.client, &context.snapshots.contents, content, body).await?;
    Ok(Outcome::Done)
}

/// Whether another content is of the same data, as one that was made for a snapshot which was kept.
fn is_anothers(context: &Context, content: &VolumeSnapshotContent, handle: &str) -> bool {
    context.snapshots.contents.all().iter().any(|other| {
        let has = other.status.as_ref().and_then(|s| s.snapshot_handle.as_deref());
        cache::uid(&**other) != cache::uid(content)
            && [has, other.spec.source.snapshot_handle.as_deref()].contains(&Some(handle))
    })
}
