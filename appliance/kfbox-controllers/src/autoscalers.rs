//! HorizontalPodAutoscalers: as many replicas as the use of resources asks for. Follows
//! <https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/>: resource and container metrics of
//! `metrics.k8s.io`; there is no API of custom or external metrics here, and such metrics say so in the condition.
//! Invariant: a target is only changed through its scale subresource, and only as it was read.

mod metrics;
mod pace;
mod usage;

use crate::{
    cache::{self, Key},
    context::{Context, Registered},
    garbage::discovery::Resource,
    queue::{Outcome, Queue},
    scheduler::fit,
    write::{self, WriteError},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        autoscaling::{
            v1::Scale,
            v2::{
                ContainerResourceMetricStatus, HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition,
                HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus, MetricTarget,
                MetricValueStatus, ResourceMetricStatus,
            },
        },
        core::v1::Pod,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};
use kube::{
    Api,
    api::{DynamicObject, ListParams, Patch, PatchParams},
};
use metrics::Usage;
use pace::History;
use parking_lot::Mutex;
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use usage::{Measure, Target};

const COMPONENT: &str = "horizontal-pod-autoscaler";
const WORKERS: usize = 4;
/// `--horizontal-pod-autoscaler-sync-period`.
const PERIOD: Duration = Duration::from_secs(15);
/// After what passes by itself: a kind that is new, a target that was written to meanwhile.
const SOON: Duration = Duration::from_secs(2);
/// `--horizontal-pod-autoscaler-tolerance`.
const TOLERANCE: f64 = 0.1;

/// What is known of an autoscaler beyond the object.
#[derive(Default)]
struct Memory {
    history: History,
    /// The pods it last counted: those of two autoscalers belong to neither.
    pods: HashSet<String>,
}

type Memories = Arc<Mutex<HashMap<Key, Memory>>>;

pub fn register(context: &Arc<Context>) -> Registered {
    let queue = Queue::<Key>::new();
    let memories = Memories::default();
    let (q, m) = (queue.clone(), memories.clone());
    context.caches.autoscalers.on_change(move |change| match (change.old, change.new) {
        (Some(old), None) => {
            m.lock().remove(&cache::key(&**old));
        }
        // Its status is our own word.
        (old, Some(new)) if old.is_none_or(|old| old.spec != new.spec) => q.add(cache::key(&**new)),
        _ => {}
    });
    let context = context.clone();
    let run = async move {
        context.caches.synced().await;
        let shutdown = context.shutdown.clone();
        queue
            .run("horizontalpodautoscaler", WORKERS, shutdown, move |key| {
                reconcile(context.clone(), memories.clone(), key)
            })
            .await
    };
    ("horizontalpodautoscaler", Box::pin(run))
}

async fn reconcile(context: Arc<Context>, memories: Memories, key: Key) -> Result<Outcome, WriteError> {
    let caches = &context.caches;
    let Some(hpa) = caches.autoscalers.get(&key.0, &key.1) else {
        memories.lock().remove(&key);
        return Ok(Outcome::Done);
    };
    let spec = &hpa.spec;
    if hpa.metadata.deletion_timestamp.is_some() {
        return Ok(Outcome::Done);
    }
    let old = hpa.status.clone().unwrap_or_default();
    let mut status = old.clone();
    let kind = target_kind(&context, spec);
    let again = look(&context, &memories, &key, &hpa, kind, &mut status).await;
    write::status_of(&context.client, &caches.autoscalers, &*hpa, &old, &status).await?;
    Ok(Outcome::Again(again))
}

fn set(status: &mut HorizontalPodAutoscalerStatus, kind: &str, yes: bool, reason: &str, message: &str) {
    let value = if yes { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let since =
        conditions.iter().find(|c| c.type_ == kind && c.status == value).and_then(|c| c.last_transition_time.clone());
    let condition = HorizontalPodAutoscalerCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: Some(since.unwrap_or(Time(Timestamp::now()))),
    };
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(present) => *present = condition,
        None => conditions.push(condition),
    }
}

/// The kind that is to be scaled, if the cluster knows it.
fn target_kind(context: &Context, spec: &HorizontalPodAutoscalerSpec) -> Result<Arc<Resource>, String> {
    let target = &spec.scale_target_ref;
    let version = target.api_version.as_deref().unwrap_or_default();
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    let known = context.resources.borrow();
    let found = known.iter().find(|r| r.same_kind(group, &target.kind)).cloned();
    found.ok_or_else(|| match group {
        "" => format!("no matches for kind {:?} in group \"\"", target.kind),
        group => format!("no matches for kind {:?} in group {group:?}", target.kind),
    })
}

