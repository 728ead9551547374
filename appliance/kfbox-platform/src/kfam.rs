//! KFAM, the access-management REST API of Kubeflow: who has which role in which profile's namespace. Paths and bodies
//! follow `components/access-management/api/swagger.yaml` of <https://github.com/kubeflow/dashboard>.
//!
//! Guarantees: only a cluster administrator or the owner of a profile changes its bindings or deletes it; nobody makes a
//! profile for somebody else; a listing shows what the caller is part of or may see.

mod bindings;

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
}

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
enum KfamError {
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

impl IntoResponse for KfamError {
    fn into_response(self) -> Response {
        let status = match &self {
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
        (status, Json(serde_json::json!({"errorMessage": self.to_string()}))).into_response()
    }
}

type Caller = Option<Extension<UserInfo>>;

fn caller(user: Caller) -> Result<UserInfo, KfamError> {
    user.map(|Extension(u)| u).filter(|u| !u.is_anonymous()).ok_or(KfamError::Anonymous)
}

/// Everything, everywhere: only `cluster-admin` and its like allow that.
async fn is_cluster_admin(deps: &Deps, user: &UserInfo) -> Result<bool, KfamError> {
    let all = ResourceAttributes { verb: "*".into(), group: "*".into(), resource: "*".into(), ..Default::default() };
    Ok(deps.authorizer.authorize(user, &all).await.map_err(KfamError::Authorizer)?.is_allowed())
}

fn owns(user: &UserInfo, profile: &Profile) -> bool {
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

/// The profile, when the caller may change it. To others it is as if it did not exist, unless they can see it anyway.
async fn own_profile(deps: &Deps, user: &UserInfo, name: &str) -> Result<Profile, KfamError> {
    let profiles: Api<Profile> = Api::all(deps.client.clone());
    let forbidden = || {
        KfamError::Forbidden(format!("{} neither owns the profile {name} nor administers the cluster", user.username))
    };
    let profile = match profiles.get_opt(name).await {
        Ok(found) => found,
        Err(kube::Error::Api(status)) if status.code == 400 || status.code == 422 => None,
        Err(error) => return Err(error.into()),
    };
    let admin = is_cluster_admin(deps, user).await?;
    match profile {
        Some(profile) if admin || owns(user, &profile) => Ok(profile),
        None if admin => Err(KfamError::NotFound(format!("there is no profile {name}"))),
        _ => Err(forbidden()),
    }
}

fn body<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, KfamError> {
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
    let mut wanted = body(wanted)?;
    let owner = wanted.spec.owner.get_or_insert_with(|| Subject::user(&user.username)).clone();
    if !is_cluster_admin(&deps, &user).await? {
        if !deps.self_service {
            return Err(KfamError::Forbidden("only a cluster administrator makes profiles on this box".into()));
        }
        if owner.kind != "User" || owner.name != user.username {
            return Err(KfamError::Forbidden("a profile can be made for yourself only".into()));
        }
        // A quota is the administrator's to give, and one profile is enough to begin with.
        wanted.spec.resource_quota_spec = None;
        let profiles: Api<Profile> = Api::all(deps.client.clone());
        if profiles.list(&ListParams::default()).await?.iter().any(|p| owns(&user, p)) {
            return Err(KfamError::Conflict(format!("{} has a profile already", user.username)));
        }
    }
    let profiles: Api<Profile> = Api::all(deps.client.clone());
    profiles.create(&PostParams::default(), &Profile::new(&wanted.metadata.name, wanted.spec)).await?;
    tracing::info!(target: "audit", user = %user.username, profile = %wanted.metadata.name, "profile created");
    Ok(StatusCode::OK.into_response())
}

async fn delete_profile(
    State(deps): State<Deps>,
    user: Caller,
    Path(name): Path<String>,
) -> Result<Response, KfamError> {
    let user = caller(user)?;
    own_profile(&deps, &user, &name).await?;
    let profiles: Api<Profile> = Api::all(deps.client.clone());
    profiles.delete(&name, &DeleteParams::default()).await?;
    tracing::info!(target: "audit", user = %user.username, profile = %name, "profile deleted");
    Ok(StatusCode::OK.into_response())
}

/// A user's role in a namespace, as KFAM's clients write and read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Binding {
    user: BindingSubject,
    referred_namespace: String,
    /// The API's description spells it `RoleRef`, its server and its clients `roleRef`.
    #[serde(alias = "RoleRef")]
    role_ref: BindingRole,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BindingSubject {
    kind: String,
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    api_group: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BindingRole {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    api_group: Option<String>,
    kind: String,
    /// `admin`, `edit` or `view`.
    name: String,
}

#[derive(Deserialize, Default)]
struct Filter {
    #[serde(default)]
    user: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    role: String,
}

async fn list(State(deps): State<Deps>, user: Caller, Query(filter): Query<Filter>) -> Result<Response, KfamError> {
    let caller = caller(user)?;
    let admin = is_cluster_admin(&deps, &caller).await?;
    let profiles: Api<Profile> = Api::all(deps.client.clone());
    let mut found = Vec::new();
    for profile in profiles.list(&ListParams::default()).await? {
        let name = profile.name_any();
        if !filter.namespace.is_empty() && filter.namespace != name {
            continue;
        }
        let all = admin || owns(&caller, &profile) || {
            let see = ResourceAttributes::namespaced("list", "rbac.authorization.k8s.io", "rolebindings", &name);
            deps.authorizer.authorize(&caller, &see).await.map_err(KfamError::Authorizer)?.is_allowed()
        };
        let api: Api<RoleBinding> = Api::namespaced(deps.client.clone(), &name);
        for binding in api.list(&ListParams::default()).await? {
            found.extend(bindings::read(&binding, &name).into_iter().filter(|b| {
                let own = is_subject(&caller, &b.user.kind, &b.user.name, b.user.namespace.as_deref());
                (all || own)
                    && (filter.user.is_empty() || b.user.name == filter.user)
                    && (filter.role.is_empty()
                        || b.role_ref.name == filter.role
                        || bindings::cluster_role(&b.role_ref.name) == Some(filter.role.as_str()))
            }));
        }
    }
    if !filter.user.is_empty() {
        found = bindings::strongest(found);
    }
    Ok(Json(serde_json::json!({"bindings": found})).into_response())
}

async fn create(
    State(deps): State<Deps>,
    user: Caller,
    wanted: Result<Json<Binding>, JsonRejection>,
) -> Result<Response, KfamError> {
    let caller = caller(user)?;
    let wanted = body(wanted)?;
    bindings::check(&wanted).map_err(KfamError::Invalid)?;
    own_profile(&deps, &caller, &wanted.referred_namespace).await?;
    let api: Api<RoleBinding> = Api::namespaced(deps.client.clone(), &wanted.referred_namespace);
    let existing: Vec<RoleBinding> = api.list(&ListParams::default()).await?.items;
    if existing.iter().any(|b| bindings::is_for(b, &wanted)) {
        return Err(KfamError::Conflict(format!("{} has this role already", wanted.user.name)));
    }
    let object = bindings::object(&wanted, |name| existing.iter().any(|b| b.name_any() == name));
    api.create(&PostParams::default(), &object).await?;
    audit(&caller, &wanted, "access granted");
    Ok(StatusCode::OK.into_response())
}

async fn remove(
    State(deps): State<Deps>,
    user: Caller,
    unwanted: Result<Json<Binding>, JsonRejection>,
) -> Result<Response, KfamError> {
    let caller = caller(user)?;
    let unwanted = body(unwanted)?;
    bindings::check(&unwanted).map_err(KfamError::Invalid)?;
    own_profile(&deps, &caller, &unwanted.referred_namespace).await?;
    let api: Api<RoleBinding> = Api::namespaced(deps.client.clone(), &unwanted.referred_namespace);
    let existing: Vec<RoleBinding> = api.list(&ListParams::default()).await?.items;
    let doomed: Vec<_> = existing.iter().filter(|b| bindings::is_for(b, &unwanted) && bindings::is_kfams(b)).collect();
    if doomed.is_empty() {
        return Err(KfamError::NotFound("there is no such binding, or it is the owner's".into()));
    }
    for binding in doomed {
        api.delete(&binding.name_any(), &DeleteParams::default()).await?;
    }
    audit(&caller, &unwanted, "access revoked");
    Ok(StatusCode::OK.into_response())
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
    Ok(Json(is_cluster_admin(&deps, &UserInfo::new(who.user, [])).await?))
}

#[cfg(test)]
mod tests;
