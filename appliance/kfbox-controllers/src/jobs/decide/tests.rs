//! Jobs played to their end against a model of the node, with a crash possible after every write.

use super::*;
use crate::pods::testing::{at, object};
use serde_json::{Value, json};

fn job(spec: Value) -> Job {
    let mut spec = spec;
    spec["template"] =
        json!({ "spec": { "restartPolicy": "Never", "containers": [{ "name": "main", "image": "i" }] } });
    object(json!({ "metadata": { "name": "sum", "namespace": "n", "uid": "j1" }, "spec": spec }))
}

struct World {
    job: Job,
    pods: Vec<Pod>,
    clock: i64,
    made: usize,
    /// The node ends its pods while the controller looks.
    racing: bool,
}

impl World {
    fn new(spec: Value) -> Self {
        Self { job: job(spec), pods: Vec::new(), clock: 0, made: 0, racing: false }
    }

    fn arcs(&self) -> Vec<Arc<Pod>> {
        self.pods.iter().cloned().map(Arc::new).collect()
    }

    /// One look, in the order of the controller's writes. `stop_after` is a crash: nothing later is written.
    fn look(&mut self, stop_after: usize) {
        self.clock += 1;
        if finished_at(&self.job).is_some() {
            self.pods.iter_mut().for_each(drop_tracking);
            return;
        }
        let mut writes = 0;
        let mut may = || {
            writes += 1;
            writes <= stop_after
        };
        if let Some(status) = track(&self.job, &self.arcs()) {
            if !may() {
                return;
            }
            self.job.status = Some(status);
        }
        for pod in noted(&self.job, &self.arcs()) {
            if !may() {
                return;
            }
            self.pods.iter_mut().filter(|p| p.metadata.uid == pod.metadata.uid).for_each(drop_tracking);
        }
        if self.racing && self.clock % 2 == 0 {
            self.node("Succeeded");
        }
        let all = self.arcs();
        let mut plan = decide(&self.job, &all, &all, at(self.clock));
        for pod in &plan.delete {
            if !may() {
                return;
            }
            let uid = &pod.metadata.uid;
            // Graceful: it is marked, and the node ends it.
            for pod in self.pods.iter_mut().filter(|p| p.metadata.uid == *uid) {
                pod.metadata.deletion_timestamp = Some(Time(at(self.clock)));
            }
        }
        for pod in &plan.create {
            if !may() {
                return;
            }
            assert!(self.pods.iter().all(|p| p.metadata.name != pod.metadata.name), "a pod was made twice");
            let mut pod = pod.clone();
            self.made += 1;
            pod.metadata.uid = Some(format!("pod-{}", self.made));
            pod.metadata.creation_timestamp = Some(Time(at(self.clock)));
            self.pods.push(pod);
            plan.status.active = Some(plan.status.active.unwrap_or(0) + 1);
        }
        if may() {
            self.job.status = Some(plan.status);
        }
    }

    fn end(&mut self, name_or_index: usize, phase: &str, code: i32) {
        let at = at(self.clock).to_string();
        let pod = &mut self.pods[name_or_index];
        pod.status = Some(object(
            json!({ "phase": phase, "containerStatuses": [{ "name": "main", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "terminated": { "exitCode": code, "finishedAt": at } } }] }),
        ));
    }

    /// The node: ends deleted pods, and all that run with the given phase.
    fn node(&mut self, phase: &str) {
        for n in 0..self.pods.len() {
            if pods::is_active(&self.pods[n]) {
                self.end(n, phase, i32::from(phase == "Failed"));
            } else if pods::is_deleting(&self.pods[n]) && !pods::is_finished(&self.pods[n]) {
                self.end(n, "Failed", 137);
            }
        }
        self.pods.retain(|p| !pods::is_deleting(p) || tracked(p));
    }

    fn active(&self) -> usize {
        self.pods.iter().filter(|p| pods::is_active(p)).count()
    }

    fn status(&self) -> JobStatus {
        self.job.status.clone().unwrap_or_default()
    }

    fn ended(&self) -> Option<(String, String)> {
        let conditions = self.status().conditions.unwrap_or_default();
        let end = conditions.iter().find(|c| (c.type_ == "Complete" || c.type_ == "Failed") && c.status == "True")?;
        Some((end.type_.clone(), end.reason.clone().unwrap_or_default()))
    }

    fn reason(&self) -> String {
        self.ended().map(|(kind, reason)| format!("{kind}: {reason}")).unwrap_or_default()
    }
}

fn drop_tracking(pod: &mut Pod) {
    if let Some(finalizers) = &mut pod.metadata.finalizers {
        finalizers.retain(|f| f != TRACKING);
    }
}

