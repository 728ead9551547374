//! What is wrong with objects, in upstream's words, all at once and in upstream's order; and what may be changed.

mod records;
mod workloads;

use super::*;
use crate::schema::{default_builtin, validate_write};

fn errors_of(api_version: &str, kind: &str, mut object: Value, old: Option<Value>) -> Vec<String> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    if object["metadata"]["name"].is_null() {
        object["metadata"]["name"] = "x".into();
    }
    default_builtin(group, version, kind, &mut object);
    let old = old.map(|mut old| {
        old["metadata"]["name"] = "x".into();
        default_builtin(group, version, kind, &mut old);
        old
    });
    validate_write(group, version, kind, "", &object, old.as_ref()).iter().map(ToString::to_string).collect()
}

#[track_caller]
fn says(api_version: &str, kind: &str, object: Value, wanted: &[&str]) {
    assert_eq!(errors_of(api_version, kind, object, None), wanted, "{kind}");
}

#[track_caller]
fn change(api_version: &str, kind: &str, old: &Value, edit: impl FnOnce(&mut Value), wanted: &[&str]) {
    let mut new = old.clone();
    edit(&mut new);
    assert_eq!(errors_of(api_version, kind, new, Some(old.clone())), wanted, "{kind}");
}

fn pod_spec(more: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "a", "image": "i"}]});
    for (name, value) in more.as_object().unwrap() {
        spec[name] = value.clone();
    }
    json!({"metadata": {"name": "x"}, "spec": spec})
}

fn in_container(more: Value) -> Value {
    let mut pod = pod_spec(json!({"volumes": [{"name": "v", "emptyDir": {}}]}));
    for (name, value) in more.as_object().unwrap() {
        pod["spec"]["containers"][0][name] = value.clone();
    }
    pod
}

