//! Grants beside the code: device flow, exchange, revocation, logout, and what a client's configuration allows.

use super::*;

const DEVICE: &str = "urn:ietf:params:oauth:grant-type:device_code";
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ID_TYPE: &str = "urn:ietf:params:oauth:token-type:id_token";
const ACCESS_TYPE: &str = "urn:ietf:params:oauth:token-type:access_token";
const SECRET: &str = "a-long-enough-secret";

impl World {
    async fn begin_device(&self, client: &str) -> Value {
        let pairs = [("client_id", client), ("scope", "openid groups offline_access")];
        let answer = self.form("/dex/device/code", &pairs, &[]).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.json()
    }

    async fn poll(&self, client: &str, code: &str) -> Answer {
        self.form("/dex/token", &[("grant_type", DEVICE), ("client_id", client), ("device_code", code)], &[]).await
    }

    async fn decide(&self, cookie: &str, code: &str, approval: Option<&str>) -> Answer {
        let mut pairs = vec![("user_code", code)];
        pairs.extend(approval.map(|a| ("approval", a)));
        self.form("/dex/device/auth/verify_code", &pairs, &[("cookie", cookie)]).await
    }

    /// The tokens of a code of `grafana`, the client with a secret.
    async fn grafana(&self, cookie: &str, secret: &str) -> Value {
        let code = self.code("grafana", cookie, "").await;
        let pairs = [
            ("grant_type", "authorization_code"),
            ("client_id", "grafana"),
            ("client_secret", secret),
            ("code", &code),
            ("redirect_uri", "https://grafana.example/callback"),
        ];
        self.form("/dex/token", &pairs, &[]).await.json()
    }

    async fn works(&self, token: &Value) -> bool {
        let bearer = format!("Bearer {}", token.as_str().unwrap());
        self.get("/apis/x", &[("authorization", &bearer)]).await.status == StatusCode::OK
    }
}

#[tokio::test]
async fn a_program_without_a_browser_signs_in_by_a_code_that_a_person_confirms() {
    let w = world().await;
    let begun = w.begin_device(COMMAND_LINE_CLIENT).await;
    assert_eq!(begun["verification_uri"], "http://127.0.0.1:8080/dex/device");
    assert_eq!((&begun["interval"], &begun["expires_in"]), (&5.into(), &300.into()));
    let (device, user) = (begun["device_code"].as_str().unwrap(), begun["user_code"].as_str().unwrap());
    let pending = w.poll(COMMAND_LINE_CLIENT, device).await;
    assert_eq!(
        (pending.status, pending.json()["error"].clone()),
        (StatusCode::BAD_REQUEST, "authorization_pending".into())
    );
    assert_eq!(w.poll(COMMAND_LINE_CLIENT, device).await.json()["error"], "slow_down");

    let page = w.get(&format!("/dex/device?user_code={user}"), &[]).await;
    assert!(page.text.contains(&format!("value=\"{user}\"")), "{}", page.text);
    let anonymous = w.form("/dex/device/auth/verify_code", &[("user_code", user)], &[]).await;
    assert_eq!(anonymous.status, StatusCode::SEE_OTHER);
    assert!(
        anonymous.location().starts_with("/dex/auth/local/login?rd=%2Fdex%2Fdevice%3F"),
        "{}",
        anonymous.location()
    );
    let cookie = w.sign_in().await;
    let question = w.decide(&cookie, &user.to_lowercase().replace('-', " "), None).await;
    assert!(question.text.contains("kfbox on the command line") && question.text.contains(EMAIL), "{}", question.text);
    assert_ne!(w.poll(COMMAND_LINE_CLIENT, device).await.status, StatusCode::OK, "nothing is granted by looking");
    let foreign = [("cookie", cookie.as_str()), ("origin", "https://evil.example")];
    let pairs = [("user_code", user), ("approval", "approve")];
    assert_eq!(w.form("/dex/device/auth/verify_code", &pairs, &foreign).await.status, StatusCode::FORBIDDEN);
    assert!(w.decide(&cookie, user, Some("approve")).await.text.contains("Connected"));
    assert_eq!(w.decide(&cookie, user, Some("deny")).await.status, StatusCode::NOT_FOUND, "decided once");

    let tokens = w.poll(COMMAND_LINE_CLIENT, device).await;
    assert_eq!(tokens.status, StatusCode::OK, "{}", tokens.text);
    let tokens = tokens.json();
    let user = w.gateway.verify_bearer(tokens["id_token"].as_str().unwrap()).unwrap();
    assert_eq!((user.username.as_str(), user.groups.contains(&"team".to_owned())), (EMAIL, true));
    assert!(tokens["refresh_token"].is_string());
    assert_eq!(w.poll(COMMAND_LINE_CLIENT, device).await.json()["error"], "invalid_grant", "once");

    let begun = w.begin_device(COMMAND_LINE_CLIENT).await;
    let (device, user) = (begun["device_code"].as_str().unwrap(), begun["user_code"].as_str().unwrap());
    assert!(w.decide(&cookie, user, Some("deny")).await.text.contains("Refused"));
    assert_eq!(w.poll(COMMAND_LINE_CLIENT, device).await.json()["error"], "access_denied");
    assert_eq!(w.poll(COMMAND_LINE_CLIENT, "guess").await.json()["error"], "invalid_grant");
}

