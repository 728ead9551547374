//! Requests to the index and its file hosts. Guarantees: credentials of the index URL go to the index's own host and
//! port only; a redirect never leads from https to http; every wait has an end.

use axum::body::Bytes;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use url::Url;

const REDIRECTS: usize = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the headers of an answer; an index that builds a long page may take some seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest project page: the longest on PyPI are some 20 MiB.
const PAGE_LIMIT: usize = 64 << 20;

/// Where distributions keep the certificate authorities; the first that exists is used.
const CA_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
];

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("the file of certificate authorities {path}: {reason}")]
    Authorities { path: PathBuf, reason: String },
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("{host} cannot be reached: {reason}")]
    Unreachable { host: String, reason: String },
    #[error("{host} did not answer in time")]
    Timeout { host: String },
    #[error("{host} answered {status}")]
    Status { host: String, status: StatusCode },
    #[error("{host} leads to an address that is not followed")]
    Redirect { host: String },
    #[error("{host} sent a page that is too long or broken: {reason}")]
    Page { host: String, reason: String },
}

impl FetchError {
    /// The index does not have it, as opposed to not answering.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Status { status: StatusCode::NOT_FOUND | StatusCode::GONE, .. })
    }
}

pub struct Fetcher {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    /// Origin and header value of the index's credentials.
    credentials: Option<(url::Origin, HeaderValue)>,
}

/// A page, or word that the one we have is still right.
pub enum Page {
    Fresh { body: Bytes, content_type: String, etag: Option<String>, url: Url },
    Unchanged,
}

impl Fetcher {
    pub fn new(index: &Url, ca_bundle: Option<&Path>) -> Result<Self, FetchError> {
        let mut roots = RootCertStore::empty();
        if index.scheme() == "https" || ca_bundle.is_some() {
            let system = || CA_BUNDLES.iter().map(Path::new).find(|p| p.exists());
            let path = ca_bundle.or_else(system).unwrap_or(Path::new(CA_BUNDLES[0]));
            let failed = |reason: String| FetchError::Authorities { path: path.to_owned(), reason };
            let certificates = CertificateDer::pem_file_iter(path).map_err(|e| failed(e.to_string()))?;
            let (added, _) = roots.add_parsable_certificates(certificates.filter_map(Result::ok));
            if added == 0 {
                return Err(failed("it holds no certificate".into()));
            }
        }
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        // Idle connections cost memory on a box that mostly sits still.
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(15))
            .pool_max_idle_per_host(4)
            .build(connector);
        let credentials = (!index.username().is_empty()).then(|| {
            let plain = |t: &str| percent_encoding::percent_decode_str(t).decode_utf8_lossy().into_owned();
            let pair = format!("{}:{}", plain(index.username()), plain(index.password().unwrap_or("")));
            let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair)))
                .unwrap_or(HeaderValue::from_static(""));
            value.set_sensitive(true);
            (index.origin(), value)
        });
        Ok(Self { client, credentials })
    }

    /// An open answer with status 200, or 304 when an entity tag was sent.
    async fn open(
        &self,
        url: &Url,
        accept: &'static str,
        etag: Option<&str>,
    ) -> Result<(hyper::Response<Incoming>, Url), FetchError> {
        self.open_within(url, accept, etag, &|_| true).await
    }

    async fn open_within(
        &self,
        url: &Url,
        accept: &'static str,
        etag: Option<&str>,
        allowed: &(dyn Fn(&Url) -> bool + Send + Sync),
    ) -> Result<(hyper::Response<Incoming>, Url), FetchError> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS {
            let host = url.host_str().unwrap_or("?").to_owned();
            let mut plain = url.clone();
            // Credentials travel in the header, never in the request line.
            let _ = plain.set_username("");
            let _ = plain.set_password(None);
            plain.set_fragment(None);
            let mut request = Request::get(plain.as_str())
                .header(header::ACCEPT, accept)
                .header(header::USER_AGENT, concat!("kfbox/", env!("CARGO_PKG_VERSION"), " (package cache)"));
            // Files come as they are: their hash is of the bytes stored, not of an encoding.
            request = request.header(header::ACCEPT_ENCODING, if accept == "*/*" { "identity" } else { "gzip" });
            if let Some(etag) = etag {
                request = request.header(header::IF_NONE_MATCH, etag);
            }
            if let Some((_, value)) = self.credentials.as_ref().filter(|(origin, _)| *origin == url.origin()) {
                request = request.header(header::AUTHORIZATION, value.clone());
            }
            let request = request
                .body(Empty::new())
                .map_err(|e| FetchError::Unreachable { host: host.clone(), reason: e.to_string() })?;
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.client.request(request))
                .await
                .map_err(|_| FetchError::Timeout { host: host.clone() })?
                .map_err(|e| FetchError::Unreachable { host: host.clone(), reason: reason(&e) })?;
            let status = answer.status();
            if status == StatusCode::OK || (status == StatusCode::NOT_MODIFIED && etag.is_some()) {
                return Ok((answer, url));
            }
            if !status.is_redirection() {
                return Err(FetchError::Status { host, status });
            }
            let next =
                answer.headers().get(header::LOCATION).and_then(|v| v.to_str().ok()).and_then(|l| url.join(l).ok());
            url = next.filter(|n| may_follow(&url, n) && allowed(n)).ok_or(FetchError::Redirect { host })?;
        }
        Err(FetchError::Redirect { host: url.host_str().unwrap_or("?").to_owned() })
    }

    pub async fn page(&self, url: &Url, etag: Option<&str>) -> Result<Page, FetchError> {
        const ACCEPT: &str =
            "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1";
        let (answer, url) = self.open(url, ACCEPT, etag).await?;
        if answer.status() == StatusCode::NOT_MODIFIED {
            return Ok(Page::Unchanged);
        }
        let host = url.host_str().unwrap_or("?").to_owned();
        let text = |name| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let content_type = text(header::CONTENT_TYPE).unwrap_or_default();
        let (etag, encoding) = (text(header::ETAG), text(header::CONTENT_ENCODING));
        let failed = |reason: String| FetchError::Page { host: host.clone(), reason };
        let body = tokio::time::timeout(ANSWER_TIMEOUT, Limited::new(answer.into_body(), PAGE_LIMIT).collect())
            .await
            .map_err(|_| FetchError::Timeout { host: host.clone() })?
            .map_err(|e| failed(e.to_string()))?
            .to_bytes();
        let body = match encoding.as_deref() {
            None | Some("identity") => body,
            Some("gzip") => gunzip(&body).map_err(|e| failed(e.to_string()))?,
            Some(other) => return Err(failed(format!("the encoding {other} was not asked for"))),
        };
        Ok(Page::Fresh { body, content_type, etag, url })
    }

    /// The open body of a file, and its length when told.
    pub async fn file(&self, url: &Url) -> Result<(Incoming, Option<u64>), FetchError> {
        let (answer, _) = self.open(url, "*/*", None).await?;
        let length = answer.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        Ok((answer.into_body(), length))
    }
}

