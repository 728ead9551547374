//! exec, attach, cp, port-forward, logs and debug: what runs over streams.

use super::{IDLE, WEB};
use kfbox_tests::{Conversation, Python, Space, TestBox, run};
use std::process::Command;

/// What an HTTP server says at a path.
pub fn fetch(url: &str) -> anyhow::Result<String> {
    let mut curl = Command::new("curl");
    curl.args(["-s", "--fail", "--max-time", "20", "--retry", "3", "--retry-connrefused", url]);
    Ok(run(&mut curl)?.ok()?.stdout)
}

/// The local address in `Forwarding from 127.0.0.1:PORT -> 8000`.
pub fn forwarded(kubectl: &mut Conversation) -> anyhow::Result<String> {
    let line = kubectl.expect("Forwarding from 127.0.0.1:")?;
    Ok(line.split(' ').nth(2).unwrap_or_default().to_owned())
}

#[test]
fn kubectl_exec_carries_input_outputs_codes_and_terminals() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "exec")?;
    s.apply(IDLE)?;
    s.ok("wait --for=condition=Ready pod/idle --timeout=60s")?;
    let split = run(s.kubectl("exec idle -- sh -c").arg("echo out; echo err >&2; exit 9"))?;
    assert_eq!((split.code, split.stdout.as_str()), (Some(9), "out\n"), "{split:?}");
    assert_eq!(split.stderr, "err\ncommand terminated with exit code 9\n");
    let text: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    let echoed = s.input("exec -i idle -- cat", &text)?.ok()?.stdout;
    assert!(echoed == text, "{} of {} bytes came back", echoed.len(), text.len());
    let killed = run(s.kubectl("exec idle -- sh -c").arg("kill -TERM $$"))?;
    assert_eq!(killed.code, Some(143), "{killed:?}");
    assert!(s.refused("exec idle -- no-such-program")?.contains("no-such-program"));
    assert!(s.refused("exec nobody -- true")?.contains(r#"(NotFound): pods "nobody" not found"#));
    assert!(s.refused("exec idle -c nothing -- true")?.contains("container nothing is not valid for pod idle"));

    // A real terminal: sizes, signals, end of input.
    let mut terminal = Python::Clients.script("tests/clients/kubectl_terminal.py");
    let kubectl = s.kubectl("");
    terminal.arg(kubectl.get_program()).arg("idle").env("KUBECONFIG", s.kubeconfig());
    run(&mut terminal)?.ok()?;
    Ok(())
}

#[test]
fn kubectl_attaches_to_a_process_and_runs_a_pod_to_its_end() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "attach")?;
    let listener = "
apiVersion: v1
kind: Pod
metadata: {name: listener}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: python:3.11
    stdin: true
    stdinOnce: true
    command: [python3, -u, -c]
    args:
    - |
      import sys
      for line in sys.stdin: print('heard', line.strip())
      print('the end', file=sys.stderr)
";
    s.apply(listener)?;
    s.ok("wait --for=condition=Ready pod/listener --timeout=60s")?;
    let mut attached = s.start("attach -i listener")?;
    attached.say("one\n")?;
    attached.expect("heard one")?;
    attached.say("two\n")?;
    attached.expect("heard two")?;
    attached.hang_up();
    attached.expect("the end")?;
    assert_eq!(attached.end()?.0, Some(0));
    s.ok("wait --for=jsonpath={.status.phase}=Succeeded pod/listener --timeout=30s")?;

    let run = "run once --image=python:3.11 --restart=Never --rm -i --quiet -- \
               python3 -c print(len(open(0).read()))";
    let output = s.input(run, "12345")?.ok()?;
    assert!(output.stdout.starts_with("5\n"), "{output:?}");
    assert!(s.refused("get pod once")?.contains("NotFound"));
    let failing = "run failing --image=python:3.11 --restart=Never --rm -i --quiet -- python3 -c raise(SystemExit(4))";
    assert_eq!(s.input(failing, "")?.code, Some(4));
    Ok(())
}

