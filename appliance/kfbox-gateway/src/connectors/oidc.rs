//! An upstream OpenID Connect provider: authorization code with PKCE, state, nonce, and an ID token that is checked in
//! full (OpenID Connect Core 1.0 section 3.1.3.7).
//!
//! Guarantees: the answer is taken only in the browser that began, once, within ten minutes; what is fetched comes from
//! the configured issuer's own documents; a token signed with a shared secret, or not at all, is refused.

use super::{Groups, Identity, Refusal, admit};
use crate::{
    Gateway, guard,
    sign_in::{self, redirect},
    store::{SecretHash, hash_secret, random_secret},
    web::{WebClient, WebError},
};
use axum::{
    extract::{ConnectInfo, Query, State, rejection::QueryRejection},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use subtle::ConstantTimeEq as _;
use url::Url;

/// How long a person may take at the other provider.
const PATIENCE: Duration = Duration::from_secs(600);
/// Sign-ins under way; anybody may begin one.
const UNDER_WAY: usize = 1000;
/// Documents and keys of the provider are asked for again after this long, or for a key that is not among them.
const FRESH: Duration = Duration::from_secs(3600);
/// But not more often than this, whatever tokens come.
const AT_MOST: Duration = Duration::from_secs(30);
/// Seconds by which clocks may differ.
const LEEWAY: u64 = 60;
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// A provider as the configuration names it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcConnector {
    /// In addresses: `/dex/auth/ID`.
    pub id: String,
    #[serde(default)]
    pub name: String,
    /// As its discovery document says it. The box registers there with the redirect address `URL/dex/callback`.
    pub issuer: String,
    pub client_id: String,
    #[serde(skip_serializing)]
    pub client_secret: String,
    #[serde(default = "default_scopes")]
    pub scopes: Vec<String>,
    /// The claim that lists groups.
    #[serde(default = "default_groups_claim")]
    pub groups_claim: String,
    #[serde(default)]
    pub groups: Groups,
    /// Takes addresses that the provider does not vouch for: only where nobody can choose their own.
    #[serde(default)]
    pub insecure_skip_email_verified: bool,
    /// Certificate authorities to trust for it besides the machine's, in PEM.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

impl std::fmt::Debug for OidcConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OidcConnector").field("id", &self.id).field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

fn default_scopes() -> Vec<String> {
    ["openid", "email", "profile", "groups"].map(String::from).to_vec()
}

fn default_groups_claim() -> String {
    "groups".into()
}

impl OidcConnector {
    pub(super) fn check(&self) -> Result<(), String> {
        let id = &self.id;
        let fine = Url::parse(&self.issuer)
            .is_ok_and(|u| matches!(u.scheme(), "https" | "http") && u.host().is_some() && u.query().is_none());
        if !fine {
            return Err(format!("connector {id}: the issuer {:?} must be an http(s) URL", self.issuer));
        }
        if self.client_id.is_empty() || self.client_secret.is_empty() {
            return Err(format!("connector {id}: client_id and client_secret are needed"));
        }
        if !self.scopes.iter().any(|s| s == "openid") {
            return Err(format!("connector {id}: the scopes must have openid among them"));
        }
        Ok(())
    }
}

/// A provider, what it said about itself, and its keys.
pub(crate) struct Upstream {
    pub config: OidcConnector,
    web: WebClient,
    known: tokio::sync::Mutex<Option<Arc<Known>>>,
}

struct Known {
    authorization: Url,
    token: Url,
    keys: JwkSet,
    at: Instant,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    authorization_endpoint: Url,
    token_endpoint: Url,
    jwks_uri: Url,
}

impl Upstream {
    pub fn new(config: OidcConnector) -> Result<Self, String> {
        let id = &config.id;
        let more = config.ca_file.as_ref().map(std::fs::read).transpose();
        let more = more.map_err(|e| format!("connector {id}: ca_file: {e}"))?;
        let web = WebClient::new(more.as_deref()).map_err(|e| format!("connector {id}: {e}"))?;
        Ok(Self { config, web, known: tokio::sync::Mutex::default() })
    }

    /// What is known of the provider, asked for when too old or, with `again`, when something was missing in it.
    async fn known(&self, again: bool) -> Result<Arc<Known>, Refusal> {
        let mut known = self.known.lock().await;
        let limit = if again { AT_MOST } else { FRESH };
        if let Some(known) = known.as_ref().filter(|k| k.at.elapsed() < limit) {
            return Ok(known.clone());
        }
        match self.ask().await {
            Ok(found) => Ok(known.insert(Arc::new(found)).clone()),
            Err(reason) => {
                tracing::warn!(connector = %self.config.id, reason, "the provider cannot be used");
                Err(Refusal::Unavailable(self.config.name.clone(), reason))
            }
        }
    }

    async fn ask(&self) -> Result<Known, String> {
        let said = |e: WebError| e.to_string();
        let issuer = self.config.issuer.trim_end_matches('/');
        let url = format!("{issuer}/.well-known/openid-configuration").parse().map_err(|_| "the issuer".to_owned())?;
        let document = self.web.get(&url).await.map_err(said)?;
        let found: Discovery = serde_json::from_value(document).map_err(|e| format!("its discovery document: {e}"))?;
        if found.issuer.trim_end_matches('/') != issuer {
            return Err(format!("it says that it is {}", found.issuer));
        }
        // A provider on https does not send secrets or people over plain HTTP.
        let plain = |url: &Url| url.scheme() != "https" && self.config.issuer.starts_with("https:");
        if [&found.authorization_endpoint, &found.token_endpoint, &found.jwks_uri].into_iter().any(plain) {
            return Err("it names an endpoint that is not https".into());
        }
        let keys = self.web.get(&found.jwks_uri).await.map_err(said)?;
        // A key of a kind that nobody here knows must not make the others useless.
        let each = keys["keys"].as_array().into_iter().flatten();
        let keys = each.filter_map(|k| serde_json::from_value(k.clone()).ok()).collect();
        Ok(Known {
            authorization: found.authorization_endpoint,
            token: found.token_endpoint,
            keys: JwkSet { keys },
            at: Instant::now(),
        })
    }

    /// The identity in an ID token of this provider that is meant for us. `nonce`: the one that it must carry.
    pub async fn identity(&self, token: &str, nonce: Option<&str>) -> Result<Identity, Refusal> {
        let wrong = |why: &str| {
            tracing::warn!(connector = %self.config.id, why, "an ID token was refused");
            Refusal::Refused("The other provider's answer cannot be trusted.".into())
        };
        if token.len() > crate::store::keys::MAX_JWT {
            return Err(wrong("too long"));
        }
        let header = decode_header(token).map_err(|e| wrong(&e.to_string()))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(wrong("its algorithm"));
        }
        let mut known = self.known(false).await?;
        let find = |known: &Known| match &header.kid {
            Some(kid) => known.keys.find(kid).cloned(),
            None if known.keys.keys.len() == 1 => known.keys.keys.first().cloned(),
            None => None,
        };
        let mut key = find(&known);
        if key.is_none() {
            known = self.known(true).await?;
            key = find(&known);
        }
        let key = key.ok_or_else(|| wrong("no such key"))?;
        let key = DecodingKey::from_jwk(&key).map_err(|e| wrong(&e.to_string()))?;
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_audience(&[&self.config.client_id]);
        validation.set_required_spec_claims(&["exp", "iss", "sub", "aud"]);
        let claims = decode::<Value>(token, &key, &validation).map_err(|e| wrong(&e.to_string()))?.claims;
        if claims["azp"].as_str().is_some_and(|azp| azp != self.config.client_id) {
            return Err(wrong("issued for another client"));
        }
        let same = |n: &str| bool::from(claims["nonce"].as_str().unwrap_or("").as_bytes().ct_eq(n.as_bytes()));
        if !nonce.is_none_or(same) {
            return Err(wrong("its nonce"));
        }
        self.read(&claims)
    }

    fn read(&self, claims: &Value) -> Result<Identity, Refusal> {
        let refused = |text: &str| Refusal::Refused(text.into());
        let subject = claims["sub"].as_str().filter(|s| !s.is_empty() && s.len() <= 255);
        let subject = subject.ok_or_else(|| refused("The other provider does not say who you are."))?;
        let email = claims["email"].as_str().ok_or_else(|| refused("The other provider does not say your address."))?;
        // Some send it as text.
        let verified = claims["email_verified"] == true || claims["email_verified"] == "true";
        if !verified && !self.config.insecure_skip_email_verified {
            return Err(refused("The other provider does not vouch for your address."));
        }
        let text = |claim: &str| claims[claim].as_str().unwrap_or_default().to_owned();
        let groups = claims[&self.config.groups_claim].as_array().into_iter().flatten();
        Ok(Identity {
            subject: subject.to_owned(),
            email: email.to_owned(),
            groups: groups.filter_map(|g| g.as_str().map(str::to_owned)).collect(),
            name: text("name"),
            username: text("preferred_username"),
        })
    }

    async fn redeem(&self, known: &Known, code: &str, callback: &str, pending: &Pending) -> Result<Identity, Refusal> {
        let pairs = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", callback),
            ("code_verifier", &pending.verifier),
        ];
        let basic = Some((self.config.client_id.as_str(), self.config.client_secret.as_str()));
        let (status, answer) = self
            .web
            .post(&known.token, &pairs, basic)
            .await
            .map_err(|e| Refusal::Unavailable(self.config.name.clone(), e.to_string()))?;
        let Some(token) = answer["id_token"].as_str().filter(|_| status.is_success()) else {
            tracing::warn!(connector = %self.config.id, %status, error = %answer["error"], "the code was not taken");
            return Err(Refusal::Refused("The other provider did not confirm your sign-in.".into()));
        };
        self.identity(token, Some(&pending.nonce)).await
    }
}

