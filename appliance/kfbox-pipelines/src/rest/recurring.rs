//! `RecurringRunService`: stored, listed, switched; `crate::schedule` starts the runs.

use super::{App, Args, Caller, description, display_name, empty, field, json_body, render};
use crate::{
    Inner,
    error::{ApiError, ApiResult},
    schedule,
    store::{RecurringRow, listing},
    time,
};
use axum::{Json, body::Body, extract::Path, response::Response};
use kfbox_api::pipelines;
use kfbox_base::UserInfo;
use serde_json::{Value, json};

/// Runs of one recurring run that may go on at once; upstream's limit.
const MOST_AT_ONCE: i64 = 10;
/// Upstream's name for recurring runs in RBAC.
pub(super) const RESOURCE: &str = "jobs";

impl Inner {
    pub(super) async fn recurring(&self, user: &UserInfo, verb: &str, id: &str) -> ApiResult<RecurringRow> {
        let not_found = || ApiError::not_found("recurring run", id);
        let found = self.store.recurring(id).await?.ok_or_else(not_found)?;
        self.allow_on(user, verb, RESOURCE, &found.namespace, not_found).await?;
        Ok(found)
    }

    pub(crate) async fn make_recurring(&self, user: &UserInfo, body: Value) -> ApiResult<RecurringRow> {
        let row = self.new_recurring(user, body, uuid::Uuid::new_v4().to_string(), false).await?;
        let row = self.store.put_recurring(row).await?;
        self.schedule.wake();
        Ok(row)
    }

    /// Checks a request for a recurring run and makes its row. Nothing is stored yet.
    /// `once`: without a trigger, for a single run at once, as ScheduledWorkflows may be.
    pub(crate) async fn new_recurring(
        &self,
        user: &UserInfo,
        mut body: Value,
        id: String,
        once: bool,
    ) -> ApiResult<RecurringRow> {
        if let Some(body) = body.as_object_mut() {
            body.retain(|name, _| !name.starts_with("kfbox_"));
        }
        let trigger = field(&body, "trigger").cloned().unwrap_or_default();
        if !once {
            schedule::Trigger::parse(&trigger).map_err(ApiError::invalid)?;
        }
        if let Some(value) = field(&body, "max_concurrency") {
            // Absent, and 0 as protobuf has it, are one.
            let most = value.as_i64().or_else(|| value.as_str()?.parse().ok());
            if !most.is_some_and(|n| (0..=MOST_AT_ONCE).contains(&n)) {
                return Err(ApiError::invalid(format!(
                    "max_concurrency should be from 1 to {MOST_AT_ONCE}, and is {value}"
                )));
            }
        }
        // The same checks as for a run now, so that a schedule that can never run is refused at once.
        let run = super::new_run(self, user, &body, "").await?;
        self.allow_verb(user, "create", RESOURCE, &run.namespace).await?;
        let enabled = match field(&body, "mode") {
            None => true,
            Some(Value::String(mode)) => mode == "ENABLE",
            Some(mode) => mode.as_i64() == Some(1),
        };
        let (now, display_name) = (time::now(), display_name(&body)?);
        description(&body)?;
        if let Some(body) = body.as_object_mut() {
            body.insert("service_account".into(), json!(run.service_account));
            body.insert("kfbox_owner".into(), json!(user));
            if once {
                body.insert("kfbox_once".into(), json!(true));
            }
        }
        Ok(RecurringRow {
            id,
            namespace: run.namespace,
            experiment_id: run.experiment_id,
            display_name,
            created_at: now,
            updated_at: now,
            status: if enabled { "ENABLED" } else { "DISABLED" }.into(),
            body,
        })
    }

    pub(super) async fn list_recurring(
        &self,
        scope: Vec<(&'static str, Vec<String>)>,
        query: &listing::Query,
    ) -> ApiResult<listing::Page<RecurringRow>> {
        let listing = listing::Listing::new(&listing::RECURRING, query, scope, self.store.key.as_slice())?;
        self.store.recurring_runs(listing).await
    }

    /// `enable` or `disable`.
    pub(super) async fn switch_recurring(&self, user: &UserInfo, id: &str, verb: &str) -> ApiResult<()> {
        let row = self.recurring(user, verb, id).await?;
        let enabled = verb == "enable";
        let resource = row.resource().unwrap_or_default();
        self.change_resource(
            &pipelines::scheduled_workflow(),
            &row.namespace,
            resource,
            || json!({"enabled": enabled}),
        )
        .await?;
        self.store.switch_recurring(id, if enabled { "ENABLED" } else { "DISABLED" }).await?;
        self.schedule.wake();
        Ok(())
    }
}

pub(super) async fn create(app: App, Caller(user): Caller, body: Body) -> ApiResult<Json<Value>> {
    let body = json_body(body).await?;
    Ok(Json(shown(&app.make_recurring(&user, body).await?)))
}

fn shown(row: &RecurringRow) -> Value {
    let mut value = render::recurring(row);
    if let Some(map) = value.as_object_mut() {
        map.retain(|name, _| !name.starts_with("kfbox_"));
    }
    value
}

pub(super) async fn list(app: App, Caller(user): Caller, args: Args) -> ApiResult<Json<Value>> {
    let experiment = args.text("experiment_id");
    let scope = if experiment.is_empty() {
        vec![("namespace", app.listed(&user, RESOURCE, &args.text("namespace")).await?)]
    } else {
        let of = app.experiment(&user, "get", &experiment).await?;
        app.allow_verb(&user, "list", RESOURCE, &of.namespace).await?;
        vec![("experiment_id", vec![experiment])]
    };
    let page = app.list_recurring(scope, &args.listing()?).await?;
    let rows: Vec<Value> = page.rows.iter().map(shown).collect();
    Ok(page.shown("recurringRuns", rows))
}

pub(super) async fn get(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    Ok(Json(shown(&app.recurring(&user, "get", &id).await?)))
}

pub(super) async fn delete(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Response> {
    let row = app.recurring(&user, "delete", &id).await?;
    app.remove_recurring(&row).await?;
    Ok(empty())
}

/// `POST /recurringruns/{id}:enable` and `:disable`.
pub(super) async fn act(app: App, Caller(user): Caller, Path(id): Path<String>) -> ApiResult<Response> {
    let (id, verb) = id.rsplit_once(':').ok_or_else(|| ApiError::not_found("the action on recurring run", &id))?;
    if !matches!(verb, "enable" | "disable") {
        return Err(ApiError::not_found("the action", verb));
    }
    app.switch_recurring(&user, id, verb).await?;
    Ok(empty())
}
