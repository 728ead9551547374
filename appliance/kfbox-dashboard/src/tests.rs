//! The pages as browsers get them, with data made to harm.

mod members;

use super::*;
use async_trait::async_trait;
use axum::{Router, body::Body, extract::Request};
use bytes::Bytes;
use chrono::Utc;
use futures::{StreamExt as _, stream};
use http::{HeaderMap, StatusCode, header};
use kfbox_base::UserInfo;
use tokio::sync::mpsc;
use tower::ServiceExt as _;

const HOSTILE: &str = "\"><script>alert(1)</script>'<img src=x onerror=alert(2)>";
const HOSTILE_URL: &str = "javascript:alert(3)";

/// Everything is called [`HOSTILE`]; `gone` does not exist; `secret` belongs to somebody else.
#[derive(Default)]
struct Evil {
    changes: parking::Slot<mpsc::Receiver<()>>,
}

/// A value that is taken once.
mod parking {
    use std::sync::Mutex;

    pub struct Slot<T>(Mutex<Option<T>>);

    impl<T> Default for Slot<T> {
        fn default() -> Self {
            Self(Mutex::new(None))
        }
    }

    impl<T> Slot<T> {
        pub fn new(value: T) -> Self {
            Self(Mutex::new(Some(value)))
        }

        pub fn take(&self) -> Option<T> {
            self.0.lock().unwrap().take()
        }
    }
}

fn guard(id: &str) -> Result<(), DataError> {
    match id {
        "gone" => Err(DataError::NotFound),
        "secret" => Err(DataError::Forbidden(format!("not for you: {HOSTILE}"))),
        _ => Ok(()),
    }
}

fn parameter() -> Parameter {
    Parameter { name: HOSTILE.into(), value: HOSTILE.into() }
}

fn summary(id: &str) -> RunSummary {
    RunSummary {
        id: id.into(),
        name: HOSTILE.into(),
        namespace: HOSTILE.into(),
        experiment: HOSTILE.into(),
        pipeline: HOSTILE.into(),
        pipeline_id: HOSTILE_URL.into(),
        state: RunState::Running,
        created: Some(Utc::now()),
        started: Some(Utc::now()),
        finished: None,
    }
}

fn node(id: &str, kind: NodeKind) -> GraphNode {
    GraphNode {
        id: id.into(),
        kind,
        name: HOSTILE.into(),
        detail: HOSTILE.into(),
        state: RunState::Running,
        ..GraphNode::default()
    }
}

#[async_trait]
impl Data for Evil {
    async fn components(&self) -> Vec<ComponentView> {
        vec![ComponentView {
            name: HOSTILE.into(),
            state: ComponentState::Failed,
            message: HOSTILE.into(),
            took_ms: None,
        }]
    }

    async fn namespaces(&self, _: &UserInfo) -> Result<Vec<NamespaceView>, DataError> {
        Ok(vec![NamespaceView { name: HOSTILE.into(), role: HOSTILE.into(), owner: HOSTILE.into() }])
    }

    async fn runs(&self, _: &UserInfo, query: &Query) -> Result<Page<RunSummary>, DataError> {
        if query.page == "broken" {
            return Err(DataError::Invalid("this page token is not ours".into()));
        }
        Ok(Page { items: vec![summary(HOSTILE), summary("../../evil")], next: HOSTILE.into() })
    }

    async fn run(&self, _: &UserInfo, id: &str) -> Result<RunDetail, DataError> {
        guard(id)?;
        let nodes = vec![node(HOSTILE, NodeKind::Task), node("b", NodeKind::Artifact), node("c", NodeKind::Group)];
        let edges =
            vec![GraphEdge { from: HOSTILE.into(), to: "b".into() }, GraphEdge { from: "x".into(), to: "c".into() }];
        Ok(RunDetail { run: summary(id), error: HOSTILE.into(), parameters: vec![parameter()], nodes, edges })
    }