#[test]
fn kubectl_copies_both_ways() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "cp")?;
    s.apply(IDLE)?;
    let big: String = (0..300_000).map(|n| format!("line {n}\n")).collect();
    s.file("there/big file.txt", &big)?;
    s.file("there/deep/er/empty", "")?;
    s.ok("wait --for=condition=Ready pod/idle --timeout=60s")?;
    s.ok("cp there idle:/tmp/there")?;
    let names =
        s.ok_with("exec idle -- sh -c", &["cd /tmp/there && find . -type f | sort && wc -c < './big file.txt'"])?;
    assert_eq!(names, format!("./big file.txt\n./deep/er/empty\n{}\n", big.len()));
    s.ok("cp idle:/tmp/there back")?;
    assert!(std::fs::read_to_string(s.dir().join("back/big file.txt"))? == big);
    assert!(s.dir().join("back/deep/er/empty").exists());
    s.ok(&format!("cp {}/idle:/etc/hostname name -c main", s.name))?;
    assert_eq!(std::fs::read_to_string(s.dir().join("name"))?, "idle\n");
    Ok(())
}

#[test]
fn kubectl_forwards_ports_of_pods_and_services() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "forward")?;
    s.apply(WEB)?;
    s.ok("rollout status deployment/web --timeout=60s")?;
    let pod = s.value("pods -l app=web", "{.items[0].metadata.name}")?;
    s.ok_with(
        &format!("exec {pod} -- python3 -c"),
        &["open('/tmp/big', 'wb').write(bytes(range(256)) * 20_000); open('/tmp/name', 'w').write('one of them')"],
    )?;
    let mut to_pod = s.start(&format!("port-forward pod/{pod} :8000"))?;
    let address = forwarded(&mut to_pod)?;
    assert_eq!(fetch(&format!("http://{address}/tmp/name"))?, "one of them");
    // Many connections at once over the one stream, each its own.
    let many = run(Command::new("curl")
        .args(["-s", "--parallel", "--fail", "-o", "/dev/null", "-w", "%{size_download}\n"])
        .args(["-Z", "--parallel-max", "8", &format!("http://{address}/tmp/big?[1-8]")]))?
    .ok()?
    .stdout;
    assert_eq!(many.lines().filter(|size| *size == "5120000").count(), 8, "{many}");

    // A Service's port is translated to a pod's.
    for target in ["service/web", "deployment/web"] {
        let ports = if target.starts_with("service") { ":80" } else { ":http" };
        let mut forward = s.start(&format!("port-forward {target} {ports}"))?;
        let address = forwarded(&mut forward)?;
        assert!(fetch(&format!("http://{address}/"))?.contains("Directory listing"), "{target}");
    }
    // A port that nobody listens on: the connection fails, and kubectl says why.
    let mut nobody = s.start(&format!("port-forward pod/{pod} :8001"))?;
    let address = forwarded(&mut nobody)?;
    assert!(run(Command::new("curl").args(["-s", &format!("http://{address}/")]))?.code != Some(0));
    nobody.expect("error forwarding port 8001 to pod")?;
    assert!(s.refused(&format!("port-forward pod/{pod}-x :8000"))?.contains("NotFound"));
    Ok(())
}

#[test]
fn kubectl_reads_logs_in_every_way() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "logs")?;
    // The second container fails once, so that it has a previous run; the first waits for a word.
    let manifest = "
apiVersion: v1
kind: Pod
metadata: {name: talker, labels: {app: talker}}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: shared, emptyDir: {}}]
  initContainers:
  - {name: first, image: 'python:3.11', command: [sh, -c, 'echo prepared']}
  containers:
  - name: main
    image: python:3.11
    command: [sh, -c, 'for n in 1 2 3; do echo line $n; done; echo trouble; until [ -e /shared/go ]; do sleep 0.05; done; echo last; sleep infinity']
    volumeMounts: [{name: shared, mountPath: /shared}]
  - name: flaky
    image: python:3.11
    command: [sh, -c, 'if [ -e /shared/ran ]; then echo second run; sleep infinity; fi; touch /shared/ran; echo first run; exit 1']
    volumeMounts: [{name: shared, mountPath: /shared}]
