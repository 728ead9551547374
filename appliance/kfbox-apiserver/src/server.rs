//! [`ApiServer`]: opening it, and the two ways in: TLS, and clients inside this process.

use crate::{
    admission::Addresses,
    aggregation::{self, Aggregation},
    audit::{self, Audit, AuditConfig, AuditError},
    auth::{
        Authenticator, Authority, BoundKind, ObjectFacts, ObjectLookup, PkiError, Rbac, RbacAuthorizer,
        ServiceAccountTokens, TokenAuthenticator, TokenError,
    },
    bootstrap,
    documents::Documents,
    effects,
    flow::{Flow, Limits},
    handle, housekeeping,
    kubelet::Kubelet,
    resources::Resources,
    status::ApiError,
    store::{KEPT_REVISIONS, Key, Store},
};
use axum::body::Body;
use http::{Request, Response};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use kfbox_base::{Tasks, UserInfo};
use parking_lot::RwLock;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

/// Connections at once. Each kubelet, controller or browser holds a few; below the usual limit of open files.
const CONNECTIONS: usize = 4096;

/// A client that does not finish its TLS handshake in this time is dropped.
const HELLO: Duration = Duration::from_secs(15);

/// Until the headers of the next request are there; so this is also how long an idle connection is kept. Upstream's.
const IDLE: Duration = Duration::from_secs(90);

/// Of a request's headers: room for a token and a crowd of impersonated groups.
const HEADERS: usize = 128 * 1024;

/// How long a read may wait for a revision that is still to come; upstream's.
const FRESH: Duration = Duration::from_secs(3);

/// Days that the administrator's certificate lasts; renewed with every kubeconfig.
const ADMIN_DAYS: u32 = 365;

#[derive(Debug, Clone)]
pub struct Config {
    /// Holds `kubernetes.db` and `pki/`.
    pub data_dir: PathBuf,
    /// Of service-account tokens.
    pub issuer: String,
    /// Cluster IPs come from here.
    pub service_cidr: String,
    /// And their IPv6 ones from here, where the cluster has both families.
    pub second_service_cidr: Option<String>,
    /// The cluster IP kept for DNS.
    pub dns_ip: Ipv4Addr,
    /// The cluster IP of the Service `kubernetes`.
    pub api_service_ip: Ipv4Addr,
    /// Where that Service leads: an address of this server that pods reach, and its port.
    pub api_endpoint: Option<(Ipv4Addr, u16)>,
    /// DNS names and addresses in the serving certificate beside the standard ones.
    pub extra_sans: Vec<String>,
    /// What is recorded of requests, in `audit.log` in the data directory; None: nothing.
    pub audit: Option<AuditConfig>,
    pub limits: Limits,
    /// Revisions kept for watches that resume and lists of the past.
    pub history: u64,
}

