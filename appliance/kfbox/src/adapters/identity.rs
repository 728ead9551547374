//! Tokens across the two issuers: the cluster takes the gateway's, the gateway takes the cluster's.

use async_trait::async_trait;
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kfbox_api::{
    Profile,
    profile::{ProfileSpec, Subject},
};
use kfbox_apiserver::auth::TokenAuthenticator;
use kfbox_base::{BoxError, UserInfo};
use kfbox_gateway::{Gateway, Newcomers, TokenReviewer};
use kfbox_node::registry::Callers;
use kfbox_platform::DefaultProfile;
use kube::api::{Api, PostParams};

/// The gateway's tokens at the Kubernetes API.
pub struct GatewayTokens(pub Gateway);

#[async_trait]
impl TokenAuthenticator for GatewayTokens {
    async fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Option<UserInfo>, BoxError> {
        // They are made for this box; a review for another audience is not about them.
        Ok(if audiences.is_empty() { self.0.verify_bearer_now(token).await } else { None })
    }
}

/// A namespace for everybody who signs in through a connector.
pub struct Settling(pub kube::Client);

impl Newcomers for Settling {
    fn arrived<'a>(&'a self, email: &'a str) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async move { Ok(settle(self.0.clone(), email).await?) })
    }
}

/// A namespace of their own for a person; one that is there already stays as it is.
pub async fn settle(client: kube::Client, email: &str) -> Result<(), kube::Error> {
    let DefaultProfile { name, owner } = DefaultProfile::for_user(email);
    let owner = Subject { kind: "User".into(), name: owner, ..Subject::default() };
    let profile = Profile::new(&name, ProfileSpec { owner: Some(owner), ..ProfileSpec::default() });
    match Api::all(client).create(&PostParams::default(), &profile).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

/// Service-account tokens at the gateway, by TokenReview.
pub struct ClusterTokens {
    reviews: Api<TokenReview>,
}

impl ClusterTokens {
    pub fn new(client: kube::Client) -> Self {
        Self { reviews: Api::all(client) }
    }
}

/// Tokens of either kind at the registry.
impl Callers for ClusterTokens {
    fn identify<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<UserInfo>, BoxError>> {
        self.review(token, &[])
    }
}

impl TokenReviewer for ClusterTokens {
    fn review<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<UserInfo>, BoxError>> {
        Box::pin(async move {
            let review = TokenReview {
                spec: TokenReviewSpec {
                    token: token.to_owned(),
                    audiences: (!audiences.is_empty()).then(|| audiences.to_vec()),
                },
                ..TokenReview::default()
            };
            let status = self.reviews.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
            if status.authenticated != Some(true) {
                return Ok(None);
            }
            let user = status.user.unwrap_or_default();
            Ok(Some(UserInfo {
                username: user.username.unwrap_or_default(),
                uid: user.uid.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
                extra: user.extra.unwrap_or_default(),
            }))
        })
    }
}
