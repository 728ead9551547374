//! Sign-in and the door to every web route: users, sessions, personal tokens, an OpenID Connect provider at `/dex`, the
//! routes that oauth2-proxy offers at `/oauth2`, and authentication in front of the mounted components.
//!
//! It answers what Kubeflow's own front (Dex behind oauth2-proxy) answers, so that scripts written for it work:
//! <https://www.kubeflow.org/docs/components/pipelines/user-guides/core-functions/connect-api/>,
//! <https://dexidp.io/docs/>, <https://oauth2-proxy.github.io/oauth2-proxy/features/endpoints>.
//!
//! Architecture Invariant: nothing is forwarded to an address that a request names; components are routers in this
//! process, and people's Services are reached where the cluster's objects say.

mod access_log;
mod change_password;
mod connectors;
mod front;
mod guard;
mod limits;
mod metrics;
mod mounts;
mod oidc;
mod paths;
mod proxy;
mod serve;
mod sign_in;
mod store;
mod tls;
mod uploads;
pub mod user_routes;
pub mod web;
mod workers;

pub use connectors::{ConnectorConfig, Groups, Newcomers, ldap::LdapConnector, oidc::OidcConnector};
pub use guard::{OLD_SESSION_COOKIE, Proof, SESSION_COOKIE, TokenReviewer};
pub use mounts::Mounts;
pub use oidc::clients::{COMMAND_LINE_CLIENT, ClientConfig, GrantType};
pub use store::{
    StoreError,
    sessions::Session,
    tokens::{CreatedToken, Scope, Token, TokenRequest},
    users::{GeneratedPassword, UserView},
};

pub use workers::Workers;

pub use tls::{
    Tls, TlsError, TlsSource,
    acme::{AcmeChallenge, AcmeConfig, AcmeStatus},
    authority_file,
};

use axum::Router;
use connectors::{directory::Directory, oidc::Upstream};
use kfbox_base::{Authorizer, Readiness, Tasks, UserInfo, journal::Room};
use std::{path::PathBuf, sync::Arc, time::Duration};
use store::{Store, users::User};
use tokio::net::TcpListener;
use url::Url;

/// The connector of users who have a password here, by Dex's name for it.
pub(crate) const LOCAL: &str = "local";

/// What the gateway needs to know.
#[derive(Clone)]
pub struct Config {
    /// Holds `gateway.db`.
    pub data_dir: PathBuf,
    /// How browsers reach the gateway, such as `http://127.0.0.1:8080`; the issuer is this plus `/dex`.
    pub external_url: Url,
    pub session_ttl: Duration,
    pub access_token_ttl: Duration,
    /// Counted from the sign-in; rotation does not extend it.
    pub refresh_token_ttl: Duration,
    pub clients: Vec<ClientConfig>,
    /// Who vouches for people besides the passwords here; in the order of the sign-in page.
    pub connectors: Vec<ConnectorConfig>,
    /// The resource owner password grant, for scripts that cannot open a browser. Off unless wanted.
    pub password_grant: bool,
    /// Whose passwords that grant takes: a connector's id, which turns it on too. None: those of this box.
    pub password_connector: Option<String>,
    /// Audiences of service-account tokens that are accepted besides the API server's own.
    pub service_account_audiences: Vec<String>,
    /// Browsers may be told to come by https alone from now on. Not with a certificate that they do not trust anyway:
    /// then they could not come at all.
    pub strict_transport: bool,
    /// How long a request's body may say nothing, where the gateway or a component reads it.
    pub request_body_idle: Duration,
    /// `access.log` in `data_dir`, if there is to be one.
    pub access_log: Option<Room>,
}

impl Config {
    pub fn new(data_dir: PathBuf, external_url: Url) -> Self {
        Self {
            data_dir,
            external_url,
            session_ttl: Duration::from_secs(24 * 3600),
            access_token_ttl: Duration::from_secs(3600),
            refresh_token_ttl: Duration::from_secs(30 * 24 * 3600),
            clients: Vec::new(),
            connectors: Vec::new(),
            password_grant: false,
            password_connector: None,
            service_account_audiences: [
                "pipelines.kubeflow.org",
                "istio-ingressgateway.istio-system.svc.cluster.local",
                "istio-ingressgateway",
            ]
            .map(String::from)
            .to_vec(),
            strict_transport: false,
            request_body_idle: Duration::from_secs(60),
            access_log: None,
        }
    }
}

