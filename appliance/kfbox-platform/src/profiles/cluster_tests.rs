//! The Profile controller against the real API server in this process.

use crate::{Config, DefaultProfile, start};
use futures::StreamExt as _;
use k8s_openapi::api::{
    core::v1::{Namespace, ResourceQuota, ServiceAccount},
    networking::v1::NetworkPolicy,
    rbac::v1::{ClusterRole, RoleBinding},
};
use kfbox_api::{
    Profile,
    names::{self, annotation, label},
    profile::ProfileSpec,
};
use kfbox_apiserver::ApiServer;
use kfbox_base::{Readiness, Tasks, readiness::State};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::{fmt::Debug, time::Duration};

const OWNER: &str = "user@example.com";
const FIRST: &str = "kubeflow-user-example-com";

struct World {
    client: Client,
    tasks: Tasks,
    _dir: tempfile::TempDir,
}

async fn world() -> World {
    let (dir, tasks, readiness) = (tempfile::tempdir().unwrap(), Tasks::new(), Readiness::default());
    let server = ApiServer::open(kfbox_apiserver::Config::new(dir.path().join("data")), &tasks).await.unwrap();
    let client = server.client();
    let config = Config { default_profile: Some(DefaultProfile::for_user(OWNER)), ..Config::default() };
    start(client.clone(), config, &tasks, &readiness);
    let mut states = readiness.subscribe();
    let ready = states.wait_for(|all| all.iter().all(|c| c.state == State::Ready));
    tokio::time::timeout(Duration::from_secs(60), ready).await.expect("ready in time").unwrap();
    World { client, tasks, _dir: dir }
}

/// Waits, by a watch, until an object is as wanted (`None`: gone).
async fn until<K>(api: Api<K>, name: &str, wanted: impl Fn(Option<&K>) -> bool) -> Option<K>
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut stream = watcher::watch_object(api, name).default_backoff().boxed();
    let found = async {
        while let Some(state) = stream.next().await {
            if let Ok(state) = state
                && wanted(state.as_ref())
            {
                return state;
            }
        }
        panic!("the watch ended")
    };
    tokio::time::timeout(Duration::from_secs(30), found).await.unwrap_or_else(|_| panic!("{name} is not as wanted"))
}

impl World {
    fn all<K: kube::Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    fn within<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The profile once its first condition has this type; the message.
    async fn condition(&self, name: &str, type_: &str) -> String {
        let is = |p: Option<&Profile>| {
            p.and_then(|p| p.status.as_ref()).and_then(|s| s.conditions.first()).is_some_and(|c| c.type_ == type_)
        };
        let profile = until(self.all::<Profile>(), name, is).await.unwrap();
        profile.status.unwrap().conditions[0].message.clone()
    }

    async fn create(&self, name: &str, spec: serde_json::Value) {
        let spec: ProfileSpec = serde_json::from_value(spec).unwrap();
        self.all::<Profile>().create(&PostParams::default(), &Profile::new(name, spec)).await.unwrap();
    }

    async fn patch(&self, name: &str, patch: serde_json::Value) {
        let merge = Patch::Merge(patch);
        self.all::<Profile>().patch(name, &PatchParams::default(), &merge).await.unwrap();
    }

    async fn end(self) {
        self.tasks.stop();
        assert_eq!(self.tasks.drain(Duration::from_secs(20)).await, Vec::<String>::new());
    }
}

