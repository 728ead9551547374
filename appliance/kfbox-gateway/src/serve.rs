//! Accepting connections. Guarantees: a connection that sends no complete request header in time is closed; at shutdown
//! requests in progress get a few seconds, and the task ends whatever clients do.

use axum::{Router, extract::ConnectInfo};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::rt::{TokioIo, TokioTimer};
use kfbox_base::{BoxError, Tasks};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tower::ServiceExt as _;

/// Connections at once. Browsers hold one for each live page, SDKs a handful; at some 40 KiB each this bounds memory.
const CONNECTIONS: usize = 2048;
/// A header that takes longer is a stalled client or an attack.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// What a request in progress gets at shutdown.
const GRACE: Duration = Duration::from_secs(3);

pub(crate) fn serve(name: &str, listener: TcpListener, router: Router, tasks: &Tasks) {
    let (shutdown, all) = (tasks.shutdown(), tasks.clone());
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    tasks.essential(name.to_owned(), async move {
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return Ok::<(), BoxError>(()) };
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let (router, shutdown) = (router.clone(), shutdown.clone());
                    all.spawn("gateway-connection", async move {
                        let _slot = slot;
                        connection(stream, peer, router, shutdown).await;
                    });
                }
                // Out of descriptors, or the peer is gone already: waiting is all that helps.
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    shutdown: tokio_util::sync::CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, %peer, "connection");
            }
            return;
        }
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    drop(tokio::time::timeout(GRACE, connection).await);
}
