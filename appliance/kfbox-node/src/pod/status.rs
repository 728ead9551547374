//! A pod's status as clients see it. Pure.
//! Upstream: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/>

use super::{
    downward::Surroundings,
    plan::failed_for_good,
    record::{self, Ended, Kind, Record, State, restarts},
    resize,
};
use crate::oci::resources;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus, VolumeMountStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use serde_json::{Map, Value, json};
use std::net::IpAddr;

pub const ID_PREFIX: &str = "kfbox://";

/// What is beside the containers' own records.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Set when the pod as a whole failed: `DeadlineExceeded`, say.
    pub reason: Option<String>,
    pub message: Option<String>,
    /// Its sandbox exists.
    pub sandboxed: bool,
    /// Every container is gone for good.
    pub finished: bool,
    pub start_time: Option<Time>,
    /// Conditions beside those that every pod has, such as `DisruptionTarget`.
    pub conditions: Vec<PodCondition>,
    /// The node did not take it, so there is nothing to tell of its containers.
    pub refused: bool,
}

/// Those of all kinds of containers.
pub fn container_statuses(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten()
}

/// `previous` is what was last reported, which the pod's own status may lag behind.
pub fn status(
    pod: &Pod,
    records: &[Record],
    around: &Surroundings,
    outcome: &Outcome,
    previous: Option<&PodStatus>,
    now: Time,
) -> PodStatus {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let old = pod.status.as_ref();
    let of_kind = |kinds: &[Kind]| -> Option<Vec<ContainerStatus>> {
        let list: Vec<ContainerStatus> =
            records.iter().filter(|r| kinds.contains(&r.kind)).map(|r| container(spec, r)).collect();
        (!list.is_empty()).then_some(list)
    };
    if outcome.refused {
        return PodStatus {
            phase: Some("Failed".into()),
            reason: outcome.reason.clone(),
            message: outcome.message.clone(),
            qos_class: Some(resources::qos(spec).name().into()),
            start_time: outcome.start_time.clone().or(Some(now)),
            observed_generation: pod.metadata.generation,
            conditions: old.and_then(|s| s.conditions.clone()),
            ..PodStatus::default()
        };
    }
    let phase = phase(spec, records, outcome);
    PodStatus {
        conditions: Some(conditions(pod, spec, records, outcome, previous, phase, &now)),
        container_statuses: of_kind(&[Kind::Main]),
        init_container_statuses: of_kind(&[Kind::Init, Kind::Sidecar]),
        ephemeral_container_statuses: of_kind(&[Kind::Ephemeral]),
        host_ip: around.host_ips.first().map(ToString::to_string),
        host_ips: listed(&around.host_ips, |ip| HostIP { ip }),
        pod_ip: around.pod_ips.first().map(ToString::to_string),
        pod_ips: listed(&around.pod_ips, |ip| PodIP { ip }),
        phase: Some(phase.into()),
        reason: outcome.reason.clone(),
        message: outcome.message.clone(),
        qos_class: Some(resources::qos(spec).name().into()),
        start_time: outcome.start_time.clone().or_else(|| old.and_then(|s| s.start_time.clone())).or(Some(now)),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    }
}

fn listed<T>(ips: &[IpAddr], of: impl Fn(String) -> T) -> Option<Vec<T>> {
    (!ips.is_empty()).then(|| ips.iter().map(|ip| of(ip.to_string())).collect())
}