#[test]
fn containers() {
    let c = "spec.containers[0]";
    for (container, wanted) in [
        (
            json!({"lifecycle": {"preStop": {"sleep": {"seconds": 31}}}}),
            vec![format!(
                "{c}.lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)"
            )],
        ),
        (
            json!({"readinessProbe": {"exec": {}, "terminationGracePeriodSeconds": 0}}),
            vec![
                format!("{c}.readinessProbe.exec.command: Required value"),
                format!("{c}.readinessProbe.terminationGracePeriodSeconds: Invalid value: 0: must be greater than 0"),
                format!(
                    "{c}.readinessProbe.terminationGracePeriodSeconds: Invalid value: 0: must not be set for readinessProbes"
                ),
            ],
        ),
        (
            json!({"livenessProbe": {"tcpSocket": {"port": "no--port"}, "successThreshold": 2}}),
            vec![
                format!(
                    "{c}.livenessProbe.tcpSocket.port: Invalid value: \"no--port\": must not contain consecutive hyphens"
                ),
                format!("{c}.livenessProbe.successThreshold: Invalid value: 2: must be 1"),
            ],
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}}]}),
            vec![format!(
                "{c}.env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"status.phase\": supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\""
            )],
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nothing"}}}]}),
            vec![format!(
                "{c}.env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.nothing\": error converting fieldPath: field label not supported: spec.nothing"
            )],
        ),
        (
            json!({"env": [{"name": "A", "value": "1", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "2"}}}]}),
            vec![
                format!(
                    "{c}.env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu resource"
                ),
                format!("{c}.env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"),
            ],
        ),
        (
            json!({"envFrom": [{}]}),
            vec![format!("{c}.envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`")],
        ),
        (
            json!({"resources": {"requests": {"nvidia.com/gpu": "1"}}}),
            vec![format!("{c}.resources.limits: Required value: Limit must be set for non overcommitable resources")],
        ),
        (
            json!({"resources": {"limits": {"nvidia.com/gpu": "1500m"}, "requests": {"nvidia.com/gpu": "1500m"}}}),
            vec![
                format!("{c}.resources.limits[nvidia.com/gpu]: Invalid value: \"1500m\": must be an integer"),
                format!("{c}.resources.requests[nvidia.com/gpu]: Invalid value: \"1500m\": must be an integer"),
            ],
        ),
        (
            json!({"resources": {"limits": {"cpus": "1"}}}),
            vec![
                format!(
                    "{c}.resources.limits[cpus]: Invalid value: \"cpus\": must be a standard resource type or fully qualified"
                ),
                format!(
                    "{c}.resources.limits[cpus]: Invalid value: \"cpus\": must be a standard resource for containers"
                ),
                format!(
                    "{c}.resources.requests[cpus]: Invalid value: \"cpus\": must be a standard resource type or fully qualified"
                ),
                format!(
                    "{c}.resources.requests[cpus]: Invalid value: \"cpus\": must be a standard resource for containers"
                ),
            ],
        ),
        (
            json!({"resources": {"limits": {"hugepages-2Mi": "3Mi"}}}),
            vec![
                format!(
                    "{c}.resources.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi"
                ),
                format!(
                    "{c}.resources.requests[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi"
                ),
                format!("{c}.resources: Forbidden: HugePages require cpu or memory"),
            ],
        ),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/x", "mountPropagation": "Bidirectional"}]}),
            vec![format!(
                "{c}.volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers"
            )],
        ),
        (
            json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]}),
            vec![format!(
                "{c}.volumeDevices[0].name: Invalid value: \"v\": can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"
            )],
        ),
        (
            json!({"ports": [{"containerPort": 80, "hostPort": 80}, {"containerPort": 81, "hostPort": 80}]}),
            vec![format!("{c}.ports[1].hostPort: Duplicate value: \"TCP//80\"")],
        ),
        (
            json!({"image": " i"}),
            vec![format!("{c}.image: Invalid value: \" i\": must not have leading or trailing whitespace")],
        ),
        (
            json!({"imagePullPolicy": "Often"}),
            vec![format!(
                "{c}.imagePullPolicy: Unsupported value: \"Often\": supported values: \"Always\", \"IfNotPresent\", \"Never\""
            )],
        ),
        (
            json!({"securityContext": {"seccompProfile": {"type": "Localhost"}, "runAsUser": -1}}),
            vec![
                format!(
                    "{c}.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive"
                ),
                format!(
                    "{c}.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost"
                ),
            ],
        ),
    ] {
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        says("v1", "Pod", in_container(container), &wanted);
    }
}