/// A sign-in that is under way at a provider.
struct Pending {
    connector: String,
    nonce: String,
    verifier: String,
    back: String,
    /// Of the cookie that the browser got.
    browser: SecretHash,
    expires: Instant,
}

#[derive(Default)]
pub(crate) struct UnderWay(Mutex<HashMap<SecretHash, Pending>>);

impl UnderWay {
    fn put(&self, state: &str, pending: Pending) -> bool {
        let mut all = self.0.lock();
        let now = Instant::now();
        all.retain(|_, p| p.expires > now);
        if all.len() >= UNDER_WAY {
            return false;
        }
        all.insert(hash_secret(state), pending);
        true
    }

    fn take(&self, state: &str) -> Option<Pending> {
        self.0.lock().remove(&hash_secret(state)).filter(|p| p.expires > Instant::now())
    }
}

fn callback(gateway: &Gateway) -> String {
    format!("{}/callback", gateway.issuer())
}

/// Leads the browser to a provider.
pub(crate) async fn begin(gateway: &Gateway, upstream: &Upstream, back: &str) -> Response {
    let failed = |text: &str| sign_in::failed(gateway, back, StatusCode::SERVICE_UNAVAILABLE, text);
    let known = match upstream.known(false).await {
        Ok(known) => known,
        Err(_) => return failed("The other provider cannot be reached right now. Try again in a moment."),
    };
    let (state, nonce, verifier, browser) = (random_secret(), random_secret(), random_secret(), random_secret());
    let mut to = known.authorization.clone();
    to.query_pairs_mut()
        .append_pair("response_type", "code")
        .append_pair("client_id", &upstream.config.client_id)
        .append_pair("redirect_uri", &callback(gateway))
        .append_pair("scope", &upstream.config.scopes.join(" "))
        .append_pair("state", &state)
        .append_pair("nonce", &nonce)
        .append_pair("code_challenge", &URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes())))
        .append_pair("code_challenge_method", "S256");
    let pending = Pending {
        connector: upstream.config.id.clone(),
        nonce,
        verifier,
        back: crate::paths::return_path(back),
        browser: hash_secret(&browser),
        expires: Instant::now() + PATIENCE,
    };
    if !gateway.inner.under_way.put(&state, pending) {
        return failed("Too many sign-ins are under way. Try again in a moment.");
    }
    let mut response = redirect(StatusCode::FOUND, to.as_str());
    set_state(&mut response, &browser, PATIENCE.as_secs());
    response
}

