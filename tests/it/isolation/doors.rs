//! The columns of the matrix: each door, and what each who tries it must get.

use super::people::{Possessions, binding, pod};
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
const KUBE_NEVER: [&str; 7] = ["403"; 7];
/// Of the gateway: by an object's id, and in a namespace that is named.
const BY_ID: [&str; 7] = ["401", "200+", "200+", "200+", "404", "404", "200+"];
const IN_NAMESPACE: [&str; 7] = ["401", "200+", "200+", "200+", "403", "403", "200+"];
/// Everybody's own: the stranger's hold nothing of the owner's.
const OWN: [&str; 7] = ["401", "200+", "200+", "200+", "200", "200", "200+"];
const SIGNED_IN_NEVER: [&str; 7] = ["401", "403", "403", "403", "403", "403", "403"];
const NOT_THERE: [&str; 7] = ["401", "404", "404", "404", "404", "404", "404"];
/// A page of somebody's Service: for who may use it with a pod's power, and nothing is there for others.
const PAGE: [&str; 7] = ["401", "200+", "404", "200+", "404", "404", "200+"];
/// The credential of a namespace is its own, whoever contributes to others.
const OBJECT: [&str; 7] = ["403", "200+", "403", "403", "403", "403", "200+"];
const OBJECT_NEVER: [&str; 7] = ["403"; 7];

fn web(base: &str, method: &str, path: String, body: Value) -> Value {
    let mut door = json!({"kind": "web", "base": base, "method": method, "path": path});
    if !body.is_null() {
        door["body"] = body;
    }
    door
}