#[test]
fn pods() {
    for (spec, wanted) in [
        (
            json!({"initContainers": [{"name": "a", "image": "i", "livenessProbe": {"exec": {"command": ["x"]}}}]}),
            &[
                "spec.initContainers[0].name: Duplicate value: \"a\"",
                "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
            ][..],
        ),
        (
            json!({"ephemeralContainers": [{"name": "e", "image": "i", "targetContainerName": "z", "ports": [{"containerPort": 1}]}]}),
            &[
                "spec.ephemeralContainers[0].targetContainerName: Not found: \"z\"",
                "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container",
                "spec.ephemeralContainers: Forbidden: cannot be set on create",
            ],
        ),
        (
            json!({"dnsPolicy": "None"}),
            &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
        ),
        (
            json!({"dnsConfig": {"nameservers": ["1.1.1.1", "x", "8.8.8.8", "9.9.9.9"], "searches": ["_a.b", "A"]}}),
            &[
                "spec.dnsConfig.nameservers: Invalid value: [\"1.1.1.1\",\"x\",\"8.8.8.8\",\"9.9.9.9\"]: must not have more than 3 nameservers",
                "spec.dnsConfig.nameservers[1]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                "spec.dnsConfig.searches[1]: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')",
            ],
        ),
        (
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}},
                "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0, "podAffinityTerm": {"topologyKey": ""}}]}}}),
            &[
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
                "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be in the range 1-100",
                "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.topologyKey: Required value: can not be empty",
                "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.topologyKey: Invalid value: \"\": name part must be non-empty",
                "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.topologyKey: Invalid value: \"\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            ],
        ),
        (
            json!({"topologySpreadConstraints": [
                {"maxSkew": 0, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "minDomains": 2},
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]}),
            &[
                "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
                "spec.topologySpreadConstraints[0].{topologyKey, whenUnsatisfiable}: Duplicate value: \"{zone, ScheduleAnyway}\"",
                "spec.topologySpreadConstraints[0].minDomains: Invalid value: 2: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway",
            ],
        ),
        (
            json!({"tolerations": [{"operator": "Exists", "value": "v", "tolerationSeconds": 1}, {"key": "k", "operator": "Maybe"}]}),
            &[
                "spec.tolerations[0].effect: Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set",
                "spec.tolerations[0].operator: Invalid value: \"v\": value must be empty when `operator` is 'Exists'",
                "spec.tolerations[1].operator: Unsupported value: \"Maybe\": supported values: \"Equal\", \"Exists\"",
            ],
        ),
        (
            json!({"hostNetwork": true, "containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 80, "hostPort": 81}]}]}),
            &[
                "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true",
            ],
        ),
        (
            json!({"securityContext": {"sysctls": [{"name": "net.ipv4.x"}, {"name": "BAD"}]}, "hostNetwork": true}),
            &[
                "spec.securityContext.sysctls[0].name: Invalid value: \"net.ipv4.x\": may not be specified when 'hostNetwork' is true",
                "spec.securityContext.sysctls[1].name: Invalid value: \"BAD\": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            ],
        ),
        (
            json!({"volumes": [{"name": "p", "projected": {"sources": [
                {"secret": {"name": "s", "items": [{"key": "k", "path": "same"}]}, "configMap": {"name": "c"}},
                {"serviceAccountToken": {"path": "same/../x", "expirationSeconds": 5}}]}}]}),
            &[
                "spec.volumes[0].projected.sources[0].configMap: Forbidden: may not specify more than 1 volume type",
                "spec.volumes[0].projected.sources[1].serviceAccountToken.expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes",
                "spec.volumes[0].projected.sources[1].serviceAccountToken.path: Invalid value: \"same/../x\": must not contain '..'",
            ],
        ),
        (
            json!({"schedulingGates": [{"name": "a"}, {"name": "a"}], "nodeName": "n"}),
            &[
                "spec.schedulingGates[1]: Duplicate value: \"a\"",
                "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared",
            ],
        ),
        (
            json!({"os": {"name": "windows"}, "securityContext": {"runAsUser": 1}}),
            &["spec.securityContext.runAsUser: Forbidden: cannot be set for a windows pod"],
        ),
    ] {
        says("v1", "Pod", pod_spec(spec), wanted);
    }
    // A negative grace period is upstream's "at once".
    says("v1", "Pod", pod_spec(json!({"terminationGracePeriodSeconds": -1})), &[]);
}

#[test]
fn metadata_of_every_kind() {
    let map = |metadata: Value| json!({"metadata": metadata});
    for (metadata, wanted) in [
        (json!({"generateName": "Bad_", "name": "ok"}), vec!["metadata.generateName: Invalid value: \"Bad_\""]),
        (
            json!({"labels": {"a/b/c": "x", "ok": "-"}}),
            vec![
                "metadata.labels: Invalid value: \"a/b/c\": a valid label key must consist",
                "metadata.labels: Invalid value: \"-\": a valid label must be",
            ],
        ),
        (
            json!({"annotations": {"A/b": "x".repeat(256 << 10)}}),
            vec!["metadata.annotations: Too long: may not be more than 262144 bytes"],
        ),
        (
            json!({"finalizers": ["plain"]}),
            vec![
                "metadata.finalizers[0]: Invalid value: \"plain\": name is neither a standard finalizer name nor is it fully qualified",
            ],
        ),
        (
            json!({"finalizers": ["orphan", "foregroundDeletion"]}),
            vec![
                "metadata.finalizers: Invalid value: [\"orphan\",\"foregroundDeletion\"]: finalizer orphan and foregroundDeletion cannot be both set",
            ],
        ),
        (
            json!({"ownerReferences": [
            {"apiVersion": "v1", "kind": "Event", "name": "e", "uid": "u", "controller": true},
            {"apiVersion": "a/b/c", "kind": "K", "name": "", "uid": "u", "controller": true}]}),
            vec![
                "metadata.ownerReferences[0]: Invalid value: {",
                "metadata.ownerReferences[1].apiVersion: Invalid value: \"a/b/c\": must be <group>/<version> or <version>",
                "metadata.ownerReferences[1].name: Required value: must not be empty",
                "metadata.ownerReferences: Invalid value: [{",
            ],
        ),
        (
            json!({"managedFields": [{"operation": "Own", "fieldsType": "V0", "manager": "m".repeat(129)}]}),
            vec![
                "metadata.managedFields[0].operation: Unsupported value: \"Own\": supported values: \"Apply\", \"Update\"",
                "metadata.managedFields[0].fieldsType: Invalid value: \"V0\": must be `FieldsV1`",
                "metadata.managedFields[0].manager: Too long: may not be more than 128 bytes",
            ],
        ),
    ] {
        let found = errors_of("v1", "ConfigMap", map(metadata), None);
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert!(found.starts_with(wanted), "{found} does not begin with {wanted}");
        }
    }
    let bad = |kind: &str, group: &str, name: &str| errors_of(group, kind, json!({"metadata": {"name": name}}), None);
    assert!(
        bad("Namespace", "v1", "a.b")
            .iter()
            .any(|e| e == "metadata.name: Invalid value: \"a.b\": must not contain dots")
    );
    let long = "a".repeat(64);
    assert!(bad("Namespace", "v1", &long).iter().any(|e| e.ends_with("must be no more than 63 characters")));
    assert_eq!(bad("Role", "rbac.authorization.k8s.io/v1", "a:b"), Vec::<String>::new());
    assert_eq!(
        bad("Role", "rbac.authorization.k8s.io/v1", "a/b%"),
        [
            "metadata.name: Invalid value: \"a/b%\": may not contain '/'",
            "metadata.name: Invalid value: \"a/b%\": may not contain '%'"
        ]
    );
}

#[test]
fn limits_and_quotas() {
    says(
        "v1",
        "LimitRange",
        json!({"spec": {"limits": [
        {"type": "Pod", "default": {"cpu": "1"}, "max": {"cpu": "1"}, "min": {"cpu": "2"}},
        {"type": "Container", "max": {"cpu": "1"}, "default": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "500m"}},
        {"type": "PersistentVolumeClaim"}, {"type": "Container"}]}}),
        &[
            "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
            "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
            "spec.limits[1].defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than max value 1",
            "spec.limits[1].default[cpu]: Invalid value: \"1\": default value 2 is greater than max value 1",
            "spec.limits[1].maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1",
            "spec.limits[2].limits: Required value: either minimum or maximum storage value is required, but neither was provided",
            "spec.limits[3].type: Duplicate value: \"Container\"",
        ],
    );
    let mut range = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}});
    default_builtin("", "v1", "LimitRange", &mut range);
    assert_eq!(range["spec"]["limits"][0]["default"], json!({"cpu": "2"}));
    assert_eq!(range["spec"]["limits"][0]["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
    says(
        "v1",
        "ResourceQuota",
        json!({"spec": {"hard": {"pods": "1500m", "cpus": "1", "limits.cpu": "-1"}, "scopes": ["BestEffort", "NotBestEffort", "X"]}}),
        &[
            "spec.hard[cpus]: Invalid value: \"cpus\": must be a standard resource type or fully qualified",
            "spec.hard[limits.cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
            "spec.hard[pods]: Invalid value: \"1500m\": must be an integer",
            "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\",\"X\"]: unsupported scope applied to resource",
            "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\",\"X\"]: unsupported scope",
            "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\",\"X\"]: conflicting scopes",
        ],
    );
    change(
        "v1",
        "ResourceQuota",
        &json!({"spec": {"hard": {"pods": "1"}}}),
        |n| n["spec"]["scopes"] = json!(["BestEffort"]),
        &["spec.scopes: Invalid value: [\"BestEffort\"]: field is immutable"],
    );
}

#[test]
fn networks() {
    let service = |more: Value| {
        let mut out = json!({"spec": {"ports": [{"port": 80}]}});
        for (name, value) in more.as_object().unwrap() {
            out["spec"][name] = value.clone();
        }
        out
    };
    says(
        "v1",
        "Service",
        service(
            json!({"externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["x"], "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
        ),
        &[
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400",
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
            "spec.LoadBalancerSourceRanges[0]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
        ],
    );
    says(
        "v1",
        "Service",
        service(json!({"ports": [{"port": 80}, {"port": 80, "name": "b", "nodePort": 30000}]})),
        &[
            "spec.ports[0].name: Required value",
            "spec.ports[1].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            "spec.ports[1]: Duplicate value: {\"name\":\"\",\"port\":80,\"protocol\":\"TCP\",\"targetPort\":0}",
        ],
    );
    let ingress = |path: Value| json!({"spec": {"rules": [{"host": "10.0.0.1", "http": {"paths": [path]}}]}});
    says(
        "networking.k8s.io/v1",
        "Ingress",
        ingress(
            json!({"path": "/a//b/..", "pathType": "Exact", "backend": {"service": {"name": "s", "port": {"name": "http", "number": 80}}}}),
        ),
        &[
            "spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
            "spec.rules[0].http.paths[0].path: Invalid value: \"/a//b/..\": must not contain '//'",
            "spec.rules[0].http.paths[0].path: Invalid value: \"/a//b/..\": cannot end with '/..'",
            "spec.rules[0].http.paths[0].backend: Invalid value: \"\": cannot set both port name & port number",
        ],
    );
    says(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        json!({"spec": {"podSelector": {}, "ingress": [{
        "ports": [{"port": "http", "endPort": 90}, {"endPort": 1}],
        "from": [{}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "11.0.0.0/16"]}, "podSelector": {}}]}]}}),
        &[
            "spec.ingress[0].ports[0].endPort: Invalid value: 90: may not be specified when `port` is non-numeric",
            "spec.ingress[0].ports[1].endPort: Invalid value: 1: may not be specified when `port` is not specified",
            "spec.ingress[0].from[0]: Required value: must specify a peer",
            "spec.ingress[0].from[1].ipBlock.except[1]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
            "spec.ingress[0].from[1]: Forbidden: may not specify both ipBlock and another peer",
        ],
    );
    says(
        "networking.k8s.io/v1",
        "IngressClass",
        json!({"spec": {"controller": "nginx"}}),
        &["spec.controller: Invalid value: \"nginx\": must be a domain-prefixed path (such as \"acme.io/foo\")"],
    );
}

#[test]
fn storage() {
    let volume =
        json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "local": {"path": "/a"}}});
    says("v1", "PersistentVolume", volume, &["spec.nodeAffinity: Required value: Local volume requires node affinity"]);
    says(
        "v1",
        "PersistentVolume",
        json!({"spec": {"accessModes": ["ReadWriteOncePod", "ReadWriteMany", "Any"], "hostPath": {"path": "/"}, "persistentVolumeReclaimPolicy": "Recycle"}}),
        &[
            "spec.accessModes: Unsupported value: \"Any\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
            "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
            "spec.capacity: Required value",
            "spec.capacity: Unsupported value: \"\": supported values: \"storage\"",
            "spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'",
        ],
    );
    let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let frozen = "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
    change(
        "v1",
        "PersistentVolumeClaim",
        &claim,
        |n| n["spec"]["resources"]["requests"]["storage"] = "2Gi".into(),
        &[frozen],
    );
    let mut bound = claim.clone();
    bound["status"] = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
    change(
        "v1",
        "PersistentVolumeClaim",
        &bound,
        |n| n["spec"]["resources"]["requests"]["storage"] = "2Gi".into(),
        &[],
    );
    change(
        "v1",
        "PersistentVolumeClaim",
        &bound,
        |n| n["spec"]["resources"]["requests"]["storage"] = "512Mi".into(),
        &["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"],
    );
    says(
        "v1",
        "PersistentVolumeClaim",
        json!({"spec": {"dataSource": {"kind": "Snapshot", "name": "s"}}}),
        &[
            "spec.accessModes: Required value: at least 1 access mode is required",
            "spec.resources[storage]: Required value",
            "spec.dataSource: Invalid value: \"Snapshot\": must be 'PersistentVolumeClaim' when referencing the default apiGroup",
        ],
    );
    change(
        "storage.k8s.io/v1",
        "StorageClass",
        &json!({"provisioner": "a/b"}),
        |n| n["parameters"] = json!({"a": "b"}),
        &["parameters: Forbidden: updates to parameters are forbidden."],
    );
}

