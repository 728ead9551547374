"""Benchmarks of the node: containers against crun and runc, pods at once, a shim's memory, Services, images."""
import base64
import glob
import hashlib
import http.client
import io
import json
import os
import shutil
import statistics
import subprocess
import tarfile
import threading
import time
import uuid

# The first user's namespace, in whose name the registry holds images.
PROFILE = "kubeflow-user-example-com"
# One loop for all runtimes, so that each is measured alike: what a shell's start costs is in none of the times. They take
# turns a row at a time: moving a process into a cgroup makes the kernel wait, but not again soon after, so each would profit
# from the one before it.
LOOP = """
umount /sys/fs/cgroup/unified 2>/dev/null
first=1
while [ $first -le %(rounds)d ]; do
  last=$((first + 9))
  for what in %(names)s; do
    for n in $(seq $first $last); do
      [ $n -le %(rounds)d ] || break
      start=$(date +%%s%%N)
      case $what in
%(cases)s
      esac || exit 1
      echo $what $(($(date +%%s%%N) - start))
    done
  done
  first=$((last + 1))
done
"""


def pod(name: str, command: list[str], **spec) -> dict:
    container = {"name": "main", "image": "python:3.11", "command": command, "imagePullPolicy": "IfNotPresent"}
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"name": name}}, "spec": spec}


def settled(k, namespace: str, names: set, phases: set, limit: float = 120) -> dict:
    """Waits for every pod to be in one of the phases; the pods by name."""
    path, stop, arrived, seen = f"/api/v1/namespaces/{namespace}/pods", threading.Event(), threading.Condition(), {}

    def note(event, _):
        if event["object"].get("status", {}).get("phase") in phases:
            with arrived:
                seen[event["object"]["metadata"]["name"]] = event["object"]
                arrived.notify_all()

    k.watch(f"{path}?watch=1&timeoutSeconds=300", note, stop)
    with arrived:
        if not arrived.wait_for(lambda: names <= seen.keys(), timeout=limit):
            raise SystemExit(f"these pods did not get to {phases}: {sorted(names - seen.keys())}")
    stop.set()
    return seen


def unpacked(image: str, folder: str) -> str:
    """The image as a bundle for crun and runc, with a specification that runs `/bin/true`."""
    layout, bundle = os.path.join(folder, "runtimes-layout"), os.path.join(folder, "runtimes-bundle")
    subprocess.run(["skopeo", "copy", "-q", f"oci-archive:{image}", f"oci:{layout}:it"], check=True)
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:it", bundle], check=True, capture_output=True)
    return bundle


