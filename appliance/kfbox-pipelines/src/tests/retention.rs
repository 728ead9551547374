//! What goes with a run, what stays, and what age and number take.

use super::{call, good, ok, start, wait, world::World};
use crate::{Pipelines, Retention, retention};
use serde_json::Value;
use std::time::Duration;

async fn delete(p: &Pipelines, run: &str) {
    ok(p, "ann", "DELETE", &format!("/apis/v2beta1/runs/{run}"), Value::Null).await;
    retention::sweep(&p.inner).await.unwrap();
}

fn objects_of(world: &World, run: &str) -> usize {
    world.objects.lock().keys().filter(|k| k.contains(run)).count()
}

#[tokio::test]
async fn a_deleted_run_leaves_only_what_others_use() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, tasks) = world.daemon(folder.path()).await;
    let first = start(&p, "x").await;
    wait(&p, &first, super::ended).await;
    // The second run takes both steps from the cache: its artifacts are the first one's.
    let second = start(&p, "x").await;
    wait(&p, &second, super::ended).await;
    let other = start(&p, "y").await;
    wait(&p, &other, super::ended).await;
    assert_eq!((objects_of(&world, &first), objects_of(&world, &second)), (2, 0));

    delete(&p, &first).await;
    assert_eq!(objects_of(&world, &first), 2, "the second run still shows them");
    assert!(!folder.path().join("step-logs").join(&first).exists());
    delete(&p, &other).await;
    assert_eq!(objects_of(&world, &other), 0);

    // Killed between the rows and the artifacts: the next start goes on.
    ok(&p, "ann", "DELETE", &format!("/apis/v2beta1/runs/{second}"), Value::Null).await;
    world.kill(&tasks).await;
    let (p, tasks) = world.daemon(folder.path()).await;
    retention::sweep(&p.inner).await.unwrap();
    assert_eq!(objects_of(&world, &first), 0, "nobody uses them now");
    assert!(p.inner.store.leftovers().await.unwrap().is_empty());
    let again = start(&p, "x").await;
    assert_eq!(wait(&p, &again, super::ended).await["state"], "SUCCEEDED", "and nothing is reused that is gone");
    world.kill(&tasks).await;
}

#[tokio::test]
async fn age_and_number_take_ended_runs_only() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(|name, task| super::Step { hang: task.to_string().contains("waits"), ..good(name, task) });
    let (p, tasks) = world.daemon(folder.path()).await;
    let mut runs = Vec::new();
    for text in ["a", "b", "c"] {
        let run = start(&p, text).await;
        wait(&p, &run, super::ended).await;
        runs.push(run);
    }
    let goes_on = start(&p, "waits").await;
    wait(&p, &goes_on, |r| r["state"] == "RUNNING").await;
    retention::sweep(&p.inner).await.unwrap();
    assert_eq!(p.inner.store.runs_beyond(0, 10).await.unwrap().len(), 3, "off by default");
    world.kill(&tasks).await;

    let (p, tasks) =
        world.daemon_keeping(folder.path(), Retention { runs_per_experiment: Some(1), ..Retention::default() }).await;
    retention::sweep(&p.inner).await.unwrap();
    let found =
        async |p: &Pipelines, id: &str| call(p, "ann", "GET", &format!("/apis/v2beta1/runs/{id}"), Value::Null).await.0;
    for (run, status) in [(&runs[0], 404), (&runs[1], 404), (&runs[2], 200), (&goes_on, 200)] {
        assert_eq!(found(&p, run).await, status);
    }
    world.kill(&tasks).await;

    let logs = |run: &str| folder.path().join("step-logs").join(run);
    assert!(logs(&runs[2]).exists());
    let keep = Retention { logs_for: Some(Duration::ZERO), ..Retention::default() };
    let (p, tasks) = world.daemon_keeping(folder.path(), keep).await;
    retention::sweep(&p.inner).await.unwrap();
    assert!(!logs(&runs[2]).exists() && found(&p, &runs[2]).await == 200, "the run outlives its logs");
    world.kill(&tasks).await;

    let keep = Retention { runs_for: Some(Duration::ZERO), ..Retention::default() };
    let (p, tasks) = world.daemon_keeping(folder.path(), keep).await;
    retention::sweep(&p.inner).await.unwrap();
    assert_eq!((found(&p, &runs[2]).await, found(&p, &goes_on).await), (404, 200));
    assert_eq!(objects_of(&world, &runs[2]), 0);
    world.kill(&tasks).await;
}
