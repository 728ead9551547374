//! Against this project's own S3, a server that speaks Google's protocol, and servers that misbehave.

use super::*;
use crate::outbound::Patience;
use axum::{
    Router,
    extract::{Path, Query, State},
    response::{IntoResponse as _, Response},
    routing::get,
};
use kfbox_base::Tasks;
use kfbox_objects::{Config, Objects};
use kfbox_pipelines::{Hidden, S3Keys};

use std::{collections::BTreeMap, sync::Mutex};
use tokio::net::TcpListener;

const BRIEF: Patience = Patience {
    connect: Duration::from_secs(5),
    answer: Duration::from_millis(300),
    silence: Duration::from_millis(300),
};

fn allowing(endpoints: &[&str]) -> OutsideArtifacts {
    let artifact_endpoints = endpoints.iter().map(|e| (*e).to_owned()).collect();
    let pipelines = config::Pipelines { artifact_endpoints, ..config::Pipelines::default() };
    OutsideArtifacts::new(&pipelines, &config::Network::default()).unwrap()
}

fn s3(endpoint: &str, keys: Option<(&str, &str)>) -> OutsideStore {
    OutsideStore::S3(S3Store {
        bucket: "lab".into(),
        endpoint: Some(endpoint.into()),
        region: "us-east-1".into(),
        path_style: true,
        max_retries: 0,
        keys: keys.map(|(access, secret)| S3Keys { access: access.into(), secret: Hidden::new(secret), session: None }),
    })
}

fn body(pieces: Vec<Bytes>) -> ByteStream {
    futures::stream::iter(pieces.into_iter().map(Ok)).boxed()
}

async fn content(store: &dyn ArtifactStore, key: &str) -> Result<Vec<u8>, StoreError> {
    let (size, stream) = store.get("lab", key).await?;
    let all = stream.try_collect::<Vec<Bytes>>().await.map_err(StoreError::Failed)?.concat();
    assert_eq!(all.len() as u64, size);
    Ok(all)
}

async fn keys_of(store: &dyn ArtifactStore, prefix: &str) -> Vec<String> {
    store.list("lab", prefix).await.unwrap().into_iter().map(|o| o.key).collect()
}

fn told(result: Result<impl Sized, StoreError>) -> String {
    match result {
        Err(StoreError::Outside(why)) => why,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it works"),
    }
}

/// This project's S3 on a port of its own, with a bucket and who may do all.
async fn objects(folder: &std::path::Path, tasks: &Tasks) -> (Objects, String) {
    let config = Config { data_dir: folder.to_owned(), region: "us-east-1".into() };
    let objects = Objects::open(config, tasks).await.unwrap();
    objects.ensure_bucket("lab").await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    objects.serve(listener, tasks);
    (objects, endpoint)
}

#[tokio::test]
async fn objects_go_to_s3_and_back_whole_or_not_at_all() {
    let (folder, tasks) = (tempfile::tempdir().unwrap(), Tasks::new());
    let (objects, endpoint) = objects(folder.path(), &tasks).await;
    let admin = objects.admin_credential().clone();
    let outside = allowing(&[&endpoint]);
    let keys = (admin.access_key.as_str(), admin.secret_key.as_str());
    let store = outside.open(&s3(&endpoint, Some(keys))).unwrap();

    store.put("lab", "run/data", 5, body(vec!["he".into(), "llo".into()])).await.unwrap();
    store.put("lab", "run/data2", 0, body(Vec::new())).await.unwrap();
    store.put("lab", "run/a b%2F+ä/x", 1, body(vec!["x".into()])).await.unwrap();
    assert_eq!(content(&*store, "run/data").await.unwrap(), b"hello");
    assert_eq!(content(&*store, "run/a b%2F+ä/x").await.unwrap(), b"x");
    assert_eq!(keys_of(&*store, "run/data").await, ["run/data"], "a name that only begins like it is another's");
    assert_eq!(keys_of(&*store, "run").await, ["run/a b%2F+ä/x", "run/data", "run/data2"]);
    assert!(keys_of(&*store, "none").await.is_empty());

    // In parts, of pieces that fit them badly.
    let piece: Bytes = (0..3_000_001_u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<u8>>().into();
    let pieces = vec![piece.clone(); 7];
    let whole: Vec<u8> = pieces.concat();
    store.put("lab", "large", whole.len() as u64, body(pieces.clone())).await.unwrap();
    assert!(content(&*store, "large").await.unwrap() == whole);
    for announced in [whole.len() as u64 + 1, whole.len() as u64 - 1, 4] {
        let cut = store.put("lab", "cut", announced, body(pieces.clone())).await;
        assert!(matches!(cut, Err(StoreError::Failed(_))), "{announced}");
    }
    assert!(matches!(content(&*store, "cut").await, Err(StoreError::NotFound)));
    store.delete("lab", "large").await.unwrap();
    store.delete("lab", "large").await.unwrap();

    let stranger = outside.open(&s3(&endpoint, Some((keys.0, "not-the-key")))).unwrap();
    let why = told(stranger.put("lab", "x", 1, body(vec!["x".into()])).await);
    assert!(why.contains("refuses the access") && !why.contains("not-the-key"), "{why}");
    let nobody = outside.open(&s3(&endpoint, None)).unwrap();
    assert!(told(nobody.list("lab", "run").await).contains("refuses the access"));
    let mut elsewhere = s3(&endpoint, Some(keys));
    if let OutsideStore::S3(store) = &mut elsewhere {
        store.bucket = "no-such".into();
    }
    let elsewhere = outside.open(&elsewhere).unwrap();
    assert!(told(elsewhere.put("lab", "x", 1, body(vec!["x".into()])).await).contains("no such bucket"));
    assert!(told(elsewhere.list("lab", "x").await).contains("NoSuchBucket"));
    tasks.stop();
}

#[tokio::test]
async fn what_is_not_named_is_not_connected_to() {
    let (folder, tasks) = (tempfile::tempdir().unwrap(), Tasks::new());
    let (objects, endpoint) = objects(folder.path(), &tasks).await;
    let admin = objects.admin_credential().clone();
    let outside = allowing(&[]);
    let store = outside.open(&s3(&endpoint, Some((&admin.access_key, &admin.secret_key)))).unwrap();
    for why in [
        told(store.list("lab", "x").await),
        told(store.get("lab", "x").await),
        told(store.put("lab", "x", 1, body(vec!["x".into()])).await),
        told(outside.open(&OutsideStore::Web { url: format!("{endpoint}/lab/x") }).unwrap().list("", "file").await),
    ] {
        assert!(why.contains("this machine") && why.contains("pipelines.artifact_endpoints"), "{why}");
    }
    tasks.stop();
}

#[tokio::test]
async fn a_store_that_hangs_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let mut outside = allowing(&[&endpoint]);
    outside.client = outside.client.with_patience(BRIEF);
    let hang = async {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await);
        }
    };
    let look = async {
        let store = outside.open(&s3(&endpoint, Some(("id", "key")))).unwrap();
        let why = told(store.list("lab", "x").await);
        assert!(why.contains("did not answer"), "{why}");
        let file = outside.open(&OutsideStore::Web { url: format!("{endpoint}/x") }).unwrap();
        assert!(told(file.list("", "file").await).contains("did not answer"));
    };
    tokio::select! {
        () = hang => {}
        () = look => {}
    }
}

