//! The image store: what containers are made from. Images come from a registry, from an archive or from memory; layers
//! are unpacked once each and shared by overlayfs. Source: OCI image-spec and distribution-spec.
//!
//! Guarantees: an image that [`ImageStore::resolve`] returns has all its content on disk, verified by digest. A crash at
//! any point leaves the images that were complete before; leftovers are removed at the next start.
//! Architecture Invariant: one daemon owns the folder (`kfbox.lock`); paths come from digests, never from archives.

mod blobs;
mod bounded;
mod config;
mod import;
mod name;
mod pins;
mod pull;
mod pushed;
mod repositories;
mod store;
mod unpack;

pub use blobs::BlobError;
pub(crate) use config::INDEX_TYPE;
pub use config::RunConfig;
pub use import::{ImportError, ImportOptions};
pub use name::{ImageName, InvalidName, normalize};
pub(crate) use name::{is_component, is_digest, is_tag};
pub use pull::{Auths, PullError, RegistryAuth};
pub use pushed::{ManifestError, REGISTRY_HOST, Upload};
pub use repositories::{Held, Owner, Repositories, RepositoryError, SHARED, owner_name};
pub(crate) use store::blocking;
pub use store::{Collected, Image, ImageStore, Layer, Snapshot, StoreError};
pub use unpack::UnpackError;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

/// The largest manifest, index or configuration that is read into memory. Registries refuse manifests above 4 MiB.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;

/// Where images come from.
#[derive(Debug, Clone)]
pub struct ImageConfig {
    /// Names that stand for others: `registry.access.redhat.com/ubi9/python-311` for `python:3.11`. A key without a tag
    /// stands for every tag; one that ends in `*` for every name that begins so, and then a `*` at the end of the value
    /// takes the rest.
    pub aliases: BTreeMap<String, String>,
    /// For a registry, the base addresses asked before it (`https://mirror.lab:5000`).
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Registries (`host:port`) spoken to without TLS.
    pub insecure: Vec<String>,
    /// Certificates (PEM) of registries' authorities, besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// False on a machine without any registry: a missing image is then reported at once.
    pub pull_enabled: bool,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    pub https_proxy: Option<String>,
    pub http_proxy: Option<String>,
    pub no_proxy: Option<String>,
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            aliases: BTreeMap::new(),
            mirrors: BTreeMap::new(),
            insecure: Vec::new(),
            ca_file: None,
            pull_enabled: true,
            connect_timeout: Duration::from_secs(5),
            https_proxy: None,
            http_proxy: None,
            no_proxy: None,
        }
    }
}

/// How far a pull or an import is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Asking this place for the manifest.
    Resolving { from: String },
    /// `bytes` of `total` of one layer are here.
    Downloading { layer: String, bytes: u64, total: u64 },
    /// `bytes` of `total` compressed bytes of one layer are unpacked.
    Unpacking { layer: String, bytes: u64, total: u64 },
    /// A layer is complete.
    Done { layer: String },
}

/// Told of progress, on any thread, often.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// What to add to an error when there is no room for content.
pub(crate) fn advice(error: &std::io::Error) -> &'static str {
    if is_no_room(error) {
        "; the disk is full: delete pods and files that are done with, remove images (`kfbox image list`, `kfbox image \
         remove NAME`), or put the data directory on a larger disk"
    } else {
        ""
    }
}

fn is_no_room(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// Whether that was the cause of an error.
pub(crate) fn for_lack_of_room(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(is_no_room)
}

/// For callers who do not look.
pub fn silent() -> OnProgress {
    Arc::new(|_| {})
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
