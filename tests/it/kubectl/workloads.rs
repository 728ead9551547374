//! Workloads: rollouts and their history, scale, autoscale, set, wait, jobs.

use super::WEB;
use kfbox_tests::{Space, TestBox, wait_until};
use std::time::Duration;

const ROLLED: &str = "rollout status deployment/web --timeout=60s";

#[test]
fn kubectl_rolls_out_back_and_again() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "rollout")?;
    s.apply(WEB)?;
    let told = s.ok(ROLLED)?;
    assert!(told.ends_with("deployment \"web\" successfully rolled out\n"), "{told}");
    s.ok("annotate deployment/web kubernetes.io/change-cause=the-first")?;

    let env = "{.spec.template.spec.containers[0].env[*].name}";
    s.ok("set env deployment/web COLOUR=red")?;
    s.ok("annotate deployment/web kubernetes.io/change-cause=a-colour --overwrite")?;
    s.ok(ROLLED)?;
    let history = s.ok("rollout history deployment/web")?;
    assert!(history.contains("1         the-first") && history.contains("2         a-colour"), "{history}");
    let second = s.ok("rollout history deployment/web --revision=2")?;
    assert!(second.contains("deployment.apps/web with revision #2") && second.contains("COLOUR:"), "{second}");
    assert!(
        s.refused("rollout history deployment/web --revision=9")?.contains("unable to find the specified revision")
    );

    assert_eq!(s.ok("rollout undo deployment/web")?, "deployment.apps/web rolled back\n");
    s.ok(ROLLED)?;
    assert_eq!(s.value("deployment/web", env)?, "");
    let history = s.ok("rollout history deployment/web")?;
    assert!(!history.contains("\n1 ") && history.contains("\n3 "), "{history}");
    s.ok("rollout undo deployment/web --to-revision=2")?;
    assert_eq!(s.value("deployment/web", env)?, "COLOUR");
    s.ok(ROLLED)?;

    // While paused, changes gather and nothing starts.
    s.ok("rollout pause deployment/web")?;
    assert!(s.refused("rollout pause deployment/web")?.contains("is already paused"));
    let sets = || Ok::<_, anyhow::Error>(s.ok("get replicasets -l app=web -o name")?.lines().count());
    let before = sets()?;
    s.ok("set resources deployment/web -c main --limits=memory=200Mi --requests=cpu=5m")?;
    s.ok("set image deployment/web main=docker.io/library/python:3.11")?;
    let paused = "jsonpath={.status.conditions[?(@.type==\"Progressing\")].reason}=DeploymentPaused";
    s.ok_with("wait deployment/web --timeout=20s --for", &[paused])?;
    assert_eq!(sets()?, before);
    s.ok("rollout resume deployment/web")?;
    s.ok(ROLLED)?;
    assert_eq!(sets()?, before + 1);
    let pods = s.value("pods -l app=web", "{.items[*].spec.containers[0].resources.limits.memory}")?;
    assert!(pods.contains("200Mi"), "{pods}");
    s.ok("rollout restart deployment/web")?;
    s.ok(ROLLED)?;
    assert_eq!(sets()?, before + 2);

    // What cannot start is told as such.
    s.ok("patch deployment/web -p {\"spec\":{\"progressDeadlineSeconds\":1}}")?;
    s.ok("set image deployment/web main=localhost/no-such-image:1")?;
    let stuck = s.refused("rollout status deployment/web --timeout=60s")?;
    assert!(stuck.contains("exceeded its progress deadline"), "{stuck}");
    s.ok("rollout undo deployment/web")?;
    s.ok(ROLLED)?;
    Ok(())
}

#[test]
fn kubectl_rolls_daemon_and_stateful_sets() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "sets")?;
    let manifest = "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: base}
spec:
  serviceName: base
  replicas: 2
  selector: {matchLabels: {app: base}}
  template: &template
    metadata: {labels: {app: base}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: 'python:3.11', command: [sleep, infinity]}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: 'python:3.11', command: [sleep, infinity]}]
"
    .replace(" &template", "");
    s.apply(&manifest)?;
    for set in ["statefulset/base", "daemonset/agent"] {
        s.ok(&format!("rollout status {set} --timeout=60s"))?;
        s.ok(&format!("set env {set} ROUND=2"))?;
        s.ok(&format!("rollout status {set} --timeout=60s"))?;
        let history = s.ok(&format!("rollout history {set}"))?;
        assert!(history.contains("\n1 ") && history.contains("\n2 "), "{set}: {history}");
        s.ok(&format!("rollout undo {set} --to-revision=1"))?;
        s.ok(&format!("rollout status {set} --timeout=60s"))?;
        assert_eq!(s.value(set, "{.spec.template.spec.containers[0].env}")?, "", "{set}");
    }
    assert_eq!(s.value("pods -l app=base", "{.items[*].metadata.name}")?, "base-0 base-1");
    s.ok("scale statefulset/base --replicas=1")?;
    s.ok("wait --for=delete pod/base-1 --timeout=30s")?;
    Ok(())
}

