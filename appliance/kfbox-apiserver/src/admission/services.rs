//! Addresses and ports of Services (`pkg/registry/core/service/storage/alloc.go`), of one family or both.

use super::{Request, service_families};
use crate::{object::meta, schema::FieldError, status::ApiError, verbs::Call};
use kfbox_base::ResourceAttributes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

/// Of an IPv6 network, addresses are chosen among the first so many: enough, and short to read.
const CHOSEN_FROM: u128 = 1 << 16;

/// The Service networks, and what is being given out at this moment.
pub struct Addresses {
    first: u32,
    last: u32,
    /// The IPv6 network's, where there is one.
    second: Option<(u128, u128)>,
    kept: Vec<Ipv4Addr>,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<u16>,
}

/// Holds an address or port from its choice until its Service is stored.
pub struct Reservation {
    addresses: Arc<Addresses>,
    what: Reserved,
}

enum Reserved {
    Address(IpAddr),
    Port(u16),
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut pending = self.addresses.pending.lock();
        match self.what {
            Reserved::Address(address) => pending.addresses.remove(&address),
            Reserved::Port(port) => pending.ports.remove(&port),
        };
    }
}

impl Addresses {
    /// `kept` are given out only when asked for by name.
    pub fn new(cidr: &str, kept: &[Ipv4Addr]) -> Option<Self> {
        let (network, bits) = cidr.split_once('/')?;
        let (network, bits): (Ipv4Addr, u32) = (network.parse().ok()?, bits.parse().ok()?);
        if !(8..=29).contains(&bits) {
            return None;
        }
        let mask = u32::MAX << (32 - bits);
        let base = u32::from(network) & mask;
        let (first, last) = (base + 1, (base | !mask) - 1);
        Some(Self { first, last, second: None, kept: kept.to_vec(), pending: Mutex::default() })
    }

    /// Adds the IPv6 network.
    pub fn with_second(self, cidr: &str) -> Option<Self> {
        let (network, bits) = cidr.split_once('/')?;
        let (network, bits): (Ipv6Addr, u32) = (network.parse().ok()?, bits.parse().ok()?);
        if !(8..=125).contains(&bits) {
            return None;
        }
        let mask = u128::MAX << (128 - bits);
        let base = u128::from(network) & mask;
        // IPv6 has no broadcast address.
        Some(Self { second: Some((base + 1, base | !mask)), ..self })
    }

    pub fn is_dual(&self) -> bool {
        self.second.is_some()
    }

    fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => (self.first..=self.last).contains(&u32::from(v4)),
            IpAddr::V6(v6) => self.second.is_some_and(|(first, last)| (first..=last).contains(&u128::from(v6))),
        }
    }

    /// One of the family that is free, from anywhere: a just freed address, which clients may still remember, rarely comes
    /// back at once.
    fn choose(&self, family: &str, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let free = |address: &IpAddr| !taken.contains(address);
        if family == "IPv6" {
            let (first, last) = self.second?;
            let size = (last - first).saturating_add(1).min(CHOSEN_FROM);
            let start = rand::random_range(0..size);
            return (0..size).map(|n| Ipv6Addr::from(first + (start + n) % size).into()).find(free);
        }
        let size = self.last - self.first + 1;
        let start = rand::random_range(0..size);
        let all = (0..size).map(|n| Ipv4Addr::from(self.first + (start + n) % size));
        all.filter(|address| !self.kept.contains(address)).map(IpAddr::V4).find(free)
    }
}

pub fn on_create(call: &Call, object: &mut Value) -> Result<Vec<Reservation>, ApiError> {
    object["status"] = json!({"loadBalancer": {}});
    assign(call, object, None)
}

/// What was given out stays, unless the type no longer has it.
pub fn on_update(call: &Call, old: &Value, new: &mut Value) -> Result<Vec<Reservation>, ApiError> {
    drop_type_dependent(old, new);
    let both_have_addresses = has_address(old) && has_address(new);
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if both_have_addresses
            && (new["spec"][field].is_null() || new["spec"][field] == "")
            && !old["spec"][field].is_null()
        {
            new["spec"][field] = old["spec"][field].clone();
        }
    }
    if both_have_addresses && old["spec"]["clusterIP"] != new["spec"]["clusterIP"] {
        let error = FieldError::invalid("spec.clusterIPs[0]", &new["spec"]["clusterIP"], "may not change once set");
        return Err(ApiError::invalid("", "Service", meta(old, "name"), &[error]));
    }
    let given: Vec<Value> = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    if has_node_ports(new) {
        for port in ports_mut(new) {
            if port["nodePort"].as_u64().unwrap_or(0) == 0
                && let Some(before) =
                    given.iter().find(|p| p["port"] == port["port"] && p["protocol"] == port["protocol"])
                && !before["nodePort"].is_null()
            {
                port["nodePort"] = before["nodePort"].clone();
            }
        }
    } else {
        for port in ports_mut(new) {
            if let Some(port) = port.as_object_mut() {
                port.remove("nodePort");
            }
        }
    }
    assign(call, new, Some(old))
}

