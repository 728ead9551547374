//! Signing in with a name and a password of an LDAP directory. Fields are those of Dex's connector
//! (<https://dexidp.io/docs/connectors/ldap/>), in the file's spelling or in Dex's.
//!
//! Guarantees: an empty password is wrong before anybody is asked; guessing is braked by the name typed, by the entry
//! found and by the address; a name that two entries fit signs nobody in; a refresh token is good only while the
//! directory still has its user, and so are sessions (`presence`). What Dex's `insecureSkipVerify` does is not offered.

use super::{
    Groups, Identity, Refusal, admit, bring_up_to_date,
    directory::{Directory, Talk, Trouble, values},
};
use crate::{
    Gateway,
    limits::{Wait, account_at},
    sign_in::{Refused, keep_attempts},
    store::users::User,
};
use ldap3::SearchEntry;
use serde::{Deserialize, Serialize};
use std::{
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

/// A password that is longer is none.
const LONGEST_PASSWORD: usize = 512;

/// A directory as the configuration names it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LdapConnector {
    /// In addresses: `/dex/auth/ID`.
    pub id: String,
    #[serde(default)]
    pub name: String,
    /// `HOST[:PORT]`. The port is 636, or 389 without TLS from the start.
    pub host: String,
    /// Passwords cross the network as they are: for a directory on this very machine.
    #[serde(default, alias = "insecureNoSSL")]
    pub insecure_no_ssl: bool,
    #[serde(default, alias = "startTLS")]
    pub start_tls: bool,
    /// The certificate authorities of the directory in PEM, instead of the machine's.
    #[serde(default, alias = "rootCA")]
    pub root_ca: Option<PathBuf>,
    /// Who searches. Empty: anonymous.
    #[serde(default, alias = "bindDN")]
    pub bind_dn: String,
    #[serde(default, alias = "bindPW", skip_serializing)]
    pub bind_pw: String,
    /// What the page calls the name. Empty: `User name`.
    #[serde(default, alias = "usernamePrompt")]
    pub username_prompt: String,
    #[serde(alias = "userSearch")]
    pub user_search: UserSearch,
    #[serde(default, alias = "groupSearch")]
    pub group_search: Option<GroupSearch>,
    #[serde(default)]
    pub groups: Groups,
    /// For one sign-in, all its questions together.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u64,
    /// Who is signed in is looked up again when so long has passed since the last time, at their next use of the box.
    #[serde(default = "default_recheck", alias = "recheckSeconds")]
    pub recheck_seconds: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    #[default]
    Sub,
    One,
}

/// How a person's entry is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserSearch {
    #[serde(alias = "baseDN")]
    pub base_dn: String,
    #[serde(default)]
    pub filter: String,
    /// The attribute that is compared with the name typed.
    pub username: String,
    #[serde(default)]
    pub scope: Scope,
    /// The name for all time; `DN` for the entry's own.
    #[serde(default = "default_id", alias = "idAttr")]
    pub id_attr: String,
    #[serde(default = "default_email", alias = "emailAttr")]
    pub email_attr: String,
    /// Makes an address of the login name where the directory has none.
    #[serde(default, alias = "emailSuffix")]
    pub email_suffix: String,
    #[serde(default, alias = "nameAttr")]
    pub name_attr: String,
    #[serde(default, alias = "preferredUsernameAttr")]
    pub preferred_username_attr: String,
}

/// How the groups of a person are found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSearch {
    #[serde(alias = "baseDN")]
    pub base_dn: String,
    #[serde(default)]
    pub filter: String,
    #[serde(default)]
    pub scope: Scope,
    #[serde(default, alias = "userMatchers")]
    pub user_matchers: Vec<UserMatcher>,
    /// One matcher, as before Dex had a list.
    #[serde(default, alias = "userAttr")]
    pub user_attr: String,
    #[serde(default, alias = "groupAttr")]
    pub group_attr: String,
    #[serde(alias = "nameAttr")]
    pub name_attr: String,
}

