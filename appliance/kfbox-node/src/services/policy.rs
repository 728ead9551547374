//! NetworkPolicies. Source: the Kubernetes "Network Policies" page and the networking.k8s.io/v1 reference.
//!
//! Every packet between pods passes the host's forward hook, addressed to the pod itself even when it was sent to a service,
//! so one table there (one of each family) sees all. What the host sends (probes, the gateway's proxied requests, logs) is not
//! filtered, nor what pods send to the host's own address, where the daemon asks who they are. Replies pass by connection
//! tracking.
//!
//! Guarantee: what holds for a pod's IPv4 address holds for its IPv6 address, which follows from the former and is not taken
//! from what somebody writes into a status.
//!
//! Guarantee: a pod's first container starts when what its namespace's policies say of it is in the kernel. The node tells
//! the address itself ([`Policies::admit`]), since by the time it is in the pod's status the pod runs, and whoever was to be
//! kept from its neighbours has had a moment with them.

use super::{
    RETRY,
    desired::{Protocol, short},
    directory::follow,
    settled,
};
use crate::network::{Family, Network, Pairing, PodNetwork, nft};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::{
    api::{
        core::v1::{Container, Namespace, Pod, PodIP, PodSpec, PodStatus},
        networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kfbox_base::Tasks;
use kube::{
    Api, Client, ResourceExt,
    core::{Selector, SelectorExt},
    runtime::reflector::Store,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Write as _,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// Until a new pod's rules are in the kernel; then its start fails and is tried again.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
#[error("the network policies of namespace {namespace} cannot be programmed; the daemon's log says why")]
pub struct NotProgrammed {
    namespace: String,
}

/// Pods that the node starts, by uid, with the address that their status does not tell yet.
type Starting = Arc<Mutex<HashMap<String, (u64, Arc<Pod>)>>>;

/// Where a pod is announced before it runs. Cloning is cheap.
#[derive(Clone)]
pub struct Policies {
    policies: Store<NetworkPolicy>,
    starting: Starting,
    /// Counts announcements; `done` is the last one that the kernel's rules take account of.
    asked: Arc<watch::Sender<u64>>,
    done: watch::Receiver<u64>,
}

/// A pod stays announced while this lives.
#[derive(Debug)]
pub struct Admission {
    starting: Starting,
    uid: String,
    number: u64,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut starting = self.starting.lock();
        // It may have been announced anew.
        if starting.get(&self.uid).is_some_and(|(number, _)| *number == self.number) {
            starting.remove(&self.uid);
        }
    }
}

impl Policies {
    /// Returns when the pod's address is filtered as its namespace's policies say.
    pub async fn admit(&self, pod: &Pod, network: &PodNetwork) -> Result<Admission, NotProgrammed> {
        let mut known = pod.clone();
        let status = known.status.get_or_insert_default();
        status.pod_ip = Some(network.ip.to_string());
        status.pod_ips = network.second.map(|second| vec![PodIP { ip: second.to_string() }]);
        let (uid, namespace) = (pod.uid().unwrap_or_default(), pod.namespace().unwrap_or_default());
        let mut number = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
            self.starting.lock().insert(uid.clone(), (number, Arc::new(known)));
        });
        let admission = Admission { starting: self.starting.clone(), uid, number };
        let mut done = self.done.clone();
        // Not before the policies are known at all, and then only if there are some for this pod.
        let concerned = async {
            drop(done.wait_for(|done| *done > 0).await);
            if self.policies.state().iter().any(|policy| policy.namespace().as_deref() == Some(&namespace)) {
                drop(done.wait_for(|done| *done >= number).await);
            }
        };
        match tokio::time::timeout(PATIENCE, concerned).await {
            Ok(()) => Ok(admission),
            Err(_) => Err(NotProgrammed { namespace }),
        }
    }
}

