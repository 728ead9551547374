//! Defaults of built-in kinds, as upstream's typed defaulting (`pkg/apis/*/v1/defaults.go`) fills them before an object
//! is validated and stored.
//!
//! Invariant: filling twice is filling once, and nothing that the user set is changed except by upstream's
//! canonical forms (quantities, `stringData`).

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::{Node, Type, builtin, quantity};

/// Fills the defaults of a built-in kind in place. Nulls are dropped first, as Go's decoder does.
pub fn default_builtin(group: &str, version: &str, kind: &str, value: &mut Value) {
    let schema = builtin(group, version, kind);
    if let Some(schema) = &schema {
        drop_nulls(schema.root(), value);
        if !super::validate(schema, value, None).is_empty() {
            return;
        }
        quantities(schema.root(), value);
    }
    let Some(object) = value.as_object_mut() else { return };
    if let Some(schema) = &schema {
        super::default::fill_parts(schema, object);
    }
    match (group, kind) {
        ("", "Pod") => {
            if let Some(spec) = child(object, "spec") {
                pod_spec(spec);
                set(spec, "enableServiceLinks", true);
                host_network_ports(spec);
                for list in ["containers", "initContainers"] {
                    for container in items(spec, list) {
                        requests_from_limits(container);
                    }
                }
            }
        }
        ("", "PodTemplate") => template(object),
        ("", "ReplicationController") => {
            with_spec(object, |spec| {
                set(spec, "replicas", 1);
                template(spec);
                if let Some(labels) = template_labels(spec)
                    && spec.get("selector").and_then(Value::as_object).is_none_or(Map::is_empty)
                {
                    spec.insert("selector".to_owned(), Value::Object(labels));
                }
            });
            labels_of_template(object);
        }
        ("apps", "Deployment") => with_spec(object, deployment),
        ("apps", "ReplicaSet") => with_spec(object, |spec| {
            set(spec, "replicas", 1);
            template(spec);
        }),
        ("apps", "StatefulSet") => with_spec(object, stateful_set),
        ("apps", "DaemonSet") => with_spec(object, |spec| {
            set(spec, "revisionHistoryLimit", 10);
            let strategy = make(spec, "updateStrategy");
            set(strategy, "type", "RollingUpdate");
            if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
                let rolling = make(strategy, "rollingUpdate");
                set(rolling, "maxUnavailable", 1);
                set(rolling, "maxSurge", 0);
            }
            template(spec);
        }),
        ("batch", "Job") => job(object),
        ("batch", "CronJob") => with_spec(object, |spec| {
            set(spec, "concurrencyPolicy", "Allow");
            set(spec, "suspend", false);
            set(spec, "successfulJobsHistoryLimit", 3);
            set(spec, "failedJobsHistoryLimit", 1);
            if let Some(inner) = child(spec, "jobTemplate").and_then(|t| child(t, "spec")) {
                template(inner);
            }
        }),
        ("", "Service") => {
            with_spec(object, service);
            if let Some(balancer) = child(object, "status").and_then(|s| child(s, "loadBalancer")) {
                for ingress in items(balancer, "ingress") {
                    if ingress.get("ip").is_some_and(|ip| ip != "") {
                        set_text(ingress, "ipMode", "VIP");
                    }
                }
            }
        }
        ("", "Endpoints") => {
            for subset in items(object, "subsets") {
                items(subset, "ports").for_each(|port| set(port, "protocol", "TCP"));
            }
        }
        ("discovery.k8s.io", "EndpointSlice") => {
            // Not optional upstream: clients made from its schema refuse a slice without.
            set(object, "endpoints", json!([]));
            items(object, "ports").for_each(|port| {
                set(port, "name", "");
                set(port, "protocol", "TCP");
            });
        }
        ("", "PersistentVolumeClaim") => {
            claim(object);
            set(make(object, "status"), "phase", "Pending");
        }
        ("", "PersistentVolume") => {
            with_spec(object, |spec| {
                set(spec, "persistentVolumeReclaimPolicy", "Retain");
                set(spec, "volumeMode", "Filesystem");
                if let Some(host_path) = child(spec, "hostPath") {
                    set(host_path, "type", "");
                }
            });
            set(make(object, "status"), "phase", "Pending");
        }
        ("", "Secret") => secret(object),
        ("", "LimitRange") => with_spec(object, |spec| items(spec, "limits").for_each(limit_range_item)),
        ("", "Namespace") => namespace(object),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            set_text(make(object, "roleRef"), "apiGroup", "rbac.authorization.k8s.io");
            for subject in items(object, "subjects") {
                if matches!(subject.get("kind").and_then(Value::as_str), Some("User" | "Group")) {
                    set_text(subject, "apiGroup", "rbac.authorization.k8s.io");
                }
            }
        }
        ("networking.k8s.io", "NetworkPolicy") => with_spec(object, network_policy),
        ("networking.k8s.io", "IngressClass") => {
            if let Some(parameters) = child(object, "spec").and_then(|s| child(s, "parameters")) {
                set(parameters, "scope", "Cluster");
            }
        }
        ("autoscaling", "HorizontalPodAutoscaler") => with_spec(object, |spec| {
            set(spec, "minReplicas", 1);
            if version == "v2" && spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
                let target = json!({"type": "Utilization", "averageUtilization": 80});
                spec.insert(
                    "metrics".to_owned(),
                    json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]),
                );
            }
            if let Some(behavior) = child(spec, "behavior") {
                scaling(behavior);
            }
        }),
        ("scheduling.k8s.io", "PriorityClass") => {
            set(object, "preemptionPolicy", "PreemptLowerPriority");
            set(object, "value", 0);
        }
        ("storage.k8s.io", "StorageClass") => {
            set(object, "reclaimPolicy", "Delete");
            set(object, "volumeBindingMode", "Immediate");
        }
        ("storage.k8s.io", "CSIDriver") => with_spec(object, |spec| {
            set(spec, "attachRequired", true);
            set(spec, "podInfoOnMount", false);
            set(spec, "storageCapacity", false);
            set(spec, "requiresRepublish", false);
            set(spec, "seLinuxMount", false);
            set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
            set(spec, "volumeLifecycleModes", json!(["Persistent"]));
        }),
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => {
            for webhook in items(object, "webhooks") {
                webhook_defaults(webhook, kind == "MutatingWebhookConfiguration");
            }
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy") => {
            with_spec(object, |spec| {
                set(spec, "failurePolicy", "Fail");
                if let Some(matched) = child(spec, "matchConstraints") {
                    match_resources(matched);
                }
            })
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding") => {
            if let Some(matched) = child(object, "spec").and_then(|s| child(s, "matchResources")) {
                match_resources(matched);
            }
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => with_spec(object, |spec| {
            if let Some(names) = child(spec, "names") {
                let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
                set(names, "singular", kind.to_lowercase());
                set(names, "listKind", format!("{kind}List"));
            }
            set(make(spec, "conversion"), "strategy", "None");
        }),
        ("flowcontrol.apiserver.k8s.io" | "resource.k8s.io", _) => super::group_defaults::fill(kind, object),
        ("apiregistration.k8s.io", "APIService") => {
            if let Some(service) = child(object, "spec").and_then(|s| child(s, "service")) {
                set(service, "port", 443);
            }
        }
        ("", "Node") => {
            if let Some(status) = child(object, "status")
                && let Some(capacity) = status.get("capacity").cloned()
            {
                set(status, "allocatable", capacity);
            }
        }
        ("authentication.k8s.io", "TokenRequest") => with_spec(object, |spec| set(spec, "expirationSeconds", 3600)),
        _ => {}
    }
}

