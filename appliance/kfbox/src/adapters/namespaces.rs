//! Which namespaces a caller belongs to: those of profiles whose namespace the cluster lets them read.

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Namespace;
use kfbox_api::names;
use kfbox_base::{Authorizer, BoxError, ResourceAttributes, UserInfo};
use kfbox_pipelines::Namespaces;
use kube::api::{Api, ListParams};
use std::sync::Arc;

#[derive(Clone)]
pub struct ProfileNamespaces {
    namespaces: Api<Namespace>,
    authorizer: Arc<dyn Authorizer>,
}

/// A profile namespace, and whether the caller owns it.
#[derive(Debug, Clone)]
pub struct Member {
    pub namespace: String,
    pub owner: bool,
    /// The owner's user name; empty when the cluster does not say.
    pub owner_name: String,
}

impl ProfileNamespaces {
    pub fn new(client: kube::Client, authorizer: Arc<dyn Authorizer>) -> Self {
        Self { namespaces: Api::all(client), authorizer }
    }

    /// Whether the cluster lets the user list a namespace's runs; no when it cannot say.
    pub async fn sees_runs(&self, user: &UserInfo, namespace: &str) -> bool {
        self.authorizer.authorize(user, &runs(namespace)).await.is_ok_and(|decision| decision.is_allowed())
    }

    /// Their own first, then by name.
    pub async fn members(&self, user: &UserInfo) -> Result<Vec<Member>, BoxError> {
        if let Some((namespace, _)) = user.service_account() {
            return Ok(vec![Member { namespace: namespace.to_owned(), owner: false, owner_name: String::new() }]);
        }
        let selector = format!("{}={}", names::label::PART_OF, names::label::KUBEFLOW_PROFILE);
        let mut members = Vec::new();
        for found in self.namespaces.list(&ListParams::default().labels(&selector)).await? {
            let Some(namespace) = found.metadata.name else { continue };
            let mut annotations = found.metadata.annotations.unwrap_or_default();
            let owner_name = annotations.remove(names::annotation::OWNER).unwrap_or_default();
            let owner = owner_name == user.username;
            if owner || self.authorizer.authorize(user, &runs(&namespace)).await?.is_allowed() {
                members.push(Member { namespace, owner, owner_name });
            }
        }
        members.sort_by(|a, b| b.owner.cmp(&a.owner).then_with(|| a.namespace.cmp(&b.namespace)));
        Ok(members)
    }
}

fn runs(namespace: &str) -> ResourceAttributes {
    ResourceAttributes::namespaced("list", "pipelines.kubeflow.org", "runs", namespace)
}

impl Namespaces for ProfileNamespaces {
    fn of<'a>(&'a self, user: &'a UserInfo) -> BoxFuture<'a, Result<Vec<String>, BoxError>> {
        Box::pin(async move { Ok(self.members(user).await?.into_iter().map(|m| m.namespace).collect()) })
    }
}
