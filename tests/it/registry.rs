//! The embedded registry with an unmodified client, skopeo: pushed from the machine with a token, run by pods, listed, copied
//! back and deleted; reached by pods under its name, with the cluster's certificate.

use anyhow::Context;
use kfbox_tests::{Conversation, Output, Space, TestBox, run, wait_until};
use serde_json::Value;
use std::{fs, process::Command, time::Duration};

const LIMIT: Duration = Duration::from_secs(60);

fn tool(program: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    run(Command::new(program).args(arguments))
}

/// An OCI layout with an image of busybox that says something, made by umoci; what skopeo calls it.
fn small_image(space: &Space, says: &str, padding: usize) -> anyhow::Result<String> {
    let layout = space.dir().join(format!("layout-{says}"));
    let layout = layout.to_str().context("path")?;
    let image = format!("{layout}:it");
    tool("umoci", &["init", "--layout", layout])?.ok()?;
    tool("umoci", &["new", "--image", &image])?.ok()?;
    tool("umoci", &["insert", "--image", &image, "/bin/busybox", "/bin/busybox"])?.ok()?;
    if padding > 0 {
        // Not to be compressed away.
        let bytes: Vec<u8> = (0..padding as u64 / 8)
            .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23).to_le_bytes())
            .collect();
        let file = space.file("padding", "")?;
        fs::write(&file, bytes)?;
        tool("umoci", &["insert", "--image", &image, &file, "/padding"])?.ok()?;
    }
    let command = ["--config.cmd", "/bin/busybox", "--config.cmd", "echo", "--config.cmd", says];
    tool("umoci", &[&["config", "--image", &image][..], &command].concat())?.ok()?;
    Ok(format!("oci:{image}"))
}

struct Client<'a> {
    space: &'a Space,
    address: String,
    token: String,
}

impl Client<'_> {
    fn at(&self, image: &str) -> String {
        format!("docker://{}/{image}", self.address)
    }

    fn push(&self, from: &str, image: &str) -> Command {
        let mut command = self.space.command("skopeo");
        command.args(["--insecure-policy", "copy", "--dest-tls-verify=false", "--dest-creds"]);
        command.arg(format!("any:{}", self.token)).args([from, &self.at(image)]);
        command
    }

    fn skopeo(&self, verb: &str, image: &str) -> anyhow::Result<Output> {
        let credentials = format!("any:{}", self.token);
        let image = self.at(image);
        run(self.space.command("skopeo").args([verb, "--tls-verify=false", "--creds", &credentials, &image]))
    }
}

fn pod(space: &Space, name: &str, image: &str) -> anyhow::Result<()> {
    let manifest = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{restartPolicy: Never, containers: [{{name: main, image: '{image}'}}]}}}}"
    );
    space.apply(&manifest).map(drop)
}

fn said(space: &Space, name: &str) -> anyhow::Result<String> {
    space.ok(&format!("wait pod/{name} --for=jsonpath={{.status.phase}}=Succeeded --timeout=60s"))?;
    Ok(space.ok(&format!("logs {name}"))?.trim().to_owned())
}

#[test]
fn skopeo_pushes_what_pods_run() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let space = Space::new(&b, "registry")?;
    let other = Space::new(&b, "registry-other")?;
    // A service account that may edit its namespace, and no other.
    space.ok(&format!("create rolebinding pusher --clusterrole=edit --serviceaccount={}:default", space.name))?;
    let token = space.ok("create token default")?.trim().to_owned();
    let client = Client { space: &space, address: b.address("registry")?, token };
    let (image, ns) = (small_image(&space, "hello-from-the-registry", 0)?, &space.name);
    run(&mut client.push(&image, &format!("{ns}/app:1")))?.ok()?;
    run(&mut client.push(&image, &format!("{ns}/nested/app:1")))?.ok()?;
    let tags: Value = serde_json::from_str(&client.skopeo("list-tags", &format!("{ns}/app"))?.ok()?.stdout)?;
    assert_eq!(tags["Tags"], serde_json::json!(["1"]));
    let shown: Value = serde_json::from_str(&client.skopeo("inspect", &format!("{ns}/app:1"))?.ok()?.stdout)?;
    let digest = shown["Digest"].as_str().context("digest")?.to_owned();

    for (name, image) in [
        ("by-tag", format!("registry.kfbox.local/{ns}/app:1")),
        ("nested", format!("registry.kfbox.local/{ns}/nested/app:1")),
        ("by-digest", format!("registry.kfbox.local/{ns}/app@{digest}")),
    ] {
        pod(&space, name, &image)?;
        assert_eq!(said(&space, name)?, "hello-from-the-registry", "{name}");
    }
    // What comes back is what was sent.
    let back = format!("oci:{}:back", space.dir().join("back").to_str().context("path")?);
    let credentials = format!("any:{}", client.token);
    let from = client.at(&format!("{ns}/app:1"));
    run(space.command("skopeo").args([
        "--insecure-policy",
        "copy",
        "--src-tls-verify=false",
        "--src-creds",
        &credentials,
        &from,
        &back,
    ]))?
    .ok()?;
    let index: Value = serde_json::from_str(&fs::read_to_string(space.dir().join("back/index.json"))?)?;
    assert_eq!(index["manifests"][0]["digest"], digest.as_str());

    // A neighbour's: neither to push to, nor to read, nor to run.
    let foreign = run(&mut client.push(&image, &format!("{}/app:1", other.name)))?;
    assert!(foreign.code != Some(0) && foreign.stderr.contains("403 (Forbidden)"), "{foreign:?}");
    let nobody = Client { space: &space, address: client.address.clone(), token: "nonsense".into() };
    let refused = nobody.skopeo("inspect", &format!("{ns}/app:1"))?;
    assert!(refused.code != Some(0) && refused.stderr.contains("kfbox token"), "{refused:?}");
    pod(&other, "thief", &format!("registry.kfbox.local/{ns}/app:1"))?;
    wait_until(LIMIT, "the refusal", || {
        let why = other.value("pod/thief", "{.status.containerStatuses[0].state.waiting.reason}")?;
        Ok(["ErrImagePull", "ImagePullBackOff"].contains(&why.as_str()).then_some(()))
    })?;
    // A person's token, and the place for everybody, which only administrators fill.
    let admin =
        Client { space: &space, address: client.address.clone(), token: b.kfbox_ok(&["token"])?.trim().to_owned() };
    let shared = format!("library/{}:1", other.name);
    assert_ne!(run(&mut client.push(&image, &shared))?.code, Some(0));
    run(&mut admin.push(&image, &shared))?.ok()?;
    pod(&other, "shared", &format!("registry.kfbox.local/{shared}"))?;
    assert_eq!(said(&other, "shared")?, "hello-from-the-registry");

    client.skopeo("delete", &format!("{ns}/app:1"))?.ok()?;
    admin.skopeo("delete", &shared)?.ok()?;
    assert_ne!(client.skopeo("inspect", &format!("{ns}/app:1"))?.code, Some(0));
    pod(&space, "late", &format!("registry.kfbox.local/{ns}/app:absent"))?;
    wait_until(LIMIT, "what is missing is said", || {
        let why = space.value("pod/late", "{.status.containerStatuses[0].state.waiting}")?;
        Ok(why.contains("was not found at registry.kfbox.local").then_some(()))
    })
}

