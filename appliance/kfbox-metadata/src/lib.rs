//! ML Metadata: `ml_metadata.MetadataStoreService` for the unmodified Python client, and the same store for the rest of
//! the daemon. Upstream: <https://github.com/google/ml-metadata>, whose error codes and defaults it keeps.
//!
//! Guarantees: a put is whole or not at all, and on disk when it is answered; nobody reads or changes what belongs to a
//! namespace that its rights do not cover (see [`Scope`]).

mod bundles;
mod error;
mod filter;
mod lineage;
mod links;
mod listing;
pub mod names;
mod node;
mod rows;
mod schema;
mod scope;
mod server;
mod service;
mod store;
mod types;

/// The protocol's messages, client and server.
pub mod proto {
    #![expect(clippy::all, clippy::allow_attributes, reason = "generated from proto/metadata_store.proto")]
    tonic::include_proto!("ml_metadata");
}

pub use error::Error;
pub use node::Kind;
pub use scope::{Access, Grants, NAMESPACE_HEADER, Namespaces, Scope};
pub use server::{IdentifyAddress, IdentifyCertificate};
pub use store::{Among, Page, Store};

use kfbox_base::Tasks;
use kfbox_db::{Database, OpenError};
use service::Service;
use std::{path::PathBuf, sync::Arc};
use tokio::net::TcpListener;

#[derive(Debug, Clone)]
pub struct Config {
    /// `metadata.db` lies here.
    pub data_dir: PathBuf,
}

/// The metadata store with its servers. Cloning shares it.
#[derive(Clone)]
pub struct Metadata {
    service: Service,
}

impl Metadata {
    /// Opens or creates the store. `access` says what a caller may do.
    pub fn open(config: Config, access: Arc<dyn Access>) -> Result<Self, OpenError> {
        let Config { data_dir } = config;
        let path = data_dir.join("metadata.db");
        let db = Database::open(&path, &schema::SCHEMA)?;
        kfbox_db::fill_log(&path);
        Ok(Self { service: Service { store: Store { db }, access } })
    }

    /// The store for use inside the daemon.
    pub fn store(&self) -> &Store {
        &self.service.store
    }

    /// Serves gRPC over TLS until shutdown. `config` decides which client certificates are accepted; `identify` tells
    /// the caller from them. Calls from callers it does not know answer UNAUTHENTICATED.
    pub fn serve_tls(
        &self,
        listener: TcpListener,
        config: Arc<rustls::ServerConfig>,
        identify: IdentifyCertificate,
        tasks: &Tasks,
    ) {
        server::tls(self.service.clone(), listener, config, identify, tasks);
    }

    /// Serves gRPC in the clear until shutdown, for pods, told apart by their address.
    pub fn serve_plain(&self, listener: TcpListener, identify: IdentifyAddress, tasks: &Tasks) {
        server::plain(self.service.clone(), listener, identify, tasks);
    }
}

#[cfg(test)]
mod tests;
