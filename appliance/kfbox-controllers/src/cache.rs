//! The objects of one kind in memory, fed by one watch that all controllers share. Guarantees: a controller that wrote an
//! object sees at least that version afterwards ([`Cache::learn`]); handlers run after the change is visible. Objects are
//! kept without managed fields, and pods without what only the node reads.
//! Assumption: resource versions of a kind are numbers that grow, which Kubernetes promises since 1.35 and our own API
//! server since ever.

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Container, Pod};
use kfbox_base::Tasks;
use kube::{
    Api, Client, Resource,
    runtime::{WatchStreamExt, watcher},
};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use std::{
    any::Any,
    collections::{BTreeMap, HashSet, VecDeque},
    convert::Infallible,
    fmt::Debug,
    pin::pin,
    sync::Arc,
};
use tokio::sync::watch;

/// `(namespace, name)`; the namespace is empty for cluster-scoped kinds.
pub type Key = (String, String);

pub trait Kind: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static {}
impl<K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static> Kind for K {}

pub fn key<K: Kind>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

pub fn uid<K: Kind>(object: &K) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}

fn version<K: Kind>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// What a handler sees: both for an update, one of the two otherwise.
pub struct Change<'a, K> {
    pub old: Option<&'a Arc<K>>,
    pub new: Option<&'a Arc<K>>,
}

impl<'a, K> Change<'a, K> {
    /// The old and the new object, for handlers that must consider whom each one concerned.
    pub fn both(&self) -> impl Iterator<Item = &'a Arc<K>> {
        self.old.into_iter().chain(self.new)
    }
}

type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;

pub struct Cache<K> {
    objects: RwLock<Objects<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

/// Writes under way when an object is deleted are far fewer than this.
const REMEMBERED: usize = 4096;

struct Objects<K> {
    present: BTreeMap<Key, Arc<K>>,
    /// What handlers last saw, where an answer to a write has taught more since: a handler that compares old and new must
    /// not miss what this process itself changed.
    shown: BTreeMap<Key, Option<Arc<K>>>,
    /// Uids that were lately deleted: the answer to an earlier write may come after, and must not bring them back.
    gone: HashSet<String>,
    gone_order: VecDeque<String>,
}

impl<K> Default for Objects<K> {
    fn default() -> Self {
        Self { present: BTreeMap::new(), shown: BTreeMap::new(), gone: HashSet::new(), gone_order: VecDeque::new() }
    }
}

impl<K: Kind> Objects<K> {
    fn remember(&mut self, uid: &str) {
        if self.gone.insert(uid.to_owned()) {
            self.gone_order.push_back(uid.to_owned());
        }
        if self.gone_order.len() > REMEMBERED
            && let Some(oldest) = self.gone_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
    }
}

impl<K: Kind> Default for Cache<K> {
    fn default() -> Self {
        Self { objects: RwLock::default(), handlers: RwLock::default(), synced: watch::Sender::new(false) }
    }
}

impl<K: Kind> Cache<K> {
    /// Registers a handler. It must only put keys into queues: it runs on the watch's own task.
    pub fn on_change(&self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        self.handlers.write().push(Box::new(handler));
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.objects.read().present.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    pub fn all(&self) -> Vec<Arc<K>> {
        self.objects.read().present.values().cloned().collect()
    }

    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let start = (namespace.to_owned(), String::new());
        let objects = self.objects.read();
        objects
            .present
            .range(start..)
            .take_while(|(key, _)| key.0 == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Takes an object as the server answered it to a write. The watch brings it too, perhaps later.
    pub fn learn(&self, object: K) -> Arc<K> {
        let object = Arc::new(lean(object));
        let mut objects = self.objects.write();
        match objects.present.get(&key(&*object)) {
            _ if objects.gone.contains(uid(&*object)) => {}
            Some(known) if version(&**known) >= version(&*object) => {}
            _ => {
                let before = objects.present.insert(key(&*object), object.clone());
                objects.shown.entry(key(&*object)).or_insert(before);
            }
        }
        object
    }

    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as self.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    fn applied(&self, object: K) {
        let object = Arc::new(lean(object));
        let old = {
            let mut objects = self.objects.write();
            let key = key(&*object);
            match objects.present.get(&key) {
                // A write of ours taught us a later version; its own event follows.
                Some(known) if version(&**known) > version(&*object) => return,
                known => {
                    let known = known.cloned();
                    let old = objects.shown.remove(&key).unwrap_or(known);
                    objects.present.insert(key, object.clone());
                    old
                }
            }
        };
        self.notify(&Change { old: old.as_ref(), new: Some(&object) });
    }

    fn deleted(&self, object: &K) {
        let old = {
            let mut objects = self.objects.write();
            let key = key(object);
            objects.remember(uid(object));
            match objects.present.get(&key) {
                // The name was taken again by an object we created.
                Some(known) if uid(&**known) != uid(object) && version(&**known) > version(object) => return,
                _ => {
                    objects.shown.remove(&key);
                    objects.present.remove(&key)
                }
            }
        };
        if let Some(old) = old {
            self.notify(&Change { old: Some(&old), new: None });
        }
    }

    fn notify(&self, change: &Change<'_, K>) {
        for handler in self.handlers.read().iter() {
            handler(change);
        }
    }

    /// Feeds the cache from a watch until shutdown.
    pub async fn run(
        self: Arc<Self>,
        api: Api<K>,
        config: watcher::Config,
        shutdown: tokio_util::sync::CancellationToken,
    ) -> Result<(), Infallible> {
        let mut events = pin!(watcher(api, config).default_backoff());
        let mut listed: HashSet<Key> = HashSet::new();
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                event = events.next() => event,
            };
            match event {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(object))) => {
                    listed.insert(key(&object));
                    self.applied(object);
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    let gone: Vec<Arc<K>> = {
                        let objects = self.objects.read();
                        objects
                            .present
                            .iter()
                            .filter(|(key, _)| !listed.contains(*key))
                            .map(|(_, o)| o.clone())
                            .collect()
                    };
                    for object in gone {
                        self.deleted(&object);
                    }
                    listed = HashSet::new();
                    self.synced.send_replace(true);
                }
                Some(Ok(watcher::Event::Apply(object))) => self.applied(object),
                Some(Ok(watcher::Event::Delete(object))) => self.deleted(&object),
                Some(Err(error)) => tracing::warn!(kind = %K::kind(&()), %error, "a watch failed and is tried again"),
                None => return Ok(()),
            }
        }
    }

    /// Starts the watch of all objects of the kind.
    pub fn watch(self: &Arc<Self>, client: &Client, tasks: &Tasks, config: watcher::Config) {
        let name = format!("watch of {}", K::plural(&()));
        let api = Api::all_with(client.clone(), &());
        tasks.essential(name, self.clone().run(api, config, tasks.shutdown()));
    }

    #[cfg(test)]
    pub fn put(&self, object: K) {
        self.applied(object);
    }

    #[cfg(test)]
    pub fn remove(&self, object: &K) {
        self.deleted(object);
    }
}

