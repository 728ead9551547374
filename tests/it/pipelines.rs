//! The unmodified kfp SDK, boto3 and ml-metadata clients.

use kfbox_tests::{Python, TestBox, run};
use serde_json::Value;
use std::path::Path;

/// Runs a case of `tests/clients/kfp_runs.py`; what the SDK saw.
pub fn kfp(b: &TestBox, case: &[&str]) -> anyhow::Result<Value> {
    let token = b.kfbox_ok(&["token", "--name", "tests", "--expires", "1h"])?;
    let mut command = Python::Clients.script("tests/clients/kfp_runs.py");
    command
        .args(["--host", &format!("{}/pipeline", b.url()?), "--token", token.trim(), "--namespace", &b.namespace()])
        .args(case);
    let output = run(&mut command)?.ok()?;
    let last = output.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|e| anyhow::anyhow!("{e}: {output:?}"))
}

fn state<'a>(result: &'a Value, task: &str) -> &'a str {
    result["tasks"]
        .as_array()
        .and_then(|tasks| tasks.iter().find(|t| t["name"] == task))
        .and_then(|t| t["state"].as_str())
        .unwrap_or("absent")
}

#[test]
fn a_dataset_goes_from_step_to_step_and_its_lineage_is_recorded() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let result = kfp(&b, &["two-steps"])?;
    assert_eq!(result["state"], "SUCCEEDED", "{result}\n{}", b.log());
    assert_eq!(state(&result, "write-dataset"), "SUCCEEDED", "{result}");
    assert_eq!(state(&result, "read-dataset"), "SUCCEEDED", "{result}");

    let run_id = result["run_id"].as_str().unwrap();
    let credentials: Value = serde_json::from_str(&b.kfbox_ok(&["credentials", "--output", "json"])?)?;
    let script = "import boto3, json, sys
c = json.loads(sys.argv[1])
s3 = boto3.client('s3', endpoint_url=c['endpoint'], region_name=c['region'],
                  aws_access_key_id=c['accessKey'], aws_secret_access_key=c['secretKey'])
for page in s3.get_paginator('list_objects_v2').paginate(Bucket=c['bucket'], Prefix=c['prefix']):
    for found in page.get('Contents', []):
        if sys.argv[2] in found['Key'] and found['Key'].endswith('/data'):
            print(s3.get_object(Bucket=c['bucket'], Key=found['Key'])['Body'].read().decode())
try:
    s3.list_objects_v2(Bucket=c['bucket'], Prefix='v2/artifacts/')
    sys.exit('the neighbours could be listed')
except s3.exceptions.ClientError as error:
    assert error.response['Error']['Code'] == 'AccessDenied', error";
    let output = run(std::process::Command::new(Python::Clients.program()).args([
        "-c",
        script,
        &credentials.to_string(),
        run_id,
    ]))?
    .ok()?;
    assert_eq!(output.stdout.trim(), "hello from the first step");

    let kubeconfig = b.kubeconfig()?;
    let mut lineage = Python::Mlmd.script("tests/clients/run_lineage.py");
    lineage.args(["--address", &b.address("metadata")?, "--kubeconfig"]).arg(&kubeconfig).args(["--run", run_id]);
    let output = run(&mut lineage)?.ok()?;
    let seen: Value = serde_json::from_str(output.stdout.lines().last().unwrap_or_default())?;
    assert_eq!(seen["artifact_types"], serde_json::json!(["system.Dataset"]), "{seen}");
    let executions = seen["executions"].as_array().unwrap();
    assert!(executions.iter().any(|e| e["name"] == "write-dataset" && e["outputs"] == 1), "{seen}");
    assert!(executions.iter().any(|e| e["name"] == "read-dataset" && e["inputs"] == 1), "{seen}");
    assert!(executions.iter().all(|e| e["state"] == "COMPLETE"), "{seen}");
    Ok(())
}

#[test]
fn pipelines_are_uploaded_versioned_listed_and_run() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let result = kfp(&b, &["upload"])?;
    assert_eq!(result["state"], "SUCCEEDED", "{result}\n{}", b.log());
    assert_eq!(result["versions"], 1);
    assert_eq!(result["listed"], true);
    assert_eq!(result["found_by_name"], true);
    assert_eq!(result["runs_of_experiment"], serde_json::json!([result["run_id"]]));
    Ok(())
}

#[test]
fn a_failing_step_is_named_with_its_exit_code_and_last_lines() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let result = kfp(&b, &["failing"])?;
    assert_eq!(result["state"], "FAILED", "{result}");
    assert_eq!(state(&result, "fails"), "FAILED", "{result}");
    let error = result["error"].as_str().unwrap_or_default();
    for part in ["fails", "3", "about to fail"] {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
    Ok(())
}

#[test]
fn an_image_that_does_not_exist_fails_the_step_and_is_named() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let result = kfp(&b, &["missing-image"])?;
    assert_eq!(result["state"], "FAILED", "{result}");
    let error = result["error"].as_str().unwrap_or_default();
    assert!(error.contains("registry.invalid/no/such-image:1"), "{error}");
    Ok(())
}

