//! A TLS connection to an extension server: where its Service leads, and who it must prove to be.

use super::{FRONT_PROXY, Remote};
use crate::{auth::Authority, server::Core, store::Key};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use serde_json::Value;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// To reach a server on this machine or its network, and shake hands.
const CONNECT: Duration = Duration::from_secs(5);

/// Days that a front-proxy certificate lasts. It is made anew with each change of the APIService and each start.
const CERTIFICATE_DAYS: u32 = 3650;

/// Where distributions keep the roots they trust.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

pub struct ClientTls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// The bytes of `spec.caBundle`.
pub fn bundle(spec: &Value) -> Option<Vec<u8>> {
    STANDARD.decode(spec["caBundle"].as_str()?).ok().filter(|b| !b.is_empty())
}

impl ClientTls {
    pub fn new(front_proxy: &Authority, spec: &Value, name: &str) -> Result<Self, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| text(&e))?;
        let builder = if spec["insecureSkipTLSVerify"] == true {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        } else {
            let pem = match bundle(spec) {
                Some(pem) => pem,
                None => SYSTEM_ROOTS
                    .iter()
                    .find_map(|path| std::fs::read(path).ok())
                    .ok_or("no caBundle is given, and this system trusts no authority")?,
            };
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|e| format!("caBundle: {e}"))?;
                // Of a system's roots some may be of a form this library refuses; those of a bundle all count.
                let added = roots.add(certificate);
                if bundle(spec).is_some() {
                    added.map_err(|e| format!("caBundle: {e}"))?;
                }
            }
            builder.with_root_certificates(roots)
        };
        let issued = front_proxy.issue_client::<&str>(FRONT_PROXY, &[], CERTIFICATE_DAYS).map_err(|e| text(&e))?;
        let chain = CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| text(&e))?;
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).map_err(|e| text(&e))?;
        let config = builder.with_client_auth_cert(chain, key).map_err(|e| text(&e))?;
        let name = ServerName::try_from(name.to_owned()).map_err(|e| text(&e))?;
        Ok(Self { config: Arc::new(config), name })
    }
}

/// `insecureSkipTLSVerify`: whoever answers is taken, but only if it holds the key of what it shows.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Why a Service cannot be reached: the condition's reason and message.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreachable {
    pub reason: &'static str,
    pub message: String,
}

/// Where a Service may be reached, in no order.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    Addresses(Vec<SocketAddr>),
    /// An ExternalName, for DNS.
    Host(String, u16),
}

/// The checks of upstream's availability controller (`remote_available_controller.go`), and where they lead.
pub fn place(core: &Core, remote: &Remote) -> Result<Place, Unreachable> {
    let super::ServiceReference { namespace, name, port } = &remote.service;
    let refused = |reason, message| Err(Unreachable { reason, message });
    let Some(service) = core.store.get("services", &Key::new(namespace, name)).map(|o| o.value()) else {
        return refused("ServiceNotFound", format!("service/{name} in {namespace:?} is not present"));
    };
    if service["spec"]["type"] == "ExternalName" {
        let host = service["spec"]["externalName"].as_str().unwrap_or_default().to_owned();
        return Ok(Place::Host(host, *port));
    }
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(found) = ports.iter().find(|p| p["port"] == *port) else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return refused("ServicePortError", message);
    };
    let port_name = found["name"].as_str().unwrap_or_default();
    let slices = core.store.list("endpointslices.discovery.k8s.io", Some(namespace), None, None);
    let slices: Vec<_> = slices.map(|s| s.objects).unwrap_or_default();
    let mut own = slices.iter().filter(|s| s.label("kubernetes.io/service-name") == Some(name)).peekable();
    if own.peek().is_none() {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return refused("EndpointsNotFound", message);
    }
    let mut addresses = Vec::new();
    for slice in own {
        let slice = slice.value();
        let ports = slice["ports"].as_array().into_iter().flatten();
        let ports: Vec<u16> = ports
            .filter(|p| p["name"].as_str().unwrap_or_default() == port_name)
            .filter_map(|p| p["port"].as_u64().and_then(|p| u16::try_from(p).ok()))
            .collect();
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"] == false {
                continue;
            }
            let ips = endpoint["addresses"].as_array().into_iter().flatten();
            for ip in ips.filter_map(|a| a.as_str()?.parse::<IpAddr>().ok()) {
                addresses.extend(ports.iter().map(|port| SocketAddr::new(ip, *port)));
            }
        }
    }
    if addresses.is_empty() {
        let message = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        return refused("MissingEndpoints", message);
    }
    Ok(Place::Addresses(addresses))
}

/// Connects to any of the addresses, in random order, until one answers.
pub async fn connect(place: &Place, tls: &ClientTls) -> Result<TlsStream<TcpStream>, String> {
    use rand::seq::SliceRandom as _;
    /// So that a Service of many dead endpoints does not hold the caller for minutes.
    const TRIED: usize = 5;
    let mut addresses = match place {
        Place::Addresses(addresses) => addresses.clone(),
        Place::Host(host, port) => tokio::time::timeout(CONNECT, tokio::net::lookup_host((host.as_str(), *port)))
            .await
            .map_err(|_| format!("lookup {host}: i/o timeout"))?
            .map_err(|e| format!("lookup {host}: {e}"))?
            .collect(),
    };
    addresses.shuffle(&mut rand::rng());
    let mut last = "no address".to_owned();
    for address in addresses.into_iter().take(TRIED) {
        let attempt = async {
            let stream = TcpStream::connect(address).await.map_err(|e| format!("dial tcp {address}: {e}"))?;
            drop(stream.set_nodelay(true));
            let connector = TlsConnector::from(tls.config.clone());
            connector.connect(tls.name.clone(), stream).await.map_err(|e| format!("tls {address}: {e}"))
        };
        match tokio::time::timeout(CONNECT, attempt).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(why)) => last = why,
            Err(_) => last = format!("dial tcp {address}: i/o timeout"),
        }
    }
    Err(last)
}
