//! Which node, or why none.

use super::{fit::*, *};
use crate::{cache::Cache, pods::testing::object};
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
    let namespaces = Cache::default();
    let world = World { nodes: &nodes, ledger, namespaces: &namespaces, without: HashSet::new() };
    reasons(&Subject::new(pod, Vec::new()), node, &world).into_iter().map(|r| r.text).collect()
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
    assert_eq!(why(&pod("p", json!({})), &node, &ledger), ["node(s) had untolerated taint(s)"]);
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
    let namespaces = Cache::default();
    let fits = |pod: &Pod, ledger: &Ledger| -> Vec<String> {
        let world = World { nodes: &nodes, ledger, namespaces: &namespaces, without: HashSet::new() };
        let subject = Subject::new(pod, Vec::new());
        let fitting = nodes.iter().filter(|n| reasons(&subject, n, &world).is_empty());
        fitting.map(|n| n.metadata.name.clone().unwrap()).collect()
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

#[test]
fn affinity_reaches_other_namespaces_as_it_says() {
    let nodes = [node("a", json!({ "zone": "1" }), "9")];
    let namespaces = Cache::default();
    namespaces.put(object(json!({ "metadata": { "name": "n", "labels": { "team": "x" } } })));
    let mut ledger = Ledger::default();
    ledger.assume(&pod("web", json!({})), "a");
    let fits = |term: Value| {
        let term = json!({ "requiredDuringSchedulingIgnoredDuringExecution": [term] });
        let mut near = (*pod("near", json!({ "affinity": { "podAffinity": term } }))).clone();
        near.metadata.namespace = Some("other".into());
        let world = World { nodes: &nodes, ledger: &ledger, namespaces: &namespaces, without: HashSet::new() };
        reasons(&Subject::new(&near, Vec::new()), &nodes[0], &world).is_empty()
    };
    let web = json!({ "matchLabels": { "app": "web" } });
    assert!(!fits(json!({ "topologyKey": "zone", "labelSelector": web })), "its own namespace only");
    assert!(fits(json!({ "topologyKey": "zone", "labelSelector": web, "namespaces": ["n"] })));
    assert!(fits(json!({ "topologyKey": "zone", "labelSelector": web, "namespaceSelector": {} })));
    assert!(fits(
        json!({ "topologyKey": "zone", "labelSelector": web, "namespaceSelector": { "matchLabels": { "team": "x" } } })
    ));
    assert!(!fits(
        json!({ "topologyKey": "zone", "labelSelector": web, "namespaceSelector": { "matchLabels": { "team": "y" } } })
    ));
    assert!(!fits(json!({ "topologyKey": "zone", "namespaces": ["n"] })), "no selector selects nothing");
    let keys = |key: &str| json!({ "topologyKey": "zone", "labelSelector": {}, "namespaces": ["n"], key: ["app"] });
    assert!(!fits(keys("matchLabelKeys")), "another app");
    assert!(fits(keys("mismatchLabelKeys")));
}

#[test]
fn the_ledgers_sums_are_those_of_its_pods() {
    let mut ledger = Ledger::default();
    let bound = |name: &str, cpu: &str| {
        let mut pod = (*asks(name, cpu)).clone();
        pod.spec.as_mut().unwrap().node_name = Some("a".into());
        Arc::new(pod)
    };
    ledger.assume(&asks("x", "1"), "a");
    ledger.observe(&bound("x", "1"));
    ledger.observe(&bound("y", "500m"));
    assert_eq!((ledger.used("a", "cpu"), ledger.count("a")), (1_500, 2));
    ledger.observe(&bound("y", "700m"));
    assert_eq!(ledger.used("a", "cpu"), 1_700, "resized in place");
    ledger.unassume("x");
    assert_eq!(ledger.count("a"), 2, "what was seen bound is no assumption");
    ledger.forget(&bound("x", "1"));
    ledger.forget(&bound("y", "1"));
    ledger.forget(&bound("y", "1"));
    assert_eq!((ledger.used("a", "cpu"), ledger.count("a")), (0, 0));
}

fn ranked(name: &str, cpu: &str, priority: i32) -> Arc<Pod> {
    let mut pod = (*asks(name, cpu)).clone();
    pod.spec.as_mut().unwrap().priority = Some(priority);
    Arc::new(pod)
}

fn victims(subject: &Pod, ledger: &Ledger, budgets: &[Value]) -> Result<Vec<String>, String> {
    let nodes = [node("a", json!({}), "4")];
    let namespaces = Cache::default();
    let mut world = World { nodes: &nodes, ledger, namespaces: &namespaces, without: HashSet::new() };
    let subject = Subject::new(subject, Vec::new());
    let failed = vec![(nodes[0].clone(), reasons(&subject, &nodes[0], &world))];
    assert!(!failed[0].1.is_empty(), "it would fit");
    let budgets: Vec<_> = budgets.iter().map(|b| Arc::new(object(b.clone()))).collect();
    preempt::decide(&subject, &mut world, &failed, &budgets)
        .map(|v| v.pods.iter().map(|p| pods::name(p).to_owned()).collect())
        .map_err(|refusal| refusal.why)
}

#[test]
fn the_least_important_make_room_and_no_more_than_needed() {
    let mut ledger = Ledger::default();
    for (name, cpu, priority) in [("old", "2", 5), ("small", "1", 1), ("mid", "1", 3)] {
        ledger.assume(&ranked(name, cpu, priority), "a");
    }
    assert_eq!(victims(&ranked("p", "1", 10), &ledger, &[]), Ok(vec!["small".into()]));
    assert_eq!(victims(&ranked("p", "2", 10), &ledger, &[]), Ok(vec!["mid".into(), "small".into()]));
    assert_eq!(victims(&ranked("p", "2", 4), &ledger, &[]), Ok(vec!["mid".into(), "small".into()]));
    let none = "0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    assert_eq!(victims(&ranked("p", "1", 1), &ledger, &[]), Err(none.into()));
    assert_eq!(victims(&ranked("p", "3", 4), &ledger, &[]), Err("0/1 nodes are available: 1 Insufficient cpu.".into()));
    let hopeless = "0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    assert_eq!(victims(&ranked("p", "5", 10), &ledger, &[]), Err(hopeless.into()), "more than the node has");
    let mut meek = (*ranked("p", "1", 10)).clone();
    meek.spec.as_mut().unwrap().preemption_policy = Some("Never".into());
    assert_eq!(victims(&meek, &ledger, &[]), Err("not eligible due to preemptionPolicy=Never.".into()));
    // A budget that would break makes its pod the last to go.
    let budget = json!({ "metadata": { "name": "b", "namespace": "n" }, "spec": { "selector": { "matchLabels": { "app": "small" } } }, "status": { "disruptionsAllowed": 0 } });
    assert_eq!(victims(&ranked("p", "1", 10), &ledger, &[budget]), Ok(vec!["mid".into()]));
}

#[test]
fn room_that_was_made_is_kept_for_whom_it_was_made() {
    let node = node("a", json!({}), "2");
    let mut ledger = Ledger::default();
    ledger.nominate(&ranked("high", "2", 10), "a");
    assert_eq!(why(&ranked("low", "1", 5), &node, &ledger), ["Insufficient cpu"]);
    assert!(why(&ranked("higher", "1", 11), &node, &ledger).is_empty());
    assert!(why(&ranked("high", "2", 10), &node, &ledger).is_empty(), "not in its own way");
    assert!(ledger.withdraw("high") && !ledger.withdraw("high"));
    assert!(why(&ranked("low", "1", 5), &node, &ledger).is_empty());
}

#[test]
fn a_claim_for_one_pod_is_one_pods() {
    let node = node("a", json!({}), "2");
    let mut ledger = Ledger::default();
    let uses = |name: &str| {
        pod(name, json!({ "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }] }))
    };
    ledger.assume(&uses("x"), "a");
    let (nodes, namespaces) = ([node.clone()], Cache::default());
    let world = World { nodes: &nodes, ledger: &ledger, namespaces: &namespaces, without: HashSet::new() };
    let reasons = reasons(&Subject::new(&uses("y"), vec!["data".into()]), &node, &world);
    assert!(reasons[0].text.contains("ReadWriteOncePod") && !reasons[0].is_final);
}

#[test]
fn spreading_minds_domains_and_keys() {
    let nodes = [node("a", json!({ "zone": "1" }), "9"), node("b", json!({ "zone": "2" }), "9")];
    let namespaces = Cache::default();
    let mut ledger = Ledger::default();
    ledger.assume(&pod("web", json!({})), "a");
    let fits = |constraint: Value| -> Vec<String> {
        let mut base =
            json!({ "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {} });
        base.as_object_mut().unwrap().extend(constraint.as_object().unwrap().clone());
        let pod = pod("web", json!({ "topologySpreadConstraints": [base] }));
        let world = World { nodes: &nodes, ledger: &ledger, namespaces: &namespaces, without: HashSet::new() };
        let subject = Subject::new(&pod, Vec::new());
        let fitting = nodes.iter().filter(|n| reasons(&subject, n, &world).is_empty());
        fitting.map(|n| n.metadata.name.clone().unwrap()).collect()
    };
    assert_eq!(fits(json!({})), ["b"]);
    assert_eq!(fits(json!({ "maxSkew": 2 })), ["a", "b"]);
    assert_eq!(fits(json!({ "minDomains": 3 })), ["b"]);
    assert_eq!(fits(json!({ "matchLabelKeys": ["app"] })), ["b"]);
    assert!(fits(json!({ "topologyKey": "rack" })).is_empty());
}

/// A thousand pods are decided about in far less than the quadratic work of summing all pods for each.
#[test]
fn a_thousand_pods_fit_without_looking_at_each_other() {
    let big: Arc<Node> = Arc::new(object(
        json!({ "metadata": { "name": "a" }, "status": { "allocatable": { "cpu": "2000", "pods": "2000" } } }),
    ));
    let (nodes, namespaces) = ([big.clone()], Cache::default());
    let mut ledger = Ledger::default();
    for n in 0..1000 {
        let pod = asks(&format!("p{n}"), "1");
        let fits = {
            let world = World { nodes: &nodes, ledger: &ledger, namespaces: &namespaces, without: HashSet::new() };
            reasons(&Subject::new(&pod, Vec::new()), &big, &world).is_empty()
        };
        assert!(fits);
        ledger.assume(&pod, "a");
    }
    assert_eq!((ledger.used("a", "cpu"), ledger.count("a")), (1_000_000, 1000));
}
