//! `delete` and `deletecollection`: preconditions, finalizers, grace (apiserver `pkg/registry/rest/delete.go`).

use super::{Call, list, object_response, update::encode_in_storage};
use crate::{
    conversion, convert, effects,
    negotiate::{decode, read_body},
    object::{self, FOREGROUND, ORPHAN, set_meta},
    respond,
    status::ApiError,
    store::{Expect, Key, Object, WriteError},
};
use axum::{body::Body, response::Response};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Kinds whose finished deletion answers with the object instead of a Status.
const RETURN_DELETED: [&str; 7] = [
    "pods",
    "persistentvolumes",
    "persistentvolumeclaims",
    "podtemplates",
    "resourcequotas",
    "serviceaccounts",
    "services",
];

const ATTEMPTS: usize = 16;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub preconditions: Option<Preconditions>,
    pub orphan_dependents: Option<bool>,
    pub propagation_policy: Option<String>,
    pub dry_run: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

/// What became of the object.
pub enum Deleted {
    /// It is gone; this was its last state.
    Gone(Arc<Object>),
    /// It is marked, and kept by its finalizers or grace period.
    Marked(Arc<Object>),
}

async fn options(call: &Call, body: Body) -> Result<(DeleteOptions, bool), ApiError> {
    let body = read_body(body).await?;
    let mut options: DeleteOptions = if body.is_empty() {
        DeleteOptions::default()
    } else {
        serde_json::from_value(decode(&call.headers, &body)?)
            .map_err(|e| ApiError::bad_request(format!("DeleteOptions cannot be read: {e}")))?
    };
    if let Some(seconds) = call.query.number("gracePeriodSeconds")? {
        options.grace_period_seconds = Some(seconds);
    }
    if let Some(policy) = call.query.get("propagationPolicy") {
        options.propagation_policy = Some(policy.to_owned());
    }
    if call.query.get("orphanDependents").is_some() {
        options.orphan_dependents = Some(call.query.flag("orphanDependents"));
    }
    if options.orphan_dependents.is_some() && options.propagation_policy.is_some() {
        return Err(ApiError::bad_request("orphanDependents and deletionPropagation cannot be both set"));
    }
    match options.propagation_policy.as_deref() {
        None | Some("Background" | "Foreground" | "Orphan") => {}
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {other:?}: supported \
                 values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
            )));
        }
    }
    let dry_run = call.dry_run || options.dry_run.as_ref().is_some_and(|d| d.iter().any(|d| d == "All"));
    Ok((options, dry_run))
}

pub async fn delete(call: &Call, body: Body) -> Result<Response, ApiError> {
    let (options, dry_run) = options(call, body).await?;
    Ok(match delete_object(call, &call.key(), &options, dry_run).await? {
        Deleted::Gone(last) if !RETURN_DELETED.contains(&&*call.resource.collection) => {
            respond::value(call, StatusCode::OK, &respond::deleted(call, &last.value()))
        }
        Deleted::Gone(object) | Deleted::Marked(object) => object_response(call, StatusCode::OK, &object),
    })
}

pub async fn delete_collection(call: &Call, body: Body) -> Result<Response, ApiError> {
    let (options, dry_run) = options(call, body).await?;
    let selector = list::selector(call)?;
    let snapshot = call.core.store.list(&call.resource.collection, list::namespace(call), None, None)?;
    let mut items = Vec::new();
    for object in snapshot.objects.iter().filter(|o| selector.matches(o)) {
        match delete_object(call, &object.key, &options, dry_run).await {
            Ok(Deleted::Gone(last) | Deleted::Marked(last)) => items.push(convert::value(&call.resource, &last)),
            Err(error) if error.reason() == "NotFound" => {}
            Err(error) => return Err(error),
        }
    }
    let list = json!({
        "kind": &*call.resource.list_kind, "apiVersion": call.resource.api_version(),
        "metadata": {"resourceVersion": call.core.store.revision().to_string()}, "items": items,
    });
    Ok(respond::value(call, StatusCode::OK, &list))
}

