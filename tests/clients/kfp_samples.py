#!/usr/bin/env python3
"""Starts many compiled packages at once with the unmodified kfp SDK, waits for all of them, and prints how each ended.
Reads `[{"file": PATH, "arguments": {}, "pipeline_root": URI or null}]` from standard input."""
import argparse
import json
import sys
import time

import kfp

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


def describe(run, seconds: float) -> dict:
    tasks = (run.run_details.task_details or []) if run.run_details else []
    return {
        "run_id": run.run_id,
        "state": run.state,
        "error": run.error.message if run.error else None,
        "seconds": round(seconds, 1),
        "tasks": {t.display_name: t.state for t in tasks},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--host", "--token", "--namespace"):
        parser.add_argument(name, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    args = parser.parse_args()
    client = kfp.Client(host=args.host, existing_token=args.token)
    started, results = {}, {}
    for sample in json.load(sys.stdin):
        run = client.create_run_from_pipeline_package(
            sample["file"],
            arguments=sample["arguments"],
            pipeline_root=sample["pipeline_root"],
            namespace=args.namespace,
            experiment_name="samples",
        )
        started[run.run_id] = sample["file"]
    begin = time.monotonic()
    while len(results) < len(started) and time.monotonic() - begin < args.timeout:
        for run_id, file in started.items():
            if file in results:
                continue
            run = client.get_run(run_id)
            if run.state in ENDED:
                results[file] = describe(run, time.monotonic() - begin)
        time.sleep(1)
    for run_id, file in started.items():
        if file not in results:
            results[file] = describe(client.get_run(run_id), args.timeout)
            client.terminate_run(run_id)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
