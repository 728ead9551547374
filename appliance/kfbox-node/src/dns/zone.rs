//! The cluster's names, decided from Services and endpoints alone. Source: the Kubernetes "DNS-Based Service Discovery"
//! specification 1.1.0; where it leaves a choice, CoreDNS' `kubernetes` plugin.
//!
//! A name that exists with no record of the wanted type is answered by no records, any other name of the zone by NXDOMAIN:
//! resolvers try their next search domain only after the latter.

use crate::services::desired::{State, state};
use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT},
};
use ipnet::IpNet;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::ResourceExt;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

/// How long others may remember an answer, in seconds: services move.
const TTL: u32 = 5;
/// The version that the specification asks to be published.
const SCHEMA: &str = "1.1.0";

#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Records(Vec<Record>),
    /// The name is an alias; its target may be outside.
    Alias(Name),
    NoData,
    NoName,
    /// Not the cluster's to answer.
    Elsewhere,
}

#[derive(Debug, Default)]
struct Entry {
    kind: Kind,
    ports: Vec<NamedPort>,
    /// Of a headless service: by host name, the addresses and the ports open there.
    hosts: BTreeMap<String, Host>,
}

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Headless,
    Addresses(Vec<IpAddr>),
    External(Name),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct NamedPort {
    name: String,
    protocol: &'static str,
    number: u16,
}

#[derive(Debug, Default)]
struct Host {
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<NamedPort>,
}

/// All names at one moment.
#[derive(Debug)]
pub struct Zone {
    domain: Name,
    /// The domain's labels, lower case.
    suffix: Vec<String>,
    ranges: Ranges,
    services: HashMap<(String, String), Entry>,
    namespaces: HashSet<String>,
    pointers: HashMap<IpAddr, Vec<Name>>,
}

/// The cluster's addresses, of one family or both.
#[derive(Debug, Clone)]
pub struct Ranges {
    pub pods: Vec<IpNet>,
    pub services: Vec<IpNet>,
}

