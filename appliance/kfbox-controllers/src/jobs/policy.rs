//! `podFailurePolicy`: what a failed pod means. Pure.

use crate::pods;
use k8s_openapi::api::{
    batch::v1::{Job, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule},
    core::v1::Pod,
};

#[derive(Debug, PartialEq)]
pub enum Verdict {
    Count,
    Ignore,
    FailIndex,
    /// With the sentence for the Job's condition.
    FailJob(String),
}

pub fn judge(job: &Job, pod: &Pod) -> Verdict {
    let policy = job.spec.as_ref().and_then(|s| s.pod_failure_policy.as_ref());
    // A pod that is merely being deleted has not failed of itself.
    if pods::phase(pod) != "Failed" {
        return Verdict::Count;
    }
    for (number, rule) in policy.map(|p| p.rules.as_slice()).unwrap_or_default().iter().enumerate() {
        let Some(what) = matches(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => {
                let (namespace, name) = (pod.metadata.namespace.as_deref().unwrap_or_default(), pods::name(pod));
                Verdict::FailJob(format!("{what} for pod {namespace}/{name} matching FailJob rule at index {number}"))
            }
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    if let Some(codes) = &rule.on_exit_codes {
        return exit_code(codes, pod);
    }
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    for pattern in rule.on_pod_conditions.iter().flatten() {
        let wanted = pattern.status.as_deref().unwrap_or("True");
        if conditions.iter().any(|c| c.type_ == pattern.type_ && c.status == wanted) {
            return Some(format!("Condition {} is true", pattern.type_));
        }
    }
    None
}

fn exit_code(rule: &PodFailurePolicyOnExitCodesRequirement, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    for container in all.filter(|c| rule.container_name.as_ref().is_none_or(|name| *name == c.name)) {
        let Some(code) = container.state.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code) else {
            continue;
        };
        let listed = rule.values.contains(&code);
        let hit = match rule.operator.as_str() {
            "In" => listed,
            "NotIn" => code != 0 && !listed,
            _ => false,
        };
        if hit {
            return Some(format!("Container {} failed with exit code {code}", container.name));
        }
    }
    None
}
