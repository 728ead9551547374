//! Through REST, engine and task API together, on a cluster in memory.

mod lists;
mod outside;
mod recurring;
mod resources;
mod retention;
mod swagger;
mod v1;
mod world;

use crate::{Pipelines, RunChange};
use axum::body::Body;
use http::{Request, StatusCode};
use kfbox_base::UserInfo;
use serde_json::{Value, json};
use std::sync::{Arc, atomic::Ordering};
use tower::ServiceExt;
use world::{Step, World};

const TWO_STEPS: &str = r"
components:
  comp-make:
    executorLabel: exec-make
    inputDefinitions: {parameters: {text: {parameterType: STRING}}}
    outputDefinitions: {parameters: {size: {parameterType: NUMBER_INTEGER}}, artifacts: {data: {artifactType: {schemaTitle: system.Dataset}}}}
  comp-read:
    executorLabel: exec-make
    inputDefinitions: {parameters: {size: {parameterType: NUMBER_INTEGER}}, artifacts: {data: {artifactType: {schemaTitle: system.Dataset}}}}
deploymentSpec: {executors: {exec-make: {container: {image: busybox, command: [run, '{{$}}']}}}}
pipelineInfo: {name: two-steps}
schemaVersion: 2.1.0
root:
  inputDefinitions: {parameters: {text: {parameterType: STRING}}}
  dag:
    tasks:
      make:
        cachingOptions: {enableCache: true}
        componentRef: {name: comp-make}
        inputs: {parameters: {text: {componentInputParameter: text}}}
      read:
        cachingOptions: {enableCache: true}
        componentRef: {name: comp-read}
        inputs:
          parameters: {size: {taskOutputParameter: {producerTask: make, outputParameterKey: size}}}
          artifacts: {data: {taskOutputArtifact: {producerTask: make, outputArtifactKey: data}}}
";

fn spec() -> Value {
    serde_yaml::from_str(TWO_STEPS).unwrap()
}

fn good(name: &str, _: &Value) -> Step {
    let mut step = Step { log: format!("{name} says hello\n"), ..Step::default() };
    if name == "make" {
        step.parameters.insert("size".into(), "5\n".into());
        step.files =
            vec![("data".into(), "a.txt".into(), "hello".into()), ("data".into(), "sub/b.txt".into(), "there".into())];
    }
    step
}

async fn raw(p: &Pipelines, user: &str, method: &str, path: &str, kind: &str, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
    let mut request =
        Request::builder().method(method).uri(path).header("content-type", kind).body(Body::from(body)).unwrap();
    if !user.is_empty() {
        request.extensions_mut().insert(UserInfo::new(user, []));
    }
    let response = p.router().oneshot(request).await.unwrap();
    let status = response.status();
    (status, axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec())
}

async fn call(p: &Pipelines, user: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let (status, body) = raw(p, user, method, path, "application/json", body).await;
    (status.as_u16(), serde_json::from_slice(&body).unwrap_or_default())
}

async fn ok(p: &Pipelines, user: &str, method: &str, path: &str, body: Value) -> Value {
    let (status, body) = call(p, user, method, path, body).await;
    assert_eq!(status, 200, "{method} {path}: {body}");
    body
}

async fn start(p: &Pipelines, text: &str) -> String {
    let body =
        json!({"display_name": "a run", "pipeline_spec": spec(), "runtime_config": {"parameters": {"text": text}}});
    let run = ok(p, "ann", "POST", "/apis/v2beta1/runs", body).await;
    run["run_id"].as_str().unwrap().to_owned()
}

async fn get_run(p: &Pipelines, id: &str) -> Value {
    ok(p, "ann", "GET", &format!("/apis/v2beta1/runs/{id}"), Value::Null).await
}

/// Follows the run's changes until `until` holds of it.
async fn wait(p: &Pipelines, id: &str, until: impl Fn(&Value) -> bool) -> Value {
    let mut changes = p.changes();
    let follow = async {
        loop {
            let run = get_run(p, id).await;
            if until(&run) {
                return run;
            }
            let RunChange { .. } = changes.recv().await.unwrap();
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), follow).await.expect("the run does not get there")
}

