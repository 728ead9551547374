//! The built-in resources of Kubernetes 1.36 that kfbox serves, in the order of upstream's discovery documents.

use super::{Resource, Subresource, Verbs};
use std::sync::{Arc, LazyLock};

const NAMESPACED: u8 = 1;
/// Upstream's strategy for the kind maintains `metadata.generation`.
const GENERATION: u8 = 2;
const NS: u8 = NAMESPACED;
const CL: u8 = 0;
const NG: u8 = NAMESPACED | GENERATION;
const CG: u8 = GENERATION;

struct Row {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    flags: u8,
    short_names: &'static str,
    categories: &'static str,
    subresources: &'static str,
    verbs: Verbs,
}

#[expect(clippy::too_many_arguments, reason = "one call a line of a table")]
const fn row(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    flags: u8,
    short_names: &'static str,
    categories: &'static str,
    subresources: &'static str,
) -> Row {
    Row { group, version, kind, plural, flags, short_names, categories, subresources, verbs: Verbs::All }
}

const fn only(verbs: Verbs, row: Row) -> Row {
    Row { verbs, ..row }
}

const ADMISSION: &str = "admissionregistration.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const STORAGE: &str = "storage.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const AUTHZ: &str = "authorization.k8s.io";
const RESOURCE: &str = "resource.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";
const EXTENSIONS: &str = "api-extensions";
const POD: &str = "attach binding ephemeralcontainers eviction exec log portforward proxy resize status";

#[rustfmt::skip]
static TABLE: &[Row] = &[
    only(Verbs::Create, row("", "v1", "Binding", "bindings", NS, "", "", "")),
    only(Verbs::Read, row("", "v1", "ComponentStatus", "componentstatuses", CL, "cs", "", "")),
    row("", "v1", "ConfigMap", "configmaps", NS, "cm", "", ""),
    row("", "v1", "Endpoints", "endpoints", NS, "ep", "", ""),
    row("", "v1", "Event", "events", NS, "ev", "", ""),
    row("", "v1", "LimitRange", "limitranges", NS, "limits", "", ""),
    only(Verbs::NoCollection, row("", "v1", "Namespace", "namespaces", CL, "ns", "", "finalize status")),
    row("", "v1", "Node", "nodes", CL, "no", "", "proxy status"),
    row("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", NS, "pvc", "", "status"),
    row("", "v1", "PersistentVolume", "persistentvolumes", CL, "pv", "", "status"),
    row("", "v1", "Pod", "pods", NG, "po", "all", POD),
    row("", "v1", "PodTemplate", "podtemplates", NG, "", "", ""),
    row("", "v1", "ReplicationController", "replicationcontrollers", NG, "rc", "all", "scale status"),
    row("", "v1", "ResourceQuota", "resourcequotas", NS, "quota", "", "status"),
    row("", "v1", "Secret", "secrets", NS, "", "", ""),
    row("", "v1", "ServiceAccount", "serviceaccounts", NS, "sa", "", "token"),
    row("", "v1", "Service", "services", NS, "svc", "all", "proxy status"),
    row("apiregistration.k8s.io", "v1", "APIService", "apiservices", CG, "", EXTENSIONS, "status"),
    row("apps", "v1", "ControllerRevision", "controllerrevisions", NS, "", "", ""),
    row("apps", "v1", "DaemonSet", "daemonsets", NG, "ds", "all", "status"),
    row("apps", "v1", "Deployment", "deployments", NG, "deploy", "all", "scale status"),
    row("apps", "v1", "ReplicaSet", "replicasets", NG, "rs", "all", "scale status"),
    row("apps", "v1", "StatefulSet", "statefulsets", NG, "sts", "all", "scale status"),
    row("events.k8s.io", "v1", "Event", "events", NS, "ev", "", ""),
    only(Verbs::Create, row("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", CL, "", "", "")),
    only(Verbs::Create, row("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", CL, "", "", "")),
    only(Verbs::Create, row(AUTHZ, "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews", NS, "", "", "")),
    only(Verbs::Create, row(AUTHZ, "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", CL, "", "", "")),
    only(Verbs::Create, row(AUTHZ, "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", CL, "", "", "")),
    only(Verbs::Create, row(AUTHZ, "v1", "SubjectAccessReview", "subjectaccessreviews", CL, "", "", "")),
    row("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", NG, "hpa", "all", "status"),
    row("autoscaling", "v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers", NG, "hpa", "all", "status"),
    row("batch", "v1", "CronJob", "cronjobs", NG, "cj", "all", "status"),
    row("batch", "v1", "Job", "jobs", NG, "", "all", "status"),
    row("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests", CL, "csr", "", "approval status"),
    row(NETWORKING, "v1", "IngressClass", "ingressclasses", CG, "", "", ""),
    row(NETWORKING, "v1", "Ingress", "ingresses", NG, "ing", "", "status"),
    row(NETWORKING, "v1", "IPAddress", "ipaddresses", CL, "ip", "", ""),
    row(NETWORKING, "v1", "NetworkPolicy", "networkpolicies", NG, "netpol", "", ""),
    row(NETWORKING, "v1", "ServiceCIDR", "servicecidrs", CL, "", "", "status"),
    row("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", NG, "pdb", "", "status"),
    row(RBAC, "v1", "ClusterRoleBinding", "clusterrolebindings", CL, "", "", ""),
    row(RBAC, "v1", "ClusterRole", "clusterroles", CL, "", "", ""),
    row(RBAC, "v1", "RoleBinding", "rolebindings", NS, "", "", ""),
    row(RBAC, "v1", "Role", "roles", NS, "", "", ""),
    row(STORAGE, "v1", "CSIDriver", "csidrivers", CL, "", "", ""),
    row(STORAGE, "v1", "CSINode", "csinodes", CL, "", "", ""),
    row(STORAGE, "v1", "CSIStorageCapacity", "csistoragecapacities", NS, "", "", ""),
    row(STORAGE, "v1", "StorageClass", "storageclasses", CL, "sc", "", ""),
    row(STORAGE, "v1", "VolumeAttachment", "volumeattachments", CL, "", "", "status"),
    row(STORAGE, "v1", "VolumeAttributesClass", "volumeattributesclasses", CL, "vac", "", ""),
    row(ADMISSION, "v1", "MutatingAdmissionPolicy", "mutatingadmissionpolicies", CG, "", EXTENSIONS, ""),
    row(ADMISSION, "v1", "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings", CG, "", EXTENSIONS, ""),
    row(ADMISSION, "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", CG, "", EXTENSIONS, ""),
    row(ADMISSION, "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies", CG, "", EXTENSIONS, "status"),
    row(ADMISSION, "v1", "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", CG, "", EXTENSIONS, ""),
    row(ADMISSION, "v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", CG, "", EXTENSIONS, ""),
    row("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", CG, "crd,crds", EXTENSIONS, "status"),
    row("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", CG, "pc", "", ""),
    row("coordination.k8s.io", "v1", "Lease", "leases", NS, "", "", ""),
    row("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", CL, "", "", ""),
    row("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", NG, "", "", ""),
    row(RESOURCE, "v1", "DeviceClass", "deviceclasses", CG, "", "", ""),
    row(RESOURCE, "v1", "ResourceClaim", "resourceclaims", NS, "", "", "status"),
    row(RESOURCE, "v1", "ResourceClaimTemplate", "resourceclaimtemplates", NS, "", "", ""),
    row(RESOURCE, "v1", "ResourceSlice", "resourceslices", CG, "", "", ""),
    row(FLOW, "v1", "FlowSchema", "flowschemas", CG, "", "", "status"),
    row(FLOW, "v1", "PriorityLevelConfiguration", "prioritylevelconfigurations", CG, "", "", "status"),
];

