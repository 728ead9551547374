//! What a profile's namespace gets in the object store: its bucket, and its credential in the Secret that upstream's
//! profile-controller for pipelines makes (`pipelines-profile-controller/sync.py` of
//! <https://github.com/kubeflow/pipelines>), so that pods and tools find the keys without asking for them.
//!
//! Guarantees: a Secret holds the credential of its own namespace and no other; it comes back when it is deleted or changed;
//! one of that name that somebody else made stays as it is. Nothing is left of a namespace that went meanwhile: it is given a
//! credential only while it has the finalizer of [`departures`], and is looked at once more after it was.

use crate::{
    adapters::departures,
    backend::{grants_of, own_bucket},
};
use futures::StreamExt as _;
use k8s_openapi::{
    ByteString,
    api::core::v1::{Namespace, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kfbox_api::names::{self, label};
use kfbox_base::Tasks;
use kfbox_objects::{Credential, Objects};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{
        controller::{Action, Controller},
        watcher,
    },
};
use std::{convert::Infallible, sync::Arc, time::Duration};

/// Upstream's name; its keys are `accesskey` and `secretkey`.
const SECRET: &str = "mlpipeline-minio-artifact";
/// The field manager, and who a Secret of ours is managed by.
const MANAGER: &str = "kfbox-objects";
/// Everything is looked at again after this long, should a watch have missed something.
const RESYNC: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("the cluster: {0}")]
    Kube(#[from] kube::Error),
    #[error("the object store: {0}")]
    Objects(#[from] kfbox_objects::Error),
}

struct Context {
    client: Client,
    objects: Objects,
}

/// Follows profiles' namespaces until shutdown.
pub fn follow(client: Client, objects: Objects, tasks: &Tasks) {
    let of_profiles = format!("{}={}", label::PART_OF, label::KUBEFLOW_PROFILE);
    let of_ours = format!("{}={MANAGER}", label::MANAGED_BY);
    let controller =
        Controller::new(Api::<Namespace>::all(client.clone()), watcher::Config::default().labels(&of_profiles))
            .owns(Api::<Secret>::all(client.clone()), watcher::Config::default().labels(&of_ours))
            .graceful_shutdown_on(tasks.shutdown().cancelled_owned());
    let context = Arc::new(Context { client, objects });
    tasks.essential("stores of namespaces", async move {
        let mut seen = std::pin::pin!(controller.run(reconcile, retry, context));
        while let Some(each) = seen.next().await {
            if let Err(error) = each {
                tracing::debug!(%error, "a namespace's place in the object store");
            }
        }
        Ok::<(), Infallible>(())
    });
}

fn retry(namespace: Arc<Namespace>, error: &Trouble, _: Arc<Context>) -> Action {
    tracing::warn!(namespace = namespace.name_any(), %error, "has no place in the object store yet; trying again");
    Action::requeue(RETRY)
}

async fn reconcile(namespace: Arc<Namespace>, context: Arc<Context>) -> Result<Action, Trouble> {
    let Context { client, objects } = &*context;
    let name = namespace.name_any();
    // Without the finalizer nobody would clear away what is made here; its coming is an event.
    if !departures::holds(&namespace) {
        return Ok(Action::await_change());
    }
    let credential = objects.credential_for(&name, grants_of(&name)).await?;
    if let Some(bucket) = own_bucket(&name) {
        match objects.ensure_bucket(bucket).await {
            // A few names are kept by S3, such as those that begin with `xn--`; the shared bucket is there for all.
            Ok(()) | Err(kfbox_objects::Error::InvalidBucketName(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Deleted since it was seen here, it may have been cleared away before the keys were made.
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let Some(namespace) = namespaces.get_opt(&name).await?.filter(departures::holds) else {
        objects.revoke_owner(&name).await?;
        if let Some(bucket) = own_bucket(&name) {
            objects.remove_bucket(bucket).await?;
        }
        return Ok(Action::await_change());
    };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &name);
    if secrets.get_opt(SECRET).await?.is_none_or(|found| is_ours(&found)) {
        let wanted = secret(&namespace, &credential);
        secrets.patch(SECRET, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&wanted)).await?;
    }
    Ok(Action::requeue(RESYNC))
}

fn is_ours(secret: &Secret) -> bool {
    secret.labels().get(label::MANAGED_BY).is_some_and(|by| by == MANAGER)
}

fn secret(namespace: &Namespace, credential: &Credential) -> Secret {
    let value = |text: &str| ByteString(text.as_bytes().to_vec());
    let labels = [(label::MANAGED_BY, MANAGER), (label::PART_OF, names::KUBEFLOW_NAMESPACE)];
    Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.into()),
            namespace: Some(namespace.name_any()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            owner_references: namespace.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(
            [
                ("accesskey".to_owned(), value(&credential.access_key)),
                ("secretkey".to_owned(), value(&credential.secret_key)),
            ]
            .into(),
        ),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfbox_apiserver::ApiServer;
    use kube::{
        api::{DeleteParams, PostParams},
        runtime::wait,
    };
    use serde_json::json;

    async fn keys(client: &Client, namespace: &str, wanted: impl Fn(&Secret) -> bool) -> (Secret, Credential) {
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let there = wait::await_condition(api, SECRET, |s: Option<&Secret>| s.is_some_and(&wanted));
        let found = tokio::time::timeout(Duration::from_secs(30), there).await.unwrap().unwrap().unwrap();
        let data = found.data.clone().unwrap();
        let text = |key: &str| String::from_utf8(data[key].0.clone()).unwrap();
        let credential = Credential { access_key: text("accesskey"), secret_key: text("secretkey") };
        (found, credential)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_namespace_has_its_own_keys_and_bucket_and_gets_them_back() {
        let (dir, tasks) = (tempfile::tempdir().unwrap(), Tasks::new());
        let server = ApiServer::open(kfbox_apiserver::Config::new(dir.path().join("data")), &tasks).await.unwrap();
        let client = server.client();
        let config = kfbox_objects::Config { data_dir: dir.path().into(), region: "us-east-1".into() };
        let objects = Objects::open(config, &tasks).await.unwrap();
        follow(client.clone(), objects.clone(), &tasks);
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let labels = json!({label::PART_OF: label::KUBEFLOW_PROFILE});
        for name in ["ann", "bob"] {
            let made = json!({"metadata": {"name": name, "labels": labels, "finalizers": [departures::FINALIZER]}});
            namespaces.create(&PostParams::default(), &serde_json::from_value(made).unwrap()).await.unwrap();
        }
        let (first, ann) = keys(&client, "ann", |_| true).await;
        let (_, bob) = keys(&client, "bob", |_| true).await;
        assert_ne!(ann.access_key, bob.access_key);
        assert!(ann == objects.credential_for("ann", grants_of("ann")).await.unwrap());
        assert!(bob == objects.credential_for("bob", grants_of("bob")).await.unwrap());
        objects.put_bytes("ann", "model", "weights", None).await.unwrap();

        // Deleted or changed, it comes back with the same keys.
        let secrets: Api<Secret> = Api::namespaced(client.clone(), "ann");
        secrets.delete(SECRET, &DeleteParams::default()).await.unwrap();
        let (_, again) = keys(&client, "ann", |s| s.uid() != first.uid()).await;
        assert!(again == ann);
        let wrong = json!({"data": {"accesskey": "b3RoZXI="}});
        secrets.patch(SECRET, &PatchParams::default(), &Patch::Merge(wrong)).await.unwrap();
        let right = ByteString(ann.access_key.clone().into_bytes());
        keys(&client, "ann", |s| s.data.as_ref().is_some_and(|d| d["accesskey"] == right)).await;

        tasks.stop();
        assert_eq!(tasks.drain(Duration::from_secs(20)).await, Vec::<String>::new());
    }
}
