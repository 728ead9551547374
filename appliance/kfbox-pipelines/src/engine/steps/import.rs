//! Importers: an address becomes an artifact of the run. One that goes into the workspace gets a pod that only fetches it
//! (`backend/src/v2/component/importer_launcher.go` upstream).

use super::{Context, Done, IN_WORKSPACE};
use crate::{
    engine::{
        model::{Artifact, Io, RunState, Task, TaskError},
        placeholders::ExecutorInput,
        pod, resolve,
    },
    ports::{ExecutionKind, ExecutionState},
    spec::{Body, Pipeline, ir::ImporterSpec, value},
};
use serde_json::{Map, Value};

/// What an importer brings into the run, under the name of its output.
fn imported(pipeline: &Pipeline, importer: &ImporterSpec, run: &RunState, task: &Task) -> Option<(String, Artifact)> {
    let given = ExecutorInput { parameters: task.inputs.parameters.clone(), ..ExecutorInput::default() };
    let text = |text: &str| given.text(&resolve::substitute(text, run, &task.name, &task.id));
    let from = &importer.artifact_uri;
    let uri = match (&from.runtime_parameter, &from.constant) {
        (Some(name), _) => task.inputs.parameters.get(name).map(value::text),
        (None, Some(value)) => Some(value::text(value)),
        (None, None) => from.constant_value.as_ref().and_then(|v| v.get("stringValue")).map(value::text),
    };
    let mut metadata: Map<String, Value> = importer.metadata.clone();
    for value in metadata.values_mut() {
        if let Value::String(found) = value {
            *found = text(found);
        }
    }
    if importer.download_to_workspace {
        metadata.insert(IN_WORKSPACE.into(), Value::Bool(true));
    }
    let component = pipeline.component(&task.component);
    let name = component.and_then(|c| c.output_definitions.artifacts.keys().next().cloned());
    let name = name.unwrap_or_else(|| "artifact".into());
    let artifact = Artifact {
        name: name.clone(),
        schema_title: importer.type_schema.title().to_owned(),
        schema_version: importer.type_schema.schema_version.clone(),
        uri: uri.map(|u| text(&u)).filter(|u| !u.is_empty())?,
        metadata,
        custom_path: None,
    };
    Some((name, artifact))
}

/// The same, of an importer whose artifact goes into the workspace: a pod that only fetches it does that.
pub(in crate::engine) fn imported_to_workspace(
    pipeline: &Pipeline,
    run: &RunState,
    task: &Task,
) -> Option<(String, Artifact)> {
    match pipeline.body(pipeline.component(&task.component)?)? {
        Body::Importer(importer) if importer.download_to_workspace => imported(pipeline, importer, run, task),
        _ => None,
    }
}

impl Context {
    pub(super) async fn import(&self, importer: &ImporterSpec) -> Done {
        let Some((name, artifact)) = imported(&self.pipeline, importer, &self.run, &self.task) else {
            return self.refused(TaskError::step("the importer has no URI"));
        };
        // As upstream: images are mounted into pods, and only models are mounted.
        if artifact.uri.starts_with("oci://") && artifact.schema_title != "system.Model" {
            return self.refused(TaskError::step(format!(
                "{} is an image, which only an artifact of the type system.Model can be, and this one is {}",
                artifact.uri, artifact.schema_title
            )));
        }
        if importer.download_to_workspace {
            if let Err(why) = self.core.locate(&self.run.namespace, &artifact.uri, &self.run.pipeline_root).await {
                return self.refused(TaskError::step(format!("it cannot be fetched into the workspace: {why}")));
            }
            if let Err(error) = self.workspace().await {
                return self.refused(error);
            }
            let execution = self.begin(ExecutionKind::Importer, "", None, None).await;
            return Done::Prepared {
                task: self.task.id.clone(),
                image: self.core.config.launcher_image.clone(),
                command: vec![pod::LAUNCHER.into(), "--only-fetch".into()],
                fingerprint: None,
                execution,
            };
        }
        let mut outputs = Io { artifacts: [(name, vec![artifact])].into(), ..Io::default() };
        let execution = self.begin(ExecutionKind::Importer, "", None, None).await;
        self.finish(execution, ExecutionState::Complete, &mut outputs).await;
        Done::Finished { task: self.task.id.clone(), outputs, fingerprint: None, cached_from: None, execution }
    }
}
