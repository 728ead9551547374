use serde_json::{Value, json};

use super::validate_write;
use crate::schema::default_builtin;

fn check(group: &str, version: &str, kind: &str, mut object: Value, old: Option<Value>) -> Vec<String> {
    default_builtin(group, version, kind, &mut object);
    let old = old.map(|mut old| {
        default_builtin(group, version, kind, &mut old);
        old
    });
    validate_write(group, version, kind, "", &object, old.as_ref()).iter().map(ToString::to_string).collect()
}

fn pod(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n"}, "spec": spec})
}

fn has(errors: &[String], wanted: &str) {
    assert!(errors.iter().any(|e| e == wanted), "{wanted:?} not in {errors:#?}");
}

const NONE: &[String] = &[];

#[test]
fn a_plain_pod_passes_and_defaults_are_stable() {
    let mut object = pod(json!({"containers": [{"name": "a", "image": "busybox", "ports": [{"containerPort": 80}],
        "livenessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "1000m", "example.com/x": 1}}, "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
        "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}], "nodeName": null}));
    default_builtin("", "v1", "Pod", &mut object);
    let once = object.clone();
    default_builtin("", "v1", "Pod", &mut object);
    assert_eq!(object, once);
    let container = &object["spec"]["containers"][0];
    assert_eq!(container["imagePullPolicy"], "Always");
    assert_eq!(container["ports"][0]["protocol"], "TCP");
    assert_eq!(
        container["livenessProbe"],
        json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
    );
    assert_eq!(
        container["resources"],
        json!({"limits": {"cpu": "1", "example.com/x": "1"}, "requests": {"cpu": "1", "example.com/x": "1"}})
    );
    assert_eq!(
        object["spec"]["volumes"],
        json!([{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}])
    );
    assert_eq!(object["spec"].get("nodeName"), None);
    assert_eq!(check("", "v1", "Pod", object, None), NONE);
}

#[test]
fn broken_pods_are_told_what_is_wrong() {
    let errors = check(
        "",
        "v1",
        "Pod",
        pod(
            json!({"restartPolicy": "Sometimes", "volumes": [{"name": "w", "emptyDir": {}, "hostPath": {"path": "/a/../b"}}, {"name": "v", "emptyDir": {}}, {"name": "v"}],
        "containers": [
            {"name": "a", "image": "i", "ports": [{"containerPort": 99999}], "volumeMounts": [{"name": "nope", "mountPath": "/x"}, {"name": "v", "mountPath": "/x", "subPath": "../up"}]},
            {"name": "a", "env": [{"name": "A=B"}, {}], "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}, "livenessProbe": {}},
            {"name": "Bad_Name", "image": "i"}]}),
        ),
        None,
    );
    for wanted in [
        "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        "spec.volumes[2].name: Duplicate value: \"v\"",
        "spec.containers[0].ports[0].containerPort: Invalid value: 99999: must be between 1 and 65535, inclusive",
        "spec.containers[0].volumeMounts[0].name: Not found: \"nope\"",
        "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/x\": must be unique",
        "spec.containers[0].volumeMounts.subPath: Invalid value: \"../up\": must not contain '..'",
        "spec.containers[1].name: Duplicate value: \"a\"",
        "spec.containers[1].image: Required value",
        "spec.containers[1].env[1].name: Required value",
        "spec.containers[1].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        "spec.containers[1].livenessProbe: Required value: must specify a handler type",
    ] {
        has(&errors, wanted);
    }
    assert!(
        errors
            .iter()
            .any(|e| e.starts_with("spec.containers[2].name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 label"))
    );
    has(&check("", "v1", "Pod", pod(json!({})), None), "spec.containers: Required value");
    let nameless = json!({"spec": {"containers": [{"name": "a", "image": "i"}]}});
    has(&check("", "v1", "Pod", nameless, None), "metadata.name: Required value: name or generateName is required");
}

#[test]
fn pod_updates() {
    let old =
        pod(json!({"containers": [{"name": "a", "image": "i"}], "tolerations": [{"key": "k", "operator": "Exists"}]}));
    let change = |f: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        f(&mut new);
        check("", "v1", "Pod", new, Some(old.clone()))
    };
    assert_eq!(change(&|_| ()), NONE);
    assert_eq!(change(&|n| n["spec"]["nodeName"] = "node".into()).len(), 1, "only a binding does this");
    assert_eq!(change(&|n| n["spec"]["activeDeadlineSeconds"] = 5.into()), NONE);
    assert_eq!(
        change(&|n| n["spec"]["tolerations"].as_array_mut().unwrap().push(json!({"key": "z", "operator": "Exists"}))),
        NONE
    );
    assert_eq!(change(&|n| n["metadata"]["labels"] = json!({"a": "b"})), NONE);
    let env = change(&|n| n["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": "1"}]));
    assert!(
        env[0].starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"),
        "{env:?}"
    );
    assert_eq!(change(&|n| n["spec"]["tolerations"] = json!([])).len(), 1);
}

#[test]
fn workloads() {
    let deployment = |selector: Value, labels: Value| {
        json!({"metadata": {"name": "d"}, "spec": {"selector": selector,
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "i"}]}}}})
    };
    let good = deployment(json!({"matchLabels": {"a": "1"}}), json!({"a": "1"}));
    assert_eq!(check("apps", "v1", "Deployment", good.clone(), None), NONE);
    has(
        &check("apps", "v1", "Deployment", deployment(json!({"matchLabels": {"a": "1"}}), json!({"a": "2"})), None),
        "spec.template.metadata.labels: Invalid value: {\"a\":\"2\"}: `selector` does not match template `labels`",
    );
    has(
        &check(
            "apps",
            "v1",
            "Deployment",
            deployment(json!({"matchLabels": {"b": "1"}}), json!({"b": "1"})),
            Some(good.clone()),
        ),
        "spec.selector: Invalid value: {\"matchLabels\":{\"b\":\"1\"}}: field is immutable",
    );
    let mut never = good.clone();
    never["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
    has(
        &check("apps", "v1", "Deployment", never, None),
        "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
    );
    let job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {"containers": [{"name": "a", "image": "i"}], "restartPolicy": "Never"}}}});
    assert_eq!(check("batch", "v1", "Job", job.clone(), None), NONE);
    let mut changed = job.clone();
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = "j".into();
    let errors = check("batch", "v1", "Job", changed, Some(job.clone()));
    assert!(
        errors[0].starts_with("spec.template: Invalid value: ") && errors[0].contains("field is immutable"),
        "{errors:?}"
    );
    let mut always = job;
    always["spec"]["template"]["spec"].as_object_mut().unwrap().remove("restartPolicy");
    has(
        &check("batch", "v1", "Job", always, None),
        "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
    );
}

