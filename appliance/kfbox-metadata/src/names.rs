//! The type names under which Kubeflow Pipelines writes its runs. Source: kubeflow/pipelines
//! `backend/src/v2/metadata/client.go` and the artifact schemas in `api/v2alpha1`.

pub const CONTEXT_PIPELINE: &str = "system.Pipeline";
pub const CONTEXT_PIPELINE_RUN: &str = "system.PipelineRun";
pub const EXECUTION_CONTAINER: &str = "system.ContainerExecution";
pub const EXECUTION_DAG: &str = "system.DAGExecution";
pub const EXECUTION_IMPORTER: &str = "system.ImporterExecution";
pub const ARTIFACT: &str = "system.Artifact";
pub const ARTIFACT_DATASET: &str = "system.Dataset";
pub const ARTIFACT_MODEL: &str = "system.Model";
pub const ARTIFACT_METRICS: &str = "system.Metrics";
pub const ARTIFACT_CLASSIFICATION_METRICS: &str = "system.ClassificationMetrics";
pub const ARTIFACT_SLICED_CLASSIFICATION_METRICS: &str = "system.SlicedClassificationMetrics";
pub const ARTIFACT_HTML: &str = "system.HTML";
pub const ARTIFACT_MARKDOWN: &str = "system.Markdown";
