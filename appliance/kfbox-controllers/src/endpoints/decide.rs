//! A Service's slices from its pods. Pure.

use super::{ENDPOINTS_MANAGED_BY, MANAGED_BY, MANAGER, MIRROR, SERVICE_NAME};
use crate::{names, pods};
use k8s_openapi::{
    api::{
        core::v1::{
            EndpointAddress, EndpointPort as LegacyPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
            ServicePort,
        },
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// As upstream's limit for one slice; more than one machine's pods.
const IN_SLICE: usize = 1_000;

/// What of a pod its endpoints depend on.
pub fn facts(pod: &Pod) -> impl PartialEq + use<> {
    let ips: Vec<String> = addresses(pod).iter().map(ToString::to_string).collect();
    let spec = pod.spec.as_ref();
    (
        pod.metadata.labels.clone(),
        ips,
        pods::is_ready(pod),
        pods::is_deleting(pod),
        pods::is_finished(pod),
        pods::node(pod).map(str::to_owned),
        spec.and_then(|s| s.hostname.clone()),
    )
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let many = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut all: Vec<IpAddr> = many.chain(status.pod_ip.as_deref()).filter_map(|ip| ip.parse().ok()).collect();
    all.sort();
    all.dedup();
    all
}

fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let spec = pod.spec.as_ref()?;
            let sidecars =
                spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let mut ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
            ports
                .find(|p| {
                    p.name.as_deref() == Some(name.as_str()) && p.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|p| p.container_port)
        }
    }
}

/// The ports of a Service as one pod serves them, without those it does not have.
fn ports_of(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    ports
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(port, pod)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let given: Vec<&str> =
        spec.and_then(|s| s.ip_families.as_ref()).into_iter().flatten().map(String::as_str).collect();
    if given.contains(&"IPv6") {
        if given.contains(&"IPv4") { vec!["IPv4", "IPv6"] } else { vec!["IPv6"] }
    } else {
        vec!["IPv4"]
    }
}

fn labels(service: &Service, manager: &str) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), manager.into());
    if is_headless(service) {
        labels.insert("service.kubernetes.io/headless".into(), String::new());
    }
    labels
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

fn endpoint(service: &Service, pod: &Pod, address: IpAddr) -> Endpoint {
    let publish = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false);
    let (serving, terminating) = (pods::is_ready(pod), pods::is_deleting(pod));
    let spec = pod.spec.as_ref();
    let hostname = spec.and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty());
    let of_service = spec.and_then(|s| s.subdomain.as_deref()) == service.metadata.name.as_deref();
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname.filter(|_| of_service),
        node_name: pods::node(pod).map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

fn slice(
    service: &Service,
    manager: &str,
    family: &str,
    ports: &[EndpointPort],
    part: usize,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let uid = service.metadata.uid.as_deref().unwrap_or_default();
    let key = serde_json::to_string(ports).unwrap_or_default();
    let name = names::child(
        service.metadata.name.as_deref().unwrap_or_default(),
        &[manager, uid, family, &key, &part.to_string()],
    );
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service, manager)),
            owner_references: Some(vec![pods::owned_by(service)]),
            ..ObjectMeta::default()
        },
        address_type: family.into(),
        endpoints: Some(endpoints).filter(|e| !e.is_empty()),
        ports: Some(ports.to_vec()).filter(|p| !p.is_empty()),
    }
}

/// The slices of a Service with a selector; `selected` are the pods that it selects.
pub fn slices(service: &Service, selected: &[Arc<Pod>]) -> Vec<EndpointSlice> {
    let mut all = Vec::new();
    for family in families(service) {
        let mut groups: BTreeMap<String, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
        for pod in selected.iter().filter(|p| !pods::is_finished(p)) {
            let ports = ports_of(service, pod);
            let declared = service.spec.as_ref().and_then(|s| s.ports.as_ref()).is_some_and(|p| !p.is_empty());
            if ports.is_empty() && declared {
                continue;
            }
            for address in addresses(pod).into_iter().filter(|a| a.is_ipv4() == (family == "IPv4")) {
                let key = serde_json::to_string(&ports).unwrap_or_default();
                groups
                    .entry(key)
                    .or_insert_with(|| (ports.clone(), Vec::new()))
                    .1
                    .push(endpoint(service, pod, address));
            }
        }
        if groups.is_empty() {
            // An empty slice says that there is nobody, which is not the same as knowing nothing.
            all.push(slice(service, MANAGER, family, &[], 0, Vec::new()));
        }
        for (ports, endpoints) in groups.into_values() {
            for (part, chunk) in endpoints.chunks(IN_SLICE).enumerate() {
                all.push(slice(service, MANAGER, family, &ports, part, chunk.to_vec()));
            }
        }
    }
    all
}

