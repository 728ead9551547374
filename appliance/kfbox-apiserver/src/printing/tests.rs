use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{TableKind, human_duration, table};

fn now() -> DateTime<Utc> {
    "2026-01-02T00:00:00Z".parse().unwrap()
}

fn cells(group: &str, kind: &str, object: Value) -> Vec<Value> {
    let kind = TableKind { group, version: "v1", kind, columns: None };
    let table = table(&kind, &[object], now());
    let cells = table["rows"][0]["cells"].as_array().unwrap().clone();
    assert_eq!(cells.len(), table["columnDefinitions"].as_array().unwrap().len());
    cells
}

fn pod_status(status: Value) -> (Value, Value, Value) {
    let cells = cells(
        "",
        "Pod",
        json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T23:54:48Z"},
            "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]}, "status": status}),
    );
    (cells[1].clone(), cells[2].clone(), cells[3].clone())
}

#[test]
fn durations_read_as_upstream() {
    for (seconds, text) in [
        (-5, "<invalid>"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (312, "5m12s"),
        (600, "10m"),
        (3 * 3600, "3h"),
        (3 * 3600 + 240, "3h4m"),
        (47 * 3600 + 59 * 60, "47h"),
        (76 * 3600, "3d4h"),
        (8 * 86400, "8d"),
        (729 * 86400, "729d"),
        (730 * 86400, "2y"),
        (760 * 86400, "2y30d"),
        (9 * 365 * 86400, "9y"),
    ] {
        assert_eq!(human_duration(seconds), text);
    }
}

#[test]
fn pods_tell_their_state() {
    let ready = json!([{"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}}]);
    let done = json!([{"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"terminated": {"exitCode": 0}}}]);
    assert_eq!(
        pod_status(json!({"phase": "Running", "containerStatuses": ready, "initContainerStatuses": done})),
        (json!("1/1"), json!("Running"), json!("0"))
    );
    assert_eq!(
        pod_status(json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]})).1,
        json!("Init:0/2")
    );
    assert_eq!(pod_status(json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]})).1, json!("Init:ImagePullBackOff"));
    assert_eq!(pod_status(json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 3}}}]})).1, json!("Init:ExitCode:3"));
    let loops = json!([{"name": "a", "ready": false, "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"finishedAt": "2026-01-01T23:55:00Z"}}}]);
    assert_eq!(
        pod_status(json!({"phase": "Running", "containerStatuses": loops})),
        (json!("0/1"), json!("CrashLoopBackOff"), json!("4 (5m ago)"))
    );
    let ended = json!([{"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]);
    assert_eq!(pod_status(json!({"phase": "Succeeded", "containerStatuses": ended})).1, json!("Completed"));
    assert_eq!(pod_status(json!({"phase": "Failed", "reason": "Evicted"})).1, json!("Evicted"));
    let leaving = cells(
        "",
        "Pod",
        json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}}),
    );
    assert_eq!(leaving[2], json!("Terminating"));
    assert_eq!(leaving[4], json!("<unknown>"));
}

#[test]
fn other_kinds() {
    let deployment = cells(
        "apps",
        "Deployment",
        json!({"metadata": {"name": "d", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"b": "2", "a": "1"}}, "template": {"spec": {"containers": [{"name": "x", "image": "i"}]}}},
        "status": {"readyReplicas": 2, "updatedReplicas": 3}}),
    );
    assert_eq!(
        deployment,
        vec![json!("d"), json!("2/3"), json!(3), json!(0), json!("24h"), json!("x"), json!("i"), json!("a=1,b=2")]
    );
    let service = cells(
        "",
        "Service",
        json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": 30001, "protocol": "TCP"}]}}),
    );
    assert_eq!(service[4], json!("80:30001/TCP"));
    let job = cells(
        "batch",
        "Job",
        json!({"metadata": {"name": "j"}, "spec": {"completions": 2}, "status": {"succeeded": 1, "startTime": "2026-01-01T23:59:00Z"}}),
    );
    assert_eq!(job[1..4], [json!("Running"), json!("1/2"), json!("60s")]);
    let node = cells(
        "",
        "Node",
        json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
        "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    assert_eq!(node[1..3], [json!("Ready,SchedulingDisabled"), json!("control-plane")]);
    assert_eq!(cells("", "Anything", json!({"metadata": {"name": "x"}})).len(), 2);
}

/// Whatever an object holds, printing must not panic: lists hold what users stored.
#[test]
fn every_kind_prints_an_empty_object() {
    for resource in crate::schema::resources() {
        for object in [json!({}), json!({"metadata": {"name": "x"}, "spec": null, "status": []}), json!([])] {
            cells(resource.group, resource.kind, object);
        }
    }
}

#[test]
fn custom_columns() {
    let columns = [
        json!({"name": "State", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"}),
        json!({"name": "Last", "type": "string", "jsonPath": ".status.conditions[-1:].type"}),
        json!({"name": "Count", "type": "integer", "jsonPath": ".spec.count", "priority": 1}),
        json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}),
        json!({"name": "Url", "type": "string", "jsonPath": ".metadata.annotations['a\\.b']"}),
        json!({"name": "Broken", "type": "string", "jsonPath": ".a[?("}),
        json!({"name": "Dotted", "type": "string", "jsonPath": ".metadata.labels.app\\.kubernetes\\.io/name"}),
    ];
    let object = json!({"metadata": {"name": "c", "creationTimestamp": "2026-01-01T23:00:00Z", "labels": {"app.kubernetes.io/name": "n"}},
        "spec": {"count": 3}, "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Synced", "status": "False"}]}});
    let kind = TableKind { group: "g", version: "v1", kind: "K", columns: Some(&columns) };
    let table = table(&kind, &[object], now());
    assert_eq!(table["rows"][0]["cells"], json!(["c", "True", "Synced", 3, "60m", null, null, "n"]));
    assert_eq!(table["columnDefinitions"][3]["priority"], json!(1));
    assert_eq!(table["rows"][0]["object"]["kind"], json!("PartialObjectMetadata"));
}

