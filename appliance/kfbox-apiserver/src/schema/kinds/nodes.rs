//! Nodes and runtime classes. Upstream: `ValidateNode` in `pkg/apis/core/validation`, `pkg/apis/node/validation`.

use std::net::IpAddr;

use serde_json::Value;

use super::{Check, element, limits, list, members, names, scheduling, text};

pub(super) fn node(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = value.get("spec").unwrap_or(&Value::Null);
    // Upstream reports taints under the metadata.
    scheduling::taints(c, spec, "metadata");
    for kind in ["capacity", "allocatable"] {
        for (name, amount) in members(value, &format!("/status/{kind}")) {
            limits::quantity_value(c, &format!("status.{kind}.{name}"), name, amount);
        }
    }
    let networks = list(spec, "/podCIDRs");
    for (at, network) in networks.iter().enumerate() {
        c.cidr(&element("spec", "podCIDRs", at), network.as_str().unwrap_or_default());
    }
    if networks.len() > 1 {
        let is_v4 = |n: &Value| {
            n.as_str().and_then(|n| n.split_once('/')).and_then(|(a, _)| a.parse::<IpAddr>().ok()).map(|a| a.is_ipv4())
        };
        if networks.len() > 2 || is_v4(&networks[0]) == is_v4(&networks[1]) {
            let why = "may specify no more than one CIDR for each IP family";
            c.invalid("spec.podCIDRs", networks.to_vec(), why);
        }
        for (at, network) in networks.iter().enumerate().filter(|(at, network)| networks[..*at].contains(network)) {
            c.duplicate(&element("spec", "podCIDRs", at), network.clone());
        }
    }
    let Some(old) = old else { return };
    let before = list(old, "/spec/podCIDRs");
    // Unlike upstream, a second family may come and go: here the node is told of it by a setting of its own machine.
    if !before.is_empty()
        && before != networks
        && (before.first() != networks.first() || before.len() == networks.len())
    {
        c.forbidden("spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid");
    }
    let provider = text(old, "/spec/providerID");
    if !provider.is_empty() && provider != text(spec, "/providerID") {
        c.forbidden("spec.providerID", "node updates may not change providerID except from \"\" to valid");
    }
}

pub(super) fn runtime_class(c: &mut Check, value: &Value, old: Option<&Value>) {
    c.holds("handler", text(value, "/handler"), names::dns_label);
    if let Some(old) = old {
        c.immutable(value, old, "handler");
    }
    for (name, amount) in members(value, "/overhead/podFixed") {
        limits::quantity_value(c, &super::key("overhead.podFixed", name), name, amount);
    }
    if let Some(scheduling) = value.get("scheduling") {
        c.label_map(scheduling.get("nodeSelector"), "scheduling.nodeSelector");
        scheduling::tolerations(c, scheduling, "scheduling");
    }
}
