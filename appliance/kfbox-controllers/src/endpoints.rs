//! EndpointSlices and Endpoints: the addresses of the pods that a Service selects. Invariant: a slice's name follows from
//! its Service, address family and ports, so that a lost answer makes no second one. Upstream:
//! <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/>.

mod decide;

use crate::{
    cache::{self, Key},
    context::{Context, Registered},
    queue::{Outcome, Queue},
    selectors,
    write::{self, WriteError},
};
use k8s_openapi::api::{
    core::v1::{Endpoints, Pod, Service},
    discovery::v1::EndpointSlice,
};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc};

const WORKERS: usize = 8;
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Slices made from Endpoints that people wrote for Services without a selector.
pub const MIRROR: &str = "endpointslicemirroring-controller.k8s.io";
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<Key>::new();
    let q = queue.clone();
    context.caches.services.on_change(move |change| change.both().for_each(|s| q.add(cache::key(&**s))));
    let (services, q) = (context.caches.services.clone(), queue.clone());
    context.caches.pods.on_change(move |change| {
        // Most news of a pod (a condition, a container's state) changes no endpoint.
        if let (Some(old), Some(new)) = (change.old, change.new)
            && decide::facts(old) == decide::facts(new)
        {
            return;
        }
        for pod in change.both() {
            for service in services.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
                if selects(&service, pod) {
                    q.add(cache::key(&*service));
                }
            }
        }
    });
    let q = queue.clone();
    context.caches.slices.on_change(move |change| {
        for slice in change.both() {
            let labels = slice.metadata.labels.as_ref();
            let ours = labels.and_then(|l| l.get(MANAGED_BY)).is_some_and(|m| m == MANAGER || m == MIRROR);
            if let Some(service) = labels.and_then(|l| l.get(SERVICE_NAME)).filter(|_| ours) {
                q.add((slice.metadata.namespace.clone().unwrap_or_default(), service.clone()));
            }
        }
    });
    let q = queue.clone();
    context.caches.endpoints.on_change(move |change| change.both().for_each(|e| q.add(cache::key(&**e))));
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("endpointslice", WORKERS, shutdown, move |key| reconcile(context.clone(), key)).await
    };
    ("endpointslice", Box::pin(run))
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty());
    selector.is_some_and(|s| selectors::equal(s, pod.metadata.labels.as_ref()))
}

async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, WriteError> {
    let caches = &context.caches;
    let service = caches.services.get(&key.0, &key.1).filter(|s| s.metadata.deletion_timestamp.is_none());
    let selector =
        service.as_ref().and_then(|s| s.spec.as_ref()).and_then(|s| s.selector.clone()).filter(|s| !s.is_empty());
    let external =
        service.as_ref().and_then(|s| s.spec.as_ref()).and_then(|s| s.type_.as_deref()) == Some("ExternalName");
    let existing = caches.endpoints.get(&key.0, &key.1);
    let (wanted, manager, endpoints): (Vec<EndpointSlice>, &str, Option<Endpoints>) = match (&service, selector) {
        (Some(service), Some(_)) if !external => {
            let pods: Vec<Arc<Pod>> =
                caches.pods.in_namespace(&key.0).into_iter().filter(|p| selects(service, p)).collect();
            let slices = decide::slices(service, &pods);
            let endpoints = decide::endpoints(service, &slices);
            (slices, MANAGER, Some(endpoints))
        }
        (Some(service), None) if !external => {
            let skip = existing.as_ref().is_some_and(|e| {
                let labels = e.metadata.labels.as_ref();
                labels.and_then(|l| l.get("endpointslice.kubernetes.io/skip-mirror")).is_some_and(|v| v == "true")
                    // Left over from a selector that the Service had.
                    || labels.is_some_and(|l| l.contains_key(ENDPOINTS_MANAGED_BY))
            });
            let mirrored = existing.as_ref().filter(|_| !skip).map(|e| decide::mirror(service, e)).unwrap_or_default();
            (mirrored, MIRROR, None)
        }
        // What a deleted Service had is the garbage collector's; the legacy object has no owner.
        _ => {
            if let Some(old) = existing.filter(|e| managed(e)) {
                write::delete::<Endpoints>(&context.client, &key.0, &key.1, cache::uid(&*old)).await?;
            }
            (Vec::new(), MANAGER, None)
        }
    };
    write_slices(&context, &key, &wanted, manager, service.as_deref()).await?;
    if let Some(endpoints) = endpoints {
        match caches.endpoints.get(&key.0, &key.1) {
            None => {
                write::create(&context.client, &caches.endpoints, &endpoints, None).await?;
            }
            Some(old)
                if managed(&old)
                    && (old.subsets.as_deref().unwrap_or_default()
                        != endpoints.subsets.as_deref().unwrap_or_default()
                        || lacks(old.metadata.labels.as_ref(), endpoints.metadata.labels.as_ref())) =>
            {
                let body = json!({ "metadata": { "labels": endpoints.metadata.labels }, "subsets": endpoints.subsets });
                write::patch(&context.client, &caches.endpoints, &*old, body).await?;
            }
            Some(_) => {}
        }
    }
    Ok(Outcome::Done)
}

fn managed(endpoints: &Endpoints) -> bool {
    endpoints.metadata.labels.as_ref().is_some_and(|l| l.contains_key(ENDPOINTS_MANAGED_BY))
}

fn lacks(has: Option<&BTreeMap<String, String>>, wanted: Option<&BTreeMap<String, String>>) -> bool {
    wanted.into_iter().flatten().any(|(k, v)| has.and_then(|h| h.get(k)) != Some(v))
}

async fn write_slices(
    context: &Context,
    key: &Key,
    wanted: &[EndpointSlice],
    manager: &str,
    service: Option<&Service>,
) -> Result<(), WriteError> {
    let (client, slices) = (&context.client, &context.caches.slices);
    for slice in wanted {
        let name = slice.metadata.name.as_deref().unwrap_or_default();
        match slices.get(&key.0, name) {
            None => {
                write::create(client, slices, slice, service.map(cache::uid)).await?;
            }
            Some(old) => {
                let same = old.endpoints == slice.endpoints
                    && old.ports.as_deref().unwrap_or_default() == slice.ports.as_deref().unwrap_or_default();
                if !same || lacks(old.metadata.labels.as_ref(), slice.metadata.labels.as_ref()) {
                    let body = json!({ "metadata": { "labels": slice.metadata.labels }, "endpoints": slice.endpoints, "ports": slice.ports });
                    write::patch(client, slices, &*old, body).await?;
                }
            }
        }
    }
    for old in slices.in_namespace(&key.0) {
        let labels = old.metadata.labels.as_ref();
        let label = |name: &str| labels.and_then(|l| l.get(name)).map(String::as_str);
        let of_service = label(SERVICE_NAME) == Some(key.1.as_str());
        let ours = matches!(label(MANAGED_BY), Some(MANAGER | MIRROR));
        let kept = label(MANAGED_BY) == Some(manager) && wanted.iter().any(|w| w.metadata.name == old.metadata.name);
        if of_service && ours && !kept {
            write::delete::<EndpointSlice>(
                client,
                &key.0,
                old.metadata.name.as_deref().unwrap_or_default(),
                cache::uid(&*old),
            )
            .await?;
        }
    }
    Ok(())
}