/// A group is a person's when its `group_attr` has a value of the person's `user_attr`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserMatcher {
    #[serde(alias = "userAttr")]
    pub user_attr: String,
    #[serde(alias = "groupAttr")]
    pub group_attr: String,
}

impl GroupSearch {
    pub(super) fn matchers(&self) -> Vec<UserMatcher> {
        let one = UserMatcher { user_attr: self.user_attr.clone(), group_attr: self.group_attr.clone() };
        let old = (!one.user_attr.is_empty()).then_some(one);
        self.user_matchers.iter().cloned().chain(old).collect()
    }
}

impl std::fmt::Debug for LdapConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LdapConnector").field("id", &self.id).field("host", &self.host).finish_non_exhaustive()
    }
}

fn default_id() -> String {
    "uid".into()
}

fn default_email() -> String {
    "mail".into()
}

fn default_timeout() -> u64 {
    10
}

fn default_recheck() -> u64 {
    900
}

impl LdapConnector {
    pub(crate) fn prompt(&self) -> &str {
        if self.username_prompt.is_empty() { "User name" } else { &self.username_prompt }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let say = |text: String| Err(format!("connector {}: {text}", self.id));
        let host = url::Url::parse(&format!("ldap://{}", self.host));
        if !host.is_ok_and(|u| u.host_str().is_some_and(|h| !h.is_empty()) && matches!(u.path(), "" | "/")) {
            return say(format!("the host {:?} must be HOST[:PORT], without a scheme", self.host));
        }
        if self.insecure_no_ssl && (self.start_tls || self.root_ca.is_some()) {
            return say("insecure_no_ssl excludes start_tls and root_ca".into());
        }
        if self.bind_dn.is_empty() != self.bind_pw.is_empty() {
            return say("bind_dn and bind_pw are needed both, or neither for an anonymous search".into());
        }
        if !(1..=60).contains(&self.timeout_seconds) {
            return say("timeout_seconds must be 1 to 60".into());
        }
        if !(1..=86_400).contains(&self.recheck_seconds) {
            return say("recheck_seconds must be 1 to 86400".into());
        }
        let UserSearch { base_dn, filter, username, id_attr, email_attr, name_attr, preferred_username_attr, .. } =
            &self.user_search;
        let mut attributes = vec![("user_search.username", username), ("user_search.id_attr", id_attr)];
        let optional = [
            ("user_search.email_attr", email_attr),
            ("user_search.name_attr", name_attr),
            ("user_search.preferred_username_attr", preferred_username_attr),
        ];
        attributes.extend(optional.into_iter().filter(|(_, name)| !name.is_empty()));
        let mut filters = vec![("user_search.filter", filter)];
        if base_dn.is_empty() {
            return say("user_search.base_dn is needed".into());
        }
        if email_attr.is_empty() && self.user_search.email_suffix.is_empty() {
            return say("user_search.email_attr or email_suffix is needed".into());
        }
        let matchers = self.group_search.as_ref().map(GroupSearch::matchers).unwrap_or_default();
        if let Some(search) = &self.group_search {
            if search.base_dn.is_empty() || matchers.is_empty() {
                return say("group_search needs base_dn and user_matchers".into());
            }
            attributes.push(("group_search.name_attr", &search.name_attr));
            filters.push(("group_search.filter", &search.filter));
        }
        for matcher in &matchers {
            attributes.push(("group_search.user_matchers.user_attr", &matcher.user_attr));
            attributes.push(("group_search.user_matchers.group_attr", &matcher.group_attr));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | ';' | '.');
        if let Some((field, name)) = attributes.iter().find(|(_, n)| n.is_empty() || !n.chars().all(plain)) {
            return say(format!("{field} {name:?} is not the name of an attribute"));
        }
        let fine = |filter: &str| filter.is_empty() || (filter.starts_with('(') && ldap3::parse_filter(filter).is_ok());
        if let Some((field, filter)) = filters.iter().find(|(_, f)| !fine(f)) {
            return say(format!("{field} {filter:?} is not a filter in parentheses"));
        }
        Ok(())
    }
}

