//! Who asks, and may they.
//!
//! Credentials are what the box gives anyway, `kfbox token` for people and service accounts' tokens for programs, as Basic
//! authentication's password (its user name is not looked at: a token says whose it is) or as a bearer token.

use super::answer::Fault;
use crate::images::{Auths, ImageName, Owner, REGISTRY_HOST, RegistryAuth, SHARED, owner_name};
use base64::Engine as _;
use futures::future::BoxFuture;
use http::{HeaderMap, header};
use k8s_openapi::api::core::v1::Namespace;
use kfbox_base::{Authorizer, BoxError, ResourceAttributes, UserInfo};
use kube::{Api, Client, ResourceExt, api::ListParams};
use std::sync::Arc;

/// Longer than any token here.
const MAX_CREDENTIAL: usize = 16 << 10;

/// Knows whose a token is.
pub trait Callers: Send + Sync + 'static {
    fn identify<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<UserInfo>, BoxError>>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Pull,
    Push,
}

pub struct Access {
    callers: Arc<dyn Callers>,
    authorizer: Arc<dyn Authorizer>,
    namespaces: Api<Namespace>,
}

impl Access {
    pub fn new(callers: Arc<dyn Callers>, authorizer: Arc<dyn Authorizer>, client: Client) -> Self {
        Self { callers, authorizer, namespaces: Api::all(client) }
    }

    pub(super) async fn caller(&self, headers: &HeaderMap) -> Result<UserInfo, Fault> {
        let how = "sign in with any user name and, as password, what `kfbox token` or `kubectl create token` prints";
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let Some(token) = token_of(given) else { return Err(Fault::unauthorized(how)) };
        let found = self.callers.identify(&token).await.map_err(|error| Fault::internal(&error))?;
        found.filter(|user| !user.is_anonymous()).ok_or_else(|| Fault::unauthorized(how))
    }

    pub(super) async fn check(&self, user: &UserInfo, action: Action, repository: &str) -> Result<(), Fault> {
        let owner = owner_name(repository).unwrap_or_default();
        let wanted = match (owner, action) {
            (SHARED, Action::Pull) => return Ok(()),
            // What only an administrator of the whole box may.
            (SHARED, Action::Push) => ResourceAttributes::namespaced("*", "*", "*", ""),
            (namespace, _) => ResourceAttributes::namespaced("create", "", "pods", namespace),
        };
        let decision = self.authorizer.authorize(user, &wanted).await.map_err(|error| Fault::internal(&error))?;
        if decision.is_allowed() {
            return Ok(());
        }
        let message = match owner {
            SHARED => format!("only administrators push to {SHARED}/"),
            _ => format!("{} may not create pods in the namespace {owner}, if there is one", user.username),
        };
        Err(Fault::denied(message))
    }

    /// Whose a repository is; `None` without such a namespace.
    pub(super) async fn owner(&self, repository: &str) -> Result<Option<Owner>, Fault> {
        match owner_name(repository) {
            None => Ok(None),
            Some(name) => owner(&self.namespaces, name).await.map_err(|error| Fault::internal(&error)),
        }
    }

    /// Every namespace.
    pub(super) async fn owners(&self) -> Result<Vec<Owner>, Fault> {
        let all = self.namespaces.list(&ListParams::default()).await.map_err(|error| Fault::internal(&error))?;
        Ok(all.items.iter().filter_map(|n| Owner::namespace(&n.name_any(), n.metadata.uid.as_deref()?)).collect())
    }

    /// Whether these credentials, which a pod's secrets hold, open an image of this registry.
    pub async fn opens(&self, auths: &Auths, name: &ImageName) -> bool {
        let token = match auths.of(name) {
            RegistryAuth::Basic(_, token) | RegistryAuth::Bearer(token) => token,
            RegistryAuth::Anonymous => return false,
        };
        let Ok(Some(user)) = self.callers.identify(&token).await else { return false };
        !user.is_anonymous() && self.check(&user, Action::Pull, &name.repository).await.is_ok()
    }
}

/// The owner of that name, as it is now.
pub async fn owner(namespaces: &Api<Namespace>, name: &str) -> Result<Option<Owner>, kube::Error> {
    if name == SHARED {
        return Ok(Some(Owner::shared()));
    }
    let found = namespaces.get_opt(name).await?;
    Ok(found.and_then(|namespace| Owner::namespace(name, namespace.metadata.uid.as_deref()?)))
}

/// Whether a name is one of this registry's.
pub fn is_own(name: &ImageName) -> bool {
    name.registry == REGISTRY_HOST
}

fn token_of(header: &str) -> Option<String> {
    let (scheme, value) = header.split_once(' ')?;
    let value = value.trim();
    if value.len() > MAX_CREDENTIAL {
        return None;
    }
    let token = if scheme.eq_ignore_ascii_case("bearer") {
        value.to_owned()
    } else if scheme.eq_ignore_ascii_case("basic") {
        let bytes = base64::engine::general_purpose::STANDARD.decode(value).ok()?;
        String::from_utf8(bytes).ok()?.split_once(':')?.1.to_owned()
    } else {
        return None;
    };
    Some(token).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_as_a_password_or_as_itself() {
        // ann:tok:en
        for (header, token) in [
            ("Basic YW5uOnRvazplbg==", Some("tok:en")),
            ("bearer abc", Some("abc")),
            ("Basic YW5uOg==", None),
            ("Basic !!", None),
            ("Digest x", None),
            ("", None),
        ] {
            assert_eq!(token_of(header).as_deref(), token, "{header}");
        }
    }
}
