//! What a Job does next. Pure.

use super::{
    TRACKING, indexes,
    policy::{self, Verdict},
    tracked,
};
use crate::{names, pods};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods},
        core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const FIRST_PAUSE: i64 = 10;
const LONGEST_PAUSE: i64 = 600;
/// One look creates so many, as upstream; the next look does the rest.
const BURST: usize = 500;
/// Upstream's bound on what waits in the status at once, so that it stays small.
const UNCOUNTED: usize = 500;

#[derive(Default)]
pub struct Plan {
    pub create: Vec<Pod>,
    pub delete: Vec<Arc<Pod>>,
    pub status: JobStatus,
    pub again: Option<Duration>,
    /// Told when the status is written: is it a warning, reason, message.
    pub event: Option<(bool, &'static str, String)>,
}

fn condition<'a>(job: &'a Job, kind: &str) -> Option<&'a JobCondition> {
    job.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind && c.status == "True")
}

/// When the Job completed or failed; `None` while it has not.
pub fn finished_at(job: &Job) -> Option<Timestamp> {
    let end = condition(job, "Complete").or_else(|| condition(job, "Failed"))?;
    Some(end.last_transition_time.as_ref().map_or(Timestamp::MIN, |t| t.0))
}

fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

fn replaces_failed_only(spec: &JobSpec) -> bool {
    match spec.pod_replacement_policy.as_deref() {
        Some(policy) => policy == "Failed",
        None => spec.pod_failure_policy.is_some(),
    }
}

fn succeeded(pod: &Pod) -> bool {
    pods::phase(pod) == "Succeeded"
}

fn failed(spec: &JobSpec, pod: &Pod) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => pods::is_deleting(pod) && !replaces_failed_only(spec),
    }
}

fn index_of(pod: &Pod) -> Option<i32> {
    let meta = &pod.metadata;
    let text = meta
        .annotations
        .as_ref()
        .and_then(|a| a.get(INDEX))
        .or_else(|| meta.labels.as_ref().and_then(|l| l.get(INDEX)))?;
    text.parse().ok()
}

fn failures_of_index(pod: &Pod) -> i32 {
    pod.metadata.annotations.as_ref().and_then(|a| a.get(INDEX_FAILURES)).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn uncounted(status: &JobStatus) -> (Vec<String>, Vec<String>) {
    let waiting = status.uncounted_terminated_pods.clone().unwrap_or_default();
    (waiting.succeeded.unwrap_or_default(), waiting.failed.unwrap_or_default())
}

fn put_uncounted(status: &mut JobStatus, succeeded: Vec<String>, failed: Vec<String>) {
    status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
        succeeded: Some(succeeded).filter(|l| !l.is_empty()),
        failed: Some(failed).filter(|l| !l.is_empty()),
    });
}

/// Notes pods that have ended and are not yet counted; `None` when there are none.
pub fn track(job: &Job, own: &[Arc<Pod>]) -> Option<JobStatus> {
    let spec = job.spec.as_ref()?;
    let mut status = job.status.clone().unwrap_or_default();
    let (mut good, mut bad) = uncounted(&status);
    let before = (good.len(), bad.len(), status.completed_indexes.clone(), status.failed_indexes.clone());
    let bound = spec.completions.unwrap_or(0);
    let mut completed = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), bound);
    let mut failed_indexes = indexes::parse(status.failed_indexes.as_deref().unwrap_or_default(), bound);
    for pod in own.iter().filter(|p| tracked(p)) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if good.len() + bad.len() >= UNCOUNTED {
            break;
        }
        if good.contains(&uid) || bad.contains(&uid) {
            continue;
        }
        if succeeded(pod) {
            if is_indexed(spec) {
                // The index itself is the count.
                if let Some(index) = index_of(pod).filter(|i| (0..bound).contains(i)) {
                    completed.insert(index);
                    failed_indexes.remove(&index);
                }
            } else {
                good.push(uid);
            }
        } else if failed(spec, pod) {
            match policy::judge(job, pod) {
                Verdict::Ignore => {}
                verdict => {
                    if let Some(limit) = spec.backoff_limit_per_index
                        && let Some(index) = index_of(pod).filter(|i| (0..bound).contains(i) && !completed.contains(i))
                        && (verdict == Verdict::FailIndex || failures_of_index(pod) >= limit)
                    {
                        failed_indexes.insert(index);
                    }
                    bad.push(uid);
                }
            }
        }
    }
    if is_indexed(spec) {
        status.completed_indexes = Some(indexes::format(&completed)).filter(|t| !t.is_empty());
        if spec.backoff_limit_per_index.is_some() {
            status.failed_indexes = Some(indexes::format(&failed_indexes));
        }
    }
    let changed = (good.len(), bad.len(), status.completed_indexes.clone(), status.failed_indexes.clone()) != before;
    put_uncounted(&mut status, good, bad);
    changed.then_some(status)
}

