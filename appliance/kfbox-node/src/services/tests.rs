//! Decisions on objects, the scripts on the real packet filter, and connections through it.

use super::{
    desired::{Port, Protocol, rules},
    *,
};
use crate::network::tests::{TestNetwork, ask, connect, inside, serve_peer_address, serve_peer_address_at};
use k8s_openapi::api::{
    core::v1::{Namespace, Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};
use kube::runtime::{
    reflector::{self, store::Writer},
    watcher,
};
use nix::sys::{
    socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn6, sockopt},
    time::TimeVal,
};
use serde_json::{Value, json};
use std::{collections::HashMap, net::SocketAddr, os::fd::AsRawFd, sync::Arc};

fn service(spec: Value) -> Arc<Service> {
    let object = json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec});
    Arc::new(serde_json::from_value(object).unwrap())
}

fn slice(port: u16, endpoints: Value) -> Arc<EndpointSlice> {
    let object = json!({
        "metadata": {"name": "web-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": port, "protocol": "TCP"}], "endpoints": endpoints,
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

/// A Service of IPv6, and its endpoints there.
fn second_service(mut spec: Value) -> Arc<Service> {
    spec["ipFamilies"] = json!(["IPv6"]);
    service(spec)
}

fn second_slice(port: u16, endpoints: Value) -> Arc<EndpointSlice> {
    let mut slice = (*slice(port, endpoints)).clone();
    slice.address_type = "IPv6".into();
    slice.metadata.name = Some("web-v6".into());
    Arc::new(slice)
}

fn port() -> Value {
    json!([{"name": "http", "port": 80, "nodePort": 30080}])
}

#[test]
fn ready_endpoints_count_and_ending_ones_when_none_is_ready() {
    let web = service(json!({"clusterIP": "10.96.1.1", "ports": port()}));
    let of = |endpoints: Value| {
        let rules = rules(Family::V4, std::slice::from_ref(&web), &[slice(8080, endpoints)]);
        let targets: Vec<String> =
            rules.ports.values().flat_map(|p| &p.targets).map(|(a, p)| format!("{a}:{p}")).collect();
        (targets, rules.addresses.len())
    };
    let ready = json!({"addresses": ["10.0.0.2"], "conditions": {"ready": true}});
    let unsaid = json!({"addresses": ["10.0.0.3"]});
    let ending =
        json!({"addresses": ["10.0.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}});
    let down = json!({"addresses": ["10.0.0.5"], "conditions": {"ready": false}});
    assert_eq!(of(json!([ready, unsaid, ending, down])).0, ["10.0.0.2:8080", "10.0.0.3:8080"]);
    assert_eq!(of(json!([ending, down])).0, ["10.0.0.4:8080"]);
    assert_eq!(of(json!([down])), (vec![], 0));
    // Nobody may point a service at the machine's own loopback or at a cloud's metadata address.
    assert_eq!(
        of(json!([{"addresses": ["127.0.0.1"]}, {"addresses": ["169.254.169.254"]}, {"addresses": ["::1"]}])).1,
        0
    );
}

#[test]
fn headless_external_and_foreign_ports_make_no_rules() {
    let endpoints = [slice(8080, json!([{"addresses": ["10.0.0.2"]}]))];
    for spec in [
        json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}),
        json!({"type": "ExternalName", "externalName": "example.org", "ports": port()}),
        json!({"clusterIP": "10.96.1.1", "ports": [{"name": "other", "port": 80}]}),
        json!({"clusterIP": "10.96.1.1", "ports": [{"name": "http", "port": 80, "protocol": "UDP"}]}),
    ] {
        assert_eq!(rules(Family::V4, &[service(spec.clone())], &endpoints), Rules::default(), "{spec}");
    }
}

#[tokio::test]
async fn every_change_between_states_is_one_that_nft_takes() {
    let test = TestNetwork::start().await;
    let table = format!("{}_services", test.network.config().table());
    let table = script::Table { family: Family::V4, name: table, gateway: test.network.gateway().into() };
    let target = |n: u8| ([10, 0, 0, n].into(), 80);
    let state = |ports: &[(&str, &[u8], Option<u32>)]| {
        let mut rules = Rules::default();
        for (i, (id, targets, affinity)) in ports.iter().enumerate() {
            let targets: Vec<_> = targets.iter().map(|n| target(*n)).collect();
            rules.hairpins.extend(targets.iter().map(|t| t.0));
            rules.addresses.insert(([10, 96, 0, i as u8 + 1].into(), Protocol::Tcp, 80), (*id).into());
            rules.node_ports.insert((Protocol::Tcp, 30000 + i as u16), (*id).into());
            rules.ports.insert((*id).into(), Port { protocol: Protocol::Tcp, targets, affinity: *affinity });
        }
        rules
    };
    let states = [
        Rules::default(),
        state(&[("a", &[1], None)]),
        state(&[("a", &[1, 2, 3], None), ("b", &[4], Some(60))]),
        state(&[("b", &[4, 5], Some(60)), ("a", &[2], None)]),
        state(&[("b", &[5, 6], Some(90)), ("a", &[2, 7], Some(10))]),
        state(&[("b", &[5], None), ("a", &[2, 7], None), ("c", &[1], Some(5))]),
        state(&[("c", &[9], Some(5))]),
    ];
    let listing = |table: String| async move { nft::run(&["list", "table", "ip", &table], "").await.unwrap() };
    for from in &states {
        for to in &states {
            nft::apply(&script::replace(&table, from)).await.unwrap();
            if let script = script::change(&table, from, to)
                && !script.is_empty()
            {
                nft::apply(&script).await.unwrap_or_else(|error| panic!("{error}\n{script}"));
            }
            // The result is what making it anew gives, with nothing left over.
            let changed = listing(table.name.clone()).await;
            nft::apply(&script::replace(&table, to)).await.unwrap();
            let sorted = |text: &str| {
                let mut lines: Vec<String> = text
                    .lines()
                    .flat_map(|l| l.split(", "))
                    .map(|l| l.trim().replace(['{', '}'], "").trim().to_owned())
                    .collect();
                lines.sort();
                lines
            };
            assert_eq!(sorted(&changed), sorted(&listing(table.name.clone()).await));
        }
    }
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the test itself is the owner, and waits for all of them")]
async fn everyone_who_waits_for_the_directory_is_woken() {
    let (services, mut services_writer) = reflector::store();
    let (slices, mut slices_writer) = reflector::store();
    let directory = Directory::of(services, slices, watch::channel(0).1);
    // The rules, the node, the DNS server, and every question that a pod asks meanwhile.
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let directory = directory.clone();
            tokio::spawn(async move { directory.complete().await })
        })
        .collect();
    tokio::task::yield_now().await;
    services_writer.apply_watcher_event(&watcher::Event::<Service>::InitDone);
    tokio::task::yield_now().await;
    slices_writer.apply_watcher_event(&watcher::Event::<EndpointSlice>::InitDone);
    for waiter in waiting {
        tokio::time::timeout(Duration::from_secs(5), waiter).await.expect("was left waiting").unwrap().unwrap();
    }
}

struct Cluster {
    services: Writer<Service>,
    slices: Writer<EndpointSlice>,
    bump: watch::Sender<u64>,
    directory: Directory,
}

impl Cluster {
    fn new() -> Self {
        let (services_store, mut services) = reflector::store();
        let (slices_store, mut slices) = reflector::store();
        let (bump, changed) = watch::channel(0);
        services.apply_watcher_event(&watcher::Event::InitDone);
        slices.apply_watcher_event(&watcher::Event::InitDone);
        let directory = Directory::of(services_store, slices_store, changed);
        Self { services, slices, bump, directory }
    }

    fn set(&mut self, service: &Arc<Service>, slice: &Arc<EndpointSlice>) {
        self.services.apply_watcher_event(&watcher::Event::Apply((**service).clone()));
        self.slices.apply_watcher_event(&watcher::Event::Apply((**slice).clone()));
        self.bump.send_modify(|n| *n += 1);
    }
}

/// Asks until the answer is as wanted: rules follow a change within milliseconds, but not at once.
async fn eventually(
    pod: Option<&crate::network::PodNetwork>,
    to: SocketAddr,
    wanted: impl Fn(&std::io::Result<String>) -> bool,
) {
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        let answer = match pod {
            Some(pod) => inside(pod, move || ask(to)).await,
            None => tokio::task::spawn_blocking(move || ask(to)).await.unwrap(),
        };
        if wanted(&answer) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{to}: {answer:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn connections_reach_endpoints_by_every_address() {
    let test = TestNetwork::start().await;
    let (client, a, b) = (test.pod("client").await, test.pod("a").await, test.pod("b").await);
    let (server_a, server_b) = (serve_peer_address(&a).await, serve_peer_address(&b).await);
    let gateway = test.network.gateway();
    let virtual_ip = test.network.config().service_cidr.hosts().nth(20).unwrap();
    let node_port = 20_000 + (std::process::id() % 20_000) as u16;
    let web = service(json!({"clusterIP": virtual_ip, "ports": [{"name": "http", "port": 80, "nodePort": node_port}]}));

    let mut cluster = Cluster::new();
    let readiness = Readiness::default();
    let mut ready = readiness.subscribe();
    let component = readiness.component("services");
    test.tasks
        .essential("services", keep(cluster.directory.clone(), test.network.clone(), component, test.tasks.shutdown()));
    ready.wait_for(|all| all.iter().any(|c| c.state == kfbox_base::readiness::State::Ready)).await.unwrap();

    let to = SocketAddr::from((virtual_ip, 80));
    let at = |server: SocketAddr| {
        move |answer: &std::io::Result<String>| answer.as_ref().is_ok_and(|a| a.ends_with(&format!("at {server}")))
    };
    let refused = |answer: &std::io::Result<String>| {
        answer.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    eventually(Some(&client), to, refused).await;
    cluster.set(&web, &slice(server_a.port(), json!([{"addresses": [a.ip]}])));
    eventually(Some(&client), to, at(server_a)).await;
    // From the host, by the node's port, by the loopback's, and from the endpoint to itself.
    eventually(None, to, at(server_a)).await;
    eventually(None, SocketAddr::from((gateway, node_port)), at(server_a)).await;
    eventually(None, SocketAddr::from(([127, 0, 0, 1], node_port)), at(server_a)).await;
    eventually(Some(&client), SocketAddr::from((gateway, node_port)), at(server_a)).await;
    eventually(Some(&a), to, at(server_a)).await;
    // The client's own address is seen, since nothing on one node needs to hide it.
    let client_ip = client.ip;
    eventually(Some(&client), to, |answer| answer.as_ref().is_ok_and(|a| a.starts_with(&format!("{client_ip}:"))))
        .await;

    // Another endpoint takes over, then both share, then one holds a client.
    cluster.set(&web, &slice(server_b.port(), json!([{"addresses": [b.ip]}])));
    eventually(Some(&client), to, at(server_b)).await;
    let mut both = (*slice(server_a.port(), json!([{"addresses": [a.ip]}]))).clone();
    both.metadata.name = Some("web-2".into());
    cluster.set(&web, &Arc::new(both));
    eventually(Some(&client), to, at(server_a)).await;
    eventually(Some(&client), to, at(server_b)).await;
    let sticky = service(json!({
        "clusterIP": virtual_ip, "ports": [{"name": "http", "port": 80, "nodePort": node_port}], "sessionAffinity": "ClientIP",
    }));
    cluster.set(&sticky, &slice(server_b.port(), json!([{"addresses": [b.ip]}])));
    let table = format!("{}_services", test.network.config().table());
    while !nft::run(&["list", "table", "ip", &table], "").await.unwrap().contains("timeout") {
        tokio::task::yield_now().await;
    }
    let mut seen: HashMap<String, u32> = HashMap::new();
    for _ in 0..12 {
        let answer = inside(&client, move || ask(to)).await.unwrap();
        *seen.entry(answer.split(" at ").nth(1).unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(seen.len(), 1, "{seen:?}");

    // The daemon itself, on the bridge's address, may be an endpoint.
    let listener = std::net::TcpListener::bind((gateway, 0)).unwrap();
    let own = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            drop(std::io::Write::write_fmt(&mut stream, format_args!("{from} at {own}")));
        }
    });
    let mut empty = (*slice(1, json!([]))).clone();
    empty.metadata.name = Some("web-2".into());
    cluster.set(&web, &Arc::new(empty));
    cluster.set(&web, &slice(own.port(), json!([{"addresses": [gateway]}])));
    eventually(Some(&client), to, at(own)).await;
    eventually(None, to, at(own)).await;

    // Without endpoints it is refused again.
    cluster.set(&web, &slice(1, json!([])));
    eventually(Some(&client), to, refused).await;
    eventually(None, to, refused).await;
}

#[test]
fn a_flow_is_stale_when_its_endpoint_is_no_more() {
    use crate::network::conntrack::Flow;
    let udp = |spec: Value, endpoint: &str| {
        let object = json!({
            "metadata": {"name": "web-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 53, "protocol": "UDP"}],
            "endpoints": [{"addresses": [endpoint]}],
        });
        rules(Family::V4, &[service(spec)], &[Arc::new(serde_json::from_value(object).unwrap())])
    };
    let spec = json!({"clusterIP": "10.96.1.1", "ports": [{"name": "http", "port": 53, "protocol": "UDP", "nodePort": 30053}]});
    let (before, after) = (udp(spec.clone(), "10.0.0.2"), udp(spec, "10.0.0.3"));
    assert!(before.changes_udp(&after) && !before.changes_udp(&before.clone()));
    let flow = |to: [u8; 4], port, answering: [u8; 4]| Flow {
        destination: to.into(),
        port,
        answering: answering.into(),
        answering_port: 53,
    };
    let service_ip = [10, 96, 1, 1];
    assert!(desired::is_stale(&before, &after, &flow(service_ip, 53, [10, 0, 0, 2])));
    assert!(!desired::is_stale(&before, &after, &flow(service_ip, 53, [10, 0, 0, 3])));
    assert!(desired::is_stale(&before, &after, &flow([127, 0, 0, 1], 30053, [10, 0, 0, 2])));
    assert!(!desired::is_stale(&before, &after, &flow([10, 0, 0, 2], 30053, [10, 0, 0, 2])), "not by the node port");
    assert!(!desired::is_stale(&before, &after, &flow([8, 8, 8, 8], 53, [8, 8, 8, 8])), "somebody else's");
    assert!(desired::is_stale(&before, &Rules::default(), &flow(service_ip, 53, [10, 0, 0, 2])), "the service went");
}

#[tokio::test]
async fn a_table_changed_by_others_is_made_anew() {
    let test = TestNetwork::start().await;
    let pod = test.pod("a").await;
    let server = serve_peer_address(&pod).await;
    let virtual_ip = test.network.config().service_cidr.hosts().nth(21).unwrap();
    let web = service(json!({"clusterIP": virtual_ip, "ports": [{"name": "http", "port": 80}]}));
    let mut cluster = Cluster::new();
    let readiness = Readiness::default();
    let mut ready = readiness.subscribe();
    let component = readiness.component("services");
    test.tasks
        .essential("services", keep(cluster.directory.clone(), test.network.clone(), component, test.tasks.shutdown()));
    ready.wait_for(|all| all.iter().any(|c| c.state == kfbox_base::readiness::State::Ready)).await.unwrap();
    nft::apply(&format!("delete table ip {}_services", test.network.config().table())).await.unwrap();
    cluster.set(&web, &slice(server.port(), json!([{"addresses": [pod.ip]}])));
    eventually(None, SocketAddr::from((virtual_ip, 80)), |answer| answer.is_ok()).await;
}

fn pod(namespace: &str, name: &str, ip: &str, role: &str) -> Arc<Pod> {
    let object = json!({
        "metadata": {"name": name, "namespace": namespace, "labels": {"role": role}},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"podIP": ip, "phase": "Running"},
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

fn namespace(name: &str) -> Arc<Namespace> {
    let object = json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}});
    Arc::new(serde_json::from_value(object).unwrap())
}

fn policy(spec: Value) -> Arc<NetworkPolicy> {
    let object = json!({"metadata": {"name": "p", "namespace": "ours"}, "spec": spec});
    Arc::new(serde_json::from_value(object).unwrap())
}

#[test]
fn policies_select_as_the_reference_says() {
    let pods = [
        pod("ours", "db", "10.0.0.1", "db"),
        pod("ours", "web", "10.0.0.2", "web"),
        pod("theirs", "web", "10.0.0.3", "web"),
    ];
    let namespaces = [namespace("ours"), namespace("theirs")];
    let of = |spec: Value| policy::decide(&[policy(spec)], &pods, &namespaces, None);
    let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
    let peers = |isolation: &policy::Isolation| -> Vec<Option<Vec<policy::Peer>>> {
        isolation.ingress[&ip(1)].iter().map(|a| a.peers.as_ref().map(|p| p.iter().cloned().collect())).collect()
    };
    // Nothing selected by default, everything denied by an empty policy of the namespace.
    let deny = of(json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
    assert_eq!(deny.ingress.keys().copied().collect::<Vec<_>>(), [ip(1), ip(2)]);
    assert!(deny.ingress.values().all(std::collections::BTreeSet::is_empty) && deny.egress.is_empty());
    let db = |from: Value| json!({"podSelector": {"matchLabels": {"role": "db"}}, "ingress": [{"from": from}]});
    let one = |n: u8| vec![Some(vec![policy::Peer::Pod(ip(n))])];
    assert_eq!(peers(&of(db(json!([{"podSelector": {"matchLabels": {"role": "web"}}}])))), one(2));
    let named = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "theirs"}}}]);
    assert_eq!(peers(&of(db(named))), one(3));
    assert_eq!(peers(&of(db(json!([])))), [None]);
    // A selector that cannot be read opens nothing.
    let broken = json!([{"podSelector": {"matchExpressions": [{"key": "role", "operator": "Guess"}]}}]);
    assert_eq!(peers(&of(db(broken))), [Some(vec![])]);
    let ports = of(
        json!({"podSelector": {}, "ingress": [{"ports": [{"port": "web"}, {"port": 90, "endPort": 95}, {"protocol": "UDP"}]}]}),
    );
    let allowed: Vec<_> = ports.ingress[&ip(1)].iter().next().unwrap().ports.clone().unwrap().into_iter().collect();
    assert_eq!(allowed, [(Protocol::Tcp, 90, 95), (Protocol::Tcp, 8080, 8080), (Protocol::Udp, 0, 65535)]);
}

