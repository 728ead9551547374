//! Custom resources between versions by a webhook, ConversionReview `v1` and `v1beta1`
//! (apiextensions-apiserver `pkg/apiserver/conversion/webhook_converter.go`).
//!
//! Guarantees: objects of resources without such a webhook pass through untouched; a webhook changes no metadata but labels
//! and annotations; what it returns is pruned and defaulted by the schema of its version.

use crate::{
    convert,
    object::{member_mut, meta},
    resources::Resource,
    schema::FieldError,
    server::Core,
    status::ApiError,
    store::{Change, Object, encode},
    verbs::Call,
    webhook::{Bounds, Client, ClientConfig},
};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// Upstream's.
const TIME: Duration = Duration::from_secs(30);
/// Objects in one review: enough for a page of a list, few enough that the review of large objects stays within what
/// servers take.
const TOGETHER: usize = 500;
/// Bytes of an answer: that many objects of a hundred kilobytes each, or a few of the largest there may be.
const ANSWER: usize = 64 << 20;

/// `spec.conversion.webhook` of a definition.
#[derive(Debug)]
pub struct Conversion {
    client: Client,
    review_versions: Vec<String>,
}

impl Conversion {
    /// None where only `apiVersion` differs between versions.
    pub fn of(crd: &Value) -> Option<Arc<Self>> {
        let conversion = &crd["spec"]["conversion"];
        if conversion["strategy"] != "Webhook" {
            return None;
        }
        let webhook = &conversion["webhook"];
        let versions = webhook["conversionReviewVersions"].as_array().into_iter().flatten();
        Some(Arc::new(Self {
            client: Client::new(ClientConfig::deserialize(&webhook["clientConfig"]).unwrap_or_default()),
            review_versions: versions.filter_map(|version| version.as_str().map(str::to_owned)).collect(),
        }))
    }

    /// Converts all, which are objects of `kind`, or says what upstream says.
    async fn convert(&self, core: &Core, objects: Vec<Value>, kind: &str, to: &str) -> Result<Vec<Value>, ApiError> {
        let from = objects.first().map(|object| object["apiVersion"].as_str().unwrap_or_default().to_owned());
        let about = format!("conversion webhook for {}, Kind={kind}", from.unwrap_or_default());
        let failed = |why: String| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "", format!("{about} {why}"));
        let version = self.review_versions.iter().find_map(|v| ["v1", "v1beta1"].into_iter().find(|known| known == v));
        let Some(version) = version else {
            let why = "no supported conversion review versions";
            return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "", why));
        };
        let uid = uuid::Uuid::new_v4().to_string();
        let review = json!({
            "kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{version}"),
            "request": {"uid": uid, "desiredAPIVersion": to, "objects": objects},
        });
        let bounds = Bounds { time: TIME, answer: ANSWER };
        let answer = self.client.post(core, review.to_string().into_bytes(), bounds).await;
        let answer = answer.map_err(|error| failed(format!("failed: {error}")))?;
        let converted = decode(&answer, version, &uid).map_err(|why| failed(format!("failed: {why}")))?;
        if converted.len() != objects.len() {
            return Err(failed(format!("returned {} objects, expected {}", converted.len(), objects.len())));
        }
        let pairs = objects.iter().zip(converted).enumerate();
        pairs
            .map(|(at, (before, after))| {
                checked(before, after, to)
                    .map_err(|why| failed(format!("returned invalid converted object at index {at}: {why}")))
            })
            .collect()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Answer {
    api_version: String,
    kind: String,
    response: Option<Response>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Response {
    uid: String,
    result: Value,
    converted_objects: Vec<Value>,
}

fn decode(bytes: &[u8], version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let told: Answer = serde_json::from_slice(bytes)
        .map_err(|error| format!("couldn't get version/kind; json parse error: {error}"))?;
    if version == "v1" && (told.api_version != "apiextensions.k8s.io/v1" || told.kind != "ConversionReview") {
        return Err(format!(
            "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got {}, Kind={}",
            told.api_version, told.kind
        ));
    }
    let response = told.response.ok_or("no response provided")?;
    if version == "v1" && response.uid != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", response.uid));
    }
    match (response.result["status"].as_str().unwrap_or_default(), response.result["message"].as_str()) {
        ("Success", _) => Ok(response.converted_objects),
        (_, Some(message)) if !message.is_empty() => Err(message.to_owned()),
        (status, _) => Err(format!("response.result.status was '{status}', not 'Success'")),
    }
}

