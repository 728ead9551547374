//! What a pod asks for as a whole: its containers together or its neediest init container, sidecars with both, the pod's
//! own figures over those of its containers, and the overhead of its runtime class
//! (component-helpers `resource/helpers.go`).

use super::amounts::{self, Amounts};
use serde_json::Value;

/// Which parts beside the containers' specs count.
#[derive(Clone, Copy)]
pub struct Parts {
    /// What the node has given, where a resize is still under way.
    pub status: bool,
    pub overhead: bool,
}

pub fn requests(pod: &Value, parts: Parts) -> Amounts {
    let mut sum = containers(pod, |container| {
        let mut own = amounts::of(&container["resources"]["requests"]);
        if parts.status
            && let Some(status) = status_of(pod, container)
        {
            if resize_is_infeasible(pod) {
                own.clear();
            }
            amounts::raise(&mut own, &amounts::of(&status["resources"]["requests"]));
            amounts::raise(&mut own, &amounts::of(&status["allocatedResources"]));
        }
        own
    });
    override_with(&mut sum, &pod["spec"]["resources"]["requests"]);
    if parts.overhead {
        amounts::add(&mut sum, &amounts::of(&pod["spec"]["overhead"]));
    }
    sum
}

pub fn limits(pod: &Value, parts: Parts) -> Amounts {
    let mut sum = containers(pod, |container| {
        let mut own = amounts::of(&container["resources"]["limits"]);
        if parts.status
            && let Some(status) = status_of(pod, container)
        {
            if resize_is_infeasible(pod) && status["resources"]["limits"].is_object() {
                own.clear();
            }
            amounts::raise(&mut own, &amounts::of(&status["resources"]["limits"]));
        }
        own
    });
    override_with(&mut sum, &pod["spec"]["resources"]["limits"]);
    if parts.overhead {
        // Nothing is no limit, also with overhead.
        let limited = amounts::of(&pod["spec"]["overhead"])
            .into_iter()
            .filter(|(name, _)| sum.get(name).is_some_and(|amount| !amount.is_zero()))
            .collect();
        amounts::add(&mut sum, &limited);
    }
    sum
}

/// Whether the pod has figures of its own for anything that pods may have them for.
pub fn are_set_on_pod(pod: &Value) -> bool {
    ["requests", "limits"]
        .iter()
        .any(|list| pod["spec"]["resources"][*list].as_object().into_iter().flatten().any(|(name, _)| is_of_pods(name)))
}

fn is_of_pods(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

fn override_with(sum: &mut Amounts, own: &Value) {
    sum.extend(amounts::of(own).into_iter().filter(|(name, _)| is_of_pods(name)));
}

fn list<'a>(pod: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    pod["spec"][name].as_array().into_iter().flatten()
}

fn containers(pod: &Value, of_one: impl Fn(&Value) -> Amounts) -> Amounts {
    let mut sum = Amounts::new();
    for container in list(pod, "containers") {
        amounts::add(&mut sum, &of_one(container));
    }
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in list(pod, "initContainers") {
        let mut own = of_one(container);
        if container["restartPolicy"] == "Always" {
            amounts::add(&mut sum, &own);
            amounts::add(&mut sidecars, &own);
            own.clone_from(&sidecars);
        } else {
            amounts::add(&mut own, &sidecars);
        }
        amounts::raise(&mut starting, &own);
    }
    amounts::raise(&mut sum, &starting);
    sum
}

fn status_of<'a>(pod: &'a Value, container: &Value) -> Option<&'a Value> {
    ["containerStatuses", "initContainerStatuses"]
        .iter()
        .flat_map(|list| pod["status"][*list].as_array().into_iter().flatten())
        .find(|status| status["name"] == container["name"])
}

fn resize_is_infeasible(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "PodResizePending" && c["reason"] == "Infeasible")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SPEC: Parts = Parts { status: false, overhead: false };
    const ALL: Parts = Parts { status: true, overhead: true };

    fn container(cpu: &str) -> Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}})
    }

    #[test]
    fn the_neediest_moment_counts() {
        let mut sidecar = container("1");
        sidecar["restartPolicy"] = "Always".into();
        let pod =
            |init: &[Value]| json!({"spec": {"containers": [container("1"), container("2")], "initContainers": init}});
        let cpu = |pod: &Value| amounts::listed(&requests(pod, SPEC));
        assert_eq!(cpu(&pod(&[])), "cpu=3");
        assert_eq!(cpu(&pod(&[container("2")])), "cpu=3");
        assert_eq!(cpu(&pod(&[container("5")])), "cpu=5");
        assert_eq!(cpu(&pod(std::slice::from_ref(&sidecar))), "cpu=4");
        assert_eq!(cpu(&pod(&[sidecar.clone(), container("5")])), "cpu=6");
        // A sidecar that starts later does not run beside an earlier init container.
        assert_eq!(cpu(&pod(&[container("5"), sidecar])), "cpu=5");
    }

    #[test]
    fn the_pods_own_figures_overhead_and_a_running_resize_count() {
        let mut pod = json!({"spec": {"containers": [container("1")], "overhead": {"cpu": "250m", "memory": "64Mi"}}});
        assert_eq!(amounts::listed(&requests(&pod, ALL)), "cpu=1250m,memory=64Mi");
        assert_eq!(amounts::listed(&limits(&pod, ALL)), "cpu=1250m", "memory has no limit");
        pod["status"] = json!({"containerStatuses": [{"name": "c", "allocatedResources": {"cpu": "2"},
            "resources": {"requests": {"cpu": "3"}, "limits": {"cpu": "4"}}}]});
        assert_eq!(amounts::listed(&requests(&pod, SPEC)), "cpu=1");
        assert_eq!(amounts::listed(&requests(&pod, ALL)), "cpu=3250m,memory=64Mi");
        assert_eq!(amounts::listed(&limits(&pod, ALL)), "cpu=4250m");
        pod["spec"]["resources"] = json!({"requests": {"cpu": "10", "nvidia.com/gpu": "1"}});
        assert_eq!(amounts::listed(&requests(&pod, SPEC)), "cpu=10");
        assert!(are_set_on_pod(&pod));
        assert!(!are_set_on_pod(&json!({"spec": {"resources": {"requests": {"nvidia.com/gpu": "1"}}}})));
    }
}
