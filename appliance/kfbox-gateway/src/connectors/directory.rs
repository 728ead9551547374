//! A conversation with an LDAP directory (RFC 4511): connect, bind, search, each within one time limit.
//!
//! Guarantees: what a person typed is escaped before it is part of a filter (RFC 4515); nobody is bound without a
//! password, since directories take that as anonymous and say yes; certificates are checked, and StartTLS is over before
//! anything else is sent; the connection ends with the value.
//! Assumption: the directory is the operator's own. Its answers are limited in number by what is asked, and in time.

use super::ldap::{LdapConnector, Scope};
use crate::web::{self, WebError};
use futures::future::BoxFuture;
use ldap3::{LdapConnAsync, LdapConnSettings, LdapError, LdapResult, SearchEntry, SearchOptions, ldap_escape};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// Conversations at once with one directory; those who wait longer than the time limit are told that it is busy.
const AT_ONCE: usize = 8;
/// A name that is longer is no name.
const LONGEST_NAME: usize = 256;

/// Result codes of RFC 4511 that mean something here.
const SUCCESS: u32 = 0;
const SIZE_LIMIT: u32 = 4;
const CONSTRAINT_VIOLATION: u32 = 19;
const NO_SUCH_OBJECT: u32 = 32;
const INVALID_CREDENTIALS: u32 = 49;

