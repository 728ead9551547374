//! What ACME leaves in the data directory (`pki/acme`, mode 0700): the account's key, the order under way, and the
//! certificate with its key in one file, so that a single rename replaces both.
//!
//! Guarantees: each file is whole or not there (mode 0600); a certificate is kept only if it fits its key, is of now, and
//! holds all names that were asked for; what cannot be read any more is told and made anew.

use super::{AcmeConfig, AcmeError};
use crate::tls::{TlsError, write};
use chrono::{DateTime, Utc};
use instant_acme::AccountCredentials;
use rustls::{
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use std::{
    fs,
    io::ErrorKind,
    net::IpAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
};

/// Chains are two or three certificates; more is no chain.
const LONGEST_CHAIN: usize = 10;

/// The folder of one box.
#[derive(Debug, Clone)]
pub(crate) struct Files(PathBuf);

/// An order that was begun, and the key of the certificate that will come of it.
#[derive(Serialize, Deserialize)]
pub(super) struct Pending {
    pub directory: String,
    pub names: Vec<String>,
    pub url: String,
    pub key_pem: String,
}

impl Files {
    pub fn open(pki: &Path) -> Result<Self, TlsError> {
        let folder = pki.join("acme");
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|source| TlsError::File { path: folder.clone(), source })?;
        Ok(Self(folder))
    }

    /// The certificate with its chain, and its key.
    pub fn certificate(&self) -> PathBuf {
        self.0.join("certificate.pem")
    }

    /// One a server: who goes from a server for trials to the real one keeps both accounts.
    fn account(&self, directory: &str) -> PathBuf {
        self.0.join(format!("account-{}.json", hex::encode(&Sha256::digest(directory)[..8])))
    }

    fn order(&self) -> PathBuf {
        self.0.join("order.json")
    }

    pub(super) fn load_account(&self, directory: &str) -> Result<Option<AccountCredentials>, AcmeError> {
        read(&self.account(directory))
    }

    pub(super) fn store_account(&self, directory: &str, account: &AccountCredentials) -> Result<(), AcmeError> {
        store(&self.account(directory), account)
    }

    /// Another is made at the next attempt.
    pub(super) fn forget_account(&self, directory: &str) {
        remove(&self.account(directory));
        self.forget_order();
    }

    /// The order under way, if it is one for this server and these names.
    pub(super) fn load_order(&self, config: &AcmeConfig) -> Result<Option<Pending>, AcmeError> {
        let found: Option<Pending> = read(&self.order())?;
        Ok(found.filter(|p| p.directory == config.directory.as_str() && p.names == config.names))
    }

    pub(super) fn store_order(&self, pending: &Pending) -> Result<(), AcmeError> {
        store(&self.order(), pending)
    }

    pub(super) fn forget_order(&self) {
        remove(&self.order());
    }

    /// Puts a new certificate in the place of the old one, if it is good.
    pub(super) fn keep(&self, chain_pem: &str, key_pem: &str, names: &[String]) -> Result<Leaf, AcmeError> {
        let text = format!("{key_pem}\n{chain_pem}");
        let (_, leaf) = certified(text.as_bytes()).map_err(AcmeError::Unusable)?;
        leaf.must_be_for(names, Utc::now()).map_err(AcmeError::Unusable)?;
        let path = self.certificate();
        write(&path, &text, 0o600).map_err(|source| AcmeError::File { path, source })?;
        Ok(leaf)
    }

    /// The certificate in use. `None` also for one that cannot be read.
    pub(super) fn leaf(&self) -> Option<Leaf> {
        let text = fs::read(self.certificate()).ok()?;
        certified(&text).ok().map(|(_, leaf)| leaf)
    }
}

/// What is asked of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub names: Vec<String>,
    pub from: DateTime<Utc>,
    pub until: DateTime<Utc>,
    /// How RFC 9773 (renewal information) names it; empty where its issuer leaves out what that needs.
    pub renewal_id: String,
}

impl Leaf {
    pub fn is_for(&self, names: &[String]) -> bool {
        names.iter().all(|wanted| self.names.contains(wanted))
    }

    fn must_be_for(&self, names: &[String], now: DateTime<Utc>) -> Result<(), String> {
        if let Some(missing) = names.iter().find(|wanted| !self.names.contains(wanted)) {
            return Err(format!("it is not for {missing}, but for {}", self.names.join(", ")));
        }
        if let Some(more) = self.names.iter().find(|name| !names.contains(name)) {
            return Err(format!("it is also for {more}, which nobody asked for"));
        }
        // A server's clock may be a little before ours.
        if self.from > now + chrono::Duration::minutes(5) {
            return Err(format!("it is valid only from {}: compare the clocks", self.from));
        }
        if self.until <= now {
            return Err(format!("it ended at {} already", self.until));
        }
        Ok(())
    }
}

