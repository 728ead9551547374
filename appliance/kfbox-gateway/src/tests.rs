//! The gateway as its clients see it, in process.

use super::*;
use axum::{body::Body, extract::Request, response::Response, routing::any};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::future::BoxFuture;
use http::{Method, StatusCode, header};
use kfbox_base::BoxError;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicUsize, Ordering};
use tower::ServiceExt as _;

mod acme;
mod federation;
mod fuzz;
mod http2;
mod ldap;
mod observed;
mod oidc_flows;
mod password;
mod pooled;
mod transport;
mod user_services;
mod workers;

const EMAIL: &str = "user@example.com";
const PASSWORD: &str = "correct horse battery";

/// Knows one token, good for `pipelines.kubeflow.org` only.
#[derive(Default)]
struct Reviewer {
    asked: AtomicUsize,
}

impl TokenReviewer for Reviewer {
    fn review<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<UserInfo>, BoxError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let good = token == "aa.bb.cc" && audiences.iter().any(|a| a == "pipelines.kubeflow.org");
        Box::pin(async move {
            match token {
                "broken.broken.broken" => Err("no API server".into()),
                _ => Ok(good.then(|| UserInfo::new("system:serviceaccount:team-a:default-editor", []))),
            }
        })
    }
}

struct World {
    gateway: Gateway,
    router: Router,
    reviewer: Arc<Reviewer>,
    readiness: Readiness,
    _dir: tempfile::TempDir,
}

async fn world() -> World {
    world_with(|_| {}).await
}

