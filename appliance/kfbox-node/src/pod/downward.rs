//! What a container may know of its own pod: field and resource references.
//! Upstream: <https://kubernetes.io/docs/concepts/workloads/pods/downward-api/>

use crate::{oci::resources, quantity};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use std::{collections::BTreeMap, net::IpAddr};

/// What the node knows of a pod and its status does not yet say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    pub node_name: String,
    /// Of each family, the first one's first.
    pub host_ips: Vec<IpAddr>,
    pub pod_ips: Vec<IpAddr>,
    /// Allocatable thousandths of a processor and bytes of memory: the answer where a container sets no limit.
    pub allocatable_cpu_milli: i64,
    pub allocatable_memory: i64,
    pub allocatable_storage: i64,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownwardError {
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    #[error("unsupported container resource: {0}")]
    Resource(String),
    #[error("container {0} not found")]
    Container(String),
}

/// The value at a field path; what is not set is empty.
pub fn field(pod: &Pod, around: &Surroundings, path: &str) -> Result<String, DownwardError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    let all = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let found = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(DownwardError::Field(path.into())),
        };
        return Ok(found.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => listed(meta.labels.as_ref()),
        "metadata.annotations" => listed(meta.annotations.as_ref()),
        "spec.nodeName" => around.node_name.clone(),
        "spec.serviceAccountName" => spec.map(|s| text(&s.service_account_name)).unwrap_or_default(),
        "status.hostIP" => first(&around.host_ips),
        "status.hostIPs" => all(&around.host_ips),
        "status.podIP" => first(&around.pod_ips),
        "status.podIPs" => all(&around.pod_ips),
        _ => return Err(DownwardError::Field(path.into())),
    })
}

/// One `key="value"` a line, the value quoted.
fn listed(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// A container's limit or request in units of the divisor, rounded up.
pub fn resource(
    pod: &Pod,
    own: Option<&Container>,
    around: &Surroundings,
    selector: &ResourceFieldSelector,
) -> Result<String, DownwardError> {
    let container = match &selector.container_name {
        Some(name) if !name.is_empty() => {
            let spec = pod.spec.as_ref();
            let mut all = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
            all.find(|c| c.name == *name).ok_or_else(|| DownwardError::Container(name.clone()))?
        }
        _ => own.ok_or_else(|| DownwardError::Container(String::new()))?,
    };
    let unsupported = || DownwardError::Resource(selector.resource.clone());
    let (kind, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let allocatable = match name {
        "cpu" => around.allocatable_cpu_milli,
        "memory" => around.allocatable_memory,
        "ephemeral-storage" => around.allocatable_storage,
        _ => 0,
    };
    let amount = match kind {
        "limits" => resources::limit(container, name).unwrap_or(allocatable),
        "requests" => resources::request(container, name).unwrap_or(0),
        _ => return Err(unsupported()),
    };
    // Processors are counted in thousandths here.
    let divisor = selector.divisor.as_ref().and_then(if name == "cpu" { quantity::milli } else { quantity::value });
    let divisor = divisor.filter(|d| *d > 0).unwrap_or(if name == "cpu" { 1000 } else { 1 });
    Ok((amount / divisor + i64::from(amount % divisor > 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::{
        api::core::v1::{PodSpec, ResourceRequirements},
        apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
    };

    fn pod() -> Pod {
        Pod {
            metadata: ObjectMeta {
                name: Some("p".into()),
                labels: Some(BTreeMap::from([("app".into(), "say \"hi\"".into()), ("b".into(), "2".into())])),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                containers: vec![Container {
                    name: "main".into(),
                    resources: Some(ResourceRequirements {
                        limits: Some(BTreeMap::from([("cpu".into(), Quantity("1500m".into()))])),
                        ..ResourceRequirements::default()
                    }),
                    ..Container::default()
                }],
                ..PodSpec::default()
            }),
            ..Pod::default()
        }
    }

    #[test]
    fn fields_are_found_by_path() {
        let pod_ips = vec![[10, 244, 0, 5].into(), "fd00::5".parse().unwrap()];
        let around = Surroundings { pod_ips, ..Surroundings::default() };
        let get = |path| field(&pod(), &around, path);
        assert_eq!(get("metadata.name").unwrap(), "p");
        assert_eq!(get("metadata.labels['b']").unwrap(), "2");
        assert_eq!(get("metadata.labels").unwrap(), "app=\"say \\\"hi\\\"\"\nb=\"2\"");
        assert_eq!(get("status.podIP").unwrap(), "10.244.0.5");
        assert_eq!(get("status.podIPs").unwrap(), "10.244.0.5,fd00::5");
        assert_eq!(get("status.hostIPs").unwrap(), "");
        assert_eq!(get("spec.containers"), Err(DownwardError::Field("spec.containers".into())));
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let around = Surroundings { allocatable_memory: 1000, ..Surroundings::default() };
        let get = |resource: &str, divisor: &str| {
            let selector = ResourceFieldSelector {
                container_name: Some("main".into()),
                resource: resource.into(),
                divisor: Some(Quantity(divisor.into())),
            };
            super::resource(&pod(), None, &around, &selector).unwrap()
        };
        assert_eq!(get("limits.cpu", "1"), "2");
        assert_eq!(get("limits.cpu", "1m"), "1500");
        assert_eq!(get("limits.memory", "1"), "1000");
        assert_eq!(get("requests.memory", "1"), "0");
    }
}
