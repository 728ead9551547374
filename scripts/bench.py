#!/usr/bin/env python3
"""Benchmarks of one box. Standard library, and the kfp SDK for the pipeline; those of the node are in `bench_node.py`."""
import argparse
import base64
import http.client
import json
import os
import re
import shutil
import ssl
import sqlite3
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.parse

import bench_node
import bench_pipelines


class Box:
    """A box with a data directory of its own, removed at the end."""

    def __init__(self, program: str):
        self.program = program
        self.folder = tempfile.mkdtemp(prefix="kfbox-bench-")
        self.data = os.path.join(self.folder, "data")
        self.settings = (
            "--instance kfbench --address 127.0.0.1:0 --kubernetes-address 127.0.0.1:0 --objects-address 127.0.0.1:0 "
            "--metadata-address 127.0.0.1:0 --registry-address 127.0.0.1:0 --pod-cidr 10.146.0.0/22 --service-cidr 10.147.0.0/16"
        ).split()

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.program, *arguments], env={**os.environ, "KFBOX_DATA_DIR": self.data}, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise SystemExit(f"kfbox {arguments[0]}: {done.stderr}")
        return done.stdout

    def up(self) -> float:
        start = time.perf_counter()
        self.run("up", *self.settings)
        return time.perf_counter() - start

    def status(self) -> dict:
        return json.loads(self.run("status", "--output", "json"))

    def remove(self):
        try:
            self.run("reset", "--yes", *self.settings)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


