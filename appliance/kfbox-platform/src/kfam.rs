//! KFAM, the access-management REST API of Kubeflow: who has which role in which profile's namespace. Paths and bodies
//! follow `components/access-management/api/swagger.yaml` of <https://github.com/kubeflow/dashboard>.
//!
//! Guarantees: only a cluster administrator, the owner of a profile or who was made an administrator of it changes its
//! bindings; only the first two delete it; nobody makes a profile for somebody else; a listing shows what the caller is
//! part of or may see.

mod bindings;

use crate::setup::DefaultProfile;
use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, Path, Query, State, rejection::JsonRejection},
    response::{IntoResponse, Response},
    routing::{delete, get},
};
use http::StatusCode;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kfbox_api::{
    Profile,
    profile::{ProfileSpec, Subject},
};
use kfbox_base::{Authorizer, ResourceAttributes, UserInfo};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Bodies are a few names.
const BODY_LIMIT: usize = 64 * 1024;

/// What KFAM asks of others.
#[derive(Clone)]
pub struct Deps {
    pub client: Client,
    pub authorizer: Arc<dyn Authorizer>,
    /// Users may make a profile of their own, one each (upstream's registration flow).
    pub self_service: bool,
    /// The groups of a person who is not the caller, as the box's directory has them; none for unknown people.
    pub groups_of: GroupsOf,
}

pub type GroupsOf = Arc<dyn Fn(&str) -> Vec<String> + Send + Sync>;

