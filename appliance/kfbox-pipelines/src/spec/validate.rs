//! From documents to a [`Pipeline`]: typed parsing with the path of what is wrong, then every reference is followed.
//! Invariant: after this the engine meets no dangling name, no cycle and no feature that it would have to ignore.

use super::{
    Body, Documents, PackageError, Pipeline, ROOT,
    expression::{Expression, ExpressionError},
    ir::{
        ComponentSpec, DagOutputParameter, DagSpec, ExecutorSpec, InputParameter, ParameterItems, ParameterType,
        PipelineSpec, TaskSpec,
    },
    platform::{ExecutorConfig, PlatformSpec},
    value,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Components nested in components: deeper than any real pipeline, shallow enough for the stack.
const MAX_NESTING: usize = 50;

#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error(transparent)]
    Package(#[from] PackageError),
    #[error("the pipeline is not valid at {path}: {why}")]
    Shape { path: String, why: String },
    #[error("the pipeline has no name: pipelineInfo.name is empty")]
    NoName,
    #[error("an Argo Workflow (a KFP v1 package) cannot be run; compile the pipeline with kfp 2")]
    Version1,
    #[error("schema version {0} is not known; this kfbox reads 2.0.0 and 2.1.0")]
    SchemaVersion(String),
    #[error("{at}: {why}")]
    Reference { at: String, why: String },
    #[error("{at}: the expression `{expression}` is wrong {source}")]
    Expression {
        at: String,
        expression: String,
        #[source]
        source: ExpressionError,
    },
    #[error("{at}: {feature} is not supported by this kfbox")]
    Unsupported { at: String, feature: String },
    #[error("parameter {name}: {why}")]
    Parameter { name: String, why: String },
}

fn reference<T>(at: impl Into<String>, why: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError::Reference { at: at.into(), why: why.into() })
}

fn unsupported<T>(at: impl Into<String>, feature: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError::Unsupported { at: at.into(), feature: feature.into() })
}

fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, SpecError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        SpecError::Shape {
            path: if path == "." { "its top level".into() } else { path },
            why: error.into_inner().to_string(),
        }
    })
}

pub(super) fn parse(documents: Documents) -> Result<Pipeline, SpecError> {
    let raw = &documents.pipeline_spec;
    if raw.get("apiVersion").and_then(Value::as_str).is_some_and(|v| v.starts_with("argoproj.io/")) {
        return Err(SpecError::Version1);
    }
    // Clients that carry the package in a `google.protobuf.Struct`, as the SDK does, make 7 into 7.0.
    let whole = |document: &Value| {
        let mut document = document.clone();
        value::normalize(&mut document);
        document
    };
    let spec: PipelineSpec = typed(&whole(raw))?;
    let platform = documents.platform_spec.as_ref().map(whole);
    let platform: PlatformSpec = platform.as_ref().map(typed).transpose()?.unwrap_or_default();
    if spec.pipeline_info.name.trim().is_empty() {
        return Err(SpecError::NoName);
    }
    if !matches!(spec.schema_version.as_str(), "2.0.0" | "2.1.0") {
        return Err(SpecError::SchemaVersion(spec.schema_version));
    }
    let pipeline = Pipeline { spec, platform, documents };
    if pipeline.spec.root.dag.is_none() {
        return reference("root", "it is not a DAG");
    }
    for (name, component) in
        pipeline.spec.components.iter().map(|(n, c)| (n.as_str(), c)).chain([(ROOT, &pipeline.spec.root)])
    {
        check_component(&pipeline, name, component)?;
    }
    check_nesting(&pipeline, ROOT, &mut Vec::new())?;
    check_platform(&pipeline)?;
    Ok(pipeline)
}

