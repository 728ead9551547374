//! The columns of the matrix: each door, and what each who tries it must get.

use super::{
    lineage::Metadata,
    people::{Possessions, binding, claim, pod, spec},
    runs::Spares,
};
use serde_json::{Value, json};

/// In the order of [`Door::wanted`].
pub const ROWS: [&str; 7] = ["anonymous", "owner", "viewer", "editor", "stranger", "their pod", "owner's pod"];

pub struct Door {
    pub name: &'static str,
    pub how: Value,
    /// By row; `-` is not tried.
    pub wanted: [&'static str; 7],
}

/// Of the cluster: the anonymous are known as such there, and refused like others.
const KUBE_READ: [&str; 7] = ["403", "200+", "200+", "200+", "403", "403", "200+"];
const KUBE_EDIT: [&str; 7] = ["403", "200+", "403", "200+", "403", "403", "200+"];
const KUBE_MAKE: [&str; 7] = ["403", "201+", "403", "201+", "403", "403", "201+"];
/// Of what the owner has none of: an empty list is for those who would see one that is not.
const KUBE_LIST: [&str; 7] = ["403", "200", "200", "200", "403", "403", "200"];
const KUBE_NEVER: [&str; 7] = ["403"; 7];
/// Of the gateway: by an object's id, and in a namespace that is named.
pub const BY_ID: [&str; 7] = ["401", "200+", "200+", "200+", "404", "404", "200+"];
pub const IN_NAMESPACE: [&str; 7] = ["401", "200+", "200+", "200+", "403", "403", "200+"];
/// Everybody's own: the stranger's hold nothing of the owner's.
pub const OWN: [&str; 7] = ["401", "200+", "200+", "200+", "200", "200", "200+"];
pub const SIGNED_IN_NEVER: [&str; 7] = ["401", "403", "403", "403", "403", "403", "403"];
pub const NOT_THERE: [&str; 7] = ["401", "404", "404", "404", "404", "404", "404"];
/// A page of somebody's Service: for who may use it with a pod's power, and nothing is there for others.
const PAGE: [&str; 7] = ["401", "200+", "404", "200+", "404", "404", "200+"];
/// The credential of a namespace is its own, whoever contributes to others.
const OBJECT: [&str; 7] = ["403", "200+", "403", "403", "403", "403", "200+"];
const OBJECT_NEVER: [&str; 7] = ["403"; 7];

pub fn web(base: &str, method: &str, path: String, body: Value) -> Value {
    let mut door = json!({"kind": "web", "base": base, "method": method, "path": path});
    if !body.is_null() {
        door["body"] = body;
    }
    door
}

pub fn all(p: &Possessions, spares: &Spares, made: &Metadata, stranger: &str, bridge: &str) -> Vec<Door> {
    let mut doors = kubernetes(p, stranger);
    doors.extend(volumes(p));
    doors.extend(resources(p));
    doors.extend(super::runs::doors(p, spares));
    doors.extend(platform(p));
    doors.extend(ways(p, stranger));
    doors.extend(objects(p));
    doors.extend(super::lineage::doors(p, made));
    doors.extend(network(p, bridge));
    doors
}

fn kubernetes(p: &Possessions, stranger: &str) -> Vec<Door> {
    let ns = &p.namespace;
    let door = |name, method: &str, path: String, body: Value, wanted| Door {
        name,
        how: web("kubernetes", method, path, body),
        wanted,
    };
    let get = |name, path: String, wanted| door(name, "GET", path, Value::Null, wanted);
    let core = format!("/api/v1/namespaces/{ns}");
    let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/rolebindings");
    let stream = |name, what: &str, protocol: &str| Door {
        name,
        how: json!({"kind": "websocket", "base": "kubernetes", "path": format!("{core}/pods/door/{what}"),
            "protocol": protocol}),
        wanted: ["403", "101", "403", "101", "403", "403", "101"],
    };
    let debugger = json!({"spec": {"ephemeralContainers": [{"name": "look", "image": "python:3.11"}]}});
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "door"}});
    let bind = |role: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "more"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "x@example.org"}]})
    };
    let owner = format!("{}@example.com", p.word);
    let mut impersonate = web("kubernetes", "GET", format!("{core}/pods/door"), Value::Null);
    impersonate["headers"] = json!({"Impersonate-User": owner});
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "elsewhere"},
        "subsets": [{"addresses": [{"ip": p.pod_ip}], "ports": [{"port": 8000}]}]});
    let external = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "claims"},
        "spec": {"ports": [{"port": 8000}], "externalIPs": [p.pod_ip]}});
    let mut privileged = pod("strong", &["true"], "");
    privileged["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    let mut on_host = pod("near", &["true"], "");
    on_host["spec"]["hostNetwork"] = true.into();
    let own = format!("/api/v1/namespaces/{stranger}");
    // What a stranger with all rights in a namespace of their own might do to others from there.
    let from_own = ["-", "-", "-", "-", "403", "403", "-"];
    let plain = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "plain"},
        "spec": {"ports": [{"port": 8000}]}});
    let allowed = ["-", "-", "-", "-", "201", "201", "-"];
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    vec![
        get("pod: get", format!("{core}/pods/door"), KUBE_READ),
        get("pods: list", format!("{core}/pods"), KUBE_READ),
        get("pods: list everywhere", "/api/v1/pods".into(), KUBE_NEVER),
        get("pods: watch", format!("{core}/pods?watch=1&timeoutSeconds=1"), KUBE_READ),
        get("pod: log", format!("{core}/pods/door/log"), KUBE_READ),
        stream("pod: exec", "exec?command=true&stdout=true", "v5.channel.k8s.io"),
        stream("pod: attach", "attach?stdout=true", "v5.channel.k8s.io"),
        stream("pod: port-forward", "portforward?ports=8000", "v4.channel.k8s.io"),
        // Upstream's roles of these names grant neither, to owners either.
        door("pod: debug", "PATCH", format!("{core}/pods/door/ephemeralcontainers?dryRun=All"), debugger, KUBE_NEVER),
        door("pod: evict", "POST", format!("{core}/pods/door/eviction?dryRun=All"), eviction, KUBE_NEVER),
        get("pod: proxy", format!("{core}/pods/door:8000/proxy/"), KUBE_EDIT),
        get("service: proxy", format!("{core}/services/door/proxy/"), KUBE_EDIT),
        door("pod: create", "POST", format!("{core}/pods?dryRun=All"), pod("new", &["true"], ""), KUBE_MAKE),
        get("secret: get", format!("{core}/secrets/{}", p.word), KUBE_EDIT),
        get("secrets: list", format!("{core}/secrets"), KUBE_EDIT),
        get("secrets: watch", format!("{core}/secrets?watch=1&timeoutSeconds=1"), KUBE_EDIT),
        get("events: list", format!("{core}/events"), KUBE_READ),
        get("namespace: get", format!("/api/v1/namespaces/{ns}"), KUBE_READ),
        get("namespaces: list", "/api/v1/namespaces".into(), KUBE_NEVER),
        get("profile: get", format!("/apis/kubeflow.org/v1/profiles/{ns}"), KUBE_NEVER),
        get("role bindings: list", rbac.clone(), ["403", "200+", "403", "403", "403", "403", "403"]),
        door(
            "role binding: view",
            "POST",
            format!("{rbac}?dryRun=All"),
            bind("kubeflow-view"),
            ["403", "201+", "403", "403", "403", "403", "403"],
        ),
        door("role binding: cluster-admin", "POST", format!("{rbac}?dryRun=All"), bind("cluster-admin"), KUBE_NEVER),
        Door { name: "impersonate the owner", how: impersonate, wanted: KUBE_NEVER },
        door(
            "namespace: lift pod security",
            "PATCH",
            format!("/api/v1/namespaces/{ns}?dryRun=All"),
            json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}),
            KUBE_NEVER,
        ),
        door(
            "service account: token",
            "POST",
            format!("{core}/serviceaccounts/default-editor/token"),
            token,
            KUBE_NEVER,
        ),
        door("own: plain pod", "POST", format!("{own}/pods?dryRun=All"), pod("plain", &["true"], ""), allowed),
        door("own: plain service", "POST", format!("{own}/services?dryRun=All"), plain, allowed),
        door("own: endpoints of another's pod", "POST", format!("{own}/endpoints?dryRun=All"), endpoints, from_own),
        door("own: service on another's address", "POST", format!("{own}/services?dryRun=All"), external, from_own),
        door("own: privileged pod", "POST", format!("{own}/pods?dryRun=All"), privileged, from_own),
        door("own: pod on the host's network", "POST", format!("{own}/pods?dryRun=All"), on_host, from_own),
    ]
}

