//! Service-account tokens: the JWTs of TokenRequest, their verification, and the issuer's discovery documents.
//! Guarantees: a token is good only for its audience, until its end, and while the service account (and the pod, secret
//! or node it is bound to) with the same uid exists. Upstream:
//! <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/>.

use super::files;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Duration, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use kfbox_base::UserInfo;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SubjectPublicKeyInfo};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Clocks of one machine agree; this covers a step of the clock.
const LEEWAY: Duration = Duration::seconds(10);
/// An object that is being deleted still answers for its tokens for so long, as upstream.
const DELETION_GRACE: Duration = Duration::seconds(60);
/// The one request that upstream's kubelet makes for pods' own tokens; it is extended, with a warning after the hour.
const WARN_ONLY_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;
const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
/// Our own tokens are under 2 KiB; what is longer is not parsed.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("cannot read or write {path}: {source}")]
    File {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} does not hold a P-256 key: {why}")]
    Damaged { path: String, why: String },
    #[error("cannot make a key: {0}")]
    Key(#[from] rcgen::Error),
    #[error("cannot sign a token: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

/// Why a token was refused. The text goes into TokenReview's `status.error`, never the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("not a service account token of this cluster")]
    NotOurs,
    #[error("the token's signature is not of this cluster's keys")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("token audiences {found:?} is invalid for the target audiences {wanted:?}")]
    Audience { found: Vec<String>, wanted: Vec<String> },
    #[error("the {what} of the token has been deleted or replaced")]
    Gone { what: &'static str },
}

/// The kinds a token may be bound to, and the account itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BoundKind {
    ServiceAccount,
    Pod,
    Secret,
    Node,
}

/// What a token's life hangs on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectFacts {
    pub uid: String,
    pub deleting_since: Option<DateTime<Utc>>,
    /// A pod's `spec.serviceAccountName`.
    pub service_account: String,
    /// A pod's `spec.nodeName`.
    pub node: String,
}

impl ObjectFacts {
    pub fn of(object: &Value) -> Self {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        Self {
            uid: text("/metadata/uid").into(),
            deleting_since: text("/metadata/deletionTimestamp").parse().ok(),
            service_account: text("/spec/serviceAccountName").into(),
            node: text("/spec/nodeName").into(),
        }
    }
}

/// How this module sees the cluster's objects; the store implements it. `namespace` is empty for nodes.
pub trait ObjectLookup: Send + Sync + 'static {
    fn find(&self, kind: BoundKind, namespace: &str, name: &str) -> Option<ObjectFacts>;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    pub uid: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KubernetesClaims {
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    pub serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: KubernetesClaims,
    pub nbf: i64,
    pub sub: String,
}

/// What a token is bound to besides its service account.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Binding {
    pub pod: Option<Reference>,
    pub secret: Option<Reference>,
    pub node: Option<Reference>,
}

/// A token and the end that the requester is told.
pub struct Minted {
    pub token: String,
    pub expires: DateTime<Utc>,
}

/// A token that passed: its user and those of the wanted audiences that it holds for.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    pub user: UserInfo,
    pub audiences: Vec<String>,
}

struct PublicKey {
    kid: String,
    point: Vec<u8>,
    decoding: DecodingKey,
}

impl PublicKey {
    /// From the subject public key info, whose hash is the key's id as upstream derives it.
    fn new(spki: &[u8], point: &[u8]) -> Option<Self> {
        // 0x04, x, y: the uncompressed point of P-256.
        let (x, y) = (point.get(1..33)?, point.get(33..65)?);
        let decoding = DecodingKey::from_ec_components(&URL_SAFE_NO_PAD.encode(x), &URL_SAFE_NO_PAD.encode(y)).ok()?;
        Some(Self { kid: URL_SAFE_NO_PAD.encode(Sha256::digest(spki)), point: point.to_vec(), decoding })
    }

    fn jwk(&self) -> Value {
        json!({
            "use": "sig", "kty": "EC", "alg": "ES256", "crv": "P-256", "kid": self.kid,
            "x": URL_SAFE_NO_PAD.encode(&self.point[1..33]),
            "y": URL_SAFE_NO_PAD.encode(&self.point[33..65]),
        })
    }
}