/// What the rules are made of.
pub(super) struct Sources {
    pub policies: Store<NetworkPolicy>,
    pub pods: Store<Pod>,
    pub namespaces: Store<Namespace>,
    pub changes: watch::Receiver<u64>,
}

/// Starts the watches and keeps the table.
pub fn run(client: &Client, network: &Network, tasks: &Tasks) -> Policies {
    let (bump, changes) = watch::channel(0);
    let sources = Sources {
        policies: follow(Api::all(client.clone()), tasks, bump.clone(), |_| {}),
        pods: follow(Api::all(client.clone()), tasks, bump.clone(), lean),
        namespaces: follow(Api::all(client.clone()), tasks, bump, |_| {}),
        changes,
    };
    keep(sources, format!("{}_policy", network.config().table()), network.config().pairing(), tasks)
}

/// Where a pod is, what it is called and which ports it names: thousands are kept after they ended.
fn lean(pod: &mut Pod) {
    let ports = |containers: Vec<Container>| {
        containers.into_iter().map(|c| Container { name: c.name, ports: c.ports, ..Container::default() }).collect()
    };
    pod.spec = pod.spec.take().map(|spec| PodSpec {
        host_network: spec.host_network,
        containers: ports(spec.containers),
        init_containers: spec.init_containers.map(ports),
        ..PodSpec::default()
    });
    pod.status = pod.status.take().map(|status| PodStatus {
        phase: status.phase,
        pod_ip: status.pod_ip,
        pod_ips: status.pod_ips,
        ..PodStatus::default()
    });
}

pub(super) fn keep(mut sources: Sources, table: String, pairing: Option<Pairing>, tasks: &Tasks) -> Policies {
    let (asked, mut requests) = watch::channel(1);
    let (finish, done) = watch::channel(0);
    let starting = Starting::default();
    let policies =
        Policies { policies: sources.policies.clone(), starting: starting.clone(), asked: Arc::new(asked), done };
    let shutdown = tasks.shutdown();
    tasks.essential("network policies", async move {
        let ready = async {
            sources.policies.wait_until_ready().await.is_ok()
                && sources.pods.wait_until_ready().await.is_ok()
                && sources.namespaces.wait_until_ready().await.is_ok()
        };
        tokio::select! {
            ready = ready => if !ready { return Err(super::WatchEnded) },
            () = shutdown.cancelled() => return Ok(()),
        }
        let mut applied = None;
        loop {
            let asked = *requests.borrow_and_update();
            let pods = with_starting(sources.pods.state(), &starting);
            let rules = decide(&sources.policies.state(), &pods, &sources.namespaces.state(), pairing);
            if applied.as_ref() != Some(&rules) {
                match nft::apply(&scripts(&table, &rules, pairing.is_some())).await {
                    Ok(()) => applied = Some(rules),
                    // The former table stays whole, so what was denied is still denied.
                    Err(error) => {
                        tracing::error!(%error, "network policies cannot be programmed");
                        applied = None;
                    }
                }
            }
            if applied.is_some() {
                finish.send_replace(asked);
            }
            tokio::select! {
                more = settled(&mut sources.changes, &shutdown) => if !more { return Ok(()) },
                // A pod waits: no time to let things settle. Those that come meanwhile share the next round.
                Ok(()) = requests.changed() => {}
                () = tokio::time::sleep(RETRY), if applied.is_none() => {}
            }
        }
    });
    policies
}

/// The pods, with those that run before their status says where.
fn with_starting(mut pods: Vec<Arc<Pod>>, starting: &Starting) -> Vec<Arc<Pod>> {
    let starting = starting.lock();
    if starting.is_empty() {
        return pods;
    }
    let told: HashSet<String> = pods
        .iter()
        .filter(|pod| pod.status.as_ref().is_some_and(|s| s.pod_ip.is_some() || ended(s)))
        .filter_map(|pod| pod.uid())
        .collect();
    pods.extend(starting.iter().filter(|(uid, _)| !told.contains(*uid)).map(|(_, (_, pod))| pod.clone()));
    pods
}

