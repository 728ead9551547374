//! The OpenAPI documents: `/openapi/v2` (JSON and gnostic protobuf) and `/openapi/v3`.
//!
//! They are made from the same table that validates, so they cannot disagree with it. kubectl reads them for `explain`,
//! client-side validation and to see which parameters the server knows; helm for validation. Documents are built when
//! asked for; callers keep the bytes, keyed by [`v3_index`]'s hashes.
//! Upstream: <https://kubernetes.io/docs/concepts/overview/kubernetes-api/#openapi-interface-definition>.

mod descriptions;
mod paths;
mod protobuf;
mod schemas;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::schema::{Schema, reachable, resources, type_index};
use paths::Paths;
use schemas::Writer;
use std::sync::Arc;

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
    /// Of Kubernetes itself, not of a definition.
    builtin: bool,
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
            builtin: true,
        }
    })
    .collect()
}

fn add_custom_paths(custom: &CustomKind<'_>, paths: &mut Paths) {
    let own_type = custom_type(custom.group, custom.version, custom.kind);
    let own_kind = (custom.group, custom.version, custom.kind);
    let mut add = |name: &str,
                   verbs: &[&str],
                   kind: (&str, &str, &str),
                   list_type: Option<String>,
                   object_type: String| {
        let (group, version, namespaced, owner) = (custom.group, custom.version, custom.namespaced, custom.kind);
        let builtin = false;
        paths.add(&Served { group, version, name, namespaced, verbs, kind, owner, list_type, object_type, builtin });
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

/// Definitions of these types and all they refer to.
fn add_definitions(roots: impl IntoIterator<Item = u32>, writer: &Writer, out: &mut Map<String, Value>) {
    for index in reachable(roots) {
        let (name, definition) = writer.builtin(index);
        out.insert(name.to_owned(), definition);
    }
}

fn meta_types<'a>(names: &'a [&str]) -> impl Iterator<Item = u32> + 'a {
    names.iter().filter_map(|name| type_index(&format!("{META}.{name}")))
}

/// The types of a group's version: its kinds, and what its operations take and answer.
fn builtin_roots(group: &str, version: &str) -> Vec<u32> {
    let mut roots = Vec::new();
    let mut common = vec!["APIResourceList"];
    let served = served_builtin(group, version);
    for resource in &served {
        roots.extend(type_index(&resource.object_type));
        roots.extend(resource.list_type.as_deref().and_then(type_index));
        let verbs = resource.verbs;
        if verbs.contains(&"delete") {
            common.extend(["Status", "DeleteOptions"]);
        }
        if verbs.contains(&"patch") {
            common.push("Patch");
        }
        if verbs.contains(&"list") && verbs.contains(&"create") {
            common.push("WatchEvent");
        }
    }
    roots.extend(meta_types(&common));
    roots
}

fn custom_definitions(custom: &CustomKind<'_>, writer: &Writer, out: &mut Map<String, Value>) {
    let name = custom_type(custom.group, custom.version, custom.kind);
    out.insert(custom_type(custom.group, custom.version, custom.list_kind), writer.custom_list(custom, &name));
    out.insert(name, writer.custom(custom));
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.36.2"})
}

fn security() -> Value {
    let how = "a bearer token, in the header Authorization";
    json!({"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header", "description": how}})
}

