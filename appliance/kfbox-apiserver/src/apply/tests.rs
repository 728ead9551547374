use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{ApplyError, ApplyRequest, TrackRequest, apply, set::Set, track_update};
use crate::schema::{Schema, builtin, from_crd};

fn now(second: u32) -> DateTime<Utc> {
    format!("2026-01-01T00:00:{second:02}Z").parse().unwrap()
}

fn deployments() -> Arc<Schema> {
    builtin("apps", "v1", "Deployment").unwrap()
}

fn with(
    schema: &Schema,
    live: Option<&Value>,
    manager: &str,
    applied: &Value,
    force: bool,
    second: u32,
) -> Result<Value, ApplyError> {
    apply(ApplyRequest {
        schema,
        live,
        applied,
        manager,
        force,
        subresource: "",
        api_version: "apps/v1",
        now: now(second),
    })
}

fn owner(object: &Value, manager: &str) -> Set {
    let all = object["metadata"]["managedFields"].as_array().unwrap();
    let entry =
        all.iter().find(|e| e["manager"] == manager).unwrap_or_else(|| panic!("no entry of {manager} in {all:#?}"));
    Set::from_fields(&entry["fieldsV1"]).unwrap()
}

fn managers(object: &Value) -> Vec<String> {
    let all = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    all.iter().map(|e| format!("{} {}", e["manager"].as_str().unwrap(), e["operation"].as_str().unwrap())).collect()
}

fn deployment(replicas: Option<i64>, containers: Value) -> Value {
    let mut out = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "n", "labels": {"a": "1"}},
        "spec": {"selector": {"matchLabels": {"a": "1"}}, "template": {"metadata": {"labels": {"a": "1"}}, "spec": {"containers": containers}}}});
    if let Some(replicas) = replicas {
        out["spec"]["replicas"] = replicas.into();
    }
    out
}

#[test]
fn first_apply_owns_what_it_sets() {
    let applied = deployment(Some(2), json!([{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]));
    let out = with(&deployments(), None, "m", &applied, false, 0).unwrap();
    assert_eq!(
        out["metadata"]["managedFields"],
        json!([{"manager": "m", "operation": "Apply", "apiVersion": "apps/v1", "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {
            "f:metadata": {"f:labels": {"f:a": {}}},
            "f:spec": {"f:replicas": {}, "f:selector": {}, "f:template": {"f:metadata": {"f:labels": {"f:a": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {},
                    "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}}}])
    );
    // again: nothing changes, not even the time
    assert_eq!(with(&deployments(), Some(&out), "m", &applied, false, 9).unwrap(), out);
}

#[test]
fn two_managers_conflict_force_and_share() {
    let schema = deployments();
    let first =
        with(&schema, None, "one", &deployment(Some(2), json!([{"name": "c", "image": "i"}])), false, 0).unwrap();
    let other =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 5}});
    let refused = with(&schema, Some(&first), "two", &other, false, 1).unwrap_err();
    assert_eq!(refused.to_string(), "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas");
    let forced = with(&schema, Some(&first), "two", &other, true, 1).unwrap();
    assert_eq!(forced["spec"]["replicas"], 5);
    assert!(!owner(&forced, "one").has(".spec.replicas"));
    assert!(owner(&forced, "two").has(".spec.replicas"));
    // the same value is shared without conflict, and stays while one of the two applies it
    let same =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 2}});
    let shared = with(&schema, Some(&first), "two", &same, false, 1).unwrap();
    let left =
        with(&schema, Some(&shared), "one", &deployment(None, json!([{"name": "c", "image": "i"}])), false, 2).unwrap();
    assert_eq!(left["spec"]["replicas"], 2);
    assert!(!owner(&left, "one").has(".spec.replicas"));
    let gone = with(
        &schema,
        Some(&left),
        "two",
        &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}),
        false,
        3,
    )
    .unwrap();
    assert_eq!(gone["spec"].get("replicas"), None);
    assert_eq!(managers(&gone), vec!["one Apply"]);
}

