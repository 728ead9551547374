//! One run in motion: decide, store, act, wait. What there is to do is derived from the stored state each time round,
//! never remembered only in memory, so that a start after a crash goes on by the same code.

use super::{
    Work, logs,
    model::{Io, Kind, RunState, State, Task, TaskError, pod_name},
    plan,
    steps::{self, Context, Done},
    watch::{self, PodFact},
};
use crate::{
    Core,
    error::{ApiResult, Code},
    ports::ExecutionState,
    spec::{self, Pipeline, duration},
    store::{CacheEntry, RunRow},
    time,
};
use futures::{StreamExt, stream::FuturesUnordered};
use indexmap::IndexMap;
use parking_lot::Mutex;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// A step that reported a failure is explained when its pod has ended, at the latest after this.
const FAILURE_GRACE: Duration = Duration::from_secs(10);
/// A run that has ended waits so long for its last pods to end, to keep their logs.
const ARCHIVE_GRACE: Duration = Duration::from_secs(30);
/// Between tries to store, when the disk is full.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// How the outside reaches a run.
pub(crate) struct Mailbox {
    /// The newest fact of each pod, taken by the actor.
    pub(super) pods: Mutex<HashMap<String, PodFact>>,
    pub(super) cancel: AtomicBool,
    pub(super) wake: Notify,
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) stop: CancellationToken,
    pub(super) stopped: CancellationToken,
}

/// A launcher's call. The answer is `None` when the attempt is not running.
pub(crate) enum Request {
    /// The launcher is up and asks what to do.
    Begin { task: String, attempt: u32, answer: oneshot::Sender<Option<Assignment>> },
    /// What it may read and write.
    Scope { task: String, attempt: u32, answer: oneshot::Sender<Option<Assignment>> },
    /// Answered once the outcome is stored.
    Report { task: String, attempt: u32, report: Report, answer: oneshot::Sender<Option<()>> },
}

/// What an attempt does, with addresses still in the artifact store.
#[derive(Debug, Clone)]
pub(crate) struct Assignment {
    pub namespace: String,
    pub display_name: String,
    pub command: Vec<String>,
    pub inputs: Vec<InputFile>,
    pub output_file: String,
    pub output_parameters: BTreeMap<String, String>,
    pub output_artifacts: Vec<OutputArtifact>,
    /// Outputs may be uploaded below this.
    pub output_root: String,
}

