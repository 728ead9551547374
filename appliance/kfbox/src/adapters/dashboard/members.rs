//! Who has access to which namespace. Through KFAM's own REST API in this process, so that its rules hold for the members
//! page as for everybody else.

use super::{answer, text};
use crate::adapters::namespaces::ProfileNamespaces;
use axum::{Router, body::Body};
use http::{Method, Request, StatusCode, header};
use kfbox_base::UserInfo;
use kfbox_dashboard::{DataError, Member, Role, SharingView};
use kfbox_gateway::Gateway;
use serde_json::{Value, json};
use std::{cmp::Reverse, collections::BTreeMap};

pub struct Members {
    kfam: Router,
    namespaces: ProfileNamespaces,
    people: Gateway,
}

impl Members {
    pub fn new(kfam: Router, namespaces: ProfileNamespaces, people: Gateway) -> Self {
        Self { kfam, namespaces, people }
    }

    pub async fn list(&self, user: &UserInfo) -> Result<Vec<SharingView>, DataError> {
        let known = self.namespaces.members(user).await.map_err(|e| DataError::Unavailable(e.to_string()))?;
        let owners = known.into_iter().map(|m| (m.namespace, m.owner_name)).collect();
        let everything = ask(&self.kfam, user, Method::GET, "role/clusteradmin", None).await?;
        let answer = ask(&self.kfam, user, Method::GET, "bindings", None).await?;
        let bindings = answer["bindings"].as_array().map_or(&[][..], Vec::as_slice);
        Ok(views(user, bindings, &owners, everything == Value::Bool(true)))
    }

    /// KFAM binds any name; here an address that nobody signs in with is taken for a slip of the pen. Only who manages the
    /// namespace learns whether somebody has it.
    pub async fn grant(&self, user: &UserInfo, namespace: &str, person: &str, role: Role) -> Result<(), DataError> {
        let all = self.list(user).await?;
        let Some(sharing) = all.iter().find(|s| s.managed && s.namespace == namespace) else {
            return Err(DataError::Forbidden(format!("you neither own nor administer the namespace {namespace}")));
        };
        let Some(known) = self.people.active_user(&person.to_lowercase()) else {
            let why = format!("nobody signs in to this box as {person}; an administrator adds people (kfbox user add)");
            return Err(DataError::Invalid(why));
        };
        if let Some(member) = sharing.members.iter().find(|m| !m.group && m.name == known.username) {
            let standing = if member.owner { "Owner" } else { member.role.label() };
            let why =
                format!("{} has access already: {standing}. Remove that first to give another role.", member.name);
            return Err(DataError::Invalid(why));
        }
        let member = Member { name: known.username, group: false, role, owner: false };
        ask(&self.kfam, user, Method::POST, "bindings", Some(&binding(namespace, &member))).await.map(drop)
    }

    pub async fn revoke(&self, user: &UserInfo, namespace: &str, member: &Member) -> Result<(), DataError> {
        match ask(&self.kfam, user, Method::DELETE, "bindings", Some(&binding(namespace, member))).await {
            Err(DataError::NotFound) => Err(DataError::Invalid(format!(
                "{} has this role no more, or by a RoleBinding that was not made here: see kubectl get rolebindings -n \
                 {namespace}",
                member.name
            ))),
            done => done.map(drop),
        }
    }
}

