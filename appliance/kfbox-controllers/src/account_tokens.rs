//! Secrets of type `kubernetes.io/service-account-token`: filled with a token for the account that they name, removed with
//! it. Upstream makes such tokens without end; ours are bound to their Secret and end with it, or after the longest time
//! that a token may last.
//! <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#token-controller>.

use crate::{
    cache::{self, Key},
    context::{Context, Registered},
    queue::{Outcome, Queue},
    write::{self, WriteError},
};
use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{Secret, ServiceAccount},
    },
};
use kube::{Api, api::PostParams};
use serde_json::json;
use std::sync::Arc;

pub const KIND: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";
/// The longest that a TokenRequest may ask for.
const LONGEST: i64 = 1 << 32;

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<Key>::new();
    let q = queue.clone();
    context.caches.token_secrets.on_change(move |change| {
        if let Some(secret) = change.new {
            q.add(cache::key(&**secret));
        }
    });
    let (secrets, q) = (context.caches.token_secrets.clone(), queue.clone());
    context.caches.service_accounts.on_change(move |change| {
        // Only coming and going matters.
        if change.old.map(|a| cache::uid(&**a)) == change.new.map(|a| cache::uid(&**a)) {
            return;
        }
        for account in change.both() {
            let (namespace, name) = cache::key(&**account);
            for secret in secrets.in_namespace(&namespace).iter().filter(|s| annotation(s, NAME) == Some(&name)) {
                q.add(cache::key(&**secret));
            }
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("serviceaccount-token", 2, shutdown, move |key| reconcile(context.clone(), key)).await
    };
    ("serviceaccount-token", Box::pin(run))
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    Fill,
    /// The account is gone, and the token with it.
    Remove,
}

/// `account` is the one that the Secret names, as the server has it now.
fn decide(secret: &Secret, account: Option<&ServiceAccount>) -> Step {
    if secret.type_.as_deref() != Some(KIND) || secret.metadata.deletion_timestamp.is_some() {
        return Step::Nothing;
    }
    let Some(account) = account else { return Step::Remove };
    let uid = account.metadata.uid.as_deref();
    if annotation(secret, UID).is_some_and(|known| Some(known) != uid) {
        return Step::Remove;
    }
    let filled = |field: &str| secret.data.as_ref().and_then(|d| d.get(field)).is_some_and(|v| !v.0.is_empty());
    if annotation(secret, UID).is_some() && ["token", "ca.crt", "namespace"].into_iter().all(filled) {
        Step::Nothing
    } else {
        Step::Fill
    }
}

async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, WriteError> {
    let (client, secrets) = (&context.client, &context.caches.token_secrets);
    let Some(secret) = secrets.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
    let Some(name) = annotation(&secret, NAME).filter(|n| !n.is_empty()) else { return Ok(Outcome::Done) };
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), &key.0);
    // A cache that is behind must not cost anybody a token: the server is asked.
    let account = match context.caches.service_accounts.get(&key.0, name) {
        Some(account) if decide(&secret, Some(&account)) != Step::Remove => Some((*account).clone()),
        _ => accounts.get_opt(name).await?,
    };
    match decide(&secret, account.as_ref()) {
        Step::Nothing => {}
        Step::Remove => write::delete::<Secret>(client, &key.0, &key.1, cache::uid(&*secret)).await?,
        Step::Fill => {
            let bound = BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Secret".into()),
                name: secret.metadata.name.clone(),
                uid: secret.metadata.uid.clone(),
            };
            let request = TokenRequest {
                spec: Some(TokenRequestSpec {
                    audiences: None,
                    bound_object_ref: Some(bound),
                    expiration_seconds: Some(LONGEST),
                }),
                ..TokenRequest::default()
            };
            let answer: TokenRequest =
                accounts.create_subresource("token", name, &PostParams::default(), &request).await?;
            let Some(token) = answer.status.and_then(|s| s.token) else { return Ok(Outcome::Done) };
            let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
            let body = json!({
                "metadata": { "annotations": { UID: account.and_then(|a| a.metadata.uid) } },
                "data": {
                    "token": bytes(&token), "ca.crt": bytes(&context.config.root_ca_pem), "namespace": bytes(&key.0),
                },
            });
            write::patch(client, secrets, &*secret, body).await?;
        }
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::object;
    use serde_json::Value;

    #[test]
    fn secrets_are_filled_once_and_go_with_their_account() {
        let secret = |annotations: Value, data: Value| -> Secret {
            object(json!({ "metadata": { "name": "s", "annotations": annotations }, "type": KIND, "data": data }))
        };
        let account: ServiceAccount = object(json!({ "metadata": { "name": "a", "uid": "u1" } }));
        let empty = secret(json!({ NAME: "a" }), json!({}));
        assert_eq!(decide(&empty, Some(&account)), Step::Fill);
        assert_eq!(decide(&empty, None), Step::Remove);
        let full = json!({ "token": "YQ==", "ca.crt": "YQ==", "namespace": "YQ==" });
        assert_eq!(decide(&secret(json!({ NAME: "a", UID: "u1" }), full.clone()), Some(&account)), Step::Nothing);
        assert_eq!(
            decide(&secret(json!({ NAME: "a", UID: "u0" }), full), Some(&account)),
            Step::Remove,
            "another account of that name"
        );
        let mut opaque = empty.clone();
        opaque.type_ = Some("Opaque".into());
        assert_eq!(decide(&opaque, None), Step::Nothing);
    }
}