pub async fn delete_object(
    call: &Call,
    key: &Key,
    options: &DeleteOptions,
    dry_run: bool,
) -> Result<Deleted, ApiError> {
    let resource = &*call.resource;
    for _ in 0..ATTEMPTS {
        let stored = call
            .core
            .store
            .get(&resource.collection, key)
            .ok_or_else(|| ApiError::not_found(&resource.group, &resource.plural, &key.name))?;
        check(call, &stored, options)?;
        let stored = conversion::read(call, stored).await?;
        let old = convert::value(resource, &stored);
        crate::admission::on_delete(call, &old)?;
        crate::admission::dynamic::on_delete(call, &old, options, dry_run).await?;
        let (new, changed) = mark(&resource.collection, &old, options);
        let gone = object::may_vanish(&resource.collection, &new);
        if !gone && !changed {
            return Ok(Deleted::Marked(stored));
        }
        let expect = Expect::Revision(stored.revision);
        // What vanishes at once was never seen being deleted, except by a grace period of zero.
        let last = if gone && !object::is_deleting(&old) { old } else { new.clone() };
        let written = if dry_run {
            Ok(Arc::new(encode_in_storage(call, new).await?.preview(key.clone(), Some(stored.revision))))
        } else if gone {
            call.core
                .store
                .delete(&resource.collection, key.clone(), expect, encode_in_storage(call, last).await?)
                .await
        } else {
            call.core.store.put(&resource.collection, key.clone(), expect, encode_in_storage(call, new).await?).await
        };
        match written {
            Ok(object) => {
                if !dry_run {
                    effects::after_write(call, &object);
                }
                let object = conversion::read(call, object).await?;
                return Ok(if gone { Deleted::Gone(object) } else { Deleted::Marked(object) });
            }
            Err(WriteError::Changed | WriteError::Exists) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ApiError::modified(&resource.group, &resource.plural, &key.name))
}

fn check(call: &Call, stored: &Object, options: &DeleteOptions) -> Result<(), ApiError> {
    let Some(preconditions) = &options.preconditions else { return Ok(()) };
    let conflict = |what: &str, asked: &str, found: &str| {
        let why = format!("Precondition failed: {what} in precondition: {asked}, {what} in object meta: {found}");
        ApiError::conflict(&call.resource.group, &call.resource.plural, &stored.key.name, why)
    };
    if let Some(uid) = preconditions.uid.as_deref().filter(|u| *u != &*stored.uid) {
        return Err(conflict("UID", uid, &stored.uid));
    }
    let revision = stored.revision.to_string();
    if let Some(asked) = preconditions.resource_version.as_deref().filter(|r| *r != revision) {
        return Err(conflict("ResourceVersion", asked, &revision));
    }
    Ok(())
}

/// The object as deletion leaves it, and whether that differs.
fn mark(collection: &str, old: &Value, options: &DeleteOptions) -> (Value, bool) {
    let mut new = old.clone();
    let mut finalizers = object::finalizers(old);
    let before = finalizers.clone();
    let policy = match (options.orphan_dependents, options.propagation_policy.as_deref()) {
        (Some(true), _) | (_, Some("Orphan")) => Some(ORPHAN),
        (Some(false), _) | (_, Some("Background")) => None,
        (_, Some("Foreground")) => Some(FOREGROUND),
        // Unless told otherwise, what asked for a policy before keeps it; two old kinds orphan.
        _ if finalizers.iter().any(|f| f == ORPHAN) => Some(ORPHAN),
        _ if finalizers.iter().any(|f| f == FOREGROUND) => Some(FOREGROUND),
        _ if matches!(collection, "jobs.batch" | "replicationcontrollers") => Some(ORPHAN),
        _ => None,
    };
    finalizers.retain(|f| f != ORPHAN && f != FOREGROUND);
    finalizers.extend(policy.map(str::to_owned));
    if finalizers != before {
        let list: Vec<Value> = finalizers.iter().map(|f| f.clone().into()).collect();
        set_meta(&mut new, "finalizers", list);
    }

    let grace = grace_period(collection, old, options);
    let running = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
    // A second deletion may shorten the grace period, never lengthen it.
    let grace = running.map_or(grace, |r| r.min(grace));
    let remark = !object::is_deleting(old) || running.is_some_and(|r| grace < r);
    if remark {
        let at = chrono::Utc::now() + chrono::Duration::seconds(grace);
        set_meta(&mut new, "deletionTimestamp", object::timestamp(at));
        set_meta(&mut new, "deletionGracePeriodSeconds", grace);
        if let Some(generation) = old["metadata"]["generation"].as_i64().filter(|g| *g > 0) {
            set_meta(&mut new, "generation", generation + 1);
        }
        if collection == "namespaces" {
            new["status"]["phase"] = "Terminating".into();
        }
    }
    let changed = remark || finalizers != before;
    (new, changed)
}

/// Only pods have one: time for their processes to end (`pkg/registry/core/pod/strategy.go`).
fn grace_period(collection: &str, old: &Value, options: &DeleteOptions) -> i64 {
    if collection != "pods" {
        return 0;
    }
    let unscheduled = old["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
    let ended = matches!(old["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unscheduled || ended {
        return 0;
    }
    let spec = old["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    let grace = options.grace_period_seconds.unwrap_or(spec);
    // Negative means at once as far as upstream is concerned: one second.
    if grace < 0 { 1 } else { grace }
}
