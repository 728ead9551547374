//! The cluster's Services and endpoints in memory, fed by one watch each and shared by all who need them: the packet
//! filter and the DNS server.

use futures::StreamExt;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kfbox_base::Tasks;
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{self, Lookup, Store},
        watcher,
    },
};
use std::{fmt::Debug, hash::Hash};
use tokio::sync::watch;

/// A shared view. Cloning is cheap.
#[derive(Clone)]
pub struct Directory {
    pub services: Store<Service>,
    pub slices: Store<EndpointSlice>,
    changed: watch::Receiver<u64>,
}

impl Directory {
    /// Starts the watches. They end with the daemon.
    pub fn start(client: &Client, tasks: &Tasks) -> Self {
        let (bump, changed) = watch::channel(0);
        Self {
            services: follow(Api::all(client.clone()), tasks, bump.clone()),
            slices: follow(Api::all(client.clone()), tasks, bump),
            changed,
        }
    }

    /// A directory fed by the caller, who sends on `changed` after each change of the stores.
    pub fn of(services: Store<Service>, slices: Store<EndpointSlice>, changed: watch::Receiver<u64>) -> Self {
        Self { services, slices, changed }
    }

    /// Woken after each change; the first wait returns once something changed since this call.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// Waits until both watches have delivered what was there.
    pub async fn complete(&self) -> Result<(), reflector::store::WriterDropped> {
        self.services.wait_until_ready().await?;
        self.slices.wait_until_ready().await
    }
}

/// Keeps a store of all objects of a kind. What the node never reads is dropped before it is kept.
pub(super) fn follow<K>(api: Api<K>, tasks: &Tasks, bump: watch::Sender<u64>) -> Store<K>
where
    K: Resource<DynamicType = ()>
        + Lookup<DynamicType = ()>
        + Clone
        + Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
    <K as Lookup>::DynamicType: Eq + Hash + Clone,
{
    let (store, mut writer) = reflector::store();
    let shutdown = tasks.shutdown();
    let kind = <K as Resource>::kind(&()).into_owned();
    tasks.essential(format!("watch of {kind}"), async move {
        let stream = watcher(api, watcher::Config::default())
            .modify(|object: &mut K| {
                object.managed_fields_mut().clear();
                object.annotations_mut().remove("kubectl.kubernetes.io/last-applied-configuration");
            })
            .default_backoff()
            .take_until(shutdown.cancelled());
        futures::pin_mut!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    writer.apply_watcher_event(&event);
                    // During the first list nobody needs to look yet.
                    if matches!(event, watcher::Event::Apply(_) | watcher::Event::Delete(_) | watcher::Event::InitDone)
                    {
                        bump.send_modify(|n| *n += 1);
                    }
                }
                Err(error) => tracing::warn!(kind, %error, "a watch broke and is taken up again"),
            }
        }
        Ok::<(), std::convert::Infallible>(())
    });
    store
}