impl Config {
    /// The addresses of `ARCHITECTURE.md`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            service_cidr: "10.96.0.0/16".into(),
            second_service_cidr: None,
            dns_ip: Ipv4Addr::new(10, 96, 0, 10),
            api_service_ip: Ipv4Addr::new(10, 96, 0, 1),
            api_endpoint: None,
            extra_sans: Vec::new(),
            audit: Some(AuditConfig::default()),
            limits: Limits::default(),
            history: KEPT_REVISIONS,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Database(#[from] kfbox_db::OpenError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Tokens(#[from] TokenError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error("the Service network {0:?} is not an IPv4 network such as 10.96.0.0/16")]
    ServiceNetwork(String),
    #[error("the second Service network {0:?} is not an IPv6 network such as fd00:10:96::/112")]
    SecondServiceNetwork(String),
    #[error("cannot create {path}: {source}")]
    DataDir {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot write the objects that every cluster starts with: {0}")]
    Bootstrap(ApiError),
}

/// What all requests share.
pub struct Core {
    pub config: Config,
    pub store: Store,
    pub resources: Resources,
    pub rbac: Arc<Rbac>,
    pub quotas: Arc<crate::admission::quota::Quotas>,
    pub authority: Arc<Authority>,
    pub authenticator: Authenticator,
    pub kubelet: RwLock<Option<Arc<dyn Kubelet>>>,
    pub addresses: Arc<Addresses>,
    /// Webhooks and policies.
    pub dynamic: crate::admission::dynamic::Dynamic,
    pub aggregation: Aggregation,
    pub documents: Documents,
    pub flow: Arc<Flow>,
    pub audit: Option<Arc<Audit>>,
    /// Held while what follows from a write, such as a served CRD, is brought up to date.
    pub effects: parking_lot::Mutex<()>,
    pub tasks: Tasks,
    pub shutdown: CancellationToken,
}

impl Core {
    pub async fn wait_for_revision(&self, revision: u64) -> Result<(), ApiError> {
        if revision <= self.store.revision() || self.store.reach(revision, FRESH).await {
            return Ok(());
        }
        Err(ApiError::revision_too_large(revision, self.store.revision()))
    }

    pub fn kubelet(&self) -> Result<Arc<dyn Kubelet>, ApiError> {
        self.kubelet.read().clone().ok_or_else(|| ApiError::unavailable("the node is not running yet"))
    }
}

/// What tokens are bound to, read from the store.
struct Lookup(Store);

impl ObjectLookup for Lookup {
    fn find(&self, kind: BoundKind, namespace: &str, name: &str) -> Option<ObjectFacts> {
        let (collection, namespace) = match kind {
            BoundKind::ServiceAccount => ("serviceaccounts", namespace),
            BoundKind::Pod => ("pods", namespace),
            BoundKind::Secret => ("secrets", namespace),
            BoundKind::Node => ("nodes", ""),
        };
        self.0.get(collection, &Key::new(namespace, name)).map(|o| ObjectFacts::of(&o.value()))
    }
}

/// A cloneable handle on the running API server.
#[derive(Clone)]
pub struct ApiServer {
    core: Arc<Core>,
}

/// The request comes from this process; nothing that arrives by network carries it.
#[derive(Clone, Copy)]
pub struct Local;

/// The client's verified certificate chain.
#[derive(Clone)]
pub struct Peer(pub Arc<[CertificateDer<'static>]>);

impl ApiServer {
    /// Opens the database and the certificates in the data directory, creating both, and makes sure of the objects that
    /// every cluster starts with.
    pub async fn open(config: Config, tasks: &Tasks) -> Result<Self, OpenError> {
        std::fs::create_dir_all(&config.data_dir)
            .map_err(|source| OpenError::DataDir { path: config.data_dir.clone(), source })?;
        let addresses = Addresses::new(&config.service_cidr, &[config.dns_ip, config.api_service_ip])
            .ok_or_else(|| OpenError::ServiceNetwork(config.service_cidr.clone()))?;
        let addresses = match &config.second_service_cidr {
            None => addresses,
            Some(second) => {
                addresses.with_second(second).ok_or_else(|| OpenError::SecondServiceNetwork(second.clone()))?
            }
        };
        let pki = config.data_dir.join("pki");
        let mut names = config.extra_sans.clone();
        names.push(config.api_service_ip.to_string());
        let store = Store::open(&config.data_dir.join("kubernetes.db"), config.history)?;
        let authority = Arc::new(Authority::load_or_create(&pki, &names)?);
        let tokens = Arc::new(ServiceAccountTokens::load_or_create(&pki, &config.issuer)?);
        let aggregation = Aggregation::open(&pki)?;
        let rbac = Arc::new(Rbac::new());
        let audit = config.audit.as_ref().map(|audit| Audit::open(&config.data_dir, audit)).transpose()?;
        let flow = Flow::new(config.limits);
        let lookup = Arc::new(Lookup(store.clone()));
        let core = Arc::new(Core {
            authenticator: Authenticator::new(authority.clone(), tokens, lookup, rbac.clone(), true),
            config,
            store,
            resources: Resources::new(),
            rbac,
            quotas: Arc::default(),
            authority,
            kubelet: RwLock::default(),
            addresses: Arc::new(addresses),
            dynamic: crate::admission::dynamic::Dynamic::default(),
            aggregation,
            documents: Documents::default(),
            flow,
            audit,
            effects: parking_lot::Mutex::default(),
            tasks: tasks.clone(),
            shutdown: tasks.shutdown(),
        });
        effects::load(&core);
        bootstrap::ensure(&core).await.map_err(OpenError::Bootstrap)?;
        aggregation::start(&core).await.map_err(OpenError::Bootstrap)?;
        crate::admission::quota::start(&core);
        crate::crds::resume(&core);
        housekeeping::start(&core);
        if let Some(audit) = core.audit.clone() {
            let shutdown = core.shutdown.clone();
            tasks.spawn("kubernetes-audit", async move {
                shutdown.cancelled().await;
                audit.flush().await;
            });
        }
        Ok(Self { core })
    }

    /// A client with every right, without a socket.
    pub fn client(&self) -> kube::Client {
        self.client_as(UserInfo::new("kfbox:daemon", [UserInfo::MASTERS.to_owned()]))
    }

    /// A client that acts as `user`, without a socket.
    pub fn client_as(&self, user: UserInfo) -> kube::Client {
        let core = self.core.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let (core, user) = (core.clone(), user.clone());
            async move {
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(Local);
                request.extensions_mut().insert(user);
                Ok::<_, Infallible>(handle::handle(core, request).await)
            }
        });
        kube::Client::new(service, "default")
    }

    /// Answers as if the request had arrived by network; for tests of the wire.
    pub async fn call(&self, request: Request<Body>) -> Response<Body> {
        handle::handle(self.core.clone(), request).await
    }

    /// Serves HTTPS on the listener until shutdown.
    pub fn serve(&self, listener: TcpListener, tasks: &Tasks) -> Result<(), PkiError> {
        let acceptor = tokio_rustls::TlsAcceptor::from(self.core.authority.server_tls(true)?);
        let (core, tasks_of_connections) = (self.core.clone(), tasks.clone());
        tasks.essential("kubernetes-api", async move {
            let connections = Arc::new(Semaphore::new(CONNECTIONS));
            let shutdown = core.shutdown.clone();
            loop {
                let permit = tokio::select! {
                    permit = connections.clone().acquire_owned() => permit,
                    () = shutdown.cancelled() => return Ok::<_, Infallible>(()),
                };
                let (stream, from) = tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, from)) => (stream, from.ip().to_canonical()),
                        Err(error) => {
                            tracing::warn!(%error, "cannot accept a connection");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            continue;
                        }
                    },
                    () = shutdown.cancelled() => return Ok(()),
                };
                let Some(place) = core.flow.connection(from) else {
                    tracing::debug!(%from, "an address has too many connections");
                    continue;
                };
                let (core, acceptor) = (core.clone(), acceptor.clone());
                tasks_of_connections.spawn("kubernetes-api-connection", async move {
                    let _held = (permit, place);
                    drop(stream.set_nodelay(true));
                    match tokio::time::timeout(HELLO, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => connection(core, stream, from).await,
                        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                        Err(_) => tracing::debug!("a TLS handshake took too long"),
                    }
                });
            }
        });
        Ok(())
    }

    /// A kubeconfig for the administrator, with a client certificate in it: `system:masters`, all rights.
    pub fn admin_kubeconfig(&self, server: &str) -> Result<Value, PkiError> {
        self.kubeconfig(server, "kubernetes-admin", &[UserInfo::MASTERS])
    }

    /// A kubeconfig for a user of these groups, by a client certificate.
    pub fn kubeconfig(&self, server: &str, user: &str, groups: &[&str]) -> Result<Value, PkiError> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let issued = self.core.authority.issue_client(user, groups, ADMIN_DAYS)?;
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "kfbox", "cluster": {
                "server": server,
                "certificate-authority-data": STANDARD.encode(self.core.authority.ca_pem()),
            }}],
            "users": [{"name": "kfbox", "user": {
                "client-certificate-data": STANDARD.encode(&issued.cert_pem),
                "client-key-data": STANDARD.encode(&issued.key_pem),
            }}],
            "contexts": [{"name": "kfbox", "context": {"cluster": "kfbox", "user": "kfbox"}}],
            "current-context": "kfbox",
            "preferences": {},
        }))
    }

    pub fn authority(&self) -> Arc<Authority> {
        self.core.authority.clone()
    }

    /// The daemon's one authorization path.
    pub fn authorizer(&self) -> RbacAuthorizer {
        RbacAuthorizer(self.core.rbac.clone())
    }

    pub fn authenticator(&self) -> &Authenticator {
        &self.core.authenticator
    }

    /// Where logs, exec, attach and port-forward of pods lead from now on.
    pub fn set_kubelet(&self, kubelet: Arc<dyn Kubelet>) {
        *self.core.kubelet.write() = Some(kubelet);
    }

    pub fn add_token_authenticator(&self, issuer: Arc<dyn TokenAuthenticator>) {
        self.core.authenticator.add(issuer);
    }

    #[cfg(test)]
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }
}

async fn connection(core: Arc<Core>, stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>, from: IpAddr) {
    let certificates: Arc<[CertificateDer<'static>]> =
        stream.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
    let shutdown = core.shutdown.clone();
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let (core, peer) = (core.clone(), Peer(certificates.clone()));
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(audit::From(from));
            Ok::<_, Infallible>(handle::handle(core, request).await)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(HEADERS);
    // Upstream allows 250 streams a connection, a client of many watches needs most of them.
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(250)
        .max_header_list_size(HEADERS as u32)
        .keep_alive_interval(Duration::from_secs(30));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(error, "a connection ended");
            }
        }
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            // Watches end by themselves at shutdown; nothing else takes longer.
            drop(tokio::time::timeout(Duration::from_secs(5), connection).await);
        }
    }
}
