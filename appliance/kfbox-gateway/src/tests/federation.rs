//! Signing in through another provider, which is a gateway like this one on a real listener.

use super::*;
use crate::connectors::{ConnectorConfig, Groups, oidc::OidcConnector};
use proptest::prelude::{Strategy, prop, prop_assert, prop_oneof, proptest};

const ANN: &str = "ann@corp.example";
const SECRET: &str = "what-the-box-and-corp-share";
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ID_TYPE: &str = "urn:ietf:params:oauth:token-type:id_token";

struct Federation {
    provider: World,
    there: World,
    tasks: Tasks,
}

impl Drop for Federation {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

async fn federation(change: impl FnOnce(&mut OidcConnector)) -> Federation {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let provider = world_with(|c| {
        c.external_url = url.parse().unwrap();
        c.clients = vec![ClientConfig {
            id: "box".into(),
            secret: Some(SECRET.into()),
            redirect_uris: vec!["http://127.0.0.1:8080/dex/callback".into()],
            ..ClientConfig::default()
        }];
        c.password_grant = true;
    })
    .await;
    let groups = ["staff", "bosses", kfbox_api::names::ADMIN_GROUP].map(String::from);
    provider.gateway.add_user(ANN, PASSWORD, &groups).await.unwrap();
    let tasks = Tasks::new();
    provider.gateway.serve("provider", listener, provider.router.clone(), &tasks);
    let mut connector: OidcConnector = serde_json::from_value(serde_json::json!({
        "id": "corp", "name": "Corp", "issuer": format!("{url}/dex"), "client_id": "box", "client_secret": SECRET,
    }))
    .unwrap();
    change(&mut connector);
    let there = world_with(|c| {
        c.connectors = vec![ConnectorConfig::Oidc(connector)];
        c.clients.push(ClientConfig {
            id: "runner".into(),
            secret: Some(SECRET.into()),
            grants: Some(vec![GrantType::TokenExchange]),
            ..ClientConfig::default()
        });
        c.clients[1].connectors = Some(vec!["local".into()]);
    })
    .await;
    Federation { provider, there, tasks }
}

fn cookie_of(answer: &Answer, name: &str) -> String {
    let all = answer.headers.get_all(header::SET_COOKIE).iter().map(|v| v.to_str().unwrap().to_owned());
    let found = all.filter_map(|v| v.split(';').next().map(str::to_owned)).find(|v| v.starts_with(&format!("{name}=")));
    found.unwrap_or_else(|| panic!("no cookie {name}: {:?}", answer.headers))
}

fn path_of(location: &str) -> String {
    Url::parse(location).unwrap_or_else(|_| panic!("{location:?}"))[url::Position::BeforePath..].to_owned()
}

impl Federation {
    /// As far as the address that the browser comes back with, and the cookie that it got at first.
    async fn away(&self, email: &str) -> (String, String) {
        let away = self.there.get("/dex/auth/corp?rd=%2Fruns", &[]).await;
        assert_eq!(away.status, StatusCode::FOUND, "{}", away.text);
        let form = [("login", email), ("password", PASSWORD)];
        let signed = self.provider.form("/dex/auth/local/login", &form, &[]).await;
        let cookie = cookie_of(&signed, SESSION_COOKIE);
        let back = self.provider.get(&path_of(away.location()), &[("cookie", &cookie)]).await;
        assert!(back.location().starts_with("http://127.0.0.1:8080/dex/callback?code="), "{}", back.location());
        (path_of(back.location()), cookie_of(&away, guard::STATE_COOKIE))
    }

