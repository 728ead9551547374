//! Calls to webhooks, those of admission and those that convert: HTTPS to a URL or a Service, with what Go's client says
//! when it fails, since that is what people search for.
//!
//! Guarantees: a call ends in its time and reads no more than it was allowed; the server proves that it is who the
//! configuration means, by the bundle given there or else the system's authorities. No credentials are sent. A request is
//! sent a second time only if nothing of it was sent the first time.
//! Upstream: apiserver `pkg/util/webhook/client.go`.

mod pool;

use crate::{
    server::Core,
    store::{Key, Object},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_rustls::ConfigBuilderExt as _;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use pool::{Address, Line, Pool};
use rustls::{
    CertificateError, ClientConfig as TlsConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use serde::Deserialize;
use serde_json::Value;
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use x509_parser::prelude::FromDer as _;

/// How a configuration says where its webhook is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientConfig {
    pub url: Option<String>,
    pub service: Option<ServiceReference>,
    /// PEM in base64.
    pub ca_bundle: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceReference {
    pub namespace: String,
    pub name: String,
    pub path: Option<String>,
    pub port: Option<u16>,
}

/// What a call may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub time: Duration,
    /// Bytes of the answer.
    pub answer: usize,
}

/// Why a call gave no answer; the text of Go's client.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    #[error("Post {url:?}: {why}")]
    Unreachable { url: String, why: String },
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Configuration(String),
}

/// One webhook's address and how its server is verified. Connections are kept, sessions of TLS are resumed.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    tls: Mutex<Option<Arc<TlsConfig>>>,
    pool: Pool,
}

/// Where a call goes.
struct Place {
    /// As it is told in errors.
    url: String,
    /// In the request and in the certificate.
    host: String,
    server: String,
    port: u16,
    path: String,
}

impl Client {
    pub fn new(config: ClientConfig) -> Self {
        Self { config, tls: Mutex::new(None), pool: Pool::default() }
    }

    /// Posts JSON and reads the answer of a success.
    pub async fn post(&self, core: &Core, body: Vec<u8>, bounds: Bounds) -> Result<Bytes, CallError> {
        let place = self.place(bounds.time)?;
        let tls = self.tls().map_err(CallError::Configuration)?;
        let unreachable = |why: String| CallError::Unreachable { url: place.url.clone(), why };
        let exchange = async {
            let (host, port) = match &self.config.service {
                Some(service) => resolve(core, service).map_err(unreachable)?,
                None => (place.server.clone(), place.port),
            };
            self.exchange(core, &place, (host, port), tls, body.into(), bounds.answer).await.map_err(|failure| {
                match failure {
                    Failure::Network(why) | Failure::Unsent(why) => unreachable(why),
                    Failure::Answer(why) => CallError::Refused(why),
                }
            })
        };
        tokio::time::timeout(bounds.time, exchange)
            .await
            .unwrap_or_else(|_| Err(unreachable("context deadline exceeded".to_owned())))
    }

    async fn exchange(
        &self,
        core: &Core,
        place: &Place,
        to: Address,
        tls: Arc<TlsConfig>,
        body: Bytes,
        limit: usize,
    ) -> Result<Bytes, Failure> {
        while let Some(mut line) = self.pool.take(&to).await {
            let answer = ask(&mut line, place, body.clone(), limit).await;
            if !matches!(answer, Err(Failure::Unsent(_))) {
                self.pool.put(core, line);
                return answer;
            }
        }
        let mut line = connect(place, to, tls).await?;
        let answer = ask(&mut line, place, body, limit).await;
        self.pool.put(core, line);
        answer
    }

