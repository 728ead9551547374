//! Pipelines that Elyra and Kale compiled, from `tests/compiled`, in real containers; and their ways to sign in.

use super::{Made, client};
use kfbox_tests::{Python, TestBox, cache_dir, run};
use serde_json::{Value, json};
use std::path::Path;

/// Their own code, which `scripts/setup clients` fetches.
fn tools() -> anyhow::Result<String> {
    let tools = cache_dir().join("notebook-tools");
    anyhow::ensure!(tools.exists(), "{} is missing; next: scripts/setup clients", tools.display());
    Ok(tools.to_string_lossy().into_owned())
}

fn credentials(b: &TestBox) -> anyhow::Result<String> {
    b.kfbox_ok(&["credentials", "--output", "json"])
}

#[test]
fn elyras_and_kales_authentication_types_work_and_refuse_what_is_wrong() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let namespace = b.namespace();
    let token = b.kfbox_ok(&["token", "--name", "compilers", "--expires", "1h"])?;
    let account = ["create", "token", "default-editor", "-n", &namespace, "--audience", "pipelines.kubeflow.org"];
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("token");
    std::fs::write(&file, b.kubectl(&account)?.ok()?.stdout.trim())?;
    let mut command = Python::Clients.script("tests/clients/compiled.py");
    command
        .args(["auth", "--host", &b.url()?, "--namespace", &namespace, "--tools", &tools()?])
        .env("KFBOX_USER", &b.user)
        .env("KFBOX_PASSWORD", b.password.as_deref().unwrap_or_default())
        .env("KFBOX_TOKEN", token.trim())
        .env("KF_PIPELINES_SA_TOKEN_PATH", &file)
        // kfp and Kale keep settings there.
        .env("HOME", dir.path());
    let output = run(&mut command)?.ok()?;
    let seen: Value = serde_json::from_str(output.stdout.lines().last().unwrap_or_default())?;
    let elyra = ["DEX_STATIC_PASSWORDS", "EXISTING_BEARER_TOKEN", "KUBERNETES_SERVICE_ACCOUNT_TOKEN"];
    assert!(elyra.iter().all(|kind| seen["elyra"][kind] == true), "{seen}");
    let kale = ["dex", "existing_bearer_token", "kubernetes_service_account_token"];
    assert!(kale.iter().all(|kind| seen["kale"][kind] == true), "{seen}");
    let refused = |kind: &str| seen["refused"][kind].as_str().unwrap_or_default();
    assert!(refused("DEX_STATIC_PASSWORDS").contains("probably invalid"), "{seen}");
    assert!(refused("NO_AUTHENTICATION").contains("Authentication is required"), "{seen}");
    assert_eq!(refused("EXISTING_BEARER_TOKEN"), "401 application/json", "{seen}");
    Ok(())
}

/// The pod and the Service from which Elyra's steps fetch what they would fetch from GitHub.
fn files(namespace: &str) -> String {
    let labels = json!({"app": "elyra-files"});
    let container = json!({"name": "web", "image": "python:3.11", "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-m", "http.server", "8000", "--directory", "/files"],
        "readinessProbe": {"httpGet": {"path": "/bootstrapper.py", "port": 8000}, "periodSeconds": 1},
        "volumeMounts": [{"name": "files", "mountPath": "/files"}]});
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "elyra-files", "namespace": namespace, "labels": labels},
        "spec": {"containers": [container], "volumes": [{"name": "files", "configMap": {"name": "elyra-files"}}]}});
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "elyra-files", "namespace": namespace},
        "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8000}]}});
    json!({"apiVersion": "v1", "kind": "List", "items": [pod, service]}).to_string()
}

#[test]
fn a_pipeline_of_elyra_runs_with_its_archives_in_the_profiles_bucket() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let namespace = b.namespace();
    let keys = credentials(&b)?;
    let known: Value = serde_json::from_str(&keys)?;
    let key = |name: &str| known[name].as_str().unwrap_or_default().to_owned();
    let mut made = Made::new(&b);
    // As Elyra's runtime configuration with `cos_auth_type: KUBERNETES_SECRET` has it.
    let literal = |name: &str, value: String| format!("--from-literal={name}={value}");
    let (id, secret) =
        (literal("AWS_ACCESS_KEY_ID", key("accessKey")), literal("AWS_SECRET_ACCESS_KEY", key("secretKey")));
    made.create("secret generic", "elyra-cos", &[&id, &secret])?;
    let program = format!("--from-file={}/elyra/kfp/bootstrapper.py", tools()?);
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("compiled/elyra/requirements-elyra.txt");
    made.create("configmap", "elyra-files", &[&program, &format!("--from-file={}", list.display())])?;
    made.names.extend(["pod/elyra-files".to_owned(), "service/elyra-files".to_owned()]);
    b.kubectl_with_input(&["apply", "-f", "-"], &files(&namespace))?.ok()?;
    let ready = ["wait", "-n", &namespace, "--for=condition=Ready", "pod/elyra-files", "--timeout=60s"];
    b.kubectl(&ready)?.ok()?;

    let result = client(&b, "compiled.py", &["elyra"], &keys)?;
    let logs = |task: &str| -> anyhow::Result<String> {
        let pod = result["pods"][task].as_str().unwrap_or_default();
        Ok(b.kubectl(&["logs", "-n", &namespace, pod])?.stdout)
    };
    assert_eq!(result["state"], "SUCCEEDED", "{result:#}\n{}\n{}\n{}", logs("make")?, logs("total")?, b.log());
    assert_eq!(result["total"], "10\n", "{result:#}");
    let run = format!("run {}", result["run_id"].as_str().unwrap_or_default());
    assert!(logs("make")?.contains(&run), "the run's id stands where Elyra's compiler asks for Argo's");
    Ok(())
}

#[test]
fn a_pipeline_of_kale_runs_and_hands_values_on() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let result = client(&b, "compiled.py", &["kale"], &credentials(&b)?)?;
    assert_eq!(result["state"], "SUCCEEDED", "{result:#}\n{}", b.log());
    assert_eq!(result["total_in_report"], json!([["10"]]), "{result:#}");
    // Its steps ask not to be root, of a group that is.
    let pod = result["pods"]["total-step"].as_str().unwrap_or_default().to_owned();
    let user =
        ["get", "pod", "-n", &b.namespace(), &pod, "-o", "jsonpath={.spec.containers[0].securityContext.runAsUser}"];
    assert_eq!(b.kubectl(&user)?.ok()?.stdout, "65534");
    Ok(())
}