/// One round: reads, decides, scales, and says so in `status`. In how long to look again.
async fn look(
    context: &Context,
    memories: &Memories,
    key: &Key,
    hpa: &HorizontalPodAutoscaler,
    kind: Result<Arc<Resource>, String>,
    status: &mut HorizontalPodAutoscalerStatus,
) -> Duration {
    let spec = &hpa.spec;
    let is_known = kind.is_ok();
    let events = &context.events;
    let name = spec.scale_target_ref.name.as_str();
    let read = async {
        let resource = kind?;
        let api = Api::<DynamicObject>::namespaced_with(context.client.clone(), &key.0, &resource.api);
        let scale = api.get_scale(name).await.map_err(|error| error.to_string())?;
        Ok::<_, String>((api, scale))
    };
    let (api, scale) = match read.await {
        Ok(found) => found,
        Err(why) => {
            events.warning(hpa, COMPONENT, "FailedGetScale", why.clone());
            let message = format!("the HPA controller was unable to get the target's current scale: {why}");
            set(status, "AbleToScale", false, "FailedGetScale", &message);
            return if is_known { PERIOD } else { SOON };
        }
    };
    set(
        status,
        "AbleToScale",
        true,
        "SucceededGetScale",
        "the HPA controller was able to get the target's current scale",
    );
    let current = scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
    let held = scale.status.as_ref().map_or(0, |s| s.replicas);
    memories.lock().entry(key.clone()).or_default().history.begin(current, Timestamp::now());
    let min = spec.min_replicas.unwrap_or(1);
    let mut current_metrics = None;

    let (desired, why) = if current == 0 && min != 0 {
        set(
            status,
            "ScalingActive",
            false,
            "ScalingDisabled",
            "scaling is disabled since the replica count of the target is zero",
        );
        (current, String::new())
    } else if current > spec.max_replicas {
        (spec.max_replicas, "Current number of replicas above Spec.MaxReplicas".into())
    } else if current < min {
        (min, "Current number of replicas below Spec.MinReplicas".into())
    } else {
        match measure(context, memories, key, hpa, spec, &scale).await {
            Err(unable) => {
                if let Some(reason) = unable.reason {
                    set(status, "ScalingActive", false, reason, &unable.condition);
                }
                events.warning(hpa, COMPONENT, "FailedComputeMetricsReplicas", unable.error);
                status.current_replicas = Some(held);
                return PERIOD;
            }
            Ok(found) => {
                let message = format!("the HPA was able to successfully calculate a replica count from {}", found.name);
                set(status, "ScalingActive", true, "ValidMetricFound", &message);
                current_metrics = Some(found.statuses);
                let mut memories = memories.lock();
                let history = &mut memories.entry(key.clone()).or_default().history;
                let paced = history.pace(spec, current, found.replicas, Timestamp::now());
                set(status, "AbleToScale", paced.able.0, paced.able.1, paced.able.2);
                set(status, "ScalingLimited", paced.limited.0, paced.limited.1, paced.limited.2);
                let why = if found.replicas > current {
                    format!("{} above target", found.name)
                } else {
                    "All metrics below target".into()
                };
                (paced.replicas, why)
            }
        }
    };

    if desired != current {
        let body = json!({ "metadata": { "resourceVersion": scale.metadata.resource_version }, "spec": { "replicas": desired } });
        if let Err(error) = api.patch_scale(name, &PatchParams::default(), &Patch::Merge(body)).await {
            let message = format!("New size: {desired}; reason: {why}; error: {error}");
            events.warning(hpa, COMPONENT, "FailedRescale", message);
            let message = format!("the HPA controller was unable to update the target scale: {error}");
            set(status, "AbleToScale", false, "FailedUpdateScale", &message);
            status.current_replicas = Some(held);
            return if write::is_conflict(&error) { SOON } else { PERIOD };
        }
        let message = format!("the HPA controller was able to update the target scale to {desired}");
        set(status, "AbleToScale", true, "SucceededRescale", &message);
        events.normal(hpa, COMPONENT, "SuccessfulRescale", format!("New size: {desired}; reason: {why}"));
        let now = Timestamp::now();
        memories.lock().entry(key.clone()).or_default().history.scaled(current, desired, now);
        status.last_scale_time = Some(Time(now));
    }
    status.current_replicas = Some(held);
    status.desired_replicas = desired;
    status.current_metrics = current_metrics;
    PERIOD
}

