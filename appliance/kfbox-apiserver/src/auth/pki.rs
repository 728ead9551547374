//! The cluster's certificate authority and the certificates it issues. Invariant: private keys stay in `pki/` (mode
//! 0700, files 0600) and in memory. A client certificate's common name is the user and its organizations are the groups,
//! as in <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#x509-client-certificates>.

use super::files;
use chrono::{DateTime, Datelike, Duration, Utc};
use kfbox_base::UserInfo;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{path::Path, sync::Arc};
use x509_parser::{extensions::GeneralName, prelude::FromDer};

const CA_DAYS: i64 = 3653;
/// Short enough that a leaked key ages out, long enough that a box left off for months still starts without a renewal race.
const SERVER_DAYS: i64 = 365;
/// Renew this long before the end, so that clocks that differ by days do no harm.
const RENEW_DAYS: i64 = 60;
/// Names under which pods and people reach the API whatever the configuration says.
const API_NAMES: [&str; 8] = [
    "localhost",
    "127.0.0.1",
    "::1",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster",
    "kubernetes.default.svc.cluster.local",
];

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot read or write {path}: {source}")]
    File {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "{path} does not hold what it should: {why}; restore it from a backup, or remove the pki folder to start a new authority (every kubeconfig and certificate issued before is then void)"
    )]
    Damaged { path: String, why: String },
    #[error("a client certificate can name two groups at most, not {0}; bind the user instead")]
    TooManyGroups(usize),
    #[error("cannot make a certificate: {0}")]
    Issue(#[from] rcgen::Error),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("cannot set up the check of client certificates: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// A certificate (followed by the authority's, so that it verifies from its file alone) and its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    pub cert_pem: String,
    pub key_pem: String,
}

/// The cluster's certificate authority.
pub struct Authority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    pub(super) ca_der: CertificateDer<'static>,
    serving: Arc<Serving>,
}

impl Authority {
    /// Opens the authority in `pki_dir`, or creates it. `sans` are the API's addresses beyond the standard names: DNS
    /// names or IP addresses. The serving certificate is made anew when they changed or its end is near.
    pub fn load_or_create<S: AsRef<str>>(pki_dir: &Path, sans: &[S]) -> Result<Self, PkiError> {
        let file = |path: &Path| {
            let path = path.display().to_string();
            move |source| PkiError::File { path, source }
        };
        files::private_dir(pki_dir).map_err(file(pki_dir))?;
        let (crt, key) = (pki_dir.join("ca.crt"), pki_dir.join("ca.key"));
        // The key is written first: a certificate without its key means loss, a key without certificate a crash.
        let (ca_pem, key_pem) = match files::read_optional(&crt).map_err(file(&crt))? {
            Some(pem) => match files::read_optional(&key).map_err(file(&key))? {
                Some(key_pem) => (pem, key_pem),
                None => return Err(damaged(&key, "the file is missing")),
            },
            None => {
                let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                let pem = ca_params()?.self_signed(&pair)?.pem();
                let key_pem = pair.serialize_pem();
                files::write_private(&key, key_pem.as_bytes()).map_err(file(&key))?;
                files::write_private(&crt, pem.as_bytes()).map_err(file(&crt))?;
                (pem, key_pem)
            }
        };
        let pair = KeyPair::from_pem(&key_pem).map_err(|error| damaged(&key, &error.to_string()))?;
        let ca_der =
            CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|error| damaged(&crt, &error.to_string()))?;
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(&ca_der)
            .map_err(|error| damaged(&crt, &error.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
            return Err(damaged(&key, "the key does not belong to ca.crt"));
        }
        let issuer = Issuer::from_ca_cert_der(&ca_der, pair).map_err(|error| damaged(&crt, &error.to_string()))?;
        let ca_der = ca_der.into_owned();

        let mut names: Vec<String> = API_NAMES.iter().map(|&n| n.to_owned()).collect();
        names.extend(sans.iter().map(|s| s.as_ref().to_owned()));
        names.sort();
        names.dedup();
        let (crt, key) = (pki_dir.join("apiserver.crt"), pki_dir.join("apiserver.key"));
        let kept =
            match (files::read_optional(&crt).map_err(file(&crt))?, files::read_optional(&key).map_err(file(&key))?) {
                (Some(cert_pem), Some(key_pem)) => {
                    still_good(&cert_pem, &key_pem, &ca_der, &names).then_some(Issued { cert_pem, key_pem })
                }
                _ => None,
            };
        let issued = match kept {
            Some(issued) => issued,
            None => {
                let issued = issue_server(&issuer, &ca_pem, &names)?;
                files::write_private(&key, issued.key_pem.as_bytes()).map_err(file(&key))?;
                files::write_private(&crt, issued.cert_pem.as_bytes()).map_err(file(&crt))?;
                issued
            }
        };
        let serving = Arc::new(Serving { current: Mutex::new(Current::of(&issued)?) });
        Ok(Self { issuer, ca_pem, ca_der, serving })
    }

