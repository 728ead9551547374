//! Which kinds the cluster has now, built in and custom.

use kube::{
    Client,
    discovery::{ApiResource, Discovery, Scope, verbs},
};

#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    pub api: ApiResource,
    pub namespaced: bool,
    pub delete_collection: bool,
}

impl Resource {
    /// Two versions of one kind hold the same objects.
    pub fn same_kind(&self, group: &str, kind: &str) -> bool {
        self.api.group == group && self.api.kind == kind
    }

    pub fn id(&self) -> String {
        format!("{}/{}", self.api.group, self.api.plural)
    }
}

/// The kinds whose objects can be listed, watched and deleted, each in its preferred version, without the cluster's diary:
/// events own nothing, are owned by nothing and come by the thousand.
pub async fn discover(client: &Client) -> Result<Vec<Resource>, kube::Error> {
    // One document for all groups: a group of another server that does not answer leaves a gap instead of an error.
    let discovery = Discovery::new(client.clone()).run_aggregated().await?;
    let mut all = Vec::new();
    for group in discovery.groups() {
        for (api, capabilities) in group.recommended_resources() {
            let able =
                [verbs::LIST, verbs::WATCH, verbs::DELETE].iter().all(|verb| capabilities.supports_operation(verb));
            if able {
                all.push(Resource {
                    namespaced: capabilities.scope == Scope::Namespaced,
                    delete_collection: capabilities.supports_operation(verbs::DELETE_COLLECTION),
                    api,
                });
            }
        }
    }
    all.sort_by_key(Resource::id);
    all.dedup_by_key(|r| r.id());
    Ok(all)
}

pub fn is_event(resource: &Resource) -> bool {
    resource.api.kind == "Event"
}
