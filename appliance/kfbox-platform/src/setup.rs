//! What the platform's controllers need before they run: the CRDs, the `kubeflow` namespace, the roles of users, and on
//! a new box the first user's profile. Everything is applied, so that an upgrade changes what changed; the dashboard's
//! ConfigMap is made once.

pub(crate) mod dashboard;

use k8s_openapi::{
    api::{
        core::v1::Namespace,
        rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kfbox_api::{
    Profile,
    names::{self, label, role},
    profile::{self, ProfileSpec, Subject as Owner},
};
use kfbox_base::readiness::Component;
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
    core::NamespaceResourceScope,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fmt::{self, Debug},
    str::FromStr,
    time::Duration,
};

/// How long an API server that has just started may take to serve a new CRD.
const ESTABLISH: Duration = Duration::from_secs(60);
/// How long an API server may refuse while it starts.
const RETRY: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Made once, on a box where no profile exists; a profile deleted later stays deleted.
    pub default_profile: Option<DefaultProfile>,
    pub walls: Walls,
    pub routes: crate::routes::Config,
}

/// What keeps the pods of one profile from those of others, and from the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walls {
    /// The level of the Pod Security Standards that profiles' namespaces enforce, where they do not say themselves.
    pub pod_security: PodSecurity,
    /// Whether profiles' namespaces get a NetworkPolicy that lets in only their own pods and the platform's.
    pub network_policy: bool,
}

impl Default for Walls {
    /// Baseline is what upstream's manifests enforce (`applications/profiles/pss`).
    fn default() -> Self {
        Self { pod_security: PodSecurity::Baseline, network_policy: true }
    }
}

/// <https://kubernetes.io/docs/concepts/security/pod-security-standards/>
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodSecurity {
    Privileged,
    Baseline,
    Restricted,
}

impl fmt::Display for PodSecurity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        })
    }
}

impl FromStr for PodSecurity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let levels = [Self::Privileged, Self::Baseline, Self::Restricted];
        let found = levels.into_iter().find(|level| level.to_string() == text);
        found.ok_or_else(|| "the levels are privileged, baseline and restricted".to_owned())
    }
}

#[derive(Debug, Clone)]
pub struct DefaultProfile {
    pub name: String,
    pub owner: String,
}

