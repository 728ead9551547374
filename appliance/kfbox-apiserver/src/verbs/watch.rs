//! `watch`: a stream of changes from a revision on, with bookmarks. A client that reads too slowly falls behind what
//! the store remembers; it is then told 410 and its stream ends.

use super::{Call, list};
use crate::{
    convert,
    negotiate::Form,
    respond,
    selectors::Selector,
    status::ApiError,
    store::{Change, Expired, Object, Watcher},
};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderValue, header};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Bookmarks keep a quiet client's revision young enough to resume from; upstream sends about one a minute.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// Unless told otherwise a watch ends after 30 to 60 minutes, so that clients spread out.
const SHORTEST: u64 = 1800;

/// Bytes handed to the connection at once.
const FRAME: usize = 256 * 1024;

pub async fn watch(call: Arc<Call>) -> Result<Response, ApiError> {
    let selector = list::selector(&call)?;
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let initial = call.query.flag("sendInitialEvents");
    let since = list::revision(call.query.get("resourceVersion"))?;
    let matching = call.query.get("resourceVersionMatch");
    match (call.query.get("sendInitialEvents"), matching) {
        (Some(_), Some("NotOlderThan")) | (None, None) => {}
        (Some(_), _) => {
            return Err(ApiError::bad_request(
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires \
                 setting resourceVersionMatch to NotOlderThan",
            ));
        }
        (None, Some(_)) => {
            return Err(ApiError::bad_request(
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is \
                 forbidden for watch unless sendInitialEvents is provided",
            ));
        }
    }
    let seconds = call
        .query
        .number("timeoutSeconds")?
        .and_then(|s| u64::try_from(s).ok())
        .filter(|s| *s > 0)
        .unwrap_or_else(|| rand::random_range(SHORTEST..2 * SHORTEST));
    let namespace = list::namespace(&call).map(str::to_owned);
    let collection = &call.resource.collection;

    let from_now = initial || (since.unwrap_or(0) == 0 && call.query.get("sendInitialEvents").is_none());
    let (snapshot, watcher) = if from_now {
        call.core.wait_for_revision(since.unwrap_or(0)).await?;
        let (snapshot, watcher) = call.core.store.list_and_watch(collection, namespace.as_deref());
        (snapshot.objects, Ok(watcher))
    } else {
        let since = match since.unwrap_or(0) {
            0 => call.core.store.revision(),
            since => since,
        };
        // A revision of the future: the client talked to another cluster's data, or one that was restored.
        call.core.wait_for_revision(since).await?;
        (Vec::new(), call.core.store.watch(collection, since))
    };
    let watcher = match watcher {
        Ok(watcher) => watcher,
        // Upstream answers 200 and tells it in the stream, where informers look for it.
        Err(expired) => return Ok(streaming(Body::from(error_event(expired)))),
    };

    let state = Stream {
        selector,
        namespace,
        watcher,
        initial: snapshot.into_iter().collect(),
        end_of_initial: initial && bookmarks,
        bookmarks: bookmarks.then(|| Instant::now() + BOOKMARK_EVERY),
        deadline: Instant::now() + Duration::from_secs(seconds),
        table_header: true,
        ended: false,
        registry: call.resource.custom.is_some().then(|| call.core.resources.changes()),
        call: call.clone(),
    };
    let frames = futures::stream::unfold(state, |mut state| async move {
        let frame = state.next_frame().await?;
        Some((Ok::<_, std::convert::Infallible>(frame), state))
    });
    Ok(streaming(Body::from_stream(frames)))
}