";
    s.apply(manifest)?;
    s.ok_with(
        "wait pod/talker --timeout=60s",
        &["--for=jsonpath={.status.containerStatuses[?(@.name=='flaky')].restartCount}=1"],
    )?;
    s.ok("wait --for=condition=Ready pod/talker --timeout=60s")?;
    assert_eq!(s.ok("logs talker -c first")?, "prepared\n");
    assert_eq!(s.ok("logs talker -c flaky --previous")?, "first run\n");
    assert_eq!(s.ok("logs talker -c flaky")?, "second run\n");
    assert_eq!(s.ok("logs talker -c main --tail=2")?, "line 3\ntrouble\n");
    assert_eq!(s.ok("logs talker -c main --limit-bytes=6")?, "line 1");
    assert_eq!(s.ok("logs talker -c main --since=1h")?.lines().count(), 4);
    assert_eq!(s.ok("logs talker -c main --since-time=2999-01-01T00:00:00Z")?, "");
    let stamped = s.ok("logs talker -c main --timestamps --tail=1")?;
    assert!(
        stamped.split_once("Z ").is_some_and(|(time, text)| time.contains('T') && text == "trouble\n"),
        "{stamped}"
    );
    let all = s.ok("logs -l app=talker --all-containers --prefix --tail=-1")?;
    for line in ["[pod/talker/first] prepared", "[pod/talker/main] line 1", "[pod/talker/flaky] second run"] {
        assert!(all.contains(line), "{line}: {all}");
    }
    let default = run(&mut s.kubectl("logs talker"))?.ok()?;
    assert!(default.stderr.contains("Defaulted container \"main\" out of: main, flaky, first (init)"), "{default:?}");
    let refused = s.refused("logs talker -c main --previous")?;
    assert!(refused.contains("previous terminated container \"main\" in pod \"talker\" not found"), "{refused}");
    assert!(s.refused("logs talker -c other")?.contains("container other is not valid for pod talker"));

    let mut following = s.start("logs -f talker -c main --tail=1")?;
    following.expect("trouble")?;
    s.ok("exec talker -c flaky -- touch /shared/go")?;
    following.expect("last")?;
    // The pod's end is the log's.
    s.ok("delete pod talker --now")?;
    assert_eq!(following.end()?.0, Some(0));
    Ok(())
}

#[test]
fn kubectl_debugs_a_running_pod() -> anyhow::Result<()> {
    let s = Space::new(&TestBox::shared()?, "debug")?;
    s.apply(&IDLE.replace("name: main", "name: main, env: [{name: MINE, value: original}]"))?;
    s.ok("wait --for=condition=Ready pod/idle --timeout=60s")?;
    // An ephemeral container in the target's process namespace sees its process and its files.
    let look = "debug idle --image=python:3.11 --target=main --container=doctor --profile=general --attach --quiet -- \
                sh -c";
    let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done";
    let seen = run(s.kubectl(look).arg(script))?.ok()?;
    assert!(seen.stdout.contains("sleep infinity"), "{seen:?}");
    assert_eq!(s.value("pod/idle", "{.spec.ephemeralContainers[0].name}")?, "doctor");
    s.ok_with(
        "wait pod/idle --timeout=30s",
        &["--for=jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.exitCode}=0"],
    )?;
    assert!(s.ok("logs idle -c doctor")?.contains("sleep infinity"));
    assert!(s.ok("describe pod idle")?.contains("Ephemeral Containers:"));

    // A copy with another command.
    s.ok("debug idle --copy-to=twin --container=main --profile=general -- sleep 1000")?;
    s.ok("wait --for=condition=Ready pod/twin --timeout=60s")?;
    let command = s.value("pod/twin", "{.spec.containers[0].command}{.spec.containers[0].env[0].value}")?;
    assert_eq!(command, r#"["sleep","1000"]original"#);
    Ok(())
}
