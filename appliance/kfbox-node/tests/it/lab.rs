//! A registry with images of a chosen size, as a lab has one: enough of the protocol for a pull.
//! Upstream: <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>

use axum::{
    Router,
    extract::State,
    http::{StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{collections::HashMap, path::Path, sync::Arc};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// By the last part of an address: a digest, or a repository's name for its manifest.
type Content = HashMap<String, bytes::Bytes>;

pub struct Lab {
    pub host: String,
    content: Content,
}

impl Lab {
    /// Takes a port. Nothing answers before [`Lab::serve`].
    pub fn prepare() -> (Self, std::net::TcpListener) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        (Self { host: listener.local_addr().unwrap().to_string(), content: Content::new() }, listener)
    }

    /// An image of busybox and so many bytes that no compression makes fewer. Returns its name.
    pub fn add(&mut self, name: &str, size: usize) -> String {
        let dir = tempfile::tempdir().unwrap();
        crate::world::busybox(dir.path());
        std::fs::write(dir.path().join("ballast"), noise(name, size)).unwrap();
        let layer = tar_of(dir.path());
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"] },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len() },
            "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(&layer), "size": layer.len() }],
        });
        for blob in [config, layer] {
            self.content.insert(digest(&blob), blob.into());
        }
        let manifest = manifest.to_string().into_bytes();
        self.content.insert(digest(&manifest), manifest.clone().into());
        self.content.insert(name.to_owned(), manifest.into());
        format!("{}/{name}:1", self.host)
    }

    #[expect(clippy::disallowed_methods, reason = "a test's server, which ends with the test's runtime")]
    pub fn serve(self, listener: std::net::TcpListener) {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::new(self.content));
        drop(tokio::task::spawn(std::future::IntoFuture::into_future(axum::serve(listener, router))));
    }
}

async fn answer(State(content): State<Arc<Content>>, uri: Uri) -> Response {
    let path = uri.path();
    let Some((repository, rest)) = path.strip_prefix("/v2/").and_then(|path| path.split_once('/')) else {
        return "{}".into_response();
    };
    let key = match rest.strip_prefix("manifests/") {
        Some(reference) if !reference.contains(':') => repository,
        _ => rest.rsplit('/').next().unwrap_or_default(),
    };
    match content.get(key) {
        Some(bytes) if rest.starts_with("manifests/") => ([(CONTENT_TYPE, MANIFEST)], bytes.clone()).into_response(),
        Some(bytes) => bytes.clone().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Different for each name, the same each time.
fn noise(name: &str, size: usize) -> Vec<u8> {
    let mut state = name
        .bytes()
        .fold(0x9e37_79b9_7f4a_7c15_u64, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
        | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(size / 8).flatten().collect()
}

fn tar_of(folder: &Path) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.follow_symlinks(false);
    tar.append_dir_all(".", folder).unwrap();
    tar.into_inner().unwrap()
}
