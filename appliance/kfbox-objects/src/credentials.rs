//! Who may do what: a credential names places (a bucket, and a prefix of keys in it) that it may read or write.
//! Guarantee: what a credential may not see answers AccessDenied, whether it exists or not.

use crate::{
    Error,
    store::{Store, now},
};
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

/// One place a credential may use. Reading is always part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub bucket: String,
    /// Empty for the whole bucket; else it ends with `/`, so that `team/` is not also `teammates/`.
    #[serde(default)]
    pub prefix: String,
    #[serde(default)]
    pub write: bool,
}

impl Grant {
    pub fn read(bucket: &str, prefix: &str) -> Self {
        Self { bucket: bucket.into(), prefix: prefix.into(), write: false }
    }

    pub fn write(bucket: &str, prefix: &str) -> Self {
        Self { bucket: bucket.into(), prefix: prefix.into(), write: true }
    }
}

/// An access key with its secret. Its `Debug` form leaves the secret out.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    pub access_key: String,
    pub secret_key: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

impl Credential {
    pub(crate) fn generate() -> Self {
        use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
        const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let random: [u8; 20] = rand::random();
        let access_key = random.iter().map(|b| char::from(LETTERS[usize::from(b % 32)])).collect();
        Self { access_key, secret_key: BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 30]>()) }
    }
}

/// Who signed a request.
pub(crate) struct Principal {
    pub secret: String,
    /// `None`: everything.
    pub grants: Option<Vec<Grant>>,
}

impl Principal {
    fn any(&self, test: impl Fn(&Grant) -> bool) -> bool {
        self.grants.as_ref().is_none_or(|grants| grants.iter().any(test))
    }

    pub fn may_read(&self, bucket: &str, key: &str) -> bool {
        self.any(|g| g.bucket == bucket && key.starts_with(&g.prefix))
    }

    pub fn may_write(&self, bucket: &str, key: &str) -> bool {
        self.any(|g| g.write && g.bucket == bucket && key.starts_with(&g.prefix))
    }

    /// All keys under `prefix` must be readable, else a listing would show what lies beside.
    pub fn may_list(&self, bucket: &str, prefix: &str) -> bool {
        self.may_read(bucket, prefix)
    }

    /// Knows of the bucket, if not of all in it.
    pub fn sees(&self, bucket: &str) -> bool {
        self.any(|g| g.bucket == bucket)
    }

    /// May create, configure and delete the bucket.
    pub fn owns(&self, bucket: &str) -> bool {
        self.any(|g| g.write && g.bucket == bucket && g.prefix.is_empty())
    }
}

/// The credentials, in memory for every request's check.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    known: Arc<RwLock<HashMap<String, Arc<Principal>>>>,
}

impl Credentials {
    pub fn get(&self, access_key: &str) -> Option<Arc<Principal>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(access_key).cloned()
    }

    pub fn set(&self, credential: &Credential, grants: Option<Vec<Grant>>) {
        let principal = Principal { secret: credential.secret_key.clone(), grants };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(credential.access_key.clone(), Arc::new(principal));
    }

    fn forget(&self, access_key: &str) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(access_key);
    }

    pub async fn load(&self, store: &Store) -> Result<(), Error> {
        let rows = store
            .db
            .read(|c| {
                let mut statement = c.prepare("SELECT access_key, secret, grants FROM credential")?;
                let mut rows = statement.query([])?;
                let mut all = Vec::new();
                while let Some(row) = rows.next()? {
                    let grants: Vec<Grant> = serde_json::from_str(&row.get::<_, String>(2)?)?;
                    all.push((credential_from(row)?, grants));
                }
                Ok::<_, Error>(all)
            })
            .await?;
        for (credential, grants) in rows {
            self.set(&credential, Some(grants));
        }
        Ok(())
    }

    pub async fn create(
        &self,
        store: &Store,
        owner: &str,
        grants: Vec<Grant>,
        standing: bool,
    ) -> Result<Credential, Error> {
        if owner.is_empty() {
            return Err(Error::InvalidArgument("a credential has an owner".into()));
        }
        if let Some(bad) = grants.iter().find(|g| !g.prefix.is_empty() && !g.prefix.ends_with('/')) {
            return Err(Error::InvalidArgument(format!("the prefix {:?} of a grant must end with '/'", bad.prefix)));
        }
        let (new, name, json) = (Credential::generate(), owner.to_owned(), serde_json::to_string(&grants)?);
        let credential = store
            .db
            .write(move |tx| {
                if standing {
                    let old = tx
                        .query_row(
                            "UPDATE credential SET grants = ?2 WHERE owner = ?1 AND standing = 1 \
                             RETURNING access_key, secret",
                            params![name, json],
                            credential_from,
                        )
                        .optional()?;
                    if let Some(old) = old {
                        return Ok::<_, Error>(old);
                    }
                }
                tx.execute(
                    "INSERT INTO credential (access_key, secret, owner, standing, grants, created) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![new.access_key, new.secret_key, name, standing, json, now()],
                )?;
                Ok(new)
            })
            .await?;
        self.set(&credential, Some(grants));
        Ok(credential)
    }

    /// Revokes one access key, or all of an owner.
    pub async fn revoke(&self, store: &Store, column: RevokeBy, value: &str) -> Result<usize, Error> {
        let value = value.to_owned();
        let gone = store
            .db
            .write(move |tx| {
                let sql = match column {
                    RevokeBy::AccessKey => "DELETE FROM credential WHERE access_key = ?1 RETURNING access_key",
                    RevokeBy::Owner => "DELETE FROM credential WHERE owner = ?1 RETURNING access_key",
                };
                let mut statement = tx.prepare(sql)?;
                let keys = statement.query_map([value], |r| r.get(0))?.collect::<Result<Vec<String>, _>>()?;
                Ok::<_, Error>(keys)
            })
            .await?;
        gone.iter().for_each(|key| self.forget(key));
        Ok(gone.len())
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum RevokeBy {
    AccessKey,
    Owner,
}

fn credential_from(row: &Row<'_>) -> rusqlite::Result<Credential> {
    Ok(Credential { access_key: row.get(0)?, secret_key: row.get(1)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(grants: Vec<Grant>) -> Principal {
        Principal { secret: String::new(), grants: Some(grants) }
    }

    #[test]
    fn a_prefix_confines() {
        let p = principal(vec![Grant::write("shared", "private/ann/"), Grant::read("shared", "public/")]);
        assert!(p.may_write("shared", "private/ann/x"));
        assert!(!p.may_write("shared", "private/anna/x"));
        assert!(!p.may_write("shared", "public/x") && p.may_read("shared", "public/x"));
        assert!(!p.may_list("shared", "private/") && p.may_list("shared", "private/ann/"));
        assert!(!p.may_list("shared", "private/ann"));
        assert!(p.sees("shared") && !p.owns("shared") && !p.sees("other"));
        assert!(!p.may_read("other", "private/ann/x"));
        assert!(principal(vec![Grant::write("mine", "")]).owns("mine"));
    }

    #[test]
    fn secrets_stay_out_of_debug_forms() {
        let c = Credential::generate();
        assert!(!format!("{c:?}").contains(&c.secret_key));
        assert_eq!((c.access_key.len(), c.secret_key.len()), (20, 40));
    }
}
