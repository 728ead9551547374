//! What the node knows of one container of a pod.

use crate::shim::records::Exit;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, ResourceRequirements};
use std::borrow::Cow;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Runs to its end before the next starts.
    Init,
    /// An init container that restarts always, and runs beside the others.
    Sidecar,
    Main,
    /// Put into a pod that runs, to look at it; runs once and counts for nothing.
    Ephemeral,
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
    /// What it was given of the machine, which a resize may find to be less than what it is to have.
    pub has: Option<ResourceRequirements>,
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
            has: None,
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

/// The containers of a pod in the order in which they start; those put in later come last.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = (Kind, Cow<'_, Container>)> {
    let init = spec.init_containers.iter().flatten().map(|c| {
        let sidecar = c.restart_policy.as_deref() == Some("Always");
        (if sidecar { Kind::Sidecar } else { Kind::Init }, Cow::Borrowed(c))
    });
    let main = spec.containers.iter().map(|c| (Kind::Main, Cow::Borrowed(c)));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (Kind::Ephemeral, Cow::Owned(plain(c))));
    init.chain(main).chain(ephemeral)
}

/// The container of that name.
pub fn find<'a>(spec: &'a PodSpec, name: &str) -> Option<Cow<'a, Container>> {
    containers(spec).map(|(_, c)| c).find(|c| c.name == name)
}

/// An ephemeral container as any other; what the API forbids for it is left out.
fn plain(c: &EphemeralContainer) -> Container {
    Container {
        name: c.name.clone(),
        image: c.image.clone(),
        image_pull_policy: c.image_pull_policy.clone(),
        command: c.command.clone(),
        args: c.args.clone(),
        working_dir: c.working_dir.clone(),
        env: c.env.clone(),
        env_from: c.env_from.clone(),
        volume_mounts: c.volume_mounts.clone(),
        volume_devices: c.volume_devices.clone(),
        security_context: c.security_context.clone(),
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        tty: c.tty,
        termination_message_path: c.termination_message_path.clone(),
        termination_message_policy: c.termination_message_policy.clone(),
        ..Container::default()
    }
}

/// The container whose processes an ephemeral one is to see.
pub fn target<'a>(spec: &'a PodSpec, ephemeral: &str) -> Option<&'a str> {
    let mut all = spec.ephemeral_containers.iter().flatten();
    all.find(|c| c.name == ephemeral)?.target_container_name.as_deref().filter(|name| !name.is_empty())
}

/// Fresh records for a pod that nothing is known of.
pub fn fresh(spec: &PodSpec) -> Vec<Record> {
    let mut records = Vec::new();
    add_missing(spec, &mut records);
    records
}

/// Records for the containers that have none yet: those put in later.
pub fn add_missing(spec: &PodSpec, records: &mut Vec<Record>) {
    let has_init = spec.init_containers.iter().flatten().next().is_some();
    for (kind, container) in containers(spec) {
        if !records.iter().any(|r| r.name == container.name) {
            let reason = if has_init && kind != Kind::Ephemeral { INITIALIZING } else { CREATING };
            records.push(Record::new(&container.name, kind, reason));
        }
    }
}

pub fn restart_policy(spec: &PodSpec) -> &str {
    spec.restart_policy.as_deref().unwrap_or("Always")
}

/// Whether a container that ended with this code is to run again: the first rule of its own that fits decides, then its
/// own policy, then the pod's.
pub fn restarts(spec: &PodSpec, name: &str, code: i32) -> bool {
    let container = find(spec, name);
    let own = container.as_deref();
    for rule in own.and_then(|c| c.restart_policy_rules.as_deref()).unwrap_or_default() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|value| *value == code);
        let fits = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        if fits {
            return rule.action == "Restart";
        }
    }
    let policy = own.and_then(|c| c.restart_policy.as_deref()).filter(|p| !p.is_empty());
    match policy.unwrap_or(restart_policy(spec)) {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
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
