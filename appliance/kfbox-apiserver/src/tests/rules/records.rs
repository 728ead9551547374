//! Events, and what storage drivers say of themselves.

use super::*;

#[test]
fn events_lie_with_their_objects_and_new_ones_say_who_and_what() {
    let event = |more: Value| {
        let mut event = json!({"metadata": {"name": "e", "namespace": "n"}});
        for (name, value) in more.as_object().unwrap() {
            event[name] = value.clone();
        }
        event
    };
    says("v1", "Event", event(json!({"involvedObject": {"namespace": "n"}})), &[]);
    says(
        "v1",
        "Event",
        event(json!({"involvedObject": {"namespace": "other"}})),
        &["involvedObject.namespace: Invalid value: \"other\": does not match event.namespace"],
    );
    says(
        "v1",
        "Event",
        event(json!({"involvedObject": {"kind": "Node"}})),
        &["involvedObject.namespace: Invalid value: \"\": does not match event.namespace"],
    );
    says(
        "events.k8s.io/v1",
        "Event",
        event(json!({"regarding": {"namespace": "n"}, "type": "Odd", "deprecatedCount": 2, "series": {"count": 1}})),
        &[
            "series.count: Invalid value: \"\": should be at least 2",
            "series.lastObservedTime: Required value",
            "eventTime: Required value",
            "type: Invalid value: \"\": has invalid value: Odd",
            "count: Invalid value: \"\": needs to be unset",
        ],
    );
    let whole = event(json!({"regarding": {"namespace": "n"}, "eventTime": "2026-01-02T03:04:05.000006Z",
        "type": "Normal", "reportingController": "example.com/c", "reportingInstance": "c-1", "action": "Look",
        "reason": "Seen", "note": "a"}));
    says("events.k8s.io/v1", "Event", whole.clone(), &[]);
    let mut silent = whole.clone();
    silent["reportingController"] = "".into();
    silent["note"] = "n".repeat(1025).into();
    let errors = errors_of("events.k8s.io/v1", "Event", silent, None);
    assert_eq!(errors[0], "reportingController: Required value");
    assert_eq!(errors.last().unwrap(), "message: Invalid value: \"\": can have at most 1024 characters");
    let e = "events.k8s.io/v1";
    let seen = json!({"count": 2, "lastObservedTime": "2026-01-02T03:05:05.000006Z"});
    change(e, "Event", &whole, |event| event["series"] = seen, &[]);
    let wanted = ["message: Invalid value: \"b\": field is immutable"];
    change(e, "Event", &whole, |event| event["note"] = "b".into(), &wanted);
}

#[test]
fn storage_drivers() {
    let v1 = "storage.k8s.io/v1";
    let driver = json!({"metadata": {"name": "x"}, "spec": {}});
    says(v1, "CSIDriver", driver.clone(), &[]);
    says(
        v1,
        "CSIDriver",
        json!({"spec": {"fsGroupPolicy": "Some", "volumeLifecycleModes": ["Brief"],
            "tokenRequests": [{"audience": "a", "expirationSeconds": 599}, {"audience": "a"}]}}),
        &[
            "spec.fsGroupPolicy: Unsupported value: \"Some\": supported values: \"File\", \"None\", \"ReadWriteOnceWithFSType\"",
            "spec.volumeLifecycleModes: Unsupported value: \"Brief\": supported values: \"Ephemeral\", \"Persistent\"",
            "spec.tokenRequests[0].expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes",
            "spec.tokenRequests[1].audience: Duplicate value: \"a\"",
        ],
    );
    let wanted = ["spec.attachRequired: Invalid value: false: field is immutable"];
    change(v1, "CSIDriver", &driver, |driver| driver["spec"]["attachRequired"] = false.into(), &wanted);
    says(
        v1,
        "CSINode",
        json!({"spec": {"drivers": [{"name": "d", "nodeID": "n", "allocatable": {"count": -1}}, {"name": "d", "nodeID": "",
            "topologyKeys": ["a", "a"]}]}}),
        &[
            "spec.drivers[0].allocatable.count: Invalid value: -1: must be greater than or equal to 0",
            "spec.drivers[1].name: Duplicate value: \"d\"",
            "spec.drivers[1].nodeID: Required value",
            "spec.drivers[1].topologyKeys: Duplicate value: \"a\"",
        ],
    );
    let attachment = json!({"metadata": {"name": "x"}, "spec": {"attacher": "d.example.com", "nodeName": "n",
        "source": {"persistentVolumeName": "v"}}});
    says(v1, "VolumeAttachment", attachment.clone(), &[]);
    says(
        v1,
        "VolumeAttachment",
        json!({"spec": {"attacher": "D!", "nodeName": "n", "source": {}}}),
        &[
            "spec.attacher: Invalid value: \"D!\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        ],
    );
    let mut moved = attachment.clone();
    moved["spec"]["nodeName"] = "m".into();
    assert_eq!(errors_of(v1, "VolumeAttachment", moved, Some(attachment)).len(), 1);
    says(
        v1,
        "CSIStorageCapacity",
        json!({"storageClassName": "fast", "capacity": "-1Gi"}),
        &["capacity: Invalid value: \"-1Gi\": must be greater than or equal to 0"],
    );
    let class = json!({"metadata": {"name": "x"}, "driverName": "d", "parameters": {"iops": "5"}});
    says(v1, "VolumeAttributesClass", class.clone(), &[]);
    let wanted = ["parameters: Forbidden: updates to parameters are forbidden."];
    change(v1, "VolumeAttributesClass", &class, |class| class["parameters"]["iops"] = "6".into(), &wanted);
    says(
        v1,
        "VolumeAttributesClass",
        json!({"driverName": "d"}),
        &["parameters: Required value: must contain at least one key/value pair"],
    );
}
