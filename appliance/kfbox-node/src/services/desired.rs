//! What the packet filter should do, decided from Services and endpoints alone. Source: the Kubernetes "Virtual IPs and
//! Service Proxies" reference; which endpoints count is kube-proxy's rule.

use crate::network::{Family, conntrack::Flow};
use k8s_openapi::api::{
    core::v1::{Service, ServiceSpec},
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::ResourceExt;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn of(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

pub type Target = (IpAddr, u16);

/// One port of one service: where its connections go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    pub protocol: Protocol,
    /// At least one; sorted, so that equal sets are equal.
    pub targets: Vec<Target>,
    /// Seconds that a client stays with its endpoint (`sessionAffinity: ClientIP`).
    pub affinity: Option<u32>,
}

/// The whole of one family. Ports are keyed by a short name that is safe in rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    pub ports: BTreeMap<String, Port>,
    /// Addresses of services, by where they lead.
    pub addresses: BTreeMap<(IpAddr, Protocol, u16), String>,
    pub node_ports: BTreeMap<(Protocol, u16), String>,
    /// Endpoints, which may be their own clients.
    pub hairpins: BTreeSet<IpAddr>,
}

impl Rules {
    /// Whether the other state sends UDP elsewhere.
    pub fn changes_udp(&self, other: &Self) -> bool {
        let udp = |rules: &'_ Self| -> BTreeMap<String, Vec<Target>> {
            let of_udp = rules.ports.iter().filter(|(_, port)| port.protocol == Protocol::Udp);
            of_udp.map(|(id, port)| (id.clone(), port.targets.clone())).collect()
        };
        udp(self) != udp(other)
    }

    /// The port that a UDP flow was addressed to. One to a node port shows by having been sent elsewhere.
    fn of_flow(&self, flow: &Flow) -> Option<&Port> {
        let redirected = flow.answering != flow.destination;
        let id = self
            .addresses
            .get(&(flow.destination, Protocol::Udp, flow.port))
            .or_else(|| self.node_ports.get(&(Protocol::Udp, flow.port)).filter(|_| redirected))?;
        self.ports.get(id)
    }
}

/// Whether a flow goes to an endpoint that its service has no more.
pub fn is_stale(before: &Rules, after: &Rules, flow: &Flow) -> bool {
    match (after.of_flow(flow), before.of_flow(flow)) {
        (Some(port), _) => !port.targets.contains(&(flow.answering, flow.answering_port)),
        (None, gone) => gone.is_some(),
    }
}

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: i32 = 10_800;

pub fn rules(family: Family, services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> Rules {
    let mut by_service: HashMap<(String, &str), Vec<&EndpointSlice>> = HashMap::new();
    for slice in slices {
        if slice.address_type == family.name()
            && let Some(service) = slice.labels().get(SERVICE_NAME)
        {
            by_service.entry((slice.namespace().unwrap_or_default(), service)).or_default().push(slice);
        }
    }
    let mut rules = Rules::default();
    // In a fixed order, so that of two services which claim one address the same one always gets it.
    let mut services: Vec<&Arc<Service>> = services.iter().collect();
    services.sort_by_cached_key(|s| (s.creation_timestamp(), s.namespace(), s.name_any()));
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
        if spec.type_.as_deref() == Some("ExternalName") || !has_family(spec, family) {
            continue;
        }
        let addresses = addresses(family, service);
        let slices = by_service.get(&(namespace.clone(), name.as_str())).map(Vec::as_slice).unwrap_or_default();
        let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let configured = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
            // The range that the API allows.
            configured.unwrap_or(AFFINITY_SECONDS).clamp(1, 86_400).unsigned_abs()
        });
        for port in spec.ports.iter().flatten() {
            let Some(protocol) = Protocol::of(port.protocol.as_deref()) else { continue };
            let Ok(number) = u16::try_from(port.port) else { continue };
            let targets = targets(family, slices, port.name.as_deref().unwrap_or_default(), protocol);
            if targets.is_empty() {
                // No rule: what is addressed to it is refused by the network's base rules.
                continue;
            }
            let id = short(&format!("{namespace}/{name}/{protocol}/{number}"));
            let mut used = false;
            for address in &addresses {
                used |= insert_once(&mut rules.addresses, (*address, protocol, number), &id);
            }
            if let Some(node_port) = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0) {
                used |= insert_once(&mut rules.node_ports, (protocol, node_port), &id);
            }
            if used {
                rules.hairpins.extend(targets.iter().map(|(address, _)| *address));
                rules.ports.insert(id, Port { protocol, targets, affinity });
            }
        }
    }
    rules
}