    /// The authority's certificate, for kubeconfigs and `kube-root-ca.crt`.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// TLS 1.2 and 1.3 with HTTP/2 and HTTP/1.1; with `client_certificates`, one is asked for but none is needed.
    pub fn server_tls(&self, client_certificates: bool) -> Result<Arc<ServerConfig>, PkiError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = if client_certificates {
            let mut roots = RootCertStore::empty();
            roots.add(self.ca_der.clone())?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_cert_resolver(self.serving.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Replaces the serving certificate when its end is near. Cheap when it is not: call it daily.
    pub fn renew(&self, pki_dir: &Path) -> Result<bool, PkiError> {
        let (near, names) = {
            let current = self.serving.current.lock();
            (current.not_after - Utc::now() < Duration::days(RENEW_DAYS), current.names.clone())
        };
        if !near {
            return Ok(false);
        }
        let issued = issue_server(&self.issuer, &self.ca_pem, &names)?;
        for (name, content) in [("apiserver.key", &issued.key_pem), ("apiserver.crt", &issued.cert_pem)] {
            let path = pki_dir.join(name);
            files::write_private(&path, content.as_bytes())
                .map_err(|source| PkiError::File { path: path.display().to_string(), source })?;
        }
        *self.serving.current.lock() = Current::of(&issued)?;
        Ok(true)
    }

    /// A client certificate: `common_name` is the user, `organizations` the groups.
    pub fn issue_client<S: AsRef<str>>(
        &self,
        common_name: &str,
        organizations: &[S],
        days: u32,
    ) -> Result<Issued, PkiError> {
        let mut params = leaf_params(common_name, days.into())?;
        // rcgen keeps one value a type, and takes the same type once more by its number.
        let kinds = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
        if organizations.len() > kinds.len() {
            return Err(PkiError::TooManyGroups(organizations.len()));
        }
        for (kind, organization) in kinds.into_iter().zip(organizations) {
            params.distinguished_name.push(kind, organization.as_ref());
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        sign(&self.issuer, &self.ca_pem, &params)
    }

    /// A server certificate for other listeners of the daemon (the gateway, ML Metadata).
    pub fn issue_server<S: AsRef<str>>(&self, sans: &[S]) -> Result<Issued, PkiError> {
        let names: Vec<String> = sans.iter().map(|s| s.as_ref().to_owned()).collect();
        issue_server(&self.issuer, &self.ca_pem, &names)
    }

    /// Who a verified client certificate names. `None` when it has no common name.
    /// Assumption: the TLS layer verified the chain against this authority.
    pub fn identify(&self, peer: &[CertificateDer<'_>]) -> Option<UserInfo> {
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(peer.first()?).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        if name.is_empty() {
            return None;
        }
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned));
        let mut user = UserInfo::new(name, groups);
        let fingerprint = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(peer.first()?));
        user.extra
            .insert("authentication.kubernetes.io/credential-id".into(), vec![format!("X509SHA256={fingerprint}")]);
        Some(user)
    }
}

/// The serving certificate, which may be replaced while connections are made.
#[derive(Debug)]
struct Serving {
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    certified: Arc<CertifiedKey>,
    not_after: DateTime<Utc>,
    names: Vec<String>,
}

impl Current {
    fn of(issued: &Issued) -> Result<Self, PkiError> {
        let bad = |why: &str| damaged(Path::new("apiserver.crt"), why);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| bad(&error.to_string()))?;
        let leaf = chain.first().ok_or_else(|| bad("no certificate"))?;
        let (not_after, names) = validity_and_names(leaf).ok_or_else(|| bad("not an X.509 certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).map_err(|error| bad(&error.to_string()))?;
        let provider: CryptoProvider = rustls::crypto::aws_lc_rs::default_provider();
        let certified = CertifiedKey::from_der(chain, key, &provider)?;
        Ok(Self { certified: Arc::new(certified), not_after, names })
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.lock().certified.clone())
    }
}

fn damaged(path: &Path, why: &str) -> PkiError {
    PkiError::Damaged { path: path.display().to_string(), why: why.into() }
}

fn day(at: DateTime<Utc>) -> (i32, u8, u8) {
    (at.year(), u8::try_from(at.month()).unwrap_or(1), u8::try_from(at.day()).unwrap_or(1))
}

fn valid_for(params: &mut CertificateParams, days: i64) {
    // From yesterday: a client whose clock is a little behind must not refuse a new certificate.
    let ((y, m, d), (y2, m2, d2)) = (day(Utc::now() - Duration::days(1)), day(Utc::now() + Duration::days(days + 1)));
    params.not_before = rcgen::date_time_ymd(y, m, d);
    params.not_after = rcgen::date_time_ymd(y2, m2, d2);
}

fn ca_params() -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "kubernetes");
    params.distinguished_name.push(DnType::OrganizationName, "kfbox");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    valid_for(&mut params, CA_DAYS);
    Ok(params)
}

