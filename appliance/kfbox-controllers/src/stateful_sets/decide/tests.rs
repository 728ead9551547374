//! StatefulSets played against a model of the node.

use super::*;
use crate::pods::testing::{at, object};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

fn set(replicas: i32, more: Value) -> StatefulSet {
    let mut spec = json!({ "replicas": replicas, "serviceName": "db", "selector": { "matchLabels": { "app": "db" } },
        "template": { "metadata": { "labels": { "app": "db" } }, "spec": { "containers": [{ "name": "c", "image": "one" }] } },
        "volumeClaimTemplates": [{ "metadata": { "name": "data" }, "spec": { "accessModes": ["ReadWriteOnce"] } }] });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    object(json!({ "metadata": { "name": "db", "namespace": "n", "uid": "s" }, "spec": spec }))
}

struct World {
    set: StatefulSet,
    pods: Vec<Pod>,
    revisions: Vec<Arc<ControllerRevision>>,
    claims: Vec<String>,
    log: Vec<String>,
    made: usize,
}

impl World {
    fn new(set: StatefulSet) -> Self {
        Self { set, pods: Vec::new(), revisions: Vec::new(), claims: Vec::new(), log: Vec::new(), made: 0 }
    }

    fn look(&mut self) {
        let own: Vec<Arc<Pod>> = self.pods.iter().cloned().map(Arc::new).collect();
        let revision = revisions::of(&self.set, &self.set.spec.as_ref().unwrap().template, None, &self.revisions);
        self.revisions.extend(revision.create.map(|r| Arc::new(*r)));
        let plan = decide(&self.set, &own, &revision.name, &self.revisions, at(0));
        for claim in plan.claims {
            self.claims.push(claim.metadata.name.unwrap());
        }
        for mut pod in plan.create {
            self.log.push(format!("+{}", pods::name(&pod)));
            assert!(self.pods.iter().all(|p| pods::name(p) != pods::name(&pod)));
            self.made += 1;
            pod.metadata.uid = Some(format!("u{}", self.made));
            self.pods.push(pod);
        }
        for pod in plan.delete {
            self.log.push(format!("-{}", pods::name(&pod)));
            self.pods
                .iter_mut()
                .filter(|p| p.metadata.uid == pod.metadata.uid)
                .for_each(|p| p.metadata.deletion_timestamp = Some(Time(at(0))));
        }
        self.set.status = Some(plan.status);
    }

    fn node(&mut self) {
        self.pods.retain(|p| !pods::is_deleting(p));
        for pod in &mut self.pods {
            let bad = pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("bad");
            pod.status = Some(object(
                json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": if bad { "False" } else { "True" } }] }),
            ));
        }
    }

    fn run(&mut self) -> String {
        for _ in 0..30 {
            self.look();
            self.node();
        }
        self.look();
        std::mem::take(&mut self.log).join(" ")
    }

    fn image(&mut self, image: &str) {
        self.set.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    }

    fn images(&self) -> Vec<&str> {
        let mut sorted: Vec<&Pod> = self.pods.iter().collect();
        sorted.sort_by_key(|p| pods::name(p).to_owned());
        sorted.iter().map(|p| p.spec.as_ref().unwrap().containers[0].image.as_deref().unwrap()).collect()
    }
}

#[test]
fn pods_come_in_order_and_go_in_reverse_with_their_claims_kept() {
    let mut world = World::new(set(3, json!({})));
    world.look();
    world.look();
    assert_eq!(world.log, ["+db-0"], "the second waits for the first");
    world.node();
    assert_eq!(world.run(), "+db-0 +db-1 +db-2");
    assert_eq!(world.claims, ["data-db-0", "data-db-1", "data-db-2"]);
    let pod = &world.pods[1];
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-1"), Some("db")));
    assert_eq!(spec.volumes.as_ref().unwrap()[0].persistent_volume_claim.as_ref().unwrap().claim_name, "data-db-1");
    let status = world.set.status.as_ref().unwrap();
    assert_eq!((status.replicas, status.ready_replicas, status.updated_replicas), (3, Some(3), Some(3)));
    world.set.spec.as_mut().unwrap().replicas = Some(1);
    assert_eq!(world.run(), "-db-2 -db-1");
    assert_eq!(world.set.status.as_ref().unwrap().replicas, 1);
}

