//! Names outside the cluster, asked of the host's own servers. A laptop changes its network, so the host's `resolv.conf` is
//! looked at again when it changed.

use hickory_proto::{
    op::ResponseCode,
    rr::{Name, Record, RecordType},
};
use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    system_conf::parse_resolv_conf,
};
use parking_lot::Mutex;
use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// Of one try; a pod's own resolver waits 5 seconds in all.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// Answers remembered.
const CACHE: u64 = 4096;
/// How often the host's file is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// After so many silent tries in a row the servers count as gone, and are asked again only after a pause: without a network
/// every look-up would take seconds to fail.
const SILENT: u32 = 3;
const PAUSE: Duration = Duration::from_secs(5);

/// Whom to ask for names outside the cluster.
#[derive(Debug, Clone)]
pub enum Upstream {
    /// The servers of a `resolv.conf`.
    File(PathBuf),
    Servers(Vec<SocketAddr>),
    /// Nobody: such names do not exist.
    None,
}

/// What became of a look-up outside.
pub enum Outside {
    Records(Vec<Record>),
    NoData(Vec<Record>),
    NoName(Vec<Record>),
    Failed,
}

pub struct Forwarder {
    upstream: Upstream,
    /// Our own addresses, which a `resolv.conf` may name: asking them would go round in circles.
    own: HashSet<IpAddr>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    resolver: Option<Arc<TokioResolver>>,
    seen: Option<SystemTime>,
    looked: Option<Instant>,
    silent: u32,
    paused_until: Option<Instant>,
}

impl Forwarder {
    pub fn new(upstream: Upstream, own: HashSet<IpAddr>) -> Self {
        Self { upstream, own, state: Mutex::default() }
    }

    pub async fn ask(&self, name: &Name, kind: RecordType) -> Outside {
        let Some(resolver) = self.resolver() else { return Outside::NoName(Vec::new()) };
        if self.state.lock().paused_until.is_some_and(|until| Instant::now() < until) {
            return Outside::Failed;
        }
        let mut name = name.clone();
        name.set_fqdn(true);
        let result = resolver.lookup(name.clone(), kind).await;
        let mut state = self.state.lock();
        match result {
            Ok(found) => {
                state.silent = 0;
                Outside::Records(found.answers().to_vec())
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                state.silent = 0;
                let authority = none.authorities.map(|a| a.to_vec()).unwrap_or_default();
                match none.response_code {
                    ResponseCode::NXDomain => Outside::NoName(authority),
                    ResponseCode::NoError => Outside::NoData(authority),
                    _ => Outside::Failed,
                }
            }
            Err(error) => {
                tracing::debug!(%name, %kind, %error, "no answer from outside");
                if matches!(error, NetError::Timeout | NetError::Io(_) | NetError::NoConnections) {
                    state.silent += 1;
                    if state.silent >= SILENT {
                        state.silent = 0;
                        state.paused_until = Some(Instant::now() + PAUSE);
                        tracing::info!("the host's name servers do not answer; names outside fail at once for a while");
                    }
                }
                Outside::Failed
            }
        }
    }

    fn resolver(&self) -> Option<Arc<TokioResolver>> {
        let mut state = self.state.lock();
        if state.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return state.resolver.clone();
        }
        state.looked = Some(Instant::now());
        let servers = match &self.upstream {
            Upstream::None => return None,
            Upstream::Servers(_) if state.resolver.is_some() => return state.resolver.clone(),
            Upstream::Servers(servers) => servers
                .iter()
                .map(|server| {
                    let mut config = NameServerConfig::udp_and_tcp(server.ip());
                    for connection in &mut config.connections {
                        connection.port = server.port();
                    }
                    config
                })
                .collect(),
            Upstream::File(path) => {
                // A small file, read when it changed; it may be a link that another program moves.
                let changed = std::fs::metadata(path).and_then(|m| m.modified()).ok();
                if changed.is_some() && changed == state.seen {
                    return state.resolver.clone();
                }
                state.seen = changed;
                let parsed = std::fs::read(path).ok().and_then(|text| parse_resolv_conf(text).ok());
                parsed.map(|(config, _)| config.name_servers().to_vec()).unwrap_or_default()
            }
        };
        let servers: Vec<NameServerConfig> =
            servers.into_iter().filter(|server| !self.own.contains(&server.ip)).collect();
        state.paused_until = None;
        state.resolver = if servers.is_empty() { None } else { build(servers) };
        state.resolver.clone()
    }
}

fn build(servers: Vec<NameServerConfig>) -> Option<Arc<TokioResolver>> {
    let mut options = ResolverOpts::default();
    options.timeout = TIMEOUT;
    options.attempts = 1;
    options.cache_size = CACHE;
    options.edns0 = true;
    // The host's own file is the host's; pods have theirs.
    options.use_hosts_file = ResolveHosts::Never;
    let config = ResolverConfig::from_name_servers(servers);
    let built =
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build();
    match built {
        Ok(resolver) => Some(Arc::new(resolver)),
        Err(error) => {
            tracing::warn!(%error, "the host's name servers cannot be used");
            None
        }
    }
}
