//! Connections to addresses that users name, so that the daemon, which stands where users do not, is nobody's way in.
//! Guarantees: what is judged is the address that is connected to, after its name was resolved, so that a name that leads
//! elsewhere the second time gains nothing; the machine itself, the cluster's networks, link-local addresses and clouds'
//! metadata services are refused unless the operator named the endpoint; no redirect is followed and no proxy asked; every
//! wait has an end.

use axum::body::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use ipnet::{IpNet, Ipv6Net};
use kfbox_base::BoxError;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{net::TcpStream, time::Sleep};
use url::{Host, Url};

/// How long is waited.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub connect: Duration,
    /// Until the head of an answer, what is sent included.
    pub answer: Duration,
    /// Between two pieces of an answer's body.
    pub silence: Duration,
}

/// Less than a launcher waits (120 s).
const PATIENCE: Patience =
    Patience { connect: Duration::from_secs(10), answer: Duration::from_secs(100), silence: Duration::from_secs(60) };
const IDLE: Duration = Duration::from_secs(15);

/// Where the daemon may connect to for others.
#[derive(Debug)]
pub struct Policy {
    /// Endpoints that the operator named: scheme, host and port.
    named: Vec<Url>,
    /// The cluster's networks.
    inside: Vec<IpNet>,
}

/// An address that is not connected to. Told to users: it says nothing that they did not say, but for the address.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "{host} leads to {address}, {why}, where the daemon connects to for nobody; if that is meant, add the endpoint to the \
     setting pipelines.artifact_endpoints"
)]
pub struct Refusal {
    host: String,
    address: IpAddr,
    why: &'static str,
}

impl Policy {
    pub fn new(named: Vec<Url>, inside: Vec<IpNet>) -> Self {
        Self { named, inside }
    }

    /// The operator named this endpoint, or the host that this one is a bucket of.
    fn is_named(&self, scheme: &str, host: &str, port: u16) -> bool {
        self.named.iter().any(|url| {
            let of = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
            let bucket_of = || {
                matches!(url.host(), Some(Host::Domain(_)))
                    && host.strip_suffix(of).is_some_and(|bucket| bucket.ends_with('.'))
            };
            url.scheme() == scheme && url.port_or_known_default() == Some(port) && (host == of || bucket_of())
        })
    }

    fn refusal(&self, address: IpAddr, of_machine: &[IpAddr]) -> Option<&'static str> {
        let address = plain(address);
        if self.inside.iter().any(|net| net.contains(&address)) {
            return Some("an address of the cluster's");
        }
        if of_machine.contains(&address) {
            return Some("an address of this machine");
        }
        special(address)
    }
}

/// The IPv4 address that an IPv6 address stands for, where it does.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let s = v6.segments();
    let inner = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        // Mapped, NAT64, and the old compatible form (but not `::` and `::1`).
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => inner(high, low),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => inner(high, low),
        [0x2002, high, low, ..] => inner(high, low),
        _ => address,
    }
}

fn special(address: IpAddr) -> Option<&'static str> {
    const METADATA: &str = "a cloud's metadata service";
    match address {
        IpAddr::V4(v4) => match v4.octets() {
            [127, ..] => Some("this machine"),
            [0, ..] => Some("no address of anybody's"),
            [169, 254, ..] => Some("a link-local address"),
            // Alibaba's, Azure's and Oracle's.
            [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192] => Some(METADATA),
            [224..=255, ..] => Some("no address of anybody's"),
            _ => None,
        },
        IpAddr::V6(v6) => {
            let teredo: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32);
            if v6.is_loopback() {
                Some("this machine")
            } else if v6.is_unspecified() || v6.is_multicast() || teredo.contains(&v6) {
                Some("no address of anybody's")
            } else if v6.is_unicast_link_local() {
                Some("a link-local address")
            } else if [[0xfd00, 0x0ec2, 0], [0xfd20, 0x00ce, 0]].iter().any(|place| v6.segments()[..3] == *place) {
                // Amazon's and Google's.
                Some(METADATA)
            } else {
                None
            }
        }
    }
}

/// The cluster's networks from their settings.
pub fn networks(cidrs: &[&str]) -> anyhow::Result<Vec<IpNet>> {
    // A setting may hold one of each family.
    cidrs.iter().flat_map(|cidrs| cidrs.split(',')).map(|cidr| Ok(cidr.trim().parse()?)).collect()
}

