//! The command line as a person uses it.

use anyhow::Context as _;
use kfbox_tests::{TestBox, program, run};
use std::process::Command;

#[test]
fn up_again_reports_the_running_box_and_the_password_is_shown_once() -> anyhow::Result<()> {
    let mut b = TestBox::start()?;
    assert!(b.password.as_ref().is_some_and(|p| p.len() >= 12), "{:?}", b.password);
    let pid = b.pid()?;
    let again = b.up(&[])?;
    assert!(again.stdout.contains("already running"), "{}", again.stdout);
    assert!(!again.stdout.contains("Password"), "{}", again.stdout);
    assert_eq!(b.pid()?, pid);

    let status = b.status()?;
    assert_eq!(status["ready"], true, "{status}");
    assert!(status["components"].as_array().is_some_and(|c| c.len() >= 6), "{status}");
    let table = b.kfbox_ok(&["status"])?;
    assert!(table.contains("COMPONENT") && table.contains("kubernetes"), "{table}");
    assert!(!b.log().contains(b.password.as_deref().unwrap_or("?")), "the password reached the log");

    b.kfbox_ok(&["down"])?;
    assert_eq!(b.kfbox(&["status"])?.code, Some(3));
    assert!(b.kfbox_ok(&["down"])?.contains("not running"));
    b.up(&[])?;
    Ok(())
}

#[test]
fn two_ups_at_once_give_one_box() -> anyhow::Result<()> {
    let b = TestBox::prepare()?;
    let mut args = vec!["up".to_owned()];
    args.extend(b.settings());
    let children = (0..2)
        .map(|_| {
            Command::new(program()?)
                .args(&args)
                .env("KFBOX_DATA_DIR", b.data_dir())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .map_err(Into::into)
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let outputs = children.into_iter().map(std::process::Child::wait_with_output).collect::<Result<Vec<_>, _>>()?;
    for output in &outputs {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let passwords = outputs.iter().filter(|o| String::from_utf8_lossy(&o.stdout).contains("Password")).count();
    assert_eq!(passwords, 1, "one of the two shows the password");
    Ok(())
}

#[test]
fn a_kubeconfig_is_merged_into_what_is_there() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("config");
    std::fs::write(
        &path,
        "apiVersion: v1\nkind: Config\ncurrent-context: work\ncontexts:\n- {name: work, context: {cluster: work, user: me}}\n",
    )?;
    b.kfbox_ok(&["kubeconfig", "--merge", path.to_str().unwrap()])?;
    let mut kubectl = Command::new(kfbox_tests::cache_dir().join("bin/kubectl"));
    kubectl.args(["--kubeconfig", path.to_str().unwrap(), "get", "namespaces", "-o", "name"]);
    let names = run(&mut kubectl)?.ok()?.stdout;
    assert!(names.contains("namespace/kubeflow-user-example-com"), "{names}");
    assert!(std::fs::read_to_string(&path)?.contains("name: work"));
    Ok(())
}

#[test]
fn errors_say_the_next_step() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let missing = dir.path().join("none");
    for (args, code) in [
        (vec!["status"], 3),
        (vec!["token"], 3),
        (vec!["image", "list"], 3),
        (vec!["kubeconfig"], 3),
        (vec!["up", "--instance", "Not Valid"], 8),
        (vec!["up", "--pod-cidr", "10.1.2.3/8"], 8),
    ] {
        let output = run(Command::new(program()?).args(&args).env("KFBOX_DATA_DIR", &missing))?;
        assert_eq!(output.code, Some(code), "{args:?}: {output:?}");
        assert!(
            output.stderr.starts_with("error: ") && output.stderr.contains("next: "),
            "{args:?}: {}",
            output.stderr
        );
    }
    let doctor = run(Command::new(program()?).args(["doctor", "--output", "json"]).env("KFBOX_DATA_DIR", &missing))?;
    assert!(serde_json::from_str::<serde_json::Value>(&doctor.stdout)?.as_array().is_some_and(|f| f.len() > 5));
    let completions = run(Command::new(program()?).args(["completions", "bash"]))?.ok()?;
    assert!(completions.stdout.contains("kubeconfig"));
    Ok(())
}

#[test]
fn reset_leaves_the_machine_as_it_was() -> anyhow::Result<()> {
    let b = TestBox::prepare()?;
    let settings = b.settings();
    let instance = settings[1].clone();
    // What of this instance the machine knows: links, firewall tables, mounts.
    let traces = || -> anyhow::Result<Vec<String>> {
        let links = run(Command::new("ip").args(["-o", "link"]))?.ok()?.stdout;
        let tables = run(Command::new("nft").args(["list", "tables"]))?.ok()?.stdout;
        let mounts = std::fs::read_to_string("/proc/mounts")?;
        let all = [links, tables, mounts].concat();
        let mine =
            |line: &&str| line.contains(&format!("{instance}0")) || line.split([' ', '/']).any(|w| w == instance);
        Ok(all.lines().filter(mine).map(String::from).collect())
    };
    // Everything named from where the caller is, which the daemon then leaves.
    let (folder, name) = (b.data_dir().parent().context("a folder")?, b.data_dir().file_name().context("a name")?);
    std::fs::write(folder.join("box.toml"), format!("data_dir = {:?}\n", name.to_string_lossy()))?;
    let mut up = Command::new(program()?);
    up.args(["up", "--config", "box.toml"]).args(&settings).env_remove("KFBOX_DATA_DIR").current_dir(folder);
    run(&mut up)?.ok()?;
    assert_eq!(std::fs::read_link(format!("/proc/{}/cwd", b.pid()?))?, std::path::Path::new("/"));
    assert!(!traces()?.is_empty(), "the bridge and the tables are there while it runs");
    let mut args = vec!["reset".to_owned(), "--yes".to_owned()];
    args.extend(settings);
    b.kfbox(&args)?.ok()?;
    assert_eq!(traces()?, Vec::<String>::new());
    assert!(!b.data_dir().exists());
    Ok(())
}