/// The pods whose finalizer may go: their end is in the status, or does not count.
pub fn noted(job: &Job, own: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    let Some(spec) = &job.spec else { return Vec::new() };
    let status = job.status.clone().unwrap_or_default();
    let (good, bad) = uncounted(&status);
    let bound = spec.completions.unwrap_or(0);
    let completed = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), bound);
    own.iter()
        .filter(|pod| {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let by_index = is_indexed(spec)
                && succeeded(pod)
                && index_of(pod).is_none_or(|i| completed.contains(&i) || !(0..bound).contains(&i));
            let ignored = failed(spec, pod) && policy::judge(job, pod) == Verdict::Ignore;
            tracked(pod)
                && !remembers(job, spec, own, pod)
                && (good.contains(&uid) || bad.contains(&uid) || by_index || ignored)
        })
        .cloned()
        .collect()
}

/// Whether the pod alone remembers how often its index has failed: it must not go before its replacement has come.
fn remembers(job: &Job, spec: &JobSpec, own: &[Arc<Pod>], pod: &Pod) -> bool {
    let over =
        ["FailureTarget", "SuccessCriteriaMet", "Complete", "Failed"].iter().any(|c| condition(job, c).is_some());
    let Some(index) = index_of(pod).filter(|_| spec.backoff_limit_per_index.is_some() && !over) else { return false };
    if job.metadata.deletion_timestamp.is_some() || !failed(spec, pod) || policy::judge(job, pod) == Verdict::Ignore {
        return false;
    }
    let status = job.status.as_ref();
    let bound = spec.completions.unwrap_or(0);
    let settled = |text: Option<&String>| indexes::parse(text.map_or("", String::as_str), bound).contains(&index);
    let is_settled = settled(status.and_then(|s| s.completed_indexes.as_ref()))
        || settled(status.and_then(|s| s.failed_indexes.as_ref()));
    let replaced = own.iter().any(|other| {
        other.metadata.uid != pod.metadata.uid
            && index_of(other) == Some(index)
            && failures_of_index(other) > failures_of_index(pod)
    });
    (0..bound).contains(&index) && !is_settled && !replaced
}

/// Whether the pod has ended in a way that counts, and the status does not know yet.
fn is_unseen(job: &Job, spec: &JobSpec, status: &JobStatus, completed: &BTreeSet<i32>, pod: &Pod) -> bool {
    let (good, bad) = uncounted(status);
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let known = good.contains(&uid)
        || bad.contains(&uid)
        || (is_indexed(spec) && index_of(pod).is_some_and(|i| completed.contains(&i)));
    tracked(pod) && !known && (succeeded(pod) || (failed(spec, pod) && policy::judge(job, pod) != Verdict::Ignore))
}

struct Target {
    kind: &'static str,
    reason: String,
    message: String,
}

