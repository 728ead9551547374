use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Reason, builtin, default, from_crd, prune, validate};

/// Upstream samples beside the project; a test that needs them says so and passes where they are absent.
fn fixtures() -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures");
    if found.is_dir() {
        return Some(found);
    }
    eprintln!("SKIPPED: no upstream samples at {}", found.display());
    None
}

fn files(root: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, out);
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            out.push(path);
        }
    }
}

fn documents(path: &Path) -> Vec<Value> {
    use serde::Deserialize as _;
    let Ok(text) = std::fs::read_to_string(path) else { return Vec::new() };
    serde_yaml::Deserializer::from_str(&text).filter_map(|d| Value::deserialize(d).ok()).collect()
}

#[test]
fn golden_objects_hold_nothing_unknown() {
    let Some(root) = fixtures() else { return };
    let mut all = Vec::new();
    files(&root.join("kubernetes/golden"), &mut all);
    let mut seen = 0;
    for path in all.iter().filter(|p| p.extension().is_some_and(|e| e == "json")) {
        let mut object: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let (group, version) = object["apiVersion"]
            .as_str()
            .unwrap()
            .rsplit_once('/')
            .unwrap_or(("", object["apiVersion"].as_str().unwrap()));
        let Some(schema) = builtin(group, version, object["kind"].as_str().unwrap()) else { continue };
        let before = object.clone();
        assert_eq!(prune(&schema, &mut object), Vec::<String>::new(), "{}", path.display());
        assert_eq!(object, before);
        assert_eq!(validate(&schema, &object, None), vec![], "{}", path.display());
        object["spec"]["noSuchField"] = json!(1);
        assert!(!prune(&schema, &mut object).is_empty(), "{}", path.display());
        seen += 1;
    }
    assert!(seen > 30, "only {seen} golden objects are of served kinds");
}

#[test]
fn every_sample_crd_loads() {
    let Some(root) = fixtures() else { return };
    let (mut all, mut loaded) = (Vec::new(), 0);
    files(&root, &mut all);
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bundles"), &mut all);
    let started = std::time::Instant::now();
    let mut kept = Vec::new();
    for path in all {
        if path.to_string_lossy().contains("invalid") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if !text.contains("CustomResourceDefinition") {
            continue;
        }
        for crd in documents(&path) {
            // kustomize patches have no versions of their own
            if !crd["spec"]["versions"].is_array()
                || crd["kind"] != "CustomResourceDefinition"
                || crd["apiVersion"] != "apiextensions.k8s.io/v1"
            {
                continue;
            }
            match from_crd(&crd) {
                Ok(schema) => kept.push(schema),
                Err(errors) => panic!("{}: {errors:?}", path.display()),
            }
            let own = builtin("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
            assert_eq!(validate(&own, &crd, None), vec![], "{}", path.display());
            loaded += 1;
        }
    }
    assert!(loaded > 30, "only {loaded} CRDs found");
    let resident = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    eprintln!("{loaded} CRDs in {:?}, {} distinct nodes, statm {resident}", started.elapsed(), super::crd::distinct());
}

fn crd_schema(properties: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}})
}

#[test]
fn custom_resources_prune_default_and_validate() {
    let schema = from_crd(&crd_schema(json!({
        "size": {"type": "integer", "minimum": 1, "default": 3},
        "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
        "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 4},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "maybe": {"type": "string", "nullable": true},
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
            "items": {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}, "p": {"type": "string", "default": "TCP"}}}},
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "when": {"type": "string", "format": "date-time"},
    }))).unwrap();
    let mut object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "x", "nope": 1},
        "spec": {"size": null, "free": {"any": [1]}, "port": "80", "ports": [{"n": 1, "zzz": 2}], "maybe": null, "extra": true}});
    assert_eq!(prune(&schema, &mut object), vec!["metadata.nope", "spec.extra", "spec.ports[0].zzz"]);
    default(&schema, &mut object);
    assert_eq!(
        object["spec"],
        json!({"size": 3, "mode": "a", "free": {"any": [1]}, "port": "80", "ports": [{"n": 1, "p": "TCP"}], "maybe": null})
    );
    assert_eq!(validate(&schema, &object, None), vec![]);
    let bad = json!({"spec": {"size": 0, "mode": "c", "name": "ABCDE", "port": 1.5, "ports": [{"n": 1}, {"n": 1}, {}], "tags": ["x", "x"], "when": "yesterday", "maybe": 3}});
    let errors = validate(&schema, &bad, None);
    let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
    for wanted in [
        "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
        "spec.mode: Unsupported value: \"c\": supported values: \"a\", \"b\"",
        "spec.name: Invalid value: \"ABCDE\": spec.name in body should match '^[a-z]+$'",
        "spec.name: Too long: may not be more than 4 bytes",
        "spec.port: Invalid value: \"number\": spec.port in body must be of type integer,string: \"number\"",
        "spec.ports[1]: Duplicate value: {\"n\":1}",
        "spec.ports[2].n: Required value",
        "spec.tags[1]: Duplicate value: \"x\"",
        "spec.maybe: Invalid value: \"integer\": spec.maybe in body must be of type string: \"integer\"",
    ] {
        assert!(shown.iter().any(|s| s == wanted), "{wanted:?} not in {shown:#?}");
    }
    assert!(shown.iter().any(|s| s.starts_with("spec.when: Invalid value: \"yesterday\"")), "{shown:#?}");
}