fn volumes(p: &Possessions) -> Vec<Door> {
    let door = |name, method: &str, path: String, body: Value, wanted| Door {
        name,
        how: web("kubernetes", method, path, body),
        wanted,
    };
    let get = |name, path: String, wanted| door(name, "GET", path, Value::Null, wanted);
    let claims = format!("/api/v1/namespaces/{}/persistentvolumeclaims", p.namespace);
    let snapshots = "/apis/snapshot.storage.k8s.io/v1";
    let of_claims = format!("{snapshots}/namespaces/{}/volumesnapshots", p.namespace);
    let snapshot = json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
        "metadata": {"name": "new"}, "spec": {"source": {"persistentVolumeClaimName": p.word}}});
    vec![
        get("claim: get", format!("{claims}/{}", p.word), KUBE_READ),
        get("claims: list", claims.clone(), KUBE_READ),
        door("claim: create", "POST", format!("{claims}?dryRun=All"), claim("new"), KUBE_MAKE),
        door("claim: delete", "DELETE", format!("{claims}/{}?dryRun=All", p.word), Value::Null, KUBE_EDIT),
        get("volumes: list", "/api/v1/persistentvolumes".into(), KUBE_NEVER),
        get("snapshots: list", of_claims.clone(), KUBE_LIST),
        door("snapshot: create", "POST", format!("{of_claims}?dryRun=All"), snapshot, KUBE_MAKE),
        get("snapshots' contents: list", format!("{snapshots}/volumesnapshotcontents"), KUBE_NEVER),
    ]
}