pub fn all(p: &Possessions, stranger: &str, bridge: &str) -> Vec<Door> {
    let mut doors = kubernetes(p, stranger);
    doors.extend(pipelines(p));
    doors.extend(platform(p));
    doors.extend(ways(p, stranger));
    doors.extend(objects(p));
    doors.extend(metadata());
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
    let exec = |name, pod: &str, wanted| Door {
        name,
        how: json!({"kind": "websocket", "base": "kubernetes",
            "path": format!("{core}/pods/{pod}/exec?command=true&stdout=true")}),
        wanted,
    };
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
        exec("pod: exec", "door", ["403", "101", "403", "101", "403", "403", "101"]),
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

fn pipelines(p: &Possessions) -> Vec<Door> {
    let door = |name, method: &str, path: String, body: Value, wanted| Door {
        name,
        how: web("gateway", method, format!("/pipeline/apis/v2beta1/{path}"), body),
        wanted,
    };
    let get = |name, path: String, wanted| door(name, "GET", path, Value::Null, wanted);
    let act = |name, path: String, wanted| door(name, "POST", path, json!({}), wanted);
    let (ns, run) = (&p.namespace, &p.run);
    let page = |name, path: String, wanted| Door { name, how: web("gateway", "GET", path, Value::Null), wanted };
    // Who may act is told that the run has ended.
    let terminate = ["401", "400", "403", "400", "404", "404", "400"];
    let switch = ["401", "200", "403", "200", "404", "404", "200"];
    // Who may create is told what the request lacks.
    let create = ["401", "400", "403", "400", "403", "403", "400"];
    let reference = json!({"pipeline_id": p.pipeline, "pipeline_version_id": p.version});
    let surplus = json!({"parameters": {"there-is-none": 1}});
    vec![
        get("run: get", format!("runs/{run}"), BY_ID),
        get("runs: list", format!("runs?namespace={ns}"), IN_NAMESPACE),
        get("runs: list mine", "runs".into(), OWN),
        get("runs: list by experiment", format!("runs?experiment_id={}", p.experiment), BY_ID),
        act("run: terminate", format!("runs/{run}:terminate"), terminate),
        act("run: archive", format!("runs/{run}:archive"), switch),
        act("run: unarchive", format!("runs/{run}:unarchive"), switch),
        door("run: create", "POST", "runs".into(), json!({"display_name": "x", "namespace": ns}), create),
        door(
            "run: create in experiment",
            "POST",
            "runs".into(),
            json!({"display_name": "x", "experiment_id": p.experiment}),
            ["401", "400", "403", "400", "404", "404", "400"],
        ),
        door(
            "run: of the owner's version",
            "POST",
            "runs".into(),
            json!({"display_name": "x", "pipeline_version_reference": reference, "runtime_config": surplus}),
            ["401", "400", "400", "400", "404", "404", "400"],
        ),
        get("experiment: get", format!("experiments/{}", p.experiment), BY_ID),
        get("experiments: list", format!("experiments?namespace={ns}"), IN_NAMESPACE),
        get("experiments: list mine", "experiments".into(), OWN),
        act("experiment: unarchive", format!("experiments/{}:unarchive", p.experiment), switch),
        door("experiment: create", "POST", "experiments".into(), json!({"namespace": ns}), create),
        get("recurring run: get", format!("recurringruns/{}", p.recurring), BY_ID),
        get("recurring runs: list", format!("recurringruns?namespace={ns}"), IN_NAMESPACE),
        act("recurring run: disable", format!("recurringruns/{}:disable", p.recurring), switch),
        get("pipeline: get", format!("pipelines/{}", p.pipeline), BY_ID),
        get("pipeline: get by name", format!("pipelines/names/{}?namespace={ns}", p.word), BY_ID),
        get("pipelines: list", format!("pipelines?namespace={ns}"), IN_NAMESPACE),
        get("versions: list", format!("pipelines/{}/versions", p.pipeline), BY_ID),
        get("version: get", format!("pipelines/{}/versions/{}", p.pipeline, p.version), BY_ID),
        door("pipeline: create", "POST", "pipelines".into(), json!({"namespace": ns}), create),
        act("pipeline: upload", format!("pipelines/upload?namespace={ns}"), create),
        act(
            "version: upload",
            format!("pipelines/upload_version?pipelineid={}", p.pipeline),
            ["401", "400", "403", "400", "404", "404", "400"],
        ),
        door(
            "pipeline: update",
            "PATCH",
            format!("pipelines/{}", p.pipeline),
            json!({"description": "d"}),
            ["401", "200+", "403", "200+", "404", "404", "200+"],
        ),
        page("step: log", format!("/pipeline/apis/v1beta1/runs/{run}/nodes/{}/log", p.task), BY_ID),
        page("page: run", format!("/runs/{run}"), BY_ID),
        page("page: runs", format!("/runs?namespace={ns}"), IN_NAMESPACE),
        page("page: step", format!("/runs/{run}/nodes/{}", p.task), BY_ID),
        page("page: log", format!("/runs/{run}/nodes/{}/log", p.task), BY_ID),
        page("artifact: download", format!("/runs/{run}/artifacts/{}:data:0", p.task), BY_ID),
        page("artifact: preview", format!("/runs/{run}/artifacts/{}:data:0/preview", p.task), BY_ID),
        page("upstream's artifact proxy", format!("/artifacts/get?namespace={ns}&key={}", p.object), NOT_THERE),
        page("upstream's open proxy", "/_proxy/127.0.0.1:6443/version".into(), NOT_THERE),
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
    let profile = json!({"metadata": {"name": "grab"}, "spec": {"owner": {"kind": "User", "name": owner}}});
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
        door("kfam: profile for another", "POST", "/kfam/v1/profiles".into(), profile, SIGNED_IN_NEVER),
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
            whom,
            ["401", "-", "403", "403", "403", "403", "403"],
        ),
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
            ["403", "200", "403", "403", "403", "403", "409"],
        ),
        door("own bucket: put", "PUT", format!("/{ns}/{}", p.word), json!({"body": p.word}), put),
        door("own bucket: get", "GET", format!("/{ns}/{}", p.word), Value::Null, OBJECT),
        door("own bucket: list", "GET", format!("/{ns}?list-type=2"), Value::Null, OBJECT),
    ]
}

fn metadata() -> Vec<Door> {
    let door = |name, call: &str, message: &str| Door {
        name,
        how: json!({"kind": "grpc", "call": call, "message": message}),
        wanted: ["none", "data+", "data+", "data+", "empty", "empty", "data+"],
    };
    // Field 1, a number each in seven bits a byte: all ids that a box of tests gives out.
    let varint = |id: u32| match id {
        0..128 => format!("{id:02x}"),
        _ => format!("{:02x}{:02x}", id & 127 | 128, id >> 7),
    };
    let ids: String = (1..4000).map(|id| format!("08{}", varint(id))).collect();
    vec![
        door("metadata: contexts", "GetContexts", ""),
        door("metadata: contexts by id", "GetContextsByID", &ids),
        door("metadata: artifacts", "GetArtifacts", ""),
        door("metadata: artifacts by id", "GetArtifactsByID", &ids),
    ]
}

fn network(p: &Possessions, bridge: &str) -> Vec<Door> {
    let door = |name, host: &str, port: u16| Door {
        name,
        how: json!({"kind": "tcp", "host": host, "port": port}),
        wanted: ["-", "-", "-", "-", "-", "closed", "open"],
    };
    vec![
        door("pod: connect", &p.pod_ip, 8000),
        door("service: connect", &p.service_ip, 80),
        door("service: connect by name", &format!("door.{}.svc", p.namespace), 80),
        door("node port: connect", bridge, p.node_port),
    ]
}
