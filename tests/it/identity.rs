//! Signing in with unmodified clients: Authlib and the kfp SDK at the OpenID Connect provider, kubectl with a
//! credential plugin, curl and Python over TLS.

use crate::isolation::people::{ask, spec};
use anyhow::Context;
use kfbox_tests::{
    AcmeServer, Output, Python, Running, TestBox, cache_dir, program, run, run_with_input, slapd, wait_until,
};
use serde_json::{Value, json};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

const CLIENTS: &str = r#"
[[gateway.clients]]
id = "laptop"
name = "A program on a laptop"
public = true
redirectURIs = ["http://127.0.0.1:9/callback"]

[[gateway.clients]]
id = "notebook"
secret = "a-secret-of-the-notebook"
redirectURIs = ["http://127.0.0.1:9/callback"]

[[gateway.clients]]
id = "service"
secret = "a-secret-of-the-service"
grants = ["token-exchange"]
"#;

struct Own {
    b: TestBox,
    dir: tempfile::TempDir,
}

/// A box of the test's own with this configuration and these flags.
fn own(config: &str, flags: &[&str]) -> anyhow::Result<Own> {
    let dir = tempfile::Builder::new().prefix("kfbox-it-identity-").tempdir()?;
    let mut b = TestBox::prepare()?;
    let file = dir.path().join("config.toml");
    std::fs::write(&file, config)?;
    b.up(&[&["--config", text(&file)?], flags].concat())?;
    Ok(Own { b, dir })
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("path")
}

impl Own {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn python(&self, script: &str) -> anyhow::Result<Command> {
        let mut command = Python::Clients.script(&format!("tests/clients/{script}.py"));
        command
            .env("KFBOX_URL", self.b.url()?)
            .env("KFBOX_EMAIL", &self.b.user)
            .env("KFBOX_PASSWORD", self.b.password.as_deref().context("no password was printed")?)
            .env("KFBOX_NAMESPACE", self.b.namespace())
            .env("HOME", self.dir.path());
        Ok(command)
    }

    fn curl(&self, args: &[&str]) -> anyhow::Result<Output> {
        run(Command::new("curl").args(["-sS", "-m", "20"]).args(args))
    }
}

#[test]
fn authlib_and_the_kfp_sdk_sign_in_every_way_that_is_documented() -> anyhow::Result<()> {
    let own = own(CLIENTS, &[])?;
    run(&mut own.python("oidc_client")?)?.ok()?;
    // What a client may not have is told before anything starts.
    let file = own.path("wrong.toml");
    std::fs::write(&file, "[[gateway.clients]]\nid = \"x\"\nredirectURIs = [\"https://x.example/cb\"]\n")?;
    own.b.kfbox_ok(&["down"])?;
    let mut args: Vec<String> = vec!["up".into(), "--config".into(), text(&file)?.into()];
    args.extend(own.b.settings());
    let output = own.b.kfbox(&args)?;
    assert_eq!(output.code, Some(8), "{output:?}");
    assert!(output.stderr.contains("public = true") && output.stderr.contains("next: "), "{}", output.stderr);
    Ok(())
}

/// kubectl as a person has it who was given the file: no administrator's key anywhere.
struct Person<'a> {
    own: &'a Own,
    config: PathBuf,
    ca: PathBuf,
}

