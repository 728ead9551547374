//! One run in motion: decide, store, act, wait. What there is to do is derived from the stored state each time round,
//! never remembered only in memory, so that a start after a crash goes on by the same code.

mod answers;
mod outcomes;

pub(super) use answers::assignment;

use super::{
    Work, logs,
    mailbox::{Assignment, Mailbox, Request},
    model::{Io, RunState, State, Task, TaskError, pod_name},
    plan,
    steps::{self, Context, Done},
    watch::{self, PodFact},
};
use crate::{
    Core,
    error::{ApiResult, Code},
    ports::ExecutionState,
    spec::{self, Pipeline},
    store::{CacheEntry, RunRow},
    time,
};
use futures::{StreamExt, stream::FuturesUnordered};
use indexmap::IndexMap;
use serde_json::Value;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

/// A step that reported a failure is explained when its pod has ended, at the latest after this.
const FAILURE_GRACE: Duration = Duration::from_secs(10);
/// A run that has ended waits so long for its last pods to end, to keep their logs.
const ARCHIVE_GRACE: Duration = Duration::from_secs(30);
/// Pods of one step that may be lost before they did anything; more is no accident.
const LOST_PODS: usize = 5;
/// Between tries to store, when the disk is full.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// A run and its tasks from the database.
pub(super) async fn load(core: &Core, row: &RunRow) -> ApiResult<RunState> {
    let tasks: IndexMap<String, Task> =
        core.store.tasks(&row.id).await?.into_iter().map(|t| (t.id.clone(), t)).collect();
    let given = row.runtime_config.get("parameters").or_else(|| row.runtime_config.get("Parameters"));
    let mut given = given.and_then(Value::as_object).cloned().unwrap_or_default();
    given.values_mut().for_each(|value| spec::name_run(value, &row.id));
    let parameters = match Pipeline::of_run(row.spec.clone(), &row.id) {
        Ok(pipeline) => spec::check_parameters(&pipeline, &given).unwrap_or(given),
        Err(_) => given,
    };
    Ok(RunState {
        id: row.id.clone(),
        namespace: row.namespace.clone(),
        display_name: row.display_name.clone(),
        pipeline_name: row.pipeline_name.clone(),
        pipeline_root: row.pipeline_root.clone(),
        service_account: row.service_account.clone(),
        parameters,
        created_at: row.created_at,
        scheduled_at: row.scheduled_at,
        state: row.state,
        finished_at: row.finished_at,
        error: row.error.clone(),
        history: row.state_history.clone(),
        contexts: row.contexts,
        tasks,
    })
}

struct Actor<'a> {
    core: Arc<Core>,
    mailbox: &'a Mailbox,
    pipeline: Arc<Pipeline>,
    run: RunState,
    work: FuturesUnordered<Work>,
    /// Tasks with a future of their own under way.
    busy: HashSet<String>,
    archiving: HashSet<String>,
    /// Executions of DAGs that the metadata store was told of, or would not take.
    begun: HashSet<String>,
    contexts_asked: bool,
    /// All was decided once; from then on only what follows from changes is.
    decided: bool,
    dirty: BTreeSet<String>,
    run_dirty: bool,
    cached: Vec<(String, String, CacheEntry)>,
    acknowledge: Vec<oneshot::Sender<Option<()>>>,
    begin: Vec<(oneshot::Sender<Option<Assignment>>, Assignment)>,
    facts: HashMap<String, PodFact>,
    /// Pods with a fact that was not looked at yet.
    news: HashSet<String>,
    looked: HashSet<String>,
    stuck_since: HashMap<String, Instant>,
    reported: HashMap<String, (String, Instant)>,
    reports: HashMap<String, Vec<oneshot::Sender<Option<()>>>>,
    deleting: bool,
    deleted: bool,
    deadline_error: Option<TaskError>,
    archive_until: Option<Instant>,
}

