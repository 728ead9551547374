//! One stored object: its JSON and the few fields that selectors ask for. No tree of the object is kept.

use bytes::Bytes;
use serde_json::Value;

/// Namespace (empty for cluster-scoped objects) and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: Box<str>,
    pub name: Box<str>,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

pub struct Object {
    pub key: Key,
    pub revision: u64,
    /// Seconds since the epoch at which this revision was written.
    pub written: i64,
    pub json: Bytes,
    /// The version in `apiVersion`, without the group.
    pub version: Box<str>,
    pub uid: Box<str>,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of [`selectable_fields`], in that order.
    pub fields: Box<[Box<str>]>,
}

impl Object {
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.binary_search_by(|(k, _)| k.as_ref().cmp(name)).ok().map(|n| self.labels[n].1.as_ref())
    }

    /// The same content at another revision.
    pub fn at(&self, revision: u64) -> Self {
        let mut value = self.value();
        value["metadata"]["resourceVersion"] = revision.to_string().into();
        Self {
            key: self.key.clone(),
            revision,
            written: self.written,
            json: value.to_string().into(),
            version: self.version.clone(),
            uid: self.uid.clone(),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
        }
    }

    /// The parsed object. Stored JSON was written by [`encode`], so it parses.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or_else(|error| {
            tracing::error!(name = %self.key.name, %error, "a stored object does not parse");
            Value::Null
        })
    }
}

/// An object ready to be written: everything but its revision.
pub struct Encoded {
    before: Vec<u8>,
    after: Vec<u8>,
    index: Index,
}

impl Encoded {
    /// Bytes of the object as etcd would count them. It holds built-in kinds in protobuf, where text needs no escapes; so
    /// escapes do not count.
    pub(super) fn weight(&self) -> usize {
        let length = self.before.len() + self.after.len();
        if length <= super::OBJECT_LIMIT {
            return length;
        }
        let escapes = [&self.before, &self.after].into_iter().flatten().filter(|b| **b == b'\\').count();
        length - escapes
    }

    pub(super) fn finish(self, key: Key, revision: u64, written: i64) -> Object {
        let mut json = self.before;
        json.reserve_exact(20 + self.after.len());
        json.extend_from_slice(revision.to_string().as_bytes());
        json.extend_from_slice(&self.after);
        json.shrink_to_fit();
        let Index { version, uid, labels, fields } = self.index;
        Object { key, revision, written, json: json.into(), version, uid, labels, fields }
    }

    /// The object as it would be, for answers to dry runs: at the revision it has now, or none.
    pub fn preview(self, key: Key, revision: Option<u64>) -> Object {
        match revision {
            Some(revision) => self.finish(key, revision, 0),
            None => {
                let json = [&self.before[..], &self.after[..]].concat().into();
                let Index { version, uid, labels, fields } = self.index;
                Object { key, revision: 0, written: 0, json, version, uid, labels, fields }
            }
        }
    }
}

struct Index {
    version: Box<str>,
    uid: Box<str>,
    labels: Box<[(Box<str>, Box<str>)]>,
    fields: Box<[Box<str>]>,
}

/// Serialises once, leaving room for the revision in `metadata.resourceVersion`.
pub fn encode(collection: &str, object: &Value) -> Encoded {
    let mut before = Vec::with_capacity(1024);
    let mut revision_at = None;
    before.push(b'{');
    for (n, (key, value)) in object.as_object().into_iter().flatten().enumerate() {
        write_key(&mut before, n == 0, key);
        if key == "metadata" {
            revision_at = Some(write_metadata(&mut before, value));
        } else {
            write_value(&mut before, value);
        }
    }
    before.push(b'}');
    let after = before.split_off(revision_at.unwrap_or(before.len()));
    Encoded { before, after, index: index(collection, object) }
}

/// Returns the place between the quotes of an empty resourceVersion.
fn write_metadata(out: &mut Vec<u8>, metadata: &Value) -> usize {
    let mut first = true;
    out.push(b'{');
    for (key, value) in metadata.as_object().into_iter().flatten().filter(|(key, _)| *key != "resourceVersion") {
        write_key(out, std::mem::take(&mut first), key);
        write_value(out, value);
    }
    write_key(out, first, "resourceVersion");
    out.push(b'"');
    let at = out.len();
    out.extend_from_slice(b"\"}");
    at
}

fn write_key(out: &mut Vec<u8>, first: bool, key: &str) {
    if !first {
        out.push(b',');
    }
    if serde_json::to_writer(&mut *out, key).is_ok() {
        out.push(b':');
    }
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    // Writing to memory cannot fail, and a Value has only string keys.
    if serde_json::to_writer(&mut *out, value).is_err() {
        out.extend_from_slice(b"null");
    }
}

fn index(collection: &str, object: &Value) -> Index {
    let metadata = &object["metadata"];
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let mut labels: Vec<(Box<str>, Box<str>)> = metadata["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.as_str().into(), v.as_str()?.into())))
        .collect();
    labels.sort();
    Index {
        version: api_version.rsplit('/').next().unwrap_or_default().into(),
        uid: metadata["uid"].as_str().unwrap_or_default().into(),
        labels: labels.into(),
        fields: selectable_fields(collection).iter().map(|path| field(object, path).into()).collect(),
    }
}

/// Rebuilds an object from its row.
pub(super) fn restore(collection: &str, key: Key, revision: u64, written: i64, json: Vec<u8>) -> Object {
    let value: Value = serde_json::from_slice(&json).unwrap_or_else(|error| {
        tracing::error!(collection, name = %key.name, %error, "a stored object does not parse");
        Value::Null
    });
    let Index { version, uid, labels, fields } = index(collection, &value);
    Object { key, revision, written, json: json.into(), version, uid, labels, fields }
}

/// A Service's second address: counted among those that are taken, and no field that a selector may name.
pub const SECOND_CLUSTER_IP: &str = "spec.clusterIPs.1";

fn member<'a>(value: &'a Value, step: &str) -> &'a Value {
    match value {
        Value::Array(list) => step.parse::<usize>().ok().and_then(|at| list.get(at)).unwrap_or(&Value::Null),
        value => &value[step],
    }
}

/// A field as selectors compare it: absent is empty, scalars are their text.
pub fn field(object: &Value, path: &str) -> String {
    match path.split('.').fold(object, member) {
        Value::String(s) => s.clone(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        _ if path == "spec.unschedulable" || path == "spec.hostNetwork" => "false".into(),
        _ if path == "status.successful" || path == "status.succeeded" => "0".into(),
        _ => String::new(),
    }
}

/// The fields besides `metadata.name` and `metadata.namespace` that field selectors may name, per collection
/// (the conversion functions in Kubernetes' `pkg/apis/*/v1/conversion.go`).
pub fn selectable_fields(collection: &str) -> &'static [&'static str] {
    match collection {
        "pods" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        "events" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        "secrets" => &["type"],
        "nodes" => &["spec.unschedulable"],
        "namespaces" => &["status.phase"],
        "services" => &["spec.clusterIP", SECOND_CLUSTER_IP, "spec.type"],
        "replicationcontrollers" | "replicasets.apps" => &["status.replicas"],
        "jobs.batch" => &["status.successful"],
        "certificatesigningrequests.certificates.k8s.io" => &["spec.signerName"],
        _ => &[],
    }
}