type Object = Map<String, Value>;

fn set(object: &mut Object, name: &str, value: impl Into<Value>) {
    if !object.contains_key(name) {
        object.insert(name.to_owned(), value.into());
    }
}

/// The text field is filled where it is absent or empty: Go cannot tell these apart.
fn set_text(object: &mut Object, name: &str, value: &str) {
    if object.get(name).is_none_or(|v| v == "") {
        object.insert(name.to_owned(), value.into());
    }
}

/// As [`set_text`], of numbers.
fn set_number(object: &mut Object, name: &str, value: i64) {
    if object.get(name).is_none_or(|v| v == 0) {
        object.insert(name.to_owned(), value.into());
    }
}

fn child<'a>(object: &'a mut Object, name: &str) -> Option<&'a mut Object> {
    object.get_mut(name).and_then(Value::as_object_mut)
}

/// The object `name`, made where absent. Objects of wrong types never come here: they are left for validation to report.
fn make<'a>(object: &'a mut Object, name: &str) -> &'a mut Object {
    let slot = object.entry(name.to_owned()).or_insert_with(|| json!({}));
    if !slot.is_object() {
        *slot = json!({});
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("an object was just put there"),
    }
}

fn items<'a>(object: &'a mut Object, name: &str) -> impl Iterator<Item = &'a mut Object> + use<'a> {
    object.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn with_spec(object: &mut Object, fill: impl FnOnce(&mut Object)) {
    if let Some(spec) = child(object, "spec") {
        fill(spec);
    }
}

/// Removes null members of described objects.
pub(crate) fn drop_nulls(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            if node.kind == Type::Any {
                return;
            }
            map.retain(|name, child| {
                let Some(inner) = node.member(name) else { return true };
                if child.is_null() {
                    if node.property(name).is_some() {
                        return inner.kind == Type::Any;
                    }
                    // An entry of a map is there, with its type's zero.
                    *child = zero(inner);
                    return true;
                }
                drop_nulls(inner, child);
                true
            });
        }
        Value::Array(list) => {
            if let Some(item) = node.item() {
                list.iter_mut().for_each(|child| drop_nulls(item, child));
            }
        }
        _ => {}
    }
}