/// Of a pod what says how it is run: the scheduler and the controllers read what it needs and how it is. A volume is 3 kB as
/// a type, an environment variable 360 bytes, and pods are kept by the thousand after they ended.
fn lean_pod(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some());
        volumes.shrink_to_fit();
    }
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        *container = Container {
            name: std::mem::take(&mut container.name),
            image: container.image.take(),
            ports: container.ports.take(),
            resources: container.resources.take(),
            restart_policy: container.restart_policy.take(),
            ..Container::default()
        };
    }
    spec.ephemeral_containers = None;
}

fn lean<K: Kind>(mut object: K) -> K {
    if let Some(pod) = (&mut object as &mut dyn Any).downcast_mut() {
        lean_pod(pod);
    }
    let meta = object.meta_mut();
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        // As large as the object itself, and kubectl's alone.
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use parking_lot::Mutex;

    fn object(name: &str, uid: &str, version: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some("n".into());
        object.metadata.name = Some(name.into());
        object.metadata.uid = Some(uid.into());
        object.metadata.resource_version = Some(version.into());
        object
    }

    #[test]
    fn what_a_write_taught_is_not_undone_by_an_older_event() {
        let cache = Cache::<ConfigMap>::default();
        type Seen = (Option<String>, Option<String>);
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = seen.clone();
        cache.on_change(move |change| {
            let version = |o: Option<&Arc<ConfigMap>>| o.and_then(|o| o.metadata.resource_version.clone());
            log.lock().push((version(change.old), version(change.new)));
        });
        cache.put(object("a", "1", "5"));
        cache.learn(object("a", "1", "9"));
        cache.put(object("a", "1", "7"));
        assert_eq!(cache.get("n", "a").unwrap().metadata.resource_version.as_deref(), Some("9"));
        cache.put(object("a", "1", "9"));
        cache.learn(object("a", "2", "12"));
        cache.remove(&object("a", "1", "11"));
        assert_eq!(cache.get("n", "a").unwrap().metadata.uid.as_deref(), Some("2"));
        cache.remove(&object("a", "2", "13"));
        assert!(cache.get("n", "a").is_none());
        cache.learn(object("a", "2", "13"));
        assert!(cache.get("n", "a").is_none(), "a late answer brings nothing back");
        let v = |s: &str| Some(s.to_owned());
        // Handlers see each change once, from what they saw before.
        assert_eq!(*seen.lock(), [(None, v("5")), (v("5"), v("9")), (v("12"), None)]);
    }

    #[test]
    fn a_namespace_lists_its_own_objects_only() {
        let cache = Cache::<ConfigMap>::default();
        cache.put(object("a", "1", "1"));
        let mut other = object("a", "2", "2");
        other.metadata.namespace = Some("n2".into());
        cache.put(other);
        assert_eq!(cache.in_namespace("n").len(), 1);
        assert_eq!(cache.in_namespace("").len(), 0);
        assert_eq!(cache.all().len(), 2);
    }
}
