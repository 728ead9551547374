//! Users: people who sign in with an e-mail address and a password.

use super::{Store, StoreError, now, password};
use crate::connectors::Identity;
use kfbox_base::UserInfo;
use kfbox_db::rusqlite::{Connection, OptionalExtension as _, params};
use serde::Serialize;
use std::collections::HashMap;

/// A user as stored.
#[derive(Clone)]
pub struct User {
    pub email: String,
    pub uid: String,
    pub password: String,
    pub groups: Vec<String>,
    pub disabled: bool,
    /// Their directory no longer has them; signing in there again undoes it.
    pub departed: bool,
    pub created: i64,
    /// Tokens issued before this second are void.
    pub valid_after: i64,
    /// Who vouches for the user: `local`, or a connector of the configuration.
    pub connector: String,
    /// The user's name for all time at that connector; empty for `local`.
    pub subject: String,
    /// As the connector says it; empty where it does not.
    pub name: String,
    pub username: String,
}

impl User {
    /// Whether nothing may be done by them or in their name.
    pub fn is_out(&self) -> bool {
        self.disabled || self.departed
    }

    /// What people call the user.
    pub fn shown_name(&self) -> &str {
        if self.name.is_empty() { &self.email } else { &self.name }
    }

    pub fn preferred_username(&self) -> &str {
        if self.username.is_empty() { &self.email } else { &self.username }
    }

    pub fn info(&self) -> UserInfo {
        UserInfo { uid: self.uid.clone(), ..UserInfo::new(self.email.clone(), self.groups.clone()) }
    }
}

/// A user as listed: no secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UserView {
    pub email: String,
    pub groups: Vec<String>,
    pub disabled: bool,
    /// Gone from the directory that they came from.
    pub departed: bool,
    /// Seconds since 1970.
    pub created: i64,
}

/// A password made by kfbox, to be shown once.
pub struct GeneratedPassword(String);

impl GeneratedPassword {
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for GeneratedPassword {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GeneratedPassword(…)")
    }
}

pub(super) fn load(connection: &Connection) -> Result<HashMap<String, User>, StoreError> {
    let mut statement = connection.prepare("SELECT * FROM users")?;
    let mut rows = statement.query([])?;
    let mut users = HashMap::new();
    while let Some(row) = rows.next()? {
        let groups: String = row.get("groups")?;
        let user = User {
            email: row.get("email")?,
            uid: row.get("uid")?,
            password: row.get("password")?,
            groups: serde_json::from_str(&groups).map_err(|_| StoreError::Corrupt("a user's groups"))?,
            disabled: row.get("disabled")?,
            departed: row.get("departed")?,
            created: row.get("created")?,
            valid_after: row.get("valid_after")?,
            connector: row.get("connector")?,
            subject: row.get("subject")?,
            name: row.get("name")?,
            username: row.get("username")?,
        };
        users.insert(user.email.clone(), user);
    }
    Ok(users)
}

/// The one spelling of an address: users are equal when their addresses are, whatever the case.
pub fn canonical_email(email: &str) -> Result<String, StoreError> {
    let email = email.trim().to_lowercase();
    let valid = email.len() <= 254
        && email.split_once('@').is_some_and(|(local, domain)| {
            !local.is_empty()
                && !domain.is_empty()
                && domain.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
                && local.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c))
        });
    if valid { Ok(email) } else { Err(StoreError::Invalid(format!("{email:?} is not an e-mail address"))) }
}

/// Whether a user can be in it: Kubernetes gives meaning to `system:` groups; system:masters would pass every check.
pub fn is_group(group: &str) -> bool {
    !(group.is_empty() || group.starts_with("system:") || group.len() > 200 || group.chars().any(char::is_control))
}

fn check_groups(groups: &[String]) -> Result<(), StoreError> {
    for group in groups {
        if !is_group(group) {
            return Err(StoreError::Invalid(format!("{group:?} cannot be a user's group")));
        }
    }
    Ok(())
}

impl Store {
    /// Adds a user with a password.
    pub async fn add_user(&self, email: &str, password: &str, groups: &[String]) -> Result<(), StoreError> {
        let hash = self.hashing.hash(password.to_owned()).await?;
        self.insert_user(email, hash, groups).await
    }

    /// Adds a user with a bcrypt or argon2 hash made elsewhere.
    pub async fn import_user(&self, email: &str, hash: &str, groups: &[String]) -> Result<(), StoreError> {
        password::check_imported(hash)?;
        self.insert_user(email, hash.to_owned(), groups).await
    }

