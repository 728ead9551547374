//! Certificates from a real ACME server, which looks at this gateway on the ports that the RFCs fix.

use super::*;
use crate::{AcmeChallenge, AcmeConfig, AcmeStatus, web};
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use server::{AcmeServer, NAME};
use std::{future::Future, net::SocketAddr, path::Path};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

#[path = "../../../../tests/harness/acme.rs"]
mod server;

/// A gateway at the server's address, with a data directory that outlives it.
struct Door {
    tls: Arc<Tls>,
    tasks: Tasks,
    at: SocketAddr,
    _world: World,
}

fn config(server: &AcmeServer) -> AcmeConfig {
    AcmeConfig {
        directory: server.directory.parse().unwrap(),
        contact: vec!["ops@lab.example".into()],
        names: vec![NAME.into(), server.address.to_string()],
        challenge: AcmeChallenge::TlsAlpn,
        external: None,
        ca_bundle: Some(server.authority()),
        first_retry: Some(Duration::from_millis(300)),
    }
}

async fn open(server: &AcmeServer, folder: &Path, acme: AcmeConfig) -> Door {
    let world = world_with(|c| c.external_url = format!("https://{NAME}").parse().unwrap()).await;
    let source = TlsSource::Acme { folder: folder.into(), names: vec![NAME.into()], acme };
    let (tls, tasks) = (Tls::open(source).unwrap(), Tasks::new());
    let listener = TcpListener::bind((server.address, 443)).await.unwrap();
    let plain = TcpListener::bind((server.address, 80)).await.unwrap();
    let at = listener.local_addr().unwrap();
    world.gateway.serve_tls("gateway", listener, &tls, world.router.clone(), &tasks).unwrap();
    world.gateway.serve_redirect("plain", plain, &tls, &tasks);
    tls.keep(&tasks).unwrap();
    Door { tls, tasks, at, _world: world }
}

impl Door {
    async fn close(self) {
        self.tasks.stop();
        assert!(self.tasks.drain(Duration::from_secs(10)).await.is_empty());
    }

    fn status(&self) -> AcmeStatus {
        self.tls.acme().unwrap()
    }

    /// A connection of somebody who trusts this authority alone, to a name.
    async fn connect(&self, authority: &Path, name: &str, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        let roots = web::authorities_in(&std::fs::read(authority).unwrap()).unwrap();
        let mut tls = web::client_tls(roots).unwrap();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(tls)).connect(name, TcpStream::connect(self.at).await?).await
    }

    /// The certificate that somebody is shown who trusts the server's authority.
    async fn shown(&self, server: &AcmeServer, name: &str) -> CertificateDer<'static> {
        let stream = self.connect(&server.authority(), name, b"http/1.1").await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    }
}

async fn healthy(stream: &mut TlsStream<TcpStream>) {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: lab.example\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok\n") {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "{}", String::from_utf8_lossy(&answer));
    }
}

async fn until<T, F: Future<Output = Option<T>>>(what: &str, door: &Door, mut look: impl FnMut() -> F) -> T {
    let begun = std::time::Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} did not come: {:?}", door.status());
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

async fn ordered(door: &Door) -> AcmeStatus {
    until("a certificate", door, || async { Some(door.status()).filter(|s| s.until.is_some() && s.failures == 0) })
        .await
}

/// Files are looked at when somebody connects, once a second.
async fn served(door: &Door, server: &AcmeServer) -> CertificateDer<'static> {
    let trusted = || async { door.connect(&server.authority(), NAME, b"http/1.1").await.ok() };
    drop(until("the certificate in use", door, trusted).await);
    door.shown(server, NAME).await
}