#[derive(Debug, Clone)]
pub(crate) struct InputFile {
    pub name: String,
    pub uri: String,
    pub path: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct OutputArtifact {
    pub name: String,
    pub uri: String,
    pub path: String,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub succeeded: bool,
    /// In words, when it did not.
    pub message: String,
    pub exit_code: i32,
    pub signal: Option<i32>,
    /// `ExecutorOutput`, as the SDK wrote it; null when it wrote none.
    pub executor_output: Value,
    /// The content of the output parameters' files.
    pub parameters: BTreeMap<String, String>,
}

/// A run and its tasks from the database.
pub(super) async fn load(core: &Core, row: &RunRow) -> ApiResult<RunState> {
    let tasks: IndexMap<String, Task> =
        core.store.tasks(&row.id).await?.into_iter().map(|t| (t.id.clone(), t)).collect();
    let given = row.runtime_config.get("parameters").or_else(|| row.runtime_config.get("Parameters"));
    let given = given.and_then(Value::as_object).cloned().unwrap_or_default();
    let parameters = match Pipeline::parse(row.spec.clone()) {
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
    dirty: BTreeSet<String>,
    run_dirty: bool,
    cached: Vec<(String, String, CacheEntry)>,
    acknowledge: Vec<oneshot::Sender<Option<()>>>,
    begin: Vec<(oneshot::Sender<Option<Assignment>>, Assignment)>,
    facts: HashMap<String, PodFact>,
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
    let pipeline = match Pipeline::parse(row.spec) {
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
        dirty: BTreeSet::new(),
        run_dirty: false,
        cached: Vec::new(),
        acknowledge: Vec::new(),
        begin: Vec::new(),
        facts: HashMap::new(),
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
        let closed: Vec<String> =
            self.run.tasks.values().filter(|t| !t.is_leaf() && !t.state.is_final()).map(|t| t.id.clone()).collect();
        let changed = plan::advance(&self.pipeline, &mut self.run);
        for id in closed {
            if let Some(task) = self.run.tasks.get(&id).filter(|t| t.state.is_final()) {
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
        let ids: Vec<String> =
            self.run.tasks.values().filter(|t| !t.state.is_final() || !t.log_archived).map(|t| t.id.clone()).collect();
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
                let over = watch::is_hopeless(reason) || since.elapsed() >= self.core.config.start_deadline;
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
        let Some(pod) = task.pod_name.as_ref().filter(|_| task.kind == Kind::Container && task.pod_created) else {
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
            self.run.tasks.values().filter(|t| t.kind == Kind::Container && !t.state.is_final()).cloned().collect();
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
        self.facts.extend(new);
    }

    fn attempt<'t>(&'t self, id: &str, attempt: u32) -> Option<&'t Task> {
        self.run.tasks.get(id).filter(|t| t.attempt == attempt)
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Begin { task, attempt, answer } => {
                let Some(assignment) = self.assignment(&task, attempt) else {
                    _ = answer.send(None);
                    return;
                };
                if self.attempt(&task, attempt).is_some_and(|t| t.state == State::Pending) {
                    self.change(&task, |t| {
                        // The pod runs, whatever became of the call that created it.
                        t.pod_created = true;
                        t.enter(State::Running);
                    });
                }
                self.begin.push((answer, assignment));
            }
            Request::Scope { task, attempt, answer } => _ = answer.send(self.assignment(&task, attempt)),
            Request::Report { task, attempt, report, answer } => self.report(&task, attempt, report, answer),
        }
    }

    fn assignment(&self, id: &str, attempt: u32) -> Option<Assignment> {
        let task = self.attempt(id, attempt).filter(|t| !t.state.is_final() && !t.command.is_empty())?;
        if self.is_canceling() || self.reported.contains_key(id) {
            return None;
        }
        let input = steps::executor_input(&self.pipeline, &self.run, task);
        let paths = |list: &[super::model::Artifact], name: &str| -> Vec<InputFile> {
            let file = |a: &super::model::Artifact| InputFile {
                name: name.to_owned(),
                uri: a.uri.clone(),
                path: super::placeholders::artifact_path(a),
            };
            list.iter().map(file).collect()
        };
        Some(Assignment {
            namespace: self.run.namespace.clone(),
            display_name: task.display_name.clone(),
            command: task.command.clone(),
            inputs: input.artifacts.iter().flat_map(|(name, list)| paths(list, name)).collect(),
            output_file: input.output_file,
            output_parameters: input.output_parameters,
            output_artifacts: input
                .output_artifacts
                .into_iter()
                .filter_map(|(name, a)| {
                    Some(OutputArtifact { path: super::placeholders::artifact_path(&a)?, name, uri: a.uri })
                })
                .collect(),
            output_root: steps::output_root(&self.run, task),
        })
    }

    fn report(&mut self, id: &str, attempt: u32, report: Report, answer: oneshot::Sender<Option<()>>) {
        let Some(task) = self.attempt(id, attempt).cloned() else {
            _ = answer.send(None);
            return;
        };
        if task.state.is_final() || self.is_canceling() {
            // Said before, and stored before.
            return self.acknowledge.push(answer);
        }
        if self.reports.contains_key(id) {
            // Being recorded already: answered together.
            return self.reports.entry(id.to_owned()).or_default().push(answer);
        }
        if report.succeeded {
            self.busy.insert(id.to_owned());
            self.reports.entry(id.to_owned()).or_default().push(answer);
            self.work.push(Box::pin(self.context(&task).record(report)));
            return;
        }
        // Explained once the pod has ended and its log is whole. Should the daemon die before, the pod's exit code
        // says the same.
        self.reported.insert(id.to_owned(), (report_words(&report), Instant::now()));
        self.acknowledge.push(answer);
    }

    fn done(&mut self, done: Done) {
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

    fn failed(&mut self, id: &str, attempt: u32, error: TaskError) {
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

    fn is_done(&mut self) -> bool {
        if !self.run.state.is_final() || !self.work.is_empty() || !self.dirty.is_empty() {
            return false;
        }
        let until = *self.archive_until.get_or_insert_with(|| Instant::now() + ARCHIVE_GRACE);
        let waiting =
            |t: &Task| t.kind == Kind::Container && t.pod_created && !t.log_archived && t.state != State::Canceled;
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

fn report_words(report: &Report) -> String {
    let mut why = match report.signal {
        Some(9) => "it was killed (signal 9); if it has a memory limit, it may have run out of memory".to_owned(),
        Some(signal) => format!("it was ended by signal {signal}"),
        None if report.exit_code != 0 => format!("it ended with exit code {}", report.exit_code),
        None => String::new(),
    };
    if !report.message.is_empty() {
        if !why.is_empty() {
            why.push_str(": ");
        }
        why.push_str(&report.message);
    }
    if why.is_empty() { "it failed and did not say why".into() } else { why }
}

impl RunState {
    /// A copy with the tasks that one task's work looks at: those above it and those beside it.
    pub(super) fn view(&self, task: &Task) -> Self {
        let mut keep: HashSet<&str> = HashSet::from([task.id.as_str()]);
        let mut above = task.parent_id.as_deref();
        while let Some(parent) = above.and_then(|id| self.tasks.get(id)) {
            keep.insert(&parent.id);
            above = parent.parent_id.as_deref();
        }
        let dag = task.parent_id.as_ref().and_then(|id| self.tasks.get(id));
        let dag = if task.iteration.is_some() {
            dag.and_then(|l| l.parent_id.as_deref())
        } else {
            dag.map(|d| d.id.as_str())
        };
        let beside = |t: &Task| t.parent_id.is_some() && t.parent_id.as_deref() == dag;
        let tasks = self
            .tasks
            .iter()
            .filter(|(id, t)| keep.contains(id.as_str()) || beside(t))
            .map(|(id, t)| (id.clone(), t.clone()));
        Self { tasks: tasks.collect(), history: Vec::new(), ..self.shallow() }
    }

    fn shallow(&self) -> Self {
        Self {
            id: self.id.clone(),
            namespace: self.namespace.clone(),
            display_name: self.display_name.clone(),
            pipeline_name: self.pipeline_name.clone(),
            pipeline_root: self.pipeline_root.clone(),
            service_account: self.service_account.clone(),
            parameters: self.parameters.clone(),
            created_at: self.created_at,
            scheduled_at: self.scheduled_at,
            state: self.state,
            finished_at: self.finished_at,
            error: None,
            history: Vec::new(),
            contexts: self.contexts,
            tasks: IndexMap::new(),
        }
    }
}
