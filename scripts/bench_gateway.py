#!/usr/bin/env python3
"""Benchmarks of the gateway against Debian's nginx as a reverse proxy, in turns within one run: requests a second, added
latency over the direct connection, idle WebSockets' memory, and how soon a right that was taken away is refused.

    scripts/bench_gateway.py --kfbox PROGRAM --image python-3.11.oci.tar [--seconds 5] [--rounds 3] [--json FILE]

Needs root, and Debian's `nginx-light` and `wrk` (`scripts/setup gateway-bench`). Everything goes to one nginx in a pod,
which answers with one line: directly, through an nginx on the host, through one that asks the gateway first
(`auth_request`, as in front of oauth2-proxy), and through the gateway by a VirtualService, which always knows who asks and
asks the cluster whether they may. The gateway's part is compared with both nginxes: the plain one does less, the asking
one about the same. All keep their connections to the pod, and nobody writes an access log.

Latency is of one connection, so that nothing waits for another request. What is added at p99 is the difference of two
p99s, not the p99 of the differences.
"""
import argparse
import hashlib
import http.client
import io
import json
import os
import re
import socket
import statistics
import subprocess
import tarfile
import time
import urllib.parse

from bench import Box, Kubernetes

OWNER, OTHER = "kubeflow-user-example-com", "other@example.com"
WITHIN = "gateway, a component in it"
SERVER = """
import asyncio, base64, hashlib
async def serve(reader, writer):
    head = (await reader.readuntil(b"\\r\\n\\r\\n")).decode()
    key = next(l.split(":", 1)[1].strip() for l in head.split("\\r\\n") if l.lower().startswith("sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
    writer.write(("HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
                  f"Sec-WebSocket-Accept: {accept}\\r\\n\\r\\n").encode())
    while data := await reader.read(100):
        writer.write(data)
async def main():
    async with await asyncio.start_server(serve, "0.0.0.0", 8080, backlog=1000) as s:
        await s.serve_forever()
asyncio.run(main())
"""


