//! The pod network of one machine: a namespace and a veth pair a pod, routed by the host.
//!
//! Every pod is alone on its link: the host routes to its address, and the pod knows only the gateway, which is the address
//! of the bridge. So all traffic passes the host's IP layer once, where Services (nftables DNAT) and policies act, and where
//! a pod that sends from another's address is dropped. The bridge itself has no port: it carries the gateway address, on
//! which the daemon listens for pods, and the route to the service addresses, so that a machine without any network works.
//!
//! Guarantees: [`Network::attach`] and [`Network::detach`] are idempotent; addresses survive a restart of the daemon;
//! [`Network::reset`] removes all that an instance made. With IPv6 ranges pods have an address of each family
//! ([`second`]); without them IPv6 is switched off on the pods' links.
//! Architecture Invariant: no thread of the daemon leaves the host's network namespace but the one that makes a pod's.

pub mod conntrack;
mod family;
mod host_ports;
mod ipam;
mod namespace;
pub mod nft;
mod second;

pub use family::{Family, Pairing, SecondRanges};
pub use host_ports::HostPort;
pub use ipam::IpamError;
pub use nft::NftError;

use futures::TryStreamExt;
use ipam::Ipam;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kfbox_base::Tasks;
use nix::net::if_::{if_nameindex, if_nametoindex};
use parking_lot::Mutex;
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        link::{LinkAttribute, State},
        route::RouteScope,
    },
};
use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// A link that takes longer is reported, and used all the same.
const LINK_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("cannot {what}: {source}")]
    Netlink {
        what: &'static str,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("a pod's network namespace: cannot {what}: {source}")]
    Namespace {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the pod network {ours} overlaps with {theirs} on {interface}; choose another range for pods")]
    Overlap { ours: IpNet, theirs: IpNet, interface: String },
    #[error("{cidr} is too small for a pod network: it needs at least 4 addresses")]
    TooSmall { cidr: Ipv4Net },
    #[error("{second} is too small for the pods' IPv6 addresses: it needs as many as {first} has")]
    TooSmallSecond { first: Ipv4Net, second: Ipv6Net },
    #[error("this kernel has no IPv6; leave out the IPv6 ranges for pods and services")]
    NoIpv6,
    #[error(
        "links of {mtu} bytes are too small for IPv6, which needs 1280; leave out the IPv6 ranges for pods and services"
    )]
    SmallMtu { mtu: u32 },
    #[error("the packet filter cannot hold IPv6 rules ({0}); leave out the IPv6 ranges for pods and services")]
    NoIpv6Filter(#[source] NftError),
    #[error("{0:?} cannot name a network interface: 1 to 15 letters, digits, '-' and '_'")]
    BadName(String),
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("port {port}/{protocol} of the host is another pod's")]
    PortTaken { protocol: &'static str, port: u16 },
    #[error(transparent)]
    Ipam(#[from] IpamError),
    #[error(transparent)]
    Nft(#[from] NftError),
}

/// One network. Two boxes on one machine differ in instance, bridge, ranges and `run_dir`.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    pub instance: String,
    pub bridge: String,
    pub pod_cidr: Ipv4Net,
    pub service_cidr: Ipv4Net,
    /// IPv6 beside IPv4. None: IPv4 alone.
    pub second: Option<SecondRanges>,
    /// The service address of the cluster's DNS.
    pub dns_ip: Ipv4Addr,
    /// Of the pods' links. 0 takes the smallest of the machine's own links, at most 1500.
    pub mtu: u32,
    /// For mounts and addresses; does not outlive the machine's boot (`/run/...`).
    pub run_dir: PathBuf,
}

#[derive(Debug, Clone, Default)]
pub struct PodNetworkSpec {
    pub host_network: bool,
    pub hostname: String,
    /// A kept namespace that is the pod's already, because it must belong to its user namespace. None: one is made.
    pub namespace: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNetwork {
    pub ip: Ipv4Addr,
    /// Its IPv6 address, where the network had both families when the pod was made.
    pub second: Option<Ipv6Addr>,
    /// `None` when the pod shares the host's network.
    pub netns_path: Option<PathBuf>,
}

impl PodNetwork {
    /// Its addresses, the first family's first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        [Some(IpAddr::V4(self.ip)), self.second.map(IpAddr::V6)].into_iter().flatten().collect()
    }
}

/// A running network. Cloning shares it.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    config: NetworkConfig,
    mtu: u32,
    handle: Handle,
    ipam: Mutex<Ipam>,
    /// Pods with ports on the host, by uid.
    exposed: tokio::sync::Mutex<host_ports::Exposed>,
}

