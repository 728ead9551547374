//! `ExperimentService`.

use super::{App, Args, Caller, description, display_name, empty, json_body, render, text_field};
use crate::{
    Inner,
    error::{ApiError, ApiResult},
    store::{ARCHIVED, AVAILABLE, Experiment, listing},
    time,
};
use axum::{Json, body::Body, extract::Path, response::Response};
use kfbox_base::UserInfo;
use serde_json::Value;

const RESOURCE: &str = "experiments";

impl Inner {
    pub(crate) async fn experiment(&self, user: &UserInfo, verb: &str, id: &str) -> ApiResult<Experiment> {
        let not_found = || ApiError::not_found("experiment", id);
        let found = self.store.experiment(id).await?.ok_or_else(not_found)?;
        self.allow_on(user, verb, RESOURCE, &found.namespace, not_found).await?;
        Ok(found)
    }

    pub(super) async fn make_experiment(
        &self,
        user: &UserInfo,
        namespace: String,
        body: &Value,
    ) -> ApiResult<Experiment> {
        self.allow_verb(user, "create", RESOURCE, &namespace).await?;
        let new = Experiment {
            id: uuid::Uuid::new_v4().to_string(),
            namespace,
            display_name: display_name(body)?,
            description: description(body)?,
            created_at: time::now(),
            last_run_created_at: 0,
            storage_state: AVAILABLE.into(),
        };
        self.store.create_experiment(new).await
    }

    pub(super) async fn list_experiments(
        &self,
        user: &UserInfo,
        namespace: &str,
        query: &listing::Query,
    ) -> ApiResult<listing::Page<Experiment>> {
        let scope = vec![("namespace", self.listed(user, RESOURCE, namespace).await?)];
        let listing = listing::Listing::new(&listing::EXPERIMENTS, query, scope, self.store.key.as_slice())?;
        self.store.experiments(listing).await
    }
}

pub(super) async fn create(app: App, Caller(user): Caller, body: Body) -> ApiResult<Json<Value>> {
    let body = json_body(body).await?;
    let namespace = app.namespace(&user, &text_field(&body, "namespace")?).await?;
    Ok(Json(render::experiment(&app.make_experiment(&user, namespace, &body).await?)))
}

pub(super) async fn list(app: App, Caller(user): Caller, args: Args) -> ApiResult<Json<Value>> {
    let page = app.list_experiments(&user, &args.text("namespace"), &args.listing()?).await?;
    let rows: Vec<Value> = page.rows.iter().map(render::experiment).collect();
    Ok(page.shown("experiments", rows))
}

pub(super) async fn get(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    Ok(Json(render::experiment(&app.experiment(&user, "get", &id).await?)))
}

pub(super) async fn delete(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Response> {
    app.experiment(&user, "delete", &id).await?;
    app.store.delete_experiment(&id).await?;
    Ok(empty())
}

/// `POST /experiments/{id}:archive` and `:unarchive`.
pub(super) async fn act(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Response> {
    let (id, verb) = id.rsplit_once(':').ok_or_else(|| ApiError::not_found("the action on experiment", &id))?;
    let state = match verb {
        "archive" => ARCHIVED,
        "unarchive" => AVAILABLE,
        _ => return Err(ApiError::not_found("the action", verb)),
    };
    app.experiment(&user, verb, id).await?;
    app.store.set_experiment_storage(id, state).await?;
    Ok(empty())
}
