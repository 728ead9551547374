//! Applications that sign their users in here, as the configuration names them; the fields are those of Dex's
//! `staticClients` (<https://dexidp.io/docs/configuration/custom-scopes-claims-clients/>).

use serde::{Deserialize, Serialize};
use url::Url;

/// What `kfbox kubeconfig --oidc` signs in with: a public client that has the device flow alone.
pub const COMMAND_LINE_CLIENT: &str = "kfbox-cli";

/// What a client can ask for.
pub(crate) const SCOPES: [&str; 5] = ["openid", "email", "groups", "profile", "offline_access"];
const LOCAL: &str = "local";

/// A way to get tokens, by the name it has at the token endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GrantType {
    #[serde(rename = "authorization_code")]
    AuthorizationCode,
    #[serde(rename = "refresh_token")]
    RefreshToken,
    #[serde(rename = "urn:ietf:params:oauth:grant-type:device_code", alias = "device_code")]
    DeviceCode,
    #[serde(rename = "password")]
    Password,
    #[serde(rename = "urn:ietf:params:oauth:grant-type:token-exchange", alias = "token-exchange")]
    TokenExchange,
}

impl GrantType {
    pub const ALL: [Self; 5] =
        [Self::AuthorizationCode, Self::RefreshToken, Self::DeviceCode, Self::Password, Self::TokenExchange];

    /// As clients send it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AuthorizationCode => "authorization_code",
            Self::RefreshToken => "refresh_token",
            Self::DeviceCode => "urn:ietf:params:oauth:grant-type:device_code",
            Self::Password => "password",
            Self::TokenExchange => "urn:ietf:params:oauth:grant-type:token-exchange",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|g| g.name() == name)
    }
}

/// An application that signs its users in here.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    pub id: String,
    /// What people read on the sign-in page. Empty: the id.
    #[serde(default)]
    pub name: String,
    /// At least 16 characters. None for a public client.
    #[serde(default, skip_serializing)]
    pub secret: Option<String>,
    /// A browser or command-line program, which can keep no secret and must use PKCE.
    #[serde(default)]
    pub public: bool,
    /// Compared as text.
    #[serde(default, alias = "redirectURIs")]
    pub redirect_uris: Vec<String>,
    /// What it may ask for. None: everything that is supported.
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    /// How it may get tokens. None: by code, refresh and device flow, and by password where the box allows that. Token
    /// exchange must be named.
    #[serde(default)]
    pub grants: Option<Vec<GrantType>>,
    /// Whose users may sign in to it. None: all connectors'.
    #[serde(default, alias = "allowedConnectors")]
    pub connectors: Option<Vec<String>>,
    /// Tokens of this client are good on the platform itself and at the Kubernetes API.
    #[serde(default)]
    pub platform: bool,
}

impl std::fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientConfig")
            .field("id", &self.id)
            .field("redirect_uris", &self.redirect_uris)
            .finish_non_exhaustive()
    }
}

impl ClientConfig {
    pub(crate) fn shown_name(&self) -> &str {
        if self.name.is_empty() { &self.id } else { &self.name }
    }

    pub(crate) fn may_use(&self, grant: GrantType) -> bool {
        match &self.grants {
            Some(grants) => grants.contains(&grant),
            None => grant != GrantType::TokenExchange,
        }
    }

    /// Whether the users of this connector may sign in to it.
    pub(crate) fn admits(&self, connector: &str) -> bool {
        self.connectors.as_ref().is_none_or(|c| c.iter().any(|name| name == connector))
    }

    /// The first scope that it cannot have.
    pub(crate) fn refused_scope<'a>(&self, scope: &'a str) -> Option<&'a str> {
        scope.split_whitespace().find(|s| {
            !SCOPES.contains(s) || self.scopes.as_ref().is_some_and(|allowed| !allowed.iter().any(|a| a == s))
        })
    }

    /// The one that is there without configuration.
    pub(crate) fn command_line() -> Self {
        Self {
            id: COMMAND_LINE_CLIENT.into(),
            name: "kfbox on the command line".into(),
            public: true,
            grants: Some(vec![GrantType::DeviceCode, GrantType::RefreshToken]),
            platform: true,
            ..Self::default()
        }
    }
}

/// What is wrong with the clients of a configuration, in words. `connectors` are those beside `local`.
pub fn check(clients: &[ClientConfig], connectors: &[&str]) -> Result<(), String> {
    for (n, client) in clients.iter().enumerate() {
        let id = &client.id;
        let fine = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | ':');
        if id.is_empty() || id.len() > 200 || !id.chars().all(fine) || clients[..n].iter().any(|c| c.id == *id) {
            return Err(format!("the client id {id:?} is empty, used twice, or has spaces, quotes or colons"));
        }
        match (&client.secret, client.public) {
            (Some(_), true) => return Err(format!("client {id} is public and must have no secret")),
            (None, false) => {
                return Err(format!(
                    "client {id} needs a secret, or `public = true` if it can keep none (then it must use PKCE)"
                ));
            }
            (Some(secret), false) if secret.len() < 16 => {
                return Err(format!("the secret of client {id} has less than 16 characters"));
            }
            _ => {}
        }
        if client.public && client.grants.as_ref().is_some_and(|g| g.contains(&GrantType::TokenExchange)) {
            return Err(format!("client {id} is public: token exchange needs a secret"));
        }
        for uri in &client.redirect_uris {
            let fine = !uri.contains('#')
                && !uri.chars().any(|c| c.is_control() || c.is_whitespace())
                && Url::parse(uri).is_ok_and(|u| {
                    matches!(u.scheme(), "http" | "https") && u.host().is_some() && u.username().is_empty()
                });
            if !fine {
                return Err(format!(
                    "the redirect URI {uri:?} of client {id} must be an absolute http(s) URL without a fragment"
                ));
            }
        }
        if let Some(scope) = client.scopes.iter().flatten().find(|s| !SCOPES.contains(&s.as_str())) {
            return Err(format!("client {id}: there is no scope {scope:?}; the scopes are {}", SCOPES.join(", ")));
        }
        let known = |name: &String| name == LOCAL || connectors.contains(&name.as_str());
        if let Some(name) = client.connectors.iter().flatten().find(|name| !known(name)) {
            return Err(format!("client {id}: there is no connector {name:?}"));
        }
    }
    Ok(())
}
