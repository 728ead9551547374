//! Quality of service and limits of a container, as the kernel counts them.
//! Upstream: <https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>,
//! <https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/>

use crate::quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use serde_json::{Value, json};

const PERIOD_MICROSECONDS: i64 = 100_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

fn amount(of: Option<&ResourceRequirements>, limits: bool, name: &str) -> Option<i64> {
    let resources = of?;
    let map = if limits { resources.limits.as_ref() } else { resources.requests.as_ref() };
    let quantity = map?.get(name)?;
    let found = if name == "cpu" { quantity::milli(quantity) } else { quantity::value(quantity) };
    found.filter(|n| *n > 0)
}

/// Bytes, thousandths of a processor, or whole units.
pub fn limit(container: &Container, name: &str) -> Option<i64> {
    amount(container.resources.as_ref(), true, name)
}

/// A limit without a request is a request too.
pub fn request(container: &Container, name: &str) -> Option<i64> {
    amount(container.resources.as_ref(), false, name).or_else(|| limit(container, name))
}

pub fn qos(spec: &PodSpec) -> QosClass {
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let any = containers()
        .any(|c| ["cpu", "memory"].iter().any(|name| request(c, name).is_some() || limit(c, name).is_some()));
    if !any {
        return QosClass::BestEffort;
    }
    let guaranteed = containers()
        .all(|c| ["cpu", "memory"].iter().all(|name| limit(c, name).is_some() && request(c, name) == limit(c, name)));
    if guaranteed { QosClass::Guaranteed } else { QosClass::Burstable }
}

/// Who goes first when memory runs out: the less was asked for, the sooner.
pub fn oom_score_adj(spec: &PodSpec, container: &Container, memory_capacity: i64) -> i32 {
    match qos(spec) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let requested = request(container, "memory").unwrap_or(0);
            let share = 1000_i64.saturating_mul(requested).checked_div(memory_capacity).unwrap_or(0);
            i32::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
        }
    }
}

/// The OCI `linux.resources` object.
pub fn resources(container: &Container, pids_limit: Option<i64>, privileged: bool) -> Value {
    let shares =
        request(container, "cpu").map_or(MIN_SHARES, |milli| (milli * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES));
    let mut cpu = json!({ "shares": shares });
    if let Some(milli) = limit(container, "cpu") {
        cpu["quota"] = json!((milli * PERIOD_MICROSECONDS / 1000).max(1000));
        cpu["period"] = json!(PERIOD_MICROSECONDS);
    }
    let mut all = json!({ "cpu": cpu, "devices": [{ "allow": privileged, "access": "rwm" }] });
    if let Some(bytes) = limit(container, "memory") {
        all["memory"] = json!({ "limit": bytes });
    }
    if let Some(limit) = pids_limit {
        all["pids"] = json!({ "limit": limit });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn container(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
        let map = |list: &[(&str, &str)]| {
            Some(list.iter().map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned()))).collect())
        };
        Container {
            resources: Some(ResourceRequirements {
                requests: map(requests),
                limits: map(limits),
                ..ResourceRequirements::default()
            }),
            ..Container::default()
        }
    }

    fn pod(containers: Vec<Container>) -> PodSpec {
        PodSpec { containers, ..PodSpec::default() }
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        assert_eq!(qos(&pod(vec![Container::default()])), QosClass::BestEffort);
        let full = container(&[], &[("cpu", "1"), ("memory", "1Gi")]);
        assert_eq!(qos(&pod(vec![full.clone()])), QosClass::Guaranteed);
        assert_eq!(qos(&pod(vec![full, Container::default()])), QosClass::Burstable);
        let less = container(&[("cpu", "1")], &[("cpu", "2"), ("memory", "1Gi")]);
        assert_eq!(qos(&pod(vec![less])), QosClass::Burstable);
        assert_eq!(qos(&pod(vec![container(&[("cpu", "0")], &[])])), QosClass::BestEffort);
    }

    #[test]
    fn limits_reach_the_kernel() {
        let c = container(&[("cpu", "250m")], &[("cpu", "500m"), ("memory", "64Mi")]);
        let found = resources(&c, Some(100), false);
        assert_eq!(found["cpu"], json!({ "shares": 256, "quota": 50_000, "period": 100_000 }));
        assert_eq!(found["memory"]["limit"], json!(67_108_864));
        assert_eq!(found["pids"]["limit"], json!(100));
        assert_eq!(resources(&Container::default(), None, false)["cpu"]["shares"], json!(2));
    }

    #[test]
    fn burstable_score_falls_with_the_request() {
        let c = container(&[("memory", "512Mi")], &[]);
        assert_eq!(oom_score_adj(&pod(vec![c.clone()]), &c, 1 << 30), 500);
        assert_eq!(oom_score_adj(&pod(vec![Container::default()]), &Container::default(), 1 << 30), 1000);
    }
}
