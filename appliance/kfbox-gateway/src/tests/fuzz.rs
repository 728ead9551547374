//! What strangers send, made up at random: nothing panics, and nothing is accepted that is not exact.

use super::*;
// `any` is a name of axum's too.
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, prop_assume, prop_oneof, proptest,
};

/// Text with what parsers trip over.
pub(super) fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ -~]{0,80}",
        "[/\\\\%.:@?#a-z0-9\\t\\r\\n]{0,60}",
        "(%(2[eEfF]|5[cC]|0[0-9adAD]|25)|[/.a-z]){0,30}",
    ]
}

fn three_parts() -> impl Strategy<Value = String> {
    let part = prop_oneof!["[A-Za-z0-9_-]{0,200}", Just(String::new()), any::<String>()];
    (part.clone(), part.clone(), part).prop_map(|(a, b, c)| format!("{a}.{b}.{c}"))
}

/// One world for all cases of a property: signing in takes a password hash's time.
struct Fixed {
    runtime: tokio::runtime::Runtime,
    world: World,
}

fn fixed() -> Fixed {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = runtime.block_on(world_with(|c| c.password_grant = true));
    Fixed { runtime, world }
}

/// A cookie and an ID token that are good.
fn proofs(f: &Fixed) -> (String, String) {
    f.runtime.block_on(async {
        let pairs = [
            ("grant_type", "password"),
            ("client_id", "cli"),
            ("username", EMAIL),
            ("password", PASSWORD),
            ("scope", "openid"),
        ];
        let tokens = f.world.form("/dex/token", &pairs, &[]).await.json();
        (f.world.sign_in().await, tokens["id_token"].as_str().unwrap().to_owned())
    })
}

#[test]
fn no_token_but_the_exact_one_is_accepted() {
    let f = fixed();
    let (_, good) = proofs(&f);
    assert!(f.world.gateway.verify_bearer(&good).is_some());
    let personal = f.runtime.block_on(f.world.gateway.create_token(EMAIL, TokenRequest::new("t", None))).unwrap();
    let tokens = [good, personal.reveal().to_owned()];
    proptest!(|(text in prop_oneof![hostile(), three_parts(), "kfb_[A-Za-z0-9_-]{0,60}"])| {
        prop_assert!(f.world.gateway.verify_bearer(&text).is_none());
    });
    // Every byte of a good one matters.
    proptest!(|(which in 0..2_usize, at in any::<prop::sample::Index>(), to in "[A-Za-z0-9_.=+/ -]")| {
        let good = &tokens[which];
        let at = at.index(good.len());
        let mut changed = good.clone();
        changed.replace_range(at..=at, &to);
        prop_assume!(changed != *good);
        prop_assert!(f.world.gateway.verify_bearer(&changed).is_none(), "{changed}");
        prop_assert!(f.world.gateway.verify_bearer(&good[..at]).is_none());
        let longer = format!("{good}{to}");
        prop_assert!(f.world.gateway.verify_bearer(&longer).is_none());
    });
}

#[test]
fn no_cookie_but_the_exact_one_is_accepted() {
    let f = fixed();
    let (cookie, _) = proofs(&f);
    let (name, secret) = cookie.split_once('=').unwrap();
    let ask = |value: &[u8]| {
        let value = http::HeaderValue::from_bytes(value).ok()?;
        let mut headers = http::HeaderMap::new();
        headers.insert(header::COOKIE, value);
        f.runtime.block_on(guard::identify(&f.world.gateway, &headers)).unwrap()
    };
    assert!(ask(cookie.as_bytes()).is_some());
    proptest!(|(bytes in prop::collection::vec(any::<u8>(), 0..200))| {
        prop_assert!(ask(&bytes).is_none());
        let mut named = format!("{name}=").into_bytes();
        named.extend(&bytes);
        prop_assert!(ask(&named).is_none());
    });
    proptest!(|(at in any::<prop::sample::Index>(), to in "[A-Za-z0-9_-]")| {
        let at = at.index(secret.len());
        let mut changed = secret.to_owned();
        changed.replace_range(at..=at, &to);
        prop_assume!(changed != secret);
        for near in [format!("{name}={changed}"), format!("{name}={}", &secret[..at]), format!("x{name}={secret}")] {
            prop_assert!(ask(near.as_bytes()).is_none(), "{near}");
        }
    });
    // Whatever else the jar holds, the session's secret never reaches a component.
    proptest!(|(before in "[ -:<-~]{0,40}", after in "[ -:<-~]{0,40}")| {
        let jar = format!("{before}; {cookie}; {after}");
        let answer = f.runtime.block_on(f.world.get("/apis/x", &[("cookie", &jar), ("accept", "application/json")]));
        prop_assert!(!answer.text.contains(secret), "{}", answer.text);
    });
}

