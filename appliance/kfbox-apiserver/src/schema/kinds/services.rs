//! Services, endpoints, ingress, network policy.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::Value;

use super::super::formats;
use super::{Check, FieldError, element, join, list, names, text};

pub(super) fn service(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    let kind = text(spec, "/type");
    c.one_of(spec, "spec", "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    c.one_of(spec, "spec", "sessionAffinity", &["ClientIP", "None"]);
    c.one_of(spec, "spec", "externalTrafficPolicy", &["Cluster", "Local"]);
    c.one_of(spec, "spec", "internalTrafficPolicy", &["Cluster", "Local"]);
    let headless = text(spec, "/clusterIP") == "None";
    let ports = list(spec, "/ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        c.required("spec.ports", "");
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        c.invalid("spec.clusterIPs[0]", "None", &format!("may not be set to 'None' for {kind} services"));
    }
    if kind == "ExternalName" {
        let target = c.needs(spec, "spec", "externalName");
        if !target.is_empty() {
            c.holds("spec.externalName", target.trim_end_matches('.'), names::dns_subdomain);
        }
    }
    let (mut by_name, mut by_number) = (HashSet::new(), HashSet::new());
    for (at, port) in ports.iter().enumerate() {
        let path = element("spec", "ports", at);
        let name = text(port, "/name");
        if name.is_empty() {
            if ports.len() > 1 {
                c.required(&join(&path, "name"), "");
            }
        } else {
            c.holds(&join(&path, "name"), name, names::dns_label);
            if !by_name.insert(name) {
                c.push(FieldError::duplicate(&join(&path, "name"), &Value::from(name)));
            }
        }
        let number = port.get("port").and_then(Value::as_i64).unwrap_or(0);
        c.port(&join(&path, "port"), number);
        c.one_of(port, &path, "protocol", &["SCTP", "TCP", "UDP"]);
        if let Some(target) = port.get("targetPort") {
            c.port_or_name(&join(&path, "targetPort"), Some(target));
        }
        if !by_number.insert((text(port, "/protocol"), number)) {
            c.push(FieldError::duplicate(&path, port));
        }
        if let Some(node) = port.get("nodePort").and_then(Value::as_i64).filter(|n| *n != 0) {
            if kind == "ClusterIP" {
                c.forbidden(&join(&path, "nodePort"), "may not be used when `type` is 'ClusterIP'");
            } else {
                c.port(&join(&path, "nodePort"), node);
            }
        }
    }
    c.label_map(spec.get("selector"), "spec.selector");
    let address = text(spec, "/clusterIP");
    if !matches!(address, "" | "None") && address.parse::<IpAddr>().is_err() {
        c.invalid("spec.clusterIPs[0]", address, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
    for (at, address) in list(spec, "/externalIPs").iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        let parsed = address.parse::<IpAddr>();
        let field = element("spec", "externalIPs", at);
        match parsed {
            Err(_) => c.invalid(&field, address, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
            Ok(ip) if ip.is_loopback() => {
                c.invalid(&field, address, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
            }
            Ok(ip) if ip.is_unspecified() => c.invalid(&field, address, "may not be unspecified (0.0.0.0 or ::)"),
            Ok(_) => {}
        }
    }
    if let Some(old) = old {
        let was = text(old, "/spec/clusterIP");
        let keeps = kind != "ExternalName" && text(old, "/spec/type") != "ExternalName";
        if keeps && !was.is_empty() && was != address {
            let list = spec.get("clusterIPs").cloned().unwrap_or_else(|| Value::from(vec![address]));
            c.invalid("spec.clusterIPs[0]", list, "may not change once set");
        }
    }
}

pub(super) fn endpoints(c: &mut Check, value: &Value) {
    for (at, subset) in list(value, "/subsets").iter().enumerate() {
        let path = super::index("subsets", at);
        for kind in ["addresses", "notReadyAddresses"] {
            for (at, address) in list(subset, &format!("/{kind}")).iter().enumerate() {
                endpoint_address(c, &join(&element(&path, kind, at), "ip"), text(address, "/ip"));
            }
        }
        for (at, port) in list(subset, "/ports").iter().enumerate() {
            let number = port.get("port").and_then(Value::as_i64).unwrap_or(0);
            c.port(&join(&element(&path, "ports", at), "port"), number);
        }
    }
}

/// Endpoints that reach into the machine or its metadata service are refused: traffic to them would pass as the node's.
fn endpoint_address(c: &mut Check, field: &str, address: &str) {
    match address.parse::<IpAddr>() {
        Err(_) => c.invalid(field, address, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
        Ok(ip) if ip.is_unspecified() => c.invalid(field, address, "may not be unspecified (0.0.0.0 or ::)"),
        Ok(ip) if ip.is_loopback() => {
            c.invalid(field, address, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
        }
        Ok(IpAddr::V4(ip)) if ip.is_link_local() => {
            c.invalid(field, address, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
        }
        Ok(ip) if ip.is_multicast() => {
            c.invalid(field, address, "may not be in the multicast range (224.0.0.0/24, ff02::/10)")
        }
        Ok(_) => {}
    }
}

pub(super) fn endpoint_slice(c: &mut Check, value: &Value, old: Option<&Value>) {
    let kind = c.needs(value, "", "addressType");
    c.one_of(value, "", "addressType", &["FQDN", "IPv4", "IPv6"]);
    if list(value, "/endpoints").len() > 1000 {
        c.push(FieldError::too_many("endpoints", list(value, "/endpoints").len(), 1000));
    }
    for (at, endpoint) in list(value, "/endpoints").iter().enumerate() {
        let path = super::index("endpoints", at);
        if list(endpoint, "/addresses").is_empty() {
            c.required(&join(&path, "addresses"), "must contain at least 1 address");
        }
        for (at, address) in list(endpoint, "/addresses").iter().enumerate().filter(|_| kind != "FQDN") {
            endpoint_address(c, &element(&path, "addresses", at), address.as_str().unwrap_or_default());
        }
    }
    if let Some(old) = old {
        c.immutable(value, old, "addressType");
    }
}

pub(super) fn ingress(c: &mut Check, value: &Value) {
    let spec = &value["spec"];
    if list(spec, "/rules").is_empty() && spec.get("defaultBackend").is_none() {
        c.invalid("spec", spec.clone(), "either `defaultBackend` or `rules` must be specified");
    }
    for (at, rule) in list(spec, "/rules").iter().enumerate() {
        let path = join(&element("spec", "rules", at), "http");
        for (at, entry) in list(rule, "/http/paths").iter().enumerate() {
            let path = element(&path, "paths", at);
            let kind = c.needs(entry, &path, "pathType");
            c.one_of(entry, &path, "pathType", &["Exact", "ImplementationSpecific", "Prefix"]);
            let place = text(entry, "/path");
            if kind != "ImplementationSpecific" && !place.starts_with('/') {
                c.invalid(&join(&path, "path"), place, "must be an absolute path");
            }
            if let Some(service) = entry.pointer("/backend/service") {
                let path = join(&path, "backend.service");
                c.needs(service, &path, "name");
                if service.pointer("/port/name").is_none() && service.pointer("/port/number").is_none() {
                    c.required(&path, "port name or number is required");
                }
            }
        }
    }
}

pub(super) fn network_policy(c: &mut Check, value: &Value) {
    let spec = &value["spec"];
    c.selector(spec.get("podSelector"), "spec.podSelector");
    for (at, kind) in list(spec, "/policyTypes").iter().enumerate() {
        if kind != "Ingress" && kind != "Egress" {
            c.push(FieldError::not_supported(&element("spec", "policyTypes", at), kind, &["Egress", "Ingress"]));
        }
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (at, rule) in list(spec, &format!("/{direction}")).iter().enumerate() {
            let path = element("spec", direction, at);
            for (at, port) in list(rule, "/ports").iter().enumerate() {
                let path = element(&path, "ports", at);
                c.one_of(port, &path, "protocol", &["SCTP", "TCP", "UDP"]);
                if port.get("port").is_some() {
                    c.port_or_name(&join(&path, "port"), port.get("port"));
                }
            }
            for (at, peer) in list(rule, &format!("/{peers}")).iter().enumerate() {
                let path = element(&path, peers, at);
                let count = peer.as_object().map_or(0, serde_json::Map::len);
                if count == 0 {
                    c.required(&path, "must specify a peer");
                }
                if let Some(block) = peer.get("ipBlock") {
                    if count > 1 {
                        c.forbidden(&path, "may not specify both ipBlock and another peer");
                    }
                    let range = text(block, "/cidr");
                    if !formats::cidr(range) {
                        c.invalid(
                            &join(&path, "ipBlock.cidr"),
                            range,
                            "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                        );
                    }
                    for (at, except) in list(block, "/except").iter().enumerate() {
                        if !except.as_str().is_some_and(formats::cidr) {
                            let field = element(&join(&path, "ipBlock"), "except", at);
                            c.invalid(
                                &field,
                                except.clone(),
                                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                            );
                        }
                    }
                }
                c.selector(peer.get("podSelector"), &join(&path, "podSelector"));
                c.selector(peer.get("namespaceSelector"), &join(&path, "namespaceSelector"));
            }
        }
    }
}
