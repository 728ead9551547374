//! Claims meet volumes.

use super::*;
use crate::pods::testing::object;

fn config() -> Config {
    Config {
        node_name: "node".into(),
        local_path_root: "/data/volumes".into(),
        root_ca_pem: String::new(),
        cluster_name: "kfbox".into(),
        signer: None,
    }
}

fn claim(more: Value) -> PersistentVolumeClaim {
    let mut value = json!({
        "metadata": { "name": "data", "namespace": "n", "uid": "c1", "resourceVersion": "7" },
        "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": "standard", "resources": { "requests": { "storage": "1Gi" } } },
    });
    merge(&mut value, more);
    object(value)
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(k, v)| merge(into.entry(k).or_insert(Value::Null), v))
        }
        (into, from) => *into = from,
    }
}

fn class(mode: &str) -> Arc<StorageClass> {
    Arc::new(object(
        json!({ "metadata": { "name": "standard", "annotations": { DEFAULT_CLASS: "true" } }, "provisioner": LOCAL_PATH_PROVISIONER,
        "volumeBindingMode": mode, "reclaimPolicy": "Delete", "allowVolumeExpansion": true }),
    ))
}

fn volume(name: &str, size: &str, more: Value) -> Arc<PersistentVolume> {
    let mut value = json!({ "metadata": { "name": name, "uid": name }, "spec": { "capacity": { "storage": size }, "accessModes": ["ReadWriteOnce"], "storageClassName": "standard" }, "status": { "phase": "Available" } });
    merge(&mut value, more);
    Arc::new(object(value))
}

fn provisioned(steps: &[Step]) -> Option<&PersistentVolume> {
    steps.iter().find_map(|s| match s {
        Step::Provision(v) => Some(&**v),
        _ => None,
    })
}

fn bound_to(steps: &[Step]) -> Option<String> {
    steps.iter().find_map(|s| match s {
        Step::Bind(body) => body["spec"]["volumeName"].as_str().map(str::to_owned),
        _ => None,
    })
}

#[test]
fn an_immediate_claim_gets_a_folder_of_its_own_at_once() {
    let steps = decide(&claim(json!({})), &[], &[class("Immediate")], &config());
    let volume = provisioned(&steps).unwrap();
    let spec = volume.spec.as_ref().unwrap();
    assert_eq!(volume.metadata.name.as_deref(), Some("pvc-c1"));
    assert_eq!(spec.host_path.as_ref().unwrap().path, "/data/volumes/pvc-c1");
    assert_eq!(spec.claim_ref.as_ref().unwrap().uid.as_deref(), Some("c1"));
    assert!(is_ours_to_remove(volume, Path::new("/data/volumes")));
    // Once it exists the claim is bound to it, and no second is made.
    let steps = decide(&claim(json!({})), &[Arc::new(volume.clone())], &[class("Immediate")], &config());
    assert!(provisioned(&steps).is_none());
    assert_eq!(bound_to(&steps).as_deref(), Some("pvc-c1"));
    assert!(!steps.iter().any(|s| matches!(s, Step::Reserve(..))), "it is reserved already");
}

#[test]
fn a_waiting_claim_waits_for_its_pods_node() {
    let steps =
        decide(&claim(json!({})), &[volume("v", "1Gi", json!({}))], &[class("WaitForFirstConsumer")], &config());
    assert!(provisioned(&steps).is_none() && bound_to(&steps).is_none());
    assert!(steps.iter().any(|s| matches!(s, Step::Say { reason: "WaitForFirstConsumer", .. })));
    let chosen = |node: &str| claim(json!({ "metadata": { "annotations": { SELECTED_NODE: node } } }));
    assert!(provisioned(&decide(&chosen("node"), &[], &[class("WaitForFirstConsumer")], &config())).is_some());
    let elsewhere = decide(&chosen("other"), &[], &[class("WaitForFirstConsumer")], &config());
    assert!(provisioned(&elsewhere).is_none());
    assert!(elsewhere.iter().any(|s| matches!(s, Step::Say { reason: "ProvisioningFailed", warning: true, .. })));
}

