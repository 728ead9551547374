//! The pod of one attempt: the user's image with the launcher mounted read-only, and what kfp-kubernetes asks for.
//! Built as JSON from typed parts; pure. Names, labels and scratch volumes follow
//! `backend/src/v2/compiler/argocompiler/container.go` upstream.

mod settings;

use super::{
    model::{RunState, Task, pod_name},
    placeholders::ExecutorInput,
    resolve,
};
use crate::{
    Config,
    spec::{
        Pipeline,
        ir::{ContainerSpec, InputParameter},
        value,
    },
};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use settings::Settings;
use std::collections::BTreeSet;

pub const RUN_LABEL: &str = "pipeline/runid";
pub const COMPONENT_LABEL: &str = "pipelines.kubeflow.org/v2_component";
pub const TASK_LABEL: &str = "pipelines.kubeflow.org/task_id";
/// The container that runs the user's command; upstream's name.
pub const MAIN: &str = "main";
/// Where a pipeline's workspace is mounted (`dsl.WORKSPACE_MOUNT_PATH`).
pub const WORKSPACE: &str = "/kfp-workspace";
const LAUNCHER_VOLUME: &str = "kfbox-launcher";
const LAUNCHER_MOUNT: &str = "/kfbox/launcher";
/// Where images that are artifacts are mounted; a model is in their folder `/models`.
const MODELCARS: &str = "/oci";
/// The launcher in every step's container.
pub(super) const LAUNCHER: &str = "/kfbox/launcher/kfbox-launcher";
/// Artifact paths lie under the first three; steps need not be root to write there, nor to their home's caches.
const SCRATCH: [(&str, &str); 6] = [
    ("minio-scratch", "/minio"),
    ("s3-scratch", "/s3"),
    ("gcs-scratch", "/gcs"),
    ("dot-local-scratch", "/.local"),
    ("dot-cache-scratch", "/.cache"),
    ("dot-config-scratch", "/.config"),
];

/// What an executor's settings may refer to.
pub(super) struct Scope<'a> {
    pub run: &'a RunState,
    pub parent: &'a Task,
    pub task: &'a Task,
    pub input: &'a ExecutorInput,
}

impl Scope<'_> {
    /// A setting that may come from a parameter. Optional parameters without a value give `None`.
    fn value(&self, from: &InputParameter) -> Result<Option<Value>, String> {
        let found = resolve::parameter(self.run, self.parent, from, &self.task.name, &self.task.id)?;
        Ok(found.map(|v| match v {
            Value::String(text) => Value::String(self.input.text(&text)),
            other => other,
        }))
    }

    fn name(&self, plain: &str, from: Option<&InputParameter>, what: &str) -> Result<Option<String>, String> {
        let Some(from) = from else { return Ok((!plain.is_empty()).then(|| plain.to_owned())) };
        match self.value(from).map_err(|why| format!("{what}: {why}"))? {
            Some(Value::String(name)) if !name.is_empty() => Ok(Some(name)),
            None => Ok(None),
            Some(other) => Err(format!("{what}: its name should be a string, and is {other}")),
        }
    }

    fn object(&self, from: &InputParameter, what: &str) -> Result<Option<Value>, String> {
        match self.value(from).map_err(|why| format!("{what}: {why}"))? {
            None => Ok(None),
            Some(Value::String(text)) => {
                serde_json::from_str(&text).map(Some).map_err(|e| format!("{what}: it is no JSON: {e}"))
            }
            Some(other) => Ok(Some(other)),
        }
    }
}

/// The pod of an attempt. `token` opens the task API for it.
pub(super) fn build(
    config: &Config,
    pipeline: &Pipeline,
    scope: &Scope<'_>,
    container: &ContainerSpec,
    token: &str,
) -> Result<Pod, String> {
    let (run, task) = (scope.run, scope.task);
    let name = task.pod_name.clone().unwrap_or_else(|| pod_name(&run.pipeline_name, &run.id, task));
    let component = pipeline.component(&task.component);
    let all = Settings::of(pipeline, scope, container)?;
    let own = all.own(component);
    let mut volumes = vec![
        json!({"name": LAUNCHER_VOLUME, "image": {"reference": config.launcher_image, "pullPolicy": "IfNotPresent"}}),
    ];
    let mut mounts = vec![json!({"name": LAUNCHER_VOLUME, "mountPath": LAUNCHER_MOUNT, "readOnly": true})];
    for (name, path) in SCRATCH {
        volumes.push(json!({"name": name, "emptyDir": {}}));
        mounts.push(json!({"name": name, "mountPath": path}));
    }
    for (n, reference) in modelcars(scope.input)?.into_iter().enumerate() {
        let name = format!("oci-{n}");
        let place = format!("{MODELCARS}/{}", reference.replace('/', "_"));
        mounts.push(json!({"name": name, "mountPath": place, "readOnly": true}));
        volumes.push(json!({"name": name, "image": {"reference": reference}}));
    }
    volumes.extend(own.volumes);
    mounts.extend(own.mounts);
    let mut env = own.env;
    for variable in &env {
        let name = variable["name"].as_str().unwrap_or_default();
        if name.starts_with("KFBOX_") {
            return Err(format!("the variable {name} is kfbox's own"));
        }
    }
    platform_env(&mut env, config, scope, token);
    // Upstream's own labels cannot be overridden: the engine finds its pods by them.
    let (mut labels, mut annotations) = (all.labels, all.annotations);
    for (name, value) in [
        (RUN_LABEL, run.id.clone()),
        (COMPONENT_LABEL, "true".into()),
        (TASK_LABEL, task.id.clone()),
        ("pipelines.kubeflow.org/run_id", run.id.clone()),
        ("component", label_value(&task.name)),
    ] {
        labels.insert(name.into(), value.into());
    }
    for (name, value) in [
        ("pipelines.kubeflow.org/run_name", run.display_name.clone()),
        ("pipelines.kubeflow.org/task_path", super::plan::shown_path(task).to_owned()),
        ("sidecar.istio.io/inject", "false".into()),
    ] {
        annotations.entry(name).or_insert_with(|| value.into());
    }
    let mut main = json!({
        "name": MAIN,
        "image": task.image,
        "command": [LAUNCHER],
        "env": env,
        "volumeMounts": mounts,
        "resources": own.resources,
    });
    let mut spec = json!({
        "restartPolicy": "Never",
        "serviceAccountName": run.service_account,
        "volumes": volumes,
    });
    let mut set = |on_main: bool, name: &str, value: Value| {
        if !settings::is_empty(&value) {
            let place = if on_main { &mut main } else { &mut spec };
            place[name] = value;
        }
    };
    set(true, "imagePullPolicy", json!(all.image_pull_policy));
    set(true, "securityContext", json!(all.security_context));
    set(false, "activeDeadlineSeconds", json!(all.active_deadline));
    set(false, "imagePullSecrets", json!(all.image_pull_secrets));
    set(false, "initContainers", json!(all.init_containers));
    set(false, "affinity", own.affinity);
    set(false, "tolerations", json!(own.tolerations));
    set(false, "nodeSelector", own.node_selector);
    spec["containers"] = json!([main]);
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": run.namespace, "labels": labels, "annotations": annotations},
        "spec": spec,
    });
    serde_json::from_value(pod).map_err(|e| format!("its Kubernetes settings make no valid pod: {e}"))
}