/// Pipelines and schedules as the cluster's resources.
fn resources(p: &Possessions) -> Vec<Door> {
    let door = |name, method: &str, path: String, body: Value, wanted| Door {
        name,
        how: web("kubernetes", method, path, body),
        wanted,
    };
    let list = |name, path: &str| door(name, "GET", path.to_owned(), Value::Null, KUBE_LIST);
    let pipelines = format!("/apis/pipelines.kubeflow.org/v2beta1/namespaces/{}", p.namespace);
    let schedules = format!("/apis/kubeflow.org/v1beta1/namespaces/{}/scheduledworkflows", p.namespace);
    let pipeline = json!({"apiVersion": "pipelines.kubeflow.org/v2beta1", "kind": "Pipeline",
        "metadata": {"name": "new"}, "spec": {"displayName": "New"}});
    let version = json!({"apiVersion": "pipelines.kubeflow.org/v2beta1", "kind": "PipelineVersion",
        "metadata": {"name": "new-v1"}, "spec": {"pipelineName": "new", "pipelineSpec": spec(&p.word)}});
    let schedule = json!({"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow",
        "metadata": {"name": "new"}, "spec": {
            "enabled": true, "noCatchup": true, "pipelineName": "new", "workflow": {"parameters": []},
            "trigger": {"periodicSchedule": {"startTime": "2026-01-01T00:00:00Z", "intervalSecond": 86400}}}});
    vec![
        list("Pipelines: list", &format!("{pipelines}/pipelines")),
        door("Pipeline: create", "POST", format!("{pipelines}/pipelines?dryRun=All"), pipeline, KUBE_MAKE),
        list("PipelineVersions: list", &format!("{pipelines}/pipelineversions")),
        // Who may create one is told that its Pipeline is not there.
        door(
            "PipelineVersion: create",
            "POST",
            format!("{pipelines}/pipelineversions?dryRun=All"),
            version,
            ["403", "-", "403", "-", "403", "403", "-"],
        ),
        list("ScheduledWorkflows: list", &schedules),
        door(
            "ScheduledWorkflow: create",
            "POST",
            format!("{schedules}?dryRun=All"),
            schedule,
            ["403", "201+", "403", "201+", "403", "403", "-"],
        ),
    ]
}

