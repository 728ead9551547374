//! People with a browser: Chromium signs in and looks at a run; a namespace is shared on the members page with one, and not
//! with another. Screenshots are kept under `KFBOX_SCREENSHOTS` (default: `screenshots/` in kfbox's cache folder).

use crate::{
    isolation::people::{Person, spec},
    pipelines::kfp,
};
use kfbox_tests::{Python, TestBox, cache_dir, run};
use serde_json::{Value, json};
use std::path::PathBuf;

fn screenshots() -> anyhow::Result<PathBuf> {
    let folder = std::env::var_os("KFBOX_SCREENSHOTS").map_or_else(|| cache_dir().join("screenshots"), PathBuf::from);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

#[test]
fn chromium_signs_in_and_sees_the_run() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let result = kfp(&b, &["two-steps"])?;
    assert_eq!(result["state"], "SUCCEEDED", "{result}");
    let mut command = Python::Clients.script("tests/clients/browser.py");
    command
        .args(["--url", &b.url()?, "--user", &b.user, "--run", result["run_id"].as_str().unwrap(), "--screenshots"])
        .arg(screenshots()?)
        .env("KFBOX_PASSWORD", b.password.clone().unwrap_or_default());
    let output = run(&mut command)?.ok()?;
    let seen: Value = serde_json::from_str(output.stdout.lines().last().unwrap_or_default())?;
    assert_eq!(seen["redirected_to_sign_in"], true, "{seen}");
    assert_eq!(seen["wrong_password_refused"], true, "{seen}");
    let page = seen["run_page"].as_str().unwrap_or_default();
    for part in ["write-dataset", "read-dataset", "Succeeded"] {
        assert!(page.contains(part), "{part:?} is not on the run page: {page}");
    }
    let step = seen["step"].as_str().unwrap_or_default();
    assert!(step.contains("wrote the dataset"), "the step's log: {step}");
    Ok(())
}

#[test]
fn chromium_shares_a_namespace_with_one_and_another_is_refused() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let id = std::process::id();
    let owner = Person::new(&b, &format!("page.owner.{id}"))?;
    let guest = Person::new(&b, &format!("page.guest.{id}"))?;
    let stranger = Person::new(&b, &format!("page.stranger.{id}"))?;
    let api = |path: &str, body: &Value| owner.api("POST", &format!("/pipeline/apis/v2beta1/{path}"), body);
    let name = format!("shared-run-{id}");
    let experiment = api("experiments", &json!({"display_name": name, "namespace": owner.namespace}))?;
    // It goes on until its owner stops it.
    let mut lasting = spec(&name);
    let container = &mut lasting["deploymentSpec"]["executors"]["exec-say"]["container"];
    container["command"] = json!(["sleep", "600"]);
    container["args"] = json!([]);
    let wanted = json!({"display_name": name, "experiment_id": experiment["experiment_id"], "pipeline_spec": lasting});
    let made = api("runs", &wanted)?;
    let run_id = made["run_id"].as_str().unwrap_or_default();

    let mut command = Python::Clients.script("tests/clients/browser_members.py");
    command
        .args(["--url", &b.url()?, "--namespace", &owner.namespace, "--run", run_id, "--run-name", &name])
        .args(["--owner", &owner.email, "--guest", &guest.email, "--stranger", &stranger.email, "--screenshots"])
        .arg(screenshots()?)
        .env("KFBOX_PASSWORD", "a long enough password");
    let output = run(&mut command)?.ok()?;
    let seen: Value = serde_json::from_str(output.stdout.lines().last().unwrap_or_default())?;

    // Who was not let in, and who is no more, gets what the doors of `isolation` give a stranger.
    let nothing = json!({"runs_page": "403", "run_named": false, "run_page": "404", "list": 403, "get": 404});
    let everything = json!({"runs_page": "200", "run_named": true, "run_page": "200", "list": 200, "get": 200});
    for (who, wanted) in [("before", &nothing), ("guest", &everything), ("stranger", &nothing), ("after", &nothing)] {
        assert_eq!(seen[who], *wanted, "{who}: {seen}");
    }
    assert_eq!(seen["guest_changes"], json!({"terminate": 403, "delete": 403, "invite": 403, "expel": 403}), "{seen}");
    let unseen = json!({"terminate": 404, "delete": 404, "invite": 403, "expel": 403});
    assert_eq!(seen["stranger_changes"], unseen, "{seen}");
    assert_eq!(seen["guest_stops"], "403", "{seen}");

    let page = |key: &str| seen[key].as_str().unwrap_or_default();
    assert!(page("unknown_person").contains("nobody signs in to this box as"), "{seen}");
    assert!(page("member_already").contains("has access already: Viewer"), "{seen}");
    assert_eq!(seen["guest_manages"], false, "{seen}");
    let guests = page("guest_members");
    for part in ["Shared with you", "Viewer", &owner.namespace, &owner.email] {
        assert!(guests.contains(part), "{part:?} is not on the guest's page: {guests}");
    }
    for others in ["stranger_members", "guest_members_after"] {
        assert!(!page(others).contains(&owner.namespace), "{others}: {seen}");
        assert!(page(others).contains("Members"), "{others}: {seen}");
    }
    Ok(())
}
