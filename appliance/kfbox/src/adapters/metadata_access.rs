//! What a caller may do with ML Metadata: read and write what belongs to the namespaces in which the cluster lets it see
//! and create runs. An administrator may read all.

use super::namespaces::ProfileNamespaces;
use futures::future::BoxFuture;
use kfbox_base::{Authorizer, BoxError, ResourceAttributes, UserInfo};
use kfbox_metadata::{Access, Grants, Namespaces};
use std::sync::Arc;

pub struct MetadataAccess {
    pub namespaces: ProfileNamespaces,
    pub authorizer: Arc<dyn Authorizer>,
}

impl Access for MetadataAccess {
    fn grants<'a>(&'a self, caller: &'a UserInfo) -> BoxFuture<'a, Result<Grants, BoxError>> {
        Box::pin(async move {
            let runs = |verb: &str, namespace: &str| {
                ResourceAttributes::namespaced(verb, "pipelines.kubeflow.org", "runs", namespace)
            };
            if self.authorizer.authorize(caller, &runs("*", "")).await?.is_allowed() {
                return Ok(Grants { home: None, read: Namespaces::All, write: Namespaces::All });
            }
            let (mut read, mut write) = (Vec::new(), Vec::new());
            for member in self.namespaces.members(caller).await? {
                if self.authorizer.authorize(caller, &runs("list", &member.namespace)).await?.is_allowed() {
                    read.push(member.namespace.clone());
                }
                if self.authorizer.authorize(caller, &runs("create", &member.namespace)).await?.is_allowed() {
                    write.push(member.namespace);
                }
            }
            let home = caller.service_account().map(|(namespace, _)| namespace.to_owned());
            let home = home.or_else(|| write.first().cloned());
            Ok(Grants { home, read: Namespaces::These(read), write: Namespaces::These(write) })
        })
    }
}
