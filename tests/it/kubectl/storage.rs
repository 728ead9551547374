//! Claims: one that grows, and one that is a single pod's.

use kfbox_tests::{Space, TestBox, wait_until};
use std::time::Duration;

fn claim(name: &str, mode: &str) -> String {
    format!(
        "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec: {{accessModes: [{mode}], resources: {{requests: {{storage: 1Gi}}}}}}
---"
    )
}

fn pod(name: &str, claim: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: python:3.11
    command: [sleep, infinity]
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]
---"
    )
}

#[test]
fn a_claim_grows_while_its_pod_runs_and_does_not_shrink() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let s = Space::new(&b, "grows")?;
    s.apply(&(claim("data", "ReadWriteOnce") + &pod("user", "data")))?;
    s.ok("wait pod/user --for=condition=Ready --timeout=60s")?;
    let ask = |size: &str| {
        format!("patch pvc/data -p {{\"spec\":{{\"resources\":{{\"requests\":{{\"storage\":\"{size}\"}}}}}}}}")
    };
    s.ok(&ask("3Gi"))?;
    s.ok_with("wait pvc/data --timeout=60s --for", &["jsonpath={.status.capacity.storage}=3Gi"])?;
    let volume = s.value("pvc/data", "{.spec.volumeName}")?;
    assert_eq!(s.value(&format!("pv/{volume}"), "{.spec.capacity.storage}")?, "3Gi");
    assert_eq!(s.value("pod/user", "{.status.containerStatuses[0].restartCount}")?, "0");
    let refused = s.refused(&ask("2Gi"))?;
    assert!(refused.contains("field can not be less than"), "{refused}");
    Ok(())
}

#[test]
fn a_claim_for_one_pod_has_one_pod_at_a_time() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let s = Space::new(&b, "single")?;
    s.apply(&(claim("data", "ReadWriteOncePod") + &pod("first", "data")))?;
    s.ok("wait pod/first --for=condition=Ready --timeout=60s")?;
    s.apply(&pod("second", "data"))?;
    let told = wait_until(Duration::from_secs(60), "why it waits", || {
        let events = s.ok("events --for pod/second")?;
        Ok(events.contains("FailedScheduling").then_some(events))
    })?;
    assert!(
        told.contains("node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"),
        "{told}"
    );
    assert_eq!(s.value("pod/second", "{.status.phase}")?, "Pending");
    s.ok("delete pod/first --timeout=60s")?;
    s.ok("wait pod/second --for=condition=Ready --timeout=60s")?;
    Ok(())
}
