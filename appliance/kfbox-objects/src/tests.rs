//! The store and its protocol in-process: requests are presigned by our own signer and verified by s3s.

use crate::{Algorithm, ByteRange, Config, Credential, Error, Grant, Objects, OpenError, objects::Put, presign};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use kfbox_base::{BoxError, Tasks};
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const ENDPOINT: &str = "http://127.0.0.1:9000";
const MIB: usize = 1024 * 1024;

struct Fixture {
    objects: Objects,
    tasks: Tasks,
    dir: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap()).await
    }

    async fn at(dir: tempfile::TempDir) -> Self {
        let tasks = Tasks::new();
        let objects = open(dir.path(), &tasks).await.unwrap();
        objects.ensure_bucket("box").await.unwrap();
        Self { objects, tasks, dir }
    }

    /// The paths of all content files, finished or not.
    fn files(&self) -> Vec<PathBuf> {
        files(&self.dir.path().join("objects"))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

async fn open(dir: &Path, tasks: &Tasks) -> Result<Objects, OpenError> {
    Objects::open(Config { data_dir: dir.to_owned(), region: "us-east-1".into() }, tasks).await
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

async fn text(objects: &Objects, key: &str, range: Option<ByteRange>) -> Result<Vec<u8>, Error> {
    let (_, body) = objects.get("box", key, range).await?;
    let want = body.remaining();
    let chunks: Vec<Bytes> = body.try_collect().await.map_err(Error::from)?;
    assert_eq!(chunks.iter().map(Bytes::len).sum::<usize>() as u64, want);
    Ok(chunks.concat())
}

/// Sends a request signed in its query, as the holder of `credential`.
async fn send(
    objects: &Objects,
    credential: &Credential,
    method: Method,
    path: &str,
    query: &[(&str, &str)],
    headers: &[(&str, &str)],
    body: &[u8],
) -> (StatusCode, String) {
    let url = presign::presign(
        credential,
        &presign::Request {
            method: method.as_str(),
            endpoint: ENDPOINT,
            path,
            query,
            region: "us-east-1",
            expiry: Duration::from_secs(60),
            now: chrono::Utc::now(),
        },
    )
    .unwrap();
    let mut request = Request::builder().method(method).uri(&url).header("host", "127.0.0.1:9000");
    request = request.header("content-length", body.len());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    answer(objects, request.body(s3s::Body::from(Bytes::copy_from_slice(body))).unwrap()).await
}

async fn answer(objects: &Objects, request: Request<s3s::Body>) -> (StatusCode, String) {
    let response = objects.service().call(request).await.unwrap();
    let status = response.status();
    let body = BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn what_was_put_comes_back_whole_and_in_ranges() {
    let f = Fixture::new().await;
    // Larger than one batch and not a multiple of anything.
    let data: Vec<u8> = (0..(3 * MIB + 12_345)).map(|n| (n * 31 % 253) as u8).collect();
    let chunks = data.chunks(77_777).map(|c| Ok::<_, BoxError>(Bytes::copy_from_slice(c))).collect::<Vec<_>>();
    let put = f.objects.put("box", "a/b", stream::iter(chunks), Some("x/y")).await.unwrap();
    assert_eq!((put.size, put.attributes.content_type.as_deref()), (data.len() as u64, Some("x/y")));
    assert_eq!(text(&f.objects, "a/b", None).await.unwrap(), data);
    let cases = [
        (ByteRange::From { first: 0, last: Some(0) }, 0..1),
        (ByteRange::From { first: 600_000, last: Some(2_000_000) }, 600_000..2_000_001),
        (ByteRange::From { first: data.len() as u64 - 1, last: None }, data.len() - 1..data.len()),
        (ByteRange::From { first: 5, last: Some(u64::MAX) }, 5..data.len()),
        (ByteRange::Last(10), data.len() - 10..data.len()),
        (ByteRange::Last(u64::MAX), 0..data.len()),
    ];
    for (range, want) in cases {
        assert_eq!(text(&f.objects, "a/b", Some(range)).await.unwrap(), data[want], "{range:?}");
    }
    let outside = ByteRange::From { first: data.len() as u64, last: None };
    for range in [outside, ByteRange::Last(0), ByteRange::Part(2)] {
        assert!(matches!(text(&f.objects, "a/b", Some(range)).await, Err(Error::InvalidRange { .. })), "{range:?}");
    }
    f.objects.put_bytes("box", "empty", "", None).await.unwrap();
    assert!(text(&f.objects, "empty", None).await.unwrap().is_empty());
    f.objects.delete("box", "a/b").await.unwrap();
    f.objects.delete("box", "empty").await.unwrap();
    f.objects.delete("box", "never there").await.unwrap();
    assert_eq!(f.files(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn keys_are_names_and_never_paths() {
    let f = Fixture::new().await;
    let before = files(f.dir.path()).len();
    for key in ["../../escape", "/etc/passwd", "a/../../b", "..", "C:\\x", "a//b", "\u{202e}x"] {
        f.objects.put_bytes("box", key, key.to_owned(), None).await.unwrap();
        assert_eq!(text(&f.objects, key, None).await.unwrap(), key.as_bytes());
    }
    assert_eq!(f.files().len(), 7);
    assert_eq!(files(f.dir.path()).len(), before + 7);
    for bad in ["", "nul\0byte", &"k".repeat(1025)] {
        assert!(matches!(f.objects.put_bytes("box", bad, "x", None).await, Err(Error::InvalidArgument(_))));
    }
    for bad in ["..", "a/b", "UPPER", "ab", "-ab", "192.168.1.1", "a..b"] {
        assert!(matches!(f.objects.ensure_bucket(bad).await, Err(Error::InvalidBucketName(_))), "{bad}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_nothing() {
    let f = Fixture::new().await;
    f.objects.put_bytes("box", "k", "old", None).await.unwrap();
    let broken = stream::iter(vec![Bytes::from(vec![1; 2 * MIB]), Bytes::from(vec![2; 2 * MIB])])
        .map(Ok::<_, BoxError>)
        .chain(stream::once(async { Err("the client went away".into()) }))
        .boxed();
    assert!(matches!(f.objects.put("box", "k", broken, None).await, Err(Error::Body(_))));
    // And one that is dropped in the middle, as when a connection is closed.
    let (send, receive) = tokio::sync::mpsc::channel::<Result<Bytes, BoxError>>(1);
    let body = tokio_stream::wrappers::ReceiverStream::new(receive);
    let put = f.objects.put("box", "k", body, None);
    tokio::select! {
        _ = put => panic!("the body has not ended"),
        () = async {
            for _ in 0..4 {
                send.send(Ok(Bytes::from(vec![3; MIB]))).await.unwrap();
            }
        } => {}
    }
    let short = Put { bucket: "box".into(), key: "k".into(), length: Some(10), ..Put::default() };
    let body = stream::iter([Ok(Bytes::from_static(b"short"))]);
    let refused = f.objects.store.put(short, body, || Ok(Default::default())).await;
    assert!(matches!(refused, Err(Error::Incomplete { got: 5, want: 10 })));
    // The write that was under way when the future was dropped ends by itself.
    for _ in 0..1000 {
        if f.files().len() == 1 {
            break;
        }
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(5))).await.unwrap();
    }
    assert_eq!(f.files().len(), 1);
    assert_eq!(text(&f.objects, "k", None).await.unwrap(), b"old");
}

#[tokio::test]
async fn a_reader_keeps_what_it_started_with() {
    let f = Fixture::new().await;
    let old = vec![7_u8; 4 * MIB];
    f.objects.put_bytes("box", "k", old.clone(), None).await.unwrap();
    let (_, mut body) = f.objects.get("box", "k", None).await.unwrap();
    let mut got = body.next().await.unwrap().unwrap().to_vec();
    f.objects.put_bytes("box", "k", "new", None).await.unwrap();
    f.objects.delete("box", "k").await.unwrap();
    assert_eq!(f.files().len(), 1, "the file that is being read stays");
    while let Some(chunk) = body.next().await {
        got.extend(chunk.unwrap());
    }
    assert!(got == old);
    drop(body);
    assert_eq!(f.files(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn an_interrupted_daemon_is_cleaned_up_after() {
    let f = Fixture::new().await;
    f.objects.put_bytes("box", "kept", "kept", None).await.unwrap();
    let kept = f.files();
    let root = f.dir.path().join("objects");
    std::fs::write(root.join("incoming").join("half"), "half").unwrap();
    // Renamed, but the daemon died before the row was written.
    let orphan = "ab00000000000000000000000000abcd";
    std::fs::write(root.join("blobs/ab").join(orphan), "orphan").unwrap();
    let tasks = Tasks::new();
    let again = open(f.dir.path(), &tasks).await.unwrap();
    assert!(!root.join("incoming/half").exists());
    again.store.sweep().await.unwrap();
    assert_eq!(f.files(), kept);
    assert_eq!(text(&again, "kept", None).await.unwrap(), b"kept");
    tasks.stop();
}

#[tokio::test]
async fn listings_fold_and_go_on() {
    let f = Fixture::new().await;
    for key in ["a/1", "a/2", "b", "c/x/1", "c/x/2", "c/y", "d"] {
        f.objects.put_bytes("box", key, "x", None).await.unwrap();
    }
    let (mut objects, mut prefixes, mut token) = (Vec::new(), Vec::new(), None);
    loop {
        let page = f.objects.list("box", "", Some("/"), token.as_deref(), 1).await.unwrap();
        assert!(page.objects.len() + page.prefixes.len() <= 1);
        objects.extend(page.objects.into_iter().map(|o| o.key));
        prefixes.extend(page.prefixes);
        token = page.next_token;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(objects, ["b", "d"]);
    assert_eq!(prefixes, ["a/", "c/"]);
    let page = f.objects.list("box", "c/", Some("/"), None, 1000).await.unwrap();
    assert_eq!((page.objects[0].key.as_str(), page.prefixes), ("c/y", vec!["c/x/".to_owned()]));
    assert!(f.objects.list("box", "", None, Some("forged"), 10).await.is_err());
    assert!(matches!(f.objects.list("none", "", None, None, 10).await, Err(Error::NoSuchBucket(_))));
}

#[tokio::test]
async fn a_credential_is_confined_to_its_grants() {
    let f = Fixture::new().await;
    let o = &f.objects;
    for key in ["private/ann/x", "private/bob/x", "public/x"] {
        o.put_bytes("box", key, key.to_owned(), None).await.unwrap();
    }
    o.ensure_bucket("other").await.unwrap();
    let grants = vec![Grant::write("box", "private/ann/"), Grant::read("box", "public/")];
    let ann = o.credential_for("ann", grants.clone()).await.unwrap();
    assert_eq!(o.credential_for("ann", grants.clone()).await.unwrap(), ann, "it stays the same");
    let denied = StatusCode::FORBIDDEN;
    let none: &[(&str, &str)] = &[];
    let cases = [
        (Method::GET, "/box/private/ann/x", none, none, StatusCode::OK),
        (Method::PUT, "/box/private/ann/y", none, none, StatusCode::OK),
        (Method::GET, "/box/public/x", none, none, StatusCode::OK),
        (Method::PUT, "/box/public/y", none, none, denied),
        (Method::DELETE, "/box/public/x", none, none, denied),
        (Method::GET, "/box/private/bob/x", none, none, denied),
        (Method::HEAD, "/box/private/bob/x", none, none, denied),
        (Method::GET, "/box/private/bob/absent", none, none, denied),
        (Method::PUT, "/box/private/bob/x", none, none, denied),
        (Method::PUT, "/box/private/ann/../bob/x", none, none, StatusCode::OK), // a name like any other
        (Method::GET, "/box", &[("list-type", "2")], none, denied),
        (Method::GET, "/box", &[("list-type", "2"), ("prefix", "private/")], none, denied),
        (Method::GET, "/box", &[("list-type", "2"), ("prefix", "private/ann/")], none, StatusCode::OK),
        (Method::GET, "/box", &[("versions", ""), ("prefix", "private/bob/")], none, denied),
        (Method::GET, "/box", &[("uploads", ""), ("prefix", "")], none, denied),
        (Method::POST, "/box/private/bob/z", &[("uploads", "")], none, denied),
        (Method::GET, "/box/private/bob/x", &[("tagging", "")], none, denied),
        (Method::PUT, "/box/private/ann/c", none, &[("x-amz-copy-source", "/box/private/bob/x")], denied),
        (Method::PUT, "/box/private/ann/c", none, &[("x-amz-copy-source", "/box/public/x")], StatusCode::OK),
        (Method::PUT, "/box/private/bob/c", none, &[("x-amz-copy-source", "/box/public/x")], denied),
        (Method::HEAD, "/box", none, none, StatusCode::OK),
        (Method::HEAD, "/other", none, none, denied),
        (Method::HEAD, "/absent", none, none, denied),
        (Method::PUT, "/new-bucket", none, none, denied),
        (Method::DELETE, "/box", none, none, denied),
        (Method::PUT, "/box", &[("versioning", "")], none, denied),
    ];
    for (method, path, query, headers, want) in cases {
        let versioning = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        let body = if query.first().is_some_and(|q| q.0 == "versioning") { versioning } else { "" };
        let (got, text) = send(o, &ann, method.clone(), path, query, headers, body.as_bytes()).await;
        assert_eq!(got, want, "{method} {path} {query:?} {headers:?}: {text}");
    }
    assert_eq!(text(o, "private/bob/x", None).await.unwrap(), b"private/bob/x");
    let (_, buckets) = send(o, &ann, Method::GET, "/", none, none, b"").await;
    assert!(buckets.contains("<Name>box</Name>") && !buckets.contains("other"), "{buckets}");
    // Of many keys, those outside of the grants are refused one by one.
    let body = "<Delete><Object><Key>private/ann/y</Key></Object><Object><Key>private/bob/x</Key></Object></Delete>";
    let md5 = base64::Engine::encode(
        &base64::prelude::BASE64_STANDARD,
        <s3s::crypto::Md5 as s3s::crypto::Checksum>::checksum(body.as_bytes()),
    );
    let headers = [("content-md5", md5.as_str())];
    let (status, report) = send(o, &ann, Method::POST, "/box", &[("delete", "")], &headers, body.as_bytes()).await;
    assert_eq!(status, StatusCode::OK, "{report}");
    assert!(report.contains("<Deleted><Key>private/ann/y</Key>") && report.contains("AccessDenied"), "{report}");
    assert!(o.head("box", "private/bob/x").await.is_ok());

    // Narrowed grants and revocation count at once.
    o.credential_for("ann", vec![Grant::read("box", "public/")]).await.unwrap();
    assert_eq!(send(o, &ann, Method::GET, "/box/private/ann/x", none, none, b"").await.0, denied);
    assert!(o.revoke(&ann.access_key).await.unwrap() && !o.revoke(&ann.access_key).await.unwrap());
    let (status, text) = send(o, &ann, Method::GET, "/box/public/x", none, none, b"").await;
    assert!(status == denied && text.contains("InvalidAccessKeyId"), "{text}");
    let open_prefix = o.create_credential("eve", vec![Grant::write("box", "private/ann")]).await;
    assert!(matches!(open_prefix, Err(Error::InvalidArgument(_))));
}

#[tokio::test]
async fn nobody_comes_in_without_a_signature() {
    let f = Fixture::new().await;
    f.objects.put_bytes("box", "k", "secret", None).await.unwrap();
    for (method, uri) in [
        (Method::GET, "/"),
        (Method::GET, "/box/k"),
        (Method::GET, "/box?list-type=2"),
        (Method::PUT, "/box/k"),
        (Method::DELETE, "/box/k"),
        (Method::POST, "/box?delete"),
        (Method::OPTIONS, "/box/k"),
    ] {
        let request =
            Request::builder().method(method.clone()).uri(format!("{ENDPOINT}{uri}")).header("host", "127.0.0.1:9000");
        let (status, text) = answer(&f.objects, request.body(s3s::Body::empty()).unwrap()).await;
        assert!(status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED, "{method} {uri}: {status}");
        assert!(!text.contains("secret"), "{method} {uri}");
    }
    let form = "--b\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\nk\r\n--b\r\nContent-Disposition: form-data; \
                name=\"file\"; filename=\"x\"\r\n\r\nchanged\r\n--b--\r\n";
    let request = Request::post(format!("{ENDPOINT}/box"))
        .header("host", "127.0.0.1:9000")
        .header("content-type", "multipart/form-data; boundary=b")
        .header("content-length", form.len());
    let (status, _) = answer(&f.objects, request.body(s3s::Body::from(Bytes::from(form))).unwrap()).await;
    assert!(status.is_client_error(), "{status}");
    assert_eq!(text(&f.objects, "k", None).await.unwrap(), b"secret");
}

#[tokio::test]
async fn the_administrators_credential_is_made_once_and_kept_private() {
    let f = Fixture::new().await;
    let path = f.dir.path().join("objects-admin.json");
    for name in ["objects-admin.json", "objects.db", "objects"] {
        let mode = std::fs::metadata(f.dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name} can be read by others: {mode:o}");
    }
    let tasks = Tasks::new();
    let again = open(f.dir.path(), &tasks).await.unwrap();
    assert_eq!(again.admin_credential(), f.objects.admin_credential());
    std::fs::write(&path, "{").unwrap();
    let error = open(f.dir.path(), &tasks).await.err().unwrap();
    assert!(matches!(error, OpenError::AdminCredential { .. }) && error.to_string().contains("delete it"), "{error}");
    tasks.stop();
}

#[tokio::test]
async fn a_newer_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let newer = rusqlite::Connection::open(dir.path().join("objects.db")).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let error = open(dir.path(), &Tasks::new()).await.err().unwrap();
    assert!(matches!(error, OpenError::Database(kfbox_db::OpenError::Newer { found: 99, .. })), "{error}");
}

#[tokio::test]
async fn writers_race_and_one_condition_wins() {
    let f = Fixture::new().await;
    let admin = f.objects.admin_credential();
    let puts =
        (0..16).map(|n| {
            let body = format!("writer {n}");
            let objects = &f.objects;
            async move {
                send(objects, admin, Method::PUT, "/box/k", &[], &[("if-none-match", "*")], body.as_bytes()).await.0
            }
        });
    let statuses = futures::future::join_all(puts).await;
    assert_eq!(statuses.iter().filter(|s| **s == StatusCode::OK).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|s| **s == StatusCode::PRECONDITION_FAILED).count(), 15);
    assert_eq!(f.files().len(), 1, "the losers leave nothing");
}

#[tokio::test]
async fn parts_become_an_object_without_being_copied() {
    let f = Fixture::new().await;
    let store = &f.objects.store;
    let id =
        store.create_upload("box", "k", Default::default(), vec![], Some((Algorithm::Crc64Nvme, true))).await.unwrap();
    let upload = store.upload("box", "k", &id).await.unwrap();
    let mut listed = Vec::new();
    let bodies = [vec![1_u8; 5 * MIB], vec![2; 5 * MIB + 3], vec![3; 9]];
    for (n, body) in bodies.iter().enumerate() {
        for data in [vec![9_u8; 11], body.clone()] {
            // The first is replaced by the second.
            let body = stream::iter([Ok(Bytes::from(data))]);
            let number = i32::try_from(n + 1).unwrap();
            let part = store.put_part(&upload, number, None, vec![], body, || Ok(Default::default())).await.unwrap();
            listed.retain(|p: &crate::multipart::ListedPart| p.number != number);
            listed.push(crate::multipart::ListedPart { number, etag: part.etag(), checksums: part.checksums });
        }
    }
    assert_eq!(f.files().len(), 3);
    let before = f.files();
    let completion = crate::multipart::Completion { parts: listed, ..Default::default() };
    let info = store.complete("box", "k", &id, completion).await.unwrap();
    assert_eq!(f.files(), before);
    let whole = bodies.concat();
    assert!(text(&f.objects, "k", None).await.unwrap() == whole);
    let copy = f.objects.put_bytes("box", "one piece", whole.clone(), None).await.unwrap();
    assert_ne!(copy.etag, info.etag);
    let mut hashers = crate::digest::Hashers::new(&[Algorithm::Crc64Nvme]);
    hashers.update(&whole);
    assert_eq!(info.attributes.checksums.crc64nvme, hashers.finish().1.crc64nvme);
    assert_eq!(text(&f.objects, "k", Some(ByteRange::Part(3))).await.unwrap(), [3; 9]);
    let across = ByteRange::From { first: 5 * MIB as u64 - 1, last: Some(10 * MIB as u64 + 4) };
    assert!(text(&f.objects, "k", Some(across)).await.unwrap() == whole[5 * MIB - 1..10 * MIB + 5]);
    f.objects.delete("box", "k").await.unwrap();
    f.objects.delete("box", "one piece").await.unwrap();
    assert_eq!(f.files(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_presigned_url_works_over_a_socket_until_shutdown() {
    let f = Fixture::new().await;
    f.objects.put_bytes("box", "a b/ü", "by url", None).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    f.objects.serve(listener, &f.tasks);
    let url = f.objects.presign_get("box", "a b/ü", Duration::from_secs(60), &endpoint).unwrap();
    assert!(!url.contains(&f.objects.admin_credential().secret_key));
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let fetch = |url: String| {
        let request = Request::get(url).body(http_body_util::Empty::<Bytes>::new()).unwrap();
        let answer = client.request(request);
        async {
            let answer = answer.await.unwrap();
            (answer.status(), answer.into_body().collect().await.unwrap().to_bytes())
        }
    };
    assert_eq!(fetch(url.clone()).await, (StatusCode::OK, Bytes::from_static(b"by url")));
    assert_eq!(fetch(url.replace("a%20b", "a%20c")).await.0, StatusCode::FORBIDDEN);
    assert!(f.objects.presign_get("box", "k", Duration::from_secs(8 * 24 * 3600), &endpoint).is_err());
    f.tasks.stop();
    assert_eq!(f.tasks.drain(Duration::from_secs(10)).await, [""; 0]);
}

/// A small file system of its own, unmounted whatever happens.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size},mode=700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "kfbox-test"]).arg(dir.path()).status();
        assert!(mounted.unwrap().success(), "mounting a tmpfs needs root");
        Self(dir)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|s| s.success()) || std::thread::panicking());
    }
}

#[tokio::test]
async fn a_full_disk_is_said_and_keeps_nothing() {
    let disk = Tmpfs::new("16m");
    let data = disk.0.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let tasks = Tasks::new();
    let objects = open(&data, &tasks).await.unwrap();
    objects.ensure_bucket("box").await.unwrap();
    let kept = vec![5_u8; 6 * MIB];
    objects.put_bytes("box", "kept", kept.clone(), None).await.unwrap();
    let before = files(&data.join("objects"));

    // Of unknown length: the write meets the full disk. Of known length: the reservation does.
    let unknown = objects.put_bytes("box", "kept", vec![6_u8; 12 * MIB], None).await;
    assert!(matches!(unknown, Err(Error::StorageFull)), "{unknown:?}");
    let admin = objects.admin_credential();
    let (status, text_of) = send(&objects, admin, Method::PUT, "/box/kept", &[], &[], &vec![7_u8; 12 * MIB]).await;
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE);
    assert!(text_of.contains("<Code>XMinioStorageFull</Code>"), "{text_of}");
    assert_eq!(files(&data.join("objects")), before);

    // To the last byte: small objects until not even a row fits.
    let mut last = None;
    for n in 0..3000 {
        match objects.put_bytes("box", &format!("small/{n}"), vec![1_u8; 32 * 1024], None).await {
            Ok(_) => last = Some(n),
            Err(Error::StorageFull) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let last = last.expect("some fit");
    assert!(last < 2999, "the disk never filled");
    assert!(text(&objects, "kept", None).await.unwrap() == kept);
    assert_eq!(text(&objects, &format!("small/{last}"), None).await.unwrap().len(), 32 * 1024);
    assert!(matches!(objects.head("box", &format!("small/{}", last + 1)).await, Err(Error::NoSuchKey { .. })));
    assert_eq!(files(&data.join("objects/incoming")), Vec::<PathBuf>::new());

    // Room again, and it goes on.
    for n in 0..=last {
        objects.delete("box", &format!("small/{n}")).await.unwrap();
    }
    objects.put_bytes("box", "after", vec![1_u8; MIB], None).await.unwrap();
    tasks.stop();
    assert_eq!(tasks.drain(Duration::from_secs(10)).await, [""; 0]);
}

#[tokio::test]
async fn a_purge_leaves_no_version_no_upload_and_no_file_and_nothing_beside_is_touched() {
    let f = Fixture::new().await;
    let store = &f.objects.store;
    for (versioned, key) in [(false, "team/a"), (false, "teammates/a"), (true, "team/a"), (true, "team/b")] {
        if versioned {
            store.set_versioning("box", true).await.unwrap();
        }
        f.objects.put_bytes("box", key, Bytes::from_static(b"content"), None).await.unwrap();
    }
    f.objects.delete("box", "team/b").await.unwrap();
    store.create_upload("box", "team/c", Default::default(), vec![], None).await.unwrap();
    // Two versions of one object; one version and the marker that hides it.
    assert_eq!(f.objects.purge("box", "team/").await.unwrap(), 4);
    assert_eq!(f.objects.purge("box", "team/").await.unwrap(), 0, "again finds nothing");
    assert_eq!(f.files().len(), 1);
    assert!(f.objects.head("box", "teammates/a").await.is_ok());

    store.create_upload("box", "team/c", Default::default(), vec![], None).await.unwrap();
    assert_eq!(f.objects.remove_bucket("box").await.unwrap(), 1);
    assert!(f.files().is_empty());
    assert!(matches!(
        f.objects.head("box", "teammates/a").await,
        Err(Error::NoSuchBucket(_) | Error::NoSuchKey { .. })
    ));
    assert_eq!(f.objects.remove_bucket("box").await.unwrap(), 0, "again finds nothing");
}
