//! Refresh tokens (RFC 6749 section 6) with rotation: each is good once. One that comes back after use was stolen, by
//! whoever sent it first or second, so its whole family ends (RFC 9700 section 4.14).

use super::{Store, StoreError, hash_secret, now, random_secret, seconds};
use kfbox_db::rusqlite::{OptionalExtension as _, params};
use std::time::Duration;

/// What a refresh token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub email: String,
    pub client: String,
    /// Space-separated.
    pub scope: String,
    pub auth_time: i64,
    /// Names all that descends from one sign-in of one client.
    pub family: String,
}

#[derive(Debug)]
pub enum Redeemed {
    /// The grant, and the token that replaces the one given.
    Good {
        grant: Grant,
        next: String,
    },
    Unknown,
    /// Used before: everything descended from the same sign-in was revoked.
    Reused {
        email: String,
        family: String,
    },
}

impl Store {
    pub async fn issue_refresh(&self, grant: Grant, lifetime: Duration) -> Result<String, StoreError> {
        let secret = random_secret();
        let hash = hash_secret(&secret);
        let (now, expires) = (now(), now().saturating_add(seconds(lifetime)));
        self.db
            .write::<_, StoreError, _>(move |tx| {
                tx.execute("DELETE FROM refresh WHERE expires <= ?1", [now])?;
                tx.execute(
                    "INSERT INTO refresh (hash, family, email, client, scope, auth_time, expires, used)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0)",
                    params![
                        hash.as_slice(),
                        grant.family,
                        grant.email,
                        grant.client,
                        grant.scope,
                        grant.auth_time,
                        expires
                    ],
                )?;
                Ok(())
            })
            .await?;
        Ok(secret)
    }

    /// Whose unused token this is.
    pub async fn refresh_owner(&self, secret: &str, client: &str) -> Result<Option<String>, StoreError> {
        let (hash, client, now) = (hash_secret(secret), client.to_owned(), now());
        self.db
            .read::<_, StoreError, _>(move |c| {
                let sql = "SELECT email FROM refresh WHERE hash = ?1 AND client = ?2 AND expires > ?3 AND used = 0";
                Ok(c.query_row(sql, params![hash.as_slice(), client, now], |r| r.get(0)).optional()?)
            })
            .await
    }

    /// Uses a token of this client. The lifetime counts from the sign-in: rotation does not extend it.
    pub async fn redeem_refresh(&self, secret: &str, client: &str) -> Result<Redeemed, StoreError> {
        let (hash, client, now) = (hash_secret(secret), client.to_owned(), now());
        let next = random_secret();
        let next_hash = hash_secret(&next);
        self.db
            .write::<_, StoreError, _>(move |tx| {
                let found = tx
                    .query_row(
                        "SELECT family, email, scope, auth_time, expires, used FROM refresh
                         WHERE hash = ?1 AND client = ?2 AND expires > ?3",
                        params![hash.as_slice(), client, now],
                        |r| {
                            let grant = Grant {
                                email: r.get(1)?,
                                client: client.clone(),
                                scope: r.get(2)?,
                                auth_time: r.get(3)?,
                                family: r.get(0)?,
                            };
                            Ok((grant, r.get::<_, i64>(4)?, r.get::<_, bool>(5)?))
                        },
                    )
                    .optional()?;
                let Some((grant, expires, used)) = found else { return Ok(Redeemed::Unknown) };
                if used {
                    tx.execute("DELETE FROM refresh WHERE family = ?1", [&grant.family])?;
                    return Ok(Redeemed::Reused { email: grant.email, family: grant.family });
                }
                tx.execute("UPDATE refresh SET used = 1 WHERE hash = ?1", [hash.as_slice()])?;
                tx.execute(
                    "INSERT INTO refresh (hash, family, email, client, scope, auth_time, expires, used)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0)",
                    params![
                        next_hash.as_slice(),
                        grant.family,
                        grant.email,
                        grant.client,
                        grant.scope,
                        grant.auth_time,
                        expires
                    ],
                )?;
                Ok(Redeemed::Good { grant, next })
            })
            .await
    }
}
