//! The roles and bindings that every cluster starts with, and their upkeep: Kubernetes' own (facts as in upstream's
//! `bootstrappolicy`) and Kubeflow's aggregated roles for the users of a profile (as in `kubeflow/manifests`,
//! `kubeflow-roles`, and each component's user roles). Invariant: the anonymous get health and version only.

use super::rbac::{GROUP, Rule};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::slice::from_ref;

const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const ALL: &str = "create delete deletecollection get list patch update watch";
const KUBERNETES: &str = "rbac.authorization.k8s.io/aggregate-to-";
const KUBEFLOW: &str = "rbac.authorization.kubeflow.org/aggregate-to-";

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// `-` stands for the core group.
fn rule(groups: &str, resources: &str, verbs: &str) -> Value {
    let groups: Vec<&str> = words(groups).into_iter().map(|g| if g == "-" { "" } else { g }).collect();
    json!({ "apiGroups": groups, "resources": words(resources), "verbs": words(verbs) })
}

fn urls(urls: &str, verbs: &str) -> Value {
    json!({ "nonResourceURLs": words(urls), "verbs": words(verbs) })
}

fn metadata(name: &str, namespace: Option<&str>, aggregate_to: &[String]) -> Value {
    let mut labels = Map::new();
    labels.insert("kubernetes.io/bootstrapping".into(), "rbac-defaults".into());
    for label in aggregate_to {
        labels.insert(label.clone(), "true".into());
    }
    let mut metadata = json!({
        "name": name, "labels": labels,
        "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "true" },
    });
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

fn cluster_role(name: &str, labels: &[String], rules: Vec<Value>) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": metadata(name, None, labels), "rules": rules,
    })
}

fn aggregated(name: &str, labels: &[String], selects: &str) -> Value {
    let mut role = cluster_role(name, labels, Vec::new());
    role["aggregationRule"] = json!({ "clusterRoleSelectors": [{ "matchLabels": { selects: "true" } }] });
    role
}

fn role(namespace: &str, name: &str, rules: Vec<Value>) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": metadata(name, Some(namespace), &[]), "rules": rules,
    })
}

/// Subjects are `group:NAME` or `user:NAME`.
fn bind(namespace: Option<&str>, name: &str, role_kind: &str, role: &str, subjects: &[&str]) -> Value {
    let subjects: Vec<Value> = subjects
        .iter()
        .filter_map(|subject| subject.split_once(':'))
        .map(|(kind, name)| {
            let kind = if kind == "group" { "Group" } else { "User" };
            json!({ "apiGroup": GROUP, "kind": kind, "name": name })
        })
        .collect();
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": if namespace.is_some() { "RoleBinding" } else { "ClusterRoleBinding" },
        "metadata": metadata(name, namespace, &[]),
        "roleRef": { "apiGroup": GROUP, "kind": role_kind, "name": role },
        "subjects": subjects,
    })
}

/// Everything to create on an empty cluster, cluster roles first. Namespaces used: `kube-system`, `kube-public`.
pub fn default_objects() -> Vec<Value> {
    let mut all = user_facing();
    all.extend(system());
    all.extend(kubeflow());
    all.extend(bindings());
    all
}