    async fn node(&self, _: &UserInfo, run: &str, id: &str) -> Result<NodeDetail, DataError> {
        guard(run)?;
        guard(id)?;
        let artifact = ArtifactView {
            id: HOSTILE.into(),
            name: HOSTILE.into(),
            type_name: HOSTILE.into(),
            uri: HOSTILE_URL.into(),
            size: Some(1),
            metadata: vec![parameter()],
        };
        Ok(NodeDetail {
            id: id.into(),
            name: HOSTILE.into(),
            state: RunState::Failed,
            error: HOSTILE.into(),
            image: HOSTILE.into(),
            command: HOSTILE.into(),
            pod: HOSTILE.into(),
            inputs: vec![parameter()],
            outputs: vec![parameter()],
            input_artifacts: vec![artifact.clone()],
            output_artifacts: vec![artifact],
            has_log: true,
            ..NodeDetail::default()
        })
    }

    async fn log(&self, _: &UserInfo, run: &str, _: &str, _: bool) -> Result<LogStream, DataError> {
        guard(run)?;
        Ok(stream::iter([Ok(Bytes::from(HOSTILE))]).boxed())
    }

    async fn artifact(&self, _: &UserInfo, run: &str, id: &str) -> Result<ArtifactContent, DataError> {
        guard(run)?;
        let bytes: &'static [u8] = match id {
            "png" => b"\x89PNG\r\n\x1a\n....",
            "svg" => b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
            _ => HOSTILE.as_bytes(),
        };
        let body = stream::iter([Ok(Bytes::from_static(bytes))]).boxed();
        Ok(ArtifactContent { file_name: "a\"b\r\nSet-Cookie: x=y.html".into(), size: Some(bytes.len() as u64), body })
    }

    async fn changes(&self, _: &UserInfo, run: Option<&str>) -> Result<ChangeStream, DataError> {
        guard(run.unwrap_or_default())?;
        Ok(match self.changes.take() {
            Some(receiver) => stream::unfold(receiver, |mut r| async { r.recv().await.map(|()| ((), r)) }).boxed(),
            None => stream::empty().boxed(),
        })
    }

    async fn terminate(&self, _: &UserInfo, run: &str) -> Result<(), DataError> {
        guard(run)
    }

    async fn pipelines(&self, _: &UserInfo, _: &Query) -> Result<Page<PipelineView>, DataError> {
        let pipeline = PipelineView {
            id: HOSTILE.into(),
            name: HOSTILE.into(),
            description: HOSTILE.into(),
            namespace: HOSTILE.into(),
            created: None,
        };
        Ok(Page { items: vec![pipeline], next: String::new() })
    }

    async fn pipeline(&self, user: &UserInfo, id: &str) -> Result<PipelineDetail, DataError> {
        guard(id)?;
        let pipeline = self.pipelines(user, &Query::default()).await?.items.remove(0);
        let nodes = vec![node(HOSTILE, NodeKind::Task)];
        Ok(PipelineDetail {
            pipeline,
            versions: vec![HOSTILE.into()],
            parameters: vec![parameter()],
            nodes,
            edges: vec![],
        })
    }

    async fn experiments(&self, _: &UserInfo, _: &Query) -> Result<Page<ExperimentView>, DataError> {
        let experiment = ExperimentView {
            name: HOSTILE.into(),
            description: HOSTILE.into(),
            namespace: HOSTILE.into(),
            ..ExperimentView::default()
        };
        Ok(Page { items: vec![experiment], next: String::new() })
    }

    async fn sharing(&self, user: &UserInfo) -> Result<Vec<SharingView>, DataError> {
        if user.username == "new@x.org" {
            return Ok(Vec::new());
        }
        let member = |role, group, owner| Member { name: HOSTILE.into(), group, role, owner };
        let managed = SharingView {
            namespace: HOSTILE.into(),
            owner: HOSTILE.into(),
            role: Some(Role::Admin),
            owned: true,
            managed: true,
            members: vec![member(Role::Admin, false, true), member(Role::Edit, true, false)],
        };
        let other = SharingView {
            namespace: "theirs".into(),
            role: Some(Role::View),
            owned: false,
            managed: false,
            members: Vec::new(),
            ..managed.clone()
        };
        Ok(vec![managed, other])
    }

    /// Says back what it was asked for, but for one address.
    async fn grant(&self, _: &UserInfo, namespace: &str, person: &str, role: Role) -> Result<(), DataError> {
        match (namespace, person) {
            ("theirs", _) => Err(DataError::Forbidden(format!("not for you: {HOSTILE}"))),
            (_, "b@x.org") => Ok(()),
            _ => Err(DataError::Invalid(format!("{namespace}, {person}, {role:?}"))),
        }
    }

    async fn revoke(&self, _: &UserInfo, namespace: &str, member: &Member) -> Result<(), DataError> {
        match (namespace, member.group, member.role) {
            ("theirs", _, _) => Err(DataError::Forbidden(format!("not for you: {HOSTILE}"))),
            (_, true, Role::Edit) => Ok(()),
            _ => Err(DataError::Invalid(format!("{namespace}, {member:?}"))),
        }
    }
}

