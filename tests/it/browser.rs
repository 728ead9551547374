//! A person with a browser: Chromium signs in and looks at a run. Screenshots are kept under `KFBOX_SCREENSHOTS`
//! (default: `screenshots/` in kfbox's cache folder).

use crate::pipelines::kfp;
use kfbox_tests::{Python, TestBox, cache_dir, run};

#[test]
fn chromium_signs_in_and_sees_the_run() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let result = kfp(&b, &["two-steps"])?;
    assert_eq!(result["state"], "SUCCEEDED", "{result}");
    let folder = std::env::var_os("KFBOX_SCREENSHOTS").map_or_else(|| cache_dir().join("screenshots"), Into::into);
    std::fs::create_dir_all(&folder)?;
    let mut command = Python::Clients.script("tests/clients/browser.py");
    command
        .args(["--url", &b.url()?, "--user", &b.user, "--run", result["run_id"].as_str().unwrap(), "--screenshots"])
        .arg(&folder)
        .env("KFBOX_PASSWORD", b.password.clone().unwrap_or_default());
    let output = run(&mut command)?.ok()?;
    let seen: serde_json::Value = serde_json::from_str(output.stdout.lines().last().unwrap_or_default())?;
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
