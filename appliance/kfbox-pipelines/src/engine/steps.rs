//! What the engine does outside itself, a future each: preparing a step (cache, metadata, command), creating its pod,
//! recording what it gave, explaining why it failed. Each may be cut off by a crash at any point and done again.

mod claims;
mod import;

pub(super) use import::imported_to_workspace;

use super::{
    logs,
    mailbox::Report,
    model::{Artifact, Io, RunState, Task, TaskError},
    placeholders::ExecutorInput,
    plan, pod, resolve, token,
};
use crate::{
    Core,
    outside::Unlocated,
    ports::{ExecutionKind, ExecutionState, LineageArtifact, LineageExecution, LineageResult, LineageRun},
    roots::{bare, is_web, local_path, part},
    spec::{
        Body, Pipeline,
        ir::{ContainerSpec, ParameterType},
        is_volume_stub, value,
    },
};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Metadata of an artifact that lies in the run's workspace, as upstream marks it.
pub(super) const IN_WORKSPACE: &str = "_kfp_workspace";

/// A store that takes longer to say whether a cached result is still there is not waited for: the step runs.
const CACHE_LOOK: Duration = Duration::from_secs(30);

/// What a future came to.
pub(crate) enum Done {
    /// The command is known; the pod can be created once this is stored.
    Prepared {
        task: String,
        image: String,
        command: Vec<String>,
        fingerprint: Option<String>,
        execution: Option<i64>,
    },
    /// There is nothing to run: an importer, a cached result, a volume.
    Finished {
        task: String,
        outputs: Io,
        fingerprint: Option<String>,
        cached_from: Option<String>,
        execution: Option<i64>,
    },
    PodCreated {
        task: String,
        attempt: u32,
        uid: String,
    },
    /// The platform cannot do it; the retry policy does not apply.
    Refused {
        task: String,
        error: TaskError,
    },
    /// The step failed, explained.
    Failed {
        task: String,
        attempt: u32,
        error: TaskError,
    },
    /// What a step reported is recorded.
    Recorded {
        task: String,
        attempt: u32,
        outputs: Io,
    },
    /// What a step reported is not what it should have given.
    Unacceptable {
        task: String,
        attempt: u32,
        why: String,
    },
    Archived {
        task: String,
    },
    /// A pod that the watch did not show.
    Looked {
        task: String,
        attempt: u32,
        pod: Option<Box<Pod>>,
    },
    PodsDeleted,
    RunBegun(crate::ports::LineageContexts),
    Nothing,
}

/// A run as futures see it: a copy of what they need.
pub(super) struct Context {
    pub core: Arc<Core>,
    pub pipeline: Arc<Pipeline>,
    pub run: RunState,
    pub task: Task,
}

/// Where a step's outputs go: `ROOT/TASK/ID-ATTEMPT`.
pub(super) fn output_root(run: &RunState, task: &Task) -> String {
    format!("{}/{}/{}-{}", bare(&run.pipeline_root), part(&task.name), task.id, task.attempt)
}

/// What an attempt is given and must give.
pub(super) fn executor_input(pipeline: &Pipeline, run: &RunState, task: &Task) -> ExecutorInput {
    let mut input = ExecutorInput {
        parameters: task.inputs.parameters.clone(),
        artifacts: task.inputs.artifacts.clone(),
        ..ExecutorInput::default()
    };
    let root = output_root(run, task);
    if let Some((name, imported)) = imported_to_workspace(pipeline, run, task) {
        input.artifacts.insert(name, vec![imported]);
    } else if let Some(component) = pipeline.component(&task.component) {
        for name in component.output_definitions.parameters.keys() {
            input.output_parameters.insert(name.clone(), format!("/tmp/kfp/outputs/{name}"));
        }
        for (name, definition) in &component.output_definitions.artifacts {
            let artifact = Artifact {
                name: name.clone(),
                schema_title: definition.artifact_type.title().to_owned(),
                schema_version: definition.artifact_type.schema_version.clone(),
                uri: format!("{root}/{}", part(name)),
                metadata: definition.metadata.clone(),
                custom_path: None,
            };
            input.output_artifacts.insert(name.clone(), artifact);
        }
    }
    // kfp derives the root of `dsl.get_uri` from the folder of this file.
    input.output_file = local_path(&root)
        .map_or_else(|| "/tmp/kfp_outputs/output_metadata.json".into(), |p| format!("{p}/output_metadata.json"));
    input
}

