//! How fast a number of replicas may follow what metrics ask for: stabilization windows and scaling policies. Pure but
//! for the memory of earlier recommendations and changes, which is lost at a restart, as upstream's.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerSpec};

/// `--horizontal-pod-autoscaler-downscale-stabilization`.
const STABILIZATION: i32 = 300;
/// The longest window or period that the API admits; what is older is forgotten.
const MEMORY: SignedDuration = SignedDuration::from_secs(3600);

#[derive(Debug, Default)]
pub struct History {
    recommendations: Vec<(Timestamp, i32)>,
    /// Changes: up positive, down negative.
    changes: Vec<(Timestamp, i32)>,
}

/// A condition's status, reason and message.
pub type Said = (bool, &'static str, &'static str);

pub struct Paced {
    pub replicas: i32,
    pub able: Said,
    pub limited: Said,
}

const READY: Said = (true, "ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: Said = (
    true,
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABILIZED: Said = (
    true,
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const WITHIN: (&str, &str) = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FEW: (&str, &str) = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_MANY: (&str, &str) = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FAST_UP: (&str, &str) =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const TOO_FAST_DOWN: (&str, &str) =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");

struct Rules {
    window: i32,
    select: String,
    policies: Vec<HPAScalingPolicy>,
}

fn rules(given: Option<&HPAScalingRules>, up: bool) -> Rules {
    let policy = |kind: &str, value| HPAScalingPolicy { type_: kind.into(), value, period_seconds: 15 };
    let defaults = if up { vec![policy("Pods", 4), policy("Percent", 100)] } else { vec![policy("Percent", 100)] };
    let given = given.cloned().unwrap_or_default();
    Rules {
        window: given.stabilization_window_seconds.unwrap_or(if up { 0 } else { STABILIZATION }),
        select: given.select_policy.unwrap_or_else(|| "Max".into()),
        policies: given.policies.filter(|p| !p.is_empty()).unwrap_or(defaults),
    }
}

impl History {
    /// The first size seen counts as recommended, so that a restart does not scale down at once.
    pub fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push((now, current));
        }
    }

    pub fn scaled(&mut self, from: i32, to: i32, now: Timestamp) {
        self.changes.push((now, to - from));
    }

    fn within(&self, seconds: i32, now: Timestamp) -> impl Iterator<Item = i32> {
        let window = SignedDuration::from_secs(seconds.into());
        self.recommendations.iter().filter(move |(at, _)| now.duration_since(*at) < window).map(|(_, n)| *n)
    }

    fn remember(&mut self, desired: i32, now: Timestamp) {
        self.recommendations.retain(|(at, _)| now.duration_since(*at) < MEMORY);
        self.changes.retain(|(at, _)| now.duration_since(*at) < MEMORY);
        self.recommendations.push((now, desired));
    }

    /// What `current` may become when metrics ask for `desired`.
    pub fn pace(&mut self, spec: &HorizontalPodAutoscalerSpec, current: i32, desired: i32, now: Timestamp) -> Paced {
        let min = spec.min_replicas.unwrap_or(1);
        let (stable, able) = match &spec.behavior {
            None => {
                let highest = self.within(STABILIZATION, now).fold(desired, i32::max);
                (highest, if highest == desired { READY } else { DOWN_STABILIZED })
            }
            Some(behavior) => {
                let (up, down) = (rules(behavior.scale_up.as_ref(), true), rules(behavior.scale_down.as_ref(), false));
                let lowest = self.within(up.window, now).fold(desired, i32::min);
                let highest = self.within(down.window, now).fold(desired, i32::max);
                let stable = current.max(lowest).min(highest);
                let held = if desired >= current { UP_STABILIZED } else { DOWN_STABILIZED };
                (stable, if stable == desired { READY } else { held })
            }
        };
        self.remember(desired, now);
        let (replicas, (reason, message)) = match &spec.behavior {
            None => by_default(current, stable, min, spec.max_replicas),
            Some(behavior) => {
                let (up, down) = (rules(behavior.scale_up.as_ref(), true), rules(behavior.scale_down.as_ref(), false));
                self.by_rules(&up, &down, current, stable, min, spec.max_replicas, now)
            }
        };
        Paced { replicas, able, limited: (replicas != stable, reason, message) }
    }

    #[expect(clippy::too_many_arguments, reason = "all that a pace depends on")]
    fn by_rules(
        &self,
        up: &Rules,
        down: &Rules,
        current: i32,
        desired: i32,
        min: i32,
        max: i32,
        now: Timestamp,
    ) -> (i32, (&'static str, &'static str)) {
        if desired > current {
            let limit = self.limit(up, current, true, now).max(current);
            let (allowed, why) = if max > limit { (limit, TOO_FAST_UP) } else { (max, TOO_MANY) };
            if desired > allowed {
                return (allowed, why);
            }
        } else if desired < current {
            let limit = self.limit(down, current, false, now).min(current);
            let (allowed, why) = if min < limit { (limit, TOO_FAST_DOWN) } else { (min, TOO_FEW) };
            if desired < allowed {
                return (allowed, why);
            }
        }
        (desired, WITHIN)
    }

    /// How far the policies let the size go.
    fn limit(&self, rules: &Rules, current: i32, up: bool, now: Timestamp) -> i32 {
        let proposals = rules.policies.iter().map(|policy| {
            let period = SignedDuration::from_secs(policy.period_seconds.into());
            let recent = self.changes.iter().filter(|(at, _)| now.duration_since(*at) < period);
            let start = current.saturating_sub(recent.map(|(_, change)| *change).fold(0, i32::saturating_add));
            match (policy.type_.as_str(), up) {
                ("Pods", true) => start.saturating_add(policy.value),
                ("Pods", false) => start.saturating_sub(policy.value),
                // Rounded up, or a few pods would never become more; and down, or never fewer.
                (_, true) => percent(start, 100_i64.saturating_add(policy.value.into()), true),
                (_, false) => percent(start, 100_i64.saturating_sub(policy.value.into()), false),
            }
        });
        match (rules.select.as_str(), up) {
            ("Disabled", _) => Some(current),
            ("Min", true) | ("Max", false) => proposals.min(),
            ("Min", false) | (_, true) => proposals.max(),
            (_, false) => proposals.min(),
        }
        .unwrap_or(current)
    }
}

