//! CustomResourceDefinitions: accepting names, what is served, and the end of a definition with all its objects
//! (`apiextensions-apiserver`). The work of upstream's naming, establishing and finalizing controllers is done in the
//! write itself, so that a definition is served when its creation is answered.

use crate::{
    effects::CRDS,
    handle::own_call,
    object::{self, member_mut, meta, set_meta},
    resources::{
        Custom, LazySchema, Registry, Resource, ScalePaths, Subresource, Verbs,
        crd::{short_names, text},
    },
    schema::{self, FieldError},
    server::Core,
    status::ApiError,
    store::{Key, Object},
    verbs::{self, Call, Deleted, Modification},
};
use serde_json::{Value, json};
use std::{collections::HashSet, sync::Arc};

const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

pub fn on_create(call: &Call, crd: &mut Value) -> Result<(), ApiError> {
    default_names(crd);
    check(crd, None)?;
    let mut finalizers = object::finalizers(crd);
    if !finalizers.iter().any(|f| f == CLEANUP) {
        finalizers.push(CLEANUP.into());
    }
    set_meta(crd, "finalizers", finalizers.into_iter().map(Value::from).collect::<Vec<_>>());
    crd["status"] = json!({"storedVersions": [storage_version(crd)]});
    establish(call, crd);
    Ok(())
}

pub fn on_update(call: &Call, old: &Value, new: &mut Value) -> Result<(), ApiError> {
    default_names(new);
    if old["spec"] == new["spec"] {
        return Ok(());
    }
    for field in ["group", "scope"] {
        if old["spec"][field] != new["spec"][field] {
            let error = FieldError::invalid(&format!("spec.{field}"), &new["spec"][field], "field is immutable");
            return Err(refused(new, &[error]));
        }
    }
    check(new, Some(old))?;
    let version = storage_version(new);
    let stored = member_mut(new, "status").entry("storedVersions").or_insert_with(|| json!([]));
    if let Some(stored) = stored.as_array_mut()
        && !stored.iter().any(|v| *v == version)
    {
        stored.push(version.into());
    }
    establish(call, new);
    Ok(())
}

fn default_names(crd: &mut Value) {
    let kind = text(&crd["spec"]["names"]["kind"]);
    let names = member_mut(&mut crd["spec"], "names");
    names.entry("singular").or_insert_with(|| kind.to_lowercase().into());
    names.entry("listKind").or_insert_with(|| format!("{kind}List").into());
    let conversion = member_mut(&mut crd["spec"], "conversion");
    conversion.entry("strategy").or_insert_with(|| "None".into());
}

fn refused(crd: &Value, errors: &[FieldError]) -> ApiError {
    ApiError::invalid("apiextensions.k8s.io", "CustomResourceDefinition", meta(crd, "name"), errors)
}

fn check(crd: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let spec = &crd["spec"];
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    let mut errors = Vec::new();
    if meta(crd, "name") != format!("{plural}.{group}") {
        let why = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", &json!(meta(crd, "name")), why));
    }
    if !matches!(&*text(&spec["scope"]), "Namespaced" | "Cluster") {
        errors.push(FieldError::not_supported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"]));
    }
    if !group.contains('.') {
        let why = "should be a domain with at least one dot";
        errors.push(FieldError::invalid("spec.group", &spec["group"], why));
    }
    if crate::resources::is_builtin_group(&group) {
        errors.push(FieldError::invalid("spec.group", &spec["group"], "is a group of Kubernetes itself"));
    }
    let versions = spec["versions"].as_array().cloned().unwrap_or_default();
    if versions.iter().filter(|v| v["storage"] == true).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", &json!(versions.len()), why));
    }
    let mut names = HashSet::new();
    for (n, version) in versions.iter().enumerate() {
        let name = text(&version["name"]);
        if !names.insert(name.clone()) {
            errors.push(FieldError::duplicate(&format!("spec.versions[{n}].name"), &version["name"]));
        }
        if version["schema"]["openAPIV3Schema"].is_null() {
            errors.push(FieldError::required(
                &format!("spec.versions[{n}].schema.openAPIV3Schema"),
                "schemas are required",
            ));
        }
    }
    errors.extend(crate::conversion::errors(spec));
    if errors.is_empty()
        && let Err(found) = schema::from_crd_update(crd, old)
    {
        errors = found;
    }
    if errors.is_empty() { Ok(()) } else { Err(refused(crd, &errors)) }
}

