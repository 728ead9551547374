//! Columns and rows by kind.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{
    Column, Row, RowOf, age, age_of, count_at, int_at, list_at, name, or, pods, selector, text_at, workloads as w,
};

const S: &str = "string";
const I: &str = "integer";

/// The columns of a built-in kind with its row function; NAME and AGE for kinds without own ones.
pub(super) fn of(group: &str, kind: &str) -> (&'static [Column], RowOf) {
    match (group, kind) {
        ("", "Pod") => (pods::COLUMNS, pods::row),
        ("apps", "Deployment") => (w::DEPLOYMENT, w::deployment),
        ("apps", "ReplicaSet") | ("", "ReplicationController") => (w::REPLICA_SET, w::replica_set),
        ("apps", "StatefulSet") => (w::STATEFUL_SET, w::stateful_set),
        ("apps", "DaemonSet") => (w::DAEMON_SET, w::daemon_set),
        ("batch", "Job") => (w::JOB, w::job),
        ("batch", "CronJob") => (w::CRON_JOB, w::cron_job),
        ("autoscaling", "HorizontalPodAutoscaler") => (w::AUTOSCALER, w::autoscaler),
        ("autoscaling", "Scale") => {
            (&[("Name", S, 0), ("Desired", I, 0), ("Available", I, 0), ("Age", S, 0)], |o, now| {
                vec![name(o), int_at(o, "/spec/replicas").into(), int_at(o, "/status/replicas").into(), age(o, now)]
            })
        }
        ("", "Service") => (SERVICE, service),
        ("", "Endpoints") => (&[("Name", S, 0), ("Endpoints", S, 0), ("Age", S, 0)], endpoints),
        ("discovery.k8s.io", "EndpointSlice") => (
            &[("Name", S, 0), ("AddressType", S, 0), ("Ports", S, 0), ("Endpoints", S, 0), ("Age", S, 0)],
            endpoint_slice,
        ),
        ("", "Node") => (NODE, node),
        ("", "Namespace") => (&[("Name", S, 0), ("Status", S, 0), ("Age", S, 0)], |o, now| {
            vec![name(o), Value::from(text_at(o, "/status/phase")), age(o, now)]
        }),
        ("", "ConfigMap") => (&[("Name", S, 0), ("Data", I, 0), ("Age", S, 0)], |o, now| {
            vec![name(o), Value::from(count_at(o, "/data") + count_at(o, "/binaryData")), age(o, now)]
        }),
        ("", "Secret") => (&[("Name", S, 0), ("Type", S, 0), ("Data", I, 0), ("Age", S, 0)], |o, now| {
            vec![name(o), Value::from(text_at(o, "/type")), Value::from(count_at(o, "/data")), age(o, now)]
        }),
        ("", "ServiceAccount") => (&[("Name", S, 0), ("Secrets", I, 0), ("Age", S, 0)], |o, now| {
            vec![name(o), Value::from(count_at(o, "/secrets")), age(o, now)]
        }),
        ("", "PersistentVolume") => (PV, volume),
        ("", "PersistentVolumeClaim") => (PVC, claim),
        ("", "Event") | ("events.k8s.io", "Event") => (EVENT, event),
        ("", "ResourceQuota") => (&[("Name", S, 0), ("Request", S, 0), ("Limit", S, 0), ("Age", S, 0)], quota),
        ("", "LimitRange")
        | ("rbac.authorization.k8s.io", "Role" | "ClusterRole")
        | ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            (&[("Name", S, 0), ("Created At", "date", 0)], |o, _| {
                vec![name(o), Value::from(text_at(o, "/metadata/creationTimestamp"))]
            })
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => (BINDING, binding),
        ("storage.k8s.io", "StorageClass") => (STORAGE_CLASS, storage_class),
        ("storage.k8s.io", "VolumeAttachment") => (
            &[
                ("Name", S, 0),
                ("Attacher", S, 0),
                ("PV", S, 0),
                ("Node", S, 0),
                ("Attached", "boolean", 0),
                ("Age", S, 0),
            ],
            |o, now| {
                vec![
                    name(o),
                    Value::from(text_at(o, "/spec/attacher")),
                    Value::from(text_at(o, "/spec/source/persistentVolumeName")),
                    Value::from(text_at(o, "/spec/nodeName")),
                    Value::from(o.pointer("/status/attached") == Some(&Value::Bool(true))),
                    age(o, now),
                ]
            },
        ),
        ("storage.k8s.io", "CSINode") => (&[("Name", S, 0), ("Drivers", I, 0), ("Age", S, 0)], |o, now| {
            vec![name(o), Value::from(count_at(o, "/spec/drivers")), age(o, now)]
        }),
        ("networking.k8s.io", "Ingress") => (INGRESS, ingress),
        ("networking.k8s.io", "IngressClass") => {
            (&[("Name", S, 0), ("Controller", S, 0), ("Parameters", S, 0), ("Age", S, 0)], |o, now| {
                let (kind, target) = (text_at(o, "/spec/parameters/kind"), text_at(o, "/spec/parameters/name"));
                let group = text_at(o, "/spec/parameters/apiGroup");
                let parameters = match (kind, group) {
                    ("", _) => "<none>".to_owned(),
                    (kind, "") => format!("{kind}/{target}"),
                    (kind, group) => format!("{kind}.{group}/{target}"),
                };
                vec![name(o), Value::from(text_at(o, "/spec/controller")), Value::from(parameters), age(o, now)]
            })
        }
        ("networking.k8s.io", "NetworkPolicy") => {
            (&[("Name", S, 0), ("Pod-Selector", S, 0), ("Age", S, 0)], |o, now| {
                vec![name(o), selector(o.pointer("/spec/podSelector"), "<none>"), age(o, now)]
            })
        }
        ("coordination.k8s.io", "Lease") => (&[("Name", S, 0), ("Holder", S, 0), ("Age", S, 0)], |o, now| {
            vec![name(o), Value::from(text_at(o, "/spec/holderIdentity")), age(o, now)]
        }),
        ("policy", "PodDisruptionBudget") => (
            &[
                ("Name", S, 0),
                ("Min Available", S, 0),
                ("Max Unavailable", S, 0),
                ("Allowed Disruptions", I, 0),
                ("Age", S, 0),
            ],
            |o, now| {
                let limit = |field: &str| Value::from(o.pointer(field).map_or_else(|| "N/A".to_owned(), plain));
                vec![
                    name(o),
                    limit("/spec/minAvailable"),
                    limit("/spec/maxUnavailable"),
                    Value::from(int_at(o, "/status/disruptionsAllowed")),
                    age(o, now),
                ]
            },
        ),
        ("scheduling.k8s.io", "PriorityClass") => (
            &[
                ("Name", S, 0),
                ("Value", I, 0),
                ("Global-Default", "boolean", 0),
                ("Age", S, 0),
                ("PreemptionPolicy", S, 0),
            ],
            |o, now| {
                vec![
                    name(o),
                    Value::from(int_at(o, "/value")),
                    Value::from(o.get("globalDefault") == Some(&Value::Bool(true))),
                    age(o, now),
                    or(text_at(o, "/preemptionPolicy"), "PreemptLowerPriority"),
                ]
            },
        ),
        ("node.k8s.io", "RuntimeClass") => (&[("Name", S, 0), ("Handler", S, 0), ("Age", S, 0)], |o, now| {
            vec![name(o), Value::from(text_at(o, "/handler")), age(o, now)]
        }),
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => {
            (&[("Name", S, 0), ("Webhooks", I, 0), ("Age", S, 0)], |o, now| {
                vec![name(o), Value::from(count_at(o, "/webhooks")), age(o, now)]
            })
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => {
            (&[("Name", S, 0), ("Validations", I, 0), ("ParamKind", S, 0), ("Age", S, 0)], |o, now| {
                let (version, kind) = (text_at(o, "/spec/paramKind/apiVersion"), text_at(o, "/spec/paramKind/kind"));
                let param = if kind.is_empty() { "<unset>".to_owned() } else { format!("{version}/{kind}") };
                vec![name(o), Value::from(count_at(o, "/spec/validations")), Value::from(param), age(o, now)]
            })
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => {
            (&[("Name", S, 0), ("PolicyName", S, 0), ("ParamRef", S, 0), ("Age", S, 0)], |o, now| {
                let param = match (text_at(o, "/spec/paramRef/namespace"), text_at(o, "/spec/paramRef/name")) {
                    (_, "") if o.pointer("/spec/paramRef").is_none() => "<unset>".to_owned(),
                    ("", target) => target.to_owned(),
                    (namespace, target) => format!("{namespace}/{target}"),
                };
                vec![name(o), Value::from(text_at(o, "/spec/policyName")), Value::from(param), age(o, now)]
            })
        }
        ("apps", "ControllerRevision") => {
            (&[("Name", S, 0), ("Controller", S, 0), ("Revision", S, 0), ("Age", S, 0)], |o, now| {
                let owner = list_at(o, "/metadata/ownerReferences")
                    .iter()
                    .find(|r| r.get("controller") == Some(&Value::Bool(true)));
                let owner = owner.map_or_else(
                    || "<none>".to_owned(),
                    |r| {
                        let group =
                            text_at(r, "/apiVersion").split_once('/').map_or(String::new(), |(g, _)| format!(".{g}"));
                        format!("{}{group}/{}", text_at(r, "/kind").to_lowercase(), text_at(r, "/name"))
                    },
                );
                vec![name(o), Value::from(owner), Value::from(int_at(o, "/revision")), age(o, now)]
            })
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => (CSR, signing_request),
        ("apiregistration.k8s.io", "APIService") => {
            (&[("Name", S, 0), ("Service", S, 0), ("Available", S, 0), ("Age", S, 0)], |o, now| {
                let service = match (text_at(o, "/spec/service/namespace"), text_at(o, "/spec/service/name")) {
                    (_, "") => "Local".to_owned(),
                    (namespace, target) => format!("{namespace}/{target}"),
                };
                let available = list_at(o, "/status/conditions").iter().find(|c| text_at(c, "/type") == "Available");
                let available = available.map_or_else(
                    || "Unknown".to_owned(),
                    |c| match (text_at(c, "/status"), text_at(c, "/reason")) {
                        ("True", _) => "True".to_owned(),
                        (status, "") => status.to_owned(),
                        (status, reason) => format!("{status} ({reason})"),
                    },
                );
                vec![name(o), Value::from(service), Value::from(available), age(o, now)]
            })
        }
        _ => super::cluster::of(group, kind),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

const SERVICE: &[Column] = &[
    ("Name", S, 0),
    ("Type", S, 0),
    ("Cluster-IP", S, 0),
    ("External-IP", S, 0),
    ("Port(s)", S, 0),
    ("Age", S, 0),
    ("Selector", S, 1),
];

fn service(o: &Value, now: DateTime<Utc>) -> Row {
    let kind = text_at(o, "/spec/type");
    let external = list_at(o, "/spec/externalIPs").iter().filter_map(Value::as_str);
    let balanced = list_at(o, "/status/loadBalancer/ingress")
        .iter()
        .map(|i| if text_at(i, "/ip").is_empty() { text_at(i, "/hostname") } else { text_at(i, "/ip") });
    let addresses: Vec<&str> = match kind {
        "LoadBalancer" => balanced.chain(external).collect(),
        "ExternalName" => vec![text_at(o, "/spec/externalName")],
        _ => external.collect(),
    };
    let outside = match (addresses.is_empty(), kind) {
        (false, _) => addresses.join(","),
        (true, "LoadBalancer") => "<pending>".to_owned(),
        (true, _) => "<none>".to_owned(),
    };
    let ports: Vec<String> = list_at(o, "/spec/ports")
        .iter()
        .map(|p| {
            let protocol = Some(text_at(p, "/protocol")).filter(|t| !t.is_empty()).unwrap_or("TCP");
            match int_at(p, "/nodePort") {
                0 => format!("{}/{protocol}", int_at(p, "/port")),
                node => format!("{}:{node}/{protocol}", int_at(p, "/port")),
            }
        })
        .collect();
    vec![
        name(o),
        or(kind, "ClusterIP"),
        or(text_at(o, "/spec/clusterIP"), "<none>"),
        Value::from(outside),
        or(&ports.join(","), "<none>"),
        age(o, now),
        selector(o.pointer("/spec/selector"), "<none>"),
    ]
}

/// The first three, then how many more.
fn some(all: &[String]) -> String {
    const SHOWN: usize = 3;
    match all.len() {
        0 => "<none>".to_owned(),
        n if n > SHOWN => format!("{} + {} more...", all[..SHOWN].join(","), n - SHOWN),
        _ => all.join(","),
    }
}

fn endpoints(o: &Value, now: DateTime<Utc>) -> Row {
    let mut all = Vec::new();
    for subset in list_at(o, "/subsets") {
        let ports = list_at(subset, "/ports");
        for address in list_at(subset, "/addresses") {
            let ip = text_at(address, "/ip");
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(ports.iter().map(|p| {
                if ip.contains(':') {
                    format!("[{ip}]:{}", int_at(p, "/port"))
                } else {
                    format!("{ip}:{}", int_at(p, "/port"))
                }
            }));
        }
    }
    vec![name(o), Value::from(some(&all)), age(o, now)]
}

fn endpoint_slice(o: &Value, now: DateTime<Utc>) -> Row {
    let ports: Vec<String> =
        list_at(o, "/ports").iter().map(|p| p.get("port").map_or_else(|| "*".to_owned(), plain)).collect();
    let ports = if o.get("ports").is_none() { "<unset>".to_owned() } else { some(&ports) };
    let addresses: Vec<String> =
        list_at(o, "/endpoints").iter().flat_map(|e| list_at(e, "/addresses")).map(plain).collect();
    let addresses = if addresses.is_empty() { "<unset>".to_owned() } else { some(&addresses) };
    vec![name(o), Value::from(text_at(o, "/addressType")), Value::from(ports), Value::from(addresses), age(o, now)]
}

const NODE: &[Column] = &[
    ("Name", S, 0),
    ("Status", S, 0),
    ("Roles", S, 0),
    ("Age", S, 0),
    ("Version", S, 0),
    ("Internal-IP", S, 1),
    ("External-IP", S, 1),
    ("OS-Image", S, 1),
    ("Kernel-Version", S, 1),
    ("Container-Runtime", S, 1),
];

fn node(o: &Value, now: DateTime<Utc>) -> Row {
    let ready = list_at(o, "/status/conditions").iter().find(|c| text_at(c, "/type") == "Ready");
    let mut status = match ready.map(|c| text_at(c, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if o.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = Vec::new();
    for (key, value) in o.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten() {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/").filter(|r| !r.is_empty()) {
            roles.push(role);
        } else if key == "kubernetes.io/role" {
            roles.extend(value.as_str().filter(|r| !r.is_empty()));
        }
    }
    roles.sort_unstable();
    roles.dedup();
    let address = |kind: &str| {
        let found = list_at(o, "/status/addresses").iter().find(|a| text_at(a, "/type") == kind);
        or(found.map_or("", |a| text_at(a, "/address")), "<none>")
    };
    vec![
        name(o),
        Value::from(status),
        or(&roles.join(","), "<none>"),
        age(o, now),
        Value::from(text_at(o, "/status/nodeInfo/kubeletVersion")),
        address("InternalIP"),
        address("ExternalIP"),
        or(text_at(o, "/status/nodeInfo/osImage"), "<unknown>"),
        or(text_at(o, "/status/nodeInfo/kernelVersion"), "<unknown>"),
        or(text_at(o, "/status/nodeInfo/containerRuntimeVersion"), "<unknown>"),
    ]
}

fn access_modes(o: &Value, pointer: &str) -> Value {
    let modes: Vec<&str> = list_at(o, pointer)
        .iter()
        .filter_map(Value::as_str)
        .map(|mode| match mode {
            "ReadWriteOnce" => "RWO",
            "ReadOnlyMany" => "ROX",
            "ReadWriteMany" => "RWX",
            "ReadWriteOncePod" => "RWOP",
            other => other,
        })
        .collect();
    Value::from(modes.join(","))
}

const PV: &[Column] = &[
    ("Name", S, 0),
    ("Capacity", S, 0),
    ("Access Modes", S, 0),
    ("Reclaim Policy", S, 0),
    ("Status", S, 0),
    ("Claim", S, 0),
    ("StorageClass", S, 0),
    ("VolumeAttributesClass", S, 0),
    ("Reason", S, 0),
    ("Age", S, 0),
    ("VolumeMode", S, 1),
];

fn is_deleted(o: &Value) -> bool {
    o.pointer("/metadata/deletionTimestamp").is_some_and(|v| !v.is_null())
}

fn volume(o: &Value, now: DateTime<Utc>) -> Row {
    let claim = match text_at(o, "/spec/claimRef/name") {
        "" => String::new(),
        claim => format!("{}/{claim}", text_at(o, "/spec/claimRef/namespace")),
    };
    vec![
        name(o),
        Value::from(text_at(o, "/spec/capacity/storage")),
        access_modes(o, "/spec/accessModes"),
        Value::from(text_at(o, "/spec/persistentVolumeReclaimPolicy")),
        Value::from(if is_deleted(o) { "Terminating" } else { text_at(o, "/status/phase") }),
        Value::from(claim),
        Value::from(text_at(o, "/spec/storageClassName")),
        or(text_at(o, "/spec/volumeAttributesClassName"), "<unset>"),
        Value::from(text_at(o, "/status/reason")),
        age(o, now),
        or(text_at(o, "/spec/volumeMode"), "<unset>"),
    ]
}

const PVC: &[Column] = &[
    ("Name", S, 0),
    ("Status", S, 0),
    ("Volume", S, 0),
    ("Capacity", S, 0),
    ("Access Modes", S, 0),
    ("StorageClass", S, 0),
    ("VolumeAttributesClass", S, 0),
    ("Age", S, 0),
    ("VolumeMode", S, 1),
];

fn claim(o: &Value, now: DateTime<Utc>) -> Row {
    let bound = !text_at(o, "/spec/volumeName").is_empty();
    vec![
        name(o),
        Value::from(if is_deleted(o) { "Terminating" } else { text_at(o, "/status/phase") }),
        Value::from(text_at(o, "/spec/volumeName")),
        Value::from(if bound { text_at(o, "/status/capacity/storage") } else { "" }),
        if bound { access_modes(o, "/status/accessModes") } else { Value::from("") },
        Value::from(text_at(o, "/spec/storageClassName")),
        or(text_at(o, "/spec/volumeAttributesClassName"), "<unset>"),
        age(o, now),
        or(text_at(o, "/spec/volumeMode"), "<unset>"),
    ]
}

const EVENT: &[Column] = &[
    ("Last Seen", S, 0),
    ("Type", S, 0),
    ("Reason", S, 0),
    ("Object", S, 0),
    ("Subobject", S, 1),
    ("Source", S, 1),
    ("Message", S, 0),
    ("First Seen", S, 1),
    ("Count", S, 1),
    ("Name", S, 1),
];

fn event(o: &Value, now: DateTime<Utc>) -> Row {
    // events.k8s.io spells the same facts with other names.
    let about = if o.get("involvedObject").is_some() { "/involvedObject" } else { "/regarding" };
    let first = pods::newest_age(o, &["/firstTimestamp", "/deprecatedFirstTimestamp", "/eventTime"], now);
    let last = match o.pointer("/series/lastObservedTime") {
        Some(time) if !time.is_null() => Value::from(age_of(Some(time), now)),
        _ => pods::newest_age(o, &["/lastTimestamp", "/deprecatedLastTimestamp", "/eventTime"], now),
    };
    let count = [int_at(o, "/series/count"), int_at(o, "/count"), int_at(o, "/deprecatedCount")];
    let count = count.into_iter().find(|n| *n != 0).unwrap_or(1);
    let component = ["/source/component", "/deprecatedSource/component", "/reportingComponent", "/reportingController"]
        .iter()
        .map(|p| text_at(o, p))
        .find(|t| !t.is_empty())
        .unwrap_or_default();
    let host = text_at(o, "/source/host");
    let source = if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    let message = if o.get("message").is_some() { text_at(o, "/message") } else { text_at(o, "/note") };
    vec![
        last,
        Value::from(text_at(o, "/type")),
        Value::from(text_at(o, "/reason")),
        Value::from(format!(
            "{}/{}",
            text_at(o, &format!("{about}/kind")).to_lowercase(),
            text_at(o, &format!("{about}/name"))
        )),
        Value::from(text_at(o, &format!("{about}/fieldPath"))),
        Value::from(source),
        Value::from(message.trim()),
        first,
        Value::from(count),
        name(o),
    ]
}

fn quota(o: &Value, now: DateTime<Utc>) -> Row {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (key, hard) in o.pointer("/status/hard").and_then(Value::as_object).into_iter().flatten() {
        let used = o.pointer("/status/used").and_then(|u| u.get(key)).map_or_else(|| "0".to_owned(), plain);
        let shown = format!("{key}: {used}/{}", plain(hard));
        if key.starts_with("limits.") { limits.push(shown) } else { requests.push(shown) }
    }
    requests.sort();
    limits.sort();
    vec![name(o), Value::from(requests.join(", ")), Value::from(limits.join(", ")), age(o, now)]
}

const BINDING: &[Column] =
    &[("Name", S, 0), ("Role", S, 0), ("Age", S, 0), ("Users", S, 1), ("Groups", S, 1), ("ServiceAccounts", S, 1)];

fn binding(o: &Value, now: DateTime<Utc>) -> Row {
    let subjects = |kind: &str| {
        let all: Vec<String> = list_at(o, "/subjects")
            .iter()
            .filter(|s| text_at(s, "/kind") == kind)
            .map(|s| match kind {
                "ServiceAccount" => format!("{}/{}", text_at(s, "/namespace"), text_at(s, "/name")),
                _ => text_at(s, "/name").to_owned(),
            })
            .collect();
        Value::from(all.join(", "))
    };
    vec![
        name(o),
        Value::from(format!("{}/{}", text_at(o, "/roleRef/kind"), text_at(o, "/roleRef/name"))),
        age(o, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

const STORAGE_CLASS: &[Column] = &[
    ("Name", S, 0),
    ("Provisioner", S, 0),
    ("ReclaimPolicy", S, 0),
    ("VolumeBindingMode", S, 0),
    ("AllowVolumeExpansion", "boolean", 0),
    ("Age", S, 0),
];

fn storage_class(o: &Value, now: DateTime<Utc>) -> Row {
    let is_default = [
        "/metadata/annotations/storageclass.kubernetes.io~1is-default-class",
        "/metadata/annotations/storageclass.beta.kubernetes.io~1is-default-class",
    ]
    .iter()
    .any(|p| text_at(o, p) == "true");
    let title = if is_default {
        format!("{} (default)", text_at(o, "/metadata/name"))
    } else {
        text_at(o, "/metadata/name").to_owned()
    };
    vec![
        Value::from(title),
        Value::from(text_at(o, "/provisioner")),
        or(text_at(o, "/reclaimPolicy"), "Delete"),
        or(text_at(o, "/volumeBindingMode"), "Immediate"),
        Value::from(o.get("allowVolumeExpansion") == Some(&Value::Bool(true))),
        age(o, now),
    ]
}

const INGRESS: &[Column] =
    &[("Name", S, 0), ("Class", S, 0), ("Hosts", S, 0), ("Address", S, 0), ("Ports", S, 0), ("Age", S, 0)];

fn ingress(o: &Value, now: DateTime<Utc>) -> Row {
    let hosts: Vec<String> =
        list_at(o, "/spec/rules").iter().map(|r| text_at(r, "/host").to_owned()).filter(|h| !h.is_empty()).collect();
    let hosts = if hosts.is_empty() { "*".to_owned() } else { some(&hosts) };
    let addresses: Vec<&str> = list_at(o, "/status/loadBalancer/ingress")
        .iter()
        .map(|i| if text_at(i, "/ip").is_empty() { text_at(i, "/hostname") } else { text_at(i, "/ip") })
        .collect();
    let ports = if list_at(o, "/spec/tls").is_empty() { "80" } else { "80, 443" };
    vec![
        name(o),
        or(text_at(o, "/spec/ingressClassName"), "<none>"),
        Value::from(hosts),
        Value::from(addresses.join(",")),
        Value::from(ports),
        age(o, now),
    ]
}

const CSR: &[Column] = &[
    ("Name", S, 0),
    ("Age", S, 0),
    ("SignerName", S, 0),
    ("Requestor", S, 0),
    ("RequestedDuration", S, 0),
    ("Condition", S, 0),
];

fn signing_request(o: &Value, now: DateTime<Utc>) -> Row {
    let mut words: Vec<&str> = Vec::new();
    for condition in list_at(o, "/status/conditions") {
        match text_at(condition, "/type") {
            "Approved" => words.push("Approved"),
            "Denied" => words.push("Denied"),
            "Failed" => words.push("Failed"),
            _ => {}
        }
    }
    if words.is_empty() {
        words.push("Pending");
    }
    if !text_at(o, "/status/certificate").is_empty() {
        words.push("Issued");
    }
    let requested = o.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
    vec![
        name(o),
        age(o, now),
        or(text_at(o, "/spec/signerName"), "<none>"),
        Value::from(text_at(o, "/spec/username")),
        Value::from(requested.map_or_else(|| "<none>".to_owned(), super::human_duration)),
        Value::from(words.join(",")),
    ]
}
