//! Artifacts in stores outside the box, as the namespace's config map names them.

use super::{call, good, ok, spec, wait, world::World};
use crate::{OutsideStore, Pipelines};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

const PROVIDERS: &str = "
s3:
  default:
    endpoint: store.lab:9000
    disableSSL: true
    credentials: {secretRef: {secretName: lab, accessKeyKey: id, secretKeyKey: key}}
minio:
  default:
    endpoint: minio-service.kubeflow:9000
    credentials: {secretRef: {secretName: lab, accessKeyKey: id, secretKeyKey: key}}
";

fn configure(world: &World, namespace: &str, data: &Value) {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kfp-launcher"}, "data": data});
    world.settings.lock().insert(format!("{namespace}/configmaps/kfp-launcher"), map);
}

fn give_secret(world: &World, keys: &[(&str, &str)]) {
    let data: serde_json::Map<String, Value> =
        keys.iter().map(|(k, v)| ((*k).to_owned(), json!(STANDARD.encode(v)))).collect();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "lab"}, "data": data});
    world.settings.lock().insert("ann/secrets/lab".into(), secret);
}

async fn begin(p: &Pipelines, root: &str) -> (u16, Value) {
    let body = json!({
        "display_name": "a run", "pipeline_spec": spec(),
        "runtime_config": {"parameters": {"text": root}, "pipeline_root": root},
    });
    call(p, "ann", "POST", "/apis/v2beta1/runs", body).await
}

async fn finish(p: &Pipelines, root: &str, state: &str) -> Value {
    let (status, run) = begin(p, root).await;
    assert_eq!(status, 200, "{run}");
    let id = run["run_id"].as_str().unwrap();
    let run = wait(p, id, |r| matches!(r["state"].as_str(), Some("SUCCEEDED" | "FAILED"))).await;
    assert_eq!(run["state"], state, "{run}");
    run
}

fn stored(world: &World, at: &str) -> Vec<String> {
    let all = world.objects.lock();
    all.keys().filter(|k| k.starts_with(at)).cloned().collect()
}

#[tokio::test]
async fn steps_write_to_the_namespaces_store_and_read_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, _tasks) = world.daemon(folder.path()).await;
    configure(&world, "ann", &json!({"defaultPipelineRoot": "s3://lab/ann", "providers": PROVIDERS}));
    give_secret(&world, &[("id", "AKIA"), ("key", "s3cret\n")]);
    let run = finish(&p, "", "SUCCEEDED").await;
    let id = run["run_id"].as_str().unwrap();
    let there = stored(&world, &format!("http://store.lab:9000 lab/ann/two-steps/{id}/make/"));
    assert_eq!(there.len(), 2, "{there:?}");
    assert_eq!(world.read.lock().get("read/data/sub/b.txt").map(String::as_str), Some("there"));
    for store in world.opened.lock().iter() {
        let OutsideStore::S3(s3) = store else { panic!("{store:?}") };
        let keys = s3.keys.as_ref().unwrap();
        assert_eq!((keys.access.as_str(), keys.secret.reveal()), ("AKIA", "s3cret"));
        assert!(!format!("{store:?}").contains("s3cret"), "what is hidden is not printed");
    }
    // What lies there is not the box's to delete, and a result whose artifacts are gone is not reused.
    ok(&p, "ann", "DELETE", &format!("/apis/v2beta1/runs/{id}"), Value::Null).await;
    crate::retention::sweep(&p.inner).await.unwrap();
    assert_eq!(stored(&world, "http://store.lab:9000 "), there);
    world.objects.lock().clear();
    let pods = world.pods.lock().len();
    finish(&p, "", "SUCCEEDED").await;
    assert!(stored(&world, "http://store.lab:9000 ").len() == 2 && world.pods.lock().len() > pods);

    // The run's own wish comes first; the box's own store is always open to its own place.
    finish(&p, "minio://mlpipeline/v2/artifacts/ann/mine", "SUCCEEDED").await;
    assert_eq!(stored(&world, "mlpipeline/v2/artifacts/ann/mine/").len(), 2);
    let by_query = "s3://lab/there?endpoint=other.lab&region=here";
    let run = finish(&p, by_query, "SUCCEEDED").await;
    assert!(
        run["pipeline_root"].is_null() || run["pipeline_root"].as_str().unwrap().ends_with("&region=here"),
        "{run}"
    );
    assert_eq!(stored(&world, "https://other.lab lab/there/two-steps/").len(), 2);
}

