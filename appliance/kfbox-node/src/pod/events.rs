//! Events about pods, as a kubelet writes them. Repeats are counted on one object.
//!
//! Invariant: writing events never holds up a pod; when the server cannot keep up, events are lost.
//! Upstream: <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/>

use super::{record, status};
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kfbox_base::Tasks;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::collections::{HashMap, VecDeque};
use tokio::sync::mpsc;

/// Events that may wait: some for each pod of a full node.
const QUEUE: usize = 1024;
/// Events remembered to be counted when they repeat.
const REMEMBERED: usize = 1024;
/// The API's own limit on a message.
const MAX_MESSAGE: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Normal,
    Warning,
}

struct Item {
    about: ObjectReference,
    level: Level,
    reason: &'static str,
    message: String,
}

#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<Item>,
}

impl Events {
    pub fn start(client: Client, tasks: &Tasks, node_name: &str) -> Self {
        let (queue, mut items) = mpsc::channel::<Item>(QUEUE);
        let (node_name, shutdown) = (node_name.to_owned(), tasks.shutdown());
        tasks.spawn("node-events", async move {
            let mut known = Known::default();
            loop {
                let item = tokio::select! {
                    item = items.recv() => item,
                    () = shutdown.cancelled() => return,
                };
                let Some(item) = item else { return };
                if let Err(error) = write(&client, &node_name, &mut known, item).await {
                    tracing::debug!(%error, "an event could not be written");
                }
            }
        });
        Self { queue }
    }

    /// About a pod, or one of its containers.
    pub fn pod(
        &self,
        pod: &Pod,
        container: Option<&str>,
        level: Level,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let kind = |name: &str| {
            let spec = pod.spec.as_ref()?;
            record::containers(spec).find(|(_, c)| c.name == name).map(|(kind, _)| kind)
        };
        let field_path = container.map(|name| {
            let list = match kind(name) {
                Some(record::Kind::Init | record::Kind::Sidecar) => "initContainers",
                Some(record::Kind::Ephemeral) => "ephemeralContainers",
                Some(record::Kind::Main) | None => "containers",
            };
            format!("spec.{list}{{{name}}}")
        });
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path,
        };
        self.push(about, level, reason, message.into());
    }

    /// About the node itself.
    pub fn node(&self, name: &str, level: Level, reason: &'static str, message: impl Into<String>) {
        let about = ObjectReference {
            kind: Some("Node".into()),
            name: Some(name.into()),
            // As upstream's kubelet does: the name stands for the uid.
            uid: Some(name.into()),
            ..ObjectReference::default()
        };
        self.push(about, level, reason, message.into());
    }

    fn push(&self, about: ObjectReference, level: Level, reason: &'static str, mut message: String) {
        if let Some((cut, _)) = message.char_indices().take_while(|(at, _)| *at < MAX_MESSAGE - 4).last()
            && message.len() > MAX_MESSAGE
        {
            message.truncate(cut);
            message.push('…');
        }
        let _ = self.queue.try_send(Item { about, level, reason, message });
    }
}

#[derive(Default)]
struct Known {
    /// Name and count by what the event says.
    seen: HashMap<Key, (String, i32)>,
    order: VecDeque<Key>,
    serial: u64,
}

type Key = (Option<String>, Option<String>, &'static str, String);

async fn write(client: &Client, node: &str, known: &mut Known, item: Item) -> Result<(), kube::Error> {
    let namespace = item.about.namespace.clone().unwrap_or_else(|| "default".into());
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let key = (item.about.uid.clone(), item.about.field_path.clone(), item.reason, item.message.clone());
    let now = status::now();
    if let Some((name, count)) = known.seen.get_mut(&key) {
        *count += 1;
        let patch = json!({ "count": *count, "lastTimestamp": now });
        match api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            // Expired: a new one is written.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(drop),
        }
    }
    known.serial += 1;
    let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let name = format!("{}.{:x}", item.about.name.as_deref().unwrap_or_default(), stamp + u128::from(known.serial));
    let source = EventSource { component: Some("kubelet".into()), host: Some(node.into()) };
    let event = Event {
        metadata: ObjectMeta { name: Some(name.clone()), namespace: Some(namespace), ..ObjectMeta::default() },
        involved_object: item.about,
        type_: Some(if item.level == Level::Normal { "Normal" } else { "Warning" }.into()),
        reason: Some(item.reason.into()),
        message: Some(item.message),
        source: Some(source),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node.into()),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        ..Event::default()
    };
    api.create(&PostParams::default(), &event).await?;
    known.order.push_back(key.clone());
    known.seen.insert(key, (name, 1));
    while known.order.len() > REMEMBERED {
        if let Some(old) = known.order.pop_front() {
            known.seen.remove(&old);
        }
    }
    Ok(())
}