#[test]
fn cel_rules_and_transitions() {
    let schema = from_crd(&crd_schema(json!({
        "min": {"type": "integer"}, "max": {"type": "integer"},
        "fixed": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "is immutable"}]},
        "my-key": {"type": "string"},
        "range": {"type": "object", "properties": {"min": {"type": "integer"}, "max": {"type": "integer"}, "namespace": {"type": "string"}, "a-b": {"type": "string"}},
            "x-kubernetes-validations": [
                {"rule": "!has(self.min) || !has(self.max) || self.min <= self.max", "messageExpression": "'min ' + string(self.min) + ' is above max'", "fieldPath": ".min"},
                {"rule": "!has(self.__namespace__) || self.__namespace__ != 'kube-system'"},
                {"rule": "!has(self.a__dash__b) || self.a__dash__b.startsWith('x')", "reason": "FieldValueForbidden", "message": "no"}]},
        "once": {"type": "integer", "x-kubernetes-validations": [{"rule": "!oldSelf.hasValue() || self >= oldSelf.value()", "optionalOldSelf": true, "message": "only grows"}]},
    }))).unwrap();
    let at = |spec: Value, old: Option<Value>| {
        let old = old.map(|spec| json!({"spec": spec}));
        validate(&schema, &json!({"spec": spec}), old.as_ref()).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(at(json!({"fixed": "a", "range": {"min": 1, "max": 2}}), None), Vec::<String>::new());
    assert_eq!(
        at(json!({"fixed": "b"}), Some(json!({"fixed": "a"}))),
        vec!["spec.fixed: Invalid value: \"string\": is immutable"]
    );
    assert_eq!(at(json!({"fixed": "b"}), Some(json!({}))), Vec::<String>::new());
    assert_eq!(
        at(json!({"range": {"min": 3, "max": 2}}), None),
        vec!["spec.range.min: Invalid value: \"object\": min 3 is above max"]
    );
    assert_eq!(at(json!({"range": {"namespace": "kube-system"}}), None).len(), 1);
    assert_eq!(at(json!({"range": {"a-b": "y"}}), None), vec!["spec.range: Forbidden: no"]);
    assert_eq!(
        at(json!({"once": 1}), Some(json!({"once": 2}))),
        vec!["spec.once: Invalid value: \"integer\": only grows"]
    );
    assert_eq!(at(json!({"once": 1}), None), Vec::<String>::new());
}

#[test]
fn schemas_that_are_not_structural_are_refused() {
    let deep =
        (0..200).fold(json!({"type": "string"}), |inner, _| json!({"type": "object", "properties": {"a": inner}}));
    for (bad, field) in [
        (json!({"type": "string"}), "type"),
        (crd_schema(json!({"a": {}})), "properties[spec].properties[a].type"),
        (crd_schema(json!({"a": {"type": "array"}})), "properties[spec].properties[a].items"),
        (crd_schema(json!({"a": {"type": "string", "pattern": "("}})), "properties[spec].properties[a].pattern"),
        (crd_schema(json!({"a": {"$ref": "#/b", "type": "object"}})), "properties[spec].properties[a].$ref"),
        (crd_schema(json!({"a": {"type": "integer", "default": "x"}})), "properties[spec].properties[a].default"),
        (
            crd_schema(json!({"a": {"type": "string", "x-kubernetes-validations": [{"rule": "self ==="}]}})),
            "properties[spec].properties[a].x-kubernetes-validations[0].rule",
        ),
        (
            crd_schema(json!({"a": {"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"}})),
            "properties[spec].properties[a].x-kubernetes-list-map-keys",
        ),
    ] {
        let errors = from_crd(&bad).unwrap_err();
        assert!(errors.iter().any(|e| e.field == field), "{field}: {errors:?}");
    }
    assert!(from_crd(&deep).is_err());
    let nested = format!("{}self == ''{}", "(".repeat(5000), ")".repeat(5000));
    assert!(
        from_crd(&crd_schema(json!({"a": {"type": "string", "x-kubernetes-validations": [{"rule": nested}]}})))
            .is_err()
    );
}

