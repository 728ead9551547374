//! Groups whose objects are stored, but not as every other's are.

use super::*;

#[tokio::test]
async fn an_autoscaler_is_one_object_in_two_versions() {
    let world = world().await;
    let (v1, v2) = (
        "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers",
        "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers",
    );
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
    let (code, made) = world
        .post(v1, json!({"metadata": {"name": "h"}, "spec": {"scaleTargetRef": target, "maxReplicas": 4, "targetCPUUtilizationPercentage": 55}}))
        .await;
    assert_eq!((code.as_u16(), &made["spec"]["minReplicas"]), (201, &json!(1)), "{made}");
    let (_, new) = world.get(&format!("{v2}/h")).await;
    assert_eq!(
        new["spec"]["metrics"][0]["resource"]["target"],
        json!({"type": "Utilization", "averageUtilization": 55})
    );
    assert_eq!(new["metadata"]["uid"], made["metadata"]["uid"]);

    let status = json!({"status": {"currentReplicas": 2, "desiredReplicas": 2, "conditions": [{"type": "AbleToScale", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 40, "averageValue": "200m"}}}]}});
    let (code, body) = world.merge(&format!("{v2}/h/status"), status).await;
    assert_eq!(code, 200, "{body}");
    let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}});
    let cpu = new["spec"]["metrics"][0].clone();
    let (code, body) = world.merge(&format!("{v2}/h"), json!({"spec": {"metrics": [cpu, memory]}})).await;
    assert_eq!(code, 200, "{body}");

    let (_, old) = world.get(&format!("{v1}/h")).await;
    assert_eq!(
        (&old["apiVersion"], &old["status"]["currentCPUUtilizationPercentage"]),
        (&json!("autoscaling/v1"), &json!(40))
    );
    assert!(
        old["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/metrics"].as_str().unwrap().contains("memory")
    );
    // An old client that knows nothing of all that raises the limit; nothing is lost but what it may drop.
    let mut sent = old.clone();
    sent["spec"]["maxReplicas"] = 9.into();
    sent["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/conditions"] = "[]".into();
    let (code, body) = world.put(&format!("{v1}/h"), sent).await;
    assert_eq!(code, 200, "{body}");
    let (_, new) = world.get(&format!("{v2}/h")).await;
    assert_eq!(new["spec"]["maxReplicas"], 9);
    assert_eq!(new["spec"]["metrics"].as_array().unwrap().len(), 2);
    assert_eq!(new["status"]["conditions"][0]["type"], "AbleToScale", "{new}");
    assert_eq!(new["status"]["currentMetrics"][0]["resource"]["current"]["averageValue"], "200m");
    let (_, list) = world.get(v1).await;
    assert_eq!(
        (&list["kind"], &list["items"][0]["spec"]["targetCPUUtilizationPercentage"]),
        (&json!("HorizontalPodAutoscalerList"), &json!(55))
    );
    let (_, group) = world.get("/apis/autoscaling").await;
    assert_eq!(group["preferredVersion"]["version"], "v2");
}