fn ended(run: &Value) -> bool {
    ["SUCCEEDED", "FAILED", "CANCELED"].iter().any(|s| run["state"] == **s)
}

fn task<'a>(run: &'a Value, name: &str) -> &'a Value {
    run["run_details"]["task_details"].as_array().unwrap().iter().find(|t| t["display_name"] == name).unwrap()
}

#[tokio::test]
async fn a_run_passes_parameters_and_artifacts_and_is_not_run_again_from_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    let run = start(&p, "x").await;
    let run = wait(&p, &run, ended).await;
    assert_eq!(run["state"], "SUCCEEDED", "{run}");
    assert_eq!(world.read.lock().get("read/data/sub/b.txt").map(String::as_str), Some("there"));
    assert_eq!(
        task(&run, "read")["inputs"]["data"]["artifact_ids"],
        task(&run, "make")["outputs"]["data"]["artifact_ids"]
    );
    let states: Vec<&str> =
        task(&run, "make")["state_history"].as_array().unwrap().iter().map(|h| h["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["PENDING", "RUNNING", "SUCCEEDED"]);
    let keys: Vec<String> = world.objects.lock().keys().cloned().collect();
    assert!(keys.iter().all(|k| k.starts_with("mlpipeline/v2/artifacts/ann/two-steps/")), "{keys:?}");
    assert_eq!(world.created.load(Ordering::SeqCst), 2);

    let again = start(&p, "x").await;
    let again = wait(&p, &again, ended).await;
    assert_eq!(again["state"], "SUCCEEDED");
    assert_eq!(world.created.load(Ordering::SeqCst), 2, "both steps come from the cache");
    let order: Vec<&str> = run["run_details"]["task_details"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["display_name"].as_str().unwrap())
        .collect();
    assert_eq!(order, ["root", "make", "read"], "parents and what went before come first");
    assert_eq!(task(&again, "make")["outputs"], task(&run, "make")["outputs"]);

    let other = start(&p, "y").await;
    wait(&p, &other, ended).await;
    assert_eq!(world.created.load(Ordering::SeqCst), 4, "other inputs run");

    world.objects.lock().clear();
    let anew = start(&p, "x").await;
    wait(&p, &anew, ended).await;
    assert!(world.created.load(Ordering::SeqCst) > 4, "a result whose artifacts are gone is not reused");
    world.kill(&tasks).await;
}

#[tokio::test]
async fn a_failed_step_says_which_why_and_its_last_lines() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(|name, task| {
        let mut step = good(name, task);
        if name == "read" {
            step.exit = 3;
            step.log = (0..100).map(|n| format!("line {n}\n")).collect();
        }
        step
    });
    let (p, tasks) = world.daemon(folder.path()).await;
    let run = start(&p, "x").await;
    let run = wait(&p, &run, ended).await;
    assert_eq!(run["state"], "FAILED");
    let why = run["error"]["message"].as_str().unwrap();
    assert!(
        why.contains("step read failed")
            && why.contains("exit code 3")
            && why.contains("line 99")
            && !why.contains("line 79\n"),
        "{why}"
    );
    let id = run["run_id"].as_str().unwrap();
    let node = task(&run, "read")["task_id"].as_str().unwrap();
    // The pod may go; its log stays.
    world.pods.lock().clear();
    let (status, log) =
        raw(&p, "ann", "GET", &format!("/apis/v1beta1/runs/{id}/nodes/{node}/log"), "", Vec::new()).await;
    assert_eq!(status, 200);
    assert!(String::from_utf8(log).unwrap().starts_with("line 0\n"));
    world.kill(&tasks).await;
}