fn legacy_ports(ports: Option<&Vec<EndpointPort>>) -> Option<Vec<LegacyPort>> {
    let ports: Vec<LegacyPort> = ports
        .into_iter()
        .flatten()
        .filter_map(|p| {
            Some(LegacyPort {
                name: p.name.clone().filter(|n| !n.is_empty()),
                port: p.port?,
                protocol: p.protocol.clone(),
                app_protocol: p.app_protocol.clone(),
            })
        })
        .collect();
    Some(ports).filter(|p| !p.is_empty())
}

/// The legacy object that says the same.
pub fn endpoints(service: &Service, slices: &[EndpointSlice]) -> Endpoints {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(ENDPOINTS_MANAGED_BY.into(), "endpoint-controller".into());
    if is_headless(service) {
        labels.insert("service.kubernetes.io/headless".into(), String::new());
    }
    let mut subsets = Vec::new();
    // The legacy object has one family, the Service's first.
    let family = families(service)[0];
    for slice in slices.iter().filter(|s| s.address_type == family) {
        let address = |endpoint: &Endpoint| EndpointAddress {
            ip: endpoint.addresses.first().cloned().unwrap_or_default(),
            hostname: endpoint.hostname.clone(),
            node_name: endpoint.node_name.clone(),
            target_ref: endpoint.target_ref.clone(),
        };
        let (mut ready, mut not_ready) = (Vec::new(), Vec::new());
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            if conditions.ready == Some(true) {
                ready.push(address(endpoint));
            } else if conditions.terminating != Some(true) {
                not_ready.push(address(endpoint));
            }
        }
        if !ready.is_empty() || !not_ready.is_empty() {
            subsets.push(EndpointSubset {
                addresses: Some(ready).filter(|a| !a.is_empty()),
                not_ready_addresses: Some(not_ready).filter(|a| !a.is_empty()),
                ports: legacy_ports(slice.ports.as_ref()),
            });
        }
    }
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        subsets: Some(subsets).filter(|s| !s.is_empty()),
    }
}