class Kubernetes:
    """Keep-alive HTTP to the API server, by the administrator's certificate."""

    def __init__(self, box: Box):
        text = box.run("kubeconfig")
        field = lambda name: re.search(rf"{name}:\s*(\S+)", text).group(1)
        url = urllib.parse.urlsplit(field("server"))
        self.host, self.port = url.hostname, url.port
        self.tls = ssl.create_default_context(cadata=base64.b64decode(field("certificate-authority-data")).decode())
        with tempfile.NamedTemporaryFile("wb", suffix=".pem") as pair:
            pair.write(base64.b64decode(field("client-certificate-data")))
            pair.write(base64.b64decode(field("client-key-data")))
            pair.flush()
            self.tls.load_cert_chain(pair.name)

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self.host, self.port, context=self.tls, timeout=120)

    @staticmethod
    def call(connection, method: str, path: str, body=None):
        data = None if body is None else json.dumps(body)
        connection.request(method, path, body=data, headers={"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status >= 300:
            raise SystemExit(f"{method} {path}: {response.status} {answer[:300]!r}")
        return json.loads(answer)

    def watch(self, path: str, seen, stop: threading.Event):
        """Calls `seen(event, arrival)` for each event until `stop` is set."""
        connection = self.connect()
        connection.request("GET", path)
        response = connection.getresponse()

        def read():
            try:
                while not stop.is_set() and (line := response.readline()):
                    seen(json.loads(line), time.perf_counter())
            except TimeoutError:
                if not stop.is_set():
                    raise

        threading.Thread(target=read, daemon=True).start()


def millis(values, quantile: float) -> float:
    values = sorted(values)
    return 1000 * values[min(len(values) - 1, int(len(values) * quantile))]


def config_map(name: str) -> dict:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": "v" * 100}}


def writes(k: Kubernetes, path: str, count: int, clients: int) -> tuple[float, list[float]]:
    """Durable creates a second, and each one's time."""
    names = iter([f"w{clients}-{n}" for n in range(count)])
    lock, times = threading.Lock(), []
    connections = [k.connect() for _ in range(clients)]
    for connection in connections:
        connection.connect()

    def work(connection):
        while True:
            with lock:
                name = next(names, None)
            if name is None:
                return
            start = time.perf_counter()
            k.call(connection, "POST", path, config_map(name))
            took = time.perf_counter() - start
            with lock:
                times.append(took)

    threads = [threading.Thread(target=work, args=(c,)) for c in connections]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(times) / (time.perf_counter() - start), times


def watch_latency(k: Kubernetes, path: str, count: int) -> list[float]:
    """From sending a create to its event at a watcher on another connection."""
    connection, seen, stop = k.connect(), {}, threading.Event()
    version = k.call(connection, "GET", path + "?limit=1")["metadata"]["resourceVersion"]
    arrived = threading.Condition()

    def note(event, when):
        with arrived:
            seen[event["object"]["metadata"]["name"]] = when
            arrived.notify_all()

    k.watch(f"{path}?watch=1&resourceVersion={version}&timeoutSeconds=60", note, stop)
    latencies = []
    for n in range(count):
        name = f"watched-{n}"
        start = time.perf_counter()
        k.call(connection, "POST", path, config_map(name))
        with arrived:
            arrived.wait_for(lambda: name in seen, timeout=10)
        latencies.append(seen[name] - start)
    stop.set()
    return latencies


def pods(k: Kubernetes, namespace: str, count: int, command: list[str]) -> list[float]:
    """From sending a pod to its phase Succeeded, one after the other."""
    path, connection = f"/api/v1/namespaces/{namespace}/pods", k.connect()
    finished, stop, arrived = {}, threading.Event(), threading.Condition()

    def note(event, when):
        pod = event["object"]
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            with arrived:
                finished.setdefault(pod["metadata"]["name"], (pod["status"]["phase"], when))
                arrived.notify_all()

    k.watch(f"{path}?watch=1&timeoutSeconds=300", note, stop)
    took = []
    for n in range(count):
        name = f"pod-{n}"
        container = {"name": "main", "image": "python:3.11", "command": command, "imagePullPolicy": "IfNotPresent"}
        spec = {"restartPolicy": "Never", "containers": [container], "terminationGracePeriodSeconds": 0}
        start = time.perf_counter()
        k.call(connection, "POST", path, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
        with arrived:
            if not arrived.wait_for(lambda: name in finished, timeout=60):
                raise SystemExit(f"the pod {name} did not finish")
        phase, when = finished[name]
        if phase != "Succeeded":
            raise SystemExit(f"the pod {name} ended {phase}")
        took.append(when - start)
    stop.set()
    return took


def crun(image: str, folder: str, count: int, command: list[str]) -> list[float]:
    """`crun run` of the same command on the same image, unpacked once."""
    layout, bundle = os.path.join(folder, "layout"), os.path.join(folder, "bundle")
    subprocess.run(["skopeo", "copy", "-q", f"oci-archive:{image}", f"oci:{layout}:it"], check=True)
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:it", bundle], check=True, capture_output=True)
    path = os.path.join(bundle, "config.json")
    with open(path) as source:
        config = json.load(source)
    config["process"]["args"], config["process"]["terminal"] = command, False
    # Limits that this machine may not be allowed to raise are not what is measured.
    config["process"].pop("rlimits", None)
    with open(path, "w") as out:
        json.dump(config, out)
    # crun refuses a machine that has both versions of control groups; without the second one in sight it works.
    hybrid = os.path.ismount("/sys/fs/cgroup/unified")
    hide = ["unshare", "-m", "sh", "-c", 'umount /sys/fs/cgroup/unified; exec "$@"', "sh"] if hybrid else []
    took = []
    for n in range(count):
        run = ["crun", "run", "--bundle", bundle, f"kfbench-{os.getpid()}-{n}"]
        start = time.perf_counter()
        subprocess.run([*hide, *run], check=True, stdin=subprocess.DEVNULL)
        took.append(time.perf_counter() - start)
    return took


def first_starts(figure, args) -> None:
    first = []
    for _ in range(args.starts):
        box = Box(args.kfbox)
        try:
            first.append(box.up())
        finally:
            box.remove()
    figure("up to ready, empty data directory", statistics.median(first), "s", f"median of {args.starts}")


def restarts(figure, box: Box, args) -> None:
    again = []
    for _ in range(args.starts):
        box.run("down")
        again.append(box.up())
    figure("up to ready, initialised data directory", statistics.median(again), "s", f"median of {args.starts}")
    time.sleep(10)
    figure("resident memory, idle for 10 s", box.status()["residentBytes"] / 2**20, "MiB", "no user pods")


def api(figure, k: Kubernetes, args) -> None:
    k.call(k.connect(), "POST", "/api/v1/namespaces", {"metadata": {"name": "bench-writes"}})
    path = "/api/v1/namespaces/bench-writes/configmaps"
    for clients in (1, 16):
        rate, times = writes(k, path, args.writes, clients)
        figure(f"API creates, durable, {clients} clients", rate, "/s", f"p99 {millis(times, 0.99):.1f} ms")
    latencies = watch_latency(k, path, 300)
    figure("watch: create to event, p50", millis(latencies, 0.5), "ms")
    figure("watch: create to event, p99", millis(latencies, 0.99), "ms")


def containers(figure, box: Box, k: Kubernetes, args) -> float:
    """What `crun run` takes, in seconds."""
    box.run("image", "load", args.image)
    connection = k.connect()
    for namespace in ("bench", "bench-pods"):
        k.call(connection, "POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    # The first pod unpacks the image.
    pods(k, "bench", 1, ["true"])
    ours = pods(k, "bench-pods", args.containers, ["true"])
    theirs = crun(args.image, box.folder, args.containers, ["true"])
    figure("pod: create to Succeeded, median", 1000 * statistics.median(ours), "ms", "image present")
    figure("crun run of the same, median", 1000 * statistics.median(theirs), "ms")
    figure("ratio", statistics.median(ours) / statistics.median(theirs), "x", "a pod also has a network and an API")
    return statistics.median(theirs)


def many_runs(box: Box, count: int):
    """With `count` ended runs in the database: the start, and pages of 20 as the SDK asks for them. Yields figures."""
    import kfp
    from kfp import dsl

    @dsl.container_component
    def nothing():
        return dsl.ContainerSpec(image="python:3.11", command=["true"])

    @dsl.pipeline(name="one")
    def one():
        nothing()

    def client():
        return kfp.Client(host=box.status()["url"] + "/pipeline", existing_token=box.run("token").strip())

    namespace = "kubeflow-user-example-com"
    run_id = client().create_run_from_pipeline_func(one, arguments={}, namespace=namespace).run_id
    client().wait_for_run_completion(run_id, timeout=300, sleep_duration=1)
    box.run("down")
    # Copies of a real run, each a second older.
    database = sqlite3.connect(os.path.join(box.data, "pipelines.db"))
    columns = [c[1] for c in database.execute("PRAGMA table_info(runs)")]
    made = {
        "id": "printf('%08x-0000-4000-8000-%012x', n, n)",
        "display_name": "'run ' || n",
        "created_at": "created_at - 1000 * n",
        "storage_state": "CASE WHEN n % 10 = 0 THEN 'ARCHIVED' ELSE 'AVAILABLE' END",
    }
    with database:
        database.execute(
            f"WITH RECURSIVE many (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many WHERE n < {count}) "
            f"INSERT INTO runs ({', '.join(columns)}) SELECT {', '.join(made.get(c, c) for c in columns)} "
            "FROM runs, many WHERE id = ?",
            (run_id,),
        )
    database.close()
    yield f"up to ready, {count} runs", box.up(), "s", ""
    token = box.run("token").strip()
    address = urllib.parse.urlsplit(box.status()["url"])
    connection = http.client.HTTPConnection(address.hostname, address.port)

    def page(**query) -> dict:
        path = f"/pipeline/apis/v2beta1/runs?{urllib.parse.urlencode({'namespace': namespace, 'page_size': 20, **query})}"
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise SystemExit(f"{path}: {response.status} {answer[:300]!r}")
        return json.loads(answer)

    available = {"predicates": [{"key": "storage_state", "operation": "EQUALS", "string_value": "AVAILABLE"}]}
    named = {"predicates": [{"key": "name", "operation": "IS_SUBSTRING", "string_value": "99"}]}
    for name, query in [
        ("newest first", {"sort_by": "created_at desc"}),
        ("not archived, newest first", {"sort_by": "created_at desc", "filter": json.dumps(available)}),
        ("by name", {"sort_by": "name"}),
        ("part of a name", {"filter": json.dumps(named)}),
    ]:
        took, token_of_page = [], ""
        for _ in range(30):
            start = time.perf_counter()
            token_of_page = page(page_token=token_of_page, **query).get("next_page_token", "")
            took.append(time.perf_counter() - start)
        yield f"page of {count} runs, {name}, median", 1000 * statistics.median(took), "ms", f"p99 {millis(took, 0.99):.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kfbox", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--json")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--writes", type=int, default=2000)
    parser.add_argument("--containers", type=int, default=20)
    parser.add_argument("--pods", type=int, default=100, help="how many are started at once")
    parser.add_argument("--chain", type=int, default=100, help="steps one after the other")
    parser.add_argument("--fan", type=int, default=1000, help="steps of one loop")
    parser.add_argument("--parallel", type=int, default=50, help="of them at once")
    parser.add_argument("--active", type=int, default=1000, help="tasks that are active while memory is measured")
    parser.add_argument("--runs", type=int, default=10_000, help="ended runs in the database")
    parser.add_argument("--only", choices=["pipelines"], help="this part alone")
    parser.add_argument("--apiserver", help="the API server's own benchmarks: kfbox-apiserver's example `bench`")
    parser.add_argument("--updates", type=int, default=100_000)
    args = parser.parse_args()
    figures = {}

    def figure(name: str, value: float, unit: str, note: str = ""):
        figures[name] = {"value": round(value, 4), "unit": unit}
        print(f"{name:<46} {value:>10.3f} {unit:<6} {note}", flush=True)

    if args.only is None:
        first_starts(figure, args)
    box = Box(args.kfbox)
    try:
        box.up()
        if args.only is None:
            restarts(figure, box, args)
        k = Kubernetes(box)
        if args.only is None:
            api(figure, k, args)
        container = containers(figure, box, k, args)
        if args.only is None:
            bench_node.measure(box, k, args.image, figure, args.containers, args.pods)
        bench_pipelines.measure(figure, box, "kubeflow-user-example-com", args, container)
        for name, value, unit, note in many_runs(box, args.runs):
            figure(name, value, unit, note)
        figure("resident memory, after all this", box.status()["residentBytes"] / 2**20, "MiB")
    finally:
        box.remove()

    if args.apiserver:
        phases = ["creates=4000", f"updates={args.updates}", "apply=2000", "rbac=1000", "watchers=500", "list=10000"]
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            subprocess.run([args.apiserver, *phases, "--json", out.name], check=True)
            figures.update(json.load(out))
    if args.json:
        with open(args.json, "w") as out:
            json.dump(figures, out, indent=1)


if __name__ == "__main__":
    main()
