//! What is reported of a pod, its end, and the taking over of what an earlier daemon left.

use super::{Step, Worker};
use crate::pod::{
    admit, adopt,
    events::Level,
    launch,
    record::{State, uid},
    status,
};

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use std::net::IpAddr;

pub(super) const EVICTED: &str = "Evicted";

impl Worker {
    pub(super) fn publish(&mut self) {
        if self.gone {
            return;
        }
        let around = self.ctx.surroundings(&self.ips());
        if self.outcome.start_time.is_none() {
            let old = self.pod.status.as_ref().and_then(|s| s.start_time.clone());
            self.outcome.start_time = Some(old.unwrap_or_else(status::now));
        }
        let status =
            status::status(&self.pod, &self.records, &around, &self.outcome, self.publisher.previous(), status::now());
        self.publisher.publish(status);
    }

    /// The pod's addresses; until they are known anew, those that its status tells.
    pub(super) fn ips(&self) -> Vec<IpAddr> {
        if let Some(prepared) = &self.prepared {
            return prepared.ips.clone();
        }
        let Some(status) = &self.pod.status else { return Vec::new() };
        let all: Vec<IpAddr> = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
        if all.is_empty() { status.pod_ip.iter().filter_map(|ip| ip.parse().ok()).collect() } else { all }
    }

    /// Nothing runs, and nothing will.
    pub(super) fn settled(&mut self) -> bool {
        let over = self.outcome.finished || self.deleted() || self.outcome.reason.is_some();
        if !over || !self.live.is_empty() || self.preparing || self.launching.values().any(|step| *step == Step::Launch)
        {
            return false;
        }
        if !self.outcome.finished {
            self.outcome.finished = true;
            self.end_what_waits();
            self.publish();
        }
        true
    }

    /// Settled and buried, with nothing under way.
    pub(super) fn is_resting(&mut self) -> bool {
        !self.deleted() && self.jobs.is_empty() && self.launching.is_empty() && !self.outcome.sandboxed
    }

    /// A pod stopped before its containers ran still says how each ended.
    fn end_what_waits(&mut self) {
        for record in &mut self.records {
            if let (State::Waiting { .. }, Some(last)) = (&record.state, &record.last) {
                record.state = State::Ended(last.clone());
                record.last = None;
            }
        }
    }

    /// Frees what a finished pod holds. True when the pod itself is gone.
    pub(super) async fn bury(&mut self) -> bool {
        let deleted = self.deleted();
        let uid = uid(&self.pod).to_owned();
        if self.outcome.sandboxed || self.prepared.is_some() || deleted {
            self.prepared = None;
            adopt::tear_down(&self.ctx, &uid).await;
            self.outcome.sandboxed = false;
            self.token_renewal = None;
            self.publish();
        }
        if !deleted {
            return false;
        }
        if !self.gone {
            self.publisher.flush().await;
            self.publisher.delete(&self.ctx, &self.pod).await;
        }
        adopt::remove(&self.ctx, &uid).await;
        true
    }

    /// Takes over what an earlier daemon left running, and what happened since.
    pub(super) async fn adopt(&mut self) {
        let found = adopt::adopt(&self.ctx, &self.pod, &mut self.records).await;
        self.attempts = found.attempts;
        // A daemon that ended in between may have left the sandbox of a pod that is finished.
        self.outcome.sandboxed = self.ctx.dirs(uid(&self.pod)).run.exists();
        self.outcome.start_time = self.pod.status.as_ref().and_then(|s| s.start_time.clone());
        let phase = self.pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            // Final, whatever else is found.
            self.outcome.finished = true;
            self.outcome.reason = self.pod.status.as_ref().and_then(|s| s.reason.clone());
            self.outcome.message = self.pod.status.as_ref().and_then(|s| s.message.clone());
            self.outcome.refused = self.outcome.reason.is_some()
                && self.pod.status.iter().flat_map(status::container_statuses).next().is_none();
        } else if found.running.is_empty() && self.attempts.values().all(|next| *next == 0) && !self.outcome.sandboxed {
            self.admit();
        }
        if !found.running.is_empty() {
            // What running containers hold is made anew idempotently: paths and namespaces stay the same.
            match launch::prepare(&self.ctx, &self.pod).await {
                Ok(prepared) => self.on_prepared(Ok(prepared)),
                Err(error) => self.on_prepared(Err(error)),
            }
        }
        for (name, handle, started) in found.running {
            self.on_running(&name, handle, &started, false);
            self.begin_adopted(&name);
        }
    }

    /// The node wants the pod gone.
    pub(super) fn take_eviction(&mut self) {
        let Some(eviction) = self.ctx.evictions.lock().remove(uid(&self.pod)) else { return };
        if self.outcome.finished || self.outcome.reason.is_some() || self.deleted() {
            return;
        }
        self.ctx.events.pod(&self.pod, None, Level::Warning, EVICTED, eviction.message.clone());
        self.outcome.reason = Some(EVICTED.into());
        self.outcome.message = Some(eviction.message.clone());
        if eviction.disruption {
            self.outcome.conditions.push(PodCondition {
                type_: "DisruptionTarget".into(),
                status: "True".into(),
                reason: Some("TerminationByKubelet".into()),
                message: Some(eviction.message),
                last_transition_time: Some(status::now()),
                ..PodCondition::default()
            });
        }
    }

    /// Looks whether this node takes the pod, of which nothing is there yet.
    fn admit(&mut self) {
        let now = *self.ctx.conditions.lock();
        if self.deleted() {
            return;
        }
        if let Err(refusal) = admit::admit(&self.pod, now) {
            self.ctx.events.pod(&self.pod, None, Level::Warning, refusal.reason, refusal.message.clone());
            self.outcome.reason = Some(refusal.reason.into());
            self.outcome.message = Some(format!("Pod was rejected: {}", refusal.message));
            self.outcome.refused = true;
        }
    }

    /// A container that was ready before the daemon went is taken to be so still, until its probe says otherwise.
    fn begin_adopted(&mut self, name: &str) {
        let was = |pod: &Pod| {
            let mut all = status::container_statuses(pod.status.as_ref()?);
            all.find(|s| s.name == name).map(|s| (s.started.unwrap_or(false), s.ready))
        };
        if let Some((started, ready)) = was(&self.pod)
            && let Some(live) = self.live.get_mut(name)
        {
            live.probing.assume(started, ready);
            let (started, ready) = (live.probing.started(), live.probing.ready());
            if let Some(record) = self.record(name) {
                record.started = started;
                record.ready = started && ready;
            }
        }
    }
}