#[test]
fn services_config_and_bindings() {
    let service = json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}});
    assert_eq!(check("", "v1", "Service", service.clone(), None), NONE);
    let mut moved = service.clone();
    moved["spec"]["clusterIP"] = "10.96.0.10".into();
    has(
        &check("", "v1", "Service", moved, Some(service)),
        "spec.clusterIPs[0]: Invalid value: [\"10.96.0.10\"]: may not change once set",
    );
    has(
        &check("", "v1", "Service", json!({"metadata": {"name": "s"}, "spec": {}}), None),
        "spec.ports: Required value",
    );
    let map = |data: Value, sealed: bool| json!({"metadata": {"name": "c"}, "data": data, "immutable": sealed});
    has(
        &check("", "v1", "ConfigMap", map(json!({"a": "2"}), true), Some(map(json!({"a": "1"}), true))),
        "data: Forbidden: field is immutable when `immutable` is set",
    );
    assert_eq!(check("", "v1", "ConfigMap", map(json!({"a": "2"}), true), Some(map(json!({"a": "1"}), false))), NONE);
    let errors = check(
        "",
        "v1",
        "Secret",
        json!({"metadata": {"name": "s"}, "data": {"a b": "aGk=", "k": "not base64!"}}),
        None,
    );
    assert_eq!(errors, ["data[k]: Invalid value: illegal base64 data"], "what cannot be read comes alone");
    let long = check("", "v1", "Secret", json!({"metadata": {"name": "s"}, "data": {"a b": "aGk="}}), None);
    assert!(long[0].starts_with("data[a b]: Invalid value: \"a b\": a valid config key must"), "{long:?}");
    assert!(!errors.iter().any(|e| e.contains("not base64!")), "the content of a secret is not repeated: {errors:?}");
    let mut secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "hi"}});
    default_builtin("", "v1", "Secret", &mut secret);
    assert_eq!(secret, json!({"metadata": {"name": "s"}, "type": "Opaque", "data": {"k": "aGk="}}));
    let binding = |role: &str| json!({"metadata": {"name": "admin:x"}, "roleRef": {"kind": "Role", "name": role}, "subjects": [{"kind": "User", "name": "u"}]});
    assert_eq!(check("rbac.authorization.k8s.io", "v1", "RoleBinding", binding("a"), None), NONE);
    assert!(
        check("rbac.authorization.k8s.io", "v1", "RoleBinding", binding("b"), Some(binding("a")))[0]
            .ends_with("cannot change roleRef")
    );
    let endpoints =
        json!({"metadata": {"name": "e"}, "subsets": [{"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": 1}]}]});
    assert_eq!(check("", "v1", "Endpoints", endpoints, None).len(), 1);
}

#[test]
fn claims_bind_once() {
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    assert_eq!(check("", "v1", "PersistentVolumeClaim", claim.clone(), None), NONE);
    let mut bound = claim.clone();
    bound["spec"]["volumeName"] = "v".into();
    bound["spec"]["storageClassName"] = "local".into();
    assert_eq!(check("", "v1", "PersistentVolumeClaim", bound.clone(), Some(claim)), NONE);
    let mut moved = bound.clone();
    moved["spec"]["volumeName"] = "w".into();
    assert_eq!(check("", "v1", "PersistentVolumeClaim", moved, Some(bound)).len(), 1);
}

/// Whatever is sent, nothing panics and defaults stay stable.
#[test]
fn odd_objects_never_panic() {
    let odd = [json!(null), json!([]), json!("x"), json!(3), json!({}), json!({"a": null}), json!([null]), json!([{}])];
    for resource in crate::schema::resources() {
        for value in &odd {
            for field in [
                "spec",
                "metadata",
                "data",
                "rules",
                "roleRef",
                "subjects",
                "status",
                "template",
                "webhooks",
                "endpoints",
                "ports",
                "subsets",
            ] {
                let mut object = json!({"metadata": {"name": "x"}});
                object[field] = value.clone();
                let mut once = object.clone();
                default_builtin(resource.group, resource.version, resource.kind, &mut once);
                let mut twice = once.clone();
                default_builtin(resource.group, resource.version, resource.kind, &mut twice);
                assert_eq!(once, twice, "{}/{}", resource.group, resource.kind);
                validate_write(resource.group, resource.version, resource.kind, "", &once, Some(&object));
                validate_write(resource.group, resource.version, resource.kind, "", &once, None);
                for subresource in ["status", "resize", "ephemeralcontainers"] {
                    let (group, version, kind) = (resource.group, resource.version, resource.kind);
                    validate_write(group, version, kind, subresource, &once, Some(&object));
                }
            }
        }
    }
}
