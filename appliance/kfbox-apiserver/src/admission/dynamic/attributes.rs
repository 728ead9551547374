//! A request as admission sees it: what is done to which object, by whom.

use crate::{
    conversion,
    object::{member_mut, meta},
    resources::Resource,
    status::ApiError,
    subresources,
    verbs::{self, Call, DeleteOptions},
};
use serde_json::{Map, Value, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// Null stands for no object.
pub struct Attributes<'a> {
    pub call: &'a Call,
    pub operation: Operation,
    pub subresource: String,
    pub name: String,
    pub namespace: String,
    pub object: Value,
    pub old: Value,
    pub options: Value,
    pub dry_run: bool,
}

/// Group, version and kind, or resource.
pub fn triple(group: &str, version: &str, what: &str, name: &str) -> Value {
    json!({"group": group, "version": version, what: name})
}

impl<'a> Attributes<'a> {
    /// Creates without, updates with an old object.
    pub fn of_write(call: &'a Call, subresource: &str, object: Value, old: Option<Value>) -> Self {
        let operation = if old.is_some() { Operation::Update } else { Operation::Create };
        let view = |object: Value| match subresource {
            // Clients of this subresource see a Scale, and so do those that judge it.
            "scale" => subresources::scale::of(call, &object),
            _ => object,
        };
        let (object, old) = (view(object), old.map_or(Value::Null, view));
        let name = meta(&object, "name").to_owned();
        Self::new(call, operation, subresource, name, object, old)
    }

    pub fn of_post(call: &'a Call, object: Value) -> Self {
        let name = match call.target.name.as_str() {
            "" => meta(&object, "name").to_owned(),
            name => name.to_owned(),
        };
        Self::new(call, Operation::Create, &call.target.subresource, name, object, Value::Null)
    }

