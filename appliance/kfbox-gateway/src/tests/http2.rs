//! HTTP/2 at the gateway's door, with TLS and without, and what is no way to it.

use super::user_services::{Lab, lab};
use super::*;
use crate::{
    serve::{self, Entrance},
    user_routes::Backend,
    web,
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use std::{convert::Infallible, net::SocketAddr};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

type Sender = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

/// Longer than anything here takes, unless it hangs.
const LONG: Duration = Duration::from_secs(20);

async fn client<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    tasks: &Tasks,
) -> (Sender, tokio::task::JoinHandle<hyper::Result<()>>) {
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    (sender, tasks.spawn("client", connection))
}

fn get(url: &str) -> http::Request<Full<Bytes>> {
    http::Request::get(url).body(Full::default()).unwrap()
}

/// A certificate for this machine, and the authority that made it.
fn certificate() -> (Arc<Tls>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let tls = Tls::open(TlsSource::SelfSigned { folder: folder.path().into(), names: Vec::new() }).unwrap();
    (tls, std::fs::read(authority_file(folder.path())).unwrap())
}

/// A gateway's listener with TLS, and the authority that its clients trust.
struct Door {
    at: SocketAddr,
    authority: Vec<u8>,
}

impl Door {
    async fn open(w: &World, tasks: &Tasks, patience: Duration) -> Self {
        let (tls, authority) = certificate();
        let at = listen(w, w.gateway.entrance(&tls).unwrap(), tasks, patience).await;
        Self { at, authority }
    }

    async fn connect(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let mut tls = web::client_tls(web::authorities_in(&self.authority).unwrap()).unwrap();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let name = ServerName::try_from("localhost".to_owned()).unwrap();
        let stream = TcpStream::connect(self.at).await.unwrap();
        TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap()
    }
}

/// With three connections at once.
async fn listen(w: &World, entrance: Entrance, tasks: &Tasks, patience: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let slots = Arc::new(Semaphore::new(3));
    serve::accept_within("door".into(), listener, entrance, w.router.clone().into(), tasks, slots, patience);
    at
}