fn check_component(pipeline: &Pipeline, name: &str, component: &ComponentSpec) -> Result<(), SpecError> {
    let at = format!("component {name}");
    if !component.single_platform_specs.is_empty() {
        return unsupported(at, "singlePlatformSpecs in a component");
    }
    if component.dag.is_some() && component.executor_label.is_some() {
        return reference(at, "it has both a dag and an executorLabel");
    }
    if let Some(label) = &component.executor_label {
        match pipeline.spec.deployment_spec.executors.get(label) {
            None => return reference(at, format!("its executor {label} is not in deploymentSpec.executors")),
            Some(ExecutorSpec::Resolver(_)) => return unsupported(at, "a resolver executor"),
            Some(ExecutorSpec::CustomJob(_)) => return unsupported(at, "a Vertex AI customJob executor"),
            Some(ExecutorSpec::Importer(importer)) => {
                if importer.download_to_workspace && pipeline.workspace().is_none() {
                    return reference(at, "it imports into the workspace, and the pipeline has none");
                }
            }
            Some(ExecutorSpec::Container(container)) => {
                if container.image.trim().is_empty() {
                    return reference(at, "its container has no image");
                }
                if container.command.is_empty() && container.args.is_empty() && !is_volume_stub(&container.image) {
                    return unsupported(at, "a container with neither command nor args (the image's own entrypoint)");
                }
                if container.lifecycle.is_some() {
                    return unsupported(at, "container.lifecycle");
                }
            }
        }
    }
    if let Some(dag) = &component.dag {
        check_dag(pipeline, name, component, dag)?;
    } else if component.executor_label.is_none() {
        return reference(at, "it has neither a dag nor an executorLabel");
    }
    Ok(())
}

/// kfp-kubernetes' volume components name these images; the engine does their work itself.
pub(crate) fn is_volume_stub(image: &str) -> bool {
    matches!(image, "argostub/createpvc" | "argostub/deletepvc")
}

fn check_dag(pipeline: &Pipeline, name: &str, component: &ComponentSpec, dag: &DagSpec) -> Result<(), SpecError> {
    for (task_name, task) in &dag.tasks {
        let at = format!("task {task_name} of {name}");
        let Some(of) = pipeline.spec.components.get(&task.component_ref.name) else {
            return reference(at, format!("its component {} is not in components", task.component_ref.name));
        };
        for dependency in dependencies(task) {
            if !dag.tasks.contains_key(dependency) {
                return reference(at, format!("it depends on {dependency}, which is no task beside it"));
            }
        }
        check_inputs(pipeline, component, dag, task, of, &at)?;
        if !task.trigger_policy.condition.is_empty() {
            check_expression(&task.trigger_policy.condition, &at)?;
        }
        if let Some(policy) = &task.retry_policy {
            for text in [&policy.backoff_duration, &policy.backoff_max_duration] {
                if !text.is_empty() && duration(text).is_none() {
                    return reference(at, format!("its retry policy's duration `{text}` is not like `60s`"));
                }
            }
        }
        check_iterators(task, of, &at)?;
    }
    check_outputs(pipeline, name, dag)?;
    check_cycle(name, dag)
}

fn check_iterators(task: &TaskSpec, of: &ComponentSpec, at: &str) -> Result<(), SpecError> {
    if let Some(iterator) = &task.parameter_iterator {
        match &iterator.items {
            ParameterItems::Raw(raw) => {
                value::items(&Value::String(raw.clone()))
                    .map_err(|why| SpecError::Reference { at: at.to_owned(), why })?;
            }
            ParameterItems::InputParameter(input) => {
                if !task.inputs.parameters.contains_key(input) {
                    return reference(at, format!("it loops over the input {input}, which it does not have"));
                }
            }
        }
        if !of.input_definitions.parameters.contains_key(&iterator.item_input) {
            return reference(at, format!("its loop item {} is no input of its component", iterator.item_input));
        }
    }
    if let Some(iterator) = &task.artifact_iterator {
        if task.parameter_iterator.is_some() {
            return reference(at, "it has two iterators");
        }
        if !task.inputs.artifacts.contains_key(&iterator.items.input_artifact) {
            return reference(
                at,
                format!("it loops over the artifacts {}, which it does not have", iterator.items.input_artifact),
            );
        }
    }
    Ok(())
}

