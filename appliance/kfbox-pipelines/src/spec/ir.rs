//! The pipeline's intermediate representation as the SDK compiles it: `api/v2alpha1/pipeline_spec.proto` upstream, in
//! its JSON form. Every field of the format is named here and unknown ones are refused, so that nothing that a user
//! asked for is dropped silently; what cannot be run yet is refused by name in `validate`.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub type Named<T> = IndexMap<String, T>;

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PipelineSpec {
    pub pipeline_info: PipelineInfo,
    #[serde(default)]
    pub deployment_spec: DeploymentSpec,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sdk_version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub schema_version: String,
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub components: Named<ComponentSpec>,
    pub root: ComponentSpec,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub default_pipeline_root: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PipelineInfo {
    #[serde(default, deserialize_with = "null_is_default")]
    pub name: String,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub description: String,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ComponentSpec {
    #[serde(default, skip_serializing_if = "is_default")]
    pub input_definitions: InputDefinitions,
    #[serde(default, skip_serializing_if = "is_default")]
    pub output_definitions: OutputDefinitions,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dag: Option<DagSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor_label: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub single_platform_specs: Vec<Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub task_config_passthroughs: Vec<TaskConfigPassthrough>,
}

/// A part of a task's settings that the step is told (`dsl.TaskConfig`), to give it to what it starts itself.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskConfigPassthrough {
    pub field: TaskConfigField,
    /// The step's own pod has it too.
    #[serde(default)]
    pub apply_to_task: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskConfigField {
    Resources,
    Env,
    KubernetesAffinity,
    KubernetesTolerations,
    KubernetesNodeSelector,
    KubernetesVolumes,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InputDefinitions {
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub artifacts: Named<InputArtifactDef>,
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub parameters: Named<InputParameterDef>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InputArtifactDef {
    #[serde(default)]
    pub artifact_type: ArtifactType,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_artifact_list: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_optional: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InputParameterDef {
    #[serde(default)]
    pub parameter_type: ParameterType,
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub primitive_type: Option<Value>,
    /// Absent and null differ: null is a value.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub default_value: Option<Value>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_optional: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub literals: Vec<Value>,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

#[expect(clippy::enum_variant_names, reason = "the names of the format")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ParameterType {
    #[default]
    ParameterTypeEnumUnspecified,
    NumberDouble,
    NumberInteger,
    String,
    Boolean,
    List,
    Struct,
    TaskFinalStatus,
    TaskConfig,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutputDefinitions {
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub artifacts: Named<OutputArtifactDef>,
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub parameters: Named<OutputParameterDef>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutputArtifactDef {
    #[serde(default)]
    pub artifact_type: ArtifactType,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub properties: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub custom_properties: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_artifact_list: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutputParameterDef {
    #[serde(default)]
    pub parameter_type: ParameterType,
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub primitive_type: Option<Value>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArtifactType {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub schema_title: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub schema_uri: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance_schema: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub schema_version: String,
}

impl ArtifactType {
    /// The type's name in the metadata store.
    pub fn title(&self) -> &str {
        if self.schema_title.is_empty() { "system.Artifact" } else { &self.schema_title }
    }
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DagSpec {
    #[serde(default)]
    pub tasks: Named<TaskSpec>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub outputs: DagOutputs,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DagOutputs {
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub artifacts: Named<DagOutputArtifact>,
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub parameters: Named<DagOutputParameter>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DagOutputArtifact {
    #[serde(default)]
    pub artifact_selectors: Vec<ArtifactSelector>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArtifactSelector {
    pub producer_subtask: String,
    pub output_artifact_key: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParameterSelector {
    pub producer_subtask: String,
    pub output_parameter_key: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum DagOutputParameter {
    ValueFromParameter(ParameterSelector),
    ValueFromOneof(ParameterSelectors),
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParameterSelectors {
    #[serde(default)]
    pub parameter_selectors: Vec<ParameterSelector>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskSpec {
    #[serde(default)]
    pub task_info: TaskInfo,
    #[serde(default)]
    pub inputs: TaskInputs,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependent_tasks: Vec<String>,
    #[serde(default)]
    pub caching_options: CachingOptions,
    pub component_ref: ComponentRef,
    #[serde(default)]
    pub trigger_policy: TriggerPolicy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_iterator: Option<ArtifactIterator>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameter_iterator: Option<ParameterIterator>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_policy: Option<RetryPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iterator_policy: Option<IteratorPolicy>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskInfo {
    #[serde(default)]
    pub name: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ComponentRef {
    pub name: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CachingOptions {
    #[serde(default)]
    pub enable_cache: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cache_key: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TriggerPolicy {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub condition: String,
    #[serde(default)]
    pub strategy: TriggerStrategy,
}

#[expect(clippy::enum_variant_names, reason = "the names of the format")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TriggerStrategy {
    #[default]
    TriggerStrategyUnspecified,
    AllUpstreamTasksSucceeded,
    AllUpstreamTasksCompleted,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskInputs {
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub parameters: Named<InputParameter>,
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub artifacts: Named<InputArtifact>,
}

/// One of the sources must be set; `validate` says so with the input's name.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InputParameter {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_output_parameter: Option<TaskOutputParameter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_value: Option<RuntimeValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component_input_parameter: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_final_status: Option<ProducerTask>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parameter_expression_selector: String,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskOutputParameter {
    pub producer_task: String,
    pub output_parameter_key: String,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProducerTask {
    pub producer_task: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuntimeValue {
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub constant: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_parameter: Option<String>,
    /// Deprecated: `{stringValue | intValue | doubleValue}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constant_value: Option<Value>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InputArtifact {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_output_artifact: Option<TaskOutputArtifact>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component_input_artifact: Option<String>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskOutputArtifact {
    pub producer_task: String,
    pub output_artifact_key: String,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArtifactIterator {
    pub items: ArtifactItems,
    pub item_input: String,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArtifactItems {
    pub input_artifact: String,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParameterIterator {
    pub items: ParameterItems,
    pub item_input: String,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum ParameterItems {
    Raw(String),
    InputParameter(String),
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryPolicy {
    #[serde(default)]
    pub max_retry_count: u32,
    /// A protobuf duration such as `60s`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub backoff_duration: String,
    #[serde(default)]
    pub backoff_factor: f64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub backoff_max_duration: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IteratorPolicy {
    #[serde(default)]
    pub parallelism_limit: u32,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeploymentSpec {
    #[serde(default)]
    pub executors: Named<ExecutorSpec>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum ExecutorSpec {
    Container(ContainerSpec),
    Importer(ImporterSpec),
    Resolver(Value),
    CustomJob(Value),
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerSpec {
    pub image: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVar {
    pub name: String,
    #[serde(default)]
    pub value: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceSpec {
    #[serde(default)]
    pub cpu_limit: f64,
    /// In gigabytes (10^9), as the other deprecated numbers of memory.
    #[serde(default)]
    pub memory_limit: f64,
    #[serde(default)]
    pub cpu_request: f64,
    #[serde(default)]
    pub memory_request: f64,
    #[serde(default)]
    pub resource_cpu_limit: String,
    #[serde(default)]
    pub resource_memory_limit: String,
    #[serde(default)]
    pub resource_cpu_request: String,
    #[serde(default)]
    pub resource_memory_request: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<AcceleratorSpec>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcceleratorSpec {
    #[serde(rename = "type", default)]
    pub kind: String,
    /// A 64-bit integer: a string in protobuf's JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<Value>,
    #[serde(default)]
    pub resource_type: String,
    #[serde(default)]
    pub resource_count: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImporterSpec {
    pub artifact_uri: RuntimeValue,
    #[serde(default)]
    pub type_schema: ArtifactType,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub properties: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub custom_properties: Map<String, Value>,
    #[serde(default)]
    pub reimport: bool,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    #[serde(default)]
    pub download_to_workspace: bool,
}
