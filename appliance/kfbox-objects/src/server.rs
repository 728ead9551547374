//! HTTP in front of the store: a bounded number of connections, each an owned task that ends on shutdown.

use futures::future::BoxFuture;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use kfbox_base::{BoxError, Tasks};
use s3s::service::S3Service;
use std::{sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore};

/// Each connection may hold two batches of a body in memory; beyond this many, clients wait in the listener's queue.
const MAX_CONNECTIONS: usize = 512;
/// A client that has not sent its headers by then is not going to.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// The protocol service with its errors made printable.
#[derive(Clone)]
struct Service(S3Service);

impl hyper::service::Service<http::Request<hyper::body::Incoming>> for Service {
    type Response = s3s::HttpResponse;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn call(&self, request: http::Request<hyper::body::Incoming>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move { service.call(request.map(s3s::Body::from)).await.map_err(BoxError::from) })
    }
}

/// Accepts connections until shutdown.
pub(crate) fn serve(service: S3Service, listener: TcpListener, tasks: &Tasks) {
    let (owned, shutdown) = (tasks.clone(), tasks.shutdown());
    tasks.essential("objects", async move {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
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
                        // Out of file descriptors, or the client is gone already: neither lasts.
                        tracing::warn!(%error, "cannot accept an S3 connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            drop(stream.set_nodelay(true));
            let (builder, service, shutdown) = (builder.clone(), Service(service.clone()), shutdown.clone());
            owned.spawn("objects-connection", async move {
                let _permit = permit;
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                tokio::pin!(connection);
                let ended = tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = shutdown.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                };
                if let Err(error) = ended {
                    tracing::debug!(error, "an S3 connection ended early");
                }
            });
        }
    });
}