/// `own` are the Job's pods; `namespace_pods` all whose names are taken.
pub fn decide(job: &Job, own: &[Arc<Pod>], namespace_pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let Some(spec) = &job.spec else { return Plan::default() };
    let mut status = job.status.clone().unwrap_or_default();
    let parallelism = spec.parallelism.unwrap_or(1).max(0);
    let bound = spec.completions.unwrap_or(0);
    let indexed = is_indexed(spec);

    // Uids whose finalizer is gone are counted now.
    let (mut good, mut bad) = uncounted(&status);
    let still_tracked: HashSet<&str> =
        own.iter().filter(|p| tracked(p)).filter_map(|p| p.metadata.uid.as_deref()).collect();
    let count = |list: &mut Vec<String>| {
        let before = list.len();
        list.retain(|uid| still_tracked.contains(uid.as_str()));
        i32::try_from(before - list.len()).unwrap_or(0)
    };
    let completed = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), bound);
    let failed_indexes = indexes::parse(status.failed_indexes.as_deref().unwrap_or_default(), bound);
    let counted_good = status.succeeded.unwrap_or(0) + count(&mut good);
    let counted_bad = status.failed.unwrap_or(0) + count(&mut bad);
    let total_good = if indexed {
        i32::try_from(completed.len()).unwrap_or(i32::MAX)
    } else {
        counted_good + i32::try_from(good.len()).unwrap_or(0)
    };
    let total_bad = counted_bad + i32::try_from(bad.len()).unwrap_or(0);
    status.succeeded = Some(if indexed { total_good } else { counted_good }).filter(|n| *n > 0);
    status.failed = Some(counted_bad).filter(|n| *n > 0);
    put_uncounted(&mut status, good, bad);

    let mut active: Vec<Arc<Pod>> = own.iter().filter(|p| pods::is_active(p)).cloned().collect();
    let terminating = own.iter().filter(|p| pods::is_deleting(p) && !pods::is_finished(p)).count();
    let mut plan = Plan::default();
    let mut conditions = status.conditions.take().unwrap_or_default();

    if status.start_time.is_none() && !spec.suspend.unwrap_or(false) {
        status.start_time = Some(Time(now));
    }

    // The end may have been decided before, and wait for pods.
    let decided = conditions
        .iter()
        .find(|c| (c.type_ == "FailureTarget" || c.type_ == "SuccessCriteriaMet") && c.status == "True");
    let target = decided
        .map(|c| Target {
            kind: if c.type_ == "FailureTarget" { "Failed" } else { "Complete" },
            reason: c.reason.clone().unwrap_or_default(),
            message: c.message.clone().unwrap_or_default(),
        })
        .or_else(|| {
            end(
                job,
                spec,
                own,
                &active,
                &completed,
                &failed_indexes,
                total_good,
                total_bad,
                status.start_time.as_ref(),
                now,
            )
        });

    let mut suspended = false;
    if let Some(target) = target {
        let interim = if target.kind == "Failed" { "FailureTarget" } else { "SuccessCriteriaMet" };
        put(&mut conditions, interim, true, &target.reason, &target.message, now);
        plan.delete = active.clone();
        // The end is told when nothing runs any more and all is counted.
        let all_counted = !own
            .iter()
            .any(|p| tracked(p) && (succeeded(p) || failed(spec, p)) && policy::judge(job, p) != Verdict::Ignore);
        if active.is_empty() && terminating == 0 && all_counted {
            put(&mut conditions, target.kind, true, &target.reason, &target.message, now);
            if target.kind == "Complete" {
                status.completion_time = Some(Time(now));
                plan.event = Some((false, "Completed", "Job completed".into()));
            } else {
                plan.event = Some((true, told(&target.reason), target.message));
            }
        }
        active.clear();
    } else if spec.suspend.unwrap_or(false) {
        suspended = true;
        plan.delete = active.clone();
        let was = conditions.iter().any(|c| c.type_ == "Suspended" && c.status == "True");
        put(&mut conditions, "Suspended", true, "JobSuspended", "Job suspended", now);
        status.start_time = None;
        if !was {
            plan.event = Some((false, "Suspended", "Job suspended".into()));
        }
        active.clear();
    } else {
        if conditions.iter().any(|c| c.type_ == "Suspended" && c.status == "True") {
            put(&mut conditions, "Suspended", false, "JobResumed", "Job resumed", now);
            status.start_time = Some(Time(now));
            plan.event = Some((false, "Resumed", "Job resumed".into()));
        }
        let wanted = match spec.completions {
            None if total_good > 0 => i32::try_from(active.len()).unwrap_or(0).min(parallelism),
            None => parallelism,
            Some(completions) => {
                parallelism.min(completions - total_good - i32::try_from(failed_indexes.len()).unwrap_or(0)).max(0)
            }
        };
        let wanted = usize::try_from(wanted).unwrap_or(0);
        active.sort_by(|a, b| pods::deletion_order(a, b));
        if indexed {
            let surplus = needless(&active, &completed, &failed_indexes, bound);
            active.retain(|p| !surplus.iter().any(|s| s.metadata.uid == p.metadata.uid));
            plan.delete = surplus;
        }
        if active.len() > wanted {
            let excess = active.len() - wanted;
            plan.delete.extend(active.drain(..excess));
        }
        let waiting = if replaces_failed_only(spec) { terminating } else { 0 };
        // A pod that ended after the count was taken is neither active nor counted: its own news brings us back.
        let unseen = own.iter().any(|p| is_unseen(job, spec, &status, &completed, p));
        let missing = if unseen { 0 } else { wanted.saturating_sub(active.len() + waiting).min(BURST) };
        if missing > 0 {
            // With a limit an index, the failures of one do not hold up the others.
            let by_index = spec.backoff_limit_per_index.is_some();
            match pause(spec, own.iter().filter(|_| !by_index), now) {
                Some(pause) => plan.again = Some(pause),
                None => {
                    let held = if by_index { held_indexes(spec, own, now) } else { BTreeMap::new() };
                    let mut closed = failed_indexes.clone();
                    closed.extend(held.keys());
                    plan.again = held.values().min().copied();
                    plan.create = make(job, spec, own, namespace_pods, &active, &completed, &closed, missing);
                }
            }
        }
    }

    if let (Some(seconds), Some(start), false) = (spec.active_deadline_seconds, &status.start_time, suspended) {
        let left = SignedDuration::from_secs(seconds) - now.duration_since(start.0);
        if left > SignedDuration::ZERO {
            let left = left.unsigned_abs();
            plan.again = Some(plan.again.map_or(left, |again| again.min(left)));
        }
    }
    status.active = Some(i32::try_from(active.len()).unwrap_or(i32::MAX)).filter(|n| *n > 0);
    status.ready = Some(i32::try_from(active.iter().filter(|p| pods::is_ready(p)).count()).unwrap_or(i32::MAX));
    status.terminating = Some(i32::try_from(terminating).unwrap_or(i32::MAX));
    status.conditions = Some(conditions).filter(|c| !c.is_empty());
    plan.status = status;
    plan
}