impl NetworkConfig {
    /// The host's address as pods see it.
    pub fn gateway(&self) -> Ipv4Addr {
        ipam::gateway(&self.pod_cidr)
    }

    /// The pods' ranges of both families, where there are two.
    pub fn pairing(&self) -> Option<Pairing> {
        self.second.map(|second| Pairing { first: self.pod_cidr, second: second.pods })
    }

    /// The host's IPv6 address as pods see it.
    pub fn second_gateway(&self) -> Option<Ipv6Addr> {
        self.pairing()?.partner(self.gateway())
    }

    /// The ranges of the pods.
    pub fn pod_ranges(&self) -> Vec<IpNet> {
        [Some(self.pod_cidr.into()), self.second.map(|s| s.pods.into())].into_iter().flatten().collect()
    }

    /// The ranges of the Services.
    pub fn service_ranges(&self) -> Vec<IpNet> {
        [Some(self.service_cidr.into()), self.second.map(|s| s.services.into())].into_iter().flatten().collect()
    }

    /// All tables of this instance, by the names that they have in each family.
    fn tables(&self) -> [String; 3] {
        let table = self.table();
        [format!("{table}_services"), format!("{table}_policy"), table]
    }

    /// How the names of this instance's links on the host begin.
    pub fn link_prefix(&self) -> String {
        format!("kf{}", short_hash(&self.instance, 4))
    }

    /// This instance's nftables table (family ip, and ip6 where there are two); its parts with their own life add a suffix.
    pub fn table(&self) -> String {
        let plain: String =
            self.instance.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(32).collect();
        if plain == self.instance {
            format!("kfbox_{plain}")
        } else {
            format!("kfbox_{plain}_{}", short_hash(&self.instance, 4))
        }
    }

    fn link_name(&self, pod_uid: &str) -> String {
        format!("{}{}", self.link_prefix(), short_hash(pod_uid, 9))
    }

    fn netns_dir(&self) -> PathBuf {
        self.run_dir.join("netns")
    }

    fn netns_path(&self, pod_uid: &str) -> PathBuf {
        // A uid comes from the API server, but a static pod's may be anything: only a hash is a safe file name.
        let safe = !pod_uid.is_empty()
            && pod_uid.len() <= 64
            && pod_uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        self.netns_dir().join(if safe { pod_uid.to_owned() } else { short_hash(pod_uid, 32) })
    }
}

fn short_hash(text: &str, digits: usize) -> String {
    let mut hash = hex::encode(Sha256::digest(text.as_bytes()));
    hash.truncate(digits);
    hash
}

/// The link-layer address that goes with an address: known to both sides, so that nobody needs to ask.
pub(crate) fn link_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

impl Network {
    /// Makes the bridge, the routes and the base rules, or takes over those of an earlier daemon. Pods that are attached
    /// stay as they are.
    pub async fn start(config: NetworkConfig, tasks: &Tasks) -> Result<Self, NetworkError> {
        let well_named = |name: &str| {
            (1..=15).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if !well_named(&config.bridge) {
            return Err(NetworkError::BadName(config.bridge.clone()));
        }
        if config.pod_cidr.prefix_len() > 30 {
            return Err(NetworkError::TooSmall { cidr: config.pod_cidr });
        }
        refuse_overlap(&config)?;
        let mtu = if config.mtu == 0 { smallest_mtu() } else { config.mtu };
        second::possible(&config, mtu)?;
        let netns = config.netns_dir();
        fs::create_dir_all(&netns).map_err(|source| NetworkError::Io { path: netns, source })?;
        let ipam = Ipam::open(&config.run_dir.join("addresses"), config.pod_cidr)?;
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| NetworkError::Namespace { what: "open netlink", source })?;
        let shutdown = tasks.shutdown();
        tasks.spawn("netlink", async move {
            tokio::select! {
                () = connection => {}
                () = shutdown.cancelled() => {}
            }
        });
        if config.second.is_some() {
            second::mark(&config)?;
        } else {
            second::close(&config).await?;
        }
        let network = Self {
            inner: Arc::new(Inner { mtu, ipam: Mutex::new(ipam), exposed: Default::default(), handle, config }),
        };
        // The rules first: nothing passes before what may not is dropped.
        network.rules().await?;
        network.bridge().await?;
        Ok(network)
    }

