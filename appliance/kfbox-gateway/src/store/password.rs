//! Passwords: argon2id for ours, bcrypt accepted for hashes imported from Dex's `staticPasswords`.
//! Guarantee: checking the password of an unknown user costs what checking a known one does.

use super::StoreError;
use argon2::{Argon2, PasswordHasher as _, PasswordVerifier as _, password_hash::phc::PasswordHash};
use std::sync::{Arc, OnceLock};
use tokio::sync::Semaphore;

/// Hashes computed at once. Each takes 19 MiB and a core for tens of milliseconds; more would let a flood of sign-ins
/// starve the platform.
const CONCURRENT: usize = 2;
/// Callers who may wait for those; beyond it, sign-in says it is busy.
const WAITING: usize = 64;

/// Shortest password accepted when one is set.
pub const MIN_LENGTH: usize = 8;
/// Longest: bounds the cost of hashing what a stranger sends.
pub const MAX_LENGTH: usize = 512;

pub struct Hashing {
    slots: Arc<Semaphore>,
    queue: Arc<Semaphore>,
}

impl Default for Hashing {
    fn default() -> Self {
        Self { slots: Arc::new(Semaphore::new(CONCURRENT)), queue: Arc::new(Semaphore::new(CONCURRENT + WAITING)) }
    }
}

impl Hashing {
    /// Hashes a new password.
    pub async fn hash(&self, password: String) -> Result<String, StoreError> {
        check_new(&password)?;
        self.run(move || hash(&password)).await?
    }

    /// True when the password fits the stored hash. Without a stored hash it works as long, and answers false.
    pub async fn verify(&self, password: String, stored: Option<String>) -> Result<bool, StoreError> {
        if password.len() > MAX_LENGTH {
            return Ok(false);
        }
        self.run(move || match stored {
            Some(stored) => verify(&password, &stored),
            None => {
                verify(&password, decoy());
                false
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
        let busy = |_| StoreError::Hash("too many sign-ins are waiting".into());
        let _queued = self.queue.clone().try_acquire_owned().map_err(busy)?;
        let slot = self.slots.clone().acquire_owned().await.map_err(|e| StoreError::Hash(e.to_string()))?;
        tokio::task::spawn_blocking(move || {
            let _slot = slot;
            work()
        })
        .await
        .map_err(|e| StoreError::Hash(e.to_string()))
    }
}

pub fn check_new(password: &str) -> Result<(), StoreError> {
    if password.chars().count() < MIN_LENGTH {
        return Err(StoreError::Invalid(format!("a password has at least {MIN_LENGTH} characters")));
    }
    if password.len() > MAX_LENGTH {
        return Err(StoreError::Invalid(format!("a password has at most {MAX_LENGTH} bytes")));
    }
    Ok(())
}

/// A hash from elsewhere may be stored when it is one we can check.
pub fn check_imported(stored: &str) -> Result<(), StoreError> {
    let known = stored.parse::<bcrypt::HashParts>().is_ok()
        || PasswordHash::new(stored).is_ok_and(|h| h.algorithm.as_str().starts_with("argon2"));
    if known { Ok(()) } else { Err(StoreError::Invalid("the hash is neither bcrypt nor argon2".into())) }
}

fn hash(password: &str) -> Result<String, StoreError> {
    // The default parameters are OWASP's first recommendation for argon2id: 19 MiB, two passes, one lane.
    let hash: PasswordHash =
        Argon2::default().hash_password(password.as_bytes()).map_err(|e| StoreError::Hash(e.to_string()))?;
    Ok(hash.to_string())
}

fn verify(password: &str, stored: &str) -> bool {
    if stored.starts_with("$2") {
        return bcrypt::verify(password, stored).unwrap_or(false);
    }
    Argon2::default().verify_password(password.as_bytes(), stored).is_ok()
}

fn decoy() -> &'static str {
    static DECOY: OnceLock<String> = OnceLock::new();
    DECOY.get_or_init(|| hash(&super::random_secret()).unwrap_or_default())
}

/// A password that a person can type: 20 characters without look-alikes, 99 bits, in groups of five.
pub fn generate() -> String {
    const ALPHABET: &[u8; 31] = b"abcdefghjkmnpqrstuvwxyz23456789";
    let mut text = String::with_capacity(23);
    for n in 0..20 {
        if n > 0 && n % 5 == 0 {
            text.push('-');
        }
        text.push(char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn argon2_and_bcrypt_are_checked_and_others_refused() {
        let hashing = Hashing::default();
        let ours = hashing.hash("correct horse".into()).await.unwrap();
        assert!(ours.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{ours}");
        assert!(hashing.verify("correct horse".into(), Some(ours.clone())).await.unwrap());
        assert!(!hashing.verify("correct hors".into(), Some(ours)).await.unwrap());
        let imported = bcrypt::hash("12341234", 4).unwrap();
        check_imported(&imported).unwrap();
        assert!(hashing.verify("12341234".into(), Some(imported)).await.unwrap());
        assert!(!hashing.verify("anything".into(), None).await.unwrap());
        assert!(check_imported("plain").is_err());
        assert!(check_imported("$5$rounds=5000$x$y").is_err());
        assert!(hashing.hash("short".into()).await.is_err());
    }

    #[test]
    fn generated_passwords_differ_and_are_acceptable() {
        let (a, b) = (generate(), generate());
        assert_ne!(a, b);
        assert_eq!(a.len(), 23);
        check_new(&a).unwrap();
    }
}
