//! `Profile` (`kubeflow.org/v1`, cluster scope): a user's namespace with its roles, service accounts and quota. `v1beta1` is
//! served too, with the same fields.
//! Field names and shapes follow `components/profile-controller` of <https://github.com/kubeflow/dashboard>.

use k8s_openapi::{
    api::core::v1::ResourceQuotaSpec as CoreResourceQuotaSpec,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceDefinition, CustomResourceDefinitionVersion as DefinitionVersion,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{CustomResource, CustomResourceExt as _};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is wanted.
#[derive(CustomResource, Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "kubeflow.org",
    version = "v1",
    kind = "Profile",
    plural = "profiles",
    singular = "profile",
    status = "ProfileStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct ProfileSpec {
    /// The profile owner
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Subject>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<Plugin>,
    /// The quota of the namespace; none when absent or when `hard` is empty
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_quota_spec: Option<ResourceQuotaSpec>,
}

/// The definition as it is installed: upstream serves `v1beta1` with the same schema and stores `v1`, so nothing but
/// `apiVersion` is converted.
pub fn definition() -> CustomResourceDefinition {
    let mut definition = Profile::crd();
    let older = |v: &DefinitionVersion| DefinitionVersion { name: "v1beta1".into(), storage: false, ..v.clone() };
    let older: Vec<_> = definition.spec.versions.iter().map(older).collect();
    definition.spec.versions.extend(older);
    definition
}

/// A user, group or service account, as in `rbac.authorization.k8s.io`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// API group of the subject; `rbac.authorization.k8s.io` for `User` and `Group` when absent
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_group: Option<String>,
    /// `User`, `Group` or `ServiceAccount`
    pub kind: String,
    pub name: String,
    /// Only for `ServiceAccount`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

impl Subject {
    pub fn user(name: impl Into<String>) -> Self {
        Self { kind: "User".into(), name: name.into(), ..Self::default() }
    }
}

/// A plugin for a cloud platform, such as `WorkloadIdentity` or `AwsIamForServiceAccount`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plugin {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub spec: Option<serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceQuotaSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantities")]
    pub hard: Option<BTreeMap<String, Quantity>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "scope_selector")]
    pub scope_selector: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
}

impl ResourceQuotaSpec {
    /// The same as a core `ResourceQuota` spec; an error when `scopeSelector` has another shape.
    pub fn to_core(&self) -> Result<CoreResourceQuotaSpec, serde_json::Error> {
        Ok(CoreResourceQuotaSpec {
            hard: self.hard.clone(),
            scope_selector: self.scope_selector.clone().map(serde_json::from_value).transpose()?,
            scopes: self.scopes.clone(),
        })
    }
}

/// What was observed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProfileStatus {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<ProfileCondition>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProfileCondition {
    /// See [`crate::names::condition`]
    #[serde(default, rename = "type", skip_serializing_if = "String::is_empty")]
    pub type_: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// `intstr` quantities, with the pattern that apimachinery puts on them.
fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
            "x-kubernetes-int-or-string": true
        }
    })
}

fn scope_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "matchExpressions": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["operator", "scopeName"],
                    "properties": {
                        "operator": {"type": "string"},
                        "scopeName": {"type": "string"},
                        "values": {"type": "array", "items": {"type": "string"}}
                    }
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_written_for_upstream_is_read_whole() {
        let text = serde_json::json!({
            "apiVersion": "kubeflow.org/v1", "kind": "Profile",
            "metadata": {"name": "team-a"},
            "spec": {
                "owner": {"kind": "User", "name": "a@example.com"},
                "plugins": [{"kind": "AwsIamForServiceAccount", "spec": {"awsIamRole": "arn:aws:iam::1:role/r"}}],
                "resourceQuotaSpec": {"hard": {"cpu": "2", "memory": "2Gi"}}
            }
        });
        let profile: Profile = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(serde_json::to_value(&profile).unwrap(), text);
        let quota = profile.spec.resource_quota_spec.unwrap().to_core().unwrap();
        assert_eq!(quota.hard.unwrap()["memory"], Quantity("2Gi".into()));
    }

    #[test]
    fn the_crd_has_upstreams_names_and_a_structural_schema() {
        let crd = serde_json::to_value(definition()).unwrap();
        assert_eq!(crd["metadata"]["name"], "profiles.kubeflow.org");
        assert_eq!(crd["spec"]["scope"], "Cluster");
        let version = &crd["spec"]["versions"][0];
        assert_eq!(version["name"], "v1");
        assert!(version["subresources"]["status"].is_object());
        let spec = &version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        assert_eq!(spec["plugins"]["items"]["properties"]["spec"]["x-kubernetes-preserve-unknown-fields"], true);
        assert_eq!(
            spec["resourceQuotaSpec"]["properties"]["hard"]["additionalProperties"]["x-kubernetes-int-or-string"],
            true
        );
        let (newer, older) = (version, &crd["spec"]["versions"][1]);
        assert_eq!(older["name"], "v1beta1");
        assert_eq!(older["served"], true);
        assert_eq!(newer["storage"], true);
        assert_eq!(older["storage"], false);
        assert_eq!((&newer["schema"], &newer["subresources"]), (&older["schema"], &older["subresources"]));
    }
}
