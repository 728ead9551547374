use serde_json::{Value, json};

use super::{CustomKind, v2_document, v2_protobuf, v3_document, v3_index};
use crate::schema::{from_crd, resources};

fn groups() -> Vec<(&'static str, &'static str)> {
    let mut all: Vec<_> = resources().iter().map(|r| (r.group, r.version)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Every reference of a document leads somewhere.
fn dangling(value: &Value, document: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, child) in map {
                match (name.as_str(), child) {
                    ("$ref", Value::String(target)) => {
                        let pointer = target.trim_start_matches('#');
                        if document.pointer(pointer).is_none() {
                            out.push(target.clone());
                        }
                    }
                    _ => dangling(child, document, out),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| dangling(item, document, out)),
        _ => {}
    }
}

fn with_custom<T>(test: impl FnOnce(&[CustomKind<'_>]) -> T) -> T {
    let raw = json!({"type": "object", "properties": {"spec": {"type": "object", "description": "what is wanted", "properties": {
        "port": {"x-kubernetes-int-or-string": true}, "names": {"type": "array", "items": {"type": "string"}}}}}});
    let schema = from_crd(&raw).unwrap();
    test(&[CustomKind {
        group: "example.org",
        version: "v1",
        kind: "Thing",
        list_kind: "ThingList",
        plural: "things",
        namespaced: true,
        status: true,
        scale: true,
        schema: &schema,
        raw: Some(&raw),
    }])
}

#[test]
fn documents_are_closed_and_say_what_kubectl_looks_for() {
    with_custom(|custom| {
        let v2 = v2_document(&groups(), custom, &[]);
        let mut missing = Vec::new();
        dangling(&v2, &v2, &mut missing);
        assert_eq!(missing, Vec::<String>::new());
        let pod = &v2["definitions"]["io.k8s.api.core.v1.Pod"];
        assert_eq!(pod["x-kubernetes-group-version-kind"], json!([{"group": "", "version": "v1", "kind": "Pod"}]));
        let containers = &v2["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(
            v2["definitions"]["org.example.v1.Thing"]["properties"]["spec"]["properties"]["port"]["format"],
            "int-or-string"
        );
        let parameters = |document: &Value, path: &str| -> Vec<String> {
            document["paths"][path]["patch"]["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .map(|p| p["name"].as_str().unwrap().to_owned())
                .collect()
        };
        for path in [
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}",
            "/apis/example.org/v1/namespaces/{namespace}/things/{name}",
            "/api/v1/namespaces/{name}",
        ] {
            let found = parameters(&v2, path);
            assert!(
                ["dryRun", "fieldValidation", "fieldManager"].iter().all(|n| found.iter().any(|f| f == n)),
                "{path}: {found:?}"
            );
            assert!(v2["paths"][path]["patch"]["x-kubernetes-group-version-kind"]["kind"].is_string());
        }
        for (group, version) in groups().into_iter().chain([("example.org", "v1")]) {
            let v3 = v3_document(group, version, custom).unwrap();
            let mut missing = Vec::new();
            dangling(&v3, &v3, &mut missing);
            assert_eq!(missing, Vec::<String>::new(), "{group}/{version}");
            assert!(!v3["paths"].as_object().unwrap().is_empty());
        }
        let things = v3_document("example.org", "v1", custom).unwrap();
        assert_eq!(
            things["components"]["schemas"]["org.example.v1.Thing"]["properties"]["spec"]["description"],
            "what is wanted"
        );
        assert!(
            parameters(&things, "/apis/example.org/v1/namespaces/{namespace}/things/{name}")
                .contains(&"fieldValidation".to_owned())
        );
        assert_eq!(
            things["paths"]["/apis/example.org/v1/namespaces/{namespace}/things/{name}/scale"]["get"]["x-kubernetes-group-version-kind"]
                ["kind"],
            "Scale"
        );
        assert_eq!(v3_document("nobody", "v1", custom), None);
        let index = v3_index(&groups(), custom);
        let url = index["api/v1"]["serverRelativeURL"].as_str().unwrap();
        assert!(url.starts_with("/openapi/v3/api/v1?hash="), "{url}");
        assert!(index["apis/example.org/v1"].is_object());
        assert_ne!(
            v3_index(&groups(), custom)["apis/example.org/v1"],
            v3_index(&groups(), &[]).get("apis/example.org/v1").cloned().unwrap_or_default()
        );
    });
}

/// A reader of the wire form, to see that what was written can be walked to the end.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut out, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            out |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return out;
            }
        }
    }
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        match tag & 7 {
            0 => out.push((tag >> 3, vec![varint(&mut bytes) as u8])),
            2 => {
                let length = varint(&mut bytes) as usize;
                out.push((tag >> 3, bytes[..length].to_vec()));
                bytes = &bytes[length..];
            }
            other => panic!("wire type {other}"),
        }
    }
    out
}

#[test]
fn protobuf_walks() {
    let document = v2_document(&groups(), &[], &[]);
    let bytes = v2_protobuf(&document);
    let top = fields(&bytes);
    let get = |number: u64| top.iter().find(|(n, _)| *n == number).map(|(_, b)| b.clone()).unwrap();
    assert_eq!(get(1), b"2.0");
    let definitions = fields(&get(9));
    assert_eq!(definitions.len(), document["definitions"].as_object().unwrap().len());
    let (_, pod) = definitions.iter().find(|(_, d)| fields(d)[0].1 == b"io.k8s.api.core.v1.Pod").unwrap();
    let schema = fields(&fields(pod)[1].1);
    let (_, extension) = schema.iter().find(|(n, _)| *n == 31).unwrap();
    let extension = fields(extension);
    assert_eq!(extension[0].1, b"x-kubernetes-group-version-kind");
    assert!(String::from_utf8_lossy(&fields(&extension[1].1)[0].1).contains("\"Pod\""));
    assert_eq!(fields(&get(8)).len(), document["paths"].as_object().unwrap().len());
}