fn check_inputs(
    pipeline: &Pipeline,
    parent: &ComponentSpec,
    dag: &DagSpec,
    task: &TaskSpec,
    of: &ComponentSpec,
    at: &str,
) -> Result<(), SpecError> {
    for (name, input) in &task.inputs.parameters {
        check_parameter(pipeline, parent, dag, input, &format!("{at}, input {name}"))?;
    }
    for (name, input) in &task.inputs.artifacts {
        let at = format!("{at}, input {name}");
        match (&input.component_input_artifact, &input.task_output_artifact) {
            (Some(from), None) => {
                if !parent.input_definitions.artifacts.contains_key(from) {
                    return reference(at, format!("{from} is no input artifact of the DAG around it"));
                }
            }
            (None, Some(from)) => {
                let producer = producer(pipeline, dag, &from.producer_task, &at)?;
                if !producer.output_definitions.artifacts.contains_key(&from.output_artifact_key) {
                    // A DAG's outputs need not be declared when only its selectors carry them.
                    let carried = producer
                        .dag
                        .as_ref()
                        .is_some_and(|d| d.outputs.artifacts.contains_key(&from.output_artifact_key));
                    if !carried {
                        return reference(
                            at,
                            format!("{} has no output artifact {}", from.producer_task, from.output_artifact_key),
                        );
                    }
                }
            }
            _ => return reference(at, "it should have exactly one source"),
        }
    }
    for (name, definition) in &of.input_definitions.parameters {
        let given = task.inputs.parameters.contains_key(name)
            || task.parameter_iterator.as_ref().is_some_and(|i| i.item_input == *name);
        // The platform gives a task its own configuration.
        let own = value::declared(definition) == ParameterType::TaskConfig;
        if !given && !own && !definition.is_optional && definition.default_value.is_none() {
            return reference(at, format!("the required input {name} has no value"));
        }
    }
    Ok(())
}

fn producer<'a>(pipeline: &'a Pipeline, dag: &DagSpec, task: &str, at: &str) -> Result<&'a ComponentSpec, SpecError> {
    let found = dag.tasks.get(task).and_then(|t| pipeline.spec.components.get(&t.component_ref.name));
    found.map_or_else(|| reference(at, format!("{task} is no task beside it")), Ok)
}

fn check_parameter(
    pipeline: &Pipeline,
    parent: &ComponentSpec,
    dag: &DagSpec,
    input: &InputParameter,
    at: &str,
) -> Result<(), SpecError> {
    let sources = [
        input.task_output_parameter.is_some(),
        input.runtime_value.is_some(),
        input.component_input_parameter.is_some(),
        input.task_final_status.is_some(),
    ];
    if sources.into_iter().filter(|s| *s).count() != 1 {
        return reference(at, "it should have exactly one source");
    }
    if let Some(from) = &input.component_input_parameter
        && !parent.input_definitions.parameters.contains_key(from)
    {
        return reference(at, format!("{from} is no input parameter of the DAG around it"));
    }
    if let Some(from) = &input.task_output_parameter {
        let producer = producer(pipeline, dag, &from.producer_task, at)?;
        let carried =
            producer.dag.as_ref().is_some_and(|d| d.outputs.parameters.contains_key(&from.output_parameter_key));
        if !carried && !producer.output_definitions.parameters.contains_key(&from.output_parameter_key) {
            return reference(
                at,
                format!("{} has no output parameter {}", from.producer_task, from.output_parameter_key),
            );
        }
    }
    if let Some(from) = &input.runtime_value
        && let Some(name) = &from.runtime_parameter
        && !pipeline.spec.root.input_definitions.parameters.contains_key(name)
    {
        return reference(at, format!("{name} is no parameter of the pipeline"));
    }
    if !input.parameter_expression_selector.is_empty() {
        check_expression(&input.parameter_expression_selector, at)?;
    }
    Ok(())
}

fn check_expression(source: &str, at: &str) -> Result<(), SpecError> {
    Expression::parse(source).map(drop).map_err(|error| SpecError::Expression {
        at: at.to_owned(),
        expression: source.to_owned(),
        source: error,
    })
}

