//! The cluster's Services and endpoints in memory, fed by one watch each and shared by all who need them: the packet
//! filter and the DNS server.

use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared},
};
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

/// The watches ended before they delivered what was there: the daemon is stopping.
#[derive(Debug, thiserror::Error)]
#[error("the watches of services ended")]
pub struct WatchEnded;

/// A shared view. Cloning is cheap.
#[derive(Clone)]
pub struct Directory {
    pub services: Store<Service>,
    pub slices: Store<EndpointSlice>,
    changed: watch::Receiver<u64>,
    complete: Shared<BoxFuture<'static, bool>>,
}

impl Directory {
    /// Starts the watches. They end with the daemon.
    pub fn start(client: &Client, tasks: &Tasks) -> Self {
        let (bump, changed) = watch::channel(0);
        let services = follow(Api::all(client.clone()), tasks, bump.clone(), |_| {});
        Self::of(services, follow(Api::all(client.clone()), tasks, bump, |_| {}), changed)
    }

    /// A directory fed by the caller, who sends on `changed` after each change of the stores.
    pub fn of(services: Store<Service>, slices: Store<EndpointSlice>, changed: watch::Receiver<u64>) -> Self {
        // A store wakes only one of those who wait for it, the one that looked last; a shared future wakes them all.
        let (first, second) = (services.clone(), slices.clone());
        let complete = async move { first.wait_until_ready().await.is_ok() && second.wait_until_ready().await.is_ok() };
        Self { services, slices, changed, complete: complete.boxed().shared() }
    }

    /// Woken after each change; the first wait returns once something changed since this call.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// Waits until both watches have delivered what was there. Any number may wait; nobody may wait for the stores themselves.
    pub async fn complete(&self) -> Result<(), WatchEnded> {
        if self.complete.clone().await { Ok(()) } else { Err(WatchEnded) }
    }
}

/// Keeps a store of all objects of a kind. What nobody here reads is dropped before it is kept, and what `lean` drops.
pub(super) fn follow<K>(api: Api<K>, tasks: &Tasks, bump: watch::Sender<u64>, lean: fn(&mut K)) -> Store<K>
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
            .modify(move |object: &mut K| {
                lean(object);
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
