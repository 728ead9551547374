//! Rules as scripts for nft: the whole table of a family, or the difference between two states, each one transaction.

use super::desired::{Port, Protocol, Rules, Target};
use crate::network::Family;
use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};

/// Clients remembered for session affinity, at one endpoint; bounds the kernel's memory.
const MAX_CLIENTS: u32 = 65_536;

/// A table of one family.
#[derive(Debug, Clone)]
pub struct Table {
    pub family: Family,
    pub name: String,
    /// The host's address as pods see it.
    pub gateway: IpAddr,
}

/// Replaces the table, whatever was in it, by these rules.
pub fn replace(table: &Table, rules: &Rules) -> String {
    let Table { family, name, gateway } = table;
    let (ip, address) = (family.keyword(), family.address_type());
    // IPv6 has no way from the loopback address to another machine's, so a node port is not at `::1`.
    let local = match family {
        Family::V4 => "",
        Family::V6 => "ip6 daddr != ::1 ",
    };
    let mut script = format!(
        "add table {ip} {name}
delete table {ip} {name}
table {ip} {name} {{
  map addresses {{
    type {address} . inet_proto . inet_service : verdict
  }}
  map node_ports {{
    type inet_proto . inet_service : verdict
  }}
  set hairpins {{
    type {address} . {address}
  }}
  chain services {{
    {ip} daddr . meta l4proto . th dport vmap @addresses
    {local}fib daddr type local meta l4proto . th dport vmap @node_ports
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump services
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    jump services
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat - 1; policy accept;
    {ip} saddr . {ip} daddr @hairpins snat to {gateway}
  }}
}}
"
    );
    script.push_str(&change(table, &Rules::default(), rules));
    script
}

/// Takes the table from one state to another; empty when they are equal.
pub fn change(table: &Table, old: &Rules, new: &Rules) -> String {
    let in_full = format!("{} {}", table.family.keyword(), table.name);
    let (family, table) = (table.family, in_full.as_str());
    let mut script = String::new();
    let out = &mut script;
    // First what leads to a chain goes, then the chain; first a chain comes, then what leads to it.
    let goto = |id: &String| format!("goto port_{id}");
    elements(out, "delete", table, "addresses", &gone(&old.addresses, &new.addresses), address_key, goto);
    elements(out, "delete", table, "node_ports", &gone(&old.node_ports, &new.node_ports), node_port_key, goto);
    for (id, port) in &new.ports {
        match old.ports.get(id) {
            Some(before) if before == port => {}
            before => write_port(out, (family, table), id, before, port),
        }
    }
    elements(out, "add", table, "addresses", &gone(&new.addresses, &old.addresses), address_key, goto);
    elements(out, "add", table, "node_ports", &gone(&new.node_ports, &old.node_ports), node_port_key, goto);
    for (id, port) in old.ports.iter().filter(|(id, _)| !new.ports.contains_key(*id)) {
        let _ = writeln!(out, "flush chain {table} port_{id}\ndelete chain {table} port_{id}");
        for target in &port.targets {
            drop_sticky(out, table, id, port, target);
        }
    }
    for (verb, addresses) in
        [("delete", old.hairpins.difference(&new.hairpins)), ("add", new.hairpins.difference(&old.hairpins))]
    {
        let pairs: Vec<String> = addresses.map(|a| format!("{a} . {a}")).collect();
        if !pairs.is_empty() {
            let _ = writeln!(out, "{verb} element {table} hairpins {{ {} }}", pairs.join(", "));
        }
    }
    script
}

/// The entries of one map that the other lacks or has otherwise.
fn gone<'a, K: Ord, V: PartialEq>(from: &'a BTreeMap<K, V>, other: &BTreeMap<K, V>) -> Vec<(&'a K, &'a V)> {
    from.iter().filter(|(key, value)| other.get(key) != Some(value)).collect()
}

