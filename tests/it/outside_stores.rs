//! Artifacts in a store outside the box, here another box's S3: the namespace's config map `kfp-launcher` says where it is
//! and which Secret opens it, and the operator's setting that it may be connected to although it is on this machine.

use crate::pipelines::kfp;
use kfbox_tests::{Python, TestBox, run};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    process::Command,
};

/// `/found` is a file, `/moved` leads to it, `/inward` to an address that nobody is led to. The thread ends with the process.
fn web(content: &'static str) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let asked = lines.next().unwrap_or_default();
            while lines.next().is_some_and(|line| !line.is_empty()) {}
            let to = |url: &str| format!("HTTP/1.1 302 Found\r\nlocation: {url}\r\ncontent-length: 0\r\n");
            let (head, body) = match asked.split(' ').nth(1).unwrap_or_default() {
                "/found" => (format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n", content.len()), content),
                "/moved" => (to("/found"), ""),
                "/inward" => (to("http://127.0.0.1:1/secret"), ""),
                _ => ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n".into(), ""),
            };
            drop((&stream).write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes()));
        }
    });
    Ok(format!("http://{address}"))
}

/// The other box's objects of a run, read with boto3: `KEY CONTENT` a line.
fn objects(credentials: &Value, run_id: &str) -> anyhow::Result<String> {
    let script = "import boto3, json, sys
c = json.loads(sys.argv[1])
s3 = boto3.client('s3', endpoint_url=c['endpoint'], region_name=c['region'],
                  aws_access_key_id=c['accessKey'], aws_secret_access_key=c['secretKey'])
for page in s3.get_paginator('list_objects_v2').paginate(Bucket=c['bucket'], Prefix=c['prefix']):
    for found in page.get('Contents', []):
        if sys.argv[2] in found['Key']:
            print(found['Key'], s3.get_object(Bucket=c['bucket'], Key=found['Key'])['Body'].read().decode())";
    let mut command = Command::new(Python::Clients.program());
    Ok(run(command.args(["-c", script, &credentials.to_string(), run_id]))?.ok()?.stdout)
}

fn configure(b: &TestBox, root: &str, endpoint: &str, secret: &Value) -> anyhow::Result<()> {
    let namespace = b.namespace();
    let reference = json!({"secretName": "other-store", "accessKeyKey": "id", "secretKeyKey": "key"});
    let providers = json!({"s3": {"default": {
        "endpoint": endpoint, "disableSSL": true, "maxRetries": 1, "credentials": {"secretRef": reference},
    }}});
    let data = json!({"defaultPipelineRoot": root, "providers": providers.to_string()});
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "other-store", "namespace": namespace}, "stringData": secret},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kfp-launcher", "namespace": namespace}, "data": data},
    ]});
    b.kubectl(&["delete", "secret", "other-store", "-n", &namespace, "--ignore-not-found"])?.ok()?;
    b.kubectl_with_input(&["apply", "-f", "-"], &objects.to_string())?.ok()?;
    Ok(())
}

fn errors(result: &Value) -> String {
    let tasks = result["tasks"].as_array().cloned().unwrap_or_default();
    tasks.iter().filter_map(|t| t["error"].as_str()).collect::<Vec<_>>().join("\n")
}

