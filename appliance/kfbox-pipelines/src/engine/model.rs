//! What the engine knows of a run: a tree of tasks, each one a row. Names of states and kinds are v2beta1's.

use crate::{ports::LineageContexts, time};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    #[default]
    Pending,
    Running,
    Succeeded,
    Skipped,
    Failed,
    Canceling,
    Canceled,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Skipped => "SKIPPED",
            Self::Failed => "FAILED",
            Self::Canceling => "CANCELING",
            Self::Canceled => "CANCELED",
        }
    }

    pub fn parse(name: &str) -> Self {
        [Self::Running, Self::Succeeded, Self::Skipped, Self::Failed, Self::Canceling, Self::Canceled]
            .into_iter()
            .find(|s| s.name() == name)
            .unwrap_or_default()
    }

    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Skipped | Self::Failed | Self::Canceled)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StateChange {
    pub at: i64,
    pub state: State,
}

impl StateChange {
    pub fn now(state: State) -> Self {
        Self { at: time::now(), state }
    }
}

/// `google.rpc.Status`: a code of `google.rpc.Code` and what happened, in words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskError {
    pub code: i32,
    pub message: String,
}

impl TaskError {
    /// `UNKNOWN`: the step's own failure.
    pub fn step(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// `INTERNAL`: the platform's.
    pub fn platform(message: impl Into<String>) -> Self {
        Self { code: 13, message: message.into() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Dag,
    /// A task with an iterator; its children are its iterations.
    Loop,
    Container,
    Importer,
}

/// One artifact as it travels between steps.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Artifact {
    /// The id in the metadata store, in decimal; the output's name where no id was given.
    pub name: String,
    pub schema_title: String,
    #[serde(default)]
    pub schema_version: String,
    pub uri: String,
    #[serde(default)]
    pub metadata: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_path: Option<String>,
}

impl Artifact {
    pub fn lies_in_workspace(&self) -> bool {
        self.metadata.get(super::steps::IN_WORKSPACE) == Some(&Value::Bool(true))
    }
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Io {
    #[serde(default)]
    pub parameters: Map<String, Value>,
    #[serde(default)]
    pub artifacts: BTreeMap<String, Vec<Artifact>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub id: String,
    pub parent_id: Option<String>,
    /// Names from the root down, iterations as `#n`: unique in the run.
    pub path: String,
    /// The key in the DAG.
    pub name: String,
    pub display_name: String,
    pub kind: Kind,
    pub component: String,
    pub iteration: Option<u32>,
    pub state: State,
    pub inputs: Io,
    #[serde(default)]
    pub outputs: Io,
    pub created_at: i64,
    pub started_at: Option<i64>,
    pub finished_at: Option<i64>,
    pub history: Vec<StateChange>,
    pub error: Option<TaskError>,
    /// From 0; each attempt has its own pod and token.
    pub attempt: u32,
    /// Attempts that the retry policy has used; a retry by the user starts it anew.
    #[serde(default)]
    pub retries: u32,
    /// The attempt waits until then.
    pub retry_at: Option<i64>,
    pub pod_name: Option<String>,
    /// Stored after the pod exists: without it, creating again is safe; with it, creating again would run the step twice.
    #[serde(default)]
    pub pod_created: bool,
    /// The attempt's launcher has asked what to do: from then on the command may have run. Rows from before this was known
    /// are taken to have.
    #[serde(default = "began")]
    pub began: bool,
    #[serde(default)]
    pub failed_pods: Vec<String>,
    pub fingerprint: Option<String>,
    /// The task whose outputs were reused.
    pub cached_from: Option<String>,
    pub execution_id: Option<i64>,
    /// The final command, set before the pod exists.
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub image: String,
    /// The log was kept when the pod ended.
    #[serde(default)]
    pub log_archived: bool,
}

fn began() -> bool {
    true
}

impl Task {
    pub fn enter(&mut self, state: State) {
        if self.state == state && !self.history.is_empty() {
            return;
        }
        let now = time::now();
        self.state = state;
        self.history.push(StateChange { at: now, state });
        if state == State::Running && self.started_at.is_none() {
            self.started_at = Some(now);
        }
        if state.is_final() {
            self.finished_at = Some(now);
        }
    }

    pub fn is_leaf(&self) -> bool {
        matches!(self.kind, Kind::Container | Kind::Importer)
    }

    /// An importer has a pod only when it fetches into the workspace.
    pub fn may_have_pod(&self) -> bool {
        self.kind == Kind::Container || (self.kind == Kind::Importer && self.pod_name.is_some())
    }
}

/// A run in memory.
#[derive(Debug, Clone)]
pub struct RunState {
    pub id: String,
    pub namespace: String,
    pub display_name: String,
    pub pipeline_name: String,
    pub pipeline_root: String,
    pub service_account: String,
    pub parameters: Map<String, Value>,
    pub created_at: i64,
    pub scheduled_at: i64,
    pub state: State,
    pub finished_at: Option<i64>,
    pub error: Option<TaskError>,
    pub history: Vec<StateChange>,
    pub contexts: LineageContexts,
    /// In order of creation.
    pub tasks: IndexMap<String, Task>,
}

impl RunState {
    pub fn enter(&mut self, state: State) {
        if self.state == state && !self.history.is_empty() {
            return;
        }
        let change = StateChange::now(state);
        self.state = state;
        if state.is_final() {
            self.finished_at = Some(change.at);
        }
        self.history.push(change);
    }
}

/// A task's id follows from its run and its place in it, so that deciding twice creates it once.
pub fn task_id(run_id: &str, path: &str) -> String {
    let digest = Sha256::digest(format!("{run_id}\n{path}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

/// A pod's name follows from the task and the attempt, so that creating it twice is impossible. At most 63 characters.
pub fn pod_name(pipeline_name: &str, run_id: &str, task: &Task) -> String {
    let mut prefix: String = pipeline_name
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .skip_while(|c| *c == '-')
        .take(30)
        .collect();
    prefix.truncate(prefix.trim_end_matches('-').len());
    if prefix.is_empty() {
        prefix.push_str("run");
    }
    let digest = hex::encode(&Sha256::digest(format!("{run_id}\n{}\n{}", task.path, task.attempt).as_bytes())[..8]);
    format!("{prefix}-{}-{digest}", run_id.chars().filter(char::is_ascii_alphanumeric).take(8).collect::<String>())
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
