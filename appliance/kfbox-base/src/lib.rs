//! What every part of the daemon stands on: owned tasks, shutdown, readiness, listeners, telemetry, journals and the
//! caller's identity. Architecture Invariant: no Kubeflow noun and no Kubernetes client appears here.

pub mod access;
pub mod journal;
pub mod listener;
pub mod readiness;
pub mod tasks;
pub mod telemetry;

pub use access::{Authorizer, Decision, ResourceAttributes, UserInfo};
pub use readiness::{Component, Readiness};
pub use tasks::Tasks;

/// An error of any kind at a task's edge, where only its text matters.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;
