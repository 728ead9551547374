//! v1beta1: the same rows as v2beta1, in the older shapes.

use super::{call, good, ok, spec, wait, world::World};
use serde_json::{Value, json};

const ARGO: &str =
    "apiVersion: argoproj.io/v1alpha1\nkind: Workflow\nmetadata: {generateName: old-}\nspec: {entrypoint: x}\n";

fn reference(kind: &str, id: &Value) -> Value {
    json!({"key": {"type": kind, "id": id}, "relationship": "OWNER"})
}

#[tokio::test]
async fn a_run_is_the_same_run_in_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    let experiment = ok(&p, "ann", "POST", "/apis/v1beta1/experiments", json!({"name": "older"})).await;
    assert_eq!(experiment["storage_state"], "STORAGESTATE_AVAILABLE");
    assert_eq!(experiment["resource_references"][0]["key"], json!({"type": "NAMESPACE", "id": "ann"}));
    // Text, as kfp 1.x sends parameters; by number, as an enumeration may come.
    let body = json!({
        "name": "from v1", "pipeline_spec": {"workflow_manifest": spec().to_string(), "parameters": [{"name": "text", "value": "7"}]},
        "resource_references": [{"key": {"type": 1, "id": experiment["id"]}, "relationship": 1}],
    });
    let made = ok(&p, "ann", "POST", "/apis/v1beta1/runs", body).await;
    let id = made["run"]["id"].as_str().unwrap().to_owned();
    let run = wait(&p, &id, super::ended).await;
    assert_eq!((&run["state"], &run["experiment_id"]), (&json!("SUCCEEDED"), &experiment["id"]), "{run}");
    assert_eq!(run["runtime_config"]["parameters"]["text"], "7", "the pipeline says that it is a string");
    let detail = ok(&p, "ann", "GET", &format!("/apis/v1beta1/runs/{id}"), Value::Null).await;
    assert_eq!(detail["run"]["status"], "Succeeded", "{detail}");
    assert_eq!(detail["run"]["pipeline_spec"]["runtime_config"]["parameters"]["text"], "7");
    let manifest: Value =
        serde_json::from_str(detail["pipeline_runtime"]["workflow_manifest"].as_str().unwrap()).unwrap();
    let node = &super::task(&run, "make")["task_id"];
    assert_eq!(manifest["status"]["nodes"][node.as_str().unwrap()]["phase"], "Succeeded", "{manifest}");

    // The node's artifact and metrics.
    let path = format!("/apis/v1beta1/runs/{id}/nodes/{}/artifacts/data:read", node.as_str().unwrap());
    assert_eq!(call(&p, "ann", "GET", &path, Value::Null).await.0, 404, "a folder is no file");
    let metric =
        json!({"metrics": [{"name": "loss", "node_id": node, "number_value": "0.25", "format": "PERCENTAGE"}]});
    let path = format!("/apis/v1beta1/runs/{id}:reportMetrics");
    assert_eq!(ok(&p, "ann", "POST", &path, metric.clone()).await["results"][0]["status"], "OK");
    assert_eq!(ok(&p, "ann", "POST", &path, metric.clone()).await["results"][0]["status"], "DUPLICATE_REPORTING");
    assert_eq!(call(&p, "viewer", "POST", &path, metric.clone()).await.0, 403);
    assert_eq!(call(&p, "bob", "POST", &path, metric).await.0, 404);
    let listed = ok(&p, "ann", "GET", "/apis/v1beta1/runs?sort_by=metric:loss%20desc", Value::Null).await;
    assert_eq!(listed["runs"][0]["metrics"][0]["number_value"], 0.25, "{listed}");

    // Filters by v1beta1's names, and archiving.
    ok(&p, "ann", "POST", &format!("/apis/v1beta1/runs/{id}:archive"), Value::Null).await;
    let filter = |state: &str| {
        let filter = json!({"predicates": [
            {"op": "EQUALS", "key": "storage_state", "string_value": state}, {"op": 1, "key": "status", "string_value": "Succeeded"},
        ]});
        format!(
            "/apis/v1beta1/runs?filter={}",
            percent_encoding::utf8_percent_encode(&filter.to_string(), percent_encoding::NON_ALPHANUMERIC)
        )
    };
    let count = async |state: &str| ok(&p, "ann", "GET", &filter(state), Value::Null).await["total_size"].clone();
    assert_eq!(count("STORAGESTATE_ARCHIVED").await, 1);
    assert_eq!(count("STORAGESTATE_AVAILABLE").await, 0);
    assert_eq!(super::get_run(&p, &id).await["storage_state"], "ARCHIVED");
    let (status, refused) = call(&p, "ann", "POST", &format!("/apis/v1beta1/runs/{id}/terminate"), Value::Null).await;
    assert_eq!(status, 400, "{refused}");
    ok(&p, "ann", "DELETE", &format!("/apis/v1beta1/runs/{id}"), Value::Null).await;
    assert_eq!(call(&p, "ann", "GET", &format!("/apis/v2beta1/runs/{id}"), Value::Null).await.0, 404);
    world.kill(&tasks).await;
}