fn told(reason: &str) -> &'static str {
    match reason {
        "BackoffLimitExceeded" => "BackoffLimitExceeded",
        "DeadlineExceeded" => "DeadlineExceeded",
        "PodFailurePolicy" => "PodFailurePolicy",
        "MaxFailedIndexesExceeded" => "MaxFailedIndexesExceeded",
        "FailedIndexes" => "FailedIndexes",
        _ => "JobFailed",
    }
}

/// Whether the Job is over, and how.
#[expect(clippy::too_many_arguments, reason = "the whole of what an end depends on")]
fn end(
    job: &Job,
    spec: &JobSpec,
    own: &[Arc<Pod>],
    active: &[Arc<Pod>],
    completed: &BTreeSet<i32>,
    failed_indexes: &BTreeSet<i32>,
    total_good: i32,
    total_bad: i32,
    start: Option<&Time>,
    now: Timestamp,
) -> Option<Target> {
    let failure = |reason: &str, message: String| Some(Target { kind: "Failed", reason: reason.into(), message });
    for pod in own.iter().filter(|p| failed(spec, p)) {
        if let Verdict::FailJob(message) = policy::judge(job, pod) {
            return failure("PodFailurePolicy", message);
        }
    }
    let limit = spec.backoff_limit.unwrap_or(if spec.backoff_limit_per_index.is_some() { i32::MAX } else { 6 });
    let in_place = spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) == Some("OnFailure");
    let restarts = if in_place { active.iter().map(|p| pods::restarts(p)).fold(0, i32::saturating_add) } else { 0 };
    if total_bad > limit || (in_place && restarts > 0 && restarts >= limit) {
        return failure("BackoffLimitExceeded", "Job has reached the specified backoff limit".into());
    }
    if let (Some(seconds), Some(start), false) = (spec.active_deadline_seconds, start, spec.suspend.unwrap_or(false))
        && now.duration_since(start.0) >= SignedDuration::from_secs(seconds)
    {
        return failure("DeadlineExceeded", "Job was active longer than specified deadline".into());
    }
    let failed_count = i32::try_from(failed_indexes.len()).unwrap_or(i32::MAX);
    if spec.max_failed_indexes.is_some_and(|max| failed_count > max) {
        return failure(
            "MaxFailedIndexesExceeded",
            "Job has exceeded the specified maximal number of failed indexes".into(),
        );
    }
    let complete =
        |reason: &str, message: &str| Some(Target { kind: "Complete", reason: reason.into(), message: message.into() });
    if is_indexed(spec) {
        let bound = spec.completions.unwrap_or(0);
        for (number, rule) in spec.success_policy.iter().flat_map(|p| p.rules.iter()).enumerate() {
            let among = rule.succeeded_indexes.as_deref().map(|text| indexes::parse(text, bound));
            let hits = match &among {
                Some(among) => completed.intersection(among).count(),
                None => completed.len(),
            };
            let needed = match (rule.succeeded_count, &among) {
                (Some(count), _) => usize::try_from(count).unwrap_or(0),
                (None, Some(among)) => among.len(),
                (None, None) => usize::MAX,
            };
            if needed > 0 && hits >= needed {
                return complete("SuccessPolicy", &format!("Matched rules at index {number}"));
            }
        }
    }
    const DONE: (&str, &str) = ("CompletionsReached", "Reached expected number of succeeded pods");
    match spec.completions {
        None if total_good > 0 && active.is_empty() => complete(DONE.0, DONE.1),
        Some(completions) if total_good >= completions => complete(DONE.0, DONE.1),
        Some(completions) if failed_count > 0 && total_good + failed_count >= completions => {
            failure("FailedIndexes", "Job has failed indexes".into())
        }
        _ => None,
    }
}

