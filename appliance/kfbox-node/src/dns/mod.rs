//! The cluster's DNS server, in the daemon: on the bridge's IPv4 address, where the network sends what is asked of the DNS
//! service address. It tells addresses of both families. Source: the Kubernetes "DNS for Services and Pods" page.
//!
//! Guarantees: answers about the cluster are as new as the watches; a look-up outside that cannot be made fails fast.
//! Architecture Invariant: it listens on the bridge alone, and never asks itself.

mod upstream;
mod zone;

pub use upstream::Upstream;

use crate::{
    network::{Network, NetworkError},
    services::Directory,
};
use hickory_proto::{
    op::{Edns, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, Name, Record, RecordType},
};
use hickory_server::{
    Server,
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use kfbox_api::names::{KUBEFLOW_NAMESPACE, REGISTRY_HOST, REGISTRY_SERVICE};
use kfbox_base::{BoxError, Readiness, Tasks};
use parking_lot::Mutex;
use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use upstream::{Forwarder, Outside};
use zone::{Answer, Ranges, Zone};

/// A TCP client that sends nothing is let go.
const IDLE: Duration = Duration::from_secs(10);
/// Answers waiting for one TCP client; resolvers ask two questions at a time.
const PENDING: usize = 32;
/// The largest UDP answer that crosses any link in one piece (DNS flag day 2020).
const MAX_UDP: u16 = 1232;
/// Aliases followed: an ExternalName may name another service.
const MAX_ALIASES: usize = 8;

#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// `cluster.local`.
    pub domain: String,
    pub upstream: Upstream,
    /// Names outside of the domain that stand for others, for everybody who asks here.
    pub aliases: Vec<(String, String)>,
}