impl Person<'_> {
    fn kubectl(&self, args: &[&str]) -> anyhow::Result<Command> {
        let folder = program()?.parent().context("no folder")?.to_owned();
        let path = format!("{}:/usr/bin:/bin", folder.display());
        let mut command = Command::new(cache_dir().join("bin/kubectl"));
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.own.dir.path())
            .env("KUBECONFIG", &self.config)
            .args(args);
        Ok(command)
    }

    fn kept(&self) -> anyhow::Result<PathBuf> {
        let folder = self.own.path(".kube/cache/kfbox-oidc");
        let mut found = std::fs::read_dir(folder)?.filter_map(Result::ok).map(|e| e.path());
        found.find(|p| p.extension().is_some_and(|e| e == "json")).context("no sign-in is kept")
    }

    /// Starts kubectl, answers the code that it shows in a browser's place, and returns what it printed.
    fn kubectl_signing_in(&self, args: &[&str], answer: &str) -> anyhow::Result<(bool, String)> {
        let (out, err) = (self.own.path("out"), self.own.path("err"));
        let mut command = self.kubectl(args)?;
        command.stdout(File::create(&out)?).stderr(File::create(&err)?);
        let mut running = Running::spawn(&mut command)?;
        let page = wait_until(Duration::from_secs(30), "the code", || {
            let shown = std::fs::read_to_string(&err)?;
            Ok(shown.split_whitespace().find(|w| w.contains("/dex/device?user_code=")).map(str::to_owned))
        })?;
        let code = page.split('=').nth(1).context("no code")?.to_owned();
        self.answer(&code, answer)?;
        let ended = wait_until(Duration::from_secs(60), "kubectl's end", || Ok(running.0.try_wait()?))?;
        Ok((ended.success(), std::fs::read_to_string(&out)? + &std::fs::read_to_string(&err)?))
    }

    fn answer(&self, code: &str, answer: &str) -> anyhow::Result<()> {
        let url = self.own.b.url()?;
        let jar = self.own.path("jar");
        let (jar, ca) = (text(&jar)?, text(&self.ca)?);
        let password = format!("password={}", self.own.b.password.as_deref().context("no password")?);
        let login = format!("login={}", self.own.b.user);
        let page = format!("{url}/dex/auth/local/login");
        self.own
            .curl(&["--cacert", ca, "-c", jar, "--data-urlencode", &login, "--data-urlencode", &password, &page])?
            .ok()?;
        let form = format!("user_code={code}&approval={answer}");
        let page = format!("{url}/dex/device/auth/verify_code");
        let said = self.own.curl(&["--cacert", ca, "-b", jar, "-d", &form, &page])?.ok()?.stdout;
        anyhow::ensure!(said.contains("Connected") || said.contains("Refused"), "{said}");
        Ok(())
    }
}

#[test]
fn kubectl_signs_a_person_in_through_the_box_over_tls() -> anyhow::Result<()> {
    let own = own("", &["--tls"])?;
    let (config, ca) = (own.path("kubeconfig"), own.path("ca.crt"));
    own.b.kfbox_ok(&["kubeconfig", "--oidc", "--output", text(&config)?])?;
    std::fs::write(&ca, own.b.kfbox_ok(&["trust", "--print"])?)?;
    let given = std::fs::read_to_string(&config)?;
    assert!(!given.contains("client-key-data") && given.contains("exec:"), "{given}");
    let person = Person { own: &own, config, ca };
    let whoami = ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"];

    let (fine, said) = person.kubectl_signing_in(&whoami, "deny")?;
    assert!(!fine && said.contains("the user said no"), "{said}");
    let (fine, said) = person.kubectl_signing_in(&whoami, "approve")?;
    assert!(fine && said.starts_with(&own.b.user), "{said}");
    // From now on nobody is asked.
    let output = run(&mut person.kubectl(&whoami)?)?.ok()?;
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), (own.b.user.as_str(), ""));

    // An ID token that ended: several at once renew it, and none uses a refresh token twice.
    let kept = person.kept()?;
    let mut stored: serde_json::Value = serde_json::from_slice(&std::fs::read(&kept)?)?;
    let refresh = stored["refresh_token"].as_str().context("no refresh token")?.to_owned();
    stored["id_token"] = "e30.e30.x".into();
    std::fs::write(&kept, stored.to_string())?;
    let many: Vec<_> = (0..4)
        .map(|_| Ok(person.kubectl(&whoami)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?))
        .collect::<anyhow::Result<_>>()?;
    for one in many {
        let output = one.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(said, own.b.user);
    }
    let now: serde_json::Value = serde_json::from_slice(&std::fs::read(&kept)?)?;
    assert_ne!(now["refresh_token"].as_str(), Some(refresh.as_str()), "it was renewed");

    // After signing out, what was kept is worth nothing.
    let exec: serde_json::Value =
        serde_json::from_str(&run(&mut person.kubectl(&["config", "view", "--raw", "-o", "json"])?)?.ok()?.stdout)?;
    let args: Vec<&str> =
        exec["users"][0]["user"]["exec"]["args"].as_array().into_iter().flatten().filter_map(|a| a.as_str()).collect();
    let mut out = Command::new(program()?);
    run(out.args(&args).arg("--sign-out").env("HOME", own.dir.path()))?.ok()?;
    assert!(!kept.exists());
    let form = format!(
        "grant_type=refresh_token&client_id=kfbox-cli&refresh_token={}",
        now["refresh_token"].as_str().unwrap_or("")
    );
    let said =
        own.curl(&["--cacert", text(&person.ca)?, "-d", &form, &format!("{}/dex/token", own.b.url()?)])?.ok()?.stdout;
    assert!(said.contains("invalid_grant"), "{said}");
    let stored = own.b.kfbox_ok(&["session", "list", "-o", "json"])?;
    assert!(stored.contains(&own.b.user), "the browser's own session stays");
    Ok(())
}

