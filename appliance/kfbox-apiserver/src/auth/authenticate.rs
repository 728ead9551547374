//! From a request to its caller. Invariants: credentials that are present but wrong are refused, never taken as
//! anonymous; impersonation needs the `impersonate` verb for each thing assumed. Upstream:
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/>.

use super::{
    pki::Authority,
    rbac::{Rbac, forbidden},
    tokens::{MAX_TOKEN_BYTES, ObjectLookup, ServiceAccountTokens, Verified},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::Utc;
use http::{HeaderMap, HeaderName, header};
use kfbox_base::{BoxError, Decision, ResourceAttributes, UserInfo};
use rustls_pki_types::CertificateDer;
use std::sync::Arc;

/// How a browser, which cannot set headers on a WebSocket, presents its token.
const WEBSOCKET_BEARER: &str = "base64url.bearer.authorization.k8s.io.";
/// Names and groups that no other issuer may give.
const RESERVED: &str = "system:";
/// An impersonation asks RBAC once for each group and extra; more than this is no honest client.
const MAX_IMPERSONATED: usize = 256;

/// Another issuer of bearer tokens: the gateway's OIDC tokens, personal tokens.
#[async_trait::async_trait]
pub trait TokenAuthenticator: Send + Sync + 'static {
    /// The user whom the token names, `None` when it is not this issuer's or not valid for the audiences (empty: the
    /// API's own). An error means that the issuer could not decide.
    async fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Option<UserInfo>, BoxError>;
}

#[derive(Debug, thiserror::Error)]
pub enum AuthnError {
    /// 401, without saying why.
    #[error("Unauthorized")]
    Unauthorized,
    /// 403: an impersonation that is not allowed.
    #[error("{0}")]
    Forbidden(String),
    /// 400: contradictory or unreadable headers.
    #[error("{0}")]
    BadRequest(String),
}

impl AuthnError {
    pub fn code(&self) -> u16 {
        match self {
            Self::Unauthorized => 401,
            Self::Forbidden(_) => 403,
            Self::BadRequest(_) => 400,
        }
    }

    /// `reason` of the Status object.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden(_) => "Forbidden",
            Self::BadRequest(_) => "BadRequest",
        }
    }
}

/// All ways of proving who calls.
pub struct Authenticator {
    authority: Arc<Authority>,
    tokens: Arc<ServiceAccountTokens>,
    lookup: Arc<dyn ObjectLookup>,
    rbac: Arc<Rbac>,
    extra: parking_lot::RwLock<Vec<Arc<dyn TokenAuthenticator>>>,
    anonymous: bool,
}

impl Authenticator {
    /// With `anonymous`, a request without credentials is `system:anonymous`; without, it is refused.
    pub fn new(
        authority: Arc<Authority>,
        tokens: Arc<ServiceAccountTokens>,
        lookup: Arc<dyn ObjectLookup>,
        rbac: Arc<Rbac>,
        anonymous: bool,
    ) -> Self {
        Self { authority, tokens, lookup, rbac, extra: parking_lot::RwLock::default(), anonymous }
    }

    /// Adds an issuer; those added first are asked first.
    pub fn add(&self, issuer: Arc<dyn TokenAuthenticator>) {
        self.extra.write().push(issuer);
    }

    pub fn tokens(&self) -> &ServiceAccountTokens {
        &self.tokens
    }

    pub fn lookup(&self) -> &dyn ObjectLookup {
        self.lookup.as_ref()
    }