    async fn insert_user(&self, email: &str, password: String, groups: &[String]) -> Result<(), StoreError> {
        let email = canonical_email(email)?;
        check_groups(groups)?;
        let _changes = self.changes.lock().await;
        if self.users.read().contains_key(&email) {
            return Err(StoreError::UserExists(email));
        }
        let user = User {
            email,
            uid: uuid::Uuid::new_v4().to_string(),
            password,
            groups: groups.to_vec(),
            disabled: false,
            departed: false,
            created: now(),
            valid_after: 0,
            connector: crate::LOCAL.into(),
            subject: String::new(),
            name: String::new(),
            username: String::new(),
        };
        self.write_user(user).await
    }

    /// The user of a connector's identity, made at the first sign-in; later its groups are brought up to date.
    pub async fn federated_user(
        &self,
        connector: &str,
        identity: &Identity,
        groups: Vec<String>,
    ) -> Result<User, StoreError> {
        let email = canonical_email(&identity.email)?;
        // Every token carries them.
        let short = |text: &str| text.chars().filter(|c| !c.is_control()).take(200).collect::<String>();
        let (name, username) = (short(&identity.name), short(&identity.username));
        let _changes = self.changes.lock().await;
        let (found, moved) = {
            let users = self.users.read();
            let same = |u: &&User| u.connector == connector && u.subject == identity.subject;
            (
                users.get(&email).cloned(),
                users.values().find(same).filter(|u| u.email != email).map(|u| u.email.clone()),
            )
        };
        if let Some(before) = moved {
            return Err(StoreError::Invalid(format!(
                "{email} of connector {connector} is known here as {before}: remove that user first"
            )));
        }
        let groups_before = found.as_ref().map(|user| user.groups.clone());
        let user = match found {
            // Another connector's, one with a password here, or an address that was given to somebody else.
            Some(user) if user.connector != connector || user.subject != identity.subject => {
                return Err(StoreError::UserExists(email));
            }
            Some(user) if user.disabled => return Err(StoreError::Invalid(format!("{email} is disabled"))),
            Some(user) if user.groups == groups && user.name == name && user.username == username && !user.departed => {
                return Ok(user);
            }
            Some(user) => User { groups, name, username, departed: false, ..user },
            None => User {
                email,
                uid: uuid::Uuid::new_v4().to_string(),
                password: String::new(),
                groups,
                disabled: false,
                departed: false,
                created: now(),
                valid_after: 0,
                connector: connector.to_owned(),
                subject: identity.subject.clone(),
                name,
                username,
            },
        };
        self.write_user(user.clone()).await?;
        match groups_before {
            None => {
                tracing::info!(target: "audit", user = %user.email, connector, groups = ?user.groups, "user added by a connector");
            }
            Some(before) if before != user.groups => {
                tracing::info!(target: "audit", user = %user.email, connector, groups = ?user.groups, "groups changed by a connector");
            }
            Some(_) => {}
        }
        Ok(user)
    }

