//! Brings running containers' limits to what the spec says now.

use super::Worker;
use crate::pod::{
    record::{self, Kind, uid},
    resize::{self, Change, Share},
};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use std::time::Duration;
use tokio::time::Instant;

/// Before a resize that had to wait, or that failed, is tried again.
const RETRY: Duration = Duration::from_secs(10);
const PENDING: &str = "PodResizePending";
const IN_PROGRESS: &str = "PodResizeInProgress";

impl Worker {
    /// Returns when to look again, if a resize is left to do.
    pub(super) fn resize(&mut self, spec: &PodSpec, now: Instant) -> Option<Instant> {
        self.outcome.conditions.retain(|c| c.type_ != PENDING && c.type_ != IN_PROGRESS);
        let mut wanted: Vec<(Container, Change)> = Vec::new();
        for record in self.records.iter_mut().filter(|r| r.running() && matches!(r.kind, Kind::Main | Kind::Sidecar)) {
            let Some(container) = record::find(spec, &record.name) else { continue };
            if record.has.is_none() {
                // Found running, started before this was written down.
                record.has = Some(container.resources.clone().unwrap_or_default());
            }
            if let Some(change) = resize::change(&container, record.has.as_ref()) {
                wanted.push((container.into_owned(), change));
            }
        }
        let own = resize::share(spec);
        let uid = uid(&self.pod).to_owned();
        if wanted.is_empty() {
            self.ctx.shares.lock().insert(uid, own);
            return None;
        }
        let others = {
            let shares = self.ctx.shares.lock();
            shares.iter().filter(|(of, _)| **of != uid).fold(Share::default(), |all, (_, share)| all.plus(*share))
        };
        let capacity = Share { cpu_milli: self.ctx.cpu_milli, memory_bytes: self.ctx.memory_bytes };
        if let Err((reason, message)) = resize::room(own, others, capacity) {
            self.outcome.conditions.push(resize::condition(PENDING, Some(reason), Some(message)));
            return Some(now + RETRY);
        }
        self.ctx.shares.lock().insert(uid, own);
        let mut problem = None;
        for (container, change) in wanted {
            let done = match change {
                Change::InPlace => self.resize_in_place(&container),
                Change::Restart => {
                    // What it has is written down when it starts again.
                    self.stop(&container.name, None, "Killing");
                    continue;
                }
            };
            match (done, self.record(&container.name)) {
                (Ok(()), Some(record)) => record.has = Some(container.resources.unwrap_or_default()),
                (Ok(()), None) => {}
                (Err(why), _) => problem = Some(why),
            }
        }
        let why = problem?;
        self.outcome.conditions.push(resize::condition(IN_PROGRESS, Some("Error"), Some(why)));
        Some(now + RETRY)
    }

    fn resize_in_place(&self, container: &Container) -> Result<(), String> {
        let Some(live) = self.live.get(&container.name) else { return Ok(()) };
        let (hierarchies, cgroup) = (&self.ctx.runtime.hierarchies, &live.handle.cgroup);
        let limits = resize::limits(container);
        // Below what is in use the kernel would kill rather than shrink.
        let used = hierarchies.usage(cgroup).map_or(0, |u| u.memory_working_set_bytes);
        if let Some(limit) = limits.memory_bytes.filter(|limit| *limit < used) {
            return Err(format!("attempting to set container memory limit ({limit}) below current usage ({used})"));
        }
        hierarchies
            .limit(cgroup, &limits)
            .map_err(|error| format!("cannot change the limits of {}: {error}", container.name))
    }
}
