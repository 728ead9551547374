//! How many replicas a use of resources asks for (`replica_calculator.go`). Pure. Pods without figures, not ready or going
//! are taken so that they never cause a change by themselves: on the way down as busy, on the way up as idle.

use super::metrics::Usage;
use crate::{pods, scheduler::fit};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::{BTreeMap, BTreeSet};

/// `--horizontal-pod-autoscaler-cpu-initialization-period`.
const INITIALIZATION: SignedDuration = SignedDuration::from_secs(300);
/// `--horizontal-pod-autoscaler-initial-readiness-delay`.
const READINESS_DELAY: SignedDuration = SignedDuration::from_secs(30);

/// What is measured, of which pods.
pub struct Measure<'a> {
    pub pods: &'a [Pod],
    pub usage: &'a BTreeMap<String, Usage>,
    pub resource: &'a str,
    /// One container of each pod instead of all.
    pub container: Option<&'a str>,
    pub current: i32,
    /// How far from its target, as a share, a use may be without a change: downwards, upwards.
    pub tolerance: (f64, f64),
    pub now: Timestamp,
}

#[derive(Debug, PartialEq)]
pub struct Answer {
    pub replicas: i32,
    /// In percent of what is requested, when that is the target.
    pub utilization: Option<i32>,
    /// A pod's average, in thousandths.
    pub average: i64,
}

#[derive(Default)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

pub enum Target {
    /// Percent of the requests.
    Utilization(i32),
    /// Thousandths a pod.
    Average(i64),
}

impl Measure<'_> {
    /// Each pod's use, where all of it is known.
    fn samples(&self) -> Result<BTreeMap<String, i64>, String> {
        let mut samples = BTreeMap::new();
        let known: BTreeSet<&str> = self.pods.iter().map(pods::name).collect();
        for (name, usage) in self.usage.iter().filter(|(name, _)| known.contains(name.as_str())) {
            let values: Vec<Option<i64>> = match self.container {
                Some(container) => match usage.containers.get(container) {
                    Some(resources) => vec![resources.get(self.resource).copied()],
                    None => {
                        let namespace =
                            self.pods.first().and_then(|p| p.metadata.namespace.as_deref()).unwrap_or_default();
                        return Err(format!("container {container} not present in metrics for pod {namespace}/{name}"));
                    }
                },
                None => usage.containers.values().map(|resources| resources.get(self.resource).copied()).collect(),
            };
            if let Some(total) = values.into_iter().sum::<Option<i64>>() {
                samples.insert(name.clone(), total);
            }
        }
        if samples.is_empty() {
            return Err("no metrics returned from resource metrics API".into());
        }
        Ok(samples)
    }

    fn groups(&self, samples: &BTreeMap<String, i64>) -> Groups {
        let mut groups = Groups::default();
        for pod in self.pods {
            let name = pods::name(pod).to_owned();
            if pods::is_deleting(pod) || pods::phase(pod) == "Failed" {
                groups.ignored.insert(name);
            } else if pods::phase(pod) == "Pending" {
                groups.unready.insert(name);
            } else if !samples.contains_key(&name) {
                groups.missing.insert(name);
            } else if self.resource == "cpu" && self.is_starting(pod) {
                groups.unready.insert(name);
            } else {
                groups.ready += 1;
            }
        }
        groups
    }

    /// Whether the pod's use of CPU says nothing yet: it starts, or never was ready.
    fn is_starting(&self, pod: &Pod) -> bool {
        let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
        let (Some(started), Some(ready)) = (started, pods::condition(pod, "Ready")) else { return true };
        let since = ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |t| t.0);
        let plus = |at: Timestamp, by: SignedDuration| at.checked_add(by).unwrap_or(Timestamp::MAX);
        if plus(started, INITIALIZATION) > self.now {
            let sample = self.usage.get(pods::name(pod));
            ready.status == "False" || sample.is_none_or(|u| u.at < plus(since, u.window))
        } else {
            ready.status == "False" && plus(started, READINESS_DELAY) > since
        }
    }

    fn requests(&self) -> Result<BTreeMap<String, i64>, String> {
        self.pods.iter().map(|pod| Ok((pods::name(pod).to_owned(), self.request(pod)?))).collect()
    }

    fn request(&self, pod: &Pod) -> Result<i64, String> {
        let Some(spec) = &pod.spec else { return Ok(0) };
        let amount = |q| fit::milli(q).and_then(|m| i64::try_from(m).ok()).unwrap_or(0);
        let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|r| r.get(self.resource));
        if let (Some(whole), None) = (whole, self.container) {
            return Ok(amount(whole));
        }
        let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let mut total = 0_i64;
        let wanted = |c: &&Container| self.container.is_none_or(|name| c.name == name);
        for container in spec.containers.iter().chain(sidecars).filter(wanted) {
            let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            let Some(request) = requests.and_then(|r| r.get(self.resource)) else {
                return Err(format!(
                    "missing request for {} in container {} of Pod {}",
                    self.resource,
                    container.name,
                    pods::name(pod)
                ));
            };
            total = total.saturating_add(amount(request));
        }
        Ok(total)
    }

    fn is_tolerated(&self, ratio: f64) -> bool {
        (1.0 - self.tolerance.0..=1.0 + self.tolerance.1).contains(&ratio)
    }

    /// The replicas that bring the use to its target.
    pub fn propose(&self, target: &Target) -> Result<Answer, String> {
        if self.pods.is_empty() && !self.usage.is_empty() {
            return Err("no pods returned by selector while calculating replica count".into());
        }
        let mut samples =
            self.samples().map_err(|why| format!("unable to get metrics for resource {}: {why}", self.resource))?;
        let groups = self.groups(&samples);
        samples.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
        let requests = match target {
            Target::Utilization(_) => self.requests()?,
            Target::Average(_) => BTreeMap::new(),
        };
        if samples.is_empty() {
            return Err("did not receive metrics for any ready pods".into());
        }
        let (ratio, utilization, average) = ratio(&samples, &requests, target)?;
        let answer = |replicas: i32| Ok(Answer { replicas, utilization, average });

        let rebalance = !groups.unready.is_empty() && ratio > 1.0;
        if !rebalance && groups.missing.is_empty() {
            return answer(if self.is_tolerated(ratio) { self.current } else { ceil(ratio, groups.ready) });
        }
        for name in &groups.missing {
            let assumed = match target {
                _ if ratio > 1.0 => 0,
                Target::Utilization(_) if ratio == 1.0 => continue,
                // Busier than the target, should that be above what is requested.
                Target::Utilization(percent) => {
                    requests.get(name).copied().unwrap_or(0).saturating_mul(i64::from((*percent).max(100))) / 100
                }
                Target::Average(_) if ratio == 1.0 => 0,
                Target::Average(value) => *value,
            };
            samples.insert(name.clone(), assumed);
        }
        if rebalance {
            samples.extend(groups.unready.iter().map(|name| (name.clone(), 0)));
        }
        let (again, _, _) = self::ratio(&samples, &requests, target)?;
        if self.is_tolerated(again) || (ratio < 1.0 && again > 1.0) || (ratio > 1.0 && again < 1.0) {
            return answer(self.current);
        }
        let replicas = ceil(again, samples.len());
        let turned = (again < 1.0 && replicas > self.current) || (again > 1.0 && replicas < self.current);
        answer(if turned { self.current } else { replicas })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "counts of pods are small; the cast saturates"
)]
fn ceil(ratio: f64, pods: usize) -> i32 {
    (ratio * pods as f64).ceil() as i32
}

