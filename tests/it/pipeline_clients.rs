//! Every method of kfp's clients, of today's and of 1.8's.

use kfbox_tests::{Python, TestBox, run};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
};

fn last_line(output: &kfbox_tests::Output) -> anyhow::Result<Value> {
    let last = output.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|e| anyhow::anyhow!("{e}: {output:?}"))
}

#[test]
fn every_method_of_the_sdk_does_what_it_says() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let token = b.kfbox_ok(&["token", "--name", "methods", "--expires", "1h"])?;
    // The SDK remembers a namespace in the home directory.
    let home = tempfile::tempdir()?;
    let mut command = Python::Clients.script("tests/clients/kfp_methods.py");
    command.env("HOME", home.path()).args(["--host", &format!("{}/pipeline", b.url()?), "--token", token.trim()]);
    let output = run(command.args(["--namespace", &b.namespace()]))?.ok()?;
    let result = last_line(&output)?;
    assert_eq!(result["missed"], json!([]), "{result}");
    assert!(result["called"].as_u64() >= Some(35), "{result}");
    Ok(())
}

/// One package, for whoever asks; the thread ends with the process.
fn package_server(content: String) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            // The head ends with an empty line.
            while lines.next().is_some_and(|line| !line.is_empty()) {}
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", content.len());
            drop((&stream).write_all((head + &content).as_bytes()));
        }
    });
    Ok(format!("http://{address}/"))
}

#[test]
fn every_method_of_kfp_1_8_does_what_it_says() -> anyhow::Result<()> {
    let source = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/kfp_v1.py"))?;
    let package = source.split("\"\"\"").find(|part| part.contains("pipelineInfo")).unwrap_or_default().to_owned();
    let url = package_server(package)?;
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("config.toml");
    std::fs::write(&config, format!("[pipelines]\npackage_urls = [{url:?}]\n"))?;
    let mut b = TestBox::prepare()?;
    b.up(&["--config", config.to_str().unwrap()])?;
    b.load_python_image()?;
    let token = b.kfbox_ok(&["token", "--name", "kfp 1.8", "--expires", "1h"])?;
    for route in ["", "/pipeline"] {
        let mut command = Python::KfpV1.script("tests/clients/kfp_v1.py");
        command.args(["--host", &format!("{}{route}", b.url()?), "--token", token.trim()]);
        let package = format!("{url}from-v1.yaml");
        let output = run(command.args(["--namespace", &b.namespace(), "--package-url", &package]))?;
        let output = output.ok().map_err(|e| anyhow::anyhow!("{e}\n{}", b.log()))?;
        let result = last_line(&output)?;
        assert_eq!((&result["missed"], &result["called"]), (&json!([]), &json!(36)), "{result}");
    }
    Ok(())
}

const PACKAGE: &str = "
pipelineInfo: {name: from-the-terminal}
schemaVersion: 2.1.0
components:
  comp-say: {executorLabel: exec-say}
deploymentSpec: {executors: {exec-say: {container: {image: 'python:3.11', command: [sh, -c, 'exit 3']}}}}
root:
  dag:
    tasks:
      say: {componentRef: {name: comp-say}, taskInfo: {name: say}}
";

#[test]
fn kfbox_pipelines_lists_and_changes_what_the_api_holds() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let folder = tempfile::tempdir()?;
    let unique = folder.path().file_name().unwrap().to_string_lossy().trim_start_matches('.').to_lowercase();
    let file = folder.path().join("p.yaml");
    std::fs::write(&file, PACKAGE)?;
    let path = file.to_str().unwrap();
    let kfbox = |args: &[&str]| b.kfbox_ok(&[&["pipelines"], args].concat());
    let first = kfbox(&["upload", path, "--name", &unique, "--description", "for a test"])?;
    assert!(first.starts_with(&format!("pipeline {unique}")), "{first}");
    let second = kfbox(&["upload", path, "--name", &unique, "--version", "two"])?;
    assert!(second.starts_with(&format!("version two of {unique}")), "{second}");
    let listed = kfbox(&["list"])?;
    assert!(listed.contains(&unique) && listed.contains("for a test"), "{listed}");

    kfbox(&["experiments", "create", &unique])?;
    let run = b.kfbox_ok(&["run", path, "--experiment", &unique, "--name", &unique, "-d"])?;
    let run = run.trim();
    // A run is named by its id, by the beginning of it, or by a name that only it has.
    kfbox_tests::wait_until(std::time::Duration::from_secs(60), "the run's failure", || {
        Ok(kfbox(&["runs", "get", &unique])?.contains("FAILED").then_some(()))
    })?;
    let shown = kfbox(&["runs", "get", &run[..8]])?;
    assert!(shown.contains("exit code 3") && shown.contains("say"), "{shown}");
    assert!(kfbox(&["runs", "list", "--state", "failed", "--experiment", &unique])?.contains(run));
    assert!(!kfbox(&["runs", "list", "--state", "succeeded", "--experiment", &unique])?.contains(run));
    assert!(kfbox(&["runs", "retry", run])?.contains("going on with"));
    let rows: Value = serde_json::from_str(&kfbox(&["runs", "list", "--experiment", &unique, "-o", "json"])?)?;
    assert_eq!(rows[0]["run_id"], run, "{rows}");
    for (args, says) in [
        (&["runs", "get", "no-such-run"][..], "there is no run called no-such-run"),
        (&["experiments", "delete", &unique], "still has 1 runs"),
        (&["runs", "list", "--user", "nobody@example.com"], "nobody@example.com"),
    ] {
        let refused = b.kfbox(&[&["pipelines"], args].concat())?;
        assert!(refused.code == Some(1) && refused.stderr.contains(says), "{args:?}: {refused:?}");
    }
    kfbox(&["runs", "delete", run])?;
    kfbox(&["experiments", "delete", &unique])?;
    kfbox(&["delete", &unique])?;
    assert!(!kfbox(&["list"])?.contains(&unique));
    let tokens = b.kfbox_ok(&["token", "list", "-o", "json"])?;
    assert!(!tokens.contains("kfbox pipelines"), "a call's token ends with it: {tokens}");
    Ok(())
}