/// A request to KFAM as the user.
async fn ask(
    kfam: &Router,
    user: &UserInfo,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, DataError> {
    let request = Request::builder()
        .method(method)
        .uri(format!("/kfam/v1/{path}"))
        .header(header::CONTENT_TYPE, "application/json")
        .extension(user.clone())
        .body(body.map_or_else(Body::empty, |body| Body::from(body.to_string())))
        .map_err(|e| DataError::Invalid(e.to_string()))?;
    let (status, answer) = answer(kfam, request).await?;
    if status.is_success() {
        return Ok(answer);
    }
    let message = answer["errorMessage"].as_str().unwrap_or("the request failed").to_owned();
    Err(match status {
        StatusCode::NOT_FOUND => DataError::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => DataError::Forbidden(message),
        StatusCode::BAD_REQUEST | StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => {
            DataError::Invalid(message)
        }
        _ => DataError::Unavailable(message),
    })
}

/// As KFAM's clients write it.
fn binding(namespace: &str, member: &Member) -> Value {
    json!({
        "user": {"kind": if member.group { "Group" } else { "User" }, "name": member.name},
        "referredNamespace": namespace,
        "roleRef": {"kind": "ClusterRole", "name": member.role.key()},
    })
}

/// KFAM's bindings by namespace. `everything`: the user administers the cluster, and so every namespace.
fn views(user: &UserInfo, bindings: &[Value], owners: &BTreeMap<String, String>, everything: bool) -> Vec<SharingView> {
    let mut found: BTreeMap<String, Vec<Member>> = BTreeMap::new();
    for binding in bindings {
        let Some(role) = binding["roleRef"]["name"].as_str().and_then(Role::from_key) else { continue };
        let (namespace, name) = (text(&binding["referredNamespace"]), text(&binding["user"]["name"]));
        let owner = role == Role::Admin && owners.get(&namespace) == Some(&name);
        let member = Member { group: binding["user"]["kind"] == "Group", name, role, owner };
        found.entry(namespace).or_default().push(member);
    }
    let is_mine = |m: &&Member| if m.group { user.groups.contains(&m.name) } else { m.name == user.username };
    let mut views: Vec<SharingView> = found
        .into_iter()
        .map(|(namespace, mut members)| {
            let role = members.iter().filter(is_mine).map(|m| m.role).max();
            let managed = everything || role == Some(Role::Admin);
            let owned = members.iter().filter(is_mine).any(|m| m.owner);
            members.sort_by(|a, b| (!a.owner, Reverse(a.role), &a.name).cmp(&(!b.owner, Reverse(b.role), &b.name)));
            SharingView {
                owner: owners.get(&namespace).cloned().unwrap_or_default(),
                namespace,
                role,
                owned,
                managed,
                members: if managed { members } else { Vec::new() },
            }
        })
        .collect();
    // By name already.
    views.sort_by_key(|view| !view.owned);
    views
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Extension, Json, routing::get};

    fn member(name: &str, group: bool, role: Role) -> Member {
        Member { name: name.into(), group, role, owner: false }
    }

    fn bound(namespace: &str, name: &str, role: Role) -> Value {
        binding(namespace, &member(name, false, role))
    }

    /// Namespace, own role, whether owned, whether managed, members.
    type Shown<'a> = (&'a str, Option<Role>, bool, bool, Vec<&'a str>);

    fn shown(views: &[SharingView]) -> Vec<Shown<'_>> {
        views
            .iter()
            .map(|v| {
                let members = v.members.iter().map(|m| m.name.as_str()).collect();
                (v.namespace.as_str(), v.role, v.owned, v.managed, members)
            })
            .collect()
    }

    fn owners() -> BTreeMap<String, String> {
        [("anns", "ann"), ("bobs", "bob"), ("team", "carol")].map(|(n, o)| (n.to_owned(), o.to_owned())).into()
    }

    #[test]
    fn members_are_told_where_one_decides_and_their_own_role_elsewhere() {
        let bindings = [
            bound("anns", "ann", Role::Admin),
            bound("bobs", "ann", Role::View),
            bound("bobs", "bob", Role::Admin),
            bound("team", "zoe", Role::View),
            binding("team", &member("crew", true, Role::Admin)),
            bound("team", "carol", Role::Admin),
            bound("team", "ann", Role::Edit),
            json!({"user": {"kind": "User", "name": "ann"}, "referredNamespace": "odd", "roleRef": {"name": "other"}}),
        ];
        let ann = UserInfo::new("ann", ["crew".to_owned()]);
        let team = vec!["carol", "crew", "ann", "zoe"];
        assert_eq!(
            shown(&views(&ann, &bindings, &owners(), false)),
            [
                ("anns", Some(Role::Admin), true, true, vec!["ann"]),
                ("bobs", Some(Role::View), false, false, vec![]),
                ("team", Some(Role::Admin), false, true, team),
            ]
        );
        let bob = UserInfo::new("bob", []);
        let seen = views(&bob, &bindings[1..3], &owners(), false);
        assert_eq!(shown(&seen), [("bobs", Some(Role::Admin), true, true, vec!["bob", "ann"])]);
        assert!(seen[0].members[0].owner && !seen[0].members[1].owner);
        // A group of one's own name is not oneself.
        let group = [binding("team", &member("bob", true, Role::Admin))];
        assert!(!views(&bob, &group, &owners(), false)[0].managed);
        // Who administers the cluster decides everywhere, also where they do not belong.
        let root = UserInfo::new("root", []);
        let seen = views(&root, &bindings, &owners(), true);
        assert!(seen.len() == 3 && seen.iter().all(|v| v.managed && v.role.is_none() && !v.owned));
    }

    #[tokio::test]
    async fn kfam_is_asked_as_the_user_and_its_refusals_are_told() {
        let answer = |Extension(user): Extension<UserInfo>| async move {
            let status = user.username.parse::<u16>().ok().and_then(|code| StatusCode::from_u16(code).ok());
            (status.unwrap_or(StatusCode::OK), Json(json!({"errorMessage": "so it is", "user": user.username})))
        };
        let kfam = Router::new().route("/kfam/v1/bindings", get(answer));
        let as_user = async |name: &str| ask(&kfam, &UserInfo::new(name, []), Method::GET, "bindings", None).await;
        assert_eq!(as_user("ann").await.unwrap()["user"], "ann");
        assert!(matches!(as_user("404").await, Err(DataError::NotFound)));
        assert!(matches!(as_user("403").await, Err(DataError::Forbidden(why)) if why == "so it is"));
        assert!(matches!(as_user("409").await, Err(DataError::Invalid(why)) if why == "so it is"));
        assert!(matches!(as_user("500").await, Err(DataError::Unavailable(_))));
    }
}