/// What makes two executions interchangeable: upstream's cache key (inputs, outputs, command, image, claims), by input
/// artifact location instead of id.
fn fingerprint(
    input: &ExecutorInput,
    image: &str,
    command: &[String],
    claims: &[String],
    types: &BTreeMap<String, String>,
    key: &str,
) -> String {
    if !key.is_empty() {
        return hex::encode(Sha256::digest(format!("key\n{key}")));
    }
    let artifacts: BTreeMap<&String, Vec<&str>> =
        input.artifacts.iter().map(|(name, list)| (name, list.iter().map(|a| a.uri.as_str()).collect())).collect();
    let outputs: BTreeMap<&String, &str> =
        input.output_artifacts.iter().map(|(n, a)| (n, a.schema_title.as_str())).collect();
    let sorted: BTreeMap<&String, &Value> = input.parameters.iter().collect();
    let content = json!({
        "inputArtifacts": artifacts,
        "inputParameters": sorted,
        "outputArtifacts": outputs,
        "outputParameters": types,
        "image": image,
        "command": command,
        "claims": claims,
    });
    hex::encode(Sha256::digest(content.to_string().as_bytes()))
}

impl Context {
    fn refused(&self, error: TaskError) -> Done {
        Done::Refused { task: self.task.id.clone(), error }
    }

    fn spec(&self) -> Option<&crate::spec::ir::TaskSpec> {
        plan::spec_of(&self.pipeline, &self.run, &self.task)
    }

    fn parent(&self) -> Option<&Task> {
        let parent = self.run.tasks.get(self.task.parent_id.as_ref()?)?;
        if self.task.iteration.is_some() { self.run.tasks.get(parent.parent_id.as_ref()?) } else { Some(parent) }
    }

    /// Records that the execution begins. The metadata store's failure is not the step's: it is logged and the run goes on.
    async fn begin(
        &self,
        kind: ExecutionKind,
        image: &str,
        fingerprint: Option<&str>,
        cached: Option<i64>,
    ) -> Option<i64> {
        let parent = self.task.parent_id.as_ref().and_then(|id| self.run.tasks.get(id)).and_then(|t| t.execution_id);
        let mut properties: BTreeMap<String, Value> = BTreeMap::from([
            ("display_name".into(), json!(self.task.display_name)),
            ("task_name".into(), json!(self.task.name)),
            ("inputs".into(), Value::Object(self.task.inputs.parameters.clone())),
        ]);
        if let Some(parent) = parent {
            properties.insert("parent_dag_id".into(), json!(parent));
        }
        if let Some(iteration) = self.task.iteration {
            properties.insert("iteration_index".into(), json!(iteration));
        }
        if kind == ExecutionKind::Container {
            properties.insert("pod_name".into(), json!(if cached.is_some() { String::new() } else { self.pod_name() }));
            properties.insert("namespace".into(), json!(self.run.namespace));
            properties.insert("image".into(), json!(image));
            if let Some(fingerprint) = fingerprint {
                properties.insert("cache_fingerprint".into(), json!(fingerprint));
            }
            if let Some(cached) = cached {
                properties.insert("cached_execution_id".into(), json!(cached.to_string()));
            }
        }
        let inputs = self.task.inputs.artifacts.iter().map(|(name, list)| (name.clone(), ids(list)));
        let execution = LineageExecution {
            contexts: self.run.contexts,
            namespace: self.run.namespace.clone(),
            kind,
            name: format!("run/{}/{}/{}", self.run.id, self.task.path, self.task.attempt),
            custom_properties: properties,
            inputs: inputs.collect(),
        };
        match self.core.deps.lineage.begin_execution(&execution).await {
            Ok(id) => Some(id),
            Err(error) => {
                tracing::warn!(run = %self.run.id, task = %self.task.path, %error, "the metadata store took no execution");
                None
            }
        }
    }

    async fn finish(&self, execution: Option<i64>, state: ExecutionState, outputs: &mut Io) {
        finish(&self.core, &self.run, execution, state, outputs).await;
    }

    fn pod_name(&self) -> String {
        super::model::pod_name(&self.run.pipeline_name, &self.run.id, &self.task)
    }