/// What Go makes of null in a map; times and lists stay null.
fn zero(node: &Node) -> Value {
    match node.kind {
        Type::String if node.format.as_deref() == Some("date-time") => Value::Null,
        Type::String => "".into(),
        Type::Integer | Type::Number | Type::IntOrString => 0.into(),
        Type::Boolean => false.into(),
        Type::Quantity => "0".into(),
        Type::Object => json!({}),
        Type::Any | Type::Array => Value::Null,
    }
}

/// Brings quantities into the form that upstream stores.
fn quantities(node: &Node, value: &mut Value) {
    if node.kind == Type::Quantity {
        let text = match &*value {
            Value::String(text) => quantity::canonical(text),
            Value::Number(number) => quantity::canonical(&number.to_string()),
            _ => None,
        };
        if let Some(text) = text {
            *value = Value::String(text);
        }
        return;
    }
    match value {
        Value::Object(map) => {
            for (name, child) in map {
                if let Some(inner) = node.member(name) {
                    quantities(inner, child);
                }
            }
        }
        Value::Array(list) => {
            if let Some(item) = node.item() {
                list.iter_mut().for_each(|child| quantities(item, child));
            }
        }
        _ => {}
    }
}

fn template(spec: &mut Object) {
    if let Some(inner) = child(spec, "template").and_then(|t| child(t, "spec")) {
        pod_spec(inner);
    }
}

pub(super) fn pod_spec(spec: &mut Object) {
    set_text(spec, "dnsPolicy", "ClusterFirst");
    set_text(spec, "restartPolicy", "Always");
    set_text(spec, "schedulerName", "default-scheduler");
    set(spec, "securityContext", json!({}));
    set(spec, "terminationGracePeriodSeconds", 30);
    let text = |spec: &Object, name: &str| spec.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    // The deprecated name of the same field.
    match (text(spec, "serviceAccountName"), text(spec, "serviceAccount")) {
        (name, alias) if name.is_empty() && !alias.is_empty() => {
            spec.insert("serviceAccountName".to_owned(), alias.into());
        }
        (name, alias) if !name.is_empty() && name != alias => {
            spec.insert("serviceAccount".to_owned(), name.into());
        }
        _ => {}
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        items(spec, list).for_each(container_defaults);
    }
    items(spec, "volumes").for_each(volume);
}

