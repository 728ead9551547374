//! The ACME library's way to the server, over the gateway's own HTTP client: bounded answers, an end to every wait, and
//! TLS always (RFC 8555 section 6.1).

use crate::web::{WebClient, WebError};
use axum::body::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use parking_lot::Mutex;
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

/// A server that asks for more patience than this gets this much.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone)]
pub(super) struct Client {
    web: WebClient,
    /// Until when the server has asked to be left alone.
    pause: Arc<Mutex<Option<Instant>>>,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0} is no https address")]
    Plain(String),
    #[error("{host} answered {status}, which is no answer of ACME")]
    NoProblem { host: String, status: http::StatusCode },
    #[error(transparent)]
    Web(#[from] WebError),
}

impl Client {
    pub fn new(web: WebClient) -> Self {
        Self { web, pause: Arc::default() }
    }

    /// What is left of the pause that the server asked for when it refused; forgotten by asking.
    pub fn take_pause(&self) -> Option<Duration> {
        self.pause.lock().take().map(|until| until.saturating_duration_since(Instant::now()))
    }

    async fn send(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Trouble> {
        if request.uri().scheme_str() != Some("https") {
            return Err(Trouble::Plain(request.uri().to_string()));
        }
        let host = request.uri().host().unwrap_or_default().to_owned();
        let (parts, body) = request.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(never) => match never {},
        };
        let response = self.web.exchange(Request::from_parts(parts, Full::new(body))).await?;
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            if let Some(seconds) = seconds_to_wait(response.headers()) {
                *self.pause.lock() = Some(Instant::now() + seconds.min(LONGEST_PAUSE));
            }
            let kind = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
            // A page of a proxy in between would be told as an error in JSON.
            if !kind.contains("json") {
                return Err(Trouble::NoProblem { host, status });
            }
        }
        let (parts, body) = response.into_parts();
        Ok(BytesResponse { parts, body: Box::new(body) })
    }
}

fn seconds_to_wait(headers: &http::HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = chrono::DateTime::parse_from_rfc2822(value).ok()?;
    (at.to_utc() - chrono::Utc::now()).to_std().ok()
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let sending = self.clone().send(request);
        Box::pin(async move { sending.await.map_err(|trouble| Error::Other(Box::new(trouble))) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_read_in_both_of_its_forms() {
        let wait = |value: &str| {
            let mut headers = http::HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value.parse().unwrap());
            seconds_to_wait(&headers)
        };
        assert_eq!(wait("120"), Some(Duration::from_secs(120)));
        let date = (chrono::Utc::now() + chrono::Duration::minutes(5)).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        assert!(wait(&date).is_some_and(|d| d > Duration::from_secs(200) && d <= Duration::from_secs(300)), "{date}");
        for nothing in ["soon", "-5", "Fri, 31 Dec 1999 23:59:59 GMT"] {
            assert_eq!(wait(nothing), None, "{nothing}");
        }
    }
}