#[test]
fn curl_and_python_trust_the_box_and_old_tls_is_refused() -> anyhow::Result<()> {
    let own = own("", &["--tls"])?;
    let url = own.b.url()?;
    let address = own.b.address("gateway")?;
    assert_eq!(url, format!("https://{address}"));
    let ca = own.path("ca.crt");
    std::fs::write(&ca, own.b.kfbox_ok(&["trust", "--print"])?)?;
    let ca = text(&ca)?;
    let code = |args: &[&str]| own.curl(&[&["-o", "/dev/null", "-w", "%{http_code} %{http_version}"], args].concat());
    assert_eq!(code(&["--cacert", ca, &format!("{url}/healthz")])?.ok()?.stdout, "200 2");
    assert_eq!(code(&["--cacert", ca, "--http1.1", &format!("{url}/healthz")])?.ok()?.stdout, "200 1.1");
    let localhost = format!("https://localhost:{}/healthz", address.rsplit(':').next().unwrap_or(""));
    assert_eq!(code(&["--cacert", ca, "-4", &localhost])?.ok()?.stdout, "200 2");
    assert_eq!(code(&[&format!("{url}/healthz")])?.code, Some(60), "nobody trusts it unasked");
    // The flags give an OpenSSL that would speak them, so that the refusal is the box's.
    for (version, fine) in [("-tls1_1", false), ("-tls1", false), ("-tls1_2", true), ("-tls1_3", true)] {
        let args = ["s_client", "-connect", &address, version, "-CAfile", ca, "-verify_return_error"];
        let low = ["-cipher", "ALL:@SECLEVEL=0"];
        let output = run(Command::new("openssl").args(args).args(if fine { &[][..] } else { &low }))?;
        assert_eq!(output.code == Some(0), fine, "{version}: {output:?}");
        // An alert is what the other side sent: the refusal is the box's, not OpenSSL's own.
        assert!(fine || output.stderr.contains("SSL alert number"), "{version}: {output:?}");
    }
    // A typed http:// is led to https, by the box's own name.
    let plain = own.curl(&["-i", &format!("http://{address}/runs?x=1"), "-H", "Host: evil.example"])?.ok()?.stdout;
    assert!(plain.to_lowercase().contains(&format!("location: {url}/runs?x=1")), "{plain}");
    assert_eq!(code(&["-d", "login=x", &format!("http://{address}/dex/auth/local/login")])?.ok()?.stdout, "400 1.1");
    // The cookie is for https alone.
    let password = format!("password={}", own.b.password.as_deref().context("no password")?);
    let login = format!("login={}", own.b.user);
    let form = ["--data-urlencode", &login, "--data-urlencode", &password];
    let page = format!("{url}/dex/auth/local/login");
    let answer = own.curl(&[&["--cacert", ca, "-i"], &form[..], &[&page]].concat())?.ok()?.stdout.to_lowercase();
    assert!(answer.contains("set-cookie: oauth2_proxy_kubeflow=") && answer.contains("; secure"), "{answer}");
    assert!(!answer.contains("strict-transport-security"), "not with a certificate that browsers warn of");

    let mut python = own.python("tls")?;
    python.args(["trusted", ca]).env("KFBOX_TOKEN", own.b.kfbox_ok(&["token"])?.trim());
    run(&mut python)?.ok()?;
    // `kfbox trust` into another root, as for an image: Debian's own tool makes the bundle.
    let root = own.path("root");
    let root = text(&root)?;
    // Another authority is there too, as on any machine: the bundle is made anew when ours goes.
    let local = own.path("root/usr/local/share/ca-certificates");
    std::fs::create_dir_all(&local)?;
    let (other, key) = (local.join("other.crt"), own.path("other.key"));
    let make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=other";
    let mut openssl = Command::new("openssl");
    run(openssl.args(make.split(' ')).args(["-keyout", text(&key)?, "-out", text(&other)?]))?.ok()?;
    own.b.kfbox_ok(&["trust", "--root", root])?;
    let again = own.b.kfbox_ok(&["trust", "--root", root])?;
    assert!(again.contains("already trusted"), "{again}");
    let variables = own.b.kfbox_ok(&["trust", "--root", root, "--env"])?;
    let bundle = variables.lines().find_map(|l| l.strip_prefix("export SSL_CERT_FILE=")).context("no variable")?;
    assert_eq!(code(&["--cacert", bundle, &format!("{url}/healthz")])?.ok()?.stdout, "200 2");
    own.b.kfbox_ok(&["trust", "--root", root, "--remove"])?;
    assert_eq!(code(&["--cacert", bundle, &format!("{url}/healthz")])?.code, Some(60), "trusted after its removal");
    assert_eq!(own.b.kfbox(&["trust", "--root", root, "--env"])?.code, Some(1));
    Ok(())
}