/// Connects within the policy.
#[derive(Clone)]
pub struct Guarded(Arc<Policy>);

impl Guarded {
    async fn connect(self, uri: Uri) -> Result<TokioIo<TcpStream>, BoxError> {
        let scheme = uri.scheme_str().unwrap_or("http");
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        let found = tokio::time::timeout(PATIENCE.connect, tokio::net::lookup_host((host.as_str(), port))).await;
        let found = found.map_err(|_| format!("the name {host} was not resolved in time"))?;
        let found = found.map_err(|e| format!("the name {host} cannot be resolved: {e}"))?;
        let named = self.0.is_named(scheme, &host, port);
        let of_machine = addresses_of_machine()?;
        let mut last: BoxError = format!("the name {host} has no address").into();
        let mut tried = false;
        for address in found {
            if !named && let Some(why) = self.0.refusal(address.ip(), &of_machine) {
                if !tried {
                    last = Refusal { host: host.clone(), address: address.ip(), why }.into();
                }
                continue;
            }
            tried = true;
            match tokio::time::timeout(PATIENCE.connect, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true)?;
                    return Ok(TokioIo::new(stream));
                }
                Ok(Err(error)) => last = format!("{host} cannot be reached: {error}").into(),
                Err(_) => {
                    last = format!("{host} cannot be reached: nothing answered within {} s", PATIENCE.connect.as_secs())
                        .into()
                }
            }
        }
        Err(last)
    }
}

fn addresses_of_machine() -> Result<Vec<IpAddr>, BoxError> {
    let mut all = Vec::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        let Some(address) = interface.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            all.push(IpAddr::V4(v4.ip()));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            all.push(IpAddr::V6(v6.ip()));
        }
    }
    Ok(all)
}

impl tower::Service<Uri> for Guarded {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    #[error(transparent)]
    Refused(Refusal),
    #[error("{0}")]
    Connect(String),
    #[error("{host} did not answer within {seconds} s")]
    Timeout { host: String, seconds: u64 },
    #[error("{host}: {reason}")]
    Request { host: String, reason: String },
}

/// A client within the policy. Cheap to clone; clones share their connections.
pub struct Outbound<B>(Client<HttpsConnector<Guarded>, B>, Patience);

impl<B> Clone for Outbound<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), self.1)
    }
}

impl<B> std::fmt::Debug for Outbound<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outbound")
    }
}

impl<B> Outbound<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    /// Trusts the machine's certificate authorities, and those in the file `more`.
    pub fn new(policy: Arc<Policy>, more: Option<&Path>) -> anyhow::Result<Self> {
        let mut roots = kfbox_gateway::web::machine_authorities()?;
        if let Some(path) = more {
            let pem = std::fs::read(path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
            roots.roots.extend(kfbox_gateway::web::authorities_in(&pem)?.roots);
        }
        let tls = kfbox_gateway::web::client_tls(roots)?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Guarded(policy));
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_idle_timeout(IDLE).pool_max_idle_per_host(4);
        Ok(Self(client.build(connector), PATIENCE))
    }

    #[cfg(test)]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self(self.0, patience)
    }

    pub async fn send(&self, request: Request<B>) -> Result<Response<Patient>, OutboundError> {
        let host = request.uri().host().unwrap_or("?").to_owned();
        let answered = tokio::time::timeout(self.1.answer, self.0.request(request)).await;
        let answered =
            answered.map_err(|_| OutboundError::Timeout { host: host.clone(), seconds: self.1.answer.as_secs() })?;
        match answered {
            Ok(response) => Ok(response.map(|body| Patient::new(body, host, self.1.silence))),
            Err(error) => Err(explained(&error, host)),
        }
    }
}