#[test]
fn codes_go_to_the_exact_redirect_address_alone() {
    let f = fixed();
    let (cookie, _) = proofs(&f);
    let registered = "https://grafana.example/callback";
    let ask = |uri: &str| {
        let path = format!(
            "/dex/auth?client_id=grafana&response_type=code&scope=openid&redirect_uri={}",
            sign_in::encode(uri)
        );
        f.runtime.block_on(f.world.get(&path, &[("cookie", &cookie)]))
    };
    assert!(ask(registered).location().starts_with(&format!("{registered}?code=")));
    let near = (0..registered.len(), "[ -~]{0,3}", 0..4_usize).prop_map(move |(at, text, cut)| {
        let end = (at + cut).min(registered.len());
        format!("{}{text}{}", &registered[..at], &registered[end..])
    });
    proptest!(|(uri in prop_oneof![hostile(), near])| {
        prop_assume!(uri != registered);
        let answer = ask(&uri);
        prop_assert_eq!((answer.status, answer.location()), (StatusCode::BAD_REQUEST, ""), "{}", uri);
    });
}

#[test]
fn a_return_path_stays_on_this_host_and_is_stable() {
    let base = Url::parse("http://127.0.0.1:8080").unwrap();
    proptest!(|(wanted in hostile())| {
        let back = paths::return_path(&wanted);
        prop_assert!(back.starts_with('/') && !back.starts_with("//") && !back.starts_with("/\\"), "{back}");
        let url = base.join(&back).unwrap();
        prop_assert_eq!(url.origin(), base.origin());
        prop_assert_eq!(paths::return_path(&back), back.clone());
        prop_assert!(http::HeaderValue::from_str(&back).is_ok());
    });
}

#[test]
fn forms_of_strangers_are_answered_and_give_nothing() {
    let f = fixed();
    let paths = [
        "/dex/auth/local/login",
        "/dex/token",
        "/dex/device/code",
        "/dex/device/auth/verify_code",
        "/dex/token/revoke",
        "/dex/logout",
    ];
    let send = |path: &str, body: &str| {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        f.runtime.block_on(f.world.send(request, body))
    };
    let names = "(login|password|grant_type|client_id|client_secret|code|user_code|approval|token|refresh_token|username|scope|id_token_hint)";
    let pair = (names, hostile()).prop_map(|(name, value)| format!("{name}={}", sign_in::encode(&value)));
    let body = prop_oneof![hostile(), prop::collection::vec(pair, 0..6).prop_map(|pairs| pairs.join("&"))];
    // Few: a form that names an account costs a password hash.
    let few = ProptestConfig { cases: 60, ..ProptestConfig::default() };
    proptest!(few, |(at in 0..paths.len(), body in body)| {
        let answer = send(paths[at], &body);
        prop_assert!(!answer.status.is_server_error(), "{} {body:?}: {} {}", paths[at], answer.status, answer.text);
        prop_assert!(!answer.text.contains("access_token"));
        let session = answer.headers.get_all(header::SET_COOKIE).iter().any(|c| !c.to_str().unwrap().contains("Max-Age=0"));
        prop_assert!(!session, "{body:?}");
    });
}

#[test]
fn no_path_or_header_opens_a_component_to_the_anonymous() {
    let f = fixed();
    let path = prop_oneof![
        "/[!-\"$->@-~]{0,40}",
        "/(apis|pipeline|kfam|healthz|dex|oauth2|readyz)(/|%2f|%2F|\\.\\.|%2e|;|//|[a-z]){0,8}",
    ];
    let name = "(x-forwarded-uri|x-original-url|user-agent|kubeflow-userid|x-auth-request-email|cookie|authorization|host|accept)";
    let headers = prop::collection::vec((name, "[!-~]([ -~]{0,30}[!-~])?"), 0..4);
    proptest!(|(path in path, headers in headers)| {
        prop_assume!(path.parse::<http::Uri>().is_ok());
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let answer = f.runtime.block_on(f.world.get(&path, &headers));
        // The component answers with JSON that names the user.
        let reached = serde_json::from_str::<Value>(&answer.text).is_ok_and(|v| v.get("user").is_some());
        prop_assert!(!reached, "{path} {headers:?}: {}", answer.text);
    });
}

#[test]
fn a_servers_certificate_is_read_or_refused_whatever_it_is() {
    use crate::tls::acme::files::certified;
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["lab.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let good = format!("{}{}", key.serialize_pem(), leaf.pem());
    assert_eq!(certified(good.as_bytes()).unwrap().1.names, ["lab.example"]);
    let pem = |der: &[u8]| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("{}-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n", key.serialize_pem())
    };
    proptest!(|(bytes in prop::collection::vec(any::<u8>(), 0..300), text in hostile())| {
        drop((certified(&bytes), certified(text.as_bytes()), certified(pem(&bytes).as_bytes())));
    });
    // One changed byte of the certificate: it is read as what it then says, or refused.
    proptest!(|(at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<bool>())| {
        let mut der = leaf.der().to_vec();
        let at = at.index(der.len());
        der[at] = to;
        der.truncate(if cut { at } else { der.len() });
        drop(certified(pem(&der).as_bytes()));
    });
}

#[test]
fn user_codes_are_read_exactly() {
    proptest!(|(text in prop_oneof![hostile(), "[a-zA-Z -]{6,12}"])| {
        if let Some(code) = oidc::canonical_code(&text) {
            let letters: String = text.chars().filter(char::is_ascii_alphabetic).collect();
            prop_assert_eq!(code.replace('-', ""), letters.to_uppercase());
            prop_assert_eq!(oidc::canonical_code(&code), Some(code));
        }
    });
}
