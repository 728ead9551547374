//! What a Profile should become: a pure function of the Profile, the namespace of its name, and the box's walls.

use super::{owner_of, plugins};
use crate::setup::{PodSecurity, Walls};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, ResourceQuota, ServiceAccount},
        networking::v1::{NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicySpec},
        rbac::v1::{RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kfbox_api::{
    Profile,
    names::{self, annotation, condition, label, profile as object, role},
    profile::{ProfileCondition, ProfileStatus, Subject as Owner},
};
use kube::ResourceExt as _;
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    Apply {
        desired: Box<Desired>,
        status: ProfileStatus,
    },
    /// Nothing is written but the status, which says why.
    Refuse {
        status: ProfileStatus,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    pub namespace: Namespace,
    pub service_accounts: Vec<ServiceAccount>,
    pub role_bindings: Vec<RoleBinding>,
    pub quota: Option<ResourceQuota>,
    pub network_policy: Option<NetworkPolicy>,
}

/// Namespaces that are never a profile's, whoever says so.
fn is_reserved(name: &str) -> bool {
    name.starts_with("kube-")
        || matches!(name, "default" | "kubeflow" | "istio-system" | "knative-serving" | "cert-manager")
}

pub fn plan(profile: &Profile, existing: Option<&Namespace>, walls: &Walls) -> Plan {
    let name = profile.name_any();
    let refuse = |why: String| Plan::Refuse { status: status(condition::FAILED, why, profile) };
    let Some(owner) = profile.spec.owner.as_ref().filter(|o| !o.name.is_empty()) else {
        return refuse("spec.owner is missing: name the user or group that the profile belongs to".into());
    };
    if !matches!(owner.kind.as_str(), "User" | "Group" | "ServiceAccount") {
        return refuse(format!("spec.owner.kind is {:?}: it must be User, Group or ServiceAccount", owner.kind));
    }
    if owner.kind == "ServiceAccount" && owner.namespace.as_deref().unwrap_or_default().is_empty() {
        return refuse("spec.owner.namespace is missing: a service account has one".into());
    }
    // Kubernetes reads meaning into such names; a profile must not bind roles to them.
    if owner.kind != "ServiceAccount" && owner.name.starts_with("system:") {
        return refuse(format!("{:?} cannot own a profile", owner.name));
    }
    if is_reserved(&name) {
        return refuse(format!("the namespace {name} belongs to the cluster: choose another name"));
    }
    if let Some(namespace) = existing
        && !is_ours(namespace, profile, owner)
    {
        return refuse(format!(
            "the namespace {name} exists already and does not belong to {}: choose another name, or annotate the \
             namespace with {}={}",
            owner.name,
            annotation::OWNER,
            owner.name
        ));
    }
    let Some(owner_reference) = owner_of(profile) else {
        return refuse("the profile has no uid yet".into());
    };
    let quota = match quota(profile) {
        Ok(quota) => quota,
        Err(error) => return refuse(format!("spec.resourceQuotaSpec.scopeSelector: {error}")),
    };
    let meta = |object_name: &str| ObjectMeta {
        name: Some(object_name.to_owned()),
        namespace: Some(name.clone()),
        labels: Some([(label::MANAGED_BY.to_owned(), names::FIELD_MANAGER.to_owned())].into()),
        owner_references: Some(vec![owner_reference.clone()]),
        ..ObjectMeta::default()
    };
    let account = |account_name: &str, notes: BTreeMap<String, String>| ServiceAccount {
        metadata: ObjectMeta { annotations: (!notes.is_empty()).then_some(notes), ..meta(account_name) },
        ..ServiceAccount::default()
    };
    let cloud_identity = plugins::outcome(&profile.spec.plugins).annotations;
    let bound = |binding: &str, to: &str, subject: Subject, note: BTreeMap<String, String>| RoleBinding {
        metadata: ObjectMeta { annotations: (!note.is_empty()).then_some(note), ..meta(binding) },
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "ClusterRole".into(),
            name: to.to_owned(),
        },
        subjects: Some(vec![subject]),
    };
    let own_account = |account_name: &str| Subject {
        kind: "ServiceAccount".into(),
        name: account_name.to_owned(),
        namespace: Some(name.clone()),
        api_group: None,
    };
    let owner_note: BTreeMap<_, _> =
        [(annotation::USER.to_owned(), owner.name.clone()), (annotation::ROLE.to_owned(), "admin".to_owned())].into();
    let desired = Desired {
        namespace: namespace(&name, owner, existing, owner_reference.clone(), walls.pod_security),
        service_accounts: vec![
            account(object::DEFAULT_EDITOR, cloud_identity),
            account(object::DEFAULT_VIEWER, BTreeMap::new()),
        ],
        role_bindings: vec![
            bound(object::DEFAULT_EDITOR, role::EDIT, own_account(object::DEFAULT_EDITOR), BTreeMap::new()),
            bound(object::DEFAULT_VIEWER, role::VIEW, own_account(object::DEFAULT_VIEWER), BTreeMap::new()),
            bound(object::OWNER_BINDING, role::ADMIN, subject(owner), owner_note),
        ],
        quota: quota.map(|spec| ResourceQuota {
            metadata: meta(object::RESOURCE_QUOTA),
            spec: Some(spec),
            ..ResourceQuota::default()
        }),
        network_policy: walls.network_policy.then(|| NetworkPolicy {
            metadata: meta(object::NETWORK_POLICY),
            spec: Some(same_namespace_and_platform()),
        }),
    };
    Plan::Apply { desired: Box::new(desired), status: status(condition::SUCCEEDED, String::new(), profile) }
}

