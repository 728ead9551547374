//! What the node, its pods and their containers use, read from the kernel when somebody asks.

use super::{Node, machine};
use crate::{
    cgroup::{Hierarchies, Usage},
    pod::record::{self, uid},
    runtime::{Handle, Stage},
    shim::records::{ProcessRef, Started},
    usage::{ContainerUsage, Figures, NodeUsage, PodUsage, Reading, Traffic, Window},
};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use std::{collections::HashMap, fs, sync::Arc, time::Instant};

struct Running {
    pod: String,
    container: String,
    handle: Handle,
    started: Started,
}

impl Node {
    /// What the node, its pods and their containers use now.
    pub async fn usage(&self) -> Arc<NodeUsage> {
        let pods: Vec<Arc<Pod>> = self.pods.lock().values().cloned().collect();
        let running = self.running_containers();
        let mut names: Vec<String> = running.iter().map(|r| r.handle.cgroup.clone()).collect();
        names.extend(pods.iter().map(|pod| self.ctx.cgroup(uid(pod))));
        let read = || {
            let (hierarchies, names) = (self.ctx.runtime.hierarchies.clone(), names.clone());
            async move {
                let reading = tokio::task::spawn_blocking(move || read(&hierarchies, &names)).await;
                reading.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
            }
        };
        let describe = |window: &Window| NodeUsage {
            timestamp: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            window: window.length(),
            used: window.node(),
            pods: pods.iter().filter_map(|pod| self.pod_usage(pod, &running, window)).collect(),
        };
        self.ctx.meter.measure(read, describe).await
    }

    fn running_containers(&self) -> Vec<Running> {
        let handles: Vec<((String, String), Handle)> =
            self.ctx.handles.lock().iter().map(|(key, handle)| (key.clone(), handle.clone())).collect();
        let running = handles.into_iter().filter_map(|((pod, container), handle)| match handle.stage() {
            Stage::Running(started) => Some(Running { pod, container, handle, started }),
            Stage::Creating | Stage::Ended(_) => None,
        });
        running.collect()
    }

    /// None for a pod of which nothing runs.
    fn pod_usage(&self, pod: &Pod, running: &[Running], window: &Window) -> Option<PodUsage> {
        let spec = pod.spec.as_ref()?;
        let own: Vec<&Running> = running.iter().filter(|r| r.pod == uid(pod)).collect();
        let mut containers: Vec<ContainerUsage> = own
            .iter()
            .filter_map(|r| {
                Some(ContainerUsage {
                    name: r.container.clone(),
                    id: r.handle.id.clone(),
                    image: record::find(spec, &r.container).and_then(|c| c.image.clone()).unwrap_or_default(),
                    cgroup: r.handle.cgroup.clone(),
                    started_at: r.started.started_at.clone(),
                    used: window.cgroup(&r.handle.cgroup)?,
                })
            })
            .collect();
        if containers.is_empty() {
            return None;
        }
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        let used = window.cgroup(&self.ctx.cgroup(uid(pod))).unwrap_or_else(|| sum(&containers));
        let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0.to_string());
        let host_network = spec.host_network.unwrap_or(false);
        Some(PodUsage {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: uid(pod).into(),
            started_at: started.unwrap_or_default(),
            used,
            traffic: if host_network { None } else { own.iter().find_map(|r| traffic(r.started.init)) },
            containers,
        })
    }
}

fn sum(containers: &[ContainerUsage]) -> Figures {
    containers.iter().fold(Figures::default(), |all, c| Figures {
        cpu_nanocores: all.cpu_nanocores + c.used.cpu_nanocores,
        cpu_nanoseconds: all.cpu_nanoseconds + c.used.cpu_nanoseconds,
        memory_bytes: all.memory_bytes + c.used.memory_bytes,
        memory_working_set_bytes: all.memory_working_set_bytes + c.used.memory_working_set_bytes,
        memory_rss_bytes: all.memory_rss_bytes + c.used.memory_rss_bytes,
        processes: all.processes + c.used.processes,
    })
}

fn read(hierarchies: &Hierarchies, names: &[String]) -> Reading {
    let cgroups: HashMap<String, Usage> =
        names.iter().filter_map(|name| Some((name.clone(), hierarchies.usage(name)?))).collect();
    Reading { at: Instant::now(), node: machine::usage(), cgroups }
}

/// What passed the links of a process's network, but for its loopback.
fn traffic(process: ProcessRef) -> Option<Traffic> {
    let text = fs::read_to_string(format!("/proc/{}/net/dev", process.pid)).ok()?;
    process.exists().then(|| parse_traffic(&text))
}

fn parse_traffic(text: &str) -> Traffic {
    let mut all = Traffic::default();
    for line in text.lines() {
        let Some((link, counters)) = line.split_once(':') else { continue };
        let numbers: Vec<u64> = counters.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
        // The ninth number is the first of what was sent.
        if let (false, Some(received), Some(sent)) = (link.trim() == "lo", numbers.first(), numbers.get(8)) {
            all.received += received;
            all.sent += sent;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_that_of_the_links() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n    \
            lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n  eth0: 1200 3 0 0 0 0 0 0 450 4 0 0 0 0 0 0\n";
        assert_eq!(parse_traffic(text), Traffic { received: 1200, sent: 450 });
        assert_eq!(parse_traffic("eth0: x"), Traffic::default());
    }
}
