//! Upstream's compiled pipelines in real containers. Each ends as it does upstream, but for those that need a cloud, which are
//! listed with what they need.
//!
//! There are two hundred steps in them, most of which install the SDK first. So an ordinary run takes one pipeline of each
//! construct; `KFBOX_SAMPLES=all` takes all of them, and any other value those with it in their name.

use super::{Made, client};
use base64::Engine as _;
use kfbox_tests::TestBox;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Two hundred steps, most of which install the SDK, on two cores that other tests want too.
const LIMIT_SECONDS: u32 = 3000;

/// One of each construct.
const ORDINARY: [&str; 11] = [
    "collected_artifacts.yaml",
    "conditional_producer_and_consumers.yaml",
    "container_with_if_placeholder.yaml",
    "critical/component_with_optional_inputs.yaml",
    "critical/container_component_with_no_inputs.yaml",
    "critical/pipeline_with_importer_workspace.yaml",
    "critical/pipeline_with_retry.yaml",
    "essential/concat_message.yaml",
    "nested_with_parameters.yaml",
    "pipeline_with_secret_as_volume.yaml",
    "pipeline_with_task_final_status.yaml",
];

/// Not run, and why.
const ELSEWHERE: [(&str, &str); 10] = [
    ("two_step_pipeline.yaml", "its steps call gsutil, which needs Google Cloud"),
    ("sequential_v2.yaml", "its steps call gsutil, which needs Google Cloud"),
    ("pipeline_with_dynamic_task_output_custom_training_job.yaml", "its last step starts a Vertex AI job"),
    ("pipeline_with_importer.yaml", "its steps read a file of Google Cloud Storage"),
    ("pipeline_with_importer.json", "its steps read a file of Google Cloud Storage"),
    ("pipeline_with_google_artifact_type.yaml", "the package that it installs is no longer what it imports"),
    ("critical/pipeline_with_artifact_upload_download.yaml", "its first step fetches a data set from Hugging Face"),
    ("critical/pipeline_with_submit_request.yaml", "its steps call httpbin.org"),
    ("essential/component_with_pip_install_in_venv.yaml", "it names pypi.org as its package index"),
    ("gpu-scheduling/nvidia_gpu_scheduling_check.yaml", "its step waits for a GPU"),
];

/// Those that fail upstream too, with a part of what the run's error says.
const FAILING: [(&str, &str); 8] = [
    ("container_with_if_placeholder.yaml", "my_program"),
    // `[[` is a word of the shell of busybox, for which our image stands.
    ("pipeline_with_concat_placeholder.yaml", "exit code 127"),
    ("pipeline_with_task_final_status.yaml", "exit code 1"),
    ("pipeline_as_exit_task.yaml", "exit code 1"),
    ("env-var.yaml", "Env var is not set"),
    // The SDK reads a final status that only an exit task is given; here it is a task of its own.
    ("component_with_task_final_status_GH-12033.yaml", "'NoneType' object has no attribute 'get'"),
    // It expects variables that are empty, and names none for its executor: they are not set.
    ("create_pod_metadata_complex.yaml", "but is supposed to be None"),
    // Only Vertex AI knows this name.
    ("pipeline_with_string_machine_fields_task_output.yaml", "NVIDIA_TESLA_P4"),
];

/// What they call is not in the SDK that they were compiled with: upstream's tests put a newer one in its place
/// (`ReplaceSDKInPipelineSpec` in `backend/test/testutil`).
const NEWER_SDK: [&str; 3] = [
    // `Artifact.set_path`
    "critical/pipeline_with_artifact_custom_path.yaml",
    // Artifacts in the workspace
    "critical/pipeline_with_importer_workspace.yaml",
    // `dsl.EmbeddedInput`
    "essential/embedded_artifact.yaml",
];
const RUN_WITH: &str = "kfp==2.17.0";

/// Images of registries that are not asked.
const CONFIG: &str = r#"
[images]
aliases = { "registry.access.redhat.com/ubi9/python-311:latest" = "python:3.11", "public.ecr.aws/docker/library/python:3.12" = "python:3.11", "ghcr.io/containerd/busybox" = "python:3.11", "alpine" = "python:3.11" }
"#;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/kfp/pipelines/valid")
}

