//! What the API server asks before it takes a pipeline's resources (`backend/src/apiserver/webhook` upstream): a version's
//! specification is checked when it is applied, and bound to its pipeline, with which it is deleted.
//!
//! Beyond upstream, a ScheduledWorkflow is marked with who applied it: its runs are that person's, with that person's rights.
//! Invariant: the mark is signed and bound to the object's name, and made anew whenever what it runs changes, so that nobody
//! starts a run in another's name.

use super::{Admission, spec, text, versions};
use crate::{Inner, rest};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State},
    routing::post,
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use hmac::{Hmac, KeyInit, Mac};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use kfbox_api::pipelines::{self, label};
use kfbox_base::UserInfo;
use kube::{ResourceExt, api::DynamicObject};
use serde_json::{Value, json};
use sha2::Sha256;
use std::sync::Arc;
use subtle::ConstantTimeEq;

pub(super) const ACTS_FOR: &str = "pipelines.kfbox.local/acts-for";
/// An object, before and after, as large as a package may be.
const MAX_REVIEW: usize = 2 * crate::spec::package::MAX_PACKAGE + (1 << 20);
const IMMUTABLE: &str = "what a pipeline version runs cannot be changed, only spec.displayName and spec.tags: apply it \
                         under another name";

fn mac(inner: &Inner, content: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(inner.store.key.as_slice())
        .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
    mac.update(content.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// A part of the address that only the API server is told: others on this machine cannot ask.
pub(crate) fn secret(inner: &Inner) -> String {
    hex::encode(&mac(inner, "admission address")[..16])
}

pub(crate) fn router(inner: Arc<Inner>) -> Router {
    Router::new().route("/{secret}/{what}", post(review)).layer(DefaultBodyLimit::max(MAX_REVIEW)).with_state(inner)
}

/// The configurations of both webhooks, under upstream's name.
pub(super) fn configurations(
    inner: &Inner,
    admission: &Admission,
) -> (MutatingWebhookConfiguration, ValidatingWebhookConfiguration) {
    let webhook = |name: &str, what: &str, group: &str, version: &str, resource: &str, operations: &[&str]| {
        json!({
            "name": name,
            "clientConfig": {
                "url": format!("{}/{}/{what}", admission.url, secret(inner)),
                "caBundle": STANDARD.encode(&admission.ca_pem),
            },
            "rules": [{"apiGroups": [group], "apiVersions": [version], "resources": [resource], "operations": operations}],
            "failurePolicy": "Fail",
            "matchPolicy": "Equivalent",
            "sideEffects": "None",
            "timeoutSeconds": 10,
            "admissionReviewVersions": ["v1"],
        })
    };
    let configuration = |kind: &str, webhooks: Value| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": "pipelineversions.pipelines.kubeflow.org"}, "webhooks": webhooks,
        })
    };
    let (group, version) = (pipelines::GROUP, pipelines::VERSION);
    let create = ["CREATE"];
    let both = ["CREATE", "UPDATE"];
    let mutating = json!([
        webhook("pipelineversions.pipelines.kubeflow.org", "mutate", group, version, "pipelineversions", &create),
        webhook("scheduledworkflows.kubeflow.org", "mutate", "kubeflow.org", "v1beta1", "scheduledworkflows", &both),
    ]);
    let validating = json!([
        webhook("pipelineversions.pipelines.kubeflow.org", "validate", group, version, "pipelineversions", &both),
        webhook("pipelines.pipelines.kubeflow.org", "validate", group, version, "pipelines", &both),
    ]);
    let own = |e: serde_json::Error| -> ! { unreachable!("a configuration of our own: {e}") };
    (
        serde_json::from_value(configuration("MutatingWebhookConfiguration", mutating)).unwrap_or_else(|e| own(e)),
        serde_json::from_value(configuration("ValidatingWebhookConfiguration", validating)).unwrap_or_else(|e| own(e)),
    )
}

/// One question.
struct Asked {
    object: DynamicObject,
    old: Option<DynamicObject>,
    user: UserInfo,
}

async fn review(
    State(inner): State<Arc<Inner>>,
    Path((given, what)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Result<Json<Value>, http::StatusCode> {
    if !bool::from(given.as_bytes().ct_eq(secret(&inner).as_bytes())) {
        return Err(http::StatusCode::NOT_FOUND);
    }
    let request = body.get("request").cloned().unwrap_or_default();
    let read = |name: &str| request.get(name).filter(|o| !o.is_null()).cloned();
    let parsed = |name: &str| -> Result<Option<DynamicObject>, String> {
        read(name).map(|o| serde_json::from_value(o).map_err(|e| format!("the object cannot be read: {e}"))).transpose()
    };
    let answer = async {
        let asked = Asked {
            object: parsed("object")?.ok_or("the request holds no object")?,
            old: parsed("oldObject")?,
            user: serde_json::from_value(read("userInfo").unwrap_or_default())
                .map_err(|e| format!("the caller cannot be read: {e}"))?,
        };
        let kind = request.pointer("/kind/kind").and_then(Value::as_str).unwrap_or_default();
        match (what.as_str(), kind) {
            ("mutate", "PipelineVersion") => bind(&inner, &asked).await,
            ("mutate", "ScheduledWorkflow") => Ok(Some(mark(&inner, &asked))),
            ("validate", "PipelineVersion") => version(&asked).map(|()| None),
            ("validate", "Pipeline") => pipeline(&inner, &asked).await.map(|()| None),
            _ => Err(format!("nothing is known of {what} and {kind}")),
        }
    };
    let mut response = json!({"uid": request.get("uid").cloned().unwrap_or_default()});
    match answer.await {
        Ok(patch) => {
            response["allowed"] = json!(true);
            if let Some(patch) = patch {
                response["patchType"] = json!("JSONPatch");
                response["patch"] = json!(STANDARD.encode(patch.to_string()));
            }
        }
        Err(why) => {
            response["allowed"] = json!(false);
            response["status"] = json!({"code": 400, "reason": "BadRequest", "message": why});
        }
    }
    Ok(Json(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})))
}

