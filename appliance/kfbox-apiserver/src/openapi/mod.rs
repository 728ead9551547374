//! The OpenAPI documents: `/openapi/v2` (JSON and gnostic protobuf) and `/openapi/v3`.
//!
//! They are made from the same table that validates, so they cannot disagree with it. kubectl reads them for `explain`,
//! client-side validation and to see which parameters the server knows; helm for validation. Documents are built when
//! asked for; callers keep the bytes, keyed by [`v3_index`]'s hashes.
//! Upstream: <https://kubernetes.io/docs/concepts/overview/kubernetes-api/#openapi-interface-definition>.

mod paths;
mod protobuf;
mod schemas;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::schema::{Schema, reachable, resources, type_index, types_of_group};

pub use protobuf::v2_protobuf;

/// The `Content-Type` of [`v2_protobuf`]. Clients ask for it with `spec.v2@v1.0`, an `@` that Go's own parser of media
/// types refuses in an answer.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// A served version of a custom resource.
#[derive(Clone, Copy, Debug)]
pub struct CustomKind<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    pub list_kind: &'a str,
    pub plural: &'a str,
    pub namespaced: bool,
    pub status: bool,
    pub scale: bool,
    pub schema: &'a Schema,
    /// The version's `schema.openAPIV3Schema`, where at hand: keeps descriptions for `kubectl explain`.
    pub raw: Option<&'a Value>,
}

/// Which of the two formats is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    V2,
    V3,
}

impl Format {
    fn reference(self, name: &str) -> Value {
        match self {
            Format::V2 => json!(format!("#/definitions/{name}")),
            Format::V3 => json!(format!("#/components/schemas/{name}")),
        }
    }
}

/// One resource with its operations, built-in or custom.
struct Served<'a> {
    group: &'a str,
    version: &'a str,
    /// `pods`, `pods/status`.
    name: &'a str,
    namespaced: bool,
    verbs: &'a [&'a str],
    kind: (&'a str, &'a str, &'a str),
    /// The kind of the resource that a subresource belongs to.
    owner: &'a str,
    list_type: Option<String>,
    object_type: String,
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const ALL_VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update"];
const SUB_VERBS: &[&str] = &["get", "patch", "update"];

/// The name of a custom kind's type: the group reversed, version, kind.
fn custom_type(group: &str, version: &str, kind: &str) -> String {
    let reversed: Vec<&str> = group.rsplit('.').collect();
    format!("{}.{version}.{kind}", reversed.join("."))
}

fn builtin_type(group: &str, version: &str, kind: &str) -> String {
    crate::schema::type_of_kind(group, version, kind).map_or_else(|| format!("{META}.Status"), ToOwned::to_owned)
}

fn served_builtin(group: &str, version: &str) -> Vec<Served<'static>> {
    let own = resources().iter().filter(|r| r.group == group && r.version == version);
    own.map(|r| {
        // Subresources may carry kinds of other groups: scale, eviction, token.
        let kind = [
            (r.group, r.version),
            ("autoscaling", "v1"),
            ("policy", "v1"),
            ("authentication.k8s.io", "v1"),
            ("", "v1"),
        ]
        .into_iter()
        .find(|(g, v)| crate::schema::type_of_kind(g, v, r.kind).is_some())
        .map_or((r.group, r.version, r.kind), |(g, v)| (g, v, r.kind));
        let plural = r.name.split('/').next().unwrap_or(r.name);
        let owner = resources().iter().find(|o| o.group == group && o.version == version && o.name == plural);
        let list = format!("{}List", r.kind);
        Served {
            group: r.group,
            version: r.version,
            name: r.name,
            namespaced: r.namespaced,
            verbs: &r.verbs,
            kind,
            owner: owner.map_or(r.kind, |o| o.kind),
            list_type: crate::schema::type_of_kind(r.group, r.version, &list).map(ToOwned::to_owned),
            object_type: builtin_type(kind.0, kind.1, kind.2),
        }
    })
    .collect()
}

fn add_custom_paths(custom: &CustomKind<'_>, format: Format, out: &mut Map<String, Value>) {
    let own_type = custom_type(custom.group, custom.version, custom.kind);
    let own_kind = (custom.group, custom.version, custom.kind);
    let mut add =
        |name: &str, verbs: &[&str], kind: (&str, &str, &str), list_type: Option<String>, object_type: String| {
            let (group, version, namespaced) = (custom.group, custom.version, custom.namespaced);
            paths::add(
                &Served { group, version, name, namespaced, verbs, kind, owner: custom.kind, list_type, object_type },
                format,
                out,
            );
        };
    let list_type = custom_type(custom.group, custom.version, custom.list_kind);
    add(custom.plural, ALL_VERBS, own_kind, Some(list_type), own_type.clone());
    if custom.status {
        add(&format!("{}/status", custom.plural), SUB_VERBS, own_kind, None, own_type);
    }
    if custom.scale {
        let scale = ("autoscaling", "v1", "Scale");
        add(&format!("{}/scale", custom.plural), SUB_VERBS, scale, None, builtin_type(scale.0, scale.1, scale.2));
    }
}