#[test]
fn a_terminated_run_ends_cancelled_and_its_pods_go() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let result = kfp(&b, &["terminate"])?;
    assert_eq!(result["state"], "CANCELED", "{result}");
    let selector = format!("pipeline/runid={}", result["run_id"].as_str().unwrap());
    kfbox_tests::wait_until(std::time::Duration::from_secs(40), "the end of the run's pods", || {
        let pods =
            b.kubectl(&["get", "pods", "-A", "-l", &selector, "-o", "jsonpath={.items[*].status.phase}"])?.ok()?;
        Ok((!pods.stdout.contains("Running") && !pods.stdout.contains("Pending")).then_some(()))
    })
}

#[test]
fn malformed_packages_are_refused_with_a_reason() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let dir = tempfile::tempdir()?;
    for (name, content, expected) in [
        ("not.yaml", "a: [1, 2", "yaml"),
        ("no-root.yaml", "pipelineInfo: {name: x}\nschemaVersion: 2.1.0\n", "root"),
        ("unknown-executor.yaml", UNKNOWN_EXECUTOR, "exec-nothing"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, content)?;
        let result = kfp(&b, &["upload-file", path.to_str().unwrap()])?;
        assert_eq!(result["accepted"], false, "{name}: {result}");
        assert_eq!(result["status"], 400, "{name}: {result}");
        let body = result["body"].as_str().unwrap_or_default().to_lowercase();
        assert!(body.contains(expected), "{name}: {body}");
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/kfp/pipelines/invalid");
    for entry in std::fs::read_dir(&fixtures).into_iter().flatten() {
        let path = entry?.path();
        let result = kfp(&b, &["upload-file", path.to_str().unwrap()])?;
        assert_eq!(result["accepted"], false, "{}: {result}", path.display());
    }
    Ok(())
}

const UNKNOWN_EXECUTOR: &str = "
pipelineInfo: {name: broken}
schemaVersion: 2.1.0
sdkVersion: kfp-2.17.0
components:
  comp-a: {executorLabel: exec-nothing}
deploymentSpec: {executors: {}}
root:
  dag:
    tasks:
      a: {componentRef: {name: comp-a}, taskInfo: {name: a}}
";

#[test]
fn a_cron_schedule_of_the_sdk_starts_a_run() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let result = kfp(&b, &["recurring"])?;
    assert_eq!(result["state"], "SUCCEEDED", "{result}");
    assert_eq!(result["runs"], 1, "{result}");
    assert_eq!((&result["status"], &result["cron"]), (&"DISABLED".into(), &"0 0 * * * *".into()), "{result}");
    assert_eq!(result["listed"], true, "{result}");
    assert!(result["refused"].as_str().is_some_and(|r| r.contains("more often than every 10 seconds")), "{result}");
    Ok(())
}

const GREETINGS: &str = r#"
from kfp import dsl

@dsl.container_component
def greet(name: str, code: int):
    return dsl.ContainerSpec(
        image="python:3.11", command=["sh", "-c", 'echo "hello $0"; exit "$1"'], args=[name, code])

@dsl.pipeline(name="greetings")
def greetings(name: str, code: int = 0):
    greet(name=name, code=code)
"#;

#[test]
fn kfbox_run_compiles_follows_and_ends_as_the_run_does() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("greetings.py");
    std::fs::write(&file, GREETINGS)?;
    let start = |more: &[&str]| {
        let mut command = std::process::Command::new(kfbox_tests::program()?);
        command.arg("run").arg(&file).arg("--python").arg(Python::Clients.program()).args(more);
        run(command.env("KFBOX_DATA_DIR", b.data_dir()))
    };
    let good = start(&["-p", "name=ada lovelace", "--name", "a greeting", "--experiment", "greetings"])?.ok()?;
    assert!(good.stdout.contains("greet | hello ada lovelace\n"), "{good:?}");
    assert!(good.stderr.contains("✔ greet") && good.stderr.contains("SUCCEEDED after"), "{good:?}");
    let failed = start(&["-p", "name=bob", "-p", "code=7", "-q"])?;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.stderr.contains("exit code 7") && failed.stdout.is_empty(), "{failed:?}");
    let detached = start(&["-p", "name=eve", "-d"])?.ok()?;
    assert_eq!(kfp(&b, &["wait", detached.stdout.trim()])?["state"], "SUCCEEDED");
    for (more, says) in [
        (&[][..], "-p name=..."),
        (&["-p", "name=x", "-p", "code=many"], "a whole number"),
        (&["-p", "name=x", "-n", "absent-namespace"], "absent-namespace"),
        (&["-p", "name=x", "-n", "kube-system"], "✘ greet"),
    ] {
        let refused = start(more)?;
        assert_eq!(refused.code, Some(1), "{more:?}: {refused:?}");
        assert!(refused.stderr.contains(says), "{more:?}: {refused:?}");
    }
    let tokens = b.kfbox_ok(&["token", "list", "-o", "json"])?;
    assert!(!tokens.contains("kfbox run"), "a call's token ends with it: {tokens}");
    Ok(())
}
