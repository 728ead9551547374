//! kfp-kubernetes' settings, as the SDK says them, on the pods and in the containers.

use super::{Made, client};
use kfbox_tests::{TestBox, wait_until};
use serde_json::{Value, json};
use std::time::Duration;

fn pod(b: &TestBox, name: &str) -> anyhow::Result<Value> {
    let output = b.kubectl(&["get", "pod", "-n", &b.namespace(), name, "-o", "json"])?.ok()?;
    Ok(serde_json::from_str(&output.stdout)?)
}

fn named<'v>(list: &'v Value, name: &str) -> &'v Value {
    let found = list.as_array().and_then(|l| l.iter().find(|v| v["name"] == name));
    found.unwrap_or_else(|| panic!("there is no {name} in {list}"))
}

/// What `wanted` says is so in `got`; other fields do not matter.
fn holds(got: &Value, wanted: &Value, at: &str) {
    match wanted {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| holds(&got[name], value, &format!("{at}.{name}")))
        }
        Value::Array(items) => {
            assert_eq!(got.as_array().map(Vec::len), Some(items.len()), "{at}: {got}");
            items.iter().enumerate().for_each(|(n, value)| holds(&got[n], value, &format!("{at}[{n}]")));
        }
        other => assert_eq!(got, other, "{at}"),
    }
}

#[test]
fn all_that_a_task_asks_of_kubernetes_is_on_its_pod() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let mut made = Made::new(&b);
    let (secret, config) = (format!("secret-{}", std::process::id()), format!("config-{}", std::process::id()));
    made.create("secret generic", &secret, &["--from-literal=password=sesame"])?;
    made.create("configmap", &config, &["--from-literal=colour=blue"])?;
    let result = client(&b, "kfp_platform.py", &["--secret", &secret, "--config", &config], "")?;
    assert_eq!(result["state"], "SUCCEEDED", "{result:#}\n{}", b.log());
    let task =
        |name: &str| pod(&b, result["tasks"][name]["pod"].as_str().unwrap_or_else(|| panic!("{name}: {result}")));

    let around = task("looks-around")?;
    let claim = around["spec"]["volumes"].as_array().unwrap().iter().find_map(|v| {
        v["persistentVolumeClaim"]["claimName"].as_str().filter(|n| n.ends_with("-settings")).map(str::to_owned)
    });
    let claim = claim.unwrap_or_else(|| panic!("{around}"));
    let main = named(&around["spec"]["containers"], "main");
    holds(
        &around,
        &json!({
            "metadata": {"labels": {"team": "blue"}, "annotations": {"note": "a note"}},
            "spec": {
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "imagePullSecrets": [{"name": "absent-pull-secret"}],
                "activeDeadlineSeconds": 300,
                "affinity": {"nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]},
                    ]},
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 5, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}},
                    ],
                }},
            },
        }),
        "pod",
    );
    let tolerations = around["spec"]["tolerations"].as_array().unwrap();
    for wanted in [
        json!({"key": "a", "operator": "Equal", "value": "1", "effect": "NoExecute", "tolerationSeconds": 60}),
        json!({"key": "b", "operator": "Exists", "effect": "NoExecute"}),
    ] {
        assert!(tolerations.contains(&wanted), "{wanted} is not in {tolerations:?}");
    }
    holds(
        main,
        &json!({
            "imagePullPolicy": "IfNotPresent",
            "resources": {"limits": {"cpu": "2", "memory": "256Mi"}, "requests": {"cpu": "10m", "memory": "64Mi"}},
        }),
        "main",
    );
    for (variable, source) in [
        ("PASSWORD", json!({"secretKeyRef": {"name": secret, "key": "password", "optional": false}})),
        ("NEVER", json!({"secretKeyRef": {"name": "absent-secret", "key": "never", "optional": true}})),
        ("COLOUR", json!({"configMapKeyRef": {"name": config, "key": "colour", "optional": false}})),
        ("POD_NAME", json!({"fieldRef": {"fieldPath": "metadata.name"}})),
    ] {
        holds(&named(&main["env"], variable)["valueFrom"], &source, variable);
    }
    for (volume, path, source) in [
        (secret.as_str(), "/mnt/secret", json!({"secret": {"secretName": secret, "optional": false}})),
        (config.as_str(), "/mnt/config", json!({"configMap": {"name": config, "optional": false}})),
        (claim.as_str(), "/mnt/claim", json!({"persistentVolumeClaim": {"claimName": claim}})),
        ("fast", "/mnt/empty", json!({"emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}})),
        (
            "scratch",
            "/mnt/ephemeral",
            json!({"ephemeral": {"volumeClaimTemplate": {
                "metadata": {"labels": {"kind": "scratch"}},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}},
            }}}),
        ),
    ] {
        holds(named(&around["spec"]["volumes"], volume), &source, volume);
        assert_eq!(named(&main["volumeMounts"], volume)["mountPath"], path, "{main}");
    }
    assert_eq!(named(&main["volumeMounts"], &claim)["subPath"], "below");

    let somebody = task("is-somebody")?;
    let context = &named(&somebody["spec"]["containers"], "main")["securityContext"];
    let wanted =
        json!({"runAsUser": 1234, "runAsGroup": 1235, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}});
    holds(context, &wanted, "securityContext");

    let company = task("has-company")?;
    let init = &company["spec"]["initContainers"];
    holds(
        named(init, "first"),
        &json!({
            "image": "python:3.11",
            "env": [{"name": "WORDS", "value": "hello from the init container"}],
            "resources": {"requests": {"cpu": "5m"}, "limits": {"memory": "64Mi"}},
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        }),
        "first",
    );
    assert_eq!(named(init, "beside")["restartPolicy"], "Always");
    holds(
        &company["spec"]["affinity"],
        &json!({
            "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
                "topologyKey": "kubernetes.io/hostname",
                "namespaces": ["elsewhere"],
                "labelSelector": {
                    "matchLabels": {"app": "never-there"},
                    "matchExpressions": [{"key": "tier", "operator": "In", "values": ["front"]}],
                },
            }]},
            "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
                "weight": 7,
                "podAffinityTerm": {
                    "topologyKey": "kubernetes.io/hostname",
                    "namespaceSelector": {"matchLabels": {"team": "blue"}},
                },
            }]},
        }),
        "affinity",
    );
    let memory = json!({"emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}});
    holds(named(&company["spec"]["volumes"], "memory"), &memory, "memory");

    let told = task("is-told")?;
    let main = named(&told["spec"]["containers"], "main");
    assert!(told["spec"].get("nodeSelector").is_none() && told["spec"].get("affinity").is_none(), "{told}");
    assert!(main["resources"].get("limits").is_none(), "{main}");

    // The run's own claim and the step's: one goes with the run, the other went by DeletePVC.
    let claims = b.kubectl(&["get", "pvc", "-n", &b.namespace(), "-o", "name"])?.ok()?.stdout;
    let workspace = format!("kfp-workspace-{}", result["run_id"].as_str().unwrap());
    assert!(claims.contains(&workspace), "{claims}");
    wait_until(Duration::from_secs(30), "the deleted claim's end", || {
        let claims = b.kubectl(&["get", "pvc", "-n", &b.namespace(), "-o", "name"])?.ok()?.stdout;
        Ok((!claims.contains(&claim)).then_some(()))
    })
}
