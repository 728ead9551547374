//! The Kubernetes API (1.36) over a revision log in SQLite: what unmodified clients of a cluster use.
//!
//! A request's way: [`server`] accepts it from TLS or from this process, [`handle`] authenticates, authorizes and routes
//! it, [`verbs`] and [`subresources`] carry it out on [`store`], with [`admission`] in between.
//! Architecture Invariant: no kind has code of its own but where upstream's strategy or admission for it does; what is
//! served comes from one table ([`resources`]).

mod admission;
mod aggregation;
mod apply;
pub mod auth;
mod bootstrap;
mod convert;
mod crds;
mod discovery;
mod documents;
mod effects;
mod handle;
mod housekeeping;
pub mod kubelet;
mod metrics;
mod negotiate;
mod object;
mod openapi;
mod ownership;
mod patch;
mod printing;
mod protobuf;
mod request;
mod resources;
mod respond;
mod schema;
mod selectors;
mod server;
mod status;
mod store;
mod subresources;
mod verbs;

pub use kubelet::{
    ContainerUsage, Duplex, ExecSession, Exit, Kubelet, KubeletError, LogOptions, LogStream, NodeUsage, PodUsage,
    Streams, TerminalSize,
};
pub use server::{ApiServer, Config, OpenError};
pub use status::ApiError;

/// The Kubernetes release whose API this is.
pub const VERSION: &str = "v1.36.2";

#[cfg(test)]
mod tests;
