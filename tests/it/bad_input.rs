//! What goes wrong from outside: each is refused with a reason, and nothing is lost.

use kfbox_tests::TestBox;
use std::{net::TcpListener, process::Command};

#[test]
fn a_port_in_use_is_named_with_what_to_do() -> anyhow::Result<()> {
    let b = TestBox::prepare()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let mut args = vec!["up".to_owned()];
    args.extend(b.settings());
    let place = args.iter().position(|a| a == "--address").unwrap() + 1;
    args[place].clone_from(&address);
    let output = b.kfbox(&args)?;
    assert_eq!(output.code, Some(5), "{output:?}");
    assert!(output.stderr.contains(&address) && output.stderr.contains("next: "), "{}", output.stderr);
    drop(taken);
    let again = b.kfbox(&args)?;
    assert_eq!(again.code, Some(0), "{again:?}");
    Ok(())
}

#[test]
fn a_data_directory_of_a_newer_version_is_left_alone() -> anyhow::Result<()> {
    let mut b = TestBox::start()?;
    b.kfbox_ok(&["down"])?;
    let database = b.data_dir().join("pipelines.db");
    let sqlite = |sql: &str| kfbox_tests::run(Command::new("sqlite3").arg(&database).arg(sql));
    let version = sqlite("PRAGMA user_version")?.ok()?.stdout.trim().to_owned();
    sqlite("PRAGMA user_version = 9999")?.ok()?;
    let mut args = vec!["up".to_owned()];
    args.extend(b.settings());
    let output = b.kfbox(&args)?;
    assert_eq!(output.code, Some(6), "{output:?}");
    assert!(output.stderr.contains("newer") && output.stderr.contains("next: "), "{}", output.stderr);
    assert_eq!(sqlite("PRAGMA user_version")?.ok()?.stdout.trim(), "9999");
    sqlite(&format!("PRAGMA user_version = {version}"))?.ok()?;
    b.up(&[])?;
    Ok(())
}

/// A small tmpfs in place of the object store's folder, unmounted when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: &std::path::Path, size: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path)?;
        let options = format!("size={size}");
        nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_while_an_artifact_is_written_fails_the_step_and_nothing_else() -> anyhow::Result<()> {
    let mut b = TestBox::prepare()?;
    let disk = SmallDisk::mount(&b.data_dir().join("objects"), "8m")?;
    b.up(&[])?;
    b.load_python_image()?;
    let dir = tempfile::tempdir()?;
    let script = dir.path().join("large.py");
    std::fs::write(&script, LARGE)?;
    let token = b.kfbox_ok(&["token"])?;
    let mut command = Command::new(kfbox_tests::Python::Clients.program());
    command.arg(&script).args([&format!("{}/pipeline", b.url()?), token.trim(), &b.namespace()]);
    let output = kfbox_tests::run(&mut command)?.ok()?;
    let result: serde_json::Value = serde_json::from_str(output.stdout.lines().last().unwrap_or_default())?;
    assert_eq!(result["state"], "FAILED", "{result}");
    let error = result["error"].as_str().unwrap_or_default().to_lowercase();
    assert!(error.contains("full") || error.contains("space"), "{error}");
    // The rest of the box goes on, and a small artifact fits.
    assert_eq!(b.status()?["ready"], true);
    let small = crate::pipelines::kfp(&b, &["two-steps"])?;
    assert_eq!(small["state"], "SUCCEEDED", "{small}\n{}", b.log());
    b.kfbox_ok(&["down"])?;
    drop(disk);
    Ok(())
}

const LARGE: &str = r#"
import json, sys
import kfp
from kfp import dsl

@dsl.component
def large(data: dsl.Output[dsl.Dataset]):
    with open(data.path, "wb") as out:
        out.write(b"x" * (32 << 20))

@dsl.pipeline(name="large-artifact")
def pipeline():
    large()

host, token, namespace = sys.argv[1:]
client = kfp.Client(host=host, existing_token=token)
run_id = client.create_run_from_pipeline_func(pipeline, arguments={}, namespace=namespace, experiment_name="tests").run_id
run = client.wait_for_run_completion(run_id, timeout=180, sleep_duration=1)
print(json.dumps({"state": run.state, "error": run.error.message if run.error else None}))
"#;
