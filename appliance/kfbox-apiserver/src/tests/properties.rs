//! What holds whatever is sent: nothing panics, nothing nests or grows without end, and what is done twice is done once.

use super::*;
use crate::{
    apply, patch, printing, protobuf,
    schema::{self, Node, Type},
    selectors::Selector,
};
use proptest::{collection, prelude::*};

/// Any JSON, with the words that patches and schemas give a meaning.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|n| json!(n)),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 6, |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            collection::btree_map(word(), inner, 0..5).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn word() -> impl Strategy<Value = String> {
    let known = [
        "name",
        "a",
        "b",
        "metadata",
        "spec",
        "labels",
        "containers",
        "env",
        "ports",
        "template",
        "data",
        "$patch",
        "delete",
        "replace",
        "merge",
        "$retainKeys",
        "$deleteFromPrimitiveList/finalizers",
        "$setElementOrder/containers",
        "finalizers",
        "containerPort",
        "",
        "key",
        "value",
        "conditions",
        "type",
        "tolerations",
    ];
    prop_oneof![4 => prop::sample::select(known.to_vec()).prop_map(str::to_owned), 1 => ".{0,6}"]
}

/// One operation of a JSON patch, mostly well formed.
fn operation() -> impl Strategy<Value = Value> {
    let path =
        collection::vec(prop_oneof![word(), Just("0".to_owned()), Just("-".to_owned()), Just("1".to_owned())], 0..4)
            .prop_map(|steps| {
                steps.iter().map(|s| format!("/{}", s.replace('~', "~0").replace('/', "~1"))).collect::<String>()
            });
    let name = prop::sample::select(vec!["add", "remove", "replace", "move", "copy", "test"]);
    (name, path.clone(), path, any_json())
        .prop_map(|(op, path, from, value)| json!({"op": op, "path": path, "from": from, "value": value}))
}

/// A little generator of numbers: objects grown from a schema need many, and one seed is easily shrunk.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

const TEXTS: &[&str] = &[
    "",
    "a",
    "b",
    "A b",
    "1",
    "0",
    "-1",
    "25%",
    "101%",
    "..",
    "../x",
    "/a",
    "/",
    "a/b",
    "a/b/c",
    "example.com/x",
    "Always",
    "Never",
    "OnFailure",
    "Localhost",
    "RuntimeDefault",
    "Exists",
    "In",
    "Equal",
    "TCP",
    "None",
    "ClusterIP",
    "NodePort",
    "ExternalName",
    "LoadBalancer",
    "10.96.0.1",
    "127.0.0.1",
    "::1",
    "10.0.0.0/8",
    "10.0.0.0/99",
    "metadata.name",
    "metadata.labels['a']",
    "metadata.labels['",
    "limits.cpu",
    "1Gi",
    "Indexed",
    "* * * * *",
    "@hourly",
    "*/0 * * * 9",
    "TZ=",
    "Webhook",
    "Namespaced",
    "v1",
    "https://x/y?z#w",
    "https://",
    "aGk=",
    "2026-01-01T00:00:00Z",
    "é",
    "\u{0}",
    "a-very-long-name-that-is-longer-than-sixty-three-characters-which-is-the-limit-of-labels",
];