#[test]
fn conflicts_are_listed_by_manager() {
    let schema = deployments();
    let mut live = deployment(Some(1), json!([{"name": "c", "image": "i"}]));
    track_update(TrackRequest {
        schema: &schema,
        old: None,
        new: &mut live,
        manager: "kubectl-create",
        subresource: "",
        has_status: true,
        api_version: "apps/v1",
        now: now(0),
    });
    let refused = with(&schema, Some(&live), "m", &deployment(Some(2), json!([{"name": "c", "image": "j"}])), false, 1)
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-create\" using apps/v1:\n- .spec.replicas\n- .spec.template.spec.containers[name=\"c\"].image"
    );
    let ApplyError::Conflicts(conflicts) = refused else { panic!() };
    assert_eq!(conflicts[0].message, "conflict with \"kubectl-create\" using apps/v1");
    assert_eq!(conflicts[0].field, ".spec.replicas");
}

#[test]
fn list_items_by_key_belong_to_their_appliers() {
    let schema = deployments();
    let one = with(
        &schema,
        None,
        "one",
        &deployment(None, json!([{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}])),
        false,
        0,
    )
    .unwrap();
    let sidecar = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"template": {"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "a", "env": [{"name": "Y", "value": "2"}]}]}}}});
    let both = with(&schema, Some(&one), "two", &sidecar, false, 1).unwrap();
    let containers = both["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 2);
    let a = containers.iter().find(|c| c["name"] == "a").unwrap();
    assert_eq!(a["env"], json!([{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]));
    assert_eq!(a["image"], "1");
    // the second stops applying: its container and its variable go, the first's stay
    let after = with(
        &schema,
        Some(&both),
        "two",
        &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}),
        false,
        2,
    )
    .unwrap();
    assert_eq!(after["spec"]["template"]["spec"]["containers"], one["spec"]["template"]["spec"]["containers"]);
    assert_eq!(managers(&after), vec!["one Apply"]);
}

#[test]
fn dropped_structs_go_with_their_defaults_and_labels_singly() {
    let schema = deployments();
    let mut applied =
        deployment(None, json!([{"name": "a", "image": "1", "livenessProbe": {"tcpSocket": {"port": 80}}}]));
    applied["metadata"]["labels"]["b"] = "2".into();
    let mut live = with(&schema, None, "m", &applied, false, 0).unwrap();
    live["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["periodSeconds"] = 10.into();
    live["spec"]["template"]["spec"]["containers"][0]["terminationMessagePath"] = "/dev/x".into();
    let out =
        with(&schema, Some(&live), "m", &deployment(None, json!([{"name": "a", "image": "1"}])), false, 1).unwrap();
    assert_eq!(
        out["spec"]["template"]["spec"]["containers"],
        json!([{"name": "a", "image": "1", "terminationMessagePath": "/dev/x"}])
    );
    assert_eq!(out["metadata"]["labels"], json!({"a": "1"}));
}

#[test]
fn updates_take_what_they_change() {
    let schema = deployments();
    let mut live = deployment(Some(1), json!([{"name": "c", "image": "i", "resources": {}}]));
    live["metadata"]["annotations"] = json!({"x": "y"});
    track_update(TrackRequest {
        schema: &schema,
        old: None,
        new: &mut live,
        manager: "creator",
        subresource: "",
        has_status: true,
        api_version: "apps/v1",
        now: now(0),
    });
    let fields = live["metadata"]["managedFields"][0]["fieldsV1"].clone();
    assert_eq!(fields["f:metadata"], json!({"f:annotations": {".": {}, "f:x": {}}, "f:labels": {".": {}, "f:a": {}}}));
    assert_eq!(
        fields["f:spec"]["f:template"]["f:spec"]["f:containers"],
        json!({"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}, "f:resources": {}}})
    );
    assert_eq!(fields["f:spec"].get("."), None);
    let applied =
        with(&schema, Some(&live), "ssa", &deployment(Some(1), json!([{"name": "c", "image": "i"}])), false, 1)
            .unwrap();
    assert_eq!(managers(&applied), vec!["ssa Apply", "creator Update"]);
    let mut edited = applied.clone();
    edited["spec"]["replicas"] = 7.into();
    edited["metadata"]["labels"] = json!({});
    track_update(TrackRequest {
        schema: &schema,
        old: Some(&applied),
        new: &mut edited,
        manager: "edit",
        subresource: "",
        has_status: true,
        api_version: "apps/v1",
        now: now(2),
    });
    assert!(owner(&edited, "edit").has(".spec.replicas"));
    for manager in ["ssa", "creator"] {
        assert!(!owner(&edited, manager).has(".spec.replicas"), "{manager}");
        assert!(!owner(&edited, manager).has(".metadata.labels.a"), "{manager}");
    }
    // no change: no entry, no new time
    let mut same = edited.clone();
    track_update(TrackRequest {
        schema: &schema,
        old: Some(&edited),
        new: &mut same,
        manager: "idle",
        subresource: "",
        has_status: true,
        api_version: "apps/v1",
        now: now(3),
    });
    assert_eq!(same, edited);
    // status writes are a hand of their own
    let mut status = edited.clone();
    status["status"] = json!({"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]});
    track_update(TrackRequest {
        schema: &schema,
        old: Some(&edited),
        new: &mut status,
        manager: "edit",
        subresource: "status",
        has_status: true,
        api_version: "apps/v1",
        now: now(4),
    });
    let entry = status["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["subresource"] == "status")
        .unwrap()
        .clone();
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:status": {"f:replicas": {}, "f:conditions": {".": {}, "k:{\"type\":\"Available\"}": {".": {}, "f:status": {}, "f:type": {}}}}})
    );
}

#[test]
fn the_book_can_be_cleared_edited_and_stays_short() {
    let schema = deployments();
    let live = with(&schema, None, "m", &deployment(Some(1), json!([{"name": "c"}])), false, 0).unwrap();
    for cleared in [json!([]), json!([{}])] {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = cleared;
        track_update(TrackRequest {
            schema: &schema,
            old: Some(&live),
            new: &mut new,
            manager: "x",
            subresource: "",
            has_status: true,
            api_version: "apps/v1",
            now: now(1),
        });
        assert_eq!(new["metadata"].get("managedFields"), None);
        let again = with(&schema, Some(&new), "m", &deployment(Some(1), json!([{"name": "c"}])), false, 2).unwrap();
        assert_eq!(managers(&again), vec!["m Apply", "before-first-apply Update"]);
    }
    let mut edited = live.clone();
    edited["metadata"]["managedFields"][0]["manager"] = "renamed".into();
    track_update(TrackRequest {
        schema: &schema,
        old: Some(&live),
        new: &mut edited,
        manager: "x",
        subresource: "",
        has_status: true,
        api_version: "apps/v1",
        now: now(1),
    });
    assert_eq!(managers(&edited), vec!["renamed Apply"]);
    let mut broken = live.clone();
    broken["metadata"]["managedFields"][0]["fieldsV1"] = json!({"zzz": 1});
    track_update(TrackRequest {
        schema: &schema,
        old: Some(&live),
        new: &mut broken,
        manager: "x",
        subresource: "",
        has_status: true,
        api_version: "apps/v1",
        now: now(1),
    });
    assert_eq!(managers(&broken), vec!["m Apply"]);
    let mut object = live;
    for n in 0..30 {
        let mut next = object.clone();
        next["metadata"]["labels"][format!("l{n}")] = "x".into();
        track_update(TrackRequest {
            schema: &schema,
            old: Some(&object),
            new: &mut next,
            manager: &format!("u{n}"),
            subresource: "",
            has_status: true,
            api_version: "apps/v1",
            now: now(n),
        });
        object = next;
    }
    let names = managers(&object);
    assert_eq!(names.iter().filter(|n| n.ends_with("Update")).count(), 10, "{names:?}");
    assert!(owner(&object, "ancient-changes").has(".metadata.labels.l0"));
    assert!(owner(&object, "u29").has(".metadata.labels.l29"));
}

#[test]
fn custom_lists_follow_their_markers() {
    let schema = from_crd(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "hosts": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
            "items": {"type": "object", "required": ["port"], "properties": {"port": {"type": "integer"}, "name": {"type": "string"}}}},
        "args": {"type": "array", "items": {"type": "string"}},
        "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }}}})).unwrap();
    let custom = |spec: Value| json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "x"}, "spec": spec});
    let one = with(&schema, None, "one", &custom(json!({"hosts": ["a", "b"], "ports": [{"port": 1, "name": "x"}], "args": ["p"], "whole": {"a": "1"}, "free": {"k": [1]}})), false, 0).unwrap();
    let two = with(&schema, Some(&one), "two", &custom(json!({"hosts": ["b", "c"], "ports": [{"port": 2}]})), false, 1)
        .unwrap();
    assert_eq!(two["spec"]["hosts"], json!(["a", "b", "c"]));
    assert_eq!(two["spec"]["ports"], json!([{"port": 1, "name": "x"}, {"port": 2}]));
    assert_eq!(
        owner(&two, "two").paths(),
        vec![".spec.hosts[=\"b\"]", ".spec.hosts[=\"c\"]", ".spec.ports[port=2]", ".spec.ports[port=2].port"]
    );
    let clash =
        with(&schema, Some(&two), "two", &custom(json!({"args": ["q"], "whole": {"b": "2"}})), false, 2).unwrap_err();
    assert!(clash.to_string().contains("- .spec.args\n- .spec.whole"), "{clash}");
    let shrunk = with(&schema, Some(&two), "one", &custom(json!({"hosts": ["a"]})), false, 3).unwrap();
    assert_eq!(shrunk["spec"], json!({"hosts": ["a", "b", "c"], "ports": [{"port": 2}]}));
    let double = with(&schema, None, "m", &custom(json!({"ports": [{"port": 1}, {"port": 1}]})), false, 0);
    assert!(matches!(double, Err(ApplyError::Invalid(_))));
}

