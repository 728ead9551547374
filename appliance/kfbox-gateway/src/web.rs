//! A small HTTP client for what identity needs of other servers: discovery documents, keys, and forms to token
//! endpoints. Guarantees: no redirect is followed, answers are bounded, every wait has an end, TLS 1.2 and 1.3 only.

use axum::body::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde_json::Value;
use std::{path::Path, sync::Arc, time::Duration};
use url::Url;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A discovery document or key set is some kilobytes.
const LARGEST_ANSWER: usize = 1 << 20;

/// Where distributions keep the certificate authorities; the first that exists is used.
const CA_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

#[derive(Debug, thiserror::Error)]
pub enum WebError {
    #[error("the certificate authorities cannot be read: {0}")]
    Authorities(String),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("{0} is not an address that can be asked")]
    Address(String),
    #[error("{host} cannot be reached: {reason}")]
    Unreachable { host: String, reason: String },
    #[error("{0} did not answer in time")]
    Timeout(String),
    #[error("{host} answered {status}")]
    Status { host: String, status: StatusCode },
    #[error("{0} sent something that is no JSON, or too long")]
    Answer(String),
}

/// The certificate authorities that the machine trusts.
pub fn machine_authorities() -> Result<RootCertStore, WebError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = CA_BUNDLES.iter().map(Path::new).find(|p| p.exists()) {
        let certificates = CertificateDer::pem_file_iter(path).map_err(|e| WebError::Authorities(e.to_string()))?;
        roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    }
    Ok(roots)
}

/// Those in a PEM file, of which there must be one.
pub fn authorities_in(pem: &[u8]) -> Result<RootCertStore, WebError> {
    let mut roots = RootCertStore::empty();
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
    match roots.add_parsable_certificates(certificates).0 {
        0 => Err(WebError::Authorities("no certificate was found in what was given".into())),
        _ => Ok(roots),
    }
}

/// TLS 1.2 and 1.3 to servers whose certificates these authorities signed.
pub fn client_tls(roots: RootCertStore) -> Result<rustls::ClientConfig, WebError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[derive(Clone)]
pub struct WebClient(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl WebClient {
    /// Trusts the machine's certificate authorities, and those in `more` (PEM).
    pub fn new(more: Option<&[u8]>) -> Result<Self, WebError> {
        let mut roots = machine_authorities()?;
        if let Some(pem) = more {
            roots.roots.extend(authorities_in(pem)?.roots);
        }
        let tls = client_tls(roots)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        // Few requests, far apart: idle connections would only cost memory.
        Ok(Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector)))
    }

    /// A document that must be there.
    pub async fn get(&self, url: &Url) -> Result<Value, WebError> {
        let (status, body) = self.send(Method::GET, url, None, None).await?;
        if status != StatusCode::OK {
            return Err(WebError::Status { host: host(url), status });
        }
        serde_json::from_slice(&body).map_err(|_| WebError::Answer(host(url)))
    }

    /// A form, with the client's credentials in a Basic header if it has a secret. Errors of OAuth 2.0 are answers too;
    /// an empty body is `null`.
    pub async fn post(
        &self,
        url: &Url,
        pairs: &[(&str, &str)],
        basic: Option<(&str, &str)>,
    ) -> Result<(StatusCode, Value), WebError> {
        let form = serde_urlencoded::to_string(pairs).unwrap_or_default();
        let (status, body) = self.send(Method::POST, url, Some(form), basic).await?;
        if body.is_empty() {
            return Ok((status, Value::Null));
        }
        serde_json::from_slice(&body).map(|value| (status, value)).map_err(|_| WebError::Answer(host(url)))
    }

    async fn send(
        &self,
        method: Method,
        url: &Url,
        form: Option<String>,
        basic: Option<(&str, &str)>,
    ) -> Result<(StatusCode, Bytes), WebError> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let mut request =
            Request::builder().method(method).uri(url.as_str()).header(header::ACCEPT, "application/json");
        if form.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        if let Some((id, secret)) = basic {
            let encode = crate::sign_in::encode;
            let pair = STANDARD.encode(format!("{}:{}", encode(id), encode(secret)));
            request = request.header(header::AUTHORIZATION, format!("Basic {pair}"));
        }
        let request = request
            .body(Full::new(Bytes::from(form.unwrap_or_default())))
            .map_err(|_| WebError::Address(url.to_string()))?;
        let response = self.exchange(request).await?;
        Ok((response.status(), response.into_body()))
    }

    /// One request as it stands, and its whole answer.
    pub(crate) async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, WebError> {
        let host = request.uri().host().unwrap_or("the server").to_owned();
        let work = async {
            let unreachable = |reason: String| WebError::Unreachable { host: host.clone(), reason };
            let response = self.0.request(request).await.map_err(|e| unreachable(causes(&e)))?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, LARGEST_ANSWER).collect().await;
            let body = body.map_err(|_| WebError::Answer(host.clone()))?.to_bytes();
            Ok(Response::from_parts(parts, body))
        };
        tokio::time::timeout(ANSWER_TIMEOUT, work).await.unwrap_or_else(|_| Err(WebError::Timeout(host.clone())))
    }
}

fn host(url: &Url) -> String {
    url.host_str().unwrap_or("the server").to_owned()
}

/// The whole chain in one line: the outermost error alone says only "client error".
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
