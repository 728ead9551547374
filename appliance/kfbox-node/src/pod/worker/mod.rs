//! One task a pod: it holds what is known of the pod's containers, asks [`super::plan`] what to do, does it, and
//! reports.
//!
//! Invariant: everything that takes time is a job whose end is an event, so that the pod is never deaf; jobs end with
//! the worker. Nothing is polled.

mod containers;
mod end;
mod resize;

use super::{
    context::{Change, Context},
    events::Level,
    launch::{self, ImageFailure, Launch, LaunchFailure, Launched, PrepareError, Prepared},
    objects::{self, References},
    plan::{BackOff, plan},
    probe::{Probing, Which},
    publish::Publisher,
    record::{self, CRASH_LOOP, Record, State, full_name, uid},
    status::{self, Outcome},
};
use crate::{images::Image, runtime::Handle, shim::records::Exit, volumes::Tokens};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};

/// Wait before a failed preparation is tried again, when nothing that it needs has changed meanwhile.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What the pod's task is told.
#[derive(Debug, Clone)]
pub enum Wanted {
    Pod(Arc<Pod>),
    /// The object is gone: whatever is left must go too.
    Gone(Arc<Pod>),
}

impl Wanted {
    pub fn pod(&self) -> &Arc<Pod> {
        let (Self::Pod(pod) | Self::Gone(pod)) = self;
        pod
    }
}

enum Event {
    Prepared(Box<Result<Prepared, PrepareError>>),
    Image { name: String, result: Result<(Image, Vec<PathBuf>), ImageFailure> },
    Launched { name: String, result: Result<Launched, LaunchFailure> },
    PostStart { name: String, id: String, result: Result<(), String> },
    Exited { name: String, id: String, exit: Exit },
    Probe { name: String, id: String, which: Which, result: Result<(), String> },
    Refreshed(Box<Result<Tokens, PrepareError>>),
    Finished,
}

/// Why a pod's task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Stopped,
    /// Of the pod nothing is left here.
    Gone,
    /// It ran to its end and its object is kept; its logs are here. Deleting it takes another task.
    Ended,
}

/// A running container's companions.
struct Live {
    handle: Handle,
    since: Instant,
    probing: Probing,
    /// Set while it is being stopped; sending shortens the grace.
    stopping: Option<watch::Sender<Instant>>,
}

pub struct Worker {
    ctx: Arc<Context>,
    pod: Arc<Pod>,
    gone: bool,
    records: Vec<Record>,
    live: HashMap<String, Live>,
    images: HashMap<String, (Image, Vec<PathBuf>)>,
    /// Containers for which a launch, or what comes before it, is under way.
    launching: HashMap<String, Step>,
    attempts: BTreeMap<String, u32>,
    prepared: Option<Arc<Prepared>>,
    preparing: bool,
    failures: u32,
    back_off: BackOff,
    pull_back_off: BackOff,
    /// Not before these times: failed preparations and creations.
    retry: HashMap<String, Instant>,
    outcome: Outcome,
    references: References,
    token_renewal: Option<Instant>,
    refreshing: bool,
    refresh_again: bool,
    /// Until when all of the pod has to have ended, once it began to.
    ending: Option<Instant>,
    publisher: Publisher,
    jobs: FuturesUnordered<BoxFuture<'static, Event>>,
    wanted: watch::Receiver<Wanted>,
    changes: broadcast::Receiver<Change>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Image,
    Launch,
}

const SANDBOX: &str = "";

impl Worker {
    pub fn new(ctx: Arc<Context>, wanted: watch::Receiver<Wanted>) -> Self {
        let (pod, gone) = match &*wanted.borrow() {
            Wanted::Pod(pod) => (pod.clone(), false),
            Wanted::Gone(pod) => (pod.clone(), true),
        };
        let publisher = Publisher::start(&ctx, &pod);
        let changes = ctx.changes.subscribe();
        let empty = PodSpec::default();
        let records = record::fresh(pod.spec.as_ref().unwrap_or(&empty));
        Self {
            gone,
            records,
            live: HashMap::new(),
            images: HashMap::new(),
            launching: HashMap::new(),
            attempts: BTreeMap::new(),
            prepared: None,
            preparing: false,
            failures: 0,
            back_off: BackOff::default(),
            pull_back_off: BackOff::default(),
            retry: HashMap::new(),
            outcome: Outcome::default(),
            references: objects::references(&pod),
            token_renewal: None,
            refreshing: false,
            refresh_again: false,
            ending: None,
            publisher,
            jobs: FuturesUnordered::new(),
            wanted,
            changes,
            pod,
            ctx,
        }
    }

