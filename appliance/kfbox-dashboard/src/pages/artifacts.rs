//! Bytes of users: logs, downloads, previews.
//!
//! Guarantees: what users made is never run or shown as HTML by a browser at this address: downloads are attachments of
//! no type, images are sniffed and sandboxed, text is escaped.

use super::{User, render::plain_error};
use crate::{Deps, data::DataError, format};
use askama::Template;
use axum::{
    Extension,
    body::Body,
    extract::{Path, Query as Asked, State},
    response::{Html, IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use http::{HeaderValue, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

/// Text shown in a preview.
const PREVIEW: usize = 64 << 10;
/// Images larger than this are only offered for download.
const IMAGE: u64 = 16 << 20;

#[derive(Deserialize, Default)]
pub(super) struct How {
    #[serde(default)]
    follow: String,
    #[serde(default)]
    inline: String,
}

pub(super) async fn log(
    Extension(user): User,
    State(deps): State<Deps>,
    Path((run, node)): Path<(String, String)>,
    Asked(how): Asked<How>,
) -> Response {
    match deps.data.log(&user, &run, &node, !how.follow.is_empty()).await {
        Ok(stream) => {
            let shutdown = deps.shutdown.clone();
            let body = Body::from_stream(stream.take_until(async move { shutdown.cancelled().await }));
            let headers = [
                (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
                (header::CACHE_CONTROL, "no-store"),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            ];
            (headers, body).into_response()
        }
        Err(error) => plain_error(&error),
    }
}

/// What RFC 8187 lets stand unencoded in a file name.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

pub(super) async fn download(
    Extension(user): User,
    State(deps): State<Deps>,
    Path((run, artifact)): Path<(String, String)>,
    Asked(how): Asked<How>,
) -> Response {
    let content = match deps.data.artifact(&user, &run, &artifact).await {
        Ok(content) => content,
        Err(error) => return plain_error(&error),
    };
    let mut body = content.body;
    let mut first = Bytes::new();
    let mut image = None;
    if !how.inline.is_empty() {
        first = match body.next().await.transpose() {
            Ok(chunk) => chunk.unwrap_or_default(),
            Err(error) => return plain_error(&error),
        };
        image = image_type(&first);
    }
    let mut response = Body::from_stream(stream::once(async { Ok::<_, DataError>(first) }).chain(body)).into_response();
    let headers = response.headers_mut();
    let disposition = format!("attachment; filename*=UTF-8''{}", utf8_percent_encode(&content.file_name, NAME));
    match image {
        Some(kind) => drop(headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind))),
        None => {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            if let Ok(value) = HeaderValue::from_str(&disposition) {
                headers.insert(header::CONTENT_DISPOSITION, value);
            }
        }
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    if let Some(size) = content.size {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    }
    response
}

/// Pictures by their first bytes. Not SVG: it is a program.
fn image_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

#[derive(Template)]
#[template(path = "preview.html")]
struct Preview {
    image: String,
    text: String,
    alt: String,
    note: String,
}

pub(super) async fn preview(
    Extension(user): User,
    State(deps): State<Deps>,
    Path((run, artifact)): Path<(String, String)>,
) -> Response {
    let content = match deps.data.artifact(&user, &run, &artifact).await {
        Ok(content) => content,
        Err(error) => return plain_error(&error),
    };
    let mut bytes = BytesMut::new();
    let mut body = content.body;
    while bytes.len() <= PREVIEW {
        match body.next().await {
            Some(Ok(chunk)) => bytes.extend_from_slice(&chunk),
            Some(Err(error)) => return plain_error(&error),
            None => break,
        }
    }
    let size = content.size.map(format::size).unwrap_or_default();
    let mut shown = Preview { image: String::new(), text: String::new(), alt: content.file_name, note: String::new() };
    let small = content.size.is_none_or(|s| s <= IMAGE);
    if image_type(&bytes).is_some() && small {
        let encode = super::render::encode;
        shown.image = format!("/runs/{}/artifacts/{}?inline=1", encode(&run), encode(&artifact));
    } else if let Some((text, cut)) = as_text(&bytes) {
        shown.text = text;
        if cut {
            shown.note = format!("The first {} of {size}.", format::size(PREVIEW as u64));
        } else if shown.text.is_empty() {
            shown.note = "The artifact is empty.".into();
        }
    } else {
        shown.note = format!(
            "No preview for this kind of data{}. Download it instead.",
            if size.is_empty() { size } else { format!(" ({size})") }
        );
    }
    match shown.render() {
        Ok(text) => Html(text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Text if it is text, and whether it was cut.
fn as_text(bytes: &[u8]) -> Option<(String, bool)> {
    let cut = bytes.len() > PREVIEW;
    let bytes = &bytes[..bytes.len().min(PREVIEW)];
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        // A character may be cut in two at the end, nowhere else.
        Err(error) if cut && error.error_len().is_none() => std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    let binary = text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{1b}'));
    (!binary).then(|| (text.to_owned(), cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_told_from_data() {
        assert_eq!(as_text(b"a,b\n1,2\n"), Some(("a,b\n1,2\n".into(), false)));
        assert_eq!(as_text(b"\x80\x04\x95"), None);
        assert_eq!(as_text(b"a\0b"), None);
        let long = "ä".repeat(PREVIEW);
        let (text, cut) = as_text(&long.as_bytes()[..=PREVIEW + 1]).unwrap();
        assert!(cut && text.len() <= PREVIEW && text.ends_with('ä'));
        assert_eq!(image_type(b"<svg xmlns"), None);
    }
}