/// An object whose types fit the schema and whose values mostly do not mean anything.
fn grow(node: &Node, dice: &mut Dice, depth: usize) -> Value {
    match node.kind {
        Type::Any => match dice.roll(4) {
            0 => json!({"a": {"b": [1]}}),
            1 => json!([{}]),
            2 => json!("x"),
            _ => json!({}),
        },
        Type::Object => {
            let mut map = serde_json::Map::new();
            if depth == 0 {
                return Value::Object(map);
            }
            // Small structs are filled, large ones in parts.
            let odds = 1 + node.properties.len() / 8;
            for property in &node.properties {
                if dice.roll(odds + 1) != 0 || dice.roll(3) == 0 {
                    map.insert(property.name.to_string(), grow(property.link.node(), dice, depth - 1));
                }
            }
            if let schema::Additional::Map(link) = &node.additional {
                for _ in 0..dice.roll(4) {
                    let name = ["cpu", "memory", "storage", "hugepages-2Mi", "a/b", "x", "", "pods"][dice.roll(8)];
                    map.insert(name.to_owned(), grow(link.node(), dice, depth - 1));
                }
            }
            Value::Object(map)
        }
        Type::Array => {
            let Some(item) = node.item().filter(|_| depth > 0) else { return json!([]) };
            Value::Array((0..dice.roll(3)).map(|_| grow(item, dice, depth - 1)).collect())
        }
        Type::String => match node.format.as_deref() {
            Some("byte") => ["aGk=", "", "e30="][dice.roll(3)].into(),
            Some("date-time") => "2026-01-01T00:00:00Z".into(),
            _ => TEXTS[dice.roll(TEXTS.len())].into(),
        },
        Type::Integer => [0, 1, -1, 80, 65_536, 2_147_483_647, -2_147_483_648][dice.roll(7)].into(),
        Type::Number => json!([0.0, -1.5, 1e300][dice.roll(3)]),
        Type::Boolean => (dice.roll(2) == 0).into(),
        Type::IntOrString => {
            if dice.roll(2) == 0 {
                json!(dice.roll(200))
            } else {
                TEXTS[dice.roll(TEXTS.len())].into()
            }
        }
        Type::Quantity => {
            ["1", "0", "-1", "100m", "1Gi", "1e3", "0.1n", "999999999999999999999Ei"][dice.roll(8)].into()
        }
    }
}

/// An OpenAPI schema, not always a sound one.
fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = (
        prop::sample::select(vec!["string", "integer", "number", "boolean", "object", "array", "nonsense"]),
        any_json(),
        prop::sample::select(vec![
            "",
            "enum",
            "minimum",
            "maxLength",
            "pattern",
            "format",
            "default",
            "x-kubernetes-validations",
            "nullable",
            "required",
            "not",
        ]),
    )
        .prop_map(|(kind, value, extra)| {
            let mut out = json!({"type": kind});
            if kind == "array" {
                out["items"] = json!({"type": "string"});
            }
            match extra {
                "" => {}
                "x-kubernetes-validations" => out[extra] = json!([{"rule": value.to_string(), "message": "m"}]),
                extra => out[extra] = value,
            }
            out
        });
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            collection::btree_map("[a-c]", inner.clone(), 0..4).prop_map(
                |m| json!({"type": "object", "properties": m.into_iter().collect::<serde_json::Map<_, _>>()})
            ),
            inner.clone().prop_map(|items| json!({"type": "array", "items": items, "x-kubernetes-list-type": "set"})),
            inner.clone().prop_map(|values| json!({"type": "object", "additionalProperties": values})),
            (inner.clone(), inner).prop_map(
                |(a, b)| json!({"type": "object", "anyOf": [a, b], "x-kubernetes-preserve-unknown-fields": true})
            ),
        ]
    })
}

fn definition_of(schema: &Value) -> Value {
    json!({"type": "object", "properties": {"spec": schema}})
}

fn apply_as(live: Option<&Value>, manager: &str, applied: &Value) -> Result<Value, apply::ApplyError> {
    let schema = schema::builtin("apps", "v1", "Deployment").unwrap();
    apply::apply(apply::ApplyRequest {
        schema: &schema,
        live,
        applied,
        manager,
        force: false,
        subresource: "",
        api_version: "apps/v1",
        now: chrono::DateTime::UNIX_EPOCH,
    })
}