#[tokio::test]
async fn policies_hold_between_pods() {
    let test = TestNetwork::start().await;
    let (db, web, foreign) = (test.pod("db").await, test.pod("web").await, test.pod("foreign").await);
    let server = serve_peer_address(&db).await;
    let pods = [
        pod("ours", "db", &db.ip.to_string(), "db"),
        pod("ours", "web", &web.ip.to_string(), "web"),
        pod("theirs", "foreign", &foreign.ip.to_string(), "web"),
    ];
    let namespaces = [namespace("ours"), namespace("theirs")];
    let table = format!("{}_policy", test.network.config().table());
    let apply = |spec: Value| {
        let script = policy::scripts(&table, &policy::decide(&[policy(spec)], &pods, &namespaces, None), false);
        async move { nft::apply(&script).await.unwrap_or_else(|error| panic!("{error}\n{script}")) }
    };
    let reaches = |pod: &crate::network::PodNetwork| {
        let pod = pod.clone();
        async move {
            // Dropped packets only show as silence.
            inside(&pod, move || std::net::TcpStream::connect_timeout(&server, Duration::from_millis(300)).is_ok())
                .await
        }
    };
    assert!(reaches(&web).await && reaches(&foreign).await);
    apply(json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]})).await;
    assert!(reaches(&web).await && !reaches(&foreign).await);
    // The host (probes, the gateway) is not filtered, and what the pod asks for itself is answered.
    assert!(tokio::task::spawn_blocking(move || connect(server).is_ok()).await.unwrap());
    let other = serve_peer_address(&foreign).await;
    assert!(inside(&db, move || ask(other)).await.is_ok());
    apply(json!({"podSelector": {}, "ingress": [{"ports": [{"port": server.port()}]}]})).await;
    assert!(reaches(&foreign).await);
    apply(json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": [format!("{}/32", foreign.ip), "10.0.0.0/9"]}}]}]})).await;
    assert!(reaches(&web).await && !reaches(&foreign).await);
    apply(json!({"podSelector": {"matchLabels": {"role": "web"}}, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": 1}]}]})).await;
    assert!(!reaches(&web).await && reaches(&foreign).await);
    apply(json!({"podSelector": {"matchLabels": {"role": "web"}}, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}]})).await;
    assert!(reaches(&web).await);
}

fn elsewhere(ip: &str) -> crate::network::PodNetwork {
    crate::network::PodNetwork { ip: ip.parse().unwrap(), second: None, netns_path: None }
}

fn filled<K>(objects: &[Arc<K>]) -> (reflector::Store<K>, Writer<K>)
where
    K: reflector::Lookup<DynamicType = ()> + Clone + 'static,
{
    let (store, mut writer) = reflector::store();
    writer.apply_watcher_event(&watcher::Event::Init);
    for object in objects {
        writer.apply_watcher_event(&watcher::Event::InitApply((**object).clone()));
    }
    writer.apply_watcher_event(&watcher::Event::InitDone);
    (store, writer)
}

/// By the time a pod's address is in its status it runs. It must be filtered before.
#[tokio::test]
async fn a_pod_is_filtered_before_anybody_reads_its_address() {
    let test = TestNetwork::start().await;
    let (db, web) = (test.pod("db").await, test.pod("web").await);
    let server = serve_peer_address(&db).await;
    let known = pod("ours", "web", &web.ip.to_string(), "web");
    let deny = policy(json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
    let (policies, _policies) = filled(&[deny]);
    let (pods, mut pods_writer) = filled(std::slice::from_ref(&known));
    let (namespaces, _namespaces) = filled(&[namespace("ours"), namespace("theirs")]);
    let (bump, changes) = watch::channel(0);
    let table = format!("{}_policy", test.network.config().table());
    let sources = policy::Sources { policies, pods, namespaces, changes };
    let policies = policy::keep(sources, table, None, &test.tasks);
    let reaches = || {
        let web = web.clone();
        async move {
            inside(&web, move || std::net::TcpStream::connect_timeout(&server, Duration::from_millis(300)).is_ok())
                .await
        }
    };
    assert!(reaches().await, "nobody has heard of the pod yet");
    let mut new = (*pod("ours", "db", "", "db")).clone();
    new.status = None;
    new.metadata.uid = Some("1".into());
    let admission = policies.admit(&new, &db).await.unwrap();
    assert!(!reaches().await);
    // Announced anew, as when its preparation is tried again: the first announcement's end changes nothing.
    let again = policies.admit(&new, &db).await.unwrap();
    drop(admission);
    // Another is announced, so the rules are made again.
    let mut other = (*pod("ours", "other", "", "other")).clone();
    other.metadata.uid = Some("2".into());
    let _other = policies.admit(&other, &elsewhere("10.255.0.9")).await.unwrap();
    assert!(!reaches().await);
    // What its status says later counts: it ended, and its address may be another's.
    let mut over = new.clone();
    over.status = serde_json::from_value(json!({"phase": "Succeeded", "podIP": db.ip.to_string()})).unwrap();
    pods_writer.apply_watcher_event(&watcher::Event::Apply(over));
    bump.send_modify(|n| *n += 1);
    let patience = std::time::Instant::now();
    while !reaches().await {
        assert!(patience.elapsed() < Duration::from_secs(10));
    }
    drop(again);
    // A namespace without policies has nobody wait.
    let mut free = (*pod("theirs", "free", "", "free")).clone();
    free.metadata.uid = Some("3".into());
    drop(policies.admit(&free, &elsewhere("10.255.0.10")).await.unwrap());
}

/// No rules, no start: a pod that nobody can filter does not run.
#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_policies_that_are_not_known() {
    let tasks = kfbox_base::Tasks::new();
    let (policies, _policies) = reflector::store();
    let ((pods, _pods), (namespaces, _namespaces)) = (reflector::store(), reflector::store());
    let (_bump, changes) = watch::channel(0);
    let sources = policy::Sources { policies, pods, namespaces, changes };
    let policies = policy::keep(sources, "kfbox_none_policy".into(), None, &tasks);
    let refused = policies.admit(&pod("ours", "db", "", "db"), &elsewhere("10.255.0.9")).await.unwrap_err();
    assert!(refused.to_string().contains("namespace ours"), "{refused}");
}

#[test]
fn ipv6_rules_are_of_services_and_endpoints_of_ipv6() {
    let of = |service: &Arc<Service>, slices: &[Arc<EndpointSlice>]| {
        rules(Family::V6, std::slice::from_ref(service), slices)
    };
    let web = second_service(json!({"clusterIP": "fd01::1", "ports": port()}));
    let good = second_slice(8080, json!([{"addresses": ["fd00::2"]}]));
    let found = of(&web, std::slice::from_ref(&good));
    assert_eq!((found.addresses.len(), found.node_ports.len(), found.hairpins.len()), (1, 1, 1));
    // A Service that is not of this family has no node port there, whatever endpoints somebody writes.
    let single = service(json!({"clusterIP": "10.96.1.1", "ports": port(), "ipFamilies": ["IPv4"]}));
    assert_eq!(of(&single, std::slice::from_ref(&good)), Rules::default());
    assert_eq!(
        of(&service(json!({"clusterIP": "10.96.1.1", "ports": port()})), std::slice::from_ref(&good)),
        Rules::default()
    );
    // Nor does a slice of one family lend its endpoints to the other.
    assert_eq!(of(&web, &[slice(8080, json!([{"addresses": ["fd00::2"]}]))]), Rules::default());
    for forbidden in [
        "::1",
        "::",
        "fe80::1",
        "ff02::1",
        "::ffff:169.254.169.254",
        "::ffff:127.0.0.1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "10.0.0.2",
    ] {
        assert_eq!(of(&web, &[second_slice(80, json!([{"addresses": [forbidden]}]))]), Rules::default(), "{forbidden}");
    }
}

/// By both addresses of the service, its node port, and from an endpoint to itself.
#[tokio::test]
async fn connections_reach_endpoints_by_ipv6() {
    let test = TestNetwork::start_dual().await;
    let (client, a, b) = (test.pod("client").await, test.pod("a").await, test.pod("b").await);
    let at = async |pod: &crate::network::PodNetwork| serve_peer_address_at(pod, pod.second.unwrap().into()).await;
    let (server_a, server_b) = (at(&a).await, at(&b).await);
    let config = test.network.config();
    let gateway = config.second_gateway().unwrap();
    let virtual_ip = config.second.unwrap().services.hosts().nth(20).unwrap();
    let node_port = 20_000 + (std::process::id() % 20_000) as u16;
    let spec = json!({"clusterIP": virtual_ip, "ports": [{"name": "http", "port": 80, "nodePort": node_port}]});
    let web = second_service(spec.clone());

    let mut cluster = Cluster::new();
    let readiness = Readiness::default();
    let mut ready = readiness.subscribe();
    let component = readiness.component("services");
    test.tasks
        .essential("services", keep(cluster.directory.clone(), test.network.clone(), component, test.tasks.shutdown()));
    ready.wait_for(|all| all.iter().any(|c| c.state == kfbox_base::readiness::State::Ready)).await.unwrap();

    let to = SocketAddr::from((virtual_ip, 80));
    let at = |server: SocketAddr| {
        move |answer: &std::io::Result<String>| answer.as_ref().is_ok_and(|a| a.ends_with(&format!("at {server}")))
    };
    let refused = |answer: &std::io::Result<String>| {
        answer.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    eventually(Some(&client), to, refused).await;
    cluster.set(&web, &second_slice(server_a.port(), json!([{"addresses": [server_a.ip()]}])));
    eventually(Some(&client), to, at(server_a)).await;
    eventually(None, to, at(server_a)).await;
    eventually(None, SocketAddr::from((gateway, node_port)), at(server_a)).await;
    eventually(Some(&client), SocketAddr::from((gateway, node_port)), at(server_a)).await;
    eventually(Some(&a), to, at(server_a)).await;
    let seen = client.second.unwrap();
    eventually(Some(&client), to, |answer| answer.as_ref().is_ok_and(|a| a.starts_with(&format!("[{seen}]:")))).await;

    // Another takes over; then two share, and one holds a client.
    cluster.set(&web, &second_slice(server_b.port(), json!([{"addresses": [server_b.ip()]}])));
    eventually(Some(&client), to, at(server_b)).await;
    let mut both = (*second_slice(server_a.port(), json!([{"addresses": [server_a.ip()]}]))).clone();
    both.metadata.name = Some("web-v6-2".into());
    cluster.set(&web, &Arc::new(both.clone()));
    eventually(Some(&client), to, at(server_a)).await;
    eventually(Some(&client), to, at(server_b)).await;
    let mut sticky = spec;
    sticky["sessionAffinity"] = "ClientIP".into();
    let sticky = second_service(sticky);
    cluster.set(&sticky, &second_slice(server_b.port(), json!([{"addresses": [server_b.ip()]}])));
    let table = format!("{}_services", config.table());
    while !nft::run(&["list", "table", "ip6", &table], "").await.unwrap().contains("timeout") {
        tokio::task::yield_now().await;
    }
    let mut seen: HashMap<String, u32> = HashMap::new();
    for _ in 0..12 {
        let answer = inside(&client, move || ask(to)).await.unwrap();
        *seen.entry(answer.split(" at ").nth(1).unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(seen.len(), 1, "{seen:?}");

    both.endpoints = None;
    cluster.set(&web, &Arc::new(both));
    cluster.set(&web, &second_slice(1, json!([])));
    eventually(Some(&client), to, refused).await;
    eventually(None, to, refused).await;
}

/// A neighbour does not get around a policy by the other family, nor by addresses that it gives itself.
#[tokio::test]
async fn policies_hold_by_ipv6_as_by_ipv4() {
    let test = TestNetwork::start_dual().await;
    let (db, web, foreign) = (test.pod("db").await, test.pod("web").await, test.pod("foreign").await);
    let server = serve_peer_address_at(&db, db.second.unwrap().into()).await;
    // Their status tells the first address alone: the second one follows.
    let pods = [
        pod("ours", "db", &db.ip.to_string(), "db"),
        pod("ours", "web", &web.ip.to_string(), "web"),
        pod("theirs", "foreign", &foreign.ip.to_string(), "web"),
    ];
    let namespaces = [namespace("ours"), namespace("theirs")];
    let table = format!("{}_policy", test.network.config().table());
    let pairing = test.network.config().pairing();
    let apply = |spec: Value| {
        let isolation = policy::decide(&[policy(spec)], &pods, &namespaces, pairing);
        let script = policy::scripts(&table, &isolation, true);
        async move { nft::apply(&script).await.unwrap_or_else(|error| panic!("{error}\n{script}")) }
    };
    let reaches = |pod: &crate::network::PodNetwork, to: SocketAddr| {
        let pod = pod.clone();
        async move {
            inside(&pod, move || std::net::TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_ok()).await
        }
    };
    assert!(reaches(&web, server).await && reaches(&foreign, server).await);
    apply(json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]})).await;
    assert!(reaches(&web, server).await && !reaches(&foreign, server).await);
    assert!(tokio::task::spawn_blocking(move || connect(server).is_ok()).await.unwrap(), "the host is not filtered");
    let other = serve_peer_address_at(&foreign, foreign.second.unwrap().into()).await;
    assert!(inside(&db, move || ask(other)).await.is_ok(), "what the pod asks for itself is answered");
    // The foreign pod gives itself the address of one that may, or one that nobody has.
    let nobody: std::net::Ipv6Addr = (u128::from(foreign.second.unwrap()) + 100).into();
    for forged in [web.second.unwrap(), nobody] {
        let path = foreign.netns_path.clone().unwrap();
        let run = |verb: &str| {
            let mut command = std::process::Command::new("nsenter");
            command.arg(format!("--net={}", path.display()));
            command.args(["ip", "address", verb, &format!("{forged}/128"), "dev", "eth0", "nodad"]);
            assert!(command.status().unwrap().success());
        };
        run("add");
        let from = std::net::SocketAddrV6::new(forged, 0, 0, 0);
        let to = std::net::SocketAddrV6::new(db.second.unwrap(), server.port(), 0, 0);
        let answered = inside(&foreign, move || {
            let socket = socket::socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
            socket::setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(0, 300_000)).unwrap();
            socket::bind(socket.as_raw_fd(), &SockaddrIn6::from(from)).unwrap();
            socket::connect(socket.as_raw_fd(), &SockaddrIn6::from(to)).is_ok()
        })
        .await;
        assert!(!answered, "{forged}");
        run("delete");
    }
    // Blocks of one family say nothing of the other.
    let second = test.network.config().second.unwrap().pods;
    apply(json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]})).await;
    assert!(!reaches(&foreign, server).await && !reaches(&web, server).await);
    let except = format!("{}/128", foreign.second.unwrap());
    apply(json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": second.to_string(), "except": [except, second.to_string().replace("/112", "/120")]}}]}]})).await;
    assert!(!reaches(&foreign, server).await && !reaches(&web, server).await, "all of them are excepted");
    let except = format!("{}/128", foreign.second.unwrap());
    apply(json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "::/0", "except": [except]}}]}]})).await;
    assert!(!reaches(&foreign, server).await && reaches(&web, server).await);
    apply(json!({"podSelector": {}, "ingress": [{"ports": [{"port": server.port()}]}]})).await;
    assert!(reaches(&foreign, server).await);
    apply(json!({"podSelector": {}, "ingress": [{"ports": [{"port": 1}]}]})).await;
    assert!(!reaches(&foreign, server).await);
    // And outwards.
    apply(json!({"podSelector": {"matchLabels": {"role": "web"}}, "policyTypes": ["Egress"]})).await;
    assert!(!reaches(&web, server).await && reaches(&foreign, server).await);
    apply(json!({"podSelector": {"matchLabels": {"role": "web"}}, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}]})).await;
    assert!(reaches(&web, server).await);
}
