//! What the pages show. Times are UTC; texts are as users wrote them, escaped when rendered.

use chrono::{DateTime, Utc};
use serde::Deserialize;

/// How a run or a step is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RunState {
    Pending,
    Running,
    Succeeded,
    /// Its outputs were taken from an earlier run.
    Cached,
    Skipped,
    Failed,
    Canceling,
    Canceled,
    Paused,
    #[default]
    Unknown,
}

impl RunState {
    pub const FILTERS: [Self; 5] = [Self::Running, Self::Succeeded, Self::Failed, Self::Canceled, Self::Pending];

    /// As in addresses and class names.
    pub fn key(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Cached => "cached",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::Canceling => "canceling",
            Self::Canceled => "canceled",
            Self::Paused => "paused",
            Self::Unknown => "unknown",
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Cached => "Cached",
            Self::Skipped => "Skipped",
            Self::Failed => "Failed",
            Self::Canceling => "Canceling",
            Self::Canceled => "Canceled",
            Self::Paused => "Paused",
            Self::Unknown => "Unknown",
        }
    }

    pub fn from_key(key: &str) -> Option<Self> {
        let all = [
            Self::Pending,
            Self::Running,
            Self::Succeeded,
            Self::Cached,
            Self::Skipped,
            Self::Failed,
            Self::Canceling,
            Self::Canceled,
            Self::Paused,
            Self::Unknown,
        ];
        all.into_iter().find(|s| s.key() == key)
    }

    /// Nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Cached | Self::Skipped | Self::Failed | Self::Canceled)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComponentState {
    Starting,
    Ready,
    Failed,
}

#[derive(Debug, Clone)]
pub struct ComponentView {
    pub name: String,
    pub state: ComponentState,
    pub message: String,
    /// From start to ready.
    pub took_ms: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct NamespaceView {
    pub name: String,
    /// `owner`, `admin`, `edit`, `view`.
    pub role: String,
    pub owner: String,
}

/// What somebody may do in a namespace: KFAM's three roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    View,
    Edit,
    Admin,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::View, Self::Edit, Self::Admin];

    /// As KFAM has it.
    pub fn key(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Edit => "edit",
            Self::Admin => "admin",
        }
    }

    /// As upstream's dashboard calls them.
    pub fn label(self) -> &'static str {
        match self {
            Self::View => "Viewer",
            Self::Edit => "Contributor",
            Self::Admin => "Administrator",
        }
    }

    pub fn from_key(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.key() == key)
    }
}

/// One role of a person or a group in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub group: bool,
    pub role: Role,
    /// By the Profile itself: it cannot be taken away.
    pub owner: bool,
}

/// Who has access to a namespace.
#[derive(Debug, Clone)]
pub struct SharingView {
    pub namespace: String,
    pub owner: String,
    /// The user's own strongest role; none for an administrator of the cluster who does not belong to it.
    pub role: Option<Role>,
    /// The user is its owner.
    pub owned: bool,
    /// The user decides who has access; only then are the members told.
    pub managed: bool,
    pub members: Vec<Member>,
}

#[derive(Debug, Clone, Default)]
pub struct RunSummary {
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub experiment: String,
    /// Name of the pipeline, empty for a run of a package alone.
    pub pipeline: String,
    pub pipeline_id: String,
    pub state: RunState,
    pub created: Option<DateTime<Utc>>,
    pub started: Option<DateTime<Utc>>,
    pub finished: Option<DateTime<Utc>>,
}

/// A list with the way to its next page.
#[derive(Debug, Clone)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Opaque; empty on the last page.
    pub next: String,
}

impl<T> Default for Page<T> {
    fn default() -> Self {
        Self { items: Vec::new(), next: String::new() }
    }
}

/// What a list is asked for.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Query {
    /// Empty: all that the user may see.
    #[serde(default)]
    pub namespace: String,
    /// A [`RunState::key`], or empty.
    #[serde(default)]
    pub state: String,
    /// The `next` of the page before.
    #[serde(default)]
    pub page: String,
}

#[derive(Debug, Clone, Default)]
pub struct Parameter {
    pub name: String,
    pub value: String,
}

#[derive(Debug, Clone, Default)]
pub struct RunDetail {
    pub run: RunSummary,
    /// Why it failed, in one or a few sentences.
    pub error: String,
    pub parameters: Vec<Parameter>,
    pub nodes: Vec<GraphNode>,
    pub edges: Vec<GraphEdge>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NodeKind {
    #[default]
    Task,
    Artifact,
    /// A sub-pipeline, loop or condition.
    Group,
}

#[derive(Debug, Clone, Default)]
pub struct GraphNode {
    /// Unique in the graph; for tasks what [`crate::Data::node`] is asked for.
    pub id: String,
    pub kind: NodeKind,
    pub name: String,
    pub state: RunState,
    /// Second line: an artifact's type, a loop's item. For tasks empty: their time is shown.
    pub detail: String,
    pub started: Option<DateTime<Utc>>,
    pub finished: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphEdge {
    pub from: String,
    pub to: String,
}

#[derive(Debug, Clone, Default)]
pub struct NodeDetail {
    pub id: String,
    pub kind: NodeKind,
    pub name: String,
    pub state: RunState,
    pub started: Option<DateTime<Utc>>,
    pub finished: Option<DateTime<Utc>>,
    pub error: String,
    pub image: String,
    pub command: String,
    pub pod: String,
    pub inputs: Vec<Parameter>,
    pub outputs: Vec<Parameter>,
    pub input_artifacts: Vec<ArtifactView>,
    pub output_artifacts: Vec<ArtifactView>,
    pub has_log: bool,
}

#[derive(Debug, Clone, Default)]
pub struct ArtifactView {
    /// What [`crate::Data::artifact`] is asked for.
    pub id: String,
    pub name: String,
    /// Such as `Dataset` or `Metrics`.
    pub type_name: String,
    pub uri: String,
    pub size: Option<u64>,
    /// Metrics and other metadata.
    pub metadata: Vec<Parameter>,
}

#[derive(Debug, Clone, Default)]
pub struct PipelineView {
    pub id: String,
    pub name: String,
    pub description: String,
    pub namespace: String,
    pub created: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, Default)]
pub struct PipelineDetail {
    pub pipeline: PipelineView,
    /// Names of versions, newest first; the graph is the newest's.
    pub versions: Vec<String>,
    /// Name and default or type of each input.
    pub parameters: Vec<Parameter>,
    pub nodes: Vec<GraphNode>,
    pub edges: Vec<GraphEdge>,
}

#[derive(Debug, Clone, Default)]
pub struct ExperimentView {
    pub id: String,
    pub name: String,
    pub description: String,
    pub namespace: String,
    pub created: Option<DateTime<Utc>>,
}

/// Addresses for the home page's instructions.
#[derive(Debug, Clone, Default)]
pub struct Connect {
    /// Such as `http://127.0.0.1:8080`.
    pub gateway_url: String,
    /// Such as `http://127.0.0.1:9000`.
    pub s3_endpoint: String,
    pub version: String,
}