/// What users may edit of workloads. Upstream's `kubeflow-kubernetes-edit` also writes endpoints; here nobody's role does,
/// as in Kubernetes since 1.22: they make a Service lead to the pods of others, past NetworkPolicies by way of the API
/// server's proxy (CVE-2021-25740).
fn workloads_edit(kubernetes: bool) -> Vec<Value> {
    let mut rules = vec![
        rule("-", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy", READ),
        rule("-", "pods pods/attach pods/exec pods/portforward pods/proxy", WRITE),
        rule(
            "-",
            "configmaps persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets \
             serviceaccounts services services/proxy",
            WRITE,
        ),
        rule(
            "apps",
            "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets \
             statefulsets/scale",
            WRITE,
        ),
        rule("autoscaling", "horizontalpodautoscalers", WRITE),
        rule("batch", "cronjobs jobs", WRITE),
        rule("policy", "poddisruptionbudgets", WRITE),
        rule("networking.k8s.io", "ingresses networkpolicies", WRITE),
    ];
    if kubernetes {
        rules.push(rule("-", "serviceaccounts", "impersonate"));
        rules.push(rule("-", "pods/eviction serviceaccounts/token", "create"));
        rules.push(rule("-", "events", WRITE));
        rules.push(rule("coordination.k8s.io", "leases", ALL));
    }
    rules
}

fn workloads_view() -> Vec<Value> {
    vec![
        rule(
            "-",
            "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers \
             replicationcontrollers/scale serviceaccounts services services/status",
            READ,
        ),
        rule(
            "-",
            "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status \
             resourcequotas resourcequotas/status",
            READ,
        ),
        rule("-", "namespaces", READ),
        rule("discovery.k8s.io", "endpointslices", READ),
        rule("events.k8s.io", "events", READ),
        rule(
            "apps",
            "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status \
             replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
            READ,
        ),
        rule("autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status", READ),
        rule("batch", "cronjobs cronjobs/status jobs jobs/status", READ),
        rule("policy", "poddisruptionbudgets poddisruptionbudgets/status", READ),
        rule("networking.k8s.io", "ingresses ingresses/status networkpolicies", READ),
    ]
}

fn ownership() -> Vec<Value> {
    vec![rule("authorization.k8s.io", "localsubjectaccessreviews", "create"), rule(GROUP, "rolebindings roles", ALL)]
}

fn user_facing() -> Vec<Value> {
    let to = |role: &str| format!("{KUBERNETES}{role}");
    vec![
        cluster_role("cluster-admin", &[], vec![rule("*", "*", "*"), urls("*", "*")]),
        aggregated("admin", &[], &to("admin")),
        aggregated("edit", &[to("admin")], &to("edit")),
        aggregated("view", &[to("edit")], &to("view")),
        cluster_role("system:aggregate-to-admin", &[to("admin")], ownership()),
        cluster_role("system:aggregate-to-edit", &[to("edit")], workloads_edit(true)),
        cluster_role("system:aggregate-to-view", &[to("view")], workloads_view()),
    ]
}

fn system() -> Vec<Value> {
    let events = || rule("- events.k8s.io", "events", "create patch update");
    let reviews = || {
        [
            rule("authentication.k8s.io", "tokenreviews", "create"),
            rule("authorization.k8s.io", "subjectaccessreviews", "create"),
        ]
    };
    let mut delegated = reviews().to_vec();
    delegated.push(rule("authorization.k8s.io", "localsubjectaccessreviews", "create"));
    let mut scheduler = vec![
        events(),
        rule("coordination.k8s.io", "leases", "create get update list watch"),
        rule("-", "nodes namespaces persistentvolumes persistentvolumeclaims replicationcontrollers services", READ),
        rule("-", "pods", "delete get list watch"),
        rule("-", "bindings pods/binding", "create"),
        rule("-", "pods/status", "patch update"),
        rule("apps", "replicasets statefulsets", READ),
        rule("policy", "poddisruptionbudgets", READ),
        rule("storage.k8s.io", "csidrivers csinodes csistoragecapacities storageclasses", READ),
    ];
    scheduler.extend(reviews());
    let mut node = delegated.clone();
    node.extend([
        events(),
        rule("-", "services pods configmaps secrets", READ),
        rule("-", "nodes", "create get list watch patch update"),
        rule("-", "nodes/status pods/status", "patch update"),
        rule("-", "pods", "create delete"),
        rule("-", "pods/eviction serviceaccounts/token", "create"),
        rule("-", "persistentvolumeclaims persistentvolumes endpoints", "get"),
        rule("-", "persistentvolumeclaims/status", "get patch update"),
        rule("coordination.k8s.io", "leases", "create delete get patch update"),
        rule("storage.k8s.io", "csidrivers", READ),
        rule("storage.k8s.io", "csinodes", "create delete get patch update"),
        rule("node.k8s.io", "runtimeclasses", READ),
        rule("discovery.k8s.io", "endpointslices", READ),
    ]);
    let mut manager = reviews().to_vec();
    manager.extend([
        events(),
        rule("coordination.k8s.io", "leases", "create get update"),
        rule("-", "secrets serviceaccounts", "create get update"),
        rule("-", "secrets", "delete"),
        rule("-", "configmaps namespaces", "get"),
        rule("-", "serviceaccounts/token", "create"),
        rule("*", "*", "list watch"),
    ]);
    vec![
        cluster_role(
            "system:basic-user",
            &[],
            vec![
                rule("authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews", "create"),
                rule("authentication.k8s.io", "selfsubjectreviews", "create"),
            ],
        ),
        cluster_role(
            "system:discovery",
            &[],
            vec![urls(
                "/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/",
                "get",
            )],
        ),
        cluster_role("system:public-info-viewer", &[], vec![urls("/healthz /livez /readyz /version /version/", "get")]),
        cluster_role(
            "system:monitoring",
            &[],
            vec![urls("/healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*", "get")],
        ),
        cluster_role(
            "system:service-account-issuer-discovery",
            &[],
            vec![urls("/.well-known/openid-configuration /openid/v1/jwks", "get")],
        ),
        cluster_role("system:auth-delegator", &[], reviews().to_vec()),
        cluster_role("system:node", &[], node),
        cluster_role(
            "system:node-proxier",
            &[],
            vec![
                events(),
                rule("-", "endpoints services", "list watch"),
                rule("-", "nodes", READ),
                rule("discovery.k8s.io", "endpointslices", "list watch"),
            ],
        ),
        cluster_role("system:kube-scheduler", &[], scheduler),
        cluster_role("system:kube-controller-manager", &[], manager),
        cluster_role(
            "system:kube-dns",
            &[],
            vec![
                rule("-", "endpoints services", "list watch"),
                rule("discovery.k8s.io", "endpointslices", "list watch"),
            ],
        ),
        cluster_role(
            "system:persistent-volume-provisioner",
            &[],
            vec![
                rule("-", "persistentvolumes", "create delete get list watch"),
                rule("-", "persistentvolumeclaims", "get list update watch"),
                rule("storage.k8s.io", "storageclasses", READ),
                events(),
                rule("-", "events", "watch"),
            ],
        ),
        cluster_role(
            "system:kubelet-api-admin",
            &[],
            vec![
                rule("-", "nodes", "get list watch proxy"),
                rule("-", "nodes/log nodes/metrics nodes/proxy nodes/stats", "*"),
            ],
        ),
    ]
}

fn kubeflow() -> Vec<Value> {
    let to = |role: &str| format!("{KUBEFLOW}{role}");
    let (admin, edit, view) = (to("kubeflow-admin"), to("kubeflow-edit"), to("kubeflow-view"));
    let mut all = vec![
        aggregated("kubeflow-admin", &[], &admin),
        aggregated("kubeflow-edit", from_ref(&admin), &edit),
        aggregated("kubeflow-view", from_ref(&edit), &view),
        cluster_role("kubeflow-kubernetes-admin", from_ref(&admin), ownership()),
        cluster_role("kubeflow-kubernetes-edit", from_ref(&edit), workloads_edit(false)),
        cluster_role("kubeflow-kubernetes-view", from_ref(&view), workloads_view()),
    ];
    let pipelines = "pipelines.kubeflow.org";
    all.extend([
        aggregated("kubeflow-pipelines-edit", from_ref(&edit), &to("kubeflow-pipelines-edit")),
        aggregated(
            "kubeflow-pipelines-view",
            &[to("kubeflow-pipelines-edit"), view.clone()],
            &to("kubeflow-pipelines-view"),
        ),
        cluster_role(
            "aggregate-to-kubeflow-pipelines-edit",
            &[to("kubeflow-pipelines-edit")],
            vec![
                rule(pipelines, "pipelines pipelineversions pipelines/versions", "create delete update"),
                // Beyond upstream: `kubectl apply` patches.
                rule(pipelines, "pipelines pipelineversions", "patch"),
                rule(pipelines, "experiments", "archive create delete unarchive"),
                rule(pipelines, "runs", "archive create delete retry terminate unarchive reportMetrics readArtifact"),
                rule(pipelines, "jobs", "create delete disable enable"),
                rule(pipelines, "artifacts", "create delete update"),
                rule("kubeflow.org", "scheduledworkflows", "*"),
                rule("argoproj.io", "cronworkflows workflows workfloweventbindings workflowtemplates", "*"),
            ],
        ),
        cluster_role(
            "aggregate-to-kubeflow-pipelines-view",
            &[to("kubeflow-pipelines-view")],
            vec![
                rule(
                    pipelines,
                    "pipelines pipelineversions pipelines/versions experiments runs jobs artifacts",
                    "get list",
                ),
                rule(pipelines, "pipelines pipelineversions", "watch"),
                rule("kubeflow.org", "scheduledworkflows", "get list watch"),
                rule(pipelines, "runs", "readArtifact"),
                rule("kubeflow.org", "viewers", "create get delete"),
                rule(pipelines, "visualizations", "create"),
            ],
        ),
    ]);

    // A component's own resources: what its editors write and its viewers read.
    let component = |name: &str, group: &str, resources: &str| {
        let status: Vec<String> = words(resources).iter().map(|r| format!("{r}/status")).collect();
        let status = status.join(" ");
        let component_admin = to(&format!("kubeflow-{name}-admin"));
        [
            aggregated(&format!("kubeflow-{name}-admin"), from_ref(&admin), &component_admin),
            cluster_role(
                &format!("kubeflow-{name}-edit"),
                &[edit.clone(), component_admin],
                vec![rule(group, resources, ALL), rule(group, &status, "get")],
            ),
            cluster_role(
                &format!("kubeflow-{name}-view"),
                from_ref(&view),
                vec![rule(group, resources, READ), rule(group, &status, "get")],
            ),
        ]
    };
    for (name, group, resources) in [
        ("notebooks", "kubeflow.org", "notebooks"),
        ("poddefaults", "kubeflow.org", "poddefaults"),
        ("pvcviewers", "kubeflow.org", "pvcviewers"),
        ("tensorboards", "tensorboard.kubeflow.org", "tensorboards"),
        ("training", "kubeflow.org", "mpijobs tfjobs pytorchjobs xgboostjobs paddlejobs jaxjobs"),
        ("katib", "kubeflow.org", "experiments trials suggestions"),
        (
            "kserve",
            "serving.kserve.io",
            "inferenceservices servingruntimes trainedmodels inferencegraphs localmodelnodegroups",
        ),
        ("spark", "sparkoperator.k8s.io", "sparkapplications scheduledsparkapplications sparkconnects"),
    ] {
        all.extend(component(name, group, resources));
    }
    all.extend([
        aggregated("kubeflow-trainer-admin", &[admin], &to("kubeflow-trainer-admin")),
        cluster_role(
            "kubeflow-trainer-edit",
            &[edit, to("kubeflow-trainer-admin")],
            vec![
                rule("trainer.kubeflow.org", "trainingruntimes", READ),
                rule("trainer.kubeflow.org", "trainjobs", "create delete get list patch update watch"),
                rule("trainer.kubeflow.org", "trainjobs/status", "get"),
                rule("-", "pods pods/log events", READ),
            ],
        ),
        cluster_role(
            "kubeflow-trainer-view",
            &[view, to("kubeflow-trainer-view")],
            vec![rule("trainer.kubeflow.org", "trainingruntimes trainjobs", READ)],
        ),
        cluster_role(
            "kubeflow-trainer-view-cluster-runtimes",
            &[],
            vec![rule("trainer.kubeflow.org", "clustertrainingruntimes", READ)],
        ),
    ]);
    all
}

fn bindings() -> Vec<Value> {
    let cluster = |name: &str, subjects: &[&str]| bind(None, name, "ClusterRole", name, subjects);
    let kept = json!({ "apiGroups": [""], "resources": ["configmaps"], "resourceNames":
        ["extension-apiserver-authentication"], "verbs": ["get", "list", "watch"] });
    vec![
        cluster("cluster-admin", &["group:system:masters"]),
        cluster("system:basic-user", &["group:system:authenticated"]),
        cluster("system:discovery", &["group:system:authenticated"]),
        cluster("system:public-info-viewer", &["group:system:authenticated", "group:system:unauthenticated"]),
        cluster("system:monitoring", &["group:system:monitoring"]),
        cluster("system:service-account-issuer-discovery", &["group:system:serviceaccounts"]),
        cluster("system:node-proxier", &["user:system:kube-proxy"]),
        cluster("system:kube-scheduler", &["user:system:kube-scheduler"]),
        cluster("system:kube-controller-manager", &["user:system:kube-controller-manager"]),
        cluster("kubeflow-trainer-view-cluster-runtimes", &["group:system:authenticated"]),
        role("kube-system", "extension-apiserver-authentication-reader", vec![kept]),
        bind(
            Some("kube-system"),
            "system::extension-apiserver-authentication-reader",
            "Role",
            "extension-apiserver-authentication-reader",
            &["user:system:kube-controller-manager", "user:system:kube-scheduler"],
        ),
    ]
}

/// What to write so that a default object holds at least what this version gives it: the object itself when there is
/// none, the stored one with what it lacks, or nothing. An object annotated `autoupdate: "false"` is left alone.
pub fn reconcile(stored: Option<&Value>, wanted: &Value) -> Option<Value> {
    let Some(stored) = stored else { return Some(wanted.clone()) };
    let auto = stored.pointer("/metadata/annotations/rbac.authorization.kubernetes.io~1autoupdate");
    if auto.and_then(Value::as_str) == Some("false") {
        return None;
    }
    let mut next = stored.clone();
    for field in ["labels", "annotations"] {
        let wanted = wanted.pointer(&format!("/metadata/{field}")).and_then(Value::as_object);
        for (key, value) in wanted.into_iter().flatten() {
            let metadata = next.get_mut("metadata")?.as_object_mut()?;
            let map = metadata.entry(field).or_insert_with(|| json!({}));
            map.as_object_mut()?.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    if let Some(rule) = wanted.get("aggregationRule") {
        // The rules of an aggregated role are the controller's.
        next["aggregationRule"] = rule.clone();
    } else {
        for (field, same) in [("rules", same_rule as fn(&Value, &Value) -> bool), ("subjects", same_subject)] {
            let Some(wanted) = wanted.get(field).and_then(Value::as_array) else { continue };
            let present = next.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
            let missing: Vec<Value> = wanted.iter().filter(|w| !present.iter().any(|p| same(p, w))).cloned().collect();
            if !missing.is_empty() {
                next[field] = present.into_iter().chain(missing).collect();
            }
        }
    }
    (next != *stored).then_some(next)
}

fn same_rule(a: &Value, b: &Value) -> bool {
    match (Rule::deserialize(a), Rule::deserialize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

fn same_subject(a: &Value, b: &Value) -> bool {
    ["kind", "name", "namespace"].iter().all(|field| {
        a.get(field).and_then(Value::as_str).unwrap_or_default()
            == b.get(field).and_then(Value::as_str).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_every_binding_finds_its_role() {
        let all = default_objects();
        let id = |o: &Value| {
            let text = |p: &str| o.pointer(p).and_then(Value::as_str).unwrap_or_default().to_owned();
            (text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
        };
        let ids: HashSet<_> = all.iter().map(id).collect();
        assert_eq!(ids.len(), all.len());
        for binding in all.iter().filter(|o| o.get("roleRef").is_some()) {
            let role = &binding["roleRef"];
            let namespace = if role["kind"] == "Role" { id(binding).1 } else { String::new() };
            let key = (role["kind"].as_str().unwrap().into(), namespace, role["name"].as_str().unwrap().into());
            assert!(ids.contains(&key), "{key:?}");
        }
    }

    #[test]
    fn upkeep_adds_what_is_missing_and_takes_nothing_away() {
        let wanted = cluster_role("r", &[], vec![rule("-", "pods", "get"), rule("apps", "deployments", "get")]);
        assert_eq!(reconcile(None, &wanted), Some(wanted.clone()));
        assert_eq!(reconcile(Some(&wanted), &wanted), None);
        let mut stored = wanted.clone();
        stored["rules"] = json!([rule("-", "pods", "get"), rule("-", "nodes", "get")]);
        stored["metadata"]["uid"] = "u".into();
        let next = reconcile(Some(&stored), &wanted).unwrap();
        assert_eq!(next["rules"].as_array().unwrap().len(), 3);
        assert_eq!(next["metadata"]["uid"], "u");
        stored["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] = "false".into();
        assert_eq!(reconcile(Some(&stored), &wanted), None);
    }
}
