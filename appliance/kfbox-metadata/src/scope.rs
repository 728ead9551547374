//! Tenancy. Every type, artifact, execution and context belongs to one namespace; links join only what is in the same
//! one. What a caller may not read does not exist for it. Upstream ML Metadata has none of this (GHSA-j53r-x5f5-j4hr).

use futures::future::BoxFuture;
use kfbox_base::{BoxError, UserInfo};

/// Request metadata that names the namespace to write into, for callers with rights in several.
pub const NAMESPACE_HEADER: &str = "x-kfbox-namespace";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespaces {
    All,
    These(Vec<String>),
}

impl Namespaces {
    pub fn none() -> Self {
        Self::These(Vec::new())
    }

    pub fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.iter().any(|n| n == namespace),
        }
    }
}

/// What a caller may do, as the cluster's access rules say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grants {
    /// Where writes go when the request names no namespace: a service account's own.
    pub home: Option<String>,
    pub read: Namespaces,
    pub write: Namespaces,
}

/// Asks what a caller may do. The binary answers it from the users' RBAC.
pub trait Access: Send + Sync + 'static {
    fn grants<'a>(&'a self, caller: &'a UserInfo) -> BoxFuture<'a, Result<Grants, BoxError>>;
}

/// The bounds of one request: what it sees, what it may change, and where what it makes will belong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    pub read: Namespaces,
    pub write: Namespaces,
    pub target: Option<String>,
}

impl Scope {
    /// One namespace and nothing else: for parts of the daemon that act for one tenant.
    pub fn namespace(name: &str) -> Self {
        let only = Namespaces::These(vec![name.to_owned()]);
        Self { read: only.clone(), write: only, target: Some(name.to_owned()) }
    }

    /// Everything; writes must name a namespace with [`Scope::into_namespace`].
    pub fn all() -> Self {
        Self { read: Namespaces::All, write: Namespaces::All, target: None }
    }

    pub fn into_namespace(mut self, name: &str) -> Self {
        self.target = Some(name.to_owned());
        self
    }
}