/// Definitions of built-in types and all they refer to.
fn builtin_definitions(groups: &[(&str, &str)], format: Format, out: &mut Map<String, Value>) {
    let common = [
        "Status",
        "DeleteOptions",
        "Patch",
        "WatchEvent",
        "ListMeta",
        "ObjectMeta",
        "APIResourceList",
        "APIGroup",
        "APIGroupList",
        "APIVersions",
    ];
    let common = common.iter().filter_map(|name| type_index(&format!("{META}.{name}")));
    let mut roots: Vec<u32> = groups.iter().flat_map(|(group, version)| types_of_group(group, version)).collect();
    roots.extend(common);
    for (group, version) in groups {
        roots.extend(served_builtin(group, version).iter().filter_map(|s| type_index(&s.object_type)));
    }
    for index in reachable(roots) {
        let (name, definition) = schemas::builtin(index, format);
        out.insert(name.to_owned(), definition);
    }
}

fn custom_definitions(custom: &CustomKind<'_>, format: Format, out: &mut Map<String, Value>) {
    let name = custom_type(custom.group, custom.version, custom.kind);
    out.insert(
        custom_type(custom.group, custom.version, custom.list_kind),
        schemas::custom_list(custom, &name, format),
    );
    out.insert(name, schemas::custom(custom, format));
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.36.2"})
}

/// The `/openapi/v2` document of these groups (each with its version) and custom kinds.
pub fn v2_document(groups: &[(&str, &str)], custom: &[CustomKind<'_>]) -> Value {
    let (mut definitions, mut all_paths) = (Map::new(), Map::new());
    builtin_definitions(groups, Format::V2, &mut definitions);
    for (group, version) in groups {
        for served in served_builtin(group, version) {
            paths::add(&served, Format::V2, &mut all_paths);
        }
    }
    for kind in custom {
        custom_definitions(kind, Format::V2, &mut definitions);
        add_custom_paths(kind, Format::V2, &mut all_paths);
    }
    json!({"swagger": "2.0", "info": info(), "paths": all_paths, "definitions": definitions})
}

/// The `/openapi/v3` document of one group and version, none where nothing of it is served.
pub fn v3_document(group: &str, version: &str, custom: &[CustomKind<'_>]) -> Option<Value> {
    let (mut definitions, mut all_paths) = (Map::new(), Map::new());
    let builtin = served_builtin(group, version);
    let own: Vec<&CustomKind<'_>> = custom.iter().filter(|k| k.group == group && k.version == version).collect();
    if builtin.is_empty() && own.is_empty() {
        return None;
    }
    builtin_definitions(&[(group, version)], Format::V3, &mut definitions);
    for served in &builtin {
        paths::add(served, Format::V3, &mut all_paths);
    }
    for kind in own {
        custom_definitions(kind, Format::V3, &mut definitions);
        add_custom_paths(kind, Format::V3, &mut all_paths);
        if kind.scale {
            for index in reachable(type_index(&builtin_type("autoscaling", "v1", "Scale"))) {
                let (name, definition) = schemas::builtin(index, Format::V3);
                definitions.insert(name.to_owned(), definition);
            }
        }
    }
    Some(json!({"openapi": "3.0.0", "info": info(), "paths": all_paths, "components": {"schemas": definitions}}))
}

/// The path of a group's documents below `/openapi/v3/`.
fn group_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The `/openapi/v3` index: where each group's document is, with a hash of its content so that clients may keep it.
pub fn v3_index(groups: &[(&str, &str)], custom: &[CustomKind<'_>]) -> Value {
    let mut all: Vec<(&str, &str)> = groups.to_vec();
    all.extend(custom.iter().map(|k| (k.group, k.version)));
    all.sort_unstable();
    all.dedup();
    let mut index = Map::new();
    for (group, version) in all {
        let Some(document) = v3_document(group, version, custom) else { continue };
        let path = group_path(group, version);
        let hash = hex::encode(Sha256::digest(crate::schema::canonical_json(&document).as_bytes())).to_uppercase();
        index.insert(path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}));
    }
    json!({"paths": index})
}

#[cfg(test)]
mod tests;
