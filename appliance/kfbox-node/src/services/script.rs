//! Rules as scripts for nft: the whole table, or the difference between two states, each one transaction.

use super::desired::{Port, Protocol, Rules, Target};
use std::{collections::BTreeMap, fmt::Write as _, net::Ipv4Addr};

/// Clients remembered for session affinity, at one endpoint; bounds the kernel's memory.
const MAX_CLIENTS: u32 = 65_536;

/// Replaces the table, whatever was in it, by these rules.
pub fn replace(table: &str, gateway: Ipv4Addr, rules: &Rules) -> String {
    let mut script = format!(
        "add table ip {table}
delete table ip {table}
table ip {table} {{
  map addresses {{
    type ipv4_addr . inet_proto . inet_service : verdict
  }}
  map node_ports {{
    type inet_proto . inet_service : verdict
  }}
  set hairpins {{
    type ipv4_addr . ipv4_addr
  }}
  chain services {{
    ip daddr . meta l4proto . th dport vmap @addresses
    fib daddr type local meta l4proto . th dport vmap @node_ports
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
    ip saddr . ip daddr @hairpins snat to {gateway}
  }}
}}
"
    );
    script.push_str(&change(table, &Rules::default(), rules));
    script
}

/// Takes the table from one state to another; empty when they are equal.
pub fn change(table: &str, old: &Rules, new: &Rules) -> String {
    let mut script = String::new();
    let out = &mut script;
    // First what leads to a chain goes, then the chain; first a chain comes, then what leads to it.
    let goto = |id: &String| format!("goto port_{id}");
    elements(out, "delete", table, "addresses", &gone(&old.addresses, &new.addresses), address_key, goto);
    elements(out, "delete", table, "node_ports", &gone(&old.node_ports, &new.node_ports), node_port_key, goto);
    for (id, port) in &new.ports {
        match old.ports.get(id) {
            Some(before) if before == port => {}
            before => write_port(out, table, id, before, port),
        }
    }
    elements(out, "add", table, "addresses", &gone(&new.addresses, &old.addresses), address_key, goto);
    elements(out, "add", table, "node_ports", &gone(&new.node_ports, &old.node_ports), node_port_key, goto);
    for (id, port) in old.ports.iter().filter(|(id, _)| !new.ports.contains_key(*id)) {
        let _ = writeln!(out, "flush chain ip {table} port_{id}\ndelete chain ip {table} port_{id}");
        for target in &port.targets {
            drop_sticky(out, table, id, port, target);
        }
    }
    for (verb, addresses) in
        [("delete", old.hairpins.difference(&new.hairpins)), ("add", new.hairpins.difference(&old.hairpins))]
    {
        let pairs: Vec<String> = addresses.map(|a| format!("{a} . {a}")).collect();
        if !pairs.is_empty() {
            let _ = writeln!(out, "{verb} element ip {table} hairpins {{ {} }}", pairs.join(", "));
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
    let _ = writeln!(out, "{verb} element ip {table} {map} {{ {} }}", list.join(", "));
}

fn address_key((address, protocol, port): &(Ipv4Addr, Protocol, u16)) -> String {
    format!("{address} . {protocol} . {port}")
}

fn node_port_key((protocol, port): &(Protocol, u16)) -> String {
    format!("{protocol} . {port}")
}

fn write_port(out: &mut String, table: &str, id: &str, before: Option<&Port>, port: &Port) {
    let _ = writeln!(out, "add chain ip {table} port_{id}\nflush chain ip {table} port_{id}");
    let protocol = port.protocol;
    if let Some(seconds) = port.affinity {
        for target in &port.targets {
            let (chain, set) = (sticky_chain(id, target), sticky_set(id, target, seconds));
            let _ = writeln!(
                out,
                "add set ip {table} {set} {{ type ipv4_addr; flags dynamic, timeout; timeout {seconds}s; size {MAX_CLIENTS}; }}"
            );
            let _ = writeln!(out, "add chain ip {table} {chain}\nflush chain ip {table} {chain}");
            let _ = writeln!(out, "add rule ip {table} {chain} update @{set} {{ ip saddr }}");
            let _ =
                writeln!(out, "add rule ip {table} {chain} meta l4proto {protocol} dnat to {}:{}", target.0, target.1);
            let _ = writeln!(out, "add rule ip {table} port_{id} ip saddr @{set} goto {chain}");
        }
        let choices: Vec<String> =
            port.targets.iter().enumerate().map(|(i, t)| format!("{i} : goto {}", sticky_chain(id, t))).collect();
        let _ = writeln!(
            out,
            "add rule ip {table} port_{id} numgen random mod {} vmap {{ {} }}",
            choices.len(),
            choices.join(", ")
        );
    } else if let [(address, number)] = port.targets[..] {
        let _ = writeln!(out, "add rule ip {table} port_{id} meta l4proto {protocol} dnat to {address}:{number}");
    } else {
        let choices: Vec<String> =
            port.targets.iter().enumerate().map(|(i, (a, p))| format!("{i} : {a} . {p}")).collect();
        let _ = writeln!(
            out,
            "add rule ip {table} port_{id} meta l4proto {protocol} dnat ip to numgen random mod {} map {{ {} }}",
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
            let _ = writeln!(out, "delete set ip {table} {}", sticky_set(id, target, was));
        }
    }
}

fn drop_sticky(out: &mut String, table: &str, id: &str, port: &Port, target: &Target) {
    let Some(seconds) = port.affinity else { return };
    let (chain, set) = (sticky_chain(id, target), sticky_set(id, target, seconds));
    let _ =
        writeln!(out, "flush chain ip {table} {chain}\ndelete chain ip {table} {chain}\ndelete set ip {table} {set}");
}

fn sticky_chain(id: &str, (address, port): &Target) -> String {
    format!("to_{id}_{:08x}_{port}", u32::from(*address))
}

fn sticky_set(id: &str, (address, port): &Target, seconds: u32) -> String {
    format!("at_{id}_{:08x}_{port}_{seconds}", u32::from(*address))
}