/// On the host's network a pod's ports are the host's. Templates leave this to their pods.
fn host_network_ports(spec: &mut Object) {
    if spec.get("hostNetwork") != Some(&Value::Bool(true)) {
        return;
    }
    for list in ["containers", "initContainers"] {
        for container in items(spec, list) {
            for port in items(container, "ports") {
                if let Some(number) = port.get("containerPort").and_then(Value::as_i64) {
                    set_number(port, "hostPort", number);
                }
            }
        }
    }
}

/// The tag decides: `latest` or none is pulled always.
fn pull_policy(image: &str) -> &'static str {
    let name = image.rsplit('/').next().unwrap_or(image);
    let has_digest = name.contains('@');
    let tag = name.split('@').next().and_then(|n| n.split_once(':')).map(|(_, tag)| tag);
    if !has_digest && matches!(tag, None | Some("latest")) { "Always" } else { "IfNotPresent" }
}

fn container_defaults(container: &mut Object) {
    let policy = pull_policy(container.get("image").and_then(Value::as_str).unwrap_or_default());
    set_text(container, "imagePullPolicy", policy);
    set_text(container, "terminationMessagePath", "/dev/termination-log");
    set_text(container, "terminationMessagePolicy", "File");
    set(container, "resources", json!({}));
    for port in items(container, "ports") {
        set_text(port, "protocol", "TCP");
    }
    for env in items(container, "env") {
        if let Some(source) = child(env, "valueFrom") {
            field_ref(source);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = child(container, name) {
            set_number(probe, "timeoutSeconds", 1);
            set_number(probe, "periodSeconds", 10);
            set_number(probe, "successThreshold", 1);
            set_number(probe, "failureThreshold", 3);
            http_get(probe);
            if let Some(grpc) = child(probe, "grpc") {
                set(grpc, "service", "");
            }
        }
    }
    if let Some(lifecycle) = child(container, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(handler) = child(lifecycle, name) {
                http_get(handler);
            }
        }
    }
}

fn http_get(handler: &mut Object) {
    if let Some(get) = child(handler, "httpGet") {
        set_text(get, "path", "/");
        set_text(get, "scheme", "HTTP");
    }
}

fn field_ref(source: &mut Object) {
    if let Some(field) = child(source, "fieldRef") {
        set_text(field, "apiVersion", "v1");
    }
}

/// What a request for a limited resource is when it is not given.
fn requests_from_limits(container: &mut Object) {
    let Some(resources) = child(container, "resources") else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).filter(|l| !l.is_empty()).cloned() else {
        return;
    };
    let requests = make(resources, "requests");
    for (name, amount) in limits {
        set(requests, &name, amount);
    }
}

/// 0644.
const DEFAULT_MODE: u32 = 0o644;

fn volume(volume: &mut Object) {
    if volume.keys().all(|name| name == "name") {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for name in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = child(volume, name) {
            set(source, "defaultMode", DEFAULT_MODE);
            items(source, "items").for_each(field_ref);
            for part in items(source, "sources") {
                if let Some(token) = child(part, "serviceAccountToken") {
                    set(token, "expirationSeconds", 3600);
                }
                if let Some(downward) = child(part, "downwardAPI") {
                    items(downward, "items").for_each(field_ref);
                }
            }
        }
    }
    if let Some(host_path) = child(volume, "hostPath") {
        set(host_path, "type", "");
    }
    if let Some(iscsi) = child(volume, "iscsi") {
        set_text(iscsi, "iscsiInterface", "default");
    }
    if let Some(image) = child(volume, "image") {
        let policy = pull_policy(image.get("reference").and_then(Value::as_str).unwrap_or_default());
        set_text(image, "pullPolicy", policy);
    }
    if let Some(template) = child(volume, "ephemeral").and_then(|e| child(e, "volumeClaimTemplate")) {
        claim(template);
    }
}

