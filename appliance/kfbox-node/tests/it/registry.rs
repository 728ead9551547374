//! The embedded registry over HTTP as its clients speak it, with tokens that the test knows; then pods that run what was
//! pushed. `tests/it/registry.rs` of the whole does the same with skopeo.

use crate::world::{World, exit_code, main_status, waits_for};
use axum::{Router, body::Body};
use futures::future::BoxFuture;
use http::{HeaderMap, Method, Request, StatusCode};
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kfbox_base::{Authorizer, BoxError, Decision, ResourceAttributes, UserInfo};
use kfbox_node::registry::Callers;
use kube::{
    Api,
    api::{DeleteParams, PostParams},
    runtime::{conditions, wait::await_condition},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{collections::HashSet, fs, sync::Arc};
use tower::ServiceExt;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A token is its owner's name. `admin` may everything, others create pods in the namespace of their name.
struct Names;

impl Callers for Names {
    fn identify<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<UserInfo>, BoxError>> {
        let known = ["admin", "default", "other"].contains(&token);
        Box::pin(async move { Ok(known.then(|| UserInfo::new(token, []))) })
    }
}

impl Authorizer for Names {
    fn authorize<'a>(
        &'a self,
        user: &'a UserInfo,
        wanted: &'a ResourceAttributes,
    ) -> BoxFuture<'a, Result<Decision, BoxError>> {
        let own = wanted.verb == "create" && wanted.resource == "pods" && wanted.namespace == user.username;
        let allowed = own || user.username == "admin";
        Box::pin(async move { Ok(if allowed { Decision::Allow } else { Decision::Deny("no".into()) }) })
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A client with one user's token.
#[derive(Clone)]
struct Client {
    router: Router,
    token: &'static str,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn code(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl World {
    fn registry(&self, token: &'static str) -> Client {
        Client { router: self.node().registry(Arc::new(Names), Arc::new(Names)).router(), token }
    }

    fn blobs(&self) -> HashSet<String> {
        let folder = fs::read_dir(self.config.data_dir.join("images/blobs/sha256")).unwrap();
        folder.map(|entry| format!("sha256:{}", entry.unwrap().file_name().to_str().unwrap())).collect()
    }

    fn on_their_way(&self) -> usize {
        fs::read_dir(self.config.data_dir.join("images/tmp")).unwrap().count()
    }
}

impl Client {
    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !self.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 64 << 20).await.unwrap().to_vec();
        Answer { status: head.status, headers: head.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], "").await
    }

    async fn put_blob(&self, repository: &str, bytes: &[u8]) -> Answer {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", digest(bytes));
        self.send(Method::POST, &path, &[], bytes.to_vec()).await
    }

    async fn put_manifest(&self, repository: &str, reference: &str, kind: &str, document: &Value) -> Answer {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.send(Method::PUT, &path, &[("content-type", kind)], document.to_string()).await
    }

    /// An image of one layer that runs `script` with busybox; its manifest's digest.
    async fn push(&self, repository: &str, tag: &str, script: &str) -> String {
        let (layer, config) = (busybox_layer(), config(&busybox_layer(), script));
        for blob in [&layer, &config] {
            let put = self.put_blob(repository, blob).await;
            assert_eq!(put.status, StatusCode::CREATED, "{}", String::from_utf8_lossy(&put.body));
        }
        let manifest = manifest(&config, &[&layer]);
        let put = self.put_manifest(repository, tag, MANIFEST, &manifest).await;
        assert_eq!(put.status, StatusCode::CREATED, "{}", String::from_utf8_lossy(&put.body));
        put.header("docker-content-digest").to_owned()
    }
}

fn busybox_layer() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    crate::world::busybox(folder.path());
    let mut tar = tar::Builder::new(Vec::new());
    tar.follow_symlinks(false);
    tar.mode(tar::HeaderMode::Deterministic);
    for name in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
        tar.append_dir_all(name, folder.path().join(name)).unwrap();
    }
    tar.into_inner().unwrap()
}

fn config(layer: &[u8], script: &str) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "os": "linux", "architecture": architecture,
        "config": { "Cmd": ["/bin/sh", "-c", script], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [digest(layer)] },
    });
    config.to_string().into_bytes()
}

