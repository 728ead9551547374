//! The Profile controller: a Profile becomes a namespace with service accounts, role bindings, a NetworkPolicy and a
//! quota, owned by the Profile. Follows `components/profile-controller` of <https://github.com/kubeflow/dashboard>.
//!
//! Guarantees: a namespace that is not the profile's own is never touched (a Profile named `kube-system` fails); what a
//! user changes on the objects is put back, but for the NetworkPolicy: its rules stay as they were edited, and come back
//! when it is deleted. Deciding ([`plan`]) is apart from writing.

pub mod plan;
mod plugins;

#[cfg(test)]
mod cluster_tests;

use crate::setup::{Namespaced, Walls, applied};
use futures::StreamExt as _;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, ResourceQuota, ServiceAccount},
        networking::v1::NetworkPolicy,
        rbac::v1::RoleBinding,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kfbox_api::{
    Profile,
    names::{self, profile as object},
    profile::ProfileStatus,
};
use kfbox_base::readiness::Component;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::{
        controller::{Action, Controller},
        finalizer::{Error as FinalizerError, Event, finalizer},
        watcher,
    },
};
use plan::{Plan, plan};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Debug, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Everything is looked at again after this long, should a watch have missed something.
const RESYNC: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error(transparent)]
    Kube(Box<kube::Error>),
    #[error("the finalizer: {0}")]
    Finalizer(String),
}

impl From<kube::Error> for ProfileError {
    fn from(error: kube::Error) -> Self {
        Self::Kube(Box::new(error))
    }
}

struct Context {
    client: Client,
    walls: Walls,
}

/// Runs until shutdown.
pub(crate) async fn run(client: Client, walls: Walls, component: Component, shutdown: CancellationToken) {
    let profiles: Api<Profile> = Api::all(client.clone());
    // Only objects that this controller made are worth memory.
    let own = || watcher::Config::default().labels(&format!("{}={}", names::label::MANAGED_BY, names::FIELD_MANAGER));
    let controller = Controller::new(profiles, watcher::Config::default())
        .owns(Api::<Namespace>::all(client.clone()), own())
        .owns(Api::<ServiceAccount>::all(client.clone()), own())
        .owns(Api::<RoleBinding>::all(client.clone()), own())
        .owns(Api::<ResourceQuota>::all(client.clone()), own())
        .owns(Api::<NetworkPolicy>::all(client.clone()), own())
        .graceful_shutdown_on(shutdown.cancelled_owned());
    let store = controller.store();
    let mut events = std::pin::pin!(controller.run(reconcile, retry, Arc::new(Context { client, walls })));
    let mut ready = std::pin::pin!(store.wait_until_ready());
    let mut waiting = true;
    loop {
        tokio::select! {
            first = &mut ready, if waiting => {
                waiting = false;
                if first.is_ok() {
                    component.ready();
                }
            }
            event = events.next() => match event {
                Some(Ok((profile, _))) => tracing::debug!(profile = profile.name, "reconciled"),
                Some(Err(error)) => tracing::warn!(%error, "profile"),
                None => return,
            },
        }
    }
}

fn retry(profile: Arc<Profile>, error: &ProfileError, _: Arc<Context>) -> Action {
    tracing::warn!(profile = profile.name_any(), %error, "will be tried again");
    Action::requeue(Duration::from_secs(5))
}

async fn reconcile(profile: Arc<Profile>, context: Arc<Context>) -> Result<Action, ProfileError> {
    let api: Api<Profile> = Api::all(context.client.clone());
    finalizer(&api, object::FINALIZER, profile, |event| async {
        match event {
            Event::Apply(profile) => apply(&profile, &context).await,
            Event::Cleanup(profile) => cleanup(&profile, &context.client).await,
        }
    })
    .await
    .map_err(|error| match error {
        FinalizerError::ApplyFailed(error) | FinalizerError::CleanupFailed(error) => error,
        other => ProfileError::Finalizer(other.to_string()),
    })
}

