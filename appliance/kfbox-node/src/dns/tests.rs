//! Names by the specification, then the server asked by a resolver from inside a pod.

use super::{zone::*, *};
use crate::network::tests::{TestNetwork, inside};
use hickory_proto::{op::Message, op::Query, rr::RData, rr::rdata::A};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::runtime::{reflector, watcher};
use serde_json::{Value, json};
use std::{io::Read, io::Write, net::Ipv4Addr};

fn service(name: &str, spec: Value) -> Arc<Service> {
    let object = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec});
    Arc::new(serde_json::from_value(object).unwrap())
}

fn world() -> (Vec<Arc<Service>>, Vec<Arc<EndpointSlice>>) {
    let ports = json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    let services = vec![
        service("web", json!({"clusterIP": "10.96.1.1", "ports": ports})),
        service("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})),
        service("empty", json!({"clusterIP": "None"})),
        service("out", json!({"type": "ExternalName", "externalName": "Example.ORG"})),
        service("loop", json!({"type": "ExternalName", "externalName": "loop.ns.svc.cluster.local"})),
        service("alias", json!({"type": "ExternalName", "externalName": "web.ns.svc.cluster.local"})),
    ];
    let slice = json!({
        "metadata": {"name": "db-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "ports": [{"name": "sql", "port": 5433, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": ["10.244.0.5"], "hostname": "db-0"},
            {"addresses": ["10.244.0.6"]},
            {"addresses": ["10.244.0.7"], "hostname": "db-2", "conditions": {"ready": false}},
        ],
    });
    (services, vec![Arc::new(serde_json::from_value(slice).unwrap())])
}

fn ranges() -> Ranges {
    let of = |texts: [&str; 2]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Ranges { pods: of(["10.244.0.0/22", "fd00::/64"]), services: of(["10.96.0.0/16", "fd01::/112"]) }
}

fn zone() -> Zone {
    let (services, slices) = world();
    let domain = Name::from_ascii("cluster.local.").unwrap();
    Zone::new(&domain, &ranges(), &services, &slices)
}

fn shown(answer: Answer) -> String {
    match answer {
        Answer::Records(records) => {
            let mut all: Vec<String> = records.iter().map(|r| r.data.to_string()).collect();
            all.sort();
            all.join(", ")
        }
        Answer::Alias(target) => format!("-> {target}"),
        other => format!("{other:?}"),
    }
}

