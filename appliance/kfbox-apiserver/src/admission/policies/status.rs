//! Status of ValidatingAdmissionPolicies: what their expressions look like against the kinds they match. The work of
//! upstream's validatingadmissionpolicystatus controller, done after each write of a policy.

use super::types;
use crate::{
    handle::own_call,
    store::Object,
    verbs::{self, Call, Modification},
};
use serde_json::{Value, json};

const COLLECTION: &str = "validatingadmissionpolicies.admissionregistration.k8s.io";

fn is_current(policy: &Value) -> bool {
    policy["status"]["observedGeneration"] == policy["metadata"]["generation"]
}

/// Sees to the status of a policy that was just written.
pub fn after_write(call: &Call, object: &Object) {
    if &*call.resource.collection != COLLECTION || is_current(&object.value()) {
        return;
    }
    let call = own_call(&call.core, call.resource.clone(), "", &object.key.name);
    let (tasks, shutdown) = (call.core.tasks.clone(), call.core.shutdown.clone());
    tasks.spawn(format!("policy-status {}", object.key.name), async move {
        let how = Modification { subresource: "status", track: false, replace: false };
        let written = verbs::modify(&call, &how, |policy| {
            let mut policy = policy.clone();
            if !is_current(&policy) {
                let checked = crate::cel::on_deep_stack(|| types::check(&policy, &call.registry));
                policy["status"] = json!({
                    "observedGeneration": policy["metadata"]["generation"],
                    "typeChecking": checked.unwrap_or_else(|| json!({})),
                });
            }
            Ok(policy)
        });
        tokio::select! {
            written = written => match written {
                Err(error) if error.reason() != "NotFound" => {
                    tracing::warn!(policy = %call.target.name, %error, "the status of a policy was not written");
                }
                _ => {}
            },
            () = shutdown.cancelled() => {}
        }
    });
}
