"""A device plugin as their makers write them: gRPC on sockets of the plugins' folder, in Python.

    device_plugin.py FOLDER RESOURCE PROTO...

Its devices are `a` and `b`. It obeys lines on standard input: `sick ID`, `well ID`, `end`. What it is asked, it prints.
"""

import os
import sys
import threading
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FOLDER, RESOURCE, DESCRIPTORS = sys.argv[1:4]
SOCKET = RESOURCE.replace("/", "-") + ".sock"

files = descriptor_pb2.FileDescriptorSet.FromString(open(DESCRIPTORS, "rb").read())
pool = descriptor_pool.DescriptorPool()
for file in files.file:
    pool.Add(file)


def message(name):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"v1beta1.{name}"))


health = {"a": "Healthy", "b": "Healthy"}
changed = threading.Condition()


def say(*words):
    print(*words, flush=True)


def options(_request, _context):
    return message("DevicePluginOptions")(pre_start_required=True)


def list_and_watch(_request, context):
    told = None
    while context.is_active():
        with changed:
            changed.wait_for(lambda: told != health, timeout=1)
            if told == health:
                continue
            told = dict(health)
        yield message("ListAndWatchResponse")(devices=[{"ID": name, "health": state} for name, state in told.items()])


def allocate(request, context):
    answers = []
    for container in request.container_requests:
        ids = list(container.devices_ids)
        say("allocate", *ids)
        answers.append(
            {
                "envs": {"ACCELERATORS": ",".join(ids)},
                "devices": [{"container_path": "/dev/accelerator", "host_path": "/dev/zero", "permissions": "rw"}],
                "mounts": [{"container_path": "/driver", "host_path": FOLDER, "read_only": True}],
                "cdi_devices": [{"name": "vendor.example/card=" + ids[0]}],
            }
        )
    return message("AllocateResponse")(container_responses=answers)


def pre_start(request, _context):
    say("start", *request.devices_ids)
    return message("PreStartContainerResponse")()


def handler(kind, work, request, answer):
    return kind(work, message(request).FromString, message(answer).SerializeToString)


methods = {
    "GetDevicePluginOptions": handler(grpc.unary_unary_rpc_method_handler, options, "Empty", "DevicePluginOptions"),
    "ListAndWatch": handler(grpc.unary_stream_rpc_method_handler, list_and_watch, "Empty", "ListAndWatchResponse"),
    "Allocate": handler(grpc.unary_unary_rpc_method_handler, allocate, "AllocateRequest", "AllocateResponse"),
    "PreStartContainer": handler(
        grpc.unary_unary_rpc_method_handler, pre_start, "PreStartContainerRequest", "PreStartContainerResponse"
    ),
}
server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1beta1.DevicePlugin", methods),))
server.add_insecure_port("unix://" + os.path.join(FOLDER, SOCKET))
server.start()

channel = grpc.insecure_channel("unix://" + os.path.join(FOLDER, "kubelet.sock"))
register = channel.unary_unary(
    "/v1beta1.Registration/Register", message("RegisterRequest").SerializeToString, message("Empty").FromString
)


def registration(**what):
    try:
        register(message("RegisterRequest")(**what), timeout=10)
        say("registered", what["resource_name"])
    except grpc.RpcError as error:
        say("refused", error.code().name, error.details())


registration(version="v1alpha", endpoint=SOCKET, resource_name=RESOURCE)
registration(version="v1beta1", endpoint="../" + SOCKET, resource_name=RESOURCE)
registration(version="v1beta1", endpoint=SOCKET, resource_name="kubernetes.io/gpu")
registration(version="v1beta1", endpoint=SOCKET, resource_name=RESOURCE, options={"pre_start_required": True})

for line in sys.stdin:
    match line.split():
        case ["sick" | "well" as how, name]:
            with changed:
                health[name] = "Healthy" if how == "well" else "Unhealthy"
                changed.notify_all()
        case ["end"]:
            break
server.stop(0)