    /// From a decided task to a command, or straight to its outputs.
    pub(super) async fn prepare(self) -> Done {
        let component = self.pipeline.component(&self.task.component);
        match component.and_then(|c| self.pipeline.body(c)) {
            Some(Body::Importer(importer)) => self.import(importer).await,
            Some(Body::Container(container)) if is_volume_stub(&container.image) => self.volume(&container.image).await,
            Some(Body::Container(container)) => self.container(container).await,
            _ => self.refused(TaskError::platform("its executor is not in the pipeline any more")),
        }
    }

    async fn container(&self, container: &ContainerSpec) -> Done {
        let mut input = executor_input(&self.pipeline, &self.run, &self.task);
        if let Err(why) = self.tell_task_config(container, &mut input) {
            return self.refused(TaskError::step(why));
        }
        let elements: Vec<String> = container
            .command
            .iter()
            .chain(&container.args)
            .map(|e| resolve::substitute(e, &self.run, &self.task.name, &self.task.id))
            .collect();
        let image = input.text(&container.image);
        let command = match input.command(&elements) {
            Ok(command) if command.is_empty() => {
                return self.refused(TaskError::step("its command is empty once its placeholders are replaced"));
            }
            Ok(command) => command,
            Err(why) => return self.refused(TaskError::step(why)),
        };
        if image.trim().is_empty() || image.contains("{{$") {
            return self.refused(TaskError::step(format!("its image `{image}` is no image")));
        }
        let caching = self.spec().map(|s| s.caching_options.clone()).unwrap_or_default();
        let mut print = None;
        if caching.enable_cache && self.core.config.caching {
            let component = self.pipeline.component(&self.task.component);
            let types = component.map(|c| {
                c.output_definitions
                    .parameters
                    .iter()
                    .map(|(n, d)| (n.clone(), format!("{:?}", value::declared_output(d))))
                    .collect()
            });
            let settings = component.and_then(|c| self.pipeline.kubernetes(c)).map(|k| json!(k.pvc_mount).to_string());
            let claims: Vec<String> = settings.into_iter().filter(|s| s != "[]").collect();
            // The executor input holds this run's own output addresses, which would make every print unique.
            let mut neutral = input.clone();
            for (name, artifact) in &mut neutral.output_artifacts {
                artifact.uri = format!("minio://outputs/{name}");
            }
            neutral.output_file = "output".into();
            for list in neutral.artifacts.values_mut() {
                for artifact in list {
                    artifact.name = String::new();
                }
            }
            let shape = neutral.command(&elements).unwrap_or_default();
            let found = fingerprint(&neutral, &image, &shape, &claims, &types.unwrap_or_default(), &caching.cache_key);
            if self.task.attempt == 0
                && let Some(done) = self.reuse(&found).await
            {
                return done;
            }
            print = Some(found);
        }
        if pod::needs_workspace(&input)
            && let Err(error) = self.workspace().await
        {
            return self.refused(error);
        }
        let execution = self.begin(ExecutionKind::Container, &image, print.as_deref(), None).await;
        Done::Prepared { task: self.task.id.clone(), image, command, fingerprint: print, execution }
    }

    /// Inputs of the type `dsl.TaskConfig` hold what the component passes on.
    fn tell_task_config(&self, container: &ContainerSpec, input: &mut ExecutorInput) -> Result<(), String> {
        let Some(component) = self.pipeline.component(&self.task.component) else { return Ok(()) };
        let asking: Vec<&String> = component
            .input_definitions
            .parameters
            .iter()
            .filter(|(_, d)| value::declared(d) == ParameterType::TaskConfig)
            .map(|(name, _)| name)
            .collect();
        if asking.is_empty() {
            return Ok(());
        }
        let parent = self.parent().ok_or("its executor is not in the pipeline any more")?;
        let scope = pod::Scope { run: &self.run, parent, task: &self.task, input };
        let config = pod::task_config(&self.pipeline, &scope, container)?;
        for name in asking {
            input.parameters.insert(name.clone(), config.clone());
        }
        Ok(())
    }

