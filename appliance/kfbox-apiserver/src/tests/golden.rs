//! Upstream's golden objects, which set every field of a kind: read in three encodings by the code that reads requests,
//! and stored without the loss of any field. A difference is shown by its path.

use super::*;
use crate::{convert, negotiate, protobuf, resources::Resource, schema, store};
use http::{HeaderMap, HeaderValue, header};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Upstream's samples beside the project; a test that needs them says so and passes where they are absent.
pub fn fixtures(below: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/kubernetes").join(below);
    if found.is_dir() {
        return Some(found);
    }
    eprintln!("SKIPPED: no upstream samples at {}", found.display());
    None
}

/// Why a golden object's kind is not one that kfbox serves.
fn why_unserved(api_version: &str, kind: &str) -> Option<&'static str> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    Some(match (group, version, kind) {
        ("extensions", ..) | ("apps", "v1beta1" | "v1beta2", _) | ("batch" | "policy", "v1beta1", _) => {
            "removed from upstream's server between 1.16 and 1.25"
        }
        (
            "authentication.k8s.io"
            | "authorization.k8s.io"
            | "coordination.k8s.io"
            | "discovery.k8s.io"
            | "events.k8s.io"
            | "rbac.authorization.k8s.io"
            | "scheduling.k8s.io"
            | "certificates.k8s.io"
            | "networking.k8s.io"
            | "storage.k8s.io"
            | "node.k8s.io",
            "v1alpha1" | "v1alpha2" | "v1beta1",
            _,
        ) => "an older or an alpha version, off by default upstream or removed there",
        ("admissionregistration.k8s.io", "v1alpha1" | "v1beta1", _) => "off by default upstream",
        ("flowcontrol.apiserver.k8s.io", "v1beta2" | "v1beta3", _) => "removed from upstream's server in 1.29 and 1.32",
        ("resource.k8s.io", "v1alpha3" | "v1beta1" | "v1beta2", _) => "off by default upstream",
        ("internal.apiserver.k8s.io", ..) => "for several servers on one store",
        ("admission.k8s.io" | "imagepolicy.k8s.io", ..) => "sent to webhooks, never served",
        ("apidiscovery.k8s.io", ..) => "an encoding of the discovery documents",
        ("", "v1", "PodAttachOptions" | "PodExecOptions" | "PodPortForwardOptions" | "ServiceProxyOptions") => {
            "parameters of a request, never a body"
        }
        ("", "v1", "SerializedReference" | "APIVersions" | "Status" | "UpdateOptions") => "no resource",
        _ => return None,
    })
}

/// Groups whose kinds kfbox reads in JSON and YAML only: a protobuf body is refused with 415.
const JSON_ONLY: &[&str] = &["apiextensions.k8s.io/v1", "apiregistration.k8s.io/v1", "resource.k8s.io/v1"];

struct Golden {
    name: String,
    json: Value,
    yaml: Value,
    /// The bytes where there are any.
    protobuf: Option<Vec<u8>>,
}

fn decode(media: &'static str, body: &[u8]) -> Result<Value, crate::status::ApiError> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    negotiate::decode(&headers, body)
}

fn golden() -> Option<Vec<Golden>> {
    let mut files: BTreeMap<String, Golden> = BTreeMap::new();
    for entry in std::fs::read_dir(fixtures("golden")?).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let json = decode("application/json", &std::fs::read(&path).unwrap()).unwrap();
        let yaml = decode("application/yaml", &std::fs::read(path.with_extension("yaml")).unwrap()).unwrap();
        let protobuf = std::fs::read(path.with_extension("pb")).ok();
        files.insert(name.clone(), Golden { name, json, yaml, protobuf });
    }
    Some(files.into_values().collect())
}

/// The paths at which two values differ, with both values.
pub fn differences(path: &str, wanted: &Value, found: &Value, out: &mut Vec<String>) {
    match (wanted, found) {
        (Value::Object(a), Value::Object(b)) => {
            for (name, value) in a {
                differences(&format!("{path}.{name}"), value, b.get(name).unwrap_or(&Value::Null), out);
            }
            for (name, value) in b.iter().filter(|(name, _)| !a.contains_key(*name)) {
                out.push(format!("{path}.{name}: absent, found {value}"));
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (at, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{at}]"), a, b, out);
            }
        }
        (a, b) if a != b => out.push(format!("{path}: wanted {a}, found {b}")),
        _ => {}
    }
}