/// Checks a name and a password, behind the same brakes as passwords of this box.
pub(crate) async fn check(
    gateway: &Gateway,
    directory: &Directory,
    login: &str,
    password: &str,
    address: IpAddr,
) -> Result<User, Refused> {
    let id = &directory.config.id;
    let limits = &gateway.inner.limits;
    let wait = |wait: Wait| {
        tracing::warn!(target: "audit", connector = %id, %address, "sign-in refused: too many attempts");
        Refused::Wait(wait.0.as_secs().max(1))
    };
    let keep = async |account: &str| {
        keep_attempts(gateway, account, address).await.map_err(|error| {
            tracing::error!(%error, "a sign-in cannot be counted, so it is refused");
            Refused::Broken
        })
    };
    let login = login.trim();
    let typed = account_at(id, login);
    limits.admit(&typed, address, Instant::now()).map_err(wait)?;
    keep(&typed).await?;
    // What is counted as this entry's: a directory knows one name in many spellings.
    let mut entry_account = None;
    let outcome = async {
        if password.is_empty() || password.len() > LONGEST_PASSWORD {
            return Ok(None);
        }
        let mut talk = directory.talk().await.map_err(Refused::from)?;
        let found = match directory.find(&mut talk, login).await {
            Err(Trouble::Ambiguous) => {
                tracing::warn!(connector = %id, "two entries of the directory fit one name: nobody is signed in");
                return Ok(None);
            }
            found => found?,
        };
        let Some(entry) = found else { return Ok(None) };
        let account = account_at(id, &entry.dn);
        limits.admit_account(&account, Instant::now()).map_err(wait)?;
        keep(&account).await?;
        entry_account = Some(account);
        if !directory.fits(&mut talk, &entry.dn, password).await? {
            return Ok(None);
        }
        identity(directory, &mut talk, &entry).await.map(Some).map_err(Refused::from)
    };
    let outcome = outcome.await;
    match outcome {
        Ok(Some(identity)) => {
            limits.succeeded(&typed, address);
            keep(&typed).await?;
            if let Some(account) = entry_account {
                limits.forget_account(&account);
                keep(&account).await?;
            }
            let user = admit(gateway, id, &directory.config.groups, &identity).await?;
            gateway.inner.presence.seen(&user.email, Duration::from_secs(directory.config.recheck_seconds));
            Ok(user)
        }
        Ok(None) => {
            for account in [Some(typed), entry_account].into_iter().flatten() {
                limits.failed(&account, address, Instant::now());
            }
            tracing::warn!(target: "audit", connector = %id, %address, "sign-in failed");
            Err(Refused::Wrong)
        }
        Err(Refused::Unavailable(reason)) => {
            tracing::warn!(connector = %id, reason, "the directory cannot be used");
            // Nothing was learned of the password: the directory's trouble locks nobody out.
            limits.undo(&typed, entry_account.as_deref(), address);
            for account in [Some(typed), entry_account].into_iter().flatten() {
                keep(&account).await?;
            }
            Err(Refused::Unavailable(reason))
        }
        Err(refused) => Err(refused),
    }
}

/// Whether the directory still has this user, who is brought up to date from it.
pub(crate) async fn still(gateway: &Gateway, directory: &Directory, user: &User) -> Result<Option<User>, Refusal> {
    let config = &directory.config;
    let asked = async {
        let mut talk = directory.talk().await?;
        let Some(entry) = directory.find_again(&mut talk, &user.subject).await? else { return Ok(None) };
        identity(directory, &mut talk, &entry).await.map(Some)
    };
    let found = asked.await.map_err(|error: Trouble| {
        tracing::warn!(connector = %config.id, %error, "the directory cannot be used");
        Refusal::Unavailable(config.name.clone(), error.to_string())
    })?;
    match found {
        Some(identity) => bring_up_to_date(gateway, &config.id, &config.groups, &identity).await.map(Some),
        None => Ok(None),
    }
}

