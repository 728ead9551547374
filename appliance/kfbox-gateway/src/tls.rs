//! The gateway's certificate: one of an authority of its own in the data directory, the operator's files, or what an ACME
//! server gave; files are read again when they change.
//!
//! Guarantees: TLS 1.2 and 1.3 only; connections that stand keep their certificate, the next ones get the new one; files
//! that cannot be used (half written, key and certificate of different pairs) leave the old certificate in use. Nothing
//! polls: the files are looked at when somebody connects.
//! Invariant: the authority's key is in `gateway-ca.key` (mode 0600) and is used for this gateway's names alone.

pub(crate) mod acme;

use acme::{Acme, AcmeConfig, AcmeStatus, challenges};
use chrono::{DateTime, Datelike, Duration as Days, Utc};
use kfbox_base::Tasks;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// How often the files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);
const AUTHORITY_DAYS: i64 = 3653;
/// A certificate of ours; a new one is made at each start and after half of this.
const CERTIFICATE_DAYS: i64 = 365;
/// Names of this machine that need no configuration.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Where the certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one of them, read once from a file")]
pub enum TlsSource {
    /// An authority kept in this folder; `names` are host names and addresses besides this machine's own.
    SelfSigned { folder: PathBuf, names: Vec<String> },
    /// PEM files: the certificate with its chain, and the key.
    Files { certificate: PathBuf, key: PathBuf },
    /// From an ACME server; until the first, as self-signed. `names` are the latter's, the former's are in its own part.
    Acme { folder: PathBuf, names: Vec<String>, acme: AcmeConfig },
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read or write {path}: {source}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} cannot be used: {why}")]
    Unusable { path: PathBuf, why: String },
    #[error("cannot make a certificate: {0}")]
    Issue(#[from] rcgen::Error),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("cannot listen: {0}")]
    Listen(#[from] std::io::Error),
    #[error("the ACME server cannot be asked: {0}")]
    Client(String),
}

/// The certificate in use, and how it is renewed.
#[derive(Debug)]
pub struct Tls {
    source: TlsSource,
    acme: Option<Arc<Acme>>,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    certified: Arc<CertifiedKey>,
    looked: Instant,
    /// What the files were when the certificate was read; for our own, when it was made.
    stamp: Stamp,
    /// Files that could not be used, so that each is told of once.
    refused: Option<Stamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stamp {
    Made(DateTime<Utc>),
    /// Modification time in nanoseconds, length and inode of both files.
    Files([FileStamp; 2]),
}

type FileStamp = (i128, u64, u64);

impl Tls {
    pub fn open(source: TlsSource) -> Result<Arc<Self>, TlsError> {
        let acme = match &source {
            TlsSource::Acme { folder, acme, .. } => Some(Arc::new(Acme::open(acme.clone(), folder)?)),
            TlsSource::SelfSigned { .. } | TlsSource::Files { .. } => None,
        };
        let (loaded, refused) = match (load(&source, acme.as_deref()), &acme) {
            // Another is ordered; until then the box has one of its own.
            (Err(error @ TlsError::Unusable { .. }), Some(acme)) => {
                tracing::warn!(%error, "the certificate of the ACME server is set aside");
                let path = acme.files.certificate();
                (load(&source, None)?, stamp(&path, &path).ok())
            }
            (loaded, _) => (loaded?, None),
        };
        let (certified, stamp) = loaded;
        let current = Current { certified: Arc::new(certified), looked: Instant::now(), stamp, refused };
        Ok(Arc::new(Self { source, acme, current: Mutex::new(current) }))
    }

    /// Looks after a certificate that comes from a server; nothing for others.
    pub fn keep(&self, tasks: &Tasks) -> Result<(), TlsError> {
        self.acme.as_ref().map_or(Ok(()), |acme| acme.keep(tasks))
    }

    /// How the certificate from a server stands. `None` for others.
    pub fn acme(&self) -> Option<AcmeStatus> {
        self.acme.as_ref().map(|acme| acme.status())
    }

    pub(crate) fn challenges(&self) -> Option<Arc<challenges::Challenges>> {
        self.acme.as_ref().map(|acme| acme.challenges.clone())
    }

    /// TLS with HTTP/2 and HTTP/1.1.
    pub(crate) fn server(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if self.acme.is_some() {
            config.alpn_protocols.push(challenges::ALPN.to_vec());
        }
        Ok(Arc::new(config))
    }

    fn current(&self) -> Arc<CertifiedKey> {
        let mut current = self.current.lock();
        if current.looked.elapsed() >= LOOK {
            current.looked = Instant::now();
            self.look(&mut current);
        }
        current.certified.clone()
    }

    fn look(&self, current: &mut Current) {
        let found = self.files();
        let due = match &current.stamp {
            Stamp::Made(at) if found.is_none() => Utc::now() - *at > Days::days(CERTIFICATE_DAYS / 2),
            _ => found.is_some() && found.as_ref() != Some(&current.stamp) && found != current.refused,
        };
        if !due {
            return;
        }
        match load(&self.source, self.acme.as_deref()) {
            Ok((certified, stamp)) => {
                tracing::info!("the gateway's certificate was replaced");
                current.certified = Arc::new(certified);
                current.stamp = stamp;
                current.refused = None;
            }
            Err(error) => {
                tracing::warn!(%error, "the gateway's new certificate cannot be used; the old one stays");
                current.refused = found;
            }
        }
    }

    /// What the files are, where there are files.
    fn files(&self) -> Option<Stamp> {
        match &self.source {
            TlsSource::SelfSigned { .. } => None,
            TlsSource::Files { certificate, key } => stamp(certificate, key).ok(),
            TlsSource::Acme { .. } => {
                let path = self.acme.as_ref()?.files.certificate();
                stamp(&path, &path).ok()
            }
        }
    }
}

impl ResolvesServerCert for Tls {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let Some(acme) = &self.acme
            && hello.alpn().is_some_and(|mut asked| asked.any(|protocol| protocol == challenges::ALPN))
        {
            return acme.challenges.certificate(hello.server_name());
        }
        Some(self.current())
    }
}

fn load(source: &TlsSource, acme: Option<&Acme>) -> Result<(CertifiedKey, Stamp), TlsError> {
    if let Some(path) = acme.map(|acme| acme.files.certificate()).filter(|path| path.exists()) {
        let stamp = stamp(&path, &path)?;
        let text = fs::read(&path).map_err(|source| TlsError::File { path: path.clone(), source })?;
        let (certified, _) = acme::files::certified(&text).map_err(|why| TlsError::Unusable { path, why })?;
        return Ok((certified, stamp));
    }
    match source {
        TlsSource::SelfSigned { folder, names } | TlsSource::Acme { folder, names, .. } => {
            let (issuer, authority) = authority(folder)?;
            Ok((issue(&issuer, &authority, names)?, Stamp::Made(Utc::now())))
        }
        TlsSource::Files { certificate, key } => {
            // Taken before the reading: files that change meanwhile are read again.
            let stamp = stamp(certificate, key)?;
            let unusable = |path: &Path, why: String| TlsError::Unusable { path: path.to_owned(), why };
            let chain = CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|e| unusable(certificate, e.to_string()))?;
            if chain.is_empty() {
                return Err(unusable(certificate, "it holds no certificate in PEM".into()));
            }
            let private = PrivateKeyDer::from_pem_file(key).map_err(|e| unusable(key, e.to_string()))?;
            let certified = CertifiedKey::from_der(chain, private, &default_provider())
                .map_err(|e| unusable(key, format!("it does not fit {}: {e}", certificate.display())))?;
            Ok((certified, stamp))
        }
    }
}

