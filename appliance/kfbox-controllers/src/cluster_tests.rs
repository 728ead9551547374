//! The controllers against the real API server in this process, with a node that only says what its pods do.

use crate::Config;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::Job,
    core::v1::{
        ConfigMap, Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service, ServiceAccount,
    },
    discovery::v1::EndpointSlice,
    rbac::v1::ClusterRole,
};
use kfbox_apiserver::ApiServer;
use kfbox_base::{Readiness, Tasks};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, ObjectList, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
    runtime::watcher,
};
use serde_json::{Value, json};
use std::{fmt::Debug, path::Path, sync::Arc, time::Duration};

mod quotas;

const NODE: &str = "node-a";

mod policy;
mod scaling;
mod snapshots;

struct World {
    client: Client,
    server: ApiServer,
    tasks: Tasks,
    dir: Arc<tempfile::TempDir>,
}

/// What `metrics.k8s.io` answers; no metrics server when it is null.
type Metrics = Arc<parking_lot::Mutex<Value>>;

/// A client that answers for the metrics server, and leaves all else to the API server.
fn with_metrics(client: Client, metrics: Metrics) -> Client {
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (client, metrics) = (client.clone(), metrics.clone());
        async move {
            let known = metrics.lock().clone();
            if request.uri().path().starts_with("/apis/metrics.k8s.io/") && !known.is_null() {
                return Ok(http::Response::new(kube::client::Body::from(known.to_string().into_bytes())));
            }
            client.send(request).await
        }
    });
    Client::new(service, "default")
}

