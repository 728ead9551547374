#!/usr/bin/env python3
"""kr8s, its synchronous side: objects, watch, wait, scale, exec, logs, port-forward, custom kinds. Works in the namespace
$NAMESPACE of $KUBECONFIG."""
import os
import time
import urllib.request

import kr8s
from kr8s.objects import ConfigMap, CustomResourceDefinition, Deployment, Pod, Service, new_class, objects_from_files

from ports import free_port

NAMESPACE = os.environ["NAMESPACE"]
GROUP = f"{NAMESPACE}.kr8s.test"


def objects() -> None:
    made = ConfigMap({"metadata": {"name": "one", "namespace": NAMESPACE, "labels": {"set": "a"}}, "data": {"k": "v"}})
    assert not made.exists()
    made.create()
    assert made.exists() and ConfigMap.get("one", namespace=NAMESPACE).data.k == "v"
    try:
        ConfigMap({"metadata": {"name": "one", "namespace": NAMESPACE}}).create()
        raise AssertionError("it was made twice")
    except kr8s.ServerError as error:
        assert error.response.status_code == 409 and error.status["reason"] == "AlreadyExists"
    made.patch({"data": {"more": "w"}})
    made.patch([{"op": "remove", "path": "/data/k"}], type="json")
    assert dict(made.data) == {"more": "w"}
    made.label(tier="front")
    made.annotate({"example.test/note": "kept"})
    made.refresh()
    assert made.labels["tier"] == "front" and made.annotations["example.test/note"] == "kept"
    made.remove_label("tier")
    assert "tier" not in made.labels
    found = list(kr8s.get("configmaps", namespace=NAMESPACE, label_selector={"set": "a"}))
    assert [c.name for c in found] == ["one"], found
    assert len(list(kr8s.get("configmaps", namespace=NAMESPACE, field_selector="metadata.name=none"))) == 0
    assert {"nodes", "pods", "deployments"} <= {r["name"] for r in kr8s.api().api_resources()}
    assert kr8s.api().version()["major"] == "1" and "apps/v1" in list(kr8s.api().api_versions())
    assert kr8s.whoami()
    # A watch goes on from the version that this copy is of, whatever others did since.
    other = ConfigMap.get("one", namespace=NAMESPACE)
    other.patch({"data": {"more": "x"}})
    other.delete()
    seen = []
    for kind, item in made.watch():
        seen.append((kind, item.data.more))
        if kind == "DELETED":
            break
    assert seen == [("MODIFIED", "x"), ("DELETED", "x")], seen
    try:
        ConfigMap.get("one", namespace=NAMESPACE)
        raise AssertionError("it is still there")
    except kr8s.NotFoundError:
        pass


def pods() -> None:
    pod = Pod.gen(name="web", image="python:3.11", command=["python3", "-u", "-m", "http.server", "8000"], ports=[8000])
    pod.namespace = NAMESPACE
    pod.raw["spec"]["terminationGracePeriodSeconds"] = 0
    pod.raw["spec"]["containers"][0]["readinessProbe"] = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}
    pod.raw["metadata"]["labels"] = {"app": "web"}
    pod.create()
    pod.wait("condition=Ready", timeout=60)
    assert pod.ready()
    done = pod.exec(["sh", "-c", "echo said; echo trouble >&2"])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"said\n", b"trouble\n"), done
    failed = pod.exec(["sh", "-c", "exit 5"], check=False)
    assert failed.returncode == 5, failed
    assert next(pod.logs()).startswith("Serving HTTP")
    assert next(pod.logs(follow=True)).startswith("Serving HTTP")
    with pod.portforward(remote_port=8000, local_port=free_port()) as port:
        for _ in range(3):
            with urllib.request.urlopen(f"http://localhost:{port}/etc/hostname", timeout=20) as answer:
                assert answer.read() == b"web\n"
    service = Service({"metadata": {"name": "web", "namespace": NAMESPACE}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]}})
    service.create()
    for _, slice_ in kr8s.watch("endpointslices", namespace=NAMESPACE, label_selector="kubernetes.io/service-name=web"):
        if any(e.get("conditions", {}).get("ready") for e in slice_.raw.get("endpoints") or []):
            break
    assert service.ready() and [p.name for p in service.ready_pods()] == ["web"]
    assert service.proxy_http_get("/etc/hostname").text == "web\n"
    # Of one of its pods: kr8s does not translate the port.
    with service.portforward(remote_port=8000, local_port=free_port()) as port:
        with urllib.request.urlopen(f"http://localhost:{port}/etc/hostname", timeout=20) as answer:
            assert answer.read() == b"web\n"
    pod.delete()
    pod.wait("delete", timeout=30)


def with_status(item) -> None:
    """kr8s can wait for a condition only of what has a status; a controller makes it a moment after the object."""
    deadline = time.monotonic() + 30
    while "status" not in item.raw and time.monotonic() < deadline:
        item.refresh()


def deployments() -> None:
    labels = {"app": "small"}
    deployment = Deployment(
        {
            "metadata": {"name": "small", "namespace": NAMESPACE},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "terminationGracePeriodSeconds": 0,
                        "containers": [{"name": "main", "image": "python:3.11", "command": ["sleep", "infinity"]}],
                    },
                },
            },
        }
    )
    deployment.create()
    with_status(deployment)
    deployment.wait("condition=Available", timeout=60)
    deployment.scale(2)
    assert deployment.replicas == 2
    deployment.wait("jsonpath='{.status.readyReplicas}'=2", timeout=60)
    assert len(deployment.pods()) == 2
    deployment.delete(propagation_policy="Foreground")
    deployment.wait("delete", timeout=60)
    assert list(kr8s.get("pods", namespace=NAMESPACE, label_selector=labels)) == []


def custom() -> None:
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer"}}}}}
    definition = CustomResourceDefinition(
        {
            "metadata": {"name": f"dials.{GROUP}"},
            "spec": {
                "group": GROUP,
                "scope": "Namespaced",
                "names": {"kind": "Dial", "plural": "dials", "singular": "dial"},
                "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
            },
        }
    )
    definition.create()
    with_status(definition)
    definition.wait("condition=Established", timeout=30)
    dial_class = new_class(kind="Dial", version=f"{GROUP}/v1", namespaced=True)
    dial = dial_class({"metadata": {"name": "d", "namespace": NAMESPACE}, "spec": {"n": 3}})
    dial.create()
    dial.patch({"spec": {"n": 4}})
    # Without a class: the kind is looked up by its group and version.
    assert [d.raw["spec"]["n"] for d in kr8s.get(f"dials.{GROUP}/v1", namespace=NAMESPACE)] == [4]
    dial.delete()
    definition.delete()
    definition.wait("delete", timeout=30)


def files() -> None:
    path = f"{os.environ['HOME']}/kr8s.yaml"
    with open(path, "w") as out:
        out.write("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: first}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: second}\n")
    for item in objects_from_files(path):
        item.namespace = NAMESPACE
        item.create()
        assert item.exists()


objects()
pods()
deployments()
custom()
files()