fn storage_version(crd: &Value) -> String {
    let versions = crd["spec"]["versions"].as_array();
    versions.into_iter().flatten().find(|v| v["storage"] == true).map(|v| text(&v["name"])).unwrap_or_default()
}

/// Accepts the names unless another definition of the group has them, and sets the conditions.
fn establish(call: &Call, crd: &mut Value) {
    let conflict = name_conflict(&call.registry, crd);
    let names = crd["spec"]["names"].clone();
    let status = member_mut(crd, "status");
    match &conflict {
        None => {
            status.insert("acceptedNames".into(), names);
        }
        Some(_) => {
            status.entry("acceptedNames").or_insert_with(|| json!({"plural": "", "kind": ""}));
        }
    }
    match conflict {
        None => {
            set_condition(crd, "NamesAccepted", "True", "NoConflicts", "no conflicts found");
            set_condition(crd, "Established", "True", "InitialNamesAccepted", "the initial names have been accepted");
        }
        Some((reason, message)) => {
            set_condition(crd, "NamesAccepted", "False", reason, &message);
            if !condition(crd, "Established") {
                set_condition(crd, "Established", "False", "NotAccepted", "not all names are accepted");
            }
        }
    }
}

fn name_conflict(registry: &Registry, crd: &Value) -> Option<(&'static str, String)> {
    let spec = &crd["spec"];
    let (group, plural, kind) = (text(&spec["group"]), text(&spec["names"]["plural"]), text(&spec["names"]["kind"]));
    let (singular, list_kind) = (text(&spec["names"]["singular"]), text(&spec["names"]["listKind"]));
    let others: Vec<&Arc<Resource>> = registry
        .group(&group)
        .into_iter()
        .flat_map(|g| &g.versions)
        .flat_map(|v| &v.resources)
        .filter(|r| *r.plural != *plural)
        .collect();
    let used = |name: &str| {
        others.iter().any(|r| *r.plural == *name || *r.singular == *name || r.short_names.iter().any(|s| s == name))
    };
    if used(&plural) {
        return Some(("PluralConflict", format!("{plural:?} is already in use")));
    }
    if used(&singular) {
        return Some(("SingularConflict", format!("{singular:?} is already in use")));
    }
    if let Some(short) = short_names(&spec["names"]["shortNames"]).into_iter().find(|s| used(s)) {
        return Some(("ShortNamesConflict", format!("{short:?} is already in use")));
    }
    let kinds = |name: &str| others.iter().any(|r| *r.kind == *name || *r.list_kind == *name);
    if kinds(&kind) {
        return Some(("KindConflict", format!("{kind:?} is already in use")));
    }
    if kinds(&list_kind) {
        return Some(("ListKindConflict", format!("{list_kind:?} is already in use")));
    }
    None
}

