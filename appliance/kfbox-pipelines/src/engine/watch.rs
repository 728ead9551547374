//! One watch over the pods of all runs, handed to the run that each belongs to. Only the newest fact of a pod is kept,
//! so that a slow run costs no queue.

use super::{Engine, pod};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use kube::{
    Api, ResourceExt,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use std::collections::HashMap;

/// What the engine wants to know of a pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct PodFact {
    pub phase: String,
    pub uid: String,
    pub deleted: bool,
    /// The pod's own reason, such as `Evicted` or `DeadlineExceeded`.
    pub reason: String,
    pub message: String,
    /// The main container waits, or an init container that cannot start: its reason and message.
    pub waiting: Option<(String, String)>,
    /// An init container that failed, in words.
    pub init_failed: Option<String>,
    pub terminated: Option<Terminated>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Terminated {
    pub exit_code: i32,
    pub signal: Option<i32>,
    pub reason: String,
    pub message: String,
}

/// The launcher's exit code when it could not do its own part.
const LAUNCHER_FAILED: i32 = 125;
/// Ended by SIGKILL.
const KILLED: i32 = 137;

impl PodFact {
    pub(super) fn of(pod: &Pod) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let init = status.init_container_statuses.unwrap_or_default();
        let init_waiting = init.iter().find_map(|c| {
            let waiting = c.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.clone().filter(|r| is_stuck(r))?;
            let message = waiting.message.as_deref().unwrap_or_default();
            Some((reason, format!("init container {}: {message}", c.name)))
        });
        let init_failed = init.iter().find_map(|c| {
            let ended = c.state.as_ref()?.terminated.as_ref().filter(|t| t.exit_code != 0)?;
            Some(format!("its init container {} ended with exit code {}", c.name, ended.exit_code))
        });
        let container = status.container_statuses.unwrap_or_default().into_iter().find(|c| c.name == pod::MAIN);
        let state = container.and_then(|c| c.state).unwrap_or_default();
        Self {
            phase: status.phase.unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            deleted: false,
            reason: status.reason.unwrap_or_default(),
            message: status.message.unwrap_or_default(),
            waiting: init_waiting
                .or_else(|| state.waiting.map(|w| (w.reason.unwrap_or_default(), w.message.unwrap_or_default()))),
            init_failed,
            terminated: state.terminated.map(|t: ContainerStateTerminated| Terminated {
                exit_code: t.exit_code,
                signal: t.signal,
                reason: t.reason.unwrap_or_default(),
                message: t.message.unwrap_or_default(),
            }),
        }
    }

    /// The kubelet's word for a container that was there and is not, without a trace of how it ended.
    pub(super) fn was_lost(&self) -> bool {
        self.terminated.as_ref().is_some_and(|t| t.reason == "ContainerStatusUnknown")
    }

    /// Of a pod whose launcher never asked what to do: it was lost, or killed, or gave up on reaching the daemon. Not what
    /// has another cause: a deadline, an eviction, memory, somebody who deleted it.
    pub(super) fn never_reached_us(&self) -> bool {
        let by_accident = |t: &Terminated| t.reason != "OOMKilled" && matches!(t.exit_code, LAUNCHER_FAILED | KILLED);
        self.was_lost()
            || (!self.deleted && self.reason.is_empty() && self.terminated.as_ref().is_some_and(by_accident))
    }

    pub(super) fn is_over(&self) -> bool {
        self.deleted || matches!(self.phase.as_str(), "Succeeded" | "Failed") || self.terminated.is_some()
    }
}