#[test]
fn kubectl_scales_exposes_and_autoscales() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "scale")?;
    s.ok("create deployment small --image=python:3.11 --replicas=1 --port=8000 -- python3 -m http.server 8000")?;
    s.ok("rollout status deployment/small --timeout=60s")?;
    assert!(
        s.refused("scale deployment/small --current-replicas=5 --replicas=2")?
            .contains("Expected replicas to be 5, was 1")
    );
    s.ok("scale deployment/small --current-replicas=1 --replicas=2")?;
    s.ok("wait deployment/small --for=jsonpath={.status.readyReplicas}=2 --timeout=60s")?;
    let table = s.ok("get deployment small --subresource=scale")?;
    assert!(
        table.starts_with("NAME    DESIRED   AVAILABLE   AGE\n") && table.contains("small   2         2"),
        "{table}"
    );

    s.ok("expose deployment small --port=80 --target-port=8000 --name=front")?;
    s.ok_with(
        "wait endpointslice -l kubernetes.io/service-name=front --timeout=20s --for",
        &["jsonpath={.endpoints[0].conditions.ready}=true"],
    )?;
    assert_eq!(s.value("service/front", "{.spec.selector.app}{.spec.ports[0].targetPort}")?, "small8000");
    s.ok("set selector service front app=other")?;
    assert_eq!(s.value("service/front", "{.spec.selector}")?, r#"{"app":"other"}"#);

    s.ok("autoscale deployment small --min=1 --max=3 --cpu=80%")?;
    let table = s.ok("get hpa small")?;
    assert!(table.contains("Deployment/small") && table.contains("/80%"), "{table}");
    assert!(s.ok("describe hpa small")?.contains("resource cpu on pods"), "describe");
    assert!(s.refused("autoscale deployment small --max=0")?.contains("--max=MAXPODS is required"));
    s.ok("scale deployment/small --replicas=0")?;
    // Their process knows no signals as the first of its namespace; nobody waits out its grace.
    s.ok("delete pods -l app=small --force --grace-period=0 --timeout=20s")?;
    assert_eq!(s.ok("get deployment small --no-headers -o custom-columns=N:.spec.replicas")?.trim(), "0");
    Ok(())
}

#[test]
fn kubectl_waits_for_what_it_is_told_to() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "wait")?;
    // Creation, seen by a waiter that came before.
    let mut creation = s.start("wait --for=create configmap/late --timeout=60s")?;
    s.ok("create configmap late --from-literal=state=new")?;
    creation.expect("configmap/late condition met")?;
    let mut value = s.start("wait configmap/late --for=jsonpath={.data.state}=old --timeout=60s")?;
    s.ok_with("patch configmap late -p", &[r#"{"data":{"state":"old"}}"#])?;
    value.expect("configmap/late condition met")?;
    let mut any = s.start("wait configmap/late --for=jsonpath={.data.more} --timeout=60s")?;
    s.ok_with("patch configmap late -p", &[r#"{"data":{"more":"x"}}"#])?;
    any.expect("condition met")?;
    let deletion = s.start("wait --for=delete configmap/late --timeout=60s")?;
    s.ok("delete configmap late")?;
    // Says nothing when it comes too late to see it go.
    assert_eq!(deletion.end()?.0, Some(0));
    assert!(s.refused("wait --for=condition=Ready pod/none --timeout=1s")?.contains("(NotFound)"));
    s.ok("create configmap still --from-literal=a=b")?;
    let late = s.refused("wait configmap/still --for=jsonpath={.data.a}=c --timeout=1s")?;
    assert!(late.contains("timed out waiting for the condition on configmaps/still"), "{late}");
    Ok(())
}

#[test]
fn kubectl_creates_jobs_and_runs_cron_jobs_by_hand() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "jobs")?;
    s.ok("create job sum --image=python:3.11 -- python3 -c print(6*7)")?;
    s.ok("wait --for=condition=complete job/sum --timeout=60s")?;
    assert_eq!(s.ok("logs job/sum")?, "42\n");
    assert!(s.ok("get jobs")?.contains("Complete   1/1"));
    s.ok_with(
        "create cronjob nightly --image=python:3.11 --schedule",
        &["0 3 * * *", "--", "python3", "-c", "print('by hand')"],
    )?;
    s.ok("create job now --from=cronjob/nightly")?;
    s.ok("wait --for=condition=complete job/now --timeout=60s")?;
    assert_eq!(s.ok("logs job/now")?, "by hand\n");
    assert_eq!(s.value("job/now", "{.metadata.annotations.cronjob\\.kubernetes\\.io/instantiate}")?, "manual");
    s.ok("create job bad --image=python:3.11 -- python3 -c raise(SystemExit(3))")?;
    s.ok_with("patch job bad --type=merge -p", &[r#"{"spec":{"backoffLimit":0}}"#])?;
    s.ok("wait --for=condition=failed job/bad --timeout=60s")?;
    wait_until(Duration::from_secs(20), "the event of the failure", || {
        Ok(s.ok("events --for job/bad --types=Warning")?.contains("BackoffLimitExceeded").then_some(()))
    })
}
