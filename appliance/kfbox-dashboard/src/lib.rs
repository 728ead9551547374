//! The web pages: home, runs, a run with its graph, pipelines, experiments, members. Rendered on the server; a small script
//! of our own adds what needs one (live updates, the side panel, themes), and every page works without it.
//!
//! Guarantees: all text of users is escaped; no page loads anything from elsewhere; artifacts are never shown as HTML.
//! Architecture Invariant: this crate knows no component. What it shows comes through [`Data`], which the binary
//! implements and which decides what a user may see.

mod assets;
mod data;
mod format;
mod graph;
mod icons;
mod layout;
mod live;
mod pages;
mod view;

pub use data::{ArtifactContent, ChangeStream, Data, DataError, LogStream};
pub use view::{
    ArtifactView, ComponentState, ComponentView, Connect, ExperimentView, GraphEdge, GraphNode, Member, NamespaceView,
    NodeDetail, NodeKind, Page, Parameter, PipelineDetail, PipelineView, Query, Role, RunDetail, RunState, RunSummary,
    SharingView,
};

use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The first parts of the paths of the pages.
pub const PAGES: [&str; 7] = ["assets", "experiments", "live", "members", "pipeline", "pipelines", "runs"];

/// What the pages need of others.
#[derive(Clone)]
pub struct Deps {
    pub data: Arc<dyn Data>,
    /// How people reach this box, for the home page's instructions.
    pub connect: Connect,
    /// Ends live streams when the daemon stops.
    pub shutdown: CancellationToken,
}

/// All pages, to be mounted at `/` behind the gateway, which puts the caller's `UserInfo` into the request.
pub fn router(deps: Deps) -> axum::Router {
    pages::router(deps)
}

#[cfg(test)]
mod tests;