pub(super) async fn run(engine: Engine) -> Result<(), kfbox_base::BoxError> {
    let shutdown = engine.core.tasks.shutdown();
    let pods: Api<Pod> = Api::all(engine.core.deps.client.clone());
    let selected = watcher::Config::default().labels(&format!("{},{}=true", pod::RUN_LABEL, pod::COMPONENT_LABEL));
    let mut events = std::pin::pin!(watcher(pods, selected).default_backoff());
    let mut listed: HashMap<String, HashMap<String, PodFact>> = HashMap::new();
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            event = events.try_next() => event,
        };
        match event {
            Ok(Some(Event::Init)) => listed.clear(),
            Ok(Some(Event::InitApply(pod))) => {
                if let Some(run) = pod.labels().get(pod::RUN_LABEL)
                    && engine.mailbox(run).is_some()
                {
                    listed.entry(run.clone()).or_default().insert(pod.name_any(), PodFact::of(&pod));
                }
            }
            Ok(Some(Event::InitDone)) => {
                let runs: Vec<_> = engine.runs.lock().iter().map(|(id, m)| (id.clone(), m.clone())).collect();
                for (id, mailbox) in runs {
                    let found = listed.remove(&id).unwrap_or_default();
                    mailbox.pods.lock().extend(found);
                    mailbox.wake.notify_one();
                }
                listed.clear();
            }
            Ok(Some(Event::Apply(pod))) => tell(&engine, &pod, false),
            Ok(Some(Event::Delete(pod))) => tell(&engine, &pod, true),
            Ok(None) => return Err("the watch on pods ended".into()),
            Err(error) => tracing::warn!(%error, "the watch on pipeline pods failed; it is started again"),
        }
    }
}

fn tell(engine: &Engine, pod: &Pod, deleted: bool) {
    let Some(mailbox) = pod.labels().get(pod::RUN_LABEL).and_then(|run| engine.mailbox(run)) else { return };
    let mut fact = PodFact::of(pod);
    fact.deleted = deleted;
    mailbox.pods.lock().insert(pod.name_any(), fact);
    mailbox.wake.notify_one();
}

/// How a state of a task shows while its pod waits; kept here beside the reasons.
pub(super) fn is_stuck(reason: &str) -> bool {
    matches!(
        reason,
        "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "CreateContainerConfigError"
            | "CreateContainerError"
            | "RunContainerError"
            | "CreatePodSandboxError"
            | "FailedMount"
    )
}

/// Waiting will not help. Upstream's workflow engine gives up at once for the reasons and waits for ever for a missing
/// image; here a registry that says that it has no such image is believed. The words are those of this node, of
/// containerd and of the registries' own errors.
pub(super) fn is_hopeless(reason: &str, message: &str) -> bool {
    const ABSENT: [&str; 6] = [
        "was not found at",
        "manifest unknown",
        "MANIFEST_UNKNOWN",
        "NAME_UNKNOWN",
        ": not found",
        "has no variant for",
    ];
    match reason {
        "InvalidImageName" | "ErrImageNeverPull" => true,
        "ErrImagePull" | "ImagePullBackOff" => ABSENT.iter().any(|words| message.contains(words)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fact(status: serde_json::Value) -> PodFact {
        PodFact::of(&serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap())
    }

    #[test]
    fn an_init_container_that_cannot_start_or_fails_is_what_the_step_waits_for() {
        let waits = json!({"phase": "Pending",
            "initContainerStatuses": [{"name": "first", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ErrImagePull", "message": "image x:1 was not found at r: check"}}}],
            "containerStatuses": [{"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "PodInitializing"}}}]});
        let (reason, message) = fact(waits).waiting.unwrap();
        assert!(message.contains("init container first"), "{message}");
        assert!(is_hopeless(&reason, &message));
        let failed = json!({"phase": "Failed",
            "initContainerStatuses": [{"name": "first", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 3}}}]});
        assert_eq!(fact(failed).init_failed.as_deref(), Some("its init container first ended with exit code 3"));
    }

    #[test]
    fn only_a_registry_that_answered_is_believed() {
        assert!(is_hopeless("ErrImagePull", "image x was not found at docker.io: check its name and tag"));
        assert!(is_hopeless("ImagePullBackOff", "Back-off pulling image \"x\": ErrImagePull: manifest unknown"));
        assert!(!is_hopeless("ErrImagePull", "cannot reach the registry r for image x (no address)"));
        assert!(!is_hopeless("CreateContainerError", "was not found at"));
    }
}
