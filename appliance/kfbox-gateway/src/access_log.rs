//! A line for each request, in Apache's combined format with the route and the milliseconds after it
//! (<https://httpd.apache.org/docs/current/logs.html#combined>), which tools for web servers read.
//!
//! Guarantees: no query is recorded, for those of notebooks and of sign-ins carry secrets; what clients send cannot end a
//! line, nor a field; a request never waits for the log.

use crate::{front::Source, metrics::Route};
use axum::{body::Body, extract::Request, response::Response};
use bytes::Bytes;
use chrono::{DateTime, Local};
use http::{HeaderValue, Method, StatusCode, Uri, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use kfbox_base::journal::{Journal, Record, Room};
use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

/// Of what a client sent, this many bytes are recorded.
const LONGEST: usize = 1024;

/// A cloneable handle.
#[derive(Clone)]
pub(crate) struct AccessLog(Arc<Journal<Box<Line>>>);

impl AccessLog {
    pub fn open(path: &Path, room: Room) -> std::io::Result<Self> {
        Ok(Self(Arc::new(Journal::open("access-log", path, room)?)))
    }

    pub async fn flush(&self) {
        self.0.flush().await;
    }

    pub fn begin(&self, request: &Request, from: Source) -> Begun {
        let headers = request.headers();
        let line = Line {
            at: Local::now(),
            begun: Instant::now(),
            peer: from.peer,
            user: None,
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            status: StatusCode::OK,
            bytes: 0,
            took_ms: 0,
            referer: headers.get(header::REFERER).cloned(),
            agent: headers.get(header::USER_AGENT).cloned(),
            route: None,
        };
        Begun(self.clone(), Box::new(line))
    }
}

/// A line that lacks the answer.
pub(crate) struct Begun(AccessLog, Box<Line>);

struct Line {
    at: DateTime<Local>,
    begun: Instant,
    peer: Option<SocketAddr>,
    user: Option<String>,
    method: Method,
    uri: Uri,
    version: Version,
    status: StatusCode,
    /// Of the answer's body that were sent.
    bytes: u64,
    took_ms: u128,
    referer: Option<HeaderValue>,
    agent: Option<HeaderValue>,
    route: Option<Arc<Route>>,
}

impl Record for Box<Line> {
    fn write(&self, out: &mut Vec<u8>) {
        let mut text = String::new();
        match self.peer {
            Some(peer) => drop(write!(text, "{}", peer.ip().to_canonical())),
            None => text.push('-'),
        }
        text.push_str(" - ");
        match &self.user {
            Some(user) => escaped(&mut text, user.as_bytes(), b' '),
            None => text.push('-'),
        }
        let _ = write!(text, " [{}] \"", self.at.format("%d/%b/%Y:%H:%M:%S %z"));
        escaped(&mut text, self.method.as_str().as_bytes(), b' ');
        text.push(' ');
        escaped(&mut text, self.uri.path().as_bytes(), b' ');
        let _ = write!(text, " {:?}\" {} {} \"", self.version, self.status.as_u16(), self.bytes);
        field(&mut text, self.referer.as_ref().map(|v| before_query(v.as_bytes())));
        text.push_str("\" \"");
        field(&mut text, self.agent.as_ref().map(HeaderValue::as_bytes));
        let route = self.route.as_ref().map(|route| route.name()).filter(|name| !name.is_empty());
        let _ = writeln!(text, "\" {} {}", route.as_deref().unwrap_or("-"), self.took_ms);
        out.extend_from_slice(text.as_bytes());
    }
}

fn before_query(referer: &[u8]) -> &[u8] {
    referer.split(|b| matches!(b, b'?' | b'#')).next().unwrap_or_default()
}

fn field(out: &mut String, value: Option<&[u8]>) {
    match value {
        Some(value) => escaped(out, value, b'"'),
        None => out.push('-'),
    }
}

/// As nginx writes it: quotes, backslashes, what is not printable, and `end` are in hexadecimal.
fn escaped(out: &mut String, value: &[u8], end: u8) {
    for byte in value.iter().take(LONGEST) {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => drop(write!(out, "\\x{byte:02X}")),
            byte if *byte == end => drop(write!(out, "\\x{byte:02X}")),
            byte => out.push(char::from(*byte)),
        }
    }
}

/// An answer's body that is counted; its line is written when it ends, or when the client is gone.
pub(crate) struct Counted {
    body: Body,
    bytes: u64,
    line: Option<Begun>,
}

impl Counted {
    pub fn wrap(response: Response, begun: Begun, user: Option<String>, route: &Arc<Route>) -> Response {
        let Begun(log, mut line) = begun;
        line.user = user;
        line.status = response.status();
        line.route = Some(route.clone());
        response.map(|body| Body::new(Self { body, bytes: 0, line: Some(Begun(log, line)) }))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(Begun(log, mut line)) = self.line.take() {
            line.bytes = self.bytes;
            line.took_ms = line.begun.elapsed().as_millis();
            log.0.record(line);
        }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.bytes += data.len() as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(uri: &str, referer: &[u8], agent: &[u8], user: Option<&str>) -> String {
        let line = Box::new(Line {
            at: DateTime::parse_from_rfc3339("2026-11-23T04:05:06Z").unwrap().into(),
            begun: Instant::now(),
            peer: Some("[::ffff:127.0.0.1]:99".parse().unwrap()),
            user: user.map(str::to_owned),
            method: Method::GET,
            uri: uri.parse().unwrap(),
            version: Version::HTTP_11,
            status: StatusCode::NOT_FOUND,
            bytes: 12,
            took_ms: 3,
            referer: HeaderValue::from_bytes(referer).ok(),
            agent: HeaderValue::from_bytes(agent).ok(),
            route: None,
        });
        let mut out = Vec::new();
        line.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_as_web_servers_write_them_and_hold_no_secrets() {
        let text = line("/lab/tree?token=secret", b"http://box/x?code=secret", b"curl/8", Some("a@b"));
        let (head, tail) = (text.split_once('[').unwrap().0, text.split_once(']').unwrap().1);
        assert_eq!(head, "127.0.0.1 - a@b ");
        assert_eq!(tail, " \"GET /lab/tree HTTP/1.1\" 404 12 \"http://box/x\" \"curl/8\" - 3\n");
        assert!(text.contains("/Nov/2026:"), "{text}");
        let text = line("/", b"", b"evil\" 200 \\ \xff", Some("two words\n"));
        assert!(text.ends_with("\"evil\\x22 200 \\x5C \\xFF\" - 3\n"), "{text}");
        assert!(text.contains(" two\\x20words\\x0A ["), "{text}");
        assert_eq!(text.lines().count(), 1);
        let long = line("/", &[b'x'; 5000], b"", None);
        assert!(long.len() < 2 * LONGEST);
    }
}
