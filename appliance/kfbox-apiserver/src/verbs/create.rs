//! `create`.

use super::{Call, object_response};
use crate::{
    admission, conversion,
    negotiate::{decode, read_body},
    object::{self, meta, metadata_mut, set_meta},
    status::ApiError,
    store::{Expect, Key, Object, WriteError, encode},
};
use axum::{body::Body, response::Response};
use http::StatusCode;
use serde_json::Value;
use std::sync::Arc;

/// Names tried for one `generateName`: five letters of 27 collide once in 14 million.
const NAME_ATTEMPTS: usize = 8;

/// What `generateName` may be cut to, so that the name with its suffix stays a DNS label.
const GENERATED_PREFIX: usize = 58;

pub async fn create(call: &Call, body: Body) -> Result<Response, ApiError> {
    call.check_options("CreateOptions")?;
    let body = read_body(body).await?;
    let mut object = decode(&call.headers, &body)?;
    call.check_type(&mut object)?;
    let object = create_object(call, object, true).await?;
    Ok(object_response(call, StatusCode::CREATED, &object))
}

/// `track`: field ownership is noted here; server-side apply did so itself.
pub async fn create_object(call: &Call, object: Value, track: bool) -> Result<Arc<Object>, ApiError> {
    let generated = meta(&object, "name").is_empty() && !meta(&object, "generateName").is_empty();
    let mut attempts = if generated { NAME_ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        match create_named(call, object.clone(), track).await {
            Err((_, Some(_name))) if attempts > 0 => {}
            result => return result.map_err(|(error, _)| error),
        }
    }
}

/// The name beside the error says that it is taken.
async fn create_named(call: &Call, mut object: Value, track: bool) -> Result<Arc<Object>, (ApiError, Option<String>)> {
    let plain = |error| (error, None);
    let resource = &*call.resource;
    place(call, &mut object).map_err(plain)?;
    call.prune(&mut object).map_err(plain)?;
    call.check_shape(&object).map_err(plain)?;
    object::drop_empty_metadata(&mut object);

    if meta(&object, "name").is_empty() && !meta(&object, "generateName").is_empty() {
        let prefix: String = meta(&object, "generateName").chars().take(GENERATED_PREFIX).collect();
        set_meta(&mut object, "name", format!("{prefix}{}", object::random_suffix(5)));
    }
    let has_revision = !matches!(meta(&object, "resourceVersion"), "" | "0");
    let metadata = metadata_mut(&mut object);
    for server_owned in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion", "generation"]
    {
        metadata.remove(server_owned);
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), object::now().into());
    if resource.generation || resource.custom.is_some() {
        metadata.insert("generation".into(), 1.into());
    }
    if resource.has_subresource("status")
        && let Some(members) = object.as_object_mut()
    {
        members.remove("status");
    }

    call.default(&mut object);
    let reservations = admission::on_create(call, &mut object).await.map_err(plain)?;
    admission::dynamic::mutate(call, "", &mut object, None).await.map_err(plain)?;
    call.validate(&object, None).map_err(plain)?;
    admission::validate(call, &object, None).map_err(plain)?;
    admission::dynamic::validate(call, "", &object, None).await.map_err(plain)?;
    if track {
        crate::ownership::track(call, None, &mut object, "");
    }
    let _charge = admission::charge(call, &object, None).map_err(plain)?;

    let key = Key::new(call.namespace(), meta(&object, "name"));
    conversion::write(&call.core, resource, &mut object).await.map_err(plain)?;
    let encoded = encode(&resource.collection, &object);
    if call.dry_run {
        if call.core.store.get(&resource.collection, &key).is_some() {
            return Err((
                ApiError::already_exists(&resource.group, &resource.plural, &key.name),
                Some(key.name.into()),
            ));
        }
        return conversion::read(call, Arc::new(encoded.preview(key, None))).await.map_err(plain);
    }
    if has_revision {
        return Err(plain(ApiError::revision_on_create()));
    }
    let name = key.name.to_string();
    let written = call.core.store.put(&resource.collection, key, Expect::Absent, encoded).await;
    drop(reservations);
    match written {
        Ok(stored) => {
            crate::effects::after_write(call, &stored);
            conversion::read(call, stored).await.map_err(plain)
        }
        Err(WriteError::Exists | WriteError::Changed) => {
            Err((ApiError::already_exists(&resource.group, &resource.plural, &name), Some(name)))
        }
        Err(error) => Err(plain(error.into())),
    }
}

/// The object belongs where the path says.
pub fn place(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let own = meta(object, "namespace");
    if call.resource.namespaced {
        let namespace = call.namespace();
        if namespace.is_empty() {
            return Err(ApiError::method_not_allowed());
        }
        if !own.is_empty() && own != namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        set_meta(object, "namespace", namespace);
    } else {
        if !own.is_empty() && call.resource.custom.is_some() {
            return Err(ApiError::bad_request("namespace is not allowed on this type"));
        }
        metadata_mut(object).remove("namespace");
    }
    let name = meta(object, "name");
    if !call.target.name.is_empty() && name != call.target.name {
        if name.is_empty() {
            set_meta(object, "name", call.target.name.clone());
        } else {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                call.target.name
            )));
        }
    }
    Ok(())
}
