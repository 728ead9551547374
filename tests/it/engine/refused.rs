//! What a pipeline may not say: each is refused before anything runs, with the field at fault.

use super::client;
use kfbox_tests::{TestBox, wait_until};
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    time::{Duration, Instant},
};

/// A pipeline of two steps that is accepted as it stands; each case spoils one thing in it.
const GOOD: &str = r#"
pipelineInfo: {name: spoiled}
schemaVersion: 2.1.0
sdkVersion: kfp-2.17.0
components:
  comp-a:
    executorLabel: exec-a
    inputDefinitions: {parameters: {n: {parameterType: NUMBER_INTEGER}, list: {parameterType: LIST, isOptional: true}}}
    outputDefinitions: {parameters: {out: {parameterType: STRING}}, artifacts: {data: {artifactType: {schemaTitle: system.Dataset, schemaVersion: 0.0.1}}}}
  comp-b:
    executorLabel: exec-b
    inputDefinitions: {parameters: {text: {parameterType: STRING}}, artifacts: {data: {artifactType: {schemaTitle: system.Dataset, schemaVersion: 0.0.1}}}}
deploymentSpec:
  executors:
    exec-a: {container: {image: "python:3.11", command: ["true"]}}
    exec-b: {container: {image: "python:3.11", command: ["true"]}}
root:
  inputDefinitions: {parameters: {n: {parameterType: NUMBER_INTEGER}, flag: {parameterType: BOOLEAN, defaultValue: true}}}
  dag:
    tasks:
      a: {componentRef: {name: comp-a}, taskInfo: {name: a}, inputs: {parameters: {n: {componentInputParameter: n}}}}
      b:
        componentRef: {name: comp-b}
        taskInfo: {name: b}
        inputs:
          parameters: {text: {taskOutputParameter: {producerTask: a, outputParameterKey: out}}}
          artifacts: {data: {taskOutputArtifact: {producerTask: a, outputArtifactKey: data}}}
---
platforms:
  kubernetes:
    deploymentSpec:
      executors:
        exec-a: {podMetadata: {labels: {team: blue}}, pvcMount: [{mountPath: /mnt, constant: claim}]}
"#;

/// What is changed to what, and a part of what the refusal must say.
const SPOILED: [(&str, &str, &str); 26] = [
    // Cycles and what is not there.
    ("taskInfo: {name: a},", "taskInfo: {name: a}, dependentTasks: [b],", "task a of root: it depends on itself"),
    ("componentRef: {name: comp-a}", "componentRef: {name: comp-gone}", "task a of root: its component comp-gone"),
    (
        "producerTask: a, outputParameterKey: out",
        "producerTask: a, outputParameterKey: gone",
        "task b of root, input text",
    ),
    ("producerTask: a, outputArtifactKey: data", "producerTask: c, outputArtifactKey: data", "task b of root"),
    ("parameters: {n: {componentInputParameter: n}}", "parameters: {}", "task a of root: the required input n"),
    ("componentInputParameter: n", "componentInputParameter: gone", "task a of root, input n"),
    ("executorLabel: exec-b", "executorLabel: exec-gone", "component comp-b: its executor exec-gone"),
    // Types and versions.
    ("parameterType: LIST", "parameterType: TUPLE", "components.comp-a.inputDefinitions.parameters.list.parameterType"),
    ("command: [\"true\"]", "command: \"true\"", "deploymentSpec.executors.exec-a"),
    ("schemaVersion: 2.1.0", "schemaVersion: 3.0.0", "schema version 3.0.0"),
    ("taskInfo: {name: b}", "taskInfo: {name: b}\n        iterator: {}", "root.dag.tasks.b"),
    (
        "taskInfo: {name: b}\n",
        "taskInfo: {name: b}\n        retryPolicy: {maxRetryCount: 2, backoffDuration: soon}\n",
        "soon",
    ),
    ("taskInfo: {name: b}\n", "taskInfo: {name: b}\n        retryPolicy: {maxRetryCount: -1}\n", "maxRetryCount"),
    (
        "taskInfo: {name: b}\n",
        "taskInfo: {name: b}\n        triggerPolicy: {condition: \"inputs.parameter_values['text'] ==\"}\n",
        "task b of root",
    ),
    // Other namespaces, the host, and more rights.
    ("podMetadata: {labels", "podMetadata: {namespace: kube-system, labels", "exec-a.podMetadata.namespace"),
    ("podMetadata: {labels", "hostPath: {path: /etc}, podMetadata: {labels", "exec-a.hostPath"),
    ("mountPath: /mnt, constant: claim", "mountPath: /mnt, hostPath: /etc", "exec-a.pvcMount[0].hostPath"),
    ("podMetadata: {labels", "securityContext: {privileged: true}, podMetadata: {labels", "securityContext.privileged"),
    (
        "podMetadata: {labels",
        "securityContext: {runAsUser: '0', runAsNonRoot: true}, podMetadata: {labels",
        "runAsUser",
    ),
    ("podMetadata: {labels", "hostNetwork: true, podMetadata: {labels", "exec-a.hostNetwork"),
    ("mountPath: /mnt,", "mountPath: /kfbox/launcher,", "pvcMount[0].mountPath"),
    ("mountPath: /mnt,", "mountPath: ../etc,", "pvcMount[0].mountPath"),
    ("podMetadata: {labels", "initContainers: [{name: main, image: x}], podMetadata: {labels", "initContainers[0]"),
    (
        "podMetadata: {labels",
        "initContainers: [{name: x, image: y, restartPolicy: Never}], podMetadata: {labels",
        "initContainers[0]",
    ),
    ("podMetadata: {labels", "imagePullPolicy: Sometimes, podMetadata: {labels", "Sometimes"),
    ("  kubernetes:", "  elsewhere:", "elsewhere"),
];

