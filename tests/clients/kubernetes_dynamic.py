#!/usr/bin/env python3
"""The Python `kubernetes` client's dynamic side, on built-in kinds and on a definition made here; and watches: resumed,
ended, too old, and a loop as an informer has it. Works in the namespace $NAMESPACE of $KUBECONFIG."""
import os
import threading

from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import (
    ConflictError, NotFoundError, ResourceNotFoundError, UnprocessibleEntityError,
)

NAMESPACE = os.environ["NAMESPACE"]
GROUP = f"{NAMESPACE}.dynamic.test"
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"gauges.{GROUP}"},
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"kind": "Gauge", "plural": "gauges", "singular": "gauge"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "required": ["level"],
                                "properties": {
                                    "level": {"type": "integer", "maximum": 10},
                                    "unit": {"type": "string", "default": "m"},
                                },
                            },
                            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                        },
                    }
                },
            }
        ],
    },
}


def builtin(dynamic: DynamicClient) -> None:
    maps = dynamic.resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "dyn"}, "data": {"a": "1"}}
    made = maps.create(body=body, namespace=NAMESPACE)
    assert made.metadata.uid and made.data.a == "1"
    try:
        maps.create(body=body, namespace=NAMESPACE)
        raise AssertionError("it was made twice")
    except ConflictError as error:
        assert (error.status, error.summary()) == (409, 'configmaps "dyn" already exists')
    patched = maps.patch(name="dyn", namespace=NAMESPACE, body={"data": {"b": "2"}}, content_type="application/merge-patch+json")
    assert patched.data.to_dict() == {"a": "1", "b": "2"}
    applied = maps.server_side_apply(
        name="dyn", namespace=NAMESPACE, field_manager="python",
        body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "dyn"}, "data": {"c": "3"}},
    )
    assert applied.data.to_dict() == {"a": "1", "b": "2", "c": "3"}
    assert {m.manager: m.operation for m in applied.metadata.managedFields}["python"] == "Apply"
    try:
        maps.server_side_apply(
            name="dyn", namespace=NAMESPACE, field_manager="other",
            body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "dyn"}, "data": {"c": "4"}},
        )
        raise AssertionError("another's field was taken without force")
    except ConflictError as error:
        assert "conflict with \"python\": .data.c" in error.summary(), error.summary()
    forced = maps.server_side_apply(
        name="dyn", namespace=NAMESPACE, field_manager="other", force_conflicts=True,
        body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "dyn"}, "data": {"c": "4"}},
    )
    assert forced.data.c == "4"
    assert [m.metadata.name for m in maps.get(namespace=NAMESPACE, field_selector="metadata.name=dyn").items] == ["dyn"]
    deployments = dynamic.resources.get(api_version="apps/v1", kind="Deployment")
    assert deployments.subresources["scale"] and deployments.subresources["status"]
    assert {r.kind for r in dynamic.resources.search(group="apps") if not r.kind.endswith("List")} >= {"Deployment", "DaemonSet"}
    maps.delete(name="dyn", namespace=NAMESPACE)
    try:
        maps.get(name="dyn", namespace=NAMESPACE)
        raise AssertionError("it is still there")
    except NotFoundError:
        pass


