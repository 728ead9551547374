//! Admission webhooks: which are called, in what order, and what becomes of their answers.
//!
//! Guarantees: mutating webhooks are called one after the other in the order of their configurations' names, validating
//! ones all at once; a call is bounded in time and size; a dry run never reaches a webhook with side effects; a webhook
//! that fails refuses the request or is passed over, as its `failurePolicy` says.
//!
//! Upstream: apiserver `pkg/admission/plugin/webhook/{mutating,validating}/dispatcher.go`.

mod config;
mod review;

pub use config::{Hook, client_errors, errors, parse};

use super::dynamic::{Attributes, Bindings, check_conditions};
use crate::{cel::Authorizer, patch, resources::Resource, status::ApiError, webhook::Bounds};
use futures::future::join_all;
use review::{Answer, Review};
use serde_json::Value;
use std::{collections::BTreeSet, sync::Arc};

/// Bytes of an answer: room for a patch, in base64, that replaces the largest object there may be.
const ANSWER: usize = 8 << 20;

/// Why a webhook was not heard, or what it decided.
enum Failure {
    /// It could not be asked, or its answer makes no sense; `failurePolicy` decides.
    Calling(String),
    /// It refused, or the request may not go to it.
    Refused(ApiError),
}

/// What one pass over the mutating webhooks needs to know of the one before (`reinvocationcontext.go`).
#[derive(Default)]
pub struct Round {
    second: bool,
    /// Another pass is asked for.
    pub again: bool,
    invoked: BTreeSet<usize>,
    reinvoke: BTreeSet<usize>,
    last: Value,
}

impl Round {
    /// Begins the second pass, on the object as it is now.
    pub fn next(&mut self, object: &Value) {
        self.second = true;
        if *object != self.last {
            self.require();
        }
    }

    /// Those that were called, and want to see what comes after them, are called again.
    fn require(&mut self) {
        self.reinvoke.append(&mut self.invoked);
    }
}

/// The version to ask this webhook in, if it is to be asked at all.
fn wanted(hook: &Hook, attributes: &Attributes<'_>) -> Result<Option<Arc<Resource>>, ApiError> {
    hook.matcher.matches(attributes, false)
}

async fn included(
    hook: &Hook,
    attributes: &Attributes<'_>,
    matched: &Resource,
    objects: &(Value, Value),
) -> Result<bool, ApiError> {
    if hook.conditions.is_empty() {
        return Ok(true);
    }
    let call = attributes.call;
    let authorizer = Authorizer::new(call.core.rbac.clone(), call.user.clone());
    let bindings = Bindings::new(attributes, matched, &objects.0, &objects.1).authorized_by(&authorizer);
    check_conditions(&hook.conditions, hook.fails_open, attributes, &bindings)
}

pub async fn mutate(hooks: &[Arc<Hook>], attributes: &mut Attributes<'_>, round: &mut Round) -> Result<(), ApiError> {
    for (at, hook) in hooks.iter().enumerate() {
        let Some(matched) = wanted(hook, attributes)? else { continue };
        if round.second && !round.reinvoke.contains(&at) {
            continue;
        }
        let objects = attributes.versioned(&matched).await?;
        if !included(hook, attributes, &matched, &objects).await? {
            continue;
        }
        let outcome = call_mutating(hook, attributes, &matched, objects).await;
        if let Ok(Some(object)) = &outcome {
            let object = attributes.back(object.clone(), &matched).await?;
            if object != attributes.object {
                attributes.object = object;
                round.require();
                round.again = true;
            }
        }
        if hook.reinvocable {
            round.invoked.insert(at);
        }
        outcome.map(drop).or_else(|failure| settle(hook, failure))?;
    }
    round.last = attributes.object.clone();
    Ok(())
}

/// What a failure means for the request.
fn settle(hook: &Hook, failure: Failure) -> Result<(), ApiError> {
    match failure {
        Failure::Refused(error) => Err(error),
        Failure::Calling(why) if hook.fails_open => {
            tracing::warn!(webhook = hook.name, why, "a webhook was not heard, and its policy is to go on");
            Ok(())
        }
        Failure::Calling(why) => Err(ApiError::internal(format_args!("failed calling webhook {:?}: {why}", hook.name))),
    }
}