/// Why no number came of the metrics.
struct Unable {
    reason: Option<&'static str>,
    condition: String,
    error: String,
}

struct Found {
    replicas: i32,
    name: String,
    statuses: Vec<MetricStatus>,
}

async fn measure(
    context: &Context,
    memories: &Memories,
    key: &Key,
    hpa: &HorizontalPodAutoscaler,
    spec: &HorizontalPodAutoscalerSpec,
    scale: &Scale,
) -> Result<Found, Unable> {
    let selector = scale.status.as_ref().and_then(|s| s.selector.clone()).unwrap_or_default();
    let refuse =
        |reason: &'static str, condition: String| Unable { reason: Some(reason), error: condition.clone(), condition };
    if selector.is_empty() {
        let why = "the HPA target's scale is missing a selector";
        context.events.warning(hpa, COMPONENT, "SelectorRequired", why);
        return Err(Unable {
            reason: Some("InvalidSelector"),
            condition: why.into(),
            error: "selector is required".into(),
        });
    }
    let api = Api::<Pod>::namespaced(context.client.clone(), &key.0);
    let pods = match api.list(&ListParams::default().labels(&selector)).await {
        Ok(list) => list.items,
        Err(error) => {
            let why = format!("couldn't convert selector into a corresponding internal selector object: {error}");
            context.events.warning(hpa, COMPONENT, "InvalidSelector", why.clone());
            return Err(refuse("InvalidSelector", why));
        }
    };
    let others = sharing(memories, key, &pods);
    if !others.is_empty() {
        let why = format!("pods by selector {selector} are controlled by multiple HPAs: [{}]", others.join(" "));
        context.events.warning(hpa, COMPONENT, "AmbiguousSelector", why.clone());
        return Err(refuse("AmbiguousSelector", why));
    }

    let specs = spec.metrics.clone().unwrap_or_default();
    let resources = specs.iter().any(|m| m.resource.is_some() || m.container_resource.is_some());
    let usage = if resources { metrics::fetch(&context.client, &key.0, &selector).await } else { Ok(BTreeMap::new()) };
    let (found, refused) = weigh(spec, &specs, &pods, &usage, scale, Timestamp::now());
    for (reason, error) in &refused.events {
        context.events.warning(hpa, COMPONENT, reason, error.clone());
    }
    match refused.unable {
        Some(unable) => Err(unable),
        None => Ok(found),
    }
}

/// The other autoscalers that count some of these pods, with this one; notes whom this one counts.
fn sharing(memories: &Memories, key: &Key, pods: &[Pod]) -> Vec<String> {
    let uids: HashSet<String> = pods.iter().filter_map(|p| p.metadata.uid.clone()).collect();
    let mut memories = memories.lock();
    let mut names: Vec<String> = memories
        .iter()
        .filter(|(other, memory)| *other != key && !memory.pods.is_disjoint(&uids))
        .map(|((namespace, name), _)| format!("{namespace}/{name}"))
        .collect();
    if !names.is_empty() {
        names.push(format!("{}/{}", key.0, key.1));
        names.sort();
    }
    memories.entry(key.clone()).or_default().pods = uids;
    names
}