/// The images among a step's inputs, each once. Upstream runs them beside the step, as modelcars, and links to their files;
/// here they are volumes of the pod, which needs no shell in the image.
fn modelcars(input: &ExecutorInput) -> Result<BTreeSet<&str>, String> {
    let artifacts = input.artifacts.values().flatten();
    let found: BTreeSet<&str> = artifacts.filter_map(|a| a.uri.strip_prefix("oci://")).collect();
    match found.iter().find(|reference| reference.is_empty() || reference.starts_with('.')) {
        Some(reference) => Err(format!("oci://{reference} names no image")),
        None => Ok(found),
    }
}

/// What kfbox adds to the environment that a step asks for.
fn platform_env(env: &mut Vec<Value>, config: &Config, scope: &Scope<'_>, token: &str) {
    let (run, task) = (scope.run, scope.task);
    let set = |env: &[Value], name: &str| env.iter().any(|e| e["name"] == name);
    for (name, value) in [("PIP_INDEX_URL", &config.pip_index_url), ("PIP_TRUSTED_HOST", &config.pip_trusted_host)] {
        // One that the user set, or another way to configure pip, wins.
        if let Some(value) = value
            && !set(env, name)
            && !set(env, "PIP_CONFIG_FILE")
        {
            env.push(json!({"name": name, "value": value}));
        }
    }
    // A step's log is for what the step says, not for pip's advice to administrators.
    for (name, value) in [("PIP_DISABLE_PIP_VERSION_CHECK", "1"), ("PIP_ROOT_USER_ACTION", "ignore")] {
        if !set(env, name) {
            env.push(json!({"name": name, "value": value}));
        }
    }
    let url = config.task_api_url.trim_end_matches('/');
    for (name, mut source) in [
        ("KFP_POD_NAME", json!({"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})),
        ("KFP_POD_UID", json!({"valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}})),
        ("KFP_RUN_ID", json!({"value": run.id})),
        ("KFBOX_TASK_URL", json!({"value": format!("{url}/v1/runs/{}/tasks/{}/{}", run.id, task.id, task.attempt)})),
        ("KFBOX_TASK_TOKEN", json!({"value": token})),
    ] {
        source["name"] = json!(name);
        env.push(source);
    }
}

/// What `dsl.TaskConfig` inputs of a step hold: the settings that its component passes on, in upstream's shape (Go's
/// JSON of Kubernetes' types).
pub(super) fn task_config(pipeline: &Pipeline, scope: &Scope<'_>, container: &ContainerSpec) -> Result<Value, String> {
    let passed = Settings::of(pipeline, scope, container)?.passed_on(pipeline.component(&scope.task.component));
    let or_null = |value: Value| if settings::is_empty(&value) { Value::Null } else { value };
    Ok(json!({
        "affinity": or_null(passed.affinity),
        "tolerations": or_null(json!(passed.tolerations)),
        "nodeSelector": or_null(passed.node_selector),
        "env": or_null(json!(passed.env)),
        "volumes": or_null(json!(passed.volumes)),
        "volumeMounts": or_null(json!(passed.mounts)),
        "resources": passed.resources,
    }))
}

/// Whether a step is given a path in the workspace or an artifact that lies there.
pub(super) fn needs_workspace(input: &ExecutorInput) -> bool {
    let in_parameters = input.parameters.values().any(|v| value::text(v).contains(WORKSPACE));
    let in_artifacts = input.artifacts.values().flatten().any(|a| a.lies_in_workspace());
    in_parameters || in_artifacts
}

pub(super) fn workspace_claim(run_id: &str) -> String {
    format!("kfp-workspace-{run_id}")
}

/// At most 63 characters that a label's value may hold.
fn label_value(text: &str) -> String {
    let kept: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).take(63).collect();
    kept.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}
