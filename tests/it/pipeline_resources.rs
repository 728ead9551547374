//! Pipelines, versions and schedules by `kubectl`: the pipelines' API shows the same, and what ends on one side ends on the
//! other. And who a schedule acts for.

use crate::isolation::people::{Person, ask};
use kfbox_tests::{Output, TestBox, cache_dir, run_with_input, wait_until};
use serde_json::{Value, json};
use std::{process::Command, time::Duration};

const WAIT: Duration = Duration::from_secs(60);

fn word(what: &str) -> String {
    format!("{what}{:x}x{:x}", std::process::id(), std::time::UNIX_EPOCH.elapsed().unwrap_or_default().subsec_nanos())
}

/// kubectl as a person, with their token, in their namespace.
fn kubectl(b: &TestBox, person: &Person<'_>, args: &[&str], input: &str) -> anyhow::Result<Output> {
    let mut command = Command::new(cache_dir().join("bin/kubectl"));
    command.args(["--kubeconfig", "/dev/null", "--insecure-skip-tls-verify", "--token", &person.token]);
    command.args(["--server", &format!("https://{}", b.address("kubernetes")?), "-n", &person.namespace]);
    run_with_input(command.args(args), input)
}

fn apply(b: &TestBox, person: &Person<'_>, object: &Value) -> anyhow::Result<Output> {
    kubectl(b, person, &["apply", "-f", "-"], &object.to_string())
}

fn get(b: &TestBox, person: &Person<'_>, what: &str) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&kubectl(b, person, &["get", what, "-o", "json"], "")?.ok()?.stdout)?)
}

fn specification(command: &str) -> Value {
    json!({
        "pipelineInfo": {"name": "applied"}, "schemaVersion": "2.1.0", "sdkVersion": "kfp-2.17.0",
        "components": {"comp-say": {"executorLabel": "exec-say",
            "inputDefinitions": {"parameters": {"text": {"parameterType": "STRING"}}}}},
        "deploymentSpec": {"executors": {"exec-say": {"container": {"image": "python:3.11",
            "command": ["sh", "-c", command], "args": ["{{$.inputs.parameters['text']}}"]}}}},
        "root": {
            "inputDefinitions": {"parameters": {"text": {"parameterType": "STRING"}}},
            "dag": {"tasks": {"say": {"cachingOptions": {}, "componentRef": {"name": "comp-say"}, "taskInfo": {"name": "say"},
                "inputs": {"parameters": {"text": {"componentInputParameter": "text"}}}}}},
        },
    })
}

fn pipeline() -> Value {
    json!({"apiVersion": "pipelines.kubeflow.org/v2beta1", "kind": "Pipeline", "metadata": {"name": "hello"},
        "spec": {"displayName": "Hello", "description": "says it", "tags": {"team": "blue"}}})
}

fn version(name: &str, of: &str, specification: Value) -> Value {
    json!({"apiVersion": "pipelines.kubeflow.org/v2beta1", "kind": "PipelineVersion",
        "metadata": {"name": format!("hello-{name}")},
        "spec": {"pipelineName": of, "versionName": name, "pipelineSpec": specification}})
}

