//! The REST API of upstream's Central Dashboard, `/api/…`: who somebody is and where they belong, contributors, namespaces
//! and events. Paths, bodies and messages follow `components/centraldashboard/app` of
//! <https://github.com/kubeflow/dashboard>; the work is KFAM's ([`crate::kfam`]).
//!
//! Guarantees: unlike upstream, a listing shows only what the caller belongs to or may see in the cluster; whoever asks
//! after a namespace that is not theirs gets the same answer whether it exists or not.

use crate::kfam::{self, Binding, Caller, Deps, Filter, KfamError, body, caller};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State, rejection::JsonRejection},
    response::{IntoResponse, Response},
    routing::{any, delete, get, post},
};
use http::StatusCode;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node};
use kfbox_api::{
    Profile, names,
    profile::{ProfileSpec, Subject},
};
use kfbox_base::{ResourceAttributes, UserInfo};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Bodies are a few names.
const BODY_LIMIT: usize = 64 * 1024;
/// Where upstream's manifests keep the menu's links and the dashboard's settings.
pub(crate) const CONFIG_MAP: &str = "dashboard-config";
/// As upstream's manifests set `LOGOUT_URL` behind oauth2-proxy.
const LOGOUT_URL: &str = "/oauth2/sign_out";
/// The longest address that RFC 5321 lets a mailbox have.
const LONGEST_ADDRESS: usize = 254;

/// `/api/…`, to be mounted as it is, behind the gateway.
pub fn router(deps: Deps) -> Router {
    let workgroup = Router::new()
        .route("/exists", get(exists))
        .route("/create", post(create))
        .route("/env-info", get(environment))
        .route("/nuke-self", delete(nuke_self))
        .route("/get-all-namespaces", get(all_namespaces))
        .route("/get-contributors/{namespace}", get(contributors))
        .route("/add-contributor/{namespace}", post(add_contributor))
        .route("/remove-contributor/{namespace}", delete(remove_contributor));
    Router::new()
        .nest("/api/workgroup", workgroup)
        .route("/api/namespaces", get(namespaces))
        .route("/api/activities/{namespace}", get(activities))
        .route("/api/dashboard-links", get(links))
        .route("/api/dashboard-settings", get(settings))
        .route("/api/metrics", get(metrics))
        .route("/api/metrics/{kind}", get(metrics))
        .fallback(any(nothing))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(deps)
}

/// Upstream's form of an error: `{"error": "…"}`.
struct Refusal(StatusCode, String);

impl From<KfamError> for Refusal {
    fn from(error: KfamError) -> Self {
        Self(error.status(), error.to_string())
    }
}

impl From<kube::Error> for Refusal {
    fn from(error: kube::Error) -> Self {
        KfamError::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({"error": self.1}))).into_response()
    }
}

type Answer = Result<Json<Value>, Refusal>;

async fn nothing(user: Caller) -> Refusal {
    match caller(user) {
        Ok(_) => Refusal(StatusCode::NOT_FOUND, "Could not find the route you're looking for".into()),
        Err(error) => error.into(),
    }
}

async fn metrics(user: Caller) -> Answer {
    caller(user)?;
    Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "Operation not supported".into()))
}

/// Upstream's user name is what stands before the `@`.
fn short_name(user: &UserInfo) -> &str {
    user.username.split('@').next().unwrap_or_default()
}

/// The dashboard's word for KFAM's role.
fn simple_role(kfam: &str) -> &'static str {
    match kfam {
        "admin" => "owner",
        "edit" => "contributor",
        _ => "viewer",
    }
}

async fn exists(State(deps): State<Deps>, user: Caller) -> Answer {
    let user = caller(user)?;
    let own = kfam::memberships(&deps, &user).await?;
    Ok(Json(json!({
        "hasAuth": true,
        "user": short_name(&user),
        "hasWorkgroup": own.iter().any(|b| b.role_ref.name == "admin"),
        "registrationFlowAllowed": deps.self_service,
    })))
}