#[tokio::test]
async fn user_codes_cannot_be_guessed_and_device_codes_are_their_clients_own() {
    let w = world().await;
    let cookie = w.sign_in().await;
    let begun = w.begin_device("cli").await;
    for _ in 0..5 {
        assert_eq!(w.decide(&cookie, "BCDF-GHJK", None).await.status, StatusCode::NOT_FOUND);
    }
    let right = begun["user_code"].as_str().unwrap();
    assert_eq!(w.decide(&cookie, right, Some("approve")).await.status, StatusCode::TOO_MANY_REQUESTS);
    let device = begun["device_code"].as_str().unwrap();
    assert_eq!(w.poll(COMMAND_LINE_CLIENT, device).await.json()["error"], "invalid_grant");
    assert_eq!(w.poll("cli", device).await.json()["error"], "authorization_pending");
    let unknown = w.form("/dex/device/code", &[("client_id", "nobody")], &[]).await;
    assert_eq!((unknown.status, unknown.json()["error"].clone()), (StatusCode::UNAUTHORIZED, "invalid_client".into()));
}

#[tokio::test]
async fn a_code_that_comes_back_ends_what_it_gave() {
    let w = world_with(|c| c.clients[1].platform = true).await;
    let cookie = w.sign_in().await;
    let code = w.code("grafana", &cookie, "").await;
    let pairs = [
        ("grant_type", "authorization_code"),
        ("client_id", "grafana"),
        ("client_secret", SECRET),
        ("code", &code),
        ("redirect_uri", "https://grafana.example/callback"),
    ];
    let tokens = w.form("/dex/token", &pairs, &[]).await.json();
    assert!(w.works(&tokens["access_token"]).await);
    assert_eq!(w.form("/dex/token", &pairs, &[]).await.json()["error"], "invalid_grant");
    assert!(!w.works(&tokens["access_token"]).await);
    let refresh = [
        ("grant_type", "refresh_token"),
        ("client_id", "grafana"),
        ("client_secret", SECRET),
        ("refresh_token", tokens["refresh_token"].as_str().unwrap()),
    ];
    assert_eq!(w.form("/dex/token", &refresh, &[]).await.json()["error"], "invalid_grant");
}

#[tokio::test]
async fn revoked_tokens_are_dead_also_after_a_restart_and_only_their_client_revokes_them() {
    let w = world_with(|c| c.clients[1].platform = true).await;
    let cookie = w.sign_in().await;
    let tokens = w.grafana(&cookie, SECRET).await;
    let (access, refresh) = (&tokens["access_token"], tokens["refresh_token"].as_str().unwrap());
    let ours = [("client_id", "grafana"), ("client_secret", SECRET)];
    let ask = async |path: &str, client: &[(&str, &str)], token: &str| {
        w.form(path, &[client, &[("token", token)]].concat(), &[]).await
    };
    let access_text = access.as_str().unwrap();
    let told = ask("/dex/token/introspect", &ours, access_text).await.json();
    assert_eq!(
        (&told["active"], &told["username"], &told["token_use"]),
        (&true.into(), &EMAIL.into(), &"access_token".into())
    );
    assert_eq!(ask("/dex/token/introspect", &ours, refresh).await.json()["token_use"], "refresh_token");
    assert_eq!(ask("/dex/token/introspect", &ours, "nonsense").await.json(), serde_json::json!({"active": false}));
    assert_eq!(
        ask("/dex/token/introspect", &[("client_id", "cli")], access_text).await.json()["error"],
        "unauthorized_client"
    );
    // Another client's revocation is answered like one of nonsense, and does nothing.
    for token in [access_text, refresh, "nonsense"] {
        assert_eq!(ask("/dex/token/revoke", &[("client_id", "cli")], token).await.status, StatusCode::OK);
    }
    assert!(w.works(access).await);
    let wrong = ask("/dex/token/revoke", &[("client_id", "grafana"), ("client_secret", "wrong")], access_text).await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    assert_eq!(ask("/dex/token/revoke", &ours, access_text).await.status, StatusCode::OK);
    assert!(!w.works(access).await);
    assert!(w.works(&tokens["id_token"]).await, "the other token of the same sign-in stays");
    assert_eq!(ask("/dex/token/revoke", &ours, refresh).await.status, StatusCode::OK);
    assert!(!w.works(&tokens["id_token"]).await, "with the refresh token ends what came with it");
    let again = Store::open(&w.gateway.inner.config.data_dir).unwrap();
    assert_eq!(again.revoked.read().len(), 2);
}

