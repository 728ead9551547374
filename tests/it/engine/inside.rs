//! The SDK inside of the cluster, as in a notebook: told nothing, it finds the API and the token at the path where Kubeflow's
//! notebooks have it.
//! Upstream: <https://www.kubeflow.org/docs/components/pipelines/user-guides/core-functions/connect-api/>

use super::Made;
use kfbox_tests::{TestBox, wait_until};
use serde_json::{Value, json};
use std::time::Duration;

const SCRIPT: &str = r#"
import json, sys, kfp, kfp_server_api
namespace = sys.argv[1]
client = kfp.Client()
made = client.create_experiment("inside", namespace=namespace)
found = client.get_experiment(experiment_name="inside", namespace=namespace)
client.delete_experiment(made.experiment_id)
try:
    client.list_runs(namespace="kubeflow")
    other = 200
except kfp_server_api.ApiException as error:
    other = error.status
print(json.dumps({"same": made.experiment_id == found.experiment_id, "other": other}))
"#;

#[test]
fn the_sdk_in_a_pod_with_a_token_at_the_standard_path_is_told_nothing() -> anyhow::Result<()> {
    let b = TestBox::shared()?;
    let namespace = b.namespace();
    let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 7200, "audience": "pipelines.kubeflow.org"}});
    let install = "python3 -m venv /tmp/v && /tmp/v/bin/pip install -q 'kfp>=2.17,<2.18'";
    let command = format!("{install} && exec /tmp/v/bin/python -c \"$SCRIPT\" {namespace}");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "inside", "namespace": namespace}, "spec": {
        "serviceAccountName": "default-editor",
        "restartPolicy": "Never",
        "volumes": [{"name": "token", "projected": {"sources": [token]}}],
        "containers": [{
            "name": "notebook", "image": "python:3.11", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", command],
            "env": [
                {"name": "SCRIPT", "value": SCRIPT},
                {"name": "KF_PIPELINES_SA_TOKEN_PATH", "value": "/var/run/secrets/kubeflow/pipelines/token"},
                {"name": "PIP_INDEX_URL", "value": "http://python-packages.kubeflow/simple/"},
                {"name": "PIP_TRUSTED_HOST", "value": "python-packages.kubeflow"},
            ],
            "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/kubeflow/pipelines", "readOnly": true}],
        }],
    }});
    let made = Made { b: &b, names: vec!["pod/inside".to_owned()] };
    b.kubectl_with_input(&["apply", "-f", "-"], &pod.to_string())?.ok()?;
    let get = ["get", "pod", "inside", "-n", &namespace, "-o", "jsonpath={.status.phase}"];
    let phase = wait_until(Duration::from_secs(300), "the script's end", || {
        let phase = b.kubectl(&get)?.ok()?.stdout;
        Ok(["Succeeded", "Failed"].contains(&phase.trim()).then_some(phase))
    })?;
    let log = b.kubectl(&["logs", "inside", "-n", &namespace])?.ok()?.stdout;
    assert_eq!(phase.trim(), "Succeeded", "{log}");
    let seen: Value = serde_json::from_str(log.trim().lines().last().unwrap_or_default())?;
    assert_eq!(seen, json!({"same": true, "other": 403}), "{log}");
    drop(made);
    Ok(())
}
