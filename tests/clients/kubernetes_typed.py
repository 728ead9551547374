#!/usr/bin/env python3
"""The Python `kubernetes` client: typed objects, patches, selectors and pages, create_from_yaml, logs, exec and
port-forward over WebSocket, tokens and errors. Works in the namespace $NAMESPACE of $KUBECONFIG."""
import json
import os

from kubernetes import client, config, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import portforward, stream

NAMESPACE = os.environ["NAMESPACE"]

MANIFEST = """
apiVersion: v1
kind: ConfigMap
metadata: {name: from-yaml, labels: {set: yaml}}
data: {text: from yaml}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: python:3.11
        command: [python3, -u, -m, http.server, '8000']
        readinessProbe: {httpGet: {path: /, port: 8000}, periodSeconds: 1}
"""


def refused(code: int, reason: str, call, *args, **kwargs) -> dict:
    try:
        call(*args, **kwargs)
    except ApiException as error:
        body = json.loads(error.body)
        assert (error.status, body["reason"], body["kind"]) == (code, reason, "Status"), body
        return body
    raise AssertionError(f"{call} was not refused")


def objects(core: client.CoreV1Api) -> None:
    made = core.create_namespaced_config_map(
        NAMESPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(generate_name="made-"), data={"a": "1"})
    )
    assert made.metadata.name.startswith("made-") and made.metadata.uid and made.metadata.resource_version
    refused(409, "AlreadyExists", core.create_namespaced_config_map, NAMESPACE, client.V1ConfigMap(metadata={"name": made.metadata.name}))
    refused(404, "NotFound", core.read_namespaced_config_map, "none", NAMESPACE)
    bad = refused(422, "Invalid", core.create_namespaced_config_map, NAMESPACE, client.V1ConfigMap(metadata={"name": "Not A Name"}))
    assert bad["details"]["causes"][0]["field"] == "metadata.name", bad

    old = core.read_namespaced_config_map(made.metadata.name, NAMESPACE)
    old.data["a"] = "2"
    new = core.replace_namespaced_config_map(made.metadata.name, NAMESPACE, old)
    assert new.data == {"a": "2"}
    refused(409, "Conflict", core.replace_namespaced_config_map, made.metadata.name, NAMESPACE, old)
    patched = core.patch_namespaced_config_map(made.metadata.name, NAMESPACE, {"data": {"b": "3"}})
    assert patched.data == {"a": "2", "b": "3"}
    # A list is a JSON patch.
    patched = core.patch_namespaced_config_map(made.metadata.name, NAMESPACE, [{"op": "remove", "path": "/data/a"}])
    assert patched.data == {"b": "3"}
    dry = core.patch_namespaced_config_map(made.metadata.name, NAMESPACE, {"data": {"b": "4"}}, dry_run="All")
    assert dry.data["b"] == "4" and core.read_namespaced_config_map(made.metadata.name, NAMESPACE).data["b"] == "3"

    for n in range(7):
        core.create_namespaced_config_map(
            NAMESPACE, {"metadata": {"name": f"page-{n}", "labels": {"set": "pages", "odd": str(n % 2)}}}
        )
    seen, token, revisions = [], None, set()
    while True:
        page = core.list_namespaced_config_map(NAMESPACE, label_selector="set=pages", limit=3, _continue=token)
        seen += [item.metadata.name for item in page.items]
        revisions.add(page.metadata.resource_version)
        token = page.metadata._continue
        if not token:
            break
        # What is made between pages belongs to no page: the list is of one moment.
        core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": f"page-9{len(seen)}", "labels": {"set": "pages"}}})
    assert seen == [f"page-{n}" for n in range(7)] and len(revisions) == 1, (seen, revisions)
    assert len(core.list_namespaced_config_map(NAMESPACE, label_selector="set in (pages),odd=1").items) == 3
    assert [c.metadata.name for c in core.list_namespaced_config_map(NAMESPACE, field_selector="metadata.name=page-3").items] == ["page-3"]
    core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="odd=1")
    assert len(core.list_namespaced_config_map(NAMESPACE, label_selector="odd").items) == 4
    secret = core.create_namespaced_secret(NAMESPACE, client.V1Secret(metadata={"name": "s"}, string_data={"k": "v"}))
    assert secret.data == {"k": "dg=="} and secret.type == "Opaque"


def everything_parses(api: client.ApiClient) -> None:
    """Typed lists of all kinds: the client checks required fields as it reads."""
    core, apps, rbac = client.CoreV1Api(api), client.AppsV1Api(api), client.RbacAuthorizationV1Api(api)
    for call in (
        core.list_node, core.list_namespace, core.list_pod_for_all_namespaces, core.list_service_for_all_namespaces,
        core.list_endpoints_for_all_namespaces, core.list_persistent_volume, core.list_event_for_all_namespaces,
        core.list_service_account_for_all_namespaces, apps.list_deployment_for_all_namespaces,
        apps.list_replica_set_for_all_namespaces, rbac.list_cluster_role, rbac.list_cluster_role_binding,
        rbac.list_role_for_all_namespaces, client.StorageV1Api(api).list_storage_class,
        client.DiscoveryV1Api(api).list_endpoint_slice_for_all_namespaces,
        client.CoordinationV1Api(api).list_lease_for_all_namespaces, client.SchedulingV1Api(api).list_priority_class,
        client.ApiextensionsV1Api(api).list_custom_resource_definition, client.ApiregistrationV1Api(api).list_api_service,
        client.PolicyV1Api(api).list_pod_disruption_budget_for_all_namespaces, client.AutoscalingV2Api(api).list_horizontal_pod_autoscaler_for_all_namespaces,
        client.BatchV1Api(api).list_job_for_all_namespaces, client.NetworkingV1Api(api).list_network_policy_for_all_namespaces,
    ):
        assert call().metadata.resource_version
    assert client.VersionApi(api).get_code().major == "1"
    assert "apps" in {group.name for group in client.ApisApi(api).get_api_versions().groups}
    review = client.AuthorizationV1Api(api).create_self_subject_access_review(
        client.V1SelfSubjectAccessReview(spec={"resourceAttributes": {"verb": "get", "resource": "pods"}})
    )
    assert review.status.allowed


