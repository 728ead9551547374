//! gRPC over TCP, with and without TLS. Who calls is told from the connection: the client's certificate, or the address
//! of a pod. What a client says of itself in headers is never believed.

use crate::{proto::metadata_store_service_server::MetadataStoreServiceServer, service::Service};
use futures::future::BoxFuture;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use kfbox_base::{BoxError, Tasks, UserInfo};
use rustls::pki_types::CertificateDer;
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tonic::body::Body;
use tower::ServiceExt;

/// One machine's pods and a few notebooks: beyond this many, clients wait in the listener's queue.
const MAX_CONNECTIONS: usize = 512;
/// gRPC's own default, which its clients expect.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// Answers may be larger: the client's limit is its own to set.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// A TLS handshake, or the first bytes of HTTP, that take longer are not coming.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Tells a caller from the chain of certificates that it proved to hold.
pub type IdentifyCertificate = Arc<dyn Fn(&[CertificateDer<'_>]) -> Option<UserInfo> + Send + Sync>;
/// Tells a caller from the address it calls from.
pub type IdentifyAddress = Arc<dyn Fn(IpAddr) -> BoxFuture<'static, Option<UserInfo>> + Send + Sync>;

#[derive(Clone)]
enum Entrance {
    Tls(tokio_rustls::TlsAcceptor, IdentifyCertificate),
    Plain(IdentifyAddress),
}

pub(crate) fn tls(
    service: Service,
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    identify: IdentifyCertificate,
    tasks: &Tasks,
) {
    // gRPC needs HTTP/2, and its TLS clients insist on it being negotiated.
    let mut config = (*config).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    serve(service, listener, Entrance::Tls(tokio_rustls::TlsAcceptor::from(Arc::new(config)), identify), tasks);
}

pub(crate) fn plain(service: Service, listener: TcpListener, identify: IdentifyAddress, tasks: &Tasks) {
    serve(service, listener, Entrance::Plain(identify), tasks);
}

fn serve(service: Service, listener: TcpListener, entrance: Entrance, tasks: &Tasks) {
    let (owned, shutdown) = (tasks.clone(), tasks.shutdown());
    let routes = MetadataStoreServiceServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_ANSWER);
    tasks.essential("metadata", async move {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let permit = tokio::select! {
                () = shutdown.cancelled() => return Ok::<(), BoxError>(()),
                permit = permits.clone().acquire_owned() => permit.map_err(BoxError::from)?,
            };
            let (stream, peer) = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a metadata connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let (routes, entrance, shutdown) = (routes.clone(), entrance.clone(), shutdown.clone());
            owned.spawn("metadata-connection", async move {
                let _permit = permit;
                if let Err(error) = connection(routes, entrance, stream, peer.ip(), &shutdown).await {
                    tracing::debug!(%error, %peer, "a metadata connection ended early");
                }
            });
        }
    });
}

async fn connection(
    routes: MetadataStoreServiceServer<Service>,
    entrance: Entrance,
    stream: TcpStream,
    peer: IpAddr,
    shutdown: &tokio_util::sync::CancellationToken,
) -> Result<(), BoxError> {
    drop(stream.set_nodelay(true));
    match entrance {
        Entrance::Tls(acceptor, identify) => {
            let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
            let caller = stream.get_ref().1.peer_certificates().and_then(|chain| identify(chain));
            http2(routes, stream, caller, shutdown).await
        }
        Entrance::Plain(identify) => {
            let caller = identify(peer).await;
            http2(routes, stream, caller, shutdown).await
        }
    }
}

async fn http2<S>(
    routes: MetadataStoreServiceServer<Service>,
    stream: S,
    caller: Option<UserInfo>,
    shutdown: &tokio_util::sync::CancellationToken,
) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        match &caller {
            Some(caller) => drop(request.extensions_mut().insert(caller.clone())),
            None => drop(request.extensions_mut().remove::<UserInfo>()),
        }
        routes.clone().oneshot(request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new()).http2_only();
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(60));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}