/// Served by this program, but not stored: upstream it is an aggregated server's, and so it comes last.
#[rustfmt::skip]
static METRICS: &[Row] = &[
    only(Verbs::Read, row("metrics.k8s.io", "v1beta1", "NodeMetrics", "nodes", CL, "", "", "")),
    only(Verbs::Read, row("metrics.k8s.io", "v1beta1", "PodMetrics", "pods", NS, "", "", "")),
];

pub fn resources() -> &'static [Arc<Resource>] {
    static RESOURCES: LazyLock<Vec<Arc<Resource>>> =
        LazyLock::new(|| TABLE.iter().map(|r| Arc::new(resource(r))).collect());
    &RESOURCES
}

pub fn metrics() -> &'static [Arc<Resource>] {
    static RESOURCES: LazyLock<Vec<Arc<Resource>>> =
        LazyLock::new(|| METRICS.iter().map(|r| Arc::new(resource(r))).collect());
    &RESOURCES
}

fn resource(row: &Row) -> Resource {
    let words = |text: &str, by: char| text.split(by).filter(|s| !s.is_empty()).map(str::to_owned).collect();
    // Events have one store under two groups.
    let group = if row.plural == "events" { "" } else { row.group };
    Resource {
        group: row.group.into(),
        version: row.version.into(),
        kind: row.kind.into(),
        list_kind: format!("{}List", row.kind).into(),
        plural: row.plural.into(),
        singular: singular(row).into(),
        short_names: words(row.short_names, ','),
        categories: words(row.categories, ','),
        namespaced: row.flags & NAMESPACED != 0,
        verbs: row.verbs,
        subresources: row.subresources.split(' ').filter(|s| !s.is_empty()).map(|s| subresource(row.kind, s)).collect(),
        collection: crate::status::group_resource(group, row.plural).into(),
        // Autoscalers are one store in two versions.
        storage_version: if row.group == "autoscaling" { "v2" } else { row.version }.into(),
        generation: row.flags & GENERATION != 0,
        custom: None,
    }
}

/// The kind in small letters; the metrics server names its singulars after what it measures.
fn singular(row: &Row) -> String {
    if row.group == "metrics.k8s.io" { row.plural.trim_end_matches('s').to_owned() } else { row.kind.to_lowercase() }
}

pub(super) fn subresource(kind: &str, name: &str) -> Subresource {
    const READ_WRITE: &[&str] = &["get", "patch", "update"];
    const STREAM: &[&str] = &["create", "get"];
    const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
    let core = |object: &str| ("", "", object.into());
    let (verbs, object) = match name {
        "scale" => (READ_WRITE, ("autoscaling", "v1", "Scale".into())),
        "eviction" => (&["create"][..], ("policy", "v1", "Eviction".into())),
        "token" => (&["create"][..], ("authentication.k8s.io", "v1", "TokenRequest".into())),
        "binding" => (&["create"][..], core("Binding")),
        "finalize" => (&["update"][..], core(kind)),
        "log" => (&["get"][..], core(kind)),
        "attach" => (STREAM, core("PodAttachOptions")),
        "exec" => (STREAM, core("PodExecOptions")),
        "portforward" => (STREAM, core("PodPortForwardOptions")),
        "proxy" => (PROXY, core(&format!("{kind}ProxyOptions"))),
        _ => (READ_WRITE, core(kind)),
    };
    Subresource { name: name.into(), verbs, object }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_the_storage_version_is_upstreams() {
        let pods = resources().iter().find(|r| &*r.plural == "pods").unwrap();
        assert_eq!(pods.storage_version_hash(), "xPOwRZ+Yhw8=");
    }
}