fn ended(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// What may pass, for the pods that some policy selects. Everything about other pods passes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Isolation {
    /// By pod address, the allowances for what it receives; none means nothing may come.
    pub ingress: BTreeMap<IpAddr, BTreeSet<Allowance>>,
    pub egress: BTreeMap<IpAddr, BTreeSet<Allowance>>,
}

/// Peers and ports, both of which must match. `None` is any.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allowance {
    pub peers: Option<BTreeSet<Peer>>,
    pub ports: Option<BTreeSet<(Protocol, u16, u16)>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Pod(IpAddr),
    Block { cidr: IpNet, except: Vec<IpNet> },
}

struct PodFacts<'a> {
    namespace: String,
    labels: &'a BTreeMap<String, String>,
    ips: BTreeSet<IpAddr>,
    pod: &'a Pod,
}

pub fn decide(
    policies: &[Arc<NetworkPolicy>],
    pods: &[Arc<Pod>],
    namespaces: &[Arc<Namespace>],
    pairing: Option<Pairing>,
) -> Isolation {
    let mut isolation = Isolation::default();
    if policies.is_empty() {
        return isolation;
    }
    let pods: Vec<PodFacts<'_>> = pods.iter().filter_map(|pod| facts(pod, pairing)).collect();
    let namespaces: BTreeMap<String, &BTreeMap<String, String>> =
        namespaces.iter().map(|namespace| (namespace.name_any(), namespace.labels())).collect();
    for policy in policies {
        let Some(spec) = &policy.spec else { continue };
        let Some(namespace) = policy.namespace() else { continue };
        let subject = selector(spec.pod_selector.as_ref());
        let has = |kind: &str| spec.policy_types.as_ref().is_some_and(|types| types.iter().any(|t| t == kind));
        let unset = spec.policy_types.as_ref().is_none_or(Vec::is_empty);
        let (ingress, egress) = (has("Ingress") || unset, has("Egress") || (unset && spec.egress.is_some()));
        for pod in pods.iter().filter(|pod| pod.namespace == namespace && matches(&subject, pod.labels)) {
            if ingress {
                let allowed = spec.ingress.iter().flatten().map(|rule| Allowance {
                    peers: peers(rule.from.as_deref(), &namespace, &pods, &namespaces),
                    // A named port is the receiving pod's own.
                    ports: ports(rule.ports.as_deref(), &[pod]),
                });
                add(&mut isolation.ingress, pod, allowed.collect());
            }
            if egress {
                let allowed = spec.egress.iter().flatten().map(|rule| {
                    let peers = peers(rule.to.as_deref(), &namespace, &pods, &namespaces);
                    let receiving: Vec<&PodFacts<'_>> = match &peers {
                        Some(peers) => {
                            let among = |pod: &&PodFacts<'_>| pod.ips.iter().any(|ip| peers.contains(&Peer::Pod(*ip)));
                            pods.iter().filter(among).collect()
                        }
                        None => pods.iter().collect(),
                    };
                    Allowance { ports: ports(rule.ports.as_deref(), &receiving), peers }
                });
                add(&mut isolation.egress, pod, allowed.collect());
            }
        }
    }
    isolation
}

/// Isolates all addresses of a pod, but for what is allowed.
fn add(of: &mut BTreeMap<IpAddr, BTreeSet<Allowance>>, pod: &PodFacts<'_>, allowed: Vec<Allowance>) {
    for ip in &pod.ips {
        of.entry(*ip).or_default().extend(allowed.iter().cloned());
    }
}

