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
    let store = Store::open(&path, KEPT_REVISIONS).unwrap();
    put(&store, "x", "1").await;
    put(&store, "y", "1").await;
    let then = store.revision();
    put(&store, "x", "2").await;
    delete(&store, "y").await;
    let last = put(&store, "z", "1").await;
    assert_eq!(last.value()["metadata"]["resourceVersion"], last.revision.to_string());

    for reopened in [false, true] {
        let store = if reopened { Store::open(&path, KEPT_REVISIONS).unwrap() } else { store.clone() };
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

    assert_eq!(store.compact_keeping(Some(0), Duration::from_secs(60)).await.unwrap(), last.revision);
    assert!(store.list("configmaps", None, None, Some(then)).is_err());
    assert!(store.watch("configmaps", then).is_err());
    assert!(store.watch("configmaps", last.revision).is_ok());
    drop(store);
    let store = Store::open(&path, KEPT_REVISIONS).unwrap();
    assert_eq!(store.revision(), last.revision);
    assert_eq!(names(&store.list("configmaps", None, None, None).unwrap()), ["x=2", "z=1"]);
    assert!(store.watch("configmaps", then).is_err());
}

#[tokio::test]
async fn of_two_writers_with_the_same_belief_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("k.db"), KEPT_REVISIONS).unwrap();
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
    let store = Store::open(&dir.path().join("k.db"), KEPT_REVISIONS).unwrap();
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

#[tokio::test]
async fn pages_of_the_past_are_as_the_whole_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("k.db"), KEPT_REVISIONS).unwrap();
    for n in 0..20 {
        put(&store, &format!("c{n:02}"), "old").await;
    }
    let then = store.revision();
    let whole = names(&store.list("configmaps", Some("a"), None, None).unwrap());
    // Before the first key, between two, after the last; changed, gone, gone and back, new.
    for name in ["b", "c05x", "d"] {
        put(&store, name, "new").await;
    }
    for name in ["c00", "c07", "c19"] {
        delete(&store, name).await;
    }
    for name in ["c07", "c08"] {
        put(&store, name, "new").await;
    }
    for size in [1, 3, 7, 100] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let range = Range { namespace: Some("a"), after: after.as_ref(), limit: Some(size) };
            let page = store.page("configmaps", range, Some(then)).unwrap();
            assert_eq!(page.revision, then);
            seen.extend(names(&page));
            assert_eq!(page.more, whole.len() - seen.len());
            after = page.objects.last().map(|o| o.key.clone());
            if page.more == 0 {
                break;
            }
        }
        assert_eq!(seen, whole);
    }
    let range = Range { namespace: None, after: None, limit: Some(2) };
    let page = store.page("configmaps", range, None).unwrap();
    assert_eq!((names(&page), page.more), (vec!["b=new".to_owned(), "c01=old".to_owned()], 19));
}

/// The file of a second connection's view: what a restart would read.
fn rows(path: &Path) -> i64 {
    log::rows(&kfbox_db::open_connection(path, &SCHEMA).unwrap())
}