    fn place(&self, time: Duration) -> Result<Place, CallError> {
        let query = format!("timeout={}s", time.as_secs().max(1));
        if let Some(service) = &self.config.service {
            let server = format!("{}.{}.svc", service.name, service.namespace);
            let port = service.port.unwrap_or(443);
            let path = service.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
            let host = format!("{server}:{port}");
            let path = format!("{}{path}?{query}", if path.starts_with('/') { "" } else { "/" });
            return Ok(Place { url: format!("https://{host}{path}"), host, server, port, path });
        }
        let bad = |why: &str| CallError::Configuration(format!("Unparsable URL: {why}"));
        let url = self.config.url.as_deref().unwrap_or_default();
        if url.is_empty() {
            return Err(CallError::Configuration("webhook configuration must have either service or URL".to_owned()));
        }
        let uri: Uri = url.parse().map_err(|_| bad(url))?;
        let (Some("https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(bad(url)) };
        let host = authority.as_str().rsplit('@').next().unwrap_or_default().to_owned();
        let server = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let path = match uri.path_and_query() {
            Some(path) if path.query().is_some() => format!("{path}&{query}"),
            Some(path) => format!("{path}?{query}"),
            None => format!("/?{query}"),
        };
        Ok(Place {
            url: format!("https://{host}{path}"),
            host,
            server,
            port: authority.port_u16().unwrap_or(443),
            path,
        })
    }

    fn tls(&self) -> Result<Arc<TlsConfig>, String> {
        let mut made = self.tls.lock();
        if let Some(tls) = &*made {
            return Ok(tls.clone());
        }
        let tls = Arc::new(tls_config(self.config.ca_bundle.as_deref())?);
        *made = Some(tls.clone());
        Ok(tls)
    }
}

fn tls_config(bundle: Option<&str>) -> Result<TlsConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = TlsConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let bundle = bundle.map(|text| STANDARD.decode(text).unwrap_or_default()).unwrap_or_default();
    let mut config = if bundle.trim_ascii().is_empty() {
        builder.with_native_roots().map_err(|error| format!("no system roots: {error}"))?.with_no_client_auth()
    } else {
        let no_ca = || "unable to load root certificates: unable to parse bytes as PEM block".to_owned();
        let trusted: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&bundle).collect::<Result<_, _>>().map_err(|_| no_ca())?;
        let mut roots = RootCertStore::empty();
        for certificate in &trusted {
            roots.add(certificate.clone()).map_err(|_| no_ca())?;
        }
        if roots.is_empty() {
            return Err(no_ca());
        }
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| error.to_string())?;
        let verifier = Arc::new(Verifier { inner, trusted, provider });
        builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The usual checks, and beside them Go's: a certificate that is itself in the bundle is trusted, though it may call
/// itself an authority. That is what `openssl req -x509` makes, so what many webhooks serve with.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let usual = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let Err(error) = usual else { return usual };
        if !self.trusted.iter().any(|trusted| **trusted == **end_entity) {
            return Err(error);
        }
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(end_entity)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < parsed.validity.not_before.timestamp() || now > parsed.validity.not_after.timestamp() {
            return Err(rustls::Error::InvalidCertificate(CertificateError::Expired));
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

enum Failure {
    Network(String),
    /// The connection ended before anything was sent on it.
    Unsent(String),
    Answer(String),
}

async fn connect(place: &Place, to: Address, tls: Arc<TlsConfig>) -> Result<Line, Failure> {
    let network = Failure::Network;
    let address = if to.0.contains(':') { format!("[{}]:{}", to.0, to.1) } else { format!("{}:{}", to.0, to.1) };
    let stream = TcpStream::connect((to.0.as_str(), to.1)).await.map_err(|error| {
        network(match error.kind() {
            std::io::ErrorKind::ConnectionRefused => format!("dial tcp {address}: connect: connection refused"),
            _ => format!("dial tcp {address}: {error}"),
        })
    })?;
    // Without it a small request may wait for the acknowledgement of the one before.
    drop(stream.set_nodelay(true));
    let name = ServerName::try_from(place.server.clone())
        .map_err(|_| network(format!("{:?} is no name of a server", place.server)))?;
    let stream = tokio_rustls::TlsConnector::from(tls)
        .connect(name, stream)
        .await
        .map_err(|error| network(handshake_error(&error, &place.server)))?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| network(error.to_string()))?;
    Ok(Line { to, sender, connection, used: tokio::time::Instant::now() })
}

async fn ask(line: &mut Line, place: &Place, body: Bytes, limit: usize) -> Result<Bytes, Failure> {
    let network = Failure::Network;
    let request = Request::builder()
        .method(Method::POST)
        .uri(&place.path)
        .header(header::HOST, &place.host)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json, */*")
        .header(header::USER_AGENT, "kube-apiserver-admission")
        .body(Full::new(body))
        .map_err(|error| network(error.to_string()))?;
    let Line { sender, connection, .. } = line;
    let answering = async {
        let response = sender.try_send_request(request).await.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            let why = broken(&error.into_error());
            if unsent { Failure::Unsent(why) } else { network(why) }
        })?;
        let status = response.status();
        let body = match Limited::new(response.into_body(), limit).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(Failure::Answer(format!("the response body is longer than {limit} bytes")));
            }
            Err(error) => return Err(network(format!("the response broke off: {error}"))),
        };
        if status.is_success() { Ok(body) } else { Err(Failure::Answer(refusal(status, &body))) }
    };
    // The connection is driven here: it ends with the request or waits for the next, and no task is left behind.
    let mut answering = std::pin::pin!(answering);
    let mut open = true;
    loop {
        tokio::select! {
            answer = &mut answering => return answer,
            _ = &mut *connection, if open => open = false,
        }
    }
}

fn broken(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return "EOF".to_owned();
    }
    format!("malformed HTTP response: {error}")
}

fn handshake_error(error: &std::io::Error, server: &str) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let why = match tls {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::UnknownIssuer => "certificate signed by unknown authority".to_owned(),
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => "certificate has expired or is not yet valid".to_owned(),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("certificate is not valid for any names, but wanted to match {server}")
            }
            CertificateError::BadSignature => "certificate signed by unknown authority".to_owned(),
            other => other.to_string(),
        },
        Some(other) => return format!("tls: {other}"),
        None if error.kind() == std::io::ErrorKind::UnexpectedEof => return "EOF".to_owned(),
        None => return error.to_string(),
    };
    format!("tls: failed to verify certificate: x509: {why}")
}

/// What Go's client makes of an answer that is no success.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    if let Ok(value) = serde_json::from_slice::<Value>(body)
        && value["kind"] == "Status"
        && let Some(message) = value["message"].as_str().filter(|m| !m.is_empty())
    {
        return message.to_owned();
    }
    // Enough to tell what answered; the rest of a page helps nobody.
    let text: String = String::from_utf8_lossy(body).trim().chars().take(2048).collect();
    match status.as_u16() {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 => "the server does not allow access to the requested resource".to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        500.. => {
            let text = if text.is_empty() { "unknown".to_owned() } else { text };
            format!("an error on the server ({text:?}) has prevented the request from succeeding")
        }
        code => format!("the server responded with the status code {code} but did not return more information"),
    }
}

/// An address of the Service's port that a process of the node reaches: a ready endpoint.
fn resolve(core: &Core, reference: &ServiceReference) -> Result<(String, u16), String> {
    let ServiceReference { namespace, name, .. } = reference;
    let wanted = reference.port.unwrap_or(443);
    let service = core
        .store
        .get("services", &Key::new(namespace, name))
        .ok_or_else(|| format!("service {name:?} not found"))?
        .value();
    if service["spec"]["type"] == "ExternalName" {
        let external = service["spec"]["externalName"].as_str().unwrap_or_default();
        return Ok((external.to_owned(), wanted));
    }
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let port = ports
        .iter()
        .find(|port| port["port"].as_u64() == Some(wanted.into()))
        .ok_or_else(|| format!("no service port {wanted} found for service {name:?}"))?;
    let port = port["name"].as_str().unwrap_or_default();
    let slices = core
        .store
        .list("endpointslices.discovery.k8s.io", Some(namespace), None, None)
        .map_err(|error| error.to_string())?;
    let of_service = |slice: &&Arc<Object>| slice.label("kubernetes.io/service-name") == Some(name);
    let mut found: Vec<(IpAddr, u16)> = Vec::new();
    for slice in slices.objects.iter().filter(of_service).map(|slice| slice.value()) {
        let ports = slice["ports"].as_array().into_iter().flatten();
        let number = ports
            .filter(|p| p["name"].as_str().unwrap_or_default() == port)
            .find_map(|p| p["port"].as_u64().and_then(|n| u16::try_from(n).ok()));
        let Some(number) = number else { continue };
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        for endpoint in endpoints.filter(|e| e["conditions"]["ready"] != false) {
            let addresses = endpoint["addresses"].as_array().into_iter().flatten();
            found.extend(addresses.filter_map(|a| Some((a.as_str()?.parse().ok()?, number))));
        }
    }
    if found.is_empty() {
        return Err(format!("no endpoints available for service {name:?}"));
    }
    let (address, port) = found[rand::random_range(0..found.len())];
    Ok((address.to_string(), port))
}