fn schedule(name: &str, more: &Value) -> Value {
    let mut spec = json!({
        "enabled": true, "noCatchup": true, "maxHistory": 3,
        "trigger": {"periodicSchedule": {"startTime": "2026-01-01T00:00:00Z", "intervalSecond": 86400}},
        "workflow": {"parameters": [{"name": "text", "value": "\"from a schedule\""}]},
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow", "metadata": {"name": name}, "spec": spec})
}

fn conditions(object: &Value) -> Vec<(String, String)> {
    let text = |c: &Value, name: &str| c[name].as_str().unwrap_or_default().to_owned();
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.iter().map(|c| (text(c, "type"), text(c, "message"))).collect()
}

/// A request that may fail: its status.
fn status(b: &TestBox, person: &Person<'_>, method: &str, path: &str) -> anyhow::Result<u16> {
    Ok(ask(&format!("{}/pipeline/apis/v2beta1/{path}", b.url()?), &person.token, method, None)?.0)
}

#[test]
fn what_is_applied_shows_in_the_api_runs_and_ends_either_way() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let ann = Person::new(&b, &word("apply"))?;
    let rest = |method: &str, path: &str| ann.api(method, &format!("/pipeline/apis/v2beta1/{path}"), &Value::Null);
    // Everything at once, in an order that needs waiting: the schedule names a pipeline that is not there yet.
    apply(&b, &ann, &schedule("daily", &json!({"pipelineName": "hello"})))?.ok()?;
    apply(&b, &ann, &pipeline())?.ok()?;
    apply(&b, &ann, &version("v1", "hello", specification("echo \"$0\"")))?.ok()?;

    let object = get(&b, &ann, "pipelines.pipelines.kubeflow.org/hello")?;
    let id = object["metadata"]["uid"].as_str().unwrap().to_owned();
    let shown = wait_until(WAIT, "the pipeline in REST", || {
        Ok(Some(rest("GET", "pipelines")?).filter(|p| p["total_size"] == 1))
    })?;
    let shown = &shown["pipelines"][0];
    assert_eq!((&shown["pipeline_id"], &shown["display_name"]), (&json!(id), &json!("Hello")), "{shown}");
    assert_eq!((&shown["description"], &shown["tags"]["team"]), (&json!("says it"), &json!("blue")), "{shown}");
    let ready = wait_until(WAIT, "the version's readiness", || {
        let object = get(&b, &ann, "pipelineversion/hello-v1")?;
        Ok((object["status"]["conditions"][0]["reason"] == "READY").then_some(object))
    })?;
    assert_eq!(ready["metadata"]["labels"]["pipelines.kubeflow.org/pipeline-id"], *id);
    assert_eq!(ready["metadata"]["ownerReferences"][0]["uid"], *id);
    let version_id = ready["metadata"]["uid"].as_str().unwrap().to_owned();
    let shown = rest("GET", &format!("pipelines/{id}/versions/{version_id}"))?;
    assert_eq!((&shown["name"], &shown["pipeline_spec"]["pipelineInfo"]["name"]), (&json!("v1"), &json!("applied")));

    // The schedule has started its run, as the person who applied it.
    let swf = wait_until(WAIT, "the schedule's run", || {
        let object = get(&b, &ann, "scheduledworkflow/daily")?;
        Ok((object["status"]["trigger"]["lastWorkflowIndex"] == 1).then_some(object))
    })?;
    assert_eq!(conditions(&swf)[0].0, "Enabled", "{swf:#}");
    let recurring = swf["metadata"]["uid"].as_str().unwrap().to_owned();
    assert_eq!(rest("GET", &format!("recurringruns/{recurring}"))?["display_name"], "daily");
    let ended = wait_until(Duration::from_secs(120), "the run's end in the status", || {
        let object = get(&b, &ann, "swf/daily")?;
        Ok(object["status"]["workflowHistory"]["completed"][0].as_object().cloned())
    })?;
    assert_eq!(ended["phase"], "Succeeded", "{ended:?}\n{}", b.log());
    assert!(ended["name"].as_str().is_some_and(|n| n.starts_with("daily-1-")), "{ended:?}");
    let run = rest("GET", &format!("runs/{}", ended["uid"].as_str().unwrap()))?;
    assert_eq!(run["recurring_run_id"], *recurring, "{run}");

    // Switched in REST, seen in the cluster.
    rest("POST", &format!("recurringruns/{recurring}:disable"))?;
    let off = get(&b, &ann, "swf/daily")?;
    assert_eq!(off["spec"]["enabled"], false);
    wait_until(WAIT, "the schedule's status", || {
        Ok(conditions(&get(&b, &ann, "swf/daily")?).iter().any(|c| c.0 == "Disabled").then_some(()))
    })?;

    // What would be wrong is refused when it is applied.
    let refused = |object: &Value, says: &str| -> anyhow::Result<()> {
        let output = apply(&b, &ann, object)?;
        anyhow::ensure!(output.code != Some(0) && output.stderr.contains(says), "{says:?}: {output:?}");
        Ok(())
    };
    refused(&version("v1", "hello", specification("echo other")), "cannot be changed")?;
    refused(&version("v2", "hello", json!({"root": {}})), "the pipeline spec is invalid")?;
    refused(&version("v2", "absent", specification("true")), "has no Pipeline of that name")?;
    let mut renamed = version("v1", "hello", specification("echo \"$0\""));
    renamed["spec"]["displayName"] = json!("First");
    apply(&b, &ann, &renamed)?.ok()?;
    wait_until(WAIT, "the version's new name", || {
        let shown = rest("GET", &format!("pipelines/{id}/versions/{version_id}"))?;
        Ok((shown["display_name"] == "First").then_some(()))
    })?;
    let patch = json!({"display_name": "Hello again"});
    ann.api("PATCH", &format!("/pipeline/apis/v2beta1/pipelines/{id}"), &patch)?;
    assert_eq!(get(&b, &ann, "pipelines.pipelines.kubeflow.org/hello")?["spec"]["displayName"], "Hello again");

    // Ends: there and here, here and there, and a pipeline with what is its own.
    kubectl(&b, &ann, &["delete", "swf", "daily"], "")?.ok()?;
    wait_until(WAIT, "the schedule's end in REST", || {
        Ok((status(&b, &ann, "GET", &format!("recurringruns/{recurring}"))? == 404).then_some(()))
    })?;
    apply(&b, &ann, &version("v2", "hello", specification("true")))?.ok()?;
    let second = get(&b, &ann, "pipelineversion/hello-v2")?["metadata"]["uid"].as_str().unwrap().to_owned();
    wait_until(WAIT, "the second version in REST", || {
        Ok((status(&b, &ann, "GET", &format!("pipelines/{id}/versions/{second}"))? == 200).then_some(()))
    })?;
    rest("DELETE", &format!("pipelines/{id}/versions/{second}"))?;
    assert_ne!(kubectl(&b, &ann, &["get", "pipelineversion", "hello-v2"], "")?.code, Some(0));
    kubectl(&b, &ann, &["delete", "pipelines.pipelines.kubeflow.org", "hello"], "")?.ok()?;
    wait_until(WAIT, "the pipeline's end in REST and its version's in the cluster", || {
        let gone = status(&b, &ann, "GET", &format!("pipelines/{id}"))? == 404
            && kubectl(&b, &ann, &["get", "pipelineversion", "hello-v1"], "")?.code != Some(0);
        Ok(gone.then_some(()))
    })
}

#[test]
fn a_schedule_reaches_only_its_own_namespace_and_acts_for_nobody_else() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let owner = Person::new(&b, &word("has"))?;
    let hostile = Person::new(&b, &word("wants"))?;
    apply(&b, &owner, &pipeline())?.ok()?;
    apply(&b, &owner, &version("v1", "hello", specification("echo \"$0\"")))?.ok()?;
    let theirs = get(&b, &owner, "pipelines.pipelines.kubeflow.org/hello")?["metadata"]["uid"].clone();
    wait_until(WAIT, "the owner's version", || {
        let object = get(&b, &owner, "pipelineversion/hello-v1")?;
        Ok((object["status"]["conditions"][0]["reason"] == "READY").then_some(()))
    })?;
    let made = json!({"display_name": "theirs", "namespace": owner.namespace});
    let experiment = owner.api("POST", "/pipeline/apis/v2beta1/experiments", &made)?["experiment_id"].clone();

    let output = apply(&b, &hostile, &version("v1", "hello", specification("true")))?;
    assert!(output.code != Some(0) && output.stderr.contains("has no Pipeline of that name"), "{output:?}");
    apply(&b, &owner, &schedule("mine", &json!({"pipelineName": "hello", "enabled": false})))?.ok()?;
    let mark = "pipelines.kfbox.local/acts-for";
    let stolen = get(&b, &owner, "swf/mine")?["metadata"]["annotations"][mark].clone();
    assert!(stolen.is_string());
    apply(&b, &hostile, &pipeline())?.ok()?;
    let mut forged = schedule("mine", &json!({"experimentId": experiment, "pipelineName": "hello"}));
    forged["metadata"]["annotations"] = json!({mark: stolen});
    for object in [schedule("by-id", &json!({"pipelineId": theirs})), forged] {
        apply(&b, &hostile, &object)?.ok()?;
        let name = format!("swf/{}", object["metadata"]["name"].as_str().unwrap());
        let refused = wait_until(WAIT, "the refusal", || {
            let object = get(&b, &hostile, &name)?;
            Ok(conditions(&object).into_iter().find(|c| c.0 == "Error").map(|c| (c, object)))
        })?;
        assert!(refused.0.1.contains("not found"), "{refused:?}");
        assert_ne!(refused.1["metadata"]["annotations"][mark], stolen, "the mark is made anew");
    }
    // Not even in one's own namespace: an editor who takes over another's schedule runs it as themselves.
    owner.binding("POST", &hostile.email, "edit")?;
    let mut command = Command::new(cache_dir().join("bin/kubectl"));
    command.args(["--kubeconfig", "/dev/null", "--insecure-skip-tls-verify", "--token", &hostile.token]);
    command.args(["--server", &format!("https://{}", b.address("kubernetes")?), "-n", &owner.namespace]);
    let patch = json!({"spec": {"workflow": {"parameters": [{"name": "text", "value": "other"}]}}}).to_string();
    run_with_input(command.args(["patch", "swf", "mine", "--type", "merge", "-p", &patch]), "")?.ok()?;
    let now = get(&b, &owner, "swf/mine")?["metadata"]["annotations"][mark].clone();
    assert!(now.is_string() && now != stolen, "{now}");
    for person in [&owner, &hostile] {
        let runs = person.api("GET", "/pipeline/apis/v2beta1/runs", &Value::Null)?;
        assert!(runs["total_size"] == 0 || runs["total_size"].is_null(), "{runs}");
    }
    Ok(())
}

