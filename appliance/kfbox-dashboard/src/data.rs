//! Where the pages' contents come from.

use crate::view::{
    ComponentView, ExperimentView, Member, NamespaceView, NodeDetail, Page, PipelineDetail, PipelineView, Query, Role,
    RunDetail, RunSummary, SharingView,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use kfbox_base::UserInfo;

/// Why something cannot be shown. The texts are for the user.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DataError {
    /// Also what a user may not see.
    #[error("there is no such thing here, or you may not see it")]
    NotFound,
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unavailable(String),
}

/// Text of a log as it appears. Ends when the step has ended and all was sent.
pub type LogStream = BoxStream<'static, Result<Bytes, DataError>>;

/// One item each time something changed; what changed is read anew. May merge changes.
pub type ChangeStream = BoxStream<'static, ()>;

/// An artifact's bytes.
pub struct ArtifactContent {
    /// The last part of its name.
    pub file_name: String,
    pub size: Option<u64>,
    pub body: BoxStream<'static, Result<Bytes, DataError>>,
}

/// Every method decides by itself what the user may see.
#[async_trait]
pub trait Data: Send + Sync + 'static {
    async fn components(&self) -> Vec<ComponentView>;
    async fn namespaces(&self, user: &UserInfo) -> Result<Vec<NamespaceView>, DataError>;
    /// Newest first, about twenty a page.
    async fn runs(&self, user: &UserInfo, query: &Query) -> Result<Page<RunSummary>, DataError>;
    async fn run(&self, user: &UserInfo, id: &str) -> Result<RunDetail, DataError>;
    async fn node(&self, user: &UserInfo, run: &str, node: &str) -> Result<NodeDetail, DataError>;
    /// With `follow`, what is still to come too.
    async fn log(&self, user: &UserInfo, run: &str, node: &str, follow: bool) -> Result<LogStream, DataError>;
    async fn artifact(&self, user: &UserInfo, run: &str, artifact: &str) -> Result<ArtifactContent, DataError>;
    /// Changes of one run, or of anything that the lists show.
    async fn changes(&self, user: &UserInfo, run: Option<&str>) -> Result<ChangeStream, DataError>;
    async fn terminate(&self, user: &UserInfo, run: &str) -> Result<(), DataError>;
    async fn pipelines(&self, user: &UserInfo, query: &Query) -> Result<Page<PipelineView>, DataError>;
    async fn pipeline(&self, user: &UserInfo, id: &str) -> Result<PipelineDetail, DataError>;
    async fn experiments(&self, user: &UserInfo, query: &Query) -> Result<Page<ExperimentView>, DataError>;
    /// The namespaces that the user belongs to, or may manage. Their own first, then by name.
    async fn sharing(&self, user: &UserInfo) -> Result<Vec<SharingView>, DataError>;
    /// Lets a person, by e-mail address, into a namespace that the user manages.
    async fn grant(&self, user: &UserInfo, namespace: &str, person: &str, role: Role) -> Result<(), DataError>;
    /// Takes a role away again; not the owner's.
    async fn revoke(&self, user: &UserInfo, namespace: &str, member: &Member) -> Result<(), DataError>;
}
