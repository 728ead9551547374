//! CronJobs. Invariant: the Job of a moment has the name that follows from the moment, so each moment has one Job however
//! often it is looked at. Upstream: <https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/>.

use crate::{
    cache::{self, Key},
    context::{Context, Registered},
    pods,
    queue::{Outcome, Queue},
    write::{self, WriteError},
};
use croner::{Cron, parser::CronParser};
use jiff::{SignedDuration, Timestamp, Zoned, tz::TimeZone};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Resource, api::ObjectMeta};
use std::{sync::Arc, time::Duration};

const COMPONENT: &str = "cronjob-controller";
const WORKERS: usize = 2;
/// More missed moments than this are worth a warning, as upstream.
const MISSED: usize = 100;

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<Key>::new();
    let q = queue.clone();
    context.caches.cron_jobs.on_change(move |change| change.both().for_each(|c| q.add(cache::key(&**c))));
    let q = queue.clone();
    context.caches.jobs.on_change(move |change| {
        for job in change.both() {
            if let Some(owner) = pods::controller(&job.metadata).filter(|o| o.kind == "CronJob") {
                q.add((job.metadata.namespace.clone().unwrap_or_default(), owner.name.clone()));
            }
        }
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue.run("cronjob", WORKERS, shutdown, move |key| reconcile(context.clone(), key)).await
    };
    ("cronjob", Box::pin(run))
}

