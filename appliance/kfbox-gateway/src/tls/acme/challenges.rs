//! What an ACME server looks for before it believes that a name is ours: a certificate that only `acme-tls/1` is shown
//! (RFC 8737), or a text at a path that only it knows (RFC 8555 section 8.3).
//!
//! Invariant: an answer is there from its [`Offer`]'s making to its dropping, and at no other time.

use parking_lot::RwLock;
use rcgen::{CertificateParams, CustomExtension, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{crypto::aws_lc_rs::default_provider, pki_types::PrivateKeyDer, sign::CertifiedKey};
use std::{collections::HashMap, net::IpAddr, sync::Arc};

/// The protocol of RFC 8737: who asks for it gets the challenge's certificate, and no other protocol after it.
pub(crate) const ALPN: &[u8] = b"acme-tls/1";
/// Where the text of an http-01 challenge is asked for.
pub(crate) const PATH: &str = "/.well-known/acme-challenge/";

/// The answers on offer.
#[derive(Debug, Default)]
pub(crate) struct Challenges {
    /// By the name that the server puts into its hello.
    certificates: RwLock<HashMap<String, Arc<CertifiedKey>>>,
    /// By token.
    texts: RwLock<HashMap<String, String>>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ChallengeError {
    #[error("cannot make the challenge's certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("cannot use the challenge's certificate: {0}")]
    Use(#[from] rustls::Error),
    #[error("the digest that the certificate must hold has {0} bytes instead of 32")]
    Digest(usize),
}

impl Challenges {
    pub fn certificate(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let known = self.certificates.read();
        known.get(&name?.trim_end_matches('.').to_ascii_lowercase()).cloned()
    }

    /// The text at this path, if a challenge is waiting there.
    pub fn text(&self, path: &str) -> Option<String> {
        let token = path.strip_prefix(PATH)?;
        self.texts.read().get(token).cloned()
    }

    /// For `tls-alpn-01`: a certificate of the name that holds the digest of the key authorization.
    pub fn offer_certificate(self: &Arc<Self>, name: &str, digest: &[u8]) -> Result<Offer, ChallengeError> {
        if digest.len() != 32 {
            return Err(ChallengeError::Digest(digest.len()));
        }
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        let certificate = params.self_signed(&pair)?.der().clone();
        let key = PrivateKeyDer::Pkcs8(pair.serialize_der().into());
        // Not compared with its key: the extension, which must be critical, is one that rustls does not know.
        let key = default_provider().key_provider.load_private_key(key)?;
        let certified = CertifiedKey::new(vec![certificate], key);
        let place = asked_as(name);
        let mut known = self.certificates.write();
        known.insert(place.clone(), Arc::new(certified));
        Ok(Offer { challenges: self.clone(), place: Place::Name(place) })
    }

    /// For `http-01`.
    pub fn offer_text(self: &Arc<Self>, token: &str, text: &str) -> Offer {
        let mut known = self.texts.write();
        known.insert(token.to_owned(), text.to_owned());
        Offer { challenges: self.clone(), place: Place::Token(token.to_owned()) }
    }
}

/// An address has no place in a hello; its name in reverse DNS stands for it (RFC 8738 section 6).
fn asked_as(name: &str) -> String {
    match name.parse() {
        Ok(IpAddr::V4(address)) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        Ok(IpAddr::V6(address)) => {
            let digits = address.octets().into_iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
            digits.map(|digit| format!("{digit:x}.")).collect::<String>() + "ip6.arpa"
        }
        Err(_) => name.to_ascii_lowercase(),
    }
}

/// An answer that is there while this value is.
#[derive(Debug)]
pub(crate) struct Offer {
    challenges: Arc<Challenges>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Name(String),
    Token(String),
}

impl Drop for Offer {
    fn drop(&mut self) {
        match &self.place {
            Place::Name(name) => {
                self.challenges.certificates.write().remove(name);
            }
            Place::Token(token) => {
                self.challenges.texts.write().remove(token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_there_while_its_offer_is() {
        let challenges = Arc::new(Challenges::default());
        let offer = challenges.offer_certificate("Lab.example", &[7; 32]).unwrap();
        assert!(challenges.certificate(Some("lab.EXAMPLE.")).is_some());
        assert!(challenges.certificate(Some("other.example")).is_none() && challenges.certificate(None).is_none());
        drop(offer);
        assert!(challenges.certificate(Some("lab.example")).is_none());
        let offer = challenges.offer_text("tok", "tok.thumb");
        assert_eq!(challenges.text("/.well-known/acme-challenge/tok").as_deref(), Some("tok.thumb"));
        for other in ["/.well-known/acme-challenge/", "/.well-known/acme-challenge/tok/", "/tok", ""] {
            assert_eq!(challenges.text(other), None, "{other}");
        }
        drop(offer);
        assert_eq!(challenges.text("/.well-known/acme-challenge/tok"), None);
        assert!(challenges.offer_certificate("lab.example", b"short").is_err());
    }

    #[test]
    fn an_address_is_asked_for_by_its_name_in_reverse() {
        assert_eq!(asked_as("127.0.2.9"), "9.2.0.127.in-addr.arpa");
        let sixth = asked_as("2001:db8::1");
        assert!(sixth.starts_with("1.0.0.0.") && sixth.ends_with(".8.b.d.0.1.0.0.2.ip6.arpa"), "{sixth}");
    }
}