pub fn phase(spec: &PodSpec, records: &[Record], outcome: &Outcome) -> &'static str {
    let ran = |r: &Record| r.latest_end().is_some() || r.running();
    let mains: Vec<&Record> = records.iter().filter(|r| r.kind == Kind::Main).collect();
    let mut phase = "Running";
    let init_failed = records.iter().any(|r| r.kind == Kind::Init && failed_for_good(spec, r));
    if init_failed {
        phase = "Failed";
    } else if mains.is_empty() || mains.iter().any(|r| !ran(r)) {
        phase = "Pending";
    } else if mains.iter().all(|r| r.ended().is_some()) {
        let again = |r: &&Record| r.ended().is_some_and(|end| restarts(spec, &r.name, end.exit.code));
        phase = if mains.iter().any(again) {
            "Running"
        } else if mains.iter().all(|r| r.succeeded()) {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    if outcome.reason.is_some() {
        phase = "Failed";
    }
    if outcome.finished && matches!(phase, "Running" | "Pending") {
        // Stopped from outside: the ends decide.
        let clean = mains.iter().all(|r| r.succeeded());
        phase = if clean && !mains.is_empty() { "Succeeded" } else { "Failed" };
    }
    // A phase is final only once nothing runs.
    if matches!(phase, "Failed" | "Succeeded") && !outcome.finished && records.iter().any(Record::running) {
        phase = "Running";
    }
    phase
}

fn conditions(
    pod: &Pod,
    spec: &PodSpec,
    records: &[Record],
    outcome: &Outcome,
    previous: Option<&PodStatus>,
    phase: &str,
    now: &Time,
) -> Vec<PodCondition> {
    let terminal = matches!(phase, "Failed" | "Succeeded");
    let initialized = records.iter().all(|r| match r.kind {
        Kind::Init => {
            r.succeeded() || records.iter().any(|m| m.kind == Kind::Main && (m.running() || m.ended().is_some()))
        }
        Kind::Sidecar => r.started || terminal,
        Kind::Main | Kind::Ephemeral => true,
    }) || phase == "Succeeded";
    let unready: Vec<&str> =
        records.iter().filter(|r| r.kind == Kind::Main && !r.ready).map(|r| r.name.as_str()).collect();
    let not_done: Vec<&str> =
        records.iter().filter(|r| r.kind == Kind::Init && !r.succeeded()).map(|r| r.name.as_str()).collect();
    let (containers_reason, containers_message) = if phase == "Succeeded" {
        (Some("PodCompleted"), None)
    } else if phase == "Failed" {
        (Some("PodFailed"), None)
    } else if unready.is_empty() {
        (None, None)
    } else {
        (Some("ContainersNotReady"), Some(format!("containers with unready status: [{}]", unready.join(" "))))
    };
    let containers_ready = !terminal && unready.is_empty();
    let of = |status: Option<&'_ PodStatus>, kind: &str| {
        status.and_then(|s| s.conditions.iter().flatten().find(|c| c.type_ == kind).cloned())
    };
    let old = |kind: &str| of(previous, kind).or_else(|| of(pod.status.as_ref(), kind));
    // The gates' own conditions are others' to write, so only the pod itself tells them.
    let gates = spec.readiness_gates.iter().flatten().map(|gate| gate.condition_type.as_str());
    let open_gates: Vec<String> = gates
        .filter_map(|gate| match of(pod.status.as_ref(), gate) {
            None => Some(format!("corresponding condition of pod readiness gate {gate:?} does not exist.")),
            Some(c) if c.status == "True" => None,
            Some(c) => Some(format!("the status of pod readiness gate {gate:?} is not \"True\", but {}", c.status)),
        })
        .collect();
    let (ready_reason, ready_message) = if containers_ready && !open_gates.is_empty() {
        (Some("ReadinessGatesNotReady"), Some(open_gates.join(", ")))
    } else {
        (containers_reason, containers_message.clone())
    };
    let make = |kind: &str, value: bool, reason: Option<&str>, message: Option<String>| {
        let status = if value { "True" } else { "False" };
        let since = match old(kind) {
            Some(known) if known.status == status => known.last_transition_time,
            _ => Some(now.clone()),
        };
        PodCondition {
            type_: kind.into(),
            status: status.into(),
            reason: reason.map(Into::into),
            message,
            last_transition_time: since,
            observed_generation: pod.metadata.generation,
            ..PodCondition::default()
        }
    };
    let mut own = outcome.conditions.clone();
    for condition in &mut own {
        if let Some(known) = old(&condition.type_).filter(|known| known.status == condition.status) {
            condition.last_transition_time = known.last_transition_time;
        }
        condition.observed_generation = pod.metadata.generation;
    }
    let completed = (phase == "Succeeded").then_some("PodCompleted");
    let init_message = (!initialized).then(|| format!("containers with incomplete status: [{}]", not_done.join(" ")));
    let usual = [
        make("PodReadyToStartContainers", outcome.sandboxed && !terminal, None, None),
        make(
            "Initialized",
            initialized,
            completed.or((!initialized).then_some("ContainersNotInitialized")),
            init_message,
        ),
        make("Ready", containers_ready && open_gates.is_empty(), ready_reason, ready_message),
        make("ContainersReady", containers_ready, containers_reason, containers_message),
        make("PodScheduled", true, None, None),
    ];
    own.into_iter().chain(usual).collect()
}

