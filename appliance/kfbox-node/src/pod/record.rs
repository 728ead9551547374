//! What the node knows of one container of a pod.

use crate::shim::records::Exit;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Runs to its end before the next starts.
    Init,
    /// An init container that restarts always, and runs beside the others.
    Sidecar,
    Main,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    pub id: String,
    pub exit: Exit,
    pub reason: String,
    pub message: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum State {
    Waiting { reason: &'static str, message: Option<String> },
    Running { id: String, since: String },
    Ended(Ended),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub name: String,
    pub kind: Kind,
    pub restarts: i32,
    pub state: State,
    /// The end before the present state.
    pub last: Option<Ended>,
    pub image_id: String,
    /// Running, and its startup probe has passed.
    pub started: bool,
    pub ready: bool,
}

pub const CREATING: &str = "ContainerCreating";
pub const INITIALIZING: &str = "PodInitializing";
pub const CRASH_LOOP: &str = "CrashLoopBackOff";

impl Record {
    pub fn new(name: &str, kind: Kind, reason: &'static str) -> Self {
        Self {
            name: name.into(),
            kind,
            restarts: 0,
            state: State::Waiting { reason, message: None },
            last: None,
            image_id: String::new(),
            started: false,
            ready: false,
        }
    }

    pub fn running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    pub fn ended(&self) -> Option<&Ended> {
        if let State::Ended(ended) = &self.state { Some(ended) } else { None }
    }

    /// The last end there was, also while waiting for the next start.
    pub fn latest_end(&self) -> Option<&Ended> {
        match &self.state {
            State::Ended(ended) => Some(ended),
            State::Waiting { .. } => self.last.as_ref(),
            State::Running { .. } => None,
        }
    }

    pub fn succeeded(&self) -> bool {
        self.ended().is_some_and(|ended| ended.exit.code == 0)
    }
}

/// The containers of a pod in the order in which they start.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = (Kind, &Container)> {
    let init = spec.init_containers.iter().flatten().map(|c| {
        let sidecar = c.restart_policy.as_deref() == Some("Always");
        (if sidecar { Kind::Sidecar } else { Kind::Init }, c)
    });
    init.chain(spec.containers.iter().map(|c| (Kind::Main, c)))
}

/// Fresh records for a pod that nothing is known of.
pub fn fresh(spec: &PodSpec) -> Vec<Record> {
    let has_init = spec.init_containers.iter().flatten().next().is_some();
    let reason = if has_init { INITIALIZING } else { CREATING };
    containers(spec).map(|(kind, c)| Record::new(&c.name, kind, reason)).collect()
}

pub fn restart_policy(spec: &PodSpec) -> &str {
    spec.restart_policy.as_deref().unwrap_or("Always")
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `NAMESPACE/NAME`.
pub fn full_name(pod: &Pod) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("{}/{}", text(&pod.metadata.namespace), text(&pod.metadata.name))
}

/// Upstream's word for an end.
pub fn reason(exit: &Exit) -> &'static str {
    if exit.failure.is_some() {
        "StartError"
    } else if exit.oom_killed {
        "OOMKilled"
    } else if exit.code == 0 {
        "Completed"
    } else {
        "Error"
    }
}