/// A server that is dropped still writes what it was given; two on one folder would number alike. With other tests in the
/// process their servers are waited for in vain, and not for long.
async fn writers_ended() {
    let writes = || {
        let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let mut names = threads.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok());
        names.any(|name| name.trim() == "kubernetes-log")
    };
    for _ in 0..200 {
        if !writes() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl World {
    async fn start() -> Self {
        Self::start_with(Metrics::default()).await
    }

    async fn start_with(metrics: Metrics) -> Self {
        let world = Self::open(Arc::new(tempfile::tempdir().unwrap()), metrics).await;
        let nodes = Api::<Node>::all(world.client.clone());
        let node = object(json!({ "metadata": { "name": NODE, "labels": { "kubernetes.io/hostname": NODE } } }));
        nodes.create(&PostParams::default(), &node).await.unwrap();
        world.capacity("4").await;
        world
    }

    async fn open(dir: Arc<tempfile::TempDir>, metrics: Metrics) -> Self {
        kfbox_base::telemetry::init("warn,kfbox_controllers=debug", false, Default::default()).unwrap();
        let tasks = Tasks::new();
        let server = ApiServer::open(kfbox_apiserver::Config::new(dir.path().join("data")), &tasks).await.unwrap();
        let client = with_metrics(server.client(), metrics);
        let readiness = Readiness::default();
        let config = Config {
            node_name: NODE.into(),
            local_path_root: volumes(dir.path()),
            root_ca_pem: "the authority".into(),
            cluster_name: "test".into(),
            signer: Some(Arc::new(Signer(server.authority()))),
        };
        crate::start(client.clone(), config, &tasks, &readiness);
        drop(tasks.spawn("node", node(client.clone(), tasks.clone())));
        let mut states = readiness.subscribe();
        let ready = states
            .wait_for(|all| !all.is_empty() && all.iter().all(|c| c.state == kfbox_base::readiness::State::Ready));
        tokio::time::timeout(Duration::from_secs(60), ready).await.expect("ready in time").unwrap();
        Self { client, server, tasks, dir }
    }

    /// Stops all, as a crash would, and starts again on the same data.
    async fn restart(self) -> Self {
        self.tasks.stop();
        let left = self.tasks.drain(Duration::from_secs(20)).await;
        assert!(left.is_empty(), "{left:?}");
        drop((self.client, self.server));
        writers_ended().await;
        Self::open(self.dir, Metrics::default()).await
    }

    async fn capacity(&self, cpu: &str) {
        let nodes = Api::<Node>::all(self.client.clone());
        let status = json!({ "status": { "allocatable": { "cpu": cpu, "memory": "8Gi", "pods": "110" }, "conditions": [{ "type": "Ready", "status": "True" }] } });
        nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create<K>(&self, value: Value) -> K
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        self.api::<K>().create(&PostParams::default(), &object(value)).await.unwrap()
    }
}

fn volumes(dir: &Path) -> std::path::PathBuf {
    dir.join("volumes")
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// As the binary wires it.
struct Signer(Arc<kfbox_apiserver::auth::Authority>);

impl Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

impl crate::CertificateSigner for Signer {
    fn sign(&self, request: &crate::CertificateRequest<'_>) -> Result<String, crate::SigningRefusal> {
        use kfbox_apiserver::auth::SigningError;
        let request = kfbox_apiserver::auth::SigningRequest {
            signer: request.signer,
            request_pem: request.request_pem,
            usages: request.usages,
            expiration_seconds: request.expiration_seconds,
        };
        self.0.sign_request_now(&request).map_err(|error| match error {
            SigningError::NotOurs(_) => crate::SigningRefusal::NotOurs,
            SigningError::Refused(why) => crate::SigningRefusal::Refused(why),
            other => crate::SigningRefusal::Failed(other.to_string()),
        })
    }
}

/// Looks at the list now and after each change, until `done` says so.
async fn until<K>(api: &Api<K>, what: &str, done: impl Fn(&[K]) -> bool) -> Vec<K>
where
    K: kube::Resource + Clone + Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let wait = async {
        let mut changes = std::pin::pin!(watcher(api.clone(), watcher::Config::default()));
        let mut listed = false;
        loop {
            if let Ok(ObjectList { items, .. }) = api.list(&ListParams::default()).await
                && listed
                && done(&items)
            {
                return items;
            }
            if let Ok(Some(watcher::Event::InitDone)) = changes.try_next().await {
                listed = true;
            }
        }
    };
    match tokio::time::timeout(Duration::from_secs(40), wait).await {
        Ok(items) => items,
        Err(_) => panic!("{what}: {:#?}", api.list(&ListParams::default()).await.map(|l| l.items)),
    }
}

/// Runs pods by saying so: the annotation `test/exit` makes them end with that code, others run until deleted.
async fn node(client: Client, tasks: Tasks) {
    let shutdown = tasks.shutdown();
    let mut events = std::pin::pin!(watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()));
    let mut address = 1;
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => event,
        };
        let Some(Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) = event else { continue };
        if pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) != Some(NODE) {
            continue;
        }
        let api = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap());
        let name = pod.name_any();
        let phase = crate::pods::phase(&pod).to_owned();
        let finished = crate::pods::is_finished(&pod);
        let say = |status: Value| {
            let (api, name) = (api.clone(), name.clone());
            async move {
                // A conflict or a pod that is gone: its next event comes.
                let _ =
                    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(json!({ "status": status }))).await;
            }
        };
        if pod.metadata.deletion_timestamp.is_some() {
            if !finished {
                say(json!({ "phase": "Failed" })).await;
            }
            if pod.metadata.deletion_grace_period_seconds != Some(0) {
                let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
                let _ = api.delete(&name, &now).await;
            }
            continue;
        }
        let exit = pod.annotations().get("test/exit").cloned();
        match (phase.as_str(), exit.as_deref()) {
            ("Pending", _) => {
                address += 1;
                let since = jiff::Timestamp::now().to_string();
                let conditions = json!([{ "type": "Ready", "status": "True", "lastTransitionTime": since }]);
                say(json!({ "phase": "Running", "podIP": format!("10.9.0.{address}"), "podIPs": [{ "ip": format!("10.9.0.{address}") }], "conditions": conditions })).await;
            }
            ("Running", Some(code)) => {
                say(json!({ "phase": if code == "0" { "Succeeded" } else { "Failed" }, "conditions": [{ "type": "Ready", "status": "False" }] })).await;
            }
            _ => {}
        }
    }
}

fn template(labels: Value, image: &str, exit: Option<&str>) -> Value {
    let mut annotations = json!({});
    if let Some(exit) = exit {
        annotations["test/exit"] = exit.into();
    }
    json!({ "metadata": { "labels": labels, "annotations": annotations }, "spec": { "containers": [{ "name": "c", "image": image }] } })
}

fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    let labels = json!({ "app": name });
    json!({ "metadata": { "name": name }, "spec": { "replicas": replicas, "selector": { "matchLabels": labels }, "template": template(labels, image, None) } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_rolls_out_serves_and_leaves_nothing_behind() {
    let world = World::start().await;
    world.create::<Service>(json!({ "metadata": { "name": "web" }, "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": 8000 }] } })).await;
    world.create::<Deployment>(deployment("web", 3, "one")).await;
    let deployments = world.api::<Deployment>();
    let rolled = |generation: i64| {
        move |all: &[Deployment]| {
            all.iter().any(|d| {
                let status = d.status.clone().unwrap_or_default();
                status.observed_generation == Some(generation)
                    && status.updated_replicas == Some(3)
                    && status.available_replicas == Some(3)
                    && status.replicas == Some(3)
            })
        }
    };
    until(&deployments, "three pods", rolled(1)).await;
    let slices = until(&world.api::<EndpointSlice>(), "three endpoints", |all| {
        all.iter().any(|s| {
            s.labels().get("kubernetes.io/service-name").is_some_and(|n| n == "web")
                && s.endpoints
                    .iter()
                    .flatten()
                    .filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true)))
                    .count()
                    == 3
        })
    })
    .await;
    assert!(slices.iter().any(|s| s.ports.as_ref().is_some_and(|p| p[0].port == Some(8000))));

    let image = json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": "two" }] } } } });
    deployments.patch("web", &PatchParams::default(), &Patch::Strategic(image)).await.unwrap();
    until(&deployments, "the second template", rolled(2)).await;
    let sets = world.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(sets.len(), 2);
    until(&world.api::<Pod>(), "only new pods", |all| {
        all.len() == 3 && all.iter().all(|p| p.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("two"))
    })
    .await;

    deployments.delete("web", &DeleteParams::foreground()).await.unwrap();
    until(&deployments, "the deployment gone", |all: &[Deployment]| all.is_empty()).await;
    assert!(
        world.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items.is_empty(),
        "gone before their owner"
    );
    until(&world.api::<Pod>(), "the pods gone", |all| all.is_empty()).await;
    world.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
    until(&world.api::<EndpointSlice>(), "the slices gone", |all| {
        all.iter().all(|s| s.labels().get("kubernetes.io/service-name").is_none_or(|n| n != "web"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_stay_and_are_adopted_again() {
    let world = World::start().await;
    world.create::<Deployment>(deployment("web", 2, "one")).await;
    let pods = world.api::<Pod>();
    let before = until(&pods, "two pods", |all| all.len() == 2 && all.iter().all(crate::pods::is_ready)).await;
    world.api::<Deployment>().delete("web", &DeleteParams::orphan()).await.unwrap();
    let sets = world.api::<ReplicaSet>();
    until(&sets, "an orphan set", |all| all.len() == 1 && all[0].owner_references().is_empty()).await;
    until(&world.api::<Deployment>(), "no deployment", |all| all.is_empty()).await;
    let again: Deployment = world.create(deployment("web", 2, "one")).await;
    until(&sets, "adopted", |all| {
        all.len() == 1 && all[0].owner_references().iter().any(|o| Some(&o.uid) == again.metadata.uid.as_ref())
    })
    .await;
    let after = pods.list(&ListParams::default()).await.unwrap().items;
    let uids = |pods: &[Pod]| pods.iter().filter_map(ResourceExt::uid).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(uids(&before), uids(&after));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_end_and_a_restart_in_the_middle_runs_nothing_twice() {
    let world = World::start().await;
    let spec = |exit: &str, more: Value| {
        let mut template = template(json!({}), "i", Some(exit));
        template["spec"]["restartPolicy"] = "Never".into();
        let mut spec = json!({ "template": template });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let ended = |name: &'static str, kind: &'static str| {
        move |all: &[Job]| {
            all.iter().any(|j| {
                j.name_any() == name
                    && j.status
                        .as_ref()
                        .and_then(|s| s.conditions.as_ref())
                        .is_some_and(|c| c.iter().any(|c| c.type_ == kind && c.status == "True"))
            })
        }
    };
    world.create::<Job>(json!({ "metadata": { "name": "sum" }, "spec": spec("0", json!({ "completions": 6, "parallelism": 2, "completionMode": "Indexed" })) })).await;
    world
        .create::<Job>(json!({ "metadata": { "name": "bad" }, "spec": spec("1", json!({ "backoffLimit": 0 })) }))
        .await;
    world
        .create::<Job>(
            json!({ "metadata": { "name": "brief" }, "spec": spec("0", json!({ "ttlSecondsAfterFinished": 0 })) }),
        )
        .await;
    until(&world.api::<Job>(), "a start", |all: &[Job]| {
        all.iter().any(|j| {
            j.name_any() == "sum" && j.status.as_ref().is_some_and(|s| s.active.is_some() || s.succeeded.is_some())
        })
    })
    .await;
    let world = world.restart().await;
    let jobs = world.api::<Job>();
    let all = until(&jobs, "six indexes", ended("sum", "Complete")).await;
    let status = all.iter().find(|j| j.name_any() == "sum").unwrap().status.clone().unwrap();
    assert_eq!((status.succeeded, status.failed, status.completed_indexes.as_deref()), (Some(6), None, Some("0-5")));
    until(&jobs, "a failure", ended("bad", "Failed")).await;
    until(&jobs, "the brief one removed", |all: &[Job]| all.iter().all(|j| j.name_any() != "brief")).await;
    let pods = until(&world.api::<Pod>(), "nothing held back", |all| {
        all.len() == 7 && all.iter().all(|p| p.finalizers().is_empty())
    })
    .await;
    assert_eq!(
        pods.iter().filter(|p| p.labels().get("job-name").is_some_and(|n| n == "sum")).count(),
        6,
        "each index once"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_gets_folders_that_go_with_their_claims() {
    let world = World::start().await;
    let labels = json!({ "app": "db" });
    let mut spec = json!({ "replicas": 2, "serviceName": "db", "selector": { "matchLabels": labels }, "template": template(labels, "i", None) });
    spec["volumeClaimTemplates"] = json!([{ "metadata": { "name": "data" }, "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } }]);
    world.create::<StatefulSet>(json!({ "metadata": { "name": "db" }, "spec": spec })).await;
    until(&world.api::<StatefulSet>(), "two replicas", |all| {
        all.iter().any(|s| s.status.as_ref().is_some_and(|s| s.ready_replicas == Some(2)))
    })
    .await;
    let claims = until(&world.api::<PersistentVolumeClaim>(), "bound", |all| {
        all.len() == 2 && all.iter().all(crate::volumes::is_bound_claim)
    })
    .await;
    let root = volumes(world.dir.path());
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 2);
    assert!(claims.iter().all(|c| c.finalizers().iter().any(|f| f == "kubernetes.io/pvc-protection")));

    // In use, a claim only waits.
    world.api::<PersistentVolumeClaim>().delete("data-db-1", &DeleteParams::default()).await.unwrap();
    world.api::<StatefulSet>().delete("db", &DeleteParams::default()).await.unwrap();
    until(&world.api::<Pod>(), "no pods", |all| all.is_empty()).await;
    until(&world.api::<PersistentVolumeClaim>(), "one claim kept", |all| {
        all.len() == 1 && all[0].name_any() == "data-db-0"
    })
    .await;
    until(&Api::<PersistentVolume>::all(world.client.clone()), "its volume gone", |all| all.len() == 1).await;
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1);
    world.api::<PersistentVolumeClaim>().delete("data-db-0", &DeleteParams::default()).await.unwrap();
    until(&Api::<PersistentVolume>::all(world.client.clone()), "no volumes", |all| all.is_empty()).await;
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why_and_goes_when_there_is_room() {
    let world = World::start().await;
    let greedy = |name: &str, cpu: &str| json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "i", "resources": { "requests": { "cpu": cpu } } }] } });
    world.create::<Pod>(greedy("big", "6")).await;
    let pods = world.api::<Pod>();
    let reason = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    until(&pods, "told why", |all| {
        all.iter().any(|p| {
            crate::pods::condition(p, "PodScheduled")
                .is_some_and(|c| c.message.as_deref() == Some(reason) && c.reason.as_deref() == Some("Unschedulable"))
        })
    })
    .await;
    until(&world.api::<Event>(), "an event", |all| {
        all.iter().any(|e| e.reason.as_deref() == Some("FailedScheduling") && e.message.as_deref() == Some(reason))
    })
    .await;
    world.create::<Pod>(greedy("small", "1")).await;
    until(&pods, "the small one runs", |all| all.iter().any(|p| p.name_any() == "small" && crate::pods::is_ready(p)))
        .await;
    world.capacity("8").await;
    until(&pods, "the big one runs", |all| all.iter().any(|p| p.name_any() == "big" && crate::pods::is_ready(p))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_furnished_and_emptied_custom_objects_included() {
    let world = World::start().await;
    let namespaces = Api::<Namespace>::all(world.client.clone());
    namespaces.create(&PostParams::default(), &object(json!({ "metadata": { "name": "team" } }))).await.unwrap();
    let accounts = Api::<ServiceAccount>::namespaced(world.client.clone(), "team");
    until(&accounts, "its account", |all| all.iter().any(|a| a.name_any() == "default")).await;
    let maps = Api::<ConfigMap>::namespaced(world.client.clone(), "team");
    until(&maps, "the authority", |all| {
        all.iter().any(|m| m.data.as_ref().is_some_and(|d| d.get("ca.crt").is_some_and(|c| c == "the authority")))
    })
    .await;

    let crds = Api::<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition>::all(
        world.client.clone(),
    );
    let crd = json!({ "metadata": { "name": "wheels.example.org" }, "spec": { "group": "example.org", "scope": "Namespaced", "names": { "plural": "wheels", "singular": "wheel", "kind": "Wheel" },
        "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }] } });
    crds.create(&PostParams::default(), &object(crd)).await.unwrap();
    until(&crds, "established", |all| {
        all.iter().any(|c| {
            c.status
                .as_ref()
                .and_then(|s| s.conditions.as_ref())
                .is_some_and(|c| c.iter().any(|c| c.type_ == "Established" && c.status == "True"))
        })
    })
    .await;
    let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("example.org", "v1", "Wheel"), "wheels");
    let wheels = Api::<DynamicObject>::namespaced_with(world.client.clone(), "team", &kind);
    let owner = maps.create(&PostParams::default(), &object(json!({ "metadata": { "name": "owner" } }))).await.unwrap();
    let owned = |name: &str, finalizers: Value| {
        json!({ "apiVersion": "example.org/v1", "kind": "Wheel", "metadata": { "name": name, "finalizers": finalizers,
        "ownerReferences": [{ "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid() }] } })
    };
    wheels.create(&PostParams::default(), &object(owned("one", json!([])))).await.unwrap();
    maps.delete("owner", &DeleteParams::default()).await.unwrap();
    until(&wheels, "collected with its owner", |all: &[DynamicObject]| all.is_empty()).await;

    let mut held = owned("held", json!(["example.org/hold"]));
    held["metadata"].as_object_mut().unwrap().remove("ownerReferences");
    wheels.create(&PostParams::default(), &object(held)).await.unwrap();
    let pods = Api::<Pod>::namespaced(world.client.clone(), "team");
    pods.create(
        &PostParams::default(),
        &object(json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } })),
    )
    .await
    .unwrap();
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    until(&namespaces, "held up", |all| {
        all.iter().any(|n| {
            let conditions = n.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
            n.name_any() == "team"
                && conditions.iter().any(|c| {
                    c.type_ == "NamespaceFinalizersRemaining"
                        && c.status == "True"
                        && c.message.as_deref().is_some_and(|m| m.contains("example.org/hold"))
                })
        })
    })
    .await;
    let free = json!({ "metadata": { "finalizers": null } });
    wheels.patch("held", &PatchParams::default(), &Patch::Merge(free)).await.unwrap();
    until(&namespaces, "gone", |all| all.iter().all(|n| n.name_any() != "team")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_run_on_the_node_and_roles_are_gathered() {
    let world = World::start().await;
    let labels = json!({ "app": "agent" });
    world.create::<DaemonSet>(json!({ "metadata": { "name": "agent" }, "spec": { "selector": { "matchLabels": labels }, "template": template(labels, "i", None) } })).await;
    until(&world.api::<DaemonSet>(), "one ready", |all| {
        all.iter().any(|s| s.status.as_ref().is_some_and(|s| s.number_ready == 1 && s.desired_number_scheduled == 1))
    })
    .await;
    let roles = Api::<ClusterRole>::all(world.client.clone());
    until(&roles, "edit shows its rules", |all| {
        all.iter().any(|r| r.name_any() == "admin" && r.rules.as_ref().is_some_and(|r| r.len() > 10))
    })
    .await;
}

/// Not a check of speed, which depends on the machine: prints what `scripts/bench` measures properly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_pods_is_bound_each_once() {
    let world = World::start().await;
    let pods = world.api::<Pod>();
    let started = std::time::Instant::now();
    let make = (0..60).map(|n| {
        let pod: Pod = object(json!({ "metadata": { "name": format!("p{n}") }, "spec": { "containers": [{ "name": "c", "image": "i" }] } }));
        let pods = pods.clone();
        async move { pods.create(&PostParams::default(), &pod).await.map(drop) }
    });
    futures::future::try_join_all(make).await.unwrap();
    until(&pods, "all run", |all| all.len() == 60 && all.iter().all(crate::pods::is_ready)).await;
    println!("60 pods from creation to running: {:?}", started.elapsed());
}