/// Why the directory was of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("it does not answer in time")]
    Slow,
    #[error("it closed the connection")]
    Closed,
    #[error(transparent)]
    Ldap(#[from] LdapError),
    #[error("{what}: code {code} {text}")]
    Refused { what: &'static str, code: u32, text: String },
    #[error("more than one entry fits")]
    Ambiguous,
    #[error("the entry {dn} has no {attribute}")]
    Missing { dn: String, attribute: String },
}

/// Where a directory is and how it is trusted.
pub(crate) struct Directory {
    pub config: LdapConnector,
    url: String,
    settings: LdapConnSettings,
    slots: Arc<Semaphore>,
}

impl Directory {
    pub fn new(config: LdapConnector) -> Result<Self, String> {
        let wrong = |e: WebError| format!("connector {}: {e}", config.id);
        let mut settings = LdapConnSettings::new();
        if !config.insecure_no_ssl {
            let pem = config.root_ca.as_ref().map(std::fs::read).transpose();
            let pem = pem.map_err(|e| format!("connector {}: root_ca: {e}", config.id))?;
            // An authority that is named is the only one trusted, as in Dex.
            let roots = match pem {
                Some(pem) => web::authorities_in(&pem),
                None => web::machine_authorities(),
            };
            let tls = web::client_tls(roots.map_err(wrong)?).map_err(wrong)?;
            settings = settings.set_config(Arc::new(tls)).set_starttls(config.start_tls);
        }
        let plain = config.insecure_no_ssl || config.start_tls;
        let url = format!("{}://{}", if plain { "ldap" } else { "ldaps" }, config.host);
        if config.insecure_no_ssl {
            tracing::warn!(connector = %config.id, host = %config.host, "passwords go to this directory without TLS");
        }
        Ok(Self { config, url, settings, slots: Arc::new(Semaphore::new(AT_ONCE)) })
    }

    /// Connects, and binds as the service account, if there is one.
    pub async fn talk(&self) -> Result<Talk, Trouble> {
        let deadline = Instant::now() + Duration::from_secs(self.config.timeout_seconds);
        let opened = async {
            let slot = self.slots.clone().acquire_owned().await.map_err(|_| Trouble::Closed)?;
            let (connection, ldap) = LdapConnAsync::with_settings(self.settings.clone(), &self.url).await?;
            Ok::<_, Trouble>(Talk { ldap, drive: Box::pin(connection.drive()), deadline, _slot: slot })
        };
        let mut talk = timeout_at(deadline, opened).await.map_err(|_| Trouble::Slow)??;
        self.as_service(&mut talk).await?;
        Ok(talk)
    }

    async fn as_service(&self, talk: &mut Talk) -> Result<(), Trouble> {
        let LdapConnector { bind_dn, bind_pw, .. } = &self.config;
        // Both are empty for an anonymous search; the configuration has neither without the other.
        let result = talk.bind(bind_dn, bind_pw).await?;
        refused("the service account's bind", &result)
    }

    /// The one entry of this login name. `None`: nobody, or what no entry can be called.
    pub async fn find(&self, talk: &mut Talk, login: &str) -> Result<Option<SearchEntry>, Trouble> {
        if login.is_empty() || login.len() > LONGEST_NAME || login.chars().any(char::is_control) {
            return Ok(None);
        }
        let search = &self.config.user_search;
        self.user(talk, &format!("({}={})", search.username, ldap_escape(login))).await
    }

    /// The entry of somebody who signed in before, by the name for all time.
    pub async fn find_again(&self, talk: &mut Talk, subject: &str) -> Result<Option<SearchEntry>, Trouble> {
        let search = &self.config.user_search;
        if is_dn(&search.id_attr) {
            let filter = some_filter(&search.filter);
            return one(talk.search(subject, ldap3::Scope::Base, filter, self.wanted(), 2).await?);
        }
        let value = match subject.strip_prefix('#').and_then(|text| hex::decode(text).ok()) {
            Some(bytes) => bytes.iter().map(|b| format!("\\{b:02x}")).collect(),
            None => ldap_escape(subject).into_owned(),
        };
        self.user(talk, &format!("({}={value})", search.id_attr)).await
    }

    async fn user(&self, talk: &mut Talk, filter: &str) -> Result<Option<SearchEntry>, Trouble> {
        let search = &self.config.user_search;
        let filter = format!("(&{}{filter})", some_filter(&search.filter));
        // Two are enough to see that there is not one.
        one(talk.search(&search.base_dn, search.scope.into(), &filter, self.wanted(), 2).await?)
    }

    /// The attributes of a person that are asked for.
    fn wanted(&self) -> Vec<String> {
        let search = &self.config.user_search;
        let own = [&search.id_attr, &search.email_attr, &search.username, &search.name_attr];
        let matchers = self.config.group_search.iter().flat_map(|g| g.matchers());
        let mut all: Vec<String> = own.into_iter().chain([&search.preferred_username_attr]).cloned().collect();
        all.extend(matchers.map(|m| m.user_attr));
        all.retain(|name| !name.is_empty() && !is_dn(name));
        all.sort();
        all.dedup();
        // An empty list would mean all of them.
        if all.is_empty() { vec!["1.1".into()] } else { all }
    }

    /// Whether the password is this entry's. Afterwards the conversation is the service account's again.
    pub async fn fits(&self, talk: &mut Talk, dn: &str, password: &str) -> Result<bool, Trouble> {
        if dn.is_empty() || password.is_empty() {
            return Ok(false);
        }
        let result = talk.bind(dn, password).await?;
        if matches!(result.rc, INVALID_CREDENTIALS | CONSTRAINT_VIOLATION) {
            return Ok(false);
        }
        refused("a person's bind", &result)?;
        self.as_service(talk).await?;
        Ok(true)
    }

    /// The groups of an entry, by their names.
    pub async fn groups(&self, talk: &mut Talk, entry: &SearchEntry) -> Result<Vec<String>, Trouble> {
        let Some(search) = &self.config.group_search else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for matcher in search.matchers() {
            for value in values(entry, &matcher.user_attr) {
                let mine = format!("({}={})", matcher.group_attr, ldap_escape(value));
                let filter = format!("(&{}{mine})", some_filter(&search.filter));
                let wanted = vec![search.name_attr.clone()];
                let most = i32::try_from(super::MOST_GROUPS).unwrap_or(i32::MAX);
                let (groups, _) = talk.search(&search.base_dn, search.scope.into(), &filter, wanted, most).await?;
                names.extend(groups.iter().filter_map(|g| values(g, &search.name_attr).into_iter().next()));
                if names.len() >= super::MOST_GROUPS {
                    return Ok(names);
                }
            }
        }
        Ok(names)
    }
}

/// An open connection, and how long it may last in all.
pub(crate) struct Talk {
    ldap: ldap3::Ldap,
    drive: BoxFuture<'static, ldap3::result::Result<()>>,
    deadline: Instant,
    _slot: OwnedSemaphorePermit,
}

impl Talk {
    async fn bind(&mut self, dn: &str, password: &str) -> Result<LdapResult, Trouble> {
        let Self { ldap, drive, deadline, .. } = self;
        during(drive, *deadline, ldap.simple_bind(dn, password)).await
    }

    /// What was found, at most `most`, and whether there is more.
    async fn search(
        &mut self,
        base: &str,
        scope: ldap3::Scope,
        filter: &str,
        attributes: Vec<String>,
        most: i32,
    ) -> Result<(Vec<SearchEntry>, bool), Trouble> {
        let Self { ldap, drive, deadline, .. } = self;
        let seconds = i32::try_from(deadline.saturating_duration_since(Instant::now()).as_secs()).unwrap_or(i32::MAX);
        let options = SearchOptions::new().sizelimit(most).timelimit(seconds.max(1));
        let search = ldap.with_search_options(options).search(base, scope, filter, attributes);
        let ldap3::SearchResult(entries, result) = during(drive, *deadline, search).await?;
        if result.rc == NO_SUCH_OBJECT && scope == ldap3::Scope::Base {
            return Ok((Vec::new(), false));
        }
        if result.rc != SIZE_LIMIT {
            refused("a search", &result)?;
        }
        Ok((entries.into_iter().map(SearchEntry::construct).collect(), result.rc == SIZE_LIMIT))
    }
}

/// One operation while its connection is driven.
async fn during<T>(
    drive: &mut BoxFuture<'static, ldap3::result::Result<()>>,
    deadline: Instant,
    work: impl Future<Output = ldap3::result::Result<T>>,
) -> Result<T, Trouble> {
    tokio::select! {
        done = timeout_at(deadline, work) => Ok(done.map_err(|_| Trouble::Slow)??),
        ended = drive => match ended {
            Ok(()) => Err(Trouble::Closed),
            Err(error) => Err(error.into()),
        },
    }
}

fn refused(what: &'static str, result: &LdapResult) -> Result<(), Trouble> {
    match result.rc {
        SUCCESS => Ok(()),
        code => Err(Trouble::Refused { what, code, text: result.text.chars().take(200).collect() }),
    }
}

fn one((mut entries, more): (Vec<SearchEntry>, bool)) -> Result<Option<SearchEntry>, Trouble> {
    match (entries.len(), more) {
        (0 | 1, false) => Ok(entries.pop()),
        _ => Err(Trouble::Ambiguous),
    }
}

/// A configured filter, or one that everything fits.
fn some_filter(filter: &str) -> &str {
    if filter.is_empty() { "(objectClass=*)" } else { filter }
}

/// Dex's name for an entry's own name, where no attribute is called so.
fn is_dn(attribute: &str) -> bool {
    attribute == "DN"
}

/// The values of an attribute, whose name is compared without case. What is no text is `#` and hexadecimal digits.
pub(crate) fn values(entry: &SearchEntry, attribute: &str) -> Vec<String> {
    let same = |name: &str| name.eq_ignore_ascii_case(attribute);
    if let Some((_, found)) = entry.attrs.iter().find(|(name, _)| same(name)) {
        return found.clone();
    }
    if let Some((_, found)) = entry.bin_attrs.iter().find(|(name, _)| same(name)) {
        return found.iter().map(|bytes| format!("#{}", hex::encode(bytes))).collect();
    }
    if is_dn(attribute) { vec![entry.dn.clone()] } else { Vec::new() }
}

impl From<Scope> for ldap3::Scope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Sub => Self::Subtree,
            Scope::One => Self::OneLevel,
        }
    }
}
