//! The IPv6 half of a network that has both families.
//!
//! Guarantees: a pod reaches nothing by IPv6 that it could not by IPv4. It has its one address and no link-local one; what
//! comes by its link from any other address, or goes to a link-local, multicast or loopback address, is dropped before
//! routing, so that neither neighbours nor the host can be spoken to past the rules, and no pod can pose as a router to the
//! host (CVE-2020-10749). Both ends of a link know each other's link-layer address, so nobody needs to ask.
//!
//! A start without a second family closes what an earlier one with it opened.

use super::{Family, NetworkConfig, NetworkError, links, nft, nft::NftError, open_foreign_filter, set_sysctl};
use ipnet::Ipv6Net;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags},
};
use std::{
    fmt::Write as _,
    fs, io,
    net::Ipv6Addr,
    path::{Path, PathBuf},
};

/// The smallest that IPv6 allows (RFC 8200).
const MIN_MTU: u32 = 1280;
const SYSCTLS: &str = "/proc/sys/net/ipv6/conf";

/// Whether this machine can have it.
pub(super) fn possible(config: &NetworkConfig, mtu: u32) -> Result<(), NetworkError> {
    let (Some(second), Some(pairing)) = (config.second, config.pairing()) else { return Ok(()) };
    if !Path::new(SYSCTLS).exists() {
        return Err(NetworkError::NoIpv6);
    }
    if mtu < MIN_MTU {
        return Err(NetworkError::SmallMtu { mtu });
    }
    if !pairing.fits() {
        return Err(NetworkError::TooSmallSecond { first: pairing.first, second: pairing.second });
    }
    refuse_overlap(config, &[second.pods, second.services])
}

/// Refuses a range that the machine already routes elsewhere, as for IPv4.
fn refuse_overlap(config: &NetworkConfig, all: &[Ipv6Net]) -> Result<(), NetworkError> {
    for (theirs, interface) in routes()? {
        let own = interface == config.bridge || interface.starts_with(&config.link_prefix()) || interface == "lo";
        if own || theirs.prefix_len() == 0 {
            continue;
        }
        if let Some(ours) = all.iter().find(|ours| ours.contains(&theirs)) {
            let (ours, theirs) = ((*ours).into(), theirs.into());
            return Err(NetworkError::Overlap { ours, theirs, interface });
        }
    }
    Ok(())
}

/// Destinations and interfaces of all routes.
pub(super) fn routes() -> Result<Vec<(Ipv6Net, String)>, NetworkError> {
    let path = Path::new("/proc/net/ipv6_route");
    let text = fs::read_to_string(path).map_err(|source| NetworkError::Io { path: path.into(), source })?;
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (to, length, interface) = (fields.first()?, fields.get(1)?, fields.last()?);
        let to = Ipv6Addr::from(u128::from_str_radix(to, 16).ok()?);
        let net = Ipv6Net::new(to, u8::from_str_radix(length, 16).ok()?).ok()?;
        Some((net, (*interface).to_owned()))
    };
    Ok(text.lines().filter_map(route).collect())
}

/// Whether the host routes to exactly this address by this link: then the pod behind it has the address.
pub(super) fn is_routed(link: &str, address: Ipv6Addr) -> bool {
    let routes = routes().unwrap_or_default();
    routes.iter().any(|(net, interface)| interface == link && net.prefix_len() == 128 && net.addr() == address)
}

/// Says that a link is without automatic addresses and deaf to routers, then gives it IPv6 anew: what it had is gone.
/// The setting is of the namespace that the thread is in.
pub(super) fn prepare_link(link: &str) -> Result<(), NetworkError> {
    let of = |name: &str| format!("net/ipv6/conf/{link}/{name}");
    set_sysctl(&of("disable_ipv6"), "1")?;
    // 1: no link-local address is made.
    for (name, value) in
        [("addr_gen_mode", "1"), ("accept_ra", "0"), ("autoconf", "0"), ("accept_dad", "0"), ("accept_redirects", "0")]
    {
        set_sysctl(&of(name), value)?;
    }
    set_sysctl(&of("disable_ipv6"), "0")
}

/// Gives a link an address that is good at once: nobody else on the link can have it.
pub(super) async fn add_address(
    handle: &Handle,
    index: u32,
    address: Ipv6Addr,
    length: u8,
) -> Result<(), NetworkError> {
    let mut request = handle.address().add(index, address.into(), length).replace();
    let message = request.message_mut();
    message.header.flags |= AddressHeaderFlags::Nodad;
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    request.execute().await.map_err(|source| NetworkError::Netlink { what: "give a link its IPv6 address", source })
}

/// The gateway's address on the bridge, and the route to the Services.
pub(super) async fn bridge(config: &NetworkConfig, handle: &Handle, index: u32) -> Result<(), NetworkError> {
    let (Some(second), Some(gateway)) = (config.second, config.second_gateway()) else { return Ok(()) };
    let bridge = &config.bridge;
    set_sysctl(&format!("net/ipv6/conf/{bridge}/disable_ipv6"), "0")?;
    add_address(handle, index, gateway, second.pods.prefix_len()).await?;
    let services = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(second.services.network(), second.services.prefix_len())
        .output_interface(index)
        .pref_source(gateway)
        .build();
    let failed = |source| NetworkError::Netlink { what: "route to the IPv6 services", source };
    handle.route().add(services).replace().execute().await.map_err(failed)?;
    // The bridge never has a carrier, since it has no port.
    set_sysctl(&format!("net/ipv6/conf/{bridge}/ignore_routes_with_linkdown"), "0")?;
    forward()
}

