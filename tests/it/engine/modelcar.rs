//! A model in an image: pushed into the box's registry by skopeo, imported by its `oci://` address, read by a step where the
//! SDK says that it is. The step runs nothing of the image's.

use crate::pipelines::kfp;
use kfbox_tests::{TestBox, run};
use std::process::Command;

fn tool(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    run(Command::new(program).args(arguments))?.ok().map(drop)
}

#[test]
fn a_model_in_an_image_is_read_where_the_sdk_says() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let folder = tempfile::tempdir()?;
    let (layout, models) = (folder.path().join("layout"), folder.path().join("models"));
    std::fs::create_dir(&models)?;
    std::fs::write(models.join("weights"), "a model of 26 letters")?;
    let image = format!("{}:it", layout.display());
    tool("umoci", &["init", "--layout", layout.to_str().unwrap()])?;
    tool("umoci", &["new", "--image", &image])?;
    tool("umoci", &["insert", "--image", &image, models.to_str().unwrap(), "/models"])?;
    let token = b.kfbox_ok(&["token", "--name", "modelcar", "--expires", "1h"])?;
    let (credentials, name) = (format!("any:{}", token.trim()), format!("{}/modelcar:1", b.namespace()));
    let to = format!("docker://{}/{name}", b.address("registry")?);
    let from = format!("oci:{image}");
    tool("skopeo", &["copy", "-q", "--dest-tls-verify=false", "--dest-creds", &credentials, &from, &to])?;

    let result = kfp(&b, &["modelcar", &format!("oci://registry.kfbox.local/{name}")])?;
    assert_eq!(result["state"], "SUCCEEDED", "{result}\n{}", b.log());
    let run_id = result["run_id"].as_str().unwrap();
    let pods = ["-n", &b.namespace(), "-l", &format!("pipeline/runid={run_id}")].map(str::to_owned);
    let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
    let log = b.kubectl(&[&["logs"], &pods[..]].concat())?.ok()?.stdout;
    assert!(log.contains("a model of 26 letters"), "{log}");
    let mounted =
        b.kubectl(&[&["get", "pods", "-o", "jsonpath={..volumes[*].image.reference}"], &pods[..]].concat())?;
    assert!(mounted.ok()?.stdout.contains(&name));

    // Of an image that is not there the run says so, and does not wait for ever.
    let result = kfp(&b, &["modelcar", "oci://..%2f"])?;
    assert_eq!(result["state"], "FAILED", "{result}");
    assert!(result.to_string().contains("names no image"), "{result}");
    Ok(())
}