mod properties {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{Set, deployments, now, with};
    use crate::apply::{TrackRequest, track_update};

    fn applied() -> impl Strategy<Value = Value> {
        let container =
            ("[a-c]", proptest::option::of("[x-z]"), proptest::collection::btree_map("[A-C]", "[0-2]", 0..3));
        let spec = (
            proptest::option::of(0_i64..3),
            proptest::collection::vec(container, 0..4),
            proptest::collection::btree_map("[a-c]", "[0-2]", 0..3),
        );
        spec.prop_map(|(replicas, containers, labels)| {
            let mut seen = std::collections::BTreeSet::new();
            let containers: Vec<Value> = containers.into_iter().filter(|(name, ..)| seen.insert(name.clone())).map(|(name, image, env)| {
                let env: Vec<Value> = env.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
                let mut out = json!({"name": name, "env": env});
                if let Some(image) = image { out["image"] = image.into(); }
                out
            }).collect();
            let mut out = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": labels},
                "spec": {"template": {"spec": {"containers": containers}}}});
            if let Some(replicas) = replicas { out["spec"]["replicas"] = replicas.into(); }
            out
        })
    }

    fn sorted(object: &Value) -> Value {
        let mut out = object.clone();
        if let Some(list) = out["spec"]["template"]["spec"]["containers"].as_array_mut() {
            list.sort_by_key(|c| c["name"].to_string());
        }
        out
    }

    proptest! {
        #[test]
        fn applying_twice_changes_nothing(a in applied(), b in applied()) {
            let schema = deployments();
            let one = with(&schema, None, "one", &a, false, 0).unwrap();
            let two = with(&schema, Some(&one), "two", &b, true, 1).unwrap();
            prop_assert_eq!(with(&schema, Some(&two), "two", &b, false, 2).unwrap(), two);
        }

        #[test]
        fn the_last_apply_of_a_lone_manager_is_the_object(a in applied(), b in applied()) {
            let schema = deployments();
            let one = with(&schema, None, "m", &a, false, 0).unwrap();
            let two = with(&schema, Some(&one), "m", &b, false, 1).unwrap();
            let fresh = with(&schema, None, "m", &b, false, 1).unwrap();
            let fields = |v: &Value| v["metadata"]["managedFields"][0]["fieldsV1"].clone();
            prop_assert_eq!(fields(&two), fields(&fresh));
            let names = |v: &Value| sorted(v)["spec"]["template"]["spec"]["containers"].clone();
            let strip = |v: Value| serde_json::from_str::<Value>(&v.to_string().replace("\"env\":[],", "").replace(",\"env\":[]", "")).unwrap();
            prop_assert_eq!(strip(names(&two)), strip(names(&fresh)));
        }

        #[test]
        fn tracking_agrees_with_the_objects(a in applied(), b in applied()) {
            let schema = deployments();
            let mut old = a;
            track_update(TrackRequest { schema: &schema, old: None, new: &mut old, manager: "one", subresource: "", has_status: true, api_version: "apps/v1", now: now(0) });
            let mut new = b;
            track_update(TrackRequest { schema: &schema, old: Some(&old), new: &mut new, manager: "two", subresource: "", has_status: true, api_version: "apps/v1", now: now(1) });
            // every owned path is there and no path has two owners
            let mut paths = Vec::new();
            for entry in new["metadata"]["managedFields"].as_array().into_iter().flatten() {
                paths.extend(Set::from_fields(&entry["fieldsV1"]).unwrap().paths());
            }
            let count = paths.len();
            paths.sort();
            paths.dedup();
            prop_assert_eq!(paths.len(), count);
            let again = Set::from_fields(&new["metadata"]["managedFields"][0]["fieldsV1"]);
            if let Ok(set) = again { prop_assert_eq!(Set::from_fields(&set.to_fields()).unwrap(), set); }
        }
    }
}