#[test]
fn a_certificate_of_ones_own_is_read_again_without_dropping_a_connection() -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("kfbox-it-tls-").tempdir()?;
    let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    let (certificate, key) = (text(&certificate)?, text(&key)?);
    let make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=first -addext subjectAltName=IP:127.0.0.1";
    let mut openssl = Command::new("openssl");
    run(openssl.args(make.split(' ')).args(["-keyout", key, "-out", certificate]))?.ok()?;
    let own = own("", &["--tls", "files", "--tls-certificate", certificate, "--tls-key", key])?;
    run(own.python("tls")?.args(["reload", certificate, key]))?.ok()?;
    // A key that is gone is told at the next start, with what to do.
    std::fs::remove_file(key)?;
    own.b.kfbox_ok(&["down"])?;
    let mut args: Vec<String> = vec!["up".into(), "--tls".into(), "files".into()];
    args.extend(["--tls-certificate", certificate, "--tls-key", key].map(String::from));
    args.extend(own.b.settings());
    let output = own.b.kfbox(&args)?;
    assert_eq!(output.code, Some(8), "{output:?}");
    assert!(output.stderr.contains("gateway.tls") && output.stderr.contains(key), "{}", output.stderr);
    Ok(())
}

#[test]
fn a_box_has_its_certificate_from_an_acme_server_also_when_it_is_killed_on_the_way() -> anyhow::Result<()> {
    let mut server = AcmeServer::start(&json!({"life": 18}), None)?;
    server.watch()?;
    server.hold()?;
    let dir = tempfile::Builder::new().prefix("kfbox-it-acme-").tempdir()?;
    let (file, ca) = (dir.path().join("config.toml"), server.authority());
    let config = format!(
        "[gateway.tls]\nmode = \"acme\"\nnames = [\"{}\", \"{}\"]\n[gateway.tls.acme]\nterms_agreed = true\n\
         directory = \"{}\"\nca_bundle = \"{}\"\ncontact = [\"ops@lab.example\"]\nhttp_address = \"{}:80\"\n",
        kfbox_tests::ACME_NAME,
        server.address,
        server.directory,
        text(&ca)?,
        server.address
    );
    std::fs::write(&file, &config)?;
    let mut b = TestBox::prepare()?;
    b.listen_at(&format!("{}:443", server.address));
    let up = ["--config", text(&file)?];
    b.up(&up)?;
    let resolve = format!("{}:443:{}", kfbox_tests::ACME_NAME, server.address);
    let url = format!("https://{}", kfbox_tests::ACME_NAME);
    assert_eq!(b.url()?, url);
    let page = format!("{url}/healthz");
    // Whoever trusts this authority: the certificate's serial number.
    let trusted = |authority: &Path| -> anyhow::Result<Option<String>> {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code} %{certs}", "--resolve", &resolve]);
        let output = run(curl.args(["--cacert", text(authority)?, &page]))?;
        let serial = output.stdout.lines().find(|l| l.starts_with("Serial Number")).map(str::to_owned);
        Ok(serial.filter(|_| output.stdout.starts_with("200 ")))
    };
    // Until the server's is there, it is one of the box's own.
    let own = dir.path().join("own.crt");
    std::fs::write(&own, b.kfbox_ok(&["trust", "--print"])?)?;
    assert!(trusted(&own)?.is_some() && trusted(&ca)?.is_none());
    assert!(b.kfbox_ok(&["status"])?.contains("none yet"));
    wait_until(Duration::from_secs(30), "the request", || Ok((server.seen("/finalize") > 0).then_some(())))?;
    b.kill_daemon()?;
    server.release()?;
    b.up(&up)?;
    let first = wait_until(Duration::from_secs(60), "the certificate", || trusted(&ca))?;
    assert_eq!((server.seen("/neworders"), server.seen("/newaccount")), (1, 1), "the same order went on");
    for name in ["certificate.pem", "order.json"] {
        use std::os::unix::fs::PermissionsExt as _;
        let found = std::fs::metadata(b.data_dir().join("pki/acme").join(name));
        assert_eq!(found.ok().map(|m| m.permissions().mode() & 0o777), (name == "certificate.pem").then_some(0o600));
    }
    let status = b.kfbox_ok(&["status"])?;
    assert!(
        status.contains(&format!("certificate of {}", kfbox_tests::ACME_NAME)) && status.contains("until"),
        "{status}"
    );
    // Plain HTTP is led to https.
    let plain = format!("http://{}/runs", server.address);
    let led = run(Command::new("curl").args(["-s", "-o", "/dev/null", "-w", "%{redirect_url}", &plain]))?.ok()?;
    assert_eq!(led.stdout, format!("{url}/runs"));
    // After two thirds of its eighteen seconds there is another, in the same process.
    let pid = b.pid()?;
    let second = wait_until(Duration::from_secs(60), "the renewal", || Ok(trusted(&ca)?.filter(|s| *s != first)))?;
    assert_ne!(first, second);
    assert_eq!(b.pid()?, pid);
    // A server that is gone is told of, with what to do.
    server.stop();
    let status = wait_until(Duration::from_secs(60), "the trouble", || {
        Ok(Some(b.kfbox_ok(&["status"])?).filter(|text| text.contains("failed")))
    })?;
    assert!(status.contains("cannot be reached") && status.contains("next: "), "{status}");
    let mut args: Vec<String> = vec!["doctor".into()];
    args.extend(b.settings());
    args.extend(up.map(String::from));
    let told = b.kfbox(&args)?.stdout;
    assert!(told.contains("certificate by ACME") && told.contains("fix: "), "{told}");
    let log = std::fs::read_to_string(b.data_dir().join("kfbox.log"))?;
    assert!(log.contains("no certificate from the ACME server") && !log.contains("PRIVATE KEY"), "{log}");
    // What nobody agreed to is not ordered.
    std::fs::write(&file, config.replace("terms_agreed = true", ""))?;
    b.kfbox_ok(&["down"])?;
    let mut args: Vec<String> = vec!["up".into()];
    args.extend(b.settings());
    args.extend(up.map(String::from));
    let output = b.kfbox(&args)?;
    assert!(output.code == Some(8) && output.stderr.contains("terms_agreed"), "{output:?}");
    Ok(())
}