#[tokio::test]
async fn a_token_is_exchanged_only_by_a_client_that_may_and_for_users_it_takes() {
    let w = world_with(|c| {
        let exchanger = |id: &str, connectors: Option<Vec<String>>| ClientConfig {
            id: id.into(),
            secret: Some(SECRET.into()),
            grants: Some(vec![GrantType::TokenExchange]),
            connectors,
            ..ClientConfig::default()
        };
        c.clients.push(exchanger("runner", None));
        c.clients.push(exchanger("closed", Some(Vec::new())));
        c.password_grant = true;
    })
    .await;
    let pairs = [("grant_type", "password"), ("client_id", "cli"), ("username", EMAIL), ("password", PASSWORD)];
    let with_groups = w.form("/dex/token", &[&pairs[..], &[("scope", "openid groups")]].concat(), &[]).await.json();
    let without = w.form("/dex/token", &pairs, &[]).await.json();
    let exchange = async |client: &str, token: &Value, typ: &str, more: &[(&str, &str)]| {
        let pairs = [
            ("grant_type", EXCHANGE),
            ("client_id", client),
            ("client_secret", SECRET),
            ("subject_token", token.as_str().unwrap()),
            ("subject_token_type", typ),
        ];
        w.form("/dex/token", &[&pairs[..], more].concat(), &[]).await.json()
    };
    let local = ("connector_id", "local");
    let id = &with_groups["id_token"];
    let got = exchange("runner", id, ID_TYPE, &[local, ("scope", "openid groups offline_access")]).await;
    assert_eq!((&got["issued_token_type"], &got["token_type"]), (&ACCESS_TYPE.into(), &"bearer".into()), "{got}");
    assert!(got["refresh_token"].is_null() && got["scope"] == "openid groups", "{got}");
    let claims = |token: &Value| -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.as_str().unwrap().split('.').nth(1).unwrap()).unwrap())
            .unwrap()
    };
    let said = claims(&got["access_token"]);
    assert_eq!((&said["aud"], &said["groups"]), (&"runner".into(), &serde_json::json!(["team"])));
    assert!(said["exp"].as_i64() <= claims(id)["exp"].as_i64(), "not longer than the first");
    let wanted = [local, ("requested_token_type", ID_TYPE), ("scope", "openid groups")];
    let got = exchange("runner", &without["access_token"], ACCESS_TYPE, &wanted).await;
    assert_eq!(got["issued_token_type"], ID_TYPE, "{got}");
    assert!(claims(&got["access_token"])["groups"].is_null(), "not more than the first said");
    for (client, token, typ, more, error) in [
        ("runner", id, ID_TYPE, &[][..], "invalid_request"),
        ("runner", id, ACCESS_TYPE, &[local], "invalid_grant"),
        ("runner", id, "urn:ietf:params:oauth:token-type:jwt", &[local], "invalid_request"),
        ("runner", id, ID_TYPE, &[("connector_id", "nothing")], "invalid_request"),
        ("runner", id, ID_TYPE, &[local, ("audience", "grafana")], "invalid_target"),
        ("closed", id, ID_TYPE, &[local], "invalid_grant"),
        ("grafana", id, ID_TYPE, &[local], "unauthorized_client"),
    ] {
        assert_eq!(exchange(client, token, typ, more).await["error"], error, "{client} {typ} {more:?}");
    }
    // A token of an application that is not trusted with the platform is not another's to use.
    let grafana = w.grafana(&w.sign_in().await, SECRET).await;
    assert_eq!(exchange("runner", &grafana["id_token"], ID_TYPE, &[local]).await["error"], "invalid_grant");
}