fn set_state(response: &mut Response, value: &str, seconds: u64) {
    let name = guard::STATE_COOKIE;
    let text = format!("{name}={value}; Path=/dex/callback; HttpOnly; SameSite=Lax; Max-Age={seconds}");
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
}

#[derive(Deserialize)]
pub(crate) struct Callback {
    #[serde(default)]
    state: String,
    code: Option<String>,
    error: Option<String>,
    iss: Option<String>,
}

/// `/dex/callback`: the browser comes back.
pub(crate) async fn come_back(
    State(gateway): State<Gateway>,
    peer: Option<axum::Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    query: Result<Query<Callback>, QueryRejection>,
) -> Response {
    let unknown = || {
        let text = "This sign-in was not begun in this browser, or too long ago. Begin again.";
        sign_in::failed(&gateway, "/", StatusCode::BAD_REQUEST, text)
    };
    let Ok(Query(query)) = query else { return unknown() };
    let Some(pending) = gateway.inner.under_way.take(&query.state) else { return unknown() };
    let ours = guard::cookies(&headers, guard::STATE_COOKIE)
        .any(|value| bool::from(hash_secret(&value).ct_eq(&pending.browser)));
    let Some(upstream) = gateway.upstream(&pending.connector).filter(|_| ours) else { return unknown() };
    let back = pending.back.clone();
    let refuse = |status, text: &str| sign_in::failed(&gateway, &back, status, text);
    // Another provider's answer in place of this one's (RFC 9207).
    let mixed = query.iss.as_ref().is_some_and(|iss| *iss != upstream.config.issuer);
    let Some(code) = query.code.filter(|_| query.error.is_none() && !mixed) else {
        tracing::warn!(connector = %pending.connector, error = query.error.as_deref().unwrap_or("mixed up"), "sign-in refused");
        return refuse(StatusCode::UNAUTHORIZED, "The other provider did not sign you in.");
    };
    let outcome = async {
        let known = upstream.known(false).await?;
        let identity = upstream.redeem(&known, &code, &callback(&gateway), &pending).await?;
        admit(&gateway, &upstream.config.id, &upstream.config.groups, &identity).await
    };
    let mut response = match outcome.await {
        Ok(user) => sign_in::signed_in(&gateway, &headers, &user, sign_in::address(peer), &back).await,
        Err(Refusal::Refused(text)) => refuse(StatusCode::FORBIDDEN, &text),
        Err(Refusal::Store(error)) => {
            tracing::warn!(%error, connector = %pending.connector, "somebody was not let in");
            refuse(StatusCode::FORBIDDEN, "This address belongs to somebody else here. Ask an administrator.")
        }
        Err(Refusal::Unavailable(..)) => {
            refuse(StatusCode::SERVICE_UNAVAILABLE, "The other provider cannot be reached right now. Try again.")
        }
    };
    set_state(&mut response, "", 0);
    response
}
