//! The controllers and back ends of the platform: profiles, KFAM, the dashboard's REST API, routes to people's Services, and
//! the package index cache.
//!
//! Architecture Invariant: the cluster is seen only through `kube::Client`; nothing here knows which cluster it is.

pub mod kfam;
pub mod packages;
pub mod profiles;
pub mod routes;
mod setup;
pub mod workgroup;

pub use routes::Routes;
pub use setup::{Config, DefaultProfile, PodSecurity, SetupError, Walls};

use kfbox_base::{BoxError, Readiness, Tasks};
use kube::Client;

/// Installs what the platform needs in the cluster, then runs its controllers. Returns at once; progress is in the
/// readiness of `profiles`. What comes back knows the ways to people's Services as soon as there are any.
pub fn start(client: Client, config: Config, tasks: &Tasks, readiness: &Readiness) -> Routes {
    let component = readiness.component("profiles");
    let shutdown = tasks.shutdown();
    let routes = Routes::new(client.clone());
    let (found, all) = (routes.clone(), tasks.clone());
    tasks.essential("profiles", async move {
        tokio::select! {
            () = shutdown.cancelled() => return Ok::<(), BoxError>(()),
            done = setup::install(&client, &config, &component) => {
                if let Err(error) = done {
                    component.failed(error.to_string());
                    return Err(error.into());
                }
            }
        }
        found.follow(client.clone(), config.routes, &all);
        profiles::run(client, config.walls, component, shutdown).await;
        Ok(())
    });
    routes
}