/// Who may reach a profile's pods: pods of the same namespace and of the platform's. What the host sends (the gateway, the
/// API server's proxy, probes) is not subject to policies. Egress is free.
fn same_namespace_and_platform() -> NetworkPolicySpec {
    let platform = LabelSelector {
        match_labels: Some([(label::NAMESPACE_NAME.to_owned(), names::KUBEFLOW_NAMESPACE.to_owned())].into()),
        ..LabelSelector::default()
    };
    let peers = vec![
        NetworkPolicyPeer { pod_selector: Some(LabelSelector::default()), ..NetworkPolicyPeer::default() },
        NetworkPolicyPeer { namespace_selector: Some(platform), ..NetworkPolicyPeer::default() },
    ];
    NetworkPolicySpec {
        pod_selector: Some(LabelSelector::default()),
        policy_types: Some(vec!["Ingress".to_owned()]),
        ingress: Some(vec![NetworkPolicyIngressRule { from: Some(peers), ports: None }]),
        egress: None,
    }
}

pub fn owned_by(meta: &ObjectMeta, profile: &Profile) -> bool {
    let uid = profile.metadata.uid.as_deref();
    uid.is_some() && meta.owner_references.iter().flatten().any(|r| Some(r.uid.as_str()) == uid)
}

/// Ours is what we made, and what an administrator set aside for this owner by annotation, as upstream allows.
fn is_ours(namespace: &Namespace, profile: &Profile, owner: &Owner) -> bool {
    let set_aside = namespace.metadata.annotations.as_ref().and_then(|a| a.get(annotation::OWNER)) == Some(&owner.name);
    let another_profile = namespace.metadata.owner_references.iter().flatten().any(|r| r.kind == "Profile");
    owned_by(&namespace.metadata, profile) || (set_aside && !another_profile)
}