async fn identity(directory: &Directory, talk: &mut Talk, entry: &SearchEntry) -> Result<Identity, Trouble> {
    let search = &directory.config.user_search;
    let first = |attribute: &str| values(entry, attribute).into_iter().next().filter(|v| !v.is_empty());
    let must = |attribute: &str| {
        first(attribute).ok_or_else(|| Trouble::Missing { dn: entry.dn.clone(), attribute: attribute.to_owned() })
    };
    let email = match search.email_suffix.as_str() {
        "" => must(&search.email_attr)?,
        suffix => format!("{}@{}", must(&search.username)?, suffix.trim_start_matches('@')),
    };
    let optional =
        |attribute: &str| if attribute.is_empty() { String::new() } else { first(attribute).unwrap_or_default() };
    Ok(Identity {
        subject: must(&search.id_attr)?,
        email,
        groups: directory.groups(talk, entry).await?,
        name: optional(&search.name_attr),
        username: optional(&search.preferred_username_attr),
    })
}

impl From<Trouble> for Refused {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Missing { .. } => {
                tracing::warn!(%trouble, "somebody was not let in");
                Self::NotAdmitted(
                    "The directory does not say your address or who you are. Ask an administrator.".into(),
                )
            }
            _ => Self::Unavailable(trouble.to_string()),
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unavailable(_, reason) => Self::Unavailable(reason),
            Refusal::Refused(text) => Self::NotAdmitted(text),
            Refusal::Store(error) => {
                tracing::warn!(%error, "somebody was not let in");
                Self::NotAdmitted("This address belongs to somebody else here. Ask an administrator.".into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connector(change: impl FnOnce(&mut serde_json::Value)) -> Result<LdapConnector, String> {
        let mut value = serde_json::json!({
            "id": "corp", "host": "ldap.example:389", "startTLS": true, "bindDN": "cn=s", "bindPW": "hush-hush",
            "userSearch": {"baseDN": "ou=people", "username": "uid", "filter": "(objectClass=person)"},
            "groupSearch": {"baseDN": "ou=groups", "nameAttr": "cn", "userMatchers": [{"userAttr": "DN", "groupAttr": "member"}]},
        });
        change(&mut value);
        let connector: LdapConnector = serde_json::from_value(value).map_err(|e| e.to_string())?;
        connector.check().map(|()| connector)
    }

    #[test]
    fn a_configuration_is_dexs_and_what_is_wrong_in_it_is_told() {
        let fine = connector(|_| {}).unwrap();
        assert_eq!((fine.user_search.id_attr.as_str(), fine.user_search.email_attr.as_str()), ("uid", "mail"));
        assert!(!format!("{fine:?}").contains("hush") && !serde_json::to_string(&fine).unwrap().contains("hush"));
        let old = connector(|v| {
            v["groupSearch"] =
                serde_json::json!({"baseDN": "ou=g", "nameAttr": "cn", "userAttr": "uid", "groupAttr": "memberUid"});
        });
        assert_eq!(old.unwrap().group_search.unwrap().matchers()[0].group_attr, "memberUid");
        type Change = fn(&mut serde_json::Value);
        let wrong: [(Change, &str); 11] = [
            (|v| v["recheckSeconds"] = 0.into(), "recheck_seconds"),
            (|v| v["host"] = "ldap://x:389".into(), "without a scheme"),
            (|v| v["host"] = "".into(), "host"),
            (|v| v["insecureNoSSL"] = true.into(), "excludes"),
            (|v| v["bindPW"] = "".into(), "both"),
            (|v| v["insecureSkipVerify"] = true.into(), "insecureSkipVerify"),
            (|v| v["userSearch"]["username"] = "uid)(x=*".into(), "attribute"),
            (|v| v["userSearch"]["filter"] = "objectClass=person".into(), "parentheses"),
            (|v| v["userSearch"]["filter"] = "(&(a=b)".into(), "parentheses"),
            (|v| v["groupSearch"]["userMatchers"] = serde_json::json!([]), "user_matchers"),
            (|v| v["userSearch"]["scope"] = "base".into(), "base"),
        ];
        for (change, said) in wrong {
            let error = connector(change).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
