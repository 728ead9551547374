//! `update`, and the read-modify-write that update, patch, apply and the subresources share.

use super::{Call, create, object_response};
use crate::{
    admission, conversion, convert, effects,
    negotiate::{decode, read_body},
    object::{self, meta, metadata_mut},
    status::ApiError,
    store::{Encoded, Expect, Object, WriteError, encode},
};
use axum::{body::Body, response::Response};
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

/// Tries of a change that does not insist on a revision, before a storm of other writers wins.
const ATTEMPTS: usize = 16;

/// Kinds that a PUT may create (their strategies' `AllowCreateOnUpdate`).
const CREATED_BY_UPDATE: [&str; 4] = ["endpoints", "leases.coordination.k8s.io", "events", "services"];

/// How an object is changed.
pub struct Modification<'a> {
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Field ownership is noted for this write; server-side apply did so itself.
    pub track: bool,
    /// A full replacement must name the revision of a custom resource.
    pub replace: bool,
}

pub async fn update(call: &Call, body: Body) -> Result<Response, ApiError> {
    call.check_options("UpdateOptions")?;
    let body = read_body(body).await?;
    let mut new = decode(&call.headers, &body)?;
    call.check_type(&mut new)?;
    create::place(call, &mut new)?;
    let subresource = &*call.target.subresource;
    if subresource.is_empty()
        && CREATED_BY_UPDATE.contains(&&*call.resource.collection)
        && meta(&new, "resourceVersion").is_empty()
        && call.core.store.get(&call.resource.collection, &call.key()).is_none()
    {
        let object = super::create_object(call, new, true).await?;
        return Ok(object_response(call, StatusCode::CREATED, &object));
    }
    let how = Modification { subresource, track: true, replace: true };
    let modified = modify(call, &how, |_| Ok(new.clone())).await?;
    Ok(object_response(call, StatusCode::OK, &modified))
}

/// Reads the object, lets `change` make the new one (both in the version of the call), checks, and writes it.
pub async fn modify(
    call: &Call,
    how: &Modification<'_>,
    change: impl Fn(&Value) -> Result<Value, ApiError>,
) -> Result<Arc<Object>, ApiError> {
    let resource = &*call.resource;
    let key = call.key();
    for _ in 0..ATTEMPTS {
        let stored = call.core.store.get(&resource.collection, &key).ok_or_else(|| call.not_found())?;
        let stored = conversion::read(call, stored).await?;
        let old = convert::value(resource, &stored);
        let mut new = change(&old)?;
        let asked_revision = meta(&new, "resourceVersion").to_owned();
        let insists = check_preconditions(call, how, &stored, &new)?;
        let reservations = prepare(call, how, &old, &mut new).await?;

        let vanishing = object::is_deleting(&new) && object::may_vanish(&resource.collection, &new);
        if !vanishing && unchanged(&old, &new) {
            return Ok(stored);
        }
        let encoded = encode_in_storage(call, new).await?;
        let expect = Expect::Revision(stored.revision);
        let written = if call.dry_run {
            Ok(Arc::new(encoded.preview(key.clone(), Some(stored.revision))))
        } else if vanishing {
            call.core.store.delete(&resource.collection, key.clone(), expect, encoded).await
        } else {
            call.core.store.put(&resource.collection, key.clone(), expect, encoded).await
        };
        drop(reservations);
        match written {
            Ok(object) => {
                if !call.dry_run {
                    effects::after_write(call, &object);
                }
                return conversion::read(call, object).await;
            }
            Err(WriteError::Changed | WriteError::Exists) if insists && !asked_revision.is_empty() => {
                return Err(ApiError::modified(&resource.group, &resource.plural, &key.name));
            }
            Err(WriteError::Changed | WriteError::Exists) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ApiError::modified(&resource.group, &resource.plural, &key.name))
}

pub async fn encode_in_storage(call: &Call, mut object: Value) -> Result<Encoded, ApiError> {
    conversion::write(&call.core, &call.resource, &mut object).await?;
    Ok(encode(&call.resource.collection, &object))
}

/// True when the caller insists on the revision it named.
fn check_preconditions(call: &Call, how: &Modification<'_>, stored: &Object, new: &Value) -> Result<bool, ApiError> {
    let resource = &*call.resource;
    let asked = meta(new, "resourceVersion");
    let uid = meta(new, "uid");
    if !uid.is_empty() && uid != &*stored.uid {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", stored.uid);
        return Err(ApiError::conflict(&resource.group, &resource.plural, &stored.key.name, why));
    }
    if asked.is_empty() || asked == "0" {
        if how.replace && resource.custom.is_some() {
            let error = crate::schema::FieldError::invalid(
                "metadata.resourceVersion",
                &json!(0),
                "must be specified for an update",
            );
            return Err(ApiError::invalid(&resource.group, &resource.kind, &stored.key.name, &[error]));
        }
        return Ok(false);
    }
    if asked != stored.revision.to_string() {
        return Err(ApiError::modified(&resource.group, &resource.plural, &stored.key.name));
    }
    Ok(true)
}

/// Brings the new object to the form that may be stored: what the server owns is the server's, subresources change
/// only their own part, defaults, admission, validation, ownership.
async fn prepare(
    call: &Call,
    how: &Modification<'_>,
    old: &Value,
    new: &mut Value,
) -> Result<Vec<admission::Reservation>, ApiError> {
    let resource = &*call.resource;
    call.prune(new)?;
    call.check_shape(new)?;
    object::drop_empty_metadata(new);
    keep_server_owned(old, new);
    match how.subresource {
        "" if resource.has_subresource("status") => restore_member(old, new, "status"),
        "status" | "approval" => keep_all_but_status(call, old, new),
        "ephemeralcontainers" => keep_all_but(old, new, |old, new| {
            old["spec"]["ephemeralContainers"] = new["spec"]["ephemeralContainers"].clone();
        }),
        "resize" => keep_all_but(old, new, |old, new| {
            for list in ["containers", "initContainers"] {
                let sizes = new["spec"][list].as_array().cloned().unwrap_or_default();
                let kept = old["spec"].get_mut(list).and_then(Value::as_array_mut);
                for container in kept.into_iter().flatten() {
                    if let Some(size) = sizes.iter().find(|c| c["name"] == container["name"]) {
                        container["resources"] = size["resources"].clone();
                        container["resizePolicy"] = size["resizePolicy"].clone();
                    }
                }
            }
        }),
        _ => {}
    }
    // A finalizer may not be added to what is being deleted.
    if object::is_deleting(old) {
        let before = object::finalizers(old);
        let added: Vec<String> = object::finalizers(new).into_iter().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            let error = crate::schema::FieldError::forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
                ),
            );
            return Err(ApiError::invalid(&resource.group, &resource.kind, meta(old, "name"), &[error]));
        }
    }
    call.default(new);
    let reservations = admission::on_update(call, how.subresource, old, new).await?;
    admission::dynamic::mutate(call, how.subresource, new, Some(old)).await?;
    if (resource.generation || resource.custom.is_some()) && !matches!(how.subresource, "status" | "approval") {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let bump = i64::from(desired_differs(call, old, new));
        metadata_mut(new).insert("generation".into(), (generation + bump).into());
    }
    call.validate_write(how.subresource, new, Some(old))?;
    admission::validate(call, new, Some(old))?;
    admission::dynamic::validate(call, how.subresource, new, Some(old)).await?;
    if how.track {
        crate::ownership::track(call, Some(old), new, how.subresource);
    }
    Ok(reservations.into_iter().chain(admission::charge(call, new, Some(old))?).collect())
}