fn container(spec: &PodSpec, record: &Record) -> ContainerStatus {
    let declared = record::find(spec, &record.name);
    let id = match &record.state {
        State::Running { id, .. } => Some(id),
        State::Ended(ended) => Some(&ended.id),
        State::Waiting { .. } => record.last.as_ref().map(|ended| &ended.id),
    };
    let state = match &record.state {
        State::Waiting { reason, message } => ContainerState {
            waiting: Some(ContainerStateWaiting { reason: Some((*reason).into()), message: message.clone() }),
            ..ContainerState::default()
        },
        State::Running { since, .. } => ContainerState {
            running: Some(ContainerStateRunning { started_at: time(since) }),
            ..ContainerState::default()
        },
        State::Ended(ended) => terminated(ended),
    };
    ContainerStatus {
        name: record.name.clone(),
        image: declared.as_ref().and_then(|c| c.image.clone()).unwrap_or_default(),
        image_id: record.image_id.clone(),
        container_id: id.map(|id| format!("{ID_PREFIX}{id}")),
        ready: match record.kind {
            Kind::Init => record.succeeded(),
            Kind::Sidecar | Kind::Main => record.ready,
            Kind::Ephemeral => false,
        },
        started: (record.kind != Kind::Ephemeral).then_some(record.started && record.running()),
        restart_count: record.restarts,
        state: Some(state),
        last_state: Some(record.last.as_ref().map(terminated).unwrap_or_default()),
        allocated_resources: record.has.as_ref().filter(|_| record.running()).and_then(resize::allocated),
        resources: record.has.clone().filter(|_| record.running()),
        volume_mounts: declared.as_deref().and_then(mounts),
        ..ContainerStatus::default()
    }
}

fn mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let all = container.volume_mounts.iter().flatten().map(|mount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only.filter(|read_only| *read_only),
        // What is mounted below a read-only volume keeps its own mode.
        recursive_read_only: (mount.read_only == Some(true)).then(|| "Disabled".into()),
        ..VolumeMountStatus::default()
    });
    Some(all.collect::<Vec<_>>()).filter(|all| !all.is_empty())
}

fn terminated(ended: &Ended) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: ended.exit.code,
            // Upstream's runtimes fold the signal into the code and leave this out.
            signal: None,
            reason: Some(ended.reason.clone()),
            message: ended.message.clone(),
            started_at: ended.exit.started_at.as_deref().and_then(time),
            finished_at: time(&ended.exit.finished_at),
            container_id: Some(format!("{ID_PREFIX}{}", ended.id)),
        }),
        ..ContainerState::default()
    }
}

/// Whole seconds, as the API carries them.
pub fn time(text: &str) -> Option<Time> {
    let parsed: Timestamp = text.parse().ok()?;
    Timestamp::from_second(parsed.as_second()).ok().map(Time)
}

