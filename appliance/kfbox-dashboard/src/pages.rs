//! Routes and the making of pages.

mod artifacts;
mod lists;
mod members;
mod render;
mod run;

use crate::{Deps, assets, data::DataError, live, view::Query};
use axum::{
    Extension, Router,
    extract::{Path, Query as Asked, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use kfbox_base::UserInfo;
use render::{Frame, Problem};

pub(crate) fn router(deps: Deps) -> Router {
    Router::new()
        .route("/", get(lists::home))
        .route("/runs", get(lists::runs))
        .route("/runs/{run}", get(run::page))
        .route("/runs/{run}/live", get(run_live))
        .route("/runs/{run}/terminate", post(run::terminate))
        .route("/runs/{run}/nodes/{node}", get(run::node))
        .route("/runs/{run}/nodes/{node}/log", get(artifacts::log))
        .route("/runs/{run}/artifacts/{artifact}", get(artifacts::download))
        .route("/runs/{run}/artifacts/{artifact}/preview", get(artifacts::preview))
        .route("/pipelines", get(lists::pipelines))
        .route("/pipelines/{pipeline}", get(lists::pipeline))
        .route("/experiments", get(lists::experiments))
        .route("/members", get(members::page).post(members::add))
        .route("/members/remove", post(members::remove))
        .route("/live", get(all_live))
        // Where Kubeflow has its Pipelines pages, and scripts look for a page behind the sign-in.
        .route("/pipeline", get(|| async { Redirect::to("/runs") }))
        .route("/pipeline/", get(|| async { Redirect::to("/runs") }))
        .fallback(not_found)
        .layer(middleware::from_fn(signed_in))
        .route("/assets/{version}/{name}", get(assets::serve))
        .with_state(deps)
}

/// The gateway lets nobody through without an identity; without one in front, nothing is shown.
async fn signed_in(request: Request, next: Next) -> Response {
    if request.extensions().get::<UserInfo>().is_none_or(UserInfo::is_anonymous) {
        return (http::StatusCode::UNAUTHORIZED, "sign in first\n").into_response();
    }
    next.run(request).await
}

type User = Extension<UserInfo>;

async fn not_found(Extension(user): User, State(deps): State<Deps>) -> Response {
    Problem::new(Frame::new(&deps, &user, "", "Not found"), &DataError::NotFound).into_response()
}

async fn all_live(Extension(user): User, State(deps): State<Deps>, Asked(_): Asked<Query>) -> Response {
    match deps.data.changes(&user, None).await {
        Ok(changes) => live::events(changes, deps.shutdown.clone()).into_response(),
        Err(error) => render::plain_error(&error),
    }
}

async fn run_live(Extension(user): User, State(deps): State<Deps>, Path(run): Path<String>) -> Response {
    match deps.data.changes(&user, Some(&run)).await {
        Ok(changes) => live::events(changes, deps.shutdown.clone()).into_response(),
        Err(error) => render::plain_error(&error),
    }
}
