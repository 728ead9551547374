//! A step's container that is lost with its shim, at two points: before its launcher asked what to do, and after. The first
//! is made anew, since its command cannot have begun; the second is not, since it may have done its work already.

use crate::survival::pods_of_run;
use kfbox_tests::{TestBox, run, run_with_input, wait_until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{collections::BTreeSet, process::Command, time::Duration};

const LIMIT: Duration = Duration::from_secs(120);

const PACKAGE: &str = "
pipelineInfo: {name: lost}
schemaVersion: 2.1.0
components:
  comp-step: {executorLabel: exec-step}
deploymentSpec:
  executors:
    exec-step: {container: {image: 'python:3.11', command: [sh, -c, 'echo began; sleep SECONDS; echo ended']}}
root:
  dag:
    tasks:
      step: {componentRef: {name: comp-step}, taskInfo: {name: step}}
";

/// While it exists, launchers of this box are refused the task API: they run, and their commands do not begin.
struct Silence(String);

impl Silence {
    fn over(b: &TestBox) -> anyhow::Result<Self> {
        let address = crate::isolation::bridge(b)?;
        let table = format!("kfit-silence-{}", std::process::id());
        let rules = format!(
            "table inet {table} {{\n chain input {{\n  type filter hook input priority -10;\n  \
             ip daddr {address} tcp dport 8887 reject with tcp reset\n }}\n}}\n"
        );
        // As one transaction: what fails leaves nothing behind.
        run_with_input(Command::new("nft").args(["-f", "-"]), &rules)?.ok()?;
        Ok(Self(table))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        match run(Command::new("nft").args(["delete", "table", "inet", &self.0])) {
            Ok(output) if output.code == Some(0) => {}
            other => eprintln!("the rules were not removed: {other:?}"),
        }
    }
}

fn start(b: &TestBox, seconds: u32) -> anyhow::Result<String> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("lost.yaml");
    std::fs::write(&file, PACKAGE.replace("SECONDS", &seconds.to_string()))?;
    Ok(b.kfbox_ok(&["run", file.to_str().unwrap_or_default(), "-d"])?.trim().to_owned())
}

fn text<'v>(pod: &'v Value, field: &str) -> &'v str {
    pod["metadata"][field].as_str().unwrap_or_default()
}

/// The run's pod that is not one of `known`, once its container runs.
fn running(b: &TestBox, run_id: &str, known: &BTreeSet<String>) -> anyhow::Result<Value> {
    wait_until(LIMIT, "a container of the step", || {
        let pods = pods_of_run(b, run_id)?;
        let fresh = |p: &Value| !known.contains(text(p, "name")) && p["status"]["phase"] == "Running";
        Ok(pods.into_iter().find(|p| fresh(p)))
    })
}

/// The processes of a pod's only container: its shim and its first process.
fn processes(b: &TestBox, pod: &Value) -> anyhow::Result<[Pid; 2]> {
    let path = b.data_dir().join(format!("pods/{}/containers/main/0/started.json", text(pod, "uid")));
    let started: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let pid = |who: &str| -> anyhow::Result<Pid> {
        Ok(Pid::from_raw(started[who]["pid"].as_i64().and_then(|n| n.try_into().ok()).unwrap_or_default()))
    };
    let found = [pid("shim")?, pid("init")?];
    anyhow::ensure!(found.iter().all(|p| p.as_raw() > 1), "{started}");
    Ok(found)
}

/// The container and who would tell of its end, while the daemon looks away.
fn lose(b: &mut TestBox, pod: &Value) -> anyhow::Result<()> {
    let [shim, init] = processes(b, pod)?;
    b.kill_daemon()?;
    kill(shim, Signal::SIGKILL)?;
    // It may go with its shim.
    let _ = kill(init, Signal::SIGKILL);
    b.up(&[])?;
    Ok(())
}

fn end(b: &TestBox, run_id: &str) -> anyhow::Result<Value> {
    wait_until(LIMIT, "the run's end", || {
        let seen = crate::pipelines::kfp(b, &["get", run_id])?;
        Ok(matches!(seen["state"].as_str(), Some("SUCCEEDED" | "FAILED" | "CANCELED")).then_some(seen))
    })
}

fn log(b: &TestBox, pod: &str) -> anyhow::Result<String> {
    Ok(b.kubectl(&["logs", "-n", &b.namespace(), pod])?.ok()?.stdout)
}

#[test]
fn a_container_that_is_lost_before_its_command_begins_is_made_anew() -> anyhow::Result<()> {
    let mut b = TestBox::start()?;
    b.load_python_image()?;
    let silence = Silence::over(&b)?;
    let run_id = start(&b, 0)?;
    let mut known = BTreeSet::new();

    // Killed while all else goes on.
    let first = running(&b, &run_id, &known)?;
    known.insert(text(&first, "name").to_owned());
    let [_, init] = processes(&b, &first)?;
    kill(init, Signal::SIGKILL)?;

    // Lost with its shim and the daemon.
    let second = running(&b, &run_id, &known)?;
    known.insert(text(&second, "name").to_owned());
    lose(&mut b, &second)?;

    let third = running(&b, &run_id, &known)?;
    assert_eq!(log(&b, text(&third, "name"))?.matches("began").count(), 0, "nothing begins before it is told");
    drop(silence);
    let ended = end(&b, &run_id)?;
    assert_eq!(ended["state"], "SUCCEEDED", "{ended:#}\n{}", b.log());
    let said = log(&b, text(&third, "name"))?;
    let words = |word: &str| said.lines().filter(|l| *l == word).count();
    assert_eq!((words("began"), words("ended")), (1, 1), "{said}");
    let left = pods_of_run(&b, &run_id)?;
    let names: Vec<&str> = left.iter().map(|p| text(p, "name")).collect();
    assert_eq!(names, [text(&third, "name")], "no fourth, and the lost ones are gone");
    Ok(())
}

#[test]
fn a_container_that_is_lost_after_its_command_began_is_not_run_twice() -> anyhow::Result<()> {
    let mut b = TestBox::start()?;
    b.load_python_image()?;
    let run_id = start(&b, 600)?;
    let pod = running(&b, &run_id, &BTreeSet::new())?;
    let name = text(&pod, "name").to_owned();
    wait_until(LIMIT, "the command's first word", || Ok(log(&b, &name)?.contains("began").then_some(())))?;
    lose(&mut b, &pod)?;
    let ended = end(&b, &run_id)?;
    assert_eq!(ended["state"], "FAILED", "{ended:#}\n{}", b.log());
    let error = ended["error"].as_str().unwrap_or_default();
    assert!(error.contains("ContainerStatusUnknown"), "{error}");
    let pods = pods_of_run(&b, &run_id)?;
    assert_eq!(pods.iter().map(|p| text(p, "name")).collect::<Vec<_>>(), [name.as_str()]);
    assert_eq!(log(&b, &name)?.lines().filter(|l| *l == "began").count(), 1);
    Ok(())
}
