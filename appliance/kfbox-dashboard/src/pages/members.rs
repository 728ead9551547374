//! Members: who has access to the user's namespaces, and the forms that let somebody in or take them out.

use super::{
    User,
    render::{Frame, Problem, encode, kind, with_status},
};
use crate::{
    Deps,
    data::DataError,
    view::{Member, Role, SharingView},
};
use askama::Template;
use axum::{
    Extension, Form,
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use http::StatusCode;
use kfbox_base::UserInfo;
use serde::Deserialize;

#[derive(Template)]
#[template(path = "members.html")]
struct Members {
    frame: Frame,
    cards: Vec<Card>,
    shared: Vec<Shared>,
}

/// A namespace that the user manages.
struct Card {
    namespace: String,
    standing: &'static str,
    rows: Vec<Row>,
    /// What went wrong here just now, and what had been typed.
    note: String,
    typed: String,
    choices: Vec<Choice>,
}

/// A role in the form.
struct Choice {
    key: &'static str,
    label: &'static str,
    chosen: bool,
}

struct Row {
    name: String,
    label: &'static str,
    role: &'static str,
    kind: &'static str,
    group: bool,
    owner: bool,
}

/// A namespace that somebody shares with the user.
struct Shared {
    namespace: String,
    owner: String,
    label: &'static str,
}

impl From<Member> for Row {
    fn from(member: Member) -> Self {
        Self {
            label: if member.owner { "Owner" } else { member.role.label() },
            role: member.role.key(),
            kind: if member.group { GROUP } else { PERSON },
            name: member.name,
            group: member.group,
            owner: member.owner,
        }
    }
}

const PERSON: &str = "user";
const GROUP: &str = "group";

/// The form that lets somebody in.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Addition {
    namespace: String,
    person: String,
    role: String,
}

/// The form that takes somebody out.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Removal {
    namespace: String,
    name: String,
    kind: String,
    role: String,
}

/// Why a form's wish was not granted.
struct Refused {
    error: DataError,
    namespace: String,
    typed: String,
    chosen: Option<Role>,
}

pub(super) async fn page(Extension(user): User, State(deps): State<Deps>) -> Response {
    show(&deps, &user, None).await
}

pub(super) async fn add(Extension(user): User, State(deps): State<Deps>, Form(asked): Form<Addition>) -> Response {
    let Addition { namespace, person, role } = asked;
    let chosen = Role::from_key(&role);
    let done = match (chosen, person.trim()) {
        (None, _) => Err(DataError::Invalid("choose a role: viewer, contributor or administrator".into())),
        (_, "") => Err(DataError::Invalid("type the e-mail address of whom you want to let in".into())),
        (Some(role), person) => deps.data.grant(&user, &namespace, person, role).await,
    };
    match done {
        Ok(()) => changed(&namespace),
        Err(error) => show(&deps, &user, Some(Refused { error, namespace, typed: person, chosen })).await,
    }
}

pub(super) async fn remove(Extension(user): User, State(deps): State<Deps>, Form(asked): Form<Removal>) -> Response {
    let Removal { namespace, name, kind, role } = asked;
    let member = match (Role::from_key(&role), kind.as_str()) {
        (Some(role), PERSON | GROUP) => Ok(Member { name, group: kind == GROUP, role, owner: false }),
        _ => Err(DataError::Invalid("this form names no role that could be taken away".into())),
    };
    let done = match &member {
        Ok(member) => deps.data.revoke(&user, &namespace, member).await,
        Err(error) => Err(error.clone()),
    };
    match done {
        Ok(()) => changed(&namespace),
        Err(error) => show(&deps, &user, Some(Refused { error, namespace, typed: String::new(), chosen: None })).await,
    }
}

/// A GET of the page follows, so that loading it again repeats nothing.
fn changed(namespace: &str) -> Response {
    Redirect::to(&format!("/members#ns-{}", encode(namespace))).into_response()
}

async fn show(deps: &Deps, user: &UserInfo, refused: Option<Refused>) -> Response {
    let frame = Frame::new(deps, user, "members", "Members");
    let all = match deps.data.sharing(user).await {
        Ok(all) => all,
        Err(error) => return Problem::new(frame, &error).into_response(),
    };
    let (managed, shared): (Vec<SharingView>, Vec<SharingView>) = all.into_iter().partition(|s| s.managed);
    let status = match &refused {
        None => StatusCode::OK,
        // A form for a namespace that is not the user's to manage has no place on the page to say it.
        Some(refused) if managed.iter().all(|s| s.namespace != refused.namespace) => {
            return Problem::new(frame, &refused.error).into_response();
        }
        Some(refused) => kind(&refused.error).0,
    };
    let card = |sharing: SharingView| {
        let here = refused.as_ref().filter(|r| r.namespace == sharing.namespace);
        let chosen = here.and_then(|r| r.chosen).unwrap_or(Role::View);
        let choice = |role: Role| Choice { key: role.key(), label: role.label(), chosen: role == chosen };
        Card {
            standing: match sharing.role {
                _ if sharing.owned => "Owner",
                Some(role) => role.label(),
                None => "Cluster administrator",
            },
            rows: sharing.members.into_iter().map(Row::from).collect(),
            note: here.map(|r| r.error.to_string()).unwrap_or_default(),
            typed: here.map(|r| r.typed.clone()).unwrap_or_default(),
            choices: Role::ALL.into_iter().map(choice).collect(),
            namespace: sharing.namespace,
        }
    };
    let shared = shared.into_iter().map(|s| Shared {
        label: s.role.map_or("", Role::label),
        namespace: s.namespace,
        owner: s.owner,
    });
    let page = Members { frame, cards: managed.into_iter().map(card).collect(), shared: shared.collect() };
    with_status(status, &page)
}