    fn spec(&self) -> PodSpec {
        self.pod.spec.clone().unwrap_or_default()
    }

    fn record(&mut self, name: &str) -> Option<&mut Record> {
        self.records.iter_mut().find(|r| r.name == name)
    }

    fn container(&self, name: &str) -> Option<Container> {
        record::find(self.pod.spec.as_ref()?, name).map(std::borrow::Cow::into_owned)
    }

    /// Runs until the pod is gone from this node or nothing is left to do for it, or the daemon stops.
    pub async fn run(mut self) -> Left {
        let shutdown = self.ctx.tasks.shutdown();
        let left = tokio::select! {
            left = self.live_and_die() => left,
            // Containers go on without the daemon.
            () = shutdown.cancelled() => return Left::Stopped,
        };
        tracing::debug!(pod = %full_name(&self.pod), ?left, "the pod's task ends");
        left
    }

    async fn live_and_die(&mut self) -> Left {
        self.adopt().await;
        loop {
            let wake = self.act();
            self.publish();
            let mut resting = false;
            if self.settled() {
                if self.bury().await {
                    return Left::Gone;
                }
                resting = self.is_resting();
                if resting && self.publisher.is_written() {
                    return Left::Ended;
                }
            }
            self.next(wake, resting).await;
        }
    }