/// With the certificate and the token that every pod has.
const ASK: &str = r#"
import base64, ssl, urllib.error, urllib.request
own = "/var/run/secrets/kubernetes.io/serviceaccount/"
context = ssl.create_default_context(cafile=own + "ca.crt")
url = "https://registry.kfbox.local/v2/_catalog"
try:
    urllib.request.urlopen(url, context=context)
except urllib.error.HTTPError as error:
    print(error.code, error.headers["WWW-Authenticate"])
basic = base64.b64encode(b"x:" + open(own + "token", "rb").read()).decode()
print(urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": "Basic " + basic}), context=context).status)
"#;

#[test]
fn pods_reach_the_registry_by_its_name() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let space = Space::new(&b, "registry-name")?;
    let script: Value = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "asks" },
        "spec": { "restartPolicy": "Never", "containers": [
            { "name": "main", "image": "python:3.11", "imagePullPolicy": "IfNotPresent", "command": ["python3", "-c", ASK] },
        ] },
    });
    space.apply(&script.to_string())?;
    assert_eq!(said(&space, "asks")?, "401 Basic realm=\"kfbox\", charset=\"UTF-8\"\n200");
    Ok(())
}

#[test]
fn a_push_that_a_kill_of_the_daemon_broke_is_done_again() -> anyhow::Result<()> {
    let mut b = TestBox::start()?;
    let space = Space::new(&b, "registry-killed")?;
    let (small, large) = (small_image(&space, "small", 0)?, small_image(&space, "large", 256 << 20)?);
    let token = b.kfbox_ok(&["token"])?.trim().to_owned();
    let client = Client { space: &space, address: b.address("registry")?, token };
    let whole = format!("{}/small:1", space.name);
    run(&mut client.push(&small, &whole))?.ok()?;
    let incoming = b.data_dir().join("images/tmp");
    let pushing = Conversation::start(&mut client.push(&large, &format!("{}/large:1", space.name)))?;
    wait_until(LIMIT, "the first megabytes", || {
        let files = fs::read_dir(&incoming).into_iter().flatten().flatten();
        let most = files.filter_map(|file| Some(file.metadata().ok()?.len())).max();
        Ok(most.is_some_and(|bytes| bytes > 1 << 20).then_some(()))
    })?;
    b.kill_daemon()?;
    let (code, words) = pushing.end()?;
    assert_ne!(code, Some(0), "{words:?}");
    b.up(&[])?;
    assert_eq!(fs::read_dir(&incoming)?.count(), 0, "half a blob stays");
    let half = format!("{}/large:1", space.name);
    // Both have another port now.
    let space = Space::new(&b, "registry-after")?;
    let client = Client { space: &space, address: b.address("registry")?, token: client.token };
    assert_ne!(client.skopeo("inspect", &half)?.code, Some(0), "half an image");
    client.skopeo("inspect", &whole)?.ok()?;

    for (name, image) in [("small", &small), ("large", &large)] {
        run(&mut client.push(image, &format!("{}/{name}:1", space.name)))?.ok()?;
        pod(&space, name, &format!("registry.kfbox.local/{}/{name}:1", space.name))?;
        assert_eq!(said(&space, name)?, name);
    }
    Ok(())
}