/// A gRPC server in a pod's place, which tells who asked and how they came.
async fn pod(tasks: &Tasks) -> Backend {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = Backend { address: listener.local_addr().unwrap(), http2: true };
    let all = tasks.clone();
    tasks.spawn("grpc", async move {
        while let Ok((stream, _)) = listener.accept().await {
            all.spawn("grpc-connection", async move {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let service = hyper::service::service_fn(answer);
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    backend
}

async fn answer(request: http::Request<Incoming>) -> Result<Response, Infallible> {
    assert_eq!(request.headers()["te"], "trailers");
    let text = |name: &str| String::from_utf8_lossy(request.headers()[name].as_bytes()).into_owned();
    let told = format!("{} by {} says ", text("kubeflow-userid"), text("x-forwarded-proto"));
    let said = request.into_body().collect().await.unwrap().to_bytes();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let frames = [Frame::data(Bytes::from(told)), Frame::data(said), Frame::trailers(trailers)];
    let frames = futures::stream::iter(frames.map(Ok::<_, Infallible>));
    Ok(Response::new(Body::new(StreamBody::new(frames))))
}

async fn call(sender: &mut Sender, scheme: &str, bearer: &str) {
    let health = sender.send_request(get(&format!("{scheme}://lab.example/healthz"))).await.unwrap();
    assert_eq!((health.status(), health.version()), (StatusCode::OK, http::Version::HTTP_2));
    let request = http::Request::post(format!("{scheme}://lab.example/app/team-a/pkg.Service/Call"))
        .header("authorization", bearer)
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::from("hello")))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(body.to_bytes(), format!("{EMAIL} by {scheme} says hello"));
}

async fn bearer(lab: &Lab) -> String {
    let token = lab.w.gateway.create_token(EMAIL, TokenRequest::new("t", None)).await.unwrap();
    format!("Bearer {}", token.reveal())
}

#[tokio::test]
async fn grpc_gets_through_with_tls_and_without() {
    let tasks = Tasks::new();
    let lab = lab(&[pod(&tasks).await], |_| {}).await;
    let bearer = bearer(&lab).await;
    let (mut plain, _) = client(lab.raw("").await, &tasks).await;
    call(&mut plain, "http", &bearer).await;
    let door = Door::open(&lab.w, &lab.tasks, LONG).await;
    let (mut tls, _) = client(door.connect(b"h2").await, &tasks).await;
    call(&mut tls, "https", &bearer).await;
    // Who is a stranger stays one.
    let refused = plain.send_request(get("http://lab.example/app/team-a/x")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    tasks.stop();
}

/// What ends the answer of a pod.
const END: &str = "and no more";

/// A pod that speaks HTTP/1.1 and gives back the first request's header: by an upgrade, if it asks for a WebSocket.
async fn mirror(tasks: &Tasks) -> Backend {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = Backend { address: listener.local_addr().unwrap(), http2: false };
    tasks.spawn("mirror", async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = until(&mut stream, "\r\n\r\n").await.to_lowercase();
        let answer = match head.contains("upgrade: websocket") {
            true => "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n".to_owned(),
            false => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}{END}", head.len() + END.len()),
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.ok();
    });
    backend
}

async fn until(stream: &mut (impl AsyncRead + Unpin), wanted: &str) -> String {
    let (mut found, mut buffer) = (String::new(), [0; 1024]);
    while !found.contains(wanted) {
        let read = tokio::time::timeout(LONG, stream.read(&mut buffer)).await.expect("in time").unwrap();
        assert!(read > 0, "ended before {wanted:?}: {found}");
        found.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    found
}

#[tokio::test]
async fn a_websocket_goes_through_tls() {
    let tasks = Tasks::new();
    let lab = lab(&[mirror(&tasks).await], |_| {}).await;
    let door = Door::open(&lab.w, &lab.tasks, LONG).await;
    let mut stream = door.connect(b"http/1.1").await;
    let ask = format!(
        "GET /app/team-a/ws HTTP/1.1\r\nHost: lab.example\r\nAuthorization: {}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        bearer(&lab).await
    );
    stream.write_all(ask.as_bytes()).await.unwrap();
    assert!(until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 101 "));
    stream.write_all(b"there and back").await.unwrap();
    until(&mut stream, "there and back").await;
    tasks.stop();
}

#[tokio::test]
async fn no_request_upgrades_to_http2() {
    for asked in ["h2c", "websocket, H2C", "h2", "HTTP/2.0"] {
        let tasks = Tasks::new();
        let lab = lab(&[mirror(&tasks).await], |_| {}).await;
        let ask = format!(
            "GET /app/team-a/x HTTP/1.1\r\nHost: lab.example\r\nAuthorization: {}\r\nConnection: Upgrade\r\n\
             Upgrade: {asked}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
            bearer(&lab).await
        );
        let text = until(&mut lab.raw(&ask).await, END).await;
        assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("kubeflow-userid"), "{asked}: {text}");
        let rest = text.to_lowercase();
        assert!(!rest.contains("upgrade") && !rest.contains("http2-settings"), "{asked}: {text}");
        tasks.stop();
    }
}

#[tokio::test]
async fn who_never_says_what_they_speak_is_closed_in_time() {
    const PATIENCE: Duration = Duration::from_millis(500);
    let (w, tasks) = (world().await, Tasks::new());
    let plain = listen(&w, Entrance::Plain, &tasks, PATIENCE).await;
    let door = Door::open(&w, &tasks, PATIENCE).await;
    let silent = async |beginning: &str| {
        let mut stream = TcpStream::connect(plain).await.unwrap();
        stream.write_all(beginning.as_bytes()).await.unwrap();
        drop(tokio::time::timeout(LONG, stream.read_to_end(&mut Vec::new())).await.expect("closed"));
    };
    let silent_in_tls = async {
        let mut stream = door.connect(b"h2").await;
        stream.write_all(b"PRI * HTTP").await.unwrap();
        // Without a last word of TLS, which is an error to read.
        drop(tokio::time::timeout(LONG, stream.read_to_end(&mut Vec::new())).await.expect("closed"));
    };
    tokio::join!(silent(""), silent("GET / HT"), silent("PRI * HTTP/2.0\r\n"), silent_in_tls);
    // Their places are free again.
    let (mut sender, _) = client(TcpStream::connect(plain).await.unwrap(), &tasks).await;
    let health = tokio::time::timeout(LONG, sender.send_request(get("http://lab.example/healthz")));
    assert_eq!(health.await.expect("in time").unwrap().status(), StatusCode::OK);
    tasks.stop();
}

#[tokio::test]
async fn what_is_being_answered_at_the_end_is_answered_and_no_stream_begins_after_it() {
    let (begun, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (at, on) = (begun.clone(), go.clone());
    let slow = Router::new().fallback(any(move || {
        let (at, on) = (at.clone(), on.clone());
        async move {
            at.add_permits(1);
            on.acquire().await.unwrap().forget();
            "the whole answer"
        }
    }));
    let (w, tasks, clients) = (world().await, Tasks::new(), Tasks::new());
    let workers = w.gateway.workers(&Mounts::new().at("/", slow), &tasks).unwrap();
    let (plain, secure) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let (address, (tls, authority)) = (plain.local_addr().unwrap(), certificate());
    let door = Door { at: secure.local_addr().unwrap(), authority };
    workers.serve("gateway", plain).unwrap();
    workers.serve_tls("gateway with TLS", secure, &tls).unwrap();
    let (mut first, first_ended) = client(TcpStream::connect(address).await.unwrap(), &clients).await;
    let (mut second, second_ended) = client(door.connect(b"h2").await, &clients).await;
    let cookie = w.sign_in().await;
    let ask = |scheme: &str| {
        let mut request = get(&format!("{scheme}://lab.example/x"));
        request.headers_mut().insert(header::COOKIE, cookie.parse().unwrap());
        request
    };
    let end = async {
        begun.acquire_many(2).await.unwrap().forget();
        tasks.stop();
        for at in [address, door.at] {
            while TcpStream::connect(at).await.is_ok() {}
        }
        go.add_permits(2);
    };
    let all = async { tokio::join!(first.send_request(ask("http")), second.send_request(ask("https")), end) };
    let (one, other, ()) = tokio::time::timeout(LONG, all).await.expect("in time");
    for response in [one.unwrap(), other.unwrap()] {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "the whole answer");
    }
    for (mut sender, ended) in [(first, first_ended), (second, second_ended)] {
        drop(tokio::time::timeout(LONG, ended).await.expect("the connection's end").unwrap());
        assert!(sender.send_request(ask("http")).await.is_err());
    }
    assert_eq!(tasks.drain(LONG).await, Vec::<String>::new());
}
