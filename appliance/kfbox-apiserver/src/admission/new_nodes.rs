//! TaintNodesByCondition: a node that has just been registered takes no pods until it says that it is ready, when the
//! controller takes the taint away.

use super::{Request, push};
use serde_json::{Value, json};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub fn mutate(request: &Request, node: &mut Value) {
    if !request.creates("nodes") {
        return;
    }
    let tainted = |t: &Value| t["key"] == NOT_READY && t["effect"] == "NoSchedule";
    if !node["spec"]["taints"].as_array().into_iter().flatten().any(tainted) {
        push(&mut node["spec"], "taints", json!({ "key": NOT_READY, "effect": "NoSchedule" }));
    }
}