fn case(name: &str, content: &str, arguments: Value, root: Value) -> Value {
    json!({"name": name, "content": content, "arguments": arguments, "pipeline_root": root})
}

#[test]
fn what_cannot_be_is_refused_with_the_field_at_fault() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let mut cases = vec![case("good", GOOD, Value::Null, Value::Null)];
    cases.push(case("large", &format!("{GOOD}# {}", "x".repeat(3 << 20)), Value::Null, Value::Null));
    let mut wanted: Vec<(String, String)> = Vec::new();
    for (from, to, says) in SPOILED {
        let spoiled = GOOD.replacen(from, to, 1);
        assert_ne!(spoiled, GOOD, "{from}");
        let name = format!("{to} ({says})");
        cases.push(case(&name, &spoiled, Value::Null, Value::Null));
        wanted.push((name, says.into()));
    }
    for (name, content, says) in [
        ("bomb", bomb(), "repetition limit"),
        ("nested", nested(200), "recursion limit"),
        ("oversized", format!("{GOOD}# {}", "x".repeat(32 << 20)), "32 MiB"),
    ] {
        cases.push(case(name, &content, Value::Null, Value::Null));
        wanted.push((name.into(), says.into()));
    }
    let elsewhere = json!("minio://mlpipeline/v2/artifacts/kube-system/stolen");
    for (name, arguments, root, says) in [
        ("missing argument", json!({}), Value::Null, "parameter n"),
        ("unknown argument", json!({"n": 1, "m": 2}), Value::Null, "parameter m"),
        (
            "text for a number",
            json!({"n": "many"}),
            Value::Null,
            "parameter n: it should be an integer, and is a string",
        ),
        ("half a number", json!({"n": 1.5}), Value::Null, "parameter n"),
        ("number for a flag", json!({"n": 1, "flag": 1}), Value::Null, "parameter flag: it should be a boolean"),
        ("another namespace's root", json!({"n": 1}), elsewhere, "kube-system"),
        (
            "a root out of the namespace",
            json!({"n": 1}),
            json!("minio://mlpipeline/v2/artifacts/x/../y"),
            "the pipeline root",
        ),
    ] {
        cases.push(case(name, GOOD, arguments, root));
        wanted.push((name.into(), says.into()));
    }
    let said = client(&b, "kfp_refused.py", &[], &Value::Array(cases).to_string())?;
    for name in ["good", "large"] {
        assert_eq!(said[name]["status"], 200, "{name}: {}", said[name]);
    }
    let mut wrong = Vec::new();
    for (name, says) in wanted {
        let message: Value = serde_json::from_str(said[&name]["body"].as_str().unwrap_or_default()).unwrap_or_default();
        let message = message["message"].as_str().unwrap_or_default();
        let status = said[&name]["status"].as_u64().unwrap_or_default();
        if !matches!(status, 400 | 413) || !message.contains(&says) {
            wrong.push(format!("{name}: {says:?} is not in {}", said[&name]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(b.status()?["ready"], true);
    Ok(())
}

/// Aliases of aliases: small to send, endless to read.
fn bomb() -> String {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let of = format!("*a{}", n - 1);
        text.push_str(&format!("a{n}: &a{n} [{}]\n", vec![of; 10].join(", ")));
    }
    text
}

fn nested(depth: usize) -> String {
    format!("pipelineInfo: {}{}", "[".repeat(depth), "]".repeat(depth))
}

/// A registry that has nothing, on loopback: each request is answered as a registry answers for an unknown image.
struct EmptyRegistry {
    address: String,
}

impl EmptyRegistry {
    fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut lines = BufReader::new(&stream).lines();
                let path = lines.next().and_then(Result::ok).unwrap_or_default();
                while lines.next().is_some_and(|l| l.is_ok_and(|l| !l.is_empty())) {}
                let (status, body) = if path.starts_with("GET /v2/ ") {
                    ("200 OK", "{}".to_owned())
                } else {
                    let error = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
                    ("404 Not Found", error.to_string())
                };
                let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n");
                let _ = write!(&stream, "{head}content-length: {}\r\n\r\n{body}", body.len());
            }
        });
        Ok(Self { address })
    }
}