/// A file of at most `limit` bytes, from where `allowed` says, redirects included.
pub async fn small_file(
    url: &Url,
    ca_bundle: Option<&Path>,
    limit: usize,
    allowed: &(dyn Fn(&Url) -> bool + Send + Sync),
) -> Result<Bytes, FetchError> {
    let host = url.host_str().unwrap_or("?").to_owned();
    if !allowed(url) {
        return Err(FetchError::Redirect { host });
    }
    let (answer, _) = Fetcher::new(url, ca_bundle)?.open_within(url, "*/*", None, allowed).await?;
    tokio::time::timeout(ANSWER_TIMEOUT, Limited::new(answer.into_body(), limit).collect())
        .await
        .map_err(|_| FetchError::Timeout { host: host.clone() })?
        .map(http_body_util::Collected::to_bytes)
        .map_err(|e| FetchError::Page { host, reason: e.to_string() })
}

fn may_follow(from: &Url, to: &Url) -> bool {
    matches!((from.scheme(), to.scheme()), ("https", "https") | ("http", "http" | "https"))
}

fn gunzip(body: &[u8]) -> std::io::Result<Bytes> {
    use std::io::Read as _;
    let mut out = Vec::new();
    let limit = u64::try_from(PAGE_LIMIT).unwrap_or(u64::MAX);
    let read = flate2::read::MultiGzDecoder::new(body).take(limit + 1).read_to_end(&mut out)?;
    if read > PAGE_LIMIT {
        return Err(std::io::Error::other("the page is too long when unpacked"));
    }
    Ok(out.into())
}

/// The innermost cause says what happened ("connection refused"); the outer ones say "client error".
fn reason(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_do_not_leave_tls_or_http() {
        let ok = |a: &str, b: &str| may_follow(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(ok("https://a/", "https://b/") && ok("http://a/", "https://a/"));
        assert!(!ok("https://a/", "http://a/") && !ok("https://a/", "file:///etc/passwd"));
    }

    #[test]
    fn an_unpacked_page_has_a_limit() {
        use std::io::Write as _;
        let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        let zeros = vec![0; 1 << 20];
        for _ in 0..=64 {
            bomb.write_all(&zeros).unwrap();
        }
        assert!(gunzip(&bomb.finish().unwrap()).is_err());
    }
}