def runtimes(box, k, namespace: str, image: str, rounds: int) -> dict[str, list[float]]:
    """Create, start and exit of `/bin/true` by the shim, crun and runc in turn, with the same specification."""
    connection = k.connect()
    k.call(connection, "POST", f"/api/v1/namespaces/{namespace}/pods", pod("template", ["/bin/true"]))
    made = settled(k, namespace, {"template"}, {"Succeeded"})["template"]
    [source] = glob.glob(f"{box.data}/pods/{made['metadata']['uid']}/containers/main/0")
    with open(f"{source}/config.json") as file:
        spec = json.load(file)
    with open(f"{source}/shim.json") as file:
        shim = json.load(file)
    # Everything of the pod's own is gone with it: namespaces are made anew, as crun and runc must too, and its files in
    # /etc are left out.
    spec["linux"]["namespaces"] = [{"type": kind} for kind in ("mount", "pid", "network", "ipc", "uts")]
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "bind"]
    spec["linux"].pop("sysctl", None)
    bundle = unpacked(image, box.folder)
    root = os.path.join(box.folder, "runtimes")
    for n in range(1, rounds + 1):
        state = os.path.join(root, str(n))
        os.makedirs(state)
        overlay = {**shim["overlay"], **{name: f"{state}/{name}" for name in ("upper", "work")}, "target": f"{state}/rootfs"}
        own = {"id": uuid.uuid4().hex * 2, "runtimeRoot": f"{root}/run", "cgroup": f"/kfbench-shim/{n}",
               "logPath": f"{state}/log", "terminationLog": f"{state}/termination-log"}
        spec["root"]["path"], spec["linux"]["cgroupsPath"] = f"{state}/rootfs", own["cgroup"]
        for name, content in (("config.json", spec), ("shim.json", {**shim, **own, "overlay": overlay})):
            with open(os.path.join(state, name), "w") as file:
                json.dump(content, file)
    spec["root"]["path"] = "rootfs"
    for name in ("crun", "runc"):
        spec["linux"]["cgroupsPath"] = f"/kfbench-{name}"
        folder = os.path.join(box.folder, f"bundle-{name}")
        os.makedirs(folder)
        os.symlink(os.path.join(bundle, "rootfs"), os.path.join(folder, "rootfs"))
        # Neither takes a link as root.
        spec["root"]["path"] = os.path.join(bundle, "rootfs")
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump(spec, file)
    [shim_program] = glob.glob(f"{box.data}/shim/kfbox-shim-*")
    commands = {"shim": f"{shim_program} --state-dir {root}/$n >/dev/null"}
    for name in ("crun", "runc"):
        if shutil.which(name):
            commands[name] = f"{name} run --bundle {box.folder}/bundle-{name} kfbench-{os.getpid()}-$n"
    cases = "\n".join(f"      {name}) {command} ;;" for name, command in commands.items())
    script = LOOP % {"rounds": rounds, "names": " ".join(commands), "cases": cases}
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise SystemExit(f"the runtimes: {done.stderr}")
    for hierarchy in glob.glob("/sys/fs/cgroup/*/kfbench-shim") + glob.glob("/sys/fs/cgroup/kfbench-shim"):
        os.rmdir(hierarchy)
    took = {}
    for line in done.stdout.splitlines():
        name, nanoseconds = line.split()
        took.setdefault(name, []).append(int(nanoseconds) / 1e9)
    return took