    async fn write_user(&self, user: User) -> Result<(), StoreError> {
        let stored = user.clone();
        self.db
            .write::<_, StoreError, _>(move |tx| {
                let groups = serde_json::to_string(&stored.groups).map_err(|_| StoreError::Corrupt("groups"))?;
                tx.execute(
                    "INSERT INTO users (email, uid, password, groups, disabled, created, valid_after, connector, subject,
                         name, username, departed)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
                     ON CONFLICT (email) DO UPDATE SET password = excluded.password, groups = excluded.groups,
                         disabled = excluded.disabled, valid_after = excluded.valid_after, name = excluded.name,
                         username = excluded.username, departed = excluded.departed",
                    params![
                        stored.email,
                        stored.uid,
                        stored.password,
                        groups,
                        stored.disabled,
                        stored.created,
                        stored.valid_after,
                        stored.connector,
                        stored.subject,
                        stored.name,
                        stored.username,
                        stored.departed
                    ],
                )?;
                Ok(())
            })
            .await?;
        self.users.write().insert(user.email.clone(), user);
        Ok(())
    }

    /// Sorted by address.
    pub fn list_users(&self) -> Vec<UserView> {
        let users = self.users.read();
        let mut views: Vec<_> = users
            .values()
            .map(|u| UserView {
                email: u.email.clone(),
                groups: u.groups.clone(),
                disabled: u.disabled,
                departed: u.departed,
                created: u.created,
            })
            .collect();
        views.sort_by(|a, b| a.email.cmp(&b.email));
        views
    }

    /// An enabled user.
    pub fn active_user(&self, email: &str) -> Option<User> {
        self.users.read().get(email).filter(|u| !u.is_out()).cloned()
    }

    /// The same as the platform knows them.
    pub fn active_info(&self, email: &str) -> Option<UserInfo> {
        self.users.read().get(email).filter(|u| !u.is_out()).map(User::info)
    }

    /// Changes the password and ends the user's sessions and OIDC tokens. Personal tokens stay.
    pub async fn set_password(&self, email: &str, password: &str) -> Result<(), StoreError> {
        if let Some(user) = self.users.read().get(&canonical_email(email)?).filter(|u| u.connector != crate::LOCAL) {
            let message = format!("{} signs in through {}: there is no password here", user.email, user.connector);
            return Err(StoreError::Invalid(message));
        }
        let hash = self.hashing.hash(password.to_owned()).await?;
        self.change_user(email, move |user| user.password = hash).await
    }

    /// The same by somebody who has just proved that they know the present one. Returns the user with the new one; an error if
    /// the password was set by somebody else meanwhile.
    pub async fn replace_password(&self, checked: &User, password: &str) -> Result<User, StoreError> {
        let hash = self.hashing.hash(password.to_owned()).await?;
        let (new, proved) = (hash.clone(), checked.clone());
        self.change_user(&checked.email, move |user| {
            if user.uid == proved.uid && user.password == proved.password {
                user.password = new;
            }
        })
        .await?;
        // No two hashes are equal, not even of one password.
        match self.users.read().get(&checked.email).is_some_and(|user| user.password == hash) {
            true => Ok(User { password: hash, ..checked.clone() }),
            false => Err(StoreError::Invalid("The password was changed by somebody else just now.".into())),
        }
    }

    /// A disabled user keeps everything and can do nothing; sessions and OIDC tokens end.
    pub async fn set_disabled(&self, email: &str, disabled: bool) -> Result<(), StoreError> {
        self.change_user(email, move |user| {
            user.disabled = disabled;
            user.departed &= disabled;
        })
        .await
    }

    /// The same for who is gone from their directory, until they sign in there again. Nothing, if somebody else has the
    /// address by now.
    pub async fn set_departed(&self, gone: &User) -> Result<(), StoreError> {
        if self.users.read().get(&gone.email).is_none_or(|user| user.uid != gone.uid) {
            return Ok(());
        }
        self.change_user(&gone.email, |user| user.departed = true).await
    }

    pub async fn set_groups(&self, email: &str, groups: &[String]) -> Result<(), StoreError> {
        check_groups(groups)?;
        let groups = groups.to_vec();
        self.change_user(email, move |user| user.groups = groups).await
    }

    async fn change_user(&self, email: &str, change: impl FnOnce(&mut User)) -> Result<(), StoreError> {
        let email = canonical_email(email)?;
        let _changes = self.changes.lock().await;
        let mut user = self.users.read().get(&email).cloned().ok_or_else(|| StoreError::NoSuchUser(email.clone()))?;
        change(&mut user);
        // A token issued in this very second counts as issued before.
        user.valid_after = now() + 1;
        self.write_user(user).await?;
        self.end_sessions_of(&email).await
    }

    /// Removes the user and everything issued to that user.
    pub async fn remove_user(&self, email: &str) -> Result<(), StoreError> {
        let email = canonical_email(email)?;
        let _changes = self.changes.lock().await;
        if !self.users.read().contains_key(&email) {
            return Err(StoreError::NoSuchUser(email));
        }
        let removed = email.clone();
        self.db
            .write::<_, StoreError, _>(move |tx| {
                tx.execute("DELETE FROM users WHERE email = ?1", [&removed])?;
                Ok(())
            })
            .await?;
        self.users.write().remove(&email);
        self.sessions.write().retain(|_, s| s.email != email);
        self.tokens.write().retain(|_, t| t.email != email);
        Ok(())
    }

    /// On the very first start, makes the administrator with a generated password; later answers `None`, also when
    /// all users were removed on purpose.
    pub async fn ensure_first_user(&self, email: &str) -> Result<Option<GeneratedPassword>, StoreError> {
        const FACT: &str = "first-user";
        let done = self
            .db
            .read::<_, StoreError, _>(|c| {
                Ok(c.query_row("SELECT value FROM facts WHERE name = ?1", [FACT], |r| r.get::<_, String>(0))
                    .optional()?)
            })
            .await?;
        if done.is_some() {
            return Ok(None);
        }
        let email = canonical_email(email)?;
        let generated = if self.users.read().is_empty() {
            let password = password::generate();
            self.add_user(&email, &password, &[kfbox_api::names::ADMIN_GROUP.to_owned()]).await?;
            Some(GeneratedPassword(password))
        } else {
            None
        };
        self.db
            .write::<_, StoreError, _>(move |tx| {
                tx.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?1, ?2)", params![FACT, email])?;
                Ok(())
            })
            .await?;
        Ok(generated)
    }

    /// Checks a password. `None` for a wrong one, an unknown and a disabled user alike, after the same work.
    pub async fn check_password(&self, email: &str, password: &str) -> Result<Option<User>, StoreError> {
        let user = canonical_email(email).ok().and_then(|email| self.active_user(&email));
        let user = user.filter(|u| u.connector == crate::LOCAL);
        let stored = user.as_ref().map(|u| u.password.clone());
        let fits = self.hashing.verify(password.to_owned(), stored).await?;
        Ok(user.filter(|_| fits))
    }
}
