//! Policies and paths that people write, made up at random: nothing panics, a policy that is not understood takes away at
//! least what it would if it were, and no namespace gets another's path.

use super::{
    policy::{self, Asked, Policy, admits},
    read::own_path,
};
use kfbox_base::UserInfo;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Words of a policy, and what fits them.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        "(ann@x.org|bob@x.org|staff|GET|POST|/api/x|/api/y|/|istio-system|team-a)",
        "(/api/|/|ann|b|st|G)?\\*(t|x.org|/x)?",
        any::<String>(),
    ]
}

fn words() -> impl Strategy<Value = Value> {
    prop::collection::vec(word(), 1..3).prop_map(|list| json!(list))
}

fn test_fields(names: &'static [&'static str]) -> impl Strategy<Value = Value> {
    prop::collection::btree_map(prop::sample::select(names), words(), 1..3).prop_map(|map| json!(map))
}

fn rule() -> impl Strategy<Value = Value> {
    let source = test_fields(&["principals", "notPrincipals", "namespaces", "notNamespaces"]);
    let operation = test_fields(&["methods", "notMethods", "paths", "notPaths"]);
    let key = prop::sample::select(vec![
        "request.headers[kubeflow-userid]",
        "request.headers[kubeflow-groups]",
        "source.namespace",
    ]);
    let condition = (key, test_fields(&["values", "notValues"])).prop_map(|(key, mut fields)| {
        fields["key"] = key.into();
        fields
    });
    let list = |inner: &'static str, each: BoxedStrategy<Value>| {
        let each = each.prop_map(move |fields| json!({inner: fields}));
        prop::option::of(prop::collection::vec(each, 1..3))
    };
    let when = prop::option::of(prop::collection::vec(condition, 1..3));
    (list("source", source.boxed()), list("operation", operation.boxed()), when).prop_map(|(from, to, when)| {
        let parts = [("from", json!(from)), ("to", json!(to)), ("when", json!(when))];
        Value::Object(parts.into_iter().filter(|(_, v)| !v.is_null()).map(|(n, v)| (n.into(), v)).collect())
    })
}

fn spec() -> impl Strategy<Value = Value> {
    let action = prop::sample::select(vec![None, Some("ALLOW"), Some("DENY")]);
    (action, prop::collection::vec(rule(), 0..3)).prop_map(|(action, rules)| json!({"action": action, "rules": rules}))
}

/// Any JSON, small.
fn junk() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        word().prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("(rules|from|to|when|source|operation|key|values|paths|x)", inner, 0..3)
                .prop_map(|map| json!(map)),
        ]
    })
}

/// Every place of a document, by its pointer.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Array(items) => items.iter().enumerate().for_each(|(n, v)| places(v, &format!("{at}/{n}"), found)),
        Value::Object(map) => map.iter().for_each(|(k, v)| places(v, &format!("{at}/{k}"), found)),
        _ => {}
    }
}

fn request() -> impl Strategy<Value = (UserInfo, String, String)> {
    let user = ("(ann|bob)@x.org", prop::collection::vec("(staff|team)", 0..2));
    let user = user.prop_map(|(name, groups)| UserInfo::new(name, groups));
    (user, "(GET|POST|DELETE)", "(/|/api/x|/api/y|/public/[a-z]{0,3})")
}

fn asks(specs: &[&Value], (user, method, path): &(UserInfo, String, String)) -> bool {
    let policies: Vec<Policy> = specs.iter().map(|spec| policy::read(spec).0).collect();
    admits(&policies, &BTreeMap::from([("app".to_owned(), "nb".to_owned())]), Asked { user, method, path })
}

proptest! {
    #[test]
    fn whatever_stands_in_a_policy_is_read(spec in junk(), other in spec(), asked in request()) {
        let (_, problems) = policy::read(&spec);
        asks(&[&spec, &other], &asked);
        // What has no form of a policy closes the namespace, and says so.
        if !spec.is_object() && !spec.is_null() {
            prop_assert!(!asks(&[&spec], &asked) && !problems.is_empty(), "{spec}");
        }
    }

    #[test]
    fn a_policy_that_denies_only_takes_away(some in prop::collection::vec(spec(), 0..3), mut more in spec(), asked in request()) {
        more["action"] = "DENY".into();
        let before: Vec<&Value> = some.iter().collect();
        let after: Vec<&Value> = before.iter().copied().chain([&more]).collect();
        prop_assert!(!asks(&after, &asked) || asks(&before, &asked));
        // The order says nothing.
        let turned: Vec<&Value> = after.iter().rev().copied().collect();
        prop_assert_eq!(asks(&after, &asked), asks(&turned, &asked));
    }

    #[test]
    fn what_is_well_formed_is_understood(spec in spec()) {
        let problems = policy::read(&spec).1;
        prop_assert!(problems.is_empty(), "{spec}: {problems:?}");
    }

    /// A word that is not known, anywhere in an object, never lets more through.
    #[test]
    fn an_unknown_word_only_takes_away(spec in spec(), at in any::<prop::sample::Index>(), value in junk(), asked in request()) {
        let mut all = Vec::new();
        places(&spec, "", &mut all);
        all.retain(|at| spec.pointer(at).is_some_and(Value::is_object));
        let mut changed = spec.clone();
        let place = all[at.index(all.len())].clone();
        if let Some(object) = changed.pointer_mut(&place).and_then(Value::as_object_mut) {
            object.insert("unheardOf".into(), value);
        }
        prop_assert!(!asks(&[&changed], &asked) || asks(&[&spec], &asked), "{place} of {changed}");
    }

    /// Nor does a value of another form in a known place: a number for a list, a list for an object.
    #[test]
    fn a_misshapen_value_only_takes_away(
        spec in spec(),
        at in any::<prop::sample::Index>(),
        bad in prop_oneof![Just(json!(5)), Just(json!(true)), Just(json!([])), Just(json!([7])), Just(json!([[]]))],
        asked in request(),
    ) {
        let mut all = Vec::new();
        places(&spec, "", &mut all);
        // `rules` that are an empty list are a policy of its own, which allows or denies nothing.
        all.retain(|at| at != "/rules" && at != "/action");
        let mut changed = spec.clone();
        let place = all[at.index(all.len())].clone();
        if let Some(value) = changed.pointer_mut(&place) {
            *value = bad;
        }
        prop_assert!(!asks(&[&changed], &asked) || asks(&[&spec], &asked), "{place} of {changed}");
        prop_assert!(!policy::read(&changed).1.is_empty(), "{changed} is told");
    }

    #[test]
    fn no_path_of_another_namespace_is_ones_own(path in "(/[a-z.%-]{0,6}){0,4}|[ -~]{0,30}", word in "[a-z]{1,6}") {
        let reserved = ["pipeline".to_owned()];
        if own_path(&path, "team-a", &reserved).is_ok() {
            let parts: Vec<&str> = path.split('/').collect();
            prop_assert!(parts[0].is_empty() && !parts[1].is_empty() && parts[1] != "pipeline" && parts[2] == "team-a");
            prop_assert!(!path.contains('%') && !path.contains("//") && !parts.contains(&".."), "{path}");
            prop_assert!(own_path(&path, "team-b", &reserved).is_err());
        }
        let mine = format!("/{word}/team-a/x");
        prop_assert!(own_path(&mine, "team-a", &[]).is_ok());
        prop_assert!(own_path(&mine, "team", &[]).is_err(), "a part of a name is no name");
    }
}