fn check_outputs(pipeline: &Pipeline, name: &str, dag: &DagSpec) -> Result<(), SpecError> {
    let task = |of: &str, output: &str| {
        let at = format!("output {output} of {name}");
        producer(pipeline, dag, of, &at)
    };
    for (output, selectors) in &dag.outputs.artifacts {
        for selector in &selectors.artifact_selectors {
            task(&selector.producer_subtask, output)?;
        }
    }
    for (output, from) in &dag.outputs.parameters {
        match from {
            DagOutputParameter::ValueFromParameter(selector) => drop(task(&selector.producer_subtask, output)?),
            DagOutputParameter::ValueFromOneof(selectors) => {
                for selector in &selectors.parameter_selectors {
                    task(&selector.producer_subtask, output)?;
                }
            }
        }
    }
    Ok(())
}

/// Every task that must have ended before `task` is looked at.
pub(crate) fn dependencies(task: &TaskSpec) -> BTreeSet<&str> {
    let parameters = task.inputs.parameters.values().flat_map(|input| {
        let output = input.task_output_parameter.as_ref().map(|o| o.producer_task.as_str());
        let status = input.task_final_status.as_ref().map(|s| s.producer_task.as_str());
        output.into_iter().chain(status)
    });
    let artifacts = task
        .inputs
        .artifacts
        .values()
        .filter_map(|i| i.task_output_artifact.as_ref().map(|o| o.producer_task.as_str()));
    task.dependent_tasks.iter().map(String::as_str).chain(parameters).chain(artifacts).collect()
}

fn check_cycle(name: &str, dag: &DagSpec) -> Result<(), SpecError> {
    let mut waiting: BTreeMap<&str, BTreeSet<&str>> =
        dag.tasks.iter().map(|(n, t)| (n.as_str(), dependencies(t))).collect();
    loop {
        let free: Vec<&str> = waiting.iter().filter(|(_, on)| on.is_empty()).map(|(n, _)| *n).collect();
        if free.is_empty() {
            break;
        }
        for done in free {
            waiting.remove(done);
            for on in waiting.values_mut() {
                on.remove(done);
            }
        }
    }
    match waiting.keys().next() {
        None => Ok(()),
        Some(task) => reference(format!("task {task} of {name}"), "it depends on itself by way of its dependencies"),
    }
}

/// Components that contain themselves would never end. Each component is entered once on any path; the count of paths
/// is bounded because a finished component is not entered again.
fn check_nesting<'a>(pipeline: &'a Pipeline, root: &'a str, path: &mut Vec<&'a str>) -> Result<(), SpecError> {
    fn visit<'a>(
        pipeline: &'a Pipeline,
        name: &'a str,
        path: &mut Vec<&'a str>,
        height: &mut BTreeMap<&'a str, usize>,
    ) -> Result<usize, SpecError> {
        if let Some(known) = height.get(name) {
            return Ok(*known);
        }
        if path.contains(&name) {
            return reference(format!("component {name}"), "it contains itself");
        }
        if path.len() >= MAX_NESTING {
            return reference(
                format!("component {name}"),
                format!("components are nested more than {MAX_NESTING} deep"),
            );
        }
        path.push(name);
        let mut tallest = 0;
        if let Some(Body::Dag(dag)) = pipeline.component(name).and_then(|c| pipeline.body(c)) {
            for task in dag.tasks.values() {
                tallest = tallest.max(1 + visit(pipeline, &task.component_ref.name, path, height)?);
            }
        }
        path.pop();
        if path.len() + tallest > MAX_NESTING {
            return reference(
                format!("component {name}"),
                format!("components are nested more than {MAX_NESTING} deep"),
            );
        }
        height.insert(name, tallest);
        Ok(tallest)
    }
    visit(pipeline, root, path, &mut BTreeMap::new()).map(drop)
}

