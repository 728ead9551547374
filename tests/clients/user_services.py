"""Services of a namespace through the gateway: plain requests, a WebSocket, server-sent events and gRPC, by who may and who
may not.

Environment: KFBOX_URL, NAMESPACE, OWNER, EDITOR, VIEWER and STRANGER (tokens), OWNER_EMAIL.
"""

import os
from urllib.parse import urlsplit

import grpc
import requests
import websocket

URL, NAMESPACE = os.environ["KFBOX_URL"], os.environ["NAMESPACE"]
BASE = f"{URL}/web/{NAMESPACE}"


def headers(who):
    return {"Authorization": f"Bearer {os.environ[who]}", "kubeflow-userid": "admin@example.com"}


def get(who, path="/", **more):
    return requests.get(BASE + path, headers=headers(who), timeout=20, **more)


def grpc_refusal(who=None):
    """What grpcio makes of the gateway's answer: https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md"""
    metadata = [("authorization", headers(who)["Authorization"])] if who else []
    with grpc.insecure_channel(urlsplit(URL).netloc, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(f"/web/{NAMESPACE}/lab.Service/Call")(b"", timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()


def main():
    told = get("OWNER", "/lab/tree?x=1").json()
    assert told["path"] == "/lab/tree?x=1", told
    assert told["headers"]["kubeflow-userid"] == os.environ["OWNER_EMAIL"], told
    assert told["headers"]["x-mode"] == "lab" and "authorization" not in told["headers"], told
    posted = requests.post(BASE + "/up", headers=headers("EDITOR"), data=b"x" * 3_000_000, timeout=20).json()
    assert posted["body"] == 3_000_000, posted
    # A page of the Service can do whatever its pod can: who may only view does not get in.
    refused = {who: get(who).status_code for who in ("VIEWER", "STRANGER")}
    assert set(refused.values()) == {404}, refused
    assert requests.get(BASE + "/", headers={"Accept": "application/json"}, timeout=20).status_code == 401
    # HTTP/2 without TLS, and the same answers: 401 and 404.
    assert grpc_refusal() == grpc.StatusCode.UNAUTHENTICATED
    assert grpc_refusal("STRANGER") == grpc.StatusCode.UNIMPLEMENTED
    socket = websocket.create_connection(BASE.replace("http", "ws", 1) + "/ws", header=headers("EDITOR"), timeout=20)
    for text in ("one", "two" * 10_000):
        socket.send(text)
        assert socket.recv() == text
    socket.close()
    try:
        websocket.create_connection(BASE.replace("http", "ws", 1) + "/ws", header=headers("STRANGER"), timeout=20)
    except websocket.WebSocketBadStatusException as error:
        assert error.status_code == 404, error
    else:
        raise AssertionError("a stranger has a WebSocket")
    # By the Gateway API's route, and the exact path of another rule.
    other = f"{URL}/events/{NAMESPACE}"
    with requests.get(other, headers=headers("OWNER"), timeout=20, stream=True) as events:
        assert next(events.iter_lines()) == b"data: first", "an event comes before the end"
    assert requests.get(other + "/more", headers=headers("OWNER"), timeout=20).status_code == 404
    print("ok")


main()
