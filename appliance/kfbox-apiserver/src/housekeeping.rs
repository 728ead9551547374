//! Upkeep, little and often: compaction of the log, and the end of Events after an hour.

use crate::{bootstrap, handle::own_call, server::Core, verbs};
use futures::StreamExt as _;
use std::{sync::Arc, time::Duration};

const EVERY: Duration = Duration::from_secs(30);

/// Upstream's `--event-ttl`.
const EVENTS_LAST: i64 = 3600;

/// Events removed in one round: a storm of them is worked off over several rounds, not in one burst of writes.
const REMOVED_AT_ONCE: usize = 4096;

/// Removals under way together, which share group commits.
const TOGETHER: usize = 64;

pub fn start(core: &Arc<Core>) {
    let weak = Arc::downgrade(core);
    let shutdown = core.shutdown.clone();
    core.tasks.essential("kubernetes-housekeeping", async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = shutdown.cancelled() => return Ok::<_, kfbox_db::Error>(()),
            }
            let Some(core) = weak.upgrade() else {
                shutdown.cancelled().await;
                return Ok(());
            };
            // What nobody may do without comes back, as upstream's reconcilers see to.
            if let Err(error) = bootstrap::ensure(&core).await {
                tracing::warn!(%error, "the cluster's own objects were not restored");
            }
            expire_events(&core, chrono::Utc::now().timestamp() - EVENTS_LAST).await;
            if let Err(error) = core.store.compact().await {
                // A full disk passes; the log only stays longer.
                tracing::warn!(%error, "the revision log was not compacted");
            }
        }
    });
}

/// Removes events last written before `before`.
pub async fn expire_events(core: &Arc<Core>, before: i64) {
    let Some(resource) = core.resources.current().find("", "v1", "events").cloned() else { return };
    let Ok(snapshot) = core.store.list("events", None, None, None) else { return };
    let call = own_call(core, resource, "", "");
    let options = verbs::DeleteOptions::default();
    let old: Vec<_> = snapshot.objects.into_iter().filter(|o| o.written < before).take(REMOVED_AT_ONCE).collect();
    futures::stream::iter(old)
        .for_each_concurrent(TOGETHER, |event| {
            let (call, options) = (&call, &options);
            async move {
                if let Err(error) = verbs::delete_object(call, &event.key, options, false).await {
                    tracing::debug!(%error, "an old event was not removed");
                }
            }
        })
        .await;
}
