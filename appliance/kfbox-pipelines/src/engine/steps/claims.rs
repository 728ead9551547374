//! Claims that the engine makes itself: kfp-kubernetes' volume components, and the workspace of a run.

use super::{Context, Done};
use crate::{
    engine::{
        model::{Io, TaskError},
        pod,
    },
    ports::{ExecutionKind, ExecutionState},
    spec::value,
};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};

impl Context {
    /// kfp-kubernetes' CreatePVC and DeletePVC. The claim's name follows from the task, so that doing it again finds it.
    pub(super) async fn volume(&self, image: &str) -> Done {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.core.deps.client.clone(), &self.run.namespace);
        let text = |name: &str| {
            self.task.inputs.parameters.get(name).filter(|v| !v.is_null()).map(value::text).filter(|t| !t.is_empty())
        };
        let mut outputs = Io::default();
        if image == "argostub/deletepvc" {
            let Some(name) = text("pvc_name") else { return self.refused(TaskError::step("it was given no pvc_name")) };
            match claims.delete(&name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    return self.refused(TaskError::platform(format!("the claim {name} cannot be deleted: {error}")));
                }
            }
        } else {
            let name = match (text("pvc_name"), text("pvc_name_suffix")) {
                (Some(_), Some(_)) => {
                    return self.refused(TaskError::step("it was given both pvc_name and pvc_name_suffix"));
                }
                (Some(name), None) => name,
                (None, suffix) => format!("{}{}", self.task.id, suffix.unwrap_or_default()),
            };
            let Some(size) = text("size") else { return self.refused(TaskError::step("it was given no size")) };
            let modes =
                self.task.inputs.parameters.get("access_modes").cloned().unwrap_or_else(|| json!(["ReadWriteOnce"]));
            let mut claim = json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "labels": {pod::RUN_LABEL: self.run.id}},
                "spec": {"accessModes": modes, "resources": {"requests": {"storage": size}}},
            });
            if let Some(Value::Object(annotations)) = self.task.inputs.parameters.get("annotations") {
                claim["metadata"]["annotations"] = Value::Object(annotations.clone());
            }
            for (parameter, field) in [("storage_class_name", "storageClassName"), ("volume_name", "volumeName")] {
                if let Some(text) = text(parameter) {
                    claim["spec"][field] = json!(text);
                }
            }
            if let Some(source) = self.task.inputs.parameters.get("data_source").filter(|s| s.is_object()) {
                claim["spec"]["dataSource"] = source.clone();
            }
            let claim: PersistentVolumeClaim = match serde_json::from_value(claim) {
                Ok(claim) => claim,
                Err(error) => return self.refused(TaskError::step(format!("its inputs make no valid claim: {error}"))),
            };
            match claims.create(&PostParams::default(), &claim).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => {
                    return self.refused(TaskError::platform(format!("the claim {name} cannot be created: {error}")));
                }
            }
            outputs.parameters.insert("name".into(), json!(name));
        }
        let execution = self.begin(ExecutionKind::Container, image, None, None).await;
        self.finish(execution, ExecutionState::Complete, &mut outputs).await;
        Done::Finished { task: self.task.id.clone(), outputs, fingerprint: None, cached_from: None, execution }
    }

    /// The run's shared volume, made for the first step that needs it; it goes when the run is deleted.
    pub(super) async fn workspace(&self) -> Result<(), TaskError> {
        let Some(workspace) = self.pipeline.workspace() else {
            return Err(TaskError::step(
                "it uses the workspace, and the pipeline has none (dsl.PipelineConfig(workspace=...))",
            ));
        };
        let mut spec =
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": workspace.size}}});
        if let (Some(patch), Value::Object(spec)) =
            (workspace.kubernetes.as_ref().map(|k| k.pvc_spec_patch.clone()), &mut spec)
        {
            spec.extend(patch);
        }
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": pod::workspace_claim(&self.run.id), "labels": {pod::RUN_LABEL: self.run.id}},
            "spec": spec,
        });
        let claim: PersistentVolumeClaim = serde_json::from_value(claim)
            .map_err(|e| TaskError::step(format!("the workspace's settings make no valid claim: {e}")))?;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.core.deps.client.clone(), &self.run.namespace);
        match claims.create(&PostParams::default(), &claim).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(TaskError::platform(format!("the workspace cannot be created: {error}"))),
        }
    }
}