fn samples() -> BTreeSet<String> {
    fn walk(folder: &Path, below: &str, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = format!("{below}{}", entry.file_name().display());
            if entry.path().is_dir() {
                walk(&entry.path(), &format!("{name}/"), found);
            } else {
                found.insert(name);
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(&folder(), "", &mut found);
    found
}

/// The package that is run for a sample, one of its own in `dir` where it needs a newer SDK.
fn package(sample: &str, dir: &Path) -> anyhow::Result<PathBuf> {
    let file = folder().join(sample);
    if !NEWER_SDK.contains(&sample) {
        return Ok(file);
    }
    let content = std::fs::read_to_string(file)?;
    let (start, rest) = content.split_once("kfp==").unwrap_or((&content, ""));
    let version: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    anyhow::ensure!(!version.is_empty(), "{sample} installs no SDK, after {} bytes", start.len());
    let changed = dir.join(sample.replace('/', "-"));
    std::fs::write(&changed, content.replace(&format!("kfp=={version}"), RUN_WITH))?;
    Ok(changed)
}

fn arguments(sample: &str, b: &TestBox) -> anyhow::Result<Value> {
    Ok(match sample {
        "env-var.yaml" => json!({"env_var": "http_proxy"}),
        "essential/concat_message.yaml" => json!({"message1": "one", "message2": "two"}),
        "essential/lightweight_python_functions_pipeline.yaml" => json!({"message": "hello"}),
        "identity.yaml" => json!({"value": "same"}),
        "preprocess.yaml" => {
            json!({"message": "hello", "input_dict_parameter": {"a": 1}, "input_list_parameter": ["a", "b"]})
        }
        "sequential_v1.yaml" => json!({"param1": "one", "param2": "two"}),
        "upload_download_compiled.yaml" => {
            let credentials: Value = serde_json::from_str(&b.kfbox_ok(&["credentials", "--output", "json"])?)?;
            let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
            let secret = json!({
                "host": encode("minio-service.kubeflow"),
                "port": encode("9000"),
                "accesskey": encode(credentials["accessKey"].as_str().unwrap_or_default()),
                "secretkey": encode(credentials["secretKey"].as_str().unwrap_or_default()),
                "secure": encode("false"),
            });
            json!({"bucket_name": "mlpipeline", "mlpipeline_minio_artifact_secret": secret.to_string()})
        }
        _ => json!({}),
    })
}

#[test]
fn upstreams_pipelines_end_as_they_do_upstream() -> anyhow::Result<()> {
    let all = samples();
    if all.is_empty() {
        return Ok(());
    }
    let mut b = TestBox::prepare()?;
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("config.toml");
    std::fs::write(&config, CONFIG)?;
    b.up(&["--config", config.to_str().unwrap()])?;
    b.load_python_image()?;
    let mut made = Made::new(&b);
    for (name, content) in [("test-secret-1", "username=user1"), ("test-secret-2", "password=psw1")] {
        made.create("secret generic", name, &[&format!("--from-literal={content}")])?;
    }
    let elsewhere: BTreeMap<&str, &str> = ELSEWHERE.into();
    let failing: BTreeMap<&str, &str> = FAILING.into();
    for listed in elsewhere.keys().chain(failing.keys()).chain(&ORDINARY).chain(&NEWER_SDK) {
        assert!(all.contains(*listed), "{listed} is no sample any more");
    }
    let asked = std::env::var_os("KFBOX_SAMPLES").and_then(|s| s.into_string().ok()).unwrap_or_default();
    let is_asked = |sample: &str| match asked.as_str() {
        "" => ORDINARY.contains(&sample),
        "all" => true,
        part => sample.contains(part),
    };
    let chosen: Vec<&String> = all.iter().filter(|s| !elsewhere.contains_key(s.as_str()) && is_asked(s)).collect();
    let mut runs = Vec::new();
    for sample in &chosen {
        // The one that reads its artifact back by its S3 address.
        let root = (sample.as_str() == "upload_download_compiled.yaml")
            .then(|| format!("s3://mlpipeline/v2/artifacts/{}", b.namespace()));
        let file = package(sample, dir.path())?;
        runs.push(json!({"file": file, "arguments": arguments(sample, &b)?, "pipeline_root": root}));
    }
    let input = Value::Array(runs).to_string();
    let results = client(&b, "kfp_samples.py", &["--timeout", &LIMIT_SECONDS.to_string(), "--at-once", "4"], &input)?;
    let mut wrong = Vec::new();
    for sample in chosen {
        let got = &results[package(sample, dir.path())?.to_str().unwrap()];
        println!("{:>9} {:>6} s  {sample}", got["state"].as_str().unwrap_or("-"), got["seconds"]);
        let error = got["error"].as_str().unwrap_or_default();
        let good = match failing.get(sample.as_str()) {
            Some(part) => got["state"] == "FAILED" && error.contains(part),
            None => got["state"] == "SUCCEEDED",
        };
        if !good {
            wrong.push(format!("{sample}: {got:#}"));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), b.log());
    // Steps that must run whatever happened before them did.
    if let Some(ended) = results.get(folder().join("pipeline_with_task_final_status.yaml").to_str().unwrap()) {
        assert_eq!(ended["tasks"]["exit-op"], "SUCCEEDED", "{ended}");
    }
    Ok(())
}
