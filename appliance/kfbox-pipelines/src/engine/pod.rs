//! The pod of one attempt: the user's image with the launcher mounted read-only, and what kfp-kubernetes asks for.
//! Built as JSON from typed parts; pure. Names, labels and scratch volumes follow
//! `backend/src/v2/compiler/argocompiler/container.go` upstream.

use super::{
    model::{RunState, Task, pod_name},
    placeholders::ExecutorInput,
    resolve,
};
use crate::{
    Config,
    spec::{
        Pipeline,
        ir::{ContainerSpec, InputParameter, ResourceSpec},
        platform::{ExecutorConfig, ObjectAsEnv, ObjectAsVolume},
        value,
    },
};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

pub const RUN_LABEL: &str = "pipeline/runid";
pub const COMPONENT_LABEL: &str = "pipelines.kubeflow.org/v2_component";
pub const TASK_LABEL: &str = "pipelines.kubeflow.org/task_id";
/// The container that runs the user's command; upstream's name.
pub const MAIN: &str = "main";
/// Where a pipeline's workspace is mounted (`dsl.WORKSPACE_MOUNT_PATH`).
pub const WORKSPACE: &str = "/kfp-workspace";
const LAUNCHER_MOUNT: &str = "/kfbox/launcher";

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

#[derive(Default)]
struct Parts {
    volumes: Vec<Value>,
    mounts: Vec<Value>,
    env: Vec<Value>,
    spec: Map<String, Value>,
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
}

impl Parts {
    fn mount(&mut self, name: &str, path: &str, source: Value) {
        let mut volume = json!({"name": name});
        if let (Value::Object(volume), Value::Object(source)) = (&mut volume, source) {
            volume.extend(source);
        }
        self.volumes.push(volume);
        self.mounts.push(json!({"name": name, "mountPath": path}));
    }
}

/// An integer that protobuf's JSON writes as a string.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