#[tokio::test]
async fn a_client_gets_only_what_its_configuration_allows() {
    let w = world_with(|c| {
        c.clients[1].scopes = Some(vec!["openid".into(), "email".into()]);
        c.clients[1].grants = Some(vec![GrantType::AuthorizationCode]);
        c.clients[0].connectors = Some(Vec::new());
    })
    .await;
    let cookie = w.sign_in().await;
    let ask = async |client: &str, scope: &str, more: &str| {
        let path = format!(
            "/dex/auth?client_id={client}&redirect_uri=https%3A%2F%2F{client}.example%2Fcallback&response_type=code\
             &state=x&scope={scope}{more}"
        );
        w.get(&path, &[("cookie", &cookie)]).await.location().to_owned()
    };
    assert!(ask("grafana", "openid+email", "").await.contains("?code="));
    for scope in ["openid+groups", "openid+offline_access", "openid+audience%3Aserver%3Aclient_id%3Acli", "everything"]
    {
        let to = ask("grafana", scope, "").await;
        assert!(to.contains("?error=invalid_scope&") && to.contains("&state=x"), "{scope}: {to}");
    }
    let to = ask("cli", "openid", &pkce().1).await;
    assert!(to.contains("?error=access_denied"), "{to}");
    let refresh =
        [("grant_type", "refresh_token"), ("client_id", "grafana"), ("client_secret", SECRET), ("refresh_token", "x")];
    assert_eq!(w.form("/dex/token", &refresh, &[]).await.json()["error"], "unauthorized_client");
    let device = [("client_id", "grafana"), ("client_secret", SECRET)];
    assert_eq!(w.form("/dex/device/code", &device, &[]).await.json()["error"], "unauthorized_client");
    let long = "x".repeat(1025);
    let path = format!(
        "/dex/auth?client_id=grafana&redirect_uri=https%3A%2F%2Fgrafana.example%2Fcallback&response_type=code&state={long}"
    );
    assert_eq!(w.get(&path, &[("cookie", &cookie)]).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn another_sites_logout_asks_and_an_id_token_of_the_user_does_not() {
    let w = world().await;
    let cookie = w.sign_in().await;
    let id = w.grafana(&cookie, SECRET).await["id_token"].as_str().unwrap().to_owned();
    let cross = [("cookie", cookie.as_str()), ("sec-fetch-site", "cross-site")];
    let works = async || w.get("/apis/x", &[("cookie", &cookie)]).await.status == StatusCode::OK;
    let back = "post_logout_redirect_uri=https%3A%2F%2Fgrafana.example%2Fcallback&state=s%26s";
    let question = w.get(&format!("/dex/logout?client_id=grafana&{back}"), &cross).await;
    assert_eq!(question.status, StatusCode::OK);
    assert!(question.text.contains("Sign out?") && question.text.contains("value=\"s&#38;s\""), "{}", question.text);
    assert_eq!(w.get("/dex/logout?id_token_hint=a.b.c", &cross).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        w.get(&format!("/dex/logout?client_id=cli&id_token_hint={id}"), &cross).await.status,
        StatusCode::BAD_REQUEST
    );
    assert!(works().await);
    let out = w.get(&format!("/dex/logout?id_token_hint={id}&{back}"), &cross).await;
    assert_eq!(out.location(), "https://grafana.example/callback?state=s%26s");
    assert!(!works().await);

    let cookie = w.sign_in().await;
    let ours = [("cookie", cookie.as_str()), ("sec-fetch-site", "same-origin")];
    let form = [("client_id", "grafana"), ("post_logout_redirect_uri", "https://evil.example/")];
    let out = w.form("/dex/logout", &form, &ours).await;
    assert_eq!(out.location(), "/dex/auth/local/login?rd=%2F", "only to a redirect address of the client");
    assert_eq!(w.get("/apis/x", &[("cookie", &cookie)]).await.status, StatusCode::UNAUTHORIZED);
}

#[test]
fn mistakes_in_the_configuration_of_clients_are_named() {
    let good = ClientConfig {
        id: "a".into(),
        secret: Some(SECRET.into()),
        redirect_uris: vec!["https://a.example/cb".into()],
        ..ClientConfig::default()
    };
    let check = |change: fn(&mut ClientConfig)| {
        let mut client = good.clone();
        change(&mut client);
        oidc::clients::check(&[client], &["corp"])
    };
    check(|c| c.connectors = Some(vec!["local".into(), "corp".into()])).unwrap();
    type Change = fn(&mut ClientConfig);
    let wrong: [(Change, &str); 9] = [
        (|c| c.id.clear(), "empty"),
        (|c| c.secret = None, "public = true"),
        (|c| c.public = true, "no secret"),
        (|c| c.secret = Some("short".into()), "16 characters"),
        (|c| c.redirect_uris = vec!["a.example/cb".into()], "absolute"),
        (|c| c.redirect_uris = vec!["https://a.example/cb#x".into()], "fragment"),
        (|c| c.redirect_uris = vec!["javascript:alert(1)".into()], "absolute"),
        (|c| c.scopes = Some(vec!["all".into()]), "no scope"),
        (|c| c.connectors = Some(vec!["nothing".into()]), "no connector"),
    ];
    for (change, expected) in wrong {
        let error = check(change).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