#[tokio::test]
async fn a_pipeline_is_shown_with_its_default_version() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    let package = serde_yaml::to_string(&spec()).unwrap().into_bytes();
    world.packages.lock().insert("https://packages.example/p.yaml".into(), package);
    let url = |url: &str| json!({"name": "by url", "url": {"pipeline_url": url}});
    let made = ok(&p, "ann", "POST", "/apis/v1beta1/pipelines", url("https://packages.example/p.yaml")).await;
    let first = made["default_version"]["id"].clone();
    assert_eq!(made["url"]["pipeline_url"], "https://packages.example/p.yaml", "{made}");
    for other in
        ["https://packages.example/absent.yaml", "http://169.254.169.254/latest/meta-data", "file:///etc/passwd"]
    {
        assert_eq!(call(&p, "ann", "POST", "/apis/v1beta1/pipelines", url(other)).await.0, 400, "{other}");
    }
    let version = json!({
        "name": "second", "package_url": {"pipeline_url": "https://packages.example/p.yaml"},
        "resource_references": [reference("PIPELINE", &made["id"])],
    });
    let second = ok(&p, "ann", "POST", "/apis/v1beta1/pipeline_versions", version).await;
    let path = format!("/apis/v1beta1/pipelines/{}", made["id"].as_str().unwrap());
    let default = async || ok(&p, "ann", "GET", &path, Value::Null).await["default_version"]["id"].clone();
    assert_eq!(default().await, second["id"], "the newest");
    let set = format!("{path}/default_version/{}", first.as_str().unwrap());
    assert_eq!(call(&p, "viewer", "POST", &set, Value::Null).await.0, 403);
    ok(&p, "ann", "POST", &set, Value::Null).await;
    assert_eq!(default().await, first);
    let run = json!({"name": "of the default", "pipeline_spec": {"pipeline_id": made["id"], "runtime_config": {
        "parameters": {"text": {"string_value": "as kfp 1.8 sends it"}}}}});
    let run = ok(&p, "ann", "POST", "/apis/v1beta1/runs", run).await;
    let run = wait(&p, run["run"]["id"].as_str().unwrap(), super::ended).await;
    assert_eq!(run["pipeline_version_reference"]["pipeline_version_id"], first);
    assert_eq!(run["runtime_config"]["parameters"]["text"], "as kfp 1.8 sends it");

    let template = ok(&p, "ann", "GET", &format!("{path}/templates"), Value::Null).await;
    let read: Value = serde_yaml::from_str(template["template"].as_str().unwrap()).unwrap();
    assert_eq!(read, spec());
    let named = ok(&p, "ann", "GET", "/apis/v1beta1/namespaces/-/pipelines/by%20url", Value::Null).await;
    assert_eq!(named["id"], made["id"]);
    assert_eq!(call(&p, "bob", "GET", &path, Value::Null).await.0, 404);
    ok(&p, "ann", "DELETE", &path, Value::Null).await;
    assert_eq!(call(&p, "ann", "GET", &path, Value::Null).await.0, 404);
    world.kill(&tasks).await;
}