fn namespace(
    name: &str,
    owner: &Owner,
    existing: Option<&Namespace>,
    reference: k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference,
    pod_security: PodSecurity,
) -> Namespace {
    let existing = existing.and_then(|n| n.metadata.labels.as_ref());
    let ours = existing.is_some_and(|l| l.get(label::MANAGED_BY).is_some_and(|m| m == names::FIELD_MANAGER));
    let defaults =
        [(label::KATIB_METRICS_COLLECTOR, "enabled"), (label::SERVING, "enabled"), (label::PIPELINES, "true")];
    let mut labels: BTreeMap<String, String> = [
        (label::PART_OF.to_owned(), label::KUBEFLOW_PROFILE.to_owned()),
        (label::MANAGED_BY.to_owned(), names::FIELD_MANAGER.to_owned()),
    ]
    .into();
    for (key, value) in defaults {
        // Defaults, not demands: a label that somebody set or took away stays so, as upstream does.
        match existing.map(|l| l.get(key)) {
            None | Some(None) if !ours => drop(labels.insert(key.to_owned(), value.to_owned())),
            Some(Some(kept)) => drop(labels.insert(key.to_owned(), kept.clone())),
            _ => {}
        }
    }
    // Whoever wants none says `privileged`: a label that is merely absent, as before an upgrade, is no decision.
    let enforced = existing.and_then(|l| l.get(label::POD_SECURITY_ENFORCE)).cloned();
    labels.insert(label::POD_SECURITY_ENFORCE.to_owned(), enforced.unwrap_or_else(|| pod_security.to_string()));
    Namespace {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels),
            annotations: Some([(annotation::OWNER.to_owned(), owner.name.clone())].into()),
            owner_references: Some(vec![reference]),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    }
}

fn subject(owner: &Owner) -> Subject {
    let account = owner.kind == "ServiceAccount";
    Subject {
        kind: owner.kind.clone(),
        name: owner.name.clone(),
        namespace: owner.namespace.clone().filter(|_| account),
        api_group: (!account).then(|| "rbac.authorization.k8s.io".to_owned()),
    }
}

fn quota(profile: &Profile) -> Result<Option<k8s_openapi::api::core::v1::ResourceQuotaSpec>, serde_json::Error> {
    let spec = profile.spec.resource_quota_spec.as_ref();
    spec.filter(|q| q.hard.as_ref().is_some_and(|h| !h.is_empty())).map(|q| q.to_core()).transpose()
}

