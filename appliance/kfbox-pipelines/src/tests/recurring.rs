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