    /// `resting`: all that is left is that the server takes the last status.
    async fn next(&mut self, wake: Option<Instant>, resting: bool) {
        let timer = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(event) = self.jobs.next() => {
                self.handle(event);
                // What else has happened already goes into the same round.
                while let Some(Some(event)) = self.jobs.next().now_or_never() {
                    self.handle(event);
                }
            }
            changed = self.wanted.changed() => {
                if changed.is_ok() {
                    self.take_wanted();
                } else {
                    // The dispatcher ended, so the daemon is stopping.
                    std::future::pending::<()>().await;
                }
            }
            change = self.changes.recv() => self.take_change(change),
            () = self.publisher.flush(), if resting => {}
            () = timer => {}
        }
    }

    fn take_wanted(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        self.gone |= matches!(wanted, Wanted::Gone(_));
        let old = std::mem::replace(&mut self.pod, wanted.pod().clone());
        let said = |pod: &Pod| (pod.metadata.labels.clone(), pod.metadata.annotations.clone());
        if self.prepared.is_some() && said(&old) != said(&self.pod) {
            self.refresh();
        }
        if old.spec != self.pod.spec {
            // Ephemeral containers come while the pod runs, with references of their own.
            record::add_missing(&self.spec(), &mut self.records);
            self.references = objects::references(&self.pod);
        }
    }

    fn take_change(&mut self, change: Result<Change, broadcast::error::RecvError>) {
        let relevant = match change {
            Ok(Change::Object { kind, namespace, name }) => {
                self.pod.metadata.namespace.as_deref() == Some(&namespace) && self.references.contains(&(kind, name))
            }
            Ok(Change::Storage) => self.prepared.is_none(),
            Ok(Change::Evicted(uid)) => {
                if self.pod.metadata.uid.as_deref() == Some(&uid) {
                    self.take_eviction();
                }
                false
            }
            Ok(Change::Unknown) | Err(broadcast::error::RecvError::Lagged(_)) => {
                self.take_eviction();
                true
            }
            Err(broadcast::error::RecvError::Closed) => false,
        };
        if !relevant {
            return;
        }
        // Whoever waited for what was missing tries again at once.
        self.retry.clear();
        if self.prepared.is_some() && !self.references.is_empty() {
            self.refresh();
        }
    }

    fn refresh(&mut self) {
        if self.refreshing {
            self.refresh_again = true;
            return;
        }
        self.refreshing = true;
        let ips = self.prepared.as_ref().map(|p| p.ips.clone()).unwrap_or_default();
        let (ctx, pod) = (self.ctx.clone(), self.pod.clone());
        self.jobs.push(async move { Event::Refreshed(Box::new(launch::refresh(&ctx, &pod, &ips).await)) }.boxed());
    }

    fn deleted(&self) -> bool {
        self.gone || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Starts what is to be started now. Returns when to look again.
    fn act(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let deadline = self.deadline(now);
        if self.deleted() || self.outcome.reason.is_some() {
            self.stop_all();
            return None;
        }
        if self.outcome.finished {
            self.stop_all();
            return None;
        }
        let spec = self.spec();
        let mut plan = plan(&spec, &self.records, &self.back_off, now);
        if plan.finished && self.launching.is_empty() {
            self.outcome.finished = true;
            return None;
        }
        for name in plan.stop.drain(..) {
            self.stop(&name, None, "Killing");
        }
        let mut wake = [plan.wake, deadline, self.resize(&spec, now)].into_iter().flatten().min();
        if self.prepared.is_none() && !self.live.is_empty() {
            // Taken over, but what they stand on could not be made out yet.
            match self.retry.get(SANDBOX) {
                Some(at) if *at > now => wake = Some(wake.map_or(*at, |other| other.min(*at))),
                _ => self.prepare(),
            }
        }
        for (name, delay) in plan.looping {
            self.show_looping(&name, delay);
        }
        for name in plan.start {
            if let Some(at) = self.start(&name, now) {
                wake = Some(wake.map_or(at, |other: Instant| other.min(at)));
            }
        }
        if let Some(at) = self.token_renewal {
            if at <= now {
                self.token_renewal = None;
                self.refresh();
            } else {
                wake = Some(wake.map_or(at, |other| other.min(at)));
            }
        }
        wake
    }

    /// Ends the pod when its time is up; else says when that is.
    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let seconds = self.pod.spec.as_ref()?.active_deadline_seconds?;
        let began = self.outcome.start_time.clone()?.0.as_second();
        let left = began + seconds - status::now().0.as_second();
        match u64::try_from(left) {
            Ok(left) if left > 0 => Some(now + Duration::from_secs(left)),
            _ => {
                if self.outcome.reason.is_none() && !self.outcome.finished {
                    let message = "Pod was active on the node longer than the specified deadline";
                    self.outcome.reason = Some("DeadlineExceeded".into());
                    self.outcome.message = Some(message.into());
                    self.ctx.events.pod(&self.pod, None, Level::Normal, "DeadlineExceeded", message);
                }
                None
            }
        }
    }

    fn show_looping(&mut self, name: &str, delay: Duration) {
        let message = format!(
            "back-off {}s restarting failed container={name} pod={}_{}({})",
            pretty(delay),
            self.pod.metadata.name.as_deref().unwrap_or_default(),
            self.pod.metadata.namespace.as_deref().unwrap_or_default(),
            uid(&self.pod),
        );
        let Some(record) = self.record(name) else { return };
        if let State::Ended(ended) = &record.state {
            record.last = Some(ended.clone());
            record.state = State::Waiting { reason: CRASH_LOOP, message: Some(message) };
            let text = format!("Back-off restarting failed container {name} in pod {}", full_name(&self.pod));
            self.ctx.events.pod(&self.pod, Some(name), Level::Warning, "BackOff", text);
        }
    }

    fn wait(&mut self, name: &str, reason: &'static str, message: Option<String>) {
        if let Some(record) = self.record(name) {
            if let State::Ended(ended) = &record.state {
                record.last = Some(ended.clone());
            }
            record.state = State::Waiting { reason, message };
        }
    }

    /// The next step towards a running container. Returns when to try again, if not now.
    fn start(&mut self, name: &str, now: Instant) -> Option<Instant> {
        if self.launching.get(name) == Some(&Step::Launch) {
            return None;
        }
        let container = self.container(name)?;
        let mut wake = None;
        if self.prepared.is_none() {
            match self.retry.get(SANDBOX) {
                Some(at) if *at > now => wake = Some(*at),
                _ => self.prepare(),
            }
        }
        if !self.images.contains_key(name) {
            if let Some((_, until)) = self.pull_back_off.waiting(name, now) {
                let image = container.image.clone().unwrap_or_default();
                let shown = self.record(name).map(|r| r.state.clone());
                if let Some(State::Waiting { reason: "ErrImagePull", message: cause }) = shown {
                    // As upstream since 1.31: the back-off says what it is for.
                    let cause = cause.map_or_else(String::new, |cause| format!(": ErrImagePull: {cause}"));
                    let message = format!("Back-off pulling image \"{image}\"{cause}");
                    self.ctx.events.pod(&self.pod, Some(name), Level::Normal, "BackOff", message.clone());
                    self.ctx.events.pod(&self.pod, Some(name), Level::Warning, "Failed", "Error: ImagePullBackOff");
                    // Shown once the failure itself has been.
                    self.publish();
                    self.wait(name, "ImagePullBackOff", Some(message));
                }
                return Some(wake.map_or(until, |w: Instant| w.min(until)));
            }
            if self.launching.insert(name.into(), Step::Image).is_none() {
                let (ctx, pod, name) = (self.ctx.clone(), self.pod.clone(), name.to_owned());
                self.jobs.push(
                    async move {
                        let image = container.image.unwrap_or_default();
                        let policy = container.image_pull_policy;
                        let result = launch::ensure_image(&ctx, &pod, Some(&name), &image, policy.as_deref()).await;
                        Event::Image { name, result }
                    }
                    .boxed(),
                );
            }
            return wake;
        }
        let Some(prepared) = self.prepared.clone() else { return wake };
        if let Some(at) = self.retry.get(name)
            && *at > now
        {
            return Some(*at);
        }
        self.launch(name, container, prepared);
        None
    }

    fn prepare(&mut self) {
        if self.preparing {
            return;
        }
        self.preparing = true;
        let (ctx, pod) = (self.ctx.clone(), self.pod.clone());
        self.jobs.push(async move { Event::Prepared(Box::new(launch::prepare(&ctx, &pod).await)) }.boxed());
    }

    fn launch(&mut self, name: &str, container: Container, prepared: Arc<Prepared>) {
        // The next start resolves the image anew.
        let Some((image, layers)) = self.images.remove(name) else { return };
        let attempt = self.attempts.get(name).copied().unwrap_or(0);
        self.launching.insert(name.into(), Step::Launch);
        let image_id = image.repo_digests().next().map_or_else(|| image.id.clone(), str::to_owned);
        let now = Instant::now();
        if let Some(record) = self.record(name) {
            record.image_id = image_id;
            record.has = Some(container.resources.clone().unwrap_or_default());
        }
        if self.record(name).is_some_and(|r| r.latest_end().is_some()) {
            self.back_off.restarted(name, now);
        }
        let launch = Launch { pod: self.pod.clone(), container, attempt, prepared, image, layers };
        let (ctx, name) = (self.ctx.clone(), name.to_owned());
        self.jobs.push(
            async move {
                let result = launch::launch(&ctx, launch).await;
                Event::Launched { name, result }
            }
            .boxed(),
        );
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Finished => {}
            Event::Prepared(result) => self.on_prepared(*result),
            Event::Refreshed(result) => {
                self.refreshing = false;
                match *result {
                    Ok(tokens) => self.renew_after(&tokens),
                    Err(error) => {
                        tracing::warn!(pod = %full_name(&self.pod), %error, "volumes could not be updated");
                        self.token_renewal = Some(Instant::now() + RETRY_MAX);
                    }
                }
                if std::mem::take(&mut self.refresh_again) {
                    self.refresh();
                }
            }
            Event::Image { name, result } => {
                self.launching.remove(&name);
                match result {
                    Ok(found) => {
                        self.pull_back_off.forget(&name);
                        self.images.insert(name, found);
                    }
                    Err(failure) => {
                        self.pull_back_off.failed(&name, Instant::now());
                        self.wait(&name, failure.reason, Some(failure.message));
                    }
                }
            }
            Event::Launched { name, result } => {
                self.launching.remove(&name);
                self.on_launched(&name, result);
            }
            Event::PostStart { name, id, result } => self.on_post_start(&name, &id, result),
            Event::Exited { name, id, exit } => self.on_exited(&name, &id, exit),
            Event::Probe { name, id, which, result } => self.on_probe(&name, &id, which, result),
        }
    }

    fn on_prepared(&mut self, result: Result<Prepared, PrepareError>) {
        self.preparing = false;
        match result {
            Ok(prepared) => {
                self.failures = 0;
                self.retry.remove(SANDBOX);
                self.outcome.sandboxed = true;
                self.renew_after(&prepared.tokens);
                self.prepared = Some(Arc::new(prepared));
            }
            Err(error) => {
                self.ctx.events.pod(&self.pod, None, Level::Warning, error.reason(), error.to_string());
                let delay = (RETRY_FIRST * 2_u32.saturating_pow(self.failures.min(8))).min(RETRY_MAX);
                self.failures += 1;
                self.retry.insert(SANDBOX.into(), Instant::now() + delay);
            }
        }
    }

    fn renew_after(&mut self, tokens: &Tokens) {
        self.token_renewal = tokens.renew_after.map(|after| Instant::now() + after);
    }
}

fn pretty(delay: Duration) -> String {
    let seconds = delay.as_secs();
    match (seconds / 60, seconds % 60) {
        (0, s) => s.to_string(),
        (m, s) => format!("{m}m{s}"),
    }
}