/// Services are told their families when they are made; what was made before there were two is of IPv4.
fn has_family(spec: &ServiceSpec, family: Family) -> bool {
    match spec.ip_families.as_deref() {
        None | Some([]) => family == Family::V4,
        Some(families) => families.iter().any(|f| f == family.name()),
    }
}

fn insert_once<K: Ord>(map: &mut BTreeMap<K, String>, key: K, id: &str) -> bool {
    let mut inserted = false;
    map.entry(key).or_insert_with(|| {
        inserted = true;
        id.to_owned()
    });
    inserted
}

/// A name for rules: nft takes no `/`, and a service's own name may be long.
pub fn short(text: &str) -> String {
    let mut hash = hex::encode(Sha256::digest(text.as_bytes()));
    hash.truncate(16);
    hash
}

/// All addresses of a family at which a service answers.
fn addresses(family: Family, service: &Service) -> BTreeSet<IpAddr> {
    let Some(spec) = &service.spec else { return BTreeSet::new() };
    let cluster = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let external = spec.external_ips.iter().flatten();
    let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref()?.ingress.as_ref());
    let balancer = balancer.into_iter().flatten().filter_map(|ingress| ingress.ip.as_ref());
    cluster.chain(external).chain(balancer).filter_map(|text| target_address(family, text)).collect()
}

/// An address of the family that traffic may be sent to.
fn target_address(family: Family, text: &str) -> Option<IpAddr> {
    text.parse().ok().filter(|address| Family::of(address) == family && may_be_target(address))
}

/// Where clouds serve their machine's secrets by IPv6: Amazon's and Google's.
const METADATA: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Loopback, link-local (where clouds serve their machine's secrets) and multicast are nobody's endpoint.
fn may_be_target(address: &IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        // An IPv4 address in the clothes of IPv6, mapped or compatible, is none of IPv6.
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4().is_some() || METADATA.contains(v6),
    };
    !(special || address.is_loopback() || address.is_multicast() || address.is_unspecified())
}

/// The endpoints that take connections: the ready ones, or when none is, those that still serve while they end.
fn targets(family: Family, slices: &[&EndpointSlice], port_name: &str, protocol: Protocol) -> Vec<Target> {
    let (mut ready, mut ending) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices {
        for port in slice.ports.iter().flatten() {
            let same = port.name.as_deref().unwrap_or_default() == port_name
                && Protocol::of(port.protocol.as_deref()) == Some(protocol);
            let Some(number) = port.port.and_then(|p| u16::try_from(p).ok()).filter(|_| same) else { continue };
            for endpoint in slice.endpoints.iter().flatten() {
                let into = match state(endpoint) {
                    State::Ready => &mut ready,
                    State::Ending => &mut ending,
                    State::Down => continue,
                };
                // Only the first counts; more than one has never been given a meaning.
                let address = endpoint.addresses.first().and_then(|a| target_address(family, a));
                into.extend(address.map(|a| (a, number)));
            }
        }
    }
    if ready.is_empty() { ending } else { ready }.into_iter().collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Ready,
    Ending,
    Down,
}

pub fn state(endpoint: &Endpoint) -> State {
    let Some(conditions) = &endpoint.conditions else { return State::Ready };
    if conditions.ready.unwrap_or(true) {
        State::Ready
    } else if conditions.serving.unwrap_or(false) && conditions.terminating.unwrap_or(false) {
        State::Ending
    } else {
        State::Down
    }
}
