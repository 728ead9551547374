//! What controllers look after: their selectors and templates, jobs, autoscalers.

use super::*;

fn workload(kind: &str, more: Value) -> Value {
    let mut object = json!({"metadata": {"name": "x"}, "spec": {"selector": {"matchLabels": {"a": "1"}},
        "template": {"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "a", "image": "i"}]}}}});
    if kind == "Job" {
        object["spec"].as_object_mut().unwrap().remove("selector");
        object["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
    }
    for (name, value) in more.as_object().unwrap() {
        object["spec"][name] = value.clone();
    }
    object
}

#[test]
fn workloads() {
    let apps = "apps/v1";
    let with = |kind: &str, more: Value, wanted: &[&str]| says(apps, kind, workload(kind, more), wanted);
    with(
        "Deployment",
        json!({"strategy": {"type": "Recreate", "rollingUpdate": {}}}),
        &["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
    );
    with(
        "Deployment",
        json!({"replicas": -1, "strategy": {"rollingUpdate": {"maxUnavailable": "0%", "maxSurge": 0}}, "progressDeadlineSeconds": 5, "minReadySeconds": 5}),
        &[
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
            "spec.progressDeadlineSeconds: Invalid value: 5: must be greater than minReadySeconds",
        ],
    );
    with(
        "Deployment",
        json!({"strategy": {"rollingUpdate": {"maxUnavailable": "101%", "maxSurge": "x"}}}),
        &[
            "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"x\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
        ],
    );
    with(
        "DaemonSet",
        json!({"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}),
        &[
            "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
        ],
    );
    with(
        "StatefulSet",
        json!({"podManagementPolicy": "Some", "updateStrategy": {"type": "OnDelete", "rollingUpdate": {"partition": 1}}}),
        &[
            "spec.podManagementPolicy: Invalid value: \"Some\": must be 'OrderedReady' or 'Parallel'",
            "spec.updateStrategy.rollingUpdate: Invalid value: {\"partition\":1}: only allowed for updateStrategy 'RollingUpdate'",
        ],
    );
    // Volumes of a set's claims are no volumes of its template.
    let claimed = json!({"serviceName": "s", "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
        "template": {"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [
            {"name": "a", "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]}}});
    with("StatefulSet", claimed, &[]);
    let old = workload("StatefulSet", json!({"serviceName": "s"}));
    let closed = "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
    change(apps, "StatefulSet", &old, |n| n["spec"]["serviceName"] = "t".into(), &[closed]);
    change(apps, "StatefulSet", &old, |n| n["spec"]["replicas"] = 4.into(), &[]);
    says(
        "v1",
        "ReplicationController",
        json!({"spec": {"selector": {"a": "2"}, "template": {"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "a", "image": "i"}], "activeDeadlineSeconds": 3}}}}),
        &[
            "spec.template.metadata.labels: Invalid value: {\"a\":\"1\"}: `selector` does not match template `labels`",
            "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicationController is not Supported",
        ],
    );
}

#[test]
fn jobs() {
    let with = |more: Value, wanted: &[&str]| says("batch/v1", "Job", workload("Job", more), wanted);
    with(
        json!({"completionMode": "Indexed", "parallelism": 1}),
        &["spec.completions: Required value: when completion mode is Indexed"],
    );
    with(
        json!({"backoffLimitPerIndex": 1, "maxFailedIndexes": 1}),
        &[
            "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
            "spec.maxFailedIndexes: Invalid value: 1: requires indexed completion mode",
        ],
    );
    with(
        json!({"managedBy": "me", "podFailurePolicy": {"rules": [
            {"action": "FailIndex", "onExitCodes": {"operator": "In", "containerName": "z", "values": [2, 0]}},
            {"action": "Ignore"}]}}),
        &[
            "spec.managedBy: Invalid value: \"me\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            "spec.podFailurePolicy.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
            "spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value: \"z\": must be one of the container or initContainer names in the pod template",
            "spec.podFailurePolicy.rules[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator",
            "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [2,0]: must be ordered",
            "spec.podFailurePolicy.rules[1]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
        ],
    );
    with(
        json!({"successPolicy": {"rules": []}}),
        &["spec.successPolicy: Invalid value: {\"rules\":[]}: requires indexed completion mode"],
    );
    let indexed = workload("Job", json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2}));
    change(
        "batch/v1",
        "Job",
        &indexed,
        |n| n["spec"]["completions"] = 3.into(),
        &["spec.completions: Invalid value: 3: can only be modified in tandem with spec.parallelism"],
    );
    change(
        "batch/v1",
        "Job",
        &indexed,
        |n| {
            n["spec"]["completions"] = 3.into();
            n["spec"]["parallelism"] = 3.into();
        },
        &[],
    );
    let cron = |more: Value| {
        let mut out = json!({"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": workload("Job", json!({}))["spec"].clone()}}});
        for (name, value) in more.as_object().unwrap() {
            out["spec"][name] = value.clone();
        }
        out
    };
    for (schedule, why) in [
        ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
        ("60 * * * *", "end of range (60) above maximum (59): 60"),
        ("* * * * 5-2", "beginning of range (5) beyond end of range (2): 5-2"),
        ("*/0 * * * *", "step of range should be a positive number: */0"),
        ("@often", "unrecognized descriptor: @often"),
    ] {
        says(
            "batch/v1",
            "CronJob",
            cron(json!({"schedule": schedule})),
            &[&format!("spec.schedule: Invalid value: {schedule:?}: {why}")],
        );
    }
    for schedule in ["@hourly", "*/5 8-18 * jan-mar mon", "0,30 * 1,15 * 0-6/2", "@every 1h30m", "? * * * ?"] {
        says("batch/v1", "CronJob", cron(json!({"schedule": schedule})), &[]);
    }
    says(
        "batch/v1",
        "CronJob",
        cron(json!({"timeZone": "Local", "concurrencyPolicy": "Wait"})),
        &[
            "spec.timeZone: Invalid value: \"Local\": timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            "spec.concurrencyPolicy: Unsupported value: \"Wait\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
        ],
    );
}

#[test]
fn autoscalers() {
    let hpa = |more: Value| {
        let mut out = json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}});
        for (name, value) in more.as_object().unwrap() {
            out["spec"][name] = value.clone();
        }
        out
    };
    let v2 = "autoscaling/v2";
    says(
        v2,
        "HorizontalPodAutoscaler",
        hpa(json!({"minReplicas": 5})),
        &["spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`"],
    );
    says(
        v2,
        "HorizontalPodAutoscaler",
        hpa(json!({"metrics": [
        {"type": "Resource"}, {"type": "Pods", "pods": {"metric": {"name": ""}, "target": {"type": "Some"}}},
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 0}}}]})),
        &[
            "spec.metrics[0].resource: Required value: must populate information for the given metric source",
            "spec.metrics[1].pods.metric.name: Required value: must specify a metric name",
            "spec.metrics[1].pods.target.type: Invalid value: \"Some\": must be either Utilization, Value, or AverageValue",
            "spec.metrics[1].pods.target.averageValue: Required value: must specify a positive target averageValue",
            "spec.metrics[2].resource.target.averageUtilization: Invalid value: 0: must be greater than 0",
        ],
    );
    says(
        v2,
        "HorizontalPodAutoscaler",
        hpa(
            json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 4000, "policies": [{"type": "Pods", "value": 0, "periodSeconds": 2000}]}}}),
        ),
        &[
            "spec.behavior.scaleDown.stabilizationWindowSeconds: Invalid value: 4000: must be less than or equal to 3600",
            "spec.behavior.scaleDown.policies[0].value: Invalid value: 0: must be greater than zero",
            "spec.behavior.scaleDown.policies[0].periodSeconds: Invalid value: 2000: must be less than or equal to 1800",
        ],
    );
    let mut object = hpa(json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}}));
    default_builtin("autoscaling", "v2", "HorizontalPodAutoscaler", &mut object);
    assert_eq!(
        object["spec"]["behavior"],
        json!({
        "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
            {"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]},
        "scaleDown": {"stabilizationWindowSeconds": 5, "selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}})
    );
}