const NEVER: usize = usize::MAX;

#[test]
fn completions_are_reached_within_parallelism() {
    let mut world = World::new(json!({ "completions": 5, "parallelism": 2 }));
    for _ in 0..20 {
        world.look(NEVER);
        assert!(world.active() <= 2);
        world.node("Succeeded");
    }
    assert_eq!(world.reason(), "Complete: CompletionsReached");
    assert_eq!(
        (world.made, world.status().succeeded, world.status().active, world.status().failed),
        (5, Some(5), None, None)
    );
    assert!(world.status().completion_time.is_some());
    assert!(world.pods.iter().all(|p| !tracked(p)));
}

#[test]
fn a_crash_after_any_write_counts_nothing_twice_and_makes_no_pod_too_many() {
    for mode in ["NonIndexed", "Indexed"] {
        for crash in 0..12 {
            for first in 0..6 {
                let mut world = World::new(json!({ "completions": 4, "parallelism": 3, "completionMode": mode }));
                world.racing = crash % 3 == 0;
                for round in 0..60 {
                    world.look(if round >= first && round % 2 == 0 && round < first + 6 { crash } else { NEVER });
                    assert!(world.active() <= 3);
                    if round % 3 == 2 {
                        world.node("Succeeded");
                        // A user tidies up what is no longer needed.
                        world.pods.retain(|p| tracked(p) || !pods::is_finished(p));
                    }
                }
                assert_eq!(world.reason(), "Complete: CompletionsReached", "{mode} {crash} {first}");
                assert_eq!((world.made, world.status().succeeded), (4, Some(4)), "{mode} {crash} {first}");
            }
        }
    }
}

#[test]
fn failures_are_tried_again_with_pauses_until_the_limit() {
    let mut world = World::new(json!({ "backoffLimit": 2 }));
    let mut starts = Vec::new();
    for _ in 0..200 {
        let before = world.made;
        world.look(NEVER);
        if world.made > before {
            starts.push(world.clock);
        }
        world.node("Failed");
    }
    assert_eq!(world.reason(), "Failed: BackoffLimitExceeded");
    assert_eq!((world.made, world.status().failed), (3, Some(3)));
    assert!((10..=12).contains(&(starts[1] - starts[0])), "{starts:?}");
    assert!((20..=22).contains(&(starts[2] - starts[1])), "{starts:?}");
}

#[test]
fn a_deadline_stops_what_runs_and_waits_for_it() {
    let mut world = World::new(json!({ "activeDeadlineSeconds": 5, "parallelism": 2, "completions": 2 }));
    for _ in 0..10 {
        world.look(NEVER);
    }
    assert!(world.pods.iter().all(pods::is_deleting));
    assert!(world.status().conditions.unwrap().iter().any(|c| c.type_ == "FailureTarget"));
    assert_eq!(world.ended(), None, "the pods still run");
    for _ in 0..3 {
        world.node("Running");
        world.look(NEVER);
    }
    assert_eq!(world.reason(), "Failed: DeadlineExceeded");
}

#[test]
fn suspended_means_no_pods_and_a_new_start() {
    let mut world = World::new(json!({ "suspend": true, "completions": 1 }));
    world.look(NEVER);
    assert_eq!((world.made, world.status().start_time.is_none()), (0, true));
    world.job.spec.as_mut().unwrap().suspend = Some(false);
    world.look(NEVER);
    assert_eq!(world.made, 1);
    let started = world.status().start_time.unwrap();
    world.job.spec.as_mut().unwrap().suspend = Some(true);
    world.look(NEVER);
    world.node("Running");
    world.look(NEVER);
    assert_eq!((world.active(), world.status().failed), (0, Some(1)));
    world.job.spec.as_mut().unwrap().suspend = Some(false);
    for _ in 0..15 {
        world.look(NEVER);
    }
    assert_eq!(world.active(), 1);
    assert!(world.status().start_time.unwrap().0 > started.0);
    world.node("Succeeded");
    world.look(NEVER);
    world.look(NEVER);
    assert_eq!(world.reason(), "Complete: CompletionsReached");
}

#[test]
fn each_index_is_done_once_and_knows_itself() {
    let mut world = World::new(json!({ "completions": 3, "parallelism": 3, "completionMode": "Indexed" }));
    world.look(NEVER);
    let pod = &world.pods[1];
    assert_eq!(pod.metadata.annotations.as_ref().unwrap()[INDEX], "1");
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.hostname.as_deref(), Some("sum-1"));
    assert_eq!(spec.containers[0].env.as_ref().unwrap()[0].name, "JOB_COMPLETION_INDEX");
    world.end(0, "Succeeded", 0);
    world.end(1, "Failed", 1);
    world.end(2, "Succeeded", 0);
    for _ in 0..15 {
        world.look(NEVER);
    }
    assert_eq!(world.status().completed_indexes.as_deref(), Some("0,2"));
    let again: Vec<_> = world.pods.iter().filter(|p| pods::is_active(p)).filter_map(index_of).collect();
    assert_eq!(again, [1]);
    world.node("Succeeded");
    world.look(NEVER);
    world.look(NEVER);
    assert_eq!((world.reason().as_str(), world.status().succeeded), ("Complete: CompletionsReached", Some(3)));
}

