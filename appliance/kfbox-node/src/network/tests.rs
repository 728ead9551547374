//! Real namespaces and rules, as root. Each test has its own instance, bridge and ranges, and removes them when it ends,
//! however it ends.

use super::*;
use nix::sched::{CloneFlags, setns};
use std::{
    io::{Read, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

/// A network of a test's own.
pub(crate) struct TestNetwork {
    pub network: Network,
    pub tasks: Tasks,
    _folder: tempfile::TempDir,
}

impl TestNetwork {
    pub async fn start() -> Self {
        Self::with(|_| None).await
    }

    /// A network of both families.
    pub async fn start_dual() -> Self {
        // Unique local addresses, so that two runs do not meet.
        Self::with(|unique| {
            let of = |subnet| format!("fd7f:{:x}:{:x}:{subnet}::/112", unique >> 16, unique & 0xffff).parse().unwrap();
            Some(SecondRanges { pods: of(0), services: of(1) })
        })
        .await
    }

    async fn with(second: impl FnOnce(u32) -> Option<SecondRanges>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // By the process and a random part: several runs may be at work on one machine.
        let unique = uuid::Uuid::new_v4().as_u128() as u32;
        // Beside what the box that tests share has.
        let (a, b) = (160 + ((unique >> 8) as u8 & 0x1f), unique as u8 & 0xfc);
        let config = NetworkConfig {
            instance: format!("test-{unique:08x}"),
            bridge: format!("kft{unique:08x}"),
            pod_cidr: format!("10.{a}.{b}.0/24").parse().unwrap(),
            service_cidr: format!("10.{a}.{}.0/24", b + 1).parse().unwrap(),
            dns_ip: format!("10.{a}.{}.10", b + 1).parse().unwrap(),
            second: second(unique),
            mtu: 0,
            run_dir: folder.path().to_owned(),
        };
        let tasks = Tasks::new();
        let network = Network::start(config, &tasks).await.unwrap();
        Self { network, tasks, _folder: folder }
    }

    pub async fn pod(&self, uid: &str) -> PodNetwork {
        self.network.attach(uid, &PodNetworkSpec::default()).await.unwrap()
    }
}

impl Drop for TestNetwork {
    fn drop(&mut self) {
        let config = self.network.config().clone();
        // On a thread of its own: the test's runtime may be unwinding.
        let cleanup = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(Network::reset(&config))
        });
        if let Err(error) = cleanup.join().unwrap() {
            eprintln!("cleaning up: {error}");
        }
    }
}

/// Runs blocking work inside a pod's network.
pub(crate) async fn inside<T: Send + 'static>(pod: &PodNetwork, work: impl FnOnce() -> T + Send + 'static) -> T {
    let path = pod.netns_path.clone().unwrap();
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        setns(fs::File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        drop(done.send(work()));
    });
    result.await.unwrap()
}

pub(crate) fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(stream)
}

/// A server in a pod that tells each caller the address it came from. It ends with the test's process.
pub(crate) async fn serve_peer_address(pod: &PodNetwork) -> SocketAddr {
    serve_peer_address_at(pod, pod.ip.into()).await
}

pub(crate) async fn serve_peer_address_at(pod: &PodNetwork, ip: IpAddr) -> SocketAddr {
    let listener = inside(pod, move || TcpListener::bind((ip, 0)).unwrap()).await;
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { break };
            let from = stream.peer_addr().unwrap();
            drop(write!(stream, "{from} at {address}"));
        }
    });
    address
}

pub(crate) fn ask(address: SocketAddr) -> io::Result<String> {
    let mut answer = String::new();
    connect(address)?.read_to_string(&mut answer)?;
    Ok(answer)
}

/// What the machine's network looks like to others: links, mounts and tables with this instance's names.
pub(super) async fn traces(config: &NetworkConfig) -> Vec<String> {
    let mut found: Vec<String> =
        links().unwrap().into_iter().filter(|l| l.starts_with(&config.link_prefix()) || *l == config.bridge).collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|l| l.contains(config.run_dir.to_str().unwrap())).map(str::to_owned));
    let tables = nft::run(&["list", "tables"], "").await.unwrap();
    found.extend(tables.lines().filter(|l| l.contains(&config.table())).map(str::to_owned));
    if let Some(second) = config.second {
        let ours = |net: &Ipv6Net| second.pods.contains(net) || second.services.contains(net);
        found.extend(second::routes().unwrap().into_iter().filter(|(net, _)| ours(net)).map(|r| format!("{r:?}")));
    }
    found
}