#[test]
fn kubectl_takes_over_from_its_own_client_side_apply() {
    let schema = builtin("", "v1", "ConfigMap").unwrap();
    let said = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "n"}, "data": {"a": "1", "b": "2", "c": "3"}});
    let annotation = "kubectl.kubernetes.io/last-applied-configuration";
    let mut live = said.clone();
    live["metadata"]["annotations"] = json!({annotation: said.to_string()});
    let track = |old: Option<&Value>, new: &mut Value, manager: &str| {
        let (subresource, api_version) = ("", "v1");
        track_update(TrackRequest {
            schema: &schema,
            old,
            new,
            manager,
            subresource,
            has_status: false,
            api_version,
            now: now(0),
        });
    };
    track(None, &mut live, "kubectl-client-side-apply");
    // Another has changed `c` since: that is no longer what kubectl said.
    let before = live.clone();
    live["data"]["c"] = "theirs".into();
    track(Some(&before), &mut live, "other");

    let changed = |fields: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "n"}, "data": fields});
    let own = changed(json!({"a": "9", "b": "2"}));
    let merged = with(&schema, Some(&live), "kubectl", &own, false, 1).unwrap();
    assert_eq!(merged["data"], json!({"a": "9", "b": "2", "c": "theirs"}));
    let follows: Value = serde_json::from_str(merged["metadata"]["annotations"][annotation].as_str().unwrap()).unwrap();
    assert_eq!(follows, own);
    let Err(ApplyError::Conflicts(conflicts)) =
        with(&schema, Some(&live), "kubectl", &changed(json!({"a": "9", "c": "mine"})), false, 1)
    else {
        panic!("another's field was taken")
    };
    assert_eq!(conflicts.iter().map(|c| c.field.as_str()).collect::<Vec<_>>(), [".data.c"]);
    // Only kubectl's own name takes over.
    assert!(with(&schema, Some(&live), "gitops", &own, false, 1).is_err());
}