/// Active pods whose index is done, failed, out of range or already worked on.
fn needless(
    active: &[Arc<Pod>],
    completed: &BTreeSet<i32>,
    failed_indexes: &BTreeSet<i32>,
    bound: i32,
) -> Vec<Arc<Pod>> {
    let mut kept = BTreeSet::new();
    // The list is ordered by who goes first, so the last of an index is the one to keep.
    let mut surplus: Vec<Arc<Pod>> = Vec::new();
    for pod in active.iter().rev() {
        let good = index_of(pod).is_some_and(|i| {
            (0..bound).contains(&i) && !completed.contains(&i) && !failed_indexes.contains(&i) && kept.insert(i)
        });
        if !good {
            surplus.push(pod.clone());
        }
    }
    surplus
}

fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref()?.container_statuses.iter().flatten();
    let ends = statuses.filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()).map(|t| t.0);
    ends.max()
        .or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|t| t.0))
        .or_else(|| pods::condition(pod, "Ready")?.last_transition_time.as_ref().map(|t| t.0))
}

/// The indexes that wait after failures of their own, and how long.
fn held_indexes(spec: &JobSpec, own: &[Arc<Pod>], now: Timestamp) -> BTreeMap<i32, Duration> {
    let indexes: BTreeSet<i32> = own.iter().filter(|p| failed(spec, p)).filter_map(|p| index_of(p)).collect();
    let wait = |index: i32| pause(spec, own.iter().filter(|p| index_of(p) == Some(index)), now);
    indexes.into_iter().filter_map(|index| Some((index, wait(index)?))).collect()
}

/// How long to wait after failures: 10 s, doubling with each since the last success, up to 10 minutes.
fn pause<'a>(spec: &JobSpec, own: impl Iterator<Item = &'a Arc<Pod>> + Clone, now: Timestamp) -> Option<Duration> {
    let last_good = own.clone().filter(|p| succeeded(p)).filter_map(|p| ended_at(p)).max();
    let failures: Vec<Timestamp> = own
        .filter(|p| failed(spec, p))
        .filter_map(|p| ended_at(p))
        .filter(|at| last_good.is_none_or(|good| *at > good))
        .collect();
    let last = failures.iter().max()?;
    let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(10);
    let pause = SignedDuration::from_secs((FIRST_PAUSE << doublings).min(LONGEST_PAUSE));
    let left = pause - now.duration_since(*last);
    (left > SignedDuration::ZERO).then(|| left.unsigned_abs())
}

