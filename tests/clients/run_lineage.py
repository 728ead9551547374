#!/usr/bin/env python3
"""Reads a run's lineage with the unmodified ml-metadata client over mutual TLS; prints it as JSON."""
import argparse
import base64
import json
import re

from ml_metadata import errors
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as pb


def field(kubeconfig: str, name: str) -> bytes:
    return base64.b64decode(re.search(rf"{name}:\s*(\S+)", kubeconfig).group(1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--run", required=True)
    args = parser.parse_args()
    with open(args.kubeconfig) as source:
        kubeconfig = source.read()
    host, port = args.address.rsplit(":", 1)
    config = pb.MetadataStoreClientConfig(host=host, port=int(port))
    config.ssl_config.custom_ca = field(kubeconfig, "certificate-authority-data").decode()
    config.ssl_config.server_cert = field(kubeconfig, "client-certificate-data").decode()
    config.ssl_config.client_key = field(kubeconfig, "client-key-data").decode()
    store = metadata_store.MetadataStore(config)

    context = store.get_context_by_type_and_name("system.PipelineRun", args.run)
    if context is None:
        raise SystemExit(f"no context of the run {args.run}")
    executions = store.get_executions_by_context(context.id)
    artifacts = store.get_artifacts_by_context(context.id)
    types = {t.id: t.name for t in store.get_artifact_types()}
    events = store.get_events_by_execution_ids([e.id for e in executions]) if executions else []
    inputs = {pb.Event.INPUT, pb.Event.DECLARED_INPUT}
    described = []
    for e in executions:
        mine = [x for x in events if x.execution_id == e.id]
        described.append(
            {
                "name": e.custom_properties["task_name"].string_value
                or e.custom_properties["display_name"].string_value,
                "state": pb.Execution.State.Name(e.last_known_state),
                "inputs": sum(x.type in inputs for x in mine),
                "outputs": sum(x.type not in inputs for x in mine),
            }
        )
    try:
        store.get_contexts_by_id([10**9])
    except errors.NotFoundError:
        pass
    print(json.dumps({"artifact_types": sorted({types[a.type_id] for a in artifacts}), "executions": described}))


if __name__ == "__main__":
    main()