/// The issuer. The signing key is `pki/sa.key`; public keys in `pki/sa.d/*.pub` are accepted too, so that a key can be
/// replaced while tokens of the old one live on.
pub struct ServiceAccountTokens {
    issuer: String,
    signing: EncodingKey,
    keys: Vec<PublicKey>,
}

impl ServiceAccountTokens {
    /// `issuer` is the URL in `iss` and the default audience, `https://kubernetes.default.svc.cluster.local` as a rule.
    pub fn load_or_create(pki_dir: &Path, issuer: &str) -> Result<Self, TokenError> {
        let old = pki_dir.join("sa.d");
        files::private_dir(&old).map_err(|source| file(&old, source))?;
        let path = pki_dir.join("sa.key");
        let pem = match files::read_optional(&path).map_err(|source| file(&path, source))? {
            Some(pem) => pem,
            None => {
                let pem = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_pem();
                files::write_private(&path, pem.as_bytes()).map_err(|source| file(&path, source))?;
                pem
            }
        };
        let pair = KeyPair::from_pem(&pem).map_err(|error| damaged(&path, &error.to_string()))?;
        let signing = EncodingKey::from_ec_pem(pem.as_bytes()).map_err(|error| damaged(&path, &error.to_string()))?;
        let own = PublicKey::new(&pair.subject_public_key_info(), pair.public_key_raw());
        let mut keys = vec![own.ok_or_else(|| damaged(&path, "not on P-256"))?];
        let entries = std::fs::read_dir(&old).map_err(|source| file(&old, source))?;
        let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        paths.retain(|p| p.extension().is_some_and(|e| e == "pub"));
        paths.sort();
        for path in paths {
            let pem = std::fs::read_to_string(&path).map_err(|source| file(&path, source))?;
            let key = SubjectPublicKeyInfo::from_pem(&pem)
                .ok()
                .and_then(|key| PublicKey::new(&key.subject_public_key_info(), key.der_bytes()));
            keys.push(key.ok_or_else(|| damaged(&path, "not a public key in PEM"))?);
        }
        Ok(Self { issuer: issuer.into(), signing, keys })
    }

    /// Makes a new signing key for the next start, keeping the present one for verification.
    pub fn rotate(pki_dir: &Path) -> Result<(), TokenError> {
        let path = pki_dir.join("sa.key");
        let pem = std::fs::read_to_string(&path).map_err(|source| file(&path, source))?;
        let pair = KeyPair::from_pem(&pem).map_err(|error| damaged(&path, &error.to_string()))?;
        let kept = pki_dir.join("sa.d").join(format!("{}.pub", Utc::now().format("%Y%m%dT%H%M%S%.6fZ")));
        files::write_private(&kept, pair.public_key_pem().as_bytes()).map_err(|source| file(&kept, source))?;
        let next = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_pem();
        files::write_private(&path, next.as_bytes()).map_err(|source| file(&path, source))
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The audiences for which the API itself accepts tokens.
    pub fn api_audiences(&self) -> Vec<String> {
        vec![self.issuer.clone()]
    }

    /// Signs a token for `account` in `namespace`. An empty `audiences` means the API's own.
    pub fn mint(
        &self,
        namespace: &str,
        account: Reference,
        binding: Binding,
        audiences: &[String],
        seconds: i64,
        now: DateTime<Utc>,
    ) -> Result<Minted, TokenError> {
        let audiences = if audiences.is_empty() { self.api_audiences() } else { audiences.to_vec() };
        let seconds = seconds.clamp(MIN_SECONDS, MAX_SECONDS);
        let expires = now + Duration::seconds(seconds);
        let extended = seconds == WARN_ONLY_SECONDS && binding.pod.is_some() && audiences == self.api_audiences();
        let exp = if extended { now + Duration::seconds(EXTENDED_SECONDS) } else { expires };
        let claims = Claims {
            aud: audiences,
            exp: exp.timestamp(),
            iat: now.timestamp(),
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            nbf: now.timestamp(),
            sub: format!("system:serviceaccount:{namespace}:{}", account.name),
            kubernetes: KubernetesClaims {
                namespace: namespace.into(),
                node: binding.node,
                pod: binding.pod,
                secret: binding.secret,
                serviceaccount: account,
                warnafter: extended.then(|| expires.timestamp()),
            },
        };
        let header = Header { typ: None, kid: Some(self.keys[0].kid.clone()), ..Header::new(Algorithm::ES256) };
        Ok(Minted { token: jsonwebtoken::encode(&header, &claims, &self.signing)?, expires })
    }

    /// True when the token says that we issued it. Nothing is verified: for choosing the authenticator only.
    pub fn claims_our_issuer(&self, token: &str) -> bool {
        #[derive(Deserialize)]
        struct Issuer {
            #[serde(default)]
            iss: String,
        }
        token.len() <= MAX_TOKEN_BYTES
            && token
                .split('.')
                .nth(1)
                .and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok())
                .and_then(|claims| serde_json::from_slice::<Issuer>(&claims).ok())
                .is_some_and(|claims| claims.iss == self.issuer)
    }