#[derive(Default)]
struct Refused {
    events: Vec<(&'static str, String)>,
    unable: Option<Unable>,
}

/// The largest of what the metrics ask for. Metrics that cannot be had do no harm unless the answer would be fewer
/// replicas. Pure.
fn weigh(
    spec: &HorizontalPodAutoscalerSpec,
    specs: &[MetricSpec],
    pods: &[Pod],
    usage: &Result<BTreeMap<String, Usage>, String>,
    scale: &Scale,
    now: Timestamp,
) -> (Found, Refused) {
    let current = scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
    let mut found = Found { replicas: 0, name: String::new(), statuses: Vec::new() };
    let mut refused = Refused::default();
    let mut first: Option<(&'static str, String, String)> = None;
    let mut invalid = 0;
    for metric in specs {
        match of_metric(spec, metric, pods, usage, current, now) {
            Ok((replicas, name, status)) => {
                found.statuses.push(status);
                if found.name.is_empty() || replicas > found.replicas {
                    (found.replicas, found.name) = (replicas, name);
                }
            }
            Err((reason, what, error)) => {
                refused.events.push((reason, error.clone()));
                first.get_or_insert((reason, error.clone(), format!("failed to get {what} metric value: {error}")));
                invalid += 1;
            }
        }
    }
    let some_left = !found.name.is_empty();
    if let Some((reason, error, whole)) = first.filter(|_| !some_left || found.replicas < current) {
        refused.unable = Some(Unable {
            reason: Some(reason),
            condition: format!("the HPA was unable to compute the replica count: {error}"),
            error: format!("invalid metrics ({invalid} invalid out of {}), first error is: {whole}", specs.len()),
        });
    }
    (found, refused)
}

type Weighed = Result<(i32, String, MetricStatus), (&'static str, String, String)>;

fn of_metric(
    spec: &HorizontalPodAutoscalerSpec,
    metric: &MetricSpec,
    pods: &[Pod],
    usage: &Result<BTreeMap<String, Usage>, String>,
    current: i32,
    now: Timestamp,
) -> Weighed {
    const NO_CUSTOM: &str =
        "unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered";
    let (resource, container, target, reason) = match metric {
        MetricSpec { resource: Some(source), .. } => (&source.name, None, &source.target, "FailedGetResourceMetric"),
        MetricSpec { container_resource: Some(source), .. } => {
            (&source.name, Some(source.container.as_str()), &source.target, "FailedGetContainerResourceMetric")
        }
        MetricSpec { pods: Some(source), .. } => {
            let error = format!("unable to get metric {}: {NO_CUSTOM}", source.metric.name);
            return Err(("FailedGetPodsMetric", "pods".into(), error));
        }
        MetricSpec { object: Some(source), .. } => {
            let object = &source.described_object;
            let error =
                format!("unable to get metric {}: {} on {}: {NO_CUSTOM}", source.metric.name, object.kind, object.name);
            return Err(("FailedGetObjectMetric", "object".into(), error));
        }
        MetricSpec { external: Some(source), .. } => {
            let name = &source.metric.name;
            let error = format!(
                "unable to get external metric {name}: unable to fetch metrics from external metrics API: the server \
                 could not find the requested resource (get {name}.external.metrics.k8s.io)"
            );
            return Err(("FailedGetExternalMetric", format!("{name} external"), error));
        }
        other => {
            let error = format!("unknown metric source type {:?}", other.type_);
            return Err(("InvalidMetricSourceType", other.type_.clone(), error));
        }
    };
    let kind = if container.is_some() { "container resource" } else { "resource" };
    let fail = |error: String| {
        (reason, format!("{resource} {}", if container.is_some() { "container" } else { "resource" }), error)
    };
    let goal = goal(target);
    let what = if matches!(goal, Some(Target::Average(_))) { "usage" } else { "utilization" };
    let Some(goal) = goal else {
        return Err(fail(
            "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set"
                .into(),
        ));
    };
    let usage = usage.as_ref().map_err(|why| {
        fail(format!("failed to get {resource} {what}: unable to get metrics for resource {resource}: {why}"))
    })?;
    let tolerance = |up: bool| {
        let rules = spec.behavior.as_ref().and_then(|b| if up { b.scale_up.as_ref() } else { b.scale_down.as_ref() });
        let given = rules.and_then(|r| r.tolerance.as_ref()).and_then(fit::milli);
        given.and_then(|m| i32::try_from(m).ok()).map_or(TOLERANCE, |m| f64::from(m) / 1000.0)
    };
    let measure =
        Measure { pods, usage, resource, container, current, tolerance: (tolerance(false), tolerance(true)), now };
    let answer = measure.propose(&goal).map_err(|why| fail(format!("failed to get {resource} {what}: {why}")))?;
    let name = match goal {
        Target::Utilization(_) => format!("{resource} {kind} utilization (percentage of request)"),
        Target::Average(_) => format!("{resource} {kind}"),
    };
    let value = MetricValueStatus {
        average_utilization: answer.utilization,
        average_value: Some(quantity(answer.average)),
        value: None,
    };
    let status = match container {
        Some(container) => MetricStatus {
            type_: "ContainerResource".into(),
            container_resource: Some(ContainerResourceMetricStatus {
                container: container.into(),
                name: resource.clone(),
                current: value,
            }),
            ..MetricStatus::default()
        },
        None => MetricStatus {
            type_: "Resource".into(),
            resource: Some(ResourceMetricStatus { name: resource.clone(), current: value }),
            ..MetricStatus::default()
        },
    };
    Ok((answer.replicas, name, status))
}

fn goal(target: &MetricTarget) -> Option<Target> {
    if let Some(value) = &target.average_value {
        return Some(Target::Average(fit::milli(value).and_then(|m| i64::try_from(m).ok())?));
    }
    target.average_utilization.map(Target::Utilization)
}

/// Thousandths in the canonical form of a decimal quantity.
fn quantity(milli: i64) -> Quantity {
    if milli % 1000 != 0 {
        return Quantity(format!("{milli}m"));
    }
    let mut number = milli / 1000;
    let mut suffix = "";
    for next in ["k", "M", "G", "T", "P"] {
        if number == 0 || number % 1000 != 0 {
            break;
        }
        number /= 1000;
        suffix = next;
    }
    Quantity(format!("{number}{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{at, object};
    use serde_json::Value;

    fn decided(metrics: Value, usage: Result<Value, &str>) -> (Found, Refused) {
        let spec: HorizontalPodAutoscalerSpec = object(
            json!({ "maxReplicas": 9, "scaleTargetRef": { "kind": "Deployment", "name": "d" }, "metrics": metrics }),
        );
        let pods: Vec<Pod> = vec![object(json!({ "metadata": { "name": "a", "namespace": "n" },
            "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "500m", "memory": "1Gi" } } }] },
            "status": { "phase": "Running", "startTime": at(0).to_string(),
                "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": at(5).to_string() }] } }))];
        let usage = usage.map_err(str::to_owned).map(|resources| {
            let containers: BTreeMap<String, BTreeMap<String, i64>> =
                BTreeMap::from([("c".into(), serde_json::from_value(resources).unwrap())]);
            BTreeMap::from([(
                "a".to_owned(),
                Usage { at: at(990), window: jiff::SignedDuration::from_secs(15), containers },
            )])
        });
        let scale: Scale = object(
            json!({ "metadata": {}, "spec": { "replicas": 2 }, "status": { "replicas": 2, "selector": "a=b" } }),
        );
        let specs = spec.metrics.clone().unwrap();
        weigh(&spec, &specs, &pods, &usage, &scale, at(1000))
    }

    fn resource(name: &str, target: Value) -> Value {
        json!({ "type": "Resource", "resource": { "name": name, "target": target } })
    }

    #[test]
    fn the_largest_of_the_metrics_counts() {
        let cpu = resource("cpu", json!({ "type": "Utilization", "averageUtilization": 50 }));
        let memory = resource("memory", json!({ "type": "AverageValue", "averageValue": "100" }));
        let (found, refused) = decided(json!([cpu, memory]), Ok(json!({ "cpu": 400, "memory": 700_000 })));
        assert!(refused.unable.is_none());
        assert_eq!((found.replicas, found.name.as_str()), (7, "memory resource"));
        let current = found.statuses[0].resource.clone().unwrap().current;
        assert_eq!((current.average_utilization, current.average_value), (Some(80), Some(Quantity("400m".into()))));
        assert_eq!(found.statuses[1].resource.clone().unwrap().current.average_value, Some(Quantity("700".into())));
    }

    #[test]
    fn a_metric_that_cannot_be_had_forbids_going_down_but_not_up() {
        let cpu = resource("cpu", json!({ "type": "Utilization", "averageUtilization": 50 }));
        let custom = json!({ "type": "Pods", "pods": { "metric": { "name": "hits" }, "target": { "type": "AverageValue", "averageValue": "1" } } });
        let (up, refused) = decided(json!([custom, cpu]), Ok(json!({ "cpu": 2000 })));
        assert!(refused.unable.is_none());
        assert_eq!((up.replicas, refused.events[0].0), (8, "FailedGetPodsMetric"));
        let (_, down) = decided(json!([custom, cpu]), Ok(json!({ "cpu": 10 })));
        let unable = down.unable.unwrap();
        assert_eq!(unable.reason, Some("FailedGetPodsMetric"));
        assert!(unable.error.starts_with("invalid metrics (1 invalid out of 2), first error is: failed to get pods metric value: unable to get metric hits: "));
    }

    #[test]
    fn without_a_metrics_server_the_condition_says_upstreams_words() {
        let cpu = resource("cpu", json!({ "type": "Utilization", "averageUtilization": 50 }));
        let (_, refused) = decided(json!([cpu]), Err("unable to fetch metrics from resource metrics API: x"));
        let unable = refused.unable.unwrap();
        assert_eq!(
            unable.condition,
            "the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for resource cpu: unable to fetch metrics from resource metrics API: x"
        );
        assert_eq!(unable.reason, Some("FailedGetResourceMetric"));
    }

    #[test]
    fn quantities_are_canonical() {
        for (milli, text) in [(0, "0"), (250, "250m"), (1000, "1"), (1_000_000, "1k"), (104_857_600_000, "104857600")] {
            assert_eq!(quantity(milli).0, text);
        }
    }
}