#[derive(Default)]
struct Plan {
    create: Option<Job>,
    delete: Vec<Arc<Job>>,
    status: CronJobStatus,
    again: Option<Duration>,
    /// Is it a warning, reason, message.
    say: Option<(bool, &'static str, String)>,
}

fn outcome(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    conditions
        .iter()
        .find(|c| (c.type_ == "Complete" || c.type_ == "Failed") && c.status == "True")
        .map(|c| c.type_.as_str())
}

/// The reason and the sentence of an event.
type Complaint = (&'static str, String);

fn schedule(cron: &CronJob) -> Result<(Cron, TimeZone), Complaint> {
    let spec = &cron.spec;
    let text = spec.schedule.trim();
    if text.contains("TZ=") {
        let why = format!("unparseable schedule: {text:?} : a time zone belongs in spec.timeZone, not in the schedule");
        return Err(("UnparseableSchedule", why));
    }
    let parsed = CronParser::new()
        .parse(text)
        .map_err(|error| ("UnparseableSchedule", format!("unparseable schedule: {text:?} : {error}")))?;
    let zone = match spec.time_zone.as_deref().filter(|z| !z.is_empty()) {
        None => TimeZone::UTC,
        Some(name) => {
            TimeZone::get(name).map_err(|error| ("UnknownTimeZone", format!("invalid timeZone: {name:?}: {error}")))?
        }
    };
    Ok((parsed, zone))
}

/// `own` are the CronJob's Jobs.
fn decide(cron: &CronJob, own: &[Arc<Job>], now: Timestamp) -> Plan {
    let spec = &cron.spec;
    let mut status = cron.status.clone().unwrap_or_default();
    let active: Vec<&Arc<Job>> = own.iter().filter(|j| outcome(j).is_none()).collect();
    status.active = Some(active.iter().map(|j| reference(j)).collect::<Vec<_>>()).filter(|a| !a.is_empty());
    let successes = own.iter().filter(|j| outcome(j) == Some("Complete"));
    let last_success = successes.filter_map(|j| j.status.as_ref()?.completion_time.as_ref()).map(|t| t.0).max();
    if last_success > status.last_successful_time.as_ref().map(|t| t.0) {
        status.last_successful_time = last_success.map(Time);
    }
    let mut plan = Plan { delete: history(cron, own), status, ..Plan::default() };
    if spec.suspend.unwrap_or(false) || cron.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let (schedule, zone) = match schedule(cron) {
        Ok(parsed) => parsed,
        Err((reason, why)) => {
            plan.say = Some((true, reason, why));
            return plan;
        }
    };
    let here = now.to_zoned(zone);
    if let Ok(next) = schedule.find_next_occurrence(&here, false) {
        let wait = next.timestamp().duration_since(now);
        // A little late rather than early.
        plan.again = Some(wait.max(SignedDuration::ZERO).unsigned_abs() + Duration::from_millis(5));
    }
    let since = plan.status.last_schedule_time.as_ref().map_or_else(|| pods::created(&cron.metadata), |t| t.0);
    let Ok(due) = schedule.find_previous_occurrence(&here, true) else { return plan };
    let moment = due.timestamp();
    if moment <= since {
        return plan;
    }
    if let Some(deadline) = spec.starting_deadline_seconds
        && now.duration_since(moment) > SignedDuration::from_secs(deadline)
    {
        plan.say = Some((true, "MissSchedule", format!("Missed scheduled time to start a job: {due}")));
        return plan;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            plan.say = Some((
                false,
                "JobAlreadyActive",
                "Not starting job because prior execution is running and concurrency policy is Forbid".into(),
            ));
            return plan;
        }
        Some("Replace") => plan.delete.extend(active.into_iter().cloned()),
        _ => {}
    }
    if missed_too_many(&schedule, cron, since, &here) {
        plan.say = Some((
            true,
            "TooManyMissedTimes",
            format!(
                "too many missed start times: {MISSED}+. Set or decrease .spec.startingDeadlineSeconds or check clock skew"
            ),
        ));
    }
    plan.create = Some(job(cron, moment, &due.to_string()));
    plan.status.last_schedule_time = Some(Time(moment));
    plan
}

/// Whether more than [`MISSED`] moments passed without a start, of those that may still be started.
fn missed_too_many(schedule: &Cron, cron: &CronJob, since: Timestamp, here: &Zoned) -> bool {
    let mut from = since;
    if let Some(deadline) = cron.spec.starting_deadline_seconds {
        let earliest = here.timestamp().checked_sub(SignedDuration::from_secs(deadline)).unwrap_or(Timestamp::MIN);
        from = from.max(earliest);
    }
    let mut at = from.to_zoned(here.time_zone().clone());
    for _ in 0..=MISSED {
        match schedule.find_next_occurrence(&at, false) {
            Ok(next) if next <= *here => at = next,
            _ => return false,
        }
    }
    true
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference { resource_version: job.metadata.resource_version.clone(), ..Resource::object_ref(job, &()) }
}

fn job(cron: &CronJob, moment: Timestamp, text: &str) -> Job {
    let template = cron.spec.job_template.clone();
    let given = template.metadata.unwrap_or_default();
    let mut annotations = given.annotations.unwrap_or_default();
    annotations.insert(
        "batch.kubernetes.io/cronjob-scheduled-timestamp".into(),
        text.split('[').next().unwrap_or(text).into(),
    );
    let name = cron.metadata.name.as_deref().unwrap_or_default();
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{}", moment.as_second() / 60)),
            namespace: cron.metadata.namespace.clone(),
            labels: given.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![pods::owned_by(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// Finished Jobs beyond the limits, the oldest first.
fn history(cron: &CronJob, own: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let spec = &cron.spec;
    let mut gone = Vec::new();
    for (kind, limit) in [
        ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
        ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
    ] {
        let mut finished: Vec<&Arc<Job>> =
            own.iter().filter(|j| outcome(j) == Some(kind) && j.metadata.deletion_timestamp.is_none()).collect();
        finished.sort_by_key(|j| (pods::created(&j.metadata), j.metadata.name.clone()));
        let excess = finished.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        gone.extend(finished.into_iter().take(excess).cloned());
    }
    gone
}

async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, WriteError> {
    let (client, caches) = (&context.client, &context.caches);
    let Some(cron) = caches.cron_jobs.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
    let uid = cache::uid(&*cron);
    let own: Vec<Arc<Job>> = caches
        .jobs
        .in_namespace(&key.0)
        .into_iter()
        .filter(|j| pods::controller(&j.metadata).is_some_and(|o| o.uid == uid))
        .collect();
    for known in cron.status.iter().flat_map(|s| s.active.iter().flatten()) {
        let name = known.name.as_deref().unwrap_or_default();
        match own.iter().find(|j| j.metadata.uid == known.uid) {
            None => context.events.normal(&*cron, COMPONENT, "MissingJob", format!("Active job went missing: {name}")),
            Some(job) => {
                if let Some(end) = outcome(job) {
                    let message = format!("Saw completed job: {name}, condition: {end}");
                    context.events.normal(&*cron, COMPONENT, "SawCompletedJob", message);
                }
            }
        }
    }
    let mut plan = decide(&cron, &own, Timestamp::now());
    for job in &plan.delete {
        let name = job.metadata.name.as_deref().unwrap_or_default();
        write::delete::<Job>(client, &key.0, name, cache::uid(&**job)).await?;
        context.events.normal(&*cron, COMPONENT, "SuccessfulDelete", format!("Deleted job {name}"));
    }
    if let Some(job) = &plan.create {
        let name = job.metadata.name.clone().unwrap_or_default();
        match write::create(client, &caches.jobs, job, Some(uid)).await {
            Ok(created) => {
                if created {
                    context.events.normal(&*cron, COMPONENT, "SuccessfulCreate", format!("Created job {name}"));
                }
                if let Some(made) = caches.jobs.get(&key.0, &name).filter(|j| outcome(j).is_none()) {
                    plan.status.active.get_or_insert_default().push(reference(&made));
                }
            }
            Err(error) => {
                context.events.warning(&*cron, COMPONENT, "FailedCreate", format!("Error creating job: {error}"));
                return Err(error);
            }
        }
    }
    if let Some((warning, reason, message)) = plan.say {
        if warning {
            context.events.warning(&*cron, COMPONENT, reason, message);
        } else {
            context.events.normal(&*cron, COMPONENT, reason, message);
        }
    }
    let old = cron.status.clone().unwrap_or_default();
    write::status_of(client, &caches.cron_jobs, &*cron, &old, &plan.status).await?;
    Ok(plan.again.map_or(Outcome::Done, Outcome::Again))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::object;
    use serde_json::{Value, json};

    fn cron(more: Value) -> CronJob {
        let mut spec = json!({ "schedule": "*/5 * * * *", "jobTemplate": { "metadata": { "labels": { "a": "b" } }, "spec": { "template": { "spec": { "containers": [] } } } } });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        object(
            json!({ "metadata": { "name": "tick", "namespace": "n", "uid": "c", "creationTimestamp": "2027-01-15T08:01:00Z" }, "spec": spec }),
        )
    }

    fn time(text: &str) -> Timestamp {
        format!("2027-01-15T{text}Z").parse().unwrap()
    }

    fn run_of(cron: &CronJob, moment: &str, end: Option<&str>) -> Arc<Job> {
        let mut job = job(cron, time(moment), moment);
        job.metadata.uid = Some(moment.into());
        job.metadata.creation_timestamp = Some(Time(time(moment)));
        if let Some(end) = end {
            job.status = Some(object(
                json!({ "conditions": [{ "type": end, "status": "True" }], "completionTime": time(moment).to_string() }),
            ));
        }
        Arc::new(job)
    }

    #[test]
    fn each_moment_has_one_job_and_missed_ones_are_not_made_up() {
        let cron = cron(json!({}));
        assert!(decide(&cron, &[], time("08:04:59")).create.is_none());
        let plan = decide(&cron, &[], time("08:05:00"));
        let job = plan.create.unwrap();
        assert_eq!(job.metadata.name.as_deref(), Some("tick-30000005"));
        assert_eq!(job.metadata.labels.as_ref().unwrap()["a"], "b");
        let same = decide(&cron, &[], time("08:05:40")).create.unwrap();
        assert_eq!(same.metadata.name, job.metadata.name);
        let late = decide(&cron, &[], time("09:17:00"));
        assert_eq!(late.status.last_schedule_time, Some(Time(time("09:15:00"))));
        assert!((Duration::from_secs(180)..Duration::from_secs(181)).contains(&late.again.unwrap()));
        let mut done = cron.clone();
        done.status = Some(late.status);
        assert!(decide(&done, &[], time("09:19:00")).create.is_none());
    }

    #[test]
    fn policies_deadlines_suspension_and_bad_schedules() {
        let at = time("08:05:03");
        let forbid = cron(json!({ "concurrencyPolicy": "Forbid" }));
        let running = [run_of(&forbid, "08:00:00", None)];
        let plan = decide(&forbid, &running, at);
        assert!(plan.create.is_none() && plan.status.last_schedule_time.is_none());
        assert_eq!(plan.status.active.unwrap().len(), 1);
        let replace = cron(json!({ "concurrencyPolicy": "Replace" }));
        let plan = decide(&replace, &running, at);
        assert!(plan.create.is_some() && plan.delete.len() == 1);
        assert!(decide(&cron(json!({ "suspend": true })), &[], at).create.is_none());
        let strict = cron(json!({ "startingDeadlineSeconds": 10 }));
        assert!(decide(&strict, &[], at).create.is_some());
        assert_eq!(decide(&strict, &[], time("08:05:11")).say.unwrap().1, "MissSchedule");
        for (bad, reason) in [
            (json!({ "schedule": "every day" }), "UnparseableSchedule"),
            (json!({ "timeZone": "Mars/Olympus" }), "UnknownTimeZone"),
            (json!({ "schedule": "TZ=UTC 0 0 * * *" }), "UnparseableSchedule"),
        ] {
            assert_eq!(decide(&cron(bad), &[], at).say.unwrap().1, reason);
        }
    }

    #[test]
    fn the_time_zone_counts() {
        let tokyo = cron(json!({ "schedule": "0 18 * * *", "timeZone": "Asia/Tokyo" }));
        assert!(decide(&tokyo, &[], time("08:59:59")).create.is_none());
        let job = decide(&tokyo, &[], time("09:00:01")).create.unwrap();
        assert_eq!(
            job.metadata.annotations.unwrap()["batch.kubernetes.io/cronjob-scheduled-timestamp"],
            "2027-01-15T18:00:00+09:00"
        );
    }

    #[test]
    fn more_than_a_hundred_missed_moments_are_told() {
        let at = time("18:00:00");
        assert_eq!(decide(&cron(json!({})), &[], at).say.unwrap().1, "TooManyMissedTimes");
        assert!(decide(&cron(json!({})), &[], at).create.is_some(), "and the last is made up for");
        assert!(decide(&cron(json!({ "startingDeadlineSeconds": 3600 })), &[], at).say.is_none());
    }

    #[test]
    fn history_is_kept_to_its_limits() {
        let cron = cron(json!({ "successfulJobsHistoryLimit": 1 }));
        let own = [
            run_of(&cron, "07:00:00", Some("Complete")),
            run_of(&cron, "07:05:00", Some("Complete")),
            run_of(&cron, "07:10:00", Some("Failed")),
            run_of(&cron, "07:15:00", Some("Failed")),
            run_of(&cron, "07:20:00", None),
        ];
        let plan = decide(&cron, &own, time("08:02:00"));
        let gone: Vec<_> = plan.delete.iter().map(|j| j.metadata.uid.as_deref().unwrap()).collect();
        assert_eq!(gone, ["07:00:00", "07:10:00"]);
        assert_eq!(plan.status.last_successful_time, Some(Time(time("07:05:00"))));
    }
}