fn condition(crd: &Value, kind: &str) -> bool {
    let conditions = crd["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
}

fn set_condition(crd: &mut Value, kind: &str, status: &str, reason: &str, message: &str) {
    let list = member_mut(crd, "status").entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else { return };
    let mut new = json!({
        "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": object::now(),
    });
    match list.iter_mut().find(|c| c["type"] == kind) {
        Some(old) => {
            if old["status"] == status {
                new["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            *old = new;
        }
        None => list.push(new),
    }
}

/// The resources that a definition adds to the API.
pub fn served(stored: &Object) -> Vec<Arc<Resource>> {
    let crd = &stored.value();
    if !condition(crd, "Established") {
        return Vec::new();
    }
    let spec = &crd["spec"];
    let names = &crd["status"]["acceptedNames"];
    let storage_version = storage_version(crd);
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let conversion = crate::conversion::Conversion::of(crd);
    versions
        .iter()
        .filter(|v| v["served"] != false)
        .map(|version| {
            let name = text(&version["name"]);
            let subresources = &version["subresources"];
            let scale = &subresources["scale"];
            let custom = Custom {
                schema: LazySchema::new(stored.json.clone(), &name),
                columns: version["additionalPrinterColumns"].clone(),
                status: !subresources["status"].is_null(),
                terminating: object::is_deleting(crd),
                scale: (!scale.is_null()).then(|| ScalePaths {
                    spec: text(&scale["specReplicasPath"]),
                    status: text(&scale["statusReplicasPath"]),
                    selector: scale["labelSelectorPath"].as_str().map(str::to_owned),
                }),
                selectable_fields: version["selectableFields"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|f| text(&f["jsonPath"]))
                    .collect(),
                deprecation: (version["deprecated"] == true).then(|| {
                    version["deprecationWarning"].as_str().map(str::to_owned).unwrap_or_else(|| {
                        format!("{}/{name} {} is deprecated", text(&spec["group"]), text(&names["kind"]))
                    })
                }),
                conversion: conversion.clone(),
            };
            const READ_WRITE: &[&str] = &["get", "patch", "update"];
            let kind: Box<str> = text(&names["kind"]).into();
            let mut parts = Vec::new();
            if custom.status {
                parts.push(Subresource { name: "status".into(), verbs: READ_WRITE, object: ("", "", kind.clone()) });
            }
            if custom.scale.is_some() {
                let object = ("autoscaling", "v1", "Scale".into());
                parts.push(Subresource { name: "scale".into(), verbs: READ_WRITE, object });
            }
            Arc::new(Resource {
                group: text(&spec["group"]).into(),
                version: name.into(),
                kind,
                list_kind: text(&names["listKind"]).into(),
                plural: text(&names["plural"]).into(),
                singular: text(&names["singular"]).into(),
                short_names: short_names(&names["shortNames"]),
                categories: short_names(&names["categories"]),
                namespaced: text(&spec["scope"]) == "Namespaced",
                verbs: Verbs::All,
                subresources: parts,
                collection: crate::status::group_resource(&text(&spec["group"]), &text(&names["plural"])).into(),
                storage_version: storage_version.clone().into(),
                generation: true,
                custom: Some(custom),
            })
        })
        .collect()
}

/// Goes on with deletions that the last stop interrupted.
pub fn resume(core: &Arc<Core>) {
    let Ok(crds) = core.store.list(CRDS, None, None, None) else { return };
    for crd in crds.objects.iter().filter(|o| object::is_deleting(&o.value())) {
        clean_up(core, &crd.key.name);
    }
}

/// Deletes every object of a definition that is being deleted, waits until their finalizers are done, and lets the
/// definition go.
pub fn clean_up(core: &Arc<Core>, name: &str) {
    let (core, name) = (core.clone(), name.to_owned());
    let tasks = core.tasks.clone();
    tasks.spawn(format!("crd-cleanup {name}"), async move {
        let shutdown = core.shutdown.clone();
        tokio::select! {
            result = delete_objects(&core, &name) => {
                if let Err(error) = result {
                    tracing::warn!(crd = name, %error, "a definition that is being deleted stays");
                }
            }
            () = shutdown.cancelled() => {}
        }
    });
}

async fn delete_objects(core: &Arc<Core>, name: &str) -> Result<(), ApiError> {
    let registry = core.resources.current();
    let key = Key::new("", name);
    let Some(crd) = core.store.get(CRDS, &key) else { return Ok(()) };
    if !object::finalizers(&crd.value()).iter().any(|f| f == CLEANUP) {
        return Ok(());
    }
    let spec = &crd.value()["spec"];
    if let Some(resource) = registry.preferred(&text(&spec["group"]), &text(&spec["names"]["plural"])) {
        let call = own_call(core, resource.clone(), "", "");
        let (snapshot, mut watcher) = core.store.list_and_watch(&resource.collection, None);
        for object in snapshot.objects {
            match verbs::delete_object(&call, &object.key, &verbs::DeleteOptions::default(), false).await {
                Ok(Deleted::Gone(_) | Deleted::Marked(_)) => {}
                Err(error) if error.reason() == "NotFound" => {}
                Err(error) => return Err(error),
            }
        }
        while core.store.count(&resource.collection) > 0 {
            if watcher.next().await.is_err() {
                watcher = core.store.list_and_watch(&resource.collection, None).1;
            }
        }
    }
    let Some(resource) = registry.find("apiextensions.k8s.io", "v1", "customresourcedefinitions").cloned() else {
        return Ok(());
    };
    let call = own_call(core, resource, "", name);
    let how = Modification { subresource: "", track: false, replace: false };
    let modified = verbs::modify(&call, &how, |crd| {
        let mut crd = crd.clone();
        let left: Vec<Value> = object::finalizers(&crd).into_iter().filter(|f| f != CLEANUP).map(Value::from).collect();
        set_meta(&mut crd, "finalizers", left);
        Ok(crd)
    });
    match modified.await {
        Err(error) if error.reason() != "NotFound" => Err(error),
        _ => Ok(()),
    }
}

/// Objects of a definition that goes away are no longer taken.
pub fn check_serving(call: &Call) -> Result<(), ApiError> {
    if call.resource.custom.as_ref().is_some_and(|c| c.terminating) {
        let why = "create not allowed while custom resource definition is terminating";
        return Err(ApiError::new(http::StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", why));
    }
    Ok(())
}
