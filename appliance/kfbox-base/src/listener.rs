//! Bound listeners, with errors that say which address and what to do about it.

use std::net::SocketAddr;
use tokio::net::TcpListener;

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("the {purpose} address {address} is in use by another program")]
    InUse { purpose: String, address: SocketAddr },
    #[error("cannot listen on the {purpose} address {address}: {source}")]
    Other {
        purpose: String,
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
}

/// Binds a TCP listener. Port 0 takes any free port; read it back with `local_addr`.
pub async fn bind(purpose: &str, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => BindError::InUse { purpose: purpose.into(), address },
        _ => BindError::Other { purpose: purpose.into(), address, source },
    })
}
