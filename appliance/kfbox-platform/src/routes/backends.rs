//! Where a Service of a namespace answers: a ready pod of that very namespace, on the pods' own network.
//!
//! Guarantees: an ExternalName, an address that somebody wrote by hand, a pod of another namespace or on the host's network
//! is never an answer, so that a route leads neither to this machine nor to somebody else's pods.

use super::To;
use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, Client, api::ListParams};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// What was found is used again for this long: a page is a hundred requests.
const FRESH: Duration = Duration::from_millis(500);
/// Services remembered; bounds memory.
const REMEMBERED: usize = 1000;

/// A Service as a route sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub addresses: Vec<SocketAddr>,
    pub http2: bool,
    /// Of its pods, as far as the Service itself says.
    pub labels: BTreeMap<String, String>,
}

type Key = (String, String, Option<u16>);
/// When it was asked for, and what was said; what went wrong is remembered too.
type Known = Option<(Instant, Result<Arc<Found>, String>)>;

/// One asks, and those who come meanwhile wait for the answer: a page's requests come together.
#[derive(Default)]
struct Slot {
    known: Mutex<Known>,
    asking: tokio::sync::Mutex<()>,
}

impl Slot {
    fn since(&self, earliest: Option<Instant>) -> Option<Result<Arc<Found>, String>> {
        let known = self.known.lock();
        let (at, said) = known.as_ref()?;
        earliest.is_none_or(|earliest| *at >= earliest).then(|| said.clone())
    }
}

pub struct Backends {
    client: Client,
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
    turn: AtomicUsize,
}

impl Backends {
    pub fn new(client: Client) -> Self {
        Self { client, slots: Mutex::default(), turn: AtomicUsize::new(0) }
    }

    /// The pods take turns.
    pub fn next(&self, found: &Found) -> Option<SocketAddr> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        found.addresses.get(turn % found.addresses.len().max(1)).copied()
    }

    /// With `again`, what is remembered is not good enough. The error is for the person.
    pub async fn find(&self, to: To<'_>, again: bool) -> Result<Arc<Found>, String> {
        let To { namespace, service, port } = to;
        let key = (namespace.to_owned(), service.to_owned(), port);
        let slot = {
            let mut slots = self.slots.lock();
            if slots.len() >= REMEMBERED && !slots.contains_key(&key) {
                slots.clear();
            }
            slots.entry(key).or_default().clone()
        };
        let now = Instant::now();
        let earliest = if again { Some(now) } else { now.checked_sub(FRESH) };
        if let Some(said) = slot.since(earliest) {
            return said;
        }
        let _asking = slot.asking.lock().await;
        // Somebody may have asked since.
        if let Some(said) = slot.since(earliest) {
            return said;
        }
        let at = Instant::now();
        let said = self.ask(namespace, service, port).await.map(Arc::new);
        *slot.known.lock() = Some((at, said.clone()));
        said
    }

    async fn ask(&self, namespace: &str, name: &str, port: Option<u16>) -> Result<Found, String> {
        let failed = |error: kube::Error| {
            tracing::warn!(%error, namespace, service = name, "a Service cannot be looked at");
            "the cluster cannot say right now where the Service is: try again".to_owned()
        };
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        let service = services.get_opt(name).await.map_err(failed)?;
        let spec = service.and_then(|s| s.spec).ok_or_else(|| format!("there is no Service {name}"))?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return Err(format!("the Service {name} is an ExternalName: routes lead to pods only"));
        }
        let ports = spec.ports.unwrap_or_default();
        let chosen = match (port, ports.as_slice()) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(port), ports) => ports.iter().find(|p| p.port == i32::from(port)),
        };
        let chosen =
            chosen.ok_or_else(|| format!("the Service {name} has no such port, or the route must say which"))?;
        let port_name = chosen.name.clone().unwrap_or_default();
        let http2 = speaks_http2(&port_name, chosen.app_protocol.as_deref());
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), namespace);
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
        let slices = slices.list(&of_service).await.map_err(failed)?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let mut addresses = Vec::new();
        for slice in slices {
            let mut ports = slice.ports.iter().flatten();
            let found = ports.find(|p| p.name.as_deref().unwrap_or_default() == port_name).and_then(|p| p.port);
            let Some(port) = found.and_then(|p| u16::try_from(p).ok()) else { continue };
            for endpoint in slice.endpoints.iter().flatten() {
                let ready = endpoint.conditions.as_ref().and_then(|c| c.ready) != Some(false);
                let target = endpoint.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod"));
                let same = |n: &Option<String>| n.as_deref().is_none_or(|n| n == namespace);
                let Some(target) = target.filter(|t| ready && same(&t.namespace)) else { continue };
                let Some(pod) = pods.get_opt(target.name.as_deref().unwrap_or_default()).await.map_err(failed)? else {
                    continue;
                };
                let of_pod = |address: &&String| owns(&pod, address);
                addresses.extend(
                    endpoint
                        .addresses
                        .iter()
                        .filter(of_pod)
                        .filter_map(|a| a.parse::<IpAddr>().ok())
                        .map(|a| SocketAddr::from((a, port))),
                );
            }
        }
        if addresses.is_empty() {
            return Err(format!("no pod of the Service {name} is ready"));
        }
        Ok(Found { addresses, http2, labels: spec.selector.unwrap_or_default() })
    }
}

/// A pod that runs, on a network of its own, at this address.
fn owns(pod: &Pod, address: &str) -> bool {
    let host = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    let status = pod.status.as_ref();
    let ended = matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
    let mut all = status
        .into_iter()
        .flat_map(|s| s.pod_ip.as_deref().into_iter().chain(s.pod_ips.iter().flatten().map(|ip| ip.ip.as_str())));
    let own = all.any(|ip| ip == address);
    let plain = address.parse::<IpAddr>().is_ok_and(|ip| {
        let link_local = match ip {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4().is_some(),
        };
        !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
    });
    own && plain && !host && !ended
}

/// By `appProtocol`, or by the port's name as Istio reads it.
fn speaks_http2(name: &str, protocol: Option<&str>) -> bool {
    match protocol {
        Some(protocol) => matches!(protocol, "kubernetes.io/h2c" | "grpc" | "http2"),
        None => ["grpc", "http2"].iter().any(|p| name == *p || name.starts_with(&format!("{p}-"))),
    }
}
