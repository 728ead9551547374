//! The answer to a list. Guarantee: what is stored as it is read goes out from the store's own bytes, a piece at a time
//! as the client takes them, so that a list costs memory for one piece however long it is. What must be made for the
//! answer (Tables, metadata, compression) is made in turns, so that others are served between them.

use crate::{convert, negotiate::Form, resources::Resource, respond, status::ApiError, store::Object, verbs::Call};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderValue, StatusCode, header};
use http_body::{Frame, SizeHint};
use serde_json::Value;
use std::{
    convert::Infallible,
    io::Write as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// Bytes made or handed out in one go: a few TLS records, well under a millisecond of work.
const PIECE: usize = 64 * 1024;

/// Objects made into rows in one turn.
const TURN: usize = 64;

const TAIL: &[u8] = b"]}\n";

/// `metadata` is the list's; `continued` its token and count again, for Tables.
pub async fn answer(
    call: &Call,
    objects: Vec<Arc<Object>>,
    metadata: &Value,
    revision: &str,
    continued: Option<(&str, Option<u64>)>,
) -> Result<Response, ApiError> {
    let head = match call.accept.form {
        Form::Object => open(&call.resource.list_kind, &call.resource.api_version(), metadata),
        Form::Metadata => open("PartialObjectMetadataList", "meta.k8s.io/v1", metadata),
        Form::Table => {
            let mut table = respond::table(call, &[], revision, continued);
            table.as_object_mut().and_then(|t| t.remove("rows"));
            let mut text = table.to_string();
            text.pop();
            text + ",\"rows\":["
        }
    };
    let weight: usize = objects.iter().map(|o| o.json.len() + 1).sum();
    let gzip = call.accept.gzip && !call.local && weight >= respond::GZIP_FROM;
    if call.accept.form == Form::Object && !gzip && !call.accept.yaml {
        let native = objects.iter().all(|o| convert::is_native(&call.resource, o));
        // A comma fewer than objects.
        let length = head.len() + TAIL.len() + weight - usize::from(!objects.is_empty());
        let body = Pieces {
            resource: call.resource.clone(),
            buffer: head.into_bytes(),
            ready: None,
            objects: objects.into_iter(),
            first: true,
            done: false,
            left: native.then_some(length as u64),
        };
        return Ok(finish(Body::new(body), false));
    }
    let body = gather(call, head, &objects, gzip && !call.accept.yaml).await?;
    if call.accept.yaml {
        return Ok(respond::json(call, StatusCode::OK, body));
    }
    Ok(finish(body.into(), gzip))
}

fn open(kind: &str, api_version: &str, metadata: &Value) -> String {
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":[")
}

fn finish(body: Body, gzip: bool) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

async fn gather(call: &Call, head: String, objects: &[Arc<Object>], gzip: bool) -> Result<Bytes, ApiError> {
    let mut plain = head.into_bytes();
    let mut packed = gzip.then(|| GzEncoder::new(Vec::new(), Compression::fast()));
    let mut first = true;
    for turn in objects.chunks(TURN) {
        items(call, turn, &mut plain, &mut first);
        if let Some(packed) = &mut packed {
            packed.write_all(&plain).map_err(ApiError::internal)?;
            plain.clear();
        }
        tokio::task::yield_now().await;
    }
    plain.extend_from_slice(TAIL);
    let Some(mut packed) = packed else { return Ok(plain.into()) };
    packed.write_all(&plain).map_err(ApiError::internal)?;
    Ok(packed.finish().map_err(ApiError::internal)?.into())
}

fn items(call: &Call, objects: &[Arc<Object>], out: &mut Vec<u8>, first: &mut bool) {
    let mut item = |bytes: &[u8]| {
        if !std::mem::take(first) {
            out.push(b',');
        }
        out.extend_from_slice(bytes);
    };
    match call.accept.form {
        Form::Object => objects.iter().for_each(|o| item(&convert::bytes(&call.resource, o))),
        Form::Metadata => objects.iter().for_each(|o| {
            item(respond::partial(&convert::value(&call.resource, o)).to_string().as_bytes());
        }),
        Form::Table => {
            let values: Vec<Value> = objects.iter().map(|o| convert::value(&call.resource, o)).collect();
            let table = respond::table(call, &values, "", None);
            table["rows"].as_array().into_iter().flatten().for_each(|row| item(row.to_string().as_bytes()));
        }
    }
}

/// A list's body out of the store's bytes.
struct Pieces {
    resource: Arc<Resource>,
    buffer: Vec<u8>,
    /// A large object, handed out as it is after what is in the buffer.
    ready: Option<Bytes>,
    objects: std::vec::IntoIter<Arc<Object>>,
    first: bool,
    done: bool,
    /// Bytes to come, where they are known.
    left: Option<u64>,
}

impl Pieces {
    fn next(&mut self) -> Option<Bytes> {
        if let Some(large) = self.ready.take() {
            return Some(large);
        }
        if self.done {
            return None;
        }
        while self.buffer.len() < PIECE {
            let Some(object) = self.objects.next() else {
                self.buffer.extend_from_slice(TAIL);
                self.done = true;
                break;
            };
            if !std::mem::take(&mut self.first) {
                self.buffer.push(b',');
            }
            let json = convert::bytes(&self.resource, &object);
            if json.len() >= PIECE {
                self.ready = Some(json);
                break;
            }
            self.buffer.extend_from_slice(&json);
        }
        let room = if self.done { 0 } else { PIECE };
        Some(std::mem::replace(&mut self.buffer, Vec::with_capacity(room)).into())
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let piece = this.next();
        if let (Some(left), Some(piece)) = (&mut this.left, &piece) {
            *left = left.saturating_sub(piece.len() as u64);
        }
        Poll::Ready(piece.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