def at_once(k, namespace: str, count: int) -> float:
    """Seconds from the first create of so many pods that do nothing until the last has succeeded."""
    names = iter([f"many-{n}" for n in range(count)])
    lock = threading.Lock()

    def work(connection):
        while True:
            with lock:
                name = next(names, None)
            if name is None:
                return
            k.call(connection, "POST", f"/api/v1/namespaces/{namespace}/pods", pod(name, ["/bin/true"]))

    connections = [k.connect() for _ in range(8)]
    start = time.perf_counter()
    threads = [threading.Thread(target=work, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    settled(k, namespace, {f"many-{n}" for n in range(count)}, {"Succeeded"}, limit=300)
    return time.perf_counter() - start


def shim_memory(box, k, namespace: str, count: int) -> list[int]:
    """Private bytes of the shims of containers that run and are left alone."""
    connection = k.connect()
    names = {f"idle-{n}" for n in range(count)}
    for name in names:
        k.call(connection, "POST", f"/api/v1/namespaces/{namespace}/pods", pod(name, ["sleep", "infinity"]))
    running = settled(k, namespace, names, {"Running"})
    private = []
    for name in names:
        with open(f"{box.data}/pods/{running[name]['metadata']['uid']}/containers/main/0/started.json") as file:
            process = json.load(file)["shim"]["pid"]
        with open(f"/proc/{process}/smaps_rollup") as file:
            private.append(sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_")))
        gone(k, namespace, name)
    return private


ECHO = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(self.request.recv(64))
socketserver.TCPServer.request_queue_size = 128
socketserver.TCPServer(('0.0.0.0', 7), Echo).serve_forever()
"""
ASK = """
import socket, sys, time
def once(host):
    start = time.perf_counter()
    with socket.create_connection((host, 7), timeout=5) as s:
        s.sendall(b'x' * 64)
        assert s.recv(64)
    return time.perf_counter() - start
direct, service, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
deadline = time.time() + 30
for host in (direct, service):
    while True:
        try:
            once(host)
            break
        except OSError:
            assert time.time() < deadline
            time.sleep(0.1)
times = {direct: [], service: []}
for _ in range(rounds):
    for host in times:
        times[host].append(once(host))
for host in (direct, service):
    print(sorted(times[host])[rounds // 2])
"""


def service(k, namespace: str, rounds: int) -> tuple[float, float]:
    """Median seconds of a connection, a word and its echo: to the pod directly, and to its Service; from another pod."""
    connection = k.connect()
    path = f"/api/v1/namespaces/{namespace}"
    k.call(connection, "POST", f"{path}/pods", pod("echo", ["python3", "-c", ECHO]))
    address = settled(k, namespace, {"echo"}, {"Running"})["echo"]["status"]["podIP"]
    wanted = {"metadata": {"name": "echo"}, "spec": {"selector": {"name": "echo"}, "ports": [{"port": 7}]}}
    made = k.call(connection, "POST", f"{path}/services", {"apiVersion": "v1", "kind": "Service", **wanted})
    command = ["python3", "-c", ASK, address, made["spec"]["clusterIP"], str(rounds)]
    k.call(connection, "POST", f"{path}/pods", pod("ask", command))
    phase = settled(k, namespace, {"ask"}, {"Succeeded", "Failed"})["ask"]["status"]["phase"]
    connection.request("GET", f"{path}/pods/ask/log")
    log = connection.getresponse().read().decode()
    if phase != "Succeeded":
        raise SystemExit(f"the pod that asks ended {phase}: {log}")
    gone(k, namespace, "echo")
    direct, through = (float(line) for line in log.split())
    return direct, through


def gone(k, namespace: str, name: str) -> None:
    """Deletes a pod and waits until nothing of it is left."""
    connection, path = k.connect(), f"/api/v1/namespaces/{namespace}/pods/{name}"
    k.call(connection, "DELETE", f"{path}?gracePeriodSeconds=0")
    while True:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        if response.status == 404:
            return
        time.sleep(0.05)


def images(box, image: str, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds from an archive to unpacked layers: ours (verified, flushed to the disk), and skopeo with umoci."""
    ours, theirs = [], []
    for n in range(rounds):
        before = len(os.listdir(f"{box.data}/images/layers"))
        box.run("image", "rm", "python:3.11")
        if len(os.listdir(f"{box.data}/images/layers")) == before:
            raise SystemExit("the image's layers are still there: something runs from them")
        start = time.perf_counter()
        box.run("image", "load", image)
        ours.append(time.perf_counter() - start)
        folder = os.path.join(box.folder, f"unpack-{n}")
        os.makedirs(folder)
        start = time.perf_counter()
        unpacked(image, folder)
        theirs.append(time.perf_counter() - start)
        shutil.rmtree(folder)
    return ours, theirs


def push(box, namespace: str, name: str, layer: str, digest: str, diff_id: str) -> None:
    """An image of one layer into the embedded registry, as clients push: two blobs, and the manifest that names them."""
    connection = http.client.HTTPConnection(box.status()["addresses"]["registry"], timeout=600)
    basic = base64.b64encode(f"any:{box.run('token').strip()}".encode()).decode()

    def call(method: str, path: str, body=None, **headers) -> str:
        connection.request(method, path, body=body, headers={"Authorization": f"Basic {basic}", **headers})
        response = connection.getresponse()
        answer = response.read()
        if response.status >= 300:
            raise SystemExit(f"{method} {path}: {response.status} {answer[:300]!r}")
        return response.headers.get("Location", "")

    def blob(body, length: int, sha: str) -> None:
        at = call("POST", f"/v2/{namespace}/{name}/blobs/uploads/", **{"Content-Length": "0"})
        at = at[at.index("/v2/") :]
        call("PUT", f"{at}{'&' if '?' in at else '?'}digest={sha}", body, **{"Content-Length": str(length)})

    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = json.dumps({"architecture": machine, "os": "linux", "config": {"Cmd": ["/bin/true"]},
                         "rootfs": {"type": "layers", "diff_ids": [diff_id]}}).encode()
    config_digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    size = os.path.getsize(layer)
    with open(layer, "rb") as file:
        blob(file, size, digest)
    blob(config, len(config), config_digest)
    kind = "application/vnd.oci.image"
    manifest = {"schemaVersion": 2, "mediaType": f"{kind}.manifest.v1+json",
                "config": {"mediaType": f"{kind}.config.v1+json", "digest": config_digest, "size": len(config)},
                "layers": [{"mediaType": f"{kind}.layer.v1.tar", "digest": digest, "size": size}]}
    call("PUT", f"/v2/{namespace}/{name}/manifests/1", json.dumps(manifest), **{"Content-Type": manifest["mediaType"]})


def large_pull(box, namespace: str, rounds: int, files: int = 1024) -> tuple[list[float], list[float]]:
    """Seconds until an image of 1 GiB, in files of 1 MiB, has come from the embedded registry to where containers run from
    it, verified and on the disk; and those that writing and flushing as much takes there."""
    layer, hasher = os.path.join(box.folder, "large.tar"), hashlib.sha256()
    with tarfile.open(layer, "w") as tar:
        for n in range(files):
            info = tarfile.TarInfo(f"file-{n}")
            info.size = 1 << 20
            tar.addfile(info, io.BytesIO(os.urandom(info.size)))
    with open(layer, "rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    digest = f"sha256:{hasher.hexdigest()}"
    push(box, namespace, "large", layer, digest, digest)
    name, pulls, writes = f"registry.kfbox.local/{namespace}/large:1", [], []
    for n in range(rounds):
        start = time.perf_counter()
        box.run("image", "pull", name)
        pulls.append(time.perf_counter() - start)
        box.run("image", "rm", name)
        path, chunk = os.path.join(box.folder, "written"), os.urandom(1 << 20)
        start = time.perf_counter()
        with open(path, "wb") as file:
            for _ in range(files):
                file.write(chunk)
            file.flush()
            os.fdatasync(file.fileno())
        writes.append(time.perf_counter() - start)
        os.remove(path)
    os.remove(layer)
    return pulls, writes


def measure(box, k, image: str, figure, rounds: int, many: int) -> None:
    """All of the above, in a namespace of its own; the image is loaded."""
    namespace, connection = "bench-node", k.connect()
    k.call(connection, "POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    took = runtimes(box, k, namespace, image, rounds)
    median = {name: statistics.median(times) for name, times in took.items()}
    for name, value in median.items():
        figure(f"container, create to exit: {name}", 1000 * value, "ms", "with its overlay mount" if name == "shim" else "")
    for name in ("crun", "runc"):
        if name in median:
            figure(f"ratio to {name}", median["shim"] / median[name], "x")
    seconds = at_once(k, namespace, many)
    figure(f"{many} pods at once, first create to last exit", seconds, "s", f"{many / seconds:.1f} pods/s")
    figure("private memory of a container's shim", statistics.median(shim_memory(box, k, namespace, 5)) / 1024, "KiB")
    direct, through = service(k, namespace, 100 * rounds)
    figure("connection and echo, pod to pod", 1e6 * direct, "us")
    figure("the same by the Service's address", 1e6 * through, "us", f"ratio {through / direct:.2f}")
    ours, theirs = images(box, image, max(3, rounds // 5))
    figure("image, archive to unpacked", statistics.median(ours), "s", "verified and flushed")
    figure("skopeo copy and umoci unpack of the same", statistics.median(theirs), "s")
    figure("ratio of images", statistics.median(ours) / statistics.median(theirs), "x")
    pulls, writes = large_pull(box, PROFILE, 3)
    figure("pull of 1 GiB from the embedded registry", statistics.median(pulls), "s", "verified and flushed")
    figure("ratio to writing 1 GiB to the disk", statistics.median(pulls) / statistics.median(writes), "x")