    /// The caller, after impersonation. `peer` is the client's verified certificate chain, empty when there is none.
    pub async fn authenticate(&self, peer: &[CertificateDer<'_>], headers: &HeaderMap) -> Result<UserInfo, AuthnError> {
        self.callers(peer, headers).await.map(|(_, user)| user)
    }

    /// Who acts, and before that, when it is another, who it is that assumed that identity.
    pub async fn callers(
        &self,
        peer: &[CertificateDer<'_>],
        headers: &HeaderMap,
    ) -> Result<(Option<UserInfo>, UserInfo), AuthnError> {
        let user = match self.authority.identify(peer) {
            Some(user) => user,
            None => match bearer(headers)? {
                Some(token) => self.bearer_user(&token).await?,
                None if self.anonymous => UserInfo::anonymous(),
                None => return Err(AuthnError::Unauthorized),
            },
        };
        match headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
            true => Ok((Some(user.clone()), self.impersonate(user, headers)?)),
            false => Ok((None, user)),
        }
    }

    async fn bearer_user(&self, token: &str) -> Result<UserInfo, AuthnError> {
        match self.token(token, &[]).await {
            Ok(verified) => Ok(verified.user),
            Err(why) => {
                tracing::debug!(%why, "a bearer token was refused");
                Err(AuthnError::Unauthorized)
            }
        }
    }

    /// Checks a token against the audiences (empty: the API's own). The error is fit for TokenReview's `status.error`.
    pub async fn token(&self, token: &str, audiences: &[String]) -> Result<Verified, String> {
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err("invalid bearer token".into());
        }
        if self.tokens.claims_our_issuer(token) {
            return self.tokens.verify(token, audiences, self.lookup.as_ref(), Utc::now()).map_err(|e| e.to_string());
        }
        let issuers = self.extra.read().clone();
        for issuer in issuers {
            match issuer.authenticate(token, audiences).await {
                // `system:` names are the cluster's own; a provider that lets people choose their name must not hand one
                // out.
                Ok(Some(user)) if user.username.is_empty() || user.username.starts_with(RESERVED) => {
                    return Err(format!("the name {:?} cannot come from this issuer", user.username));
                }
                Ok(Some(mut user)) => {
                    user.groups.retain(|g| !g.starts_with(RESERVED));
                    let user =
                        UserInfo { uid: user.uid, extra: user.extra, ..UserInfo::new(user.username, user.groups) };
                    let audiences = if audiences.is_empty() { self.tokens.api_audiences() } else { audiences.to_vec() };
                    return Ok(Verified { user, audiences });
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "an issuer of tokens could not decide"),
            }
        }
        Err("invalid bearer token".into())
    }

    fn impersonate(&self, caller: UserInfo, headers: &HeaderMap) -> Result<UserInfo, AuthnError> {
        let Some(assumed) = assumed_user(headers)? else { return Ok(caller) };
        let check = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
            let wanted = ResourceAttributes {
                verb: "impersonate".into(),
                group: group.into(),
                resource: resource.into(),
                subresource: subresource.into(),
                namespace: namespace.into(),
                name: name.into(),
            };
            match self.rbac.authorize(&caller, &wanted) {
                Decision::Allow => Ok(()),
                Decision::Deny(reason) => Err(AuthnError::Forbidden(forbidden(&wanted, &reason))),
            }
        };
        match assumed.service_account() {
            Some((namespace, name)) => check("", "serviceaccounts", "", namespace, name)?,
            None => check("", "users", "", "", &assumed.username)?,
        }
        for group in &assumed.groups {
            check("", "groups", "", "", group)?;
        }
        for (key, values) in &assumed.extra {
            for value in values {
                check("authentication.k8s.io", "userextras", key, "", value)?;
            }
        }
        if !assumed.uid.is_empty() {
            check("authentication.k8s.io", "uids", "", "", &assumed.uid)?;
        }
        Ok(completed(assumed))
    }
}

/// Adds the groups that follow from the name, as if the assumed user had signed in.
fn completed(mut user: UserInfo) -> UserInfo {
    if user.groups.is_empty()
        && let Some((namespace, _)) = user.service_account()
    {
        user.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let implied = if user.is_anonymous() { UserInfo::UNAUTHENTICATED } else { UserInfo::AUTHENTICATED };
    let told = |g: &String| g == UserInfo::AUTHENTICATED || g == UserInfo::UNAUTHENTICATED;
    if !user.groups.iter().any(told) {
        user.groups.push(implied.into());
    }
    user
}

fn bearer(headers: &HeaderMap) -> Result<Option<String>, AuthnError> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.to_str().map_err(|_| AuthnError::Unauthorized)?.trim();
        // Another scheme, or a bearer without a token, is a failed proof and not anonymity.
        return match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
                Ok(Some(token.trim().to_owned()))
            }
            _ => Err(AuthnError::Unauthorized),
        };
    }
    for value in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        let Ok(value) = value.to_str() else { continue };
        if let Some(encoded) = value.split(',').find_map(|p| p.trim().strip_prefix(WEBSOCKET_BEARER)) {
            let token = URL_SAFE_NO_PAD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            return token.filter(|t| !t.is_empty()).map(Some).ok_or(AuthnError::Unauthorized);
        }
    }
    Ok(None)
}

