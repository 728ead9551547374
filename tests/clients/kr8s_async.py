#!/usr/bin/env python3
"""kr8s on asyncio: many things at once. Works in the namespace $NAMESPACE of $KUBECONFIG."""
import asyncio
import os

import httpx
import kr8s.asyncio
from kr8s.asyncio.objects import ConfigMap, Pod

from ports import free_port

NAMESPACE = os.environ["NAMESPACE"]
COUNT = 30


async def maps(api) -> None:
    """Writers, and watchers that end up knowing all that was written, whenever they began."""

    async def watcher() -> set[str]:
        changed = set()
        async for kind, item in api.watch("configmaps", namespace=NAMESPACE, label_selector="many=yes"):
            if kind in ("ADDED", "MODIFIED") and item.raw.get("data", {}).get("n") == "1":
                changed.add(item.name)
            if len(changed) == COUNT:
                return changed

    watchers = [asyncio.create_task(watcher()) for _ in range(3)]
    items = [
        await ConfigMap({"metadata": {"name": f"m-{n}", "namespace": NAMESPACE, "labels": {"many": "yes"}}}, api=api)
        for n in range(COUNT)
    ]
    await asyncio.gather(*(item.create() for item in items))
    await asyncio.gather(*(item.patch({"data": {"n": "1"}}) for item in items))
    seen = await asyncio.wait_for(asyncio.gather(*watchers), 60)
    assert seen[0] == seen[1] == seen[2] == {f"m-{n}" for n in range(COUNT)}
    listed = [c async for c in api.get("configmaps", namespace=NAMESPACE, label_selector="many=yes")]
    assert len(listed) == COUNT
    await asyncio.gather(*(item.delete() for item in items))


async def pods(api) -> None:
    made = []
    for n in range(2):
        pod = await Pod.gen(name=f"p-{n}", image="python:3.11", command=["python3", "-u", "-m", "http.server", "8000"], ports=[8000])
        pod.namespace = NAMESPACE
        pod.raw["spec"]["terminationGracePeriodSeconds"] = 0
        pod.raw["spec"]["containers"][0]["readinessProbe"] = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}
        made.append(pod)
    await asyncio.gather(*(pod.create() for pod in made))
    await asyncio.gather(*(pod.wait("condition=Ready", timeout=60) for pod in made))

    async def use(pod, n: int) -> None:
        done = await pod.exec(["echo", f"word {n}"])
        assert done.stdout == f"word {n}\n".encode(), done
        async with pod.portforward(remote_port=8000, local_port=free_port()) as port, httpx.AsyncClient() as http:
            answers = await asyncio.gather(*(http.get(f"http://localhost:{port}/etc/hostname") for _ in range(4)))
            assert {a.text for a in answers} == {f"{pod.name}\n"}
        lines = [line async for line in pod.logs(tail_lines=2)]
        assert len(lines) == 2 and all("GET" in line for line in lines), lines

    await asyncio.gather(*(use(pod, n) for n, pod in enumerate(made) for _ in range(3)))
    await asyncio.gather(*(pod.delete() for pod in made))
    await asyncio.gather(*(pod.wait("delete", timeout=30) for pod in made))


async def main() -> None:
    api = await kr8s.asyncio.api()
    await asyncio.gather(maps(api), pods(api))


asyncio.run(main())