    pub fn config(&self) -> &NetworkConfig {
        &self.inner.config
    }

    /// The host's address as pods see it, on the bridge: where the daemon listens for pods.
    pub fn gateway(&self) -> Ipv4Addr {
        self.inner.config.gateway()
    }

    /// The uids of the pods that have an address.
    pub fn pods(&self) -> Vec<String> {
        self.inner.ipam.lock().pods().map(str::to_owned).collect()
    }

    /// Gives a pod its network, or finds the one it has. A failure leaves nothing behind but the address, which the next
    /// try takes again.
    pub async fn attach(&self, pod_uid: &str, spec: &PodNetworkSpec) -> Result<PodNetwork, NetworkError> {
        let config = &self.inner.config;
        if spec.host_network {
            return Ok(PodNetwork { ip: config.gateway(), second: config.second_gateway(), netns_path: None });
        }
        let address = self.inner.ipam.lock().allocate(pod_uid)?;
        let (path, link) = (config.netns_path(pod_uid), config.link_name(pod_uid));
        let second = config.pairing().and_then(|pairing| pairing.partner(address));
        let network = PodNetwork { ip: address, second, netns_path: Some(path.clone()) };
        // The route on the host is the last thing made: without it the daemon was killed in between.
        if namespace::exists(&path) && is_routed(&link) {
            // A pod that was made with one family keeps to it.
            let second = second.filter(|address| second::is_routed(&link, *address));
            return Ok(PodNetwork { second, ..network });
        }
        self.remove_link(&link).await?;
        namespace::remove(&path)?;
        let plan = namespace::Plan {
            path: path.clone(),
            host_link: link.clone(),
            address,
            gateway: config.gateway(),
            second: second.zip(config.second_gateway()),
            mtu: self.inner.mtu,
            given: spec.namespace.clone(),
        };
        let made = match namespace::create(plan).await {
            Ok(()) => self.connect(&link, address, second).await,
            Err(error) => Err(error),
        };
        if let Err(error) = made {
            drop(self.remove_link(&link).await);
            drop(namespace::remove(&path));
            return Err(error);
        }
        Ok(network)
    }

