//! Names with a meaning: what upstream Kubeflow's controllers, SDKs and manifests call things
//! (<https://github.com/kubeflow/dashboard>, <https://github.com/kubeflow/manifests>), and the few that are our own.

/// The namespace that holds the platform's Services.
pub const KUBEFLOW_NAMESPACE: &str = "kubeflow";

/// The registry that the box itself is. Images named so never leave the machine.
pub const REGISTRY_HOST: &str = "registry.kfbox.local";

/// The Service in [`KUBEFLOW_NAMESPACE`] that leads to it.
pub const REGISTRY_SERVICE: &str = "image-registry";

/// The group whose members administer this box. People cannot be put into `system:` groups; the binary binds this one
/// to the cluster role `cluster-admin`.
pub const ADMIN_GROUP: &str = "kfbox:admins";

/// Field manager of everything that the platform's controllers apply.
pub const FIELD_MANAGER: &str = "kfbox-platform";

pub mod label {
    pub const PART_OF: &str = "app.kubernetes.io/part-of";
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    pub const NAME: &str = "app.kubernetes.io/name";
    /// Value of [`PART_OF`] on a profile's namespace; upstream's web apps list namespaces by it.
    pub const KUBEFLOW_PROFILE: &str = "kubeflow-profile";
    pub const KATIB_METRICS_COLLECTOR: &str = "katib.kubeflow.org/metrics-collector-injection";
    pub const SERVING: &str = "serving.kubeflow.org/inferenceservice";
    pub const PIPELINES: &str = "pipelines.kubeflow.org/enabled";
    /// Pod Security Standards level of a namespace.
    pub const POD_SECURITY_ENFORCE: &str = "pod-security.kubernetes.io/enforce";
    /// On every namespace: its own name, for the selectors of NetworkPolicies.
    pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
}

pub mod annotation {
    /// On a profile's namespace and its owner's RoleBinding: the owner's user name.
    pub const OWNER: &str = "owner";
    /// On RoleBindings: who is bound, for KFAM's listing.
    pub const USER: &str = "user";
    /// On RoleBindings: the KFAM role, one of `admin`, `edit`, `view`.
    pub const ROLE: &str = "role";
}

/// Cluster roles that upstream aggregates for the users of a namespace.
pub mod role {
    pub const ADMIN: &str = "kubeflow-admin";
    pub const EDIT: &str = "kubeflow-edit";
    pub const VIEW: &str = "kubeflow-view";
    pub const CLUSTER_ADMIN: &str = "cluster-admin";
}

/// Objects that every profile's namespace has.
pub mod profile {
    pub const FINALIZER: &str = "profile-finalizer";
    pub const DEFAULT_EDITOR: &str = "default-editor";
    pub const DEFAULT_VIEWER: &str = "default-viewer";
    pub const OWNER_BINDING: &str = "namespaceAdmin";
    pub const RESOURCE_QUOTA: &str = "kf-resource-quota";
    /// Named as the one that upstream's manifests put into the namespace `kubeflow`.
    pub const NETWORK_POLICY: &str = "default-allow-same-namespace";
}

/// `status.conditions[].type` values.
pub mod condition {
    /// Upstream's types on a Profile.
    pub const SUCCEEDED: &str = "Successful";
    pub const FAILED: &str = "Failed";
    pub const UNKNOWN: &str = "Unknown";
    /// Ours on a Profile: plugins in the specification that have no effect here.
    pub const PLUGINS_IGNORED: &str = "PluginsIgnored";
    /// Ours on a Profile: what plugins would have changed at the cloud is left to its administrator.
    pub const PLUGINS_ANNOTATE_ONLY: &str = "PluginsAnnotateOnly";
}
