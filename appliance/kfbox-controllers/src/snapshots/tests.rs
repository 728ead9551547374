//! Whom a snapshot belongs to, and how amounts are written.

use super::*;

#[test]
fn sizes_are_written_as_people_write_them() {
    for (bytes, text) in [(1 << 30, "1Gi"), (3 << 20, "3Mi"), (1_000_000_000, "1000000000"), (1536, "1536"), (0, "0")] {
        assert_eq!(quantity(bytes).0, text);
    }
}

#[test]
fn a_content_is_a_snapshots_when_each_names_the_other() {
    let snapshot: VolumeSnapshot = serde_json::from_value(json!({
        "metadata": { "name": "s", "namespace": "n", "uid": "1" },
        "spec": { "source": { "persistentVolumeClaimName": "c" } },
    }))
    .unwrap();
    let content = |name: &str, namespace: &str, uid: &str| -> VolumeSnapshotContent {
        serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": { "volumeSnapshotRef": { "name": "s", "namespace": namespace, "uid": uid } },
        }))
        .unwrap()
    };
    assert!(are_bound(&snapshot, &content("snapcontent-1", "n", "1")));
    for (name, namespace, uid) in
        [("snapcontent-2", "n", "1"), ("snapcontent-1", "other", "1"), ("snapcontent-1", "n", "2")]
    {
        assert!(!are_bound(&snapshot, &content(name, namespace, uid)), "{name} {namespace} {uid}");
    }
}

#[test]
fn finalizers_of_others_stay() {
    let metadata = ObjectMeta { finalizers: Some(vec!["theirs".into(), "ours".into()]), ..ObjectMeta::default() };
    assert_eq!(with(&metadata, &["ours"]), None);
    assert_eq!(with(&metadata, &["ours", "new"]).unwrap(), ["theirs", "ours", "new"]);
    assert_eq!(without(&metadata, &["ours"]).unwrap(), ["theirs"]);
    assert_eq!(without(&metadata, &["new"]), None);
}