async fn call_mutating(
    hook: &Hook,
    attributes: &Attributes<'_>,
    matched: &Resource,
    objects: (Value, Value),
) -> Result<Option<Value>, Failure> {
    let object = objects.0.clone();
    let answer = ask(hook, attributes, matched, objects, true).await?;
    let Some(text) = answer.patch.filter(|patch| !patch.is_empty()) else { return Ok(None) };
    let operations: Value = serde_json::from_slice(&text)
        .map_err(|error| Failure::Calling(format!("received undecodable patch in webhook response: {error}")))?;
    match operations.as_array() {
        Some(operations) if operations.is_empty() => return Ok(None),
        Some(_) => {}
        None => {
            let why = "received undecodable patch in webhook response: the patch is no list of operations";
            return Err(Failure::Calling(why.to_owned()));
        }
    }
    if object.is_null() {
        let why = format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        );
        return Err(Failure::Refused(ApiError::internal(why)));
    }
    if answer.patch_type != "JSONPatch" {
        return Err(Failure::Calling(format!("unsupported patch type {:?}", answer.patch_type)));
    }
    let patched = patch::json(&object, &operations).map_err(|error| Failure::Refused(ApiError::internal(error)))?;
    if !patched.is_object() {
        return Err(Failure::Refused(ApiError::internal("the patched object is no object")));
    }
    Ok(Some(patched))
}

pub async fn validate(hooks: &[Arc<Hook>], attributes: &Attributes<'_>) -> Result<(), ApiError> {
    let mut relevant = Vec::new();
    for hook in hooks {
        let Some(matched) = wanted(hook, attributes)? else { continue };
        let objects = attributes.versioned(&matched).await?;
        if included(hook, attributes, &matched, &objects).await? {
            relevant.push((hook, matched, objects));
        }
    }
    let asked = relevant.into_iter().map(|(hook, matched, objects)| async move {
        let outcome = ask(hook, attributes, &matched, objects, false).await;
        outcome.map(drop).or_else(|failure| settle(hook, failure))
    });
    // All are asked whatever one says, so that each has seen the request; the first refusal is told.
    join_all(asked).await.into_iter().collect()
}

async fn ask(
    hook: &Hook,
    attributes: &Attributes<'_>,
    matched: &Resource,
    objects: (Value, Value),
    mutating: bool,
) -> Result<Answer, Failure> {
    if attributes.dry_run && !hook.dry_runs {
        let why = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(Failure::Refused(ApiError::bad_request(why)));
    }
    let review = Review::new(&hook.review_versions).ok_or_else(|| {
        let why = "webhook does not accept known AdmissionReview versions (v1, v1beta1)";
        Failure::Calling(format!("could not create admission objects: {why}"))
    })?;
    let mut request = attributes.request(matched);
    // A webhook is always told all of these; only expressions must ask whether there is a name.
    for (field, value) in [("object", objects.0), ("oldObject", objects.1)] {
        request.insert(field.into(), value);
    }
    let bounds = Bounds { time: hook.time, answer: ANSWER };
    let answer = hook.client.post(&attributes.call.core, review.encode(request), bounds).await;
    let bytes = answer.map_err(|error| {
        Failure::Calling(match error {
            crate::webhook::CallError::Configuration(why) => format!("could not get REST client: {why}"),
            error => format!("failed to call webhook: {error}"),
        })
    })?;
    let answer = review.decode(&bytes, mutating).map_err(Failure::Calling)?;
    for warning in &answer.warnings {
        attributes.call.warn(warning.clone());
    }
    for (key, value) in &answer.annotations {
        attributes.call.annotate(format!("{}/{key}", hook.name), value.clone());
    }
    if answer.allowed { Ok(answer) } else { Err(Failure::Refused(review::refusal(&hook.name, &answer.result))) }
}