fn elements<K, V>(
    out: &mut String,
    verb: &str,
    table: &str,
    map: &str,
    entries: &[(&K, &V)],
    key: impl Fn(&K) -> String,
    value: impl Fn(&V) -> String,
) {
    if entries.is_empty() {
        return;
    }
    let list: Vec<String> = entries.iter().map(|(k, v)| format!("{} : {}", key(k), value(v))).collect();
    let _ = writeln!(out, "{verb} element {table} {map} {{ {} }}", list.join(", "));
}

fn address_key((address, protocol, port): &(IpAddr, Protocol, u16)) -> String {
    format!("{address} . {protocol} . {port}")
}

fn node_port_key((protocol, port): &(Protocol, u16)) -> String {
    format!("{protocol} . {port}")
}

/// `table` is named with its family.
fn write_port(out: &mut String, (family, table): (Family, &str), id: &str, before: Option<&Port>, port: &Port) {
    let _ = writeln!(out, "add chain {table} port_{id}\nflush chain {table} port_{id}");
    let (protocol, ip, address) = (port.protocol, family.keyword(), family.address_type());
    if let Some(seconds) = port.affinity {
        for target in &port.targets {
            let (chain, set) = (sticky_chain(id, target), sticky_set(id, target, seconds));
            let _ = writeln!(
                out,
                "add set {table} {set} {{ type {address}; flags dynamic, timeout; timeout {seconds}s; size {MAX_CLIENTS}; }}"
            );
            let _ = writeln!(out, "add chain {table} {chain}\nflush chain {table} {chain}");
            let _ = writeln!(out, "add rule {table} {chain} update @{set} {{ {ip} saddr }}");
            let _ = writeln!(out, "add rule {table} {chain} meta l4proto {protocol} dnat to {}", socket(target));
            let _ = writeln!(out, "add rule {table} port_{id} {ip} saddr @{set} goto {chain}");
        }
        let choices: Vec<String> =
            port.targets.iter().enumerate().map(|(i, t)| format!("{i} : goto {}", sticky_chain(id, t))).collect();
        let _ = writeln!(
            out,
            "add rule {table} port_{id} numgen random mod {} vmap {{ {} }}",
            choices.len(),
            choices.join(", ")
        );
    } else if let [target] = &port.targets[..] {
        let to = socket(target);
        let _ = writeln!(out, "add rule {table} port_{id} meta l4proto {protocol} dnat to {to}");
    } else {
        let choices: Vec<String> =
            port.targets.iter().enumerate().map(|(i, (a, p))| format!("{i} : {a} . {p}")).collect();
        let _ = writeln!(
            out,
            "add rule {table} port_{id} meta l4proto {protocol} dnat {ip} to numgen random mod {} map {{ {} }}",
            choices.len(),
            choices.join(", ")
        );
    }
    let Some(before) = before else { return };
    for target in &before.targets {
        let kept = port.affinity.is_some() && port.targets.contains(target);
        if !kept {
            drop_sticky(out, table, id, before, target);
        } else if let (Some(was), Some(now)) = (before.affinity, port.affinity)
            && was != now
        {
            let _ = writeln!(out, "delete set {table} {}", sticky_set(id, target, was));
        }
    }
}

fn drop_sticky(out: &mut String, table: &str, id: &str, port: &Port, target: &Target) {
    let Some(seconds) = port.affinity else { return };
    let (chain, set) = (sticky_chain(id, target), sticky_set(id, target, seconds));
    let _ = writeln!(out, "flush chain {table} {chain}\ndelete chain {table} {chain}\ndelete set {table} {set}");
}

fn sticky_chain(id: &str, (address, port): &Target) -> String {
    format!("to_{id}_{}_{port}", digits(address))
}

fn sticky_set(id: &str, (address, port): &Target, seconds: u32) -> String {
    format!("at_{id}_{}_{port}_{seconds}", digits(address))
}

/// An address without a letter that nft would not take in a name.
fn digits(address: &IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("{:08x}", u32::from(*v4)),
        IpAddr::V6(v6) => format!("{:032x}", u128::from(*v6)),
    }
}

/// With brackets around an address that has colons itself.
fn socket((address, port): &Target) -> std::net::SocketAddr {
    (*address, *port).into()
}
