//! Watches the pods of this node, and the objects that they use, and gives each pod a task.

use super::{Node, NodeError};
use crate::pod::{
    adopt,
    context::{Change, Context},
    objects::Kind,
    record::{full_name, uid},
    worker::{Left, Wanted, Worker},
};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use kfbox_base::{Component, Tasks};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    fs,
    sync::Arc,
};
use tokio::sync::{mpsc, watch};

/// Tasks that ended and are not yet forgotten; more than one node's pods never wait.
const ENDED: usize = 256;

pub fn run(node: &Arc<Node>, tasks: &Tasks, component: Component) {
    follow::<ConfigMap>(&node.ctx, "configmaps", |object| object_change(Kind::ConfigMap, object));
    follow::<Secret>(&node.ctx, "secrets", |object| object_change(Kind::Secret, object));
    follow::<PersistentVolumeClaim>(&node.ctx, "claims", |_| Change::Storage);
    follow::<PersistentVolume>(&node.ctx, "volumes", |_| Change::Storage);
    let (node, shutdown) = (node.clone(), tasks.shutdown());
    tasks.essential("node-pods", async move {
        tokio::select! {
            result = dispatch(node, component) => result,
            () = shutdown.cancelled() => Ok(()),
        }
    });
}

fn object_change<K: ResourceExt>(kind: Kind, object: &K) -> Change {
    Change::Object { kind, namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
}

/// Tells the pods' tasks of changes. Nothing is kept here: whoever is concerned reads the object.
fn follow<K>(ctx: &Arc<Context>, what: &str, change: fn(&K) -> Change)
where
    K: Resource<DynamicType = ()> + Clone + Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    let api: Api<K> = Api::all(ctx.client.clone());
    let (ctx, shutdown) = (ctx.clone(), ctx.tasks.shutdown());
    ctx.tasks.clone().essential(format!("node-{what}"), async move {
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        let mut listed = false;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = shutdown.cancelled() => return Ok::<_, NodeError>(()),
            };
            let change = match event {
                Some(Ok(Event::Apply(object) | Event::Delete(object))) => change(&object),
                Some(Ok(Event::InitDone)) => {
                    // The first list is no news; a later one may hide some.
                    if !std::mem::replace(&mut listed, true) {
                        continue;
                    }
                    Change::Unknown
                }
                Some(Ok(Event::Init | Event::InitApply(_))) => continue,
                Some(Err(error)) => {
                    tracing::debug!(%error, "a watch of the node was interrupted");
                    continue;
                }
                None => return Ok(()),
            };
            // Nobody may be listening.
            let _ = ctx.changes.send(change);
        }
    });
}

fn is_deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// A pod is kept as long as its object is. A volume is 3 kB as a type, and lists grow by doubling.
fn compact(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    let Some(spec) = &mut pod.spec else { return };
    if let Some(volumes) = &mut spec.volumes {
        volumes.shrink_to_fit();
    }
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        if let Some(env) = &mut container.env {
            env.shrink_to_fit();
        }
    }
}

struct Dispatcher {
    node: Arc<Node>,
    workers: HashMap<String, watch::Sender<Wanted>>,
    /// Pods, by uid, that ran to their end and are kept. They have no task: there may be thousands of them. Events of
    /// before their end may still come, and must not bring one back to life.
    at_rest: HashSet<String>,
    ended: mpsc::Sender<(String, Left)>,
}

