//! Removal of everything an instance has on a machine: processes, mounts, cgroups, links and tables.

use super::{NodeConfig, NodeError, at};
use crate::{
    cgroup::Hierarchies,
    network::Network,
    pod::adopt::attempts,
    process::PidFd,
    shim::records::{self, LOCK, ProcessRef},
    volumes::unmount_below,
};
use std::{fs, io, path::Path};

pub async fn reset(config: &NodeConfig) -> Result<(), NodeError> {
    let pods = config.data_dir.join("pods");
    // Shims first, so that none records an end that was ours.
    let mut shims = Vec::new();
    for pod in entries(&pods) {
        let containers = pods.join(&pod).join("containers");
        for container in entries(&containers) {
            for attempt in attempts(&pods.join(&pod), &container) {
                let lock = containers.join(&container).join(attempt.to_string()).join(LOCK);
                shims.extend(records::read::<ProcessRef>(&lock).ok().and_then(PidFd::open));
            }
        }
    }
    for shim in &shims {
        let _ = shim.signal(libc::SIGKILL);
    }
    for shim in &shims {
        let _ = shim.ended().await;
    }
    let hierarchies = Hierarchies::detect();
    let root = format!("/{}", config.instance);
    kill_all(&hierarchies, &root).await;
    hierarchies.remove(&root).or_else(absent).map_err(at(Path::new(&root)))?;
    Network::reset(&config.network).await?;
    unmount_below(&config.run_dir).map_err(at(&config.run_dir))?;
    unmount_below(&pods).map_err(at(&pods))?;
    for folder in [&config.run_dir, &pods] {
        fs::remove_dir_all(folder).or_else(absent).map_err(at(folder))?;
    }
    Ok(())
}

async fn kill_all(hierarchies: &Hierarchies, cgroup: &str) {
    for child in hierarchies.children(cgroup) {
        Box::pin(kill_all(hierarchies, &format!("{cgroup}/{child}"))).await;
    }
    // Killing races with forking; what is new is killed in the next round.
    loop {
        let pids = hierarchies.processes(cgroup);
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let Ok(reference) = ProcessRef::of(pid) else { continue };
            if let Some(process) = PidFd::open(reference) {
                let _ = process.signal(libc::SIGKILL);
                let _ = process.ended().await;
            }
        }
        tokio::task::yield_now().await;
    }
}

fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

pub(super) fn entries(folder: &Path) -> Vec<String> {
    let read = fs::read_dir(folder).into_iter().flatten().flatten();
    read.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