fn stamp(certificate: &Path, key: &Path) -> Result<Stamp, TlsError> {
    let one = |path: &Path| {
        let found = fs::metadata(path).map_err(|source| TlsError::File { path: path.to_owned(), source })?;
        let time = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        Ok::<_, TlsError>((time, found.len(), found.ino()))
    };
    Ok(Stamp::Files([one(certificate)?, one(key)?]))
}

/// Where the authority's certificate lies, which clients must trust.
pub fn authority_file(folder: &Path) -> PathBuf {
    folder.join("gateway-ca.crt")
}

/// The authority in the folder, or a new one. A lost key is an error: people trust the certificate already.
fn authority(folder: &Path) -> Result<(Issuer<'static, KeyPair>, CertificateDer<'static>), TlsError> {
    let (crt, key) = (authority_file(folder), folder.join("gateway-ca.key"));
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::File { path, source }
    };
    fs::create_dir_all(folder).map_err(file(folder))?;
    if !crt.exists() {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = named(&format!("kfbox gateway {:08x}", rand::random::<u32>()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid_for(&mut params, AUTHORITY_DAYS);
        // The key is written first: a certificate without its key means loss, a key without certificate a crash.
        write(&key, &pair.serialize_pem(), 0o600).map_err(file(&key))?;
        write(&crt, &params.self_signed(&pair)?.pem(), 0o644).map_err(file(&crt))?;
    }
    let unusable = |path: &Path, why: String| TlsError::Unusable {
        path: path.to_owned(),
        why: format!(
            "{why}; restore it, or remove both gateway-ca files to begin anew (clients must trust the new one)"
        ),
    };
    let pem = fs::read_to_string(&crt).map_err(file(&crt))?;
    let key_pem = fs::read_to_string(&key).map_err(|e| unusable(&key, e.to_string()))?;
    let pair = KeyPair::from_pem(&key_pem).map_err(|e| unusable(&key, e.to_string()))?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| unusable(&crt, e.to_string()))?;
    let private = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| unusable(&key, e.to_string()))?;
    CertifiedKey::from_der(vec![der.clone()], private, &default_provider())
        .map_err(|e| unusable(&key, format!("it is not the key of gateway-ca.crt ({e})")))?;
    let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(|e| unusable(&crt, e.to_string()))?;
    Ok((issuer, der))
}