async fn environment(State(deps): State<Deps>, user: Caller) -> Answer {
    let user = caller(user)?;
    let own = kfam::memberships(&deps, &user).await?.into_iter().map(
        |b| json!({"user": user.username, "namespace": b.referred_namespace, "role": simple_role(&b.role_ref.name)}),
    );
    let own: Vec<Value> = own.collect();
    let nodes: Api<Node> = Api::all(deps.client.clone());
    let nodes = nodes.list(&ListParams::default()).await?;
    let provider = nodes.iter().find_map(|n| n.spec.as_ref()?.provider_id.clone()).filter(|p| !p.is_empty());
    let provider = provider.unwrap_or_else(|| "other://".into());
    Ok(Json(json!({
        "user": user.username,
        "platform": {
            "provider": provider,
            "providerName": provider.split(':').next().unwrap_or_default(),
            "kubeflowVersion": env!("CARGO_PKG_VERSION"),
            "logoutUrl": LOGOUT_URL,
        },
        "namespaces": own,
        "isClusterAdmin": kfam::is_cluster_admin(&deps, &user).await?,
    })))
}

#[derive(Deserialize, Default)]
struct Wanted {
    namespace: Option<String>,
    user: Option<String>,
}

async fn create(State(deps): State<Deps>, user: Caller, wanted: Result<Json<Wanted>, JsonRejection>) -> Answer {
    let user = caller(user)?;
    let wanted = body(wanted)?;
    let namespace = wanted.namespace.filter(|n| !n.is_empty()).unwrap_or_else(|| short_name(&user).to_owned());
    let owner = wanted.user.filter(|u| !u.is_empty()).unwrap_or_else(|| user.username.clone());
    let spec = ProfileSpec { owner: Some(Subject::user(owner)), ..ProfileSpec::default() };
    kfam::make_profile(&deps, &user, &namespace, spec).await?;
    Ok(Json(json!({"message": format!("Created namespace {namespace}")})))
}

/// Upstream deletes the profile of the caller's short name, which it would have made; here profiles have other names too.
async fn nuke_self(State(deps): State<Deps>, user: Caller) -> Answer {
    let user = caller(user)?;
    let profiles: Api<Profile> = Api::all(deps.client.clone());
    let profiles = profiles.list(&ListParams::default()).await?;
    let own: Vec<String> = profiles.iter().filter(|p| kfam::owns(&user, p)).map(|p| p.name_any()).collect();
    let name = match own.as_slice() {
        _ if own.iter().any(|n| n == short_name(&user)) => short_name(&user).to_owned(),
        [only] => only.clone(),
        [] => return Err(Refusal(StatusCode::NOT_FOUND, "you own no profile".into())),
        _ => return Err(Refusal(StatusCode::CONFLICT, format!("you own several profiles: {}", own.join(", ")))),
    };
    kfam::drop_profile(&deps, &user, &name).await?;
    Ok(Json(json!({"message": format!("Removed namespace/profile {name}"), "serverBody": {}})))
}

async fn all_namespaces(State(deps): State<Deps>, user: Caller) -> Answer {
    let seen = kfam::visible(&deps, &caller(user)?, &Filter::default()).await?;
    let mut rows: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    for binding in seen {
        let (owner, others) = rows.entry(binding.referred_namespace).or_default();
        match &*binding.role_ref.name {
            // The first is the Profile's own; of several owners the others are shown beside the contributors.
            "admin" if owner.is_empty() => *owner = binding.user.name,
            _ => others.push(binding.user.name),
        }
    }
    let table: Vec<Value> =
        rows.into_iter().map(|(namespace, (owner, others))| json!([namespace, owner, others.join(", ")])).collect();
    Ok(Json(table.into()))
}

async fn listed(deps: &Deps, user: &UserInfo, namespace: String) -> Answer {
    let seen = kfam::visible(deps, user, &Filter { namespace, ..Filter::default() }).await?;
    let contributors = seen.into_iter().filter(|b| simple_role(&b.role_ref.name) == "contributor");
    Ok(Json(contributors.map(|b| Value::from(b.user.name)).collect()))
}

async fn contributors(State(deps): State<Deps>, user: Caller, Path(namespace): Path<String>) -> Answer {
    listed(&deps, &caller(user)?, namespace).await
}

#[derive(Deserialize, Default)]
struct Contributor {
    contributor: Option<String>,
}

type ContributorBody = Result<Json<Contributor>, JsonRejection>;

