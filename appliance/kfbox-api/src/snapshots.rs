//! `VolumeSnapshot`, `VolumeSnapshotContent` and `VolumeSnapshotClass` of `snapshot.storage.k8s.io/v1`, with the fields and
//! rules of `client/config/crd` of <https://github.com/kubernetes-csi/external-snapshotter> (version 8).

use k8s_openapi::{
    api::core::v1::ObjectReference,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};
use kube::{
    api::ObjectMeta,
    core::{ClusterResourceScope, NamespaceResourceScope},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{borrow::Cow, collections::BTreeMap};

pub const GROUP: &str = "snapshot.storage.k8s.io";

pub mod annotation {
    /// On a class: snapshots that name none get this one.
    pub const DEFAULT_CLASS: &str = "snapshot.storage.kubernetes.io/is-default-class";
}

pub mod finalizer {
    /// On a snapshot: a claim may be in the making from it.
    pub const AS_SOURCE: &str = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection";
    /// On a snapshot: it has a content.
    pub const BOUND: &str = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection";
    /// On a content: a snapshot has it, or its data is there.
    pub const CONTENT: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
    /// On a claim: a snapshot is taken of it.
    pub const CLAIM: &str = "snapshot.storage.kubernetes.io/pvc-as-source-protection";
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSnapshotSpec {
    pub source: SnapshotSource,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_class_name: Option<String>,
}

/// One of the two.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotSource {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_content_name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSnapshotStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound_volume_snapshot_content_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<SnapshotError>,
}

/// The last one seen.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotError {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSnapshotContentSpec {
    pub volume_snapshot_ref: ObjectReference,
    /// `Delete` or `Retain`.
    pub deletion_policy: String,
    pub driver: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_class_name: Option<String>,
    pub source: ContentSource,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_volume_mode: Option<String>,
}

/// One of the two.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContentSource {
    /// Of what a snapshot is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_handle: Option<String>,
    /// A snapshot that exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_handle: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSnapshotContentStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_handle: Option<String>,
    /// Nanoseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<i64>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<SnapshotError>,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $plural:literal $scope:ty { $($(#[$attr:meta])* $field:ident: $type:ty,)* })*) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            #[serde(default)]
            pub api_version: String,
            #[serde(default)]
            pub kind: String,
            #[serde(default)]
            pub metadata: ObjectMeta,
            $($(#[$attr])* pub $field: $type,)*
        }

        impl $name {
            pub fn new(metadata: ObjectMeta) -> Self {
                Self {
                    api_version: format!("{GROUP}/v1"),
                    kind: stringify!($name).into(),
                    metadata,
                    ..Self::default()
                }
            }
        }

        impl kube::Resource for $name {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> Cow<'_, str> {
                stringify!($name).into()
            }

            fn group((): &()) -> Cow<'_, str> {
                GROUP.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    )* };
}

kinds! {
    /// A person's wish for a copy of a claim's volume as it is at one time.
    VolumeSnapshot "volumesnapshots" NamespaceResourceScope {
        #[serde(default)]
        spec: VolumeSnapshotSpec,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<VolumeSnapshotStatus>,
    }
    /// The copy.
    VolumeSnapshotContent "volumesnapshotcontents" ClusterResourceScope {
        #[serde(default)]
        spec: VolumeSnapshotContentSpec,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<VolumeSnapshotContentStatus>,
    }
    /// Who takes snapshots, and what becomes of them.
    VolumeSnapshotClass "volumesnapshotclasses" ClusterResourceScope {
        #[serde(default)]
        driver: String,
        /// `Delete` or `Retain`.
        #[serde(default)]
        deletion_policy: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parameters: Option<BTreeMap<String, String>>,
    }
}

