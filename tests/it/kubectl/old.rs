//! Debian 12's kubectl 1.20, a Go client six years older than the API: SPDY streams, older kinds of requests.

use super::{IDLE, WEB, streams};
use kfbox_tests::{Space, TestBox, run, wait_until};
use std::time::Duration;

#[test]
fn an_old_kubectl_works_too() -> anyhow::Result<()> {
    let s = Space::with_program(&TestBox::shared()?, "old", "kubectl-1.20")?;
    assert!(s.ok("version")?.contains("GitVersion:\"v1.20.2\""));
    let created = s.input("create -f -", WEB)?.ok()?.stdout;
    assert_eq!(created, "deployment.apps/web created\nservice/web created\n");
    assert_eq!(s.apply(IDLE)?, "pod/idle created\n");
    s.ok("create configmap made --from-literal=a=b")?;
    s.ok("create deployment other --image=python:3.11 --replicas=0")?;
    s.ok("rollout status deployment/web --timeout=60s")?;
    s.ok("wait --for=condition=Ready pod/idle --timeout=60s")?;
    let table = s.ok("get deployments,pods -o wide")?;
    assert!(table.contains("2/2     2            2") && table.contains("1/1     Running"), "{table}");
    assert!(s.ok("describe deployment web")?.contains("NewReplicaSet:"));
    assert!(s.ok("describe pod idle")?.contains("Started"));
    assert!(s.ok("logs -l app=web --tail=1")?.contains("GET /"));
    assert!(s.ok("explain deployment.spec.replicas")?.contains("FIELD:    replicas <integer>"));
    assert!(s.ok("get events")?.contains("pod/idle"));
    s.ok("scale deployment/web --replicas=1")?;
    s.ok("set env deployment/web A=b")?;
    s.ok("rollout status deployment/web --timeout=60s")?;
    s.ok("rollout undo deployment/web")?;
    s.ok("rollout status deployment/web --timeout=60s")?;
    assert_eq!(s.ok("auth can-i create pods")?, "yes\n");
    s.ok("label pod idle old=yes")?;
    let changed = IDLE.replace("name: idle,", "name: idle, annotations: {a: b},");
    assert_eq!(s.apply(&changed)?, "pod/idle configured\n");
    assert!(s.input("diff -f -", &changed)?.ok()?.stdout.is_empty());
    s.ok("delete configmap made")?;
    s.ok("delete pod,deployment --all --timeout=60s")?;
    Ok(())
}

#[test]
fn an_old_kubectl_streams_over_spdy() -> anyhow::Result<()> {
    let s = Space::with_program(&TestBox::shared()?, "spdy", "kubectl-1.20")?;
    s.apply(WEB)?;
    s.apply(IDLE)?;
    s.ok("wait --for=condition=Ready pod/idle --timeout=60s")?;
    let split = run(s.kubectl("exec idle -- sh -c").arg("echo out; echo err >&2; exit 9"))?;
    assert_eq!((split.code, split.stdout.as_str()), (Some(9), "out\n"), "{split:?}");
    assert_eq!(split.stderr, "err\ncommand terminated with exit code 9\n");
    let text: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    let echoed = s.input("exec -i idle -- cat", &text)?.ok()?.stdout;
    assert!(echoed == text, "{} of {} bytes came back", echoed.len(), text.len());
    assert!(s.refused("exec idle -- no-such-program")?.contains("no-such-program"));
    assert!(s.refused("exec nobody -- true")?.contains("NotFound"));

    let mut terminal = kfbox_tests::Python::Clients.script("tests/clients/kubectl_terminal.py");
    let kubectl = s.kubectl("");
    terminal.arg(kubectl.get_program()).arg("idle").env("KUBECONFIG", s.kubeconfig()).env("HOME", s.dir());
    run(&mut terminal)?.ok()?;

    s.file("folder/file", &text)?;
    s.ok("cp folder idle:/tmp/folder")?;
    s.ok("cp idle:/tmp/folder back")?;
    assert!(std::fs::read_to_string(s.dir().join("back/file"))? == text);
    let ran = s
        .input("run once --image=python:3.11 --restart=Never --rm -i --quiet -- python3 -c print(input())", "word\n")?
        .ok()?;
    assert!(ran.stdout.contains("word") && !ran.stderr.contains("Error attaching"), "{ran:?}");

    s.ok("rollout status deployment/web --timeout=60s")?;
    let mut forward = s.start("port-forward service/web :80")?;
    let address = streams::forwarded(&mut forward)?;
    for _ in 0..3 {
        assert!(streams::fetch(&format!("http://{address}/"))?.contains("Directory listing"));
    }
    drop(forward);
    let mut nobody = s.start("port-forward pod/idle :8001")?;
    let address = streams::forwarded(&mut nobody)?;
    assert!(streams::fetch(&format!("http://{address}/")).is_err());
    nobody.expect("an error occurred forwarding")?;
    Ok(())
}

#[test]
fn an_old_kubectl_evicts_with_the_version_it_knows() -> anyhow::Result<()> {
    let s = Space::with_program(&TestBox::shared()?, "evict", "kubectl-1.20")?;
    s.apply(IDLE)?;
    s.ok("wait --for=condition=Ready pod/idle --timeout=60s")?;
    // What its `drain` posts.
    let eviction = s.file(
        "eviction.json",
        &format!(
            r#"{{"apiVersion":"policy/v1beta1","kind":"Eviction","metadata":{{"name":"idle","namespace":"{}"}}}}"#,
            s.name
        ),
    )?;
    s.ok(&format!("create --raw /api/v1/namespaces/{}/pods/idle/eviction -f {eviction}", s.name))?;
    wait_until(Duration::from_secs(30), "the pod's end", || {
        Ok(s.run("get pod idle")?.stderr.contains("(NotFound)").then_some(()))
    })
}
