//! A certificate from an ACME server (RFC 8555), ordered and renewed while the gateway serves.
//!
//! Guarantees: until the first certificate is there, the gateway has one of its own authority; a certificate is renewed
//! after two thirds of its life, or when the server says so (RFC 9773); after a failure it is tried again, later each
//! time, never sooner than the server wants; nothing restarts and no connection is dropped. Challenges are answered by
//! the gateway's own TLS listener (`tls-alpn-01`), or over plain HTTP (`http-01`).
//! Assumption: the server's validators reach the names on the ports that the RFCs fix: 443, and 80.

pub(crate) mod challenges;
mod client;
pub(crate) mod files;
mod order;

use super::TlsError;
use crate::web::WebClient;
use challenges::{ChallengeError, Challenges};
use chrono::{DateTime, Duration as Span, Utc};
use client::Client;
use files::{Files, Leaf};
use kfbox_base::Tasks;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{convert::Infallible, path::PathBuf, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use url::Url;

/// At least so often it is looked whether a time has come: clocks are set and machines sleep.
const LOOK: Duration = Duration::from_secs(3600);
/// How often a server is asked when it would like its certificate renewed; RFC 9773 section 4.3.2 has no more often.
const ASK: Span = Span::hours(6);
/// After a failure, and twice as long after each further one, up to the longest. Let's Encrypt takes five failed
/// validations an hour.
const FIRST_RETRY: Duration = Duration::from_secs(60);
const LONGEST_RETRY: Duration = Duration::from_secs(6 * 3600);
/// Certificates that live for seconds are a test's; still, no server is asked all the time.
const SHORTEST_WAIT: Span = Span::seconds(2);

/// How the server is shown that a name is ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AcmeChallenge {
    /// On port 443, in the TLS handshake.
    #[default]
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn,
    /// On port 80, over plain HTTP.
    #[serde(rename = "http-01")]
    Http,
}

