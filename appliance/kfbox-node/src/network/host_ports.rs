//! Ports of pods on the host's addresses (`hostPort`), sent to the pod by the kernel. Of IPv4: no port is opened by IPv6.
//!
//! Guarantees: a port that another pod still has is refused, so that a pod that comes early tries again; what a pod had
//! goes with [`super::Network::detach`]. UDP flows that led to a pod which is gone are forgotten.
//! Upstream: <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#ports>

use super::{Family, Network, NetworkError, conntrack, nft};
use std::{collections::HashMap, fmt::Write as _, net::Ipv4Addr};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// The only address of the host on which it answers. None: all.
    pub address: Option<Ipv4Addr>,
    pub port: u16,
    /// The pod's own port.
    pub target: u16,
}

pub(super) type Exposed = HashMap<String, (Ipv4Addr, Vec<HostPort>)>;

/// The maps and chains, for the network's base rules.
pub(super) const MAPS: &str = "
  map host_ports {
    type inet_proto . inet_service : ipv4_addr . inet_service
  }
  map host_ports_at {
    type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
  }
  set host_port_pods {
    type ipv4_addr . ipv4_addr
  }
  chain host_ports_to {
    meta l4proto { tcp, udp, sctp } dnat ip to ip daddr . meta l4proto . th dport map @host_ports_at
    fib daddr type local meta l4proto { tcp, udp, sctp } dnat ip to meta l4proto . th dport map @host_ports
  }
  chain host_ports_in {
    type nat hook prerouting priority dstnat + 1; policy accept;
    jump host_ports_to
  }
  chain host_ports_out {
    type nat hook output priority -99; policy accept;
    jump host_ports_to
  }
  chain host_ports_hairpin {
    type nat hook postrouting priority srcnat - 2; policy accept;
    ip saddr . ip daddr @host_port_pods snat to GATEWAY
  }";

impl Network {
    /// Opens ports of the host that lead to a pod. Again for the same pod and ports, it does nothing.
    pub async fn expose(&self, pod_uid: &str, pod: Ipv4Addr, ports: Vec<HostPort>) -> Result<(), NetworkError> {
        let wanted = (pod, ports);
        // Held meanwhile, so that two pods never both believe to have a port.
        let mut exposed = self.inner.exposed.lock().await;
        if wanted.1.is_empty() || exposed.get(pod_uid) == Some(&wanted) {
            return Ok(());
        }
        for (other, (_, taken)) in exposed.iter().filter(|(other, _)| *other != pod_uid) {
            if let Some(port) = wanted.1.iter().find(|port| taken.iter().any(|known| clash(port, known))) {
                tracing::debug!(other, port.port, "a host port is taken");
                return Err(NetworkError::PortTaken { protocol: port.protocol, port: port.port });
            }
        }
        let mut script = String::new();
        if let Some(before) = exposed.get(pod_uid) {
            script.push_str(&elements("delete", &self.inner.config.table(), before));
        }
        script.push_str(&elements("add", &self.inner.config.table(), &wanted));
        nft::apply(&script).await?;
        forget_flows(&wanted.1);
        exposed.insert(pod_uid.into(), wanted);
        Ok(())
    }

    /// Closes what [`Network::expose`] opened.
    pub(super) async fn unexpose(&self, pod_uid: &str) -> Result<(), NetworkError> {
        let mut exposed = self.inner.exposed.lock().await;
        let Some(had) = exposed.get(pod_uid) else { return Ok(()) };
        nft::apply(&elements("delete", &self.inner.config.table(), had)).await?;
        forget_flows(&had.1);
        exposed.remove(pod_uid);
        Ok(())
    }
}

fn clash(a: &HostPort, b: &HostPort) -> bool {
    let same_address = a.address.is_none() || b.address.is_none() || a.address == b.address;
    a.protocol == b.protocol && a.port == b.port && same_address
}

fn elements(verb: &str, table: &str, (pod, ports): &(Ipv4Addr, Vec<HostPort>)) -> String {
    let mut script = String::new();
    for HostPort { protocol, address, port, target } in ports {
        let (map, key) = match address {
            Some(address) => ("host_ports_at", format!("{address} . {protocol} . {port}")),
            None => ("host_ports", format!("{protocol} . {port}")),
        };
        let _ = writeln!(script, "{verb} element ip {table} {map} {{ {key} : {pod} . {target} }}");
    }
    let _ = writeln!(script, "{verb} element ip {table} host_port_pods {{ {pod} . {pod} }}");
    script
}