/// How fast an autoscaler may act, each way.
fn scaling(behavior: &mut Object) {
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    for (direction, policies) in [("scaleUp", json!([pods, percent])), ("scaleDown", json!([percent]))] {
        let rules = make(behavior, direction);
        if direction == "scaleUp" {
            set(rules, "stabilizationWindowSeconds", 0);
        }
        set(rules, "selectPolicy", "Max");
        set(rules, "policies", policies);
    }
}

fn template_labels(spec: &Object) -> Option<Object> {
    let labels = spec.get("template")?.pointer("/metadata/labels")?.as_object()?;
    (!labels.is_empty()).then(|| labels.clone())
}

/// A controller without labels of its own takes those of its pods.
fn labels_of_template(object: &mut Object) {
    let Some(labels) = object.get("spec").and_then(Value::as_object).and_then(template_labels) else { return };
    let metadata = make(object, "metadata");
    if metadata.get("labels").and_then(Value::as_object).is_none_or(Map::is_empty) {
        metadata.insert("labels".to_owned(), Value::Object(labels));
    }
}

fn claim(object: &mut Object) {
    with_spec(object, |spec| set_text(spec, "volumeMode", "Filesystem"));
}

fn deployment(spec: &mut Object) {
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "progressDeadlineSeconds", 600);
    let strategy = make(spec, "strategy");
    set_text(strategy, "type", "RollingUpdate");
    if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
        let rolling = make(strategy, "rollingUpdate");
        set(rolling, "maxUnavailable", "25%");
        set(rolling, "maxSurge", "25%");
    }
    template(spec);
}

fn stateful_set(spec: &mut Object) {
    set_text(spec, "podManagementPolicy", "OrderedReady");
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    let strategy = make(spec, "updateStrategy");
    set_text(strategy, "type", "RollingUpdate");
    if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
        set(make(strategy, "rollingUpdate"), "partition", 0);
    }
    let retention = make(spec, "persistentVolumeClaimRetentionPolicy");
    set_text(retention, "whenDeleted", "Retain");
    set_text(retention, "whenScaled", "Retain");
    for template in items(spec, "volumeClaimTemplates") {
        set(template, "apiVersion", "v1");
        set(template, "kind", "PersistentVolumeClaim");
        claim(template);
        set(make(template, "status"), "phase", "Pending");
    }
    template(spec);
}

fn job(object: &mut Object) {
    let meta = |name: &str| {
        object.get("metadata").and_then(|m| m.get(name)).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (uid, name) = (meta("uid"), meta("name"));
    with_spec(object, |spec| {
        if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
            set(spec, "completions", 1);
        }
        set(spec, "parallelism", 1);
        let unlimited = spec.contains_key("backoffLimitPerIndex");
        set(spec, "backoffLimit", if unlimited { i32::MAX } else { 6 });
        set_text(spec, "completionMode", "NonIndexed");
        set(spec, "suspend", false);
        let failed_only = spec.contains_key("podFailurePolicy");
        set(spec, "podReplacementPolicy", if failed_only { "Failed" } else { "TerminatingOrFailed" });
        set(spec, "manualSelector", false);
        // The registry gives each job its own selector once it has a uid.
        if !uid.is_empty() && !spec.contains_key("selector") && spec.get("manualSelector") != Some(&Value::Bool(true)) {
            spec.insert("selector".to_owned(), json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
            let labels = make(make(make(spec, "template"), "metadata"), "labels");
            for key in ["batch.kubernetes.io/controller-uid", "controller-uid"] {
                labels.insert(key.to_owned(), uid.clone().into());
            }
            for key in ["batch.kubernetes.io/job-name", "job-name"] {
                labels.insert(key.to_owned(), name.clone().into());
            }
        }
        template(spec);
        if let Some(policy) = child(spec, "podFailurePolicy") {
            for rule in items(policy, "rules") {
                items(rule, "onPodConditions").for_each(|condition| set_text(condition, "status", "True"));
            }
        }
    });
    labels_of_template(object);
}

fn service(spec: &mut Object) {
    set_text(spec, "sessionAffinity", "None");
    set_text(spec, "type", "ClusterIP");
    let kind = spec.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if spec.get("sessionAffinity").and_then(Value::as_str) == Some("ClientIP") {
        set(make(make(spec, "sessionAffinityConfig"), "clientIP"), "timeoutSeconds", 10_800);
    }
    if spec.get("sessionAffinity").and_then(Value::as_str) == Some("None") {
        spec.remove("sessionAffinityConfig");
    }
    for port in items(spec, "ports") {
        set_text(port, "protocol", "TCP");
        if port.get("targetPort").is_none_or(|t| t == 0 || t == "")
            && let Some(number) = port.get("port").cloned()
        {
            port.insert("targetPort".to_owned(), number);
        }
    }
    let outside = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|a| !a.is_empty());
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && outside) {
        set_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
    if kind != "ExternalName" {
        // The families depend on the cluster and on what was there before: addresses are given out with them.
        set_text(spec, "internalTrafficPolicy", "Cluster");
    }
}