/// A key and its chain in PEM, as rustls uses it, and what the certificate says.
pub(crate) fn certified(pem: &[u8]) -> Result<(CertifiedKey, Leaf), String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).take(LONGEST_CHAIN + 1).collect();
    let chain = chain.map_err(|e| e.to_string())?;
    if chain.len() > LONGEST_CHAIN {
        return Err(format!("its chain has more than {LONGEST_CHAIN} certificates"));
    }
    let first = chain.first().ok_or("it holds no certificate in PEM")?;
    let leaf = leaf(first)?;
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|e| format!("its key: {e}"))?;
    let certified = CertifiedKey::from_der(chain, key, &default_provider());
    Ok((certified.map_err(|e| format!("the key does not fit it: {e}"))?, leaf))
}

fn leaf(der: &CertificateDer<'_>) -> Result<Leaf, String> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
    let names = certificate.subject_alternative_name().map_err(|e| e.to_string())?;
    let names = names.map(|san| san.value.general_names.iter().filter_map(name).collect()).unwrap_or_default();
    let at = |time: x509_parser::time::ASN1Time| DateTime::from_timestamp(time.timestamp(), 0).ok_or("its times");
    let authority = certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(found) => found.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    });
    let renewal_id = authority.map(|id| {
        format!("{}.{}", URL_SAFE_NO_PAD.encode(id), URL_SAFE_NO_PAD.encode(certificate.tbs_certificate.raw_serial()))
    });
    Ok(Leaf {
        names,
        from: at(certificate.validity().not_before)?,
        until: at(certificate.validity().not_after)?,
        renewal_id: renewal_id.unwrap_or_default(),
    })
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => {
            let address = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = address.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(|a| a.to_string())
        }
        _ => None,
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, AcmeError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(AcmeError::File { path: path.to_owned(), source }),
    };
    match serde_json::from_slice(&text) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            tracing::warn!(path = %path.display(), line = error.line(), "cannot be read any more; it is made anew");
            Ok(None)
        }
    }
}

fn store(path: &Path, value: &impl Serialize) -> Result<(), AcmeError> {
    let error = |source| AcmeError::File { path: path.to_owned(), source };
    let text = serde_json::to_string(value).map_err(|e| error(e.into()))?;
    write(path, &text, 0o600).map_err(error)
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot be removed");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use std::os::unix::fs::PermissionsExt as _;

    fn made(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        change(&mut params);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn only_a_good_certificate_takes_the_old_ones_place() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        let names = ["lab.example".to_owned(), "127.0.0.9".to_owned()];
        let (chain, key) = made(&["lab.example", "127.0.0.9"], |_| {});
        let leaf = files.keep(&chain, &key, &names).unwrap();
        assert!(leaf.is_for(&names) && files.leaf() == Some(leaf));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&files.certificate()), mode(&files.0)), (0o600, 0o700));
        let before = fs::read(files.certificate()).unwrap();
        let (other, _) = made(&["lab.example", "127.0.0.9"], |_| {});
        let (fewer, fewer_key) = made(&["lab.example"], |_| {});
        let (more, more_key) = made(&["lab.example", "127.0.0.9", "bank.example"], |_| {});
        let (old, old_key) = made(&["lab.example", "127.0.0.9"], |p| p.not_after = rcgen::date_time_ymd(2020, 1, 1));
        let (early, early_key) =
            made(&["lab.example", "127.0.0.9"], |p| p.not_before = rcgen::date_time_ymd(2090, 1, 1));
        let many = chain.repeat(LONGEST_CHAIN + 1);
        for (chain, key, said) in [
            (&other, &key, "does not fit"),
            (&fewer, &fewer_key, "not for 127.0.0.9"),
            (&more, &more_key, "bank.example"),
            (&old, &old_key, "ended"),
            (&early, &early_key, "clocks"),
            (&many, &key, "more than"),
            (&"-----BEGIN CERTIFICATE-----\nnonsense".to_owned(), &key, ""),
            (&String::new(), &key, "no certificate"),
        ] {
            let Err(AcmeError::Unusable(why)) = files.keep(chain, key, &names) else { panic!("{said}: kept") };
            assert!(why.contains(said), "{why}");
            assert_eq!(fs::read(files.certificate()).unwrap(), before);
        }
    }

    #[test]
    fn what_was_half_destroyed_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        fs::write(files.account("https://x"), "{\"id\":").unwrap();
        assert!(files.load_account("https://x").unwrap().is_none());
        fs::write(files.certificate(), "nonsense").unwrap();
        assert!(files.leaf().is_none());
        assert_ne!(files.account("https://x"), files.account("https://y"), "one account a server");
    }
}