#[test]
fn an_index_has_its_own_limit() {
    let mut world = World::new(
        json!({ "completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1 }),
    );
    for _ in 0..120 {
        world.look(NEVER);
        for n in 0..world.pods.len() {
            if pods::is_active(&world.pods[n]) {
                let good = index_of(&world.pods[n]) == Some(0);
                world.end(n, if good { "Succeeded" } else { "Failed" }, i32::from(!good));
            }
        }
    }
    assert_eq!(world.reason(), "Failed: FailedIndexes");
    assert_eq!(
        (world.status().completed_indexes.as_deref(), world.status().failed_indexes.as_deref()),
        (Some("0"), Some("1"))
    );
    assert_eq!(world.made, 3);
}

#[test]
fn a_policy_ignores_or_fails_at_once() {
    let policy = json!({ "rules": [
        { "action": "FailJob", "onExitCodes": { "operator": "In", "values": [42] } },
        { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
    ]});
    let mut world = World::new(json!({ "backoffLimit": 0, "podFailurePolicy": policy }));
    world.look(NEVER);
    world.end(0, "Failed", 1);
    world.pods[0].status.as_mut().unwrap().conditions =
        Some(vec![object(json!({ "type": "DisruptionTarget", "status": "True" }))]);
    for _ in 0..15 {
        world.look(NEVER);
    }
    assert_eq!((world.ended(), world.active(), world.status().failed), (None, 1, None));
    assert!(!tracked(&world.pods[0]));
    world.end(1, "Failed", 42);
    for _ in 0..3 {
        world.look(NEVER);
    }
    assert_eq!(world.reason(), "Failed: PodFailurePolicy");
}

#[test]
fn enough_success_ends_the_rest() {
    let mut world = World::new(
        json!({ "completions": 3, "parallelism": 3, "completionMode": "Indexed", "successPolicy": { "rules": [{ "succeededIndexes": "0" }] } }),
    );
    world.look(NEVER);
    world.end(0, "Succeeded", 0);
    for _ in 0..4 {
        world.look(NEVER);
        world.node("Running");
    }
    world.look(NEVER);
    assert_eq!(world.reason(), "Complete: SuccessPolicy");
    assert_eq!(world.status().succeeded, Some(1));
}

#[test]
fn a_work_queue_is_done_when_one_succeeded_and_none_runs() {
    let mut world = World::new(json!({ "parallelism": 3 }));
    world.look(NEVER);
    assert_eq!(world.active(), 3);
    world.end(0, "Succeeded", 0);
    for _ in 0..3 {
        world.look(NEVER);
    }
    assert_eq!((world.ended(), world.made), (None, 3), "no new ones are started");
    world.node("Succeeded");
    world.look(NEVER);
    world.look(NEVER);
    assert_eq!((world.reason().as_str(), world.status().succeeded), ("Complete: CompletionsReached", Some(3)));
}

#[test]
fn an_index_that_failed_does_not_hold_up_the_others() {
    let mut world = World::new(
        json!({ "completions": 2, "parallelism": 1, "completionMode": "Indexed", "backoffLimitPerIndex": 2 }),
    );
    world.look(usize::MAX);
    assert_eq!((world.pods.len(), index_of(&world.pods[0])), (1, Some(0)));
    world.end(0, "Failed", 1);
    world.look(usize::MAX);
    world.look(usize::MAX);
    assert_eq!(world.pods.len(), 2, "the next index starts at once");
    assert_eq!(index_of(&world.pods[1]), Some(1));
    world.end(1, "Succeeded", 0);
    world.look(usize::MAX);
    world.look(usize::MAX);
    assert_eq!(world.pods.len(), 2, "the first waits for its own pause");
    world.clock += 20;
    assert!(tracked(&world.pods[0]), "it alone knows that the index has failed");
    world.look(usize::MAX);
    assert_eq!((world.pods.len(), index_of(&world.pods[2])), (3, Some(0)));
    assert_eq!(failures_of_index(&world.pods[2]), 1);
    world.look(usize::MAX);
    assert!(!tracked(&world.pods[0]), "its replacement knows too");
    assert_eq!(world.status().failed, Some(1));
}
