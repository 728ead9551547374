//! The platform part of a package: `kubernetes_platform/proto/kubernetes_executor_config.proto` upstream, in JSON. The few fields
//! that the engine does not apply are parsed so that `validate` can refuse them by name.

use super::ir::{EnvVar, InputParameter, Named, TaskOutputParameter};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlatformSpec {
    #[serde(default)]
    pub platforms: Named<SinglePlatformSpec>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SinglePlatformSpec {
    #[serde(default)]
    pub deployment_spec: PlatformDeployment,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub platform: String,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline_config: Option<PipelineConfig>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlatformDeployment {
    #[serde(default)]
    pub executors: Named<ExecutorConfig>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PipelineConfig {
    #[serde(default)]
    pub resource_ttl_on_completion: i32,
    #[serde(default)]
    pub resource_ttl_on_success: i32,
    #[serde(default)]
    pub resource_ttl_on_failure: i32,
    #[serde(default)]
    pub active_deadline_seconds: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceConfig>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkspaceConfig {
    #[serde(default)]
    pub size: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<WorkspaceKubernetes>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkspaceKubernetes {
    #[serde(default)]
    pub pvc_spec_patch: Map<String, Value>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecutorConfig {
    #[serde(default)]
    pub secret_as_volume: Vec<ObjectAsVolume>,
    #[serde(default)]
    pub secret_as_env: Vec<ObjectAsEnv>,
    #[serde(default)]
    pub pvc_mount: Vec<PvcMount>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<NodeSelector>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_metadata: Option<PodMetadata>,
    #[serde(default)]
    pub image_pull_secret: Vec<ImagePullSecret>,
    #[serde(default)]
    pub image_pull_policy: String,
    #[serde(default)]
    pub config_map_as_volume: Vec<ObjectAsVolume>,
    #[serde(default)]
    pub config_map_as_env: Vec<ObjectAsEnv>,
    /// A 64-bit integer: a string in protobuf's JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_deadline_seconds: Option<Value>,
    #[serde(default)]
    pub field_path_as_env: Vec<FieldPathAsEnv>,
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
    #[serde(default)]
    pub generic_ephemeral_volume: Vec<EphemeralVolume>,
    #[serde(default)]
    pub node_affinity: Vec<NodeAffinity>,
    #[serde(default)]
    pub pod_affinity: Vec<PodAffinity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled_shared_memory: Option<SharedMemory>,
    #[serde(default)]
    pub empty_dir_mounts: Vec<EmptyDirMount>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_context: Option<SecurityContext>,
    #[serde(default)]
    pub init_containers: Vec<InitContainer>,
    #[serde(default)]
    pub pod_resource_claims: Vec<Value>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectAsVolume {
    #[serde(default, alias = "secretName", alias = "configMapName")]
    pub name: String,
    pub mount_path: String,
    #[serde(default)]
    pub optional: Option<bool>,
    #[serde(default, alias = "secretNameParameter", alias = "configMapNameParameter")]
    pub name_parameter: Option<InputParameter>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectAsEnv {
    #[serde(default, alias = "secretName", alias = "configMapName")]
    pub name: String,
    #[serde(default)]
    pub key_to_env: Vec<KeyToEnv>,
    #[serde(default)]
    pub optional: Option<bool>,
    #[serde(default, alias = "secretNameParameter", alias = "configMapNameParameter")]
    pub name_parameter: Option<InputParameter>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyToEnv {
    #[serde(alias = "secretKey", alias = "configMapKey")]
    pub key: String,
    pub env_var: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PvcMount {
    #[serde(default)]
    pub task_output_parameter: Option<TaskOutputParameter>,
    #[serde(default)]
    pub constant: Option<String>,
    #[serde(default)]
    pub component_input_parameter: Option<String>,
    pub mount_path: String,
    #[serde(default)]
    pub pvc_name_parameter: Option<InputParameter>,
    #[serde(default)]
    pub sub_path: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeSelector {
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub node_selector_json: Option<InputParameter>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodMetadata {
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImagePullSecret {
    #[serde(default)]
    pub secret_name: String,
    #[serde(default)]
    pub secret_name_parameter: Option<InputParameter>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FieldPathAsEnv {
    pub name: String,
    pub field_path: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Toleration {
    #[serde(default)]
    pub key: String,
    #[serde(default)]
    pub operator: String,
    #[serde(default)]
    pub value: String,
    #[serde(default)]
    pub effect: String,
    /// A 64-bit integer: a string in protobuf's JSON.
    #[serde(default)]
    pub toleration_seconds: Option<Value>,
    #[serde(default)]
    pub toleration_json: Option<InputParameter>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeAffinity {
    #[serde(default)]
    pub match_expressions: Vec<Requirement>,
    #[serde(default)]
    pub match_fields: Vec<Requirement>,
    /// With a weight the term is preferred, without one required.
    #[serde(default)]
    pub weight: Option<i32>,
    #[serde(default)]
    pub node_affinity_json: Option<InputParameter>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    pub key: String,
    pub operator: String,
    #[serde(default)]
    pub values: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SharedMemory {
    #[serde(default)]
    pub volume_name: String,
    #[serde(default)]
    pub size: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EmptyDirMount {
    pub volume_name: String,
    pub mount_path: String,
    #[serde(default)]
    pub medium: Option<String>,
    #[serde(default)]
    pub size_limit: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecurityContext {
    #[serde(default)]
    pub run_as_user: Option<Value>,
    #[serde(default)]
    pub run_as_group: Option<Value>,
    #[serde(default)]
    pub run_as_non_root: Option<bool>,
}

/// A claim of the pod's own, which goes with it.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EphemeralVolume {
    pub volume_name: String,
    pub mount_path: String,
    #[serde(default)]
    pub access_modes: Vec<String>,
    /// A quantity, such as `5Gi`.
    #[serde(default)]
    pub size: String,
    /// Wins over `storage_class_name`.
    #[serde(default)]
    pub default_storage_class: bool,
    #[serde(default)]
    pub storage_class_name: String,
    #[serde(default)]
    pub metadata: Option<PodMetadata>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodAffinity {
    #[serde(default)]
    pub match_pod_expressions: Vec<Requirement>,
    #[serde(default)]
    pub match_pod_labels: BTreeMap<String, String>,
    #[serde(default)]
    pub topology_key: String,
    #[serde(default)]
    pub namespaces: Vec<String>,
    #[serde(default)]
    pub match_namespace_expressions: Vec<Requirement>,
    #[serde(default)]
    pub match_namespace_labels: BTreeMap<String, String>,
    /// With a weight the term is preferred, without one required.
    #[serde(default)]
    pub weight: Option<i32>,
    #[serde(default)]
    pub anti: Option<bool>,
}

/// A container that ends before the step's begins; with `restart_policy` Always one that runs beside it.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InitContainer {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub image: String,
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<EnvVar>,
    #[serde(default)]
    pub volume_mounts: Vec<InitVolumeMount>,
    #[serde(default)]
    pub restart_policy: Option<String>,
    #[serde(default)]
    pub resources: Option<InitResources>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InitVolumeMount {
    #[serde(default)]
    pub volume_name: String,
    #[serde(default)]
    pub mount_path: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InitResources {
    #[serde(default)]
    pub requests: BTreeMap<String, String>,
    #[serde(default)]
    pub limits: BTreeMap<String, String>,
}
