#!/usr/bin/env python3
"""Offers packages, and arguments for runs, with the unmodified kfp SDK, and prints what the server says to each.
Reads `[{"name": ..., "content": ..., "arguments": {} or null, "pipeline_root": URI or null}]` from standard input;
without arguments a package is uploaded, with arguments a run of it is asked for."""
import argparse
import json
import os
import sys
import tempfile
import time

import kfp
import kfp_server_api


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--host", "--token", "--namespace"):
        parser.add_argument(name, required=True)
    args = parser.parse_args()
    client = kfp.Client(host=args.host, existing_token=args.token)
    said = {}
    with tempfile.TemporaryDirectory() as folder:
        for n, case in enumerate(json.load(sys.stdin)):
            path = os.path.join(folder, f"{n}.yaml")
            with open(path, "w") as file:
                file.write(case["content"])
            try:
                if case["arguments"] is None:
                    client.upload_pipeline(
                        path, pipeline_name=f"refused-{n}-{time.time_ns()}", namespace=args.namespace
                    )
                else:
                    client.create_run_from_pipeline_package(
                        path,
                        arguments=case["arguments"],
                        pipeline_root=case["pipeline_root"],
                        namespace=args.namespace,
                        experiment_name="tests",
                    )
                said[case["name"]] = {"status": 200, "body": ""}
            except kfp_server_api.ApiException as error:
                body = error.body.decode() if isinstance(error.body, bytes) else error.body
                said[case["name"]] = {"status": error.status, "body": body}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