#[tokio::test]
async fn a_terminated_run_ends_canceled_and_its_pod_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(|name, task| Step { hang: true, ..good(name, task) });
    let (p, tasks) = world.daemon(folder.path()).await;
    let id = start(&p, "x").await;
    wait(&p, &id, |r| {
        r["run_details"]["task_details"]
            .as_array()
            .is_some_and(|t| t.iter().any(|t| t["display_name"] == "make" && t["state"] == "RUNNING"))
    })
    .await;
    ok(&p, "ann", "POST", &format!("/apis/v2beta1/runs/{id}:terminate"), Value::Null).await;
    let run = wait(&p, &id, ended).await;
    assert_eq!(run["state"], "CANCELED");
    assert_eq!(task(&run, "make")["state"], "CANCELED");
    assert!(world.pods.lock().is_empty());
    let (status, body) = call(&p, "ann", "POST", &format!("/apis/v2beta1/runs/{id}:terminate"), Value::Null).await;
    assert_eq!((status, body["code"].as_i64()), (400, Some(9)), "{body}");
    world.kill(&tasks).await;
}

#[tokio::test]
async fn a_killed_daemon_goes_on_where_it_was_and_runs_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(|name, task| Step { hang: name == "make", ..good(name, task) });
    let (p, tasks) = world.daemon(folder.path()).await;
    let id = start(&p, "x").await;
    wait(&p, &id, |r| {
        r["run_details"]["task_details"]
            .as_array()
            .is_some_and(|t| t.iter().any(|t| t["state"] == "RUNNING" && t["display_name"] == "make"))
    })
    .await;
    world.kill(&tasks).await;
    drop(p);
    world.go.notify_one();
    let (p, tasks) = world.daemon(folder.path()).await;
    let run = wait(&p, &id, ended).await;
    assert_eq!(run["state"], "SUCCEEDED", "{run}");
    assert_eq!(world.created.load(Ordering::SeqCst), 2);
    world.kill(&tasks).await;
}

#[tokio::test]
async fn a_pod_that_vanished_while_the_daemon_was_away_fails_its_step_instead_of_running_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(|name, task| Step { hang: true, ..good(name, task) });
    let (p, tasks) = world.daemon(folder.path()).await;
    let id = start(&p, "x").await;
    wait(&p, &id, |r| {
        r["run_details"]["task_details"]
            .as_array()
            .is_some_and(|t| t.iter().any(|t| t["state"] == "RUNNING" && t["display_name"] == "make"))
    })
    .await;
    world.kill(&tasks).await;
    drop(p);
    world.pods.lock().clear();
    let (p, tasks) = world.daemon(folder.path()).await;
    let run = wait(&p, &id, ended).await;
    assert_eq!(run["state"], "FAILED");
    assert!(run["error"]["message"].as_str().unwrap().contains("deleted"), "{run}");
    assert_eq!(world.created.load(Ordering::SeqCst), 1);
    world.kill(&tasks).await;
}

#[tokio::test]
async fn an_image_that_cannot_be_named_fails_at_once_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(|name, task| Step { hang: true, ..good(name, task) });
    let (p, tasks) = world.daemon(folder.path()).await;
    let id = start(&p, "x").await;
    wait(&p, &id, |r| task_pod(r).is_some()).await;
    let pod = task_pod(&get_run(&p, &id).await).unwrap();
    let waiting = json!({"waiting": {"reason": "InvalidImageName", "message": "no such name"}});
    let container =
        json!({"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": waiting});
    world.set_status(&pod, json!({"phase": "Pending", "containerStatuses": [container]}));
    let run = wait(&p, &id, ended).await;
    let why = run["error"]["message"].as_str().unwrap();
    assert!(why.contains("InvalidImageName: no such name") && why.contains("busybox"), "{why}");
    world.kill(&tasks).await;
}

fn task_pod(run: &Value) -> Option<String> {
    let tasks = run["run_details"]["task_details"].as_array()?;
    tasks.iter().filter(|t| t["state"] == "RUNNING").find_map(|t| t["pod_name"].as_str().map(str::to_owned))
}