fn check_platform(pipeline: &Pipeline) -> Result<(), SpecError> {
    for (name, platform) in &pipeline.platform.platforms {
        if name != "kubernetes" {
            return unsupported("the platform part", format!("the platform {name}"));
        }
        if !platform.config.is_empty() {
            return unsupported("the platform part", "platforms.kubernetes.config");
        }
        for (label, config) in &platform.deployment_spec.executors {
            check_executor(label, config)?;
        }
        let Some(config) = &platform.pipeline_config else { continue };
        if config.resource_ttl_on_completion != 0
            || config.resource_ttl_on_success != 0
            || config.resource_ttl_on_failure != 0
        {
            return unsupported("the pipeline's configuration", "a resource TTL (delete the run to delete its pods)");
        }
    }
    Ok(())
}

fn check_executor(label: &str, config: &ExecutorConfig) -> Result<(), SpecError> {
    let at = format!("the Kubernetes settings of {label}");
    if !config.pod_resource_claims.is_empty() {
        return unsupported(at, "podResourceClaims (dynamic resource allocation)");
    }
    if !matches!(config.image_pull_policy.as_str(), "" | "Always" | "IfNotPresent" | "Never") {
        return reference(at, format!("the image pull policy `{}` does not exist", config.image_pull_policy));
    }
    for variable in &config.field_path_as_env {
        if variable.name.starts_with("KFBOX_") {
            return reference(at, format!("the variable {} is kfbox's own", variable.name));
        }
    }
    if let Some(context) = &config.security_context
        && context.run_as_non_root == Some(true)
        && context.run_as_user.as_ref().is_some_and(|u| *u == 0 || *u == "0")
    {
        return reference(at, "securityContext.runAsUser is 0 (root), and runAsNonRoot is true");
    }
    for (n, volume) in config.generic_ephemeral_volume.iter().enumerate() {
        let at = format!("{at}, genericEphemeralVolume[{n}]");
        if volume.size.is_empty() {
            return reference(at, "its size is empty");
        }
        let modes = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"];
        if let Some(unknown) = volume.access_modes.iter().find(|m| !modes.contains(&m.as_str())) {
            return reference(at, format!("the access mode `{unknown}` does not exist"));
        }
    }
    check_mounts(config, &at)?;
    check_init_containers(config, &at)
}

/// A path relative to what the image calls its folder, or over the launcher, would only fail once the pod is made.
fn check_mounts(config: &ExecutorConfig, at: &str) -> Result<(), SpecError> {
    let claims = config.pvc_mount.iter().map(|m| ("pvcMount", &m.mount_path));
    let secrets = config.secret_as_volume.iter().map(|m| ("secretAsVolume", &m.mount_path));
    let configs = config.config_map_as_volume.iter().map(|m| ("configMapAsVolume", &m.mount_path));
    let empty = config.empty_dir_mounts.iter().map(|m| ("emptyDirMounts", &m.mount_path));
    let ephemeral = config.generic_ephemeral_volume.iter().map(|m| ("genericEphemeralVolume", &m.mount_path));
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (list, path) in claims.chain(secrets).chain(configs).chain(empty).chain(ephemeral) {
        let n = counts.entry(list).and_modify(|n| *n += 1).or_insert(0);
        let at = format!("{at}, {list}[{n}].mountPath");
        if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return reference(at, format!("`{path}` is no path from the root"));
        }
        if path.trim_end_matches('/') == "/kfbox" || path.starts_with("/kfbox/") {
            return reference(at, format!("`{path}` is where kfbox's launcher lies"));
        }
    }
    Ok(())
}

fn check_init_containers(config: &ExecutorConfig, at: &str) -> Result<(), SpecError> {
    let mut names = BTreeSet::new();
    for (n, container) in config.init_containers.iter().enumerate() {
        let at = format!("{at}, initContainers[{n}]");
        if container.name.is_empty() || container.image.trim().is_empty() {
            return reference(at, "it needs a name and an image");
        }
        if is_reserved(&container.name) || !names.insert(container.name.as_str()) {
            return reference(at, format!("the name {} belongs to another container of the pod", container.name));
        }
        if let Some(policy) = container.restart_policy.as_deref().filter(|p| !matches!(*p, "" | "Always")) {
            return reference(at, format!("restartPolicy is {policy}; only Always is possible"));
        }
        if container.env.iter().any(|v| v.name.is_empty()) {
            return reference(at, "a variable of env has no name");
        }
        for mount in &container.volume_mounts {
            if mount.volume_name.is_empty() || !mount.mount_path.starts_with('/') {
                let why = format!("volumeMounts: `{}` at `{}`", mount.volume_name, mount.mount_path);
                return reference(at, format!("{why} needs a volume's name and a path from the root"));
            }
        }
    }
    Ok(())
}