    /// Verifies signature, issuer, time, audience (`wanted`; empty means the API's own) and that all the token is bound
    /// to is still there.
    pub fn verify(
        &self,
        token: &str,
        wanted: &[String],
        lookup: &dyn ObjectLookup,
        now: DateTime<Utc>,
    ) -> Result<Verified, Refusal> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Refusal::NotOurs);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Refusal::NotOurs)?;
        let mut validation = Validation::new(Algorithm::ES256);
        // Time and audience are checked below, against the clock given.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.set_required_spec_claims::<&str>(&[]);
        let claims = self
            .keys
            .iter()
            .filter(|key| header.kid.as_ref().is_none_or(|kid| *kid == key.kid))
            .find_map(|key| jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation).ok())
            .ok_or(Refusal::Signature)?
            .claims;
        if claims.iss != self.issuer {
            return Err(Refusal::NotOurs);
        }
        if now.timestamp() >= claims.exp.saturating_add(LEEWAY.num_seconds()) {
            return Err(Refusal::Expired);
        }
        if now.timestamp() < claims.nbf.saturating_sub(LEEWAY.num_seconds()) {
            return Err(Refusal::NotYet);
        }
        let api = self.api_audiences();
        let wanted = if wanted.is_empty() { &api } else { wanted };
        let audiences: Vec<String> = wanted.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
        if audiences.is_empty() {
            return Err(Refusal::Audience { found: claims.aud, wanted: wanted.to_vec() });
        }
        let Claims { kubernetes, sub, jti, .. } = claims;
        let account = &kubernetes.serviceaccount;
        if sub != format!("system:serviceaccount:{}:{}", kubernetes.namespace, account.name) {
            return Err(Refusal::NotOurs);
        }
        let alive = |kind, namespace: &str, reference: &Reference, what| {
            let facts = lookup.find(kind, namespace, &reference.name).filter(|facts| facts.uid == reference.uid);
            match facts {
                Some(facts) if facts.deleting_since.is_none_or(|since| now < since + DELETION_GRACE) => Ok(()),
                _ => Err(Refusal::Gone { what }),
            }
        };
        let namespace = kubernetes.namespace.as_str();
        alive(BoundKind::ServiceAccount, namespace, account, "service account")?;
        if let Some(pod) = &kubernetes.pod {
            alive(BoundKind::Pod, namespace, pod, "pod")?;
        } else if let Some(node) = &kubernetes.node {
            // Beside a pod the node is information only; alone it is what the token is bound to.
            alive(BoundKind::Node, "", node, "node")?;
        }
        if let Some(secret) = &kubernetes.secret {
            alive(BoundKind::Secret, namespace, secret, "secret")?;
        }

        let mut user =
            UserInfo::new(sub, ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]);
        user.uid.clone_from(&account.uid);
        let mut extra = |key: &str, value: &str| {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        };
        extra("credential-id", &format!("JTI={jti}"));
        for (reference, name, uid) in
            [(&kubernetes.pod, "pod-name", "pod-uid"), (&kubernetes.node, "node-name", "node-uid")]
        {
            if let Some(reference) = reference {
                extra(name, &reference.name);
                extra(uid, &reference.uid);
            }
        }
        Ok(Verified { user, audiences })
    }

    /// `/.well-known/openid-configuration`.
    pub fn discovery(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", self.issuer.trim_end_matches('/')),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// `/openid/v1/jwks`, as `application/jwk-set+json`.
    pub fn jwks(&self) -> Value {
        json!({ "keys": self.keys.iter().map(PublicKey::jwk).collect::<Vec<_>>() })
    }
}

