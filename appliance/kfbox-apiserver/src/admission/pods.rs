//! What the pod strategy fills in: phase and quality of service, and on updates what clients do not repeat.

use super::pod_resources;
use crate::{object, schema::quantity};
use serde_json::{Value, json};

pub fn on_create(pod: &mut Value) {
    pod["status"] = json!({"phase": "Pending", "qosClass": quality(pod)});
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        pod["status"]["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null, "lastTransitionTime": object::now(),
        }]);
    }
}

/// A pod's identity and class are settled at creation; clients that apply the pod again do not repeat them.
pub fn on_update(old: &Value, new: &mut Value) {
    for field in ["serviceAccountName", "serviceAccount", "nodeName", "priority", "preemptionPolicy", "tolerations"] {
        if new["spec"][field].is_null() && !old["spec"][field].is_null() {
            new["spec"][field] = old["spec"][field].clone();
        }
    }
}

/// `qosClass` (`pkg/apis/core/helper/qos`): by cpu and memory of the pod itself, or else of all its containers.
pub fn quality(pod: &Value) -> &'static str {
    let containers: Vec<&Value> = if pod_resources::are_set_on_pod(pod) {
        vec![&pod["spec"]]
    } else {
        let lists = ["containers", "initContainers"];
        lists.iter().flat_map(|list| pod["spec"][list].as_array().into_iter().flatten()).collect()
    };
    let amount = |container: &Value, of: &str, resource: &str| {
        quantity::of(&container["resources"][of][resource]).filter(|q| *q > 0)
    };
    let mut guaranteed = true;
    let mut any = false;
    for container in &containers {
        for resource in ["cpu", "memory"] {
            let (request, limit) = (amount(container, "requests", resource), amount(container, "limits", resource));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: &[Value]) -> Value {
        let containers: Vec<Value> = resources.iter().map(|r| json!({"name": "c", "resources": r})).collect();
        json!({"spec": {"containers": containers}})
    }

    #[test]
    fn the_quality_class_is_that_of_the_neediest() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        assert_eq!(quality(&pod(&[json!({})])), "BestEffort");
        assert_eq!(quality(&pod(std::slice::from_ref(&full))), "Guaranteed");
        assert_eq!(quality(&pod(&[full, json!({})])), "Burstable");
        assert_eq!(quality(&pod(&[json!({"limits": {"cpu": "1"}})])), "Burstable");
        let mut own = pod(&[json!({})]);
        own["spec"]["resources"] =
            json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}});
        assert_eq!(quality(&own), "Guaranteed");
    }
}