#[tokio::test]
async fn a_token_opens_its_own_task_and_only_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(|name, task| Step { hang: true, ..good(name, task) });
    let (p, tasks) = world.daemon(folder.path()).await;
    let id = start(&p, "x").await;
    let run = wait(&p, &id, |r| task_pod(r).is_some()).await;
    let make = task(&run, "make")["task_id"].as_str().unwrap().to_owned();
    let token = p.inner.engine.token(&id, &make, 0);
    let send = async |method: &str, path: String, token: &str| {
        let request = Request::builder()
            .method(method)
            .uri(&path)
            .header("authorization", format!("Bearer {token}"))
            .header("content-length", 1);
        p.task_router().oneshot(request.body(Body::from("x")).unwrap()).await.unwrap().status().as_u16()
    };
    let base = format!("/v1/runs/{id}/tasks/{make}/0");
    assert_eq!(send("GET", format!("{base}/inputs/0"), "wrong").await, 401);
    assert_eq!(send("GET", format!("/v1/runs/{id}/tasks/{make}/1"), &token).await, 401);
    assert_eq!(send("GET", format!("/v1/runs/{id}/tasks/other/0"), &token).await, 401);
    assert_eq!(send("GET", format!("{base}/inputs/0"), &token).await, 404);
    assert_eq!(send("PUT", format!("{base}/outputs/data?path=../x"), &token).await, 400);
    assert_eq!(send("PUT", format!("{base}/outputs/gone"), &token).await, 404);
    for outside in ["minio://mlpipeline/v2/artifacts/bob/x", "minio://mlpipeline/v2/artifacts/ann/two-steps/other/x"] {
        assert_eq!(send("PUT", format!("{base}/outputs/data?uri={outside}"), &token).await, 403);
    }
    assert!(world.objects.lock().is_empty());
    ok(&p, "ann", "POST", &format!("/apis/v2beta1/runs/{id}:terminate"), Value::Null).await;
    wait(&p, &id, ended).await;
    assert_eq!(send("GET", base, &token).await, 410);
    world.kill(&tasks).await;
}

fn multipart(content: &[u8]) -> (String, Vec<u8>) {
    let mut body = b"--XX\r\nContent-Disposition: form-data; name=\"uploadfile\"; filename=\"p.yaml\"\r\n\r\n".to_vec();
    body.extend(content);
    body.extend(b"\r\n--XX--\r\n");
    ("multipart/form-data; boundary=XX".into(), body)
}

#[tokio::test]
async fn strangers_learn_nothing_and_viewers_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    let (kind, body) = multipart(TWO_STEPS.as_bytes());
    let (status, up) = raw(&p, "ann", "POST", "/apis/v2beta1/pipelines/upload?name=mine", &kind, body.clone()).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&up));
    let up: Value = serde_json::from_slice(&up).unwrap();
    let pipeline = up["pipeline_id"].as_str().unwrap();
    let run = start(&p, "x").await;
    wait(&p, &run, ended).await;
    let experiment = get_run(&p, &run).await["experiment_id"].as_str().unwrap().to_owned();
    for path in [
        format!("runs/{run}"),
        format!("pipelines/{pipeline}"),
        format!("experiments/{experiment}"),
        format!("pipelines/{pipeline}/versions"),
    ] {
        let path = format!("/apis/v2beta1/{path}");
        assert_eq!(call(&p, "", "GET", &path, Value::Null).await.0, 401, "{path}");
        let (status, body) = call(&p, "bob", "GET", &path, Value::Null).await;
        assert_eq!((status, body["code"].as_i64()), (404, Some(5)), "{path}: {body}");
        assert_eq!(call(&p, "viewer", "GET", &path, Value::Null).await.0, 200, "{path}");
    }
    for (method, path) in [
        ("DELETE", format!("runs/{run}")),
        ("POST", format!("runs/{run}:archive")),
        ("POST", format!("runs/{run}:terminate")),
        ("POST", format!("runs/{run}:retry")),
        ("DELETE", format!("pipelines/{pipeline}?cascade=true")),
        ("POST", format!("experiments/{experiment}:archive")),
    ] {
        let path = format!("/apis/v2beta1/{path}");
        assert_eq!(call(&p, "viewer", method, &path, Value::Null).await.0, 403, "{path}");
        assert_eq!(call(&p, "bob", method, &path, Value::Null).await.0, 404, "{path}");
    }
    assert_eq!(
        raw(&p, "bob", "POST", "/apis/v2beta1/pipelines/upload?name=x&namespace=ann", &kind, body.clone()).await.0,
        403
    );
    assert_eq!(call(&p, "bob", "GET", "/apis/v2beta1/runs?namespace=ann", Value::Null).await.0, 403);
    assert_eq!(
        call(&p, "bob", "GET", &format!("/apis/v2beta1/runs?experiment_id={experiment}"), Value::Null).await.0,
        404
    );
    assert_eq!(ok(&p, "bob", "GET", "/apis/v2beta1/runs", Value::Null).await["total_size"], 0);
    let body = json!({"display_name": "r", "experiment_id": experiment, "pipeline_spec": spec(), "runtime_config": {"parameters": {"text": "x"}}});
    assert_eq!(call(&p, "bob", "POST", "/apis/v2beta1/runs", body).await.0, 404);
    assert_eq!(call(&p, "nobody", "POST", "/apis/v2beta1/experiments", json!({"display_name": "e"})).await.0, 400);
    world.kill(&tasks).await;
}