fn contributor(given: ContributorBody, namespace: &str) -> Result<Binding, Refusal> {
    let wanted = body(given)?.contributor.filter(|c| !c.is_empty());
    let wanted = wanted.ok_or_else(|| Refusal(StatusCode::BAD_REQUEST, "Missing contributor field.".into()))?;
    if !is_address(&wanted) {
        let why = "Contributor doesn't look like a valid email address";
        return Err(Refusal(StatusCode::BAD_REQUEST, why.into()));
    }
    Ok(Binding::of_person(&wanted, namespace, "edit"))
}

async fn add_contributor(
    State(deps): State<Deps>,
    user: Caller,
    Path(namespace): Path<String>,
    given: ContributorBody,
) -> Answer {
    let user = caller(user)?;
    kfam::grant(&deps, &user, &contributor(given, &namespace)?).await?;
    listed(&deps, &user, namespace).await
}

async fn remove_contributor(
    State(deps): State<Deps>,
    user: Caller,
    Path(namespace): Path<String>,
    given: ContributorBody,
) -> Answer {
    let user = caller(user)?;
    kfam::revoke(&deps, &user, &contributor(given, &namespace)?).await?;
    listed(&deps, &user, namespace).await
}

/// A valid e-mail address by the HTML standard, as upstream asks for. One pass: upstream's pattern took exponential time
/// on hostile names (CVE-2024-5552).
fn is_address(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else { return false };
    let in_local = |c: char| c.is_ascii_alphanumeric() || ".!#$%&'*+/=?^_`{|}~-".contains(c);
    let in_label = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let label =
        |l: &str| (1..=63).contains(&l.len()) && l.chars().all(in_label) && !l.starts_with('-') && !l.ends_with('-');
    text.len() <= LONGEST_ADDRESS && !local.is_empty() && local.chars().all(in_local) && domain.split('.').all(label)
}

async fn may(deps: &Deps, user: &UserInfo, what: ResourceAttributes) -> Result<bool, Refusal> {
    Ok(deps.authorizer.authorize(user, &what).await.map_err(KfamError::Authorizer)?.is_allowed())
}

async fn namespaces(State(deps): State<Deps>, user: Caller) -> Answer {
    let user = caller(user)?;
    let api: Api<Namespace> = Api::all(deps.client.clone());
    let mut seen = Vec::new();
    for namespace in api.list(&ListParams::default()).await? {
        let name = namespace.name_any();
        if may(&deps, &user, ResourceAttributes::namespaced("get", "", "namespaces", &name).named(&name)).await? {
            seen.push(serde_json::to_value(namespace).unwrap_or_default());
        }
    }
    Ok(Json(seen.into()))
}

async fn activities(State(deps): State<Deps>, user: Caller, Path(namespace): Path<String>) -> Answer {
    let user = caller(user)?;
    if !may(&deps, &user, ResourceAttributes::namespaced("list", "", "events", &namespace)).await? {
        let why = format!("Access denied. You do not have permission to view activities for namespace '{namespace}'.");
        return Err(Refusal(StatusCode::FORBIDDEN, why));
    }
    let events: Api<Event> = Api::namespaced(deps.client.clone(), &namespace);
    let events = events.list(&ListParams::default()).await?;
    Ok(Json(events.into_iter().map(|e| serde_json::to_value(e).unwrap_or_default()).collect()))
}

async fn links(State(deps): State<Deps>, user: Caller) -> Answer {
    caller(user)?;
    configured(&deps, "links", "Cannot load dashboard menu link").await
}

async fn settings(State(deps): State<Deps>, user: Caller) -> Answer {
    caller(user)?;
    configured(&deps, "settings", "Cannot load dashboard settings").await
}

/// JSON in a key of the dashboard's ConfigMap, which an administrator writes.
async fn configured(deps: &Deps, key: &str, problem: &str) -> Answer {
    let api: Api<ConfigMap> = Api::namespaced(deps.client.clone(), names::KUBEFLOW_NAMESPACE);
    let data = api.get_opt(CONFIG_MAP).await?.and_then(|map| map.data).unwrap_or_default();
    let parsed = data.get(key).and_then(|text| serde_json::from_str(text).ok());
    parsed.map(Json).ok_or_else(|| Refusal(StatusCode::INTERNAL_SERVER_ERROR, problem.into()))
}

#[cfg(test)]
mod tests;