async fn apply(profile: &Profile, context: &Context) -> Result<Action, ProfileError> {
    let Context { client, walls } = context;
    let name = profile.name_any();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let existing = namespaces.get_opt(&name).await?;
    match plan(profile, existing.as_ref(), walls) {
        Plan::Refuse { status } => {
            write_status(profile, status, client).await?;
            // A namespace in the way may go; nothing else tells us.
            Ok(Action::requeue(Duration::from_secs(30)))
        }
        Plan::Apply { desired, status } => {
            namespaces.patch(&name, &applied(), &Patch::Apply(&desired.namespace)).await?;
            // The wall stands before anybody is let in to start pods behind it.
            match &desired.network_policy {
                Some(policy) => put_policy(client, &name, policy).await?,
                None => remove_own::<NetworkPolicy>(client, &name, object::NETWORK_POLICY, profile).await?,
            }
            for account in &desired.service_accounts {
                put(client, &name, account).await?;
            }
            for binding in &desired.role_bindings {
                put_binding(client, &name, binding).await?;
            }
            match &desired.quota {
                Some(quota) => put(client, &name, quota).await?,
                None => remove_own::<ResourceQuota>(client, &name, object::RESOURCE_QUOTA, profile).await?,
            }
            write_status(profile, status, client).await?;
            Ok(Action::requeue(RESYNC))
        }
    }
}

async fn put<K>(client: &Client, namespace: &str, object: &K) -> Result<(), kube::Error>
where
    K: Namespaced + Clone + Debug + Serialize + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    api.patch(&object.name_any(), &applied(), &Patch::Apply(object)).await.map(drop)
}

/// A binding's role cannot be changed: one with another role is made anew.
async fn put_binding(client: &Client, namespace: &str, binding: &RoleBinding) -> Result<(), kube::Error> {
    let api: Api<RoleBinding> = Api::namespaced(client.clone(), namespace);
    let name = binding.name_any();
    if let Some(old) = api.get_opt(&name).await?
        && old.role_ref.name != binding.role_ref.name
    {
        api.delete(&name, &DeleteParams::default()).await?;
    }
    put(client, namespace, binding).await
}

/// Without force: rules that somebody else set are theirs (a conflict), and stay.
async fn put_policy(client: &Client, namespace: &str, policy: &NetworkPolicy) -> Result<(), kube::Error> {
    let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), namespace);
    let mut as_owner = applied();
    as_owner.force = false;
    match api.patch(&policy.name_any(), &as_owner, &Patch::Apply(policy)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            tracing::debug!(namespace, "the network policy was edited and stays so");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// An administrator's own object of that name stays.
async fn remove_own<K>(client: &Client, namespace: &str, name: &str, profile: &Profile) -> Result<(), kube::Error>
where
    K: Namespaced + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match api.get_opt(name).await? {
        Some(object) if plan::owned_by(object.meta(), profile) => {
            api.delete(name, &DeleteParams::default()).await.map(drop)
        }
        _ => Ok(()),
    }
}

async fn write_status(profile: &Profile, status: ProfileStatus, client: &Client) -> Result<(), kube::Error> {
    if profile.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let api: Api<Profile> = Api::all(client.clone());
    let patch = serde_json::json!({"status": status});
    api.patch_status(&profile.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
}

/// Deletes the namespace if it is the profile's. Kubernetes' garbage collector would too; on a cluster without one it
/// would stay.
async fn cleanup(profile: &Profile, client: &Client) -> Result<Action, ProfileError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let name = profile.name_any();
    if let Some(namespace) = namespaces.get_opt(&name).await?
        && plan::owned_by(&namespace.metadata, profile)
        && namespace.metadata.deletion_timestamp.is_none()
    {
        // The very namespace that was looked at, not one that took its name since.
        let ObjectMeta { uid, .. } = namespace.metadata;
        let only = Preconditions { uid, ..Preconditions::default() };
        match namespaces.delete(&name, &DeleteParams::default().preconditions(only)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Action::await_change())
}

/// The kind and name that events and owner references use.
pub(crate) fn owner_of(profile: &Profile) -> Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference> {
    profile.controller_owner_ref(&())
}
