//! Stopping every container of an instance for good manners: `kfbox down`. Their shims record how they ended, and the
//! next start goes on from there as each pod's restart policy says.

use super::{NodeConfig, reset::entries};
use crate::{
    pod::adopt::attempts,
    process::PidFd,
    shim::records::{self, EXIT, STARTED, Started},
};
use std::time::Duration;

/// How long containers may take to end on their own; upstream's pods have 30 s, but a person waits here.
const GRACE: Duration = Duration::from_secs(5);
/// How long their shims may take to write down the end.
const RECORD: Duration = Duration::from_secs(5);

/// The daemon's own work on pods must have ended, so that nothing is started again.
pub async fn stop(config: &NodeConfig) {
    let pods = config.data_dir.join("pods");
    let mut running = Vec::new();
    for pod in entries(&pods) {
        let containers = pods.join(&pod).join("containers");
        for container in entries(&containers) {
            for attempt in attempts(&pods.join(&pod), &container) {
                let dir = containers.join(&container).join(attempt.to_string());
                if dir.join(EXIT).exists() {
                    continue;
                }
                let Ok(started) = records::read::<Started>(&dir.join(STARTED)) else { continue };
                running.extend(PidFd::open(started.init).map(|init| (init, PidFd::open(started.shim))));
            }
        }
    }
    for (init, _) in &running {
        let _ = init.signal(libc::SIGTERM);
    }
    let all = async {
        for (init, _) in &running {
            let _ = init.ended().await;
        }
    };
    if tokio::time::timeout(GRACE, all).await.is_err() {
        for (init, _) in &running {
            let _ = init.signal(libc::SIGKILL);
        }
    }
    let recorded = async {
        for shim in running.iter().filter_map(|(_, shim)| shim.as_ref()) {
            let _ = shim.ended().await;
        }
    };
    let _ = tokio::time::timeout(RECORD, recorded).await;
}