fn status(kind: &str, message: String, profile: &Profile) -> ProfileStatus {
    let mut conditions = vec![ProfileCondition { type_: kind.into(), status: "True".into(), message }];
    conditions.extend(plugins::outcome(&profile.spec.plugins).conditions);
    ProfileStatus { conditions }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfbox_api::profile::{Plugin, ProfileSpec, ResourceQuotaSpec};

    fn profile(name: &str, owner: Owner) -> Profile {
        let mut profile = Profile::new(name, ProfileSpec { owner: Some(owner), ..ProfileSpec::default() });
        profile.metadata.uid = Some(format!("uid-of-{name}"));
        profile
    }

    fn desired(profile: &Profile, existing: Option<&Namespace>) -> Desired {
        match plan(profile, existing, &Walls::default()) {
            Plan::Apply { desired, status } => {
                assert_eq!(status.conditions[0].type_, "Successful");
                *desired
            }
            Plan::Refuse { status } => panic!("{status:?}"),
        }
    }

    fn refusal(profile: &Profile, existing: Option<&Namespace>) -> String {
        match plan(profile, existing, &Walls::default()) {
            Plan::Refuse { status } => {
                assert_eq!(status.conditions[0].type_, "Failed");
                status.conditions[0].message.clone()
            }
            Plan::Apply { .. } => panic!("was not refused"),
        }
    }

    #[test]
    fn a_profile_becomes_a_namespace_with_accounts_and_bindings_it_owns() {
        let profile = profile("team-a", Owner::user("a@example.com"));
        let d = desired(&profile, None);
        let labels = d.namespace.metadata.labels.clone().unwrap();
        assert_eq!(labels["app.kubernetes.io/part-of"], "kubeflow-profile");
        assert_eq!(labels["pipelines.kubeflow.org/enabled"], "true");
        assert_eq!(d.namespace.metadata.annotations.clone().unwrap()["owner"], "a@example.com");
        let bindings: Vec<_> = d
            .role_bindings
            .iter()
            .map(|b| {
                let s = &b.subjects.as_ref().unwrap()[0];
                (b.name_any(), b.role_ref.name.as_str(), s.kind.as_str(), s.name.as_str(), s.namespace.as_deref())
            })
            .collect();
        assert_eq!(
            bindings,
            [
                ("default-editor".to_owned(), "kubeflow-edit", "ServiceAccount", "default-editor", Some("team-a")),
                ("default-viewer".to_owned(), "kubeflow-view", "ServiceAccount", "default-viewer", Some("team-a")),
                ("namespaceAdmin".to_owned(), "kubeflow-admin", "User", "a@example.com", None),
            ]
        );
        for meta in d.role_bindings.iter().map(|b| &b.metadata).chain(d.service_accounts.iter().map(|a| &a.metadata)) {
            assert!(owned_by(meta, &profile) && meta.namespace.as_deref() == Some("team-a"));
        }
        assert_eq!(d.quota, None);
    }

    #[test]
    fn a_foreign_namespace_is_never_taken() {
        let mine = profile("team-a", Owner::user("a@example.com"));
        let made = desired(&mine, None).namespace;
        assert_eq!(desired(&mine, Some(&made)).namespace, made, "applying twice changes nothing");

        let mut foreign = Namespace::default();
        foreign.metadata.name = Some("team-a".into());
        assert!(refusal(&mine, Some(&foreign)).contains("does not belong to a@example.com"));
        foreign.metadata.annotations = Some([("owner".to_owned(), "b@example.com".to_owned())].into());
        refusal(&mine, Some(&foreign));
        foreign.metadata.annotations = Some([("owner".to_owned(), "a@example.com".to_owned())].into());
        desired(&mine, Some(&foreign));

        // A profile deleted and made again by somebody else while the old namespace still goes away.
        let mut successor = profile("team-a", Owner::user("a@example.com"));
        successor.metadata.uid = Some("another".into());
        refusal(&successor, Some(&made));
        for reserved in ["kube-system", "kubeflow", "default"] {
            refusal(&profile(reserved, Owner::user("a@example.com")), None);
        }
    }

    #[test]
    fn owners_that_mean_something_else_to_kubernetes_are_refused() {
        refusal(&Profile::new("x", ProfileSpec::default()), None);
        refusal(&profile("x", Owner::user("")), None);
        refusal(&profile("x", Owner::user("system:admin")), None);
        refusal(
            &profile("x", Owner { kind: "Group".into(), name: "system:authenticated".into(), ..Owner::default() }),
            None,
        );
        refusal(&profile("x", Owner { kind: "Robot".into(), name: "r".into(), ..Owner::default() }), None);
        refusal(&profile("x", Owner { kind: "ServiceAccount".into(), name: "r".into(), ..Owner::default() }), None);
        let group =
            desired(&profile("x", Owner { kind: "Group".into(), name: "team".into(), ..Owner::default() }), None);
        assert_eq!(group.role_bindings[2].subjects.as_ref().unwrap()[0].kind, "Group");
    }

    #[test]
    fn an_owner_can_change_and_labels_of_users_stay() {
        let mut profile = profile("team-a", Owner::user("a@example.com"));
        let mut made = desired(&profile, None).namespace;
        let labels = made.metadata.labels.as_mut().unwrap();
        labels.insert("pipelines.kubeflow.org/enabled".into(), "false".into());
        labels.remove("serving.kubeflow.org/inferenceservice");
        profile.spec.owner = Some(Owner::user("b@example.com"));
        let d = desired(&profile, Some(&made));
        let labels = d.namespace.metadata.labels.unwrap();
        assert_eq!(labels["pipelines.kubeflow.org/enabled"], "false");
        assert!(!labels.contains_key("serving.kubeflow.org/inferenceservice"));
        assert_eq!(d.namespace.metadata.annotations.unwrap()["owner"], "b@example.com");
        assert_eq!(d.role_bindings[2].subjects.as_ref().unwrap()[0].name, "b@example.com");
    }

    #[test]
    fn a_profile_is_walled_in_as_the_box_says_and_as_its_namespace_says() {
        let profile = profile("team-a", Owner::user("a@example.com"));
        let enforced = |d: &Desired| d.namespace.metadata.labels.as_ref().unwrap()[label::POD_SECURITY_ENFORCE].clone();
        let by_default = desired(&profile, None);
        assert_eq!(enforced(&by_default), "baseline");
        let policy = by_default.network_policy.clone().unwrap();
        assert!(owned_by(&policy.metadata, &profile));
        let spec = serde_json::to_value(policy.spec.unwrap()).unwrap();
        assert_eq!(
            spec,
            serde_json::json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [
                {"podSelector": {}},
                {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kubeflow"}}},
            ]}]})
        );
        let strict = Walls { pod_security: PodSecurity::Restricted, network_policy: false };
        let Plan::Apply { desired: d, .. } = plan(&profile, None, &strict) else { panic!() };
        assert_eq!((enforced(&d).as_str(), &d.network_policy), ("restricted", &None));
        // What somebody set stays; what is missing is set, also on a namespace from before there were levels.
        let mut made = by_default.namespace;
        for (given, kept) in [(Some("privileged"), "privileged"), (None, "restricted")] {
            let labels = made.metadata.labels.as_mut().unwrap();
            labels.remove(label::POD_SECURITY_ENFORCE);
            labels.extend(given.map(|g| (label::POD_SECURITY_ENFORCE.to_owned(), g.to_owned())));
            let Plan::Apply { desired: d, .. } = plan(&profile, Some(&made), &strict) else { panic!() };
            assert_eq!(enforced(&d), kept);
        }
    }

    #[test]
    fn quotas_and_plugins() {
        let mut profile = profile("team-a", Owner::user("a@example.com"));
        profile.spec.resource_quota_spec = Some(ResourceQuotaSpec::default());
        assert_eq!(desired(&profile, None).quota, None);
        profile.spec.resource_quota_spec =
            serde_json::from_value(serde_json::json!({"hard": {"cpu": "2", "requests.nvidia.com/gpu": "1"}})).unwrap();
        let quota = desired(&profile, None).quota.unwrap();
        assert_eq!(quota.name_any(), "kf-resource-quota");
        assert_eq!(quota.spec.unwrap().hard.unwrap()["cpu"].0, "2");
        profile.spec.resource_quota_spec.as_mut().unwrap().scope_selector =
            Some(serde_json::json!({"matchExpressions": 3}));
        assert!(refusal(&profile, None).contains("scopeSelector"));
        profile.spec.resource_quota_spec = None;
        let role = serde_json::json!({"awsIamRole": "arn:aws:iam::1:role/r", "annotateOnly": true});
        profile.spec.plugins = vec![
            Plugin { kind: Some("AwsIamForServiceAccount".into()), spec: Some(role), ..Plugin::default() },
            Plugin { kind: Some("Other".into()), ..Plugin::default() },
        ];
        let Plan::Apply { desired: d, status } = plan(&profile, None, &Walls::default()) else { panic!() };
        let types: Vec<&str> = status.conditions.iter().map(|c| c.type_.as_str()).collect();
        assert_eq!(types, ["Successful", "PluginsIgnored"]);
        assert!(status.conditions[1].message.contains("Other"));
        assert_eq!(d.service_accounts[0].annotations()["eks.amazonaws.com/role-arn"], "arn:aws:iam::1:role/r");
        assert!(d.service_accounts[1].annotations().is_empty());
    }
}
