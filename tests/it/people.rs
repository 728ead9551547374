//! People, their tokens and their sessions, from the command line and through the gateway.

use crate::isolation::people::{Person, ask, spec};
use kfbox_tests::{TestBox, run, run_with_input, wait_until};
use serde_json::{Value, json};
use std::{process::Command, time::Duration};

/// The status of a request to the gateway.
fn status_of(b: &TestBox, path: &str, more: &[&str]) -> anyhow::Result<String> {
    let url = format!("{}{path}", b.url()?);
    let mut curl = Command::new("curl");
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "20"]).args(more).arg(url);
    Ok(run(&mut curl)?.ok()?.stdout)
}

fn with_token(b: &TestBox, token: &str) -> anyhow::Result<String> {
    status_of(b, "/oauth2/userinfo", &["-H", &format!("Authorization: Bearer {}", token.trim())])
}

/// Signs in as the page's form does, and returns the file with the cookie.
fn sign_in(b: &TestBox, email: &str, password: &str) -> anyhow::Result<String> {
    let jar = b.scratch()?.join(format!("{email}.cookies")).to_string_lossy().into_owned();
    let form = [format!("login={email}"), format!("password={password}")];
    let data = ["--data-urlencode", &form[0], "--data-urlencode", &form[1], "-c", &jar];
    let status = status_of(b, "/dex/auth/local/login", &data)?;
    anyhow::ensure!(status == "303", "signing in as {email} was answered with {status}");
    Ok(jar)
}

fn kfbox_with_input(b: &TestBox, args: &[&str], input: &str) -> anyhow::Result<String> {
    let mut command = Command::new(kfbox_tests::program()?);
    command.args(args).env("KFBOX_DATA_DIR", b.data_dir());
    Ok(run_with_input(&mut command, input)?.ok()?.stdout)
}

fn rows(b: &TestBox, args: &[&str]) -> anyhow::Result<Vec<Value>> {
    let list: Value = serde_json::from_str(&b.kfbox_ok(&[args, &["-o", "json"]].concat())?)?;
    Ok(list.as_array().cloned().unwrap_or_default())
}

#[test]
fn a_person_is_added_signs_in_and_can_be_shut_out() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let email = format!("ann.{}@example.com", std::process::id());
    let namespace = format!("kubeflow-{}", email.replace(['.', '@'], "-"));
    let password = "a long enough password";
    let added = kfbox_with_input(&b, &["user", "add", &email, "--group", "team"], &format!("{password}\n"))?;
    assert!(added.contains(&namespace), "{added}");
    let users = rows(&b, &["user", "list"])?;
    let ann = users.iter().find(|u| u["email"] == *email).unwrap();
    assert_eq!((&ann["disabled"], &ann["groups"][0]), (&Value::Bool(false), &Value::String("team".into())));
    assert_ne!(b.kfbox(&["user", "list", "-o", "table"])?.ok()?.stdout.find(&namespace), None);

    let jar = sign_in(&b, &email, password)?;
    let sessions = rows(&b, &["session", "list", "--user", &email])?;
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    assert_eq!(status_of(&b, "/oauth2/userinfo", &["-b", &jar])?, "200");
    b.kfbox_ok(&["session", "revoke", sessions[0]["id"].as_str().unwrap()])?;
    assert_eq!(status_of(&b, "/oauth2/userinfo", &["-b", &jar])?, "401", "the session was ended");

    let token = b.kfbox_ok(&["token", "--user", &email, "--name", "laptop"])?;
    let narrow = b.kfbox_ok(&["token", "create", "--user", &email, "--name", "kube", "--scope", "kubernetes"])?;
    assert_eq!(with_token(&b, &token)?, "200");
    assert_eq!(with_token(&b, &narrow)?, "401", "its scope is the Kubernetes API");
    let tokens = rows(&b, &["token", "list", "--user", &email])?;
    assert_eq!(tokens.len(), 2, "{tokens:?}");
    assert!(!format!("{tokens:?}").contains(token.trim()), "secrets are not listed");
    let laptop = tokens.iter().find(|t| t["name"] == "laptop").unwrap();
    b.kfbox_ok(&["token", "revoke", laptop["id"].as_str().unwrap()])?;
    assert_eq!(with_token(&b, &token)?, "401");

    let token = b.kfbox_ok(&["token", "--user", &email])?;
    let jar = sign_in(&b, &email, password)?;
    b.kfbox_ok(&["user", "disable", &email])?;
    assert_eq!(with_token(&b, &token)?, "401");
    assert_eq!(status_of(&b, "/oauth2/userinfo", &["-b", &jar])?, "401");
    assert!(sign_in(&b, &email, password).is_err(), "a disabled person signs in");
    b.kfbox_ok(&["user", "enable", &email])?;
    assert_eq!(with_token(&b, &token)?, "200", "tokens are kept");

    let removed = b.kfbox_ok(&["user", "remove", &email])?;
    assert!(removed.contains(&format!("kubectl delete profile {namespace}")), "{removed}");
    assert_eq!(with_token(&b, &token)?, "401");
    assert!(b.kubectl(&["get", "namespace", &namespace])?.ok().is_ok(), "what was theirs stays");
    for args in [
        ["user", "remove", &email],
        ["user", "disable", &email],
        ["token", "revoke", "nothing"],
        ["session", "revoke", "nothing"],
    ] {
        let output = b.kfbox(&args)?;
        assert_eq!(output.code, Some(1), "{args:?}");
        assert!(output.stderr.contains("next: "), "{args:?}: {}", output.stderr);
    }
    b.kubectl(&["delete", "profile", &namespace, "--wait=false"])?.ok()?;
    Ok(())
}