#[test]
fn names_are_answered_as_the_specification_says() {
    let zone = zone();
    for (name, kind, wanted) in [
        ("web.ns.svc.cluster.local.", RecordType::A, "10.96.1.1"),
        ("WEB.Ns.SVC.cluster.LOCAL.", RecordType::A, "10.96.1.1"),
        ("web.ns.svc.cluster.local.", RecordType::AAAA, "NoData"),
        ("web.ns.svc.cluster.local.", RecordType::MX, "NoData"),
        ("nobody.ns.svc.cluster.local.", RecordType::A, "NoName"),
        ("web.other.svc.cluster.local.", RecordType::A, "NoName"),
        ("x.web.ns.svc.cluster.local.", RecordType::A, "NoName"),
        ("ns.svc.cluster.local.", RecordType::A, "NoData"),
        ("other.svc.cluster.local.", RecordType::A, "NoName"),
        ("svc.cluster.local.", RecordType::A, "NoData"),
        ("cluster.local.", RecordType::A, "NoData"),
        ("www.example.org.cluster.local.", RecordType::A, "NoName"),
        ("_http._tcp.web.ns.svc.cluster.local.", RecordType::SRV, "0 100 80 web.ns.svc.cluster.local."),
        ("_dns._udp.web.ns.svc.cluster.local.", RecordType::SRV, "0 100 53 web.ns.svc.cluster.local."),
        ("_http._udp.web.ns.svc.cluster.local.", RecordType::SRV, "NoName"),
        ("_http._tcp.web.ns.svc.cluster.local.", RecordType::A, "NoData"),
        ("_tcp.web.ns.svc.cluster.local.", RecordType::A, "NoData"),
        ("db.ns.svc.cluster.local.", RecordType::A, "10.244.0.5, 10.244.0.6"),
        ("db-0.db.ns.svc.cluster.local.", RecordType::A, "10.244.0.5"),
        ("10-244-0-6.db.ns.svc.cluster.local.", RecordType::A, "10.244.0.6"),
        ("db-2.db.ns.svc.cluster.local.", RecordType::A, "NoName"),
        (
            "_sql._tcp.db.ns.svc.cluster.local.",
            RecordType::SRV,
            "0 50 5433 10-244-0-6.db.ns.svc.cluster.local., 0 50 5433 db-0.db.ns.svc.cluster.local.",
        ),
        ("empty.ns.svc.cluster.local.", RecordType::A, "NoData"),
        ("out.ns.svc.cluster.local.", RecordType::A, "-> Example.ORG."),
        ("10-244-0-9.ns.pod.cluster.local.", RecordType::A, "10.244.0.9"),
        ("8-8-8-8.ns.pod.cluster.local.", RecordType::A, "NoName"),
        ("010-244-0-9.ns.pod.cluster.local.", RecordType::A, "NoName"),
        ("dns-version.cluster.local.", RecordType::TXT, "1.1.0"),
        ("1.1.96.10.in-addr.arpa.", RecordType::PTR, "web.ns.svc.cluster.local."),
        ("5.0.244.10.in-addr.arpa.", RecordType::PTR, "db-0.db.ns.svc.cluster.local."),
        ("9.0.244.10.in-addr.arpa.", RecordType::PTR, "NoName"),
        ("8.8.8.8.in-addr.arpa.", RecordType::PTR, "Elsewhere"),
        ("example.org.", RecordType::A, "Elsewhere"),
        ("local.", RecordType::A, "Elsewhere"),
        (".", RecordType::NS, "Elsewhere"),
    ] {
        assert_eq!(shown(zone.answer(&Name::from_ascii(name).unwrap(), kind)), wanted, "{name} {kind}");
    }
}

/// A server on loopback that knows one name, counts questions, and leaves those for `silent.example` unanswered.
async fn outside() -> (SocketAddr, watch::Receiver<u32>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (count, counted) = watch::channel(0);
    let tasks = Tasks::new();
    drop(tasks.spawn("outside", async move {
        let mut buffer = [0; 1500];
        while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            count.send_modify(|n| *n += 1);
            let request = Message::from_vec(&buffer[..n]).unwrap();
            let query = request.queries[0].clone();
            let mut response = Message::response(request.metadata.id, OpCode::Query);
            response.add_query(query.clone());
            match query.name().to_ascii().to_lowercase().as_str() {
                "example.org." if query.query_type() == RecordType::A => {
                    let record = Record::from_rdata(query.name().clone(), 60, RData::A(A(Ipv4Addr::new(192, 0, 2, 1))));
                    response.add_answer(record);
                }
                "silent.example." => continue,
                _ => response.metadata.response_code = ResponseCode::NXDomain,
            }
            socket.send_to(&response.to_vec().unwrap(), from).await.unwrap();
        }
    }));
    (address, counted)
}

