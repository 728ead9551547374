//! Which node, or why none.

use super::{fit::*, *};
use crate::pods::testing::object;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

fn node(name: &str, labels: Value, cpu: &str) -> Arc<Node> {
    Arc::new(object(json!({
        "metadata": { "name": name, "labels": labels },
        "status": { "allocatable": { "cpu": cpu, "memory": "1Gi", "pods": "3" } },
    })))
}

fn pod(name: &str, spec: Value) -> Arc<Pod> {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{ "name": "c" }]);
    }
    Arc::new(object(
        json!({ "metadata": { "name": name, "namespace": "n", "uid": name, "labels": { "app": name } }, "spec": spec }),
    ))
}

fn asks(name: &str, cpu: &str) -> Arc<Pod> {
    pod(name, json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] }))
}

fn why(pod: &Pod, node: &Arc<Node>, ledger: &Ledger) -> Vec<String> {
    let nodes = [node.clone()];
    reasons(pod, node, &World { nodes: &nodes, ledger })
}

#[test]
fn quantities_are_exact() {
    let milli = |s: &str| fit::milli(&Quantity(s.into()));
    for (text, value) in [
        ("1", 1_000),
        ("100m", 100),
        ("0.5", 500),
        ("1.5Gi", 1_610_612_736_000),
        ("1Ki", 1_024_000),
        ("2e3", 2_000_000),
        ("1e-3", 1),
        ("1n", 1),
        ("-1", -1_000),
        ("12E", 12_000_000_000_000_000_000_000),
    ] {
        assert_eq!(milli(text), Some(value), "{text}");
    }
    for bad in ["", "x", "1Q", "1e99", ".", "1.2.3"] {
        assert_eq!(milli(bad), None, "{bad}");
    }
}

#[test]
fn a_pods_need_is_the_most_of_its_phases() {
    let pod = pod(
        "p",
        json!({
            "initContainers": [
                { "name": "a", "resources": { "requests": { "cpu": "3" } } },
                { "name": "side", "restartPolicy": "Always", "resources": { "requests": { "cpu": "1" } } },
                { "name": "b", "resources": { "requests": { "cpu": "500m", "memory": "1Mi" } } },
            ],
            "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" } } }, { "name": "d", "resources": { "requests": { "cpu": "500m" } } }],
            "overhead": { "cpu": "100m" },
        }),
    );
    let requests = requests(&pod);
    assert_eq!((requests["cpu"], requests["memory"]), (3_100, 1_048_576_000));
}

#[test]
fn room_is_what_nobody_else_has() {
    let node = node("a", json!({}), "2");
    let mut ledger = Ledger::default();
    assert!(why(&asks("x", "2"), &node, &ledger).is_empty());
    ledger.assume(&asks("y", "1500m"), "a");
    assert_eq!(why(&asks("x", "501m"), &node, &ledger), ["Insufficient cpu"]);
    assert!(why(&asks("x", "500m"), &node, &ledger).is_empty());
    let gpu =
        pod("g", json!({ "containers": [{ "name": "c", "resources": { "requests": { "nvidia.com/gpu": "1" } } }] }));
    assert_eq!(why(&gpu, &node, &ledger), ["Insufficient nvidia.com/gpu"]);
    ledger.assume(&asks("z", "0"), "a");
    ledger.assume(&asks("w", "0"), "a");
    assert_eq!(why(&asks("x", "0"), &node, &ledger), ["Too many pods"]);
    let mut done = (*asks("y", "1500m")).clone();
    done.status = Some(object(json!({ "phase": "Succeeded" })));
    assert!(!ledger.observe(&Arc::new(done)));
    assert!(why(&asks("x", "2"), &node, &ledger).is_empty());
}