fn issue(
    issuer: &Issuer<'static, KeyPair>,
    authority: &CertificateDer<'static>,
    names: &[String],
) -> Result<CertifiedKey, TlsError> {
    let mut all: Vec<String> = NAMES.iter().map(|n| (*n).to_owned()).chain(names.iter().cloned()).collect();
    all.sort();
    all.dedup();
    let mut params = CertificateParams::new(all)?;
    params.distinguished_name = named("kfbox gateway");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, CERTIFICATE_DAYS);
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let leaf = params.signed_by(&pair, issuer)?.der().clone();
    let key = PrivateKeyDer::Pkcs8(pair.serialize_der().into());
    Ok(CertifiedKey::from_der(vec![leaf, authority.clone()], key, &default_provider())?)
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name.push(DnType::OrganizationName, "kfbox");
    name
}

fn valid_for(params: &mut CertificateParams, days: i64) {
    // From yesterday: a client whose clock is a little behind must not refuse a new certificate.
    let day =
        |at: DateTime<Utc>| (at.year(), u8::try_from(at.month()).unwrap_or(1), u8::try_from(at.day()).unwrap_or(1));
    let ((y, m, d), (y2, m2, d2)) = (day(Utc::now() - Days::days(1)), day(Utc::now() + Days::days(days)));
    params.not_before = rcgen::date_time_ymd(y, m, d);
    params.not_after = rcgen::date_time_ymd(y2, m2, d2);
}

/// Whole or not at all.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", uuid::Uuid::new_v4().simple()));
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    })();
    if written.is_err() {
        fs::remove_file(&temporary).ok();
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn pair_in(folder: &Path, name: &str) -> (String, String) {
        let (issuer, _) = authority(folder).unwrap();
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&pair, &issuer).unwrap();
        (certificate.pem(), pair.serialize_pem())
    }

    #[test]
    fn the_authority_is_kept_and_a_lost_key_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Tls::open(TlsSource::SelfSigned { folder: dir.path().into(), names: vec!["lab.example".into()] });
        let first = open().unwrap().current().cert.clone();
        let second = open().unwrap().current().cert.clone();
        assert_eq!(first[1], second[1], "the same authority");
        assert_ne!(first[0], second[0], "a new certificate at each start");
        let key = dir.path().join("gateway-ca.key");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert!(matches!(open(), Err(TlsError::Unusable { .. })), "another key");
        fs::remove_file(&key).unwrap();
        assert!(matches!(open(), Err(TlsError::Unusable { .. })), "no key");
    }

    #[test]
    fn changed_files_are_read_again_and_broken_ones_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let put = |(c, k): (String, String)| {
            fs::write(&certificate, c).unwrap();
            fs::write(&key, k).unwrap();
        };
        put(pair_in(dir.path(), "one.example"));
        let source = TlsSource::Files { certificate: certificate.clone(), key: key.clone() };
        let tls = Tls::open(source).unwrap();
        let now = || {
            let mut current = tls.current.lock();
            tls.look(&mut current);
            current.certified.cert[0].clone()
        };
        let one = now();
        let two = pair_in(dir.path(), "two.example");
        // As a renewal that is half done: the certificate is new, the key is not yet.
        fs::write(&certificate, &two.0).unwrap();
        assert_eq!(now(), one);
        fs::write(&certificate, "-----BEGIN CERTIFICATE-----\nnonsense").unwrap();
        assert_eq!(now(), one);
        fs::remove_file(&certificate).unwrap();
        assert_eq!(now(), one);
        put(two);
        assert_ne!(now(), one);
        assert!(Tls::open(TlsSource::Files { certificate, key: dir.path().join("nothing") }).is_err());
    }
}
