//! Who calls, and may they: the vocabulary of Kubernetes' `authentication.k8s.io` UserInfo and
//! `authorization.k8s.io` ResourceAttributes, shared by every server in the daemon so that there is one
//! authorization path (the user's RBAC in the cluster).

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An authenticated caller. Servers find it in the request's extensions; its absence means anonymous.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserInfo {
    /// For people their e-mail address; for service accounts `system:serviceaccount:NAMESPACE:NAME`.
    pub username: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    pub const ANONYMOUS: &'static str = "system:anonymous";
    pub const MASTERS: &'static str = "system:masters";
    pub const AUTHENTICATED: &'static str = "system:authenticated";
    pub const UNAUTHENTICATED: &'static str = "system:unauthenticated";

    /// A signed-in caller; `system:authenticated` is added to the groups given.
    pub fn new(username: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        if !groups.iter().any(|g| g == Self::AUTHENTICATED) {
            groups.push(Self::AUTHENTICATED.into());
        }
        Self { username: username.into(), groups, ..Self::default() }
    }

    pub fn anonymous() -> Self {
        Self { username: Self::ANONYMOUS.into(), groups: vec![Self::UNAUTHENTICATED.into()], ..Self::default() }
    }

    pub fn is_anonymous(&self) -> bool {
        self.username == Self::ANONYMOUS
    }

    /// `(namespace, name)` when the caller is a service account.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        self.username.strip_prefix("system:serviceaccount:")?.split_once(':')
    }
}

/// What is asked for. Empty strings mean what they mean in a SubjectAccessReview: the core group, no subresource,
/// cluster scope, no particular name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ResourceAttributes {
    pub verb: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
}

impl ResourceAttributes {
    /// `verb` on `resource.group` in `namespace` (all names).
    pub fn namespaced(verb: &str, group: &str, resource: &str, namespace: &str) -> Self {
        Self {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            ..Self::default()
        }
    }

    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// With a reason that may be shown to the caller.
    Deny(String),
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow)
    }
}

/// The one authorization path. An error means that no decision could be made: callers refuse.
pub trait Authorizer: Send + Sync + 'static {
    fn authorize<'a>(
        &'a self,
        user: &'a UserInfo,
        attributes: &'a ResourceAttributes,
    ) -> BoxFuture<'a, Result<Decision, crate::BoxError>>;
}
