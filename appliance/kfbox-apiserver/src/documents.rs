//! `/openapi/v2` and `/openapi/v3`. A document is made when it is first asked for and kept compressed until what is
//! served changes: whole, they would be the largest thing in memory.

use crate::{
    effects::CRDS,
    openapi::{self, CustomKind},
    request::Query,
    resources::{Registry, Resource},
    server::Core,
    status::ApiError,
};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    sync::Arc,
};

/// Documents of the present registry, compressed.
#[derive(Default)]
pub struct Documents(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    registry: Option<Arc<Registry>>,
    /// Times that another server's part changed.
    changes: u64,
    documents: HashMap<Name, Document>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Name {
    V2Json,
    V2Protobuf,
    V3Index,
    /// Below `/openapi/v3/`.
    V3(String),
}

#[derive(Clone)]
struct Document {
    compressed: Bytes,
    hash: String,
}

pub async fn answer(
    core: &Arc<Core>,
    headers: &HeaderMap,
    steps: &[&str],
    query: &Query,
) -> Result<Response, ApiError> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let protobuf_first =
        accept.split(',').next().is_some_and(|first| first.contains("openapi.spec.v2") && first.contains("protobuf"));
    let (name, media) = match *steps {
        ["v2"] if protobuf_first => (Name::V2Protobuf, openapi::V2_PROTOBUF),
        ["v2"] => (Name::V2Json, "application/json"),
        ["v3"] => (Name::V3Index, "application/json"),
        ["v3", ref path @ ..] => (Name::V3(path.join("/")), "application/json"),
        _ => return Err(ApiError::no_such_path()),
    };
    let registry = core.resources.current();
    let document = match core.documents.get(&registry, &name) {
        Some(document) => document,
        None => {
            let (wanted, core, registry) = (name.clone(), core.clone(), registry.clone());
            let make = move || {
                let changes = core.documents.changes();
                let document = make(&core, &registry, &wanted)?;
                core.documents.keep(&registry, changes, wanted, document.clone());
                Some(document)
            };
            tokio::task::spawn_blocking(make)
                .await
                .map_err(|_| ApiError::internal("the OpenAPI document cannot be made"))?
                .ok_or_else(ApiError::no_such_path)?
        }
    };
    respond(&document, headers, media, query.get("hash"))
}

impl Documents {
    fn get(&self, registry: &Arc<Registry>, name: &Name) -> Option<Document> {
        let kept = self.0.lock();
        let current = kept.registry.as_ref().is_some_and(|r| Arc::ptr_eq(r, registry));
        current.then(|| kept.documents.get(name).cloned()).flatten()
    }

    /// Another server's part changed.
    pub fn forget(&self) {
        let mut kept = self.0.lock();
        kept.documents.clear();
        kept.changes += 1;
    }

    fn changes(&self) -> u64 {
        self.0.lock().changes
    }

    /// `changes` are those from before the document was made: one that was overtaken is not kept.
    fn keep(&self, registry: &Arc<Registry>, changes: u64, name: Name, document: Document) {
        let mut kept = self.0.lock();
        if kept.changes != changes {
            return;
        }
        if !kept.registry.as_ref().is_some_and(|r| Arc::ptr_eq(r, registry)) {
            kept.documents.clear();
            kept.registry = Some(registry.clone());
        }
        kept.documents.insert(name, document);
    }
}

/// The schemas as their definitions state them, by CRD and version: they hold the descriptions.
type Stated = HashMap<(String, String), Value>;

fn stated(core: &Core) -> Stated {
    let Ok(crds) = core.store.list(CRDS, None, None, None) else { return Stated::new() };
    let mut stated = Stated::new();
    for crd in &crds.objects {
        let mut value = crd.value();
        for version in value["spec"]["versions"].as_array_mut().into_iter().flatten() {
            let name = version["name"].as_str().unwrap_or_default().to_owned();
            stated.insert((crd.key.name.to_string(), name), version["schema"]["openAPIV3Schema"].take());
        }
    }
    stated
}