impl Default for DnsConfig {
    fn default() -> Self {
        let domain = "cluster.local";
        let registry = format!("{REGISTRY_SERVICE}.{KUBEFLOW_NAMESPACE}.svc.{domain}");
        Self {
            domain: domain.into(),
            upstream: Upstream::File("/etc/resolv.conf".into()),
            aliases: vec![(REGISTRY_HOST.into(), registry)],
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DnsServerError {
    #[error("{0:?} is not a domain name")]
    Domain(String),
    #[error("cannot listen for DNS on {address}: {source}")]
    Bind {
        address: IpAddr,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Starts the server and sends the DNS service address to it. Returns where it listens. It becomes ready when the first
/// view of all services is complete; questions before that wait for it.
pub async fn run(
    config: DnsConfig,
    directory: Directory,
    network: &Network,
    tasks: &Tasks,
    readiness: &Readiness,
) -> Result<SocketAddr, DnsServerError> {
    let absolute = |text: &String| {
        let mut name = Name::from_ascii(text).map_err(|_| DnsServerError::Domain(text.clone()))?;
        name.set_fqdn(true);
        Ok::<_, DnsServerError>(name)
    };
    let domain = absolute(&config.domain)?;
    let aliases = config.aliases.iter().map(|(name, target)| Ok((absolute(name)?, absolute(target)?)));
    let aliases = aliases.collect::<Result<Vec<_>, DnsServerError>>()?;
    let component = readiness.component("dns");
    let gateway = IpAddr::V4(network.gateway());
    let (udp, tcp) = bind(gateway).await.map_err(|source| DnsServerError::Bind { address: gateway, source })?;
    let address = udp.local_addr().map_err(|source| DnsServerError::Bind { address: gateway, source })?;
    let own = HashSet::from([gateway, IpAddr::V4(network.config().dns_ip)]);
    let handler = Handler {
        domain,
        aliases,
        ranges: Ranges { pods: network.config().pod_ranges(), services: network.config().service_ranges() },
        forwarder: Forwarder::new(config.upstream, own),
        changes: directory.changes(),
        zone: Mutex::new(None),
        directory: directory.clone(),
    };
    let mut server = Server::new(handler);
    server.register_socket(udp);
    server.register_listener(tcp, IDLE, PENDING);
    network.serve_dns_at(address.port()).await?;
    let shutdown = tasks.shutdown();
    tasks.essential("dns", async move {
        tokio::select! {
            complete = directory.complete() => complete?,
            () = shutdown.cancelled() => return Ok(()),
        }
        component.ready();
        tokio::select! {
            ended = server.block_until_done() => ended?,
            () = shutdown.cancelled() => drop(server.shutdown_gracefully().await),
        }
        Ok::<(), BoxError>(())
    });
    Ok(address)
}

/// The same port for both protocols: 53, so that people can ask it too, or another where something else has taken it.
async fn bind(address: IpAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let on = |port| async move {
        let udp = UdpSocket::bind((address, port)).await?;
        let tcp = TcpListener::bind((address, udp.local_addr()?.port())).await?;
        Ok::<_, io::Error>((udp, tcp))
    };
    let mut result = on(53).await;
    // A free UDP port may be taken for TCP.
    for _ in 0..8 {
        match result {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => result = on(0).await,
            other => return other,
        }
    }
    result
}

struct Handler {
    domain: Name,
    /// Few: they are looked through.
    aliases: Vec<(Name, Name)>,
    ranges: Ranges,
    forwarder: Forwarder,
    directory: Directory,
    changes: watch::Receiver<u64>,
    /// Made anew at the first question after a change.
    zone: Mutex<Option<(u64, Arc<Zone>)>>,
}

struct Reply {
    code: ResponseCode,
    /// Whether the cluster itself answered.
    own: bool,
    answers: Vec<Record>,
    authority: Vec<Record>,
}

impl Reply {
    fn error(code: ResponseCode) -> Self {
        Self { code, own: false, answers: Vec::new(), authority: Vec::new() }
    }
}

impl Handler {
    fn zone(&self) -> Arc<Zone> {
        let version = *self.changes.borrow();
        let mut current = self.zone.lock();
        if let Some((at, zone)) = &*current
            && *at == version
        {
            return zone.clone();
        }
        let (services, slices) = (self.directory.services.state(), self.directory.slices.state());
        let zone = Arc::new(Zone::new(&self.domain, &self.ranges, &services, &slices));
        *current = Some((version, zone.clone()));
        zone
    }

    async fn reply(&self, request: &Request) -> Reply {
        if request.metadata.op_code != OpCode::Query {
            return Reply::error(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else { return Reply::error(ResponseCode::FormErr) };
        let query = info.query.original();
        if query.query_class() != DNSClass::IN || matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
            return Reply::error(ResponseCode::Refused);
        }
        if self.directory.complete().await.is_err() {
            return Reply::error(ResponseCode::ServFail);
        }
        self.look_up(query.name().clone(), query.query_type()).await
    }

    async fn look_up(&self, mut name: Name, kind: RecordType) -> Reply {
        let mut answers: Vec<Record> = Vec::new();
        let mut own = true;
        for _ in 0..MAX_ALIASES {
            let zone = self.zone();
            let alias = self.aliases.iter().find(|(from, _)| *from == name).map(|(_, to)| Answer::Alias(to.clone()));
            let (code, authority) = match alias.unwrap_or_else(|| zone.answer(&name, kind)) {
                Answer::Records(records) => {
                    answers.extend(records);
                    (ResponseCode::NoError, vec![])
                }
                Answer::NoData => (ResponseCode::NoError, vec![zone.authority()]),
                // The alias itself exists, whatever becomes of its target.
                Answer::NoName if !answers.is_empty() => (ResponseCode::NoError, vec![]),
                Answer::NoName => (ResponseCode::NXDomain, vec![zone.authority()]),
                Answer::Alias(target) => {
                    answers.push(zone.alias(&name, &target));
                    if kind == RecordType::CNAME {
                        return Reply { code: ResponseCode::NoError, own, answers, authority: vec![] };
                    }
                    name = target;
                    continue;
                }
                Answer::Elsewhere => {
                    own = !answers.is_empty();
                    match self.forwarder.ask(&name, kind).await {
                        Outside::Records(records) => {
                            answers.extend(records);
                            (ResponseCode::NoError, vec![])
                        }
                        Outside::NoData(authority) => (ResponseCode::NoError, authority),
                        Outside::NoName(authority) => (ResponseCode::NXDomain, authority),
                        Outside::Failed => return Reply::error(ResponseCode::ServFail),
                    }
                }
            };
            return Reply { code, own, answers, authority };
        }
        Reply::error(ResponseCode::ServFail)
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut response: R) -> ResponseInfo {
        let reply = self.reply(request).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.own;
        metadata.recursion_available = true;
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(512, MAX_UDP));
            edns
        });
        let message = MessageResponseBuilder::new(&request.queries, edns.as_ref()).build(
            metadata,
            &reply.answers,
            &reply.authority,
            [],
            [],
        );
        match response.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "a DNS answer could not be sent");
                let mut failed = Metadata::response_from_request(&request.metadata);
                failed.response_code = ResponseCode::ServFail;
                hickory_proto::op::Header { metadata: failed, counts: Default::default() }.into()
            }
        }
    }
}

#[cfg(test)]
mod tests;
