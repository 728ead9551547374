//! Watchers in both ways of beginning, reflectors, conditions, discovery.

use super::client;
use futures::{Stream, TryStreamExt as _, future, pin_mut};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node};
use kfbox_tests::{Space, TestBox};
use kube::{
    Api, ResourceExt as _,
    api::{
        DeleteParams, DynamicObject, GroupVersionKind, ListParams, ObjectMeta, PartialObjectMeta, Patch, PatchParams,
        PostParams,
    },
    discovery::{Discovery, Scope, verbs},
    runtime::{
        WatchStreamExt as _, reflector,
        wait::{await_condition, conditions},
        watcher::{self, Event},
    },
};
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};

const LIMIT: Duration = Duration::from_secs(60);

fn map(name: &str, value: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: Some(BTreeMap::from([("kept".into(), "yes".into())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([("v".into(), value.into())])),
        ..ConfigMap::default()
    }
}

/// What a watcher knows once it has seen `last`.
async fn follow(
    events: impl Stream<Item = watcher::Result<Event<ConfigMap>>>,
    last: &str,
) -> anyhow::Result<BTreeMap<String, String>> {
    let value = |map: &ConfigMap| map.data.as_ref().and_then(|d| d.get("v")).cloned().unwrap_or_default();
    pin_mut!(events);
    let (mut known, mut initial, mut done) = (BTreeMap::new(), BTreeMap::new(), false);
    while let Some(event) = events.try_next().await? {
        match event {
            Event::Init => initial.clear(),
            Event::InitApply(map) => drop(initial.insert(map.name_any(), value(&map))),
            Event::InitDone => {
                known = std::mem::take(&mut initial);
                done = true;
            }
            Event::Apply(map) => {
                anyhow::ensure!(done, "a change came before the first state was whole");
                known.insert(map.name_any(), value(&map));
            }
            Event::Delete(map) => drop(known.remove(&map.name_any())),
        }
        if done && known.contains_key(last) {
            return Ok(known);
        }
    }
    anyhow::bail!("the watch ended")
}

#[tokio::test]
async fn kube_rs_watchers_and_a_reflector_agree_with_the_server() -> anyhow::Result<()> {
    let space = Space::new(&TestBox::shared()?, "kubers")?;
    let client = client(&space).await?;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    for n in 0..20 {
        maps.create(&PostParams::default(), &map(&format!("m-{n}"), "0")).await?;
    }
    let config = watcher::Config::default().labels("kept=yes");
    let listing = watcher::watcher(maps.clone(), config.clone().page_size(7));
    let streaming = watcher::watcher(maps.clone(), config.clone().streaming_lists());
    let (store, writer) = reflector::store();
    let reflected = reflector(writer, watcher::watcher(maps.clone(), config.clone().streaming_lists()));
    let names: Api<PartialObjectMeta<ConfigMap>> = Api::default_namespaced(client);
    let names = watcher::watcher(names, config).applied_objects();

    let write = async {
        for n in 0..60 {
            let name = format!("m-{}", n % 25);
            if n % 9 == 8 {
                maps.delete(&name, &DeleteParams::default()).await?;
            } else {
                let patch = map(&name, &n.to_string());
                maps.patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(&patch)).await?;
            }
        }
        maps.create(&PostParams::default(), &map("z-last", "end")).await?;
        anyhow::Ok(())
    };
    let names = async {
        pin_mut!(names);
        while let Some(object) = names.try_next().await? {
            if object.name_any() == "z-last" {
                return anyhow::Ok(());
            }
        }
        anyhow::bail!("the watch of metadata ended")
    };
    let everything = future::try_join5(
        write,
        follow(listing, "z-last"),
        follow(streaming, "z-last"),
        follow(reflected, "z-last"),
        names,
    );
    let ((), listed, streamed, reflected, ()) = tokio::time::timeout(LIMIT, everything).await??;
    let now: BTreeMap<String, String> = maps
        .list(&ListParams::default().labels("kept=yes"))
        .await?
        .into_iter()
        .map(|m| (m.name_any(), m.data.unwrap_or_default().remove("v").unwrap_or_default()))
        .collect();
    assert_eq!((&listed, &streamed, &reflected), (&now, &now, &now));
    assert_eq!(store.len(), now.len());
    Ok(())
}