/// Asks as a program in the pod would, over UDP or TCP.
fn question(to: SocketAddr, name: &str, kind: RecordType, tcp: bool) -> (String, String) {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let bytes = message.to_vec().unwrap();
    let mut buffer = vec![0; 4096];
    let wait = Some(Duration::from_secs(8));
    let n = if tcp {
        let mut stream = std::net::TcpStream::connect(to).unwrap();
        stream.set_read_timeout(wait).unwrap();
        stream.write_all(&[&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat()).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let n = usize::from(u16::from_be_bytes(length));
        stream.read_exact(&mut buffer[..n]).unwrap();
        n
    } else {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(wait).unwrap();
        socket.connect(to).unwrap();
        socket.send(&bytes).unwrap();
        socket.recv(&mut buffer).unwrap()
    };
    let response = Message::from_vec(&buffer[..n]).unwrap();
    assert_eq!(response.metadata.id, message.metadata.id);
    let mut answers: Vec<String> = response.answers.iter().map(|r| r.data.to_string()).collect();
    answers.sort();
    (format!("{:?}", response.metadata.response_code), answers.join(", "))
}

#[tokio::test]
async fn a_pod_asks_the_service_address() {
    let test = TestNetwork::start().await;
    let pod = test.pod("asker").await;
    let (upstream, counted) = outside().await;
    let (services_store, mut services) = reflector::store();
    let (slices_store, mut slices) = reflector::store();
    let (bump, changed) = watch::channel(0);
    let directory = Directory::of(services_store, slices_store, changed);
    let config = DnsConfig { upstream: Upstream::Servers(vec![upstream]), ..DnsConfig::default() };
    run(config, directory, &test.network, &test.tasks, &Readiness::default()).await.unwrap();
    let to = SocketAddr::from((test.network.config().dns_ip, 53));
    let ask = |name: &'static str, kind, tcp| inside(&pod, move || question(to, name, kind, tcp));

    // A question before the first view is complete waits for it rather than being told a lie.
    let (first, ()) = tokio::join!(ask("web.ns.svc.cluster.local.", RecordType::A, false), async {
        tokio::task::yield_now().await;
        let (all_services, all_slices) = world();
        services.apply_watcher_event(&watcher::Event::Init);
        slices.apply_watcher_event(&watcher::Event::Init);
        for service in all_services {
            services.apply_watcher_event(&watcher::Event::InitApply((*service).clone()));
        }
        for slice in all_slices {
            slices.apply_watcher_event(&watcher::Event::InitApply((*slice).clone()));
        }
        services.apply_watcher_event(&watcher::Event::InitDone);
        slices.apply_watcher_event(&watcher::Event::InitDone);
        bump.send_modify(|n| *n += 1);
    });
    let ok = |answers: &str| ("NoError".to_owned(), answers.to_owned());
    assert_eq!(first, ok("10.96.1.1"));
    for tcp in [false, true] {
        assert_eq!(ask("web.ns.svc.cluster.local.", RecordType::A, tcp).await, ok("10.96.1.1"));
        assert_eq!(ask("web.ns.svc.cluster.local.", RecordType::AAAA, tcp).await, ok(""));
        assert_eq!(ask("none.ns.svc.cluster.local.", RecordType::A, tcp).await, ("NXDomain".into(), String::new()));
        assert_eq!(ask("example.org.", RecordType::A, tcp).await, ok("192.0.2.1"));
        assert_eq!(ask("missing.example.org.", RecordType::A, tcp).await, ("NXDomain".into(), String::new()));
        assert_eq!(ask("out.ns.svc.cluster.local.", RecordType::A, tcp).await, ok("192.0.2.1, Example.ORG."));
        assert_eq!(
            ask("alias.ns.svc.cluster.local.", RecordType::A, tcp).await,
            ok("10.96.1.1, web.ns.svc.cluster.local.")
        );
        assert_eq!(ask("loop.ns.svc.cluster.local.", RecordType::A, tcp).await.0, "ServFail");
    }
    // Remembered: asking again did not go out again.
    let asked = *counted.borrow();
    ask("example.org.", RecordType::A, false).await;
    assert_eq!(*counted.borrow(), asked);
    // The host asks the same address.
    let from_host =
        tokio::task::spawn_blocking(move || question(to, "web.ns.svc.cluster.local.", RecordType::A, false)).await;
    assert_eq!(from_host.unwrap(), ok("10.96.1.1"));
    // A change is seen at once.
    services.apply_watcher_event(&watcher::Event::Delete((*world().0[0]).clone()));
    bump.send_modify(|n| *n += 1);
    assert_eq!(ask("web.ns.svc.cluster.local.", RecordType::A, false).await.0, "NXDomain");
    test.tasks.stop();
    assert!(test.tasks.drain(Duration::from_secs(5)).await.is_empty());
}

#[tokio::test]
async fn without_an_answer_from_outside_names_fail_fast() {
    let name = Name::from_ascii("silent.example.").unwrap();
    let (upstream, _counted) = outside().await;
    let forwarder = Forwarder::new(Upstream::Servers(vec![upstream]), HashSet::new());
    for _ in 0..3 {
        assert!(matches!(forwarder.ask(&name, RecordType::A).await, Outside::Failed));
    }
    let started = std::time::Instant::now();
    assert!(matches!(forwarder.ask(&name, RecordType::A).await, Outside::Failed));
    assert!(started.elapsed() < Duration::from_millis(100));

    // A file that names only ourselves, and one that is not there, are no servers.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resolv.conf");
    std::fs::write(&file, "nameserver 10.96.0.10\n").unwrap();
    let own = HashSet::from([IpAddr::from([10, 96, 0, 10])]);
    for upstream in [Upstream::File(file), Upstream::File(folder.path().join("none")), Upstream::None] {
        let forwarder = Forwarder::new(upstream, own.clone());
        assert!(matches!(forwarder.ask(&name, RecordType::A).await, Outside::NoName(_)));
    }
}

#[test]
fn names_have_addresses_of_both_families() {
    let both = json!({"clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1", "fd01::a"], "ports": [{"name": "http", "port": 80}]});
    let services = [service("web", both), service("db", json!({"clusterIP": "None"}))];
    let slice = |kind: &str, named: &str, plain: &str| {
        let object = json!({
            "metadata": {"name": format!("db-{kind}"), "namespace": "ns", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": kind, "endpoints": [{"addresses": [named], "hostname": "db-0"}, {"addresses": [plain]}],
        });
        Arc::new(serde_json::from_value::<EndpointSlice>(object).unwrap())
    };
    let slices = [slice("IPv4", "10.244.0.5", "10.244.0.6"), slice("IPv6", "fd00::5", "fd00::6")];
    let zone = Zone::new(&Name::from_ascii("cluster.local.").unwrap(), &ranges(), &services, &slices);
    let reverse = |address: &str| Name::from(address.parse::<IpAddr>().unwrap()).to_string();
    let (of_web, of_db, of_nobody) = (reverse("fd01::a"), reverse("fd00::5"), reverse("fd00::7"));
    for (name, kind, wanted) in [
        ("web.ns.svc.cluster.local.", RecordType::A, "10.96.1.1"),
        ("web.ns.svc.cluster.local.", RecordType::AAAA, "fd01::a"),
        ("db.ns.svc.cluster.local.", RecordType::A, "10.244.0.5, 10.244.0.6"),
        ("db.ns.svc.cluster.local.", RecordType::AAAA, "fd00::5, fd00::6"),
        ("db-0.db.ns.svc.cluster.local.", RecordType::AAAA, "fd00::5"),
        ("fd00--6.db.ns.svc.cluster.local.", RecordType::AAAA, "fd00::6"),
        ("fd00--6.db.ns.svc.cluster.local.", RecordType::A, "NoData"),
        ("fd00--9.ns.pod.cluster.local.", RecordType::AAAA, "fd00::9"),
        ("fd00-0-0-0-0-0-0-9.ns.pod.cluster.local.", RecordType::AAAA, "fd00::9"),
        ("fd99--9.ns.pod.cluster.local.", RecordType::AAAA, "NoName"),
        ("10-244-0-9.ns.pod.cluster.local.", RecordType::AAAA, "NoData"),
        (of_web.as_str(), RecordType::PTR, "web.ns.svc.cluster.local."),
        (of_db.as_str(), RecordType::PTR, "db-0.db.ns.svc.cluster.local."),
        (of_db.as_str(), RecordType::A, "NoData"),
        (of_nobody.as_str(), RecordType::PTR, "NoName"),
        (reverse("2001:db8::1").as_str(), RecordType::PTR, "Elsewhere"),
    ] {
        let mut name = Name::from_ascii(name).unwrap();
        name.set_fqdn(true);
        assert_eq!(shown(zone.answer(&name, kind)), wanted, "{name} {kind}");
    }
}