#[test]
fn an_image_that_its_registry_does_not_have_fails_the_step_at_once() -> anyhow::Result<()> {
    let registry = EmptyRegistry::start()?;
    let mut b = TestBox::prepare()?;
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("config.toml");
    std::fs::write(&config, format!("[images]\ninsecure = [\"{}\"]\n", registry.address))?;
    b.up(&["--config", config.to_str().unwrap()])?;
    b.load_python_image()?;
    let step = |image: &str, init: &str| {
        let pipeline = GOOD
            .split("---")
            .next()
            .unwrap_or_default()
            .replace("image: \"python:3.11\"", &format!("image: \"{image}\""));
        let pipeline = pipeline.replace(
            "n: {parameterType: NUMBER_INTEGER}, flag",
            "n: {parameterType: NUMBER_INTEGER, defaultValue: 1}, flag",
        );
        format!("{pipeline}{init}")
    };
    let (image, init_image) = (format!("{}/no/such:1", registry.address), format!("{}/no/init:1", registry.address));
    let init = format!(
        "---
platforms: {{kubernetes: {{deploymentSpec: {{executors: {{exec-a: {{initContainers: [{{name: first, image: \"{init_image}\"}}]}}}}}}}}}}
"
    );
    for (name, content, says) in [
        ("absent", step(&image, ""), image.as_str()),
        ("absent-init", step("python:3.11", &init), "init container first"),
    ] {
        let package = dir.path().join(format!("{name}.yaml"));
        std::fs::write(&package, content)?;
        let mut command = std::process::Command::new(kfbox_tests::program()?);
        command.arg("run").arg(&package).arg("-d").env("KFBOX_DATA_DIR", b.data_dir());
        let id = kfbox_tests::run(&mut command)?.ok()?.stdout.trim().to_owned();
        let started = Instant::now();
        // The deadline for what may yet come is a minute.
        let ended = wait_until(Duration::from_secs(45), "the step's failure", || {
            let seen = crate::pipelines::kfp(&b, &["get", &id])?;
            Ok((seen["state"] == "FAILED").then_some(seen))
        })?;
        println!("{name}: failed after {:?}", started.elapsed());
        let error = ended["error"].as_str().unwrap_or_default();
        assert!(error.contains(says) && error.contains("was not found at"), "{error}");
    }
    Ok(())
}