/// Metadata that no client and no webhook changes.
pub const SERVER_OWNED: [&str; 10] = [
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "generateName",
    "resourceVersion",
    "selfLink",
];

fn keep_server_owned(old: &Value, new: &mut Value) {
    let metadata = metadata_mut(new);
    for field in SERVER_OWNED {
        match old["metadata"].get(field) {
            Some(value) => drop(metadata.insert(field.into(), value.clone())),
            None => drop(metadata.remove(field)),
        }
    }
    if !metadata.contains_key("managedFields")
        && let Some(fields) = old["metadata"].get("managedFields")
    {
        metadata.insert("managedFields".into(), fields.clone());
    }
}

fn restore_member(old: &Value, new: &mut Value, member: &str) {
    if let Some(members) = new.as_object_mut() {
        match old.get(member) {
            Some(value) => drop(members.insert(member.into(), value.clone())),
            None => drop(members.remove(member)),
        }
    }
}

/// A subresource changes its own part, here copied by `part` from the new object into the old one.
fn keep_all_but(old: &Value, new: &mut Value, part: impl Fn(&mut Value, &Value)) {
    let mut kept = old.clone();
    part(&mut kept, new);
    *new = kept;
}

/// A status write changes the status; of built-in kinds also labels, annotations and the like, as upstream.
fn keep_all_but_status(call: &Call, old: &Value, new: &mut Value) {
    let status = new.get("status").cloned();
    let mut metadata = old["metadata"].clone();
    let given = new["metadata"].clone();
    let mut taken = vec!["managedFields"];
    if call.resource.custom.is_none() {
        taken.extend(["labels", "annotations", "finalizers"]);
    }
    for field in taken {
        match given.get(field) {
            Some(value) => metadata[field] = value.clone(),
            None => drop(metadata.as_object_mut().and_then(|m| m.remove(field))),
        }
    }
    *new = old.clone();
    new["metadata"] = metadata;
    if let Some(members) = new.as_object_mut() {
        match status {
            Some(status) => drop(members.insert("status".into(), status)),
            None => drop(members.remove("status")),
        }
    }
}

/// What somebody wants, as opposed to what is: everything but metadata and status.
fn desired_differs(call: &Call, old: &Value, new: &Value) -> bool {
    let with_status = call.resource.custom.as_ref().is_some_and(|c| !c.status);
    let desired = |object: &Value| -> Vec<(String, Value)> {
        object
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(k, _)| *k != "metadata" && (with_status || *k != "status"))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    desired(old) != desired(new)
}

/// A write that changes nothing but times in managedFields is none.
fn unchanged(old: &Value, new: &Value) -> bool {
    let mut old = old.clone();
    let mut new = new.clone();
    for object in [&mut old, &mut new] {
        let metadata = metadata_mut(object);
        metadata.remove("resourceVersion");
        for entry in metadata.get_mut("managedFields").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(entry) = entry.as_object_mut() {
                entry.remove("time");
            }
        }
    }
    old == new
}