fn assumed_user(headers: &HeaderMap) -> Result<Option<UserInfo>, AuthnError> {
    let text = |name: &str, value: &http::HeaderValue| {
        value.to_str().map(str::to_owned).map_err(|_| AuthnError::BadRequest(format!("the header {name} is not text")))
    };
    let mut user = UserInfo::default();
    let mut asked = 0;
    for (name, value) in headers {
        let name = name.as_str();
        let Some(rest) = name.strip_prefix("impersonate-") else { continue };
        asked += 1;
        if asked > MAX_IMPERSONATED {
            return Err(AuthnError::BadRequest("too many Impersonate headers".into()));
        }
        let value = text(name, value)?;
        match rest {
            "user" => user.username = value,
            "uid" => user.uid = value,
            "group" => user.groups.push(value),
            _ => {
                if let Some(key) = rest.strip_prefix("extra-") {
                    let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy().into_owned();
                    user.extra.entry(key).or_default().push(value);
                }
            }
        }
    }
    if asked > 0 && user.username.is_empty() {
        return Err(AuthnError::BadRequest("requested impersonation without impersonating a user".into()));
    }
    Ok((asked > 0).then_some(user))
}

/// The headers that name or impersonate an identity; strip them before a request leaves this server.
pub fn identity_headers(headers: &HeaderMap) -> Vec<HeaderName> {
    headers.keys().filter(|n| **n == header::AUTHORIZATION || n.as_str().starts_with("impersonate-")).cloned().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::auth::{
        policy,
        tokens::{
            Binding, BoundKind, Reference,
            tests::{ISSUER, Objects},
        },
    };
    use serde_json::json;

    struct Gateway;

    #[async_trait::async_trait]
    impl TokenAuthenticator for Gateway {
        async fn authenticate(&self, token: &str, _: &[String]) -> Result<Option<UserInfo>, BoxError> {
            Ok(token
                .strip_prefix("kfbox-")
                .map(|name| UserInfo::new(name, ["system:masters".to_owned(), "staff".to_owned()])))
        }
    }

    pub struct World {
        pub authenticator: Authenticator,
        pub rbac: Arc<Rbac>,
        pub objects: Arc<Objects>,
        _dir: tempfile::TempDir,
    }

    pub fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::load_or_create::<&str>(dir.path(), &[]).unwrap());
        let tokens = Arc::new(ServiceAccountTokens::load_or_create(dir.path(), ISSUER).unwrap());
        let (objects, rbac) = (Arc::new(Objects::default()), Arc::new(Rbac::new()));
        objects.put(BoundKind::ServiceAccount, "team", "runner", "sa-1");
        policy::default_objects().iter().for_each(|o| rbac.observe(o));
        let authenticator = Authenticator::new(authority, tokens, objects.clone(), rbac.clone(), true);
        authenticator.add(Arc::new(Gateway));
        World { authenticator, rbac, objects, _dir: dir }
    }

    pub fn runner_token(world: &World) -> String {
        let account = Reference { name: "runner".into(), uid: "sa-1".into() };
        world.authenticator.tokens().mint("team", account, Binding::default(), &[], 3600, Utc::now()).unwrap().token
    }

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        map
    }

    async fn who(world: &World, list: &[(&str, &str)]) -> Result<UserInfo, AuthnError> {
        world.authenticator.authenticate(&[], &headers(list)).await
    }

    #[tokio::test]
    async fn each_proof_names_its_user_and_a_wrong_one_is_refused() {
        let world = world();
        assert!(who(&world, &[]).await.unwrap().is_anonymous());
        let token = runner_token(&world);
        let user = who(&world, &[("Authorization", &format!("bearer {token}"))]).await.unwrap();
        assert_eq!(user.username, "system:serviceaccount:team:runner");
        let protocol = format!("v5.channel.k8s.io, {WEBSOCKET_BEARER}{}", URL_SAFE_NO_PAD.encode(&token));
        let user = who(&world, &[("Sec-WebSocket-Protocol", &protocol)]).await.unwrap();
        assert_eq!(user.uid, "sa-1");
        let user = who(&world, &[("Authorization", "Bearer kfbox-ada")]).await.unwrap();
        assert_eq!(user.username, "ada");
        assert_eq!(user.groups, ["staff", "system:authenticated"], "no issuer makes a master");
        let mut wrong = token.clone();
        wrong.replace_range(token.len() - 8..token.len() - 4, "AAAA");
        for value in [
            "Bearer kfbox-system:admin",
            "Bearer kfbox-",
            "Bearer nonsense",
            "Bearer",
            "Bearer ",
            "Basic YTpi",
            &format!("Bearer {wrong}"),
        ] {
            let refused = who(&world, &[("Authorization", value)]).await;
            assert!(matches!(refused, Err(AuthnError::Unauthorized)), "{value}: {refused:?}");
        }
        world.objects.0.lock().clear();
        assert!(who(&world, &[("Authorization", &format!("Bearer {token}"))]).await.is_err());
    }

    #[tokio::test]
    async fn impersonation_needs_its_verb_for_everything_assumed() {
        let world = world();
        let caller = ("Authorization", "Bearer kfbox-ada");
        let refused = who(&world, &[caller, ("Impersonate-User", "bob")]).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            r#"users "bob" is forbidden: User "ada" cannot impersonate resource "users" in API group "" at the cluster scope"#
        );
        assert_eq!(refused.code(), 403);
        world.rbac.observe(&json!({ "kind": "ClusterRole", "metadata": { "name": "i" }, "rules": [
            { "apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"] },
            { "apiGroups": [""], "resources": ["groups"], "resourceNames": ["staff"], "verbs": ["impersonate"] },
            { "apiGroups": ["authentication.k8s.io"], "resources": ["userextras/scopes"], "verbs": ["impersonate"] },
        ]}));
        world.rbac.observe(&json!({ "kind": "ClusterRoleBinding", "metadata": { "name": "i" },
            "roleRef": { "kind": "ClusterRole", "name": "i" }, "subjects": [{ "kind": "User", "name": "ada" }] }));
        let user = who(
            &world,
            &[caller, ("Impersonate-User", "bob"), ("Impersonate-Group", "staff"), ("Impersonate-Extra-Scopes", "x")],
        )
        .await
        .unwrap();
        assert_eq!(
            (user.username.as_str(), user.groups.as_slice()),
            ("bob", &["staff".to_owned(), "system:authenticated".to_owned()][..])
        );
        assert_eq!(user.extra["scopes"], ["x"]);
        for bad in [("Impersonate-Group", "system:masters"), ("Impersonate-Uid", "1"), ("Impersonate-Extra-Other", "x")]
        {
            let refused = who(&world, &[caller, ("Impersonate-User", "bob"), bad]).await;
            assert!(matches!(refused, Err(AuthnError::Forbidden(_))), "{bad:?}");
        }
        let sa = who(&world, &[caller, ("Impersonate-User", "system:serviceaccount:team:runner")]).await;
        assert!(matches!(sa, Err(AuthnError::Forbidden(_))), "users does not cover service accounts");
        let alone = who(&world, &[caller, ("Impersonate-Group", "staff")]).await;
        assert!(matches!(alone, Err(AuthnError::BadRequest(_))));
        assert!(matches!(who(&world, &[("Impersonate-User", "bob")]).await, Err(AuthnError::Forbidden(_))));
    }
}