/// The seconds that a request asks for, or why not.
pub fn requested_seconds(asked: Option<i64>) -> Result<i64, &'static str> {
    match asked {
        None => Ok(DEFAULT_SECONDS),
        Some(s) if s < MIN_SECONDS => Err("may not specify a duration less than 10 minutes"),
        Some(s) if s > MAX_SECONDS => Err("may not specify a duration larger than 2^32 seconds"),
        Some(s) => Ok(s),
    }
}

fn file(path: &Path, source: std::io::Error) -> TokenError {
    TokenError::File { path: path.display().to_string(), source }
}

fn damaged(path: &Path, why: &str) -> TokenError {
    TokenError::Damaged { path: path.display().to_string(), why: why.into() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::collections::HashMap;

    pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

    #[derive(Default)]
    pub struct Objects(pub parking_lot::Mutex<HashMap<(BoundKind, String, String), ObjectFacts>>);

    impl Objects {
        pub fn put(&self, kind: BoundKind, namespace: &str, name: &str, uid: &str) {
            let facts = ObjectFacts { uid: uid.into(), service_account: "runner".into(), ..Default::default() };
            self.0.lock().insert((kind, namespace.into(), name.into()), facts);
        }
    }

    impl ObjectLookup for Objects {
        fn find(&self, kind: BoundKind, namespace: &str, name: &str) -> Option<ObjectFacts> {
            self.0.lock().get(&(kind, namespace.into(), name.into())).cloned()
        }
    }

    fn reference(name: &str, uid: &str) -> Reference {
        Reference { name: name.into(), uid: uid.into() }
    }

    fn mint(tokens: &ServiceAccountTokens, audiences: &[String], seconds: i64) -> String {
        let binding = Binding { pod: Some(reference("p", "pod-1")), ..Default::default() };
        tokens.mint("team", reference("runner", "sa-1"), binding, audiences, seconds, Utc::now()).unwrap().token
    }

    #[test]
    fn a_token_is_good_for_its_audience_time_and_objects_only() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = ServiceAccountTokens::load_or_create(dir.path(), ISSUER).unwrap();
        let objects = Objects::default();
        objects.put(BoundKind::ServiceAccount, "team", "runner", "sa-1");
        objects.put(BoundKind::Pod, "team", "p", "pod-1");
        let (now, token) = (Utc::now(), mint(&tokens, &[], 3600));
        let verified = tokens.verify(&token, &[], &objects, now).unwrap();
        assert_eq!(verified.user.username, "system:serviceaccount:team:runner");
        assert_eq!(
            verified.user.groups,
            ["system:serviceaccounts", "system:serviceaccounts:team", "system:authenticated"]
        );
        assert_eq!(verified.user.extra["authentication.kubernetes.io/pod-uid"], ["pod-1"]);
        assert!(tokens.claims_our_issuer(&token));

        let late = now + Duration::seconds(3700);
        assert_eq!(tokens.verify(&token, &[], &objects, late), Err(Refusal::Expired));
        assert_eq!(tokens.verify(&token, &[], &objects, now - Duration::hours(1)), Err(Refusal::NotYet));
        let other = ["pipelines.kubeflow.org".to_owned()];
        assert!(matches!(tokens.verify(&token, &other, &objects, now), Err(Refusal::Audience { .. })));
        let projected = mint(&tokens, &other, 7200);
        assert!(matches!(tokens.verify(&projected, &[], &objects, now), Err(Refusal::Audience { .. })));
        assert_eq!(tokens.verify(&projected, &other, &objects, now).unwrap().audiences, other);

        objects.0.lock().get_mut(&(BoundKind::Pod, "team".into(), "p".into())).unwrap().deleting_since = Some(now);
        assert!(tokens.verify(&token, &[], &objects, now + Duration::seconds(30)).is_ok());
        assert_eq!(
            tokens.verify(&token, &[], &objects, now + Duration::seconds(61)),
            Err(Refusal::Gone { what: "pod" })
        );
        objects.put(BoundKind::Pod, "team", "p", "pod-2");
        assert_eq!(tokens.verify(&token, &[], &objects, now), Err(Refusal::Gone { what: "pod" }));
        objects.put(BoundKind::ServiceAccount, "team", "runner", "sa-2");
        assert_eq!(tokens.verify(&token, &[], &objects, now), Err(Refusal::Gone { what: "service account" }));
    }

    #[test]
    fn foreign_and_altered_tokens_are_refused() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ours = ServiceAccountTokens::load_or_create(one.path(), ISSUER).unwrap();
        let theirs = ServiceAccountTokens::load_or_create(two.path(), ISSUER).unwrap();
        let objects = Objects::default();
        objects.put(BoundKind::ServiceAccount, "team", "runner", "sa-1");
        objects.put(BoundKind::Pod, "team", "p", "pod-1");
        let now = Utc::now();
        assert_eq!(ours.verify(&mint(&theirs, &[], 3600), &[], &objects, now), Err(Refusal::Signature));
        let token = mint(&ours, &[], 3600);
        let mut parts: Vec<&str> = token.split('.').collect();
        let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        let forged = URL_SAFE_NO_PAD.encode(claims.replace("runner", "master"));
        parts[1] = &forged;
        assert_eq!(ours.verify(&parts.join("."), &[], &objects, now), Err(Refusal::Signature));
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let unsigned = format!("{none}.{}.", token.split('.').nth(1).unwrap());
        assert!(ours.verify(&unsigned, &[], &objects, now).is_err());
        for junk in ["", ".", "..", "a.b.c", "ey", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
            assert!(ours.verify(junk, &[], &objects, now).is_err(), "{junk}");
            assert!(!ours.claims_our_issuer(junk));
        }
    }

    #[test]
    fn tokens_outlive_a_restart_and_a_change_of_key() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::default();
        objects.put(BoundKind::ServiceAccount, "team", "runner", "sa-1");
        objects.put(BoundKind::Pod, "team", "p", "pod-1");
        let token = mint(&ServiceAccountTokens::load_or_create(dir.path(), ISSUER).unwrap(), &[], 3600);
        ServiceAccountTokens::rotate(dir.path()).unwrap();
        let later = ServiceAccountTokens::load_or_create(dir.path(), ISSUER).unwrap();
        assert!(later.verify(&token, &[], &objects, Utc::now()).is_ok());
        assert!(later.verify(&mint(&later, &[], 3600), &[], &objects, Utc::now()).is_ok());
        let keys = later.jwks()["keys"].as_array().unwrap().clone();
        assert_eq!(keys.len(), 2);
        assert_ne!(keys[0]["kid"], keys[1]["kid"]);
    }

    #[test]
    fn the_pods_own_token_is_extended_with_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = ServiceAccountTokens::load_or_create(dir.path(), ISSUER).unwrap();
        let token = mint(&tokens, &[], WARN_ONLY_SECONDS);
        let claims: Claims =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap();
        assert_eq!(claims.exp - claims.iat, EXTENDED_SECONDS);
        assert_eq!(claims.kubernetes.warnafter, Some(claims.iat + WARN_ONLY_SECONDS));
        assert!(requested_seconds(Some(599)).is_err());
        assert_eq!(requested_seconds(None), Ok(3600));
    }
}
