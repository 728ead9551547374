//! What a run answers its launchers.

use super::Actor;
use crate::{
    engine::{
        mailbox::{Assignment, InputFile, OutputArtifact, Report, Request},
        model::{Artifact, Kind, RunState, State, Task},
        placeholders, steps,
    },
    spec::Pipeline,
};
use tokio::{sync::oneshot, time::Instant};

impl Actor<'_> {
    pub(super) fn request(&mut self, request: Request) {
        match request {
            Request::Begin { task, attempt, answer } => {
                let Some(assignment) = self.assignment(&task, attempt) else {
                    _ = answer.send(None);
                    return;
                };
                if self.attempt(&task, attempt).is_some_and(|t| t.state == State::Pending || !t.began) {
                    self.change(&task, |t| {
                        // The pod runs, whatever became of the call that created it.
                        t.pod_created = true;
                        t.began = true;
                        t.enter(State::Running);
                    });
                }
                self.begin.push((answer, assignment));
            }
            Request::Scope { task, attempt, answer } => _ = answer.send(self.assignment(&task, attempt)),
            Request::Report { task, attempt, report, answer } => self.report(&task, attempt, report, answer),
        }
    }

    fn assignment(&self, id: &str, attempt: u32) -> Option<Assignment> {
        let task = self.attempt(id, attempt).filter(|t| !t.state.is_final() && !t.command.is_empty())?;
        if self.is_canceling() || self.reported.contains_key(id) {
            return None;
        }
        Some(assignment(&self.pipeline, &self.run, task))
    }

    fn report(&mut self, id: &str, attempt: u32, report: Report, answer: oneshot::Sender<Option<()>>) {
        let Some(task) = self.attempt(id, attempt).cloned() else {
            _ = answer.send(None);
            return;
        };
        if task.state.is_final() || self.is_canceling() {
            // Said before, and stored before.
            return self.acknowledge.push(answer);
        }
        if self.reports.contains_key(id) {
            // Being recorded already: answered together.
            return self.reports.entry(id.to_owned()).or_default().push(answer);
        }
        if report.succeeded {
            self.busy.insert(id.to_owned());
            self.reports.entry(id.to_owned()).or_default().push(answer);
            self.work.push(Box::pin(self.context(&task).record(report)));
            return;
        }
        // Explained once the pod has ended and its log is whole. Should the daemon die before, the pod's exit code
        // says the same.
        self.reported.insert(id.to_owned(), (report_words(&report), Instant::now()));
        self.acknowledge.push(answer);
    }
}

/// What an attempt of a prepared task does.
pub(in crate::engine) fn assignment(pipeline: &Pipeline, run: &RunState, task: &Task) -> Assignment {
    let input = steps::executor_input(pipeline, run, task);
    let imports = task.kind == Kind::Importer;
    let paths = |list: &[Artifact], name: &str| -> Vec<InputFile> {
        let file = |a: &Artifact| InputFile {
            name: name.to_owned(),
            uri: a.uri.clone(),
            path: placeholders::artifact_path(a),
            must: imports,
        };
        // What lies in the workspace already is not fetched again; the importer's pod is what puts it there.
        list.iter().filter(|a| imports || !a.lies_in_workspace()).map(file).collect()
    };
    Assignment {
        namespace: run.namespace.clone(),
        display_name: task.display_name.clone(),
        command: task.command.clone(),
        inputs: input.artifacts.iter().flat_map(|(name, list)| paths(list, name)).collect(),
        output_file: input.output_file,
        output_parameters: input.output_parameters,
        output_artifacts: input
            .output_artifacts
            .into_iter()
            .filter_map(|(name, a)| Some(OutputArtifact { path: placeholders::artifact_path(&a)?, name, uri: a.uri }))
            .collect(),
        output_root: steps::output_root(run, task),
        pipeline_root: run.pipeline_root.clone(),
    }
}

fn report_words(report: &Report) -> String {
    let mut why = match report.signal {
        Some(9) => "it was killed (signal 9); if it has a memory limit, it may have run out of memory".to_owned(),
        Some(signal) => format!("it was ended by signal {signal}"),
        None if report.exit_code != 0 => format!("it ended with exit code {}", report.exit_code),
        None => String::new(),
    };
    if !report.message.is_empty() {
        if !why.is_empty() {
            why.push_str(": ");
        }
        why.push_str(&report.message);
    }
    if why.is_empty() { "it failed and did not say why".into() } else { why }
}