type Held = Arc<Mutex<BTreeMap<String, Bytes>>>;

/// As much of Google's XML API as artifacts need.
fn google(held: Held) -> Router {
    async fn one(
        State(held): State<Held>,
        Path((_, key)): Path<(String, String)>,
        method: http::Method,
        given: Bytes,
    ) -> Response {
        if method == http::Method::PUT {
            held.lock().unwrap().insert(key, given);
            return [(header::ETAG, "\"1\"")].into_response();
        }
        match held.lock().unwrap().get(&key) {
            None => StatusCode::NOT_FOUND.into_response(),
            Some(found) => {
                let head = [(header::ETAG, "\"1\""), (header::LAST_MODIFIED, "Thu, 04 Mar 2027 15:06:07 GMT")];
                (head, found.clone()).into_response()
            }
        }
    }
    async fn list(
        State(held): State<Held>,
        Path(bucket): Path<String>,
        Query(asked): Query<BTreeMap<String, String>>,
    ) -> Response {
        if bucket == "shut" {
            return StatusCode::FORBIDDEN.into_response();
        }
        let prefix = asked.get("prefix").cloned().unwrap_or_default();
        let held = held.lock().unwrap();
        let found = held.iter().filter(|(k, _)| k.starts_with(&prefix)).map(|(k, v)| {
            format!(
                "<Contents><Key>{k}</Key><Size>{}</Size><LastModified>2027-03-04T15:06:07.000Z</LastModified><ETag>1</ETag></Contents>",
                v.len()
            )
        });
        format!("<ListBucketResult>{}</ListBucketResult>", found.collect::<String>()).into_response()
    }
    Router::new().route("/{bucket}", get(list)).route("/{bucket}/{*key}", get(one).put(one)).with_state(held)
}

#[tokio::test]
async fn objects_go_to_google_and_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let outside = allowing(&[&endpoint]);
    let held = Held::default();
    let key = serde_json::json!({
        "type": "service_account", "client_email": "a@b", "private_key": "", "private_key_id": "1",
        "gcs_base_url": endpoint, "disable_oauth": true,
    });
    let look = async {
        let of = |key: Option<String>| OutsideStore::Gcs { bucket: "lab".into(), key: key.map(Hidden::new) };
        let store = outside.open(&of(Some(key.to_string()))).unwrap();
        store.put("lab", "run/data/x", 5, body(vec!["hello".into()])).await.unwrap();
        assert_eq!(content(&*store, "run/data/x").await.unwrap(), b"hello");
        assert_eq!(keys_of(&*store, "run/data").await, ["run/data/x"]);
        assert!(matches!(content(&*store, "run/other").await, Err(StoreError::NotFound)));
        assert_eq!(held.lock().unwrap().len(), 1);
        outside.open(&of(None)).unwrap();
        // What may be read and not looked round in.
        let shut = OutsideStore::Gcs { bucket: "shut".into(), key: Some(Hidden::new(key.to_string())) };
        let shut = outside.open(&shut).unwrap();
        assert_eq!(keys_of(&*shut, "run/data/x").await, ["run/data/x"]);
        assert!(told(shut.list("shut", "run").await).contains("refuses the access"));
        for (key, says) in [
            ("{", "no service account's key in JSON"),
            (r#"{"type": "external_account"}"#, "of the type external_account"),
            (r#"{"type": "service_account", "private_key": "s3cret"}"#, "cannot be used"),
        ] {
            let why = told(outside.open(&of(Some(key.into()))));
            assert!(why.contains(says) && !why.contains("s3cret"), "{why}");
        }
    };
    tokio::select! {
        served = axum::serve(listener, google(held.clone())) => served.unwrap(),
        () = look => {}
    }
}