/// The slices that say what Endpoints written by people say.
pub fn mirror(service: &Service, endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut all = Vec::new();
    for (part, subset) in endpoints.subsets.iter().flatten().enumerate() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|p| EndpointPort {
                name: Some(p.name.clone().unwrap_or_default()),
                port: Some(p.port),
                protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: p.app_protocol.clone(),
            })
            .collect();
        for family in ["IPv4", "IPv6"] {
            let ready = subset.addresses.iter().flatten().map(|a| (a, true));
            let not_ready = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
            let endpoints: Vec<Endpoint> = ready
                .chain(not_ready)
                .filter(|(a, _)| a.ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4() == (family == "IPv4")))
                .take(IN_SLICE)
                .map(|(address, ready)| Endpoint {
                    addresses: vec![address.ip.clone()],
                    conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
                    hostname: address.hostname.clone(),
                    node_name: address.node_name.clone(),
                    target_ref: address.target_ref.clone(),
                    ..Endpoint::default()
                })
                .collect();
            if !endpoints.is_empty() {
                all.push(slice(service, MIRROR, family, &ports, part, endpoints));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{at, object, pod};
    use serde_json::{Value, json};

    fn service(spec: Value) -> Service {
        object(
            json!({ "metadata": { "name": "web", "namespace": "n", "uid": "svc", "labels": { "team": "a" } }, "spec": spec }),
        )
    }

    fn with_ip(name: &str, ip: &str, ready: bool) -> Pod {
        let mut pod = pod(name, "rs", json!({ "app": "web" }), "Running", ready);
        pod.status.as_mut().unwrap().pod_ip = Some(ip.into());
        let port = json!({ "name": "http", "containerPort": 8000 });
        pod.spec.as_mut().unwrap().containers[0].ports = Some(vec![object(port)]);
        pod
    }

    #[test]
    fn pods_with_an_address_are_endpoints_in_the_state_they_are_in() {
        let service = service(
            json!({ "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] }),
        );
        let mut leaving = with_ip("c", "10.0.0.3", true);
        leaving.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
        let mut done = with_ip("d", "10.0.0.4", false);
        done.status.as_mut().unwrap().phase = Some("Succeeded".into());
        let mut no_ip = with_ip("e", "", false);
        no_ip.status.as_mut().unwrap().pod_ip = None;
        let pods: Vec<Arc<Pod>> =
            [with_ip("a", "10.0.0.1", true), with_ip("b", "10.0.0.2", false), leaving, done, no_ip]
                .into_iter()
                .map(Arc::new)
                .collect();
        let slices = slices(&service, &pods);
        assert_eq!(slices.len(), 1);
        let slice = &slices[0];
        assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8000));
        let states: Vec<_> = slice
            .endpoints
            .as_ref()
            .unwrap()
            .iter()
            .map(|e| {
                let c = e.conditions.clone().unwrap();
                (e.addresses[0].as_str(), c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
            })
            .collect();
        assert_eq!(
            states,
            [("10.0.0.1", true, true, false), ("10.0.0.2", false, false, false), ("10.0.0.3", false, true, true)]
        );
        let labels = slice.metadata.labels.as_ref().unwrap();
        assert_eq!((labels[SERVICE_NAME].as_str(), labels["team"].as_str()), ("web", "a"));
        let legacy = endpoints(&service, &slices);
        let subset = &legacy.subsets.as_ref().unwrap()[0];
        assert_eq!(subset.addresses.as_ref().unwrap().len(), 1);
        assert_eq!(subset.not_ready_addresses.as_ref().unwrap().len(), 1);
        assert_eq!(super::slices(&service, &pods), slices, "names are stable");
    }

    #[test]
    fn a_named_port_that_differs_makes_two_slices_and_one_that_is_missing_none() {
        let service = service(json!({ "selector": {}, "ports": [{ "port": 80, "targetPort": "http" }] }));
        let mut other = with_ip("b", "10.0.0.2", true);
        other.spec.as_mut().unwrap().containers[0].ports.as_mut().unwrap()[0].container_port = 9000;
        let mut without = with_ip("c", "10.0.0.3", true);
        without.spec.as_mut().unwrap().containers[0].ports = None;
        let slices = slices(&service, &[Arc::new(with_ip("a", "10.0.0.1", true)), Arc::new(other), Arc::new(without)]);
        assert_eq!(slices.len(), 2);
        assert_ne!(slices[0].metadata.name, slices[1].metadata.name);
        assert!(slices.iter().all(|s| s.endpoints.as_ref().unwrap().len() == 1));
    }

    #[test]
    fn nobody_is_an_empty_slice_and_headless_needs_no_ports() {
        let headless = service(json!({ "selector": { "app": "web" }, "clusterIP": "None" }));
        let none = slices(&headless, &[]);
        assert_eq!((none.len(), none[0].endpoints.is_none()), (1, true));
        let mut named = with_ip("a", "10.0.0.1", false);
        let spec = named.spec.as_mut().unwrap();
        spec.hostname = Some("a".into());
        spec.subdomain = Some("web".into());
        let slices = slices(&headless, &[Arc::new(named)]);
        assert_eq!(slices[0].endpoints.as_ref().unwrap()[0].hostname.as_deref(), Some("a"));
        assert!(slices[0].metadata.labels.as_ref().unwrap().contains_key("service.kubernetes.io/headless"));
        assert!(endpoints(&headless, &slices).subsets.unwrap()[0].ports.is_none());
    }

    #[test]
    fn endpoints_written_by_hand_are_mirrored() {
        let service = service(json!({ "ports": [{ "port": 8888 }] }));
        let by_hand: Endpoints = object(
            json!({ "metadata": { "name": "web" }, "subsets": [{ "addresses": [{ "ip": "10.244.0.1" }, { "ip": "fd00::1" }], "ports": [{ "port": 8888 }] }] }),
        );
        let slices = mirror(&service, &by_hand);
        assert_eq!(slices.iter().map(|s| s.address_type.as_str()).collect::<Vec<_>>(), ["IPv4", "IPv6"]);
        assert_eq!(slices[0].metadata.labels.as_ref().unwrap()[MANAGED_BY], MIRROR);
    }
}
