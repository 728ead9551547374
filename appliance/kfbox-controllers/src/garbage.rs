//! The garbage collector: what belongs to something that is gone goes too. Invariants: an owner counts as gone only when
//! the server says so (not found, or another uid), never because a watch is late; a deletion names the uid it means.
//! Watches carry metadata only. Upstream: <https://kubernetes.io/docs/concepts/architecture/garbage-collection/>.

pub mod discovery;
mod graph;

use crate::{
    context::Context,
    queue::{Outcome, Queue},
    write::{self, WriteError},
};
use discovery::Resource;
use futures::{
    StreamExt,
    future::{Either, select},
    stream::{BoxStream, SelectAll},
};
use graph::{FOREGROUND, Graph, Node, ORPHAN};
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api,
    api::{
        DeleteParams, DynamicObject, ObjectMeta, PartialObjectMeta, Patch, PatchParams, Preconditions,
        PropagationPolicy,
    },
    core::GroupVersion,
    runtime::{WatchStreamExt, watcher},
};
use parking_lot::{Mutex, RwLock};
use serde_json::json;
use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

const WORKERS: usize = 8;
/// Custom kinds usually come in batches; look at them together.
const SETTLE: Duration = Duration::from_millis(50);
/// Should news of a kind be missed.
const REDISCOVER: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(1);
/// A definition is seen a moment before its kind is served, and on a busy machine the moment is long.
const CONFIRM: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

type Meta = PartialObjectMeta<DynamicObject>;
type Tagged = (Arc<Resource>, watcher::Result<watcher::Event<Meta>>);

struct Garbage {
    context: Arc<Context>,
    graph: Mutex<Graph>,
    queue: Arc<Queue<String>>,
    resources: RwLock<Vec<Arc<Resource>>>,
    /// Kinds whose first list is complete.
    listed: tokio::sync::watch::Sender<HashSet<String>>,
}

pub async fn run(context: Arc<Context>) -> Result<(), Infallible> {
    let garbage = Arc::new(Garbage {
        context: context.clone(),
        graph: Mutex::default(),
        queue: Queue::new(),
        resources: RwLock::default(),
        listed: tokio::sync::watch::Sender::new(HashSet::new()),
    });
    let worker = garbage.clone();
    let work = async move {
        // Nothing is judged before everything was seen once.
        let mut listed = worker.listed.subscribe();
        let all_seen = worker.clone();
        let seen = listed.wait_for(move |listed| {
            let resources = all_seen.resources.read();
            !resources.is_empty() && resources.iter().all(|r| listed.contains(&r.id()))
        });
        tokio::select! {
            () = worker.context.shutdown.cancelled() => return Ok(()),
            _ = seen => {}
        }
        let (queue, shutdown) = (worker.queue.clone(), worker.context.shutdown.clone());
        queue.run("garbage-collector", WORKERS, shutdown, move |uid| worker.clone().look_at(uid)).await
    };
    match select(pin!(garbage.watch()), pin!(work)).await {
        Either::Left((done, _)) | Either::Right((done, _)) => done,
    }
}