/// The converted object with its metadata as it was, but for labels and annotations.
fn checked(before: &Value, mut after: Value, to: &str) -> Result<Value, String> {
    let found = after["apiVersion"].as_str().unwrap_or_default();
    if found != to {
        return Err(format!("invalid groupVersion (expected {to}, received {found})"));
    }
    if before["kind"] != after["kind"] {
        let kind = |object: &Value| object["kind"].as_str().unwrap_or_default().to_owned();
        return Err(format!("invalid kind (expected {}, received {})", kind(before), kind(&after)));
    }
    for (field, told) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (was, is) = (meta(before, field), meta(&after, field));
        if was != is {
            return Err(format!("must have the same {told}: {was} != {is}"));
        }
    }
    let returned = match after.get("metadata") {
        None => return Err("missing metadata in converted object".to_owned()),
        Some(Value::Object(metadata)) => metadata.clone(),
        Some(_) => return Err("invalid metadata in converted object".to_owned()),
    };
    let mut metadata = before["metadata"].as_object().cloned().unwrap_or_default();
    for field in ["labels", "annotations"] {
        match returned.get(field) {
            None | Some(Value::Null) => drop(metadata.remove(field)),
            Some(Value::Object(members)) => {
                check_members(field, members)?;
                metadata.insert(field.into(), members.clone().into());
            }
            Some(_) => return Err(format!("invalid metadata.{field} in converted object")),
        }
    }
    after["metadata"] = metadata.into();
    Ok(after)
}

fn check_members(field: &str, members: &Map<String, Value>) -> Result<(), String> {
    for (key, value) in members {
        let Some(value) = value.as_str() else {
            return Err(format!("metadata.{field}[{key}] must be a string in converted object"));
        };
        let is_label =
            value.len() <= 63 && value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if key.is_empty() || (field == "labels" && !is_label) {
            return Err(format!("metadata.{field}: Invalid value: {value:?}"));
        }
    }
    Ok(())
}

fn conversion(resource: &Resource) -> Option<&Arc<Conversion>> {
    resource.custom.as_ref()?.conversion.as_ref()
}

fn api_version(resource: &Resource, version: &str) -> String {
    format!("{}/{version}", resource.group)
}

/// By the schema of its version.
fn finish(resource: &Resource, object: &mut Value) {
    if let Some(schema) = resource.schema() {
        crate::schema::prune(&schema, object);
        crate::schema::default(&schema, object);
    }
}

/// A stored object in the version of the call.
pub async fn read(call: &Call, object: Arc<Object>) -> Result<Arc<Object>, ApiError> {
    if conversion(&call.resource).is_none() || object.version == call.resource.version {
        return Ok(object);
    }
    let read = converted(&call.core, &call.resource, vec![object], &call.resource.kind).await?;
    read.into_iter().next().ok_or_else(|| ApiError::internal("a conversion lost its object"))
}

/// The objects of a list in the version of `resource`.
pub async fn read_all(
    core: &Core,
    resource: &Resource,
    objects: Vec<Arc<Object>>,
) -> Result<Vec<Arc<Object>>, ApiError> {
    if conversion(resource).is_none() || objects.iter().all(|object| object.version == resource.version) {
        return Ok(objects);
    }
    converted(core, resource, objects, &resource.list_kind).await
}

async fn converted(
    core: &Core,
    resource: &Resource,
    mut objects: Vec<Arc<Object>>,
    kind: &str,
) -> Result<Vec<Arc<Object>>, ApiError> {
    let Some(conversion) = conversion(resource) else { return Ok(objects) };
    let to = resource.api_version();
    // Objects that were stored at different times may be of different versions; one review may hold them all.
    let foreign: Vec<usize> = (0..objects.len()).filter(|at| objects[*at].version != resource.version).collect();
    for places in foreign.chunks(TOGETHER) {
        let values = places.iter().map(|at| objects[*at].value()).collect();
        let converted = conversion.convert(core, values, kind, &to).await?;
        for (at, mut value) in places.iter().zip(converted) {
            finish(resource, &mut value);
            let object = &objects[*at];
            let encoded = encode(&resource.collection, &value);
            objects[*at] = Arc::new(encoded.preview(object.key.clone(), Some(object.revision)));
        }
    }
    Ok(objects)
}

