//! Personal tokens: long-lived bearer secrets for programs, `kfb_` and 256 random bits, shown once.

use super::{
    SecretHash, Store, StoreError, hash_secret, now, random_secret, seconds, secret_hash, users::canonical_email,
};
use kfbox_base::UserInfo;
use kfbox_db::rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, time::Duration};

/// Makes a leaked token recognisable to secret scanners, and tells it from a JWT at a glance.
pub const PREFIX: &str = "kfb_";
/// Tokens a user may have: bounds memory.
pub const PER_USER: usize = 200;

/// Where a token is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The web routes: pipelines, KFAM, pages.
    Platform,
    /// The Kubernetes API.
    Kubernetes,
}

impl Scope {
    pub const ALL: [Self; 2] = [Self::Platform, Self::Kubernetes];
}

/// What is stored of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    pub id: String,
    pub email: String,
    pub name: String,
    pub scopes: Vec<Scope>,
    /// Seconds since 1970, as is `expires`.
    pub created: i64,
    pub expires: Option<i64>,
}

/// What is wanted of a new token.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    pub name: String,
    /// Never, when absent.
    pub expires_in: Option<Duration>,
    pub scopes: Vec<Scope>,
}

impl TokenRequest {
    /// Good everywhere.
    pub fn new(name: impl Into<String>, expires_in: Option<Duration>) -> Self {
        Self { name: name.into(), expires_in, scopes: Scope::ALL.to_vec() }
    }
}

/// A token just made: the only time that its secret can be read.
pub struct CreatedToken {
    pub token: Token,
    secret: String,
}

impl CreatedToken {
    pub fn reveal(&self) -> &str {
        &self.secret
    }
}

impl std::fmt::Debug for CreatedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedToken").field("token", &self.token).finish_non_exhaustive()
    }
}

pub(super) fn load(connection: &Connection) -> Result<HashMap<SecretHash, Token>, StoreError> {
    let mut statement = connection.prepare("SELECT * FROM tokens")?;
    let mut rows = statement.query([])?;
    let mut tokens = HashMap::new();
    while let Some(row) = rows.next()? {
        let scopes: String = row.get("scopes")?;
        let token = Token {
            id: row.get("id")?,
            email: row.get("email")?,
            name: row.get("name")?,
            scopes: serde_json::from_str(&scopes).map_err(|_| StoreError::Corrupt("a token's scopes"))?,
            created: row.get("created")?,
            expires: row.get("expires")?,
        };
        tokens.insert(secret_hash(row, "hash")?, token);
    }
    Ok(tokens)
}

impl Store {
    pub async fn create_token(&self, email: &str, request: TokenRequest) -> Result<CreatedToken, StoreError> {
        let email = canonical_email(email)?;
        let name = request.name.trim().to_owned();
        if name.is_empty() || name.chars().count() > 100 || name.chars().any(char::is_control) {
            return Err(StoreError::Invalid("a token's name has 1 to 100 printable characters".into()));
        }
        if request.scopes.is_empty() {
            return Err(StoreError::Invalid("a token has at least one scope: platform, kubernetes".into()));
        }
        if request.expires_in.is_some_and(|e| e.as_secs() == 0) {
            return Err(StoreError::Invalid("a token lives for at least a second".into()));
        }
        let _changes = self.changes.lock().await;
        if self.active_user(&email).is_none() {
            return Err(StoreError::NoSuchUser(email));
        }
        if self.tokens.read().values().filter(|t| t.email == email).count() >= PER_USER {
            return Err(StoreError::Invalid(format!("{email} has {PER_USER} tokens: revoke some first")));
        }
        let now = now();
        let mut scopes = request.scopes;
        scopes.sort_unstable();
        scopes.dedup();
        let token = Token {
            id: uuid::Uuid::new_v4().to_string(),
            email,
            name,
            scopes,
            created: now,
            expires: request.expires_in.map(|e| now.saturating_add(seconds(e))),
        };
        let secret = format!("{PREFIX}{}", random_secret());
        let (hash, stored) = (hash_secret(&secret), token.clone());
        self.db
            .write::<_, StoreError, _>(move |tx| {
                let scopes = serde_json::to_string(&stored.scopes).map_err(|_| StoreError::Corrupt("scopes"))?;
                tx.execute(
                    "INSERT INTO tokens (hash, id, email, name, scopes, created, expires)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![
                        hash.as_slice(),
                        stored.id,
                        stored.email,
                        stored.name,
                        scopes,
                        stored.created,
                        stored.expires
                    ],
                )?;
                Ok(())
            })
            .await?;
        self.tokens.write().insert(hash, token.clone());
        Ok(CreatedToken { token, secret })
    }

    /// Who a personal token speaks for, when it is good now and for this scope.
    pub fn token_user(&self, secret: &str, scope: Scope) -> Option<UserInfo> {
        if !secret.starts_with(PREFIX) {
            return None;
        }
        let email = {
            let tokens = self.tokens.read();
            let token = tokens.get(&hash_secret(secret))?;
            if token.expires.is_some_and(|e| e <= now()) || !token.scopes.contains(&scope) {
                return None;
            }
            token.email.clone()
        };
        self.active_info(&email)
    }

    /// Of one user, or of all; newest first.
    pub fn list_tokens(&self, email: Option<&str>) -> Vec<Token> {
        let tokens = self.tokens.read();
        let mut list: Vec<_> = tokens.values().filter(|t| email.is_none_or(|e| t.email == e)).cloned().collect();
        list.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        list
    }

    /// Revokes by id; true when there was such a token.
    pub async fn revoke_token(&self, id: &str) -> Result<bool, StoreError> {
        let wanted = id.to_owned();
        self.db
            .write::<_, StoreError, _>(move |tx| {
                tx.execute("DELETE FROM tokens WHERE id = ?1", [&wanted])?;
                Ok(())
            })
            .await?;
        let mut tokens = self.tokens.write();
        let before = tokens.len();
        tokens.retain(|_, t| t.id != id);
        Ok(tokens.len() < before)
    }
}