pub(super) async fn drive(
    core: Arc<Core>,
    id: &str,
    mailbox: &Mailbox,
    mut requests: mpsc::Receiver<Request>,
) -> ApiResult<()> {
    let Some(row) = core.store.run(id).await? else { return Ok(()) };
    if row.state.is_final() {
        return Ok(());
    }
    let mut run = load(&core, &row).await?;
    let pipeline = match Pipeline::of_run(row.spec, id) {
        Ok(pipeline) => Arc::new(pipeline),
        Err(error) => {
            // Only after a downgrade: it was valid when it was stored.
            plan::cancel(
                &mut run,
                Some(TaskError { code: 9, message: format!("its pipeline cannot be read: {error}") }),
            );
            let all = run.tasks.values().cloned().collect();
            core.store.save(&run, all, Vec::new(), Vec::new()).await?;
            core.announce(&run.id, &run.namespace, run.state);
            return Ok(());
        }
    };
    let mut actor = Actor {
        core,
        mailbox,
        pipeline,
        run,
        work: FuturesUnordered::new(),
        busy: HashSet::new(),
        archiving: HashSet::new(),
        begun: HashSet::new(),
        contexts_asked: false,
        decided: false,
        dirty: BTreeSet::new(),
        run_dirty: false,
        cached: Vec::new(),
        acknowledge: Vec::new(),
        begin: Vec::new(),
        facts: HashMap::new(),
        news: HashSet::new(),
        looked: HashSet::new(),
        stuck_since: HashMap::new(),
        reported: HashMap::new(),
        reports: HashMap::new(),
        deleting: false,
        deleted: false,
        deadline_error: None,
        archive_until: None,
    };
    let shutdown = actor.core.tasks.shutdown();
    loop {
        actor.decide();
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = mailbox.stop.cancelled() => return Ok(()),
            stored = actor.store() => stored?,
        }
        actor.act();
        if actor.is_done() {
            return Ok(());
        }
        let until = actor.next_wake();
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = mailbox.stop.cancelled() => return Ok(()),
            () = mailbox.wake.notified() => actor.take_pods(),
            Some(request) = requests.recv() => {
                actor.request(request);
                while let Ok(more) = requests.try_recv() {
                    actor.request(more);
                }
            }
            Some(done) = actor.work.next() => actor.done(done),
            () = sleep_until(until) => {}
        }
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

