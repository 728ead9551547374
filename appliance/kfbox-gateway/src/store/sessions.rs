//! Browser sessions: a random secret in a cookie, its hash here.

use super::{SecretHash, Store, StoreError, hash_secret, now, random_secret, seconds, secret_hash, users::User};
use kfbox_db::rusqlite::{Connection, params};
use serde::Serialize;
use std::{collections::HashMap, time::Duration};

/// Sessions a user may have at once; the oldest ends when another begins. Bounds memory and the list people look at.
pub const PER_USER: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Names the session in lists; not the secret.
    pub id: String,
    pub email: String,
    /// When the user signed in; seconds since 1970, as is `expires`.
    pub created: i64,
    pub expires: i64,
    pub address: String,
    pub agent: String,
}

pub(super) fn load(connection: &Connection) -> Result<HashMap<SecretHash, Session>, StoreError> {
    let mut statement = connection.prepare("SELECT * FROM sessions")?;
    let mut rows = statement.query([])?;
    let mut sessions = HashMap::new();
    while let Some(row) = rows.next()? {
        let session = Session {
            id: row.get("id")?,
            email: row.get("email")?,
            created: row.get("created")?,
            expires: row.get("expires")?,
            address: row.get("address")?,
            agent: row.get("agent")?,
        };
        sessions.insert(secret_hash(row, "hash")?, session);
    }
    Ok(sessions)
}

impl Store {
    /// Begins a session and returns its secret.
    pub async fn begin_session(
        &self,
        user: &User,
        lifetime: Duration,
        address: &str,
        agent: &str,
    ) -> Result<String, StoreError> {
        // Held over the commit, so that a password changed or a user disabled since the check wins.
        let _changes = self.changes.lock().await;
        if self.active_user(&user.email).is_none_or(|u| u.password != user.password) {
            return Err(StoreError::NoSuchUser(user.email.clone()));
        }
        let (secret, now) = (random_secret(), now());
        let hash = hash_secret(&secret);
        let session = Session {
            id: uuid::Uuid::new_v4().to_string(),
            email: user.email.clone(),
            created: now,
            expires: now.saturating_add(seconds(lifetime)),
            address: address.chars().take(64).collect(),
            agent: agent.chars().filter(|c| !c.is_control()).take(200).collect(),
        };
        let mut ended = self.surplus_sessions(&user.email);
        if self.sweep_due(now) {
            ended.extend(self.sessions.read().iter().filter(|(_, s)| s.expires <= now).map(|(hash, _)| *hash));
        }
        let (stored, gone) = (session.clone(), ended.clone());
        self.db
            .write::<_, StoreError, _>(move |tx| {
                for hash in &gone {
                    tx.execute("DELETE FROM sessions WHERE hash = ?1", [hash.as_slice()])?;
                }
                tx.execute(
                    "INSERT INTO sessions (hash, id, email, created, expires, address, agent)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![
                        hash.as_slice(),
                        stored.id,
                        stored.email,
                        stored.created,
                        stored.expires,
                        stored.address,
                        stored.agent
                    ],
                )?;
                Ok(())
            })
            .await?;
        let mut sessions = self.sessions.write();
        for hash in &ended {
            sessions.remove(hash);
        }
        sessions.insert(hash, session);
        Ok(secret)
    }

    fn surplus_sessions(&self, email: &str) -> Vec<SecretHash> {
        let sessions = self.sessions.read();
        let mut own: Vec<_> = sessions.iter().filter(|(_, s)| s.email == email).map(|(h, s)| (s.created, *h)).collect();
        own.sort_unstable();
        let surplus = (own.len() + 1).saturating_sub(PER_USER);
        own.into_iter().take(surplus).map(|(_, hash)| hash).collect()
    }

    /// The session and its user, when both are good now.
    pub fn session(&self, secret: &str) -> Option<(Session, User)> {
        let session = self.sessions.read().get(&hash_secret(secret)).filter(|s| s.expires > now()).cloned()?;
        let user = self.active_user(&session.email)?;
        Some((session, user))
    }

    /// Ends the session with this secret; true when there was one.
    pub async fn end_session(&self, secret: &str) -> Result<bool, StoreError> {
        let hash = hash_secret(secret);
        self.end(vec![hash]).await.map(|n| n > 0)
    }

    /// Of one user, or of all; newest first.
    pub fn list_sessions(&self, email: Option<&str>) -> Vec<Session> {
        let now = now();
        let sessions = self.sessions.read();
        let mut list: Vec<_> =
            sessions.values().filter(|s| s.expires > now && email.is_none_or(|e| s.email == e)).cloned().collect();
        list.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        list
    }

    /// Ends the session with this id; true when there was one.
    pub async fn revoke_session(&self, id: &str) -> Result<bool, StoreError> {
        let hashes = self.sessions.read().iter().filter(|(_, s)| s.id == id).map(|(h, _)| *h).collect();
        self.end(hashes).await.map(|n| n > 0)
    }

    pub(super) async fn end_sessions_of(&self, email: &str) -> Result<(), StoreError> {
        let hashes = self.sessions.read().iter().filter(|(_, s)| s.email == email).map(|(h, _)| *h).collect();
        self.end(hashes).await?;
        let email = email.to_owned();
        self.db
            .write::<_, StoreError, _>(move |tx| {
                tx.execute("DELETE FROM refresh WHERE email = ?1", [&email])?;
                Ok(())
            })
            .await
    }

    async fn end(&self, hashes: Vec<SecretHash>) -> Result<usize, StoreError> {
        let gone = hashes.clone();
        self.db
            .write::<_, StoreError, _>(move |tx| {
                for hash in &gone {
                    tx.execute("DELETE FROM sessions WHERE hash = ?1", [hash.as_slice()])?;
                }
                Ok(())
            })
            .await?;
        let mut sessions = self.sessions.write();
        Ok(hashes.iter().filter(|hash| sessions.remove(*hash).is_some()).count())
    }
}