    /// Takes a pod's network and address away.
    pub async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        let config = &self.inner.config;
        self.unexpose(pod_uid).await?;
        self.remove_link(&config.link_name(pod_uid)).await?;
        namespace::remove(&config.netns_path(pod_uid))?;
        self.inner.ipam.lock().release(pod_uid)?;
        Ok(())
    }

    /// Sends what pods and the host ask of the DNS service address to this port of the gateway.
    pub async fn serve_dns_at(&self, port: u16) -> Result<(), NetworkError> {
        let (config, gateway) = (&self.inner.config, self.gateway());
        let (table, dns) = (config.table(), config.dns_ip);
        let mut script = format!("flush chain ip {table} dns\n");
        for protocol in ["udp", "tcp"] {
            let _ =
                writeln!(script, "add rule ip {table} dns ip daddr {dns} {protocol} dport 53 dnat to {gateway}:{port}");
        }
        Ok(nft::apply(&script).await?)
    }

    /// Removes everything that an instance made on this machine, running or not.
    pub async fn reset(config: &NetworkConfig) -> Result<(), NetworkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| NetworkError::Namespace { what: "open netlink", source })?;
        let work = async {
            let prefix = config.link_prefix();
            for name in links()? {
                if name.starts_with(&prefix) || name == config.bridge {
                    remove_link(&handle, &name).await?;
                }
            }
            Ok::<(), NetworkError>(())
        };
        tokio::select! {
            result = work => result?,
            () = connection => {}
        }
        let netns = config.netns_dir();
        match fs::read_dir(&netns) {
            Ok(entries) => {
                for entry in entries.flatten() {
                    namespace::remove(&entry.path())?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(NetworkError::Io { path: netns, source }),
        }
        for folder in [netns, config.run_dir.join("addresses")] {
            match fs::remove_dir_all(&folder) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(NetworkError::Io { path: folder, source });
                }
                _ => {}
            }
        }
        open_foreign_filter(config, false, &[Family::V4, Family::V6]).await;
        second::remove(config).await?;
        let mut script = String::new();
        for table in config.tables() {
            let _ = writeln!(script, "add table ip {table}\ndelete table ip {table}");
        }
        Ok(nft::apply(&script).await?)
    }

    async fn remove_link(&self, name: &str) -> Result<(), NetworkError> {
        remove_link(&self.inner.handle, name).await
    }

    /// The bridge with the gateway address, and the route by which the host itself reaches service addresses.
    async fn bridge(&self) -> Result<(), NetworkError> {
        let (config, handle) = (&self.inner.config, &self.inner.handle);
        let failed = |what| move |source| NetworkError::Netlink { what, source };
        if if_nametoindex(config.bridge.as_str()).is_err() {
            let bridge = LinkBridge::new(&config.bridge).address(link_address(config.gateway()).to_vec()).build();
            handle.link().add(bridge).execute().await.map_err(failed("make the bridge"))?;
        }
        let index = if_nametoindex(config.bridge.as_str())
            .map_err(|e| NetworkError::Namespace { what: "find the bridge", source: e.into() })?;
        let up = LinkUnspec::new_with_index(index).mtu(self.inner.mtu).up().build();
        handle.link().set(up).execute().await.map_err(failed("bring up the bridge"))?;
        handle
            .address()
            .add(index, config.gateway().into(), config.pod_cidr.prefix_len())
            .replace()
            .execute()
            .await
            .map_err(failed("give the bridge its address"))?;
        let services = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(config.service_cidr.network(), config.service_cidr.prefix_len())
            .output_interface(index)
            .scope(RouteScope::Link)
            .pref_source(config.gateway())
            .build();
        handle.route().add(services).replace().execute().await.map_err(failed("route to the services"))?;
        second::bridge(config, handle, index).await?;
        // The bridge never has a carrier, since it has no port.
        set_sysctl(&format!("net/ipv4/conf/{}/ignore_routes_with_linkdown", config.bridge), "0")?;
        set_sysctl("net/ipv4/ip_forward", "1")
    }

    async fn rules(&self) -> Result<(), NetworkError> {
        let config = &self.inner.config;
        let second = second::base_rules(config);
        let script = base_rules(config, true) + &second;
        if let Err(error) = nft::apply(&script).await {
            if !second.is_empty() {
                return Err(NetworkError::NoIpv6Filter(error));
            }
            // The reverse-path expression is a module of its own; the kernel's own check on each link remains.
            tracing::warn!(%error, "the packet filter lacks `fib`; relying on rp_filter against forged addresses");
            nft::apply(&base_rules(config, false)).await?;
        }
        let families = if config.second.is_some() { &[Family::V4, Family::V6][..] } else { &[Family::V4] };
        open_foreign_filter(config, true, families).await;
        Ok(())
    }

    /// The host's side of a pod's link: up, its route, and what it may send.
    async fn connect(&self, link: &str, address: Ipv4Addr, second: Option<Ipv6Addr>) -> Result<(), NetworkError> {
        let (config, handle) = (&self.inner.config, &self.inner.handle);
        let failed = |what| move |source| NetworkError::Netlink { what, source };
        let index = if_nametoindex(link)
            .map_err(|e| NetworkError::Namespace { what: "find the host's link", source: e.into() })?;
        match second {
            Some(second) => second::connect(config, handle, (link, index), (second, link_address(address))).await?,
            None => drop(fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1")),
        }
        set_sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "1")?;
        // A node port on 127.0.0.1 leads to a pod; the base rules drop what a pod itself sends to 127.0.0.0/8.
        set_sysctl(&format!("net/ipv4/conf/{link}/route_localnet"), "1")?;
        handle
            .neighbours()
            .add(index, address.into())
            .link_layer_address(&link_address(address))
            .replace()
            .execute()
            .await
            .map_err(failed("name the pod"))?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .pref_source(config.gateway())
            .build();
        handle.route().add(route).replace().execute().await.map_err(failed("route to the pod"))?;
        self.operational(index).await
    }
}