fn secret(object: &mut Object) {
    set_text(object, "type", "Opaque");
    let Some(Value::Object(plain)) = object.remove("stringData") else { return };
    if plain.is_empty() {
        return;
    }
    let data = make(object, "data");
    for (name, value) in plain {
        if let Value::String(text) = value {
            data.insert(name, base64::engine::general_purpose::STANDARD.encode(text).into());
        }
    }
}

fn namespace(object: &mut Object) {
    let metadata = make(object, "metadata");
    let deleted = metadata.get("deletionTimestamp").is_some();
    if let Some(name) = metadata.get("name").and_then(Value::as_str).map(ToOwned::to_owned) {
        make(metadata, "labels").insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
    if !deleted {
        set(make(object, "spec"), "finalizers", json!(["kubernetes"]));
    }
    set(make(object, "status"), "phase", "Active");
}

/// Bounds of containers are defaults too: the most a limit may be is the limit, that is the request, or else the least.
fn limit_range_item(item: &mut Object) {
    if item.get("type").and_then(Value::as_str) != Some("Container") {
        return;
    }
    for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
        for (name, amount) in item.get(from).and_then(Value::as_object).cloned().unwrap_or_default() {
            set(make(item, to), &name, amount);
        }
    }
}

fn network_policy(spec: &mut Object) {
    for direction in ["ingress", "egress"] {
        for rule in items(spec, direction) {
            items(rule, "ports").for_each(|port| set_text(port, "protocol", "TCP"));
        }
    }
    if spec.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let mut types = vec!["Ingress"];
        if spec.get("egress").and_then(Value::as_array).is_some_and(|e| !e.is_empty()) {
            types.push("Egress");
        }
        spec.insert("policyTypes".to_owned(), json!(types));
    }
}

fn match_resources(matched: &mut Object) {
    set_text(matched, "matchPolicy", "Equivalent");
    set(matched, "namespaceSelector", json!({}));
    set(matched, "objectSelector", json!({}));
    for list in ["resourceRules", "excludeResourceRules"] {
        items(matched, list).for_each(|rule| set_text(rule, "scope", "*"));
    }
}

fn webhook_defaults(webhook: &mut Object, mutating: bool) {
    set_text(webhook, "failurePolicy", "Fail");
    set_text(webhook, "matchPolicy", "Equivalent");
    set(webhook, "timeoutSeconds", 10);
    set(webhook, "namespaceSelector", json!({}));
    set(webhook, "objectSelector", json!({}));
    if mutating {
        set_text(webhook, "reinvocationPolicy", "Never");
    }
    items(webhook, "rules").for_each(|rule| set_text(rule, "scope", "*"));
    if let Some(service) = child(webhook, "clientConfig").and_then(|c| child(c, "service")) {
        set(service, "port", 443);
    }
}
