//! What of the kubelet's own HTTP API is served: health, statistics, metrics, the pods and the settings. Reading only.
//! Upstream: <https://kubernetes.io/docs/reference/instrumentation/node-metrics/>,
//! <https://kubernetes.io/docs/concepts/cluster-administration/system-metrics/>

use super::{Node, machine, register::MAX_PODS};
use crate::{
    quantity,
    usage::{Figures, NodeUsage, PodUsage},
};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

/// The text format of Prometheus.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";
const PLAIN: &str = "text/plain; charset=utf-8";

/// An answer's content type and body.
pub type Answer = (&'static str, String);

impl Node {
    /// The answer to a `GET` of this path; None for one that is not served.
    pub async fn http(&self, path: &str) -> Option<Answer> {
        let json = |value: Value| (JSON, value.to_string());
        Some(match path.trim_end_matches('/') {
            "/healthz" | "/healthz/ping" | "/healthz/syncloop" => (PLAIN, "ok".into()),
            "/pods" | "/runningpods" => json(self.pod_list(path.starts_with("/running"))),
            "/configz" => json(self.settings()),
            "/stats/summary" => json(self.summary(&*self.usage().await)),
            "/metrics" => (METRICS, self.own_metrics()),
            "/metrics/resource" => (METRICS, resource_metrics(&*self.usage().await)),
            "/metrics/cadvisor" => (METRICS, self.container_metrics(&*self.usage().await)),
            _ => return None,
        })
    }

    fn all_pods(&self) -> Vec<Arc<Pod>> {
        let mut pods: Vec<Arc<Pod>> = self.pods.lock().values().cloned().collect();
        pods.sort_by(|a, b| (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name)));
        pods
    }

    fn pod_list(&self, running: bool) -> Value {
        let phase = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.clone());
        let pods: Vec<Arc<Pod>> =
            self.all_pods().into_iter().filter(|pod| !running || phase(pod).as_deref() == Some("Running")).collect();
        let items: Vec<&Pod> = pods.iter().map(|pod| &**pod).collect();
        json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })
    }

    fn settings(&self) -> Value {
        let config = &self.config;
        let eviction = &config.eviction;
        json!({ "kubeletconfig": {
            "maxPods": MAX_PODS,
            "podPidsLimit": config.pod_pids_limit.unwrap_or(-1),
            "clusterDomain": config.dns.domain,
            "clusterDNS": [config.network.dns_ip.to_string()],
            "resolvConf": config.host_resolv,
            "containerLogMaxSize": quantity::binary(config.log_max_bytes),
            "containerLogMaxFiles": config.log_max_files,
            "podCIDR": config.network.pod_ranges().iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            "evictionHard": {
                "memory.available": quantity::binary(eviction.memory_bytes),
                "nodefs.available": format!("{}%", eviction.node_fs_percent),
                "nodefs.inodesFree": format!("{}%", eviction.inodes_percent),
                "imagefs.available": format!("{}%", eviction.image_fs_percent),
                "imagefs.inodesFree": format!("{}%", eviction.inodes_percent),
            },
            "evictionPressureTransitionPeriod": format!("{}s", eviction.transition.as_secs()),
            "imageGCHighThresholdPercent": config.image_gc.high_percent,
            "imageGCLowThresholdPercent": config.image_gc.low_percent,
            "imageMinimumGCAge": format!("{}s", config.image_gc.minimum_age.as_secs()),
        } })
    }

    /// `kubelet.k8s.io/v1alpha1` Summary.
    fn summary(&self, usage: &NodeUsage) -> Value {
        let time = &usage.timestamp;
        let disk = machine::Disk::of(&self.config.data_dir);
        let fs = json!({
            "time": time, "availableBytes": disk.free, "capacityBytes": disk.total,
            "usedBytes": disk.total.saturating_sub(disk.free), "inodesFree": disk.inodes_free, "inodes": disk.inodes,
            "inodesUsed": disk.inodes.saturating_sub(disk.inodes_free),
        });
        let mut memory = memory(time, &usage.used);
        memory["availableBytes"] =
            json!(self.ctx.memory_bytes.unsigned_abs().saturating_sub(usage.used.memory_working_set_bytes));
        json!({
            "node": {
                "nodeName": self.config.node_name,
                "cpu": cpu(time, &usage.used),
                "memory": memory,
                "fs": fs,
                "runtime": { "imageFs": fs, "containerFs": fs },
                "rlimit": { "time": time, "maxpid": machine::max_pids(), "curproc": usage.used.processes },
            },
            "pods": usage.pods.iter().map(|pod| pod_summary(time, pod)).collect::<Vec<_>>(),
        })
    }

    fn own_metrics(&self) -> String {
        let mut text = Text::default();
        let pods = self.all_pods();
        let labels = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.clone()) == Some("Running".into());
        let running = pods.iter().filter(|pod| labels(pod)).count();
        text.family("kubelet_node_name", "gauge", "The node's name. The count is always 1.");
        text.sample("kubelet_node_name", &[("node", &self.config.node_name)], 1.0);
        text.family("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox.");
        text.sample("kubelet_running_pods", &[], count(running));
        text.family("kubelet_running_containers", "gauge", "Number of containers currently running.");
        text.sample(
            "kubelet_running_containers",
            &[("container_state", "running")],
            count(self.ctx.handles.lock().len()),
        );
        text.out
    }

    /// Under the names that cAdvisor gives, which dashboards ask for.
    fn container_metrics(&self, usage: &NodeUsage) -> String {
        let mut rows: Vec<(Vec<(&str, String)>, &Figures)> = vec![(row("", "/", "", "", "", ""), &usage.used)];
        for pod in &usage.pods {
            let cgroup = self.ctx.cgroup(&pod.uid);
            rows.push((row("", &cgroup, "", "", &pod.namespace, &pod.name), &pod.used));
            for c in &pod.containers {
                rows.push((row(&c.name, &c.cgroup, &c.image, &c.id, &pod.namespace, &pod.name), &c.used));
            }
        }
        let mut text = Text::default();
        type Pick = fn(&Figures) -> f64;
        let families: [(&str, &str, &str, Pick); 5] = [
            ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", |f| {
                seconds(f.cpu_nanoseconds)
            }),
            ("container_memory_usage_bytes", "gauge", "Current memory usage in bytes, including all memory.", |f| {
                bytes(f.memory_bytes)
            }),
            ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |f| {
                bytes(f.memory_working_set_bytes)
            }),
            ("container_memory_rss", "gauge", "Size of RSS in bytes.", |f| bytes(f.memory_rss_bytes)),
            ("container_processes", "gauge", "Number of processes running inside the container.", |f| {
                bytes(f.processes)
            }),
        ];
        for (name, kind, help, pick) in families {
            text.family(name, kind, help);
            for (labels, figures) in &rows {
                let mut labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
                if name == "container_cpu_usage_seconds_total" {
                    labels.insert(1, ("cpu", "total"));
                }
                text.sample(name, &labels, pick(figures));
            }
        }
        text.family(
            "container_start_time_seconds",
            "gauge",
            "Start time of the container since unix epoch in seconds.",
        );
        for pod in &usage.pods {
            for c in &pod.containers {
                let labels = row(&c.name, &c.cgroup, &c.image, &c.id, &pod.namespace, &pod.name);
                let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
                text.sample("container_start_time_seconds", &labels, unix_seconds(&c.started_at));
            }
        }
        for (name, help) in [
            ("container_network_receive_bytes_total", "Cumulative count of bytes received"),
            ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted"),
        ] {
            text.family(name, "counter", help);
            for (pod, traffic) in usage.pods.iter().filter_map(|pod| Some((pod, pod.traffic?))) {
                let mut labels = row("", &self.ctx.cgroup(&pod.uid), "", "", &pod.namespace, &pod.name);
                labels.insert(3, ("interface", "eth0".into()));
                let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
                let value = if name.contains("receive") { traffic.received } else { traffic.sent };
                text.sample(name, &labels, bytes(value));
            }
        }
        text.family("machine_cpu_cores", "gauge", "Number of logical CPU cores.");
        text.sample("machine_cpu_cores", &[], bytes(self.ctx.cpu_milli.unsigned_abs() / 1000));
        text.family("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.");
        text.sample("machine_memory_bytes", &[], bytes(self.ctx.memory_bytes.unsigned_abs()));
        text.out
    }
}

