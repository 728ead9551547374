//! The controllers and back ends of the platform: profiles, KFAM, the dashboard's REST API, and the
//! package index cache.
//!
//! Architecture Invariant: the cluster is seen only through `kube::Client`; nothing here knows which cluster it is.

pub mod kfam;
pub mod packages;
pub mod profiles;
mod setup;
pub mod workgroup;

pub use setup::{Config, DefaultProfile, PodSecurity, SetupError, Walls};

use kfbox_base::{BoxError, Readiness, Tasks};
use kube::Client;

/// Installs what the platform needs in the cluster, then runs its controllers. Returns at once; progress is in the
/// readiness of `profiles`.
pub fn start(client: Client, config: Config, tasks: &Tasks, readiness: &Readiness) {
    let component = readiness.component("profiles");
    let shutdown = tasks.shutdown();
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
        profiles::run(client, config.walls, component, shutdown).await;
        Ok(())
    });
}
