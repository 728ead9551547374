//! DefaultTolerationSeconds: a pod outlasts five minutes of a node's trouble.

use super::{Request, push};
use serde_json::{Value, json};

pub fn mutate(request: &Request, pod: &mut Value) {
    if !request.creates("pods") {
        return;
    }
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = pod["spec"]["tolerations"].as_array().into_iter().flatten().any(|t| {
            let effect = t["effect"].as_str().unwrap_or_default();
            (t["key"] == key || t["key"].as_str().unwrap_or_default().is_empty())
                && (effect.is_empty() || effect == "NoExecute")
        });
        if !tolerated {
            let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
            push(&mut pod["spec"], "tolerations", toleration);
        }
    }
}