    pub fn of_delete(call: &'a Call, old: Value, options: &DeleteOptions, dry_run: bool) -> Self {
        let name = meta(&old, "name").to_owned();
        let mut this = Self::new(call, Operation::Delete, "", name, Value::Null, old);
        let mut told = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if let Some(seconds) = options.grace_period_seconds {
            told["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(policy) = &options.propagation_policy {
            told["propagationPolicy"] = policy.clone().into();
        }
        if let Some(orphan) = options.orphan_dependents {
            told["orphanDependents"] = orphan.into();
        }
        if dry_run {
            told["dryRun"] = json!(["All"]);
        }
        if let Some(preconditions) = &options.preconditions {
            let mut asked = Map::new();
            asked.extend(preconditions.uid.clone().map(|uid| ("uid".to_owned(), uid.into())));
            asked.extend(preconditions.resource_version.clone().map(|rv| ("resourceVersion".to_owned(), rv.into())));
            told["preconditions"] = asked.into();
        }
        (this.options, this.dry_run) = (told, dry_run);
        this
    }

    pub fn of_connect(call: &'a Call) -> Self {
        let query = &call.query;
        let subresource = &*call.target.subresource;
        let kind = kind_of(&call.resource, subresource).2;
        let mut object = json!({"kind": kind, "apiVersion": "v1"});
        match subresource {
            "exec" | "attach" => {
                for flag in ["stdin", "stdout", "stderr", "tty"] {
                    if query.flag(flag) {
                        object[flag] = true.into();
                    }
                }
                if let Some(container) = query.get("container") {
                    object["container"] = container.into();
                }
                let command: Vec<&str> = query.all("command").collect();
                if subresource == "exec" && !command.is_empty() {
                    object["command"] = json!(command);
                }
            }
            "portforward" => {
                let ports: Vec<u16> =
                    query.all("ports").flat_map(|list| list.split(',')).filter_map(|p| p.parse().ok()).collect();
                if !ports.is_empty() {
                    object["ports"] = json!(ports);
                }
            }
            _ if !call.target.rest.is_empty() => object["path"] = format!("/{}", call.target.rest).into(),
            _ => {}
        }
        let mut this = Self::new(call, Operation::Connect, subresource, call.target.name.clone(), object, Value::Null);
        this.options = Value::Null;
        this
    }

    fn new(call: &'a Call, operation: Operation, subresource: &str, name: String, object: Value, old: Value) -> Self {
        // A namespace is in itself, as far as admission is concerned.
        let namespace = match &*call.resource.collection {
            "namespaces" => name.clone(),
            _ => call.namespace().to_owned(),
        };
        let mut options = json!({
            "kind": if operation == Operation::Create { "CreateOptions" } else { "UpdateOptions" },
            "apiVersion": "meta.k8s.io/v1",
        });
        for field in ["fieldManager", "fieldValidation"] {
            if let Some(value) = call.query.get(field) {
                options[field] = value.into();
            }
        }
        if call.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        let subresource = subresource.to_owned();
        Self { call, operation, subresource, name, namespace, object, old, options, dry_run: call.dry_run }
    }

    /// Gives back what mutations made of the object; true if anything changed.
    pub fn into_object(self, call: &Call, object: &mut Value) -> bool {
        if self.subresource == "scale" {
            return subresources::scale::put_into(call, object, &self.object);
        }
        if *object == self.object {
            return false;
        }
        *object = self.object;
        true
    }

    /// `request` as expressions and webhooks are told of it, but for the objects.
    pub fn request(&self, matched: &Resource) -> Map<String, Value> {
        let own = &*self.call.resource;
        let user = &self.call.user;
        let gvk = |resource: &Resource| {
            let (group, version, kind) = kind_of(resource, &self.subresource);
            triple(&group, &version, "kind", &kind)
        };
        let gvr = |resource: &Resource| triple(&resource.group, &resource.version, "resource", &resource.plural);
        let mut told = json!({
            "kind": gvk(matched), "resource": gvr(matched), "requestKind": gvk(own), "requestResource": gvr(own),
            "operation": self.operation.name(), "dryRun": self.dry_run, "options": self.options,
        });
        let mut info = json!({"username": user.username, "groups": user.groups});
        if !user.uid.is_empty() {
            info["uid"] = user.uid.clone().into();
        }
        if !user.extra.is_empty() {
            info["extra"] = json!(user.extra);
        }
        told["userInfo"] = info;
        for (field, value) in [
            ("name", &self.name),
            ("namespace", &self.namespace),
            ("subResource", &self.subresource),
            ("requestSubResource", &self.subresource),
        ] {
            if !value.is_empty() {
                told[field] = value.clone().into();
            }
        }
        match told {
            Value::Object(told) => told,
            _ => Map::new(),
        }
    }

    /// The objects in the version that a rule asked for.
    pub async fn versioned(&self, to: &Resource) -> Result<(Value, Value), ApiError> {
        Ok((self.in_version(&self.object, to).await?, self.in_version(&self.old, to).await?))
    }

    async fn in_version(&self, object: &Value, to: &Resource) -> Result<Value, ApiError> {
        let from = &*self.call.resource;
        if object.is_null() || self.is_foreign() || (from.group == to.group && from.version == to.version) {
            return Ok(object.clone());
        }
        conversion::between(&self.call.core, from, to, object.clone()).await
    }

    /// From the version that a rule asked for.
    pub async fn back(&self, object: Value, from: &Resource) -> Result<Value, ApiError> {
        let to = &*self.call.resource;
        if object.is_null() || self.is_foreign() || (from.group == to.group && from.version == to.version) {
            return Ok(object);
        }
        conversion::between(&self.call.core, from, to, object).await
    }

    /// The object is of another kind than the resource's.
    fn is_foreign(&self) -> bool {
        kind_of(&self.call.resource, &self.subresource).2 != *self.call.resource.kind
    }
}

/// Group, version and kind of what a resource's subresource takes.
pub fn kind_of(resource: &Resource, subresource: &str) -> (String, String, String) {
    let own = || (resource.group.to_string(), resource.version.to_string(), resource.kind.to_string());
    match resource.subresources.iter().find(|s| &*s.name == subresource) {
        Some(found) if !found.object.1.is_empty() => {
            (found.object.0.to_owned(), found.object.1.to_owned(), found.object.2.to_string())
        }
        Some(found) => (resource.group.to_string(), resource.version.to_string(), found.object.2.to_string()),
        None => own(),
    }
}

/// Mutations change what the request may change, and nothing that is the server's.
pub fn restore(call: &Call, subresource: &str, before: &Value, object: &mut Value) {
    if subresource == "status" {
        let (metadata, status) = (object["metadata"].clone(), object.get("status").cloned());
        *object = before.clone();
        // Of custom resources a status write changes the status alone.
        if call.resource.custom.is_none() {
            object["metadata"] = metadata;
        }
        match (status, object.as_object_mut()) {
            (Some(status), Some(members)) => drop(members.insert("status".into(), status)),
            (None, Some(members)) => drop(members.remove("status")),
            _ => {}
        }
    } else if call.resource.has_subresource("status")
        && let Some(members) = object.as_object_mut()
    {
        match before.get("status") {
            Some(status) => drop(members.insert("status".into(), status.clone())),
            None => drop(members.remove("status")),
        }
    }
    for field in ["apiVersion", "kind"] {
        object[field] = before[field].clone();
    }
    let metadata = member_mut(object, "metadata");
    for field in verbs::SERVER_OWNED.into_iter().chain(["managedFields"]) {
        match before["metadata"].get(field) {
            Some(value) => drop(metadata.insert(field.into(), value.clone())),
            None => drop(metadata.remove(field)),
        }
    }
}
