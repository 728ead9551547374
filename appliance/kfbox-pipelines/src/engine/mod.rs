//! The engine: one task of the daemon a run, which decides with `plan`, stores, and only then acts. Events are pod
//! changes from one watch, calls from launchers, and requests of users. Invariant: a step's pod is created only after
//! the row that says so is on disk, under a name that its task and attempt determine.

mod actor;
mod debug;
mod logs;
mod mailbox;
pub mod model;
mod placeholders;
pub(crate) mod plan;
pub(crate) mod pod;
mod resolve;
mod steps;
#[cfg(test)]
mod tests;
mod watch;

pub(crate) use logs::forget as forget_logs;
pub(crate) use mailbox::{Assignment, Report, Request};

use crate::{
    Core,
    error::{ApiError, ApiResult, Code},
    ports::{ByteStream, LogRange},
    store::RunRow,
};
use futures::future::BoxFuture;
use hmac::{Hmac, KeyInit, Mac};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, ListParams};
use mailbox::Mailbox;
use model::{State, Task};
use parking_lot::Mutex;
use sha2::Sha256;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Calls of launchers waiting for their run: each is one HTTP request, which waits in turn.
const REQUESTS: usize = 256;

#[derive(Clone)]
pub(crate) struct Engine {
    core: Arc<Core>,
    runs: Arc<Mutex<HashMap<String, Arc<Mailbox>>>>,
}

impl Engine {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core, runs: Arc::default() }
    }

    /// Starts the watch on pods, then takes up every run that had not ended.
    pub(crate) async fn resume(&self) -> ApiResult<()> {
        let engine = self.clone();
        self.core.tasks.essential("pipeline pods", async move { watch::run(engine).await });
        for id in self.core.store.open_runs().await? {
            self.start(&id);
        }
        Ok(())
    }

    /// Lets a stored run go. A run that goes already is left alone.
    pub(crate) fn start(&self, run_id: &str) {
        let (send, requests) = mpsc::channel(REQUESTS);
        let mailbox = {
            let mut runs = self.runs.lock();
            if runs.contains_key(run_id) || self.core.tasks.shutdown().is_cancelled() {
                return;
            }
            let mailbox = Arc::new(Mailbox {
                pods: Mutex::default(),
                cancel: AtomicBool::new(false),
                wake: tokio::sync::Notify::new(),
                requests: send,
                stop: CancellationToken::new(),
                stopped: CancellationToken::new(),
            });
            runs.insert(run_id.to_owned(), mailbox.clone());
            mailbox
        };
        let (engine, id) = (self.clone(), run_id.to_owned());
        drop(self.core.tasks.spawn(format!("pipeline run {run_id}"), async move {
            // Also when the actor panics: a run must not stay unreachable.
            let _guard = Leave { engine: engine.clone(), id: id.clone(), mailbox: mailbox.clone() };
            if let Err(error) = actor::drive(engine.core.clone(), &id, &mailbox, requests).await {
                tracing::error!(run = %id, %error, "a run cannot go on; it is taken up again at the next start");
            }
        }));
    }

    fn mailbox(&self, run_id: &str) -> Option<Arc<Mailbox>> {
        self.runs.lock().get(run_id).cloned()
    }

    /// The request to cancel is stored already; this makes it happen now.
    pub(crate) fn cancel(&self, run_id: &str) {
        match self.mailbox(run_id) {
            Some(mailbox) => {
                mailbox.cancel.store(true, Ordering::Release);
                mailbox.wake.notify_one();
            }
            None => self.start(run_id),
        }
    }

    /// Takes a failed or canceled run up again where it failed.
    pub(crate) async fn retry(&self, row: &RunRow) -> ApiResult<()> {
        if !matches!(row.state, State::Failed | State::Canceled) {
            return Err(ApiError::new(
                Code::FailedPrecondition,
                format!("only a failed or canceled run can be retried, and this one is {}", row.state.name()),
            ));
        }
        // Its actor may still be keeping logs.
        if let Some(mailbox) = self.mailbox(&row.id) {
            mailbox.stop.cancel();
            mailbox.stopped.cancelled().await;
        }
        let row = self.core.store.run(&row.id).await?.ok_or_else(|| ApiError::not_found("run", &row.id))?;
        let mut run = actor::load(&self.core, &row).await?;
        let (changed, removed) = plan::retry(&mut run);
        let changed = run.tasks.values().filter(|t| changed.contains(&t.id)).cloned().collect();
        self.core.store.save(&run, changed, removed, Vec::new()).await?;
        self.core.announce(&row.id, &row.namespace, run.state);
        self.start(&row.id);
        Ok(())
    }

    /// Stops a run, then takes away its pods, logs and rows. Its artifacts are left to `retention`.
    pub(crate) async fn delete(&self, row: &RunRow) -> ApiResult<()> {
        if let Some(mailbox) = self.mailbox(&row.id) {
            mailbox.stop.cancel();
            mailbox.stopped.cancelled().await;
        }
        let pods: Api<Pod> = Api::namespaced(self.core.deps.client.clone(), &row.namespace);
        let selector = format!("{}={}", pod::RUN_LABEL, row.id);
        let found = pods.list_metadata(&ListParams::default().labels(&selector)).await;
        let names = found.map_err(|e| ApiError::internal("listing the run's pods", e))?.items;
        for name in names.into_iter().filter_map(|p| p.metadata.name) {
            match pods.delete(&name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(ApiError::internal("deleting the run's pods", error)),
            }
        }
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.core.deps.client.clone(), &row.namespace);
        match claims.delete(&pod::workspace_claim(&row.id), &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(ApiError::internal("deleting the run's workspace", error)),
        }
        self.core.store.delete_run(&row.id).await?;
        logs::forget(&self.core, &row.id).await;
        self.core.announce(&row.id, &row.namespace, row.state);
        Ok(())
    }

    /// A step's log: kept when the pod ended, else from the pod.
    pub(crate) async fn log(
        &self,
        namespace: &str,
        run_id: &str,
        task: &Task,
        range: LogRange,
    ) -> ApiResult<ByteStream> {
        logs::open(&self.core, namespace, run_id, task, range).await
    }

    /// Gives a launcher's call to its run. `None` when the run has ended or is unknown.
    pub(crate) async fn request<T>(&self, run_id: &str, make: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let mailbox = self.mailbox(run_id)?;
        let (send, answer) = oneshot::channel();
        mailbox.requests.send(make(send)).await.ok()?;
        answer.await.ok()
    }

    pub(crate) fn token(&self, run_id: &str, task_id: &str, attempt: u32) -> String {
        token(&self.core.store.key, run_id, task_id, attempt)
    }
}

/// One token a task and attempt, derived so that a pod created before a crash and one created after it agree. 256 bits
/// that only the holder of the database's key can make.
pub(crate) fn token(key: &[u8; 32], run_id: &str, task_id: &str, attempt: u32) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
    mac.update(format!("task token\n{run_id}\n{task_id}\n{attempt}").as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

struct Leave {
    engine: Engine,
    id: String,
    mailbox: Arc<Mailbox>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.engine.runs.lock().remove(&self.id);
        self.mailbox.stopped.cancel();
    }
}

/// What an actor waits for besides its mailbox.
pub(crate) type Work = BoxFuture<'static, steps::Done>;
