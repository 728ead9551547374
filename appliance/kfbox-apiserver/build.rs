//! Writes what Kubernetes' types and fields mean, for `kubectl explain`, as `k8s-openapi` carries it in its schemas:
//! `descriptions.gz`, a line a field, `TYPE<tab>FIELD<tab>TEXT` with the field empty for the type itself and line ends in
//! the text written `\n`. Read by `src/openapi/descriptions.rs`.

use flate2::{Compression, write::GzEncoder};
use k8s_openapi::{
    api::{
        admissionregistration::v1 as admissionregistration, apps::v1 as apps, authentication::v1 as authentication,
        authorization::v1 as authorization, autoscaling, batch::v1 as batch, certificates::v1 as certificates,
        coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery, events::v1 as events,
        flowcontrol::v1 as flowcontrol, networking::v1 as networking, node::v1 as node, policy::v1 as policy,
        rbac::v1 as rbac, resource::v1 as resource, scheduling::v1 as scheduling, storage::v1 as storage,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions,
    apimachinery::pkg::{apis::meta::v1 as meta, version},
    kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration,
};
use serde_json::Value;
use std::{collections::BTreeMap, fmt::Write as _, io::Write as _, path::PathBuf};

macro_rules! types {
    ($generator:expr, $($module:path: $($kind:ident)+;)+) => {
        $($({
            use $module as module;
            $generator.subschema_for::<module::$kind>();
        })+)+
    };
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let mut generator = schemars::SchemaGenerator::default();
    types!(generator,
        admissionregistration: MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration
            ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration;
        apiextensions: CustomResourceDefinition;
        apiregistration: APIService;
        apps: ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet;
        authentication: SelfSubjectReview TokenRequest TokenReview;
        authorization: LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview;
        autoscaling::v1: HorizontalPodAutoscaler Scale;
        autoscaling::v2: HorizontalPodAutoscaler;
        batch: CronJob Job;
        certificates: CertificateSigningRequest;
        coordination: Lease;
        core: Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume
            PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount;
        discovery: EndpointSlice;
        events: Event;
        flowcontrol: FlowSchema PriorityLevelConfiguration;
        meta: APIGroup APIGroupList APIResourceList APIVersions DeleteOptions ListMeta Patch Status;
        networking: IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR;
        node: RuntimeClass;
        policy: Eviction PodDisruptionBudget;
        rbac: ClusterRole ClusterRoleBinding Role RoleBinding;
        resource: DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice;
        scheduling: PriorityClass;
        storage: CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass;
        version: Info;
    );
    let definitions: BTreeMap<&String, &Value> = generator.definitions().iter().collect();
    let mut text = String::new();
    for (name, schema) in definitions {
        let mut line = |field: &str, schema: &Value| -> std::fmt::Result {
            match schema["description"].as_str() {
                Some(description) => writeln!(text, "{name}\t{field}\t{}", description.replace('\n', "\\n")),
                None => Ok(()),
            }
        };
        line("", schema)?;
        for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
            line(field, schema)?;
        }
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?).join("descriptions.gz");
    let mut encoder = GzEncoder::new(std::fs::File::create(out)?, Compression::best());
    encoder.write_all(text.as_bytes())?;
    encoder.finish()?;
    Ok(())
}