/// Labels a version with its pipeline, and makes it the pipeline's own, to go with it.
async fn bind(inner: &Inner, asked: &Asked) -> Result<Option<Value>, String> {
    let object = &asked.object;
    let (namespace, spec) = (object.namespace().unwrap_or_default(), spec(object));
    let name = text(&spec, "pipelineName");
    let found = inner.resources(&pipelines::pipeline(), &namespace).get_opt(name).await;
    let found = found.map_err(|e| format!("the Pipeline {namespace}/{name} cannot be read: {e}"))?;
    let Some(pipeline) = found else {
        return Err(format!(
            "spec.pipelineName is {name:?}, and namespace {namespace} has no Pipeline of that name: apply it first"
        ));
    };
    let uid = pipeline.uid().unwrap_or_default();
    let mut labels = object.labels().clone();
    labels.insert(label::PIPELINE_ID.into(), uid.clone());
    labels.insert(label::PIPELINE.into(), name.chars().take(63).collect());
    let mut owners: Vec<Value> = object
        .owner_references()
        .iter()
        .filter(|o| !(o.kind == "Pipeline" && o.api_version == pipelines::API_VERSION))
        .map(|o| json!(o))
        .collect();
    owners.push(json!({
        "apiVersion": pipelines::API_VERSION, "kind": "Pipeline", "name": name, "uid": uid, "blockOwnerDeletion": true,
    }));
    Ok(Some(json!([
        {"op": "add", "path": "/metadata/labels", "value": labels},
        {"op": "add", "path": "/metadata/ownerReferences", "value": owners},
    ])))
}

/// Everything of a schedule but whether it is enabled.
fn what_it_runs(object: &DynamicObject) -> Value {
    let mut spec = spec(object);
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("enabled");
    }
    spec
}

/// Writes into a schedule who it acts for.
fn mark(inner: &Inner, asked: &Asked) -> Value {
    let object = &asked.object;
    let kept = asked.old.as_ref().filter(|old| what_it_runs(old) == what_it_runs(object));
    let value = match kept.and_then(|old| old.annotations().get(ACTS_FOR)) {
        Some(value) => value.clone(),
        None => seal(inner, &asked.user, &object.namespace().unwrap_or_default(), &object.name_any()),
    };
    let mut annotations = object.annotations().clone();
    annotations.insert(ACTS_FOR.into(), value);
    json!([{"op": "add", "path": "/metadata/annotations", "value": annotations}])
}

fn bound(namespace: &str, name: &str, user: &str) -> String {
    format!("acts for\n{namespace}\n{name}\n{user}")
}

fn seal(inner: &Inner, user: &UserInfo, namespace: &str, name: &str) -> String {
    // The extra attributes are of the request, not of the person.
    let user = json!({"username": user.username, "uid": user.uid, "groups": user.groups}).to_string();
    let signature = mac(inner, &bound(namespace, name, &user));
    format!("{}.{}", URL_SAFE_NO_PAD.encode(user), URL_SAFE_NO_PAD.encode(signature))
}

/// Who applied a schedule, if the mark is ours and this object's.
pub(crate) fn who(inner: &Inner, object: &DynamicObject) -> Option<UserInfo> {
    let (user, signature) = object.annotations().get(ACTS_FOR)?.split_once('.')?;
    let user = String::from_utf8(URL_SAFE_NO_PAD.decode(user).ok()?).ok()?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    let expected = mac(inner, &bound(&object.namespace().unwrap_or_default(), &object.name_any(), &user));
    bool::from(expected.ct_eq(&signature)).then(|| serde_json::from_str(&user).ok())?
}

fn version(asked: &Asked) -> Result<(), String> {
    let now = spec(&asked.object);
    if let Some(old) = &asked.old {
        let fixed = |mut spec: Value| {
            if let Some(spec) = spec.as_object_mut() {
                for name in ["displayName", "tags"] {
                    spec.remove(name);
                }
            }
            spec
        };
        // An object that only goes, or that came before its rules, is left to go.
        if fixed(spec(old)) != fixed(now.clone()) && asked.object.metadata.deletion_timestamp.is_none() {
            return Err(IMMUTABLE.into());
        }
        return rest::tags(&now).map(drop).map_err(|e| e.message);
    }
    versions::version_row(&asked.object, "")
        .map(drop)
        .map_err(|e| format!("the pipeline spec is invalid: {}", e.message))
}

async fn pipeline(inner: &Inner, asked: &Asked) -> Result<(), String> {
    let row = versions::pipeline_row(&asked.object).map_err(|e| e.message)?;
    if asked.old.is_some() {
        return Ok(());
    }
    let other = inner.store.pipeline_by_name(&row.namespace, &row.name).await.map_err(|e| e.message)?;
    match other {
        Some(other) if other.resource.is_empty() => Err(format!(
            "namespace {} has a pipeline named {} already, uploaded through the pipelines API",
            row.namespace, row.name
        )),
        _ => Ok(()),
    }
}