/// To the form that is stored.
pub async fn write(core: &Core, resource: &Resource, object: &mut Value) -> Result<(), ApiError> {
    if let Some(conversion) = conversion(resource)
        && resource.version != resource.storage_version
    {
        let to = api_version(resource, &resource.storage_version);
        let converted = conversion.convert(core, vec![std::mem::take(object)], &resource.kind, &to).await?;
        *object = converted.into_iter().next().unwrap_or_default();
        // The stored version may not be served, and then has no resource of its own; reading it prunes and defaults.
        if let Some(stored) =
            core.resources.current().find(&resource.group, &resource.storage_version, &resource.plural)
        {
            finish(stored, object);
        }
    }
    convert::to_storage(resource, object);
    Ok(())
}

/// An object of one version in another one of the same resource, without being stored.
pub async fn between(core: &Core, from: &Resource, to: &Resource, object: Value) -> Result<Value, ApiError> {
    if let Some(conversion) = conversion(to) {
        let converted = conversion.convert(core, vec![object], &from.kind, &to.api_version()).await?;
        let mut object = converted.into_iter().next().unwrap_or_default();
        finish(to, &mut object);
        return Ok(object);
    }
    let revision = object["metadata"]["resourceVersion"].clone();
    let mut object = object;
    convert::to_storage(from, &mut object);
    let key = crate::store::Key::new(meta(&object, "namespace"), meta(&object, "name"));
    let stored = encode(&from.collection, &object).preview(key, None);
    let mut object = convert::value(to, &stored);
    let metadata = member_mut(&mut object, "metadata");
    match revision {
        Value::Null => drop(metadata.remove("resourceVersion")),
        revision => drop(metadata.insert("resourceVersion".into(), revision)),
    }
    Ok(object)
}

/// What a watch tells of, in its version: objects by uid and revision.
#[derive(Default)]
pub struct Told(HashMap<(Box<str>, u64), Arc<Object>>);

impl Told {
    pub fn get<'a>(&'a self, object: &'a Object) -> &'a Object {
        self.0.get(&(object.uid.clone(), object.revision)).map_or(object, |converted| converted)
    }
}

/// Converts what a batch of changes tells of.
pub async fn changes(call: &Call, batch: &[Arc<Change>]) -> Result<Told, ApiError> {
    if conversion(&call.resource).is_none() {
        return Ok(Told::default());
    }
    let namespace = call.namespace();
    let seen = batch.iter().filter(|change| namespace.is_empty() || *namespace == *change.object.key.namespace);
    let objects = seen.map(|change| change.object.clone()).filter(|o| o.version != call.resource.version).collect();
    let converted = read_all(&call.core, &call.resource, objects).await?;
    Ok(Told(converted.into_iter().map(|object| ((object.uid.clone(), object.revision), object)).collect()))
}

/// What is wrong with `spec.conversion` (`ValidateCustomResourceConversion`).
pub fn errors(spec: &Value) -> Vec<FieldError> {
    const AT: &str = "spec.conversion";
    let conversion = &spec["conversion"];
    let webhook = &conversion["webhook"];
    let at = |field: &str| format!("{AT}.{field}");
    match conversion["strategy"].as_str().unwrap_or("None") {
        "None" if webhook.is_object() => {
            let why = "should not be set when strategy is not set to Webhook";
            return vec![FieldError::forbidden(&at("webhook"), why)];
        }
        "None" => return Vec::new(),
        "Webhook" => {}
        other => {
            return vec![FieldError::not_supported(&at("strategy"), &other.into(), &["None", "Webhook"])];
        }
    }
    let mut errors = Vec::new();
    let config = &webhook["clientConfig"];
    match (config.is_object(), config["url"].is_string() == config["service"].is_object()) {
        (false, _) => {
            let why = "required when strategy is set to Webhook";
            errors.push(FieldError::required(&at("webhook.clientConfig"), why));
        }
        (true, true) => {
            let why = "exactly one of url or service is required";
            errors.push(FieldError::required(&at("webhook.clientConfig"), why));
        }
        (true, false) => {}
    }
    errors.extend(crate::admission::client_errors(config, &at("webhook.clientConfig")));
    let versions = webhook["conversionReviewVersions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if versions.is_empty() {
        let why = "must specify one or more of v1, v1beta1";
        errors.push(FieldError::required(&at("webhook.conversionReviewVersions"), why));
    } else if !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
        let why = "must include at least one of v1, v1beta1";
        let shown = &webhook["conversionReviewVersions"];
        errors.push(FieldError::invalid(&at("webhook.conversionReviewVersions"), shown, why));
    }
    errors
}