#[test]
fn the_sign_in_log_tells_who_came_and_what_was_changed_and_holds_no_password() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let email = format!("told.{}@example.com", std::process::id());
    let (first, second, wrong) = ("the first long password", "the second long password", "a guessed password");
    kfbox_with_input(&b, &["user", "add", &email], &format!("{first}\n"))?;
    assert!(sign_in(&b, &email, wrong).is_err(), "a wrong password is as good as the right one");
    sign_in(&b, &email, first)?;
    kfbox_with_input(&b, &["user", "passwd", &email], &format!("{second}\n"))?;
    assert!(sign_in(&b, &email, first).is_err(), "the old password is still good");
    sign_in(&b, &email, second)?;
    b.kfbox_ok(&["user", "remove", &email])?;

    let path = b.data_dir().join("sign-in.log");
    let said = wait_until(Duration::from_secs(10), "the line of the removal", || {
        let text = std::fs::read_to_string(&path)?;
        // The last line may be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<Value>, _>>()?;
        let own = lines.into_iter().filter(|line| line["user"] == *email);
        let said: Vec<String> = own.filter_map(|line| line["message"].as_str().map(str::to_owned)).collect();
        Ok(said.iter().any(|message| message == "user removed").then_some(said))
    })?;
    let expected =
        ["user added", "sign-in failed", "signed in", "password set", "sign-in failed", "signed in", "user removed"];
    assert_eq!(said, expected);
    let text = std::fs::read_to_string(&path)?;
    for secret in [first, second, wrong] {
        assert!(!text.contains(secret), "a password is in the sign-in log");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata()?.permissions());
    assert_eq!(mode & 0o777, 0o600);
    let namespace = format!("kubeflow-{}", email.replace(['.', '@'], "-"));
    b.kubectl(&["delete", "profile", &namespace, "--wait=false"])?.ok()?;
    Ok(())
}

#[test]
fn a_person_changes_their_own_password_on_the_page() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let email = format!("own.{}@example.com", std::process::id());
    let (first, second) = ("the first own password", "the second own password");
    kfbox_with_input(&b, &["user", "add", &email], &format!("{first}\n"))?;
    let jar = sign_in(&b, &email, first)?;
    let elsewhere = format!("{jar}.elsewhere");
    std::fs::rename(&jar, &elsewhere)?;
    let here = sign_in(&b, &email, first)?;
    let change = |current: &str, more: &[&str]| {
        let fields = [format!("current={current}"), format!("new={second}"), format!("again={second}")];
        let mut args = vec!["-b", here.as_str(), "-c", here.as_str()];
        args.extend(fields.iter().flat_map(|field| ["--data-urlencode", field.as_str()]));
        args.extend(more);
        status_of(&b, "/oauth2/password", &args)
    };
    assert_eq!(change("a guessed password", &[])?, "401");
    assert_eq!(change(first, &["-H", "Origin: https://evil.example"])?, "403");
    assert_eq!(status_of(&b, "/oauth2/userinfo", &["-b", &elsewhere])?, "200");
    assert_eq!(change(first, &[])?, "303");
    assert_eq!(status_of(&b, "/oauth2/userinfo", &["-b", &here])?, "200", "this browser stays signed in");
    assert_eq!(status_of(&b, "/oauth2/userinfo", &["-b", &elsewhere])?, "401", "every other session has ended");
    assert!(sign_in(&b, &email, first).is_err(), "the old password is still good");
    sign_in(&b, &email, second)?;
    b.kfbox_ok(&["user", "remove", &email])?;
    let namespace = format!("kubeflow-{}", email.replace(['.', '@'], "-"));
    b.kubectl(&["delete", "profile", &namespace, "--wait=false"])?.ok()?;
    Ok(())
}

#[test]
fn people_of_a_dex_configuration_keep_their_passwords() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let id = std::process::id();
    let make = "import crypt; print(crypt.crypt('12341234', crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=1 << 4)))";
    let hash = run(Command::new("/usr/bin/python3").args(["-W", "ignore", "-c", make]))?.ok()?.stdout;
    let config = format!(
        "staticPasswords:\n- email: dex.{id}@example.com\n  hash: \"{}\"\n  username: dex\n- email: plain.{id}@example.com\n  \
         hash: 12341234\n",
        hash.trim()
    );
    let mut command = Command::new(kfbox_tests::program()?);
    command.args(["user", "import", "-"]).env("KFBOX_DATA_DIR", b.data_dir());
    let output = run_with_input(&mut command, &config)?;
    assert_eq!(output.code, Some(1), "one of the two cannot be added");
    assert!(output.stdout.contains(&format!("added dex.{id}@example.com")), "{}", output.stdout);
    assert!(output.stderr.contains(&format!("plain.{id}@example.com")), "{}", output.stderr);
    sign_in(&b, &format!("dex.{id}@example.com"), "12341234")?;
    b.kfbox_ok(&["user", "remove", &format!("dex.{id}@example.com")])?;
    b.kubectl(&["delete", "profile", &format!("kubeflow-dex-{id}-example-com"), "--wait=false"])?.ok()?;
    Ok(())
}