impl Garbage {
    /// Keeps one metadata watch a kind, for as long as the kind exists.
    async fn watch(&self) -> Result<(), Infallible> {
        let mut streams: SelectAll<BoxStream<'static, Tagged>> = SelectAll::new();
        let mut monitors: HashMap<String, CancellationToken> = HashMap::new();
        let mut fresh: HashMap<String, HashSet<String>> = HashMap::new();
        let mut discover_in = Duration::ZERO;
        let mut confirmations = CONFIRM.iter();
        loop {
            let due = tokio::time::sleep(discover_in);
            let mut due = pin!(due);
            // Until discovery is due, only events are taken.
            let event = loop {
                tokio::select! {
                    () = self.context.shutdown.cancelled() => return Ok(()),
                    () = &mut due => break None,
                    Some(event) = streams.next(), if !streams.is_empty() => {
                        let kinds_changed = event.0.api.kind == "CustomResourceDefinition" && !matches!(event.1, Err(_) | Ok(watcher::Event::Init | watcher::Event::InitApply(_)));
                        self.take(event, &mut fresh);
                        if kinds_changed {
                            break Some(());
                        }
                    }
                }
            };
            if event.is_some() {
                discover_in = SETTLE;
                confirmations = CONFIRM.iter();
                continue;
            }
            match discovery::discover(&self.context.client).await {
                Ok(found) => {
                    let found: Vec<Arc<Resource>> =
                        found.into_iter().filter(|r| !discovery::is_event(r)).map(Arc::new).collect();
                    let ids: HashSet<String> = found.iter().map(|r| r.id()).collect();
                    monitors.retain(|id, stop| {
                        let keep = ids.contains(id);
                        if !keep {
                            stop.cancel();
                            let look: Vec<String> = {
                                let mut graph = self.graph.lock();
                                graph.of_resource(id).iter().flat_map(|uid| graph.remove(uid)).collect()
                            };
                            look.into_iter().for_each(|uid| self.queue.add(uid));
                        }
                        keep
                    });
                    for resource in &found {
                        monitors.entry(resource.id()).or_insert_with(|| {
                            let stop = self.context.shutdown.child_token();
                            streams.push(self.monitor(resource.clone(), stop.clone()));
                            stop
                        });
                    }
                    *self.resources.write() = found.clone();
                    self.listed.send_modify(|listed| listed.retain(|id| ids.contains(id)));
                    self.context.resources.send_replace(found);
                    discover_in = confirmations.next().copied().unwrap_or(REDISCOVER);
                }
                Err(error) => {
                    tracing::debug!(%error, "the cluster's kinds could not be read");
                    discover_in = RETRY;
                }
            }
        }
    }