fn custom_kind<'a>(resource: &'a Arc<Resource>, stated: &'a Stated) -> Option<CustomKind<'a>> {
    let custom = resource.custom.as_ref()?;
    Some(CustomKind {
        group: &resource.group,
        version: &resource.version,
        kind: &resource.kind,
        list_kind: &resource.list_kind,
        plural: &resource.plural,
        namespaced: resource.namespaced,
        status: custom.status,
        scale: custom.scale.is_some(),
        schema: custom.schema.get(),
        raw: stated.get(&(resource.collection.to_string(), resource.version.to_string())),
    })
}

fn make(core: &Core, registry: &Registry, name: &Name) -> Option<Document> {
    let groups: Vec<(&str, &str)> = registry
        .groups
        .iter()
        .flat_map(|g| g.versions.iter().map(|v| (&*g.name, v)))
        .filter(|(_, v)| v.resources.iter().any(|r| r.custom.is_none()))
        .map(|(group, v)| (group, &*v.version))
        .collect();
    let stated = stated(core);
    let custom: Vec<CustomKind<'_>> = registry.all().filter_map(|r| custom_kind(r, &stated)).collect();
    let remotes = core.aggregation.all();
    let foreign: Vec<Arc<Value>> =
        remotes.iter().filter(|r| r.is_available(core)).filter_map(|r| r.learned.lock().openapi_v2.clone()).collect();
    let json = |value: Value| value.to_string().into_bytes();
    let bytes = match name {
        Name::V2Json => json(openapi::v2_document(&groups, &custom, &foreign)),
        Name::V2Protobuf => openapi::v2_protobuf(&openapi::v2_document(&groups, &custom, &foreign)),
        Name::V3Index => {
            let mut index = openapi::v3_index(&groups, &custom);
            for remote in remotes.iter().filter(|r| r.is_available(core)) {
                let path = openapi::group_path(&remote.group, &remote.version);
                let url = remote.learned.lock().openapi_v3.clone();
                let url = url.unwrap_or_else(|| format!("/openapi/v3/{path}"));
                index.insert(path, serde_json::json!({"serverRelativeURL": url}));
            }
            json(serde_json::json!({"paths": index}))
        }
        Name::V3(path) => {
            let version = match path.split('/').collect::<Vec<_>>()[..] {
                ["api", version] => openapi::v3_document("", version, &custom),
                ["apis", group, version] => openapi::v3_document(group, version, &custom),
                _ => None,
            };
            json(version.or_else(|| openapi::v3_plain(path))?)
        }
    };
    let hash = hex::encode_upper(Sha256::digest(&bytes));
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 10), Compression::fast());
    encoder.write_all(&bytes).ok()?;
    let compressed = encoder.finish().ok()?.into();
    Some(Document { compressed, hash })
}

fn respond(
    document: &Document,
    headers: &HeaderMap,
    media: &'static str,
    hash: Option<&str>,
) -> Result<Response, ApiError> {
    let etag = format!("\"{}\"", document.hash);
    let same = headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == etag.as_bytes());
    let gzip = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|v| v.split(',').any(|e| e.split(';').next().is_some_and(|e| e.trim() == "gzip")));
    let body = if same {
        Body::empty()
    } else if gzip {
        Body::from(document.compressed.clone())
    } else {
        let mut whole = Vec::new();
        GzDecoder::new(&document.compressed[..]).read_to_end(&mut whole).map_err(ApiError::internal)?;
        Body::from(whole)
    };
    let mut response = Response::new(body);
    if same {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let answer = response.headers_mut();
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    answer.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        answer.insert(header::ETAG, etag);
    }
    if gzip && !same {
        answer.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    // A document asked for by its hash never changes under that address.
    let lasting = hash == Some(document.hash.as_str());
    let cache = if lasting { "public, immutable" } else { "no-cache, private" };
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    Ok(response)
}