fn manifest(config: &[u8], layers: &[&[u8]]) -> Value {
    let layer = |bytes: &&[u8]| json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(bytes), "size": bytes.len() });
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config), "size": config.len() },
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

/// Runs the image as it is.
fn as_it_is(pod: &mut Value, image: &str) {
    pod["spec"]["containers"][0]["image"] = json!(image);
    pod["spec"]["containers"][0].as_object_mut().unwrap().remove("command");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_comes_in_whole_or_not_at_all() {
    let mut world = World::start().await;
    world.namespace("default").await;
    let client = world.registry("default");
    let before = world.blobs();

    // In pieces, out of order, asked about, and gone on with.
    let begun = client.send(Method::POST, "/v2/default/app/blobs/uploads/", &[], "").await;
    assert_eq!(begun.status, StatusCode::ACCEPTED);
    let session = begun.header("location").to_owned();
    let piece = async |range: &str, bytes: &'static str| {
        client.send(Method::PATCH, &session, &[("content-range", range)], bytes).await
    };
    assert_eq!(piece("0-4", "hello").await.status, StatusCode::ACCEPTED);
    let early = piece("9-11", "end").await;
    assert_eq!((early.status, early.header("range")), (StatusCode::RANGE_NOT_SATISFIABLE, "0-4"));
    assert_eq!(piece("x-y", "end").await.code(), "BLOB_UPLOAD_INVALID");
    // A client that breaks off loses nothing of what it sent.
    let broken = futures::stream::iter([Ok(bytes::Bytes::from_static(b", ")), Err(std::io::Error::other("cut"))]);
    let cut = client.send(Method::PATCH, &session, &[], Body::from_stream(broken)).await;
    assert_eq!((cut.status, cut.code().as_str()), (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"));
    let status = client.get(&session).await;
    assert_eq!((status.status, status.header("range")), (StatusCode::NO_CONTENT, "0-6"));
    let whole = digest(b"hello, world");
    let done =
        client.send(Method::PUT, &format!("{session}?digest={whole}"), &[("content-range", "7-11")], "world").await;
    assert_eq!((done.status, done.header("docker-content-digest")), (StatusCode::CREATED, whole.as_str()));
    let blob = client.get(&format!("/v2/default/app/blobs/{whole}")).await;
    assert_eq!(blob.body, b"hello, world");
    let part = client.send(Method::GET, &format!("/v2/default/app/blobs/{whole}"), &[("range", "bytes=7-")], "").await;
    assert_eq!((part.status, part.header("content-range")), (StatusCode::PARTIAL_CONTENT, "bytes 7-11/12"));
    assert_eq!(part.body, b"world");
    assert_eq!(client.get(&session).await.code(), "BLOB_UPLOAD_UNKNOWN");

    // Of another digest than it was said to have: refused, and nothing is left, in one request as in several.
    let wrong = format!("/v2/default/app/blobs/uploads/?digest={whole}");
    assert_eq!(client.send(Method::POST, &wrong, &[], "hullo").await.code(), "DIGEST_INVALID");
    let begun = client.send(Method::POST, "/v2/default/app/blobs/uploads/", &[], "").await;
    let session = begun.header("location").to_owned();
    let wrong = client.send(Method::PUT, &format!("{session}?digest={}", digest(b"x")), &[], "y").await;
    assert_eq!((wrong.status, wrong.code().as_str()), (StatusCode::BAD_REQUEST, "DIGEST_INVALID"));
    assert_eq!(client.get(&session).await.status, StatusCode::NOT_FOUND);
    let bad = client.send(Method::PUT, &format!("{session}?digest=sha256:../../etc"), &[], "y").await;
    assert_eq!(bad.code(), "DIGEST_INVALID");
    assert_eq!(&world.blobs() - &before, HashSet::from([whole.clone()]));
    assert_eq!(world.on_their_way(), 0);

    // By the longer digest too; and a session is of who began it, in its repository.
    let long = format!("sha512:{}", hex::encode(sha2::Sha512::digest(b"long")));
    let put = client.send(Method::POST, &format!("/v2/default/app/blobs/uploads/?digest={long}"), &[], "long").await;
    assert_eq!(put.status, StatusCode::CREATED);
    let begun = client.send(Method::POST, "/v2/default/app/blobs/uploads/", &[], "").await;
    let session = begun.header("location").to_owned();
    let elsewhere = session.replace("/app/", "/another/");
    assert_eq!(client.get(&elsewhere).await.code(), "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(world.registry("admin").get(&session).await.code(), "BLOB_UPLOAD_UNKNOWN");

    // Manifests name what the repository has, and are of a size.
    let (settings, layer) = (b"{}".to_vec(), b"layer".to_vec());
    let early = client.put_manifest("default/app", "1", MANIFEST, &manifest(&settings, &[&layer])).await;
    assert_eq!((early.status, early.code().as_str()), (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"));
    for blob in [&settings, &layer] {
        assert_eq!(client.put_blob("default/app", blob).await.status, StatusCode::CREATED);
    }
    let fine = manifest(&settings, &[&layer]);
    let other = client.put_manifest("default/app", &digest(b"other"), MANIFEST, &fine).await;
    assert_eq!(other.code(), "DIGEST_INVALID");
    for (kind, document) in [
        (INDEX, fine.clone()),
        ("text/plain", fine.clone()),
        (MANIFEST, json!({ "schemaVersion": 1, "name": "x", "fsLayers": [] })),
        (MANIFEST, json!({ "schemaVersion": 2, "config": { "digest": "sha256:../..", "size": 1 }, "layers": [] })),
        (MANIFEST, json!([])),
        (INDEX, json!({ "schemaVersion": 2, "manifests": [{ "digest": digest(b"missing"), "size": 1 }] })),
    ] {
        let answer = client.put_manifest("default/app", "1", kind, &document).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{kind} {document}");
    }
    let mut huge = fine.clone();
    huge["annotations"] = json!({ "much": "x".repeat(5 << 20) });
    let huge = client.put_manifest("default/app", "1", MANIFEST, &huge).await;
    assert_eq!((huge.status, huge.code().as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "MANIFEST_INVALID"));
    assert_eq!(client.put_manifest("default/app", "1", MANIFEST, &fine).await.status, StatusCode::CREATED);

    // Half an upload is gone with the daemon; what was acknowledged is not.
    client.send(Method::PATCH, &session, &[], "half").await;
    assert_eq!(world.on_their_way(), 1);
    world.crash().await;
    world.restart().await;
    let client = world.registry("default");
    assert_eq!(world.on_their_way(), 0);
    assert_eq!(client.get(&session).await.code(), "BLOB_UPLOAD_UNKNOWN");
    let kept = client.get("/v2/default/app/manifests/1").await;
    assert_eq!((kept.header("content-type"), kept.json()), (MANIFEST, fine));
    for blob in [whole, long] {
        assert_eq!(client.send(Method::HEAD, &format!("/v2/default/app/blobs/{blob}"), &[], "").await.status, 200);
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespaces_images_are_its_own() {
    let world = World::start().await;
    for name in ["default", "other"] {
        world.namespace(name).await;
    }
    let (own, other, admin) = (world.registry("default"), world.registry("other"), world.registry("admin"));
    for token in ["", "nobody"] {
        let refused = world.registry(token).get("/v2/").await;
        assert_eq!((refused.status, refused.code().as_str()), (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"));
        assert!(refused.header("www-authenticate").starts_with("Basic "), "{token:?}");
        assert_eq!(world.registry(token).get("/v2/default/app/tags/list").await.status, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(own.get("/v2/").await.status, StatusCode::OK);
    let mut digests = Vec::new();
    for tag in ["1", "2", "10"] {
        digests.push(own.push("default/app", tag, &format!("echo {tag}")).await);
    }
    admin.push("library/base", "1", "echo base").await;

    // Neither read nor written by a neighbour, nor probed for by digest, nor mounted; nor does it show in a list.
    let secret = b"the secret of default".to_vec();
    assert_eq!(own.put_blob("default/app", &secret).await.status, StatusCode::CREATED);
    for path in ["tags/list", "manifests/1", &format!("blobs/{}", digest(&secret))] {
        assert_eq!(other.get(&format!("/v2/default/app/{path}")).await.code(), "DENIED", "{path}");
    }
    assert_eq!(other.put_blob("default/app", b"x").await.code(), "DENIED");
    assert_eq!(other.delete(&format!("/v2/default/app/manifests/{}", digests[0])).await.code(), "DENIED");
    assert_eq!(other.put_blob("library/app", b"x").await.code(), "DENIED");
    assert_eq!(other.put_blob("nowhere/app", b"x").await.code(), "DENIED", "as if it were somebody's");
    assert_eq!(admin.put_blob("nowhere/app", b"x").await.code(), "NAME_UNKNOWN");
    other.put_blob("other/app", b"x").await;
    assert_eq!(other.get(&format!("/v2/other/app/blobs/{}", digest(&secret))).await.code(), "BLOB_UNKNOWN");
    let mount = |to: &str| format!("/v2/{to}/blobs/uploads/?mount={}&from=default/app", digest(&secret));
    assert_eq!(other.send(Method::POST, &mount("other/app"), &[], "").await.status, StatusCode::ACCEPTED);
    assert_eq!(own.send(Method::POST, &mount("default/copy"), &[], "").await.status, StatusCode::CREATED);
    assert_eq!(own.get(&format!("/v2/default/copy/blobs/{}", digest(&secret))).await.body, secret);
    assert_eq!(other.get("/v2/_catalog").await.json(), json!({ "repositories": ["library/base"] }));
    assert_eq!(own.get("/v2/_catalog").await.json(), json!({ "repositories": ["default/app", "library/base"] }));
    let paths = ["/v2/../x/tags/list", "/v2/default/%2e%2e/tags/list", "/v2/default/UPPER/tags/list"];
    for path in paths {
        assert!(own.get(path).await.status.is_client_error(), "{path}");
    }

    // Lists come in pages.
    let first = own.get("/v2/default/app/tags/list?n=2").await;
    assert_eq!(first.json(), json!({ "name": "default/app", "tags": ["1", "10"] }));
    assert_eq!(first.header("link"), "</v2/default/app/tags/list?n=2&last=10>; rel=\"next\"");
    let rest = own.get("/v2/default/app/tags/list?n=2&last=10").await;
    assert_eq!((rest.json()["tags"].clone(), rest.header("link")), (json!(["2"]), ""));
    assert_eq!(own.get("/v2/default/app/tags/list?n=x").await.code(), "PAGINATION_NUMBER_INVALID");

    // What is attached to an image is found by it.
    let mut note = manifest(b"{}", &[b"signature"]);
    note["subject"] = json!({ "mediaType": MANIFEST, "digest": digests[0], "size": 1 });
    note["artifactType"] = json!("application/vnd.example.signature");
    for blob in [b"{}".to_vec(), b"signature".to_vec()] {
        own.put_blob("default/app", &blob).await;
    }
    let put = own.put_manifest("default/app", &digest(note.to_string().as_bytes()), MANIFEST, &note).await;
    assert_eq!(put.header("oci-subject"), digests[0]);
    let found = own.get(&format!("/v2/default/app/referrers/{}", digests[0])).await.json();
    assert_eq!(found["manifests"][0]["artifactType"], "application/vnd.example.signature");
    let none = own.get(&format!("/v2/default/app/referrers/{}?artifactType=other", digests[0])).await;
    assert_eq!((none.json()["manifests"].clone(), none.header("oci-filters-applied")), (json!([]), "artifactType"));

    // Two who push one tag: it is one of theirs, and neither image is lost.
    let pushes = (0..8).map(|n| {
        let own = own.clone();
        async move { own.push("default/app", "raced", &format!("echo racer {n}")).await }
    });
    let raced: HashSet<String> = futures::future::join_all(pushes).await.into_iter().collect();
    assert_eq!(raced.len(), 8);
    let winner = own.get("/v2/default/app/manifests/raced").await;
    assert!(raced.contains(winner.header("docker-content-digest")));
    for digest in &raced {
        assert_eq!(own.get(&format!("/v2/default/app/manifests/{digest}")).await.status, StatusCode::OK);
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_run_what_was_pushed_and_only_their_own() {
    let world = World::start().await;
    for name in ["default", "other"] {
        world.namespace(name).await;
    }
    let (own, other) = (world.registry("default"), world.registry("other"));
    own.push("default/app", "1", "echo from the registry; exit 3").await;
    let foreign = other.push("other/app", "1", "exit 4").await;
    world.registry("admin").push("library/tool", "1", "exit 5").await;
    let before = world.blobs();
    world.run("own", "", |pod| as_it_is(pod, "registry.kfbox.local/default/app:1")).await;
    assert_eq!(exit_code(&world.until_phase("own", "Failed").await), 3);
    assert_eq!(world.logs("own", "main").await, "from the registry\n");
    world.run("shared", "", |pod| as_it_is(pod, "registry.kfbox.local/library/tool:1")).await;
    assert_eq!(exit_code(&world.until_phase("shared", "Failed").await), 5);
    assert_eq!(world.blobs(), before, "nothing is copied");

    // What a neighbour pushed is not to be run, by name or by digest, present on the machine or not, unless a secret opens it.
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "other");
    let mut neighbour = json!({
        "metadata": { "name": "neighbour" },
        "spec": {
            "nodeName": world.config.node_name, "restartPolicy": "Never", "automountServiceAccountToken": false,
            "containers": [{ "name": "main", "image": "registry.kfbox.local/other/app:1", "imagePullPolicy": "Never" }],
        },
    });
    let pod: Pod = serde_json::from_value(neighbour.clone()).unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let ended = |pod: Option<&Pod>| {
        pod.and_then(|p| p.status.as_ref()).and_then(|s| s.phase.as_deref()).is_some_and(|p| p == "Failed")
    };
    let pod = await_condition(pods.clone(), "neighbour", ended).await.unwrap().unwrap();
    assert_eq!(exit_code(&pod), 4, "its own");
    let id = main_status(&pod).image_id.clone();
    let image = world.node().images().list().into_iter().find(|i| i.digest == foreign).unwrap().id;
    for (name, image) in [
        ("by-name", "registry.kfbox.local/other/app:1"),
        ("by-id", id.as_str()),
        ("by-digest", foreign.as_str()),
        ("by-image", image.as_str()),
    ] {
        world.run(name, "", |pod| as_it_is(pod, image)).await;
        world.until(name, "refused", |pod| waits_for(pod, "ErrImagePull") || waits_for(pod, "ImagePullBackOff")).await;
    }
    let config = json!({ "auths": { "registry.kfbox.local": { "username": "x", "password": "other" } } });
    let secret: Secret = serde_json::from_value(json!({
        "metadata": { "name": "opens" }, "type": "kubernetes.io/dockerconfigjson",
        "stringData": { ".dockerconfigjson": config.to_string() },
    }))
    .unwrap();
    Api::<Secret>::namespaced(world.client.clone(), "default").create(&PostParams::default(), &secret).await.unwrap();
    world
        .run("opened", "", |pod| {
            as_it_is(pod, "registry.kfbox.local/other/app:1");
            pod["spec"]["imagePullSecrets"] = json!([{ "name": "opens" }]);
        })
        .await;
    assert_eq!(exit_code(&world.until_phase("opened", "Failed").await), 4);

    // A namespace that is made anew has nothing of the old one's.
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let uid = namespaces.get("other").await.unwrap().metadata.uid.unwrap();
    pods.delete("neighbour", &DeleteParams::default()).await.unwrap();
    await_condition(pods.clone(), "neighbour", |pod: Option<&Pod>| pod.is_none()).await.unwrap();
    namespaces.delete("other", &DeleteParams::default()).await.unwrap();
    // No controllers run here: what they would do is done for them.
    let finalized = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "other", "uid": uid }, "spec": { "finalizers": [] } });
    let _ = namespaces.replace_subresource("finalize", "other", &PostParams::default(), &finalized).await;
    await_condition(namespaces.clone(), "other", conditions::is_deleted(&uid)).await.unwrap();
    assert_eq!(world.registry("admin").get("/v2/other/app/tags/list").await.code(), "NAME_UNKNOWN");
    world.namespace("other").await;
    assert_eq!(other.get("/v2/other/app/tags/list").await.code(), "NAME_UNKNOWN");
    neighbour["metadata"]["name"] = json!("heir");
    neighbour["spec"]["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
    let heir: Pod = serde_json::from_value(neighbour).unwrap();
    pods.create(&PostParams::default(), &heir).await.unwrap();
    let refused =
        |pod: Option<&Pod>| pod.is_some_and(|p| waits_for(p, "ErrImagePull") || waits_for(p, "ImagePullBackOff"));
    await_condition(pods.clone(), "heir", refused).await.unwrap();
    world.node().collect_images().await.unwrap();
    assert!(!world.blobs().contains(&foreign), "and its content is gone");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_is_freed_and_nothing_else() {
    let world = World::start_with(|config| World::small_disk(config, 48)).await;
    world.namespace("default").await;
    let client = world.registry("default");
    let before = world.blobs();
    let kept = client.push("default/kept", "1", "exit 0").await;
    let first = client.push("default/app", "1", "echo one; exit 0").await;
    let second = client.push("default/app", "2", "echo two; exit 0").await;
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [
        { "mediaType": MANIFEST, "digest": first, "size": 1, "platform": { "os": "plan9", "architecture": "mips" } },
        { "mediaType": MANIFEST, "digest": second, "size": 1, "platform": { "os": "linux", "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" } } },
    ] });
    let put = client.put_manifest("default/app", "all", INDEX, &index).await;
    assert_eq!(put.status, StatusCode::CREATED);
    let all = world.blobs();
    world.node().collect_images().await.unwrap();
    assert_eq!(world.blobs(), all, "what the registry holds stays");
    world.run("two", "", |pod| as_it_is(pod, "registry.kfbox.local/default/app:all")).await;
    world.until_phase("two", "Succeeded").await;
    assert_eq!(world.logs("two", "main").await, "two\n", "of the index, this machine's");

    // By tag only the name goes; by digest the image and its names.
    assert_eq!(client.delete("/v2/default/app/manifests/1").await.status, StatusCode::ACCEPTED);
    assert_eq!(client.delete("/v2/default/app/manifests/1").await.code(), "MANIFEST_UNKNOWN");
    world.node().collect_images().await.unwrap();
    assert!(world.blobs().contains(&first));
    let busy = client.delete(&format!("/v2/default/kept/blobs/{}", digest(&busybox_layer()))).await;
    assert_eq!(busy.status, StatusCode::METHOD_NOT_ALLOWED, "an image needs it");
    world.delete("two").await;
    for reference in [put.header("docker-content-digest"), &first, &second] {
        assert_eq!(client.delete(&format!("/v2/default/app/manifests/{reference}")).await.status, StatusCode::ACCEPTED);
    }
    assert_eq!(client.get("/v2/default/app/tags/list").await.json()["tags"], json!([]));
    world.node().collect_images().await.unwrap();
    let left = &world.blobs() - &before;
    let wanted = [kept.clone(), digest(&busybox_layer()), digest(&config(&busybox_layer(), "exit 0"))];
    assert_eq!(left, HashSet::from(wanted), "content that is shared stays");
    assert!(!world.node().images().list().iter().any(|image| image.digest == second), "nor is it an image any more");

    // A full disk: the push is refused with its reason, leaves nothing, and what is there stays good.
    let large = vec![7; 64 << 20];
    let full = client.put_blob("default/large", &large).await;
    assert_eq!(full.status, StatusCode::INSUFFICIENT_STORAGE, "{}", String::from_utf8_lossy(&full.body));
    assert_eq!(world.on_their_way(), 0);
    assert_eq!(client.put_blob("default/large", &large[..1 << 20]).await.status, StatusCode::CREATED);
    world.run("kept", "", |pod| as_it_is(pod, "registry.kfbox.local/default/kept:1")).await;
    world.until_phase("kept", "Succeeded").await;
    world.delete("kept").await;
    world.stop().await;
}