/// Everything but the volume and environment that every step has comes from `pipeline`.
pub(super) fn build(
    config: &Config,
    pipeline: &Pipeline,
    scope: &Scope<'_>,
    container: &ContainerSpec,
    token: &str,
) -> Result<Pod, String> {
    let (run, task) = (scope.run, scope.task);
    let name = task.pod_name.clone().unwrap_or_else(|| pod_name(&run.pipeline_name, &run.id, task));
    let mut parts = Parts::default();
    parts.volumes.push(
        json!({"name": "kfbox-launcher", "image": {"reference": config.launcher_image, "pullPolicy": "IfNotPresent"}}),
    );
    parts.mounts.push(json!({"name": "kfbox-launcher", "mountPath": LAUNCHER_MOUNT, "readOnly": true}));
    // Artifact paths lie under the first three; steps need not be root to write there, nor to their home's caches.
    for (name, path) in [
        ("minio-scratch", "/minio"),
        ("s3-scratch", "/s3"),
        ("gcs-scratch", "/gcs"),
        ("dot-local-scratch", "/.local"),
        ("dot-cache-scratch", "/.cache"),
        ("dot-config-scratch", "/.config"),
    ] {
        parts.mount(name, path, json!({"emptyDir": {}}));
    }
    for variable in &container.env {
        if variable.name.starts_with("KFBOX_") {
            return Err(format!("the variable {} is kfbox's own", variable.name));
        }
        parts.env.push(json!({"name": variable.name, "value": scope.input.text(&variable.value)}));
    }
    let component = pipeline.component(&task.component);
    if let Some(settings) = component.and_then(|c| pipeline.kubernetes(c)) {
        apply(&mut parts, scope, settings)?;
    }
    if needs_workspace(scope.input) {
        let claim = workspace_claim(&run.id);
        parts.mount("kfp-workspace", WORKSPACE, json!({"persistentVolumeClaim": {"claimName": claim}}));
    }
    let set = |parts: &Parts, name: &str| parts.env.iter().any(|e| e["name"] == name);
    for (name, value) in [("PIP_INDEX_URL", &config.pip_index_url), ("PIP_TRUSTED_HOST", &config.pip_trusted_host)] {
        // One that the user set, or another way to configure pip, wins.
        if let Some(value) = value
            && !set(&parts, name)
            && !set(&parts, "PIP_CONFIG_FILE")
        {
            parts.env.push(json!({"name": name, "value": value}));
        }
    }
    // A step's log is for what the step says, not for pip's advice to administrators.
    for name in ["PIP_DISABLE_PIP_VERSION_CHECK", "PIP_ROOT_USER_ACTION"] {
        if !set(&parts, name) {
            let value = if name == "PIP_ROOT_USER_ACTION" { "ignore" } else { "1" };
            parts.env.push(json!({"name": name, "value": value}));
        }
    }
    let own = [
        ("KFP_POD_NAME", json!({"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})),
        ("KFP_POD_UID", json!({"valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}})),
        ("KFP_RUN_ID", json!({"value": run.id})),
        (
            "KFBOX_TASK_URL",
            json!({"value": format!("{}/v1/runs/{}/tasks/{}/{}", config.task_api_url.trim_end_matches('/'), run.id, task.id, task.attempt)}),
        ),
        ("KFBOX_TASK_TOKEN", json!({"value": token})),
    ];
    for (name, mut source) in own {
        source["name"] = json!(name);
        parts.env.push(source);
    }
    // Upstream's own labels cannot be overridden: the engine finds its pods by them.
    let labels = [
        (RUN_LABEL, run.id.clone()),
        (COMPONENT_LABEL, "true".into()),
        (TASK_LABEL, task.id.clone()),
        ("pipelines.kubeflow.org/run_id", run.id.clone()),
        ("component", label_value(&task.name)),
    ];
    for (name, value) in labels {
        parts.labels.insert(name.into(), value.into());
    }
    for (name, value) in [
        ("pipelines.kubeflow.org/run_name", run.display_name.clone()),
        ("pipelines.kubeflow.org/task_path", super::plan::shown_path(task).to_owned()),
        ("sidecar.istio.io/inject", "false".into()),
    ] {
        parts.annotations.entry(name).or_insert_with(|| value.into());
    }
    let mut main = json!({
        "name": MAIN,
        "image": task.image,
        "command": [format!("{LAUNCHER_MOUNT}/kfbox-launcher")],
        "env": parts.env,
        "volumeMounts": parts.mounts,
        "resources": resources(container.resources.as_ref(), scope.input)?,
    });
    for key in ["imagePullPolicy", "securityContext"] {
        if let Some(value) = parts.spec.remove(key) {
            main[key] = value;
        }
    }
    let mut spec = json!({
        "restartPolicy": "Never",
        "serviceAccountName": run.service_account,
        "containers": [main],
        "volumes": parts.volumes,
    });
    if let Value::Object(spec) = &mut spec {
        spec.extend(parts.spec);
    }
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": run.namespace, "labels": parts.labels, "annotations": parts.annotations},
        "spec": spec,
    });
    serde_json::from_value(pod).map_err(|e| format!("its Kubernetes settings make no valid pod: {e}"))
}

/// Whether a step is given a path in the workspace or an artifact that lies there.
pub(super) fn needs_workspace(input: &ExecutorInput) -> bool {
    let in_parameters = input.parameters.values().any(|v| value::text(v).contains(WORKSPACE));
    let in_artifacts =
        input.artifacts.values().flatten().any(|a| a.metadata.get("_kfp_workspace") == Some(&Value::Bool(true)));
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

fn resources(spec: Option<&ResourceSpec>, input: &ExecutorInput) -> Result<Value, String> {
    let Some(spec) = spec else { return Ok(json!({})) };
    let quantity = |new: &str, old: f64, unit: &str| {
        if !new.is_empty() {
            Some(input.text(new))
        } else if old > 0.0 {
            Some(format!("{old}{unit}"))
        } else {
            None
        }
    };
    let (mut limits, mut requests) = (Map::new(), Map::new());
    for (is_limit, name, found) in [
        (true, "cpu", quantity(&spec.resource_cpu_limit, spec.cpu_limit, "")),
        (true, "memory", quantity(&spec.resource_memory_limit, spec.memory_limit, "G")),
        (false, "cpu", quantity(&spec.resource_cpu_request, spec.cpu_request, "")),
        (false, "memory", quantity(&spec.resource_memory_request, spec.memory_request, "G")),
    ] {
        if let Some(found) = found {
            let map = if is_limit { &mut limits } else { &mut requests };
            map.insert(name.into(), found.into());
        }
    }
    if let Some(accelerator) = &spec.accelerator {
        let kind = if accelerator.resource_type.is_empty() {
            accelerator.kind.clone()
        } else {
            input.text(&accelerator.resource_type)
        };
        let count = if accelerator.resource_count.is_empty() {
            accelerator.count.as_ref().and_then(integer).filter(|n| *n > 0).map(|n| n.to_string())
        } else {
            Some(input.text(&accelerator.resource_count))
        };
        if let Some(count) = count.filter(|_| !kind.is_empty()) {
            if !kind.contains('/') {
                return Err(format!(
                    "the accelerator type {kind} is no resource of Kubernetes, such as nvidia.com/gpu"
                ));
            }
            limits.insert(kind, count.into());
        }
    }
    Ok(json!({"limits": limits, "requests": requests}))
}

fn apply(parts: &mut Parts, scope: &Scope<'_>, settings: &ExecutorConfig) -> Result<(), String> {
    volumes_of(parts, scope, &settings.secret_as_volume, "secret")?;
    volumes_of(parts, scope, &settings.config_map_as_volume, "configMap")?;
    env_of(parts, scope, &settings.secret_as_env, "secretKeyRef")?;
    env_of(parts, scope, &settings.config_map_as_env, "configMapKeyRef")?;
    for mount in &settings.pvc_mount {
        let from = mount.pvc_name_parameter.clone().unwrap_or_else(|| InputParameter {
            task_output_parameter: mount.task_output_parameter.clone(),
            component_input_parameter: mount.component_input_parameter.clone(),
            ..InputParameter::default()
        });
        let constant = mount.constant.clone().unwrap_or_default();
        let from = if constant.is_empty() { Some(&from) } else { None };
        let claim = scope.name(&constant, from, "a PVC mount")?.ok_or("a PVC mount: the claim has no name")?;
        let name = format!("pvc-{}", parts.volumes.len());
        parts.mount(&name, &mount.mount_path, json!({"persistentVolumeClaim": {"claimName": claim}}));
        if !mount.sub_path.is_empty()
            && let Some(last) = parts.mounts.last_mut()
        {
            last["subPath"] = json!(mount.sub_path);
        }
    }
    for mount in &settings.empty_dir_mounts {
        let mut source = Map::new();
        if let Some(medium) = mount.medium.as_ref().filter(|m| !m.is_empty()) {
            source.insert("medium".into(), json!(medium));
        }
        if let Some(limit) = mount.size_limit.as_ref().filter(|m| !m.is_empty()) {
            source.insert("sizeLimit".into(), json!(limit));
        }
        parts.mount(&mount.volume_name, &mount.mount_path, json!({"emptyDir": source}));
    }
    if let Some(shared) = &settings.enabled_shared_memory {
        let name = if shared.volume_name.is_empty() { "shm" } else { &shared.volume_name };
        let mut source = json!({"medium": "Memory"});
        if !shared.size.is_empty() {
            source["sizeLimit"] = json!(shared.size);
        }
        parts.mount(name, "/dev/shm", json!({"emptyDir": source}));
    }
    for variable in &settings.field_path_as_env {
        parts.env.push(json!({"name": variable.name, "valueFrom": {"fieldRef": {"fieldPath": variable.field_path}}}));
    }
    if let Some(metadata) = &settings.pod_metadata {
        parts.labels.extend(metadata.labels.iter().map(|(k, v)| (k.clone(), json!(v))));
        parts.annotations.extend(metadata.annotations.iter().map(|(k, v)| (k.clone(), json!(v))));
    }
    if !settings.image_pull_policy.is_empty() {
        parts.spec.insert("imagePullPolicy".into(), json!(settings.image_pull_policy));
    }
    if let Some(seconds) = settings.active_deadline_seconds.as_ref().and_then(integer).filter(|s| *s > 0) {
        parts.spec.insert("activeDeadlineSeconds".into(), json!(seconds));
    }
    let mut secrets = Vec::new();
    for secret in &settings.image_pull_secret {
        if let Some(name) =
            scope.name(&secret.secret_name, secret.secret_name_parameter.as_ref(), "an image pull secret")?
        {
            secrets.push(json!({"name": name}));
        }
    }
    if !secrets.is_empty() {
        parts.spec.insert("imagePullSecrets".into(), Value::Array(secrets));
    }
    scheduling(parts, scope, settings)?;
    if let Some(context) = &settings.security_context {
        let mut value = json!({});
        for (name, number) in [("runAsUser", &context.run_as_user), ("runAsGroup", &context.run_as_group)] {
            if let Some(number) = number.as_ref().and_then(integer) {
                value[name] = json!(number);
            }
        }
        if let Some(non_root) = context.run_as_non_root {
            value["runAsNonRoot"] = json!(non_root);
        }
        parts.spec.insert("securityContext".into(), value);
    }
    Ok(())
}

fn scheduling(parts: &mut Parts, scope: &Scope<'_>, settings: &ExecutorConfig) -> Result<(), String> {
    if let Some(selector) = &settings.node_selector {
        let mut labels = json!(selector.labels);
        if let Some(from) = &selector.node_selector_json
            && let Some(found) = scope.object(from, "the node selector")?
        {
            labels = found;
        }
        parts.spec.insert("nodeSelector".into(), labels);
    }
    let (mut required, mut preferred) = (Vec::new(), Vec::new());
    let mut whole = None;
    for term in &settings.node_affinity {
        if let Some(from) = &term.node_affinity_json {
            whole = scope.object(from, "the node affinity")?.or(whole);
            continue;
        }
        let selector = json!({"matchExpressions": term.match_expressions, "matchFields": term.match_fields});
        match term.weight {
            Some(weight) => preferred.push(json!({"weight": weight, "preference": selector})),
            None => required.push(selector),
        }
    }
    let mut affinity = whole.unwrap_or_else(|| json!({}));
    if !required.is_empty() {
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = json!({"nodeSelectorTerms": required});
    }
    if !preferred.is_empty() {
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = json!(preferred);
    }
    if affinity.as_object().is_some_and(|a| !a.is_empty()) {
        parts.spec.insert("affinity".into(), json!({"nodeAffinity": affinity}));
    }
    let mut tolerations = Vec::new();
    for toleration in &settings.tolerations {
        if let Some(from) = &toleration.toleration_json {
            match scope.object(from, "a toleration")? {
                Some(Value::Array(several)) => tolerations.extend(several),
                Some(one) if one.as_object().is_some_and(|o| !o.is_empty()) => tolerations.push(one),
                _ => {}
            }
            continue;
        }
        let mut value = Map::new();
        for (name, text) in [
            ("key", &toleration.key),
            ("operator", &toleration.operator),
            ("value", &toleration.value),
            ("effect", &toleration.effect),
        ] {
            if !text.is_empty() {
                value.insert(name.into(), json!(text));
            }
        }
        if let Some(seconds) = toleration.toleration_seconds.as_ref().and_then(integer) {
            value.insert("tolerationSeconds".into(), json!(seconds));
        }
        tolerations.push(Value::Object(value));
    }
    if !tolerations.is_empty() {
        parts.spec.insert("tolerations".into(), Value::Array(tolerations));
    }
    Ok(())
}

fn volumes_of(parts: &mut Parts, scope: &Scope<'_>, objects: &[ObjectAsVolume], kind: &str) -> Result<(), String> {
    for object in objects {
        let what = format!("a {kind} as volume");
        let Some(name) = scope.name(&object.name, object.name_parameter.as_ref(), &what)? else {
            if object.optional == Some(true) || object.name_parameter.is_some() {
                continue;
            }
            return Err(format!("{what}: it has no name"));
        };
        let mut source = json!({if kind == "secret" { "secretName" } else { "name" }: name});
        if let Some(optional) = object.optional {
            source["optional"] = json!(optional);
        }
        let volume = format!("{}-{}", kind.to_ascii_lowercase(), parts.volumes.len());
        parts.mount(&volume, &object.mount_path, json!({kind: source}));
    }
    Ok(())
}

fn env_of(parts: &mut Parts, scope: &Scope<'_>, objects: &[ObjectAsEnv], reference: &str) -> Result<(), String> {
    for object in objects {
        let Some(name) = scope.name(&object.name, object.name_parameter.as_ref(), "an object as environment")? else {
            continue;
        };
        for pair in &object.key_to_env {
            let mut source = json!({"name": name, "key": pair.key});
            if let Some(optional) = object.optional {
                source["optional"] = json!(optional);
            }
            parts.env.push(json!({"name": pair.env_var, "valueFrom": {reference: source}}));
        }
    }
    Ok(())
}