#[test]
fn kinds_of_administrators() {
    let row = |group: &str, kind: &str, object: Value| cells(group, kind, object)[1..].to_vec();
    let driver = json!({"metadata": {"name": "d"}, "spec": {"podInfoOnMount": true, "tokenRequests": [{"audience": "a"}, {"audience": "b"}], "volumeLifecycleModes": ["Ephemeral"]}});
    assert_eq!(
        row("storage.k8s.io", "CSIDriver", driver)[..6],
        [json!(true), json!(true), json!(false), json!("a,b"), json!(false), json!("Ephemeral")]
    );
    let address = json!({"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": {"resource": "services", "namespace": "n", "name": "s"}}});
    assert_eq!(row("networking.k8s.io", "IPAddress", address)[0], json!("services/n/s"));
    let cidr = json!({"metadata": {"name": "k"}, "spec": {"cidrs": ["10.0.0.0/16", "fd00::/112"]}});
    assert_eq!(row("networking.k8s.io", "ServiceCIDR", cidr)[0], json!("10.0.0.0/16,fd00::/112"));
    let template = json!({"metadata": {"name": "t"}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "x", "image": "i"}]}}});
    assert_eq!(row("", "PodTemplate", template), [json!("x"), json!("i"), json!("a=b")]);
    let status =
        json!({"metadata": {"name": "etcd"}, "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]});
    assert_eq!(row("", "ComponentStatus", status), [json!("Healthy"), json!("ok"), json!("")]);
    let service = json!({"metadata": {"name": "v1.x"}, "spec": {"service": {"namespace": "n", "name": "s"}},
        "status": {"conditions": [{"type": "Available", "status": "False", "reason": "MissingEndpoints"}]}});
    assert_eq!(
        row("apiregistration.k8s.io", "APIService", service)[..2],
        [json!("n/s"), json!("False (MissingEndpoints)")]
    );
    let slice = json!({"metadata": {"name": "r"}, "spec": {"driver": "gpu.example.com", "nodeName": "box", "pool": {"name": "p"}}});
    assert_eq!(
        row("resource.k8s.io", "ResourceSlice", slice)[..3],
        [json!("box"), json!("gpu.example.com"), json!("p")]
    );
    let exempt =
        json!({"metadata": {"name": "e"}, "spec": {"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0}}});
    assert_eq!(
        row("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", exempt)[..3],
        [json!("Exempt"), json!(0), json!("<none>")]
    );
    let old = json!({"apiVersion": "autoscaling/v1", "metadata": {"name": "h", "annotations": {"autoscaling.alpha.kubernetes.io/metrics":
        "[{\"type\":\"Resource\",\"resource\":{\"name\":\"memory\",\"targetAverageValue\":\"1Gi\"}}]"}}, "spec": {"maxReplicas": 2}});
    assert_eq!(row("autoscaling", "HorizontalPodAutoscaler", old)[1], json!("memory: <unknown>/1Gi"));
}