/// What the gateway asks of others.
#[derive(Clone)]
pub struct Deps {
    pub token_reviewer: Arc<dyn TokenReviewer>,
    pub readiness: Readiness,
    /// Told of those who come through a connector.
    pub newcomers: Option<Arc<dyn Newcomers>>,
}

#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the gateway's configuration: {0}")]
    Config(String),
    #[error("cannot open the access log {path}: {source}")]
    AccessLog {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A cloneable handle.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    deps: Deps,
    issuer: String,
    store: Store,
    limits: limits::SignInLimits,
    reviews: guard::ReviewCache,
    codes: oidc::Codes,
    devices: oidc::Devices,
    upstreams: Vec<Upstream>,
    directories: Vec<Directory>,
    under_way: connectors::oidc::UnderWay,
    presence: connectors::presence::Presence,
    metrics: Arc<metrics::Metrics>,
    access_log: Option<access_log::AccessLog>,
}

impl Gateway {
    /// Opens the database and checks the configuration.
    pub fn open(mut config: Config, deps: Deps) -> Result<Self, GatewayError> {
        let url = &config.external_url;
        if !matches!(url.scheme(), "http" | "https")
            || url.host().is_none()
            || url.query().is_some()
            || url.path() != "/"
        {
            return Err(GatewayError::Config(format!(
                "the external URL {url} must be http(s)://HOST[:PORT] with nothing behind it"
            )));
        }
        connectors::check(&config.connectors).map_err(GatewayError::Config)?;
        let names: Vec<&str> = config.connectors.iter().map(ConnectorConfig::id).collect();
        oidc::clients::check(&config.clients, &names).map_err(GatewayError::Config)?;
        let (mut upstreams, mut directories) = (Vec::new(), Vec::new());
        for connector in &config.connectors {
            match connector.clone() {
                ConnectorConfig::Oidc(c) => upstreams.push(Upstream::new(c).map_err(GatewayError::Config)?),
                ConnectorConfig::Ldap(c) => directories.push(Directory::new(c).map_err(GatewayError::Config)?),
            }
        }
        if let Some(id) = &config.password_connector
            && id != LOCAL
            && !directories.iter().any(|d| d.config.id == *id)
        {
            return Err(GatewayError::Config(format!(
                "password_connector: {id:?} is neither local nor an LDAP connector"
            )));
        }
        if !config.clients.iter().any(|c| c.id == COMMAND_LINE_CLIENT) {
            config.clients.push(ClientConfig::command_line());
        }
        // Signed tokens may not outlive the publication of their key.
        config.access_token_ttl = config.access_token_ttl.min(store::keys::MAX_TOKEN_LIFE);
        let issuer = format!("{}/dex", url.as_str().trim_end_matches('/'));
        let store = Store::open(&config.data_dir)?;
        let path = config.data_dir.join("access.log");
        let access_log = config.access_log.map(|room| access_log::AccessLog::open(&path, room)).transpose();
        let access_log = access_log.map_err(|source| GatewayError::AccessLog { path, source })?;
        let limits = limits::SignInLimits::restored(&store.attempts, std::time::Instant::now(), store::now());
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                deps,
                issuer,
                store,
                limits,
                reviews: guard::ReviewCache::default(),
                codes: oidc::Codes::default(),
                devices: oidc::Devices::default(),
                upstreams,
                directories,
                under_way: connectors::oidc::UnderWay::default(),
                presence: connectors::presence::Presence::default(),
                metrics: Arc::default(),
                access_log,
            }),
        })
    }

    /// All routes: this crate's own, and the components behind authentication.
    pub fn router(&self, mounts: Mounts) -> Router {
        let front = front::Front::new(self, mounts);
        Router::new().fallback(move |request: axum::extract::Request| {
            let front = front.clone();
            let peer = request.extensions().get::<axum::extract::ConnectInfo<std::net::SocketAddr>>().map(|c| c.0);
            let tls = request.extensions().get::<serve::OverTls>().is_some();
            async move { front.answer(request, front::Source { peer, tls }).await }
        })
    }

    /// What is counted for each route, as a component to be mounted at `/metrics`.
    pub fn metrics(&self, authorizer: Arc<dyn Authorizer>) -> Router {
        self.inner.metrics.clone().router(authorizer)
    }

    /// Waits until what was asked so far is in the access log.
    pub async fn flush_access_log(&self) {
        if let Some(log) = &self.inner.access_log {
            log.flush().await;
        }
    }

    /// Serves a router on a bound listener until shutdown. May be called for several listeners.
    pub fn serve(&self, name: &str, listener: TcpListener, router: Router, tasks: &Tasks) {
        serve::serve(name, listener, serve::Entrance::Plain, router, tasks);
    }

    /// The same over TLS.
    pub fn serve_tls(
        &self,
        name: &str,
        listener: TcpListener,
        tls: &Arc<Tls>,
        router: Router,
        tasks: &Tasks,
    ) -> Result<(), TlsError> {
        serve::serve(name, listener, self.entrance(tls)?, router, tasks);
        Ok(())
    }

    pub(crate) fn entrance(&self, tls: &Arc<Tls>) -> Result<serve::Entrance, TlsError> {
        Ok(serve::Entrance::Tls(tls.server()?.into(), self.lead(tls.challenges())))
    }

    /// Threads that serve [`Self::router`] of these mounts; components run where this is called.
    pub fn workers(&self, mounts: &Mounts, tasks: &Tasks) -> std::io::Result<Workers> {
        Workers::start(self, mounts, tasks)
    }

    /// Leads who comes by plain HTTP to https, and answers an ACME server's challenges.
    pub fn serve_redirect(&self, name: &str, listener: TcpListener, tls: &Tls, tasks: &Tasks) {
        serve::serve(name, listener, serve::Entrance::Redirect(self.lead(tls.challenges())), Router::new(), tasks);
    }

    fn lead(&self, challenges: Option<Arc<tls::acme::challenges::Challenges>>) -> serve::Lead {
        serve::Lead { url: self.inner.config.external_url.as_str().into(), challenges }
    }

    /// The same over TLS with another certificate than the gateway's: for a listener that is known by another name.
    pub fn serve_named(
        &self,
        name: &str,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        router: Router,
        tasks: &Tasks,
    ) {
        let entrance = serve::Entrance::Tls(tls.into(), self.lead(None));
        serve::serve(name, listener, entrance, router, tasks);
    }

    pub fn issuer(&self) -> &str {
        &self.inner.issuer
    }

    /// Who a bearer token of our own speaks for at the Kubernetes API: a personal token with that scope, or an ID or
    /// access token of a client that is trusted with the platform. `None` for everything else.
    pub fn verify_bearer(&self, token: &str) -> Option<UserInfo> {
        self.verify_for(token, Scope::Kubernetes)
    }

    fn verify_for(&self, token: &str, scope: Scope) -> Option<UserInfo> {
        if token.starts_with(store::tokens::PREFIX) {
            return self.inner.store.token_user(token, scope);
        }
        oidc::platform_user(self, token)
    }

    /// An OpenID Connect provider among the connectors.
    fn upstream(&self, id: &str) -> Option<&Upstream> {
        self.inner.upstreams.iter().find(|u| u.config.id == id)
    }

    /// An LDAP directory among the connectors.
    fn directory(&self, id: &str) -> Option<&Directory> {
        self.inner.directories.iter().find(|d| d.config.id == id)
    }

    /// Whose passwords the password grant takes where the client does not say. `None`: the grant is off.
    fn password_connector(&self) -> Option<&str> {
        let config = &self.inner.config;
        config.password_connector.as_deref().or(config.password_grant.then_some(LOCAL))
    }

    /// A registered client.
    fn client(&self, id: &str) -> Option<&ClientConfig> {
        self.inner.config.clients.iter().find(|c| c.id == id)
    }

    /// Makes the administrator on the very first start. The password is shown once and stored nowhere.
    pub async fn ensure_first_user(&self, email: &str) -> Result<Option<GeneratedPassword>, StoreError> {
        let made = self.inner.store.ensure_first_user(email).await?;
        if made.is_some() {
            tracing::info!(target: "audit", user = %spelled(email), "first user added, an administrator");
        }
        Ok(made)
    }

    pub async fn add_user(&self, email: &str, password: &str, groups: &[String]) -> Result<(), StoreError> {
        self.inner.store.add_user(email, password, groups).await?;
        tracing::info!(target: "audit", user = %spelled(email), ?groups, "user added");
        Ok(())
    }

    /// With a bcrypt or argon2 hash made elsewhere, such as Dex's `staticPasswords`.
    pub async fn import_user(&self, email: &str, hash: &str, groups: &[String]) -> Result<(), StoreError> {
        self.inner.store.import_user(email, hash, groups).await?;
        tracing::info!(target: "audit", user = %spelled(email), ?groups, "user imported");
        Ok(())
    }

    pub fn list_users(&self) -> Vec<UserView> {
        self.inner.store.list_users()
    }

    /// A person with an enabled account, as they would sign in now.
    pub fn active_user(&self, email: &str) -> Option<UserInfo> {
        self.inner.store.active_info(email)
    }

    pub async fn set_password(&self, email: &str, password: &str) -> Result<(), StoreError> {
        self.inner.store.set_password(email, password).await?;
        tracing::info!(target: "audit", user = %spelled(email), "password set");
        Ok(())
    }

    pub async fn set_groups(&self, email: &str, groups: &[String]) -> Result<(), StoreError> {
        self.inner.store.set_groups(email, groups).await?;
        tracing::info!(target: "audit", user = %spelled(email), ?groups, "groups changed");
        Ok(())
    }

    pub async fn set_disabled(&self, email: &str, disabled: bool) -> Result<(), StoreError> {
        self.inner.store.set_disabled(email, disabled).await?;
        let user = spelled(email);
        self.inner.presence.forget(&user);
        match disabled {
            true => tracing::info!(target: "audit", %user, "user disabled"),
            false => tracing::info!(target: "audit", %user, "user enabled"),
        }
        Ok(())
    }

    /// Also of who is gone from their directory, once that was noticed. False for who is not known here.
    pub fn is_disabled(&self, email: &str) -> bool {
        self.inner.store.users.read().get(email).is_some_and(User::is_out)
    }

    /// [`Self::verify_bearer`], and the directory still has them, if they are of one.
    pub async fn verify_bearer_now(&self, token: &str) -> Option<UserInfo> {
        let user = self.verify_bearer(token)?;
        self.as_they_are(user).await
    }

    pub async fn remove_user(&self, email: &str) -> Result<(), StoreError> {
        self.inner.store.remove_user(email).await?;
        tracing::info!(target: "audit", user = %spelled(email), "user removed");
        Ok(())
    }

    pub async fn create_token(&self, email: &str, request: TokenRequest) -> Result<CreatedToken, StoreError> {
        let created = self.inner.store.create_token(email, request).await?;
        tracing::info!(target: "audit", user = %created.token.email, token = %created.token.id, "personal token created");
        Ok(created)
    }

    pub fn list_tokens(&self, email: Option<&str>) -> Vec<Token> {
        self.inner.store.list_tokens(email)
    }

    pub async fn revoke_token(&self, id: &str) -> Result<bool, StoreError> {
        let revoked = self.inner.store.revoke_token(id).await?;
        if revoked {
            tracing::info!(target: "audit", token = %id, "personal token revoked");
        }
        Ok(revoked)
    }

    pub fn list_sessions(&self, email: Option<&str>) -> Vec<Session> {
        self.inner.store.list_sessions(email)
    }

    pub async fn revoke_session(&self, id: &str) -> Result<bool, StoreError> {
        let user = self.list_sessions(None).into_iter().find(|s| s.id == id).map(|s| s.email);
        let revoked = self.inner.store.revoke_session(id).await?;
        if revoked {
            tracing::info!(target: "audit", user = user.unwrap_or_default(), session = %id, "session revoked");
        }
        Ok(revoked)
    }
}

/// An address that the store has taken, as the store spells it.
fn spelled(email: &str) -> String {
    email.trim().to_lowercase()
}

#[cfg(test)]
mod tests;
