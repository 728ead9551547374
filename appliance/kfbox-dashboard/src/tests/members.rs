//! The members page and its forms.

use super::*;

/// A form as a browser sends it.
async fn post(router: &Router, path: &str, fields: &[(&str, &str)]) -> (StatusCode, HeaderMap, String) {
    let encode =
        |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
    let body: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    let mut request = Request::post(path)
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Body::from(body.join("&")))
        .unwrap();
    request.extensions_mut().insert(UserInfo::new(HOSTILE, []));
    let (parts, body) = router.clone().oneshot(request).await.unwrap().into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 22).await.unwrap();
    (parts.status, parts.headers, String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test]
async fn the_members_page_has_forms_for_what_one_manages_alone() {
    let router = pages(Evil::default());
    let text = get(&router, "/members").await.2;
    assert_eq!(text.matches("action=\"/members\"").count(), 1, "one namespace is managed");
    assert_eq!(text.matches("action=\"/members/remove\"").count(), 1, "an owner cannot be taken out");
    let shared = text.split_once("Shared with you").unwrap().1;
    assert!(shared.contains("theirs") && shared.contains("Viewer"), "{shared}");

    let mut request = Request::get("/members").body(Body::empty()).unwrap();
    request.extensions_mut().insert(UserInfo::new("new@x.org", []));
    let body = router.oneshot(request).await.unwrap().into_body();
    let bytes = axum::body::to_bytes(body, 1 << 22).await.unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("You belong to no namespace") && !text.contains("<form class=\"grant\""), "{text}");
}

#[tokio::test]
async fn members_come_and_go_by_forms() {
    let router = pages(Evil::default());
    let add = async |namespace: &str, person: &str, role: &str| {
        post(&router, "/members", &[("namespace", namespace), ("person", person), ("role", role)]).await
    };
    let (status, headers, _) = add(HOSTILE, " b@x.org ", "view").await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    let place = headers[header::LOCATION].to_str().unwrap();
    assert!(place.starts_with("/members#ns-%22%3E"), "{place}");

    // What was refused is said, with what had been typed and chosen.
    let (status, _, text) = add(HOSTILE, "<b>@x.org", "edit").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_harmless("/members", &text);
    assert!(text.contains("&#60;b&#62;@x.org, Edit") && text.contains("value=\"&#60;b&#62;@x.org\""), "{text}");
    assert!(text.contains("<option value=\"edit\" selected>"), "{text}");
    for (person, role) in [("b@x.org", "owner"), ("b@x.org", ""), ("  ", "view")] {
        let (status, _, text) = add(HOSTILE, person, role).await;
        assert!(status == StatusCode::BAD_REQUEST && text.contains("role=\"alert\""), "{person} {role}: {status}");
    }

    let remove = async |namespace: &str, kind: &str, role: &str| {
        let fields = [("namespace", namespace), ("name", "c@x.org"), ("kind", kind), ("role", role)];
        post(&router, "/members/remove", &fields).await
    };
    assert_eq!(remove(HOSTILE, "group", "edit").await.0, StatusCode::SEE_OTHER);
    assert_eq!(remove(HOSTILE, "user", "edit").await.0, StatusCode::BAD_REQUEST);
    let (status, _, text) = remove(HOSTILE, "robot", "edit").await;
    assert!(status == StatusCode::BAD_REQUEST && text.contains("names no role"), "{status}: {text}");

    // Who does not manage a namespace is refused, and shown nothing of it.
    for (status, _, text) in [add("theirs", "b@x.org", "view").await, remove("theirs", "user", "view").await] {
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert_harmless("/members", &text);
        assert!(text.contains("Not allowed") && !text.contains("class=\"grant\""), "{text}");
    }
    // A form of another kind is no form.
    let mut request = Request::post("/members").body(Body::from("{}")).unwrap();
    request.extensions_mut().insert(UserInfo::new("a@x.org", []));
    let status = router.clone().oneshot(request).await.unwrap().status();
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}
