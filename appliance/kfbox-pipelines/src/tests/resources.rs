//! What the API server is told about resources before it takes them.

use super::{good, spec, world::World};
use crate::{Pipelines, resources};
use axum::body::Body;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt;

async fn review(p: &Pipelines, what: &str, request: Value) -> Value {
    let path = format!("/{}/{what}", resources::admission_secret(&p.inner));
    let body = json!({"request": request}).to_string();
    let request = Request::post(path).header("content-type", "application/json").body(Body::from(body)).unwrap();
    let response = p.admission_router().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    serde_json::from_slice::<Value>(&body).unwrap()["response"].clone()
}

fn schedule(name: &str, interval: i64, mark: Option<&str>) -> Value {
    let mut object = json!({
        "apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow",
        "metadata": {"name": name, "namespace": "ann", "uid": "u"},
        "spec": {"enabled": true, "trigger": {"periodicSchedule": {"intervalSecond": interval}}},
    });
    if let Some(mark) = mark {
        object["metadata"]["annotations"] = json!({"pipelines.kfbox.local/acts-for": mark});
    }
    object
}

/// The mark that the answer writes.
fn mark(response: &Value) -> String {
    assert_eq!(response["allowed"], true, "{response}");
    let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: Value = serde_json::from_slice(&patch).unwrap();
    patch[0]["value"]["pipelines.kfbox.local/acts-for"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_schedule_is_marked_with_who_said_what_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (p, _tasks) = World::new(good).daemon(folder.path()).await;
    let asked = |user: &str, old: Option<Value>, object: Value| {
        json!({"uid": "1", "kind": {"kind": "ScheduledWorkflow"}, "userInfo": {"username": user, "groups": ["g"]},
            "object": object, "oldObject": old})
    };
    let who = |object: &Value| {
        let object = serde_json::from_value(object.clone()).unwrap();
        resources::acts_for(&p.inner, &object).map(|u| u.username)
    };
    let first = mark(&review(&p, "mutate", asked("ann", None, schedule("s", 60, Some("made.up")))).await);
    let stored = schedule("s", 60, Some(&first));
    assert_eq!(who(&stored).as_deref(), Some("ann"));
    // Switched off by another: still the first one's. Changed by another: theirs.
    let mut off = stored.clone();
    off["spec"]["enabled"] = json!(false);
    off["metadata"]["annotations"] = json!({});
    assert_eq!(mark(&review(&p, "mutate", asked("bob", Some(stored.clone()), off)).await), first);
    let changed =
        mark(&review(&p, "mutate", asked("bob", Some(stored.clone()), schedule("s", 61, Some(&first)))).await);
    assert_eq!(who(&schedule("s", 61, Some(&changed))).as_deref(), Some("bob"));
    // Of another object, or made up, it says nothing.
    assert_eq!(who(&schedule("t", 60, Some(&first))), None);
    assert_eq!(who(&schedule("s", 60, Some("bWFkZQ.dXA"))), None);
    assert_eq!(who(&schedule("s", 60, None)), None);
    let request = Request::post("/guessed/mutate").header("content-type", "application/json").body(Body::from("{}"));
    let response = p.admission_router().oneshot(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_version_is_checked_when_it_comes_and_stays_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (p, _tasks) = World::new(good).daemon(folder.path()).await;
    let version = |spec: Value, display: &str| {
        json!({"apiVersion": "pipelines.kubeflow.org/v2beta1", "kind": "PipelineVersion",
            "metadata": {"name": "v", "namespace": "ann"},
            "spec": {"pipelineName": "p", "pipelineSpec": spec, "displayName": display}})
    };
    let asked = |old: Option<Value>, object: Value| json!({"uid": "1", "kind": {"kind": "PipelineVersion"}, "userInfo": {"username": "ann"}, "object": object, "oldObject": old});
    for (old, object, why) in [
        (None, version(spec(), "one"), None),
        (None, version(json!({"root": {}}), "one"), Some("the pipeline spec is invalid")),
        (None, version(json!("text"), "one"), Some("the pipeline spec is invalid")),
        (None, version(spec(), &"x".repeat(300)), Some("255")),
        (Some(version(spec(), "one")), version(spec(), "two"), None),
        (Some(version(spec(), "one")), version(json!({"other": 1}), "one"), Some("cannot be changed")),
    ] {
        let answer = review(&p, "validate", asked(old, object)).await;
        assert_eq!(answer["allowed"], why.is_none(), "{answer}");
        if let Some(why) = why {
            assert!(answer["status"]["message"].as_str().unwrap().contains(why), "{answer}");
        }
    }
}