async fn failed(door: &Door, times: u32) -> AcmeStatus {
    until("a failure", door, || async { Some(door.status()).filter(|s| s.failures >= times) }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_ordered_served_and_renewed_while_connections_stand() {
    let server = AcmeServer::start(&json!({"life": 12, "no_nonces": 1}), None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Until there is one, the box has one of its own authority.
    server.hold().unwrap();
    let door = open(&server, folder.path(), config(&server)).await;
    let own = authority_file(folder.path());
    healthy(&mut door.connect(&own, NAME, b"http/1.1").await.unwrap()).await;
    assert!(door.connect(&server.authority(), NAME, b"http/1.1").await.is_err());
    assert_eq!(door.status().until, None);
    server.release().unwrap();
    // Once of each kind the server did not know its own nonce any more.
    ordered(&door).await;
    // An open connection looks at no file: at most a second later the next ones have it.
    let first = until("the new certificate", &door, || async {
        let mut stream = door.connect(&server.authority(), NAME, b"http/1.1").await.ok()?;
        healthy(&mut stream).await;
        Some(stream)
    });
    let mut standing = first.await;
    let shown = door.shown(&server, &server.address.to_string()).await;
    assert_eq!(door.shown(&server, NAME).await, shown, "the address is in it too");
    // Who comes for a challenge that is over gets no handshake, whatever the name.
    for name in [NAME, "other.example"] {
        assert!(door.connect(&server.authority(), name, b"acme-tls/1").await.is_err());
    }
    until("the renewal", &door, || async { (door.shown(&server, NAME).await != shown).then_some(()) }).await;
    healthy(&mut standing).await;
    door.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_shown_over_plain_http_too_and_an_external_account_is_bound() {
    let keys =
        json!({"kid-1": "dGhpcy1pcy1hLXZlcnktbG9uZy1obWFjLXRvLW1ha2Utc3VyZS10aGF0LWl0cy1tb3JlLXRoYW4tMjU2LWJpdHM"});
    let server = AcmeServer::start(&json!({}), Some(&keys)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let http = AcmeConfig { challenge: AcmeChallenge::Http, ..config(&server) };
    let door = open(&server, folder.path(), http.clone()).await;
    let status = failed(&door, 1).await;
    assert!(status.error.contains("externalAccountRequired"), "{}", status.error);
    assert!(status.next_step.contains("external account"), "{}", status.next_step);
    door.close().await;

    let file = folder.path().join("hmac");
    std::fs::write(&file, format!("{}\n", keys["kid-1"].as_str().unwrap())).unwrap();
    let door =
        open(&server, folder.path(), AcmeConfig { external: Some(("kid-1".into(), file.clone())), ..http.clone() })
            .await;
    ordered(&door).await;
    // Everybody else on that port is led to https, challenges that are over included.
    for path in ["/runs?x=1", "/.well-known/acme-challenge/over"] {
        let mut plain = TcpStream::connect((server.address, 80)).await.unwrap();
        plain.write_all(format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        plain.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains(&format!("location: https://{NAME}{path}\r\n")), "{answer}");
    }
    door.close().await;
    // A key that is none is told at the start.
    std::fs::write(&file, "not base64!").unwrap();
    let acme = AcmeConfig { external: Some(("kid-1".into(), file.clone())), ..http };
    let source = TlsSource::Acme { folder: folder.path().into(), names: Vec::new(), acme };
    let error = Tls::open(source).unwrap_err().to_string();
    assert!(error.contains(file.to_str().unwrap()) && !error.contains("not base64!"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_and_a_wrong_certificate_change_nothing_and_are_told() {
    let mut server = AcmeServer::start(&json!({}), None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let own = authority_file(folder.path());
    // The server gives nothing for names outside its lab.
    let acme = AcmeConfig { names: vec!["bank.example".into()], ..config(&server) };
    let door = open(&server, folder.path(), acme).await;
    let status = failed(&door, 2).await;
    assert!(status.error.contains("refuse") || status.error.contains("certificate"), "{}", status.error);
    assert!(status.next.is_some() && !status.next_step.is_empty() && status.until.is_none());
    healthy(&mut door.connect(&own, NAME, b"http/1.1").await.unwrap()).await;
    door.close().await;

    // A server that hands out somebody else's.
    let key = rcgen::KeyPair::generate().unwrap();
    let other = rcgen::CertificateParams::new(vec!["other.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    server.set(&json!({"instead": other.pem()})).unwrap();
    let door = open(&server, folder.path(), config(&server)).await;
    let status = failed(&door, 1).await;
    assert!(status.error.contains("does not fit"), "{}", status.error);
    healthy(&mut door.connect(&own, NAME, b"http/1.1").await.unwrap()).await;
    // It is tried again by itself.
    server.set(&json!({"instead": null})).unwrap();
    ordered(&door).await;
    let good = std::fs::read(folder.path().join("acme/certificate.pem")).unwrap();
    door.close().await;

    // Other names are wanted, of a server that is away: the old certificate is served on.
    server.stop();
    let acme = AcmeConfig { names: vec!["new.lab.example".into()], ..config(&server) };
    let door = open(&server, folder.path(), acme).await;
    let status = failed(&door, 1).await;
    assert!(status.error.contains("cannot be reached") && status.next_step.contains("ca_bundle"), "{status:?}");
    door.shown(&server, NAME).await;
    assert_eq!(std::fs::read(folder.path().join("acme/certificate.pem")).unwrap(), good);
    door.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_was_cut_off_goes_on_and_a_server_that_forgot_us_is_told_again() {
    let server = AcmeServer::start(&json!({"renew_now": true}), None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    server.watch().unwrap();
    server.hold().unwrap();
    let door = open(&server, folder.path(), config(&server)).await;
    let at_the_end = || async { (server.seen("/finalize") > 0).then_some(()) };
    until("the request", &door, at_the_end).await;
    door.close().await;
    let door = open(&server, folder.path(), config(&server)).await;
    // Nor is it lost when it cannot be written.
    let place = folder.path().join("acme/certificate.pem");
    std::fs::create_dir(&place).unwrap();
    server.release().unwrap();
    let status = failed(&door, 1).await;
    assert!(status.error.contains(place.to_str().unwrap()) && status.until.is_none(), "{}", status.error);
    std::fs::remove_dir(&place).unwrap();
    ordered(&door).await;
    assert_eq!((server.seen("/neworders"), server.seen("/newaccount")), (1, 1), "the same order went on");
    let first = served(&door, &server).await;
    door.close().await;

    // The server would like its certificates renewed: it is asked at the start, long before two thirds of the life.
    let database = kfbox_db::rusqlite::Connection::open(server.file("acme.db")).unwrap();
    database.execute("UPDATE account SET name = 'another', jwk = 'another'", []).unwrap();
    let door = open(&server, folder.path(), config(&server)).await;
    // And it was set up anew meanwhile: the account that it does not know is replaced.
    until("the renewal", &door, || async { (door.shown(&server, NAME).await != first).then_some(()) }).await;
    assert_eq!(server.seen("/newaccount"), 2);
    door.close().await;

    // What a disk did to the file is told, and does not keep the gateway from serving.
    std::fs::write(folder.path().join("acme/certificate.pem"), "-----BEGIN CERTIFICATE-----\nnonsense").unwrap();
    let door = open(&server, folder.path(), config(&server)).await;
    ordered(&door).await;
    served(&door, &server).await;
    door.close().await;
}
