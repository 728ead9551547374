//! Every operation that upstream's swagger names is called, and its answer held against the shape that swagger gives it.

use super::{good, raw, spec, start, wait, world::World};
use crate::{Pipelines, time};
use serde_json::{Map, Value, json};
use std::path::Path;

fn swagger(version: &str) -> Option<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/kfp/api/backend/api");
    let text = std::fs::read_to_string(folder.join(version).join("swagger/kfp_api_single_file.swagger.json")).ok()?;
    Some(serde_json::from_str(&text).unwrap())
}

/// What `value` has that the schema does not allow. protobuf's JSON leaves out what is empty, so nothing is required.
fn wrong(all: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap();
        return wrong(all, &all["definitions"][name], value, at, found);
    }
    if let Some(names) = schema["enum"].as_array() {
        if !names.contains(value) {
            found.push(format!("{at}: {value} is none of {names:?}"));
        }
        return;
    }
    let fits = match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("string"), Some("date-time")) => value.as_str().is_some_and(|t| time::parse(t).is_some()),
        (Some("string"), Some("int64")) => value.as_str().is_some_and(|t| t.parse::<i64>().is_ok()),
        (Some("string"), _) => value.is_string(),
        (Some("integer"), _) => value.is_i64(),
        (Some("number"), _) => value.is_number(),
        (Some("boolean"), _) => value.is_boolean(),
        (Some("array"), _) => {
            for (n, item) in value.as_array().into_iter().flatten().enumerate() {
                wrong(all, &schema["items"], item, &format!("{at}[{n}]"), found);
            }
            value.is_array()
        }
        (Some("object"), _) => {
            for (name, inner) in value.as_object().into_iter().flatten() {
                let at = format!("{at}.{name}");
                match (schema["properties"].get(name), schema.get("additionalProperties"), schema.get("properties")) {
                    (Some(known), ..) | (None, Some(known), _) => wrong(all, known, inner, &at, found),
                    // An object without named properties is a free one.
                    (None, None, None) => {}
                    _ => found.push(format!("{at} is not in the swagger")),
                }
            }
            value.is_object()
        }
        _ => true,
    };
    if !fits {
        found.push(format!("{at}: {value} should be {schema}"));
    }
}

struct Ids(Map<String, Value>);

impl Ids {
    fn get(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_else(|| panic!("no id for {name}"))
    }
}

async fn json_call(p: &Pipelines, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let (status, answer) = raw(p, "ann", method, path, "application/json", bytes).await;
    (status.as_u16(), serde_json::from_slice(&answer).unwrap_or_default())
}

async fn upload(p: &Pipelines, path: &str) -> (u16, Value) {
    let package = serde_yaml::to_string(&spec()).unwrap();
    let body = format!(
        "--x\r\nContent-Disposition: form-data; name=\"uploadfile\"; filename=\"p.yaml\"\r\n\r\n{package}\r\n--x--\r\n"
    );
    let (status, answer) = raw(p, "ann", "POST", path, "multipart/form-data; boundary=x", body.into_bytes()).await;
    (status.as_u16(), serde_json::from_slice(&answer).unwrap_or_default())
}

/// One of each kind.
async fn objects(p: &Pipelines, world: &World) -> Ids {
    let unique = uuid::Uuid::new_v4().to_string();
    let (status, made) =
        upload(p, &format!("/apis/v2beta1/pipelines/upload?name={unique}&tags=%7B%22team%22:%22blue%22%7D")).await;
    assert_eq!(status, 200, "{made}");
    let pipeline = made["pipeline_id"].as_str().unwrap().to_owned();
    let (_, versions) =
        json_call(p, "GET", &format!("/apis/v2beta1/pipelines/{pipeline}/versions"), &Value::Null).await;
    let version = versions["pipeline_versions"][0]["pipeline_version_id"].clone();
    let named = json!({"display_name": unique});
    let (_, experiment) = json_call(p, "POST", "/apis/v2beta1/experiments", &named).await;
    let run = start(p, &unique).await;
    let job = json!({
        "display_name": "nightly", "mode": "ENABLE", "pipeline_spec": spec(), "max_concurrency": "1",
        "trigger": {"cron_schedule": {"cron": "0 0 0 1 1 *"}}, "runtime_config": {"parameters": {"text": "x"}},
    });
    let (_, job) = json_call(p, "POST", "/apis/v2beta1/recurringruns", &job).await;
    let ended = wait(p, &run, super::ended).await;
    world.objects.lock().insert("mlpipeline/v2/artifacts/ann/x.csv".into(), b"a,b\n1,2\n".to_vec());
    let url = format!("https://packages.example/{unique}.yaml");
    world.packages.lock().insert(url.clone(), serde_yaml::to_string(&spec()).unwrap().into_bytes());
    let node = &super::task(&ended, "make")["task_id"];
    let ids = json!({
        "pipeline": pipeline, "version": version, "experiment": experiment["experiment_id"], "run": run,
        "job": job["recurring_run_id"], "name": unique, "url": url, "node": node,
    });
    Ids(ids.as_object().unwrap().clone())
}

