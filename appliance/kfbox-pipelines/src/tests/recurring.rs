//! Recurring runs through REST and engine.

use super::{call, good, ok, spec, world::World};
use crate::{Pipelines, time};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const HOUR: i64 = 3_600_000;

fn recurring(trigger: &Value, more: &Value) -> Value {
    let mut body = json!({
        "display_name": "nightly", "mode": "ENABLE", "max_concurrency": "10", "trigger": trigger,
        "pipeline_spec": spec(), "runtime_config": {"parameters": {"text": "x"}},
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn create(p: &Pipelines, body: Value) -> String {
    let made = ok(p, "ann", "POST", "/apis/v2beta1/recurringruns", body).await;
    assert_eq!(made["status"], "ENABLED", "{made}");
    made["recurring_run_id"].as_str().unwrap().to_owned()
}

/// The moments of the runs that it started, once there are `number` of them.
async fn firings(p: &Pipelines, id: &str, number: usize) -> BTreeSet<i64> {
    let mut changes = p.changes();
    let follow = async {
        loop {
            let runs = ok(p, "ann", "GET", "/apis/v2beta1/runs?namespace=ann&page_size=100", Value::Null).await;
            let own = runs["runs"].as_array().cloned().unwrap_or_default();
            let own: Vec<&Value> = own.iter().filter(|r| r["recurring_run_id"] == *id).collect();
            let moments: BTreeSet<i64> =
                own.iter().map(|r| time::parse(r["scheduled_at"].as_str().unwrap()).unwrap()).collect();
            assert_eq!(moments.len(), own.len(), "no moment fires twice");
            if moments.len() >= number {
                return moments;
            }
            changes.recv().await.unwrap();
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), follow).await.expect("it does not fire")
}

#[tokio::test]
async fn a_cron_schedule_catches_up_hour_by_hour_and_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    let now = time::now();
    let this_hour = now / HOUR * HOUR;
    let trigger = json!({"cron_schedule": {
        "cron": "0 0 * * * *", "start_time": time::format(this_hour - 3 * HOUR), "end_time": time::format(this_hour + 1),
    }});
    let id = create(&p, recurring(&trigger, &json!({}))).await;
    let wanted: BTreeSet<i64> = (0..3).map(|n| this_hour - n * HOUR).collect();
    assert_eq!(firings(&p, &id, 3).await, wanted);

    world.kill(&tasks).await;
    let (p, _tasks) = world.daemon(folder.path()).await;
    // One more schedule makes the second daemon go through all of them; what fired does not fire again.
    let other = create(&p, recurring(&trigger, &json!({"display_name": "other", "no_catchup": true}))).await;
    assert_eq!(firings(&p, &other, 1).await, BTreeSet::from([this_hour]), "only the latest, without catching up");
    assert_eq!(firings(&p, &id, 3).await, wanted);
}

#[tokio::test]
async fn macros_in_parameters_stand_for_the_firing() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, _tasks) = world.daemon(folder.path()).await;
    let hour = time::now() / HOUR * HOUR;
    let trigger = json!({"cron_schedule": {
        "cron": "0 0 * * * *", "start_time": time::format(hour - 1), "end_time": time::format(hour + 1),
    }});
    let text = "[[Index]] [[RunUUID]] [[ScheduledTime.2006-01-02T15:04:05.000Z07:00]] [[1],[2]]";
    let id = create(&p, recurring(&trigger, &json!({"runtime_config": {"parameters": {"text": text}}}))).await;
    firings(&p, &id, 1).await;
    let runs = ok(&p, "ann", "GET", "/apis/v2beta1/runs?namespace=ann", Value::Null).await;
    let run = &runs["runs"][0];
    let expected = format!("1 {} {} [[1],[2]]", run["run_id"].as_str().unwrap(), time::format(hour));
    assert_eq!(run["runtime_config"]["parameters"]["text"], expected, "{run}");
    let kept = ok(&p, "ann", "GET", &format!("/apis/v2beta1/recurringruns/{id}"), Value::Null).await;
    assert_eq!(kept["runtime_config"]["parameters"]["text"], text, "the schedule keeps its words");
}

