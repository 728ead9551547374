//! `kill -9` of the daemon in the middle of a run: nothing is lost, nothing stops, nothing runs twice.

use crate::pipelines::kfp;
use kfbox_tests::{TestBox, wait_until};
use serde_json::Value;
use std::time::Duration;

pub fn pods_of_run(b: &TestBox, run_id: &str) -> anyhow::Result<Vec<Value>> {
    let selector = format!("pipeline/runid={run_id}");
    let output = b.kubectl(&["get", "pods", "-A", "-l", &selector, "-o", "json"])?.ok()?;
    let list: Value = serde_json::from_str(&output.stdout)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

#[test]
fn a_run_survives_kill_minus_nine_of_the_daemon() -> anyhow::Result<()> {
    let mut b = TestBox::start()?;
    b.load_python_image()?;
    for n in 0..20 {
        let name = format!("before-{n}");
        b.kubectl(&["create", "configmap", &name, "--from-literal=k=v"])?.ok()?;
    }
    let started = kfp(&b, &["slow-start", "20"])?;
    let run_id = started["run_id"].as_str().unwrap();
    let before = wait_until(Duration::from_secs(90), "the first step's start", || {
        let pods = pods_of_run(&b, run_id)?;
        let Some(pod) = pods.first().filter(|p| p["status"]["phase"] == "Running") else { return Ok(None) };
        let (namespace, name) = (pod["metadata"]["namespace"].as_str(), pod["metadata"]["name"].as_str());
        let log = b.kubectl(&["logs", "-n", namespace.unwrap_or_default(), name.unwrap_or_default()])?;
        Ok(log.stdout.contains("step began").then(|| pod.clone()))
    })?;
    b.kubectl(&["create", "configmap", "the-last-one", "--from-literal=k=v"])?.ok()?;

    b.kill_daemon()?;
    b.up(&[])?;

    let names = b.kubectl(&["get", "configmaps", "-o", "name"])?.ok()?.stdout;
    for n in 0..20 {
        assert!(names.contains(&format!("configmap/before-{n}\n")), "{names}");
    }
    assert!(names.contains("the-last-one"), "{names}");
    let after = pods_of_run(&b, run_id)?;
    let same = after.iter().find(|p| p["metadata"]["uid"] == before["metadata"]["uid"]);
    let same = same.unwrap_or_else(|| panic!("the pod is gone: {after:?}"));
    assert_eq!(
        same["status"]["containerStatuses"][0]["containerID"],
        before["status"]["containerStatuses"][0]["containerID"]
    );
    assert_eq!(same["status"]["phase"], "Running", "the container stopped with the daemon: {same}");

    let result = kfp(&b, &["wait", run_id])?;
    assert_eq!(result["state"], "SUCCEEDED", "{result}\n{}", b.log());
    let pods = pods_of_run(&b, run_id)?;
    assert_eq!(pods.len(), 2, "one pod a step: {pods:?}");
    for pod in &pods {
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod}");
    }
    let (namespace, name) =
        (before["metadata"]["namespace"].as_str().unwrap(), before["metadata"]["name"].as_str().unwrap());
    let log = b.kubectl(&["logs", "-n", namespace, name])?.ok()?.stdout;
    assert_eq!(log.matches("step began").count(), 1, "{log}");
    assert_eq!(log.matches("step ended").count(), 1, "no line was lost: {log}");
    Ok(())
}

const QUICK: &str = "
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  containers: [{name: main, image: 'python:3.11', imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo ran; exit 3']}]
---
";

/// The daemon dies while containers are being created, at a different step each time: each runs once, and its end is known.
#[test]
fn containers_that_were_being_created_are_neither_lost_nor_run_twice() -> anyhow::Result<()> {
    let mut b = TestBox::start()?;
    b.load_python_image()?;
    let mut names = Vec::new();
    for round in 0..8_u64 {
        let fresh: Vec<String> = (0..6).map(|n| format!("quick-{round}-{n}")).collect();
        let manifest: String = fresh.iter().map(|name| QUICK.replace("NAME", name)).collect();
        b.kubectl_with_input(&["create", "-f", "-"], &manifest)?.ok()?;
        // Not an event: any moment will do, and each round has another.
        std::thread::sleep(Duration::from_millis(25 * round));
        b.kill_daemon()?;
        b.up(&[])?;
        names.extend(fresh);
    }
    for name in &names {
        wait_until(Duration::from_secs(60), "the pod's end", || {
            let phase = b.kubectl(&["get", "pod", name, "-o", "jsonpath={.status.phase}"])?.ok()?.stdout;
            Ok(["Failed", "Succeeded"].contains(&phase.as_str()).then_some(()))
        })?;
    }
    let pods: Value = serde_json::from_str(&b.kubectl(&["get", "pods", "-o", "json"])?.ok()?.stdout)?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let status = &pod["status"]["containerStatuses"][0];
        let end = &status["state"]["terminated"];
        assert_eq!((&end["exitCode"], &status["restartCount"]), (&3.into(), &0.into()), "{pod}");
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        assert_eq!(b.kubectl(&["logs", name])?.ok()?.stdout, "ran\n", "{name} ran once");
    }
    assert_eq!(pods["items"].as_array().map(Vec::len), Some(names.len()));
    Ok(())
}