/// Names that upstream's own containers have.
fn is_reserved(container: &str) -> bool {
    matches!(container, "main" | "kfp-launcher")
}

/// A protobuf duration in JSON, such as `1.5s`, in milliseconds.
pub(crate) fn duration(text: &str) -> Option<u64> {
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be within range")]
    (0.0..=1e9).contains(&seconds).then_some((seconds * 1000.0) as u64)
}

/// The parameters of a run against what the pipeline declares; returns them complete, with defaults.
pub fn check_parameters(pipeline: &Pipeline, given: &Map<String, Value>) -> Result<Map<String, Value>, SpecError> {
    let declared = &pipeline.spec.root.input_definitions.parameters;
    if let Some(unknown) = given.keys().find(|name| !declared.contains_key(*name)) {
        let known: Vec<&str> = declared.keys().map(String::as_str).collect();
        let why = match known.as_slice() {
            [] => "the pipeline has no parameters".to_owned(),
            known => format!("the pipeline has no such parameter; it has {}", known.join(", ")),
        };
        return Err(SpecError::Parameter { name: unknown.clone(), why });
    }
    let mut complete = Map::new();
    for (name, definition) in declared {
        let chosen =
            given.get(name).filter(|v| !v.is_null()).or(definition.default_value.as_ref()).filter(|v| !v.is_null());
        let value = match chosen {
            Some(value) => value::coerce(value.clone(), definition)
                .map_err(|why| SpecError::Parameter { name: name.clone(), why })?,
            None if definition.is_optional => Value::Null,
            None => {
                return Err(SpecError::Parameter {
                    name: name.clone(),
                    why: "it has no default and needs a value".into(),
                });
            }
        };
        complete.insert(name.clone(), value);
    }
    if let Some(name) =
        pipeline.spec.root.input_definitions.artifacts.iter().find(|(_, a)| !a.is_optional).map(|(n, _)| n)
    {
        return Err(SpecError::Parameter {
            name: name.clone(),
            why: "a run cannot be given the input artifact of a pipeline".into(),
        });
    }
    Ok(complete)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    /// The upstream samples, where this machine has them.
    fn samples(folder: &str) -> Vec<PathBuf> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() { walk(&path, found) } else { found.push(path) }
            }
        }
        let mut found = Vec::new();
        for root in ["../../../shared/fixtures", "../../shared/fixtures"] {
            walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(root).join("kfp/pipelines").join(folder), &mut found);
        }
        found
    }

    #[test]
    fn upstream_samples_parse_and_broken_ones_are_refused() {
        for path in samples("valid").iter().chain(&samples("argo_compatibility")) {
            if let Err(error) = Pipeline::from_package(&std::fs::read(path).unwrap()) {
                panic!("{}: {error}", path.display());
            }
        }
        for path in samples("invalid") {
            let error = Pipeline::from_package(&std::fs::read(&path).unwrap()).err();
            let error = error.unwrap_or_else(|| panic!("{} was accepted", path.display())).to_string();
            assert!(error.len() > 20, "{}: {error}", path.display());
        }
    }

    const ECHO: &str = r"
components:
  comp-echo: {executorLabel: exec-echo, inputDefinitions: {parameters: {text: {parameterType: STRING}, n: {parameterType: NUMBER_INTEGER, isOptional: true}}}}
deploymentSpec: {executors: {exec-echo: {container: {image: busybox, command: [echo]}}}}
pipelineInfo: {name: echo}
root:
  dag: {tasks: {echo: {componentRef: {name: comp-echo}, taskInfo: {name: echo}, inputs: {parameters: {text: {componentInputParameter: text}}}}}}
  inputDefinitions: {parameters: {text: {parameterType: STRING}, n: {parameterType: NUMBER_INTEGER, defaultValue: 3.0, isOptional: true}}}