fn leaf_params(common_name: &str, days: i64) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, days);
    Ok(params)
}

fn issue_server(issuer: &Issuer<'static, KeyPair>, ca_pem: &str, names: &[String]) -> Result<Issued, PkiError> {
    let mut params = leaf_params("kfbox", SERVER_DAYS)?;
    params.subject_alt_names = CertificateParams::new(names.to_vec())?.subject_alt_names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    sign(issuer, ca_pem, &params)
}

fn sign(issuer: &Issuer<'static, KeyPair>, ca_pem: &str, params: &CertificateParams) -> Result<Issued, PkiError> {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.signed_by(&pair, issuer)?;
    Ok(Issued { cert_pem: format!("{}{ca_pem}", certificate.pem()), key_pem: pair.serialize_pem() })
}

/// The end and the sorted alternative names of a certificate.
fn validity_and_names(der: &CertificateDer<'_>) -> Option<(DateTime<Utc>, Vec<String>)> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    let not_after = DateTime::from_timestamp(certificate.validity().not_after.timestamp(), 0)?;
    let mut names = Vec::new();
    if let Some(extension) = certificate.subject_alternative_name().ok()? {
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => names.push(match <[u8; 4]>::try_from(*bytes) {
                    Ok(four) => std::net::IpAddr::from(four).to_string(),
                    Err(_) => std::net::IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string(),
                }),
                _ => {}
            }
        }
    }
    names.sort();
    Some((not_after, names))
}

