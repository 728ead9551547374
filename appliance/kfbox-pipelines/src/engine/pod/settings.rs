//! What a step asks of Kubernetes beyond its command: resources, environment and kfp-kubernetes' settings, as JSON of a
//! pod's parts. `extendPodSpecPatch` and `initPodSpecPatch` in `backend/src/v2/driver` upstream, which ignore pod
//! affinity and shared memory; here they are applied. Pure.

use super::{LAUNCHER_VOLUME, Scope, WORKSPACE, needs_workspace, workspace_claim};
use crate::{
    engine::placeholders::ExecutorInput,
    spec::{
        Pipeline,
        ir::{ComponentSpec, ContainerSpec, InputParameter, ResourceSpec, TaskConfigField},
        platform::{
            EphemeralVolume, ExecutorConfig, InitContainer, ObjectAsEnv, ObjectAsVolume, PodAffinity, Requirement,
        },
    },
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What a component may pass on to what it starts itself, instead of having it or as well.
#[derive(Default, Clone)]
pub(super) struct Shareable {
    pub env: Vec<Value>,
    pub volumes: Vec<Value>,
    pub mounts: Vec<Value>,
    pub affinity: Value,
    pub tolerations: Vec<Value>,
    pub node_selector: Value,
    pub resources: Value,
}

#[derive(Default)]
pub(super) struct Settings {
    shareable: Shareable,
    /// Volumes that are the pod's own in any case.
    volumes: Vec<Value>,
    mounts: Vec<Value>,
    pub labels: Map<String, Value>,
    pub annotations: Map<String, Value>,
    pub image_pull_policy: String,
    pub image_pull_secrets: Vec<Value>,
    pub active_deadline: Option<i64>,
    pub security_context: Value,
    pub init_containers: Vec<Value>,
}

pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// An integer that protobuf's JSON writes as a string.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

impl Settings {
    pub fn of(pipeline: &Pipeline, scope: &Scope<'_>, container: &ContainerSpec) -> Result<Self, String> {
        let mut all = Self::default();
        all.shareable.resources = resources(container.resources.as_ref(), scope.input)?;
        for variable in &container.env {
            all.shareable.env.push(json!({"name": variable.name, "value": scope.input.text(&variable.value)}));
        }
        if needs_workspace(scope.input) {
            let claim = workspace_claim(&scope.run.id);
            all.share("kfp-workspace", WORKSPACE, json!({"persistentVolumeClaim": {"claimName": claim}}));
        }
        if let Some(settings) = pipeline.component(&scope.task.component).and_then(|c| pipeline.kubernetes(c)) {
            all.apply(scope, settings)?;
        }
        Ok(all)
    }

    /// What the step's own pod gets.
    pub fn own(&self, component: Option<&ComponentSpec>) -> Shareable {
        let passed = component.map(|c| c.task_config_passthroughs.as_slice()).unwrap_or_default();
        let mut own =
            self.shareable.keep(|field| passed.iter().rev().find(|p| p.field == field).is_none_or(|p| p.apply_to_task));
        own.volumes.extend(self.volumes.iter().cloned());
        own.mounts.extend(self.mounts.iter().cloned());
        own
    }

    /// What its `dsl.TaskConfig` holds.
    pub fn passed_on(&self, component: Option<&ComponentSpec>) -> Shareable {
        let passed = component.map(|c| c.task_config_passthroughs.as_slice()).unwrap_or_default();
        self.shareable.keep(|field| passed.iter().any(|p| p.field == field))
    }

    /// A volume under the name that upstream gives it, which init containers may use. One source mounted twice is one
    /// volume; two sources of one name are two.
    fn share(&mut self, name: &str, path: &str, source: Value) {
        let wanted: String = name.chars().map(|c| if c == '.' { '-' } else { c }).take(60).collect();
        let taken = |volume: &str| volume == LAUNCHER_VOLUME || super::SCRATCH.iter().any(|(n, _)| *n == volume);
        let mut name = wanted.clone();
        for n in 1.. {
            match self.shareable.volumes.iter().find(|v| v["name"] == name.as_str()) {
                None if !taken(&name) => {
                    self.shareable.volumes.push(with_name(&name, &source));
                    break;
                }
                Some(known) if *known == with_name(&name, &source) => break,
                _ => name = format!("{wanted}-{n}"),
            }
        }
        self.shareable.mounts.push(json!({"name": name, "mountPath": path}));
    }

    fn keep_to_itself(&mut self, name: &str, path: &str, source: &Value) {
        self.volumes.push(with_name(name, source));
        self.mounts.push(json!({"name": name, "mountPath": path}));
    }

    fn apply(&mut self, scope: &Scope<'_>, settings: &ExecutorConfig) -> Result<(), String> {
        self.claims(scope, settings)?;
        self.objects(scope, &settings.secret_as_volume, "secret")?;
        self.variables(scope, &settings.secret_as_env, "secretKeyRef")?;
        self.objects(scope, &settings.config_map_as_volume, "configMap")?;
        self.variables(scope, &settings.config_map_as_env, "configMapKeyRef")?;
        self.scratch(settings);
        for variable in &settings.field_path_as_env {
            let source = json!({"fieldRef": {"fieldPath": variable.field_path}});
            self.shareable.env.push(json!({"name": variable.name, "valueFrom": source}));
        }
        if let Some(metadata) = &settings.pod_metadata {
            self.labels.extend(metadata.labels.iter().map(|(k, v)| (k.clone(), json!(v))));
            self.annotations.extend(metadata.annotations.iter().map(|(k, v)| (k.clone(), json!(v))));
        }
        self.image_pull_policy.clone_from(&settings.image_pull_policy);
        self.active_deadline = settings.active_deadline_seconds.as_ref().and_then(integer).filter(|s| *s > 0);
        for secret in &settings.image_pull_secret {
            let from = secret.secret_name_parameter.as_ref();
            if let Some(name) = scope.name(&secret.secret_name, from, "an image pull secret")? {
                self.image_pull_secrets.push(json!({"name": name}));
            }
        }
        self.scheduling(scope, settings)?;
        if let Some(context) = &settings.security_context {
            let mut value = json!({"capabilities": {"drop": ["ALL"]}});
            for (name, number) in [("runAsUser", &context.run_as_user), ("runAsGroup", &context.run_as_group)] {
                if let Some(number) = number.as_ref().and_then(integer) {
                    value[name] = json!(number);
                }
            }
            if let Some(non_root) = context.run_as_non_root {
                value["runAsNonRoot"] = json!(non_root);
            }
            self.security_context = value;
        }
        self.init_containers = settings.init_containers.iter().map(init_container).collect();
        Ok(())
    }

    fn claims(&mut self, scope: &Scope<'_>, settings: &ExecutorConfig) -> Result<(), String> {
        for mount in &settings.pvc_mount {
            let from = mount.pvc_name_parameter.clone().unwrap_or_else(|| InputParameter {
                task_output_parameter: mount.task_output_parameter.clone(),
                component_input_parameter: mount.component_input_parameter.clone(),
                ..InputParameter::default()
            });
            let constant = mount.constant.clone().unwrap_or_default();
            let from = if constant.is_empty() { Some(&from) } else { None };
            let claim = scope.name(&constant, from, "a PVC mount")?.ok_or("a PVC mount: the claim has no name")?;
            self.share(&claim, &mount.mount_path, json!({"persistentVolumeClaim": {"claimName": claim}}));
            if !mount.sub_path.is_empty()
                && let Some(last) = self.shareable.mounts.last_mut()
            {
                last["subPath"] = json!(mount.sub_path);
            }
        }
        Ok(())
    }

    /// Volumes that live as long as the pod.
    fn scratch(&mut self, settings: &ExecutorConfig) {
        for volume in &settings.generic_ephemeral_volume {
            self.keep_to_itself(&volume.volume_name, &volume.mount_path, &ephemeral(volume));
        }
        for mount in &settings.empty_dir_mounts {
            let mut source = Map::new();
            if let Some(medium) = mount.medium.as_ref().filter(|m| !m.is_empty()) {
                source.insert("medium".into(), json!(medium));
            }
            if let Some(limit) = mount.size_limit.as_ref().filter(|m| !m.is_empty()) {
                source.insert("sizeLimit".into(), json!(limit));
            }
            self.keep_to_itself(&mount.volume_name, &mount.mount_path, &json!({"emptyDir": source}));
        }
        if let Some(shared) = &settings.enabled_shared_memory {
            let name = if shared.volume_name.is_empty() { "shm" } else { &shared.volume_name };
            let mut source = json!({"medium": "Memory"});
            if !shared.size.is_empty() {
                source["sizeLimit"] = json!(shared.size);
            }
            self.keep_to_itself(name, "/dev/shm", &json!({"emptyDir": source}));
        }
    }

    fn scheduling(&mut self, scope: &Scope<'_>, settings: &ExecutorConfig) -> Result<(), String> {
        if let Some(selector) = &settings.node_selector {
            self.shareable.node_selector = match &selector.node_selector_json {
                Some(from) => scope.object(from, "the node selector")?.unwrap_or(Value::Null),
                None => json!(selector.labels),
            };
        }
        let mut affinity = Map::new();
        for (name, found) in [
            ("nodeAffinity", node_affinity(scope, settings)?),
            ("podAffinity", pod_affinity(&settings.pod_affinity, false)),
            ("podAntiAffinity", pod_affinity(&settings.pod_affinity, true)),
        ] {
            if !is_empty(&found) {
                affinity.insert(name.into(), found);
            }
        }
        self.shareable.affinity = Value::Object(affinity);
        for toleration in &settings.tolerations {
            if let Some(from) = &toleration.toleration_json {
                match scope.object(from, "a toleration")? {
                    Some(Value::Array(several)) => self.shareable.tolerations.extend(several),
                    Some(one) if one.as_object().is_some_and(|o| !o.is_empty()) => self.shareable.tolerations.push(one),
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
            self.shareable.tolerations.push(Value::Object(value));
        }
        Ok(())
    }

    fn objects(&mut self, scope: &Scope<'_>, objects: &[ObjectAsVolume], kind: &str) -> Result<(), String> {
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
            self.share(&name, &object.mount_path, json!({kind: source}));
        }
        Ok(())
    }

    fn variables(&mut self, scope: &Scope<'_>, objects: &[ObjectAsEnv], reference: &str) -> Result<(), String> {
        for object in objects {
            let Some(name) = scope.name(&object.name, object.name_parameter.as_ref(), "an object as environment")?
            else {
                continue;
            };
            for pair in &object.key_to_env {
                let mut source = json!({"name": name, "key": pair.key});
                if let Some(optional) = object.optional {
                    source["optional"] = json!(optional);
                }
                self.shareable.env.push(json!({"name": pair.env_var, "valueFrom": {reference: source}}));
            }
        }
        Ok(())
    }
}

impl Shareable {
    fn keep(&self, wanted: impl Fn(TaskConfigField) -> bool) -> Self {
        let list = |field, values: &Vec<Value>| if wanted(field) { values.clone() } else { Vec::new() };
        let one = |field, value: &Value| if wanted(field) { value.clone() } else { Value::Null };
        let resources = one(TaskConfigField::Resources, &self.resources);
        Self {
            env: list(TaskConfigField::Env, &self.env),
            volumes: list(TaskConfigField::KubernetesVolumes, &self.volumes),
            mounts: list(TaskConfigField::KubernetesVolumes, &self.mounts),
            affinity: one(TaskConfigField::KubernetesAffinity, &self.affinity),
            tolerations: list(TaskConfigField::KubernetesTolerations, &self.tolerations),
            node_selector: one(TaskConfigField::KubernetesNodeSelector, &self.node_selector),
            resources: if resources.is_null() { json!({}) } else { resources },
        }
    }
}

fn with_name(name: &str, source: &Value) -> Value {
    let mut volume = source.clone();
    volume["name"] = json!(name);
    volume
}

fn ephemeral(volume: &EphemeralVolume) -> Value {
    let mut claim = json!({
        "accessModes": volume.access_modes,
        "resources": {"requests": {"storage": volume.size}},
    });
    if !volume.default_storage_class {
        claim["storageClassName"] = json!(volume.storage_class_name);
    }
    let mut template = json!({"spec": claim});
    if let Some(metadata) = &volume.metadata {
        template["metadata"] = json!({"labels": metadata.labels, "annotations": metadata.annotations});
    }
    json!({"ephemeral": {"volumeClaimTemplate": template}})
}

fn node_affinity(scope: &Scope<'_>, settings: &ExecutorConfig) -> Result<Value, String> {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let (mut required, mut preferred) = (Vec::new(), Vec::new());
    for term in &settings.node_affinity {
        if let Some(from) = &term.node_affinity_json {
            let Some(whole) = scope.object(from, "the node affinity")? else { continue };
            let Value::Object(whole) = whole else { return Err("the node affinity: it is no object".into()) };
            for (name, value) in whole {
                match (name.as_str(), value) {
                    (REQUIRED, value) => {
                        required.extend(value["nodeSelectorTerms"].as_array().cloned().unwrap_or_default());
                    }
                    (PREFERRED, Value::Array(terms)) => preferred.extend(terms),
                    (other, _) => {
                        return Err(format!("the node affinity: it has no field {other}, or of another type"));
                    }
                }
            }
            continue;
        }
        if term.match_expressions.is_empty() && term.match_fields.is_empty() {
            continue;
        }
        let selector = json!({"matchExpressions": term.match_expressions, "matchFields": term.match_fields});
        match term.weight {
            Some(weight) => preferred.push(json!({"weight": weight, "preference": selector})),
            None => required.push(selector),
        }
    }
    let mut affinity = json!({});
    if !required.is_empty() {
        affinity[REQUIRED] = json!({"nodeSelectorTerms": required});
    }
    if !preferred.is_empty() {
        affinity[PREFERRED] = json!(preferred);
    }
    Ok(affinity)
}

fn pod_affinity(terms: &[PodAffinity], anti: bool) -> Value {
    fn selector(labels: &BTreeMap<String, String>, expressions: &[Requirement]) -> Option<Value> {
        let mut selector = Map::new();
        if !labels.is_empty() {
            selector.insert("matchLabels".into(), json!(labels));
        }
        if !expressions.is_empty() {
            selector.insert("matchExpressions".into(), json!(expressions));
        }
        (!selector.is_empty()).then_some(Value::Object(selector))
    }
    let (mut required, mut preferred) = (Vec::new(), Vec::new());
    for term in terms.iter().filter(|t| t.anti.unwrap_or(false) == anti) {
        let mut value = json!({"topologyKey": term.topology_key});
        if let Some(pods) = selector(&term.match_pod_labels, &term.match_pod_expressions) {
            value["labelSelector"] = pods;
        }
        if let Some(namespaces) = selector(&term.match_namespace_labels, &term.match_namespace_expressions) {
            value["namespaceSelector"] = namespaces;
        }
        if !term.namespaces.is_empty() {
            value["namespaces"] = json!(term.namespaces);
        }
        match term.weight {
            Some(weight) => preferred.push(json!({"weight": weight, "podAffinityTerm": value})),
            None => required.push(value),
        }
    }
    let mut affinity = json!({});
    if !required.is_empty() {
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = json!(required);
    }
    if !preferred.is_empty() {
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = json!(preferred);
    }
    affinity
}

/// Hardened as upstream's: it is the user's image with no launcher in it.
fn init_container(from: &InitContainer) -> Value {
    let mut container = json!({
        "name": from.name,
        "image": from.image,
        "command": from.command,
        "args": from.args,
        "env": from.env.iter().map(|v| json!({"name": v.name, "value": v.value})).collect::<Vec<_>>(),
        "volumeMounts": from
            .volume_mounts
            .iter()
            .map(|m| json!({"name": m.volume_name, "mountPath": m.mount_path}))
            .collect::<Vec<_>>(),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    });
    if let Some(policy) = from.restart_policy.as_ref().filter(|p| !p.is_empty()) {
        container["restartPolicy"] = json!(policy);
    }
    if let Some(resources) = &from.resources {
        container["resources"] = json!({"requests": resources.requests, "limits": resources.limits});
    }
    container
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

#[cfg(test)]
mod tests {
    use super::*;

    fn input(parameters: Value) -> ExecutorInput {
        ExecutorInput { parameters: parameters.as_object().cloned().unwrap_or_default(), ..ExecutorInput::default() }
    }

    #[test]
    fn resources_come_from_constants_parameters_and_the_old_numbers() {
        let spec = |value: Value| -> ResourceSpec { serde_json::from_value(value).unwrap() };
        let given = input(json!({"kind": "nvidia.com/gpu", "n": 2, "memory": "3Gi"}));
        let modern = spec(json!({
            "resourceCpuLimit": "500m",
            "cpuLimit": 9.0,
            "resourceMemoryRequest": "{{$.inputs.parameters['memory']}}",
            "accelerator": {
                "resourceType": "{{$.inputs.parameters['kind']}}",
                "resourceCount": "{{$.inputs.parameters['n']}}",
            },
        }));
        assert_eq!(
            resources(Some(&modern), &given).unwrap(),
            json!({"limits": {"cpu": "500m", "nvidia.com/gpu": "2"}, "requests": {"memory": "3Gi"}})
        );
        let old =
            spec(json!({"cpuLimit": 1.5, "memoryLimit": 0.25, "accelerator": {"type": "amd.com/gpu", "count": "1"}}));
        assert_eq!(
            resources(Some(&old), &given).unwrap(),
            json!({"limits": {"cpu": "1.5", "memory": "0.25G", "amd.com/gpu": "1"}, "requests": {}})
        );
        let vertex = spec(json!({"accelerator": {"type": "NVIDIA_TESLA_P4", "count": "1"}}));
        assert!(resources(Some(&vertex), &given).unwrap_err().contains("NVIDIA_TESLA_P4"));
    }

    #[test]
    fn volumes_keep_their_names_and_never_share_one() {
        let mut settings = Settings::default();
        let claim = json!({"persistentVolumeClaim": {"claimName": "data"}});
        settings.share("data", "/a", claim.clone());
        settings.share("data", "/b", claim.clone());
        settings.share("data", "/c", json!({"secret": {"secretName": "data"}}));
        settings.share("minio-scratch", "/d", json!({"persistentVolumeClaim": {"claimName": "minio-scratch"}}));
        settings.share("my.secret", "/e", json!({"secret": {"secretName": "my.secret"}}));
        let names: Vec<&str> = settings.shareable.volumes.iter().filter_map(|v| v["name"].as_str()).collect();
        assert_eq!(names, ["data", "data-1", "minio-scratch-1", "my-secret"]);
        let mounts: Vec<&str> = settings.shareable.mounts.iter().filter_map(|v| v["name"].as_str()).collect();
        assert_eq!(mounts, ["data", "data", "data-1", "minio-scratch-1", "my-secret"]);
    }
}
