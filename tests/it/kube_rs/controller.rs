//! A controller as operators are written: a definition from a derive, owned objects by server-side apply, status, a
//! finalizer.

use super::client;
use futures::{StreamExt as _, future};
use k8s_openapi::{
    api::core::v1::ConfigMap, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kfbox_tests::{Space, TestBox};
use kube::{
    Api, Client, CustomResource, CustomResourceExt as _, Resource as _, ResourceExt as _,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{
        Controller,
        controller::Action,
        finalizer::{self, finalizer},
        wait::{await_condition, conditions},
        watcher,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

const LIMIT: Duration = Duration::from_secs(60);
const FINALIZER: &str = "kube-rs.kfbox.test/cleanup";

/// What a basket is to hold.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "kube-rs.kfbox.test",
    version = "v1",
    kind = "Basket",
    namespaced,
    status = "BasketStatus",
    shortname = "bsk",
    validation = "self.metadata.name != 'forbidden'",
    printcolumn = r#"{"name": "Items", "type": "integer", "jsonPath": ".status.items"}"#
)]
struct BasketSpec {
    #[schemars(length(max = 5))]
    items: Vec<String>,
    #[serde(default = "wicker")]
    material: String,
}

fn wicker() -> String {
    "wicker".into()
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct BasketStatus {
    items: usize,
    observed_generation: i64,
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Kube(#[from] kube::Error),
    #[error(transparent)]
    Finalizer(#[from] Box<finalizer::Error<kube::Error>>),
}

async fn reconcile(basket: Arc<Basket>, client: Arc<Client>) -> Result<Action, Failed> {
    let client = (*client).clone();
    let namespace = basket.namespace().unwrap_or_default();
    let baskets: Api<Basket> = Api::namespaced(client.clone(), &namespace);
    let outcome = finalizer(&baskets, FINALIZER, basket, |event| async {
        match event {
            finalizer::Event::Apply(basket) => fill(&client, &basket).await,
            finalizer::Event::Cleanup(basket) => remember(&client, &basket).await,
        }
    });
    outcome.await.map_err(|error| Failed::Finalizer(Box::new(error)))
}

/// The basket's items in an owned ConfigMap, and the count in the status.
async fn fill(client: &Client, basket: &Basket) -> kube::Result<Action> {
    let namespace = basket.namespace().unwrap_or_default();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let owned = ConfigMap {
        metadata: ObjectMeta {
            name: Some(basket.name_any()),
            owner_references: basket.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(basket.spec.items.iter().map(|item| (item.clone(), basket.spec.material.clone())).collect()),
        ..ConfigMap::default()
    };
    maps.patch(&basket.name_any(), &PatchParams::apply("baskets").force(), &Patch::Apply(&owned)).await?;
    let status = BasketStatus {
        items: basket.spec.items.len(),
        observed_generation: basket.metadata.generation.unwrap_or_default(),
    };
    let baskets: Api<Basket> = Api::namespaced(client.clone(), &namespace);
    baskets
        .patch_status(&basket.name_any(), &PatchParams::default(), &Patch::Merge(json!({ "status": status })))
        .await?;
    Ok(Action::await_change())
}

async fn remember(client: &Client, basket: &Basket) -> kube::Result<Action> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &basket.namespace().unwrap_or_default());
    let note =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("{}-was", basket.name_any())}});
    maps.patch(&format!("{}-was", basket.name_any()), &PatchParams::apply("baskets"), &Patch::Apply(note)).await?;
    Ok(Action::await_change())
}