/// What only the old type had and the client merely sent back (`dropTypeDependentFields`).
fn drop_type_dependent(old: &Value, new: &mut Value) {
    let outside = |o: &Value| has_node_ports(o) || service_type(o) == "LoadBalancer" || has_external_addresses(o);
    let balanced = |o: &Value| service_type(o) == "LoadBalancer";
    let mut gone = Vec::new();
    if outside(old) && !outside(new) {
        gone.push("externalTrafficPolicy");
    }
    if balanced(old) && !balanced(new) {
        gone.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass", "healthCheckNodePort"]);
    }
    for field in gone {
        if new["spec"][field] == old["spec"][field]
            && let Some(spec) = new["spec"].as_object_mut()
        {
            spec.remove(field);
        }
    }
}

/// Whoever may name any address in `spec.externalIPs` gets the traffic that all pods send there (CVE-2020-8554). Upstream
/// lets everybody, or with DenyServiceExternalIPs nobody; here those who could have the same by writing a load balancer's
/// address into the status. What is there already may stay.
pub fn external_addresses(request: &Request, new: &Value) -> Result<(), ApiError> {
    if !request.is("services") {
        return Ok(());
    }
    let given = |o: &Value| o["spec"]["externalIPs"].as_array().cloned().unwrap_or_default();
    let before = request.old.map(given).unwrap_or_default();
    if given(new).iter().all(|address| before.contains(address)) {
        return Ok(());
    }
    let call = request.call;
    let mut wanted = ResourceAttributes::namespaced("update", "", "services", call.namespace()).named(&request.name);
    wanted.subresource = "status".into();
    if call.core.rbac.authorize(&call.user, &wanted).is_allowed() {
        return Ok(());
    }
    Err(request.forbid("Use of external IPs is denied by admission control.".into()))
}

fn has_external_addresses(object: &Value) -> bool {
    service_type(object) == "ClusterIP" && object["spec"]["externalIPs"].as_array().is_some_and(|a| !a.is_empty())
}

fn service_type(object: &Value) -> &str {
    object["spec"]["type"].as_str().filter(|t| !t.is_empty()).unwrap_or("ClusterIP")
}

fn has_address(object: &Value) -> bool {
    service_type(object) != "ExternalName"
}

fn has_node_ports(object: &Value) -> bool {
    matches!(service_type(object), "NodePort")
        || (service_type(object) == "LoadBalancer" && object["spec"]["allocateLoadBalancerNodePorts"] != false)
}

fn assign(call: &Call, object: &mut Value, old: Option<&Value>) -> Result<Vec<Reservation>, ApiError> {
    let name = meta(object, "name").to_owned();
    let mut reservations = Vec::new();
    if !has_address(object) {
        if let Some(spec) = object["spec"].as_object_mut() {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                spec.remove(field);
            }
        }
        return Ok(reservations);
    }
    let before = old.filter(|old| has_address(old)).map(|old| &old["spec"]);
    let refused = |errors: &[FieldError]| ApiError::invalid("", "Service", &name, errors);
    service_families::decide(&mut object["spec"], before, call.core.addresses.is_dual())
        .map_err(|errors| refused(&errors))?;
    if object["spec"]["clusterIP"] != "None" {
        let strings = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let asked = strings(&object["spec"]["clusterIPs"]);
        let had = before.map(|spec| strings(&spec["clusterIPs"])).unwrap_or_default();
        let mut given = Vec::new();
        for (at, family) in strings(&object["spec"]["ipFamilies"]).iter().enumerate() {
            if let Some(same) = asked.get(at).filter(|asked| had.get(at) == Some(*asked)) {
                given.push(same.clone());
                continue;
            }
            let wanted = match asked.get(at).map(|text| text.parse::<IpAddr>()) {
                Some(Ok(address)) if call.core.addresses.contains(address) => Some(address),
                Some(_) => {
                    let why = "failed to allocate IP: the provided IP is not in the valid range";
                    return Err(refused(&[FieldError::invalid("spec.clusterIPs", &json!(asked), why)]));
                }
                // What was stored with both families, when the cluster had both, is left alone.
                None if family == "IPv6" && !call.core.addresses.is_dual() => continue,
                None => None,
            };
            let (address, reservation) = reserve_address(call, family, wanted)?;
            given.push(address.to_string());
            reservations.push(reservation);
        }
        object["spec"]["clusterIP"] = given.first().cloned().unwrap_or_default().into();
        object["spec"]["clusterIPs"] = json!(given);
    }

    if has_node_ports(object) {
        let had: BTreeSet<u64> = old
            .and_then(|o| o["spec"]["ports"].as_array())
            .into_iter()
            .flatten()
            .filter_map(|p| p["nodePort"].as_u64())
            .collect();
        let mut taken = None;
        for port in ports_mut(object) {
            let asked = port["nodePort"].as_u64().unwrap_or(0);
            if asked != 0 && had.contains(&asked) {
                continue;
            }
            let taken = taken.get_or_insert_with(|| node_ports_taken(call));
            let (number, reservation) = reserve_port(call, &name, u16::try_from(asked).unwrap_or(0), taken)?;
            port["nodePort"] = number.into();
            reservations.push(reservation);
        }
    }
    Ok(reservations)
}

