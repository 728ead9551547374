//! Compiled pipelines: reading packages, the intermediate representation, its validation, its expressions.

pub mod expression;
pub mod ir;
pub mod package;
pub mod platform;
mod validate;
pub mod value;

pub use package::{Documents, PackageError};
pub use validate::{SpecError, check_parameters};
pub(crate) use validate::{dependencies, duration, is_volume_stub};

use ir::{ComponentSpec, ContainerSpec, ExecutorSpec, ImporterSpec, PipelineSpec};
use platform::{ExecutorConfig, PlatformSpec, WorkspaceConfig};
use serde_json::Value;

/// A pipeline that was parsed and validated: every reference in it leads somewhere and all it asks for can be done.
#[derive(Debug, Clone)]
pub struct Pipeline {
    pub spec: PipelineSpec,
    pub platform: PlatformSpec,
    /// As uploaded, for those who ask for it back.
    pub documents: Documents,
}

/// What a component is made of.
#[derive(Debug, Clone, Copy)]
pub enum Body<'a> {
    Dag(&'a ir::DagSpec),
    Container(&'a ContainerSpec),
    Importer(&'a ImporterSpec),
}

/// The component name that stands for the pipeline itself; compiled components are called `comp-…`.
pub const ROOT: &str = "root";

/// What compilers for Argo write for the run's id. Upstream replaces it in all of a run's workflow before it starts
/// (`RunWorkflow` in `backend/src/apiserver/template/v2_template.go`), and Elyra still writes it.
const RUN_ID: &str = "{{workflow.uid}}";

/// Puts the run's id where its pipeline or its arguments ask for it.
pub(crate) fn name_run(value: &mut Value, run_id: &str) {
    match value {
        Value::String(text) if text.contains(RUN_ID) => *text = text.replace(RUN_ID, run_id),
        Value::Array(items) => items.iter_mut().for_each(|item| name_run(item, run_id)),
        Value::Object(map) => map.values_mut().for_each(|item| name_run(item, run_id)),
        _ => {}
    }
}

impl Pipeline {
    /// The pipeline as one run has it.
    pub fn of_run(mut documents: Documents, run_id: &str) -> Result<Self, SpecError> {
        name_run(&mut documents.pipeline_spec, run_id);
        if let Some(platform) = &mut documents.platform_spec {
            name_run(platform, run_id);
        }
        Self::parse(documents)
    }

    pub fn parse(documents: Documents) -> Result<Self, SpecError> {
        validate::parse(documents)
    }

    /// Reads an uploaded package.
    #[cfg(test)]
    pub fn from_package(bytes: &[u8]) -> Result<Self, SpecError> {
        Self::parse(package::read(bytes)?)
    }

    pub fn name(&self) -> &str {
        &self.spec.pipeline_info.name
    }

    pub fn component(&self, name: &str) -> Option<&ComponentSpec> {
        if name == ROOT { Some(&self.spec.root) } else { self.spec.components.get(name) }
    }

    pub fn body<'a>(&'a self, component: &'a ComponentSpec) -> Option<Body<'a>> {
        if let Some(dag) = &component.dag {
            return Some(Body::Dag(dag));
        }
        match self.spec.deployment_spec.executors.get(component.executor_label.as_deref()?)? {
            ExecutorSpec::Container(container) => Some(Body::Container(container)),
            ExecutorSpec::Importer(importer) => Some(Body::Importer(importer)),
            ExecutorSpec::Resolver(_) | ExecutorSpec::CustomJob(_) => None,
        }
    }

    /// The Kubernetes settings of a component's executor.
    pub fn kubernetes(&self, component: &ComponentSpec) -> Option<&ExecutorConfig> {
        self.platform.platforms.get("kubernetes")?.deployment_spec.executors.get(component.executor_label.as_deref()?)
    }

    pub fn workspace(&self) -> Option<&WorkspaceConfig> {
        self.platform.platforms.get("kubernetes")?.pipeline_config.as_ref()?.workspace.as_ref()
    }

    pub fn active_deadline_seconds(&self) -> Option<i64> {
        let config = self.platform.platforms.get("kubernetes")?.pipeline_config.as_ref()?;
        (config.active_deadline_seconds > 0).then(|| i64::from(config.active_deadline_seconds))
    }

    /// What the API returns as `pipeline_spec`: with a platform part, both under their names, as upstream does.
    pub fn wire(documents: &Documents) -> Value {
        match &documents.platform_spec {
            Some(platform) => serde_json::json!({"pipeline_spec": documents.pipeline_spec, "platform_spec": platform}),
            None => documents.pipeline_spec.clone(),
        }
    }
}
