//! One noisy client delays itself. Held seats make the order certain: nothing here depends on how long anything takes.

use super::*;
use crate::{
    flow::{self, Limits, Seat},
    store::{Expect, Key, encode},
};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};

const PATH: &str = "/api/v1/namespaces/default/configmaps";

async fn one_seat() -> World {
    let world = world_with(|c| c.limits = Limits { seats: 1, watches: 2, ..Limits::default() }).await;
    world.readers().await;
    world
}

/// Somebody else's request that has the only seat.
async fn held(world: &World) -> Seat {
    let user = UserInfo::new("somebody", []);
    let place = flow::Where::Path("/apis");
    let class = world.server.core().flow.classify(&flow::Asked { user: &user, verb: "get", place });
    world.server.core().flow.seat(&class, 1).await.unwrap().unwrap()
}

fn request<'a>(world: &'a World, user: &'static str, path: &'a str) -> BoxFuture<'a, (&'static str, u16)> {
    async move { (user, world.call_as(user, "GET", path).await.status().as_u16()) }.boxed()
}

/// Lets every future run until it waits.
async fn settle<T>(futures: &mut FuturesUnordered<BoxFuture<'_, T>>) -> Vec<T> {
    let mut ended = Vec::new();
    // It polls a few dozen at a time.
    for _ in 0..500 {
        if let Some(Some(one)) = futures.next().now_or_never() {
            ended.push(one);
        }
        tokio::task::yield_now().await;
    }
    ended
}

#[tokio::test]
async fn two_hundred_lists_of_one_client_let_anothers_get_through_after_one_of_them() {
    let world = one_seat().await;
    for n in 0..30 {
        world.config_map(&format!("c{n}"), "v").await;
    }
    let seat = held(&world).await;
    let get = format!("{PATH}/c1");
    let mut requests = FuturesUnordered::new();
    for _ in 0..200 {
        requests.push(request(&world, "noisy", PATH));
    }
    assert!(settle(&mut requests).await.is_empty());
    for _ in 0..3 {
        requests.push(request(&world, "quiet", &get));
    }
    assert!(settle(&mut requests).await.is_empty());
    let flow = &world.server.core().flow;
    assert_eq!(flow.waiting(), 203);
    drop(seat);
    let order: Vec<&str> = requests
        .map(|(user, code)| {
            assert_eq!(code, 200);
            user
        })
        .collect()
        .await;
    let places: Vec<usize> = order.iter().enumerate().filter(|(_, u)| **u == "quiet").map(|(n, _)| n).collect();
    assert!(places[0] <= 2 && places[1] <= 4 && places[2] <= 6, "served at {places:?} of {}", order.len());
    assert_eq!((order.len(), flow.waiting()), (203, 0));
}

#[tokio::test]
async fn a_full_queue_answers_429_to_its_own_client_only_and_who_goes_away_leaves_it() {
    let world = one_seat().await;
    world.config_map("c", "v").await;
    let seat = held(&world).await;
    let mut noisy = FuturesUnordered::new();
    for _ in 0..305 {
        noisy.push(request(&world, "noisy", PATH));
    }
    let refused = settle(&mut noisy).await;
    // Upstream deals a flow six queues of fifty.
    assert_eq!(refused, [("noisy", 429); 5]);
    let response = world.call_as("noisy", "GET", PATH).await;
    assert_eq!(response.headers()["retry-after"], "1");
    let body: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!((&body["reason"], &body["code"]), (&json!("TooManyRequests"), &json!(429)));
    let mut quiet = FuturesUnordered::from_iter([request(&world, "quiet", PATH)]);
    assert!(settle(&mut quiet).await.is_empty(), "it waits for its turn");
    // The administrator, and what the daemon does itself, wait for nobody.
    assert_eq!(world.get(PATH).await.0, 200);
    drop(noisy);
    assert_eq!(world.server.core().flow.waiting(), 1);
    drop(seat);
    assert_eq!(quiet.next().await, Some(("quiet", 200)));
    drop(held(&world).await);
}

#[tokio::test]
async fn nobody_waits_for_a_seat_for_ever() {
    let world = one_seat().await;
    let seat = held(&world).await;
    tokio::time::pause();
    assert_eq!(request(&world, "late", PATH).await.1, 429);
    assert_eq!(world.server.core().flow.waiting(), 0);
    drop(seat);
    assert_eq!(request(&world, "late", PATH).await.1, 200);
}

