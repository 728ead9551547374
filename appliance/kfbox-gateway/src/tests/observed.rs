//! What can be seen of the gateway's work: the access log and the metrics.

use super::user_services::lab_with;
use super::*;
use kfbox_base::{Authorizer, Decision, ResourceAttributes, journal::Room};
use std::sync::Arc;

/// One may read the node's metrics, and nobody anything else.
struct Monitoring;

impl Authorizer for Monitoring {
    fn authorize<'a>(
        &'a self,
        user: &'a UserInfo,
        wanted: &'a ResourceAttributes,
    ) -> BoxFuture<'a, Result<Decision, BoxError>> {
        let metrics = ResourceAttributes {
            verb: "get".into(),
            resource: "nodes".into(),
            subresource: "metrics".into(),
            ..ResourceAttributes::default()
        };
        let fine = user.username == EMAIL && *wanted == metrics;
        Box::pin(async move { Ok(if fine { Decision::Allow } else { Decision::Deny("no".into()) }) })
    }
}

#[tokio::test]
async fn every_request_has_a_line_in_the_access_log_without_its_secrets() {
    let room = Room { max_bytes: 1 << 20, files: 2 };
    let lab = lab_with(&[], |_| {}, |c| c.access_log = Some(room)).await;
    lab.get("/runs?token=geheim", &[("user-agent", "a \"b\"\\"), ("referer", "http://x/y?code=geheim")]).await;
    lab.get("/app/team-a/x", &[]).await;
    lab.w.get("/apis/x", &[("authorization", "Bearer kfb_geheim")]).await;
    lab.w.get("/a/%2e%2e/b", &[]).await;
    lab.w.gateway.flush_access_log().await;
    let text = std::fs::read_to_string(lab.w._dir.path().join("access.log")).unwrap();
    for secret in ["geheim", lab.cookie.split_once('=').unwrap().1, PASSWORD] {
        assert!(!text.contains(secret), "{text}");
    }
    let rest = |line: &str| line.split_once("] ").map(|(_, rest)| rest.rsplit_once(' ').unwrap().0.to_owned());
    let lines: Vec<String> = text.lines().filter_map(rest).collect();
    let [.., page, service, anonymous, confusing] = lines.as_slice() else { panic!("{text}") };
    assert_eq!(page, r#""GET /runs HTTP/1.1" 200 6 "http://x/y" "a \x22b\x22\x5C" /"#);
    assert!(
        service.starts_with("\"GET /app/team-a/x HTTP/1.1\" 503 ") && service.ends_with(" team-a/web"),
        "{service}"
    );
    assert!(anonymous.starts_with("\"GET /apis/x HTTP/1.1\" 401 ") && anonymous.ends_with(" -"), "{anonymous}");
    assert!(confusing.starts_with("\"GET /a/%2e%2e/b HTTP/1.1\" 400 "), "{confusing}");
    assert!(text.lines().any(|line| line.starts_with(&format!("- - {EMAIL} ["))), "{text}");
    assert!(text.lines().any(|line| line.contains("\"POST /dex/auth/local/login HTTP/1.1\" 303 ")), "{text}");
    lab.tasks.stop();
}

#[tokio::test]
async fn metrics_tell_of_every_route_and_only_those_who_may_read_them() {
    let mut w = world().await;
    let pages = Router::new().fallback(|| async { "a page" });
    let metrics = w.gateway.metrics(Arc::new(Monitoring));
    w.router = w.gateway.router(Mounts::new().at("/", pages).at("/metrics", metrics));
    let cookie = w.sign_in().await;
    for _ in 0..3 {
        w.get("/runs", &[("cookie", &cookie)]).await;
    }
    assert_eq!(w.get("/metrics", &[]).await.status, StatusCode::UNAUTHORIZED);
    w.gateway.add_user("other@example.com", PASSWORD, &[]).await.unwrap();
    let token = w.gateway.create_token("other@example.com", TokenRequest::new("t", None)).await.unwrap();
    let stranger = w.get("/metrics", &[("authorization", &format!("Bearer {}", token.reveal()))]).await;
    assert_eq!(stranger.status, StatusCode::FORBIDDEN);
    assert!(stranger.json()["message"].as_str().unwrap().contains("nodes/metrics"));
    let answer = w.get("/metrics", &[("cookie", &cookie)]).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.headers[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    for (route, rest) in [
        ("/", "method=\"GET\",code=\"200\"} 3"),
        ("/metrics", "method=\"GET\",code=\"403\"} 1"),
        ("/dex", "method=\"POST\",code=\"303\"} 1"),
        ("", "method=\"GET\",code=\"401\"} 1"),
    ] {
        let line = format!("kfbox_gateway_requests_total{{route=\"{route}\",namespace=\"\",service=\"\",{rest}");
        assert!(answer.text.lines().any(|l| l == line), "{line}\n{}", answer.text);
    }
}