#[test]
fn parallel_means_at_once() {
    let mut world = World::new(set(3, json!({ "podManagementPolicy": "Parallel", "ordinals": { "start": 5 } })));
    world.look();
    assert_eq!(world.log, ["+db-5", "+db-6", "+db-7"]);
}

#[test]
fn an_update_goes_from_the_last_one_at_a_time_down_to_the_partition() {
    let mut world = World::new(set(
        3,
        json!({ "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": 1 } } }),
    ));
    world.run();
    world.image("two");
    assert_eq!(world.run(), "-db-2 +db-2 -db-1 +db-1");
    assert_eq!(world.images(), ["one", "two", "two"]);
    let status = world.set.status.clone().unwrap();
    assert_ne!(status.current_revision, status.update_revision);
    // A pod below the partition that is lost comes back as it was.
    world.pods.retain(|p| pods::name(p) != "db-0");
    world.run();
    assert_eq!(world.images(), ["one", "two", "two"]);
    world.set.spec.as_mut().unwrap().update_strategy.as_mut().unwrap().rolling_update.as_mut().unwrap().partition =
        Some(0);
    world.run();
    assert_eq!(world.images(), ["two", "two", "two"]);
    let status = world.set.status.clone().unwrap();
    assert_eq!(status.current_revision, status.update_revision);
}

#[test]
fn a_bad_update_stops_at_its_first_pod_and_a_fix_rolls_on() {
    let mut world = World::new(set(3, json!({})));
    world.run();
    world.image("bad");
    assert_eq!(world.run(), "-db-2 +db-2");
    assert_eq!(world.images(), ["one", "one", "bad"]);
    world.image("good");
    world.run();
    assert_eq!(world.images(), ["good", "good", "good"]);
}

#[test]
fn on_delete_waits_for_people_and_failed_pods_are_replaced() {
    let mut world = World::new(set(2, json!({ "updateStrategy": { "type": "OnDelete" } })));
    world.run();
    world.image("two");
    assert_eq!(world.run(), "");
    world.pods.retain(|p| pods::name(p) != "db-1");
    assert_eq!(world.run(), "+db-1");
    assert_eq!(world.images(), ["one", "two"]);
    world.pods[0].status.as_mut().unwrap().phase = Some("Failed".into());
    assert_eq!(world.run(), "-db-0 +db-0");
}

#[test]
fn names_are_ordinals_only_in_their_one_form() {
    let set = set(1, json!({}));
    let named = |name: &str| object::<Pod>(json!({ "metadata": { "name": name } }));
    assert_eq!(ordinal(&set, &named("db-10")), Some(10));
    for other in ["db-01", "db-", "db--1", "db-x", "other-0", "db"] {
        assert_eq!(ordinal(&set, &named(other)), None, "{other}");
    }
}

#[test]
fn several_may_be_away_during_an_update() {
    let strategy = json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 2 } });
    let mut world = World::new(set(4, json!({ "podManagementPolicy": "Parallel", "updateStrategy": strategy })));
    world.run();
    world.image("two");
    world.look();
    assert_eq!(std::mem::take(&mut world.log), ["-db-3", "-db-2"]);
    world.look();
    assert!(world.log.is_empty(), "no third before one is back");
    world.run();
    assert_eq!(world.images(), ["two"; 4]);
    world.image("bad");
    world.run();
    assert_eq!(world.images(), ["two", "two", "bad", "bad"], "what does not come up holds the rest");
}