/// Use over target, the use in percent, and the average in thousandths.
#[expect(clippy::cast_precision_loss, reason = "ratios, where a rounding in the sixteenth digit changes nothing")]
fn ratio(
    samples: &BTreeMap<String, i64>,
    requests: &BTreeMap<String, i64>,
    target: &Target,
) -> Result<(f64, Option<i32>, i64), String> {
    match target {
        Target::Average(value) => {
            let total = samples.values().copied().fold(0_i64, i64::saturating_add);
            let average = total / i64::try_from(samples.len()).unwrap_or(1).max(1);
            Ok((average as f64 / (*value).max(1) as f64, None, average))
        }
        Target::Utilization(percent) => {
            let known = samples.iter().filter_map(|(name, used)| Some((*used, *requests.get(name)?)));
            let (mut used, mut requested, mut count) = (0_i64, 0_i64, 0_i64);
            for (u, r) in known {
                used = used.saturating_add(u);
                requested = requested.saturating_add(r);
                count += 1;
            }
            if requested == 0 {
                return Err("no metrics returned matched known pods".into());
            }
            let utilization = i32::try_from(i128::from(used) * 100 / i128::from(requested)).unwrap_or(i32::MAX);
            Ok((f64::from(utilization) / f64::from((*percent).max(1)), Some(utilization), used / count.max(1)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{at, object};
    use serde_json::json;

    fn pod(name: &str, phase: &str, ready: bool, ready_since: i64) -> Pod {
        object(json!({
            "metadata": { "name": name, "namespace": "n" },
            "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" } } }] },
            "status": { "phase": phase, "startTime": at(0).to_string(), "conditions": [{ "type": "Ready",
                "status": if ready { "True" } else { "False" }, "lastTransitionTime": at(ready_since).to_string() }] },
        }))
    }

    fn used(values: &[(&str, i64)]) -> BTreeMap<String, Usage> {
        let usage = |milli: i64| Usage {
            at: at(590),
            window: SignedDuration::from_secs(15),
            containers: BTreeMap::from([("c".into(), BTreeMap::from([("cpu".into(), milli)]))]),
        };
        values.iter().map(|(name, milli)| ((*name).into(), usage(*milli))).collect()
    }

    fn propose(pods: &[Pod], usage: &[(&str, i64)], percent: i32) -> Result<(i32, i32), String> {
        let usage = used(usage);
        let current = i32::try_from(pods.len()).unwrap();
        let measure = Measure {
            pods,
            usage: &usage,
            resource: "cpu",
            container: None,
            current,
            tolerance: (0.1, 0.1),
            now: at(600),
        };
        measure.propose(&Target::Utilization(percent)).map(|a| (a.replicas, a.utilization.unwrap()))
    }

    fn running(names: &[&str]) -> Vec<Pod> {
        names.iter().map(|n| pod(n, "Running", true, 10)).collect()
    }

    #[test]
    fn use_over_target_times_ready_pods_rounded_up() {
        let pods = running(&["a", "b"]);
        assert_eq!(propose(&pods, &[("a", 900), ("b", 900)], 50), Ok((4, 90)));
        assert_eq!(propose(&pods, &[("a", 100), ("b", 100)], 50), Ok((1, 10)));
        assert_eq!(propose(&pods, &[("a", 540), ("b", 540)], 50), Ok((2, 54)), "within tolerance");
        assert_eq!(propose(&pods, &[("a", 560), ("b", 560)], 50), Ok((3, 56)), "beyond it");
    }

    #[test]
    fn what_is_not_known_never_causes_a_change_by_itself() {
        let pods = running(&["a", "b", "c"]);
        // Up: the missing are idle. 300% of three pods' requests over 50% would be 6 a pod.
        assert_eq!(propose(&pods, &[("a", 1000), ("b", 1000)], 50), Ok((4, 100)));
        // Down: the missing are fully busy, which turns the direction.
        assert_eq!(propose(&pods, &[("a", 400), ("b", 400)], 50), Ok((3, 40)));
        assert_eq!(propose(&pods, &[("a", 100), ("b", 100)], 90), Ok((2, 10)));
        let mut pods = running(&["a", "b"]);
        pods.push(pod("new", "Pending", false, 10));
        // One that is not ready counts as idle on the way up, and not at all on the way down.
        assert_eq!(propose(&pods, &[("a", 900), ("b", 900)], 50), Ok((4, 90)));
        assert_eq!(propose(&pods, &[("a", 100), ("b", 100)], 50), Ok((1, 10)));
        let mut pods = running(&["a", "b"]);
        pods.push(pod("dead", "Failed", false, 10));
        assert_eq!(
            propose(&pods, &[("a", 500), ("b", 500), ("dead", 9000)], 50),
            Ok((3, 50)),
            "the failed say nothing"
        );
    }

    #[test]
    fn a_pod_that_starts_is_not_measured() {
        let starting = |now: i64, ready: bool, since: i64, sampled: i64| {
            let pods = [pod("a", "Running", ready, since)];
            let mut usage = used(&[("a", 1)]);
            usage.get_mut("a").unwrap().at = at(sampled);
            Measure {
                pods: &pods,
                usage: &usage,
                resource: "cpu",
                container: None,
                current: 1,
                tolerance: (0.1, 0.1),
                now: at(now),
            }
            .is_starting(&pods[0])
        };
        assert!(starting(100, true, 90, 100), "its window began before it was ready");
        assert!(!starting(100, true, 10, 90));
        assert!(starting(100, false, 10, 90));
        assert!(starting(600, false, 20, 590), "never ready");
        assert!(!starting(600, false, 400, 590), "it was ready, and is overloaded now");
    }

    #[test]
    fn errors_say_what_is_missing() {
        let pods = running(&["a"]);
        let text = |r: Result<(i32, i32), String>| r.unwrap_err();
        assert_eq!(
            text(propose(&pods, &[], 50)),
            "unable to get metrics for resource cpu: no metrics returned from resource metrics API"
        );
        assert_eq!(text(propose(&[], &[("a", 1)], 50)), "no pods returned by selector while calculating replica count");
        assert_eq!(
            text(propose(&[pod("a", "Pending", false, 0)], &[("a", 1)], 50)),
            "did not receive metrics for any ready pods"
        );
        let mut bare = pods.clone();
        bare[0].spec.as_mut().unwrap().containers[0].resources = None;
        assert_eq!(text(propose(&bare, &[("a", 1)], 50)), "missing request for cpu in container c of Pod a");
    }

    #[test]
    fn an_average_and_one_container_are_measured_too() {
        let pods = running(&["a", "b"]);
        let usage = used(&[("a", 300), ("b", 500)]);
        let mut measure = Measure {
            pods: &pods,
            usage: &usage,
            resource: "cpu",
            container: Some("c"),
            current: 2,
            tolerance: (0.1, 0.1),
            now: at(600),
        };
        assert_eq!(measure.propose(&Target::Average(200)), Ok(Answer { replicas: 4, utilization: None, average: 400 }));
        measure.container = Some("x");
        assert!(
            measure
                .propose(&Target::Average(200))
                .unwrap_err()
                .ends_with("container x not present in metrics for pod n/a")
        );
    }
}