schemaVersion: 2.1.0
";

    fn refusal(from: &str, to: &str) -> String {
        let broken = ECHO.replace(from, to);
        assert_ne!(broken, ECHO, "{from}");
        Pipeline::from_package(broken.as_bytes()).err().unwrap_or_else(|| panic!("{to} was accepted")).to_string()
    }

    #[test]
    fn each_kind_of_mistake_is_named() {
        Pipeline::from_package(ECHO.as_bytes()).unwrap();
        for (from, to, part) in [
            ("name: comp-echo}, taskInfo", "name: comp-gone}, taskInfo", "comp-gone"),
            ("executorLabel: exec-echo", "executorLabel: exec-gone", "exec-gone"),
            ("pipelineInfo: {name: echo}", "pipelineInfo: {name: ''}", "no name"),
            ("components:", "componentz:", "componentz"),
            ("taskInfo: {name: echo}", "dependentTasks: [echo]", "depends on itself"),
            ("taskInfo: {name: echo}", "dependentTasks: [gone]", "gone"),
            ("taskInfo: {name: echo}", "triggerPolicy: {condition: '1 =='}", "1 =="),
            ("componentInputParameter: text", "componentInputParameter: gone", "gone"),
            ("inputs: {parameters: {text", "inputs: {parameters: {m", "text"),
            ("schemaVersion: 2.1.0", "schemaVersion: 9.0.0", "9.0.0"),
            ("container: {image: busybox, command: [echo]}", "customJob: {}", "customJob"),
            (", command: [echo]", "", "entrypoint"),
            (
                "parameterType: STRING}, n: {parameterType: NUMBER_INTEGER, isOptional",
                "parameterType: STRANGE}, n: {parameterType: NUMBER_INTEGER, isOptional",
                "comp-echo.inputDefinitions.parameters.text",
            ),
        ] {
            let message = refusal(from, to);
            assert!(message.contains(part), "{to}: {message}");
        }
    }

    #[test]
    fn whole_numbers_may_come_as_a_struct_carries_them() {
        let echo = ECHO.replace("taskInfo: {name: echo}", "retryPolicy: {maxRetryCount: 2.0}");
        let platform = "---\nplatforms: {kubernetes: {deploymentSpec: {executors: {exec-echo: {podAffinity: [{weight: 7.0, topologyKey: host}]}}}}}";
        let pipeline = Pipeline::from_package(format!("{echo}{platform}").as_bytes()).unwrap();
        let affinity = &pipeline.platform.platforms["kubernetes"].deployment_spec.executors["exec-echo"].pod_affinity;
        assert_eq!(affinity[0].weight, Some(7));
    }

    #[test]
    fn a_component_that_contains_itself_is_refused() {
        let loop_ = ECHO.replace("executorLabel: exec-echo", "dag: {tasks: {again: {componentRef: {name: comp-echo}, inputs: {parameters: {text: {componentInputParameter: text}}}}}}");
        assert!(Pipeline::from_package(loop_.as_bytes()).unwrap_err().to_string().contains("contains itself"));
    }

    #[test]
    fn a_runs_parameters_are_completed_and_checked() {
        let pipeline = Pipeline::from_package(ECHO.as_bytes()).unwrap();
        let check = |given: Value| check_parameters(&pipeline, given.as_object().unwrap());
        let complete = check(serde_json::json!({"text": "x"})).unwrap();
        assert_eq!(Value::Object(complete), serde_json::json!({"text": "x", "n": 3}));
        assert!(check(serde_json::json!({})).unwrap_err().to_string().contains("text"));
        assert!(
            check(serde_json::json!({"text": "x", "z": 1}))
                .unwrap_err()
                .to_string()
                .contains("no such parameter; it has ")
        );
        assert!(check(serde_json::json!({"text": "x", "n": 1.5})).unwrap_err().to_string().contains("an integer"));
    }
}