fn user(name: &str) -> serde_json::Value {
    json!({"owner": {"kind": "User", "name": name}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_profile_gets_all_it_needs_and_keeps_it() {
    let w = world().await;
    w.condition(FIRST, "Successful").await;
    let namespace = w.all::<Namespace>().get(FIRST).await.unwrap();
    assert_eq!(namespace.labels()[label::PART_OF], label::KUBEFLOW_PROFILE);
    assert_eq!(namespace.annotations()[annotation::OWNER], OWNER);
    assert_eq!(namespace.owner_references()[0].kind, "Profile");
    for name in ["default-editor", "default-viewer"] {
        w.within::<ServiceAccount>(FIRST).get(name).await.unwrap();
    }
    let owner = w.within::<RoleBinding>(FIRST).get("namespaceAdmin").await.unwrap();
    assert_eq!((owner.role_ref.name.as_str(), owner.subjects.unwrap()[0].name.as_str()), ("kubeflow-admin", OWNER));

    // The roles that the cluster aggregates are left to it.
    for role in w.all::<ClusterRole>().list(&ListParams::default()).await.unwrap() {
        let applied = role.managed_fields().iter().any(|f| f.manager.as_deref() == Some(names::FIELD_MANAGER));
        assert!(!(applied && role.aggregation_rule.is_some()), "{}", role.name_any());
    }
    for name in [names::role::ADMIN, names::role::EDIT, names::role::VIEW] {
        w.all::<ClusterRole>().get(name).await.unwrap();
    }

    // What is deleted or changed comes back.
    let first = w.within::<ServiceAccount>(FIRST).get("default-editor").await.unwrap().uid();
    w.within::<ServiceAccount>(FIRST).delete("default-editor", &DeleteParams::default()).await.unwrap();
    let made_again = |a: Option<&ServiceAccount>| a.is_some_and(|a| a.uid() != first);
    until(w.within::<ServiceAccount>(FIRST), "default-editor", made_again).await;
    let stolen = json!({"subjects": [{"kind": "User", "name": "thief", "apiGroup": "rbac.authorization.k8s.io"}]});
    let bindings = w.within::<RoleBinding>(FIRST);
    bindings.patch("namespaceAdmin", &PatchParams::default(), &Patch::Merge(stolen)).await.unwrap();
    let restored = |b: Option<&RoleBinding>| b.is_some_and(|b| b.subjects.as_ref().unwrap()[0].name == OWNER);
    until(bindings, "namespaceAdmin", restored).await;
    w.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_come_and_go_and_owners_change() {
    let w = world().await;
    let mut spec = user("a@x.org");
    spec["resourceQuotaSpec"] = json!({"hard": {"cpu": "2"}});
    w.create("team-a", spec).await;
    w.condition("team-a", "Successful").await;
    let quota = w.within::<ResourceQuota>("team-a").get("kf-resource-quota").await.unwrap();
    assert_eq!(quota.spec.unwrap().hard.unwrap()["cpu"].0, "2");
    w.patch("team-a", json!({"spec": {"resourceQuotaSpec": {"hard": {"cpu": "4", "memory": "1Gi"}}}})).await;
    let larger =
        |q: Option<&ResourceQuota>| q.is_some_and(|q| q.spec.as_ref().unwrap().hard.as_ref().unwrap()["cpu"].0 == "4");
    until(w.within::<ResourceQuota>("team-a"), "kf-resource-quota", larger).await;
    w.patch("team-a", json!({"spec": {"resourceQuotaSpec": null, "owner": {"name": "b@x.org"}}})).await;
    until(w.within::<ResourceQuota>("team-a"), "kf-resource-quota", |q| q.is_none()).await;
    let changed = |b: Option<&RoleBinding>| b.is_some_and(|b| b.subjects.as_ref().unwrap()[0].name == "b@x.org");
    until(w.within::<RoleBinding>("team-a"), "namespaceAdmin", changed).await;
    w.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_namespaces_are_left_alone_and_own_ones_go_with_the_profile() {
    let w = world().await;
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some("old-lab".into());
    w.all::<Namespace>().create(&PostParams::default(), &namespace).await.unwrap();
    w.create("old-lab", user("a@x.org")).await;
    assert!(w.condition("old-lab", "Failed").await.contains("does not belong to a@x.org"));
    w.create("kube-system", user("a@x.org")).await;
    w.condition("kube-system", "Failed").await;
    let kube_system = w.all::<Namespace>().get_opt("kube-system").await.unwrap();
    assert!(kube_system.is_none_or(|n| !n.annotations().contains_key(annotation::OWNER)));
    // Set aside by an administrator, it is taken.
    let note = json!({"metadata": {"annotations": {annotation::OWNER: "a@x.org"}}});
    w.all::<Namespace>().patch("old-lab", &PatchParams::default(), &Patch::Merge(note)).await.unwrap();
    w.patch("old-lab", json!({"metadata": {"labels": {"look": "again"}}})).await;
    w.condition("old-lab", "Successful").await;

    w.all::<Profile>().delete("kube-system", &DeleteParams::default()).await.unwrap();
    until(w.all::<Profile>(), "kube-system", |p| p.is_none()).await;
    if let Some(namespace) = w.all::<Namespace>().get_opt("kube-system").await.unwrap() {
        assert!(namespace.metadata.deletion_timestamp.is_none());
    }
    w.all::<Profile>().delete("old-lab", &DeleteParams::default()).await.unwrap();
    until(w.all::<Profile>(), "old-lab", |p| p.is_none()).await;
    let going = |n: Option<&Namespace>| n.is_none_or(|n| n.metadata.deletion_timestamp.is_some());
    until(w.all::<Namespace>(), "old-lab", going).await;
    w.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wall_comes_back_when_deleted_and_stays_as_edited() {
    let w = world().await;
    w.condition(FIRST, "Successful").await;
    let namespace = w.all::<Namespace>().get(FIRST).await.unwrap();
    assert_eq!(namespace.labels()[label::POD_SECURITY_ENFORCE], "baseline");
    let policies = w.within::<NetworkPolicy>(FIRST);
    let name = names::profile::NETWORK_POLICY;
    let first = policies.get(name).await.unwrap();
    policies.delete(name, &DeleteParams::default()).await.unwrap();
    let again = until(policies.clone(), name, |p| p.is_some_and(|p| p.uid() != first.uid())).await.unwrap();
    assert_eq!(again.spec, first.spec);

    // An administrator lets another team's pods in. The profile is looked at again, and at each change of the policy.
    let open = json!({"spec": {"ingress": [{}]}});
    let edit = PatchParams { field_manager: Some("kubectl-edit".into()), ..PatchParams::default() };
    policies.patch(name, &edit, &Patch::Merge(open)).await.unwrap();
    let mut spec = user(OWNER);
    spec["resourceQuotaSpec"] = json!({"hard": {"pods": "9"}});
    w.patch(FIRST, json!({"spec": spec})).await;
    // The quota is written after the policy was seen to.
    until(w.within::<ResourceQuota>(FIRST), "kf-resource-quota", |q| q.is_some()).await;
    let kept = policies.get(name).await.unwrap();
    assert_eq!(kept.spec.unwrap().ingress.unwrap(), [Default::default()]);

    // A level that somebody chose stays too.
    let label = json!({"metadata": {"labels": {label::POD_SECURITY_ENFORCE: "restricted"}}});
    w.all::<Namespace>().patch(FIRST, &edit, &Patch::Merge(label)).await.unwrap();
    w.patch(FIRST, json!({"spec": {"resourceQuotaSpec": null}})).await;
    until(w.within::<ResourceQuota>(FIRST), "kf-resource-quota", |q| q.is_none()).await;
    assert_eq!(w.all::<Namespace>().get(FIRST).await.unwrap().labels()[label::POD_SECURITY_ENFORCE], "restricted");
    w.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_written_as_v1beta1_is_the_same_profile() {
    let w = world().await;
    let older = ApiResource::from_gvk(&GroupVersionKind::gvk("kubeflow.org", "v1beta1", "Profile"));
    let older: Api<DynamicObject> = Api::all_with(w.client.clone(), &older);
    let written = json!({"apiVersion": "kubeflow.org/v1beta1", "kind": "Profile", "metadata": {"name": "old-team"},
        "spec": user("a@x.org")});
    older.patch("old-team", &PatchParams::apply("kubectl"), &Patch::Apply(written)).await.unwrap();
    w.condition("old-team", "Successful").await;
    let namespace = w.all::<Namespace>().get("old-team").await.unwrap();
    assert_eq!(namespace.annotations()[annotation::OWNER], "a@x.org");
    assert_eq!(namespace.owner_references()[0].api_version, "kubeflow.org/v1");
    assert_eq!(w.all::<Profile>().get("old-team").await.unwrap().spec.owner.unwrap().name, "a@x.org");
    let read = older.get("old-team").await.unwrap();
    assert_eq!(read.types.unwrap().api_version, "kubeflow.org/v1beta1");
    assert_eq!(read.data["status"]["conditions"][0]["type"], "Successful");
    w.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugins_annotation_comes_and_goes_with_it() {
    let w = world().await;
    let mut spec = user("a@x.org");
    spec["plugins"] = json!([{"kind": "WorkloadIdentity",
        "spec": {"gcpServiceAccount": "train@lab.iam.gserviceaccount.com"}}]);
    w.create("team-g", spec).await;
    w.condition("team-g", "Successful").await;
    const NOTE: &str = "iam.gke.io/gcp-service-account";
    let accounts = w.within::<ServiceAccount>("team-g");
    let marked = accounts.get("default-editor").await.unwrap();
    assert_eq!(marked.annotations()[NOTE], "train@lab.iam.gserviceaccount.com");
    assert!(!accounts.get("default-viewer").await.unwrap().annotations().contains_key(NOTE));
    // What somebody else noted stays when the plugin goes.
    let note = json!({"metadata": {"annotations": {"team": "vision"}}});
    accounts.patch("default-editor", &PatchParams::default(), &Patch::Merge(note)).await.unwrap();
    w.patch("team-g", json!({"spec": {"plugins": []}})).await;
    let plain = |a: Option<&ServiceAccount>| a.is_some_and(|a| !a.annotations().contains_key(NOTE));
    let plain = until(accounts, "default-editor", plain).await.unwrap();
    assert_eq!(plain.annotations()["team"], "vision");
    w.end().await;
}
