//! Kubeflow Pipelines' resources as upstream defines them: `Pipeline` and `PipelineVersion`
//! (`backend/src/crd/kubernetes/v2beta1` of <https://github.com/kubeflow/pipelines>) and `ScheduledWorkflow`
//! (`backend/src/crd/pkg/apis/scheduledworkflow/v1beta1`). They are read as plain JSON: what a pipeline's specification
//! holds is decided elsewhere, and one that cannot be understood must still be listed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

pub const GROUP: &str = "pipelines.kubeflow.org";
pub const VERSION: &str = "v2beta1";
/// `apiVersion` of pipelines and their versions.
pub const API_VERSION: &str = "pipelines.kubeflow.org/v2beta1";

pub mod label {
    /// On a PipelineVersion: the `uid` of its Pipeline.
    pub const PIPELINE_ID: &str = "pipelines.kubeflow.org/pipeline-id";
    /// On a PipelineVersion: the first 63 characters of its Pipeline's name.
    pub const PIPELINE: &str = "pipelines.kubeflow.org/pipeline";
    /// On a ScheduledWorkflow: `true` or `false`.
    pub const SCHEDULE_ENABLED: &str = "scheduledworkflows.kubeflow.org/enabled";
    /// On a ScheduledWorkflow: the type of its condition.
    pub const SCHEDULE_STATUS: &str = "scheduledworkflows.kubeflow.org/status";
}

/// The one condition of a PipelineVersion.
pub const VERSION_CONDITION: &str = "PipelineVersionStatus";

pub fn pipeline() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, "Pipeline"), "pipelines")
}

pub fn pipeline_version() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, "PipelineVersion"), "pipelineversions")
}

pub fn scheduled_workflow() -> ApiResource {
    let kind = GroupVersionKind::gvk("kubeflow.org", "v1beta1", "ScheduledWorkflow");
    ApiResource::from_gvk_with_plural(&kind, "scheduledworkflows")
}

/// The three definitions.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let text = || json!({"type": "string"});
    let tags = json!({"type": "object", "additionalProperties": {"type": "string"}});
    let anything = json!({"x-kubernetes-preserve-unknown-fields": true});
    let pipeline = json!({
        "description": "A pipeline: a name for versions of it",
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {"displayName": text(), "description": text(), "tags": tags},
            },
        },
    });
    let condition = json!({
        "type": "object",
        "required": ["message", "reason", "status", "type"],
        "properties": {
            "message": {"type": "string", "maxLength": 32768},
            "reason": text(),
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "type": {"type": "string", "maxLength": 316},
        },
    });
    let version = json!({
        "description": "A version of a pipeline, with its compiled specification",
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["pipelineSpec"],
                "properties": {
                    "codeSourceURL": text(),
                    "description": text(),
                    "displayName": text(),
                    "pipelineName": text(),
                    "pipelineSpec": anything,
                    "pipelineSpecURI": text(),
                    "platformSpec": anything,
                    "tags": tags,
                    "versionName":
                        {"type": "string", "maxLength": 253, "pattern": r"^[a-z0-9]([a-z0-9\.\-]*[a-z0-9])?$"},
                },
            },
            "status": {"type": "object", "properties": {"conditions": {"type": "array", "items": condition}}},
        },
    });
    let open =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "x-kubernetes-map-type": "atomic"});
    let schedule = json!({
        "description": "A schedule that starts runs of a pipeline",
        "type": "object",
        "required": ["spec"],
        "properties": {"spec": open, "status": open},
    });
    let columns = |columns: &[(&str, &str, &str)]| -> Value {
        columns.iter().map(|(name, kind, path)| json!({"name": name, "type": kind, "jsonPath": path})).collect()
    };
    let age = ("Age", "date", ".metadata.creationTimestamp");
    [
        (super::pipelines::pipeline(), pipeline, json!({}), columns(&[age])),
        (
            pipeline_version(),
            version,
            json!({"status": {}}),
            columns(&[
                ("Pipeline", "string", ".spec.pipelineName"),
                ("Status", "string", ".status.conditions[0].reason"),
                age,
            ]),
        ),
        (
            scheduled_workflow(),
            schedule,
            json!({"status": {}}),
            columns(&[
                ("Status", "string", ".status.conditions[0].type"),
                ("Next", "date", ".status.trigger.nextTriggeredTime"),
                age,
            ]),
        ),
    ]
    .into_iter()
    .map(|(kind, schema, subresources, columns)| definition(&kind, &schema, &subresources, &columns))
    .collect()
}

fn definition(kind: &ApiResource, schema: &Value, subresources: &Value, columns: &Value) -> CustomResourceDefinition {
    let short: &[&str] = if kind.kind == "ScheduledWorkflow" { &["swf"] } else { &[] };
    let mut names = json!({
        "kind": kind.kind,
        "listKind": format!("{}List", kind.kind),
        "plural": kind.plural,
        "singular": kind.kind.to_lowercase(),
    });
    if !short.is_empty() {
        names["shortNames"] = json!(short);
    }
    let mut version = json!({
        "name": kind.version,
        "served": true,
        "storage": true,
        "schema": {"openAPIV3Schema": schema},
        "additionalPrinterColumns": columns,
    });
    if subresources.as_object().is_some_and(|s| !s.is_empty()) {
        version["subresources"] = subresources.clone();
    }
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.{}", kind.plural, kind.group)},
        "spec": {"group": kind.group, "names": names, "scope": "Namespaced", "versions": [version]},
    });
    serde_json::from_value(crd).unwrap_or_else(|e| unreachable!("a definition of our own: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_named_as_upstreams() {
        let names: Vec<String> = crds().into_iter().filter_map(|c| c.metadata.name).collect();
        assert_eq!(
            names,
            [
                "pipelines.pipelines.kubeflow.org",
                "pipelineversions.pipelines.kubeflow.org",
                "scheduledworkflows.kubeflow.org"
            ]
        );
    }
}
