//! Whether people who signed in through a directory are still in it, asked again while they use the box.
//!
//! Guarantees: who was removed there, or is in no group any more that may come, is out at the first use after the
//! connector's `recheck_seconds`; so are their tokens and what was scheduled in their name. Groups are brought up to date
//! on the way. One question at a time for one person, and none for who does nothing. A directory that is away costs
//! nobody their session, only its time limit once a minute: then it is asked again.
//! Assumption: only a directory can be asked this. Another OpenID Connect provider tells of people when they sign in.

use super::{Refusal, ldap};
use crate::{
    Gateway, LOCAL,
    store::{StoreError, users::User},
};
use kfbox_base::UserInfo;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// How soon a directory that could not be asked is asked again.
const AGAIN: Duration = Duration::from_secs(60);

type Next = Arc<tokio::sync::Mutex<Option<Instant>>>;

/// When each person is looked up next. As many entries as there are people who came since the start.
#[derive(Default)]
pub(crate) struct Presence(Mutex<HashMap<String, Next>>);

impl Presence {
    fn of(&self, email: &str) -> Next {
        self.0.lock().entry(email.to_owned()).or_default().clone()
    }

    /// The directory has just said that they are there.
    pub fn seen(&self, email: &str, recheck: Duration) {
        let next = tokio::sync::Mutex::new(Some(Instant::now() + recheck));
        self.0.lock().insert(email.to_owned(), Arc::new(next));
    }

    /// The next use asks.
    pub fn forget(&self, email: &str) {
        self.0.lock().remove(email);
    }
}

impl Gateway {
    /// Somebody who has proved who they are, with today's groups. `None`: they are let in no more.
    pub async fn as_they_are(&self, user: UserInfo) -> Option<UserInfo> {
        {
            let users = self.inner.store.users.read();
            match users.get(&user.username) {
                None => return Some(user),
                Some(known) if known.is_out() => return None,
                Some(known) if known.connector == LOCAL => return Some(known.info()),
                Some(_) => {}
            }
        }
        self.still_let_in(&user.username).await.then(|| self.active_user(&user.username).unwrap_or(user))
    }

    /// Whether somebody of this address is let in now. Who is not known here is not judged here.
    pub async fn still_let_in(&self, email: &str) -> bool {
        let member = {
            let users = self.inner.store.users.read();
            match users.get(email) {
                None => return true,
                Some(user) if user.is_out() => return false,
                Some(user) if user.connector == LOCAL => return true,
                Some(user) => user.clone(),
            }
        };
        self.look_for(&member).await;
        !self.is_disabled(email)
    }

    /// Asks the directory of this person, when it is time.
    async fn look_for(&self, user: &User) {
        let Some(directory) = self.directory(&user.connector) else { return };
        let next = self.inner.presence.of(&user.email);
        let mut next = next.lock().await;
        if next.is_some_and(|at| at > Instant::now()) {
            return;
        }
        let mut wait = Duration::from_secs(directory.config.recheck_seconds);
        match ldap::still(self, directory, user).await {
            Ok(Some(_)) => {}
            Err(Refusal::Unavailable(..)) => wait = wait.min(AGAIN),
            Ok(None)
            | Err(Refusal::Refused(_) | Refusal::Store(StoreError::UserExists(_) | StoreError::Invalid(_))) => {
                self.departed(user).await;
            }
            Err(Refusal::Store(error)) => {
                tracing::warn!(%error, user = %user.email, "cannot be brought up to date");
                wait = wait.min(AGAIN);
            }
        }
        *next = Some(Instant::now() + wait);
    }

    /// The directory no longer has them, or they may no longer come: everything of theirs ends until they sign in again.
    pub(crate) async fn departed(&self, user: &User) {
        tracing::warn!(target: "audit", user = %user.email, connector = %user.connector,
            "signed out: the directory no longer has this person, or they may not come");
        if let Err(error) = self.inner.store.set_departed(user).await {
            tracing::error!(%error, user = %user.email, "somebody who is gone from the directory could not be signed out");
        }
    }
}