#[test]
fn what_a_disabled_person_scheduled_starts_nothing_more() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let person = Person::new(&b, &format!("scheduler.{}", std::process::id()))?;
    let api = |path: &str, body: &Value| person.api("POST", &format!("/pipeline/apis/v2beta1/{path}"), body);
    let experiment = api("experiments", &json!({"display_name": "often", "namespace": person.namespace}))?;
    // What is overdue is caught up with, one after the other: nobody waits for ten seconds to pass.
    let since = run(Command::new("date").args(["-u", "-d", "-5 min", "+%FT%TZ"]))?.ok()?.stdout;
    let made = api(
        "recurringruns",
        &json!({"display_name": "often", "experiment_id": experiment["experiment_id"], "pipeline_spec": spec("often"),
            "trigger": {"periodic_schedule": {"interval_second": "10", "start_time": since.trim()}}, "mode": "ENABLE",
            "max_concurrency": "1"}),
    )?;
    let id = made["recurring_run_id"].as_str().unwrap_or_default().to_owned();
    let admin = b.kfbox_ok(&["token"])?.trim().to_owned();
    let all = format!("{}/pipeline/apis/v2beta1/runs?page_size=100&namespace={}", b.url()?, person.namespace);
    let runs = || {
        let (status, text) = ask(&all, &admin, "GET", None)?;
        anyhow::ensure!(status == 200, "{text}");
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["runs"].as_array().map_or(0, Vec::len))
    };
    wait_until(Duration::from_secs(60), "the first run", || Ok((runs()? > 0).then_some(())))?;
    b.kfbox_ok(&["user", "disable", &person.email])?;
    let refusals = || {
        let log = std::fs::read_to_string(b.data_dir().join("kfbox.log"))?;
        Ok::<_, anyhow::Error>(log.lines().filter(|l| l.contains("could not start its run") && l.contains(&id)).count())
    };
    let more = |than: usize| {
        wait_until(Duration::from_secs(60), "a refusal", || Ok(Some(refusals()?).filter(|found| *found > than)))
    };
    let (first, before) = (more(0)?, runs()?);
    more(first + 1)?;
    assert_eq!(runs()?, before, "the schedule goes on, and starts nothing");
    b.kfbox_ok(&["user", "enable", &person.email])?;
    wait_until(Duration::from_secs(60), "a run of somebody who is back", || Ok((runs()? > before).then_some(())))?;
    let recurring = format!("{}/pipeline/apis/v2beta1/recurringruns/{id}", b.url()?);
    assert_eq!(ask(&recurring, &admin, "DELETE", None)?.0, 200);
    Ok(())
}

/// Asks for a profile of one's own, as the dashboard's first page does.
fn register(b: &TestBox, person: &Person<'_>) -> anyhow::Result<(Value, u16)> {
    let url = b.url()?;
    let (status, text) = ask(&format!("{url}/api/workgroup/exists"), &person.token, "GET", None)?;
    anyhow::ensure!(status == 200, "{text}");
    let exists: Value = serde_json::from_str(&text)?;
    let wanted = json!({"namespace": person.namespace});
    let (status, _) = ask(&format!("{url}/api/workgroup/create"), &person.token, "POST", Some(&wanted))?;
    Ok((exists["registrationFlowAllowed"].clone(), status))
}

#[test]
fn who_has_no_profile_makes_one_unless_the_box_says_no() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let person = Person::new(&b, &format!("settler{}", std::process::id()))?;
    assert_eq!(register(&b, &person)?, (json!(true), 409), "one each");
    b.kubectl(&["delete", "profile", &person.namespace, "--timeout=120s"])?.ok()?;
    wait_until(Duration::from_secs(120), "the namespace's end", || {
        let left = b.kubectl(&["get", "namespace", &person.namespace, "--ignore-not-found"])?.ok()?.stdout;
        Ok(left.trim().is_empty().then_some(()))
    })?;
    assert_eq!(register(&b, &person)?, (json!(true), 200));
    let profile = format!("profile/{}", person.namespace);
    b.kubectl(&["wait", "--for=condition=Successful", &profile, "--timeout=60s"])?.ok()?;

    let mut closed = TestBox::prepare()?;
    let file = closed.scratch()?.join("closed.toml");
    std::fs::write(&file, "[profiles]\nregistration = false\n")?;
    closed.up(&["--config", &file.to_string_lossy()])?;
    let person = Person::new(&closed, "settler")?;
    assert_eq!(register(&closed, &person)?, (json!(false), 403));
    Ok(())
}
