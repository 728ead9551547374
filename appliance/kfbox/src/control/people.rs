//! People, their sessions and their personal tokens, as the command line sees and changes them.

use super::server::{Answer, Control, Failed};
use super::{ErrorBody, TokenRequest, TokenResponse};
use axum::{
    Json, Router,
    extract::{Query, State},
    routing::{get, post},
};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A person, without secrets. Times are seconds since 1970.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserRow {
    pub email: String,
    pub namespace: String,
    pub groups: Vec<String>,
    pub disabled: bool,
    /// Gone from the directory that they came from.
    #[serde(default)]
    pub departed: bool,
    pub created: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRow {
    pub id: String,
    pub email: String,
    pub name: String,
    pub scopes: Vec<String>,
    pub created: i64,
    /// Never, when absent.
    pub expires: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionRow {
    pub id: String,
    pub email: String,
    pub created: i64,
    pub expires: i64,
    pub address: String,
    pub agent: String,
}

/// `POST /v1/users`.
#[derive(Serialize, Deserialize)]
pub struct NewUser {
    pub email: String,
    pub password: String,
    #[serde(default)]
    pub groups: Vec<String>,
}

/// `POST /v1/users/change`: what is absent stays.
#[derive(Debug, Serialize, Deserialize)]
pub struct UserChange {
    pub email: String,
    pub disabled: Option<bool>,
    pub groups: Option<Vec<String>>,
}

/// `POST /v1/users/import`: a person with a bcrypt or argon2 hash made elsewhere.
#[derive(Serialize, Deserialize)]
pub struct ImportedUser {
    pub email: String,
    pub hash: String,
    #[serde(default)]
    pub groups: Vec<String>,
}

/// What the components behind the socket know and do about people.
pub trait People: Send + Sync + 'static {
    fn users(&self) -> Vec<UserRow>;
    fn add_user(&self, user: NewUser) -> BoxFuture<'_, Result<UserRow, ErrorBody>>;
    fn import_user(&self, user: ImportedUser) -> BoxFuture<'_, Result<UserRow, ErrorBody>>;
    fn set_password(&self, email: String, password: String) -> BoxFuture<'_, Result<(), ErrorBody>>;
    fn change_user(&self, change: UserChange) -> BoxFuture<'_, Result<UserRow, ErrorBody>>;
    fn remove_user(&self, email: String) -> BoxFuture<'_, Result<UserRow, ErrorBody>>;
    fn create_token(&self, request: TokenRequest) -> BoxFuture<'_, Result<TokenResponse, ErrorBody>>;
    fn tokens(&self, email: Option<String>) -> Result<Vec<TokenRow>, ErrorBody>;
    fn revoke_token(&self, id: String) -> BoxFuture<'_, Result<(), ErrorBody>>;
    fn sessions(&self, email: Option<String>) -> Result<Vec<SessionRow>, ErrorBody>;
    fn revoke_session(&self, id: String) -> BoxFuture<'_, Result<(), ErrorBody>>;
}

pub(super) fn routes() -> Router<Control> {
    Router::new()
        .route("/v1/users", get(users).post(add_user).delete(remove_user))
        .route("/v1/users/password", post(set_password))
        .route("/v1/users/change", post(change_user))
        .route("/v1/users/import", post(import_user))
        .route("/v1/tokens", get(tokens).post(create_token).delete(revoke_token))
        .route("/v1/sessions", get(sessions).delete(revoke_session))
}

#[derive(Deserialize)]
struct OfUser {
    user: Option<String>,
}

#[derive(Deserialize)]
struct Id {
    id: String,
}

async fn users(State(control): State<Control>) -> Answer<Vec<UserRow>> {
    Ok(Json(control.backend()?.users()))
}

async fn add_user(State(control): State<Control>, Json(user): Json<NewUser>) -> Answer<UserRow> {
    Ok(Json(control.backend()?.add_user(user).await?))
}

async fn import_user(State(control): State<Control>, Json(user): Json<ImportedUser>) -> Answer<UserRow> {
    Ok(Json(control.backend()?.import_user(user).await?))
}

async fn set_password(State(control): State<Control>, Json(user): Json<NewUser>) -> Answer<Value> {
    control.backend()?.set_password(user.email, user.password).await?;
    Ok(Json(Value::Null))
}

async fn change_user(State(control): State<Control>, Json(change): Json<UserChange>) -> Answer<UserRow> {
    Ok(Json(control.backend()?.change_user(change).await?))
}

async fn remove_user(State(control): State<Control>, Query(query): Query<Id>) -> Answer<UserRow> {
    Ok(Json(control.backend()?.remove_user(query.id).await?))
}

async fn create_token(State(control): State<Control>, Json(request): Json<TokenRequest>) -> Answer<TokenResponse> {
    Ok(Json(control.backend()?.create_token(request).await?))
}

async fn tokens(State(control): State<Control>, Query(query): Query<OfUser>) -> Answer<Vec<TokenRow>> {
    Ok(Json(control.backend()?.tokens(query.user)?))
}

async fn revoke_token(State(control): State<Control>, Query(query): Query<Id>) -> Result<Json<Value>, Failed> {
    control.backend()?.revoke_token(query.id).await?;
    Ok(Json(Value::Null))
}

async fn sessions(State(control): State<Control>, Query(query): Query<OfUser>) -> Answer<Vec<SessionRow>> {
    Ok(Json(control.backend()?.sessions(query.user)?))
}

async fn revoke_session(State(control): State<Control>, Query(query): Query<Id>) -> Answer<Value> {
    control.backend()?.revoke_session(query.id).await?;
    Ok(Json(Value::Null))
}