fn reserve_address(call: &Call, family: &str, asked: Option<IpAddr>) -> Result<(IpAddr, Reservation), ApiError> {
    let addresses = &call.core.addresses;
    let mut pending = addresses.pending.lock();
    let stored = call.core.store.list("services", None, None, None)?;
    let taken: BTreeSet<IpAddr> = stored
        .objects
        .iter()
        .flat_map(|o| o.fields.iter().take(2).filter_map(|field| field.parse().ok()))
        .chain(pending.addresses.iter().copied())
        .collect();
    let address = match asked {
        Some(asked) if taken.contains(&asked) => {
            let error = FieldError::invalid(
                "spec.clusterIPs",
                &json!([asked.to_string()]),
                "failed to allocate IP: provided IP is already allocated",
            );
            return Err(ApiError::invalid("", "Service", &call.target.name, &[error]));
        }
        Some(asked) => asked,
        None => addresses
            .choose(family, &taken)
            .ok_or_else(|| ApiError::internal("failed to allocate a serviceIP: range is full"))?,
    };
    pending.addresses.insert(address);
    drop(pending);
    Ok((address, Reservation { addresses: addresses.clone(), what: Reserved::Address(address) }))
}

fn node_ports_taken(call: &Call) -> BTreeSet<u16> {
    let Ok(stored) = call.core.store.list("services", None, None, None) else { return BTreeSet::new() };
    let with_ports =
        stored.objects.iter().filter(|o| matches!(o.fields.get(2).map(|t| &**t), Some("NodePort" | "LoadBalancer")));
    with_ports
        .flat_map(|o| o.value()["spec"]["ports"].as_array().cloned().unwrap_or_default())
        .filter_map(|p| p["nodePort"].as_u64().and_then(|n| u16::try_from(n).ok()))
        .collect()
}

fn reserve_port(
    call: &Call,
    name: &str,
    asked: u16,
    taken: &mut BTreeSet<u16>,
) -> Result<(u16, Reservation), ApiError> {
    let addresses = &call.core.addresses;
    let mut pending = addresses.pending.lock();
    let free = |port: &u16| !taken.contains(port) && !pending.ports.contains(port);
    let number = if asked == 0 {
        let start = rand::random_range(NODE_PORTS);
        (start..=*NODE_PORTS.end())
            .chain(*NODE_PORTS.start()..start)
            .find(free)
            .ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))?
    } else {
        let why = if !NODE_PORTS.contains(&asked) {
            Some("provided port is not in the valid range. The range of valid ports is 30000-32767")
        } else if !free(&asked) {
            Some("provided port is already allocated")
        } else {
            None
        };
        if let Some(why) = why {
            let error = FieldError::invalid("spec.ports[0].nodePort", &json!(asked), why);
            return Err(ApiError::invalid("", "Service", name, &[error]));
        }
        asked
    };
    pending.ports.insert(number);
    taken.insert(number);
    drop(pending);
    Ok((number, Reservation { addresses: addresses.clone(), what: Reserved::Port(number) }))
}

/// Not by index: that would store a null for a list that is absent.
fn ports_mut(service: &mut Value) -> impl Iterator<Item = &mut Value> {
    service.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_gives_out_its_hosts_only() {
        let addresses = Addresses::new("10.96.0.0/16", &[]).unwrap();
        let holds = |addresses: &Addresses, text: &str| addresses.contains(text.parse().unwrap());
        assert!(holds(&addresses, "10.96.0.1") && holds(&addresses, "10.96.255.254"));
        assert!(!holds(&addresses, "10.96.255.255") && !holds(&addresses, "10.97.0.1"));
        assert!(!holds(&addresses, "fd00::1") && !addresses.is_dual());
        let addresses = addresses.with_second("fd00::/125").unwrap();
        assert!(holds(&addresses, "fd00::1") && holds(&addresses, "fd00::7") && holds(&addresses, "10.96.0.1"));
        assert!(!holds(&addresses, "fd00::") && !holds(&addresses, "fd00::8"));
        let mut taken = BTreeSet::new();
        while let Some(address) = addresses.choose("IPv6", &taken) {
            assert!(taken.insert(address));
        }
        assert_eq!(taken.len(), 7);
        let whole = Addresses::new("10.96.0.0/16", &[]).unwrap().with_second("fd00::/8").unwrap();
        assert!(whole.choose("IPv6", &BTreeSet::new()).is_some());
        assert!(Addresses::new("10.96.0.0/16", &[]).unwrap().with_second("10.0.0.0/8").is_none());
        assert!(Addresses::new("10.96.0.0", &[]).is_none());
        assert!(Addresses::new("fd00::/64", &[]).is_none());
    }
}