fn row(container: &str, id: &str, image: &str, name: &str, namespace: &str, pod: &str) -> Vec<(&'static str, String)> {
    let pairs = [
        ("container", container),
        ("id", id),
        ("image", image),
        ("name", name),
        ("namespace", namespace),
        ("pod", pod),
    ];
    pairs.into_iter().map(|(key, value)| (key, value.to_owned())).collect()
}

/// A sample's value; beyond 2^53 the format itself is inexact.
#[expect(clippy::cast_precision_loss, reason = "Prometheus has floating-point numbers only")]
fn bytes(value: u64) -> f64 {
    value as f64
}

fn count(value: usize) -> f64 {
    bytes(value as u64)
}

fn seconds(nanoseconds: u64) -> f64 {
    bytes(nanoseconds) / 1e9
}

fn unix_seconds(time: &str) -> f64 {
    time.parse::<k8s_openapi::jiff::Timestamp>().map_or(0.0, |t| t.as_duration().as_secs_f64())
}

fn cpu(time: &str, used: &Figures) -> Value {
    json!({ "time": time, "usageNanoCores": used.cpu_nanocores, "usageCoreNanoSeconds": used.cpu_nanoseconds })
}

fn memory(time: &str, used: &Figures) -> Value {
    json!({
        "time": time, "usageBytes": used.memory_bytes, "workingSetBytes": used.memory_working_set_bytes,
        "rssBytes": used.memory_rss_bytes,
    })
}

