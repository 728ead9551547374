//! The platform's web routes, as the signed-in user of a personal token sees them.

use crate::{
    control::Status,
    failure::{Code, Failure},
};
use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A run of thousands of steps is a few MiB.
const LARGEST_ANSWER: usize = 256 << 20;

pub struct Web {
    address: String,
    host: String,
    token: String,
}

impl Web {
    pub fn new(status: &Status, token: String) -> anyhow::Result<Self> {
        // With TLS, the listener for pods, which this machine reaches without leaving it: nothing to trust is needed.
        let listener = if status.url.starts_with("https:") { "gateway-for-pods" } else { "gateway" };
        let address = status.addresses.get(listener).context("the box names no address of its gateway")?.clone();
        let host = status.url.split("://").nth(1).unwrap_or(&address).trim_end_matches('/').to_owned();
        Ok(Self { address, host, token })
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.json(Method::GET, path, Bytes::new()).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> anyhow::Result<T> {
        self.json(Method::POST, path, serde_json::to_vec(body)?.into()).await
    }

    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.json(Method::DELETE, path, Bytes::new()).await
    }

    async fn json<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<T> {
        let response = self.send(method, path, body).await?;
        let bytes = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        let bytes = bytes.map_err(|e| anyhow::anyhow!("the answer cannot be read: {e}"))?.to_bytes();
        serde_json::from_slice(&bytes).context("the answer is no JSON")
    }

    /// The answer if it is a good one; else what it says.
    pub async fn send(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Response<Incoming>> {
        let stream = tokio::net::TcpStream::connect(&self.address).await;
        let stream = stream.with_context(|| format!("cannot reach the gateway at {}", self.address))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        #[expect(clippy::disallowed_methods, reason = "a client process has no task set to own it")]
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.host)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        let bytes = bytes.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let said: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let why = ["message", "error_message", "error"].iter().find_map(|name| said.get(name)?.as_str());
        let why = why.map_or_else(|| format!("the platform answered {status}"), str::to_owned);
        Err(Failure::new(Code::General, why, "").into())
    }
}