impl Network {
    /// Waits until the kernel sends by a link. The end of a pair that came up first is activated by a worker of the kernel's,
    /// and drops what is sent before; a connection's first packet lost so would come again only after a second.
    async fn operational(&self, index: u32) -> Result<(), NetworkError> {
        let failed = |source| NetworkError::Netlink { what: "look at the link", source };
        let deadline = Instant::now() + LINK_TIMEOUT;
        loop {
            let link = self.inner.handle.link().get().match_index(index).execute().try_next().await.map_err(failed)?;
            let up = |a: &LinkAttribute| matches!(a, LinkAttribute::OperState(State::Up));
            if link.is_some_and(|link| link.attributes.iter().any(up)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                tracing::warn!(index, "a pod's link is slow to come up");
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn base_rules(config: &NetworkConfig, with_fib: bool) -> String {
    let (table, links, gateway, pods, services) = (
        config.table(),
        format!("\"{}*\"", config.link_prefix()),
        config.gateway(),
        config.pod_cidr,
        config.service_cidr,
    );
    let fib = if with_fib { format!("iifname {links} fib saddr . iif oif missing drop") } else { String::new() };
    let local = if with_fib { "fib daddr type local" } else { "ip daddr { GATEWAY, 127.0.0.1 }" };
    let host_ports = host_ports::MAPS
        .trim_start_matches('\n')
        .replace("fib daddr type local", local)
        .replace("GATEWAY", &gateway.to_string());
    // Whatever is still addressed to a service here has no endpoint: refused at once rather than left to time out.
    let refuse = format!("ip daddr {services} meta l4proto tcp reject with tcp reset\n    ip daddr {services} reject");
    format!(
        "add table ip {table}
delete table ip {table}
table ip {table} {{
  chain forged {{
    type filter hook prerouting priority raw; policy accept;
    {fib}
    iifname {links} ip daddr 127.0.0.0/8 drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    {refuse}
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname {links} icmp type redirect drop
    {refuse}
  }}
  chain dns {{
  }}
{host_ports}
  chain dns_in {{
    type nat hook prerouting priority dstnat - 1; policy accept;
    jump dns
  }}
  chain dns_out {{
    type nat hook output priority -101; policy accept;
    jump dns
  }}
  chain leave {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 127.0.0.0/8 oifname {links} snat to {gateway}
    ip saddr {pods} oifname != {links} oifname != \"{bridge}\" masquerade fully-random
  }}
}}
",
        bridge = config.bridge,
    )
}

async fn remove_link(handle: &Handle, name: &str) -> Result<(), NetworkError> {
    let Ok(index) = if_nametoindex(name) else { return Ok(()) };
    match handle.link().del(index).execute().await {
        Ok(()) => Ok(()),
        // Gone meanwhile, with its namespace.
        Err(_) if if_nametoindex(name).is_err() => Ok(()),
        Err(source) => Err(NetworkError::Netlink { what: "remove a link", source }),
    }
}

/// Whether the host routes by a link.
fn is_routed(link: &str) -> bool {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    routes.lines().any(|route| route.split_whitespace().next() == Some(link))
}

/// The names of all links. Not by /sys, which may show another namespace's.
fn links() -> Result<Vec<String>, NetworkError> {
    let all = if_nameindex().map_err(|e| NetworkError::Namespace { what: "list the links", source: e.into() })?;
    Ok(all.iter().map(|link| link.name().to_string_lossy().into_owned()).collect())
}

/// The smallest MTU of the machine's links that are up, at most 1500: what leaves by any of them then needs no fragments.
fn smallest_mtu() -> u32 {
    let of = |name: &str| {
        let read = |file: &str| fs::read_to_string(format!("/sys/class/net/{name}/{file}")).ok();
        let up = read("operstate").is_some_and(|state| state.trim() == "up");
        // Only links with hardware of their own, virtual machines' included.
        let real = Path::new(&format!("/sys/class/net/{name}/device")).exists();
        if up && real { read("mtu")?.trim().parse::<u32>().ok() } else { None }
    };
    links().unwrap_or_default().iter().filter_map(|name| of(name)).min().unwrap_or(1500).clamp(576, 1500)
}

fn set_sysctl(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = Path::new("/proc/sys").join(name);
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| NetworkError::Io { path, source })
}

/// Refuses a range for pods or services that the machine already routes elsewhere: one of the two would be unreachable.
fn refuse_overlap(config: &NetworkConfig) -> Result<(), NetworkError> {
    let path = Path::new("/proc/net/route");
    let text = fs::read_to_string(path).map_err(|source| NetworkError::Io { path: path.into(), source })?;
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (Some(interface), Some(to), Some(mask)) = (fields.first(), fields.get(1), fields.get(7)) else { continue };
        let number = |hex: &str| u32::from_str_radix(hex, 16).map(u32::from_be).ok();
        let (Some(to), Some(mask)) = (number(to), number(mask)) else { continue };
        let Ok(theirs) = Ipv4Net::with_netmask(to.into(), mask.into()) else { continue };
        let own = **interface == *config.bridge || interface.starts_with(&config.link_prefix());
        if own || theirs.prefix_len() == 0 {
            continue;
        }
        for ours in [config.pod_cidr, config.service_cidr] {
            // A wide route such as 10.0.0.0/8 may be meant to be narrowed; one inside ours, or equal, is not.
            if ours.contains(&theirs) {
                let (ours, theirs) = (ours.into(), theirs.into());
                return Err(NetworkError::Overlap { ours, theirs, interface: (*interface).to_owned() });
            }
        }
    }
    Ok(())
}

/// Where another program's filter drops by default (Docker sets the iptables chain FORWARD so, ufw INPUT too), lets pass what
/// pods send, and what they ask of the daemon on the bridge's address.
/// Best effort: what cannot be opened shows as no connection, and `kfbox doctor` names it.
async fn open_foreign_filter(config: &NetworkConfig, open: bool, families: &[Family]) {
    let links = format!("\"{}*\"", config.link_prefix());
    for family in families {
        let gateway = match family {
            Family::V4 => Some(IpAddr::V4(config.gateway())),
            Family::V6 => config.second_gateway().map(IpAddr::V6),
        };
        let family = family.keyword();
        let forward = [format!("iifname {links}"), format!("oifname {links}")];
        let input: Vec<String> =
            gateway.iter().map(|gateway| format!("iifname {links} {family} daddr {gateway}")).collect();
        for (chain, matches) in [("FORWARD", &forward[..]), ("INPUT", &input[..])] {
            let listing = nft::run(&["-a", "list", "chain", family, "filter", chain], "").await;
            let Ok(listing) = listing else { continue };
            let mut script = String::new();
            for line in listing.lines().filter(|line| line.contains(&links)) {
                if let Some((_, handle)) = line.rsplit_once("# handle ") {
                    let _ = writeln!(script, "delete rule {family} filter {chain} handle {}", handle.trim());
                }
            }
            if open && listing.contains("policy drop") {
                for matched in matches {
                    let _ = writeln!(script, "insert rule {family} filter {chain} {matched} counter accept");
                }
            }
            if !script.is_empty()
                && let Err(error) = nft::apply(&script).await
            {
                tracing::warn!(%error, family, chain, "an iptables chain drops by default and could not be opened for pods");
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