#[test]
fn configuration() {
    says(
        "v1",
        "Secret",
        json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "bm8="}}),
        &["data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": the content is no JSON object"],
    );
    says(
        "v1",
        "Secret",
        json!({"type": "kubernetes.io/basic-auth"}),
        &["data[username]: Required value", "data[password]: Required value"],
    );
    says(
        "v1",
        "ConfigMap",
        json!({"data": {"..x": "1", "k": "v"}, "binaryData": {"k": "aGk="}}),
        &[
            "data[..x]: Invalid value: \"..x\": must not start with '..'",
            "data[k]: Invalid value: \"k\": duplicate of key present in binaryData",
        ],
    );
    says(
        "v1",
        "ConfigMap",
        json!({"data": {"k": "x".repeat((1 << 20) + 1)}}),
        &[": Too long: may not be more than 1048576 bytes"],
    );
    change(
        "v1",
        "Secret",
        &json!({"data": {}}),
        |n| n["type"] = "x".into(),
        &["type: Invalid value: \"x\": field is immutable"],
    );
    says(
        "policy/v1",
        "PodDisruptionBudget",
        json!({"spec": {"minAvailable": "120%", "unhealthyPodEvictionPolicy": "Never"}}),
        &[
            "spec.minAvailable: Invalid value: \"120%\": must not be greater than 100%",
            "spec.unhealthyPodEvictionPolicy: Unsupported value: \"Never\": supported values: \"AlwaysAllow\", \"IfHealthyBudget\"",
        ],
    );
    says(
        "v1",
        "Node",
        json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoSchedule", "value": "b"}], "podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]}}),
        &[
            "metadata.taints[1]: Duplicate value: {\"effect\":\"NoSchedule\",\"key\":\"a\",\"value\":\"b\"}: taints must be unique by key and effect pair",
            "spec.podCIDRs: Invalid value: [\"10.0.0.0/24\",\"10.0.1.0/24\"]: may specify no more than one CIDR for each IP family",
        ],
    );
    let hook = |more: Value| {
        let mut out = json!({"name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"], "clientConfig": {"url": "https://x/y"},
            "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}]});
        for (name, value) in more.as_object().unwrap() {
            out[name] = value.clone();
        }
        json!({"webhooks": [out]})
    };
    let kind = "ValidatingWebhookConfiguration";
    let version = "admissionregistration.k8s.io/v1";
    says(version, kind, hook(json!({})), &[]);
    says(
        version,
        kind,
        hook(json!({"name": "short", "sideEffects": "Some", "admissionReviewVersions": ["v2"], "timeoutSeconds": 31,
        "clientConfig": {"url": "http://x"}, "rules": [{"operations": ["*", "READ"], "apiGroups": [], "apiVersions": [""], "resources": ["*/*", "pods"]}]})),
        &[
            "webhooks[0].name: Invalid value: \"short\": should be a domain with at least three segments separated by dots",
            "webhooks[0].rules[0].operations: Invalid value: [\"*\",\"READ\"]: if '*' is present, must not specify other operations",
            "webhooks[0].rules[0].operations[1]: Unsupported value: \"READ\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\"",
            "webhooks[0].rules[0].apiGroups: Required value",
            "webhooks[0].rules[0].apiVersions[0]: Required value",
            "webhooks[0].rules[0].resources: Invalid value: [\"*/*\",\"pods\"]: if '*/*' is present, must not specify other resources",
            "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
            "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
            "webhooks[0].admissionReviewVersions: Invalid value: [\"v2\"]: must include at least one of v1, v1beta1",
        ],
    );
}

