//! Rollouts played to their end against a small model of the ReplicaSet controller.

use super::*;
use crate::{
    deployments::status,
    pods::testing::{at, object, pod},
};
use k8s_openapi::{api::apps::v1::ReplicaSetStatus, apimachinery::pkg::apis::meta::v1::Time};
use serde_json::{Value, json};

fn deployment(replicas: i32, image: &str, strategy: Value) -> Deployment {
    object(json!({
        "metadata": { "name": "web", "namespace": "n", "uid": "d", "generation": 1 },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": "web" } }, "strategy": strategy,
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": image }] } } },
    }))
}

fn rolling(surge: Value, unavailable: Value) -> Value {
    json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } })
}

/// A cluster of one Deployment: its sets, and how many of each set's pods are available.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    clock: i64,
}

impl World {
    fn new(deployment: Deployment) -> Self {
        Self { deployment, sets: Vec::new(), clock: 0 }
    }

    fn arcs(&self) -> Vec<Arc<ReplicaSet>> {
        self.sets.iter().cloned().map(Arc::new).collect()
    }

    /// One look of the controller; false when there is nothing to do.
    fn step(&mut self) -> bool {
        self.clock += 1;
        let actions = decide(&self.deployment, &self.arcs(), &[]);
        let acted = !actions.is_empty();
        for action in actions {
            match action {
                Action::Create(set) => {
                    let mut set = *set;
                    set.metadata.uid = Some(format!("uid-{}", set.metadata.name.as_deref().unwrap()));
                    set.metadata.creation_timestamp = Some(Time(at(self.clock)));
                    assert!(self.sets.iter().all(|s| s.metadata.name != set.metadata.name), "created twice");
                    self.sets.push(set);
                }
                Action::Scale { set, replicas, annotations } => {
                    let set = self.sets.iter_mut().find(|s| s.metadata.uid == set.metadata.uid).unwrap();
                    set.spec.as_mut().unwrap().replicas = Some(replicas);
                    set.metadata.annotations.get_or_insert_default().extend(annotations);
                }
                Action::Delete(set) => self.sets.retain(|s| s.metadata.uid != set.metadata.uid),
                Action::Annotate(annotations) => {
                    self.deployment.metadata.annotations.get_or_insert_default().extend(annotations);
                }
            }
        }
        acted
    }

    /// The ReplicaSet controller and the node: one more pod of one set becomes available, or surplus ones go.
    fn pods_move(&mut self) -> bool {
        for set in &mut self.sets {
            let size = replicas(set);
            let status = set.status.get_or_insert_default();
            let now = status.available_replicas.unwrap_or(0);
            if now > size || status.replicas != size {
                set.status = Some(ReplicaSetStatus {
                    replicas: size,
                    available_replicas: Some(now.min(size)),
                    ready_replicas: Some(now.min(size)),
                    ..Default::default()
                });
                return true;
            }
            if now < size {
                status.available_replicas = Some(now + 1);
                status.ready_replicas = Some(now + 1);
                return true;
            }
        }
        false
    }

    fn update_status(&mut self) {
        let (status, _) = status::of(&self.deployment, &self.arcs(), at(self.clock));
        self.deployment.status = Some(status);
    }

    fn settle(&mut self, check: impl Fn(&Self)) {
        for _ in 0..500 {
            let acted = self.step();
            self.update_status();
            check(self);
            let moved = self.pods_move();
            check(self);
            if !acted && !moved {
                self.update_status();
                // Cleaning up waits for the status.
                if !self.step() {
                    return;
                }
            }
        }
        panic!("never settled");
    }

    fn size(&self) -> i32 {
        self.sets.iter().map(replicas).sum()
    }

    fn available(&self) -> i32 {
        self.sets.iter().map(available).sum()
    }
}

fn set_image(world: &mut World, image: &str) {
    let spec = world.deployment.spec.as_mut().unwrap();
    spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    *world.deployment.metadata.generation.as_mut().unwrap() += 1;
}

#[test]
fn a_rollout_stays_within_surge_and_availability() {
    for (replicas_, surge, unavailable) in [
        (10, json!("25%"), json!("25%")),
        (4, json!(1), json!(0)),
        (3, json!(0), json!(1)),
        (1, json!("25%"), json!("25%")),
        (5, json!("100%"), json!(0)),
        (2, json!(0), json!(0)),
    ] {
        let mut world = World::new(deployment(replicas_, "one", rolling(surge.clone(), unavailable.clone())));
        world.settle(|_| ());
        assert_eq!((world.sets.len(), world.size(), world.available()), (1, replicas_, replicas_));
        let (max_surge, max_unavailable) = limits(world.deployment.spec.as_ref().unwrap());
        set_image(&mut world, "two");
        world.settle(|w| {
            assert!(w.size() <= replicas_ + max_surge, "{surge} {unavailable}: {}", w.size());
            assert!(w.available() >= replicas_ - max_unavailable, "{surge} {unavailable}: {}", w.available());
        });
        let (new, old) = split(&world.deployment, &world.arcs());
        assert_eq!((replicas(&new.unwrap()), old.iter().map(|s| replicas(s)).sum::<i32>()), (replicas_, 0));
        let status = world.deployment.status.clone().unwrap();
        assert_eq!((status.updated_replicas, status.available_replicas), (Some(replicas_), Some(replicas_)));
        let progressing = status.conditions.unwrap().into_iter().find(|c| c.type_ == "Progressing").unwrap();
        assert_eq!(
            (progressing.status.as_str(), progressing.reason.as_deref()),
            ("True", Some("NewReplicaSetAvailable"))
        );
    }
}