/// The innermost cause says what happened; the outer ones say "client error".
fn explained(error: &hyper_util::client::legacy::Error, host: String) -> OutboundError {
    let mut cause: &(dyn std::error::Error + 'static) = error;
    loop {
        if let Some(refusal) = cause.downcast_ref::<Refusal>() {
            return OutboundError::Refused(refusal.clone());
        }
        // An I/O error shows its inner one, which the chain would skip.
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        match cause.source().or(inner.map(|e| e as &(dyn std::error::Error + 'static))) {
            Some(next) => cause = next,
            None => break,
        }
    }
    match error.is_connect() {
        true => OutboundError::Connect(match cause.to_string() {
            said if said.contains(&host) => said,
            said => format!("{host}: {said}"),
        }),
        false => OutboundError::Request { host, reason: cause.to_string() },
    }
}

/// A body that is given up when nothing comes.
pub struct Patient {
    body: Incoming,
    until: Pin<Box<Sleep>>,
    silence: Duration,
    host: String,
}

impl Patient {
    fn new(body: Incoming, host: String, silence: Duration) -> Self {
        Self { body, until: Box::pin(tokio::time::sleep(silence)), silence, host }
    }
}

impl Body for Patient {
    type Data = Bytes;
    type Error = OutboundError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, OutboundError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                this.until.as_mut().reset(tokio::time::Instant::now() + this.silence);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let host = this.host.clone();
                Poll::Ready(Some(Err(OutboundError::Request { host, reason: error.to_string() })))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if this.until.as_mut().poll(context).is_ready() => {
                let host = this.host.clone();
                Poll::Ready(Some(Err(OutboundError::Timeout { host, seconds: this.silence.as_secs() })))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Empty;

    fn policy(named: &[&str]) -> Policy {
        let named = named.iter().map(|u| u.parse().unwrap()).collect();
        Policy::new(named, networks(&["10.244.0.0/22,fd07:1::/64", "10.96.0.0/16, fd07:2::/112"]).unwrap())
    }

    #[test]
    fn what_is_inside_is_refused_however_it_is_written() {
        let policy = policy(&[]);
        let machine = ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        for refused in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "169.254.169.254",
            "10.244.1.5",
            "10.96.0.1",
            "192.0.2.7",
            "100.100.100.200",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.244.1.5",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001:0:1::1",
            "fe80::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fd07:1::9",
            "fd07:2::9",
            "ff02::1",
            "2001:db8::7",
        ] {
            assert!(policy.refusal(refused.parse().unwrap(), &machine).is_some(), "{refused}");
        }
        for allowed in ["198.51.100.1", "192.168.1.5", "10.1.2.3", "2001:db8::8", "64:ff9b::c633:6401"] {
            assert_eq!(policy.refusal(allowed.parse().unwrap(), &machine), None, "{allowed}");
        }
    }

    #[test]
    fn an_endpoint_is_named_by_scheme_host_and_port() {
        let policy = policy(&["http://127.0.0.1:9000", "https://minio.lab", "http://[::1]:9000/"]);
        assert!(policy.is_named("http", "127.0.0.1", 9000) && policy.is_named("http", "::1", 9000));
        assert!(policy.is_named("https", "minio.lab", 443) && policy.is_named("https", "bucket.minio.lab", 443));
        for (scheme, host, port) in [
            ("https", "127.0.0.1", 9000),
            ("http", "127.0.0.1", 9001),
            ("http", "127.0.0.2", 9000),
            ("http", "x.127.0.0.1", 9000),
            ("http", "minio.lab", 80),
            ("https", "evilminio.lab", 443),
        ] {
            assert!(!policy.is_named(scheme, host, port), "{scheme}://{host}:{port}");
        }
    }

    /// The name of loopback is no way around its address, and a named endpoint is one.
    #[tokio::test]
    async fn a_name_is_judged_by_where_it_leads() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let ask = |policy: Policy| async move {
            let client: Outbound<Empty<Bytes>> = Outbound::new(Arc::new(policy), None).unwrap();
            let request = Request::get(format!("http://localhost:{port}/")).body(Empty::new()).unwrap();
            client.send(request).await.map(drop).unwrap_err()
        };
        let refused = ask(policy(&[])).await;
        assert!(matches!(refused, OutboundError::Refused(_)), "{refused}");
        assert!(refused.to_string().contains("pipelines.artifact_endpoints"), "{refused}");
        let server = async { drop(listener.accept().await.unwrap()) };
        let (closed, ()) = tokio::join!(ask(policy(&[&format!("http://localhost:{port}")])), server);
        assert!(matches!(closed, OutboundError::Request { .. }), "{closed}");
    }
}