impl Zone {
    pub fn new(domain: &Name, ranges: &Ranges, services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> Self {
        let mut zone = Self {
            domain: domain.clone(),
            suffix: labels(domain),
            ranges: ranges.clone(),
            services: HashMap::new(),
            namespaces: HashSet::new(),
            pointers: HashMap::new(),
        };
        let mut by_service: HashMap<(String, String), Vec<&EndpointSlice>> = HashMap::new();
        for slice in slices {
            if let Some(service) = slice.labels().get("kubernetes.io/service-name") {
                by_service.entry((slice.namespace().unwrap_or_default(), service.clone())).or_default().push(slice);
            }
        }
        for service in services {
            let key = (service.namespace().unwrap_or_default(), service.name_any());
            zone.namespaces.insert(key.0.clone());
            let slices = by_service.get(&key).map(Vec::as_slice).unwrap_or_default();
            if let Some(entry) = zone.entry(service, slices, &key) {
                zone.services.insert(key, entry);
            }
        }
        zone
    }

    fn entry(&mut self, service: &Service, slices: &[&EndpointSlice], key: &(String, String)) -> Option<Entry> {
        let spec = service.spec.as_ref()?;
        let mut entry = Entry::default();
        if spec.type_.as_deref() == Some("ExternalName") {
            let mut target = Name::from_ascii(spec.external_name.as_deref()?).ok()?;
            target.set_fqdn(true);
            entry.kind = Kind::External(target);
            return Some(entry);
        }
        for port in spec.ports.iter().flatten() {
            entry.ports.extend(named_port(port.name.as_deref(), port.protocol.as_deref(), Some(port.port)));
        }
        let own_name = self.name(&[&key.1, &key.0, "svc"]);
        if spec.cluster_ip.as_deref() != Some("None") {
            let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
            let ips: BTreeSet<IpAddr> = ips.filter_map(|ip| ip.parse().ok()).collect();
            for ip in &ips {
                self.pointers.entry(*ip).or_default().extend(own_name.clone());
            }
            entry.kind = Kind::Addresses(ips.into_iter().collect());
            return Some(entry);
        }
        for slice in slices.iter().filter(|slice| matches!(slice.address_type.as_str(), "IPv4" | "IPv6")) {
            let ports: Vec<NamedPort> = slice
                .ports
                .iter()
                .flatten()
                .filter_map(|p| named_port(p.name.as_deref(), p.protocol.as_deref(), p.port))
                .collect();
            for endpoint in slice.endpoints.iter().flatten() {
                let ready = state(endpoint) == State::Ready || spec.publish_not_ready_addresses == Some(true);
                let Some(address) = endpoint.addresses.first().and_then(|a| a.parse::<IpAddr>().ok()) else {
                    continue;
                };
                if !ready {
                    continue;
                }
                let host_name = endpoint.hostname.clone().filter(|name| !name.is_empty());
                if let Some(host_name) = &host_name {
                    let name = self.name(&[host_name, &key.1, &key.0, "svc"]);
                    self.pointers.entry(address).or_default().extend(name);
                }
                let host = entry.hosts.entry(host_name.unwrap_or_else(|| dashed(address))).or_default();
                host.addresses.insert(address);
                host.ports.extend(ports.iter().cloned());
            }
        }
        Some(entry)
    }

    /// A name in the zone; `None` when a label is none.
    fn name(&self, labels: &[&str]) -> Option<Name> {
        let labels = labels.iter().map(|label| label.to_ascii_lowercase().into_bytes());
        Name::from_labels(labels.collect::<Vec<_>>()).ok()?.append_domain(&self.domain).ok()
    }

    /// What the cluster says about a name.
    pub fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let all = labels(name);
        if let Some(rest) = all.strip_suffix(self.suffix.as_slice()) {
            let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
            return self.inside(name, &rest, kind);
        }
        match name.parse_arpa_name() {
            Ok(net) if self.ranges.pods.iter().chain(&self.ranges.services).any(|range| range.contains(&net)) => {
                let pointers = self.pointers.get(&net.addr()).filter(|_| net.prefix_len() == net.max_prefix_len());
                match pointers {
                    None => Answer::NoName,
                    Some(_) if kind != RecordType::PTR => Answer::NoData,
                    Some(names) => {
                        let record =
                            |target: &Name| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target.clone())));
                        Answer::Records(names.iter().map(record).collect())
                    }
                }
            }
            _ => Answer::Elsewhere,
        }
    }

    /// What makes `name` an alias of `target`.
    pub fn alias(&self, name: &Name, target: &Name) -> Record {
        Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target.clone())))
    }

    /// For answers that something is not there: who says so, and for how long.
    pub fn authority(&self) -> Record {
        let label = |label: &str| self.name(&[label]).unwrap_or_else(|| self.domain.clone());
        let host = self.name(&["ns", "dns"]).unwrap_or_else(|| self.domain.clone());
        // Names are never transferred, so the serial means nothing.
        let soa = SOA::new(host, label("hostmaster"), 1, 7200, 1800, 86_400, TTL);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa))
    }

    fn inside(&self, name: &Name, labels: &[&str], kind: RecordType) -> Answer {
        match labels {
            [] => match kind {
                RecordType::SOA => Answer::Records(vec![self.authority()]),
                _ => Answer::NoData,
            },
            ["dns-version"] => match kind {
                RecordType::TXT => {
                    let text = RData::TXT(TXT::new(vec![SCHEMA.to_owned()]));
                    Answer::Records(vec![Record::from_rdata(name.clone(), TTL, text)])
                }
                _ => Answer::NoData,
            },
            ["svc" | "pod"] => Answer::NoData,
            [namespace, "svc" | "pod"] => {
                if self.namespaces.contains(*namespace) {
                    Answer::NoData
                } else {
                    Answer::NoName
                }
            }
            [address, _, "pod"] => {
                match undashed(address).filter(|a| self.ranges.pods.iter().any(|range| range.contains(a))) {
                    Some(address) => self.addresses(name, [address], kind),
                    None => Answer::NoName,
                }
            }
            [service, namespace, "svc"] => self.service(name, service, namespace, kind),
            [host, service, namespace, "svc"] if !host.starts_with('_') => {
                let Some(entry) = self.find(service, namespace) else { return Answer::NoName };
                match entry.hosts.get(*host) {
                    Some(host) => self.addresses(name, host.addresses.iter().copied(), kind),
                    None => Answer::NoName,
                }
            }
            [protocol, service, namespace, "svc"] if self.find(service, namespace).is_some() => {
                let known = self
                    .find(service, namespace)
                    .is_some_and(|e| e.any_port(|p| protocol.strip_prefix('_') == Some(p.protocol)));
                if known { Answer::NoData } else { Answer::NoName }
            }
            [port, protocol, service, namespace, "svc"] => {
                let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
                    return Answer::NoName;
                };
                let Some(entry) = self.find(service, namespace) else { return Answer::NoName };
                let wanted = |p: &NamedPort| p.name == port && p.protocol == protocol;
                if !entry.any_port(wanted) {
                    return Answer::NoName;
                }
                if kind != RecordType::SRV {
                    return Answer::NoData;
                }
                self.locations(name, entry, service, namespace, wanted)
            }
            _ => Answer::NoName,
        }
    }

    fn find(&self, service: &str, namespace: &str) -> Option<&Entry> {
        self.services.get(&(namespace.to_owned(), service.to_owned()))
    }

    fn service(&self, name: &Name, service: &str, namespace: &str, kind: RecordType) -> Answer {
        let Some(entry) = self.find(service, namespace) else { return Answer::NoName };
        match &entry.kind {
            Kind::External(target) => Answer::Alias(target.clone()),
            _ if kind == RecordType::SRV => self.locations(name, entry, service, namespace, |_| true),
            Kind::Addresses(addresses) => self.addresses(name, addresses.iter().copied(), kind),
            Kind::Headless => {
                let all: BTreeSet<IpAddr> = entry.hosts.values().flat_map(|h| h.addresses.iter().copied()).collect();
                self.addresses(name, all, kind)
            }
        }
    }

    fn addresses(&self, name: &Name, addresses: impl IntoIterator<Item = IpAddr>, kind: RecordType) -> Answer {
        let data = |address| match (address, kind) {
            (IpAddr::V4(v4), RecordType::A) => Some(RData::A(A(v4))),
            (IpAddr::V6(v6), RecordType::AAAA) => Some(RData::AAAA(AAAA(v6))),
            _ => None,
        };
        records(
            addresses.into_iter().filter_map(data).map(|data| Record::from_rdata(name.clone(), TTL, data)).collect(),
        )
    }

    fn locations(
        &self,
        name: &Name,
        entry: &Entry,
        service: &str,
        namespace: &str,
        wanted: impl Fn(&NamedPort) -> bool,
    ) -> Answer {
        let mut found: Vec<(u16, Name)> = Vec::new();
        match &entry.kind {
            Kind::Addresses(_) => {
                let target = self.name(&[service, namespace, "svc"]);
                found
                    .extend(entry.ports.iter().filter(|p| wanted(p)).filter_map(|p| Some((p.number, target.clone()?))));
            }
            Kind::Headless => {
                for (host, at) in &entry.hosts {
                    let target = self.name(&[host, service, namespace, "svc"]);
                    found.extend(
                        at.ports.iter().filter(|p| wanted(p)).filter_map(|p| Some((p.number, target.clone()?))),
                    );
                }
            }
            Kind::External(_) => {}
        }
        let weight = u16::try_from(100 / found.len().max(1)).unwrap_or(1).max(1);
        let record =
            |(port, target)| Record::from_rdata(name.clone(), TTL, RData::SRV(SRV::new(0, weight, port, target)));
        records(found.into_iter().map(record).collect())
    }
}

impl Entry {
    fn any_port(&self, wanted: impl Fn(&NamedPort) -> bool) -> bool {
        self.ports.iter().chain(self.hosts.values().flat_map(|h| &h.ports)).any(wanted)
    }
}

fn records(records: Vec<Record>) -> Answer {
    if records.is_empty() { Answer::NoData } else { Answer::Records(records) }
}

fn labels(name: &Name) -> Vec<String> {
    name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect()
}

fn named_port(name: Option<&str>, protocol: Option<&str>, number: Option<i32>) -> Option<NamedPort> {
    let protocol = match protocol {
        None | Some("TCP") => "tcp",
        Some("UDP") => "udp",
        Some("SCTP") => "sctp",
        Some(_) => return None,
    };
    Some(NamedPort { name: name.unwrap_or_default().to_owned(), protocol, number: u16::try_from(number?).ok()? })
}

/// An address as a label: its dots or colons become dashes, as upstream writes it.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    v4.filter(|address| dashed(*address) == label)
        .or_else(|| label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6))
}