async fn dispatch(node: Arc<Node>, component: Component) -> Result<(), NodeError> {
    // Containers get the services in their environment, so these come first.
    let _ = node.ctx.directory.complete().await;
    let api: Api<Pod> = Api::all(node.ctx.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", node.config.node_name));
    let mut events = watcher(api, config).default_backoff().boxed();
    let (sender, mut ended) = mpsc::channel(ENDED);
    let mut dispatcher = Dispatcher { node, workers: HashMap::new(), at_rest: HashSet::new(), ended: sender };
    let mut listed: HashSet<String> = HashSet::new();
    loop {
        tokio::select! {
            event = events.try_next() => match event {
                Ok(Some(Event::Init)) => listed.clear(),
                Ok(Some(Event::InitApply(pod))) => {
                    listed.insert(uid(&pod).to_owned());
                    dispatcher.apply(pod);
                }
                Ok(Some(Event::InitDone)) => {
                    dispatcher.drop_unlisted(&listed);
                    dispatcher.remove_orphans(&listed);
                    component.ready();
                }
                Ok(Some(Event::Apply(pod))) => dispatcher.apply(pod),
                Ok(Some(Event::Delete(pod))) => dispatcher.gone(pod),
                Ok(None) => return Ok(()),
                Err(error) => tracing::debug!(%error, "the watch of pods was interrupted"),
            },
            Some((uid, left)) = ended.recv() => dispatcher.ended(uid, left),
        }
    }
}

impl Dispatcher {
    fn apply(&mut self, mut pod: Pod) {
        let assigned = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        if assigned != Some(self.node.config.node_name.as_str()) {
            return;
        }
        compact(&mut pod);
        let pod = Arc::new(pod);
        let key = (pod.namespace().unwrap_or_default(), pod.name_any());
        self.node.pods.lock().insert(key, pod.clone());
        let uid = uid(&pod).to_owned();
        match self.workers.get(&uid) {
            Some(worker) => {
                worker.send_replace(Wanted::Pod(pod));
            }
            None if !is_deleted(&pod) && (self.at_rest.contains(&uid) || self.is_at_rest(&pod)) => {
                self.at_rest.insert(uid);
            }
            None => {
                self.at_rest.remove(&uid);
                self.start(uid, Wanted::Pod(pod));
            }
        }
    }

    /// Whether an earlier daemon did all there was to do.
    fn is_at_rest(&self, pod: &Pod) -> bool {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed")) && !self.node.ctx.dirs(uid(pod)).run.exists()
    }

    fn ended(&mut self, uid: String, left: Left) {
        let Some(worker) = self.workers.remove(&uid) else { return };
        if left != Left::Ended {
            return;
        }
        // What came while it went.
        let latest = worker.borrow().clone();
        match &latest {
            Wanted::Pod(pod) if !is_deleted(pod) => drop(self.at_rest.insert(uid)),
            Wanted::Pod(_) | Wanted::Gone(_) => self.start(uid, latest),
        }
    }

    fn start(&mut self, uid: String, wanted: Wanted) {
        let name = format!("pod/{}", full_name(wanted.pod()));
        let (sender, receiver) = watch::channel(wanted);
        let worker = Worker::new(self.node.ctx.clone(), receiver);
        let (ended, key) = (self.ended.clone(), uid.clone());
        self.node.ctx.tasks.spawn(name, async move {
            let left = worker.run().await;
            let _ = ended.send((key, left)).await;
        });
        self.workers.insert(uid, sender);
    }

    fn gone(&mut self, pod: Pod) {
        let pod = Arc::new(pod);
        let key = (pod.namespace().unwrap_or_default(), pod.name_any());
        let mut pods = self.node.pods.lock();
        if pods.get(&key).is_some_and(|known| uid(known) == uid(&pod)) {
            pods.remove(&key);
        }
        drop(pods);
        let uid = uid(&pod).to_owned();
        if let Some(worker) = self.workers.get(&uid) {
            worker.send_replace(Wanted::Gone(pod));
        } else if self.at_rest.remove(&uid) {
            self.start(uid, Wanted::Gone(pod));
        }
    }

    /// Pods that went while the watch was interrupted.
    fn drop_unlisted(&mut self, listed: &HashSet<String>) {
        self.node.pods.lock().retain(|_, pod| listed.contains(uid(pod)));
        // Their folders are orphans.
        self.at_rest.retain(|uid| listed.contains(uid));
        for (uid, worker) in &self.workers {
            if !listed.contains(uid) {
                let pod = worker.borrow().pod().clone();
                worker.send_replace(Wanted::Gone(pod));
            }
        }
    }

    /// Folders of pods that nobody knows any more: they went while the daemon was away.
    fn remove_orphans(&self, listed: &HashSet<String>) {
        let ctx = &self.node.ctx;
        let mut found: HashSet<String> = HashSet::new();
        for folder in [ctx.data_dir.join("pods"), ctx.run_dir.join("pods")] {
            let names = fs::read_dir(folder).into_iter().flatten().flatten();
            found.extend(names.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        found.extend(ctx.network.pods());
        for uid in found {
            if listed.contains(&uid) || self.workers.contains_key(&uid) {
                continue;
            }
            let ctx = ctx.clone();
            self.node.ctx.tasks.spawn(format!("orphan/{uid}"), async move {
                tracing::info!(pod = %uid, "removing what is left of a pod that is gone");
                adopt::remove_orphan(&ctx, &uid).await;
            });
        }
    }
}