#[tokio::test]
async fn kube_rs_controller_keeps_what_it_owns() -> anyhow::Result<()> {
    let space = Space::new(&TestBox::shared()?, "kubersctl")?;
    let client = client(&space).await?;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = "baskets.kube-rs.kfbox.test";
    space.goes_too(format!("crd/{name}"));
    definitions.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(Basket::crd())).await?;
    let established = await_condition(definitions.clone(), name, conditions::is_crd_established());
    tokio::time::timeout(LIMIT, established).await??;

    let baskets: Api<Basket> = Api::default_namespaced(client.clone());
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let config = watcher::Config::default().streaming_lists();
    let controller = Controller::new(baskets.clone(), config.clone())
        .owns(maps.clone(), watcher::Config::default())
        .graceful_shutdown_on(async { drop(stopped.await) })
        .run(reconcile, |_, _, _| Action::requeue(Duration::from_millis(200)), Arc::new(client.clone()))
        .for_each(|_| future::ready(()));
    let story = async {
        let result = live(&baskets, &maps).await;
        drop(stop);
        result
    };
    let ((), result) = tokio::time::timeout(2 * LIMIT, future::join(controller, story)).await?;
    result
}

/// What a user of the controller sees.
async fn live(baskets: &Api<Basket>, maps: &Api<ConfigMap>) -> anyhow::Result<()> {
    let make = |name: &str, items: &[&str]| {
        let items = items.iter().map(|i| (*i).to_owned()).collect();
        Basket::new(name, BasketSpec { items, material: wicker() })
    };
    let holds = |items: &'static [&'static str], material: &'static str| {
        move |map: Option<&ConfigMap>| {
            let wanted: BTreeMap<String, String> = items.iter().map(|i| ((*i).into(), material.into())).collect();
            map.is_some_and(|map| map.data.clone().unwrap_or_default() == wanted)
        }
    };
    for (name, items) in [("forbidden", &["a"][..]), ("full", &["1", "2", "3", "4", "5", "6"])] {
        let refused = baskets.create(&PostParams::default(), &make(name, items)).await;
        assert!(matches!(&refused, Err(kube::Error::Api(s)) if s.code == 422 && s.reason == "Invalid"), "{refused:?}");
    }
    let made = baskets.create(&PostParams::default(), &make("b", &["apple", "pear"])).await?;
    await_condition(maps.clone(), "b", holds(&["apple", "pear"], "wicker")).await?;

    // What the controller owns comes back, and follows the specification.
    let uid = maps.get("b").await?.uid().unwrap_or_default();
    maps.delete("b", &DeleteParams::default()).await?;
    await_condition(maps.clone(), "b", |map: Option<&ConfigMap>| map.is_some_and(|m| m.uid().as_ref() != Some(&uid)))
        .await?;
    let tampered = json!({"data": {"apple": "plastic"}});
    maps.patch("b", &PatchParams::default(), &Patch::Merge(tampered)).await?;
    await_condition(maps.clone(), "b", holds(&["apple", "pear"], "wicker")).await?;
    let change = json!({"spec": {"items": ["plum"], "material": "tin"}});
    let changed = baskets.patch("b", &PatchParams::default(), &Patch::Merge(change)).await?;
    await_condition(maps.clone(), "b", holds(&["plum"], "tin")).await?;
    let generation = changed.metadata.generation.unwrap_or_default();
    assert!(generation > made.metadata.generation.unwrap_or_default());
    let told = |basket: Option<&Basket>| {
        basket.and_then(|b| b.status.as_ref()).is_some_and(|s| s.items == 1 && s.observed_generation == generation)
    };
    await_condition(baskets.clone(), "b", told).await?;

    // The end: the finalizer first, then the owned object by the collector.
    let (basket, owned) = (baskets.get("b").await?, maps.get("b").await?);
    assert_eq!(basket.finalizers(), [FINALIZER]);
    baskets.delete("b", &DeleteParams::default()).await?;
    await_condition(baskets.clone(), "b", conditions::is_deleted(&basket.uid().unwrap_or_default())).await?;
    await_condition(maps.clone(), "b", conditions::is_deleted(&owned.uid().unwrap_or_default())).await?;
    maps.get("b-was").await?;
    Ok(())
}
