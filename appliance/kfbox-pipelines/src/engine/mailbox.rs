//! What reaches a run from outside: its pods' facts, its launchers' calls, and the wish to end it.

use super::watch::PodFact;
use parking_lot::Mutex;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::AtomicBool,
};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// How the outside reaches a run.
pub(crate) struct Mailbox {
    /// The newest fact of each pod, taken by the actor.
    pub(super) pods: Mutex<HashMap<String, PodFact>>,
    pub(super) cancel: AtomicBool,
    pub(super) wake: Notify,
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) stop: CancellationToken,
    pub(super) stopped: CancellationToken,
}

/// A launcher's call. The answer is `None` when the attempt is not running.
pub(crate) enum Request {
    /// The launcher is up and asks what to do.
    Begin { task: String, attempt: u32, answer: oneshot::Sender<Option<Assignment>> },
    /// What it may read and write.
    Scope { task: String, attempt: u32, answer: oneshot::Sender<Option<Assignment>> },
    /// Answered once the outcome is stored.
    Report { task: String, attempt: u32, report: Report, answer: oneshot::Sender<Option<()>> },
}

/// What an attempt does, with addresses still in the artifact store.
#[derive(Debug, Clone)]
pub(crate) struct Assignment {
    pub namespace: String,
    pub display_name: String,
    pub command: Vec<String>,
    pub inputs: Vec<InputFile>,
    pub output_file: String,
    pub output_parameters: BTreeMap<String, String>,
    pub output_artifacts: Vec<OutputArtifact>,
    /// Outputs may be uploaded below this.
    pub output_root: String,
    /// The run's, with the query that says where its store is.
    pub pipeline_root: String,
}

#[derive(Debug, Clone)]
pub(crate) struct InputFile {
    pub name: String,
    pub uri: String,
    pub path: Option<String>,
    /// That it is fetched is all that the step is for.
    pub must: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct OutputArtifact {
    pub name: String,
    pub uri: String,
    pub path: String,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub succeeded: bool,
    /// In words, when it did not.
    pub message: String,
    pub exit_code: i32,
    pub signal: Option<i32>,
    /// `ExecutorOutput`, as the SDK wrote it; null when it wrote none.
    pub executor_output: Value,
    /// The content of the output parameters' files.
    pub parameters: BTreeMap<String, String>,
}