#[test]
fn somebody_signs_in_through_another_box_and_finds_a_namespace() -> anyhow::Result<()> {
    const URL: &str = "http://box.example";
    let client = format!(
        "[[gateway.clients]]\nid = \"box\"\nsecret = \"what-the-two-share\"\nredirectURIs = [\"{URL}/dex/callback\"]\n"
    );
    let provider = own(&client, &[])?;
    let (email, password) = (format!("cy.{}@example.com", std::process::id()), "a long enough password");
    let mut add = Command::new(program()?);
    add.args(["user", "add", &email, "--group", "kfbox-staff"]).env("KFBOX_DATA_DIR", provider.b.data_dir());
    run_with_input(&mut add, &format!("{password}\n"))?.ok()?;
    let issuer = format!("{}/dex", provider.b.url()?);
    let connector = format!(
        "[gateway]\nexternal_url = \"{URL}\"\n[[gateway.connectors]]\ntype = \"oidc\"\nid = \"corp\"\n\
         name = \"The other box\"\nissuer = \"{issuer}\"\nclient_id = \"box\"\nclient_secret = \"what-the-two-share\"\n"
    );
    // The addresses are taken by flags; the file has the rest.
    let own = own(&connector, &[])?;
    let mut python = Python::Clients.script("tests/clients/federation.py");
    python
        .env("PROVIDER", provider.b.url()?)
        .env("BOX", format!("http://{}", own.b.address("gateway")?))
        .env("BOX_URL", URL)
        .env("KFBOX_EMAIL", &email)
        .env("KFBOX_PASSWORD", password);
    run(&mut python)?.ok()?;
    let namespace = format!("kubeflow-{}", email.replace(['.', '@'], "-"));
    wait_until(Duration::from_secs(30), "the namespace", || {
        Ok((own.b.kubectl(&["get", "namespace", &namespace])?.code == Some(0)).then_some(()))
    })?;
    let output = own.b.kfbox(&["user", "passwd", &email])?;
    assert!(output.code == Some(1), "there is no password here to set: {output:?}");
    Ok(())
}

