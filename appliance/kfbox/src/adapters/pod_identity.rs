//! Who calls from a pod's address: the pod's service account. The node drops packets that a pod sends from any address
//! but its own, so the address is proof.

use futures::{StreamExt, future::BoxFuture};
use k8s_openapi::api::core::v1::Pod;
use kfbox_base::{Tasks, UserInfo};
use kube::{
    Api,
    runtime::{WatchStreamExt, reflector, watcher},
};
use std::{net::IpAddr, sync::Arc};

/// A function from a pod's address to its identity, kept current by a watch.
pub fn by_address(
    client: kube::Client,
    tasks: &Tasks,
) -> Arc<dyn Fn(IpAddr) -> BoxFuture<'static, Option<UserInfo>> + Send + Sync> {
    let (store, writer) = reflector::store();
    let pods: Api<Pod> = Api::all(client);
    let shutdown = tasks.shutdown();
    tasks.essential("pod identities", async move {
        let watch = watcher(pods, watcher::Config::default()).modify(forget_all_but_identity).default_backoff();
        let mut changes = std::pin::pin!(reflector::reflector(writer, watch));
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok::<(), kfbox_base::BoxError>(()),
                change = changes.next() => match change {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => tracing::debug!(%error, "the watch of pods is tried again"),
                    None => return Err("the watch of pods ended".into()),
                },
            }
        }
    });
    Arc::new(move |address| {
        let store = store.clone();
        Box::pin(async move {
            let address = address.to_string();
            let of_address = |pod: &Pod| {
                let status = pod.status.as_ref()?;
                (status.pod_ip.as_deref() == Some(&address) && !host_network(pod) && !ended(pod))
                    .then(|| identity(pod))?
            };
            store.find(|pod| of_address(pod).is_some()).and_then(|pod| of_address(&pod))
        })
    })
}

fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false)
}

/// An ended pod's address may already be another's.
fn ended(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn identity(pod: &Pod) -> Option<UserInfo> {
    let namespace = pod.metadata.namespace.as_deref()?;
    let account = pod.spec.as_ref()?.service_account_name.as_deref().unwrap_or("default");
    Some(UserInfo::new(
        format!("system:serviceaccount:{namespace}:{account}"),
        ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")],
    ))
}

/// Thousands of pods' specifications would be memory for nothing.
fn forget_all_but_identity(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    pod.metadata.annotations = None;
    if let Some(spec) = &mut pod.spec {
        *spec = k8s_openapi::api::core::v1::PodSpec {
            service_account_name: spec.service_account_name.take(),
            host_network: spec.host_network,
            ..Default::default()
        };
    }
    if let Some(status) = &mut pod.status {
        *status = k8s_openapi::api::core::v1::PodStatus {
            phase: status.phase.take(),
            pod_ip: status.pod_ip.take(),
            ..Default::default()
        };
    }
}
