#!/usr/bin/env python3
"""Tries doors, as whoever runs it: a JSON document on standard input names them, a list of outcomes comes out.

Only the standard library is used, so that it runs in any pod as well as on the host. An outcome is a status (`200`,
`403`, for gRPC `data`, `empty` or `none`, for TCP `open` or `closed`); a `+` after it says that the answer of a request
that succeeded holds one of the markers, that is, something of the owner's. A gRPC door that is `raw` has the answer's
message in hexadecimal as its outcome.
"""
import base64
import datetime
import hashlib
import hmac
import http.client
import json
import os
import socket
import ssl
import struct
import sys
import urllib.parse

TIMEOUT = 20
ATTEMPT = 3  # for a packet that nobody answers


def connection(url: str, upgrade: bool = False) -> http.client.HTTPConnection:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        context = ssl._create_unverified_context()
        return http.client.HTTPSConnection(parts.hostname, parts.port or 443, timeout=TIMEOUT, context=context)
    return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=TIMEOUT)


def outcome(plan: dict, status: int, body: bytes) -> str:
    seen = 200 <= status < 300 and any(m.encode() in body for m in plan["markers"])
    return f"{status}{'+' if seen else ''}"


def read_some(response: http.client.HTTPResponse) -> bytes:
    if response.getheader("Content-Type", "").startswith("text/event-stream"):
        return response.read1(65536)  # such a body has no end
    body = b""
    try:
        while len(body) < 1 << 20:
            chunk = response.read1(65536)
            if not chunk:
                break
            body += chunk
    except (TimeoutError, http.client.HTTPException):
        pass
    return body


def web(plan: dict, door: dict) -> str:
    link = connection(plan["bases"][door["base"]])
    headers = {"Accept": "application/json", **door.get("headers", {})}
    if plan.get("token"):
        headers["Authorization"] = f"Bearer {plan['token']}"
    body = door.get("body")
    if body is not None:
        headers.setdefault("Content-Type", "application/json")
    link.request(door["method"], door["path"], body=None if body is None else json.dumps(body), headers=headers)
    response = link.getresponse()
    if response.status == 101:
        link.close()
        return "101"
    result = outcome(plan, response.status, read_some(response))
    link.close()
    return result


def websocket(plan: dict, door: dict) -> str:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Protocol": door.get("protocol", "v5.channel.k8s.io"),
    }
    return web(plan, {**door, "method": "GET", "headers": headers})


def s3(plan: dict, door: dict) -> str:
    """Signature version 4, in the header or (`presign`) in the query; unsigned without credentials."""
    base = plan["bases"]["objects"]
    host = urllib.parse.urlsplit(base).netloc
    path, _, query = door["path"].partition("?")
    path = urllib.parse.quote(path)
    payload = (door.get("body") or "").encode()
    pairs = urllib.parse.parse_qsl(query, keep_blank_values=True)
    headers = {"host": host}
    keys = plan.get("s3")
    if keys:
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{now[:8]}/{keys['region']}/s3/aws4_request"
        digest = hashlib.sha256(payload).hexdigest()
        if door.get("presign"):
            digest = "UNSIGNED-PAYLOAD"
            pairs += [
                ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
                ("X-Amz-Credential", f"{keys['accessKey']}/{scope}"),
                ("X-Amz-Date", now),
                ("X-Amz-Expires", "300"),
                ("X-Amz-SignedHeaders", "host"),
            ]
        else:
            headers |= {"x-amz-content-sha256": digest, "x-amz-date": now}
        names = ";".join(sorted(headers))
        encoded = "&".join(sorted(f"{quoted(k)}={quoted(v)}" for k, v in pairs))
        lines = "".join(f"{k}:{headers[k]}\n" for k in sorted(headers))
        request = "\n".join([door["method"], path, encoded, lines, names, digest])
        text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(request.encode()).hexdigest()])
        key = f"AWS4{keys['secretKey']}".encode()
        for part in (*scope.split("/"), text):
            signature = hmac.new(key, part.encode(), hashlib.sha256)
            key = signature.digest()
        if door.get("presign"):
            pairs.append(("X-Amz-Signature", signature.hexdigest()))
        else:
            headers["authorization"] = (
                f"AWS4-HMAC-SHA256 Credential={keys['accessKey']}/{scope}, SignedHeaders={names}, "
                f"Signature={signature.hexdigest()}"
            )
    target = path + ("?" + "&".join(f"{quoted(k)}={quoted(v)}" for k, v in pairs) if pairs else "")
    link = connection(base)
    link.request(door["method"], target, body=payload or None, headers=headers)
    response = link.getresponse()
    result = outcome(plan, response.status, read_some(response))
    link.close()
    return result


def quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header field that no table remembers (RFC 7541 section 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def grpc(plan: dict, door: dict) -> str:
    """One unary call of ML Metadata in bare HTTP/2."""
    parts = urllib.parse.urlsplit(plan["bases"]["metadata"])
    link = socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT)
    if parts.scheme == "https":
        context = ssl._create_unverified_context()
        context.set_alpn_protocols(["h2"])
        if plan.get("certificate"):
            context.load_cert_chain(plan["certificate"], plan["key"])
        link = context.wrap_socket(link, server_hostname=parts.hostname)
    message = bytes.fromhex(door.get("message", ""))
    # Any value that fits one byte of length: the path is shorter than 127.
    headers = b"".join(
        literal(name, value)
        for name, value in [
            (":method", "POST"),
            (":scheme", parts.scheme),
            (":path", f"/ml_metadata.MetadataStoreService/{door['call']}"),
            (":authority", "metadata"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *door.get("headers", {}).items(),
        ]
    )
    link.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(4, 0, 0)
        + frame(1, 4, 1, headers)
        + frame(0, 1, 1, b"\0" + struct.pack(">I", len(message)) + message)
    )
    received, body, ended = b"", b"", False
    while not ended:
        chunk = link.recv(65536)
        if not chunk:
            break
        received += chunk
        while len(received) >= 9 and len(received) >= 9 + int.from_bytes(received[:3], "big"):
            size, kind, flags = int.from_bytes(received[:3], "big"), received[3], received[4]
            stream = int.from_bytes(received[5:9], "big") & 0x7FFFFFFF
            payload, received = received[9 : 9 + size], received[9 + size :]
            if kind == 4 and not flags & 1:
                link.sendall(frame(4, 1, 0))
            if stream == 1:
                body += payload if kind == 0 else b""
                ended = ended or bool(flags & 1) or kind == 3
            ended = ended or kind == 7
    link.close()
    if len(body) < 5:
        return "none"
    if door.get("raw"):
        return body[5:].hex()
    seen = any(m.encode() in body for m in plan["markers"])
    return ("data" if len(body) > 5 else "empty") + ("+" if seen else "")


def tcp(plan: dict, door: dict) -> str:
    try:
        socket.create_connection((door["host"], door["port"]), timeout=ATTEMPT).close()
        return "open"
    except OSError:
        return "closed"


KINDS = {"web": web, "websocket": websocket, "s3": s3, "grpc": grpc, "tcp": tcp}


def main() -> None:
    plan = json.load(sys.stdin)
    if plan.get("token_file"):
        with open(plan["token_file"]) as source:
            plan["token"] = source.read()
    outcomes = []
    for door in plan["doors"]:
        try:
            outcomes.append(KINDS[door["kind"]](plan, door))
        except Exception as error:  # whatever it is, it is the outcome
            outcomes.append(f"{type(error).__name__}: {error}")
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
