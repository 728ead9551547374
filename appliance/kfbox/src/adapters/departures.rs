//! The end of a namespace in the stores. What a namespace has in the pipelines' database, in the object store and in ML
//! Metadata ends with it, as its volumes do, and its S3 credential is void; one that gets its name later inherits nothing.
//!
//! Guarantee: a profile's namespace has a finalizer, so that it is gone only after all that is; a daemon that was killed in
//! between goes on. Other namespaces, which users cannot make, are cleared away after them.

use crate::backend::grants_of;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kfbox_api::names::label;
use kfbox_base::{BoxError, Tasks};
use kfbox_metadata::Metadata;
use kfbox_objects::Objects;
use kfbox_pipelines::Pipelines;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use serde_json::json;
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

pub const FINALIZER: &str = "kfbox.local/stores";
/// Between tries to clear away.
const RETRY: Duration = Duration::from_secs(5);

pub struct Stores {
    pub client: Client,
    pub pipelines: Pipelines,
    pub objects: Objects,
    pub metadata: Metadata,
}

/// Why a namespace's belongings are to be cleared away.
#[derive(Clone)]
enum Why {
    /// It is on its way out, and waits for us.
    Held { uid: String },
    /// It went.
    Deleted,
    /// It was not among those that are there when the daemon started.
    Absent,
}

/// Whether what a namespace has will be cleared away before it goes, and that has not begun.
pub fn holds(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_none() && namespace.finalizers().iter().any(|f| f == FINALIZER)
}

/// Follows namespaces until shutdown.
pub fn follow(stores: Stores, tasks: &Tasks) {
    let shutdown = tasks.shutdown();
    tasks.essential("ends of namespaces", async move {
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            ended = stores.run() => ended,
        }
    });
}

impl Stores {
    async fn run(self) -> Result<(), BoxError> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let mut events = std::pin::pin!(watcher(namespaces, watcher::Config::default()).default_backoff());
        let mut there = HashSet::new();
        let mut due: HashMap<String, Why> = HashMap::new();
        // By `uid`: cleared before they went, so that what gets the name meanwhile is left alone.
        let mut cleared = HashSet::new();
        loop {
            let again = async {
                if due.is_empty() {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(RETRY).await;
            };
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Event::Init)) => there.clear(),
                    Some(Ok(Event::InitApply(namespace))) => {
                        there.insert(namespace.name_any());
                        self.look(&namespace, &mut due).await;
                    }
                    Some(Ok(Event::Apply(namespace))) => self.look(&namespace, &mut due).await,
                    Some(Ok(Event::InitDone)) => {
                        let used = self.pipelines.namespaces_in_use().await?;
                        due.extend(used.into_iter().filter(|n| !there.contains(n)).map(|n| (n, Why::Absent)));
                    }
                    Some(Ok(Event::Delete(namespace))) => {
                        let name = namespace.name_any();
                        if cleared.remove(&namespace.uid().unwrap_or_default()) {
                            self.pipelines.welcome_namespace(&name);
                        } else {
                            due.insert(name, Why::Deleted);
                        }
                    }
                    Some(Err(error)) => tracing::warn!(%error, "the watch on namespaces failed; it is started again"),
                    None => return Err("the watch on namespaces ended".into()),
                },
                () = again => {}
            }
            for (namespace, why) in due.clone() {
                match self.end(&namespace, &why).await {
                    Ok(()) => {
                        due.remove(&namespace);
                        if let Why::Held { uid } = why {
                            cleared.insert(uid);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(namespace, %error, "what belonged to a namespace cannot be cleared away; trying again")
                    }
                }
            }
        }
    }

    async fn look(&self, namespace: &Namespace, due: &mut HashMap<String, Why>) {
        let name = namespace.name_any();
        let held = namespace.finalizers().iter().any(|f| f == FINALIZER);
        if namespace.metadata.deletion_timestamp.is_some() {
            if held {
                due.insert(name, Why::Held { uid: namespace.uid().unwrap_or_default() });
            }
            return;
        }
        if !matches!(due.get(&name), Some(Why::Deleted)) {
            due.remove(&name);
            self.pipelines.welcome_namespace(&name);
        }
        let of_profile = namespace.labels().get(label::PART_OF).is_some_and(|v| v == label::KUBEFLOW_PROFILE);
        if of_profile
            && !held
            && let Err(error) = self.hold(namespace).await
        {
            // The next change of the namespace tries again; without it, its end is still seen, only later.
            tracing::warn!(namespace = name, %error, "a namespace cannot be given its finalizer");
        }
    }

    async fn hold(&self, namespace: &Namespace) -> Result<(), kube::Error> {
        let mut all = namespace.finalizers().to_vec();
        all.push(FINALIZER.into());
        self.write_finalizers(namespace, &all).await
    }

    /// Only if nobody changed the namespace meanwhile.
    async fn write_finalizers(&self, namespace: &Namespace, all: &[String]) -> Result<(), kube::Error> {
        let patch = json!({"metadata": {
            "finalizers": all, "resourceVersion": namespace.resource_version(), "uid": namespace.uid(),
        }});
        let api: Api<Namespace> = Api::all(self.client.clone());
        match api.patch(&namespace.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            // Changed or gone: its next event comes.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Clears away what a namespace had, then lets it go.
    async fn end(&self, namespace: &str, why: &Why) -> Result<(), BoxError> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        if matches!(why, Why::Absent) && api.get_opt(namespace).await?.is_some() {
            return Ok(());
        }
        // First the keys, so that nothing comes after what is counted here.
        let credentials = self.objects.revoke_owner(namespace).await?;
        let forgotten = self.pipelines.forget_namespace(namespace).await?;
        let mut objects = 0;
        for grant in grants_of(namespace) {
            objects += match grant.prefix.as_str() {
                "" => self.objects.remove_bucket(&grant.bucket).await?,
                prefix => self.objects.purge(&grant.bucket, prefix).await?,
            };
        }
        let metadata = self.metadata.store().forget_namespace(namespace).await?;
        let kfbox_pipelines::Forgotten { runs, recurring_runs, pipelines, experiments } = forgotten;
        if credentials + objects + metadata + runs + recurring_runs + pipelines + experiments > 0 {
            tracing::warn!(
                namespace,
                runs,
                recurring_runs,
                pipelines,
                experiments,
                objects,
                metadata,
                credentials,
                "the namespace was deleted, and what it had in the stores with it"
            );
        }
        if let Why::Held { uid } = why {
            if let Some(found) = api.get_opt(namespace).await?
                && found.metadata.deletion_timestamp.is_some()
                && found.uid().as_deref() == Some(uid)
            {
                let rest: Vec<String> = found.finalizers().iter().filter(|f| *f != FINALIZER).cloned().collect();
                self.write_finalizers(&found, &rest).await?;
            }
        } else {
            self.pipelines.welcome_namespace(namespace);
        }
        Ok(())
    }
}