    async fn id_token(&self) -> String {
        let pairs = [
            ("grant_type", "password"),
            ("client_id", "box"),
            ("client_secret", SECRET),
            ("username", ANN),
            ("password", PASSWORD),
            ("scope", "openid groups"),
        ];
        self.provider.form("/dex/token", &pairs, &[]).await.json()["id_token"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn somebody_of_another_provider_signs_in_and_brings_their_groups() {
    let f = federation(|c| c.groups.admin = Some("bosses".into())).await;
    let page = f.there.get("/dex/auth/local/login?rd=%2Fruns", &[]).await;
    assert!(
        page.text.contains("href=\"/dex/auth/corp?rd=%2Fruns\"") && page.text.contains("Sign in with Corp"),
        "{}",
        page.text
    );
    let (back, cookie) = f.away(ANN).await;
    // Not in another browser, and not with another provider's name on it; each attempt uses the answer up.
    assert_eq!(f.there.get(&back, &[]).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(f.there.get(&back, &[("cookie", &cookie)]).await.status, StatusCode::BAD_REQUEST);
    let (back, cookie) = f.away(ANN).await;
    let mixed = format!("{}&iss=https%3A%2F%2Fevil.example", back.split("&iss=").next().unwrap());
    assert_eq!(f.there.get(&mixed, &[("cookie", &cookie)]).await.status, StatusCode::UNAUTHORIZED);

    let (back, cookie) = f.away(ANN).await;
    let signed = f.there.get(&back, &[("cookie", &cookie)]).await;
    assert_eq!((signed.status, signed.location()), (StatusCode::SEE_OTHER, "/runs"), "{}", signed.text);
    let session = cookie_of(&signed, SESSION_COOKIE);
    let me = f.there.get("/oauth2/userinfo", &[("cookie", &session)]).await.json();
    assert_eq!(me["email"], ANN);
    let groups = me["groups"].to_string();
    assert!(groups.contains("staff") && groups.contains(kfbox_api::names::ADMIN_GROUP), "{groups}");
    assert_eq!(f.there.get(&back, &[("cookie", &cookie)]).await.status, StatusCode::BAD_REQUEST, "once");
    // An application that takes local users only does not take this one.
    let path = "/dex/auth?client_id=grafana&redirect_uri=https%3A%2F%2Fgrafana.example%2Fcallback&response_type=code&scope=openid";
    assert!(f.there.get(path, &[("cookie", &session)]).await.location().contains("?error=access_denied"));
    let page = f.there.get(&format!("/dex/auth/local/login?rd={}", sign_in::encode(path)), &[]).await;
    assert!(!page.text.contains("Sign in with Corp"), "{}", page.text);
    // There is no password here for them, and none can be set.
    let form = [("login", ANN), ("password", "")];
    assert_eq!(f.there.form("/dex/auth/local/login", &form, &[]).await.status, StatusCode::UNAUTHORIZED);
    assert!(matches!(f.there.gateway.set_password(ANN, PASSWORD).await, Err(StoreError::Invalid(_))));
    // Less there is less here, from the next sign-in on.
    f.provider.gateway.set_groups(ANN, &["staff".to_owned()]).await.unwrap();
    // Sign-ins of the second of the change do not count: times have whole seconds.
    while store::now() < f.provider.gateway.inner.store.active_user(ANN).unwrap().valid_after {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (back, cookie) = f.away(ANN).await;
    let signed = f.there.get(&back, &[("cookie", &cookie)]).await;
    assert_eq!(signed.status, StatusCode::SEE_OTHER, "{}", signed.text);
    assert_eq!(f.there.gateway.inner.store.active_user(ANN).unwrap().groups, ["staff"]);
    f.there.gateway.set_disabled(ANN, true).await.unwrap();
    let (back, cookie) = f.away(ANN).await;
    assert_eq!(f.there.get(&back, &[("cookie", &cookie)]).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn an_address_is_taken_over_by_nobody() {
    let f = federation(|_| {}).await;
    // The other provider has a user of the same address as one with a password here.
    let (back, cookie) = f.away(EMAIL).await;
    let refused = f.there.get(&back, &[("cookie", &cookie)]).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(refused.text.contains("belongs to somebody else"), "{}", refused.text);
    let (back, cookie) = f.away(ANN).await;
    assert_eq!(f.there.get(&back, &[("cookie", &cookie)]).await.status, StatusCode::SEE_OTHER);
    assert!(
        !f.there
            .gateway
            .inner
            .store
            .active_user(ANN)
            .unwrap()
            .groups
            .contains(&kfbox_api::names::ADMIN_GROUP.to_owned())
    );
    // There the address is given to somebody else.
    f.provider.gateway.remove_user(ANN).await.unwrap();
    f.provider.gateway.add_user(ANN, PASSWORD, &[]).await.unwrap();
    let (back, cookie) = f.away(ANN).await;
    assert_eq!(f.there.get(&back, &[("cookie", &cookie)]).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn groups_decide_who_may_come_and_a_provider_that_is_away_is_told() {
    let f = federation(|c| c.groups = Groups { allowed: vec!["guests".into()], admin: None }).await;
    let (back, cookie) = f.away(ANN).await;
    let refused = f.there.get(&back, &[("cookie", &cookie)]).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(refused.text.contains("not in a group"), "{}", refused.text);
    assert!(f.there.gateway.inner.store.active_user(ANN).is_none());
    let gone = federation(|c| c.issuer = "http://127.0.0.1:9/dex".into()).await;
    let away = gone.there.get("/dex/auth/corp?rd=%2F", &[]).await;
    assert_eq!(away.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(away.text.contains("cannot be reached"), "{}", away.text);
    assert_eq!(gone.there.get("/dex/auth/nothing?rd=%2F", &[]).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_token_of_the_other_provider_is_exchanged_if_it_is_for_this_box_and_sound() {
    let f = federation(|_| {}).await;
    let exchange = async |token: &str, connector: &str| {
        let pairs = [
            ("grant_type", EXCHANGE),
            ("client_id", "runner"),
            ("client_secret", SECRET),
            ("connector_id", connector),
            ("subject_token", token),
            ("subject_token_type", ID_TYPE),
            ("scope", "openid groups"),
        ];
        f.there.form("/dex/token", &pairs, &[]).await.json()
    };
    let token = f.id_token().await;
    let got = exchange(&token, "corp").await;
    assert!(got["access_token"].is_string(), "{got}");
    assert_eq!(exchange(&token, "local").await["error"], "invalid_grant", "another connector's");
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    parts[0] = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    assert_eq!(exchange(&parts.join("."), "corp").await["error"], "invalid_grant");
    parts[0] = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    assert_eq!(exchange(&parts.join("."), "corp").await["error"], "invalid_grant");
    let upstream = f.there.gateway.upstream("corp").unwrap();
    assert!(upstream.identity(&token, None).await.is_ok());
    assert!(upstream.identity(&token, Some("another nonce")).await.is_err());
    // For another client of the same provider.
    let pairs = [
        ("grant_type", "password"),
        ("client_id", "cli"),
        ("username", EMAIL),
        ("password", PASSWORD),
        ("scope", "openid"),
    ];
    let other = world_with(|c| c.password_grant = true).await.form("/dex/token", &pairs, &[]).await.json();
    assert_eq!(exchange(other["id_token"].as_str().unwrap(), "corp").await["error"], "invalid_grant");
}

#[test]
fn what_a_policy_does_not_name_exactly_it_does_not_allow() {
    let word =
        || prop_oneof!["[a-z:_-]{0,12}", "(openid|email|groups|profile|offline_access|system:masters|staff)( |x)?"];
    let many = || prop::collection::vec(word(), 0..5);
    proptest!(|(allowed in many(), given in many(), scope in many().prop_map(|w| w.join(" ")))| {
        let groups = Groups { allowed: allowed.clone(), admin: None };
        let kept = crate::connectors::keep(&groups, &given).unwrap_or_default();
        for group in &kept {
            prop_assert!(given.contains(group) && !group.starts_with("system:") && !group.is_empty());
            prop_assert!(allowed.is_empty() || allowed.contains(group));
        }
        let client = ClientConfig { scopes: Some(allowed.clone()), connectors: Some(allowed.clone()), ..ClientConfig::default() };
        let fits = scope.split_whitespace().all(|s| allowed.iter().any(|a| a == s));
        prop_assert!(fits || client.refused_scope(&scope).is_some(), "{scope:?} {allowed:?}");
        for name in &given {
            prop_assert!(client.admits(name) == allowed.contains(name), "{name:?}");
            let nothing = ClientConfig { grants: Some(Vec::new()), ..client.clone() };
            prop_assert!(!nothing.may_use(GrantType::Password));
        }
    });
}