#[test]
fn the_smallest_volume_that_suits_is_taken() {
    let all = [
        volume("small", "500Mi", json!({})),
        volume("big", "9Gi", json!({})),
        volume("fit", "2Gi", json!({})),
        volume("other-class", "1Gi", json!({ "spec": { "storageClassName": "x" } })),
        volume("read-only", "1Gi", json!({ "spec": { "accessModes": ["ReadOnlyMany"] } })),
        volume("taken", "1Gi", json!({ "spec": { "claimRef": { "namespace": "n", "name": "else", "uid": "u" } } })),
        volume("released", "1Gi", json!({ "status": { "phase": "Released" } })),
    ];
    let steps = decide(&claim(json!({})), &all, &[class("Immediate")], &config());
    assert_eq!(bound_to(&steps).as_deref(), Some("fit"));
    assert!(
        matches!(&steps[0], Step::Reserve(v, r) if v.metadata.name.as_deref() == Some("fit") && r.uid.as_deref() == Some("c1"))
    );
    let reserved = volume("reserved", "20Gi", json!({ "spec": { "claimRef": { "namespace": "n", "name": "data" } } }));
    let steps = decide(&claim(json!({})), &[all[2].clone(), reserved], &[class("Immediate")], &config());
    assert_eq!(bound_to(&steps).as_deref(), Some("reserved"));
}

#[test]
fn a_claim_without_a_class_gets_the_default_and_an_empty_class_none() {
    let mut none = claim(json!({}));
    none.spec.as_mut().unwrap().storage_class_name = None;
    assert!(
        matches!(&decide(&none, &[], &[class("Immediate")], &config())[..], [Step::Class(name)] if name == "standard")
    );
    let empty = claim(json!({ "spec": { "storageClassName": "" } }));
    let steps = decide(&empty, &[], &[class("Immediate")], &config());
    assert!(provisioned(&steps).is_none() && !steps.iter().any(|s| matches!(s, Step::Class(_))));
}

#[test]
fn lost_taken_and_growing() {
    let bound = |size: &str| {
        claim(
            json!({ "metadata": { "annotations": { BIND_COMPLETED: "yes" } }, "spec": { "volumeName": "v", "resources": { "requests": { "storage": size } } }, "status": { "phase": "Bound" } }),
        )
    };
    let held = volume("v", "1Gi", json!({ "spec": { "claimRef": { "namespace": "n", "name": "data", "uid": "c1" } } }));
    assert!(
        matches!(&decide(&bound("1Gi"), &[], &[], &config())[..], [Step::Status(s), Step::Say { reason: "ClaimLost", .. }] if s.phase.as_deref() == Some("Lost"))
    );
    assert!(
        matches!(&decide(&bound("2Gi"), std::slice::from_ref(&held), &[class("Immediate")], &config())[..], [Step::Grow(_, q)] if q.0 == "2Gi")
    );
    let foreign =
        volume("v", "1Gi", json!({ "spec": { "claimRef": { "namespace": "n", "name": "else", "uid": "u" } } }));
    let wants = claim(json!({ "spec": { "volumeName": "v" } }));
    assert!(
        decide(&wants, &[foreign], &[], &config())
            .iter()
            .any(|s| matches!(s, Step::Say { reason: "FailedBinding", .. }))
    );
    assert_eq!(bound_to(&decide(&wants, &[volume("v", "1Gi", json!({}))], &[], &config())).as_deref(), Some("v"));
}

#[test]
fn only_our_own_folders_are_ever_removed() {
    let root = Path::new("/data/volumes");
    let make = |name: &str, path: &str, by: &str, policy: &str| {
        volume(
            name,
            "1Gi",
            json!({ "metadata": { "annotations": { PROVISIONED_BY: by } }, "spec": { "hostPath": { "path": path }, "persistentVolumeReclaimPolicy": policy } }),
        )
    };
    assert!(is_ours_to_remove(&make("pvc-1", "/data/volumes/pvc-1", LOCAL_PATH_PROVISIONER, "Delete"), root));
    for (name, path, by, policy) in [
        ("pvc-1", "/data/volumes/pvc-1", LOCAL_PATH_PROVISIONER, "Retain"),
        ("pvc-1", "/data/volumes/pvc-2", LOCAL_PATH_PROVISIONER, "Delete"),
        ("pvc-1", "/etc", LOCAL_PATH_PROVISIONER, "Delete"),
        ("pvc-1", "/data/volumes/../x", LOCAL_PATH_PROVISIONER, "Delete"),
        ("mine", "/data/volumes/mine", LOCAL_PATH_PROVISIONER, "Delete"),
        ("pvc-1", "/data/volumes/pvc-1", "someone", "Delete"),
    ] {
        assert!(!is_ours_to_remove(&make(name, path, by, policy), root), "{name} {path} {by} {policy}");
    }
    let released =
        volume("v", "1Gi", json!({ "spec": { "claimRef": { "namespace": "n", "name": "data", "uid": "c0" } } }));
    assert_eq!(phase(&released, Some(&claim(json!({})))), "Released", "another claim of the name");
    assert_eq!(phase(&volume("v", "1Gi", json!({})), None), "Available");
}