fn path_of(template: &str, ids: &Ids) -> String {
    let resource = template.split('/').nth(3).unwrap_or_default().split([':', '{']).next().unwrap_or_default();
    let own = match resource {
        "experiments" => "experiment",
        "runs" => "run",
        "jobs" | "recurringruns" => "job",
        "pipeline_versions" => "version",
        _ => "pipeline",
    };
    let mut path = template.to_owned();
    for (placeholder, id) in [
        ("{pipeline_version.pipeline_version_id}", ids.get("version")),
        ("{pipeline_version_id}", ids.get("version")),
        ("{version_id}", ids.get("version")),
        ("{pipeline_version.pipeline_id}", ids.get("pipeline")),
        ("{pipeline.pipeline_id}", ids.get("pipeline")),
        ("{name}", ids.get("name")),
        ("{namespace}", "ann"),
    ] {
        path = path.replace(placeholder, id);
    }
    for placeholder in ["{id}", "{run_id}", "{experiment_id}", "{recurring_run_id}", "{pipeline_id}"] {
        path = path.replace(placeholder, ids.get(own));
    }
    path
}

fn body_of(operation: &str, ids: &Ids) -> Value {
    let refer = |kind: &str, id: &str, how: &str| json!([{"key": {"type": kind, "id": id}, "relationship": how}]);
    let other = uuid::Uuid::new_v4().to_string();
    let trigger = json!({"cron_schedule": {"cron": "0 0 0 1 1 *"}});
    let given = json!({"parameters": {"text": "x"}});
    let manifest = json!({"pipeline_manifest": spec().to_string(), "runtime_config": given});
    let meta =
        |labels: Value| json!({"metadata": {"name": "w", "namespace": "ann", "uid": ids.get("job"), "labels": labels}});
    match operation {
        "ExperimentService_CreateExperiment" => json!({"display_name": other, "namespace": "ann", "description": "d"}),
        "ExperimentService_CreateExperimentV1" => {
            json!({"name": other, "resource_references": refer("NAMESPACE", "ann", "OWNER")})
        }
        "PipelineService_CreatePipeline" => json!({"display_name": other, "namespace": "ann", "tags": {"a": "b"}}),
        "PipelineService_CreatePipelineV1" => json!({"name": other, "url": {"pipeline_url": ids.get("url")}}),
        "PipelineService_CreatePipelineAndVersion" => json!({
            "pipeline": {"display_name": other, "namespace": "ann"},
            "pipeline_version": {"package_url": {"pipeline_url": ids.get("url")}},
        }),
        "PipelineService_CreatePipelineVersion" => {
            json!({"display_name": other, "package_url": {"pipeline_url": ids.get("url")}})
        }
        "PipelineService_CreatePipelineVersionV1" => json!({
            "name": other, "package_url": {"pipeline_url": ids.get("url")},
            "resource_references": refer("PIPELINE", ids.get("pipeline"), "OWNER"),
        }),
        "PipelineService_UpdatePipeline" | "PipelineService_UpdatePipelineVersion" => {
            json!({"display_name": "shown", "tags": {"team": "red"}})
        }
        "RunService_CreateRun" => json!({
            "display_name": other, "pipeline_version_reference": {"pipeline_id": ids.get("pipeline")},
            "runtime_config": given,
        }),
        "RunService_CreateRunV1" => json!({
            "name": other, "pipeline_spec": manifest,
            "resource_references": refer("EXPERIMENT", ids.get("experiment"), "OWNER"),
        }),
        "RunService_ReportRunMetricsV1" => json!({"metrics": [
            {"name": "accuracy", "node_id": ids.get("node"), "number_value": 0.5, "format": "RAW"},
            {"name": "accuracy", "node_id": ids.get("node"), "number_value": 0.6},
            {"name": "1 wrong", "node_id": ids.get("node"), "number_value": 0.6},
        ]}),
        "RecurringRunService_CreateRecurringRun" => json!({
            "display_name": other, "mode": "ENABLE", "max_concurrency": "1", "trigger": trigger,
            "pipeline_spec": spec(), "runtime_config": given,
        }),
        "JobService_CreateJob" => json!({
            "name": other, "enabled": true, "max_concurrency": "10", "trigger": trigger, "pipeline_spec": manifest,
            "resource_references": refer("EXPERIMENT", ids.get("experiment"), "OWNER"),
        }),
        "ReportService_ReportWorkflow" => json!(meta(json!({"pipeline/runid": ids.get("run")})).to_string()),
        "ReportService_ReportScheduledWorkflow" => json!(meta(json!({})).to_string()),
        "VisualizationService_CreateVisualizationV1" => {
            json!({"type": "TABLE", "source": "minio://mlpipeline/v2/artifacts/ann/x.csv"})
        }
        _ => Value::Null,
    }
}

