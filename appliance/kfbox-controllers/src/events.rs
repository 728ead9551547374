//! Kubernetes Events of controllers. Invariants: telling never delays deciding (the queue is bounded, and what does not
//! fit is dropped, as upstream does); the same happening to the same object is one Event whose count grows.

use crate::{context::Context, names, write};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use kube::{
    Api, Resource,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use parking_lot::Mutex;
use serde_json::json;
use std::{convert::Infallible, sync::Arc};
use tokio::sync::mpsc;

/// A burst of a thousand pods that cannot be scheduled fits; each waiting event is under 1 KiB.
const WAITING: usize = 1024;

pub struct Note {
    regarding: ObjectReference,
    component: &'static str,
    warning: bool,
    reason: &'static str,
    message: String,
}

pub struct Events {
    sender: mpsc::Sender<Note>,
    receiver: Mutex<Option<mpsc::Receiver<Note>>>,
}

impl Default for Events {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Self { sender, receiver: Mutex::new(Some(receiver)) }
    }
}

impl Events {
    pub fn normal<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        component: &'static str,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.tell(about, component, false, reason, message.into());
    }

    pub fn warning<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        component: &'static str,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.tell(about, component, true, reason, message.into());
    }

    fn tell<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        component: &'static str,
        warning: bool,
        reason: &'static str,
        message: String,
    ) {
        self.tell_about(about.object_ref(&()), component, warning, reason, message);
    }

    /// Of an object of any kind.
    pub fn tell_about(
        &self,
        regarding: ObjectReference,
        component: &'static str,
        warning: bool,
        reason: &'static str,
        message: String,
    ) {
        if self.sender.try_send(Note { regarding, component, warning, reason, message }).is_err() {
            tracing::debug!(reason, "too many events wait; one was dropped");
        }
    }
}

/// Writes events until shutdown.
pub async fn run(context: Arc<Context>) -> Result<(), Infallible> {
    let Some(mut notes) = context.events.receiver.lock().take() else { return Ok(()) };
    loop {
        let note = tokio::select! {
            () = context.shutdown.cancelled() => return Ok(()),
            note = notes.recv() => note,
        };
        let Some(note) = note else { return Ok(()) };
        if let Err(error) = write_event(&context, note).await {
            tracing::debug!(%error, "an event could not be written");
        }
    }
}

async fn write_event(context: &Context, note: Note) -> Result<(), kube::Error> {
    let namespace = note.regarding.namespace.clone().unwrap_or_else(|| "default".into());
    let api = Api::<Event>::namespaced(context.client.clone(), &namespace);
    let name = note.regarding.name.clone().unwrap_or_default();
    let uid = note.regarding.uid.clone().unwrap_or_default();
    // Upstream's form, NAME.HEX, with the hash of what happened in place of the time.
    let id = names::digest(&[&uid, note.component, note.reason, &note.message], 16);
    let event_name = format!("{}.{id}", name.get(..200).unwrap_or(&name));
    let now = Timestamp::now();
    let event = Event {
        metadata: ObjectMeta { name: Some(event_name.clone()), namespace: Some(namespace), ..ObjectMeta::default() },
        involved_object: note.regarding,
        reason: Some(note.reason.into()),
        message: Some(note.message),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.into()),
        source: Some(EventSource { component: Some(note.component.into()), host: None }),
        reporting_component: Some(note.component.into()),
        reporting_instance: Some(String::new()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        event_time: None::<MicroTime>,
        count: Some(1),
        ..Event::default()
    };
    match api.create(&PostParams::default(), &event).await {
        Err(error) if write::is_exists(&error) => {
            let count = api.get_opt(&event_name).await?.and_then(|e| e.count).unwrap_or(0);
            let patch = json!({ "count": count.saturating_add(1), "lastTimestamp": Time(now) });
            api.patch(&event_name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
        }
        result => result.map(drop),
    }
}
