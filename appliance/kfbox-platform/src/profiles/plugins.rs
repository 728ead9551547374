//! A Profile's plugins for clouds: each marks the service account that people's pods run as with the identity that it has
//! there. Kinds, fields and annotations are those of `plugin_workload_identity.go` and `plugin_iam.go` in
//! `components/profile-controller/controllers` of <https://github.com/kubeflow/dashboard>.
//!
//! Guarantee: nothing is asked of a cloud. Upstream also grants the access there, with credentials of its own; here that is
//! left to whoever administers the cloud, and a condition says so. The account is applied as a whole, so a plugin that is
//! taken away takes its annotation with it.

use kfbox_api::{
    names::condition,
    profile::{Plugin, ProfileCondition},
};
use serde_json::Value;
use std::collections::BTreeMap;

/// One kind of plugin.
trait Kind: Sync {
    /// `kind` in the Profile.
    fn name(&self) -> &'static str;
    /// The annotation of the service account, or what the plugin's `spec` lacks.
    fn annotation(&self, spec: &Value) -> Result<(&'static str, String), String>;
    /// What stays to be done at the cloud; nothing where the `spec` says that it is done elsewhere.
    fn at_the_cloud(&self, spec: &Value) -> Option<&'static str>;
}

/// <https://cloud.google.com/kubernetes-engine/docs/how-to/workload-identity>
struct WorkloadIdentity;
/// <https://docs.aws.amazon.com/eks/latest/userguide/iam-roles-for-service-accounts.html>
struct AwsIamForServiceAccount;

const KINDS: [&dyn Kind; 2] = [&WorkloadIdentity, &AwsIamForServiceAccount];

impl Kind for WorkloadIdentity {
    fn name(&self) -> &'static str {
        "WorkloadIdentity"
    }

    fn annotation(&self, spec: &Value) -> Result<(&'static str, String), String> {
        let account = spec["gcpServiceAccount"].as_str().unwrap_or_default();
        if !account.ends_with(".iam.gserviceaccount.com") {
            return Err("spec.gcpServiceAccount must be NAME@PROJECT.iam.gserviceaccount.com".into());
        }
        Ok(("iam.gke.io/gcp-service-account", account.to_owned()))
    }

    fn at_the_cloud(&self, _: &Value) -> Option<&'static str> {
        Some("grant it roles/iam.workloadIdentityUser there")
    }
}

impl Kind for AwsIamForServiceAccount {
    fn name(&self) -> &'static str {
        "AwsIamForServiceAccount"
    }

    fn annotation(&self, spec: &Value) -> Result<(&'static str, String), String> {
        match spec["awsIamRole"].as_str() {
            Some(role) if !role.is_empty() => Ok(("eks.amazonaws.com/role-arn", role.to_owned())),
            _ => Err("spec.awsIamRole is missing".into()),
        }
    }

    fn at_the_cloud(&self, spec: &Value) -> Option<&'static str> {
        (spec["annotateOnly"] != true).then_some("add it to the role's trust relationship there, or set annotateOnly")
    }
}

/// What the plugins come to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Outcome {
    /// Of the service account `default-editor`.
    pub annotations: BTreeMap<String, String>,
    /// What has no effect, and what is left to be done.
    pub conditions: Vec<ProfileCondition>,
}

pub(super) fn outcome(plugins: &[Plugin]) -> Outcome {
    let mut outcome = Outcome::default();
    let (mut ignored, mut left) = (Vec::new(), Vec::new());
    for plugin in plugins {
        let name = plugin.kind.as_deref().unwrap_or_default();
        let spec = plugin.spec.as_ref().unwrap_or(&Value::Null);
        let Some(kind) = KINDS.into_iter().find(|kind| kind.name() == name) else {
            ignored.push(format!("{name}: there is no such plugin on this box"));
            continue;
        };
        match kind.annotation(spec) {
            Ok((key, value)) => {
                outcome.annotations.insert(key.to_owned(), value);
                left.extend(kind.at_the_cloud(spec).map(|what| format!("{name}: {what}")));
            }
            Err(why) => ignored.push(format!("{name}: {why}")),
        }
    }
    let conditions = [
        (condition::PLUGINS_IGNORED, "plugins without effect: ", ignored),
        (
            condition::PLUGINS_ANNOTATE_ONLY,
            "default-editor is annotated, and this box changes nothing at the cloud: ",
            left,
        ),
    ];
    let said = conditions.into_iter().filter(|(_, _, each)| !each.is_empty());
    outcome.conditions = said
        .map(|(type_, intro, each)| ProfileCondition {
            type_: type_.into(),
            status: "True".into(),
            message: format!("{intro}{}", each.join("; ")),
        })
        .collect();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn outcome_of(plugins: Value) -> Outcome {
        let plugins: Vec<Plugin> = serde_json::from_value(plugins).unwrap();
        outcome(&plugins)
    }

    #[test]
    fn known_kinds_annotate_and_say_what_is_left_to_do() {
        let both = outcome_of(json!([
            {"kind": "WorkloadIdentity", "spec": {"gcpServiceAccount": "a@lab.iam.gserviceaccount.com"}},
            {"kind": "AwsIamForServiceAccount", "spec": {"awsIamRole": "arn:aws:iam::1:role/r", "annotateOnly": true}},
        ]));
        let notes: Vec<_> = both.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            notes,
            [
                ("eks.amazonaws.com/role-arn", "arn:aws:iam::1:role/r"),
                ("iam.gke.io/gcp-service-account", "a@lab.iam.gserviceaccount.com"),
            ]
        );
        assert_eq!(both.conditions.len(), 1);
        assert_eq!(both.conditions[0].type_, "PluginsAnnotateOnly");
        let left = &both.conditions[0].message;
        assert!(left.contains("WorkloadIdentity: grant") && !left.contains("Aws"), "{left}");
        let aws = outcome_of(json!([{"kind": "AwsIamForServiceAccount", "spec": {"awsIamRole": "r"}}]));
        assert!(aws.conditions[0].message.contains("trust relationship"));
        assert_eq!(outcome(&[]), Outcome::default());
    }

    #[test]
    fn what_is_unknown_or_lacks_its_field_is_ignored_and_named() {
        let none = outcome_of(json!([
            {"kind": "AzureAdWorkloadIdentity"},
            {"kind": "AwsIamForServiceAccount", "spec": {"awsIamRole": ""}},
            {"kind": "WorkloadIdentity", "spec": {"gcpServiceAccount": "somebody@example.com"}},
            {"spec": {}},
        ]));
        assert!(none.annotations.is_empty());
        assert_eq!(none.conditions.len(), 1);
        assert_eq!(none.conditions[0].type_, "PluginsIgnored");
        for part in ["AzureAdWorkloadIdentity: there is no such", "spec.awsIamRole", "spec.gcpServiceAccount"] {
            assert!(none.conditions[0].message.contains(part), "{part}: {}", none.conditions[0].message);
        }
    }
}