fn query_of(operation: &str, ids: &Ids) -> String {
    match operation {
        "AuthService_Authorize" => "?namespace=ann&resources=VIEWERS&verb=GET".into(),
        "PipelineService_ListPipelineVersionsV1" => {
            format!("?resource_key.type=PIPELINE&resource_key.id={}", ids.get("pipeline"))
        }
        "PipelineService_DeletePipeline" => "?cascade=true".into(),
        "DummyFilterService_GetFilter" => {
            "?filter=%7B%22predicates%22:[%7B%22key%22:%22name%22,%22operation%22:9,%22string_value%22:%22x%22%7D]%7D"
                .into()
        }
        _ => String::new(),
    }
}

async fn walk(version: &str, operations: usize) {
    let Some(swagger) = swagger(version) else { return };
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(|name, task| {
        let mut step = good(name, task);
        // A run that failed can be retried.
        step.exit = i32::from(name == "read");
        step
    });
    let (p, tasks) = world.daemon(folder.path()).await;
    let (mut problems, mut seen) = (Vec::new(), 0);
    let lasting = objects(&p, &world).await;
    for (template, methods) in swagger["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap().iter().filter(|(m, _)| *m != "parameters") {
            seen += 1;
            let id = operation["operationId"].as_str().unwrap();
            let spends =
                ["_Delete", "_Archive", "_Terminate", "_Retry", "_Disable"].iter().any(|verb| id.contains(verb));
            let own;
            let ids = if spends {
                own = objects(&p, &world).await;
                &own
            } else {
                &lasting
            };
            let (status, answer) = match id {
                "UploadPipeline" => upload(&p, &format!("{template}?name={}", uuid::Uuid::new_v4())).await,
                "UploadPipelineVersion" => {
                    let name = uuid::Uuid::new_v4();
                    let path = format!("{template}?name={name}&pipelineid={}", ids.get("pipeline"));
                    upload(&p, &path).await
                }
                _ => {
                    let path = format!("{}{}", path_of(template, ids), query_of(id, ids));
                    json_call(&p, &method.to_uppercase(), &path, &body_of(id, ids)).await
                }
            };
            // It has ended: there is nothing left to stop.
            let refused = id.contains("TerminateRun") && status == 400;
            if status != 200 && !refused {
                problems.push(format!("{id} answers {status}: {answer}"));
                continue;
            }
            if refused {
                continue;
            }
            let mut answer = answer;
            if id == "HealthzService_GetHealthz" {
                // Upstream's server gives its version too, beside what its swagger says.
                answer.as_object_mut().unwrap().remove("tag_name");
            }
            wrong(&swagger, &operation["responses"]["200"]["schema"], &answer, id, &mut problems);
            let listed = ["experiments", "pipelines", "pipeline_versions", "versions", "runs", "jobs", "recurringRuns"];
            if id.contains("_List") && !listed.iter().any(|l| answer[l].as_array().is_some_and(|a| !a.is_empty())) {
                problems.push(format!("{id} lists nothing: {answer}"));
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert_eq!(seen, operations);
    world.kill(&tasks).await;
}

#[tokio::test]
async fn every_operation_of_v2beta1_is_served_in_its_shape() {
    walk("v2beta1", 40).await;
}

#[tokio::test]
async fn every_operation_of_v1beta1_is_served_in_its_shape() {
    walk("v1beta1", 36).await;
}

#[tokio::test]
async fn what_is_not_there_says_so_with_upstreams_codes() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    for (method, path, status, code) in [
        ("GET", "/apis/v1beta1/nothing", 404, 5),
        ("PUT", "/apis/v2beta1/runs", 501, 12),
        ("GET", "/apis/v1beta1/jobs/nothing", 404, 5),
        ("GET", "/apis/v2beta1/runs?page_size=-1", 400, 3),
        ("GET", "/apis/v2beta1/runs?sort_by=nothing", 400, 3),
        ("GET", "/apis/v2beta1/runs?namespace=bob", 403, 7),
        ("GET", "/apis/v1beta1/runs?resource_reference_key.type=NAMESPACE&resource_reference_key.id=bob", 403, 7),
        ("GET", "/apis/v1beta1/runs?resource_reference_key.type=JOB&resource_reference_key.id=x", 400, 3),
        ("GET", "/apis/v1beta1/experiments?resource_reference_key.type=Nothing", 400, 3),
        ("POST", "/apis/v1beta1/pipelines", 400, 3),
        ("POST", "/apis/v1beta1/runs/nothing:reportMetrics", 404, 5),
    ] {
        let body = if method == "POST" { json!({"name": "x"}) } else { Value::Null };
        let (found, answer) = json_call(&p, method, path, &body).await;
        assert_eq!((found, &answer["code"]), (status, &json!(code)), "{method} {path}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|m| !m.is_empty()) && answer["error"].is_string(), "{answer}");
    }
    let (status, _) = raw(&p, "", "GET", "/apis/v1beta1/runs", "", Vec::new()).await;
    assert_eq!(status, 401);
    world.kill(&tasks).await;
}