#[tokio::test]
async fn a_root_that_cannot_be_used_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, _tasks) = world.daemon(folder.path()).await;
    configure(&world, "bob", &json!({"providers": PROVIDERS}));
    for (root, why) in [
        ("s3://lab/x", "add providers.s3 to the config map kfp-launcher of namespace ann"),
        ("gs://lab/x", "add providers.gs"),
        ("minio://mlpipeline/v2/artifacts/bob", "not within minio://mlpipeline/v2/artifacts/ann"),
        ("s3://mlpipeline/v2/artifacts/bob/x", "not within minio://mlpipeline/v2/artifacts/ann"),
        ("minio://mlpipeline/v2/artifacts/ann/../bob", "is not like s3://"),
        ("minio://mlpipeline/v2/artifacts/ann?region=x", "takes no query"),
        ("file:///etc", "is not like s3://"),
        ("https://lab.example/x", "is not like s3://"),
        ("s3://lab/x?profile=root", "profile is not known"),
        ("gs://lab/x?region=x", "takes no query"),
    ] {
        let (status, body) = begin(&p, root).await;
        assert_eq!(status, 400, "{root}: {body}");
        assert!(body["message"].as_str().unwrap().contains(why), "{root}: {body}");
    }
    // The box's own store by one of its names stays behind its fence.
    configure(&world, "ann", &json!({"providers": PROVIDERS}));
    let (status, body) = begin(&p, "minio://mlpipeline/v2/artifacts/bob").await;
    assert!(status == 400 && body["message"].as_str().unwrap().contains("not within"), "{body}");
    for (data, why) in [
        (json!({"providers": "s3: ["}), "providers is no YAML"),
        (json!({"providers": "ftp: {}"}), "providers.ftp is no provider"),
        (json!({"defaultPipelineRoot": "s3://lab/x"}), "defaultPipelineRoot of the config map kfp-launcher s3://lab/x"),
    ] {
        configure(&world, "ann", &data);
        let (status, body) = begin(&p, "").await;
        assert!(status == 400 && body["message"].as_str().unwrap().contains(why), "{data}: {body}");
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_fails_the_step_and_names_the_setting() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(good);
    let (p, _tasks) = world.daemon(folder.path()).await;
    configure(&world, "ann", &json!({"defaultPipelineRoot": "s3://lab", "providers": PROVIDERS}));
    let why = |run: &Value| run.to_string();
    let at = "providers.s3.default.credentials.secretRef";
    let run = finish(&p, "", "FAILED").await;
    assert!(why(&run).contains(&format!("{at}.secretName: there is no Secret lab in this namespace")), "{run}");
    give_secret(&world, &[("id", "AKIA"), ("other", "s3cret")]);
    let run = finish(&p, "", "FAILED").await;
    assert!(why(&run).contains(&format!("{at}.secretKeyKey: the Secret lab has no key key")), "{run}");
    assert!(!why(&run).contains("s3cret"));
    configure(&world, "ann", &json!({"providers": PROVIDERS.replace("store.lab", "127.0.0.1")}));
    give_secret(&world, &[("id", "AKIA"), ("key", "s3cret")]);
    let run = finish(&p, "s3://lab/x", "FAILED").await;
    assert!(why(&run).contains("127.0.0.1 is refused"), "{run}");
}