/// A deployment that sets labels and containers whose names begin with `lead`.
fn part(lead: &'static str) -> impl Strategy<Value = Value> {
    let names = || collection::btree_set("[a-d]", 0..4);
    (names(), names(), names()).prop_map(move |(labels, containers, variables)| {
        let own =
            |names: std::collections::BTreeSet<String>| names.into_iter().map(move |name| format!("{lead}{name}"));
        let (labels, containers, variables) = (own(labels), own(containers), own(variables));
        let labels: serde_json::Map<_, _> = labels.map(|l| (l, json!("1"))).collect();
        let env: Vec<Value> = variables.map(|v| json!({"name": v, "value": "1"})).collect();
        // One container is both managers'; in it, each has its own variables.
        let own = containers.map(|name| json!({"name": name, "image": "i"}));
        let containers: Vec<Value> = std::iter::once(json!({"name": "shared", "env": env})).chain(own).collect();
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": labels},
               "spec": {"template": {"spec": {"containers": containers}}}})
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn json_patches_apply_whole_or_not_at_all(object in any_json(), operations in collection::vec(operation(), 0..6)) {
        let before = object.clone();
        let result = patch::json(&object, &Value::from(operations));
        prop_assert_eq!(&object, &before);
        if let Ok(patched) = result {
            prop_assert!(crate::object::nesting(&patched) <= crate::negotiate::MAX_NESTING);
        }
    }

    #[test]
    fn merge_patches_are_idempotent(object in any_json(), patch in any_json()) {
        if let Ok(once) = patch::merge(&object, &patch) {
            prop_assert_eq!(&patch::merge(&once, &patch).unwrap(), &once);
        }
        if object.is_object() {
            prop_assert_eq!(patch::merge(&object, &json!({})).unwrap(), object);
        }
    }

    #[test]
    fn strategic_patches_never_panic(object in any_json(), patch in any_json()) {
        let schema = schema::builtin("apps", "v1", "Deployment").unwrap();
        let _ = patch::strategic(&schema, &object, &patch);
        let wrapped = |inner: &Value| json!({"metadata": inner, "spec": {"template": {"spec": inner}}});
        let _ = patch::strategic(&schema, &wrapped(&object), &wrapped(&patch));
        if object.is_object() {
            prop_assert_eq!(patch::strategic(&schema, &object, &json!({})).unwrap(), object);
        }
    }

    #[test]
    fn managers_of_different_fields_never_conflict(a in part("a"), b in part("b")) {
        let one = apply_as(None, "one", &a).unwrap();
        let both = apply_as(Some(&one), "two", &b).unwrap();
        // Again by either is no change, and nobody took anything from the other.
        prop_assert_eq!(&apply_as(Some(&both), "two", &b).unwrap(), &both);
        let again = apply_as(Some(&both), "one", &a).unwrap();
        prop_assert_eq!(&again["metadata"]["labels"], &both["metadata"]["labels"]);
        // The second leaves: what was the first's alone stays as it was.
        let bare = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}});
        let left = apply_as(Some(&both), "two", &bare).unwrap();
        prop_assert_eq!(&left["spec"], &one["spec"]);
        prop_assert_eq!(left["metadata"].get("labels").cloned().unwrap_or(json!({})), one["metadata"].get("labels").cloned().unwrap_or(json!({})));
    }

    #[test]
    fn appliers_of_anything_never_panic(live in any_json(), applied in any_json(), fields in any_json()) {
        let wrapped = |inner: &Value| json!({"metadata": {"name": "d", "managedFields": [
            {"manager": "m", "operation": "Apply", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": fields.clone()}]},
            "spec": {"template": {"spec": inner}}});
        let _ = apply_as(Some(&wrapped(&live)), "m", &json!({"metadata": {"name": "d"}, "spec": {"template": {"spec": applied}}}));
        let schema = schema::builtin("apps", "v1", "Deployment").unwrap();
        let mut new = wrapped(&applied);
        apply::track_update(apply::TrackRequest {
            schema: &schema, old: Some(&wrapped(&live)), new: &mut new, manager: "u", subresource: "",
            has_status: true, api_version: "apps/v1", now: chrono::DateTime::UNIX_EPOCH,
        });
    }

    #[test]
    fn selectors_of_any_text_never_panic(labels in "[a-z!=<>,() \\\\./é-]{0,24}|.{0,12}", fields in "[a-z.=!,\\\\]{0,24}|.{0,12}") {
        let registry = crate::resources::Resources::new().current();
        let pods = registry.find("", "v1", "pods").unwrap();
        let encoded = crate::store::encode("pods", &json!({"metadata": {"name": "p", "labels": {"a": "1"}}}));
        let object = encoded.preview(crate::store::Key::new("n", "p"), None);
        for (labels, fields) in [(Some(&*labels), None), (None, Some(&*fields)), (Some(&*labels), Some(&*fields))] {
            if let Ok(selector) = Selector::parse(pods, labels, fields) {
                let _ = selector.matches(&object);
            }
        }
    }

    #[test]
    fn protobuf_of_any_bytes_never_panics(bytes in collection::vec(any::<u8>(), 0..96), kind in prop::sample::select(vec!["Pod", "Node", "Status", "Secret"])) {
        let _ = protobuf::decode(&bytes);
        let mut body = b"k8s\0\x0a".to_vec();
        let meta = [&[0x0a, 2][..], b"v1", &[0x12, u8::try_from(kind.len()).unwrap()], kind.as_bytes()].concat();
        body.push(u8::try_from(meta.len()).unwrap());
        body.extend(meta);
        body.extend([0x12, u8::try_from(bytes.len()).unwrap()]);
        body.extend(&bytes);
        let _ = protobuf::decode(&body);
    }

    #[test]
    fn columns_of_any_path_never_panic(path in "[.a-c\\[\\]*?()@='\"0-9:{}$\\\\-]{0,24}|.{0,12}", object in any_json()) {
        let columns = [json!({"name": "X", "type": "string", "jsonPath": path})];
        let kind = printing::TableKind { group: "g", version: "v1", kind: "K", columns: Some(&columns) };
        let table = printing::table(&kind, &[object], chrono::DateTime::UNIX_EPOCH);
        prop_assert_eq!(table["rows"][0]["cells"].as_array().unwrap().len(), 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Objects of every built-in kind whose types fit: the rules look into all of it.
    #[test]
    fn rules_of_built_in_kinds_never_panic_and_defaults_are_stable(seed in any::<u64>()) {
        let mut dice = Dice(seed);
        for resource in schema::resources().iter().filter(|r| !r.name.contains('/')) {
            let (group, version, kind) = (resource.group, resource.version, resource.kind);
            let Some(known) = schema::builtin(group, version, kind) else { continue };
            let depth = 3 + dice.roll(9);
            let mut one = grow(known.root(), &mut dice, depth);
            prop_assert_eq!(schema::prune(&known, &mut one), Vec::<String>::new());
            schema::default_builtin(group, version, kind, &mut one);
            let mut twice = one.clone();
            schema::default_builtin(group, version, kind, &mut twice);
            prop_assert_eq!(&one, &twice, "{}/{}", group, kind);
            let other = grow(known.root(), &mut dice, depth);
            for subresource in ["", "status", "resize", "ephemeralcontainers", "finalize"] {
                for (new, old) in [(&one, None), (&one, Some(&other)), (&other, Some(&one))] {
                    let errors = schema::validate_write(group, version, kind, subresource, new, old);
                    prop_assert!(errors.len() <= 100, "{}", errors.len());
                }
            }
        }
    }

    #[test]
    fn schemas_of_anything_never_panic_and_defaults_are_stable(given in any_schema(), object in any_json(), old in any_json()) {
        let _ = schema::from_crd(&given);
        if let Ok(made) = schema::from_crd(&definition_of(&given)) {
            let mut object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "x"}, "spec": object});
            schema::prune(&made, &mut object);
            schema::default(&made, &mut object);
            let mut twice = object.clone();
            schema::prune(&made, &mut twice);
            schema::default(&made, &mut twice);
            prop_assert_eq!(&object, &twice);
            schema::validate(&made, &object, None);
            schema::validate(&made, &object, Some(&json!({"spec": old})));
        }
    }

    #[test]
    fn rules_in_cel_of_any_text_end(rule in "[a-z()\\[\\]{}.,?:!&|=<>+*/%0-9'\" -]{0,64}|.{0,24}") {
        let with = json!({"type": "integer", "x-kubernetes-validations": [{"rule": rule, "messageExpression": rule}]});
        if let Ok(made) = schema::from_crd(&definition_of(&with)) {
            schema::validate(&made, &json!({"spec": 3}), Some(&json!({"spec": 2})));
        }
    }
}

/// `{"a":{"a":...}}`, ten thousand deep, in every place that takes JSON.
#[tokio::test]
async fn what_nests_too_deeply_is_refused_cleanly() {
    let world = world().await;
    let deep = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
    let send = |method: &'static str, path: &'static str, media: &'static str, body: String| {
        let request = Request::builder().method(method).uri(path).header("content-type", media);
        let mut request = request.body(Body::from(body)).unwrap();
        request.extensions_mut().insert(server::Local);
        request.extensions_mut().insert(UserInfo::new("admin", [UserInfo::MASTERS.to_owned()]));
        world.server.call(request)
    };
    world.config_map("a", "1").await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let one = "/api/v1/namespaces/default/configmaps/a?fieldManager=m";
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    for levels in [101, 127, 129, 10_000] {
        let body = format!("{{\"metadata\":{{\"name\":\"b\"}},\"x\":{}}}", deep(levels));
        for (method, path, media) in [
            ("POST", maps, "application/json"),
            ("POST", maps, "application/yaml"),
            ("POST", crds, "application/json"),
            ("PUT", one, "application/json"),
            ("PATCH", one, "application/merge-patch+json"),
            ("PATCH", one, "application/strategic-merge-patch+json"),
            ("PATCH", one, "application/apply-patch+yaml"),
            ("DELETE", one, "application/json"),
        ] {
            let answer = send(method, path, media, body.clone()).await;
            assert_eq!(answer.status(), 400, "{method} {media} {levels}");
        }
        let operations = format!("[{{\"op\":\"add\",\"path\":\"/data\",\"value\":{}}}]", deep(levels));
        assert_eq!(send("PATCH", one, "application/json-patch+json", operations).await.status(), 400, "{levels}");
    }
    // Small patches that make deep objects: a copy of the whole into itself, again and again; moves below moved ones.
    let copies: Vec<Value> =
        (0..200).map(|_| json!({"op": "copy", "from": "/metadata", "path": "/metadata/x"})).collect();
    assert_eq!(send("PATCH", one, "application/json-patch+json", json!(copies).to_string()).await.status(), 413);
    let moves: Vec<Value> = (0..200)
        .flat_map(|_| {
            [
                json!({"op": "add", "path": "/n", "value": {"a": {"a": {}}}}),
                json!({"op": "move", "from": "/data", "path": "/n/a/a/data"}),
                json!({"op": "move", "from": "/n", "path": "/data"}),
            ]
        })
        .collect();
    assert_eq!(send("PATCH", one, "application/json-patch+json", json!(moves).to_string()).await.status(), 413);
    // An object as deep as may be is stored, read, patched and applied to.
    let custom = json!({
        "metadata": {"name": "deeps.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "deeps", "kind": "Deep"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]},
    });
    assert_eq!(world.post(crds, custom).await.0, 201);
    let path = "/apis/example.com/v1/namespaces/default/deeps";
    let whole: Value = serde_json::from_str(&deep(98)).unwrap();
    let object = json!({"apiVersion": "example.com/v1", "kind": "Deep", "metadata": {"name": "d"}, "spec": whole});
    assert_eq!(world.post(path, object.clone()).await.0, 201);
    let (code, found) = world.get(&format!("{path}/d")).await;
    assert_eq!((code.as_u16(), &found["spec"]), (200, &object["spec"]));
    let (code, patched) = world.merge(&format!("{path}/d"), json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!((code.as_u16(), &patched["metadata"]["labels"]["a"]), (200, &json!("b")), "{patched}");
    let (code, _, applied) = world
        .request(
            "PATCH",
            &format!("{path}/d?fieldManager=m&force=true"),
            &[("content-type", "application/apply-patch+yaml")],
            object,
        )
        .await;
    assert_eq!(code, 200, "{applied}");
    assert_eq!(world.get(path).await.1["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn yaml_that_unfolds_without_end_is_refused() {
    let mut body = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for n in 1..12 {
        let inner = vec![format!("*a{}", n - 1); 10].join(", ");
        body.push_str(&format!("a{n}: &a{n} [{inner}]\n"));
    }
    let world = world().await;
    let request = Request::post("/api/v1/namespaces/default/configmaps").header("content-type", "application/yaml");
    let mut request = request.body(Body::from(body)).unwrap();
    request.extensions_mut().insert(server::Local);
    request.extensions_mut().insert(UserInfo::new("admin", [UserInfo::MASTERS.to_owned()]));
    assert_eq!(world.server.call(request).await.status(), 400);
}