fn platform(p: &Possessions) -> Vec<Door> {
    let door = |name, method: &str, path: String, body: Value, wanted| Door {
        name,
        how: web("gateway", method, path, body),
        wanted,
    };
    let get = |name, path: String, wanted| door(name, "GET", path, Value::Null, wanted);
    let ns = &p.namespace;
    let owner = format!("{}@example.com", p.word);
    let whom = json!({"contributor": "x@example.org"});
    let grab = json!({"namespace": "grab", "user": owner});
    let profile = json!({"metadata": {"name": "grab"}, "spec": {"owner": {"kind": "User", "name": owner}}});
    // People may make a profile for themselves, one each: the owner has one.
    let has_one = ["401", "409", "403", "403", "403", "403", "403"];
    // A service account has no bindings of its own in KFAM's lists, which know people and groups.
    let own = ["401", "200+", "200+", "200+", "200", "200", "200"];
    vec![
        get("kfam: bindings of", format!("/kfam/v1/bindings?namespace={ns}"), own),
        get("kfam: bindings", "/kfam/v1/bindings".into(), own),
        get(
            "kfam: bindings of owner",
            format!("/kfam/v1/bindings?user={owner}"),
            ["401", "200+", "200", "200", "200", "200", "200"],
        ),
        door(
            "kfam: bind",
            "POST",
            "/kfam/v1/bindings".into(),
            binding("x@example.org", ns, "view"),
            ["401", "-", "403", "403", "403", "403", "403"],
        ),
        door(
            "kfam: bind themselves",
            "POST",
            "/kfam/v1/bindings".into(),
            binding("x@example.org", ns, "admin"),
            ["401", "-", "403", "403", "403", "403", "403"],
        ),
        door(
            "kfam: unbind",
            "DELETE",
            "/kfam/v1/bindings".into(),
            binding(&owner, ns, "admin"),
            ["401", "404", "403", "403", "403", "403", "403"],
        ),
        door("kfam: profile for another", "POST", "/kfam/v1/profiles".into(), profile, has_one),
        door(
            "kfam: delete profile",
            "DELETE",
            format!("/kfam/v1/profiles/{ns}"),
            Value::Null,
            ["401", "-", "403", "403", "403", "403", "403"],
        ),
        get(
            "kfam: owner an admin?",
            format!("/kfam/v1/role/clusteradmin?user={owner}"),
            ["401", "200", "403", "403", "403", "403", "403"],
        ),
        // It is told its own name, which holds its namespace's.
        get("workgroup: env-info", "/api/workgroup/env-info".into(), OWN),
        get("workgroup: all namespaces", "/api/workgroup/get-all-namespaces".into(), own),
        get(
            "workgroup: contributors",
            format!("/api/workgroup/get-contributors/{ns}"),
            ["401", "200+", "200", "200+", "200", "200", "200"],
        ),
        door(
            "workgroup: add contributor",
            "POST",
            format!("/api/workgroup/add-contributor/{ns}"),
            whom.clone(),
            ["401", "-", "403", "403", "403", "403", "403"],
        ),
        door(
            "workgroup: remove contributor",
            "DELETE",
            format!("/api/workgroup/remove-contributor/{ns}"),
            whom,
            ["401", "404", "403", "403", "403", "403", "403"],
        ),
        get("workgroup: exists", "/api/workgroup/exists".into(), OWN),
        door("workgroup: create", "POST", "/api/workgroup/create".into(), grab, has_one),
        // People here have a profile, which would go; an account has none, whosever namespace it is in.
        door(
            "workgroup: nuke self",
            "DELETE",
            "/api/workgroup/nuke-self".into(),
            Value::Null,
            ["401", "-", "-", "-", "-", "404", "404"],
        ),
        // The administrators' words for all; on this box they have written none.
        get("api: dashboard links", "/api/dashboard-links".into(), ["401", "200", "200", "200", "200", "200", "200"]),
        get("gateway: metrics", "/metrics".into(), SIGNED_IN_NEVER),
        get("api: namespaces", "/api/namespaces".into(), OWN),
        get("api: activities", format!("/api/activities/{ns}"), IN_NAMESPACE),
        get("api: activities of kube-system", "/api/activities/kube-system".into(), SIGNED_IN_NEVER),
    ]
}

/// Through the gateway to the Services of a namespace, by its VirtualServices and HTTPRoutes.
fn ways(p: &Possessions, stranger: &str) -> Vec<Door> {
    let door = |name, method: &str, path: String, body: Value, wanted| Door {
        name,
        how: web("gateway", method, path, body),
        wanted,
    };
    let get = |name, path: String, wanted| door(name, "GET", path, Value::Null, wanted);
    let ns = &p.namespace;
    let mut disguised = web("gateway", "GET", format!("/door/{ns}/"), Value::Null);
    disguised["headers"] =
        json!({"kubeflow-userid": format!("{}@example.com", p.word), "X-Forwarded-Host": "localhost"});
    let upgrade = json!({"kind": "websocket", "base": "gateway", "path": format!("/door/{ns}/")});
    // The Service's own answer to what it does not do: so far only those come who may.
    let reached = ["401", "501", "404", "501", "404", "404", "501"];
    vec![
        get("way: VirtualService", format!("/door/{ns}/"), PAGE),
        get("way: VirtualService, a file", format!("/door/{ns}/index.html?x=1"), PAGE),
        door("way: VirtualService, write", "POST", format!("/door/{ns}/"), json!({}), reached),
        door("way: VirtualService, delete", "DELETE", format!("/door/{ns}/"), Value::Null, reached),
        Door { name: "way: VirtualService, upgrade", how: upgrade, wanted: PAGE },
        Door { name: "way: VirtualService, disguised", how: disguised, wanted: PAGE },
        get("way: HTTPRoute", format!("/leaf/{ns}"), PAGE),
        get("way: HTTPRoute, beyond it", format!("/leaf/{ns}/more"), NOT_THERE),
        get(
            "way: closed by a policy",
            format!("/door/{ns}/closed/"),
            ["401", "403", "404", "403", "404", "404", "403"],
        ),
        get("way: of the namespace, unknown", format!("/other/{ns}/"), NOT_THERE),
        // Objects in the stranger's namespace that claim what is the owner's.
        get("way: another's to the service", format!("/steal/{stranger}/"), NOT_THERE),
        get("way: another's over the path", format!("/mine/{ns}/"), NOT_THERE),
    ]
}