fn pod_summary(time: &str, pod: &PodUsage) -> Value {
    let containers: Vec<Value> = pod
        .containers
        .iter()
        .map(|c| {
            json!({
                "name": c.name, "startTime": c.started_at, "cpu": cpu(time, &c.used), "memory": memory(time, &c.used),
            })
        })
        .collect();
    let mut summary = json!({
        "podRef": { "name": pod.name, "namespace": pod.namespace, "uid": pod.uid },
        "startTime": pod.started_at,
        "cpu": cpu(time, &pod.used),
        "memory": memory(time, &pod.used),
        "process_stats": { "process_count": pod.used.processes },
        "containers": containers,
    });
    if let Some(traffic) = pod.traffic {
        let link = json!({ "name": "eth0", "rxBytes": traffic.received, "txBytes": traffic.sent });
        summary["network"] = json!({
            "time": time, "name": "eth0", "rxBytes": traffic.received, "txBytes": traffic.sent, "interfaces": [link],
        });
    }
    summary
}

/// What metrics-server reads.
fn resource_metrics(usage: &NodeUsage) -> String {
    let mut text = Text::default();
    text.family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
    );
    text.each_container(usage, "container_cpu_usage_seconds_total", |c| seconds(c.used.cpu_nanoseconds));
    text.family("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes");
    text.each_container(usage, "container_memory_working_set_bytes", |c| bytes(c.used.memory_working_set_bytes));
    text.family("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds");
    text.each_container(usage, "container_start_time_seconds", |c| unix_seconds(&c.started_at));
    text.family("node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node in core-seconds");
    text.sample("node_cpu_usage_seconds_total", &[], seconds(usage.used.cpu_nanoseconds));
    text.family("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes");
    text.sample("node_memory_working_set_bytes", &[], bytes(usage.used.memory_working_set_bytes));
    text.family("pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod in core-seconds");
    for pod in &usage.pods {
        let labels = [("namespace", pod.namespace.as_str()), ("pod", &pod.name)];
        text.sample("pod_cpu_usage_seconds_total", &labels, seconds(pod.used.cpu_nanoseconds));
    }
    text.family("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes");
    for pod in &usage.pods {
        let labels = [("namespace", pod.namespace.as_str()), ("pod", &pod.name)];
        text.sample("pod_memory_working_set_bytes", &labels, bytes(pod.used.memory_working_set_bytes));
    }
    text.family(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    text.sample("resource_scrape_error", &[], 0.0);
    text.out
}

#[derive(Default)]
struct Text {
    out: String,
}

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(name);
        if !labels.is_empty() {
            let all: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
            let _ = write!(self.out, "{{{}}}", all.join(","));
        }
        let _ = writeln!(self.out, " {value}");
    }

    fn each_container(&mut self, usage: &NodeUsage, name: &str, pick: fn(&crate::usage::ContainerUsage) -> f64) {
        for pod in &usage.pods {
            for c in &pod.containers {
                let labels = [("container", c.name.as_str()), ("namespace", &pod.namespace), ("pod", &pod.name)];
                self.sample(name, &labels, pick(c));
            }
        }
    }
}

/// As the format wants a label's value.
fn escaped(value: &str) -> String {
    let marks = BTreeMap::from([('\\', "\\\\"), ('"', "\\\""), ('\n', "\\n")]);
    value.chars().map(|c| marks.get(&c).map_or_else(|| c.to_string(), |&mark| mark.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::{ContainerUsage, Traffic};
    use std::time::Duration;

    fn usage() -> NodeUsage {
        let used = Figures {
            cpu_nanocores: 5,
            cpu_nanoseconds: 1_500_000_000,
            memory_working_set_bytes: 42,
            ..Figures::default()
        };
        let container = ContainerUsage {
            name: "c".into(),
            id: "64".into(),
            image: "odd\"name\n".into(),
            cgroup: "/k/podu/c.0".into(),
            started_at: "2026-01-01T00:00:00.500000000Z".into(),
            used,
        };
        NodeUsage {
            timestamp: "2026-01-01T00:00:01Z".into(),
            window: Duration::from_secs(1),
            used,
            pods: vec![PodUsage {
                namespace: "n".into(),
                name: "p".into(),
                uid: "u".into(),
                started_at: "2026-01-01T00:00:00Z".into(),
                used,
                traffic: Some(Traffic { received: 7, sent: 8 }),
                containers: vec![container],
            }],
        }
    }

    #[test]
    fn metrics_are_lines_of_the_text_format() {
        let text = resource_metrics(&usage());
        for line in [
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 1.5",
            "container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\"} 1767225600.5",
            "pod_memory_working_set_bytes{namespace=\"n\",pod=\"p\"} 42",
            "node_cpu_usage_seconds_total 1.5",
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert_eq!(escaped("odd\"name\n\\"), "odd\\\"name\\n\\\\");
    }

    #[test]
    fn the_summary_names_the_pod_and_its_containers() {
        let summary = pod_summary("t", &usage().pods[0]);
        assert_eq!(summary["podRef"], json!({ "name": "p", "namespace": "n", "uid": "u" }));
        assert_eq!(summary["containers"][0]["cpu"]["usageNanoCores"], 5);
        assert_eq!(summary["network"]["rxBytes"], 7);
    }
}