fn facts(pod: &Pod, pairing: Option<Pairing>) -> Option<PodFacts<'_>> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    if spec.host_network == Some(true) || ended(status) {
        return None;
    }
    let told = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref());
    let mut ips: BTreeSet<IpAddr> = told.filter_map(|ip| ip.parse().ok()).collect();
    let partners: Vec<IpAddr> = ips
        .iter()
        .filter_map(|ip| if let IpAddr::V4(v4) = ip { pairing?.partner(*v4).map(IpAddr::V6) } else { None })
        .collect();
    ips.extend(partners);
    (!ips.is_empty()).then_some(())?;
    Some(PodFacts { namespace: pod.namespace()?, labels: pod.labels(), ips, pod })
}

/// `None` is a selector that cannot be read: it selects nothing, so that a mistake never opens anything.
fn selector(selector: Option<&LabelSelector>) -> Option<Selector> {
    Selector::try_from(selector.cloned().unwrap_or_default()).ok()
}

fn matches(selector: &Option<Selector>, labels: &BTreeMap<String, String>) -> bool {
    selector.as_ref().is_some_and(|selector| selector.matches(labels))
}

fn peers(
    given: Option<&[NetworkPolicyPeer]>,
    own_namespace: &str,
    pods: &[PodFacts<'_>],
    namespaces: &BTreeMap<String, &BTreeMap<String, String>>,
) -> Option<BTreeSet<Peer>> {
    // No list and an empty list both mean everybody.
    let given = given.filter(|given| !given.is_empty())?;
    let none = BTreeMap::new();
    let mut all = BTreeSet::new();
    for peer in given {
        if let Some(block) = &peer.ip_block {
            let valid = |text: &String| text.parse::<IpNet>().ok().map(|net| net.trunc());
            if let Some(cidr) = valid(&block.cidr) {
                all.insert(Peer::Block { cidr, except: block.except.iter().flatten().filter_map(valid).collect() });
            }
            continue;
        }
        let of_pod = selector(peer.pod_selector.as_ref());
        let of_namespace = peer.namespace_selector.as_ref().map(|s| selector(Some(s)));
        for pod in pods {
            let here = match &of_namespace {
                Some(selector) => matches(selector, namespaces.get(&pod.namespace).copied().unwrap_or(&none)),
                None => pod.namespace == own_namespace,
            };
            if here && matches(&of_pod, pod.labels) {
                all.extend(pod.ips.iter().copied().map(Peer::Pod));
            }
        }
    }
    Some(all)
}

fn ports(given: Option<&[NetworkPolicyPort]>, receiving: &[&PodFacts<'_>]) -> Option<BTreeSet<(Protocol, u16, u16)>> {
    let given = given.filter(|given| !given.is_empty())?;
    let mut all = BTreeSet::new();
    for port in given {
        let Some(protocol) = Protocol::of(port.protocol.as_deref()) else { continue };
        match &port.port {
            None => drop(all.insert((protocol, 0, u16::MAX))),
            Some(IntOrString::Int(first)) => {
                let last = port.end_port.unwrap_or(*first);
                if let (Ok(first), Ok(last)) = (u16::try_from(*first), u16::try_from(last))
                    && first <= last
                {
                    all.insert((protocol, first, last));
                }
            }
            Some(IntOrString::String(name)) => {
                let containers = receiving.iter().filter_map(|facts| facts.pod.spec.as_ref()).flat_map(|spec| {
                    // Sidecars are init containers that stay.
                    spec.containers.iter().chain(spec.init_containers.iter().flatten())
                });
                for port in containers.flat_map(|container| container.ports.iter().flatten()) {
                    let same =
                        port.name.as_deref() == Some(name) && Protocol::of(port.protocol.as_deref()) == Some(protocol);
                    if let (true, Ok(number)) = (same, u16::try_from(port.container_port)) {
                        all.insert((protocol, number, number));
                    }
                }
            }
        }
    }
    Some(all)
}

/// The tables of the families that there are, replaced in one transaction.
pub fn scripts(table: &str, isolation: &Isolation, both: bool) -> String {
    let second = if both { script(Family::V6, table, isolation) } else { String::new() };
    script(Family::V4, table, isolation) + &second
}

/// The whole table of a family. Pods with the same allowances share a chain.
fn script(family: Family, table: &str, isolation: &Isolation) -> String {
    let (ip, address_type) = (family.keyword(), family.address_type());
    let mut chains = BTreeMap::new();
    let mut maps = String::new();
    let mut jumps = String::new();
    for (direction, own, peer, pods) in
        [("ingress", "daddr", "saddr", &isolation.ingress), ("egress", "saddr", "daddr", &isolation.egress)]
    {
        let mut entries = Vec::new();
        for (address, allowed) in pods.iter().filter(|(address, _)| Family::of(address) == family) {
            let body = chain_body(family, peer, allowed);
            let name = format!("{direction}_{}", short(&body));
            entries.push(format!("{address} : jump {name}"));
            chains.insert(name, body);
        }
        if !entries.is_empty() {
            let _ = writeln!(
                maps,
                "  map {direction} {{\n    type {address_type} : verdict\n    elements = {{ {} }}\n  }}",
                entries.join(", ")
            );
            let _ = writeln!(jumps, "    {ip} {own} vmap @{direction}");
        }
    }
    let mut script = format!("add table {ip} {table}\ndelete table {ip} {table}\ntable {ip} {table} {{\n{maps}");
    for (name, body) in &chains {
        let _ = writeln!(script, "  chain {name} {{\n{body}    drop\n  }}");
    }
    // Its own priority, so that both directions are judged: a verdict of one chain returns here for the other.
    let _ = writeln!(
        script,
        "  chain forward {{
    type filter hook forward priority filter - 10; policy accept;
    ct state established,related accept
{jumps}  }}\n}}"
    );
    script
}

