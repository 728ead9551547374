//! What happens to running containers: started, probed, ended, stopped.

use super::{Event, Live, RETRY_FIRST, Worker, end::EVICTED};
use crate::{
    pod::{
        adopt,
        check::{Action, Target, check},
        events::Level,
        launch::{LaunchFailure, Launched},
        probe::{Probing, Verdict, Which},
        record::{self, Ended, Kind, State, uid},
        stop::{self, StopRequest},
    },
    runtime::Handle,
    shim::records::{Exit, Started},
};
use futures::FutureExt;
use k8s_openapi::api::core::v1::Container;
use std::time::Duration;
use tokio::{sync::watch, time::Instant};

impl Worker {
    pub(super) fn on_launched(&mut self, name: &str, result: Result<Launched, LaunchFailure>) {
        match result {
            Ok(Launched::Running(handle, started)) => {
                *self.attempts.entry(name.into()).or_insert(0) += 1;
                self.retry.remove(name);
                self.count_restart(name);
                self.on_running(name, handle, &started, true);
            }
            Ok(Launched::Ended(handle, exit)) => {
                *self.attempts.entry(name.into()).or_insert(0) += 1;
                self.count_restart(name);
                let id = handle.id.clone();
                if exit.failure.is_some() {
                    self.publish_failure(name, &exit);
                }
                self.forget_end(name);
                self.on_ended(name, &id, exit, Duration::ZERO);
            }
            Err(failure) => {
                let message = format!("Error: {}", failure.message);
                self.ctx.events.pod(&self.pod, Some(name), Level::Warning, "Failed", message);
                self.wait(name, failure.reason, Some(failure.message));
                self.retry.insert(name.into(), Instant::now() + RETRY_FIRST * 5);
            }
        }
    }

    /// A container that could not be started is seen waiting with the reason, then ended.
    fn publish_failure(&mut self, name: &str, exit: &Exit) {
        self.wait(name, "RunContainerError", exit.failure.clone());
        self.publish();
    }

    fn forget_end(&mut self, name: &str) {
        if let Some(record) = self.record(name)
            && let State::Ended(ended) = &record.state
        {
            record.last = Some(ended.clone());
        }
    }

    fn count_restart(&mut self, name: &str) {
        if let Some(record) = self.record(name)
            && record.latest_end().is_some()
        {
            record.restarts += 1;
        }
    }

