//! Signed tokens that were revoked before their end, by their own id (`jti`) or that of the sign-in they descend from
//! (`sid`). An entry is kept until the last token that it could be about has expired.

use super::{Store, StoreError, now, seconds};
use kfbox_db::rusqlite::{Connection, OptionalExtension as _, params};
use std::{collections::HashMap, time::Duration};

pub(super) fn load(connection: &Connection) -> Result<HashMap<String, i64>, StoreError> {
    let mut statement = connection.prepare("SELECT id, expires FROM revoked")?;
    let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

impl Store {
    pub fn is_revoked(&self, id: &str) -> bool {
        !id.is_empty() && self.revoked.read().contains_key(id)
    }

    /// Revokes a token by its id; `expires` is its last second.
    pub async fn revoke_id(&self, id: &str, expires: i64) -> Result<(), StoreError> {
        self.revoke(id, expires, None).await
    }

    /// Ends a family: its refresh tokens, and the signed tokens that live for `life` at most.
    pub async fn revoke_family(&self, family: &str, life: Duration) -> Result<(), StoreError> {
        self.revoke(family, now().saturating_add(seconds(life)), Some(family.to_owned())).await
    }

    async fn revoke(&self, id: &str, expires: i64, family: Option<String>) -> Result<(), StoreError> {
        let (stored, now) = (id.to_owned(), now());
        self.db
            .write::<_, StoreError, _>(move |tx| {
                tx.execute("DELETE FROM revoked WHERE expires <= ?1", [now])?;
                if let Some(family) = family {
                    tx.execute("DELETE FROM refresh WHERE family = ?1", [family])?;
                }
                if !stored.is_empty() {
                    tx.execute(
                        "INSERT OR REPLACE INTO revoked (id, expires) VALUES (?1, ?2)",
                        params![stored, expires],
                    )?;
                }
                Ok(())
            })
            .await?;
        let mut revoked = self.revoked.write();
        revoked.retain(|_, expires| *expires > now);
        if !id.is_empty() {
            revoked.insert(id.to_owned(), expires);
        }
        Ok(())
    }

    /// The family and the user of a refresh token of this client, used or not.
    pub async fn refresh_family(&self, secret: &str, client: &str) -> Result<Option<(String, String)>, StoreError> {
        let (hash, client, now) = (super::hash_secret(secret), client.to_owned(), now());
        self.db
            .read::<_, StoreError, _>(move |c| {
                let found = c.query_row(
                    "SELECT family, email FROM refresh WHERE hash = ?1 AND client = ?2 AND expires > ?3",
                    params![hash.as_slice(), client, now],
                    |r| Ok((r.get(0)?, r.get(1)?)),
                );
                Ok(found.optional()?)
            })
            .await
    }
}
