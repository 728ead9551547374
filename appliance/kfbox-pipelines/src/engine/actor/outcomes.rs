//! What becomes of a task when a piece of its work is done: it goes on, ends, or is tried again.

use super::Actor;
use crate::{
    engine::{
        model::{Io, State, TaskError, pod_name},
        plan,
        steps::Done,
        watch::PodFact,
    },
    spec::{self, duration},
    store::CacheEntry,
    time,
};
use tokio::time::Instant;

impl Actor<'_> {
    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::Nothing => {}
            Done::PodsDeleted => self.deleted = true,
            Done::RunBegun(contexts) => {
                self.run.contexts = contexts;
                self.begun.insert(String::new());
                self.run_dirty = true;
            }
            Done::Prepared { task, image, command, fingerprint, execution } => {
                self.busy.remove(&task);
                self.begun.insert(task.clone());
                let name = self.run.tasks.get(&task).map(|t| pod_name(&self.run.pipeline_name, &self.run.id, t));
                self.change(&task, |t| {
                    t.execution_id = execution;
                    if t.is_leaf() {
                        t.image = image;
                        t.command = command;
                        t.fingerprint = fingerprint;
                        t.pod_name = name;
                    }
                });
            }
            Done::Finished { task, outputs, fingerprint, cached_from, execution } => {
                self.busy.remove(&task);
                self.change(&task, |t| {
                    t.outputs = outputs;
                    t.fingerprint = fingerprint;
                    t.cached_from = cached_from;
                    t.execution_id = execution;
                    t.log_archived = true;
                    t.enter(State::Succeeded);
                });
            }
            Done::PodCreated { task, attempt, uid } => {
                self.busy.remove(&task);
                if self.attempt(&task, attempt).is_some() {
                    tracing::debug!(run = %self.run.id, task, uid, "a step's pod exists");
                    self.change(&task, |t| t.pod_created = true);
                    self.news.extend(self.run.tasks.get(&task).and_then(|t| t.pod_name.clone()));
                }
            }
            Done::Refused { task, error } => {
                self.busy.remove(&task);
                self.change(&task, |t| {
                    t.error = Some(error);
                    t.enter(State::Failed);
                });
            }
            Done::Failed { task, attempt, error } => self.failed(&task, attempt, error),
            Done::Recorded { task, attempt, outputs } => self.recorded(&task, attempt, outputs),
            Done::Unacceptable { task, attempt, why } => {
                self.busy.remove(&task);
                self.acknowledge.extend(self.reports.remove(&task).unwrap_or_default());
                if self.attempt(&task, attempt).is_some() {
                    self.reported.insert(task, (why, Instant::now()));
                }
            }
            Done::Archived { task } => {
                self.archiving.remove(&task);
                self.change(&task, |t| t.log_archived = true);
            }
            Done::Looked { task, attempt, pod } => {
                self.looked.remove(&task);
                let Some(name) = self.attempt(&task, attempt).and_then(|t| t.pod_name.clone()) else { return };
                // A fact that the watch brought meanwhile is newer.
                self.take_pods();
                let fact = pod.map_or_else(|| PodFact { deleted: true, ..PodFact::default() }, |p| PodFact::of(&p));
                self.news.insert(name.clone());
                self.facts.entry(name).or_insert(fact);
            }
        }
    }

    fn recorded(&mut self, id: &str, attempt: u32, outputs: Io) {
        self.busy.remove(id);
        self.acknowledge.extend(self.reports.remove(id).unwrap_or_default());
        if self.attempt(id, attempt).is_none_or(|t| t.state.is_final()) {
            return;
        }
        self.change(id, |t| {
            t.outputs = outputs.clone();
            t.enter(State::Succeeded);
        });
        if let Some(task) = self.run.tasks.get(id)
            && let Some(fingerprint) = &task.fingerprint
        {
            let entry = CacheEntry {
                run_id: self.run.id.clone(),
                task_id: id.to_owned(),
                outputs,
                execution_id: task.execution_id.unwrap_or(0),
            };
            self.cached.push((self.run.namespace.clone(), fingerprint.clone(), entry));
        }
    }

    pub(super) fn failed(&mut self, id: &str, attempt: u32, error: TaskError) {
        self.busy.remove(id);
        self.stuck_since.remove(id);
        let Some(task) = self.attempt(id, attempt).filter(|t| !t.state.is_final()).cloned() else { return };
        let policy = plan::spec_of(&self.pipeline, &self.run, &task).and_then(|s| s.retry_policy.clone());
        match policy.filter(|p| task.retries < p.max_retry_count) {
            None => self.change(id, |t| {
                t.log_archived = true;
                t.error = Some(error);
                t.enter(State::Failed);
            }),
            Some(policy) => {
                let wait = back_off(&policy, task.retries);
                tracing::info!(run = %self.run.id, task = %task.path, wait_ms = wait, why = %error.message.lines().next().unwrap_or_default(), "a step failed and is tried again");
                self.change(id, |t| {
                    plan::restart(t);
                    t.retries += 1;
                    t.retry_at = Some(time::now() + i64::try_from(wait).unwrap_or(i64::MAX));
                });
            }
        }
    }
}

/// The wait before a retry, in milliseconds. Upstream's defaults: no wait, doubling, an hour at most.
fn back_off(policy: &spec::ir::RetryPolicy, retries: u32) -> u64 {
    let base = duration(&policy.backoff_duration).unwrap_or(0);
    let most = duration(&policy.backoff_max_duration).filter(|m| *m > 0).unwrap_or(3_600_000);
    let factor = if policy.backoff_factor > 0.0 { policy.backoff_factor } else { 2.0 };
    let exponent = i32::try_from(retries.min(64)).unwrap_or(64);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast saturates; the result is clamped"
    )]
    let wait = (base as f64 * factor.powi(exponent)) as u64;
    wait.min(most)
}