fn streaming(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

async fn changed(registry: &mut Option<tokio::sync::watch::Receiver<u64>>) {
    match registry {
        Some(registry) => drop(registry.changed().await),
        None => std::future::pending().await,
    }
}

fn error_event(expired: Expired) -> String {
    format!("{}\n", json!({"type": "ERROR", "object": ApiError::from(expired).to_value()}))
}

struct Stream {
    call: Arc<Call>,
    selector: Selector,
    namespace: Option<String>,
    watcher: Watcher,
    initial: std::collections::VecDeque<Arc<Object>>,
    end_of_initial: bool,
    /// When the next is due, if wanted.
    bookmarks: Option<Instant>,
    deadline: Instant,
    /// The first Table says what its columns are.
    table_header: bool,
    ended: bool,
    /// Of a custom resource: what is served changed, perhaps without it.
    registry: Option<tokio::sync::watch::Receiver<u64>>,
}

impl Stream {
    async fn next_frame(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut frame = Vec::new();
        while let Some(object) = self.initial.pop_front() {
            if self.selector.matches(&object) {
                self.event(&mut frame, "ADDED", &object);
                if frame.len() >= FRAME {
                    return Some(frame.into());
                }
            }
        }
        if std::mem::take(&mut self.end_of_initial) {
            self.bookmark(&mut frame, true);
        }
        if !frame.is_empty() {
            return Some(frame.into());
        }
        loop {
            let bookmark_at = self.bookmarks.unwrap_or(self.deadline).min(self.deadline);
            let shutdown = self.call.core.shutdown.clone();
            tokio::select! {
                batch = self.watcher.next() => match batch {
                    Ok(batch) => batch.iter().for_each(|change| self.change(&mut frame, change)),
                    Err(expired) => {
                        self.ended = true;
                        frame.extend_from_slice(error_event(expired).as_bytes());
                    }
                },
                () = tokio::time::sleep_until(bookmark_at) => {
                    let over = Instant::now() >= self.deadline;
                    if self.bookmarks.is_some() {
                        self.bookmarks = Some(Instant::now() + BOOKMARK_EVERY);
                        self.bookmark(&mut frame, false);
                    }
                    if over {
                        self.ended = true;
                        return (!frame.is_empty()).then(|| frame.into());
                    }
                }
                () = changed(&mut self.registry) => {
                    if !self.still_served() {
                        self.ended = true;
                        // The deletions of the last objects come first.
                        while let Ok(batch) = self.watcher.ready()
                            && !batch.is_empty()
                        {
                            batch.iter().for_each(|change| self.change(&mut frame, change));
                        }
                        return (!frame.is_empty()).then(|| frame.into());
                    }
                }
                () = shutdown.cancelled() => return None,
            }
            if !frame.is_empty() {
                return Some(frame.into());
            }
        }
    }

    fn still_served(&self) -> bool {
        let resource = &self.call.resource;
        self.call.core.resources.current().find(&resource.group, &resource.version, &resource.plural).is_some()
    }

    /// What a change is to this watcher depends on whether it could see the object before and after.
    fn change(&mut self, frame: &mut Vec<u8>, change: &Change) {
        if self.namespace.as_deref().is_some_and(|n| n != &*change.object.key.namespace) {
            return;
        }
        let sees = |o: &Object| self.selector.matches(o);
        let before = change.previous.as_deref().is_some_and(sees);
        let after = !change.deleted && sees(&change.object);
        match (before, after) {
            (false, true) => self.event(frame, "ADDED", &change.object),
            (true, true) => self.event(frame, "MODIFIED", &change.object),
            (true, false) => self.event(frame, "DELETED", &change.object),
            (false, false) => {}
        }
    }

    fn event(&mut self, frame: &mut Vec<u8>, kind: &str, object: &Object) {
        let call = self.call.clone();
        let object: Bytes = match call.accept.form {
            Form::Object => convert::bytes(&call.resource, object),
            Form::Metadata => respond::partial(&convert::value(&call.resource, object)).to_string().into(),
            Form::Table => {
                let value = convert::value(&call.resource, object);
                let mut table = respond::table(&call, &[value], &object.revision.to_string(), None);
                if !std::mem::take(&mut self.table_header) {
                    table["columnDefinitions"] = Value::Null;
                }
                table.to_string().into()
            }
        };
        frame.extend_from_slice(b"{\"type\":\"");
        frame.extend_from_slice(kind.as_bytes());
        frame.extend_from_slice(b"\",\"object\":");
        frame.extend_from_slice(&object);
        frame.extend_from_slice(b"}\n");
    }

    fn bookmark(&self, frame: &mut Vec<u8>, end_of_initial: bool) {
        let mut metadata = json!({"resourceVersion": self.watcher.cursor().to_string(), "creationTimestamp": null});
        if end_of_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.call.accept.form {
            Form::Object => json!({
                "kind": &*self.call.resource.kind, "apiVersion": self.call.resource.api_version(), "metadata": metadata,
            }),
            Form::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Form::Table => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": null,
                "metadata": {"resourceVersion": self.watcher.cursor().to_string()},
                "rows": [{"cells": [], "object": {
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                }}],
            }),
        };
        frame.extend_from_slice(format!("{}\n", json!({"type": "BOOKMARK", "object": object})).as_bytes());
    }
}