#[test]
fn a_person_who_is_shut_out_starts_no_more_runs() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let ann = Person::new(&b, &word("away"))?;
    apply(&b, &ann, &pipeline())?.ok()?;
    apply(&b, &ann, &version("v1", "hello", specification("echo \"$0\"")))?.ok()?;
    let id = get(&b, &ann, "pipelines.pipelines.kubeflow.org/hello")?["metadata"]["uid"].clone();
    wait_until(WAIT, "the version", || {
        let object = get(&b, &ann, "pipelineversion/hello-v1")?;
        Ok((object["status"]["conditions"][0]["reason"] == "READY").then_some(()))
    })?;
    // Both fire when the person is gone already: switched off until then.
    apply(&b, &ann, &schedule("applied", &json!({"pipelineName": "hello", "enabled": false})))?.ok()?;
    let wanted = json!({
        "display_name": "uploaded", "namespace": ann.namespace, "mode": "DISABLE", "no_catchup": true,
        "pipeline_version_reference": {"pipeline_id": id}, "runtime_config": {"parameters": {"text": "x"}},
        "trigger": {"periodic_schedule": {"start_time": "2026-01-01T00:00:00Z", "interval_second": "86400"}},
    });
    let uploaded = ann.api("POST", "/pipeline/apis/v2beta1/recurringruns", &wanted)?;
    let uploaded = uploaded["recurring_run_id"].as_str().unwrap().to_owned();
    wait_until(WAIT, "the applied schedule", || {
        Ok(conditions(&get(&b, &ann, "swf/applied")?).iter().any(|c| c.0 == "Disabled").then_some(()))
    })?;
    b.kfbox_ok(&["user", "disable", &ann.email])?;

    let n = ["-n", &ann.namespace];
    let administrator = b.kfbox_ok(&["token", "--name", "away", "--expires", "1h"])?;
    let rest = |method: &str, path: &str| -> anyhow::Result<Value> {
        let url = format!("{}/pipeline/apis/v2beta1/{path}", b.url()?);
        let (status, text) = ask(&url, administrator.trim(), method, None)?;
        anyhow::ensure!(status == 200, "{method} {path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    };
    rest("POST", &format!("recurringruns/{uploaded}:enable"))?;
    b.kubectl(
        &[&["patch", "swf", "applied", "--type", "merge", "-p", r#"{"spec": {"enabled": true}}"#], &n[..]].concat(),
    )?
    .ok()?;
    let why = wait_until(WAIT, "the refusal", || {
        let shown = rest("GET", &format!("recurringruns/{uploaded}"))?;
        Ok(shown["error"]["message"].as_str().map(str::to_owned))
    })?;
    assert!(why.contains(&ann.email) && why.contains("disabled"), "{why}");
    let why = wait_until(WAIT, "the refusal of what was applied", || {
        let output = b.kubectl(&[&["get", "swf", "applied", "-o", "json"], &n[..]].concat())?.ok()?;
        let object: Value = serde_json::from_str(&output.stdout)?;
        Ok(conditions(&object).into_iter().find(|c| c.0 == "Error").map(|c| c.1))
    })?;
    assert!(why.contains(&ann.email) && why.contains("disabled"), "{why}");
    let events = b.kubectl(&[&["get", "events", "-o", "jsonpath={.items[*].message}"], &n[..]].concat())?.ok()?.stdout;
    assert!(events.contains("disabled"), "{events}");
    let runs = rest("GET", &format!("runs?namespace={}", ann.namespace))?;
    assert!(runs["runs"].as_array().is_none_or(Vec::is_empty), "{runs}");
    Ok(())
}