impl DefaultProfile {
    /// Named as upstream does: `kubeflow-user-example-com` for `user@example.com`.
    pub fn for_user(email: &str) -> Self {
        let cleaned: String =
            email.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        // A namespace's name has at most 63 characters and ends with a letter or digit.
        let name: String = format!("kubeflow-{}", cleaned.trim_matches('-')).chars().take(63).collect();
        Self { name: name.trim_end_matches('-').to_owned(), owner: email.to_owned() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("cannot install {what}: {source}")]
    Apply {
        what: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("the definition of {name}: {source}")]
    Definition {
        name: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the API server did not serve {0} in time")]
    NotEstablished(String),
}

pub(crate) async fn install(client: &Client, config: &Config, component: &Component) -> Result<(), SetupError> {
    component.progress("installing the Profile resource");
    let crd = profile::definition();
    apply_cluster(client, &crd).await?;
    established(client, crd.metadata.name.as_deref().unwrap_or_default()).await?;
    component.progress("installing the resources of routes");
    for definition in crate::routes::DEFINITIONS {
        let name = definition.crd_name();
        let crd = definition.crd().map_err(|source| SetupError::Definition { name: name.clone(), source })?;
        // On a cluster that has Istio, or a box where somebody installed it, the definitions stay theirs.
        if !is_foreign(client, &name).await? {
            apply_cluster(client, &crd).await?;
        }
    }
    for definition in crate::routes::DEFINITIONS {
        established(client, &definition.crd_name()).await?;
    }
    component.progress("installing roles");
    apply_cluster(client, &namespace(names::KUBEFLOW_NAMESPACE)).await?;
    for role in cluster_roles() {
        // The embedded API server and upstream's manifests bring these roles as aggregations: those stay theirs.
        if !is_aggregated(client, &role).await? {
            apply_cluster(client, &role).await?;
        }
    }
    for role in route_roles() {
        apply_cluster(client, &role).await?;
    }
    apply_cluster(client, &administrators()).await?;
    dashboard::install(client).await?;
    if let Some(profile) = &config.default_profile {
        component.progress("making the first profile");
        first_profile(client, profile).await?;
    }
    Ok(())
}

async fn is_foreign(client: &Client, name: &str) -> Result<bool, SetupError> {
    let existing = Api::<CustomResourceDefinition>::all(client.clone()).get_opt(name).await;
    let existing = existing.map_err(|source| SetupError::Apply {
        what: format!("CustomResourceDefinition {name}"),
        source: Box::new(source),
    })?;
    let own = |crd: CustomResourceDefinition| {
        let labels = crd.metadata.labels.unwrap_or_default();
        labels.get(label::MANAGED_BY).is_some_and(|by| by == names::FIELD_MANAGER)
    };
    Ok(existing.is_some_and(|crd| !own(crd)))
}

async fn is_aggregated(client: &Client, role: &ClusterRole) -> Result<bool, SetupError> {
    let name = role.metadata.name.as_deref().unwrap_or_default();
    let existing = Api::<ClusterRole>::all(client.clone()).get_opt(name).await;
    let existing = existing
        .map_err(|source| SetupError::Apply { what: format!("ClusterRole {name}"), source: Box::new(source) })?;
    Ok(existing.is_some_and(|r| r.aggregation_rule.is_some()))
}

async fn apply_cluster<K>(client: &Client, object: &K) -> Result<(), SetupError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    K: Resource<Scope = kube::core::ClusterResourceScope>,
{
    let api: Api<K> = Api::all(client.clone());
    let name = object.meta().name.clone().unwrap_or_default();
    let since = tokio::time::Instant::now();
    loop {
        match api.patch(&name, &applied(), &Patch::Apply(object)).await {
            Ok(_) => return Ok(()),
            // Not serving yet is no failure; a refusal is.
            Err(kube::Error::Api(status)) if status.code < 500 => {
                return Err(SetupError::Apply {
                    what: format!("{} {name}", K::kind(&())),
                    source: Box::new(kube::Error::Api(status)),
                });
            }
            Err(error) if since.elapsed() > RETRY => {
                return Err(SetupError::Apply { what: format!("{} {name}", K::kind(&())), source: Box::new(error) });
            }
            Err(error) => {
                tracing::debug!(%error, name, "the API server is not ready yet");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

pub(crate) fn applied() -> PatchParams {
    PatchParams::apply(names::FIELD_MANAGER).force()
}

/// The compiler's way to say that a kind is namespaced; used by the profile controller.
pub(crate) trait Namespaced: Resource<DynamicType = (), Scope = NamespaceResourceScope> {}
impl<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>> Namespaced for K {}

async fn established(client: &Client, name: &str) -> Result<(), SetupError> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let condition = kube::runtime::wait::conditions::is_crd_established();
    match tokio::time::timeout(ESTABLISH, kube::runtime::wait::await_condition(crds, name, condition)).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(SetupError::NotEstablished(name.to_owned())),
    }
}

fn namespace(name: &str) -> Namespace {
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(name.into());
    namespace.metadata.labels = Some([(label::PART_OF.into(), "kubeflow".into())].into());
    namespace
}

async fn first_profile(client: &Client, wanted: &DefaultProfile) -> Result<(), SetupError> {
    let api: Api<Profile> = Api::all(client.clone());
    let failed = |source| SetupError::Apply { what: format!("Profile {}", wanted.name), source: Box::new(source) };
    // The mark is on the namespace of the platform, so that a profile deleted on purpose does not come back.
    const MARK: &str = "kfbox.local/first-profile";
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let kubeflow = namespaces.get(names::KUBEFLOW_NAMESPACE).await.map_err(failed)?;
    if kubeflow.metadata.annotations.is_some_and(|a| a.contains_key(MARK)) {
        return Ok(());
    }
    let spec = ProfileSpec { owner: Some(Owner::user(&wanted.owner)), ..ProfileSpec::default() };
    match api.create(&PostParams::default(), &Profile::new(&wanted.name, spec)).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(failed(error)),
    }
    let mark = serde_json::json!({"metadata": {"annotations": {MARK: wanted.name}}});
    namespaces.patch(names::KUBEFLOW_NAMESPACE, &PatchParams::default(), &Patch::Merge(&mark)).await.map_err(failed)?;
    Ok(())
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> PolicyRule {
    let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    PolicyRule {
        api_groups: Some(owned(groups)),
        resources: Some(owned(resources)),
        verbs: owned(verbs),
        ..PolicyRule::default()
    }
}

const READ: [&str; 3] = ["get", "list", "watch"];

/// Groups whose resources Kubeflow's users work with in their namespaces.
const KUBEFLOW_GROUPS: [&str; 9] = [
    "kubeflow.org",
    "trainer.kubeflow.org",
    "serving.kserve.io",
    "tensorboard.kubeflow.org",
    "sparkoperator.k8s.io",
    "networking.k8s.io",
    "networking.istio.io",
    "security.istio.io",
    "gateway.networking.k8s.io",
];

/// `kubeflow-view`, `kubeflow-edit` and `kubeflow-admin`, with the reach that upstream's aggregated roles of these names
/// have (<https://github.com/kubeflow/manifests>, `common/kubeflow-roles`, and the components' own roles), but for writing
/// endpoints, by which a Service leads into other namespaces (CVE-2021-25740). They are bound in profiles' namespaces only.
pub fn cluster_roles() -> Vec<ClusterRole> {
    let core_read = [
        "bindings",
        "configmaps",
        "endpoints",
        "events",
        "limitranges",
        "namespaces",
        "namespaces/status",
        "persistentvolumeclaims",
        "persistentvolumeclaims/status",
        "pods",
        "pods/log",
        "pods/status",
        "replicationcontrollers",
        "replicationcontrollers/scale",
        "resourcequotas",
        "resourcequotas/status",
        "serviceaccounts",
        "services",
        "services/status",
    ];
    let view = vec![
        rule(&[""], &core_read, &READ),
        rule(&["apps", "autoscaling", "batch", "policy", "discovery.k8s.io", "events.k8s.io"], &["*"], &READ),
        rule(&KUBEFLOW_GROUPS, &["*"], &READ),
        rule(
            &["pipelines.kubeflow.org"],
            &[
                "pipelines",
                "pipelineversions",
                "pipelines/versions",
                "experiments",
                "jobs",
                "runs",
                "visualizations",
                "viewers",
            ],
            &["get", "list", "watch", "readArtifact"],
        ),
    ];
    let mut edit = view.clone();
    let core_write = [
        "configmaps",
        "events",
        "persistentvolumeclaims",
        "pods",
        "pods/attach",
        "pods/eviction",
        "pods/exec",
        "pods/portforward",
        "pods/proxy",
        "replicationcontrollers",
        "replicationcontrollers/scale",
        "secrets",
        "serviceaccounts",
        "services",
        "services/proxy",
    ];
    let write = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
    edit.extend([
        rule(&[""], &core_write, &write),
        rule(&[""], &["serviceaccounts"], &["impersonate"]),
        rule(&[""], &["serviceaccounts/token"], &["create"]),
        rule(&["apps", "autoscaling", "batch", "policy"], &["*"], &write),
        rule(&KUBEFLOW_GROUPS, &["*"], &write),
        rule(&["pipelines.kubeflow.org"], &["*"], &["*"]),
    ]);
    let mut admin = edit.clone();
    admin.extend([
        rule(&["rbac.authorization.k8s.io"], &["roles", "rolebindings"], &write),
        rule(&["authorization.k8s.io"], &["localsubjectaccessreviews"], &["create"]),
    ]);
    [(role::VIEW, view), (role::EDIT, edit), (role::ADMIN, admin)]
        .into_iter()
        .map(|(name, rules)| {
            let mut object = ClusterRole { rules: Some(rules), ..ClusterRole::default() };
            object.metadata.name = Some(name.into());
            object.metadata.labels = Some([(label::PART_OF.into(), "kubeflow".into())].into());
            object
        })
        .collect()
}

/// What the aggregated roles of Kubeflow gain for routes, as upstream's `kubeflow-istio-edit` and `-view` give it.
fn route_roles() -> Vec<ClusterRole> {
    let groups = ["networking.istio.io", "security.istio.io", "gateway.networking.k8s.io"];
    let write = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
    [("kfbox-routes-edit", role::EDIT, &write[..]), ("kfbox-routes-view", role::VIEW, &READ[..])]
        .into_iter()
        .map(|(name, into, verbs)| {
            let mut object = ClusterRole { rules: Some(vec![rule(&groups, &["*"], verbs)]), ..ClusterRole::default() };
            object.metadata.name = Some(name.into());
            let aggregate = format!("rbac.authorization.kubeflow.org/aggregate-to-{into}");
            object.metadata.labels =
                Some([(aggregate, "true".into()), (label::PART_OF.into(), "kubeflow".into())].into());
            object
        })
        .collect()
}

/// Members of the box's administrators' group administer the cluster.
fn administrators() -> ClusterRoleBinding {
    let mut binding = ClusterRoleBinding {
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "ClusterRole".into(),
            name: role::CLUSTER_ADMIN.into(),
        },
        subjects: Some(vec![Subject {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "Group".into(),
            name: names::ADMIN_GROUP.into(),
            namespace: None,
        }]),
        ..ClusterRoleBinding::default()
    };
    binding.metadata.name = Some("kfbox-admins".into());
    binding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_profile_is_named_as_upstream_names_it() {
        assert_eq!(DefaultProfile::for_user("user@example.com").name, "kubeflow-user-example-com");
        let long = DefaultProfile::for_user(&format!("{}@x.org", "a.".repeat(60))).name;
        assert!(long.len() <= 63 && !long.ends_with('-'), "{long}");
    }

    #[test]
    fn viewers_cannot_write_or_read_secrets_and_editors_cannot_change_roles() {
        let roles = cluster_roles();
        let rules = |name: &str| {
            roles.iter().find(|r| r.metadata.name.as_deref() == Some(name)).unwrap().rules.clone().unwrap()
        };
        for rule in rules(role::VIEW) {
            let resources = rule.resources.clone().unwrap();
            assert!(!resources.iter().any(|r| r == "secrets"));
            assert!(!rule.api_groups.clone().unwrap().contains(&"*".to_owned()));
            if rule.api_groups.unwrap().contains(&String::new()) {
                assert!(!resources.contains(&"*".to_owned()), "* would cover secrets and exec");
            }
            assert!(rule.verbs.iter().all(|v| ["get", "list", "watch", "readArtifact"].contains(&v.as_str())));
        }
        let rbac = |name: &str| {
            rules(name).iter().any(|r| r.api_groups.as_ref().unwrap().iter().any(|g| g == "rbac.authorization.k8s.io"))
        };
        assert!(!rbac(role::EDIT) && rbac(role::ADMIN));
    }
}