/// The `/openapi/v2` document of these groups (each with its version) and custom kinds. `foreign` holds paths and
/// definitions of other servers.
pub fn v2_document(groups: &[(&str, &str)], custom: &[CustomKind<'_>], foreign: &[Arc<Value>]) -> Value {
    let (writer, mut paths) = (Writer::new(Format::V2), Paths::new(Format::V2));
    let mut roots: Vec<u32> =
        meta_types(&["APIGroup", "APIGroupList", "APIVersions", "ListMeta", "ObjectMeta"]).collect();
    roots.extend(type_index(VERSION_INFO));
    for (group, version) in groups {
        roots.extend(builtin_roots(group, version));
        paths.add_version(group, version);
        for served in served_builtin(group, version) {
            paths.add(&served);
        }
    }
    let mut names: Vec<&str> = groups.iter().map(|(group, _)| *group).filter(|g| !g.is_empty()).collect();
    names.dedup();
    names.iter().for_each(|group| paths.add_group(group));
    FIXED.iter().for_each(|fixed| add_fixed(&mut paths, fixed));
    let mut definitions = Map::new();
    add_definitions(roots, &writer, &mut definitions);
    for kind in custom {
        custom_definitions(kind, &writer, &mut definitions);
        add_custom_paths(kind, &mut paths);
    }
    let mut paths = paths.finish();
    for document in foreign {
        for (part, into) in [("paths", &mut paths), ("definitions", &mut definitions)] {
            for (name, value) in document[part].as_object().into_iter().flatten() {
                // What is known here is known better here.
                into.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
    }
    json!({
        "swagger": "2.0", "info": info(), "paths": paths, "definitions": definitions,
        "securityDefinitions": security(), "security": [{"BearerToken": []}],
    })
}

/// Served beside resources: path, operation, tag, the type of the answer (text where none), media types.
type Fixed = (&'static str, &'static str, &'static str, &'static str, &'static [&'static str]);
const VERSION_INFO: &str = "io.k8s.apimachinery.pkg.version.Info";
const FIXED: &[Fixed] = &[
    (
        "/.well-known/openid-configuration/",
        "getServiceAccountIssuerOpenIDConfiguration",
        "WellKnown",
        "",
        &["application/json"],
    ),
    (
        "/api/",
        "getCoreAPIVersions",
        "core",
        "io.k8s.apimachinery.pkg.apis.meta.v1.APIVersions",
        &["application/json", "application/yaml"],
    ),
    (
        "/apis/",
        "getAPIVersions",
        "apis",
        "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroupList",
        &["application/json", "application/yaml"],
    ),
    ("/openid/v1/jwks/", "getServiceAccountIssuerOpenIDKeyset", "openid", "", &["application/jwk-set+json"]),
    ("/version/", "getCodeVersion", "version", VERSION_INFO, &["application/json"]),
];

fn add_fixed(paths: &mut Paths, (path, id, tag, answer, produces): &Fixed) {
    paths.add_fixed(path, id, tag, Some(*answer).filter(|a| !a.is_empty()), produces);
}

/// The `/openapi/v3` document of one group and version, none where nothing of it is served.
pub fn v3_document(group: &str, version: &str, custom: &[CustomKind<'_>]) -> Option<Value> {
    let mut paths = Paths::new(Format::V3);
    let builtin = served_builtin(group, version);
    let own: Vec<&CustomKind<'_>> = custom.iter().filter(|k| k.group == group && k.version == version).collect();
    let mut roots = Vec::new();
    let writer = Writer::of_version(Format::V3, group, version);
    match (builtin.is_empty(), own.is_empty()) {
        (true, true) => return None,
        (false, _) => {
            roots.extend(builtin_roots(group, version));
            paths.add_version(group, version);
        }
        (true, false) => roots.extend(meta_types(&["ObjectMeta", "ListMeta", "Status", "DeleteOptions", "Patch"])),
    }
    for served in &builtin {
        paths.add(served);
    }
    let mut definitions = Map::new();
    for kind in own {
        custom_definitions(kind, &writer, &mut definitions);
        add_custom_paths(kind, &mut paths);
        if kind.scale {
            roots.extend(type_index(&builtin_type("autoscaling", "v1", "Scale")));
        }
    }
    add_definitions(roots, &writer, &mut definitions);
    Some(v3(paths, definitions))
}

/// The documents of paths that belong to no version: `api`, `apis`, `apis/apps`, `version`.
pub fn v3_plain(path: &str) -> Option<Value> {
    let mut paths = Paths::new(Format::V3);
    let writer = Writer::new(Format::V3);
    let answer = if let Some(fixed) = FIXED.iter().find(|(p, ..)| p.trim_matches('/') == path) {
        add_fixed(&mut paths, fixed);
        fixed.3.to_owned()
    } else {
        let group = path.strip_prefix("apis/").filter(|g| resources().iter().any(|r| r.group == *g))?;
        paths.add_group(group);
        format!("{META}.APIGroup")
    };
    let mut definitions = Map::new();
    add_definitions(type_index(&answer), &writer, &mut definitions);
    Some(v3(paths, definitions))
}

fn v3(paths: Paths, definitions: Map<String, Value>) -> Value {
    let mut components = json!({"securitySchemes": security()});
    if !definitions.is_empty() {
        components["schemas"] = definitions.into();
    }
    json!({"openapi": "3.0.0", "info": info(), "paths": paths.finish(), "components": components})
}

/// The path of a version's document below `/openapi/v3/`.
pub fn group_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The paths of the documents that [`v3_plain`] makes.
pub fn plain_paths<'a>(groups: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = String> + 'a {
    let fixed = FIXED.iter().map(|(path, ..)| path.trim_matches('/').to_owned());
    let groups: std::collections::BTreeSet<&str> = groups.iter().map(|(g, _)| *g).filter(|g| !g.is_empty()).collect();
    fixed.chain(groups.into_iter().map(|group| format!("apis/{group}")))
}

/// The `/openapi/v3` index: where each document is, with a hash of its content so that clients may keep it.
pub fn v3_index(groups: &[(&str, &str)], custom: &[CustomKind<'_>]) -> Map<String, Value> {
    let mut all: Vec<(&str, &str)> = groups.to_vec();
    all.extend(custom.iter().map(|k| (k.group, k.version)));
    all.sort_unstable();
    all.dedup();
    // Kept unpacked while all documents are made.
    let _descriptions = descriptions::Descriptions::unpack();
    let plain = plain_paths(groups).filter_map(|path| Some((path.clone(), v3_plain(&path)?)));
    let versions = all
        .iter()
        .filter_map(|(group, version)| Some((group_path(group, version), v3_document(group, version, custom)?)));
    plain
        .chain(versions)
        .map(|(path, document)| {
            let hash = hex::encode(Sha256::digest(crate::schema::canonical_json(&document).as_bytes())).to_uppercase();
            let url = format!("/openapi/v3/{path}?hash={hash}");
            (path, json!({"serverRelativeURL": url}))
        })
        .collect()
}

#[cfg(test)]
mod tests;
