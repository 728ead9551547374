//! delete: cascades, finalizers, force, collections, namespaces.

use super::IDLE;
use kfbox_tests::{Space, TestBox, wait_until};
use std::time::Duration;

const SETS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME}
spec:
  replicas: 1
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: 'python:3.11', command: [sleep, infinity]}]
";

#[test]
fn kubectl_deletes_in_the_background_in_the_foreground_and_leaving_orphans() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "cascade")?;
    for name in ["back", "front", "orphan"] {
        s.apply(&SETS.replace("NAME", name))?;
    }
    for name in ["back", "front", "orphan"] {
        s.ok(&format!("rollout status deployment/{name} --timeout=60s"))?;
    }
    assert!(s.ok("delete deployment back --cascade=background")?.contains("deployment.apps \"back\" deleted"));
    s.ok("wait --for=delete replicaset,pod -l app=back --timeout=30s")?;
    // In the foreground the owner goes last: when kubectl returns, nothing is left.
    s.ok("delete deployment front --cascade=foreground --timeout=30s")?;
    assert_eq!(s.ok("get replicasets,pods -l app=front -o name")?, "");

    s.ok("delete deployment orphan --cascade=orphan")?;
    let set = s.ok("get replicasets -l app=orphan -o name")?.trim().to_owned();
    wait_until(Duration::from_secs(20), "the set without its owner", || {
        Ok(s.value(&set, "{.metadata.ownerReferences}")?.is_empty().then_some(()))
    })?;
    s.ok(&format!("delete {set} --cascade=orphan"))?;
    let pods = s.value("pods -l app=orphan", "{.items[*].metadata.ownerReferences[*].name}")?;
    assert_eq!(pods, "", "the pod's owner");
    assert_eq!(s.ok("get pods -l app=orphan -o name")?.lines().count(), 1);
    // A new Deployment takes the orphans in.
    let pod = s.ok("get pods -l app=orphan -o name")?;
    s.ok("delete pods --all --now")?;
    assert!(s.refused(&format!("get {}", pod.trim()))?.contains("NotFound"));
    Ok(())
}

#[test]
fn kubectl_delete_honours_finalizers_grace_and_force() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "final")?;
    s.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: held, finalizers: [example.test/hold]}}")?;
    s.ok("delete configmap held --wait=false")?;
    assert_ne!(s.value("configmap/held", "{.metadata.deletionTimestamp}")?, "");
    let refused = s.refused("delete configmap held --timeout=1s")?;
    assert!(refused.contains("timed out waiting for the condition on configmaps/held"), "{refused}");
    let mut gone = s.start("delete configmap held --timeout=30s")?;
    gone.expect("deleted")?;
    s.ok_with("patch configmap held --type=json -p", &[r#"[{"op":"remove","path":"/metadata/finalizers"}]"#])?;
    assert_eq!(gone.end()?.0, Some(0));

    // A process that ignores the first signal: force takes the object at once, --now after a second.
    let stubborn = IDLE
        .replace(
            "[sleep, infinity]",
            "[python3, -c, 'import signal, time; signal.signal(15, 1); print(1); time.sleep(999)']",
        )
        .replace("terminationGracePeriodSeconds: 0", "terminationGracePeriodSeconds: 600");
    for (how, name) in [("--force --grace-period=0", "forced"), ("--now", "now"), ("--grace-period=1", "short")] {
        s.apply(&stubborn.replace("name: idle,", &format!("name: {name},")))?;
        s.ok(&format!("wait --for=condition=Ready pod/{name} --timeout=60s"))?;
        s.ok(&format!("delete pod {name} {how} --timeout=30s"))?;
        assert!(s.refused(&format!("get pod {name}"))?.contains("NotFound"), "{name}");
    }
    // Collections, by label and all.
    for n in 0..6 {
        s.apply(&format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: c{n}, labels: {{odd: '{}'}}}}}}",
            n % 2
        ))?;
    }
    assert_eq!(s.ok("delete configmaps -l odd=1")?.lines().count(), 3);
    let dry = s.ok("delete configmaps -l odd=0 --dry-run=server")?;
    assert!(dry.lines().count() == 3 && dry.contains("(server dry run)"), "{dry}");
    assert_eq!(s.ok("get configmaps -l odd -o name")?.lines().count(), 3);
    s.ok(&format!("delete --raw /api/v1/namespaces/{}/configmaps?labelSelector=odd", s.name))?;
    assert_eq!(s.ok("get configmaps -l odd -o name")?, "");
    assert_eq!(s.ok("delete configmap none --ignore-not-found")?, "");
    Ok(())
}

#[test]
fn kubectl_deletes_a_namespace_with_all_that_is_in_it() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "outer")?;
    let inner = format!("{}-inner", s.name);
    s.goes_too(format!("namespace/{inner}"));
    s.ok(&format!("create namespace {inner}"))?;
    s.input(&format!("apply -n {inner} -f -"), IDLE)?.ok()?;
    let held = "{apiVersion: v1, kind: ConfigMap, metadata: {name: held, finalizers: [example.test/hold]}}";
    s.input(&format!("apply -n {inner} -f -"), held)?.ok()?;
    s.ok(&format!("wait -n {inner} --for=condition=Ready pod/idle --timeout=60s"))?;
    s.ok(&format!("delete namespace {inner} --wait=false"))?;
    // It says what holds it, and takes nothing new.
    let why = "jsonpath={.status.conditions[?(@.type==\"NamespaceFinalizersRemaining\")].status}=True";
    s.ok_with(&format!("wait namespace/{inner} --timeout=30s --for"), &[why])?;
    let late = s.refused(&format!("create configmap late -n {inner}"))?;
    assert!(late.contains("because it is being terminated"), "{late}");
    s.ok(&format!("wait -n {inner} --for=delete pod/idle --timeout=30s"))?;
    s.ok_with(&format!("patch -n {inner} configmap held --type=merge -p"), &[r#"{"metadata":{"finalizers":null}}"#])?;
    s.ok(&format!("wait --for=delete namespace/{inner} --timeout=30s"))?;
    Ok(())
}
