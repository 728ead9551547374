//! Nodes: taint, cordon and drain. On a box of its own, since a drained node is everyone's.

use super::{IDLE, WEB};
use kfbox_tests::{Space, TestBox};

#[test]
fn kubectl_taints_cordons_and_drains_the_node() -> anyhow::Result<()> {
    let b = TestBox::start()?;
    b.load_python_image()?;
    let s = Space::new(&b, "drain")?;
    let node = s.value("nodes", "{.items[0].metadata.name}")?;
    s.apply(&WEB.replace("replicas: 2", "replicas: 1"))?;
    s.ok("rollout status deployment/web --timeout=60s")?;

    s.ok(&format!("label node {node} disk=fast"))?;
    assert_eq!(s.ok("get nodes -l disk=fast -o name")?, format!("node/{node}\n"));
    s.ok(&format!("taint node {node} busy=yes:NoSchedule"))?;
    assert!(s.ok(&format!("describe node {node}"))?.contains("busy=yes:NoSchedule"));
    s.apply(IDLE)?;
    let unschedulable = "jsonpath={.status.conditions[?(@.type==\"PodScheduled\")].reason}=Unschedulable";
    s.ok_with("wait pod/idle --timeout=30s --for", &[unschedulable])?;
    assert!(s.ok("describe pod idle")?.contains("node(s) had untolerated taint"));
    s.ok(&format!("taint node {node} busy-"))?;
    s.ok("wait --for=condition=Ready pod/idle --timeout=60s")?;

    s.ok(&format!("cordon {node}"))?;
    assert!(s.ok("get nodes")?.contains("Ready,SchedulingDisabled"));
    s.ok(&format!("uncordon {node}"))?;

    // Drain: a pod without a controller stops it, a budget holds it up.
    let bare = s.refused(&format!("drain {node} --timeout=5s --pod-selector=app=idle"))?;
    assert!(bare.contains("cannot delete Pods that declare no controller") || bare.contains("use --force"), "{bare}");
    s.ok("create poddisruptionbudget web --selector=app=web --min-available=1")?;
    s.ok("wait pdb/web --for=jsonpath={.status.currentHealthy}=1 --timeout=30s")?;
    let held = s.refused(&format!("drain {node} --timeout=3s --ignore-daemonsets --pod-selector=app=web"))?;
    assert!(held.contains("Cannot evict pod as it would violate the pod's disruption budget."), "{held}");
    assert_eq!(s.value("pods -l app=web", "{.items[*].status.phase}")?, "Running");
    s.ok("delete pdb web")?;
    let drained = s.ok(&format!("drain {node} --force --ignore-daemonsets --delete-emptydir-data --timeout=60s"))?;
    assert!(drained.contains(&format!("node/{node} drained")), "{drained}");
    assert!(s.refused("get pod idle")?.contains("NotFound"));
    assert!(s.value("pods -l app=web", "{.items[*].status.phase}")?.contains("Pending"));
    s.ok(&format!("uncordon {node}"))?;
    s.ok("rollout status deployment/web --timeout=60s")?;
    Ok(())
}