#[tokio::test]
async fn watches_take_a_seat_only_to_begin_and_are_counted_by_user() {
    let world = one_seat().await;
    let path = format!("{PATH}?watch=1&resourceVersion=1");
    let mut streams = Vec::new();
    for _ in 0..2 {
        streams.push(world.call_as("watcher", "GET", &path).await);
    }
    assert!(streams.iter().all(|s| s.status() == 200));
    let refused = world.call_as("watcher", "GET", &path).await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"30".parse().unwrap()));
    assert_eq!(world.call_as("another", "GET", &path).await.status(), 200);
    // The seat is free while they watch.
    drop(held(&world).await);
    drop(streams);
    assert_eq!(world.server.core().flow.watching(), 0);
    assert_eq!(world.call_as("watcher", "GET", &path).await.status(), 200);
}

#[tokio::test]
async fn the_clusters_own_schemas_decide_and_tell_which_they_were() {
    let world = one_seat().await;
    let core = world.server.core();
    let put = async |collection: &str, name: &str, object: Value| {
        core.store.put(collection, Key::new("", name), Expect::Absent, encode(collection, &object)).await.unwrap();
    };
    let level = json!({"metadata": {"name": "free", "uid": "level-uid"}, "spec": {"type": "Exempt"}});
    put(flow::LEVELS, "free", level).await;
    let schema = json!({"metadata": {"name": "vip", "uid": "schema-uid"}, "spec": {
        "priorityLevelConfiguration": {"name": "free"}, "matchingPrecedence": 5,
        "rules": [{
            "subjects": [{"kind": "User", "user": {"name": "vip"}}],
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]}],
        }],
    }});
    put(flow::SCHEMAS, "vip", schema).await;
    core.flow.configure(&core.store);
    let seat = held(&world).await;
    let response = world.call_as("vip", "GET", PATH).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-kubernetes-pf-flowschema-uid"], "schema-uid");
    assert_eq!(response.headers()["x-kubernetes-pf-prioritylevel-uid"], "level-uid");
    drop(seat);
}

#[tokio::test]
async fn bodies_headers_and_objects_that_are_too_large_are_refused_with_upstreams_words() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = world().await;
    let (code, answer) = world.post(PATH, json!({"data": {"k": "x".repeat(3 << 20)}})).await;
    assert_eq!(
        (code.as_u16(), answer["message"].as_str().unwrap()),
        (413, "Request entity too large: limit is 3145728")
    );
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.x.io"},
        "spec": {"group": "x.io", "scope": "Cluster", "names": {"kind": "Thing", "plural": "things"}, "versions": [{
            "name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
        }]},
    });
    assert_eq!(world.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await.0, 201);
    let thing = |size: usize| json!({"apiVersion": "x.io/v1", "kind": "Thing", "metadata": {"name": "t"}, "text": "x".repeat(size)});
    let (code, answer) = world.post("/apis/x.io/v1/things", thing(1_600_000)).await;
    assert_eq!((code.as_u16(), answer["message"].as_str().unwrap()), (413, "etcdserver: request is too large"));
    assert_eq!(answer["reason"], "RequestEntityTooLarge");
    assert_eq!(world.post("/apis/x.io/v1/things", thing(1_400_000)).await.0, 201);

    // More header than anybody has, over the wire.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    world.server.serve(listener, &world.tasks).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    let pem = world.server.authority().ca_pem().to_owned();
    use rustls_pki_types::pem::PemObject as _;
    roots.add(rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let head = format!("GET /version HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "y".repeat(300_000));
    // The server may answer and close before it has read all of it.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
}

#[test]
fn an_address_has_so_many_connections_and_takes_none_from_others() {
    let flow = flow::Flow::new(Limits { connections: 2, ..Limits::default() });
    let connect = |from: &str| flow.connection(from.parse().unwrap());
    let mut held = vec![connect("10.1.2.3"), connect("10.1.2.3")];
    assert!(held.iter().all(Option::is_some) && connect("10.1.2.3").is_none());
    assert!(connect("10.1.2.4").is_some());
    held.pop();
    assert!(connect("10.1.2.3").is_some());
    // All users of this machine have one address.
    let local: Vec<_> = (0..10).map(|_| connect("127.0.0.1")).collect();
    assert!(local.iter().all(Option::is_some));
}

#[tokio::test]
async fn a_body_that_comes_a_byte_at_a_time_is_not_waited_for() {
    let world = world().await;
    tokio::time::pause();
    let drip = futures::stream::unfold((), |()| async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        Some((Ok::<_, std::convert::Infallible>(bytes::Bytes::from_static(b" ")), ()))
    });
    let mut request = Request::post(PATH).body(Body::from_stream(drip)).unwrap();
    request.extensions_mut().insert(server::Local);
    request.extensions_mut().insert(UserInfo::new("admin", [UserInfo::MASTERS.to_owned()]));
    let start = tokio::time::Instant::now();
    assert_eq!(world.server.call(request).await.status(), 504);
    assert!(start.elapsed().as_secs() <= 15);
}

use std::sync::Arc;