/// Somebody who is taken out of the directory while their schedule runs: its next firing finds out, though nobody signs in.
fn gone_from_the_directory(b: &TestBox, directory: &mut slapd::Slapd) -> anyhow::Result<()> {
    const ANN: &str = "ann@corp.example";
    const NAMESPACE: &str = "kubeflow-ann-corp-example";
    let token = |who: &str| Ok::<_, anyhow::Error>(b.kfbox_ok(&["token", "--user", who])?.trim().to_owned());
    let (anns, admins) = (token(ANN)?, token(&b.user)?);
    let url = |path: &str| Ok::<_, anyhow::Error>(format!("{}/pipeline/apis/v2beta1/{path}", b.url()?));
    let post = |path: &str, body: Value| -> anyhow::Result<Value> {
        let (status, text) = ask(&url(path)?, &anns, "POST", Some(&body))?;
        anyhow::ensure!(status == 200, "{path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    };
    let experiment = post("experiments", json!({"display_name": "often", "namespace": NAMESPACE}))?;
    let since = run(Command::new("date").args(["-u", "-d", "-30 min", "+%FT%TZ"]))?.ok()?.stdout;
    let made = post(
        "recurringruns",
        json!({"display_name": "often", "experiment_id": experiment["experiment_id"], "pipeline_spec": spec("often"),
            "trigger": {"periodic_schedule": {"interval_second": "10", "start_time": since.trim()}}, "mode": "ENABLE",
            "max_concurrency": "10"}),
    )?;
    let runs = || -> anyhow::Result<usize> {
        let (status, text) = ask(&url(&format!("runs?page_size=200&namespace={NAMESPACE}"))?, &admins, "GET", None)?;
        anyhow::ensure!(status == 200, "{text}");
        Ok(serde_json::from_str::<Value>(&text)?["runs"].as_array().map_or(0, Vec::len))
    };
    wait_until(Duration::from_secs(60), "the first run", || Ok((runs()? > 0).then_some(())))?;
    directory.change(slapd::WITHOUT_ANN)?;
    let told = wait_until(Duration::from_secs(60), "the schedule's refusal", || {
        let path = format!("recurringruns/{}", made["recurring_run_id"].as_str().unwrap_or_default());
        let (_, text) = ask(&url(&path)?, &admins, "GET", None)?;
        Ok(Some(text).filter(|text| text.contains("directory")))
    })?;
    let before = runs()?;
    assert!(b.kfbox_ok(&["user", "list"])?.contains("gone from directory"), "{told}");
    assert_eq!(ask(&url("runs")?, &anns, "GET", None)?.0, 401);
    assert_eq!(runs()?, before);
    Ok(())
}

#[test]
fn somebody_of_a_directory_signs_in_as_kubeflows_documentation_has_it() -> anyhow::Result<()> {
    const SECRET: &str = "what-notebook-and-box-share";
    let mut directory = slapd::Slapd::start(None)?;
    let config = format!(
        "[gateway]\npassword_connector = \"ldap\"\n\
         [[gateway.clients]]\nid = \"notebook\"\nsecret = \"{SECRET}\"\nplatform = true\n\
         [[gateway.connectors]]\ntype = \"ldap\"\nid = \"ldap\"\nname = \"Corp\"\nhost = \"127.0.0.1:{}\"\n\
         insecureNoSSL = true\nbindDN = \"{}\"\nbindPW = \"{}\"\nrecheckSeconds = 1\n\
         [gateway.connectors.userSearch]\nbaseDN = \"ou=people,{suffix}\"\nusername = \"uid\"\nnameAttr = \"cn\"\n\
         [gateway.connectors.groupSearch]\nbaseDN = \"ou=groups,{suffix}\"\nnameAttr = \"cn\"\n\
         userMatchers = [{{ userAttr = \"DN\", groupAttr = \"member\" }}]\n",
        directory.port,
        slapd::SEARCH_DN,
        slapd::SEARCH_PASSWORD,
        suffix = slapd::SUFFIX
    );
    let own = own(&config, &[])?;
    let mut python = own.python("directory")?;
    python.envs([
        ("LDAP_NAME", "ann"),
        ("LDAP_PASSWORD", slapd::PASSWORD),
        ("LDAP_EMAIL", "ann@corp.example"),
        ("CLIENT_SECRET", SECRET),
    ]);
    run(&mut python)?.ok()?;
    let log = std::fs::read_to_string(own.b.data_dir().join("kfbox.log"))?;
    assert!(!log.contains(slapd::PASSWORD) && !log.contains(slapd::SEARCH_PASSWORD), "passwords are not logged");
    gone_from_the_directory(&own.b, &mut directory)?;
    // What is wrong in the configuration is told before anything starts.
    let file = own.path("wrong.toml");
    std::fs::write(&file, config.replace("insecureNoSSL = true", "insecureSkipVerify = true"))?;
    own.b.kfbox_ok(&["down"])?;
    let mut args: Vec<String> = vec!["up".into(), "--config".into(), text(&file)?.into()];
    args.extend(own.b.settings());
    let output = own.b.kfbox(&args)?;
    assert!(output.code == Some(8) && output.stderr.contains("insecureSkipVerify"), "{output:?}");
    Ok(())
}
