//! The definitions of snapshots, the class that people get who name none, and who may use them.

use crate::{LOCAL_PATH_PROVISIONER, write};
use k8s_openapi::{
    api::rbac::v1::ClusterRole, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kfbox_api::{
    names::{FIELD_MANAGER, label::MANAGED_BY},
    snapshots::{self, GROUP, VolumeSnapshotClass, annotation},
};
use kube::{
    Api, Client, Resource,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::wait::{await_condition, conditions::is_crd_established},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use std::{collections::BTreeMap, fmt::Debug, time::Duration};

const RETRY: Duration = Duration::from_secs(5);
/// As the storage class of the box.
const CLASS: &str = "standard";

/// Returns when the kinds are served.
pub async fn run(client: &Client) {
    while let Err(error) = install(client).await {
        tracing::warn!(%error, "the definitions of snapshots cannot be installed; trying again");
        tokio::time::sleep(RETRY).await;
    }
}

async fn install(client: &Client) -> Result<(), kube::Error> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in snapshots::crds() {
        let name = definition.metadata.name.clone().unwrap_or_default();
        let found = definitions.get_opt(&name).await?;
        let foreign = found.is_some_and(|found| {
            found.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).is_none_or(|by| by != FIELD_MANAGER)
        });
        if !foreign {
            apply(&definitions, &definition).await?;
        }
        if let Err(error) = await_condition(definitions.clone(), &name, is_crd_established()).await {
            tracing::warn!(%error, name, "whether a definition is served cannot be watched");
        }
    }
    for role in roles() {
        apply(&Api::<ClusterRole>::all(client.clone()), &role).await?;
    }
    let mut class = VolumeSnapshotClass::new(ObjectMeta {
        name: Some(CLASS.into()),
        annotations: Some([(annotation::DEFAULT_CLASS.to_owned(), "true".to_owned())].into()),
        ..ObjectMeta::default()
    });
    class.driver = LOCAL_PATH_PROVISIONER.into();
    class.deletion_policy = "Delete".into();
    // People may have changed it.
    match Api::<VolumeSnapshotClass>::all(client.clone()).create(&PostParams::default(), &class).await {
        Err(error) if !write::is_exists(&error) => Err(error),
        _ => Ok(()),
    }
}

async fn apply<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(object.meta().name.as_deref().unwrap_or_default(), &params, &Patch::Apply(object)).await.map(drop)
}

/// Who may do what with claims in a namespace may do it with their snapshots. Contents and classes are the administrator's;
/// classes are shown to all who can see snapshots, as storage classes are.
fn roles() -> [ClusterRole; 2] {
    let role = |name: &str, into: [&str; 2], rules: serde_json::Value| {
        let labels: BTreeMap<String, String> = [
            (format!("rbac.authorization.k8s.io/aggregate-to-{}", into[0]), "true".to_owned()),
            (format!("rbac.authorization.kubeflow.org/aggregate-to-{}", into[1]), "true".to_owned()),
            (MANAGED_BY.to_owned(), FIELD_MANAGER.to_owned()),
        ]
        .into();
        let value = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": name, "labels": labels }, "rules": rules,
        });
        serde_json::from_value(value).unwrap_or_else(|e| unreachable!("a role of our own: {e}"))
    };
    let rule =
        |resources: &[&str], verbs: &[&str]| json!({ "apiGroups": [GROUP], "resources": resources, "verbs": verbs });
    let change = ["create", "delete", "deletecollection", "patch", "update"];
    let see = ["get", "list", "watch"];
    [
        role("kfbox-snapshots-edit", ["edit", "kubeflow-edit"], json!([rule(&["volumesnapshots"], &change)])),
        role(
            "kfbox-snapshots-view",
            ["view", "kubeflow-view"],
            json!([rule(&["volumesnapshots", "volumesnapshotclasses"], &see)]),
        ),
    ]
}
