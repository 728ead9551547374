//! Other places that vouch for people: an upstream OpenID Connect provider, an LDAP directory. Fields are those of Dex's
//! connectors (<https://dexidp.io/docs/connectors/>), in the configuration file's spelling.
//!
//! Guarantees: a user belongs to the connector of the first sign-in and to the name that it has there for all time; an
//! address that another connector's user has, or that was given to somebody else upstream, is refused. Groups with a
//! meaning to Kubernetes or to this box never come from outside, unless the configuration says which stands for
//! administrators.

pub(crate) mod directory;
pub(crate) mod ldap;
pub(crate) mod oidc;
pub(crate) mod presence;

use crate::{
    Gateway, LOCAL, guard,
    sign_in::{self, encode},
    store::{StoreError, users::User},
};
use axum::{
    extract::{Path, Query, State},
    response::Response,
};
use futures::future::BoxFuture;
use http::{StatusCode, Uri};
use kfbox_base::BoxError;
use serde::{Deserialize, Serialize};

/// One way to sign in besides a password here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[expect(clippy::large_enum_variant, reason = "a handful of them, read once from a file")]
pub enum ConnectorConfig {
    Oidc(oidc::OidcConnector),
    Ldap(ldap::LdapConnector),
}

impl ConnectorConfig {
    pub fn id(&self) -> &str {
        match self {
            Self::Oidc(c) => &c.id,
            Self::Ldap(c) => &c.id,
        }
    }

    /// What people read on its button.
    pub fn name(&self) -> &str {
        let name = match self {
            Self::Oidc(c) => &c.name,
            Self::Ldap(c) => &c.name,
        };
        if name.is_empty() { self.id() } else { name }
    }
}

/// Told of everybody who signs in through a connector, so that they find a namespace.
pub trait Newcomers: Send + Sync + 'static {
    /// May be told of the same person again.
    fn arrived<'a>(&'a self, email: &'a str) -> BoxFuture<'a, Result<(), BoxError>>;
}

/// Somebody as a connector knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The name that never changes there.
    pub subject: String,
    pub email: String,
    pub groups: Vec<String>,
    /// What the person is called, and is used to sign in with there; empty where the connector does not say.
    pub name: String,
    pub username: String,
}

/// Why nobody was signed in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0} cannot be used right now: {1}")]
    Unavailable(String, String),
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Which groups of a connector's users count here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Groups {
    /// Only members of one of these may sign in, and only these are kept. Empty: all.
    pub allowed: Vec<String>,
    /// Its members are administrators of this box.
    pub admin: Option<String>,
}

impl Groups {
    /// The groups that count. `None`: not a member of any that is allowed.
    fn of(&self, given: &[String]) -> Option<Vec<String>> {
        let admin = kfbox_api::names::ADMIN_GROUP;
        let mut kept: Vec<String> = given
            .iter()
            .filter(|g| self.allowed.is_empty() || self.allowed.contains(g))
            .filter(|g| crate::store::users::is_group(g) && *g != admin)
            .take(MOST_GROUPS)
            .cloned()
            .collect();
        if !self.allowed.is_empty() && kept.is_empty() {
            return None;
        }
        if self.admin.as_ref().is_some_and(|name| given.contains(name)) {
            kept.push(admin.to_owned());
        }
        kept.sort();
        kept.dedup();
        Some(kept)
    }
}

/// Every request carries a user's groups.
const MOST_GROUPS: usize = 200;

pub(crate) fn check(connectors: &[ConnectorConfig]) -> Result<(), String> {
    for (n, connector) in connectors.iter().enumerate() {
        let id = connector.id();
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let taken = id == LOCAL || connectors[..n].iter().any(|c| c.id() == id);
        if id.is_empty() || id.len() > 50 || !id.chars().all(fine) || taken {
            return Err(format!(
                "the connector id {id:?} must be 1 to 50 lower-case letters, digits or dashes, used once, and not local"
            ));
        }
        match connector {
            ConnectorConfig::Oidc(c) => c.check()?,
            ConnectorConfig::Ldap(c) => c.check()?,
        }
    }
    Ok(())
}

#[derive(Deserialize, Default)]
pub(crate) struct Begin {
    #[serde(default)]
    rd: String,
    client_id: Option<String>,
}

/// `/dex/auth/ID`: from the sign-in page with `rd`, or from an application that names the connector as Dex has it.
pub(crate) async fn choose(
    State(gateway): State<Gateway>,
    Path(id): Path<String>,
    uri: Uri,
    Query(query): Query<Begin>,
) -> Response {
    let back = match query.client_id {
        Some(_) => format!("/dex/auth?{}", uri.query().unwrap_or("")),
        None => query.rd,
    };
    if let Some(upstream) = gateway.upstream(&id) {
        return oidc::begin(&gateway, upstream, &back).await;
    }
    if gateway.directory(&id).is_some() {
        return sign_in::redirect(StatusCode::FOUND, &sign_in::login_url_at(&id, &back));
    }
    guard::problem(StatusCode::NOT_FOUND, "not_found", "there is no such connector")
}

/// Where the sign-in page's button leads.
pub(crate) fn choose_url(id: &str, back: &str) -> String {
    format!("/dex/auth/{}?rd={}", encode(id), encode(&crate::paths::return_path(back)))
}

/// The user that an identity stands for, made or brought up to date.
pub(crate) async fn admit(
    gateway: &Gateway,
    connector: &str,
    groups: &Groups,
    identity: &Identity,
) -> Result<User, Refusal> {
    let user = bring_up_to_date(gateway, connector, groups, identity).await?;
    if let Some(newcomers) = &gateway.inner.deps.newcomers
        && let Err(error) = newcomers.arrived(&user.email).await
    {
        // The next sign-in tries again; the person can use what is there.
        tracing::warn!(%error, user = %user.email, "no namespace could be made");
    }
    tracing::info!(target: "audit", user = %user.email, connector, "signed in through a connector");
    Ok(user)
}

/// The same without a sign-in.
pub(crate) async fn bring_up_to_date(
    gateway: &Gateway,
    connector: &str,
    groups: &Groups,
    identity: &Identity,
) -> Result<User, Refusal> {
    let Some(groups) = groups.of(&identity.groups) else {
        return Err(Refusal::Refused("You are not in a group that may sign in here.".into()));
    };
    Ok(gateway.inner.store.federated_user(connector, identity, groups).await?)
}

#[cfg(test)]
pub(crate) fn keep(groups: &Groups, given: &[String]) -> Option<Vec<String>> {
    groups.of(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_from_outside_give_no_power_that_was_not_given() {
        let given = ["staff", "system:masters", kfbox_api::names::ADMIN_GROUP, "", "bosses"].map(String::from);
        assert_eq!(Groups::default().of(&given).unwrap(), ["bosses", "staff"]);
        let some = Groups { allowed: vec!["staff".into()], admin: Some("bosses".into()) };
        assert_eq!(some.of(&given).unwrap(), [kfbox_api::names::ADMIN_GROUP, "staff"]);
        assert_eq!(some.of(&["bosses".to_owned()]), None);
    }
}
