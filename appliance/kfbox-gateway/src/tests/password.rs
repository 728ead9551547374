//! The page where people change their own password.

use super::*;
use crate::connectors::Identity;

const PAGE: &str = "/oauth2/password";
const BETTER: &str = "a better password";

fn cookie_of(answer: &Answer) -> String {
    answer.headers[header::SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned()
}

impl World {
    async fn change(&self, cookie: &str, current: &str, new: &str, again: &str) -> Answer {
        self.form(PAGE, &[("current", current), ("new", new), ("again", again)], &[("cookie", cookie)]).await
    }

    async fn lets_in(&self, cookie: &str) -> bool {
        self.get("/apis/x", &[("cookie", cookie)]).await.status == StatusCode::OK
    }

    async fn try_sign_in(&self, password: &str) -> StatusCode {
        self.form("/dex/auth/local/login", &[("login", EMAIL), ("password", password)], &[]).await.status
    }
}

#[tokio::test]
async fn a_new_password_counts_from_now_on_and_ends_every_session_but_this_browsers() {
    let w = world().await;
    let (here, elsewhere) = (w.sign_in().await, w.sign_in().await);
    let token = w.gateway.create_token(EMAIL, TokenRequest::new("t", None)).await.unwrap();
    let page = w.get(PAGE, &[("cookie", &here)]).await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.text.contains(EMAIL) && page.text.contains("all other sessions"), "{}", page.text);
    assert!(!page.text.contains("is changed"), "{}", page.text);

    let changed = w.change(&here, PASSWORD, BETTER, BETTER).await;
    assert_eq!(changed.status, StatusCode::SEE_OTHER, "{}", changed.text);
    let new = cookie_of(&changed);
    assert!(w.lets_in(&new).await);
    for old in [&here, &elsewhere] {
        assert!(!w.lets_in(old).await, "a session from before is still good");
    }
    assert_eq!(w.gateway.list_sessions(Some(EMAIL)).len(), 1);
    assert!(w.gateway.verify_bearer(token.reveal()).is_some(), "personal tokens stay");
    let told = w.get(changed.location(), &[("cookie", &new)]).await;
    assert!(told.text.contains("Your password is changed."), "{}", told.text);
    let linked = w.get(changed.location(), &[("cookie", &new), ("sec-fetch-site", "cross-site")]).await;
    assert!(linked.status == StatusCode::OK && !linked.text.contains("is changed"), "{}", linked.text);

    assert_eq!(w.try_sign_in(PASSWORD).await, StatusCode::UNAUTHORIZED);
    assert_eq!(w.try_sign_in(BETTER).await, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn a_wrong_current_password_changes_nothing_and_is_braked_as_at_sign_in() {
    let w = world().await;
    let cookie = w.sign_in().await;
    // At once: the first wait is a second, and on a busy machine five hashes take longer than that.
    let attempts = ["wrong-one"; 5].into_iter().chain([PASSWORD]).map(|typed| w.change(&cookie, typed, BETTER, BETTER));
    let mut answers = futures::future::join_all(attempts).await;
    let locked = answers.pop().unwrap();
    for answer in answers {
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert!(answer.text.contains("The current password is wrong."), "{}", answer.text);
    }
    assert_eq!(locked.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(locked.headers.get(header::RETRY_AFTER).is_some() && locked.headers.get(header::SET_COOKIE).is_none());
    let here = std::net::IpAddr::from([0, 0, 0, 0]);
    let kept = w.gateway.inner.limits.kept(EMAIL, here, std::time::Instant::now(), store::now());
    assert_eq!(kept[0].failures, 5, "they count for sign-in too");
    assert!(w.lets_in(&cookie).await, "the session goes on");
    w.gateway.inner.limits.forget_account(EMAIL);
    assert_eq!(w.try_sign_in(PASSWORD).await, StatusCode::SEE_OTHER, "nothing was changed");
}

#[tokio::test]
async fn new_passwords_that_sign_in_would_not_take_are_refused_before_the_current_one_is_looked_at() {
    let w = world().await;
    let cookie = w.sign_in().await;
    let long = "x".repeat(513);
    for (new, again, says) in
        [("short", "short", "at least 8"), (&*long, &*long, "at most 512"), (BETTER, "another one", "in two ways")]
    {
        let answer = w.change(&cookie, "wrong-one", new, again).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.text.contains(says), "{}", answer.text);
    }
    let half = w.form(PAGE, &[("current", PASSWORD), ("new", BETTER)], &[("cookie", &cookie)]).await;
    assert_eq!(half.status, StatusCode::BAD_REQUEST);
    assert_eq!(w.try_sign_in(PASSWORD).await, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn another_sites_form_changes_nothing() {
    let w = world().await;
    let cookie = w.sign_in().await;
    let form = [("current", PASSWORD), ("new", BETTER), ("again", BETTER)];
    for (name, value) in [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")] {
        let answer = w.form(PAGE, &form, &[("cookie", &cookie), ("host", "127.0.0.1:8080"), (name, value)]).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert!(answer.text.contains("another site"), "{}", answer.text);
    }
    assert!(w.lets_in(&cookie).await);
    assert_eq!(w.try_sign_in(PASSWORD).await, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn who_is_not_signed_in_is_led_to_sign_in_and_back() {
    let w = world().await;
    let page = w.get(PAGE, &[]).await;
    assert_eq!((page.status, page.location()), (StatusCode::FOUND, "/oauth2/start?rd=%2Foauth2%2Fpassword"));
    let login = w.get(page.location(), &[]).await;
    let signed = w.form(login.location(), &[("login", EMAIL), ("password", PASSWORD)], &[]).await;
    assert_eq!((signed.status, signed.location()), (StatusCode::SEE_OTHER, PAGE));
    let posted = w.change("oauth2_proxy_kubeflow=guess", PASSWORD, BETTER, BETTER).await;
    assert_eq!((posted.status, posted.location()), (StatusCode::SEE_OTHER, "/oauth2/start?rd=%2Foauth2%2Fpassword"));
    // A token is for programs: it opens no page that changes a password.
    let token = w.gateway.create_token(EMAIL, TokenRequest::new("t", None)).await.unwrap();
    let bearer = format!("Bearer {}", token.reveal());
    assert_eq!(w.get(PAGE, &[("authorization", &bearer)]).await.status, StatusCode::FOUND);
}

#[tokio::test]
async fn somebody_of_a_directory_is_told_where_their_password_is_kept() {
    let w = world().await;
    let identity = Identity {
        subject: "ann".into(),
        email: "ann@corp.example".into(),
        groups: Vec::new(),
        name: String::new(),
        username: String::new(),
    };
    let store = &w.gateway.inner.store;
    let ann = store.federated_user("corp", &identity, Vec::new()).await.unwrap();
    let secret = store.begin_session(&ann, Duration::from_secs(60), "", "").await.unwrap();
    let cookie = format!("{SESSION_COOKIE}={secret}");
    let page = w.get(PAGE, &[("cookie", &cookie)]).await;
    assert!(page.text.contains("kept by <strong>corp</strong>") && !page.text.contains("<form"), "{}", page.text);
    let answer = w.change(&cookie, "", BETTER, BETTER).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert!(store.active_user(&ann.email).unwrap().password.is_empty());
}

#[tokio::test]
async fn the_page_escapes_names_shows_no_password_again_and_cannot_be_framed() {
    let w = world().await;
    let email = "o'neil&co@example.com";
    w.gateway.add_user(email, PASSWORD, &[]).await.unwrap();
    let signed = w.form("/dex/auth/local/login", &[("login", email), ("password", PASSWORD)], &[]).await;
    let hostile = "\"><script>alert(1)</script>";
    let answer = w.change(&cookie_of(&signed), hostile, hostile, "another one").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(!answer.text.contains("script") && !answer.text.contains(email), "{}", answer.text);
    assert!(answer.text.contains("neil&#38;co@example.com"), "{}", answer.text);
    let policy = answer.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("frame-ancestors 'none'") && policy.contains("default-src 'none'"), "{policy}");
    assert_eq!(answer.headers["cache-control"], "no-store");
}

#[tokio::test]
async fn a_password_that_was_set_meanwhile_stays() {
    let w = world().await;
    let store = &w.gateway.inner.store;
    let before = store.active_user(EMAIL).unwrap();
    w.gateway.set_password(EMAIL, "set by the administrator").await.unwrap();
    assert!(matches!(store.replace_password(&before, BETTER).await, Err(StoreError::Invalid(_))));
    assert_eq!(w.try_sign_in(BETTER).await, StatusCode::UNAUTHORIZED);
    assert_eq!(w.try_sign_in("set by the administrator").await, StatusCode::SEE_OTHER);
}