/// Lets the machine forward. A machine that forwards no longer listens to its routers, unless told to: one that got its
/// own address or default route from them keeps both.
fn forward() -> Result<(), NetworkError> {
    if fs::read_to_string(Path::new(SYSCTLS).join("all/forwarding")).is_ok_and(|now| now.trim() == "1") {
        return Ok(());
    }
    for link in links()?.into_iter().chain(["default".to_owned()]) {
        let accept = Path::new(SYSCTLS).join(&link).join("accept_ra");
        if fs::read_to_string(&accept).is_ok_and(|now| now.trim() == "1") {
            set_sysctl(&format!("net/ipv6/conf/{link}/accept_ra"), "2")?;
        }
    }
    set_sysctl("net/ipv6/conf/all/forwarding", "1")
}

/// The host's side of a pod's link.
pub(super) async fn connect(
    config: &NetworkConfig,
    handle: &Handle,
    (link, index): (&str, u32),
    (address, link_address): (Ipv6Addr, [u8; 6]),
) -> Result<(), NetworkError> {
    let failed = |what| move |source| NetworkError::Netlink { what, source };
    prepare_link(link)?;
    handle
        .neighbours()
        .add(index, address.into())
        .link_layer_address(&link_address)
        .replace()
        .execute()
        .await
        .map_err(failed("name the pod's IPv6 address"))?;
    let mut route = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).output_interface(index);
    if let Some(gateway) = config.second_gateway() {
        route = route.pref_source(gateway);
    }
    handle.route().add(route.build()).replace().execute().await.map_err(failed("route to the pod's IPv6 address"))
}

/// Inside of a pod's namespace: its address and its way out. The link is up.
pub(super) async fn configure_pod(
    handle: &Handle,
    index: u32,
    (address, gateway): (Ipv6Addr, Ipv6Addr),
    gateway_link: [u8; 6],
) -> Result<(), NetworkError> {
    let failed = |what| move |source| NetworkError::Netlink { what, source };
    add_address(handle, index, address, 128).await?;
    handle
        .neighbours()
        .add(index, gateway.into())
        .link_layer_address(&gateway_link)
        .execute()
        .await
        .map_err(failed("name the IPv6 gateway"))?;
    let to_gateway =
        RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(gateway, 128).output_interface(index).build();
    handle.route().add(to_gateway).execute().await.map_err(failed("route to the IPv6 gateway"))?;
    let default = RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).output_interface(index).build();
    handle.route().add(default).execute().await.map_err(failed("set the default IPv6 route"))
}

/// The base rules, to be applied together with those of IPv4; empty without a second family.
pub(super) fn base_rules(config: &NetworkConfig) -> String {
    let Some(second) = config.second else { return String::new() };
    let (table, links, bridge) = (config.table(), format!("\"{}*\"", config.link_prefix()), &config.bridge);
    let (pods, services) = (second.pods, second.services);
    // As for IPv4: what is still addressed to a service has no endpoint.
    let refuse =
        format!("ip6 daddr {services} meta l4proto tcp reject with tcp reset\n    ip6 daddr {services} reject");
    // `fib` is not left out where the kernel lacks it: IPv6 has no check of its own against forged senders.
    format!(
        "add table ip6 {table}
delete table ip6 {table}
table ip6 {table} {{
  chain forged {{
    type filter hook prerouting priority raw; policy accept;
    iifname {links} ip6 saddr != {pods} drop
    iifname {links} fib saddr . iif oif missing drop
    iifname {links} ip6 daddr {{ ::/96, ::ffff:0:0/96, fe80::/10, ff00::/8 }} drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    oifname {links} ip6 daddr != {pods} drop
    {refuse}
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname {links} icmpv6 type nd-redirect drop
    {refuse}
  }}
  chain leave {{
    type nat hook postrouting priority srcnat; policy accept;
    ip6 saddr {pods} oifname != {links} oifname != \"{bridge}\" masquerade fully-random
  }}
}}
"
    )
}

fn marker(config: &NetworkConfig) -> PathBuf {
    config.run_dir.join("second-family")
}

/// Remembers that the kernel holds something of the second family.
pub(super) fn mark(config: &NetworkConfig) -> Result<(), NetworkError> {
    let path = marker(config);
    fs::write(&path, "").map_err(|source| NetworkError::Io { path, source })
}

/// Closes what an earlier start with a second family opened: pods that have such an address reach nothing by it.
pub(super) async fn close(config: &NetworkConfig) -> Result<(), NetworkError> {
    if !marker(config).exists() {
        return Ok(());
    }
    for link in links()? {
        if link == config.bridge || link.starts_with(&config.link_prefix()) {
            // A link may go at any time.
            drop(fs::write(Path::new(SYSCTLS).join(&link).join("disable_ipv6"), "1"));
        }
    }
    open_foreign_filter(config, false, &[Family::V6]).await;
    remove(config).await
}

/// Removes the tables, and the memory of them.
pub(super) async fn remove(config: &NetworkConfig) -> Result<(), NetworkError> {
    delete_tables(config).await?;
    let path = marker(config);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(NetworkError::Io { path, source }),
        _ => Ok(()),
    }
}

/// Removes the tables that there are. A kernel without IPv6 has none.
async fn delete_tables(config: &NetworkConfig) -> Result<(), NftError> {
    let listing = match nft::run(&["list", "tables", "ip6"], "").await {
        Ok(listing) => listing,
        Err(error @ NftError::Missing(_)) => return Err(error),
        Err(_) => return Ok(()),
    };
    let mut script = String::new();
    for table in config.tables() {
        if listing.lines().any(|line| line.trim() == format!("table ip6 {table}")) {
            let _ = writeln!(script, "delete table ip6 {table}");
        }
    }
    if script.is_empty() { Ok(()) } else { nft::apply(&script).await }
}

#[cfg(test)]
mod tests;