/// `/kfam/v1/…`, to be mounted as it is, behind the gateway.
pub fn router(deps: Deps) -> Router {
    Router::new()
        .route("/kfam/", get(|| async { "KFAM\n" }))
        .route("/kfam/v1/profiles", axum::routing::post(create_profile))
        .route("/kfam/v1/profiles/{profile}", delete(delete_profile))
        .route("/kfam/v1/bindings", get(list).post(create).delete(remove))
        .route("/kfam/v1/role/clusteradmin", get(cluster_admin))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(deps)
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum KfamError {
    #[error("sign in first")]
    Anonymous,
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    #[error("the cluster: {0}")]
    Kube(#[from] kube::Error),
    #[error("no decision could be made: {0}")]
    Authorizer(kfbox_base::BoxError),
}

impl KfamError {
    /// The status to answer with. What is not the caller's fault is logged.
    pub(crate) fn status(&self) -> StatusCode {
        let status = match self {
            Self::Anonymous => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Kube(kube::Error::Api(status)) if matches!(status.code, 400 | 404 | 409 | 422) => {
                StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
            Self::Kube(_) | Self::Authorizer(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = %self, "KFAM");
        }
        status
    }
}

impl IntoResponse for KfamError {
    fn into_response(self) -> Response {
        (self.status(), Json(serde_json::json!({"errorMessage": self.to_string()}))).into_response()
    }
}

pub(crate) type Caller = Option<Extension<UserInfo>>;

pub(crate) fn caller(user: Caller) -> Result<UserInfo, KfamError> {
    user.map(|Extension(u)| u).filter(|u| !u.is_anonymous()).ok_or(KfamError::Anonymous)
}

/// Everything, everywhere: only `cluster-admin` and its like allow that.
pub(crate) async fn is_cluster_admin(deps: &Deps, user: &UserInfo) -> Result<bool, KfamError> {
    let all = ResourceAttributes { verb: "*".into(), group: "*".into(), resource: "*".into(), ..Default::default() };
    Ok(deps.authorizer.authorize(user, &all).await.map_err(KfamError::Authorizer)?.is_allowed())
}

pub(crate) fn owns(user: &UserInfo, profile: &Profile) -> bool {
    profile
        .spec
        .owner
        .as_ref()
        .is_some_and(|owner| is_subject(user, &owner.kind, &owner.name, owner.namespace.as_deref()))
}

fn is_subject(user: &UserInfo, kind: &str, name: &str, namespace: Option<&str>) -> bool {
    match kind {
        "User" => user.username == name,
        "Group" => user.groups.iter().any(|g| g == name),
        "ServiceAccount" => user.service_account().is_some_and(|(ns, n)| Some(ns) == namespace && n == name),
        _ => false,
    }
}

/// The profile, when the caller may change it. Others learn nothing of it, not even whether it exists.
async fn own_profile(deps: &Deps, user: &UserInfo, name: &str, right: Right) -> Result<Profile, KfamError> {
    let profiles: Api<Profile> = Api::all(deps.client.clone());
    let profile = match profiles.get_opt(name).await {
        Ok(found) => found,
        Err(kube::Error::Api(status)) if status.code == 400 || status.code == 422 => None,
        Err(error) => return Err(error.into()),
    };
    let admin = is_cluster_admin(deps, user).await?;
    match profile {
        Some(profile) if admin || owns(user, &profile) => return Ok(profile),
        Some(profile) if right == Right::Bind && administers(deps, user, name).await? => return Ok(profile),
        None if admin => return Err(KfamError::NotFound(format!("there is no profile {name}"))),
        _ => {}
    }
    Err(KfamError::Forbidden(format!("{} neither owns the profile {name} nor administers the cluster", user.username)))
}

/// What of a profile is to be changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Right {
    Bind,
    Delete,
}

/// Whether the caller was made one of several administrators of a namespace: bound to the very role of owners. A right to
/// write RoleBindings is not enough: the cluster would hold it to what its bearer has, KFAM gives any of three roles.
async fn administers(deps: &Deps, user: &UserInfo, namespace: &str) -> Result<bool, KfamError> {
    let api: Api<RoleBinding> = Api::namespaced(deps.client.clone(), namespace);
    let bindings = api.list(&ListParams::default()).await?;
    let mut known = bindings.iter().flat_map(|b| bindings::read(b, namespace));
    Ok(known.any(|b| b.role_ref.name == "admin" && is_me(user, &b)))
}

fn is_me(user: &UserInfo, binding: &Binding) -> bool {
    is_subject(user, &binding.user.kind, &binding.user.name, binding.user.namespace.as_deref())
}

pub(crate) fn body<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, KfamError> {
    body.map(|Json(b)| b).map_err(|e| KfamError::Invalid(e.body_text()))
}

#[derive(Deserialize)]
struct ProfileBody {
    metadata: NameOnly,
    #[serde(default)]
    spec: ProfileSpec,
}

#[derive(Deserialize)]
struct NameOnly {
    #[serde(default)]
    name: String,
}

async fn create_profile(
    State(deps): State<Deps>,
    user: Caller,
    wanted: Result<Json<ProfileBody>, JsonRejection>,
) -> Result<Response, KfamError> {
    let user = caller(user)?;
    let ProfileBody { metadata, spec } = body(wanted)?;
    make_profile(&deps, &user, &metadata.name, spec).await?;
    Ok(StatusCode::OK.into_response())
}

/// For the caller, or by an administrator for anybody.
pub(crate) async fn make_profile(
    deps: &Deps,
    user: &UserInfo,
    name: &str,
    mut spec: ProfileSpec,
) -> Result<(), KfamError> {
    let owner = spec.owner.get_or_insert_with(|| Subject::user(&user.username)).clone();
    if !is_cluster_admin(deps, user).await? {
        if !deps.self_service {
            return Err(KfamError::Forbidden("only a cluster administrator makes profiles on this box".into()));
        }
        if owner.kind != "User" || owner.name != user.username {
            return Err(KfamError::Forbidden("a profile can be made for yourself only".into()));
        }
        if user.service_account().is_some() {
            return Err(KfamError::Forbidden("a profile can be made by a person only".into()));
        }
        // Names that the box gives are kept for those who are named in them, also before they come.
        if name.starts_with("kubeflow-") && name != DefaultProfile::for_user(&user.username).name {
            return Err(KfamError::Forbidden(format!("{name} is kept for somebody else: choose another name")));
        }
        // A quota is the administrator's to give, and one profile is enough to begin with.
        spec.resource_quota_spec = None;
        let profiles: Api<Profile> = Api::all(deps.client.clone());
        if profiles.list(&ListParams::default()).await?.iter().any(|p| owns(user, p)) {
            return Err(KfamError::Conflict(format!("{} has a profile already", user.username)));
        }
    }
    let profiles: Api<Profile> = Api::all(deps.client.clone());
    profiles.create(&PostParams::default(), &Profile::new(name, spec)).await?;
    tracing::info!(target: "audit", user = %user.username, profile = %name, "profile created");
    Ok(())
}

async fn delete_profile(
    State(deps): State<Deps>,
    user: Caller,
    Path(name): Path<String>,
) -> Result<Response, KfamError> {
    drop_profile(&deps, &caller(user)?, &name).await?;
    Ok(StatusCode::OK.into_response())
}

pub(crate) async fn drop_profile(deps: &Deps, user: &UserInfo, name: &str) -> Result<(), KfamError> {
    own_profile(deps, user, name, Right::Delete).await?;
    let profiles: Api<Profile> = Api::all(deps.client.clone());
    profiles.delete(name, &DeleteParams::default()).await?;
    tracing::info!(target: "audit", user = %user.username, profile = %name, "profile deleted");
    Ok(())
}

/// A user's role in a namespace, as KFAM's clients write and read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Binding {
    pub user: BindingSubject,
    pub referred_namespace: String,
    /// The API's description spells it `RoleRef`, its server and its clients `roleRef`.
    #[serde(alias = "RoleRef")]
    pub role_ref: BindingRole,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BindingSubject {
    pub kind: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    api_group: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BindingRole {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    api_group: Option<String>,
    kind: String,
    /// `admin`, `edit` or `view`.
    pub name: String,
}

impl Binding {
    /// A person's role, as the dashboard's contributors have it.
    pub fn of_person(name: &str, namespace: &str, role: &str) -> Self {
        Self {
            user: BindingSubject { kind: "User".into(), name: name.into(), namespace: None, api_group: None },
            referred_namespace: namespace.into(),
            role_ref: BindingRole { api_group: None, kind: "ClusterRole".into(), name: role.into() },
            status: None,
        }
    }
}

#[derive(Deserialize, Default)]
pub(crate) struct Filter {
    #[serde(default)]
    pub user: String,
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    pub role: String,
}

async fn list(State(deps): State<Deps>, user: Caller, Query(filter): Query<Filter>) -> Result<Response, KfamError> {
    let mut found = visible(&deps, &caller(user)?, &filter).await?;
    if !filter.user.is_empty() {
        found = bindings::strongest(found);
    }
    Ok(Json(serde_json::json!({"bindings": found})).into_response())
}

/// What the caller may see of the bindings: all of a namespace that is the caller's to manage, else the caller's own.
pub(crate) async fn visible(deps: &Deps, caller: &UserInfo, filter: &Filter) -> Result<Vec<Binding>, KfamError> {
    let admin = is_cluster_admin(deps, caller).await?;
    let profiles: Api<Profile> = Api::all(deps.client.clone());
    let mut found = Vec::new();
    for profile in profiles.list(&ListParams::default()).await? {
        let name = profile.name_any();
        if !filter.namespace.is_empty() && filter.namespace != name {
            continue;
        }
        let all = admin || owns(caller, &profile) || {
            let see = ResourceAttributes::namespaced("list", "rbac.authorization.k8s.io", "rolebindings", &name);
            deps.authorizer.authorize(caller, &see).await.map_err(KfamError::Authorizer)?.is_allowed()
        };
        let api: Api<RoleBinding> = Api::namespaced(deps.client.clone(), &name);
        for binding in api.list(&ListParams::default()).await? {
            found.extend(bindings::read(&binding, &name).into_iter().filter(|b| {
                (all || is_me(caller, b))
                    && (filter.user.is_empty() || b.user.name == filter.user)
                    && (filter.role.is_empty()
                        || b.role_ref.name == filter.role
                        || bindings::cluster_role(&b.role_ref.name) == Some(filter.role.as_str()))
            }));
        }
    }
    Ok(found)
}

/// The caller's own strongest role in each namespace, by name or by group.
pub(crate) async fn memberships(deps: &Deps, caller: &UserInfo) -> Result<Vec<Binding>, KfamError> {
    let mut own = visible(deps, caller, &Filter::default()).await?;
    own.retain(|b| is_me(caller, b));
    Ok(bindings::strongest(own))
}

async fn create(
    State(deps): State<Deps>,
    user: Caller,
    wanted: Result<Json<Binding>, JsonRejection>,
) -> Result<Response, KfamError> {
    grant(&deps, &caller(user)?, &body(wanted)?).await?;
    Ok(StatusCode::OK.into_response())
}

pub(crate) async fn grant(deps: &Deps, caller: &UserInfo, wanted: &Binding) -> Result<(), KfamError> {
    bindings::check(wanted).map_err(KfamError::Invalid)?;
    own_profile(deps, caller, &wanted.referred_namespace, Right::Bind).await?;
    let api: Api<RoleBinding> = Api::namespaced(deps.client.clone(), &wanted.referred_namespace);
    let existing: Vec<RoleBinding> = api.list(&ListParams::default()).await?.items;
    if existing.iter().any(|b| bindings::is_for(b, wanted)) {
        return Err(KfamError::Conflict(format!("{} has this role already", wanted.user.name)));
    }
    let object = bindings::object(wanted, |name| existing.iter().any(|b| b.name_any() == name));
    api.create(&PostParams::default(), &object).await?;
    audit(caller, wanted, "access granted");
    Ok(())
}

async fn remove(
    State(deps): State<Deps>,
    user: Caller,
    unwanted: Result<Json<Binding>, JsonRejection>,
) -> Result<Response, KfamError> {
    revoke(&deps, &caller(user)?, &body(unwanted)?).await?;
    Ok(StatusCode::OK.into_response())
}

pub(crate) async fn revoke(deps: &Deps, caller: &UserInfo, unwanted: &Binding) -> Result<(), KfamError> {
    bindings::check(unwanted).map_err(KfamError::Invalid)?;
    own_profile(deps, caller, &unwanted.referred_namespace, Right::Bind).await?;
    let api: Api<RoleBinding> = Api::namespaced(deps.client.clone(), &unwanted.referred_namespace);
    let existing: Vec<RoleBinding> = api.list(&ListParams::default()).await?.items;
    let doomed: Vec<_> = existing.iter().filter(|b| bindings::is_for(b, unwanted) && bindings::is_kfams(b)).collect();
    if doomed.is_empty() {
        return Err(KfamError::NotFound("there is no such binding, or it is the owner's".into()));
    }
    for binding in doomed {
        api.delete(&binding.name_any(), &DeleteParams::default()).await?;
    }
    audit(caller, unwanted, "access revoked");
    Ok(())
}

fn audit(caller: &UserInfo, binding: &Binding, what: &str) {
    tracing::info!(target: "audit", user = %caller.username, namespace = %binding.referred_namespace,
        subject = %binding.user.name, role = %binding.role_ref.name, "{what}");
}

#[derive(Deserialize, Default)]
struct WhoQuery {
    #[serde(default)]
    user: String,
}

/// About oneself, for anybody; about others, for administrators.
async fn cluster_admin(
    State(deps): State<Deps>,
    user: Caller,
    Query(who): Query<WhoQuery>,
) -> Result<Json<bool>, KfamError> {
    let caller = caller(user)?;
    let self_admin = is_cluster_admin(&deps, &caller).await?;
    if who.user.is_empty() || who.user == caller.username {
        return Ok(Json(self_admin));
    }
    if !self_admin {
        return Err(KfamError::Forbidden("only a cluster administrator asks about others".into()));
    }
    let groups = (deps.groups_of)(&who.user);
    Ok(Json(is_cluster_admin(&deps, &UserInfo::new(who.user, groups)).await?))
}

#[cfg(test)]
mod tests;