    fn monitor(&self, resource: Arc<Resource>, stop: CancellationToken) -> BoxStream<'static, Tagged> {
        let api = Api::<Meta>::all_with(self.context.client.clone(), &resource.api);
        watcher(api, watcher::Config::default())
            .default_backoff()
            .take_until(stop.cancelled_owned())
            .map(move |event| (resource.clone(), event))
            .boxed()
    }

    fn take(&self, (resource, event): Tagged, fresh: &mut HashMap<String, HashSet<String>>) {
        let id = resource.id();
        let mut graph = self.graph.lock();
        let look = match event {
            Ok(watcher::Event::Init) => {
                fresh.insert(id, HashSet::new());
                Vec::new()
            }
            Ok(watcher::Event::InitApply(object)) => {
                fresh.entry(id).or_default().extend(object.metadata.uid.clone());
                graph.apply(&resource, &object.metadata)
            }
            Ok(watcher::Event::InitDone) => {
                let present = fresh.remove(&id).unwrap_or_default();
                let gone: Vec<String> =
                    graph.of_resource(&id).into_iter().filter(|uid| !present.contains(uid)).collect();
                let look = gone.iter().flat_map(|uid| graph.remove(uid)).collect();
                self.listed.send_modify(|listed| {
                    listed.insert(id);
                });
                look
            }
            Ok(watcher::Event::Apply(object)) => graph.apply(&resource, &object.metadata),
            Ok(watcher::Event::Delete(object)) => graph.remove(object.metadata.uid.as_deref().unwrap_or_default()),
            Err(error) => {
                // A kind that was just removed answers 404 until discovery drops it.
                tracing::debug!(kind = %resource.api.kind, %error, "a watch of metadata failed and is tried again");
                Vec::new()
            }
        };
        drop(graph);
        look.into_iter().for_each(|uid| self.queue.add(uid));
    }

    fn api(&self, resource: &Resource, namespace: Option<&str>) -> Api<Meta> {
        match namespace.filter(|_| resource.namespaced) {
            Some(namespace) => Api::namespaced_with(self.context.client.clone(), namespace, &resource.api),
            None => Api::all_with(self.context.client.clone(), &resource.api),
        }
    }

    async fn look_at(self: Arc<Self>, uid: String) -> Result<Outcome, WriteError> {
        let Some(node) = self.graph.lock().get(&uid).cloned() else { return Ok(Outcome::Done) };
        let api = self.api(&node.resource, node.namespace.as_deref());
        let live = match api.get_metadata_opt(&node.name).await {
            Ok(Some(live)) if live.metadata.uid.as_deref() == Some(uid.as_str()) => live.metadata,
            Ok(_) => {
                // Its own deletion event is on the way, or was missed.
                let look = self.graph.lock().remove(&uid);
                look.into_iter().for_each(|uid| self.queue.add(uid));
                return Ok(Outcome::Done);
            }
            Err(error) if write::is_missing(&error) => return Ok(Outcome::Done),
            Err(error) => return Err(error.into()),
        };
        let has = |finalizer: &str| live.finalizers.iter().flatten().any(|f| f == finalizer);
        if live.deletion_timestamp.is_some() {
            if has(ORPHAN) {
                self.orphan_dependents(&uid).await?;
                return self.drop_finalizer(&api, &node, &live, ORPHAN).await;
            }
            if has(FOREGROUND) {
                let (blocked, dependents) = {
                    let graph = self.graph.lock();
                    (graph.is_blocked(&uid), graph.dependents(&uid))
                };
                if !blocked {
                    return self.drop_finalizer(&api, &node, &live, FOREGROUND).await;
                }
                dependents.into_iter().for_each(|d| self.queue.add(d));
            }
            return Ok(Outcome::Done);
        }
        self.judge(&api, &uid, &node, &live).await
    }

    /// Decides about an object by the state of its owners.
    async fn judge(&self, api: &Api<Meta>, uid: &str, node: &Node, live: &ObjectMeta) -> Result<Outcome, WriteError> {
        let owners = live.owner_references.clone().unwrap_or_default();
        if owners.is_empty() {
            return Ok(Outcome::Done);
        }
        let (mut solid, mut waiting, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for owner in &owners {
            match self.state_of(owner, node).await? {
                OwnerState::Solid => solid.push(owner.uid.clone()),
                OwnerState::Waiting => waiting.push(owner.uid.clone()),
                OwnerState::Gone => gone.push(owner.uid.clone()),
            }
        }
        if !solid.is_empty() {
            if !gone.is_empty() || !waiting.is_empty() {
                let kept: Vec<&OwnerReference> = owners.iter().filter(|o| solid.contains(&o.uid)).collect();
                let body = json!({ "metadata": { "uid": uid, "resourceVersion": live.resource_version, "ownerReferences": kept } });
                ignore_missing(api.patch_metadata(&node.name, &PatchParams::default(), &Patch::Merge(body)).await)?;
            }
            return Ok(Outcome::Done);
        }
        let has_dependents = !self.graph.lock().dependents(uid).is_empty();
        let policy = if !waiting.is_empty() && has_dependents {
            PropagationPolicy::Foreground
        } else if live.finalizers.iter().flatten().any(|f| f == ORPHAN) {
            PropagationPolicy::Orphan
        } else if live.finalizers.iter().flatten().any(|f| f == FOREGROUND) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        let params = DeleteParams {
            // The version too: whoever gives it another owner meanwhile saves it.
            preconditions: Some(Preconditions {
                uid: Some(uid.into()),
                resource_version: live.resource_version.clone(),
            }),
            propagation_policy: Some(policy),
            ..DeleteParams::default()
        };
        match api.delete(&node.name, &params).await {
            Ok(_) => Ok(Outcome::Done),
            Err(error) if write::is_missing(&error) => Ok(Outcome::Done),
            Err(error) => Err(error.into()),
        }
    }

    async fn state_of(&self, owner: &OwnerReference, dependent: &Node) -> Result<OwnerState, WriteError> {
        if let Some(known) = self.graph.lock().get(&owner.uid) {
            let same_scope = !known.resource.namespaced || known.namespace == dependent.namespace;
            if same_scope {
                return Ok(if known.waits() { OwnerState::Waiting } else { OwnerState::Solid });
            }
            self.tell_of_stranger(owner, dependent);
        }
        let group_version: GroupVersion = match owner.api_version.parse() {
            Ok(parsed) => parsed,
            Err(_) => return Ok(OwnerState::Solid),
        };
        let resource = self.resources.read().iter().find(|r| r.same_kind(&group_version.group, &owner.kind)).cloned();
        // Of a kind that the cluster does not know nothing can be said, so nothing is deleted.
        let Some(resource) = resource else { return Ok(OwnerState::Solid) };
        if resource.namespaced && dependent.namespace.is_none() {
            return Ok(OwnerState::Solid);
        }
        match self.api(&resource, dependent.namespace.as_deref()).get_metadata_opt(&owner.name).await {
            Ok(Some(live)) if live.metadata.uid.as_deref() == Some(owner.uid.as_str()) => {
                let waits = live.metadata.deletion_timestamp.is_some()
                    && live.metadata.finalizers.iter().flatten().any(|f| f == FOREGROUND);
                Ok(if waits { OwnerState::Waiting } else { OwnerState::Solid })
            }
            Ok(_) => Ok(OwnerState::Gone),
            Err(error) => Err(error.into()),
        }
    }

    /// An owner in another namespace is none, which people often do not expect.
    fn tell_of_stranger(&self, owner: &OwnerReference, dependent: &Node) {
        let namespace = dependent.namespace.clone().unwrap_or_default();
        let message = format!(
            "ownerRef [{}/{}, namespace: {namespace}, name: {}, uid: {}] does not exist in namespace {namespace:?}",
            owner.api_version, owner.kind, owner.name, owner.uid
        );
        let regarding = ObjectReference {
            api_version: Some(dependent.resource.api.api_version.clone()),
            kind: Some(dependent.resource.api.kind.clone()),
            namespace: dependent.namespace.clone(),
            name: Some(dependent.name.clone()),
            ..ObjectReference::default()
        };
        let component = "garbage-collector-controller";
        self.context.events.tell_about(regarding, component, true, "OwnerRefInvalidNamespace", message);
    }

    async fn orphan_dependents(&self, uid: &str) -> Result<(), WriteError> {
        let dependents: Vec<(String, Node)> = {
            let graph = self.graph.lock();
            graph.dependents(uid).into_iter().filter_map(|d| Some((d.clone(), graph.get(&d)?.clone()))).collect()
        };
        for (dependent_uid, node) in dependents {
            let api = self.api(&node.resource, node.namespace.as_deref());
            let Some(live) = api.get_metadata_opt(&node.name).await? else { continue };
            let mut owners = live.metadata.owner_references.unwrap_or_default();
            let before = owners.len();
            owners.retain(|o| o.uid != uid);
            if owners.len() == before || live.metadata.uid.as_deref() != Some(dependent_uid.as_str()) {
                continue;
            }
            let body = json!({ "metadata": { "uid": dependent_uid, "resourceVersion": live.metadata.resource_version, "ownerReferences": owners } });
            ignore_missing(api.patch_metadata(&node.name, &PatchParams::default(), &Patch::Merge(body)).await)?;
        }
        Ok(())
    }

    async fn drop_finalizer(
        &self,
        api: &Api<Meta>,
        node: &Node,
        live: &ObjectMeta,
        finalizer: &str,
    ) -> Result<Outcome, WriteError> {
        let mut finalizers = live.finalizers.clone().unwrap_or_default();
        finalizers.retain(|f| f != finalizer);
        let body = json!({ "metadata": { "uid": live.uid, "resourceVersion": live.resource_version, "finalizers": finalizers } });
        ignore_missing(api.patch_metadata(&node.name, &PatchParams::default(), &Patch::Merge(body)).await)?;
        Ok(Outcome::Done)
    }
}

enum OwnerState {
    Solid,
    /// Being deleted in the foreground.
    Waiting,
    Gone,
}

fn ignore_missing<T>(result: Result<T, kube::Error>) -> Result<(), WriteError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if write::is_missing(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
