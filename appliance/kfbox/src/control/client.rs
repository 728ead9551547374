//! The command line's side.

use super::ErrorBody;
use crate::{
    config::Config,
    failure::{Code, Failure},
};
use anyhow::Context;
use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    marker::PhantomData,
    path::{Path, PathBuf},
};

pub struct Client {
    data_dir: PathBuf,
}

impl Client {
    pub fn new(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned() }
    }

    /// True if a daemon answers.
    pub async fn is_running(&self) -> bool {
        self.get::<super::Status>("/v1/status").await.is_ok()
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.call(Method::DELETE, path, Bytes::new()).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.call(Method::POST, path, serde_json::to_vec(body)?.into()).await
    }

    /// Newline-separated JSON, as it comes.
    pub async fn lines<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<Lines<T>> {
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let body = self.send(method, path, body.into()).await?;
        Ok(Lines { body, buffer: BytesMut::new(), item: PhantomData })
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<T> {
        let bytes = self.send(method, path, body).await?.collect().await?.to_bytes();
        let bytes = if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes };
        serde_json::from_slice(&bytes).context("the daemon's answer cannot be read; is it of another version?")
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Incoming> {
        let socket = Config::control_socket(&self.data_dir);
        let stream = tokio::net::UnixStream::connect(&socket).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::PermissionDenied => Failure::new(
                Code::General,
                format!("{} may only be opened by its owner", socket.display()),
                "run the command as root (sudo)",
            ),
            _ => Failure::not_running(&self.data_dir),
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // The command line is its own owner: the connection ends with the process.
        #[expect(clippy::disallowed_methods, reason = "a client process has no task set to own it")]
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "kfbox")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let bytes = body.collect().await?.to_bytes();
        let error = serde_json::from_slice::<ErrorBody>(&bytes)
            .unwrap_or_else(|_| ErrorBody { error: format!("the daemon answered {status}"), next: String::new() });
        Err(Failure::new(Code::General, error.error, error.next).into())
    }
}

/// A stream of JSON lines.
pub struct Lines<T> {
    body: Incoming,
    buffer: BytesMut,
    item: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    pub async fn next(&mut self) -> anyhow::Result<Option<T>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}