/// Over HTTP: what only subresources may change, and what a status may not say.
#[tokio::test]
async fn subresources_of_a_pod_change_their_own_part() {
    let world = world().await;
    world.default_account().await;
    let pods = "/api/v1/namespaces/default/pods";
    let one = "/api/v1/namespaces/default/pods/p";
    let amounts =
        |cpu: &str| json!({"limits": {"cpu": cpu, "memory": "1Gi"}, "requests": {"cpu": cpu, "memory": "1Gi"}});
    let object = json!({"metadata": {"name": "p"}, "spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "i", "resources": amounts("1")}]}});
    assert_eq!(world.post(pods, object).await.0, 201);
    let causes = |answer: &Value| -> Vec<String> {
        let all = answer["details"]["causes"].as_array().cloned().unwrap_or_default();
        all.iter().map(|c| format!("{}: {}", c["field"].as_str().unwrap(), c["message"].as_str().unwrap())).collect()
    };
    let strategic = |path: String, body: Value| {
        let world = &world;
        async move {
            world.request("PATCH", &path, &[("content-type", "application/strategic-merge-patch+json")], body).await
        }
    };
    let containers = |more: Value| json!({"spec": {"containers": [more]}});
    let (code, _, answer) = strategic(one.into(), containers(json!({"name": "a", "resources": amounts("2")}))).await;
    assert_eq!(code, 422);
    assert!(
        causes(&answer)[0]
            .starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"),
        "{answer}"
    );
    let (code, _, answer) =
        strategic(format!("{one}/resize"), containers(json!({"name": "a", "resources": amounts("2")}))).await;
    assert_eq!((code.as_u16(), &answer["spec"]["containers"][0]["resources"]), (200, &amounts("2")), "{answer}");
    let burst = json!({"requests": {"cpu": "1"}});
    let (code, _, answer) =
        strategic(format!("{one}/resize"), containers(json!({"name": "a", "resources": burst}))).await;
    assert_eq!(
        (code.as_u16(), causes(&answer)),
        (
            422,
            vec![
                "spec: Invalid value: \"Guaranteed\": Pod QOS Class may not change as a result of resizing".to_owned()
            ]
        )
    );
    let debugger = |image: &str| json!({"spec": {"ephemeralContainers": [{"name": "d", "image": image}]}});
    let (code, _, answer) = strategic(one.into(), debugger("i")).await;
    assert_eq!(code, 422, "{answer}");
    let (code, _, answer) = strategic(format!("{one}/ephemeralcontainers"), debugger("i")).await;
    assert_eq!(code, 200, "{answer}");
    let (code, _, answer) = strategic(format!("{one}/ephemeralcontainers"), debugger("j")).await;
    assert_eq!(
        (code.as_u16(), causes(&answer)),
        (
            422,
            vec![
                "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"d\" may not be changed\n"
                    .to_owned()
            ]
        )
    );

    let status = |status: Value| json!({"status": status});
    let ended = json!({"phase": "Failed", "containerStatuses": [{"name": "a", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 1}}}]});
    assert_eq!(world.merge(&format!("{one}/status"), status(ended)).await.0, 200);
    let running = json!({"containerStatuses": [{"name": "a", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}]});
    let (code, answer) = world.merge(&format!("{one}/status"), status(running)).await;
    assert_eq!(
        (code.as_u16(), causes(&answer)),
        (
            422,
            vec![
                "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"
                    .to_owned()
            ]
        )
    );
    let (code, answer) = world.merge(&format!("{one}/status"), status(json!({"qosClass": "Burstable"}))).await;
    assert_eq!(
        (code.as_u16(), causes(&answer)),
        (422, vec!["status.qosClass: Invalid value: \"Burstable\": field is immutable".to_owned()])
    );

    let (code, answer) = world.post(&format!("{one}/binding"), json!({"target": {"kind": "Pod", "name": "n"}})).await;
    assert_eq!(
        (code.as_u16(), causes(&answer)),
        (422, vec!["target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\"".to_owned()])
    );
    assert_eq!(world.post(&format!("{one}/binding"), json!({"target": {"kind": "Node", "name": "n"}})).await.0, 201);
    let (code, answer) = world.post(&format!("{one}/binding"), json!({"target": {"kind": "Node", "name": "n"}})).await;
    assert_eq!((code.as_u16(), answer["reason"].as_str()), (409, Some("Conflict")), "{answer}");
}