def custom(dynamic: DynamicClient) -> None:
    try:
        dynamic.resources.get(api_version=f"{GROUP}/v1", kind="Gauge")
        raise AssertionError("the kind is known before its definition")
    except ResourceNotFoundError:
        pass
    definitions = dynamic.resources.get(api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition")
    definitions.create(body=DEFINITION)
    for event in definitions.watch(name=f"gauges.{GROUP}", timeout=30):
        conditions = {c.type: c.status for c in (event["object"].status.conditions or [])}
        if conditions.get("Established") == "True":
            break
    dynamic.resources.invalidate_cache()
    gauges = dynamic.resources.get(api_version=f"{GROUP}/v1", kind="Gauge")

    def gauge(name: str, **spec) -> dict:
        return {"apiVersion": f"{GROUP}/v1", "kind": "Gauge", "metadata": {"name": name}, "spec": spec}

    made = gauges.create(body=gauge("one", level=3), namespace=NAMESPACE)
    assert made.spec.unit == "m" and made.metadata.generation == 1
    for spec in ({"level": 11}, {"level": "three"}, {}):
        try:
            gauges.create(body=gauge("bad", **spec), namespace=NAMESPACE)
            raise AssertionError(f"{spec} was taken")
        except UnprocessibleEntityError as error:
            assert "spec.level" in error.summary(), error.summary()
    status = gauges.status.patch(name="one", namespace=NAMESPACE, body={"status": {"seen": {"deep": [1, 2]}}, "spec": {"level": 9}}, content_type="application/merge-patch+json")
    assert status.status.seen.deep == [1, 2] and status.spec.level == 3
    applied = gauges.server_side_apply(name="two", namespace=NAMESPACE, body=gauge("two", level=4), field_manager="python")
    assert applied.spec.level == 4
    jsonp = gauges.patch(name="two", namespace=NAMESPACE, body=[{"op": "replace", "path": "/spec/level", "value": 5}], content_type="application/json-patch+json")
    assert jsonp.spec.level == 5 and jsonp.metadata.generation == 2
    assert sorted(g.metadata.name for g in gauges.get(namespace=NAMESPACE).items) == ["one", "two"]
    for event in gauges.watch(namespace=NAMESPACE, timeout=30):
        if event["type"] == "ADDED" and event["object"].metadata.name == "two":
            gauges.delete(name="two", namespace=NAMESPACE)
        if event["type"] == "DELETED":
            assert event["object"].spec.level == 5
            break
    definitions.delete(name=f"gauges.{GROUP}")
    for event in definitions.watch(name=f"gauges.{GROUP}", timeout=30):
        if event["type"] == "DELETED":
            break


def watches(core: client.CoreV1Api) -> None:
    def make(name: str, value: str = "0") -> str:
        made = core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": name, "labels": {"w": "1"}}, "data": {"v": value}})
        return made.metadata.resource_version

    def stream(**kwargs):
        return watch.Watch().stream(core.list_namespaced_config_map, NAMESPACE, label_selector="w=1", timeout_seconds=30, **kwargs)

    first = make("w-0")
    for n in range(1, 6):
        make(f"w-{n}")
    # From a version on: exactly what came after it, in order, once.
    seen = []
    for event in stream(resource_version=first):
        seen.append(event["object"].metadata.name)
        if len(seen) == 5:
            break
    assert seen == [f"w-{n}" for n in range(1, 6)], seen
    # Objects that leave the selection are seen to go.
    last = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    core.patch_namespaced_config_map("w-1", NAMESPACE, {"metadata": {"labels": {"w": "0"}}})
    event = next(iter(stream(resource_version=last)))
    assert (event["type"], event["object"].metadata.name) == ("DELETED", "w-1"), event
    # Selected by field, from the start: the one object, then its changes.
    watching = watch.Watch()
    types = []
    for event in watching.stream(core.list_namespaced_config_map, NAMESPACE, field_selector="metadata.name=w-2", timeout_seconds=30):
        types.append(event["type"])
        if event["type"] == "ADDED":
            core.patch_namespaced_config_map("w-2", NAMESPACE, {"data": {"v": "1"}})
        if event["type"] == "MODIFIED":
            core.delete_namespaced_config_map("w-2", NAMESPACE)
        if event["type"] == "DELETED":
            watching.stop()
    assert types == ["ADDED", "MODIFIED", "DELETED"], types
    # The server ends a watch at its time, and the client's loop ends with it.
    assert [e["type"] for e in watch.Watch().stream(core.list_namespaced_config_map, NAMESPACE, label_selector="w=none", timeout_seconds=1)] == []
    bookmarks = [e for e in watch.Watch().stream(
        core.list_namespaced_config_map, NAMESPACE, allow_watch_bookmarks=True, send_initial_events=True,
        resource_version_match="NotOlderThan", timeout_seconds=2)]
    ends = [e["raw_object"] for e in bookmarks if e["type"] == "BOOKMARK"]
    assert ends[0]["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true", ends


def informer(core: client.CoreV1Api) -> None:
    """List, then watch on from there, while others write: at the end both know the same."""
    known, done = {}, threading.Event()

    def write() -> None:
        other = client.CoreV1Api(client.ApiClient())
        for n in range(60):
            name = f"i-{n % 12}"
            try:
                other.patch_namespaced_config_map(name, NAMESPACE, {"data": {"v": str(n)}})
            except ApiException as error:
                assert error.status == 404
                other.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": name, "labels": {"i": "1"}}, "data": {"v": str(n)}})
            if n % 7 == 6:
                other.delete_namespaced_config_map(name, NAMESPACE)
        other.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "i-end", "labels": {"i": "1"}}, "data": {"v": "end"}})
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    listed = core.list_namespaced_config_map(NAMESPACE, label_selector="i=1")
    known = {item.metadata.name: item.data["v"] for item in listed.items}
    version = listed.metadata.resource_version
    while "i-end" not in known:
        # Short watches, each resumed where the last one ended.
        watching = watch.Watch()
        for event in watching.stream(core.list_namespaced_config_map, NAMESPACE, label_selector="i=1", resource_version=version, timeout_seconds=1):
            item = event["object"]
            version = item.metadata.resource_version
            if event["type"] == "DELETED":
                known.pop(item.metadata.name)
            else:
                known[item.metadata.name] = item.data["v"]
            if item.metadata.name == "i-end":
                watching.stop()
    writer.join()
    assert done.is_set()
    now = {item.metadata.name: item.data["v"] for item in core.list_namespaced_config_map(NAMESPACE, label_selector="i=1").items}
    assert known == now, (known, now)


def main() -> None:
    config.load_kube_config()
    api = client.ApiClient()
    core = client.CoreV1Api(api)
    dynamic = DynamicClient(api, cache_file=f"{os.environ['HOME']}/discovery.json")
    builtin(dynamic)
    custom(dynamic)
    watches(core)
    informer(core)


main()