pub fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// The strategic merge patch from one status to another; None when they are the same.
pub fn patch(uid: &str, old: &Value, new: &Value) -> Option<Value> {
    let mut changed = difference(old, new);
    // Merged by type, so a field that is gone has to be named, and so has a condition of ours that no longer holds.
    if let Some(Value::Array(conditions)) = changed.get_mut("conditions") {
        let before = old["conditions"].as_array().into_iter().flatten().filter_map(|c| c["type"].as_str());
        let over: Vec<&str> = before
            .filter(|kind| kind.starts_with("PodResize") && !conditions.iter().any(|c| c["type"] == **kind))
            .collect();
        for condition in conditions.iter_mut() {
            for field in ["reason", "message"] {
                if condition.get(field).is_none() {
                    condition[field] = Value::Null;
                }
            }
        }
        conditions.extend(over.into_iter().map(|kind| json!({ "$patch": "delete", "type": kind })));
    }
    (!changed.is_empty()).then(|| json!({ "metadata": { "uid": uid }, "status": changed }))
}

fn difference(old: &Value, new: &Value) -> Map<String, Value> {
    let empty = Map::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let mut changed = Map::new();
    for (key, value) in new {
        if old.get(key) != Some(value) {
            changed.insert(key.clone(), value.clone());
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        changed.insert(key.clone(), Value::Null);
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::super::record::fresh;
    use super::*;
    use crate::shim::records::Exit;

    fn pod(policy: &str) -> Pod {
        let named = |name: &str| Container { name: name.into(), image: Some("i".into()), ..Container::default() };
        Pod {
            spec: Some(PodSpec {
                containers: vec![named("a"), named("b")],
                restart_policy: Some(policy.into()),
                ..PodSpec::default()
            }),
            ..Pod::default()
        }
    }

    fn ended(code: i32) -> State {
        let exit = Exit {
            code,
            signal: None,
            oom_killed: code == 137,
            started_at: Some("2026-01-01T00:00:00.5Z".into()),
            finished_at: "2026-01-01T00:00:01.5Z".into(),
            failure: None,
        };
        let reason = super::super::record::reason(&exit).to_owned();
        State::Ended(Ended { id: "e".into(), exit, reason, message: None })
    }

    fn show(pod: &Pod, records: &[Record], outcome: &Outcome) -> PodStatus {
        status(pod, records, &Surroundings::default(), outcome, None, now())
    }

    fn condition<'a>(status: &'a PodStatus, kind: &str) -> &'a PodCondition {
        status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == kind).unwrap()
    }

    #[test]
    fn phases_follow_the_containers() {
        let never = pod("Never");
        let spec = never.spec.as_ref().unwrap();
        let mut records = fresh(spec);
        let open = Outcome::default();
        assert_eq!(phase(spec, &records, &open), "Pending");
        records[0].state = State::Running { id: "r".into(), since: String::new() };
        assert_eq!(phase(spec, &records, &open), "Pending");
        records[1].state = ended(0);
        assert_eq!(phase(spec, &records, &open), "Running");
        records[0].state = ended(0);
        assert_eq!(phase(spec, &records, &open), "Succeeded");
        records[0].state = ended(137);
        assert_eq!(phase(spec, &records, &open), "Failed");
        let always = pod("Always");
        assert_eq!(phase(always.spec.as_ref().unwrap(), &records, &open), "Running");
        let stopped = Outcome { finished: true, ..Outcome::default() };
        assert_eq!(phase(always.spec.as_ref().unwrap(), &records, &stopped), "Failed");
    }

    #[test]
    fn readiness_names_who_is_not() {
        let pod = pod("Always");
        let mut records = fresh(pod.spec.as_ref().unwrap());
        for record in &mut records {
            record.state = State::Running { id: "r".into(), since: "2026-01-01T00:00:00.1Z".into() };
            record.started = true;
        }
        records[0].ready = true;
        let status = show(&pod, &records, &Outcome { sandboxed: true, ..Outcome::default() });
        let ready = condition(&status, "Ready");
        assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("False", Some("ContainersNotReady")));
        assert_eq!(ready.message.as_deref(), Some("containers with unready status: [b]"));
        assert_eq!(condition(&status, "PodReadyToStartContainers").status, "True");
        records[1].ready = true;
        let status = show(&pod, &records, &Outcome::default());
        assert_eq!(condition(&status, "Ready").status, "True");
        let first = &status.container_statuses.unwrap()[0];
        assert_eq!(first.container_id.as_deref(), Some("kfbox://r"));
        assert_eq!(first.state.as_ref().unwrap().running.as_ref().unwrap().started_at, time("2026-01-01T00:00:00Z"));
    }

    #[test]
    fn readiness_gates_say_what_they_wait_for() {
        let mut pod = pod("Always");
        pod.spec.as_mut().unwrap().readiness_gates =
            Some(vec![serde_json::from_value(json!({ "conditionType": "g" })).unwrap()]);
        let mut records = fresh(pod.spec.as_ref().unwrap());
        for record in &mut records {
            record.state = State::Running { id: "r".into(), since: String::new() };
            (record.started, record.ready) = (true, true);
        }
        for (gate, ready, message) in [
            (None, "False", Some("corresponding condition of pod readiness gate \"g\" does not exist.")),
            (Some("False"), "False", Some("the status of pod readiness gate \"g\" is not \"True\", but False")),
            (Some("True"), "True", None),
        ] {
            let gate =
                gate.map(|status| PodCondition { type_: "g".into(), status: status.into(), ..PodCondition::default() });
            pod.status = Some(PodStatus { conditions: Some(gate.into_iter().collect()), ..PodStatus::default() });
            let status = show(&pod, &records, &Outcome::default());
            let found = condition(&status, "Ready");
            assert_eq!((found.status.as_str(), found.message.as_deref()), (ready, message));
        }
    }

    #[test]
    fn an_ephemeral_container_has_its_own_list_and_decides_nothing() {
        let mut pod = pod("Never");
        pod.spec.as_mut().unwrap().ephemeral_containers =
            Some(vec![serde_json::from_value(json!({ "name": "debug", "image": "d" })).unwrap()]);
        let mut records = fresh(pod.spec.as_ref().unwrap());
        (records[0].state, records[1].state, records[2].state) = (ended(0), ended(0), ended(1));
        let status = show(&pod, &records, &Outcome { finished: true, ..Outcome::default() });
        assert_eq!(status.phase.as_deref(), Some("Succeeded"));
        assert_eq!(status.container_statuses.unwrap().len(), 2);
        let debug = &status.ephemeral_container_statuses.unwrap()[0];
        assert_eq!((debug.name.as_str(), debug.image.as_str(), debug.ready), ("debug", "d", false));
        assert_eq!(debug.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
    }

    #[test]
    fn ends_are_told_as_upstream_tells_them() {
        let pod = pod("Never");
        let mut records = fresh(pod.spec.as_ref().unwrap());
        records[0].state = ended(137);
        records[1].state = ended(0);
        let status = show(&pod, &records, &Outcome::default());
        let list = status.container_statuses.clone().unwrap();
        let end = |i: usize| list[i].state.clone().unwrap().terminated.unwrap();
        assert_eq!((end(0).exit_code, end(0).reason.as_deref()), (137, Some("OOMKilled")));
        assert_eq!((end(1).exit_code, end(1).reason.as_deref()), (0, Some("Completed")));
        assert_eq!(condition(&status, "Ready").reason.as_deref(), Some("PodFailed"));
    }

    #[test]
    fn only_what_changed_is_written() {
        let old = json!({ "phase": "Running", "reason": "x", "conditions": [{ "type": "Ready", "message": "m" }] });
        assert_eq!(patch("u", &old, &old), None);
        let resizing = json!({ "conditions": [{ "type": "PodResizePending" }, { "type": "Gate" }] });
        assert_eq!(
            patch("u", &resizing, &json!({ "conditions": [] })).unwrap()["status"],
            json!({ "conditions": [{ "$patch": "delete", "type": "PodResizePending" }] })
        );
        let new = json!({ "phase": "Running", "conditions": [{ "type": "Ready" }] });
        assert_eq!(
            patch("u", &old, &new).unwrap(),
            json!({
                "metadata": { "uid": "u" },
                "status": { "reason": null, "conditions": [{ "type": "Ready", "reason": null, "message": null }] },
            })
        );
    }
}