async fn world_with(change: impl FnOnce(&mut Config)) -> World {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(dir.path().into(), "http://127.0.0.1:8080".parse().unwrap());
    let client = |id: &str, secret: Option<&str>, platform| ClientConfig {
        id: id.into(),
        name: format!("The {id}"),
        secret: secret.map(Into::into),
        public: secret.is_none(),
        redirect_uris: vec![format!("https://{id}.example/callback")],
        platform,
        ..ClientConfig::default()
    };
    config.clients = vec![client("cli", None, true), client("grafana", Some("a-long-enough-secret"), false)];
    change(&mut config);
    let (reviewer, readiness) = (Arc::new(Reviewer::default()), Readiness::default());
    let deps = Deps { token_reviewer: reviewer.clone(), readiness: readiness.clone(), newcomers: None };
    let gateway = Gateway::open(config, deps).unwrap();
    gateway.add_user(EMAIL, PASSWORD, &["team".to_owned()]).await.unwrap();
    // The component tells what reached it.
    let echo = Router::new().fallback(any(|request: Request| async move {
        let user = request.extensions().get::<UserInfo>().map(|u| u.username.clone());
        let headers: std::collections::BTreeMap<String, String> = request
            .headers()
            .iter()
            .map(|(k, v)| (k.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
            .collect();
        axum::Json(serde_json::json!({"user": user, "path": request.uri().path(), "headers": headers}))
    }));
    let mounts = Mounts::new().at("/", echo.clone()).at("/apis", echo.clone()).stripped("/pipeline", echo);
    World { router: gateway.router(mounts), gateway, reviewer, readiness, _dir: dir }
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    fn location(&self) -> &str {
        self.headers.get(header::LOCATION).map(|v| v.to_str().unwrap()).unwrap_or_default()
    }
}

impl World {
    async fn send(&self, request: http::request::Builder, body: &str) -> Answer {
        let response: Response =
            self.router.clone().oneshot(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        Answer { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let request = headers.iter().fold(Request::get(path), |r, (k, v)| r.header(*k, *v));
        self.send(request, "").await
    }

    async fn form(&self, path: &str, pairs: &[(&str, &str)], headers: &[(&str, &str)]) -> Answer {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        let request = headers.iter().fold(request, |r, (k, v)| r.header(*k, *v));
        self.send(request, &serde_urlencoded::to_string(pairs).unwrap()).await
    }

    async fn sign_in(&self) -> String {
        let answer =
            self.form("/dex/auth/local/login?rd=%2Fruns", &[("login", EMAIL), ("password", PASSWORD)], &[]).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
        let cookie = answer.headers[header::SET_COOKIE].to_str().unwrap();
        cookie.split(';').next().unwrap().to_owned()
    }

    /// Authorizes with this cookie and returns the code.
    async fn code(&self, client: &str, cookie: &str, extra: &str) -> String {
        let path = format!(
            "/dex/auth?client_id={client}&redirect_uri=https%3A%2F%2F{client}.example%2Fcallback&response_type=code\
             &scope=openid+groups+offline_access&state=s%26s&nonce=n1{extra}"
        );
        let answer = self.get(&path, &[("cookie", cookie)]).await;
        assert_eq!(answer.status, StatusCode::FOUND, "{}", answer.text);
        let url = Url::parse(answer.location()).unwrap();
        assert!(answer.location().starts_with(&format!("https://{client}.example/callback?code=")), "{url}");
        assert!(url.query_pairs().any(|(k, v)| k == "state" && v == "s&s"));
        url.query_pairs().find(|(k, _)| k == "code").unwrap().1.into_owned()
    }
}

fn pkce() -> (String, String) {
    let verifier = store::random_secret();
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
    (verifier, format!("&code_challenge={challenge}&code_challenge_method=S256"))
}

#[tokio::test]
async fn only_health_and_sign_in_are_open() {
    let w = world().await;
    for open in ["/healthz", "/dex/auth/local/login", "/dex/static/sign-in.css", "/dex/keys"] {
        assert_eq!(w.get(open, &[]).await.status, StatusCode::OK, "{open}");
    }
    assert_eq!(w.get("/readyz", &[]).await.status, StatusCode::SERVICE_UNAVAILABLE);
    w.readiness.component("x").ready();
    assert_eq!(w.get("/readyz", &[]).await.status, StatusCode::OK);
    let tricks: [&[(&str, &str)]; 7] = [
        &[],
        &[("user-agent", "kube-probe/1.37")],
        &[("user-agent", "GoogleHC/1.0")],
        &[("x-forwarded-uri", "/healthz"), ("x-original-url", "/healthz")],
        &[("kubeflow-userid", EMAIL), ("x-auth-request-email", EMAIL)],
        &[("authorization", "Basic dXNlcjpwYXNz")],
        &[("cookie", "oauth2_proxy_kubeflow=guess; authservice_session=guess")],
    ];
    for path in
        ["/apis/v2beta1/runs", "/apis/v2beta1/runs?x=/healthz", "/healthzz", "/readyzz", "/oauth2x", "/apis/dex"]
    {
        for headers in tricks {
            let answer = w.get(path, headers).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path} {headers:?} {}", answer.text);
            assert_eq!(answer.json()["error"], "unauthenticated");
        }
    }
    for path in ["/healthz/x", "/dex/apis/v2beta1/runs", "/oauth2/runs"] {
        assert_eq!(w.get(path, &[]).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    for path in ["/dex/../apis", "/healthz/..%2fapis", "//apis", "/apis/%2e%2e/x", "/a%5cb"] {
        assert_eq!(w.get(path, &[]).await.status, StatusCode::BAD_REQUEST, "{path}");
    }
}

#[tokio::test]
async fn browsers_are_led_to_sign_in_and_back_and_programs_are_not() {
    let w = world().await;
    let page = w.get("/runs?state=failed", &[("accept", "text/html,*/*;q=0.8")]).await;
    assert_eq!((page.status, page.location()), (StatusCode::FOUND, "/oauth2/start?rd=%2Fruns%3Fstate%3Dfailed"));
    let start = w.get(page.location(), &[]).await;
    assert_eq!(start.location(), "/dex/auth/local/login?rd=%2Fruns%3Fstate%3Dfailed");
    let signed = w.form(start.location(), &[("login", "User@Example.com"), ("password", PASSWORD)], &[]).await;
    assert_eq!((signed.status, signed.location()), (StatusCode::SEE_OTHER, "/runs?state=failed"));
    let cookie = signed.headers[header::SET_COOKIE].to_str().unwrap();
    assert!(cookie.contains("; HttpOnly; SameSite=Lax") && !cookie.contains("Secure"), "{cookie}");
    // What requests.Session sends, as in Kubeflow's documented script.
    assert_eq!(w.get("/pipeline", &[("accept", "*/*")]).await.status, StatusCode::FOUND);
    assert_eq!(w.get("/pipeline/apis/v1", &[("accept", "*/*")]).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(w.get("/runs", &[("accept", "application/json")]).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(w.send(Request::post("/runs").header("accept", "text/html"), "").await.status, StatusCode::UNAUTHORIZED);
    // The old cookie's name is read too.
    let secret = cookie.split(';').next().unwrap().split_once('=').unwrap().1;
    let me =
        w.get("/pipeline/apis/v1", &[("cookie", &format!("authservice_session={secret}; theme=dark"))]).await.json();
    assert_eq!((&me["user"], &me["path"]), (&EMAIL.into(), &"/apis/v1".into()));
    assert_eq!(me["headers"]["cookie"], "theme=dark", "the session's secret must not reach components");
}

#[tokio::test]
async fn a_component_gets_the_user_and_no_header_that_a_stranger_could_set() {
    let w = world().await;
    let token = w.gateway.create_token(EMAIL, TokenRequest::new("t", None)).await.unwrap();
    let bearer = format!("Bearer {}", token.reveal());
    let answer = w
        .get(
            "/apis/x",
            &[
                ("authorization", &bearer),
                ("kubeflow-userid", "admin@example.com"),
                ("Kubeflow-Groups", "system:masters"),
                ("kubeflow_userid", "admin@example.com"),
                ("x-auth-request-email", "admin@example.com"),
                ("x-forwarded-user", "admin@example.com"),
                ("x-remote-user", "admin"),
                ("impersonate-user", "admin"),
                ("x-goog-authenticated-user-email", "a"),
                ("forwarded", "for=1.2.3.4"),
                ("accept", "application/json"),
            ],
        )
        .await
        .json();
    assert_eq!(answer["user"], EMAIL);
    assert_eq!(answer["headers"], serde_json::json!({"accept": "application/json"}));
}

#[tokio::test]
async fn writes_by_cookie_must_come_from_our_own_pages() {
    let w = world().await;
    let cookie = w.sign_in().await;
    let ask = async |method: Method, headers: &[(&str, &str)]| {
        let request = Request::builder().method(method).uri("/apis/runs").header("cookie", &cookie);
        w.send(headers.iter().fold(request, |r, (k, v)| r.header(*k, *v)), "").await.status
    };
    for good in [
        &[][..],
        &[("origin", "http://127.0.0.1:8080"), ("sec-fetch-site", "same-origin")],
        &[("origin", "http://box.lab:9999"), ("host", "box.lab:9999")],
        &[("sec-fetch-site", "none")],
    ] {
        assert_eq!(ask(Method::POST, good).await, StatusCode::OK, "{good:?}");
    }
    for bad in [
        &[("origin", "https://evil.example"), ("host", "127.0.0.1:8080")][..],
        &[("origin", "http://127.0.0.1:8081"), ("host", "127.0.0.1:8080")],
        &[("origin", "null"), ("host", "127.0.0.1:8080")],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site"), ("origin", "http://127.0.0.1:8080")],
        &[("origin", "http://127.0.0.1:8080.evil.example"), ("host", "127.0.0.1:8080")],
    ] {
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            assert_eq!(ask(method, bad).await, StatusCode::FORBIDDEN, "{bad:?}");
        }
        let mut socket = bad.to_vec();
        socket.push(("upgrade", "websocket"));
        assert_eq!(ask(Method::GET, &socket).await, StatusCode::FORBIDDEN);
    }
    assert_eq!(ask(Method::GET, &[("sec-fetch-site", "cross-site")]).await, StatusCode::OK);
    let login = [("login", EMAIL), ("password", PASSWORD)];
    let planted = w.form("/dex/auth/local/login", &login, &[("origin", "https://evil.example")]).await;
    assert_eq!(planted.status, StatusCode::FORBIDDEN);
    assert!(planted.headers.get(header::SET_COOKIE).is_none());
}

#[tokio::test]
async fn sign_in_returns_only_to_this_host() {
    let w = world().await;
    for rd in ["https://evil.example", "//evil.example", "/\\evil.example", "/%09/evil.example", "javascript:alert(1)"]
    {
        let path = format!("/dex/auth/local/login?rd={}", sign_in::encode(rd));
        let answer = w.form(&path, &[("login", EMAIL), ("password", PASSWORD)], &[]).await;
        assert!(matches!(answer.location(), "/" | "/%09/evil.example"), "{rd} -> {}", answer.location());
        let page = w.get(&path, &[]).await;
        assert!(!page.text.contains("https%3A%2F%2Fevil"), "{}", page.text);
    }
    let out = w.get("/oauth2/sign_out?rd=https://evil.example/", &[]).await;
    assert_eq!(out.location(), "/");
}

#[tokio::test]
async fn the_page_escapes_what_was_typed_and_cannot_be_framed() {
    let w = world().await;
    let hostile = "\"><script>alert(1)</script>";
    let answer = w.form("/dex/auth/local/login", &[("login", hostile), ("password", "x")], &[]).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(!answer.text.contains("<script>"), "{}", answer.text);
    let policy = answer.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("frame-ancestors 'none'") && policy.contains("default-src 'none'"), "{policy}");
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    assert_eq!(answer.headers["cache-control"], "no-store");
}

#[tokio::test]
async fn guessing_locks_the_account_out_even_for_the_right_password_and_for_names_that_do_not_exist() {
    let w = world().await;
    for name in [EMAIL, "nobody@example.com"] {
        let wrong = [("login", name), ("password", "wrong-one")];
        let right = [("login", name), ("password", PASSWORD)];
        // At once: the first wait is a second, and on a busy machine five hashes take longer than that.
        let attempts = (0..5).map(|_| &wrong).chain([&right]).map(|form| w.form("/dex/auth/local/login", form, &[]));
        let mut answers = futures::future::join_all(attempts).await;
        let locked = answers.pop().unwrap();
        for answer in answers {
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
            assert!(answer.text.contains("The e-mail address or the password is wrong."));
        }
        assert_eq!(locked.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(locked.headers.get(header::RETRY_AFTER).is_some());
        assert!(locked.headers.get(header::SET_COOKIE).is_none());
    }
}

#[tokio::test]
async fn a_restart_is_no_way_around_the_lock_out() {
    let w = world().await;
    let attempt = async |w: &World, password: &str| {
        w.form("/dex/auth/local/login", &[("login", EMAIL), ("password", password)], &[]).await.status
    };
    // Two more than are free: the wait is several seconds, longer than this test's restart takes.
    for _ in 0..5 {
        assert_eq!(attempt(&w, "wrong-one").await, StatusCode::UNAUTHORIZED);
    }
    let now = std::time::Instant::now();
    for later in [2, 5, 10] {
        let here = std::net::IpAddr::from([127, 0, 0, 1]);
        w.gateway.inner.limits.admit(EMAIL, here, now + Duration::from_secs(later)).unwrap();
        let kept = w.gateway.inner.limits.kept(EMAIL, here, now, store::now());
        w.gateway.inner.store.keep_attempts(kept, 0).await.unwrap();
    }
    assert_eq!(attempt(&w, PASSWORD).await, StatusCode::TOO_MANY_REQUESTS);
    let World { gateway, router, reviewer, readiness, _dir } = w;
    let config = gateway.inner.config.clone();
    drop((gateway, router));
    let deps = Deps { token_reviewer: reviewer.clone(), readiness: readiness.clone(), newcomers: None };
    let gateway = Gateway::open(config, deps).unwrap();
    let again = World { router: gateway.router(Mounts::new()), gateway, reviewer, readiness, _dir };
    assert_eq!(attempt(&again, PASSWORD).await, StatusCode::TOO_MANY_REQUESTS);
    let somebody_else = [("login", "other@example.com"), ("password", "x")];
    let answer = again.form("/dex/auth/local/login", &somebody_else, &[]).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "only the account is locked, not the address");
}

#[tokio::test]
async fn sessions_end_by_sign_out_revocation_password_change_and_disabling() {
    let w = world().await;
    let works = async |cookie: &str| w.get("/apis/x", &[("cookie", cookie)]).await.status == StatusCode::OK;
    let cookie = w.sign_in().await;
    assert!(works(&cookie).await);
    // Another site's link cannot sign the user out.
    w.get("/oauth2/sign_out", &[("cookie", &cookie), ("sec-fetch-site", "cross-site")]).await;
    assert!(works(&cookie).await);
    let out = w.get("/oauth2/sign_out", &[("cookie", &cookie)]).await;
    assert!(out.headers[header::SET_COOKIE].to_str().unwrap().contains("Max-Age=0"));
    assert!(!works(&cookie).await);

    let cookie = w.sign_in().await;
    let sessions = w.gateway.list_sessions(Some(EMAIL));
    assert_eq!(sessions.len(), 1);
    assert!(w.gateway.revoke_session(&sessions[0].id).await.unwrap());
    assert!(!works(&cookie).await);

    let cookie = w.sign_in().await;
    w.gateway.set_password(EMAIL, "another password").await.unwrap();
    assert!(!works(&cookie).await);
    w.gateway.set_password(EMAIL, PASSWORD).await.unwrap();

    let cookie = w.sign_in().await;
    w.gateway.set_disabled(EMAIL, true).await.unwrap();
    assert!(!works(&cookie).await);
    let answer = w.form("/dex/auth/local/login", &[("login", EMAIL), ("password", PASSWORD)], &[]).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn an_expired_session_is_none() {
    let w = world_with(|c| c.session_ttl = Duration::ZERO).await;
    let cookie = w.sign_in().await;
    assert_eq!(w.get("/apis/x", &[("cookie", &cookie)]).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn personal_tokens_have_scopes_an_end_and_are_stored_hashed() {
    let w = world().await;
    let make = async |scopes: &[Scope], expires_in| {
        let request = TokenRequest { name: "ci".into(), expires_in, scopes: scopes.to_vec() };
        w.gateway.create_token(EMAIL, request).await.unwrap()
    };
    let status = async |secret: &str| w.get("/apis/x", &[("authorization", &format!("bearer {secret}"))]).await.status;
    let both = make(&Scope::ALL, None).await;
    assert!(both.reveal().starts_with("kfb_") && both.reveal().len() == 47);
    assert_eq!(status(both.reveal()).await, StatusCode::OK);
    assert_eq!(w.gateway.verify_bearer(both.reveal()).unwrap().groups, ["team", UserInfo::AUTHENTICATED]);
    let platform = make(&[Scope::Platform], None).await;
    assert_eq!(status(platform.reveal()).await, StatusCode::OK);
    assert!(w.gateway.verify_bearer(platform.reveal()).is_none());
    let kubernetes = make(&[Scope::Kubernetes], None).await;
    assert_eq!(status(kubernetes.reveal()).await, StatusCode::UNAUTHORIZED);
    assert!(w.gateway.verify_bearer(kubernetes.reveal()).is_some());
    // A good cookie does not rescue a bad token.
    let cookie = w.sign_in().await;
    let answer = w.get("/apis/x", &[("cookie", &cookie), ("authorization", "Bearer kfb_wrong")]).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);

    let dying = make(&Scope::ALL, Some(Duration::from_secs(1))).await;
    w.gateway
        .inner
        .store
        .tokens
        .write()
        .values_mut()
        .filter(|t| t.id == dying.token.id)
        .for_each(|t| t.expires = Some(1));
    assert_eq!(status(dying.reveal()).await, StatusCode::UNAUTHORIZED);
    assert!(w.gateway.revoke_token(&both.token.id).await.unwrap());
    assert_eq!(status(both.reveal()).await, StatusCode::UNAUTHORIZED);
    assert!(!w.gateway.revoke_token(&both.token.id).await.unwrap());

    let bytes: Vec<u8> =
        std::fs::read_dir(w._dir.path()).unwrap().flat_map(|f| std::fs::read(f.unwrap().path()).unwrap()).collect();
    let raw = platform.reveal().as_bytes();
    assert!(!bytes.windows(raw.len()).any(|window| window == raw), "the secret is on disk");
    assert!(!format!("{platform:?}").contains(platform.reveal()));
}

#[tokio::test]
async fn service_accounts_come_in_by_token_review_and_are_asked_for_once() {
    let w = world().await;
    for _ in 0..3 {
        let answer = w.get("/apis/x", &[("authorization", "Bearer aa.bb.cc")]).await;
        assert_eq!(answer.json()["user"], "system:serviceaccount:team-a:default-editor");
    }
    assert_eq!(w.reviewer.asked.load(Ordering::SeqCst), 1);
    assert_eq!(w.get("/apis/x", &[("authorization", "Bearer xx.yy.zz")]).await.status, StatusCode::UNAUTHORIZED);
    let broken = w.get("/apis/x", &[("authorization", "Bearer broken.broken.broken")]).await;
    assert_eq!(broken.status, StatusCode::SERVICE_UNAVAILABLE);
    let before = w.reviewer.asked.load(Ordering::SeqCst);
    w.get("/apis/x", &[("authorization", "Bearer not-a-jwt")]).await;
    assert_eq!(w.reviewer.asked.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn a_public_client_signs_in_with_pkce_and_its_tokens_work_once_each() {
    let w = world().await;
    let (verifier, challenge) = pkce();
    let anonymous = w.get("/dex/auth?client_id=cli&redirect_uri=https%3A%2F%2Fcli.example%2Fcallback&response_type=code&scope=openid&code_challenge=0123456789012345678901234567890123456789012&code_challenge_method=S256", &[]).await;
    assert!(anonymous.location().starts_with("/dex/auth/local/login?rd=%2Fdex%2Fauth%3F"), "{}", anonymous.location());
    let page = w.get(anonymous.location(), &[]).await;
    assert!(page.text.contains("The cli"));
    assert!(
        page.headers["content-security-policy"].to_str().unwrap().contains("form-action 'self' https://cli.example")
    );

    let cookie = w.sign_in().await;
    let code = w.code("cli", &cookie, &challenge).await;
    let redeem = async |code: &str, verifier: &str, uri: &str| {
        let pairs = [
            ("grant_type", "authorization_code"),
            ("client_id", "cli"),
            ("code", code),
            ("code_verifier", verifier),
            ("redirect_uri", uri),
        ];
        w.form("/dex/token", &pairs, &[]).await
    };
    let uri = "https://cli.example/callback";
    let tokens = redeem(&code, &verifier, uri).await;
    assert_eq!(tokens.status, StatusCode::OK, "{}", tokens.text);
    let tokens = tokens.json();
    let id = tokens["id_token"].as_str().unwrap();
    let claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(id.split('.').nth(1).unwrap()).unwrap()).unwrap();
    assert_eq!(claims["iss"], "http://127.0.0.1:8080/dex");
    assert_eq!((&claims["aud"], &claims["nonce"], &claims["email"]), (&"cli".into(), &"n1".into(), &EMAIL.into()));
    assert_eq!(claims["groups"], serde_json::json!(["team"]));
    // The signature holds against the published key.
    let jwks: jsonwebtoken::jwk::JwkSet = serde_json::from_value(w.get("/dex/keys", &[]).await.json()).unwrap();
    let kid = jsonwebtoken::decode_header(id).unwrap().kid.unwrap();
    let key = jsonwebtoken::DecodingKey::from_jwk(jwks.find(&kid).unwrap()).unwrap();
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
    validation.set_audience(&["cli"]);
    jsonwebtoken::decode::<Value>(id, &key, &validation).unwrap();

    let access = format!("Bearer {}", tokens["access_token"].as_str().unwrap());
    assert_eq!(w.get("/apis/x", &[("authorization", &access)]).await.json()["user"], EMAIL);
    assert_eq!(w.get("/dex/userinfo", &[("authorization", &access)]).await.json()["email"], EMAIL);
    assert_eq!(
        w.get("/dex/userinfo", &[("authorization", &format!("Bearer {id}"))]).await.status,
        StatusCode::UNAUTHORIZED
    );

    let refresh = async |token: &str| {
        w.form("/dex/token", &[("grant_type", "refresh_token"), ("client_id", "cli"), ("refresh_token", token)], &[])
            .await
    };
    let first = tokens["refresh_token"].as_str().unwrap();
    let second = refresh(first).await.json();
    let second = second["refresh_token"].as_str().unwrap();
    assert_eq!(refresh(first).await.json()["error"], "invalid_grant");
    assert_eq!(refresh(second).await.json()["error"], "invalid_grant", "the family ends when a used one comes back");

    // Wrong verifier, wrong redirect, and no PKCE at all.
    let code = w.code("cli", &cookie, &challenge).await;
    assert_eq!(redeem(&code, &store::random_secret(), uri).await.json()["error"], "invalid_grant");
    let code = w.code("cli", &cookie, &challenge).await;
    assert_eq!(redeem(&code, &verifier, "https://cli.example/callback/").await.json()["error"], "invalid_grant");
    for plain in [
        "",
        "&code_challenge=0123456789012345678901234567890123456789012",
        "&code_challenge=0123456789012345678901234567890123456789012&code_challenge_method=plain",
    ] {
        let path = format!(
            "/dex/auth?client_id=cli&redirect_uri=https%3A%2F%2Fcli.example%2Fcallback&response_type=code{plain}"
        );
        let answer = w.get(&path, &[("cookie", &cookie)]).await;
        assert!(
            answer.location().starts_with("https://cli.example/callback?error=invalid_request"),
            "{}",
            answer.location()
        );
    }
    // Tokens end with the password they were got by.
    w.gateway.set_password(EMAIL, "another password").await.unwrap();
    assert_eq!(w.get("/apis/x", &[("authorization", &access)]).await.status, StatusCode::UNAUTHORIZED);
    assert!(w.gateway.verify_bearer(id).is_none());
}

#[tokio::test]
async fn another_applications_tokens_are_not_good_on_the_platform() {
    let w = world().await;
    let cookie = w.sign_in().await;
    let code = w.code("grafana", &cookie, "").await;
    let pairs = [
        ("grant_type", "authorization_code"),
        ("code", code.as_str()),
        ("redirect_uri", "https://grafana.example/callback"),
    ];
    let basic = |secret: &str| {
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("grafana:{secret}")))
    };
    let wrong = w.form("/dex/token", &pairs, &[("authorization", &basic("not-the-right-secret"))]).await;
    assert_eq!((wrong.status, wrong.json()["error"].clone()), (StatusCode::UNAUTHORIZED, "invalid_client".into()));
    let tokens = w.form("/dex/token", &pairs, &[("authorization", &basic("a-long-enough-secret"))]).await.json();
    for name in ["access_token", "id_token"] {
        let token = tokens[name].as_str().unwrap();
        let answer = w.get("/apis/x", &[("authorization", &format!("Bearer {token}"))]).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{name}");
        assert!(w.gateway.verify_bearer(token).is_none());
    }
    // A code of one client is worthless to another, and the attempt burns it.
    let code = w.code("grafana", &cookie, "").await;
    let stolen = [
        ("grant_type", "authorization_code"),
        ("client_id", "cli"),
        ("code", code.as_str()),
        ("redirect_uri", "https://grafana.example/callback"),
    ];
    assert_eq!(w.form("/dex/token", &stolen, &[]).await.json()["error"], "invalid_grant");
}

#[tokio::test]
async fn redirect_addresses_are_compared_exactly_and_errors_do_not_travel() {
    let w = world().await;
    let cookie = w.sign_in().await;
    for uri in [
        "https://evil.example/callback",
        "https://cli.example/callback/",
        "https://cli.example/callback?x=1",
        "https://cli.example/Callback",
        "https://cli.example.evil.example/callback",
        "https://cli.example@evil.example/callback",
        "",
    ] {
        let path = format!("/dex/auth?client_id=cli&response_type=code&redirect_uri={}", sign_in::encode(uri));
        let answer = w.get(&path, &[("cookie", &cookie)]).await;
        assert_eq!((answer.status, answer.location()), (StatusCode::BAD_REQUEST, ""), "{uri}");
    }
    let prompt = "/dex/auth?client_id=grafana&response_type=code&redirect_uri=https%3A%2F%2Fgrafana.example%2Fcallback&prompt=none";
    let answer = w.get(prompt, &[]).await;
    assert!(
        answer.location().starts_with("https://grafana.example/callback?error=login_required"),
        "{}",
        answer.location()
    );
}

#[tokio::test]
async fn the_password_grant_is_off_unless_configured() {
    let pairs = [
        ("grant_type", "password"),
        ("client_id", "cli"),
        ("username", EMAIL),
        ("password", PASSWORD),
        ("scope", "openid"),
    ];
    let off = world().await;
    assert_eq!(off.form("/dex/token", &pairs, &[]).await.json()["error"], "unsupported_grant_type");
    let on = world_with(|c| c.password_grant = true).await;
    let tokens = on.form("/dex/token", &pairs, &[]).await.json();
    assert!(on.gateway.verify_bearer(tokens["id_token"].as_str().unwrap()).is_some());
    let wrong = [("grant_type", "password"), ("client_id", "cli"), ("username", EMAIL), ("password", "wrong-one")];
    for _ in 0..5 {
        assert_eq!(on.form("/dex/token", &wrong, &[]).await.json()["error"], "invalid_grant");
    }
    assert_eq!(on.form("/dex/token", &pairs, &[]).await.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn forged_and_foreign_jwts_are_refused() {
    let (w, other) = (world().await, world_with(|c| c.password_grant = true).await);
    let pairs = [
        ("grant_type", "password"),
        ("client_id", "cli"),
        ("username", EMAIL),
        ("password", PASSWORD),
        ("scope", "openid"),
    ];
    let foreign = other.form("/dex/token", &pairs, &[]).await.json()["id_token"].as_str().unwrap().to_owned();
    assert!(other.gateway.verify_bearer(&foreign).is_some());
    assert!(w.gateway.verify_bearer(&foreign).is_none(), "another box's key");
    let mut parts: Vec<String> = foreign.split('.').map(str::to_owned).collect();
    parts[0] = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    assert!(other.gateway.verify_bearer(&parts.join(".")).is_none());
    parts[2].clear();
    assert!(other.gateway.verify_bearer(&parts.join(".")).is_none());
    let public = other.get("/dex/keys", &[]).await.json()["keys"][0].clone();
    let kid = public["kid"].as_str().unwrap();
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    header.kid = Some(kid.into());
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(&parts[1]).unwrap()).unwrap();
    let secret = jsonwebtoken::EncodingKey::from_secret(public["x"].as_str().unwrap().as_bytes());
    let confused = jsonwebtoken::encode(&header, &claims, &secret).unwrap();
    assert!(other.gateway.verify_bearer(&confused).is_none());
}

#[tokio::test]
async fn keys_rotate_and_the_old_one_stays_published_until_its_tokens_are_dead() {
    let w = world_with(|c| c.password_grant = true).await;
    let pairs = [
        ("grant_type", "password"),
        ("client_id", "cli"),
        ("username", EMAIL),
        ("password", PASSWORD),
        ("scope", "openid"),
    ];
    let old = w.form("/dex/token", &pairs, &[]).await.json()["id_token"].as_str().unwrap().to_owned();
    let (store, day) = (&w.gateway.inner.store, 24 * 3600);
    let count = || store.keys.read().published().keys.len();
    store.rotate_keys_at(store::now() + 29 * day).await.unwrap();
    assert_eq!(count(), 1);
    store.rotate_keys_at(store::now() + 90 * day).await.unwrap();
    assert_eq!(count(), 2);
    assert!(w.gateway.verify_bearer(&old).is_some());
    store.rotate_keys_at(store::now() + 125 * day).await.unwrap();
    assert_eq!(count(), 2);
    assert!(w.gateway.verify_bearer(&old).is_none());
}

#[tokio::test]
async fn what_was_stored_survives_a_restart_and_the_first_user_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let config = Config::new(dir.path().into(), "http://127.0.0.1:8080".parse().unwrap());
        Gateway::open(
            config,
            Deps { token_reviewer: Arc::new(Reviewer::default()), readiness: Readiness::default(), newcomers: None },
        )
        .unwrap()
    };
    let gateway = open();
    let password = gateway.ensure_first_user("User@example.com").await.unwrap().unwrap();
    assert!(gateway.ensure_first_user(EMAIL).await.unwrap().is_none());
    let user = gateway.inner.store.check_password(EMAIL, password.reveal()).await.unwrap().unwrap();
    assert!(user.groups.contains(&kfbox_api::names::ADMIN_GROUP.to_owned()));
    let session = gateway.inner.store.begin_session(&user, Duration::from_secs(60), "127.0.0.1", "x").await.unwrap();
    let token = gateway.create_token(EMAIL, TokenRequest::new("t", None)).await.unwrap();
    let kid = gateway.inner.store.keys.read().published().keys[0].common.key_id.clone();
    drop(gateway);
    let again = open();
    assert!(again.ensure_first_user(EMAIL).await.unwrap().is_none());
    assert!(again.inner.store.session(&session).is_some());
    assert!(again.verify_bearer(token.reveal()).is_some());
    assert_eq!(again.inner.store.keys.read().published().keys[0].common.key_id, kid);
    again.remove_user(EMAIL).await.unwrap();
    assert!(again.verify_bearer(token.reveal()).is_none());
    assert!(again.inner.store.session(&session).is_none());
    drop(again);
    let third = open();
    assert!(third.ensure_first_user(EMAIL).await.unwrap().is_none(), "removed on purpose stays removed");
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(dir.path().join("gateway.db")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn groups_and_names_with_a_meaning_to_kubernetes_are_refused() {
    let w = world().await;
    for group in ["system:masters", "system:serviceaccounts", ""] {
        assert!(w.gateway.add_user("b@example.com", PASSWORD, &[group.to_owned()]).await.is_err());
    }
    for email in ["system:admin", "system:serviceaccount:a:b", "a b@x.org", "x@", "@x", "a@x@y"] {
        assert!(w.gateway.add_user(email, PASSWORD, &[]).await.is_err(), "{email}");
    }
    assert!(matches!(w.gateway.add_user("USER@example.com", PASSWORD, &[]).await, Err(StoreError::UserExists(_))));
}

#[tokio::test]
async fn a_listener_serves_and_stops_with_a_stalled_client_connected() {
    let w = world().await;
    let tasks = Tasks::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    w.gateway.serve("gateway", listener, w.router.clone(), &tasks);
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stalled = tokio::net::TcpStream::connect(address).await.unwrap();
    stalled.write_all(b"GET /healthz HT").await.unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("ok\n"), "{text}");
    tasks.stop();
    assert_eq!(tasks.drain(Duration::from_secs(10)).await, Vec::<String>::new());
}