    /// A finished execution with the same fingerprint, if what it made is still there.
    async fn reuse(&self, fingerprint: &str) -> Option<Done> {
        let entry = match self.core.store.cached(&self.run.namespace, fingerprint).await {
            Ok(entry) => entry?,
            Err(error) => {
                tracing::warn!(%error, "the cache cannot be read; the step runs");
                return None;
            }
        };
        for artifact in entry.outputs.artifacts.values().flatten() {
            if self.is_there(&artifact.uri).await == Some(false) {
                drop(self.core.store.forget_cached(&self.run.namespace, fingerprint).await);
                return None;
            }
        }
        let execution =
            self.begin(ExecutionKind::Container, &self.task.image, Some(fingerprint), Some(entry.execution_id)).await;
        let mut outputs = entry.outputs;
        self.finish(execution, ExecutionState::Cached, &mut outputs).await;
        Some(Done::Finished {
            task: self.task.id.clone(),
            outputs,
            fingerprint: Some(fingerprint.to_owned()),
            cached_from: Some(entry.task_id),
            execution,
        })
    }

    /// Whether anything lies at an artifact's address; `None` when the daemon does not look there.
    async fn is_there(&self, uri: &str) -> Option<bool> {
        if is_web(uri) {
            return None;
        }
        let found = match self.core.locate(&self.run.namespace, uri, &self.run.pipeline_root).await {
            Ok(found) => found,
            Err(Unlocated::Elsewhere(_) | Unlocated::Fenced(_)) => return None,
            Err(Unlocated::Unusable(_)) => return Some(false),
        };
        let at = &found.at;
        let listed = tokio::time::timeout(CACHE_LOOK, found.store.list(&at.bucket, &at.key)).await;
        let below = format!("{}/", at.key);
        let here = |o: &crate::ports::ObjectInfo| o.key == at.key || o.key.starts_with(&below);
        Some(matches!(listed, Ok(Ok(objects)) if objects.iter().any(here)))
    }