/// Which server, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeConfig {
    /// The server's directory, by https.
    pub directory: Url,
    /// E-mail addresses that the server may write to.
    pub contact: Vec<String>,
    /// The certificate's: host names and addresses in lower case, the first of which is the gateway's own.
    pub names: Vec<String>,
    pub challenge: AcmeChallenge,
    /// The id and the file of the key (base64url) that bind the account to one that the server's people know.
    pub external: Option<(String, PathBuf)>,
    /// Authorities to trust besides the machine's, in PEM.
    pub ca_bundle: Option<PathBuf>,
    /// How long to wait after the first failure. None: a minute.
    pub first_retry: Option<Duration>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum AcmeError {
    #[error("{}", causes(.0))]
    Server(#[from] instant_acme::Error),
    #[error("the server does not believe that {name} is this box: {why}")]
    Refused { name: String, why: String },
    #[error("{0}")]
    Invalid(String),
    #[error("the server does not offer {wanted} for {name}")]
    NoChallenge { name: String, wanted: &'static str },
    #[error(transparent)]
    Offer(ChallengeError),
    #[error("cannot make the request: {0}")]
    Request(rcgen::Error),
    #[error("the server's certificate cannot be used: {0}")]
    Unusable(String),
    #[error("cannot read or write {path}: {source}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

fn causes(error: &instant_acme::Error) -> String {
    match error {
        instant_acme::Error::Api(problem) => {
            format!("the server refuses: {}", problem.to_string().trim_start_matches("API error: "))
        }
        other => other.to_string(),
    }
}

impl AcmeError {
    /// What somebody can do about it.
    fn next_step(&self, config: &AcmeConfig) -> String {
        let port = match config.challenge {
            AcmeChallenge::TlsAlpn => "port 443 of that name must reach the gateway's TLS listener",
            AcmeChallenge::Http => "port 80 of that name must reach gateway.tls.acme.http_address",
        };
        match self {
            Self::Server(instant_acme::Error::Api(_)) => {
                "see what the server wants: names, account, contact, external account".into()
            }
            Self::Server(_) => format!(
                "check that this machine reaches {} and trusts its certificate (gateway.tls.acme.ca_bundle)",
                config.directory
            ),
            Self::Refused { .. } | Self::Invalid(_) => {
                format!("{port} from the server's side, with nothing in between that ends TLS or redirects")
            }
            Self::NoChallenge { .. } => "set gateway.tls.acme.challenge to a kind that the server offers".into(),
            Self::File { .. } => "make room, or correct the rights of that path".into(),
            Self::Unusable(_) => "ask whoever runs the server; the certificate in use stays".into(),
            Self::Offer(_) | Self::Request(_) => "correct gateway.tls.names".into(),
        }
    }
}

/// How the certificate stands, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AcmeStatus {
    /// What it is asked for.
    pub names: Vec<String>,
    pub directory: String,
    /// The end of the certificate in use. None: the box serves one of its own authority.
    pub until: Option<DateTime<Utc>>,
    /// When it is tried (again) to get one.
    pub next: Option<DateTime<Utc>>,
    /// Attempts that failed since the last that did not.
    pub failures: u32,
    /// Why the last one failed, and what to do.
    pub error: String,
    pub next_step: String,
}

/// The keeper of the certificate.
#[derive(Debug)]
pub(crate) struct Acme {
    pub config: AcmeConfig,
    pub files: Files,
    pub challenges: Arc<Challenges>,
    external: Option<(String, Vec<u8>)>,
    /// PEM of authorities besides the machine's.
    authorities: Option<Vec<u8>>,
    status: Mutex<AcmeStatus>,
}

impl Acme {
    pub fn open(config: AcmeConfig, pki: &std::path::Path) -> Result<Self, TlsError> {
        let read = |path: &PathBuf| std::fs::read(path).map_err(|source| TlsError::File { path: path.clone(), source });
        let unusable = |path: &PathBuf, why: String| TlsError::Unusable { path: path.clone(), why };
        let external = match &config.external {
            Some((id, path)) => {
                let key = decode_key(&read(path)?).ok_or_else(|| unusable(path, "it is no key in base64url".into()))?;
                Some((id.clone(), key))
            }
            None => None,
        };
        let authorities = config.ca_bundle.as_ref().map(|path| {
            let pem = read(path)?;
            crate::web::authorities_in(&pem).map_err(|e| unusable(path, e.to_string()))?;
            Ok::<_, TlsError>(pem)
        });
        let files = Files::open(pki)?;
        let status = AcmeStatus {
            names: config.names.clone(),
            directory: config.directory.as_str().to_owned(),
            until: files.leaf().map(|leaf| leaf.until),
            ..AcmeStatus::default()
        };
        Ok(Self {
            files,
            challenges: Arc::default(),
            external,
            authorities: authorities.transpose()?,
            status: Mutex::new(status),
            config,
        })
    }

    pub fn status(&self) -> AcmeStatus {
        self.status.lock().clone()
    }

    /// Looks after the certificate until shutdown.
    pub fn keep(self: &Arc<Self>, tasks: &Tasks) -> Result<(), TlsError> {
        let web = WebClient::new(self.authorities.as_deref()).map_err(|e| TlsError::Client(e.to_string()))?;
        let (acme, shutdown) = (self.clone(), tasks.shutdown());
        tasks.essential("certificate", async move {
            acme.follow(web, shutdown).await;
            Ok::<(), Infallible>(())
        });
        Ok(())
    }

    async fn follow(&self, web: WebClient, shutdown: CancellationToken) {
        let client = Client::new(web.clone());
        let mut failures = 0;
        let mut next = self.files.leaf().map_or_else(Utc::now, |leaf| self.due(&leaf));
        let mut ask = Utc::now();
        loop {
            if ask <= Utc::now() {
                ask = Utc::now() + ASK;
                if let Some(wanted) = self.asked_for(&web, &shutdown).await {
                    next = next.min(wanted);
                }
            }
            self.status.lock().next = Some(next);
            let wait = (next - Utc::now()).to_std().unwrap_or_default().min(LOOK);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            if Utc::now() < next {
                continue;
            }
            let outcome = tokio::select! {
                () = shutdown.cancelled() => return,
                outcome = order::obtain(self, &client) => outcome,
            };
            next = match outcome {
                Ok(leaf) => {
                    failures = 0;
                    self.succeeded(&leaf)
                }
                Err(error) => {
                    failures += 1;
                    self.failed(&error, failures, client.take_pause())
                }
            };
        }
    }

    /// When a certificate that is here is renewed: now, if it is not for the names wanted.
    fn due(&self, leaf: &Leaf) -> DateTime<Utc> {
        if !leaf.is_for(&self.config.names) {
            return Utc::now();
        }
        two_thirds(leaf, rand::random_range(0.0..1.0))
    }

    fn succeeded(&self, leaf: &Leaf) -> DateTime<Utc> {
        let now = Utc::now();
        // A server that dates its certificates back must not be asked for another at once.
        let soonest = now + ((leaf.until - now) / 3).max(SHORTEST_WAIT);
        let next = self.due(leaf).max(soonest);
        tracing::info!(target: "audit", names = ?leaf.names, until = %leaf.until, "the gateway has a new certificate");
        let mut status = self.status.lock();
        status.until = Some(leaf.until);
        (status.failures, status.error, status.next_step) = (0, String::new(), String::new());
        next
    }

    fn failed(&self, error: &AcmeError, failures: u32, pause: Option<Duration>) -> DateTime<Utc> {
        let first = self.config.first_retry.unwrap_or(FIRST_RETRY);
        let wait = back_off(first, failures, rand::random_range(0.0..1.0)).max(pause.unwrap_or_default());
        let next = Utc::now() + Span::from_std(wait).unwrap_or(Span::hours(24));
        let next_step = error.next_step(&self.config);
        tracing::warn!(%error, failures, again = %next, next = next_step, "no certificate from the ACME server");
        let mut status = self.status.lock();
        (status.failures, status.error, status.next_step) = (failures, error.to_string(), next_step);
        next
    }

    /// When the server would like the certificate in use renewed. Its silence is no failure: not all servers know this.
    async fn asked_for(&self, web: &WebClient, shutdown: &CancellationToken) -> Option<DateTime<Utc>> {
        let leaf = self.files.leaf().filter(|leaf| !leaf.renewal_id.is_empty())?;
        let asking = async {
            let directory = web.get(&self.config.directory).await.ok()?;
            let base = directory.get("renewalInfo")?.as_str()?;
            let url = Url::parse(&format!("{}/{}", base.trim_end_matches('/'), leaf.renewal_id)).ok()?;
            if url.scheme() != "https" {
                return None;
            }
            web.get(&url).await.inspect_err(|error| tracing::debug!(%error, "no renewal information")).ok()
        };
        let answer = tokio::select! {
            () = shutdown.cancelled() => return None,
            answer = asking => answer?,
        };
        let at = window(&answer, rand::random_range(0.0..1.0))?;
        tracing::debug!(%at, "the ACME server names a time for the renewal");
        Some(at)
    }
}

/// After two thirds of the life, a little sooner by chance: many boxes of one lab do not come at once.
fn two_thirds(leaf: &Leaf, chance: f64) -> DateTime<Utc> {
    let life = (leaf.until - leaf.from).num_seconds().max(0) as f64;
    leaf.from + Span::seconds((life * (2.0 / 3.0 - 0.02 * chance)) as i64)
}

fn back_off(first: Duration, failures: u32, chance: f64) -> Duration {
    let longer = first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(LONGEST_RETRY);
    longer.mul_f64(0.75 + 0.5 * chance)
}

/// A moment of the window that a server suggests (RFC 9773 section 4.2).
fn window(answer: &serde_json::Value, chance: f64) -> Option<DateTime<Utc>> {
    let at =
        |which: &str| DateTime::parse_from_rfc3339(answer["suggestedWindow"][which].as_str()?).ok().map(|t| t.to_utc());
    let (start, end) = (at("start")?, at("end")?);
    let length = (end - start).num_seconds();
    (length >= 0).then(|| start + Span::seconds((length as f64 * chance) as i64))
}

fn decode_key(text: &[u8]) -> Option<Vec<u8>> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let text = std::str::from_utf8(text).ok()?.trim().trim_end_matches('=');
    // Some servers' pages show it in the other alphabet.
    let text = text.replace('+', "-").replace('/', "_");
    URL_SAFE_NO_PAD.decode(text).ok().filter(|key| key.len() >= 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(days: i64) -> Leaf {
        let from = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        Leaf { names: vec!["a.example".into()], from, until: from + Span::days(days), renewal_id: String::new() }
    }

    #[test]
    fn renewal_comes_after_two_thirds_or_a_little_before() {
        let ninety = leaf(90);
        assert_eq!(two_thirds(&ninety, 0.0) - ninety.from, Span::days(60));
        let early = two_thirds(&ninety, 1.0) - ninety.from;
        assert!(early < Span::days(60) && early > Span::days(58), "{early}");
        let backwards = Leaf { until: ninety.from - Span::days(1), ..ninety.clone() };
        assert_eq!(two_thirds(&backwards, 0.5), ninety.from);
    }

    #[test]
    fn each_failure_waits_longer_and_never_too_long() {
        let first = Duration::from_secs(60);
        for (failures, seconds) in
            [(1, 60), (2, 120), (3, 240), (8, 7680), (9, 15360), (10, 21600), (4_000_000_000, 21600)]
        {
            assert_eq!(back_off(first, failures, 0.5), Duration::from_secs(seconds), "{failures}");
        }
        assert_eq!(back_off(first, 1, 0.0), Duration::from_secs(45));
        assert_eq!(back_off(Duration::MAX, 3, 0.5), LONGEST_RETRY);
    }

    #[test]
    fn a_servers_window_is_read_and_nonsense_is_none() {
        let answer = |start: &str, end: &str| serde_json::json!({"suggestedWindow": {"start": start, "end": end}});
        let (start, end) = ("2026-01-02T04:00:00Z", "2026-01-03T04:00:00+00:00");
        let at = window(&answer(start, end), 0.5).unwrap();
        assert_eq!(at.to_rfc3339(), "2026-01-02T16:00:00+00:00");
        for bad in [answer(end, start), answer("soon", end), serde_json::json!({}), serde_json::json!([1])] {
            assert_eq!(window(&bad, 0.5), None, "{bad}");
        }
    }

    #[test]
    fn an_external_accounts_key_is_base64_of_either_alphabet() {
        assert_eq!(decode_key(b"-_-_AAAAAAAAAAAAAAAAAA\n"), decode_key(b"+/+/AAAAAAAAAAAAAAAAAA==\n"));
        assert!(decode_key(b"-_-_AAAAAAAAAAAAAAAAAA").is_some());
        for bad in [&b"short"[..], b"", b"\xff\xfe", b"no spaces in base64 please, none at all"] {
            assert_eq!(decode_key(bad), None);
        }
    }
}