/// As [`differences`], where the found value may hold more than the wanted one.
fn losses(path: &str, wanted: &Value, found: &Value, out: &mut Vec<String>) {
    match (wanted, found) {
        (Value::Object(a), Value::Object(b)) => {
            for (name, value) in a {
                match b.get(name) {
                    Some(found) => losses(&format!("{path}.{name}"), value, found, out),
                    None => out.push(format!("{path}.{name}: lost {value}")),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            if b.len() < a.len() {
                out.push(format!("{path}: {} of {} elements", b.len(), a.len()));
            }
            for (at, (a, b)) in a.iter().zip(b).enumerate() {
                losses(&format!("{path}[{at}]"), a, b, out);
            }
        }
        (a, b) if a != b => out.push(format!("{path}: {a} became {b}")),
        _ => {}
    }
}

fn group_version(object: &Value) -> (&str, &str) {
    let api_version = object["apiVersion"].as_str().unwrap();
    api_version.rsplit_once('/').unwrap_or(("", api_version))
}

#[test]
fn golden_objects_are_the_same_in_json_yaml_and_protobuf() {
    let Some(all) = golden() else { return };
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for Golden { name, json, yaml, protobuf } in &all {
        differences(&format!("{name} (YAML) "), json, yaml, &mut wrong);
        let Some(bytes) = protobuf else { continue };
        match protobuf::decode(bytes) {
            Ok(found) => {
                differences(&format!("{name} (protobuf) "), json, &found, &mut wrong);
                compared += 1;
            }
            Err(protobuf::DecodeError::Kind { .. }) => {
                let (api_version, kind) = (json["apiVersion"].as_str().unwrap(), json["kind"].as_str().unwrap());
                let known = JSON_ONLY.contains(&api_version) || why_unserved(api_version, kind).is_some();
                if !known {
                    wrong.push(format!("{name}: its kind cannot be read in protobuf"));
                }
                let error = decode(protobuf::MEDIA_TYPE, bytes).unwrap_err();
                assert_eq!(error.code(), 415, "{name}");
            }
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(compared >= 38, "only {compared} of {} compared in protobuf", all.len());
}

/// What the server owns or fills on its own, and what it keeps in another way.
fn expected_in_store(resource: &Resource, golden: &Value) -> Value {
    let mut wanted = golden.clone();
    let metadata = wanted["metadata"].as_object_mut().unwrap();
    for owned in
        ["selfLink", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields"]
    {
        metadata.remove(owned);
    }
    for owned in ["resourceVersion", "generation", "namespace", "name", "generateName"] {
        metadata.remove(owned);
    }
    if &*resource.kind == "Secret" {
        // What is written in plain text is kept encoded.
        let plain = wanted.as_object_mut().unwrap().remove("stringData").unwrap();
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        for (name, text) in plain.as_object().unwrap() {
            wanted["data"][name] = STANDARD.encode(text.as_str().unwrap()).into();
        }
    }
    one_account(&mut wanted);
    wanted
}

/// `serviceAccount` is another name of `serviceAccountName`, which wins; upstream too gives both the same value.
fn one_account(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let (Some(name), true) = (map.get("serviceAccountName").cloned(), map.contains_key("serviceAccount")) {
                map.insert("serviceAccount".into(), name);
            }
            map.values_mut().for_each(one_account);
        }
        Value::Array(items) => items.iter_mut().for_each(one_account),
        _ => {}
    }
}

/// The way of an object through decoding, pruning, defaults and the stored form, without the rules that refuse
/// upstream's nonsense values.
fn stored(resource: &Resource, golden: &Value) -> Value {
    let mut object = golden.clone();
    if let Some(schema) = resource.schema() {
        let dropped = schema::prune(&schema, &mut object);
        assert!(dropped.is_empty(), "{}: pruned {dropped:?}", resource.kind);
    }
    schema::default_builtin(&resource.group, &resource.version, &resource.kind, &mut object);
    convert::to_storage(resource, &mut object);
    let encoded = store::encode(&resource.collection, &object);
    let object = encoded.preview(store::Key::new("default", "name"), Some(7));
    convert::value(resource, &object)
}

#[tokio::test]
async fn golden_objects_are_stored_without_loss() {
    let Some(all) = golden() else { return };
    let world = world().await;
    world.default_account().await;
    let registry = world.server.core().resources.current();
    let (mut wrong, mut unserved, mut kept, mut refused) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for Golden { name, json, .. } in &all {
        let (group, version) = group_version(json);
        let kind = json["kind"].as_str().unwrap();
        let Some(resource) = registry.by_kind(group, version, kind) else {
            match why_unserved(json["apiVersion"].as_str().unwrap(), kind) {
                // Bodies of subresources have no collection of their own.
                None if matches!(kind, "Eviction" | "TokenRequest" | "Scale") => {}
                None => wrong.push(format!("{name}: not served, and nobody says why")),
                Some(why) => unserved.push(format!("{name}: {why}")),
            }
            continue;
        };
        let wanted = expected_in_store(resource, json);
        losses(&format!("{name} (stored) "), &wanted, &stored(resource, json), &mut wrong);
        if !resource.verbs.allows("get") || !resource.verbs.allows("create") {
            continue;
        }
        // Over the API: names that pass, and nothing else changed.
        let mut object = json.clone();
        object["metadata"] = expected_in_store(resource, json)["metadata"].clone();
        object["metadata"]["name"] = "golden".into();
        object["metadata"].as_object_mut().unwrap().remove("finalizers");
        let namespace = if resource.namespaced { "namespaces/default/" } else { "" };
        let root = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        let path = format!("{root}/{version}/{namespace}{}", resource.plural);
        let (code, answer) = world.post(&path, object.clone()).await;
        match code.as_u16() {
            201 => {
                let (code, found) = world.get(&format!("{path}/golden")).await;
                assert_eq!(code, 200, "{name}: {found}");
                let mut sent = expected_in_store(resource, &object);
                if resource.has_subresource("status") {
                    sent.as_object_mut().unwrap().remove("status");
                }
                losses(&format!("{name} (created) "), &sent, &found, &mut wrong);
                kept.push(name.as_str());
            }
            // Refused for its values, and told so field by field.
            400 | 403 | 422 if answer["message"].is_string() => refused.push(format!("{name}: {code}")),
            _ => wrong.push(format!("{name}: {code} {answer}")),
        }
    }
    eprintln!("created over the API: {kept:?}\nrefused for their values: {refused:?}\nnot served: {unserved:#?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(kept.len() >= 3, "{kept:?}");
    assert!(kept.len() + refused.len() >= 20, "{kept:?} {refused:?}");
}