def deployment(api: client.ApiClient) -> str:
    apps, core = client.AppsV1Api(api), client.CoreV1Api(api)
    for event in watch.Watch().stream(apps.list_namespaced_deployment, NAMESPACE, field_selector="metadata.name=web", timeout_seconds=60):
        if event["object"].status.available_replicas == 1:
            break
    else:
        raise AssertionError("the deployment did not come up within a minute")
    before = core.list_namespaced_pod(NAMESPACE, label_selector="app=web")
    scale = apps.read_namespaced_deployment_scale("web", NAMESPACE)
    scale.spec.replicas = 0
    assert apps.replace_namespaced_deployment_scale("web", NAMESPACE, scale).spec.replicas == 0
    since = before.metadata.resource_version
    for event in watch.Watch().stream(core.list_namespaced_pod, NAMESPACE, label_selector="app=web", resource_version=since, timeout_seconds=60):
        if event["type"] == "DELETED" and event["object"].metadata.name == before.items[0].metadata.name:
            break
    else:
        raise AssertionError("the pod was still there a minute after its deployment was scaled to none")
    apps.patch_namespaced_deployment_scale("web", NAMESPACE, {"spec": {"replicas": 1}})
    for event in watch.Watch().stream(core.list_namespaced_pod, NAMESPACE, label_selector="app=web", timeout_seconds=60):
        pod = event["object"]
        if event["type"] != "DELETED" and pod.status.container_statuses and pod.status.container_statuses[0].ready:
            return pod.metadata.name
    raise AssertionError("no pod came up within a minute")


def streams(core: client.CoreV1Api, pod: str) -> None:
    def run(*command: str, **kwargs):
        return stream(core.connect_get_namespaced_pod_exec, pod, NAMESPACE, command=list(command), stdout=True, stderr=True, **kwargs)

    assert run("echo", "hello", stdin=False, tty=False) == "hello\n"
    session = run("sh", "-c", "echo ready; read line; echo got $line; echo trouble >&2; exit 7", stdin=True, tty=False, _preload_content=False)
    assert session.readline_stdout(timeout=20) == "ready"
    session.write_stdin("a word\n")
    assert session.readline_stdout(timeout=20) == "got a word"
    assert session.readline_stderr(timeout=20) == "trouble"
    session.run_forever(timeout=20)
    assert session.returncode == 7
    try:
        run("true", container="none", stdin=False, tty=False)
        raise AssertionError("a container that is not there was found")
    except ApiException as error:
        assert error.status in (0, 400), error

    assert "Serving HTTP" in core.read_namespaced_pod_log(pod, NAMESPACE)
    lines = watch.Watch().stream(core.read_namespaced_pod_log, pod, NAMESPACE, follow=True)
    assert next(iter(lines)).startswith("Serving HTTP")

    forward = portforward(core.connect_get_namespaced_pod_portforward, pod, NAMESPACE, ports="8000")
    socket = forward.socket(8000)
    socket.setblocking(True)
    socket.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while chunk := socket.recv(4096):
        answer += chunk
    assert answer.startswith(b"HTTP/1.0 200 OK") and forward.error(8000) is None, (answer[:40], forward.error(8000))
    proxied = core.connect_get_namespaced_pod_proxy_with_path(f"{pod}:8000", NAMESPACE, path="etc/hostname")
    assert proxied == f"{pod}\n", proxied


def token(core: client.CoreV1Api, api: client.ApiClient) -> None:
    core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": "robot"}})
    request = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600))
    granted = core.create_namespaced_service_account_token("robot", NAMESPACE, request)
    assert granted.status.expiration_timestamp
    settings = client.Configuration()
    settings.host, settings.ssl_ca_cert = api.configuration.host, api.configuration.ssl_ca_cert
    settings.api_key = {"authorization": f"Bearer {granted.status.token}"}
    robot = client.CoreV1Api(client.ApiClient(settings))
    body = refused(403, "Forbidden", robot.list_namespaced_pod, NAMESPACE)
    assert f"system:serviceaccount:{NAMESPACE}:robot" in body["message"]
    me = client.AuthenticationV1Api(robot.api_client).create_self_subject_review(client.V1SelfSubjectReview())
    assert me.status.user_info.username == f"system:serviceaccount:{NAMESPACE}:robot"
    settings.api_key = {"authorization": "Bearer nonsense"}
    refused(401, "Unauthorized", client.CoreV1Api(client.ApiClient(settings)).list_namespaced_pod, NAMESPACE)


def main() -> None:
    config.load_kube_config()
    api = client.ApiClient()
    core = client.CoreV1Api(api)
    manifest = f"{os.environ['HOME']}/manifest.yaml"
    with open(manifest, "w") as out:
        out.write(MANIFEST)
    made = utils.create_from_yaml(api, manifest, namespace=NAMESPACE)
    assert [m[0].kind for m in made] == ["ConfigMap", "Deployment"]
    try:
        utils.create_from_yaml(api, manifest, namespace=NAMESPACE)
        raise AssertionError("the same objects were made twice")
    except utils.FailToCreateError as error:
        assert [e.reason for e in error.api_exceptions] == ["Conflict", "Conflict"]
    objects(core)
    everything_parses(api)
    streams(core, deployment(api))
    token(core, api)


main()
