//! What a step is given (`{{$}}`), read by upstream's own definition of it: kfp's protobuf, which takes no field that it does
//! not know and no value of another type.

use kfbox_tests::{Python, TestBox, run, run_with_input, wait_until};
use serde_json::{Value, json};
use std::{process::Command, time::Duration};

const PIPELINE: &str = r#"
pipelineInfo: {name: executor-input}
schemaVersion: 2.1.0
sdkVersion: kfp-2.17.0
components:
  comp-makes:
    executorLabel: exec-makes
    outputDefinitions: {artifacts: {data: {artifactType: {schemaTitle: system.Dataset, schemaVersion: 0.0.1}}}}
  comp-prints:
    executorLabel: exec-prints
    inputDefinitions:
      parameters:
        i: {parameterType: NUMBER_INTEGER}
        f: {parameterType: NUMBER_DOUBLE}
        b: {parameterType: BOOLEAN}
        s: {parameterType: STRING}
        l: {parameterType: LIST}
        d: {parameterType: STRUCT}
        absent: {parameterType: STRING, isOptional: true}
        default: {parameterType: STRING, isOptional: true, defaultValue: usual}
      artifacts: {a: {artifactType: {schemaTitle: system.Dataset, schemaVersion: 0.0.1}}}
    outputDefinitions:
      parameters: {p: {parameterType: NUMBER_INTEGER}}
      artifacts: {m: {artifactType: {schemaTitle: system.Model, schemaVersion: 0.0.1}, metadata: {framework: none}}}
deploymentSpec:
  executors:
    exec-makes: {container: {image: "python:3.11", command: [sh, -euc, 'echo x >"$0"', "{{$.outputs.artifacts['data'].path}}"]}}
    exec-prints:
      container:
        image: "python:3.11"
        command: [sh, -euc, 'printf "%s\n" "$0"; echo 7 >"$1"; echo m >"$2"', "{{$}}", "{{$.outputs.parameters['p'].output_file}}", "{{$.outputs.artifacts['m'].path}}"]
root:
  dag:
    tasks:
      makes: {componentRef: {name: comp-makes}, taskInfo: {name: makes}}
      prints:
        componentRef: {name: comp-prints}
        taskInfo: {name: prints}
        inputs:
          parameters:
            i: {runtimeValue: {constant: 7}}
            f: {runtimeValue: {constant: 0.5}}
            b: {runtimeValue: {constant: true}}
            s: {runtimeValue: {constant: "a \"quoted\" $word"}}
            l: {runtimeValue: {constant: [1, two, {three: 3}]}}
            d: {runtimeValue: {constant: {nested: {list: [true, null]}}}}
          artifacts: {a: {taskOutputArtifact: {producerTask: makes, outputArtifactKey: data}}}
"#;

const READ: &str = "import json, sys
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
read = json_format.Parse(sys.stdin.read(), pipeline_spec_pb2.ExecutorInput())
print(json.dumps(json_format.MessageToDict(read)))";

#[test]
fn what_a_step_is_given_is_upstreams_executor_input() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let folder = tempfile::tempdir()?;
    let package = folder.path().join("executor-input.yaml");
    std::fs::write(&package, PIPELINE)?;
    let mut command = Command::new(kfbox_tests::program()?);
    command.args(["run", package.to_str().unwrap(), "-d"]).env("KFBOX_DATA_DIR", b.data_dir());
    let id = run(&mut command)?.ok()?.stdout.trim().to_owned();
    let seen = wait_until(Duration::from_secs(90), "the run's end", || {
        let seen = crate::pipelines::kfp(&b, &["get", &id])?;
        Ok(matches!(seen["state"].as_str(), Some("SUCCEEDED" | "FAILED")).then_some(seen))
    })?;
    assert_eq!(seen["state"], "SUCCEEDED", "{seen:#}");
    let namespace = b.namespace();
    let labels = format!("pipeline/runid={id},component=prints");
    let log = b.kubectl(&["logs", "-n", &namespace, "-l", &labels])?.ok()?.stdout;
    let given = log.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{log}"));
    let read = run_with_input(Command::new(Python::Clients.program()).args(["-c", READ]), given)?.ok()?.stdout;
    let mut read: Value = serde_json::from_str(&read)?;

    // What differs from run to run is put aside: addresses below the run's root.
    let root = format!("minio://mlpipeline/v2/artifacts/{namespace}/executor-input/{id}/");
    let mut uri = |pointer: &str| -> String {
        let found = read.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} in {given}"));
        found.take().as_str().unwrap_or_default().to_owned()
    };
    let (a, m) = (uri("/inputs/artifacts/a/artifacts/0/uri"), uri("/outputs/artifacts/m/artifacts/0/uri"));
    assert!(a.starts_with(&format!("{root}makes/")) && a.ends_with("/data"), "{a}");
    assert!(m.starts_with(&format!("{root}prints/")) && m.ends_with("/m"), "{m}");
    let file = uri("/outputs/outputFile");
    let place = m.trim_end_matches("/m").replacen("minio://", "/minio/", 1);
    assert_eq!(file, format!("{place}/output_metadata.json"));
    let kind = |title: &str| json!({"schemaTitle": title, "schemaVersion": "0.0.1"});
    let name = uri("/inputs/artifacts/a/artifacts/0/name");
    assert!(name.parse::<u64>().is_ok(), "an input is called by its id in ML Metadata: {name}");
    let wanted = json!({
        "inputs": {
            "parameterValues": {
                "i": 7.0, "f": 0.5, "b": true, "s": "a \"quoted\" $word", "l": [1.0, "two", {"three": 3.0}],
                "d": {"nested": {"list": [true, null]}}, "default": "usual",
            },
            "artifacts": {"a": {"artifacts": [{"name": null, "type": kind("system.Dataset"), "uri": null}]}},
        },
        "outputs": {
            "parameters": {"p": {"outputFile": "/tmp/kfp/outputs/p"}},
            "artifacts": {"m": {"artifacts": [
                {"name": "m", "type": kind("system.Model"), "uri": null, "metadata": {"framework": "none"}},
            ]}},
            "outputFile": null,
        },
    });
    // What the step before said of its artifact, which is nothing.
    let of_input = read.pointer_mut("/inputs/artifacts/a/artifacts/0").and_then(Value::as_object_mut).unwrap();
    let said = of_input.remove("metadata").unwrap_or_else(|| json!({}));
    assert_eq!(said, json!({}));
    assert_eq!(read, wanted);
    Ok(())
}