#[test]
fn steps_keep_their_artifacts_in_another_store() -> anyhow::Result<()> {
    let mut other = TestBox::prepare()?;
    other.up(&["--user", "other@example.com"])?;
    let credentials: Value = serde_json::from_str(&other.kfbox_ok(&["credentials", "--output", "json"])?)?;
    let text = |name: &str| credentials[name].as_str().unwrap_or_default().to_owned();
    let endpoint = text("endpoint");
    let root = format!("s3://{}/{}from-afar", text("bucket"), text("prefix").trim_end_matches('/').to_owned() + "/");
    let web = web("brought from the web")?;

    let mut b = TestBox::prepare()?;
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("config.toml");
    std::fs::write(&config, format!("[pipelines]\nartifact_endpoints = [{endpoint:?}, {web:?}]\n"))?;
    b.up(&["--config", config.to_str().unwrap()])?;
    b.load_python_image()?;
    let keys = json!({"id": text("accessKey"), "key": text("secretKey")});
    let host = endpoint.trim_start_matches("http://");
    configure(&b, &root, host, &keys)?;

    let result = kfp(&b, &["two-steps"])?;
    assert_eq!(result["state"], "SUCCEEDED", "{result}\n{}", b.log());
    let run_id = result["run_id"].as_str().unwrap();
    let found = objects(&credentials, run_id)?;
    assert!(found.contains("/data hello from the first step"), "{found}");
    let own: Value = serde_json::from_str(&b.kfbox_ok(&["credentials", "--output", "json"])?)?;
    assert_eq!(objects(&own, run_id)?, "", "nothing of it is in the box's own store");
    // The box reads it where it reads artifacts.
    let task = result["tasks"].as_array().unwrap().iter().find(|t| t["name"] == "write-dataset").unwrap();
    let token = b.kfbox_ok(&["token", "--name", "outside", "--expires", "1h"])?;
    let path = format!("/apis/v2beta1/runs/{run_id}/nodes/{}/artifacts/data:read", task["id"].as_str().unwrap());
    let read = "import base64, json, sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.argv[2]})
print(base64.b64decode(json.load(urllib.request.urlopen(request))['data']).decode())";
    let mut command = Command::new(Python::Clients.program());
    let output = run(command.args(["-c", read, &format!("{}{path}", b.url()?), token.trim()]))?.ok()?;
    assert_eq!(output.stdout.trim(), "hello from the first step");

    // What is there is imported, from the store and from the web.
    let key = found.lines().find(|l| l.contains("/data ")).and_then(|l| l.split(' ').next()).unwrap();
    let bucket = text("bucket");
    let plan = json!({
        "store": format!("s3://{bucket}/{key}"), "in_store": "hello from the first step",
        "web": format!("{web}/found"), "moved": format!("{web}/moved"), "on_web": "brought from the web",
    });
    let result = kfp(&b, &["imports", &plan.to_string()])?;
    assert_eq!(result["state"], "SUCCEEDED", "{result}\n{}", b.log());
    let result = kfp(&b, &["import-one", &format!("{web}/inward")])?;
    assert!(result["state"] == "FAILED" && errors(&result).contains("pipelines.artifact_endpoints"), "{result}");

    // Nobody said how that one is opened, and nothing is there: as ever, the step gets its address.
    let result = kfp(&b, &["import-one", "gs://no-such-bucket-of-anybody/x"])?;
    assert!(result["state"] == "FAILED" && errors(&result).contains("is not fetched"), "{result}");

    // The run's own wish comes before the namespace's. A query says where the store is, the step's environment has the keys.
    let mine = format!("{root}/mine?endpoint={host}&disableSSL=true&s3ForcePathStyle=true");
    let result = kfp(&b, &["two-steps-with-keys", &format!("{mine} {} {}", text("accessKey"), text("secretKey"))])?;
    assert_eq!(result["state"], "SUCCEEDED", "{result}\n{}", b.log());
    let found = objects(&credentials, result["run_id"].as_str().unwrap())?;
    assert!(found.contains("/from-afar/mine/") && found.contains("/data hello"), "{found}");

    // Each fault fails the step, with the setting to look at and no secret.
    let secret = text("secretKey");
    for (endpoint, keys, says) in [
        (host, json!({"id": text("accessKey")}), "the Secret other-store has no key key"),
        ("localhost:1", keys.clone(), "add the endpoint to the setting pipelines.artifact_endpoints"),
    ] {
        configure(&b, &root, endpoint, &keys)?;
        let result = kfp(&b, &["two-steps"])?;
        let told = errors(&result);
        assert!(result["state"] == "FAILED" && told.contains(says), "{endpoint}: {result}");
        assert!(!told.contains(&secret) && !b.log().contains(&secret), "{endpoint}: a secret is shown");
    }
    Ok(())
}