/// A service that changes its type sheds what only the old type had.
#[tokio::test]
async fn a_service_changes_its_type_with_what_it_was_given() {
    let world = world().await;
    let services = "/api/v1/namespaces/default/services";
    let (code, made) = world
        .post(services, json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}))
        .await;
    assert_eq!((code.as_u16(), &made["spec"]["externalTrafficPolicy"]), (201, &json!("Cluster")), "{made}");
    for kind in ["NodePort", "ClusterIP", "LoadBalancer", "ExternalName", "ClusterIP"] {
        let patch = match kind {
            "ExternalName" => json!({"spec": {"type": kind, "externalName": "example.com"}}),
            _ => json!({"spec": {"type": kind, "externalName": null}}),
        };
        let (code, answer) = world.merge(&format!("{services}/s"), patch).await;
        assert_eq!((code.as_u16(), &answer["spec"]["type"]), (200, &json!(kind)), "{answer}");
    }
}

/// What an earlier release let in can still be labelled, reported on and released.
#[tokio::test]
async fn what_an_update_leaves_alone_is_not_judged_again() {
    let world = world().await;
    let core = world.server.core();
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "old", "namespace": "default", "uid": "u", "finalizers": ["example.com/x"]},
        "spec": {"replicas": -3, "selector": {}, "template": {}}});
    let encoded = crate::store::encode("deployments.apps", &object);
    core.store
        .put("deployments.apps", crate::store::Key::new("default", "old"), crate::store::Expect::Absent, encoded)
        .await
        .unwrap();
    let one = "/apis/apps/v1/namespaces/default/deployments/old";
    assert_eq!(world.merge(&format!("{one}/status"), json!({"status": {"replicas": 0}})).await.0, 200);
    let (code, answer) = world.merge(one, json!({"spec": {"replicas": -4}})).await;
    assert_eq!(code, 422, "{answer}");
    assert_eq!(world.delete(one, Value::Null).await.0, 200);
    assert_eq!(world.merge(one, json!({"metadata": {"finalizers": null}})).await.0, 200);
    assert_eq!(world.get(one).await.0, 404);
}