fn pages(data: Evil) -> Router {
    let connect = Connect { gateway_url: HOSTILE.into(), s3_endpoint: HOSTILE.into(), version: HOSTILE.into() };
    router(Deps { data: Arc::new(data), connect, shutdown: CancellationToken::new() })
}

async fn open(router: &Router, path: &str) -> (StatusCode, HeaderMap, Body) {
    let mut request = Request::get(path).body(Body::empty()).unwrap();
    request.extensions_mut().insert(UserInfo::new(HOSTILE, []));
    let (parts, body) = router.clone().oneshot(request).await.unwrap().into_parts();
    (parts.status, parts.headers, body)
}

async fn get(router: &Router, path: &str) -> (StatusCode, HeaderMap, String) {
    let (status, headers, body) = open(router, path).await;
    let bytes = axum::body::to_bytes(body, 1 << 22).await.unwrap();
    (status, headers, String::from_utf8_lossy(&bytes).into_owned())
}

/// The text holds none of what would run: no tag, no attribute broken out of, no address with a scheme that runs.
fn assert_harmless(path: &str, text: &str) {
    for bad in [
        "<script>alert",
        "<img src=x",
        "\"><script",
        "'<img",
        "href=\"javascript:",
        "src=\"javascript:",
        "action=\"javascript:",
    ] {
        assert!(!text.contains(bad), "{path} holds {bad}");
    }
    // Inline scripts, styles and handlers would need a weaker policy than the gateway's.
    for inline in [" style=\"", " onclick=", " onerror=\"", "<style"] {
        assert!(!text.contains(inline), "{path} holds {inline}");
    }
}

#[tokio::test]
async fn hostile_names_are_text_on_every_page() {
    let router = pages(Evil::default());
    let encoded = "%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E%27%3Cimg%20src%3Dx%20onerror%3Dalert(2)%3E";
    let paths = [
        "/".to_owned(),
        "/runs".into(),
        format!("/runs?state={encoded}&namespace={encoded}"),
        "/runs/r1".into(),
        format!("/runs/{encoded}?node={encoded}&tab={encoded}"),
        "/runs/r1?node=b&tab=log".into(),
        format!("/runs/r1/nodes/{encoded}"),
        "/runs/r1/artifacts/text/preview".into(),
        "/runs/secret".into(),
        "/pipelines".into(),
        "/pipelines/p".into(),
        "/experiments".into(),
        "/members".into(),
        format!("/{encoded}"),
    ];
    for path in paths {
        let (status, headers, text) = get(&router, &path).await;
        assert!(!status.is_server_error(), "{path}: {status}");
        assert_eq!(headers[header::CONTENT_TYPE], "text/html; charset=utf-8", "{path}");
        assert_harmless(&path, &text);
        assert!(text.contains("alert(1)"), "{path} does not show the name at all, so that this proves nothing");
    }
}

#[tokio::test]
async fn nothing_is_shown_without_an_identity() {
    let router = pages(Evil::default());
    for path in ["/", "/runs", "/runs/r1", "/runs/r1/live", "/runs/r1/artifacts/a", "/members", "/nowhere"] {
        for user in [None, Some(UserInfo::anonymous())] {
            let mut request = Request::get(path).body(Body::empty()).unwrap();
            if let Some(user) = user {
                request.extensions_mut().insert(user);
            }
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path}");
        }
    }
}