#[tokio::test]
async fn a_schedule_that_cannot_be_used_is_refused_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, _tasks) = world.daemon(folder.path()).await;
    for (trigger, why) in [
        (json!({}), "no trigger"),
        (json!({"cron_schedule": {"cron": "*/5 * * * *"}}), "seconds, minutes"),
        (json!({"cron_schedule": {"cron": "0 0 0 30 2 *"}}), "never"),
        (json!({"cron_schedule": {"cron": "0 0 * * * *", "start_time": "soon"}}), "start_time"),
        (json!({"periodic_schedule": {"interval_second": 1}}), "interval_second"),
    ] {
        let (status, body) =
            call(&p, "ann", "POST", "/apis/v2beta1/recurringruns", recurring(&trigger, &json!({}))).await;
        assert_eq!(status, 400, "{trigger}: {body}");
        assert!(body.to_string().contains(why), "{trigger}: {body}");
    }
}

/// Until a recurring run says why it was refused, or that it was not.
async fn refusal(p: &Pipelines, id: &str, wanted: Option<&str>) {
    let look = async {
        loop {
            let shown = ok(p, "ann", "GET", &format!("/apis/v2beta1/recurringruns/{id}"), Value::Null).await;
            match (wanted, shown["error"]["message"].as_str()) {
                (Some(part), Some(message)) if message.contains(part) => return,
                (None, None) => return,
                _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), look).await.expect("its error does not change");
}

#[tokio::test]
async fn nothing_is_started_for_who_is_shut_out_and_nothing_is_made_up_for_later() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, _tasks) = world.daemon(folder.path()).await;
    let past = json!({"periodic_schedule": {"start_time": "2026-01-01T00:00:00Z", "interval_second": 3600}});
    let body = recurring(&past, &json!({"mode": "DISABLE", "no_catchup": true, "kfbox_last": 1, "kfbox_owner": "bob"}));
    let made = ok(&p, "ann", "POST", "/apis/v2beta1/recurringruns", body).await;
    let id = made["recurring_run_id"].as_str().unwrap().to_owned();
    world.away.lock().insert("ann".into());
    ok(&p, "ann", "POST", &format!("/apis/v2beta1/recurringruns/{id}:enable"), Value::Null).await;
    refusal(&p, &id, Some("no run is started for ann: the account is disabled")).await;
    let runs = ok(&p, "ann", "GET", "/apis/v2beta1/runs?namespace=ann", Value::Null).await;
    assert_eq!(runs["total_size"], 0, "{runs}");
    // Back: the firing that was refused stays refused.
    world.away.lock().clear();
    let other = create(&p, recurring(&past, &json!({"display_name": "other", "no_catchup": true}))).await;
    assert_eq!(firings(&p, &other, 1).await.len(), 1);
    let runs = ok(&p, "ann", "GET", "/apis/v2beta1/runs?namespace=ann", Value::Null).await;
    assert_eq!(runs["total_size"], 1, "{runs}");
    refusal(&p, &other, None).await;
}

#[tokio::test]
async fn a_namespace_that_ends_takes_all_that_is_its_own_and_closes() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(|name, task| super::world::Step { hang: name == "make", ..good(name, task) });
    let (p, _tasks) = world.daemon(folder.path()).await;
    let open = super::start(&p, "x").await;
    super::wait(&p, &open, |r| super::task_pod(r).is_some()).await;
    create(&p, recurring(&json!({"cron_schedule": {"cron": "0 0 0 1 1 *"}}), &json!({}))).await;
    let body =
        json!({"pipeline": {"display_name": "p"}, "pipeline_version": {"display_name": "v", "pipeline_spec": spec()}});
    ok(&p, "ann", "POST", "/apis/v2beta1/pipelines/create", body.clone()).await;
    ok(&p, "bob", "POST", "/apis/v2beta1/pipelines/create", body.clone()).await;
    let forgotten = p.forget_namespace("ann").await.unwrap();
    assert_eq!((forgotten.runs, forgotten.recurring_runs, forgotten.pipelines, forgotten.experiments), (1, 1, 1, 1));
    assert!(world.pods.lock().is_empty(), "its pods are gone");
    let (status, answer) = call(&p, "ann", "POST", "/apis/v2beta1/pipelines/create", body.clone()).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("being deleted"), "{answer}");
    assert_eq!(p.forget_namespace("ann").await.unwrap(), crate::Forgotten::default(), "again finds nothing");
    assert_eq!(p.namespaces_in_use().await.unwrap(), ["bob"]);
    p.welcome_namespace("ann");
    for list in ["runs", "pipelines", "experiments", "recurringruns"] {
        let shown = ok(&p, "ann", "GET", &format!("/apis/v2beta1/{list}?namespace=ann"), Value::Null).await;
        assert_eq!(shown["total_size"], 0, "{list}: {shown}");
    }
    ok(&p, "ann", "POST", "/apis/v2beta1/pipelines/create", body).await;
}
