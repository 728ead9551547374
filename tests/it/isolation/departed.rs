//! A namespace's name given anew: whoever has it now inherits nothing of whoever had it.

use super::{Person, Possessions, keys, probe, word};
use kfbox_tests::{Python, TestBox, run, wait_until};
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn a_namespace_inherits_nothing_from_one_of_its_name() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let word = word("gone");
    let mut person = Person::new(&b, &word)?;
    let has = Possessions::of(&person, &word)?;
    let base = json!({"objects": format!("http://{}", b.address("objects")?)});
    let credentials = person.credentials()?;
    let door = |method: &str| json!({"kind": "s3", "method": method, "path": format!("/mlpipeline/{}", has.object), "body": word});
    let tried = |credentials: &Value, methods: &[&str]| {
        let doors: Vec<Value> = methods.iter().map(|m| door(m)).collect();
        probe(&b, None, &json!({"bases": base, "markers": [], "s3": credentials, "doors": doors}))
    };
    assert_eq!(tried(&credentials, &["PUT", "GET"])?, ["200", "200"]);
    let bucket = |credentials: &Value, methods: &[(&str, &str)]| {
        let door = |(method, key): &(&str, &str)| {
            let body = if key.is_empty() { "" } else { word.as_str() };
            json!({"kind": "s3", "method": method, "path": format!("/{}{key}", person.namespace), "body": body})
        };
        let doors: Vec<Value> = methods.iter().map(door).collect();
        probe(&b, None, &json!({"bases": base, "markers": [], "s3": credentials, "doors": doors}))
    };
    let told = keys::secret(&b, &person.namespace)?;
    assert_eq!(bucket(&credentials, &[("PUT", "/x"), ("GET", "/x")])?, ["200", "200"]);

    // Deleted with a run that goes on.
    let again = json!({"display_name": "again", "experiment_id": has.experiment,
        "pipeline_version_reference": {"pipeline_id": has.pipeline, "pipeline_version_id": has.version}});
    person.api("POST", "/pipeline/apis/v2beta1/runs", &again)?;
    b.kubectl(&["delete", "profile", &person.namespace, "--timeout=120s"])?.ok()?;
    wait_until(Duration::from_secs(120), "the namespace's end", || {
        let left = b.kubectl(&["get", "namespace", &person.namespace, "--ignore-not-found"])?.ok()?.stdout;
        Ok(left.trim().is_empty().then_some(()))
    })?;
    assert_eq!(tried(&credentials, &["GET", "PUT"])?, ["403", "403"], "the old keys are void");

    // The same name, now somebody else's.
    let profile = json!({"apiVersion": "kubeflow.org/v1", "kind": "Profile", "metadata": {"name": person.namespace},
        "spec": {"owner": {"kind": "User", "name": person.email}}});
    b.kubectl_with_input(&["apply", "-f", "-"], &profile.to_string())?.ok()?;
    let name = format!("profile/{}", person.namespace);
    b.kubectl(&["wait", "--for=condition=Successful", &name, "--timeout=60s"])?.ok()?;
    let token = b.kfbox_ok(&["token", "--user", &person.email, "--name", "departed", "--expires", "1h"])?;
    person.token = token.trim().to_owned();
    for (what, list) in [
        ("runs", "runs"),
        ("pipelines", "pipelines"),
        ("experiments", "experiments"),
        ("recurringruns", "recurringRuns"),
    ] {
        let path = format!("/pipeline/apis/v2beta1/{what}?namespace={}", person.namespace);
        let shown = person.api("GET", &path, &Value::Null)?;
        assert!(shown[list].as_array().is_none_or(Vec::is_empty), "{shown}");
    }
    for path in [format!("runs/{}", has.run), format!("pipelines/{}", has.pipeline)] {
        let (status, _) =
            super::ask(&format!("{}/pipeline/apis/v2beta1/{path}", b.url()?), &person.token, "GET", None)?;
        assert_eq!(status, 404, "{path}");
    }
    let anew = person.credentials()?;
    assert_ne!(anew["accessKey"], credentials["accessKey"]);
    assert_ne!(keys::secret(&b, &person.namespace)?["accesskey"], told["accesskey"]);
    assert_eq!(tried(&anew, &["GET"])?, ["404"], "the old object is gone");
    assert_eq!(
        bucket(&anew, &[("GET", "/x"), ("PUT", "/x"), ("GET", "/x")])?,
        ["404", "200", "200"],
        "and the old bucket"
    );
    let script = "import boto3, json, sys
c = json.loads(sys.argv[1])
s3 = boto3.client('s3', endpoint_url=c['endpoint'], region_name=c['region'],
                  aws_access_key_id=c['accessKey'], aws_secret_access_key=c['secretKey'])
print(s3.list_objects_v2(Bucket=c['bucket'], Prefix=c['prefix'])['KeyCount'])";
    let listed = run(std::process::Command::new(Python::Clients.program()).args(["-c", script, &anew.to_string()]))?;
    assert_eq!(listed.ok()?.stdout.trim(), "0");
    // The new owner works there as anywhere.
    let has = Possessions::of(&person, &format!("{word}b"))?;
    assert!(!has.run.is_empty());
    Ok(())
}
