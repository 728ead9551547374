//! Signing keys of the OIDC provider: ES256, kept in the database, replaced every 30 days. A replaced key stays
//! published until nothing that it signed can still be valid.

use super::{Store, StoreError, now};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode,
    jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash},
};
use kfbox_db::{Database, rusqlite::params};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;

/// Seconds that a key signs.
const SIGNS_FOR: i64 = 30 * 24 * 3600;
/// Seconds that a key is published after it stopped signing; longer than any token lives.
const PUBLISHED_FOR: i64 = 2 * 24 * 3600;
/// The longest life of a signed token.
pub const MAX_TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Longest text looked at as a JWT: bounds the work that a stranger's header causes.
pub const MAX_JWT: usize = 16 * 1024;

pub struct KeySet {
    /// Newest last; never empty.
    keys: Vec<Key>,
}

struct Key {
    kid: String,
    created: i64,
    signing: EncodingKey,
    checking: DecodingKey,
    public: Jwk,
}

impl Key {
    fn read(pkcs8: &[u8], created: i64) -> Result<Self, StoreError> {
        let failed = |e: jsonwebtoken::errors::Error| StoreError::Key(e.to_string());
        let signing = EncodingKey::from_ec_der(pkcs8);
        let mut public = Jwk::from_encoding_key(&signing, Algorithm::ES256).map_err(failed)?;
        let kid = public.thumbprint(ThumbprintHash::SHA256).map_err(failed)?;
        public.common.key_id = Some(kid.clone());
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        let checking = DecodingKey::from_jwk(&public).map_err(failed)?;
        Ok(Self { kid, created, signing, checking, public })
    }

    fn generate(now: i64) -> Result<(Self, Vec<u8>), StoreError> {
        let pair =
            rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|e| StoreError::Key(e.to_string()))?;
        let pkcs8 = pair.serialize_der();
        Ok((Self::read(&pkcs8, now)?, pkcs8))
    }
}

impl KeySet {
    pub(super) fn open(db: &Database) -> Result<Self, StoreError> {
        let mut keys = db.read_blocking::<_, StoreError, _>(|c| {
            let mut statement = c.prepare("SELECT pkcs8, created FROM keys ORDER BY created")?;
            let mut rows = statement.query([])?;
            let mut keys = Vec::new();
            while let Some(row) = rows.next()? {
                keys.push(Key::read(&row.get::<_, Vec<u8>>(0)?, row.get(1)?)?);
            }
            Ok(keys)
        })?;
        if keys.is_empty() {
            let (key, pkcs8) = Key::generate(now())?;
            let (kid, created) = (key.kid.clone(), key.created);
            db.write_blocking::<_, StoreError, _>(move |tx| {
                tx.execute("INSERT INTO keys (kid, pkcs8, created) VALUES (?1, ?2, ?3)", params![kid, pkcs8, created])?;
                Ok(())
            })?;
            keys.push(key);
        }
        Ok(Self { keys })
    }

    fn newest(&self) -> Option<&Key> {
        self.keys.last()
    }

    pub fn published(&self) -> JwkSet {
        JwkSet { keys: self.keys.iter().rev().map(|k| k.public.clone()).collect() }
    }

    pub fn sign<C: Serialize>(&self, token_type: &str, claims: &C) -> Result<String, StoreError> {
        let key = self.newest().ok_or(StoreError::Corrupt("no signing key"))?;
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(key.kid.clone());
        header.typ = Some(token_type.to_owned());
        encode(&header, claims, &key.signing).map_err(|e| StoreError::Key(e.to_string()))
    }

    /// The claims of an unexpired token that one of our keys signed for this issuer, and its `typ`. The audience is
    /// the caller's to check.
    pub fn verify<C: DeserializeOwned>(&self, token: &str, issuer: &str) -> Option<(C, String)> {
        self.check(token, issuer, true)
    }

    /// The claims of a token that one of our keys signed for this issuer, expired or not: good for a hint, not as proof.
    pub fn verify_expired<C: DeserializeOwned>(&self, token: &str, issuer: &str) -> Option<C> {
        self.check(token, issuer, false).map(|(claims, _)| claims)
    }

    fn check<C: DeserializeOwned>(&self, token: &str, issuer: &str, in_time: bool) -> Option<(C, String)> {
        if token.len() > MAX_JWT {
            return None;
        }
        let header = decode_header(token).ok()?;
        let kid = header.kid?;
        let key = self.keys.iter().find(|k| k.kid == kid)?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.leeway = 0;
        validation.validate_aud = false;
        validation.validate_exp = in_time;
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        let data = decode::<C>(token, &key.checking, &validation).ok()?;
        Some((data.claims, header.typ.unwrap_or_default()))
    }
}

impl Store {
    /// Makes a new signing key when the newest is old, and forgets those that nothing valid needs.
    pub async fn rotate_keys_if_due(&self) -> Result<(), StoreError> {
        self.rotate_keys_at(now()).await
    }

    pub(crate) async fn rotate_keys_at(&self, now: i64) -> Result<(), StoreError> {
        let due = |set: &KeySet| set.newest().is_none_or(|k| k.created.saturating_add(SIGNS_FOR) <= now);
        if !due(&self.keys.read()) {
            return Ok(());
        }
        let _changes = self.changes.lock().await;
        if !due(&self.keys.read()) {
            return Ok(());
        }
        let (key, pkcs8) = Key::generate(now)?;
        let (kid, created) = (key.kid.clone(), key.created);
        let keep_from = now.saturating_sub(SIGNS_FOR + PUBLISHED_FOR);
        // The key being replaced signed until now, however old it is.
        let last = self.keys.read().newest().map(|k| k.kid.clone()).unwrap_or_default();
        let replaced = last.clone();
        self.db
            .write::<_, StoreError, _>(move |tx| {
                tx.execute("DELETE FROM keys WHERE created < ?1 AND kid != ?2", params![keep_from, replaced])?;
                tx.execute("INSERT INTO keys (kid, pkcs8, created) VALUES (?1, ?2, ?3)", params![kid, pkcs8, created])?;
                Ok(())
            })
            .await?;
        let mut set = self.keys.write();
        set.keys.retain(|k| k.created >= keep_from || k.kid == last);
        set.keys.push(key);
        Ok(())
    }
}
