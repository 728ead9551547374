//! A caching proxy in front of a Python package index, for pods: a step's `pip install` downloads each file once for the
//! whole machine, and works without a network for what was seen before.
//!
//! Follows the simple repository API: PEP 503 (pages and names), PEP 691 (JSON), PEP 658 and 714 (metadata files).
//!
//! Guarantees: a file is served only if its bytes have the SHA-256 that the index names for it; requests at the same time
//! share one download; only files that a project page of the configured index lists can be fetched; nothing outside
//! the cache folder is read or written, apart from the configured folders of local packages.
//! Architecture Invariant: there is no private file here. Everyone who reaches the listener may read all of it.

mod download;
mod fetch;
mod index;
mod page;
mod routes;
mod store;

pub use fetch::{FetchError, small_file};
pub use url::Url;

use kfbox_base::Tasks;
use std::{path::PathBuf, sync::Arc, time::Duration};

#[derive(Debug, Clone)]
pub struct Config {
    pub cache_dir: PathBuf,
    /// Such as `https://pypi.org/simple`; user and password in it are sent to its host only.
    pub upstream_index_url: Url,
    /// Folders with wheels and source archives that are offered besides the index.
    pub find_links: Vec<PathBuf>,
    /// PEM file of the certificate authorities to trust; the system's when absent.
    pub ca_bundle: Option<PathBuf>,
    /// Bytes of files kept; the longest unused go first.
    pub max_cache_bytes: u64,
    /// A larger file is refused.
    pub max_file_bytes: u64,
    /// A project page is used without asking for this long.
    pub page_fresh_for: Duration,
}

impl Config {
    pub fn new(cache_dir: PathBuf, upstream_index_url: Url) -> Self {
        Self {
            cache_dir,
            upstream_index_url,
            find_links: Vec::new(),
            ca_bundle: None,
            max_cache_bytes: 20 << 30,
            // The largest wheels of today (CUDA builds of torch and tensorflow) are near 3 GiB.
            max_file_bytes: 6 << 30,
            page_fresh_for: Duration::from_secs(600),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PackagesError {
    #[error("the package cache folder {path}: {source}")]
    Folder {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the package index URL must be http(s)://HOST/…")]
    IndexUrl,
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

/// A cloneable handle on the cache.
#[derive(Clone)]
pub struct Packages {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    fetcher: fetch::Fetcher,
    store: store::Store,
    index: index::Index,
    downloads: download::Downloads,
    tasks: Tasks,
}

impl Packages {
    /// Opens the cache folder, creating it if needed, and clears what an interrupted download left.
    pub fn open(config: Config, tasks: &Tasks) -> Result<Self, PackagesError> {
        if !matches!(config.upstream_index_url.scheme(), "http" | "https") || config.upstream_index_url.host().is_none()
        {
            return Err(PackagesError::IndexUrl);
        }
        let folder = |source| PackagesError::Folder { path: config.cache_dir.clone(), source };
        let store = store::Store::open(&config.cache_dir, config.max_cache_bytes).map_err(folder)?;
        let fetcher = fetch::Fetcher::new(&config.upstream_index_url, config.ca_bundle.as_deref())?;
        let index = index::Index::open(&config).map_err(folder)?;
        let inner =
            Inner { config, fetcher, store, index, downloads: download::Downloads::default(), tasks: tasks.clone() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// `/simple/`, `/simple/PROJECT/`, `/files/SHA256/NAME` and `/files/SHA256/NAME.metadata`.
    pub fn router(&self) -> axum::Router {
        routes::router(self.clone())
    }
}

#[cfg(test)]
mod tests;