#[expect(clippy::too_many_arguments, reason = "the whole of what new pods depend on")]
fn make(
    job: &Job,
    spec: &JobSpec,
    own: &[Arc<Pod>],
    namespace_pods: &[Arc<Pod>],
    active: &[Arc<Pod>],
    completed: &BTreeSet<i32>,
    failed_indexes: &BTreeSet<i32>,
    missing: usize,
) -> Vec<Pod> {
    let taken: HashSet<&str> = namespace_pods.iter().map(|p| pods::name(p)).collect();
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    if !is_indexed(spec) {
        return (0_u64..)
            .map(|slot| names::child(name, &[uid, &slot.to_string()]))
            .filter(|name| !taken.contains(name.as_str()))
            .take(missing)
            .map(|name| pod(job, spec, name))
            .collect();
    }
    let mut busy: BTreeSet<i32> = active.iter().filter_map(|p| index_of(p)).collect();
    if replaces_failed_only(spec) {
        busy.extend(own.iter().filter(|p| !pods::is_finished(p)).filter_map(|p| index_of(p)));
    }
    (0..spec.completions.unwrap_or(0))
        .filter(|i| !busy.contains(i) && !completed.contains(i) && !failed_indexes.contains(i))
        .take(missing)
        .filter_map(|index| {
            let base = format!("{name}-{index}");
            let pod_name = (0_u64..)
                .map(|slot| names::child(&base, &[uid, &index.to_string(), &slot.to_string()]))
                .find(|name| !taken.contains(name.as_str()))?;
            let mut pod = pod(job, spec, pod_name);
            let text = index.to_string();
            pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), text.clone());
            let annotations = pod.metadata.annotations.get_or_insert_default();
            annotations.insert(INDEX.into(), text);
            if spec.backoff_limit_per_index.is_some() {
                let before = own.iter().filter(|p| {
                    index_of(p) == Some(index) && failed(spec, p) && policy::judge(job, p) != Verdict::Ignore
                });
                let failures = before.map(|p| failures_of_index(p) + 1).max().unwrap_or(0);
                annotations.insert(INDEX_FAILURES.into(), failures.to_string());
            }
            if let Some(spec) = &mut pod.spec {
                spec.hostname.get_or_insert(base);
                let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
                containers.for_each(tell_index);
            }
            Some(pod)
        })
        .collect()
}

fn tell_index(container: &mut Container) {
    const NAME: &str = "JOB_COMPLETION_INDEX";
    let env = container.env.get_or_insert_default();
    if env.iter().any(|e| e.name == NAME) {
        return;
    }
    let field =
        ObjectFieldSelector { field_path: format!("metadata.annotations['{INDEX}']"), api_version: Some("v1".into()) };
    env.push(EnvVar {
        name: NAME.into(),
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
        ..EnvVar::default()
    });
}

fn pod(job: &Job, spec: &JobSpec, name: String) -> Pod {
    let mut pod = pods::from_template(&spec.template, job, name);
    let (job_name, uid) = (job.metadata.name.clone().unwrap_or_default(), job.metadata.uid.clone().unwrap_or_default());
    let own: BTreeMap<&str, &String> = BTreeMap::from([
        ("batch.kubernetes.io/job-name", &job_name),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("job-name", &job_name),
        ("controller-uid", &uid),
    ]);
    let labels = pod.metadata.labels.get_or_insert_default();
    for (key, value) in own {
        labels.entry(key.into()).or_insert_with(|| value.clone());
    }
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == TRACKING) {
        finalizers.push(TRACKING.into());
    }
    pod
}

fn put(conditions: &mut Vec<JobCondition>, kind: &str, yes: bool, reason: &str, message: &str, now: Timestamp) {
    let value = if yes { "True" } else { "False" };
    let present = conditions.iter_mut().find(|c| c.type_ == kind);
    if present.as_ref().is_some_and(|c| c.status == value && c.reason.as_deref() == Some(reason)) {
        return;
    }
    let condition = JobCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()).filter(|r: &String| !r.is_empty()),
        message: Some(message.into()).filter(|m: &String| !m.is_empty()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    match present {
        Some(present) => *present = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests;
