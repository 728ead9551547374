//! The gateway alone, to try browsers and scripts against: `cargo run -p kfbox-gateway --example door`. Prints its
//! address and the first user's password; behind the sign-in is a page that says who one is.

use axum::{Extension, Router, routing::any};
use futures::future::BoxFuture;
use kfbox_base::{BoxError, Readiness, Tasks, UserInfo};
use kfbox_gateway::{Config, Deps, Gateway, Mounts, TokenReviewer};
use std::sync::Arc;

/// There is no cluster here: no token is known.
struct NoCluster;

impl TokenReviewer for NoCluster {
    fn review<'a>(&'a self, _: &'a str, _: &'a [String]) -> BoxFuture<'a, Result<Option<UserInfo>, BoxError>> {
        Box::pin(async { Ok(None) })
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let deps = Deps { token_reviewer: Arc::new(NoCluster), readiness: Readiness::default(), newcomers: None };
    let gateway = Gateway::open(Config::new(folder.path().into(), url.parse()?), deps)?;
    if let Some(password) = gateway.ensure_first_user("user@example.com").await? {
        println!("{url} user@example.com {}", password.reveal());
    }
    let who = Router::new()
        .fallback(any(|Extension(user): Extension<UserInfo>| async move { format!("{}\n", user.username) }));
    let tasks = Tasks::new();
    gateway.serve("gateway", listener, gateway.router(Mounts::new().at("/", who)), &tasks);
    tasks.stopped().await?;
    Ok(())
}