fn still_good(cert_pem: &str, key_pem: &str, ca: &CertificateDer<'_>, names: &[String]) -> bool {
    let check = || -> Option<bool> {
        let leaf = CertificateDer::from_pem_slice(cert_pem.as_bytes()).ok()?;
        let (not_after, present) = validity_and_names(&leaf)?;
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&leaf).ok()?;
        let (_, authority) = x509_parser::certificate::X509Certificate::from_der(ca).ok()?;
        let pair = KeyPair::from_pem(key_pem).ok()?;
        Some(
            present == names
                && not_after - Utc::now() > Duration::days(RENEW_DAYS)
                && certificate.public_key().subject_public_key.data.as_ref() == pair.public_key_raw()
                && certificate.issuer() == authority.subject()
                && cert_pem.contains("-----BEGIN CERTIFICATE-----"),
        )
    };
    check().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_authority_survives_a_restart_and_renews_only_when_names_change() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        let first = Authority::load_or_create(&pki, &["10.96.0.1"]).unwrap();
        let certificate = std::fs::read_to_string(pki.join("apiserver.crt")).unwrap();
        let again = Authority::load_or_create(&pki, &["10.96.0.1"]).unwrap();
        assert_eq!(first.ca_pem(), again.ca_pem());
        assert_eq!(certificate, std::fs::read_to_string(pki.join("apiserver.crt")).unwrap());
        Authority::load_or_create(&pki, &["10.96.0.1", "lab.example"]).unwrap();
        assert_ne!(certificate, std::fs::read_to_string(pki.join("apiserver.crt")).unwrap());
        for entry in std::fs::read_dir(&pki).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(std::fs::metadata(&pki).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(!again.renew(&pki).unwrap());
    }

    #[test]
    fn a_lost_key_is_an_error_and_never_a_silent_new_authority() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path();
        Authority::load_or_create::<&str>(pki, &[]).unwrap();
        std::fs::remove_file(pki.join("ca.key")).unwrap();
        assert!(matches!(Authority::load_or_create::<&str>(pki, &[]), Err(PkiError::Damaged { .. })));
        std::fs::write(pki.join("ca.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert!(matches!(Authority::load_or_create::<&str>(pki, &[]), Err(PkiError::Damaged { .. })));
    }

    #[test]
    fn a_client_certificate_names_its_user_and_groups() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create::<&str>(dir.path(), &[]).unwrap();
        let issued = authority.issue_client("ada@example.org", &["system:masters", "staff"], 10).unwrap();
        let der = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
        let user = authority.identify(&[der]).unwrap();
        assert_eq!(user.username, "ada@example.org");
        assert_eq!(user.groups, ["system:masters", "staff", "system:authenticated"]);
        assert!(authority.identify(&[]).is_none());
        assert!(matches!(authority.issue_client("x", &["a", "b", "c"], 1), Err(PkiError::TooManyGroups(3))));
    }

    /// Drives both ends in memory until neither has bytes to send; the error of the side that refused.
    fn handshake(server: Arc<ServerConfig>, client: rustls::ClientConfig, name: &str) -> Result<bool, rustls::Error> {
        let mut server = rustls::ServerConnection::new(server)?;
        let mut client =
            rustls::ClientConnection::new(Arc::new(client), name.to_owned().try_into().expect("a server name"))?;
        for _ in 0..20 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut read = wire.as_slice();
            while !read.is_empty() {
                server.read_tls(&mut read).unwrap();
                server.process_new_packets()?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut read = wire.as_slice();
            while !read.is_empty() {
                client.read_tls(&mut read).unwrap();
                client.process_new_packets()?;
            }
        }
        assert!(!server.is_handshaking() && !client.is_handshaking());
        assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
        Ok(server.peer_certificates().is_some())
    }

    fn client(roots: &str, issued: Option<Issued>) -> rustls::ClientConfig {
        let mut store = RootCertStore::empty();
        store.add(CertificateDer::from_pem_slice(roots.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(store);
        let mut config = match issued {
            None => builder.with_no_client_auth(),
            Some(issued) => {
                let chain =
                    CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes()).collect::<Result<_, _>>().unwrap();
                let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    #[test]
    fn tls_accepts_clients_of_this_authority_only() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ours = Authority::load_or_create(one.path(), &["10.96.0.1"]).unwrap();
        let theirs = Authority::load_or_create::<&str>(two.path(), &[]).unwrap();
        let tls = ours.server_tls(true).unwrap();
        assert!(!handshake(tls.clone(), client(ours.ca_pem(), None), "kubernetes.default.svc").unwrap());
        assert!(!handshake(tls.clone(), client(ours.ca_pem(), None), "10.96.0.1").unwrap());
        let good = ours.issue_client("ada", &["staff"], 1).unwrap();
        assert!(handshake(tls.clone(), client(ours.ca_pem(), Some(good)), "::1").unwrap());
        let foreign = theirs.issue_client("ada", &["system:masters"], 1).unwrap();
        assert!(handshake(tls.clone(), client(ours.ca_pem(), Some(foreign)), "localhost").is_err());
        assert!(handshake(tls.clone(), client(theirs.ca_pem(), None), "localhost").is_err());
        assert!(handshake(tls.clone(), client(ours.ca_pem(), None), "evil.example").is_err());
        // A server's certificate is no client's.
        let server = ours.issue_server(&["localhost"]).unwrap();
        assert!(handshake(tls, client(ours.ca_pem(), Some(server)), "localhost").is_err());
    }
}