    pub(super) fn on_running(&mut self, name: &str, handle: Handle, started: &Started, fresh: bool) {
        let Some(container) = self.container(name) else { return };
        self.forget_end(name);
        let post_start = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()).and_then(Action::of_hook);
        let probing = Probing::new(&container, Instant::now());
        let id = handle.id.clone();
        if let Some(record) = self.record(name) {
            record.state = State::Running { id: id.clone(), since: started.started_at.clone() };
            record.started = false;
            record.ready = false;
        }
        let (mut waiting, waited, waited_id) = (handle.clone(), name.to_owned(), id.clone());
        self.jobs.push(
            async move {
                let exit = waiting.ended().await;
                Event::Exited { name: waited, id: waited_id, exit }
            }
            .boxed(),
        );
        let key = (uid(&self.pod).to_owned(), name.to_owned());
        // A new container's cgroup is as old as it is; what one that was found has used before is read.
        self.ctx
            .meter
            .began(&handle.cgroup, if fresh { None } else { self.ctx.runtime.hierarchies.usage(&handle.cgroup) });
        self.ctx.handles.lock().insert(key, handle.clone());
        self.live.insert(name.into(), Live { handle, since: Instant::now(), probing, stopping: None });
        match post_start {
            Some(action) if fresh => {
                let (ctx, name) = (self.ctx.clone(), name.to_owned());
                let target = self.target(&id, container);
                self.jobs.push(
                    async move {
                        // No limit upstream either: the container is not started until its hook is done.
                        let result = check(&ctx.runtime, &target, &action, Duration::MAX).await;
                        Event::PostStart { name, id, result }
                    }
                    .boxed(),
                );
            }
            _ => self.begin_probes(name),
        }
    }

    fn target(&self, id: &str, container: Container) -> Target {
        Target { id: id.into(), container, ip: self.ips().first().copied() }
    }

    pub(super) fn on_post_start(&mut self, name: &str, id: &str, result: Result<(), String>) {
        if self.live.get(name).is_none_or(|live| live.handle.id != id) {
            return;
        }
        match result {
            Ok(()) => self.begin_probes(name),
            Err(why) => {
                let message = format!("PostStartHook failed: {why}");
                self.ctx.events.pod(&self.pod, Some(name), Level::Warning, "FailedPostStartHook", message);
                self.stop(name, None, "FailedPostStartHook");
            }
        }
    }

    fn begin_probes(&mut self, name: &str) {
        let Some(live) = self.live.get(name) else { return };
        let (started, ready) = (live.probing.started(), live.probing.ready());
        if let Some(record) = self.record(name) {
            record.started = started;
            record.ready = started && ready;
        }
        self.probe(name);
    }

    /// Starts every probe of a container that is due next and not under way.
    fn probe(&mut self, name: &str) {
        let Some(container) = self.container(name) else { return };
        let Some(live) = self.live.get_mut(name) else { return };
        if live.stopping.is_some() {
            return;
        }
        let id = live.handle.id.clone();
        let due = live.probing.take_due(Instant::now());
        for (which, action, at, timeout) in due {
            let target = self.target(&id, container.clone());
            let (ctx, name, id) = (self.ctx.clone(), name.to_owned(), id.clone());
            self.jobs.push(
                async move {
                    tokio::time::sleep_until(at).await;
                    let result = check(&ctx.runtime, &target, &action, timeout).await;
                    Event::Probe { name, id, which, result }
                }
                .boxed(),
            );
        }
    }

    pub(super) fn on_probe(&mut self, name: &str, id: &str, which: Which, result: Result<(), String>) {
        let Some(live) = self.live.get_mut(name) else { return };
        if live.handle.id != id || live.stopping.is_some() {
            return;
        }
        let verdict = live.probing.answered(which, result.is_ok(), Instant::now());
        let (started, ready) = (live.probing.started(), live.probing.ready());
        if let Some(record) = self.record(name) {
            record.started = started;
            record.ready = started && ready;
        }
        if let (Err(why), true) = (&result, verdict != Verdict::Quiet) {
            let message = format!("{} probe failed: {why}", which.name());
            self.ctx.events.pod(&self.pod, Some(name), Level::Warning, "Unhealthy", message);
        }
        if let Verdict::Kill(grace) = verdict {
            let message = format!("Container {name} failed {} probe, will be restarted", which.name().to_lowercase());
            self.ctx.events.pod(&self.pod, Some(name), Level::Normal, "Killing", message);
            self.stop(name, grace, "");
        } else {
            self.probe(name);
        }
    }

    pub(super) fn on_exited(&mut self, name: &str, id: &str, exit: Exit) {
        let Some(live) = self.live.remove(name) else { return };
        if live.handle.id != id {
            self.live.insert(name.into(), live);
            return;
        }
        self.ctx.handles.lock().remove(&(uid(&self.pod).to_owned(), name.to_owned()));
        self.ctx.meter.ended(&live.handle.cgroup);
        self.on_ended(name, id, exit, live.since.elapsed());
    }

    fn on_ended(&mut self, name: &str, id: &str, exit: Exit, ran: Duration) {
        let dirs = self.ctx.dirs(uid(&self.pod));
        let attempt = self.attempts.get(name).map_or(0, |next| next.saturating_sub(1));
        let container = self.container(name);
        let message =
            exit.failure.clone().or_else(|| adopt::termination_message(&dirs, container.as_ref(), attempt, &exit));
        let reason = record::reason(&exit).to_owned();
        self.back_off.ended(name, ran, Instant::now());
        if let Some(record) = self.record(name) {
            record.started = false;
            record.ready = false;
            record.state = State::Ended(Ended { id: id.into(), exit, reason, message });
        }
        let (data, name) = (dirs.data, name.to_owned());
        self.jobs.push(
            async move {
                let work = move || adopt::discard(&data, &name, attempt);
                let _ = tokio::task::spawn_blocking(work).await;
                Event::Finished
            }
            .boxed(),
        );
    }

    fn grace(&self) -> Duration {
        let seconds = if self.gone {
            Some(0)
        } else if self.outcome.reason.as_deref() == Some(EVICTED) {
            // As upstream where the machine runs short.
            Some(1)
        } else {
            self.pod
                .metadata
                .deletion_grace_period_seconds
                .or_else(|| self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds))
        };
        Duration::from_secs(seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(30))
    }

    /// Work first, then sidecars, the last to have started first; all within the pod's one grace.
    pub(super) fn stop_all(&mut self) {
        let now = Instant::now();
        let deadline = *self.ending.get_or_insert(now + self.grace());
        let mains: Vec<String> = self
            .records
            .iter()
            .filter(|r| r.kind != Kind::Sidecar && self.live.contains_key(&r.name))
            .map(|r| r.name.clone())
            .collect();
        if mains.is_empty() {
            let left = deadline.saturating_duration_since(now).max(stop::MINIMUM);
            let last = self.records.iter().rev().find(|r| self.live.contains_key(&r.name)).map(|r| r.name.clone());
            if let Some(name) = last {
                self.stop(&name, Some(self.grace().min(left)), "Killing");
            }
        }
        for name in mains {
            self.stop(&name, None, "Killing");
        }
    }

    pub(super) fn stop(&mut self, name: &str, grace: Option<Duration>, why: &'static str) {
        let grace = grace.unwrap_or_else(|| self.grace());
        let Some(container) = self.container(name) else { return };
        let Some(live) = self.live.get_mut(name) else { return };
        let until = Instant::now() + grace;
        if let Some(deadline) = &live.stopping {
            // A second request may only shorten the time.
            deadline.send_if_modified(|at| {
                let shorter = until < *at;
                if shorter {
                    *at = until;
                }
                shorter
            });
            return;
        }
        let (deadline, limit) = watch::channel(until);
        live.stopping = Some(deadline);
        let handle = live.handle.clone();
        if let Some(record) = self.record(name) {
            record.ready = false;
        }
        if why == "Killing" {
            self.ctx.events.pod(&self.pod, Some(name), Level::Normal, "Killing", format!("Stopping container {name}"));
        }
        let target = self.target(&handle.id, container);
        let (ctx, pod) = (self.ctx.clone(), self.pod.clone());
        let request = StopRequest { handle, target, limit, hook: !self.gone };
        self.jobs.push(
            async move {
                stop::stop(&ctx, &pod, request).await;
                Event::Finished
            }
            .boxed(),
        );
    }
}