fn percent(of: i32, percent: i64, up: bool) -> i32 {
    let product = i64::from(of).saturating_mul(percent);
    let share = if up { (product.saturating_add(99)).div_euclid(100) } else { product / 100 };
    i32::try_from(share).unwrap_or(i32::MAX)
}

/// Without rules: at most twice the size, or four, at a time.
fn by_default(current: i32, desired: i32, min: i32, max: i32) -> (i32, (&'static str, &'static str)) {
    let limit = current.saturating_mul(2).max(4);
    let (most, why) = if max > limit { (limit, TOO_FAST_UP) } else { (max, TOO_MANY) };
    if desired < min {
        (min, TOO_FEW)
    } else if desired > most {
        (most, why)
    } else {
        (desired, WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{at, object};
    use serde_json::{Value, json};

    fn spec(behavior: Value) -> HorizontalPodAutoscalerSpec {
        object(
            json!({ "minReplicas": 2, "maxReplicas": 50, "scaleTargetRef": { "kind": "Deployment", "name": "d" }, "behavior": behavior }),
        )
    }

    #[test]
    fn without_rules_down_waits_five_minutes_and_up_doubles() {
        let (spec, mut history) = (spec(json!(null)), History::default());
        history.begin(10, at(0));
        let up = history.pace(&spec, 10, 45, at(10));
        assert_eq!((up.replicas, up.limited.1), (20, "ScaleUpLimit"));
        let down = history.pace(&spec, 20, 1, at(20));
        assert_eq!(
            (down.replicas, down.able.1),
            (40, "ScaleDownStabilized"),
            "the highest of five minutes, at the pace of up"
        );
        let later = history.pace(&spec, 20, 1, at(400));
        assert_eq!(
            (later.replicas, later.able.1, later.limited.1, later.limited.0),
            (2, "ReadyForNewScale", "TooFewReplicas", true)
        );
        let fine = history.pace(&spec, 3, 3, at(800));
        assert_eq!((fine.replicas, fine.limited.1, fine.limited.0), (3, "DesiredWithinRange", false));
    }

    #[test]
    fn policies_count_what_happened_in_their_period() {
        let rules = spec(json!({ "scaleUp": { "policies": [{ "type": "Pods", "value": 2, "periodSeconds": 60 }] },
            "scaleDown": { "stabilizationWindowSeconds": 0, "policies": [{ "type": "Percent", "value": 10, "periodSeconds": 60 }] } }));
        let mut history = History::default();
        assert_eq!(history.pace(&rules, 10, 30, at(0)).replicas, 12);
        history.scaled(10, 12, at(0));
        let held = history.pace(&rules, 12, 30, at(30));
        assert_eq!((held.replicas, held.limited.1), (12, "ScaleUpLimit"));
        assert_eq!(history.pace(&rules, 12, 30, at(61)).replicas, 14);
        let mut history = History::default();
        let down = history.pace(&rules, 40, 5, at(0));
        assert_eq!((down.replicas, down.limited.1), (36, "ScaleDownLimit"));
        history.scaled(40, 36, at(0));
        assert_eq!(history.pace(&rules, 36, 5, at(30)).replicas, 36);
        assert_eq!(history.pace(&rules, 36, 5, at(61)).replicas, 32);
    }

    #[test]
    fn windows_hold_both_ways_and_a_direction_can_be_shut() {
        let rules = spec(json!({ "scaleUp": { "stabilizationWindowSeconds": 60, "selectPolicy": "Min",
            "policies": [{ "type": "Pods", "value": 1, "periodSeconds": 15 }, { "type": "Percent", "value": 100, "periodSeconds": 15 }] },
            "scaleDown": { "selectPolicy": "Disabled", "stabilizationWindowSeconds": 0 } }));
        let mut history = History::default();
        history.begin(10, at(0));
        let held = history.pace(&rules, 10, 20, at(30));
        assert_eq!((held.replicas, held.able.1), (10, "ScaleUpStabilized"));
        assert_eq!(history.pace(&rules, 10, 20, at(61)).replicas, 11, "the lesser of two policies");
        let shut = history.pace(&rules, 10, 3, at(200));
        assert_eq!((shut.replicas, shut.limited.0), (10, true));
    }
}