#[tokio::test]
async fn kube_rs_awaits_conditions_and_sees_conflicts() -> anyhow::Result<()> {
    let space = Space::new(&TestBox::shared()?, "kuberscond")?;
    let client = client(&space).await?;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let apply = |manager: &str| PatchParams::apply(manager);
    let says =
        |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"v": value}});
    let made = maps.patch("c", &apply("one"), &Patch::Apply(says("1"))).await?;
    let Err(kube::Error::Api(conflict)) = maps.patch("c", &apply("two"), &Patch::Apply(says("2"))).await else {
        anyhow::bail!("another's field was taken without force")
    };
    assert_eq!((conflict.code, conflict.reason.as_str()), (409, "Conflict"));
    let causes = conflict.details.clone().map(|d| d.causes).unwrap_or_default();
    assert_eq!(
        causes.iter().map(|c| (c.reason.as_str(), c.field.as_str())).collect::<Vec<_>>(),
        [("FieldManagerConflict", ".data.v")]
    );
    let forced = maps.patch("c", &apply("two").force(), &Patch::Apply(says("2"))).await?;
    assert!(forced.managed_fields().iter().all(|m| m.manager.as_deref() != Some("one")));
    let again = maps.patch("c", &apply("two"), &Patch::Apply(says("2"))).await?;
    assert_eq!(again.resource_version(), forced.resource_version(), "the same apply again is no change");
    let stale = maps.replace("c", &PostParams::default(), &made).await;
    assert!(matches!(&stale, Err(kube::Error::Api(s)) if s.code == 409), "{stale:?}");
    let dry = maps.patch("c", &apply("two").dry_run(), &Patch::Apply(says("3"))).await?;
    assert_eq!(dry.data.unwrap_or_default()["v"], "3");

    let uid = forced.uid().unwrap_or_default();
    let gone = await_condition(maps.clone(), "c", conditions::is_deleted(&uid));
    let delete = async { anyhow::Ok(maps.delete("c", &DeleteParams::default()).await.map(drop)?) };
    let (gone, deleted) = tokio::time::timeout(LIMIT, future::join(gone, delete)).await?;
    gone?;
    deleted?;
    Ok(())
}

#[tokio::test]
async fn kube_rs_discovers_and_lists_every_kind() -> anyhow::Result<()> {
    let space = Space::new(&TestBox::shared()?, "kubersdisc")?;
    let client = client(&space).await?;
    let version = client.apiserver_version().await?;
    assert_eq!(version.major, "1");
    for aggregated in [false, true] {
        let discovery = Discovery::new(client.clone());
        let discovery = if aggregated { discovery.run_aggregated().await? } else { discovery.run().await? };
        let (deployments, capabilities) = discovery
            .resolve_gvk(&GroupVersionKind::gvk("apps", "v1", "Deployment"))
            .ok_or_else(|| anyhow::anyhow!("no Deployment was discovered"))?;
        assert_eq!((deployments.plural.as_str(), capabilities.scope == Scope::Namespaced), ("deployments", true));
        assert!(capabilities.supports_operation(verbs::WATCH));
        assert!(capabilities.subresources.iter().any(|(r, _)| r.plural == "scale"));
        let mut listed = 0;
        // Usage is measured when it is asked for: its lists have no revision, upstream's neither.
        for group in discovery.groups().filter(|group| group.name() != "metrics.k8s.io") {
            for (resource, capabilities) in group.recommended_resources() {
                if !capabilities.supports_operation(verbs::LIST) {
                    continue;
                }
                let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
                let list = objects.list_metadata(&ListParams::default().limit(1)).await?;
                assert!(list.metadata.resource_version.is_some(), "{}", resource.plural);
                listed += 1;
            }
        }
        assert!(listed > 30, "only {listed} kinds can be listed");
    }
    let nodes: Api<Node> = Api::all(client.clone());
    assert_eq!(nodes.list(&ListParams::default()).await?.items.len(), 1);
    let namespaces: Api<Namespace> = Api::all(client);
    assert!(namespaces.get_metadata_opt("kube-system").await?.is_some());
    Ok(())
}
