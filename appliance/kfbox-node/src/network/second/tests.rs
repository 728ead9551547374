//! Real namespaces with both families, as root; and a hostile pod in one of them.

use super::super::{
    Network, NetworkError, PodNetwork, PodNetworkSpec, SecondRanges,
    tests::{TestNetwork, ask, connect, inside, serve_peer_address, serve_peer_address_at, traces},
};
use kfbox_base::Tasks;
use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, UdpSocket},
    time::{Duration, Instant},
};

async fn serve(pod: &PodNetwork) -> SocketAddr {
    serve_peer_address_at(pod, pod.second.unwrap().into()).await
}

async fn from_host(to: SocketAddr) -> io::Result<String> {
    tokio::task::spawn_blocking(move || ask(to)).await.unwrap()
}

/// What `ip` says or does in a pod's network, as a pod that may administer it would.
fn ip(pod: &PodNetwork, arguments: &[&str]) -> String {
    let path = pod.netns_path.as_ref().unwrap();
    let output = std::process::Command::new("nsenter")
        .arg(format!("--net={}", path.display()))
        .arg("ip")
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn two_pods_talk_to_each_other_and_to_the_host_by_ipv6() {
    let test = TestNetwork::start_dual().await;
    let (a, b) = (test.pod("pod-a").await, test.pod("pod-b").await);
    let config = test.network.config().clone();
    let gateway = config.second_gateway().unwrap();
    assert_eq!(a.second, config.pairing().unwrap().partner(a.ip));
    let server = serve(&b).await;
    let answer = inside(&a, move || ask(server)).await.unwrap();
    assert!(answer.starts_with(&format!("[{}]:", a.second.unwrap())), "{answer}");
    let answer = from_host(server).await.unwrap();
    assert!(answer.starts_with(&format!("[{gateway}]:")), "{answer}");
    let listener = TcpListener::bind((gateway, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let served = std::thread::spawn(move || listener.accept().unwrap().1);
    inside(&a, move || connect(address)).await.unwrap();
    assert_eq!(served.join().unwrap().ip(), IpAddr::V6(a.second.unwrap()));
    // The first family is as ever.
    let server = serve_peer_address(&b).await;
    inside(&a, move || ask(server)).await.unwrap();
    // One address on the link, good at once, and none of the link's own.
    let addresses = ip(&a, &["-6", "-oneline", "address", "show", "dev", "eth0"]);
    assert_eq!(addresses.lines().count(), 1, "{addresses}");
    assert!(!addresses.contains("tentative") && !addresses.contains("fe80"), "{addresses}");
    // An address that nobody routes to is refused at once: nobody waits for what cannot come.
    let (nowhere, started) =
        (SocketAddr::from((config.second.unwrap().services.hosts().nth(4).unwrap(), 80)), Instant::now());
    let error = inside(&a, move || connect(nowhere)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let error = tokio::task::spawn_blocking(move || connect(nowhere)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert!(started.elapsed() < Duration::from_secs(1));
}

/// Everything that a pod could say past the rules: under another's address, under addresses of the link alone, and to
/// groups on the link, among them the one that routers announce themselves to.
#[tokio::test]
async fn a_pod_speaks_from_its_own_address_to_plain_ones_alone() {
    let test = TestNetwork::start_dual().await;
    let (honest, forger) = (test.pod("honest").await, test.pod("forger").await);
    let gateway = test.network.config().second_gateway().unwrap();
    let listener = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    listener.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let port = listener.local_addr().unwrap().port();
    let to = SocketAddr::from((gateway, port));
    let own = forger.second.unwrap();
    let link_local: Ipv6Addr = "fe80::bad".parse().unwrap();
    let unassigned = Ipv6Addr::from(u128::from(own) + 50);
    let outside: Ipv6Addr = "2001:db8::bad".parse().unwrap();
    for forged in [honest.second.unwrap(), link_local, unassigned, outside] {
        ip(&forger, &["address", "add", &format!("{forged}/128"), "dev", "eth0", "nodad"]);
    }
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let all_routers: Ipv6Addr = "ff02::2".parse().unwrap();
    let index = inside(&forger, || nix::net::if_::if_nametoindex("eth0").unwrap()).await;
    let host_link = test.network.config().link_name("forger");
    // Even where the host's end has an address of the link, nobody there answers.
    let added = std::process::Command::new("ip")
        .args(["address", "add", "fe80::1/64", "dev", &host_link, "nodad"])
        .status()
        .unwrap();
    assert!(added.success());
    let on_link: Ipv6Addr = "fe80::1".parse().unwrap();
    ip(&forger, &["-6", "route", "add", "fe80::/64", "dev", "eth0"]);
    let host_link_address = super::super::link_address(test.network.gateway()).map(|b| format!("{b:02x}")).join(":");
    ip(&forger, &["-6", "neighbour", "add", "fe80::1", "lladdr", &host_link_address, "dev", "eth0"]);
    let mut attempts: Vec<(IpAddr, SocketAddr)> =
        [honest.second.unwrap(), link_local, unassigned, outside].map(|from| (from.into(), to)).to_vec();
    for group in [all_nodes, all_routers, on_link] {
        let to = SocketAddr::V6(SocketAddrV6::new(group, port, 0, index));
        attempts.extend([own, link_local].map(|from| (IpAddr::from(from), to)));
    }
    for (from, to) in attempts {
        let bound = match from {
            // An address of a link alone is none without its link.
            IpAddr::V6(v6) if v6.is_unicast_link_local() => SocketAddrV6::new(v6, 0, 0, index).into(),
            other => SocketAddr::from((other, 0)),
        };
        let sent = inside(&forger, move || {
            UdpSocket::bind(bound)
                .unwrap_or_else(|error| panic!("{from}: {error}"))
                .send_to(format!("{from} to {to}").as_bytes(), to)
        });
        sent.await.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
    }
    // The link keeps the order: had any of them passed, it would come first.
    inside(&forger, move || UdpSocket::bind(SocketAddr::from((own, 0))).unwrap().send_to(b"last", to).unwrap()).await;
    let mut buffer = [0; 256];
    let (n, from) = listener.recv_from(&mut buffer).unwrap();
    assert_eq!((String::from_utf8_lossy(&buffer[..n]).as_ref(), from.ip()), ("last", own.into()));
    let setting = |name: &str| {
        std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{host_link}/{name}")).unwrap().trim().to_owned()
    };
    assert_eq!(
        (setting("accept_ra"), setting("accept_redirects"), setting("autoconf")),
        ("0".into(), "0".into(), "0".into())
    );
}

#[tokio::test]
async fn a_restart_keeps_both_addresses_and_a_reset_leaves_nothing() {
    let test = TestNetwork::start_dual().await;
    let config = test.network.config().clone();
    let a = test.pod("a").await;
    let server = serve(&a).await;
    let again = Network::start(config.clone(), &Tasks::new()).await.unwrap();
    assert_eq!(again.attach("a", &PodNetworkSpec::default()).await.unwrap(), a);
    from_host(server).await.unwrap();
    // What a crash tore is made anew under the same addresses.
    super::super::remove_link(&again.inner.handle, &config.link_name("a")).await.unwrap();
    assert_eq!(again.attach("a", &PodNetworkSpec::default()).await.unwrap(), a);
    from_host(serve(&a).await).await.unwrap();
    again.detach("a").await.unwrap();
    test.pod("b").await;
    let left = traces(&config).await;
    assert!(left.iter().any(|t| t.starts_with("table ip6 ")) && left.iter().any(|t| t.contains("/128")), "{left:?}");
    Network::reset(&config).await.unwrap();
    assert_eq!(traces(&config).await, Vec::<String>::new());
    Network::reset(&config).await.unwrap();
}

#[tokio::test]
async fn a_second_family_comes_and_goes_with_the_settings() {
    let test = TestNetwork::start_dual().await;
    let config = test.network.config().clone();
    let before = test.pod("before").await;
    let (first, second) = (serve_peer_address(&before).await, serve(&before).await);
    from_host(second).await.unwrap();
    let other = test.pod("other").await;
    // What is dropped is waited for a little; what must come may take as long as a busy machine likes.
    let reaches = |to: SocketAddr, patience: u64| {
        inside(&other, move || std::net::TcpStream::connect_timeout(&to, Duration::from_millis(patience)).is_ok())
    };
    let (short, long) = (300, 10_000);
    assert!(reaches(second, long).await && reaches(first, long).await);

    // Without it, nothing passes that way, and nothing is left in the kernel's tables.
    let mut single = config.clone();
    single.second = None;
    let network = Network::start(single, &Tasks::new()).await.unwrap();
    assert_eq!(
        network.attach("before", &PodNetworkSpec::default()).await.unwrap(),
        PodNetwork { second: None, ..before.clone() }
    );
    assert!(!reaches(second, short).await && reaches(first, long).await);
    let left = traces(&config).await;
    assert!(!left.iter().any(|t| t.starts_with("table ip6 ") || t.contains("/128")), "{left:?}");
    let during = network.attach("during", &PodNetworkSpec::default()).await.unwrap();
    assert_eq!(during.second, None);

    // With it again, what was made meanwhile keeps to one family; what is new has both.
    let network = Network::start(config.clone(), &Tasks::new()).await.unwrap();
    assert_eq!(network.attach("during", &PodNetworkSpec::default()).await.unwrap(), during);
    let after = network.attach("after", &PodNetworkSpec::default()).await.unwrap();
    from_host(serve(&after).await).await.unwrap();
    from_host(first).await.unwrap();
}

#[tokio::test]
async fn bad_ranges_are_refused_by_name() {
    let test = TestNetwork::start_dual().await;
    let config = test.network.config().clone();
    let of = |pods: &str| {
        let mut other = config.clone();
        other.instance.push('2');
        other.bridge.replace_range(2..3, "u");
        // Ranges of IPv4 that are free.
        other.pod_cidr = "10.127.255.0/25".parse().unwrap();
        other.service_cidr = "10.127.255.128/25".parse().unwrap();
        other.second = Some(SecondRanges { pods: pods.parse().unwrap(), services: "fd7e::/112".parse().unwrap() });
        other
    };
    let refused = async |config| Network::start(config, &Tasks::new()).await.err().unwrap();
    assert!(matches!(refused(of("fd7d::/122")).await, NetworkError::TooSmallSecond { .. }));
    match refused(of(&config.second.unwrap().pods.to_string())).await {
        NetworkError::Overlap { interface, .. } => assert_eq!(interface, config.bridge),
        other => panic!("{other:?}"),
    }
    let mut small = of("fd7d::/112");
    small.mtu = 1000;
    assert!(matches!(refused(small).await, NetworkError::SmallMtu { mtu: 1000 }));
}
