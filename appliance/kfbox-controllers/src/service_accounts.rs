//! In each namespace: the service account `default` and the ConfigMap `kube-root-ca.crt`. Upstream:
//! <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/>.

use crate::{
    context::{Context, Registered},
    queue::{Outcome, Queue},
    write::{self, WriteError},
};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::api::ObjectMeta;
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc};

const ROOT_CA: &str = "kube-root-ca.crt";
const WORKERS: usize = 4;

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<String>::new();
    let q = queue.clone();
    context.caches.namespaces.on_change(move |change| {
        if let Some(namespace) = change.new {
            q.add(namespace.metadata.name.clone().unwrap_or_default());
        }
    });
    let q = queue.clone();
    context.caches.service_accounts.on_change(move |change| {
        if let (None, Some(gone)) = (change.new, change.old) {
            q.add(gone.metadata.namespace.clone().unwrap_or_default());
        }
    });
    let q = queue.clone();
    context.caches.root_cas.on_change(move |change| {
        for map in change.both() {
            q.add(map.metadata.namespace.clone().unwrap_or_default());
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("service accounts", WORKERS, shutdown, move |name| reconcile(context.clone(), name)).await
    };
    ("serviceaccount", Box::pin(run))
}

fn is_active(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_none()
        && namespace.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating")
}

fn root_ca(namespace: &str, pem: &str) -> ConfigMap {
    let note = "The authority that signed the certificate of the cluster's API.";
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(ROOT_CA.into()),
            namespace: Some(namespace.into()),
            annotations: Some(BTreeMap::from([("kubernetes.io/description".into(), note.into())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([("ca.crt".into(), pem.into())])),
        ..ConfigMap::default()
    }
}

async fn reconcile(context: Arc<Context>, name: String) -> Result<Outcome, WriteError> {
    let (client, caches) = (&context.client, &context.caches);
    if !caches.namespaces.get("", &name).is_some_and(|n| is_active(&n)) {
        return Ok(Outcome::Done);
    }
    if caches.service_accounts.get(&name, "default").is_none() {
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some("default".into()),
                namespace: Some(name.clone()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        write::create(client, &caches.service_accounts, &account, None).await?;
    }
    let pem = context.config.root_ca_pem.as_str();
    match caches.root_cas.get(&name, ROOT_CA) {
        None => {
            write::create(client, &caches.root_cas, &root_ca(&name, pem), None).await?;
        }
        Some(map) if map.data.as_ref().and_then(|d| d.get("ca.crt")).map(String::as_str) != Some(pem) => {
            write::patch(client, &caches.root_cas, &*map, json!({ "data": { "ca.crt": pem } })).await?;
        }
        Some(_) => {}
    }
    Ok(Outcome::Done)
}