#[test]
fn selectors_taints_and_cordons_speak_for_themselves() {
    let ledger = Ledger::default();
    let mut tainted = (*node("a", json!({ "disk": "ssd", "gen": "5" }), "2")).clone();
    tainted.spec = Some(object(
        json!({ "taints": [{ "key": "gpu", "value": "yes", "effect": "NoSchedule" }, { "key": "soft", "effect": "PreferNoSchedule" }] }),
    ));
    let node = Arc::new(tainted);
    assert_eq!(why(&pod("p", json!({})), &node, &ledger), ["node(s) had untolerated taint {gpu: yes}"]);
    for toleration in [
        json!({ "key": "gpu", "operator": "Exists" }),
        json!({ "operator": "Exists" }),
        json!({ "key": "gpu", "value": "yes", "effect": "NoSchedule" }),
    ] {
        assert!(why(&pod("p", json!({ "tolerations": [toleration] })), &node, &ledger).is_empty(), "{toleration}");
    }
    for toleration in [
        json!({ "key": "gpu", "value": "no" }),
        json!({ "key": "gpu", "operator": "Exists", "effect": "NoExecute" }),
        json!({ "key": "other", "operator": "Exists" }),
    ] {
        assert!(!why(&pod("p", json!({ "tolerations": [toleration] })), &node, &ledger).is_empty(), "{toleration}");
    }
    let all = json!([{ "operator": "Exists" }]);
    let affinity = |expressions: Value| json!({ "tolerations": all, "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{ "matchExpressions": expressions }] } } } });
    assert!(
        why(&pod("p", json!({ "tolerations": all, "nodeSelector": { "disk": "ssd" } })), &node, &ledger).is_empty()
    );
    assert_eq!(
        why(&pod("p", json!({ "tolerations": all, "nodeSelector": { "disk": "hdd" } })), &node, &ledger),
        ["node(s) didn't match Pod's node affinity/selector"]
    );
    assert!(
        why(&pod("p", affinity(json!([{ "key": "gen", "operator": "Gt", "values": ["4"] }]))), &node, &ledger)
            .is_empty()
    );
    assert!(
        !why(&pod("p", affinity(json!([{ "key": "gen", "operator": "Lt", "values": ["4"] }]))), &node, &ledger)
            .is_empty()
    );
    assert!(!why(&pod("p", affinity(json!([]))), &node, &ledger).is_empty(), "an empty term matches nothing");
    let by_name = |name: &str| {
        pod(
            "p",
            json!({ "tolerations": all, "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": [name] }] }] } } } }),
        )
    };
    assert!(why(&by_name("a"), &node, &ledger).is_empty());
    assert!(!why(&by_name("b"), &node, &ledger).is_empty());
    let mut cordoned = (*node).clone();
    cordoned.spec.as_mut().unwrap().unschedulable = Some(true);
    assert_eq!(why(&pod("p", json!({})), &Arc::new(cordoned.clone()), &ledger), ["node(s) were unschedulable"]);
    assert!(why(&pod("p", json!({ "tolerations": all })), &Arc::new(cordoned), &ledger).is_empty());
}

#[test]
fn host_ports_are_taken_once() {
    let node = node("a", json!({}), "2");
    let mut ledger = Ledger::default();
    let with = |name: &str, ip: &str, protocol: &str| {
        pod(
            name,
            json!({ "containers": [{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 80, "hostIP": ip, "protocol": protocol }] }] }),
        )
    };
    ledger.assume(&with("x", "127.0.0.1", "TCP"), "a");
    assert!(why(&with("y", "10.0.0.1", "TCP"), &node, &ledger).is_empty());
    assert!(why(&with("y", "127.0.0.1", "UDP"), &node, &ledger).is_empty());
    assert_eq!(
        why(&with("y", "", "TCP"), &node, &ledger),
        ["node(s) didn't have free ports for the requested pod ports"]
    );
}

#[test]
fn pods_keep_together_and_apart() {
    let nodes = [
        node("a", json!({ "zone": "1" }), "9"),
        node("b", json!({ "zone": "1" }), "9"),
        node("c", json!({ "zone": "2" }), "9"),
    ];
    let mut ledger = Ledger::default();
    let term = |app: &str| json!({ "requiredDuringSchedulingIgnoredDuringExecution": [{ "topologyKey": "zone", "labelSelector": { "matchLabels": { "app": app } } }] });
    let fits = |pod: &Pod, ledger: &Ledger| -> Vec<String> {
        let world = World { nodes: &nodes, ledger };
        nodes.iter().filter(|n| reasons(pod, n, &world).is_empty()).map(|n| n.metadata.name.clone().unwrap()).collect()
    };
    let near = pod("near", json!({ "affinity": { "podAffinity": term("web") } }));
    assert!(fits(&near, &ledger).is_empty());
    let itself = pod("web", json!({ "affinity": { "podAffinity": term("web") } }));
    assert_eq!(fits(&itself, &ledger), ["a", "b", "c"], "the first of a group");
    let lone = pod("web", json!({ "affinity": { "podAntiAffinity": term("web") } }));
    ledger.assume(&lone, "a");
    assert_eq!(fits(&near, &ledger), ["a", "b"]);
    assert_eq!(fits(&lone, &ledger), ["c"]);
    assert_eq!(fits(&pod("web", json!({})), &ledger), ["c"], "those who are there keep others off");
    let spread = pod(
        "web",
        json!({ "topologySpreadConstraints": [{ "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": { "matchLabels": { "app": "web" } } }] }),
    );
    let mut counted = Ledger::default();
    counted.assume(&pod("web", json!({})), "b");
    assert_eq!(fits(&spread, &counted), ["c"]);
}