/// Peers of the other family make no rule: who may not come by an address of this one is dropped at the chain's end.
fn chain_body(family: Family, peer: &str, allowed: &BTreeSet<Allowance>) -> String {
    let ip = family.keyword();
    let mut body = String::new();
    for allowance in allowed {
        let from: Vec<String> = match &allowance.peers {
            None => vec![String::new()],
            Some(peers) => {
                let mut pods = Vec::new();
                let mut blocks = Vec::new();
                for each in peers {
                    match each {
                        Peer::Pod(address) if Family::of(address) == family => pods.push(address.to_string()),
                        Peer::Block { cidr, except } if Family::of(&cidr.addr()) == family => {
                            let except = merged(family, except);
                            blocks.push(match except.is_empty() {
                                true => format!("{ip} {peer} {cidr} "),
                                false => format!("{ip} {peer} {cidr} {ip} {peer} != {{ {} }} ", except.join(", ")),
                            });
                        }
                        _ => {}
                    }
                }
                let pods = (!pods.is_empty()).then(|| format!("{ip} {peer} {{ {} }} ", pods.join(", ")));
                pods.into_iter().chain(blocks).collect()
            }
        };
        let to: Vec<String> = match &allowance.ports {
            None => vec![String::new()],
            Some(ports) => ports
                .iter()
                .map(|(protocol, first, last)| {
                    if (*first, *last) == (0, u16::MAX) {
                        format!("meta l4proto {protocol} ")
                    } else {
                        format!("{protocol} dport {first}-{last} ")
                    }
                })
                .collect(),
        };
        for from in &from {
            for to in &to {
                let _ = writeln!(body, "    {from}{to}return");
            }
        }
    }
    body
}

/// Ranges of a family without those that others contain: nft refuses overlaps in one set.
fn merged(family: Family, ranges: &[IpNet]) -> Vec<String> {
    let first = ranges.iter().filter_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None });
    let second = ranges.iter().filter_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None });
    match family {
        Family::V4 => Ipv4Net::aggregate(&first.collect::<Vec<_>>()).iter().map(ToString::to_string).collect(),
        Family::V6 => Ipv6Net::aggregate(&second.collect::<Vec<_>>()).iter().map(ToString::to_string).collect(),
    }
}