#[tokio::test]
async fn two_pods_talk_to_each_other_and_to_the_host() {
    let test = TestNetwork::start().await;
    let (a, b) = (test.pod("pod-a").await, test.pod("pod-b").await);
    assert_ne!(a.ip, b.ip);
    let server = serve_peer_address(&b).await;
    let answer = inside(&a, move || ask(server)).await.unwrap();
    assert!(answer.starts_with(&format!("{}:", a.ip)), "{answer}");
    // The host reaches the pod, and comes from the gateway address.
    let answer = tokio::task::spawn_blocking(move || ask(server)).await.unwrap().unwrap();
    assert!(answer.starts_with(&format!("{}:", test.network.gateway())), "{answer}");
    // The pod reaches what the daemon serves on the gateway address.
    let listener = TcpListener::bind((test.network.gateway(), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let served = std::thread::spawn(move || listener.accept().unwrap().1);
    inside(&a, move || connect(address)).await.unwrap();
    assert_eq!(served.join().unwrap().ip(), a.ip);
    // A pod's own loopback is up.
    inside(&a, || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        connect(listener.local_addr().unwrap()).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_pod_cannot_send_from_anothers_address() {
    let test = TestNetwork::start().await;
    let (a, b) = (test.pod("honest").await, test.pod("forger").await);
    let (a_ip, b_ip) = (a.ip, b.ip);
    let gateway = test.network.gateway();
    let listener = std::net::UdpSocket::bind((gateway, 0)).unwrap();
    listener.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let to = listener.local_addr().unwrap();
    let mut buffer = [0; 16];
    // Sent under its own address it arrives.
    inside(&b, move || std::net::UdpSocket::bind((b_ip, 0)).unwrap().send_to(b"own", to).unwrap()).await;
    assert_eq!(listener.recv_from(&mut buffer).unwrap().1.ip(), b_ip);
    // Under the other's it does not, although the pod gives itself that address.
    let status = tokio::process::Command::new("nsenter")
        .arg(format!("--net={}", b.netns_path.as_ref().unwrap().display()))
        .args(["ip", "address", "add", &format!("{a_ip}/32"), "dev", "eth0"])
        .status()
        .await
        .unwrap();
    assert!(status.success());
    inside(&b, move || std::net::UdpSocket::bind((a_ip, 0)).unwrap().send_to(b"forged", to).unwrap()).await;
    // The link keeps the order: had the forged one passed, it would come first.
    inside(&b, move || std::net::UdpSocket::bind((b_ip, 0)).unwrap().send_to(b"after", to).unwrap()).await;
    let (n, from) = listener.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..n], from.ip()), (&b"after"[..], b_ip.into()));
}

#[tokio::test]
async fn a_service_address_without_endpoints_refuses_at_once() {
    let test = TestNetwork::start().await;
    let pod = test.pod("pod").await;
    let nowhere = SocketAddr::from((test.network.config().service_cidr.hosts().nth(4).unwrap(), 80));
    let started = Instant::now();
    let error = inside(&pod, move || connect(nowhere)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let error = tokio::task::spawn_blocking(move || connect(nowhere)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_restart_keeps_addresses_and_a_reset_leaves_nothing() {
    let test = TestNetwork::start().await;
    let config = test.network.config().clone();
    let a = test.pod("a").await;
    let server = serve_peer_address(&a).await;
    let again = Network::start(config.clone(), &Tasks::new()).await.unwrap();
    assert_eq!(again.pods(), ["a"]);
    assert_eq!(again.attach("a", &PodNetworkSpec::default()).await.unwrap(), a);
    tokio::task::spawn_blocking(move || ask(server)).await.unwrap().unwrap();
    // What a crash tore is made anew under the same address.
    let handle = &again.inner.handle;
    remove_link(handle, &config.link_name("a")).await.unwrap();
    assert_eq!(again.attach("a", &PodNetworkSpec::default()).await.unwrap(), a);
    let server = serve_peer_address(&a).await;
    tokio::task::spawn_blocking(move || ask(server)).await.unwrap().unwrap();

    // Killed with half of it made: there are a namespace and a link, and nothing goes through.
    let plan = namespace::Plan {
        path: config.netns_path("torn"),
        host_link: config.link_name("torn"),
        address: again.inner.ipam.lock().allocate("torn").unwrap(),
        gateway: config.gateway(),
        second: None,
        mtu: again.inner.mtu,
        given: None,
    };
    namespace::create(plan).await.unwrap();
    let torn = again.attach("torn", &PodNetworkSpec::default()).await.unwrap();
    let server = serve_peer_address(&torn).await;
    tokio::task::spawn_blocking(move || ask(server)).await.unwrap().unwrap();
    again.detach("torn").await.unwrap();

    again.detach("a").await.unwrap();
    again.detach("a").await.unwrap();
    assert!(again.pods().is_empty() && !a.netns_path.clone().unwrap().exists());
    test.pod("b").await;
    assert!(!traces(&config).await.is_empty());
    Network::reset(&config).await.unwrap();
    assert_eq!(traces(&config).await, Vec::<String>::new());
    Network::reset(&config).await.unwrap();
}

#[tokio::test]
async fn a_range_in_use_is_refused_by_name() {
    let test = TestNetwork::start().await;
    let mut config = test.network.config().clone();
    config.instance.push('2');
    config.bridge.replace_range(2..3, "u");
    match Network::start(config, &Tasks::new()).await {
        Err(NetworkError::Overlap { interface, .. }) => assert_eq!(interface, test.network.config().bridge),
        other => panic!("{:?}", other.err()),
    }
}

#[tokio::test]
async fn many_pods_at_once() {
    let test = TestNetwork::start().await;
    let started = Instant::now();
    let uids: Vec<String> = (0..20).map(|n| format!("pod-{n}")).collect();
    let all = futures::future::join_all(uids.iter().map(|uid| test.pod(uid))).await;
    println!("20 pods at once attached in {:?}", started.elapsed());
    let addresses: std::collections::HashSet<_> = all.iter().map(|pod| pod.ip).collect();
    assert_eq!(addresses.len(), 20);
    let started = Instant::now();
    test.pod("one-more").await;
    println!("one more in {:?}", started.elapsed());
    futures::future::join_all(uids.iter().map(|uid| test.network.detach(uid)))
        .await
        .into_iter()
        .for_each(Result::unwrap);
    assert_eq!(test.network.pods(), ["one-more"]);
}