fn objects(p: &Possessions) -> Vec<Door> {
    let door = |name, method: &str, path: String, more: Value, wanted| {
        let mut how = json!({"kind": "s3", "method": method, "path": path});
        for (key, value) in more.as_object().into_iter().flatten() {
            how[key] = value.clone();
        }
        Door { name, how, wanted }
    };
    let (ns, key) = (&p.namespace, &p.object);
    let put = ["403", "200", "403", "403", "403", "403", "200"];
    vec![
        door("object: get", "GET", format!("/mlpipeline/{key}"), Value::Null, OBJECT),
        door("object: get, presigned", "GET", format!("/mlpipeline/{key}"), json!({"presign": true}), OBJECT),
        door("object: put", "PUT", format!("/mlpipeline/{key}-more"), json!({"body": "x"}), put),
        door(
            "object: delete",
            "DELETE",
            format!("/mlpipeline/{key}-more"),
            Value::Null,
            ["403", "204", "403", "403", "403", "403", "204"],
        ),
        door(
            "object: get by ..",
            "GET",
            format!("/mlpipeline/v2/artifacts/none/../{ns}/walls/{}", p.word),
            Value::Null,
            OBJECT_NEVER,
        ),
        door("objects: list", "GET", format!("/mlpipeline?list-type=2&prefix=v2/artifacts/{ns}/"), Value::Null, OBJECT),
        door("objects: list all", "GET", "/mlpipeline?list-type=2".into(), Value::Null, OBJECT_NEVER),
        door(
            "objects: list neighbours",
            "GET",
            "/mlpipeline?list-type=2&prefix=v2/artifacts/".into(),
            Value::Null,
            OBJECT_NEVER,
        ),
        door("bucket: delete", "DELETE", "/mlpipeline".into(), Value::Null, OBJECT_NEVER),
        // The bucket of a namespace's own name; the owner comes before the others, and again last.
        door(
            "own bucket: create",
            "PUT",
            format!("/{ns}"),
            Value::Null,
            ["403", "409", "403", "403", "403", "403", "409"],
        ),
        door("own bucket: put", "PUT", format!("/{ns}/{}", p.word), json!({"body": p.word}), put),
        door("own bucket: get", "GET", format!("/{ns}/{}", p.word), Value::Null, OBJECT),
        door("own bucket: list", "GET", format!("/{ns}?list-type=2"), Value::Null, OBJECT),
    ]
}

fn network(p: &Possessions, bridge: &str) -> Vec<Door> {
    let door = |name, host: &str, port: u16| Door {
        name,
        how: json!({"kind": "tcp", "host": host, "port": port}),
        wanted: ["-", "-", "-", "-", "-", "closed", "open"],
    };
    // A step's own, opened by its token alone: an account's is as good as none, also in the step's namespace.
    let task = |name, method: &str, what: &str| Door {
        name,
        how: web("tasks", method, format!("/v1/runs/{}/tasks/{}/1/{what}", p.run, p.task), Value::Null),
        wanted: ["-", "-", "-", "-", "-", "401", "401"],
    };
    vec![
        task("task: input", "GET", "inputs/0"),
        task("task: output", "PUT", "outputs/data"),
        task("task: result", "POST", "result"),
        door("pod: connect", &p.pod_ip, 8000),
        door("service: connect", &p.service_ip, 80),
        door("service: connect by name", &format!("door.{}.svc", p.namespace), 80),
        door("node port: connect", bridge, p.node_port),
    ]
}