#[tokio::test]
async fn lists_page_sort_and_filter_and_refuse_made_up_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    for n in 0..5 {
        ok(&p, "ann", "POST", "/apis/v2beta1/experiments", json!({"display_name": format!("e{n}")})).await;
    }
    let (status, body) = call(&p, "ann", "POST", "/apis/v2beta1/experiments", json!({"display_name": "e1"})).await;
    assert_eq!((status, body["code"].as_i64()), (409, Some(6)));
    let list =
        async |query: String| ok(&p, "ann", "GET", &format!("/apis/v2beta1/experiments?{query}"), Value::Null).await;
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = list(format!("page_size=2&sort_by=display_name%20desc&page_token={token}")).await;
        assert_eq!(page["total_size"], 5);
        seen.extend(
            page["experiments"].as_array().unwrap().iter().map(|e| e["display_name"].as_str().unwrap().to_owned()),
        );
        token = page["next_page_token"].as_str().unwrap_or_default().to_owned();
        if token.is_empty() {
            break;
        }
        let other = call(
            &p,
            "bob",
            "GET",
            &format!("/apis/v2beta1/experiments?page_size=2&sort_by=display_name%20desc&page_token={token}"),
            Value::Null,
        )
        .await;
        assert_eq!(other.0, 400, "a token is bound to its list");
    }
    assert_eq!(seen, ["e4", "e3", "e2", "e1", "e0"]);
    // As the SDK sends it: operations by number.
    let found = list("filter=%7B%22predicates%22%3A%5B%7B%22operation%22%3A1%2C%22key%22%3A%22display_name%22%2C%22stringValue%22%3A%22e3%22%7D%5D%7D".into()).await;
    assert_eq!(found["experiments"][0]["display_name"], "e3");
    assert_eq!(found["total_size"], 1);
    for bad in [
        "page_token=eyJmIjoiIn0",
        "sort_by=id;drop%20table%20runs",
        "sort_by=name%20sideways",
        "page_size=-1",
        "page_size=x",
        "filter=%7B",
        "filter=%7B%22predicates%22%3A%5B%7B%22key%22%3A%22nope%22%7D%5D%7D",
    ] {
        let (status, body) = call(&p, "ann", "GET", &format!("/apis/v2beta1/experiments?{bad}"), Value::Null).await;
        assert_eq!((status, body["code"].as_i64()), (400, Some(3)), "{bad}: {body}");
    }
    world.kill(&tasks).await;
}