#[tokio::test]
async fn an_argo_workflow_is_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    world.packages.lock().insert("https://packages.example/old.yaml".into(), ARGO.into());
    for (path, body) in [
        ("/apis/v1beta1/runs", json!({"name": "x", "pipeline_spec": {"workflow_manifest": ARGO}})),
        ("/apis/v1beta1/jobs", json!({"name": "x", "pipeline_spec": {"workflow_manifest": ARGO}})),
        ("/apis/v1beta1/pipelines", json!({"name": "x", "url": {"pipeline_url": "https://packages.example/old.yaml"}})),
    ] {
        let (status, answer) = call(&p, "ann", "POST", path, body).await;
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(
            status == 400 && message.contains("Argo Workflow") && message.contains("kfp dsl compile"),
            "{path}: {answer}"
        );
    }
    world.kill(&tasks).await;
}

#[tokio::test]
async fn a_job_is_a_recurring_run() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    let body = |most: i64| {
        json!({
            "name": "nightly", "description": "d", "max_concurrency": most.to_string(), "enabled": true, "no_catchup": true,
            "trigger": {"cron_schedule": {"cron": "0 0 0 1 1 *"}},
            "pipeline_spec": {"pipeline_manifest": spec().to_string(), "runtime_config": {"parameters": {"text": "x"}}},
        })
    };
    assert_eq!(call(&p, "ann", "POST", "/apis/v1beta1/jobs", body(11)).await.0, 400);
    let job = ok(&p, "ann", "POST", "/apis/v1beta1/jobs", body(3)).await;
    assert_eq!(
        (&job["enabled"], &job["max_concurrency"], &job["no_catchup"]),
        (&json!(true), &json!("3"), &json!(true))
    );
    let id = job["id"].as_str().unwrap();
    ok(&p, "ann", "POST", &format!("/apis/v1beta1/jobs/{id}/disable"), Value::Null).await;
    let newer = ok(&p, "ann", "GET", &format!("/apis/v2beta1/recurringruns/{id}"), Value::Null).await;
    assert_eq!(
        (&newer["status"], &newer["mode"], &newer["description"]),
        (&json!("DISABLED"), &json!("DISABLE"), &json!("d"))
    );
    let text = newer.to_string() + &job.to_string();
    assert!(!text.contains("kfbox_"), "what is the schedule's own is not shown: {text}");
    for (by, id) in [("EXPERIMENT", newer["experiment_id"].as_str().unwrap()), ("NAMESPACE", "ann")] {
        let path = format!(
            "/apis/v1beta1/jobs?resource_reference_key.type={by}&resource_reference_key.id={id}&sort_by=description"
        );
        assert_eq!(ok(&p, "ann", "GET", &path, Value::Null).await["jobs"][0]["enabled"], false);
    }
    ok(&p, "ann", "POST", &format!("/apis/v1beta1/jobs/{id}/enable"), Value::Null).await;
    assert_eq!(call(&p, "viewer", "DELETE", &format!("/apis/v1beta1/jobs/{id}"), Value::Null).await.0, 403);
    ok(&p, "ann", "DELETE", &format!("/apis/v1beta1/jobs/{id}"), Value::Null).await;
    assert_eq!(call(&p, "ann", "GET", &format!("/apis/v2beta1/recurringruns/{id}"), Value::Null).await.0, 404);
    world.kill(&tasks).await;
}

#[tokio::test]
async fn pictures_that_are_drawn_by_python_are_refused_with_what_to_do_instead() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    let path = "/apis/v1beta1/visualizations/ann";
    for (kind, advice) in [("TFDV", "get_statistics_html"), ("TFMA", "tensorflow-model-analysis"), ("CUSTOM", "a step")]
    {
        let body =
            json!({"type": kind, "source": "minio://mlpipeline/v2/artifacts/ann/x", "arguments": "{\"code\": []}"});
        let (status, answer) = call(&p, "ann", "POST", path, body.clone()).await;
        let said = answer["message"].as_str().unwrap_or_default();
        assert!(status == 501 && said.contains(advice) && said.contains("dsl.HTML"), "{kind}: {status} {answer}");
        assert_eq!(call(&p, "bob", "POST", path, body).await.0, 403, "rights come first");
    }
    world.kill(&tasks).await;
}