    /// Creates the pod; a pod of that name is this very attempt's.
    pub(super) async fn create_pod(self) -> Done {
        let fetching = ContainerSpec::default();
        let body = self.pipeline.component(&self.task.component).and_then(|c| self.pipeline.body(c));
        let (parent, container) = match (self.parent(), body) {
            (Some(parent), Some(Body::Container(container))) => (parent, container),
            (Some(parent), Some(Body::Importer(_))) => (parent, &fetching),
            _ => return self.refused(TaskError::platform("its executor is not in the pipeline any more")),
        };
        let input = executor_input(&self.pipeline, &self.run, &self.task);
        let scope = pod::Scope { run: &self.run, parent, task: &self.task, input: &input };
        let token = token(&self.core.store.key, &self.run.id, &self.task.id, self.task.attempt);
        let built = match pod::build(&self.core.config, &self.pipeline, &scope, container, &token) {
            Ok(pod) => pod,
            Err(why) => return self.refused(TaskError::step(why)),
        };
        let pods: Api<Pod> = Api::namespaced(self.core.deps.client.clone(), &self.run.namespace);
        let mut wait = Duration::from_millis(200);
        loop {
            let (task, attempt) = (self.task.id.clone(), self.task.attempt);
            match pods.create(&PostParams::default(), &built).await {
                Ok(created) => {
                    return Done::PodCreated { task, attempt, uid: created.metadata.uid.unwrap_or_default() };
                }
                Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => {
                    return Done::PodCreated { task, attempt, uid: String::new() };
                }
                // A quota may free itself; what is wrong stays wrong.
                Err(kube::Error::Api(status))
                    if (400..500).contains(&status.code) && !matches!(status.code, 408 | 409 | 429) =>
                {
                    return self
                        .refused(TaskError { code: 9, message: format!("its pod was refused: {}", status.message) });
                }
                Err(error) => {
                    tracing::warn!(run = %self.run.id, task = %self.task.path, %error, "a pod cannot be created now; trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    /// Takes what a step reported, checks it against what it should give, and records it.
    pub(super) async fn record(self, report: Report) -> Done {
        let (task, attempt) = (self.task.id.clone(), self.task.attempt);
        let mut outputs = match outputs(&self, &report) {
            Ok(outputs) => outputs,
            Err(why) => return Done::Unacceptable { task, attempt, why },
        };
        self.finish(self.task.execution_id, ExecutionState::Complete, &mut outputs).await;
        Done::Recorded { task, attempt, outputs }
    }

    /// Why it failed, in words, with the last lines of its log.
    pub(super) async fn explain(self, why: String) -> Done {
        let mut message = why;
        if let Some(pod) = &self.task.pod_name {
            let tail = logs::tail(&self.core, &self.run.namespace, pod).await;
            if !tail.trim().is_empty() {
                message = format!("{message}\nIts last lines:\n{tail}");
            }
        }
        self.finish(self.task.execution_id, ExecutionState::Failed, &mut Io::default()).await;
        Done::Failed { task: self.task.id.clone(), attempt: self.task.attempt, error: TaskError::step(message) }
    }

    pub(super) async fn archive(self) -> Done {
        if let Err(error) = logs::archive(&self.core, &self.run.namespace, &self.run.id, &self.task).await {
            tracing::warn!(run = %self.run.id, task = %self.task.path, %error, "a step's log could not be kept");
        }
        Done::Archived { task: self.task.id.clone() }
    }

    pub(super) async fn look(self) -> Done {
        let pods: Api<Pod> = Api::namespaced(self.core.deps.client.clone(), &self.run.namespace);
        let name = self.pod_name();
        let mut wait = Duration::from_millis(200);
        loop {
            match pods.get_opt(&name).await {
                Ok(pod) => {
                    return Done::Looked {
                        task: self.task.id.clone(),
                        attempt: self.task.attempt,
                        pod: pod.map(Box::new),
                    };
                }
                Err(error) => {
                    tracing::warn!(pod = name, %error, "a pod cannot be looked up now; trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    /// The DAG's own execution in the metadata store.
    pub(super) async fn begin_dag(&self) -> Option<i64> {
        self.begin(ExecutionKind::Dag, "", None, None).await
    }
}

pub(super) async fn finish(
    core: &Core,
    run: &RunState,
    execution: Option<i64>,
    state: ExecutionState,
    outputs: &mut Io,
) {
    let Some(execution) = execution else { return };
    let mut artifacts = Vec::new();
    for (name, list) in &outputs.artifacts {
        for artifact in list {
            artifacts.push(LineageArtifact {
                output: name.clone(),
                id: artifact.name.parse().ok(),
                schema_title: artifact.schema_title.clone(),
                uri: artifact.uri.clone(),
                metadata: artifact.metadata.clone(),
            });
        }
    }
    let result = LineageResult {
        contexts: run.contexts,
        namespace: run.namespace.clone(),
        execution,
        state,
        output_parameters: outputs.parameters.clone(),
        artifacts,
    };
    match core.deps.lineage.finish_execution(&result).await {
        Ok(ids) => {
            for (artifact, id) in outputs.artifacts.values_mut().flatten().zip(ids) {
                artifact.name = id.to_string();
            }
        }
        Err(error) => tracing::warn!(run = %run.id, execution, %error, "the metadata store took no result"),
    }
}

pub(super) async fn begin_run(core: Arc<Core>, run: RunState) -> Done {
    let request = LineageRun {
        namespace: run.namespace.clone(),
        pipeline_name: run.pipeline_name.clone(),
        run_id: run.id.clone(),
        resource_name: resolve::resource_name(&run),
        pipeline_root: run.pipeline_root.clone(),
    };
    match core.deps.lineage.begin_run(&request).await {
        Ok(contexts) => Done::RunBegun(contexts),
        Err(error) => {
            tracing::warn!(run = %run.id, %error, "the metadata store took no run");
            Done::RunBegun(run.contexts)
        }
    }
}

/// Deletes pods that still run, each until it is gone or the API server has said so.
pub(super) async fn delete_pods(core: Arc<Core>, namespace: String, names: Vec<String>) -> Done {
    let pods: Api<Pod> = Api::namespaced(core.deps.client.clone(), &namespace);
    for name in names {
        let mut wait = Duration::from_millis(200);
        loop {
            match pods.delete(&name, &DeleteParams::default()).await {
                Ok(_) => break,
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409) => break,
                Err(error) => {
                    tracing::warn!(pod = name, %error, "a pod cannot be deleted now; trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(10));
                }
            }
        }
    }
    Done::PodsDeleted
}

fn ids(list: &[Artifact]) -> Vec<i64> {
    list.iter().filter_map(|a| a.name.parse().ok()).collect()
}

/// The values that a step gave: its metadata file first, then the files of its output parameters.
fn outputs(context: &Context, report: &Report) -> Result<Io, String> {
    let (pipeline, run, task) = (&context.pipeline, &context.run, &context.task);
    let Some(component) = pipeline.component(&task.component) else { return Err("its component is gone".into()) };
    let input = executor_input(pipeline, run, task);
    if let Some((name, artifact)) = imported_to_workspace(pipeline, run, task) {
        return Ok(Io { artifacts: [(name, vec![artifact])].into(), ..Io::default() });
    }
    let given = &report.executor_output;
    let from_metadata = given.get("parameterValues").and_then(Value::as_object);
    let mut io = Io::default();
    for (name, definition) in &component.output_definitions.parameters {
        if let Some(value) = from_metadata.and_then(|p| p.get(name)) {
            let mut value = value.clone();
            value::normalize(&mut value);
            let kind = value::declared_output(definition);
            if matches!(kind, ParameterType::String) && !value.is_string() {
                value = Value::String(value::text(&value));
            }
            io.parameters.insert(name.clone(), value);
        } else if let Some(text) = report.parameters.get(name) {
            let kind = value::declared_output(definition);
            io.parameters.insert(
                name.clone(),
                value::parse_output(text, kind).map_err(|why| format!("output parameter {name}: {why}"))?,
            );
        } else {
            return Err(format!(
                "it gave no value for its output parameter {name}: nothing was written to {}",
                input.output_parameters[name]
            ));
        }
    }
    for (name, mut artifact) in input.output_artifacts {
        let told =
            given.get("artifacts").and_then(|a| a.get(&name)).and_then(|l| l.get("artifacts")).and_then(|l| l.get(0));
        if let Some(told) = told {
            if let Some(uri) = told.get("uri").and_then(Value::as_str).filter(|u| !u.is_empty()) {
                uri.clone_into(&mut artifact.uri);
            }
            if let Some(metadata) = told.get("metadata").and_then(Value::as_object) {
                artifact.metadata.extend(metadata.clone());
            }
        }
        // Kept for readers as the name the SDK gave; a downstream step reads it at its usual place.
        artifact.custom_path = None;
        io.artifacts.insert(name, vec![artifact]);
    }
    Ok(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(change: impl FnOnce(&mut ExecutorInput, &mut Vec<String>)) -> String {
        let artifact = |name: &str, uri: &str| Artifact {
            name: name.into(),
            schema_title: "system.Dataset".into(),
            schema_version: "0.0.1".into(),
            uri: uri.into(),
            metadata: serde_json::Map::default(),
            custom_path: None,
        };
        let mut input = ExecutorInput::default();
        for (name, value) in [("b", json!(2)), ("a", json!({"x": [1, "y"]}))] {
            input.parameters.insert(name.into(), value);
        }
        input.artifacts.insert("data".into(), vec![artifact("data", "minio://b/one")]);
        input.output_artifacts.insert("out".into(), artifact("out", "minio://b/run/out"));
        let mut command = vec!["sh".into(), "-c".into(), "true".into()];
        change(&mut input, &mut command);
        let types = BTreeMap::from([("p".to_owned(), "STRING".to_owned())]);
        fingerprint(&input, "python:3.11", &command, &[], &types, "")
    }

    #[test]
    fn cache_keys_stay_from_version_to_version_and_differ_by_what_a_step_is_given() {
        // Written by the first version: another value here means that an upgrade forgets everybody's cache.
        let first = "a03443f37d5c6605a5c3e9afd60a8d1b9e1cd586e94bf26772d74588ba7400b0";
        assert_eq!(key(|_, _| {}), first);
        // Where outputs go differs in each run, and the order of parameters is nobody's wish.
        let same: [fn(&mut ExecutorInput, &mut Vec<String>); 2] = [
            |input, _| input.output_artifacts.get_mut("out").unwrap().uri = "minio://b/other/out".into(),
            |input, _| {
                let b = input.parameters.remove("b").unwrap();
                input.parameters.insert("b".into(), b);
            },
        ];
        for change in same {
            assert_eq!(key(change), first);
        }
        let other: [fn(&mut ExecutorInput, &mut Vec<String>); 6] = [
            |input, _| drop(input.parameters.insert("b".into(), json!("2"))),
            |input, _| drop(input.parameters.insert("c".into(), Value::Null)),
            |input, _| input.artifacts.get_mut("data").unwrap()[0].uri = "minio://b/two".into(),
            |input, _| input.output_artifacts.get_mut("out").unwrap().schema_title = "system.Model".into(),
            |_, command| command.push(String::new()),
            |_, command| command[2] = "false".into(),
        ];
        let keys: std::collections::BTreeSet<String> = other.into_iter().map(key).collect();
        assert!(keys.len() == other.len() && !keys.contains(first));
    }
}