/// A flow without connections would go on where it went before.
fn forget_flows(ports: &[HostPort]) {
    let udp: Vec<u16> = ports.iter().filter(|p| p.protocol == "udp").map(|p| p.port).collect();
    if !udp.is_empty()
        && let Err(error) = conntrack::forget_udp(Family::V4, |flow| udp.contains(&flow.port))
    {
        tracing::warn!(%error, "flows to a host port could not be forgotten");
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{TestNetwork, ask, inside, serve_peer_address};
    use super::*;
    use std::{net::SocketAddr, time::Duration};

    /// A port, and the next one, that no other run of these tests is likely to use, below those that the kernel gives out.
    fn free_port() -> u16 {
        10_000 + 2 * (uuid::Uuid::new_v4().as_u128() % 9_000) as u16
    }

    #[tokio::test]
    async fn a_host_port_leads_to_its_pod_from_everywhere_until_it_goes() {
        let test = TestNetwork::start().await;
        let (pod, client) = (test.pod("server").await, test.pod("client").await);
        let server = serve_peer_address(&pod).await;
        let gateway = test.network.gateway();
        let number = free_port();
        let of = |address, port| HostPort { protocol: "tcp", address, port, target: server.port() };
        let ports = vec![of(None, number), of(Some(Ipv4Addr::new(127, 0, 0, 9)), number + 1)];
        test.network.expose("server", pod.ip, ports.clone()).await.unwrap();
        test.network.expose("server", pod.ip, ports.clone()).await.unwrap();
        let to = |ip: [u8; 4], port| SocketAddr::from((ip, port));
        // What came instead is shown when it fails.
        let served = |answer: std::io::Result<String>| {
            let is_ours = answer.as_ref().is_ok_and(|a| a.ends_with(&format!("at {server}")));
            if !is_ours {
                eprintln!("instead of {server}: {answer:?}");
            }
            is_ours
        };
        let host = async |at: SocketAddr| tokio::task::spawn_blocking(move || ask(at)).await.unwrap();
        assert!(served(host(to(gateway.octets(), number)).await));
        assert!(served(host(to([127, 0, 0, 1], number)).await));
        assert!(served(inside(&client, move || ask(to(gateway.octets(), number))).await));
        assert!(served(inside(&pod, move || ask(to(gateway.octets(), number))).await), "the pod reaches itself");
        assert!(served(host(to([127, 0, 0, 9], number + 1)).await));
        assert!(host(to([127, 0, 0, 1], number + 1)).await.is_err(), "it is for one address only");

        let taken = test.network.expose("client", client.ip, vec![of(Some(gateway), number)]).await;
        assert!(matches!(taken, Err(NetworkError::PortTaken { .. })), "{taken:?}");
        test.network.detach("server").await.unwrap();
        assert!(host(to([127, 0, 0, 1], number)).await.is_err());
        test.network.expose("client", client.ip, vec![of(None, number)]).await.unwrap();
        let listing = nft::run(&["list", "table", "ip", &test.network.config().table()], "").await.unwrap();
        assert!(listing.contains(&format!("{} . ", client.ip)) && !listing.contains(&pod.ip.to_string()), "{listing}");
    }

    #[tokio::test]
    async fn a_udp_flow_follows_the_port_to_the_next_pod() {
        let test = TestNetwork::start().await;
        let (first, second) = (test.pod("first").await, test.pod("second").await);
        let serve = async |pod: &super::super::PodNetwork, name: &'static str| {
            let ip = pod.ip;
            let socket = inside(pod, move || std::net::UdpSocket::bind((ip, 5353)).unwrap()).await;
            std::thread::spawn(move || {
                let mut buffer = [0; 16];
                while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(name.as_bytes(), from);
                }
            });
        };
        serve(&first, "first").await;
        serve(&second, "second").await;
        let number = free_port();
        let port = HostPort { protocol: "udp", address: None, port: number, target: 5353 };
        test.network.expose("first", first.ip, vec![port.clone()]).await.unwrap();
        // One socket for all: to the kernel it is one flow.
        let socket = std::sync::Arc::new(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let ask = async || {
            let socket = socket.clone();
            let work = move || {
                socket.send_to(b"?", ("127.0.0.1", number)).unwrap();
                let mut buffer = [0; 16];
                socket.recv(&mut buffer).map(|n| String::from_utf8_lossy(&buffer[..n]).into_owned())
            };
            tokio::task::spawn_blocking(work).await.unwrap()
        };
        assert_eq!(ask().await.unwrap(), "first");
        test.network.detach("first").await.unwrap();
        test.network.expose("second", second.ip, vec![port]).await.unwrap();
        assert_eq!(ask().await.unwrap(), "second");
    }
}
