use super::*;
use serde_json::{Value, json};
use std::time::Duration;

fn config_map(name: &str, data: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
           "metadata": {"name": name, "namespace": "a", "labels": {"app": "x"}, "resourceVersion": "stale"},
           "data": {"k": data}})
}

async fn put(store: &Store, name: &str, data: &str) -> Arc<Object> {
    let key = Key::new("a", name);
    let expect = store.get("configmaps", &key).map_or(Expect::Absent, |o| Expect::Revision(o.revision));
    store.put("configmaps", key, expect, encode("configmaps", &config_map(name, data))).await.unwrap()
}

async fn delete(store: &Store, name: &str) -> Arc<Object> {
    let key = Key::new("a", name);
    let object = store.get("configmaps", &key).unwrap();
    let last = encode("configmaps", &object.value());
    store.delete("configmaps", key, Expect::Revision(object.revision), last).await.unwrap()
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    snapshot.objects.iter().map(|o| format!("{}={}", o.key.name, o.value()["data"]["k"].as_str().unwrap())).collect()
}

#[tokio::test]
async fn the_past_can_be_listed_until_it_is_compacted_and_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubernetes.db");
    let store = Store::open(&path).unwrap();
    put(&store, "x", "1").await;
    put(&store, "y", "1").await;
    let then = store.revision();
    put(&store, "x", "2").await;
    delete(&store, "y").await;
    let last = put(&store, "z", "1").await;
    assert_eq!(last.value()["metadata"]["resourceVersion"], last.revision.to_string());

    for reopened in [false, true] {
        let store = if reopened { Store::open(&path).unwrap() } else { store.clone() };
        assert_eq!(store.revision(), last.revision);
        assert_eq!(names(&store.list("configmaps", Some("a"), None, None).unwrap()), ["x=2", "z=1"]);
        assert_eq!(names(&store.list("configmaps", Some("a"), None, Some(then)).unwrap()), ["x=1", "y=1"]);
        assert_eq!(names(&store.list("configmaps", Some("b"), None, Some(then)).unwrap()), [""; 0]);
        let after = Key::new("a", "x");
        assert_eq!(names(&store.list("configmaps", None, Some(&after), Some(then)).unwrap()), ["y=1"]);
        let seen = store.watch("configmaps", then).unwrap().next().await.unwrap();
        let seen: Vec<_> = seen.iter().map(|c| (&*c.object.key.name, c.deleted, c.previous.is_some())).collect();
        assert_eq!(seen, [("x", false, true), ("y", true, true), ("z", false, false)]);
    }

    assert_eq!(store.compact_keeping(0, Duration::from_secs(60)).await.unwrap(), last.revision);
    assert!(store.list("configmaps", None, None, Some(then)).is_err());
    assert!(store.watch("configmaps", then).is_err());
    assert!(store.watch("configmaps", last.revision).is_ok());
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.revision(), last.revision);
    assert_eq!(names(&store.list("configmaps", None, None, None).unwrap()), ["x=2", "z=1"]);
    assert!(store.watch("configmaps", then).is_err());
}

#[tokio::test]
async fn of_two_writers_with_the_same_belief_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("k.db")).unwrap();
    let created = put(&store, "x", "0").await;
    let attempts = (0..8).map(|n| {
        let object = encode("configmaps", &config_map("x", &n.to_string()));
        store.put("configmaps", Key::new("a", "x"), Expect::Revision(created.revision), object)
    });
    let results = futures::future::join_all(attempts).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert!(results.iter().filter_map(|r| r.as_ref().err()).all(|e| matches!(e, WriteError::Changed)));
    let object = encode("configmaps", &config_map("x", "again"));
    assert!(matches!(
        store.put("configmaps", Key::new("a", "x"), Expect::Absent, object).await,
        Err(WriteError::Exists)
    ));
    // Refused writes take no revision.
    assert_eq!(store.revision(), created.revision + 1);
}

#[tokio::test]
async fn a_watcher_that_falls_behind_expires_and_one_that_keeps_up_sees_all_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("k.db")).unwrap();
    let (_, mut slow) = store.list_and_watch("configmaps", None);
    let (_, mut quick) = store.list_and_watch("configmaps", None);
    let mut seen = Vec::new();
    for round in 0..30 {
        let writes = (0..100).map(|n| {
            let name = format!("c{round}-{n}");
            let object = encode("configmaps", &config_map(&name, "v"));
            store.put("configmaps", Key::new("a", &name), Expect::Absent, object).boxed()
        });
        for result in futures::future::join_all(writes).await {
            result.unwrap();
        }
        while let Ok(batch) = quick.ready()
            && !batch.is_empty()
        {
            seen.extend(batch.iter().map(|c| c.revision));
        }
    }
    assert_eq!(seen.len(), 3000);
    assert!(seen.windows(2).all(|w| w[0] < w[1]));
    assert!(slow.next().await.is_err());
}

use futures::FutureExt as _;
