//! Webhooks of the daemon's own, over TLS on loopback with the cluster's serving certificate: the API server is their only
//! caller.

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use kfbox_base::{BoxError, Tasks};
use std::{sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore};
use tower::ServiceExt;

/// The API server keeps few connections open; others on this machine must not use up the daemon's.
const MAX_CONNECTIONS: usize = 64;
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves until shutdown.
pub fn serve(listener: TcpListener, tls: Arc<rustls::ServerConfig>, router: Router, tasks: &Tasks) {
    let (owned, shutdown) = (tasks.clone(), tasks.shutdown());
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    tasks.essential("webhooks", async move {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
        builder.http2().timer(TokioTimer::new());
        loop {
            let permit = tokio::select! {
                () = shutdown.cancelled() => return Ok::<(), BoxError>(()),
                permit = permits.clone().acquire_owned() => permit.map_err(BoxError::from)?,
            };
            let stream = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a webhook's connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let (acceptor, builder, router, shutdown) =
                (acceptor.clone(), builder.clone(), router.clone(), shutdown.clone());
            drop(owned.spawn("webhook-connection", async move {
                let _permit = permit;
                let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
                let service = hyper::service::service_fn(move |request| router.clone().oneshot(request));
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    ended = connection => if let Err(error) = ended {
                        tracing::debug!(error, "a webhook's connection ended early");
                    },
                }
            }));
        }
    });
}
