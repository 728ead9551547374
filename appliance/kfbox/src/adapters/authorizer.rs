//! [`kfbox_base::Authorizer`] by SubjectAccessReview: the cluster's own RBAC decides, whichever cluster it is. But who is
//! disabled at the gateway, or gone from the directory that they came from, may nothing: what acts in somebody's name later
//! (a recurring run) asks here too, and their roles in the cluster stay.

use futures::future::BoxFuture;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes as KubeAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kfbox_base::{Authorizer, BoxError, Decision, ResourceAttributes, UserInfo};
use kfbox_gateway::Gateway;
use kube::api::{Api, PostParams};
use std::sync::OnceLock;

pub struct ClusterAuthorizer {
    reviews: Api<SubjectAccessReview>,
    /// Known once the gateway is open; until then nobody can act.
    people: OnceLock<Gateway>,
}

impl ClusterAuthorizer {
    pub fn new(client: kube::Client) -> Self {
        Self { reviews: Api::all(client), people: OnceLock::new() }
    }

    pub fn know(&self, people: Gateway) {
        drop(self.people.set(people));
    }
}

impl Authorizer for ClusterAuthorizer {
    fn authorize<'a>(
        &'a self,
        user: &'a UserInfo,
        attributes: &'a ResourceAttributes,
    ) -> BoxFuture<'a, Result<Decision, BoxError>> {
        Box::pin(async move {
            if let Some(people) = self.people.get()
                && !people.still_let_in(&user.username).await
            {
                return Ok(Decision::Deny(format!("{} is disabled, or gone from their directory", user.username)));
            }
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let ResourceAttributes { verb, group, resource, subresource, namespace, name } = attributes;
            let review = SubjectAccessReview {
                spec: SubjectAccessReviewSpec {
                    user: some(&user.username),
                    uid: some(&user.uid),
                    groups: Some(user.groups.clone()),
                    extra: Some(user.extra.clone()),
                    resource_attributes: Some(KubeAttributes {
                        verb: some(verb),
                        group: some(group),
                        resource: some(resource),
                        subresource: some(subresource),
                        namespace: some(namespace),
                        name: some(name),
                        ..KubeAttributes::default()
                    }),
                    ..SubjectAccessReviewSpec::default()
                },
                ..SubjectAccessReview::default()
            };
            let status = self.reviews.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
            Ok(if status.allowed {
                Decision::Allow
            } else {
                Decision::Deny(status.reason.unwrap_or_else(|| format!("{} may not {verb} {resource}", user.username)))
            })
        })
    }
}