#[tokio::test]
async fn updates_push_the_oldest_revisions_out_and_those_who_ask_for_them_are_told() {
    const KEPT: u64 = 100;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k.db");
    let store = Store::open(&path, KEPT).unwrap();
    put(&store, "x", "0").await;
    delete(&store, "x").await;
    let mut most = 0;
    let start = store.revision();
    for round in 0..40 {
        // One writer for each object: of those with the same belief only one would win.
        let round = round.to_string();
        let writes = (0..100).map(|n| {
            let (store, round) = (&store, &round);
            async move { put(store, &format!("o{n}"), round).await }
        });
        futures::future::join_all(writes).await;
        most = most.max(rows(&path));
    }
    // What is kept, one step on top, the objects themselves, and a group on its way.
    assert!(most <= (KEPT + 2 * 1024 + 100 + 256) as i64, "{most} rows");
    assert_eq!(store.compact().await.unwrap(), store.revision() - KEPT);
    // 100 live objects, and what the last 100 revisions replaced.
    assert_eq!(rows(&path), 200);
    assert!(matches!(store.watch("configmaps", start), Err(Expired { asked, .. }) if asked == start));
    assert!(store.list("configmaps", None, None, Some(start)).is_err());
    let edge = store.revision() - KEPT;
    assert_eq!(store.list("configmaps", None, None, Some(edge)).unwrap().objects.len(), 100);
    let mut watcher = store.watch("configmaps", edge).unwrap();
    let mut seen = Vec::new();
    while seen.len() < KEPT as usize {
        seen.extend(watcher.next().await.unwrap().iter().map(|c| c.revision));
    }
    assert_eq!(seen, (edge + 1..=store.revision()).collect::<Vec<_>>());
    let (revision, now) = (store.revision(), names(&store.list("configmaps", None, None, None).unwrap()));
    drop(store);
    let store = Store::open(&path, KEPT).unwrap();
    assert_eq!(store.revision(), revision);
    assert_eq!(names(&store.list("configmaps", None, None, None).unwrap()), now);
    assert_eq!(store.list("configmaps", None, None, Some(edge)).unwrap().objects.len(), 100);
}

#[tokio::test]
async fn a_file_shrinks_when_what_filled_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k.db");
    let store = Store::open(&path, 10).unwrap();
    let large = "x".repeat(1 << 20);
    for n in 0..24 {
        put(&store, &format!("o{n}"), &large).await;
    }
    let full = path.metadata().unwrap().len();
    for n in 0..24 {
        delete(&store, &format!("o{n}")).await;
    }
    for _ in 0..10 {
        put(&store, "small", "v").await;
    }
    store.compact().await.unwrap();
    // The writer gives pages back while nobody waits, and ends with the last handle.
    let left = || path.metadata().unwrap().len();
    let patience = std::time::Instant::now();
    while left() > (2 << 20) && patience.elapsed() < Duration::from_secs(20) {
        store.compact().await.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(full > 16 << 20 && left() <= 2 << 20, "{full} then {}", left());
}

#[tokio::test]
async fn an_object_larger_than_etcd_takes_is_refused_and_takes_no_revision() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("k.db"), KEPT_REVISIONS).unwrap();
    let write = |text: String| {
        let object = encode("configmaps", &config_map("x", &text));
        store.put("configmaps", Key::new("a", "x"), Expect::Absent, object)
    };
    assert!(matches!(write("x".repeat(OBJECT_LIMIT)).await, Err(WriteError::TooLarge)));
    assert_eq!(store.revision(), 0);
    // Half of it is escapes, which protobuf does without.
    write("\n".repeat(OBJECT_LIMIT - 1024)).await.unwrap();
}

#[tokio::test]
async fn what_is_told_of_a_change_is_made_once_and_not_kept_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("k.db"), KEPT_REVISIONS).unwrap();
    let (_, mut watcher) = store.list_and_watch("configmaps", None);
    put(&store, "x", "0").await;
    let change = watcher.next().await.unwrap().remove(0);
    let telling = Telling { event: "ADDED", view: "v1".into() };
    let mut made = 0;
    for _ in 0..3 {
        change.told.share(&telling, || {
            made += 1;
            bytes::Bytes::from_static(b"told")
        });
    }
    let other = Telling { event: "ADDED", view: "v1 table".into() };
    assert_eq!(change.told.share(&other, || bytes::Bytes::from_static(b"other")), "other");
    assert_eq!(made, 1);
    for n in 0..100 {
        put(&store, "x", &n.to_string()).await;
    }
    change.told.share(&telling, || {
        made += 1;
        bytes::Bytes::new()
    });
    assert_eq!(made, 2, "it was still kept after a hundred others");
}

use futures::FutureExt as _;
