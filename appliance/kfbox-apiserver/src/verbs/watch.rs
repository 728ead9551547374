//! `watch`: a stream of changes from a revision on, with bookmarks. A client that reads too slowly falls behind what
//! the store remembers; it is then told 410 and its stream ends.

use super::{Call, list};
use crate::{
    convert,
    flow::Place,
    negotiate::Form,
    respond,
    schema::FieldError,
    selectors::Selector,
    status::ApiError,
    store::{Change, Expired, Object, Telling, Watcher},
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

/// Checked as upstream's `validateWatchOptions` does.
fn check(call: &Call) -> Result<(), ApiError> {
    let field = "resourceVersionMatch";
    let initial = call.query.get("sendInitialEvents").is_some();
    let matching = call.query.get(field);
    let mut errors = Vec::new();
    if initial && matching != Some("NotOlderThan") {
        let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        errors.push(FieldError::forbidden(field, detail));
    }
    if let Some(matching) = matching {
        if !initial {
            let detail = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.push(FieldError::forbidden(field, detail));
        }
        if matching != "NotOlderThan" {
            errors.push(FieldError::not_supported(field, &json!(matching), &["NotOlderThan"]));
        }
        if call.query.get("continue").is_some() {
            errors.push(FieldError::forbidden(field, "resourceVersionMatch is forbidden when continue is provided"));
        }
    }
    list::refuse(&errors)
}

pub async fn watch(call: Arc<Call>) -> Result<Response, ApiError> {
    check(&call)?;
    let place = call.core.flow.watch(&call.user)?;
    let selector = list::selector(&call)?;
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let initial = call.query.flag("sendInitialEvents");
    let since = list::revision(call.query.get("resourceVersion"))?;
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

    let form = match call.accept.form {
        Form::Object => "object",
        Form::Metadata => "metadata",
        Form::Table => call.query.get("includeObject").unwrap_or("Metadata"),
    };
    let state = Stream {
        view: format!("{form} {}", call.resource.api_version()).into(),
        selector,
        namespace,
        watcher,
        initial: crate::conversion::read_all(&call.core, &call.resource, snapshot).await?.into(),
        told: crate::conversion::Told::default(),
        end_of_initial: initial && bookmarks,
        bookmarks: bookmarks.then(|| Instant::now() + BOOKMARK_EVERY),
        deadline: Instant::now() + Duration::from_secs(seconds),
        table_header: true,
        ended: false,
        _place: place,
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
    _place: Place,
    /// How this watch tells of changes; those of the same view share what is told.
    view: Arc<str>,
    selector: Selector,
    namespace: Option<String>,
    watcher: Watcher,
    initial: std::collections::VecDeque<Arc<Object>>,
    /// What a webhook made of the objects of the present batch.
    told: crate::conversion::Told,
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
                let line = self.line("ADDED", &object);
                frame.extend_from_slice(&line);
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
        let shutdown = self.call.core.shutdown.clone();
        loop {
            let bookmark_at = self.bookmarks.unwrap_or(self.deadline).min(self.deadline);
            tokio::select! {
                batch = self.watcher.next() => match batch {
                    Ok(batch) => {
                        self.told = match crate::conversion::changes(&self.call, &batch).await {
                            Ok(told) => told,
                            Err(error) => {
                                self.ended = true;
                                let event = json!({"type": "ERROR", "object": error.to_value()});
                                return Some(format!("{event}\n").into());
                            }
                        };
                        let mut lines: Vec<Bytes> = batch.iter().filter_map(|change| self.change(change)).collect();
                        match lines.len() {
                            0 => {}
                            1 => return lines.pop(),
                            _ => return Some(lines.concat().into()),
                        }
                    }
                    Err(expired) => {
                        self.ended = true;
                        return Some(error_event(expired).into());
                    }
                },
                () = tokio::time::sleep_until(bookmark_at) => {
                    let over = Instant::now() >= self.deadline;
                    if self.bookmarks.is_some() {
                        self.bookmarks = Some(Instant::now() + BOOKMARK_EVERY);
                        self.bookmark(&mut frame, false);
                    }
                    self.ended = over;
                    if over || !frame.is_empty() {
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
                            for change in batch.iter() {
                                frame.extend(self.change(change).iter().flatten());
                            }
                        }
                        return (!frame.is_empty()).then(|| frame.into());
                    }
                }
                () = shutdown.cancelled() => return None,
            }
        }
    }

    fn still_served(&self) -> bool {
        let resource = &self.call.resource;
        self.call.core.resources.current().find(&resource.group, &resource.version, &resource.plural).is_some()
    }

    /// What a change is to this watcher depends on whether it could see the object before and after.
    fn change(&mut self, change: &Change) -> Option<Bytes> {
        if self.namespace.as_deref().is_some_and(|n| n != &*change.object.key.namespace) {
            return None;
        }
        let sees = |o: &Object| self.selector.matches(o);
        let before = change.previous.as_deref().filter(|o| sees(o));
        let after = !change.deleted && sees(&change.object);
        let event = match (before, after) {
            (None, true) => "ADDED",
            (Some(_), true) => "MODIFIED",
            (Some(_), false) if change.deleted => "DELETED",
            // It left the selection: as it was when it was last seen, at the revision of now.
            (Some(before), false) => return Some(self.line("DELETED", &before.at(change.revision))),
            (None, false) => return None,
        };
        // The first Table is of one watch alone; ages in a Table are of its moment.
        if self.call.accept.form == Form::Table
            && (self.table_header || chrono::Utc::now().timestamp() > change.object.written + 1)
        {
            return Some(self.line(event, &change.object));
        }
        let telling = Telling { event, view: self.view.clone() };
        Some(change.told.share(&telling, || self.line(event, &change.object)))
    }

    fn line(&mut self, event: &str, object: &Object) -> Bytes {
        let call = &self.call;
        let object = self.told.get(object);
        let object: Bytes = match call.accept.form {
            Form::Object => convert::bytes(&call.resource, object),
            Form::Metadata => respond::partial(&convert::value(&call.resource, object)).to_string().into(),
            Form::Table => {
                let value = convert::value(&call.resource, object);
                let mut table = respond::table(call, &[value], &object.revision.to_string(), None);
                if !std::mem::take(&mut self.table_header) {
                    table["columnDefinitions"] = Value::Null;
                }
                table.to_string().into()
            }
        };
        let mut line = Vec::with_capacity(object.len() + 32);
        line.extend_from_slice(b"{\"type\":\"");
        line.extend_from_slice(event.as_bytes());
        line.extend_from_slice(b"\",\"object\":");
        line.extend_from_slice(&object);
        line.extend_from_slice(b"}\n");
        line.into()
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
