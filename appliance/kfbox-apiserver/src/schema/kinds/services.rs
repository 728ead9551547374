//! Services, endpoints, ingress, network policy. Upstream: `pkg/apis/core/validation`, `pkg/apis/discovery/validation`,
//! `pkg/apis/networking/validation`.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Check, FieldError, element, join, list, names, text};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

pub(super) fn service(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    let kind = text(spec, "/type");
    if let Some(old) = old {
        update(c, spec, &old["spec"]);
    }
    let headless = text(spec, "/clusterIP") == "None";
    let ports = list(spec, "/ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        c.required("spec.ports", "");
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        c.invalid("spec.clusterIPs[0]", "None", &format!("may not be set to 'None' for {kind} services"));
    }
    if kind == "ExternalName" {
        for name in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if spec.get(name).is_some_and(|v| v.as_array().is_none_or(|a| !a.is_empty())) {
                c.forbidden(&join("spec", name), "may not be set for ExternalName services");
            }
        }
        let target = c.needs(spec, "spec", "externalName");
        if !target.is_empty() {
            c.holds("spec.externalName", target.strip_suffix('.').unwrap_or(target), names::dns_subdomain);
        }
    }
    service_ports(c, ports);
    c.label_map(spec.get("selector"), "spec.selector");
    affinity(c, spec);
    addresses(c, spec);
    for (at, address) in list(spec, "/externalIPs").iter().enumerate() {
        plain_address(c, &element("spec", "externalIPs", at), address.as_str().unwrap_or_default());
    }
    c.exactly_one_of(spec, "spec", "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    taken_ports(c, ports, kind);
    load_balancer(c, spec, kind, old);
    let accessible =
        matches!(kind, "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && !list(spec, "/externalIPs").is_empty());
    let policy = text(spec, "/externalTrafficPolicy");
    if accessible {
        c.exactly_one_of(spec, "spec", "externalTrafficPolicy", &["Cluster", "Local"]);
    } else if !policy.is_empty() {
        let why = "may only be set for externally-accessible services";
        c.invalid("spec.externalTrafficPolicy", policy, why);
    }
    c.one_of(spec, "spec", "internalTrafficPolicy", &["Cluster", "Local"]);
    c.one_of(spec, "spec", "trafficDistribution", &["PreferClose", "PreferSameZone", "PreferSameNode"]);
}

fn update(c: &mut Check, spec: &Value, was: &Value) {
    let external = |spec: &Value| text(spec, "/type") == "ExternalName";
    if external(spec) || external(was) {
        return;
    }
    let (now, before) = (text(spec, "/clusterIP"), text(was, "/clusterIP"));
    let shown = spec.get("clusterIPs").cloned().unwrap_or_else(|| json!([now]));
    if !before.is_empty() && before != now {
        c.invalid("spec.clusterIPs[0]", shown.clone(), "may not change once set");
    }
    let headless = now == "None";
    for (field, what, shown) in
        [("clusterIPs", "clusterIP", shown), ("ipFamilies", "ipFamily", spec["ipFamilies"].clone())]
    {
        let (now, before) = (list(spec, &format!("/{field}")), list(was, &format!("/{field}")));
        if field == "ipFamilies"
            && let (Some(now), Some(before)) = (now.first(), before.first())
            && now != before
        {
            c.invalid("spec.ipFamilies[0]", shown.clone(), "may not change once set");
        }
        if let (Some(now), Some(before)) = (now.get(1), before.get(1))
            && now != before
        {
            c.invalid(&element("spec", field, 1), shown, "may not change once set");
        }
        let released = before.len() == 2 && now.len() == 1;
        if released && !headless && text(spec, "/ipFamilyPolicy") != "SingleStack" {
            let why = format!("must be set to 'SingleStack' when releasing the secondary {what}");
            c.invalid("spec.ipFamilyPolicy", text(spec, "/ipFamilyPolicy"), &why);
        }
    }
}

fn service_ports(c: &mut Check, ports: &[Value]) {
    let mut names_seen = HashSet::new();
    for (at, port) in ports.iter().enumerate() {
        let path = element("spec", "ports", at);
        let name = text(port, "/name");
        if name.is_empty() {
            if ports.len() > 1 {
                c.required(&join(&path, "name"), "");
            }
        } else {
            c.holds(&join(&path, "name"), name, names::dns_label);
            if !names_seen.insert(name) {
                c.duplicate(&join(&path, "name"), name);
            }
        }
        c.port(&join(&path, "port"), port.get("port").and_then(Value::as_i64).unwrap_or(0));
        c.exactly_one_of(port, &path, "protocol", PROTOCOLS);
        if let Some(target) = port.get("targetPort") {
            c.port_or_name(&join(&path, "targetPort"), Some(target));
        }
        if let Some(protocol) = port.get("appProtocol").and_then(Value::as_str) {
            c.holds(&join(&path, "appProtocol"), protocol, names::qualified);
        }
    }
}

/// The longest that a client may stick to its backend, in seconds: a day.
const MAX_AFFINITY: i64 = 86_400;

fn affinity(c: &mut Check, spec: &Value) {
    c.exactly_one_of(spec, "spec", "sessionAffinity", &["ClientIP", "None"]);
    let config = spec.get("sessionAffinityConfig");
    let path = "spec.sessionAffinityConfig";
    match text(spec, "/sessionAffinity") {
        "None" if config.is_some() => c.forbidden(path, "must not be set when session affinity is None"),
        "ClientIP" => {
            let field = join(path, "clientIP.timeoutSeconds");
            match spec.pointer("/sessionAffinityConfig/clientIP/timeoutSeconds").and_then(Value::as_i64) {
                None => c.required(&field, "when session affinity type is ClientIP"),
                Some(n) if !(1..=MAX_AFFINITY).contains(&n) => {
                    c.invalid(&field, n, &format!("must be greater than 0 and less than {MAX_AFFINITY}"));
                }
                Some(_) => {}
            }
        }
        _ => {}
    }
}

/// Also what holds between the addresses, the families and the policy.
pub(super) fn addresses(c: &mut Check, spec: &Value) {
    if text(spec, "/type") == "ExternalName" {
        return;
    }
    let (address, all) = (text(spec, "/clusterIP"), list(spec, "/clusterIPs"));
    if let Some(first) = all.first() {
        if address.is_empty() {
            c.invalid("spec.clusterIPs", all.to_vec(), "must be empty when `clusterIP` is not specified");
        } else if first != address {
            c.invalid("spec.clusterIPs", all.to_vec(), "first value must match `clusterIP`");
        }
    }
    if all.len() > 2 {
        c.invalid("spec.clusterIPs", all.to_vec(), "may only hold up to 2 values");
    }
    let mut seen = HashSet::new();
    let families = list(spec, "/ipFamilies");
    for (at, family) in families.iter().enumerate() {
        let field = element("spec", "ipFamilies", at);
        if family != "IPv4" && family != "IPv6" {
            c.not_supported(&field, family, &["IPv4", "IPv6"]);
        }
        if !seen.insert(family.as_str()) {
            c.duplicate(&field, family.clone());
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    c.one_of(spec, "spec", "ipFamilyPolicy", &policies);
    let given: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
    let given = if given.is_empty() && !address.is_empty() { vec![address] } else { given };
    if given.len() > 1 && given.contains(&"None") {
        c.invalid("spec.clusterIPs", all.to_vec(), "'None' must be the first and only value");
        return;
    }
    let mut of = Vec::new();
    for (at, address) in given.iter().enumerate().filter(|(_, address)| **address != "None") {
        let field = element("spec", "clusterIPs", at);
        let Some(ip) = c.ip(&field, address) else { continue };
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        of.push(family);
        if let Some(wanted) = families.get(at).and_then(Value::as_str)
            && wanted != family
        {
            let why = format!("expected an {wanted} value as indicated by `ipFamilies[{at}]`");
            c.invalid(&field, *address, &why);
        }
    }
    if let [first, second] = of[..]
        && first == second
    {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.1 and 2001:db8::1";
        c.invalid("spec.clusterIPs", all.to_vec(), why);
    }
    if text(spec, "/ipFamilyPolicy") == "SingleStack" {
        let field = "spec.ipFamilyPolicy";
        for (many, what) in [(given.len() == 2, "clusterIPs"), (families.len() == 2, "ipFamilies")] {
            if many {
                let why = format!("must be RequireDualStack or PreferDualStack when multiple '{what}' are specified");
                c.invalid(field, "SingleStack", &why);
            }
        }
    }
}

fn taken_ports(c: &mut Check, ports: &[Value], kind: &str) {
    let number = |port: &Value, name: &str| port.get(name).and_then(Value::as_i64).unwrap_or(0);
    let (mut nodes, mut own) = (HashSet::new(), HashSet::new());
    for (at, port) in ports.iter().enumerate() {
        let node = number(port, "nodePort");
        if node != 0 {
            let field = join(&element("spec", "ports", at), "nodePort");
            if kind == "ClusterIP" {
                c.forbidden(&field, "may not be used when `type` is 'ClusterIP'");
            }
            if !nodes.insert((text(port, "/protocol"), node)) {
                c.duplicate(&field, node);
            }
        }
    }
    for (at, port) in ports.iter().enumerate() {
        let protocol = text(port, "/protocol");
        let one = number(port, "port");
        if !own.insert((protocol, one)) {
            // As Go writes the type.
            let shown = json!({"name": "", "protocol": protocol, "port": one, "targetPort": 0});
            c.duplicate(&element("spec", "ports", at), shown);
        }
    }
}

fn load_balancer(c: &mut Check, spec: &Value, kind: &str, old: Option<&Value>) {
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let ranges = list(spec, "/loadBalancerSourceRanges");
    if !ranges.is_empty() && kind != "LoadBalancer" {
        c.forbidden("spec.LoadBalancerSourceRanges", ONLY);
    }
    for (at, range) in ranges.iter().enumerate() {
        c.cidr(&element("spec", "LoadBalancerSourceRanges", at), range.as_str().unwrap_or_default().trim());
    }
    if kind != "LoadBalancer" && spec.get("allocateLoadBalancerNodePorts").is_some() {
        c.forbidden("spec.allocateLoadBalancerNodePorts", ONLY);
    }
    let class = spec.get("loadBalancerClass");
    if let Some(class) = class.and_then(Value::as_str) {
        if kind == "LoadBalancer" {
            c.holds("spec.loadBalancerClass", class, names::qualified);
        } else {
            c.forbidden("spec.loadBalancerClass", ONLY);
        }
    }
    if let Some(old) = old
        && kind == "LoadBalancer"
        && text(old, "/spec/type") == "LoadBalancer"
        && old.pointer("/spec/loadBalancerClass") != class
    {
        c.invalid("spec.loadBalancerClass", class.cloned().unwrap_or_default(), "may not change once set");
    }
}

pub(super) fn endpoints(c: &mut Check, value: &Value) {
    for (at, subset) in list(value, "/subsets").iter().enumerate() {
        let path = super::index("subsets", at);
        if list(subset, "/addresses").is_empty() && list(subset, "/notReadyAddresses").is_empty() {
            c.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for kind in ["addresses", "notReadyAddresses"] {
            for (at, address) in list(subset, &format!("/{kind}")).iter().enumerate() {
                let path = element(&path, kind, at);
                plain_address(c, &join(&path, "ip"), text(address, "/ip"));
                for (name, rule) in [("hostname", names::dns_label as names::Rule), ("nodeName", names::dns_subdomain)]
                {
                    let word = text(address, &format!("/{name}"));
                    if !word.is_empty() {
                        c.holds(&join(&path, name), word, rule);
                    }
                }
            }
        }
        let ports = list(subset, "/ports");
        for (at, port) in ports.iter().enumerate() {
            let path = element(&path, "ports", at);
            let name = text(port, "/name");
            if name.is_empty() {
                if ports.len() > 1 {
                    c.required(&join(&path, "name"), "");
                }
            } else {
                c.holds(&join(&path, "name"), name, names::dns_label);
            }
            c.port(&join(&path, "port"), port.get("port").and_then(Value::as_i64).unwrap_or(0));
            c.exactly_one_of(port, &path, "protocol", PROTOCOLS);
        }
    }
}

/// Addresses that reach into the machine or its metadata service are refused: traffic to them would pass as the node's.
fn plain_address(c: &mut Check, field: &str, address: &str) {
    let Some(ip) = c.ip(field, address) else { return };
    if ip.is_unspecified() {
        c.invalid(field, address, &format!("may not be unspecified ({address})"));
    }
    if ip.is_loopback() {
        c.invalid(field, address, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (local, group) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (ip.segments()[0] & 0xffc0 == 0xfe80, ip.segments()[0] & 0xff0f == 0xff02),
    };
    if local {
        c.invalid(field, address, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if group {
        c.invalid(field, address, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// What one slice, and one endpoint in it, may hold.
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;

pub(super) fn endpoint_slice(c: &mut Check, value: &Value, old: Option<&Value>) {
    let kind = text(value, "/addressType");
    c.exactly_one_of(value, "", "addressType", &["FQDN", "IPv4", "IPv6"]);
    let all = list(value, "/endpoints");
    if all.len() > MAX_ENDPOINTS {
        c.push(FieldError::too_many("endpoints", all.len(), MAX_ENDPOINTS));
    }
    for (at, endpoint) in all.iter().enumerate().take(MAX_ENDPOINTS) {
        let path = super::index("endpoints", at);
        let addresses = list(endpoint, "/addresses");
        if addresses.is_empty() {
            c.required(&join(&path, "addresses"), "must contain at least 1 address");
        } else if addresses.len() > MAX_ADDRESSES {
            c.push(FieldError::too_many(&join(&path, "addresses"), addresses.len(), MAX_ADDRESSES));
        }
        for (at, address) in addresses.iter().enumerate() {
            let (field, address) = (element(&path, "addresses", at), address.as_str().unwrap_or_default());
            match (kind, address.parse::<IpAddr>()) {
                ("FQDN", _) => c.holds(&field, address, names::dns_subdomain),
                ("IPv4", Ok(IpAddr::V6(_)) | Err(_)) => c.invalid(&field, address, "must be an IPv4 address"),
                ("IPv6", Ok(IpAddr::V4(_)) | Err(_)) => c.invalid(&field, address, "must be an IPv6 address"),
                _ => plain_address(c, &field, address),
            }
        }
        for (name, rule) in [("nodeName", names::dns_subdomain as names::Rule), ("hostname", names::dns_label)] {
            if let Some(word) = endpoint.get(name).and_then(Value::as_str) {
                c.holds(&join(&path, name), word, rule);
            }
        }
    }
    let ports = list(value, "/ports");
    if ports.len() > MAX_PORTS {
        c.push(FieldError::too_many("ports", ports.len(), MAX_PORTS));
    }
    let mut names_seen = HashSet::new();
    for (at, port) in ports.iter().enumerate().take(MAX_PORTS) {
        let path = super::index("ports", at);
        let name = text(port, "/name");
        if !name.is_empty() {
            c.holds(&join(&path, "name"), name, names::dns_label);
        }
        if !names_seen.insert(name) {
            c.duplicate(&join(&path, "name"), name);
        }
        c.exactly_one_of(port, &path, "protocol", PROTOCOLS);
    }
    if let Some(old) = old {
        c.immutable(value, old, "addressType");
    }
}

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

pub(super) fn ingress(c: &mut Check, value: &Value, old: Option<&Value>) {
    let spec = &value["spec"];
    let rules = list(spec, "/rules");
    if rules.is_empty() && spec.get("defaultBackend").is_none() {
        let why = "either `defaultBackend` or `rules` must be specified";
        c.invalid("spec", spec.get("rules").cloned().unwrap_or_default(), why);
    }
    if let Some(backend) = spec.get("defaultBackend") {
        check_backend(c, backend, "spec.defaultBackend");
    }
    for (at, rule) in rules.iter().enumerate() {
        let path = element("spec", "rules", at);
        let host = text(rule, "/host");
        if !host.is_empty() {
            if host.parse::<IpAddr>().is_ok() {
                c.invalid(&join(&path, "host"), host, "must be a DNS name, not an IP address");
            }
            host_name(c, &join(&path, "host"), host);
        }
        let Some(http) = rule.get("http") else { continue };
        let path = join(&path, "http");
        if list(http, "/paths").is_empty() {
            c.required(&join(&path, "paths"), "");
        }
        for (at, entry) in list(http, "/paths").iter().enumerate() {
            http_path(c, entry, &element(&path, "paths", at));
        }
    }
    for (at, tls) in list(spec, "/tls").iter().enumerate() {
        let path = element("spec", "tls", at);
        for (at, host) in list(tls, "/hosts").iter().enumerate() {
            host_name(c, &element(&path, "hosts", at), host.as_str().unwrap_or_default());
        }
        let secret = text(tls, "/secretName");
        if !secret.is_empty() {
            c.holds(&join(&path, "secretName"), secret, names::dns_subdomain);
        }
    }
    let class = spec.get("ingressClassName").and_then(Value::as_str);
    if let Some(class) = class {
        c.holds("spec.ingressClassName", class, names::dns_subdomain);
    }
    let annotated =
        value.pointer("/metadata/annotations").and_then(|a| a.get(CLASS_ANNOTATION)).and_then(Value::as_str);
    if let (None, Some(class), Some(annotated)) = (old, class, annotated)
        && class != annotated
    {
        let why = "must match `ingressClassName` when both are specified";
        c.invalid(&join("annotations", CLASS_ANNOTATION), annotated, why);
    }
}

fn host_name(c: &mut Check, field: &str, host: &str) {
    c.holds(field, host, if host.contains('*') { names::wildcard_subdomain } else { names::dns_subdomain });
}

fn http_path(c: &mut Check, entry: &Value, path: &str) {
    let (kind, place) = (text(entry, "/pathType"), text(entry, "/path"));
    let field = join(path, "path");
    match kind {
        "" => c.required(&join(path, "pathType"), "pathType must be specified"),
        "Exact" | "Prefix" => {
            if !place.starts_with('/') {
                c.invalid(&field, place, "must be an absolute path");
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"] {
                if place.contains(part) {
                    c.invalid(&field, place, &format!("must not contain '{part}'"));
                }
            }
            for end in ["/..", "/."] {
                if place.ends_with(end) {
                    c.invalid(&field, place, &format!("cannot end with '{end}'"));
                }
            }
        }
        "ImplementationSpecific" => {
            if !place.is_empty() && !place.starts_with('/') {
                c.invalid(&field, place, "must be an absolute path");
            }
        }
        other => {
            let known = ["Exact", "ImplementationSpecific", "Prefix"];
            c.not_supported(&join(path, "pathType"), &Value::from(other), &known);
        }
    }
    check_backend(c, entry.get("backend").unwrap_or(&Value::Null), &join(path, "backend"));
}

fn check_backend(c: &mut Check, backend: &Value, path: &str) {
    match (backend.get("resource"), backend.get("service")) {
        (Some(_), Some(_)) => c.invalid(path, "", "cannot set both resource and service backends"),
        (None, None) => c.invalid(path, "", "resource or service backend is required"),
        (Some(resource), None) => {
            for name in ["kind", "name"] {
                c.named(resource, &join(path, "resource"), name, names::path_segment);
            }
        }
        (None, Some(service)) => {
            c.named(service, &join(path, "service"), "name", names::dns_label);
            let name = text(service, "/port/name");
            let number = service.pointer("/port/number").and_then(Value::as_i64).unwrap_or(0);
            match (name.is_empty(), number) {
                (false, 1..) => c.invalid(path, "", "cannot set both port name & port number"),
                (false, _) => c.holds(&join(path, "service.port.name"), name, names::port_name),
                (true, 0) => c.required(path, "port name or number is required"),
                (true, number) => c.port(&join(path, "service.port.number"), number),
            }
        }
    }
}

/// The longest name of a controller.
const MAX_CONTROLLER: usize = 250;

pub(super) fn ingress_class(c: &mut Check, value: &Value, old: Option<&Value>) {
    let controller = text(value, "/spec/controller");
    if controller.len() > MAX_CONTROLLER {
        c.push(FieldError::too_long("spec.controller", MAX_CONTROLLER));
    }
    c.domain_prefixed_path("spec.controller", controller);
    if let Some(parameters) = value.pointer("/spec/parameters") {
        let path = "spec.parameters";
        for name in ["kind", "name"] {
            c.named(parameters, path, name, names::path_segment);
        }
        c.one_of(parameters, path, "scope", &["Cluster", "Namespace"]);
        let namespace = text(parameters, "/namespace");
        match text(parameters, "/scope") {
            "Namespace" if namespace.is_empty() => {
                c.required(&join(path, "namespace"), "`parameters.scope` is set to 'Namespace'");
            }
            "Cluster" if !namespace.is_empty() => {
                c.forbidden(&join(path, "namespace"), "`parameters.scope` is set to 'Cluster'");
            }
            _ => {}
        }
    }
    if let Some(old) = old {
        c.immutable(value, old, "spec.controller");
    }
}

pub(super) fn network_policy(c: &mut Check, value: &Value) {
    let spec = &value["spec"];
    c.selector(spec.get("podSelector"), "spec.podSelector");
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (at, rule) in list(spec, &format!("/{direction}")).iter().enumerate() {
            let path = element("spec", direction, at);
            for (at, port) in list(rule, "/ports").iter().enumerate() {
                policy_port(c, port, &element(&path, "ports", at));
            }
            for (at, peer) in list(rule, &format!("/{peers}")).iter().enumerate() {
                policy_peer(c, peer, &element(&path, peers, at));
            }
        }
    }
    let types = list(spec, "/policyTypes");
    if types.len() > 2 {
        return c.invalid("spec.policyTypes", types.to_vec(), "may not specify more than two policyTypes");
    }
    for (at, kind) in types.iter().enumerate().filter(|(_, kind)| *kind != "Ingress" && *kind != "Egress") {
        c.not_supported(&element("spec", "policyTypes", at), kind, &["Ingress", "Egress"]);
    }
}

fn policy_port(c: &mut Check, port: &Value, path: &str) {
    c.one_of(port, path, "protocol", &["TCP", "UDP", "SCTP"]);
    let end = port.get("endPort").and_then(Value::as_i64);
    let field = join(path, "endPort");
    if port.get("port").is_some() {
        c.port_or_name(&join(path, "port"), port.get("port"));
    }
    let Some(end) = end else { return };
    match port.get("port") {
        None => c.invalid(&field, end, "may not be specified when `port` is not specified"),
        Some(Value::Number(first)) => {
            if first.as_i64().is_some_and(|first| end < first) {
                c.invalid(&field, end, "must be greater than or equal to `port`");
            }
            c.port(&field, end);
        }
        Some(_) => c.invalid(&field, end, "may not be specified when `port` is non-numeric"),
    }
}

fn policy_peer(c: &mut Check, peer: &Value, path: &str) {
    let count = peer.as_object().map_or(0, serde_json::Map::len);
    c.selector(peer.get("podSelector"), &join(path, "podSelector"));
    c.selector(peer.get("namespaceSelector"), &join(path, "namespaceSelector"));
    if let Some(block) = peer.get("ipBlock") {
        let path = join(path, "ipBlock");
        let range = text(block, "/cidr");
        if range.is_empty() {
            c.required(&join(&path, "cidr"), "");
        } else if c.cidr(&join(&path, "cidr"), range) {
            for (at, except) in list(block, "/except").iter().enumerate() {
                let (field, except) = (element(&path, "except", at), except.as_str().unwrap_or_default());
                if c.cidr(&field, except) && !is_within(except, range) {
                    c.invalid(&field, except, "must be a strict subset of `cidr`");
                }
            }
        }
        if count > 1 {
            c.forbidden(path.trim_end_matches(".ipBlock"), "may not specify both ipBlock and another peer");
        }
    }
    if count == 0 {
        c.required(path, "must specify a peer");
    }
}

/// Whether a network lies in another and is smaller.
fn is_within(inner: &str, outer: &str) -> bool {
    let read = |text: &str| -> Option<(bool, u128, u32)> {
        let (address, bits) = text.split_once('/')?;
        let bits: u32 = bits.parse().ok()?;
        Some(match address.parse().ok()? {
            IpAddr::V4(ip) => (true, u128::from(u32::from(ip)) << 96, bits),
            IpAddr::V6(ip) => (false, u128::from(ip), bits),
        })
    };
    let (Some(inner), Some(outer)) = (read(inner), read(outer)) else { return false };
    let mask = u128::MAX.checked_shl(128 - outer.2).unwrap_or(0);
    inner.0 == outer.0 && inner.2 > outer.2 && inner.1 & mask == outer.1 & mask
}