#[tokio::test]
async fn bad_requests_are_refused_with_their_reason_and_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    for (content, part) in [
        (&b""[..], "empty"),
        (b"a: [", "YAML"),
        (b"PK\x03\x04xx", "zip"),
        (b"pipelineInfo: {name: x}", "root"),
        (b"\xff\xfe", "UTF-8"),
    ] {
        let (kind, body) = multipart(content);
        let (status, body) = raw(&p, "ann", "POST", "/apis/v2beta1/pipelines/upload?name=x", &kind, body).await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(status, 400);
        assert!(body["error"].as_str().unwrap().contains(part), "{body}");
    }
    assert_eq!(ok(&p, "ann", "GET", "/apis/v2beta1/pipelines", Value::Null).await["total_size"], 0);
    for (change, part) in [
        (json!({"runtime_config": {}}), "text"),
        (json!({"runtime_config": {"parameters": {"text": "x", "zz": 1}}}), "zz"),
        (
            json!({"runtime_config": {"parameters": {"text": "x"}, "pipeline_root": "minio://mlpipeline/v2/artifacts/bob"}}),
            "not within",
        ),
        (json!({"pipeline_version_reference": {"pipeline_id": "a", "pipeline_version_id": "b"}}), "not both"),
        (json!({"display_name": " "}), "name"),
        (json!({"service_account": "../x"}), "service account"),
        (json!({"plugins_input": {"mlflow": "yes"}}), "plugins_input"),
        (json!({"pipeline_spec": {}}), "pipeline"),
    ] {
        let mut body =
            json!({"display_name": "r", "pipeline_spec": spec(), "runtime_config": {"parameters": {"text": "x"}}});
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let (status, answer) = call(&p, "ann", "POST", "/apis/v2beta1/runs", body).await;
        assert_eq!(status, 400, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(part), "{part}: {answer}");
    }
    assert_eq!(ok(&p, "ann", "GET", "/apis/v2beta1/runs", Value::Null).await["total_size"], 0);
    assert_eq!(call(&p, "ann", "GET", "/apis/v2beta1/nothing", Value::Null).await.0, 404);
    world.kill(&tasks).await;
}

#[tokio::test]
async fn what_is_said_to_plugins_is_kept_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let (p, _tasks) = World::new(good).daemon(folder.path()).await;
    let said = json!({"mlflow": {"experiment_name": "e", "disabled": false}});
    let body = json!({"display_name": "a run", "pipeline_spec": spec(), "plugins_input": said,
        "runtime_config": {"parameters": {"text": "x"}, "kfbox_plugins_input": {"made": {}}}});
    let run = ok(&p, "ann", "POST", "/apis/v2beta1/runs", body).await;
    let shown = get_run(&p, run["run_id"].as_str().unwrap()).await;
    assert_eq!((&shown["plugins_input"], &shown["runtime_config"]), (&said, &json!({"parameters": {"text": "x"}})));
}

#[tokio::test]
async fn the_pages_see_the_whole_graph_and_a_run_can_be_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(|name, task| Step { hang: name == "make", ..good(name, task) });
    let (p, tasks) = world.daemon(folder.path()).await;
    let ann = UserInfo::new("ann", []);
    let id = start(&p, "x").await;
    let run = wait(&p, &id, |r| task_pod(r).is_some()).await;
    let graph = p.run_detail(&ann, &id).await.unwrap();
    let states: Vec<(&str, &str)> = graph.nodes.iter().map(|n| (n.name.as_str(), n.state)).collect();
    assert_eq!(states, [("make", "RUNNING"), ("read", "WAITING")]);
    assert_eq!(graph.edges.len(), 1);
    assert_eq!((&graph.edges[0].from, &graph.edges[0].to), (&graph.nodes[0].id, &graph.nodes[1].id));
    assert!(p.run_detail(&UserInfo::new("bob", []), &id).await.is_err());
    let node = p.node_detail(&ann, &id, task(&run, "make")["task_id"].as_str().unwrap()).await.unwrap();
    assert_eq!(node.input_parameters["text"], "x");
    assert_eq!(p.list_runs(&ann, None, 10).await.unwrap().len(), 1);
    ok(&p, "ann", "DELETE", &format!("/apis/v2beta1/runs/{id}"), Value::Null).await;
    assert!(world.pods.lock().is_empty());
    assert_eq!(call(&p, "ann", "GET", &format!("/apis/v2beta1/runs/{id}"), Value::Null).await.0, 404);
    world.kill(&tasks).await;
    drop::<Arc<World>>(world);
}
