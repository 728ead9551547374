//! `kfbox pipelines debug`: a failed step's container once more, with its inputs, for a shell.

use kfbox_tests::{Output, TestBox, run, run_with_input, wait_until};
use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

const PIPELINE: &str = r#"
pipelineInfo: {name: looked-into}
schemaVersion: 2.1.0
sdkVersion: kfp-2.17.0
components:
  comp-makes:
    executorLabel: exec-makes
    outputDefinitions: {artifacts: {data: {artifactType: {schemaTitle: system.Dataset, schemaVersion: 0.0.1}}}}
  comp-breaks:
    executorLabel: exec-breaks
    inputDefinitions:
      parameters: {words: {parameterType: STRING}}
      artifacts: {data: {artifactType: {schemaTitle: system.Dataset, schemaVersion: 0.0.1}}}
    outputDefinitions: {artifacts: {made: {artifactType: {schemaTitle: system.Dataset, schemaVersion: 0.0.1}}}}
deploymentSpec:
  executors:
    exec-makes: {container: {image: "python:3.11", command: [sh, -euc, 'echo precious >"$0"', "{{$.outputs.artifacts['data'].path}}"]}}
    exec-breaks:
      container:
        image: "python:3.11"
        env: [{name: GREETING, value: "it's me"}]
        command: [sh, -euc, 'cat "$1"; echo "$0" >"$2"; exit 9', "{{$.inputs.parameters['words']}}", "{{$.inputs.artifacts['data'].path}}", "{{$.outputs.artifacts['made'].path}}"]
root:
  dag:
    tasks:
      makes: {componentRef: {name: comp-makes}, taskInfo: {name: makes}}
      breaks:
        componentRef: {name: comp-breaks}
        taskInfo: {name: breaks}
        inputs:
          parameters: {words: {runtimeValue: {constant: "it's \"quoted\" $HOME"}}}
          artifacts: {data: {taskOutputArtifact: {producerTask: makes, outputArtifactKey: data}}}
"#;

fn kfbox(b: &TestBox, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(kfbox_tests::program()?);
    command.args(arguments).env("KFBOX_DATA_DIR", b.data_dir());
    Ok(command)
}

fn failed_run(b: &TestBox, folder: &Path) -> anyhow::Result<String> {
    let package = folder.join("looked-into.yaml");
    std::fs::write(&package, PIPELINE)?;
    let id = run(&mut kfbox(b, &["run", package.to_str().unwrap(), "-d"])?)?.ok()?.stdout.trim().to_owned();
    wait_until(Duration::from_secs(90), "the run's failure", || {
        let seen = crate::pipelines::kfp(b, &["get", &id])?;
        Ok((seen["state"] == "FAILED").then_some(()))
    })?;
    Ok(id)
}

fn pods(b: &TestBox) -> anyhow::Result<String> {
    Ok(b.kubectl(&["get", "pods", "-n", &b.namespace(), "-l", "pipelines.kfbox.local/debugs", "-o", "name"])?
        .ok()?
        .stdout)
}

#[test]
fn a_failed_step_is_looked_into_with_its_inputs() -> anyhow::Result<()> {
    let mut b = TestBox::start()?;
    b.load_python_image()?;
    let dir = tempfile::tempdir()?;
    let id = failed_run(&b, dir.path())?;

    // Its inputs, its environment, its command, and the shell's own exit code.
    let script = "cat /minio/mlpipeline/*/*/*/*/*/makes/*/data; echo \"<$GREETING>\"; /tmp/kfbox-step.sh; echo \"ended $?\"; cat /minio/mlpipeline/*/*/*/*/*/breaks/*/made; exit 7\n";
    let output: Output = run_with_input(&mut kfbox(&b, &["pipelines", "debug", &id, "breaks"])?, script)?;
    assert_eq!(output.code, Some(7), "{output:?}\n{}", b.log());
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines, ["precious", "<it's me>", "precious", "ended 9", "it's \"quoted\" $HOME"], "{output:?}");
    wait_until(Duration::from_secs(60), "the pod's end", || Ok(pods(&b)?.is_empty().then_some(())))?;

    // In a terminal.
    let line = format!("{} pipelines debug {id} breaks", kfbox_tests::program()?.display());
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("KFBOX_DATA_DIR", b.data_dir());
    let output = run_with_input(&mut command, "test -t 0 && echo \"a ter\"minal\nexit 5\n")?;
    assert!(output.stdout.contains("a terminal"), "{output:?}");
    assert_eq!(output.code, Some(5), "{output:?}");

    // It was no attempt of the step: the run is as it was, and what was written there went nowhere.
    let seen = crate::pipelines::kfp(&b, &["get", &id])?;
    assert_eq!(seen["state"], "FAILED", "{seen}");
    assert!(seen["error"].as_str().is_some_and(|e| e.contains("exit code 9")), "{seen}");

    // Who is told to stop takes the pod along.
    let mut child = kfbox(&b, &["pipelines", "debug", &id, "breaks"])?
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    wait_until(Duration::from_secs(60), "the pod", || Ok((!pods(&b)?.is_empty()).then_some(())))?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), nix::sys::signal::Signal::SIGTERM)?;
    assert_eq!(child.wait()?.code(), Some(143));
    wait_until(Duration::from_secs(60), "the pod's end", || Ok(pods(&b)?.is_empty().then_some(())))?;

    for (arguments, says) in [
        (["pipelines", "debug", &id, "gone"], "its steps are: breaks, makes"),
        (["pipelines", "debug", "00000000-0000-0000-0000-000000000000", "breaks"], "not found"),
    ] {
        let refused = b.kfbox(&arguments)?;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains(says), "{refused:?}");
    }
    // A neighbour does not even learn that there is such a run.
    run_with_input(&mut kfbox(&b, &["user", "add", "eve@example.com"])?, "a long enough password\n")?.ok()?;
    let refused = b.kfbox(&["pipelines", "debug", &id, "breaks", "--user", "eve@example.com"])?;
    assert!(refused.code == Some(1) && refused.stderr.contains("not found"), "{refused:?}");
    assert_eq!(pods(&b)?, "");

    // The daemon need not be the one that ran the step, and the step need not have failed.
    b.kill_daemon()?;
    b.up(&[])?;
    let output = run_with_input(&mut kfbox(&b, &["pipelines", "debug", &id, "makes"])?, "exit 3\n")?;
    assert_eq!(output.code, Some(3), "{output:?}");
    Ok(())
}