def nginx_image(path: str) -> None:
    """An image of the host's own nginx and the libraries that it needs, in the form of `docker save`."""
    libraries = subprocess.run(["ldd", "/usr/sbin/nginx"], check=True, capture_output=True, text=True).stdout
    files = ["/usr/sbin/nginx", *re.findall(r"(/\S+)", libraries)]
    layer = io.BytesIO()
    config = (
        "daemon off; master_process off; error_log /dev/null; pid /tmp/pid; events { worker_connections 4096; }\n"
        "http { access_log off; keepalive_requests 1000000000; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p;\n"
        "fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;\n"
        "server { listen 80; location / { return 200 'one line of an answer\\n'; } } }\n"
    )
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name, data, mode in [
            ("etc/passwd", b"root:x:0:0::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n", 0o644),
            ("etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644),
            ("nginx.conf", config.encode(), 0o644),
        ]:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
        for name in ("tmp", "var/log/nginx", "var/lib/nginx"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(info)
        for name in dict.fromkeys(files):
            tar.add(os.path.realpath(name), arcname=name.lstrip("/"))
    data = layer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    image = json.dumps({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "config": {"Cmd": ["/usr/sbin/nginx", "-c", "/nginx.conf"]},
    }).encode()
    manifest = [{"Config": "config.json", "RepoTags": ["bench-nginx:1"], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        for name, content in [("config.json", image), ("layer.tar", data), ("manifest.json", json.dumps(manifest).encode())]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Nginx:
    """Debian's nginx before `upstream`, plain on one port and asking `auth` first on another; one worker a core."""

    def __init__(self, folder: str, upstream: str, auth: str):
        self.plain, self.asking = free_port(), free_port()
        path = os.path.join(folder, "nginx.conf")
        with open(path, "w") as out:
            out.write(
                f"daemon off; worker_processes auto; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n"
                "events { worker_connections 4096; }\nhttp { access_log off; keepalive_requests 1000000000;\n"
                f"upstream pod {{ server {upstream}; keepalive 64; keepalive_requests 1000000000; }}\n"
                f"upstream auth {{ server {auth}; keepalive 64; keepalive_requests 1000000000; }}\n"
                'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;\n'
                f"server {{ listen 127.0.0.1:{self.plain}; location / {{ proxy_pass http://pod; }} }}\n"
                f"server {{ listen 127.0.0.1:{self.asking}; location / {{ auth_request /auth; proxy_pass http://pod; }}\n"
                "location = /auth { internal; proxy_pass http://auth/oauth2/auth; proxy_pass_request_body off;\n"
                # A location with a header of its own inherits none: without these, each question would be a new connection.
                'proxy_set_header Connection ""; proxy_set_header Host $host; proxy_set_header Content-Length ""; } } }\n'
            )
        self.process = subprocess.Popen(["/usr/sbin/nginx", "-c", path, "-p", folder], stderr=subprocess.DEVNULL)

    def stop(self):
        self.process.terminate()
        self.process.wait()


def wrk(url: str, connections: int, seconds: int, headers: dict) -> dict:
    """Requests a second, and latency at p50 and p99 in microseconds."""
    args = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    for name, value in headers.items():
        args += ["-H", f"{name}: {value}"]
    text = subprocess.run([*args, url], check=True, capture_output=True, text=True).stdout
    if found := re.search(r"Non-2xx or 3xx responses: (\d+)", text):
        raise SystemExit(f"{url}: {found[0]}")
    if found := re.search(r"Socket errors: .*", text):
        raise SystemExit(f"{url}: {found[0]}")
    unit = {"us": 1, "ms": 1e3, "s": 1e6}
    at = lambda q: (m := re.search(rf"\s{q}%\s+([\d.]+)(us|ms|s)", text)) and float(m[1]) * unit[m[2]]
    return {"rate": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]), "p50": at(50), "p99": at(99)}


def upstreams(k: Kubernetes, connection) -> tuple[str, str]:
    """The pods' addresses: nginx, and the WebSockets' server."""
    base = f"/api/v1/namespaces/{OWNER}"
    for name, image, port, command in [
        ("web", "bench-nginx:1", 80, None),
        ("sockets", "python:3.11", 8080, ["python3", "-c", SERVER]),
    ]:
        container = {"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", **({"command": command} if command else {})}
        meta = {"name": name, "labels": {"app": name}}
        k.call(connection, "POST", f"{base}/pods", {"metadata": meta, "spec": {"containers": [container]}})
        service = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": port}]}
        k.call(connection, "POST", f"{base}/services", {"metadata": {"name": name}, "spec": service})
    addresses = []
    for name, port in [("web", 80), ("sockets", 8080)]:
        for _ in range(600):
            pod = k.call(connection, "GET", f"{base}/pods/{name}")
            address = (pod["status"].get("podIP"), port)
            if address[0] and answers(address):
                break
            time.sleep(0.1)
        else:
            raise SystemExit(f"the pod {name} does not answer: {pod['status']}")
        addresses.append("%s:%d" % address)
    return tuple(addresses)


def answers(address) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
        return True
    except OSError:
        return False


def routes(k: Kubernetes, connection) -> bool:
    """Ways to both through the gateway; false if this box has none."""
    path = f"/apis/networking.istio.io/v1/namespaces/{OWNER}/virtualservices"
    for name in ("web", "sockets"):
        rule = {
            "match": [{"uri": {"prefix": f"/{name}/{OWNER}/"}}],
            "rewrite": {"uri": "/"},
            "route": [{"destination": {"host": name, "port": {"number": 80}}}],
        }
        spec = {"hosts": ["*"], "gateways": ["kubeflow/kubeflow-gateway"], "http": [rule]}
        body = {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": name}, "spec": spec}
        connection.request("POST", path, body=json.dumps(body), headers={"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status == 404:
            return False
        if response.status >= 300:
            raise SystemExit(f"{path}: {answer[:300]!r}")
    return True


def settled(url: str, headers: dict) -> None:
    for _ in range(300):
        try:
            if status(url, headers) == 200:
                return
        except ConnectionRefusedError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


def status(url: str, headers: dict) -> int:
    to = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(to.hostname, to.port, timeout=10)
    try:
        connection.request("GET", f"{to.path}?{to.query}" if to.query else to.path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def latencies(figure, ways: dict, args) -> None:
    """Each way in turn, round after round, and each round begins with another: the machine's drift is everybody's."""
    found = {name: {"one": [], "many": []} for name in ways}
    # Not counted: the first requests make connections, caches and pages of programs.
    for url, headers in ways.values():
        wrk(url, 32, 1, headers)
    for n in range(args.rounds):
        order = list(ways.items())
        for name, (url, headers) in order[n % len(order) :] + order[: n % len(order)]:
            found[name]["one"].append(wrk(url, 1, args.seconds, headers))
            found[name]["many"].append(wrk(url, 32, args.seconds, headers))
    middle = lambda name, load, what: statistics.median(r[what] for r in found[name][load])
    for name in ways:
        figure(f"{name}: requests, 32 connections", middle(name, "many", "rate"), "/s", f"p99 {middle(name, 'many', 'p99') / 1000:.2f} ms")
    for what in ("p50", "p99"):
        direct = middle("direct", "one", what)
        figure(f"direct: latency {what}", direct, "us")
        added = {name: middle(name, "one", what) - direct for name in ways if name not in ("direct", WITHIN)}
        for name, value in added.items():
            figure(f"{name}: added latency {what}", value, "us")
        # It does not go to the pod, so it adds to nothing.
        figure(f"{WITHIN}: latency {what}", middle(WITHIN, "one", what), "us")
        for name in ("nginx", "nginx that asks first"):
            if "gateway" in added and added[name] > 0:
                figure(f"gateway to {name}: added latency {what}", added["gateway"] / added[name], "x")


def sockets(figure, box: Box, address: str, path: str, headers: dict, count: int) -> None:
    # Of the daemon's own: pages of the program come and go.
    def own() -> int:
        with open(f"/proc/{box.status()['pid']}/status") as lines:
            return next(int(l.split()[1]) * 1024 for l in lines if l.startswith("RssAnon"))

    time.sleep(10)
    before, held = own(), []
    host, port = address.rsplit(":", 1)
    lines = "".join(f"{n}: {v}\r\n" for n, v in headers.items())
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{lines}"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    for _ in range(count):
        one = socket.create_connection((host, int(port)), timeout=20)
        one.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            part = one.recv(4096)
            if not part:
                raise SystemExit(f"no WebSocket: {answer[:200]!r}")
            answer += part
        if b" 101 " not in answer.split(b"\r\n", 1)[0]:
            raise SystemExit(f"no WebSocket: {answer[:200]!r}")
        held.append(one)
    # Each has carried something, so that nothing is put off.
    for one in held:
        one.sendall(b"x")
        if one.recv(1) != b"x":
            raise SystemExit("a WebSocket is dead")
    time.sleep(3)
    figure(f"memory of {count} idle WebSockets", (own() - before) / 2**20, "MiB")
    for one in held:
        one.close()


def revoked(figure, box: Box, k: Kubernetes, connection, doors: dict) -> None:
    """From the moment that a binding's deletion is acknowledged to the first refusal, for who never stops asking."""
    done = subprocess.run(
        [box.program, "user", "add", OTHER], input="a long enough password\n", text=True, capture_output=True,
        env={**os.environ, "KFBOX_DATA_DIR": box.data},
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    headers = {"Authorization": f"Bearer {box.run('token', '--user', OTHER).strip()}", "Accept": "application/json"}
    base = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{OWNER}/rolebindings"
    body = {
        "metadata": {"name": "bench"}, "subjects": [{"kind": "User", "name": OTHER, "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "kubeflow-edit", "apiGroup": "rbac.authorization.k8s.io"},
    }
    for name, url in doors.items():
        took = []
        for _ in range(5):
            k.call(connection, "POST", base, body)
            settled(url, headers)
            # Just before the end, so that what an answer left in a cache is as young as can be.
            for _ in range(3):
                status(url, headers)
            k.call(connection, "DELETE", f"{base}/bench")
            start = time.perf_counter()
            while (found := status(url, headers)) == 200:
                if time.perf_counter() - start > 30:
                    raise SystemExit(f"{url}: the revoked right was never refused")
            if found not in (403, 404):
                raise SystemExit(f"{url}: {found} is no refusal")
            took.append(time.perf_counter() - start)
        figure(f"a revoked right is refused after, worst of 5: {name}", 1000 * max(took), "ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kfbox", required=True)
    parser.add_argument("--image", required=True, help="python:3.11 as an OCI archive")
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sockets", type=int, default=1000)
    parser.add_argument("--json")
    args = parser.parse_args()
    figures = {}

    def figure(name: str, value: float, unit: str, note: str = ""):
        figures[name] = {"value": round(value, 4), "unit": unit}
        print(f"{name:<58} {value:>10.3f} {unit:<4} {note}", flush=True)

    box, nginx = Box(args.kfbox), None
    # Beside a run of the other benchmarks.
    named = {"kfbench": "kfbenchgw", "10.146.0.0/22": "10.120.0.0/22", "10.147.0.0/16": "10.121.0.0/16"}
    config = os.path.join(box.folder, "config.toml")
    with open(config, "w") as out:
        out.write("[gateway.access_log]\nenabled = false\n")
    box.settings = [*(named.get(word, word) for word in box.settings), "--config", config]
    try:
        box.up()
        image = os.path.join(box.folder, "nginx.tar")
        nginx_image(image)
        box.run("image", "load", image)
        box.run("image", "load", args.image)
        k = Kubernetes(box)
        connection = k.connect()
        web, _ = upstreams(k, connection)
        gateway = urllib.parse.urlsplit(box.status()["url"]).netloc
        headers = {"Authorization": f"Bearer {box.run('token').strip()}"}
        nginx = Nginx(box.folder, web, gateway)
        ways = {
            "direct": (f"http://{web}/", {}),
            "nginx": (f"http://127.0.0.1:{nginx.plain}/", {}),
            "nginx that asks first": (f"http://127.0.0.1:{nginx.asking}/", headers),
        }
        routed = routes(k, connection)
        if routed:
            ways["gateway"] = (f"http://{gateway}/web/{OWNER}/", headers)
        else:
            print("this box has no VirtualServices: the way through the gateway is left out")
        ways[WITHIN] = (f"http://{gateway}/apis/v2beta1/healthz", headers)
        for url, sent in ways.values():
            settled(url, sent)
        latencies(figure, ways, args)
        doors = {"a component": f"http://{gateway}/apis/v2beta1/runs?namespace={OWNER}"}
        if routed:
            # The one place where a decision is remembered, for half a second.
            doors["a Service"] = ways["gateway"][0]
        # The one from before was idle for minutes, and the server has closed it.
        revoked(figure, box, k, k.connect(), doors)
        if routed:
            sockets(figure, box, gateway, f"/sockets/{OWNER}/", headers, args.sockets)
    finally:
        if nginx:
            nginx.stop()
        box.remove()
    if args.json:
        with open(args.json, "w") as out:
            json.dump(figures, out, indent=1)


if __name__ == "__main__":
    main()
