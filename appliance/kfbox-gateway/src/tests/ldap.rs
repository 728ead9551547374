//! Signing in with a name and a password of a directory, which is OpenLDAP's own server.

use super::*;
use crate::connectors::ConnectorConfig;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use slapd::{ADMIN_DN, ADMIN_PASSWORD, PASSWORD as ANNS, PEOPLE, SEARCH_DN, SEARCH_PASSWORD, SUFFIX, Slapd};

#[path = "../../../../tests/harness/slapd.rs"]
mod slapd;

const ANN: &str = "ann@corp.example";
const PAGE: &str = "/dex/auth/corp/login?rd=%2Fruns";

fn connector(port: u16, change: impl FnOnce(&mut Value)) -> ConnectorConfig {
    let mut value = serde_json::json!({
        "type": "ldap", "id": "corp", "name": "Corp", "host": format!("127.0.0.1:{port}"), "insecureNoSSL": true,
        "bindDN": SEARCH_DN, "bindPW": SEARCH_PASSWORD,
        "userSearch": {
            "baseDN": format!("ou=people,{SUFFIX}"), "filter": "(objectClass=inetOrgPerson)", "username": "uid",
            "idAttr": "entryUUID", "emailAttr": "mail", "nameAttr": "displayName", "preferredUsernameAttr": "uid",
        },
        "groupSearch": {
            "baseDN": format!("ou=groups,{SUFFIX}"), "nameAttr": "cn",
            "userMatchers": [{"userAttr": "DN", "groupAttr": "member"}, {"userAttr": "uid", "groupAttr": "memberUid"}],
        },
    });
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

async fn world_of(connector: ConnectorConfig) -> World {
    world_with(|c| {
        c.connectors = vec![connector];
        c.password_grant = true;
        c.clients.push(ClientConfig {
            id: "notebook".into(),
            public: true,
            connectors: Some(vec!["corp".into()]),
            ..ClientConfig::default()
        });
    })
    .await
}

impl World {
    async fn try_ldap(&self, login: &str, password: &str) -> Answer {
        self.form(PAGE, &[("login", login), ("password", password)], &[]).await
    }

    async fn grant(&self, client: &str, connector: &str, login: &str, password: &str) -> Value {
        let pairs = [
            ("grant_type", "password"),
            ("client_id", client),
            ("connector_id", connector),
            ("username", login),
            ("password", password),
            ("scope", "openid groups offline_access"),
        ];
        self.form("/dex/token", &pairs, &[]).await.json()
    }

    async fn refresh(&self, token: &str) -> Value {
        let pairs = [("grant_type", "refresh_token"), ("client_id", "notebook"), ("refresh_token", token)];
        self.form("/dex/token", &pairs, &[]).await.json()
    }
}

fn claims(token: &Value) -> Value {
    let payload = token.as_str().unwrap().split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

#[tokio::test]
async fn somebody_of_a_directory_signs_in_on_the_page_with_groups_and_a_name() {
    let slapd = Slapd::start(None).unwrap();
    let w = world_of(connector(slapd.port, |v| v["groups"]["admin"] = "unix".into())).await;
    // A browser is led to a page with the choice; a script of Kubeflow's documentation puts the connector behind it.
    let start = w.get("/oauth2/start?rd=%2Fruns", &[]).await;
    assert_eq!(start.location(), "/dex/auth?rd=%2Fruns");
    let page = w.get(start.location(), &[]).await;
    assert!(
        page.text.contains("href=\"/dex/auth/corp?rd=%2Fruns\"") && page.text.contains("with Corp"),
        "{}",
        page.text
    );
    assert_eq!(w.get("/dex/auth/local?rd=%2Fruns", &[]).await.location(), "/dex/auth/local/login?rd=%2Fruns");
    let chosen = w.get("/dex/auth/corp?rd=%2Fruns", &[]).await;
    assert_eq!((chosen.status, chosen.location()), (StatusCode::FOUND, PAGE));
    let page = w.get(PAGE, &[]).await;
    assert!(page.text.contains("User name") && page.text.contains("type=\"text\""), "{}", page.text);

    let signed = w.try_ldap(" ANN ", ANNS).await;
    assert_eq!((signed.status, signed.location()), (StatusCode::SEE_OTHER, "/runs"), "{}", signed.text);
    let cookie = signed.headers[header::SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
    let me = w.get("/oauth2/userinfo", &[("cookie", &cookie)]).await.json();
    assert_eq!(me["email"], ANN);
    let user = w.gateway.inner.store.active_user(ANN).unwrap();
    assert_eq!(user.groups, [kfbox_api::names::ADMIN_GROUP, "staff", "unix"], "none with a meaning to Kubernetes");
    assert_eq!((user.name.as_str(), user.username.as_str()), ("Ann of Corp", "ann"));
    // There is no password here for her, and the other page does not take the directory's.
    let local = w.form("/dex/auth/local/login", &[("login", ANN), ("password", ANNS)], &[]).await;
    assert_eq!(local.status, StatusCode::UNAUTHORIZED);
    assert_eq!(w.get("/dex/auth/nothing/login", &[]).await.status, StatusCode::NOT_FOUND);
    assert_eq!(
        w.form("/dex/auth/nothing/login", &[("login", "ann"), ("password", ANNS)], &[]).await.status,
        StatusCode::NOT_FOUND
    );
    // Another site's form signs nobody in.
    let form = [("login", "ann"), ("password", ANNS)];
    let foreign = w.form(PAGE, &form, &[("origin", "https://evil.example"), ("host", "127.0.0.1:8080")]).await;
    assert_eq!(foreign.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn what_is_not_the_entrys_password_or_name_signs_nobody_in() {
    let slapd = Slapd::start(None).unwrap();
    let w = world_of(connector(slapd.port, |_| {})).await;
    // The directory itself says yes to an empty password: see its configuration.
    for (login, password) in [
        ("ann", "wrong"),
        ("ann", ""),
        ("", ""),
        ("", ANNS),
        ("nobody", ANNS),
        ("*", ANNS),
        ("an*", ANNS),
        ("ann)(uid=*", ANNS),
        ("*)(objectClass=*", ANNS),
        ("ann)(|(uid=*", ANNS),
        ("ann\0", ANNS),
        ("\\61nn", ANNS),
        ("uid=ann,ou=people,dc=corp,dc=example", ANNS),
    ] {
        // A fresh world each: the brake would answer in the directory's place.
        let w = world_of(connector(slapd.port, |_| {})).await;
        let answer = w.try_ldap(login, password).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{login:?} {password:?}: {}", answer.text);
        assert_eq!(w.grant("notebook", "corp", login, password).await["error"], "invalid_grant", "{login:?}");
        assert!(w.gateway.list_users().iter().all(|u| u.email == EMAIL));
    }
    assert_eq!(w.try_ldap("ann", &"x".repeat(2000)).await.status, StatusCode::UNAUTHORIZED);
    // Guessing is braked, whatever the spelling of the name: the directory ignores case and doubled spaces.
    for name in ["ann", "Ann", "aNN", "ANN", "anN", "AnN"] {
        w.try_ldap(name, "guess").await;
    }
    assert_eq!(w.try_ldap("ann", ANNS).await.status, StatusCode::TOO_MANY_REQUESTS);
    // An entry without an address is told so only to who knows its password.
    let w = world_of(connector(slapd.port, |_| {})).await;
    assert_eq!(w.try_ldap("mute", "wrong").await.status, StatusCode::UNAUTHORIZED);
    let mute = w.try_ldap("mute", ANNS).await;
    assert!(mute.status == StatusCode::FORBIDDEN && mute.text.contains("address"), "{}", mute.text);
    // Two entries of one name are nobody.
    let w = world_of(connector(slapd.port, |v| v["userSearch"]["username"] = "cn".into())).await;
    assert_eq!(w.try_ldap("Ann  lee", ANNS).await.status, StatusCode::SEE_OTHER);
    assert_eq!(w.try_ldap("Twin", ANNS).await.status, StatusCode::UNAUTHORIZED);
    // Groups that are allowed decide.
    let w = world_of(connector(slapd.port, |v| v["groups"]["allowed"] = serde_json::json!(["others"]))).await;
    let refused = w.try_ldap("ann", ANNS).await;
    assert!(refused.status == StatusCode::FORBIDDEN && refused.text.contains("not in a group"), "{}", refused.text);
    assert_eq!(w.try_ldap("twin1", ANNS).await.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn a_program_gets_tokens_for_a_directorys_user_where_its_client_may() {
    let slapd = Slapd::start(None).unwrap();
    let w = world_of(connector(slapd.port, |_| {})).await;
    let got = w.grant("notebook", "corp", "ann", ANNS).await;
    let id = claims(&got["id_token"]);
    assert_eq!(
        (&id["email"], &id["name"], &id["preferred_username"]),
        (&ANN.into(), &"Ann of Corp".into(), &"ann".into())
    );
    assert_eq!(id["groups"], serde_json::json!(["staff", "unix"]));
    assert_eq!(id["federated_claims"]["connector_id"], "corp");
    assert_eq!(w.grant("notebook", "local", EMAIL, PASSWORD).await["error"], "unauthorized_client");
    assert_eq!(w.grant("notebook", "", EMAIL, PASSWORD).await["error"], "unauthorized_client", "local by default");
    assert!(w.grant("cli", "", EMAIL, PASSWORD).await["access_token"].is_string());
    assert_eq!(w.grant("cli", "nothing", EMAIL, PASSWORD).await["error"], "invalid_request");
    // As Dex's `passwordConnector` has it.
    let w = world_with(|c| {
        c.connectors = vec![connector(slapd.port, |_| {})];
        c.password_connector = Some("corp".into());
    });
    assert!(w.await.grant("cli", "", "ann", ANNS).await["access_token"].is_string());

    // A refresh asks the directory again, and what is gone there is gone here.
    let w = world_of(connector(slapd.port, |_| {})).await;
    let first = w.grant("notebook", "corp", "ann", ANNS).await;
    let second = w.refresh(first["refresh_token"].as_str().unwrap()).await;
    assert_eq!(claims(&second["id_token"])["groups"], serde_json::json!(["staff", "unix"]));
    let (connection, mut admin) = ldap3::LdapConnAsync::new(&format!("ldap://127.0.0.1:{}", slapd.port)).await.unwrap();
    let work = async {
        admin.simple_bind(ADMIN_DN, ADMIN_PASSWORD).await.unwrap().success().unwrap();
        admin.delete(&format!("cn=unix,ou=groups,{SUFFIX}")).await.unwrap().success().unwrap();
        let third = w.refresh(second["refresh_token"].as_str().unwrap()).await;
        assert_eq!(claims(&third["id_token"])["groups"], serde_json::json!(["staff"]));
        admin.delete(&format!("uid=ann,ou=people,{SUFFIX}")).await.unwrap().success().unwrap();
        assert_eq!(w.refresh(third["refresh_token"].as_str().unwrap()).await["error"], "invalid_grant");
    };
    tokio::select! {
        () = work => {}
        ended = connection.drive() => panic!("{ended:?}"),
    }
}

#[tokio::test]
async fn a_directory_that_is_away_or_slow_locks_nobody_out_and_costs_no_sign_in() {
    let mut slapd = Slapd::start(None).unwrap();
    let w = world_of(connector(slapd.port, |_| {})).await;
    let first = w.grant("notebook", "corp", "ann", ANNS).await;
    let token = first["refresh_token"].as_str().unwrap().to_owned();
    slapd.stop();
    for _ in 0..8 {
        let answer = w.try_ldap("ann", ANNS).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text);
    }
    assert_eq!(w.grant("notebook", "corp", "ann", ANNS).await["error"], "temporarily_unavailable");
    assert_eq!(w.refresh(&token).await["error"], "temporarily_unavailable");
    slapd.resume().unwrap();
    assert_eq!(w.try_ldap("ann", ANNS).await.status, StatusCode::SEE_OTHER);
    assert!(w.refresh(&token).await["refresh_token"].is_string(), "the token was not used up");

    // One that accepts and says nothing, one that speaks something else, and one that hangs up.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let w = world_of(connector(port, |v| v["timeout_seconds"] = 1.into())).await;
    assert_eq!(w.try_ldap("ann", ANNS).await.status, StatusCode::SERVICE_UNAVAILABLE);
    let w = world_of(connector(port, |v| {
        v["timeout_seconds"] = 1.into();
        v["insecureNoSSL"] = false.into();
        v["startTLS"] = true.into();
    }))
    .await;
    assert_eq!(w.try_ldap("ann", ANNS).await.status, StatusCode::SERVICE_UNAVAILABLE);
    drop(silent);
    for words in ["HTTP/1.1 400 Bad Request\r\n\r\n", ""] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            use std::io::{Read as _, Write as _};
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 64];
            drop(stream.read(&mut request));
            drop(stream.write_all(words.as_bytes()));
        });
        let w = world_of(connector(port, |v| v["timeout_seconds"] = 5.into())).await;
        assert_eq!(w.try_ldap("ann", ANNS).await.status, StatusCode::SERVICE_UNAVAILABLE, "{words:?}");
        server.join().unwrap();
    }
    // A service account that the directory does not take is the box's trouble, not a person's.
    let w = world_of(connector(slapd.port, |v| v["bindPW"] = "wrong".into())).await;
    assert_eq!(w.try_ldap("ann", ANNS).await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn no_name_but_the_exact_one_finds_an_entry() {
    use proptest::prelude::*;
    let slapd = Slapd::start(None).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let w = runtime.block_on(world_of(connector(slapd.port, |_| {})));
    let directory = w.gateway.directory("corp").unwrap();
    let find = |login: &str| {
        runtime.block_on(async {
            let mut talk = directory.talk().await.unwrap();
            directory.find(&mut talk, login).await
        })
    };
    assert!(find("ann").unwrap().is_some());
    // Few: each is a conversation.
    let few = ProptestConfig { cases: 80, ..ProptestConfig::default() };
    let filters = "(ann|\\*|twin1)?[()|&!=*\\\\~<>:,+\"#a-z0-9 ]{0,20}";
    proptest!(few, |(login in prop_oneof![super::fuzz::hostile(), filters])| {
        // Whatever it is, the directory understands the question.
        let entry = find(&login).unwrap_or_else(|error| panic!("{login:?}: {error}"));
        if let Some(entry) = entry.filter(|_| login.is_ascii()) {
            let name = login.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
            prop_assert_eq!(&entry.attrs["uid"][0], &name);
        }
    });
}

impl World {
    async fn who(&self, proof: (&str, &str)) -> Value {
        let answer = self.get("/oauth2/userinfo", &[proof]).await;
        if answer.status == StatusCode::OK { answer.json()["groups"].clone() } else { answer.status.as_u16().into() }
    }

    async fn becomes(&self, proof: (&str, &str), wanted: Value) {
        let begun = std::time::Instant::now();
        loop {
            let found = self.who(proof).await;
            if found == wanted {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{found} instead of {wanted}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn who_is_gone_from_the_directory_is_out_while_signed_in_and_their_groups_are_todays() {
    let mut slapd = Slapd::start(None).unwrap();
    let change = |v: &mut Value| {
        v["recheckSeconds"] = 1.into();
        v["userSearch"]["idAttr"] = "uid".into();
    };
    let w = world_of(connector(slapd.port, change)).await;
    let sign_in = async || {
        let signed = w.try_ldap("ann", ANNS).await;
        assert_eq!(signed.status, StatusCode::SEE_OTHER, "{}", signed.text);
        signed.headers[header::SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned()
    };
    let cookie = sign_in().await;
    let session = ("cookie", cookie.as_str());
    let token = w.gateway.create_token(ANN, TokenRequest::new("t", None)).await.unwrap();
    let bearer = format!("Bearer {}", token.reveal());
    let token = ("authorization", bearer.as_str());
    let refresh = w.grant("notebook", "corp", "ann", ANNS).await["refresh_token"].as_str().unwrap().to_owned();
    let all = || serde_json::json!(["staff", "unix", UserInfo::AUTHENTICATED]);
    let fewer = || serde_json::json!(["staff", UserInfo::AUTHENTICATED]);
    assert_eq!(w.who(session).await, all());
    slapd.change(&format!("dn: cn=unix,ou=groups,{SUFFIX}\nchangetype: delete\n")).unwrap();
    w.becomes(session, fewer()).await;
    assert_eq!(w.who(token).await, fewer());

    // A directory that is away ends no session, however often somebody asks.
    slapd.stop();
    w.gateway.inner.presence.forget(ANN);
    for _ in 0..3 {
        assert_eq!(w.who(session).await, fewer());
    }
    slapd.resume().unwrap();
    w.gateway.inner.presence.forget(ANN);

    slapd.change(slapd::WITHOUT_ANN).unwrap();
    // Several at once: nobody passes while it is asked.
    w.gateway.inner.presence.forget(ANN);
    let seen = futures::future::join_all((0..20).map(|n| w.who(if n % 2 == 0 { session } else { token }))).await;
    assert!(seen.iter().all(|s| *s == 401), "{seen:?}");
    assert!(w.gateway.is_disabled(ANN) && w.gateway.active_user(ANN).is_none());
    assert!(!w.gateway.still_let_in(ANN).await && w.gateway.still_let_in(EMAIL).await);
    assert!(w.gateway.list_sessions(Some(ANN)).is_empty());
    assert_eq!(w.refresh(&refresh).await["error"], "invalid_grant");
    let view = w.gateway.list_users().into_iter().find(|u| u.email == ANN).unwrap();
    assert!(view.departed && !view.disabled);
    // It is not forgotten at a restart, and costs nobody else anything.
    assert_eq!(w.who(session).await, 401);

    // Who is back signs in again; the old session stays ended, their tokens work again.
    let entry = PEOPLE.split("\n\n").find(|entry| entry.starts_with("dn: uid=ann,")).unwrap();
    slapd.change(&entry.replacen('\n', "\nchangetype: add\n", 1)).unwrap();
    let cookie = sign_in().await;
    assert_eq!(w.who(("cookie", &cookie)).await, fewer());
    assert_eq!((w.who(session).await, w.who(token).await), (401.into(), fewer()));

    // Nobody but members may come, and somebody is one no more.
    let allowed = |v: &mut Value| {
        change(v);
        v["groups"]["allowed"] = serde_json::json!(["staff"]);
    };
    let w = world_of(connector(slapd.port, allowed)).await;
    let signed = w.try_ldap("ann", ANNS).await;
    let cookie = signed.headers[header::SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
    assert_eq!(w.who(("cookie", &cookie)).await, fewer());
    slapd.change(&format!("dn: cn=staff,ou=groups,{SUFFIX}\nchangetype: delete\n")).unwrap();
    w.becomes(("cookie", &cookie), 401.into()).await;
    assert_eq!(w.try_ldap("ann", ANNS).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn tls_is_checked_from_the_start_and_after_starttls() {
    let authority = || {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), Issuer::new(params, key))
    };
    let ((ca, issuer), (other_ca, _)) = (authority(), authority());
    let leaf = |name: &str| {
        let key = KeyPair::generate().unwrap();
        (
            CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    };
    let (certificate, key) = leaf("127.0.0.1");
    let slapd = Slapd::start(Some((&certificate, &key))).unwrap();
    let (trusted, other) = (slapd.folder().join("ca.pem"), slapd.folder().join("other.pem"));
    std::fs::write(&trusted, &ca).unwrap();
    std::fs::write(&other, &other_ca).unwrap();
    let (certificate, key) = leaf("ldap.other.example");
    let wrong_name = Slapd::start(Some((&certificate, &key))).unwrap();
    for start_tls in [false, true] {
        let port = |s: &Slapd| if start_tls { s.port } else { s.tls_port };
        for (port, authority, status) in [
            (port(&slapd), Some(&trusted), StatusCode::SEE_OTHER),
            (port(&slapd), Some(&other), StatusCode::SERVICE_UNAVAILABLE),
            (port(&slapd), None, StatusCode::SERVICE_UNAVAILABLE),
            (port(&wrong_name), Some(&trusted), StatusCode::SERVICE_UNAVAILABLE),
        ] {
            let w = world_of(connector(port, |v| {
                v["insecureNoSSL"] = false.into();
                v["startTLS"] = start_tls.into();
                v["rootCA"] = serde_json::to_value(authority).unwrap();
            }))
            .await;
            let answer = w.try_ldap("ann", ANNS).await;
            assert_eq!(answer.status, status, "StartTLS {start_tls}, {authority:?}: {}", answer.text);
        }
    }
}