const QUANTITY: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// The three definitions.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let text = || json!({"type": "string"});
    let fixed = |name: &str| json!({"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": format!("{name} is immutable")}]});
    let stays = |name: &str| json!({"rule": format!("!has(oldSelf.{name}) || has(self.{name})"), "message": format!("{name} is required once set")});
    let time = json!({"type": "string", "format": "date-time"});
    let error = json!({"type": "object", "properties": {"message": text(), "time": time}});
    let policy = json!({"type": "string", "enum": ["Delete", "Retain"]});
    let snapshot = json!({
        "description": "A wish for a copy of a claim's volume as it is at one time, or for one that exists",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object",
                "required": ["source"],
                "properties": {
                    "source": {
                        "type": "object",
                        "properties": {
                            "persistentVolumeClaimName": fixed("persistentVolumeClaimName"),
                            "volumeSnapshotContentName": fixed("volumeSnapshotContentName"),
                        },
                        "oneOf": [
                            {"required": ["persistentVolumeClaimName"]},
                            {"required": ["volumeSnapshotContentName"]},
                        ],
                        "x-kubernetes-validations": [stays("persistentVolumeClaimName"), stays("volumeSnapshotContentName")],
                    },
                    "volumeSnapshotClassName": {
                        "type": "string",
                        "x-kubernetes-validations": [{
                            "rule": "size(self) > 0",
                            "message": "volumeSnapshotClassName must not be the empty string when set",
                        }],
                    },
                },
            },
            "status": {
                "type": "object",
                "properties": {
                    "boundVolumeSnapshotContentName": text(),
                    "creationTime": time,
                    "error": error,
                    "readyToUse": {"type": "boolean"},
                    "restoreSize": {
                        "anyOf": [{"type": "integer"}, {"type": "string"}],
                        "pattern": QUANTITY,
                        "x-kubernetes-int-or-string": true,
                    },
                    "volumeGroupSnapshotName": text(),
                },
            },
        },
    });
    let content = json!({
        "description": "A snapshot on the disk",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object",
                "required": ["deletionPolicy", "driver", "source", "volumeSnapshotRef"],
                "properties": {
                    "deletionPolicy": policy,
                    "driver": text(),
                    "source": {
                        "type": "object",
                        "properties": {"snapshotHandle": fixed("snapshotHandle"), "volumeHandle": fixed("volumeHandle")},
                        "oneOf": [{"required": ["snapshotHandle"]}, {"required": ["volumeHandle"]}],
                        "x-kubernetes-validations": [stays("volumeHandle"), stays("snapshotHandle")],
                    },
                    "sourceVolumeMode": fixed("sourceVolumeMode"),
                    "volumeSnapshotClassName": text(),
                    "volumeSnapshotRef": {
                        "type": "object",
                        "properties": {
                            "apiVersion": text(), "fieldPath": text(), "kind": text(), "name": text(), "namespace": text(),
                            "resourceVersion": text(), "uid": text(),
                        },
                        "x-kubernetes-map-type": "atomic",
                        "x-kubernetes-validations": [{
                            "rule": "has(self.name) && has(self.__namespace__)",
                            "message": "both spec.volumeSnapshotRef.name and spec.volumeSnapshotRef.namespace must be set",
                        }],
                    },
                },
                "x-kubernetes-validations": [stays("sourceVolumeMode")],
            },
            "status": {
                "type": "object",
                "properties": {
                    "creationTime": {"type": "integer", "format": "int64"},
                    "error": error,
                    "readyToUse": {"type": "boolean"},
                    "restoreSize": {"type": "integer", "format": "int64", "minimum": 0},
                    "snapshotHandle": text(),
                    "volumeGroupSnapshotHandle": text(),
                },
            },
        },
    });
    let class = json!({
        "description": "Who takes snapshots, and what becomes of them",
        "type": "object",
        "required": ["deletionPolicy", "driver"],
        "properties": {
            "deletionPolicy": policy,
            "driver": text(),
            "parameters": {"type": "object", "additionalProperties": text()},
        },
    });
    [
        definition(
            "VolumeSnapshot",
            "volumesnapshots",
            ("Namespaced", &["vs"]),
            &snapshot,
            &[
                ("ReadyToUse", "boolean", ".status.readyToUse"),
                ("SourcePVC", "string", ".spec.source.persistentVolumeClaimName"),
                ("SourceSnapshotContent", "string", ".spec.source.volumeSnapshotContentName"),
                ("RestoreSize", "string", ".status.restoreSize"),
                ("SnapshotClass", "string", ".spec.volumeSnapshotClassName"),
                ("SnapshotContent", "string", ".status.boundVolumeSnapshotContentName"),
                ("CreationTime", "date", ".status.creationTime"),
            ],
        ),
        definition(
            "VolumeSnapshotContent",
            "volumesnapshotcontents",
            ("Cluster", &["vsc", "vscs"]),
            &content,
            &[
                ("ReadyToUse", "boolean", ".status.readyToUse"),
                ("RestoreSize", "integer", ".status.restoreSize"),
                ("DeletionPolicy", "string", ".spec.deletionPolicy"),
                ("Driver", "string", ".spec.driver"),
                ("VolumeSnapshotClass", "string", ".spec.volumeSnapshotClassName"),
                ("VolumeSnapshot", "string", ".spec.volumeSnapshotRef.name"),
                ("VolumeSnapshotNamespace", "string", ".spec.volumeSnapshotRef.namespace"),
            ],
        ),
        definition(
            "VolumeSnapshotClass",
            "volumesnapshotclasses",
            ("Cluster", &["vsclass", "vsclasses"]),
            &class,
            &[("Driver", "string", ".driver"), ("DeletionPolicy", "string", ".deletionPolicy")],
        ),
    ]
    .to_vec()
}

fn definition(
    kind: &str,
    plural: &str,
    (scope, short): (&str, &[&str]),
    schema: &Value,
    columns: &[(&str, &str, &str)],
) -> CustomResourceDefinition {
    let age = ("Age", "date", ".metadata.creationTimestamp");
    let columns: Value = columns
        .iter()
        .chain([&age])
        .map(|(name, kind, path)| json!({"name": name, "type": kind, "jsonPath": path}))
        .collect();
    let subresources = if kind == "VolumeSnapshotClass" { json!({}) } else { json!({"status": {}}) };
    let approved = "https://github.com/kubernetes-csi/external-snapshotter/pull/814";
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{GROUP}"),
            "annotations": {"api-approved.kubernetes.io": approved},
            "labels": {crate::names::label::MANAGED_BY: crate::names::FIELD_MANAGER},
        },
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {
                "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase(),
                "shortNames": short,
            },
            "versions": [{
                "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                "subresources": subresources, "additionalPrinterColumns": columns,
            }],
        },
    });
    serde_json::from_value(definition).unwrap_or_else(|e| unreachable!("a definition of our own: {e}"))
}