#[tokio::test]
async fn the_default_priorities_are_there_and_come_back() {
    let world = world().await;
    let flow = "/apis/flowcontrol.apiserver.k8s.io/v1";
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let (_, _, table) = world.request("GET", &format!("{flow}/flowschemas"), &accept, Value::Null).await;
    let row =
        |name: &str| table["rows"].as_array().unwrap().iter().find(|r| r["cells"][0] == name).unwrap()["cells"].clone();
    assert_eq!(
        row("service-accounts").as_array().unwrap()[1..4],
        [json!("workload-low"), json!(9000), json!("ByUser")]
    );
    assert_eq!((&row("exempt")[3], &row("exempt")[5]), (&json!("<none>"), &json!("False")));
    let (_, _, table) =
        world.request("GET", &format!("{flow}/prioritylevelconfigurations/system"), &accept, Value::Null).await;
    assert_eq!(
        table["rows"][0]["cells"].as_array().unwrap()[..6],
        [json!("system"), json!("Limited"), json!(30), json!(64), json!(6), json!(50)]
    );

    world.merge(&format!("{flow}/flowschemas/exempt"), json!({"spec": {"matchingPrecedence": 7}})).await;
    world.merge(&format!("{flow}/prioritylevelconfigurations/system"), json!({"metadata": {"annotations": {"apf.kubernetes.io/autoupdate-spec": "false"}}, "spec": {"limited": {"nominalConcurrencyShares": 31}}})).await;
    world.delete(&format!("{flow}/prioritylevelconfigurations/workload-low"), Value::Null).await;
    let mine = json!({"metadata": {"name": "mine"}, "spec": {"priorityLevelConfiguration": {"name": "nowhere"}, "matchingPrecedence": 500,
        "rules": [{"subjects": [{"kind": "User", "user": {"name": "ada"}}], "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}]}});
    assert_eq!(world.post(&format!("{flow}/flowschemas"), mine).await.0, 201);
    for (kind, spec, field) in [
        (
            "flowschemas",
            json!({"priorityLevelConfiguration": {"name": "x"}, "matchingPrecedence": 1}),
            "spec.matchingPrecedence",
        ),
        (
            "flowschemas",
            json!({"priorityLevelConfiguration": {"name": "x"}, "rules": [{"subjects": [{"kind": "Robot"}], "nonResourceRules": []}]}),
            "spec.rules[0]",
        ),
        ("flowschemas", json!({"priorityLevelConfiguration": {"name": ""}}), "spec.priorityLevelConfiguration.name"),
        ("prioritylevelconfigurations", json!({"type": "Limited"}), "spec.limited"),
        ("prioritylevelconfigurations", json!({"type": "Odd"}), "spec.type"),
        (
            "prioritylevelconfigurations",
            json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {"queues": 2, "handSize": 3}}}}),
            "spec.limited.limitResponse.queuing.handSize",
        ),
    ] {
        let (code, body) =
            world.post(&format!("{flow}/{kind}"), json!({"metadata": {"name": "odd"}, "spec": spec})).await;
        assert_eq!((code.as_u16(), &body["details"]["causes"][0]["field"]), (422, &json!(field)), "{body}");
    }
    crate::bootstrap::ensure(world.server.core()).await.unwrap();
    assert_eq!(world.get(&format!("{flow}/flowschemas/exempt")).await.1["spec"]["matchingPrecedence"], 1);
    assert_eq!(
        world.get(&format!("{flow}/prioritylevelconfigurations/system")).await.1["spec"]["limited"]["nominalConcurrencyShares"],
        31
    );
    assert_eq!(world.get(&format!("{flow}/prioritylevelconfigurations/workload-low")).await.0, 200);
    let (_, mine) = world.get(&format!("{flow}/flowschemas/mine")).await;
    assert_eq!(
        (&mine["status"]["conditions"][0]["status"], &mine["metadata"]["generation"]),
        (&json!("True"), &json!(1))
    );
}

#[tokio::test]
async fn device_claims_are_stored_and_printed() {
    let world = world().await;
    let resource = "/apis/resource.k8s.io/v1";
    let claim = json!({"metadata": {"name": "c"}, "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu"}}]}}});
    let (code, made) = world.post(&format!("{resource}/namespaces/default/resourceclaims"), claim).await;
    assert_eq!(code, 201, "{made}");
    let request = &made["spec"]["devices"]["requests"][0]["exactly"];
    assert_eq!((&request["allocationMode"], &request["count"]), (&json!("ExactCount"), &json!(1)));
    let odd = json!({"metadata": {"name": "o"}, "spec": {"devices": {"requests": [{"name": "gpu"}]}}});
    let (code, body) = world.post(&format!("{resource}/namespaces/default/resourceclaims"), odd).await;
    assert_eq!(
        (code.as_u16(), &body["details"]["causes"][0]["field"]),
        (422, &json!("spec.devices.requests[0]")),
        "{body}"
    );
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = async || {
        world.request("GET", &format!("{resource}/namespaces/default/resourceclaims"), &accept, Value::Null).await.2
    };
    assert_eq!(table().await["rows"][0]["cells"][1], "pending");
    let allocated = json!({"status": {"allocation": {"devices": {"results": []}}, "reservedFor": [{"resource": "pods", "name": "p", "uid": "1"}]}});
    let (code, body) = world.merge(&format!("{resource}/namespaces/default/resourceclaims/c/status"), allocated).await;
    assert_eq!(code, 200, "{body}");
    assert_eq!(table().await["rows"][0]["cells"][1], "allocated,reserved");
}

/// What OpenAPI says a deletion answers is what it answers.
#[tokio::test]
async fn some_deletions_answer_the_object() {
    let world = world().await;
    let (_, v2) = world.get("/openapi/v2").await;
    for (path, named, object) in [
        (
            "/apis/storage.k8s.io/v1/storageclasses",
            "/apis/storage.k8s.io/v1/storageclasses/{name}",
            json!({"metadata": {"name": "x"}, "provisioner": "p"}),
        ),
        (
            "/apis/resource.k8s.io/v1/deviceclasses",
            "/apis/resource.k8s.io/v1/deviceclasses/{name}",
            json!({"metadata": {"name": "x"}, "spec": {}}),
        ),
        (
            "/api/v1/namespaces/default/configmaps",
            "/api/v1/namespaces/{namespace}/configmaps/{name}",
            json!({"metadata": {"name": "x"}}),
        ),
    ] {
        let (code, made) = world.post(path, object).await;
        assert_eq!(code, 201, "{made}");
        let (_, answer) = world.delete(&format!("{path}/x"), Value::Null).await;
        let schema = v2["paths"][named]["delete"]["responses"]["200"]["schema"]["$ref"].as_str().unwrap();
        assert_eq!(schema.rsplit('.').next(), answer["kind"].as_str(), "{path}");
    }
}
