//! Paths with their operations and parameters.

use serde_json::{Map, Value, json};

use super::{Format, META, Served};

/// Query parameters by verb, as upstream serves them.
fn query(verb: &str) -> &'static [(&'static str, &'static str)] {
    const LIST: &[(&str, &str)] = &[
        ("allowWatchBookmarks", "boolean"),
        ("continue", "string"),
        ("fieldSelector", "string"),
        ("labelSelector", "string"),
        ("limit", "integer"),
        ("resourceVersion", "string"),
        ("resourceVersionMatch", "string"),
        ("sendInitialEvents", "boolean"),
        ("timeoutSeconds", "integer"),
        ("watch", "boolean"),
    ];
    const WRITE: &[(&str, &str)] = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
    const PATCH: &[(&str, &str)] =
        &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
    const DELETE: &[(&str, &str)] = &[
        ("dryRun", "string"),
        ("gracePeriodSeconds", "integer"),
        ("orphanDependents", "boolean"),
        ("propagationPolicy", "string"),
    ];
    match verb {
        "list" => LIST,
        "create" | "update" => WRITE,
        "patch" => PATCH,
        "delete" | "deletecollection" => DELETE,
        _ => &[],
    }
}

const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
const JSON: &[&str] = &["application/json", "application/yaml"];

fn parameter(name: &str, place: &str, kind: &str, format: Format) -> Value {
    let required = place == "path";
    match format {
        Format::V2 if required => {
            json!({"name": name, "in": place, "type": kind, "required": true, "uniqueItems": true})
        }
        Format::V2 => json!({"name": name, "in": place, "type": kind, "uniqueItems": true}),
        Format::V3 if required => {
            json!({"name": name, "in": place, "required": true, "schema": {"type": kind, "uniqueItems": true}})
        }
        Format::V3 => json!({"name": name, "in": place, "schema": {"type": kind, "uniqueItems": true}}),
    }
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + chars.as_str())
}

/// `AppsV1`, `CoreV1`, `KubeflowOrgV1`.
fn tag(served: &Served<'_>, joined: bool) -> String {
    let group = if served.group.is_empty() { "core" } else { served.group };
    let group = group.strip_suffix(".k8s.io").unwrap_or(group);
    if joined {
        let parts: String = group.split(['.', '-']).map(capital).collect();
        parts + &capital(served.version)
    } else {
        let (first, rest) = group.split_once(['.', '-']).unwrap_or((group, ""));
        let rest: String = rest.split(['.', '-']).map(capital).collect();
        format!("{first}{rest}_{}", served.version)
    }
}

fn operation(served: &Served<'_>, verb: &str, namespaced: bool, format: Format) -> Value {
    let action = match verb {
        "create" => "post",
        "update" => "put",
        other => other,
    };
    let (_, sub) = served.name.split_once('/').unwrap_or((served.name, ""));
    let word = match verb {
        "get" => "read",
        "update" => "replace",
        "deletecollection" => "delete",
        other => other,
    };
    let scope = match (served.namespaced, namespaced) {
        (true, true) => "Namespaced",
        _ => "",
    };
    let tail = if served.namespaced && !namespaced { "ForAllNamespaces" } else { "" };
    let many = if verb == "deletecollection" { "Collection" } else { "" };
    let id = format!("{word}{}{many}{scope}{}{}{tail}", tag(served, true), served.owner, capital(sub));
    let status = format!("{META}.Status");
    let result = match verb {
        "list" => served.list_type.as_deref().unwrap_or(&served.object_type),
        "deletecollection" | "delete" => status.as_str(),
        _ => served.object_type.as_str(),
    };
    let body = match verb {
        "create" | "update" => Some((served.object_type.clone(), JSON)),
        "patch" => Some((format!("{META}.Patch"), PATCHES)),
        "delete" | "deletecollection" => Some((format!("{META}.DeleteOptions"), JSON)),
        _ => None,
    };
    let mut parameters: Vec<Value> =
        query(verb).iter().map(|(name, kind)| parameter(name, "query", kind, format)).collect();
    let (group, version, kind) = served.kind;
    let mut out = json!({
        "operationId": id,
        "tags": [tag(served, false)],
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    });
    let schema = json!({"$ref": format.reference(result)});
    let codes: &[&str] = match verb {
        "create" => &["200", "201", "202"],
        "update" | "patch" => &["200", "201"],
        "delete" => &["200", "202"],
        _ => &["200"],
    };
    let mut responses = Map::new();
    match format {
        Format::V2 => {
            if let Some((name, consumes)) = body {
                let required = !verb.starts_with("delete");
                parameters.insert(0, json!({"name": "body", "in": "body", "required": required, "schema": {"$ref": format.reference(&name)}}));
                out["consumes"] = json!(consumes);
            } else {
                out["consumes"] = json!(["*/*"]);
            }
            out["produces"] = json!(JSON);
            for code in codes {
                responses.insert((*code).to_owned(), json!({"description": "OK", "schema": schema}));
            }
        }
        Format::V3 => {
            if let Some((name, consumes)) = body {
                let content: Map<String, Value> = consumes
                    .iter()
                    .map(|m| ((*m).to_owned(), json!({"schema": {"$ref": format.reference(&name)}})))
                    .collect();
                out["requestBody"] = json!({"content": content});
            }
            let content: Map<String, Value> =
                JSON.iter().map(|m| ((*m).to_owned(), json!({"schema": schema}))).collect();
            for code in codes {
                responses.insert((*code).to_owned(), json!({"description": "OK", "content": content}));
            }
        }
    }
    responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
    out["responses"] = Value::Object(responses);
    if !parameters.is_empty() {
        out["parameters"] = Value::Array(parameters);
    }
    out
}

/// Adds the paths of one resource or subresource.
pub(super) fn add(served: &Served<'_>, format: Format, out: &mut Map<String, Value>) {
    let base = if served.group.is_empty() {
        format!("/api/{}", served.version)
    } else {
        format!("/apis/{}/{}", served.group, served.version)
    };
    let (resource, sub) = served.name.split_once('/').unwrap_or((served.name, ""));
    let namespace = if served.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{namespace}/{resource}");
    let item = if sub.is_empty() { format!("{collection}/{{name}}") } else { format!("{collection}/{{name}}/{sub}") };
    let mut put = |path: &str, method: &str, verb: &str, namespaced: bool| {
        let entry = out.entry(path.to_owned()).or_insert_with(|| {
            let mut parameters = Vec::new();
            if path.contains("{name}") {
                parameters.push(parameter("name", "path", "string", format));
            }
            if path.contains("{namespace}") {
                parameters.push(parameter("namespace", "path", "string", format));
            }
            if parameters.is_empty() { json!({}) } else { json!({"parameters": parameters}) }
        });
        entry[method] = operation(served, verb, namespaced, format);
    };
    for verb in served.verbs {
        match *verb {
            "create" if sub.is_empty() => put(&collection, "post", verb, true),
            "create" => put(&item, "post", verb, true),
            "list" => {
                put(&collection, "get", verb, true);
                if served.namespaced {
                    put(&format!("{base}/{resource}"), "get", verb, false);
                }
            }
            "deletecollection" => put(&collection, "delete", verb, true),
            "get" => put(&item, "get", verb, true),
            "update" => put(&item, "put", verb, true),
            "patch" => put(&item, "patch", verb, true),
            "delete" => put(&item, "delete", verb, true),
            _ => {}
        }
    }
}