impl Actor<'_> {
    fn is_canceling(&self) -> bool {
        self.deadline_error.is_some()
            || (!self.run.state.is_final()
                && (self.run.state == State::Canceling || self.mailbox.cancel.load(Ordering::Acquire)))
    }

    fn decide(&mut self) {
        if self.run.state.is_final() {
            return;
        }
        if let Some(seconds) = self.pipeline.active_deadline_seconds()
            && time::now() >= self.run.created_at + seconds * 1000
            && self.deadline_error.is_none()
        {
            self.deadline_error =
                Some(TaskError { code: 4, message: format!("the run took longer than its deadline of {seconds} s") });
        }
        if self.is_canceling() {
            if self.run.state != State::Canceling {
                self.run.enter(State::Canceling);
                self.run_dirty = true;
            }
            if self.deleted {
                self.dirty.extend(plan::cancel(&mut self.run, self.deadline_error.take()));
                self.run_dirty = true;
                // Kept before the pods were deleted.
                for task in self.run.tasks.values_mut().filter(|t| t.state == State::Canceled) {
                    task.log_archived = true;
                }
            }
            return;
        }
        let before = self.run.state;
        let changed = if self.decided {
            plan::advance_after(&self.pipeline, &mut self.run, &self.dirty)
        } else {
            self.decided = true;
            plan::advance(&self.pipeline, &mut self.run)
        };
        for id in &changed {
            if let Some(task) = self.run.tasks.get(id).filter(|t| !t.is_leaf() && t.state.is_final()) {
                let state = match task.state {
                    State::Failed => ExecutionState::Failed,
                    State::Canceled => ExecutionState::Canceled,
                    _ => ExecutionState::Complete,
                };
                let (core, run, execution) = (self.core.clone(), self.run.view(task), task.execution_id);
                let mut outputs = Io { parameters: task.outputs.parameters.clone(), ..Io::default() };
                self.work.push(Box::pin(async move {
                    steps::finish(&core, &run, execution, state, &mut outputs).await;
                    Done::Nothing
                }));
            }
        }
        self.run_dirty |= before != self.run.state || !changed.is_empty();
        self.dirty.extend(changed);
    }

    /// On disk before anyone is told and before anything is done.
    async fn store(&mut self) -> ApiResult<()> {
        if !self.dirty.is_empty() || self.run_dirty || !self.cached.is_empty() {
            // In order of creation, which is the order in which they are read back: parents first.
            let changed: Vec<Task> = self.run.tasks.values().filter(|t| self.dirty.contains(&t.id)).cloned().collect();
            loop {
                match self.core.store.save(&self.run, changed.clone(), Vec::new(), self.cached.clone()).await {
                    Ok(()) => break,
                    Err(error) if error.code == Code::Unavailable => {
                        tracing::warn!(run = %self.run.id, %error, "a run waits until its state can be stored");
                        tokio::time::sleep(STORE_RETRY).await;
                    }
                    Err(error) if error.code == Code::NotFound => {
                        // Deleted meanwhile.
                        self.mailbox.stop.cancel();
                        return Ok(());
                    }
                    Err(error) => return Err(error),
                }
            }
            self.dirty.clear();
            self.cached.clear();
            self.run_dirty = false;
            self.core.announce(&self.run.id, &self.run.namespace, self.run.state);
        }
        for answer in self.acknowledge.drain(..) {
            _ = answer.send(Some(()));
        }
        for (answer, assignment) in self.begin.drain(..) {
            _ = answer.send(Some(assignment));
        }
        Ok(())
    }

    fn context(&self, task: &Task) -> Context {
        Context {
            core: self.core.clone(),
            pipeline: self.pipeline.clone(),
            run: self.run.view(task),
            task: task.clone(),
        }
    }

    /// Whatever the state asks for and nothing is doing yet.
    fn act(&mut self) {
        if self.is_canceling() {
            if !self.deleting {
                self.deleting = true;
                self.work.clear();
                self.busy.clear();
                self.delete_pods();
            }
            return;
        }
        if self.run.contexts.run == 0 && !self.contexts_asked {
            self.contexts_asked = true;
            self.work.push(Box::pin(steps::begin_run(self.core.clone(), self.run.clone())));
            return;
        }
        if self.run.contexts.run == 0 && !self.begun.contains("") {
            return;
        }
        let now = time::now();
        let ids: Vec<String> = self.run.tasks.values().filter(|t| self.asks_for(t)).map(|t| t.id.clone()).collect();
        self.news.clear();
        for id in ids {
            let Some(task) = self.run.tasks.get(&id).cloned() else { continue };
            if task.state.is_final() {
                self.archive(&task);
            } else if !task.is_leaf() {
                self.begin_dag(&task);
            } else if !self.busy.contains(&id) && task.retry_at.is_none_or(|at| at <= now) && self.parent_begun(&task) {
                self.leaf(&task);
            }
        }
    }

    /// Whether there may be something to do for a task. Most of a large run's tasks only wait, at the cost of this question.
    fn asks_for(&self, task: &Task) -> bool {
        if task.state.is_final() {
            return !task.log_archived;
        }
        if !task.is_leaf() {
            return task.execution_id.is_none() && !self.begun.contains(&task.id);
        }
        let Some(pod) = task.pod_name.as_ref().filter(|_| task.pod_created && !task.command.is_empty()) else {
            return true;
        };
        self.news.contains(pod)
            || !self.facts.contains_key(pod)
            || self.reported.contains_key(&task.id)
            || self.stuck_since.contains_key(&task.id)
    }

    fn parent_begun(&self, task: &Task) -> bool {
        let parent = task.parent_id.as_ref().and_then(|id| self.run.tasks.get(id));
        parent.is_none_or(|p| p.execution_id.is_some() || self.begun.contains(&p.id))
    }

    fn begin_dag(&mut self, task: &Task) {
        if task.execution_id.is_some()
            || self.begun.contains(&task.id)
            || self.busy.contains(&task.id)
            || !self.parent_begun(task)
        {
            return;
        }
        self.busy.insert(task.id.clone());
        let context = self.context(task);
        self.work.push(Box::pin(async move {
            let execution = context.begin_dag().await;
            // Told apart from a leaf by its kind.
            Done::Prepared {
                task: context.task.id,
                image: String::new(),
                command: Vec::new(),
                fingerprint: None,
                execution,
            }
        }));
    }

    fn leaf(&mut self, task: &Task) {
        if task.command.is_empty() || !task.pod_created {
            let context = self.context(task);
            self.busy.insert(task.id.clone());
            self.work.push(if task.command.is_empty() {
                Box::pin(context.prepare())
            } else {
                Box::pin(context.create_pod())
            });
            return;
        }
        let Some(pod) = &task.pod_name else { return };
        let Some(fact) = self.facts.get(pod).cloned() else {
            if self.looked.insert(task.id.clone()) {
                self.work.push(Box::pin(self.context(task).look()));
            }
            return;
        };
        if !task.began && fact.never_reached_us() && task.failed_pods.len() < LOST_PODS {
            // The node lost the container, or its network, while it started it; its launcher, which asks first, never
            // asked: the command has not run. Another attempt is not a second run, and not one of the retry policy's.
            tracing::warn!(run = %self.run.id, task = %task.path, pod, "a step's container was lost before it began; it is made anew");
            let (core, namespace, lost) = (self.core.clone(), self.run.namespace.clone(), vec![pod.clone()]);
            self.work.push(Box::pin(async move {
                drop(steps::delete_pods(core, namespace, lost).await);
                Done::Nothing
            }));
            self.change(&task.id, plan::restart);
            return;
        }
        if let Some(why) = self.verdict(task, &fact) {
            self.busy.insert(task.id.clone());
            self.reported.remove(&task.id);
            let (context, over) = (self.context(task), fact.is_over() && !fact.deleted);
            self.work.push(Box::pin(async move {
                if over
                    && let Err(error) =
                        logs::archive(&context.core, &context.run.namespace, &context.run.id, &context.task).await
                {
                    tracing::warn!(task = %context.task.path, %error, "a step's log could not be kept");
                }
                let (core, namespace, pod) =
                    (context.core.clone(), context.run.namespace.clone(), context.task.pod_name.clone());
                let done = context.explain(why).await;
                if !over && let Some(pod) = pod {
                    steps::delete_pods(core, namespace, vec![pod]).await;
                }
                done
            }));
            return;
        }
        if task.state == State::Pending && fact.phase == "Running" {
            self.change(&task.id, |t| t.enter(State::Running));
        }
    }

    /// Why a step has failed, if it has.
    fn verdict(&mut self, task: &Task, fact: &PodFact) -> Option<String> {
        let memory = fact.terminated.as_ref().is_some_and(|t| t.reason == "OOMKilled");
        if let Some((why, since)) = self.reported.get(&task.id) {
            if memory {
                return Some("it ran out of memory (OOMKilled); raise its memory limit".into());
            }
            return (fact.is_over() || since.elapsed() >= FAILURE_GRACE).then(|| why.clone());
        }
        if fact.deleted {
            return Some("its pod was deleted before it ended".into());
        }
        if fact.is_over() {
            let Some(ended) = &fact.terminated else {
                if let Some(why) = &fact.init_failed {
                    return Some(why.clone());
                }
                let why = [fact.reason.as_str(), fact.message.as_str()]
                    .into_iter()
                    .filter(|t| !t.is_empty())
                    .collect::<Vec<_>>()
                    .join(": ");
                return Some(format!("its pod ended as {}{}{why}", fact.phase, if why.is_empty() { "" } else { ": " }));
            };
            return Some(match (memory, ended.exit_code) {
                (true, _) => "it ran out of memory (OOMKilled); raise its memory limit".into(),
                _ if fact.reason == "DeadlineExceeded" => "it took longer than its deadline (DeadlineExceeded)".into(),
                (_, 0) => "its container ended without reporting what it made".into(),
                (_, code) => {
                    let mut why = format!("its container ended with exit code {code}");
                    for part in [&ended.reason, &ended.message].into_iter().filter(|p| !p.is_empty() && *p != "Error") {
                        why.push_str(": ");
                        why.push_str(part);
                    }
                    why
                }
            });
        }
        match &fact.waiting {
            Some((reason, message)) if watch::is_stuck(reason) => {
                let since = *self.stuck_since.entry(task.id.clone()).or_insert_with(Instant::now);
                let over = watch::is_hopeless(reason, message) || since.elapsed() >= self.core.config.start_deadline;
                over.then(|| {
                    let message = if message.is_empty() { String::new() } else { format!(": {message}") };
                    format!("its container cannot start: {reason}{message} (image {})", task.image)
                })
            }
            Some((reason, _)) if !reason.is_empty() => {
                self.stuck_since.remove(&task.id);
                None
            }
            _ => None,
        }
    }

    fn archive(&mut self, task: &Task) {
        let Some(pod) = task.pod_name.as_ref().filter(|_| task.pod_created) else {
            // Nothing to keep; not worth a write of its own.
            if let Some(task) = self.run.tasks.get_mut(&task.id) {
                task.log_archived = true;
            }
            return;
        };
        let over = self.facts.get(pod).is_some_and(PodFact::is_over);
        if over && self.archiving.insert(task.id.clone()) {
            self.work.push(Box::pin(self.context(task).archive()));
        }
    }

    fn delete_pods(&mut self) {
        let open: Vec<Task> =
            self.run.tasks.values().filter(|t| t.may_have_pod() && !t.state.is_final()).cloned().collect();
        let contexts: Vec<Context> = open.iter().filter(|t| t.pod_created).map(|t| self.context(t)).collect();
        let names = open
            .iter()
            .map(|t| t.pod_name.clone().unwrap_or_else(|| pod_name(&self.run.pipeline_name, &self.run.id, t)))
            .collect();
        let (core, namespace) = (self.core.clone(), self.run.namespace.clone());
        self.work.push(Box::pin(async move {
            for context in contexts {
                drop(context.archive().await);
            }
            steps::delete_pods(core, namespace, names).await
        }));
    }

    fn change(&mut self, id: &str, change: impl FnOnce(&mut Task)) {
        if let Some(task) = self.run.tasks.get_mut(id) {
            change(task);
            self.dirty.insert(id.to_owned());
        }
    }

    fn take_pods(&mut self) {
        let new = std::mem::take(&mut *self.mailbox.pods.lock());
        self.news.extend(new.keys().cloned());
        self.facts.extend(new);
    }

    fn attempt<'t>(&'t self, id: &str, attempt: u32) -> Option<&'t Task> {
        self.run.tasks.get(id).filter(|t| t.attempt == attempt)
    }

    fn is_done(&mut self) -> bool {
        if !self.run.state.is_final() || !self.work.is_empty() || !self.dirty.is_empty() {
            return false;
        }
        let until = *self.archive_until.get_or_insert_with(|| Instant::now() + ARCHIVE_GRACE);
        let waiting = |t: &Task| t.may_have_pod() && t.pod_created && !t.log_archived && t.state != State::Canceled;
        Instant::now() >= until || !self.run.tasks.values().any(waiting)
    }

    fn next_wake(&self) -> Option<Instant> {
        let now = (Instant::now(), time::now());
        let at = |millis: i64| now.0 + Duration::from_millis(u64::try_from(millis - now.1).unwrap_or(0));
        let retries = self
            .run
            .tasks
            .values()
            .filter(|t| !t.state.is_final())
            .filter_map(|t| t.retry_at)
            .filter(|m| *m > now.1)
            .map(at);
        let reported = self.reported.values().map(|(_, since)| *since + FAILURE_GRACE);
        let stuck = self.stuck_since.values().map(|since| *since + self.core.config.start_deadline);
        let deadline =
            self.pipeline.active_deadline_seconds().filter(|_| !self.run.state.is_final() && !self.is_canceling());
        let deadline = deadline.map(|s| at(self.run.created_at + s * 1000));
        retries.chain(reported).chain(stuck).chain(deadline).chain(self.archive_until).min()
    }
}