/// Rules at the limits run, rules past them are refused, and no stack ends.
#[test]
fn complex_rules_end_in_errors_not_in_the_stack() {
    let rule =
        |rule: String| crd_schema(json!({"a": {"type": "integer", "x-kubernetes-validations": [{"rule": rule}]}}));
    let object = json!({"spec": {"a": 1}});
    for heavy in [
        format!("self{} > 0", " + 1".repeat(490)),
        format!("{}true", "!".repeat(490)),
        format!("{}true{}", "(".repeat(60), ")".repeat(60)),
        format!("{} true", "true ? true :".repeat(490)),
        format!("self{} == 1", ".a".repeat(490)),
        format!("{}true", "true && ".repeat(1000)),
        format!("[{}1].size() > 0", "1,".repeat(5000)),
        "self / 0 == 1".to_owned(),
        "9223372036854775807 + self > 0".to_owned(),
        "[1][self] == 1".to_owned(),
    ] {
        if let Ok(schema) = from_crd(&rule(heavy)) {
            let _ = validate(&schema, &object, None);
        }
    }
    for refused in ["!".repeat(600) + "true", format!("self{}", ".a".repeat(600)), "(".repeat(100), "self.".to_owned()]
    {
        assert!(from_crd(&rule(refused)).is_err());
    }
}

#[test]
fn equal_schemas_are_shared() {
    let inner = json!({"a": {"type": "string", "pattern": "^x$"}, "b": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "c": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 0"}]}});
    let (one, two) = (from_crd(&crd_schema(inner.clone())).unwrap(), from_crd(&crd_schema(inner)).unwrap());
    let spec = |schema: &super::Schema| match &schema.root().property("spec").unwrap().link {
        super::Link::Shared(node) => std::sync::Arc::as_ptr(node),
        super::Link::Builtin(_) => std::ptr::null(),
    };
    assert_eq!(spec(&one), spec(&two));
    let other = from_crd(&crd_schema(json!({"a": {"type": "string", "pattern": "^y$"}}))).unwrap();
    assert_ne!(spec(&one), spec(&other));
}

#[test]
fn type_errors_of_builtin_kinds_name_the_field() {
    let pod = builtin("", "v1", "Pod").unwrap();
    let errors = validate(
        &pod,
        &json!({"spec": {"containers": [{"name": 3, "ports": [{"containerPort": "x"}], "resources": {"limits": {"cpu": "many"}}}]}}),
        None,
    );
    let fields: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
    assert_eq!(fields.len(), 3, "{errors:?}");
    for field in [
        "spec.containers[0].name",
        "spec.containers[0].ports[0].containerPort",
        "spec.containers[0].resources.limits[cpu]",
    ] {
        assert!(fields.contains(&field), "{errors:?}");
    }
    assert!(errors.iter().all(|e| e.reason == Reason::FieldValueTypeInvalid));
}

/// `namespace` is reserved, and a name all the same: real definitions say `self.namespace`.
#[test]
fn a_reserved_word_is_a_field_in_either_spelling() {
    for rule in ["!has(self.namespace)", "!has(self.__namespace__)"] {
        let schema =
            from_crd(&crd_schema(json!({"a": {"type": "object", "properties": {"namespace": {"type": "string"}},
            "x-kubernetes-validations": [{"rule": rule, "message": "no"}]}})))
            .unwrap();
        let object = |a: Value| json!({"apiVersion": "example.com/v1", "kind": "X", "metadata": {"name": "x"}, "spec": {"a": a}});
        assert!(validate(&schema, &object(json!({})), None).is_empty(), "{rule}");
        let errors = validate(&schema, &object(json!({"namespace": "x"})), None);
        assert!(errors[0].message.ends_with("no"), "{rule}: {errors:?}");
    }
}

/// What upstream's compiler refuses: a rule about a field that there is not.
#[test]
fn rules_name_fields_of_their_schema() {
    let with = |rule: &str| {
        crd_schema(json!({"a": {"type": "object",
            "properties": {"in": {"type": "string"}, "namespace": {"type": "string"}, "map": {"type": "object", "additionalProperties": {"type": "integer"}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}, "d-e": {"type": "string"}},
            "x-kubernetes-validations": [{"rule": rule}]}}))
    };
    for rule in [
        "self.__in__ == 'x'",
        "self.map.any > 1",
        "has(self.free)",
        "self.d__dash__e != ''",
        "self.?map.?x.hasValue()",
        "self.namespace == self.__namespace__",
    ] {
        assert!(from_crd(&with(rule)).is_ok(), "{rule}: {:?}", from_crd(&with(rule)));
    }
    for (rule, field) in [
        ("self.absent == 1", "absent"),
        ("has(oldSelf.nope) || true", "nope"),
        ("self.map.all(k, self.gone)", "gone"),
        // Upstream shows rules nothing of what is preserved without a schema.
        ("has(self.free.any)", "any"),
    ] {
        let errors = from_crd(&with(rule)).unwrap_err();
        assert!(errors[0].message.contains(&format!(": undefined field '{field}'\n | ")), "{errors:?}");
        assert!(errors[0].field.ends_with("properties[a].x-kubernetes-validations[0].rule"), "{errors:?}");
    }
}