#[tokio::test]
async fn artifacts_and_logs_never_run() {
    let router = pages(Evil::default());
    for path in ["/runs/r/artifacts/html", "/runs/r/artifacts/svg?inline=1", "/runs/r/artifacts/html?inline=1"] {
        let (_, headers, _) = get(&router, path).await;
        assert_eq!(headers[header::CONTENT_TYPE], "application/octet-stream", "{path}");
        let disposition = headers[header::CONTENT_DISPOSITION].to_str().unwrap();
        assert_eq!(
            disposition,
            "attachment; filename*=UTF-8''a%22b%0D%0ASet%2DCookie%3A%20x%3Dy.html".replace("%2D", "-")
        );
    }
    let (_, headers, _) = get(&router, "/runs/r/artifacts/png?inline=1").await;
    assert_eq!(headers[header::CONTENT_TYPE], "image/png");
    assert!(headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap().starts_with("sandbox"));
    let (_, headers, text) = get(&router, "/runs/r/nodes/n/log").await;
    assert_eq!(
        (headers[header::CONTENT_TYPE].to_str().unwrap(), text.as_str()),
        ("text/plain; charset=utf-8", HOSTILE)
    );
    assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
}

#[tokio::test]
async fn what_is_not_there_or_not_allowed_says_so() {
    let router = pages(Evil::default());
    for (path, status) in [
        ("/runs/gone", StatusCode::NOT_FOUND),
        ("/runs/secret", StatusCode::FORBIDDEN),
        ("/runs/gone/live", StatusCode::NOT_FOUND),
        ("/runs/secret/nodes/n/log", StatusCode::FORBIDDEN),
        ("/runs/secret/artifacts/a", StatusCode::FORBIDDEN),
        ("/runs/r/nodes/gone", StatusCode::NOT_FOUND),
        ("/runs?page=broken", StatusCode::BAD_REQUEST),
        ("/pipelines/gone", StatusCode::NOT_FOUND),
        ("/assets/x/../../Cargo.toml", StatusCode::NOT_FOUND),
        ("/assets/x/nothing.js", StatusCode::NOT_FOUND),
        ("/nowhere", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(get(&router, path).await.0, status, "{path}");
    }
    // A step that is gone closes the panel; the run is shown.
    assert_eq!(get(&router, "/runs/r?node=gone").await.0, StatusCode::OK);
}

#[tokio::test]
async fn assets_of_this_version_are_kept_and_pages_name_them() {
    let router = pages(Evil::default());
    let page = get(&router, "/").await.2;
    for name in ["app.css", "app.js", "theme.js", "logo.svg"] {
        let path = format!("/assets/{}/{name}", *assets::VERSION);
        assert!(page.contains(&path), "{name}");
        let (status, headers, _) = get(&router, &path).await;
        assert!(status == StatusCode::OK && headers[header::CACHE_CONTROL].to_str().unwrap().contains("immutable"));
        assert_eq!(get(&router, &format!("/assets/old/{name}")).await.1[header::CACHE_CONTROL], "no-cache");
    }
    for foreign in ["http://", "https://"] {
        let own = page.replace("http://www.w3.org", "");
        assert!(!own.contains(&format!("src=\"{foreign}")) && !own.contains(&format!("href=\"{foreign}")));
    }
}

#[tokio::test(start_paused = true)]
async fn live_events_merge_changes_and_end() {
    let (sender, receiver) = mpsc::channel(100);
    let router = pages(Evil { changes: parking::Slot::new(receiver) });
    let (status, headers, body) = open(&router, "/runs/r/live").await;
    assert_eq!((status, headers[header::CONTENT_TYPE].to_str().unwrap()), (StatusCode::OK, "text/event-stream"));
    let mut stream = body.into_data_stream();
    let mut next = async || String::from_utf8(stream.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(next().await.contains("event: changed"));
    for _ in 0..50 {
        sender.send(()).await.unwrap();
    }
    assert!(next().await.contains("event: changed"));
    drop(sender);
    assert!(next().await.contains("event: end"), "fifty changes are one event");
    assert!(stream.next().await.is_none());
}
