//! Upstream's sample manifests (kubectl's and the end-to-end tests'), each taken or refused over HTTP as upstream does.

use super::golden::fixtures;
use super::*;
use serde::Deserialize as _;
use std::path::PathBuf;

/// Files that hold no object of the API, each with the reason.
const NO_OBJECTS: &[(&str, &str)] = &[
    ("doc-yaml/user-guide/update-demo/images/kitten/html/data.json", "a page's data, copied into an image"),
    ("doc-yaml/user-guide/update-demo/images/nautilus/html/data.json", "a page's data, copied into an image"),
    ("testing-manifests/auth/encrypt/encryption-config.yaml", "a file that upstream's server reads at its start"),
    ("testing-manifests/auth/encrypt/softhsm-config.json", "configuration of a key store"),
    ("testing-manifests/auth/encrypt/kind.yaml", "configuration of a tool that starts clusters"),
];

/// What must be refused: file, name, code, reason, and a field or a part of the message.
const REFUSED: &[(&str, &str, u16, &str, &[&str])] = &[
    // Versions that upstream no longer serves: kubectl's own conversion is tested with them.
    ("pkg/kubectl/cmd/convert/appsdeployment.yaml", "", 404, "NotFound", &[]),
    ("pkg/kubectl/cmd/convert/v1beta1ingress.yaml", "", 404, "NotFound", &[]),
    ("pkg/kubectl/cmd/convert/serviceandingress.yaml", "test-ingress", 404, "NotFound", &[]),
    ("pkg/kubectl/cmd/convert/extensionsdeployment.yaml", "", 404, "NotFound", &[]),
    ("pkg/kubectl/cmd/auth/rbac-v1beta1.yaml", "", 404, "NotFound", &[]),
    // A deployment must say which pods are its own.
    (
        "pkg/kubectl/cmd/expose/appsv1deployment-no-selectors.yaml",
        "",
        422,
        "Invalid",
        &["spec.selector", "spec.template.metadata.labels"],
    ),
    // It counts on a volume that an old release added to every pod.
    (
        "doc-yaml/admin/high-availability/kube-scheduler.yaml",
        "",
        422,
        "Invalid",
        &["spec.containers[0].volumeMounts[1].name"],
    ),
    // Objects as they were read from a server, which is not how they are created.
    ("pkg/kubectl/cmd/apply/deploy-serverside.yaml", "", 500, "", &[]),
];

fn files(root: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, out) } else { out.push(path) }
    }
}

/// The objects of a file, lists taken apart as kubectl does.
fn objects(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let documents = serde_yaml::Deserializer::from_str(&text).map(|d| Value::deserialize(d).unwrap());
    let whole: Vec<Value> = documents.filter(|d| !d.is_null()).collect();
    let apart = |object: Value| match (object["kind"].as_str(), object["items"].as_array()) {
        (Some(kind), Some(items)) if kind.ends_with("List") => items.clone(),
        _ => vec![object],
    };
    whole.into_iter().flat_map(apart).collect()
}

/// Where an object is created, in a namespace of its file's unless it names another.
fn place(world: &World, object: &Value, own: &str) -> String {
    let registry = world.server.core().resources.current();
    let api_version = object["apiVersion"].as_str().unwrap();
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let root = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
    let kind = object["kind"].as_str().unwrap();
    let Some(resource) = registry.by_kind(group, version, kind) else {
        // As a client would that was told of the kind by somebody else.
        return format!("{root}/{version}/namespaces/{own}/{}s", kind.to_lowercase());
    };
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or(own);
    let scope = if resource.namespaced { format!("namespaces/{namespace}/") } else { String::new() };
    format!("{root}/{version}/{scope}{}", resource.plural)
}

async fn ready_namespace(world: &World, name: &str) {
    world.post("/api/v1/namespaces", json!({"metadata": {"name": name}})).await;
    for account in ["default", "dra-test-driver"] {
        let path = format!("/api/v1/namespaces/{name}/serviceaccounts");
        world.post(&path, json!({"metadata": {"name": account}})).await;
    }
}

fn widgets() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.unit-test.test.com"},
        "spec": {"group": "unit-test.test.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"key": {"type": "string"}}}}}]},
    })
}

#[tokio::test]
async fn manifests_are_taken_and_refused_as_upstream_does() {
    let Some(root) = fixtures("manifests") else { return };
    let world = world().await;
    // What kubectl's tests stand in for with a fake server.
    assert_eq!(world.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", widgets()).await.0, 201);
    for name in ["default", "kube-system", "test", "existing-ns", "some-other-random"] {
        ready_namespace(&world, name).await;
    }
    let mut all = Vec::new();
    files(&root, &mut all);
    all.sort();
    let (mut wrong, mut taken, mut met) = (Vec::new(), 0, std::collections::BTreeSet::new());
    for (number, path) in all.iter().enumerate() {
        let shown = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        let named = shown.split_once('/').map_or("", |(_, rest)| rest);
        if let Some(at) = NO_OBJECTS.iter().position(|(file, _)| *file == named) {
            met.insert(("no object", at));
            continue;
        }
        let own = format!("file-{number}");
        ready_namespace(&world, &own).await;
        let mut made = Vec::new();
        for object in objects(path) {
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let shown = format!("{shown}: {} {name:?}", object["kind"].as_str().unwrap());
            let expected =
                REFUSED.iter().position(|(file, only, ..)| *file == named && (only.is_empty() || *only == name));
            let target = place(&world, &object, &own);
            let (dry, dry_answer) = world.post(&format!("{target}?dryRun=All"), object.clone()).await;
            let (code, answer) = world.post(&target, object.clone()).await;
            if code == 201 && !name.is_empty() {
                made.push(format!("{target}/{name}"));
            }
            match expected.map(|at| (at, &REFUSED[at])) {
                None if code == 201 && dry == 201 => taken += 1,
                None => wrong
                    .push(format!("{shown}: {code} {} (dry run {dry} {})", answer["message"], dry_answer["message"])),
                Some((at, (_, _, wanted, reason, fields))) => {
                    met.insert(("refused", at));
                    let found: Vec<&str> = answer["details"]["causes"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|c| c["field"].as_str())
                        .collect();
                    let found_reason = answer["reason"].as_str().unwrap_or_default();
                    if (code.as_u16(), found_reason, &found[..]) != (*wanted, *reason, *fields) {
                        wrong.push(format!("{shown}: {code} {found_reason} {found:?} {}", answer["message"]));
                    }
                }
            }
        }
        // Names repeat from file to file.
        let lasting = |path: &str| path.starts_with("/api/v1/namespaces/") && path.split('/').count() == 5;
        for path in made.iter().filter(|path| !lasting(path)) {
            let how = json!({"gracePeriodSeconds": 0, "propagationPolicy": "Background"});
            let (code, answer) = world.delete(path, how).await;
            assert!(code.is_success(), "{path}: {answer}");
            // No controllers run here that would release what is protected.
            if answer["metadata"]["finalizers"].is_array() {
                assert_eq!(world.merge(path, json!({"metadata": {"finalizers": null}})).await.0, 200, "{path}");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(taken > 80, "{taken}");
    assert_eq!(met.len(), NO_OBJECTS.len() + REFUSED.len(), "a file of the tables is gone: {met:?}");
}
