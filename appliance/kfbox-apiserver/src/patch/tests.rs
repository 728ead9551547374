use serde_json::{Value, json};

use super::{PatchError, json as json_patch, merge, strategic};
use crate::schema::builtin;

fn deployment(patch: Value, object: Value) -> Result<Value, PatchError> {
    strategic(&builtin("apps", "v1", "Deployment").unwrap(), &object, &patch)
}

fn pod(object: Value, patch: Value) -> Value {
    strategic(&builtin("", "v1", "Pod").unwrap(), &object, &patch).unwrap()
}

#[test]
fn containers_merge_by_name_and_new_ones_come_first() {
    let out = pod(
        json!({"spec": {"containers": [{"name": "a", "image": "x", "env": [{"name": "A", "value": "1"}]}, {"name": "b"}]}}),
        json!({"spec": {"containers": [{"name": "c"}, {"name": "a", "env": [{"name": "B", "value": "2"}]}]}}),
    );
    assert_eq!(
        out,
        json!({"spec": {"containers": [
            {"name": "c"},
            {"name": "a", "image": "x", "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "1"}]},
            {"name": "b"},
        ]}})
    );
}

#[test]
fn directives() {
    let live = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "tolerations": [{"key": "k"}]},
        "metadata": {"finalizers": ["x", "y", "z"], "labels": {"a": "1", "b": "2"}}});
    let out = pod(live.clone(), json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}));
    assert_eq!(out["spec"]["containers"], json!([{"name": "b"}]));
    let out = pod(live.clone(), json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}));
    assert_eq!(out["spec"]["containers"], json!([{"name": "z"}]));
    let out = pod(live.clone(), json!({"metadata": {"labels": {"$patch": "replace", "c": "3"}}}));
    assert_eq!(out["metadata"]["labels"], json!({"c": "3"}));
    let out = pod(live.clone(), json!({"metadata": {"labels": {"a": null, "c": "3"}}}));
    assert_eq!(out["metadata"]["labels"], json!({"b": "2", "c": "3"}));
    let out =
        pod(live.clone(), json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["y"], "finalizers": ["w"]}}));
    assert_eq!(out["metadata"]["finalizers"], json!(["w", "x", "z"]));
    // tolerations carry no merge strategy: replaced whole
    let out = pod(live.clone(), json!({"spec": {"tolerations": [{"key": "n"}]}}));
    assert_eq!(out["spec"]["tolerations"], json!([{"key": "n"}]));
    let out = pod(
        live,
        json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a", "image": "i"}]}}),
    );
    assert_eq!(out["spec"]["containers"], json!([{"name": "b"}, {"name": "a", "image": "i"}]));
}

#[test]
fn retain_keys_clears_the_other_members() {
    let live = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let out =
        deployment(json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}), live.clone()).unwrap();
    assert_eq!(out, json!({"spec": {"strategy": {"type": "Recreate"}}}));
    let bad = deployment(json!({"spec": {"strategy": {"$retainKeys": ["a"], "type": "Recreate"}}}), live).unwrap_err();
    assert!(matches!(bad, PatchError::Malformed(_)));
}

#[test]
fn malformed_patches_are_refused() {
    let live = json!({"spec": {"containers": [{"name": "a"}]}});
    let schema = builtin("", "v1", "Pod").unwrap();
    for patch in [
        json!([]),
        json!({"spec": {"containers": [{"image": "no name"}]}}),
        json!({"spec": {"containers": ["text"]}}),
        json!({"spec": {"$patch": "explode"}}),
        json!({"spec": {"$setElementOrder/containers": 3}}),
    ] {
        assert!(matches!(strategic(&schema, &live, &patch), Err(PatchError::Malformed(_))), "{patch}");
    }
    assert!(matches!(merge(&live, &json!([1])), Err(PatchError::Malformed(_))));
    assert!(matches!(json_patch(&live, &json!({"op": "add"})), Err(PatchError::Malformed(_))));
}

#[test]
fn json_patch_is_atomic_and_bounded() {
    let live = json!({"a": [1, 2], "b": "x"});
    assert_eq!(json_patch(&live, &json!([{"op": "add", "path": "/a/-", "value": 3}])).unwrap()["a"], json!([1, 2, 3]));
    let failed =
        json_patch(&live, &json!([{"op": "remove", "path": "/b"}, {"op": "test", "path": "/a/0", "value": 9}]));
    assert!(matches!(failed, Err(PatchError::Unprocessable(_))));
    let many: Vec<Value> = (0..10_001).map(|_| json!({"op": "test", "path": "/b", "value": "x"})).collect();
    assert!(matches!(json_patch(&live, &Value::Array(many)), Err(PatchError::TooLarge(_))));
    let doubling: Vec<Value> = (0..40).map(|n| json!({"op": "copy", "from": "", "path": format!("/k{n}")})).collect();
    assert!(matches!(json_patch(&live, &Value::Array(doubling)), Err(PatchError::TooLarge(_))));
}

mod properties {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use crate::schema::builtin;

    fn json(depth: u32) -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(depth, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                proptest::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    fn object() -> impl Strategy<Value = Value> {
        proptest::collection::btree_map("[a-d]", json(3), 0..4)
            .prop_map(|m| Value::Object(m.into_iter().collect::<Map<_, _>>()))
    }

    fn containers() -> impl Strategy<Value = Value> {
        let one = ("[a-e]", proptest::option::of("[x-z]"), proptest::collection::btree_map("[A-D]", "[0-3]", 0..3))
            .prop_map(|(name, image, env)| {
                let mut out = serde_json::json!({"name": name});
                if let Some(image) = image {
                    out["image"] = image.into();
                }
                if !env.is_empty() {
                    out["env"] = env
                        .into_iter()
                        .map(|(name, value)| serde_json::json!({"name": name, "value": value}))
                        .collect();
                }
                out
            });
        proptest::collection::vec(one, 1..5).prop_map(|mut all| {
            all.sort_by_key(|c| c["name"].to_string());
            all.dedup_by_key(|c| c["name"].clone());
            serde_json::json!({"spec": {"containers": all}})
        })
    }

    proptest! {
        #[test]
        fn merging_twice_is_merging_once(live in object(), patch in object()) {
            let once = super::merge(&live, &patch).unwrap();
            prop_assert_eq!(super::merge(&once, &patch).unwrap(), once);
        }

        #[test]
        fn strategic_is_idempotent_and_keeps_the_others(live in containers(), patch in containers()) {
            let schema = builtin("", "v1", "Pod").unwrap();
            let once = super::strategic(&schema, &live, &patch).unwrap();
            prop_assert_eq!(super::strategic(&schema, &once, &patch).unwrap(), once.clone());
            let names = |v: &Value| v["spec"]["containers"].as_array().unwrap().iter().map(|c| c["name"].to_string()).collect::<std::collections::BTreeSet<_>>();
            let wanted: std::collections::BTreeSet<_> = names(&live).union(&names(&patch)).cloned().collect();
            prop_assert_eq!(names(&once), wanted);
            prop_assert_eq!(super::strategic(&schema, &live, &serde_json::json!({})).unwrap(), live);
        }

        #[test]
        fn hostile_patches_never_panic(live in object(), patch in object()) {
            let schema = builtin("", "v1", "Pod").unwrap();
            let _ = super::strategic(&schema, &live, &patch);
            let _ = super::json_patch(&live, &patch);
        }
    }
}