#[test]
fn going_back_uses_the_old_set_under_a_new_revision_and_history_is_bounded() {
    let mut first = deployment(2, "one", rolling(json!(1), json!(0)));
    first.spec.as_mut().unwrap().revision_history_limit = Some(1);
    let mut world = World::new(first);
    world.settle(|_| ());
    let one = world.sets[0].metadata.name.clone();
    assert_eq!(revision_of(&world.sets[0]), 1);
    set_image(&mut world, "two");
    world.settle(|_| ());
    set_image(&mut world, "one");
    world.settle(|_| ());
    let (new, _) = split(&world.deployment, &world.arcs());
    let new = new.unwrap();
    assert_eq!((new.metadata.name.clone(), revision_of(&new)), (one, 3));
    assert_eq!(world.deployment.metadata.annotations.as_ref().unwrap()[REVISION], "3");
    set_image(&mut world, "three");
    world.settle(|_| ());
    assert_eq!(world.sets.len(), 2, "one old set is kept");
    let kept: Vec<i64> = world.sets.iter().map(revision_of).collect();
    assert_eq!(kept, [3, 4]);
}

#[test]
fn a_bad_image_stops_the_rollout_and_the_deadline_tells() {
    let mut world = World::new(deployment(4, "one", rolling(json!(1), json!(1))));
    world.settle(|_| ());
    set_image(&mut world, "broken");
    for _ in 0..50 {
        world.step();
        for set in &mut world.sets {
            let size = replicas(set);
            let status = set.status.get_or_insert_default();
            status.replicas = size;
            let good = set.spec.as_ref().unwrap().template.as_ref().unwrap().spec.as_ref().unwrap().containers[0]
                .image
                .as_deref()
                == Some("one");
            status.available_replicas = Some(if good { size } else { 0 });
        }
        world.update_status();
    }
    assert_eq!(world.available(), 3);
    assert_eq!(world.size(), 5);
    let (status, again) = status::of(&world.deployment, &world.arcs(), at(world.clock));
    assert!(again.is_some());
    assert!(status.conditions.unwrap().iter().any(|c| c.type_ == "Progressing" && c.status == "True"));
    let (status, again) = status::of(&world.deployment, &world.arcs(), at(world.clock + 700));
    assert!(again.is_none());
    let conditions = status.conditions.unwrap();
    let progressing = conditions.iter().find(|c| c.type_ == "Progressing").unwrap();
    assert_eq!(
        (progressing.status.as_str(), progressing.reason.as_deref()),
        ("False", Some("ProgressDeadlineExceeded"))
    );
    assert!(conditions.iter().any(|c| c.type_ == "Available" && c.status == "True"));
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut world = World::new(deployment(2, "one", json!({ "type": "Recreate" })));
    world.settle(|_| ());
    let old_uid = world.sets[0].metadata.uid.clone().unwrap();
    set_image(&mut world, "two");
    let running = [Arc::new(pod("p", &old_uid, json!({ "app": "web" }), "Running", true))];
    let actions = decide(&world.deployment, &world.arcs(), &running);
    assert!(actions.iter().any(|a| matches!(a, Action::Scale { replicas: 0, .. })));
    assert!(!actions.iter().any(|a| matches!(a, Action::Create(_))));
    world.sets[0].spec.as_mut().unwrap().replicas = Some(0);
    assert!(!decide(&world.deployment, &world.arcs(), &running).iter().any(|a| matches!(a, Action::Create(_))));
    assert!(decide(&world.deployment, &world.arcs(), &[]).iter().any(|a| matches!(a, Action::Create(_))));
}

#[test]
fn paused_means_resized_at_most() {
    let mut world = World::new(deployment(3, "one", rolling(json!(1), json!(0))));
    world.settle(|_| ());
    world.deployment.spec.as_mut().unwrap().paused = Some(true);
    set_image(&mut world, "two");
    assert_eq!(decide(&world.deployment, &world.arcs(), &[]), []);
    world.deployment.spec.as_mut().unwrap().replicas = Some(5);
    world.settle(|_| ());
    assert_eq!((world.sets.len(), world.size()), (1, 5));
    world.deployment.spec.as_mut().unwrap().paused = Some(false);
    world.settle(|_| ());
    assert_eq!((world.sets.len(), world.size()), (2, 5));
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    let mut world = World::new(deployment(10, "one", rolling(json!(3), json!(2))));
    world.settle(|_| ());
    set_image(&mut world, "two");
    for _ in 0..4 {
        world.step();
        world.pods_move();
    }
    assert!(world.sets.iter().all(|s| replicas(s) > 0));
    world.deployment.spec.as_mut().unwrap().replicas = Some(20);
    world.step();
    assert_eq!(world.size(), 23);
    assert!(world.sets.iter().all(|s| replicas(s) > 0), "both grew");
    world.settle(|_| ());
    assert_eq!(world.size(), 20);
    world.deployment.spec.as_mut().unwrap().replicas = Some(0);
    world.settle(|_| ());
    assert_eq!(world.size(), 0);
}

#[test]
fn percentages_round_towards_availability() {
    let p = |s: &str| IntOrString::String(s.into());
    assert_eq!(share(&p("25%"), 10, true), 3);
    assert_eq!(share(&p("25%"), 10, false), 2);
    assert_eq!(share(&p("nonsense"), 10, true), 0);
    assert_eq!(share(&IntOrString::Int(-3), 10, true), 0);
}
