//! Addresses and ports of Services (`pkg/registry/core/service/storage/alloc.go`), for IPv4.

use super::Request;
use crate::{object::meta, schema::FieldError, status::ApiError, verbs::Call};
use kfbox_base::ResourceAttributes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

/// The Service network, and what is being given out at this moment.
pub struct Addresses {
    first: u32,
    last: u32,
    kept: Vec<Ipv4Addr>,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    addresses: BTreeSet<Ipv4Addr>,
    ports: BTreeSet<u16>,
}

/// Holds an address or port from its choice until its Service is stored.
pub struct Reservation {
    addresses: Arc<Addresses>,
    what: Reserved,
}

enum Reserved {
    Address(Ipv4Addr),
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
        Some(Self { first: base + 1, last: (base | !mask) - 1, kept: kept.to_vec(), pending: Mutex::default() })
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&u32::from(address))
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
    let invalid = |field: &str, value: &Value, why: &str| {
        Err(ApiError::invalid("", "Service", &name, &[FieldError::invalid(field, value, why)]))
    };
    let asked = object["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    let had = old.and_then(|o| o["spec"]["clusterIP"].as_str()).unwrap_or_default();
    if asked.is_empty() || asked != had {
        let chosen = match asked.as_str() {
            "" => Some(reserve_address(call, None)?),
            "None" => None,
            asked => match asked.parse::<Ipv4Addr>() {
                Ok(address) if call.core.addresses.contains(address) => Some(reserve_address(call, Some(address))?),
                Ok(_) => {
                    let why = "failed to allocate IP: the provided IP is not in the valid range";
                    return invalid("spec.clusterIPs", &json!([asked]), why);
                }
                Err(_) => return invalid("spec.clusterIPs[0]", &json!(asked), "must be a valid IPv4 address or None"),
            },
        };
        let text = chosen.as_ref().map_or("None".into(), |(address, _)| address.to_string());
        object["spec"]["clusterIP"] = text.clone().into();
        object["spec"]["clusterIPs"] = json!([text]);
        reservations.extend(chosen.map(|(_, reservation)| reservation));
    }
    if object["spec"]["clusterIPs"].is_null() {
        object["spec"]["clusterIPs"] = json!([object["spec"]["clusterIP"].clone()]);
    }
    let spec = &mut object["spec"];
    if spec["ipFamilies"].is_null() {
        spec["ipFamilies"] = json!(["IPv4"]);
    }
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = "SingleStack".into();
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

fn reserve_address(call: &Call, asked: Option<Ipv4Addr>) -> Result<(Ipv4Addr, Reservation), ApiError> {
    let addresses = &call.core.addresses;
    let mut pending = addresses.pending.lock();
    let stored = call.core.store.list("services", None, None, None)?;
    let taken: BTreeSet<Ipv4Addr> = stored
        .objects
        .iter()
        .filter_map(|o| o.fields.first()?.parse().ok())
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
        None => {
            // Start anywhere: a just freed address, which clients may still remember, rarely comes back at once.
            let size = addresses.last - addresses.first + 1;
            let start = rand::random_range(0..size);
            (0..size)
                .map(|n| Ipv4Addr::from(addresses.first + (start + n) % size))
                .find(|a| !taken.contains(a) && !addresses.kept.contains(a))
                .ok_or_else(|| ApiError::internal("failed to allocate a serviceIP: range is full"))?
        }
    };
    pending.addresses.insert(address);
    drop(pending);
    Ok((address, Reservation { addresses: addresses.clone(), what: Reserved::Address(address) }))
}

fn node_ports_taken(call: &Call) -> BTreeSet<u16> {
    let Ok(stored) = call.core.store.list("services", None, None, None) else { return BTreeSet::new() };
    let with_ports =
        stored.objects.iter().filter(|o| matches!(o.fields.get(1).map(|t| &**t), Some("NodePort" | "LoadBalancer")));
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
        assert!(addresses.contains(Ipv4Addr::new(10, 96, 0, 1)));
        assert!(addresses.contains(Ipv4Addr::new(10, 96, 255, 254)));
        assert!(!addresses.contains(Ipv4Addr::new(10, 96, 255, 255)));
        assert!(!addresses.contains(Ipv4Addr::new(10, 97, 0, 1)));
        assert!(Addresses::new("10.96.0.0", &[]).is_none());
        assert!(Addresses::new("fd00::/64", &[]).is_none());
    }
}
